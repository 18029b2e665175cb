//! The steps of an operation.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::notify::Script;

/// Something that is done.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Step {
    /// When.
    #[serde(serialize_with = "as_text")]
    pub when: When,
    /// What.
    #[serde(flatten)]
    pub action: Action,
    /// What becomes of it when the operation fails.
    pub undo: Undo,
}

impl Step {
    /// A step of this time.
    #[must_use]
    pub fn new(when: When, action: Action) -> Self {
        Self {
            undo: action.undo(&when),
            when,
            action,
        }
    }

    /// Before CRIU is asked.
    #[must_use]
    pub fn before(action: Action) -> Self {
        Self::new(When::Before, action)
    }

    /// At a callback.
    #[must_use]
    pub fn at(script: Script, action: Action) -> Self {
        Self::new(When::At(script), action)
    }

    /// After CRIU has ended well.
    #[must_use]
    pub fn after(action: Action) -> Self {
        Self::new(When::After, action)
    }

    /// Whether there is nothing to do, because it is as it is to be.
    #[must_use]
    pub fn is_done(&self) -> bool {
        match &self.action {
            Action::MakeDirectory { make, .. }
            | Action::EnsureMountPoint { make, .. }
            | Action::MakeCgroups { make } => make.is_empty(),
            Action::UndoDeadRestores { containers } => containers.is_empty(),
            _ => false,
        }
    }
}

/// When a step is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum When {
    /// Before CRIU is asked.
    Before,
    /// It is what CRIU is asked.
    Request,
    /// At a callback, while CRIU waits.
    At(Script),
    /// After CRIU has ended well.
    After,
}

impl When {
    /// Its place in an operation.
    pub(super) fn place(&self) -> usize {
        /// In the order in which CRIU comes to them.
        const SCRIPTS: [Script; 14] = [
            Script::PreStream,
            Script::PreDump,
            Script::NetworkLock,
            Script::QueryExternalFiles,
            Script::PostDump,
            Script::StatusReady,
            Script::PreRestore,
            Script::SetupNamespaces,
            Script::PostSetupNamespaces,
            Script::OrphanPtsMaster,
            Script::PostRestore,
            Script::NetworkUnlock,
            Script::PreResume,
            Script::PostResume,
        ];
        let at = |script: &Script| {
            let known = SCRIPTS.iter().position(|known| known == script);
            known.unwrap_or(SCRIPTS.len())
        };
        match self {
            Self::Before => 0,
            Self::Request => 1,
            Self::At(script) => 2 + at(script),
            Self::After => usize::MAX,
        }
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Before => f.write_str("before"),
            Self::Request => f.write_str("request"),
            Self::At(script) => script.fmt(f),
            Self::After => f.write_str("after"),
        }
    }
}

fn as_text<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(
    tag = "action",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase"
)]
#[non_exhaustive]
pub enum Action {
    /// Makes a directory of the caller's, with what is missing above it.
    MakeDirectory {
        /// The directory.
        path: PathBuf,
        /// What is to be made, outermost first; nothing when it is there.
        make: Vec<PathBuf>,
    },
    /// Makes an empty log for CRIU to write to.
    WriteLog {
        /// The log.
        path: PathBuf,
    },
    /// Asks CRIU.
    Ask {
        /// CRIU's name of the request.
        request: String,
    },
    /// Puts links to the images where an engine reads them.
    LinkImages {
        /// The directory that is made for them.
        directory: PathBuf,
    },
    /// Removes such links.
    UnlinkImages {
        /// The directory.
        directory: PathBuf,
    },
    /// Asks an engine over its API.
    AskEngine {
        /// What, in the API's own words.
        request: String,
    },
    /// Runs a program: a hook of the caller's, or one of the container's configuration.
    RunProgram {
        /// The program.
        program: PathBuf,
    },
    /// Removes a file, if it is there.
    RemoveFile {
        /// The file.
        path: PathBuf,
    },
    /// Writes a file.
    WriteFile {
        /// The file.
        path: PathBuf,
    },
    /// Puts a link to images, or a file with them, where an engine looks for them, for the time of the restore. What is there is put
    /// aside, and comes back.
    PutLink {
        /// The link.
        path: PathBuf,
        /// What it leads to.
        to: PathBuf,
    },
    /// Notes in an engine's directory of a container that its checkpoint is complete, should nobody come to remove it.
    MarkComplete {
        /// The file.
        path: PathBuf,
    },
    /// Writes a zero byte to a descriptor of the caller's.
    SignalReady,
    /// Waits until a process has ended.
    AwaitEnd {
        /// The process.
        pid: i32,
    },
    /// Removes control groups.
    RemoveCgroups {
        /// Their directories.
        groups: Vec<PathBuf>,
    },
    /// Removes an engine's directory of a container.
    RemoveRecord {
        /// The directory.
        directory: PathBuf,
    },
    /// Undoes what restores have left whose process is gone.
    UndoDeadRestores {
        /// The engines' directories of the containers; none when there is nothing to undo.
        containers: Vec<PathBuf>,
    },
    /// Begins a journal of what is made, with a directory for the root file system's mount.
    BeginJournal {
        /// Where journals are.
        directory: PathBuf,
    },
    /// Makes an engine's directory for a container, which reserves its name.
    ReserveRecord {
        /// The directory.
        directory: PathBuf,
    },
    /// Sees to it that a mount point exists.
    EnsureMountPoint {
        /// The directory on the host that the path counts from.
        below: PathBuf,
        /// The path.
        path: PathBuf,
        /// A bind mount's source, which says whether it is a directory; any other mount point is one.
        like: Option<PathBuf>,
        /// What is to be made, outermost first; nothing when it is there.
        make: Vec<PathBuf>,
    },
    /// Has systemd start a container's scope, with a process that holds the place for the container's.
    StartUnit {
        /// The unit.
        unit: String,
        /// The slice that it is in.
        slice: String,
    },
    /// Ends the process that has held the place.
    LeaveUnit {
        /// The unit.
        unit: String,
    },
    /// Has systemd stop a container's scope, if it is there.
    StopUnit {
        /// The unit.
        unit: String,
    },
    /// Makes control groups.
    MakeCgroups {
        /// What is to be made, outermost first; nothing when they are there.
        make: Vec<PathBuf>,
    },
    /// Sets a container's limits in its control groups, and thaws them.
    ApplyLimits {
        /// Their directories.
        groups: Vec<PathBuf>,
    },
    /// Binds the root file system on a directory of its own for the time of the restore.
    BindRoot {
        /// The root file system.
        rootfs: PathBuf,
        /// The directory.
        at: PathBuf,
    },
    /// Brings the loopback interface of the restored network namespace up.
    BringLoopbackUp,
    /// Sends the master of the container's terminal.
    SendTerminal {
        /// To the receiver behind this socket.
        socket: PathBuf,
    },
    /// Moves restored tasks that are in no control group of the container's into them.
    JoinCgroups,
    /// Writes an engine's record of a container, which makes it the engine's.
    WriteRecord {
        /// The file.
        path: PathBuf,
    },
    /// Takes the root file system's mount off and ends the journal.
    EndJournal {
        /// The mount.
        root: PathBuf,
    },
}

impl Action {
    fn undo(&self, when: &When) -> Undo {
        match self {
            Self::Ask { request } if request == "RESTORE" => Undo::TasksGone,
            Self::Ask { .. } => Undo::TasksRunOn,
            // Engines are asked for restores only.
            Self::AskEngine { .. } => Undo::TasksGone,
            // What comes after a success is not for a failure to undo.
            _ if *when == When::After => Undo::Nothing,
            Self::WriteLog { .. } => Undo::IfEmpty,
            Self::LinkImages { .. } => Undo::Removed,
            Self::ReserveRecord { .. }
            | Self::BeginJournal { .. }
            | Self::EnsureMountPoint { .. }
            | Self::StartUnit { .. }
            | Self::MakeCgroups { .. }
            | Self::ApplyLimits { .. }
            | Self::BindRoot { .. }
            | Self::BringLoopbackUp
            | Self::JoinCgroups
            | Self::MarkComplete { .. }
            | Self::PutLink { .. }
            | Self::WriteRecord { .. } => Undo::Removed,
            _ => Undo::Stays,
        }
    }
}

/// What becomes of a step when the operation fails, is refused, cancelled, or its process killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Undo {
    /// It is undone; after a killed process by the next restore.
    Removed,
    /// It is removed when CRIU has written nothing to it.
    IfEmpty,
    /// It is not undone, and need not be.
    Stays,
    /// The tasks run on as before.
    TasksRunOn,
    /// None of the tasks is left.
    TasksGone,
    /// There is nothing to undo any more: the operation has succeeded.
    Nothing,
}

impl fmt::Display for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Removed => "undone",
            Self::IfEmpty => "removed, if CRIU has written nothing to it",
            Self::Stays => "stays so",
            Self::TasksRunOn => "the tasks run on",
            Self::TasksGone => "none of the tasks is left",
            Self::Nothing => "nothing, as the operation has succeeded by then",
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths = |paths: &[PathBuf]| {
            let paths: Vec<String> = paths.iter().map(|path| shown(path)).collect();
            paths.join(", ")
        };
        match self {
            Self::MakeDirectory { path, .. } => write!(f, "make the directory {}", shown(path)),
            Self::WriteLog { path } => write!(f, "make the log {}", shown(path)),
            Self::Ask { request } => write!(f, "send CRIU the request {request}"),
            Self::LinkImages { directory } => {
                write!(f, "make links to the images in {}", shown(directory))
            }
            Self::UnlinkImages { directory } => {
                write!(f, "remove {} with the links in it", shown(directory))
            }
            Self::AskEngine { request } => write!(f, "ask the engine: {request}"),
            Self::RunProgram { program } => write!(f, "run {}", shown(program)),
            Self::RemoveFile { path } => write!(f, "remove {}, if it is there", shown(path)),
            Self::WriteFile { path } => write!(f, "write {}", shown(path)),
            Self::PutLink { path, to } => write!(
                f,
                "put a link to {} at {} for the time of the restore",
                shown(to),
                shown(path)
            ),
            Self::MarkComplete { path } => {
                write!(f, "note in {} that the checkpoint is complete", shown(path))
            }
            Self::SignalReady => f.write_str("write a zero byte to --status-fd"),
            Self::AwaitEnd { pid } => write!(f, "wait until process {pid} has ended"),
            Self::RemoveCgroups { groups } => {
                write!(f, "remove the control groups {}", paths(groups))
            }
            Self::RemoveRecord { directory } => {
                write!(f, "remove the engine's record {}", shown(directory))
            }
            Self::UndoDeadRestores { containers } => write!(
                f,
                "undo what restores have left whose process is gone: {}",
                paths(containers)
            ),
            Self::BeginJournal { directory } => {
                write!(
                    f,
                    "begin a journal of what is made, in {}",
                    shown(directory)
                )
            }
            Self::ReserveRecord { directory } => {
                write!(f, "make the engine's directory {}", shown(directory))
            }
            Self::EnsureMountPoint {
                below, path, make, ..
            } if make.is_empty() => write!(
                f,
                "the mount point {} below {} is there",
                shown(path),
                shown(below)
            ),
            Self::EnsureMountPoint { below, make, .. } => {
                write!(
                    f,
                    "make the mount point {} below {}",
                    paths(make),
                    shown(below)
                )
            }
            Self::StartUnit { unit, slice } => {
                write!(f, "have systemd start the scope {unit} in {slice}")
            }
            Self::LeaveUnit { unit } => {
                write!(f, "end the process that has held the place in {unit}")
            }
            Self::StopUnit { unit } => write!(f, "have systemd stop {unit}, if it is there"),
            Self::MakeCgroups { make } => write!(f, "make the control groups {}", paths(make)),
            Self::ApplyLimits { groups } => {
                write!(f, "set the container's limits in {}", paths(groups))
            }
            Self::BindRoot { rootfs, at } => write!(f, "bind {} on {}", shown(rootfs), shown(at)),
            Self::BringLoopbackUp => f.write_str("bring the loopback interface up"),
            Self::SendTerminal { socket } => {
                write!(f, "send the terminal to {}", shown(socket))
            }
            Self::JoinCgroups => {
                f.write_str("move tasks that are elsewhere into the control groups")
            }
            Self::WriteRecord { path } => write!(f, "write the engine's record {}", shown(path)),
            Self::EndJournal { root } => {
                write!(f, "unmount {} and end the journal", shown(root))
            }
        }
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
