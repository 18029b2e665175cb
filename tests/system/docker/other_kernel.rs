//! What needs a kernel that tracks memory, other users, or Docker as it is on an ordinary host: for a machine of
//! `scripts/vm --host`.

use std::fs;

use criu_client::ImagesDir;
use criu_client::container::docker::CheckpointOptions;
use criu_client::options::PreDumpOptions;

use super::fixture::{whole, with_docker};
use super::journeys::{confinement, connected, echoes, row};
use crate::engines::Engine;
use crate::support::{Outcome, Tests, block_on, ensure, free_port, named, text, until};
use crate::vm::chain::{Links, Rounds};

pub(super) fn tests() -> Tests {
    named(
        "host/docker: ",
        &[
            ("two pre-dumps and a checkpoint", chain),
            (
                "what Docker itself fails to restore is restored",
                restored_against_odds,
            ),
            ("AppArmor confines it as before", confined),
            ("another user", other_user),
            (
                "a published port and an established connection",
                published_port,
            ),
        ],
    )
}

fn chain() -> Outcome {
    with_docker(|yard| {
        let (rounds, options) = Rounds::in_container(yard.theirs.ground())?;
        let mut all = vec!["--network", "none"];
        all.extend(options.iter().map(String::as_str));
        let command = Rounds::command();
        let command: Vec<_> = command.iter().map(String::as_str).collect();
        yard.theirs.run_container(&all, &command)?;
        let mut links = Links::default();
        let [first, second, third] = ["first", "second", "third"].map(|name| yard.images(name));
        let pid = yard.pid()?;
        for (round, (images, parent)) in [(&first?, None), (&second?, Some("../first"))]
            .into_iter()
            .enumerate()
        {
            rounds.begin(round)?;
            let mut options = PreDumpOptions::new();
            if let Some(parent) = parent {
                options = options.parent_images(parent);
            }
            let pre_dump = yard.ours.pre_dump(&yard.criu, yard.name(), images, options);
            let report = block_on(pre_dump).map_err(whole)?;
            links.add(report.stats.ok_or("no statistics")?.pages_written)?;
            yard.has_status("running")?;
            ensure!(yard.pid()? == pid, "another process");
        }
        rounds.begin(2)?;
        let third = third?;
        let options = CheckpointOptions::new().parent_path("../second");
        let checkpoint = yard
            .ours
            .checkpoint(&yard.criu, yard.name(), &third, (), options);
        let report = block_on(checkpoint).map_err(whole)?;
        links.add(report.dump.stats.ok_or("no statistics")?.pages_written)?;
        yard.restore(&third)?;
        yard.is_in_dockers_hands()?;
        rounds.is_well()
    })
}

/// Docker's `start --checkpoint` may find what containerd still has of the very checkpoint, and give up ("already exists").
fn restored_against_odds() -> Outcome {
    with_docker(|yard| {
        let ground = yard.theirs.ground();
        yard.theirs.start_with(&["--network", "none"])?;
        yard.theirs
            .docker(&["checkpoint", "create", yard.name(), "theirs"])?;
        until("Docker has seen the end", || {
            yard.has_status("exited").is_ok()
        })?;
        let counted = ground.stands_still()?;
        let start = ["start", "--checkpoint", "theirs", yard.name()];
        match yard.theirs.docker(&start) {
            Ok(_) => yard.kill()?,
            Err(refusal) => {
                ensure!(refusal.contains("already exists"), "{refusal}");
                ensure!(ground.stands_still()? == counted, "it went on");
            }
        }
        let theirs = ImagesDir::open(yard.checkpoints()?.join("theirs")).map_err(text)?;
        for _ in 0..2 {
            yard.restore(&theirs)?;
            yard.is_in_dockers_hands()?;
            until("the count of the images goes on", || {
                ground
                    .count()
                    .is_some_and(|now| now.is_within(&counted, 500))
            })?;
            yard.kill()?;
        }
        Ok(())
    })
}

/// By docker-default, unless the user asks for none.
fn confined() -> Outcome {
    with_docker(|yard| {
        for (options, by_docker) in [
            (&["--network", "none"][..], true),
            (
                &["--network", "none", "--security-opt", "apparmor=unconfined"],
                false,
            ),
        ] {
            yard.theirs.start_with(options)?;
            let profile = || -> Result<String, String> {
                let profile = confinement(yard.pid()?)?.ok_or("there is no AppArmor")?;
                Ok(profile.trim_end().to_owned())
            };
            let before = profile()?;
            ensure!(
                (before == "docker-default (enforce)") == by_docker,
                "it is confined by {before}"
            );
            let images = yard.images("images")?;
            yard.checkpoint(&images)?;
            yard.restore(&images)?;
            let now = profile()?;
            // What was unconfined comes back under the profile of runc, which restores it and confines nothing.
            let is_free = |profile: &str| ["unconfined", "runc (unconfined)"].contains(&profile);
            ensure!(
                now == before || is_free(&now) && is_free(&before),
                "{before} became {now}"
            );
            yard.remove()?;
        }
        Ok(())
    })
}

fn other_user() -> Outcome {
    with_docker(|yard| row(yard, &["--network", "none", "--user", "1000:1000"]))
}

/// What runc is to ask CRIU for in restores of Docker's, its own configuration file says. The connection is one to the
/// container's own address: when a container ends, Docker has the kernel forget whose published ports were whose.
fn published_port() -> Outcome {
    const CONFIGURATION: &str = "/etc/criu/runc.conf";
    with_docker(|yard| {
        fs::create_dir_all("/etc/criu").map_err(text)?;
        fs::write(CONFIGURATION, "tcp-established\n").map_err(text)?;
        let port = free_port();
        let publish = format!("{port}:7007");
        // Says back what any number of connections tell it.
        let echo = [
            "/bin/busybox",
            "nc",
            "-ll",
            "-p",
            "7007",
            "-e",
            "/bin/busybox",
            "cat",
        ];
        yard.theirs.run_container(&["--publish", &publish], &echo)?;
        let record = yard.theirs.status()?.record;
        let address = |key: &str| {
            let address = record["NetworkSettings"][key].as_str();
            address.ok_or("no address")?.parse().map_err(text)
        };
        // The host's own on the bridge, which no proxy of Docker's serves.
        let (own, gateway) = (address("IPAddress")?, address("Gateway")?);
        let mut stream = connected(own, 7007)?;
        echoes(&mut stream, b"before")?;
        echoes(&mut connected(gateway, port)?, b"published")?;
        let images = yard.images("images")?;
        let options = CheckpointOptions::new().tcp_established(true);
        yard.checkpoint_with(&images, options)?;
        yard.restore(&images)?;
        echoes(&mut stream, b"after")?;
        echoes(&mut connected(gateway, port)?, b"published")?;
        fs::remove_file(CONFIGURATION).map_err(text)
    })
}
