//! From a container to a request: pure functions, and values that can be printed before anything is done.
//!
//! The names that stand for external resources in the images are those that the runtimes' own restores know, as far as one
//! name suits all. What need not be external is not: an image without such names restores under more runtimes.

mod dump;
mod names;
mod restore;

use std::path::Path;

use serde::Serializer;

use super::model::{Mount, MountKind, NamespaceKind};

pub use dump::DumpPlan;
pub use names::Consumer;
pub(super) use restore::{EMPTY_DIRECTORY, Masks};
pub use restore::{MountPoint, RestorePlan};

/// The name of the empty directory that newer releases of crun mask directories with, in crun's root, and of ours.
pub(super) const EMPTY: &str = ".empty-directory";

/// The device that files are masked with, and runc's name of such files in images.
const NULL: &str = "/dev/null";

/// The innermost bind mount that `path` is below, and what follows of the path.
fn bind_below<'a>(mounts: &'a [Mount], path: &'a Path) -> Option<(&'a Mount, &'a Path)> {
    mounts
        .iter()
        .filter(|mount| mount.kind == MountKind::Bind)
        .filter_map(|mount| Some((mount, path.strip_prefix(&mount.target).ok()?)))
        .filter(|(_, inner)| !inner.as_os_str().is_empty())
        .min_by_key(|(_, inner)| inner.components().count())
}

/// The runtimes' key of an external namespace.
fn namespace_key(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::Pid => "extRootPidNS",
        _ => "extRootNetNS",
    }
}

fn as_texts<T: ToString, S: Serializer>(values: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(ToString::to_string))
}
