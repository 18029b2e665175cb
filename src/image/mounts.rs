//! `mountpoints-ID.img`.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::file::read_file;
use super::framing::{Format, Frames};
use super::{ImageError, proto};

/// The common magic, then that of mounts. Thousands of mounts take less than a MB.
const FORMAT: Format = Format {
    magics: &[0x5456_4319, 0x5556_3928],
    max_file: 32 << 20,
};

const REQUIRED: &[(u32, &str)] = &[
    (1, "mnt_entry.fstype"),
    (2, "mnt_entry.mnt_id"),
    (4, "mnt_entry.parent_mnt_id"),
    (6, "mnt_entry.root"),
    (7, "mnt_entry.mountpoint"),
    (8, "mnt_entry.source"),
    (9, "mnt_entry.options"),
];

/// The dumped mounts of one mount namespace, in CRIU's order: those on top first.
///
/// Serialised, it is the list of mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Mountpoints {
    mounts: Vec<DumpedMount>,
}

/// A dumped mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct DumpedMount {
    /// The mount's id at the dump.
    pub id: u32,
    /// The id of the mount that it is on.
    pub parent: u32,
    /// The file system's type, if CRIU knows one of those that a root can have; it has no name for most of them.
    pub fs_type: Option<String>,
    /// Which part of the file system is mounted.
    pub root: PathBuf,
    /// Where, in the namespace.
    pub mount_point: PathBuf,
    /// What is mounted, as mountinfo has it.
    pub source: String,
    /// The file system's own options.
    pub options: String,
    /// The name by which a restore asks for what was left out.
    pub external: Option<String>,
}

impl Mountpoints {
    /// Decodes the content of a `mountpoints-ID.img` file; `file` names it in errors.
    ///
    /// # Errors
    ///
    /// [`ImageError`] when the bytes are not complete entries.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, ImageError> {
        let mut mounts = Vec::new();
        for frame in Frames::new(file, bytes, &FORMAT)? {
            let frame = frame?;
            let entry: proto::MntEntry = frame.decode()?;
            frame.require(REQUIRED)?;
            mounts.push(DumpedMount::from_image(entry));
        }
        Ok(Self { mounts })
    }

    /// Reads the mounts from `file` in the open directory `dir`. The descriptor stays the caller's.
    ///
    /// # Errors
    ///
    /// As [`Mountpoints::parse`], and when the file is not there, not readable or not regular.
    pub fn read(dir: BorrowedFd<'_>, file: &str) -> Result<Self, ImageError> {
        Self::parse(file, &read_file(dir, file, &FORMAT)?)
    }

    /// All mounts.
    pub fn mounts(&self) -> &[DumpedMount] {
        &self.mounts
    }

    /// The root of the namespace.
    pub fn root(&self) -> Option<&DumpedMount> {
        self.mounts
            .iter()
            .find(|mount| mount.mount_point == Path::new("/"))
    }
}

impl DumpedMount {
    fn from_image(entry: proto::MntEntry) -> Self {
        /// CRIU's numbers of types whose mounts can be a container's root; of others it writes the name.
        const NUMBERED: [(u32, &str); 2] = [(13, "aufs"), (17, "overlay")];
        let numbered = NUMBERED
            .iter()
            .find(|(number, _)| *number == entry.fstype)
            .map(|(_, name)| (*name).to_owned());
        Self {
            id: entry.mnt_id,
            parent: entry.parent_mnt_id,
            fs_type: numbered.or(entry.fsname),
            root: entry.root.into(),
            // CRIU counts from the root of its own mount namespace while it dumps.
            mount_point: Path::new("/").join(entry.mountpoint.trim_start_matches(['.', '/'])),
            source: entry.source,
            options: entry.options,
            external: entry.ext_key,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::tests::{damaged, protos_require};

    const DOCKER: &[u8] =
        include_bytes!("../../tests/data/images/criu-4.2.1/docker/mountpoints-13.img");

    #[test]
    fn the_mounts_of_a_container() {
        let mounts = Mountpoints::parse("mountpoints-13.img", DOCKER).unwrap();
        let root = mounts.root().unwrap();
        assert_eq!(root.fs_type.as_deref(), Some("overlay"));
        assert!(root.options.starts_with("lowerdir="), "{root:?}");
        let at = |path: &str| {
            mounts
                .mounts()
                .iter()
                .find(|mount| mount.mount_point == Path::new(path))
        };
        let hosts = at("/etc/hosts").unwrap();
        assert_eq!(hosts.external.as_deref(), Some("/etc/hosts"));
        assert_eq!(at("/proc").unwrap().external, None);
        assert_eq!(at("/proc").unwrap().parent, root.id);
    }

    #[test]
    fn what_is_required_is_what_is_declared() {
        protos_require("mnt.proto", "mnt_entry", REQUIRED);
    }

    proptest! {
        #[test]
        fn damage_is_told_or_harmless(bytes in damaged(DOCKER)) {
            if let Ok(mounts) = Mountpoints::parse("x", &bytes) {
                prop_assert!(mounts.mounts().iter().all(|mount| mount.mount_point.is_absolute()));
            }
        }
    }
}
