//! Where a running container of Docker's is, beneath Docker.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::api::{Inspected, is_crun};
use crate::container::beneath::Beneath;
use crate::container::crun::Crun;
use crate::container::error::ErrorKind;
use crate::container::model::Model;
use crate::container::plan::{Consumer, DumpPlan};
use crate::container::runc::Runc;
use crate::container::runtime::{Engine, Owner, Runtime};

/// The shim's note of the runtime, in the bundle.
const OPTIONS: &str = "options.json";
/// The runtime's root of a shim that was told none.
const DEFAULT_ROOT: &str = "/run/containerd/runc";
/// What is larger is no such note.
const AT_MOST: u64 = 64 * 1024;

/// A running container's runtime.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) beneath: Beneath,
    /// The shim, which is the parent of the container's first process.
    pub(super) shim: i32,
    /// The shim's working directory.
    pub(super) bundle: PathBuf,
}

/// What is known of a container that is up.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) plan: DumpPlan,
    pub(super) model: Model,
    /// Where what is in memory will not be in the images.
    pub(super) left_out: Vec<PathBuf>,
}

/// Refuses a stopped container of which runc has a directory without a record: neither Docker nor anybody else can start it
/// then. It may as well be a restore that is just going on, so nothing is done about it here.
pub(super) fn has_no_leftover(inspected: &Inspected) -> Result<(), ErrorKind> {
    for run in inspected.run_directories() {
        let directory = run.join("runtime-runc/moby").join(&inspected.id);
        if !directory.exists() || directory.join("state.json").exists() {
            continue;
        }
        let root = directory.join("criu-root");
        return Err(ErrorKind::State {
            problem: format!(
                "is of a restore that is going on, or has been left by one that was killed with Docker in its middle, and then \
                 keeps the container from being started. If none is going on, `umount {}` and remove the two directories \
                 with `rmdir`, never with what is in them; then see whether the root file system is whole, as Docker's own \
                 cleaning up removes it through that mount",
                root.display()
            ),
            path: directory,
            source: None,
        });
    }
    Ok(())
}

impl Beneath {
    /// What a container is, and what its dump would ask of CRIU.
    pub(super) fn planned(
        &self,
        owner: Owner<'_>,
        consumer: Consumer,
    ) -> Result<Planned, ErrorKind> {
        fn of<E: Engine>(
            runtime: &Runtime<E>,
            owner: Owner<'_>,
            consumer: Consumer,
        ) -> Result<Planned, ErrorKind> {
            let mut container = runtime.find(owner.id)?;
            container.take_in(owner.mounts);
            let left_out = container.left_out(owner.mounts);
            Ok(Planned {
                plan: container.plan(consumer)?,
                left_out: left_out.map(|mount| mount.target.clone()).collect(),
                model: container.model,
            })
        }
        match self {
            Self::Runc(runc) => of(runc, owner, consumer),
            Self::Crun(crun) => of(crun, owner, consumer),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
struct Options {
    #[serde(default)]
    binary_name: String,
    #[serde(default)]
    root: PathBuf,
}

impl Place {
    /// From the shim, which works in the container's bundle: the daemon's own directories are told nowhere in its API.
    pub(super) fn of(inspected: &Inspected) -> Result<Self, ErrorKind> {
        let (pid, id) = (inspected.state.pid, &inspected.id);
        let elsewhere = |source: Option<io::Error>| ErrorKind::State {
            path: format!("/proc/{pid}").into(),
            problem: format!(
                "is not the first process of a container that a shim of containerd's keeps in a bundle named {id}: \
                 Docker must run on this host and in this pid namespace, not in a virtual machine or a container"
            ),
            source: source.map(Into::into),
        };
        let stat = procfs::process::Process::new(pid).and_then(|process| process.stat());
        let shim = stat
            .map_err(|error| elsewhere(Some(io::Error::other(error))))?
            .ppid;
        let bundle =
            fs::read_link(format!("/proc/{shim}/cwd")).map_err(|error| elsewhere(Some(error)))?;
        if bundle.file_name().is_none_or(|name| name != id.as_str()) {
            return Err(elsewhere(None));
        }
        // Namespaces of containerd's have a directory of their own each, here and below the runtime's root.
        let namespace = bundle
            .parent()
            .and_then(Path::file_name)
            .ok_or_else(|| elsewhere(None))?;
        let options = Options::read(&bundle.join(OPTIONS))?;
        let root = match options.root.as_os_str().is_empty() {
            true => Path::new(DEFAULT_ROOT).join(namespace),
            false => options.root.join(namespace),
        };
        Ok(Self {
            beneath: match is_crun(Path::new(&options.binary_name)) {
                true => Beneath::Crun(Crun::with_root(root)),
                false => Beneath::Runc(Runc::with_root(root)),
            },
            shim,
            bundle,
        })
    }
}

impl Options {
    fn read(path: &Path) -> Result<Self, ErrorKind> {
        let broken = |source: Box<dyn std::error::Error + Send + Sync>| ErrorKind::State {
            path: path.to_owned(),
            problem: "is not what containerd's shim for runc writes".into(),
            source: Some(source),
        };
        match fs::metadata(path) {
            Ok(metadata) if metadata.len() > AT_MOST => Err(broken("it is too large".into())),
            Ok(_) => {
                let bytes = fs::read(path).map_err(|error| broken(error.into()))?;
                serde_json::from_slice(&bytes).map_err(|error| broken(error.into()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(broken(error.into())),
        }
    }
}
