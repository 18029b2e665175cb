//! There and back.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use criu_client::ImagesDir;
use criu_client::container::docker::CheckpointOptions;
use criu_client::container::{EngineKind, Status};
use serde_json::Value;

use super::fixture::{Yard, copy, whole, with_docker, with_docker_in};
use crate::engines::Engine;
use crate::interposed::{CRIUCTL, Stage};
use crate::support::{Outcome, PATIENCE, Tests, block_on, ensure, text, until};

/// Says numbers, one after the other.
const SAYS: [&str; 3] = [
    "/bin/sh",
    "-c",
    "i=0; while :; do i=$((i+1)); echo said $i; sleep 0.02; done",
];

pub(super) fn there_and_back() -> Outcome {
    with_docker(|yard| {
        let ground = yard.theirs.ground();
        yard.theirs.start_with(&["--network", "none"])?;
        let (id, pid) = (yard.id()?, yard.pid()?);
        let listed = block_on(yard.ours.list()).map_err(whole)?;
        let [one] = &listed[..] else {
            return Err(format!("{listed:?}"));
        };
        ensure!(
            one.engine == EngineKind::Docker
                && (&one.id, one.name.as_deref()) == (&id, Some(yard.name()))
                && (one.pid, one.status, &one.obstacle)
                    == (Some(pid), Some(Status::Running), &None),
            "{one:?}"
        );
        let images = yard.images("images")?;
        yard.checkpoint(&images)?;
        yard.has_status("exited")?;
        let counted = ground.stands_still()?;
        let listed = block_on(yard.ours.list()).map_err(whole)?;
        ensure!(
            listed.iter().all(|one| one.obstacle.is_some()),
            "{listed:?}"
        );
        yard.restore(&images)?;
        yard.is_in_dockers_hands()?;
        ground.goes_on_from(&counted)?;
        // Images are not used up, and containerd is not told the same twice.
        for _ in 0..2 {
            yard.kill()?;
            let later = ground.stands_still()?;
            ensure!(later != counted, "it did not count");
            yard.restore(&images)?;
            until("the count of the images goes on", || {
                ground
                    .count()
                    .is_some_and(|now| now != later && now.is_within(&counted, 50))
            })?;
        }
        let second = yard.images("second")?;
        yard.checkpoint(&second)?;
        let counted = ground.stands_still()?;
        yard.restore(&second)?;
        ground.goes_on_from(&counted)
    })
}

pub(super) fn log_and_terminal() -> Outcome {
    with_docker(|yard| {
        for options in [
            &["--network", "none"][..],
            &["--network", "none", "--tty"],
            &["--network", "none", "--tty", "--interactive"],
        ] {
            yard.theirs.run_container(options, &SAYS)?;
            let said = || yard.theirs.docker(&["logs", yard.name()]);
            let lines = || said().map_or(0, |said| said.lines().count());
            until("it says something", || lines() > 3)?;
            let images = yard.images("images")?;
            yard.checkpoint(&images)?;
            let before = lines();
            yard.restore(&images)?;
            until("it says more", || lines() > before + 3)?;
            for (index, line) in said()?.lines().enumerate() {
                let expected = format!("said {}", index + 1);
                ensure!(line.trim_end() == expected, "{line:?}, not {expected}");
            }
            yard.remove()?;
        }
        Ok(())
    })
}

/// A pipeline, files of every kind of place, and a CRIU configuration of the container's own.
pub(super) fn processes_and_files() -> Outcome {
    const PIPELINE: [&str; 3] = [
        "/bin/sh",
        "-c",
        "read run </proc/sys/kernel/random/uuid; \
         (i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done) | cat | \
         while read i; do printf '%s %020d' $run $i 1<>/data/count; done",
    ];
    with_docker(|yard| {
        let ground = yard.theirs.ground();
        let config = ground.path("criu.conf");
        std::fs::write(&config, "tcp-established\n").map_err(text)?;
        let annotation = format!("org.criu.config={}", config.display());
        let options = [
            "--network",
            "none",
            "--tmpfs",
            "/tmpfs:size=1m",
            "--annotation",
            &annotation,
            // Docker mounts it, and takes it down with the container.
            "--ipc",
            "shareable",
        ];
        yard.theirs.run_container(&options, &PIPELINE)?;
        ground.counts()?;
        let container = block_on(yard.ours.load(yard.name())).map_err(whole)?;
        ensure!(container.criu_config == config, "{container:?}");
        let said = |path: &str| yard.theirs.docker(&["exec", yard.name(), "/bin/cat", path]);
        let places = ["/tmpfs/kept", "/dev/shm/kept", "/kept"];
        for path in places {
            let write = format!("echo {path} >{path}");
            yard.theirs
                .docker(&["exec", yard.name(), "/bin/sh", "-c", &write])?;
        }
        let processes = || {
            let top = yard
                .theirs
                .docker(&["top", yard.name(), "-eo", "pid,comm"])?;
            let mut names: Vec<_> = top
                .lines()
                .filter_map(|line| line.split_whitespace().nth(1))
                // It comes and goes.
                .filter(|name| *name != "sleep")
                .map(str::to_owned)
                .collect();
            names.sort();
            Ok::<_, String>(names)
        };
        let before = processes()?;
        ensure!(before.len() > 4, "{before:?}");
        let images = yard.images("images")?;
        // The second is of a restored container.
        for _ in 0..2 {
            yard.checkpoint(&images)?;
            let counted = ground.stands_still()?;
            yard.restore(&images)?;
            ground.goes_on_from(&counted)?;
            ensure!(processes()? == before, "{before:?}, now {:?}", processes());
            for path in places {
                ensure!(said(path)?.trim() == path, "{path}: {:?}", said(path));
            }
        }
        // What the option's place in the file says, may be repeated.
        yard.kill()?;
        let host = format!("unix://{}", yard.theirs.socket().display());
        let images = images.path().display().to_string();
        let restore = ["restore", yard.name(), "-D", &images];
        let refused = criuctl(&host, 2, &[&restore[..], &["--file-locks"]].concat())?;
        ensure!(
            refused["hint"]
                .as_str()
                .is_some_and(|hint| hint.contains("criu.conf")),
            "{refused}"
        );
        criuctl(&host, 0, &[&restore[..], &["--tcp-established"]].concat())?;
        ground.counts()
    })
}

pub(super) fn interchange() -> Outcome {
    with_docker(|yard| {
        let ground = yard.theirs.ground();
        yard.theirs.start_with(&["--network", "none"])?;
        let checkpoints = yard.checkpoints()?;
        let open = |name: &str| ImagesDir::open(checkpoints.join(name)).map_err(text);
        // Docker's, where Docker has put it, and somewhere else.
        yard.theirs
            .docker(&["checkpoint", "create", yard.name(), "theirs"])?;
        until("Docker has seen the end", || {
            yard.has_status("exited").is_ok()
        })?;
        let counted = ground.stands_still()?;
        yard.restore(&open("theirs")?)?;
        ground.goes_on_from(&counted)?;
        yard.kill()?;
        let elsewhere = ground.path("elsewhere");
        copy(&checkpoints.join("theirs"), &elsewhere)?;
        yard.restore(&ImagesDir::open(&elsewhere).map_err(text)?)?;
        yard.is_in_dockers_hands()?;
        // Ours, where Docker finds it.
        let ours = ImagesDir::create(checkpoints.join("ours")).map_err(text)?;
        yard.checkpoint(&ours)?;
        let counted = ground.stands_still()?;
        yard.theirs
            .docker(&["start", "--checkpoint", "ours", yard.name()])?;
        yard.has_status("running")?;
        ground.goes_on_from(&counted)
    })
}

pub(super) fn left_running_and_paused() -> Outcome {
    with_docker(|yard| {
        let ground = yard.theirs.ground();
        yard.theirs.start_with(&["--network", "none"])?;
        let pid = yard.pid()?;
        let leaving = || CheckpointOptions::new().leave_running(true);
        let names = ["first", "second"];
        for name in names {
            let before = ground.count().ok_or("no count")?;
            yard.checkpoint_with(&yard.images(name)?, leaving())?;
            yard.has_status("running")?;
            ensure!(yard.pid()? == pid, "another process");
            ground.goes_on_from(&before)?;
        }
        yard.kill()?;
        for name in names {
            yard.restore(&yard.images(name)?)?;
            yard.is_in_dockers_hands()?;
            yard.kill()?;
        }
        yard.restore(&yard.images("second")?)?;
        yard.theirs.docker(&["pause", yard.name()])?;
        let counted = ground.stands_still()?;
        let images = yard.images("paused")?;
        yard.checkpoint_with(&images, leaving())?;
        yard.has_status("paused")?;
        ensure!(ground.stands_still()? == counted, "it was thawed");
        yard.checkpoint(&images)?;
        yard.has_status("exited")?;
        // A restore ends with a container that runs.
        yard.restore(&images)?;
        ground.goes_on_from(&counted)
    })
}

/// Docker's restores pass no options on: somebody who listens in adds what is needed.
pub(super) fn established_connection() -> Outcome {
    let stage = Stage::install(&["--amend=restore:tcp-established"])?;
    with_docker_in(stage.environment(), |yard| {
        let subnet = Subnet::free();
        let network = format!("{}-net", yard.name());
        let option = format!("com.docker.network.bridge.name={}", subnet.bridge);
        let create = ["network", "create", "--driver", "bridge", "--opt", &option];
        yard.theirs
            .docker(&[&create[..], &["--subnet", &subnet.range(), &network]].concat())?;
        let address = subnet.host(7);
        let options = ["--network", &network, "--ip", &address.to_string()];
        let echo = ["/bin/busybox", "nc", "-l", "-p", "7007", "-e", "/bin/cat"];
        yard.theirs.run_container(&options, &echo)?;
        let mut stream = connected(address, 7007)?;
        echoes(&mut stream, b"before")?;
        // Without the option it is refused, and goes on.
        let images = yard.images("images")?;
        let error = yard.not_checkpointed(yard.name())?;
        let diagnosis = error.criu().and_then(criu_client::Error::diagnosis);
        ensure!(
            diagnosis.is_some_and(|diagnosis| diagnosis.remedy.contains("tcp-established")),
            "{}",
            whole(error)
        );
        echoes(&mut stream, b"refused")?;
        let options = CheckpointOptions::new().tcp_established(true);
        yard.checkpoint_with(&images, options)?;
        yard.restore(&images)?;
        echoes(&mut stream, b"after")?;
        drop(stream);
        yard.remove()?;
        yard.theirs.docker(&["network", "rm", &network])?;
        Ok(())
    })
}

/// Addresses that nobody has here.
struct Subnet {
    bridge: String,
    third: u8,
}

impl Subnet {
    fn free() -> Self {
        let number = std::process::id() % 250;
        Self {
            bridge: format!("criut{number}"),
            third: u8::try_from(number).unwrap_or(0),
        }
    }

    fn range(&self) -> String {
        format!("10.231.{}.0/24", self.third)
    }

    fn host(&self, number: u8) -> IpAddr {
        [10, 231, self.third, number].into()
    }
}

pub(super) fn connected(address: IpAddr, port: u16) -> Result<TcpStream, String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let error = match TcpStream::connect_timeout(&(address, port).into(), PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE)).map_err(text)?;
                return Ok(stream);
            }
            Err(error) => error,
        };
        ensure!(Instant::now() < deadline, "{address}:{port}: {error}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(super) fn echoes(stream: &mut TcpStream, words: &[u8]) -> Outcome {
    stream.write_all(words).map_err(text)?;
    let mut echo = vec![0; words.len()];
    stream.read_exact(&mut echo).map_err(text)?;
    ensure!(echo == words, "{echo:?}");
    Ok(())
}

pub(super) fn command_line() -> Outcome {
    with_docker(|yard| {
        let ground = yard.theirs.ground();
        yard.theirs.start_with(&["--network", "none"])?;
        let socket = yard.theirs.socket();
        let host = format!("unix://{}", socket.display());
        let (images, pid_file) = (ground.path("images"), ground.path("pid"));
        let images = images.display().to_string();
        let pid = pid_file.display().to_string();
        let tell = |status: i32, arguments: &[&str]| criuctl(&host, status, arguments);
        let listed = tell(0, &["list"])?;
        let ids = listed["containers"].as_array().ok_or("no list")?;
        ensure!(
            ids.iter().any(|one| one["engine"] == "docker"
                && one["name"] == yard.name()
                && one["checkpointable"] == true),
            "{listed}"
        );
        // Looked for in every engine.
        let planned = tell(0, &["checkpoint", yard.name(), "-D", &images, "--dry-run"])?;
        ensure!(planned["request"]["type"] == "DUMP", "{planned}");
        ensure!(!ground.path("images").exists(), "images of a dry run");
        ground.counts()?;
        let done = tell(0, &["checkpoint", yard.name(), "-D", &images])?;
        ensure!(done["container"] == yard.id()?, "{done}");
        let counted = ground.stands_still()?;
        for (option, value) in [
            ("--tcp-established", None),
            ("--hook", Some("post-restore=/bin/true")),
            ("--criu", Some("/usr/sbin/criu")),
            ("--bundle", Some("/")),
        ] {
            let mut arguments = vec!["restore", yard.name(), "-D", &images, option];
            arguments.extend(value);
            let refused = tell(2, &arguments)?;
            let message = refused["message"].as_str().unwrap_or_default();
            ensure!(message.starts_with(option), "{refused}");
        }
        let planned = tell(0, &["restore", yard.name(), "-D", &images, "--dry-run"])?;
        let steps = planned["steps"].as_array().ok_or("no steps")?;
        let actions: Vec<_> = steps.iter().map(|step| step["action"].as_str()).collect();
        ensure!(
            actions
                == [
                    Some("link-images"),
                    Some("ask-engine"),
                    Some("unlink-images")
                ],
            "{planned}"
        );
        yard.nothing_is_left()?;
        yard.has_status("exited")?;
        // The images say whose they are.
        let done = tell(
            0,
            &["restore", yard.name(), "-D", &images, "--pid-file", &pid],
        )?;
        ensure!(done["pid"] == yard.pid()?, "{done}");
        let written = std::fs::read_to_string(&pid_file).map_err(text)?;
        ensure!(written == yard.pid()?.to_string(), "{written}");
        ground.goes_on_from(&counted)?;
        let target = format!("docker:{}", &yard.id()?[..12]);
        let refused = tell(1, &["restore", &target, "-D", &images])?;
        ensure!(refused["code"] == "exists", "{refused}");
        let refused = tell(2, &["checkpoint", "docker:none-such", "-D", &images])?;
        ensure!(refused["code"] == "unknown", "{refused}");
        let far = criuctl(
            "tcp://127.0.0.1:1",
            2,
            &["checkpoint", &target, "-D", &images],
        )?;
        ensure!(far["code"] == "usage", "{far}");
        let nobody = criuctl(
            "unix:///nonexistent/socket",
            3,
            &["checkpoint", &target, "-D", &images],
        )?;
        ensure!(nobody["code"] == "api", "{nobody}");
        ground.counts()
    })
}

/// The document that it prints, when it ends with `status`.
fn criuctl(host: &str, status: i32, arguments: &[&str]) -> Result<Value, String> {
    let output = Command::new(CRIUCTL)
        .args(["--format", "json"])
        .args(arguments)
        .env("DOCKER_HOST", host)
        .output()
        .map_err(text)?;
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.code() == Some(status),
        "{arguments:?}: {}: {printed}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_str(&printed).map_err(text)
}

/// What a container may be made with; each is checkpointed and restored by either side.
const ROWS: [(&str, &[&str]); 9] = [
    ("the host's network", &["--network", "host"]),
    (
        "a read-only root",
        &[
            "--network",
            "none",
            "--read-only",
            "--tmpfs",
            "/tmp:size=1m",
        ],
    ),
    (
        "limits",
        &[
            "--network",
            "none",
            "--memory",
            "64m",
            "--cpus",
            "0.5",
            "--pids-limit",
            "50",
        ],
    ),
    (
        "a volume and shared memory",
        &[
            "--network",
            "none",
            "--mount",
            "type=volume,target=/volume",
            "--ipc",
            "shareable",
        ],
    ),
    (
        "the host's processes",
        &["--network", "none", "--pid", "host"],
    ),
    ("all privileges", &["--network", "none", "--privileged"]),
    (
        "no privileges",
        &[
            "--network",
            "none",
            "--cap-drop",
            "ALL",
            "--security-opt",
            "no-new-privileges",
        ],
    ),
    (
        "a cgroup namespace",
        &["--network", "none", "--cgroupns", "private"],
    ),
    (
        "another log",
        &[
            "--network",
            "none",
            "--log-driver",
            "local",
            "--hostname",
            "other",
        ],
    ),
];

pub(super) fn rows() -> Tests {
    let test = |(name, options): (&str, &'static [&'static str])| {
        let test = move || with_docker(|yard| row(yard, options));
        (format!("docker: {name}"), Box::new(test) as _)
    };
    ROWS.into_iter().map(test).collect()
}

pub(super) fn row(yard: &Yard<'_>, options: &[&str]) -> Outcome {
    let ground = yard.theirs.ground();
    yard.theirs.start_with(options)?;
    let limits = ground.traces().limits();
    let (profile, mounts) = (confinement(yard.pid()?)?, mounts(yard.pid()?)?);
    let first = yard.images("first")?;
    yard.checkpoint(&first)?;
    let counted = ground.stands_still()?;
    yard.restore(&first)?;
    yard.is_in_dockers_hands()?;
    ground.goes_on_from(&counted)?;
    let now = ground.traces().limits();
    ensure!(now == limits, "{limits:?} became {now:?}");
    let now = confinement(yard.pid()?)?;
    ensure!(now == profile, "{profile:?} became {now:?}");
    let now = self::mounts(yard.pid()?)?;
    ensure!(now == mounts, "{mounts:#?} became {now:#?}");
    let ours = ImagesDir::create(yard.checkpoints()?.join("ours")).map_err(text)?;
    yard.checkpoint(&ours)?;
    let counted = ground.stands_still()?;
    yard.theirs
        .docker(&["start", "--checkpoint", "ours", yard.name()])?;
    ground.goes_on_from(&counted)?;
    yard.theirs
        .docker(&["checkpoint", "create", yard.name(), "theirs"])?;
    until("Docker has seen the end", || {
        yard.has_status("exited").is_ok()
    })?;
    let counted = ground.stands_still()?;
    let theirs = ImagesDir::open(yard.checkpoints()?.join("theirs")).map_err(text)?;
    yard.restore(&theirs)?;
    ground.goes_on_from(&counted)
}

/// The profile by which AppArmor confines a process, where there is AppArmor.
pub(super) fn confinement(pid: i32) -> Result<Option<String>, String> {
    match Path::new("/sys/kernel/security/apparmor").exists() {
        true => std::fs::read_to_string(format!("/proc/{pid}/attr/current"))
            .map(Some)
            .map_err(text),
        false => Ok(None),
    }
}

/// What a process sees mounted, where and how: masks, volumes, what is read-only.
fn mounts(pid: i32) -> Result<Vec<String>, String> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).map_err(text)?;
    let mut mounts: Vec<_> = table
        .lines()
        .filter_map(|line| {
            let (mount, of) = line.split_once(" - ")?;
            let mut fields = mount.split(' ').skip(4);
            let (place, options) = (fields.next()?, fields.next()?);
            Some(format!("{place} {options} {}", of.split(' ').next()?))
        })
        .collect();
    mounts.sort();
    Ok(mounts)
}
