//! Docker with a daemon of its own.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Child;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::ground::{COUNTER, Environment, Ground};
use super::{Engine, Status};
use crate::support::{Outcome, reap_orphans, text, until};

/// A dockerd and the containerd that it starts, with all they keep in a directory of their own and without a bridge; a
/// container made of an image of its own.
pub(crate) struct Docker {
    ground: Ground,
    daemon: Child,
}

pub(crate) const IMAGE: &str = "counter";

/// Who keeps images and root file systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    Own,
    Containerd,
}

impl Docker {
    /// The environment is the daemon's, and so that of containerd and runc, which start CRIU.
    pub(crate) fn start_daemon(environment: Environment) -> Result<Self, String> {
        Self::start_with_store(environment, Store::Own)
    }

    /// The same with the images in a store of the caller's choice.
    pub(crate) fn start_with_store(environment: Environment, store: Store) -> Result<Self, String> {
        let mut ground = Ground::new("docker", environment)?;
        ground.set("DOCKER_CONFIG", ground.path("client"));
        let configuration = json!({
            "experimental": true,
            "data-root": ground.path("data-root"),
            "exec-root": ground.path("exec-root"),
            "pidfile": ground.path("dockerd.pid"),
            "hosts": [address(&ground)],
            "cgroup-parent": ground.group(),
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "bridge": "none",
            "iptables": false,
            "ip6tables": false,
            "ip-forward": false,
            "ip-masq": false,
            "userland-proxy": false,
            "features": {"containerd-snapshotter": store == Store::Containerd},
        });
        let path = ground.text("daemon.json");
        fs::write(&path, configuration.to_string()).map_err(text)?;
        let mut command =
            ground.command(&["dockerd", "--config-file", &path].map(str::to_owned))?;
        let log = File::create(ground.path("dockerd.log")).map_err(text)?;
        command.stdout(log.try_clone().map_err(text)?).stderr(log);
        let daemon = command
            .spawn()
            .map_err(|error| format!("dockerd: {error}; run scripts/install"))?;
        let mut docker = Self { ground, daemon };
        docker.is_up()?;
        let archive = docker.ground.make_archive()?;
        docker.run(&["import", &archive, IMAGE].map(str::to_owned))?;
        Ok(docker)
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.ground.path("docker.sock")
    }

    /// Stops the daemon in its tracks, or lets it go on.
    pub(crate) fn signal(&self, signal: Signal) -> Outcome {
        let pid = i32::try_from(self.daemon.id()).map_err(text)?;
        kill(Pid::from_raw(pid), signal).map_err(text)
    }

    /// Has Docker do something.
    pub(crate) fn docker(&self, arguments: &[&str]) -> Result<String, String> {
        let arguments: Vec<_> = arguments.iter().map(|word| (*word).to_owned()).collect();
        self.run(&arguments)
    }

    /// Starts the container with these options, and waits until it counts.
    pub(crate) fn start_with(&self, options: &[&str]) -> Outcome {
        self.run_container(options, &COUNTER)?;
        self.ground.counts()
    }

    /// Starts the container with another program in it.
    pub(crate) fn run_container(&self, options: &[&str], program: &[&str]) -> Outcome {
        let volume = self.ground.volume();
        let named = ["run", "--detach", "--name", &self.ground.id];
        let mounted = ["--volume", &volume];
        self.docker(&[&named, options, &mounted, &[IMAGE], program].concat())?;
        Ok(())
    }

    fn is_up(&mut self) -> Outcome {
        let mut last = Ok(String::new());
        let mut ended = false;
        until("dockerd answers", || {
            last = self.run(&["version".to_owned()]);
            ended = self.has_ended();
            last.is_ok() || ended
        })
        .and(match ended {
            true => Err("dockerd has ended".to_owned()),
            false => Ok(()),
        })
        .map_err(|error| {
            let log = fs::read_to_string(self.ground.path("dockerd.log")).unwrap_or_default();
            format!("{error}: {last:?}\n{log}")
        })
    }

    /// Somebody may have reaped it as an orphan.
    fn has_ended(&mut self) -> bool {
        !matches!(self.daemon.try_wait(), Ok(None))
    }

    /// containerd keeps what it has sent to dockerd as a checkpoint until it collects garbage, and till then refuses to be
    /// sent the same by dockerd ("already exists").
    fn forget_checkpoints(&self) -> Outcome {
        let socket = self.ground.text("exec-root/containerd/containerd.sock");
        let contents = [
            "ctr",
            "--address",
            &socket,
            "--namespace",
            "moby",
            "content",
        ];
        let contents = contents.map(str::to_owned);
        let ctr = |arguments: &[String]| {
            let command = self.ground.command(&[&contents, arguments].concat())?;
            self.ground.finish(command)
        };
        let list = ctr(&["ls", "--quiet"].map(str::to_owned))?;
        let mut remove = vec!["rm".to_owned()];
        remove.extend(list.lines().map(str::to_owned));
        if remove.len() > 1 {
            ctr(&remove)?;
        }
        Ok(())
    }
}

fn address(ground: &Ground) -> String {
    format!("unix://{}", ground.text("docker.sock"))
}

impl Engine for Docker {
    fn ground(&self) -> &Ground {
        &self.ground
    }

    fn invocation(&self) -> Vec<String> {
        ["docker", "--host", &address(&self.ground)]
            .map(str::to_owned)
            .into()
    }

    fn start(&mut self) -> Outcome {
        self.start_with(&["--network", "none"])
    }

    fn status(&self) -> Result<Status, String> {
        let inspected = self.run(&["container", "inspect", &self.ground.id].map(str::to_owned))?;
        Status::inspected(&inspected)
    }

    fn checkpoint_arguments(&self, name: &str) -> Vec<String> {
        ["checkpoint", "create", &self.ground.id, name]
            .map(str::to_owned)
            .into()
    }

    fn restore_arguments(&self, name: &str) -> Vec<String> {
        ["start", "--checkpoint", name, &self.ground.id]
            .map(str::to_owned)
            .into()
    }

    fn settle(&mut self) -> Outcome {
        until("Docker has seen the end", || {
            self.ground.is_vacant() && (self.status()).is_ok_and(|status| status.word == "exited")
        })?;
        self.forget_checkpoints()
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if !self.has_ended() {
            let all = self.docker(&["ps", "--all", "--quiet"]).unwrap_or_default();
            let remove = ["rm", "--force", "--volumes"];
            let _ = self.docker(&remove.into_iter().chain(all.lines()).collect::<Vec<_>>());
            let _ = self.docker(&["network", "prune", "--force"]);
            if let Ok(pid) = i32::try_from(self.daemon.id()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
            let _ = until("dockerd has ended", || self.has_ended());
        }
        // containerd's shims have come to us.
        reap_orphans();
    }
}
