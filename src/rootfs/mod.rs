//! Root file systems of containers: what they are made of, and how they are mounted again.
//!
//! An engine takes the root of a container down when that ends. Whoever restores without the engine has to put it together
//! again, from what is known: the engine's own record of the layers, the mounts in the images, the log of the dump. Each gives a
//! [`Rootfs`]; those that are there must [agree](Rootfs::agrees_with).
//!
//! ```text
//! engine's record ── of_storage ─┐
//! mountpoints-*.img ── of_mount ─┼─ agree ─ layers are there ─ mount_at ── Mounter ── the kernel
//! dump.log ─────────── of_log ───┘
//! ```
//!
//! Nothing here asks an engine or knows of a container. The one place where something is mounted is a [`Mounter`]; the
//! kernel's is [`Kernel`]. No program is run for it.

mod aufs;
mod kernel;
mod log;
mod overlay;
mod storage;
mod unionfs;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use aufs::Aufs;
pub use kernel::{Kernel, MountRequest, Mounter};
pub use log::of_log;
pub use overlay::Overlay;
pub use storage::{Storage, driver_home};
pub use unionfs::UnionFs;

/// What a root file system is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Rootfs {
    /// A directory that is there without anybody mounting it: Docker's vfs, a btrfs subvolume, that of a bundle.
    Directory(PathBuf),
    /// Layers on top of each other, as Docker and Podman have had them since AUFS.
    Overlay(Overlay),
    /// Layers as Docker had them on kernels with AUFS.
    Aufs(Aufs),
    /// Layers of the older union file system.
    UnionFs(UnionFs),
    /// A dataset of ZFS with the mount point `legacy`.
    Zfs(String),
}

/// What is wrong with a root file system.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine keeps containers in a way that is not known here.
    #[error(
        "the storage driver {0:?} is not known: overlay, overlay2, overlayfs, vfs, btrfs, zfs and aufs are"
    )]
    UnknownDriver(String),
    /// The type of the mount is not one that layers are made of.
    #[error("a root file system of type {0:?} cannot be mounted again")]
    UnknownType(String),
    /// A part that is not there.
    #[error(
        "{}, {role} of the root file system, is not there: was the container or its image removed?",
        path.display()
    )]
    Missing {
        /// Which part it is.
        role: &'static str,
        /// The directory.
        path: PathBuf,
    },
    /// What is known does not suffice.
    #[error("{0}")]
    Incomplete(String),
    /// Two sources that contradict each other.
    #[error(
        "the root file system has changed since the checkpoint: {what} is {first} by {by_first}, and {second} by {by_second}"
    )]
    Changed {
        /// What differs.
        what: &'static str,
        /// What the one says.
        first: String,
        /// Who says so.
        by_first: String,
        /// What the other says.
        second: String,
        /// Who says that.
        by_second: String,
    },
    /// Somebody writes to the same layer.
    #[error(
        "{} is in use: it is mounted at {}, and two mounts of one upper layer destroy it. Unmount that first",
        upper.display(), at.display()
    )]
    InUse {
        /// The layer.
        upper: PathBuf,
        /// Where it is mounted.
        at: PathBuf,
    },
    /// The kernel has refused.
    #[error("mounting the root file system ({fs_type}) failed")]
    Mount {
        /// The type of the file system.
        fs_type: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Where a [`Rootfs`] comes from, for an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Origin {
    /// The engine's own record.
    Engine,
    /// The mounts in the images.
    Images,
    /// The log of the dump.
    Log,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Engine => "the engine's record",
            Self::Images => "the images",
            Self::Log => "the dump's log",
        })
    }
}

impl Rootfs {
    /// What a mount of this type with these options is made of, in the kernel's own words (those of mountinfo, which CRIU
    /// puts into its images). `home`: the directory from which relative paths count, where that is known.
    ///
    /// `None`: the type says nothing of layers (a directory of the host's file system), or the options do not name them, as
    /// those of AUFS do not.
    ///
    /// # Errors
    /// [`Error::Incomplete`] when layers are named, but not all that is needed.
    pub fn of_mount(
        fs_type: &str,
        source: &str,
        options: &str,
        home: Option<&Path>,
    ) -> Result<Option<Self>, Error> {
        match fs_type {
            "overlay" | "overlayfs" => Overlay::of_options(options, home)
                .map(Self::Overlay)
                .map(Some),
            "unionfs" => UnionFs::of_options(options).map(Self::UnionFs).map(Some),
            "zfs" => Ok(Some(Self::Zfs(source.to_owned()))),
            _ => Ok(None),
        }
    }

    /// Its type, in the kernel's words; `none` for a directory.
    #[must_use]
    pub fn fs_type(&self) -> &'static str {
        match self {
            Self::Directory(_) => "none",
            Self::Overlay(_) => "overlay",
            Self::Aufs(_) => "aufs",
            Self::UnionFs(_) => "unionfs",
            Self::Zfs(_) => "zfs",
        }
    }

    /// The directories that it is made of, topmost first, and what each of them is.
    #[must_use]
    pub fn layers(&self) -> Vec<(&'static str, PathBuf)> {
        match self {
            Self::Directory(path) => vec![("the directory", path.clone())],
            Self::Overlay(overlay) => overlay.layers(),
            Self::Aufs(aufs) => (aufs.branches.iter())
                .map(|path| ("a branch", path.clone()))
                .collect(),
            Self::UnionFs(union) => (union.directories().into_iter())
                .map(|path| ("a directory", path))
                .collect(),
            Self::Zfs(_) => Vec::new(),
        }
    }

    /// Refuses a root file system of which a part is missing.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn is_whole(&self) -> Result<(), Error> {
        for (role, path) in self.layers() {
            if !path.is_dir() {
                return Err(Error::Missing { role, path });
            }
        }
        Ok(())
    }

    /// Compares what two sources say. `Ok` also where they cannot be compared, since they know different things.
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub fn agrees_with(&self, origin: Origin, other: &Self, others: Origin) -> Result<(), Error> {
        let changed = |what, first: String, second: String| Error::Changed {
            what,
            first,
            by_first: origin.to_string(),
            second,
            by_second: others.to_string(),
        };
        match (self, other) {
            (Self::Overlay(one), Self::Overlay(other)) => one.differs_from(other),
            (Self::Aufs(one), Self::Aufs(other)) => {
                differing("the branches", &one.branches, &other.branches)
            }
            (Self::UnionFs(one), Self::UnionFs(other)) => {
                differing("the directories", &one.directories(), &other.directories())
            }
            (Self::Directory(one), Self::Directory(other)) => differing(
                "the directory",
                std::slice::from_ref(one),
                std::slice::from_ref(other),
            ),
            (Self::Zfs(one), Self::Zfs(other)) if one == other => None,
            (one, other) => Some((
                "the file system",
                one.fs_type().to_owned(),
                other.fs_type().to_owned(),
            )),
        }
        .map_or(Ok(()), |(what, first, second)| {
            Err(changed(what, first, second))
        })
    }

    /// Takes over what only another source knows, such as options that the engine does not record.
    pub fn complete_from(&mut self, other: &Self) {
        if let (Self::Overlay(one), Self::Overlay(other)) = (self, other) {
            one.complete_from(other);
        }
    }

    /// What is to be mounted at `at`; `None` for a directory, which is there already.
    #[must_use]
    pub fn request(&self, at: &Path) -> Option<MountRequest> {
        let at = at.to_owned();
        let request = |source: &str, options: String| MountRequest {
            fs_type: self.fs_type(),
            source: source.to_owned(),
            options,
            appended: Vec::new(),
            base: None,
            at: at.clone(),
        };
        match self {
            Self::Directory(_) => None,
            Self::Overlay(overlay) => Some(overlay.request(&at)),
            Self::Aufs(aufs) => Some(request("none", aufs.options())),
            Self::UnionFs(union) => Some(request("none", union.options())),
            Self::Zfs(dataset) => Some(request(dataset, String::new())),
        }
    }

    /// Mounts it at the directory `at`, if it has to be mounted. Returns where it is then.
    ///
    /// # Errors
    /// [`Error::Missing`], and [`Error::Mount`] with the kernel's word for it.
    pub fn mount_at(&self, at: &Path, mounter: &mut impl Mounter) -> Result<PathBuf, Error> {
        self.is_whole()?;
        let Some(request) = self.request(at) else {
            return match self {
                Self::Directory(path) => Ok(path.clone()),
                _ => Ok(at.to_owned()),
            };
        };
        let failed = |source| Error::Mount {
            fs_type: self.fs_type().to_owned(),
            source,
        };
        if let Self::Overlay(overlay) = self {
            overlay.forget_volatile().map_err(failed)?;
        }
        mounter.mount(&request).map_err(failed)?;
        if let Self::UnionFs(_) = self {
            // As docker_cr.sh does: CRIU wants to find it, and such a union does not always show it.
            let null = at.join("dev/null");
            if !null.exists() && at.join("dev").is_dir() {
                std::fs::File::create_new(null).map_err(failed)?;
            }
        }
        Ok(at.to_owned())
    }
}

/// What differs between two lists of directories, wherever their links lead.
fn differing(
    what: &'static str,
    one: &[PathBuf],
    other: &[PathBuf],
) -> Option<(&'static str, String, String)> {
    let real = |path: &PathBuf| std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
    let same = one.len() == other.len()
        && one
            .iter()
            .zip(other)
            .all(|(one, other)| one == other || real(one) == real(other));
    (!same).then(|| (what, joined(one), joined(other)))
}

fn joined(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    paths.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes what would be mounted.
    #[derive(Default)]
    pub(super) struct Noted(pub(super) Vec<MountRequest>);

    impl Mounter for Noted {
        fn mount(&mut self, request: &MountRequest) -> io::Result<()> {
            self.0.push(request.clone());
            Ok(())
        }

        fn unmount(&mut self, _: &Path) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_dataset_is_mounted_by_its_name() {
        let root = Rootfs::of_mount("zfs", "tank/docker/0123", "rw,xattr,noacl", None)
            .unwrap()
            .unwrap();
        let mut noted = Noted::default();
        let at = root.mount_at(Path::new("/x"), &mut noted).unwrap();
        assert_eq!(at, Path::new("/x"));
        let [request] = &noted.0[..] else {
            panic!("{:?}", noted.0);
        };
        assert_eq!(
            (request.fs_type, &*request.source, &*request.options),
            ("zfs", "tank/docker/0123", "")
        );
    }

    #[test]
    fn a_directory_is_not_mounted() {
        let directory = tempfile::tempdir().unwrap();
        let root = Rootfs::Directory(directory.path().to_owned());
        let mut noted = Noted::default();
        assert_eq!(
            root.mount_at(Path::new("/x"), &mut noted).unwrap(),
            directory.path()
        );
        assert!(noted.0.is_empty());
        let gone = Rootfs::Directory("/nonexistent".into());
        let error = gone.mount_at(Path::new("/x"), &mut noted).unwrap_err();
        assert!(error.to_string().starts_with("/nonexistent, the directory"));
    }

    #[test]
    fn other_types_say_nothing() {
        for fs_type in ["ext4", "btrfs", "aufs", "tmpfs"] {
            assert_eq!(Rootfs::of_mount(fs_type, "x", "rw", None).unwrap(), None);
        }
    }

    #[test]
    fn sources_that_contradict_each_other_are_told_apart() {
        let one = Rootfs::Zfs("a".into());
        let other = Rootfs::Directory("/b".into());
        let error = one
            .agrees_with(Origin::Engine, &other, Origin::Images)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "the root file system has changed since the checkpoint: the file system is zfs by the engine's record, and none \
             by the images"
        );
        assert!(one.agrees_with(Origin::Engine, &one, Origin::Log).is_ok());
    }
}
