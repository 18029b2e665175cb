//! Contents of memory: searched, or as bytes.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use criu_client::inspect::{Found, Sections};

use super::super::Context;
use super::super::failure::Failure;
use super::super::output::{Format, print};
use super::{Inspect, of, open};

/// What is found is shown up to here.
const MOST: usize = 10_000;

/// What to do with the bytes of a process.
#[derive(Debug, Args)]
#[command(next_help_heading = "Contents of memory")]
pub(super) struct Contents {
    /// Where this text is in the memory of --pid
    #[arg(
        long,
        value_name = "TEXT",
        requires = "memory",
        requires = "pid",
        conflicts_with = "hex"
    )]
    search: Option<String>,

    /// The bytes in the memory of --pid that are in the images, or in a range of addresses such as 0x7f0000000000-0x7f0000001000
    #[arg(long, value_name = "RANGE", num_args = 0..=1, default_missing_value = "0-0xffffffffffffffff", value_parser = range, requires = "memory", requires = "pid")]
    hex: Option<(u64, u64)>,
}

impl Contents {
    pub(super) fn are_asked_for(&self) -> bool {
        self.search.is_some() || self.hex.is_some()
    }
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let wrong = || "write two addresses, such as 0x7f0000000000-0x7f0000001000".to_owned();
    let (start, end) = text.split_once('-').ok_or_else(wrong)?;
    match (number(start), number(end)) {
        (Ok(start), Ok(end)) if start < end => Ok((start, end)),
        _ => Err(wrong()),
    }
}

#[derive(Serialize)]
struct Matches<'a> {
    pid: u32,
    matches: &'a [Found],
    /// Whether there may be more.
    more: bool,
}

pub(super) fn run(context: &Context, inspect: &Inspect) -> Result<ExitCode, Failure> {
    let mut sections = Sections::none();
    sections.memory = true;
    // clap has made sure that it is there.
    let pid = inspect.pid.unwrap_or_default();
    let search = inspect.contents.search.as_deref();
    if search.is_some_and(str::is_empty) {
        return Err(Failure::usage("--search needs a text to look for"));
    }
    if search.is_none() && context.output.format == Format::Json {
        return Err(Failure::usage(
            "--hex shows bytes for people: leave --format json out, or use the library",
        ));
    }
    let checkpoint = open(&inspect.path, sections)?;
    if let Some(pattern) = search {
        let found = checkpoint
            .search(pid, pattern.as_bytes(), MOST)
            .map_err(|error| of(&inspect.path, error))?;
        let matches = Matches {
            pid,
            matches: &found,
            more: found.len() == MOST,
        };
        context
            .output
            .result("MemorySearch", &matches, || text(&found))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (start, end) = inspect.contents.hex.unwrap_or_default();
    let mut dump = Dump::default();
    let read = checkpoint.read_memory(pid, start..end, |address, bytes| dump.bytes(address, bytes));
    read.map_err(|error| of(&inspect.path, error))?;
    dump.end()?;
    Ok(ExitCode::SUCCESS)
}

fn text(found: &[Found]) -> String {
    let mut text = String::new();
    for found in found {
        let context: String = found.context.iter().map(|byte| printable(*byte)).collect();
        let _ = writeln!(text, "{:#018x}  {context}", found.address);
    }
    let noun = if found.len() == 1 { "match" } else { "matches" };
    let _ = writeln!(text, "{} {noun}", found.len());
    text
}

fn printable(byte: u8) -> char {
    match byte {
        b' '..=b'~' => char::from(byte),
        _ => '.',
    }
}

/// Sixteen bytes a line, with lines that repeat left out, as `hexdump -C` shows them.
#[derive(Default)]
struct Dump {
    last: Option<(u64, [u8; 16])>,
    repeats: bool,
    text: String,
    failed: Option<Failure>,
}

impl Dump {
    fn bytes(&mut self, address: u64, bytes: &[u8]) {
        for (index, line) in bytes.chunks(16).enumerate() {
            self.line(address + index as u64 * 16, line);
        }
        if self.text.len() > 1 << 16 {
            self.flush();
        }
    }

    fn line(&mut self, address: u64, line: &[u8]) {
        let repeated = self
            .last
            .is_some_and(|(last, before)| last.wrapping_add(16) == address && before == line);
        if let Ok(line) = line.try_into() {
            self.last = Some((address, line));
        }
        if repeated {
            if !self.repeats {
                self.text.push_str("*\n");
            }
            self.repeats = true;
            return;
        }
        self.repeats = false;
        let _ = write!(self.text, "{address:016x} ");
        for index in 0..16 {
            if index == 8 {
                self.text.push(' ');
            }
            let _ = match line.get(index) {
                Some(byte) => write!(self.text, " {byte:02x}"),
                None => write!(self.text, "   "),
            };
        }
        let characters: String = line.iter().map(|byte| printable(*byte)).collect();
        let _ = writeln!(self.text, "  |{characters}|");
    }

    fn flush(&mut self) {
        if self.failed.is_none() {
            self.failed = print(self.text.as_bytes()).err();
        }
        self.text.clear();
    }

    fn end(mut self) -> Result<(), Failure> {
        self.flush();
        match self.failed {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_two_addresses() {
        assert_eq!(range("0x1000-0x2000"), Ok((0x1000, 0x2000)));
        assert_eq!(range("16-0x20"), Ok((16, 32)));
        for wrong in ["", "0x1000", "2-1", "1-1", "0x-0x", "-5"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn lines_that_repeat_are_left_out() {
        let mut dump = Dump::default();
        dump.bytes(0x1000, b"0123456789abcdef");
        dump.bytes(0x1010, &[0; 64]);
        dump.bytes(0x2000, &[0; 16]);
        let expected = "\
0000000000001000  30 31 32 33 34 35 36 37  38 39 61 62 63 64 65 66  |0123456789abcdef|
0000000000001010  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|
*
0000000000002000  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|
";
        assert_eq!(dump.text, expected);
    }
}
