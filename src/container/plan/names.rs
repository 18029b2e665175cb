//! Names that stand for external mounts in images, and whose own restore knows which.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::NULL;
use crate::container::model::{EngineKind, Model, MountKind};
use crate::options::ExternalOnDump;

/// Whose own restore images are to suit. This library's restores take all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Consumer {
    /// Every runtime's, as far as that can be, and that of the container's own runtime in any case.
    #[default]
    Any,
    /// runc's, and so that of Docker, containerd and Podman with runc.
    Runc,
    /// crun's, and so that of Podman with crun.
    Crun,
}

impl Consumer {
    const ALL: [Self; 2] = [Self::Runc, Self::Crun];

    /// The runtime that is suited where not every one can be.
    pub(super) fn family(self, own: EngineKind) -> Self {
        match (self, own) {
            (Self::Any, EngineKind::Runc) => Self::Runc,
            (Self::Any, EngineKind::Crun) => Self::Crun,
            (chosen, _) => chosen,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Runc => "runc",
            Self::Crun => "crun",
        }
    }

    /// The name of a file that is masked with the host's null device.
    pub(super) fn mask(self, path: &Path) -> &Path {
        match self {
            Self::Crun => path,
            _ => Path::new(NULL),
        }
    }

    /// Whether its own restore has a counterpart for a mount of this name.
    fn knows(self, model: &Model, name: &Path) -> bool {
        let masked = |path: &Path| model.masked_paths.iter().any(|masked| masked == path);
        let shared = model.mounts.iter().any(|mount| match mount.kind {
            MountKind::Bind => mount.target == name,
            MountKind::Cgroup => name.parent() == Some(&mount.target),
            _ => false,
        });
        let own = match self {
            Self::Crun => masked(name),
            _ => {
                let null = name == Path::new(NULL) && !model.masked_paths.is_empty();
                null || model.devices.iter().any(|device| device == name)
            }
        };
        shared || own
    }
}

/// Says which runtime's own restore does not take images with these external mounts, of those that are to. `directories` are
/// masked ones among the mounts.
pub(super) fn notes(
    model: &Model,
    consumer: Consumer,
    external: &[ExternalOnDump],
    directories: &[PathBuf],
) -> Vec<String> {
    let wanted = Consumer::ALL
        .into_iter()
        .filter(|runtime| [Consumer::Any, *runtime].contains(&consumer));
    let note = |runtime: Consumer| {
        let unknown = |external: &ExternalOnDump| match external {
            ExternalOnDump::Mount { mountpoint, name } => {
                (!runtime.knows(model, Path::new(name))).then(|| mountpoint.display().to_string())
            }
            _ => None,
        };
        let unknown: Vec<String> = external.iter().filter_map(unknown).collect();
        if unknown.is_empty() {
            return None;
        }
        let runtime_name = runtime.name();
        // runc has a name for a masked file, and none for a directory.
        let masks_alone = unknown.iter().map(Path::new).all(|path| {
            model.masked_paths.iter().any(|masked| masked == path)
                && !directories.iter().any(|directory| directory == path)
        });
        let remedy = match masks_alone && consumer != runtime {
            true => {
                format!("checkpoint with --for {runtime_name} if it is to, or restore with criuctl")
            }
            false => "restore with criuctl".to_owned(),
        };
        Some(format!(
            "{runtime_name}'s own restore does not take these images, as it has no counterpart for {}, which {} mounted from \
             the host: {remedy}",
            unknown.join(", "),
            if unknown.len() == 1 { "is" } else { "are" },
        ))
    };
    wanted.filter_map(note).collect()
}
