//! Where a checkpoint is: an archive, layers of an OCI image, or a directory. What describes it is kept in memory; pages
//! are read where they are, when somebody asks.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::archive::{Archive, Compression, MemberKind};
use crate::image::kinds::{MAX_IMAGE, first};
use crate::image::{open_file, proto};

use super::InspectError;
use super::layout::Layout;

/// The largest JSON document that is kept.
const MAX_DOCUMENT: u64 = 16 << 20;
/// The most that is kept altogether.
const MAX_KEPT: u64 = 512 << 20;
/// Files of a directory that are looked at.
const MAX_FILES: usize = 1 << 20;
/// Directories that are followed from parent to parent.
const MAX_PARENTS: usize = 64;
/// What tells an image by its magic numbers, with the size of its first entry.
const HEAD: usize = 12;
const CHUNK: usize = 256 << 10;

/// The form in which a checkpoint is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "form")]
#[non_exhaustive]
pub enum Form {
    /// One file, as Podman, CRI-O and containerd export it.
    Archive {
        /// What it is compressed with.
        compression: Compression,
    },
    /// A directory with the content of an archive.
    Unpacked,
    /// A directory of images as CRIU writes it.
    Images,
    /// A directory of the OCI image layout.
    OciLayout,
}

/// A file of a checkpoint.
pub(super) struct Stored {
    pub(super) size: u64,
    pub(super) what: What,
    /// Its first bytes.
    pub(super) head: Vec<u8>,
    /// All of it, if it was to be kept.
    pub(super) content: Option<Vec<u8>>,
    /// Its SHA-256, if that was asked for.
    pub(super) digest: Option<[u8; 32]>,
    place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    File,
    Directory,
    Link(String),
    Other,
}

#[derive(Clone, Copy)]
enum Place {
    /// In the file of this number, from this offset on.
    At(usize, u64),
    /// Somewhere in the stream of this number.
    In(usize),
    /// In the directory of this number, under the last part of its name.
    Below(usize),
}

/// What is to be read beyond the names.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wanted {
    /// All images that describe something, not only those of the summary.
    pub(super) images: bool,
    /// Arguments and environment, from the memory.
    pub(super) arguments: bool,
    /// The checksums of all files.
    pub(super) digests: bool,
    /// Images whose data is between the entries too, to check their frames.
    pub(super) data: bool,
}

impl Wanted {
    /// The most that is kept of the file of this name, none if it is not kept.
    fn keeps(self, name: &str) -> Option<u64> {
        let base = name.rsplit('/').next().unwrap_or(name);
        let image = Some(MAX_IMAGE as u64);
        match base {
            "config.dump" | "spec.dump" | "network.status" | "status.dump" | "status"
            | "bind.mounts" | "descriptors.json" | "deleted.files" | MANIFEST => Some(MAX_DOCUMENT),
            "inventory.img" | "pstree.img" | "stats-dump" | "stats-restore" => image,
            _ if !self.images || !base.ends_with(".img") => None,
            "sk-queues.img" | "pipes-data.img" | "fifo-data.img" => image.filter(|_| self.data),
            _ if base.starts_with("tcp-stream-") => image.filter(|_| self.data),
            _ if is_bulk(base) => None,
            _ => image,
        }
    }
}

/// The member that has the checksums of the others in the archives that criuctl makes.
pub(super) const MANIFEST: &str = "criuctl.manifest.json";

/// Whether the image is data rather than a description.
fn is_bulk(base: &str) -> bool {
    const BULK: [&str; 12] = [
        "pages-",
        "ghost-file-",
        "tmpfs-",
        "ifaddr-",
        "route",
        "rule-",
        "iptables-",
        "ip6tables-",
        "nftables-",
        "netns-ct-",
        "netns-exp-",
        "ipcns-shm-",
    ];
    BULK.iter().any(|prefix| base.starts_with(prefix)) || base.ends_with(".tar.gz.img")
}

/// A checkpoint with what describes it in memory.
pub(super) struct Store {
    pub(super) form: Form,
    pub(super) files: BTreeMap<String, Stored>,
    /// The prefixes of the directories of images, the newest first and each before its parent.
    pub(super) levels: Vec<String>,
    /// A parent that is named and not there.
    pub(super) lost_parent: Option<String>,
    /// What an OCI image says of itself.
    pub(super) annotations: BTreeMap<String, String>,
    /// What was read of pages while their stream went by.
    captured: HashMap<(String, u64), Vec<u8>>,
    /// Whose pages a file has: which pagemap names it.
    pub(super) pages_of: HashMap<String, String>,
    parts: Vec<File>,
    directories: Vec<OwnedFd>,
    kept: u64,
}

impl Store {
    pub(super) fn open(path: &Path, wanted: Wanted) -> Result<Self, InspectError> {
        let metadata = std::fs::metadata(path).map_err(|source| InspectError::Open {
            path: path.to_owned(),
            source,
        })?;
        let mut store = Self {
            form: Form::Images,
            files: BTreeMap::new(),
            levels: Vec::new(),
            lost_parent: None,
            annotations: BTreeMap::new(),
            captured: HashMap::new(),
            pages_of: HashMap::new(),
            parts: Vec::new(),
            directories: Vec::new(),
            kept: 0,
        };
        if metadata.is_dir() {
            store.open_directory(path, wanted)?;
        } else {
            let archive = Archive::open(path)?;
            store.form = Form::Archive {
                compression: archive.compression(),
            };
            let file =
                File::open(path).map_err(|error| InspectError::read("the archive", error))?;
            store.parts.push(file);
            store.read_archive(archive, 0, wanted)?;
            store.find_levels();
        }
        if !store.files.keys().any(|name| is_of_a_checkpoint(name)) {
            return Err(InspectError::NoCheckpoint {
                path: path.to_owned(),
                reason: "no checkpoint: neither config.dump nor images of CRIU are there"
                    .to_owned(),
            });
        }
        Ok(store)
    }

    fn open_directory(&mut self, path: &Path, wanted: Wanted) -> Result<(), InspectError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty());
        let directory = directory.map_err(|error| InspectError::Open {
            path: path.to_owned(),
            source: error.into(),
        })?;
        if let Some(layout) = Layout::read(path, directory.as_fd())? {
            self.form = Form::OciLayout;
            self.annotations = layout.annotations;
            for (number, blob) in layout.layers.into_iter().enumerate() {
                let again = blob
                    .try_clone()
                    .map_err(|error| InspectError::read("a layer", error))?;
                self.parts.push(again);
                self.read_archive(Archive::from_file(blob)?, number, wanted)?;
            }
            self.find_levels();
            return Ok(());
        }
        self.read_directory(directory, "", wanted)?;
        let unpacked = self.files.contains_key("config.dump");
        if unpacked {
            self.form = Form::Unpacked;
        }
        for below in ["checkpoint", "pre-checkpoint"] {
            if !unpacked
                || !matches!(self.files.get(below), Some(file) if file.what == What::Directory)
            {
                continue;
            }
            let flags = flags | OFlags::NOFOLLOW;
            let directory = rustix::fs::openat(&self.directories[0], below, flags, Mode::empty());
            let directory = directory.map_err(|error| InspectError::read(below, error.into()))?;
            self.read_directory(directory, &format!("{below}/"), wanted)?;
        }
        self.find_levels();
        self.follow_parents(wanted)
    }

    /// Images of a directory may have their parents in others.
    fn follow_parents(&mut self, wanted: Wanted) -> Result<(), InspectError> {
        let mut seen = Vec::new();
        while let Some(link) = self.lost_parent.take() {
            let prefix = self.levels.last().cloned().unwrap_or_default();
            let number = self.files.values().find_map(|file| match file.place {
                Place::Below(number) if self.has(&prefix, file) => Some(number),
                _ => None,
            });
            let Some(child) = number.and_then(|number| self.directories.get(number)) else {
                self.lost_parent = Some(link);
                return Ok(());
            };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let Ok(parent) = rustix::fs::openat(child, "parent", flags, Mode::empty()) else {
                self.lost_parent = Some(link);
                return Ok(());
            };
            let identity = rustix::fs::fstat(&parent).map(|stat| (stat.st_dev, stat.st_ino));
            let identity = identity.map_err(|error| InspectError::read("parent", error.into()))?;
            if seen.contains(&identity) || seen.len() >= MAX_PARENTS {
                return Err(InspectError::read(
                    "parent",
                    io::Error::other("the parents go round in a circle"),
                ));
            }
            seen.push(identity);
            let prefix = format!("{prefix}parent/");
            self.read_directory(parent, &prefix, wanted)?;
            self.lost_parent = self.link(&format!("{prefix}parent"));
            self.levels.push(prefix);
        }
        Ok(())
    }

    fn has(&self, prefix: &str, file: &Stored) -> bool {
        let named = |name: &str| {
            self.files
                .get(name)
                .is_some_and(|other| std::ptr::eq(other, file))
        };
        named(&format!("{prefix}parent"))
    }

    fn link(&self, name: &str) -> Option<String> {
        match &self.files.get(name)?.what {
            What::Link(target) => Some(target.clone()),
            _ => None,
        }
    }

    /// Finds where the images are, and their parents if those are in the same archive.
    fn find_levels(&mut self) {
        let first = ["checkpoint/", "", "pre-checkpoint/"]
            .into_iter()
            .find(|prefix| {
                ["inventory.img", "pstree.img"]
                    .iter()
                    .any(|name| self.files.contains_key(&format!("{prefix}{name}")))
            });
        let Some(first) = first else { return };
        let mut prefix = first.to_owned();
        loop {
            self.levels.push(prefix.clone());
            let Some(target) = self.link(&format!("{prefix}parent")) else {
                return;
            };
            let parent = beside(&prefix, &target);
            match parent {
                Some(parent)
                    if self.levels.len() < MAX_PARENTS
                        && !self.levels.contains(&parent)
                        && self
                            .files
                            .keys()
                            .any(|name| !parent.is_empty() && name.starts_with(&parent)) =>
                {
                    prefix = parent;
                }
                _ => {
                    self.lost_parent = Some(target);
                    return;
                }
            }
        }
    }

    fn read_archive(
        &mut self,
        archive: Archive,
        part: usize,
        wanted: Wanted,
    ) -> Result<(), InspectError> {
        archive.members(|member| {
            let name = member.name().to_owned();
            let what = match member.kind() {
                MemberKind::File => What::File,
                MemberKind::Directory => What::Directory,
                MemberKind::Symlink { target } => What::Link(target.clone()),
                _ => What::Other,
            };
            let (size, place) = (
                member.size(),
                match member.offset() {
                    Some(offset) => Place::At(part, offset),
                    None => Place::In(part),
                },
            );
            let mut file = Stored {
                size,
                what,
                head: Vec::new(),
                content: None,
                digest: None,
                place,
            };
            if file.what == What::File {
                if let Some(most) = wanted.keeps(&name) {
                    self.keep(size)?;
                    let content = member.content(most)?;
                    file.head = content[..content.len().min(HEAD)].to_vec();
                    file.digest = wanted.digests.then(|| Sha256::digest(&content).into());
                    file.content = Some(content);
                } else if wanted.digests {
                    let (head, digest) =
                        digest(member).map_err(|error| InspectError::read(&name, error))?;
                    (file.head, file.digest) = (head, Some(digest));
                } else if wanted.arguments
                    && matches!(place, Place::In(_))
                    && name.contains("pages-")
                {
                    // It goes by only once, and what says which pages are wanted has mostly gone by before.
                    let ranges = super::memory::argument_ranges(self, &name);
                    let read = pieces(member, &ranges, &mut |offset, piece| {
                        let captured = self
                            .captured
                            .entry((name.clone(), start_of(&ranges, offset)))
                            .or_default();
                        captured.extend_from_slice(piece);
                    });
                    read.map_err(|error| InspectError::read(&name, error))?;
                }
            }
            self.insert(name, file);
            Ok(())
        })
    }

    fn insert(&mut self, name: String, file: Stored) {
        let (prefix, base) = split(&name);
        if let (true, Some(content)) = (base.starts_with("pagemap-"), &file.content)
            && let Ok(head) = first::<proto::PagemapHead>(base, content)
        {
            let pages = format!("{prefix}pages-{}.img", head.pages_id);
            self.pages_of.insert(pages, name.clone());
        }
        self.files.insert(name, file);
    }

    fn keep(&mut self, size: u64) -> Result<(), InspectError> {
        self.kept = self.kept.saturating_add(size);
        match self.kept > MAX_KEPT {
            true => Err(InspectError::TooLarge { limit: MAX_KEPT }),
            false => Ok(()),
        }
    }

    fn read_directory(
        &mut self,
        directory: OwnedFd,
        prefix: &str,
        wanted: Wanted,
    ) -> Result<(), InspectError> {
        let failed = |error: rustix::io::Errno| InspectError::read(prefix, error.into());
        let number = self.directories.len();
        let entries = rustix::fs::Dir::read_from(&directory).map_err(failed)?;
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let Ok(base) = entry.file_name().to_str() else {
                continue;
            };
            if matches!(base, "." | "..") {
                continue;
            }
            if self.files.len() >= MAX_FILES {
                return Err(InspectError::read(
                    prefix,
                    io::Error::other("too many files"),
                ));
            }
            let name = format!("{prefix}{base}");
            let stat =
                rustix::fs::statat(&directory, base, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            let what = match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => What::File,
                FileType::Directory => What::Directory,
                FileType::Symlink => {
                    let target =
                        rustix::fs::readlinkat(&directory, base, Vec::new()).map_err(failed)?;
                    What::Link(target.to_string_lossy().into_owned())
                }
                _ => What::Other,
            };
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            let mut file = Stored {
                size,
                what,
                head: Vec::new(),
                content: None,
                digest: None,
                place: Place::Below(number),
            };
            if file.what == What::File {
                let most = wanted.keeps(&name);
                if most.is_some() || wanted.digests {
                    let (opened, size) = open_file(directory.as_fd(), base)?;
                    file.size = size;
                    match most {
                        Some(most) => {
                            self.keep(size)?;
                            file.content = Some(whole(opened, base, size, most)?);
                            let content = file.content.as_deref().unwrap_or_default();
                            file.head = content[..content.len().min(HEAD)].to_vec();
                        }
                        None => {
                            let mut opened = opened.take(HEAD as u64);
                            opened
                                .read_to_end(&mut file.head)
                                .map_err(|error| InspectError::read(&name, error))?;
                        }
                    }
                }
            }
            self.insert(name, file);
        }
        self.directories.push(directory);
        Ok(())
    }

    /// The content of a file that was kept.
    pub(super) fn content(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name)?.content.as_deref()
    }

    /// Passes pieces of files on to `sink`, each with the name of its file and its offset there: file by file, and in the order of the ranges,
    /// which must be ordered and apart. A piece is a part of one range. Ends early when `sink` says so.
    pub(super) fn ranges(
        &self,
        wanted: &BTreeMap<String, Vec<(u64, u64)>>,
        sink: &mut dyn FnMut(&str, u64, &[u8]),
    ) -> Result<(), InspectError> {
        let mut streams: BTreeMap<usize, BTreeMap<&str, Ranges<'_>>> = BTreeMap::new();
        // A file that is broken keeps nobody from the others.
        let mut broken = None;
        for (name, ranges) in wanted {
            let Some(file) = self.files.get(name) else {
                continue;
            };
            let read = match file.place {
                Place::At(part, start) => {
                    let file = &self.parts[part];
                    let mut read = |offset: u64, buffer: &mut [u8]| {
                        file.read_exact_at(buffer, start.saturating_add(offset))
                    };
                    at(ranges, &mut read, &mut |offset, piece| {
                        sink(name, offset, piece)
                    })
                }
                Place::Below(number) => {
                    let base = split(name).1;
                    open_file(self.directories[number].as_fd(), base)
                        .map_err(io::Error::other)
                        .and_then(|(file, _)| {
                            let mut read =
                                |offset: u64, buffer: &mut [u8]| file.read_exact_at(buffer, offset);
                            at(ranges, &mut read, &mut |offset, piece| {
                                sink(name, offset, piece)
                            })
                        })
                }
                Place::In(part) => {
                    let captured = ranges.iter().all(|&(start, len)| {
                        let captured = self.captured.get(&(name.clone(), start));
                        captured.is_some_and(|bytes| bytes.len() as u64 == len)
                    });
                    if captured {
                        for &(start, _) in ranges {
                            sink(name, start, &self.captured[&(name.clone(), start)]);
                        }
                    } else {
                        streams.entry(part).or_default().insert(name, ranges);
                    }
                    Ok(())
                }
            };
            if let Err(error) = read {
                broken.get_or_insert(InspectError::read(name, error));
            }
        }
        for (part, mut wanted) in streams {
            let file = self.parts[part]
                .try_clone()
                .map_err(|error| InspectError::read("the archive", error))?;
            let archive = Archive::from_file(file)?;
            let outcome = archive.members(|member| {
                let name = member.name().to_owned();
                if let Some(ranges) = wanted.remove(name.as_str()) {
                    pieces(member, ranges, &mut |offset, piece| {
                        sink(&name, offset, piece)
                    })
                    .map_err(|error| Stopped::Failed(InspectError::read(&name, error)))?;
                }
                // The rest need not be decompressed.
                match wanted.is_empty() {
                    true => Err(Stopped::Done),
                    false => Ok(()),
                }
            });
            match outcome {
                Ok(()) | Err(Stopped::Done) => {}
                Err(Stopped::Failed(error)) => return Err(error),
            }
        }
        broken.map_or(Ok(()), Err)
    }
}

/// Parts of a file: offset and length.
type Ranges<'a> = &'a [(u64, u64)];

enum Stopped {
    Done,
    Failed(InspectError),
}

impl From<crate::archive::ArchiveError> for Stopped {
    fn from(error: crate::archive::ArchiveError) -> Self {
        Self::Failed(error.into())
    }
}

/// Whether a file of this name says that there is a checkpoint.
fn is_of_a_checkpoint(name: &str) -> bool {
    let base = name.rsplit('/').next().unwrap_or(name);
    name == "config.dump"
        || matches!(base, "inventory.img" | "pstree.img")
        || (base.starts_with("core-") && base.ends_with(".img"))
}

/// A name as directory, with its slash, and the rest.
pub(super) fn split(name: &str) -> (&str, &str) {
    name.split_at(name.rfind('/').map_or(0, |slash| slash + 1))
}

/// Where a relative link leads that is in the directory `prefix`. None if it leads out.
fn beside(prefix: &str, target: &str) -> Option<String> {
    if target.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = prefix.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    let mut joined = parts.join("/");
    if !joined.is_empty() {
        joined.push('/');
    }
    Some(joined)
}

fn whole(file: File, name: &str, size: u64, most: u64) -> Result<Vec<u8>, InspectError> {
    if size > most {
        return Err(InspectError::read(
            name,
            io::Error::other(format!("{size} bytes, but at most {most} are read")),
        ));
    }
    let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    // It may grow meanwhile.
    file.take(most)
        .read_to_end(&mut content)
        .map_err(|error| InspectError::read(name, error))?;
    Ok(content)
}

/// The beginning and the checksum of what a reader has.
fn digest(reader: &mut impl Read) -> io::Result<(Vec<u8>, [u8; 32])> {
    let mut hasher = Sha256::new();
    let mut head = Vec::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok((head, hasher.finalize().into())),
            read => {
                if head.len() < HEAD {
                    head.extend_from_slice(&buffer[..read.min(HEAD - head.len())]);
                }
                hasher.update(&buffer[..read]);
            }
        }
    }
}

fn start_of(ranges: &[(u64, u64)], offset: u64) -> u64 {
    let before = ranges.partition_point(|&(start, _)| start <= offset);
    ranges
        .get(before.saturating_sub(1))
        .map_or(offset, |&(start, _)| start)
}

/// Reads ranges where one can read anywhere.
fn at(
    ranges: &[(u64, u64)],
    read: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
    sink: &mut dyn FnMut(u64, &[u8]),
) -> io::Result<()> {
    let mut buffer = Vec::new();
    for &(start, len) in ranges {
        let mut done = 0;
        while done < len {
            let piece = usize::try_from(len - done).unwrap_or(CHUNK).min(CHUNK);
            buffer.resize(piece, 0);
            read(start + done, &mut buffer)?;
            sink(start + done, &buffer);
            done += piece as u64;
        }
    }
    Ok(())
}

/// Reads ranges of what goes by.
fn pieces(
    reader: &mut impl Read,
    ranges: &[(u64, u64)],
    sink: &mut dyn FnMut(u64, &[u8]),
) -> io::Result<()> {
    let mut position = 0;
    let mut buffer = Vec::new();
    for &(start, len) in ranges {
        let gap = start.saturating_sub(position);
        if io::copy(&mut reader.take(gap), &mut io::sink())? < gap {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < len {
            let piece = usize::try_from(len - done).unwrap_or(CHUNK).min(CHUNK);
            buffer.resize(piece, 0);
            reader.read_exact(&mut buffer)?;
            sink(start + done, &buffer);
            done += piece as u64;
        }
        position = start + len;
    }
    Ok(())
}
