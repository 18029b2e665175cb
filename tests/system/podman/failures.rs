//! What goes wrong, and what is left of it.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use criu_client::ImagesDir;
use criu_client::container::plan::Consumer;
use criu_client::container::podman::{CheckpointOptions, Podman, RestoreOptions};
use criu_client::notify::{HookTable, Reply, Script, hook_fn};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::fixture::{Box_, names, whole, with};
use crate::engines::{Engine, Program};
use crate::support::{Outcome, Sealed, block_on, criu, ensure, text, until};

pub(super) fn refusing(program: Program) -> Outcome {
    with(program, |box_| {
        box_.engine.start()?;
        let before = box_.inspect()?["State"].take();
        let images = box_.images("images")?;
        for script in [Script::PreDump, Script::PostDump] {
            let hooks = HookTable::new().on(
                script.clone(),
                hook_fn(async |_| Ok(Reply::Refuse("not today".into()))),
            );
            let (ours, id) = (box_.ours(), box_.id());
            let refused =
                block_on(ours.checkpoint(&criu(), &id, &images, hooks, CheckpointOptions::new()));
            let error = refused.err().ok_or("it was to be refused")?;
            ensure!(error.code() == "criu", "{error}");
            let state = box_.inspect()?["State"].take();
            ensure!(state == before, "{before} {state}");
            let counted = box_.engine.ground().count().ok_or("no count")?;
            box_.engine.ground().goes_on_from(&counted)?;
        }
        ensure!(
            !images.contains("inventory.img") || !images.contains("devshm-checkpoint.tar"),
            "a refused checkpoint looks complete"
        );
        Ok(())
    })
}

pub(super) fn policies(program: Program) -> Outcome {
    with(program, |box_| {
        // One sleep alone would end as soon as it is interrupted.
        let command = ["/bin/sh", "-c", "while :; do sleep 1; done"];
        for (options, word) in [
            (vec!["--network", "none", "--rm"], "--rm"),
            (
                vec!["--network", "none", "--restart", "always"],
                "restart policy always",
            ),
        ] {
            box_.engine.run_container(&options, &command)?;
            let images = box_.images("images")?;
            let error = box_
                .checkpoint(&images)
                .err()
                .ok_or("it was to be refused")?;
            ensure!(
                error.contains(word) && error.contains("\"policy\""),
                "{error}"
            );
            box_.is("running")?;
            ensure!(names(images.path())?.is_empty(), "something was written");
            // Nothing ends then.
            box_.checkpoint_with(&images, CheckpointOptions::new().leave_running(true))?;
            box_.is("running")?;
            if error.contains("podman update") {
                // What it says can be done.
                box_.podman(&["update", "--restart", "no", &box_.id()])?;
                box_.checkpoint(&images)?;
                box_.is("exited")?;
                box_.restore(&images)?;
            }
            box_.podman(&["rm", "--force", "--time", "0", &box_.id()])?;
            fs::remove_dir_all(images.path()).map_err(text)?;
        }
        let memory = ["--opt", "type=tmpfs", "--opt", "device=tmpfs", "memory"];
        box_.podman(&[&["volume", "create"], &memory[..]].concat())?;
        box_.engine.run_container(
            &["--network", "none", "--volume", "memory:/memory"],
            &command,
        )?;
        let images = box_.images("images")?;
        let error = box_
            .checkpoint(&images)
            .err()
            .ok_or("it was to be refused")?;
        ensure!(
            error.contains("\"policy\"") && error.contains("volume at /memory"),
            "{error}"
        );
        box_.is("running")?;
        box_.checkpoint_with(&images, CheckpointOptions::new().leave_running(true))?;
        let label = "PODMAN_SYSTEMD_UNIT=web.service";
        box_.engine
            .run_container(&["--network", "none", "--label", label], &command)?;
        let (ours, id) = (box_.ours(), box_.id());
        for (leave_running, told) in [(false, true), (true, false)] {
            let plan =
                block_on(ours.dump_plan(&id, Consumer::Any, leave_running)).map_err(whole)?;
            let tells = plan.notes.iter().any(|note| note.contains("web.service"));
            ensure!(tells == told, "{leave_running}: {:?}", plan.notes);
        }
        Ok(())
    })
}

pub(super) fn refusals(program: Program) -> Outcome {
    with(program, |box_| {
        let ours = box_.ours();
        let images = box_.images("images")?;
        let checkpoint = |name: &str| {
            let done =
                block_on(ours.checkpoint(&criu(), name, &images, (), CheckpointOptions::new()));
            done.err().map(|error| (error.code(), error.to_string()))
        };
        let restore = |name: &str, images: &ImagesDir| {
            let done = block_on(ours.restore(name, images, RestoreOptions::new()));
            done.err().map(|error| (error.code(), error.to_string()))
        };
        let said = |found: Option<(&'static str, String)>, code: &str, words: &str| {
            let (is, message) = found.ok_or_else(|| format!("{code} was expected"))?;
            ensure!(
                is == code && message.contains(words),
                "{code}: {is}: {message}"
            );
            Ok(())
        };
        said(checkpoint("nobody"), "unknown", "podman ps --all")?;
        said(checkpoint("no/body"), "invalid-id", "")?;
        box_.engine.start()?;
        let id = box_.id();
        said(restore(&id, &images), "exists", "podman stop")?;
        let sealed = Sealed::directory(&box_.path("sealed"))?;
        let refused = box_.checkpoint(&sealed.images()?).err();
        ensure!(
            refused.is_some_and(|error| error.contains("Read-only file system")),
            "a directory that cannot be written to"
        );
        drop(sealed);
        box_.is("running")?;
        box_.engine.ground().counts()?;
        box_.checkpoint(&images)?;
        said(checkpoint(&id), "not-running", "podman start")?;
        // Ids that begin alike: with more of them than digits, there are two.
        let mut firsts: Vec<char> = id.chars().take(1).collect();
        let twice = loop {
            let other = box_.podman(&[
                "create",
                "--network",
                "none",
                crate::engines::IMAGE,
                "/bin/true",
            ])?;
            let first = other.chars().next().unwrap_or_default();
            match firsts.contains(&first) {
                true => break first.to_string(),
                false => firsts.push(first),
            }
        };
        said(checkpoint(&twice), "ambiguous", &twice)?;

        // Images of another, by our note and by their place.
        let note = images.path().join("criuctl-container.json");
        let kept = fs::read_to_string(&note).map_err(text)?;
        fs::write(
            &note,
            kept.replace(&id, &id.chars().rev().collect::<String>()),
        )
        .map_err(text)?;
        said(restore(&id, &images), "images", "another container")?;
        fs::write(&note, kept).map_err(text)?;
        let others = box_
            .engine
            .storage()
            .join("overlay-containers/0123/userdata/checkpoint");
        fs::create_dir_all(others.parent().ok_or("no parent")?).map_err(text)?;
        fs::rename(images.path(), &others).map_err(text)?;
        let moved = ImagesDir::open(&others).map_err(text)?;
        fs::remove_file(others.join("criuctl-container.json")).map_err(text)?;
        said(restore(&id, &moved), "images", "podman:0123")?;
        fs::rename(&others, images.path()).map_err(text)?;
        fs::remove_dir_all(box_.engine.storage().join("overlay-containers/0123")).map_err(text)?;

        // No images at all.
        let empty = box_.images("empty")?;
        said(restore(&id, &empty), "images", "no complete checkpoint")?;

        // Nobody there, nobody listening, and somebody else.
        let at = |socket: &std::path::Path| {
            let done = block_on(Podman::with_socket(socket).load(&id));
            done.err().map(|error| (error.code(), error.to_string()))
        };
        said(at(&box_.path("no.sock")), "api", "no such socket")?;
        let dead = box_.path("dead.sock");
        drop(std::os::unix::net::UnixListener::bind(&dead).map_err(text)?);
        said(at(&dead), "api", "nobody listens")?;
        box_.bundle_is_clean()?;
        box_.is("exited")?;
        let counted = box_.engine.ground().stands_still()?;
        box_.restore(&images)?;
        box_.engine.ground().goes_on_from(&counted)
    })
}

pub(super) fn failing_restore(program: Program) -> Outcome {
    with(program, |box_| {
        box_.engine.start()?;
        let images = box_.images("images")?;
        box_.checkpoint(&images)?;
        let before = box_.inspect()?["State"]["Status"].take();
        let counted = box_.engine.ground().stands_still()?;
        let pstree = images.path().join("pstree.img");
        let tree = fs::read(&pstree).map_err(text)?;
        fs::write(&pstree, &tree[..tree.len() - 1]).map_err(text)?;
        let done = block_on(
            box_.ours()
                .restore(&box_.id(), &images, RestoreOptions::new()),
        );
        let error = done.err().ok_or("it was to fail")?;
        ensure!(error.code() == "engine-restore", "{}", whole(error));
        let findings = error.findings().ok_or("nothing is said of the log")?;
        ensure!(findings.cause.is_some(), "{}", whole(error));
        ensure!(error.left_behind().is_empty(), "{:?}", error.left_behind());
        // Nor is there anything that would keep Podman from starting it.
        box_.podman(&["start", &box_.id()])?;
        box_.stop()?;
        box_.bundle_is_clean()?;
        let after = box_.inspect()?["State"]["Status"].take();
        ensure!(before == after, "{before} {after}");
        fs::write(&pstree, &tree).map_err(text)?;
        box_.restore(&images)?;
        until("it goes on from where it was", || {
            box_.engine
                .ground()
                .count()
                .is_some_and(|now| now.is_of(&counted))
        })
    })
}

pub(super) const KILLED: &str = "what a killed restore has left is undone by the next";

/// criuctl, as soon as the images are in place.
fn restoring(box_: &Box_, images: &ImagesDir) -> Result<Child, String> {
    let url = format!("unix://{}", box_.served.socket.display());
    let mut child = Command::new(env!("CARGO_BIN_EXE_criuctl"))
        .args(["restore", &format!("podman:{}", box_.id())])
        .args(["--format", "json", "--podman-url", &url])
        .arg("--image-path")
        .arg(images.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(text)?;
    while !box_.engine.bundle().join("criuctl-restore.json").exists() {
        ensure!(
            child.try_wait().map_err(text)?.is_none(),
            "it was over too quickly"
        );
    }
    Ok(child)
}

pub(super) fn interrupted_restore(program: Program) -> Outcome {
    with(program, |box_| {
        box_.engine.start()?;
        let images = box_.images("images")?;
        box_.checkpoint(&images)?;
        let counted = box_.engine.ground().stands_still()?;
        let child = restoring(box_, &images)?;
        let pid = Pid::from_raw(child.id().cast_signed());
        kill(pid, Signal::SIGINT).map_err(text)?;
        let output = child.wait_with_output().map_err(text)?;
        // Podman went on, and that is what is said.
        ensure!(output.status.code() == Some(130), "{output:?}");
        let error: Value = serde_json::from_slice(&output.stdout).map_err(text)?;
        ensure!(
            error["code"] == "cancelled" && error["tasks"] == "running",
            "{error}"
        );
        box_.bundle_is_clean()?;
        box_.is("running")?;
        box_.engine.ground().goes_on_from(&counted)?;
        // The same of a time limit.
        box_.stop()?;
        let (path, id) = (images.path().display().to_string(), box_.id());
        let target = format!("podman:{id}");
        let output = box_.criuctl(&[
            "--format",
            "json",
            "--timeout",
            "20ms",
            "restore",
            &target,
            "-D",
            &path,
        ])?;
        ensure!(output.status.code() == Some(5), "{output:?}");
        let error: Value = serde_json::from_slice(&output.stdout).map_err(text)?;
        ensure!(
            error["code"] == "time-limit" && error["tasks"] == "running",
            "{error}"
        );
        box_.bundle_is_clean()?;
        box_.is("running")?;
        box_.engine.ground().counts()
    })
}

/// A container that Podman waits for to end, before it kills it.
pub(super) fn stopping(program: Program) -> Outcome {
    with(program, |box_| {
        box_.engine.start()?;
        let images = box_.images("images")?;
        let mut invocation = box_.engine.invocation();
        invocation.extend(["stop", "--time", "5", &box_.id()].map(str::to_owned));
        let mut stop = box_
            .engine
            .ground()
            .command(&invocation)?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(text)?;
        let done = until("Podman is stopping it", || box_.is("stopping").is_ok()).and_then(|()| {
            let error = box_.checkpoint(&images).err();
            let error = error.ok_or("a container that was about to be killed was checkpointed")?;
            ensure!(
                error.contains("\"policy\"") && error.contains("is stopping it"),
                "{error}"
            );
            ensure!(names(images.path())?.is_empty(), "something was written");
            Ok(())
        });
        stop.wait().map_err(text)?;
        done?;
        until("it has exited", || box_.is("exited").is_ok())?;
        match box_.engine.runtime_root().join(box_.id()).exists() {
            true => box_.engine.forget(),
            false => Ok(()),
        }
    })
}

/// criuctl is killed as soon as the images are in place.
pub(super) fn killed_restore(program: Program) -> Outcome {
    with(program, |box_| {
        box_.engine.start()?;
        let images = box_.images("images")?;
        box_.checkpoint(&images)?;
        let counted = box_.engine.ground().stands_still()?;
        let bundle = box_.engine.bundle();
        let mut child = restoring(box_, &images)?;
        child.kill().map_err(text)?;
        child.wait().map_err(text)?;
        // Podman restores it, or fails, as it would without us; nothing is written into the images then.
        std::thread::sleep(Duration::from_secs(1));
        ensure!(
            fs::symlink_metadata(bundle.join("checkpoint")).is_err()
                || !bundle.join("checkpoint").exists(),
            "the link still leads to the images"
        );
        until("Podman has come to an end", || {
            box_.is("running").is_ok() || box_.is("exited").is_ok()
        })?;
        if box_.is("running").is_ok() {
            box_.engine.ground().goes_on_from(&counted)?;
            box_.stop()?;
        }
        box_.restore(&images)?;
        let counted = box_.engine.ground().count().ok_or("no count")?;
        box_.engine.ground().goes_on_from(&counted)
    })
}

pub(super) fn dropped_restore(program: Program) -> Outcome {
    with(program, |box_| {
        box_.engine.start()?;
        let images = box_.images("images")?;
        box_.checkpoint(&images)?;
        let counted = box_.engine.ground().stands_still()?;
        let (ours, id) = (box_.ours(), box_.id());
        block_on(async {
            let restore = ours.restore(&id, &images, RestoreOptions::new());
            let dropped = tokio::time::timeout(Duration::from_millis(60), restore).await;
            ensure!(dropped.is_err(), "it was too quick to be dropped");
            ours.settled().await;
            Ok::<_, String>(())
        })?;
        box_.bundle_is_clean()?;
        box_.is("running")?;
        box_.engine.ground().goes_on_from(&counted)
    })
}
