//! The one place where root file systems are mounted.

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

/// What mount(2) takes of options is a page, with the byte that ends it.
const OPTIONS_AT_MOST: usize = 4095;

/// A mount to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MountRequest {
    /// The type of the file system.
    pub fs_type: &'static str,
    /// What is mounted.
    pub source: String,
    /// The file system's options, as mount(2) takes them.
    pub options: String,
    /// The same one by one, unescaped, for options that are too long for mount(2); empty where there is no such form.
    pub appended: Vec<(String, String)>,
    /// The directory from which relative paths in the options count.
    pub base: Option<PathBuf>,
    /// Where it is mounted.
    pub at: PathBuf,
}

/// Who mounts: the kernel, or a test that looks at what would be mounted.
pub trait Mounter {
    /// Makes the mount.
    ///
    /// # Errors
    /// What the kernel says.
    fn mount(&mut self, request: &MountRequest) -> io::Result<()>;

    /// Takes down what is mounted at `at`; it is no error if nothing is.
    ///
    /// # Errors
    /// What the kernel says.
    fn unmount(&mut self, at: &Path) -> io::Result<()>;
}

/// The kernel of this host, in this mount namespace.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Kernel;

impl Mounter for Kernel {
    fn mount(&mut self, request: &MountRequest) -> io::Result<()> {
        if request.options.len() <= OPTIONS_AT_MOST {
            mount_from(request)?;
        } else if request.appended.is_empty() {
            return Err(rustix::io::Errno::TOOBIG.into());
        } else {
            mount_in_parts(request)?;
        }
        // Under systemd everything is shared, and what is done to this mount is nobody else's business.
        let private = mount(
            None::<&str>,
            &request.at,
            None::<&str>,
            MsFlags::MS_PRIVATE,
            None::<&str>,
        );
        if let Err(error) = private {
            let _ = umount2(
                &request.at,
                MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW,
            );
            return Err(error.into());
        }
        Ok(())
    }

    fn unmount(&mut self, at: &Path) -> io::Result<()> {
        loop {
            match umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => {}
                // No mount (any more), or no directory.
                Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A mount(2), with relative paths counted from the request's directory: a process has one working directory for all its
/// threads, but for those that take one of their own.
fn mount_from(request: &MountRequest) -> io::Result<()> {
    let request = request.clone();
    let work = move || {
        if let Some(base) = &request.base {
            unshare(CloneFlags::CLONE_FS)?;
            std::env::set_current_dir(base)?;
        }
        let options = (!request.options.is_empty()).then_some(request.options.as_str());
        mount(
            Some(request.source.as_str()),
            &request.at,
            Some(request.fs_type),
            MsFlags::empty(),
            options,
        )?;
        Ok(())
    };
    let thread = std::thread::Builder::new()
        .name("mount".into())
        .spawn(work)?;
    thread
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread that mounts panicked")))
}

/// The kernel's newer calls take one option after the other, and layers one by one since Linux 6.5.
fn mount_in_parts(request: &MountRequest) -> io::Result<()> {
    let context = fsopen(request.fs_type, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", request.source.as_str())?;
    for (key, value) in &request.appended {
        match value.is_empty() {
            true => fsconfig_set_flag(&context, key.as_str())?,
            false => fsconfig_set_string(&context, key.as_str(), value.as_str())?,
        }
    }
    fsconfig_create(&context)?;
    let mounted = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    move_mount(
        &mounted,
        "",
        rustix::fs::CWD,
        &request.at,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(())
}
