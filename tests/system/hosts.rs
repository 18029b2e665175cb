//! Programs that do with their children what they like, and dump and restore all the same. Each is a process of its own,
//! made of this test program: what it does to SIGCHLD must not reach the harness.

use std::process::{Command, Stdio};

use criu_client::options::{DumpOptions, Leave, RestoreOptions};
use criu_client::{Exit, ImagesDir, TaskState};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;

use crate::support::*;

pub(crate) fn tests() -> Tests {
    let mut tests: Tests = Vec::new();
    for host in [
        "current-thread",
        "ignores-sigchld",
        "reaps-everything",
        "closed-stdio",
    ] {
        tests.push((format!("hosts/{host}"), Box::new(move || hosted(host, &[]))));
    }
    tests.push((
        "self-dump/leave-running".into(),
        Box::new(self_dump_running),
    ));
    tests.push((
        "self-dump/killed-and-restored".into(),
        Box::new(self_dump_killed),
    ));
    tests
}

fn part(host: &str, arguments: &[&str]) -> Result<Command, String> {
    let mut command = Command::new(std::env::current_exe().map_err(text)?);
    command
        .args(["--host", host])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    Ok(command)
}

fn hosted(host: &str, arguments: &[&str]) -> Outcome {
    let traces = Traces::take();
    let output = part(host, arguments)?
        .stderr(Stdio::piped())
        .output()
        .map_err(text)?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    reap_every_orphan()?;
    traces.unchanged()
}

/// A self-dump's worker is no child of the process that it dumps, may outlive it a little, and then comes to us.
fn reap_every_orphan() -> Outcome {
    until("no orphan is left", || {
        reap_orphans();
        nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG))
            == Err(nix::errno::Errno::ECHILD)
    })
}

/// The host's own part.
pub(crate) fn be_a_host(arguments: &[String]) -> Outcome {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(text)
    };
    match arguments[0].as_str() {
        "current-thread" => runtime()?.block_on(both_ways(Exit::Signal(libc::SIGTERM))),
        "ignores-sigchld" => {
            // SAFETY: there is no handler to be unsafe.
            #[allow(unsafe_code)]
            unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) }.map_err(text)?;
            block_on(both_ways(Exit::Unknown))
        }
        "reaps-everything" => {
            std::thread::spawn(|| {
                loop {
                    reap_orphans();
                    std::thread::sleep(std::time::Duration::from_micros(200));
                }
            });
            block_on(both_ways(Exit::Unknown))
        }
        "closed-stdio" => {
            for fd in 0..3 {
                // What is opened next gets these numbers.
                nix::unistd::close(fd).map_err(text)?;
            }
            block_on(both_ways(Exit::Signal(libc::SIGTERM)))
        }
        "unprivileged" => runtime()?.block_on(crate::vm::unprivileged()),
        "dumps-itself" => runtime()?.block_on(dump_self(arguments)),
        other => Err(format!("unknown host {other}")),
    }
}

/// A dump that leaves running, one that kills, a restore with the tree as a child, and another one detached.
async fn both_ways(exit: Exit) -> Outcome {
    nix::sys::prctl::set_child_subreaper(true).map_err(text)?;
    let mut victim = Victim::start(Kind::Network)?;
    let images = victim.images("first");
    let options = DumpOptions::new().leave(Leave::Running);
    let report = criu()
        .dump(victim.pid, &images, (), options)
        .await
        .map_err(whole)?;
    ensure!(report.tasks == TaskState::Running, "{report:?}");
    victim.goes_on()?;
    let images = victim.images("second");
    criu()
        .dump(victim.pid, &images, (), DumpOptions::new())
        .await
        .map_err(whole)?;
    victim.reap_if_ours();
    let restored = criu()
        .restore_child(&images, (), RestoreOptions::new())
        .await
        .map_err(whole)?;
    victim.goes_on()?;
    kill(Pid::from_raw(restored.root.pid()), Signal::SIGTERM).map_err(text)?;
    let ended = restored.root.wait().await.map_err(text)?;
    // Who reaps first is a race that either may win.
    ensure!(
        ended == exit || (exit == Exit::Unknown && ended == Exit::Signal(libc::SIGTERM)),
        "it ended: {ended:?}"
    );
    let report = criu()
        .restore(&images, (), RestoreOptions::new())
        .await
        .map_err(whole)?;
    ensure!(report.pid == victim.pid, "{report:?}");
    victim.goes_on()?;
    victim.end();
    Ok(())
}

fn self_dump_running() -> Outcome {
    let directory = tempfile::tempdir().map_err(text)?;
    let told = directory.path().join("told");
    let images = directory.path().join("images");
    hosted(
        "dumps-itself",
        &[
            "running",
            &told.display().to_string(),
            &images.display().to_string(),
        ],
    )?;
    let told = std::fs::read_to_string(told).map_err(text)?;
    ensure!(
        told == "restored: false, tasks: running",
        "it told {told:?}"
    );
    Ok(())
}

/// The process dumps itself and is killed; restored, it goes on after its own dump and knows that it was restored.
fn self_dump_killed() -> Outcome {
    use std::os::unix::process::CommandExt;
    let directory = tempfile::tempdir().map_err(text)?;
    let told = directory.path().join("told");
    let path = directory.path().join("images");
    let traces = Traces::take();
    let mut command = part(
        "dumps-itself",
        &[
            "killed",
            &told.display().to_string(),
            &path.display().to_string(),
        ],
    )?;
    // SAFETY: setsid is a system call that touches no memory of the parent.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()
                .map(drop)
                .map_err(std::io::Error::from)
        });
    }
    let mut host = command.stderr(Stdio::null()).spawn().map_err(text)?;
    let pid = host.id().cast_signed();
    let status = host.wait().map_err(text)?;
    use std::os::unix::process::ExitStatusExt;
    let told_early = std::fs::read_to_string(&told);
    ensure!(
        status.signal() == Some(libc::SIGKILL),
        "it ended with {status}, and told {told_early:?}"
    );
    ensure!(
        told_early.is_err(),
        "it told {told_early:?} before it was restored"
    );
    until("the worker has ended", || {
        reap_orphans();
        workers_of(pid.cast_unsigned()).is_empty()
    })?;
    let images = ImagesDir::open(&path).map_err(text)?;
    let restored = block_on(async {
        let restored = criu()
            .restore_child(&images, (), RestoreOptions::new())
            .await
            .map_err(whole)?;
        ensure!(restored.root.pid() == pid, "{restored:?}");
        let told_in_time = until("the restored process has told", || {
            told.exists() || state(pid).is_none_or(|state| state == 'Z')
        });
        if told_in_time.is_err() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let ended = restored.root.wait().await.map_err(text)?;
        told_in_time?;
        Ok::<_, String>(ended)
    })?;
    let told = std::fs::read_to_string(&told);
    ensure!(
        restored == Exit::Status(0),
        "it ended: {restored:?}, and told {told:?}"
    );
    let told = told.map_err(text)?;
    ensure!(told.starts_with("restored: true"), "it told {told:?}");
    drop(images);
    reap_every_orphan()?;
    traces.unchanged()
}

async fn dump_self(arguments: &[String]) -> Outcome {
    let [_, how, told, images] = arguments else {
        return Err(format!("wrong arguments {arguments:?}"));
    };
    let images = ImagesDir::create(images).map_err(text)?;
    let options = match how.as_str() {
        "running" => DumpOptions::new().leave(Leave::Running),
        _ => DumpOptions::new(),
    };
    // A shell job is what a program that was not made a session leader is.
    let options = match nix::unistd::getsid(None).map_err(text)? == nix::unistd::getpid() {
        true => options,
        false => options.shell_job(true),
    };
    match criu().dump_self(&images, options).await {
        Ok(report) => {
            // The file comes into being whole.
            let part = format!("{told}.part");
            std::fs::write(
                &part,
                format!("restored: {}, tasks: {}", report.restored, report.tasks),
            )
            .map_err(text)?;
            std::fs::rename(part, told).map_err(text)
        }
        Err(error) => {
            let said = whole(error);
            std::fs::write(format!("{told}.error"), &said).map_err(text)?;
            Err(said)
        }
    }
}
