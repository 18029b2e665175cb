//! What an engine says of a container to somebody who will do without the engine.

use std::path::PathBuf;

use super::model::{EngineKind, Status};
use crate::rootfs::Storage;

/// A container as its engine describes it.
#[derive(Debug, Clone)]
pub(super) struct Described {
    pub(super) engine: EngineKind,
    /// Its full id.
    pub(super) id: String,
    /// Its name, or the id where there is none.
    pub(super) name: String,
    pub(super) status: Status,
    /// What the engine records of the root file system.
    pub(super) storage: Option<Storage>,
    /// Where the engine mounts that.
    pub(super) mounted_at: Option<PathBuf>,
    /// The directory that is the root file system where the engine keeps none: the user's own.
    pub(super) directory: Option<PathBuf>,
    /// A directory with the `config.json`, which stays when the container has ended.
    pub(super) bundle: Option<PathBuf>,
    /// A configuration made of what the engine tells, for images beside which there is none.
    pub(super) config: Option<serde_json::Value>,
    /// Why the engine's own restore is not to be had, or that it is.
    pub(super) native: Option<String>,
}
