//! Failures as text for people, on standard error.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io;

use clap::builder::styling::AnsiColor;

use criu_client::container;
use criu_client::{Error, ErrorKind, TaskState};

use super::super::output::Painter;
use super::chain;

/// Lines of CRIU's output that are shown without `-v`.
const LINES: usize = 10;

/// The container layer's error as text. Where CRIU failed, its error tells the rest.
pub(super) fn of_container(error: &container::Error, verbose: bool) -> String {
    let mut text = Text::new();
    match error.criu() {
        Some(criu) => {
            text.0 = of_criu(criu, verbose);
            text.detail(
                "container",
                format_args!("{} {}", error.engine(), error.id()),
            );
        }
        None => text.error(&error.to_string(), &chain(StdError::source(error))),
    }
    if let Some(findings) = error.findings() {
        if let Some(cause) = &findings.cause {
            text.detail("log line", &cause.line);
        }
        if let Some(log) = &findings.log {
            text.detail("log", log.display());
        }
        if let Some(diagnosis) = &findings.diagnosis {
            text.cause(&diagnosis.summary);
            text.hint(Some(&diagnosis.remedy));
        }
    }
    for left in error.left_behind() {
        text.detail("left behind", left);
    }
    text.0
}

/// The library's error as text.
pub(super) fn of_criu(error: &Error, verbose: bool) -> String {
    let mut text = Text::new();
    // What CRIU says of a refusal, a limit or an interrupt that came from here is only that it came.
    let from_here = matches!(
        error.kind(),
        ErrorKind::Hook { .. } | ErrorKind::TimeLimit { .. } | ErrorKind::Cancelled { .. }
    );
    let message = match from_here {
        true => error.kind().to_string(),
        false => error.to_string(),
    };
    text.error(&message, &chain(StdError::source(error)));
    if let Some(line) = error.cause().filter(|_| !from_here) {
        text.detail("log line", line);
    }
    if verbose && let Some(findings) = error.findings() {
        for line in &findings.surrounding {
            text.detail("        ", line);
        }
    }
    if let Some(log) = error.log_path() {
        text.detail("log", log.display());
    }
    // Whatever went wrong before there was a log stands here alone.
    if error.log_path().is_none() || verbose {
        for (name, stream) in [
            ("criu's stderr", error.stderr()),
            ("criu's stdout", error.stdout()),
        ] {
            let most = if verbose { usize::MAX } else { LINES };
            for line in stream
                .lines()
                .filter(|line| !line.trim().is_empty())
                .take(most)
            {
                text.detail(name, printable(line));
            }
        }
    }
    if let Some(exit) = error.exit().filter(|_| verbose) {
        text.detail("criu", exit);
    }
    text.tasks(error.tasks());
    for undone in error.undone() {
        text.detail("undone", undone);
    }
    for left in error.left_behind() {
        text.detail("left behind", left);
    }
    match error.diagnosis().filter(|_| !from_here) {
        Some(diagnosis) => {
            text.cause(&diagnosis.summary);
            text.hint(Some(&diagnosis.remedy));
        }
        None => text.hint(hint_of(error.kind()).as_deref()),
    }
    text.0
}

fn hint_of(kind: &ErrorKind) -> Option<Cow<'static, str>> {
    let hint = match kind {
        ErrorKind::Connect { socket, source } => {
            return match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    Some(Cow::Owned(format!(
                        "nothing listens there: start a service as root with `criu service --address {}`, or leave --service out",
                        socket.display()
                    )))
                }
                io::ErrorKind::PermissionDenied => {
                    Some("run this as a user who may open the socket, such as root".into())
                }
                _ => None,
            };
        }
        ErrorKind::Start { source, .. } if source.kind() == io::ErrorKind::NotFound => Some(
            "install CRIU (most distributions' package is called criu), or name it with --criu PATH",
        ),
        ErrorKind::Start { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            Some("run this as root, or name a program that can be executed")
        }
        ErrorKind::Unsupported { .. } => {
            Some("leave it out, or name another CRIU with --criu PATH")
        }
        _ => None,
    };
    hint.map(Cow::Borrowed)
}

/// Names of files of the tasks can have anything in them, also what would drive a terminal.
fn printable(line: &str) -> String {
    line.chars()
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

/// Lines for standard error.
pub(super) struct Text(pub(super) String);

impl Text {
    pub(super) fn new() -> Self {
        Self(String::new())
    }

    pub(super) fn error(&mut self, message: &str, chain: &[String]) {
        self.labelled(AnsiColor::Red, "error:", message);
        for cause in chain {
            self.detail("caused by", cause);
        }
    }

    fn detail(&mut self, name: &str, text: impl std::fmt::Display) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "  {name}: {text}");
    }

    pub(super) fn tasks(&mut self, state: TaskState) {
        if state != TaskState::NotConcerned {
            self.detail("tasks", state);
        }
    }

    pub(super) fn cause(&mut self, summary: &str) {
        self.labelled(AnsiColor::Cyan, "cause:", summary);
    }

    pub(super) fn hint(&mut self, hint: Option<&str>) {
        if let Some(hint) = hint {
            self.labelled(AnsiColor::Green, "hint:", hint);
        }
    }

    fn labelled(&mut self, color: AnsiColor, label: &str, text: &str) {
        let label = Painter::of_stderr().paint(color, label);
        let _ = writeln!(self.0, "{label} {text}");
    }
}
