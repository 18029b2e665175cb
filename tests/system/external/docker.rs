//! Docker's containers.

use std::fs;
use std::process::Command;

use criu_client::ImagesDir;
use criu_client::container::docker::{Docker as Ours, RestoreOptions as OfDocker};
use criu_client::container::{EngineKind, Status};
use criu_client::rootfs::{Origin, Rootfs};
use serde_json::Value;

use super::yard::{Yard, whole, with_docker};
use crate::engines::{COUNTER, Engine};
use crate::interposed::CRIUCTL;
use crate::support::{Outcome, block_on, ensure, text, until};

pub(super) fn there_and_back() -> Outcome {
    with_docker(
        "overlay2",
        |_| Ok(()),
        |yard| {
            let ground = yard.theirs.ground();
            let number = std::process::id() % 250;
            let network = format!("{}-net", yard.name());
            let bridge = format!("com.docker.network.bridge.name=criux{number}");
            let subnet = format!("10.231.{number}.0/24");
            yard.theirs.docker(&[
                "network", "create", "--driver", "bridge", "--opt", &bridge, "--subnet", &subnet,
                &network,
            ])?;
            let options = [
                "--network",
                &network,
                "--volume",
                "kept:/kept",
                "--tmpfs",
                "/tmpfs:size=1m",
                // Docker mounts it, and takes it down with the container.
                "--ipc",
                "shareable",
                "--memory",
                "64m",
            ];
            yard.theirs.run_container(&options, &COUNTER)?;
            ground.counts()?;
            let places = ["/tmpfs/word", "/dev/shm/word", "/kept/word", "/word"];
            for path in places {
                let write = format!("echo {path} >{path}");
                yard.theirs
                    .docker(&["exec", yard.name(), "/bin/sh", "-c", &write])?;
            }
            let images = yard.images("images")?;
            for round in 0..2 {
                let done = yard.checkpoint(&images)?;
                ensure!(done.was_external == (round > 0), "round {round}: {done:?}");
                yard.nothing_is_kept()?;
                let counted = ground.stands_still()?;
                let restored = yard.restore(&images)?;
                ensure!(
                    restored.left_behind.is_empty(),
                    "{:?}",
                    restored.left_behind
                );
                ensure!(
                    restored.rootfs_by == [Origin::Engine, Origin::Images],
                    "{:?}",
                    restored.rootfs_by
                );
                ground.goes_on_from(&counted)?;
                yard.has_status("exited")?;
                let entry = yard.entry()?;
                ensure!(
                    entry.status == Status::Running
                        && entry.engine == Some(EngineKind::Docker)
                        && entry.init == Some(restored.init),
                    "{entry:?}"
                );
                for path in places {
                    let found = yard.exec(&restored, &["/bin/cat", path])?;
                    ensure!(found == format!("{path}\n"), "{path}: {found:?}");
                }
                // Docker's own file, without the address that is not the container's any more.
                let hosts = yard.exec(&restored, &["/bin/cat", "/etc/hosts"])?;
                ensure!(hosts.contains("localhost"), "{hosts}");
                let lo = yard.exec(&restored, &["/bin/ip", "addr", "show", "lo"])?;
                ensure!(lo.contains("127.0.0.1"), "{lo}");
                // The root file system is the container's own now, and its limit is there again.
                let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(text)?;
                let merged: Vec<_> = mounts
                    .lines()
                    .filter(|line| line.contains("/merged ") || line.contains("/external/"))
                    .filter(|line| line.contains(&ground.text("")))
                    .collect();
                ensure!(merged.is_empty(), "{merged:?}");
                let group = format!(
                    "/sys/fs/cgroup/memory/{}/{}/memory.limit_in_bytes",
                    ground.id, restored.id
                );
                let limit =
                    fs::read_to_string(&group).map_err(|error| format!("{group}: {error}"))?;
                ensure!(limit.trim() == "67108864", "{limit}");
            }
            yard.end()?;
            yard.theirs.docker(&["rm", "--force", yard.name()])?;
            yard.theirs.docker(&["network", "rm", &network])?;
            yard.theirs.docker(&["volume", "rm", "kept"])?;
            Ok(())
        },
    )
}

pub(super) fn vfs() -> Outcome {
    with_docker("vfs", |_| Ok(()), |yard| in_a_directory(yard, "vfs/dir"))
}

pub(super) fn btrfs() -> Outcome {
    let prepare = |ground: &crate::engines::Ground| {
        let (image, at) = (ground.path("btrfs.img"), ground.path("data-root"));
        fs::File::create(&image)
            .and_then(|file| file.set_len(256 << 20))
            .map_err(text)?;
        fs::create_dir(&at).map_err(text)?;
        for (program, arguments) in [
            ("mkfs.btrfs", vec!["--quiet".into(), image.clone()]),
            ("mount", vec!["--options".into(), "loop".into(), image, at]),
        ] {
            let silent = std::process::Stdio::null;
            let status = Command::new(program)
                .args(arguments)
                .stdout(silent())
                .stderr(silent())
                .status();
            let status =
                status.map_err(|error| format!("{program}: {error}; run scripts/install"))?;
            ensure!(status.success(), "{program}: {status}");
        }
        Ok(())
    };
    with_docker("btrfs", prepare, |yard| {
        in_a_directory(yard, "btrfs/subvolumes")
    })
}

/// With drivers that mount nothing.
fn in_a_directory(yard: &Yard<'_>, below: &str) -> Outcome {
    let ground = yard.theirs.ground();
    yard.theirs.start_with(&["--network", "none"])?;
    yard.theirs
        .docker(&["exec", yard.name(), "/bin/sh", "-c", "echo mine >/word"])?;
    let images = yard.images("images")?;
    for _ in 0..2 {
        yard.checkpoint(&images)?;
        let counted = ground.stands_still()?;
        let restored = yard.restore(&images)?;
        let Rootfs::Directory(path) = &restored.rootfs else {
            return Err(format!("{:?}", restored.rootfs));
        };
        ensure!(
            path.starts_with(ground.path("data-root").join(below)),
            "{path:?}"
        );
        ground.goes_on_from(&counted)?;
        ensure!(
            yard.exec(&restored, &["/bin/cat", "/word"])? == "mine\n",
            "another root"
        );
    }
    yard.end()
}

pub(super) fn interchange() -> Outcome {
    with_docker(
        "overlay2",
        |_| Ok(()),
        |yard| {
            let ground = yard.theirs.ground();
            yard.theirs
                .run_container(&["--network", "none", "--pids-limit", "50"], &COUNTER)?;
            ground.counts()?;
            // Docker's own, beside whose images there is no configuration, then external.
            yard.theirs
                .docker(&["checkpoint", "create", yard.name(), "theirs"])?;
            until("Docker has seen the end", || {
                yard.has_status("exited").is_ok()
            })?;
            let counted = ground.stands_still()?;
            let id = yard.theirs.status()?.record["Id"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            let theirs = ground.path(&format!("data-root/containers/{id}/checkpoints/theirs"));
            let restored = yard.restore(&ImagesDir::open(theirs).map_err(text)?)?;
            ground.goes_on_from(&counted)?;
            let group = format!("/sys/fs/cgroup/pids/{}/{id}/pids.max", ground.id);
            let limit = fs::read_to_string(&group).map_err(|error| format!("{group}: {error}"))?;
            ensure!(limit.trim() == "50", "{limit}");
            let devices = format!("/sys/fs/cgroup/devices/{}/{id}/devices.list", ground.id);
            let devices = fs::read_to_string(devices).map_err(text)?;
            ensure!(
                !devices.contains("a *:* rwm"),
                "every device is allowed: {devices}"
            );
            let keys = yard.exec(&restored, &["/bin/cat", "/proc/keys"])?;
            ensure!(keys.is_empty(), "a masked file shows {keys:?}");
            yard.end()?;
            // External, then Docker's own. It counts anew.
            yard.theirs.docker(&["start", yard.name()])?;
            until("it counts anew", || {
                ground.count().is_some_and(|now| !now.is_of(&counted))
            })?;
            let images = yard.images("images")?;
            yard.checkpoint(&images)?;
            let counted = ground.stands_still()?;
            let docker = Ours::with_socket(yard.theirs.socket());
            block_on(docker.restore(yard.name(), &images, OfDocker::new())).map_err(whole)?;
            ground.goes_on_from(&counted)?;
            yard.has_status("running")
        },
    )
}

/// As the script was called, with its environment.
pub(super) fn command_line() -> Outcome {
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
            let criuctl = |status: i32, arguments: &[&str]| -> Result<(String, String), String> {
                let output = Command::new(CRIUCTL)
                    .args(arguments)
                    .env(
                        "DOCKER_HOST",
                        format!("unix://{}", yard.theirs.socket().display()),
                    )
                    .env("DOCKER_HOME", ground.path("data-root"))
                    .env("DOCKER_BINARY", "docker")
                    .stdin(std::process::Stdio::null())
                    .output()
                    .map_err(text)?;
                let told = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let (stdout, stderr) = (told(&output.stdout), told(&output.stderr));
                ensure!(
                    output.status.code() == Some(status),
                    "criuctl {arguments:?}: {}: {stdout}{stderr}",
                    output.status
                );
                Ok((stdout, stderr))
            };
            let short = id.get(..12).unwrap_or_default().to_owned();
            let (said, warned) = criuctl(0, &["external", "-c", &short])?;
            ensure!(said.starts_with("dump successful: "), "{said}");
            ensure!(
                warned.contains("DOCKER_BINARY is not used any more"),
                "{warned}"
            );
            ensure!(warned.contains("calls it exited"), "{warned}");
            let images = ground.path("data-root/criu_img").join(&id);
            let mode = std::os::unix::fs::PermissionsExt::mode(
                &fs::metadata(&images).map_err(text)?.permissions(),
            );
            ensure!(mode & 0o777 == 0o700, "{mode:o}");
            let counted = ground.stands_still()?;
            let (said, _) = criuctl(0, &["external", "-r", "-v", yard.name()])?;
            ensure!(said.starts_with("restore successful: "), "{said}");
            ensure!(said.contains("  a lower layer: "), "{said}");
            ground.goes_on_from(&counted)?;
            let (_, refused) = criuctl(
                1,
                &[
                    "restore",
                    &format!("docker:{short}"),
                    "-D",
                    &images.display().to_string(),
                ],
            )?;
            ensure!(refused.contains("restored without its engine"), "{refused}");
            criuctl(1, &["external", "cleanup", &short])?;
            criuctl(2, &["external", "-c", "-r", &short])?;
            criuctl(2, &["external", &short])?;
            let (_, asked) = criuctl(2, &["external", "-c"])?;
            ensure!(asked.contains("there is no terminal"), "{asked}");
            let (json, _) = criuctl(0, &["--format", "json", "external", "checkpoint", &short])?;
            let json: Value = serde_json::from_str(&json).map_err(text)?;
            ensure!(
                json["kind"] == "ExternalCheckpoint" && json["wasExternal"] == true,
                "{json}"
            );
            let (json, _) = criuctl(0, &["--format", "json", "external", "restore", &short])?;
            let json: Value = serde_json::from_str(&json).map_err(text)?;
            ensure!(
                json["kind"] == "ExternalRestore" && json["id"] == id.as_str(),
                "{json}"
            );
            let pid = json["init"]["pid"].as_i64().ok_or("no pid")?;
            let (_, other) = criuctl(2, &["external", "checkpoint", &short, "--pid", "1"])?;
            ensure!(other.contains("is not the first process"), "{other}");
            criuctl(0, &["external", "checkpoint", "--pid", &pid.to_string()])?;
            let (json, _) = criuctl(0, &["--format", "json", "external", "list"])?;
            let json: Value = serde_json::from_str(&json).map_err(text)?;
            let listed = json["containers"].as_array().ok_or("no list")?;
            ensure!(listed.iter().all(|one| one["id"] != id.as_str()), "{json}");
            Ok(())
        },
    )
}
