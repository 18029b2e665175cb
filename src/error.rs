//! What can go wrong, in types that tooling can act on.
//!
//! An [`Error`] says who failed ([`ErrorKind`]) and carries the record of the failure: the operation, the state of the
//! tasks, CRIU's errno and message, the log line that names the cause, the lines around it, what CRIU wrote to its
//! standard streams, how it ended, and what was undone afterwards. [`Error::diagnosis`] turns known causes into a
//! stable code, a sentence and a remedy. Everything serialises to JSON.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

use crate::diagnosis::{Diagnosis, Findings, LogLine};
use crate::notify::Script;
use crate::options::InvalidOption;
use crate::rpc::session::Violation;
use crate::rpc::swrk::Exit;
use crate::version::Version;

/// The result of everything here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What was asked of CRIU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum OperationKind {
    /// VERSION.
    Version,
    /// CHECK.
    Check,
    /// FEATURE_CHECK.
    FeatureCheck,
    /// CPUINFO_DUMP.
    CpuinfoDump,
    /// CPUINFO_CHECK.
    CpuinfoCheck,
    /// DUMP.
    Dump,
    /// PRE_DUMP or SINGLE_PRE_DUMP.
    PreDump,
    /// RESTORE.
    Restore,
    /// PAGE_SERVER or PAGE_SERVER_CHLD, and WAIT_PID for it.
    PageServer,
    /// The `criu lazy-pages` daemon.
    LazyPages,
}

impl fmt::Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "version",
            Self::Check => "check",
            Self::FeatureCheck => "feature check",
            Self::CpuinfoDump => "cpuinfo dump",
            Self::CpuinfoCheck => "cpuinfo check",
            Self::Dump => "dump",
            Self::PreDump => "pre-dump",
            Self::Restore => "restore",
            Self::PageServer => "page server",
            Self::LazyPages => "lazy pages",
        })
    }
}

/// What became of the task tree that an operation was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum TaskState {
    /// The tasks run: after a failed dump as before it, after a restore that could not be stopped any more as restored.
    Running,
    /// The tasks exist and are stopped by a signal, as they were before or as was asked for.
    Stopped,
    /// There are no such tasks: dumped and killed, or never (or no longer) restored.
    Absent,
    /// The tasks exist and still stand still: something else holds them (a debugger, a frozen cgroup).
    Frozen,
    /// It could not be found out (a service on the other side of a pid namespace, for instance).
    Unknown,
    /// The operation has nothing to do with tasks.
    NotConcerned,
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Absent => "absent",
            Self::Frozen => "frozen",
            Self::Unknown => "unknown",
            Self::NotConcerned => "not concerned",
        })
    }
}

/// An error number of CRIU or the kernel with its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// Its symbolic name, such as `EBADRQC`.
    #[must_use]
    pub fn name(self) -> String {
        format!("{:?}", nix::errno::Errno::from_raw(self.0))
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

impl Serialize for Errno {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("number", &self.0)?;
        map.serialize_entry("name", &self.name())?;
        map.end()
    }
}

/// Who failed, and how.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// CRIU could not be started. Nothing has happened to any task.
    #[error("criu at {} could not be started", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket of a `criu service` could not be connected to. Nothing has happened to any task.
    #[error("the criu service at {} could not be reached", socket.display())]
    Connect {
        /// The service's socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket to CRIU failed.
    #[error("the connection to criu failed while {doing}")]
    Transport {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// CRIU hung up or ended without an answer.
    #[error("criu went away without an answer{}", exit_clause(*exit))]
    Lost {
        /// How the worker ended, where that is known (never for a service).
        exit: Option<Exit>,
    },
    /// CRIU sent something that the protocol does not allow.
    #[error("criu broke the protocol")]
    Protocol(#[source] Violation),
    /// CRIU did what was asked, or tried to, and reports failure.
    #[error("criu refused or failed the {operation}")]
    Refused {
        /// What it was asked.
        operation: OperationKind,
    },
    /// A hook refused, failed, panicked or took too long; CRIU was told once and has undone what it could.
    #[error("the {script} hook {failure}")]
    Hook {
        /// The callback.
        script: Script,
        /// What the hook did.
        failure: HookFailure,
        /// The hook's own error, where it gave one.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// An option or a feature that this CRIU, this kernel or this kind of connection does not have. Nothing was sent.
    #[error("{what} needs {needs}, this is {has}")]
    Unsupported {
        /// The option or feature.
        what: String,
        /// What it needs, such as `CRIU 4.3`.
        needs: String,
        /// What there is, such as `4.2.1`.
        has: String,
    },
    /// An option's value cannot be right. Nothing was sent.
    #[error(transparent)]
    InvalidOption(#[from] InvalidOption),
    /// Something that the operation needs before CRIU is asked is not as it should be. Nothing has happened to any task.
    #[error("{what}")]
    Precondition {
        /// What is missing or in the way, and the remedy.
        what: String,
        /// The call that found it out.
        #[source]
        source: Option<io::Error>,
    },
    /// The time limit of the whole operation passed.
    #[error("the {operation} took longer than its limit of {limit:?}")]
    TimeLimit {
        /// The operation.
        operation: OperationKind,
        /// The limit.
        limit: Duration,
    },
    /// The caller cancelled.
    #[error("the {operation} was cancelled")]
    Cancelled {
        /// The operation.
        operation: OperationKind,
    },
}

/// What a hook did instead of accepting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "how", content = "detail")]
#[non_exhaustive]
pub enum HookFailure {
    /// It replied with a refusal and this reason.
    Refused(String),
    /// It returned an error.
    Failed,
    /// It panicked with this message.
    Panicked(String),
    /// It did not reply within this time.
    TimedOut(Duration),
    /// The question was dropped without an answer.
    Dropped,
}

impl fmt::Display for HookFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(reason) => write!(f, "refused: {reason}"),
            Self::Failed => f.write_str("failed"),
            Self::Panicked(message) => write!(f, "panicked: {message}"),
            Self::TimedOut(limit) => write!(f, "did not reply within {limit:?}"),
            Self::Dropped => f.write_str("was dropped without an answer"),
        }
    }
}

/// A failed operation: who failed, and the record of it.
pub struct Error {
    kind: ErrorKind,
    record: Box<Record>,
}

/// Everything that is known about a failure besides its kind.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) operation: OperationKind,
    pub(crate) tasks: TaskState,
    pub(crate) version: Option<Version>,
    pub(crate) errno: Option<Errno>,
    pub(crate) message: Option<String>,
    pub(crate) log: Option<PathBuf>,
    pub(crate) findings: Option<Findings>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) exit: Option<Exit>,
    /// What the aftercare removed or ended.
    pub(crate) undone: Vec<String>,
    /// What the aftercare could not remove.
    pub(crate) left_behind: Vec<String>,
}

impl Record {
    pub(crate) fn new(operation: OperationKind, tasks: TaskState) -> Self {
        Self {
            operation,
            tasks,
            version: None,
            errno: None,
            message: None,
            log: None,
            findings: None,
            stdout: String::new(),
            stderr: String::new(),
            exit: None,
            undone: Vec::new(),
            left_behind: Vec::new(),
        }
    }
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, record: Record) -> Self {
        Self {
            kind,
            record: Box::new(record),
        }
    }

    /// A failure before CRIU was asked anything: the tasks are as they were.
    pub(crate) fn before(operation: OperationKind, kind: ErrorKind) -> Self {
        let tasks = match operation {
            OperationKind::Dump | OperationKind::PreDump => TaskState::Running,
            OperationKind::Restore => TaskState::Absent,
            _ => TaskState::NotConcerned,
        };
        Self::new(kind, Record::new(operation, tasks))
    }

    pub(crate) fn precondition(
        operation: OperationKind,
        what: impl Into<String>,
        source: Option<io::Error>,
    ) -> Self {
        Self::before(
            operation,
            ErrorKind::Precondition {
                what: what.into(),
                source,
            },
        )
    }

    /// Names no log, because that is removed.
    #[cfg(feature = "archive")]
    pub(crate) fn without_log(mut self) -> Self {
        self.record.log = None;
        self
    }

    /// Adds the known cause behind it.
    pub(crate) fn with_findings(mut self, findings: Findings) -> Self {
        self.record.findings = Some(findings);
        self
    }

    /// Who failed, and how.
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// A stable word for [`Error::kind`], as it stands in the JSON form: `start`, `connect`, `transport`, `lost`,
    /// `protocol`, `refused`, `hook`, `unsupported`, `invalid-option`, `precondition`, `time-limit` or `cancelled`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self.kind {
            ErrorKind::Start { .. } => "start",
            ErrorKind::Connect { .. } => "connect",
            ErrorKind::Transport { .. } => "transport",
            ErrorKind::Lost { .. } => "lost",
            ErrorKind::Protocol(_) => "protocol",
            ErrorKind::Refused { .. } => "refused",
            ErrorKind::Hook { .. } => "hook",
            ErrorKind::Unsupported { .. } => "unsupported",
            ErrorKind::InvalidOption(_) => "invalid-option",
            ErrorKind::Precondition { .. } => "precondition",
            ErrorKind::TimeLimit { .. } => "time-limit",
            ErrorKind::Cancelled { .. } => "cancelled",
        }
    }

    /// What was asked.
    #[must_use]
    pub fn operation(&self) -> OperationKind {
        self.record.operation
    }

    /// The state that the tasks were seen in after everything was undone that could be.
    #[must_use]
    pub fn tasks(&self) -> TaskState {
        self.record.tasks
    }

    /// The version of the CRIU that was asked, when it came so far.
    #[must_use]
    pub fn version(&self) -> Option<&Version> {
        self.record.version.as_ref()
    }

    /// CRIU's `cr_errno`: one of EBADRQC, ESRCH, EEXIST and ENOTSUP; often absent.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        self.record.errno
    }

    /// CRIU's `cr_errmsg`: the first error it logged, which need not be the cause. Prefer [`Error::cause`].
    #[must_use]
    pub fn criu_message(&self) -> Option<&str> {
        self.record.message.as_deref()
    }

    /// Where CRIU's log of this request is.
    #[must_use]
    pub fn log_path(&self) -> Option<&Path> {
        self.record.log.as_deref()
    }

    /// What the log and the captured streams say: causal line, lines around it, warnings, last lines.
    #[must_use]
    pub fn findings(&self) -> Option<&Findings> {
        self.record.findings.as_ref()
    }

    /// The line that names the cause.
    #[must_use]
    pub fn cause(&self) -> Option<&LogLine> {
        self.findings()
            .and_then(|findings| findings.cause.as_ref())
            .map(|cause| &cause.line)
    }

    /// The known cause behind the failure, in words, with a remedy.
    #[must_use]
    pub fn diagnosis(&self) -> Option<&Diagnosis> {
        self.findings()
            .and_then(|findings| findings.diagnosis.as_ref())
    }

    /// The beginning (64 KiB) of what CRIU wrote to its standard output.
    #[must_use]
    pub fn stdout(&self) -> &str {
        &self.record.stdout
    }

    /// The beginning (64 KiB) of what CRIU wrote to its standard error.
    #[must_use]
    pub fn stderr(&self) -> &str {
        &self.record.stderr
    }

    /// How the worker ended.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        self.record.exit
    }

    /// What was undone after CRIU itself could not: network locks removed, half-restored tasks killed, cgroups thawed.
    #[must_use]
    pub fn undone(&self) -> &[String] {
        &self.record.undone
    }

    /// What could not be undone and needs a hand.
    #[must_use]
    pub fn left_behind(&self) -> &[String] {
        &self.record.left_behind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)?;
        // Elsewhere the log only repeats, from CRIU's side, what the kind says better.
        if !matches!(
            self.kind,
            ErrorKind::Refused { .. } | ErrorKind::Lost { .. } | ErrorKind::Protocol(_)
        ) {
            return Ok(());
        }
        if let Some(cause) = self.cause() {
            write!(f, ": {}", cause.text.trim_end())?;
        } else if let Some(errno) = self.errno() {
            write!(f, ": {errno}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.kind)
            .field("record", &self.record)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.kind)
    }
}

impl Serialize for Error {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let record = &self.record;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("code", self.code())?;
        map.serialize_entry("message", &self.to_string())?;
        let mut chain = Vec::new();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            chain.push(error.to_string());
            source = error.source();
        }
        map.serialize_entry("chain", &chain)?;
        if let ErrorKind::Hook {
            script, failure, ..
        } = &self.kind
        {
            map.serialize_entry("hook", &HookRecord { script, failure })?;
        }
        map.serialize_entry("operation", &record.operation)?;
        map.serialize_entry("tasks", &record.tasks)?;
        map.serialize_entry("criuVersion", &record.version)?;
        map.serialize_entry("errno", &record.errno)?;
        map.serialize_entry("criuMessage", &record.message)?;
        map.serialize_entry("log", &record.log)?;
        map.serialize_entry("findings", &record.findings)?;
        map.serialize_entry("stdout", &record.stdout)?;
        map.serialize_entry("stderr", &record.stderr)?;
        map.serialize_entry("exit", &record.exit)?;
        map.serialize_entry("undone", &record.undone)?;
        map.serialize_entry("leftBehind", &record.left_behind)?;
        map.end()
    }
}

#[derive(Serialize)]
struct HookRecord<'a> {
    script: &'a Script,
    failure: &'a HookFailure,
}

fn exit_clause(exit: Option<Exit>) -> String {
    exit.map(|exit| format!(" ({exit})")).unwrap_or_default()
}
