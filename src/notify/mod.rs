//! Callbacks: what CRIU asks while it works, and what may be answered.
//!
//! CRIU sends a callback and then waits; nothing of it goes on until the answer is there. Callbacks of one operation
//! come one at a time and in this order (the state of the tasks in brackets, what a refusal does after the dash):
//!
//! | dump | |
//! |---|---|
//! | [`Event::PreStream`] | CRIU 4.3 with streaming, before anything (running) — the dump fails |
//! | [`Event::PreDump`] | before anything is seized (running) — the dump fails, the tasks were not touched |
//! | [`Event::NetworkLock`] | only for tasks in a network namespace other than CRIU's, before the lock (stopped) — the dump fails, the tasks run on |
//! | [`Event::QueryExternalFiles`] | since 3.19, tree seized and network locked (stopped) — as above; may be answered with [`Reply::ExternalFiles`] |
//! | [`Event::PostDump`] | every image is written (stopped) — the dump fails, the tasks run on even if they were to be killed; the images stay |
//! | [`Event::NetworkUnlock`] | the tasks are about to run on (stopped) — **ignored** |
//! | [`Event::StatusReady`] | lazy dump, pages can be fetched (stopped) — the dump fails, the tasks run on |
//!
//! | restore | |
//! |---|---|
//! | [`Event::PreStream`] | as above |
//! | [`Event::PreRestore`] | images are read, no task exists — the restore fails |
//! | [`Event::SetupNamespaces`] | the root task waits in new namespaces — the tree is killed |
//! | [`Event::PostSetupNamespaces`] | namespaces are set up, the other tasks do not exist yet — the tree is killed |
//! | [`Event::OrphanPtsMaster`] | a terminal's master for the caller — the restore normally fails |
//! | [`Event::PostRestore`] | everything is restored and nothing runs: the last moment to refuse — the tree is killed |
//! | [`Event::NetworkUnlock`] | the network goes up — **ignored** |
//! | [`Event::PreResume`] | the tasks stand at their last gate — **ignored** |
//! | [`Event::PostResume`] | the tasks run — **ignored** |
//!
//! A refusal that CRIU ignores is not lost: the operation's report lists it. Pre-dumps, checks and cpuinfo requests
//! have no callbacks. A failed restore sends none to say so.

mod adapters;
pub(crate) mod guard;

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

pub use adapters::{HookTable, Program, ProgramError, hook_fn};

use crate::error::OperationKind;
use crate::options::ExternalOnDump;

/// The name of a callback.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Script {
    /// `pre-stream`
    PreStream,
    /// `pre-dump`
    PreDump,
    /// `network-lock`
    NetworkLock,
    /// `query-ext-files`
    QueryExternalFiles,
    /// `post-dump`
    PostDump,
    /// `network-unlock`
    NetworkUnlock,
    /// `status-ready`
    StatusReady,
    /// `pre-restore`
    PreRestore,
    /// `setup-namespaces`
    SetupNamespaces,
    /// `post-setup-namespaces`
    PostSetupNamespaces,
    /// `orphan-pts-master`
    OrphanPtsMaster,
    /// `post-restore`
    PostRestore,
    /// `pre-resume`
    PreResume,
    /// `post-resume`
    PostResume,
    /// A callback of a newer CRIU, under CRIU's name.
    Other(String),
}

impl Script {
    const KNOWN: [(Script, &'static str); 14] = [
        (Self::PreStream, "pre-stream"),
        (Self::PreDump, "pre-dump"),
        (Self::NetworkLock, "network-lock"),
        (Self::QueryExternalFiles, "query-ext-files"),
        (Self::PostDump, "post-dump"),
        (Self::NetworkUnlock, "network-unlock"),
        (Self::StatusReady, "status-ready"),
        (Self::PreRestore, "pre-restore"),
        (Self::SetupNamespaces, "setup-namespaces"),
        (Self::PostSetupNamespaces, "post-setup-namespaces"),
        (Self::OrphanPtsMaster, "orphan-pts-master"),
        (Self::PostRestore, "post-restore"),
        (Self::PreResume, "pre-resume"),
        (Self::PostResume, "post-resume"),
    ];

    /// All callbacks that CRIU has up to 4.3.
    pub fn known() -> impl Iterator<Item = Script> {
        Self::KNOWN.into_iter().map(|(script, _)| script)
    }

    /// CRIU's name for it, such as `post-dump`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Other(name) => name,
            known => Self::KNOWN
                .iter()
                .find(|(script, _)| script == known)
                .map_or("", |(_, name)| name),
        }
    }

    /// The callback of this name; one that is not known becomes [`Script::Other`].
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        Self::KNOWN
            .into_iter()
            .find(|(_, known)| *known == name)
            .map_or_else(|| Self::Other(name.to_owned()), |(script, _)| script)
    }

    /// Whether CRIU ignores a refusal of this callback within `operation` and goes on.
    #[must_use]
    pub fn refusal_is_ignored(&self, operation: OperationKind) -> bool {
        match operation {
            OperationKind::Dump => matches!(self, Self::NetworkUnlock),
            OperationKind::Restore => matches!(
                self,
                Self::NetworkUnlock | Self::PreResume | Self::PostResume
            ),
            _ => false,
        }
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Script {
    type Err = UnknownScript;

    /// Reads a known name only: a misspelt hook would never fire.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match Self::from_name(name) {
            Self::Other(name) => Err(UnknownScript(name)),
            script => Ok(script),
        }
    }
}

impl Serialize for Script {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A name that no callback of CRIU has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("criu has no callback named {0:?}; there are {names}", names = names())]
pub struct UnknownScript(String);

fn names() -> Cow<'static, str> {
    Script::KNOWN.map(|(_, name)| name).join(", ").into()
}

/// A callback with what comes along. Pids are those of CRIU's own pid namespace.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// Images are about to be streamed (CRIU 4.3).
    PreStream,
    /// A dump begins; nothing is seized yet.
    PreDump,
    /// The network of the tasks' namespace is about to be locked.
    NetworkLock,
    /// The tasks are stopped: the time to find out about files that only the caller can handle.
    QueryExternalFiles,
    /// All images are written; the tasks are still stopped.
    PostDump,
    /// The network goes up again.
    NetworkUnlock,
    /// A lazy dump or a page server listens.
    StatusReady,
    /// A restore begins; nothing is created yet.
    PreRestore,
    /// The root task exists in its new namespaces and waits.
    SetupNamespaces {
        /// The root task.
        pid: i32,
    },
    /// The namespaces are set up.
    PostSetupNamespaces,
    /// The other end of a restored terminal, which is the receiver's from now on: as long as it is open the terminal lives.
    OrphanPtsMaster {
        /// The pty master, close-on-exec, unlocked.
        master: OwnedFd,
    },
    /// Everything is restored, nothing runs yet.
    PostRestore {
        /// The root task.
        pid: i32,
    },
    /// The tasks are about to run.
    PreResume,
    /// The tasks run.
    PostResume,
    /// A callback that this library does not know, or a known one without what belongs to it.
    Other {
        /// CRIU's name for it.
        name: String,
        /// The pid that came along.
        pid: Option<i32>,
        /// The descriptors that came along.
        fds: Vec<OwnedFd>,
    },
}

impl Event {
    pub(crate) fn new(name: &str, pid: Option<i32>, mut fds: Vec<OwnedFd>) -> Self {
        let other = |fds| Self::Other {
            name: name.to_owned(),
            pid,
            fds,
        };
        match (Script::from_name(name), pid) {
            (Script::PreStream, _) => Self::PreStream,
            (Script::PreDump, _) => Self::PreDump,
            (Script::NetworkLock, _) => Self::NetworkLock,
            (Script::QueryExternalFiles, _) => Self::QueryExternalFiles,
            (Script::PostDump, _) => Self::PostDump,
            (Script::NetworkUnlock, _) => Self::NetworkUnlock,
            (Script::StatusReady, _) => Self::StatusReady,
            (Script::PreRestore, _) => Self::PreRestore,
            (Script::SetupNamespaces, Some(pid)) => Self::SetupNamespaces { pid },
            (Script::PostSetupNamespaces, _) => Self::PostSetupNamespaces,
            (Script::OrphanPtsMaster, _) if fds.len() == 1 => match fds.pop() {
                Some(master) => Self::OrphanPtsMaster { master },
                None => other(fds),
            },
            (Script::PostRestore, Some(pid)) => Self::PostRestore { pid },
            (Script::PreResume, _) => Self::PreResume,
            (Script::PostResume, _) => Self::PostResume,
            _ => other(fds),
        }
    }

    /// Which callback it is.
    #[must_use]
    pub fn script(&self) -> Script {
        match self {
            Self::PreStream => Script::PreStream,
            Self::PreDump => Script::PreDump,
            Self::NetworkLock => Script::NetworkLock,
            Self::QueryExternalFiles => Script::QueryExternalFiles,
            Self::PostDump => Script::PostDump,
            Self::NetworkUnlock => Script::NetworkUnlock,
            Self::StatusReady => Script::StatusReady,
            Self::PreRestore => Script::PreRestore,
            Self::SetupNamespaces { .. } => Script::SetupNamespaces,
            Self::PostSetupNamespaces => Script::PostSetupNamespaces,
            Self::OrphanPtsMaster { .. } => Script::OrphanPtsMaster,
            Self::PostRestore { .. } => Script::PostRestore,
            Self::PreResume => Script::PreResume,
            Self::PostResume => Script::PostResume,
            Self::Other { name, .. } => Script::from_name(name),
        }
    }
}

/// One callback as a hook gets it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Notify {
    /// The callback and what came along.
    pub event: Event,
    /// The operation that it belongs to.
    pub operation: OperationKind,
    /// The root task where CRIU tells it: dumped tasks as they were asked for, restored ones from
    /// [`Event::SetupNamespaces`] or [`Event::PostRestore`] on.
    pub root: Option<i32>,
    /// The images directory as it was opened by path, or below `/proc/self/fd` when it was given as a descriptor.
    pub images_dir: Arc<Path>,
}

impl Notify {
    /// Which callback it is.
    #[must_use]
    pub fn script(&self) -> Script {
        self.event.script()
    }
}

/// The answer to a callback.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// Go on.
    Accept,
    /// Give up, for this reason; what that undoes depends on the callback (see the [module](self)).
    Refuse(String),
    /// Go on, and treat these as external. Only [`Event::QueryExternalFiles`] has a use for it; elsewhere it is [`Reply::Accept`].
    ExternalFiles(Vec<ExternalOnDump>),
}

/// What a hook may fail with: the operation's error carries it as its source.
pub type HookError = Box<dyn std::error::Error + Send + Sync>;

/// Answers the callbacks of an operation.
///
/// Called in order, one at a time, with CRIU waiting. An error, a panic or a reply that takes longer than the hook limit
/// of the operation becomes exactly one refusal; the operation then reads on to CRIU's final answer and ends with an
/// error that carries the hook's own. A hook's future is dropped when the operation is cancelled or runs out of time.
///
/// `()` accepts everything. [`hook_fn`] makes hooks of a closure, [`Program`] of an external program, [`HookTable`]
/// picks by callback.
pub trait Hooks: Send {
    /// Answers one callback.
    fn notify(&mut self, notify: Notify) -> impl Future<Output = Result<Reply, HookError>> + Send;
}

impl Hooks for () {
    async fn notify(&mut self, _: Notify) -> Result<Reply, HookError> {
        Ok(Reply::Accept)
    }
}

impl<H: Hooks> Hooks for &mut H {
    fn notify(&mut self, notify: Notify) -> impl Future<Output = Result<Reply, HookError>> + Send {
        (**self).notify(notify)
    }
}

/// A boxed future of a hook's answer.
pub type HookFuture<'a> = Pin<Box<dyn Future<Output = Result<Reply, HookError>> + Send + 'a>>;

/// The form of [`Hooks`] that can be a trait object; every [`Hooks`] has it.
pub trait DynHooks: Send {
    /// Answers one callback.
    fn notify_dyn(&mut self, notify: Notify) -> HookFuture<'_>;
}

impl<H: Hooks> DynHooks for H {
    fn notify_dyn(&mut self, notify: Notify) -> HookFuture<'_> {
        Box::pin(self.notify(notify))
    }
}

impl Hooks for Box<dyn DynHooks + '_> {
    fn notify(&mut self, notify: Notify) -> impl Future<Output = Result<Reply, HookError>> + Send {
        (**self).notify_dyn(notify)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for script in Script::known() {
            assert_eq!(Script::from_name(script.as_str()), script);
            assert_eq!(script.as_str().parse::<Script>(), Ok(script));
        }
        assert_eq!(
            Script::from_name("pre-lunch"),
            Script::Other("pre-lunch".into())
        );
        let error = "pre-lunch".parse::<Script>().unwrap_err().to_string();
        assert!(
            error.contains("pre-lunch") && error.contains("post-dump"),
            "{error}"
        );
    }

    #[test]
    fn every_name_becomes_its_event() {
        for script in Script::known() {
            let (fd, _) = crate::rpc::transport::pair().unwrap();
            let event = Event::new(script.as_str(), Some(5), vec![fd]);
            assert_eq!(event.script(), script);
            assert!(!matches!(event, Event::Other { .. }), "{event:?}");
        }
    }

    #[test]
    fn a_pty_callback_without_its_descriptor_is_not_taken_for_one() {
        let event = Event::new("orphan-pts-master", None, Vec::new());
        assert!(matches!(event, Event::Other { .. }));
        assert_eq!(event.script(), Script::OrphanPtsMaster);
    }
}
