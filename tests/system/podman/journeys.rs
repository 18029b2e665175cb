//! There and back again.

use std::fs;
use std::path::Path;

use criu_client::container::podman::CheckpointOptions;

use super::fixture::{Box_, names, with};
use crate::engines::{Engine, Program};
use crate::support::{Outcome, ensure, text, until};

pub(super) fn round_trip(program: Program) -> Outcome {
    with(program, |box_| {
        box_.engine.start()?;
        box_.exec(&[
            "/bin/sh",
            "-c",
            "echo kept >/dev/shm/word; echo changed >/etc/word",
        ])?;
        let images = box_.images("images")?;
        let mut before = names(&box_.engine.bundle())?;
        box_.checkpoint(&images)?;
        // Told by Podman as any other end.
        let state = box_.inspect()?["State"].take();
        ensure!(
            state["Status"] == "exited" && state["ExitCode"] == 137,
            "{state}"
        );
        let counted = box_.engine.ground().stands_still()?;
        let mut kept = names(images.path())?;

        let restored = box_.restore(&images)?;
        ensure!(
            restored
                .stats
                .as_ref()
                .and_then(|stats| stats.pages_restored)
                > Some(0),
            "{restored:?}"
        );
        ensure!(restored.notes.is_empty(), "{:?}", restored.notes);
        box_.engine.ground().goes_on_from(&counted)?;
        let word = box_.exec(&["/bin/cat", "/dev/shm/word", "/etc/word"])?;
        ensure!(word == "kept\nchanged\n", "{word:?}");
        let listed = box_.podman(&["ps", "--quiet", "--no-trunc"])?;
        ensure!(listed.trim() == box_.id(), "{listed}");
        box_.podman(&["logs", &box_.id()])?;
        // What it had, and the restore's log.
        let log = ["restore.log", "stats-restore"].map(str::to_owned);
        before.extend(log);
        before.sort();
        ensure!(
            names(&box_.engine.bundle())? == before,
            "{before:?}, {:?}",
            names(&box_.engine.bundle())
        );
        // The images can be used again.
        let mut now = names(images.path())?;
        now.retain(|name| !name.contains(".log"));
        kept.retain(|name| !name.contains(".log"));
        ensure!(now == kept, "{kept:?} {now:?}");
        box_.stop()?;
        box_.restore(&images)?;
        let counted = box_.engine.ground().count().ok_or("no count")?;
        box_.engine.ground().goes_on_from(&counted)?;
        // Podman can do with it what it can with every other.
        box_.podman(&["pause", &box_.id()])?;
        box_.engine.ground().stands_still()?;
        box_.podman(&["unpause", &box_.id()])?;
        box_.stop()?;
        box_.podman(&["start", &box_.id()])?;
        box_.is("running")
    })
}

pub(super) fn leave_running_twice(program: Program) -> Outcome {
    with(program, |box_| {
        box_.engine.start()?;
        let before = box_.inspect()?["State"].take();
        let (first, second) = (box_.images("1")?, box_.images("2")?);
        for images in [&first, &second] {
            box_.checkpoint_with(images, CheckpointOptions::new().leave_running(true))?;
            let state = box_.inspect()?["State"].take();
            ensure!(state == before, "{before} {state}");
            let counted = box_.engine.ground().count().ok_or("no count")?;
            box_.engine.ground().goes_on_from(&counted)?;
        }
        box_.stop()?;
        let counted = box_.engine.ground().stands_still()?;
        box_.restore(&second)?;
        // As it was at the second, so a little back.
        let now = box_.engine.ground().count().ok_or("no count")?;
        box_.engine.ground().goes_on_from(&now)?;
        ensure!(now.is_of(&counted), "{counted:?} {now:?}");
        Ok(())
    })
}

/// As a user would without us: everything is copied to where Podman has its own.
pub(super) fn restored_by_itself(program: Program) -> Outcome {
    with(program, |box_| {
        box_.engine.start()?;
        box_.exec(&["/bin/sh", "-c", "echo kept >/dev/shm/word"])?;
        let images = box_.images("images")?;
        box_.checkpoint(&images)?;
        let counted = box_.engine.ground().stands_still()?;
        let bundle = box_.engine.bundle();
        copy(images.path(), &bundle.join("checkpoint"))?;
        fs::rename(
            bundle.join("checkpoint/devshm-checkpoint.tar"),
            bundle.join("devshm-checkpoint.tar"),
        )
        .map_err(text)?;
        box_.podman(&["container", "restore", &box_.id()])?;
        box_.is("running")?;
        box_.engine.ground().goes_on_from(&counted)?;
        let word = box_.exec(&["/bin/cat", "/dev/shm/word"])?;
        ensure!(word == "kept\n", "{word:?}");
        Ok(())
    })
}

pub(super) fn checkpointed_by_itself(program: Program) -> Outcome {
    with(program, |box_| {
        box_.engine.start()?;
        box_.exec(&["/bin/sh", "-c", "echo kept >/dev/shm/word"])?;
        box_.podman(&["container", "checkpoint", "--keep", &box_.id()])?;
        box_.engine.settle()?;
        let counted = box_.engine.ground().stands_still()?;
        let bundle = box_.engine.bundle();
        let own = criu_client::ImagesDir::open(bundle.join("checkpoint")).map_err(text)?;
        box_.restore(&own)?;
        box_.engine.ground().goes_on_from(&counted)?;
        let word = box_.exec(&["/bin/cat", "/dev/shm/word"])?;
        ensure!(word == "kept\n", "{word:?}");
        // It stays where it is, and a checkpoint of ours does not take its place.
        box_.stop()?;
        let elsewhere = box_.path("elsewhere");
        copy(own.path(), &elsewhere)?;
        let elsewhere = criu_client::ImagesDir::open(elsewhere).map_err(text)?;
        fs::write(bundle.join("checkpoint/mark"), "").map_err(text)?;
        fs::copy(
            bundle.join("devshm-checkpoint.tar"),
            elsewhere.path().join("devshm-checkpoint.tar"),
        )
        .map_err(text)?;
        box_.restore(&elsewhere)?;
        ensure!(
            bundle.join("checkpoint/mark").exists()
                && bundle.join("devshm-checkpoint.tar").exists(),
            "Podman's own checkpoint is gone"
        );
        let word = box_.exec(&["/bin/cat", "/dev/shm/word"])?;
        ensure!(word == "kept\n", "{word:?}");
        Ok(())
    })
}

fn copy(from: &Path, to: &Path) -> Outcome {
    fs::create_dir(to).map_err(text)?;
    for name in names(from)? {
        fs::copy(from.join(&name), to.join(&name)).map_err(text)?;
    }
    Ok(())
}

/// A shell on a terminal with two children that count, one with an open file that is deleted, files in a tmpfs.
const WORK: &str = "stty -echo; trap : WINCH; mkdir /work/sub; echo tmpfs >/work/sub/word; \
    exec 7<>/work/deleted; echo deleted >&7; rm /work/deleted; \
    (i=0; while :; do i=$((i+1)); printf '%020d' $i 1<>/data/other; sleep 0.02; done) & \
    read run </proc/sys/kernel/random/uuid; i=0; \
    while :; do i=$((i+1)); printf '%s %020d' $run $i 1<>/data/count; sleep 0.02; done";

pub(super) fn everything(program: Program) -> Outcome {
    with(program, |box_| {
        let volume = box_.engine.ground().volume();
        box_.engine.run_container(
            &[
                "--tty",
                "--network",
                "none",
                "--read-only",
                "--tmpfs",
                "/work",
                "--memory",
                "64m",
                "--pids-limit",
                "50",
                "--volume",
                &volume,
                "--volume",
                "named:/named",
            ],
            &["/bin/sh", "-c", WORK],
        )?;
        box_.engine.ground().counts()?;
        box_.exec(&["/bin/sh", "-c", "echo volume >/named/word"])?;
        // Not within the container, which shows the restorer's control groups after runc's own restore.
        let limits = |box_: &Box_| box_.engine.ground().traces().limits();
        let before = limits(box_);
        let has = |kind: &str, limit: &str| {
            let mut all = before.iter();
            all.any(|one| one.starts_with(kind) && one.ends_with(limit))
        };
        ensure!(
            has("memory.", " 67108864") && has("pids.max", " 50"),
            "{before:?}"
        );
        let images = box_.images("images")?;
        box_.checkpoint(&images)?;
        let counted = box_.engine.ground().stands_still()?;
        box_.restore(&images)?;
        box_.engine.ground().goes_on_from(&counted)?;
        let other = || fs::read_to_string(box_.path("data/other")).unwrap_or_default();
        let first = other();
        until("the other counts as well", || other() > first)?;
        let words = box_.exec(&[
            "/bin/sh",
            "-c",
            "cat /work/sub/word /named/word /proc/1/fd/7; test -c /proc/1/fd/0; echo x >/etc/x",
        ]);
        // The root is still read-only.
        let refusal = words
            .err()
            .ok_or("the root file system can be written to")?;
        ensure!(refusal.contains("Read-only file system"), "{refusal}");
        let words = box_.exec(&[
            "/bin/sh",
            "-c",
            "cat /work/sub/word /named/word /proc/1/fd/7; test -c /proc/1/fd/0 && readlink /proc/1/fd/0",
        ])?;
        ensure!(
            words.starts_with("tmpfs\nvolume\ndeleted\n") && words.contains("/dev/pts/"),
            "{words:?}"
        );
        let after = limits(box_);
        ensure!(after == before, "{before:?} {after:?}");
        Ok(())
    })
}

pub(super) fn paused(program: Program) -> Outcome {
    with(program, |box_| {
        box_.engine.start()?;
        let images = box_.images("images")?;
        box_.podman(&["pause", &box_.id()])?;
        let counted = box_.engine.ground().stands_still()?;
        box_.checkpoint_with(&images, CheckpointOptions::new().leave_running(true))?;
        box_.is("paused")?;
        ensure!(
            box_.engine.ground().stands_still()? == counted,
            "it went on"
        );
        box_.checkpoint(&images)?;
        box_.is("exited")?;
        // It runs then, as after Podman's own.
        box_.restore(&images)?;
        box_.engine.ground().goes_on_from(&counted)
    })
}
