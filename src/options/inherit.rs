//! Open descriptors that a restore uses in place of files of the images.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::os::fd::OwnedFd;
use std::str::FromStr;

use super::InvalidOption;
use super::limits;

const OPTION: &str = "inherit-fd";

/// What a descriptor stands in for: CRIU's own id of the file in the images (`--inherit-fd`).
///
/// As text, the key that CRIU compares, which must match exactly: one that matches nothing is silently unused. Two keys are
/// equal when their texts are, because CRIU sees no difference between them then; a text without a slash is read as
/// [`InheritKey::Namespace`], one with a slash as [`InheritKey::Path`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum InheritKey {
    /// `pipe:[INODE]`, as readlink shows a pipe in `/proc/PID/fd`.
    Pipe(u64),
    /// `socket:[INODE]`, as readlink shows a socket in `/proc/PID/fd`.
    Socket(u64),
    /// `tty[RDEV:DEV]`, hexadecimal: a terminal that was dumped as external.
    Tty {
        /// `st_rdev` of the terminal at dump.
        rdev: u64,
        /// `st_dev` of the terminal at dump.
        dev: u64,
    },
    /// `file[MOUNT:INODE]`, hexadecimal: a file that was dumped as external.
    File {
        /// `mnt_id` in `/proc/PID/fdinfo/FD` at dump.
        mount_id: u32,
        /// Inode number at dump.
        inode: u64,
    },
    /// `/memfd:NAME`: a memfd, as readlink shows it but without the ` (deleted)` at the end.
    Memfd(String),
    /// A regular file, as its path from the root of the tasks, without the leading slash.
    Path(String),
    /// The key of a network or pid namespace that was dumped as external.
    Namespace(String),
}

/// A descriptor and what it stands in for.
#[derive(Debug)]
pub struct InheritFd {
    /// What it stands in for.
    pub key: InheritKey,
    /// The descriptor. CRIU gets a copy; ours is closed when the request is over.
    pub fd: OwnedFd,
}

impl InheritKey {
    pub(crate) fn checked(&self) -> Result<String, InvalidOption> {
        let text = self.to_string();
        let refuse =
            |problem, remedy| Err(InvalidOption::new(OPTION, text.clone(), problem, remedy));
        match self {
            Self::Memfd(name) | Self::Path(name) | Self::Namespace(name) if name.is_empty() => {
                return refuse("has an empty name", "give the name that the images have");
            }
            Self::Path(path) | Self::Namespace(path) if path.starts_with('/') => {
                return refuse(
                    "starts with a slash, which no key of a file does",
                    "give the path without its leading slash",
                );
            }
            _ => {}
        }
        limits::no_nul(OPTION, &text)?;
        Ok(text)
    }
}

impl PartialEq for InheritKey {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for InheritKey {}

impl Hash for InheritKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.to_string().hash(state);
    }
}

impl fmt::Display for InheritKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pipe(inode) => write!(f, "pipe:[{inode}]"),
            Self::Socket(inode) => write!(f, "socket:[{inode}]"),
            Self::Tty { rdev, dev } => write!(f, "tty[{rdev:x}:{dev:x}]"),
            Self::File { mount_id, inode } => write!(f, "file[{mount_id:x}:{inode:x}]"),
            Self::Memfd(name) => write!(f, "/memfd:{name}"),
            Self::Path(path) => f.write_str(path),
            Self::Namespace(key) => f.write_str(key),
        }
    }
}

impl FromStr for InheritKey {
    type Err = InvalidOption;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bracketed = |prefix: &str| text.strip_prefix(prefix)?.strip_suffix(']');
        let malformed = |remedy| {
            move || {
                InvalidOption::new(
                    OPTION,
                    text,
                    "is not of the form that CRIU compares",
                    remedy,
                )
            }
        };
        let pair = |id: &str| {
            let (first, second) = id.split_once(':')?;
            Some((limits::hexadecimal(first)?, limits::hexadecimal(second)?))
        };
        let key = if let Some(inode) = bracketed("pipe:[") {
            Self::Pipe(
                limits::decimal(inode)
                    .ok_or_else(malformed("give pipe:[INODE] with a decimal number"))?,
            )
        } else if let Some(inode) = bracketed("socket:[") {
            Self::Socket(
                limits::decimal(inode)
                    .ok_or_else(malformed("give socket:[INODE] with a decimal number"))?,
            )
        } else if let Some(id) = bracketed("tty[") {
            let form = malformed("give tty[RDEV:DEV] with hexadecimal numbers, without 0x");
            let (rdev, dev) = pair(id).ok_or_else(form)?;
            Self::Tty { rdev, dev }
        } else if let Some(id) = bracketed("file[") {
            let form = malformed("give file[MOUNT:INODE] with hexadecimal numbers, without 0x");
            let (mount_id, inode) = pair(id).ok_or_else(form)?;
            Self::File {
                mount_id: mount_id.try_into().map_err(|_| form())?,
                inode,
            }
        } else if let Some(name) = text.strip_prefix("/memfd:") {
            Self::Memfd(name.to_owned())
        } else if text.contains('/') {
            Self::Path(text.to_owned())
        } else {
            Self::Namespace(text.to_owned())
        };
        key.checked()?;
        Ok(key)
    }
}
