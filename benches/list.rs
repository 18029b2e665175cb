//! How long a list of many containers takes: `criuctl list` beside `runc list` of the same, in turn. Root, runc and a static
//! busybox.
#![allow(clippy::print_stdout)]

mod runc;
mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use runc::{Bundle, Result, search_path};
use serde_json::Value;
use support::{Series, print};

const CONTAINERS: usize = 500;
const ROUNDS: usize = 21;

fn main() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let bundle = Bundle::make(directory.path())?;
    for number in 0..CONTAINERS {
        bundle.start(&format!("criuctl-bench-{}-{number}", std::process::id()))?;
    }
    let ours = || -> Result<Duration> {
        let began = Instant::now();
        let output = Command::new(env!("CARGO_BIN_EXE_criuctl"))
            .args(["--format", "json", "list", "--runc-root"])
            .arg(bundle.root())
            .output()?;
        let took = began.elapsed();
        let listed: Value = serde_json::from_slice(&output.stdout)?;
        let listed = listed["containers"].as_array().ok_or("no list")?;
        let can = listed.iter().filter(|one| {
            one["checkpointable"] == true && one["id"].to_string().contains("criuctl-bench")
        });
        match can.count() {
            CONTAINERS => Ok(took),
            other => Err(format!("{other} of {CONTAINERS} containers are listed").into()),
        }
    };
    let theirs = || -> Result<Duration> {
        let began = Instant::now();
        let status = Command::new("runc")
            .arg("--root")
            .arg(bundle.root())
            .args(["list", "--format", "json"])
            .env("PATH", search_path())
            .stdout(Stdio::null())
            .status()?;
        match status.success() {
            true => Ok(began.elapsed()),
            false => Err(format!("runc list: {status}").into()),
        }
    };
    let mut series = [Series::default(), Series::default()];
    for round in 0..ROUNDS {
        // Neither is always the first.
        for index in [round % 2, 1 - round % 2] {
            series[index].push(match index {
                0 => theirs()?,
                _ => ours()?,
            });
        }
    }
    print(
        &format!("a list of {CONTAINERS} containers that run"),
        (1e3, "ms"),
        &[("runc list", &series[0]), ("criuctl list", &series[1])],
    );
    let more = series[1].less(&series[0]);
    print(
        "more than runc list, round by round",
        (1e3, "ms"),
        &[("criuctl list", &more)],
    );
    Ok(())
}
