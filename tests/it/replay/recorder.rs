//! Recordings to play, and clients to play them to.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};

use criu_client::Criu;
use criu_client::interpose::recording::{Event, Header, Recording, Side, write_line};
use criu_client::interpose::{Interposer, Service};
use criu_client::notify::{Hooks, Notify, Reply, Script as Name, hook_fn};
use criu_client::testing::{
    Callback, Departure, Outcome, Peer, ProgramReplay, Replay, ReplayHandle, Script, Speed,
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use serde_json::json;

use crate::support::*;

/// What engines say through a listener, as a recording.
pub(crate) struct Recorder {
    lines: Arc<Mutex<Vec<u8>>>,
    sessions: u32,
}

impl Recorder {
    pub(crate) fn new(masked: bool) -> Self {
        let mut lines = Vec::new();
        write_line(&mut lines, &Header::now(masked)).unwrap();
        Self {
            lines: Arc::new(Mutex::new(lines)),
            sessions: 0,
        }
    }

    /// One session: `engine` with a CRIU that plays `script`, and `interposer` between them.
    pub(crate) async fn session<T>(
        &mut self,
        script: Script,
        interposer: Interposer<'_>,
        engine: impl AsyncFnOnce(Criu) -> T,
    ) -> T {
        let engine = async |socket: &Path| {
            engine(Criu::service(socket).with_limits(limits().settle(SHORT))).await
        };
        self.session_at(script, interposer, engine).await
    }

    /// The same for an engine that makes its own connection.
    pub(crate) async fn session_at<T>(
        &mut self,
        script: Script,
        interposer: Interposer<'_>,
        engine: impl AsyncFnOnce(&Path) -> T,
    ) -> T {
        self.sessions += 1;
        let (session, lines) = (self.sessions, self.lines.clone());
        let interposer = interposer.observer(move |mut entry| {
            entry.session = session;
            write_line(&mut *lines.lock().unwrap(), &entry).unwrap();
        });
        let peer = Peer::service(script).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let service = Service::listen(directory.path().join("socket"), peer.socket()).unwrap();
        let listening = async { service.accept().await.unwrap().listen(interposer).await };
        let (result, ended) = tokio::join!(engine(service.path()), listening);
        ended.unwrap();
        let _ = peer.join();
        result
    }

    pub(crate) fn recording(&self) -> Recording {
        Recording::read(self.lines.lock().unwrap().as_slice()).unwrap()
    }
}

/// A recording of one dump with these hooks.
pub(crate) async fn dump_recorded(script: Script, hooks: impl Hooks) -> Recording {
    let mut recorder = Recorder::new(false);
    let scene = Scene::new();
    let engine = async |criu: Criu| scene.dump(&criu, hooks).await;
    // However it ended: that is what is recorded.
    let _ = recorder.session(script, Interposer::new(), engine).await;
    recorder.recording()
}

pub(crate) fn good_dump() -> Script {
    dumping()
        .callback("pre-dump")
        .expect_accept()
        .callback("post-dump")
        .expect_reply()
        .answer_dump_ok()
}

pub(crate) fn fast(recording: Recording) -> Replay {
    Replay::new(recording).speed(Speed::MAX)
}

pub(crate) fn as_service(replay: Replay) -> (Criu, ReplayHandle) {
    let handle = replay.service().unwrap();
    let criu = Criu::service(handle.socket()).with_limits(limits().settle(SHORT));
    (criu, handle)
}

pub(crate) fn as_program(replay: Replay) -> (Criu, ProgramReplay) {
    let replay = replay.program().unwrap();
    let criu = Criu::at(std::env::current_exe().unwrap()).with_arguments(replay.arguments());
    (criu, replay)
}

/// All went as recorded, and nothing is left to be played.
pub(crate) fn expect_whole(handle: ReplayHandle) -> Vec<Vec<u32>> {
    let replayed = handle.join();
    assert_eq!(replayed.departure(), None);
    assert_eq!(replayed.problem(), None);
    assert_eq!(replayed.unplayed, [0; 0]);
    let outcomes = replayed.outcomes.into_iter();
    outcomes.map(|outcome| outcome.sessions).collect()
}

pub(crate) fn expect_departure(handle: ReplayHandle) -> Departure {
    let replayed = handle.join();
    assert_eq!(replayed.problem(), None);
    replayed.departure().unwrap().clone()
}

/// The entry of the first message of the engine that has this type.
pub(crate) fn entry_of(recording: &Recording, kind: &str) -> usize {
    let is_it = |event: &Event| matches!(event, Event::Message { from: Side::Engine, view, .. } if view["type"] == kind);
    let mut entries = recording.entries.iter();
    entries.position(|entry| is_it(&entry.event)).unwrap()
}

pub(crate) fn refuse_post_dump() -> impl Hooks {
    hook_fn(async |notify: Notify| match notify.script() {
        Name::PostDump => Ok(Reply::Refuse("not today".into())),
        _ => Ok(Reply::Accept),
    })
}

/// A client that says what it is told to.
pub(crate) struct Client(OwnedFd);

impl Client {
    pub(crate) fn pair() -> (Self, OwnedFd) {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        (Self(ours), theirs)
    }

    pub(crate) fn play(replay: &Replay) -> (Self, std::thread::JoinHandle<Outcome>) {
        let (ours, theirs) = Self::pair();
        let replay = replay.clone();
        let playing = std::thread::spawn(move || replay.play(theirs));
        (ours, playing)
    }

    pub(crate) fn connect(path: &Path) -> Self {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let address = rustix::net::SocketAddrUnix::new(path).unwrap();
        rustix::net::connect(&socket, &address).unwrap();
        Self(socket)
    }

    pub(crate) fn say(&self, bytes: &[u8]) {
        rustix::net::send(&self.0, bytes, SendFlags::NOSIGNAL).unwrap();
    }

    /// The next message; nothing when the player has hung up.
    pub(crate) fn hear(&self) -> Vec<u8> {
        let mut bytes = [0; 4096];
        let (length, _) = rustix::net::recv(&self.0, &mut bytes, RecvFlags::empty()).unwrap();
        bytes[..length].to_vec()
    }
}

pub(crate) const VERSION: &[u8] = b"\x08\x0a";
pub(crate) const ACCEPT: &[u8] = b"\x08\x06\x18\x01";
pub(crate) const VERSION_4_2_1: &[u8] = b"\x08\x0a\x10\x01\x52\x06\x08\x04\x10\x02\x20\x01";

/// Messages with the milliseconds at which they came, and who hung up after them.
pub(crate) type Session<'a> = (&'a [(u64, Side, &'a [u8])], Side);

/// A recording written by hand.
pub(crate) fn written(sessions: &[Session<'_>]) -> Recording {
    let mut lines = Vec::new();
    write_line(&mut lines, &Header::now(false)).unwrap();
    let mut line = |session: usize, at: u64, event: Event| {
        let mut line = serde_json::to_value(event).unwrap();
        line["session"] = json!(session + 1);
        line["at"] = json!(at * 1000);
        write_line(&mut lines, &line).unwrap();
    };
    for (session, (messages, by)) in sessions.iter().enumerate() {
        for (at, from, bytes) in *messages {
            line(
                session,
                *at,
                Event::Message {
                    from: *from,
                    bytes: bytes.to_vec(),
                    view: serde_json::Map::new(),
                    fds: Vec::new(),
                },
            );
        }
        line(session, 0, Event::Ended { by: *by });
    }
    Recording::read(lines.as_slice()).unwrap()
}

/// Restores a tree whose root was the process `pid`.
pub(crate) async fn restore_recorded(pid: i32) -> Recording {
    let script = restoring()
        .callback(Callback::new("setup-namespaces").pid(pid))
        .expect_accept()
        .callback(Callback::new("orphan-pts-master").descriptors(1))
        .expect_accept()
        .callback(Callback::new("post-restore").pid(pid))
        .expect_accept()
        .answer_restore_ok(pid);
    let mut recorder = Recorder::new(false);
    let scene = Scene::with_images();
    let engine = async |criu: Criu| scene.restore(&criu, accept_all()).await.map(drop);
    let interposer = Interposer::new();
    recorder.session(script, interposer, engine).await.unwrap();
    recorder.recording()
}

pub(crate) fn accept_all() -> impl Hooks {
    hook_fn(async |_: Notify| Ok(Reply::Accept))
}

/// DUMP of a process, with notify_scripts and images_dir_fd 0.
pub(crate) fn dump_request(pid: i32) -> Vec<u8> {
    let mut opts = vec![0x08, 0, 0x10];
    let mut rest = pid.unsigned_abs();
    while rest >= 0x80 {
        opts.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    opts.extend([rest as u8, 0x60, 1]);
    let mut request = vec![0x08, 1, 0x12, opts.len() as u8];
    request.extend(opts);
    request
}
