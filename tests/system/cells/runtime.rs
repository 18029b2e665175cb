//! Containers of runc and crun.

use std::fs;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::Command;

use criu_client::ImagesDir;
use criu_client::container::plan::Consumer;
use criu_client::container::runtime::{CheckpointOptions, RestoreOptions, Runtime as Ours};
use serde_json::json;

use super::side::Side;
use super::{Network, Row, command, ordinary, program};
use crate::engines::{self, Engine, Ground, Program, Subnet, bind, with_made};
use crate::runtimes::fixture::{self, Console, whole};
use crate::support::{Outcome, block_on, criu, ensure, reap_orphans, text, until};

struct Box_<'a, E: fixture::Program> {
    theirs: &'a mut engines::Runtime,
    ours: Ours<E>,
    consumer: Consumer,
    console: Option<Console>,
    /// What keeps the terminal open.
    master: Option<OwnedFd>,
    wire: Option<Wire>,
}

pub(super) fn with<E: fixture::Program>(
    program: Program,
    row: Row,
    test: fn(&mut dyn Side, Row) -> Outcome,
) -> Outcome {
    let make = || engines::Runtime::new(program, ordinary()).map(Box::new);
    with_made(make, |theirs: &mut engines::Runtime| {
        let ground = theirs.ground();
        let console = match row.terminal {
            true => Some(Console::listen(ground.path("console"))?),
            false => None,
        };
        let wire = match row.network {
            Network::Connected => Some(Wire::to(ground)?),
            _ => None,
        };
        let mut box_ = Box_::<E> {
            ours: Ours::with_root(ground.path("root")),
            consumer: match program {
                Program::Runc => Consumer::Runc,
                Program::Crun => Consumer::Crun,
            },
            console,
            master: None,
            wire,
            theirs,
        };
        test(&mut box_, row)?;
        box_.end()
    })
}

impl<E: fixture::Program> Box_<'_, E> {
    fn id(&self) -> &str {
        &self.theirs.ground().id
    }

    /// `run -d` or `restore -d`, with the terminal that comes of it.
    fn detached(&mut self, arguments: &[&str]) -> Outcome {
        let bundle = self.ground().text("");
        let mut all: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        all.extend(["-d", "--bundle", &bundle].map(str::to_owned));
        if let Some(console) = &self.console {
            all.extend([
                "--console-socket".into(),
                console.path.display().to_string(),
            ]);
        }
        all.push(self.id().to_owned());
        let theirs = &*self.theirs;
        let master = received(self.console.as_ref(), || theirs.detached(&all))?;
        self.master = master.or(self.master.take());
        Ok(())
    }

    fn own_flags(&self) -> Vec<&'static str> {
        match self.wire {
            Some(_) => vec!["--tcp-established"],
            None => Vec::new(),
        }
    }
}

/// Does `work`, in which a terminal is sent to `console`.
fn received(
    console: Option<&Console>,
    work: impl FnOnce() -> Outcome,
) -> Result<Option<OwnedFd>, String> {
    let Some(console) = console else {
        return work().map(|()| None);
    };
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| console.receive());
        let worked = work();
        if worked.is_err() {
            // Whoever waits for a terminal that will not come.
            let _ = UnixStream::connect(&console.path);
        }
        let received = receiving.join();
        worked?;
        let received = received.map_err(|_| "the console panicked".to_owned())?;
        received.map(|(master, _)| Some(master))
    })
}

impl<E: fixture::Program> Side for Box_<'_, E> {
    fn ground(&self) -> &Ground {
        self.theirs.ground()
    }

    fn start(&mut self, row: Row, port: u16) -> Outcome {
        let ground = self.theirs.ground();
        let programs = program(ground)?;
        fs::create_dir_all(ground.path("volume")).map_err(text)?;
        let network = self.wire.as_ref().map(|wire| wire.namespace.clone());
        self.theirs.configure(|config| {
            config["process"]["args"] = json!(command(port));
            config["process"]["terminal"] = json!(row.terminal);
            for (source, inside) in &programs {
                bind(config, source, inside, "ro")?;
            }
            if row.mounts {
                bind(config, &ground.path("bound"), "/bound", "ro")?;
                bind(config, &ground.path("volume"), "/volume", "rw")?;
                let mounts = config["mounts"].as_array_mut().ok_or("no mounts")?;
                mounts.push(json!({"destination": "/tmpfs", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]}));
                config["root"]["readonly"] = json!(true);
                config["linux"]["resources"]["memory"] = json!({"limit": 128 << 20});
                config["linux"]["resources"]["pids"] = json!({"limit": 50});
            }
            let namespaces = config["linux"]["namespaces"].as_array_mut();
            let namespaces = namespaces.ok_or("no namespaces")?;
            match (row.network, network) {
                (Network::Host, _) => namespaces.retain(|namespace| namespace["type"] != "network"),
                (_, Some(path)) => {
                    for namespace in namespaces.iter_mut().filter(|it| it["type"] == "network") {
                        namespace["path"] = json!(path);
                    }
                }
                _ => {}
            }
            Ok(())
        })?;
        self.detached(&["run"])
    }

    fn address(&self) -> Result<IpAddr, String> {
        let wire = self.wire.as_ref().ok_or("it has no network")?;
        Ok(wire.subnet.host(7))
    }

    fn pid(&self) -> Result<i32, String> {
        Ok(self.theirs.status()?.pid)
    }

    fn exec(&self, command: &[&str]) -> Result<String, String> {
        let mut arguments: Vec<String> = vec!["exec".into(), self.id().into()];
        arguments.extend(command.iter().map(|word| (*word).to_owned()));
        self.theirs.run(&arguments)
    }

    fn pause(&self) -> Outcome {
        self.theirs.run(&["pause", self.id()].map(str::to_owned))?;
        // crun does not wait until everything is frozen.
        until("it is paused", || {
            (self.theirs.status()).is_ok_and(|status| status.word == "paused")
        })
    }

    fn end(&mut self) -> Outcome {
        let delete = ["delete", "--force", self.id()].map(str::to_owned);
        self.theirs.run(&delete)?;
        self.theirs.settle()
    }

    fn checkpoint(&mut self, images: &ImagesDir, leave: bool) -> Outcome {
        let options = CheckpointOptions::new()
            .consumer(self.consumer)
            .tcp_established(self.wire.is_some())
            .leave_running(leave);
        let criu = criu();
        let checkpoint = (self.ours).checkpoint(&criu, self.id(), images, (), options);
        let report = block_on(checkpoint).map_err(whole)?;
        ensure!(report.left_behind.is_empty(), "{:?}", report.left_behind);
        reap_orphans();
        Ok(())
    }

    fn restore(&mut self, images: &ImagesDir) -> Outcome {
        let mut options = RestoreOptions::new()
            .detach(true)
            .tcp_established(self.wire.is_some());
        if let Some(console) = &self.console {
            options = options.console_socket(&console.path);
        }
        let (criu, bundle) = (criu(), self.ground().path(""));
        let restore = || {
            let restore = (self.ours).restore(&criu, self.id(), images, bundle, (), options);
            let restored = block_on(restore).map_err(whole)?;
            ensure!(
                restored.left_behind.is_empty(),
                "{:?}",
                restored.left_behind
            );
            Ok(())
        };
        let master = received(self.console.as_ref(), restore)?;
        self.master = master.or(self.master.take());
        self.theirs.status()?.is_running()
    }

    fn place(&self, name: &str) -> Result<ImagesDir, String> {
        ImagesDir::create(self.ground().path(name)).map_err(text)
    }

    fn own_checkpoint(&mut self, name: &str) -> Result<ImagesDir, String> {
        let path = self.ground().text(name);
        let mut arguments = vec!["checkpoint", "--image-path", &path];
        arguments.extend(self.own_flags());
        arguments.push(self.id());
        let arguments: Vec<_> = arguments.into_iter().map(str::to_owned).collect();
        self.theirs.run(&arguments)?;
        self.theirs.settle()?;
        ImagesDir::open(&path).map_err(text)
    }

    fn own_restore(&mut self, images: &ImagesDir) -> Outcome {
        let path = images.path().display().to_string();
        let mut arguments = vec!["restore", "--image-path", &path];
        arguments.extend(self.own_flags());
        self.detached(&arguments)?;
        self.theirs.status()?.is_running()
    }
}

/// The container's end of the wire.
const INNER: &str = "eth0";

/// A network namespace that no process keeps, as a network plugin makes it, with a wire to ours.
struct Wire {
    namespace: String,
    subnet: Subnet,
}

impl Wire {
    fn to(ground: &Ground) -> Result<Self, String> {
        let wire = Self {
            namespace: ground.text("network"),
            subnet: Subnet::free(),
        };
        fs::write(&wire.namespace, "").map_err(text)?;
        let address = |number| format!("{}/24", wire.subnet.host(number));
        let within = format!("--net={}", wire.namespace);
        run("unshare", &[&within, "/bin/true"])?;
        wire.make(&within)?;
        for command in [
            &["address", "add", &address(7), "dev", INNER][..],
            &["link", "set", INNER, "up"],
            &["link", "set", "lo", "up"],
        ] {
            run("nsenter", &[&[within.as_str(), "ip"], command].concat())?;
        }
        run(
            "ip",
            &["address", "add", &address(1), "dev", &wire.subnet.bridge],
        )?;
        run("ip", &["link", "set", &wire.subnet.bridge, "up"])?;
        Ok(wire)
    }

    /// A process in the namespace gives it a name for as long as that takes.
    fn make(&self, within: &str) -> Outcome {
        let mut keeper = Command::new("nsenter")
            .args([within, "/bin/busybox", "sleep", "1000"])
            .spawn()
            .map_err(text)?;
        let pid = keeper.id().to_string();
        let inode = |path: &str| fs::metadata(path).map(|file| file.ino()).ok();
        let own = inode(&self.namespace);
        let made = until("somebody is inside", || {
            inode(&format!("/proc/{pid}/ns/net")) == own
        })
        .and_then(|()| {
            let outer = &self.subnet.bridge;
            let veth = ["link", "add", outer, "type", "veth"];
            let peer = ["peer", "name", INNER, "netns", &pid];
            run("ip", &[&veth[..], &peer[..]].concat())
        });
        let _ = keeper.kill().and_then(|()| keeper.wait());
        made
    }
}

impl Drop for Wire {
    /// The other end goes with it.
    fn drop(&mut self) {
        let _ = run("ip", &["link", "delete", &self.subnet.bridge]);
        let _ = nix::mount::umount2(self.namespace.as_str(), nix::mount::MntFlags::MNT_DETACH);
    }
}

fn run(program: &str, arguments: &[&str]) -> Outcome {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(text)?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {complaint}"
    );
    Ok(())
}
