//! What of an OCI `config.json` matters for a checkpoint, in the terms of the runtime specification.
//!
//! Only read, never written: keys that are not here are left to the engine's own copy of the file.

mod resources;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use resources::{
    BlockIo, Cpu, DeviceRule, HugepageLimit, InterfacePriority, Memory, Network, Pids, Rdma,
    Resources, ThrottleDevice, WeightDevice,
};

use super::error::ErrorKind;

/// The file's name in a bundle.
pub const CONFIG: &str = "config.json";

/// A bundle's configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Spec {
    /// The version of the specification that it follows.
    pub oci_version: String,
    /// The first process.
    pub process: Option<Process>,
    /// The root file system.
    pub root: Option<Root>,
    /// The host name inside.
    #[serde(default)]
    pub hostname: String,
    /// What is mounted, in this order.
    #[serde(default, deserialize_with = "nullable")]
    pub mounts: Vec<Mount>,
    /// The part that is about Linux.
    pub linux: Option<Linux>,
    /// Programs of the caller's that run along with the container's life.
    #[serde(default, deserialize_with = "nullable")]
    pub hooks: Hooks,
    /// Whatever the caller noted.
    #[serde(default, deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
}

/// The first process.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Process {
    /// Whether it has a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// Whom it runs as.
    #[serde(default, deserialize_with = "nullable")]
    pub user: User,
    /// Its capabilities.
    pub capabilities: Option<Capabilities>,
    /// Whether it can gain privileges.
    #[serde(default)]
    pub no_new_privileges: bool,
    /// How soon it is killed when memory runs out.
    pub oom_score_adj: Option<i64>,
    /// Its SELinux label.
    #[serde(default)]
    pub selinux_label: String,
}

/// Whom a process runs as.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct User {
    /// The file mode creation mask.
    pub umask: Option<u32>,
}

/// Capability sets; `None` is a set that is not given.
#[derive(Debug, Clone, Deserialize)]
#[non_exhaustive]
pub struct Capabilities {
    /// The bounding set.
    pub bounding: Option<Vec<String>>,
    /// The effective set.
    pub effective: Option<Vec<String>>,
    /// The inheritable set.
    pub inheritable: Option<Vec<String>>,
    /// The permitted set.
    pub permitted: Option<Vec<String>>,
    /// The ambient set.
    pub ambient: Option<Vec<String>>,
}

/// The root file system.
#[derive(Debug, Clone, Deserialize)]
#[non_exhaustive]
pub struct Root {
    /// Its directory; relative to the bundle if not absolute.
    pub path: PathBuf,
    /// Whether it is mounted read-only.
    #[serde(default)]
    pub readonly: bool,
}

/// One mount.
#[derive(Debug, Clone, Deserialize)]
#[non_exhaustive]
pub struct Mount {
    /// Where, in the container.
    pub destination: PathBuf,
    /// The file system's type; without meaning for a bind mount.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// What is mounted.
    #[serde(default)]
    pub source: PathBuf,
    /// The mount's options.
    #[serde(default, deserialize_with = "nullable")]
    pub options: Vec<String>,
}

impl Mount {
    /// Whether it is a bind mount, whatever its type says.
    #[must_use]
    pub fn is_bind(&self) -> bool {
        self.options
            .iter()
            .any(|option| option == "bind" || option == "rbind")
    }
}

/// The part that is about Linux.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Linux {
    /// Namespaces other than the engine's.
    #[serde(default, deserialize_with = "nullable")]
    pub namespaces: Vec<Namespace>,
    /// Paths that read as empty.
    pub masked_paths: Option<Vec<PathBuf>>,
    /// Paths that cannot be written to.
    pub readonly_paths: Option<Vec<PathBuf>>,
    /// Device files besides the usual ones.
    #[serde(default, deserialize_with = "nullable")]
    pub devices: Vec<Device>,
    /// Where the control groups are.
    #[serde(default)]
    pub cgroups_path: String,
    /// The control groups' limits.
    pub resources: Option<Resources>,
    /// How mounts propagate between the container and the host.
    #[serde(default)]
    pub rootfs_propagation: String,
    /// User ids inside and outside.
    pub uid_mappings: Option<Vec<IdMapping>>,
    /// Group ids inside and outside.
    pub gid_mappings: Option<Vec<IdMapping>>,
    /// Kernel parameters of the container's namespaces.
    pub sysctl: Option<BTreeMap<String, String>>,
    /// The system call filter.
    pub seccomp: Option<Seccomp>,
    /// The SELinux label of mounts.
    #[serde(default)]
    pub mount_label: String,
    /// Resource director settings, which are passed on as they are.
    pub intel_rdt: Option<serde_json::Value>,
    /// The execution domain.
    pub personality: Option<serde_json::Value>,
    /// Clock offsets of a time namespace.
    pub time_offsets: Option<serde_json::Value>,
}

/// A namespace to make, or to join where a path is given.
#[derive(Debug, Clone, Deserialize)]
#[non_exhaustive]
pub struct Namespace {
    /// `pid`, `network`, `mount`, `ipc`, `uts`, `user`, `cgroup` or `time`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The namespace to join.
    #[serde(default)]
    pub path: PathBuf,
}

/// A range of ids.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct IdMapping {
    /// The first id inside.
    #[serde(rename = "containerID")]
    pub container_id: i64,
    /// The first id outside.
    #[serde(rename = "hostID")]
    pub host_id: i64,
    /// How many.
    pub size: i64,
}

impl Linux {
    /// Who root inside is outside: user and group.
    pub(crate) fn root_outside(&self) -> (i64, i64) {
        let root = |mappings: &Option<Vec<IdMapping>>| {
            let mapping = mappings
                .iter()
                .flatten()
                .find(|mapping| mapping.container_id == 0);
            mapping.map_or(0, |mapping| mapping.host_id)
        };
        (root(&self.uid_mappings), root(&self.gid_mappings))
    }
}

/// A device file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Device {
    /// Where.
    pub path: PathBuf,
    /// `c`, `u`, `b` or `p`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Major number.
    #[serde(default)]
    pub major: i64,
    /// Minor number.
    #[serde(default)]
    pub minor: i64,
    /// Permissions.
    pub file_mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

/// The system call filter.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Seccomp {
    /// What happens to calls that no rule is about.
    #[serde(default)]
    pub default_action: String,
    /// The error number of a default action that returns one.
    pub default_errno_ret: Option<u32>,
    /// The architectures that the filter is for.
    #[serde(default, deserialize_with = "nullable")]
    pub architectures: Vec<String>,
    /// Flags of seccomp(2).
    pub flags: Option<Vec<String>>,
    /// The socket of an agent that decides on some calls.
    #[serde(default)]
    pub listener_path: String,
    /// What the agent is told.
    #[serde(default)]
    pub listener_metadata: String,
    /// The rules.
    #[serde(default, deserialize_with = "nullable")]
    pub syscalls: Vec<SyscallRule>,
}

/// A rule of the system call filter.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct SyscallRule {
    /// The calls.
    pub names: Vec<String>,
    /// What happens to them.
    pub action: String,
    /// The error number of an action that returns one.
    pub errno_ret: Option<u32>,
    /// What their arguments must be.
    #[serde(default, deserialize_with = "nullable")]
    pub args: Vec<SyscallArgument>,
}

/// What an argument of a call must be.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct SyscallArgument {
    /// Its place.
    pub index: u32,
    /// What it is compared to.
    pub value: u64,
    /// The second operand of a masked comparison.
    #[serde(default)]
    pub value_two: u64,
    /// How.
    pub op: String,
}

/// Programs that run along with the container's life.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Hooks {
    /// Before the container's process starts, in the engine's namespaces. Deprecated, and still in use.
    #[serde(default, deserialize_with = "nullable")]
    pub prestart: Vec<Hook>,
    /// Right after them.
    #[serde(default, deserialize_with = "nullable")]
    pub create_runtime: Vec<Hook>,
    /// In the container's namespaces, before its root is changed.
    #[serde(default, deserialize_with = "nullable")]
    pub create_container: Vec<Hook>,
    /// In the container's namespaces, before its process starts.
    #[serde(default, deserialize_with = "nullable")]
    pub start_container: Vec<Hook>,
    /// After its process has started.
    #[serde(default, deserialize_with = "nullable")]
    pub poststart: Vec<Hook>,
    /// After the container was deleted.
    #[serde(default, deserialize_with = "nullable")]
    pub poststop: Vec<Hook>,
}

/// One such program.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[non_exhaustive]
pub struct Hook {
    /// The program.
    pub path: PathBuf,
    /// Its arguments, its own name first.
    #[serde(default)]
    pub args: Option<Vec<String>>,
    /// Its environment; that of the engine if there is none.
    #[serde(default)]
    pub env: Option<Vec<String>>,
    /// How many seconds it may take.
    #[serde(default)]
    pub timeout: Option<u64>,
}

/// Go writes an empty list or map as null.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Spec {
    /// Reads `config.json` in `bundle`, and returns it with its own bytes.
    pub(crate) fn of_bundle(bundle: &Path) -> Result<(Self, Vec<u8>), ErrorKind> {
        let path = bundle.join(CONFIG);
        let bytes = std::fs::read(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::Bundle {
                path: path.clone(),
                problem: "there is no such file: give the bundle, the directory with the container's config.json"
                    .into(),
                source: None,
            },
            _ => ErrorKind::Bundle {
                path: path.clone(),
                problem: "cannot be read".into(),
                source: Some(source.into()),
            },
        })?;
        let spec = Self::parse(&bytes).map_err(|problem| ErrorKind::Bundle {
            path,
            problem: problem.0,
            source: problem.1,
        })?;
        Ok((spec, bytes))
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let spec: Self = serde_json::from_slice(bytes)
            .map_err(|source| Problem("is no OCI configuration".into(), Some(source.into())))?;
        if !spec.oci_version.starts_with("1.") {
            let version = &spec.oci_version;
            return Err(Problem(
                format!("is of version {version} of the OCI specification; 1.x is known"),
                None,
            ));
        }
        let part = match &spec {
            Self { root: None, .. } => "root",
            Self { process: None, .. } => "process",
            Self { linux: None, .. } => "linux",
            _ => return Ok(spec),
        };
        Err(Problem(
            format!("has no {part:?}, which a container needs"),
            None,
        ))
    }
}

/// What is wrong, and the reader's words.
#[derive(Debug)]
pub(crate) struct Problem(
    pub(crate) String,
    pub(crate) Option<Box<dyn std::error::Error + Send + Sync>>,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_are_empty_and_parts_are_missed() {
        let spec = br#"{"ociVersion":"1.0.2","process":{"user":null},"root":{"path":"rootfs"},"mounts":null,
            "hooks":null,"linux":{"namespaces":null,"resources":{"devices":null,"memory":null}}}"#;
        let spec = Spec::parse(spec).unwrap();
        assert!(spec.mounts.is_empty());
        assert_eq!(spec.linux.unwrap().resources, Some(Resources::default()));

        let problem =
            Spec::parse(br#"{"ociVersion":"1.0.2","process":{},"linux":{}}"#).unwrap_err();
        assert!(problem.0.contains("\"root\""), "{problem:?}");
        let problem = Spec::parse(br#"{"ociVersion":"2.0.0"}"#).unwrap_err();
        assert!(problem.0.contains("2.0.0"), "{problem:?}");
        assert!(Spec::parse(b"{").is_err());
    }

    #[test]
    fn a_bind_mount_is_known_by_its_options() {
        let mount = |options: &str| -> Mount {
            let text = format!(
                r#"{{"destination":"/d","type":"none","source":"/s","options":{options}}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        assert!(mount(r#"["rbind","ro"]"#).is_bind());
        assert!(mount(r#"["ro","bind"]"#).is_bind());
        assert!(!mount(r#"["ro"]"#).is_bind());
        assert!(!mount("null").is_bind());
    }
}
