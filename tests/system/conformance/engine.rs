//! Podman and Docker. What they restore they restore by themselves, so only their dumps are compared.

use criu_client::container::{docker, podman};

use super::{Case, Options, Reaches, Subject};
use crate::engines::{Docker, Engine, Environment, Podman, Program, Served};
use crate::interposed::Stage;
use crate::runtimes::fixture::whole;
use crate::support::{Outcome, block_on, criu, text};

pub(super) fn cases() -> Vec<Case> {
    let case = |engine: &'static str, make: Box<super::Make>| Case {
        engine,
        configuration: "default",
        reaches: Reaches::Restore,
        make,
    };
    let of_podman = |program: Program| -> Box<super::Make> {
        Box::new(move |stage: &Stage| Ok(Box::new(OfPodman::start(program, stage.environment())?)))
    };
    vec![
        case("podman+runc", of_podman(Program::Runc)),
        case("podman+crun", of_podman(Program::Crun)),
        case(
            "docker",
            Box::new(|stage: &Stage| Ok(Box::new(OfDocker::start(stage.environment())?))),
        ),
    ]
}

struct OfPodman {
    engine: Podman,
    served: Served,
}

impl OfPodman {
    fn start(program: Program, environment: Environment) -> Result<Self, String> {
        let mut engine = Podman::over(program, environment)?;
        engine.start()?;
        let served = engine.serve()?;
        Ok(Self { engine, served })
    }
}

impl Subject for OfPodman {
    fn planned_dump(&self) -> Result<Options, String> {
        let ours = podman::Podman::with_socket(&self.served.socket);
        let (criu, id) = (criu(), self.engine.container());
        let images = self.engine.ground().path("images");
        let options = podman::CheckpointOptions::new();
        let plan = block_on(ours.plan_checkpoint(&criu, id, images, options)).map_err(whole)?;
        Ok(plan.request.ok_or("no request")?.options)
    }

    fn dump(&mut self) -> Result<bool, String> {
        self.engine.checkpoint("first")?;
        Ok(true)
    }

    fn planned_restore(&self) -> Result<Option<Options>, String> {
        Ok(None)
    }

    fn restore(&mut self) -> Result<bool, String> {
        Ok(false)
    }

    fn end(&mut self) -> Outcome {
        Ok(())
    }

    fn names(&self) -> Vec<(String, &'static str)> {
        vec![
            (self.engine.ground().path("").display().to_string(), "DIR/"),
            (self.engine.container().to_owned(), "ID"),
        ]
    }
}

struct OfDocker {
    engine: Docker,
    /// The container's full id.
    id: String,
}

impl OfDocker {
    fn start(environment: Environment) -> Result<Self, String> {
        let mut engine = Docker::start_daemon(environment)?;
        engine.start()?;
        let status = engine.status()?;
        let id = status.record["Id"].as_str().ok_or("no id")?.to_owned();
        Ok(Self { engine, id })
    }
}

impl Subject for OfDocker {
    fn planned_dump(&self) -> Result<Options, String> {
        let ours = docker::Docker::with_socket(self.engine.socket());
        let (criu, ground) = (criu(), self.engine.ground());
        let options = docker::CheckpointOptions::new();
        let plan = ours.plan_checkpoint(&criu, &ground.id, ground.path("images"), options);
        let plan = block_on(plan).map_err(whole)?;
        Ok(plan.request.ok_or("no request")?.options)
    }

    fn dump(&mut self) -> Result<bool, String> {
        self.engine.checkpoint("first").map_err(text)?;
        Ok(true)
    }

    fn planned_restore(&self) -> Result<Option<Options>, String> {
        Ok(None)
    }

    fn restore(&mut self) -> Result<bool, String> {
        Ok(false)
    }

    fn end(&mut self) -> Outcome {
        Ok(())
    }

    fn names(&self) -> Vec<(String, &'static str)> {
        vec![
            (self.engine.ground().path("").display().to_string(), "DIR/"),
            (self.id.clone(), "ID"),
            (self.engine.ground().id.clone(), "NAME"),
        ]
    }
}
