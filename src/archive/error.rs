//! Why an archive could not be read.

use std::io;
use std::path::PathBuf;

/// Why an archive could not be read.
///
/// Names of members are shown escaped: they come from whoever made the archive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The file could not be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },

    /// The path leads to something that is no regular file.
    #[error("{} is not a regular file", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
    },

    /// The kernel or the decompressor failed.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),

    /// It is no tar archive, or is one no more from some place on.
    #[error("not a valid tar archive{}", place(after))]
    Malformed {
        /// The last member that could be read.
        after: Option<String>,
        /// What is wrong.
        source: io::Error,
    },

    /// The archive ends too early.
    #[error("the archive is truncated{}", place(after))]
    Truncated {
        /// The last member whose beginning is there.
        after: Option<String>,
    },

    /// A member has a name that leads elsewhere, or that is none.
    #[error("the member {name:?} is refused: {reason}")]
    Name {
        /// The name; bytes that are not UTF-8 are replaced.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// A member is there twice, so that it depends on the reader which one counts.
    #[error("the member {name:?} is there twice")]
    Twice {
        /// The name.
        name: String,
    },

    /// There is more than is read.
    #[error("{what}: more than the {limit} that are read")]
    Limit {
        /// What there is too much of.
        what: String,
        /// How much of it is read.
        limit: u64,
    },
}

fn place(name: &Option<String>) -> String {
    match name {
        Some(name) => format!(" after the member {name:?}"),
        None => String::new(),
    }
}

impl ArchiveError {
    /// Whether the file is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}
