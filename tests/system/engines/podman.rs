//! Podman over one of the runtimes.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;

use serde_json::Value;

use super::cgroups::OneVersion;
use super::ground::{Environment, Ground};
use super::runtime::Program;
use super::{Engine, Status};
use crate::support::{Outcome, reap_orphans, text, until, with_argument};

/// Podman with all it keeps in a directory of its own, and a container made of an image of its own.
pub(crate) struct Podman {
    program: Program,
    ground: Ground,
    /// The name that Podman has given the container.
    container: Option<String>,
    _needed: Option<Arc<OneVersion>>,
}

impl Podman {
    pub(crate) fn over(program: Program, environment: Environment) -> Result<Self, String> {
        let needed = program.needs()?;
        let mut ground = Ground::new("podman", environment)?;
        let configuration = ground.path("containers.conf");
        fs::write(&configuration, CONFIGURATION).map_err(text)?;
        ground.set("CONTAINERS_CONF", configuration);
        ground.set("PODMAN_IGNORE_CGROUPSV1_WARNING", "1");
        let podman = Self {
            program,
            ground,
            container: None,
            _needed: needed,
        };
        let archive = podman.ground.make_archive()?;
        podman.run(&["import", &archive, IMAGE].map(str::to_owned))?;
        Ok(podman)
    }

    /// The id of the container.
    pub(crate) fn container(&self) -> &str {
        self.container.as_deref().unwrap_or(&self.ground.id)
    }

    /// The container is this one from now on.
    pub(crate) fn is_called(&mut self, id: &str) {
        self.container = Some(id.to_owned());
    }

    pub(crate) fn program(&self) -> Program {
        self.program
    }

    /// Where Podman keeps everything, and where the runtime has its records.
    pub(crate) fn storage(&self) -> PathBuf {
        self.ground.path("storage")
    }

    pub(crate) fn runtime_root(&self) -> PathBuf {
        self.ground.path("runtime")
    }

    /// Has the runtime remove its record of the container, which has ended.
    pub(crate) fn forget(&self) -> Outcome {
        let root = self.runtime_root().display().to_string();
        let delete = [self.program.name(), "--root", &root, "delete", "--force"];
        let mut invocation = delete.map(str::to_owned).to_vec();
        invocation.push(self.container().to_owned());
        self.ground.finish(self.ground.command(&invocation)?)?;
        Ok(())
    }

    /// The container's bundle.
    pub(crate) fn bundle(&self) -> PathBuf {
        let containers = self.storage().join("overlay-containers");
        containers.join(self.container()).join("userdata")
    }

    /// Starts another container than the usual one; its id.
    pub(crate) fn run_container(
        &mut self,
        options: &[&str],
        command: &[&str],
    ) -> Result<String, String> {
        let group = self.ground.group();
        let mut arguments = vec!["run", "--detach", "--cgroup-parent", &group];
        arguments.extend(options);
        arguments.push(IMAGE);
        arguments.extend(command);
        let arguments: Vec<_> = arguments.into_iter().map(str::to_owned).collect();
        let id = self.run(&arguments)?.trim().to_owned();
        self.container = Some(id.clone());
        Ok(id)
    }

    /// Has Podman listen.
    pub(crate) fn serve(&self) -> Result<Served, String> {
        let socket = self.ground.path("podman.sock");
        let mut invocation = self.invocation();
        let url = format!("unix://{}", socket.display());
        invocation.extend(["system", "service", "--time", "0", &url].map(str::to_owned));
        let mut command = self.ground.command(&invocation)?;
        let complaints = fs::File::create(self.ground.path("service")).map_err(text)?;
        command.stdout(Stdio::null()).stderr(complaints);
        let served = Served {
            child: command.spawn().map_err(text)?,
            socket,
        };
        until("Podman listens", || {
            UnixStream::connect(&served.socket).is_ok()
        })?;
        Ok(served)
    }
}

/// A Podman that listens.
pub(crate) struct Served {
    child: Child,
    pub(crate) socket: PathBuf,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) const IMAGE: &str = "localhost/counter";

/// Locks would otherwise be shared with every Podman of the machine.
const CONFIGURATION: &str = r#"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
"#;

impl Engine for Podman {
    fn ground(&self) -> &Ground {
        &self.ground
    }

    fn invocation(&self) -> Vec<String> {
        let mut invocation = vec!["podman".to_owned()];
        for (option, directory) in [
            ("--root", "storage"),
            ("--runroot", "run"),
            ("--tmpdir", "libpod"),
            ("--network-config-dir", "networks"),
        ] {
            invocation.extend([option.to_owned(), self.ground.text(directory)]);
        }
        // The runtime's records would otherwise be where everybody's are.
        let root = format!("root={}", self.ground.text("runtime"));
        let runtime = ["--runtime", self.program.name(), "--runtime-flag", &root];
        invocation.extend(runtime.map(str::to_owned));
        invocation
    }

    fn start_program(&mut self, program: &[&str]) -> Outcome {
        let (name, volume) = (self.ground.id.clone(), self.ground.volume());
        let options = ["--name", &name, "--network", "none", "--volume", &volume];
        self.run_container(&options, program)?;
        Ok(())
    }

    fn status(&self) -> Result<Status, String> {
        let inspected = self.run(&["container", "inspect", self.container()].map(str::to_owned))?;
        Status::inspected(&inspected)
    }

    /// Podman keeps one checkpoint of a container, in the container's own place: it has no name.
    fn checkpoint_arguments(&self, _name: &str) -> Vec<String> {
        ["container", "checkpoint", self.container()]
            .map(str::to_owned)
            .into()
    }

    fn restore_arguments(&self, _name: &str) -> Vec<String> {
        ["container", "restore", self.container()]
            .map(str::to_owned)
            .into()
    }

    /// conmon and the clean-up that it starts outlive the checkpoint command for a moment, and a restore in that moment
    /// fails.
    fn settle(&mut self) -> Outcome {
        until("conmon and its clean-up are gone", || {
            reap_orphans();
            with_argument(Path::new(self.container())).is_empty() && self.ground.is_vacant()
        })
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let remove = ["rm", "--all", "--force", "--time", "0"].map(str::to_owned);
        let _ = self.run(&remove);
        let _ = self.settle();
    }
}

/// What Podman and Docker say of a container, the only one that was asked for.
impl Status {
    pub(super) fn inspected(output: &str) -> Result<Self, String> {
        let mut record: Value = serde_json::from_str(output).map_err(text)?;
        let record = record[0].take();
        let state = record["State"].clone();
        Self::new(&state["Status"], &state["Pid"], record)
    }
}
