//! What listening in adds to an engine's own checkpoint: `runc checkpoint` with and without criuctl first on its PATH, in
//! turn. Root, runc and a static busybox.
#![allow(clippy::print_stdout)]

mod support;

use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Series, print};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const ROUNDS: usize = 60;

/// Taking down the namespaces of the checkpoint before must not be waited for in the next.
const PAUSE: Duration = Duration::from_millis(80);

fn main() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let container = Container::start(directory.path())?;
    let criuctl = Path::new(env!("CARGO_BIN_EXE_criuctl"));
    let install = |name: &str, options: &[&str]| -> Result<OsString> {
        let stage = directory.path().join(name);
        let status = Command::new(criuctl)
            .args(["interpose", "install"])
            .arg(&stage)
            .args(options)
            .stdout(Stdio::null())
            .status()?;
        if !status.success() {
            return Err(format!("criuctl interpose install: {status}").into());
        }
        let mut path = stage.into_os_string();
        path.push(":");
        path.push(search_path());
        Ok(path)
    };
    let recordings = format!("--record={}", directory.path().join("recordings").display());
    let variants = [
        ("runc checkpoint", search_path()),
        ("with a listener", install("silent", &[])?),
        (
            "with a listener that records",
            install("recording", &[&recordings])?,
        ),
    ];
    let mut series = [Series::default(), Series::default(), Series::default()];
    for round in 0..ROUNDS + 2 {
        for turn in 0..variants.len() {
            // Nobody is always the first of a round.
            let index = (round + turn) % variants.len();
            let images = directory.path().join("images");
            std::thread::sleep(PAUSE);
            let took = container.checkpoint(&images, &variants[index].1)?;
            fs::remove_dir_all(&images)?;
            if round >= 2 {
                series[index].push(took);
            }
        }
    }
    let rows: Vec<(&str, &Series)> = variants
        .iter()
        .zip(&series)
        .map(|((name, _), series)| (*name, series))
        .collect();
    print(
        "checkpoint of a runc container that runs on",
        (1e3, "ms"),
        &rows,
    );
    let added = [series[1].less(&series[0]), series[2].less(&series[0])];
    print(
        "more than without, round by round",
        (1e3, "ms"),
        &[
            ("with a listener", &added[0]),
            ("with a listener that records", &added[1]),
        ],
    );
    Ok(())
}

fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin");
    path
}

/// A container that sleeps, over and over: busybox takes a sleep that CRIU has interrupted for one that is over.
const LOOP: [&str; 3] = ["/bin/sh", "-c", "while :; do sleep 1; done"];

struct Container<'a> {
    directory: &'a Path,
    id: String,
}

impl<'a> Container<'a> {
    fn start(directory: &'a Path) -> Result<Self> {
        let bin = directory.join("bundle/rootfs/bin");
        fs::create_dir_all(&bin)?;
        fs::copy("/bin/busybox", bin.join("busybox"))?;
        for applet in ["sh", "sleep"] {
            symlink("busybox", bin.join(applet))?;
        }
        let container = Self {
            directory,
            id: format!("criuctl-bench-{}", std::process::id()),
        };
        let bundle = directory.join("bundle");
        container.runc(&search_path(), |command| {
            command.arg("spec").arg("--bundle").arg(&bundle)
        })?;
        let path = bundle.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(LOOP);
        fs::write(&path, serde_json::to_vec(&config)?)?;
        container.runc(&search_path(), |command| {
            command
                .args(["run", "-d", "--bundle"])
                .arg(&bundle)
                .arg(&container.id)
        })?;
        Ok(container)
    }

    fn checkpoint(&self, images: &Path, path: &OsString) -> Result<Duration> {
        let began = Instant::now();
        self.runc(path, |command| {
            command
                .args(["checkpoint", "--leave-running", "--image-path"])
                .arg(images)
                .arg(&self.id)
        })?;
        Ok(began.elapsed())
    }

    fn runc(
        &self,
        path: &OsString,
        arguments: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Result<()> {
        // Its output must be no file of ours: the container has it too, and could not be dumped.
        let complaints = self.directory.join("complaints");
        let mut command = Command::new("runc");
        command
            .arg("--root")
            .arg(self.directory.join("root"))
            .arg("--log")
            .arg(&complaints)
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let status = arguments(&mut command).status()?;
        if !status.success() {
            let complaints = fs::read_to_string(&complaints).unwrap_or_default();
            return Err(format!("{command:?}: {status}: {complaints}").into());
        }
        Ok(())
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let id = self.id.clone();
        let _ = self.runc(&search_path(), |command| {
            command.args(["delete", "--force"]).arg(id)
        });
    }
}
