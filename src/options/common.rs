//! Options that more than one request has, in groups, and the setters of each group.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use super::transport::PageTransport;
use super::values::{CgroupMode, CpuCapabilities, ImageIoMode, LogLevel, Tls};

/// Every request.
#[derive(Debug, Default)]
pub(super) struct Common {
    pub(super) log_level: Option<LogLevel>,
    pub(super) log_file: Option<String>,
    pub(super) log_to_stderr: Option<bool>,
    pub(super) work_dir: Option<WorkDir>,
    pub(super) config_file: Option<PathBuf>,
    pub(super) unprivileged: Option<bool>,
    pub(super) extra: Vec<u8>,
}

/// The directory for log and statistics.
#[derive(Debug)]
pub(super) enum WorkDir {
    Open(OwnedFd),
    /// Made if it is missing.
    At(PathBuf),
}

/// Dump and restore: how the tree and what it uses is treated.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) external_unix_sockets: Option<bool>,
    pub(super) tcp_established: Option<bool>,
    pub(super) tcp_close: Option<bool>,
    pub(super) evasive_devices: Option<bool>,
    pub(super) shell_job: Option<bool>,
    pub(super) file_locks: Option<bool>,
    pub(super) root: Option<PathBuf>,
    pub(super) link_remap: Option<bool>,
    pub(super) cpu_capabilities: Option<CpuCapabilities>,
    pub(super) orphan_pts_master: Option<bool>,
    pub(super) auto_external_mounts: Option<bool>,
    pub(super) external_sharing: Option<bool>,
    pub(super) external_masters: Option<bool>,
    pub(super) enable_fs: Vec<String>,
    pub(super) empty_network_namespace: Option<bool>,
    pub(super) manage_cgroups: Option<CgroupMode>,
    pub(super) cgroup_roots: Vec<(Option<String>, PathBuf)>,
    pub(super) cgroup_yard: Option<PathBuf>,
    pub(super) lazy_pages: Option<bool>,
    pub(super) display_stats: Option<bool>,
    pub(super) image_io_mode: Option<ImageIoMode>,
}

/// Dump, pre-dump and restore.
#[derive(Debug, Default)]
pub(super) struct Modern {
    pub(super) plugin_options: Vec<(String, String, Option<String>)>,
    pub(super) stream: Option<bool>,
}

/// Dump and pre-dump: how the tree is frozen and its memory tracked.
#[derive(Debug, Default)]
pub(super) struct Tracking {
    pub(super) track_mem: Option<bool>,
    pub(super) pidfd_store: Option<OwnedFd>,
    pub(super) force_irmap: Option<bool>,
    pub(super) irmap_scan_paths: Vec<PathBuf>,
    pub(super) timeout: Option<Duration>,
    pub(super) freeze_cgroup: Option<PathBuf>,
}

/// Dump, pre-dump and page server: where pages go.
#[derive(Debug, Default)]
pub(super) struct Transfer {
    pub(super) transport: Option<PageTransport>,
    pub(super) tls: Option<Tls>,
    pub(super) parent_images: Option<PathBuf>,
}

/// Setters that take a bool, of the options value itself (`own`) or of one of its groups.
macro_rules! flags {
    (own { $( $(#[$doc:meta])* $name:ident; )* }) => { $(
        $(#[$doc])*
        pub fn $name(mut self, on: bool) -> Self {
            self.$name = Some(on);
            self
        }
    )* };
    ($group:ident { $( $(#[$doc:meta])* $name:ident; )* }) => { $(
        $(#[$doc])*
        pub fn $name(mut self, on: bool) -> Self {
            self.$group.$name = Some(on);
            self
        }
    )* };
}

macro_rules! common_setters {
    ($options:ident) => {
        impl $options {
            /// No option set: CRIU does what it does by default, and what its configuration files say.
            pub fn new() -> Self {
                Self::default()
            }

            /// How much CRIU logs. Long option `--verbosity`.
            ///
            /// Without it CRIU logs errors and warnings, whatever its command line and configuration files say.
            pub fn log_level(mut self, level: $crate::options::LogLevel) -> Self {
                self.common.log_level = Some(level);
                self
            }

            /// The name of the log in the work directory. Long option `--log-file`.
            ///
            /// A file of this name is replaced. Without it each request gets a name that is free, such as `dump.log` or
            /// `dump-2.log`.
            pub fn log_file(mut self, name: impl Into<String>) -> Self {
                self.common.log_file = Some(name.into());
                self
            }

            $crate::options::common::flags! { common {
                /// Whether CRIU logs to its standard error, of which 64 KiB are kept, instead of a file. Ignored when there is
                /// a `log_file`.
                /// No long option. Since CRIU 3.19.
                log_to_stderr;
                /// Whether CRIU puts up with running as an ordinary user. Long option `--unprivileged`. Since CRIU 3.18.
                ///
                /// CRIU still needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN. Repeat it on restore.
                unprivileged;
            } }

            /// The directory for the log, the statistics and the socket of lazy pages. Long option `--work-dir`.
            ///
            /// The descriptor is kept open until CRIU has answered. Without it these files go to the images directory. CRIU
            /// changes into this directory.
            pub fn work_dir(mut self, directory: std::os::fd::OwnedFd) -> Self {
                self.common.work_dir = Some($crate::options::common::WorkDir::Open(directory));
                self
            }

            /// The same by its path. It is opened when the operation starts, and made with mode 0700 if it is missing.
            pub fn work_path(mut self, path: impl Into<std::path::PathBuf>) -> Self {
                self.common.work_dir = Some($crate::options::common::WorkDir::At(path.into()));
                self
            }

            /// A configuration file of CRIU, as an absolute path, whose options win over all options given here. Long option
            /// `--config`. Since CRIU 3.11.
            ///
            /// A file that does not exist is no error to CRIU. Up to CRIU 4.1.1 the file is read twice, so what adds up in it
            /// (such as `action-script`) counts twice; from CRIU 4.2 on its verbosity is ignored.
            pub fn config_file(mut self, path: impl Into<std::path::PathBuf>) -> Self {
                self.common.config_file = Some(path.into());
                self
            }

            /// Options in CRIU's own encoding (a `criu_opts` message), merged over all others: a single value given here
            /// replaces the one from a setter, repeated ones are appended.
            ///
            /// This is the way to options that are newer than this library. Fields it does not know are passed on untouched; a
            /// CRIU that does not know them either ignores them. Descriptor numbers in here must be valid until CRIU has
            /// answered, which the caller sees to. Bytes that are no `criu_opts`, and fields that the operation itself sets
            /// (such as `pid`), are refused.
            pub fn extra(mut self, bytes: impl Into<Vec<u8>>) -> Self {
                self.common.extra.extend(bytes.into());
                self
            }
        }
    };
}

macro_rules! tree_setters {
    ($options:ident) => {
        impl $options {
            $crate::options::common::flags! { tree {
                /// Whether unix sockets may have their peer outside the tree. Long option `--ext-unix-sk`.
                ///
                /// Repeat it on restore.
                external_unix_sockets;
                /// Whether established TCP connections are kept. Long option `--tcp-established`.
                ///
                /// Repeat it on restore. Between the two, packets of the connections must be dropped: see `network_lock`.
                tcp_established;
                /// Whether TCP connections are dumped, and restored, closed. Long option `--tcp-close`. Since CRIU 3.12.
                ///
                /// Repeat it on restore.
                tcp_close;
                /// Whether any path to a device will do when the one a task has used is gone. Long option
                /// `--evasive-devices`.
                evasive_devices;
                /// Whether session, process group and terminal may come from outside the tree. Long option `--shell-job`.
                ///
                /// Repeat it on restore: the tasks then take the session and process group of CRIU, and its standard input
                /// as their terminal.
                shell_job;
                /// Whether file locks are kept. Safe only when no process outside the tree holds the same locks. Long option
                /// `--file-locks`.
                ///
                /// Repeat it on restore.
                file_locks;
                /// Whether files that were deleted while open may be linked back under a temporary name. This writes to the
                /// file system. Long option `--link-remap`.
                link_remap;
                /// Whether a slave terminal without its master is accepted. No long option. Since CRIU 2.12.
                ///
                /// Repeat it on restore: CRIU then makes a new master and hands it to the hooks in the event
                /// orphan-pts-master. False is the same as not set.
                orphan_pts_master;
                /// Whether bind mounts from outside are found automatically: the same as
                /// [`AutoMounts::Private`](crate::options::AutoMounts::Private). Long option `--external mnt[]`.
                ///
                /// Repeat it on restore.
                auto_external_mounts;
                /// Whether automatically found mounts may be shared with the outside. Long option
                /// `--enable-external-sharing`.
                ///
                /// Repeat it on restore.
                external_sharing;
                /// Whether automatically found mounts may be slaves of mounts outside. Long option
                /// `--enable-external-masters`.
                ///
                /// Repeat it on restore.
                external_masters;
                /// Whether the network namespace is restored empty, for someone else to fill. Long option `--empty-ns net`.
                ///
                /// Repeat it on restore.
                empty_network_namespace;
                /// Whether memory moves after the restore, on demand. Long option `--lazy-pages`. Since CRIU 3.5.
                ///
                /// A dump then leaves memory out of the images and serves it at the port of `page_server`, **on all
                /// addresses**, whatever address is given; it ends when the connection does. A restore needs a running
                /// `criu lazy-pages` whose work directory is that of the restore.
                lazy_pages;
                /// Whether CRIU writes its statistics as text to its standard output. Long option `--display-stats`. Since
                /// CRIU 3.19. The operations report the statistics without it.
                display_stats;
            } }

            /// The root of the tasks' mount namespace, as an absolute path. Long option `--root`.
            ///
            /// On restore it must be a mount point whose parent mount is not overmounted.
            pub fn root(mut self, path: impl Into<std::path::PathBuf>) -> Self {
                self.tree.root = Some(path.into());
                self
            }

            /// What is demanded of the processor. Long option `--cpu-cap`.
            ///
            /// Without it: FPU and INS. What a restore demands beyond FPU, the dump must have recorded.
            pub fn cpu_capabilities(
                mut self,
                capabilities: $crate::options::CpuCapabilities,
            ) -> Self {
                self.tree.cpu_capabilities = Some(capabilities);
                self
            }

            /// Adds a file system type that is mounted again as it was found, or `all` types. Long option `--enable-fs`.
            ///
            /// Not safe: nothing says that such a mount has the same content at restore. Repeat it on restore. It does not go
            /// together with external devices.
            pub fn enable_fs(mut self, name: impl Into<String>) -> Self {
                self.tree.enable_fs.push(name.into());
                self
            }

            /// What is done about control groups. Long option `--manage-cgroups`.
            ///
            /// Without it: [`CgroupMode::Soft`](crate::options::CgroupMode::Soft). A dump that ignores them leaves nothing to
            /// restore.
            pub fn manage_cgroups(mut self, mode: $crate::options::CgroupMode) -> Self {
                self.tree.manage_cgroups = Some(mode);
                self
            }

            /// Adds a root below which the groups of a controller, or of all that have none of their own, are dumped or
            /// restored: an absolute path within the controller's hierarchy. Long option `--cgroup-root`.
            pub fn cgroup_root(
                mut self,
                controller: Option<&str>,
                path: impl Into<std::path::PathBuf>,
            ) -> Self {
                self.tree
                    .cgroup_roots
                    .push((controller.map(str::to_owned), path.into()));
                self
            }

            /// A directory with all control group hierarchies mounted in it, one directory per mount, so that CRIU need not
            /// mount them. Long option `--cgroup-yard`. Since CRIU 3.14.
            pub fn cgroup_yard(mut self, path: impl Into<std::path::PathBuf>) -> Self {
                self.tree.cgroup_yard = Some(path.into());
                self
            }

            /// How page images are written or read. Long option `--image-io-mode`. Since CRIU 4.3.
            pub fn image_io_mode(mut self, mode: $crate::options::ImageIoMode) -> Self {
                self.tree.image_io_mode = Some(mode);
                self
            }
        }
    };
}

macro_rules! modern_setters {
    ($options:ident) => {
        impl $options {
            /// Adds an option for one of CRIU's plugins, sent as `PLUGIN.NAME` or `PLUGIN.NAME=VALUE`. Long option
            /// `--plugin-option`. Since CRIU 4.3.
            pub fn plugin_option(
                mut self,
                plugin: impl Into<String>,
                name: impl Into<String>,
                value: Option<&str>,
            ) -> Self {
                let option = (plugin.into(), name.into(), value.map(str::to_owned));
                self.modern.plugin_options.push(option);
                self
            }

            $crate::options::common::flags! { modern {
                /// Whether images go to, or come from, an image streamer that listens in the images directory. Long option
                /// `--stream`, over RPC since CRIU 4.3.
                ///
                /// The socket must be there before the request, or be made in the event pre-stream. Images that were
                /// streamed out must be streamed in again, or unpacked. It does not go together with a page server.
                stream;
            } }
        }
    };
}

macro_rules! tracking_setters {
    ($options:ident) => {
        impl $options {
            $crate::options::common::flags! { tracking {
                /// Whether the kernel tracks which pages change after this, so that the next dump has only those to write.
                /// Long option `--track-mem`. Refused where the kernel has no soft-dirty bits.
                track_mem;
                /// Whether the paths of watched files (inotify, fanotify) are found by scanning. Long option
                /// `--force-irmap`.
                force_irmap;
            } }

            /// A datagram unix socket, unconnected, that keeps pidfds of the tasks from one iteration to the next, so that a
            /// reused pid is not taken for the same task. No long option. Since CRIU 3.16.
            ///
            /// Give a duplicate of the same socket to every iteration and keep one. Ours is kept open until CRIU has answered.
            pub fn pidfd_store(mut self, socket: std::os::fd::OwnedFd) -> Self {
                self.tracking.pidfd_store = Some(socket);
                self
            }

            /// Adds a directory that is scanned for watched files; an absolute path. Long option `--irmap-scan-path`.
            pub fn irmap_scan_path(mut self, path: impl Into<std::path::PathBuf>) -> Self {
                self.tracking.irmap_scan_paths.push(path.into());
                self
            }

            /// How long seizing and freezing the tree may take; whole seconds, rounded up. Zero: no limit. Long option
            /// `--timeout`; 10 seconds without it.
            ///
            /// It limits nothing else of the operation: not the transfer of pages, not the hooks.
            pub fn timeout(mut self, limit: std::time::Duration) -> Self {
                self.tracking.timeout = Some(limit);
                self
            }

            /// A control group with all tasks in it, through which they are frozen at once: its directory in the freezer
            /// hierarchy (cgroup v1), or in cgroup v2 since CRIU 3.14. Long option `--freeze-cgroup`.
            pub fn freeze_cgroup(mut self, path: impl Into<std::path::PathBuf>) -> Self {
                self.tracking.freeze_cgroup = Some(path.into());
                self
            }
        }
    };
}

macro_rules! transfer_setters {
    ($options:ident, $(#[$doc:meta])* $transport:ident) => {
        impl $options {
            $(#[$doc])*
            pub fn $transport(mut self, transport: $crate::options::PageTransport) -> Self {
                self.transfer.transport = Some(transport);
                self
            }

            /// Encrypts the TCP connection that carries pages. Long option `--tls` and those that begin with `--tls-`. Since
            /// CRIU 3.13. Both ends must use it.
            pub fn tls(mut self, tls: $crate::options::Tls) -> Self {
                self.transfer.tls = Some(tls);
                self
            }

            /// The images directory of the previous pre-dump, as a path relative to this one, such as `../1`. Long option
            /// `--prev-images-dir`.
            ///
            /// CRIU keeps it as the symbolic link `parent` in the images directory, and leaves a link that is there already as
            /// it is.
            pub fn parent_images(mut self, path: impl Into<std::path::PathBuf>) -> Self {
                self.transfer.parent_images = Some(path.into());
                self
            }
        }
    };
}

pub(super) use {
    common_setters, flags, modern_setters, tracking_setters, transfer_setters, tree_setters,
};
