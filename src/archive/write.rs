//! Writing: members in the order they come, compressed on the way, with a list of checksums at the end.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{SeekFrom, seek};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// The list of checksums, which is the last member.
pub const MANIFEST: &str = "criuctl.manifest.json";

/// The level of zstd where none is asked for: Podman's archives are hardly smaller, and take several times as long.
const ZSTD_LEVEL: i32 = 1;
/// How much is read at a time.
const PIECE: usize = 256 << 10;
/// What is compressed as one piece by a thread of zstd's, so that memory stays bounded at every level.
const JOB: u32 = 2 << 20;
/// Tar's unit.
const BLOCK: u64 = 512;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// How an archive is compressed that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compress {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// Zstandard, on as many threads as there are processors.
    Zstd {
        /// From 1, the fastest, to 19; negative ones are faster still.
        level: i32,
    },
}

impl Default for Compress {
    fn default() -> Self {
        Self::Zstd { level: ZSTD_LEVEL }
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Written {
    /// Bytes of the archive.
    pub archive_bytes: u64,
    /// Bytes of all members, before compression.
    pub content_bytes: u64,
    /// The number of members that are files.
    pub files: u64,
}

/// Stops a [`Writer`] that is at work in another thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(crate) fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn check(&self) -> io::Result<()> {
        match self.0.load(Ordering::Relaxed) {
            // Not `Interrupted`, which is tried again.
            true => Err(io::Error::other("cancelled")),
            false => Ok(()),
        }
    }
}

/// A tar archive that is written from its beginning to its end.
pub(crate) struct Writer {
    encoder: Encoder,
    bytes: Arc<AtomicU64>,
    stop: Stop,
    manifest: Manifest,
    hash: Sha256,
    /// Of the member that was begun.
    size: u64,
    /// What is still to come of it.
    left: u64,
    content: u64,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Writer").finish_non_exhaustive()
    }
}

/// The content of [`MANIFEST`].
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    version: u32,
    algorithm: &'static str,
    members: Vec<Noted>,
}

#[derive(Debug, Serialize)]
struct Noted {
    name: String,
    size: u64,
    /// In hexadecimal digits.
    sha256: String,
}

enum Encoder {
    Plain(BufWriter<Counted>),
    Gzip(flate2::write::GzEncoder<Counted>),
    Zstd(zstd::Encoder<'static, Counted>),
}

/// Counts what passes.
struct Counted {
    inner: Box<dyn Write + Send>,
    bytes: Arc<AtomicU64>,
}

impl Write for Counted {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.bytes.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Encoder {
    fn new(out: Counted, compress: Compress) -> io::Result<Self> {
        Ok(match compress {
            Compress::None => Self::Plain(BufWriter::with_capacity(PIECE, out)),
            Compress::Gzip => Self::Gzip(flate2::write::GzEncoder::new(
                out,
                flate2::Compression::default(),
            )),
            Compress::Zstd { level } => {
                let mut encoder = zstd::Encoder::new(out, level)?;
                encoder.include_checksum(true)?;
                let threads = std::thread::available_parallelism().map_or(1, usize::from);
                // One that reads and hashes is there as well; with many more, memory would be theirs.
                encoder.multithread(u32::try_from(threads).unwrap_or(1).min(8))?;
                encoder.set_parameter(zstd::zstd_safe::CParameter::JobSize(JOB))?;
                Self::Zstd(encoder)
            }
        })
    }

    fn out(&mut self) -> &mut dyn Write {
        match self {
            Self::Plain(out) => out,
            Self::Gzip(out) => out,
            Self::Zstd(out) => out,
        }
    }

    fn finish(self) -> io::Result<()> {
        let mut out = match self {
            Self::Plain(out) => out.into_inner().map_err(io::IntoInnerError::into_error)?,
            Self::Gzip(out) => out.finish()?,
            Self::Zstd(out) => out.finish()?,
        };
        out.flush()
    }
}

impl Writer {
    pub(crate) fn new(
        out: impl Write + Send + 'static,
        compress: Compress,
        stop: Stop,
    ) -> io::Result<Self> {
        let bytes = Arc::new(AtomicU64::new(0));
        let out = Counted {
            inner: Box::new(out),
            bytes: Arc::clone(&bytes),
        };
        Ok(Self {
            encoder: Encoder::new(out, compress)?,
            bytes,
            stop,
            manifest: Manifest {
                version: 1,
                algorithm: "sha256",
                members: Vec::new(),
            },
            hash: Sha256::new(),
            size: 0,
            left: 0,
            content: 0,
            buffer: vec![0; PIECE],
        })
    }

    pub(crate) fn directory(&mut self, name: &str, mode: u32) -> io::Result<()> {
        let mut header = plain_header(EntryType::Directory, mode, 0);
        let blocks = blocks(&mut header, format!("{name}/").as_bytes(), None, &[])?;
        self.encoder.out().write_all(&blocks)
    }

    pub(crate) fn bytes(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.begin(name, mode, content.len() as u64)?;
        self.data(content)?;
        self.end(name)
    }

    /// As many bytes of a file as it has now. What is cut off of it meanwhile becomes zeros.
    pub(crate) fn file(&mut self, name: &str, mode: u32, file: &File) -> io::Result<()> {
        let size = file.metadata()?.len();
        self.begin(name, mode, size)?;
        self.contents(file, size)?;
        self.end(name)
    }

    /// A member of `size` bytes follows, in as many calls of [`Writer::data`] as it takes.
    pub(crate) fn begin(&mut self, name: &str, mode: u32, size: u64) -> io::Result<()> {
        self.stop.check()?;
        let mut header = plain_header(EntryType::Regular, mode, size);
        let blocks = blocks(&mut header, name.as_bytes(), None, &[])?;
        self.encoder.out().write_all(&blocks)?;
        self.hash = Sha256::new();
        (self.size, self.left) = (size, size);
        self.content += size;
        Ok(())
    }

    pub(crate) fn data(&mut self, data: &[u8]) -> io::Result<()> {
        self.stop.check()?;
        self.left = self
            .left
            .checked_sub(data.len() as u64)
            .ok_or_else(|| io::Error::other("a member is larger than its header says"))?;
        self.hash.update(data);
        self.encoder.out().write_all(data)
    }

    pub(crate) fn zeros(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            let len = usize::try_from(count)
                .unwrap_or(usize::MAX)
                .min(ZEROS.len());
            self.data(&ZEROS[..len])?;
            count -= len as u64;
        }
        Ok(())
    }

    /// `size` bytes of a file, whose holes are not read.
    pub(crate) fn contents(&mut self, file: &File, size: u64) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let copied = self.copy(file, size, &mut buffer);
        self.buffer = buffer;
        copied
    }

    fn copy(&mut self, file: &File, size: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut at = 0;
        while at < size {
            let data = next(file, SeekFrom::Data(at))?.unwrap_or(size).min(size);
            self.zeros(data - at)?;
            at = data;
            let hole = next(file, SeekFrom::Hole(at))?.unwrap_or(size).min(size);
            while at < hole {
                let len = usize::try_from(hole - at).unwrap_or(usize::MAX);
                let len = len.min(buffer.len());
                match file.read_at(&mut buffer[..len], at) {
                    // It has become shorter.
                    Ok(0) => return self.zeros(size - at),
                    Ok(read) => {
                        self.data(&buffer[..read])?;
                        at += read as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    pub(crate) fn end(&mut self, name: &str) -> io::Result<()> {
        if self.left != 0 {
            return Err(io::Error::other("a member is smaller than its header says"));
        }
        self.manifest.members.push(Noted {
            name: name.to_owned(),
            size: self.size,
            sha256: hex(std::mem::take(&mut self.hash).finalize().as_slice()),
        });
        self.encoder.out().write_all(&ZEROS[..padding(self.size)])
    }

    /// How many files there are by now.
    pub(crate) fn members(&self) -> u64 {
        self.manifest.members.len() as u64
    }

    /// Hands everything on that was written so far.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.encoder.out().flush()
    }

    /// Writes the list of checksums and the archive's end.
    pub(crate) fn finish(mut self) -> io::Result<Written> {
        let files = self.manifest.members.len() as u64;
        let manifest = serde_json::to_vec_pretty(&self.manifest).map_err(io::Error::from)?;
        self.bytes(MANIFEST, 0o600, &manifest)?;
        self.encoder.out().write_all(&ZEROS[..2 * BLOCK as usize])?;
        self.encoder.finish()?;
        Ok(Written {
            archive_bytes: self.bytes.load(Ordering::Relaxed),
            content_bytes: self.content,
            files: files + 1,
        })
    }
}

fn next(file: &File, from: SeekFrom) -> io::Result<Option<u64>> {
    match seek(file.as_fd(), from) {
        Ok(found) => Ok(Some(found)),
        // There is nothing but a hole from here on.
        Err(rustix::io::Errno::NXIO) => Ok(None),
        // A file system that knows of no holes.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => match from {
            SeekFrom::Data(at) => Ok(Some(at)),
            _ => Ok(None),
        },
        Err(error) => Err(error.into()),
    }
}

pub(super) fn hex(digest: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = digest.iter().flat_map(|byte| {
        [
            DIGITS[usize::from(byte >> 4)],
            DIGITS[usize::from(byte & 15)],
        ]
    });
    digits.map(char::from).collect()
}

/// How many zeros follow so many bytes.
pub(super) fn padding(size: u64) -> usize {
    ((BLOCK - size % BLOCK) % BLOCK) as usize
}

fn plain_header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    header.set_mtime(now.map_or(0, |now| now.as_secs()));
    header
}

/// A member's header and what comes before it: extended attributes, and names that it has no room for.
pub(super) fn blocks(
    header: &mut Header,
    name: &[u8],
    target: Option<&[u8]>,
    extensions: &[(String, Vec<u8>)],
) -> io::Result<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    let path = |bytes: &[u8]| Path::new(std::ffi::OsStr::from_bytes(bytes)).to_owned();
    let mut builder = Builder::new(Vec::new());
    if !extensions.is_empty() {
        let extensions = extensions
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_slice()));
        builder.append_pax_extensions(extensions)?;
    }
    match target {
        Some(target) => builder.append_link(header, path(name), path(target))?,
        // The content is written by others: the header alone says how long it is.
        None => builder.append_data(header, path(name), io::empty())?,
    }
    Ok(std::mem::take(builder.get_mut()))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::archive::{Archive, ArchiveError, Compression};

    /// An archive with this file, as it is written to a disk.
    fn written(compress: Compress, file: &File) -> (File, Written) {
        let archive = tempfile::tempfile().unwrap();
        let out = archive.try_clone().unwrap();
        let mut writer = Writer::new(out, compress, Stop::default()).unwrap();
        writer.directory("checkpoint", 0o700).unwrap();
        writer.bytes("config.dump", 0o600, b"{}").unwrap();
        writer.file("checkpoint/pages-1.img", 0o600, file).unwrap();
        let written = writer.finish().unwrap();
        (archive, written)
    }

    #[test]
    fn what_is_written_is_read_with_its_checksums() {
        let file = tempfile::tempfile().unwrap();
        // A hole, something, and a hole.
        file.write_all_at(b"something", 3 << 20).unwrap();
        file.set_len(5 << 20).unwrap();
        let cases = [
            (Compress::None, Compression::None),
            (Compress::Gzip, Compression::Gzip),
            (Compress::default(), Compression::Zstd),
            (Compress::Zstd { level: 19 }, Compression::Zstd),
        ];
        for (compress, expected) in cases {
            let (archive, written) = written(compress, &file);
            assert_eq!(archive.metadata().unwrap().len(), written.archive_bytes);
            let archive = Archive::from_file(archive).unwrap();
            assert_eq!(archive.compression(), expected);
            let mut digests = Vec::new();
            let mut manifest = Vec::new();
            let read = archive.members::<ArchiveError>(|member| {
                let mut content = Vec::new();
                member.read_to_end(&mut content).unwrap();
                match member.name() {
                    MANIFEST => manifest = content,
                    "checkpoint" => assert_eq!(member.mode(), 0o700),
                    name => digests.push((name.to_owned(), hex(&Sha256::digest(&content)))),
                }
                Ok(())
            });
            read.unwrap();
            let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
            let noted: Vec<_> = manifest["members"].as_array().unwrap().iter().collect();
            assert_eq!(noted.len(), digests.len());
            for (noted, (name, digest)) in noted.iter().zip(&digests) {
                assert_eq!(noted["name"], name.as_str());
                assert_eq!(noted["sha256"], digest.as_str());
            }
            assert_eq!(noted[1]["size"], 5 << 20);
        }
    }

    #[test]
    fn a_member_is_as_long_as_its_header_says_or_there_is_no_archive() {
        let mut writer = Writer::new(io::sink(), Compress::None, Stop::default()).unwrap();
        writer.begin("a", 0o600, 3).unwrap();
        assert!(writer.data(b"four").is_err());
        let mut writer = Writer::new(io::sink(), Compress::None, Stop::default()).unwrap();
        writer.begin("a", 0o600, 3).unwrap();
        writer.data(b"ab").unwrap();
        assert!(writer.end("a").is_err());
    }

    #[test]
    fn one_that_is_stopped_writes_no_more() {
        let stop = Stop::default();
        let mut writer = Writer::new(io::sink(), Compress::default(), stop.clone()).unwrap();
        writer.begin("a", 0o600, 3).unwrap();
        stop.now();
        assert!(writer.data(b"abc").is_err());
    }
}
