//! What needs a kernel that tracks memory, other users, or Podman as it is on an ordinary host: for a machine of
//! `scripts/vm --host`.

use std::fs;

use criu_client::ImagesDir;
use criu_client::container::podman::CheckpointOptions;
use criu_client::image::DumpStats;
use criu_client::options::PreDumpOptions;

use super::fixture::{Box_, whole, with};
use crate::engines::{COUNTER, Engine, Program};
use crate::support::{Outcome, Tests, block_on, criu, ensure, text};
use crate::vm::chain::{Links, Rounds};

pub(super) fn tests() -> Tests {
    type Test = (&'static str, fn(Program) -> Outcome);
    let tests: [Test; 2] = [
        ("two pre-dumps and a checkpoint", chain),
        ("another user", other_user),
    ];
    let mut all: Tests = Vec::new();
    for program in [Program::Runc, Program::Crun] {
        for (name, test) in tests {
            let name = format!("host/podman+{}: {name}", program.name());
            all.push((name, Box::new(move || test(program))));
        }
    }
    // Podman itself has it for runc alone.
    let own = || own_chain(Program::Runc);
    all.push(("host/podman+runc: its own chain".into(), Box::new(own)));
    all
}

fn start(box_: &mut Box_) -> Result<Rounds, String> {
    let (rounds, options) = Rounds::in_container(box_.engine.ground())?;
    let volume = box_.engine.ground().volume();
    let mut all = vec!["--network", "none", "--volume", &volume];
    all.extend(options.iter().map(String::as_str));
    let command = Rounds::command();
    let command: Vec<_> = command.iter().map(String::as_str).collect();
    box_.engine.run_container(&all, &command)?;
    Ok(rounds)
}

fn chain(program: Program) -> Outcome {
    with(program, |box_| {
        let rounds = start(box_)?;
        let mut links = Links::default();
        let [first, second, third] = ["first", "second", "third"].map(|name| box_.images(name));
        for (round, (images, parent)) in [(&first?, None), (&second?, Some("../first"))]
            .into_iter()
            .enumerate()
        {
            rounds.begin(round)?;
            let mut options = PreDumpOptions::new();
            if let Some(parent) = parent {
                options = options.parent_images(parent);
            }
            let (ours, criu, id) = (box_.ours(), criu(), box_.id());
            let pre_dump = ours.pre_dump(&criu, &id, images, options);
            let report = block_on(pre_dump).map_err(whole)?;
            links.add(report.stats.ok_or("no statistics")?.pages_written)?;
            box_.is("running")?;
        }
        rounds.begin(2)?;
        let third = third?;
        let options = CheckpointOptions::new().parent_path("../second");
        let (ours, criu, id) = (box_.ours(), criu(), box_.id());
        let checkpoint = ours.checkpoint(&criu, &id, &third, (), options);
        let report = block_on(checkpoint).map_err(whole)?;
        links.add(report.dump.stats.ok_or("no statistics")?.pages_written)?;
        box_.restore(&third)?;
        rounds.is_well()
    })
}

/// Podman's own pre-checkpoint and checkpoint, restored by us.
fn own_chain(program: Program) -> Outcome {
    with(program, |box_| {
        let rounds = start(box_)?;
        let mut links = Links::default();
        let bundle = box_.engine.bundle();
        let id = box_.id();
        for (round, options) in [
            (0, &["--pre-checkpoint"][..]),
            (1, &["--with-previous", "--keep"]),
        ] {
            rounds.begin(round)?;
            let checkpoint = [&["container", "checkpoint"], options, &[&id]].concat();
            box_.podman(&checkpoint)?;
            let stats = fs::read(bundle.join("stats-dump")).map_err(text)?;
            let stats = DumpStats::parse("stats-dump", &stats).map_err(text)?;
            links.add(stats.pages_written)?;
        }
        box_.engine.settle()?;
        let own = ImagesDir::open(bundle.join("checkpoint")).map_err(text)?;
        box_.restore(&own)?;
        rounds.is_well()
    })
}

fn other_user(program: Program) -> Outcome {
    with(program, |box_| {
        let volume = box_.engine.ground().volume();
        let options = [
            "--network",
            "none",
            "--user",
            "1000:1000",
            "--volume",
            &volume,
        ];
        box_.engine.run_container(&options, &COUNTER)?;
        box_.engine.ground().counts()?;
        let is_the_user = || -> Outcome {
            let pid = box_.inspect()?["State"]["Pid"].take();
            let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(text)?;
            ensure!(
                status.contains("\nUid:\t1000\t1000\t1000\t1000\n"),
                "{status}"
            );
            Ok(())
        };
        is_the_user()?;
        let images = box_.images("images")?;
        box_.checkpoint(&images)?;
        let counted = box_.engine.ground().stands_still()?;
        box_.restore(&images)?;
        box_.engine.ground().goes_on_from(&counted)?;
        is_the_user()
    })
}
