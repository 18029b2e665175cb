//! Refused, dropped, killed: what is left behind.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use criu_client::ImagesDir;
use criu_client::container::external::{ExternalCheckpoint, Network, RestoreOptions};
use criu_client::container::runtime::CheckpointOptions;
use criu_client::notify::{HookTable, Reply, Script, hook_fn};

use super::yard::{Yard, whole, with_docker};
use crate::engines::Engine;
use crate::interposed::CRIUCTL;
use crate::support::{Outcome, block_on, ensure, reap_orphans, text, until};

fn groups_are_gone(yard: &Yard<'_>) -> Outcome {
    let groups = yard.theirs.ground().traces().groups_of_processes();
    ensure!(groups.is_empty(), "{groups:?}");
    Ok(())
}

pub(super) fn undone() -> Outcome {
    with_docker(
        "overlay2",
        |_| Ok(()),
        |yard| {
            let ground = yard.theirs.ground();
            yard.theirs.start_with(&["--network", "none"])?;
            let images = yard.images("images")?;
            // A checkpoint that is refused leaves everything as it was.
            let refuse = || hook_fn(async |_| Ok(Reply::Refuse("not today".into())));
            let hooks = HookTable::new().on(Script::PostDump, refuse());
            let options = ExternalCheckpoint::new(CheckpointOptions::new()).keep_network(true);
            let whose = yard.whose();
            let work =
                yard.external
                    .checkpoint(&whose, &yard.criu, yard.name(), &images, hooks, options);
            ensure!(block_on(work).is_err(), "checkpointed against a refusal");
            yard.has_status("running")?;
            yard.nothing_is_kept()?;
            let count = ground.count().ok_or("no count")?;
            ground.goes_on_from(&count)?;

            yard.checkpoint(&images)?;
            let counted = ground.stands_still()?;
            for script in [
                Script::PreRestore,
                Script::SetupNamespaces,
                Script::PostRestore,
            ] {
                let hooks = HookTable::new().on(script.clone(), refuse());
                let options = RestoreOptions::new();
                let work =
                    yard.external
                        .restore(&whose, &yard.criu, yard.name(), &images, hooks, options);
                match block_on(work) {
                    Ok(restored) => {
                        return Err(format!(
                            "restored against a refusal at {script}: {restored:?}"
                        ));
                    }
                    Err(error) => ensure!(error.left_behind().is_empty(), "{}", whole(error)),
                }
                yard.nothing_is_kept()?;
                groups_are_gone(yard)?;

                let waits = hook_fn(async |_| {
                    std::future::pending::<()>().await;
                    Ok(Reply::Accept)
                });
                let hooks = HookTable::new().on(script.clone(), waits);
                block_on(async {
                    let options = RestoreOptions::new();
                    let work = yard.external.restore(
                        &whose,
                        &yard.criu,
                        yard.name(),
                        &images,
                        hooks,
                        options,
                    );
                    let finished = tokio::time::timeout(Duration::from_secs(1), work).await;
                    yard.criu.settled().await;
                    yard.external.settled().await;
                    finished.map_or(Ok(()), |done| Err(format!("at {script}: {done:?}")))
                })?;
                yard.nothing_is_kept()?;
                groups_are_gone(yard)?;
            }
            yard.restore(&images)?;
            ground.goes_on_from(&counted)?;
            yard.end()
        },
    )
}

/// Our program is killed with the root mounted, at several moments.
pub(super) fn killed() -> Outcome {
    with_docker(
        "overlay2",
        |_| Ok(()),
        |yard| {
            let ground = yard.theirs.ground();
            yard.theirs.start_with(&["--network", "none"])?;
            let id = yard.theirs.status()?.record["Id"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            let images = ground.text("images");
            let command = |verb: &str| {
                let mut command = Command::new(CRIUCTL);
                command
                    .args(["external", verb, &format!("docker:{id}"), "-D", &images])
                    .env(
                        "DOCKER_HOST",
                        format!("unix://{}", yard.theirs.socket().display()),
                    )
                    .stdin(Stdio::null());
                command
            };
            let run = |verb: &str| -> Outcome {
                let output = command(verb).output().map_err(text)?;
                ensure!(
                    output.status.success(),
                    "{verb}: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
                Ok(())
            };
            run("checkpoint")?;
            let counted = ground.stands_still()?;
            let root = format!("/run/criu-client/external/containers/{id}/root ");
            let is_mounted = || {
                let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
                mounts.contains(&root)
            };
            let mut restored = 0;
            for wait in [0, 40, 80] {
                let mut program = command("restore")
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .map_err(text)?;
                let deadline = Instant::now() + crate::support::PATIENCE;
                while !is_mounted() && Instant::now() < deadline {
                    if program.try_wait().map_err(text)?.is_some() {
                        return Err("it has ended before it was killed".into());
                    }
                }
                std::thread::sleep(Duration::from_millis(wait));
                let _ = program.kill();
                let _ = program.wait();
                // What CRIU was doing ends with its client, and half-restored tasks with the next restore.
                let output = command("restore").output().map_err(text)?;
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                match output.status.success() {
                    true => restored += 1,
                    // It was killed too late to stop anything.
                    false => ensure!(said.contains("runs as process"), "{said}"),
                }
                ensure!(!is_mounted(), "the root is still mounted");
                until("it counts on", || {
                    ground
                        .count()
                        .is_some_and(|now| now.is_of(&counted) && now != counted)
                })?;
                run("checkpoint")?;
                reap_orphans();
            }
            ensure!(restored > 0, "no restore was killed in its middle");
            Ok(())
        },
    )
}

pub(super) fn refusals() -> Outcome {
    with_docker(
        "overlay2",
        |_| Ok(()),
        |yard| {
            let ground = yard.theirs.ground();
            yard.theirs.start_with(&["--network", "none"])?;
            let images = yard.images("images")?;
            let refused = |options: RestoreOptions, code: &str, words: &str| -> Outcome {
                match yard.try_restore(&images, options) {
                    Ok(restored) => Err(format!(
                        "restored {restored:?}, where {words:?} was to be said"
                    )),
                    Err(error) => {
                        ensure!(
                            error.code() == code && error.to_string().contains(words),
                            "no {code:?} with {words:?}: {}",
                            whole(error)
                        );
                        yard.nothing_is_kept()
                    }
                }
            };
            refused(RestoreOptions::new(), "exists", "is running")?;
            yard.checkpoint(&images)?;
            let keep = || RestoreOptions::new().network(Network::Keep);
            refused(keep(), "option", "the checkpoint has not kept it")?;
            let join = Network::Join("/dev/null".into());
            refused(
                RestoreOptions::new().network(join),
                "option",
                "is no network namespace",
            )?;

            // Half written.
            let (inventory, aside) = (ground.path("images/inventory.img"), ground.path("aside"));
            fs::rename(&inventory, &aside).map_err(text)?;
            refused(RestoreOptions::new(), "images", "no complete checkpoint")?;
            fs::rename(&aside, &inventory).map_err(text)?;

            // A layer is missing.
            let record = yard.theirs.status()?.record;
            let lower = record["GraphDriver"]["Data"]["LowerDir"]
                .as_str()
                .unwrap_or_default();
            let layer = lower.rsplit(':').next().unwrap_or_default().to_owned();
            // Where it is, as Docker may have given it a quota.
            let moved = format!("{layer}-aside");
            fs::rename(&layer, &moved).map_err(text)?;
            refused(
                RestoreOptions::new(),
                "rootfs",
                "a lower layer of the root file system, is not there",
            )?;
            fs::rename(&moved, &layer).map_err(text)?;

            // Other layers than at the checkpoint.
            let note = ground.path("images/criuctl-external.json");
            let right = fs::read_to_string(&note).map_err(text)?;
            let upper = record["GraphDriver"]["Data"]["UpperDir"]
                .as_str()
                .unwrap_or_default();
            let wrong = right.replace(upper, &ground.text("data"));
            ensure!(wrong != right, "{right} without {upper}");
            fs::write(&note, wrong).map_err(text)?;
            refused(
                RestoreOptions::new(),
                "rootfs",
                "has changed since the checkpoint: the upper layer is",
            )?;
            fs::write(&note, &right).map_err(text)?;

            // Of another container.
            let id = record["Id"].as_str().unwrap_or_default();
            fs::write(&note, right.replace(id, "another")).map_err(text)?;
            refused(
                RestoreOptions::new(),
                "images",
                "images of another container",
            )?;
            fs::write(&note, &right).map_err(text)?;

            // Somebody has it mounted elsewhere.
            let at = ground.path("elsewhere");
            fs::create_dir(&at).map_err(text)?;
            let work = record["GraphDriver"]["Data"]["WorkDir"]
                .as_str()
                .unwrap_or_default();
            let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
            nix::mount::mount(
                Some("overlay"),
                &at,
                Some("overlay"),
                nix::mount::MsFlags::empty(),
                Some(options.as_str()),
            )
            .map_err(text)?;
            let in_use = refused(
                RestoreOptions::new(),
                "rootfs",
                "is in use: it is mounted at",
            );
            nix::mount::umount2(&at, nix::mount::MntFlags::empty()).map_err(text)?;
            in_use?;

            // And then it works all the same.
            yard.restore(&images)?;
            match yard.try_restore(&images, RestoreOptions::new()) {
                Err(error) if error.code() == "runs-externally" => {}
                other => return Err(format!("{other:?}")),
            }
            let other = ImagesDir::create(ground.path("other")).map_err(text)?;
            drop(other);
            yard.end()
        },
    )
}
