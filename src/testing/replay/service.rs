//! A replay as a service: a socket to connect to.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::pipe::{PipeFlags, pipe_with};
use tempfile::TempDir;
use tokio::sync::watch;

use super::outcome::{Outcome, Replayed};
use super::turn::Turn;
use super::{Part, Replay};
use crate::testing::service::{SOCKET, accept_all, listen};

impl Replay {
    /// Listens like `criu service`, on a thread of this process, at a socket in a temporary directory. Connections are played
    /// at the same time, each the next session.
    ///
    /// # Errors
    /// When no socket or thread can be made.
    pub fn service(self) -> io::Result<ReplayHandle> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join(SOCKET);
        self.serve(path, Some(directory))
    }

    /// As [`Replay::service`], at this path. The socket has mode 0600 and is removed with the handle.
    ///
    /// # Errors
    /// When something is at `path` already, or it cannot be listened there.
    pub fn service_at(self, path: impl Into<PathBuf>) -> io::Result<ReplayHandle> {
        self.serve(path.into(), None)
    }

    fn serve(self, path: PathBuf, directory: Option<TempDir>) -> io::Result<ReplayHandle> {
        let (stopped, stop) = pipe_with(PipeFlags::CLOEXEC)?;
        let listener = listen(&path)?;
        let progress = watch::Sender::new(Progress {
            outcomes: Vec::new(),
            connected: 0,
            next: self.settings.first,
        });
        let mut handle = ReplayHandle {
            path,
            stop: Some(stop),
            listening: None,
            progress: progress.subscribe(),
            replay: self.clone(),
            _directory: directory,
        };
        let service = Arc::new(Service {
            turn: Turn::in_memory(self.settings.first),
            replay: self,
            progress,
        });
        let listening = std::thread::Builder::new()
            .name("criu-peer".into())
            .spawn(move || {
                let mut players = Vec::new();
                accept_all(&listener, &stopped, |socket| {
                    players.extend(service.clone().player(socket));
                });
                for player in players {
                    // One that has panicked has no outcome.
                    let _ = player.join();
                }
            })?;
        handle.listening = Some(listening);
        Ok(handle)
    }
}

/// A replay that listens. Dropped, it stops to listen; connections are played to their end.
#[derive(Debug)]
pub struct ReplayHandle {
    path: PathBuf,
    stop: Option<OwnedFd>,
    listening: Option<JoinHandle<()>>,
    progress: watch::Receiver<Progress>,
    replay: Replay,
    _directory: Option<TempDir>,
}

#[derive(Debug)]
struct Progress {
    outcomes: Vec<Outcome>,
    connected: usize,
    /// The first part that nobody has taken.
    next: usize,
}

struct Service {
    replay: Replay,
    turn: Turn,
    progress: watch::Sender<Progress>,
}

impl Service {
    fn player(self: Arc<Self>, socket: OwnedFd) -> Option<JoinHandle<()>> {
        self.progress
            .send_modify(|progress| progress.connected += 1);
        let playing = self.clone();
        let spawned = std::thread::Builder::new()
            .name("criu-peer".into())
            .spawn(move || {
                let outcome = playing.replay.play_in_turn(socket, &playing.turn, |_| ());
                playing.ended(outcome);
            });
        match spawned {
            Ok(player) => Some(player),
            Err(error) => {
                self.ended(Outcome {
                    problem: Some(format!("no thread to play in: {error}")),
                    ..Outcome::default()
                });
                None
            }
        }
    }

    fn ended(&self, outcome: Outcome) {
        self.progress.send_modify(|progress| {
            progress.outcomes.push(outcome);
            progress.connected -= 1;
            // In memory, which does not fail.
            progress.next = self.turn.next().unwrap_or(progress.next);
        });
    }
}

impl Progress {
    fn is_over(&self, replay: &Replay) -> bool {
        let failed = self.outcomes.iter().any(|outcome| !outcome.is_whole());
        failed || (self.connected == 0 && self.unplayed(replay).next().is_none())
    }

    fn unplayed<'a>(&self, replay: &'a Replay) -> impl Iterator<Item = &'a Part> {
        let parts = replay.parts.get(self.next..).unwrap_or_default();
        parts.iter().filter(|part| replay.is_needed(part))
    }
}

impl ReplayHandle {
    /// The socket to connect to, for [`Criu::service`](crate::Criu::service).
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.path
    }

    /// Completes when every session has been played to its end, or a client has departed. Cancel safe.
    pub async fn over(&self) {
        // Fails only when the listening thread is gone, and then nothing more is played either.
        let mut progress = self.progress.clone();
        let _ = progress
            .wait_for(|progress| progress.is_over(&self.replay))
            .await;
    }

    /// What has come of it up to now.
    #[must_use]
    pub fn so_far(&self) -> Replayed {
        let progress = self.progress.borrow();
        Replayed {
            outcomes: progress.outcomes.clone(),
            unplayed: progress
                .unplayed(&self.replay)
                .map(|part| part.session)
                .collect(),
        }
    }

    /// Stops to listen, waits for the end of what is being played, and tells what came of all. Blocks for as long as the
    /// [patience](Replay::patience) lasts, so call it when the client is done.
    #[must_use]
    pub fn join(mut self) -> Replayed {
        self.stop = None;
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
        self.so_far()
    }
}

impl Drop for ReplayHandle {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.path);
    }
}
