//! Checkpoint archives: the tar files that Podman, CRI-O, containerd and criuctl put checkpoints into.
//!
//! [`Archive`] reads one, whatever it is compressed with, member by member and without trusting it. Nothing here
//! writes to a disk.
//!
//! ```text
//! file or pipe ── magic: none, gzip, zstd, bzip2, xz ── tar, bounded ── names checked ── one member after another
//! ```

mod error;
mod member;
mod read;

pub use error::ArchiveError;
pub use member::{Member, MemberKind};
pub use read::{Archive, Compression, Limits};
