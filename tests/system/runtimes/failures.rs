//! Refused, dropped, killed: what becomes of the container, and what is left behind.

use std::fs;
use std::process::{Command, Stdio};

use criu_client::ImagesDir;
use criu_client::container::runtime::{CheckpointOptions, RestoreOptions, Runtime};
use criu_client::container::{ErrorKind, Status};
use criu_client::notify::{HookTable, Reply, Script, hook_fn};
use criu_client::options::{DumpOptions, Leave};
use serde_json::{Value, json};

use super::fixture::{Fixture, Program, groups, whole};
use crate::support::{Outcome, block_on, criu, ensure, text, until};

/// What a restore is killed in, in a process of its own: this program again, with this test alone.
pub(super) const KILLED: &str = "what a killed restore leaves does not block the next";
const KILL_VARIABLE: &str = "RUNTIME_TEST_RESTORE_TO_BE_KILLED";

pub(super) fn refusing_hooks<E: Program>() -> Outcome {
    let mut box_ = Fixture::<E>::new("refuse")?;
    box_.start()?;
    let (runtime, pid) = (box_.ours(), box_.pid()?);
    for script in [Script::PreDump, Script::NetworkLock, Script::PostDump] {
        let images = box_.images(script.as_str());
        let hooks = HookTable::new().on(
            script.clone(),
            hook_fn(async |_| Ok(Reply::Refuse("not today".into()))),
        );
        let error = match block_on(runtime.checkpoint(
            &criu(),
            &box_.id,
            &images,
            hooks,
            CheckpointOptions::new(),
        )) {
            Ok(_) => return Err(format!("checkpointed against a refusal at {script}")),
            Err(error) => error,
        };
        let is_hook = matches!(
            error.criu().map(criu_client::Error::kind),
            Some(criu_client::ErrorKind::Hook { .. })
        );
        ensure!(is_hook, "{}", whole(error));
        box_.has_status("running")?;
        ensure!(box_.pid()? == pid, "another process");
        box_.counts()?;
        let files = fs::read_dir(box_.root().join(&box_.id))
            .map_err(text)?
            .count();
        ensure!(
            files == E::FILES.len(),
            "{files} files in the container's directory"
        );
    }
    let images = box_.images("images");
    box_.checkpoint(&images)?;
    for script in [
        Script::PreRestore,
        Script::SetupNamespaces,
        Script::PostRestore,
    ] {
        let hooks = HookTable::new().on(
            script.clone(),
            hook_fn(async |_| Err("a broken hook".into())),
        );
        let options = RestoreOptions::new().detach(true);
        let error = match block_on(runtime.restore(
            &criu(),
            &box_.id,
            &images,
            box_.bundle(),
            hooks,
            options,
        )) {
            Ok(_) => return Err(format!("restored against a refusal at {script}")),
            Err(error) => error,
        };
        ensure!(error.left_behind().is_empty(), "{:?}", error.left_behind());
        box_.is_gone()?;
    }
    // The terminal's and all others come to the caller's hooks.
    let seen = std::sync::Mutex::new(Vec::new());
    let hooks = hook_fn(async |notify: criu_client::notify::Notify| {
        seen.lock()
            .map_err(|error| error.to_string())?
            .push(notify.script());
        Ok(Reply::Accept)
    });
    let options = RestoreOptions::new().detach(true);
    let restored =
        block_on(runtime.restore(&criu(), &box_.id, &images, box_.bundle(), hooks, options))
            .map_err(whole)?;
    box_.inits.push(restored.init.pid);
    let seen = seen.into_inner().map_err(text)?;
    for script in [
        Script::PreRestore,
        Script::SetupNamespaces,
        Script::PostRestore,
        Script::PostResume,
    ] {
        ensure!(seen.contains(&script), "{script} is not among {seen:?}");
    }
    box_.is_handed_over()?;
    box_.delete()
}

pub(super) fn dropped<E: Program>() -> Outcome {
    let mut box_ = Fixture::<E>::new("drop")?;
    box_.start()?;
    let pid = box_.pid()?;
    for script in [Script::NetworkLock, Script::PostDump] {
        let images = box_.images(script.as_str());
        let (runtime, criu) = (box_.ours(), criu());
        block_on(async {
            let reached = tokio::sync::Notify::new();
            let hooks = HookTable::new().on(
                script.clone(),
                hook_fn(async |_| {
                    reached.notify_one();
                    std::future::pending().await
                }),
            );
            tokio::select! {
                checkpointed = runtime.checkpoint(&criu, &box_.id, &images, hooks, CheckpointOptions::new()) => {
                    Err(format!("it ended: {checkpointed:?}"))
                }
                () = reached.notified() => Ok(()),
            }?;
            criu.settled().await;
            Ok::<(), String>(())
        })?;
        box_.has_status("running")?;
        ensure!(box_.pid()? == pid, "another process");
        box_.counts()?;
    }
    let images = box_.images("images");
    box_.checkpoint(&images)?;
    let (runtime, criu) = (box_.ours(), criu());
    for script in [
        Script::PreRestore,
        Script::PostSetupNamespaces,
        Script::PostRestore,
    ] {
        block_on(async {
            let reached = tokio::sync::Notify::new();
            let hooks = HookTable::new().on(
                script.clone(),
                hook_fn(async |_| {
                    reached.notify_one();
                    std::future::pending().await
                }),
            );
            let options = RestoreOptions::new().detach(true);
            tokio::select! {
                restored = runtime.restore(&criu, &box_.id, &images, box_.bundle(), hooks, options) => {
                    Err(format!("it ended: {restored:?}"))
                }
                () = reached.notified() => Ok(()),
            }?;
            runtime.settled().await;
            Ok::<(), String>(())
        })?;
        box_.is_gone()
            .map_err(|error| format!("dropped at {script}: {error}"))?;
    }
    box_.restore(&images)?;
    box_.delete()
}

pub(super) fn killed_restore<E: Program>() -> Outcome {
    if let Ok(place) = std::env::var(KILL_VARIABLE) {
        return be_killed::<E>(&place);
    }
    let mut box_ = Fixture::<E>::new("killed")?;
    box_.start()?;
    let images = box_.images("images");
    box_.checkpoint(&images)?;
    for script in [
        Script::PreRestore,
        Script::SetupNamespaces,
        Script::PostRestore,
    ] {
        let place = json!({
            "root": box_.root(), "id": box_.id, "images": images.path(), "bundle": box_.bundle(), "script": script,
        });
        let mut child = Command::new(std::env::current_exe().map_err(text)?)
            .arg(format!("{}: {KILLED}", E::NAME))
            .env(KILL_VARIABLE, place.to_string())
            .stdout(Stdio::null())
            .spawn()
            .map_err(text)?;
        let status = child.wait().map_err(text)?;
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        ensure!(
            signal == Some(nix::sys::signal::Signal::SIGKILL as i32),
            "at {script}: {status}"
        );
        ensure!(
            box_.has_no_mounts().is_err(),
            "at {script}: nothing was left, so nothing is tested"
        );
        // CRIU has to notice; its children come to us.
        until("criu has ended", || {
            reap_orphans();
            crate::support::workers_of(child.id()).is_empty()
        })?;
        until("the half-restored tasks are gone", || {
            reap_orphans();
            groups(&box_.id).iter().all(|group| {
                fs::read_to_string(group.join("cgroup.procs"))
                    .is_ok_and(|processes| processes.is_empty())
            })
        })?;
        box_.restore(&images)
            .map_err(|error| format!("after a death at {script}: {error}"))?;
        box_.delete()?;
    }
    Ok(())
}

/// Children that came to us from a dead process. No other child runs then.
fn reap_orphans() {
    while let Ok(status) = nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG))
    {
        if status == nix::sys::wait::WaitStatus::StillAlive {
            break;
        }
    }
}

/// The part of [`killed_restore`] in the process that is killed.
fn be_killed<E: Program>(place: &str) -> Outcome {
    let place: Value = serde_json::from_str(place).map_err(text)?;
    let text_of = |key: &str| place[key].as_str().unwrap_or_default().to_owned();
    let script = Script::from_name(&text_of("script"));
    let hooks = HookTable::new().on(
        script,
        hook_fn(async |_| {
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL)?;
            Ok(Reply::Accept)
        }),
    );
    let images = ImagesDir::open(text_of("images")).map_err(text)?;
    let runtime = Runtime::<E>::with_root(text_of("root"));
    let options = RestoreOptions::new().detach(true);
    let restored = block_on(runtime.restore(
        &criu(),
        &text_of("id"),
        &images,
        text_of("bundle"),
        hooks,
        options,
    ));
    Err(format!("not killed: {restored:?}"))
}

pub(super) fn leftover_mount<E: Program>() -> Outcome {
    let mut box_ = Fixture::<E>::new("mount")?;
    box_.start()?;
    let images = box_.images("images");
    let victim = box_.directory.path().join("victim");
    let directory = box_.root().join(&box_.id);
    // As a killed restore of runc's own leaves it.
    let point = directory.join("criu-root");
    for path in [&victim, &point] {
        fs::create_dir(path).map_err(text)?;
    }
    fs::write(victim.join("precious"), "x").map_err(text)?;
    let none = None::<&str>;
    nix::mount::mount(
        Some(&victim),
        &point,
        none,
        nix::mount::MsFlags::MS_BIND,
        none,
    )
    .map_err(text)?;
    let report =
        block_on(
            box_.ours()
                .checkpoint(&criu(), &box_.id, &images, (), CheckpointOptions::new()),
        );
    let unmounted = nix::mount::umount2(&point, nix::mount::MntFlags::MNT_DETACH);
    let left_behind = report.map_err(whole)?.left_behind;
    unmounted.map_err(text)?;
    ensure!(
        victim.join("precious").exists(),
        "what was mounted is emptied"
    );
    ensure!(
        left_behind.len() == 1 && left_behind[0].contains("criu-root"),
        "{left_behind:?}"
    );
    box_.reap();
    box_.has_status("stopped")?;
    // Unmounted, it is cleared away; but only for the restore of its own checkpoint.
    let other = box_.images("other");
    for entry in fs::read_dir(images.path()).map_err(text)?.flatten() {
        fs::copy(entry.path(), other.path().join(entry.file_name())).map_err(text)?;
    }
    let options = RestoreOptions::new().detach(true);
    let refused =
        block_on(
            box_.ours()
                .restore(&criu(), &box_.id, &other, box_.bundle(), (), options),
        );
    let error = refused
        .err()
        .ok_or("restored over the checkpoint of others")?;
    ensure!(
        matches!(error.kind(), ErrorKind::Exists { .. }),
        "{}",
        whole(error)
    );
    box_.restore(&images)?;
    box_.delete()
}

pub(super) fn left_by_criu<E: Program>() -> Outcome {
    let configuration = tempfile::NamedTempFile::new().map_err(text)?;
    fs::write(configuration.path(), "leave-running\n").map_err(text)?;
    let path = configuration.path().display().to_string();
    let mut by_file = Fixture::<E>::with("file", |config| {
        config["annotations"] = json!({"org.criu.config": path});
    })?;
    let mut by_option = Fixture::<E>::new("option")?;
    for box_ in [&mut by_file, &mut by_option] {
        box_.start()?;
    }
    let leave = DumpOptions::new().leave(Leave::Running);
    let pairs = [
        (&mut by_file, CheckpointOptions::new()),
        (&mut by_option, CheckpointOptions::new().criu(leave)),
    ];
    for (box_, options) in pairs {
        let (images, pid) = (box_.images("images"), box_.pid()?);
        let report = block_on(
            box_.ours()
                .checkpoint(&criu(), &box_.id, &images, (), options),
        )
        .map_err(whole)?;
        ensure!(
            report.left_behind.len() == 1 && report.left_behind[0].contains("leave-running"),
            "{:?}",
            report.left_behind
        );
        ensure!(box_.pid()? == pid, "another process");
        box_.is_handed_over()?;
        box_.delete()?;
    }
    Ok(())
}

pub(super) fn strangers<E: Program>() -> Outcome {
    let mut box_ = Fixture::<E>::new("exec")?;
    box_.start()?;
    let images = box_.images("images");
    let file = box_.directory.path().join("exec.pid");
    let path = file.display().to_string();
    let started = box_
        .command(&[
            "exec",
            "-d",
            "--pid-file",
            &path,
            &box_.id,
            "/bin/sleep",
            "1000",
        ])?
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    ensure!(started.map_err(text)?.success(), "exec");
    let pid: i32 = fs::read_to_string(&file)
        .map_err(text)?
        .trim()
        .parse()
        .map_err(text)?;
    for leave in [false, true] {
        let options = CheckpointOptions::new().leave_running(leave);
        let said = block_on(
            box_.ours()
                .checkpoint(&criu(), &box_.id, &images, (), options),
        )
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
        ensure!(said.contains(&format!("kill {pid}")), "{said:?}");
        box_.is_handed_over()?;
    }
    ensure!(
        fs::read_dir(images.path()).map_err(text)?.count() == 0,
        "a refusal wrote into the images directory"
    );
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).map_err(text)?;
    // Not ours to reap if it came to somebody else.
    let _ = nix::sys::wait::waitpid(pid, None);
    until("the process is gone", || {
        nix::sys::signal::kill(pid, None).is_err()
    })?;
    box_.checkpoint(&images)?;
    box_.restore(&images)?;
    box_.delete()
}

pub(super) fn older_checkpoint<E: Program>() -> Outcome {
    let mut box_ = Fixture::<E>::new("older")?;
    box_.start()?;
    let images = box_.images("images");
    let checkpoint = |hooks: HookTable<'_>, options: CheckpointOptions| {
        block_on(
            box_.ours()
                .checkpoint(&criu(), &box_.id, &images, hooks, options),
        )
    };
    let leave = || CheckpointOptions::new().leave_running(true);
    checkpoint(HookTable::new(), leave()).map_err(whole)?;
    let names = [
        "descriptors.json",
        E::SAVED_RECORD,
        "criuctl-container.json",
        E::SAVED_CONFIG,
    ];
    // So that one that is written again is another.
    for name in names {
        let path = images.path().join(name);
        let mut bytes = fs::read(&path).map_err(text)?;
        bytes.push(b'\n');
        fs::write(&path, bytes).map_err(text)?;
    }
    let read = || names.map(|name| fs::read(images.path().join(name)).unwrap_or_default());
    let before = read();
    let refusing = HookTable::new().on(
        Script::PreDump,
        hook_fn(async |_| Ok(Reply::Refuse("not today".into()))),
    );
    ensure!(
        checkpoint(refusing, CheckpointOptions::new()).is_err(),
        "not refused"
    );
    ensure!(
        read() == before,
        "a refused checkpoint has changed an older one"
    );
    ensure!(
        images.path().join("inventory.img").exists(),
        "the older one's inventory is gone"
    );
    checkpoint(HookTable::new(), leave()).map_err(whole)?;
    ensure!(
        read().iter().zip(&before).all(|(now, then)| now != then),
        "nothing was written"
    );
    box_.delete()
}

pub(super) fn missed_end<E: Program>() -> Outcome {
    let mut box_ = Fixture::<E>::new("missed")?;
    box_.start()?;
    let images = box_.images("images");
    let directory = box_.root().join(&box_.id);
    let mut files = Vec::new();
    for name in E::FILES {
        files.push((name, fs::read(directory.join(name)).map_err(text)?));
    }
    box_.checkpoint(&images)?;
    // As if this process had died right after CRIU's answer.
    fs::create_dir(&directory).map_err(text)?;
    for (name, bytes) in files {
        fs::write(directory.join(name), bytes).map_err(text)?;
    }
    box_.has_status("stopped")?;
    let options = || RestoreOptions::new().detach(true);
    let refused =
        block_on(
            box_.ours()
                .restore(&criu(), &box_.id, &images, box_.bundle(), (), options()),
        );
    let error = refused.err().ok_or("restored over a stopped container")?;
    ensure!(
        matches!(
            error.kind(),
            ErrorKind::Exists {
                status: Status::Stopped
            }
        ) && error.to_string().contains(&format!("{} delete", E::NAME)),
        "{error}"
    );
    fs::write(
        directory.join("criuctl-checkpoint"),
        images.path().display().to_string(),
    )
    .map_err(text)?;
    box_.restore(&images)?;
    box_.delete()
}
