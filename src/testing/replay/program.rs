//! A replay by programs: processes in the place of `criu swrk`, one for each session.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write};
use std::path::Path;

use tempfile::TempDir;

use super::outcome::{Outcome, Replayed};
use super::turn::Turn;
use super::{Recording, Replay, Settings};
use crate::interpose::recording::write_line;
use crate::testing::program::adopt;

/// The option that makes a program a player.
pub(in crate::testing) const OPTION: &str = "--replay";

/// The files of a replay, in a directory of its own.
const RECORDING: &str = "recording.jsonl";
const SETTINGS: &str = "settings.json";
const STATE: &str = "state";
const OUTCOMES: &str = "outcomes.jsonl";

impl Replay {
    /// Writes a copy of the recording to a temporary directory, for a program that calls
    /// [`play_if_asked`](crate::testing::play_if_asked). Each of its processes plays the next session, and exits with status 0
    /// when that went as recorded, with 1 when the client departed.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn program(self) -> io::Result<ProgramReplay> {
        let directory = tempfile::tempdir()?;
        let mut file = BufWriter::new(File::create(directory.path().join(RECORDING))?);
        write_line(&mut file, &self.recording.header)?;
        for entry in &self.recording.entries {
            write_line(&mut file, entry)?;
        }
        file.flush()?;
        let settings = File::create(directory.path().join(SETTINGS))?;
        serde_json::to_writer(settings, &self.settings)?;
        Ok(ProgramReplay {
            directory,
            replay: self,
        })
    }
}

/// A recording for programs that play it, made by [`Replay::program`].
///
/// ```no_run
/// use criu_client::Criu;
/// use criu_client::interpose::recording::Recording;
/// use criu_client::testing::Replay;
///
/// # async fn example(recording: Recording) -> Result<(), Box<dyn std::error::Error>> {
/// let replay = Replay::new(recording).program()?;
/// // This program calls `play_if_asked` first in its `main`.
/// let criu = Criu::at(std::env::current_exe()?).with_arguments(replay.arguments());
/// criu.version().await?;
/// assert_eq!(replay.replayed()?.departure(), None);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ProgramReplay {
    directory: TempDir,
    replay: Replay,
}

impl ProgramReplay {
    /// The arguments that make the program play, for [`Criu::with_arguments`](crate::Criu::with_arguments).
    #[must_use]
    pub fn arguments(&self) -> [OsString; 2] {
        [OPTION.into(), self.directory.path().into()]
    }

    /// What came of the processes that have come to an end. One that was killed before has left nothing.
    ///
    /// # Errors
    /// When what they have written cannot be read.
    pub fn replayed(&self) -> io::Result<Replayed> {
        let directory = self.directory.path();
        let outcomes = match std::fs::read_to_string(directory.join(OUTCOMES)) {
            Ok(lines) => lines
                .lines()
                .map(serde_json::from_str)
                .collect::<Result<_, _>>()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let turn = Turn::in_file(&directory.join(STATE), self.replay.settings.first);
        let left = self.replay.parts.get(turn.next()?..).unwrap_or_default();
        Ok(Replayed {
            outcomes,
            unplayed: left
                .iter()
                .filter(|part| self.replay.is_needed(part))
                .map(|part| part.session)
                .collect(),
        })
    }
}

/// Plays the next session, as the process that was asked to.
pub(in crate::testing) fn play_program(directory: &Path, socket: &OsStr) -> io::Result<u8> {
    let socket = adopt(socket)?;
    let recording = BufReader::new(File::open(directory.join(RECORDING))?);
    let recording = Recording::read(recording).map_err(io::Error::other)?;
    let settings: Settings = serde_json::from_slice(&std::fs::read(directory.join(SETTINGS))?)?;
    let replay = Replay {
        settings,
        ..Replay::new(recording)
    };
    let state = directory.join(STATE);
    let outcome = replay.play_as_process(socket, Some(&state), |outcome| {
        // One that cannot be written is missed by the one who reads it.
        let _ = append(&directory.join(OUTCOMES), outcome);
    });
    Ok(if outcome.is_whole() { 0 } else { 1 })
}

fn append(path: &Path, outcome: &Outcome) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    // In one write: others append too.
    write_line(&mut file, outcome)
}
