//! A Podman with a container, and what must be left of it: nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use criu_client::ImagesDir;
use criu_client::container::podman::{CheckpointOptions, Podman, RestoreOptions, Restored};
use serde_json::Value;

use crate::engines::{Engine, Environment, Program, Served};
use crate::support::{Outcome, Traces, block_on, criu, ensure, text, until};

/// A Podman of its own that listens, and ours that asks it.
pub(crate) struct Box_ {
    pub(crate) engine: crate::engines::Podman,
    pub(crate) served: Served,
}

/// What a container should at least be able to do again.
pub(crate) fn with(program: Program, test: impl FnOnce(&mut Box_) -> Outcome) -> Outcome {
    let traces = Traces::take();
    let engine = crate::engines::Podman::over(program, Environment::default())?;
    let served = engine.serve()?;
    let mut box_ = Box_ { engine, served };
    let left = box_.engine.ground().traces();
    let had_firewall = has_firewall();
    let had_mount = has_mount();
    let outcome = test(&mut box_);
    drop(box_);
    if !had_firewall && has_firewall() {
        // Podman leaves its table when its last network is gone.
        let _ = Command::new("nft")
            .args(["delete", "table", "inet", "netavark"])
            .status();
    }
    while !had_mount && has_mount() {
        // Podman mounts the directory of network namespaces onto itself, and leaves it so; two Podmans at a time do it twice.
        nix::mount::umount2(NAMESPACES, nix::mount::MntFlags::MNT_DETACH).map_err(text)?;
    }
    outcome?;
    left.nothing_is_left()?;
    traces.unchanged()
}

const NAMESPACES: &str = "/run/netns";

fn has_mount() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts
        .lines()
        .any(|mount| mount.split(' ').nth(4) == Some(NAMESPACES))
}

fn has_firewall() -> bool {
    crate::support::rules(None).contains("table inet netavark")
}

pub(crate) fn whole(error: criu_client::container::Error) -> String {
    serde_json::to_string_pretty(&error).unwrap_or_else(|_| format!("{error:?}"))
}

impl Box_ {
    pub(crate) fn ours(&self) -> Podman {
        Podman::with_socket(&self.served.socket)
    }

    pub(crate) fn id(&self) -> String {
        self.engine.container().to_owned()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.engine.ground().path(name)
    }

    pub(crate) fn images(&self, name: &str) -> Result<ImagesDir, String> {
        ImagesDir::create(self.path(name)).map_err(text)
    }

    /// Has Podman itself do something.
    pub(crate) fn podman(&self, arguments: &[&str]) -> Result<String, String> {
        let arguments: Vec<_> = arguments.iter().map(|word| (*word).to_owned()).collect();
        self.engine.run(&arguments)
    }

    /// What Podman says of the container.
    pub(crate) fn inspect(&self) -> Result<Value, String> {
        let mut inspected: Value = serde_json::from_str(&self.podman(&[
            "container",
            "inspect",
            self.engine.container(),
        ])?)
        .map_err(text)?;
        Ok(inspected[0].take())
    }

    pub(crate) fn is(&self, status: &str) -> Outcome {
        let state = self.inspect()?["State"].take();
        ensure!(state["Status"] == status, "not {status}: {state}");
        Ok(())
    }

    pub(crate) fn exec(&self, command: &[&str]) -> Result<String, String> {
        let mut arguments = vec!["exec", self.engine.container()];
        arguments.extend(command);
        self.podman(&arguments)
    }

    pub(crate) fn checkpoint(&self, images: &ImagesDir) -> Outcome {
        self.checkpoint_with(images, CheckpointOptions::new())
    }

    pub(crate) fn checkpoint_with(
        &self,
        images: &ImagesDir,
        options: CheckpointOptions,
    ) -> Outcome {
        let (ours, id) = (self.ours(), self.id());
        let report = block_on(ours.checkpoint(&criu(), &id, images, (), options)).map_err(whole)?;
        ensure!(report.left_behind.is_empty(), "{:?}", report.left_behind);
        ensure!(report.id == id, "{} instead of {id}", report.id);
        Ok(())
    }

    pub(crate) fn restore(&self, images: &ImagesDir) -> Result<Restored, String> {
        self.restore_with(images, RestoreOptions::new())
    }

    pub(crate) fn restore_with(
        &self,
        images: &ImagesDir,
        options: RestoreOptions,
    ) -> Result<Restored, String> {
        let restored = block_on(self.ours().restore(&self.id(), images, options)).map_err(whole)?;
        ensure!(restored.left_behind.is_empty(), "{restored:?}");
        self.is("running")?;
        let pid = self.inspect()?["State"]["Pid"].as_i64();
        ensure!(
            pid == restored.container.pid.map(i64::from),
            "{pid:?} {restored:?}"
        );
        self.bundle_is_clean()?;
        Ok(restored)
    }

    /// Nothing of ours is in the bundle.
    pub(crate) fn bundle_is_clean(&self) -> Outcome {
        let names = names(&self.engine.bundle())?;
        let ours = |name: &&String| {
            name.starts_with("criuctl") || is_link(&self.engine.bundle().join(name))
        };
        let left: Vec<_> = names.iter().filter(ours).collect();
        ensure!(left.is_empty(), "left in the bundle: {left:?}");
        Ok(())
    }

    /// Ends the container, as its user would.
    pub(crate) fn stop(&self) -> Outcome {
        self.podman(&["stop", "--time", "0", self.engine.container()])?;
        until("the container has exited", || self.is("exited").is_ok())?;
        // The clean-up that conmon starts is not told of the root that the tests give to the runtime, and may be first.
        let root = self.engine.runtime_root();
        match root.join(self.engine.container()).exists() {
            true => self.engine.forget(),
            false => Ok(()),
        }
    }

    /// Our own program, with this Podman.
    pub(crate) fn criuctl(&self, arguments: &[&str]) -> Result<Output, String> {
        let url = format!("unix://{}", self.served.socket.display());
        Command::new(env!("CARGO_BIN_EXE_criuctl"))
            .args(arguments)
            .env("CONTAINER_HOST", url)
            .output()
            .map_err(text)
    }
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| file.is_symlink())
}

pub(crate) fn names(directory: &Path) -> Result<Vec<String>, String> {
    let entries = fs::read_dir(directory).map_err(text)?;
    let mut names: Vec<_> = entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_, _>>()
        .map_err(text)?;
    names.sort();
    Ok(names)
}
