//! Podman's containers.

use std::fs;
use std::net::IpAddr;

use criu_client::ImagesDir;
use criu_client::container::podman::{CheckpointOptions, RestoreOptions};

use super::side::Side;
use super::{Network, Row, command, engine_options};
use crate::engines::{Engine, Ground, Program};
use crate::podman::{Box_, copy, with as with_box};
use crate::support::{Outcome, ensure, text};

/// Where Podman keeps what was in the container's shared memory.
const SHM: &str = "devshm-checkpoint.tar";

struct Pod<'a> {
    box_: &'a mut Box_,
    connected: bool,
}

pub(super) fn with(program: Program, row: Row, test: fn(&mut dyn Side, Row) -> Outcome) -> Outcome {
    with_box(program, |box_| {
        let connected = row.network == Network::Connected;
        test(&mut Pod { box_, connected }, row)
    })
}

impl Side for Pod<'_> {
    fn ground(&self) -> &Ground {
        self.box_.engine.ground()
    }

    fn start(&mut self, row: Row, port: u16) -> Outcome {
        // Of networks, Podman's own is a bridge.
        let options = engine_options(self.ground(), row, ["--volume", "named:/volume"])?;
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let command = command(port);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        self.box_.engine.run_container(&options, &command).map(drop)
    }

    fn address(&self) -> Result<IpAddr, String> {
        let settings = self.box_.inspect()?["NetworkSettings"].take();
        let address = settings["IPAddress"].as_str().unwrap_or_default();
        address
            .parse()
            .map_err(|error| format!("{address:?}: {error}"))
    }

    fn pid(&self) -> Result<i32, String> {
        Ok(self.box_.engine.status()?.pid)
    }

    fn exec(&self, command: &[&str]) -> Result<String, String> {
        self.box_.exec(command)
    }

    fn pause(&self) -> Outcome {
        self.box_.podman(&["pause", &self.box_.id()]).map(drop)
    }

    fn end(&mut self) -> Outcome {
        self.box_.stop()?;
        self.box_.engine.settle()
    }

    fn checkpoint(&mut self, images: &ImagesDir, leave: bool) -> Outcome {
        let options = CheckpointOptions::new()
            .tcp_established(self.connected)
            .leave_running(leave);
        self.box_.checkpoint_with(images, options)
    }

    fn restore(&mut self, images: &ImagesDir) -> Outcome {
        let options = RestoreOptions::new().tcp_established(self.connected);
        let restored = self.box_.restore_with(images, options)?;
        ensure!(restored.notes.is_empty(), "{:?}", restored.notes);
        Ok(())
    }

    fn place(&self, name: &str) -> Result<ImagesDir, String> {
        self.box_.images(name)
    }

    fn own_checkpoint(&mut self, _name: &str) -> Result<ImagesDir, String> {
        let id = self.box_.id();
        let mut arguments = vec!["container", "checkpoint", "--keep"];
        arguments.extend(self.connected.then_some("--tcp-established"));
        arguments.push(&id);
        self.box_.podman(&arguments)?;
        self.box_.engine.settle()?;
        ImagesDir::open(self.box_.engine.bundle().join("checkpoint")).map_err(text)
    }

    /// As a user would without us: everything is copied to where Podman has its own.
    fn own_restore(&mut self, images: &ImagesDir) -> Outcome {
        let (bundle, id) = (self.box_.engine.bundle(), self.box_.id());
        let place = bundle.join("checkpoint");
        if place.exists() {
            fs::remove_dir_all(&place).map_err(text)?;
        }
        copy(images.path(), &place)?;
        for (beside, name) in [(SHM, SHM), ("network.status", "network.status")] {
            if place.join(beside).exists() {
                fs::rename(place.join(beside), bundle.join(name)).map_err(text)?;
            }
        }
        let mut arguments = vec!["container", "restore"];
        arguments.extend(self.connected.then_some("--tcp-established"));
        arguments.push(&id);
        self.box_.podman(&arguments)?;
        self.box_.is("running")
    }
}
