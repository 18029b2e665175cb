//! One line of a CRIU log.

use std::fmt::{self, Write as _};
use std::time::Duration;

use serde::{Serialize, Serializer};

/// How CRIU tagged a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Level {
    /// Tagged `Error (file:line): `.
    Error,
    /// Tagged `Warn  (file:line): `.
    Warning,
    /// No tag: what CRIU logs at levels 3 and 4, and anything that is not in CRIU's format at all.
    Message,
}

/// The place in CRIU's source that wrote a line.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Place {
    /// Source file, as CRIU was built: `criu/files-reg.c`.
    pub file: String,
    /// Line in that file; it differs between CRIU versions.
    pub line: u32,
}

/// One line of a log, taken apart.
///
/// CRIU writes `(SS.UUUUUU)  TASK: pie: PID: Error (FILE:LINE): TEXT`, where everything but the
/// text may be missing: the time comes with log level 3 and up, the task on lines of restored
/// tasks, `pie:` on lines of the code that runs inside a task. Anything else is a
/// [`Level::Message`] whose text is the whole line.
///
/// The text can hold whatever names the dumped programs chose. [`Display`](fmt::Display) writes
/// control characters escaped, so that a log can be shown on a terminal; the fields keep them as
/// they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogLine {
    /// Number of the line in its stream, from 1.
    pub number: u64,
    /// Seconds since the log began, when the line says so.
    #[serde(serialize_with = "seconds", skip_serializing_if = "Option::is_none")]
    pub time: Option<Duration>,
    /// The task being restored that wrote the line, as numbered in the images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<i32>,
    /// The task inside which CRIU's position independent code (parasite or restorer) wrote the
    /// line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pie: Option<i32>,
    /// Error, warning or plain message.
    pub level: Level,
    /// Where in CRIU the line comes from; present on errors and warnings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// The rest of the line, without line end; bytes that are not UTF-8 are replaced.
    pub text: String,
    /// The line was longer than [`MAX_LINE`](super::MAX_LINE) bytes and the rest is not here.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

fn seconds<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.serialize_f64(time.as_secs_f64()),
        None => serializer.serialize_none(),
    }
}

impl LogLine {
    /// Takes one line apart. Any bytes will do; a line end is left off.
    pub fn parse(number: u64, line: &[u8]) -> Self {
        Header::parse(line).into_line(number, false)
    }

    /// Whether the line was written on behalf of one restored task.
    pub fn is_of_a_task(&self) -> bool {
        self.task.is_some() || self.pie.is_some()
    }
}

impl fmt::Display for LogLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(time) = self.time {
            // CRIU's bracket stands at a fixed column and eats digits of the fraction from 100 s
            // on.
            let stamp = format!("({:02}.{:06}", time.as_secs(), time.subsec_micros());
            let room = stamp
                .find('.')
                .map_or(stamp.len(), |dot| stamp.len().min((dot + 1).max(10)));
            write!(f, "{}) ", &stamp[..room])?;
        }
        if let Some(task) = self.task {
            write!(f, "{task:6}: ")?;
        }
        if let Some(pie) = self.pie {
            write!(f, "pie: {pie}: ")?;
        }
        if let Some(place) = &self.place {
            let tag = match self.level {
                Level::Warning => "Warn ",
                Level::Error | Level::Message => "Error",
            };
            write!(f, "{tag} ({}:{}): ", Printable(&place.file), place.line)?;
        }
        write!(f, "{}", Printable(&self.text))?;
        if self.cut {
            f.write_str(" […]")?;
        }
        Ok(())
    }
}

/// Text of unknown origin, shown without control characters.
pub(super) struct Printable<'a>(pub(super) &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if c.is_control() && c != '\t' {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
        }
        Ok(())
    }
}

/// A line taken apart in place: nothing is copied until the line turns out to be worth keeping.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header<'a> {
    pub(super) time: Option<Duration>,
    pub(super) task: Option<i32>,
    pub(super) pie: Option<i32>,
    pub(super) level: Level,
    pub(super) place: Option<(&'a [u8], u32)>,
    pub(super) text: &'a [u8],
}

impl<'a> Header<'a> {
    pub(super) fn parse(line: &'a [u8]) -> Self {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let mut rest = line.strip_suffix(b"\r").unwrap_or(line);
        let time = take(&mut rest, timestamp);
        let task = take(&mut rest, task);
        let pie = take(&mut rest, pie);
        let tag = take(&mut rest, tag);
        Header {
            time,
            task,
            pie,
            level: tag.map_or(Level::Message, |(level, ..)| level),
            place: tag.map(|(_, file, line)| (file, line)),
            text: rest,
        }
    }

    pub(super) fn into_line(self, number: u64, cut: bool) -> LogLine {
        LogLine {
            number,
            time: self.time,
            task: self.task,
            pie: self.pie,
            level: self.level,
            place: self.place.map(|(file, line)| Place {
                file: String::from_utf8_lossy(file).into_owned(),
                line,
            }),
            text: String::from_utf8_lossy(self.text).into_owned(),
            cut,
        }
    }
}

/// What a piece of the grammar found, and what is left.
type Found<'a, T> = Option<(T, &'a [u8])>;
/// Level, file and line.
type Tag<'a> = (Level, &'a [u8], u32);

/// Runs one piece of the grammar; the input moves on only if the piece is there.
fn take<'a, T>(rest: &mut &'a [u8], piece: fn(&'a [u8]) -> Found<'a, T>) -> Option<T> {
    let (value, after) = piece(rest)?;
    *rest = after;
    Some(value)
}

fn digits(input: &[u8]) -> (&[u8], &[u8]) {
    let end = input
        .iter()
        .position(|b| !b.is_ascii_digit())
        .unwrap_or(input.len());
    input.split_at(end)
}

fn number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// `(SS.UUUUUU) `, with fewer digits of the fraction in logs longer than 100 s; old versions left
/// the blank out.
fn timestamp(input: &[u8]) -> Found<'_, Duration> {
    let (whole, rest) = digits(input.strip_prefix(b"(")?);
    let (fraction, rest) = digits(rest.strip_prefix(b".")?);
    let rest = rest.strip_prefix(b")")?;
    let rest = rest.strip_prefix(b" ").unwrap_or(rest);
    if fraction.len() > 6 {
        return None;
    }
    let seconds: u32 = number(whole)?;
    let mut micros = 0;
    for place in 0..6 {
        micros = micros * 10
            + fraction
                .get(place)
                .map_or(0, |digit| u32::from(digit - b'0'));
    }
    Some((Duration::new(seconds.into(), micros * 1000), rest))
}

/// `%6d: `. Logs that went through a mail or an issue lose blanks: a narrower number is still a
/// task in front of a tag.
fn task(input: &[u8]) -> Found<'_, i32> {
    let blanks = input.iter().take_while(|b| **b == b' ').count();
    let (pid, rest) = digits(&input[blanks..]);
    let rest = rest.strip_prefix(b": ")?;
    let width = blanks + pid.len();
    let as_criu_writes = width == 6 || (blanks == 0 && width > 6);
    if !as_criu_writes && pie(rest).is_none() && tag(rest).is_none() {
        return None;
    }
    Some((number(pid)?, rest))
}

fn pie(input: &[u8]) -> Found<'_, i32> {
    let (pid, rest) = digits(input.strip_prefix(b"pie: ")?);
    Some((number(pid)?, rest.strip_prefix(b": ")?))
}

fn tag(input: &[u8]) -> Found<'_, Tag<'_>> {
    let (level, rest) = if let Some(rest) = input.strip_prefix(b"Error (") {
        (Level::Error, rest)
    } else if let Some(rest) = input
        .strip_prefix(b"Warn  (")
        .or_else(|| input.strip_prefix(b"Warn ("))
    {
        (Level::Warning, rest)
    } else {
        return None;
    };
    let end = rest.iter().position(|b| matches!(b, b':' | b'(' | b')'))?;
    let (file, rest) = rest.split_at(end);
    let (line, rest) = digits(rest.strip_prefix(b":")?);
    let rest = rest.strip_prefix(b"):")?;
    if file.is_empty() {
        return None;
    }
    // An empty message loses its blank in editors.
    let text = if rest.is_empty() {
        rest
    } else {
        rest.strip_prefix(b" ")?
    };
    Some(((level, file, number(line)?), text))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(line: &str) -> LogLine {
        LogLine::parse(1, line.as_bytes())
    }

    #[test]
    fn a_dump_error() {
        let line = parse(
            "(00.023415) Error (criu/files-reg.c:1887): Can't lookup mount=27 for fd=1 path=/tmp/out\n",
        );
        assert_eq!(line.time, Some(Duration::from_micros(23415)));
        assert_eq!(line.level, Level::Error);
        assert_eq!(
            line.place,
            Some(Place {
                file: "criu/files-reg.c".into(),
                line: 1887
            })
        );
        assert_eq!(line.text, "Can't lookup mount=27 for fd=1 path=/tmp/out");
        assert!(!line.is_of_a_task());
    }

    #[test]
    fn lines_of_restored_tasks() {
        let line = parse(
            "(00.015823)     42: Error (criu/files-reg.c:2153): File tmp/f has bad size 5 (expect 8)",
        );
        assert_eq!((line.task, line.pie), (Some(42), None));
        let line = parse(
            "(00.015823) pie: 42: Error (criu/pie/restorer.c:1908): Unable to create a thread: -17",
        );
        assert_eq!((line.task, line.pie), (None, Some(42)));
        let line = parse("1234567: Error (criu/mount.c:1): x");
        assert_eq!(line.task, Some(1_234_567));
        let line = parse("42: Warn (criu/mount.c:1): x");
        assert_eq!((line.task, line.level), (Some(42), Level::Warning));
    }

    #[test]
    fn what_only_looks_like_a_prefix_stays_text() {
        for text in [
            "12: lo: <LOOPBACK>",
            "pie: x: y",
            "(1.2.3) x",
            "(00.1234567) x",
            "Error: no place",
            "Error (): x",
            "Error (a.c:): x",
            "Error (a.c:1)",
            "99999999999: Error (a.c:1): x",
            "",
        ] {
            let line = parse(text);
            assert_eq!((line.level, line.text.as_str()), (Level::Message, text));
        }
    }

    #[test]
    fn times_past_a_hundred_seconds_lose_digits() {
        let line = parse("(100.00001) x");
        assert_eq!(line.time, Some(Duration::new(100, 10_000)));
        assert_eq!(line.to_string(), "(100.00001) x");
        assert_eq!(parse("(1000.0001) x").to_string(), "(1000.0001) x");
        assert_eq!(parse("(99.999999) x").to_string(), "(99.999999) x");
    }

    #[test]
    fn names_from_outside_do_not_reach_the_terminal_raw() {
        let line = LogLine::parse(1, b"Error (criu/a.c:1): Can't open \x1b[2J\xff\n");
        assert_eq!(line.text, "Can't open \x1b[2J\u{fffd}");
        assert_eq!(
            line.to_string(),
            "Error (criu/a.c:1): Can't open \\u{1b}[2J\u{fffd}"
        );
    }

    #[test]
    fn serialises_without_what_is_absent() {
        let json = serde_json::to_value(parse("(01.500000) Warn  (criu/a.c:7): x")).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"number": 1, "time": 1.5, "level": "warning", "place": {"file": "criu/a.c", "line": 7}, "text": "x"})
        );
    }

    proptest! {
        #[test]
        fn never_panics_and_settles(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let shown = LogLine::parse(1, &bytes).to_string();
            let _ = LogLine::parse(1, shown.as_bytes()).to_string();
        }

        #[test]
        fn never_panics_near_the_format(line in "(\\([0-9]{0,12}\\.?[0-9]{0,8}\\) ?)? {0,8}[0-9]{0,12}:? ?(pie: ?[0-9]{0,11}:? )?(Error|Warn )? ?\\(?[a-z.:()]{0,8}:?[0-9]{0,12}\\)?:? ?.{0,10}") {
            let first = parse(&line);
            let second = parse(&first.to_string());
            prop_assert_eq!(first.level, second.level);
            prop_assert_eq!(first.place, second.place);
            prop_assert_eq!(first.pie, second.pie);
        }

        #[test]
        fn a_well_formed_line_comes_back_whole(
            time in proptest::option::of((0u64..100, 0u32..1_000_000)),
            task in proptest::option::of(1i32..),
            pie in proptest::option::of(1i32..),
            level in prop_oneof![Just(Level::Error), Just(Level::Warning)],
            file in "criu/[a-z-]{1,12}\\.c",
            line in any::<u32>(),
            text in "[ -~\u{e4}]{0,60}",
        ) {
            let line = LogLine {
                number: 1,
                time: time.map(|(s, us)| Duration::new(s, us * 1000)),
                task,
                pie,
                level,
                place: Some(Place { file, line }),
                text,
                cut: false,
            };
            prop_assert_eq!(parse(&line.to_string()), line);
        }
    }
}
