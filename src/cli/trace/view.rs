//! What passes, as text for people.

use std::collections::HashMap;
use std::fmt::Write as _;

use clap::builder::styling::AnsiColor;
use serde_json::{Map, Value};

use criu_client::interpose::recording::{Descriptor, Entry, Event, Side};

use super::super::output::Painter;

/// The column at which text that belongs to an entry is set in.
const INDENT: &str = "                     ";

/// Renders entries, and keeps what it must know of earlier ones for that.
#[derive(Default)]
pub(super) struct View {
    /// When each side of each session spoke last, in microseconds of the session.
    spoke: HashMap<(u32, Side), u64>,
}

impl View {
    /// An entry, `since` microseconds after the first session began.
    pub(super) fn text(&mut self, entry: &Entry, since: u64) -> String {
        let paint = Painter::of_stderr();
        let mut text = format!("[{}] {since:>11} µs ", entry.session);
        // Writing to a String does not fail.
        match &entry.event {
            Event::Started {
                pid,
                arguments,
                criu,
                engine,
                ..
            } => {
                let by = match engine {
                    Some(engine) => match &engine.program {
                        Some(program) => format!(" by {} (pid {})", program.display(), engine.pid),
                        None => format!(" by pid {}", engine.pid),
                    },
                    None => String::new(),
                };
                let _ = match arguments.is_empty() {
                    true => writeln!(text, "connected{by} to {}", criu.display()),
                    false => writeln!(
                        text,
                        "started{by}: {} {} (pid {pid})",
                        criu.display(),
                        arguments.join(" ")
                    ),
                };
            }
            Event::Message {
                from,
                bytes,
                view,
                fds,
            } => {
                let waited = self.waited(entry, *from);
                let (arrow, color) = match from {
                    Side::Engine => ("->", AnsiColor::Cyan),
                    Side::Criu => ("<-", AnsiColor::Green),
                };
                let what = paint.paint(color, format!("{arrow} {}", title(view, *from)));
                let _ = writeln!(text, "{what}  {} bytes{waited}", bytes.len());
                details(&mut text, view, fds);
            }
            Event::Amended { added, .. } => {
                let what = paint.paint(AnsiColor::Yellow, "amended:");
                let _ = writeln!(text, "{what} {}", assignments(added));
            }
            Event::Hook {
                script,
                accepted,
                reason,
                took,
            } => {
                let what = match accepted {
                    true => "accepted".to_owned(),
                    false => paint.paint(AnsiColor::Red, "refused"),
                };
                let reason = reason
                    .as_ref()
                    .map(|reason| format!(": {reason}"))
                    .unwrap_or_default();
                let _ = writeln!(text, "hook at {script} {what}{reason}  +{took} µs");
            }
            Event::Withheld { script, accepted } => {
                let answer = if *accepted { "accepted" } else { "refused" };
                let _ = writeln!(
                    text,
                    "{script} {answer} in the engine's place, which does not get it"
                );
            }
            Event::Refused { reason, .. } => {
                let what = paint.paint(AnsiColor::Red, "refused:");
                let _ = writeln!(text, "{what} {reason}");
            }
            Event::Stats { stats } => {
                let _ = match stats.as_object() {
                    Some(stats) => writeln!(text, "statistics: {}", assignments(stats)),
                    None => writeln!(text, "statistics: {stats}"),
                };
            }
            Event::Ended { by } => {
                let who = match by {
                    Side::Engine => "the engine",
                    Side::Criu => "CRIU",
                };
                let _ = writeln!(text, "ended by {who}");
            }
            other => {
                let _ = writeln!(text, "{other:?}");
            }
        }
        text
    }

    /// How long ago the other side spoke.
    fn waited(&mut self, entry: &Entry, from: Side) -> String {
        let other = match from {
            Side::Engine => Side::Criu,
            Side::Criu => Side::Engine,
        };
        self.spoke.insert((entry.session, from), entry.at);
        self.spoke
            .get(&(entry.session, other))
            .map(|spoke| format!("  +{} µs", entry.at.saturating_sub(*spoke)))
            .unwrap_or_default()
    }
}

/// What a message is.
fn title(view: &Map<String, Value>, from: Side) -> String {
    let Some(kind) = view.get("type") else {
        return "no message of the protocol".into();
    };
    let kind = plain(kind);
    let success = view.get("success").and_then(Value::as_bool);
    match (kind.as_str(), from) {
        ("NOTIFY", Side::Criu) => {
            let notify = view.get("notify");
            let script = notify.and_then(|notify| notify.get("script"));
            let pid = notify
                .and_then(|notify| notify.get("pid"))
                .map(|pid| format!(" pid={pid}"));
            format!(
                "callback {}{}",
                script.map(plain).unwrap_or_default(),
                pid.unwrap_or_default()
            )
        }
        ("NOTIFY", Side::Engine) => match view.get("notify_success").and_then(Value::as_bool) {
            Some(true) => "reply: go on".into(),
            _ => "reply: refused".into(),
        },
        (kind, Side::Criu) => match success {
            Some(true) => format!("{kind} succeeded"),
            _ => format!("{kind} failed"),
        },
        (kind, Side::Engine) => kind.to_owned(),
    }
}

/// Everything else that is set, a line each.
fn details(text: &mut String, view: &Map<String, Value>, fds: &[Descriptor]) {
    let mut shown: Vec<(String, &Value)> = Vec::new();
    for (name, value) in view {
        match (name.as_str(), value) {
            ("type" | "success" | "notify" | "notify_success", _) => {}
            ("opts", Value::Object(options)) => {
                shown.extend(options.iter().map(|(name, value)| (name.clone(), value)));
            }
            (_, value) => shown.push((name.clone(), value)),
        }
    }
    for (name, value) in shown {
        let values = match value {
            Value::Array(values) => values.iter().collect(),
            value => vec![value],
        };
        for value in values {
            let target = fds
                .iter()
                .find(|fd| {
                    fd.option.as_deref() == Some(name.as_str())
                        && fd.number.map(i64::from) == number(value)
                })
                .map(|fd| fd.target.as_deref().unwrap_or("not open"))
                .map(|target| format!(" ({target})"))
                .unwrap_or_default();
            let _ = writeln!(text, "{INDENT}{name}={}{target}", plain(value));
        }
    }
    for fd in fds.iter().filter(|fd| fd.number.is_none()) {
        let target = fd.target.as_deref().unwrap_or("something");
        let _ = writeln!(text, "{INDENT}carries a descriptor of {target}");
    }
}

/// The number of a descriptor that a value is or has.
fn number(value: &Value) -> Option<i64> {
    value
        .as_i64()
        .or_else(|| value.get("fd").and_then(Value::as_i64))
}

fn assignments(values: &Map<String, Value>) -> String {
    let mut texts = Vec::new();
    for (name, value) in values {
        match value {
            Value::Null => {}
            Value::Array(values) => {
                texts.extend(
                    values
                        .iter()
                        .map(|value| format!("{name}={}", plain(value))),
                );
            }
            value => texts.push(format!("{name}={}", plain(value))),
        }
    }
    texts.join(" ")
}

/// A value without quotes, safe for a terminal.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text
            .trim_end()
            .chars()
            .map(|c| match c.is_control() {
                true => char::REPLACEMENT_CHARACTER,
                false => c,
            })
            .collect(),
        Value::Object(fields) => format!("{{{}}}", assignments(fields)),
        other => other.to_string(),
    }
}
