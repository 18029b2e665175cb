//! What the client did.

use std::collections::BTreeMap;

use prost::Message as _;
use serde::{Deserialize, Serialize};

use super::Request;
use crate::rpc::fields::{self, fields};
use crate::rpc::view;
use crate::rpc::wire::{CriuOpts, CriuReq};

/// What came from the client in the course of a script.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Transcript {
    /// Whether a client has connected.
    pub connected: bool,
    /// Everything that was read, in order.
    pub messages: Vec<Message>,
    /// Why the script ended early: which step, and what came instead.
    pub problem: Option<String>,
    /// How many steps of the script were done.
    pub steps: usize,
    /// Whether the client was seen to hang up.
    pub hung_up: bool,
    /// What became of the descriptors that were handed over, in order.
    pub pipes: Vec<Pipe>,
    /// How the peer was started, when it is a program.
    pub process: Option<ProcessFacts>,
}

impl Transcript {
    /// The requests, without replies to callbacks.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.messages
            .iter()
            .filter_map(|message| message.request)
            .filter(|request| *request != Request::Notify)
            .collect()
    }

    /// The replies to callbacks: accepted, refused, or (`None`) neither said.
    #[must_use]
    pub fn replies(&self) -> Vec<Option<bool>> {
        self.messages
            .iter()
            .filter(|message| message.request == Some(Request::Notify))
            .map(|message| message.accepted)
            .collect()
    }

    /// The first message of this kind.
    #[must_use]
    pub fn message(&self, request: Request) -> Option<&Message> {
        self.messages
            .iter()
            .find(|message| message.request == Some(request))
    }
}

/// One message of the client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Message {
    /// What it is; `None` when it is no `criu_req`, or one of a type that does not exist.
    pub request: Option<Request>,
    /// Its length in bytes.
    pub length: usize,
    /// How many descriptors came with it.
    pub descriptors: usize,
    /// `keep_open`.
    pub keep_open: Option<bool>,
    /// `notify_success`, in replies.
    pub accepted: Option<bool>,
    /// `pid` of WAIT_PID; that of other requests is an option.
    pub pid: Option<u32>,
    /// The features asked about, under the protocol's names.
    pub features: Vec<String>,
    /// The options that are set, under the protocol's names (or numbers, where it has none); `None` when there is no `opts`.
    pub options: Option<BTreeMap<String, Vec<Value>>>,
}

impl Message {
    /// The only value, or the last, of an option; `None` when it is not set.
    #[must_use]
    pub fn option(&self, name: &str) -> Option<&Value> {
        self.options.as_ref()?.get(name)?.last()
    }

    /// A number or flag (1 or 0) among the options.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<i64> {
        match self.option(name)? {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// The texts of an option that may be there several times.
    #[must_use]
    pub fn texts(&self, name: &str) -> Vec<&str> {
        let values = self.options.as_ref().and_then(|options| options.get(name));
        values
            .into_iter()
            .flatten()
            .filter_map(|value| match value {
                Value::Text(text) => Some(text.as_str()),
                _ => None,
            })
            .collect()
    }

    pub(super) fn read(bytes: &[u8], descriptors: usize) -> (Self, Option<CriuOpts>) {
        let plain = Self {
            length: bytes.len(),
            descriptors,
            ..Self::default()
        };
        let Ok(request) = CriuReq::decode(bytes) else {
            return (plain, None);
        };
        let asked = request.features.unwrap_or_default();
        let features = [
            ("mem_track", asked.mem_track),
            ("lazy_pages", asked.lazy_pages),
            ("pidfd_store", asked.pidfd_store),
            ("mem_compression", asked.mem_compression),
        ];
        let read = Self {
            request: Request::from_number(request.r#type),
            keep_open: request.keep_open,
            accepted: request.notify_success,
            pid: request.pid,
            features: features
                .into_iter()
                .filter(|(_, asked)| *asked == Some(true))
                .map(|(name, _)| name.to_owned())
                .collect(),
            options: field(bytes, OPTS).map(options),
            ..plain
        };
        (read, request.opts)
    }
}

/// The value of an option as it was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum Value {
    /// A number, a flag or an enumerator.
    Number(i64),
    /// A text.
    Text(String),
    /// A message in its encoding, or a text that is not UTF-8.
    Bytes(Vec<u8>),
}

/// What became of a descriptor that was handed over: the writing end of a pipe.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Pipe {
    /// What was written to it until the end of the script.
    pub written: Vec<u8>,
    /// Whether nobody had it open any more at the end of the script.
    pub closed: bool,
}

/// How the peer was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ProcessFacts {
    /// Its pid.
    pub pid: i32,
    /// Its session.
    pub session: i32,
    /// Its arguments, its own name first.
    pub arguments: Vec<String>,
    /// The names of its environment variables.
    pub environment: Vec<String>,
    /// Its descriptors and what they are, as readlink(2) shows it.
    pub descriptors: BTreeMap<i32, String>,
    /// The signals that it was started with ignored, by number. SIGPIPE is always there: Rust programs ignore it.
    pub ignored_signals: Vec<i32>,
    /// The signals that it was started with blocked, by number.
    pub blocked_signals: Vec<i32>,
}

/// The number of `opts` in `criu_req`.
const OPTS: u32 = 2;

fn options(encoded: &[u8]) -> BTreeMap<String, Vec<Value>> {
    let mut options: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for field in fields(encoded).unwrap_or_default() {
        let known = view::CRIU_OPTS.field(field.number);
        let name = known.map_or_else(|| field.number.to_string(), |known| known.name.to_owned());
        let is_text = known.is_some_and(|known| matches!(known.kind, view::Kind::Text));
        let value = match field.value {
            fields::Value::Number(number) => Value::Number(number.cast_signed()),
            fields::Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) if is_text => Value::Text(text.to_owned()),
                _ => Value::Bytes(bytes.to_owned()),
            },
        };
        options.entry(name).or_default().push(value);
    }
    options
}

/// The last occurrence of a field that is a message.
fn field(encoded: &[u8], wanted: u32) -> Option<&[u8]> {
    let found = fields(encoded).ok()?.into_iter().rev();
    found
        .filter(|field| field.number == wanted)
        .find_map(|field| match field.value {
            fields::Value::Bytes(bytes) => Some(bytes),
            fields::Value::Number(_) => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_taken_apart() {
        let request = CriuReq {
            r#type: Request::Dump.number(),
            opts: Some(CriuOpts {
                images_dir_fd: -1,
                external: vec!["net[1]:a".into(), "net[2]:b".into()],
                leave_running: Some(false),
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut bytes = request.encode_to_vec();
        let (message, opts) = Message::read(&bytes, 2);
        assert_eq!(message.request, Some(Request::Dump));
        assert_eq!(message.number("images_dir_fd"), Some(-1));
        assert_eq!(message.number("leave_running"), Some(0));
        assert_eq!(message.texts("external"), ["net[1]:a", "net[2]:b"]);
        assert_eq!(message.option("pid"), None);
        assert_eq!((message.length, message.descriptors), (bytes.len(), 2));
        assert!(opts.is_some());
        bytes.truncate(bytes.len() - 1);
        assert_eq!(Message::read(&bytes, 0).0.request, None);
    }
}
