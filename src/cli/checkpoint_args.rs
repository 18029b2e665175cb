//! The options of a checkpoint, and the library's options for a dump and a pre-dump that they become.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args};

use criu_client::options::{
    DumpOptions, ExternalOnDump, Leave, NetworkLock, PageTransport, PreDumpMode, PreDumpOptions,
};

use super::container_args::{CheckpointContainers, Containers};
use super::descriptors::inherited;
use super::dry_run::DryRun;
use super::export::ExportArgs;
use super::failure::Failure;
use super::options::{
    Cgroups, CriuArgs, CriuMore, Files, Images, LogArgs, Mounts, Namespaces, Network, Security,
    Tasks, TlsArgs, apply_common, apply_modern, apply_tree, flags, given, work_path,
};
use super::target::Target;
use super::values::{self, Compress, HostPort, compression};

/// Checkpoint a process tree or a container into a directory of images
///
/// The tasks are ended when their images are complete, unless they are to be left running or stopped. Whatever goes
/// wrong before that, they run on as before.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("into").required(true).args(["image_path", "archive"]))]
#[command(after_long_help = "\
Examples:
  criuctl checkpoint pid:4711 --image-path /var/tmp/images
  criuctl checkpoint pid:4711 -D /var/tmp/images --leave-running --hook post-dump=/usr/local/bin/snapshot
  criuctl checkpoint pid:4711 -D /var/tmp/1 --pre-dump
  criuctl checkpoint pid:4711 -D /var/tmp/2 --parent-path ../1 --track-mem
  criuctl checkpoint runc:web --image-path /var/tmp/web --dry-run
  criuctl checkpoint runc:web --image-path /var/tmp/web
  criuctl checkpoint crun:web --image-path /var/tmp/web
  criuctl checkpoint docker:web --image-path /var/tmp/web
  criuctl checkpoint podman:web --image-path /var/tmp/web
  criuctl checkpoint podman:web --export /var/tmp/web.tar.zst")]
pub(super) struct Checkpoint {
    /// What to checkpoint: pid:N, runc:ID, crun:ID, docker:ID, podman:ID, or an ID that is looked for in all of them
    #[arg(value_name = "TARGET")]
    pub(super) target: Target,

    #[command(flatten)]
    pub(super) dry_run: DryRun,
    #[command(flatten)]
    pub(super) containers: Containers,
    #[command(flatten)]
    pub(super) checkpoint_containers: CheckpointContainers,
    #[command(flatten)]
    pub(super) archive: ExportArgs,
    #[command(flatten)]
    pub(super) images: Images,
    #[command(flatten)]
    pub(super) dump_images: DumpImages,
    #[command(flatten)]
    pub(super) tasks: Tasks,
    #[command(flatten)]
    pub(super) dump_tasks: DumpTasks,
    #[command(flatten)]
    pub(super) files: Files,
    #[command(flatten)]
    pub(super) dump_files: DumpFiles,
    #[command(flatten)]
    pub(super) network: Network,
    #[command(flatten)]
    pub(super) dump_network: DumpNetwork,
    #[command(flatten)]
    pub(super) tls: TlsArgs,
    #[command(flatten)]
    pub(super) mounts: Mounts,
    #[command(flatten)]
    pub(super) dump_mounts: DumpMounts,
    #[command(flatten)]
    pub(super) cgroups: Cgroups,
    #[command(flatten)]
    pub(super) dump_cgroups: DumpCgroups,
    #[command(flatten)]
    pub(super) namespaces: Namespaces,
    #[command(flatten)]
    pub(super) dump_memory: DumpMemory,
    #[command(flatten)]
    pub(super) security: Security,
    #[command(flatten)]
    pub(super) criu: CriuArgs,
    #[command(flatten)]
    pub(super) log: LogArgs,
    #[command(flatten)]
    pub(super) criu_more: CriuMore,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Images")]
pub(super) struct DumpImages {
    /// Images of the previous pre-dump, relative to the images directory, such as ../1
    #[arg(long, visible_alias = "prev-images-dir", value_name = "DIR")]
    pub(super) parent_path: Option<PathBuf>,

    /// Compress an archive: none, gzip, zstd (the default), or zstd:LEVEL from 1 to 19; or pages: off, or lz4, which is the
    /// same as no value (CRIU 4.3, where it was built with LZ4)
    #[arg(long, short = 'c', value_name = "METHOD", num_args = 0..=1, default_missing_value = "lz4", value_parser = values::compress)]
    pub(super) compress: Option<Compress>,

    /// Trade size for speed: 1 to 65537, higher is faster and larger
    #[arg(long, requires = "compress", value_name = "N")]
    pub(super) compress_acceleration: Option<u32>,

    /// Bytes that are compressed together: a multiple of the page size, at most 4M
    #[arg(long, visible_alias = "compress-block", requires = "compress", value_name = "SIZE", value_parser = values::size)]
    pub(super) compress_block_size: Option<u64>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Tasks")]
pub(super) struct DumpTasks {
    /// Let the tasks run on afterwards
    #[arg(long, short = 'R', conflicts_with = "leave_stopped")]
    pub(super) leave_running: bool,

    /// How long seizing and freezing the tasks may take, which is `criu --timeout`; 0s for no limit [CRIU's default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub(super) freeze_timeout: Option<Duration>,

    /// Control group with all tasks in it, through which they are frozen at once: its freezer directory
    #[arg(long, value_name = "PATH", value_parser = values::path)]
    pub(super) freeze_cgroup: Option<PathBuf>,

    /// Accept a terminal whose other end is outside the tree; restore it with --console-socket
    #[arg(long)]
    pub(super) orphan_pts_master: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Files")]
pub(super) struct DumpFiles {
    /// Resource that is left out of the images; the restore needs its counterpart; can be repeated
    ///
    /// mnt[MOUNTPOINT]:NAME, mnt[], mnt[]:m, mnt[]:s, dev[MAJOR/MINOR]:NAME, file[MNT_ID:INODE] (hexadecimal),
    /// tty[RDEV:DEV] (hexadecimal), unix[INODE], net[INODE]:KEY, pid[INODE]:KEY
    #[arg(long, value_name = "RESOURCE", value_parser = values::library::<ExternalOnDump>)]
    pub(super) external: Vec<ExternalOnDump>,

    /// Largest deleted but open file that is carried in the images, with K, M or G [CRIU's default: 1M]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub(super) ghost_limit: Option<u64>,

    /// Read deleted but open files by their extents (CRIU 3.18, whose default it is)
    #[arg(long, overrides_with = "no_ghost_fiemap")]
    pub(super) ghost_fiemap: bool,

    /// Look for the data of deleted but open files by seeking (CRIU 3.18)
    #[arg(long, overrides_with = "ghost_fiemap")]
    pub(super) no_ghost_fiemap: bool,

    /// Find the paths of watched files (inotify, fanotify) by scanning
    #[arg(long)]
    pub(super) force_irmap: bool,

    /// Directory that is scanned for watched files; can be repeated
    #[arg(long, value_name = "DIR", value_parser = values::path)]
    pub(super) irmap_scan_path: Vec<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub(super) struct DumpNetwork {
    /// Leave out TCP connections that nobody has accepted yet
    #[arg(long)]
    pub(super) skip_in_flight: bool,

    /// How packets are kept from the tasks from now until the restore [default: what CRIU was built for]
    #[arg(long, value_name = "METHOD", value_parser = values::words(NetworkLock::ALL, NetworkLock::as_str))]
    pub(super) network_lock: Option<NetworkLock>,

    /// Send pages to the page server there, or at --address and --port; with --lazy-pages, serve them at this port
    #[arg(long, num_args = 0..=1, value_name = "HOST:PORT", value_parser = values::host_port)]
    pub(super) page_server: Option<Option<HostPort>>,

    /// Host of the page server
    #[arg(long, value_name = "HOST", value_parser = values::host, requires = "port")]
    pub(super) address: Option<String>,

    /// Port of the page server; with --lazy-pages, port to serve pages at
    #[arg(long, value_name = "PORT", value_parser = values::port)]
    pub(super) port: Option<u16>,

    /// Send pages through this inherited descriptor, a connected stream socket
    #[arg(long, value_name = "FD", value_parser = values::descriptor, conflicts_with_all = ["address", "port"])]
    pub(super) ps_socket: Option<i32>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Mounts")]
pub(super) struct DumpMounts {
    /// Mount point, as the tasks see it, that is not dumped; can be repeated
    #[arg(long, value_name = "PATH")]
    pub(super) skip_mnt: Vec<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Cgroups")]
pub(super) struct DumpCgroups {
    /// Further properties to dump, in the YAML-like form of CRIU's manual
    #[arg(long, value_name = "TEXT")]
    pub(super) cgroup_props: Option<String>,

    /// File with such properties
    #[arg(long, value_name = "FILE", value_parser = values::file)]
    pub(super) cgroup_props_file: Option<PathBuf>,

    /// Controller to dump, all others being left out; can be repeated
    #[arg(long, value_name = "NAME")]
    pub(super) cgroup_dump_controller: Vec<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Memory")]
pub(super) struct DumpMemory {
    /// Write memory only and let the tasks run on, so that the checkpoint after it has less to write
    ///
    /// Options that are about files, mounts, the network or control groups have no effect then; they may stand here, so
    /// that every iteration can be given the same ones. There are no callbacks.
    #[arg(long, conflicts_with_all = ["leave_stopped", "lazy_pages", "status_fd", "hooks"])]
    pub(super) pre_dump: bool,

    /// Track which pages change after this
    #[arg(long)]
    pub(super) track_mem: bool,

    /// How a pre-dump reads memory [CRIU's default: splice]
    #[arg(long, requires = "pre_dump", value_name = "MODE", value_parser = values::words(PreDumpMode::ALL, PreDumpMode::as_str))]
    pub(super) pre_dump_mode: Option<PreDumpMode>,

    /// Leave memory out of the images and serve it at --port, or that of --page-server, until the restore has fetched it
    ///
    /// CRIU listens on every address of this machine, whatever host is given, and the checkpoint ends with the first
    /// connection that closes: let only the destination reach the port.
    #[arg(long)]
    pub(super) lazy_pages: bool,

    /// Inherited descriptor that CRIU writes a zero byte to when a lazy checkpoint is ready to serve pages
    #[arg(long, value_name = "FD", value_parser = values::descriptor)]
    pub(super) status_fd: Option<i32>,

    /// Inherited descriptor of a datagram unix socket that keeps pidfds between iterations (CRIU 3.16)
    #[arg(long, value_name = "FD", value_parser = values::descriptor)]
    pub(super) pidfd_store: Option<i32>,
}

/// Applies what dumps and pre-dumps have: freezing, tracking, where pages go.
macro_rules! apply_iteration {
    ($options:ident, $args:expr) => {
        given!($options, $args.dump_tasks, freeze_timeout => timeout, freeze_cgroup => freeze_cgroup);
        flags!($options, $args.dump_memory, track_mem => track_mem);
        flags!($options, $args.dump_files, force_irmap => force_irmap);
        for path in &$args.dump_files.irmap_scan_path {
            $options = $options.irmap_scan_path(path);
        }
        if let Some(number) = $args.dump_memory.pidfd_store {
            $options = $options.pidfd_store(inherited(number, "--pidfd-store")?);
        }
        if let Some(transport) = $args.page_transport()? {
            $options = $options.page_server(transport);
        }
        if let Some(tls) = $args.tls.to_library() {
            $options = $options.tls(tls);
        }
        given!($options, $args.dump_images, parent_path => parent_images);
    };
}

impl Checkpoint {
    /// What has no place in a request and is given to CRIU before `swrk`.
    pub(super) fn program_arguments(&self) -> Vec<OsString> {
        let mut arguments = self.criu.program_arguments();
        arguments.extend(self.criu_more.program_arguments());
        for (given, argument) in [
            (self.dump_files.ghost_fiemap, "--ghost-fiemap"),
            (self.dump_files.no_ghost_fiemap, "--no-ghost-fiemap"),
        ] {
            arguments.extend(given.then(|| argument.into()));
        }
        arguments
    }

    /// The library's options of a dump.
    pub(super) fn dump_options(&self) -> Result<DumpOptions, Failure> {
        let options = self.dump_options_but_status_fd()?;
        Ok(match self.dump_memory.status_fd {
            Some(number) => options.status_fd(inherited(number, "--status-fd")?),
            None => options,
        })
    }

    /// The same without `--status-fd`, which the container layer serves itself.
    pub(super) fn dump_options_but_status_fd(&self) -> Result<DumpOptions, Failure> {
        let mut options = DumpOptions::new();
        apply_common!(
            options,
            self.criu,
            work_path(self.images.work_path.as_deref())?
        );
        apply_modern!(options, self.images, self.criu_more);
        apply_tree!(options, self);
        flags!(options, self.security, unprivileged => unprivileged);
        given!(options, self.log, log_file => log_file);
        if let Some(leave) = self.leave() {
            options = options.leave(leave);
        }
        if let Some(compression) = compression(
            self.dump_images.compress,
            self.dump_images.compress_acceleration,
            self.dump_images.compress_block_size,
        ) {
            options = options.compression(compression);
        }
        for resource in &self.dump_files.external {
            options = options.external(resource.clone());
        }
        given!(options, self.dump_files, ghost_limit => ghost_limit);
        flags!(options, self.dump_network, skip_in_flight => tcp_skip_in_flight);
        given!(options, self.dump_network, network_lock => network_lock);
        for mountpoint in &self.dump_mounts.skip_mnt {
            options = options.skip_mount(mountpoint);
        }
        given!(
            options,
            self.dump_cgroups,
            cgroup_props => cgroup_props,
            cgroup_props_file => cgroup_props_file,
        );
        for controller in &self.dump_cgroups.cgroup_dump_controller {
            options = options.cgroup_controller(controller);
        }
        flags!(options, self.dump_tasks, orphan_pts_master => orphan_pts_master);
        flags!(options, self.dump_memory, lazy_pages => lazy_pages);
        apply_iteration!(options, self);
        Ok(options)
    }

    /// The library's options of a pre-dump.
    pub(super) fn pre_dump_options(&self) -> Result<PreDumpOptions, Failure> {
        let mut options = PreDumpOptions::new();
        apply_common!(
            options,
            self.criu,
            work_path(self.images.work_path.as_deref())?
        );
        apply_modern!(options, self.images, self.criu_more);
        flags!(options, self.security, unprivileged => unprivileged);
        given!(options, self.log, log_file => log_file);
        given!(options, self.dump_memory, pre_dump_mode => mode);
        apply_iteration!(options, self);
        Ok(options)
    }

    fn leave(&self) -> Option<Leave> {
        match (self.tasks.leave_stopped, self.dump_tasks.leave_running) {
            (true, _) => Some(Leave::Stopped),
            (false, true) => Some(Leave::Running),
            (false, false) => None,
        }
    }

    /// Where pages go, with the descriptor left out: runc's form `--page-server HOST:PORT`, or CRIU's with `--address` and
    /// `--port`, of which a lazy dump has the port alone.
    pub(super) fn page_server(&self) -> Result<Option<HostPort>, Failure> {
        let DumpNetwork {
            page_server,
            address,
            port,
            ps_socket,
            ..
        } = &self.dump_network;
        let lazy = self.dump_memory.lazy_pages;
        match (page_server, address, *port) {
            (Some(Some(_)), ..) if ps_socket.is_some() => Err(Failure::usage(
                "--page-server HOST:PORT and --ps-socket name two places for the pages",
            )
            .hint("leave one of them out; --page-server alone may stand beside --ps-socket")),
            (Some(Some(server)), None, None) => Ok(Some(server.clone())),
            (Some(Some(_)), ..) => Err(Failure::usage(
                "--page-server HOST:PORT does not go with --address and --port",
            )
            .hint("write --page-server alone, or leave --address and --port out")),
            (_, None, None) if ps_socket.is_some() && !lazy => Ok(None),
            (Some(None), Some(host), Some(port)) => Ok(Some(HostPort {
                host: host.clone(),
                port,
            })),
            // CRIU listens on every address then, whatever is given.
            (_, host, Some(port)) if lazy => Ok(Some(HostPort {
                host: host.as_deref().unwrap_or("0.0.0.0").to_owned(),
                port,
            })),
            (_, None, None) if lazy => Err(Failure::usage(
                "--lazy-pages needs the port to serve pages at",
            )
            .hint("give it as --port PORT")),
            (Some(None), ..) => Err(Failure::usage("--page-server needs a host and a port")
                .hint("write --page-server HOST:PORT, or give --address and --port as well")),
            (None, _, Some(_)) => Err(Failure::usage(
                "--address and --port are those of a page server",
            )
            .hint("add --page-server to send pages there")),
            (None, _, None) => Ok(None),
        }
    }

    /// Where pages go.
    pub(super) fn page_transport(&self) -> Result<Option<PageTransport>, Failure> {
        Ok(match (self.page_server()?, self.dump_network.ps_socket) {
            (Some(server), _) => Some(PageTransport::tcp(server.host, server.port)),
            (None, Some(number)) => {
                Some(PageTransport::Connected(inherited(number, "--ps-socket")?))
            }
            (None, None) => None,
        })
    }
}
