//! What there is to be played of a recording: the engine's side of it.

use crate::interpose::recording::{Entry, Event, Recording, Side};
use crate::rpc::fields::{Value, fields};
use crate::testing::Request;

/// A session.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) session: u32,
    /// Always with an end.
    pub(super) steps: Vec<Step>,
    /// The engine asked for nothing but CRIU itself.
    pub(super) only_probes: bool,
}

#[derive(Debug)]
pub(super) struct Step {
    /// Its place in the recording.
    pub(super) entry: usize,
    /// In microseconds since the session began.
    pub(super) at: u64,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Engine(Vec<u8>),
    Criu { bytes: Vec<u8>, descriptors: usize },
    Ended(Side),
}

/// What a message of a client is, without its options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// `None`: no message of the protocol.
    pub(super) kind: Option<u64>,
    pub(super) keep_open: bool,
    pub(super) accepted: bool,
}

impl Head {
    pub(super) fn of(message: &[u8]) -> Self {
        let mut head = Self {
            kind: None,
            keep_open: false,
            accepted: false,
        };
        // What cannot be taken apart has none of it.
        for field in fields(message).unwrap_or_default() {
            match (field.number, field.value) {
                (1, Value::Number(number)) => head.kind = Some(number),
                (3, Value::Number(number)) => head.accepted = number != 0,
                (4, Value::Number(number)) => head.keep_open = number != 0,
                _ => {}
            }
        }
        head
    }

    pub(super) fn is(self, request: Request) -> bool {
        self.kind.map(u64::cast_signed) == Some(request.number().into())
    }

    /// Asks about CRIU itself.
    pub(super) fn is_probe(self) -> bool {
        [Request::Version, Request::FeatureCheck, Request::Check]
            .into_iter()
            .any(|probe| self.is(probe))
    }
}

impl Part {
    /// What the engine said first.
    pub(super) fn first(&self) -> Option<Head> {
        self.steps.iter().find_map(|step| match &step.what {
            What::Engine(bytes) => Some(Head::of(bytes)),
            _ => None,
        })
    }

    /// CRIU's answer to VERSION.
    pub(super) fn version(&self) -> Option<&[u8]> {
        let mut asked = false;
        for step in &self.steps {
            match &step.what {
                What::Engine(bytes) => asked = Head::of(bytes).is(Request::Version),
                // A response begins as a request does.
                What::Criu { bytes, .. } if asked && Head::of(bytes).is(Request::Version) => {
                    return Some(bytes);
                }
                _ => {}
            }
        }
        None
    }
}

pub(super) fn parts(recording: &Recording) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for (index, entry) in recording.entries.iter().enumerate() {
        let place = parts.iter().position(|part| part.session == entry.session);
        let place = place.unwrap_or_else(|| {
            parts.push(Part {
                session: entry.session,
                steps: Vec::new(),
                only_probes: false,
            });
            parts.len() - 1
        });
        add(&mut parts[place].steps, index, entry);
    }
    for part in &mut parts {
        finish(part, recording.entries.len());
    }
    parts
}

fn add(steps: &mut Vec<Step>, index: usize, entry: &Entry) {
    let what = match &entry.event {
        Event::Message {
            from: Side::Engine,
            bytes,
            ..
        } => What::Engine(bytes.clone()),
        Event::Message {
            from: Side::Criu,
            bytes,
            fds,
            ..
        } => What::Criu {
            bytes: bytes.clone(),
            // The others are named by an option.
            descriptors: fds.iter().filter(|fd| fd.option.is_none()).count(),
        },
        Event::Refused { bytes, .. } => What::Criu {
            bytes: bytes.clone(),
            descriptors: 0,
        },
        Event::Ended { by } => What::Ended(*by),
        Event::Withheld { .. } => {
            let last = steps
                .iter()
                .rposition(|step| matches!(step.what, What::Criu { .. }));
            if let Some(last) = last {
                steps.remove(last);
            }
            return;
        }
        // Between the listener and CRIU, or of no consequence to the engine.
        Event::Started { .. }
        | Event::Amended { .. }
        | Event::Hook { .. }
        | Event::Stats { .. } => return,
    };
    steps.push(Step {
        entry: index,
        at: entry.at,
        what,
    });
}

fn finish(part: &mut Part, entries: usize) {
    // Nothing is after an end, and without one CRIU has the last word.
    let end = part
        .steps
        .iter()
        .position(|step| matches!(step.what, What::Ended(_)));
    match end {
        Some(end) => part.steps.truncate(end + 1),
        None => part.steps.push(Step {
            entry: entries,
            at: part.steps.last().map_or(0, |step| step.at),
            what: What::Ended(Side::Criu),
        }),
    }
    let mut asked = part.steps.iter().filter_map(|step| match &step.what {
        What::Engine(bytes) => Some(Head::of(bytes)),
        _ => None,
    });
    part.only_probes = asked.all(Head::is_probe);
}
