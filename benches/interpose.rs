//! What listening in adds, to one CRIU that is started and asked for its version, and to an engine's own checkpoint: `criu swrk`
//! and `runc checkpoint` without a listener, with one and with one that records, in turn. Root, runc and a static busybox.
//!
//! `STATIC_LISTENER` may name a `criu-listener` that is linked statically, which is then measured beside the one of the build.
#![allow(clippy::print_stdout)]

mod runc;
mod support;

use std::ffi::OsString;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use criu_client::Criu;
use runc::{Bundle, Result, search_path};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use support::{Series, print};

const STARTS: usize = 200;
const CHECKPOINTS: usize = 60;

/// A listener ends after its CRIU has.
const SETTLED: Duration = Duration::from_millis(4);

/// Taking down the namespaces of the checkpoint before must not be waited for in the next.
const PAUSE: Duration = Duration::from_millis(80);

fn main() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let criuctl = Path::new(env!("CARGO_BIN_EXE_criuctl"));
    let recordings = format!("--record={}", directory.path().join("recordings").display());
    let criu = Criu::find_in(&search_path())?;
    let mut variants = vec![Variant {
        name: "without a listener",
        criu: criu.program().ok_or("criu has no path")?.to_owned(),
        path: search_path(),
    }];
    let mut add = |name, criuctl: &Path, options: &[&str]| -> Result<()> {
        let stage = directory.path().join(format!("stage-{}", variants.len()));
        variants.push(Variant::install(name, criuctl, &stage, options)?);
        Ok(())
    };
    add("with a listener", criuctl, &[])?;
    add("with a listener that records", criuctl, &[&recordings])?;
    if let Some(program) = std::env::var_os("STATIC_LISTENER") {
        let beside = directory.path().join("static");
        fs::create_dir(&beside)?;
        fs::copy(criuctl, beside.join("criuctl"))?;
        fs::copy(program, beside.join("criu-listener"))?;
        add("with a static listener", &beside.join("criuctl"), &[])?;
    }
    compare(
        "start of `criu swrk` until it has told its version",
        &variants,
        STARTS,
        |variant| start(&variant.criu),
    )?;
    let bundle = Bundle::make(directory.path())?;
    let id = format!("criuctl-bench-{}", std::process::id());
    bundle.start(&id)?;
    let images = directory.path().join("images");
    compare(
        "`runc checkpoint` of a container that runs on",
        &variants,
        CHECKPOINTS,
        |variant| {
            std::thread::sleep(PAUSE);
            let took = checkpoint(&bundle, &id, &images, &variant.path)?;
            fs::remove_dir_all(&images)?;
            Ok(took)
        },
    )
}

/// How CRIU is found.
struct Variant {
    name: &'static str,
    criu: PathBuf,
    path: OsString,
}

impl Variant {
    fn install(name: &'static str, criuctl: &Path, stage: &Path, options: &[&str]) -> Result<Self> {
        let status = Command::new(criuctl)
            .args(["interpose", "install"])
            .arg(stage)
            .args(options)
            .stdout(Stdio::null())
            .status()?;
        if !status.success() {
            return Err(format!("criuctl interpose install: {status}").into());
        }
        let mut path = stage.as_os_str().to_owned();
        path.push(":");
        path.push(search_path());
        Ok(Self {
            name,
            criu: stage.join("criu"),
            path,
        })
    }
}

/// Takes the time of every variant, in turn and in changing order, and prints it.
fn compare(
    title: &str,
    variants: &[Variant],
    rounds: usize,
    mut take: impl FnMut(&Variant) -> Result<Duration>,
) -> Result<()> {
    let mut series = vec![Series::default(); variants.len()];
    for round in 0..rounds + 2 {
        for turn in 0..variants.len() {
            // Nobody is always the first of a round.
            let index = (round + turn) % variants.len();
            let took = take(&variants[index])?;
            if round >= 2 {
                series[index].push(took);
            }
        }
    }
    let rows: Vec<(&str, &Series)> = variants
        .iter()
        .zip(&series)
        .map(|(variant, series)| (variant.name, series))
        .collect();
    print(title, (1e3, "ms"), &rows);
    let added: Vec<Series> = series.iter().map(|one| one.less(&series[0])).collect();
    let rows: Vec<(&str, &Series)> = rows
        .iter()
        .zip(&added)
        .skip(1)
        .map(|((name, _), added)| (*name, added))
        .collect();
    print("more than without, round by round", (1e3, "ms"), &rows);
    Ok(())
}

/// Starts CRIU as an engine does, and asks for its version.
fn start(criu: &Path) -> Result<Duration> {
    // No descriptor of ours is inherited but this one.
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    fcntl_setfd(&theirs, FdFlags::empty())?;
    let began = Instant::now();
    let mut child = Command::new(criu)
        .arg("swrk")
        .arg(theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    drop(theirs);
    send(&ours, b"\x08\x0a", SendFlags::NOSIGNAL)?;
    let mut answer = [0; 4096];
    let (length, _) = recv(&ours, &mut answer, RecvFlags::empty())?;
    let took = began.elapsed();
    let status = child.wait()?;
    if !answer[..length].starts_with(b"\x08\x0a\x10\x01") {
        return Err(format!("{}: {status}, no version", criu.display()).into());
    }
    std::thread::sleep(SETTLED);
    Ok(took)
}

/// A checkpoint of the container `id`, which runs on.
fn checkpoint(bundle: &Bundle<'_>, id: &str, images: &Path, path: &OsString) -> Result<Duration> {
    let began = Instant::now();
    bundle.runc(path, |command| {
        command
            .args(["checkpoint", "--leave-running", "--image-path"])
            .arg(images)
            .arg(id)
    })?;
    Ok(began.elapsed())
}
