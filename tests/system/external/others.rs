//! Containers of runc, crun and Podman; networks and output.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio as Standard};

use criu_client::ImagesDir;
use criu_client::container::crun::Crun;
use criu_client::container::external::{
    Checkpointed, Engine as Whose, External, ExternalCheckpoint, Network, RestoreOptions, Restored,
    Stdio,
};
use criu_client::container::podman::{Podman as Ours, RestoreOptions as OfPodman};
use criu_client::container::runc::Runc;
use criu_client::container::runtime::CheckpointOptions;

use super::yard::{end, nothing_is_kept, whole};
use crate::engines::{COUNTER, Engine, Environment, Ground, Podman, Program, Runtime, with_made};
use crate::support::{Outcome, PATIENCE, block_on, criu, ensure, reap_orphans, text, until};

/// What a test of one container needs.
struct Case {
    external: External,
    home: PathBuf,
    whose: Whose,
    id: String,
    images: ImagesDir,
}

impl Case {
    fn of(ground: &Ground, whose: Whose, id: &str) -> Result<Self, String> {
        let home = ground.path("external");
        Ok(Self {
            external: External::with_home(&home),
            home,
            whose,
            id: id.to_owned(),
            images: ImagesDir::create(ground.path("images")).map_err(text)?,
        })
    }

    fn checkpoint(&self, options: CheckpointOptions, keep: bool) -> Result<Checkpointed, String> {
        let options = ExternalCheckpoint::new(options).keep_network(keep);
        let criu = criu();
        let work =
            self.external
                .checkpoint(&self.whose, &criu, &self.id, &self.images, (), options);
        let done = block_on(work).map_err(whole)?;
        reap_orphans();
        ensure!(
            done.report.left_behind.is_empty(),
            "{:?}",
            done.report.left_behind
        );
        Ok(done)
    }

    fn restore(&self, options: RestoreOptions) -> Result<Restored, String> {
        let criu = criu();
        let work = self
            .external
            .restore(&self.whose, &criu, &self.id, &self.images, (), options);
        let done = block_on(work).map_err(whole)?;
        ensure!(done.left_behind.is_empty(), "{:?}", done.left_behind);
        Ok(done)
    }

    fn end(&self) -> Outcome {
        let entry = self.external.find(&self.id).map_err(whole)?;
        end(&self.external, &entry.ok_or("nothing is kept of it")?)?;
        nothing_is_kept(&self.external, &self.home)
    }
}

pub(super) fn runc() -> Outcome {
    of_runtime(Program::Runc)
}

pub(super) fn crun() -> Outcome {
    of_runtime(Program::Crun)
}

fn with_runtime(
    program: Program,
    test: impl FnOnce(&mut Runtime, &dyn Fn(&Runtime) -> Result<Case, String>) -> Outcome,
) -> Outcome {
    let make = || Runtime::new(program, Environment::default()).map(Box::new);
    with_made(make, |runtime: &mut Runtime| {
        let case = move |runtime: &Runtime| {
            let ground = runtime.ground();
            let whose = match program {
                Program::Runc => Whose::Runc(Runc::with_root(runtime.root())),
                Program::Crun => Whose::Crun(Crun::with_root(runtime.root())),
            };
            Case::of(ground, whose, &ground.id)
        };
        test(runtime, &case)
    })
}

/// Twice externally, then by the runtime's own again.
fn of_runtime(program: Program) -> Outcome {
    with_runtime(program, |runtime, case| {
        runtime.start()?;
        let case = case(runtime)?;
        for _ in 0..2 {
            case.checkpoint(CheckpointOptions::new(), false)?;
            let counted = runtime.ground().stands_still()?;
            case.restore(RestoreOptions::new())?;
            runtime.ground().goes_on_from(&counted)?;
        }
        case.checkpoint(CheckpointOptions::new(), false)?;
        nothing_is_kept(&case.external, &case.home)?;
        let counted = runtime.ground().stands_still()?;
        runtime.restore("images")?;
        runtime.ground().goes_on_from(&counted)
    })
}

pub(super) fn podman_over_runc() -> Outcome {
    of_podman(Program::Runc)
}

pub(super) fn podman_over_crun() -> Outcome {
    of_podman(Program::Crun)
}

fn of_podman(program: Program) -> Outcome {
    let make = || Podman::over(program, Environment::default()).map(Box::new);
    with_made(make, |podman: &mut Podman| {
        let volume = podman.ground().volume();
        let options = ["--network", "none", "--volume", &volume];
        let id = podman.run_container(&options, &COUNTER)?;
        let served = podman.serve()?;
        let ours = Ours::with_socket(&served.socket);
        podman.ground().counts()?;
        let exec = |command: &str| {
            let arguments = ["exec", id.as_str(), "/bin/sh", "-c", command].map(str::to_owned);
            podman.run(&arguments)
        };
        exec("echo shared >/dev/shm/word; echo mine >/word")?;
        let case = Case::of(podman.ground(), Whose::Podman(ours.clone()), &id)?;
        case.checkpoint(CheckpointOptions::new(), false)?;
        let counted = podman.ground().stands_still()?;
        let restored = case.restore(RestoreOptions::new())?;
        podman.ground().goes_on_from(&counted)?;
        let root = restored.runtime_root.display().to_string();
        let read = [
            program.name(),
            "--root",
            &root,
            "exec",
            &id,
            "/bin/cat",
            "/dev/shm/word",
            "/word",
        ];
        let output = podman
            .ground()
            .command(&read.map(str::to_owned))?
            .output()
            .map_err(text)?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            said == "shared\nmine\n",
            "{said:?} {}",
            String::from_utf8_lossy(&output.stderr)
        );
        case.end()?;
        // The images are Podman's as well.
        block_on(ours.restore(&id, &case.images, OfPodman::new())).map_err(whole)?;
        until("the count of the images goes on", || {
            podman
                .ground()
                .count()
                .is_some_and(|now| now.is_of(&counted))
        })?;
        drop(served);
        Ok(())
    })
}

/// A wire into a container's network namespace, whose end there is 10.231.SUBNET.2.
fn wire(pid: i32, subnet: u32) -> Result<String, String> {
    let (here, there) = (format!("criuy{subnet}"), format!("criuz{subnet}"));
    let ip = |arguments: &[&str]| -> Outcome {
        let output = Command::new("ip").args(arguments).output().map_err(text)?;
        ensure!(
            output.status.success(),
            "ip {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    };
    let pid = pid.to_string();
    ip(&["link", "add", &here, "type", "veth", "peer", "name", &there])?;
    ip(&["link", "set", &there, "netns", &pid])?;
    ip(&[
        "addr",
        "add",
        &format!("10.231.{subnet}.1/24"),
        "dev",
        &here,
    ])?;
    ip(&["link", "set", &here, "up"])?;
    for command in [
        vec![
            "addr",
            "add",
            &format!("10.231.{subnet}.2/24"),
            "dev",
            &there,
        ],
        vec!["link", "set", &there, "up"],
    ] {
        let mut inside = vec!["--target", &pid, "--net", "ip"];
        inside.extend(command);
        let status = Command::new("nsenter")
            .args(&inside)
            .status()
            .map_err(text)?;
        ensure!(status.success(), "nsenter {inside:?}: {status}");
    }
    Ok(format!("10.231.{subnet}.2:7007"))
}

fn echoes(stream: &mut TcpStream, words: &[u8]) -> Outcome {
    stream.write_all(words).map_err(text)?;
    let mut echo = vec![0; words.len()];
    stream.read_exact(&mut echo).map_err(text)?;
    ensure!(echo == words, "{echo:?}");
    Ok(())
}

pub(super) fn networks() -> Outcome {
    with_runtime(Program::Runc, |runtime, case| {
        let path = runtime.ground().path("config.json");
        let change = |arguments: &[&str]| -> Outcome {
            let config = fs::read(&path).map_err(text)?;
            let mut config: serde_json::Value = serde_json::from_slice(&config).map_err(text)?;
            config["process"]["args"] = serde_json::json!(arguments);
            fs::write(&path, config.to_string()).map_err(text)
        };
        change(&["/bin/busybox", "nc", "-l", "-p", "7007", "-e", "/bin/cat"])?;
        runtime.run_detached(Standard::null())?;
        let pid = runtime.status()?.pid;
        let address = wire(pid, std::process::id() % 250)?;
        let mut stream = Err("not connected".to_owned());
        until("it listens", || {
            stream = TcpStream::connect(&address).map_err(text);
            stream.is_ok()
        })?;
        let mut stream = stream?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(text)?;
        echoes(&mut stream, b"before")?;
        let case = case(runtime)?;
        let options = CheckpointOptions::new().tcp_established(true);
        let done = case.checkpoint(options, true)?;
        let kept = done.network.ok_or("no network was kept")?;
        ensure!(kept.exists(), "{}", kept.display());
        // Not told again: it is noted.
        case.restore(RestoreOptions::new())?;
        echoes(&mut stream, b"after")?;
        // It stays what it was restored into, without being told.
        let options = CheckpointOptions::new().tcp_established(true);
        case.checkpoint(options, false)?;
        case.restore(RestoreOptions::new().network(Network::Keep))?;
        echoes(&mut stream, b"once more")?;
        case.end()?;
        // nc would have ended with it.
        drop(stream);
        ensure!(!kept.exists(), "the network is still kept");

        // Another is joined, and an empty one made.
        change(&COUNTER)?;
        runtime.start()?;
        case.checkpoint(CheckpointOptions::new(), false)?;
        let counted = runtime.ground().stands_still()?;
        let own = || fs::read_link("/proc/self/ns/net").map_err(text);
        let of = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).map_err(text);
        let mut holder = Command::new("unshare")
            .args(["--net", "sleep", "60"])
            .spawn()
            .map_err(text)?;
        let holders = i32::try_from(holder.id()).map_err(text)?;
        let tested = (|| {
            until("it has a network of its own", || {
                of(holders).is_ok_and(|of| Ok(of) != own())
            })?;
            let join = Network::Join(format!("/proc/{holders}/ns/net").into());
            let restored = case.restore(RestoreOptions::new().network(join))?;
            ensure!(of(restored.init.pid)? == of(holders)?, "another network");
            runtime.ground().goes_on_from(&counted)?;
            case.end()
        })();
        let _ = holder.kill();
        let _ = holder.wait();
        tested?;
        let restored = case.restore(RestoreOptions::new().network(Network::Empty))?;
        ensure!(of(restored.init.pid)? != own()?, "the host's network");
        case.end()
    })
}

fn inherited(stdout: std::io::PipeWriter) -> Result<Stdio, String> {
    let null = || {
        let file = fs::File::options().read(true).write(true).open("/dev/null");
        file.map_err(text)
    };
    Ok(Stdio::Inherit([
        null()?.into(),
        stdout.into(),
        null()?.into(),
    ]))
}

/// Says numbers on a pipe, as those of engines do.
pub(super) fn output() -> Outcome {
    with_runtime(Program::Runc, |runtime, case| {
        let path = runtime.ground().path("config.json");
        let config = fs::read(&path).map_err(text)?;
        let mut config: serde_json::Value = serde_json::from_slice(&config).map_err(text)?;
        let says = "i=0; while :; do i=$((i+1)); echo said $i; sleep 0.02; done";
        config["process"]["args"] = serde_json::json!(["/bin/sh", "-c", says]);
        fs::write(&path, config.to_string()).map_err(text)?;
        let (mut ours, theirs) = std::io::pipe().map_err(text)?;
        runtime.run_detached(theirs.into())?;
        let mut said = [0; 12];
        ours.read_exact(&mut said).map_err(text)?;
        ensure!(said.starts_with(b"said 1\n"), "{said:?}");
        let case = case(runtime)?;
        case.checkpoint(CheckpointOptions::new(), false)?;
        drop(ours);
        // A pipe in place of a pipe.
        let (mut ours, theirs) = std::io::pipe().map_err(text)?;
        case.restore(RestoreOptions::new().stdio(inherited(theirs)?))?;
        let mut said = [0; 5];
        ours.read_exact(&mut said).map_err(text)?;
        ensure!(&said == b"said ", "{said:?}");
        case.checkpoint(CheckpointOptions::new(), false)?;
        drop(ours);
        let log = runtime.ground().path("log");
        let lines = || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            said.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        for _ in 0..2 {
            let before = lines().len();
            case.restore(RestoreOptions::new().stdio(Stdio::Log(log.clone())))?;
            until("it says more", || lines().len() > before + 3)?;
            case.checkpoint(CheckpointOptions::new(), false)?;
        }
        let numbers: Vec<u64> = (lines().iter())
            .filter_map(|line| line.strip_prefix("said ")?.parse().ok())
            .collect();
        ensure!(
            numbers.windows(2).all(|pair| pair[1] == pair[0] + 1) && numbers.len() == lines().len(),
            "{numbers:?}"
        );
        // CRIU winds a file to where it was, which a pipe cannot be.
        let (_ours, theirs) = std::io::pipe().map_err(text)?;
        let criu = criu();
        let options = RestoreOptions::new().stdio(inherited(theirs)?);
        let work = case
            .external
            .restore(&case.whose, &criu, &case.id, &case.images, (), options);
        match block_on(work) {
            Err(error) if error.code() == "option" => {}
            other => return Err(format!("{other:?}")),
        }
        nothing_is_kept(&case.external, &case.home)
    })
}
