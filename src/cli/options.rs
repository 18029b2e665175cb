//! Options that several verbs have, under the names of runc and of CRIU, and how they become the library's.
//!
//! The groups are the headings of the help. The library has one options type per operation with the same setters on
//! each, so what applies them is a macro per group.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::Args;

use criu_client::ImagesDir;
use criu_client::options::{CgroupMode, CpuCapabilities, ImageIoMode, LogLevel, Tls};

use super::failure::Failure;
use super::values::{self, CgroupRoot, EmptyNetwork, Hook, PluginOption};

/// Images: checkpoint and restore.
#[derive(Debug, Args)]
#[command(next_help_heading = "Images")]
pub(super) struct Images {
    /// Directory of the images; a checkpoint makes it if it is missing
    #[arg(long, short = 'D', visible_alias = "images-dir", value_name = "DIR", value_parser = values::path)]
    pub(super) image_path: Option<PathBuf>,

    /// Directory for logs, statistics and the lazy-pages socket [default: that of the images]
    #[arg(long, short = 'W', visible_alias = "work-dir", value_name = "DIR", value_parser = values::path)]
    pub(super) work_path: Option<PathBuf>,

    /// Punch superseded pages out of the previous images; on restore, out of these images as they are read
    #[arg(long)]
    pub(super) auto_dedup: bool,

    /// Stream images through a criu-image-streamer that listens in the images directory (CRIU 4.3)
    #[arg(long)]
    pub(super) stream: bool,

    /// How page images are written and read (CRIU 4.3)
    #[arg(long, value_name = "MODE", value_parser = values::words(ImageIoMode::ALL, ImageIoMode::as_str))]
    pub(super) image_io_mode: Option<ImageIoMode>,
}

impl Images {
    /// Where they are; there is none beside an archive.
    pub(super) fn path(&self) -> &Path {
        self.image_path.as_deref().unwrap_or(Path::new(""))
    }
}

/// Tasks: checkpoint and restore.
#[derive(Debug, Args)]
#[command(next_help_heading = "Tasks")]
pub(super) struct Tasks {
    /// Leave the tasks stopped (state T) until a SIGCONT
    #[arg(long, short = 's')]
    pub(super) leave_stopped: bool,

    /// Session, process group and terminal may come from outside the tree; give it on both sides
    #[arg(long, short = 'j')]
    pub(super) shell_job: bool,

    /// What is demanded of the processor: none, all (the same as no value), or names among fpu, cpu, ins and image,
    /// joined by commas
    #[arg(long, value_name = "CAPS", num_args = 0..=1, require_equals = true, default_missing_value = "all", value_parser = values::library::<CpuCapabilities>)]
    pub(super) cpu_cap: Option<CpuCapabilities>,
}

/// Files: checkpoint and restore.
#[derive(Debug, Args)]
#[command(next_help_heading = "Files")]
pub(super) struct Files {
    /// Unix sockets may have their peer outside the tree; give it on both sides
    #[arg(long, short = 'x')]
    pub(super) ext_unix_sk: bool,

    /// Keep file locks, which is safe only if nobody outside the tree holds them; give it on both sides
    #[arg(long, short = 'l')]
    pub(super) file_locks: bool,

    /// Link deleted but open files back under temporary names where that is needed
    #[arg(long)]
    pub(super) link_remap: bool,

    /// Any path to a device will do when the one that a task has used is gone
    #[arg(long)]
    pub(super) evasive_devices: bool,
}

/// Network: checkpoint and restore.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub(super) struct Network {
    /// Keep established TCP connections; give it on both sides
    #[arg(long)]
    pub(super) tcp_established: bool,

    /// Dump and restore TCP connections closed; give it on both sides
    #[arg(long, conflicts_with = "tcp_established")]
    pub(super) tcp_close: bool,
}

/// Mounts: checkpoint and restore.
#[derive(Debug, Args)]
#[command(next_help_heading = "Mounts")]
pub(super) struct Mounts {
    /// Root of the tasks' mount namespace; on restore it must be a mount point
    #[arg(long, short = 'r', value_name = "PATH", value_parser = values::path)]
    pub(super) root: Option<PathBuf>,

    /// File system types that are mounted again as they were found, or all; give it on both sides
    #[arg(long, value_name = "FSNAMES", value_delimiter = ',')]
    pub(super) enable_fs: Vec<String>,

    /// Mounts found by `--external mnt[]` may be shared with the outside; give it on both sides
    #[arg(long)]
    pub(super) enable_external_sharing: bool,

    /// Mounts found by `--external mnt[]` may be slaves of mounts outside; give it on both sides
    #[arg(long)]
    pub(super) enable_external_masters: bool,
}

/// Control groups: checkpoint and restore.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cgroups")]
pub(super) struct Cgroups {
    /// What is done about the control groups of the tasks [CRIU's default: soft]
    #[arg(long, value_name = "MODE", value_parser = values::words(CgroupMode::ALL, CgroupMode::as_str))]
    pub(super) manage_cgroups_mode: Option<CgroupMode>,

    /// The same in CRIU's form: without a value, soft
    #[arg(long, value_name = "MODE", num_args = 0..=1, require_equals = true, default_missing_value = "soft", conflicts_with = "manage_cgroups_mode", value_parser = values::words(CgroupMode::ALL, CgroupMode::as_str))]
    pub(super) manage_cgroups: Option<CgroupMode>,

    /// Root below which the groups of a controller, or of all others, are dumped or restored; can be repeated
    #[arg(long, value_name = "[CTRL:]/PATH", value_parser = values::cgroup_root)]
    pub(super) cgroup_root: Vec<CgroupRoot>,

    /// Directory with all control group hierarchies mounted in it, so that CRIU need not mount them
    #[arg(long, value_name = "PATH", value_parser = values::path)]
    pub(super) cgroup_yard: Option<PathBuf>,
}

impl Cgroups {
    /// What is done about control groups, in whichever form it was given.
    pub(super) fn mode(&self) -> Option<CgroupMode> {
        self.manage_cgroups_mode.or(self.manage_cgroups)
    }
}

/// Namespaces: checkpoint and restore.
#[derive(Debug, Args)]
#[command(next_help_heading = "Namespaces")]
pub(super) struct Namespaces {
    /// Restore the network namespace empty, for somebody else to fill; give it on both sides
    #[arg(long, value_name = "net", value_parser = values::empty_ns)]
    pub(super) empty_ns: Option<EmptyNetwork>,
}

/// Permissions: everything that is asked of CRIU.
#[derive(Debug, Args)]
#[command(next_help_heading = "Security")]
pub(super) struct Security {
    /// Put up with running as an ordinary user, who still needs CAP_CHECKPOINT_RESTORE (CRIU 3.18)
    #[arg(long)]
    pub(super) unprivileged: bool,
}

/// TLS: whatever sends or takes pages.
#[derive(Debug, Args)]
#[command(next_help_heading = "TLS of the page server's connection")]
pub(super) struct TlsArgs {
    /// Encrypt the connection; both ends must
    #[arg(long)]
    pub(super) tls: bool,

    /// Authority that must have signed the peer's certificate
    #[arg(long, requires = "tls", value_name = "FILE", value_parser = values::file)]
    pub(super) tls_cacert: Option<PathBuf>,

    /// List of revoked certificates
    #[arg(long, requires = "tls", value_name = "FILE", value_parser = values::file)]
    pub(super) tls_cacrl: Option<PathBuf>,

    /// Certificate that is shown to the peer
    #[arg(long, requires = "tls", value_name = "FILE", value_parser = values::file)]
    pub(super) tls_cert: Option<PathBuf>,

    /// Private key of that certificate
    #[arg(long, requires = "tls", value_name = "FILE", value_parser = values::file)]
    pub(super) tls_key: Option<PathBuf>,

    /// Do not compare the name in the server's certificate with the host
    #[arg(long, requires = "tls")]
    pub(super) tls_no_cn_verify: bool,
}

impl TlsArgs {
    /// The library's form; `None` without `--tls`.
    pub(super) fn to_library(&self) -> Option<Tls> {
        let mut tls = Tls::new();
        if let Some(path) = &self.tls_cacert {
            tls = tls.cacert(path);
        }
        if let Some(path) = &self.tls_cacrl {
            tls = tls.cacrl(path);
        }
        if let Some(path) = &self.tls_cert {
            tls = tls.cert(path);
        }
        if let Some(path) = &self.tls_key {
            tls = tls.key(path);
        }
        if self.tls_no_cn_verify {
            tls = tls.verify_name(false);
        }
        self.tls.then_some(tls)
    }
}

/// CRIU itself: everything that is asked of it.
#[derive(Debug, Args)]
#[command(next_help_heading = "CRIU")]
pub(super) struct CriuArgs {
    /// Configuration file of CRIU, whose options win over all others
    #[arg(long, value_name = "FILE", value_parser = values::file)]
    pub(super) config: Option<PathBuf>,

    /// Do not read CRIU's configuration files in /etc/criu and in the home directory
    #[arg(long)]
    pub(super) no_default_config: bool,

    /// How much CRIU logs: 0 to 4, or silent, error, warning, info, debug [CRIU's default: warning]
    #[arg(long, visible_alias = "verbosity", value_name = "LEVEL", value_parser = values::log_level)]
    pub(super) log_level: Option<LogLevel>,

    /// Write no log file; what CRIU logs is kept in memory and shown if it fails (CRIU 3.19)
    #[arg(long)]
    pub(super) log_to_stderr: bool,

    /// Directory of CRIU's plugins
    #[arg(long, short = 'L', value_name = "DIR", value_parser = values::path)]
    pub(super) libdir: Option<PathBuf>,
}

impl CriuArgs {
    /// What has no place in a request and is given to the program before `swrk`.
    pub(super) fn program_arguments(&self) -> Vec<OsString> {
        let mut arguments = Vec::new();
        if self.no_default_config {
            arguments.push("--no-default-config".into());
        }
        if let Some(directory) = &self.libdir {
            arguments.push("--libdir".into());
            arguments.push(directory.into());
        }
        arguments
    }
}

/// CRIU's log: whatever leaves one behind.
#[derive(Debug, Args)]
#[command(next_help_heading = "CRIU")]
pub(super) struct LogArgs {
    /// Name of the log in the work directory; a file of that name is replaced [default: one that is free, such as
    /// dump.log]
    #[arg(
        long,
        short = 'o',
        value_name = "NAME",
        conflicts_with = "log_to_stderr"
    )]
    pub(super) log_file: Option<String>,
}

/// CRIU itself: checkpoint and restore.
#[derive(Debug, Args)]
#[command(next_help_heading = "CRIU")]
pub(super) struct CriuMore {
    /// Option of one of CRIU's plugins (CRIU 4.3); can be repeated
    #[arg(long, value_name = "PLUGIN.NAME[=VALUE]", value_parser = values::plugin_option)]
    pub(super) plugin_option: Vec<PluginOption>,

    /// Handle memory areas of user-space probes (CRIU 4.2)
    #[arg(long)]
    pub(super) allow_uprobes: bool,

    /// Show CRIU's statistics
    #[arg(long)]
    pub(super) display_stats: bool,

    /// Program that is run at a callback, such as post-dump=/usr/local/bin/snapshot; can be repeated
    ///
    /// The program gets CRTOOLS_SCRIPT_ACTION, CRTOOLS_IMAGE_DIR and CRTOOLS_INIT_PID in its environment, as CRIU's own
    /// action scripts do. It is looked for on the PATH unless it has a slash. CRIU waits for it; an exit status other
    /// than 0 refuses. One callback has at most one program.
    #[arg(long = "hook", value_name = "SCRIPT=PROGRAM", value_parser = values::hook)]
    pub(super) hooks: Vec<Hook>,
}

impl CriuMore {
    pub(super) fn program_arguments(&self) -> Option<OsString> {
        self.allow_uprobes.then(|| "--allow-uprobes".into())
    }
}

/// Sets those flags of `$options` that are given in `$args`, from `field => setter` pairs.
macro_rules! flags {
    ($options:ident, $args:expr, $($field:ident => $setter:ident),* $(,)?) => {
        $(if $args.$field {
            $options = $options.$setter(true);
        })*
    };
}

/// Sets those values of `$options` that are given in `$args`, from `field => setter` pairs.
macro_rules! given {
    ($options:ident, $args:expr, $($field:ident => $setter:ident),* $(,)?) => {
        $(if let Some(value) = &$args.$field {
            $options = $options.$setter(value.clone());
        })*
    };
}

/// Applies what every request has: [`CriuArgs`] and the work directory.
macro_rules! apply_common {
    ($options:ident, $criu:expr, $work:expr) => {
        $crate::cli::options::flags!($options, $criu, log_to_stderr => log_to_stderr);
        $crate::cli::options::given!($options, $criu, config => config_file, log_level => log_level);
        if let Some(directory) = $work {
            $options = $options.work_path(directory);
        }
    };
}

/// Applies what dump, pre-dump and restore have.
macro_rules! apply_modern {
    ($options:ident, $images:expr, $more:expr) => {
        $crate::cli::options::flags!($options, $images, stream => stream);
        for option in &$more.plugin_option {
            $options = $options.plugin_option(&option.plugin, &option.name, option.value.as_deref());
        }
    };
}

/// Applies what dump and restore have.
macro_rules! apply_tree {
    ($options:ident, $args:expr) => {
        $crate::cli::options::flags!($options, $args.images, auto_dedup => auto_dedup);
        $crate::cli::options::given!($options, $args.images, image_io_mode => image_io_mode);
        $crate::cli::options::flags!($options, $args.tasks, shell_job => shell_job);
        $crate::cli::options::given!($options, $args.tasks, cpu_cap => cpu_capabilities);
        $crate::cli::options::flags!(
            $options,
            $args.files,
            ext_unix_sk => external_unix_sockets,
            file_locks => file_locks,
            link_remap => link_remap,
            evasive_devices => evasive_devices,
        );
        $crate::cli::options::flags!(
            $options,
            $args.network,
            tcp_established => tcp_established,
            tcp_close => tcp_close,
        );
        $crate::cli::options::given!($options, $args.mounts, root => root);
        for name in &$args.mounts.enable_fs {
            $options = $options.enable_fs(name);
        }
        $crate::cli::options::flags!(
            $options,
            $args.mounts,
            enable_external_sharing => external_sharing,
            enable_external_masters => external_masters,
        );
        if let Some(mode) = $args.cgroups.mode() {
            $options = $options.manage_cgroups(mode);
        }
        $crate::cli::options::given!($options, $args.cgroups, cgroup_yard => cgroup_yard);
        for root in &$args.cgroups.cgroup_root {
            $options = $options.cgroup_root(root.controller.as_deref(), &root.path);
        }
        if $args.namespaces.empty_ns.is_some() {
            $options = $options.empty_network_namespace(true);
        }
    };
}

pub(super) use {apply_common, apply_modern, apply_tree, flags, given};

/// The work directory, which the operation makes if it is missing: it gets logs only.
pub(super) fn work_path(path: Option<&Path>) -> Result<Option<&Path>, Failure> {
    if let Some(path) = path {
        ImagesDir::missing(path).map_err(|error| {
            Failure::input(format!("{} cannot be the work directory", path.display()))
                .caused_by(error)
        })?;
    }
    Ok(path)
}

/// An address to listen on, which nobody but the user may choose.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| {
        "write a numeric IPv4 or IPv6 address; 0.0.0.0 or :: for every address of this machine"
            .into()
    })
}
