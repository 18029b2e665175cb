//! What the kernel says about tasks: state, ancestry, and the marks of our workers.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use procfs::process::{FDTarget, Process, Stat};
use rustix::process::{Pid, Signal, pidfd_send_signal};

use crate::error::TaskState;
use crate::rpc::swrk::{self, is_marked, reap};
use crate::rpc::transport::wait_readable;
use crate::sys;

/// How often something that cannot be waited for is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) pid: i32,
    pidfd: OwnedFd,
    pub(crate) started: u64,
}

impl Task {
    /// `None` when there is no such process (any more).
    pub(crate) fn open(pid: i32) -> Option<Self> {
        let pidfd = sys::open_pidfd(Pid::from_raw(pid)?).ok()?;
        let started = stat(pid)?.starttime;
        Some(Self {
            pid,
            pidfd,
            started,
        })
    }

    pub(crate) fn state(&self) -> TaskState {
        match stat(self.pid).filter(|stat| stat.starttime == self.started) {
            Some(stat) => state_of(&stat),
            None => TaskState::Absent,
        }
    }

    /// The state once a tracer that has just ended no longer holds the task, or what it is at `deadline`.
    pub(crate) fn settled_state(&self, deadline: Instant) -> TaskState {
        loop {
            let state = self.state();
            if state != TaskState::Frozen || Instant::now() >= deadline {
                return state;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits for its end; false when it still exists at `deadline`. Does not reap it.
    pub(crate) fn gone(&self, deadline: Instant) -> bool {
        wait_readable(self.pidfd.as_fd(), deadline).unwrap_or(false)
    }

    /// Kills it, waits until it is gone, and reaps it if it is our child. False when it still exists at `deadline`.
    pub(crate) fn kill(&self, deadline: Instant) -> bool {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let gone = self.gone(deadline);
        reap(self.pidfd.as_fd());
        gone
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    pub(crate) fn into_pidfd(self) -> OwnedFd {
        self.pidfd
    }

    pub(crate) fn reap(&self) {
        reap(self.pidfd.as_fd());
    }
}

pub(crate) fn stat(pid: i32) -> Option<Stat> {
    Process::new(pid).ok()?.stat().ok()
}

/// The kernel's PF_EXITING: a process with much memory can take a while between its death and being a zombie.
const EXITING: u32 = 0x4;

pub(crate) fn is_ending(stat: &Stat) -> bool {
    matches!(stat.state, 'Z' | 'X' | 'x') || stat.flags & EXITING != 0
}

pub(crate) fn state_of(stat: &Stat) -> TaskState {
    match stat.state {
        _ if is_ending(stat) => TaskState::Absent,
        'T' => TaskState::Stopped,
        't' => TaskState::Frozen,
        _ => TaskState::Running,
    }
}

/// Clock ticks since boot, as `starttime` of a task counts: the start of the youngest thread there is, our own.
pub(crate) fn now_in_ticks() -> u64 {
    let ticks = procfs::ticks_per_second();
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds * ticks + nanoseconds * ticks / 1_000_000_000
}

/// The worker with this mark and its forks that are still CRIU, not a program that CRIU runs.
pub(crate) fn marked(mark: &str, program: &Path) -> Vec<i32> {
    let program = std::fs::canonicalize(program).unwrap_or_else(|_| program.to_owned());
    all()
        .filter(|process| process.exe().is_ok_and(|exe| exe == program))
        .filter(|process| is_marked(process.pid(), mark))
        .map(|process| process.pid())
        .collect()
}

/// What every process has open that CRIU makes for one request, from its first moment until the restored task is let go: the
/// request's log, or the worker's standard error where that is the log. Neither existed before the request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trail {
    /// The mark of a worker of ours.
    pub(crate) mark: Option<String>,
    pub(crate) log: Option<LogFile>,
}

/// A log, told apart from every other file.
#[derive(Debug, Clone)]
pub(crate) struct LogFile {
    pub(crate) name: String,
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

impl Trail {
    /// Tasks that a restore which began at `started` has made and not let go.
    ///
    /// Signs that others can have as well do not count alone, as a process that came up at a freed pid meanwhile must never be
    /// taken for one: neither its pid, nor its blocked signals (which some programs for number 1 in a container keep as well),
    /// nor its name or program (another CRIU may restore the same images).
    pub(crate) fn half_restored(&self, started: u64) -> Vec<i32> {
        all()
            .filter(|process| {
                process
                    .stat()
                    .is_ok_and(|stat| stat.starttime >= started && !is_ending(&stat))
            })
            .filter(is_being_restored)
            .filter(|process| self.leads_to(process))
            .map(|process| process.pid())
            .collect()
    }

    fn leads_to(&self, process: &Process) -> bool {
        let standard_error = self.mark.as_deref().map(swrk::standard_error);
        let fds = process.fd().into_iter().flatten().flatten();
        fds.filter_map(|fd| match fd.target {
            FDTarget::Path(path) => Some((fd.fd, path)),
            FDTarget::MemFD(name) => Some((fd.fd, format!("/memfd:{name}").into())),
            _ => None,
        })
        .any(|(number, path)| {
            standard_error
                .as_deref()
                .is_some_and(|name| path.as_os_str() == name)
                || self
                    .log
                    .as_ref()
                    .is_some_and(|log| log.is(process.pid(), number, &path))
        })
    }
}

impl LogFile {
    /// The name is compared first: no file is touched that cannot be it, for whoever has it open may have it on a file
    /// system that does not answer.
    fn is(&self, pid: i32, number: i32, path: &Path) -> bool {
        path.file_name()
            .is_some_and(|name| name == self.name.as_str())
            && std::fs::metadata(format!("/proc/{pid}/fd/{number}"))
                .is_ok_and(|file| (file.dev(), file.ino()) == (self.device, self.inode))
    }
}

/// Whether a task has every signal blocked that CRIU blocks in those that it restores, from their first moment until they
/// are let go; at times it blocks SIGCHLD as well.
fn is_being_restored(process: &Process) -> bool {
    // Real-time signals included, less 9 (KILL), 17 (CHLD), 19 (STOP), and 32 and 33, which the C library keeps for itself.
    const BLOCKED: u64 = !(1 << 8 | 1 << 16 | 1 << 18 | 1 << 31 | 1 << 32);
    process
        .status()
        .is_ok_and(|status| status.sigblk & BLOCKED == BLOCKED)
}

/// Processes of a session that existed at `before`, in clock ticks since boot.
pub(crate) fn of_session(session: i32, before: u64) -> Vec<i32> {
    all()
        .filter_map(|process| process.stat().ok())
        .filter(|stat| stat.session == session && stat.starttime <= before && stat.state != 'Z')
        .map(|stat| stat.pid)
        .collect()
}

/// `roots` and everything below them, roots first.
pub(crate) fn with_descendants(roots: &[i32]) -> Vec<i32> {
    let stats: Vec<Stat> = all().filter_map(|process| process.stat().ok()).collect();
    let mut found: Vec<i32> = roots.to_vec();
    let mut seen: HashSet<i32> = roots.iter().copied().collect();
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        for stat in stats.iter().filter(|stat| stat.ppid == parent) {
            if seen.insert(stat.pid) {
                found.push(stat.pid);
            }
        }
        next += 1;
    }
    found
}

/// Dead children of ours that belong to a session: what a failed sibling restore leaves to its caller.
pub(crate) fn zombies_of_session(session: i32) -> Vec<i32> {
    let own = std::process::id();
    all()
        .filter_map(|process| process.stat().ok())
        .filter(|stat| stat.session == session && stat.state == 'Z')
        .filter(|stat| u32::try_from(stat.ppid) == Ok(own) && stat.pid != session)
        .map(|stat| stat.pid)
        .collect()
}

fn all() -> impl Iterator<Item = Process> {
    procfs::process::all_processes()
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
}

/// A number that is taken, and by whom.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) pid: i32,
    pub(crate) name: String,
    pub(crate) zombie: bool,
    pub(crate) parent: i32,
}

/// Who has one of `pids` (as process or thread), if anybody.
pub(crate) fn taken(pids: &[i32]) -> Option<Taken> {
    pids.iter().find_map(|&pid| {
        if let Some(stat) = stat(pid) {
            return Some(Taken {
                pid,
                zombie: is_ending(&stat),
                parent: stat.ppid,
                name: stat.comm,
            });
        }
        // A thread has a directory of its own below /proc that listing does not show.
        std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .ok()
            .map(|name| Taken {
                pid,
                name: name.trim_end().to_owned(),
                zombie: false,
                parent: 0,
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_child_is_seen_running_stopped_and_gone() {
        let mut child = Command::new("/bin/sleep")
            .arg("100")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        let task = Task::open(pid).unwrap();
        assert_eq!(task.state(), TaskState::Running);
        assert!(with_descendants(&[std::process::id() as i32]).contains(&pid));
        rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while task.state() != TaskState::Stopped {
            assert!(Instant::now() < deadline);
            std::thread::sleep(LOOK);
        }
        assert_eq!(taken(&[pid]).unwrap().name, "sleep");
        assert!(task.kill(deadline));
        assert_eq!(task.state(), TaskState::Absent);
        assert!(child.wait().is_err(), "it must have been reaped");
        assert!(taken(&[pid]).is_none());
    }

    #[test]
    fn ticks_agree_with_the_kernel() {
        let before = now_in_ticks();
        let mut child = Command::new("/bin/true").spawn().unwrap();
        let started = stat(child.id() as i32).unwrap().starttime;
        child.wait().unwrap();
        assert!((before..=now_in_ticks() + 1).contains(&started));
    }
}
