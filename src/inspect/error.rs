//! Why a checkpoint could not be looked into.

use std::io;
use std::path::PathBuf;

use crate::archive::ArchiveError;
use crate::image::ImageError;

/// Why a checkpoint could not be looked into at all. What is wrong with a part of it is a
/// [`Problem`](super::Problem) of the report instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// The archive, or a layer of the image, could not be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),

    /// The path leads nowhere, or may not be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },

    /// A directory could not be listed, or something in it not be read.
    #[error("cannot read {name}")]
    Read {
        /// What.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },

    /// An image that everything depends on.
    #[error(transparent)]
    Image(#[from] ImageError),

    /// There is no checkpoint here.
    #[error("{}: {reason}", path.display())]
    NoCheckpoint {
        /// The archive or directory.
        path: PathBuf,
        /// What is missing or wrong.
        reason: String,
    },

    /// There is more than is kept in memory.
    #[error("the images that describe the checkpoint have more than {limit} bytes")]
    TooLarge {
        /// The most that is kept.
        limit: u64,
    },

    /// There is no such process.
    #[error("there is no process {pid} in the checkpoint")]
    NoProcess {
        /// The pid asked for.
        pid: u32,
    },
}

impl InspectError {
    pub(super) fn read(name: &str, source: io::Error) -> Self {
        Self::Read {
            name: name.to_owned(),
            source,
        }
    }
}
