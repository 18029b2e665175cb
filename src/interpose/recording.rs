//! Recordings: what passed between an engine and CRIU, as a file of JSON lines.
//!
//! The first line is the header, every further one an [`Entry`]: something that happened in one *session*, the life of one
//! CRIU process or of one connection to a service. Sessions of one recording may overlap.
//!
//! ```text
//! {"criuRecording":1,"writer":"criu-client 0.1.0","started":1764032947000000,"masked":false}
//! {"session":1,"at":0,"event":"started","pid":4711,"arguments":["swrk","3"],"criu":"/usr/sbin/criu","startedAt":1764032947000123,"engine":{"pid":4710,"program":"/usr/sbin/runc"}}
//! {"session":1,"at":1032,"event":"message","from":"engine","bytes":"080a","view":{"type":"VERSION"}}
//! {"session":1,"at":2301,"event":"message","from":"criu","bytes":"080a10015206080410022001","view":{"type":"VERSION","success":true,"version":{"major_number":4,"minor_number":2,"sublevel":1}}}
//! {"session":1,"at":2350,"event":"ended","by":"criu"}
//! ```
//!
//! | | |
//! |---|---|
//! | `started` | microseconds since the epoch |
//! | `at` | microseconds since the session began |
//! | `bytes` | the datagram as it was sent, in hexadecimal: nothing is lost, fields of a newer CRIU included |
//! | `view` | the same by the protocol's names, for people and for `jq`; it is not read back |
//! | `fds` | the descriptors that a message names or carries, by what they were |
//!
//! A recording holds no memory of any task, nor image, log or file content: only messages. It does hold paths, names and
//! pids. In a *masked* one each part of a path is a pseudonym, the same for the same name throughout the recording
//! (a pseudonym, not encryption: who can guess a name can tell that it is there).
//!
//! The version is raised when a reader of the old one would misread a file; new members may appear without.

use std::io::{BufRead, Write};
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::rpc::view::{from_hex, hex};

/// The version of the format that is written, and the newest that is read.
pub const VERSION: u32 = 1;

/// A longer line has something wrong with it: the largest message is one that CRIU takes, and it takes a few megabytes.
const LINE_AT_MOST: u64 = 64 << 20;

/// The first line of a recording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Header {
    /// The version of the format.
    #[serde(rename = "criuRecording")]
    pub version: u32,
    /// Who wrote it.
    pub writer: String,
    /// When, in microseconds since the epoch.
    pub started: u64,
    /// Whether paths are pseudonyms.
    #[serde(default)]
    pub masked: bool,
}

impl Header {
    /// A header for what is recorded from now on.
    #[must_use]
    pub fn now(masked: bool) -> Self {
        Self {
            version: VERSION,
            writer: concat!("criu-client ", env!("CARGO_PKG_VERSION")).into(),
            started: micros_since_epoch(),
            masked,
        }
    }
}

/// Now, in microseconds since the epoch.
#[must_use]
pub fn micros_since_epoch() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_micros()).unwrap_or(u64::MAX))
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Entry {
    /// The session that it belongs to, counted from 1.
    pub session: u32,
    /// Microseconds since the session began.
    pub at: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "event",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase"
)]
#[non_exhaustive]
pub enum Event {
    /// An engine started CRIU, or connected to its service.
    Started {
        /// The pid of the CRIU process; that of the listener for a service.
        pid: i32,
        /// What CRIU was started with, without its own name. Empty for a service.
        arguments: Vec<String>,
        /// The CRIU program, or the service's socket.
        criu: PathBuf,
        /// When, in microseconds since the epoch.
        started_at: u64,
        /// Who asks, where it can be told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        engine: Option<Engine>,
    },
    /// A datagram, as its sender sent it.
    Message {
        /// The sender.
        from: Side,
        /// The datagram.
        #[serde(with = "in_hex")]
        bytes: Vec<u8>,
        /// The same by name; empty when it is no message of the protocol.
        #[serde(default)]
        view: Map<String, Value>,
        /// The descriptors that it names or carries.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        fds: Vec<Descriptor>,
    },
    /// CRIU got another request than the engine sent.
    Amended {
        /// What it got.
        #[serde(with = "in_hex")]
        bytes: Vec<u8>,
        /// The options that were added or replaced, by name.
        added: Map<String, Value>,
    },
    /// A hook was asked at a callback.
    Hook {
        /// The callback.
        script: String,
        /// Whether CRIU may go on.
        accepted: bool,
        /// Why not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// How long it took, in microseconds.
        took: u64,
    },
    /// The last message of CRIU was a callback that the engine never got: it had not asked for callbacks, or a hook refused.
    /// CRIU was answered in its place.
    Withheld {
        /// The callback.
        script: String,
        /// The answer that CRIU got.
        accepted: bool,
    },
    /// The last message of the engine was a request that CRIU never got.
    Refused {
        /// Why.
        reason: String,
        /// The answer that the engine got.
        #[serde(with = "in_hex")]
        bytes: Vec<u8>,
    },
    /// CRIU's statistics of a request that succeeded, read from its work directory.
    Stats {
        /// As [`DumpStats`](crate::image::DumpStats) or [`RestoreStats`](crate::image::RestoreStats) serialise.
        stats: Value,
    },
    /// One side hung up, and the other was told so.
    Ended {
        /// Who.
        by: Side,
    },
}

/// One of the two that talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The client: an engine, or a program that uses a CRIU library.
    Engine,
    /// CRIU.
    Criu,
}

/// The process that asks CRIU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Engine {
    /// Its pid, in the listener's pid namespace.
    pub pid: i32,
    /// Its program, where that can be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<PathBuf>,
}

/// A descriptor, by what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Descriptor {
    /// The option that names it; none for one that came with the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub option: Option<String>,
    /// Its number: in the engine's table, or for `inherit_fd` and `ps.fd` in CRIU's. None for one that came with the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<i32>,
    /// What it is, as readlink(2) shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// Bytes as text.
pub(super) mod in_hex {
    use super::{Deserialize, Deserializer, Serializer, from_hex, hex};

    pub(in super::super) fn serialize<S: Serializer>(
        bytes: &[u8],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(bytes))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        from_hex(&text).ok_or_else(|| serde::de::Error::custom("bytes that are not hexadecimal"))
    }
}

/// Why a recording cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordingError {
    /// The file cannot be read.
    #[error("the recording cannot be read")]
    Read(#[source] std::io::Error),
    /// The first line is no header.
    #[error("this is no recording: its first line is no header")]
    NoRecording,
    /// It was written by a newer version of this software.
    #[error("the recording has version {found}, and the newest that can be read is {VERSION}")]
    Newer {
        /// Its version.
        found: u64,
    },
    /// A line is no entry.
    #[error("line {line} of the recording is no entry: {reason}")]
    Malformed {
        /// Which line, counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// It ends in the middle of a line, or of a session.
    #[error("the recording is cut: {what}")]
    Cut {
        /// What is missing.
        what: String,
    },
}

/// A recording, read whole.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Recording {
    /// The first line.
    pub header: Header,
    /// All that follows, in the order of the file.
    pub entries: Vec<Entry>,
}

impl Recording {
    /// Reads a recording to its end.
    ///
    /// # Errors
    /// [`RecordingError`]; also when a session of it has no end.
    pub fn read(source: impl BufRead) -> Result<Self, RecordingError> {
        let mut lines = Lines::new(source);
        let header = lines.header()?;
        let mut entries = Vec::new();
        while let Some(entry) = lines.entry()? {
            entries.push(entry);
        }
        let recording = Self { header, entries };
        for session in recording.sessions() {
            let ended = matches!(
                session.last().map(|entry| &entry.event),
                Some(Event::Ended { .. })
            );
            if !ended {
                let number = session.first().map_or(0, |entry| entry.session);
                return Err(RecordingError::Cut {
                    what: format!("session {number} has no end"),
                });
            }
        }
        Ok(recording)
    }

    /// The entries session by session, in the order in which the sessions began.
    #[must_use]
    pub fn sessions(&self) -> Vec<Vec<&Entry>> {
        let mut sessions: Vec<Vec<&Entry>> = Vec::new();
        for entry in &self.entries {
            match sessions
                .iter_mut()
                .find(|session| session[0].session == entry.session)
            {
                Some(session) => session.push(entry),
                None => sessions.push(vec![entry]),
            }
        }
        sessions
    }
}

/// Reads a recording line by line.
pub(crate) struct Lines<R> {
    source: R,
    line: usize,
}

impl<R: BufRead> Lines<R> {
    pub(crate) fn new(source: R) -> Self {
        Self { source, line: 0 }
    }

    pub(crate) fn header(&mut self) -> Result<Header, RecordingError> {
        let line = self.next()?.ok_or(RecordingError::NoRecording)?;
        let header: Value =
            serde_json::from_slice(&line).map_err(|_| RecordingError::NoRecording)?;
        let version = header
            .get("criuRecording")
            .and_then(Value::as_u64)
            .ok_or(RecordingError::NoRecording)?;
        if version > VERSION.into() {
            return Err(RecordingError::Newer { found: version });
        }
        serde_json::from_slice(&line).map_err(|error| self.malformed(&error))
    }

    pub(crate) fn entry(&mut self) -> Result<Option<Entry>, RecordingError> {
        match self.next()? {
            Some(line) => serde_json::from_slice(&line)
                .map(Some)
                .map_err(|error| self.malformed(&error)),
            None => Ok(None),
        }
    }

    fn next(&mut self) -> Result<Option<Vec<u8>>, RecordingError> {
        let mut line = Vec::new();
        let read = std::io::Read::take(&mut self.source, LINE_AT_MOST).read_until(b'\n', &mut line);
        read.map_err(RecordingError::Read)?;
        if line.is_empty() {
            return Ok(None);
        }
        self.line += 1;
        match line.pop() {
            Some(b'\n') => Ok(Some(line)),
            _ => Err(RecordingError::Cut {
                what: format!("line {} does not end", self.line),
            }),
        }
    }

    fn malformed(&self, error: &serde_json::Error) -> RecordingError {
        RecordingError::Malformed {
            line: self.line,
            reason: error.to_string(),
        }
    }
}

/// Writes a header or an entry as a line.
///
/// # Errors
/// What writing says.
pub fn write_line(sink: &mut impl Write, value: &impl Serialize) -> std::io::Result<()> {
    // One write for a line: whoever reads along never sees half of one.
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    sink.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entries() -> Vec<Entry> {
        let started = |session| Entry {
            session,
            at: 0,
            event: Event::Started {
                pid: 5,
                arguments: vec!["swrk".into(), "3".into()],
                criu: "/usr/sbin/criu".into(),
                started_at: 7,
                engine: None,
            },
        };
        let ended = |session| Entry {
            session,
            at: 9,
            event: Event::Ended { by: Side::Criu },
        };
        let message = Entry {
            session: 1,
            at: 3,
            event: Event::Message {
                from: Side::Engine,
                bytes: vec![8, 10],
                view: json!({"type": "VERSION"}).as_object().unwrap().clone(),
                fds: vec![Descriptor {
                    option: Some("images_dir_fd".into()),
                    number: Some(4),
                    target: Some("/var/tmp".into()),
                }],
            },
        };
        vec![started(1), started(2), message, ended(2), ended(1)]
    }

    fn written(entries: &[Entry]) -> Vec<u8> {
        let mut file = Vec::new();
        write_line(&mut file, &Header::now(false)).unwrap();
        for entry in entries {
            write_line(&mut file, entry).unwrap();
        }
        file
    }

    #[test]
    fn what_is_written_is_read_again() {
        let recording = Recording::read(written(&entries()).as_slice()).unwrap();
        assert_eq!(recording.entries, entries());
        let sessions = recording.sessions();
        assert_eq!(sessions.len(), 2);
        assert_eq!((sessions[0].len(), sessions[1].len()), (3, 2));
    }

    #[test]
    fn the_example_in_the_documentation_is_a_recording() {
        let documentation = include_str!("recording.rs");
        let example: String = documentation
            .lines()
            .filter_map(|line| line.strip_prefix("//! "))
            .filter(|line| line.starts_with('{'))
            .map(|line| format!("{line}\n"))
            .collect();
        let recording = Recording::read(example.as_bytes()).unwrap();
        assert_eq!(recording.entries.len(), 4);
    }

    #[test]
    fn a_recording_that_is_cut_is_refused_wherever_it_is_cut() {
        let whole = written(&entries());
        let header = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for end in header + 1..whole.len() {
            let error = Recording::read(&whole[..end]).unwrap_err();
            assert!(
                matches!(error, RecordingError::Cut { .. }),
                "{end}: {error}"
            );
        }
        for end in 0..header {
            assert!(Recording::read(&whole[..end]).is_err());
        }
    }

    #[test]
    fn a_newer_recording_and_other_files_are_refused() {
        let newer = b"{\"criuRecording\":2,\"other\":1}\n";
        let error = Recording::read(newer.as_slice()).unwrap_err();
        assert!(
            matches!(error, RecordingError::Newer { found: 2 }),
            "{error}"
        );
        for other in ["", "hello\n", "{}\n", "[1]\n"] {
            let error = Recording::read(other.as_bytes()).unwrap_err();
            assert!(matches!(error, RecordingError::NoRecording), "{error}");
        }
        let mut broken = written(&entries());
        broken.extend_from_slice(b"{\"session\":1}\n");
        let error = Recording::read(broken.as_slice()).unwrap_err();
        assert!(
            matches!(error, RecordingError::Malformed { line: 7, .. }),
            "{error}"
        );
    }

    #[test]
    fn members_of_a_later_release_do_no_harm() {
        let mut file = written(&entries());
        let line = br#"{"session":3,"at":0,"event":"ended","by":"criu","mood":"good"}"#;
        file.extend_from_slice(line);
        file.push(b'\n');
        assert_eq!(Recording::read(file.as_slice()).unwrap().entries.len(), 6);
    }
}
