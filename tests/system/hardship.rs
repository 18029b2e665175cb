//! Full disks, time limits, kills at any moment, pids that are taken.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use criu_client::notify::{Notify, Reply, Script, hook_fn};
use criu_client::options::{DumpOptions, Leave, RestoreOptions};
use criu_client::{ErrorKind, ImagesDir, TaskState, TimeLimits};

use crate::support::*;

pub(crate) fn tests() -> Tests {
    let list: &[Test] = &[
        ("disk-full", || disk_full(false)),
        ("disk-full-but-not-for-the-log", || disk_full(true)),
        ("time-limit", time_limit),
        (
            "criu-killed-while-it-writes-memory",
            killed_while_it_writes_memory,
        ),
        ("criu-killed-while-it-reads-memory/detached", || {
            ended_while_it_reads_memory(End::Killed, false)
        }),
        ("criu-killed-while-it-reads-memory/child", || {
            ended_while_it_reads_memory(End::Killed, true)
        }),
        ("time-limit-while-it-reads-memory/detached", || {
            ended_while_it_reads_memory(End::TimeLimit, false)
        }),
        ("time-limit-while-it-reads-memory/child", || {
            ended_while_it_reads_memory(End::TimeLimit, true)
        }),
        (
            "a-pid-that-somebody-else-takes-meanwhile",
            pid_taken_meanwhile,
        ),
        ("pid-of-a-zombie-that-is-reaped", zombie_reaped_in_time),
        ("pid-of-a-zombie", zombie),
        ("pid-in-use", pid_in_use),
    ];
    named("hardship/", list)
}

/// A file system that holds next to nothing.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    fn mount(at: &'a Path) -> Result<Self, String> {
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(
            Some("small"),
            at,
            Some("tmpfs"),
            flags,
            Some("size=64k,mode=0700"),
        )
        .map_err(text)?;
        Ok(Self(at))
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0, nix::mount::MntFlags::empty());
    }
}

fn disk_full(log_elsewhere: bool) -> Outcome {
    let victim = Spec::role("memory").argument(4).start()?;
    let small = tempfile::tempdir().map_err(text)?;
    let traces = Traces::take();
    {
        let _mounted = Small::mount(small.path())?;
        let images = ImagesDir::open(small.path()).map_err(text)?;
        let mut options = DumpOptions::new();
        if log_elsewhere {
            let work = victim.images("work");
            options = options.work_dir(rustix::io::fcntl_dupfd_cloexec(&work, 3).map_err(text)?);
        }
        let error = match block_on(criu().dump(victim.pid, &images, (), options)) {
            Ok(report) => return Err(format!("64 KiB were enough: {report:?}")),
            Err(error) => error,
        };
        ensure!(
            matches!(error.kind(), ErrorKind::Refused { .. }),
            "{error:?}"
        );
        ensure!(error.tasks() == TaskState::Running, "{error:?}");
        let cause = error
            .cause()
            .map(|line| line.text.clone())
            .unwrap_or_default();
        ensure!(
            cause.contains("No space left on device"),
            "the cause is {cause:?}: {error:?}"
        );
        let code = error.diagnosis().map(|diagnosis| diagnosis.code);
        ensure!(code == Some("no-space-left"), "{code:?} of {error:?}");
    }
    victim.goes_on()?;
    traces.unchanged()
}

fn big() -> Result<Victim, String> {
    Spec::role("memory").argument(300).start()
}

fn time_limit() -> Outcome {
    let victim = big()?;
    let images = victim.images("images");
    let traces = Traces::take();
    let limit = Duration::from_millis(50);
    let limits = TimeLimits::default().operation(limit);
    let started = Instant::now();
    let error = match block_on(criu().with_limits(limits).dump(
        victim.pid,
        &images,
        (),
        DumpOptions::new(),
    )) {
        Ok(report) => return Err(format!("it took {:?}: {report:?}", started.elapsed())),
        Err(error) => error,
    };
    ensure!(
        matches!(error.kind(), ErrorKind::TimeLimit { limit: told, .. } if *told == limit),
        "{error:?}"
    );
    ensure!(error.tasks() == TaskState::Running, "{error:?}");
    victim.goes_on()?;
    drop(images);
    traces.unchanged()
}

/// The victim looks at all of its memory before every count.
///
/// Only while memory is written: at some moment before or after, a killed CRIU was once seen to take the task along.
fn killed_while_it_writes_memory() -> Outcome {
    let victim = big()?;
    let traces = Traces::take();
    for megabytes in (25..=250).step_by(25) {
        kill_at(&victim, megabytes << 20)?;
        victim.goes_on()?;
    }
    // What a killed CRIU had forked comes to us, who are the subreaper.
    reap_orphans();
    traces.unchanged()
}

/// Dumps, and kills CRIU once it has written so many bytes of memory.
fn kill_at(victim: &Victim, bytes: u64) -> Outcome {
    let directory = tempfile::tempdir().map_err(text)?;
    let images = ImagesDir::open(directory.path()).map_err(text)?;
    let options = DumpOptions::new().leave(Leave::Running);
    let over = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                if written(directory.path()) >= bytes && kill_worker().is_ok() {
                    return;
                }
                std::thread::yield_now();
            }
        });
        let result = block_on(criu().dump(victim.pid, &images, (), options));
        over.store(true, Ordering::Relaxed);
        result
    });
    let error = match result {
        Ok(report) => return Err(format!("the dump was over before the kill: {report:?}")),
        Err(error) => error,
    };
    ensure!(matches!(error.kind(), ErrorKind::Lost { .. }), "{error:?}");
    ensure!(error.tasks() == TaskState::Running, "{error:?}");
    ensure!(error.left_behind().is_empty(), "{error:?}");
    Ok(())
}

/// How much memory the images hold so far.
fn written(images: &std::path::Path) -> u64 {
    std::fs::read_dir(images)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("pages-"))
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}

/// How a restore ends before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Killed,
    /// CRIU stands still, as it would for a disk that does not answer, so that it has to be killed in the end.
    TimeLimit,
}

/// Between two callbacks: the tasks have their descriptors already, and look less and less like CRIU.
fn ended_while_it_reads_memory(end: End, sibling: bool) -> Outcome {
    let mut victim = big()?;
    let images = victim.images("images");
    victim.killed_into(&images, victim.dump_options())?;
    let traces = Traces::take();
    let whole_time = {
        let mut moments = Vec::new();
        let hooks = hook_fn(|_| {
            moments.push(Instant::now());
            std::future::ready(Ok(Reply::Accept))
        });
        block_on(criu().restore(&images, hooks, RestoreOptions::new())).map_err(whole)?;
        victim.goes_on()?;
        victim.end();
        // From pre-restore to post-restore.
        moments[1] - moments[0]
    };
    let steps = match end {
        End::Killed => 12,
        // Each takes a second: so long CRIU may take to notice that it is alone.
        End::TimeLimit => 5,
    };
    let mut killed = 0;
    // On a busy machine a moment that was meant to be in the middle may not be.
    for (tried, step) in (1..=steps).cycle().take(8 * steps as usize).enumerate() {
        if tried >= steps as usize && killed >= 3 {
            break;
        }
        let delay = whole_time * step / (steps + 1);
        let (error, released) = ended_after(&images, end, sibling, delay)?;
        let Some(error) = error.filter(|_| !released) else {
            // Faster than the time before: nobody can stop it any more.
            victim.goes_on()?;
            victim.end();
            continue;
        };
        let expected = match end {
            End::Killed => matches!(error.kind(), ErrorKind::Lost { .. }),
            End::TimeLimit => matches!(error.kind(), ErrorKind::TimeLimit { .. }),
        };
        ensure!(expected, "{error:?}");
        ensure!(
            with_argument(&victim.count_file()).is_empty() && !victim.exists(),
            "after {delay:?} a half-restored task is left: {error:?}"
        );
        ensure!(error.tasks() == TaskState::Absent, "{error:?}");
        ensure!(error.left_behind().is_empty(), "{error:?}");
        killed += usize::from(!error.undone().is_empty());
        reap_orphans();
    }
    ensure!(
        killed >= 3,
        "a half-restored task was there {killed} times only, so little is shown"
    );
    traces.unchanged()?;
    // Nothing is in the way of the same images.
    block_on(criu().restore(&images, (), RestoreOptions::new())).map_err(whole)?;
    victim.goes_on()
}

/// Restores, and ends that so long after pre-restore. Also tells whether the tasks had been let go before.
fn ended_after(
    images: &ImagesDir,
    end: End,
    sibling: bool,
    delay: Duration,
) -> Result<(Option<criu_client::Error>, bool), String> {
    let limits = match end {
        End::Killed => TimeLimits::default(),
        End::TimeLimit => TimeLimits::default()
            .operation(Duration::from_secs(1))
            .settle(Duration::from_millis(10)),
    };
    let signal = match end {
        End::Killed => nix::sys::signal::Signal::SIGKILL,
        End::TimeLimit => nix::sys::signal::Signal::SIGSTOP,
    };
    let criu = criu().with_limits(limits);
    let mut threads = Vec::new();
    let mut released = false;
    let hooks = hook_fn(|notify: Notify| {
        released |= notify.script() == Script::PreResume;
        if notify.script() == Script::PreRestore {
            // The worker alone: later its forks look the same.
            let workers = own_workers();
            threads.push(std::thread::spawn(move || {
                std::thread::sleep(delay);
                for worker in workers {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), signal);
                }
            }));
        }
        std::future::ready(Ok(Reply::Accept))
    });
    let result = block_on(async {
        match sibling {
            true => criu
                .restore_child(images, hooks, RestoreOptions::new())
                .await
                .map(drop),
            false => criu
                .restore(images, hooks, RestoreOptions::new())
                .await
                .map(drop),
        }
    });
    for thread in threads {
        thread.join().map_err(|_| "the killing thread panicked")?;
    }
    Ok((result.err(), released))
}

/// A process that comes up at a pid of the images while CRIU is asked, with every signal blocked as a task's that is being
/// restored: it is not ours to kill, and nobody can say that nothing runs under that pid.
fn pid_taken_meanwhile() -> Outcome {
    let mut victim = Victim::start(Kind::Plain)?;
    let images = victim.images("images");
    victim.killed_into(&images, victim.dump_options())?;
    let traces = Traces::take();
    let mut stranger = None;
    let pid = victim.pid;
    let hooks = hook_fn(|notify: Notify| {
        if notify.script() == Script::PreRestore {
            stranger = Some(Stranger::at(pid));
            return std::future::ready(kill_worker().map(|()| Reply::Accept).map_err(Into::into));
        }
        std::future::ready(Ok(Reply::Accept))
    });
    let error = match block_on(criu().restore(&images, hooks, RestoreOptions::new())) {
        Ok(report) => return Err(format!("the restore succeeded: {report:?}")),
        Err(error) => error,
    };
    let stranger = stranger.ok_or("pre-restore never came")??;
    ensure!(stranger.lives(), "the stranger was killed: {error:?}");
    ensure!(error.tasks() == TaskState::Unknown, "{error:?}");
    ensure!(
        error
            .left_behind()
            .iter()
            .any(|left| left.contains(&format!("process {pid} "))),
        "{error:?}"
    );
    drop((stranger, images));
    traces.unchanged()
}

fn zombie_reaped_in_time() -> Outcome {
    let mut victim = Victim::start(Kind::Plain)?;
    let images = victim.images("images");
    let traces = Traces::take();
    block_on(criu().dump(victim.pid, &images, (), DumpOptions::new())).map_err(whole)?;
    ensure!(
        state(victim.pid) == Some('Z'),
        "it is no zombie but {:?}",
        state(victim.pid)
    );
    let pause = Duration::from_millis(300);
    let started = Instant::now();
    let pid = victim.pid;
    let report = std::thread::scope(|scope| {
        let reaper = scope.spawn(move || {
            std::thread::sleep(pause);
            nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None)
        });
        let report = block_on(criu().restore(&images, (), RestoreOptions::new())).map_err(whole)?;
        reaper
            .join()
            .map_err(|_| "the reaping thread panicked")?
            .map_err(text)?;
        Ok::<_, String>(report)
    })?;
    ensure!(
        report.pid == victim.pid && started.elapsed() >= pause,
        "{:?}, {report:?}",
        started.elapsed()
    );
    victim.goes_on()?;
    victim.end();
    drop(images);
    traces.unchanged()
}

fn zombie() -> Outcome {
    let mut victim = Victim::start(Kind::Plain)?;
    let images = victim.images("images");
    block_on(criu().dump(victim.pid, &images, (), DumpOptions::new())).map_err(whole)?;
    let traces = Traces::take();
    taken(
        &images,
        &[
            &format!("pid {}", victim.pid),
            "zombie",
            "reap",
            &format!("process {}", std::process::id()),
        ],
    )?;
    drop(images);
    traces.unchanged()?;
    victim.reap()
}

fn pid_in_use() -> Outcome {
    let victim = Victim::start(Kind::Plain)?;
    let images = victim.images("images");
    let traces = Traces::take();
    block_on(criu().dump(
        victim.pid,
        &images,
        (),
        DumpOptions::new().leave(Leave::Running),
    ))
    .map_err(whole)?;
    let started = Instant::now();
    taken(
        &images,
        &[&format!("pid {}", victim.pid), "in use", "pid namespace"],
    )?;
    ensure!(
        started.elapsed() < Duration::from_secs(1),
        "it waited for a process that lives"
    );
    victim.goes_on()?;
    drop(images);
    traces.unchanged()
}

/// A restore fails before CRIU is started, and says all of `words`.
fn taken(images: &ImagesDir, words: &[&str]) -> Outcome {
    let criu = criu().with_limits(TimeLimits::default().settle(Duration::from_millis(200)));
    let error = match block_on(criu.restore(images, (), RestoreOptions::new())) {
        Ok(report) => return Err(format!("the pid was free: {report:?}")),
        Err(error) => error,
    };
    ensure!(
        matches!(error.kind(), ErrorKind::Precondition { .. }),
        "{error:?}"
    );
    ensure!(error.tasks() == TaskState::Absent, "{error:?}");
    let code = error.diagnosis().map(|diagnosis| diagnosis.code);
    ensure!(code == Some("pid-in-use"), "{code:?} of {error:?}");
    let said = error.to_string();
    for word in words {
        ensure!(said.contains(word), "{word:?} is not in {said:?}");
    }
    ensure!(!images.contains("restore.log"), "CRIU was asked");
    Ok(())
}
