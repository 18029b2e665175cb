//! What a service's process leaves when it is killed, and what a client can do about it: as much as after a worker of its own
//! where it shares the service's pid namespace, and no harm where it does not.

use std::fs;
use std::io::{BufRead, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use criu_client::notify::{Notify, Reply, Script, hook_fn};
use criu_client::options::{DumpOptions, PageServerOptions, PageTransport, RestoreOptions};
use criu_client::{Criu, ErrorKind, ImagesDir, TaskState};

use crate::service::{Service, kill, settled};
use crate::support::*;

pub(crate) fn tests() -> Tests {
    let list: &[Test] = &[
        ("page-server-dropped", page_server_dropped),
        ("page-server-interrupted", page_server_interrupted),
        ("daemon/worker-killed-during-a-dump", || {
            dump_worker_killed(&Service::daemon()?, &Script::QueryExternalFiles)
        }),
        ("elsewhere/worker-killed-during-a-dump", elsewhere_dump),
        (
            "elsewhere/worker-killed-during-a-restore",
            elsewhere_restore,
        ),
        ("elsewhere/page-server-dropped", elsewhere_page_server),
    ];
    let mut tests = named("service/", list);
    let dump = [
        Script::PreDump,
        Script::NetworkLock,
        Script::QueryExternalFiles,
        Script::PostDump,
    ];
    let restore = [
        Script::PreRestore,
        Script::SetupNamespaces,
        Script::PostSetupNamespaces,
        Script::PostRestore,
        Script::NetworkUnlock,
        Script::PreResume,
    ];
    for script in dump {
        tests.push((
            format!("service/worker-killed/dump/{script}"),
            Box::new(move || dump_worker_killed(&Service::start()?, &script)),
        ));
    }
    for script in restore {
        tests.push((
            format!("service/worker-killed/restore/{script}"),
            Box::new(move || restore_worker_killed(&script)),
        ));
    }
    tests
}

fn lost(error: &criu_client::Error, tasks: TaskState) -> Outcome {
    ensure!(
        matches!(error.kind(), ErrorKind::Lost { exit: None }),
        "{error:?}"
    );
    ensure!(
        error.tasks() == tasks,
        "tasks are {}: {error:?}",
        error.tasks()
    );
    Ok(())
}

/// What the service's process leaves when it is killed is undone as that of a worker of our own.
fn dump_worker_killed(service: &Service, script: &Script) -> Outcome {
    let victim = Victim::start(Kind::Network)?;
    let images = victim.images("images");
    let traces = Traces::take();
    let hooks = hook_fn(async |notify: Notify| {
        if notify.script() == *script {
            service.kill_worker()?;
        }
        Ok(Reply::Accept)
    });
    let criu = service.criu();
    let dump = criu.dump(victim.pid, &images, hooks, DumpOptions::new());
    let error = match block_on(dump) {
        Ok(report) => return Err(format!("the dump succeeded: {report:?}")),
        Err(error) => error,
    };
    lost(&error, TaskState::Running)?;
    ensure!(error.left_behind().is_empty(), "{error:?}");
    let locked = matches!(script, Script::QueryExternalFiles | Script::PostDump);
    ensure!(error.undone().is_empty() != locked, "{error:?}");
    is_unlocked(victim.pid)?;
    victim.goes_on()?;
    drop(images);
    settled(service, &traces)
}

fn restore_worker_killed(script: &Script) -> Outcome {
    let service = Service::start()?;
    let mut victim = Victim::start(Kind::Network)?;
    let images = victim.images("images");
    victim.killed_into(&images, victim.dump_options())?;
    let traces = Traces::take();
    let released = *script == Script::PreResume;
    let hooks = hook_fn(async |notify: Notify| {
        if notify.script() == *script {
            service.kill_worker()?;
        }
        Ok(Reply::Accept)
    });
    let criu = service.criu();
    let restore = criu.restore(&images, hooks, RestoreOptions::new());
    let error = match block_on(restore) {
        Ok(report) => return Err(format!("the restore succeeded: {report:?}")),
        Err(error) => error,
    };
    ensure!(error.left_behind().is_empty(), "{error:?}");
    match released {
        true => {
            lost(&error, TaskState::Running)?;
            victim.goes_on()?;
            victim.end();
        }
        false => {
            lost(&error, TaskState::Absent)?;
            let left = with_argument(&victim.count_file());
            ensure!(
                left.is_empty() && !victim.exists(),
                "{left:?} is left: {error:?}"
            );
            let made = *script != Script::PreRestore;
            ensure!(error.undone().is_empty() != made, "{error:?}");
        }
    }
    until("the dead root is reaped", || {
        reap_orphans();
        state(victim.pid).is_none()
    })?;
    // And the same images restore for good now.
    block_on(service.criu().restore(&images, (), RestoreOptions::new())).map_err(whole)?;
    victim.goes_on()?;
    victim.end();
    drop(images);
    settled(&service, &traces)
}

fn listens(port: u16) -> bool {
    // In the kernel's table, for a connection would be the one that the server waits for.
    fs::read_to_string("/proc/net/tcp").is_ok_and(|table| {
        table.lines().any(|line| {
            let mut words = line.split_whitespace().skip(1);
            words
                .next()
                .is_some_and(|local| local.ends_with(&format!(":{port:04X}")))
                && words.nth(1) == Some("0A")
        })
    })
}

fn page_server_dropped() -> Outcome {
    let service = Service::start()?;
    let directory = tempfile::tempdir().map_err(text)?;
    let images = ImagesDir::open(directory.path()).map_err(text)?;
    let traces = Traces::take();
    let criu = service.criu();
    let (port, workers) = block_on(async {
        let transport = PageTransport::tcp("127.0.0.1", free_port());
        let server = criu
            .page_server(&images, PageServerOptions::new().transport(transport))
            .await
            .map_err(whole)?;
        let port = server.port().ok_or("no port")?;
        ensure!(listens(port), "nobody listens on {port}");
        let workers = descendants(service.pid);
        drop(server);
        criu.settled().await;
        Ok((port, workers))
    })?;
    ensure!(!listens(port), "the page server still listens");
    drop(images);
    orphans_are_gone(&workers)?;
    settled(&service, &traces)
}

fn page_server_interrupted() -> Outcome {
    let service = Service::start()?;
    let directory = tempfile::tempdir().map_err(text)?;
    let traces = Traces::take();
    let port = free_port();
    let mut criuctl = Command::new(env!("CARGO_BIN_EXE_criuctl"))
        .arg("--service")
        .arg(service.socket())
        .args(["page-server", "--address", "127.0.0.1", "--port"])
        .arg(port.to_string())
        .arg("--image-path")
        .arg(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(text)?;
    until("the page server listens", || listens(port))?;
    // It may not have got to know yet.
    std::thread::sleep(std::time::Duration::from_millis(100));
    let workers = descendants(service.pid);
    let pid = nix::unistd::Pid::from_raw(criuctl.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).map_err(text)?;
    let status = criuctl.wait().map_err(text)?;
    ensure!(status.code() == Some(130), "criuctl ended with {status}");
    ensure!(!listens(port), "the page server still listens");
    orphans_are_gone(&workers)?;
    settled(&service, &traces)
}

/// A client in a pid namespace of its own, so that what the service tells of processes means others there.
struct Elsewhere {
    client: Child,
    said: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
}

impl Elsewhere {
    fn start(verb: &str, service: &Service, pid: i32, images: &Path) -> Result<Self, String> {
        let mut client = Command::new("unshare")
            .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
            .arg(std::env::current_exe().map_err(text)?)
            .args(["--elsewhere", verb])
            .arg(service.socket())
            .arg(pid.to_string())
            .arg(images)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(text)?;
        let output = client.stdout.take().ok_or("no output")?;
        Ok(Self {
            client,
            said: std::io::BufReader::new(output).lines(),
        })
    }

    /// What it says next.
    fn says(&mut self) -> Result<serde_json::Value, String> {
        let line = self.said.next().ok_or("the client has ended")?;
        serde_json::from_str(&line.map_err(text)?).map_err(text)
    }

    fn go_on(&mut self) -> Outcome {
        let input = self.client.stdin.as_mut().ok_or("no input")?;
        input.write_all(b"\n").map_err(text)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

/// The part of the client elsewhere. Processes that have nothing to do with CRIU have the numbers that it is told, or nobody.
pub(crate) fn be_a_client_elsewhere(arguments: &[String]) -> Outcome {
    let [verb, socket, pid, images] = arguments else {
        return Err(format!("wrong arguments {arguments:?}"));
    };
    let pid: i32 = pid.parse().map_err(text)?;
    let images = ImagesDir::open(Path::new(images)).map_err(text)?;
    let criu = Criu::service(socket);
    let mut strangers = Vec::new();
    // What has the number that CRIU restores a task at stands in nobody's way, and nobody need have that of a task to dump.
    if verb != "dump" {
        strangers.push(Stranger::at(pid)?);
    }
    if verb == "page-server" {
        // Each takes a number outside as well.
        for _ in 1..100 {
            strangers.push(Stranger::start()?);
        }
    }
    let hold_at = match verb.as_str() {
        "dump" => Script::QueryExternalFiles,
        _ => Script::PostRestore,
    };
    let hooks = hook_fn(|notify: Notify| {
        let mut held = Ok(());
        if notify.script() == hold_at {
            held = say(&serde_json::json!("holding"));
        }
        std::future::ready(held.map(|()| Reply::Accept).map_err(Into::into))
    });
    let error = block_on(async {
        match verb.as_str() {
            "dump" => criu
                .dump(pid, &images, hooks, DumpOptions::new())
                .await
                .map(drop),
            "restore" => criu
                .restore(&images, hooks, RestoreOptions::new())
                .await
                .map(drop),
            _ => {
                let transport = PageTransport::tcp("127.0.0.1", free_port());
                let options = PageServerOptions::new().transport(transport);
                let server = criu.page_server(&images, options).await.map_err(whole)?;
                let known = strangers.iter().any(|s| s.pid() == server.pid());
                say(&serde_json::json!({ "pid": server.pid(), "known": known }))?;
                drop(server);
                criu.settled().await;
                return Ok(None);
            }
        }
        .err()
        .map_or_else(|| Err("it succeeded".to_owned()), |error| Ok(Some(error)))
    })?;
    let live = strangers.iter().all(Stranger::lives);
    say(&serde_json::json!({ "error": error, "strangersLive": live }))
}

/// Tells a line and waits for one.
fn say(what: &serde_json::Value) -> Outcome {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{what}").map_err(text)?;
    stdout.flush().map_err(text)?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(text)?;
    Ok(())
}

/// Lets the client ask `verb`, kills the service's process at the callback that it holds at, and demands that it says that it
/// does not know how the tasks are and what may be left.
fn killed_elsewhere(
    verb: &str,
    service: &Service,
    pid: i32,
    images: &ImagesDir,
    left: &str,
) -> Outcome {
    let mut client = Elsewhere::start(verb, service, pid, images.path())?;
    let said = client.says()?;
    ensure!(said == "holding", "the client said {said}");
    service.kill_worker()?;
    client.go_on()?;
    let said = client.says()?;
    client.go_on()?;
    ensure!(said["strangersLive"] == true, "{said}");
    ensure!(said["error"]["code"] == "lost", "{said}");
    ensure!(said["error"]["tasks"] == "unknown", "{said}");
    let told = said["error"]["leftBehind"].to_string();
    ensure!(
        told.contains(left) && told.contains("another pid namespace"),
        "{said}"
    );
    Ok(())
}

fn elsewhere_dump() -> Outcome {
    let service = Service::start()?;
    let victim = Victim::start(Kind::Network)?;
    let images = victim.images("images");
    killed_elsewhere("dump", &service, victim.pid, &images, "network lock")?;
    victim.exists().then_some(()).ok_or("the victim is gone")?;
    Ok(())
}

fn elsewhere_restore() -> Outcome {
    let service = Service::start()?;
    let mut victim = Victim::start(Kind::Network)?;
    let images = victim.images("images");
    victim.killed_into(&images, victim.dump_options())?;
    killed_elsewhere("restore", &service, victim.pid, &images, "half-restored")?;
    ensure!(victim.exists(), "nothing was left, so nothing is shown");
    victim.end();
    Ok(())
}

fn elsewhere_page_server() -> Outcome {
    let service = Service::start()?;
    let directory = tempfile::tempdir().map_err(text)?;
    // The client makes a hundred processes first, and has them at the hundred numbers that come after those.
    let here = Stranger::start()?.pid();
    let images = ImagesDir::open(directory.path()).map_err(text)?;
    let mut client = Elsewhere::start("page-server", &service, here + 100, images.path())?;
    let said = client.says()?;
    let server: i32 = said["pid"]
        .as_i64()
        .and_then(|pid| pid.try_into().ok())
        .ok_or_else(|| format!("the client said {said}"))?;
    client.go_on()?;
    let ended = client.says()?;
    client.go_on()?;
    let lives = state(server).is_some_and(|state| state != 'Z');
    let _ = kill(server);
    ensure!(
        said["known"] == true && lives,
        "the page server's number means nobody there, so nothing is shown: {said}"
    );
    ensure!(ended["strangersLive"] == true, "{ended}");
    Ok(())
}
