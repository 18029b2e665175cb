//! What every supported CRIU must do: the same tests against the installed one and those installed side by side.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use criu_client::notify::{Event, Notify, Reply, Script, hook_fn};
use criu_client::options::{
    CheckOptions, Compression, CpuCapabilities, CpuinfoOptions, DumpOptions, Leave, LogLevel, Lz4,
    PreDumpOptions, RestoreOptions,
};
use criu_client::{Criu, ErrorKind, Exit, HookFailure, ImagesDir, TaskState, Version};

use crate::cpuinfo;
use crate::support::*;

/// Where `scripts/install` puts the CRIUs that are tested besides the installed one.
pub(crate) const SIDE_BY_SIDE: &str = "/var/lib/criu-client-test";

/// What a test of one CRIU gets.
struct Subject {
    /// `None`: the installed one.
    version: Option<Version>,
}

type Test = fn(&Subject) -> Outcome;

pub(crate) fn tests() -> Tests {
    let subjects = [
        None,
        Some(Version::new(4, 1, 1)),
        Some(Version::new(4, 3, 0)),
    ];
    let list: [(&str, Test); 16] = [
        ("version", version),
        ("check", check),
        ("features", features),
        ("cpuinfo", cpuinfo),
        ("cpuinfo-of-another-machine", foreign_cpuinfo),
        ("round-trip", round_trip),
        ("leave-running", leave_running),
        ("leave-stopped", leave_stopped),
        ("hooks-of-a-plain-tree", plain_hooks),
        ("hooks-of-a-network-namespace", network_hooks),
        ("refused-at-post-dump", refused_at_post_dump),
        ("child-that-exits", child_that_exits),
        ("child-that-is-killed", child_that_is_killed),
        ("pre-dump", pre_dump),
        ("option-of-a-later-version", later_option),
        ("fresh-log-per-request", fresh_logs),
    ];
    let mut tests: Tests = Vec::new();
    for version in subjects {
        for (name, test) in list {
            let title = version
                .as_ref()
                .map_or("installed".into(), Version::to_string);
            let subject = Subject {
                version: version.clone(),
            };
            tests.push((
                format!("core/{title}/{name}"),
                Box::new(move || subject.test(test)),
            ));
        }
    }
    tests
}

impl Subject {
    fn program(&self) -> Option<PathBuf> {
        let version = self.version.as_ref()?;
        Some(PathBuf::from(SIDE_BY_SIDE).join(format!("criu-{version}/usr/sbin/criu")))
    }

    fn criu(&self) -> Criu {
        self.program().map_or_else(criu, Criu::at)
    }

    fn test(&self, test: Test) -> Outcome {
        if let Some(program) = self.program() {
            ensure!(
                program.exists(),
                "there is no {}; run scripts/install",
                program.display()
            );
        }
        test(self)
    }
}

fn version(subject: &Subject) -> Outcome {
    let traces = Traces::take();
    let criu = subject.criu();
    let version = block_on(criu.version()).map_err(whole)?;
    let program = criu.program().ok_or("no program")?;
    let printed = std::process::Command::new(program)
        .arg("--version")
        .output()
        .map_err(text)?;
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    ensure!(
        printed.contains(&version.to_string()),
        "{version} against {printed}"
    );
    if let Some(expected) = &subject.version {
        ensure!(version == *expected, "{version} is not {expected}");
    }
    traces.unchanged()
}

fn check(subject: &Subject) -> Outcome {
    let traces = Traces::take();
    let verdict = block_on(subject.criu().check(CheckOptions::new())).map_err(whole)?;
    ensure!(verdict.text.contains("Looks good"), "{verdict:?}");
    traces.unchanged()
}

fn features(subject: &Subject) -> Outcome {
    let traces = Traces::take();
    let features = block_on(subject.criu().features()).map_err(whole)?;
    ensure!(
        features.mem_track == Some(kernel_tracks_memory()?),
        "{features:?}"
    );
    ensure!(
        features.lazy_pages == Some(true) && features.pidfd_store == Some(true),
        "{features:?}"
    );
    let version = block_on(subject.criu().version()).map_err(whole)?;
    let knows_compression = version.has(&Version::new(4, 3, 0));
    ensure!(
        features.mem_compression.is_some() == knows_compression,
        "{features:?}"
    );
    traces.unchanged()
}

/// Whether this kernel has soft-dirty bits: a page that is written after a reset is marked with bit 55.
pub(crate) fn kernel_tracks_memory() -> Result<bool, String> {
    use std::os::unix::fs::FileExt;
    let mut page = vec![1u8; 8192];
    fs::write("/proc/self/clear_refs", "4").map_err(text)?;
    let address = page.as_ptr().align_offset(4096) + page.as_ptr() as usize;
    page.fill(2);
    let mut entry = [0; 8];
    fs::File::open("/proc/self/pagemap")
        .and_then(|pagemap| pagemap.read_exact_at(&mut entry, (address / 4096 * 8) as u64))
        .map_err(text)?;
    Ok(std::hint::black_box(page)[4096] == 2 && u64::from_ne_bytes(entry) & (1 << 55) != 0)
}

fn cpuinfo(subject: &Subject) -> Outcome {
    let directory = tempfile::tempdir().map_err(text)?;
    let traces = Traces::take();
    let images = ImagesDir::open(directory.path()).map_err(text)?;
    for capabilities in [None, Some(CpuCapabilities::ALL)] {
        let options = || match capabilities {
            Some(capabilities) => CpuinfoOptions::new().cpu_capabilities(capabilities),
            None => CpuinfoOptions::new(),
        };
        block_on(subject.criu().cpuinfo_dump(&images, options())).map_err(whole)?;
        ensure!(images.contains("cpuinfo.img"), "no cpuinfo.img was written");
        block_on(subject.criu().cpuinfo_check(&images, options())).map_err(whole)?;
    }
    drop(images);
    traces.unchanged()
}

/// An image that demands everything a processor could have is refused, whichever processor this is.
fn foreign_cpuinfo(subject: &Subject) -> Outcome {
    let directory = tempfile::tempdir().map_err(text)?;
    let traces = Traces::take();
    let images = ImagesDir::open(directory.path()).map_err(text)?;
    let options = || CpuinfoOptions::new().cpu_capabilities(CpuCapabilities::ALL);
    block_on(subject.criu().cpuinfo_dump(&images, options())).map_err(whole)?;
    cpuinfo::demand_everything(&directory.path().join("cpuinfo.img"))?;
    let error = match block_on(subject.criu().cpuinfo_check(&images, options())) {
        Ok(()) => return Err("a processor with every capability was found compatible".into()),
        Err(error) => error,
    };
    ensure!(
        matches!(error.kind(), ErrorKind::Refused { .. }),
        "{error:?}"
    );
    ensure!(error.tasks() == TaskState::NotConcerned, "{error:?}");
    ensure!(error.cause().is_some(), "no cause was found: {error:?}");
    let code = error.diagnosis().map(|diagnosis| diagnosis.code);
    ensure!(code == Some("cpu-mismatch"), "{code:?} of {error:?}");
    drop(images);
    traces.unchanged()
}

fn round_trip(subject: &Subject) -> Outcome {
    let mut victim = Victim::start(Kind::Plain)?;
    let images = victim.images("images");
    let traces = Traces::take();
    // At its own level, a CRIU that has nothing to complain about writes no log.
    let options = DumpOptions::new().log_level(LogLevel::Debug);
    let report = block_on(subject.criu().dump(victim.pid, &images, (), options)).map_err(whole)?;
    ensure!(
        report.tasks == TaskState::Absent && report.pid == victim.pid && !report.restored,
        "{report:?}"
    );
    let stats = report.stats.as_ref().ok_or("no statistics of the dump")?;
    ensure!(
        stats.pages_written > 0 && !stats.frozen_time.is_zero(),
        "{stats:?}"
    );
    ensure!(
        report.details.log.as_ref().is_some_and(|log| log.exists()),
        "{report:?}"
    );
    ensure!(!report.details.timings.total.is_zero(), "{report:?}");
    ensure!(images.contains("inventory.img"), "no inventory.img");
    victim.reap()?;
    let count = victim.count();
    let report =
        block_on(subject.criu().restore(&images, (), RestoreOptions::new())).map_err(whole)?;
    ensure!(report.pid == victim.pid, "{report:?}");
    let stats = report.stats.ok_or("no statistics of the restore")?;
    ensure!(
        stats.pages_restored.is_some_and(|pages| pages > 0),
        "{stats:?}"
    );
    victim.goes_on()?;
    ensure!(victim.count() > count, "it began anew");
    victim.end();
    drop(images);
    traces.unchanged()
}

fn leave_running(subject: &Subject) -> Outcome {
    let mut victim = Victim::start(Kind::Plain)?;
    let images = victim.images("images");
    let traces = Traces::take();
    let options = DumpOptions::new().leave(Leave::Running);
    let report = block_on(subject.criu().dump(victim.pid, &images, (), options)).map_err(whole)?;
    ensure!(report.tasks == TaskState::Running, "{report:?}");
    victim.goes_on()?;
    traces.unchanged()?;
    // The images are as good as those of a dump that kills.
    victim.end();
    let report =
        block_on(subject.criu().restore(&images, (), RestoreOptions::new())).map_err(whole)?;
    ensure!(report.pid == victim.pid, "{report:?}");
    victim.goes_on()
}

fn leave_stopped(subject: &Subject) -> Outcome {
    let mut victim = Victim::start(Kind::Plain)?;
    let images = victim.images("images");
    let traces = Traces::take();
    let options = DumpOptions::new().leave(Leave::Stopped);
    let report = block_on(subject.criu().dump(victim.pid, &images, (), options)).map_err(whole)?;
    ensure!(report.tasks == TaskState::Stopped, "{report:?}");
    until("it is stopped", || state(victim.pid) == Some('T'))?;
    go_on(victim.pid)?;
    victim.goes_on()?;
    victim.end();
    let options = RestoreOptions::new().leave_stopped(true);
    let report = block_on(subject.criu().restore(&images, (), options)).map_err(whole)?;
    until("the restored one is stopped", || {
        state(report.pid) == Some('T')
    })?;
    go_on(report.pid)?;
    victim.goes_on()?;
    victim.end();
    drop(images);
    traces.unchanged()
}

fn go_on(pid: i32) -> Outcome {
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGCONT,
    )
    .map_err(text)
}

fn plain_hooks(subject: &Subject) -> Outcome {
    hooks(
        subject,
        Kind::Plain,
        &["pre-dump", "query-ext-files", "post-dump"],
        &["pre-dump", "query-ext-files", "post-dump"],
        &["pre-restore", "post-restore", "pre-resume", "post-resume"],
    )
}

fn network_hooks(subject: &Subject) -> Outcome {
    hooks(
        subject,
        Kind::Network,
        &[
            "pre-dump",
            "network-lock",
            "query-ext-files",
            "post-dump",
            "network-unlock",
        ],
        &["pre-dump", "network-lock", "query-ext-files", "post-dump"],
        &[
            "pre-restore",
            "setup-namespaces",
            "post-setup-namespaces",
            "post-restore",
            "network-unlock",
            "pre-resume",
            "post-resume",
        ],
    )
}

/// The callbacks come in the order that is documented, with their pids, and the report has a phase for each.
fn hooks(
    subject: &Subject,
    kind: Kind,
    running: &[&str],
    killing: &[&str],
    restoring: &[&str],
) -> Outcome {
    let mut victim = Victim::start(kind)?;
    let pid = victim.pid;
    for (leave, expected) in [(Leave::Running, running), (Leave::Killed, killing)] {
        let images = victim.images(leave.as_str());
        let scripts = Mutex::new(Vec::new());
        let options = DumpOptions::new().leave(leave);
        let report =
            block_on(subject.criu().dump(pid, &images, noted(&scripts), options)).map_err(whole)?;
        let scripts = scripts.into_inner().map_err(text)?;
        ensure!(scripts == expected, "{leave}: {scripts:?}");
        phases(&report.details, expected)?;
    }
    victim.reap()?;
    let images = victim.images(Leave::Killed.as_str());
    let scripts = Mutex::new(Vec::new());
    let wrong = Mutex::new(Vec::new());
    let hooks = hook_fn(async |notify: Notify| {
        scripts
            .lock()
            .expect("the list")
            .push(notify.script().to_string());
        let told = match &notify.event {
            Event::SetupNamespaces { pid } | Event::PostRestore { pid } => Some(*pid),
            _ => None,
        };
        if told.is_some_and(|told| told != pid) {
            wrong.lock().expect("the list").push(format!("{notify:?}"));
        }
        Ok(Reply::Accept)
    });
    let report = block_on(
        subject
            .criu()
            .restore(&images, hooks, RestoreOptions::new()),
    )
    .map_err(whole)?;
    let scripts = scripts.into_inner().map_err(text)?;
    ensure!(scripts == restoring, "{scripts:?}");
    let wrong = wrong.into_inner().map_err(text)?;
    ensure!(wrong.is_empty(), "not of process {pid}: {wrong:?}");
    phases(&report.details, restoring)?;
    victim.goes_on()
}

fn phases(details: &criu_client::Details, scripts: &[&str]) -> Outcome {
    let phases: Vec<_> = details
        .timings
        .phases
        .iter()
        .map(|phase| phase.until.clone())
        .collect();
    let mut expected: Vec<_> = scripts
        .iter()
        .map(|name| Some(Script::from_name(name)))
        .collect();
    expected.push(None);
    ensure!(phases == expected, "{phases:?}");
    let sum: std::time::Duration = details
        .timings
        .phases
        .iter()
        .map(|phase| phase.criu + phase.hook)
        .sum();
    ensure!(
        sum <= details.timings.total,
        "{sum:?} of {:?}",
        details.timings.total
    );
    Ok(())
}

/// A dump that would kill is refused at the last moment: nobody is killed, and the images can be used all the same.
fn refused_at_post_dump(subject: &Subject) -> Outcome {
    let mut victim = Victim::start(Kind::Network)?;
    let images = victim.images("images");
    let traces = Traces::take();
    let hooks = hook_fn(async |notify: Notify| match notify.script() {
        Script::PostDump => Ok(Reply::Refuse("not today".into())),
        _ => Ok(Reply::Accept),
    });
    let error = match block_on(
        subject
            .criu()
            .dump(victim.pid, &images, hooks, DumpOptions::new()),
    ) {
        Ok(report) => return Err(format!("the dump succeeded: {report:?}")),
        Err(error) => error,
    };
    let refused = matches!(
        error.kind(),
        ErrorKind::Hook { script: Script::PostDump, failure: HookFailure::Refused(reason), .. } if reason == "not today"
    );
    ensure!(refused && error.tasks() == TaskState::Running, "{error:?}");
    victim.goes_on()?;
    is_unlocked(victim.pid)?;
    traces.unchanged()?;
    ensure!(images.contains("inventory.img"), "the images are gone");
    victim.end();
    block_on(subject.criu().restore(&images, (), RestoreOptions::new())).map_err(whole)?;
    victim.goes_on()
}

fn child_that_exits(subject: &Subject) -> Outcome {
    let directory = tempfile::tempdir().map_err(text)?;
    let status = directory.path().join("status");
    restored_child(
        subject,
        Spec::role("exit").argument(status.display()),
        Exit::Status(7),
        |_| fs::write(&status, "7").map_err(text),
    )
}

fn child_that_is_killed(subject: &Subject) -> Outcome {
    restored_child(
        subject,
        Spec::role("plain"),
        Exit::Signal(libc::SIGTERM),
        |pid| {
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGTERM,
            )
            .map_err(text)
        },
    )
}

fn restored_child(
    subject: &Subject,
    spec: Spec,
    exit: Exit,
    end: impl Fn(i32) -> Outcome,
) -> Outcome {
    let mut victim = spec.start()?;
    let images = victim.images("images");
    let traces = Traces::take();
    block_on(
        subject
            .criu()
            .dump(victim.pid, &images, (), DumpOptions::new()),
    )
    .map_err(whole)?;
    victim.reap()?;
    block_on(async {
        let restored = subject
            .criu()
            .restore_child(&images, (), RestoreOptions::new())
            .await
            .map_err(whole)?;
        ensure!(
            restored.root.pid() == victim.pid && restored.report.pid == victim.pid,
            "{restored:?}"
        );
        let stat = fs::read_to_string(format!("/proc/{}/stat", victim.pid)).map_err(text)?;
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1));
        ensure!(
            parent == Some(std::process::id().to_string().as_str()),
            "its parent is {parent:?}"
        );
        victim.goes_on()?;
        end(victim.pid)?;
        let ended = restored.root.wait().await.map_err(text)?;
        ensure!(ended == exit, "{ended:?}");
        Ok(())
    })?;
    drop(images);
    traces.unchanged()
}

/// Where the kernel can track memory a pre-dump works, and where it cannot the tasks run on.
fn pre_dump(subject: &Subject) -> Outcome {
    let victim = Victim::start(Kind::Plain)?;
    let images = victim.images("images");
    let tracks = kernel_tracks_memory()?;
    let traces = Traces::take();
    match block_on(
        subject
            .criu()
            .pre_dump(victim.pid, &images, PreDumpOptions::new()),
    ) {
        Ok(report) => ensure!(tracks && report.stats.is_some(), "{report:?}"),
        Err(error) => {
            ensure!(!tracks, "{error:?}");
            ensure!(error.tasks() == TaskState::Running, "{error:?}");
            ensure!(
                matches!(error.kind(), ErrorKind::Refused { .. }),
                "{error:?}"
            );
            // 4.1.1 says so by running into an assertion.
            let code = error.diagnosis().map(|diagnosis| diagnosis.code);
            ensure!(code == Some("no-soft-dirty"), "{code:?} of {error:?}");
        }
    }
    victim.goes_on()?;
    drop(images);
    traces.unchanged()
}

/// What this CRIU would silently ignore is refused before it is asked; what it has, it is asked.
fn later_option(subject: &Subject) -> Outcome {
    let victim = Victim::start(Kind::Plain)?;
    let images = victim.images("images");
    let traces = Traces::take();
    let options = DumpOptions::new()
        .compression(Compression::Lz4(Lz4::new()))
        .leave(Leave::Running);
    let result = block_on(subject.criu().dump(victim.pid, &images, (), options));
    let version = block_on(subject.criu().version()).map_err(whole)?;
    if version.has(&Version::new(4, 3, 0)) {
        let compresses = block_on(subject.criu().features())
            .map_err(whole)?
            .mem_compression;
        match result {
            Ok(report) => ensure!(compresses == Some(true), "{report:?}"),
            Err(error) => ensure!(
                compresses == Some(false)
                    && matches!(error.kind(), ErrorKind::Refused { .. })
                    && error.diagnosis().map(|found| found.code) == Some("compression-not-built"),
                "{error:?}"
            ),
        }
    } else {
        let error = match result {
            Ok(report) => {
                return Err(format!(
                    "an option that it does not know was taken: {report:?}"
                ));
            }
            Err(error) => error,
        };
        let told = matches!(
            error.kind(),
            ErrorKind::Unsupported { what, needs, has }
                if what == "compress" && needs == "CRIU 4.3" && *has == version.to_string()
        );
        ensure!(told && error.tasks() == TaskState::Running, "{error:?}");
        let written = fs::read_dir(images.path()).map_err(text)?.count();
        ensure!(written == 0, "{written} files were written");
    }
    victim.goes_on()?;
    drop(images);
    traces.unchanged()
}

fn fresh_logs(subject: &Subject) -> Outcome {
    let victim = Victim::start(Kind::Plain)?;
    let images = victim.images("images");
    let mut logs = Vec::new();
    for _ in 0..3 {
        let options = DumpOptions::new()
            .leave(Leave::Running)
            .log_level(LogLevel::Debug);
        let report =
            block_on(subject.criu().dump(victim.pid, &images, (), options)).map_err(whole)?;
        logs.push(report.details.log.ok_or("no log")?);
    }
    for name in ["dump.log", "dump-2.log", "dump-3.log"] {
        let log = images.path().join(name);
        ensure!(logs.contains(&log), "{name} is not among {logs:?}");
        let length = fs::metadata(&log).map_err(text)?.len();
        ensure!(length > 0, "{name} is empty");
    }
    victim.goes_on()
}
