//! runc and crun by themselves.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use serde_json::{Value, json};

use super::cgroups::OneVersion;
use super::ground::{COUNTER, Environment, Ground};
use super::{Engine, Status};
use crate::support::{Outcome, ensure, reap_orphans, text, until};

/// The OCI runtimes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    Runc,
    Crun,
}

impl Program {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
        }
    }

    /// What it needs of the machine.
    pub(super) fn needs(self) -> Result<Option<Arc<OneVersion>>, String> {
        match self {
            Self::Runc => Ok(None),
            Self::Crun => OneVersion::of_cgroups().map(Some),
        }
    }
}

/// A bundle, and a container of it in a root of its own.
pub(crate) struct Runtime {
    program: Program,
    ground: Ground,
    _needed: Option<Arc<OneVersion>>,
}

impl Runtime {
    pub(crate) fn new(program: Program, environment: Environment) -> Result<Self, String> {
        let needed = program.needs()?;
        let runtime = Self {
            program,
            ground: Ground::new(program.name(), environment)?,
            _needed: needed,
        };
        let bundle = runtime.ground.text("");
        runtime.ground.make_rootfs()?;
        runtime.run(&["spec", "--bundle", &bundle].map(str::to_owned))?;
        let ground = &runtime.ground;
        runtime.configure(|config| {
            config["process"]["terminal"] = json!(false);
            config["process"]["args"] = json!(COUNTER);
            config["root"]["readonly"] = json!(false);
            config["linux"]["cgroupsPath"] = json!(format!("{}/{}", ground.group(), ground.id));
            bind(config, &ground.path("data"), "/data", "rw")
        })?;
        Ok(runtime)
    }

    /// Changes the bundle's configuration.
    pub(crate) fn configure(&self, change: impl FnOnce(&mut Value) -> Outcome) -> Outcome {
        let path = self.ground.path("config.json");
        let mut config: Value =
            serde_json::from_slice(&fs::read(&path).map_err(text)?).map_err(text)?;
        change(&mut config)?;
        fs::write(&path, serde_json::to_vec_pretty(&config).map_err(text)?).map_err(text)
    }

    /// What leaves its output to the container, which must not have a file of ours there.
    pub(crate) fn detached(&self, arguments: &[String]) -> Outcome {
        let mut invocation = self.invocation();
        let log = self.ground.path("log");
        invocation.extend(["--log".into(), log.display().to_string()]);
        invocation.extend_from_slice(arguments);
        let mut command = self.ground.command(&invocation)?;
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let finished = self.ground.finish_silently(command);
        finished.map_err(|error| {
            let log = fs::read_to_string(&log).unwrap_or_default();
            format!("{error}: {log}")
        })
    }

    fn is_listed(&self) -> Result<bool, String> {
        let list = self.run(&["list", "--quiet"].map(str::to_owned))?;
        Ok(list.lines().any(|id| id == self.ground.id))
    }
}

/// Adds a bind mount to a bundle's configuration.
pub(crate) fn bind(config: &mut Value, source: &Path, destination: &str, mode: &str) -> Outcome {
    let mounts = config["mounts"].as_array_mut().ok_or("no mounts")?;
    mounts.push(json!({
        "destination": destination,
        "type": "bind",
        "source": source,
        "options": ["rbind", mode],
    }));
    Ok(())
}

impl Engine for Runtime {
    fn ground(&self) -> &Ground {
        &self.ground
    }

    fn invocation(&self) -> Vec<String> {
        let root = self.ground.text("root");
        [self.program.name(), "--root", &root]
            .map(str::to_owned)
            .into()
    }

    fn start_program(&mut self, program: &[&str]) -> Outcome {
        self.configure(|config| {
            config["process"]["args"] = json!(program);
            Ok(())
        })?;
        let bundle = self.ground.text("");
        self.detached(&["run", "-d", "--bundle", &bundle, &self.ground.id].map(str::to_owned))
    }

    fn status(&self) -> Result<Status, String> {
        let record = self.run(&["state", &self.ground.id].map(str::to_owned))?;
        let record: Value = serde_json::from_str(&record).map_err(text)?;
        Status::new(&record["status"], &record["pid"], record.clone())
    }

    fn checkpoint_arguments(&self, name: &str) -> Vec<String> {
        let images = self.ground.text(name);
        ["checkpoint", "--image-path", &images, &self.ground.id]
            .map(str::to_owned)
            .into()
    }

    fn restore_arguments(&self, name: &str) -> Vec<String> {
        let (bundle, images) = (self.ground.text(""), self.ground.text(name));
        let id = &self.ground.id;
        [
            "restore",
            "-d",
            "--bundle",
            &bundle,
            "--image-path",
            &images,
            id,
        ]
        .map(str::to_owned)
        .into()
    }

    fn restore(&mut self, name: &str) -> Outcome {
        self.detached(&self.restore_arguments(name))
    }

    /// Its process has come to us.
    fn settle(&mut self) -> Outcome {
        reap_orphans();
        ensure!(!self.is_listed()?, "{} still lists it", self.program.name());
        until("the container's processes are gone", || {
            reap_orphans();
            self.ground.is_vacant()
        })
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if self.is_listed().is_ok_and(|listed| listed) {
            let _ = self.run(&["delete", "--force", &self.ground.id].map(str::to_owned));
        }
    }
}
