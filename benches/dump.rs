//! VERSION and a small DUMP: through this library, from CRIU's command line, through pycriu, and through the least client
//! that can be written. And the memory that a client needs.
//!
//! Needs root, `criu`, `setsid`, `sleep`, and for pycriu and the large log `/usr/bin/python3`.
//!
//! `dump.rs dump [ROUNDS]`, `dump.rs memory`; both without argument.
#![allow(clippy::print_stdout)]

mod bare;
mod support;
mod worker_life;

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use criu_client::options::{DumpOptions, Leave, LogLevel};
use criu_client::{Criu, ImagesDir};
use rustix::time::{ClockId, clock_gettime};

use support::Series;
use worker_life::Observer;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const ROUNDS: usize = 100;
/// Rounds that are not counted: files come into the page cache.
const WARM_UP: usize = 3;
const MILLISECONDS: (f64, &str) = (1000.0, "ms");
/// Between two measurements. CRIU probes the kernel with a network namespace when it has no cache of what it found, and
/// the kernel takes it down long after CRIU has gone: the next CRIU would wait for that.
const REST: Duration = Duration::from_millis(100);
/// Of the client whose memory is looked at.
const MEMORY_DUMPS: usize = 50;
/// Processes with many mappings, each of which CRIU describes in a log of level debug.
const CROWD: usize = 6;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args()
        .filter(|argument| argument != "--bench")
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let criu = Criu::find()?;
    match arguments[1..] {
        ["--client", count, level, pid, directory] => client(
            &criu,
            count.parse()?,
            level.parse()?,
            pid.parse()?,
            directory,
        ),
        ["dump"] => dump(&criu, ROUNDS),
        ["dump", rounds] => dump(&criu, rounds.parse()?),
        ["memory"] => memory(),
        [] => dump(&criu, ROUNDS).and_then(|()| memory()),
        _ => Err("usage: dump [ROUNDS] | memory".into()),
    }
}

fn options(level: LogLevel) -> DumpOptions {
    DumpOptions::new().leave(Leave::Running).log_level(level)
}

fn dump(criu: &Criu, rounds: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let program = criu.program().ok_or("no program")?;
    let task = Process::sleeping()?;
    let mut python = Python::start()?;
    let mut observer = Observer::new(program)
        .inspect_err(|error| println!("the worker's life is not observed: {error}"))
        .ok();

    let [mut ours, mut command_line, mut pycriu, mut bare]: [Series; 4] = Default::default();
    for round in 0..WARM_UP + rounds {
        for which in order(round) {
            std::thread::sleep(REST / 10);
            let (time, series) = match which {
                0 => (
                    timed(|| Ok(runtime.block_on(criu.version())?))?.0,
                    &mut ours,
                ),
                1 => (
                    timed(|| run(Command::new(program).arg("--version")))?.0,
                    &mut command_line,
                ),
                2 => (
                    python.time(&format!("version {}", program.display()))?,
                    &mut pycriu,
                ),
                _ => (timed(|| bare::version(program))?.0, &mut bare),
            };
            if round >= WARM_UP {
                series.push(time);
            }
        }
    }
    support::print(
        "VERSION",
        MILLISECONDS,
        &[
            ("criu --version", &command_line),
            ("criu-client", &ours),
            ("pycriu (private helper)", &pycriu),
            ("bare client", &bare),
        ],
    );

    let [mut ours, mut command_line, mut pycriu, mut bare]: [Series; 4] = Default::default();
    let [mut share, mut processor, mut until_answer]: [Series; 3] = Default::default();
    for round in 0..WARM_UP + rounds {
        for which in order(round) {
            let directory = tempfile::tempdir()?;
            let counts = round >= WARM_UP;
            // Before each of them, though only our own is looked at, so that all start from the same.
            if let Some(observer) = &mut observer {
                observer.begin()?;
            }
            std::thread::sleep(REST);
            let (time, series) = match which {
                0 => {
                    let own = thread_time();
                    let (time, report) = timed(|| {
                        let images = ImagesDir::open(directory.path())?;
                        Ok(runtime.block_on(criu.dump(
                            task.pid,
                            &images,
                            (),
                            options(LogLevel::Warning),
                        ))?)
                    })?;
                    if counts {
                        processor.push(thread_time() - own);
                        until_answer.push(report.details.timings.total);
                        if let Some(observer) = &mut observer {
                            share.push(time.saturating_sub(observer.life()?));
                        }
                    }
                    (time, &mut ours)
                }
                1 => {
                    let (time, ()) = timed(|| {
                        run(Command::new(program)
                            .args(["dump", "-t", &task.pid.to_string(), "-D"])
                            .arg(directory.path())
                            .args(["-R", "-v2", "-o", "dump.log"]))
                    })?;
                    (time, &mut command_line)
                }
                2 => {
                    let line = format!(
                        "dump {} {} {}",
                        program.display(),
                        task.pid,
                        directory.path().display()
                    );
                    (python.time(&line)?, &mut pycriu)
                }
                _ => (
                    timed(|| bare::dump(program, task.pid, directory.path()))?.0,
                    &mut bare,
                ),
            };
            if !directory.path().join("inventory.img").exists() {
                return Err("no images were written".into());
            }
            if counts {
                series.push(time);
            }
        }
    }
    support::print(
        "DUMP of a sleep(1) that runs on",
        MILLISECONDS,
        &[
            ("criu dump", &command_line),
            ("criu-client", &ours),
            ("pycriu", &pycriu),
            ("bare client", &bare),
        ],
    );
    support::print(
        "Our own share of that dump (ratio: to the whole)",
        MILLISECONDS,
        &[
            ("criu-client, whole", &ours),
            ("  from request to answer", &until_answer),
            ("  outside the worker's life, exec to exit", &share),
            ("  processor time of the calling thread", &processor),
            ("  more than the bare client, pairwise", &ours.less(&bare)),
            ("  more than criu dump, pairwise", &ours.less(&command_line)),
            ("  more than pycriu, pairwise", &ours.less(&pycriu)),
        ],
    );
    Ok(())
}

/// The four variants: each comes first equally often, and as often before its neighbours as after them.
fn order(round: usize) -> [usize; 4] {
    let start = round / 2;
    match round % 2 {
        0 => [0, 1, 2, 3].map(|turn| (start + turn) % 4),
        _ => [3, 2, 1, 0].map(|turn| (start + turn) % 4),
    }
}

/// How large a process becomes that dumps.
fn memory() -> Result<()> {
    println!("\nPeak memory of a client process (VmHWM)");
    let idle = tempfile::tempdir()?;
    let task = Process::sleeping()?;
    println!(
        "{:<60} {}",
        "no dump: the program and its runtime",
        run_client(0, LogLevel::Warning, task.pid, idle.path())?
    );
    let text = format!("{MEMORY_DUMPS} dumps, log of level warning");
    println!(
        "{text:<60} {}",
        run_client(MEMORY_DUMPS, LogLevel::Warning, task.pid, idle.path())?
    );

    let large = tempfile::tempdir()?;
    let crowd = Process::crowd()?;
    let peak = run_client(1, LogLevel::Debug, crowd.pid, large.path())?;
    let log = std::fs::metadata(large.path().join("0/dump.log"))?.len();
    let text = format!("1 dump, log of level debug: {:.1} MB", log as f64 / 1e6);
    println!("{text:<60} {peak}");
    Ok(())
}

fn run_client(count: usize, level: LogLevel, pid: i32, directory: &Path) -> Result<String> {
    let output = Command::new(std::env::current_exe()?)
        .args([
            "--client",
            &count.to_string(),
            &level.to_string(),
            &pid.to_string(),
        ])
        .arg(directory)
        .stderr(Stdio::inherit())
        .output()?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout)?.trim_end().to_owned()),
        false => Err(format!("the client failed: {}", output.status).into()),
    }
}

/// What a client does, in a process of its own.
fn client(criu: &Criu, count: usize, level: LogLevel, pid: i32, directory: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    for number in 0..count {
        let images = ImagesDir::create(Path::new(directory).join(number.to_string()))?;
        runtime.block_on(criu.dump(pid, &images, (), options(level)))?;
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .ok_or("no VmHWM")?;
    println!("{}", peak.trim());
    Ok(())
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let started = Instant::now();
    let result = work()?;
    Ok((started.elapsed(), result))
}

fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{command:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )
        .into()),
    }
}

/// A process to be dumped, in a session of its own as CRIU wants it; killed when dropped.
struct Process {
    pid: i32,
    child: Child,
}

impl Process {
    fn sleeping() -> Result<Self> {
        let process = Self::start(&["sleep", "1000000"], Stdio::null())?;
        // setsid(1) becomes the program.
        while std::fs::read_to_string(format!("/proc/{}/comm", process.pid))? != "sleep\n" {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(process)
    }

    /// A tree of processes with as many mappings as the kernel allows by default, nearly.
    fn crowd() -> Result<Self> {
        let mut process = Self::start(
            &[
                "/usr/bin/python3",
                "-c",
                include_str!("many_mappings.py"),
                &CROWD.to_string(),
            ],
            Stdio::piped(),
        )?;
        let mut ready = String::new();
        let output = process.child.stdout.as_mut().ok_or("no stdout")?;
        BufReader::new(output).read_line(&mut ready)?;
        match ready.trim_end() {
            "ready" => Ok(process),
            other => Err(format!("many_mappings.py said {other:?}").into()),
        }
    }

    fn start(command: &[&str], stdout: Stdio) -> Result<Self> {
        let child = Command::new("setsid")
            .args(command)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self {
            pid: i32::try_from(child.id())?,
            child,
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process that dumps through pycriu.
struct Python {
    child: Child,
    commands: ChildStdin,
    times: BufReader<ChildStdout>,
}

impl Python {
    fn start() -> Result<Self> {
        let script: PathBuf =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/pycriu_client.py");
        // Debian's Python, which is the one that has pycriu, whatever else is on PATH.
        let mut child = Command::new("/usr/bin/python3")
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let commands = child.stdin.take().ok_or("no stdin")?;
        let times = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        Ok(Self {
            child,
            commands,
            times,
        })
    }

    fn time(&mut self, command: &str) -> Result<Duration> {
        writeln!(self.commands, "{command}")?;
        let mut seconds = String::new();
        self.times.read_line(&mut seconds)?;
        let seconds = seconds
            .trim_end()
            .parse()
            .map_err(|_| "pycriu failed, see above")?;
        Ok(Duration::from_secs_f64(seconds))
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
