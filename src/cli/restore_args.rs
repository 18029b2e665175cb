//! The options of a restore, and the library's options that they become.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};

use criu_client::options::{
    ExternalOnRestore, JoinNamespace, LsmProfile, NetworkLock, RestoreOptions,
};

use super::container_args::{Containers, RestoreContainers};
use super::descriptors::inherited;
use super::dry_run::DryRun;
use super::failure::Failure;
use super::options::{
    Cgroups, CriuArgs, CriuMore, Files, Images, LogArgs, Mounts, Namespaces, Network, Security,
    Tasks, apply_common, apply_modern, apply_tree, flags, given, work_path,
};
use super::target::Target;
use super::values::{self, Inherit, VethPair};

/// Restore a process tree or a container from a directory of images
///
/// Without --detach the restored process is a child of criuctl, which waits for it, passes signals on to it and ends
/// with its status. Whatever goes wrong before the tasks run, none of them is left.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("from").required(true).args(["image_path"]))]
#[command(after_long_help = "\
Examples:
  criuctl restore --image-path /var/tmp/images
  criuctl restore pid:4711 --image-path /var/tmp/images --detach --pid-file /run/job.pid
  criuctl restore -D /var/tmp/images --exec-cmd -- /usr/local/bin/supervisor --adopt
  criuctl restore runc:web --image-path /var/tmp/web --bundle /srv/web --dry-run
  criuctl restore runc:web --image-path /var/tmp/web --bundle /srv/web --detach
  criuctl restore crun:web --image-path /var/tmp/web --bundle /srv/web --detach
  criuctl restore docker:web --image-path /var/tmp/web
  criuctl restore podman:web --image-path /var/tmp/web")]
pub(super) struct Restore {
    /// What to restore: pid:N (the root of the tree in the images), runc:ID, crun:ID, docker:ID, podman:ID, or an ID for
    /// a container of the engine that the checkpoint names [default: the process tree in the images]
    #[arg(value_name = "TARGET")]
    pub(super) target: Option<Target>,

    #[command(flatten)]
    pub(super) dry_run: DryRun,
    #[command(flatten)]
    pub(super) restore_containers: RestoreContainers,
    #[command(flatten)]
    pub(super) containers: Containers,
    #[command(flatten)]
    pub(super) images: Images,
    #[command(flatten)]
    pub(super) restore_images: RestoreImages,
    #[command(flatten)]
    pub(super) tasks: Tasks,
    #[command(flatten)]
    pub(super) restore_tasks: RestoreTasks,
    #[command(flatten)]
    pub(super) files: Files,
    #[command(flatten)]
    pub(super) restore_files: RestoreFiles,
    #[command(flatten)]
    pub(super) network: Network,
    #[command(flatten)]
    pub(super) restore_network: RestoreNetwork,
    #[command(flatten)]
    pub(super) mounts: Mounts,
    #[command(flatten)]
    pub(super) restore_mounts: RestoreMounts,
    #[command(flatten)]
    pub(super) cgroups: Cgroups,
    #[command(flatten)]
    pub(super) namespaces: Namespaces,
    #[command(flatten)]
    pub(super) restore_namespaces: RestoreNamespaces,
    #[command(flatten)]
    pub(super) restore_memory: RestoreMemory,
    #[command(flatten)]
    pub(super) security: Security,
    #[command(flatten)]
    pub(super) restore_security: RestoreSecurity,
    #[command(flatten)]
    pub(super) criu: CriuArgs,
    #[command(flatten)]
    pub(super) log: LogArgs,
    #[command(flatten)]
    pub(super) criu_more: CriuMore,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Images")]
pub(super) struct RestoreImages {
    /// Threads that decompress pages, up to 1024; 0 lets CRIU choose (CRIU 4.3)
    #[arg(long, value_name = "N")]
    pub(super) decompress_threads: Option<u32>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Tasks")]
pub(super) struct RestoreTasks {
    /// Return when the tasks run; their parent is then init, or the nearest subreaper
    #[arg(long, short = 'd', visible_alias = "restore-detached")]
    pub(super) detach: bool,

    /// File that gets the pid of the restored root task
    #[arg(long, visible_alias = "pidfile", value_name = "FILE", value_parser = values::path)]
    pub(super) pid_file: Option<PathBuf>,

    /// Unix socket that gets the other end of a restored terminal
    #[arg(long, value_name = "SOCKET", value_parser = values::path)]
    pub(super) console_socket: Option<PathBuf>,

    /// CRIU becomes the command after `--` when the tasks run, and is then their parent
    ///
    /// criuctl does not wait for it. It starts as CRIU leaves it: its output goes to the log, and all signals but SIGCHLD
    /// are blocked.
    #[arg(long, requires = "command", conflicts_with = "detach")]
    pub(super) exec_cmd: bool,

    /// Command of --exec-cmd
    #[arg(last = true, value_name = "COMMAND", requires = "exec_cmd")]
    pub(super) command: Vec<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Files")]
pub(super) struct RestoreFiles {
    /// Counterpart of a resource that the checkpoint left out; can be repeated
    ///
    /// mnt[NAME]:PATH, mnt[], mnt[]:m, mnt[]:s, dev[NAME]:PATH, veth[INSIDE]:OUTSIDE[@BRIDGE], macvlan[INSIDE]:OUTSIDE,
    /// netdev[INSIDE]:OUTSIDE
    #[arg(long, value_name = "RESOURCE", value_parser = values::library::<ExternalOnRestore>)]
    pub(super) external: Vec<ExternalOnRestore>,

    /// Inherited descriptor that is used in place of a file of the images; can be repeated
    ///
    /// KEY is pipe:[INODE], socket:[INODE], tty[RDEV:DEV], file[MNT_ID:INODE], /memfd:NAME, a path without its leading
    /// slash, or the key of an external namespace
    #[arg(long, value_name = "fd[N]:KEY", value_parser = values::inherit_fd)]
    pub(super) inherit_fd: Vec<Inherit>,

    /// Files may have other permissions than at the checkpoint (CRIU 3.18)
    #[arg(long)]
    pub(super) skip_file_rwx_check: bool,

    /// How files are told to be the same as at the checkpoint
    #[arg(long, value_name = "METHOD", value_enum)]
    pub(super) file_validation: Option<FileValidation>,
}

/// The words of `--file-validation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum FileValidation {
    /// By size
    Filesize,
    /// By build id, or size where there is none
    Buildid,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub(super) struct RestoreNetwork {
    /// Names the outer end of a veth pair and the bridge it is added to; can be repeated
    #[arg(long, value_name = "IN=OUT[@BRIDGE]", value_parser = values::veth_pair)]
    pub(super) veth_pair: Vec<VethPair>,

    /// How the checkpoint locked the network, as crun's restore has it; the images say it, and it must be the same
    #[arg(long, value_name = "METHOD", value_parser = values::words(NetworkLock::ALL, NetworkLock::as_str))]
    pub(super) network_lock: Option<NetworkLock>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Mounts")]
pub(super) struct RestoreMounts {
    /// Restore mounts by CRIU's old engine (CRIU 3.17)
    #[arg(long)]
    pub(super) mntns_compat_mode: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Namespaces")]
pub(super) struct RestoreNamespaces {
    /// Existing namespace that the tasks join, as KIND:FILE or KIND:PID; can be repeated
    ///
    /// KIND is net, uts, time, ipc, mnt or user; user:FILE,UID,GID sets ids
    #[arg(long, short = 'J', value_name = "NS", value_parser = values::library::<JoinNamespace>)]
    pub(super) join_ns: Vec<JoinNamespace>,

    /// Skip sysctls that this kernel does not have
    #[arg(long)]
    pub(super) weak_sysctls: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Memory")]
pub(super) struct RestoreMemory {
    /// Fetch memory on demand from a `criu lazy-pages` that runs with the same work directory
    #[arg(long)]
    pub(super) lazy_pages: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Security")]
pub(super) struct RestoreSecurity {
    /// Profile that the tasks get in place of theirs: apparmor:NAME, selinux:LABEL or none:
    #[arg(long, value_name = "PROFILE", value_parser = values::library::<LsmProfile>)]
    pub(super) lsm_profile: Option<LsmProfile>,

    /// SELinux context of mounts that had the option context=
    #[arg(long, value_name = "CONTEXT")]
    pub(super) lsm_mount_context: Option<String>,
}

impl Restore {
    /// What has no place in a request and is given to CRIU before `swrk`.
    pub(super) fn program_arguments(&self) -> Vec<OsString> {
        let mut arguments = self.criu.program_arguments();
        arguments.extend(self.criu_more.program_arguments());
        if let Some(method) = self.restore_files.file_validation {
            let word = match method {
                FileValidation::Filesize => "filesize",
                FileValidation::Buildid => "buildid",
            };
            arguments.push("--file-validation".into());
            arguments.push(word.into());
        }
        arguments
    }

    /// The library's options.
    pub(super) fn options(&self) -> Result<RestoreOptions, Failure> {
        let mut options = RestoreOptions::new();
        apply_common!(
            options,
            self.criu,
            work_path(self.images.work_path.as_deref())?
        );
        apply_modern!(options, self.images, self.criu_more);
        apply_tree!(options, self);
        flags!(options, self.security, unprivileged => unprivileged);
        given!(options, self.log, log_file => log_file);
        flags!(options, self.tasks, leave_stopped => leave_stopped);
        given!(options, self.restore_images, decompress_threads => decompress_threads);
        if self.restore_tasks.console_socket.is_some() {
            options = options.orphan_pts_master(true);
        }
        if self.restore_tasks.exec_cmd {
            options = options.exec_command(&self.restore_tasks.command);
        }
        for resource in &self.restore_files.external {
            options = options.external(resource.clone());
        }
        for Inherit { fd, key } in &self.restore_files.inherit_fd {
            options = options.inherit_fd(key.clone(), inherited(*fd, "--inherit-fd")?);
        }
        flags!(options, self.restore_files, skip_file_rwx_check => skip_file_rwx_check);
        for VethPair {
            inside,
            outside,
            bridge,
        } in &self.restore_network.veth_pair
        {
            options = options.veth(inside, outside, bridge.as_deref());
        }
        flags!(options, self.restore_mounts, mntns_compat_mode => mntns_compat_mode);
        for namespace in &self.restore_namespaces.join_ns {
            options = options.join_namespace(namespace.clone());
        }
        flags!(options, self.restore_namespaces, weak_sysctls => weak_sysctls);
        flags!(options, self.restore_memory, lazy_pages => lazy_pages);
        given!(
            options,
            self.restore_security,
            lsm_profile => lsm_profile,
            lsm_mount_context => lsm_mount_context,
        );
        Ok(options)
    }
}
