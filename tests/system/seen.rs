//! What `criuctl -vv` shows: every step of an operation, each with what it is about.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::*;

pub(crate) fn tests() -> Tests {
    let list: &[Test] = &[
        ("a-dump", || operation("checkpoint")),
        ("a-restore", || operation("restore")),
    ];
    named("seen/", list)
}

/// One event.
pub(crate) struct Event(Value);

impl Event {
    /// What was said: the message, and what tells one message from another.
    fn step(&self) -> String {
        let fields = &self.0["fields"];
        ["message", "what", "script", "request"]
            .iter()
            .filter_map(|name| fields[name].as_str())
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// A field of one of the spans around it.
    fn of_span(&self, name: &str) -> Option<&Value> {
        let around = self.0["spans"].as_array().into_iter().flatten();
        // What names its span itself has only that one.
        around
            .chain(self.0.get("span"))
            .find_map(|span| span.get(name))
    }
}

/// Runs criuctl and takes its events apart.
pub(crate) fn events(arguments: &[&str], images: &Path) -> Result<Vec<Event>, String> {
    let Output { status, stderr, .. } = Command::new(env!("CARGO_BIN_EXE_criuctl"))
        .args(["-vv", "--log-format", "json"])
        .args(arguments)
        .arg("--image-path")
        .arg(images)
        .output()
        .map_err(text)?;
    let stderr = String::from_utf8_lossy(&stderr);
    ensure!(status.success(), "criuctl: {status}: {stderr}");
    stderr
        .lines()
        // Notes to the user stand between them.
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).map(Event))
        .collect::<Result<_, _>>()
        .map_err(|error| format!("{error}: {stderr}"))
}

/// All of `steps` are there, in this order, each with a span that has `field`.
pub(crate) fn in_order(events: &[Event], steps: &[&str], field: (&str, &str)) -> Outcome {
    let mut rest = events.iter();
    for step in steps {
        let found = rest.find(|event| event.step() == *step);
        let told = || events.iter().map(Event::step).collect::<Vec<_>>();
        let event = found.ok_or_else(|| format!("{step:?} is missing in {:#?}", told()))?;
        let value = event.of_span(field.0).map(ToString::to_string);
        ensure!(
            value.as_ref().is_some_and(|value| value.contains(field.1)),
            "{} of {step:?} is {value:?}",
            field.0
        );
    }
    Ok(())
}

fn operation(verb: &str) -> Outcome {
    let mut victim = Victim::start(Kind::Plain)?;
    let images = victim.images("images");
    let traces = Traces::take();
    let target = format!("pid:{}", victim.pid);
    if verb == "restore" {
        victim.killed_into(&images, victim.dump_options())?;
    }
    let (arguments, field): (&[&str], _) = match verb {
        "checkpoint" => (
            &[verb, &target, "--leave-running"],
            ("pid", victim.pid.to_string()),
        ),
        _ => (
            &[verb, "--detach"],
            ("images", images.path().display().to_string()),
        ),
    };
    let events = events(arguments, images.path())?;
    let request = if verb == "restore" { "RESTORE" } else { "DUMP" };
    let last = if verb == "restore" {
        "post-resume"
    } else {
        "post-dump"
    };
    let received = format!("received callback {last}");
    let steps = [
        "criu started",
        "sending request VERSION",
        "received answer VERSION",
        &format!("sending request {request}"),
        &received,
        &format!("callback {last}"),
        "reply",
        &format!("sending reply {last}"),
        &format!("received answer {request}"),
        "answer",
        "criu ended",
    ];
    in_order(&events, &steps, (field.0, &field.1))?;
    victim.goes_on()?;
    victim.end();
    drop(images);
    traces.unchanged()
}
