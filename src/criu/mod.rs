//! Where CRIU is, and everything it can be asked.
//!
//! [`Criu`] names the program (a `criu swrk` is started for each operation) or the socket of a `criu service`. An
//! operation first asks the version on its own connection, refuses options that this version would silently ignore,
//! then sends one request, lets hooks answer the callbacks, and ends with a report or an [`Error`](crate::Error).
//! Whatever happens, the worker is reaped and the tasks are left as documented: [`settle`] is the one road there.

mod care;
mod connection;
mod dump;
mod half_restored;
mod images;
mod info;
mod lazy_pages;
mod netlock;
pub(crate) mod operation;
mod page_server;
mod planned;
mod report;
mod request;
mod restore;
mod running;
pub(crate) mod settle;
mod tasks;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use connection::Connection;
pub use images::ImagesDir;
pub use info::{Features, Verdict};
pub use lazy_pages::{LazyPages, LazyPagesOptions};
pub use operation::{Answer, Operation, Report};
pub use page_server::{DetachedPageServer, PageServer};
pub use report::{
    Details, DumpReport, IgnoredRefusal, Phase, PreDumpReport, RestoreReport, Timings,
};
pub use restore::{RestoredChild, RestoredRoot};

use crate::error::{Error, ErrorKind, OperationKind, Result};
use request::{Plan, complete, mark};
use settle::Settling;

/// Where distributions and CRIU's own build put the program.
const DIRECTORIES: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long things may take. The default is no limit but ten seconds for [`TimeLimits::settle`].
#[derive(Debug, Clone)]
#[non_exhaustive]
#[must_use]
pub struct TimeLimits {
    /// The whole operation, callbacks included. When it passes, the operation is cancelled as a drop would.
    pub operation: Option<Duration>,
    /// One hook. When it passes, the callback is refused.
    pub hook: Option<Duration>,
    /// How long CRIU may take to reach its next callback or its end once it has to stop, and how long a restore waits for
    /// the pids it needs. CRIU is then killed. The tasks of a dump run on even so, with CRIU's parasite code still mapped in
    /// them, but not always: a task was seen to die with a CRIU that was killed between two callbacks (presumably while
    /// CRIU made it run that code through ptrace). So this is the last resort; give CRIU more time rather than less.
    pub settle: Duration,
}

impl Default for TimeLimits {
    fn default() -> Self {
        Self {
            operation: None,
            hook: None,
            settle: Duration::from_secs(10),
        }
    }
}

impl TimeLimits {
    /// Limits the whole operation.
    pub fn operation(mut self, limit: Duration) -> Self {
        self.operation = Some(limit);
        self
    }

    /// Limits each hook.
    pub fn hook(mut self, limit: Duration) -> Self {
        self.hook = Some(limit);
        self
    }

    /// Limits the end: see the field.
    pub fn settle(mut self, limit: Duration) -> Self {
        self.settle = limit;
        self
    }
}

/// A CRIU to ask: cheap to make and to clone. Its methods need a tokio runtime (of either flavour) with I/O and time.
#[derive(Debug, Clone)]
pub struct Criu {
    endpoint: Endpoint,
    arguments: Vec<OsString>,
    limits: TimeLimits,
    settling: Settling,
}

#[derive(Debug, Clone)]
enum Endpoint {
    Program(PathBuf),
    Service(PathBuf),
}

impl Criu {
    /// The CRIU program at this path; it is not looked at before the first operation.
    #[must_use]
    pub fn at(program: impl Into<PathBuf>) -> Self {
        Self::new(Endpoint::Program(program.into()))
    }

    /// The CRIU program in the usual places: `/usr/local/sbin`, `/usr/local/bin`, `/usr/sbin`, `/usr/bin`, `/sbin`, `/bin`.
    ///
    /// # Errors
    /// [`ErrorKind::Start`] when there is none.
    pub fn find() -> Result<Self> {
        Self::find_in(OsStr::new(DIRECTORIES))
    }

    /// The first `criu` in a list of directories like that of the PATH variable, which this library does not read itself.
    ///
    /// # Errors
    /// [`ErrorKind::Start`] when there is none.
    pub fn find_in(directories: &OsStr) -> Result<Self> {
        std::env::split_paths(directories)
            .map(|directory| directory.join("criu"))
            .find(|program| is_executable(program))
            .map(Self::at)
            .ok_or_else(|| {
                Error::before(
                    OperationKind::Version,
                    ErrorKind::Start {
                        program: "criu".into(),
                        source: std::io::ErrorKind::NotFound.into(),
                    },
                )
            })
    }

    /// A `criu service` that listens on this socket.
    ///
    /// Whoever can open the socket can do as root whatever CRIU can. The service's worker is not our child: what only a
    /// `criu swrk` can do (a restored child of the caller's, inherited descriptors) is refused before anything is sent, and
    /// it is never killed: one that does not end in time is told as [left behind](crate::Error::left_behind).
    ///
    /// What it leaves when something else kills it is undone as after a worker of our own, as far as this process may, and a
    /// page server ends with its handle. That takes a service in our own pid namespace, since CRIU's numbers of processes are
    /// acted upon. With one elsewhere (the host's, for a client in a container) only half-restored tasks are ended that can be
    /// seen from here; the error then says what may be left behind, and [`TaskState::Unknown`](crate::TaskState::Unknown).
    #[must_use]
    pub fn service(socket: impl Into<PathBuf>) -> Self {
        Self::new(Endpoint::Service(socket.into()))
    }

    fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            arguments: Vec::new(),
            limits: TimeLimits::default(),
            settling: Settling::new(),
        }
    }

    /// Global options that the program gets before `swrk`, as CRIU's lowest-priority defaults: `--no-default-config`, or
    /// one of the few that the RPC lacks. A service has its own.
    #[must_use]
    pub fn with_arguments<I>(mut self, arguments: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        self.arguments = arguments.into_iter().map(Into::into).collect();
        self
    }

    /// Time limits for the operations started from here on.
    #[must_use]
    pub fn with_limits(mut self, limits: TimeLimits) -> Self {
        self.limits = limits;
        self
    }

    /// The time limits.
    pub fn limits(&self) -> &TimeLimits {
        &self.limits
    }

    /// The program, unless this is a service.
    #[must_use]
    pub fn program(&self) -> Option<&Path> {
        match &self.endpoint {
            Endpoint::Program(program) => Some(program),
            Endpoint::Service(_) => None,
        }
    }

    /// Completes when every operation of this `Criu` and its clones that was dropped is settled: the worker reaped, the
    /// tasks as documented.
    ///
    /// A program that ends earlier leaves the rest to CRIU, which notices at its next callback that it has gone. Where there
    /// is none (a pre-dump, a page server, a lazy dump that waits for its connection) CRIU goes on alone.
    pub async fn settled(&self) {
        self.settling.done().await;
    }
}

fn is_executable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file()
}
