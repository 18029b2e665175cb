//! Records of crun's, read and written, and the plans that come of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::record::{self, Record, Status};
use crate::container::cgroup::Hierarchies;
use crate::container::model::{Live, MountEntry, MountKind, NamespaceKind, ProcessId};
use crate::container::plan::{Consumer, DumpPlan, Masks, RestorePlan};
use crate::container::runtime::engine::{self, Adopted, Record as _};

const STATUS: &str = include_str!("../../../tests/data/crun/default/status");
const CONFIG: &str = include_str!("../../../tests/data/crun/default/config.json");
const MOUNTS: &str = include_str!("../../../tests/data/crun/default/mountinfo");

const INIT: ProcessId = ProcessId {
    pid: 4711,
    start_time: 99,
};

/// A recorded container, with a root file system where its record says.
struct Recorded {
    directory: tempfile::TempDir,
    live: Live,
}

impl Recorded {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let here = |text: &str| text.replace("/bundles", directory.path().to_str().unwrap());
        fs::create_dir_all(directory.path().join("b/rootfs")).unwrap();
        let record = directory.path().join("box1");
        fs::create_dir(&record).unwrap();
        fs::write(record.join("status"), here(STATUS)).unwrap();
        fs::write(record.join("config.json"), here(CONFIG)).unwrap();
        let live = Live {
            init: INIT,
            mounts: MountEntry::parse_all(here(MOUNTS).as_bytes()).unwrap(),
            host_mounts: Vec::new(),
            stdio: ["/dev/null", "pipe:[12]", "pipe:[12]"].map(str::to_owned),
            pipes: Default::default(),
            namespaces: BTreeMap::from([(NamespaceKind::Network, 4_026_532_181)]),
        };
        Self { directory, live }
    }

    fn record(&self) -> Record {
        Record::read(&self.directory.path().join("box1"))
            .unwrap()
            .unwrap()
    }

    fn dump(&self, consumer: Consumer) -> Value {
        let record = self.record();
        let model = record.model(false).unwrap();
        let plan = DumpPlan::new(&model, &self.live, record.noted_stdio(), consumer);
        serde_json::to_value(&plan).unwrap()
    }
}

#[test]
fn a_record_becomes_a_model() {
    let recorded = Recorded::new();
    let record = recorded.record();
    assert_eq!(record.init().pid, 22952);
    assert_eq!(
        record.noted_stdio(),
        ["/dev/null", "/dev/null", "/dev/null"]
    );
    let model = record.model(true).unwrap();
    assert!(model.terminal && model.create_hooks.is_empty());
    assert_eq!(model.id, "box1");
    assert_eq!(model.rootfs, recorded.directory.path().join("b/rootfs"));
    assert!(model.has_private_network());
    assert_eq!(model.mounts.last().unwrap().kind, MountKind::Cgroup);
    for group in model.cgroups.values() {
        assert!(group.ends_with("box1"), "{}", group.display());
    }
}

#[test]
fn masks_have_the_names_of_whoever_is_to_restore() {
    let recorded = Recorded::new();
    let any = recorded.dump(Consumer::Any);
    assert_eq!(any, {
        let mut crun = recorded.dump(Consumer::Crun);
        crun["consumer"] = json!("any");
        crun["notes"] = any["notes"].clone();
        crun
    });
    let external = any["external"].to_string();
    assert!(
        external.contains("mnt[/proc/keys]:/proc/keys"),
        "{external}"
    );
    assert_eq!(any["emptyNetworkNamespace"], false);
    let note = any["notes"][0].as_str().unwrap();
    for word in ["runc's own", "/proc/keys, /proc/timer_list", "--for runc"] {
        assert!(note.contains(word), "{note}");
    }
    assert_eq!(any["notes"].as_array().unwrap().len(), 1);
    assert_eq!(recorded.dump(Consumer::Crun)["notes"], json!([]));

    let runc = recorded.dump(Consumer::Runc);
    let external = runc["external"].to_string();
    assert!(external.contains("mnt[/proc/keys]:/dev/null"), "{external}");
    assert_eq!(runc["emptyNetworkNamespace"], true);
    assert_eq!(runc["notes"], json!([]));
}

#[test]
fn directories_are_masked_with_an_empty_one_of_the_host() {
    let mut recorded = Recorded::new();
    let mask = "89 68 254:0 /run/crun/.empty-directory /proc/acpi ro - ext4 /dev/vda rw";
    recorded.live.mounts = MountEntry::parse_all(MOUNTS.replace("/null ", "/other ").as_bytes())
        .unwrap()
        .into_iter()
        .filter(|mount| mount.mount_point != Path::new("/proc/acpi"))
        .chain(MountEntry::parse_all(mask.as_bytes()).unwrap())
        .collect();
    let plan = recorded.dump(Consumer::Runc);
    let external = plan["external"].to_string();
    assert!(
        external.contains("mnt[/proc/acpi]:/proc/acpi"),
        "{external}"
    );
    let note = plan["notes"][0].as_str().unwrap();
    assert!(
        note.contains("/proc/acpi, which is mounted") && !note.contains("--for"),
        "{note}"
    );

    let masks = Masks {
        directories: vec!["/proc/acpi".into()],
        crun_roots: vec!["/some/root".into()],
    };
    let model = recorded.record().model(false).unwrap();
    let plan = RestorePlan::new(&model, &Hierarchies::default(), &[], &[], true, &masks);
    let external = serde_json::to_value(&plan).unwrap()["external"].to_string();
    for expected in [
        "mnt[/proc/acpi]:/run/criu-client/.empty-directory",
        "mnt[/some/root/.empty-directory]:/run/criu-client/.empty-directory",
        "mnt[/proc/keys]:/dev/null",
    ] {
        assert!(external.contains(expected), "{external}");
    }
}

#[test]
fn the_network_comes_from_the_images_if_it_is_there() {
    let model = Recorded::new().record().model(false).unwrap();
    for there in [false, true] {
        let plan = RestorePlan::new(
            &model,
            &Hierarchies::default(),
            &[],
            &[],
            there,
            &Masks::default(),
        );
        assert_eq!(plan.empty_network_namespace, !there);
    }
}

#[test]
fn what_is_written_is_read_again() {
    let recorded = Recorded::new();
    let bundle = recorded.directory.path().join("b");
    let status = Status::restored(
        &bundle,
        Path::new("rootfs"),
        Some(Path::new("/other")),
        None,
    );
    let groups = BTreeMap::from([("cpu".to_owned(), PathBuf::from("/sys/fs/cgroup/cpu/other"))]);
    let adopted = Adopted {
        id: "other",
        init: INIT,
        cgroups: &groups,
        stdio: ["/dev/null", "pipe:[1]", "pipe:[2]"]
            .map(str::to_owned)
            .into(),
        detached: false,
    };
    let status = status.of(&adopted).unwrap();
    let value = serde_json::to_value(&status).unwrap();
    // Every key of crun's own, and no other.
    let own: Value = serde_json::from_str(STATUS).unwrap();
    let keys =
        |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    assert_eq!(keys(&value), keys(&own));
    assert_eq!(value["cgroup-path"], "/other");
    assert_eq!(
        value["external_descriptors"],
        r#"["/dev/null","pipe:[1]","pipe:[2]"]"#
    );
    let directory = recorded.directory.path().join("box1");
    engine::put(
        &directory,
        record::STATUS,
        &serde_json::to_vec(&status).unwrap(),
    )
    .unwrap();
    let read = recorded.record();
    assert_eq!(read.init(), INIT);
    assert_eq!(read.noted_stdio(), adopted.stdio);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
}

#[test]
fn broken_records_are_told_from_missing_ones() {
    let recorded = Recorded::new();
    let directory = recorded.directory.path().join("box1");
    let read = || Record::read(&directory);
    fs::remove_file(directory.join("config.json")).unwrap();
    let error = read().unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
    for broken in ["", "{", "[]", r#"{"pid":1}"#] {
        fs::write(directory.join("status"), broken).unwrap();
        let error = read().unwrap_err().to_string();
        assert!(
            error.contains("status") && error.contains("version of crun"),
            "{error}"
        );
    }
    fs::remove_file(directory.join("status")).unwrap();
    assert!(read().unwrap().is_none());
}
