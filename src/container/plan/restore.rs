//! What a restore is asked, and what is made for it before.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{EMPTY, NULL, as_texts, bind_below, namespace_key};
use crate::container::cgroup::{Hierarchies, UNIFIED};
use crate::container::model::{Model, Mount, MountKind, NamespaceKind};
use crate::container::mounts::{self, PointKind};
use crate::options::{ExternalOnRestore, JoinKind, JoinNamespace, RestoreOptions};

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

/// What stands in for masked directories that the dump left out. It is made when it is missing, and stays.
pub(crate) const EMPTY_DIRECTORY: &str = "/run/criu-client/.empty-directory";

/// What is known of a container's masks.
#[derive(Debug, Default)]
pub(crate) struct Masks {
    /// Masked paths that are directories.
    pub(crate) directories: Vec<PathBuf>,
    /// Where crun may have kept the container.
    pub(crate) crun_roots: Vec<PathBuf>,
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
            Some(source) => mounts::kind_for(source),
        }
    }
}

impl RestorePlan {
    /// The request for a container that is to be restored on this host.
    ///
    /// `names` are those of mounts that the dump is known to have left out, `descriptors` the content of
    /// `descriptors.json`. `network`: a private network namespace comes from the images.
    #[must_use]
    pub(crate) fn new(
        model: &Model,
        host: &Hierarchies,
        names: &[String],
        descriptors: &[String],
        network: bool,
        Masks {
            directories: masked_directories,
            crun_roots,
        }: &Masks,
    ) -> Self {
        let mut external = Counterparts::default();
        for mount in &model.mounts {
            match mount.kind {
                MountKind::Bind => external.add(&mount.target, &mount.source),
                // Also of one with a cgroup namespace, whose mounts are its own: crun names them all the same.
                MountKind::Cgroup => {
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
        // Runtimes of crun's family name a mask by its path; newer ones those of directories by that of an empty one as well.
        for path in &model.masked_paths {
            match masked_directories.contains(path) {
                true => external.add(path, Path::new(EMPTY_DIRECTORY)),
                false => external.add(path, Path::new(NULL)),
            }
        }
        if !masked_directories.is_empty() {
            for root in crun_roots {
                external.add(&root.join(EMPTY), Path::new(EMPTY_DIRECTORY));
            }
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
            empty_network_namespace: model.has_private_network() && !network,
            config_file: model.criu_config.clone(),
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
