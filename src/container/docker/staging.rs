//! Images among the checkpoints that Docker keeps for a container, for as long as Docker reads them.
//!
//! Docker restores from a directory of its own only, packs that into containerd's store, and unpacks it for the runtime. So
//! what is put there are links to the images: nothing is copied, however much memory is in them. CRIU follows them when it
//! may already be in the container's mount namespace, where only what starts at the directory itself leads out: they go up
//! to the root first.
//!
//! containerd refuses to be given for a second time what it still has ("already exists"). A note that is in no other
//! directory makes each a new one to it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ImagesDir;
use crate::container::error::ErrorKind;
use crate::container::model::ProcessId;

type Result<T> = std::result::Result<T, ErrorKind>;

/// How the names of our directories begin; who has made one has the rest.
pub(super) const PREFIX: &str = "criuctl-restore-";
/// The note that only one directory has.
const NOTE: &str = "criuctl-restore.json";
/// The directory that containerd unpacks into, and forgets.
const UNPACKED: &str = "ctrd-checkpoint";
/// More directories than any path goes through.
const UP: usize = 64;
/// The images before an incremental dump.
const PARENT: &str = "parent";

/// Links among a container's checkpoints. Dropped, they are removed.
#[derive(Debug)]
pub(super) struct Staging {
    directory: PathBuf,
    /// The directory around it, if there was none.
    made: Option<PathBuf>,
    note: Note,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// Of which container the images are.
    container: String,
    /// The directory's name.
    name: String,
}

impl Staging {
    /// In the directory of a container's checkpoints, which is made if it is missing.
    pub(super) fn make(checkpoints: &Path, container: &str, images: &ImagesDir) -> Result<Self> {
        let failed =
            |doing: &str, path: &Path| ErrorKind::system(format!("{doing} {}", path.display()));
        sweep(checkpoints);
        let own = ProcessId::own()
            .ok_or_else(|| io::Error::other("/proc does not show this process"))
            .map_err(ErrorKind::system("reading /proc"))?;
        let made = match DirBuilder::new().mode(0o700).create(checkpoints) {
            Ok(()) => Some(checkpoints.to_owned()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
            Err(error) => return Err(failed("making", checkpoints)(error)),
        };
        // The directory tells whose it is from the moment it is there.
        let directory = tempfile::Builder::new()
            .prefix(&own.to_name(PREFIX))
            .tempdir_in(checkpoints)
            .inspect_err(|_| {
                // Not if somebody else has come to use it.
                let _ = made.as_ref().map(fs::remove_dir);
            })
            .map_err(failed("making a directory in", checkpoints))?
            .keep();
        let name = directory.file_name().unwrap_or_default();
        let staging = Self {
            note: Note {
                container: container.to_owned(),
                name: name.to_string_lossy().into_owned(),
            },
            directory,
            made,
        };
        staging
            .fill(images)
            .map_err(failed("putting links into", &staging.directory))?;
        Ok(staging)
    }

    fn fill(&self, images: &ImagesDir) -> io::Result<()> {
        let note = serde_json::to_vec(&self.note)?;
        fs::write(self.directory.join(NOTE), note)?;
        let from = fs::canonicalize(images.path())?;
        for entry in fs::read_dir(&from)? {
            let name = entry?.file_name();
            if !is_wanted(&name) {
                continue;
            }
            let target = match name == PARENT {
                true => fs::canonicalize(from.join(&name))?,
                false => from.join(&name),
            };
            symlink(from_the_root(&target), self.directory.join(&name))?;
        }
        Ok(())
    }

    /// The name of the checkpoint to Docker.
    pub(super) fn name(&self) -> &str {
        &self.note.name
    }

    /// Leaves everything as it is, since Docker may still read it. Returns what is left; the next restore of this container by
    /// another process removes it.
    pub(super) fn leave(mut self) -> Vec<String> {
        let directory = std::mem::take(&mut self.directory);
        vec![format!(
            "{}, as Docker may still read it",
            directory.display()
        )]
    }

    /// Removes the links, and what containerd has unpacked of them into one of `temporary`, also of earlier restores of this
    /// container: only one can be going on. Returns what could not be removed.
    pub(super) fn remove(mut self, temporary: &[PathBuf]) -> Vec<String> {
        let mut left = Vec::new();
        for directory in temporary {
            left.extend(self.remove_unpacked(directory));
        }
        left.extend(self.remove_links());
        left
    }

    fn remove_unpacked(&self, temporary: &Path) -> Vec<String> {
        let entries = fs::read_dir(temporary).into_iter().flatten().flatten();
        let own = rustix::process::geteuid().as_raw();
        let ours = entries
            .filter(|entry| {
                entry
                    .file_name()
                    .as_encoded_bytes()
                    .starts_with(UNPACKED.as_bytes())
            })
            // Everybody may make one in a directory for temporary files, and a note in it that is none.
            .filter(|entry| {
                let metadata = entry.metadata();
                metadata.is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == own)
            })
            .map(|entry| entry.path())
            .filter(|path| {
                let note = read_note(path);
                note.is_some_and(|note| note.container == self.note.container)
            });
        ours.filter_map(|path| remove(&path)).collect()
    }

    fn remove_links(&mut self) -> Vec<String> {
        let directory = std::mem::take(&mut self.directory);
        if directory.as_os_str().is_empty() {
            return Vec::new();
        }
        let left = remove(&directory).into_iter().collect();
        if let Some(made) = self.made.take() {
            // Somebody else may have come to use it.
            let _ = fs::remove_dir(made);
        }
        left
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        for left in self.remove_links() {
            tracing::warn!("left behind: {left}");
        }
    }
}

/// Images, and what the runtime wants beside them; neither logs nor what only this library reads.
fn is_wanted(name: &OsStr) -> bool {
    name == "descriptors.json" || name == PARENT || name.as_encoded_bytes().ends_with(b".img")
}

/// A relative link that leads to an absolute path, from wherever it is.
fn from_the_root(path: &Path) -> PathBuf {
    let mut link = OsString::new();
    for _ in 0..UP {
        link.push("../");
    }
    link.push(path.strip_prefix("/").unwrap_or(path));
    link.into()
}

/// Removes the directories of restores whose process is gone.
fn sweep(checkpoints: &Path) {
    let entries = fs::read_dir(checkpoints).into_iter().flatten().flatten();
    for entry in entries {
        let path = entry.path();
        let owner = ProcessId::of_name(PREFIX, &entry.file_name());
        if owner.is_some_and(|owner| !owner.is_alive()) {
            tracing::info!(directory = %path.display(), "removing what a restore has left whose process is gone");
            if let Some(left) = remove(&path) {
                tracing::warn!("left behind: {left}");
            }
        }
    }
}

fn read_note(directory: &Path) -> Option<Note> {
    let bytes = fs::read(directory.join(NOTE)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Removes a directory of links, without following one. Returns what could not be removed.
fn remove(directory: &Path) -> Option<String> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Some(format!("{}: {error}", directory.display()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(directory: &Path) -> ImagesDir {
        let path = directory.join("images");
        let images = ImagesDir::create(&path).unwrap();
        for name in [
            "inventory.img",
            "descriptors.json",
            "dump.log",
            "criuctl-container.json",
        ] {
            fs::write(path.join(name), name).unwrap();
        }
        fs::create_dir(directory.join("before")).unwrap();
        fs::write(directory.join("before/pages-1.img"), "pages").unwrap();
        symlink("../before", path.join(PARENT)).unwrap();
        images
    }

    fn names(directory: &Path) -> Vec<OsString> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn links_lead_to_the_images_from_anywhere_and_nothing_remains() {
        let directory = tempfile::tempdir().unwrap();
        let images = images(directory.path());
        let checkpoints = directory.path().join("checkpoints");
        let staging = Staging::make(&checkpoints, "web", &images).unwrap();
        let staged = checkpoints.join(staging.name());
        assert_eq!(
            names(&staged),
            [NOTE, "descriptors.json", "inventory.img", PARENT]
        );
        // As containerd does.
        let temporary = directory.path().join("a/b/c");
        let unpacked = temporary.join("ctrd-checkpoint1");
        fs::create_dir_all(&unpacked).unwrap();
        for name in names(&staged) {
            match fs::read_link(staged.join(&name)) {
                Ok(target) => symlink(target, unpacked.join(&name)).unwrap(),
                Err(_) => {
                    fs::copy(staged.join(&name), unpacked.join(&name)).unwrap();
                }
            }
        }
        let somebodys = temporary.join("ctrd-checkpoint2");
        fs::create_dir(&somebodys).unwrap();
        let [of_killed, of_another] = [("3", "web"), ("4", "shop")].map(|(end, container)| {
            let path = temporary.join(format!("ctrd-checkpoint{end}"));
            fs::create_dir(&path).unwrap();
            let note = Note {
                container: container.into(),
                name: "criuctl-restore-x".into(),
            };
            fs::write(path.join(NOTE), serde_json::to_vec(&note).unwrap()).unwrap();
            path
        });
        for path in [&staged, &unpacked] {
            let read = |name: &str| fs::read_to_string(path.join(name)).unwrap();
            assert_eq!(read("inventory.img"), "inventory.img");
            assert_eq!(read("parent/pages-1.img"), "pages");
        }
        assert!(staging.remove(std::slice::from_ref(&temporary)).is_empty());
        assert!(!unpacked.exists() && !of_killed.exists());
        assert!(somebodys.exists() && of_another.exists());
        assert!(!checkpoints.exists());
        assert!(images.contains("inventory.img"));
    }

    #[test]
    fn what_a_killed_restore_has_left_is_removed_and_what_a_running_one_needs_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let images = images(directory.path());
        let checkpoints = directory.path().join("checkpoints");
        let running = Staging::make(&checkpoints, "web", &images).unwrap();
        let mut owner = ProcessId::own().unwrap();
        owner.start_time += 1;
        // Killed before it had a note.
        let of_killed = checkpoints.join(format!("{}x", owner.to_name(PREFIX)));
        fs::create_dir(&of_killed).unwrap();
        fs::create_dir(checkpoints.join("criuctl-restore-of-somebody")).unwrap();
        let next = Staging::make(&checkpoints, "web", &images).unwrap();
        assert!(!of_killed.exists());
        assert!(checkpoints.join(running.name()).exists());
        assert_ne!(next.name(), running.name());
        drop((next, running));
        assert_eq!(names(&checkpoints), ["criuctl-restore-of-somebody"]);
        // What may still be read stays, and is told.
        let read = Staging::make(&checkpoints, "web", &images).unwrap();
        let path = checkpoints.join(read.name());
        let left = read.leave();
        assert!(path.join("inventory.img").exists());
        assert!(left[0].contains(&path.display().to_string()), "{left:?}");
    }
}
