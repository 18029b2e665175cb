//! The known causes, as data.
//!
//! One file per area. Every entry carries at least one line as evidence ([`Sample`]); a test runs
//! each of them through the whole of [`examine`](super::examine()) and demands the entry's own
//! code.
//!
//! A message is looked up in all entries. Where several fit, the one with the most literal text in
//! its pattern wins, so `anon_inode:[perf_event]` is told from descriptors of unknown kind without
//! an order of entries to keep.

mod criu;
mod environment;
mod files;
mod images;
mod mounts;
mod network;
mod processes;
mod sockets;
mod transfer;

use std::sync::OnceLock;

use serde::Serialize;

use super::Operation;
use super::line::{Level, LogLine};
use super::pattern::{Captures, Piece, Pieces, capture};

/// What a cause has to do with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Area {
    /// Open files, mapped files, locks, watches.
    Files,
    /// Devices and descriptors without a file.
    Devices,
    /// Unix, TCP, UDP, netlink and other sockets.
    Sockets,
    /// Network devices and the network lock.
    Network,
    /// Mounts and root directories.
    Mounts,
    /// Namespaces other than mount and network.
    Namespaces,
    /// Tasks, their pids and sessions.
    Processes,
    /// Terminals.
    Terminals,
    /// Memory and its tracking.
    Memory,
    /// Image files and directories.
    Images,
    /// Control groups and the freezer.
    Cgroups,
    /// Capabilities and security modules.
    Privileges,
    /// What the running kernel offers.
    Kernel,
    /// The processor.
    Cpu,
    /// Page servers, lazy pages, TLS.
    Transfer,
    /// The request's own options.
    Options,
    /// Callbacks and action scripts.
    Hooks,
    /// CRIU itself.
    Criu,
    /// What this CRIU was built with.
    Build,
}

/// How much a match says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// Taken from consequences, when there is nothing else.
    LastResort,
    /// A message that several causes lead to: taken if nothing certain is there.
    General,
    /// The cause.
    Certain,
}

/// One form of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sign {
    level: Level,
    pattern: &'static str,
}

/// Where a sample comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "source")]
#[non_exhaustive]
pub enum Evidence {
    /// Written by this CRIU version when the failure was provoked.
    Live(&'static str),
    /// Reported by others, where the name says; not provoked here.
    Reported(&'static str),
    /// A message of this CRIU version's program, in the form in which it stands there (with
    /// `printf` directives); the failure needs a system that was not at hand.
    MessageOfBinary(&'static str),
}

/// A line that stands for a cause.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Sample {
    /// The whole line, or the message alone if it is a
    /// [`MessageOfBinary`](Evidence::MessageOfBinary).
    pub line: &'static str,
    /// Where it comes from.
    pub evidence: Evidence,
}

/// A cause that the catalogue knows.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct KnownCause {
    /// Stable name, in kebab case: for programs to act on.
    pub code: &'static str,
    /// What it has to do with.
    pub area: Area,
    /// What is wrong, in one sentence; `{name}` and `{name|words}` are filled from the message.
    pub summary: &'static str,
    /// What to do, naming options by their long form on CRIU's command line.
    pub remedy: &'static str,
    /// Operations in which it appears; none means any.
    pub operations: &'static [Operation],
    /// Lines that were seen.
    pub samples: &'static [Sample],
    #[serde(skip)]
    rank: Rank,
    #[serde(skip)]
    signs: &'static [Sign],
}

impl KnownCause {
    /// The CRIU versions that wrote one of the samples, or hold its message.
    pub fn seen_on(&self) -> Vec<&'static str> {
        let mut versions: Vec<_> = self
            .samples
            .iter()
            .filter_map(|sample| match sample.evidence {
                Evidence::Live(version) | Evidence::MessageOfBinary(version) => Some(version),
                Evidence::Reported(_) => None,
            })
            .collect();
        versions.sort_unstable();
        versions.dedup();
        versions
    }

    const fn general(mut self) -> Self {
        self.rank = Rank::General;
        self
    }

    const fn last_resort(mut self) -> Self {
        self.rank = Rank::LastResort;
        self
    }
}

/// A cause found in a line.
pub(super) struct Match<'t> {
    pub(super) cause: &'static KnownCause,
    pub(super) rank: Rank,
    pub(super) captures: Captures<'static, 't>,
}

/// All causes.
pub fn catalogue() -> impl Iterator<Item = &'static KnownCause> {
    [
        files::CAUSES,
        sockets::CAUSES,
        network::CAUSES,
        mounts::CAUSES,
        processes::CAUSES,
        images::CAUSES,
        environment::CAUSES,
        transfer::CAUSES,
        criu::CAUSES,
    ]
    .into_iter()
    .flatten()
}

/// The cause of that code.
pub fn known_cause(code: &str) -> Option<&'static KnownCause> {
    catalogue().find(|cause| cause.code == code)
}

/// The best match for a line: certain before general, then the pattern with the most literal text.
/// A cause that does not belong to the operation counts as general.
pub(super) fn look_up(operation: Operation, line: &LogLine) -> Option<Match<'_>> {
    let mut best: Option<((Rank, usize), Match<'_>)> = None;
    for cause in catalogue() {
        let at_home = operation == Operation::Other
            || cause.operations.is_empty()
            || cause.operations.contains(&operation);
        let rank = if at_home {
            cause.rank
        } else {
            cause.rank.min(Rank::General)
        };
        for sign in cause.signs.iter().filter(|sign| sign.level == line.level) {
            let weight = (rank, literal_length(sign.pattern));
            if best
                .as_ref()
                .is_some_and(|(standing, _)| *standing >= weight)
            {
                continue;
            }
            if let Some(captures) = capture(sign.pattern, &line.text) {
                best = Some((
                    weight,
                    Match {
                        cause,
                        rank,
                        captures,
                    },
                ));
            }
        }
    }
    best.map(|(_, found)| found)
}

/// Whether the catalogue knows a line that is no error.
pub(super) fn tells(line: &LogLine) -> bool {
    look_up(Operation::Other, line).is_some()
}

fn literal_length(pattern: &str) -> usize {
    Pieces::of(pattern)
        .map(|piece| match piece {
            Piece::Literal(literal) => literal.len(),
            // Being a number is worth something against being anything.
            Piece::Number(_) => 1,
            Piece::Any | Piece::Text(_) => 0,
        })
        .sum()
}

/// The patterns of untagged lines, with the literal each begins with.
pub(super) fn message_signs() -> &'static [(&'static str, &'static str)] {
    static SIGNS: OnceLock<Vec<(&'static str, &'static str)>> = OnceLock::new();
    SIGNS.get_or_init(|| {
        catalogue()
            .flat_map(|cause| cause.signs)
            .filter(|sign| sign.level == Level::Message)
            .map(|sign| match Pieces::of(sign.pattern).next() {
                Some(Piece::Literal(start)) => (start, sign.pattern),
                _ => ("", sign.pattern),
            })
            .collect()
    })
}

/// One entry: code, area, operations, summary, remedy, signs, samples.
const fn cause(
    code: &'static str,
    area: Area,
    operations: &'static [Operation],
    summary: &'static str,
    remedy: &'static str,
    signs: &'static [Sign],
    samples: &'static [Sample],
) -> KnownCause {
    KnownCause {
        code,
        area,
        summary,
        remedy,
        operations,
        samples,
        rank: Rank::Certain,
        signs,
    }
}

const DUMP: &[Operation] = &[Operation::Dump, Operation::PreDump];
const RESTORE: &[Operation] = &[Operation::Restore];
const ANY: &[Operation] = &[];

const fn error(pattern: &'static str) -> Sign {
    Sign {
        level: Level::Error,
        pattern,
    }
}

const fn warning(pattern: &'static str) -> Sign {
    Sign {
        level: Level::Warning,
        pattern,
    }
}

const fn message(pattern: &'static str) -> Sign {
    Sign {
        level: Level::Message,
        pattern,
    }
}

const fn live(line: &'static str) -> Sample {
    live_on("4.2.1", line)
}

const fn live_on(version: &'static str, line: &'static str) -> Sample {
    Sample {
        line,
        evidence: Evidence::Live(version),
    }
}

const fn reported(report: &'static str, line: &'static str) -> Sample {
    Sample {
        line,
        evidence: Evidence::Reported(report),
    }
}

const fn of_binary(message: &'static str) -> Sample {
    of_binary_on("4.2.1", message)
}

const fn of_binary_on(version: &'static str, message: &'static str) -> Sample {
    Sample {
        line: message,
        evidence: Evidence::MessageOfBinary(version),
    }
}

#[cfg(test)]
mod tests;
