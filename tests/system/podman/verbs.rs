//! The command line.

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;

use super::fixture::{Box_, names, with};
use crate::engines::{Engine, Program};
use crate::support::{Outcome, ensure, text, until};

fn succeeded(output: &Output) -> Outcome {
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

fn document(output: &Output) -> Result<Value, String> {
    serde_json::from_slice(&output.stdout).map_err(|error| format!("{error}: {output:?}"))
}

pub(super) fn there_and_back(program: Program) -> Outcome {
    with(program, |box_| {
        box_.engine.start()?;
        let name = box_.engine.ground().id.clone();
        let images = box_.engine.ground().text("images");
        let target = format!("podman:{name}");
        let done = box_.criuctl(&["checkpoint", &target, "--image-path", &images])?;
        succeeded(&done)?;
        box_.is("exited")?;
        let counted = box_.engine.ground().stands_still()?;

        let refused = box_.criuctl(&["restore", &target, "-D", &images, "--ext-unix-sk"])?;
        ensure!(
            refused.status.code() == Some(2)
                && String::from_utf8_lossy(&refused.stderr)
                    .contains("--ext-unix-sk cannot be passed on"),
            "{refused:?}"
        );
        let pid_file = box_.engine.ground().text("pid");
        let restore = ["restore", &target, "-D", &images, "--pid-file", &pid_file];
        let done = box_.criuctl(&[&restore[..], &["--format", "json"]].concat())?;
        succeeded(&done)?;
        let document = document(&done)?;
        ensure!(
            document["kind"] == "Restore" && document["name"] == name.as_str(),
            "{document}"
        );
        let pid = box_.inspect()?["State"]["Pid"].take();
        ensure!(document["pid"] == pid, "{document} {pid}");
        ensure!(
            fs::read_to_string(&pid_file).map_err(text)?.parse().ok() == pid.as_i64(),
            "another pid"
        );
        box_.engine.ground().goes_on_from(&counted)?;
        // A second one is refused, and tells what to do.
        let refused = box_.criuctl(&["restore", &target, "-D", &images])?;
        ensure!(
            refused.status.code() == Some(1)
                && String::from_utf8_lossy(&refused.stderr).contains("podman stop"),
            "{refused:?}"
        );
        let unknown = box_.criuctl(&["checkpoint", "podman:nobody", "-D", "/nonexistent/x"])?;
        ensure!(unknown.status.code() == Some(2), "{unknown:?}");
        Ok(())
    })
}

fn listed(box_: &Box_) -> Result<Vec<Value>, String> {
    let (runtime, storage) = (box_.engine.runtime_root(), box_.engine.storage());
    let root = format!("--{}-root", box_.engine.program().name());
    let output = Command::new(env!("CARGO_BIN_EXE_criuctl"))
        .args(["list", "--format", "json", &root])
        .arg(runtime)
        .arg("--podman-root")
        .arg(storage)
        .output()
        .map_err(text)?;
    succeeded(&output)?;
    let mut document = document(&output)?;
    let containers = document["containers"].as_array_mut().ok_or("no list")?;
    Ok(std::mem::take(containers))
}

pub(super) fn list(program: Program) -> Outcome {
    with(program, |box_| {
        box_.engine.start()?;
        let (id, name) = (box_.id(), box_.engine.ground().id.clone());
        let own = |status: &str| -> Result<Value, String> {
            let listed = listed(box_)?;
            let mut own = listed
                .into_iter()
                .filter(|entry| entry["id"] == id.as_str());
            let entry = own.next().ok_or("it is not listed")?;
            ensure!(own.next().is_none(), "it is listed twice");
            ensure!(
                entry["engine"] == "podman" && entry["name"] == name.as_str(),
                "{entry}"
            );
            ensure!(entry["status"] == status, "{entry}");
            Ok(entry)
        };
        let entry = own("running")?;
        ensure!(entry["checkpointable"] == true, "{entry}");
        ensure!(entry["pid"] == box_.inspect()?["State"]["Pid"], "{entry}");
        box_.podman(&["pause", &id])?;
        own("paused")?;
        box_.podman(&["unpause", &id])?;
        let images = box_.images("images")?;
        box_.checkpoint(&images)?;
        let entry = own("stopped")?;
        ensure!(
            entry["checkpointable"] == false && entry["pid"].is_null(),
            "{entry}"
        );
        Ok(())
    })
}

pub(super) fn id_alone(program: Program) -> Outcome {
    with(program, |box_| {
        box_.engine.start()?;
        let (id, name) = (box_.id(), box_.engine.ground().id.clone());
        let images = box_.engine.ground().text("images");
        let storage = box_.engine.storage().display().to_string();
        let runtime = box_.engine.runtime_root().display().to_string();
        let root = format!("--{}-root", program.name());
        let common = ["-D", &images, "--podman-root", &storage, &root, &runtime];
        for target in [id.as_str(), &id[..12], &name] {
            // Podman's, though its runtime has it by the full id as well.
            let done = box_.criuctl(&[&["checkpoint", target], &common[..]].concat())?;
            succeeded(&done)?;
            box_.is("exited")?;
            let counted = box_.engine.ground().stands_still()?;
            let done =
                box_.criuctl(&["restore", target, "-D", &images, "--podman-root", &storage])?;
            succeeded(&done)?;
            box_.engine.ground().goes_on_from(&counted)?;
        }
        Ok(())
    })
}

pub(super) fn dry_run(program: Program) -> Outcome {
    with(program, |box_| {
        box_.engine.start()?;
        let target = format!("podman:{}", box_.id());
        let images = box_.engine.ground().text("images");
        let plan = |verb: &str| {
            let done = box_.criuctl(&[
                verb,
                &target,
                "-D",
                &images,
                "--dry-run",
                "--format",
                "json",
            ])?;
            succeeded(&done)?;
            document(&done)
        };
        let before = (
            box_.inspect()?["State"].take(),
            names(&box_.engine.bundle())?,
        );
        let checkpoint = plan("checkpoint")?;
        ensure!(
            checkpoint["kind"] == "CheckpointPlan" && checkpoint["request"]["type"] == "DUMP",
            "{checkpoint}"
        );
        ensure!(!box_.path("images").exists(), "a directory was made");
        let now = (
            box_.inspect()?["State"].take(),
            names(&box_.engine.bundle())?,
        );
        ensure!(now == before, "{before:?} {now:?}");
        let directory = box_.images("images")?;
        box_.checkpoint(&directory)?;
        // What was announced is what was written.
        let announced = checkpoint["files"].as_array().ok_or("no files")?;
        for file in announced {
            let path = file.as_str().ok_or("no path")?;
            ensure!(fs::metadata(path).is_ok(), "{path} was announced");
        }
        let bundle = names(&box_.engine.bundle())?;
        let restore = plan("restore")?;
        ensure!(restore["kind"] == "RestorePlan", "{restore}");
        let steps = restore["steps"].as_array().ok_or("no steps")?;
        let of = |action: &str| steps.iter().filter(|step| step["action"] == action).count();
        ensure!(of("put-link") >= 2 && of("ask-engine") == 1, "{restore}");
        ensure!(
            names(&box_.engine.bundle())? == bundle,
            "the bundle has changed"
        );
        box_.is("exited")
    })
}

/// Podman's places are those of its configuration then, as the command line is ours.
pub(super) fn own_service(program: Program) -> Outcome {
    with(program, |box_| {
        box_.engine.start()?;
        let ground = box_.engine.ground();
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = {:?}\nrunroot = {:?}\n",
            box_.engine.storage(),
            ground.path("run")
        );
        fs::write(ground.path("storage.conf"), storage).map_err(text)?;
        let engine = format!(
            "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nlock_type = \"file\"\nruntime = {:?}\ntmp_dir = {:?}\n[network]\nnetwork_config_dir = {:?}\n",
            program.name(),
            ground.path("libpod"),
            ground.path("networks")
        );
        fs::write(ground.path("own.conf"), engine).map_err(text)?;
        let images = ground.text("images");
        let target = format!("podman:{}", box_.id());
        let criuctl = |arguments: &[&str]| {
            Command::new(env!("CARGO_BIN_EXE_criuctl"))
                .args(arguments)
                .env_remove("CONTAINER_HOST")
                .env("CONTAINERS_CONF", ground.path("own.conf"))
                .env("CONTAINERS_STORAGE_CONF", ground.path("storage.conf"))
                .env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1")
                .output()
                .map_err(text)
        };
        let done = criuctl(&["checkpoint", &target, "-D", &images])?;
        succeeded(&done)?;
        let counted = ground.stands_still()?;
        // The runtime's records are elsewhere for a Podman that is told nothing of them, so the restored container is there.
        let done = criuctl(&["restore", &target, "-D", &images])?;
        succeeded(&done)?;
        ground.goes_on_from(&counted)?;
        until("the services have ended", || {
            names("/run/criu-client".as_ref())
                .unwrap_or_default()
                .iter()
                .all(|name| !name.starts_with("podman-"))
        })?;
        let done = criuctl(&["checkpoint", &target, "-D", &images])?;
        succeeded(&done)
    })
}
