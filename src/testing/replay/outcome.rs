//! What came of a replay.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::rpc::view::{CRIU_REQ, view};

/// What came of all connections of a replay.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Replayed {
    /// One for each connection, in the order in which they ended.
    pub outcomes: Vec<Outcome>,
    /// The sessions that no client has asked for.
    pub unplayed: Vec<u32>,
}

impl Replayed {
    /// The first departure of a client.
    #[must_use]
    pub fn departure(&self) -> Option<&Departure> {
        self.outcomes
            .iter()
            .find_map(|outcome| outcome.departure.as_ref())
    }

    /// The first thing that kept a connection from being played.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        self.outcomes
            .iter()
            .find_map(|outcome| outcome.problem.as_deref())
    }
}

/// Of a single connection, with no word on other sessions.
impl From<Outcome> for Replayed {
    fn from(outcome: Outcome) -> Self {
        Self {
            outcomes: vec![outcome],
            unplayed: Vec::new(),
        }
    }
}

/// What came of one connection.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Outcome {
    /// The sessions that were played on it: one, or with [`Compare::Sequence`](super::Compare::Sequence) any number.
    pub sessions: Vec<u32>,
    /// Where the client did something else than was recorded. Playing ended there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub departure: Option<Departure>,
    /// Why it could not be played to the end although the client did as was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Outcome {
    /// Whether all went as recorded.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.departure.is_none() && self.problem.is_none()
    }
}

/// The place where a client departed from a recording, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Departure {
    /// The session; 0 when all had been played, so that the client should not have come.
    pub session: u32,
    /// The place of what was expected among the [entries](crate::interpose::recording::Recording::entries), counted from 0.
    pub entry: usize,
    /// What the engine did when it was recorded.
    pub expected: Said,
    /// What the client did.
    pub got: Said,
    /// How the two differ, when they are messages of the same type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
}

impl Departure {
    /// The line of the file that the recording is in, counted from 1.
    #[must_use]
    pub fn line(&self) -> usize {
        // Behind the header.
        self.entry + 2
    }
}

impl fmt::Display for Departure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.session {
            0 => f.write_str("behind the last session: ")?,
            session => write!(f, "session {session}, line {}: ", self.line())?,
        }
        if self.differences.is_empty() {
            return write!(f, "expected {}, got {}", self.expected, self.got);
        }
        write!(f, "another {} than expected", self.expected)?;
        for (index, difference) in self.differences.iter().enumerate() {
            let separator = if index == 0 { ": " } else { "; " };
            write!(f, "{separator}{difference}")?;
        }
        Ok(())
    }
}

/// What one side does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "did", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Said {
    /// It sends a message.
    Message {
        /// What is set in it, by the protocol's names; nothing when it is no message of the protocol.
        view: Map<String, Value>,
        /// Its length in bytes.
        length: usize,
    },
    /// It hangs up.
    HangUp,
    /// It says nothing: it waits for CRIU, or takes too long.
    Nothing,
}

impl Said {
    pub(super) fn message(bytes: &[u8]) -> Self {
        Self::Message {
            view: view(bytes, &CRIU_REQ).unwrap_or_default(),
            length: bytes.len(),
        }
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HangUp => f.write_str("a hang-up"),
            Self::Nothing => f.write_str("nothing"),
            Self::Message { view, length } => match view.get("type") {
                Some(Value::String(kind)) if kind == "NOTIFY" => {
                    let accepted = view.get("notify_success") == Some(&Value::Bool(true));
                    f.write_str(if accepted {
                        "an acceptance"
                    } else {
                        "a refusal"
                    })
                }
                Some(Value::String(kind)) => f.write_str(kind),
                Some(number) => write!(f, "a message of type {number}"),
                None => write!(f, "{length} bytes that are no request"),
            },
        }
    }
}

/// A field that is not as it was recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Difference {
    /// The protocol's name, `opts.` before that of an option; `#` and the number for a field that has no name here.
    pub name: String,
    /// What the engine had set; none when it was not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Value>,
    /// What the client has set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub got: Option<Value>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<Value>| {
            value
                .as_ref()
                .map_or_else(|| "unset".to_owned(), Value::to_string)
        };
        let (expected, got) = (shown(&self.expected), shown(&self.got));
        write!(f, "{} is {got}, expected {expected}", self.name)
    }
}
