//! Images directories and the logs that CRIU writes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use super::tasks::LogFile;
use crate::diagnosis::Diagnosis;
use crate::image::{INVENTORY, ImageError};

/// More requests into one directory than this have something wrong with them.
const LOGS_AT_MOST: u32 = 10_000;

/// A directory of images, held open.
///
/// CRIU finds it by the number of this descriptor in our table, so moving or renaming the directory meanwhile does no
/// harm. The descriptor is closed with the last operation that uses it.
#[derive(Debug, Clone)]
pub struct ImagesDir {
    fd: Arc<OwnedFd>,
    path: Arc<Path>,
}

impl ImagesDir {
    /// Opens a directory that exists.
    ///
    /// # Errors
    /// Whatever open(2) says, `NotADirectory` among it.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let fd = openat(
            CWD,
            path,
            OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(Self {
            fd: fd.into(),
            path: std::path::absolute(path)?.into(),
        })
    }

    /// Opens a directory, making it and what is missing above it first. A directory that is made has mode 0700: images
    /// hold the memory of the tasks.
    ///
    /// # Errors
    /// Whatever mkdir(2) and open(2) say.
    pub fn create(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)?;
        Self::open(path)
    }

    /// What [`ImagesDir::create`] would make, outermost first; nothing when the directory is there. Nothing is made.
    ///
    /// # Errors
    /// What can be foreseen of those of `create`.
    pub fn missing(path: impl AsRef<Path>) -> io::Result<Vec<PathBuf>> {
        let path = std::path::absolute(path)?;
        let mut missing = Vec::new();
        for path in path.ancestors() {
            match std::fs::metadata(path) {
                Ok(found) if !found.is_dir() => return Err(io::ErrorKind::NotADirectory.into()),
                Ok(_) => {
                    if !missing.is_empty() {
                        rustix::fs::access(path, Access::WRITE_OK)?;
                    }
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    missing.push(path.to_owned());
                }
                Err(error) => return Err(error),
            }
        }
        missing.reverse();
        Ok(missing)
    }

    /// Where `relative` leads from a directory of images, which may have to be made first.
    ///
    /// # Errors
    /// When the directory is there and cannot be looked at.
    pub fn beside(images: impl AsRef<Path>, relative: impl AsRef<Path>) -> io::Result<PathBuf> {
        let (images, relative) = (images.as_ref(), relative.as_ref());
        match std::fs::canonicalize(images) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            images => return Ok(images?.join(relative)),
        }
        let mut path = std::path::absolute(images)?;
        for part in relative.components() {
            match part {
                // What is not there is no link.
                std::path::Component::ParentDir => {
                    path.pop();
                }
                part => path.push(part),
            }
        }
        Ok(path)
    }

    /// Takes over a descriptor of a directory.
    ///
    /// # Errors
    /// `NotADirectory` when it is none.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        if !std::fs::metadata(&link)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let path = std::fs::read_link(&link)?;
        Ok(Self {
            fd: fd.into(),
            path: path.into(),
        })
    }

    /// Where it was when it was opened; absolute.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn shared_path(&self) -> Arc<Path> {
        self.path.clone()
    }

    /// The known cause behind an image of it that cannot be read: what CRIU would fail with.
    #[must_use]
    pub fn diagnose(&self, error: &ImageError) -> Option<Diagnosis> {
        let (code, file) = match error {
            _ if !self.contains(INVENTORY) => ("no-checkpoint-here", INVENTORY),
            ImageError::Open { file, source } if source.kind() == io::ErrorKind::NotFound => {
                ("image-missing", file.as_str())
            }
            ImageError::WrongMagic { file, .. } => ("image-not-criu", file.as_str()),
            ImageError::Truncated {
                file,
                offset: 0,
                available: 0,
                ..
            } => ("image-empty", file.as_str()),
            // The catalogue's sentence has the extension.
            ImageError::Truncated { file, .. } => {
                ("image-truncated", file.trim_end_matches(".img"))
            }
            ImageError::Malformed { file, .. } => ("image-garbled", file.as_str()),
            _ => return None,
        };
        Diagnosis::by_code(code, &[("image", file)])
    }

    /// Whether it holds a file of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        rustix::fs::statat(self, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }
}

impl AsFd for ImagesDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The log of one request, in the images directory or in the work directory.
#[derive(Debug)]
pub(crate) struct Log {
    directory: ImagesDir,
    name: String,
}

impl Log {
    /// Reserves a name that nothing has yet: CRIU leaves an older log of the same name untouched when it fails early,
    /// and it would then be taken for the log of this request.
    pub(crate) fn reserve(directory: ImagesDir, stem: &str) -> io::Result<Self> {
        for name in names(stem) {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            match openat(&directory, name.as_str(), flags, Mode::RUSR | Mode::WUSR) {
                Ok(_) => return Ok(Self { directory, name }),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// The name that [`Log::reserve`] would find free in a directory, which need not be there.
    pub(crate) fn free_name(directory: &Path, stem: &str) -> io::Result<String> {
        names(stem)
            .find(|name| std::fs::symlink_metadata(directory.join(name)).is_err())
            .ok_or_else(|| io::ErrorKind::AlreadyExists.into())
    }

    /// Makes an empty log of this name, in place of an older one.
    pub(crate) fn replace(directory: ImagesDir, name: String) -> io::Result<Self> {
        match unlinkat(&directory, name.as_str(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&directory, name.as_str(), flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Self { directory, name })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its name and what tells it apart from every other file.
    pub(crate) fn file(&self) -> Option<LogFile> {
        let stat = rustix::fs::statat(
            &self.directory,
            self.name.as_str(),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .ok()?;
        Some(LogFile {
            name: self.name.clone(),
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path.join(&self.name)
    }

    /// The log for reading; `None` when CRIU has written nothing to it.
    pub(crate) fn open(&self) -> Option<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            File::from(openat(&self.directory, self.name.as_str(), flags, Mode::empty()).ok()?);
        (file.metadata().ok()?.len() > 0).then_some(file)
    }

    /// Removes the reserved name when CRIU never wrote to it.
    pub(crate) fn discard_if_empty(&self) {
        if self.open().is_none() {
            // A name that is gone already is as good.
            let _ = unlinkat(&self.directory, self.name.as_str(), AtFlags::empty());
        }
    }
}

/// The names of logs, in the order in which they are tried.
fn names(stem: &str) -> impl Iterator<Item = String> {
    (1..LOGS_AT_MOST).map(move |number| match number {
        1 => format!("{stem}.log"),
        _ => format!("{stem}-{number}.log"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_gets_a_fresh_log() {
        let directory = tempfile::tempdir().unwrap();
        let images = ImagesDir::open(directory.path()).unwrap();
        std::fs::write(directory.path().join("dump.log"), "old").unwrap();
        let log = Log::reserve(images.clone(), "dump").unwrap();
        assert_eq!(log.name(), "dump-2.log");
        let free = |path: &str| Log::free_name(&directory.path().join(path), "dump").unwrap();
        assert_eq!(
            (free(""), free("missing")),
            ("dump-3.log".into(), "dump.log".into())
        );
        assert!(log.open().is_none());
        log.discard_if_empty();
        assert!(!images.contains("dump-2.log"));
        assert!(images.contains("dump.log"));
    }

    #[test]
    fn only_directories() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(ImagesDir::open(file.path()).is_err());
        assert!(ImagesDir::from_fd(file.into_file().into()).is_err());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        let missing = [directory.path().join("a"), path.clone()];
        assert_eq!(ImagesDir::missing(&path).unwrap(), missing);
        let images = ImagesDir::create(&path).unwrap();
        assert!(ImagesDir::missing(&path).unwrap().is_empty());
        std::fs::write(path.join("file"), "").unwrap();
        assert!(ImagesDir::missing(path.join("file")).is_err());
        let beside = |images: &str| ImagesDir::beside(path.join(images), "../1").unwrap();
        assert_eq!(beside("missing"), path.join("1"));
        assert!(beside("").ends_with("a/b/../1"));
        assert!(ImagesDir::missing(path.join("file/below")).is_err());
        assert_eq!(images.path(), directory.path().join("a/b"));
    }
}
