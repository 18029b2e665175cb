//! runc.
//!
//! What `runc checkpoint` and `runc restore` do, over this library's own RPC: a container that runc started is
//! checkpointed, and what is restored is a container to runc again (`list`, `state`, `exec`, `pause`, `kill`, `delete`,
//! `checkpoint`). Images go both ways: runc restores what was checkpointed here, and the other way round.
//!
//! Where a restore differs from runc's own, it does so on purpose: the loopback interface of a private network namespace
//! is up, cgroup v1 mounts show the container's own groups instead of the restorer's, masked files stay what they were.
//!
//! ```no_run
//! use criu_client::container::runc::{CheckpointOptions, RestoreOptions, Runc};
//! use criu_client::{Criu, ImagesDir};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let (criu, runc) = (Criu::find()?, Runc::new());
//! let images = ImagesDir::create("/var/tmp/web")?;
//! runc.checkpoint(&criu, "web", &images, (), CheckpointOptions::new()).await?;
//! runc.restore(&criu, "web", &images, "/srv/bundles/web", (), RestoreOptions::new().detach(true)).await?;
//! # Ok(())
//! # }
//! ```

mod checkpoint;
mod config;
mod console;
mod limits;
mod options;
mod prepare;
mod record;
mod restore;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use checkpoint::CheckpointReport;
pub use options::{CheckpointOptions, RestoreOptions};
pub use restore::Restored;

use super::adopt::Undoing;
use super::cgroup;
use super::error::{Error, ErrorKind, Result};
use super::model::{EngineKind, Live, Model, Status, is_valid_id};
use super::plan::DumpPlan;
use record::Record;

/// Where runc keeps its containers.
const ROOT: &str = "/run/runc";
/// Says in a container's directory that its checkpoint is complete, and where. Should this process die before the
/// directory is removed, a restore knows that it may be.
const CHECKPOINTED: &str = "criuctl-checkpoint";
/// The copy of the record beside the images.
const SAVED_STATE: &str = "criuctl-runc-state.json";
/// The copy of the bundle's configuration beside the images.
const SAVED_CONFIG: &str = "criuctl-runc-config.json";
/// Whose container the images are of, and what the dump was asked.
const SAVED_PLAN: &str = "criuctl-container.json";
/// What the standard descriptors were.
const DESCRIPTORS: &str = "descriptors.json";

/// runc's containers of one root. Cheap to make and to clone.
#[derive(Debug, Clone)]
pub struct Runc {
    root: PathBuf,
    undoing: Undoing,
}

/// A container as it was found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Container {
    /// What it is.
    pub model: Model,
    /// What it does.
    pub status: Status,
    /// What `/proc` says of it; `None` when it is stopped.
    pub live: Option<Live>,
    record: Record,
}

impl Default for Runc {
    fn default() -> Self {
        Self::new()
    }
}

impl Runc {
    /// The containers that runc has when it is given no `--root`.
    #[must_use]
    pub fn new() -> Self {
        Self::with_root(ROOT)
    }

    /// The containers of another `--root`.
    #[must_use]
    pub fn with_root(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            undoing: Undoing::new(),
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
    pub fn load(&self, id: &str) -> Result<Container> {
        self.find(id)
            .map_err(|kind| Error::new(EngineKind::Runc, id, kind))
    }

    fn find(&self, id: &str) -> std::result::Result<Container, ErrorKind> {
        let directory = self.directory(id)?;
        let Some(record) = Record::read(&directory)? else {
            let root = self.root.clone();
            return Err(ErrorKind::Unknown { root });
        };
        let status = record.status(&directory);
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

impl Container {
    /// What a checkpoint would ask of CRIU; nothing is done.
    ///
    /// # Errors
    /// [`ErrorKind::NotRunning`] when there is nothing to checkpoint.
    pub fn dump_plan(&self) -> Result<DumpPlan> {
        self.plan()
            .map_err(|kind| Error::new(EngineKind::Runc, &self.model.id, kind))
    }

    fn plan(&self) -> std::result::Result<DumpPlan, ErrorKind> {
        let status = self.status;
        let live = match (&self.live, status) {
            (Some(live), Status::Running | Status::Paused) => live,
            _ => return Err(ErrorKind::NotRunning { status }),
        };
        if self.record.is_rootless() {
            return Err(ErrorKind::Unsupported(
                "it is rootless, and the control groups, mounts and devices of such a container cannot be restored"
                    .into(),
            ));
        }
        Ok(DumpPlan::new(&self.model, live, self.record.noted_stdio()))
    }
}
