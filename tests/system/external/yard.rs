//! Docker's daemon of a test, and what is kept of external restores in a directory of the test's own.

use std::fs;
use std::path::Path;

use criu_client::container::docker::Docker as Ours;
use criu_client::container::external::{
    Checkpointed, Engine as Whose, Entry, External, ExternalCheckpoint, RestoreOptions, Restored,
};
use criu_client::container::runtime::CheckpointOptions;
use criu_client::container::{Error, Status};
use criu_client::{Criu, ImagesDir};

use crate::engines::{Docker, Engine, Environment, Ground, with_made};
use crate::support::{Outcome, block_on, criu, ensure, text, until};

/// A daemon with a container, and an external restore's place.
pub(super) struct Yard<'a> {
    pub(super) theirs: &'a mut Docker,
    pub(super) external: External,
    pub(super) criu: Criu,
}

/// Nothing may be left of it.
pub(super) fn with_docker(
    driver: &str,
    prepare: impl FnOnce(&Ground) -> Outcome,
    test: impl FnOnce(&Yard<'_>) -> Outcome,
) -> Outcome {
    let make = || Docker::start_daemon_with(Environment::default(), driver, prepare).map(Box::new);
    with_made(make, |theirs: &mut Docker| {
        let yard = Yard {
            external: External::with_home(theirs.ground().path("external")),
            criu: criu(),
            theirs,
        };
        test(&yard)?;
        yard.nothing_is_kept()
    })
}

impl Yard<'_> {
    pub(super) fn name(&self) -> &str {
        &self.theirs.ground().id
    }

    pub(super) fn whose(&self) -> Whose {
        Whose::Docker(Ours::with_socket(self.theirs.socket()))
    }

    pub(super) fn images(&self, name: &str) -> Result<ImagesDir, String> {
        ImagesDir::create(self.theirs.ground().path(name)).map_err(text)
    }

    pub(super) fn checkpoint(&self, images: &ImagesDir) -> Result<Checkpointed, String> {
        let options = ExternalCheckpoint::new(CheckpointOptions::new());
        let whose = self.whose();
        let work = self
            .external
            .checkpoint(&whose, &self.criu, self.name(), images, (), options);
        let done = block_on(work).map_err(whole)?;
        ensure!(
            done.report.left_behind.is_empty(),
            "{:?}",
            done.report.left_behind
        );
        self.has_status("exited")?;
        Ok(done)
    }

    pub(super) fn restore(&self, images: &ImagesDir) -> Result<Restored, String> {
        self.try_restore(images, RestoreOptions::new())
            .map_err(whole)
    }

    pub(super) fn try_restore(
        &self,
        images: &ImagesDir,
        options: RestoreOptions,
    ) -> Result<Restored, Error> {
        let whose = self.whose();
        let work = self
            .external
            .restore(&whose, &self.criu, self.name(), images, (), options);
        block_on(work)
    }

    pub(super) fn entry(&self) -> Result<Entry, String> {
        let entry = self.external.find(self.name()).map_err(whole)?;
        entry.ok_or_else(|| "nothing is kept of it".into())
    }

    pub(super) fn has_status(&self, word: &str) -> Outcome {
        let status = self.theirs.status()?;
        ensure!(status.word == word, "it is {}, not {word}", status.word);
        Ok(())
    }

    /// What runs externally is ended, and what is kept of it removed.
    pub(super) fn end(&self) -> Outcome {
        let entry = self.entry()?;
        end(&self.external, &entry)
    }

    /// Neither files nor mounts.
    pub(super) fn nothing_is_kept(&self) -> Outcome {
        nothing_is_kept(&self.external, &self.theirs.ground().path("external"))
    }

    /// Runs a program in the container, by way of the runtime's root that is told.
    pub(super) fn exec(&self, restored: &Restored, command: &[&str]) -> Result<String, String> {
        let root = restored.runtime_root.display().to_string();
        let runtime = restored.runtime.to_string();
        let mut invocation = vec![
            runtime,
            "--root".into(),
            root,
            "exec".into(),
            restored.id.clone(),
        ];
        invocation.extend(command.iter().map(|word| (*word).to_owned()));
        let ground = self.theirs.ground();
        let output = ground.command(&invocation)?.output().map_err(text)?;
        ensure!(
            output.status.success(),
            "{invocation:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

pub(super) fn end(external: &External, entry: &Entry) -> Outcome {
    let init = entry.init.ok_or("it does not run")?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(init.pid),
        nix::sys::signal::SIGKILL,
    )
    .map_err(text)?;
    until("it has ended", || {
        crate::support::reap_orphans();
        let now = external.find(&entry.id);
        now.is_ok_and(|now| now.is_some_and(|now| now.status == Status::Stopped))
    })?;
    let left = block_on(external.cleanup(&entry.id)).map_err(whole)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

pub(super) fn nothing_is_kept(external: &External, home: &Path) -> Outcome {
    let kept = external.list().map_err(whole)?;
    ensure!(kept.is_empty(), "{kept:?}");
    for part in ["containers", "networks", "runc", "crun"] {
        let left: Vec<_> = fs::read_dir(home.join(part))
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        ensure!(left.is_empty(), "left in {part}: {left:?}");
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(text)?;
    let home = home.display().to_string();
    let mounts: Vec<_> = mounts.lines().filter(|line| line.contains(&home)).collect();
    ensure!(mounts.is_empty(), "left mounted: {mounts:?}");
    Ok(())
}

pub(super) fn whole(error: Error) -> String {
    serde_json::to_string_pretty(&error).unwrap_or_else(|_| format!("{error:?}"))
}
