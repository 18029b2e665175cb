//! Several questions over one connection.
//!
//! CRIU keeps a connection open (`keep_open`) after VERSION, FEATURE_CHECK, CPUINFO_DUMP and CPUINFO_CHECK that went well,
//! and after those that page servers are started with (see [`PageServer`](super::PageServer)). After any other request,
//! and after one that failed, it is over.

use tracing::Instrument;

use super::info::{self, Features, Verdict};
use super::request::{complete, mark};
use super::running::{Held, Trouble, conclude};
use super::{Criu, ImagesDir, Plan};
use crate::error::{Error, OperationKind, Result};
use crate::options::{CheckOptions, CpuinfoOptions};
use crate::rpc::wire::CriuResp;
use crate::version::Version;

/// A connection that several questions are asked on: one `criu swrk`, or one worker of a service, for all of them.
///
/// ```no_run
/// # use criu_client::{Criu, options::CheckOptions};
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let mut connection = Criu::find()?.connect().await?;
/// println!("{}", connection.version());
/// println!("{:?}", connection.features().await?);
/// // After CHECK CRIU ends.
/// println!("{}", connection.check(CheckOptions::new()).await?.text);
/// # Ok(())
/// # }
/// ```
///
/// It ends with the first question that fails or whose future is dropped: [`Connection::is_open`] tells, and further
/// questions are an error. [`TimeLimits::operation`](crate::TimeLimits::operation) holds for each question.
///
/// Dropped, it is closed in the background, see [`Criu::settled`].
#[must_use = "a connection that is dropped is closed"]
pub struct Connection {
    /// Between two questions it has the last answer: CRIU then ends by itself when we hang up. Killed right after an answer,
    /// it might leave the child that has sent it for somebody else to reap.
    held: Option<Held>,
    mark: String,
    version: Version,
}

impl Criu {
    /// Connects, for several questions over one connection. The version is asked at once.
    ///
    /// # Errors
    /// As [`Criu::version`].
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn connect(&self) -> Result<Connection> {
        let mut plan = info::version_plan();
        plan.keep_open = true;
        let mark = mark();
        let span = span(&plan);
        let opened = self.open(&mut plan, &mark, span.clone());
        let (mut running, answer) = opened.instrument(span).await?;
        running.answer = Some(answer);
        Ok(Connection {
            version: running.version.clone(),
            held: Some(Held::new(running)),
            mark,
        })
    }
}

impl Connection {
    /// The version of the CRIU that answers.
    #[must_use]
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Whether more can be asked.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.held.is_some()
    }

    /// As [`Criu::features`]. Before CRIU 3.16, which answers this twice on a connection that stays open, it is the last
    /// question.
    ///
    /// # Errors
    /// As [`Criu::features`]; and when the connection is over.
    ///
    /// # Cancel safety
    /// Dropping the future ends the connection.
    pub async fn features(&mut self) -> Result<Features> {
        let mut plan = info::features_plan();
        plan.keep_open = self.version.has(&Version::new(3, 16, 0));
        let (answer, held) = self.ask(plan).await?;
        if let Some(features) = Features::of(&answer) {
            self.held = held;
            return Ok(features);
        }
        Err(Error::precondition(
            OperationKind::FeatureCheck,
            "the answer to FEATURE_CHECK has no features",
            None,
        ))
    }

    /// As [`Criu::cpuinfo_dump`].
    ///
    /// # Errors
    /// As [`Criu::cpuinfo_dump`]; and when the connection is over.
    ///
    /// # Cancel safety
    /// Dropping the future ends the connection.
    pub async fn cpuinfo_dump(
        &mut self,
        images: &ImagesDir,
        options: CpuinfoOptions,
    ) -> Result<()> {
        self.cpuinfo(OperationKind::CpuinfoDump, images, options)
            .await
    }

    /// As [`Criu::cpuinfo_check`].
    ///
    /// # Errors
    /// As [`Criu::cpuinfo_check`]; and when the connection is over.
    ///
    /// # Cancel safety
    /// Dropping the future ends the connection.
    pub async fn cpuinfo_check(
        &mut self,
        images: &ImagesDir,
        options: CpuinfoOptions,
    ) -> Result<()> {
        self.cpuinfo(OperationKind::CpuinfoCheck, images, options)
            .await
    }

    async fn cpuinfo(
        &mut self,
        kind: OperationKind,
        images: &ImagesDir,
        options: CpuinfoOptions,
    ) -> Result<()> {
        let mut plan = info::cpuinfo_plan(kind, images, options)?;
        plan.keep_open = true;
        let (_, held) = self.ask(plan).await?;
        self.held = held;
        Ok(())
    }

    /// As [`Criu::check`], as the last question: CRIU ends after it.
    ///
    /// # Errors
    /// As [`Criu::check`]; and when the connection is over.
    ///
    /// # Cancel safety
    /// Dropping the future ends the connection.
    pub async fn check(mut self, options: CheckOptions) -> Result<Verdict> {
        let (plan, _directory) = info::check_plan(options)?;
        let held = self.send(plan).await?;
        Ok(Verdict::of(&complete(held).await?))
    }

    /// Closes it and waits until CRIU has ended.
    pub async fn close(mut self) {
        if let Some(mut held) = self.held.take() {
            // There is nothing to fail.
            let _ = conclude(&mut held).await;
        }
    }

    /// Asks; a good answer comes with the connection, if that stays open. It is not put back here, so that whatever is
    /// wrong with an answer ends it.
    async fn ask(&mut self, plan: Plan) -> Result<(CriuResp, Option<Held>)> {
        let keep_open = plan.keep_open;
        let mut held = self.send(plan).await?;
        if !keep_open {
            return Ok((complete(held).await?.answer, None));
        }
        if let Some(running) = held.get_mut() {
            match running.sole_answer().await {
                Ok(answer) if answer.success => {
                    // What was this question's alone.
                    running.held.clear();
                    if let Some(log) = running.log.take() {
                        log.discard_if_empty();
                    }
                    running.answer = Some(answer.clone());
                    return Ok((*answer, Some(held)));
                }
                Ok(answer) => running.answer = Some(answer),
                Err(trouble) => {
                    running.trouble.get_or_insert(trouble);
                }
            }
        }
        Err(ended(held).await)
    }

    /// Sends, and hands out the connection. What is refused before it is sent leaves it as it is.
    async fn send(&mut self, plan: Plan) -> Result<Held> {
        let kind = plan.kind;
        let over = || {
            let what =
                "the connection is over: an earlier question on it has failed or was its last";
            Error::precondition(kind, what, None)
        };
        let running = self
            .held
            .as_mut()
            .and_then(Held::get_mut)
            .ok_or_else(over)?;
        let span = span(&plan);
        span.record("version", tracing::field::display(&running.version));
        let message = running.prepare(plan, &self.mark)?;
        running.span = span;
        running.answer = None;
        let limit = running.limits.operation;
        running.deadline = limit.map(|limit| std::time::Instant::now() + limit);
        let mut held = self.held.take().ok_or_else(over)?;
        if let Some(running) = held.get_mut()
            && let Err(trouble) = running.send(&message).await
        {
            running.trouble.get_or_insert(trouble);
            return Err(ended(held).await);
        }
        Ok(held)
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("version", &self.version)
            .field("is_open", &self.is_open())
            .finish_non_exhaustive()
    }
}

/// What a connection has ended with.
async fn ended(mut held: Held) -> Error {
    match conclude(&mut held).await {
        Err(error) => error,
        Ok(ended) => ended.into_error(Trouble::Lost),
    }
}

fn span(plan: &Plan) -> tracing::Span {
    tracing::info_span!("criu", operation = %plan.kind, pid = plan.pid, version = tracing::field::Empty)
}
