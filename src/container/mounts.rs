//! The root file system of a container to be restored: its private mount, and the mount points in it.
//!
//! A root file system is not to be trusted: its symbolic links are followed as the container would follow them, beneath
//! its root, and never out of it.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, readlinkat,
    unlinkat,
};
use rustix::io::Errno;

/// More links than this on the way are a loop, as the kernel sees it.
const LINKS_AT_MOST: usize = 40;

/// Where `path` leads in the file system below `root`, as a path from that root. What does not exist is taken as it is.
pub(crate) fn resolve_in(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let top = open_root(root)?;
    let mut done = PathBuf::from("/");
    let mut todo: Vec<std::ffi::OsString> = components(path).rev().map(OsStr::to_owned).collect();
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name == ".." {
            done.pop();
            continue;
        }
        let next = done.join(&name);
        let link = match beneath(&top, &done, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(directory) => match readlinkat(&directory, name.as_os_str(), Vec::new()) {
                Ok(target) => Some(target),
                Err(Errno::INVAL | Errno::NOENT) => None,
                Err(error) => return Err(error.into()),
            },
            Err(Errno::NOENT | Errno::NOTDIR) => None,
            Err(error) => return Err(error.into()),
        };
        match link {
            None => done = next,
            Some(target) => {
                links += 1;
                if links > LINKS_AT_MOST {
                    return Err(Errno::LOOP.into());
                }
                let target = Path::new(OsStr::from_bytes(target.as_bytes()));
                if target.is_absolute() {
                    done = PathBuf::from("/");
                }
                todo.extend(components(target).rev().map(OsStr::to_owned));
            }
        }
    }
    Ok(done)
}

/// The names of a path, `..` among them.
fn components(path: &Path) -> impl DoubleEndedIterator<Item = &OsStr> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name),
        Component::ParentDir => Some(OsStr::new("..")),
        _ => None,
    })
}

fn open_root(root: &Path) -> io::Result<OwnedFd> {
    Ok(openat(
        rustix::fs::CWD,
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Opens a path of which every link has been followed already: a link in it now was put there meanwhile.
fn beneath(top: &OwnedFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() {
        Path::new(".")
    } else {
        relative
    };
    openat2(
        top,
        relative,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

/// What a mount point has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PointKind {
    /// A directory.
    Directory,
    /// An empty file, for a bind mount of anything but a directory.
    File,
}

/// Makes the mount point `target` (a path of [`resolve_in`]) below `root` with what is missing above it. Returns what was
/// made, outermost first.
pub(crate) fn make_point(root: &Path, target: &Path, kind: PointKind) -> io::Result<Vec<PathBuf>> {
    let top = open_root(root)?;
    let mut made = Vec::new();
    let mut directory = beneath(&top, Path::new("/"), OFlags::PATH | OFlags::DIRECTORY)?;
    let names: Vec<&OsStr> = components(target).collect();
    let mut path = PathBuf::from("/");
    for (index, name) in names.iter().enumerate() {
        path.push(name);
        let last = index + 1 == names.len();
        let result = match kind {
            PointKind::File if last => {
                let flags = OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::WRONLY
                    | OFlags::CLOEXEC
                    | OFlags::NOFOLLOW;
                openat(&directory, *name, flags, Mode::from_raw_mode(0o755)).map(drop)
            }
            _ => mkdirat(&directory, *name, Mode::from_raw_mode(0o755)),
        };
        match result {
            Ok(()) => made.push(path.clone()),
            Err(Errno::EXIST) => {}
            Err(error) => {
                remove_points(root, &made);
                return Err(error.into());
            }
        }
        if !last {
            directory = match beneath(&top, &path, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(directory) => directory,
                Err(error) => {
                    remove_points(root, &made);
                    return Err(error.into());
                }
            };
        }
    }
    Ok(made)
}

/// Removes mount points that were made and are still empty.
pub(crate) fn remove_points(root: &Path, made: &[PathBuf]) {
    let Ok(top) = open_root(root) else {
        return;
    };
    for path in made.iter().rev() {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            continue;
        };
        let Ok(directory) = beneath(&top, parent, OFlags::PATH | OFlags::DIRECTORY) else {
            continue;
        };
        // Whatever has come to be in use or has content by now stays.
        let removed = unlinkat(&directory, name, AtFlags::REMOVEDIR);
        if removed == Err(Errno::NOTDIR) && is_empty_file(&directory, name) {
            let _ = unlinkat(&directory, name, AtFlags::empty());
        }
    }
}

fn is_empty_file(directory: &OwnedFd, name: &OsStr) -> bool {
    openat(
        directory,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .and_then(fstat)
    .is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size == 0
    })
}

/// What a mount point for `source` has to be.
pub(crate) fn kind_for(source: &Path) -> io::Result<PointKind> {
    Ok(match std::fs::metadata(source)?.is_dir() {
        true => PointKind::Directory,
        false => PointKind::File,
    })
}

/// Binds `rootfs`, with everything mounted below it, on the directory `at`.
///
/// The copies are slaves of the originals: where those are shared, as they are under systemd, taking the copies off again
/// would otherwise take what is mounted below the root file system off the host as well.
pub(crate) fn bind_root(rootfs: &Path, at: &Path) -> io::Result<()> {
    mount(
        Some(rootfs),
        at,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )?;
    let enslaved = mount(
        None::<&str>,
        at,
        None::<&str>,
        MsFlags::MS_SLAVE | MsFlags::MS_REC,
        None::<&str>,
    );
    if let Err(error) = enslaved {
        // Not detached with what is below: that is what must not reach the originals. A busy mount is told by the error.
        let _ = umount2(at, MntFlags::UMOUNT_NOFOLLOW);
        return Err(error.into());
    }
    Ok(())
}

/// Takes every mount off the directory `at`; it is no error if there is none.
pub(crate) fn unbind_root(at: &Path) -> io::Result<()> {
    loop {
        match umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // No mount (any more), or no directory.
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Opens the file of a namespace.
pub(crate) fn open_namespace(path: &Path) -> io::Result<OwnedFd> {
    let file = File::open(path)?;
    let kind = rustix::fs::fstatfs(file.as_fd())?.f_type;
    /// NSFS_MAGIC of the kernel.
    const NSFS: u64 = 0x6e73_6673;
    match u64::try_from(kind) == Ok(NSFS) {
        true => Ok(file.into()),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "this file is no namespace",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn rootfs() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        std::fs::create_dir_all(at("run/inner")).unwrap();
        std::fs::create_dir_all(at("var")).unwrap();
        symlink("/run", at("var/run")).unwrap();
        symlink("../../../../etc", at("var/out")).unwrap();
        symlink("loop", at("loop")).unwrap();
        directory
    }

    #[test]
    fn links_lead_where_the_container_would_go() {
        let root = rootfs();
        let resolve = |path: &str| resolve_in(root.path(), Path::new(path));
        assert_eq!(
            resolve("/var/run/inner/x").unwrap(),
            Path::new("/run/inner/x")
        );
        assert_eq!(resolve("var/run/../new/y").unwrap(), Path::new("/new/y"));
        assert_eq!(
            resolve("/var/out/passwd").unwrap(),
            Path::new("/etc/passwd")
        );
        assert_eq!(resolve("/../../x").unwrap(), Path::new("/x"));
        assert_eq!(resolve("/").unwrap(), Path::new("/"));
        assert_eq!(resolve("/loop").unwrap_err().raw_os_error(), Some(40));
    }

    #[test]
    fn points_are_made_and_removed_again() {
        let root = rootfs();
        let made = make_point(root.path(), Path::new("/run/a/b/file"), PointKind::File).unwrap();
        assert_eq!(
            made,
            ["/run/a", "/run/a/b", "/run/a/b/file"].map(PathBuf::from)
        );
        assert!(root.path().join("run/a/b/file").is_file());
        assert!(
            make_point(root.path(), Path::new("/run/a/b"), PointKind::Directory)
                .unwrap()
                .is_empty()
        );
        std::fs::write(root.path().join("run/a/mine"), "x").unwrap();
        remove_points(root.path(), &made);
        assert!(!root.path().join("run/a/b").exists());
        assert!(
            root.path().join("run/a/mine").exists(),
            "what others have made meanwhile stays"
        );
    }

    #[test]
    fn a_link_in_the_way_is_not_followed() {
        let root = rootfs();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), root.path().join("trap")).unwrap();
        assert!(make_point(root.path(), Path::new("/trap/x"), PointKind::Directory).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_namespaces_are_opened_as_such() {
        assert!(open_namespace(Path::new("/proc/self/ns/net")).is_ok());
        assert!(open_namespace(Path::new("/dev/null")).is_err());
    }
}
