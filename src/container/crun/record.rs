//! `status` and `config.json`, crun's record of a container: read for a checkpoint, written for a restore.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::container::cgroup::{Hierarchies, Scope};
use crate::container::error::ErrorKind;
use crate::container::model::{
    EngineKind, Model, Mount, MountKind, Namespace, NamespaceKind, ProcessId, criu_config,
};
use crate::container::mounts;
use crate::container::oci::{CONFIG, DeviceRule, Linux, Resources, Spec};
use crate::container::runtime::engine::{self, Adopted, Brief};

/// The file's name in a container's directory.
pub(super) const STATUS: &str = "status";

/// CRIU's configuration files for containers that name none: the first that is there.
const CRIU_CONFIGS: [&str; 2] = ["/etc/criu/crun.conf", "/etc/criu/runc.conf"];

/// Devices that every container has.
const DEVICES: [&str; 6] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/tty",
    "/dev/random",
    "/dev/urandom",
];

/// What every container may do with devices, whatever its configuration says: kind, major and minor number, access.
const DEVICE_RULES: [(&str, Option<i64>, Option<i64>, &str); 12] = [
    ("c", None, None, "m"),
    ("b", None, None, "m"),
    ("c", Some(1), Some(3), "rwm"),
    ("c", Some(1), Some(8), "rwm"),
    ("c", Some(1), Some(7), "rwm"),
    ("c", Some(5), Some(0), "rwm"),
    ("c", Some(1), Some(5), "rwm"),
    ("c", Some(1), Some(9), "rwm"),
    ("c", Some(5), Some(1), "rwm"),
    ("c", Some(136), None, "rwm"),
    ("c", Some(5), Some(2), "rwm"),
    ("c", Some(10), Some(200), "rwm"),
];

/// The status file. A key that crun always writes is required.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    pub(super) pid: i32,
    process_start_time: u64,
    /// From the top of each hierarchy; empty if crun was told to make none.
    cgroup_path: String,
    #[serde(default)]
    scope: String,
    #[serde(default)]
    intelrdt: String,
    /// As the configuration has it.
    rootfs: PathBuf,
    #[serde(default)]
    pub(super) systemd_cgroup: bool,
    bundle: PathBuf,
    created: String,
    #[serde(default)]
    owner: String,
    #[serde(default)]
    detached: bool,
    /// A JSON array as a text.
    #[serde(default, rename = "external_descriptors")]
    external_descriptors: Option<String>,
}

impl Status {
    pub(super) fn has_no_cgroup(&self) -> bool {
        self.cgroup_path.is_empty()
    }

    fn init(&self) -> ProcessId {
        ProcessId {
            pid: self.pid,
            start_time: self.process_start_time,
        }
    }

    /// The scope, and the slice that its group is in.
    fn scope(&self) -> Option<Scope> {
        let group = Path::new(&self.cgroup_path);
        let parent = group
            .ancestors()
            .find(|group| group.file_name().is_some_and(|name| *name == *self.scope))
            .and_then(Path::parent)?;
        let slice = match parent.file_name() {
            Some(slice) => slice.to_string_lossy().into_owned(),
            // Not below any.
            None => "-.slice".to_owned(),
        };
        self.systemd_cgroup.then(|| Scope {
            unit: self.scope.clone(),
            slice,
        })
    }

    fn cgroups(&self, host: &Hierarchies) -> BTreeMap<String, PathBuf> {
        match self.has_no_cgroup() {
            true => BTreeMap::new(),
            false => host.paths(&format!("/{}", self.cgroup_path), ""),
        }
    }

    /// Of a container that is to be restored.
    pub(super) fn restored(
        bundle: &Path,
        rootfs: &Path,
        group: Option<&Path>,
        scope: Option<&Scope>,
    ) -> Self {
        Self {
            pid: 0,
            process_start_time: 0,
            cgroup_path: group
                .map(|group| group.to_string_lossy().into_owned())
                .unwrap_or_default(),
            scope: scope.map(|scope| scope.unit.clone()).unwrap_or_default(),
            intelrdt: String::new(),
            rootfs: rootfs.to_owned(),
            systemd_cgroup: scope.is_some(),
            bundle: bundle.to_owned(),
            created: String::new(),
            // Nobody else can restore.
            owner: "root".into(),
            detached: true,
            external_descriptors: None,
        }
    }

    pub(super) fn of(self, adopted: &Adopted<'_>) -> io::Result<Self> {
        Ok(Self {
            pid: adopted.init.pid,
            process_start_time: adopted.init.start_time,
            created: engine::now(),
            detached: adopted.detached,
            external_descriptors: Some(serde_json::to_string(&adopted.stdio)?),
            ..self
        })
    }
}

/// A record as it was read.
#[derive(Debug, Clone)]
pub struct Record {
    id: String,
    status: Status,
    spec: Spec,
    stdio: Vec<String>,
    cgroups: BTreeMap<String, PathBuf>,
}

fn broken(directory: &Path) -> impl FnOnce(serde_json::Error) -> ErrorKind {
    |source| ErrorKind::State {
        path: directory.join(STATUS),
        problem: "is broken, or of a version of crun that is not known (1.8 to 1.28 are): \
                  compare it with what `crun --version` writes for a new container"
            .into(),
        source: Some(source.into()),
    }
}

/// What a list needs of a record: the configuration is not among it.
pub(super) fn brief(directory: &Path, host: &Hierarchies) -> Result<Option<Brief>, ErrorKind> {
    let Some(bytes) = engine::read(&directory.join(STATUS))? else {
        return Ok(None);
    };
    let status: Status = serde_json::from_slice(&bytes).map_err(broken(directory))?;
    Ok(Some(Brief {
        init: status.init(),
        cgroups: status.cgroups(host),
        bundle: status.bundle,
        rootless: false,
    }))
}

impl engine::Record for Record {
    fn read(directory: &Path) -> Result<Option<Self>, ErrorKind> {
        let Some(bytes) = engine::read(&directory.join(STATUS))? else {
            return Ok(None);
        };
        let status: Status = serde_json::from_slice(&bytes).map_err(broken(directory))?;
        let Some(bytes) = engine::read(&directory.join(CONFIG))? else {
            return Err(ErrorKind::State {
                path: directory.join(CONFIG),
                problem: "is not there, though crun keeps its copy of every configuration there: \
                          without it nobody knows what the container is"
                    .into(),
                source: None,
            });
        };
        let spec = Spec::parse(&bytes).map_err(|problem| ErrorKind::State {
            path: directory.join(CONFIG),
            problem: problem.0,
            source: problem.1,
        })?;
        let stdio = match &status.external_descriptors {
            None => Vec::new(),
            Some(text) => serde_json::from_str(text).map_err(broken(directory))?,
        };
        let id = directory
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let host =
            Hierarchies::of_host().map_err(ErrorKind::system("looking for control groups"))?;
        let cgroups = status.cgroups(&host);
        Ok(Some(Self {
            id,
            status,
            spec,
            stdio,
            cgroups,
        }))
    }

    fn init(&self) -> ProcessId {
        self.status.init()
    }

    fn noted_stdio(&self) -> &[String] {
        &self.stdio
    }

    fn cgroups(&self) -> &BTreeMap<String, PathBuf> {
        &self.cgroups
    }

    fn is_rootless(&self) -> bool {
        false
    }

    fn model(&self, terminal: bool) -> Result<Model, ErrorKind> {
        let bundle = &self.status.bundle;
        let rootfs = bundle.join(&self.status.rootfs);
        let (groups, scope) = (self.cgroups.clone(), self.status.scope());
        let model = model(&self.spec, &self.id, bundle, &rootfs, groups, scope)?;
        Ok(Model { terminal, ..model })
    }
}

/// The group within a container's scope that its tasks are in: where the unified hierarchy is alone, systemd's limits are
/// thus out of their reach.
pub(super) fn subgroup<'a>(
    annotations: &'a BTreeMap<String, String>,
    host: &Hierarchies,
) -> Option<&'a str> {
    let usual = host.is_unified().then_some("container");
    match annotations.get("run.oci.systemd.subgroup") {
        None => usual,
        Some(name) => Some(name.as_str()).filter(|name| !name.is_empty()),
    }
}

/// What crun makes of a configuration.
pub(super) fn model(
    spec: &Spec,
    id: &str,
    bundle: &Path,
    rootfs: &Path,
    cgroups: BTreeMap<String, PathBuf>,
    scope: Option<Scope>,
) -> Result<Model, ErrorKind> {
    let none = Linux::default();
    let linux = spec.linux.as_ref().unwrap_or(&none);
    let mounts = spec.mounts.iter().map(|mount| {
        let bind = mount.is_bind() || mount.kind == "bind";
        Ok(Mount {
            kind: match mount.kind.as_str() {
                _ if bind => MountKind::Bind,
                "cgroup" | "cgroup2" => MountKind::Cgroup,
                "tmpfs" => MountKind::Tmpfs,
                other => MountKind::Other(other.to_owned()),
            },
            target: mounts::resolve_in(rootfs, &mount.destination)?,
            destination: mount.destination.clone(),
            source: match bind {
                true => bundle.join(&mount.source),
                false => mount.source.clone(),
            },
        })
    });
    let mounts = mounts
        .collect::<io::Result<_>>()
        .map_err(ErrorKind::system(format!(
            "following mount points in {}",
            rootfs.display()
        )))?;
    let namespaces = linux.namespaces.iter().map(|namespace| {
        let kind = NamespaceKind::from_oci(&namespace.kind).ok_or_else(|| {
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
    let configured = linux.devices.iter().map(|device| device.path.clone());
    let there = CRIU_CONFIGS
        .into_iter()
        .find(|path| Path::new(path).exists());
    Ok(Model {
        engine: EngineKind::Crun,
        id: id.to_owned(),
        bundle: bundle.to_owned(),
        rootfs: rootfs.to_owned(),
        terminal: spec
            .process
            .as_ref()
            .is_some_and(|process| process.terminal),
        mounts,
        masked_paths: linux.masked_paths.clone().unwrap_or_default(),
        devices: DEVICES
            .into_iter()
            .map(PathBuf::from)
            .chain(configured)
            .collect(),
        namespaces: namespaces.collect::<Result<_, _>>()?,
        cgroups,
        scope,
        limits: limits(linux.resources.clone().unwrap_or_default()),
        criu_config: criu_config(&spec.annotations, there),
        annotations: spec.annotations.clone(),
        oci_version: spec.oci_version.clone(),
        // crun runs none at a restore.
        create_hooks: Vec::new(),
        poststop_hooks: spec.hooks.poststop.clone(),
    })
}

/// The configuration's limits, with what every container may do with devices.
fn limits(mut limits: Resources) -> Resources {
    let usual = DEVICE_RULES
        .into_iter()
        .map(|(kind, major, minor, access)| DeviceRule {
            allow: true,
            kind: Some(kind.to_owned()),
            major,
            minor,
            access: access.to_owned(),
        });
    limits.devices.extend(usual);
    limits
}
