//! What is known of a restore before anything is made: from bundle, images and host to a plan.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::beside::{Saved, descriptors};
use super::engine::{self, Bundle, Draft, Habits, Record, Source};
use super::removal::{CHECKPOINTED, Removed, remove};
use super::{Engine, Runtime, acl};
use crate::ImagesDir;
use crate::container::cgroup::changes::Changes;
use crate::container::cgroup::{self, Hierarchies, UNIFIED, systemd};
use crate::container::crun::CrunEngine;
use crate::container::error::ErrorKind;
use crate::container::model::{Model, MountKind, Status};
use crate::container::mounts;
use crate::container::oci::{CONFIG, Spec};
use crate::container::plan::{Masks, RestorePlan};

/// What is told when limits are in files that this host's control groups do not have.
const OTHER_VERSION: &str = "limits that were changed after the container's creation are not set again, but those of its configuration: they are \
     of another version of control groups than this host has";

type Result<T> = std::result::Result<T, ErrorKind>;

/// Everything that is known before anything is made.
pub(super) struct Prepared<E: Engine> {
    pub(super) directory: PathBuf,
    pub(super) model: Model,
    pub(super) record: E::Draft,
    pub(super) plan: RestorePlan,
    pub(super) host: Hierarchies,
    pub(super) descriptors: Vec<String>,
    /// Limits of version 1 that were changed after the container's creation.
    pub(super) changed_limits: Changes,
    pub(super) notes: Vec<String>,
}

impl<E: Engine> Prepared<E> {
    /// Refuses a container whose control groups are systemd's where that cannot make them.
    pub(super) async fn has_systemd(&self) -> Result<()> {
        let Some(scope) = &self.model.scope else {
            return Ok(());
        };
        let problem = match systemd::missing() {
            None if scope.unit.ends_with(".slice") => {
                "is a slice, which has no processes: name the container otherwise in cgroupsPath"
                    .into()
            }
            None => return systemd::is_free(scope).await,
            Some(why) => format!(
                "{why}, and it is to have the container's control group: restore where it runs, or with a plain path, such as \
                 /{}, as cgroupsPath in {}",
                self.model.id,
                self.model.bundle.join(CONFIG).display()
            ),
        };
        Err(ErrorKind::Systemd {
            unit: scope.unit.clone(),
            problem,
            source: None,
        })
    }
}

impl<E: Engine> Runtime<E> {
    /// Refuses a name that is taken. A container of which `images` are a complete checkpoint and only the record remains,
    /// because the checkpointing process died, may be [cleared](Self::clear) away.
    pub(super) fn leftover(&self, id: &str, images: &ImagesDir) -> Result<Option<E::Record>> {
        let directory = self.directory(id)?;
        let Some(record) = E::Record::read(&directory)? else {
            return match directory.exists() {
                false => Ok(None),
                true => Err(ErrorKind::State {
                    path: directory,
                    problem: "holds no record of a container, but has its name: somebody is about to make one, or has \
                              failed to; look at it and remove it"
                        .into(),
                    source: None,
                }),
            };
        };
        match engine::status(record.init(), record.cgroups(), &directory) {
            Status::Stopped if is_checkpointed_into(&directory, images) => Ok(Some(record)),
            status => Err(ErrorKind::Exists { status }),
        }
    }

    /// Returns what its poststop hooks complained of.
    pub(super) async fn clear(
        &self,
        leftover: &E::Record,
        directory: &Path,
    ) -> Result<Vec<String>> {
        tracing::info!(directory = %directory.display(), "removing what remains of a checkpointed container");
        let Removed { left, notes } = remove(&leftover.model(false)?, directory).await;
        match left.is_empty() {
            true => Ok(notes),
            false => Err(ErrorKind::Unsupported(format!(
                "what remains of the checkpointed container cannot be removed: {}",
                left.join("; ")
            ))),
        }
    }

    pub(super) fn prepare(
        &self,
        id: &str,
        images: &ImagesDir,
        bundle: &Path,
        systemd: Option<bool>,
    ) -> Result<Prepared<E>> {
        let directory = self.directory(id)?;
        let bundle = fs::canonicalize(bundle).map_err(|source| ErrorKind::Bundle {
            path: bundle.to_owned(),
            problem:
                "is no directory: give the bundle, the directory with the container's config.json"
                    .into(),
            source: Some(source.into()),
        })?;
        let (spec, spec_bytes) = Spec::of_bundle(&bundle)?;
        let spec_path = bundle.join(CONFIG);
        let rootfs = spec
            .root
            .as_ref()
            .map(|root| bundle.join(&root.path))
            .unwrap_or_default();
        let rootfs = fs::canonicalize(&rootfs).map_err(|source| ErrorKind::Bundle {
            path: rootfs.clone(),
            problem:
                "is the root file system of config.json, and not there: mount or unpack it first"
                    .into(),
            source: Some(source.into()),
        })?;
        let descriptors = descriptors(images)?;
        let saved = Saved::read::<E>(images)?;
        let host =
            Hierarchies::of_host().map_err(ErrorKind::system("looking for control groups"))?;

        let bundle = Bundle {
            path: bundle,
            config: spec_path,
            spec,
            bytes: spec_bytes,
            rootfs,
        };
        let Draft {
            mut model,
            record,
            mut notes,
        } = E::draft(&Source {
            id,
            bundle: &bundle,
            record: saved.record.as_ref(),
            config: saved.config.as_ref(),
            host: &host,
            descriptors: &descriptors,
            systemd,
            had_systemd: saved.systemd,
        })?;
        check(&model, &bundle.config)?;
        if model.scope.is_some() {
            super::unit::annotated(&model)?;
        }
        if let Some(linux) = &bundle.spec.linux {
            lets_in(images, linux.root_outside())?;
        }
        let mut changed_limits = saved.changed_limits;
        if let Some(changed) = changed_limits.remove(UNIFIED) {
            match host.is_unified() {
                true => model.limits.unified.extend(changed),
                false => notes.push(OTHER_VERSION.into()),
            }
        } else if host.is_unified() && !changed_limits.is_empty() {
            changed_limits.clear();
            notes.push(OTHER_VERSION.into());
        }
        // A runtime follows a link when it mounts, but CRIU does not.
        for mount in &mut model.mounts {
            if mount.kind == MountKind::Bind
                && let Ok(source) = fs::canonicalize(&mount.source)
            {
                mount.source = source;
            }
        }
        let plan = RestorePlan::new(
            &model,
            &host,
            &saved.mount_names,
            &descriptors,
            E::RESTORES_NETWORK && saved.network,
            &masks(&model, self.root()),
        );
        Ok(Prepared {
            directory,
            model,
            record,
            plan,
            host,
            descriptors,
            changed_limits,
            notes,
        })
    }
}

/// What is masked in kernel file systems is there what it is here.
fn masks(model: &Model, root: &Path) -> Masks {
    let is_directory = |path: &&PathBuf| match path.starts_with("/proc") || path.starts_with("/sys")
    {
        true => path.is_dir(),
        false => mounts::resolve_in(&model.rootfs, path).is_ok_and(|path| {
            model
                .rootfs
                .join(path.strip_prefix("/").unwrap_or(&path))
                .is_dir()
        }),
    };
    Masks {
        directories: model
            .masked_paths
            .iter()
            .filter(is_directory)
            .cloned()
            .collect(),
        crun_roots: vec![root.to_owned(), CrunEngine::ROOT.into()],
    }
}

/// Whether the container's directory has the marker of a complete checkpoint, and it is the one in `images`.
fn is_checkpointed_into(directory: &Path, images: &ImagesDir) -> bool {
    let marked = fs::read(directory.join(CHECKPOINTED))
        .and_then(|path| fs::canonicalize(std::ffi::OsStr::from_bytes(&path)));
    match (marked, fs::canonicalize(images.path())) {
        (Ok(marked), Ok(images)) => marked == images,
        _ => false,
    }
}

/// In a user namespace the tasks open their images as whom its root is outside.
fn lets_in(images: &ImagesDir, (uid, gid): (i64, i64)) -> Result<()> {
    if uid == 0 {
        return Ok(());
    }
    let metadata = fs::metadata(images.path()).map_err(|source| ErrorKind::Images {
        path: images.path().to_owned(),
        problem: "cannot be looked at".into(),
        source: Some(source.into()),
    })?;
    let is_let_in = match acl::of(images.path()) {
        Ok(Some(list)) => list.lets(&metadata, (uid, gid), acl::SEARCH),
        Ok(None) => acl::mode_lets(&metadata, (uid, gid), acl::SEARCH),
        Err(source) => {
            return Err(ErrorKind::Images {
                path: images.path().to_owned(),
                problem: "has an access control list that cannot be read".into(),
                source: Some(source.into()),
            });
        }
    };
    match is_let_in {
        false => Err(ErrorKind::Images {
            path: images.path().to_owned(),
            problem: format!(
                "cannot be entered by user {uid}, who is root in the container's user namespace, and whose tasks open their \
                 images themselves: give the directory to group {gid} and let that in (chgrp {gid}, chmod g+x), or let the user in (setfacl -m u:{uid}:x)"
            ),
            source: None,
        }),
        true => Ok(()),
    }
}

/// What would fail later, and cannot be undone as easily then.
fn check(model: &Model, spec: &Path) -> Result<()> {
    let of_bundle = |problem: String, source: Option<std::io::Error>| ErrorKind::Bundle {
        path: spec.to_owned(),
        problem,
        source: source.map(Into::into),
    };
    for mount in model
        .mounts
        .iter()
        .filter(|mount| mount.kind == MountKind::Bind)
    {
        fs::metadata(&mount.source).map_err(|error| {
            let (source, destination) = (mount.source.display(), mount.destination.display());
            of_bundle(
                format!("{source}, which is mounted at {destination}, is not there"),
                Some(error),
            )
        })?;
    }
    if let Some(why) = model.cannot_be_restored() {
        return Err(ErrorKind::Unsupported(why));
    }
    for namespace in &model.namespaces {
        let Some(path) = &namespace.path else {
            continue;
        };
        let kind = namespace.kind.oci();
        mounts::open_namespace(path).map_err(|error| {
            let text = format!(
                "the {kind} namespace {}, which it joins, cannot be opened",
                path.display()
            );
            of_bundle(text, Some(error))
        })?;
    }
    let found = cgroup::processes(&model.cgroups)
        .map_err(ErrorKind::system("looking into control groups"))?;
    match found.into_iter().next() {
        None => Ok(()),
        Some((pid, path)) => Err(ErrorKind::Cgroup {
            path,
            problem: format!(
                "the container's control group is not empty (process {pid} is in it): end what is in it, or restore under \
                 another name"
            ),
            source: None,
        }),
    }
}
