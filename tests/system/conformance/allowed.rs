//! Where our requests are to differ from an engine's own, and why.

use super::Side;

/// A difference that is meant.
#[derive(Debug)]
pub(super) struct Allowed {
    pub(super) engines: &'static [&'static str],
    pub(super) side: Side,
    pub(super) configurations: Configurations,
    /// Only where the host has control groups of version 1.
    pub(super) cgroup_v1: bool,
    /// The options, each of which differs; `*` stands for any text, here and in the values. A value `-` is none.
    pub(super) options: &'static [&'static str],
    pub(super) ours: &'static str,
    pub(super) theirs: &'static str,
    pub(super) reason: &'static str,
}

/// In which configurations a difference must be.
#[derive(Debug)]
pub(super) enum Configurations {
    All,
    In(&'static [&'static str]),
    But(&'static [&'static str]),
}

impl Configurations {
    pub(super) fn named(&self) -> &'static [&'static str] {
        match self {
            Self::All => &[],
            Self::In(named) | Self::But(named) => named,
        }
    }
}

impl Allowed {
    pub(super) fn is_for(&self, engine: &str, configuration: &str, side: Side) -> bool {
        let configured = match self.configurations {
            Configurations::All => true,
            Configurations::In(named) => named.contains(&configuration),
            Configurations::But(named) => !named.contains(&configuration),
        };
        let host = !self.cgroup_v1 || std::path::Path::new("/sys/fs/cgroup/freezer").is_dir();
        configured && host && self.side == side && self.engines.contains(&engine)
    }
}

/// Whether `text` is `pattern`, in which `*` stands for any text.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            (0..=text.len())
                .filter(|at| text.is_char_boundary(*at))
                .any(|at| matches(rest, &text[at..]))
        }),
    }
}

use Configurations::{All, But, In};
use Side::{Dump, Restore};

// By the runtime that sends the request.
const ALL_ENGINES: &[&str] = &["runc", "podman+runc", "docker", "crun", "podman+crun"];
const RUNC: &[&str] = &["runc", "podman+runc", "docker"];
const CRUN: &[&str] = &["crun", "podman+crun"];
const ABOVE: &[&str] = &["podman+runc", "podman+crun", "docker"];

const ROW: Allowed = Allowed {
    engines: ALL_ENGINES,
    side: Dump,
    configurations: All,
    cgroup_v1: false,
    options: &[],
    ours: "-",
    theirs: "-",
    reason: "",
};

const FLAGS: &[&str] = &["ext_unix_sk", "file_locks", "shell_job", "tcp_established"];
const SENT: &str = "runtimes send every flag of theirs; what we were not told is not sent, which is the same to CRIU and leaves it to \
                    CRIU's own configuration files";
const LOG: &str =
    "how much is logged is the caller's; a failure's causes are logged at every level";
const MODE: &str = "the mode that we always send has manage_cgroups in it";
const MASKS: &str = "images of crun name a mask by its path, also of what is not there on this host; what is not asked for is ignored";
const DIRECTORIES: &str = "newer releases of crun mask directories with an empty one of the host, named by its path or theirs";
const OWN_GROUPS: &str = "the runtimes show the restored container the restorer's own groups; ours shows it the container's, as before";

pub(super) static ALLOWED: &[Allowed] = &[
    // Both sides.
    Allowed {
        configurations: But(&["flags"]),
        options: FLAGS,
        theirs: "false",
        reason: SENT,
        ..ROW
    },
    Allowed {
        side: Restore,
        configurations: But(&["flags"]),
        options: FLAGS,
        theirs: "false",
        reason: SENT,
        ..ROW
    },
    Allowed {
        engines: RUNC,
        configurations: But(&["lazy-pages"]),
        options: &["lazy_pages"],
        theirs: "false",
        reason: SENT,
        ..ROW
    },
    Allowed {
        engines: RUNC,
        side: Restore,
        options: &["lazy_pages"],
        theirs: "false",
        reason: SENT,
        ..ROW
    },
    Allowed {
        engines: RUNC,
        configurations: But(&["auto-dedup"]),
        options: &["auto_dedup"],
        theirs: "false",
        reason: SENT,
        ..ROW
    },
    Allowed {
        engines: RUNC,
        side: Restore,
        configurations: But(&["auto-dedup"]),
        options: &["auto_dedup"],
        theirs: "false",
        reason: SENT,
        ..ROW
    },
    Allowed {
        configurations: But(&["leave-running"]),
        options: &["leave_running"],
        theirs: "false",
        reason: SENT,
        ..ROW
    },
    Allowed {
        options: &["log_level"],
        theirs: "4",
        reason: LOG,
        ..ROW
    },
    Allowed {
        side: Restore,
        options: &["log_level"],
        theirs: "4",
        reason: LOG,
        ..ROW
    },
    Allowed {
        options: &["manage_cgroups"],
        theirs: "true",
        reason: MODE,
        ..ROW
    },
    Allowed {
        side: Restore,
        options: &["manage_cgroups"],
        theirs: "true",
        reason: MODE,
        ..ROW
    },
    Allowed {
        engines: RUNC,
        configurations: In(&["joined-network", "host-network"]),
        options: &["empty_ns"],
        theirs: "1073741824",
        reason: "runc asks for an empty network namespace where there is none to be restored; CRIU then ignores it",
        ..ROW
    },
    Allowed {
        engines: RUNC,
        side: Restore,
        configurations: In(&["joined-network", "host-network"]),
        options: &["empty_ns"],
        theirs: "1073741824",
        reason: "as at the dump",
        ..ROW
    },
    // Dump.
    Allowed {
        engines: RUNC,
        configurations: But(&["cgroups-full", "cgroups-strict"]),
        options: &["manage_cgroups_mode"],
        ours: "SOFT",
        reason: "releases of runc before 1.2 send no mode unless told; soft is what CRIU does then",
        ..ROW
    },
    Allowed {
        engines: CRUN,
        options: &["notify_scripts"],
        ours: "true",
        reason: "without callbacks CRIU does not notice that its client has died, and kills the tasks",
        ..ROW
    },
    Allowed {
        configurations: In(&["joined-network"]),
        options: &["network_lock"],
        ours: "SKIP",
        reason: "CRIU would lock the network for those as well who share it and go on",
        ..ROW
    },
    Allowed {
        engines: RUNC,
        configurations: But(&["user-namespace"]),
        options: &["external[mnt[/dev/*]]"],
        theirs: "/dev/*",
        reason: "runc names device files as mounts, which they are only in a user namespace; the others are in the container's own /dev",
        ..ROW
    },
    Allowed {
        engines: RUNC,
        configurations: But(&["nothing-masked", "user-namespace"]),
        options: &["external[mnt[/proc/*]]"],
        theirs: "/dev/null",
        reason: "a mask made of the container's own null device is in the images without a name, which every runtime restores",
        ..ROW
    },
    Allowed {
        engines: CRUN,
        configurations: In(&["cgroup-namespace"]),
        cgroup_v1: true,
        options: &["external[mnt[/sys/fs/cgroup/*]]"],
        theirs: "/sys/fs/cgroup/*",
        reason: "with a cgroup namespace these mounts are the container's own, and restored from the images",
        ..ROW
    },
    Allowed {
        engines: CRUN,
        configurations: In(&["user-namespace"]),
        options: &["external[mnt[/dev/*]]"],
        ours: "/dev/*",
        reason: "in a user namespace devices are mounts from outside; crun does not name them, and its dump fails",
        ..ROW
    },
    Allowed {
        engines: CRUN,
        configurations: In(&["criu-config"]),
        options: &["config_file"],
        ours: "DIR/criu.conf",
        reason: "crun takes the annotation org.criu.config since 1.26",
        ..ROW
    },
    Allowed {
        engines: ABOVE,
        options: &["images_dir_fd"],
        ours: "DIR/images",
        theirs: "DIR/*",
        reason: "engines keep images where they keep everything; ours are where we were told",
        ..ROW
    },
    Allowed {
        engines: ABOVE,
        options: &["work_dir_fd"],
        theirs: "DIR/*",
        reason: "engines keep logs apart from the images, to find them; ours are where --work-path says, or with the images",
        ..ROW
    },
    Allowed {
        engines: &["podman+crun"],
        options: &["root"],
        ours: "DIR/storage/overlay/*/merged",
        theirs: "DIR/*DIR/storage/overlay/*/merged",
        reason: "crun puts the bundle before an absolute root; at a dump CRIU needs it for AUFS only",
        ..ROW
    },
    // Restore.
    Allowed {
        engines: CRUN,
        side: Restore,
        configurations: In(&["criu-config"]),
        options: &["config_file"],
        ours: "DIR/criu.conf",
        reason: "as at the dump",
        ..ROW
    },
    Allowed {
        side: Restore,
        options: &["rst_sibling"],
        theirs: "true",
        reason: "a detached restore needs no child; ours in the foreground asks for one",
        ..ROW
    },
    Allowed {
        side: Restore,
        options: &["root"],
        ours: "/run/criu-client/restore-*",
        theirs: "DIR/*/criu-root",
        reason: "the mount is not in the container's directory, where its runtime's delete could empty it should we die",
        ..ROW
    },
    Allowed {
        engines: RUNC,
        side: Restore,
        configurations: But(&["cgroups-full"]),
        options: &["manage_cgroups_mode"],
        ours: "SOFT",
        reason: "the restore of runc 1.1 sends no mode, whatever it is told; soft is what CRIU does then",
        ..ROW
    },
    Allowed {
        engines: RUNC,
        side: Restore,
        configurations: In(&["cgroups-full"]),
        options: &["manage_cgroups_mode"],
        ours: "FULL",
        reason: "the restore of runc 1.1 takes the option and forgets it",
        ..ROW
    },
    Allowed {
        engines: CRUN,
        side: Restore,
        configurations: In(&["network-lock"]),
        options: &["network_lock"],
        theirs: "SKIP",
        reason: "CRIU reads from the images how the network was locked, whatever it is told",
        ..ROW
    },
    Allowed {
        engines: CRUN,
        side: Restore,
        configurations: In(&["cgroups-full", "cgroups-ignore"]),
        options: &["manage_cgroups_mode"],
        ours: "*",
        theirs: "SOFT",
        reason: "crun's restore takes the option and restores softly",
        ..ROW
    },
    Allowed {
        engines: CRUN,
        side: Restore,
        cgroup_v1: true,
        options: &["cg_root[*]"],
        ours: "/*",
        reason: "crun leaves the tasks in the groups of the images; ours end up in those of the container's name",
        ..ROW
    },
    Allowed {
        engines: CRUN,
        side: Restore,
        options: &["evasive_devices"],
        ours: "true",
        reason: "images may come from runc, which restores with it",
        ..ROW
    },
    Allowed {
        engines: CRUN,
        side: Restore,
        options: &["external[mnt[/dev/*]]"],
        ours: "/dev/*",
        reason: "images of runc's own checkpoints name devices and masks so",
        ..ROW
    },
    Allowed {
        side: Restore,
        configurations: But(&["nothing-masked"]),
        options: &["external[mnt[/proc/*]]"],
        ours: "/dev/null",
        reason: MASKS,
        ..ROW
    },
    Allowed {
        side: Restore,
        configurations: But(&["nothing-masked"]),
        options: &["external[mnt[*]]"],
        ours: "/run/criu-client/.empty-directory",
        reason: DIRECTORIES,
        ..ROW
    },
    Allowed {
        engines: RUNC,
        side: Restore,
        configurations: But(&["no-cgroup-mount", "cgroup-namespace"]),
        cgroup_v1: true,
        options: &["external[mnt[/sys/fs/cgroup/*]]"],
        ours: "/sys/fs/cgroup/*/ID",
        theirs: "/sys/fs/cgroup/*",
        reason: OWN_GROUPS,
    },
    Allowed {
        engines: CRUN,
        side: Restore,
        configurations: But(&["no-cgroup-mount"]),
        cgroup_v1: true,
        options: &["external[mnt[/sys/fs/cgroup/*]]"],
        ours: "/sys/fs/cgroup/*/ID",
        theirs: "/sys/fs/cgroup/*",
        reason: OWN_GROUPS,
    },
    Allowed {
        engines: RUNC,
        side: Restore,
        configurations: In(&["cgroup-namespace"]),
        cgroup_v1: true,
        options: &["external[mnt[/sys/fs/cgroup/*]]"],
        ours: "/sys/fs/cgroup/*/ID",
        reason: "crun names these mounts also of a container with a cgroup namespace",
        ..ROW
    },
];
