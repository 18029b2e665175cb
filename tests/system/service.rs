//! A `criu service` that the tests start on a socket of their own.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use criu_client::notify::{Notify, Reply, Script, hook_fn};
use criu_client::options::{CheckOptions, DumpOptions, InheritKey, PageTransport, RestoreOptions};
use criu_client::{Criu, ErrorKind, LazyPagesOptions, TaskState};

use crate::support::*;

pub(crate) fn tests() -> Tests {
    let list: &[Test] = &[
        ("questions", questions),
        ("round-trip", round_trip),
        ("what-only-a-child-can-do", what_only_a_child_can_do),
        ("killed-in-the-middle", killed_in_the_middle),
        ("nobody-listens", nobody_listens),
    ];
    named("service/", list)
}

/// Ended when it is dropped.
pub(crate) struct Service {
    /// What was started.
    child: Child,
    /// What listens.
    pub(crate) pid: i32,
    directory: tempfile::TempDir,
}

impl Service {
    pub(crate) fn start() -> Result<Self, String> {
        Self::with_options(&[])
    }

    /// One that has put itself into the background: who listens is not who made the socket.
    pub(crate) fn daemon() -> Result<Self, String> {
        Self::with_options(&["--daemon", "--pidfile", "pid"])
    }

    fn with_options(options: &[&str]) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(text)?;
        let program = criu().program().ok_or("no program")?.to_owned();
        let mut command = Command::new(program);
        command
            .args(["service", "--address"])
            .arg(directory.path().join("socket"));
        command
            .arg("--work-dir")
            .arg(directory.path())
            .args(["--log-file", "service.log"])
            .args(options);
        // A group of its own: its workers are ended with it.
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().map_err(text)?;
        let pid = child.id().cast_signed();
        let mut service = Self {
            child,
            pid,
            directory,
        };
        until("the service listens", || service.socket().exists())?;
        // CRIU makes the socket a moment before it listens.
        until("the service answers", || {
            block_on(service.criu().version()).is_ok()
        })?;
        if !options.is_empty() {
            let written = service.directory.path().join("pid");
            let written = fs::read_to_string(written).map_err(text)?;
            service.pid = written.trim().parse().map_err(text)?;
        }
        Ok(service)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    pub(crate) fn criu(&self) -> Criu {
        Criu::service(self.socket())
    }

    fn group(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.id().cast_signed())
    }

    /// Kills the process that works on our connection.
    pub(crate) fn kill_worker(&self) -> Outcome {
        let workers = children(self.pid);
        ensure!(workers.len() == 1, "the service's workers are {workers:?}");
        kill(workers[0])
    }
}

pub(crate) fn kill(pid: i32) -> Outcome {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).map_err(text)
}

pub(crate) fn children(pid: i32) -> Vec<i32> {
    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .filter(|pid| state(*pid) != Some('Z'))
        .collect()
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = nix::sys::signal::killpg(self.group(), nix::sys::signal::Signal::SIGKILL);
        let _ = kill(self.pid);
        let _ = self.child.wait();
        until("the service is gone", || {
            reap_orphans();
            state(self.pid).is_none()
        })
        .unwrap_or_default();
    }
}

/// The service reaps its workers when it comes to it.
pub(crate) fn settled(service: &Service, traces: &Traces) -> Outcome {
    let own = service.pid;
    until("the service has reaped its workers", || {
        fs::read_to_string(format!("/proc/{own}/task/{own}/children"))
            .is_ok_and(|list| list.trim().is_empty())
    })?;
    traces.unchanged()
}

fn questions() -> Outcome {
    let service = Service::start()?;
    let traces = Traces::take();
    let version = block_on(service.criu().version()).map_err(whole)?;
    let directly = block_on(criu().version()).map_err(whole)?;
    ensure!(version == directly, "{version} instead of {directly}");
    block_on(service.criu().check(CheckOptions::new())).map_err(whole)?;
    let features = block_on(service.criu().features()).map_err(whole)?;
    let directly = block_on(criu().features()).map_err(whole)?;
    ensure!(features == directly, "{features:?} instead of {directly:?}");
    settled(&service, &traces)
}

fn round_trip() -> Outcome {
    let service = Service::start()?;
    let mut victim = Victim::start(Kind::Network)?;
    let images = victim.images("images");
    let traces = Traces::take();
    let scripts = std::sync::Mutex::new(Vec::new());
    let report = block_on(service.criu().dump(
        victim.pid,
        &images,
        noted(&scripts),
        DumpOptions::new(),
    ))
    .map_err(whole)?;
    ensure!(
        report.tasks == TaskState::Absent && report.stats.is_some(),
        "{report:?}"
    );
    let scripts = scripts.into_inner().map_err(text)?;
    ensure!(
        scripts == ["pre-dump", "network-lock", "query-ext-files", "post-dump"],
        "{scripts:?}"
    );
    victim.reap()?;
    let report =
        block_on(service.criu().restore(&images, (), RestoreOptions::new())).map_err(whole)?;
    ensure!(report.pid == victim.pid, "{report:?}");
    victim.goes_on()?;
    victim.end();
    orphans_are_gone(&[victim.pid])?;
    drop(images);
    settled(&service, &traces)
}

/// Refused before the service is asked.
fn what_only_a_child_can_do() -> Outcome {
    let service = Service::start()?;
    let victim = Victim::start(Kind::Plain)?;
    let images = victim.images("images");
    let traces = Traces::take();
    block_on(criu().dump(
        victim.pid,
        &images,
        (),
        DumpOptions::new().leave(criu_client::options::Leave::Running),
    ))
    .map_err(whole)?;
    // The victim would be in the way of any restore that got further than this.
    let service_criu = service.criu();
    let limited = service_criu
        .clone()
        .with_limits(criu_client::TimeLimits::default().settle(std::time::Duration::ZERO));
    let mut victim = victim;
    victim.end();
    let (_, pipe) = std::io::pipe().map_err(text)?;
    let key = InheritKey::Pipe(crate::victim::inode(&pipe)?);
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair().map_err(text)?;
    let inheriting = RestoreOptions::new().inherit_fd(key, pipe.into());
    let sending = DumpOptions::new().page_server(PageTransport::Connected(ours.into()));
    let own = std::process::id().cast_signed();
    block_on(async {
        let results = [
            (
                "rst_sibling",
                limited
                    .restore_child(&images, (), RestoreOptions::new())
                    .await
                    .err(),
            ),
            (
                "inherit_fd",
                limited.restore(&images, (), inheriting).await.err(),
            ),
            ("ps.fd", limited.dump(own, &images, (), sending).await.err()),
            (
                "lazy-pages",
                limited
                    .lazy_pages(&images, LazyPagesOptions::new())
                    .await
                    .err(),
            ),
        ];
        for (what, error) in results {
            let error = error.ok_or_else(|| format!("{what} was accepted"))?;
            let refused = matches!(error.kind(), ErrorKind::Unsupported { what: told, has, .. }
                if told.contains(what) && has == "a criu service");
            ensure!(refused, "{what}: {error:?}");
        }
        Ok(())
    })?;
    drop((images, _theirs));
    settled(&service, &traces)
}

/// The service and its worker are killed while the tasks stand still: they run on.
fn killed_in_the_middle() -> Outcome {
    let service = Service::start()?;
    let victim = Victim::start(Kind::Plain)?;
    let images = victim.images("images");
    let traces = Traces::take();
    let group = service.group();
    let hooks = hook_fn(async |notify: Notify| {
        if notify.script() == Script::PostDump {
            nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL)?;
        }
        Ok(Reply::Accept)
    });
    let error = match block_on(
        service
            .criu()
            .dump(victim.pid, &images, hooks, DumpOptions::new()),
    ) {
        Ok(report) => return Err(format!("the dump succeeded: {report:?}")),
        Err(error) => error,
    };
    ensure!(
        matches!(error.kind(), ErrorKind::Lost { exit: None }),
        "{error:?}"
    );
    ensure!(error.tasks() == TaskState::Running, "{error:?}");
    victim.goes_on()?;
    drop((images, service));
    until("no zombie of the service is left", || {
        reap_orphans();
        zombies().is_empty()
    })?;
    traces.unchanged()
}

fn nobody_listens() -> Outcome {
    let directory = tempfile::tempdir().map_err(text)?;
    let victim = Victim::start(Kind::Plain)?;
    let images = victim.images("images");
    let traces = Traces::take();
    let criu = Criu::service(directory.path().join("socket"));
    let error = match block_on(criu.dump(victim.pid, &images, (), DumpOptions::new())) {
        Ok(report) => return Err(format!("the dump succeeded: {report:?}")),
        Err(error) => error,
    };
    ensure!(
        matches!(error.kind(), ErrorKind::Connect { .. }),
        "{error:?}"
    );
    ensure!(error.tasks() == TaskState::Running, "{error:?}");
    victim.goes_on()?;
    drop(images);
    traces.unchanged()
}
