//! What Podman keeps beside a checkpoint, in its own form: the container's addresses, and what it has in `/dev/shm`.
//!
//! `/dev/shm` is a mount that Podman makes and takes away with the container: to CRIU it is from outside, and its content would be
//! lost. It is packed when the tasks are stopped and everything else of the dump is done.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use tar::{Builder, HeaderMode};
use tempfile::NamedTempFile;

use super::api::Inspected;
use crate::ImagesDir;
use crate::container::error::ErrorKind;
use crate::container::model::{Model, MountKind};
use crate::container::runtime::beside;
use crate::dry_run::{Action, Step};
use crate::image::INVENTORY;
use crate::notify::{HookError, Hooks, Notify, Reply, Script};

/// By network, the addresses of its interfaces.
pub(super) const NETWORK_STATUS: &str = "network.status";
/// What was in `/dev/shm`.
pub(in crate::container) const DEVSHM: &str = "devshm-checkpoint.tar";

const SHM: &str = "/dev/shm";

/// The caller's hooks, and what is kept for Podman once they have agreed.
pub(super) struct Beside<'a, H> {
    pub(super) inner: H,
    pub(super) images: &'a ImagesDir,
    pub(super) kept: Kept,
}

/// What is to be kept.
#[derive(Debug)]
pub(super) struct Kept {
    /// The container's addresses.
    pub(super) network: Option<Vec<u8>>,
    /// Where this host sees the container's own `/dev/shm`.
    pub(super) shm: Option<PathBuf>,
}

impl Kept {
    pub(super) fn steps(&self, images: &Path) -> Vec<Step> {
        let (network, shm) = (images.join(NETWORK_STATUS), images.join(DEVSHM));
        let mut steps = vec![Step::at(
            Script::PreDump,
            Action::RemoveFile { path: shm.clone() },
        )];
        let action = match self.network {
            Some(_) => Action::WriteFile { path: network },
            None => Action::RemoveFile { path: network },
        };
        steps.push(Step::at(Script::PreDump, action));
        if self.shm.is_some() {
            steps.push(Step::at(Script::PostDump, Action::WriteFile { path: shm }));
        }
        steps
    }
}

impl<H: Hooks> Hooks for Beside<'_, H> {
    async fn notify(&mut self, notify: Notify) -> Result<Reply, HookError> {
        let script = notify.script();
        let reply = self.inner.notify(notify).await?;
        if matches!(reply, Reply::Refuse(_)) {
            return Ok(reply);
        }
        match script {
            Script::PreDump => {
                // First, so that no earlier checkpoint looks complete that has lost its own of the following.
                beside::unlink(self.images, INVENTORY)?;
                // Those of an earlier checkpoint would be taken for this one's.
                beside::unlink(self.images, DEVSHM)?;
                beside::unlink(self.images, NETWORK_STATUS)?;
                if let Some(network) = &self.kept.network {
                    beside::write(self.images, NETWORK_STATUS, network)?;
                }
            }
            Script::PostDump => {
                if let Some(shm) = self.kept.shm.take() {
                    let images = self.images.clone();
                    // The directory goes along, so that it is still there when the file is removed in it.
                    let packed = tokio::task::spawn_blocking(move || {
                        pack(&images, &shm).map(|packed| (packed, images))
                    });
                    // Given its name here: when nobody waits for it any more, it has none and is gone.
                    let kept = packed
                        .await
                        .map_err(io::Error::other)
                        .and_then(|packed| packed)
                        .and_then(|(packed, images)| {
                            Ok(packed.persist_noclobber(inside(&images, DEVSHM))?)
                        });
                    if let Err(error) = kept {
                        // The rest is complete, and must not look so.
                        beside::unlink(self.images, INVENTORY)?;
                        return Err(ErrorKind::system(format!("packing {SHM}"))(error).into());
                    }
                }
            }
            _ => {}
        }
        Ok(reply)
    }
}

/// The container's own `/dev/shm`, unless that is the host's or another container's, where its content stays.
pub(super) fn own_shm(inspected: &Inspected, model: &Model, pid: i32) -> Option<PathBuf> {
    let own = inspected.static_dir.join("shm");
    let is_own = model.mounts.iter().any(|mount| {
        mount.kind == MountKind::Bind && mount.target == Path::new(SHM) && mount.source == own
    });
    // Through the process, whatever mount namespace Podman has made it in.
    is_own.then(|| PathBuf::from(format!("/proc/{pid}/root{SHM}")))
}

/// A file of the images, wherever they have been moved.
fn inside(images: &ImagesDir, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", images.as_fd().as_raw_fd())).join(name)
}

/// Without its name yet.
fn pack(images: &ImagesDir, shm: &Path) -> io::Result<NamedTempFile> {
    let file = tempfile::Builder::new()
        .prefix("criuctl-new-")
        .tempfile_in(inside(images, "."))?;
    let mut archive = Builder::new(io::BufWriter::new(file));
    archive.follow_symlinks(false);
    archive.mode(HeaderMode::Complete);
    // Podman does not unpack sparse files.
    archive.sparse(false);
    add(&mut archive, shm, Path::new("."))?;
    let written = archive.into_inner()?.into_inner();
    written.map_err(io::IntoInnerError::into_error)
}

fn add(archive: &mut Builder<impl Write>, from: &Path, name: &Path) -> io::Result<()> {
    archive.append_dir(name, from)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, name) = (entry.path(), name.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            add(archive, &path, &name)?;
        } else if kind.is_file() || kind.is_symlink() {
            archive.append_path_with_name(&path, &name)?;
        }
        // Sockets and pipes have no content: CRIU makes those that are open again.
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn an_archive_has_everything_but_sockets() {
        let directory = tempfile::tempdir().unwrap();
        let images = ImagesDir::create(directory.path().join("images")).unwrap();
        let shm = directory.path().join("shm");
        fs::create_dir_all(shm.join("sub")).unwrap();
        fs::write(shm.join("sub/file"), "content").unwrap();
        // A file with a hole, which must come as one without.
        File::create(shm.join("sparse"))
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
        std::os::unix::fs::symlink("sub/file", shm.join("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(shm.join("socket")).unwrap();
        let names_in = |images: &ImagesDir| fs::read_dir(images.path()).unwrap().count();
        drop(pack(&images, &shm).unwrap());
        assert_eq!(names_in(&images), 0, "what nobody has waited for is left");
        let packed = pack(&images, &shm).unwrap();
        packed.persist_noclobber(inside(&images, DEVSHM)).unwrap();
        // Never over what stands there.
        let second = pack(&images, &shm).unwrap();
        assert!(second.persist_noclobber(inside(&images, DEVSHM)).is_err());
        assert_eq!(names_in(&images), 1);

        let mut archive = tar::Archive::new(File::open(images.path().join(DEVSHM)).unwrap());
        let mut found: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let path = entry.path().unwrap().display().to_string();
                (path, entry.header().entry_type(), entry.size())
            })
            .collect();
        found.sort_by(|one, other| one.0.cmp(&other.0));
        let names: Vec<_> = found.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names.len(), 5, "{names:?}");
        let of = |end: &str| found.iter().find(|(name, ..)| name.ends_with(end)).unwrap();
        assert_eq!(of("sub/file").2, 7);
        assert_eq!(
            (of("sparse").1, of("sparse").2),
            (tar::EntryType::Regular, 1 << 20)
        );
        assert_eq!(of("link").1, tar::EntryType::Symlink);
    }
}
