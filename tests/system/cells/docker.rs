//! Docker's containers.

use std::net::IpAddr;

use criu_client::ImagesDir;
use criu_client::container::docker::{CheckpointOptions, Docker as Ours, RestoreOptions};

use super::side::Side;
use super::{Network, Row, command, engine_options, ordinary};
use crate::engines::{DOCKERS_IMAGE, Docker, Engine, Ground, Store, Subnet, with_made};
use crate::interposed::Stage;
use crate::podman::whole;
use crate::support::{Outcome, block_on, criu, ensure, text, until};

struct Dock<'a> {
    theirs: &'a mut Docker,
    ours: Ours,
    connected: bool,
    subnet: Subnet,
}

/// A daemon of its own, of which nothing may be left. Docker passes no option on: who listens in adds what connections need.
pub(super) fn with(store: Store, row: Row, test: fn(&mut dyn Side, Row) -> Outcome) -> Outcome {
    let connected = row.network == Network::Connected;
    let stage = match connected {
        true => Some(Stage::install(&[
            "--amend=dump:tcp-established",
            "--amend=restore:tcp-established",
        ])?),
        false => None,
    };
    let environment = stage.as_ref().map_or_else(ordinary, Stage::environment);
    let make = || Docker::start_with_store(environment, store).map(Box::new);
    with_made(make, |theirs: &mut Docker| {
        let mut dock = Dock {
            ours: Ours::with_socket(theirs.socket()),
            theirs,
            connected,
            subnet: Subnet::free(),
        };
        let outcome = test(&mut dock, row);
        if connected {
            let _ = dock.docker(&["rm", "--force", "--volumes", dock.name()]);
            let _ = dock.docker(&["network", "rm", &dock.network()]);
        }
        outcome
    })
}

impl Dock<'_> {
    fn name(&self) -> &str {
        &self.theirs.ground().id
    }

    fn network(&self) -> String {
        format!("{}-net", self.name())
    }

    fn docker(&self, arguments: &[&str]) -> Result<String, String> {
        self.theirs.docker(arguments)
    }

    fn checkpoints(&self) -> Result<std::path::PathBuf, String> {
        let status = self.theirs.status()?;
        let id = status.record["Id"].as_str().ok_or("it has no id")?;
        let directory = format!("data-root/containers/{id}/checkpoints");
        Ok(self.ground().path(&directory))
    }

    fn has_ended(&self) -> Outcome {
        until("Docker has seen the end", || {
            (self.theirs.status()).is_ok_and(|status| status.word == "exited")
        })
    }

    fn make_network(&self) -> Outcome {
        let option = format!("com.docker.network.bridge.name={}", self.subnet.bridge);
        let create = ["network", "create", "--driver", "bridge", "--opt", &option];
        let (range, network) = (self.subnet.range(), self.network());
        let create = [&create[..], &["--subnet", &range, &network]].concat();
        self.docker(&create).map(drop)
    }
}

impl Side for Dock<'_> {
    fn ground(&self) -> &Ground {
        self.theirs.ground()
    }

    fn start(&mut self, row: Row, port: u16) -> Outcome {
        let volume = ["--mount", "type=volume,target=/volume"];
        let mut options = engine_options(self.ground(), row, volume)?;
        let mut add = |words: &[&str]| options.extend(words.iter().map(|word| (*word).to_owned()));
        if row.network == Network::Connected {
            self.make_network()?;
            let address = self.subnet.host(7).to_string();
            add(&["--network", &self.network(), "--ip", &address]);
        }
        add(&[DOCKERS_IMAGE]);
        let arguments = ["run", "--detach", "--name", self.name()].map(str::to_owned);
        let arguments = [&arguments, options.as_slice(), &command(port)].concat();
        self.theirs.run(&arguments).map(drop)
    }

    fn address(&self) -> Result<IpAddr, String> {
        Ok(self.subnet.host(7))
    }

    fn pid(&self) -> Result<i32, String> {
        Ok(self.theirs.status()?.pid)
    }

    fn exec(&self, command: &[&str]) -> Result<String, String> {
        self.docker(&[&["exec", self.name()], command].concat())
    }

    fn pause(&self) -> Outcome {
        self.docker(&["pause", self.name()]).map(drop)
    }

    fn end(&mut self) -> Outcome {
        self.docker(&["kill", self.name()])?;
        self.has_ended()
    }

    fn checkpoint(&mut self, images: &ImagesDir, leave: bool) -> Outcome {
        let options = CheckpointOptions::new()
            .tcp_established(self.connected)
            .leave_running(leave);
        let criu = criu();
        let checkpoint = (self.ours).checkpoint(&criu, self.name(), images, (), options);
        let report = block_on(checkpoint).map_err(whole)?;
        ensure!(report.left_behind.is_empty(), "{:?}", report.left_behind);
        Ok(())
    }

    fn restore(&mut self, images: &ImagesDir) -> Outcome {
        let restore = (self.ours).restore(self.name(), images, RestoreOptions::new());
        let restored = block_on(restore).map_err(whole)?;
        ensure!(
            restored.left_behind.is_empty(),
            "{:?}",
            restored.left_behind
        );
        self.theirs.status()?.is_running()
    }

    fn place(&self, name: &str) -> Result<ImagesDir, String> {
        ImagesDir::create(self.checkpoints()?.join(name)).map_err(text)
    }

    fn own_checkpoint(&mut self, name: &str) -> Result<ImagesDir, String> {
        self.docker(&["checkpoint", "create", self.name(), name])?;
        self.has_ended()?;
        ImagesDir::open(self.checkpoints()?.join(name)).map_err(text)
    }

    fn own_restore(&mut self, images: &ImagesDir) -> Outcome {
        let name = images.path().file_name().unwrap_or_default();
        let name = name.to_string_lossy();
        self.docker(&["start", "--checkpoint", &name, self.name()])?;
        self.theirs.status()?.is_running()
    }
}
