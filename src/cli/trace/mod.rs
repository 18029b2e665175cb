//! `trace`

mod summary;
mod view;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, BufReader as AsyncBufReader};
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use criu_client::interpose::Service;
use criu_client::interpose::recording::{Entry, Event, Header, Recording, write_line};

use self::summary::Summary;
use self::view::View;
use super::Context;
use super::failure::{Failure, Status};
use super::interpose::{Listening, Stage};
use super::output::{API_VERSION, Format, print, say};
use super::signals::Interrupts;
use super::values;
use crate::listening;
use crate::listening::settings::{Settings, Sink};

/// How long sessions may go on after the command has ended before they are no longer shown.
const TO_END: Duration = Duration::from_secs(2);

/// Run a command and show everything that passes between it and CRIU
///
/// Whatever COMMAND starts finds criu-listener as `criu` first on its PATH: it listens in and starts the real CRIU. Works with
/// runc, crun (through libcriu), podman, and every other program that starts `criu swrk`; other criu command lines are
/// passed on untouched. The exit status is COMMAND's.
///
/// The trace goes to standard error, or with --format json to standard output, one document per line; COMMAND's own output
/// then goes to standard error.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  criuctl trace -- runc checkpoint --image-path /var/tmp/web web
  criuctl trace --record /var/tmp/web.jsonl -- podman container checkpoint web
  criuctl trace --hook post-dump=/usr/local/bin/snapshot --amend dump:network-lock=skip -- runc checkpoint web
  criuctl trace --read /var/tmp/web.jsonl
  criuctl trace --listen /run/criu.sock --service /run/criu_service.socket")]
pub(super) struct Trace {
    /// File that gets a recording, for `criuctl replay` and --read; it must not exist yet
    #[arg(long, value_name = "FILE", value_parser = values::path)]
    record: Option<PathBuf>,

    /// File that the trace goes to
    #[arg(long, short = 'o', value_name = "FILE", value_parser = values::path)]
    output: Option<PathBuf>,

    #[command(flatten)]
    listening: Listening,

    /// Show a recording instead
    #[arg(long, value_name = "FILE", value_parser = values::path,
        conflicts_with_all = ["record", "hooks", "amend", "mask_paths", "listen", "command"])]
    read: Option<PathBuf>,

    /// Listen on this socket, for clients of the criu service that --service names
    #[arg(long, value_name = "SOCKET", value_parser = values::path)]
    listen: Option<PathBuf>,

    /// The command and its arguments
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<String>,
}

pub(super) async fn run(context: &Context, trace: &Trace) -> Result<ExitCode, Failure> {
    let mut teller = Teller::new(context, trace)?;
    if let Some(path) = &trace.read {
        let recording = read(path)?;
        for entry in recording.entries {
            teller.tell(&entry)?;
        }
        teller.end()?;
        return Ok(ExitCode::SUCCESS);
    }
    match (&trace.listen, trace.command.split_first()) {
        (Some(socket), command) => listen(context, trace, socket, command, teller).await,
        (None, Some((program, arguments))) => {
            follow(context, trace, (program, arguments), teller).await
        }
        (None, None) => Err(Failure::usage("there is no command to trace").hint(
            "write it last, such as: criuctl trace -- runc checkpoint web; or --read a recording",
        )),
    }
}

/// A recording, whole.
fn read(path: &Path) -> Result<Recording, Failure> {
    let unreadable = || Failure::input(format!("{} cannot be shown", path.display()));
    let file = File::open(path).map_err(|error| unreadable().caused_by(error))?;
    Recording::read(BufReader::new(file)).map_err(|error| unreadable().caused_by(error))
}

/// Runs a command whose criu is this program.
async fn follow(
    context: &Context,
    trace: &Trace,
    command: (&String, &[String]),
    mut teller: Teller,
) -> Result<ExitCode, Failure> {
    let program = values::program_named(command.0).map_err(Failure::missing)?;
    let directory = tempfile::Builder::new()
        .prefix("criuctl-trace-")
        .tempdir()
        .map_err(|error| Failure::failed("there is no temporary directory").caused_by(error))?;
    let socket = directory.path().join("trace.socket");
    let listener = UnixListener::bind(&socket)
        .map_err(|error| Failure::failed("nothing can be listened to").caused_by(error))?;
    let own_stderr = format!("/proc/{}/fd/2", std::process::id());
    let settings = Settings::new(
        &context.criu(Vec::new())?,
        &trace.listening.wanted(context),
        Sink::Socket(socket),
        Some(own_stderr.into()),
    )
    .await?;
    let stage = Stage::create(directory.path(), &settings)?;

    let mut interrupts = Interrupts::new()?;
    let mut child = start(context, trace, &program, command.1, |command| {
        command.env("PATH", stage.on_path());
    })?;
    let mut sessions = Sessions::new(listener);
    let status = loop {
        tokio::select! {
            biased;
            entry = sessions.next() => teller.tell(&entry)?,
            status = child.wait() => break status,
            signal = interrupts.next() => pass_on(&child, signal),
        }
    };
    let status = status
        .map_err(|error| Failure::failed("the command cannot be waited for").caused_by(error))?;
    // The command has ended, and what listens in ends right after CRIU: what it has told is still to be shown.
    let deadline = tokio::time::Instant::now() + TO_END;
    while let Ok(Some(entry)) = tokio::time::timeout_at(deadline, sessions.rest()).await {
        teller.tell(&entry)?;
    }
    if sessions.open > 0 && !context.output.quiet {
        context.output.note(format_args!(
            "{} still at work: not shown any more",
            match sessions.open {
                1 => "one session is".to_owned(),
                open => format!("{open} sessions are"),
            }
        ));
    }
    teller.end()?;
    Ok(ExitCode::from(status_of(status)))
}

/// A service's clients, until the command ends or a signal comes.
async fn listen(
    context: &Context,
    trace: &Trace,
    socket: &Path,
    command: Option<(&String, &[String])>,
    mut teller: Teller,
) -> Result<ExitCode, Failure> {
    let Some(upstream) = &context.global.service else {
        return Err(
            Failure::usage("--listen needs the service that clients are to reach")
                .hint("name its socket with --service SOCKET"),
        );
    };
    if upstream == socket {
        return Err(Failure::usage("--listen and --service are the same socket"));
    }
    let settings = Settings::for_service(
        &context.criu(Vec::new())?,
        upstream,
        &trace.listening.wanted(context),
    )
    .await?;
    let service = Service::listen(socket, upstream).map_err(|error| {
        Failure::input(format!("{} cannot be listened on", socket.display())).caused_by(error)
    })?;
    let mut interrupts = Interrupts::new()?;
    let mut child = match command {
        Some((name, arguments)) => {
            let program = values::program_named(name).map_err(Failure::missing)?;
            Some(start(context, trace, &program, arguments, |_| {})?)
        }
        None => None,
    };
    let (entries, mut queue) = mpsc::unbounded_channel();
    let mut sessions = 0;
    let status = loop {
        tokio::select! {
            biased;
            Some(entry) = queue.recv() => teller.tell(&entry)?,
            client = service.accept() => {
                let client = client.map_err(|error| {
                    Failure::failed("no client can be taken").caused_by(error)
                })?;
                sessions += 1;
                let (number, entries) = (sessions, entries.clone());
                let interposer = listening::interposer(&settings).observer(move |entry| {
                    // Nobody may be reading any more.
                    let _ = entries.send(numbered(entry, number));
                });
                tokio::spawn(client.listen(interposer));
            }
            status = ended(child.as_mut()) => break Some(status),
            signal = interrupts.next() => match &child {
                Some(child) => pass_on(child, signal),
                None => break None,
            },
        }
    };
    while let Ok(entry) = queue.try_recv() {
        teller.tell(&entry)?;
    }
    teller.end()?;
    match status {
        Some(Ok(status)) => Ok(ExitCode::from(status_of(status))),
        Some(Err(error)) => {
            Err(Failure::failed("the command cannot be waited for").caused_by(error))
        }
        None => Ok(ExitCode::from(Status::Interrupted as u8)),
    }
}

async fn ended(child: Option<&mut Child>) -> io::Result<ExitStatus> {
    match child {
        Some(child) => child.wait().await,
        None => std::future::pending().await,
    }
}

fn start(
    context: &Context,
    trace: &Trace,
    program: &Path,
    arguments: &[String],
    prepare: impl FnOnce(&mut Command),
) -> Result<Child, Failure> {
    let mut command = Command::new(program);
    command.args(arguments);
    if context.output.format == Format::Json && trace.output.is_none() {
        // Standard output is the trace's.
        let stderr = rustix::io::fcntl_dupfd_cloexec(io::stderr(), 3).map_err(|errno| {
            Failure::failed("there is no standard error").caused_by(io::Error::from(errno))
        })?;
        command.stdout(Stdio::from(stderr));
    }
    prepare(&mut command);
    command.spawn().map_err(|error| {
        Failure::missing(format!("{} cannot be run", program.display())).caused_by(error)
    })
}

/// A terminal's signals reach the command by themselves; what was sent to us alone is for it.
fn pass_on(child: &Child, signal: &str) {
    let signal = match signal {
        "SIGTERM" => Signal::TERM,
        "SIGHUP" => Signal::HUP,
        _ => return,
    };
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    if let Some(pid) = pid {
        // It may have ended this moment.
        let _ = kill_process(pid, signal);
    }
}

/// As a shell has it.
fn status_of(status: ExitStatus) -> u8 {
    let status = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(status).unwrap_or(u8::MAX)
}

fn numbered(mut entry: Entry, session: u32) -> Entry {
    entry.session = session;
    entry
}

/// The listeners that tell what passes: each has a connection.
struct Sessions {
    listener: UnixListener,
    entries: mpsc::UnboundedReceiver<Told>,
    teller: mpsc::UnboundedSender<Told>,
    count: u32,
    open: usize,
}

enum Told {
    Entry(Box<Entry>),
    Gone,
}

impl Sessions {
    fn new(listener: UnixListener) -> Self {
        let (teller, entries) = mpsc::unbounded_channel();
        Self {
            listener,
            entries,
            teller,
            count: 0,
            open: 0,
        }
    }

    /// The next entry of any session. Cancel safe.
    async fn next(&mut self) -> Entry {
        loop {
            tokio::select! {
                biased;
                Some(told) = self.entries.recv() => match told {
                    Told::Entry(entry) => return *entry,
                    Told::Gone => self.open -= 1,
                },
                Ok((connection, _)) = self.listener.accept() => {
                    self.count += 1;
                    self.open += 1;
                    tokio::spawn(follow_session(connection, self.count, self.teller.clone()));
                }
            }
        }
    }

    /// The next entry of the sessions that have begun; `None` when all of them have ended.
    async fn rest(&mut self) -> Option<Entry> {
        // Those that wait to be taken.
        let waiting = std::future::poll_fn(|context| {
            while let std::task::Poll::Ready(Ok((connection, _))) =
                self.listener.poll_accept(context)
            {
                self.count += 1;
                self.open += 1;
                tokio::spawn(follow_session(connection, self.count, self.teller.clone()));
            }
            std::task::Poll::Ready(())
        });
        waiting.await;
        while self.open > 0 {
            match self.entries.recv().await? {
                Told::Entry(entry) => return Some(*entry),
                Told::Gone => self.open -= 1,
            }
        }
        match self.entries.try_recv() {
            Ok(Told::Entry(entry)) => Some(*entry),
            _ => None,
        }
    }
}

async fn follow_session(
    connection: tokio::net::UnixStream,
    number: u32,
    teller: mpsc::UnboundedSender<Told>,
) {
    let mut lines = AsyncBufReader::new(connection).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        // The first line is a header.
        if let Ok(entry) = serde_json::from_str::<Entry>(&line) {
            let _ = teller.send(Told::Entry(numbered(entry, number).into()));
        }
    }
    let _ = teller.send(Told::Gone);
}

/// Shows what passes, and records it.
struct Teller {
    format: Format,
    quiet: bool,
    file: Option<File>,
    record: Option<File>,
    view: View,
    summaries: HashMap<u32, Summary>,
    /// When each session began, and the first of them, in microseconds since the epoch.
    began: HashMap<u32, u64>,
    first: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a, T> {
    api_version: &'static str,
    kind: &'static str,
    #[serde(flatten)]
    body: &'a T,
}

impl Teller {
    fn new(context: &Context, trace: &Trace) -> Result<Self, Failure> {
        let file = match &trace.output {
            Some(path) => Some(File::create(path).map_err(|error| {
                Failure::input(format!("{} cannot be written", path.display())).caused_by(error)
            })?),
            None => None,
        };
        let record = match &trace.record {
            Some(path) => {
                let cannot = |error| {
                    Failure::input(format!("{} cannot be made", path.display())).caused_by(error)
                };
                let mut record = File::options()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(path)
                    .map_err(cannot)?;
                write_line(&mut record, &Header::now(trace.listening.mask_paths))
                    .map_err(cannot)?;
                Some(record)
            }
            None => None,
        };
        Ok(Self {
            format: context.output.format,
            quiet: context.output.quiet,
            file,
            record,
            view: View::default(),
            summaries: HashMap::new(),
            began: HashMap::new(),
            first: None,
        })
    }

    fn tell(&mut self, entry: &Entry) -> Result<(), Failure> {
        if let Some(record) = &mut self.record {
            write_line(record, entry).map_err(|error| {
                Failure::failed("the recording cannot be written").caused_by(error)
            })?;
        }
        if let Event::Started { started_at, .. } = entry.event {
            self.began.insert(entry.session, started_at);
            self.first.get_or_insert(started_at);
        }
        let began = self.began.get(&entry.session).copied().unwrap_or_default();
        // Microseconds since the first session began, on the clock of each session.
        let since = began.saturating_sub(self.first.unwrap_or(began)) + entry.at;
        self.summaries.entry(entry.session).or_default().take(entry);
        match self.format {
            Format::Json => self.document("TraceEvent", entry),
            Format::Human => {
                let text = self.view.text(entry, since);
                self.text(&text)
            }
        }
    }

    fn end(mut self) -> Result<(), Failure> {
        let mut summaries: Vec<_> = std::mem::take(&mut self.summaries).into_iter().collect();
        summaries.sort_by_key(|(session, _)| *session);
        for (session, summary) in summaries {
            for operation in summary.operations(session) {
                match self.format {
                    Format::Json => self.document("TraceSummary", &operation)?,
                    Format::Human => self.text(&operation.text())?,
                }
            }
        }
        Ok(())
    }

    fn document(&mut self, kind: &'static str, body: &impl Serialize) -> Result<(), Failure> {
        let document = Document {
            api_version: API_VERSION,
            kind,
            body,
        };
        let mut line = Vec::new();
        write_line(&mut line, &document)
            .map_err(|error| Failure::failed("the trace cannot be written").caused_by(error))?;
        match &mut self.file {
            Some(file) => file
                .write_all(&line)
                .map_err(|error| Failure::failed("the trace cannot be written").caused_by(error)),
            None => print(&line),
        }
    }

    fn text(&mut self, text: &str) -> Result<(), Failure> {
        match &mut self.file {
            Some(file) => file
                .write_all(text.as_bytes())
                .map_err(|error| Failure::failed("the trace cannot be written").caused_by(error)),
            None if self.quiet => Ok(()),
            None => {
                say(text);
                Ok(())
            }
        }
    }
}
