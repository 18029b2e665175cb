//! Recordings of real sessions, for the tests without privileges: made by `scripts/record-sessions`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use criu_client::interpose::recording::{Entry, Header, Recording, write_line};

use crate::engines::{ENGINES, Maker, with_engine};
use crate::interposed::Stage;
use crate::support::*;

/// Each engine's checkpoint, restore, and a checkpoint with a restore that fails.
pub(crate) fn record_sessions(arguments: &[String]) -> Outcome {
    let [directory] = arguments else {
        return Err(format!("wrong arguments {arguments:?}"));
    };
    nix::sys::prctl::set_child_subreaper(true).map_err(text)?;
    fs::create_dir_all(directory).map_err(text)?;
    for maker in ENGINES {
        let directory = Path::new(directory);
        record(maker, directory).map_err(|error| format!("{}: {error}", maker.0))?;
    }
    Ok(())
}

fn record(maker: Maker, directory: &Path) -> Outcome {
    let stage = Stage::install(&["--mask-paths"])?;
    let mut taken = Vec::new();
    with_engine(maker, stage.environment(), |engine| {
        let mut take = |what: &str| -> Outcome {
            let path = directory.join(format!("{}-{what}.jsonl", maker.0.replace('+', "-")));
            take_new(&stage, &mut taken, &path)
        };
        engine.start()?;
        engine.checkpoint("first")?;
        take("checkpoint")?;
        engine.restore("first")?;
        take("restore")?;
        engine.checkpoint("second")?;
        spoil_the_images(&engine.ground().path(""))?;
        let failed = engine.restore("second");
        ensure!(failed.is_err(), "a restore without an image succeeded");
        take("failed-restore")
    })
}

/// Removes the image of the container's first process, wherever the engine keeps it.
fn spoil_the_images(directory: &Path) -> Outcome {
    for entry in fs::read_dir(directory).map_err(text)? {
        let entry = entry.map_err(text)?;
        if entry.file_type().map_err(text)?.is_dir() {
            spoil_the_images(&entry.path())?;
        } else if entry.file_name() == "core-1.img" {
            fs::remove_file(entry.path()).map_err(text)?;
        }
    }
    Ok(())
}

/// Puts the sessions that are new into one recording.
fn take_new(stage: &Stage, taken: &mut Vec<PathBuf>, path: &Path) -> Outcome {
    let mut sessions: Vec<(PathBuf, Recording)> = Vec::new();
    until("the sessions are recorded to their end", || {
        let read = stage.files().and_then(|files| {
            let new = files.into_iter().filter(|file| !taken.contains(file));
            new.map(|file| {
                let bytes = fs::read(&file).map_err(text)?;
                let recording = Recording::read(bytes.as_slice()).map_err(text)?;
                Ok((file, recording))
            })
            .collect::<Result<_, String>>()
        });
        sessions = read.unwrap_or_default();
        !sessions.is_empty()
    })?;
    let mut file = File::create(path).map_err(text)?;
    write_line(&mut file, &Header::now(true)).map_err(text)?;
    for (number, (name, recording)) in (1..).zip(sessions) {
        for entry in recording.entries {
            let mut entry: Entry = entry;
            entry.session = number;
            write_line(&mut file, &entry).map_err(text)?;
        }
        taken.push(name);
    }
    Ok(())
}
