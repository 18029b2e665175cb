//! `replay`

use std::ffi::OsString;
use std::fs::File;
use std::io::BufReader;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};

use criu_client::interpose::place::CommandLine;
use criu_client::interpose::recording::Recording;
use criu_client::testing::{Compare, Outcome, Replay, Replayed, Speed};

use super::Context;
use super::descriptors::inherited;
use super::failure::Failure;
use super::signals::Interrupts;
use super::values;

/// Speak as CRIU did in a recording, and fail where the client does otherwise than it did then
///
/// No task is touched, and no pid of the recording is told: a restored root task has one that no process can have, unless
/// --stand-in names another.
#[derive(Debug, Args)]
#[command(
    override_usage = "criuctl replay [OPTIONS] FILE [CRIU-OPTION]… swrk FD\n       criuctl replay [OPTIONS] FILE --listen SOCKET",
    after_long_help = "\
A program that starts `criu swrk` plays a recording when it finds this first on its PATH as `criu`:
  #!/bin/sh
  exec criuctl replay --state /tmp/state /srv/dump.recording \"$@\"

Exit status: 0 played to the end, 1 the client did otherwise than was recorded (standard error says where), 2 bad input."
)]
pub(super) struct ReplayArgs {
    /// The recording
    #[arg(value_name = "FILE", value_parser = values::path)]
    file: PathBuf,

    /// What `criu` was started with: any options, swrk, and the descriptor to speak on
    #[arg(
        value_name = "CRIU-ARGUMENT",
        allow_hyphen_values = true,
        trailing_var_arg = true,
        conflicts_with = "listen"
    )]
    arguments: Vec<OsString>,

    /// Listen at this socket as `criu service` does, until every session is played
    #[arg(long, value_name = "SOCKET", value_parser = values::path)]
    listen: Option<PathBuf>,

    /// How many times as fast as it was recorded, or max for no waiting
    #[arg(long, value_name = "FACTOR", default_value_t = Speed::RECORDED)]
    speed: Speed,

    /// What must be as it was recorded
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    compare: Comparison,

    /// Session to begin with [default: the first]
    #[arg(long, value_name = "NUMBER")]
    session: Option<u32>,

    /// File in which processes started one after another keep count of the sessions; it is made if it is missing
    #[arg(long, value_name = "FILE", value_parser = values::path, conflicts_with = "listen")]
    state: Option<PathBuf>,

    /// Process that stands for a restored root task or a page server; the client may signal and kill it
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    stand_in: Option<i32>,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Comparison {
    /// Every option, but for numbers that differ from run to run
    #[default]
    Strict,
    /// The order of requests and the replies to callbacks
    Sequence,
}

impl From<Comparison> for Compare {
    fn from(comparison: Comparison) -> Self {
        match comparison {
            Comparison::Strict => Self::Strict,
            Comparison::Sequence => Self::Sequence,
        }
    }
}

impl ReplayArgs {
    fn replay(&self) -> Result<Replay, Failure> {
        let file = File::open(&self.file).map_err(|error| self.unreadable(error))?;
        let recording =
            Recording::read(BufReader::new(file)).map_err(|error| self.unreadable(error))?;
        let mut replay = Replay::new(recording)
            .speed(self.speed)
            .compare(self.compare.into())
            // CRIU waits for its client for as long as that likes.
            .patience(Duration::MAX);
        if let Some(pid) = self.stand_in {
            replay = replay.stand_in(pid);
        }
        match self.session {
            Some(number) => replay
                .from_session(number)
                .map_err(|error| Failure::input(format!("--session: {error}"))),
            None => Ok(replay),
        }
    }

    fn unreadable(&self, error: impl std::error::Error + Send + Sync + 'static) -> Failure {
        let file = self.file.display();
        Failure::input(format!("{file} cannot be replayed")).caused_by(error)
    }

    /// The descriptor of `swrk FD`.
    fn socket(&self) -> Result<OwnedFd, Failure> {
        let line = CommandLine::of(
            [OsString::from("criu")]
                .into_iter()
                .chain(self.arguments.clone()),
        );
        let Some(number) = line.worker_socket else {
            return Err(Failure::usage("it is not said whom to speak to").hint(
                "write swrk and the number of a descriptor last, as engines start CRIU, or --listen SOCKET",
            ));
        };
        let socket = inherited(number, "swrk")?;
        match rustix::net::sockopt::socket_type(&socket) {
            Ok(rustix::net::SocketType::SEQPACKET) => Ok(socket),
            Ok(_) => Err(Failure::input(format!(
                "swrk: descriptor {number} is no socket of type SEQPACKET"
            ))),
            Err(error) => Err(
                Failure::input(format!("swrk: descriptor {number} is no socket")).caused_by(error),
            ),
        }
    }
}

pub(super) async fn run(context: &Context, replay: &ReplayArgs) -> Result<ExitCode, Failure> {
    let recording = replay.replay()?;
    if let Some(path) = &replay.listen {
        return listen(context, recording, path).await;
    }
    let socket = replay.socket()?;
    let mut status = ExitCode::SUCCESS;
    // Blocks, with nothing beside it. A signal ends this program, as it would end CRIU.
    recording.play_as_process(socket, replay.state.as_deref(), |outcome| {
        status = told(context, outcome.clone().into())
            .unwrap_or_else(|failure| failure.report(&context.output));
    });
    Ok(status)
}

async fn listen(context: &Context, recording: Replay, path: &Path) -> Result<ExitCode, Failure> {
    let mut interrupts = Interrupts::new()?;
    let service = recording.service_at(path).map_err(|error| {
        Failure::input(format!("{} cannot be listened at", path.display())).caused_by(error)
    })?;
    let signal = tokio::select! {
        () = service.over() => None,
        signal = interrupts.next() => Some(signal),
    };
    // What is still being played has no outcome yet, and may never have.
    let replayed = service.so_far();
    drop(service);
    match signal {
        Some(signal) if replayed.outcomes.iter().all(Outcome::is_whole) => {
            let left = replayed.unplayed.len();
            Err(Failure::stopped(
                signal,
                format_args!("{left} sessions have not been played"),
            ))
        }
        _ => told(context, replayed),
    }
}

fn told(context: &Context, replayed: Replayed) -> Result<ExitCode, Failure> {
    if let Some(departure) = replayed.departure() {
        return Err(Failure::departed(departure.clone()));
    }
    if let Some(problem) = replayed.problem() {
        return Err(Failure::failed(format!(
            "the recording could not be played to its end: {problem}"
        )));
    }
    // CRIU says nothing there either.
    context.output.result("Replay", &replayed, String::new)?;
    Ok(ExitCode::SUCCESS)
}
