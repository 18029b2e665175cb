//! A recording, played back as CRIU.

mod compare;
mod outcome;
mod parts;
mod pids;
mod player;
mod program;
mod service;
mod turn;

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use outcome::{Departure, Difference, Outcome, Replayed, Said};
pub use program::ProgramReplay;
pub use service::ReplayHandle;

pub(super) use program::{OPTION, play_program};

use crate::interpose::recording::Recording;
use parts::{Part, parts};
use player::Player;
use turn::Turn;

/// How long the client may take by default.
const PATIENCE: Duration = Duration::from_secs(30);

/// The highest number of its type, far above what a kernel gives to a process.
const NOBODY: i32 = i32::MAX;

/// Plays what an engine and CRIU once said to each other: it speaks as CRIU did, and expects of the client what the engine
/// said.
///
/// Each connection (each process, where it is [played by a program](Replay::program)) is the next session of the recording.
/// The client gets the messages that the engine got: none that was [withheld](crate::interpose::recording::Event::Withheld),
/// and the listener's answer where it [refused](crate::interpose::recording::Event::Refused) a request. They are CRIU's to the
/// byte, but for the pids in them (see below). Where a session ended, the player hangs up or waits for the client to do so;
/// after the answer to a request that was not to keep the connection open, it hangs up, as CRIU does.
///
/// Where a message carried descriptors, it carries as many writing ends of pipes. The player keeps the reading ends until
/// the connection is over, reads nothing, and never blocks whoever writes.
///
/// # What the client must say
/// With [`Compare::Strict`], the same as the engine did, in the same order: the same types of messages with the same options
/// and values. What cannot be the same in another run is compared no further than that it is there: numbers of descriptors,
/// the pid of the tree (and of the page server that is waited for), and the numbers that the kernel gave to namespaces, pipes,
/// sockets, files and terminals in `external` and the keys of `inherit_fd` (`net[4026531840]:KEY`). In a
/// [masked](crate::interpose::Mask) recording, a part of a path matches any other, and all around it must be the same: as many
/// parts, the same beginning `/`, the same dots.
///
/// With [`Compare::Sequence`], only the types and the replies to callbacks (accepted or refused) must be the same, and
/// questions about CRIU itself are not part of it: a VERSION that was not recorded there is answered as it was elsewhere in
/// the recording; a VERSION, FEATURE_CHECK or CHECK that was recorded and that the client does not ask is skipped, also
/// where it is all of a session. So a client that asks VERSION on the connection of its request can be played what one did
/// that asks on a connection of its own, and the reverse.
///
/// # Pids
/// The pids in callbacks and answers are those of processes that are gone; another process may have the number by now, and
/// clients signal and kill what CRIU names. So **no pid of a recording reaches the client**: it gets one that no process can
/// have (2147483647), or that of a process that the caller provides as [`Replay::stand_in`].
///
/// ```
/// use criu_client::interpose::recording::Recording;
/// use criu_client::testing::{Compare, Replay, Speed};
/// use criu_client::{Criu, Version};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let recording = r#"{"criuRecording":1,"writer":"me","started":0}
/// {"session":1,"at":0,"event":"started","pid":4711,"arguments":["swrk","3"],"criu":"/usr/sbin/criu","startedAt":0}
/// {"session":1,"at":1032,"event":"message","from":"engine","bytes":"080a"}
/// {"session":1,"at":2301,"event":"message","from":"criu","bytes":"080a10015206080410022001"}
/// {"session":1,"at":2350,"event":"ended","by":"criu"}
/// "#;
/// // Whoever was recorded asked once, and hung up; we ask on the connection that we will use.
/// let replay = Replay::new(Recording::read(recording.as_bytes())?)
///     .compare(Compare::Sequence)
///     .speed(Speed::MAX)
///     .service()?;
///
/// let version = Criu::service(replay.socket()).version().await?;
/// assert_eq!(version, Version::new(4, 2, 1));
///
/// let replayed = replay.join();
/// assert_eq!(replayed.departure(), None);
/// assert!(replayed.unplayed.is_empty());
/// # Ok(())
/// # })
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Replay {
    recording: Arc<Recording>,
    parts: Arc<[Part]>,
    settings: Settings,
}

/// All but the recording itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Settings {
    speed: Speed,
    compare: Compare,
    patience: Duration,
    /// Where it begins, as an index of the sessions.
    first: usize,
    stand_in: i32,
}

impl Replay {
    /// Plays all sessions, at the recorded speed, and compares strictly.
    pub fn new(recording: Recording) -> Self {
        Self {
            parts: parts(&recording).into(),
            recording: Arc::new(recording),
            settings: Settings {
                speed: Speed::RECORDED,
                compare: Compare::Strict,
                patience: PATIENCE,
                first: 0,
                stand_in: NOBODY,
            },
        }
    }

    /// How long CRIU takes.
    pub fn speed(mut self, speed: Speed) -> Self {
        self.settings.speed = speed;
        self
    }

    /// How closely the client must do as the engine did.
    pub fn compare(mut self, compare: Compare) -> Self {
        self.settings.compare = compare;
        self
    }

    /// How long the client may take for each message; half a minute without, and [`Duration::MAX`] for as long as it likes.
    /// Recorded times of the engine mean nothing here.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.settings.patience = patience;
        self
    }

    /// Begins with the session of this number.
    ///
    /// # Errors
    /// When the recording has none.
    pub fn from_session(mut self, number: u32) -> Result<Self, NoSuchSession> {
        let found = self.parts.iter().position(|part| part.session == number);
        self.settings.first = found.ok_or_else(|| NoSuchSession {
            number,
            recorded: self.parts.iter().map(|part| part.session).collect(),
        })?;
        Ok(self)
    }

    /// The process that stands for every one that CRIU names: the restored root task, the page server. The client may do with
    /// it, and with all below it, whatever it does to such a process: kill it, for one. It is the caller's, who reaps it.
    pub fn stand_in(mut self, pid: i32) -> Self {
        self.settings.stand_in = pid;
        self
    }

    /// Plays on one connection, from the first session, and returns when it is over.
    ///
    /// The socket must be a connected SEQPACKET one. Blocks.
    #[must_use]
    pub fn play(&self, socket: OwnedFd) -> Outcome {
        self.play_in_turn(socket, &Turn::in_memory(self.settings.first), |_| ())
    }

    /// As [`Replay::play`], for a process that an engine has started.
    ///
    /// With a `state`, it is the next session that nobody has played who used the same: a file in which processes that are
    /// started one after another (or at the same time) keep count. It is made when it is missing. `tell` gets the outcome
    /// before the client sees that it is over: some kill their CRIU then.
    pub fn play_as_process(
        &self,
        socket: OwnedFd,
        state: Option<&Path>,
        tell: impl FnOnce(&Outcome),
    ) -> Outcome {
        let turn = match state {
            Some(state) => Turn::in_file(state, self.settings.first),
            None => Turn::in_memory(self.settings.first),
        };
        self.play_in_turn(socket, &turn, tell)
    }

    fn play_in_turn(&self, socket: OwnedFd, turn: &Turn, tell: impl FnOnce(&Outcome)) -> Outcome {
        Player::new(self, socket, turn).play(tell)
    }

    /// Whether the client can be expected to ask for this session: it is skipped otherwise.
    fn is_needed(&self, part: &Part) -> bool {
        self.settings.compare == Compare::Strict
            || !part.only_probes
            || self.parts.iter().all(|part| part.only_probes)
    }
}

/// How closely a client must do as the engine did that was recorded. See [`Replay`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compare {
    /// Every option.
    #[default]
    Strict,
    /// The order of requests, and the replies to callbacks.
    Sequence,
}

/// How fast CRIU is in a replay.
///
/// ```
/// use criu_client::testing::Speed;
///
/// assert_eq!("max".parse(), Ok(Speed::MAX));
/// assert_eq!("2.5".parse(), Speed::times(2.5));
/// assert!(Speed::times(0.0).is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Speed(Option<f64>);

impl Speed {
    /// As fast as it was.
    pub const RECORDED: Self = Self(Some(1.0));
    /// No waiting.
    pub const MAX: Self = Self(None);

    /// So many times as fast.
    ///
    /// # Errors
    /// When the factor is no positive number.
    pub fn times(factor: f64) -> Result<Self, InvalidSpeed> {
        match factor.is_finite() && factor > 0.0 {
            true => Ok(Self(Some(factor))),
            false => Err(InvalidSpeed),
        }
    }

    /// How long something takes that took `recorded`.
    #[must_use]
    pub fn scaled(self, recorded: Duration) -> Duration {
        match self.0 {
            None => Duration::ZERO,
            Some(factor) => Duration::try_from_secs_f64(recorded.as_secs_f64() / factor)
                .unwrap_or(Duration::MAX),
        }
    }
}

impl Default for Speed {
    fn default() -> Self {
        Self::RECORDED
    }
}

impl FromStr for Speed {
    type Err = InvalidSpeed;

    fn from_str(text: &str) -> Result<Self, InvalidSpeed> {
        match text {
            "max" => Ok(Self::MAX),
            factor => Self::times(factor.parse().map_err(|_| InvalidSpeed)?),
        }
    }
}

/// The factor, or `max`.
impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("max"),
            Some(factor) => write!(f, "{factor}"),
        }
    }
}

impl From<Speed> for String {
    fn from(speed: Speed) -> Self {
        speed.to_string()
    }
}

impl TryFrom<String> for Speed {
    type Error = InvalidSpeed;

    fn try_from(text: String) -> Result<Self, InvalidSpeed> {
        text.parse()
    }
}

/// Something that is no speed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a speed is a number above 0, such as 0.5 or 10, or max for no waiting")]
pub struct InvalidSpeed;

/// A session that the recording does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the recording has no session {number}, only {}", listed(.recorded))]
#[non_exhaustive]
pub struct NoSuchSession {
    /// The number that was asked for.
    pub number: u32,
    /// The numbers that there are.
    pub recorded: Vec<u32>,
}

fn listed(numbers: &[u32]) -> String {
    match numbers {
        [] => "nothing".to_owned(),
        numbers => numbers
            .iter()
            .map(u32::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_scale_and_go_both_ways() {
        let second = Duration::from_secs(1);
        assert_eq!(Speed::RECORDED.scaled(second), second);
        assert_eq!(Speed::MAX.scaled(second), Duration::ZERO);
        assert_eq!(Speed::times(4.0).unwrap().scaled(second), second / 4);
        let slow = Speed::times(f64::MIN_POSITIVE).unwrap();
        assert_eq!(slow.scaled(second), Duration::MAX);
        for text in ["max", "1", "0.25", "1000"] {
            assert_eq!(text.parse::<Speed>().unwrap().to_string(), text);
        }
        for text in ["", "0", "-1", "nan", "inf", "fast"] {
            assert_eq!(text.parse::<Speed>(), Err(InvalidSpeed), "{text}");
        }
    }

    #[test]
    fn a_session_that_is_not_there_is_named_with_those_that_are() {
        let text = concat!(
            "{\"criuRecording\":1,\"writer\":\"\",\"started\":0}\n",
            "{\"session\":3,\"at\":0,\"event\":\"ended\",\"by\":\"criu\"}\n",
        );
        let replay = Replay::new(Recording::read(text.as_bytes()).unwrap());
        assert_eq!(replay.clone().from_session(3).unwrap().settings.first, 0);
        let error = replay.from_session(1).unwrap_err();
        assert_eq!(error.to_string(), "the recording has no session 1, only 3");
    }
}
