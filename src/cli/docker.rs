//! Checkpoint and restore of Docker's containers.

use std::cell::Cell;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use criu_client::container::docker::{Docker, RestoreOptions, Restored};
use criu_client::container::{ErrorKind, Status};
use criu_client::{DumpReport, OperationKind, TaskState};

use super::Context;
use super::checkpoint::{self, images_to_write};
use super::checkpoint_args::Checkpoint;
use super::container::{checkpoint_options, left_behind, refuse_what_is_known};
use super::container_args::Containers;
use super::dry_run::{images_to_plan, tell_checkpoint, tell_restore};
use super::failure::Failure;
use super::hooks::CliHooks;
use super::output::{pages, time};
use super::restore::{PidFile, images_to_read};
use super::restore_args::Restore;
use super::signals::Interrupts;

/// What is said where Docker listens, before the path of a socket.
const UNIX: &str = "unix://";
/// What of the options of a restore is not for CRIU.
const OWN: [&str; 6] = [
    "image-path",
    "docker-host",
    "detach",
    "pid-file",
    "dry-run",
    "mode",
];

/// What a restore must be told again that the checkpoint was told.
const REPEATED: [&str; 4] = ["tcp-established", "ext-unix-sk", "file-locks", "shell-job"];

/// The result of a checkpoint.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Checkpointed<'a, P> {
    target: String,
    container: &'a str,
    images_dir: &'a Path,
    pre_dump: bool,
    #[serde(flatten)]
    report: &'a DumpReport,
    plan: &'a P,
    left_behind: &'a [String],
}

/// The result of a pre-dump.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PreDumped<'a, R> {
    target: String,
    images_dir: &'a Path,
    pre_dump: bool,
    #[serde(flatten)]
    report: &'a R,
}

/// The result of a restore.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Done<'a> {
    target: String,
    images_dir: &'a Path,
    detached: bool,
    #[serde(flatten)]
    restored: &'a Restored,
}

impl Containers {
    /// The daemon that the command line or the environment names.
    pub(super) fn docker(&self) -> Result<Docker, Failure> {
        match self.docker_host.as_deref() {
            None | Some("") => Ok(Docker::new()),
            Some(host) => match host.strip_prefix(UNIX).filter(|path| !path.is_empty()) {
                Some(path) => Ok(Docker::with_socket(path)),
                None => Err(Failure::usage(format!(
                    "--docker-host (DOCKER_HOST): {host:?} is not on this host, whose processes alone CRIU can see"
                ))
                .hint("name the daemon's socket as unix:///var/run/docker.sock, on the host where it runs")),
            },
        }
    }
}

pub(super) async fn checkpoint(
    context: &Context,
    args: &Checkpoint,
    docker: &Docker,
    id: &str,
) -> Result<(), Failure> {
    refuse_what_is_known(args)?;
    let output = &context.output;
    let criu = context.criu(args.program_arguments())?;
    let pre_dump = args.dump_memory.pre_dump;
    // Found before a directory is made for it.
    let plan = docker
        .dump_plan(
            id,
            args.consumer(),
            pre_dump || args.dump_tasks.leave_running,
        )
        .await?;
    // A dry run has them among all else.
    for note in plan.notes.iter().filter(|_| !args.dry_run.dry_run) {
        output.note(note);
    }
    let state = Cell::new(TaskState::Unknown);
    let settled = async {
        criu.settled().await;
        state.set(state_of(docker, id).await);
    };
    if pre_dump {
        let options = args.pre_dump_options()?;
        if args.dry_run.dry_run {
            let images = images_to_plan(args)?;
            let plan = docker.plan_pre_dump(&criu, id, images, options).await?;
            return tell_checkpoint(context, args, target(id), plan);
        }
        let images = images_to_write(args)?;
        let dumped = docker.pre_dump(&criu, id, &images, options);
        let report = Interrupts::new()?
            .guard(OperationKind::PreDump, output, dumped, settled, || {
                state.get()
            })
            .await?;
        let done = PreDumped {
            target: target(id),
            images_dir: images.path(),
            pre_dump,
            report: &report,
        };
        return output.result("Checkpoint", &done, || {
            checkpoint::pre_dumped(output, args, &report, images.path())
        });
    }
    let operation = OperationKind::Dump;
    let hooks = CliHooks::new(&args.criu_more.hooks, operation)?;
    let options = checkpoint_options(args)?;
    if !args.dump_tasks.leave_running {
        let config = docker.load(id).await?.criu_config;
        not_to_be_repeated(context, &super::given("checkpoint"), &config);
    }
    if args.dry_run.dry_run {
        let images = images_to_plan(args)?;
        let plan = docker.plan_checkpoint(&criu, id, images, options).await?;
        return tell_checkpoint(context, args, target(id), plan);
    }
    let images = images_to_write(args)?;
    let dumped = docker.checkpoint(&criu, id, &images, hooks, options);
    let report = Interrupts::new()?
        .guard(operation, output, dumped, settled, || state.get())
        .await?;
    super::report::ignored_refusals(output, &report.dump.details);
    left_behind(context, &report.left_behind);
    let done = Checkpointed {
        target: target(id),
        container: &report.id,
        images_dir: images.path(),
        pre_dump,
        report: &report.dump,
        plan: &report.plan,
        left_behind: &report.left_behind,
    };
    output.result("Checkpoint", &done, || {
        checkpoint::dumped(output, args, &report.dump, images.path())
    })
}

pub(super) async fn restore(
    context: &Context,
    args: &Restore,
    docker: &Docker,
    id: &str,
) -> Result<ExitCode, Failure> {
    let given = super::given("restore");
    if given.iter().any(|option| !OWN.contains(&option.as_str())) {
        let config = docker.load(id).await?.criu_config;
        passes_on(&given, &config, &read(&config))?;
    }
    if context.global.criu.is_some() || context.global.service.is_some() {
        return Err(Failure::usage(
            "--criu and --service: Docker restores its containers by itself, with the criu on the path that it was given",
        )
        .hint("leave it out"));
    }
    let output = &context.output;
    let images = images_to_read(args, None)?;
    if args.dry_run.dry_run {
        PidFile::check(args)?;
        let plan = docker.plan_restore(id, &images).await?;
        tell_restore(context, args, target(id), plan)?;
        return Ok(ExitCode::SUCCESS);
    }
    let pid_file = PidFile::of(args)?;
    let mut options = RestoreOptions::new();
    if let Some(limit) = context.global.timeout {
        options = options.limit(limit);
    }
    let operation = OperationKind::Restore;
    let state = Cell::new(TaskState::Unknown);
    let settled = async {
        docker.settled().await;
        state.set(state_of(docker, id).await);
    };
    let mut interrupts = Interrupts::new()?;
    let restoring = docker.restore(id, &images, options);
    let interrupted = interrupts
        .guard(operation, output, restoring, settled, || state.get())
        .await;
    let restored = match interrupted {
        Err(failure) if failure.is_time_limit() => {
            // The links to the images are removed when Docker has answered.
            let state = async {
                docker.settled().await;
                state_of(docker, id).await
            };
            return Err(interrupts
                .out_of_time(operation, output, failure, state)
                .await);
        }
        interrupted => interrupted?,
    };
    left_behind(context, &restored.left_behind);
    if let (Some(file), Some(pid)) = (pid_file, restored.container.pid) {
        file.publish(pid)?;
    }
    let done = Done {
        target: target(id),
        images_dir: images.path(),
        detached: true,
        restored: &restored,
    };
    output.result("Restore", &done, || text(&restored, images.path()))?;
    Ok(ExitCode::SUCCESS)
}

/// Docker restores by itself, and tells the runtime nothing but the images. What is in CRIU's own configuration for runc
/// comes to pass all the same.
fn passes_on(given: &[String], path: &Path, config: &str) -> Result<(), Failure> {
    let refused = given
        .iter()
        .filter(|option| !OWN.contains(&option.as_str()))
        .find(|option| !is_configured(config, option));
    let Some(option) = refused else {
        return Ok(());
    };
    let failure = Failure::usage(format!(
        "--{option} does not reach CRIU: Docker restores its containers by itself, and passes no option on"
    ));
    Err(match option.as_str() {
        option if REPEATED.contains(&option) => failure.hint(put_into(option, path)),
        _ => failure.hint("leave it out"),
    })
}

/// What is to be repeated at the restore cannot be. It is said while the container runs.
fn not_to_be_repeated(context: &Context, given: &[String], path: &Path) {
    let config = read(path);
    let repeated = given
        .iter()
        .filter(|option| REPEATED.contains(&option.as_str()));
    for option in repeated.filter(|option| !is_configured(&config, option)) {
        context.output.warn(format_args!(
            "Docker's restore needs --{option} too, and passes no option on: {}",
            put_into(option, path)
        ));
    }
}

fn put_into(option: &str, path: &Path) -> String {
    format!(
        "put a line {option} into {}, which runc's restores go by, Docker's among them",
        path.display()
    )
}

fn read(config: &Path) -> String {
    std::fs::read_to_string(config).unwrap_or_default()
}

fn is_configured(config: &str, option: &str) -> bool {
    let mut lines = config.lines();
    lines.any(|line| line.split_whitespace().next() == Some(option))
}

fn text(restored: &Restored, images: &Path) -> String {
    let container = &restored.container;
    let mut text = format!(
        "docker container {} restored from {}: ",
        container.name,
        images.display()
    );
    // Writing to a String does not fail.
    if let Some(pid) = container.pid {
        let _ = write!(text, "pid {pid} is {}, ", container.status);
    }
    let _ = write!(text, "after {}", time(restored.time));
    if let Some(read) = restored
        .stats
        .as_ref()
        .and_then(|stats| stats.pages_restored)
    {
        let _ = write!(text, ", {} read", pages(read));
    }
    text.push('\n');
    text
}

fn target(id: &str) -> String {
    format!("docker:{id}")
}

/// What became of the container's tasks.
async fn state_of(docker: &Docker, id: &str) -> TaskState {
    match docker.load(id).await.map(|container| container.status) {
        Ok(Status::Running) => TaskState::Running,
        Ok(Status::Paused) => TaskState::Frozen,
        Ok(Status::Stopped | Status::Created) => TaskState::Absent,
        Err(error) if matches!(error.kind(), ErrorKind::Unknown { .. }) => TaskState::Absent,
        Ok(_) | Err(_) => TaskState::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_does_not_pass_on_is_refused_unless_runc_gets_it_anyway() {
        let given = |options: &[&str]| options.iter().map(|option| (*option).to_owned()).collect();
        let passes = |options: &[&str], config: &str| {
            let given: Vec<String> = given(options);
            passes_on(&given, Path::new("/x/runc.conf"), config)
        };
        assert!(passes(&["image-path", "detach"], "").is_ok());
        let refused = passes(&["image-path", "tcp-established"], "#tcp-established\n");
        let summary = refused.unwrap_err().summary();
        assert!(summary.starts_with("--tcp-established "), "{summary}");
        assert!(passes(&["tcp-established"], "\n  tcp-established\n").is_ok());
        assert!(passes(&["hook"], "tcp-established\n").is_err());
    }

    #[test]
    fn docker_is_on_this_host() {
        let docker = |host: Option<&str>| {
            Containers {
                docker_host: host.map(str::to_owned),
                ..Containers::default()
            }
            .docker()
        };
        let socket = |host| docker(host).unwrap().socket().to_owned();
        assert_eq!(socket(None), Path::new("/var/run/docker.sock"));
        assert_eq!(socket(Some("")), Path::new("/var/run/docker.sock"));
        assert_eq!(socket(Some("unix:///x/y")), Path::new("/x/y"));
        for wrong in ["tcp://127.0.0.1:2375", "ssh://host", "unix://", "/x/y"] {
            assert!(docker(Some(wrong)).is_err(), "{wrong}");
        }
    }
}
