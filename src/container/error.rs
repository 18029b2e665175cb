//! What can go wrong with a container before, around and in CRIU's part of the work.

use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::ser::{Serialize, SerializeMap, Serializer};

#[cfg(feature = "engine")]
use super::http::ApiError;
use super::model::{EngineKind, Status};
#[cfg(feature = "engine")]
use crate::diagnosis::Findings;

/// The result of everything here that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A container operation that failed: which container, what was found, and the remedy.
///
/// Everything but [`ErrorKind::Criu`] and what happens in hooks is found before anything is frozen, created or removed,
/// or has been undone when the error arrives; what could not be undone is in [`Error::left_behind`].
#[derive(Debug)]
pub struct Error {
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    engine: EngineKind,
    id: String,
    kind: ErrorKind,
    left_behind: Vec<String>,
}

/// What was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The engine has no such container.
    #[error("there is no such container in {}", root.display())]
    Unknown {
        /// Where the engine keeps its containers.
        root: PathBuf,
    },
    /// Several containers' ids begin so.
    #[error("several containers' ids begin so: {}", candidates.join(", "))]
    Ambiguous {
        /// The ids.
        candidates: Vec<String>,
    },
    /// The name is none that the engine would take.
    #[error("this is no name of a container")]
    InvalidId,
    /// Only a running (or paused) container can be checkpointed.
    #[error("the container is {status}")]
    NotRunning {
        /// What it is instead.
        status: Status,
    },
    /// The id is taken, so nothing can be restored under it.
    #[error("a container of this name exists and is {status}")]
    Exists {
        /// The status of the one that has it.
        status: Status,
    },
    /// It runs already, restored without its engine; or is being so.
    #[error("it was restored without its engine before, and runs as process {pid}")]
    RunsExternally {
        /// Its first process, or that of the restore that is going on.
        pid: i32,
        /// The runtime that has it.
        runtime: EngineKind,
        /// That runtime's root.
        root: PathBuf,
    },
    /// The engine's record of the container cannot be used.
    #[error("{}: {problem}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// The reader's own words.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The bundle is not what a container can be made from.
    #[error("{}: {problem}", path.display())]
    Bundle {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// The reader's own words.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The images directory is no checkpoint of a container.
    #[error("{}: {problem}", path.display())]
    Images {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// The reader's own words.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// A control group is in the way, or cannot be made as the container needs it.
    #[error("{}: {problem}", path.display())]
    Cgroup {
        /// The control group's directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What the kernel said.
        #[source]
        source: Option<io::Error>,
    },
    /// systemd, which is to have the container's control group, could not be asked or refused.
    #[error("systemd's unit {unit}: {problem}")]
    Systemd {
        /// The unit.
        unit: String,
        /// What is wrong.
        problem: String,
        /// systemd's own words.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// An option does not go together with this container, or a needed one is missing.
    #[error("{option}: {problem}")]
    Option {
        /// Its long name on a runtime's command line.
        option: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The container uses something that cannot be checkpointed or restored.
    #[error("{0}")]
    Unsupported(String),
    /// The engine would start or remove the container by itself.
    #[error("{0}")]
    Policy(String),
    /// The engine could not be asked, or refused.
    #[cfg(feature = "engine")]
    #[error("{0}")]
    Api(Box<ApiError>),
    /// The engine has tried to restore the container and failed.
    #[cfg(feature = "engine")]
    #[error("the engine's restore failed: {}", error.problem)]
    EngineRestore {
        /// What the engine says.
        error: Box<ApiError>,
        /// What CRIU's log says, if it could be read before the engine removed it.
        findings: Option<Box<Findings>>,
    },
    /// The root file system cannot be put together.
    #[error(transparent)]
    Rootfs(#[from] crate::rootfs::Error),
    /// A system call or a file failed.
    #[error("{doing} failed")]
    System {
        /// What was being done.
        doing: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// CRIU's part failed; its error says everything about the tasks.
    #[error("criu's {} failed", .0.operation())]
    Criu(#[source] crate::Error),
}

impl ErrorKind {
    pub(crate) fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::System { doing, source }
    }
}

impl From<crate::Error> for ErrorKind {
    fn from(error: crate::Error) -> Self {
        Self::Criu(error)
    }
}

impl Error {
    pub(crate) fn new(engine: EngineKind, id: &str, kind: ErrorKind) -> Self {
        Self {
            inner: Box::new(Inner {
                engine,
                id: id.to_owned(),
                kind,
                left_behind: Vec::new(),
            }),
        }
    }

    pub(crate) fn with_left_behind(mut self, left_behind: Vec<String>) -> Self {
        self.inner.left_behind = left_behind;
        self
    }

    /// The engine that the container belongs to.
    #[must_use]
    pub fn engine(&self) -> EngineKind {
        self.inner.engine
    }

    /// The container's name; empty where all were looked at.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// What was found.
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.inner.kind
    }

    /// Without the name, which somebody else knows.
    #[cfg(feature = "engine")]
    pub(crate) fn into_kind(self) -> ErrorKind {
        self.inner.kind
    }

    /// CRIU's error, where CRIU was asked and failed.
    #[must_use]
    pub fn criu(&self) -> Option<&crate::Error> {
        match &self.inner.kind {
            ErrorKind::Criu(error) => Some(error),
            _ => None,
        }
    }

    /// What the log of an engine's own restore says, where that failed.
    #[cfg(feature = "engine")]
    #[must_use]
    pub fn findings(&self) -> Option<&Findings> {
        match &self.inner.kind {
            ErrorKind::EngineRestore { findings, .. } => findings.as_deref(),
            _ => None,
        }
    }

    /// A stable word for the kind: `unknown`, `ambiguous`, `invalid-id`, `not-running`, `exists`, `runs-externally`, `state`, `bundle`,
    /// `images`, `cgroup`, `systemd`, `option`, `unsupported`, `policy`, `api`, `engine-restore`, `rootfs`, `system` or `criu`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match &self.inner.kind {
            ErrorKind::Unknown { .. } => "unknown",
            ErrorKind::Ambiguous { .. } => "ambiguous",
            ErrorKind::InvalidId => "invalid-id",
            ErrorKind::NotRunning { .. } => "not-running",
            ErrorKind::Exists { .. } => "exists",
            ErrorKind::RunsExternally { .. } => "runs-externally",
            ErrorKind::State { .. } => "state",
            ErrorKind::Bundle { .. } => "bundle",
            ErrorKind::Images { .. } => "images",
            ErrorKind::Cgroup { .. } => "cgroup",
            ErrorKind::Systemd { .. } => "systemd",
            ErrorKind::Option { .. } => "option",
            ErrorKind::Unsupported(_) => "unsupported",
            ErrorKind::Policy(_) => "policy",
            #[cfg(feature = "engine")]
            ErrorKind::Api(_) => "api",
            #[cfg(feature = "engine")]
            ErrorKind::EngineRestore { .. } => "engine-restore",
            ErrorKind::Rootfs(_) => "rootfs",
            ErrorKind::System { .. } => "system",
            ErrorKind::Criu(_) => "criu",
        }
    }

    /// What to do about it, where the message does not say so itself and CRIU's own diagnosis is not the place.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        let Inner {
            engine, id, kind, ..
        } = &*self.inner;
        match kind {
            ErrorKind::Unknown { .. } | ErrorKind::NotRunning { .. } | ErrorKind::Exists { .. }
                if matches!(engine, EngineKind::Docker | EngineKind::Podman) =>
            {
                Some(of_engine(*engine, kind, id))
            }
            ErrorKind::RunsExternally { runtime, root, .. } => Some(format!(
                "checkpoint it with `criuctl external checkpoint {id}`, or end it: `{runtime} --root {} kill {id} KILL`",
                root.display()
            )),
            ErrorKind::Ambiguous { .. } => Some("write more of the id".into()),
            ErrorKind::Unknown { .. } => Some(format!(
                "`{engine} list` shows the names there are; containers of another --root need that root here as well"
            )),
            ErrorKind::InvalidId => Some("use letters, digits, and _ + - .".into()),
            ErrorKind::NotRunning {
                status: Status::Created,
            } => Some(format!("start it first: `{engine} start {id}`")),
            ErrorKind::NotRunning { .. } => Some(format!(
                "there are no processes left to checkpoint; `{engine} delete {id}` removes what remains of it"
            )),
            ErrorKind::Exists {
                status: Status::Stopped,
            } => Some(format!(
                "`{engine} delete {id}` removes it; or restore under another name"
            )),
            ErrorKind::Exists { .. } => Some(format!(
                "restore under another name, or end the other one: `{engine} delete --force {id}`"
            )),
            _ => None,
        }
    }

    /// What was made for the operation and could not be removed again.
    #[must_use]
    pub fn left_behind(&self) -> &[String] {
        &self.inner.left_behind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner {
            engine, id, kind, ..
        } = &*self.inner;
        match id.as_str() {
            "" => write!(f, "{engine} containers: {kind}")?,
            id => write!(f, "{engine} container {id:?}: {kind}")?,
        }
        match self.remedy() {
            Some(remedy) => write!(f, ": {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.inner.kind)
    }
}

impl Serialize for Error {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut chain = Vec::new();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            chain.push(error.to_string());
            source = error.source();
        }
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("code", self.code())?;
        map.serialize_entry("message", &self.to_string())?;
        map.serialize_entry("chain", &chain)?;
        map.serialize_entry("engine", &self.inner.engine)?;
        map.serialize_entry("container", &self.inner.id)?;
        map.serialize_entry("remedy", &self.remedy())?;
        map.serialize_entry("leftBehind", &self.inner.left_behind)?;
        map.serialize_entry("criu", &self.criu())?;
        #[cfg(feature = "engine")]
        map.serialize_entry("findings", &self.findings())?;
        map.end()
    }
}

/// What Docker or Podman can do about a container that is not as it must be.
fn of_engine(engine: EngineKind, kind: &ErrorKind, id: &str) -> String {
    match kind {
        ErrorKind::NotRunning {
            status: Status::Created,
        } => format!("start it first: `{engine} start {id}`"),
        ErrorKind::NotRunning { .. } => {
            format!("there are no processes to checkpoint; `{engine} start {id}` starts it anew")
        }
        ErrorKind::Exists { .. } => format!(
            "it is restored only when it is stopped: `{engine} stop {id}` ends what it does now"
        ),
        _ => format!("`{engine} ps --all` shows the names there are"),
    }
}

/// An error and what is behind it, in one line.
pub(crate) fn in_words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        words += &format!(": {error}");
        source = error.source();
    }
    words
}
