//! The steps of a container's checkpoint, restore and removal. What is done follows these values, and so does what is told
//! of it beforehand.

use std::path::{Path, PathBuf};

use super::beside::SideFile;
use super::prepare::Prepared;
use super::removal::CHECKPOINTED;
use super::{Engine, restore};
use crate::ImagesDir;
use crate::container::error::ErrorKind;
use crate::container::model::Model;
use crate::container::mounts;
use crate::container::plan::EMPTY_DIRECTORY;
use crate::dry_run::{Action, Step};
use crate::image::INVENTORY;
use crate::notify::Script;

type Result<T> = std::result::Result<T, ErrorKind>;

/// What a dump does at callbacks, once the caller's hooks have agreed.
///
/// `directory`: the engine's of the container; `ends`: the container is gone afterwards; `signals`: somebody wants to know
/// when lazy pages are ready.
pub(super) fn at_dump(
    images: &Path,
    files: &[SideFile],
    directory: &Path,
    ends: bool,
    signals: bool,
) -> Vec<Step> {
    // CRIU writes it last. An earlier checkpoint's would make a failed one look complete.
    let mut steps = vec![Step::at(
        Script::PreDump,
        Action::RemoveFile {
            path: images.join(INVENTORY),
        },
    )];
    steps.extend(files.iter().map(|(name, content)| {
        let path = images.join(name);
        let action = match content {
            Some(_) => Action::WriteFile { path },
            None => Action::RemoveFile { path },
        };
        Step::at(Script::PreDump, action)
    }));
    if ends {
        let path = directory.join(CHECKPOINTED);
        steps.push(Step::at(Script::PostDump, Action::MarkComplete { path }));
    }
    if signals {
        steps.push(Step::at(Script::StatusReady, Action::SignalReady));
    }
    steps
}

/// How what remains of a container is removed.
pub(super) fn removal(model: &Model, directory: &Path) -> Vec<Step> {
    let mut groups: Vec<PathBuf> = Vec::new();
    for group in model.cgroups.values() {
        // Controllers that are mounted together share theirs.
        if !groups.contains(group) {
            groups.push(group.clone());
        }
    }
    let mut steps = Vec::new();
    if let Some(scope) = &model.scope {
        let unit = scope.unit.clone();
        steps.push(Step::after(Action::StopUnit { unit }));
    }
    steps.push(Step::after(Action::RemoveCgroups { groups }));
    steps.push(Step::after(Action::RemoveRecord {
        directory: directory.to_owned(),
    }));
    steps.extend(model.poststop_hooks.iter().map(|hook| {
        Step::after(Action::RunProgram {
            program: hook.path.clone(),
        })
    }));
    steps
}

/// What is made before a restore, in this order.
pub(super) fn before_restore<E: Engine>(prepared: &Prepared<E>, root: &Path) -> Result<Vec<Step>> {
    let Prepared {
        directory, plan, ..
    } = prepared;
    let mut steps = vec![
        Step::before(Action::ReserveRecord {
            directory: directory.clone(),
        }),
        Step::before(Action::MakeDirectory {
            path: EMPTY_DIRECTORY.into(),
            make: ImagesDir::missing(EMPTY_DIRECTORY)
                .map_err(ErrorKind::system(format!("making {EMPTY_DIRECTORY}")))?,
        }),
    ];
    let mut planned: Vec<(&Path, PathBuf)> = Vec::new();
    for point in &plan.mount_points {
        let target = mounts::resolve_in(&point.below, &point.path).map_err(ErrorKind::system(
            restore::making_point(&point.below, &point.path),
        ))?;
        let mut make = restore::missing_points(&point.below, &target);
        make.retain(|path| {
            let at = (point.below.as_path(), path.clone());
            let new = !planned.contains(&at);
            planned.push(at);
            new
        });
        steps.push(Step::before(Action::EnsureMountPoint {
            below: point.below.clone(),
            path: target,
            like: point.like.clone(),
            make,
        }));
    }
    let groups: Vec<PathBuf> = plan.cgroups.values().cloned().collect();
    let mut make = restore::missing_groups(groups.iter());
    if let Some(scope) = &prepared.model.scope {
        steps.push(Step::before(Action::StartUnit {
            unit: scope.unit.clone(),
            slice: scope.slice.clone(),
        }));
        let of_systemd = prepared.host.of_systemd(scope);
        make.retain(|group| !of_systemd.iter().any(|made| made.starts_with(group)));
    }
    steps.push(Step::before(Action::MakeCgroups { make }));
    steps.push(Step::before(Action::ApplyLimits { groups }));
    // Last: as long as nothing else can fail, nothing is mounted.
    steps.push(Step::before(Action::BindRoot {
        rootfs: plan.rootfs.clone(),
        at: root.to_owned(),
    }));
    Ok(steps)
}

/// What a restore does at callbacks, before the caller's hooks are asked.
pub(super) fn at_restore<E: Engine>(prepared: &Prepared<E>, console: Option<&Path>) -> Vec<Step> {
    let mut steps = Vec::new();
    if prepared.plan.empty_network_namespace {
        steps.push(Step::at(Script::SetupNamespaces, Action::BringLoopbackUp));
    }
    steps.extend(prepared.model.create_hooks.iter().map(|hook| {
        Step::at(
            Script::SetupNamespaces,
            Action::RunProgram {
                program: hook.path.clone(),
            },
        )
    }));
    if let Some(socket) = console {
        let socket = socket.to_owned();
        steps.push(Step::at(
            Script::OrphanPtsMaster,
            Action::SendTerminal { socket },
        ));
    }
    let path = prepared.directory.join(E::RECORD);
    steps.push(Step::at(Script::PostRestore, Action::JoinCgroups));
    if let Some(scope) = &prepared.model.scope {
        let unit = scope.unit.clone();
        steps.push(Step::at(Script::PostRestore, Action::LeaveUnit { unit }));
    }
    steps.push(Step::at(Script::PostRestore, Action::WriteRecord { path }));
    steps
}
