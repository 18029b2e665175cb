//! `state.json`, runc's record of a container: read for a checkpoint, written for a restore.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::limits::Cgroups;
use crate::container::error::ErrorKind;
use crate::container::model::{
    EngineKind, Model, Mount, MountKind, Namespace, NamespaceKind, ProcessId, criu_config,
};
use crate::container::mounts;
use crate::container::oci::Hook;
use crate::container::runtime::engine::{self, Adopted, Brief, now};

/// The file's name in a container's directory.
pub(super) const STATE: &str = "state.json";

/// CRIU's configuration file for containers that name none.
const CRIU_CONFIG: &str = "/etc/criu/runc.conf";

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
pub struct Record {
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
    pub(super) fn parse(bytes: &[u8]) -> serde_json::Result<Self> {
        let raw: Map<String, Value> = serde_json::from_slice(bytes)?;
        let known = Known::deserialize(Value::Object(raw.clone()))?;
        Ok(Self { raw, known })
    }

    pub(super) fn id(&self) -> &str {
        &self.known.id
    }

    pub(super) fn rootfs(&self) -> &Path {
        &self.known.config.rootfs
    }

    pub(super) fn uses_systemd(&self) -> bool {
        self.known.config.cgroups.systemd
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

fn broken(path: PathBuf) -> impl FnOnce(serde_json::Error) -> ErrorKind {
    |source| ErrorKind::State {
        path,
        problem: "is broken, or of a version of runc that is not known (1.0 to 1.4 are): \
                  compare it with what `runc --version` writes for a new container"
            .into(),
        source: Some(source.into()),
    }
}

/// What a list needs of a record: the rest, which is most of it, is passed over.
pub(super) fn brief(directory: &Path) -> Result<Option<Brief>, ErrorKind> {
    #[derive(Deserialize)]
    struct Few {
        init_process_pid: i32,
        init_process_start: u64,
        cgroup_paths: BTreeMap<String, PathBuf>,
        #[serde(default)]
        rootless: bool,
        config: Labels,
    }
    #[derive(Deserialize)]
    struct Labels {
        labels: Option<Vec<String>>,
    }
    let path = directory.join(STATE);
    let Some(bytes) = engine::read(&path)? else {
        return Ok(None);
    };
    let few: Few = serde_json::from_slice(&bytes).map_err(broken(path))?;
    let labels = few.config.labels.iter().flatten();
    Ok(Some(Brief {
        init: ProcessId {
            pid: few.init_process_pid,
            start_time: few.init_process_start,
        },
        cgroups: few.cgroup_paths,
        // The last: an annotation may have the same name.
        bundle: labels
            .filter_map(|label| label.strip_prefix("bundle="))
            .next_back()
            .unwrap_or_default()
            .into(),
        rootless: few.rootless,
    }))
}

impl engine::Record for Record {
    fn read(directory: &Path) -> Result<Option<Self>, ErrorKind> {
        let path = directory.join(STATE);
        let Some(bytes) = engine::read(&path)? else {
            return Ok(None);
        };
        Self::parse(&bytes).map(Some).map_err(broken(path))
    }

    fn init(&self) -> ProcessId {
        ProcessId {
            pid: self.known.init_process_pid,
            start_time: self.known.init_process_start,
        }
    }

    fn noted_stdio(&self) -> &[String] {
        self.known
            .external_descriptors
            .as_deref()
            .unwrap_or_default()
    }

    fn cgroups(&self) -> &BTreeMap<String, PathBuf> {
        &self.known.cgroup_paths
    }

    fn is_rootless(&self) -> bool {
        self.known.rootless
    }

    fn model(&self, terminal: bool) -> Result<Model, ErrorKind> {
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
        let annotations = self
            .labels()
            .filter(|(key, _)| *key != "bundle")
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
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
            scope: config.cgroups.scope(),
            limits: config.cgroups.limits(),
            criu_config: criu_config(&annotations, Some(CRIU_CONFIG)),
            annotations,
            oci_version: config.version.clone(),
            create_hooks,
            poststop_hooks: self.hooks("poststop"),
        })
    }
}

/// The record of a restored container. `config` is runc's own form of its configuration.
///
/// With time namespaces, CRIU puts everything it restores into a new one, which programs that are executed in the container
/// have to join. A runc that does not know them passes over them.
pub(super) fn record(
    mut config: Map<String, Value>,
    restored: &Adopted<'_>,
    time_namespaces: bool,
) -> Value {
    let pid = restored.init.pid;
    let kinds = NAMESPACES
        .into_iter()
        .filter(|(_, kind)| *kind != NamespaceKind::Time || time_namespaces);
    let paths: Map<String, Value> = kinds
        .map(|(name, kind)| {
            (
                name.to_owned(),
                json!(format!("/proc/{pid}/ns/{}", kind.proc())),
            )
        })
        .collect();
    let time = namespace_name(NamespaceKind::Time);
    if time_namespaces
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
        "created": now(),
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
    engine::put(directory, STATE, &serde_json::to_vec(record)?)
}
