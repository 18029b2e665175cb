//! What OCI runtimes have in common, which is nearly everything: [`runc`](super::runc) and [`crun`](super::crun) differ in
//! their records and in few habits.
//!
//! A container that such a runtime started is checkpointed over this library's own RPC, and what is restored is a container
//! to the runtime again (`list`, `state`, `exec`, `pause`, `kill`, `delete`, `checkpoint`). Images go from each runtime to
//! each, whoever has made them.
//!
//! Where a restore differs from the runtimes' own, it does so on purpose: the loopback interface of a private network
//! namespace is up, and cgroup v1 mounts show the container's own groups instead of the restorer's.

mod acl;
pub(super) mod beside;
mod checkpoint;
mod console;
pub(super) mod engine;
mod options;
mod prepare;
mod removal;
mod restore;
mod sharing;
mod steps;
mod unit;

use std::marker::PhantomData;
use std::path::{Path, PathBuf};

pub use beside::engine_of;
pub use checkpoint::CheckpointReport;
pub use engine::Engine;
pub use options::{CheckpointOptions, RestoreOptions};
pub use restore::Restored;

use super::adopt::Undoing;
use super::cgroup;
use super::error::{Error, ErrorKind, Result};
use super::model::{EngineKind, Live, Model, Mount, MountEntry, MountKind, Status, is_valid_id};
use super::plan::{Consumer, DumpPlan};
use engine::Record;

/// A runtime's containers of one root. Cheap to make and to clone.
#[derive(Debug, Clone)]
pub struct Runtime<E> {
    root: PathBuf,
    undoing: Undoing,
    engine: PhantomData<E>,
}

/// An engine above the runtime, whose container it is as well: that one removes what remains of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub(crate) engine: EngineKind,
    /// The container's full id.
    pub(crate) id: &'a str,
    /// Where the engine mounts what the container gets, and takes it down when that ends.
    pub(crate) mounts: &'a [PathBuf],
}

/// A container as it was found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Container<E: Engine> {
    /// What it is.
    pub model: Model,
    /// What it does.
    pub status: Status,
    /// What `/proc` says of it; `None` when it is stopped.
    pub live: Option<Live>,
    record: E::Record,
}

impl<E: Engine> Default for Runtime<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E: Engine> Runtime<E> {
    /// The containers that the runtime has when it is given no `--root`.
    #[must_use]
    pub fn new() -> Self {
        Self::with_root(E::ROOT)
    }

    /// The containers of another `--root`.
    #[must_use]
    pub fn with_root(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            undoing: Undoing::new(),
            engine: PhantomData,
        }
    }

    /// Where the containers are.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Completes when everything is undone that dropped restores had made.
    pub async fn settled(&self) {
        self.undoing.done().await;
    }

    /// Looks at a container.
    ///
    /// # Errors
    /// [`ErrorKind::Unknown`] when there is none of this name, [`ErrorKind::State`] when its record cannot be read.
    pub fn load(&self, id: &str) -> Result<Container<E>> {
        self.find(id).map_err(|kind| Error::new(E::KIND, id, kind))
    }

    pub(crate) fn find(&self, id: &str) -> std::result::Result<Container<E>, ErrorKind> {
        let directory = self.directory(id)?;
        let Some(record) = E::Record::read(&directory)? else {
            let root = self.root.clone();
            return Err(ErrorKind::Unknown { root });
        };
        let status = engine::status(record.init(), record.cgroups(), &directory);
        let live = match status {
            Status::Stopped => None,
            _ => {
                let processes = cgroup::processes(record.cgroups())
                    .map_err(ErrorKind::system("looking into control groups"))?;
                let live = Live::read(record.init(), record.noted_stdio(), processes.into_keys());
                Some(live.map_err(ErrorKind::system(format!(
                    "reading /proc/{}",
                    record.init().pid
                )))?)
            }
        };
        let terminal = live
            .as_ref()
            .is_some_and(|live| live.stdio[0].starts_with("/dev/pts/"));
        Ok(Container {
            model: record.model(terminal)?,
            status,
            live,
            record,
        })
    }

    /// A container's directory, whether it is there or not.
    fn directory(&self, id: &str) -> std::result::Result<PathBuf, ErrorKind> {
        match is_valid_id(id) {
            true => Ok(self.root.join(id)),
            false => Err(ErrorKind::InvalidId),
        }
    }
}

impl<E: Engine> Container<E> {
    /// What an engine has mounted from memory is gone with the container, so it goes into the images, as if the container had
    /// mounted it by itself. `directories` are where the engine mounts.
    pub(crate) fn take_in(&mut self, directories: &[PathBuf]) {
        let Some(live) = &self.live else {
            return;
        };
        for mount in &mut self.model.mounts {
            // CRIU does not save what would propagate to mounts that are not in the images.
            if is_of_memory(mount, live, directories).is_some_and(|found| !found.propagates) {
                mount.kind = MountKind::Tmpfs;
            }
        }
    }

    /// What could not be taken in.
    #[cfg(feature = "engine")]
    pub(crate) fn left_out(&self, directories: &[PathBuf]) -> impl Iterator<Item = &Mount> {
        let live = self.live.as_ref();
        self.model.mounts.iter().filter(move |mount| {
            live.is_some_and(|live| is_of_memory(mount, live, directories).is_some())
        })
    }

    /// What a checkpoint would ask of CRIU; nothing is done.
    ///
    /// # Errors
    /// [`ErrorKind::NotRunning`] when there is nothing to checkpoint.
    pub fn dump_plan(&self, consumer: Consumer) -> Result<DumpPlan> {
        self.plan(consumer)
            .map_err(|kind| Error::new(E::KIND, &self.model.id, kind))
    }

    pub(crate) fn plan(&self, consumer: Consumer) -> std::result::Result<DumpPlan, ErrorKind> {
        let status = self.status;
        let live = match (&self.live, status) {
            (Some(live), Status::Running | Status::Paused) => live,
            _ => return Err(ErrorKind::NotRunning { status }),
        };
        if self.record.is_rootless() {
            return Err(ErrorKind::Unsupported(engine::ROOTLESS.into()));
        }
        if let Some(why) = self.model.cannot_be_restored() {
            return Err(ErrorKind::Unsupported(why));
        }
        let noted = self.record.noted_stdio();
        Ok(DumpPlan::new(&self.model, live, noted, consumer))
    }
}

/// The mount of a whole file system in memory that is bound from one of `directories`.
fn is_of_memory<'a>(
    mount: &Mount,
    live: &'a Live,
    directories: &[PathBuf],
) -> Option<&'a MountEntry> {
    let theirs = directories
        .iter()
        .any(|path| mount.source.starts_with(path));
    (theirs && mount.kind == MountKind::Bind)
        .then(|| live.mount_at(&mount.target))
        .flatten()
        .filter(|found| found.fs_type == "tmpfs" && found.root == Path::new("/"))
}
