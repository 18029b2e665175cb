//! The state of an operation that CRIU works on, and the way to its end.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::Span;

use super::TimeLimits;
use super::care::Care;
use super::images::{ImagesDir, Log};
use super::report::{Details, IgnoredRefusal, Phase, Timings};
use super::settle::{self, Ended, Settling};
use crate::error::{Error, ErrorKind, HookFailure, OperationKind, Record, Result, TaskState};
use crate::notify::{Event, HookError, Notify, Script};
use crate::rpc::service::Peer;
use crate::rpc::session::{Incoming, Session, Violation};
use crate::rpc::swrk::Worker;
use crate::rpc::transport::{Datagram, Socket, tell_sender};
use crate::rpc::wire::CriuResp;
use crate::sys::ExitWatch;
use crate::version::Version;

/// Why an operation ends without a good answer.
#[derive(Debug)]
pub(crate) enum Trouble {
    Transport(&'static str, std::io::Error),
    Lost,
    Protocol(Violation),
    TimeLimit(Duration),
    Cancelled,
    Hook(Script, HookFailure, Option<HookError>),
}

/// Everything about an operation that CRIU works on.
pub(crate) struct Running {
    pub(crate) kind: OperationKind,
    /// `None` once we have hung up.
    pub(crate) socket: Option<Socket>,
    pub(crate) session: Session,
    /// `None` for a service.
    pub(crate) worker: Option<Worker>,
    /// A service's process, where it can be seen from here.
    pub(crate) peer: Option<Peer>,
    /// Tells of the end of either, where it can be watched.
    pub(crate) watch: Option<ExitWatch>,
    pub(crate) version: Version,
    pub(crate) images: Option<ImagesDir>,
    /// Where stats and, unless `images`, the log are.
    pub(crate) work: Option<ImagesDir>,
    pub(crate) log: Option<Log>,
    /// Descriptors that CRIU opens by number: they stay open until it has answered.
    pub(crate) held: Vec<std::os::fd::OwnedFd>,
    pub(crate) care: Care,
    pub(crate) limits: TimeLimits,
    pub(crate) deadline: Option<Instant>,
    pub(crate) settling: Settling,
    pub(crate) span: Span,
    pub(crate) clock: Clock,
    pub(crate) root: Option<i32>,
    /// The callback that CRIU waits at.
    pub(crate) asked: Option<Script>,
    pub(crate) answer_dropped: bool,
    /// When CRIU has to be through with a refusal.
    pub(crate) refused_until: Option<Instant>,
    pub(crate) ignored_refusals: Vec<IgnoredRefusal>,
    pub(crate) answer: Option<Box<CriuResp>>,
    pub(crate) trouble: Option<Trouble>,
}

impl Running {
    /// Waits for the next callback. `None`: the answer is in, or there is trouble.
    pub(super) async fn next(&mut self) -> Option<Notify> {
        if self.answer_dropped {
            self.refuse(HookFailure::Dropped, None).await;
        }
        if self.answer.is_some()
            || matches!(&self.trouble, Some(trouble) if !matches!(trouble, Trouble::Hook(..)))
        {
            return None;
        }
        match self.receive().await? {
            Incoming::Answer(answer) => {
                self.clock.criu_reached(None);
                tracing::debug!(parent: &self.span, success = answer.success, errno = answer.cr_errno, "answer");
                self.answer = Some(answer);
                None
            }
            Incoming::Callback(callback) => {
                let event = Event::new(&callback.script, callback.pid, callback.fds);
                let script = event.script();
                self.clock.criu_reached(Some(script.clone()));
                tracing::debug!(parent: &self.span, %script, pid = callback.pid, "callback");
                if let Event::SetupNamespaces { pid } | Event::PostRestore { pid } = event {
                    self.root = Some(pid);
                }
                self.care.at(&event);
                self.asked = Some(script);
                Some(Notify {
                    event,
                    operation: self.kind,
                    root: self.root,
                    images_dir: match &self.images {
                        Some(images) => images.shared_path(),
                        None => Arc::from(std::path::Path::new("")),
                    },
                })
            }
        }
    }

    /// The next message within the operation's time limit; `None` means trouble, which is noted.
    pub(crate) async fn receive(&mut self) -> Option<Incoming> {
        let socket = self.socket.as_ref()?;
        let received = async {
            tokio::select! {
                biased;
                received = socket.receive() => received,
                // Its forks may hold the other end of the socket open, so there need not be a hang-up.
                () = ended(self.watch.as_ref()) => socket.receive_last().await,
            }
        };
        if let Some(until) = self.refused_until {
            // What comes of it if CRIU takes longer is settled elsewhere, with the refusal as the cause.
            return match tokio::time::timeout_at(until.into(), received).await {
                Ok(Ok(Some(datagram))) => self.take(datagram).ok(),
                _ => None,
            };
        }
        let received = match self.deadline {
            Some(deadline) => match tokio::time::timeout_at(deadline.into(), received).await {
                Ok(received) => received,
                Err(_) => {
                    self.out_of_time();
                    return None;
                }
            },
            None => received.await,
        };
        let trouble = match received {
            Ok(Some(datagram)) => match self.take(datagram) {
                Ok(incoming) => return Some(incoming),
                Err(violation) => Trouble::Protocol(violation),
            },
            Ok(None) => Trouble::Lost,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Trouble::Lost,
            Err(error) => Trouble::Transport("receiving", error),
        };
        self.note(trouble);
        None
    }

    /// Takes the next datagram, and tells what it is.
    pub(super) fn take(&mut self, datagram: Datagram) -> Result<Incoming, Violation> {
        let (bytes, fds) = (datagram.bytes.len(), datagram.fds.len());
        let taken = self.session.take(datagram);
        let request = self.session.request_name();
        match &taken {
            Ok(Incoming::Callback(callback)) => {
                tracing::trace!(parent: &self.span, what = "callback", script = callback.script, bytes, fds, "received");
            }
            Ok(Incoming::Answer(_)) => {
                tracing::trace!(parent: &self.span, what = "answer", request, bytes, fds, "received");
            }
            Err(violation) => {
                tracing::trace!(parent: &self.span, what = "violation", request, %violation, bytes, fds, "received");
            }
        }
        taken
    }

    pub(super) async fn reply(&mut self, accept: bool, external: Vec<String>) {
        let script = self.asked.take();
        self.answer_dropped = false;
        let late = accept
            && self
                .deadline
                .is_some_and(|deadline| Instant::now() >= deadline);
        let accept = match &script {
            Some(script) if late && !script.refusal_is_ignored(self.kind) => {
                self.out_of_time();
                false
            }
            _ => accept,
        };
        let (Some(bytes), Some(socket)) = (self.session.reply(accept, external), &self.socket)
        else {
            return;
        };
        let hook = self.clock.hook_replied();
        tracing::debug!(parent: &self.span, accept, micros = hook.as_micros() as u64, "reply");
        tracing::trace!(parent: &self.span, what = "reply", script = script.as_ref().map(tracing::field::display), bytes = bytes.len(), "sending");
        match socket.send(&bytes, &[]).await {
            Ok(()) => {}
            // CRIU is gone, but may have said why: that is still to be read.
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => self.note(Trouble::Transport("answering a callback", error)),
        }
    }

    pub(super) async fn refuse(&mut self, failure: HookFailure, source: Option<HookError>) {
        let script = self.asked.clone().unwrap_or(Script::Other(String::new()));
        tracing::info!(parent: &self.span, %script, %failure, error = source.as_deref().map(tracing::field::display), "refused");
        if script.refusal_is_ignored(self.kind) {
            let detail = source
                .map(|source| format!(": {source}"))
                .unwrap_or_default();
            self.ignored_refusals.push(IgnoredRefusal {
                script,
                reason: format!("{failure}{detail}"),
            });
        } else {
            self.note(Trouble::Hook(script, failure, source));
            self.refused_until = Some(Instant::now() + self.limits.settle);
        }
        self.reply(false, Vec::new()).await;
    }

    pub(super) fn out_of_time(&mut self) {
        let limit = self.limits.operation.unwrap_or_default();
        self.note(Trouble::TimeLimit(limit));
    }

    /// The first trouble is the cause of those that follow.
    fn note(&mut self, trouble: Trouble) {
        tracing::debug!(parent: &self.span, ?trouble, "trouble");
        self.trouble.get_or_insert(trouble);
    }

    /// Whether CRIU's numbers of processes mean the same here.
    pub(super) fn same_pids(&self) -> bool {
        self.worker.is_some() || self.peer.as_ref().is_some_and(Peer::same_pids)
    }

    /// A handle of the process that works on the request.
    pub(super) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        match &self.worker {
            Some(worker) => worker.pidfd(),
            None => self.peer.as_ref().map(Peer::pidfd),
        }
    }

    /// Notes who will work on the request, from the answer that is about to be read.
    pub(super) async fn meet_peer(&mut self) {
        let Some(socket) = &self.socket else { return };
        let sender = socket.next_sender();
        let sender = match self.deadline {
            Some(deadline) => tokio::time::timeout_at(deadline.into(), sender).await.ok(),
            None => Some(sender.await),
        };
        // What keeps the answer from coming is told when it is read.
        let _ = tell_sender(socket, false);
        self.peer = sender.and_then(Result::ok).flatten().and_then(Peer::open);
        self.watch = self
            .peer
            .as_ref()
            .and_then(|peer| ExitWatch::new(peer.pidfd().try_clone_to_owned().ok()?).ok());
        tracing::debug!(parent: &self.span, pid = self.peer.as_ref().map(Peer::pid), same_pids = self.same_pids(), "service");
    }

    fn succeeded(&self) -> bool {
        self.trouble.is_none() && self.answer.as_ref().is_some_and(|answer| answer.success)
    }
}

/// An operation that is settled has hung up. One that is dropped with its connection was still being started: CRIU knows
/// nothing but that it was asked its version.
impl Drop for Running {
    fn drop(&mut self) {
        if self.socket.is_none() {
            return;
        }
        if let Some(worker) = self.worker.take() {
            worker.kill();
            self.settling.reap(worker);
        }
        if let Some(log) = &self.log {
            log.discard_if_empty();
        }
    }
}

/// Keeps an operation until it is concluded; dropped earlier, it is cancelled in the background.
pub(crate) struct Held(Option<Box<Running>>);

impl Held {
    pub(crate) fn new(running: Running) -> Self {
        Self(Some(Box::new(running)))
    }

    pub(crate) fn get(&self) -> Option<&Running> {
        self.0.as_deref()
    }

    pub(crate) fn get_mut(&mut self) -> Option<&mut Running> {
        self.0.as_deref_mut()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(mut running) = self.0.take() {
            running.trouble.get_or_insert(Trouble::Cancelled);
            let span = running.span.clone();
            settle::in_background(running, move |ended| {
                let left_behind = ended.as_ref().err().map(Error::left_behind);
                if let Some(left_behind @ [_, ..]) = left_behind {
                    tracing::warn!(parent: &span, ?left_behind, "something is left behind");
                }
            });
        }
    }
}

/// Waits for the worker's end after a good answer, and settles everything else on a thread of its own.
pub(crate) async fn conclude(held: &mut Held) -> Result<Ended> {
    let Some(running) = held.0.as_deref_mut() else {
        // Only reachable after a cancelled `finish`, which consumed the operation: there is no way to call this again.
        return Err(Error::new(
            ErrorKind::Precondition {
                what: "the operation has already been concluded".into(),
                source: None,
            },
            Record::new(OperationKind::Version, TaskState::Unknown),
        ));
    };
    let kind = running.kind;
    if running.succeeded()
        && running.wait_for_exit().await
        && let Some(running) = held.0.take()
    {
        return Ok(settle::settled_well(running));
    }
    let (done, settled) = tokio::sync::oneshot::channel();
    if let Some(running) = held.0.take() {
        settle::in_background(running, move |ended| {
            // Nobody may be waiting any more.
            let _ = done.send(ended);
        });
    }
    match settled.await {
        Ok(ended) => ended,
        // It panicked, so nothing is known.
        Err(_) => Err(Error::new(
            ErrorKind::Precondition {
                what: "the thread that settles the operation ended early".into(),
                source: None,
            },
            Record::new(kind, TaskState::Unknown),
        )),
    }
}

impl Running {
    /// True when the worker has ended by itself (or need not end: a service's worker is not ours, a restore with
    /// `exec_cmd` has become the command).
    async fn wait_for_exit(&mut self) -> bool {
        // Nothing more is asked or answered, and CRIU before 3.17 waits for further pre-dumps until we hang up.
        self.socket = None;
        if self.worker.is_none() || self.watch.is_none() || self.care.worker_stays() {
            return true;
        }
        tokio::time::timeout(self.limits.settle, ended(self.watch.as_ref()))
            .await
            .is_ok()
    }

    pub(crate) fn details(&mut self, warnings: Vec<crate::diagnosis::LogLine>) -> Details {
        Details {
            criu_version: self.version.clone(),
            timings: self.clock.timings(),
            log: self
                .log
                .as_ref()
                .filter(|log| log.open().is_some())
                .map(Log::path),
            warnings,
            ignored_refusals: std::mem::take(&mut self.ignored_refusals),
        }
    }
}

/// Completes when the worker has ended; never where there is none to watch.
async fn ended(watch: Option<&ExitWatch>) {
    match watch {
        Some(watch) if watch.ended().await.is_ok() => {}
        _ => std::future::pending().await,
    }
}

/// Notes where the time goes.
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    last: Instant,
    phases: Vec<Phase>,
}

impl Clock {
    pub(crate) fn start() -> Self {
        let now = Instant::now();
        Self {
            started: now,
            last: now,
            phases: Vec::new(),
        }
    }

    fn criu_reached(&mut self, until: Option<Script>) {
        let criu = self.lap();
        self.phases.push(Phase {
            until,
            criu,
            hook: Duration::ZERO,
        });
    }

    fn hook_replied(&mut self) -> Duration {
        let hook = self.lap();
        if let Some(phase) = self.phases.last_mut() {
            phase.hook = hook;
        }
        hook
    }

    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.last, now)
    }

    fn timings(&mut self) -> Timings {
        Timings {
            total: self.last - self.started,
            phases: std::mem::take(&mut self.phases),
        }
    }
}

/// The error of an ended operation.
pub(crate) fn kind_of(
    trouble: Option<Trouble>,
    operation: OperationKind,
    exit: Option<crate::rpc::swrk::Exit>,
) -> ErrorKind {
    match trouble {
        Some(Trouble::Transport(doing, source)) => ErrorKind::Transport { doing, source },
        Some(Trouble::Lost) => ErrorKind::Lost { exit },
        Some(Trouble::Protocol(violation)) => ErrorKind::Protocol(violation),
        Some(Trouble::TimeLimit(limit)) => ErrorKind::TimeLimit { operation, limit },
        Some(Trouble::Cancelled) => ErrorKind::Cancelled { operation },
        Some(Trouble::Hook(script, failure, source)) => ErrorKind::Hook {
            script,
            failure,
            source,
        },
        None => ErrorKind::Refused { operation },
    }
}
