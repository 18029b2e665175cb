//! What a successful operation tells.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::diagnosis::LogLine;
use crate::error::TaskState;
use crate::image::{DumpStats, RestoreStats};
use crate::notify::Script;
use crate::version::Version;

/// Where the time of an operation went: one stretch before each callback, and the last until the answer.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Timings {
    /// From the request to the answer.
    #[serde(with = "micros", rename = "totalMicros")]
    pub total: Duration,
    /// The stretches in order.
    pub phases: Vec<Phase>,
}

/// One stretch of CRIU's work and the callback that ended it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Phase {
    /// The callback that came at the end of it; `None` for the last, which ends with the answer.
    pub until: Option<Script>,
    /// How long CRIU worked.
    #[serde(with = "micros", rename = "criuMicros")]
    pub criu: Duration,
    /// How long CRIU then waited for the callback's reply.
    #[serde(with = "micros", rename = "hookMicros")]
    pub hook: Duration,
}

/// A refusal that came too late for CRIU to heed; the operation went on.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct IgnoredRefusal {
    /// The callback.
    pub script: Script,
    /// What the hook did and said.
    pub reason: String,
}

/// What every report has.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Details {
    /// The CRIU that did it.
    pub criu_version: Version,
    /// Where the time went.
    pub timings: Timings,
    /// CRIU's log of this request; `None` when it wrote none (or into a place of the caller's own choice).
    pub log: Option<PathBuf>,
    /// Warnings in the log, at most 64 of them.
    pub warnings: Vec<LogLine>,
    /// Refusals that CRIU ignores by design.
    pub ignored_refusals: Vec<IgnoredRefusal>,
}

/// A finished dump.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct DumpReport {
    /// The root of the dumped tree.
    pub pid: i32,
    /// `Absent` after a dump that kills, `Running` or `Stopped` after one that leaves the tasks so.
    pub tasks: TaskState,
    /// True only in a process that has dumped itself and reads this after it was restored.
    pub restored: bool,
    /// CRIU's own figures.
    pub stats: Option<DumpStats>,
    /// Version, timings, log, warnings.
    #[serde(flatten)]
    pub details: Details,
}

/// A finished pre-dump; the tasks run on.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct PreDumpReport {
    /// The root of the tree.
    pub pid: i32,
    /// CRIU's own figures.
    pub stats: Option<DumpStats>,
    /// Version, timings, log, warnings.
    #[serde(flatten)]
    pub details: Details,
}

/// A finished restore; the tasks run (or are stopped, if that was asked for).
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct RestoreReport {
    /// The restored root task, in CRIU's pid namespace.
    pub pid: i32,
    /// CRIU's own figures.
    pub stats: Option<RestoreStats>,
    /// Version, timings, log, warnings.
    #[serde(flatten)]
    pub details: Details,
}

mod micros {
    use std::time::Duration;

    use serde::Serializer;

    pub(super) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
    }
}
