//! Images of a container under one runtime that become a container under the same or the other, whoever makes and takes
//! them: our own requests, or the runtime itself.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use criu_client::ImagesDir;
use criu_client::container::crun::CrunEngine;
use criu_client::container::plan::Consumer;
use criu_client::container::runc::RuncEngine;
use criu_client::container::runtime::CheckpointOptions;
use serde_json::json;

use super::fixture::{COUNT, Fixture, Program, groups, whole};
use crate::support::{Outcome, Tests, block_on, criu, ensure, text, until};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Us,
    Itself,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Us => "ours",
            Self::Itself => "its own",
        })
    }
}

pub(super) fn tests() -> Tests {
    let mut tests = of::<RuncEngine, RuncEngine>(Consumer::Any);
    tests.extend(of::<CrunEngine, CrunEngine>(Consumer::Crun));
    // The masks of runc's containers need no name.
    tests.extend(of::<RuncEngine, CrunEngine>(Consumer::Any));
    tests.extend(of::<CrunEngine, RuncEngine>(Consumer::Runc));
    tests.push((
        "interchange: crun's names are said to be unknown to runc, and are".into(),
        Box::new(names_of_crun),
    ));
    tests
}

fn of<A: Program, B: Program>(consumer: Consumer) -> Tests {
    let mut tests = Tests::new();
    for from in [By::Us, By::Itself] {
        for to in [By::Us, By::Itself] {
            // Their own images are not for one another.
            if from == By::Itself && to == By::Itself && A::NAME != B::NAME {
                continue;
            }
            let name = format!(
                "interchange: {} ({from} checkpoint) to {} ({to} restore)",
                A::NAME,
                B::NAME
            );
            let test = move || carried::<A, B>(from, to, consumer);
            tests.push((name, Box::new(test)));
        }
    }
    tests
}

/// How many of its tasks do not come and go.
const TASKS: usize = 3;

/// A container with masked paths, a bind mount, a read-only root and several processes.
fn box_with_everything<E: Program>() -> Result<Fixture<E>, String> {
    let box_ = Fixture::<E>::with("carried", |config| {
        let script = format!("(while :; do sleep 1; done) & (while :; do sleep 2; done) & {COUNT}");
        config["process"]["args"] = json!(["/bin/sh", "-c", script]);
        config["root"]["readonly"] = json!(true);
    })?;
    let (data, count) = (
        box_.directory.path().join("data"),
        box_.directory.path().join("count"),
    );
    fs::create_dir(&data).map_err(text)?;
    // CRIU wants it in a root that cannot be written to.
    fs::create_dir(box_.rootfs().join("tmp")).map_err(text)?;
    fs::write(data.join("file"), "from outside").map_err(text)?;
    fs::write(&count, "").map_err(text)?;
    box_.configure(|config| {
        let mounts = config["mounts"].as_array_mut().expect("mounts");
        mounts.push(json!({"destination": "/data", "type": "bind", "source": data, "options": ["rbind", "ro"]}));
        mounts.push(json!({"destination": "/count", "type": "bind", "source": count, "options": ["bind", "rw"]}));
    })?;
    Ok(box_)
}

fn carried<A: Program, B: Program>(from: By, to: By, consumer: Consumer) -> Outcome {
    // Both, so that the control groups are the same before and after.
    let (_first, _second) = (A::needs()?, B::needs()?);
    let mut before = box_with_everything::<A>()?;
    before.start()?;
    is_whole(&before)?;
    until("there are all tasks", || tasks(&before) == TASKS)?;
    let images = before.images("images");
    checkpoint(&mut before, &images, from, consumer)?;
    let counted = before.count();

    let mut after = Fixture::<B>::beside(&before)?;
    restore(&mut after, &images, to)?;
    ensure!(
        after.count() > counted,
        "the count began anew: {counted:?}, {:?}",
        after.count()
    );
    is_whole(&after)?;
    until("all tasks are there again", || tasks(&after) == TASKS)?;
    // It is a container like any other of the runtime.
    after.pause()?;
    after.run(&["resume", &after.id])?;
    after.counts()?;
    after.delete()
}

fn checkpoint<E: Program>(
    box_: &mut Fixture<E>,
    images: &ImagesDir,
    by: By,
    consumer: Consumer,
) -> Outcome {
    match by {
        By::Us => {
            let options = CheckpointOptions::new().consumer(consumer);
            let report = block_on(
                box_.ours()
                    .checkpoint(&criu(), &box_.id, images, (), options),
            )
            .map_err(whole)?;
            ensure!(report.plan.notes.is_empty(), "{:?}", report.plan.notes);
            ensure!(report.left_behind.is_empty(), "{:?}", report.left_behind);
        }
        By::Itself => {
            let path = images.path().display().to_string();
            box_.run(&["checkpoint", "--image-path", &path, &box_.id])?;
        }
    }
    box_.reap();
    box_.is_gone()
}

fn restore<E: Program>(box_: &mut Fixture<E>, images: &ImagesDir, by: By) -> Outcome {
    match by {
        By::Us => box_.restore(images),
        By::Itself => {
            let (path, bundle) = (images.path().display().to_string(), box_.bundle());
            let (bundle, id) = (bundle.display().to_string(), box_.id.clone());
            box_.run_detached(
                &[
                    "restore",
                    "-d",
                    "--bundle",
                    &bundle,
                    "--image-path",
                    &path,
                    &id,
                ],
                Stdio::null(),
            )?;
            box_.has_status("running")?;
            box_.counts()
        }
    }
}

/// The bind mount is there, masks mask, and the root is read-only.
fn is_whole<E: Program>(box_: &Fixture<E>) -> Outcome {
    let cat = |path: &str| box_.run(&["exec", &box_.id, "/bin/cat", path]);
    ensure!(cat("/data/file")? == "from outside", "the bind mount");
    for masked in ["/proc/keys", "/proc/timer_list"] {
        let read = cat(masked)?;
        ensure!(read.is_empty(), "{masked} is not masked: {read}");
    }
    let wrote = box_.try_run(&["exec", &box_.id, "/bin/sh", "-c", "echo x > /bin/x"])?;
    ensure!(!wrote.status.success(), "the root can be written to");
    Ok(())
}

/// How many tasks it has, but for those that come and go.
fn tasks<E: Program>(box_: &Fixture<E>) -> usize {
    let of = |group: PathBuf| {
        let tasks = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        let commands = tasks.lines().filter_map(|pid| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
            line.starts_with("/bin/sh\0").then_some(())
        });
        commands.count()
    };
    groups(&box_.id).into_iter().map(of).max().unwrap_or(0)
}

fn names_of_crun() -> Outcome {
    let mut before = box_with_everything::<CrunEngine>()?;
    before.start()?;
    let images = before.images("images");
    let report = block_on(before.ours().checkpoint(
        &criu(),
        &before.id,
        &images,
        (),
        CheckpointOptions::new(),
    ))
    .map_err(whole)?;
    before.reap();
    let [note] = &report.plan.notes[..] else {
        return Err(format!("{:?}", report.plan.notes));
    };
    ensure!(
        note.contains("/proc/keys") && note.contains("--for runc"),
        "{note}"
    );
    let counted = before.count();
    let mut after = Fixture::<RuncEngine>::beside(&before)?;
    ensure!(
        restore(&mut after, &images, By::Itself).is_err(),
        "runc took what it was said not to"
    );
    restore(&mut after, &images, By::Us)?;
    ensure!(after.count() > counted, "the count began anew");
    is_whole(&after)?;
    after.delete()
}
