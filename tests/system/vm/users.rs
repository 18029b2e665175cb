//! Processes of other users, and CRIU as another user.

use std::fs;
use std::process::{Command, Stdio};

use criu_client::TaskState;
use criu_client::options::{CheckOptions, DumpOptions, Leave, RestoreOptions};

use crate::support::*;

const USER: u32 = 1000;

pub(crate) fn tests() -> Tests {
    let list: &[Test] = &[
        ("process-of-another-user", of_another_user),
        ("user-namespace-alone", user_namespace),
        ("unprivileged-criu", unprivileged_criu),
    ];
    named("vm/users/", list)
}

/// The lines of a process's status that say who it is and what it may.
pub(crate) fn identity(pid: i32) -> Result<Vec<String>, String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(text)?;
    let wanted = ["Uid:", "Gid:", "Groups:", "Cap", "NoNewPrivs:"];
    Ok(status
        .lines()
        .filter(|line| wanted.iter().any(|start| line.starts_with(start)))
        .map(str::to_owned)
        .collect())
}

fn goes_there_and_back(spec: Spec) -> Outcome {
    let mut victim = spec.start()?;
    let images = victim.images("images");
    let before = identity(victim.pid)?;
    let traces = Traces::take();
    let options = DumpOptions::new().leave(Leave::Running);
    let report = block_on(criu().dump(victim.pid, &images, (), options)).map_err(whole)?;
    ensure!(report.tasks == TaskState::Running, "{report:?}");
    victim.goes_on()?;
    let images = victim.images("again");
    victim.killed_into(&images, DumpOptions::new())?;
    block_on(criu().restore(&images, (), RestoreOptions::new())).map_err(whole)?;
    victim.goes_on()?;
    let after = identity(victim.pid)?;
    ensure!(before == after, "{before:#?}\n{after:#?}");
    victim.end();
    drop(images);
    traces.unchanged()
}

fn of_another_user() -> Outcome {
    goes_there_and_back(Spec {
        user: Some(USER),
        ..Spec::role("user").argument(USER)
    })
}

/// A user namespace alone: CRIU dumps the process, but restores it only with a pid and a mount namespace besides, since it
/// mounts a proc there. So the original is left running.
fn user_namespace() -> Outcome {
    let mut victim = Spec::role("user-namespace").start()?;
    let images = victim.images("images");
    let before = identity(victim.pid)?;
    let traces = Traces::take();
    let options = DumpOptions::new().leave(Leave::Running);
    let report = block_on(criu().dump(victim.pid, &images, (), options)).map_err(whole)?;
    ensure!(report.tasks == TaskState::Running, "{report:?}");
    victim.goes_on()?;
    let after = identity(victim.pid)?;
    ensure!(before == after, "{before:#?}\n{after:#?}");
    victim.end();
    match block_on(criu().restore(&images, (), RestoreOptions::new())) {
        Ok(report) => return Err(format!("it was restored after all: {report:?}")),
        Err(error) => ensure!(error.tasks() == TaskState::Absent, "{error:?}"),
    }
    orphans_are_gone(&[victim.pid])?;
    drop(images);
    traces.unchanged()
}

/// A client that is no root and has CAP_CHECKPOINT_RESTORE only, and so has its CRIU.
fn unprivileged_criu() -> Outcome {
    let traces = Traces::take();
    let output = Command::new("setpriv")
        .args(["--reuid", &USER.to_string(), "--regid", &USER.to_string()])
        .args(["--clear-groups"])
        .args(["--inh-caps", "-all,+checkpoint_restore"])
        .args(["--ambient-caps", "-all,+checkpoint_restore", "--"])
        .arg(std::env::current_exe().map_err(text)?)
        .args(["--host", "unprivileged"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .map_err(text)?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    reap_orphans();
    traces.unchanged()
}

/// That client's own part.
pub(crate) async fn unprivileged() -> Outcome {
    ensure!(
        nix::unistd::geteuid().as_raw() == USER,
        "it is another user"
    );
    nix::sys::prctl::set_child_subreaper(true).map_err(text)?;
    criu()
        .check(CheckOptions::new().unprivileged(true))
        .await
        .map_err(whole)?;
    let mut victim = Victim::start(Kind::Plain)?;
    let before = identity(victim.pid)?;
    let images = victim.images("images");
    let options = || DumpOptions::new().unprivileged(true);
    let report = criu()
        .dump(victim.pid, &images, (), options().leave(Leave::Running))
        .await
        .map_err(whole)?;
    ensure!(report.tasks == TaskState::Running, "{report:?}");
    victim.goes_on()?;
    let images = victim.images("again");
    criu()
        .dump(victim.pid, &images, (), options())
        .await
        .map_err(whole)?;
    victim.reap()?;
    let count = victim.count();
    let report = criu()
        .restore(&images, (), RestoreOptions::new().unprivileged(true))
        .await
        .map_err(whole)?;
    ensure!(report.pid == victim.pid, "{report:?}");
    victim.goes_on()?;
    ensure!(victim.count() > count, "it began anew");
    let after = identity(victim.pid)?;
    ensure!(before == after, "{before:#?}\n{after:#?}");
    victim.end();
    Ok(())
}
