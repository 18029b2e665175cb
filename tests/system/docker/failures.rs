//! Refused, dropped, failed: what becomes of the container, and what is left behind.

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use criu_client::ImagesDir;
use criu_client::container::docker::{CheckpointOptions, Docker, RestoreOptions};
use criu_client::container::{ApiProblem, ErrorKind};
use criu_client::notify::{HookTable, Reply, Script, hook_fn};
use nix::sys::signal::Signal;
use serde_json::json;

use super::fixture::{copy, whole, with_docker};
use crate::engines::Engine;
use crate::interposed::CRIUCTL;
use crate::support::{Outcome, Sealed, block_on, ensure, is_unlocked, text, until};

pub(super) fn refused_and_dropped() -> Outcome {
    with_docker(|yard| {
        let ground = yard.theirs.ground();
        yard.theirs.start_with(&["--network", "none"])?;
        let (pid, images) = (yard.pid()?, yard.images("images")?);
        for script in [Script::NetworkLock, Script::PostDump] {
            let hooks = HookTable::new().on(
                script.clone(),
                hook_fn(async |_| Ok(Reply::Refuse("not today".into()))),
            );
            let options = CheckpointOptions::new();
            let checkpoint = yard
                .ours
                .checkpoint(&yard.criu, yard.name(), &images, hooks, options);
            ensure!(
                block_on(checkpoint).is_err(),
                "checkpointed against a refusal"
            );
            yard.has_status("running")?;
            let hooks = HookTable::new().on(
                script.clone(),
                hook_fn(async |_| {
                    std::future::pending::<()>().await;
                    Ok(Reply::Accept)
                }),
            );
            block_on(async {
                let options = CheckpointOptions::new();
                let checkpoint =
                    yard.ours
                        .checkpoint(&yard.criu, yard.name(), &images, hooks, options);
                let limit = Duration::from_secs(2);
                let finished = tokio::time::timeout(limit, checkpoint).await;
                yard.criu.settled().await;
                finished
            })
            .map_or(Ok(()), |_| Err("it did not wait for its hook".to_owned()))?;
            yard.has_status("running")?;
            ensure!(yard.pid()? == pid, "another process");
            is_unlocked(pid)?;
            let count = ground.count().ok_or("no count")?;
            ground.goes_on_from(&count)?;
        }
        yard.is_in_dockers_hands()
    })
}

/// A Docker that does not answer while its container ends is waited for, and then it is said.
pub(super) fn late_end() -> Outcome {
    with_docker(|yard| {
        let ground = yard.theirs.ground();
        yard.theirs.start_with(&["--network", "none"])?;
        let images = yard.images("images")?;
        let daemon = &*yard.theirs;
        let hooks = HookTable::new().on(
            Script::PostDump,
            hook_fn(async |_| match daemon.signal(Signal::SIGSTOP) {
                Ok(()) => Ok(Reply::Accept),
                Err(error) => Ok(Reply::Refuse(error)),
            }),
        );
        let options = CheckpointOptions::new();
        let checkpoint = (yard.ours).checkpoint(&yard.criu, yard.name(), &images, hooks, options);
        let report = block_on(checkpoint);
        daemon.signal(Signal::SIGCONT)?;
        let report = report.map_err(whole)?;
        let said = |left: &String| left.contains("has not said within 10 seconds");
        ensure!(
            report.left_behind.iter().any(said),
            "{:?}",
            report.left_behind
        );
        until("Docker has seen the end", || {
            yard.has_status("exited").is_ok()
        })?;
        let counted = ground.stands_still()?;
        yard.restore(&images)?;
        ground.goes_on_from(&counted)
    })
}

pub(super) fn dropped_restore() -> Outcome {
    with_docker(|yard| {
        let ground = yard.theirs.ground();
        yard.theirs.start_with(&["--network", "none"])?;
        let images = yard.images("images")?;
        yard.checkpoint(&images)?;
        let counted = ground.stands_still()?;
        let checkpoints = yard.checkpoints()?;
        block_on(async {
            let options = RestoreOptions::new();
            let restore = yard.ours.restore(yard.name(), &images, options);
            let asked = async {
                while fs::read_dir(&checkpoints).map_or(0, Iterator::count) == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::select! {
                restored = restore => Err(format!("it was not dropped: {restored:?}")),
                () = asked => Ok(()),
            }?;
            yard.ours.settled().await;
            Ok::<_, String>(())
        })?;
        yard.nothing_is_left()?;
        yard.has_status("running")?;
        ground.goes_on_from(&counted)?;
        // Of two at once one is too late.
        yard.kill()?;
        let (one, other) = block_on(async {
            let restore = || {
                let options = RestoreOptions::new();
                yard.ours.restore(yard.name(), &images, options)
            };
            tokio::join!(restore(), restore())
        });
        let late = match (one, other) {
            (Ok(_), Err(error)) | (Err(error), Ok(_)) => error,
            both => return Err(format!("{both:?}")),
        };
        ensure!(late.code() == "exists", "{}", whole(late));
        yard.nothing_is_left()?;
        yard.has_status("running")?;
        // One that was only waited for too briefly is the same.
        yard.kill()?;
        let limit = Duration::from_millis(30);
        block_on(async {
            let options = RestoreOptions::new().limit(limit);
            let error = match yard.ours.restore(yard.name(), &images, options).await {
                Ok(restored) => return Err(format!("it took {:?}", restored.time)),
                Err(error) => error,
            };
            let is_limit = matches!(error.kind(), ErrorKind::Api(error) if matches!(error.problem, ApiProblem::TimedOut(of) if of == limit));
            ensure!(is_limit, "{}", whole(error));
            yard.ours.settled().await;
            Ok(())
        })?;
        yard.has_status("running")?;
        ground.counts()
    })
}

/// Docker goes on when whoever asked it is killed.
pub(super) fn killed_restore() -> Outcome {
    with_docker(|yard| {
        let ground = yard.theirs.ground();
        yard.theirs.start_with(&["--network", "none"])?;
        let images = yard.images("images")?;
        yard.checkpoint(&images)?;
        let counted = ground.stands_still()?;
        let checkpoints = yard.checkpoints()?;
        let staged = || {
            let names = fs::read_dir(&checkpoints).into_iter().flatten().flatten();
            names.count()
        };
        let mut asking = Command::new(CRIUCTL)
            .args(["restore", &format!("docker:{}", yard.name()), "-D"])
            .arg(images.path())
            .env(
                "DOCKER_HOST",
                format!("unix://{}", yard.theirs.socket().display()),
            )
            .stdout(Stdio::null())
            .spawn()
            .map_err(text)?;
        until("Docker is asked", || staged() == 1)?;
        asking.kill().and_then(|()| asking.wait()).map_err(text)?;
        // Docker may have been asked, or not yet.
        let deadline = Instant::now() + Duration::from_secs(3);
        while yard.has_status("running").is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        ensure!(staged() == 1, "somebody else has removed the links");
        if yard.has_status("running").is_ok() {
            ground.goes_on_from(&counted)?;
            yard.kill()?;
        }
        yard.restore(&images)?;
        ensure!(staged() == 0, "links were left");
        yard.is_in_dockers_hands()?;
        ground.counts()
    })
}

pub(super) fn failed_restore() -> Outcome {
    with_docker(|yard| {
        let ground = yard.theirs.ground();
        yard.theirs.start_with(&["--network", "none"])?;
        let images = yard.images("images")?;
        yard.checkpoint(&images)?;
        let counted = ground.stands_still()?;
        let (path, hidden) = (images.path().join("core-1.img"), ground.path("core-1.img"));
        fs::rename(&path, &hidden).map_err(text)?;
        let error = yard.not_restored(&images)?;
        ensure!(error.left_behind().is_empty(), "{:?}", error.left_behind());
        let diagnosis = error
            .findings()
            .and_then(|findings| findings.diagnosis.as_ref());
        ensure!(
            diagnosis.is_some_and(|diagnosis| diagnosis.code == "image-missing"),
            "{}",
            whole(error)
        );
        yard.nothing_is_left()?;
        yard.has_status("exited")?;
        fs::rename(&hidden, &path).map_err(text)?;
        yard.restore(&images)?;
        ground.goes_on_from(&counted)
    })
}

/// A volume in memory.
const MEMORY: &str = "type=volume,target=/memory,volume-opt=type=tmpfs,volume-opt=device=tmpfs";

pub(super) fn refusals() -> Outcome {
    with_docker(|yard| {
        let ground = yard.theirs.ground();
        let is = |error: criu_client::container::Error, code: &str, words: &str| {
            ensure!(
                error.code() == code && error.to_string().contains(words),
                "{}, not {code} with {words:?}: {}",
                error.code(),
                whole(error)
            );
            Ok(())
        };
        is(yard.not_checkpointed("none-such")?, "unknown", "docker ps")?;
        is(yard.not_checkpointed("../x")?, "invalid-id", "letters")?;
        // Of seventeen ids two begin alike.
        let mut ids = Vec::new();
        for _ in 0..17 {
            let id =
                yard.theirs
                    .docker(&["create", "--network", "none", "counter", "/bin/true"])?;
            ids.push(id.trim().to_owned());
        }
        let first = |id: &String| id.chars().next().unwrap_or_default().to_string();
        ids.sort();
        let twice = ids
            .iter()
            .zip(ids.iter().skip(1))
            .find(|(one, other)| first(one) == first(other));
        let (twice, _) = twice.ok_or("no two begin alike")?;
        is(yard.not_checkpointed(&first(twice))?, "ambiguous", twice)?;
        is(yard.not_checkpointed(twice)?, "not-running", "docker start")?;
        for id in &ids {
            yard.theirs.docker(&["rm", id])?;
        }
        // What Docker would do by itself.
        let linked = ground.path("linked");
        std::os::unix::fs::symlink(ground.path("data"), &linked).map_err(text)?;
        let link = format!("{}:/linked", linked.display());
        for (options, code, words) in [
            (&["--rm"][..], "policy", "--rm"),
            (&["--restart", "on-failure"], "policy", "--restart no"),
            (&["--volume", &link], "unsupported", "is a symbolic link"),
            (&["--mount", MEMORY], "unsupported", "the volume at /memory"),
        ] {
            yard.theirs
                .start_with(&[&["--network", "none"], options].concat())?;
            let write = "[ ! -d /memory ] || echo >/memory/kept";
            yard.theirs
                .docker(&["exec", yard.name(), "/bin/sh", "-c", write])?;
            is(yard.not_checkpointed(yard.name())?, code, words)?;
            yard.has_status("running")?;
            if code == "policy" {
                let listed = block_on(yard.ours.list()).map_err(whole)?;
                let told = |why: &str| why.starts_with("only with --leave-running");
                ensure!(
                    listed
                        .iter()
                        .any(|one| one.obstacle.as_deref().is_some_and(told)),
                    "{listed:?}"
                );
            }
            let options = CheckpointOptions::new().leave_running(true);
            yard.checkpoint_with(&yard.images("left")?, options)?;
            yard.has_status("running")?;
            yard.remove()?;
            fs::remove_dir_all(ground.path("left")).map_err(text)?;
        }
        yard.theirs.start_with(&["--network", "none"])?;
        let sealed = Sealed::directory(&ground.path("sealed"))?;
        let error = yard.not_checkpointed_into(yard.name(), &sealed.images()?)?;
        ensure!(
            whole(error).contains("Read-only file system"),
            "a directory that cannot be written to"
        );
        drop(sealed);
        yard.has_status("running")?;
        ground.counts()?;
        let empty = yard.images("empty")?;
        is(yard.not_restored(&empty)?, "exists", "docker stop")?;
        let images = yard.images("images")?;
        yard.checkpoint(&images)?;
        is(
            yard.not_checkpointed(yard.name())?,
            "not-running",
            "docker start",
        )?;
        is(yard.not_restored(&empty)?, "images", "inventory.img")?;
        // Images of somebody else.
        let other = ground.path("other");
        copy(images.path(), &other)?;
        let note = other.join("criuctl-container.json");
        let mut asked: serde_json::Value =
            serde_json::from_slice(&fs::read(&note).map_err(text)?).map_err(text)?;
        ensure!(asked["engine"] == "docker", "{}", asked["engine"]);
        asked["id"] = json!("0123456789ab");
        fs::write(&note, asked.to_string()).map_err(text)?;
        let other = ImagesDir::open(&other).map_err(text)?;
        is(yard.not_restored(&other)?, "images", "docker:0123456789ab")?;
        yard.has_status("exited")?;
        let counted = ground.stands_still()?;
        yard.restore(&images)?;
        ground.goes_on_from(&counted)
    })
}

pub(super) fn nobody_there() -> Outcome {
    let directory = tempfile::tempdir().map_err(text)?;
    let socket = directory.path().join("socket");
    let docker = Docker::with_socket(&socket);
    let problem = |what: &str| match block_on(docker.load("x")) {
        Ok(container) => Err(format!("{what}: {container:?}")),
        Err(error) => match error.kind() {
            ErrorKind::Api(error) => Ok(format!("{:?}", error.problem)),
            _ => Err(whole(error)),
        },
    };
    ensure!(problem("nothing")? == "Absent", "{}", problem("nothing")?);
    let listener = UnixListener::bind(&socket).map_err(text)?;
    // Whoever hangs up has not answered.
    let accepting = std::thread::spawn(move || {
        for _ in 0..1 {
            let _ = listener.accept();
        }
    });
    let hung_up = problem("hung up")?;
    ensure!(hung_up.starts_with("Broken"), "{hung_up}");
    accepting.join().map_err(|_| "it panicked")?;
    until("nobody listens", || {
        problem("nobody").is_ok_and(|problem| problem == "Refused")
    })?;
    Ok(())
}
