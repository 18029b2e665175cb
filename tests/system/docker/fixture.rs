//! A daemon of its own for each test, and what is asked of it.

use std::fs;
use std::path::{Path, PathBuf};

use criu_client::container::docker::{CheckpointOptions, Docker as Ours, RestoreOptions, Restored};
use criu_client::container::{Error, ErrorKind};
use criu_client::{Criu, ImagesDir};

use crate::engines::{Docker, Engine, Environment, with_made};
use crate::support::{Outcome, block_on, criu, ensure, text, until};

/// The daemon with a container that may be there, seen from both sides.
pub(super) struct Yard<'a> {
    pub(super) theirs: &'a mut Docker,
    pub(super) ours: Ours,
    pub(super) criu: Criu,
}

pub(super) fn with_docker(test: impl FnOnce(&Yard<'_>) -> Outcome) -> Outcome {
    with_docker_in(Environment::default(), test)
}

/// Nothing may be left of it.
pub(super) fn with_docker_in(
    environment: Environment,
    test: impl FnOnce(&Yard<'_>) -> Outcome,
) -> Outcome {
    let make = || Docker::start_daemon(environment).map(Box::new);
    with_made(make, |theirs: &mut Docker| {
        let yard = Yard {
            ours: Ours::with_socket(theirs.socket()),
            criu: criu(),
            theirs,
        };
        test(&yard)?;
        yard.nothing_is_left()
    })
}

impl Yard<'_> {
    pub(super) fn name(&self) -> &str {
        &self.theirs.ground().id
    }

    pub(super) fn images(&self, name: &str) -> Result<ImagesDir, String> {
        ImagesDir::create(self.theirs.ground().path(name)).map_err(text)
    }

    pub(super) fn checkpoint(&self, images: &ImagesDir) -> Outcome {
        self.checkpoint_with(images, CheckpointOptions::new())
    }

    pub(super) fn checkpoint_with(
        &self,
        images: &ImagesDir,
        options: CheckpointOptions,
    ) -> Outcome {
        let checkpoint = self
            .ours
            .checkpoint(&self.criu, self.name(), images, (), options);
        let report = block_on(checkpoint).map_err(whole)?;
        ensure!(report.left_behind.is_empty(), "{:?}", report.left_behind);
        ensure!(report.id == self.id()?, "checkpointed {}", report.id);
        Ok(())
    }

    pub(super) fn restore(&self, images: &ImagesDir) -> Result<Restored, String> {
        let restore = self
            .ours
            .restore(self.name(), images, RestoreOptions::new());
        let restored = block_on(restore).map_err(whole)?;
        ensure!(
            restored.left_behind.is_empty(),
            "{:?}",
            restored.left_behind
        );
        let status = self.theirs.status()?;
        status.is_running()?;
        ensure!(
            restored.container.pid == Some(status.pid),
            "{:?}, but Docker has {}",
            restored.container,
            status.pid
        );
        ensure!(restored.stats.is_some(), "no figures of CRIU's");
        Ok(restored)
    }

    /// A restore that is to fail.
    pub(super) fn not_restored(&self, images: &ImagesDir) -> Result<Error, String> {
        let restore = self
            .ours
            .restore(self.name(), images, RestoreOptions::new());
        match block_on(restore) {
            Ok(restored) => Err(format!("restored {:?}", restored.container)),
            Err(error) => Ok(error),
        }
    }

    /// A checkpoint that is to fail.
    pub(super) fn not_checkpointed(&self, name: &str) -> Result<Error, String> {
        let images = self.images("never")?;
        let options = CheckpointOptions::new();
        match block_on(self.ours.checkpoint(&self.criu, name, &images, (), options)) {
            Ok(report) => Err(format!("checkpointed {}", report.id)),
            Err(error) => Ok(error),
        }
    }

    pub(super) fn id(&self) -> Result<String, String> {
        let status = self.theirs.status()?;
        let id = status.record["Id"].as_str();
        id.map(str::to_owned).ok_or_else(|| "it has no id".into())
    }

    pub(super) fn pid(&self) -> Result<i32, String> {
        Ok(self.theirs.status()?.pid)
    }

    pub(super) fn has_status(&self, word: &str) -> Outcome {
        let status = self.theirs.status()?;
        ensure!(status.word == word, "it is {}, not {word}", status.word);
        Ok(())
    }

    pub(super) fn kill(&self) -> Outcome {
        self.theirs.docker(&["kill", self.name()])?;
        until("Docker has seen the end", || {
            self.has_status("exited").is_ok()
        })
    }

    pub(super) fn remove(&self) -> Outcome {
        let arguments = ["rm", "--force", "--volumes", self.name()];
        self.theirs.docker(&arguments).map(drop)
    }

    /// What Docker does with any container of its own.
    pub(super) fn is_in_dockers_hands(&self) -> Outcome {
        self.theirs.docker(&["exec", self.name(), "/bin/true"])?;
        let top = self.theirs.docker(&["top", self.name()])?;
        ensure!(top.lines().count() > 1, "no processes: {top}");
        let listed = self.theirs.docker(&["ps", "--format", "{{.Names}}"])?;
        ensure!(listed.trim() == self.name(), "running: {listed}");
        Ok(())
    }

    /// Where Docker keeps a container's checkpoints.
    pub(super) fn checkpoints(&self) -> Result<PathBuf, String> {
        Ok(self
            .theirs
            .containers()
            .join(self.id()?)
            .join("checkpoints"))
    }

    /// Neither among the checkpoints of containers nor among temporary files.
    pub(super) fn nothing_is_left(&self) -> Outcome {
        let containers = fs::read_dir(self.theirs.containers()).map_err(text)?;
        for container in containers.flatten() {
            let names = names(container.path().join("checkpoints"));
            let left: Vec<_> = names
                .iter()
                .filter(|name| name.starts_with("criuctl-"))
                .collect();
            ensure!(left.is_empty(), "left among the checkpoints: {left:?}");
        }
        let temporary = self.theirs.temporary();
        let left: Vec<_> = names(temporary.clone())
            .into_iter()
            .filter(|name| {
                // Docker's own restores leave such, without our note.
                temporary.join(name).join("criuctl-restore.json").exists()
            })
            .collect();
        ensure!(left.is_empty(), "left among temporary files: {left:?}");
        Ok(())
    }
}

fn names(directory: PathBuf) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Copies the files of a directory, which may be on a mount of its own.
pub(super) fn copy(from: &Path, to: &Path) -> Outcome {
    fs::create_dir(to).map_err(text)?;
    for name in names(from.to_owned()) {
        fs::copy(from.join(&name), to.join(&name)).map_err(text)?;
    }
    Ok(())
}

/// An error with everything it knows.
pub(super) fn whole(error: Error) -> String {
    match error.kind() {
        ErrorKind::Criu(_) => {
            serde_json::to_string_pretty(&error).unwrap_or_else(|_| format!("{error:?}"))
        }
        _ => format!("{error} ({:?})", error.findings()),
    }
}
