//! From what CRIU leaves behind to what went wrong and what to do about it.
//!
//! CRIU says why it failed only in text: in the log of the request, on standard error (whatever
//! happened before the log was opened), on standard output (missing capabilities), in `cr_errmsg`
//! (the first error logged, which may be harmless) and in `cr_errno` (four values at most). This
//! module owns the reading of that text; it depends on nothing else of the crate, does no I/O but
//! [`explain`], and runs no program.
//!
//! 1. [`LogDigest`] reads a log of any size in bounded memory, [`LogLine`] is one line taken apart.
//! 2. [`examine`] puts the evidence of one operation together: harmless errors and mere
//!    consequences are left out, of the rest the first counts — in a restore the first from a task
//!    — from the log, then standard error, then standard output, with `cr_errmsg` and `cr_errno` as
//!    the last resort.
//! 3. The [`catalogue`] knows causes by their messages; each has a stable code, a sentence and a
//!    remedy. A line that it knows beats an earlier one that it does not, as CRIU also logs errors
//!    that it then gets around.
//! 4. [`explain`] does all of this for a log file or a directory that holds one.
//!
//! ```
//! # use criu_client::diagnosis::{examine, Examination, LogDigest, Operation};
//! let log = b"(00.036538) Error (criu/files-reg.c:1790): Can't lookup mount=24 for fd=1 path=/tmp/out\n\
//!             (00.036854) Error (criu/cr-dump.c:1975): Dumping FAILED.\n";
//! let findings = examine(Examination {
//!     operation: Operation::Dump,
//!     log: Some(LogDigest::from_bytes(log)),
//!     ..Examination::default()
//! });
//! assert_eq!(findings.diagnosis.unwrap().code, "stdio-outside-container");
//! ```

mod catalogue;
mod examine;
mod explain;
mod filter;
mod line;
mod log;
mod pattern;
#[cfg(test)]
mod tests;

use serde::Serialize;

pub use catalogue::{Area, Evidence, KnownCause, Sample, catalogue, known_cause};
pub use examine::{CausalLine, Diagnosis, Examination, Findings, Source, diagnose, examine};
pub use explain::{ExplainError, explain};
pub use line::{Level, LogLine, Place};
pub use log::LogDigest;

/// Bytes of a line that are kept; CRIU's own lines are shorter, those of programs it runs may not
/// be.
pub const MAX_LINE: usize = 4096;
/// Errors that are kept of those that may be a cause.
pub const MAX_ERRORS: usize = 256;
/// Warnings that are kept; all are counted.
pub const MAX_WARNINGS: usize = 64;
/// Lines that are kept of the end of a log.
pub const TAIL: usize = 20;
/// Lines that are kept before and after a possible cause.
pub const AROUND: usize = 5;

/// What CRIU was asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Operation {
    /// A checkpoint.
    Dump,
    /// A memory-only checkpoint before the real one.
    PreDump,
    /// A restore.
    Restore,
    /// A check of the kernel's features.
    Check,
    /// Receiving pages.
    PageServer,
    /// Anything else, or not known.
    #[default]
    Other,
}
