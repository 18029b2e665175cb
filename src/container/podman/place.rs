//! Images where Podman looks for a checkpoint, for as long as it reads them.
//!
//! Podman restores from `checkpoint` in the container's bundle only, with two files beside it. The first becomes a link to the
//! images through a descriptor of this process: nothing is copied, however much memory is in them, and should we be killed it
//! leads nowhere, so that nothing is ever written into somebody's images. What is there already is put aside and comes back.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, fstat, openat, renameat_with,
};
use serde::{Deserialize, Serialize};

use super::beside::{DEVSHM, NETWORK_STATUS};
use crate::ImagesDir;
use crate::container::error::ErrorKind;
use crate::container::model::ProcessId;
use crate::container::runtime::engine;
use crate::dry_run::{Action, Step};

type Result<T> = std::result::Result<T, ErrorKind>;

/// The directory of the images in a bundle.
const CHECKPOINT: &str = "checkpoint";
/// Our note in the bundle.
const NOTE: &str = "criuctl-restore.json";
/// How what was put aside is called.
const ASIDE: &str = "criuctl-aside-";

/// Images in a bundle. Dropped, they are taken out again.
#[derive(Debug)]
pub(super) struct Placed {
    bundle: PathBuf,
    names: Vec<String>,
    _images: Option<OwnedFd>,
}

/// Who has put what into the bundle.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Note {
    owner: ProcessId,
    names: Vec<String>,
}

impl Placed {
    /// Images that are the container's own checkpoint of Podman's are left where they are.
    pub(super) fn new(bundle: &Path, images: &ImagesDir) -> Result<Self> {
        let failed = |doing: &str| ErrorKind::system(format!("{doing} {}", bundle.display()));
        // Until the note stands and all is in its place: whoever comes second then reads whose it is.
        let _locked = lock(bundle).map_err(failed("locking"))?;
        sweep(bundle)?;
        let names = names(bundle, images)?;
        if names.is_empty() {
            return Ok(Self {
                bundle: bundle.to_owned(),
                names,
                _images: None,
            });
        }
        let owner = ProcessId::own()
            .ok_or_else(|| io::Error::other("/proc does not show this process"))
            .map_err(failed("writing into"))?;
        let descriptor = images
            .as_fd()
            .try_clone_to_owned()
            .map_err(failed("opening images for"))?;
        let note = Note {
            owner,
            names: names.clone(),
        };
        let note = serde_json::to_vec(&note).map_err(io::Error::from);
        note.and_then(|note| engine::put(bundle, NOTE, &note))
            .map_err(failed("writing into"))?;
        let link = format!("/proc/{}/fd/{}", owner.pid, descriptor.as_raw_fd());
        // From here on it is undone when it is dropped.
        let placed = Self {
            bundle: bundle.to_owned(),
            names,
            _images: Some(descriptor),
        };
        placed
            .fill(images, &link)
            .map_err(failed("putting images into"))?;
        Ok(placed)
    }

    /// What [`Placed::new`] does.
    pub(super) fn steps(bundle: &Path, images: &ImagesDir) -> Result<Vec<Step>> {
        left_note(bundle)?;
        let links = names(bundle, images)?.into_iter().filter_map(|name| {
            let to = match name.as_str() {
                CHECKPOINT => images.path().to_owned(),
                name if images.contains(name) => images.path().join(name),
                _ => return None,
            };
            let path = bundle.join(name);
            Some(Step::before(Action::PutLink { path, to }))
        });
        Ok(links.collect())
    }

    fn fill(&self, images: &ImagesDir, link: &str) -> io::Result<()> {
        for name in &self.names {
            match rename_new(&self.bundle.join(name), &aside(&self.bundle, name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        for name in &self.names {
            let path = self.bundle.join(name);
            if name == CHECKPOINT {
                symlink(link, path)?;
            } else if images.contains(name) {
                symlink(format!("{link}/{name}"), path)?;
            }
        }
        Ok(())
    }

    /// Takes the images out again. Returns what could not be put back as it was.
    pub(super) fn remove(mut self) -> Vec<String> {
        self.take_out()
    }

    fn take_out(&mut self) -> Vec<String> {
        match std::mem::take(&mut self.names).as_slice() {
            [] => Vec::new(),
            names => take_out(&self.bundle, names),
        }
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        for left in self.take_out() {
            tracing::warn!("left behind: {left}");
        }
    }
}

/// What is put into the bundle, or at least put aside there.
fn names(bundle: &Path, images: &ImagesDir) -> Result<Vec<String>> {
    let mut names = [NETWORK_STATUS, DEVSHM].map(str::to_owned).to_vec();
    let in_place = is_in_place(bundle, images);
    match in_place.map_err(ErrorKind::system(format!(
        "looking into {}",
        bundle.display()
    )))? {
        // Podman has its own in the bundle, this library within the images.
        true => names.retain(|name| images.contains(name)),
        // Those of another checkpoint would be taken for these images' own.
        false => names.push(CHECKPOINT.to_owned()),
    }
    Ok(names)
}

fn aside(bundle: &Path, name: &str) -> PathBuf {
    bundle.join(format!("{ASIDE}{name}"))
}

fn take_out(bundle: &Path, names: &[String]) -> Vec<String> {
    let mut left = Vec::new();
    let mut note = |path: &Path, done: io::Result<()>| match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            left.push(format!("{}: {error}", path.display()));
        }
        _ => {}
    };
    for name in names {
        let (path, aside) = (bundle.join(name), aside(bundle, name));
        // Only links are ours: what is something else was never put aside.
        if fs::symlink_metadata(&path).is_ok_and(|file| file.is_symlink()) {
            note(&path, fs::remove_file(&path));
        }
        // Whatever has come there meanwhile is not overwritten.
        note(&aside, rename_new(&aside, &path));
    }
    if left.is_empty() {
        let path = bundle.join(NOTE);
        let removed = fs::remove_file(&path);
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                left.push(format!("{}: {error}", path.display()));
            }
            _ => {}
        }
    }
    left
}

/// Never over what is there.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

/// Keeps other processes from putting images into the bundle, until what this returns is dropped.
fn lock(bundle: &Path) -> io::Result<OwnedFd> {
    let directory = openat(
        CWD,
        bundle,
        OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    flock(&directory, FlockOperation::LockExclusive)?;
    Ok(directory)
}

/// Takes out what a restore has left whose process is gone.
fn sweep(bundle: &Path) -> Result<()> {
    let Some(note) = left_note(bundle)? else {
        return Ok(());
    };
    tracing::info!(bundle = %bundle.display(), "taking out what a restore has left whose process is gone");
    match take_out(bundle, &note.names) {
        left if left.is_empty() => Ok(()),
        left => Err(of_note(
            bundle,
            format!(
                "names what a killed restore has left, and it cannot be removed: {}",
                left.join("; ")
            ),
        )),
    }
}

/// The note of a restore whose process is gone. That of one that goes on is an error.
fn left_note(bundle: &Path) -> Result<Option<Note>> {
    let path = bundle.join(NOTE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(ErrorKind::system(format!("reading {}", path.display()))(
                error,
            ));
        }
    };
    let note: Note = serde_json::from_slice(&bytes)
        .map_err(|error| of_note(bundle, format!("is broken: remove it ({error})")))?;
    match note.owner.is_alive() {
        false => Ok(Some(note)),
        true => Err(of_note(
            bundle,
            format!(
                "says that process {} is restoring this container: wait for its end",
                note.owner.pid
            ),
        )),
    }
}

fn of_note(bundle: &Path, problem: String) -> ErrorKind {
    ErrorKind::State {
        path: bundle.join(NOTE),
        problem,
        source: None,
    }
}

/// Whether the images are where Podman looks for them.
pub(super) fn is_in_place(bundle: &Path, images: &ImagesDir) -> io::Result<bool> {
    let images = fstat(images)?;
    match fs::metadata(bundle.join(CHECKPOINT)) {
        Ok(there) => Ok((there.dev(), there.ino()) == (images.st_dev, images.st_ino)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ground() -> (tempfile::TempDir, PathBuf, ImagesDir) {
        let directory = tempfile::tempdir().unwrap();
        let bundle = directory.path().join("userdata");
        fs::create_dir(&bundle).unwrap();
        let images = ImagesDir::create(directory.path().join("images")).unwrap();
        fs::write(images.path().join("inventory.img"), "ours").unwrap();
        fs::write(images.path().join(NETWORK_STATUS), "{}").unwrap();
        (directory, bundle, images)
    }

    fn names(bundle: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(bundle)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_there_comes_back() {
        let (_directory, bundle, images) = ground();
        fs::create_dir(bundle.join(CHECKPOINT)).unwrap();
        fs::write(bundle.join(CHECKPOINT).join("inventory.img"), "Podman's").unwrap();
        fs::write(bundle.join(DEVSHM), "Podman's").unwrap();
        let before = names(&bundle);
        let placed = Placed::new(&bundle, &images).unwrap();
        let read = |name: &str| fs::read_to_string(bundle.join(name));
        assert_eq!(read("checkpoint/inventory.img").unwrap(), "ours");
        assert_eq!(read(NETWORK_STATUS).unwrap(), "{}");
        assert!(read(DEVSHM).is_err());
        let second = Placed::new(&bundle, &images).unwrap_err().to_string();
        assert!(second.contains("is restoring this container"), "{second}");
        // And so a dry run says.
        assert_eq!(
            Placed::steps(&bundle, &images).unwrap_err().to_string(),
            second
        );
        assert!(placed.remove().is_empty());
        assert_eq!(names(&bundle), before);
        assert_eq!(read("checkpoint/inventory.img").unwrap(), "Podman's");
        assert_eq!(
            fs::read_to_string(images.path().join("inventory.img")).unwrap(),
            "ours"
        );
    }

    #[test]
    fn what_a_killed_restore_has_left_leads_nowhere_and_is_taken_out() {
        let (_directory, bundle, images) = ground();
        fs::create_dir(bundle.join(CHECKPOINT)).unwrap();
        let placed = Placed::new(&bundle, &images).unwrap();
        let mut note: Note = serde_json::from_slice(&fs::read(bundle.join(NOTE)).unwrap()).unwrap();
        note.owner.start_time += 1;
        fs::write(bundle.join(NOTE), serde_json::to_vec(&note).unwrap()).unwrap();
        // Its descriptor is closed, as that of a killed process.
        let mut placed = std::mem::ManuallyDrop::new(placed);
        placed._images = None;
        assert!(fs::read(bundle.join("checkpoint/inventory.img")).is_err());
        sweep(&bundle).unwrap();
        assert_eq!(names(&bundle), [CHECKPOINT]);
        assert!(bundle.join(CHECKPOINT).is_dir());
    }

    #[test]
    fn a_checkpoint_of_podmans_own_stays_where_it_is() {
        let (_directory, bundle, _) = ground();
        let images = ImagesDir::create(bundle.join(CHECKPOINT)).unwrap();
        let placed = Placed::new(&bundle, &images).unwrap();
        assert_eq!(names(&bundle), [CHECKPOINT]);
        assert!(placed.remove().is_empty());
        assert_eq!(names(&bundle), [CHECKPOINT]);
    }
}
