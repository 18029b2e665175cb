//! The peer as a service: a socket to connect to.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::pipe::{PipeFlags, pipe_with};
use tempfile::TempDir;

use super::player::{Form, Player, turn_away};
use super::{Script, Transcript};

/// The name of the socket in its directory.
pub(super) const SOCKET: &str = "criu_service.socket";

/// Connections that may wait to be taken, as many as CRIU lets wait.
const BACKLOG: i32 = 16;

/// Where scripted peers come from.
#[derive(Debug)]
#[non_exhaustive]
pub struct Peer;

impl Peer {
    /// A service that plays `script` to the first that connects, and answers all others with a failed EMPTY.
    ///
    /// # Errors
    /// When no socket or thread can be made.
    pub fn service(script: Script) -> io::Result<PeerHandle> {
        Self::service_of([script])
    }

    /// A service that plays a script each to those that connect, in order and at the same time.
    ///
    /// # Errors
    /// As [`Peer::service`].
    pub fn service_of(scripts: impl IntoIterator<Item = Script>) -> io::Result<PeerHandle> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join(SOCKET);
        let listener = listen(&path)?;
        let (stopped, stop) = pipe_with(PipeFlags::CLOEXEC)?;
        let scripts: Vec<Script> = scripts.into_iter().collect();
        let listening = std::thread::Builder::new()
            .name("criu-peer".into())
            .spawn(move || serve(&listener, &stopped, scripts))?;
        Ok(PeerHandle {
            path,
            stop: Some(stop),
            listening: Some(listening),
            _directory: directory,
        })
    }
}

/// A listening peer. Dropped, it stops to listen; connections are played to their end.
#[derive(Debug)]
pub struct PeerHandle {
    path: PathBuf,
    stop: Option<OwnedFd>,
    listening: Option<JoinHandle<Vec<Transcript>>>,
    _directory: TempDir,
}

impl PeerHandle {
    /// The socket to connect to, for [`Criu::service`](crate::Criu::service).
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.path
    }

    /// Stops to listen, waits for the end of the script and returns what the client did. Blocks for as long as the script's
    /// patience lasts, so call it when the operation is over.
    ///
    /// Without a connection the transcript is empty and says so in [`Transcript::connected`].
    #[must_use]
    pub fn join(self) -> Transcript {
        self.join_all().into_iter().next().unwrap_or_default()
    }

    /// As [`PeerHandle::join`], with one transcript for each script.
    #[must_use]
    pub fn join_all(mut self) -> Vec<Transcript> {
        self.stop = None;
        self.listening
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default()
    }
}

/// A listening socket at `path`, where nothing may be yet, with the mode of CRIU's own.
pub(super) fn listen(path: &Path) -> io::Result<OwnedFd> {
    let listener = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::bind(&listener, &SocketAddrUnix::new(path)?)?;
    // Nobody can have connected yet.
    rustix::fs::chmod(path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// Takes connections until the other end of `stopped` is closed, and those that wait at that moment.
pub(super) fn accept_all(listener: &OwnedFd, stopped: &OwnedFd, mut accepted: impl FnMut(OwnedFd)) {
    let mut stopping = false;
    loop {
        match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(socket) => accepted(socket),
            Err(Errno::AGAIN) if stopping => break,
            Err(Errno::AGAIN) => {
                let mut watched = [
                    PollFd::new(listener, PollFlags::IN),
                    PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN),
                ];
                let _ = rustix::event::poll(&mut watched, None);
                stopping = !watched[1].revents().is_empty();
            }
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(_) => break,
        }
    }
}

fn serve(listener: &OwnedFd, stopped: &OwnedFd, scripts: Vec<Script>) -> Vec<Transcript> {
    let count = scripts.len();
    let mut scripts = scripts.into_iter();
    let mut players: Vec<JoinHandle<Transcript>> = Vec::new();
    accept_all(listener, stopped, |socket| match scripts.next() {
        Some(script) => players.extend(player(socket, script)),
        None => turn_away(socket),
    });
    let mut transcripts: Vec<Transcript> = players
        .into_iter()
        .map(|player| player.join().unwrap_or_default())
        .collect();
    transcripts.resize_with(count, Transcript::default);
    transcripts
}

fn player(socket: OwnedFd, script: Script) -> Option<JoinHandle<Transcript>> {
    std::thread::Builder::new()
        .name("criu-peer".into())
        .spawn(move || {
            let player = Player::new(Form::Service, socket, Transcript::default(), |_| ());
            player.play(&script).1
        })
        .ok()
}
