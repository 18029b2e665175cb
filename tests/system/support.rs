//! Waiting, and the looks at the machine that tell whether anything was left behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use criu_client::Criu;

pub(crate) use crate::victim::{Kind, Spec, Stranger, Victim};

pub(crate) type Outcome = Result<(), String>;

/// Long enough for anything here on a loaded machine; nothing waits this long when all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}
pub(crate) use ensure;

pub(crate) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// An error with everything it knows, for a test's message.
pub(crate) fn whole(error: criu_client::Error) -> String {
    serde_json::to_string_pretty(&error).unwrap_or_else(|_| format!("{error:?}"))
}

/// The CRIU of the tests: the machine's, or what stands before it.
pub(crate) fn criu() -> Criu {
    let before = BEFORE_CRIU.lock().expect("one test at a time").clone();
    match before {
        Some(program) => Criu::at(program),
        None => Criu::find().expect("the harness has looked for criu before"),
    }
}

static BEFORE_CRIU: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Runs a test with another program in CRIU's place.
pub(crate) fn with_criu_at(program: PathBuf, test: impl FnOnce() -> Outcome) -> Outcome {
    let set = |program| *BEFORE_CRIU.lock().expect("one test at a time") = program;
    set(Some(program));
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test));
    set(None);
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

/// Waits until `condition` holds.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) -> Outcome {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        ensure!(
            Instant::now() < deadline,
            "waited {PATIENCE:?} in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

pub(crate) fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

fn pids() -> Vec<i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// Processes that workers of process `owner` are or have forked.
pub(crate) fn workers_of(owner: u32) -> Vec<i32> {
    let mark = format!("/memfd:criu-client-{owner}-");
    pids()
        .into_iter()
        .filter(|pid| {
            fs::read_link(format!("/proc/{pid}/fd/2"))
                .is_ok_and(|target| target.display().to_string().starts_with(&mark))
        })
        .collect()
}

/// Processes that have `path` on their command line.
pub(crate) fn with_argument(path: &Path) -> Vec<i32> {
    let wanted = path.display().to_string();
    pids()
        .into_iter()
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                line.split(|byte| *byte == 0)
                    .any(|argument| argument == wanted.as_bytes())
            })
        })
        .filter(|pid| state(*pid) != Some('Z'))
        .collect()
}

/// Dead children that this process has not reaped.
pub(crate) fn zombies() -> BTreeSet<i32> {
    let own = std::process::id().to_string();
    pids()
        .into_iter()
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let mut fields = stat
                .rsplit_once(')')
                .map_or("", |(_, rest)| rest)
                .split_whitespace();
            fields.next() == Some("Z") && fields.next() == Some(own.as_str())
        })
        .collect()
}

fn descriptors() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
    {
        if let Ok(target) = fs::read_link(entry.path()) {
            found.insert(format!(
                "{} -> {}",
                entry.file_name().display(),
                target.display()
            ));
        }
    }
    found.retain(|line| !line.contains("/proc/"));
    found
}

/// What must be the same after an operation as before it.
pub(crate) struct Traces {
    zombies: BTreeSet<i32>,
    descriptors: usize,
    mounts: BTreeSet<String>,
    rules: String,
}

impl Traces {
    /// To be taken, and compared, while no runtime is alive.
    pub(crate) fn take() -> Self {
        Self {
            zombies: zombies(),
            descriptors: descriptors().len(),
            mounts: mounts(),
            rules: rules(None),
        }
    }

    /// No zombie, no leaked descriptor, no mount, no worker, no lock in our own namespace.
    pub(crate) fn unchanged(&self) -> Outcome {
        until("no worker is left", || {
            workers_of(std::process::id()).is_empty()
        })?;
        // Those that listen in end after CRIU, and come to us, who are the subreaper.
        until("nobody listens in any more", reap_listeners)?;
        let zombies: Vec<_> = zombies().difference(&self.zombies).copied().collect();
        let names = zombies.iter().map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.split(')').next().unwrap_or_default().to_owned()
        });
        ensure!(
            zombies.is_empty(),
            "zombies: {:?}",
            names.collect::<Vec<_>>()
        );
        until("settling threads have closed their descriptors", || {
            descriptors().len() <= self.descriptors
        })
        .map_err(|error| format!("{error}: {:#?}", descriptors()))?;
        let new_mounts = || {
            mounts()
                .difference(&self.mounts)
                // The host's own network, which Docker keeps once a container has had it.
                .filter(|mount| !mount.contains(" /run/docker/netns/default "))
                .cloned()
                .collect::<Vec<_>>()
        };
        // Somebody else's come and go.
        until("no mount is left", || new_mounts().is_empty())
            .map_err(|error| format!("{error}: {:#?}", new_mounts()))?;
        until("no firewall rule is left", || rules(None) == self.rules)
            .map_err(|error| format!("{error}:\n{}", rules(None)))?;
        Ok(())
    }
}

fn mounts() -> BTreeSet<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // How the file system of a mount is used is no matter of the mount.
    let mounts = mounts.lines().filter_map(|mount| mount.rsplit_once(' '));
    mounts.map(|(mount, _)| mount.to_owned()).collect()
}

/// What nftables (and so iptables) drops in the network namespace of `pid`, or in ours; without what has been counted.
pub(crate) fn rules(pid: Option<i32>) -> String {
    let output = match pid {
        Some(pid) => Command::new("nsenter")
            .args([
                "--net",
                "--target",
                &pid.to_string(),
                "nft",
                "--stateless",
                "list",
                "ruleset",
            ])
            .output(),
        None => Command::new("nft")
            .args(["--stateless", "list", "ruleset"])
            .output(),
    };
    String::from_utf8_lossy(&output.expect("nft").stdout).into_owned()
}

/// No network lock of CRIU's in the namespace of `pid`.
pub(crate) fn is_unlocked(pid: i32) -> Outcome {
    let rules = rules(Some(pid));
    ensure!(
        !rules.contains("CRIU"),
        "a network lock was left behind:\n{rules}"
    );
    Ok(())
}

/// Our own worker processes.
pub(crate) fn own_workers() -> Vec<i32> {
    let own = std::process::id().to_string();
    workers_of(std::process::id())
        .into_iter()
        .filter(|pid| {
            let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = stat
                .rsplit_once(')')
                .and_then(|(_, rest)| rest.split_whitespace().nth(1).map(str::to_owned));
            program.ends_with("criu") && parent.as_deref() == Some(own.as_str())
        })
        .collect()
}

/// Kills our own worker process, at a callback.
pub(crate) fn kill_worker() -> Outcome {
    let workers = own_workers();
    ensure!(!workers.is_empty(), "there is no worker to kill");
    for pid in workers {
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGKILL,
        )
        .map_err(text)?;
    }
    Ok(())
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map_or(0, |address| address.port())
}

/// A list of tests.
pub(crate) type Tests = Vec<(String, Box<dyn Fn() -> Outcome + Send>)>;

/// A test and its name within its module.
pub(crate) type Test = (&'static str, fn() -> Outcome);

pub(crate) fn named(prefix: &str, list: &[Test]) -> Tests {
    list.iter()
        .map(|&(name, test)| (format!("{prefix}{name}"), Box::new(test) as _))
        .collect()
}

/// Reaps every dead child: the workers and tasks of a killed client come to us, who are the subreaper.
pub(crate) fn reap_orphans() {
    while let Ok(status) = nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG))
    {
        if status == nix::sys::wait::WaitStatus::StillAlive {
            return;
        }
    }
}

/// Every process below `pid` that there is now.
pub(crate) fn descendants(pid: i32) -> Vec<i32> {
    let parent = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(')')?;
        rest.split_whitespace().nth(1)?.parse::<i32>().ok()
    };
    let all: Vec<(i32, i32)> = pids()
        .into_iter()
        .filter_map(|pid| Some((pid, parent(pid)?)))
        .collect();
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&above) = found.get(next) {
        found.extend(
            all.iter()
                .filter(|(_, parent)| *parent == above)
                .map(|(pid, _)| *pid),
        );
        next += 1;
    }
    found.split_off(1)
}

/// Waits until these have died, wherever they are on their way to, and have been reaped here: orphans come to us, who are
/// the subreaper, a moment after their parent's end.
pub(crate) fn orphans_are_gone(orphans: &[i32]) -> Outcome {
    until("the last orphan is reaped", || {
        reap_orphans();
        orphans.iter().all(|pid| state(*pid).is_none())
    })
}

/// Reaps what has listened in, and the guard of a listener that has died; false while one of ours does.
fn reap_listeners() -> bool {
    let own = std::process::id().to_string();
    let listeners = pids().into_iter().filter(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let (name, rest) = stat.rsplit_once(')').unwrap_or_default();
        (name.ends_with("(criu-listener") || name.ends_with("(criu-guard"))
            && rest.split_whitespace().nth(1) == Some(own.as_str())
    });
    listeners.fold(true, |done, pid| {
        let pid = nix::unistd::Pid::from_raw(pid);
        let status = nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
        done && status.is_ok_and(|status| status != nix::sys::wait::WaitStatus::StillAlive)
    })
}

/// Notes the callbacks of an operation and accepts them.
pub(crate) fn noted(scripts: &std::sync::Mutex<Vec<String>>) -> impl criu_client::notify::Hooks {
    criu_client::notify::hook_fn(async |notify: criu_client::notify::Notify| {
        scripts
            .lock()
            .expect("the list")
            .push(notify.script().to_string());
        Ok(criu_client::notify::Reply::Accept)
    })
}
