//! Listening in on real engines and the real CRIU: nothing changes for them, and everything is seen.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use criu_client::interpose::recording::{Event, Recording, Side};
use serde_json::Value;

use crate::engines::{ENGINES, Engine, Environment, Maker, with_engine};
use crate::support::*;

/// The program that listens in.
pub(crate) const CRIUCTL: &str = env!("CARGO_BIN_EXE_criuctl");

pub(crate) fn tests() -> Tests {
    let mut tests: Tests = Vec::new();
    for maker in ENGINES {
        let name = maker.0;
        let mut add = |what: &str, test: fn(Maker) -> Outcome| {
            let title = format!("interposed/{name}/{what}");
            tests.push((title, Box::new(move || test(maker))));
        };
        add("installed", installed);
        add("a-refused-hook", refused_hook);
        add("the-listener-dies", listener_dies);
        if name != "docker" {
            add("traced", traced);
        }
        if ["runc", "crun"].contains(&name) {
            add("a-process-that-was-added", added_process);
        }
    }
    tests.extend(named(
        "interposed/",
        &[
            ("other-command-lines-are-untouched", other_command_lines),
            ("amended", amended),
            ("the-guard-ends-what-notices-nothing", guarded),
            ("a-service", service),
        ],
    ));
    // Everything that the library does with CRIU, with a listener in between.
    let lists = [
        crate::core::tests(),
        crate::kept::tests(),
        crate::namespaces::tests(),
        crate::transfer::tests(),
        crate::hardship::tests(),
        crate::matrix::tests(),
    ];
    for (name, test) in lists.into_iter().flatten() {
        // Those with a CRIU of their own choice, and of other versions, are not about ours.
        if name.contains("4.1.1") || name.contains("4.3") || name.contains("streams") {
            continue;
        }
        tests.push((
            format!("interposed/{name}"),
            Box::new(move || {
                let stage = Stage::install(&[])?;
                with_criu_at(stage.criu(), &test)
            }),
        ));
    }
    tests
}

/// A directory that is put first on a PATH.
pub(crate) struct Stage(tempfile::TempDir);

impl Stage {
    pub(crate) fn install(options: &[&str]) -> Result<Self, String> {
        let stage = Self(tempfile::tempdir().map_err(text)?);
        let mut command = Command::new(CRIUCTL);
        command.args(["interpose", "install"]).arg(stage.path());
        command.arg("--record").arg(stage.recordings());
        run(command.args(options))?;
        Ok(stage)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("first")
    }

    pub(crate) fn criu(&self) -> PathBuf {
        self.path().join("criu")
    }

    fn recordings(&self) -> PathBuf {
        self.0.path().join("recordings")
    }

    pub(crate) fn environment(&self) -> Environment {
        Environment::first_on_path(self.path())
    }

    /// The recordings of the sessions, in the order in which they began.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>, String> {
        let mut files: Vec<PathBuf> = fs::read_dir(self.recordings())
            .map_err(text)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()
            .map_err(text)?;
        files.sort();
        Ok(files)
    }

    /// What happened in each. All of them must have ended.
    fn sessions(&self) -> Result<Vec<Vec<Event>>, String> {
        let sessions = self.files()?.into_iter().map(|name| {
            let file = fs::read(&name).map_err(text)?;
            let recording = Recording::read(file.as_slice())
                .map_err(|error| format!("{}: {error}", name.display()))?;
            Ok(recording
                .entries
                .into_iter()
                .map(|entry| entry.event)
                .collect())
        });
        sessions.collect()
    }

    /// The session of this request, once it has ended.
    pub(crate) fn session_of(&self, request: &str) -> Result<Vec<Event>, String> {
        let mut found = None;
        until("the session is recorded to its end", || {
            found = self.sessions().ok().and_then(|sessions| {
                sessions
                    .into_iter()
                    .rfind(|session| session.iter().any(|event| asks(event, request)))
            });
            found.is_some()
        })?;
        found.ok_or_else(|| "it has vanished".into())
    }
}

fn asks(event: &Event, request: &str) -> bool {
    matches!(event, Event::Message { from: Side::Engine, view, .. } if view["type"] == request)
}

/// Whether CRIU answered the last request of a session well.
fn succeeded(session: &[Event]) -> bool {
    session.iter().any(|event| {
        matches!(event, Event::Message { from: Side::Criu, view, .. }
            if view["type"] != "NOTIFY" && view["success"] == true)
    })
}

fn callbacks(session: &[Event]) -> Vec<&str> {
    let callbacks = session.iter().filter_map(|event| match event {
        Event::Message { view, .. } => view.get("notify")?.get("script")?.as_str(),
        _ => None,
    });
    callbacks.collect()
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(text)?;
    let complaints = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {}: {complaints}",
        output.status
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A program for a hook.
fn program(directory: &Path, text_of_it: &str) -> Result<PathBuf, String> {
    let path = directory.join("hook");
    fs::write(&path, format!("#!/bin/busybox sh\n{text_of_it}\n")).map_err(text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(text)?;
    Ok(path)
}

/// An engine's own checkpoint and restore with a listener and hooks in between.
fn installed(maker: Maker) -> Outcome {
    let scratch = tempfile::tempdir().map_err(text)?;
    let calls = scratch.path().join("calls");
    let hook = program(
        scratch.path(),
        &format!(
            "echo $CRTOOLS_SCRIPT_ACTION $CRTOOLS_IMAGE_DIR >>{}",
            calls.display()
        ),
    )?;
    let hook = |script: &str| format!("--hook={script}={}", hook.display());
    let stage = Stage::install(&[&hook("post-dump"), &hook("post-restore")])?;
    with_engine(maker, stage.environment(), |engine| {
        engine.start()?;
        engine.checkpoint("first")?;
        let dump = stage.session_of("DUMP")?;
        ensure!(succeeded(&dump), "{dump:?}");
        let seen = callbacks(&dump);
        ensure!(
            seen.contains(&"pre-dump") && seen.contains(&"post-dump"),
            "{seen:?}"
        );
        let stats = dump
            .iter()
            .any(|event| matches!(event, Event::Stats { .. }));
        ensure!(stats, "no statistics: {dump:?}");

        let counted = engine.ground().stands_still()?;
        engine.restore("first")?;
        engine.status()?.is_running()?;
        engine.ground().goes_on_from(&counted)?;
        let restore = stage.session_of("RESTORE")?;
        ensure!(succeeded(&restore), "{restore:?}");
        ensure!(callbacks(&restore).contains(&"post-restore"), "{restore:?}");

        let calls = fs::read_to_string(&calls).map_err(text)?;
        let words: Vec<&str> = calls
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        ensure!(
            words == ["post-dump", "post-restore"],
            "the hooks were called: {calls}"
        );
        Ok(())
    })
}

/// A hook refuses: the engine's checkpoint fails, and the container counts on.
fn refused_hook(maker: Maker) -> Outcome {
    let stage = Stage::install(&["--hook=post-dump=/bin/false"])?;
    with_engine(maker, stage.environment(), |engine| {
        engine.start()?;
        let before = engine.ground().count().ok_or("it does not count")?;
        let refused = engine.run(&engine.checkpoint_arguments("first"));
        ensure!(refused.is_err(), "the checkpoint succeeded: {refused:?}");
        let dump = stage.session_of("DUMP")?;
        ensure!(!succeeded(&dump), "{dump:?}");
        engine.status()?.is_running()?;
        engine.ground().goes_on_from(&before)
    })
}

/// The listener is killed while the tasks are frozen: the engine sees its CRIU die, and the container counts on.
fn listener_dies(maker: Maker) -> Outcome {
    let scratch = tempfile::tempdir().map_err(text)?;
    let hook = program(scratch.path(), "kill -9 $PPID")?;
    let hook = format!("--hook=query-ext-files={}", hook.display());
    let stage = Stage::install(&[&hook])?;
    with_engine(maker, stage.environment(), |engine| {
        engine.start()?;
        let before = engine.ground().count().ok_or("it does not count")?;
        let refused = engine.run(&engine.checkpoint_arguments("first"));
        ensure!(refused.is_err(), "the checkpoint succeeded: {refused:?}");
        engine.ground().goes_on_from(&before)?;
        engine.status()?.is_running()
    })
}

/// `criuctl trace` around an engine's own commands.
fn traced(maker: Maker) -> Outcome {
    let scratch = tempfile::tempdir().map_err(text)?;
    let trace =
        |engine: &dyn Engine, name: &str, arguments: &[String]| -> Result<Vec<Value>, String> {
            let record = scratch.path().join(format!("{name}.jsonl"));
            let output = scratch.path().join(format!("{name}.json"));
            let mut invocation: Vec<String> =
                vec![CRIUCTL.into(), "--format=json".into(), "trace".into()];
            invocation.push(format!("--record={}", record.display()));
            invocation.push(format!("--output={}", output.display()));
            invocation.push("--".into());
            invocation.extend(engine.invocation());
            invocation.extend_from_slice(arguments);
            let mut command = engine.ground().command(&invocation)?;
            command.stdout(Stdio::null()).stderr(Stdio::null());
            engine.ground().finish_silently(command)?;
            let file = fs::read(&record).map_err(text)?;
            Recording::read(file.as_slice()).map_err(|error| format!("{error}"))?;
            let mut read = Command::new(CRIUCTL);
            run(read.args(["--format=json", "trace", "--read"]).arg(&record))?;
            let lines = fs::read_to_string(&output).map_err(text)?;
            lines
                .lines()
                .map(|line| serde_json::from_str(line).map_err(text))
                .collect()
        };
    let summary = |lines: &[Value], request: &str| -> Outcome {
        let summary = lines
            .iter()
            .find(|line| line["kind"] == "TraceSummary" && line["request"] == request);
        let summary = summary.ok_or_else(|| format!("no summary of {request}: {lines:?}"))?;
        ensure!(
            summary["succeeded"] == true
                && summary["phases"]
                    .as_array()
                    .is_some_and(|phases| phases.len() > 3),
            "{summary}"
        );
        Ok(())
    };
    with_engine(maker, Environment::default(), |engine| {
        engine.start()?;
        let lines = trace(&*engine, "dump", &engine.checkpoint_arguments("first"))?;
        summary(&lines, "DUMP")?;
        let last = lines.last().ok_or("nothing was traced")?;
        ensure!(
            last["stats"]["frozenTimeMicros"].as_u64() > Some(0),
            "{last}"
        );
        engine.settle()?;
        let counted = engine.ground().stands_still()?;
        let lines = trace(&*engine, "restore", &engine.restore_arguments("first"))?;
        summary(&lines, "RESTORE")?;
        engine.status()?.is_running()?;
        engine.ground().goes_on_from(&counted)
    })
}

/// A process that was added to the container, and that came to us: CRIU kills the container's first process and waits for its
/// end, which comes only when we have reaped the other.
fn added_process(maker: Maker) -> Outcome {
    let stage = Stage::install(&[])?;
    with_engine(maker, stage.environment(), |engine| {
        engine.start()?;
        let ground = engine.ground();
        let file = ground.text("added.pid");
        let mut invocation = engine.invocation();
        let exec = ["exec", "-d", "--pid-file", &file, &ground.id];
        invocation.extend(exec.map(str::to_owned));
        invocation.extend(["/bin/sleep", "1000"].map(str::to_owned));
        let mut command = ground.command(&invocation)?;
        command.stdout(Stdio::null()).stderr(Stdio::null());
        ground.finish_silently(command)?;
        let added = fs::read_to_string(&file).map_err(text)?;
        let added = nix::unistd::Pid::from_raw(added.trim().parse().map_err(text)?);
        let reaped = std::thread::spawn(move || nix::sys::wait::waitpid(added, None));
        engine.run(&engine.checkpoint_arguments("first"))?;
        ensure!(
            matches!(reaped.join(), Ok(Ok(_))),
            "the added process did not come to us, so nothing is shown"
        );
        ensure!(succeeded(&stage.session_of("DUMP")?), "not well");
        engine.settle()
    })
}

fn other_command_lines() -> Outcome {
    let stage = Stage::install(&[])?;
    let with_listener = |arguments: &[&str]| Command::new(stage.criu()).args(arguments).output();
    let criu = criu();
    let real = criu.program().ok_or("no program")?;
    for arguments in [
        vec!["--version"],
        vec!["check"],
        vec!["--help"],
        vec!["dump", "-t", "1"],
        vec!["no-such-command"],
        vec!["swrk"],
    ] {
        let ours = with_listener(&arguments).map_err(text)?;
        let theirs = Command::new(real).args(&arguments).output().map_err(text)?;
        ensure!(
            ours.status == theirs.status,
            "{arguments:?}: {ours:?}, not {theirs:?}"
        );
        ensure!(
            ours.stdout == theirs.stdout,
            "{arguments:?}: {ours:?}, not {theirs:?}"
        );
    }
    ensure!(stage.sessions()?.is_empty(), "something was recorded");
    let mut remove = Command::new(CRIUCTL);
    run(remove.args(["interpose", "remove"]).arg(stage.path()))?;
    ensure!(
        !stage.path().exists(),
        "{} is still there",
        stage.path().display()
    );
    Ok(())
}

/// What is added to a request has its effect on the real CRIU.
fn amended() -> Outcome {
    let stage = Stage::install(&["--amend=dump:log-level=4", "--amend=dump:leave-running"])?;
    let victim = Victim::start(Kind::Network)?;
    let images = victim.images("images");
    with_criu_at(stage.criu(), || {
        let report =
            block_on(super::support::criu().dump(victim.pid, &images, (), victim.dump_options()));
        // Asked for is the tasks' end.
        let tasks = report.map_err(whole)?.tasks;
        ensure!(
            tasks == criu_client::TaskState::Running,
            "the tasks are {tasks}"
        );
        Ok(())
    })?;
    victim.goes_on()?;
    let log = fs::read_to_string(images.path().join("dump.log")).map_err(text)?;
    ensure!(log.lines().count() > 50, "the log is short: {log}");
    let dump = stage.session_of("DUMP")?;
    let added = dump.iter().find_map(|event| match event {
        Event::Amended { added, .. } => Some(added),
        _ => None,
    });
    let added = added.ok_or("nothing was amended")?;
    ensure!(added.len() == 2 && added["log_level"] == 4, "{added:?}");
    Ok(())
}

/// A lazy dump that waits for its connection does not notice that its listener has died, and this engine does not end it.
fn guarded() -> Outcome {
    let stage = Stage::install(&[])?;
    let victim = Victim::start(Kind::Plain)?;
    let images = victim.images("images");
    let client = Command::new(std::env::current_exe().map_err(text)?)
        .args([
            "--lazy-engine",
            &victim.pid.to_string(),
            &free_port().to_string(),
        ])
        .arg(stage.criu())
        .arg(images.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(text)?;
    let said = client.wait_with_output().map_err(text)?;
    ensure!(
        said.status.success(),
        "{}",
        String::from_utf8_lossy(&said.stdout)
    );
    victim.goes_on()
}

/// The engine of [`guarded`]: asks for a lazy dump, kills the listener when CRIU waits for a connection, and waits for CRIU.
pub(crate) fn be_a_lazy_engine(arguments: &[String]) -> Outcome {
    use criu_client::options::{DumpOptions, PageTransport};
    let [pid, port, criu, images] = arguments else {
        return Err(format!("wrong arguments {arguments:?}"));
    };
    nix::sys::prctl::set_child_subreaper(true).map_err(text)?;
    let images = criu_client::ImagesDir::open(images).map_err(text)?;
    let options = DumpOptions::new()
        .lazy_pages(true)
        .page_server(PageTransport::tcp("127.0.0.1", port.parse().map_err(text)?));
    let criu = criu_client::Criu::at(criu);
    let worker = block_on(async {
        let mut dump = criu
            .start_dump(pid.parse().map_err(text)?, &images, options)
            .await
            .map_err(whole)?;
        while let Some((notify, answer)) = dump.next().await {
            let last = notify.script() == criu_client::notify::Script::StatusReady;
            answer.accept().await;
            if last {
                break;
            }
        }
        let workers = workers_of(std::process::id());
        let worker = workers.first().copied().ok_or("there is no worker")?;
        // accept(2) and accept4(2)
        let accepts = |syscall: String| {
            ["43 ", "288 "]
                .iter()
                .any(|number| syscall.starts_with(number))
        };
        until("CRIU waits for a connection", || {
            fs::read_to_string(format!("/proc/{worker}/syscall")).is_ok_and(accepts)
        })?;
        let listener = children_named("criu-listener")
            .into_iter()
            .next()
            .ok_or("nobody listens in")?;
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(listener),
            nix::sys::signal::Signal::SIGKILL,
        )
        .map_err(text)?;
        // This engine does nothing about its CRIU.
        std::mem::forget(dump);
        Ok::<_, String>(worker)
    })?;
    until("the guard has ended CRIU", || {
        state(worker).is_none_or(|state| state == 'Z')
    })
}

fn children_named(name: &str) -> Vec<i32> {
    let own = std::process::id().cast_signed();
    let threads = fs::read_dir(format!("/proc/{own}/task"))
        .into_iter()
        .flatten()
        .flatten();
    threads
        .filter_map(|thread| thread.file_name().to_str()?.parse().ok())
        .flat_map(|thread: i32| {
            let path = format!("/proc/{own}/task/{thread}/children");
            let children = fs::read_to_string(path).unwrap_or_default();
            children
                .split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<i32>>()
        })
        .filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|comm| comm.trim_end() == name)
        })
        .collect()
}

/// Clients of a `criu service`, listened in on by `criuctl trace --listen`.
fn service() -> Outcome {
    let scratch = tempfile::tempdir().map_err(text)?;
    let real = scratch.path().join("real.socket");
    let ours = scratch.path().join("ours.socket");
    let record = scratch.path().join("record.jsonl");
    let criu = criu();
    let mut service = Command::new(criu.program().ok_or("no program")?)
        .args(["service", "--address"])
        .arg(&real)
        .arg("-W")
        .arg(scratch.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(text)?;
    let outcome = until("the service listens", || real.exists()).and_then(|()| {
        let mut trace = Command::new(CRIUCTL)
            .args(["--format=json", "trace", "--listen"])
            .arg(&ours)
            .arg("--service")
            .arg(&real)
            .arg("--record")
            .arg(&record)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(text)?;
        let asked = until("it listens in", || ours.exists()).and_then(|()| asked_through(&ours));
        let pid = nix::unistd::Pid::from_raw(trace.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).map_err(text)?;
        let status = trace.wait().map_err(text)?;
        ensure!(status.code() == Some(130), "the trace ended: {status}");
        asked
    });
    service.kill().map_err(text)?;
    service.wait().map_err(text)?;
    reap_orphans();
    outcome?;
    ensure!(!ours.exists(), "the socket was left behind");
    let file = fs::read(&record).map_err(text)?;
    let recording = Recording::read(file.as_slice()).map_err(text)?;
    let events: Vec<Event> = recording
        .entries
        .into_iter()
        .map(|entry| entry.event)
        .collect();
    ensure!(
        events.iter().any(|event| asks(event, "DUMP")) && succeeded(&events),
        "{events:?}"
    );
    Ok(())
}

fn asked_through(socket: &Path) -> Outcome {
    let criu = criu_client::Criu::service(socket);
    let victim = Victim::start(Kind::Network)?;
    let images = victim.images("images");
    block_on(async {
        criu.features().await.map_err(whole)?;
        let options = victim
            .dump_options()
            .leave(criu_client::options::Leave::Running);
        criu.dump(victim.pid, &images, (), options)
            .await
            .map_err(whole)
    })?;
    ensure!(images.contains("inventory.img"), "no images were written");
    victim.goes_on()
}
