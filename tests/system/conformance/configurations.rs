//! What the containers of runc and crun are, and what both sides are told.

use std::path::Path;

use criu_client::container::runtime::{CheckpointOptions, RestoreOptions};
use criu_client::options::{self, CgroupMode, DumpOptions, NetworkLock, PageTransport};
use serde_json::{Value, json};

use super::Reaches;

/// What a container is and what both sides are told, so that both are told the same.
pub(super) struct Configuration {
    pub(super) name: &'static str,
    pub(super) engines: &'static [&'static str],
    pub(super) reaches: Reaches,
    /// Who comes less far.
    pub(super) fails: &'static [(&'static str, Reaches)],
    /// Namespaces of another process, as unshare(1) names them, that the container can join.
    pub(super) kept: &'static [&'static str],
    /// Of the configuration, the directory of the test and the process that keeps namespaces.
    pub(super) change: fn(&mut Value, &Path, u32),
    /// `DIR` is the directory of the test.
    pub(super) dump: &'static [&'static str],
    pub(super) our_dump: fn(CheckpointOptions, &Path) -> CheckpointOptions,
    pub(super) restore: &'static [&'static str],
    pub(super) our_restore: fn(RestoreOptions, &Path) -> RestoreOptions,
    /// A port of this machine that somebody else has meanwhile.
    pub(super) taken: Option<u16>,
}

const BOTH: &[&str] = &["runc", "crun"];
const RUNC: &[&str] = &["runc"];
const CRUN: &[&str] = &["crun"];

const DEFAULT: Configuration = Configuration {
    name: "default",
    engines: BOTH,
    reaches: Reaches::End,
    fails: &[],
    kept: &[],
    change: |_, _, _| {},
    dump: &[],
    our_dump: |options, _| options,
    restore: &[],
    our_restore: |options, _| options,
    taken: None,
};

pub(super) const CONFIGURATIONS: &[Configuration] = &[
    DEFAULT,
    Configuration {
        name: "terminal",
        change: |config, _, _| config["process"]["terminal"] = json!(true),
        ..DEFAULT
    },
    Configuration {
        name: "pipe",
        ..DEFAULT
    },
    Configuration {
        name: "binds",
        change: |config, directory, _| {
            let source = directory.join("source");
            mount(
                config,
                json!({"destination": "/a", "type": "bind", "source": source, "options": ["rbind", "ro"]}),
            );
            mount(
                config,
                json!({"destination": "/a/inner", "type": "none", "source": source.join("inner"), "options": ["bind"]}),
            );
            mount(
                config,
                json!({"destination": "/file", "type": "bind", "source": source.join("file"), "options": ["bind"]}),
            );
            mount(
                config,
                json!({"destination": "/cache", "type": "tmpfs", "source": "tmpfs"}),
            );
        },
        ..DEFAULT
    },
    Configuration {
        name: "nothing-masked",
        change: |config, _, _| {
            config["linux"]["maskedPaths"] = json!([]);
            config["linux"]["readonlyPaths"] = json!([]);
        },
        ..DEFAULT
    },
    Configuration {
        name: "own-masks",
        change: |config, _, _| {
            config["linux"]["maskedPaths"] =
                json!(["/proc/keys", "/proc/acpi", "/proc/none", "/proc/version"]);
        },
        ..DEFAULT
    },
    Configuration {
        name: "devices",
        change: |config, _, _| {
            config["linux"]["devices"] =
                json!([{"path": "/dev/extra", "type": "c", "major": 1, "minor": 5}]);
        },
        ..DEFAULT
    },
    Configuration {
        name: "joined-network",
        kept: &["net"],
        change: |config, _, keeper| join(config, "network", keeper, "net"),
        ..DEFAULT
    },
    Configuration {
        name: "joined-pid",
        kept: &["pid"],
        change: |config, _, keeper| join(config, "pid", keeper, "pid_for_children"),
        ..DEFAULT
    },
    Configuration {
        name: "user-namespace",
        change: |config, _, _| {
            let namespaces = config["linux"]["namespaces"].as_array_mut();
            namespaces
                .expect("namespaces")
                .push(json!({"type": "user"}));
            let mapping = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
            config["linux"]["uidMappings"] = mapping.clone();
            config["linux"]["gidMappings"] = mapping;
        },
        fails: &[("crun", Reaches::Dump)],
        ..DEFAULT
    },
    Configuration {
        name: "parent-path",
        // crun asks first, and gives up.
        engines: RUNC,
        // This kernel does not track memory changes.
        reaches: Reaches::Dump,
        dump: &["--parent-path=../parent"],
        our_dump: |options, _| options.parent_path("../parent"),
        ..DEFAULT
    },
    Configuration {
        name: "joined-ipc-and-uts",
        kept: &["ipc", "uts"],
        change: |config, _, keeper| {
            join(config, "ipc", keeper, "ipc");
            join(config, "uts", keeper, "uts");
            config["hostname"] = json!("");
        },
        ..DEFAULT
    },
    Configuration {
        name: "host-network",
        change: |config, _, _| without(config, "network"),
        ..DEFAULT
    },
    Configuration {
        name: "cgroup-namespace",
        change: |config, _, _| {
            let namespaces = config["linux"]["namespaces"].as_array_mut();
            let namespaces = namespaces.expect("namespaces");
            namespaces.retain(|namespace| namespace["type"] != "cgroup");
            namespaces.push(json!({"type": "cgroup"}));
        },
        ..DEFAULT
    },
    Configuration {
        name: "no-cgroup-namespace",
        change: |config, _, _| without(config, "cgroup"),
        ..DEFAULT
    },
    Configuration {
        name: "no-cgroup-mount",
        change: |config, _, _| {
            let mounts = config["mounts"].as_array_mut().expect("mounts");
            mounts.retain(|mount| mount["type"] != "cgroup");
        },
        ..DEFAULT
    },
    Configuration {
        name: "flags",
        dump: &[
            "--tcp-established",
            "--ext-unix-sk",
            "--shell-job",
            "--file-locks",
        ],
        our_dump: |options, _| {
            options
                .tcp_established(true)
                .ext_unix_sk(true)
                .shell_job(true)
                .file_locks(true)
        },
        restore: &[
            "--tcp-established",
            "--ext-unix-sk",
            "--shell-job",
            "--file-locks",
        ],
        our_restore: |options, _| {
            options
                .tcp_established(true)
                .ext_unix_sk(true)
                .shell_job(true)
                .file_locks(true)
        },
        ..DEFAULT
    },
    Configuration {
        name: "leave-running",
        dump: &["--leave-running"],
        our_dump: |options, _| options.leave_running(true),
        ..DEFAULT
    },
    Configuration {
        name: "work-path",
        dump: &["--work-path=DIR/work"],
        our_dump: |options, directory| options.work_path(directory.join("work")),
        restore: &["--work-path=DIR/work"],
        our_restore: |options, directory| options.work_path(directory.join("work")),
        ..DEFAULT
    },
    Configuration {
        name: "cgroups-full",
        dump: &["--manage-cgroups-mode=full"],
        our_dump: |options, _| options.manage_cgroups_mode(CgroupMode::Full),
        restore: &["--manage-cgroups-mode=full"],
        our_restore: |options, _| options.manage_cgroups_mode(CgroupMode::Full),
        ..DEFAULT
    },
    Configuration {
        name: "cgroups-strict",
        dump: &["--manage-cgroups-mode=strict"],
        our_dump: |options, _| options.manage_cgroups_mode(CgroupMode::Strict),
        restore: &["--manage-cgroups-mode=soft"],
        our_restore: |options, _| options.manage_cgroups_mode(CgroupMode::Soft),
        ..DEFAULT
    },
    Configuration {
        name: "cgroups-ignore",
        // runc has it since 1.2.
        engines: CRUN,
        dump: &["--manage-cgroups-mode=ignore"],
        our_dump: |options, _| options.manage_cgroups_mode(CgroupMode::Ignore),
        restore: &["--manage-cgroups-mode=ignore"],
        our_restore: |options, _| options.manage_cgroups_mode(CgroupMode::Ignore),
        ..DEFAULT
    },
    Configuration {
        name: "auto-dedup",
        engines: RUNC,
        dump: &["--auto-dedup"],
        our_dump: |options, _| options.auto_dedup(true),
        restore: &["--auto-dedup"],
        our_restore: |options, _| options.auto_dedup(true),
        ..DEFAULT
    },
    Configuration {
        name: "empty-ns",
        engines: RUNC,
        dump: &["--empty-ns=network"],
        our_dump: |options, _| options.criu(DumpOptions::new().empty_network_namespace(true)),
        restore: &["--empty-ns=network"],
        our_restore: |options, _| {
            options.criu(options::RestoreOptions::new().empty_network_namespace(true))
        },
        ..DEFAULT
    },
    Configuration {
        name: "page-server",
        engines: RUNC,
        // Nobody listens there.
        reaches: Reaches::Dump,
        dump: &["--page-server=127.0.0.1:9"],
        our_dump: |options, _| options.page_server(PageTransport::tcp("127.0.0.1", 9)),
        ..DEFAULT
    },
    Configuration {
        name: "lazy-pages",
        engines: RUNC,
        // It would wait there for whoever fetches the memory, with the tasks frozen.
        reaches: Reaches::Dump,
        taken: Some(9),
        dump: &["--lazy-pages", "--page-server=127.0.0.1:9"],
        our_dump: |options, _| {
            options
                .lazy_pages(true)
                .page_server(PageTransport::tcp("127.0.0.1", 9))
        },
        ..DEFAULT
    },
    Configuration {
        name: "network-lock",
        engines: CRUN,
        dump: &["--network-lock", "skip"],
        our_dump: |options, _| options.criu(DumpOptions::new().network_lock(NetworkLock::Skip)),
        restore: &["--network-lock", "skip"],
        ..DEFAULT
    },
    Configuration {
        name: "lsm",
        // This kernel has no such profile.
        reaches: Reaches::Restore,
        restore: &[
            "--lsm-profile=apparmor:nobody",
            "--lsm-mount-context=nothing",
        ],
        our_restore: |options, _| {
            options
                .lsm_profile("apparmor:nobody".parse().expect("a profile"))
                .lsm_mount_context("nothing")
        },
        ..DEFAULT
    },
    Configuration {
        name: "criu-config",
        change: |config, directory, _| {
            let file = directory.join("criu.conf");
            config["annotations"]["org.criu.config"] = json!(file);
        },
        ..DEFAULT
    },
    Configuration {
        name: "no-criu-config",
        change: |config, _, _| config["annotations"]["org.criu.config"] = json!(""),
        ..DEFAULT
    },
];

impl Configuration {
    pub(super) fn reaches_of(&self, engine: &str) -> Reaches {
        let fails = self.fails.iter().find(|(failing, _)| *failing == engine);
        fails.map_or(self.reaches, |(_, reaches)| *reaches)
    }
}

fn mount(config: &mut Value, mount: Value) {
    config["mounts"].as_array_mut().expect("mounts").push(mount);
}

fn without(config: &mut Value, kind: &str) {
    let namespaces = config["linux"]["namespaces"].as_array_mut();
    namespaces
        .expect("namespaces")
        .retain(|namespace| namespace["type"] != kind);
}

fn join(config: &mut Value, kind: &str, keeper: u32, file: &str) {
    without(config, kind);
    let namespaces = config["linux"]["namespaces"].as_array_mut();
    let path = format!("/proc/{keeper}/ns/{file}");
    namespaces
        .expect("namespaces")
        .push(json!({"type": kind, "path": path}));
}
