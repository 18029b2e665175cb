//! What is checkpointed, whatever engine it belongs to.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cgroup::Scope;
use super::oci::{Hook, Resources};

/// The container engines that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EngineKind {
    /// runc.
    Runc,
    /// crun.
    Crun,
    /// Podman, over one of the others.
    Podman,
    /// Docker, over one of the others.
    Docker,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
            Self::Podman => "podman",
            Self::Docker => "docker",
        })
    }
}

impl EngineKind {
    /// The span around what is done to a container.
    pub(crate) fn span(self, id: &str) -> tracing::Span {
        tracing::info_span!("container", container = %format_args!("{self}:{id}"))
    }
}

/// The state of a container, in the words of the OCI runtime specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Status {
    /// Its first process waits to be started.
    Created,
    /// It runs.
    Running,
    /// It is frozen.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// A process, and since when: a pid alone may mean another one by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessId {
    /// Its pid in this pid namespace.
    pub pid: i32,
    /// Its start, as field 22 of `/proc/PID/stat` has it.
    pub start_time: u64,
}

impl ProcessId {
    /// The process that has this pid now; `None` when there is none, or it has ended and nobody has reaped it.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = procfs::process::Process::new(pid).ok()?.stat().ok()?;
        let alive = !matches!(stat.state, 'Z' | 'X' | 'x');
        alive.then_some(Self {
            pid,
            start_time: stat.starttime,
        })
    }

    pub(crate) fn own() -> Option<Self> {
        Self::of(i32::try_from(std::process::id()).ok()?)
    }

    pub(crate) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// The beginning of a name that tells whose a file or directory is; anything may follow.
    #[cfg(any(feature = "archive", feature = "engine"))]
    pub(crate) fn to_name(self, prefix: &str) -> String {
        format!("{prefix}{}-{}-", self.pid, self.start_time)
    }

    /// Whose a file or directory with this name is, if it was named so.
    #[cfg(any(feature = "archive", feature = "engine"))]
    pub(crate) fn of_name(prefix: &str, name: &std::ffi::OsStr) -> Option<Self> {
        let mut numbers = name.to_str()?.strip_prefix(prefix)?.splitn(3, '-');
        let known = Self {
            pid: numbers.next()?.parse().ok()?,
            start_time: numbers.next()?.parse().ok()?,
        };
        numbers.next().map(|_| known)
    }
}

/// The kinds of namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NamespaceKind {
    /// Process ids.
    Pid,
    /// Network.
    Network,
    /// Mounts.
    Mount,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host name.
    Uts,
    /// User ids.
    User,
    /// Control groups.
    Cgroup,
    /// Clock offsets.
    Time,
}

impl NamespaceKind {
    const ALL: [(Self, &'static str, &'static str); 8] = [
        (Self::Pid, "pid", "pid"),
        (Self::Network, "network", "net"),
        (Self::Mount, "mount", "mnt"),
        (Self::Ipc, "ipc", "ipc"),
        (Self::Uts, "uts", "uts"),
        (Self::User, "user", "user"),
        (Self::Cgroup, "cgroup", "cgroup"),
        (Self::Time, "time", "time"),
    ];

    /// The kind with this name in an OCI configuration.
    pub(crate) fn from_oci(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|(_, oci, _)| *oci == name)
            .map(|(kind, ..)| kind)
    }

    /// The name in an OCI configuration.
    pub(crate) fn oci(self) -> &'static str {
        Self::ALL
            .into_iter()
            .find(|(kind, ..)| *kind == self)
            .map_or("", |(_, oci, _)| oci)
    }

    /// The name in `/proc/PID/ns`.
    pub(crate) fn proc(self) -> &'static str {
        Self::ALL
            .into_iter()
            .find(|(kind, ..)| *kind == self)
            .map_or("", |(.., proc)| proc)
    }
}

/// A namespace of the container's own, or one that it joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Namespace {
    /// Its kind.
    pub kind: NamespaceKind,
    /// The file of the namespace that the container joined; `None` when the engine made one for it.
    pub path: Option<PathBuf>,
}

/// What a configured mount is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MountKind {
    /// A directory or file of the host.
    Bind,
    /// The control groups.
    Cgroup,
    /// A file system in memory, which CRIU carries in its images.
    Tmpfs,
    /// Any other type of file system.
    Other(String),
}

/// A configured mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Mount {
    /// What it is.
    pub kind: MountKind,
    /// Where, as the configuration has it.
    pub destination: PathBuf,
    /// The same with the root file system's symbolic links followed: the path that mountinfo shows, and the name that
    /// runtimes give to it in images.
    pub target: PathBuf,
    /// For a bind mount: what is mounted.
    pub source: PathBuf,
}

/// A container, as far as it is the same for every engine.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Model {
    /// Whose it is.
    pub engine: EngineKind,
    /// Its name.
    pub id: String,
    /// The directory with its `config.json`.
    pub bundle: PathBuf,
    /// Its root file system on the host.
    pub rootfs: PathBuf,
    /// Whether its first process has a terminal.
    pub terminal: bool,
    /// Its mounts, in order.
    pub mounts: Vec<Mount>,
    /// Paths that read as empty.
    pub masked_paths: Vec<PathBuf>,
    /// Its device files.
    pub devices: Vec<PathBuf>,
    /// Its namespaces.
    pub namespaces: Vec<Namespace>,
    /// Its control groups by controller, as directories on the host. A named hierarchy has the controller `name=NAME`, the
    /// unified one an empty name.
    pub cgroups: BTreeMap<String, PathBuf>,
    /// The unit that has its control groups, where its engine has asked systemd for them.
    pub scope: Option<Scope>,
    /// The limits of its control groups.
    pub limits: Resources,
    /// Whatever its creator noted.
    pub annotations: BTreeMap<String, String>,
    /// CRIU's configuration file for it, as its engine chooses one.
    pub criu_config: Option<PathBuf>,
    /// The version of the OCI specification that it was made by.
    pub oci_version: String,
    /// Programs to run when its namespaces exist.
    pub create_hooks: Vec<Hook>,
    /// Programs to run when it is gone.
    pub poststop_hooks: Vec<Hook>,
}

impl Model {
    pub(crate) fn namespace(&self, kind: NamespaceKind) -> Option<&Namespace> {
        self.namespaces
            .iter()
            .find(|namespace| namespace.kind == kind)
    }

    /// Whether it has a network namespace that was made for it.
    pub(crate) fn has_private_network(&self) -> bool {
        self.namespace(NamespaceKind::Network)
            .is_some_and(|network| network.path.is_none())
    }

    /// Why no restore could make it again. A checkpoint of such a container would be its end.
    pub(crate) fn cannot_be_restored(&self) -> Option<String> {
        let joined = |kind| self.namespace(kind)?.path.as_ref().map(|path| (kind, path));
        let (kind, path) =
            joined(NamespaceKind::Cgroup).or_else(|| joined(NamespaceKind::Mount))?;
        Some(format!(
            "it joins the {} namespace {}, into which CRIU cannot restore: make the container with a namespace of its own",
            kind.oci(),
            path.display()
        ))
    }

    /// Whether its cgroup v1 mounts are binds of the host's, and so come from outside.
    pub(crate) fn has_cgroup_binds(&self) -> bool {
        self.namespace(NamespaceKind::Cgroup).is_none()
            && self.cgroups.keys().any(|controller| !controller.is_empty())
    }
}

/// The annotation that names a configuration file of CRIU.
const CONFIG_ANNOTATION: &str = "org.criu.config";

/// CRIU's configuration file for a container: the annotated one, or the engine's `usual`. An annotation without a value
/// switches the usual file off.
pub(crate) fn criu_config(
    annotations: &BTreeMap<String, String>,
    usual: Option<&str>,
) -> Option<PathBuf> {
    match annotations.get(CONFIG_ANNOTATION).map(String::as_str) {
        None => usual.map(PathBuf::from),
        Some("") => None,
        Some(path) => Some(path.into()),
    }
}

/// One line of a mountinfo file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct MountEntry {
    /// The mount's id.
    pub id: u32,
    /// The id of the mount that it is on.
    pub parent: u32,
    /// Major and minor number of the file system, as `8:1`.
    pub device: String,
    /// Which part of the file system is mounted.
    pub root: PathBuf,
    /// Where.
    pub mount_point: PathBuf,
    /// The file system's type.
    pub fs_type: String,
    /// The file system's own options.
    pub super_options: Vec<String>,
    /// Whether what is mounted below comes from other mounts, or goes there.
    pub propagates: bool,
}

impl MountEntry {
    pub(crate) fn parse_all(mountinfo: &[u8]) -> io::Result<Vec<Self>> {
        let lines = mountinfo
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        lines
            .map(|line| {
                Self::parse(line).ok_or_else(|| {
                    let line = String::from_utf8_lossy(line);
                    io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("a line of mountinfo is not understood: {line}"),
                    )
                })
            })
            .collect()
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let text = |field: &[u8]| String::from_utf8(field.to_vec()).ok();
        let id = text(fields.next()?)?.parse().ok()?;
        let parent = text(fields.next()?)?.parse().ok()?;
        let device = text(fields.next()?)?;
        let root = unescaped(fields.next()?);
        let mount_point = unescaped(fields.next()?);
        let _options = fields.next()?;
        // Any number of optional fields, up to a dash.
        let mut propagates = false;
        loop {
            match fields.next()? {
                b"-" => break,
                field => {
                    propagates |= field.starts_with(b"shared:") || field.starts_with(b"master:")
                }
            }
        }
        let fs_type = text(fields.next()?)?;
        let _source = fields.next()?;
        let super_options = text(fields.next()?)?
            .split(',')
            .map(str::to_owned)
            .collect();
        Some(Self {
            id,
            parent,
            device,
            root,
            mount_point,
            fs_type,
            super_options,
            propagates,
        })
    }
}

/// The kernel writes blanks, line ends and backslashes of paths as three octal digits after a backslash.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, others)) = rest.split_first() {
        let octal = |digits: &[u8]| {
            digits
                .iter()
                .try_fold(0u32, |value, digit| {
                    Some(value * 8 + u32::from(*digit).checked_sub(48).filter(|d| *d < 8)?)
                })
                .and_then(|value| u8::try_from(value).ok())
        };
        match others.get(..3).filter(|_| *first == b'\\').and_then(octal) {
            Some(byte) => {
                bytes.push(byte);
                rest = others.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = others;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// What `/proc` says of a container that runs.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Live {
    /// Its first process.
    pub init: ProcessId,
    /// Its mounts.
    pub mounts: Vec<MountEntry>,
    /// The mounts of this process, to tell what came from outside.
    #[serde(skip)]
    pub host_mounts: Vec<MountEntry>,
    /// What its first process has at the descriptors 0, 1 and 2, as readlink shows it.
    pub stdio: [String; 3],
    /// Those of the pipes noted by the engine that some process of the container has open.
    pub pipes: BTreeSet<String>,
    /// Inode numbers of its namespaces.
    pub namespaces: BTreeMap<NamespaceKind, u64>,
}

impl Live {
    /// `noted` is what the engine noted of the standard descriptors, `processes` are all of the container.
    pub(crate) fn read(
        init: ProcessId,
        noted: &[String],
        processes: impl Iterator<Item = i32>,
    ) -> io::Result<Self> {
        let pid = init.pid;
        let mut namespaces = BTreeMap::new();
        for (kind, _, proc) in NamespaceKind::ALL {
            match std::fs::metadata(format!("/proc/{pid}/ns/{proc}")) {
                Ok(file) => drop(namespaces.insert(kind, file.ino())),
                // A kernel without this kind.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            init,
            mounts: MountEntry::parse_all(&std::fs::read(format!("/proc/{pid}/mountinfo"))?)?,
            host_mounts: MountEntry::parse_all(&std::fs::read("/proc/self/mountinfo")?)?,
            stdio: [0, 1, 2].map(|number| {
                std::fs::read_link(format!("/proc/{pid}/fd/{number}"))
                    .map(|target| target.to_string_lossy().into_owned())
                    .unwrap_or_default()
            }),
            pipes: open_pipes(noted, processes),
            namespaces,
        })
    }

    /// The mount at `path`; of several on top of each other the last, which is the visible one.
    pub(crate) fn mount_at(&self, path: &Path) -> Option<&MountEntry> {
        self.mounts
            .iter()
            .rev()
            .find(|mount| mount.mount_point == path)
    }
}

/// Which of `noted` are pipes that one of `processes` has open.
fn open_pipes(noted: &[String], processes: impl Iterator<Item = i32>) -> BTreeSet<String> {
    let mut sought: BTreeSet<&String> = noted
        .iter()
        .filter(|target| target.starts_with("pipe:["))
        .collect();
    let mut found = BTreeSet::new();
    for pid in processes {
        if sought.is_empty() {
            break;
        }
        // One that ends meanwhile has nothing open.
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten();
        for target in descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok()) {
            if let Some(pipe) = target
                .to_str()
                .and_then(|target| sought.take(&target.to_owned()))
            {
                found.insert(pipe.clone());
            }
        }
    }
    found
}

/// Whether `name` is the name of a container: no path may come of it.
pub(crate) fn is_valid_id(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    !name.is_empty()
        && name.bytes().all(allowed)
        && !matches!(name, "." | "..")
        && Path::new(name).file_name() == Some(OsStr::from_bytes(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(feature = "engine")]
    fn names_tell_whose_they_are() {
        let known = ProcessId {
            pid: 12,
            start_time: 345,
        };
        let name = format!("{}aB-c", known.to_name("podman-"));
        assert_eq!(name, "podman-12-345-aB-c");
        let of = |name: &str| ProcessId::of_name("podman-", name.as_ref());
        assert_eq!(of(&name), Some(known));
        for other in [
            "podman-",
            "podman-x-1-",
            "restore-12-345-x",
            "podman-12",
            "podman-12-345",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    use std::os::fd::AsRawFd;

    #[test]
    fn mountinfo_lines_are_read_with_their_escapes() {
        let line = br"67 66 0:42 /a\040b /dev/p\134ts rw,nosuid shared:3 master:7 - devpts devpts rw,gid=5,mode=620";
        let entry = MountEntry::parse(line).unwrap();
        assert_eq!(entry.root, Path::new("/a b"));
        assert_eq!(entry.mount_point, Path::new(r"/dev/p\ts"));
        assert_eq!(
            (entry.id, entry.parent, entry.device.as_str()),
            (67, 66, "0:42")
        );
        assert_eq!(entry.super_options, ["rw", "gid=5", "mode=620"]);
        assert!(entry.propagates);
        let private = MountEntry::parse(b"67 66 0:42 / /x rw unbindable - tmpfs tmpfs rw").unwrap();
        assert!(!private.propagates);
        assert!(MountEntry::parse(b"67 66 0:42 / /x rw").is_none());
        assert!(MountEntry::parse_all(b"garbage\n").is_err());
        assert_eq!(unescaped(br"\04"), Path::new(r"\04"));
    }

    #[test]
    fn names_cannot_become_paths() {
        for good in ["a", "a.b", "web_1+2-3", "..a"] {
            assert!(is_valid_id(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "/a", "a b", "é", "a\0"] {
            assert!(!is_valid_id(bad), "{bad}");
        }
    }

    #[test]
    fn a_process_is_itself_and_no_other() {
        let own = ProcessId::own().unwrap();
        assert!(own.is_alive());
        let earlier = ProcessId {
            start_time: own.start_time + 1,
            ..own
        };
        assert!(!earlier.is_alive());
        let (_end, other) = rustix::pipe::pipe().unwrap();
        let link = std::fs::read_link(format!("/proc/self/fd/{}", other.as_raw_fd())).unwrap();
        let open = link.to_str().unwrap().to_owned();
        let noted = [open.clone(), "pipe:[1]".into(), "/dev/null".into()];
        let live = Live::read(own, &noted, [own.pid].into_iter()).unwrap();
        assert_eq!(live.pipes, BTreeSet::from([open]));
        assert!(live.mount_at(Path::new("/proc")).is_some());
        assert!(live.namespaces.contains_key(&NamespaceKind::Mount));
    }
}
