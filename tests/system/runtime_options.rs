//! Whoever knows `runc checkpoint`, `runc restore` and those of crun finds everything: each option that they list is taken by
//! criuctl under the same name.

use std::collections::BTreeSet;
use std::process::Command;

use crate::dry_run::{criuctl, words};
use crate::support::*;

/// What each option is given with; nothing but itself where it is not here.
const WITH: &[(&str, &[&str])] = &[
    ("--bundle", &["--bundle=/tmp"]),
    ("--console-socket", &["--console-socket=/tmp/none"]),
    ("--empty-ns", &["--empty-ns=network"]),
    ("--image-path", &[]),
    (
        "--lazy-pages",
        &["--lazy-pages", "--page-server=127.0.0.1:9"],
    ),
    ("--lsm-mount-context", &["--lsm-mount-context=context"]),
    ("--lsm-profile", &["--lsm-profile=apparmor:name"]),
    ("--manage-cgroups-mode", &["--manage-cgroups-mode=full"]),
    ("--network-lock", &["--network-lock", "nftables"]),
    ("--page-server", &["--page-server=127.0.0.1:9"]),
    ("--parent-path", &["--parent-path=../parent"]),
    ("--pid-file", &["--pid-file=/tmp/none"]),
    (
        "--status-fd",
        &["--status-fd=1", "--lazy-pages", "--page-server=127.0.0.1:9"],
    ),
    ("--work-path", &["--work-path=/tmp"]),
];

/// Those of the programs themselves.
const OWN: &[&str] = &["--help", "--usage"];

pub(crate) fn tests() -> Tests {
    let list: &[Test] = &[
        ("runc", || every_option("runc")),
        ("crun", || every_option("crun")),
    ];
    named("runtime-options/", list)
}

/// The long options that a help lists: at the beginning of a line, or behind a short form.
fn listed(help: &str) -> BTreeSet<String> {
    let option = |line: &str| {
        let line = line.trim_start();
        let end = |c: char| !c.is_ascii_lowercase() && c != '-';
        let definition = match line.strip_prefix("--") {
            Some(name) => name,
            None => line.strip_prefix('-')?.get(1..)?.strip_prefix(", --")?,
        };
        let name = definition.split(end).next().unwrap_or(definition);
        Some(format!("--{name}"))
    };
    help.lines().filter_map(option).collect()
}

fn every_option(runtime: &str) -> Outcome {
    let mut all = BTreeSet::new();
    for verb in ["checkpoint", "restore"] {
        let output = Command::new(runtime).args([verb, "--help"]).output();
        let help = output.map_err(|error| format!("{runtime}: {error}; run scripts/install"))?;
        let listed = listed(&String::from_utf8_lossy(&help.stdout));
        ensure!(listed.len() > 10, "{runtime} {verb}: {listed:?}");
        for option in &listed {
            if !OWN.contains(&option.as_str()) {
                takes(runtime, verb, option)?;
            }
        }
        all.extend(listed);
    }
    ensure!(
        all.contains("--network-lock") == (runtime == "crun"),
        "{all:?}"
    );
    Ok(())
}

/// It is in the help, and what criuctl complains of is that there is no such container.
fn takes(runtime: &str, verb: &str, option: &str) -> Outcome {
    let output = Command::new(crate::interposed::CRIUCTL)
        .args([verb, "--help"])
        .output()
        .map_err(text)?;
    let help = String::from_utf8_lossy(&output.stdout);
    let mut known = help.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    ensure!(
        known.any(|word| word == option),
        "criuctl {verb} does not list {option} of {runtime}"
    );

    let directory = tempfile::tempdir().map_err(text)?;
    let parent = directory.path().join("parent");
    std::fs::create_dir(&parent).map_err(text)?;
    // As much as is looked at before the container.
    std::fs::write(parent.join("inventory.img"), "").map_err(text)?;
    let images = format!("--image-path={}", directory.path().join("images").display());
    let target = format!("{runtime}:criuctl-test-nobody");
    let mut arguments = words(&[verb, &target, &images]);
    match WITH.iter().find(|(with, _)| *with == option) {
        // The pages of a restore come from a daemon.
        _ if (verb, option) == ("restore", "--lazy-pages") => arguments.push(option.to_owned()),
        Some((_, with)) => arguments.extend(words(with)),
        None => arguments.push(option.to_owned()),
    }
    let (_, document) = criuctl(&arguments)?;
    let said = document.to_string();
    let wanted = match verb {
        "checkpoint" => "there is no such container",
        _ => "is no images directory",
    };
    ensure!(said.contains(wanted), "{arguments:?}: {said}");
    Ok(())
}
