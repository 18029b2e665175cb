//! Where what belongs to an external restore is kept, and how it is taken back.
//!
//! | below `/run/criu-client/external` | |
//! |---|---|
//! | `containers/ID/record.json` | whose it is, who restores it |
//! | `containers/ID/bundle/config.json` | the configuration that it was restored with |
//! | `containers/ID/root` | where its root file system is mounted while it is restored |
//! | `containers/ID/shm` | the same of shared memory that came in an archive |
//! | `networks/ID` | its network namespace, kept while it is down, or made for it |
//! | `runc/ID`, `crun/ID` | its record as a container of that runtime, with this directory as the runtime's root |

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::container::model::{EngineKind, MountEntry, ProcessId, is_valid_id};
use crate::rootfs::{Kernel, Mounter};

/// Where all of it is that is not told otherwise.
pub const HOME: &str = "/run/criu-client/external";

/// What is known of a container that was, or is being, restored externally.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    pub(super) version: u32,
    /// The engine that it was made by.
    pub(super) engine: EngineKind,
    pub(super) id: String,
    pub(super) name: String,
    /// The runtime that it is a container of here.
    pub(super) runtime: EngineKind,
    /// Where its images were.
    pub(super) images: PathBuf,
    /// Who restores it, or has.
    pub(super) owner: ProcessId,
}

/// The paths of one container.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) directory: PathBuf,
    pub(super) network: PathBuf,
}

impl Place {
    pub(super) fn new(home: &Path, id: &str) -> Self {
        Self {
            directory: home.join("containers").join(id),
            network: home.join("networks").join(id),
        }
    }

    pub(super) fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    pub(super) fn shm(&self) -> PathBuf {
        self.directory.join("shm")
    }

    pub(super) fn bundle(&self) -> PathBuf {
        self.directory.join("bundle")
    }

    /// What is written last when it is made and removed last when it goes.
    fn record_file(&self) -> PathBuf {
        self.directory.join("record.json")
    }

    pub(super) fn record(&self) -> io::Result<Option<Record>> {
        match fs::read(self.record_file()) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes the name; `AlreadyExists`: somebody has it.
    pub(super) fn begin(&self, record: &Record) -> io::Result<()> {
        let parent = self.directory.parent().unwrap_or(Path::new(HOME));
        private(true).create(parent)?;
        // Complete with its record from its first moment.
        let made = tempfile::Builder::new()
            .prefix(".new-")
            .tempdir_in(parent)?;
        for part in ["root", "bundle", "shm"] {
            private(false).create(made.path().join(part))?;
        }
        File::create_new(made.path().join("record.json"))?
            .write_all(&serde_json::to_vec_pretty(record)?)?;
        let cwd = rustix::fs::CWD;
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        rustix::fs::renameat_with(cwd, made.path(), cwd, &self.directory, flags)?;
        let _ = made.keep();
        Ok(())
    }

    pub(super) fn configure(&self, config: &serde_json::Value) -> io::Result<()> {
        let mut file = File::create(self.bundle().join("config.json"))?;
        file.write_all(&serde_json::to_vec(config)?)
    }

    /// Takes down what only the restore needed. Returns what could not be.
    pub(super) fn unmount(&self) -> Vec<String> {
        let mut left = Vec::new();
        for at in [self.root(), self.shm()] {
            if let Err(error) = Kernel.unmount(&at) {
                left.push(format!("the mount at {}: {error}", at.display()));
            }
        }
        left
    }

    /// Removes everything but the network namespace. Never what is in a mounted directory. Returns what could not be removed.
    pub(super) fn remove(&self) -> Vec<String> {
        let mut left = self.unmount();
        if !left.is_empty() {
            return left;
        }
        let mut remove = |result: io::Result<()>, path: &Path| match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                left.push(format!("{}: {error}", path.display()));
            }
            _ => {}
        };
        let config = self.bundle().join("config.json");
        remove(fs::remove_file(&config), &config);
        for directory in [self.root(), self.shm(), self.bundle()] {
            remove(fs::remove_dir(&directory), &directory);
        }
        // The record stays as long as anything does.
        if left.is_empty() {
            let mut remove = |result: io::Result<()>, path: &Path| match result {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    left.push(format!("{}: {error}", path.display()));
                }
                _ => {}
            };
            remove(fs::remove_file(self.record_file()), &self.record_file());
            remove(fs::remove_dir(&self.directory), &self.directory);
        }
        left
    }
}

/// A directory that is nobody else's business.
fn private(recursive: bool) -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.recursive(recursive).mode(0o700);
    builder
}

/// Keeps others from looking at the same time.
pub(super) fn lock(home: &Path) -> io::Result<File> {
    private(true).create(home)?;
    let directory = File::open(home)?;
    flock(&directory, FlockOperation::LockExclusive)?;
    Ok(directory)
}

/// The ids of all containers that something is kept of.
pub(super) fn ids(home: &Path) -> io::Result<Vec<String>> {
    let mut ids = Vec::new();
    for part in ["containers", "networks"] {
        let entries = match fs::read_dir(home.join(part)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let name = entry?.file_name();
            if let Some(id) = name
                .to_str()
                .filter(|id| is_valid_id(id) && !id.starts_with(".new-"))
            {
                ids.push(id.to_owned());
            }
        }
    }
    ids.sort();
    ids.dedup();
    Ok(ids)
}

/// What is mounted on exactly this directory, if anything; the topmost.
pub(super) fn mounted_on(path: &Path) -> io::Result<Option<MountEntry>> {
    let mounts = MountEntry::parse_all(&fs::read("/proc/self/mountinfo")?)?;
    let Ok(path) = fs::canonicalize(path) else {
        return Ok(None);
    };
    Ok(mounts
        .into_iter()
        .rev()
        .find(|mount| mount.mount_point == path))
}

/// The mount of an overlay on this host that writes to the layer `upper`.
pub(super) fn writer_of(upper: &Path) -> io::Result<Option<PathBuf>> {
    let upper = fs::canonicalize(upper).unwrap_or_else(|_| upper.to_owned());
    let mounts = MountEntry::parse_all(&fs::read("/proc/self/mountinfo")?)?;
    let writes = |mount: &MountEntry| {
        mount.fs_type == "overlay"
            && mount.super_options.iter().any(|option| {
                option.strip_prefix("upperdir=").is_some_and(|path| {
                    fs::canonicalize(OsStr::new(path)).is_ok_and(|path| path == upper)
                })
            })
    };
    Ok(mounts
        .into_iter()
        .find(writes)
        .map(|mount| mount.mount_point))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(owner: ProcessId) -> Record {
        Record {
            version: 1,
            engine: EngineKind::Docker,
            id: "0123".into(),
            name: "web".into(),
            runtime: EngineKind::Runc,
            images: "/x".into(),
            owner,
        }
    }

    #[test]
    fn a_place_is_taken_once_and_given_back() {
        let home = tempfile::tempdir().unwrap();
        let place = Place::new(home.path(), "0123");
        assert_eq!(place.record().unwrap(), None);
        let record = record(ProcessId::own().unwrap());
        place.begin(&record).unwrap();
        let taken = place.begin(&record).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(place.record().unwrap(), Some(record));
        assert_eq!(ids(home.path()).unwrap(), ["0123"]);
        place.configure(&serde_json::json!({})).unwrap();
        // What somebody has put there is not lost.
        fs::write(place.root().join("mine"), "x").unwrap();
        assert_eq!(place.remove().len(), 1);
        assert!(
            place.record().unwrap().is_some(),
            "the record stays with it"
        );
        fs::remove_file(place.root().join("mine")).unwrap();
        assert_eq!(place.remove(), Vec::<String>::new());
        assert_eq!(ids(home.path()).unwrap(), Vec::<String>::new());
        assert_eq!(
            fs::read_dir(home.path().join("containers"))
                .unwrap()
                .count(),
            0
        );
    }

    #[test]
    fn mounts_are_recognised_exactly() {
        assert!(mounted_on(Path::new("/proc")).unwrap().is_some());
        assert!(mounted_on(Path::new("/proc/self")).unwrap().is_none());
        assert!(mounted_on(Path::new("/nonexistent")).unwrap().is_none());
        assert_eq!(writer_of(Path::new("/nonexistent")).unwrap(), None);
    }
}
