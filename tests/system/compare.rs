//! What a checkpoint and a restore by criuctl take beside those by the engine's own command, of one and the same container in
//! turn: `scripts/bench engines`. Nothing is asserted: figures are for reading.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use criu_client::image::{DumpStats, STATS_DUMP};
use nix::sys::stat::Mode;

use crate::engines::{Docker, Engine, Environment, Podman, Program, Runtime, Served};
use crate::support::*;

// The benchmarks have the rest of it.
#[allow(dead_code, clippy::print_stdout)]
#[path = "../../benches/support.rs"]
mod series;

use series::Series;

const ENGINES: [&str; 4] = ["runc", "crun", "podman", "docker"];

/// Memory in MiB, processes, and how many rounds that is worth.
const CONTAINERS: [(u64, usize, usize); 5] = [
    (10, 1, 9),
    (10, 50, 9),
    (10, 200, 7),
    (256, 1, 7),
    (2048, 1, 3),
];

/// Taking down the namespaces of what was before must not be waited for.
const PAUSE: Duration = Duration::from_millis(150);

/// `CRIUCTL [ENGINE]… [MEMORY/PROCESSES]…`, such as `target/release/criuctl runc 10/50`; all of them without. The program is
/// named because the tests' own is not optimised.
pub(crate) fn compare(arguments: &[String]) -> Outcome {
    let (criuctl, arguments) = arguments.split_first().ok_or("no criuctl is named")?;
    let criuctl = fs::canonicalize(criuctl).map_err(|error| format!("{criuctl}: {error}"))?;
    nix::sys::prctl::set_child_subreaper(true).map_err(text)?;
    let wanted = |name: &str, all: &[String]| {
        let mut asked = arguments
            .iter()
            .filter(|word| all.contains(word))
            .peekable();
        asked.peek().is_none() || asked.any(|word| word == name)
    };
    let engines = ENGINES.map(str::to_owned);
    let containers = CONTAINERS.map(|(memory, processes, _)| format!("{memory}/{processes}"));
    for word in arguments {
        ensure!(
            engines.contains(word) || containers.contains(word),
            "{word} is none of {engines:?} and {containers:?}"
        );
    }
    tell(
        "| ms, median (quartiles) | MiB | processes | | engine | criuctl | ratio |\n|---|---|---|---|---|---|---|",
    );
    for engine in &engines {
        for (container, (memory, processes, rounds)) in containers.iter().zip(CONTAINERS) {
            if wanted(engine, &engines) && wanted(container, &containers) {
                let figures = Contest::open(&criuctl, engine, memory, processes)
                    .and_then(|mut contest| contest.rounds(rounds))
                    .map_err(|error| format!("{engine}, {container}: {error}"))?;
                figures.tell(&format!("{engine} | {memory} | {processes}"));
            }
        }
    }
    Ok(())
}

fn tell(line: &str) {
    #[allow(clippy::print_stdout)]
    {
        println!("{line}");
    }
}

/// A container, and how either side is told of it.
struct Contest {
    // Dropped before the engine.
    _served: Option<Served>,
    engine: Box<dyn Engine>,
    criuctl: String,
    name: &'static str,
    /// Options of criuctl's, and its environment.
    options: Vec<String>,
    variables: Vec<(&'static str, OsString)>,
    /// Where the engine leaves CRIU's statistics.
    statistics: Option<PathBuf>,
    checkpoints: usize,
}

/// Of either side: the engine's own, and ours.
#[derive(Default)]
struct Figures {
    checkpoint: [Series; 2],
    frozen: [Series; 2],
    restore: [Series; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Engine,
    Ours,
}

impl Contest {
    fn open(criuctl: &Path, engine: &str, memory: u64, processes: usize) -> Result<Self, String> {
        let environment = Environment::default();
        // Blocked in a system call that CRIU can restart, with all that memory in hand.
        let program = format!(
            "i=1; while [ $i -lt {processes} ]; do i=$((i+1)); cat <>/data/idle & done; \
             exec dd if=/dev/zero bs={memory}M count=1 1<>/data/full"
        );
        let program = ["/bin/sh", "-c", &program];
        let make = |engine: &dyn Engine| -> Outcome {
            for fifo in ["data/idle", "data/full"] {
                nix::unistd::mkfifo(&engine.ground().path(fifo), Mode::S_IRWXU).map_err(text)?;
            }
            Ok(())
        };
        let contest = |name, engine: Box<dyn Engine>, options: Vec<String>, statistics| Self {
            _served: None,
            criuctl: criuctl.display().to_string(),
            engine,
            name,
            options,
            variables: Vec::new(),
            statistics,
            checkpoints: 0,
        };
        let contest = match engine {
            "runc" | "crun" => {
                let (name, program_of_it) = match engine {
                    "runc" => ("runc", Program::Runc),
                    _ => ("crun", Program::Crun),
                };
                let mut engine = Runtime::new(program_of_it, environment)?;
                make(&engine)?;
                engine.start_program(&program)?;
                let ground = engine.ground();
                let options = vec![format!("--{name}-root"), ground.text("root")];
                let statistics = Some(ground.path("theirs"));
                contest(name, Box::new(engine), options, statistics)
            }
            "podman" => {
                let mut engine = Podman::over(Program::Runc, environment)?;
                make(&engine)?;
                engine.start_program(&program)?;
                let (served, statistics) = (engine.serve()?, engine.bundle());
                let url = format!("unix://{}", served.socket.display());
                let mut contest = contest("podman", Box::new(engine), Vec::new(), Some(statistics));
                contest._served = Some(served);
                contest.variables = vec![("CONTAINER_HOST", url.into())];
                contest
            }
            _ => {
                let mut engine = Docker::start_daemon(environment)?;
                make(&engine)?;
                engine.start_program(&program)?;
                let host = format!("unix://{}", engine.socket().display());
                let options = vec!["--docker-host".into(), host];
                // containerd's shim removes its work directory.
                contest("docker", Box::new(engine), options, None)
            }
        };
        let bytes = memory << 20;
        until("the container is as large as it is to be", || {
            (contest.engine.status()).is_ok_and(|status| anonymous(status.pid) >= bytes * 99 / 100)
        })?;
        Ok(contest)
    }

    fn rounds(&mut self, rounds: usize) -> Result<Figures, String> {
        let mut figures = Figures::default();
        // The first warms up.
        for round in 0..=rounds {
            let mut sides = [Side::Engine, Side::Ours];
            if round % 2 == 1 {
                sides.reverse();
            }
            for side in sides {
                std::thread::sleep(PAUSE);
                self.checkpoints += 1;
                let checkpoint = self.checkpoint(side)?;
                let frozen = self.frozen(side);
                self.engine.settle()?;
                std::thread::sleep(PAUSE);
                let restore = self.restore(side)?;
                self.engine.status()?.is_running()?;
                self.forget(side)?;
                if round > 0 {
                    let at = side as usize;
                    figures.checkpoint[at].push(checkpoint);
                    figures.restore[at].push(restore);
                    if let Some(frozen) = frozen {
                        figures.frozen[at].push(frozen);
                    }
                }
            }
        }
        Ok(figures)
    }

    fn images(&self, side: Side) -> String {
        match side {
            // Docker wants another name each time.
            Side::Engine if self.name == "docker" => format!("theirs-{}", self.checkpoints),
            Side::Engine => "theirs".into(),
            Side::Ours => "ours".into(),
        }
    }

    fn checkpoint(&self, side: Side) -> Result<Duration, String> {
        let mut line = match side {
            Side::Engine => self.engine.invocation(),
            Side::Ours => self.criuctl("checkpoint"),
        };
        match side {
            Side::Engine => line.extend(self.engine.checkpoint_arguments(&self.images(side))),
            Side::Ours => line.push(format!("--image-path={}", self.ours())),
        }
        if side == Side::Engine && self.name == "podman" {
            // Its statistics would be removed otherwise.
            line.push("--keep".into());
        }
        self.time(side, &line)
    }

    fn restore(&self, side: Side) -> Result<Duration, String> {
        let mut line = match side {
            Side::Engine => self.engine.invocation(),
            Side::Ours => self.criuctl("restore"),
        };
        match side {
            Side::Engine => line.extend(self.engine.restore_arguments(&self.images(side))),
            Side::Ours => {
                line.push(format!("--image-path={}", self.ours()));
                if ["runc", "crun"].contains(&self.name) {
                    let bundle = self.engine.ground().text("");
                    line.extend(["--detach".into(), "--bundle".into(), bundle]);
                }
            }
        }
        self.time(side, &line)
    }

    fn criuctl(&self, verb: &str) -> Vec<String> {
        let target = format!("{}:{}", self.name, self.engine.ground().id);
        let mut line = vec![self.criuctl.clone(), verb.to_owned(), target];
        line.extend_from_slice(&self.options);
        line
    }

    fn ours(&self) -> String {
        self.engine.ground().text("ours")
    }

    fn frozen(&self, side: Side) -> Option<Duration> {
        let directory = match side {
            Side::Engine => self.statistics.clone()?,
            Side::Ours => self.engine.ground().path("ours"),
        };
        let directory = File::open(directory).ok()?;
        let statistics = DumpStats::read(directory.as_fd(), STATS_DUMP).ok()?;
        Some(statistics.frozen_time)
    }

    fn forget(&self, side: Side) -> Outcome {
        let remove = |path: &Path| match path.exists() {
            true => fs::remove_dir_all(path).map_err(text),
            false => Ok(()),
        };
        match (side, self.name) {
            (Side::Engine, "docker") => {
                let (id, images) = (&self.engine.ground().id, self.images(side));
                let line = ["checkpoint", "rm", id, &images].map(str::to_owned);
                self.engine.run(&line).map(drop)
            }
            (Side::Engine, _) => remove(&self.engine.ground().path("theirs")),
            (Side::Ours, _) => remove(&self.engine.ground().path("ours")),
        }
    }

    /// Runs a command and takes its time.
    fn time(&self, side: Side, line: &[String]) -> Result<Duration, String> {
        let ground = self.engine.ground();
        let complaints = ground.path("complaints");
        let mut command = ground.command(line)?;
        if side == Side::Ours {
            command.envs(self.variables.iter().cloned());
        }
        command.stdout(Stdio::null());
        // What is restored by a runtime keeps it, and could not be dumped with a file there.
        let keeps = ["runc", "crun"].contains(&self.name);
        command.stderr(match keeps {
            true => Stdio::null(),
            false => File::create(&complaints).map_err(text)?.into(),
        });
        let began = Instant::now();
        let status = command.status().map_err(text)?;
        let took = began.elapsed();
        if !status.success() {
            let complaints = fs::read_to_string(&complaints).unwrap_or_default();
            return Err(format!("{}: {status}: {complaints}", line.join(" ")));
        }
        Ok(took)
    }
}

impl Figures {
    fn tell(&self, container: &str) {
        let shown = |series: &Series| match series.median() {
            median if median.is_nan() => "–".to_owned(),
            median => format!(
                "{:.0} ({:.0}–{:.0})",
                median / 1e3,
                series.quantile(0.25) / 1e3,
                series.quantile(0.75) / 1e3
            ),
        };
        for (what, [engine, ours]) in [
            ("checkpoint", &self.checkpoint),
            ("frozen", &self.frozen),
            ("restore", &self.restore),
        ] {
            let ratio = match ours.median() / engine.median() {
                ratio if ratio.is_nan() => "–".to_owned(),
                ratio => format!("{ratio:.2}"),
            };
            tell(&format!(
                "| {container} | {what} | {} | {} | {ratio} |",
                shown(engine),
                shown(ours)
            ));
        }
    }
}

/// How much memory of its own a process has, in bytes.
fn anonymous(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) << 10
}
