//! What is known of a container to restore it without Docker.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::api::{Info, Inspected};
use super::{Docker, Restorer};
use crate::container::described::Described;
use crate::container::error::ErrorKind;
use crate::container::model::{EngineKind, is_valid_id};
use crate::container::runtime::{CheckpointOptions, CheckpointReport};
use crate::notify::Hooks;
use crate::rootfs::Storage;
use crate::{Criu, ImagesDir};

type Result<T> = std::result::Result<T, ErrorKind>;

/// Below Docker's directory: of each storage driver, which layer is a container's.
const LAYERS: &str = "layerdb/mounts";

impl Docker {
    /// A container that will be, or is to be, restored without Docker.
    pub(in crate::container) async fn described(&self, name: &str) -> Result<Described> {
        let version = self.version().await?;
        let inspected = self.inspect(name).await?;
        let info = self.info().await?;
        let native = match version
            .restores(&inspected)
            .and_then(|()| info.restores_with(&inspected))
        {
            Ok(()) => None,
            Err(kind) => Some(kind.to_string()),
        };
        Ok(Described {
            engine: EngineKind::Docker,
            name: inspected.name().to_owned(),
            status: inspected.status(),
            mounted_at: inspected.merged_directory(),
            directory: None,
            storage: Some(inspected.storage(&info)),
            bundle: None,
            config: Some(configuration(&inspected, &info)),
            native,
            id: inspected.id,
        })
    }

    /// The same from Docker's directory alone, when nobody answers. `id` is the full one.
    pub(in crate::container) fn described_on_disk(root: &Path, id: &str) -> Option<Described> {
        if !is_valid_id(id) {
            return None;
        }
        let drivers = fs::read_dir(root.join("image")).ok()?.flatten();
        let (driver, layer) = drivers
            .filter_map(|entry| {
                let driver = entry.file_name().into_string().ok()?;
                Some((driver.clone(), layer_of(root, &driver, id)?))
            })
            .next()?;
        Some(Described {
            engine: EngineKind::Docker,
            id: id.to_owned(),
            name: id.to_owned(),
            status: crate::container::model::Status::Stopped,
            storage: Some(Storage::new(driver, root).layer(Some(layer))),
            mounted_at: None,
            directory: None,
            bundle: None,
            config: None,
            native: Some("no daemon answers".to_owned()),
        })
    }

    /// As [`Docker::checkpoint`], for a restore that is not Docker's: what only Docker could not restore is no obstacle.
    pub(in crate::container) async fn checkpoint_to_do_without(
        &self,
        criu: &Criu,
        name: &str,
        images: &ImagesDir,
        hooks: impl Hooks,
        options: CheckpointOptions,
    ) -> Result<CheckpointReport> {
        self.checkpointed(criu, name, images, hooks, options, Restorer::Ours)
            .await
    }
}

/// Which layer of a storage driver is a container's.
pub(super) fn layer_of(root: &Path, driver: &str, id: &str) -> Option<String> {
    let noted = root.join("image").join(driver).join(LAYERS).join(id);
    let layer = fs::read_to_string(noted.join("mount-id")).ok()?;
    let layer = layer.trim();
    is_valid_id(layer).then(|| layer.to_owned())
}

impl Inspected {
    fn storage(&self, info: &Info) -> Storage {
        let graph = self.graph_driver.clone().unwrap_or_default();
        let driver = match graph.name.as_str() {
            // A snapshotter of containerd's tells nothing but its name.
            "" => &self.driver,
            name => name,
        };
        let layer = layer_of(&info.docker_root_dir, driver, &self.id);
        Storage::new(driver, &info.docker_root_dir)
            .layer(layer)
            .data(graph.data.unwrap_or_default())
    }

    fn merged_directory(&self) -> Option<PathBuf> {
        let graph = self.graph_driver.as_ref()?.data.as_ref()?;
        graph
            .get("MergedDir")
            .or(graph.get("Mountpoint"))
            .map(PathBuf::from)
    }
}

/// A configuration that is as Docker would make it again, of what it tells: a checkpoint of Docker's own leaves none, and
/// the one that there was is gone with the container's end.
fn configuration(inspected: &Inspected, info: &Info) -> Value {
    let host = &inspected.host_config;
    let bind = |destination: &Path, source: &Path, writable: bool| {
        let access = if writable { "rw" } else { "ro" };
        json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", access]})
    };
    let kernel = |destination: &str, kind: &str| json!({"destination": destination, "type": kind, "source": kind});
    let mut mounts = vec![
        kernel("/proc", "proc"),
        kernel("/dev", "tmpfs"),
        kernel("/dev/pts", "devpts"),
        kernel("/sys", "sysfs"),
        kernel("/sys/fs/cgroup", "cgroup"),
        kernel("/dev/mqueue", "mqueue"),
    ];
    let private_shm = matches!(host.ipc_mode.as_str(), "" | "private" | "none");
    mounts.push(
        match private_shm || inspected.shm_path.as_os_str().is_empty() {
            true => json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}),
            false => bind(Path::new("/dev/shm"), &inspected.shm_path, true),
        },
    );
    let files = [
        ("/etc/resolv.conf", &inspected.resolv_conf_path),
        ("/etc/hostname", &inspected.hostname_path),
        ("/etc/hosts", &inspected.hosts_path),
    ];
    for (destination, source) in files {
        if !source.as_os_str().is_empty() {
            mounts.push(bind(Path::new(destination), source, true));
        }
    }
    for mount in &inspected.mounts {
        mounts.push(match mount.r#type.as_str() {
            "tmpfs" => kernel(&mount.destination.to_string_lossy(), "tmpfs"),
            _ => bind(&mount.destination, &mount.source, mount.rw),
        });
    }
    // A mount within another comes after it.
    mounts.sort_by_key(|mount| {
        mount["destination"]
            .as_str()
            .map_or(0, |path| Path::new(path).components().count())
    });
    let mut namespaces = vec![json!({"type": "mount"})];
    namespaces.extend(
        [
            ("network", &host.network_mode),
            ("pid", &host.pid_mode),
            ("ipc", &host.ipc_mode),
            ("uts", &host.uts_mode),
        ]
        .into_iter()
        .filter(|(_, mode)| *mode != "host")
        .map(|(kind, _)| json!({"type": kind})),
    );
    if host.cgroupns_mode == "private" {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let annotations: BTreeMap<String, String> = host.annotations.clone().unwrap_or_default();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": inspected.config.tty,
            "user": {"uid": 0, "gid": 0},
            "args": std::iter::once(&inspected.path)
                .chain(inspected.args.iter().flatten())
                .collect::<Vec<_>>(),
            "env": inspected.config.env,
            "cwd": "/",
        },
        "root": {"path": "rootfs", "readonly": host.readonly_rootfs},
        "hostname": inspected.config.hostname,
        "mounts": mounts,
        "annotations": annotations,
        "linux": {
            "namespaces": namespaces,
            "maskedPaths": host.masked_paths,
            "readonlyPaths": host.readonly_paths,
            "cgroupsPath": cgroups_path(inspected, info),
            "resources": resources(inspected),
        },
    })
}

fn cgroups_path(inspected: &Inspected, info: &Info) -> String {
    let parent = inspected.host_config.cgroup_parent.as_str();
    match (info.cgroup_driver.as_str(), parent) {
        ("systemd", "") => format!("system.slice:docker:{}", inspected.id),
        ("systemd", parent) => format!("{parent}:docker:{}", inspected.id),
        (_, "") => format!("/docker/{}", inspected.id),
        (_, parent) => format!("/{}/{}", parent.trim_matches('/'), inspected.id),
    }
}

/// The limits that Docker tells of; a new control group has none of its own.
fn resources(inspected: &Inspected) -> Value {
    let host = &inspected.host_config;
    let positive = |value: Option<i64>| value.filter(|value| *value > 0);
    let mut resources = json!({});
    if let Some(limit) = positive(host.memory) {
        resources["memory"] = json!({"limit": limit});
        // 0 is Docker's default, twice the memory; -1 none at all.
        if let Some(swap) = host.memory_swap.filter(|swap| *swap != 0) {
            resources["memory"]["swap"] = json!(swap);
        }
    }
    if let Some(limit) = positive(host.pids_limit) {
        resources["pids"] = json!({"limit": limit});
    }
    let mut cpu = serde_json::Map::new();
    const PERIOD: i64 = 100_000;
    if let Some(nano) = positive(host.nano_cpus) {
        cpu.insert("period".into(), json!(PERIOD));
        cpu.insert("quota".into(), json!(nano / (1_000_000_000 / PERIOD)));
    }
    for (key, value) in [
        ("shares", host.cpu_shares),
        ("quota", host.cpu_quota),
        ("period", host.cpu_period),
    ] {
        if let Some(value) = positive(value) {
            cpu.insert(key.into(), json!(value));
        }
    }
    for (key, value) in [("cpus", &host.cpuset_cpus), ("mems", &host.cpuset_mems)] {
        if !value.is_empty() {
            cpu.insert(key.into(), json!(value));
        }
    }
    if !cpu.is_empty() {
        resources["cpu"] = Value::Object(cpu);
    }
    if !host.privileged {
        resources["devices"] = devices(host);
    }
    resources
}

/// What Docker lets every container have, and what this one was given besides.
fn devices(host: &super::api::HostConfig) -> Value {
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    for kind in ["c", "b"] {
        rules.push(json!({"allow": true, "type": kind, "access": "m"}));
    }
    // null, zero, full, random, urandom, tty, console, ptmx; every pts.
    for (major, minor) in [
        (1, 3),
        (1, 5),
        (1, 7),
        (1, 8),
        (1, 9),
        (5, 0),
        (5, 1),
        (5, 2),
    ] {
        rules.push(
            json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm"}),
        );
    }
    rules.push(json!({"allow": true, "type": "c", "major": 136, "access": "rwm"}));
    for device in host.devices.iter().flatten() {
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        let Ok(metadata) = fs::metadata(&device.path_on_host) else {
            continue;
        };
        let number = metadata.rdev();
        let kind = if metadata.file_type().is_block_device() {
            "b"
        } else {
            "c"
        };
        rules.push(json!({
            "allow": true,
            "type": kind,
            "major": rustix::fs::major(number),
            "minor": rustix::fs::minor(number),
            "access": device.cgroup_permissions,
        }));
    }
    json!(rules)
}
