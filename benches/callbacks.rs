//! What one callback costs: CRIU's question, our hook's answer, and CRIU reading it.
//!
//! Another process plays CRIU (this program started again, speaking the protocol on descriptor 3), and asks as fast as it
//! is answered. Beside it stand two processes that pass datagrams of the same sizes to and fro with blocking reads and
//! nothing else: less than that no client can do. Both are timed in the same place, where the callback is answered.
//!
//! Where the scheduler puts the two processes changes the figures more than anything that either does. With
//! `APART=0,1` in the environment each has one of these processors to itself, in every variant; `taskset -c 0` puts both
//! on one.
#![allow(clippy::print_stdout)]

mod support;

use std::error::Error;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use criterion::Criterion;
use criu_client::notify::{HookError, Hooks, Notify, Reply};
use criu_client::options::{DumpOptions, Leave};
use criu_client::{Criu, ImagesDir};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use rustix::thread::{CpuSet, sched_setaffinity};
use tokio::runtime::Runtime;

use support::Series;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The datagrams of CRIU 4.2.1.
const VERSION: &[u8] = b"\x08\x0a\x10\x01\x52\x06\x08\x04\x10\x02\x20\x01";
const POST_DUMP: &[u8] = b"\x08\x06\x10\x01\x2a\x0b\x0a\x09post-dump";
const DUMPED: &[u8] = b"\x08\x01\x10\x01\x1a\x02\x08\x00";
const ACCEPTED: &[u8] = b"\x08\x06\x18\x01";

/// Asked before the clock starts: both processes are then awake and their code is in memory.
const WARM_UP: u64 = 100;
/// Of the table: rounds, and callbacks in each.
const ROUNDS: usize = 31;
const CALLBACKS: u64 = 4000;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let Ok(processors) = std::env::var("APART") {
        keep_apart(
            &processors,
            arguments
                .get(1)
                .is_some_and(|option| option.ends_with("peer")),
        )?;
    }
    match arguments[..] {
        [_, "--peer", count, "swrk", fd] => play_criu(count.parse()?, fd.parse()?),
        [_, "--raw-peer", count] => play_raw(count.parse()?),
        _ => measure(),
    }
}

/// Keeps this process, and all threads that it will have, to one of the two processors named.
fn keep_apart(processors: &str, is_peer: bool) -> Result<()> {
    let (ours, theirs) = processors.split_once(',').ok_or("write APART=0,1")?;
    let mut set = CpuSet::new();
    set.set(if is_peer { theirs } else { ours }.parse()?);
    Ok(sched_setaffinity(None, &set)?)
}

fn measure() -> Result<()> {
    let current = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let multi = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    type Variant<'a> = (&'a str, Box<dyn Fn(u64) -> Result<Duration> + 'a>);
    let variants: [Variant<'_>; 4] = [
        ("raw ping-pong", Box::new(raw)),
        (
            "current-thread runtime",
            Box::new(|count| hooks(&current, false, count)),
        ),
        (
            "multi-thread runtime, in a task",
            Box::new(|count| hooks(&multi, true, count)),
        ),
        (
            "multi-thread runtime, in block_on",
            Box::new(|count| hooks(&multi, false, count)),
        ),
    ];

    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("callback");
    group
        .measurement_time(Duration::from_secs(3))
        .warm_up_time(Duration::from_secs(1))
        .sample_size(20);
    for (name, run) in &variants {
        let mut failed = None;
        group.bench_function(*name, |bencher| {
            bencher.iter_custom(|count| {
                run(count).unwrap_or_else(|error| {
                    failed = Some(error);
                    // Never zero, which criterion does not take; the error ends the run below.
                    Duration::from_secs(1)
                })
            });
        });
        if let Some(error) = failed {
            return Err(error);
        }
    }
    group.finish();
    criterion.final_summary();

    // Criterion measures one after the other, so a change of the machine's load falls on one of them. Here it falls on all.
    let mut series: [Series; 4] = Default::default();
    for round in 0..ROUNDS {
        for turn in 0..variants.len() {
            let which = (round + turn) % variants.len();
            series[which].push(variants[which].1(CALLBACKS)? / u32::try_from(CALLBACKS)?);
        }
    }
    let [raw, ..] = &series;
    let more = series.each_ref().map(|series| series.less(raw));
    let more_names = variants
        .each_ref()
        .map(|(name, _)| format!("  more than raw, {name}"));
    let mut rows: Vec<_> = variants
        .iter()
        .zip(&series)
        .map(|((name, _), series)| (*name, series))
        .collect();
    rows.extend(more_names.iter().map(String::as_str).zip(&more).skip(1));
    support::print(
        &format!("One callback, mean of {CALLBACKS}"),
        (1.0, "µs"),
        &rows,
    );
    Ok(())
}

/// The time from one callback to the `count`th after it.
struct Stopwatch {
    left: u64,
    started: Option<Instant>,
    count: u64,
}

impl Stopwatch {
    fn new(count: u64) -> Self {
        Self {
            left: WARM_UP,
            started: None,
            count,
        }
    }

    /// The whole time at the last of them.
    fn callback(&mut self) -> Option<Duration> {
        if self.left > 0 {
            self.left -= 1;
            return None;
        }
        match self.started {
            None => {
                self.started = Some(Instant::now());
                self.left = self.count - 1;
                None
            }
            Some(started) => Some(started.elapsed()),
        }
    }
}

/// How many callbacks the stopwatch needs.
fn callbacks(count: u64) -> u64 {
    WARM_UP + 1 + count
}

struct Timed {
    stopwatch: Stopwatch,
    time: Option<Duration>,
}

impl Hooks for Timed {
    async fn notify(&mut self, _: Notify) -> std::result::Result<Reply, HookError> {
        self.time = self.time.or(self.stopwatch.callback());
        Ok(Reply::Accept)
    }
}

fn hooks(runtime: &Runtime, in_a_task: bool, count: u64) -> Result<Duration> {
    let directory = tempfile::tempdir()?;
    let images = ImagesDir::open(directory.path())?;
    let criu = Criu::at(std::env::current_exe()?)
        .with_arguments(["--peer".to_owned(), callbacks(count).to_string()]);
    let pid = i32::try_from(std::process::id())?;
    runtime.block_on(async {
        let operation = criu
            .start_dump(pid, &images, DumpOptions::new().leave(Leave::Running))
            .await?;
        let run = async move {
            let mut timed = Timed {
                stopwatch: Stopwatch::new(count),
                time: None,
            };
            operation.run(&mut timed).await?;
            timed
                .time
                .ok_or_else(|| "the peer has asked too little".into())
        };
        match in_a_task {
            true => tokio::spawn(run).await?,
            false => run.await,
        }
    })
}

fn raw(count: u64) -> Result<Duration> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut peer = Command::new(std::env::current_exe()?)
        .args(["--raw-peer", &callbacks(count).to_string()])
        .stdin(Stdio::from(theirs))
        .spawn()?;
    let mut stopwatch = Stopwatch::new(count);
    let mut buffer = [0; 64];
    let mut time = None;
    while time.is_none() && recv(&ours, &mut buffer, RecvFlags::empty())?.0 == POST_DUMP.len() {
        time = stopwatch.callback();
        send(&ours, ACCEPTED, SendFlags::NOSIGNAL)?;
    }
    peer.wait()?;
    time.ok_or_else(|| "the peer has asked too little".into())
}

fn play_raw(count: u64) -> Result<()> {
    ask(std::io::stdin(), count)
}

/// Asks `count` times. The same on both sides of the comparison.
fn ask(socket: impl std::os::fd::AsFd, count: u64) -> Result<()> {
    let mut buffer = [0; 64];
    for _ in 0..count {
        send(&socket, POST_DUMP, SendFlags::NOSIGNAL)?;
        let (length, _) = recv(&socket, &mut buffer, RecvFlags::empty())?;
        if buffer.get(..length) != Some(ACCEPTED) {
            return Err("a callback was not accepted".into());
        }
    }
    Ok(())
}

fn play_criu(count: u64, fd: i32) -> Result<()> {
    // The safe way to own an inherited descriptor.
    let socket: OwnedFd = pidfd_getfd(
        pidfd_open(getpid(), PidfdFlags::empty())?,
        fd,
        PidfdGetfdFlags::empty(),
    )?;
    let mut buffer = [0; 4096];
    for answer in [VERSION, DUMPED] {
        if recv(&socket, &mut buffer, RecvFlags::empty())?.0 == 0 {
            return Err("the client has hung up".into());
        }
        if answer == DUMPED {
            ask(&socket, count)?;
        }
        send(&socket, answer, SendFlags::NOSIGNAL)?;
    }
    Ok(())
}
