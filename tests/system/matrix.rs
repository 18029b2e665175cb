//! {each callback} × {refuse, time out, cancel, kill CRIU, kill the client}: what may never happen, does not.

use std::io::BufRead;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use criu_client::notify::{Event, Notify, Reply, Script, hook_fn};
use criu_client::options::{DumpOptions, Leave, NetworkLock, PageTransport, RestoreOptions};
use criu_client::{Criu, Error, ErrorKind, HookFailure, ImagesDir, TaskState, TimeLimits};

use crate::core::SIDE_BY_SIDE;
use crate::support::*;
use crate::victim::restore_options;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disturbance {
    Refuse,
    TimeOut,
    Cancel,
    KillCriu,
    KillClient,
}

const DISTURBANCES: [(Disturbance, &str); 5] = [
    (Disturbance::Refuse, "refuse"),
    (Disturbance::TimeOut, "time-out"),
    (Disturbance::Cancel, "cancel"),
    (Disturbance::KillCriu, "kill-criu"),
    (Disturbance::KillClient, "kill-client"),
];

pub(crate) fn tests() -> Tests {
    let dump = [
        (Script::PreStream, false),
        (Script::PreDump, false),
        (Script::NetworkLock, false),
        (Script::QueryExternalFiles, false),
        (Script::PostDump, false),
        (Script::NetworkUnlock, false),
        (Script::StatusReady, true),
    ];
    let restore = [
        Script::PreStream,
        Script::PreRestore,
        Script::SetupNamespaces,
        Script::PostSetupNamespaces,
        Script::OrphanPtsMaster,
        Script::PostRestore,
        Script::NetworkUnlock,
        Script::PreResume,
        Script::PostResume,
    ];
    let mut tests: Tests = Vec::new();
    for (disturbance, name) in DISTURBANCES {
        for (script, lazy) in dump.clone() {
            let title = format!("matrix/dump/{script}/{name}");
            tests.push((
                title,
                Box::new(move || disturbed_dump(&script, lazy, None, disturbance)),
            ));
        }
        // The others lock as the installed CRIU was built to.
        for script in [Script::QueryExternalFiles, Script::PostDump] {
            let title = format!("matrix/dump/{script}/nftables/{name}");
            let lock = Some(NetworkLock::Nftables);
            tests.push((
                title,
                Box::new(move || disturbed_dump(&script, false, lock, disturbance)),
            ));
        }
        for script in restore.clone() {
            for sibling in [false, true] {
                let parent = if sibling { "child" } else { "detached" };
                let title = format!("matrix/restore/{script}/{name}/{parent}");
                let script = script.clone();
                tests.push((
                    title,
                    Box::new(move || disturbed_restore(&script, sibling, disturbance)),
                ));
            }
        }
    }
    tests
}

fn dump_options(script: &Script, lazy: bool, lock: Option<NetworkLock>) -> DumpOptions {
    let mut options = DumpOptions::new();
    if *script == Script::PreStream {
        options = options.stream(true);
    }
    if let Some(lock) = lock {
        options = options.network_lock(lock);
    }
    match lazy {
        true => options
            .lazy_pages(true)
            .page_server(PageTransport::tcp("127.0.0.1", free_port())),
        false => options.leave(Leave::Running),
    }
}

/// Only that of the latest CRIU comes before there must be a streamer: nothing gets so far here that one is needed.
fn restored(options: RestoreOptions, script: &Script) -> RestoreOptions {
    match script {
        Script::PreStream => options.stream(true),
        _ => options,
    }
}

/// The one that has the callback.
fn criu_with(script: &Script) -> Criu {
    match script {
        Script::PreStream => Criu::at(Path::new(SIDE_BY_SIDE).join("criu-4.3/usr/sbin/criu")),
        _ => criu(),
    }
}

fn limited(script: &Script, disturbance: Disturbance) -> Criu {
    let mut limits = TimeLimits::default().settle(Duration::from_secs(5));
    if disturbance == Disturbance::TimeOut {
        limits = limits.hook(Duration::from_millis(100));
    }
    criu_with(script).with_limits(limits)
}

/// Does what is to be done at the callback; never returns a refusal of its own for the last two.
async fn disturb(disturbance: Disturbance) -> Result<Reply, criu_client::notify::HookError> {
    match disturbance {
        Disturbance::Refuse => Ok(Reply::Refuse("disturbed".into())),
        Disturbance::TimeOut => std::future::pending().await,
        Disturbance::KillCriu => {
            kill_worker()?;
            Ok(Reply::Accept)
        }
        Disturbance::Cancel | Disturbance::KillClient => Ok(Reply::Accept),
    }
}

/// Runs an operation with a disturbance at `script`. `Ok(None)`: cancelled.
macro_rules! disturbed {
    ($operation:expr, $criu:expr, $script:expr, $disturbance:expr) => {{
        let mut operation = $operation.await?;
        match $disturbance {
            Disturbance::Cancel => {
                let mut reached = false;
                while let Some((notify, answer)) = operation.next().await {
                    if notify.script() == *$script {
                        reached = true;
                        break;
                    }
                    answer.accept().await;
                }
                assert!(reached, "{} never came", $script);
                drop(operation);
                $criu.settled().await;
                Ok(None)
            }
            _ => {
                let hooks = hook_fn(async |notify: Notify| match notify.script() == *$script {
                    true => disturb($disturbance).await,
                    false => Ok(Reply::Accept),
                });
                operation.run(hooks).await.map(Some)
            }
        }
    }};
}

fn expect_error(
    error: &Error,
    script: &Script,
    disturbance: Disturbance,
    state: TaskState,
) -> Outcome {
    let expected = match (disturbance, error.kind()) {
        (
            Disturbance::Refuse,
            ErrorKind::Hook {
                script: at,
                failure: HookFailure::Refused(reason),
                ..
            },
        ) => at == script && reason == "disturbed",
        (
            Disturbance::TimeOut,
            ErrorKind::Hook {
                script: at,
                failure: HookFailure::TimedOut(_),
                ..
            },
        ) => at == script,
        (Disturbance::KillCriu, ErrorKind::Lost { .. }) => true,
        _ => false,
    };
    ensure!(expected, "not the error of a {disturbance:?}: {error:?}");
    ensure!(
        error.tasks() == state,
        "tasks are {}, not {state}: {error:?}",
        error.tasks()
    );
    ensure!(
        error.left_behind().is_empty(),
        "left behind: {:?}",
        error.left_behind()
    );
    Ok(())
}

fn disturbed_dump(
    script: &Script,
    lazy: bool,
    lock: Option<NetworkLock>,
    disturbance: Disturbance,
) -> Outcome {
    let victim = Victim::start(if lazy { Kind::Plain } else { Kind::Network })?;
    let traces = Traces::take();
    let images = victim.images("images");
    if disturbance == Disturbance::KillClient {
        killed_client("dump", script, lazy, lock, &victim, &images, false)?;
    } else {
        let criu = limited(script, disturbance);
        let result = block_on(async {
            disturbed!(
                criu.start_dump(victim.pid, &images, dump_options(script, lazy, lock)),
                criu,
                script,
                disturbance
            )
        });
        let ignored = script.refusal_is_ignored(criu_client::OperationKind::Dump);
        match result {
            Ok(None) => {}
            Ok(Some(report)) => {
                ensure!(
                    ignored && disturbance != Disturbance::KillCriu,
                    "the dump succeeded: {report:?}"
                );
                ensure!(
                    report.details.ignored_refusals.len() == 1
                        && report.details.ignored_refusals[0].script == *script,
                    "the ignored refusal is not reported: {report:?}"
                );
            }
            Err(error) => {
                expect_error(&error, script, disturbance, TaskState::Running)?;
                ensure!(
                    lock.is_none()
                        || disturbance != Disturbance::KillCriu
                        || error
                            .undone()
                            .iter()
                            .any(|undone| undone.contains("nftables")),
                    "nothing was locked, so nothing is shown: {error:?}"
                );
            }
        }
    }
    drop(images);
    victim.goes_on()?;
    if !lazy {
        is_unlocked(victim.pid)?;
    }
    traces.unchanged()?;
    // And nothing keeps it from being dumped for good now.
    let report = block_on(criu().dump(
        victim.pid,
        &victim.images("again"),
        (),
        DumpOptions::new().leave(Leave::Running),
    ))
    .map_err(whole)?;
    ensure!(report.tasks == TaskState::Running, "{report:?}");
    victim.goes_on()
}

fn disturbed_restore(script: &Script, sibling: bool, disturbance: Disturbance) -> Outcome {
    let kind = match script {
        Script::OrphanPtsMaster => Kind::Terminal,
        _ => Kind::Network,
    };
    let mut victim = Victim::start(kind)?;
    let images = victim.images("images");
    victim.killed_into(&images, victim.dump_options())?;
    let traces = Traces::take();
    let too_late = script.refusal_is_ignored(criu_client::OperationKind::Restore);
    // CRIU killed before the tasks are let go takes them along; afterwards they run on their own.
    let runs = match disturbance {
        Disturbance::KillCriu => matches!(script, Script::PreResume | Script::PostResume),
        _ => too_late,
    };

    if disturbance == Disturbance::KillClient {
        killed_client("restore", script, false, None, &victim, &images, sibling)?;
    } else {
        let criu = limited(script, disturbance);
        let state = if runs {
            TaskState::Running
        } else {
            TaskState::Absent
        };
        let mut root = None;
        let result = block_on(async {
            if sibling {
                let options = restored(victim.restore_options(), script);
                let operation = criu.start_restore_child(&images, options);
                disturbed!(operation, criu, script, disturbance).map(|restored| {
                    restored.map(|restored: criu_client::RestoredChild| {
                        root = Some(restored.root);
                        restored.report
                    })
                })
            } else {
                let options = restored(victim.restore_options(), script);
                let operation = criu.start_restore(&images, options);
                disturbed!(operation, criu, script, disturbance)
            }
        });
        match result {
            Ok(None) => {}
            Ok(Some(report)) => {
                ensure!(
                    runs && disturbance != Disturbance::KillCriu,
                    "the restore succeeded: {report:?}"
                );
                ensure!(
                    report.details.ignored_refusals.len() == 1
                        && report.details.ignored_refusals[0].script == *script,
                    "the ignored refusal is not reported: {report:?}"
                );
            }
            Err(error) => expect_error(&error, script, disturbance, state)?,
        }
        if runs {
            victim.goes_on()?;
            victim.end();
        }
        drop(root);
    }
    if runs && disturbance == Disturbance::KillClient {
        victim.goes_on()?;
        victim.end();
    }
    until("no half-restored task is left", || {
        with_argument(&victim.count_file()).is_empty()
    })
    .map_err(|error| format!("{error}: {:?}", with_argument(&victim.count_file())))?;
    drop(images);
    match disturbance {
        Disturbance::KillClient => until("every dead task is reaped", || {
            reap_orphans();
            !Path::new(&format!("/proc/{}", victim.pid)).exists()
        })?,
        _ => victim_is_reaped(&victim)?,
    }
    traces.unchanged()?;
    // And the same images restore for good now.
    let images = victim.images("images");
    let mut master = None;
    let keeping = hook_fn(|notify: Notify| {
        // A terminal whose master nobody keeps is gone before CRIU has opened it.
        if let Event::OrphanPtsMaster { master: new } = notify.event {
            master = Some(new);
        }
        std::future::ready(Ok(Reply::Accept))
    });
    let report =
        block_on(criu().restore(&images, keeping, victim.restore_options())).map_err(whole)?;
    ensure!(report.pid == victim.pid, "{report:?}");
    ensure!(master.is_some() == (kind == Kind::Terminal), "{master:?}");
    victim.goes_on()
}

/// Detached tasks that died come to this process, which is a subreaper, and not to init.
fn victim_is_reaped(victim: &Victim) -> Outcome {
    until("the dead root is reaped", || {
        let _ = nix::sys::wait::waitpid(
            nix::unistd::Pid::from_raw(victim.pid),
            Some(nix::sys::wait::WaitPidFlag::WNOHANG),
        );
        state(victim.pid).is_none()
    })
}

/// Starts another process as the client, lets it hold at `script`, and kills it there.
fn killed_client(
    verb: &str,
    script: &Script,
    lazy: bool,
    lock: Option<NetworkLock>,
    victim: &Victim,
    images: &ImagesDir,
    sibling: bool,
) -> Outcome {
    let mut client = Command::new(std::env::current_exe().map_err(text)?)
        .args([
            "--client",
            verb,
            script.as_str(),
            &lazy.to_string(),
            &lock.is_some().to_string(),
            &victim.pid.to_string(),
        ])
        .arg(images.path())
        .arg(victim.root().unwrap_or(Path::new("")))
        .arg(sibling.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(text)?;
    let mut line = String::new();
    let output = client.stdout.take().ok_or("no output")?;
    std::io::BufReader::new(output)
        .read_line(&mut line)
        .map_err(text)?;
    ensure!(line == "holding\n", "the client said {line:?}");
    let owner = client.id();
    // A worker that ends has closed its descriptors, and with them its mark, a moment before it is a zombie.
    let workers = workers_of(owner);
    ensure!(!workers.is_empty(), "the client has no worker");
    client.kill().map_err(text)?;
    client.wait().map_err(text)?;
    until("criu has noticed that its client is gone", || {
        let gone = workers_of(owner).is_empty();
        reap_orphans();
        gone && workers.iter().all(|pid| state(*pid).is_none()) && zombies().is_empty()
    })
}

/// The part of the client that is killed.
pub(crate) fn be_a_client(arguments: &[String]) -> Outcome {
    let [verb, script, lazy, nftables, pid, images, root, sibling] = arguments else {
        return Err(format!("wrong arguments {arguments:?}"));
    };
    let script = Script::from_name(script);
    let hold_at = script.clone();
    let pid: i32 = pid.parse().map_err(text)?;
    // The only victims with a root of their own here are those with a terminal.
    let root = Some(Path::new(root)).filter(|root| !root.as_os_str().is_empty());
    let options = restored(restore_options(root, root.is_some()), &script);
    let lock = (nftables == "true").then_some(NetworkLock::Nftables);
    let criu = criu_with(&script);
    let images = ImagesDir::open(Path::new(images)).map_err(text)?;
    let hooks = hook_fn(async |notify: Notify| {
        if notify.script() == script {
            use std::io::Write;
            let mut stdout = std::io::stdout();
            stdout.write_all(b"holding\n")?;
            stdout.flush()?;
            std::future::pending::<()>().await;
        }
        Ok(Reply::Accept)
    });
    block_on(async {
        match (verb.as_str(), sibling.as_str()) {
            ("dump", _) => criu
                .dump(
                    pid,
                    &images,
                    hooks,
                    dump_options(&hold_at, lazy == "true", lock),
                )
                .await
                .map(drop),
            (_, "true") => criu.restore_child(&images, hooks, options).await.map(drop),
            _ => criu.restore(&images, hooks, options).await.map(drop),
        }
    })
    .map_err(whole)
}
