//! The end of an operation.
//!
//! A good end is short: the answer is in and the worker has ended. Every other end (refusal, failure, time limit,
//! cancellation, a dropped operation, CRIU's death) is settled by one road, on a thread of its own so that neither a
//! dropped future nor a runtime that shuts down can interrupt it:
//!
//! 1. refuse what CRIU asks, read on until its answer or end of file;
//! 2. give it [`TimeLimits::settle`](super::TimeLimits::settle) to end, then kill it;
//! 3. reap it;
//! 4. undo what a killed CRIU leaves behind ([`Care`](super::care::Care));
//! 5. look at the tasks, and tell.

use std::io::{self, BufReader};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::care::{Aftermath, Care};
use super::report::Details;
use super::running::{Running, Trouble, kind_of};
use super::tasks::{self, Task};
use crate::diagnosis::{self, Examination, LogDigest};
use crate::error::{Errno, Error, ErrorKind, OperationKind, Record, Result, TaskState};
use crate::notify::Event;
use crate::rpc::session::{Incoming, Violation};
use crate::rpc::swrk::{Exit, Output, Worker, reap_in_background};
use crate::rpc::wire::CriuResp;

/// How long a killed process may take to disappear; the kernel may have to wait for a disk.
const AFTER_KILL: Duration = Duration::from_secs(30);

/// How long CRIU may take to notice that we have hung up, when its time is over otherwise.
const HANG_UP: Duration = Duration::from_secs(1);

/// How long a service's worker that has hung up may take to end: it does nothing in between, and whoever lives on is
/// somebody who carries its words.
const AFTER_HANG_UP: Duration = Duration::from_millis(200);

/// How long traced tasks may take to run on after their tracer's end.
const DETACH: Duration = Duration::from_secs(2);

/// How long tasks may take to be killed or stopped after CRIU has said so. A configuration file may have told CRIU
/// otherwise, so it is not waited for longer.
const LEFT: Duration = Duration::from_millis(500);

/// Counts the operations that are being settled in the background.
#[derive(Debug, Clone)]
pub(crate) struct Settling(Arc<watch::Sender<usize>>);

impl Settling {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    pub(crate) async fn done(&self) {
        // Fails only when the sender is gone, which `self` keeps.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Reaps a worker that has been killed.
    pub(crate) fn reap(&self, worker: Worker) {
        let unsettled = self.begin();
        let work = move || {
            let _ = worker.reaped(Instant::now() + AFTER_KILL);
            drop(unsettled);
        };
        if let Err(error) = std::thread::Builder::new()
            .name("criu-reap".into())
            .spawn(work)
        {
            tracing::warn!(%error, "no thread to reap a killed worker with: it stays a zombie until this process ends");
        }
    }

    fn begin(&self) -> Unsettled {
        self.0.send_modify(|count| *count += 1);
        Unsettled(self.clone())
    }
}

struct Unsettled(Settling);

impl Drop for Unsettled {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

/// An operation that is over: its worker is reaped and everything undone.
pub(crate) struct Ended {
    pub(crate) running: Box<Running>,
    pub(crate) answer: CriuResp,
    answered: bool,
    pub(crate) exit: Option<Exit>,
    pub(crate) output: Output,
    aftermath: Aftermath,
    log: Option<LogDigest>,
}

/// After a good answer, with the worker ended.
pub(crate) fn settled_well(mut running: Box<Running>) -> Ended {
    let exit = {
        let _entered = running.span.enter();
        running
            .worker
            .as_ref()
            .and_then(|worker| worker.reaped(Instant::now()).unwrap_or_default())
    };
    if exit.is_none()
        && let Some(pidfd) = running.worker.as_ref().and_then(Worker::pidfd)
        && let Ok(pidfd) = pidfd.try_clone_to_owned()
    {
        // It has become the command of a restore, and stays our child for as long as that runs.
        reap_in_background(pidfd);
    }
    let answer = running.answer.take().map(|answer| *answer);
    Ended::new(running, answer, exit, Aftermath::default())
}

/// Settles on a thread of its own and hands over the result there.
pub(crate) fn in_background(
    running: Box<Running>,
    done: impl FnOnce(Result<Ended>) + Send + 'static,
) {
    let unsettled = running.settling.begin();
    // Handed over through a slot, so that it is still here when no thread can be made.
    let slot = Arc::new(std::sync::Mutex::new(Some((running, done))));
    let work = {
        let slot = slot.clone();
        move || {
            let taken = slot.lock().map(|mut slot| slot.take()).unwrap_or_default();
            if let Some((running, done)) = taken {
                done(settle(running));
            }
            drop(unsettled);
        }
    };
    if let Err(error) = std::thread::Builder::new()
        .name("criu-settle".into())
        .spawn(work)
    {
        tracing::warn!(%error, "no thread to settle an operation with: settling it here");
        let taken = slot.lock().map(|mut slot| slot.take()).unwrap_or_default();
        if let Some((running, done)) = taken {
            done(settle(running));
        }
    }
}

fn settle(mut running: Box<Running>) -> Result<Ended> {
    let span = running.span.clone();
    let _entered = span.enter();
    let patience = Instant::now() + running.limits.settle;
    // Once it has answered it ends by itself, and says on its standard error what it has not said yet.
    let kill_now = running.care.must_be_killed() && running.answer.is_none();
    let mut hung_up = matches!(running.trouble, Some(Trouble::Lost));
    if !kill_now {
        hung_up |= refuse_until_end(&mut running, patience);
    }
    // Hanging up makes CRIU fail at its next callback, if it has not ended yet.
    running.socket = None;

    let exit = end_worker(&running, kill_now, patience);
    let worker = running.worker.as_ref().map(|worker| worker.pid());
    let aftermath = match running.answer {
        Some(_) => Aftermath::default(),
        None if worker.is_none() => after_service(&running, hung_up, patience),
        // However its parent ended, a page server goes on waiting for its connection.
        None if matches!(exit, Some(Exit::Status(_))) && !running.care.lives_on() => {
            Aftermath::default()
        }
        None => running.care.undo(worker, Instant::now() + AFTER_KILL),
    };
    let undone_by_criu = running
        .answer
        .as_ref()
        .is_some_and(|answer| !answer.success);
    running
        .care
        .reap_siblings(worker, undone_by_criu, Instant::now() + DETACH);

    let trouble = running.trouble.take();
    match (&trouble, running.answer.take()) {
        (None, Some(answer)) if answer.success => {
            Ok(Ended::new(running, Some(*answer), exit, aftermath))
        }
        (_, answer) => {
            let ended = Ended::new(running, answer.map(|answer| *answer), exit, aftermath);
            Err(ended.error(trouble))
        }
    }
}

/// A service's process is not ours to kill. Once it has ended, what it leaves is undone as after a worker of our own.
fn after_service(running: &Running, hung_up: bool, patience: Instant) -> Aftermath {
    let undo = || running.care.undo(None, Instant::now() + AFTER_KILL);
    match &running.care {
        Care::Nothing | Care::Itself => Aftermath::default(),
        // Its parent waits for its end.
        care if care.lives_on() => undo(),
        care => {
            let patience = match (hung_up, care.must_be_killed()) {
                (true, _) => Instant::now() + AFTER_HANG_UP,
                (false, true) => Instant::now() + HANG_UP,
                (false, false) => patience.max(Instant::now() + HANG_UP),
            };
            let ended = match &running.peer {
                Some(peer) => peer.gone(patience),
                None => hung_up,
            };
            if ended {
                return undo();
            }
            let process = running.peer.as_ref().map_or_else(
                || "whose process cannot be seen from here".to_owned(),
                |peer| format!("process {}", peer.pid()),
            );
            Aftermath {
                left_behind: vec![format!(
                    "criu's service, which works on it still ({process}): it notices at its next callback that nobody waits"
                )],
                ..Aftermath::default()
            }
        }
    }
}

/// Reads on until CRIU's answer, its hang-up or the end of our patience, and refuses every callback meanwhile. True when CRIU
/// has hung up or ended.
fn refuse_until_end(running: &mut Running, patience: Instant) -> bool {
    let Some(socket) = running
        .socket
        .take()
        .and_then(|socket| socket.into_blocking().ok())
    else {
        return false;
    };
    loop {
        while let Some(refusal) = running.session.reply(false, Vec::new()) {
            // CRIU may have gone; what it has sent before is still to be read.
            let _ = socket.send(&refusal);
        }
        if running.answer.is_some() {
            return false;
        }
        let datagram = match socket.receive(running.pidfd(), patience) {
            Ok(Some(datagram)) => datagram,
            Ok(None) => return true,
            Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
        };
        match running.take(datagram) {
            Ok(Incoming::Answer(answer)) => {
                tracing::debug!(success = answer.success, errno = answer.cr_errno, "answer");
                running.answer = Some(answer);
            }
            Ok(Incoming::Callback(callback)) => {
                let event = Event::new(&callback.script, callback.pid, callback.fds);
                tracing::debug!(script = %event.script(), "callback refused while settling");
                running.care.at(&event);
            }
            Err(_) => return false,
        }
    }
}

/// Waits for the worker, kills it when it takes too long, and reaps it. `None`: there is none, or it may stay.
fn end_worker(running: &Running, kill_now: bool, patience: Instant) -> Option<Exit> {
    let worker = running.worker.as_ref()?;
    let answered_well = running.answer.as_ref().is_some_and(|answer| answer.success);
    if running.care.worker_stays() && answered_well {
        return None;
    }
    // Our hanging up may be all that it waits for.
    let patience = patience.max(Instant::now() + HANG_UP);
    if !kill_now && let Ok(Some(exit)) = worker.reaped(patience) {
        if matches!(exit, Exit::Signal(_)) {
            end_forks(&running.care, worker.pid(), tasks::now_in_ticks());
        }
        return Some(exit);
    }
    tracing::info!(pid = worker.pid(), "killing criu");
    let before = tasks::now_in_ticks();
    worker.kill();
    let exit = worker
        .reaped(Instant::now() + AFTER_KILL)
        .unwrap_or_default()
        .or(Some(Exit::Unknown));
    end_forks(&running.care, worker.pid(), before);
    exit
}

/// Kills what a killed worker has forked and that would go on without it: the half of a pre-dump that does the work, a
/// page server that nobody knows of, an iptables that still waits to lock the network. The worker led a session of its own.
/// What a restore has forked is told apart with more care, see [`Care::undo`].
fn end_forks(care: &Care, worker: i32, before: u64) {
    if matches!(care, Care::Restore(_) | Care::Itself) {
        return;
    }
    for task in tasks::of_session(worker, before)
        .into_iter()
        .filter_map(Task::open)
    {
        // Looked at again now that the number can no longer come to mean another process.
        if tasks::stat(task.pid).is_some_and(|stat| stat.session == worker) {
            task.kill(Instant::now() + AFTER_KILL);
        }
    }
}

impl Ended {
    fn new(
        running: Box<Running>,
        answer: Option<CriuResp>,
        exit: Option<Exit>,
        aftermath: Aftermath,
    ) -> Self {
        let output = running
            .worker
            .as_ref()
            .map(|worker| worker.output())
            .unwrap_or_default();
        let log = running
            .log
            .as_ref()
            .and_then(|log| log.open())
            .and_then(|file| LogDigest::read(BufReader::new(file)).ok());
        if let Some(log) = &running.log {
            log.discard_if_empty();
        }
        Self {
            running,
            answered: answer.is_some(),
            answer: answer.unwrap_or_default(),
            exit,
            output,
            aftermath,
            log,
        }
    }

    /// The state that a good dump has left the tasks in.
    pub(crate) fn tasks_left(&self) -> TaskState {
        self.running.care.state_left(Instant::now() + LEFT)
    }

    /// The state that the tasks are in now.
    pub(crate) fn tasks(&self) -> TaskState {
        // Nothing was asked about them yet.
        if let Care::Nothing = self.running.care {
            return untouched(self.running.kind);
        }
        let failed = self.answered && !self.answer.success;
        self.running.care.state(failed, Instant::now() + DETACH)
    }

    /// What every report has.
    pub(crate) fn details(&mut self) -> Details {
        let warnings = self
            .log
            .take()
            .map(|log| log.warnings().to_vec())
            .unwrap_or_default();
        self.running.details(warnings)
    }

    /// A good answer that lacks what it must have.
    pub(crate) fn missing(self, field: &'static str) -> Error {
        let request = self.running.session.request_name();
        self.error(Some(Trouble::Protocol(Violation::MissingField {
            request,
            field,
        })))
    }

    pub(crate) fn into_error(self, trouble: Trouble) -> Error {
        self.error(Some(trouble))
    }

    /// CRIU's answer was good, what it is about was not.
    pub(crate) fn refused(self) -> Error {
        self.error(None)
    }

    fn error(self, trouble: Option<Trouble>) -> Error {
        let kind = kind_of(trouble, self.running.kind, self.exit);
        let tasks = self.tasks();
        let refused = matches!(
            kind,
            ErrorKind::Refused { .. } | ErrorKind::Lost { .. } | ErrorKind::Protocol(_)
        );
        let message = self.answer.cr_errmsg.as_deref();
        let errno = self.answer.cr_errno.filter(|errno| *errno != 0);
        let mut findings = diagnosis::examine(Examination {
            operation: examined(self.running.kind),
            log: self.log,
            stderr: &self.output.stderr,
            stdout: &self.output.stdout,
            errmsg: message.filter(|_| refused),
            errno: errno.filter(|_| refused),
            signal: match self.exit {
                Some(Exit::Signal(signal)) => Some(signal),
                _ => None,
            },
        });
        if matches!(kind, ErrorKind::Hook { .. }) {
            // All that CRIU's log knows is that a callback refused; the hook's own error says why.
            findings.diagnosis = None;
            findings.cause = None;
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        Error::new(
            kind,
            Record {
                operation: self.running.kind,
                tasks,
                version: Some(self.running.version.clone()),
                errno: errno.map(Errno),
                message: message.map(text),
                log: self
                    .running
                    .log
                    .as_ref()
                    .filter(|log| log.open().is_some())
                    .map(|log| log.path()),
                findings: Some(findings),
                stdout: text(&self.output.stdout),
                stderr: text(&self.output.stderr),
                exit: self.exit,
                undone: self.aftermath.undone,
                left_behind: self.aftermath.left_behind,
            },
        )
    }
}

/// The state of tasks that CRIU was not told of.
fn untouched(kind: OperationKind) -> TaskState {
    match kind {
        OperationKind::Dump | OperationKind::PreDump => TaskState::Running,
        OperationKind::Restore => TaskState::Absent,
        _ => TaskState::NotConcerned,
    }
}

fn examined(kind: OperationKind) -> diagnosis::Operation {
    match kind {
        OperationKind::Dump => diagnosis::Operation::Dump,
        OperationKind::PreDump => diagnosis::Operation::PreDump,
        OperationKind::Restore => diagnosis::Operation::Restore,
        OperationKind::Check | OperationKind::FeatureCheck => diagnosis::Operation::Check,
        OperationKind::PageServer => diagnosis::Operation::PageServer,
        _ => diagnosis::Operation::Other,
    }
}
