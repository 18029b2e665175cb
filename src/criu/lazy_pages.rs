//! The `criu lazy-pages` daemon, which has no RPC: a process with an argument vector, watched from start to end.
//!
//! It makes a socket in its work directory, tells through a pipe that it is ready, serves the page faults of one restore
//! that has the same work directory, and ends when every page is delivered.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::images::Log;
use super::settle::Settling;
use super::{Criu, ImagesDir, TimeLimits};
use crate::diagnosis::{self, Examination, LogDigest};
use crate::error::{Error, ErrorKind, OperationKind, Record, Result, TaskState};
use crate::options::LogLevel;
use crate::rpc::swrk::{Exit, Start, Worker};
use crate::sys::FIRST_INHERITED;

/// The name of the daemon's socket in its work directory.
const SOCKET: &str = "lazy-pages.socket";

/// How the daemon is started.
#[derive(Debug, Default)]
#[non_exhaustive]
#[must_use]
pub struct LazyPagesOptions {
    page_server: Option<(String, u16)>,
    work_dir: Option<ImagesDir>,
    log_level: Option<LogLevel>,
}

impl LazyPagesOptions {
    /// Pages come from the images directory alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Pages that are not in the images come from the lazy dump at this address. There is no default address: CRIU's own
    /// would be every one of this machine's.
    pub fn page_server(mut self, host: impl Into<String>, port: u16) -> Self {
        self.page_server = Some((host.into(), port));
        self
    }

    /// Where the socket and the log are; the restore must be given the same directory. Default: the images directory.
    pub fn work_dir(mut self, directory: ImagesDir) -> Self {
        self.work_dir = Some(directory);
        self
    }

    /// How much is logged.
    pub fn log_level(mut self, level: LogLevel) -> Self {
        self.log_level = Some(level);
        self
    }
}

/// A lazy-pages daemon that serves. Dropped, it is killed: tasks that still wait for pages then fail.
#[must_use = "a lazy-pages daemon that is dropped is killed"]
#[derive(Debug)]
pub struct LazyPages {
    worker: Option<Worker>,
    log: Log,
    socket: PathBuf,
    limits: TimeLimits,
    settling: Settling,
}

impl Criu {
    /// Starts the daemon; its socket is there when this returns.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a service, [`ErrorKind::Precondition`] for an address that means every address,
    /// [`ErrorKind::Lost`] when it ends before it is ready.
    ///
    /// # Cancel safety
    /// Dropping the future kills the daemon.
    pub async fn lazy_pages(
        &self,
        images: &ImagesDir,
        options: LazyPagesOptions,
    ) -> Result<LazyPages> {
        let kind = OperationKind::LazyPages;
        let Some(program) = self.program() else {
            return Err(Error::before(
                kind,
                ErrorKind::Unsupported {
                    what: "a lazy-pages daemon".into(),
                    needs: "a criu program".into(),
                    has: "a criu service".into(),
                },
            ));
        };
        if let Some((host, _)) = &options.page_server {
            explicit(host)?;
        }
        let work = options.work_dir.unwrap_or_else(|| images.clone());
        let broken = |what: &str, source: io::Error| Error::precondition(kind, what, Some(source));
        let (ready, ready_end) =
            pipe_pair().map_err(|error| broken("no pipe can be made", error))?;
        let log = Log::reserve(work.clone(), "lazy-pages")
            .map_err(|error| broken("no log can be written", error))?;

        let mut arguments: Vec<OsString> = self.arguments.clone();
        // Descriptors after the ready pipe, opened by CRIU through its own /proc/self/fd.
        let images_number = FIRST_INHERITED + 1;
        let work_number = FIRST_INHERITED + 2;
        arguments.extend([
            "lazy-pages".into(),
            "--images-dir".into(),
            format!("/proc/self/fd/{images_number}").into(),
        ]);
        arguments.extend([
            "--work-dir".into(),
            format!("/proc/self/fd/{work_number}").into(),
        ]);
        arguments.extend(["--status-fd".into(), FIRST_INHERITED.to_string().into()]);
        arguments.extend(["--log-file".into(), log.name().into()]);
        if let Some(level) = options.log_level {
            arguments.push(format!("-v{}", level.wire()).into());
        }
        if let Some((host, port)) = options.page_server {
            arguments.extend(["--page-server".into(), "--address".into(), host.into()]);
            arguments.extend(["--port".into(), port.to_string().into()]);
        }
        let worker = Worker::start(Start {
            program,
            arguments: &arguments,
            mark: &super::mark(),
            stdin: None,
            inherited: vec![ready_end.as_fd(), images.as_fd(), work.as_fd()],
            new_session: true,
            outside: false,
        })
        .map_err(|source| {
            log.discard_if_empty();
            Error::before(
                kind,
                ErrorKind::Start {
                    program: program.to_owned(),
                    source,
                },
            )
        })?;
        drop(ready_end);
        let mut daemon = LazyPages {
            worker: Some(worker),
            log,
            socket: work.path().join(SOCKET),
            limits: self.limits.clone(),
            settling: self.settling.clone(),
        };
        daemon.ready(ready).await?;
        Ok(daemon)
    }
}

impl LazyPages {
    /// The socket that a restore connects to.
    #[must_use]
    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }

    /// The daemon's pid.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.worker.as_ref().map(Worker::pid)
    }

    /// Waits until every page is delivered and the daemon has ended, without a limit: a daemon that is stopped takes the tasks
    /// along that still wait for pages.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when it ended otherwise than with exit status 0.
    ///
    /// # Cancel safety
    /// Dropping the future kills the daemon.
    pub async fn wait(mut self) -> Result<()> {
        let watch = match self.worker.as_ref().map(Worker::exit_watch) {
            Some(Ok(Some(watch))) => watch,
            Some(Err(error)) => {
                let kind = OperationKind::LazyPages;
                return Err(Error::precondition(
                    kind,
                    "the daemon cannot be watched",
                    Some(error),
                ));
            }
            Some(Ok(None)) | None => return Ok(()),
        };
        if let Err(error) = watch.ended().await {
            let kind = OperationKind::LazyPages;
            return Err(Error::precondition(
                kind,
                "the daemon cannot be watched",
                Some(error),
            ));
        }
        let exit = self.worker.take().and_then(|worker| {
            let exit = worker.reaped(Instant::now()).unwrap_or_default();
            (exit != Some(Exit::Status(0))).then_some((worker, exit))
        });
        match exit {
            None => Ok(()),
            Some((worker, exit)) => {
                let operation = OperationKind::LazyPages;
                self.worker = Some(worker);
                let error = self.error(ErrorKind::Refused { operation }, exit);
                self.worker = None;
                Err(error)
            }
        }
    }

    async fn ready(&mut self, mut ready: pipe::Receiver) -> Result<()> {
        let mut byte = [0];
        let read = ready.read(&mut byte);
        let read = match self.limits.operation {
            Some(limit) => match tokio::time::timeout(limit, read).await {
                Ok(read) => read,
                Err(_) => {
                    let operation = OperationKind::LazyPages;
                    return Err(self.error(ErrorKind::TimeLimit { operation, limit }, None));
                }
            },
            None => read.await,
        };
        if matches!(read, Ok(1)) {
            return Ok(());
        }
        let exit = self.worker.as_ref().and_then(|worker| {
            worker
                .reaped(Instant::now() + self.limits.settle)
                .unwrap_or_default()
        });
        let error = self.error(ErrorKind::Lost { exit }, exit);
        if exit.is_some() {
            self.worker = None;
        }
        Err(error)
    }

    fn error(&self, kind: ErrorKind, exit: Option<Exit>) -> Error {
        let output = self.worker.as_ref().map(Worker::output).unwrap_or_default();
        let findings = diagnosis::examine(Examination {
            operation: diagnosis::Operation::Other,
            log: self
                .log
                .open()
                .and_then(|file| LogDigest::read(io::BufReader::new(file)).ok()),
            stderr: &output.stderr,
            stdout: &output.stdout,
            signal: match exit {
                Some(Exit::Signal(signal)) => Some(signal),
                _ => None,
            },
            ..Examination::default()
        });
        let mut record = Record::new(OperationKind::LazyPages, TaskState::NotConcerned);
        record.log = self.log.open().map(|_| self.log.path());
        record.findings = Some(findings);
        record.stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        record.stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        record.exit = exit;
        Error::new(kind, record)
    }
}

impl Drop for LazyPages {
    fn drop(&mut self) {
        self.log.discard_if_empty();
        if let Some(worker) = self.worker.take() {
            worker.kill();
            self.settling.reap(worker);
        }
    }
}

/// An address that means all addresses is never what somebody connects to, and never what should be listened on.
fn explicit(host: &str) -> Result<()> {
    let means_all = host.is_empty()
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_unspecified());
    match means_all {
        true => Err(Error::precondition(
            OperationKind::LazyPages,
            format!(
                "{host:?} means every address of this machine: name the one host that the lazy dump runs on"
            ),
            None,
        )),
        false => Ok(()),
    }
}

fn pipe_pair() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(ours)?, theirs))
}
