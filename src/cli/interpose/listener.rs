//! Being `criu`: what this program does when an engine has started it in CRIU's place.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use criu_client::interpose::place::{self, CommandLine};
use criu_client::interpose::recording::{Header, micros_since_epoch, write_line};
use criu_client::interpose::{Interposer, Mask, Verdict};
use criu_client::notify::{HookTable, Program, Script};

use super::super::failure::Failure;
use super::super::output::say;
use super::amend::Amend;
use super::stage::{self, Settings, Sink};

/// What a shell's status is when a program cannot be executed.
const NOT_EXECUTED: u8 = 127;

/// How long whoever reads along may take to read the end of it.
const TO_READ: Duration = Duration::from_secs(2);

/// Does CRIU's part if this program was started as `criu` from a directory of ours, and returns the status to end with.
pub(in crate::cli) fn run_if_started_as_criu() -> Option<ExitCode> {
    let settings = stage::started_from()?;
    Some(
        settings
            .and_then(|settings| be_criu(&settings))
            .unwrap_or_else(|failure| {
                // The engine shows what its CRIU writes, if anything.
                say(&format!(
                    "criu (criuctl listens in): {}\n",
                    failure.summary()
                ));
                ExitCode::from(NOT_EXECUTED)
            }),
    )
}

fn be_criu(settings: &Settings) -> Result<ExitCode, Failure> {
    let line = CommandLine::of(std::env::args_os());
    let failed = |error| Failure::failed("CRIU cannot be listened in on").caused_by(error);
    if line.worker_socket.is_none() {
        match place::become_criu(&settings.criu, &line).map_err(failed)? {}
    }
    let listener = place::take(&settings.criu, &line).map_err(failed)?;
    // From here on this is another process, with nothing open and nobody to tell anything but the sink.
    if let Some(path) = &settings.hook_output
        && let Ok(output) = File::options()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
    {
        let _ = rustix::stdio::dup2_stderr(output);
    }
    let record = Record::open(settings, listener.criu_pid());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let carried = runtime.and_then(|runtime| {
        runtime.block_on(listener.listen(interposer(settings, record.as_ref())))
    });
    if let Some(record) = record {
        record.finish();
    }
    Ok(match carried {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

/// What is done on the way. Whatever cannot be done any more refuses the request: nothing passes unseen by a hook that is to
/// see it.
pub(in crate::cli) fn interposer(
    settings: &Settings,
    record: Option<&Record>,
) -> Interposer<'static> {
    let mut interposer = Interposer::new();
    if !settings.hooks.is_empty() {
        let mut table = HookTable::new();
        let mut scripts = Vec::new();
        for (script, program) in &settings.hooks {
            let script = Script::from_name(script);
            scripts.push(script.clone());
            table = table.on(script, Program::new(program));
        }
        interposer = interposer.hooks_at(scripts, table);
    }
    if let Some(millis) = settings.hook_timeout_millis {
        interposer = interposer.hook_limit(Duration::from_millis(millis));
    }
    if !settings.amend.is_empty() {
        let words = settings.amend.clone();
        interposer = interposer.on_request(move |request| {
            let Some(operation) = request.operation() else {
                return Ok(Verdict::Pass);
            };
            let amends: Vec<Amend> = words
                .iter()
                .map(|word| word.parse())
                .collect::<Result<_, String>>()?;
            let amendment = Amend::of(&amends, operation).map_err(|failure| failure.summary())?;
            Ok(amendment.map_or(Verdict::Pass, Verdict::Amend))
        });
    }
    if let Ok(version) = settings.criu_version.parse() {
        interposer = interposer.criu_version(version);
    }
    if let Some(salt) = settings.mask {
        interposer = interposer.mask(Mask::with_salt(salt));
    }
    if let Some(record) = record {
        let lines = record.lines.clone();
        interposer = interposer.observer(move |entry| {
            let mut line = Vec::new();
            if write_line(&mut line, &entry).is_ok() {
                // Whoever does not read any more wants no more.
                let _ = lines.send(line);
            }
        });
    }
    interposer
}

/// Where what passes is written, by a thread of its own: CRIU never waits for a reader or a disk.
pub(in crate::cli) struct Record {
    lines: Sender<Vec<u8>>,
    written: mpsc::Receiver<()>,
}

impl Record {
    /// `None` when nothing is recorded, or it cannot be: that is no reason to keep an engine from its CRIU.
    pub(in crate::cli) fn open(settings: &Settings, pid: i32) -> Option<Self> {
        let sink: Box<dyn Write + Send> = match &settings.sink {
            Sink::Nowhere => return None,
            Sink::Socket(path) => Box::new(UnixStream::connect(path).ok()?),
            Sink::Directory(directory) => {
                let name = format!("criu-{}-{pid}.jsonl", micros_since_epoch());
                let mut options = File::options();
                options.write(true).create_new(true).mode(0o600);
                Box::new(options.open(directory.join(name)).ok()?)
            }
        };
        Self::to(sink, Header::now(settings.mask.is_some()))
    }

    fn to(mut sink: Box<dyn Write + Send>, header: Header) -> Option<Self> {
        let (lines, queue) = mpsc::channel::<Vec<u8>>();
        let (done, written) = mpsc::channel();
        let write = move || {
            if write_line(&mut sink, &header).is_ok() {
                // A reader that has gone wants no more.
                while let Ok(line) = queue.recv() {
                    if sink.write_all(&line).is_err() {
                        break;
                    }
                }
            }
            let _ = done.send(());
        };
        std::thread::Builder::new().spawn(write).ok()?;
        Some(Self { lines, written })
    }

    /// Waits until everything is written, or nobody reads it.
    pub(in crate::cli) fn finish(self) {
        let Self { lines, written } = self;
        drop(lines);
        let _ = written.recv_timeout(TO_READ);
    }
}
