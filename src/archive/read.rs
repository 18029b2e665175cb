//! Reading: from a file or a pipe to checked members.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;

use serde::Serialize;

use super::ArchiveError;
use super::member::{Member, MemberKind};

/// What the archive as a whole is compressed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Compression {
    /// A plain tar file.
    None,
    /// gzip, as `podman container checkpoint --compress gzip` and OCI layers have it.
    Gzip,
    /// Zstandard, Podman's default.
    Zstd,
    /// bzip2, which Podman's import takes as well.
    Bzip2,
    /// xz, which Podman's import takes as well.
    Xz,
}

impl Compression {
    /// The compression whose magic number the bytes begin with. Six bytes are enough; of anything else
    /// it is said that it is not compressed.
    pub fn of(beginning: &[u8]) -> Self {
        let magics: [(&[u8], Self); 4] = [
            (&[0x1f, 0x8b, 0x08], Self::Gzip),
            (&[0x28, 0xb5, 0x2f, 0xfd], Self::Zstd),
            (b"BZh", Self::Bzip2),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Self::Xz),
        ];
        let found = magics
            .iter()
            .find(|(magic, _)| beginning.starts_with(magic));
        found.map_or(Self::None, |&(_, compression)| compression)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
        })
    }
}

/// How much is read of an archive that may be hostile.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Limits {
    /// The number of members.
    pub members: u64,
    /// The bytes of all names together, which are kept to find members that are there twice.
    pub names: u64,
    /// The bytes of all members together, decompressed, holes of sparse members included.
    pub content: u64,
}

impl Default for Limits {
    /// A million members with 128 MiB of names and 16 TiB of content.
    fn default() -> Self {
        Self {
            members: 1 << 20,
            names: 128 << 20,
            content: 16 << 40,
        }
    }
}

/// The bytes of headers that may belong to one member: long names, extended attributes, maps of holes.
const MAX_HEADERS: u64 = 1 << 20;
/// The memory that a decompressor may take for its dictionary, in KiB. What zstd takes at most by itself.
const MAX_DICTIONARY: u32 = 128 << 10;

/// An archive that is read once, from its beginning to its end.
///
/// Memory stays bounded whatever the archive holds; what it holds is the caller's to keep or to pass by. Members of
/// a plain tar file that the caller does not read are not read at all.
pub struct Archive {
    input: Input,
    compression: Compression,
    limits: Limits,
}

impl fmt::Debug for Archive {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = formatter.debug_struct("Archive");
        debug.field("compression", &self.compression);
        debug.finish_non_exhaustive()
    }
}

enum Input {
    /// A plain tar file, in which one can go on without reading.
    Seekable {
        file: BufReader<File>,
        len: u64,
    },
    Stream(Box<dyn Read>),
}

impl Archive {
    /// Opens a file. A symbolic link is followed, a FIFO, a device or a directory refused.
    ///
    /// # Errors
    ///
    /// [`ArchiveError::Open`], [`ArchiveError::NotRegular`], or [`ArchiveError::Read`].
    pub fn open(path: &Path) -> Result<Self, ArchiveError> {
        // Opening a FIFO would block.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path);
        let file = file.map_err(|source| ArchiveError::Open {
            path: path.to_owned(),
            source,
        })?;
        if !file.metadata().map_err(ArchiveError::Read)?.is_file() {
            return Err(ArchiveError::NotRegular {
                path: path.to_owned(),
            });
        }
        Self::from_file(file)
    }

    /// Reads a regular file, from its beginning wherever its offset is.
    ///
    /// # Errors
    ///
    /// [`ArchiveError::Read`].
    pub fn from_file(mut file: File) -> Result<Self, ArchiveError> {
        let mut beginning = [0; 6];
        let mut there = 0;
        while there < beginning.len() {
            match file.read_at(&mut beginning[there..], there as u64) {
                Ok(0) => break,
                Ok(more) => there += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ArchiveError::Read(error)),
            }
        }
        file.rewind().map_err(ArchiveError::Read)?;
        let compression = Compression::of(&beginning[..there]);
        let input = match compression {
            Compression::None => Input::Seekable {
                len: file.metadata().map_err(ArchiveError::Read)?.len(),
                file: BufReader::with_capacity(16 << 10, file),
            },
            _ => Input::Stream(decompress(compression, file).map_err(ArchiveError::Read)?),
        };
        Ok(Self {
            input,
            compression,
            limits: Limits::default(),
        })
    }

    /// Reads a pipe, or anything else that cannot be read twice.
    ///
    /// # Errors
    ///
    /// [`ArchiveError::Read`].
    pub fn from_reader(mut reader: impl Read + 'static) -> Result<Self, ArchiveError> {
        let mut beginning = Vec::new();
        let mut first = (&mut reader).take(6);
        first
            .read_to_end(&mut beginning)
            .map_err(ArchiveError::Read)?;
        let compression = Compression::of(&beginning);
        let reader = io::Cursor::new(beginning).chain(reader);
        Ok(Self {
            input: Input::Stream(decompress(compression, reader).map_err(ArchiveError::Read)?),
            compression,
            limits: Limits::default(),
        })
    }

    /// Reads no more than this.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// What it is compressed with.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Shows every member to `visit`, in the order of the archive, which may be any. What `visit` leaves of a
    /// member is passed over.
    ///
    /// Names have no `./` in front and no `/` at the end. A member called `.` is passed over.
    ///
    /// # Errors
    ///
    /// What `visit` returns, and [`ArchiveError`] as soon as the archive is seen to be none, is cut short, has a member with a
    /// name that is absolute or has `..` in it, two members of one name (a directory may be there again), or more than the
    /// [`Limits`] allow. What is after the end of the tar archive is not looked at.
    pub fn members<E: From<ArchiveError>>(
        self,
        mut visit: impl FnMut(&mut Member<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let allowed = Rc::new(Cell::new(MAX_HEADERS));
        let seekable = matches!(self.input, Input::Seekable { .. });
        let ended = Rc::new(Cell::new(false));
        let mut archive = tar::Archive::new(Guarded {
            input: self.input,
            allowed: Rc::clone(&allowed),
            ended: Rc::clone(&ended),
        });
        let entries = match seekable {
            true => archive.entries_with_seek(),
            false => archive.entries(),
        };
        let mut entries = entries.map_err(ArchiveError::Read)?;
        let mut names = Names::new(self.limits, Rc::clone(&ended));
        let mut left = self.limits.content;
        loop {
            allowed.set(MAX_HEADERS);
            let Some(entry) = entries.next() else {
                // An archive ends with a block of zeros. Without it, whatever followed is missing.
                return match ended.get() {
                    true => Err(names.truncated().into()),
                    false => Ok(()),
                };
            };
            let entry = entry.map_err(|error| names.broken(error))?;
            allowed.set(u64::MAX);
            let Some(mut member) = names.member(entry, seekable)? else {
                continue;
            };
            if member.size > left {
                return Err(limit("bytes in all members together", self.limits.content).into());
            }
            left -= member.size;
            visit(&mut member)?;
            member.pass_over(seekable)?;
        }
    }
}

/// What the reader gives out for one kind of input.
fn decompress(compression: Compression, reader: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let reader = BufReader::with_capacity(128 << 10, reader);
    let reader: Box<dyn Read> = match compression {
        Compression::None => return Ok(Box::new(reader)),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(reader)?),
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(reader)),
        Compression::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(
            reader,
            true,
            MAX_DICTIONARY,
        )),
    };
    // Headers are read 512 bytes at a time.
    Ok(Box::new(BufReader::with_capacity(128 << 10, reader)))
}

pub(super) fn limit(what: &str, limit: u64) -> ArchiveError {
    ArchiveError::Limit {
        what: what.to_owned(),
        limit,
    }
}

/// The input as the tar reader sees it: it gets no more than it is allowed, since it keeps long names and maps of holes in
/// memory whole, and cannot pass the end of a file without being told.
pub(super) struct Guarded {
    input: Input,
    allowed: Rc<Cell<u64>>,
    /// Whether more was asked for than there is.
    ended: Rc<Cell<bool>>,
}

impl Read for Guarded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let allowed = self.allowed.get();
        if allowed == 0 && !buffer.is_empty() {
            return Err(io::Error::other(TooManyHeaders));
        }
        let len = usize::try_from(allowed).unwrap_or(usize::MAX);
        let len = len.min(buffer.len());
        let read = match &mut self.input {
            Input::Seekable { file, .. } => file.read(&mut buffer[..len])?,
            Input::Stream(reader) => reader.read(&mut buffer[..len])?,
        };
        if read == 0 && !buffer.is_empty() {
            self.ended.set(true);
        }
        if allowed != u64::MAX {
            self.allowed.set(allowed - read as u64);
        }
        Ok(read)
    }
}

impl Seek for Guarded {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        let (Input::Seekable { file, len }, SeekFrom::Current(ahead)) = (&mut self.input, position)
        else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        // What is buffered is kept, unlike with seek().
        file.seek_relative(ahead)?;
        let position = file.stream_position()?;
        match position > *len {
            true => Err(io::ErrorKind::UnexpectedEof.into()),
            false => Ok(position),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("more than {MAX_HEADERS} bytes of headers for one member")]
struct TooManyHeaders;

/// The names that there were.
struct Names {
    limits: Limits,
    ended: Rc<Cell<bool>>,
    seen: HashMap<String, bool>,
    bytes: u64,
    last: Option<String>,
}

impl Names {
    fn new(limits: Limits, ended: Rc<Cell<bool>>) -> Self {
        Self {
            limits,
            ended,
            seen: HashMap::new(),
            bytes: 0,
            last: None,
        }
    }

    fn truncated(&self) -> ArchiveError {
        ArchiveError::Truncated {
            after: self.last.clone(),
        }
    }

    fn broken(&self, source: io::Error) -> ArchiveError {
        let inner = source.get_ref();
        if inner.is_some_and(|inner| inner.is::<TooManyHeaders>()) {
            return limit("bytes of headers for one member", MAX_HEADERS);
        }
        // The tar reader has several ways to say that more was expected.
        if self.ended.get() || source.kind() == io::ErrorKind::UnexpectedEof {
            return self.truncated();
        }
        ArchiveError::Malformed {
            after: self.last.clone(),
            source,
        }
    }

    /// The checked member; none if it is the archive's own root.
    fn member<'a>(
        &mut self,
        mut entry: tar::Entry<'a, Guarded>,
        seekable: bool,
    ) -> Result<Option<Member<'a>>, ArchiveError> {
        let name = checked(&entry.path_bytes())?;
        let kind = self.kind(&mut entry, &name)?;
        let sparse = entry.header().entry_type().is_gnu_sparse();
        let size = match kind {
            MemberKind::File => entry.size(),
            _ => 0,
        };
        if name.is_empty() {
            return match kind {
                MemberKind::Directory => Ok(None),
                _ => Err(refused(&entry.path_bytes(), "it names no file")),
            };
        }
        let directory = kind == MemberKind::Directory;
        self.bytes += name.len() as u64;
        if self.bytes > self.limits.names {
            return Err(limit("bytes of names", self.limits.names));
        }
        let before = self.seen.insert(name.clone(), directory);
        if before.is_some_and(|was_directory| !(was_directory && directory)) {
            return Err(ArchiveError::Twice { name });
        }
        if self.seen.len() as u64 > self.limits.members {
            return Err(limit("members", self.limits.members));
        }
        self.last = Some(name.clone());
        let mode = entry.header().mode().map_err(|error| self.broken(error))? & 0o7777;
        Ok(Some(Member {
            name,
            kind,
            size,
            mode,
            offset: (seekable && !sparse).then(|| entry.raw_file_position()),
            left: size,
            entry,
        }))
    }

    fn kind(
        &self,
        entry: &mut tar::Entry<'_, Guarded>,
        name: &str,
    ) -> Result<MemberKind, ArchiveError> {
        use tar::EntryType;

        // Only one of the two ways to store holes is known here; the other looks like a regular file.
        if let Some(extensions) = entry.pax_extensions().map_err(|error| self.broken(error))? {
            for extension in extensions {
                let extension = extension.map_err(|error| self.broken(error))?;
                if extension.key_bytes().starts_with(b"GNU.sparse.") {
                    return Err(refused(
                        name.as_bytes(),
                        "it is stored as a sparse file of the POSIX kind",
                    ));
                }
            }
        }
        let target = |entry: &tar::Entry<'_, Guarded>| {
            let target = entry.link_name_bytes().unwrap_or_default();
            String::from_utf8_lossy(&target).into_owned()
        };
        Ok(match entry.header().entry_type() {
            EntryType::Directory => MemberKind::Directory,
            EntryType::Symlink => MemberKind::Symlink {
                target: target(entry),
            },
            EntryType::Link => MemberKind::HardLink {
                target: target(entry),
            },
            EntryType::Char | EntryType::Block | EntryType::Fifo => MemberKind::Special,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => MemberKind::File,
            _ => return Err(refused(name.as_bytes(), "it is of an unknown type")),
        })
    }
}

/// The name without what may be added to any, empty for the archive's own root.
fn checked(bytes: &[u8]) -> Result<String, ArchiveError> {
    let refused = |reason| Err(refused(bytes, reason));
    let Ok(name) = std::str::from_utf8(bytes) else {
        return refused("it is not UTF-8");
    };
    if name.contains('\0') {
        return refused("it has a NUL byte in it");
    }
    if name.starts_with('/') {
        return refused("it is absolute");
    }
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => return refused("it leads upwards"),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

fn refused(name: &[u8], reason: &'static str) -> ArchiveError {
    ArchiveError::Name {
        name: String::from_utf8_lossy(name).into_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests;
