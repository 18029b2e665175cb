//! What of a container goes into an archive beside its images.

use std::path::PathBuf;

/// The parts that there are. Paths are those of this process's mount namespace, and stay valid as long as the container's first
/// process is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parts {
    /// The engine's description of the container, in the form of Podman's `config.dump`.
    pub(crate) config: Vec<u8>,
    /// The configuration that the runtime had.
    pub(crate) spec: Vec<u8>,
    /// The container's addresses, in the form of Podman's `network.status`.
    pub(crate) network: Vec<u8>,
    /// Its log so far.
    pub(crate) log: Option<PathBuf>,
    /// Its own `/dev/shm`, where that is a mount that its engine makes.
    pub(crate) shm: Option<PathBuf>,
    /// Its root.
    pub(crate) root: PathBuf,
    /// Where its root differs from that of its image.
    pub(crate) changes: Changes,
    /// Paths in its root that its engine or its runtime makes anew.
    pub(crate) made: Vec<PathBuf>,
    /// Its named volumes, and where they are.
    pub(crate) volumes: Vec<(String, PathBuf)>,
}

/// How a container's root is kept.
#[derive(Debug, Clone, Default)]
pub(crate) enum Changes {
    /// In an overlay: what the uppermost layer has was changed. The lower ones begin with the uppermost.
    #[cfg_attr(not(feature = "engine"), allow(dead_code))]
    Overlay { upper: PathBuf, lower: Vec<PathBuf> },
    /// Nobody can tell.
    #[default]
    Unknown,
}
