//! One script on one connection.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::sockopt::PeerCredentials;

use super::connection::Connection;
use super::script::{Script, Step};
use super::transcript::{Message, Transcript};
use super::{Request, Response};
use crate::rpc::wire::CriuOpts;

/// CRIU's name for a log that nobody named.
const DEFAULT_LOG: &str = "criu.log";

/// The steps that only a program of its own can do.
pub(super) enum Form {
    Service,
    Program,
}

/// Plays a script; `save` is called whenever the transcript has grown, because the next step may be the last that is seen.
pub(super) struct Player<S> {
    form: Form,
    connection: Connection,
    opts: Option<CriuOpts>,
    patience: Duration,
    transcript: Transcript,
    save: S,
}

/// What came of a step.
enum Played {
    Next,
    Ended(u8),
}

impl<S: FnMut(&Transcript)> Player<S> {
    pub(super) fn new(form: Form, socket: OwnedFd, transcript: Transcript, save: S) -> Self {
        Self {
            form,
            connection: Connection::new(socket),
            opts: None,
            patience: Duration::ZERO,
            transcript: Transcript {
                connected: true,
                ..transcript
            },
            save,
        }
    }

    /// Plays to the end of the script and returns the exit status that it gives.
    pub(super) fn play(mut self, script: &Script) -> (u8, Transcript) {
        self.patience = script.patience;
        (self.save)(&self.transcript);
        let mut status = 0;
        for (index, step) in script.steps.iter().enumerate() {
            match self.step(step) {
                Ok(played) => {
                    self.transcript.steps += 1;
                    (self.save)(&self.transcript);
                    if let Played::Ended(with) = played {
                        status = with;
                        break;
                    }
                }
                Err(problem) => {
                    self.transcript.problem =
                        Some(format!("step {} ({}): {problem}", index + 1, name_of(step)));
                    break;
                }
            }
        }
        self.transcript.pipes = self.connection.drain_pipes();
        (self.save)(&self.transcript);
        (status, self.transcript)
    }

    fn step(&mut self, step: &Step) -> Result<Played, String> {
        match step {
            Step::Expect(request) => {
                let message = self.read()?.ok_or("the client hung up")?;
                if message.request != Some(*request) {
                    return Err(format!("got {}", described(&message)));
                }
            }
            Step::ExpectReply(verdict) => {
                let message = self.read()?.ok_or("the client hung up")?;
                let expected = verdict.is_none() || message.accepted == *verdict;
                if message.request != Some(Request::Notify) || !expected {
                    return Err(format!("got {}", described(&message)));
                }
            }
            Step::ExpectHangUp => {
                if let Some(message) = self.read()? {
                    return Err(format!("got {}", described(&message)));
                }
            }
            Step::AwaitUnread => self.wait_readable()?,
            Step::Send { bytes, descriptors } => {
                // A client that has hung up does not keep CRIU from trying to answer either.
                self.connection.send(bytes, *descriptors)?;
            }
            Step::Stdout(text) => self.print(io::stdout(), text),
            Step::Stderr(text) => self.print(io::stderr(), text),
            Step::WriteLog(text) => {
                let opts = self.opts.as_ref().ok_or("no request with options came")?;
                let directory = opts.work_dir_fd.unwrap_or(opts.images_dir_fd);
                let name = opts.log_file.clone();
                self.write(directory, name.as_deref().unwrap_or(DEFAULT_LOG), text)?;
            }
            Step::WriteImage { name, contents } => {
                let opts = self.opts.as_ref().ok_or("no request with options came")?;
                self.write(opts.images_dir_fd, name, contents)?;
            }
            Step::Silence => while self.read()?.is_some() {},
            Step::Linger(time) => std::thread::sleep(*time),
            Step::HangUp => self.connection.hang_up(),
            Step::LeaveConnectionOpen => self.leave_open()?,
            Step::Exit(status) => return Ok(Played::Ended(*status)),
            Step::Die(signal) => return self.die(*signal),
        }
        Ok(Played::Next)
    }

    /// The next message; `None` when the client has hung up.
    fn read(&mut self) -> Result<Option<Message>, String> {
        self.wait_readable()?;
        let Some((bytes, descriptors)) = self.connection.receive()? else {
            self.transcript.hung_up = true;
            (self.save)(&self.transcript);
            return Ok(None);
        };
        let (message, opts) = Message::read(&bytes, descriptors);
        if message.request != Some(Request::Notify) {
            self.opts = opts.or(self.opts.take());
        }
        self.transcript.messages.push(message.clone());
        (self.save)(&self.transcript);
        Ok(Some(message))
    }

    fn wait_readable(&self) -> Result<(), String> {
        match self.connection.wait_readable(self.patience)? {
            true => Ok(()),
            false => Err(format!("nothing came within {:?}", self.patience)),
        }
    }

    fn print(&self, mut stream: impl Write, text: &[u8]) {
        if let Form::Program = self.form {
            // CRIU does not stop either when its output has nowhere to go.
            let _ = stream.write_all(text).and_then(|()| stream.flush());
        }
    }

    fn write(&self, directory: i32, name: &str, contents: &[u8]) -> Result<(), String> {
        let peer = nix::sys::socket::getsockopt(self.connection.socket()?, PeerCredentials)
            .map_err(|error| error.to_string())?;
        let path = format!("/proc/{}/fd/{directory}/{name}", peer.pid());
        OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(&path)
            .and_then(|mut file| file.write_all(contents))
            .map_err(|error| format!("{path}: {error}"))
    }

    fn leave_open(&self) -> Result<(), String> {
        if let Form::Program = self.form {
            let socket = self
                .connection
                .socket()?
                .try_clone()
                .map_err(|error| error.to_string())?;
            Command::new("/bin/cat")
                .stdin(Stdio::from(socket))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn die(&mut self, signal: i32) -> Result<Played, String> {
        let signal = Signal::try_from(signal).map_err(|error| error.to_string())?;
        if let Form::Program = self.form {
            self.transcript.steps += 1;
            (self.save)(&self.transcript);
            // Rust's own handler of SIGSEGV and SIGBUS survives the first: it puts back the default and waits for the next.
            for _ in 0..2 {
                kill(nix::unistd::getpid(), signal).map_err(|error| error.to_string())?;
            }
        }
        Ok(Played::Ended(0))
    }
}

fn described(message: &Message) -> String {
    match (message.request, message.accepted) {
        (None, _) => format!("{} bytes that are no request", message.length),
        (Some(Request::Notify), Some(true)) => "an acceptance".into(),
        (Some(Request::Notify), _) => "a refusal".into(),
        (Some(request), _) => request.to_string(),
    }
}

fn name_of(step: &Step) -> String {
    match step {
        Step::Expect(request) => format!("expect {request}"),
        Step::ExpectReply(Some(true)) => "expect an acceptance".into(),
        Step::ExpectReply(Some(false)) => "expect a refusal".into(),
        Step::ExpectReply(None) => "expect a reply".into(),
        Step::ExpectHangUp => "expect a hang-up".into(),
        Step::AwaitUnread => "await a message".into(),
        Step::Send { .. } => "send".into(),
        Step::Stdout(_) => "write to standard output".into(),
        Step::Stderr(_) => "write to standard error".into(),
        Step::WriteLog(_) => "write the log".into(),
        Step::WriteImage { name, .. } => format!("write the image {name}"),
        Step::Silence => "silence".into(),
        Step::Linger(_) => "linger".into(),
        Step::HangUp => "hang up".into(),
        Step::LeaveConnectionOpen => "leave the connection open".into(),
        Step::Exit(status) => format!("exit {status}"),
        Step::Die(signal) => format!("die by signal {signal}"),
    }
}

/// What a client gets that came after the last script.
pub(super) fn turn_away(socket: OwnedFd) {
    let _ = Connection::new(socket).send(&Response::failure(Request::Empty).to_bytes(), 0);
}
