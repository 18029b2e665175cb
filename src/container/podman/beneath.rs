//! The runtime beneath Podman that a running container is in.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::api::Inspected;
use crate::container::adopt;
use crate::container::beneath::Beneath;
use crate::container::cgroup::{self, Hierarchies};
use crate::container::crun::Crun;
use crate::container::error::{Error, ErrorKind};
use crate::container::model::{Model, ProcessId};
use crate::container::oci::Spec;
use crate::container::plan::{Consumer, DumpPlan};
use crate::container::runc::Runc;
use crate::container::runtime::{Engine, Runtime};

type Result<T> = std::result::Result<T, ErrorKind>;

impl Beneath {
    /// The root is in the argument vector of the container's conmon.
    pub(super) fn under_conmon(inspected: &Inspected) -> Result<Self> {
        let name = inspected.oci_runtime.file_name().unwrap_or_default();
        let root = root_of(inspected.state.conmon_pid);
        match name.to_str() {
            Some("runc") => Ok(Self::Runc(root.map_or_else(Runc::new, Runc::with_root))),
            Some("crun") => Ok(Self::Crun(root.map_or_else(Crun::new, Crun::with_root))),
            _ => Err(ErrorKind::Unsupported(format!(
                "it is in the runtime {}, and only those in runc and crun can be checkpointed",
                inspected.oci_runtime.display()
            ))),
        }
    }

    /// Without a wish, the images are for Podman, which takes them under the same runtime only.
    pub(super) fn consumer(&self, wanted: Consumer) -> Consumer {
        match (wanted, self) {
            (Consumer::Any, Self::Runc(_)) => Consumer::Runc,
            (Consumer::Any, Self::Crun(_)) => Consumer::Crun,
            (wanted, _) => wanted,
        }
    }

    pub(super) fn plan(&self, inspected: &Inspected, consumer: Consumer) -> Result<DumpPlan> {
        match self {
            Self::Runc(runc) => found(runc, inspected)?.plan(consumer),
            Self::Crun(crun) => found(crun, inspected)?.plan(consumer),
        }
    }

    pub(super) fn model(&self, inspected: &Inspected) -> Result<Model> {
        match self {
            Self::Runc(runc) => Ok(found(runc, inspected)?.model),
            Self::Crun(crun) => Ok(found(crun, inspected)?.model),
        }
    }

    /// Where the container has file systems in memory that Podman has mounted at one of `sources`.
    pub(super) fn in_memory(
        &self,
        inspected: &Inspected,
        sources: &[PathBuf],
    ) -> Result<Vec<PathBuf>> {
        fn targets<E: Engine>(
            runtime: &Runtime<E>,
            inspected: &Inspected,
            sources: &[PathBuf],
        ) -> Result<Vec<PathBuf>> {
            let container = found(runtime, inspected)?;
            let targets = container.left_out(sources);
            Ok(targets.map(|mount| mount.target.clone()).collect())
        }
        match self {
            Self::Runc(runc) => targets(runc, inspected, sources),
            Self::Crun(crun) => targets(crun, inspected, sources),
        }
    }

    /// Removes a stopped container's record that Podman has left: its clean-up does not know of a root that its users chose on
    /// the command line.
    pub(super) async fn remove_stopped(&self, id: &str) -> Vec<String> {
        let removed = match self {
            Self::Runc(runc) => runc.remove(id).await,
            Self::Crun(crun) => crun.remove(id).await,
        };
        match removed.as_ref().map_err(Error::kind) {
            Ok(left) => left.clone(),
            // As it should be; or somebody has started it again.
            Err(ErrorKind::Unknown { .. } | ErrorKind::Exists { .. }) => Vec::new(),
            Err(kind) => vec![kind.to_string()],
        }
    }
}

/// The runtime's container, if it is the one that Podman means.
fn found<E: Engine>(
    runtime: &Runtime<E>,
    inspected: &Inspected,
) -> Result<crate::container::runtime::Container<E>> {
    let container = runtime.find(&inspected.id)?;
    let init = container.live.as_ref().map(|live| live.init.pid);
    match init {
        Some(pid) if pid != inspected.state.pid => Err(ErrorKind::State {
            path: runtime.root().join(&inspected.id),
            problem: format!(
                "is of process {pid}, and Podman has the container as process {}: was it restored without Podman?",
                inspected.state.pid
            ),
            source: None,
        }),
        _ => Ok(container),
    }
}

/// Removes the control groups of a container that has exited, as far as they are empty. Returns what could not be removed.
///
/// crun leaves some when CRIU fails, and can then neither restore nor start the container. One that was left frozen would keep
/// a restore waiting for ever.
pub(super) async fn remove_groups(inspected: &Inspected) -> Vec<String> {
    let (bundle, id) = (inspected.static_dir.clone(), inspected.id.clone());
    let removed = tokio::task::spawn_blocking(move || {
        let Ok((spec, _)) = Spec::of_bundle(&bundle) else {
            // It was never started, so there are none.
            return Vec::new();
        };
        let path = spec.linux.unwrap_or_default().cgroups_path;
        let path = cgroup::Scope::parse(&path).map_or_else(|| path.into(), |scope| scope.path());
        // Only those that are the container's alone.
        let is_own = path.is_absolute()
            && path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().contains(&id));
        match Hierarchies::of_host() {
            Ok(host) if is_own => {
                let groups = host.paths(&path.to_string_lossy(), &id);
                let groups: Vec<PathBuf> = groups.into_values().collect();
                adopt::remove_cgroups_in_time(&groups)
            }
            _ => Vec::new(),
        }
    });
    removed
        .await
        .unwrap_or_else(|error| vec![format!("control groups: {error}")])
}

/// The root that conmon gives the runtime it calls, if not the usual one.
fn root_of(conmon: i32) -> Option<PathBuf> {
    ProcessId::of(conmon)?;
    let line = fs::read(format!("/proc/{conmon}/cmdline")).ok()?;
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    root_in(&words).map(|root| OsString::from_vec(root.to_vec()).into())
}

/// What a runtime is told comes as `--runtime-arg WORD` or `--runtime-arg=WORD`.
fn root_in<'a>(words: &[&'a [u8]]) -> Option<&'a [u8]> {
    let mut told = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if *word == b"--runtime-arg" {
            told.push(*words.next()?);
        } else if let Some(word) = word.strip_prefix(b"--runtime-arg=") {
            told.push(word);
        }
    }
    let mut told = told.into_iter();
    while let Some(word) = told.next() {
        if word == b"--root" {
            return told.next();
        } else if let Some(root) = word.strip_prefix(b"--root=") {
            return Some(root);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conmon_tells_the_root() {
        let root = |line: &'static str| {
            let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            root_in(&words).map(|root| String::from_utf8(root.to_vec()).unwrap())
        };
        let some = Some("/run/x".to_owned());
        assert_eq!(root("conmon -c 1 --runtime-arg --root=/run/x -l k8s"), some);
        assert_eq!(
            root(
                "conmon --runtime-arg --log --runtime-arg=/log --runtime-arg --root --runtime-arg /run/x"
            ),
            some
        );
        assert_eq!(
            root("conmon -c 1 --exit-command-arg --root --exit-command-arg /storage"),
            None
        );
        assert_eq!(root("conmon --runtime-arg"), None);
    }
}
