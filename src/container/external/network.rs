//! The network namespace of a container that its engine does not see to.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::container::network;

/// What becomes of a container's network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Network {
    /// The kept one, if the checkpoint has kept it; one that it shared with others, if that still exists; else an empty one.
    #[default]
    AsItWas,
    /// The one that the checkpoint has kept. Whatever is connected to it from outside still is.
    Keep,
    /// One with nothing but a loopback interface.
    Empty,
    /// The one that this file stands for.
    Join(PathBuf),
}

/// Keeps a network namespace alive by mounting its file at `at`.
pub(super) fn pin(namespace: &Path, at: &Path) -> io::Result<()> {
    if let Some(parent) = at.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)?;
    }
    // One of an earlier checkpoint would hide it.
    unpin(at)?;
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(at)?;
    let mounted = mount(
        Some(namespace),
        at,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    );
    if let Err(error) = mounted {
        let _ = fs::remove_file(at);
        return Err(error.into());
    }
    Ok(())
}

/// Lets it go; it is no error if there is none.
pub(super) fn unpin(at: &Path) -> io::Result<()> {
    match umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(at) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes an empty network namespace with its loopback interface up, and pins it at `at`.
pub(super) fn make(at: &Path) -> io::Result<()> {
    let at = at.to_owned();
    // A thread that has left its namespace does not come back.
    let work = move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        pin(Path::new("/proc/thread-self/ns/net"), &at)?;
        network::bring_loopback_up_here().inspect_err(|_| {
            let _ = unpin(&at);
        })
    };
    let thread = std::thread::Builder::new()
        .name("network".into())
        .spawn(work)?;
    thread.join().unwrap_or_else(|_| {
        Err(io::Error::other(
            "the thread that makes a network namespace panicked",
        ))
    })
}
