//! The service of Podman that is asked: one that listens already, or one of our own.
//!
//! Podman has no daemon, and often nobody listens at its socket. Then `podman system service` is started on a socket that only
//! we know, in a process group of its own, so that a terminal's signals do not end it in the middle of a restore. It is ended and
//! reaped by [`Podman::settled`]. Should nobody come to that, or should we be killed, it ends by itself when it has been asked nothing
//! for some time, and not before: a restore that it has begun is not cut short.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::Podman;
use crate::container::error::ErrorKind;
use crate::container::http::{ApiError, ApiProblem, Client};
use crate::container::model::ProcessId;

/// Where our sockets are.
const SOCKETS: &str = "/run/criu-client";
/// How the names of their directories begin; ours and no other process's have the rest.
const PREFIX: &str = "podman-";
/// How long a service of ours waits for the next question, in seconds.
const IDLE: &str = "30";
/// How long it may take to listen, or to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// How much of its complaints is kept.
const COMPLAINTS: u64 = 2048;

/// A service that was started here.
#[derive(Debug)]
pub(super) struct Service {
    child: Child,
    directory: tempfile::TempDir,
    complaints: File,
}

impl Podman {
    /// Whom to ask.
    pub(super) async fn client(&self) -> Result<Client, ErrorKind> {
        let mut service = self.service.lock().await;
        // One that has waited too long for the next question has ended.
        if let Some(running) = service.as_mut() {
            if running.runs() {
                return Ok(Client::new(running.socket()));
            }
            *service = None;
        }
        let refusal = match self.ping(&self.socket).await {
            Ok(()) => return Ok(Client::new(&self.socket)),
            Err(error) if error.status() == Some(404) => {
                return Err(ErrorKind::State {
                    path: self.socket.clone(),
                    problem: "is no socket of Podman's: name that of `podman system service`"
                        .into(),
                    source: Some(error.into()),
                });
            }
            Err(error) => error,
        };
        let nobody = matches!(refusal.problem, ApiProblem::Absent | ApiProblem::Refused);
        match &self.program {
            Some(program) if nobody => {
                let mut started = Service::start(program)?;
                started.listens(self).await?;
                let client = Client::new(started.socket());
                *service = Some(started);
                Ok(client)
            }
            _ => Err(refusal.into()),
        }
    }

    /// Ends a service that was started here.
    pub(super) async fn end_service(&self) {
        let service = self.service.lock().await.take();
        if let Some(mut service) = service {
            service.end().await;
        }
    }
}

impl Service {
    fn start(program: &Path) -> Result<Self, ErrorKind> {
        let failed = |doing: String| move |source| ErrorKind::System { doing, source };
        let making = || failed(format!("making a directory in {SOCKETS}"));
        sweep();
        let own = ProcessId::own()
            .ok_or_else(|| io::Error::other("/proc does not show this process"))
            .map_err(making())?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(SOCKETS)
            .map_err(making())?;
        let directory = tempfile::Builder::new()
            .prefix(&own.to_name(PREFIX))
            .tempdir_in(SOCKETS)
            .map_err(making())?;
        let complaints = tempfile::tempfile_in(directory.path()).map_err(making())?;
        let mut url = std::ffi::OsString::from("unix://");
        url.push(directory.path().join("socket"));
        let stderr = complaints.try_clone().map_err(making())?;
        let child = Command::new(program)
            .args(["system", "service", "--time", IDLE])
            .arg(url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .process_group(0)
            .spawn()
            .map_err(failed(format!("starting {}", program.display())))?;
        tracing::debug!(program = %program.display(), pid = child.id(), "started a service of Podman");
        Ok(Self {
            child,
            directory,
            complaints,
        })
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it answers.
    async fn listens(&mut self, podman: &Podman) -> Result<(), ErrorKind> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let error = match podman.ping(&self.socket()).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if !self.runs() {
                return Err(ErrorKind::Unsupported(format!(
                    "`podman system service` ended at once: {}",
                    self.complained()
                )));
            }
            if Instant::now() > deadline {
                return Err(ErrorKind::Api(Box::new(ApiError {
                    problem: ApiProblem::TimedOut(PATIENCE),
                    ..error
                })));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn complained(&mut self) -> String {
        let mut text = Vec::new();
        let read = self
            .complaints
            .rewind()
            .and_then(|()| (&self.complaints).take(COMPLAINTS).read_to_end(&mut text));
        match read {
            Ok(_) => String::from_utf8_lossy(&text).trim().to_owned(),
            Err(error) => error.to_string(),
        }
    }

    fn ask_to_end(&self) {
        // Not reaped yet, so the pid is its own.
        if let Some(pid) = self
            .child
            .id()
            .and_then(|pid| Pid::from_raw(pid.cast_signed()))
        {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// It finishes what it has begun first.
    async fn end(&mut self) {
        self.ask_to_end();
        if tokio::time::timeout(PATIENCE, self.child.wait())
            .await
            .is_err()
        {
            tracing::warn!(pid = self.child.id(), "a service of Podman does not end");
        }
    }
}

/// Removes the directories of processes that are gone.
fn sweep() {
    for entry in fs::read_dir(SOCKETS).into_iter().flatten().flatten() {
        let owner = ProcessId::of_name(PREFIX, &entry.file_name());
        if owner.is_some_and(|owner| !owner.is_alive()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
