//! runc and crun.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use criu_client::container::crun::CrunEngine;
use criu_client::container::runc::RuncEngine;
use criu_client::container::runtime::{CheckpointOptions, RestoreOptions};
use criu_client::options::{self, CgroupMode, DumpOptions, NetworkLock, PageTransport};
use serde_json::{Value, json};

use super::{Case, Options, Reaches, Subject};
use crate::interposed::Stage;
use crate::runtimes::fixture::{Console, Fixture, Lines, Program, groups, whole};
use crate::support::{Outcome, block_on, criu, ensure, text, until};

/// What a container is and what both sides are told, so that both are told the same.
struct Configuration {
    name: &'static str,
    engines: &'static [&'static str],
    reaches: Reaches,
    /// Who comes less far.
    fails: &'static [(&'static str, Reaches)],
    /// Namespaces of another process, as unshare(1) names them, that the container can join.
    kept: &'static [&'static str],
    /// Of the configuration, the directory of the test and the process that keeps namespaces.
    change: fn(&mut Value, &Path, u32),
    /// `DIR` is the directory of the test.
    dump: &'static [&'static str],
    our_dump: fn(CheckpointOptions, &Path) -> CheckpointOptions,
    restore: &'static [&'static str],
    our_restore: fn(RestoreOptions, &Path) -> RestoreOptions,
}

const BOTH: &[&str] = &["runc", "crun"];
const RUNC: &[&str] = &["runc"];
const CRUN: &[&str] = &["crun"];

const DEFAULT: Configuration = Configuration {
    name: "default",
    engines: BOTH,
    reaches: Reaches::End,
    fails: &[],
    kept: &[],
    change: |_, _, _| {},
    dump: &[],
    our_dump: |options, _| options,
    restore: &[],
    our_restore: |options, _| options,
};

const CONFIGURATIONS: &[Configuration] = &[
    DEFAULT,
    Configuration {
        name: "terminal",
        change: |config, _, _| config["process"]["terminal"] = json!(true),
        ..DEFAULT
    },
    Configuration {
        name: "pipe",
        ..DEFAULT
    },
    Configuration {
        name: "binds",
        change: |config, directory, _| {
            let source = directory.join("source");
            mount(
                config,
                json!({"destination": "/a", "type": "bind", "source": source, "options": ["rbind", "ro"]}),
            );
            mount(
                config,
                json!({"destination": "/a/inner", "type": "none", "source": source.join("inner"), "options": ["bind"]}),
            );
            mount(
                config,
                json!({"destination": "/file", "type": "bind", "source": source.join("file"), "options": ["bind"]}),
            );
            mount(
                config,
                json!({"destination": "/cache", "type": "tmpfs", "source": "tmpfs"}),
            );
        },
        ..DEFAULT
    },
    Configuration {
        name: "nothing-masked",
        change: |config, _, _| {
            config["linux"]["maskedPaths"] = json!([]);
            config["linux"]["readonlyPaths"] = json!([]);
        },
        ..DEFAULT
    },
    Configuration {
        name: "own-masks",
        change: |config, _, _| {
            config["linux"]["maskedPaths"] =
                json!(["/proc/keys", "/proc/acpi", "/proc/none", "/proc/version"]);
        },
        ..DEFAULT
    },
    Configuration {
        name: "devices",
        change: |config, _, _| {
            config["linux"]["devices"] =
                json!([{"path": "/dev/extra", "type": "c", "major": 1, "minor": 5}]);
        },
        ..DEFAULT
    },
    Configuration {
        name: "joined-network",
        kept: &["net"],
        change: |config, _, keeper| join(config, "network", keeper, "net"),
        ..DEFAULT
    },
    Configuration {
        name: "joined-pid",
        kept: &["pid"],
        change: |config, _, keeper| join(config, "pid", keeper, "pid_for_children"),
        ..DEFAULT
    },
    Configuration {
        name: "user-namespace",
        change: |config, _, _| {
            let namespaces = config["linux"]["namespaces"].as_array_mut();
            namespaces
                .expect("namespaces")
                .push(json!({"type": "user"}));
            let mapping = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
            config["linux"]["uidMappings"] = mapping.clone();
            config["linux"]["gidMappings"] = mapping;
        },
        fails: &[("crun", Reaches::Dump)],
        ..DEFAULT
    },
    Configuration {
        name: "parent-path",
        // crun asks first, and gives up.
        engines: RUNC,
        // This kernel does not track memory changes.
        reaches: Reaches::Dump,
        dump: &["--parent-path=../parent"],
        our_dump: |options, _| options.parent_path("../parent"),
        ..DEFAULT
    },
    Configuration {
        name: "joined-ipc-and-uts",
        kept: &["ipc", "uts"],
        change: |config, _, keeper| {
            join(config, "ipc", keeper, "ipc");
            join(config, "uts", keeper, "uts");
            config["hostname"] = json!("");
        },
        ..DEFAULT
    },
    Configuration {
        name: "host-network",
        change: |config, _, _| without(config, "network"),
        ..DEFAULT
    },
    Configuration {
        name: "cgroup-namespace",
        change: |config, _, _| {
            let namespaces = config["linux"]["namespaces"].as_array_mut();
            let namespaces = namespaces.expect("namespaces");
            namespaces.retain(|namespace| namespace["type"] != "cgroup");
            namespaces.push(json!({"type": "cgroup"}));
        },
        ..DEFAULT
    },
    Configuration {
        name: "no-cgroup-namespace",
        change: |config, _, _| without(config, "cgroup"),
        ..DEFAULT
    },
    Configuration {
        name: "no-cgroup-mount",
        change: |config, _, _| {
            let mounts = config["mounts"].as_array_mut().expect("mounts");
            mounts.retain(|mount| mount["type"] != "cgroup");
        },
        ..DEFAULT
    },
    Configuration {
        name: "flags",
        dump: &[
            "--tcp-established",
            "--ext-unix-sk",
            "--shell-job",
            "--file-locks",
        ],
        our_dump: |options, _| {
            options
                .tcp_established(true)
                .ext_unix_sk(true)
                .shell_job(true)
                .file_locks(true)
        },
        restore: &[
            "--tcp-established",
            "--ext-unix-sk",
            "--shell-job",
            "--file-locks",
        ],
        our_restore: |options, _| {
            options
                .tcp_established(true)
                .ext_unix_sk(true)
                .shell_job(true)
                .file_locks(true)
        },
        ..DEFAULT
    },
    Configuration {
        name: "leave-running",
        dump: &["--leave-running"],
        our_dump: |options, _| options.leave_running(true),
        ..DEFAULT
    },
    Configuration {
        name: "work-path",
        dump: &["--work-path=DIR/work"],
        our_dump: |options, directory| options.work_path(directory.join("work")),
        restore: &["--work-path=DIR/work"],
        our_restore: |options, directory| options.work_path(directory.join("work")),
        ..DEFAULT
    },
    Configuration {
        name: "cgroups-full",
        dump: &["--manage-cgroups-mode=full"],
        our_dump: |options, _| options.manage_cgroups_mode(CgroupMode::Full),
        restore: &["--manage-cgroups-mode=full"],
        our_restore: |options, _| options.manage_cgroups_mode(CgroupMode::Full),
        ..DEFAULT
    },
    Configuration {
        name: "cgroups-strict",
        dump: &["--manage-cgroups-mode=strict"],
        our_dump: |options, _| options.manage_cgroups_mode(CgroupMode::Strict),
        restore: &["--manage-cgroups-mode=soft"],
        our_restore: |options, _| options.manage_cgroups_mode(CgroupMode::Soft),
        ..DEFAULT
    },
    Configuration {
        name: "cgroups-ignore",
        // runc has it since 1.2.
        engines: CRUN,
        dump: &["--manage-cgroups-mode=ignore"],
        our_dump: |options, _| options.manage_cgroups_mode(CgroupMode::Ignore),
        restore: &["--manage-cgroups-mode=ignore"],
        our_restore: |options, _| options.manage_cgroups_mode(CgroupMode::Ignore),
        ..DEFAULT
    },
    Configuration {
        name: "auto-dedup",
        engines: RUNC,
        dump: &["--auto-dedup"],
        our_dump: |options, _| options.auto_dedup(true),
        restore: &["--auto-dedup"],
        our_restore: |options, _| options.auto_dedup(true),
        ..DEFAULT
    },
    Configuration {
        name: "empty-ns",
        engines: RUNC,
        dump: &["--empty-ns=network"],
        our_dump: |options, _| options.criu(DumpOptions::new().empty_network_namespace(true)),
        restore: &["--empty-ns=network"],
        our_restore: |options, _| {
            options.criu(options::RestoreOptions::new().empty_network_namespace(true))
        },
        ..DEFAULT
    },
    Configuration {
        name: "page-server",
        engines: RUNC,
        // Nobody listens there.
        reaches: Reaches::Dump,
        dump: &["--page-server=127.0.0.1:9"],
        our_dump: |options, _| options.page_server(PageTransport::tcp("127.0.0.1", 9)),
        ..DEFAULT
    },
    Configuration {
        name: "network-lock",
        engines: CRUN,
        dump: &["--network-lock", "skip"],
        our_dump: |options, _| options.criu(DumpOptions::new().network_lock(NetworkLock::Skip)),
        restore: &["--network-lock", "skip"],
        ..DEFAULT
    },
    Configuration {
        name: "lsm",
        // This kernel has no such profile.
        reaches: Reaches::Restore,
        restore: &[
            "--lsm-profile=apparmor:nobody",
            "--lsm-mount-context=nothing",
        ],
        our_restore: |options, _| {
            options
                .lsm_profile("apparmor:nobody".parse().expect("a profile"))
                .lsm_mount_context("nothing")
        },
        ..DEFAULT
    },
    Configuration {
        name: "criu-config",
        change: |config, directory, _| {
            let file = directory.join("criu.conf");
            config["annotations"]["org.criu.config"] = json!(file);
        },
        ..DEFAULT
    },
    Configuration {
        name: "no-criu-config",
        change: |config, _, _| config["annotations"]["org.criu.config"] = json!(""),
        ..DEFAULT
    },
];

impl Configuration {
    fn reaches_of(&self, engine: &str) -> Reaches {
        let fails = self.fails.iter().find(|(failing, _)| *failing == engine);
        fails.map_or(self.reaches, |(_, reaches)| *reaches)
    }
}

fn mount(config: &mut Value, mount: Value) {
    config["mounts"].as_array_mut().expect("mounts").push(mount);
}

fn without(config: &mut Value, kind: &str) {
    let namespaces = config["linux"]["namespaces"].as_array_mut();
    namespaces
        .expect("namespaces")
        .retain(|namespace| namespace["type"] != kind);
}

fn join(config: &mut Value, kind: &str, keeper: u32, file: &str) {
    without(config, kind);
    let namespaces = config["linux"]["namespaces"].as_array_mut();
    let path = format!("/proc/{keeper}/ns/{file}");
    namespaces
        .expect("namespaces")
        .push(json!({"type": kind, "path": path}));
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = of::<RuncEngine>();
    cases.extend(of::<CrunEngine>());
    cases
}

fn of<E: Program>() -> Vec<Case> {
    CONFIGURATIONS
        .iter()
        .filter(|configuration| configuration.engines.contains(&E::NAME))
        .map(|configuration| Case {
            engine: E::NAME,
            configuration: configuration.name,
            reaches: configuration.reaches_of(E::NAME),
            make: Box::new(move |stage| {
                let container: Container<E> = Container::start(configuration, stage)?;
                Ok(Box::new(container))
            }),
        })
        .collect()
}

/// A container of such a configuration.
struct Container<E: Program> {
    configuration: &'static Configuration,
    box_: Fixture<E>,
    console: Option<Console>,
    /// The reading ends of pipes: at first, and after the restore with its other end.
    pipes: Vec<Lines>,
    new_stdout: Option<std::os::fd::OwnedFd>,
    keeper: Option<Keeper>,
}

/// A process that keeps namespaces.
struct Keeper(Child);

impl Keeper {
    fn of(kinds: &[&str]) -> Result<Self, String> {
        let options = kinds.iter().map(|kind| format!("--{kind}"));
        let child = Command::new("/usr/bin/unshare")
            .args(options)
            // Of a pid namespace the first process is another, and has to reap what ends there.
            .args(["--fork", "--kill-child", "/bin/busybox", "sh", "-c"])
            .arg("while :; do sleep 0.05; done")
            .stdin(Stdio::null())
            .spawn()
            .map_err(text)?;
        let keeper = Self(child);
        let file = match kinds[0] {
            "pid" => "pid_for_children",
            kind => kind,
        };
        let (own, its) = (
            fs::read_link(format!("/proc/self/ns/{file}")).map_err(text)?,
            format!("/proc/{}/ns/{file}", keeper.0.id()),
        );
        until("the keeper has its namespaces", || {
            fs::read_link(&its).is_ok_and(|link| link != own)
        })?;
        Ok(keeper)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl<E: Program> Container<E> {
    fn start(configuration: &'static Configuration, stage: &Stage) -> Result<Self, String> {
        let keeper = match configuration.kept {
            [] => None,
            kinds => Some(Keeper::of(kinds)?),
        };
        let kept_by = keeper.as_ref().map_or(0, |keeper| keeper.0.id());
        let mut box_ = Fixture::<E>::new(configuration.name)?;
        let directory = box_.directory.path().to_owned();
        fs::create_dir_all(directory.join("source/inner")).map_err(text)?;
        for made in ["work", "parent", "images"] {
            fs::create_dir_all(directory.join(made)).map_err(text)?;
        }
        fs::write(directory.join("source/file"), "").map_err(text)?;
        fs::write(directory.join("criu.conf"), "").map_err(text)?;
        box_.configure(|config| (configuration.change)(config, &directory, kept_by))?;
        box_.environment = stage.environment();
        let mut container = Self {
            configuration,
            box_,
            console: None,
            pipes: Vec::new(),
            new_stdout: None,
            keeper,
        };
        let bundle = container.box_.bundle().display().to_string();
        let id = container.box_.id.clone();
        let arguments = vec!["run", "-d", "--bundle", &bundle, &id];
        let stdout = match configuration.name {
            "pipe" => {
                let (lines, stdout) = Lines::pipe()?;
                container.pipes.push(lines);
                let (lines, after) = Lines::pipe()?;
                container.pipes.push(lines);
                container.new_stdout = Some(after);
                stdout.into()
            }
            _ => Stdio::null(),
        };
        if configuration.name == "terminal" {
            container.console = Some(Console::listen(directory.join("console"))?);
        }
        container.detached(&arguments, stdout)?;
        container.box_.counts()?;
        Ok(container)
    }

    /// Of the options, with the directory in its place.
    fn given(&self, options: &[&str]) -> Vec<String> {
        let directory = self.box_.directory.path().display().to_string();
        options
            .iter()
            .map(|option| option.replace("DIR", &directory))
            .collect()
    }

    fn detached(&mut self, arguments: &[&str], stdout: Stdio) -> Outcome {
        let Some(console) = &self.console else {
            return self.box_.run_detached(arguments, stdout);
        };
        let socket = console.path.display().to_string();
        let (verb, rest) = arguments.split_first().ok_or("no verb")?;
        let mut all = vec![*verb, "--console-socket", &socket];
        all.extend(rest);
        let box_ = &mut self.box_;
        let (ran, received) = std::thread::scope(|scope| {
            let receiving = scope.spawn(|| console.receive());
            let ran = box_.run_detached(&all, stdout);
            if ran.is_err() {
                // Whoever waits for a terminal that will not come.
                let _ = std::os::unix::net::UnixStream::connect(&console.path);
            }
            (ran, receiving.join())
        });
        ran?;
        let (master, _) = received.map_err(|_| "the console panicked".to_owned())??;
        self.pipes = vec![Lines(master.into())];
        Ok(())
    }

    fn images(&self) -> PathBuf {
        self.box_.directory.path().join("images")
    }
}

impl<E: Program> Container<E> {
    fn remove(&mut self) {
        let box_ = &mut self.box_;
        if box_.root().join(&box_.id).exists() {
            let _ = box_.try_run(&["delete", "--force", &box_.id]);
        }
        box_.reap();
        // After a failed restore of its own crun does not know it any more, and leaves its groups.
        for group in groups(&box_.id) {
            for below in fs::read_dir(&group).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(below.path());
            }
            let _ = fs::remove_dir(group);
        }
    }
}

impl<E: Program> Drop for Container<E> {
    fn drop(&mut self) {
        self.remove();
    }
}

impl<E: Program> Subject for Container<E> {
    fn planned_dump(&self) -> Result<Options, String> {
        let directory = self.box_.directory.path();
        let options = (self.configuration.our_dump)(CheckpointOptions::new(), directory);
        let (runtime, criu) = (self.box_.ours(), criu());
        let plan = runtime.plan_checkpoint(&criu, &self.box_.id, self.images(), options);
        let plan = block_on(plan).map_err(whole)?;
        Ok(plan.request.ok_or("no request")?.options)
    }

    fn dump(&mut self) -> Result<bool, String> {
        let images = self.images().display().to_string();
        let given = self.given(self.configuration.dump);
        let mut arguments = vec!["checkpoint", "--image-path", &images];
        arguments.extend(given.iter().map(String::as_str));
        arguments.push(&self.box_.id);
        let output = self.box_.try_run(&arguments)?;
        if !output.status.success() {
            return Ok(false);
        }
        if self.box_.state().is_ok() {
            // Left running: its restore needs its name.
            self.box_.run(&["delete", "--force", &self.box_.id])?;
        }
        self.box_.reap();
        self.box_.is_gone()?;
        Ok(true)
    }

    fn planned_restore(&self) -> Result<Option<Options>, String> {
        let box_ = &self.box_;
        let mut options = RestoreOptions::new().detach(true);
        if let Some(console) = &self.console {
            options = options.console_socket(&console.path);
        }
        if let Some(stdout) = &self.new_stdout {
            options = options.stdout(stdout.try_clone().map_err(text)?);
        }
        let options = (self.configuration.our_restore)(options, box_.directory.path());
        let images = criu_client::ImagesDir::open(self.images()).map_err(text)?;
        let (runtime, criu) = (box_.ours(), criu());
        let plan = runtime.plan_restore(&criu, &box_.id, &images, box_.bundle(), options);
        let plan = block_on(plan).map_err(whole)?;
        Ok(Some(plan.request.ok_or("no request")?.options))
    }

    fn restore(&mut self) -> Result<bool, String> {
        let (images, bundle) = (
            self.images().display().to_string(),
            self.box_.bundle().display().to_string(),
        );
        let (given, id) = (self.given(self.configuration.restore), self.box_.id.clone());
        let mut arguments = vec![
            "restore",
            "-d",
            "--bundle",
            &bundle,
            "--image-path",
            &images,
        ];
        arguments.extend(given.iter().map(String::as_str));
        arguments.push(&id);
        let stdout = self.new_stdout.as_ref().map(|fd| fd.try_clone());
        let stdout = stdout.transpose().map_err(text)?;
        let stdout = stdout.map_or_else(Stdio::null, Stdio::from);
        Ok(self.detached(&arguments, stdout).is_ok())
    }

    fn end(&mut self) -> Outcome {
        self.remove();
        let left = groups(&self.box_.id);
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    }

    fn names(&self) -> Vec<(String, &'static str)> {
        let directory = self.box_.directory.path().display().to_string();
        let mut names = vec![(directory, "DIR"), (self.box_.id.clone(), "ID")];
        for kind in ["net", "pid", "ipc", "uts"] {
            let keeper = self.keeper.as_ref().map_or(0, |keeper| keeper.0.id());
            if let Ok(link) = fs::read_link(format!("/proc/{keeper}/ns/{kind}")) {
                names.push((link.display().to_string(), "KEPT"));
            }
        }
        names
    }
}
