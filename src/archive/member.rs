//! One member of an archive.

use std::fmt;
use std::io::{self, Read};

use serde::Serialize;

use super::ArchiveError;
use super::read::{Guarded, limit};

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
#[non_exhaustive]
pub enum MemberKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it leads, unchecked.
        target: String,
    },
    /// Another name of a member.
    HardLink {
        /// The member, unchecked.
        target: String,
    },
    /// A device or a FIFO.
    Special,
}

/// A member of an archive, whose content is [read](Read) once.
pub struct Member<'a> {
    pub(super) name: String,
    pub(super) kind: MemberKind,
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) offset: Option<u64>,
    pub(super) left: u64,
    pub(super) entry: tar::Entry<'a, Guarded>,
}

impl fmt::Debug for Member<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = formatter.debug_struct("Member");
        debug.field("name", &self.name).field("kind", &self.kind);
        debug.field("size", &self.size).finish_non_exhaustive()
    }
}

impl Member<'_> {
    /// Its name: relative, without `.` or `..`, and never empty.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is.
    pub fn kind(&self) -> &MemberKind {
        &self.kind
    }

    /// The size of a regular file in bytes, holes included; 0 of anything else.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The permission bits, with setuid, setgid and sticky.
    pub fn mode(&self) -> u32 {
        self.mode
    }

    /// Where the content begins in the file, for members of a plain tar file that have no holes.
    pub fn offset(&self) -> Option<u64> {
        self.offset
    }

    /// The whole content.
    ///
    /// # Errors
    ///
    /// [`ArchiveError::Limit`] if it has more bytes than `most`, else as reading.
    pub fn content(&mut self, most: u64) -> Result<Vec<u8>, ArchiveError> {
        if self.size > most {
            return Err(limit(&format!("bytes in the member {:?}", self.name), most));
        }
        let mut content = Vec::with_capacity(usize::try_from(self.size).unwrap_or(0).min(1 << 20));
        self.read_to_end(&mut content)
            .map_err(|error| self.broken(error))?;
        Ok(content)
    }

    /// Passes over what has not been read, and notices if it is not there.
    pub(super) fn pass_over(&mut self, seekable: bool) -> Result<(), ArchiveError> {
        // Where one can go on without reading, the reader does, and is told of the end.
        if self.left > 0 && !(seekable && self.offset.is_some()) {
            io::copy(self, &mut io::sink()).map_err(|error| self.broken(error))?;
        }
        Ok(())
    }

    fn broken(&self, error: io::Error) -> ArchiveError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => ArchiveError::Truncated {
                after: Some(self.name.clone()),
            },
            _ => ArchiveError::Read(error),
        }
    }
}

impl Read for Member<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let len = usize::try_from(self.left).unwrap_or(usize::MAX);
        let len = len.min(buffer.len());
        match self.entry.read(&mut buffer[..len])? {
            // The tar reader says nothing.
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.left -= read as u64;
                Ok(read)
            }
        }
    }
}
