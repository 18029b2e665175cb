//! Where results and messages go: the result to standard output, everything else to standard error.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use clap::builder::styling::{AnsiColor, Style};
use serde::Serialize;

use super::failure::Failure;

/// The version of every document's shape.
pub(super) const API_VERSION: &str = "criuctl/v1";
/// Where this program's own messages come from, in a log.
const MESSAGES: &str = "criuctl::messages";

/// The form of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum Format {
    /// Text for people
    #[default]
    Human,
    /// One JSON document
    Json,
}

/// The form of messages.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
pub(super) enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// One JSON object per line
    Json,
}

/// How results and messages are shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    pub(super) format: Format,
    pub(super) verbose: bool,
    pub(super) quiet: bool,
    pub(super) log_format: LogFormat,
}

#[derive(Serialize)]
struct Document<'a, T> {
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    kind: &'a str,
    #[serde(flatten)]
    body: &'a T,
}

impl Output {
    /// Shows the result: `body` as a document of this kind, or what `human` makes of it.
    pub(super) fn result<T: Serialize>(
        &self,
        kind: &str,
        body: &T,
        human: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Json => self.document(kind, body),
            Format::Human if self.quiet => Ok(()),
            Format::Human => print(human().as_bytes()),
        }
    }

    /// Shows the one document.
    pub(super) fn document<T: Serialize>(&self, kind: &str, body: &T) -> Result<(), Failure> {
        let document = Document {
            api_version: API_VERSION,
            kind,
            body,
        };
        let mut bytes = serde_json::to_vec(&document).map_err(|error| {
            Failure::failed("the result cannot be written as JSON").caused_by(error)
        })?;
        bytes.push(b'\n');
        print(&bytes)
    }

    /// Says something that is neither result nor error.
    pub(super) fn note(&self, text: impl Display) {
        match self.log_format {
            LogFormat::Json => tracing::info!(target: MESSAGES, "{text}"),
            LogFormat::Text if self.quiet => {}
            LogFormat::Text => say(&format!("{text}\n")),
        }
    }

    /// Warns.
    pub(super) fn warn(&self, text: impl Display) {
        match self.log_format {
            LogFormat::Json => tracing::warn!(target: MESSAGES, "{text}"),
            LogFormat::Text => {
                let label = Painter::of_stderr().paint(AnsiColor::Yellow, "warning:");
                say(&format!("{label} {text}\n"));
            }
        }
    }

    /// Tells an error, which is lines that each end.
    pub(super) fn error(&self, text: &str) {
        match self.log_format {
            LogFormat::Json => tracing::error!(target: MESSAGES, "{}", text.trim_end()),
            LogFormat::Text => say(text),
        }
    }
}

/// Writes to standard output. Whoever has closed it wants no more, which is no failure.
pub(super) fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => {
            Err(Failure::failed("the result cannot be written to standard output").caused_by(error))
        }
    }
}

/// Writes to standard error, in one piece. There is nowhere to say that this fails.
pub(super) fn say(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Colours, where somebody can see them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Painter(bool);

impl Painter {
    pub(super) fn of_stderr() -> Self {
        Self::of(&io::stderr())
    }

    pub(super) fn of_stdout() -> Self {
        Self::of(&io::stdout())
    }

    fn of(stream: &impl IsTerminal) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let able = std::env::var_os("TERM").is_some_and(|terminal| terminal != "dumb");
        Self(wanted && able && stream.is_terminal())
    }

    pub(super) fn enabled(self) -> bool {
        self.0
    }

    pub(super) fn paint(self, color: AnsiColor, text: impl Display) -> String {
        match self.0 {
            true => {
                let style = Style::new().fg_color(Some(color.into())).bold();
                format!("{style}{text}{style:#}")
            }
            false => text.to_string(),
        }
    }
}

/// A duration as people read it.
pub(super) fn time(duration: std::time::Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        s if s >= 10.0 => format!("{s:.1} s"),
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 0.001 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.0} µs", s * 1e6),
    }
}

/// A number of pages and how much memory that is.
pub(super) fn pages(pages: u64) -> String {
    let bytes = pages.saturating_mul(procfs::page_size());
    let noun = if pages == 1 { "page" } else { "pages" };
    format!("{pages} {noun} ({})", size(bytes))
}

pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64 / 1024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    match value {
        value if value >= 100.0 || value.fract() == 0.0 => format!("{value:.0} {unit}"),
        value => format!("{value:.1} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_and_sizes_for_people() {
        assert_eq!(time(Duration::from_micros(250)), "250 µs");
        assert_eq!(time(Duration::from_micros(12_340)), "12.3 ms");
        assert_eq!(time(Duration::from_millis(1500)), "1.50 s");
        assert_eq!(time(Duration::from_secs(75)), "75.0 s");
        assert_eq!(size(0), "0 KiB");
        assert_eq!(size(4096), "4 KiB");
        assert_eq!(size(1536 << 10), "1.5 MiB");
        assert_eq!(size(300 << 30), "300 GiB");
        assert!(pages(1).starts_with("1 page ("));
    }
}
