//! The options of the runtimes' own commands, under runc's names for them.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::container::plan::Consumer;
use crate::options::{self, CgroupMode, DumpOptions, PageTransport};

/// What a restore has to be told again that a checkpoint was told.
#[cfg(feature = "engine")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Repeated {
    tcp_established: Option<bool>,
    ext_unix_sk: Option<bool>,
    shell_job: Option<bool>,
    file_locks: Option<bool>,
}

/// What a checkpoint can be told, under the names of `runc checkpoint`.
///
/// Options of CRIU that runtimes do not have come with [`CheckpointOptions::criu`]; what is set here goes over them.
#[derive(Debug, Default)]
#[must_use]
pub struct CheckpointOptions {
    pub(super) criu: DumpOptions,
    pub(super) leave_running: bool,
    pub(super) tcp_established: Option<bool>,
    pub(super) ext_unix_sk: Option<bool>,
    pub(super) shell_job: Option<bool>,
    pub(super) file_locks: Option<bool>,
    pub(super) tcp_skip_in_flight: Option<bool>,
    pub(super) link_remap: Option<bool>,
    pub(super) auto_dedup: Option<bool>,
    pub(super) lazy_pages: bool,
    pub(super) page_server: Option<PageTransport>,
    pub(super) parent_path: Option<PathBuf>,
    pub(super) work_path: Option<PathBuf>,
    pub(super) manage_cgroups_mode: Option<CgroupMode>,
    pub(super) status_fd: Option<OwnedFd>,
    pub(super) consumer: Consumer,
}

impl CheckpointOptions {
    /// What the runtime's `checkpoint` does without options.
    pub fn new() -> Self {
        Self::default()
    }

    #[cfg(feature = "engine")]
    pub(in crate::container) fn leaves_running(&self) -> bool {
        self.leave_running
    }

    #[cfg(feature = "engine")]
    pub(in crate::container) fn wanted_consumer(&self) -> Consumer {
        self.consumer
    }

    #[cfg(feature = "engine")]
    pub(in crate::container) fn repeated(&self) -> Repeated {
        Repeated {
            tcp_established: self.tcp_established,
            ext_unix_sk: self.ext_unix_sk,
            shell_job: self.shell_job,
            file_locks: self.file_locks,
        }
    }

    /// One more thing that is left out of the images.
    #[cfg(feature = "engine")]
    pub(in crate::container) fn external(mut self, external: options::ExternalOnDump) -> Self {
        self.criu = self.criu.external(external);
        self
    }

    /// Options of CRIU that runtimes do not have.
    pub fn criu(mut self, options: DumpOptions) -> Self {
        self.criu = options;
        self
    }

    /// Whose own restore the images are to suit: of any runtime without it, as far as that can be.
    pub fn consumer(mut self, consumer: Consumer) -> Self {
        self.consumer = consumer;
        self
    }

    /// `--leave-running`: the container goes on. Otherwise it is gone afterwards.
    pub fn leave_running(mut self, on: bool) -> Self {
        self.leave_running = on;
        self
    }

    /// `--tcp-established`: established TCP connections are kept. Repeat it on restore.
    pub fn tcp_established(mut self, on: bool) -> Self {
        self.tcp_established = Some(on);
        self
    }

    /// `--ext-unix-sk`: unix sockets may have their peer outside. Repeat it on restore.
    pub fn ext_unix_sk(mut self, on: bool) -> Self {
        self.ext_unix_sk = Some(on);
        self
    }

    /// `--shell-job`: session and terminal may come from outside. Repeat it on restore.
    pub fn shell_job(mut self, on: bool) -> Self {
        self.shell_job = Some(on);
        self
    }

    /// `--file-locks`: file locks are kept. Repeat it on restore.
    pub fn file_locks(mut self, on: bool) -> Self {
        self.file_locks = Some(on);
        self
    }

    /// `--tcp-skip-in-flight`: connections that nobody has accepted yet are left out.
    pub fn tcp_skip_in_flight(mut self, on: bool) -> Self {
        self.tcp_skip_in_flight = Some(on);
        self
    }

    /// `--link-remap`: files that were deleted while open may be linked back.
    pub fn link_remap(mut self, on: bool) -> Self {
        self.link_remap = Some(on);
        self
    }

    /// `--auto-dedup`: pages that this dump writes are punched out of the images before it.
    pub fn auto_dedup(mut self, on: bool) -> Self {
        self.auto_dedup = Some(on);
        self
    }

    /// `--lazy-pages`: memory is left out and served on demand. Needs `page_server`, where it is served.
    pub fn lazy_pages(mut self, on: bool) -> Self {
        self.lazy_pages = on;
        self
    }

    /// `--page-server`: pages go there, or are served there with `lazy_pages`.
    pub fn page_server(mut self, transport: PageTransport) -> Self {
        self.page_server = Some(transport);
        self
    }

    /// `--parent-path`: the images directory of the pre-dump before, relative to this one.
    pub fn parent_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.parent_path = Some(path.into());
        self
    }

    /// `--work-path`: where log and statistics go; made if it is missing.
    pub fn work_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.work_path = Some(path.into());
        self
    }

    /// `--manage-cgroups-mode`: soft without it.
    pub fn manage_cgroups_mode(mut self, mode: CgroupMode) -> Self {
        self.manage_cgroups_mode = Some(mode);
        self
    }

    /// `--status-fd`: gets a zero byte when lazy pages are ready to be served, and is closed then.
    pub fn status_fd(mut self, fd: OwnedFd) -> Self {
        self.status_fd = Some(fd);
        self
    }
}

/// What a restore can be told, under the names of `runc restore`.
///
/// Options of CRIU that runtimes do not have come with [`RestoreOptions::criu`]; what is set here goes over them.
#[derive(Debug, Default)]
#[must_use]
pub struct RestoreOptions {
    pub(super) criu: options::RestoreOptions,
    pub(super) detach: bool,
    pub(super) stdio: [Option<OwnedFd>; 3],
    pub(super) console_socket: Option<PathBuf>,
    pub(super) tcp_established: Option<bool>,
    pub(super) ext_unix_sk: Option<bool>,
    pub(super) shell_job: Option<bool>,
    pub(super) file_locks: Option<bool>,
    pub(super) auto_dedup: Option<bool>,
    pub(super) lazy_pages: Option<bool>,
    pub(super) work_path: Option<PathBuf>,
    pub(super) manage_cgroups_mode: Option<CgroupMode>,
    pub(super) lsm_profile: Option<options::LsmProfile>,
    pub(super) lsm_mount_context: Option<String>,
    pub(super) systemd_cgroup: Option<bool>,
}

impl RestoreOptions {
    /// What the runtime's `restore` does without options.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the checkpoint was told holds for the restore, where that is told nothing else.
    #[cfg(feature = "engine")]
    pub(in crate::container) fn unless_told(mut self, told: Repeated) -> Self {
        self.tcp_established = self.tcp_established.or(told.tcp_established);
        self.ext_unix_sk = self.ext_unix_sk.or(told.ext_unix_sk);
        self.shell_job = self.shell_job.or(told.shell_job);
        self.file_locks = self.file_locks.or(told.file_locks);
        self
    }

    /// Changes the options that go to CRIU.
    #[cfg(feature = "engine")]
    pub(in crate::container) fn map_criu(
        mut self,
        change: impl FnOnce(options::RestoreOptions) -> options::RestoreOptions,
    ) -> Self {
        self.criu = change(self.criu);
        self
    }

    /// Options of CRIU that runtimes do not have.
    pub fn criu(mut self, options: options::RestoreOptions) -> Self {
        self.criu = options;
        self
    }

    /// `--detach`: the container's first process becomes a child of the nearest subreaper, or of init. Otherwise it is a
    /// child of this process, which gets a handle of it.
    pub fn detach(mut self, on: bool) -> Self {
        self.detach = on;
        self
    }

    /// What standard input becomes, where it was a pipe.
    pub fn stdin(mut self, fd: OwnedFd) -> Self {
        self.stdio[0] = Some(fd);
        self
    }

    /// What standard output becomes, where it was a pipe.
    pub fn stdout(mut self, fd: OwnedFd) -> Self {
        self.stdio[1] = Some(fd);
        self
    }

    /// What standard error becomes, where it was a pipe. If it was the same pipe as standard output, one of the two will do.
    pub fn stderr(mut self, fd: OwnedFd) -> Self {
        self.stdio[2] = Some(fd);
        self
    }

    /// `--console-socket`: the unix socket that receives the master of the container's terminal. Without it the master
    /// comes to the hooks, in [`OrphanPtsMaster`](crate::notify::Event::OrphanPtsMaster).
    pub fn console_socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.console_socket = Some(path.into());
        self
    }

    /// `--tcp-established`, as the checkpoint had it.
    pub fn tcp_established(mut self, on: bool) -> Self {
        self.tcp_established = Some(on);
        self
    }

    /// `--ext-unix-sk`, as the checkpoint had it.
    pub fn ext_unix_sk(mut self, on: bool) -> Self {
        self.ext_unix_sk = Some(on);
        self
    }

    /// `--shell-job`, as the checkpoint had it.
    pub fn shell_job(mut self, on: bool) -> Self {
        self.shell_job = Some(on);
        self
    }

    /// `--file-locks`, as the checkpoint had it.
    pub fn file_locks(mut self, on: bool) -> Self {
        self.file_locks = Some(on);
        self
    }

    /// `--auto-dedup`: pages are punched out of the images as they are restored, which can be done once.
    pub fn auto_dedup(mut self, on: bool) -> Self {
        self.auto_dedup = Some(on);
        self
    }

    /// `--lazy-pages`: memory comes on demand, from a `criu lazy-pages` that runs already.
    pub fn lazy_pages(mut self, on: bool) -> Self {
        self.lazy_pages = Some(on);
        self
    }

    /// `--work-path`: where log and statistics go; made if it is missing.
    pub fn work_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.work_path = Some(path.into());
        self
    }

    /// `--manage-cgroups-mode`: soft without it. In every mode the container ends up in its own groups.
    pub fn manage_cgroups_mode(mut self, mode: CgroupMode) -> Self {
        self.manage_cgroups_mode = Some(mode);
        self
    }

    /// `--systemd-cgroup`: whether systemd makes the container's control groups. Without it, as it was; of images that a runtime
    /// has made by itself, as the form of the configuration's `cgroupsPath` says.
    pub fn systemd_cgroup(mut self, on: bool) -> Self {
        self.systemd_cgroup = Some(on);
        self
    }

    /// `--lsm-profile`: the profile that the tasks get in place of theirs.
    pub fn lsm_profile(mut self, profile: options::LsmProfile) -> Self {
        self.lsm_profile = Some(profile);
        self
    }

    /// `--lsm-mount-context`: the SELinux context of mounts.
    pub fn lsm_mount_context(mut self, context: impl Into<String>) -> Self {
        self.lsm_mount_context = Some(context.into());
        self
    }
}
