//! Plans of recorded containers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::record::{self, Record};
use crate::container::cgroup::Hierarchies;
use crate::container::model::{Live, Model, MountEntry, MountKind, NamespaceKind, ProcessId};
use crate::container::plan::{Consumer, DumpPlan, Masks, RestorePlan};
use crate::container::runtime::engine::{Adopted, Record as _};

macro_rules! recorded {
    ($name:literal) => {
        Recorded::new(
            include_str!(concat!("../../../tests/data/runc/", $name, "/state.json")),
            include_str!(concat!("../../../tests/data/runc/", $name, "/mountinfo")),
        )
    };
}

/// A recorded container, with a root file system where its record says.
struct Recorded {
    directory: tempfile::TempDir,
    record: Record,
    live: Live,
}

const INIT: ProcessId = ProcessId {
    pid: 4711,
    start_time: 99,
};

impl Recorded {
    fn new(state: &str, mountinfo: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let here = |text: &str| text.replace("/bundles", directory.path().to_str().unwrap());
        let record = Record::parse(here(state).as_bytes()).unwrap();
        std::fs::create_dir_all(record.rootfs().join("run")).unwrap();
        let live = Live {
            init: INIT,
            mounts: MountEntry::parse_all(here(mountinfo).as_bytes()).unwrap(),
            host_mounts: Vec::new(),
            stdio: ["/dev/null", "pipe:[12]", "pipe:[12]"].map(str::to_owned),
            pipes: BTreeSet::new(),
            namespaces: BTreeMap::from([
                (NamespaceKind::Network, 4_026_532_181),
                (NamespaceKind::Pid, 4_026_532_180),
            ]),
        };
        Self {
            directory,
            record,
            live,
        }
    }

    fn model(&self) -> Model {
        self.record.model(false).unwrap()
    }

    fn dump(&self) -> Value {
        let plan = DumpPlan::new(
            &self.model(),
            &self.live,
            self.record.noted_stdio(),
            Consumer::Any,
        );
        self.neutral(&plan)
    }

    /// With the bundles where they were recorded.
    fn neutral(&self, plan: &impl serde::Serialize) -> Value {
        let text = serde_json::to_string(plan).unwrap();
        serde_json::from_str(&text.replace(self.directory.path().to_str().unwrap(), "/bundles"))
            .unwrap()
    }

    fn restore(&self, model: &Model, names: &[&str], descriptors: &[&str]) -> Value {
        let own = |texts: &[&str]| {
            texts
                .iter()
                .map(|text| text.to_string())
                .collect::<Vec<_>>()
        };
        self.neutral(&RestorePlan::new(
            model,
            &host(),
            &own(names),
            &own(descriptors),
            false,
            &Masks::default(),
        ))
    }
}

fn host() -> Hierarchies {
    let mount = |name: &str, kind: &str, options: &str| {
        format!("31 23 0:28 / /sys/fs/cgroup/{name} rw - {kind} {kind} rw,{options}\n")
    };
    let mounts = mount("cpu,cpuacct", "cgroup", "cpu,cpuacct")
        + &mount("freezer", "cgroup", "freezer")
        + &mount("unified", "cgroup2", "nsdelegate");
    let own = "3:cpu,cpuacct:/job\n2:freezer:/\n0::/user\n";
    Hierarchies::new(&MountEntry::parse_all(mounts.as_bytes()).unwrap(), own)
}

#[test]
fn a_default_container_has_its_groups_outside_and_nothing_else() {
    let plan = recorded!("default").dump();
    let groups = [
        "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd",
    ];
    let expected = json!({
        "pid": 4711,
        "root": "/bundles/b1/rootfs",
        "external": groups.map(|name| format!("mnt[/sys/fs/cgroup/{name}]:/sys/fs/cgroup/{name}")),
        "emptyNetworkNamespace": true,
        "freezeCgroup": "/sys/fs/cgroup/freezer/rx1",
        "configFile": "/etc/criu/runc.conf",
        "descriptors": ["/dev/null", "pipe:[12]", "pipe:[12]"],
        "consumer": "any",
        "notes": [],
    });
    assert_eq!(plan, expected);
}

#[test]
fn binds_are_named_by_their_place() {
    let recorded = recorded!("everything");
    let plan = recorded.dump();
    let external: Vec<_> = plan["external"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert!(
        external.contains(&"mnt[/data]:/data") && external.contains(&"mnt[/etc/conf]:/etc/conf"),
        "{external:?}"
    );
    assert_eq!(external.len(), 9 + 2, "{external:?}");
    assert_eq!(
        plan["configFile"],
        Value::Null,
        "the annotation switches it off"
    );
    assert_eq!(recorded.model().limits.memory.limit, Some(268_435_456));
    assert_eq!(recorded.model().create_hooks[0].timeout, Some(5));
}

#[test]
fn masks_and_devices_of_the_host_are_named() {
    let plan = recorded!("user-namespace").dump();
    let external: Vec<_> = plan["external"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for expected in [
        "mnt[/proc/keys]:/dev/null",
        "mnt[/proc/timer_list]:/dev/null",
        "mnt[/dev/null]:/dev/null",
        "mnt[/dev/tty]:/dev/tty",
    ] {
        assert!(
            external.contains(&expected),
            "{expected} is not among {external:?}"
        );
    }
    assert!(
        !external.iter().any(|name| name.contains("/proc/acpi")),
        "masked directories are the container's own"
    );
}

#[test]
fn mounts_that_a_bind_brings_along_are_named_if_they_are_the_hosts() {
    let mut recorded = recorded!("everything");
    let inner = |place: &str, device: &str| {
        let line = format!("90 81 {device} / {place} rw - tmpfs tmpfs rw");
        MountEntry::parse_all(line.as_bytes()).unwrap().remove(0)
    };
    let source = recorded
        .directory
        .path()
        .join("e/src/inner")
        .display()
        .to_string();
    recorded.live.mounts.push(inner("/data/inner", "0:77"));
    recorded.live.mounts.push(inner("/data/own", "0:78"));
    recorded.live.host_mounts.push(inner(&source, "0:77"));
    let plan = recorded.dump().to_string();
    assert!(plan.contains("mnt[/data/inner]:/data/inner"), "{plan}");
    assert!(
        !plan.contains("/data/own"),
        "the container's own mount is in the images: {plan}"
    );
    let plan = recorded
        .restore(&recorded.model(), &["/data/inner", "/data"], &[])
        .to_string();
    assert!(
        plan.contains("mnt[/data/inner]:/bundles/e/src/inner"),
        "{plan}"
    );
}

#[test]
fn namespaces_with_a_path_are_outside() {
    let mut recorded = recorded!("default");
    for namespace in recorded.record.raw["config"]["namespaces"]
        .as_array_mut()
        .unwrap()
    {
        let path = match namespace["type"].as_str() {
            Some("NEWNET") => "/run/netns/blue",
            Some("NEWIPC") => "/proc/7/ns/ipc",
            _ => continue,
        };
        namespace["path"] = json!(path);
    }
    recorded.record = Record::parse(&serde_json::to_vec(&recorded.record.raw).unwrap()).unwrap();
    let plan = recorded.dump();
    assert!(
        plan["external"]
            .to_string()
            .contains("net[4026532181]:extRootNetNS"),
        "{plan}"
    );
    assert_eq!(plan["emptyNetworkNamespace"], false);
    let plan = recorded.restore(&recorded.model(), &[], &[]);
    assert_eq!(
        plan["inheritNamespaces"],
        json!([["extRootNetNS", "/run/netns/blue"]])
    );
    assert_eq!(plan["join"], json!(["ipc:/proc/7/ns/ipc"]));
    assert_eq!(plan["emptyNetworkNamespace"], false);
}

#[test]
fn a_restore_answers_to_every_name() {
    let recorded = recorded!("everything");
    let mut model = recorded.model();
    model.cgroups = host().paths("/everything/box", "x");
    let plan = recorded.restore(&model, &[], &["/dev/null", "pipe:[12]", "pipe:[12]"]);
    let external: Vec<_> = plan["external"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for expected in [
        "mnt[/data]:/bundles/e/src",
        "mnt[/etc/conf]:/bundles/e/src/file",
        "mnt[/sys/fs/cgroup/cpu,cpuacct]:/sys/fs/cgroup/cpu,cpuacct/everything/box",
        "mnt[/sys/fs/cgroup/freezer]:/sys/fs/cgroup/freezer/everything/box",
        "mnt[/dev/null]:/dev/null",
        "mnt[/proc/keys]:/dev/null",
        "mnt[/dev/fuse]:/dev/fuse",
    ] {
        assert!(
            external.contains(&expected),
            "{expected} is not among {external:?}"
        );
    }
    let unique: BTreeSet<_> = external
        .iter()
        .filter_map(|name| name.split("]:").next())
        .collect();
    assert_eq!(unique.len(), external.len(), "a name twice: {external:?}");
    assert_eq!(plan["pipes"], json!([[1, "pipe:[12]"], [2, "pipe:[12]"]]));
    let roots = json!([
        ["", "/everything/box"],
        ["cpu", "/everything/box"],
        ["cpuacct", "/everything/box"],
        ["freezer", "/everything/box"]
    ]);
    assert_eq!(plan["cgroupRoots"], roots);
    let points: Vec<_> = plan["mountPoints"]
        .as_array()
        .or(plan["mountPoints"].as_array())
        .unwrap()
        .iter()
        .map(|point| {
            format!(
                "{} {}",
                point["below"].as_str().unwrap(),
                point["path"].as_str().unwrap()
            )
        })
        .collect();
    let below_root = ["/proc", "/dev", "/sys", "/data", "/etc/conf", "/cache"];
    assert_eq!(
        points,
        below_root.map(|path| format!("/bundles/e/rootfs {path}"))
    );
}

#[test]
fn mount_points_in_binds_are_in_their_sources() {
    let recorded = recorded!("everything");
    let mut model = recorded.model();
    let mut nested = model.mounts[7].clone();
    assert_eq!(
        (&nested.kind, nested.target.as_path()),
        (&MountKind::Bind, Path::new("/data"))
    );
    nested.target = "/data/deep/point".into();
    nested.source = PathBuf::from("/elsewhere");
    model.mounts.push(nested);
    let plan = recorded.restore(&model, &[], &[]);
    let last = plan["mountPoints"].as_array().unwrap().last().unwrap();
    assert_eq!(
        *last,
        json!({"below": "/bundles/e/src", "path": "/deep/point", "like": "/elsewhere"})
    );
}

#[test]
fn descriptors_are_pipes_that_somebody_has_open() {
    let mut recorded = recorded!("default");
    recorded.live.stdio = ["pipe:[1]", "/out", ""].map(str::to_owned);
    recorded.live.pipes = BTreeSet::from(["pipe:[3]".to_owned()]);
    let noted = ["/dev/null", "pipe:[2]", "pipe:[3]"].map(str::to_owned);
    let descriptors = |noted: &[String]| {
        DumpPlan::new(&recorded.model(), &recorded.live, noted, Consumer::Any).descriptors
    };
    assert_eq!(descriptors(&noted), ["pipe:[1]", "/out", "pipe:[3]"]);
    assert_eq!(descriptors(&[]), ["pipe:[1]", "/out", "/dev/null"]);
}

#[test]
fn what_is_written_is_read_again() {
    let recorded = recorded!("everything");
    let Value::Object(config) = recorded.record.raw["config"].clone() else {
        panic!("no configuration");
    };
    let model = recorded.model();
    for time_namespaces in [false, true] {
        let restored = Adopted {
            id: "other",
            init: INIT,
            cgroups: &model.cgroups,
            stdio: vec!["/dev/null".into(); 3],
            detached: true,
        };
        let value = record::record(config.clone(), &restored, time_namespaces);
        let directory = tempfile::tempdir().unwrap();
        record::write(directory.path(), &value).unwrap();
        let read = Record::read(directory.path()).unwrap().unwrap();
        assert_eq!(Value::Object(read.raw.clone()), value);
        assert_eq!((read.id(), read.init()), ("other", INIT));
        assert_eq!(
            value["namespace_paths"].get("NEWTIME").is_some(),
            time_namespaces
        );
        assert_eq!(value["namespace_paths"]["NEWNET"], "/proc/4711/ns/net");
        let again = read.model(false).unwrap();
        assert_eq!(
            again.namespace(NamespaceKind::Time).is_some(),
            time_namespaces
        );
        assert_eq!(again.mounts, model.mounts);
        assert_eq!(again.limits, model.limits);
        assert_eq!(
            std::fs::read_dir(directory.path()).unwrap().count(),
            1,
            "a temporary file was left"
        );
    }
}

#[test]
fn broken_records_are_told_from_missing_ones() {
    let directory = tempfile::tempdir().unwrap();
    assert!(
        Record::read(&directory.path().join("none"))
            .unwrap()
            .is_none()
    );
    for broken in ["", "{", "[]", r#"{"id":"x"}"#] {
        std::fs::write(directory.path().join(record::STATE), broken).unwrap();
        let error = Record::read(directory.path()).unwrap_err().to_string();
        assert!(
            error.contains("state.json") && error.contains("version of runc"),
            "{error}"
        );
    }
}
