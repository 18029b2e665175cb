//! `state.json`, runc's record of a container: read for a checkpoint, written for a restore.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::limits::Cgroups;
use crate::container::cgroup;
use crate::container::error::ErrorKind;
use crate::container::model::{
    EngineKind, Model, Mount, MountKind, Namespace, NamespaceKind, ProcessId, Status,
};
use crate::container::mounts;
use crate::container::oci::Hook;

/// The file's name in a container's directory.
pub(super) const STATE: &str = "state.json";
/// The pipe that the first process waits at until the container is started.
const FIFO: &str = "exec.fifo";

/// The kinds of namespaces under runc's names.
const NAMESPACES: [(&str, NamespaceKind); 8] = [
    ("NEWPID", NamespaceKind::Pid),
    ("NEWNET", NamespaceKind::Network),
    ("NEWNS", NamespaceKind::Mount),
    ("NEWIPC", NamespaceKind::Ipc),
    ("NEWUTS", NamespaceKind::Uts),
    ("NEWUSER", NamespaceKind::User),
    ("NEWCGROUP", NamespaceKind::Cgroup),
    ("NEWTIME", NamespaceKind::Time),
];

pub(super) fn namespace_name(kind: NamespaceKind) -> &'static str {
    NAMESPACES
        .into_iter()
        .find(|(_, known)| *known == kind)
        .map_or("", |(name, _)| name)
}

/// A record as it was read: everything in it, and what is understood of it.
#[derive(Debug, Clone)]
pub(super) struct Record {
    /// The whole, so that keys that are not understood survive.
    pub(super) raw: Map<String, Value>,
    known: Known,
}

/// What is understood of a record. A key that runc always writes is required.
#[derive(Debug, Clone, Deserialize)]
struct Known {
    id: String,
    init_process_pid: i32,
    init_process_start: u64,
    config: Config,
    cgroup_paths: BTreeMap<String, PathBuf>,
    #[serde(default)]
    external_descriptors: Option<Vec<String>>,
    #[serde(default)]
    rootless: bool,
}

#[derive(Debug, Clone, Deserialize)]
struct Config {
    rootfs: PathBuf,
    mounts: Option<Vec<ConfigMount>>,
    #[serde(default)]
    devices: Option<Vec<ConfigDevice>>,
    namespaces: Option<Vec<ConfigNamespace>>,
    #[serde(default)]
    mask_paths: Option<Vec<PathBuf>>,
    cgroups: Cgroups,
    #[serde(default, rename = "Hooks")]
    hooks: BTreeMap<String, Option<Vec<ConfigHook>>>,
    #[serde(default)]
    version: String,
    labels: Option<Vec<String>>,
}

#[derive(Debug, Clone, Deserialize)]
struct ConfigMount {
    #[serde(default)]
    source: PathBuf,
    destination: PathBuf,
    #[serde(default)]
    device: String,
}

#[derive(Debug, Clone, Deserialize)]
struct ConfigDevice {
    path: PathBuf,
}

#[derive(Debug, Clone, Deserialize)]
struct ConfigNamespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: PathBuf,
}

#[derive(Debug, Clone, Deserialize)]
struct ConfigHook {
    path: PathBuf,
    args: Option<Vec<String>>,
    env: Option<Vec<String>>,
    /// Nanoseconds.
    timeout: Option<u64>,
}

impl Record {
    /// Reads the record in a container's directory; `None` when there is no such container.
    pub(super) fn read(directory: &Path) -> Result<Option<Self>, ErrorKind> {
        let path = directory.join(STATE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            Err(source) => {
                return Err(ErrorKind::State {
                    path,
                    problem: "cannot be read".into(),
                    source: Some(source.into()),
                });
            }
        };
        Self::parse(&bytes)
            .map(Some)
            .map_err(|source| ErrorKind::State {
                path,
                problem: "is broken, or of a version of runc that is not known (1.0 to 1.4 are): \
                          compare it with what `runc --version` writes for a new container"
                    .into(),
                source: Some(source.into()),
            })
    }

    pub(super) fn parse(bytes: &[u8]) -> serde_json::Result<Self> {
        let raw: Map<String, Value> = serde_json::from_slice(bytes)?;
        let known = Known::deserialize(Value::Object(raw.clone()))?;
        Ok(Self { raw, known })
    }

    pub(super) fn init(&self) -> ProcessId {
        ProcessId {
            pid: self.known.init_process_pid,
            start_time: self.known.init_process_start,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.known.id
    }

    pub(super) fn rootfs(&self) -> &Path {
        &self.known.config.rootfs
    }

    pub(super) fn is_rootless(&self) -> bool {
        self.known.rootless
    }

    /// What the standard descriptors were when the container was made.
    pub(super) fn noted_stdio(&self) -> &[String] {
        self.known
            .external_descriptors
            .as_deref()
            .unwrap_or_default()
    }

    pub(super) fn uses_systemd(&self) -> bool {
        self.known.config.cgroups.systemd
    }

    pub(super) fn cgroups(&self) -> &BTreeMap<String, PathBuf> {
        &self.known.cgroup_paths
    }

    /// What runc would say of the container, whose directory this is.
    pub(super) fn status(&self, directory: &Path) -> Status {
        if !self.init().is_alive() {
            Status::Stopped
        } else if directory.join(FIFO).exists() {
            Status::Created
        } else if cgroup::freezer(self.cgroups()).is_some_and(|(_, frozen)| frozen) {
            Status::Paused
        } else {
            Status::Running
        }
    }

    fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.known
            .config
            .labels
            .iter()
            .flatten()
            .filter_map(|label| label.split_once('='))
    }

    pub(super) fn bundle(&self) -> PathBuf {
        // The last: an annotation may have the same name.
        self.labels()
            .filter(|(key, _)| *key == "bundle")
            .last()
            .map(|(_, value)| value.into())
            .unwrap_or_default()
    }

    pub(super) fn model(&self, terminal: bool) -> Result<Model, ErrorKind> {
        let config = &self.known.config;
        let mounts = config.mounts.iter().flatten().map(|mount| {
            Ok(Mount {
                kind: match mount.device.as_str() {
                    "bind" => MountKind::Bind,
                    "cgroup" | "cgroup2" => MountKind::Cgroup,
                    "tmpfs" => MountKind::Tmpfs,
                    other => MountKind::Other(other.to_owned()),
                },
                target: mounts::resolve_in(&config.rootfs, &mount.destination)?,
                destination: mount.destination.clone(),
                source: mount.source.clone(),
            })
        });
        let namespaces = config.namespaces.iter().flatten().map(|namespace| {
            let kind = NAMESPACES
                .into_iter()
                .find(|(name, _)| *name == namespace.kind);
            let (_, kind) = kind.ok_or_else(|| {
                ErrorKind::Unsupported(format!(
                    "a namespace of the unknown type {}",
                    namespace.kind
                ))
            })?;
            Ok::<_, ErrorKind>(Namespace {
                kind,
                path: Some(namespace.path.clone()).filter(|path| !path.as_os_str().is_empty()),
            })
        });
        let mut create_hooks = self.hooks("prestart");
        create_hooks.extend(self.hooks("createRuntime"));
        Ok(Model {
            engine: EngineKind::Runc,
            id: self.known.id.clone(),
            bundle: self.bundle(),
            rootfs: config.rootfs.clone(),
            terminal,
            mounts: mounts
                .collect::<std::io::Result<_>>()
                .map_err(ErrorKind::system(format!(
                    "following mount points in {}",
                    config.rootfs.display()
                )))?,
            masked_paths: config.mask_paths.clone().unwrap_or_default(),
            devices: config
                .devices
                .iter()
                .flatten()
                .map(|device| device.path.clone())
                .collect(),
            namespaces: namespaces.collect::<Result<_, _>>()?,
            cgroups: self.known.cgroup_paths.clone(),
            limits: config.cgroups.limits(),
            annotations: self
                .labels()
                .filter(|(key, _)| *key != "bundle")
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            oci_version: config.version.clone(),
            create_hooks,
            poststop_hooks: self.hooks("poststop"),
        })
    }

    fn hooks(&self, name: &str) -> Vec<Hook> {
        let hooks = self
            .known
            .config
            .hooks
            .get(name)
            .into_iter()
            .flatten()
            .flatten();
        hooks
            .map(|hook| Hook {
                path: hook.path.clone(),
                args: hook.args.clone(),
                env: hook.env.clone(),
                timeout: hook
                    .timeout
                    .map(|nanoseconds| nanoseconds.div_ceil(1_000_000_000)),
            })
            .collect()
    }
}

/// What a record says that is different after a restore.
pub(super) struct Restored<'a> {
    pub(super) id: &'a str,
    pub(super) init: ProcessId,
    /// RFC 3339.
    pub(super) created: String,
    pub(super) cgroups: &'a BTreeMap<String, PathBuf>,
    pub(super) stdio: Vec<String>,
    /// Whether the kernel has time namespaces. CRIU puts everything it restores into a new one, which programs that are
    /// executed in the container have to join. A runc that does not know them passes over them.
    pub(super) time_namespaces: bool,
}

/// The record of a restored container. `config` is runc's own form of its configuration.
pub(super) fn record(mut config: Map<String, Value>, restored: &Restored<'_>) -> Value {
    let pid = restored.init.pid;
    let kinds = NAMESPACES
        .into_iter()
        .filter(|(_, kind)| *kind != NamespaceKind::Time || restored.time_namespaces);
    let paths: Map<String, Value> = kinds
        .map(|(name, kind)| {
            (
                name.to_owned(),
                json!(format!("/proc/{pid}/ns/{}", kind.proc())),
            )
        })
        .collect();
    let time = namespace_name(NamespaceKind::Time);
    if restored.time_namespaces
        && let Some(Value::Array(namespaces)) = config.get_mut("namespaces")
        && !namespaces
            .iter()
            .any(|namespace| namespace.get("type") == Some(&json!(time)))
    {
        namespaces.push(json!({"type": time, "path": ""}));
    }
    json!({
        "id": restored.id,
        "init_process_pid": pid,
        "init_process_start": restored.init.start_time,
        "created": restored.created,
        "config": config,
        "rootless": false,
        "cgroup_paths": restored.cgroups,
        "namespace_paths": paths,
        "external_descriptors": restored.stdio,
        "intel_rdt_path": "",
    })
}

/// Puts a record into a container's directory at once and whole.
pub(super) fn write(directory: &Path, record: &Value) -> std::io::Result<()> {
    let mut file = tempfile::Builder::new()
        .prefix("state-")
        .tempfile_in(directory)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    file.as_file().sync_all()?;
    file.persist(directory.join(STATE))?;
    Ok(())
}

/// Now, as runc writes times.
pub(super) fn now() -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    timestamp(now.as_secs(), now.subsec_nanos())
}

fn timestamp(seconds: u64, nanoseconds: u32) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March have their leap day at the end: 400 of them have 146097 days.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanoseconds:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(timestamp(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(timestamp(951_827_696, 5), "2000-02-29T12:34:56.000000005Z");
        assert_eq!(
            timestamp(1_798_761_599, 999_999_999),
            "2026-12-31T23:59:59.999999999Z"
        );
        assert_eq!(
            timestamp(4_107_542_400, 0),
            "2100-03-01T00:00:00.000000000Z"
        );
    }
}
