//! The few CRIU image files that a client reads: statistics, inventory, task tree.
//!
//! This module owns the framing of protobuf images, the check that a file is what its name says,
//! and typed views of four files: `stats-dump` ([`DumpStats`]), `stats-restore`
//! ([`RestoreStats`]), `inventory.img` ([`Inventory`]) and `pstree.img` ([`ProcessTree`]). It
//! never writes an image: decoding and encoding again would drop every field that is not declared
//! here.
//!
//! Each type reads from bytes (`parse`) or from a file in an open directory (`read`):
//!
//! ```text
//! directory fd + name ── open, no symlinks, regular file, bounded ──┐
//! bytes ────────────────────────────────────────────────────────────┴─ magic ─ frames ─ message ─ checks ─ type
//! ```
//!
//! Images may come from elsewhere, so nothing in them is taken on trust. Sizes are bounded before
//! anything is allocated, a field that CRIU always writes must be there, and whatever follows the
//! last entry is an error. Numbers that this module does not know are kept as such.

mod file;
mod framing;
mod inventory;
#[cfg(feature = "archive")]
pub(crate) mod kinds;
mod pstree;
mod stats;

use std::io;

#[cfg(feature = "archive")]
pub(crate) use file::open_file;
pub use inventory::{Inventory, Lsm, NetworkLockMethod, PreDumpMode};
pub use pstree::{ProcessTree, Task};
pub use stats::{DumpStats, RestoreStats};

/// The messages, as `build.rs` generates them from `proto/images`.
// Not all of them are read without the feature `archive`.
#[allow(dead_code, unreachable_pub, clippy::all, clippy::pedantic)]
pub(crate) mod proto {
    include!(concat!(env!("OUT_DIR"), "/criu_client.images.rs"));
}

/// The statistics of a dump or pre-dump, in CRIU's work directory.
pub const STATS_DUMP: &str = "stats-dump";
/// The statistics of a restore, in CRIU's work directory.
pub const STATS_RESTORE: &str = "stats-restore";
/// The inventory, in the images directory.
pub const INVENTORY: &str = "inventory.img";
/// The task tree, in the images directory.
pub const PSTREE: &str = "pstree.img";

/// Why an image file could not be read.
///
/// `file` is always the name that the caller gave, and `offset` counts bytes from the start of the
/// file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The name is empty, `.` or `..`, or has a slash or a NUL byte in it.
    #[error("{file:?} is not a plain file name")]
    InvalidName {
        /// The refused name.
        file: String,
    },

    /// The file could not be opened; [`ImageError::is_not_found`] tells whether it is missing.
    #[error("{file}: cannot open the image")]
    Open {
        /// The image.
        file: String,
        /// What the kernel said.
        source: io::Error,
    },

    /// The file was opened but could not be read.
    #[error("{file}: cannot read the image")]
    Read {
        /// The image.
        file: String,
        /// What the kernel said.
        source: io::Error,
    },

    /// The name leads to a symbolic link, a directory, a FIFO, a socket or a device.
    #[error("{file}: not a regular file")]
    NotRegular {
        /// The image.
        file: String,
    },

    /// The file is larger than any such image can be.
    #[error("{file}: {size} bytes or more, but at most {limit} are read")]
    FileTooLarge {
        /// The image.
        file: String,
        /// Its size in bytes, or as much of it as was seen.
        size: u64,
        /// The most that is read of such a file, in bytes.
        limit: u64,
    },

    /// An entry claims to be larger than any entry can be.
    #[error(
        "{file}: the entry at offset {offset} claims {size} bytes, but at most {limit} are read"
    )]
    FrameTooLarge {
        /// The image.
        file: String,
        /// Where the size of the entry is.
        offset: usize,
        /// The claimed size in bytes.
        size: u32,
        /// The largest entry that is read, in bytes.
        limit: u32,
    },

    /// The file ends within a magic number, a size or an entry.
    #[error("{file}: truncated at offset {offset}: {available} of {needed} bytes are there")]
    Truncated {
        /// The image.
        file: String,
        /// Where the missing part starts.
        offset: usize,
        /// The size of that part in bytes.
        needed: usize,
        /// What is left of the file, in bytes.
        available: usize,
    },

    /// The file is not the image that was asked for.
    #[error("{file}: magic {found:#010x} at offset {offset} where {expected:#010x} belongs")]
    WrongMagic {
        /// The image.
        file: String,
        /// Where the magic number is.
        offset: usize,
        /// The magic number of such an image.
        expected: u32,
        /// What is there.
        found: u32,
    },

    /// Something follows the one entry of the image.
    #[error("{file}: trailing data after the only entry, at offset {offset}, length {len}")]
    TrailingData {
        /// The image.
        file: String,
        /// Where the entry ends.
        offset: usize,
        /// The number of bytes that follow.
        len: usize,
    },

    /// An entry is no valid message.
    #[error("{file}: the entry at offset {offset} is malformed: {reason}")]
    Malformed {
        /// The image.
        file: String,
        /// Where the size of the entry is.
        offset: usize,
        /// What the decoder said.
        reason: String,
    },

    /// An entry lacks a field that CRIU always writes.
    #[error("{file}: the entry at offset {offset} has no {field}")]
    MissingField {
        /// The image.
        file: String,
        /// Where the size of the entry is.
        offset: usize,
        /// CRIU's name of the field.
        field: &'static str,
    },

    /// The entries are valid one by one but do not form a task tree.
    #[error("{file}: not a task tree: {reason}")]
    Inconsistent {
        /// The image.
        file: String,
        /// What is wrong.
        reason: String,
    },
}

impl ImageError {
    /// Whether the file is not there at all. No `inventory.img` means that a dump did not finish,
    /// no `stats-dump` or `stats-restore` that the operation did not succeed.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::path::Path;

    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    /// An image of one entry; without magic numbers, the entry alone.
    pub(super) fn entry(magics: &[u32], message: &[u8]) -> Vec<u8> {
        let size = u32::try_from(message.len()).unwrap();
        let mut bytes: Vec<u8> = magics
            .iter()
            .flat_map(|magic| magic.to_le_bytes())
            .collect();
        bytes.extend(size.to_le_bytes());
        bytes.extend(message);
        bytes
    }

    /// A real image with a few bits flipped, then cut or made longer.
    pub(super) fn damaged(original: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
        let flips = proptest::collection::vec((any::<Index>(), 0u8..8), 0..4);
        let end = prop_oneof![
            3 => Just((original.len(), vec![])),
            1 => (0..original.len()).prop_map(|len| (len, vec![])),
            1 => proptest::collection::vec(any::<u8>(), 1..8).prop_map(|tail| (original.len(), tail)),
        ];
        (flips, end).prop_map(|(flips, (len, tail))| {
            let mut bytes = original.to_vec();
            for (index, bit) in flips {
                let index = index.index(bytes.len());
                bytes[index] ^= 1 << bit;
            }
            bytes.truncate(len);
            bytes.extend(tail);
            bytes
        })
    }

    /// Panics unless the required fields of the message in `proto/images` are exactly these, each
    /// with the name of the message before its own.
    pub(super) fn protos_require(proto: &str, message: &str, required: &[(u32, &str)]) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/images");
        let set = protox::compile([proto], [dir]).unwrap();
        let message_type = set.file[0]
            .message_type
            .iter()
            .find(|candidate| candidate.name() == message)
            .unwrap();
        let declared: Vec<_> = message_type
            .field
            .iter()
            .filter(|field| field.label() == prost_types::field_descriptor_proto::Label::Required)
            .map(|field| {
                (
                    field.number().unsigned_abs(),
                    format!("{message}.{}", field.name()),
                )
            })
            .collect();
        let required: Vec<_> = required
            .iter()
            .map(|&(number, name)| (number, name.to_owned()))
            .collect();
        assert_eq!(declared, required);
    }

    #[test]
    fn each_file_is_read_from_its_directory() {
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images/criu-4.2.1");
        let dir = File::open(images).unwrap();
        let dump = DumpStats::read(dir.as_fd(), STATS_DUMP).unwrap();
        assert_eq!(dump.pages_written, 2874);
        let restore = RestoreStats::read(dir.as_fd(), STATS_RESTORE).unwrap();
        assert_eq!(restore.pages_restored, Some(1187));
        let inventory = Inventory::read(dir.as_fd(), INVENTORY).unwrap();
        assert_eq!(inventory.img_version, 2);
        let tree = ProcessTree::read(dir.as_fd(), PSTREE).unwrap();
        assert_eq!(tree.root().pid, 8806);
    }

    #[test]
    fn a_missing_file_is_told_from_an_unreadable_one() {
        let dir = tempfile::tempdir().unwrap();
        let fd = File::open(dir.path()).unwrap();
        assert!(
            Inventory::read(fd.as_fd(), INVENTORY)
                .unwrap_err()
                .is_not_found()
        );
        assert!(
            ProcessTree::read(fd.as_fd(), PSTREE)
                .unwrap_err()
                .is_not_found()
        );
        assert!(
            DumpStats::read(fd.as_fd(), STATS_DUMP)
                .unwrap_err()
                .is_not_found()
        );
        assert!(
            RestoreStats::read(fd.as_fd(), STATS_RESTORE)
                .unwrap_err()
                .is_not_found()
        );

        fs::write(dir.path().join(INVENTORY), []).unwrap();
        let error = Inventory::read(fd.as_fd(), INVENTORY).unwrap_err();
        assert!(!error.is_not_found());
        assert_eq!(
            error.to_string(),
            "inventory.img: truncated at offset 0: 0 of 4 bytes are there"
        );
    }
}
