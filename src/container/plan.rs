//! From a container to a request: pure functions, and values that can be printed before anything is done.
//!
//! The names that stand for external resources in the images are runc's, since every runtime of its family restores by
//! them. What need not be external is not: an image without such names restores under more runtimes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use super::cgroup::{Hierarchies, UNIFIED};
use super::model::{Live, Model, Mount, MountEntry, MountKind, NamespaceKind};
use super::mounts::PointKind;
use crate::options::{
    DumpOptions, ExternalOnDump, ExternalOnRestore, JoinKind, JoinNamespace, RestoreOptions,
};

/// The name of masked files, and of the device, in images.
const NULL: &str = "/dev/null";

/// The annotation that names a configuration file of CRIU, and where runc looks without it.
const CONFIG_ANNOTATION: &str = "org.criu.config";
const RUNC_CONFIG: &str = "/etc/criu/runc.conf";

/// What a dump of a container asks of CRIU, besides what the caller asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct DumpPlan {
    /// The root of the task tree.
    pub pid: i32,
    /// The root file system.
    pub root: PathBuf,
    /// What is left out of the images, in CRIU's own form.
    #[serde(serialize_with = "as_texts")]
    pub external: Vec<ExternalOnDump>,
    /// Whether the network namespace is left empty, for the engine to fill.
    pub empty_network_namespace: bool,
    /// The group through which the tasks are frozen.
    pub freeze_cgroup: Option<PathBuf>,
    /// CRIU's configuration file for this container. Its options win over all others.
    pub config_file: Option<PathBuf>,
    /// What `descriptors.json` says of the standard descriptors.
    pub descriptors: [String; 3],
}

impl DumpPlan {
    /// The request for a container that runs.
    ///
    /// `recorded_stdio` is what the engine noted of the standard descriptors when it made the container.
    #[must_use]
    pub fn new(model: &Model, live: &Live, recorded_stdio: &[String]) -> Self {
        let mut external = Mounts::default();
        for mount in &model.mounts {
            match mount.kind {
                MountKind::Bind => external.add_present(live, &mount.target, &mount.target),
                MountKind::Cgroup if model.has_cgroup_binds() => {
                    external.add_cgroups(live, &mount.target)
                }
                _ => {}
            }
        }
        external.add_submounts(model, live);
        let own_devices = live
            .mount_at(Path::new("/dev"))
            .map(|mount| mount.device.as_str());
        for path in &model.masked_paths {
            // A mask made of the container's own null device is a bind within the container, which CRIU dumps as such.
            let foreign = |mount: &&MountEntry| {
                mount.root == Path::new("/null") && Some(mount.device.as_str()) != own_devices
            };
            if live.mount_at(path).filter(foreign).is_some() {
                external.add(path, Path::new(NULL));
            }
        }
        for path in &model.devices {
            external.add_present(live, path, path);
        }

        let mut external = external.0;
        let namespaces = [NamespaceKind::Network, NamespaceKind::Pid]
            .into_iter()
            .filter_map(|kind| {
                model.namespace(kind)?.path.as_ref()?;
                // The kernel numbers them in 32 bits.
                let inode = u32::try_from(*live.namespaces.get(&kind)?).ok()?;
                let key = namespace_key(kind).to_owned();
                Some(match kind {
                    NamespaceKind::Network => ExternalOnDump::NetNamespace { inode, key },
                    _ => ExternalOnDump::PidNamespace { inode, key },
                })
            });
        external.extend(namespaces);

        Self {
            pid: live.init.pid,
            root: model.rootfs.clone(),
            external,
            empty_network_namespace: model.has_private_network(),
            freeze_cgroup: freezer(model),
            config_file: config_file(model),
            descriptors: descriptors(live, recorded_stdio),
        }
    }

    /// Puts the plan into the options of a dump.
    pub(crate) fn fill(&self, mut options: DumpOptions) -> DumpOptions {
        options = options.root(&self.root).orphan_pts_master(true);
        if self.empty_network_namespace {
            options = options.empty_network_namespace(true);
        }
        if let Some(group) = &self.freeze_cgroup {
            options = options.freeze_cgroup(group);
        }
        if let Some(file) = &self.config_file {
            options = options.config_file(file);
        }
        self.external
            .iter()
            .cloned()
            .fold(options, DumpOptions::external)
    }

    /// Names of mounts that the images will ask the restore for.
    pub(crate) fn mount_names(&self) -> Vec<String> {
        let names = self.external.iter().filter_map(|external| match external {
            ExternalOnDump::Mount { name, .. } => Some(name.clone()),
            _ => None,
        });
        names.collect()
    }
}

/// External mounts in the making: each mount point once.
#[derive(Default)]
struct Mounts(Vec<ExternalOnDump>);

impl Mounts {
    fn add(&mut self, mountpoint: &Path, name: &Path) {
        let known = |external: &ExternalOnDump| matches!(external, ExternalOnDump::Mount { mountpoint: known, .. } if known == mountpoint);
        if !self.0.iter().any(known) {
            self.0.push(ExternalOnDump::Mount {
                mountpoint: mountpoint.to_owned(),
                name: name.to_string_lossy().into_owned(),
            });
        }
    }

    /// Where nothing is mounted (any more) there is nothing to name.
    fn add_present(&mut self, live: &Live, mountpoint: &Path, name: &Path) {
        if live.mount_at(mountpoint).is_some() {
            self.add(mountpoint, name);
        }
    }

    /// The binds of the host's cgroup v1 hierarchies below `destination`.
    fn add_cgroups(&mut self, live: &Live, destination: &Path) {
        for mount in &live.mounts {
            if mount.fs_type == "cgroup" && mount.mount_point.parent() == Some(destination) {
                self.add(&mount.mount_point, &mount.mount_point);
            }
        }
    }

    /// A recursive bind brings along what the host had mounted below its source. To CRIU that is neither named nor the
    /// container's own, so it needs a name as well.
    fn add_submounts(&mut self, model: &Model, live: &Live) {
        for mount in &live.mounts {
            let Some((bind, inner)) = bind_below(&model.mounts, &mount.mount_point) else {
                continue;
            };
            let on_host = bind.source.join(inner);
            let from_host = live.host_mounts.iter().any(|host| {
                host.mount_point == on_host
                    && host.device == mount.device
                    && host.root == mount.root
            });
            if from_host {
                self.add(&mount.mount_point, &mount.mount_point);
            }
        }
    }
}

/// The innermost bind mount that `path` is below, and what follows of the path.
fn bind_below<'a>(mounts: &'a [Mount], path: &'a Path) -> Option<(&'a Mount, &'a Path)> {
    mounts
        .iter()
        .filter(|mount| mount.kind == MountKind::Bind)
        .filter_map(|mount| Some((mount, path.strip_prefix(&mount.target).ok()?)))
        .filter(|(_, inner)| !inner.as_os_str().is_empty())
        .min_by_key(|(_, inner)| inner.components().count())
}

/// What a restore of a container asks of CRIU, and what has to be made for it first.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct RestorePlan {
    /// The root file system, which is bound to a private directory for the time of the restore.
    pub rootfs: PathBuf,
    /// Mount points that must exist, and below which directory of the host.
    pub mount_points: Vec<MountPoint>,
    /// What stands in for what the dump left out, in CRIU's own form.
    #[serde(serialize_with = "as_texts")]
    pub external: Vec<ExternalOnRestore>,
    /// Namespaces that the tasks join.
    #[serde(serialize_with = "as_texts")]
    pub join: Vec<JoinNamespace>,
    /// Network and pid namespaces that the dump left out: CRIU's key and the file.
    pub inherit_namespaces: Vec<(String, PathBuf)>,
    /// Standard descriptors (0 to 2) that were pipes, and CRIU's key of each.
    pub pipes: Vec<(usize, String)>,
    /// Control groups to make, by controller.
    pub cgroups: BTreeMap<String, PathBuf>,
    /// The same as paths within their hierarchies: where the groups in the images are moved to.
    pub cgroup_roots: Vec<(String, PathBuf)>,
    /// Whether the network namespace comes empty from the images, and the loopback interface has to be brought up.
    pub empty_network_namespace: bool,
    /// CRIU's configuration file for this container. Its options win over all others.
    pub config_file: Option<PathBuf>,
}

/// A mount point that must exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MountPoint {
    /// The directory on the host that the path counts from: the root file system, or the source of a bind mount.
    pub below: PathBuf,
    /// The path.
    pub path: PathBuf,
    /// The bind mount's source, which says whether it is a directory; any other mount point is one.
    pub like: Option<PathBuf>,
}

impl MountPoint {
    pub(crate) fn kind(&self) -> std::io::Result<PointKind> {
        match &self.like {
            None => Ok(PointKind::Directory),
            Some(source) => super::mounts::kind_for(source),
        }
    }
}

impl RestorePlan {
    /// The request for a container that is to be restored on this host.
    ///
    /// `names` are those of mounts that the dump is known to have left out, `descriptors` the content of
    /// `descriptors.json`.
    #[must_use]
    pub(crate) fn new(
        model: &Model,
        host: &Hierarchies,
        names: &[String],
        descriptors: &[String],
    ) -> Self {
        let mut external = Counterparts::default();
        for mount in &model.mounts {
            match mount.kind {
                MountKind::Bind => external.add(&mount.target, &mount.source),
                MountKind::Cgroup if model.has_cgroup_binds() => {
                    for (controller, group) in &model.cgroups {
                        let name = host
                            .mount_name(controller)
                            .filter(|_| controller != UNIFIED);
                        if let Some(name) = name {
                            // The container's own group, which is what it saw before.
                            external.add(&mount.target.join(name), group);
                        }
                    }
                }
                _ => {}
            }
        }
        if !model.masked_paths.is_empty() {
            external.add(Path::new(NULL), Path::new(NULL));
        }
        // Runtimes of crun's family name a masked file by its path.
        for path in &model.masked_paths {
            external.add(path, Path::new(NULL));
        }
        for path in &model.devices {
            external.add(path, path);
        }
        for name in names {
            let path = Path::new(name);
            if let Some((bind, inner)) = bind_below(&model.mounts, path) {
                external.add(path, &bind.source.join(inner));
            }
        }

        let mut join = Vec::new();
        let mut inherit_namespaces = Vec::new();
        for namespace in &model.namespaces {
            let Some(path) = &namespace.path else {
                continue;
            };
            let kind = match namespace.kind {
                NamespaceKind::Network | NamespaceKind::Pid => {
                    inherit_namespaces
                        .push((namespace_key(namespace.kind).to_owned(), path.clone()));
                    continue;
                }
                NamespaceKind::Ipc => JoinKind::Ipc,
                NamespaceKind::Uts => JoinKind::Uts,
                NamespaceKind::Mount => JoinKind::Mnt,
                NamespaceKind::Time => JoinKind::Time,
                NamespaceKind::User => JoinKind::User { ids: None },
                // Refused before: CRIU cannot join one.
                NamespaceKind::Cgroup => continue,
            };
            join.push(JoinNamespace::of_file(kind, path));
        }

        let roots = model.cgroups.iter().filter_map(|(controller, group)| {
            Some((controller.clone(), host.path_within(controller, group)?))
        });
        Self {
            rootfs: model.rootfs.clone(),
            mount_points: mount_points(model),
            external: external.0,
            join,
            inherit_namespaces,
            pipes: descriptors
                .iter()
                .take(3)
                .enumerate()
                .filter(|(_, target)| target.starts_with("pipe:["))
                .map(|(number, target)| (number, target.clone()))
                .collect(),
            cgroup_roots: roots.collect(),
            cgroups: model.cgroups.clone(),
            empty_network_namespace: model.has_private_network(),
            config_file: config_file(model),
        }
    }

    /// Puts the plan into the options of a restore; descriptors are added by the caller, who opens them.
    pub(crate) fn fill(&self, root: &Path, mut options: RestoreOptions) -> RestoreOptions {
        options = options
            .root(root)
            .orphan_pts_master(true)
            .evasive_devices(true);
        if self.empty_network_namespace {
            options = options.empty_network_namespace(true);
        }
        if let Some(file) = &self.config_file {
            options = options.config_file(file);
        }
        for (controller, path) in &self.cgroup_roots {
            options = match controller.as_str() {
                UNIFIED => options.extra(unified_root(path)),
                controller => options.cgroup_root(Some(controller), path),
            };
        }
        options = self
            .external
            .iter()
            .cloned()
            .fold(options, RestoreOptions::external);
        self.join
            .iter()
            .cloned()
            .fold(options, RestoreOptions::join_namespace)
    }
}

/// A `cg_root` entry (field 25 of `criu_opts`) for the unified hierarchy alone. CRIU knows that by an empty controller,
/// while an entry without a controller would move every hierarchy.
fn unified_root(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    const BYTES: u8 = 2;
    let length = |mut number: usize| {
        let mut encoded = Vec::new();
        while number > 0x7f {
            encoded.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        encoded.push(number as u8);
        encoded
    };
    let path = path.as_os_str().as_bytes();
    let mut entry = vec![1 << 3 | BYTES, 0, 2 << 3 | BYTES];
    entry.extend(length(path.len()));
    entry.extend(path);
    let mut field = length(25 << 3 | usize::from(BYTES));
    field.extend(length(entry.len()));
    field.extend(entry);
    field
}

/// External mounts of a restore in the making: each name once.
#[derive(Default)]
struct Counterparts(Vec<ExternalOnRestore>);

impl Counterparts {
    fn add(&mut self, name: &Path, path: &Path) {
        let name = name.to_string_lossy().into_owned();
        let known = |external: &ExternalOnRestore| matches!(external, ExternalOnRestore::Mount { name: known, .. } if *known == name);
        if !self.0.iter().any(known) {
            self.0.push(ExternalOnRestore::Mount {
                name,
                path: path.to_owned(),
            });
        }
    }
}

/// Mount points of the configured mounts, except those that are in something CRIU restores with its content.
fn mount_points(model: &Model) -> Vec<MountPoint> {
    let within = |mount: &Mount, other: &Mount| {
        mount.target.starts_with(&other.target) && mount.target != other.target
    };
    let mut points = Vec::new();
    for (index, mount) in model.mounts.iter().enumerate() {
        // The mount that it is on, if any: the last one before it that covers its path.
        let on = model
            .mounts
            .iter()
            .take(index)
            .rev()
            .filter(|other| within(mount, other))
            .max_by_key(|other| other.target.components().count());
        let below = match on {
            _ if mount.kind == MountKind::Cgroup || mount.target == Path::new("/") => continue,
            None => &model.rootfs,
            Some(on) if on.kind == MountKind::Bind => &on.source,
            // A tmpfs comes with its directories, and those of kernel file systems exist.
            Some(_) => continue,
        };
        let path = match on {
            None => mount.target.clone(),
            Some(on) => Path::new("/").join(
                mount
                    .target
                    .strip_prefix(&on.target)
                    .unwrap_or(&mount.target),
            ),
        };
        points.push(MountPoint {
            below: below.clone(),
            path,
            like: (mount.kind == MountKind::Bind).then(|| mount.source.clone()),
        });
    }
    points
}

/// runc's key of an external namespace.
fn namespace_key(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::Pid => "extRootPidNS",
        _ => "extRootNetNS",
    }
}

fn freezer(model: &Model) -> Option<PathBuf> {
    model
        .cgroups
        .get("freezer")
        .or_else(|| model.cgroups.get(UNIFIED))
        .cloned()
}

/// An annotation without a value switches the usual file off.
fn config_file(model: &Model) -> Option<PathBuf> {
    match model.annotations.get(CONFIG_ANNOTATION).map(String::as_str) {
        None => Some(RUNC_CONFIG.into()),
        Some("") => None,
        Some(path) => Some(path.into()),
    }
}

/// What the first process has now, if that is a pipe, or else what the engine noted when it made the container: others of
/// the tree may have kept a pipe that the first process has closed or replaced. A noted pipe that nobody has open any more
/// is not worth asking for one in its place.
fn descriptors(live: &Live, noted: &[String]) -> [String; 3] {
    let is_pipe = |target: &str| target.starts_with("pipe:[");
    let mut noted = noted.iter();
    live.stdio.clone().map(|now| {
        let noted = noted.next().filter(|noted| !noted.is_empty());
        match noted {
            Some(noted) if !is_pipe(&now) && (!is_pipe(noted) || live.pipes.contains(noted)) => {
                noted.clone()
            }
            _ if now.is_empty() => NULL.to_owned(),
            _ => now,
        }
    })
}

fn as_texts<T: ToString, S: Serializer>(values: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(ToString::to_string))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::wire::CriuOpts;
    use prost::Message;

    #[test]
    fn the_unified_hierarchy_has_an_empty_name() {
        for length in [1, 100, 127, 128, 300] {
            let path = format!("/{}", "x".repeat(length));
            let opts = CriuOpts::decode(unified_root(Path::new(&path)).as_slice()).unwrap();
            let [root] = &opts.cg_root[..] else {
                panic!("{opts:?}");
            };
            assert_eq!(
                (root.ctrl.as_deref(), root.path.as_str()),
                (Some(""), path.as_str())
            );
        }
    }
}
