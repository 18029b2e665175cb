//! Being `criu`: what a program of ours does when an engine has started it in CRIU's place.
//!
//! Two programs have this room, `criu-listener`, which is this and nothing else and therefore starts quickly, and `criuctl`,
//! which stands in where that one is not installed, and sets up the directories. It knows nothing of the command line.

mod record;
pub(crate) mod settings;

use std::convert::Infallible;
use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;
use std::time::Duration;

use criu_client::interpose::place::{self, CommandLine, Listener, PlaceError};
use criu_client::interpose::{Interposer, Mask, Verdict};
use criu_client::notify::{HookTable, Program, Script};

use record::Record;
use settings::Settings;

/// What a shell's status is when a program cannot be executed.
const NOT_EXECUTED: u8 = 127;

/// Does CRIU's part if this program was started as `criu` from a directory of ours; returns the status to end with when it
/// cannot.
pub(crate) fn run_if_started_as_criu() -> Option<ExitCode> {
    let error: Box<dyn Error> = match settings::started_from()? {
        Err(error) => error.into(),
        Ok(settings) => match be_criu(&settings) {
            Err(error) => error.into(),
        },
    };
    let mut text = format!("criu (criuctl listens in): {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text.push('\n');
    // The engine shows what its CRIU writes, if anything. There is nowhere to say that this fails.
    let _ = std::io::stderr().write_all(text.as_bytes());
    Some(ExitCode::from(NOT_EXECUTED))
}

fn be_criu(settings: &Settings) -> Result<Infallible, PlaceError> {
    let line = CommandLine::of(std::env::args_os());
    match line.worker_socket {
        Some(_) => place::take(&settings.criu, &line, |listener| listen(settings, listener)),
        None => place::become_criu(&settings.criu, &line),
    }
}

/// In the process that listens: it has nothing open and nobody to tell anything but the sink.
fn listen(settings: &Settings, listener: Listener) -> u8 {
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
    let mut interposer = interposer(settings);
    if let Some(record) = &record {
        interposer = record.of(interposer);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let carried = runtime.and_then(|runtime| runtime.block_on(listener.listen(interposer)));
    if let Some(record) = record {
        record.finish();
    }
    carried.is_err().into()
}

/// What is done on the way. Whatever cannot be done any more refuses the request: nothing passes unseen by a hook that is to
/// see it.
pub(crate) fn interposer(settings: &Settings) -> Interposer<'static> {
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
        let kept = settings.amend.clone();
        interposer = interposer.on_request(move |request| {
            let wanted = kept
                .iter()
                .find(|kept| Some(kept.operation) == request.operation());
            Ok(match wanted {
                Some(kept) => Verdict::Amend(kept.amendment()?),
                None => Verdict::Pass,
            })
        });
    }
    if let Ok(version) = settings.criu_version.parse() {
        interposer = interposer.criu_version(version);
    }
    if let Some(salt) = settings.mask {
        interposer = interposer.mask(Mask::with_salt(salt));
    }
    interposer
}
