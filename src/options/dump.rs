use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::common::{
    Common, Modern, Tracking, Transfer, Tree, common_setters, flags, modern_setters,
    tracking_setters, transfer_setters, tree_setters,
};
use super::external::ExternalOnDump;
use super::values::{Compression, Leave, NetworkLock};

/// What a dump does beyond writing the images of a task tree. See the [module](super) for what all options have in common.
///
/// ```
/// use criu_client::options::{DumpOptions, ExternalOnDump, Leave};
///
/// let options = DumpOptions::new()
///     .leave(Leave::Running)
///     .tcp_established(true)
///     .external("mnt[/data]:data".parse()?);
/// # Ok::<(), criu_client::options::InvalidOption>(())
/// ```
#[derive(Debug, Default)]
#[non_exhaustive]
#[must_use]
pub struct DumpOptions {
    pub(super) common: Common,
    pub(super) tree: Tree,
    pub(super) modern: Modern,
    pub(super) tracking: Tracking,
    pub(super) transfer: Transfer,
    pub(super) leave: Option<Leave>,
    pub(super) tcp_skip_in_flight: Option<bool>,
    pub(super) auto_dedup: Option<bool>,
    pub(super) ghost_limit: Option<u64>,
    pub(super) external: Vec<ExternalOnDump>,
    pub(super) skip_mounts: Vec<PathBuf>,
    pub(super) cgroup_props: Option<String>,
    pub(super) cgroup_props_file: Option<PathBuf>,
    pub(super) cgroup_controllers: Vec<String>,
    pub(super) status_fd: Option<OwnedFd>,
    pub(super) network_lock: Option<NetworkLock>,
    pub(super) compression: Option<Compression>,
}

common_setters!(DumpOptions);
tree_setters!(DumpOptions);
modern_setters!(DumpOptions);
tracking_setters!(DumpOptions);
transfer_setters!(
    DumpOptions,
    /// Sends pages to a page server instead of the images directory. Long option `--page-server` with `--address` and
    /// `--port`, or `--ps-socket`.
    ///
    /// The server's images directory then holds the pages and their maps, ours the rest: merge them before a restore.
    page_server
);

impl DumpOptions {
    /// What happens to the tasks afterwards. Long options `--leave-running`, `--leave-stopped`.
    ///
    /// [`Leave::Killed`] is what CRIU does by itself and sends nothing, so a configuration file can still say otherwise.
    pub fn leave(mut self, leave: Leave) -> Self {
        self.leave = Some(leave);
        self
    }

    flags! { own {
        /// Whether TCP connections that nobody has accepted yet are left out instead of failing the dump. Long option
        /// `--skip-in-flight`.
        tcp_skip_in_flight;
        /// Whether pages that this dump writes are punched out of the images before it. Implies tracking. Long option
        /// `--auto-dedup`. On a restore the same option destroys the images as it reads them.
        auto_dedup;
    } }

    /// The largest deleted file, in bytes, that is carried in the images. Long option `--ghost-limit`; 1 MiB without it.
    ///
    /// Less than 4 GiB.
    pub fn ghost_limit(mut self, bytes: u64) -> Self {
        self.ghost_limit = Some(bytes);
        self
    }

    /// Adds a resource that is left out of the images. Long option `--external`. The restore needs its counterpart.
    pub fn external(mut self, resource: ExternalOnDump) -> Self {
        self.external.push(resource);
        self
    }

    /// Adds a mount point, as the tasks see it, that is not dumped. Long option `--skip-mnt`.
    pub fn skip_mount(mut self, mountpoint: impl Into<PathBuf>) -> Self {
        self.skip_mounts.push(mountpoint.into());
        self
    }

    /// Further properties of control groups to dump, in the YAML-like form of CRIU's manual. Long option `--cgroup-props`.
    pub fn cgroup_props(mut self, specification: impl Into<String>) -> Self {
        self.cgroup_props = Some(specification.into());
        self
    }

    /// A file with what [`cgroup_props`](Self::cgroup_props) takes; an absolute path. Long option `--cgroup-props-file`.
    pub fn cgroup_props_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.cgroup_props_file = Some(path.into());
        self
    }

    /// Adds a control group controller to dump; all others are left out then. Long option `--cgroup-dump-controller`.
    pub fn cgroup_controller(mut self, name: impl Into<String>) -> Self {
        self.cgroup_controllers.push(name.into());
        self
    }

    /// A pipe or file to which CRIU writes one zero byte when a lazy dump is ready to serve pages. Long option
    /// `--status-fd`.
    ///
    /// CRIU opens it anew through `/proc`, so it cannot be a socket; ours is kept open until CRIU has answered. Obsolete: the
    /// event status-ready says the same.
    pub fn status_fd(mut self, fd: OwnedFd) -> Self {
        self.status_fd = Some(fd);
        self
    }

    /// How the network is locked. Long option `--network-lock`. Since CRIU 3.16. Without it: what CRIU was built for. A restore
    /// reads the method from the images.
    pub fn network_lock(mut self, method: NetworkLock) -> Self {
        self.network_lock = Some(method);
        self
    }

    pub(crate) fn chosen_network_lock(&self) -> Option<NetworkLock> {
        self.network_lock
    }

    /// Whether the tasks are gone after the dump.
    #[cfg(feature = "archive")]
    pub(crate) fn ends_tasks(&self) -> bool {
        !matches!(self.leave, Some(Leave::Running | Leave::Stopped))
    }

    pub(crate) fn keeps_connections(&self) -> bool {
        self.tree.tcp_established == Some(true)
    }

    /// Whether and how pages are compressed. Long option `--compress` and those that begin with `--compress-`. Since CRIU 4.3.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = Some(compression);
        self
    }
}
