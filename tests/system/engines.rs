//! Container engines as they are, each with all that it keeps in a directory of its own: how they checkpoint and restore by
//! themselves is what everything else is compared with.

mod cgroups;
mod docker;
mod ground;
mod podman;
mod runtime;
mod wire;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

pub(crate) use cgroups::OneVersion;
pub(crate) use docker::{Docker, IMAGE as DOCKERS_IMAGE, Store};
pub(crate) use ground::{COUNTER, Count, Environment, Ground};
pub(crate) use podman::{IMAGE, Podman, Served};
pub(crate) use runtime::{Program, Runtime, bind};
pub(crate) use wire::{Subnet, connected, echoes, limits};

use crate::support::{Outcome, Tests, Traces, criu, ensure, reap_orphans, text};

/// An engine with a container that counts.
pub(crate) trait Engine {
    fn ground(&self) -> &Ground;

    /// The program, and what it is told whatever it is to do.
    fn invocation(&self) -> Vec<String>;

    /// Starts the container with this program in it.
    fn start_program(&mut self, program: &[&str]) -> Outcome;

    /// Starts the container and waits until it counts.
    fn start(&mut self) -> Outcome {
        self.start_program(&COUNTER)?;
        self.ground().counts()
    }

    /// What the engine itself says of the container.
    fn status(&self) -> Result<Status, String>;

    /// Follows the invocation: the engine's own command.
    fn checkpoint_arguments(&self, name: &str) -> Vec<String>;

    fn restore_arguments(&self, name: &str) -> Vec<String>;

    /// Waits until all that ends with a checkpointed container has ended, so that it can be restored.
    fn settle(&mut self) -> Outcome;

    /// Has the engine do something: what it printed, or what it complained of.
    fn run(&self, arguments: &[String]) -> Result<String, String> {
        let mut invocation = self.invocation();
        invocation.extend_from_slice(arguments);
        let command = self.ground().command(&invocation)?;
        self.ground().finish(command)
    }

    fn checkpoint(&mut self, name: &str) -> Outcome {
        self.run(&self.checkpoint_arguments(name))?;
        self.settle()
    }

    fn restore(&mut self, name: &str) -> Outcome {
        self.run(&self.restore_arguments(name))?;
        Ok(())
    }
}

/// What an engine says of a container.
#[derive(Debug)]
pub(crate) struct Status {
    /// "running" and the like.
    pub(crate) word: String,
    /// The container's first process, if it is running. Podman names that of a container that was checkpointed, too.
    pub(crate) pid: i32,
    /// All of it.
    pub(crate) record: Value,
}

impl Status {
    fn new(word: &Value, pid: &Value, record: Value) -> Result<Self, String> {
        Ok(Self {
            word: word
                .as_str()
                .ok_or_else(|| format!("no status in {record}"))?
                .to_owned(),
            pid: pid.as_i64().unwrap_or(0).try_into().map_err(text)?,
            record,
        })
    }

    pub(crate) fn is_running(&self) -> Outcome {
        ensure!(
            self.word == "running" && self.pid > 0,
            "{}, process {}: {}",
            self.word,
            self.pid,
            self.record["State"]
        );
        Ok(())
    }
}

/// An engine and how to make it.
pub(crate) type Maker = (
    &'static str,
    fn(Environment) -> Result<Box<dyn Engine>, String>,
);

pub(crate) const ENGINES: [Maker; 5] = [
    ("runc", |environment| {
        Ok(Box::new(Runtime::new(Program::Runc, environment)?))
    }),
    ("crun", |environment| {
        Ok(Box::new(Runtime::new(Program::Crun, environment)?))
    }),
    ("podman+runc", |environment| {
        Ok(Box::new(Podman::over(Program::Runc, environment)?))
    }),
    ("podman+crun", |environment| {
        Ok(Box::new(Podman::over(Program::Crun, environment)?))
    }),
    ("docker", |environment| {
        Ok(Box::new(Docker::start_daemon(environment)?))
    }),
];

pub(crate) fn tests() -> Tests {
    let mut tests: Tests = Vec::new();
    for maker in ENGINES {
        let name = maker.0;
        tests.push((
            format!("engines/{name}/own-checkpoint-and-restore"),
            Box::new(move || own_checkpoint_and_restore(maker)),
        ));
        tests.push((
            format!("engines/{name}/criu-comes-from-the-path-given"),
            Box::new(move || criu_of_the_path(maker)),
        ));
    }
    tests
}

/// Runs a test with an engine, of which nothing may be left.
pub(crate) fn with_engine(
    (_, make): Maker,
    environment: Environment,
    test: impl FnOnce(&mut dyn Engine) -> Outcome,
) -> Outcome {
    with_made(
        || make(environment),
        |engine: &mut (dyn Engine + 'static)| test(engine),
    )
}

/// The same of an engine of a type that is known.
pub(crate) fn with_made<E: Engine + ?Sized>(
    make: impl FnOnce() -> Result<Box<E>, String>,
    test: impl FnOnce(&mut E) -> Outcome,
) -> Outcome {
    let (traces, links) = (Traces::take(), links());
    let mut engine = make()?;
    let left = engine.ground().traces();
    test(&mut *engine)?;
    drop(engine);
    left.nothing_is_left()?;
    reap_orphans();
    traces.unchanged()?;
    let links = links_since(&links);
    ensure!(links.is_empty(), "network links were left: {links:?}");
    Ok(())
}

fn own_checkpoint_and_restore(maker: Maker) -> Outcome {
    with_engine(maker, Environment::default(), |engine| {
        engine.start()?;
        engine.status()?.is_running()?;
        // The second is of a restored container.
        for name in ["first", "second"] {
            there_and_back(engine, name)?;
        }
        Ok(())
    })
}

fn there_and_back(engine: &mut dyn Engine, name: &str) -> Outcome {
    engine.checkpoint(name)?;
    // A runtime forgets it; the others do not.
    if let Ok(status) = engine.status() {
        ensure!(status.word == "exited", "{} after its dump", status.word);
    }
    let counted = engine.ground().stands_still()?;
    engine.restore(name)?;
    engine.status()?.is_running()?;
    engine.ground().goes_on_from(&counted)
}

/// What is to take CRIU's place must be found by the engine.
fn criu_of_the_path(maker: Maker) -> Outcome {
    let directory = tempfile::tempdir().map_err(text)?;
    let calls = directory.path().join("calls");
    stand_in(directory.path(), &calls)?;
    let environment = Environment::first_on_path(directory.path());
    with_engine(maker, environment, |engine| {
        let called = || fs::read_to_string(&calls).map_or(0, |calls| calls.lines().count());
        engine.start()?;
        let before = called();
        engine.checkpoint("first")?;
        let between = called();
        ensure!(between > before, "the checkpoint took another criu");
        let counted = engine.ground().stands_still()?;
        engine.restore("first")?;
        ensure!(called() > between, "the restore took another criu");
        engine.ground().goes_on_from(&counted)
    })
}

/// A program of CRIU's name that notes that a runtime has called it, and becomes CRIU.
fn stand_in(directory: &Path, calls: &Path) -> Outcome {
    let criu = criu();
    let real = criu.program().ok_or("no program")?;
    // Podman calls CRIU itself to learn its version.
    let script = format!(
        "#!/bin/busybox sh\nread name </proc/$PPID/comm\n[ $name = podman ] || echo $name >>'{}'\nexec '{}' \"$@\"\n",
        calls.display(),
        real.display()
    );
    let path = directory.join("criu");
    fs::write(&path, script).map_err(text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(text)
}

/// The network devices of our namespace.
fn links() -> BTreeSet<String> {
    fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

fn links_since(before: &BTreeSet<String>) -> Vec<String> {
    links().difference(before).cloned().collect()
}
