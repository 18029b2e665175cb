//! What the peer does, step by step.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Callback, Request, Response};

/// How long the peer waits for the client by default.
const PATIENCE: Duration = Duration::from_secs(30);

/// The steps of one connection, in order. After the last step the peer hangs up, and as a program exits with status 0.
///
/// A step that waits for the client and gets something else, or nothing within [`Script::patience`], ends the script: the
/// peer hangs up, and the transcript names the step.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[must_use]
pub struct Script {
    pub(super) steps: Vec<Step>,
    pub(super) patience: Duration,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Step {
    Expect(Request),
    ExpectReply(Option<bool>),
    ExpectHangUp,
    AwaitUnread,
    Send { bytes: Vec<u8>, descriptors: usize },
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    WriteLog(Vec<u8>),
    WriteImage { name: String, contents: Vec<u8> },
    Silence,
    Linger(Duration),
    HangUp,
    LeaveConnectionOpen,
    Exit(u8),
    Die(i32),
}

impl Default for Script {
    fn default() -> Self {
        Self {
            steps: Vec::new(),
            patience: PATIENCE,
        }
    }
}

impl Script {
    /// No steps: hangs up as soon as it is connected.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long each step waits for the client; half a minute without.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Expects VERSION and answers it; with `sublevel` 0, as CRIU does, without one. Every operation begins with this.
    pub fn version(self, major: i32, minor: i32, sublevel: i32) -> Self {
        self.expect(Request::Version)
            .respond(Response::success(Request::Version).version(major, minor, sublevel))
    }

    /// Reads one message, which must be this request.
    pub fn expect(self, request: Request) -> Self {
        self.step(Step::Expect(request))
    }

    /// Sends a callback. CRIU would wait for the reply; the peer only does in the next step, if that says so.
    pub fn callback(self, callback: impl Into<Callback>) -> Self {
        let callback = callback.into();
        self.datagram(callback.to_bytes(), callback.descriptors)
    }

    /// Reads one message, which must accept a callback.
    pub fn expect_accept(self) -> Self {
        self.step(Step::ExpectReply(Some(true)))
    }

    /// Reads one message, which must refuse a callback.
    pub fn expect_refusal(self) -> Self {
        self.step(Step::ExpectReply(Some(false)))
    }

    /// Reads one message, which must be the reply to a callback, whatever it says.
    pub fn expect_reply(self) -> Self {
        self.step(Step::ExpectReply(None))
    }

    /// Waits until the client hangs up; a message instead is a problem.
    pub fn expect_hang_up(self) -> Self {
        self.step(Step::ExpectHangUp)
    }

    /// Waits until a message of the client is there, and leaves it unread: hanging up then resets the connection.
    pub fn await_unread(self) -> Self {
        self.step(Step::AwaitUnread)
    }

    /// Sends an answer.
    pub fn respond(self, response: Response) -> Self {
        self.datagram(response.to_bytes(), 0)
    }

    /// Answers DUMP as CRIU does after a good one.
    pub fn answer_dump_ok(self) -> Self {
        self.respond(Response::success(Request::Dump).restored(false))
    }

    /// Answers RESTORE as CRIU does after a good one: `pid` is the restored root task.
    pub fn answer_restore_ok(self, pid: i32) -> Self {
        self.respond(Response::success(Request::Restore).restore_pid(pid))
    }

    /// Answers with success and nothing else.
    pub fn answer_ok(self, request: Request) -> Self {
        self.respond(Response::success(request))
    }

    /// Answers with failure and nothing else.
    pub fn answer_failure(self, request: Request) -> Self {
        self.respond(Response::failure(request))
    }

    /// Sends any bytes, with this many descriptors as [`Callback::descriptors`] has them.
    pub fn datagram(self, bytes: impl Into<Vec<u8>>, descriptors: usize) -> Self {
        self.step(Step::Send {
            bytes: bytes.into(),
            descriptors,
        })
    }

    /// Writes to standard output. As a service: does nothing.
    pub fn stdout(self, text: impl Into<Vec<u8>>) -> Self {
        self.step(Step::Stdout(text.into()))
    }

    /// Writes to standard error. As a service: does nothing.
    pub fn stderr(self, text: impl Into<Vec<u8>>) -> Self {
        self.step(Step::Stderr(text.into()))
    }

    /// Writes the log of the last request, where CRIU would: in the work directory, else the images directory, under the name
    /// that was asked for.
    pub fn write_log(self, text: impl Into<Vec<u8>>) -> Self {
        self.step(Step::WriteLog(text.into()))
    }

    /// Writes a file into the images directory of the last request, which it finds as CRIU does: by the descriptor's number
    /// in the client's table.
    pub fn write_image(self, name: impl Into<String>, contents: impl Into<Vec<u8>>) -> Self {
        self.step(Step::WriteImage {
            name: name.into(),
            contents: contents.into(),
        })
    }

    /// Says nothing more, takes note of what the client sends, and ends when it hangs up.
    pub fn silence(self) -> Self {
        self.step(Step::Silence)
    }

    /// Neither reads nor writes for this long, and notices nothing, not even that the client has hung up.
    pub fn linger(self, time: Duration) -> Self {
        self.step(Step::Linger(time))
    }

    /// Hangs up; the following steps are those that need no connection.
    pub fn hang_up(self) -> Self {
        self.step(Step::HangUp)
    }

    /// Leaves the connection open in another process, as a fork of CRIU can: when the peer dies, the client sees no hang-up.
    /// That process takes all further messages and ends when the client hangs up. As a service: does nothing.
    pub fn leave_connection_open(self) -> Self {
        self.step(Step::LeaveConnectionOpen)
    }

    /// Ends here with this exit status. As a service: hangs up.
    pub fn exit(self, status: u8) -> Self {
        self.step(Step::Exit(status))
    }

    /// Dies here by SIGKILL. As a service: hangs up.
    pub fn die(self) -> Self {
        self.die_by(libc::SIGKILL)
    }

    /// Dies here by this signal (its number). As a service: hangs up.
    pub fn die_by(self, signal: i32) -> Self {
        self.step(Step::Die(signal))
    }

    /// Writes the script to a file, as JSON.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> io::Result<()> {
        serde_json::to_writer(File::create(path)?, self).map_err(io::Error::from)
    }

    /// Reads a script that was [saved](Script::save).
    ///
    /// # Errors
    /// When the file cannot be read or is no script.
    pub fn load(path: impl AsRef<Path>) -> io::Result<Self> {
        serde_json::from_slice(&std::fs::read(path)?).map_err(io::Error::from)
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }
}
