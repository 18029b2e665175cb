//! Reading a log of any size in bounded memory.

use std::collections::VecDeque;
use std::io::{self, BufRead};

use super::catalogue;
use super::filter::{self, Class};
use super::line::{Header, Level, LogLine};
use super::pattern::capture;
use super::{AROUND, MAX_ERRORS, MAX_LINE, MAX_WARNINGS, Operation, TAIL};

/// Candidates, and telling messages, whose neighbours are kept.
const MAX_SURROUNDED: usize = 32;
/// How many harmless errors and consequences are kept, of each.
const MAX_SIDE: usize = 64;
/// What CRIU writes when it is done.
const SUCCESS: &[&str] = &[
    "Dumping finished successfully",
    "Pre-dumping finished successfully",
    "Restore finished successfully. Tasks resumed.",
    "Restore finished successfully. Resuming tasks.",
];

/// What is kept of a log: the errors with what stands around them, the first warnings, and the end.
///
/// Logs of level 4 reach hundreds of megabytes. Reading one takes a few MiB at most, whatever it
/// holds: lines are cut at [`MAX_LINE`] bytes, and of each kind only so many are kept
/// ([`MAX_ERRORS`], [`MAX_WARNINGS`], [`TAIL`], [`AROUND`]). The counts are of the whole log.
#[derive(Clone, Debug, Default)]
pub struct LogDigest {
    /// Errors, telling messages and neighbours of errors, by rising number.
    kept: Vec<LogLine>,
    warnings: Vec<LogLine>,
    tail: Vec<LogLine>,
    lines: u64,
    errors: u64,
    warning_count: u64,
    criu_version: Option<String>,
    success: Option<u64>,
    last_error: u64,
    clues: Clues,
}

impl LogDigest {
    /// Reads a log to its end.
    ///
    /// # Errors
    ///
    /// Only what the reader reports; a read that was interrupted is tried again.
    pub fn read(mut reader: impl BufRead) -> io::Result<Self> {
        let mut builder = Builder::default();
        let mut line = Vec::with_capacity(256);
        let mut cut = false;
        loop {
            let chunk = match reader.fill_buf() {
                Ok(chunk) => chunk,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            if chunk.is_empty() {
                break;
            }
            let end = chunk.iter().position(|b| *b == b'\n');
            let part = &chunk[..end.unwrap_or(chunk.len())];
            let room = MAX_LINE - line.len();
            line.extend_from_slice(&part[..part.len().min(room)]);
            cut |= part.len() > room;
            let used = part.len() + usize::from(end.is_some());
            reader.consume(used);
            if end.is_some() {
                builder.line(&line, cut);
                line.clear();
                cut = false;
            }
        }
        if !line.is_empty() {
            builder.line(&line, cut);
        }
        Ok(builder.finish())
    }

    /// Digests what is in memory already: captured output, a message.
    pub fn from_bytes(mut bytes: &[u8]) -> Self {
        // A slice does not fail to be read.
        Self::read(&mut bytes).unwrap_or_default()
    }

    /// Lines in the log.
    pub fn line_count(&self) -> u64 {
        self.lines
    }

    /// Error lines in the log, harmless ones included.
    pub fn error_count(&self) -> u64 {
        self.errors
    }

    /// Warning lines in the log.
    pub fn warning_count(&self) -> u64 {
        self.warning_count
    }

    /// The error lines that were kept, in order.
    pub fn errors(&self) -> impl Iterator<Item = &LogLine> {
        self.kept.iter().filter(|line| line.level == Level::Error)
    }

    /// The error lines that may be the cause of a failure, in order: neither harmless nor a
    /// consequence of another. There are none in a log that [reports
    /// success](Self::reports_success).
    pub fn candidates(&self) -> impl Iterator<Item = &LogLine> {
        self.errors_of(Class::Candidate)
    }

    pub(super) fn errors_of(&self, class: Class) -> impl Iterator<Item = &LogLine> {
        let harmless = self.reports_success();
        self.errors()
            .filter(move |line| !harmless && filter::class(&line.text) == class)
    }

    /// The first warnings.
    pub fn warnings(&self) -> &[LogLine] {
        &self.warnings
    }

    /// The last lines.
    pub fn tail(&self) -> &[LogLine] {
        &self.tail
    }

    /// The lines before and after one, itself left out, as far as they were kept: [`AROUND`] each
    /// way around the first candidates and around other lines that the catalogue knows.
    pub fn around(&self, number: u64) -> impl Iterator<Item = &LogLine> {
        let reach = AROUND as u64;
        self.kept
            .iter()
            .filter(move |line| line.number != number && line.number.abs_diff(number) <= reach)
    }

    /// Untagged lines and warnings that the catalogue knows, in order.
    pub(super) fn hints(&self) -> impl Iterator<Item = &LogLine> {
        let harmless = self.reports_success();
        let mut lines: Vec<&LogLine> = self
            .warnings
            .iter()
            .chain(self.kept.iter().filter(|line| line.level == Level::Message))
            .filter(|_| !harmless)
            .collect();
        lines.sort_by_key(|line| line.number);
        lines.into_iter()
    }

    /// The untagged lines that were kept, in order.
    pub(super) fn messages(&self) -> impl Iterator<Item = &LogLine> {
        self.tail.iter().filter(|line| line.level == Level::Message)
    }

    /// The version that CRIU wrote at the head of the log.
    pub fn criu_version(&self) -> Option<&str> {
        self.criu_version.as_deref()
    }

    /// Whether the log says that the operation succeeded, and no error follows. What it holds of
    /// errors did no harm then.
    pub fn reports_success(&self) -> bool {
        self.success
            .is_some_and(|success| success > self.last_error)
    }

    /// Whether anything in it shows that CRIU wrote it.
    pub fn is_of_criu(&self) -> bool {
        self.clues.criu
    }

    /// What CRIU was doing, as far as the log shows it.
    pub fn operation(&self) -> Operation {
        self.clues.operation()
    }
}

/// Signs of what a log is about.
#[derive(Clone, Copy, Debug, Default)]
struct Clues {
    criu: bool,
    pre_dump: bool,
    dump: bool,
    restore: bool,
    check: bool,
    page_server: bool,
    /// Seen in restores, and in dumps with a parent.
    maybe_restore: bool,
}

impl Clues {
    fn operation(self) -> Operation {
        let marks = [
            (self.pre_dump, Operation::PreDump),
            (self.restore, Operation::Restore),
            (self.dump, Operation::Dump),
            (self.check, Operation::Check),
            (self.page_server, Operation::PageServer),
            (self.maybe_restore, Operation::Restore),
        ];
        marks
            .into_iter()
            .find(|(seen, _)| *seen)
            .map_or(Operation::Other, |(_, operation)| operation)
    }

    fn note(&mut self, header: &Header<'_>) {
        if let Some((file, _)) = header.place {
            self.criu = true;
            self.restore |= header.task.is_some()
                || file.ends_with(b"cr-restore.c")
                || file.ends_with(b"pie/restorer.c");
            self.dump |= file.ends_with(b"cr-dump.c") || file.ends_with(b"pie/parasite.c");
            self.pre_dump |= header.text.starts_with(b"Pre-dumping FAILED");
            return;
        }
        if header.time.is_none() {
            return;
        }
        let begins = |start: &str| header.text.starts_with(start.as_bytes());
        if begins("CRIU run id = ") || begins("Version: ") {
            self.criu = true;
        } else if begins("Enforcing memory tracking for pre-dump")
            || begins("Pre-dumping tasks' memory")
        {
            self.pre_dump = true;
        } else if begins("Dumping processes (pid: ") || begins("Seized task ") {
            self.dump = true;
        } else if begins("Reading image tree")
            || begins("Dump CRIU run id = ")
            || begins("Running pre-restore scripts")
        {
            self.restore = true;
        } else if begins("Starting page server") {
            self.page_server = true;
        } else if begins("Eventfd fdinfo works OK") {
            self.check = true;
        } else if begins("No inventory.img image") {
            self.maybe_restore = true;
        }
    }
}

/// Whether a line is kept, and with what.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    No,
    Alone,
    Surrounded,
}

impl Keep {
    fn within(count: &mut usize, most: usize) -> Self {
        *count += 1;
        if *count <= most {
            Keep::Alone
        } else {
            Keep::No
        }
    }
}

#[derive(Default)]
struct Builder {
    digest: LogDigest,
    /// The last lines as they came; the buffers are used again.
    recent: VecDeque<(u64, bool, Vec<u8>)>,
    candidates: usize,
    of_tasks: usize,
    consequences: usize,
    noise: usize,
    messages: usize,
    /// Lines after the last candidate that are still to be kept.
    after: usize,
}

impl Builder {
    fn line(&mut self, raw: &[u8], cut: bool) {
        self.digest.lines += 1;
        let number = self.digest.lines;
        let header = Header::parse(raw);
        self.digest.clues.note(&header);
        let keep = match header.level {
            Level::Error => {
                self.digest.last_error = number;
                self.error(&header)
            }
            Level::Warning => self.warning(&header, number, cut),
            Level::Message => self.message(&header, number),
        };
        if keep == Keep::Surrounded {
            self.keep_recent();
        }
        if keep != Keep::No || self.after > 0 {
            self.digest.kept.push(header.into_line(number, cut));
        }
        self.after = if keep == Keep::Surrounded {
            AROUND
        } else {
            self.after.saturating_sub(1)
        };
        self.remember(number, cut, raw);
    }

    fn error(&mut self, header: &Header<'_>) -> Keep {
        self.digest.errors += 1;
        match filter::class(&String::from_utf8_lossy(header.text)) {
            Class::Consequence => Keep::within(&mut self.consequences, MAX_SIDE),
            Class::Noise => Keep::within(&mut self.noise, MAX_SIDE),
            Class::Candidate => {
                // In a restore the tasks' own errors count for more and may come late: they have a
                // share of their own.
                let early = if header.task.is_some() || header.pie.is_some() {
                    self.of_tasks += 1;
                    self.of_tasks <= MAX_SURROUNDED
                } else {
                    false
                };
                self.candidates += 1;
                if early || self.candidates <= MAX_SURROUNDED {
                    Keep::Surrounded
                } else if self.candidates <= MAX_ERRORS {
                    Keep::Alone
                } else {
                    Keep::No
                }
            }
        }
    }

    fn warning(&mut self, header: &Header<'_>, number: u64, cut: bool) -> Keep {
        self.digest.warning_count += 1;
        if self.digest.warnings.len() >= MAX_WARNINGS {
            return Keep::No;
        }
        let line = header.into_line(number, cut);
        let telling = catalogue::tells(&line);
        self.digest.warnings.push(line);
        if telling { Keep::Surrounded } else { Keep::No }
    }

    fn message(&mut self, header: &Header<'_>, number: u64) -> Keep {
        let Ok(text) = std::str::from_utf8(header.text) else {
            return Keep::No;
        };
        if SUCCESS.contains(&text) {
            self.digest.success = Some(number);
        } else if let Some(version) = text.strip_prefix("Version: ")
            && self.digest.criu_version.is_none()
        {
            let version = version.split(" (").next().unwrap_or(version);
            self.digest.criu_version = Some(version.to_owned());
        }
        // A pattern that begins with a hole would have to be tried on every line: CRIU's own lines
        // carry a time, what other programs wrote into the log does not.
        let telling = catalogue::message_signs().iter().any(|(start, pattern)| {
            text.starts_with(start)
                && (!start.is_empty() || header.time.is_none())
                && capture(pattern, text).is_some()
        });
        self.messages += usize::from(telling);
        if telling && self.messages <= MAX_SURROUNDED {
            Keep::Surrounded
        } else {
            Keep::No
        }
    }

    fn keep_recent(&mut self) {
        let from = self.recent.len().saturating_sub(AROUND);
        for (number, cut, raw) in self.recent.range(from..) {
            // Some of them may be kept already; never more than a few at the end.
            let at = self
                .digest
                .kept
                .iter()
                .rposition(|line| line.number <= *number)
                .map_or(0, |before| before + 1);
            let there = at
                .checked_sub(1)
                .and_then(|before| self.digest.kept.get(before));
            if there.is_none_or(|line| line.number != *number) {
                self.digest
                    .kept
                    .insert(at, Header::parse(raw).into_line(*number, *cut));
            }
        }
    }

    fn remember(&mut self, number: u64, cut: bool, raw: &[u8]) {
        let mut buffer = if self.recent.len() == TAIL {
            self.recent
                .pop_front()
                .map_or_else(Vec::new, |(_, _, buffer)| buffer)
        } else {
            Vec::new()
        };
        buffer.clear();
        buffer.extend_from_slice(raw);
        self.recent.push_back((number, cut, buffer));
    }

    fn finish(mut self) -> LogDigest {
        self.digest.tail = self
            .recent
            .iter()
            .map(|(number, cut, raw)| Header::parse(raw).into_line(*number, *cut))
            .collect();
        self.digest
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numbers<'a>(lines: impl Iterator<Item = &'a LogLine>) -> Vec<u64> {
        lines.map(|line| line.number).collect()
    }

    #[test]
    fn keeps_neighbours_of_candidates_and_the_end() {
        let mut log = String::from("(00.000000) Version: 4.2.1 (gitid 0)\n");
        for n in 2..=100 {
            match n {
                30 => log.push_str("(00.030000) Error (criu/util.c:1): rlimit: Can't setup RLIMIT_NOFILE for self: EPERM\n"),
                50 => log.push_str("(00.050000) Error (criu/files.c:1): something new\n"),
                60 => log.push_str("(00.060000) Warn  (criu/files.c:2): odd\n"),
                _ => log.push_str(&format!("(00.{n:06}) line\n")),
            }
        }
        let digest = LogDigest::from_bytes(log.as_bytes());
        assert_eq!(digest.line_count(), 100);
        assert_eq!((digest.error_count(), digest.warning_count()), (2, 1));
        assert_eq!(numbers(digest.errors()), [30, 50]);
        assert_eq!(numbers(digest.candidates()), [50]);
        assert_eq!(
            numbers(digest.around(50)),
            [45, 46, 47, 48, 49, 51, 52, 53, 54, 55]
        );
        assert_eq!(
            numbers(digest.tail().iter()),
            (81..=100).collect::<Vec<_>>()
        );
        assert_eq!(digest.criu_version(), Some("4.2.1"));
    }

    #[test]
    fn a_long_log_costs_little() {
        struct Endless(u64);
        impl io::Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let line = b"(00.000001) Error (criu/x.c:1): no two errors are enough here, and this line is repeated\n";
                let mut filled = 0;
                while filled + line.len() <= buffer.len() && self.0 > 0 {
                    buffer[filled..filled + line.len()].copy_from_slice(line);
                    filled += line.len();
                    self.0 -= 1;
                }
                Ok(filled)
            }
        }
        let digest =
            LogDigest::read(io::BufReader::with_capacity(1 << 16, Endless(20_000))).unwrap();
        assert_eq!(digest.error_count(), 20_000);
        assert_eq!(digest.candidates().count(), MAX_ERRORS);
        // The kept lines are the first ones and what follows the last of those with neighbours.
        assert!(digest.kept.len() <= MAX_ERRORS + 2 * AROUND);
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let mut log = vec![b'x'; 3 * MAX_LINE];
        log.extend_from_slice(b"\nError (criu/a.c:1): short\n");
        let digest = LogDigest::from_bytes(&log);
        assert_eq!(digest.line_count(), 2);
        assert!(digest.tail()[0].cut && digest.tail()[0].text.len() == MAX_LINE);
        assert!(!digest.tail()[1].cut);
    }

    #[test]
    fn late_errors_of_tasks_have_their_own_share() {
        let mut log = "Error (criu/a.c:1): early\n".repeat(MAX_ERRORS + 50);
        log.push_str("(00.1)     42: Error (criu/files.c:9): late\n");
        let digest = LogDigest::from_bytes(log.as_bytes());
        assert_eq!(
            digest
                .candidates()
                .filter(|line| line.is_of_a_task())
                .count(),
            1
        );
    }

    #[test]
    fn errors_of_a_success_are_no_candidates() {
        let log = "(00.1) Error (criu/a.c:1): odd\n(00.2) Dumping finished successfully\n";
        let digest = LogDigest::from_bytes(log.as_bytes());
        assert!(digest.reports_success());
        assert_eq!(digest.candidates().count(), 0);
        assert_eq!(digest.errors().count(), 1);
        let digest =
            LogDigest::from_bytes(format!("{log}(00.3) Error (criu/a.c:1): too late\n").as_bytes());
        assert!(!digest.reports_success());
        assert_eq!(digest.candidates().count(), 2);
    }

    #[test]
    fn tells_what_it_is_a_log_of() {
        for (log, operation) in [
            (
                "(00.1) Dumping processes (pid: 1 comm: sh)\n",
                Operation::Dump,
            ),
            (
                "(00.1) Enforcing memory tracking for pre-dump.\n(00.2) Seized task 7, state 1\n",
                Operation::PreDump,
            ),
            ("(00.1) Reading image tree\n", Operation::Restore),
            ("Error (criu/cr-restore.c:1): x\n", Operation::Restore),
            (
                "(00.1)     17: Error (criu/files.c:1): x\n",
                Operation::Restore,
            ),
            (
                "(00.1) Starting page server on port 1\n",
                Operation::PageServer,
            ),
            ("(00.1) No inventory.img image\n", Operation::Restore),
            (
                "(00.1) No inventory.img image\n(00.2) Seized task 7, state 1\n",
                Operation::Dump,
            ),
            ("hello\n", Operation::Other),
        ] {
            assert_eq!(
                LogDigest::from_bytes(log.as_bytes()).operation(),
                operation,
                "{log}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces(bytes in proptest::collection::vec(any::<u8>(), 0..2000), piece in 1usize..64) {
            let whole = LogDigest::from_bytes(&bytes);
            let pieces = LogDigest::read(io::BufReader::with_capacity(piece, bytes.as_slice())).unwrap();
            prop_assert_eq!(whole.line_count(), pieces.line_count());
            prop_assert_eq!(whole.tail(), pieces.tail());
            prop_assert!(whole.kept.is_sorted_by_key(|line| line.number));
        }

        #[test]
        fn kept_lines_are_numbered_once(kinds in proptest::collection::vec(0u8..5, 0..400)) {
            let mut log = String::new();
            for kind in kinds {
                log.push_str(match kind {
                    0 => "(00.1) Error (criu/a.c:1): one\n",
                    1 => "(00.1)     42: Error (criu/a.c:1): two\n",
                    2 => "(00.1) Warn  (criu/a.c:1): three\n",
                    3 => "(00.1) Error (criu/a.c:1): Dumping FAILED.\n",
                    _ => "(00.1) four\n",
                });
            }
            let digest = LogDigest::from_bytes(log.as_bytes());
            prop_assert!(digest.kept.windows(2).all(|pair| pair[0].number < pair[1].number));
            for candidate in digest.candidates().take(MAX_SURROUNDED) {
                let around = digest.around(candidate.number).count() as u64;
                let expected = (candidate.number - 1).min(5) + (digest.line_count() - candidate.number).min(5);
                prop_assert_eq!(around, expected);
            }
        }
    }
}
