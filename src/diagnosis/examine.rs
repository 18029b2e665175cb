//! From the evidence of one operation to its cause.

use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::catalogue::{Area, Match, Rank, known_cause, look_up};
use super::filter::{self, Class};
use super::line::{Level, LogLine};
use super::log::LogDigest;
use super::pattern::fill;
use super::{AROUND, Operation};

/// Errors that are listed in [`Findings`].
const MAX_LISTED: usize = 32;

/// What an operation of CRIU left behind.
///
/// Everything is optional: what is known is given. A log must be of this very request — CRIU leaves
/// an older log of the same name in place if it fails before it opens its own.
#[derive(Clone, Debug, Default)]
pub struct Examination<'a> {
    /// What was asked for; if it is [`Other`](Operation::Other), the log tells.
    pub operation: Operation,
    /// The request's log, read.
    pub log: Option<LogDigest>,
    /// Captured standard error.
    pub stderr: &'a [u8],
    /// Captured standard output.
    pub stdout: &'a [u8],
    /// `cr_errmsg` of the response. CRIU also sends it with success, and it may be harmless.
    pub errmsg: Option<&'a [u8]>,
    /// `cr_errno` of the response.
    pub errno: Option<i32>,
    /// The signal that killed CRIU, if one did.
    pub signal: Option<i32>,
}

/// Where a line was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Source {
    /// The request's log.
    Log,
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// `cr_errmsg` of the response.
    ErrMsg,
}

/// The line that says what went wrong.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CausalLine {
    /// Where it stands.
    pub source: Source,
    /// The line.
    #[serde(flatten)]
    pub line: LogLine,
}

/// A known cause, filled in.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Diagnosis {
    /// The cause's stable name.
    pub code: &'static str,
    /// What it has to do with.
    pub area: Area,
    /// What is wrong, in one sentence.
    pub summary: String,
    /// What to do about it.
    pub remedy: String,
    /// The line it was recognised by; none if an error number or a signal was all there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<LogLine>,
}

/// What the evidence says.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Findings {
    /// What CRIU was doing: as told, or as its log shows.
    pub operation: Operation,
    /// The version at the head of the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub criu_version: Option<String>,
    /// The log file, where it is known.
    #[serde(serialize_with = "lossy_path", skip_serializing_if = "Option::is_none")]
    pub log: Option<PathBuf>,
    /// The log reports success, with no error after it; the errors before did no harm.
    pub reports_success: bool,
    /// The cause, if it is a known one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub diagnosis: Option<Diagnosis>,
    /// The line that tells the cause, known or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<CausalLine>,
    /// The lines around the cause, itself left out.
    pub surrounding: Vec<LogLine>,
    /// The errors of the log that may be causes, the first 32, in the log's order.
    pub errors: Vec<LogLine>,
    /// All error lines of the log, harmless ones and consequences included.
    pub error_count: u64,
    /// The first warnings of the log.
    pub warnings: Vec<LogLine>,
    /// All warnings of the log.
    pub warning_count: u64,
    /// The last lines of the log.
    pub tail: Vec<LogLine>,
}

fn lossy_path<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => serializer.serialize_str(&path.to_string_lossy()),
        None => serializer.serialize_none(),
    }
}

/// Recognises the cause in a single line, if the catalogue knows it.
pub fn diagnose(operation: Operation, line: &LogLine) -> Option<Diagnosis> {
    look_up(operation, line).map(|found| filled(&found, line))
}

fn filled(found: &Match<'_>, line: &LogLine) -> Diagnosis {
    Diagnosis {
        code: found.cause.code,
        area: found.cause.area,
        summary: fill(found.cause.summary, &found.captures),
        remedy: fill(found.cause.remedy, &found.captures),
        line: Some(line.clone()),
    }
}

/// A line that may tell the cause, with the digest that holds its neighbours.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    source: Source,
    line: &'a LogLine,
    digest: &'a LogDigest,
}

impl Candidate<'_> {
    fn cause(&self) -> CausalLine {
        CausalLine {
            source: self.source,
            line: self.line.clone(),
        }
    }
}

/// What was concluded: the line, and what the catalogue says.
#[derive(Default)]
struct Verdict {
    cause: Option<CausalLine>,
    diagnosis: Option<Diagnosis>,
}

/// Puts the evidence together.
///
/// The first error that is neither harmless nor a consequence is the cause, in the order log,
/// standard error, standard output; in a restore the errors of tasks go first. An error that the
/// catalogue knows for certain goes before one that it does not know. `cr_errmsg` counts only if
/// all of that is silent, `cr_errno` and the signal only if nothing was recognised.
pub fn examine(examination: Examination<'_>) -> Findings {
    let Examination {
        operation,
        log,
        stderr,
        stdout,
        errmsg,
        errno,
        signal,
    } = examination;
    let log = log.unwrap_or_default();
    let operation = if operation == Operation::Other {
        log.operation()
    } else {
        operation
    };
    let stderr = LogDigest::from_bytes(stderr);
    let stdout = LogDigest::from_bytes(stdout);
    let digests = [
        (Source::Log, &log),
        (Source::Stderr, &stderr),
        (Source::Stdout, &stdout),
    ];

    let candidates = candidates(operation, &digests);
    let mut verdict = from_candidates(operation, &candidates, &digests);
    if verdict.cause.is_none() {
        verdict = from_the_rest(operation, &digests);
    }
    let errmsg = errmsg.map(LogDigest::from_bytes).unwrap_or_default();
    if verdict.cause.is_none() {
        verdict = from_errmsg(operation, &errmsg);
    }
    if verdict.diagnosis.is_none() {
        verdict.diagnosis = from_numbers(operation, errno, signal);
    }

    let surrounding = verdict.cause.as_ref().map_or_else(Vec::new, |cause| {
        let digest = match cause.source {
            Source::Log => &log,
            Source::Stderr => &stderr,
            Source::Stdout => &stdout,
            Source::ErrMsg => &errmsg,
        };
        digest.around(cause.line.number).cloned().collect()
    });
    Findings {
        operation,
        criu_version: log
            .criu_version()
            .or_else(|| stderr.criu_version())
            .map(str::to_owned),
        log: None,
        reports_success: log.reports_success(),
        diagnosis: verdict.diagnosis,
        cause: verdict.cause,
        surrounding,
        errors: log.candidates().take(MAX_LISTED).cloned().collect(),
        error_count: log.error_count(),
        warnings: log.warnings().to_vec(),
        warning_count: log.warning_count(),
        tail: log.tail().to_vec(),
    }
}

fn candidates<'a>(operation: Operation, digests: &[(Source, &'a LogDigest)]) -> Vec<Candidate<'a>> {
    let dumping = matches!(operation, Operation::Dump | Operation::PreDump);
    let mut all: Vec<Candidate<'a>> = Vec::new();
    for &(source, digest) in digests {
        let of_this = digest
            .candidates()
            .filter(|line| !(dumping && filter::harmless_in_dumps(&line.text)))
            .map(|line| Candidate {
                source,
                line,
                digest,
            });
        let start = all.len();
        all.extend(of_this);
        if operation == Operation::Restore {
            // A stable sort: within the two groups the log's order stays.
            all[start..].sort_by_key(|candidate| !candidate.line.is_of_a_task());
        }
    }
    all
}

fn from_candidates(
    operation: Operation,
    candidates: &[Candidate<'_>],
    digests: &[(Source, &LogDigest)],
) -> Verdict {
    let mut general: Option<Verdict> = None;
    for candidate in candidates {
        let found = look_up(operation, candidate.line);
        let certain = found
            .as_ref()
            .is_some_and(|found| found.rank == Rank::Certain);
        let verdict = |diagnosis| Verdict {
            cause: Some(candidate.cause()),
            diagnosis: Some(diagnosis),
        };
        if let Some(found) = found.filter(|found| certain || found.rank == Rank::General) {
            let diagnosis = filled(&found, candidate.line);
            if certain {
                return verdict(diagnosis);
            }
            // What CRIU or a program it ran wrote just before may be more to the point.
            if let Some(hint) = hint_before(operation, candidate) {
                return verdict(hint);
            }
            general.get_or_insert_with(|| verdict(diagnosis));
        } else if let Some(hint) = hint_before(operation, candidate) {
            return verdict(hint);
        }
    }
    // CRIU's own words on standard output or error, untagged: missing capabilities, unknown
    // options.
    if let Some(verdict) = from_hints(operation, &digests[1..], Rank::Certain) {
        return verdict;
    }
    general.unwrap_or_else(|| Verdict {
        cause: candidates.first().map(Candidate::cause),
        diagnosis: None,
    })
}

/// A telling line among those just before a candidate, the nearest first.
fn hint_before(operation: Operation, candidate: &Candidate<'_>) -> Option<Diagnosis> {
    let number = candidate.line.number;
    let before = candidate
        .digest
        .around(number)
        .filter(|line| line.number < number && line.level != Level::Error);
    let mut nearest: Vec<&LogLine> = before.collect();
    nearest.reverse();
    nearest.truncate(AROUND);
    nearest
        .into_iter()
        .find_map(|line| diagnose(operation, line))
}

fn from_hints(
    operation: Operation,
    digests: &[(Source, &LogDigest)],
    least: Rank,
) -> Option<Verdict> {
    digests.iter().find_map(|&(source, digest)| {
        digest.hints().find_map(|line| {
            let found = look_up(operation, line).filter(|found| found.rank >= least)?;
            let cause = Some(CausalLine {
                source,
                line: line.clone(),
            });
            Some(Verdict {
                cause,
                diagnosis: Some(filled(&found, line)),
            })
        })
    })
}

/// When no error may be the cause: telling warnings and messages, consequences that tell something,
/// and what standard error holds besides CRIU's own lines.
fn from_the_rest(operation: Operation, digests: &[(Source, &LogDigest)]) -> Verdict {
    if let Some(verdict) = from_hints(operation, digests, Rank::General) {
        return verdict;
    }
    for &(source, digest) in digests {
        for line in digest.errors_of(Class::Consequence) {
            if let Some(diagnosis) = diagnose(operation, line) {
                let cause = Some(CausalLine {
                    source,
                    line: line.clone(),
                });
                return Verdict {
                    cause,
                    diagnosis: Some(diagnosis),
                };
            }
        }
    }
    let stderr = digests
        .iter()
        .filter(|(source, _)| *source == Source::Stderr);
    let spoken = stderr
        .flat_map(|(_, digest)| digest.messages())
        .filter(|line| {
            let line: &LogLine = line;
            line.time.is_none() && line.pie.is_none() && !line.text.trim().is_empty()
        });
    let cause = spoken.last().map(|line| CausalLine {
        source: Source::Stderr,
        line: line.clone(),
    });
    Verdict {
        cause,
        diagnosis: None,
    }
}

fn from_errmsg(operation: Operation, errmsg: &LogDigest) -> Verdict {
    let dumping = matches!(operation, Operation::Dump | Operation::PreDump);
    let line = errmsg
        .candidates()
        .find(|line| !(dumping && filter::harmless_in_dumps(&line.text)));
    let Some(line) = line else {
        return Verdict::default();
    };
    Verdict {
        cause: Some(CausalLine {
            source: Source::ErrMsg,
            line: line.clone(),
        }),
        diagnosis: diagnose(operation, line),
    }
}

/// The four error numbers that CRIU ever sends, and the signals that a crash ends in.
fn from_numbers(
    operation: Operation,
    errno: Option<i32>,
    signal: Option<i32>,
) -> Option<Diagnosis> {
    const ESRCH: i32 = 3;
    const EEXIST: i32 = 17;
    const EBADRQC: i32 = 56;
    const ENOTSUP: i32 = 95;
    let dumping = matches!(operation, Operation::Dump | Operation::PreDump);
    let code = match errno {
        Some(ESRCH) if dumping => "root-task-not-seized",
        Some(EEXIST) if operation == Operation::Restore => "pid-in-use",
        Some(EBADRQC) => "request-refused",
        Some(ENOTSUP) => "cpuinfo-unsupported",
        _ if signal.is_some() => "criu-crashed",
        _ => return None,
    };
    let number = signal.map(|signal| signal.to_string());
    let captures: Vec<(&str, &str)> = number
        .iter()
        .map(|number| ("signal", number.as_str()))
        .collect();
    Diagnosis::by_code(code, &captures)
}

impl Diagnosis {
    /// What the catalogue says under `code`, filled in.
    pub(crate) fn by_code(code: &str, captures: &[(&str, &str)]) -> Option<Self> {
        let cause = known_cause(code)?;
        Some(Self {
            code: cause.code,
            area: cause.area,
            summary: fill(cause.summary, captures),
            remedy: fill(cause.remedy, captures),
            line: None,
        })
    }
}

impl Findings {
    /// What was found out without asking CRIU, who would have stumbled over it.
    pub(crate) fn found_before(operation: Operation, diagnosis: Option<Diagnosis>) -> Self {
        Self {
            diagnosis,
            ..examine(Examination {
                operation,
                ..Examination::default()
            })
        }
    }
}
