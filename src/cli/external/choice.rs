//! Which container is meant.

use std::io::{BufRead, IsTerminal};

use criu_client::ImagesDir;
use criu_client::container::external::{Engine, External as Ours};
use criu_client::container::plan::Consumer;
use criu_client::container::{EngineKind, runtime};

use super::args::Place;
use super::{name_of, phase};
use crate::cli::Context;
use crate::cli::container_args::{Containers, For};
use crate::cli::failure::Failure;
use crate::cli::output::say;
use crate::cli::target::Target;

/// What a container is looked for to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It runs; perhaps its first process is known.
    Checkpoint { pid: Option<i32> },
    /// It has ended.
    Restore,
}

/// A container, by its engine and full id.
pub(super) struct Chosen {
    pub(super) engine: Engine,
    pub(super) id: String,
}

impl Chosen {
    pub(super) async fn of(
        context: &Context,
        ours: &Ours,
        target: Option<&Target>,
        containers: &Containers,
        place: &Place,
        purpose: Purpose,
    ) -> Result<Self, Failure> {
        let (kind, name) = match target {
            Some(target @ Target::Container(kind, _)) => (*kind, name_of(target)?.to_owned()),
            Some(target) => (None, name_of(target)?.to_owned()),
            None => match purpose {
                Purpose::Checkpoint { pid: Some(pid) } => by_pid(ours, pid)?,
                _ => (None, asked_for(containers, purpose).await?),
            },
        };
        if let Purpose::Checkpoint { pid: Some(pid) } = purpose {
            let (_, id) = by_pid(ours, pid)?;
            if !id.starts_with(&name) && ours.find(&name)?.is_none_or(|entry| entry.id != id) {
                return Err(Failure::input(format!(
                    "process {pid} is the first one of {id}, and not of {name}"
                )));
            }
        }
        let kind = match kind {
            Some(kind) => kind,
            None => kind_of(ours, &name, containers, place).await?,
        };
        let engine = match kind {
            EngineKind::Docker => Engine::Docker(containers.docker()?),
            EngineKind::Podman => Engine::Podman(containers.podman()?),
            EngineKind::Crun => Engine::Crun(containers.crun()),
            _ => Engine::Runc(containers.runc()),
        };
        let id = ours.id_of(&engine, &name).await;
        let id = match id {
            Ok(id) => id,
            Err(error) => {
                end(&engine).await;
                return Err(error.into());
            }
        };
        phase(
            &context.output,
            format_args!("{kind} container {name}: {id}"),
        );
        Ok(Self { engine, id })
    }

    /// Podman's own restore takes images of its own runtime only, and so do those of the others.
    pub(super) fn consumer(&self, wanted: Option<For>) -> Consumer {
        match wanted {
            None | Some(For::Any) => Consumer::Any,
            Some(For::Runc) => Consumer::Runc,
            Some(For::Crun) => Consumer::Crun,
        }
    }

    /// A service of Podman's that was started goes.
    pub(super) async fn end(&self) {
        end(&self.engine).await;
    }
}

async fn end(engine: &Engine) {
    if let Engine::Podman(podman) = engine {
        podman.settled().await;
    }
}

fn by_pid(ours: &Ours, pid: i32) -> Result<(Option<EngineKind>, String), Failure> {
    let mut entries = ours.list()?.into_iter();
    let found = entries.find(|entry| entry.init.is_some_and(|init| init.pid == pid));
    match found {
        Some(entry) => Ok((entry.engine, entry.id)),
        None => Err(Failure::input(format!(
            "--pid: {pid} is not the first process of a container that was restored externally"
        ))
        .hint("`criuctl external list` shows those there are; for one that its engine knows leave it out")),
    }
}

/// Whose container it is: one of ours knows, and so do images; else the engines are asked.
async fn kind_of(
    ours: &Ours,
    name: &str,
    containers: &Containers,
    place: &Place,
) -> Result<EngineKind, Failure> {
    if let Some(kind) = ours.find(name)?.and_then(|entry| entry.engine) {
        return Ok(kind);
    }
    let images = place.image_path.clone();
    let images = images.unwrap_or_else(|| place.environment.images_of(name));
    let noted = ImagesDir::open(&images)
        .ok()
        .and_then(|images| runtime::engine_of(&images).ok()?);
    match noted {
        Some(kind) => Ok(kind),
        None => containers.engine_of(name).await,
    }
}

/// The list to choose from, on a terminal.
async fn asked_for(containers: &Containers, purpose: Purpose) -> Result<String, Failure> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(Failure::usage(
            "which container? no ID is given, and there is no terminal to ask on",
        )
        .hint("give its ID or its name"));
    }
    let mut listed = containers.runc().list().unwrap_or_default();
    listed.extend(containers.crun().list().unwrap_or_default());
    let mut listed =
        criu_client::container::podman::claim(listed.clone(), containers.podman_root())
            .unwrap_or(listed);
    if let Ok(docker) = containers.docker() {
        listed.extend(docker.list().await.unwrap_or_default());
    }
    let wanted = |running: bool| match purpose {
        Purpose::Checkpoint { .. } => running,
        Purpose::Restore => !running,
    };
    for one in listed {
        if wanted(one.pid.is_some()) {
            let name = one.name.unwrap_or_default();
            say(&format!("{}:{}  {name}\n", one.engine, one.id));
        }
    }
    say("Container ID: ");
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|error| Failure::failed("the answer cannot be read").caused_by(error))?;
    let line = line.trim();
    let id = line.split_once(':').map_or(line, |(_, id)| id);
    match id.is_empty() {
        true => Err(Failure::usage("no container was chosen")),
        false => Ok(id.to_owned()),
    }
}
