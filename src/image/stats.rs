//! `stats-dump` and `stats-restore`.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::file::read_file;
use super::framing::{Format, Frames};
use super::{ImageError, proto};

/// The service magic, then that of statistics; dump and restore share both.
const FORMAT: Format = Format {
    magics: &[0x5510_5940, 0x5709_3306],
    max_file: 64 << 10,
};

const DUMP: (u32, &str) = (1, "stats_entry.dump");
const DUMP_REQUIRED: &[(u32, &str)] = &[
    (1, "dump_stats_entry.freezing_time"),
    (2, "dump_stats_entry.frozen_time"),
    (3, "dump_stats_entry.memdump_time"),
    (4, "dump_stats_entry.memwrite_time"),
    (5, "dump_stats_entry.pages_scanned"),
    (6, "dump_stats_entry.pages_skipped_parent"),
    (7, "dump_stats_entry.pages_written"),
    (9, "dump_stats_entry.pages_lazy"),
];

const RESTORE: (u32, &str) = (2, "stats_entry.restore");
const RESTORE_REQUIRED: &[(u32, &str)] = &[
    (1, "restore_stats_entry.pages_compared"),
    (2, "restore_stats_entry.pages_skipped_cow"),
    (3, "restore_stats_entry.forking_time"),
    (4, "restore_stats_entry.restore_time"),
];

/// What a dump or a pre-dump cost, as CRIU measured it.
///
/// CRIU writes the file into its work directory, and only after success. It takes times from the
/// wall clock, so they are wrong if the clock was set meanwhile, and keeps them in 32 bits of
/// microseconds: one longer than 71 minutes has wrapped and looks short. Page counts are in pages of
/// the dumping host. What CRIU did not record is `None`.
///
/// Serialised, the times are whole microseconds in fields that end in `Micros`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct DumpStats {
    /// The time that it took to stop all tasks.
    #[serde(rename = "freezingTimeMicros", serialize_with = "micros")]
    pub freezing_time: Duration,
    /// The time that the tasks then stood still: the outage that a user of them sees, if they are
    /// left running or for a pre-dump.
    #[serde(rename = "frozenTimeMicros", serialize_with = "micros")]
    pub frozen_time: Duration,
    /// The time spent on the tasks' memory, [`memwrite_time`](Self::memwrite_time) included.
    #[serde(rename = "memdumpTimeMicros", serialize_with = "micros")]
    pub memdump_time: Duration,
    /// The time spent on writing memory to images or to the page server.
    #[serde(rename = "memwriteTimeMicros", serialize_with = "micros")]
    pub memwrite_time: Duration,
    /// The time spent on finding the paths of watched inodes. A pre-dump does this ahead.
    #[serde(rename = "irmapResolveMicros", serialize_with = "optional_micros")]
    pub irmap_resolve: Option<Duration>,
    /// Pages of private memory that were looked at.
    pub pages_scanned: u64,
    /// Pages of private memory left out because the parent images have them unchanged.
    pub pages_skipped_parent: u64,
    /// Pages of private memory written.
    pub pages_written: u64,
    /// Pages left for a lazy restore to fetch.
    pub pages_lazy: u64,
    /// Pipes that carried pages out of the tasks.
    pub page_pipes: Option<u64>,
    /// Buffers within those pipes.
    pub page_pipe_bufs: Option<u64>,
    /// Pages of shared memory that were looked at.
    pub shpages_scanned: Option<u64>,
    /// Pages of shared memory left out because the parent images have them unchanged.
    pub shpages_skipped_parent: Option<u64>,
    /// Pages of shared memory written.
    pub shpages_written: Option<u64>,
}

impl DumpStats {
    /// Decodes the content of a `stats-dump` file; `file` names it in errors.
    ///
    /// # Errors
    ///
    /// [`ImageError`] when the bytes are not complete dump statistics and nothing else.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, ImageError> {
        let frame = Frames::new(file, bytes, &FORMAT)?.only()?;
        let entry: proto::StatsEntry = frame.decode()?;
        frame.require_within(DUMP, DUMP_REQUIRED)?;
        let dump = entry.dump.ok_or_else(|| frame.missing(DUMP.1))?;
        Ok(Self {
            freezing_time: from_micros(dump.freezing_time),
            frozen_time: from_micros(dump.frozen_time),
            memdump_time: from_micros(dump.memdump_time),
            memwrite_time: from_micros(dump.memwrite_time),
            irmap_resolve: dump.irmap_resolve.map(from_micros),
            pages_scanned: dump.pages_scanned,
            pages_skipped_parent: dump.pages_skipped_parent,
            pages_written: dump.pages_written,
            pages_lazy: dump.pages_lazy,
            page_pipes: dump.page_pipes,
            page_pipe_bufs: dump.page_pipe_bufs,
            shpages_scanned: dump.shpages_scanned,
            shpages_skipped_parent: dump.shpages_skipped_parent,
            shpages_written: dump.shpages_written,
        })
    }

    /// Reads the statistics from `file` in the open directory `dir`, usually
    /// [`STATS_DUMP`](super::STATS_DUMP) in the work directory. The descriptor stays the caller's.
    ///
    /// # Errors
    ///
    /// As [`DumpStats::parse`], and when the file is not there, not readable or not regular.
    pub fn read(dir: BorrowedFd<'_>, file: &str) -> Result<Self, ImageError> {
        Self::parse(file, &read_file(dir, file, &FORMAT)?)
    }
}

/// What a restore cost, as CRIU measured it.
///
/// CRIU writes the file into its work directory. It is there, too, when a callback at the very end
/// of the restore was refused. Times and pages are counted and serialised as in [`DumpStats`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct RestoreStats {
    /// The time that it took to create the tasks.
    #[serde(rename = "forkingTimeMicros", serialize_with = "micros")]
    pub forking_time: Duration,
    /// The time of the restore as a whole.
    #[serde(rename = "restoreTimeMicros", serialize_with = "micros")]
    pub restore_time: Duration,
    /// Pages that a child inherited from its parent and that were compared with the images.
    pub pages_compared: u64,
    /// Those of them that were equal and so stay shared between parent and child.
    pub pages_skipped_cow: u64,
    /// Pages filled from the images.
    pub pages_restored: Option<u64>,
}

impl RestoreStats {
    /// Decodes the content of a `stats-restore` file; `file` names it in errors.
    ///
    /// # Errors
    ///
    /// [`ImageError`] when the bytes are not complete restore statistics and nothing else.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, ImageError> {
        let frame = Frames::new(file, bytes, &FORMAT)?.only()?;
        let entry: proto::StatsEntry = frame.decode()?;
        frame.require_within(RESTORE, RESTORE_REQUIRED)?;
        let restore = entry.restore.ok_or_else(|| frame.missing(RESTORE.1))?;
        Ok(Self {
            forking_time: from_micros(restore.forking_time),
            restore_time: from_micros(restore.restore_time),
            pages_compared: restore.pages_compared,
            pages_skipped_cow: restore.pages_skipped_cow,
            pages_restored: restore.pages_restored,
        })
    }

    /// Reads the statistics from `file` in the open directory `dir`, usually
    /// [`STATS_RESTORE`](super::STATS_RESTORE) in the work directory. The descriptor stays the
    /// caller's.
    ///
    /// # Errors
    ///
    /// As [`RestoreStats::parse`], and when the file is not there, not readable or not regular.
    pub fn read(dir: BorrowedFd<'_>, file: &str) -> Result<Self, ImageError> {
        Self::parse(file, &read_file(dir, file, &FORMAT)?)
    }
}

fn from_micros(micros: u32) -> Duration {
    Duration::from_micros(micros.into())
}

fn micros<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

fn optional_micros<S: Serializer>(
    time: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => micros(time, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::tests::{damaged, entry, protos_require};

    macro_rules! image {
        ($name:literal) => {
            include_bytes!(concat!("../../tests/data/images/", $name)).as_slice()
        };
    }

    const DUMP_421: &[u8] = image!("criu-4.2.1/stats-dump");
    const RESTORE_421: &[u8] = image!("criu-4.2.1/stats-restore");

    fn stats(message: &[u8]) -> Vec<u8> {
        entry(FORMAT.magics, message)
    }

    #[test]
    fn a_dump_of_criu_4_2() {
        let stats = DumpStats::parse("stats-dump", DUMP_421).unwrap();
        assert_eq!(
            stats,
            DumpStats {
                freezing_time: Duration::from_micros(1652),
                frozen_time: Duration::from_micros(101_787),
                memdump_time: Duration::from_micros(48_964),
                memwrite_time: Duration::from_micros(35_785),
                irmap_resolve: Some(Duration::ZERO),
                pages_scanned: 3121,
                pages_skipped_parent: 0,
                pages_written: 2874,
                pages_lazy: 0,
                page_pipes: Some(24),
                page_pipe_bufs: Some(24),
                shpages_scanned: Some(0),
                shpages_skipped_parent: Some(0),
                shpages_written: Some(0),
            }
        );
    }

    #[test]
    fn dumps_of_other_versions() {
        let old = DumpStats::parse("stats-dump", image!("criu-4.1.1/stats-dump")).unwrap();
        assert_eq!(
            (old.frozen_time.as_micros(), old.pages_written),
            (24_979, 2876)
        );
        let new = DumpStats::parse("stats-dump", image!("criu-4.3/stats-dump")).unwrap();
        assert_eq!(
            (new.frozen_time.as_micros(), new.pages_written),
            (23_836, 2872)
        );
    }

    #[test]
    fn restores_of_all_versions() {
        let parse = |bytes| {
            let stats = RestoreStats::parse("stats-restore", bytes).unwrap();
            (
                stats.forking_time.as_micros(),
                stats.restore_time.as_micros(),
                stats.pages_compared,
                stats.pages_skipped_cow,
                stats.pages_restored,
            )
        };
        assert_eq!(
            parse(image!("criu-4.1.1/stats-restore")),
            (1507, 26_071, 1916, 1689, Some(1187))
        );
        assert_eq!(parse(RESTORE_421), (4831, 31_170, 1915, 1687, Some(1187)));
        assert_eq!(
            parse(image!("criu-4.3/stats-restore")),
            (1779, 21_885, 1286, 1109, Some(1763))
        );
        // A process of 15 pages.
        let small = [
            0x40, 0x59, 0x10, 0x55, 0x06, 0x33, 0x09, 0x57, 0x0d, 0, 0, 0, 0x12, 0x0b, 0x08, 0,
            0x10, 0, 0x18, 0, 0x20, 0xcf, 0x0c, 0x28, 0x0f,
        ];
        assert_eq!(parse(&small), (0, 1615, 0, 0, Some(15)));
    }

    #[test]
    fn the_other_kind_is_refused() {
        let error = DumpStats::parse("stats-restore", RESTORE_421).unwrap_err();
        assert_eq!(
            error.to_string(),
            "stats-restore: the entry at offset 8 has no stats_entry.dump"
        );
        let error = RestoreStats::parse("stats-dump", DUMP_421).unwrap_err();
        assert_eq!(
            error.to_string(),
            "stats-dump: the entry at offset 8 has no stats_entry.restore"
        );
        let error = DumpStats::parse("x", image!("criu-4.2.1/pstree.img")).unwrap_err();
        assert!(
            matches!(error, ImageError::WrongMagic { offset: 0, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_missing_field_is_not_taken_for_zero() {
        let error = DumpStats::parse("x", &stats(&[])).unwrap_err();
        assert!(matches!(
            error,
            ImageError::MissingField {
                field: "stats_entry.dump",
                ..
            }
        ));
        // All required fields but pages_lazy.
        let almost = [
            0x0a, 14, 8, 0, 0x10, 0, 0x18, 0, 0x20, 0, 0x28, 0, 0x30, 0, 0x38, 0,
        ];
        let error = DumpStats::parse("x", &stats(&almost)).unwrap_err();
        let field = "dump_stats_entry.pages_lazy";
        assert!(
            matches!(error, ImageError::MissingField { field: found, .. } if found == field),
            "{error}"
        );
        let without_time = [0x12, 6, 8, 0, 0x10, 0, 0x18, 0];
        let error = RestoreStats::parse("x", &stats(&without_time)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "x: the entry at offset 8 has no restore_stats_entry.restore_time"
        );
    }

    #[test]
    fn the_required_fields_are_those_of_the_proto() {
        protos_require("stats.proto", "dump_stats_entry", DUMP_REQUIRED);
        protos_require("stats.proto", "restore_stats_entry", RESTORE_REQUIRED);
        protos_require("stats.proto", "stats_entry", &[]);
    }

    #[test]
    fn the_longest_time_is_exact() {
        let longest = [
            0x12, 12, 8, 0, 0x10, 0, 0x18, 0, 0x20, 0xff, 0xff, 0xff, 0xff, 0x0f,
        ];
        let stats = RestoreStats::parse("x", &stats(&longest)).unwrap();
        assert_eq!(stats.restore_time.as_micros(), u32::MAX.into());
        assert_eq!(stats.pages_restored, None);
        let json = serde_json::to_value(&stats).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "forkingTimeMicros": 0,
                "restoreTimeMicros": u32::MAX,
                "pagesCompared": 0,
                "pagesSkippedCow": 0,
                "pagesRestored": null,
            })
        );
    }

    #[test]
    fn json_names_carry_the_unit() {
        let stats = DumpStats::parse("stats-dump", DUMP_421).unwrap();
        let json = serde_json::to_value(&stats).unwrap();
        assert_eq!(json["frozenTimeMicros"], 101_787);
        assert_eq!(json["irmapResolveMicros"], 0);
        assert_eq!(json["pagesWritten"], 2874);
        let stats = DumpStats {
            irmap_resolve: None,
            ..stats
        };
        assert!(serde_json::to_value(&stats).unwrap()["irmapResolveMicros"].is_null());
    }

    proptest! {
        #[test]
        fn damage_is_only_accepted_within_the_entry(bytes in damaged(DUMP_421)) {
            if DumpStats::parse("x", &bytes).is_ok() {
                prop_assert_eq!(&bytes[..8], &DUMP_421[..8]);
                prop_assert_eq!(bytes[8..12].to_vec(), (bytes.len() as u32 - 12).to_le_bytes());
            }
        }

        #[test]
        fn every_cut_is_a_truncation(len in 0..DUMP_421.len(), restore_len in 0..RESTORE_421.len()) {
            let dump = DumpStats::parse("x", &DUMP_421[..len]);
            prop_assert!(matches!(dump, Err(ImageError::Truncated { .. })), "{:?}", dump);
            let restore = RestoreStats::parse("x", &RESTORE_421[..restore_len]);
            prop_assert!(matches!(restore, Err(ImageError::Truncated { .. })), "{:?}", restore);
        }

        #[test]
        fn any_message_is_survived(message in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = stats(&message);
            let dump = DumpStats::parse("x", &bytes);
            let restore = RestoreStats::parse("x", &bytes);
            for error in [dump.err(), restore.err()].into_iter().flatten() {
                let expected =
                    matches!(error, ImageError::Malformed { .. } | ImageError::MissingField { .. });
                prop_assert!(expected, "{}", error);
            }
        }
    }
}
