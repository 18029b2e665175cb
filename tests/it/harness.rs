//! Every test of the peer runs in a process of its own: what it leaves behind there (descriptors, children, threads) is its
//! own doing and fails it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};
use tokio::runtime::Runtime;

/// The option of a process that runs one test.
const OPTION: &str = "--alone";

/// A test that takes longer hangs.
const AT_MOST: Duration = Duration::from_secs(90);

/// How long threads and children that are on their way out may take.
const TO_END: Duration = Duration::from_secs(10);

/// Most of them wait for something rather than work.
const THREADS: usize = 8;

pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) body: fn(&Runtime),
}

/// The cases of a module: asynchronous functions, and after a `;` functions that drive the runtime themselves.
macro_rules! cases {
    ($($asynchronous:ident),* $(,)? $(; $($driving:ident),* $(,)?)?) => {
        pub(crate) const CASES: &[$crate::harness::Case] = &[
            $($crate::harness::Case {
                name: concat!(module_path!(), "::", stringify!($asynchronous)),
                body: |runtime| runtime.block_on($asynchronous()),
            },)*
            $($($crate::harness::Case {
                name: concat!(module_path!(), "::", stringify!($driving)),
                body: $driving,
            },)*)?
        ];
    };
}
pub(crate) use cases;

/// What the process that a test runs in is like.
#[derive(Clone, Copy)]
enum Host {
    CurrentThread,
    MultiThread,
    /// It was started with SIGCHLD ignored: the kernel reaps all children.
    ChildrenIgnored,
    /// A thread reaps every child there is.
    ChildrenTaken,
}

impl Host {
    const ALL: [(Self, &'static str); 4] = [
        (Self::CurrentThread, "current-thread"),
        (Self::MultiThread, "multi-thread"),
        (Self::ChildrenIgnored, "children-ignored"),
        (Self::ChildrenTaken, "children-taken"),
    ];

    fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    fn runtime(self) -> Runtime {
        let mut builder = match self {
            Self::MultiThread => tokio::runtime::Builder::new_multi_thread(),
            _ => tokio::runtime::Builder::new_current_thread(),
        };
        builder.enable_all().worker_threads(2).build().unwrap()
    }
}

/// Runs all tests, or the one that this process is for.
pub(crate) fn main(cases: &[&'static [Case]], odd_hosts: &[&str], others: Vec<Trial>) -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, option, name, host] = arguments.as_slice()
        && option == OPTION
    {
        let case = cases
            .iter()
            .copied()
            .flatten()
            .find(|case| case.name == name);
        let host = Host::ALL.iter().find(|(_, known)| known == host);
        let (Some(case), Some((host, _))) = (case, host) else {
            return ExitCode::FAILURE;
        };
        alone(case, *host);
        return ExitCode::SUCCESS;
    }
    let mut trials = others;
    for case in cases.iter().copied().flatten() {
        for (host, _) in Host::ALL {
            let is_odd = matches!(host, Host::ChildrenIgnored | Host::ChildrenTaken);
            if !is_odd || odd_hosts.iter().any(|module| case.name.contains(module)) {
                trials.push(trial(case, host));
            }
        }
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(case: &'static Case, host: Host) -> Trial {
    let name = case.name.strip_prefix("it::").unwrap_or(case.name);
    Trial::test(format!("{name} [{}]", host.name()), move || {
        let own = std::env::current_exe()?;
        let mut command = match host {
            Host::ChildrenIgnored => {
                let mut command = Command::new("/usr/bin/env");
                command.arg("--ignore-signal=CHLD").arg(own);
                command
            }
            _ => Command::new(own),
        };
        let mut output = tempfile::tempfile()?;
        let mut child = command
            .args([OPTION, case.name, host.name()])
            // Must not reach the worker.
            .env("CRIU_CONFIG_FILE", "/no/such/file")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output.try_clone()?)
            .process_group(0)
            .spawn()?;
        let group = Pid::from_child(&child);
        let deadline = Instant::now() + AT_MOST;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if Instant::now() >= deadline {
                // With what it has started.
                rustix::process::kill_process_group(group, Signal::KILL)?;
                child.wait()?;
                break None;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        if status.is_some_and(|status| status.success()) {
            return Ok(());
        }
        let ended = status.map_or_else(
            || format!("killed after {AT_MOST:?}"),
            |status| status.to_string(),
        );
        Err(Failed::from(format!("{ended}\n{}", written(&mut output)?)))
    })
}

fn written(file: &mut File) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn alone(case: &Case, host: Host) {
    if let Host::ChildrenTaken = host {
        std::thread::spawn(|| {
            loop {
                if waitid(WaitId::All, WaitIdOptions::EXITED).is_err() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
    }
    // The first runtime of a process opens descriptors that stay.
    drop(host.runtime());
    let before = descriptors();
    let runtime = host.runtime();
    (case.body)(&runtime);
    drop(runtime);

    let deadline = Instant::now() + TO_END;
    loop {
        let left = left_behind(&before);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left behind: {left:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn left_behind(before: &BTreeMap<String, String>) -> Vec<String> {
    let mut left = Vec::new();
    let now = descriptors();
    left.extend(
        now.iter()
            .filter(|(number, _)| !before.contains_key(*number))
            .map(|(number, target)| format!("descriptor {number} ({target})")),
    );
    left.extend(
        before
            .iter()
            .filter(|(number, target)| now.get(*number) != Some(target))
            .map(|(number, target)| format!("descriptor {number} was {target}")),
    );
    for thread in std::fs::read_dir("/proc/self/task").unwrap() {
        let name = std::fs::read_to_string(thread.unwrap().path().join("comm")).unwrap_or_default();
        if name.starts_with("criu-") {
            left.push(format!("thread {}", name.trim_end()));
        }
    }
    let any = WaitIdOptions::EXITED
        | WaitIdOptions::STOPPED
        | WaitIdOptions::NOHANG
        | WaitIdOptions::NOWAIT;
    match waitid(WaitId::All, any) {
        Err(Errno::CHILD) => {}
        other => left.push(format!("a child: {other:?}")),
    }
    left
}

fn descriptors() -> BTreeMap<String, String> {
    let entries: Vec<_> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(Result::unwrap)
        .collect();
    entries
        .into_iter()
        // The one that the directory was read through is closed by now.
        .filter_map(|entry| {
            let target = std::fs::read_link(entry.path()).ok()?;
            let number = entry.file_name().into_string().unwrap();
            Some((number, target.to_string_lossy().into_owned()))
        })
        .collect()
}
