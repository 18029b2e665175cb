//! The peer as a program: a process of its own in the place of `criu swrk`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, getsid, pidfd_getfd, pidfd_open};
use tempfile::TempDir;

use super::player::{Form, Player};
use super::transcript::ProcessFacts;
use super::{Script, Transcript, replay};

/// The option that makes a program a peer.
const OPTION: &str = "--peer";

/// The exit status of a program that was asked to be a peer and could not.
const UNPLAYABLE: u8 = 125;

/// A script for a program that calls [`play_if_asked`]; each `ProgramPeer` is for one operation.
///
/// ```no_run
/// use criu_client::Criu;
/// use criu_client::testing::{ProgramPeer, Request, Script};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let peer = ProgramPeer::new(&Script::new().version(4, 2, 1).die())?;
/// let criu = Criu::at(std::env::current_exe()?).with_arguments(peer.arguments());
/// assert!(criu.features().await.is_err());
/// assert_eq!(peer.transcript()?.requests(), [Request::Version]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ProgramPeer {
    script: PathBuf,
    _directory: TempDir,
}

impl ProgramPeer {
    /// Writes `script` to a temporary file.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn new(script: &Script) -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("script.json");
        script.save(&path)?;
        Ok(Self {
            script: path,
            _directory: directory,
        })
    }

    /// The arguments that make the program play the script, for [`Criu::with_arguments`](crate::Criu::with_arguments).
    #[must_use]
    pub fn arguments(&self) -> [OsString; 2] {
        [OPTION.into(), self.script.clone().into_os_string()]
    }

    /// What the client did up to now; all of it when the operation is over. Before a client has connected it is empty.
    ///
    /// # Errors
    /// When the peer's record cannot be read.
    pub fn transcript(&self) -> io::Result<Transcript> {
        match std::fs::read(record_of(&self.script)) {
            Ok(record) => serde_json::from_slice(&record).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Transcript::default()),
            Err(error) => Err(error),
        }
    }
}

/// Plays a script if this program was started as `PROGRAM --peer FILE swrk DESCRIPTOR`, or a recording if the option is
/// `--replay`, and returns the exit status to end with. `None`: the program was started for something else.
///
/// To be called first in `main`, before anything opens a descriptor:
///
/// ```
/// fn main() -> std::process::ExitCode {
///     if let Some(status) = criu_client::testing::play_if_asked() {
///         return status;
///     }
///     // The tests, for example those of a harness that has no `main` of its own.
///     std::process::ExitCode::SUCCESS
/// }
/// ```
///
/// The script may end the process earlier, by a signal. The descriptor must be the client's connection and nothing that this
/// program uses otherwise: it is closed here.
#[must_use]
pub fn play_if_asked() -> Option<ExitCode> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let [_, option, path, mode, socket] = arguments.as_slice() else {
        return None;
    };
    let play = match option.to_str() {
        Some(OPTION) => play,
        Some(replay::OPTION) => replay::play_program,
        _ => return None,
    };
    if mode != "swrk" {
        return None;
    }
    let status = play(Path::new(path), socket).unwrap_or(UNPLAYABLE);
    Some(ExitCode::from(status))
}

fn play(path: &Path, socket: &OsStr) -> io::Result<u8> {
    let process = facts()?;
    let socket = adopt(socket)?;
    let script = Script::load(path)?;
    let record = record_of(path);
    let transcript = Transcript {
        process: Some(process),
        ..Transcript::default()
    };
    let player = Player::new(Form::Program, socket, transcript, |transcript| {
        // A record that cannot be written is missed by the one who reads it.
        let _ = write_whole(&record, transcript);
    });
    Ok(player.play(&script).0)
}

/// Our own descriptor of this number, as an owned one.
pub(super) fn adopt(number: &OsStr) -> io::Result<OwnedFd> {
    let number = number
        .to_str()
        .and_then(|number| number.parse().ok())
        .ok_or(io::ErrorKind::InvalidInput)?;
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let socket = pidfd_getfd(own, number, PidfdGetfdFlags::empty())?;
    nix::unistd::close(number)?;
    Ok(socket)
}

/// Never leaves half a record: the process may be killed at any moment.
fn write_whole(path: &Path, transcript: &Transcript) -> io::Result<()> {
    let unfinished = path.with_extension("unfinished");
    std::fs::write(&unfinished, serde_json::to_vec(transcript)?)?;
    std::fs::rename(unfinished, path)
}

fn record_of(script: &Path) -> PathBuf {
    script.with_extension("transcript")
}

fn facts() -> io::Result<ProcessFacts> {
    let text = |text: OsString| text.to_string_lossy().into_owned();
    let mut descriptors = BTreeMap::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let target = std::fs::read_link(entry.path())?;
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        // The directory that is being read here is one of them.
        if let Some(number) = number
            && !target.ends_with(format!("{}/fd", getpid().as_raw_nonzero()))
        {
            descriptors.insert(number, text(target.into_os_string()));
        }
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    Ok(ProcessFacts {
        pid: getpid().as_raw_nonzero().get(),
        session: getsid(None)?.as_raw_nonzero().get(),
        arguments: std::env::args_os().map(text).collect(),
        environment: std::env::vars_os().map(|(name, _)| text(name)).collect(),
        descriptors,
        ignored_signals: signals(&status, "SigIgn:"),
        blocked_signals: signals(&status, "SigBlk:"),
    })
}

/// The signals of a mask in `/proc/self/status`.
fn signals(status: &str, name: &str) -> Vec<i32> {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    (1..=64)
        .filter(|signal| mask >> (signal - 1) & 1 == 1)
        .collect()
}
