//! runc and crun.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use criu_client::container::crun::CrunEngine;
use criu_client::container::runc::RuncEngine;
use criu_client::container::runtime::{CheckpointOptions, RestoreOptions};

use super::configurations::{CONFIGURATIONS, Configuration};
use super::{Case, Options, Subject};
use crate::interposed::Stage;
use crate::runtimes::fixture::{Console, Fixture, Lines, Program, groups, whole};
use crate::support::{Outcome, block_on, criu, ensure, text, until};

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
    _taken: Option<TcpListener>,
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
        let taken = (configuration.taken)
            .map(|port| TcpListener::bind(("0.0.0.0", port)))
            .transpose()
            .map_err(text)?;
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
            _taken: taken,
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
