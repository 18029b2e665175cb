//! What an external checkpoint notes beside the images, besides what every checkpoint does: what the root file system was
//! made of, and which network namespace and open files only we know of.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ImagesDir;
use crate::container::error::ErrorKind;
use crate::container::model::{EngineKind, MountEntry};
use crate::container::runtime::{Repeated, beside};
use crate::options::ExternalOnDump;
use crate::rootfs::Rootfs;

/// The file's name.
pub(super) const NOTE: &str = "criuctl-external.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Note {
    pub(super) version: u32,
    pub(super) engine: EngineKind,
    pub(super) id: String,
    pub(super) name: String,
    /// The storage driver, and the layer that is the container's.
    pub(super) driver: Option<String>,
    pub(super) layer: Option<String>,
    /// What the root was made of, as the kernel had it.
    pub(super) root: Option<Rootfs>,
    /// Where it was mounted, if it was.
    #[serde(default)]
    pub(super) mounted_at: Option<PathBuf>,
    /// Whether the network namespace was kept.
    pub(super) keeps_network: bool,
    /// Standard descriptors that are files from outside the container: which, and CRIU's name of it.
    pub(super) stdio: Vec<(usize, OutsideFile)>,
    /// What a restore has to be told again.
    #[serde(default)]
    pub(super) repeated: Repeated,
}

/// An open file that is none of the container's mount namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OutsideFile {
    pub(super) mount_id: u32,
    pub(super) inode: u64,
}

impl OutsideFile {
    pub(super) fn on_dump(self) -> ExternalOnDump {
        ExternalOnDump::File {
            mount_id: self.mount_id,
            inode: self.inode,
        }
    }
}

impl Note {
    pub(super) fn read(images: &ImagesDir) -> Result<Option<Self>, ErrorKind> {
        let Some(bytes) = beside::read(images, NOTE)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| ErrorKind::Images {
                path: images.path().join(NOTE),
                problem: "is broken: remove it, and the restore does without it".into(),
                source: Some(source.into()),
            })
    }

    pub(super) fn write(&self, images: &ImagesDir) -> io::Result<()> {
        beside::write(images, NOTE, &serde_json::to_vec_pretty(self)?)
    }
}

/// The standard descriptors of a process that are files, but of no mount that it sees.
pub(super) fn outside_files(
    pid: i32,
    mounts: &[MountEntry],
) -> io::Result<Vec<(usize, OutsideFile)>> {
    let mut files = Vec::new();
    for number in 0..3 {
        let Ok(metadata) = fs::metadata(format!("/proc/{pid}/fd/{number}")) else {
            continue;
        };
        let target = fs::read_link(format!("/proc/{pid}/fd/{number}"))?;
        if !target.is_absolute() || target.starts_with("/dev/pts") {
            continue;
        }
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"))?;
        let mount_id = info
            .lines()
            .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
        if let Some(mount_id) = mount_id.filter(|id| !mounts.iter().any(|mount| mount.id == *id)) {
            let inode = metadata.ino();
            files.push((number, OutsideFile { mount_id, inode }));
        }
    }
    Ok(files)
}
