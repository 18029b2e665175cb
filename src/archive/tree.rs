//! Directory trees as tar files within an archive: volumes, `/dev/shm`, and what a container has changed in its root.
//!
//! A tree is looked through first, since a member's size comes before its content; then it is written as it was found. Names are opened
//! below the tree's root without following links or entering mounts, because processes of the container may be
//! at work in it.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2, readlinkat,
};
use rustix::io::Errno;
use tar::{EntryType, Header};

use super::write::{Stop, Writer, blocks, padding};

/// The two blocks of zeros at the end.
const END: u64 = 1024;
/// How Go's, GNU's and this tar know an extended attribute.
const XATTR: &str = "SCHILY.xattr.";
/// What a security module of another host has said of a file means nothing here.
const OF_THIS_HOST: [&str; 2] = ["security.selinux", "security.ima"];

/// A tree as it was found.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
    entries: Vec<Entry>,
    size: u64,
}

/// What the root of a container has that its image has not.
#[derive(Debug)]
pub(crate) struct Difference {
    /// What was added or changed.
    pub(crate) tree: Tree,
    /// What is gone: absolute paths, of a directory that alone.
    pub(crate) deleted: Vec<Vec<u8>>,
}

/// Where the layers of an overlay are.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    pub(crate) upper: PathBuf,
    /// The uppermost first.
    pub(crate) lower: Vec<PathBuf>,
}

#[derive(Debug)]
struct Entry {
    /// Below the root; empty for the root itself.
    path: Box<[u8]>,
    kind: Kind,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: u64,
    xattrs: Vec<(String, Vec<u8>)>,
}

#[derive(Debug)]
enum Kind {
    Directory,
    File { size: u64 },
    Symlink { target: Box<[u8]> },
    HardLink { target: Box<[u8]> },
    Device { block: bool, device: u64 },
    Fifo,
}

/// How entries are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    /// With `./` in front, and the root among them.
    Dotted,
    /// As paths below the root.
    Plain,
}

impl Tree {
    /// Everything below a directory, and the directory.
    pub(crate) fn of(directory: &Path, stop: &Stop) -> io::Result<Self> {
        let root = openat(
            CWD,
            directory,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut walk = Walk::new(root, Names::Dotted, stop);
        walk.add(b"")?;
        walk.descend(b"")?;
        Ok(walk.tree())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The size of the tar file.
    pub(crate) fn size(&self) -> u64 {
        self.size + END
    }

    pub(crate) fn write(&self, writer: &mut Writer, name: &str) -> io::Result<()> {
        writer.begin(name, 0o600, self.size())?;
        for entry in &self.entries {
            let names = self.names();
            writer.data(&entry.blocks(names)?)?;
            let Kind::File { size } = entry.kind else {
                continue;
            };
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOATIME;
            let opened = open(&self.root, &entry.path, flags).or_else(|error| match error {
                // Only its owner may read a file without a trace.
                Errno::PERM => open(&self.root, &entry.path, flags - OFlags::NOATIME),
                error => Err(error),
            });
            match opened {
                Ok(file) if is_file(&file)? => writer.contents(&File::from(file), size)?,
                // What was removed meanwhile, by somebody who shares the tree, has nothing in it.
                Ok(_) | Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => writer.zeros(size)?,
                Err(error) => return Err(error.into()),
            }
            writer.zeros(padding(size) as u64)?;
        }
        writer.zeros(END)?;
        writer.end(name)
    }

    fn names(&self) -> Names {
        match self.entries.first() {
            Some(entry) if entry.path.is_empty() => Names::Dotted,
            _ => Names::Plain,
        }
    }
}

impl Difference {
    /// What the upper layer names, as the container sees it at `root`: there the kernel has put together what layers
    /// only hint at. `left_out` are absolute paths, of which nothing is said.
    pub(crate) fn of(
        root: &Path,
        layers: &Layers,
        left_out: &[PathBuf],
        stop: &Stop,
    ) -> io::Result<Self> {
        let root = openat(
            CWD,
            root,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let upper = open_path(&layers.upper)?;
        let lower = (layers.lower.iter())
            .map(|path| open_path(path))
            .collect::<io::Result<Vec<_>>>()?;
        let mut walk = Walk::new(root, Names::Plain, stop);
        let mut compared = Compared {
            upper,
            lower,
            left_out,
            deleted: BTreeSet::new(),
        };
        compared.descend(&mut walk, b"")?;
        Ok(Self {
            tree: walk.tree(),
            deleted: compared.deleted.into_iter().collect(),
        })
    }
}

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
        .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
}

/// Opens what is there, and nothing else than that.
fn open(root: &OwnedFd, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path: &[u8] = if path.is_empty() { b"." } else { path };
    openat2(
        root,
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV,
    )
}

fn is_file(file: &OwnedFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(file)?.st_mode) == FileType::RegularFile)
}

/// The names in a directory, sorted, so that the same tree is always the same archive.
fn names_in(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<Vec<Vec<u8>>> {
    let directory = open(root, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut names = Vec::new();
    for entry in Dir::new(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    match path {
        [] => name.to_vec(),
        path => [path, b"/", name].concat(),
    }
}

/// Something that is no longer there, or is out of reach, is passed over.
fn passed_over(error: Errno) -> bool {
    matches!(
        error,
        Errno::NOENT | Errno::XDEV | Errno::NOTDIR | Errno::LOOP
    )
}

struct Walk<'a> {
    root: OwnedFd,
    names: Names,
    stop: &'a Stop,
    entries: Vec<Entry>,
    size: u64,
    /// The first name of each file that has several.
    linked: HashMap<(u64, u64), Box<[u8]>>,
}

impl<'a> Walk<'a> {
    fn new(root: OwnedFd, names: Names, stop: &'a Stop) -> Self {
        Self {
            root,
            names,
            stop,
            entries: Vec::new(),
            size: 0,
            linked: HashMap::new(),
        }
    }

    fn tree(self) -> Tree {
        Tree {
            root: self.root,
            entries: self.entries,
            size: self.size,
        }
    }

    /// Adds everything below a directory.
    fn descend(&mut self, path: &[u8]) -> io::Result<()> {
        let names = match names_in(&self.root, path) {
            Ok(names) => names,
            Err(error) if passed_over(error) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for name in names {
            let path = joined(path, &name);
            if self.add(&path)? == Some(FileType::Directory) {
                self.descend(&path)?;
            }
        }
        Ok(())
    }

    /// Adds one name. Returns what it is; nothing if it is not there, in another mount, or of no content.
    fn add(&mut self, path: &[u8]) -> io::Result<Option<FileType>> {
        self.stop.check()?;
        let file = match open(&self.root, path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(file) => file,
            Err(error) if passed_over(error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let stat = fstat(&file)?;
        let file_type = FileType::from_raw_mode(stat.st_mode);
        let kind = match file_type {
            FileType::Directory => Kind::Directory,
            FileType::RegularFile => Kind::File {
                size: u64::try_from(stat.st_size).unwrap_or(0),
            },
            FileType::Symlink => Kind::Symlink {
                target: readlinkat(&file, c"", Vec::new())?.to_bytes().into(),
            },
            FileType::CharacterDevice | FileType::BlockDevice => Kind::Device {
                block: file_type == FileType::BlockDevice,
                device: stat.st_rdev,
            },
            FileType::Fifo => Kind::Fifo,
            // A socket has no content, and is made again by whoever has it open.
            _ => return Ok(None),
        };
        let kind = match kind {
            Kind::File { .. } if stat.st_nlink > 1 => {
                let first = self.linked.entry((stat.st_dev, stat.st_ino));
                match first {
                    std::collections::hash_map::Entry::Occupied(first) => Kind::HardLink {
                        target: first.get().clone(),
                    },
                    std::collections::hash_map::Entry::Vacant(first) => {
                        first.insert(path.into());
                        kind
                    }
                }
            }
            kind => kind,
        };
        let entry = Entry {
            path: path.into(),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: u64::try_from(stat.st_mtime).unwrap_or(0),
            xattrs: match kind {
                Kind::HardLink { .. } => Vec::new(),
                _ => xattrs(&file)?,
            },
            kind,
        };
        self.size += entry.blocks(self.names)?.len() as u64;
        if let Kind::File { size } = entry.kind {
            self.size += size + padding(size) as u64;
        }
        self.entries.push(entry);
        Ok(Some(file_type))
    }
}

/// The extended attributes of a file that is open as a path only.
fn xattrs(file: &OwnedFd) -> io::Result<Vec<(String, Vec<u8>)>> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let mut names = vec![0; 1024];
    let names = loop {
        match rustix::fs::listxattr(&path, &mut names[..]) {
            Ok(len) => break &names[..len],
            Err(Errno::RANGE) => names.resize(names.len() * 2, 0),
            // There are none on this file system.
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
    };
    let mut found = Vec::new();
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        // What cannot be told in a tar file is of no program that is known.
        let Ok(name) = std::str::from_utf8(name) else {
            continue;
        };
        if OF_THIS_HOST.contains(&name) || name.contains('=') {
            continue;
        }
        let mut value = vec![0; 256];
        let len = loop {
            match rustix::fs::getxattr(&path, name, &mut value[..]) {
                Ok(len) => break len,
                Err(Errno::RANGE) => value.resize(value.len() * 4, 0),
                Err(error) => return Err(error.into()),
            }
        };
        value.truncate(len);
        found.push((format!("{XATTR}{name}"), value));
    }
    found.sort();
    Ok(found)
}

impl Entry {
    fn name(&self, names: Names) -> Vec<u8> {
        let mut name = match (names, &*self.path) {
            (_, []) => b".".to_vec(),
            (Names::Dotted, path) => [b"./", path].concat(),
            (Names::Plain, path) => path.to_vec(),
        };
        if matches!(self.kind, Kind::Directory) {
            name.push(b'/');
        }
        name
    }

    fn blocks(&self, names: Names) -> io::Result<Vec<u8>> {
        let mut header = Header::new_gnu();
        header.set_mode(self.mode);
        header.set_uid(self.uid.into());
        header.set_gid(self.gid.into());
        header.set_mtime(self.mtime);
        header.set_size(0);
        let mut target = None;
        let kind = match &self.kind {
            Kind::Directory => EntryType::Directory,
            Kind::File { size } => {
                header.set_size(*size);
                EntryType::Regular
            }
            Kind::Symlink { target: to } => {
                target = Some(to.to_vec());
                EntryType::Symlink
            }
            Kind::HardLink { target: to } => {
                target = Some(match names {
                    Names::Dotted => [b"./", &**to].concat(),
                    Names::Plain => to.to_vec(),
                });
                EntryType::Link
            }
            Kind::Device { block, device } => {
                header.set_device_major(rustix::fs::major(*device))?;
                header.set_device_minor(rustix::fs::minor(*device))?;
                match block {
                    true => EntryType::Block,
                    false => EntryType::Char,
                }
            }
            Kind::Fifo => EntryType::Fifo,
        };
        header.set_entry_type(kind);
        blocks(
            &mut header,
            &self.name(names),
            target.as_deref(),
            &self.xattrs,
        )
    }
}

/// The upper layer beside what is seen through it.
struct Compared<'a> {
    upper: OwnedFd,
    lower: Vec<OwnedFd>,
    left_out: &'a [PathBuf],
    deleted: BTreeSet<Vec<u8>>,
}

impl Compared<'_> {
    fn descend(&mut self, walk: &mut Walk<'_>, path: &[u8]) -> io::Result<()> {
        let names = names_in(&self.upper, path)?;
        for name in &names {
            let path = joined(path, name);
            let absolute = absolute(&path);
            if self
                .left_out
                .iter()
                .any(|left| left.as_os_str().as_bytes() == absolute)
            {
                continue;
            }
            // A whiteout, in whichever of its forms.
            if let Err(Errno::NOENT) = open(&walk.root, &path, OFlags::PATH | OFlags::NOFOLLOW) {
                self.deleted.insert(absolute);
                continue;
            }
            if walk.add(&path)? != Some(FileType::Directory) {
                continue;
            }
            let moved = self.is_moved(&path)?;
            match moved {
                // What is in it is elsewhere in the layers.
                true => walk.descend(&path)?,
                false => self.descend(walk, &path)?,
            }
            if moved || self.is_opaque(&path)? {
                self.hidden(walk, &path)?;
            }
        }
        Ok(())
    }

    /// Notes as deleted what the layers below have in a directory and the container does not see.
    fn hidden(&mut self, walk: &Walk<'_>, path: &[u8]) -> io::Result<()> {
        for name in self.below(path)? {
            let path = joined(path, &name);
            match open(
                &walk.root,
                &path,
                OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY,
            ) {
                Ok(_) => self.hidden(walk, &path)?,
                // Under an opaque directory as well, perhaps.
                Err(Errno::NOENT) => {
                    self.deleted.insert(absolute(&path));
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// The names that a directory has in the layers below, of which some may be hidden by others. Below it, what is
    /// not seen is gone with it.
    fn below(&self, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        for layer in &self.lower {
            match names_in(layer, path) {
                Ok(more) => names.extend(more),
                Err(error) if passed_over(error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    fn is_opaque(&self, path: &[u8]) -> io::Result<bool> {
        self.marked(path, "opaque", |value| value == b"y")
    }

    fn is_moved(&self, path: &[u8]) -> io::Result<bool> {
        self.marked(path, "redirect", |_| true)
    }

    /// Whether overlayfs has noted something of a directory, with privilege or without.
    fn marked(&self, path: &[u8], mark: &str, is: impl Fn(&[u8]) -> bool) -> io::Result<bool> {
        let directory = open(&self.upper, path, OFlags::PATH | OFlags::NOFOLLOW)?;
        let found = xattrs(&directory)?;
        Ok(["trusted", "user"].iter().any(|space| {
            let name = format!("{XATTR}{space}.overlay.{mark}");
            found
                .iter()
                .any(|(found, value)| *found == name && is(value))
        }))
    }
}

fn absolute(path: &[u8]) -> Vec<u8> {
    [b"/", path].concat()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::archive::{Archive, ArchiveError, Compress, MemberKind};

    /// The members of the tar file that a tree becomes.
    fn members(tree: &Tree) -> Vec<(String, MemberKind, Vec<u8>)> {
        let file = tempfile::tempfile().unwrap();
        let out = file.try_clone().unwrap();
        let mut writer = Writer::new(out, Compress::None, Stop::default()).unwrap();
        tree.write(&mut writer, "tree.tar").unwrap();
        writer.finish().unwrap();
        let mut inner = Vec::new();
        let read = Archive::from_file(file)
            .unwrap()
            .members::<ArchiveError>(|member| {
                if member.name() == "tree.tar" {
                    inner = member.content(1 << 30)?;
                }
                Ok(())
            });
        read.unwrap();
        let mut found = Vec::new();
        let inner = Archive::from_reader(io::Cursor::new(inner)).unwrap();
        let read = inner.members::<ArchiveError>(|member| {
            let content = member.content(1 << 30)?;
            found.push((member.name().to_owned(), member.kind().clone(), content));
            Ok(())
        });
        read.unwrap();
        found
    }

    #[test]
    fn a_tree_is_packed_without_following_its_links() {
        let directory = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let root = directory.path();
        let long = "x".repeat(200);
        fs::create_dir(root.join(&long)).unwrap();
        fs::write(root.join(&long).join("file"), "content").unwrap();
        symlink(outside.path(), root.join("out")).unwrap();
        fs::hard_link(root.join(&long).join("file"), root.join("other")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        let tree = Tree::of(root, &Stop::default()).unwrap();
        let found = members(&tree);
        let names: Vec<_> = found.iter().map(|(name, ..)| name.as_str()).collect();
        let file = format!("{long}/file");
        assert_eq!(names, ["other", "out", &long, &file].map(|name| name));
        let target = outside.path().display().to_string();
        assert_eq!(found[1].1, MemberKind::Symlink { target });
        let target = "./other".to_owned();
        assert_eq!(found[3].1, MemberKind::HardLink { target });
        assert_eq!(found[0].2, b"content");
    }

    #[test]
    fn what_shrinks_meanwhile_is_filled_up() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "content").unwrap();
        fs::write(directory.path().join("gone"), "gone").unwrap();
        let tree = Tree::of(directory.path(), &Stop::default()).unwrap();
        fs::write(&path, "co").unwrap();
        fs::remove_file(directory.path().join("gone")).unwrap();
        let found = members(&tree);
        assert_eq!(found[0].2, b"co\0\0\0\0\0");
        assert_eq!(found[1].2, b"\0\0\0\0");
    }
}
