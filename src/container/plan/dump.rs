//! What a dump is asked.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::names::{Consumer, notes};
use super::{EMPTY, NULL, as_texts, bind_below, namespace_key};
use crate::container::cgroup::UNIFIED;
use crate::container::model::{Live, Model, MountEntry, MountKind, NamespaceKind};
use crate::options::{DumpOptions, ExternalOnDump};

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
    /// Whose own restore the images are to suit.
    pub consumer: Consumer,
    /// Which runtime's own restore does not take the images, and why.
    pub notes: Vec<String>,
}

impl DumpPlan {
    /// The request for a container that runs.
    ///
    /// `recorded_stdio` is what the engine noted of the standard descriptors when it made the container.
    #[must_use]
    pub fn new(model: &Model, live: &Live, recorded_stdio: &[String], consumer: Consumer) -> Self {
        let family = consumer.family(model.engine);
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
        let mut directories = Vec::new();
        for path in &model.masked_paths {
            // A mask made of the container's own null device is a bind within the container, which CRIU dumps as such.
            let foreign = |mount: &&MountEntry| {
                mount.root == Path::new("/null") && Some(mount.device.as_str()) != own_devices
            };
            let mask = live.mount_at(path);
            if mask.filter(foreign).is_some() {
                external.add(path, family.mask(path));
            } else if mask.is_some_and(|mask| mask.root.ends_with(EMPTY)) {
                directories.push(path.clone());
                external.add(path, path);
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
        let notes = notes(model, consumer, &external, &directories);

        Self {
            pid: live.init.pid,
            root: model.rootfs.clone(),
            external,
            // crun restores what is in the images; with runc, whatever it runs at a restore fills an empty one.
            empty_network_namespace: model.has_private_network() && family == Consumer::Runc,
            freeze_cgroup: freezer(model),
            config_file: model.criu_config.clone(),
            descriptors: descriptors(live, recorded_stdio),
            consumer,
            notes,
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

fn freezer(model: &Model) -> Option<PathBuf> {
    model
        .cgroups
        .get("freezer")
        .or_else(|| model.cgroups.get(UNIFIED))
        .cloned()
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
