//! Signals: those that cancel an operation, and those that a restored foreground process gets from us.

use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getpgid, pidfd_send_signal};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use criu_client::{Exit, OperationKind, RestoredRoot, TaskState};

use super::failure::Failure;
use super::output::Output;

/// How long tasks may take to run on after CRIU has let them go.
const DETACH: Duration = Duration::from_secs(2);

/// Signals that ask this program to end.
pub(super) struct Interrupts(Streams);

/// Several signals.
struct Streams(Vec<(Stream, Signal)>);

impl Streams {
    fn of(signals: &[Signal]) -> Result<Self, Failure> {
        let ignored = procfs::process::Process::myself()
            .and_then(|own| own.status())
            .map_or(0, |status| status.sigign);
        let streams = signals
            .iter()
            // What nohup has made this program deaf to.
            .filter(|signal| **signal != Signal::HUP || ignored & (1 << (signal.as_raw() - 1)) == 0)
            .map(
                |wanted| match signal(SignalKind::from_raw(wanted.as_raw())) {
                    Ok(stream) => Ok((stream, *wanted)),
                    Err(error) => {
                        Err(Failure::failed("signals cannot be received").caused_by(error))
                    }
                },
            );
        streams.collect::<Result<_, _>>().map(Self)
    }

    async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            for (stream, signal) in &mut self.0 {
                if stream.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*signal);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

impl Interrupts {
    /// Takes them over, from now on.
    pub(super) fn new() -> Result<Self, Failure> {
        Streams::of(&[Signal::INT, Signal::TERM, Signal::HUP]).map(Self)
    }

    /// The name of the next one.
    pub(super) async fn next(&mut self) -> &'static str {
        match self.0.next().await {
            Signal::INT => "SIGINT",
            Signal::TERM => "SIGTERM",
            _ => "SIGHUP",
        }
    }

    /// Does `work`, unless a signal comes first: that cancels it, and `settled` tells when everything is over that it had
    /// begun. `tasks` then looks at what became of them. A second signal stops the waiting.
    pub(super) async fn guard<T, E: Into<Failure>>(
        &mut self,
        operation: OperationKind,
        output: &Output,
        work: impl Future<Output = Result<T, E>>,
        settled: impl Future<Output = ()>,
        tasks: impl FnOnce() -> TaskState,
    ) -> Result<T, Failure> {
        // `work` is gone after this, which is what cancels it.
        let signal = tokio::select! {
            done = work => return done.map_err(Into::into),
            signal = self.next() => signal,
        };
        output.note(format_args!("{signal}: cancelling the {operation}"));
        let state = tokio::select! {
            () = settled => tasks(),
            _ = self.next() => TaskState::Unknown,
        };
        Err(Failure::interrupted(signal, operation, state))
    }
}

impl Interrupts {
    /// An engine whose restore took too long cannot be stopped: waits until it has answered, unless a signal comes first.
    /// `state` then looks at what became of the tasks.
    pub(super) async fn out_of_time(
        &mut self,
        operation: OperationKind,
        output: &Output,
        failure: Failure,
        state: impl Future<Output = TaskState>,
    ) -> Failure {
        output.note(format_args!(
            "the time limit has passed; the engine cannot be stopped in its {operation}, and is waited for"
        ));
        let state = tokio::select! {
            state = state => state,
            _ = self.next() => TaskState::Unknown,
        };
        failure.out_of_time(operation, state)
    }
}

/// The state that a task is in, once nobody traces it any more.
pub(super) fn state_of(pid: i32) -> TaskState {
    let deadline = Instant::now() + DETACH;
    loop {
        match letter_of(pid) {
            None | Some('Z' | 'X') => return TaskState::Absent,
            Some('T') => return TaskState::Stopped,
            Some('t') if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Some('t') => return TaskState::Frozen,
            Some(_) => return TaskState::Running,
        }
    }
}

fn letter_of(pid: i32) -> Option<char> {
    procfs::process::Process::new(pid)
        .ok()?
        .stat()
        .ok()
        .map(|stat| stat.state)
}

/// Waits for a restored process, and passes on to it what comes for it.
pub(super) struct Attendant(Streams);

impl Attendant {
    /// Takes the signals over, from now on: those that come before there is a process wait for it.
    pub(super) fn new() -> Result<Self, Failure> {
        Streams::of(&[
            Signal::INT,
            Signal::TERM,
            Signal::HUP,
            Signal::QUIT,
            Signal::USR1,
            Signal::USR2,
            Signal::WINCH,
        ])
        .map(Self)
    }

    /// Waits for its end.
    pub(super) async fn attend(mut self, root: RestoredRoot) -> Result<Exit, Failure> {
        let pid = root.pid();
        let pidfd = root
            .pidfd()
            .and_then(|pidfd| pidfd.try_clone_to_owned().ok());
        let ended = root.wait();
        tokio::pin!(ended);
        loop {
            tokio::select! {
                exit = &mut ended => {
                    return exit
                        .map_err(|error| Failure::failed("the restored process cannot be waited for").caused_by(error));
                }
                signal = self.0.next() => {
                    if let Some(pidfd) = &pidfd {
                        pass_on(pid, pidfd, signal);
                    }
                }
            }
        }
    }
}

fn pass_on(pid: i32, pidfd: &OwnedFd, signal: Signal) {
    // A shell job shares our process group: what the terminal sends, it has got already.
    let from_terminal = matches!(signal, Signal::INT | Signal::QUIT | Signal::WINCH);
    let ours = getpgid(None).ok();
    let same_group = Pid::from_raw(pid).is_some_and(|pid| getpgid(Some(pid)).ok() == ours);
    if from_terminal && same_group {
        return;
    }
    tracing::debug!(pid, ?signal, "passing a signal on");
    if let Err(error) = pidfd_send_signal(pidfd.as_fd(), signal) {
        tracing::warn!(pid, ?signal, %error, "the restored process did not get a signal");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_seen() {
        assert_eq!(
            state_of(std::process::id().cast_signed()),
            TaskState::Running
        );
        assert_eq!(state_of(i32::MAX), TaskState::Absent);
    }
}
