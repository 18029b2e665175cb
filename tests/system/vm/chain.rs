//! Pre-dumps and a dump, each on top of the one before, and a restore from all of them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use criu_client::ImagesDir;
use criu_client::options::{DumpOptions, PreDumpMode, PreDumpOptions, RestoreOptions};
use serde_json::Value;

use crate::contain;
use crate::engines::Ground;
use crate::interposed::CRIUCTL;
use crate::roles::{ROUNDS_PAGES, begin_round, pages_of_round};
use crate::support::*;

pub(crate) fn tests() -> Tests {
    let list: &[Test] = &[
        ("library", || by_library(None)),
        ("library/read", || by_library(Some(PreDumpMode::VmRead))),
        ("library/without-parent", without_parent),
        ("criuctl", by_criuctl),
    ];
    named("vm/pre-dump-chain/", list)
}

/// What the program has besides the memory of its rounds, and writes to, at the most. A huge page counts as written whole.
const OTHER_PAGES: usize = 1400;

/// How many pages each link of a chain has written. All of the first; of the others what was written since.
#[derive(Default)]
pub(crate) struct Links(Vec<u64>);

impl Links {
    pub(crate) fn add(&mut self, written: u64) -> Outcome {
        let round = self.0.len();
        let least = pages_of_round(round) as u64;
        let most = least + OTHER_PAGES as u64;
        ensure!(
            least <= written && (round == 0 || written <= most),
            "round {round} has written {written} pages instead of {least} to {most}"
        );
        if let Some(before) = self.0.last() {
            ensure!(
                written < *before,
                "{written} pages were written after {before}"
            );
        }
        self.0.push(written);
        Ok(())
    }
}

fn next_round(victim: &Victim, round: usize) -> Outcome {
    begin_round(&victim.count_file(), round)?;
    victim.goes_on()
}

/// Three directories, the second and third of which have the one before as their parent.
fn three(victim: &Victim) -> [ImagesDir; 3] {
    ["first", "second", "third"].map(|name| victim.images(name))
}

fn by_library(mode: Option<PreDumpMode>) -> Outcome {
    let mut victim = Spec::role("rounds").start()?;
    let images = three(&victim);
    let traces = Traces::take();
    let mut links = Links::default();
    for (round, directory) in images.iter().take(2).enumerate() {
        next_round(&victim, round)?;
        let mut options = PreDumpOptions::new();
        if let Some(mode) = mode {
            options = options.mode(mode);
        }
        if round > 0 {
            options = options.parent_images("../first");
        }
        let report = block_on(criu().pre_dump(victim.pid, directory, options)).map_err(whole)?;
        let stats = report.stats.ok_or("no statistics of the pre-dump")?;
        links.add(stats.pages_written)?;
        victim.goes_on()?;
    }
    next_round(&victim, 2)?;
    let options = DumpOptions::new()
        .track_mem(true)
        .parent_images("../second");
    let report = block_on(criu().dump(victim.pid, &images[2], (), options)).map_err(whole)?;
    let stats = report.stats.ok_or("no statistics of the dump")?;
    links.add(stats.pages_written)?;
    ensure!(
        stats.pages_skipped_parent as usize > ROUNDS_PAGES / 2,
        "{stats:?}"
    );
    victim.reap()?;
    let count = victim.count();
    let report = block_on(criu().restore(&images[2], (), RestoreOptions::new())).map_err(whole)?;
    ensure!(report.pid == victim.pid, "{report:?}");
    victim.goes_on()?;
    ensure!(victim.count() > count, "it began anew");
    victim.end();
    drop(images);
    traces.unchanged()
}

/// The parent is really needed: without its images the last ones alone do not restore.
fn without_parent() -> Outcome {
    let mut victim = Spec::role("rounds").start()?;
    let [first, second, _] = three(&victim);
    let traces = Traces::take();
    block_on(criu().pre_dump(victim.pid, &first, PreDumpOptions::new())).map_err(whole)?;
    victim.killed_into(
        &second,
        DumpOptions::new().track_mem(true).parent_images("../first"),
    )?;
    let away = first.path().with_file_name("away");
    fs::rename(first.path(), &away).map_err(text)?;
    match block_on(criu().restore(&second, (), RestoreOptions::new())) {
        Ok(report) => return Err(format!("restored without the parent: {report:?}")),
        Err(error) => ensure!(error.tasks() == criu_client::TaskState::Absent, "{error:?}"),
    }
    orphans_are_gone(&[victim.pid])?;
    fs::rename(&away, first.path()).map_err(text)?;
    block_on(criu().restore(&second, (), RestoreOptions::new())).map_err(whole)?;
    victim.goes_on()?;
    victim.end();
    drop((first, second));
    traces.unchanged()
}

/// Runs criuctl, which must succeed, and returns the document that it prints.
pub(crate) fn criuctl(arguments: &[&str]) -> Result<Value, String> {
    let output = Command::new(CRIUCTL)
        .args(["--format", "json"])
        .args(arguments)
        .output()
        .map_err(text)?;
    ensure!(
        output.status.success(),
        "criuctl {arguments:?}: {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).map_err(text)
}

/// The pages that a document says were written.
pub(crate) fn written(document: &Value) -> Result<u64, String> {
    fn find(value: &Value) -> Option<u64> {
        match value {
            Value::Object(map) => map
                .get("pagesWritten")
                .and_then(Value::as_u64)
                .or_else(|| map.values().find_map(find)),
            _ => None,
        }
    }
    find(document).ok_or_else(|| format!("no pages written in {document}"))
}

fn by_criuctl() -> Outcome {
    let mut victim = Spec::role("rounds").start()?;
    let traces = Traces::take();
    let target = format!("pid:{}", victim.pid);
    let directories = ["first", "second", "third"]
        .map(|name| victim.directory.path().join(name).display().to_string());
    let mut links = Links::default();
    for (round, directory) in directories.iter().enumerate() {
        next_round(&victim, round)?;
        let mut arguments = vec!["checkpoint", &target, "--image-path", directory];
        arguments.extend(["--parent-path", "../first"].iter().filter(|_| round == 1));
        arguments.extend(
            ["--parent-path", "../second", "--track-mem"]
                .iter()
                .filter(|_| round == 2),
        );
        arguments.extend(["--pre-dump"].iter().filter(|_| round < 2));
        links.add(written(&criuctl(&arguments)?)?)?;
    }
    victim.reap()?;
    let count = victim.count();
    criuctl(&["restore", "--image-path", &directories[2], "--detach"])?;
    victim.goes_on()?;
    ensure!(victim.count() > count, "it began anew");
    victim.end();
    reap_orphans();
    traces.unchanged()
}

/// The program whose memory changes from round to round, in a container of an engine that mounts it there.
pub(crate) struct Rounds(PathBuf);

impl Rounds {
    /// With the options that mount all it needs.
    pub(crate) fn in_container(ground: &Ground) -> Result<(Self, Vec<String>), String> {
        let root = ground.path("program");
        contain::fill_root(&root)?;
        let mut options = Vec::new();
        for name in [contain::PROGRAM, "usr", "lib", "lib64"] {
            let here = std::fs::canonicalize(root.join(name)).map_err(text)?;
            options.push("--volume".to_owned());
            options.push(format!("{}:/{name}", here.display()));
        }
        Ok((Self(ground.path("data/count")), options))
    }

    pub(crate) fn command() -> [String; 5] {
        let program = format!("/{}", contain::PROGRAM);
        [&program, "--victim", "/data/count", "rounds", ""].map(str::to_owned)
    }

    pub(crate) fn begin(&self, round: usize) -> Outcome {
        begin_round(&self.0, round)?;
        self.is_well()
    }

    /// Goes on with all its memory as it was.
    pub(crate) fn is_well(&self) -> Outcome {
        let count = || std::fs::read_to_string(&self.0).unwrap_or_default();
        for _ in 0..2 {
            let before = count();
            until("it goes on", || count() != before)?;
        }
        let complaint = std::fs::read_to_string(self.0.with_extension("complaint"));
        ensure!(complaint.is_err(), "{complaint:?}");
        Ok(())
    }
}
