//! One operation, from the request to the reaped worker.

use std::marker::PhantomData;

use super::running::{Held, Running, Trouble, conclude};
use crate::error::{Error, HookFailure, Result};
use crate::notify::{HookError, Hooks, Notify, Reply, guard};
use crate::options::ExternalOnDump;
use crate::rpc::swrk::Worker;

/// An operation in progress, for programs that want to hold CRIU at a stage while they do something long.
///
/// ```no_run
/// # use criu_client::{Criu, ImagesDir, options::DumpOptions};
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let images = ImagesDir::create("/var/tmp/images")?;
/// let mut dump = Criu::find()?.start_dump(4711, &images, DumpOptions::new()).await?;
/// while let Some((notify, answer)) = dump.next().await {
///     println!("criu is at {}", notify.script());
///     answer.accept().await;
/// }
/// let report = dump.finish().await?;
/// # Ok(())
/// # }
/// ```
///
/// Dropping it cancels: CRIU is refused at the callback it waits at, or else at its next one, and is killed when it
/// reaches none within [`TimeLimits::settle`](crate::TimeLimits::settle). That happens on a thread of its own, so the drop does not block; whoever
/// needs to know when it is over calls [`Operation::cancel`] instead, or waits for
/// [`Criu::settled`](crate::Criu::settled). Tasks that were being dumped run on, tasks that were being restored are
/// gone, unless CRIU had passed its last callback that can be refused.
#[must_use = "dropping an operation cancels it"]
pub struct Operation<R> {
    held: Held,
    report: PhantomData<fn() -> R>,
}

/// Makes an operation's report of a successful end.
pub trait Report: Sized + sealed::FromEnded {}

pub(crate) mod sealed {
    use super::super::settle::Ended;

    pub trait FromEnded: Sized {
        #[allow(private_interfaces)]
        fn from_ended(ended: Ended) -> crate::Result<Self>;
    }
}

impl<R: sealed::FromEnded> Report for R {}

/// The pending reply to a callback: given exactly once. Dropped without one, it is a refusal.
#[must_use = "a callback that is not answered is refused"]
pub struct Answer<'a> {
    running: &'a mut Running,
}

impl<R: Report> Operation<R> {
    pub(crate) fn from_held(held: Held) -> Self {
        Self {
            held,
            report: PhantomData,
        }
    }

    /// The next callback, which CRIU waits at until the answer is given; `None` when there will be no more, because CRIU
    /// has answered or something failed: [`Operation::finish`] tells which.
    ///
    /// Cancel safe: a callback is delivered whole or stays for the next call.
    pub async fn next(&mut self) -> Option<(Notify, Answer<'_>)> {
        let running = self.held.get_mut()?;
        let notify = running.next().await?;
        Some((notify, Answer { running }))
    }

    /// Accepts whatever is still asked and waits for the end: CRIU's answer is in and its process is reaped.
    ///
    /// # Errors
    /// Everything that can go wrong with an operation; the error tells the state of the tasks.
    ///
    /// # Cancel safety
    /// Dropping the future is dropping the operation.
    pub async fn finish(mut self) -> Result<R> {
        while let Some((_, answer)) = self.next().await {
            answer.accept().await;
        }
        let ended = conclude(&mut self.held).await?;
        R::from_ended(ended)
    }

    /// Gives up: refuses what CRIU asks, waits until it has ended and everything is undone that can be.
    ///
    /// Returns the error that tells the state of the tasks; its kind is [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled), or another if the
    /// operation had failed before.
    pub async fn cancel(mut self) -> Error {
        if let Some(running) = self.held.get_mut() {
            running.trouble.get_or_insert(Trouble::Cancelled);
        }
        match conclude(&mut self.held).await {
            Err(error) => error,
            Ok(ended) => ended.into_error(Trouble::Cancelled),
        }
    }

    /// Lets `hooks` answer every callback, and waits for the end as [`Operation::finish`] does.
    ///
    /// # Errors
    /// As [`Operation::finish`]; a hook's refusal, error, panic or overrun is [`ErrorKind::Hook`](crate::ErrorKind::Hook).
    pub async fn run(mut self, mut hooks: impl Hooks) -> Result<R> {
        while let Some((notify, answer)) = self.next().await {
            answer.ask(&mut hooks, notify).await;
        }
        self.finish().await
    }
}

impl<R> std::fmt::Debug for Operation<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let running = self.held.get();
        f.debug_struct("Operation")
            .field("kind", &running.map(|running| running.kind))
            .field(
                "worker",
                &running
                    .and_then(|running| running.worker.as_ref())
                    .map(Worker::pid),
            )
            .finish_non_exhaustive()
    }
}

impl Answer<'_> {
    /// Lets CRIU go on.
    pub async fn accept(self) {
        self.running.reply(true, Vec::new()).await;
    }

    /// Refuses, for this reason.
    pub async fn refuse(self, reason: impl Into<String>) {
        self.fail(HookFailure::Refused(reason.into()), None).await;
    }

    /// Gives this reply.
    pub async fn reply(self, reply: Reply) {
        match reply {
            Reply::Accept => self.accept().await,
            Reply::Refuse(reason) => self.refuse(reason).await,
            Reply::ExternalFiles(files) => {
                match files.iter().map(ExternalOnDump::checked).collect() {
                    Ok(files) => self.running.reply(true, files).await,
                    Err(invalid) => self.fail(HookFailure::Failed, Some(invalid.into())).await,
                }
            }
        }
    }

    async fn fail(self, failure: HookFailure, source: Option<HookError>) {
        self.running.refuse(failure, source).await;
    }

    async fn ask(self, hooks: &mut impl Hooks, notify: Notify) {
        let deadline = self.running.deadline;
        let asked = guard::ask(hooks, notify, self.running.limits.hook);
        let outcome = match deadline {
            Some(deadline) => match tokio::time::timeout_at(deadline.into(), asked).await {
                Ok(outcome) => outcome,
                Err(_) => return self.running.out_of_time(),
            },
            None => asked.await,
        };
        match outcome {
            Ok(reply) => self.reply(reply).await,
            Err((failure, source)) => self.fail(failure, source).await,
        }
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        self.running.answer_dropped = self.running.asked.is_some();
    }
}
