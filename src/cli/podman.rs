//! Checkpoint and restore of Podman's containers.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use criu_client::container::podman::{self, Podman, RestoreOptions, Restored};
use criu_client::container::{EngineKind, Status};
use criu_client::{Criu, OperationKind, TaskState};

use super::Context;
use super::checkpoint::{self, images_to_write};
use super::checkpoint_args::Checkpoint;
use super::container::{self, Checkpointed, PreDumped};
use super::container_args::Containers;
use super::dry_run::{images_to_plan, tell_checkpoint, tell_restore};
use super::failure::Failure;
use super::hooks::CliHooks;
use super::output::{pages, time};
use super::restore::{PidFile, images_to_read};
use super::restore_args::Restore;
use super::signals::{Interrupts, state_of};
use super::values;

/// What Podman's restore can be told, or what is not for it to be told.
const TAKEN: [&str; 10] = [
    "dry-run",
    "image-path",
    "detach",
    "pid-file",
    "tcp-established",
    "tcp-close",
    "file-locks",
    "display-stats",
    "podman-url",
    "podman-root",
];

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
    pub(super) fn podman(&self) -> Result<Podman, Failure> {
        if let Some(url) = self.podman_url.as_deref().filter(|url| !url.is_empty()) {
            let path = url
                .strip_prefix("unix://")
                .filter(|path| path.starts_with('/'));
            return path.map(Podman::with_socket).ok_or_else(|| {
                Failure::usage(format!("--podman-url: {url} is no address on this host"))
                    .hint("write unix:// and the absolute path of a socket, such as unix:///run/podman/podman.sock")
            });
        }
        let podman = Podman::new();
        match values::program_named("podman") {
            Ok(program) => Ok(podman.or_started_by(program)),
            Err(_) if podman.socket().exists() => Ok(podman),
            Err(_) => Err(Failure::missing(format!(
                "there is no Podman here: no program podman on the PATH, and no socket {}",
                podman.socket().display()
            ))
            .hint("install it, or name its socket with --podman-url")),
        }
    }

    pub(super) fn podman_root(&self) -> &Path {
        let root = self.podman_root.as_deref();
        root.unwrap_or(Path::new(podman::STORAGE))
    }

    /// The full ids of Podman's containers that `id` can mean, as Podman would have it: a name, or the beginning of an id.
    pub(super) fn of_podman(&self, id: &str) -> Result<Vec<String>, Failure> {
        let root = self.podman_root();
        let stored = podman::stored(root).map_err(|error| {
            Failure::failed(format!(
                "Podman's containers in {} cannot be read",
                root.display()
            ))
            .hint("name the engine, as in runc:ID, and it is not looked there")
            .caused_by(error)
        })?;
        let exact =
            |stored: &&podman::Stored| stored.id == id || stored.name.as_deref() == Some(id);
        Ok(match stored.iter().find(exact) {
            Some(stored) => vec![stored.id.clone()],
            None => stored
                .into_iter()
                .map(|stored| stored.id)
                .filter(|stored| stored.starts_with(id))
                .collect(),
        })
    }
}

/// A service that was started is ended, whatever came of its work.
pub(super) async fn ended<T>(podman: &Podman, work: impl Future<Output = T>) -> T {
    let done = work.await;
    podman.settled().await;
    done
}

pub(super) async fn checkpoint(
    context: &Context,
    args: &Checkpoint,
    id: &str,
) -> Result<(), Failure> {
    container::refuse_what_is_known(args)?;
    let podman = args.containers.podman()?;
    ended(&podman, checkpointed(context, args, &podman, id)).await
}

async fn checkpointed(
    context: &Context,
    args: &Checkpoint,
    podman: &Podman,
    id: &str,
) -> Result<(), Failure> {
    let criu = context.criu(args.program_arguments())?;
    let stays = args.dump_tasks.leave_running || args.dump_memory.pre_dump;
    // Found before a directory is made for it.
    let plan = podman.dump_plan(id, args.consumer(), stays).await?;
    // A dry run has them among all else.
    for note in plan.notes.iter().filter(|_| !args.dry_run.dry_run) {
        context.output.note(note);
    }
    match args.dump_memory.pre_dump {
        true => pre_dump(context, args, podman, &criu, id, plan.pid).await,
        false => dump(context, args, podman, &criu, id, plan.pid).await,
    }
}

async fn dump(
    context: &Context,
    args: &Checkpoint,
    podman: &Podman,
    criu: &Criu,
    id: &str,
    pid: i32,
) -> Result<(), Failure> {
    let operation = OperationKind::Dump;
    let output = &context.output;
    let hooks = CliHooks::new(&args.criu_more.hooks, operation)?;
    let options = container::checkpoint_options(args)?;
    if args.dry_run.dry_run {
        let images = images_to_plan(args)?;
        let plan = podman.plan_checkpoint(criu, id, images, options).await?;
        return tell_checkpoint(context, args, target(id), plan);
    }
    let images = images_to_write(args)?;
    let dumped = podman.checkpoint(criu, id, &images, hooks, options);
    let report = Interrupts::new()?
        .guard(operation, output, dumped, criu.settled(), || state_of(pid))
        .await?;
    super::report::ignored_refusals(output, &report.dump.details);
    container::left_behind(context, &report.left_behind);
    let done = Checkpointed {
        target: target(id),
        container: Some(&report.id),
        images_dir: images.path(),
        pre_dump: false,
        report: &report.dump,
        plan: &report.plan,
        left_behind: &report.left_behind,
    };
    output.result("Checkpoint", &done, || {
        checkpoint::dumped(output, args, &report.dump, images.path())
    })
}

async fn pre_dump(
    context: &Context,
    args: &Checkpoint,
    podman: &Podman,
    criu: &Criu,
    id: &str,
    pid: i32,
) -> Result<(), Failure> {
    let operation = OperationKind::PreDump;
    let output = &context.output;
    let options = args.pre_dump_options()?;
    if args.dry_run.dry_run {
        let images = images_to_plan(args)?;
        let plan = podman.plan_pre_dump(criu, id, images, options).await?;
        return tell_checkpoint(context, args, target(id), plan);
    }
    let images = images_to_write(args)?;
    let dumped = podman.pre_dump(criu, id, &images, options);
    let report = Interrupts::new()?
        .guard(operation, output, dumped, criu.settled(), || state_of(pid))
        .await?;
    let done = PreDumped {
        target: target(id),
        images_dir: images.path(),
        pre_dump: true,
        report: &report,
    };
    output.result("Checkpoint", &done, || {
        checkpoint::pre_dumped(output, args, &report, images.path())
    })
}

pub(super) async fn restore(
    context: &Context,
    args: &Restore,
    id: &str,
) -> Result<ExitCode, Failure> {
    let foreign = |option: &&String| !TAKEN.contains(&option.as_str());
    let given = super::given("restore");
    let given = given.iter().find(foreign).map(String::as_str);
    let global = &context.global;
    let given = given
        .or(global.criu.is_some().then_some("criu"))
        .or(global.service.is_some().then_some("service"))
        .or(global.hook_timeout.is_some().then_some("hook-timeout"));
    if let Some(option) = given {
        return Err(Failure::usage(format!(
            "--{option} cannot be passed on: the restore is Podman's own, which takes only --tcp-established, --tcp-close and \
             --file-locks"
        ))
        .hint("leave it out; or have it as a line of /etc/criu/runc.conf or of the file that the container's annotation org.criu.config names"));
    }
    let podman = args.containers.podman()?;
    ended(&podman, restored(context, args, &podman, id)).await
}

async fn restored(
    context: &Context,
    args: &Restore,
    podman: &Podman,
    id: &str,
) -> Result<ExitCode, Failure> {
    let operation = OperationKind::Restore;
    let output = &context.output;
    let images = images_to_read(args, None)?;
    let mut options = RestoreOptions::new()
        .tcp_established(args.network.tcp_established)
        .tcp_close(args.network.tcp_close)
        .file_locks(args.files.file_locks);
    if let Some(limit) = context.global.timeout {
        options = options.limit(limit);
    }
    if args.dry_run.dry_run {
        PidFile::check(args)?;
        let plan = podman.plan_restore(id, &images, options).await?;
        tell_restore(context, args, target(id), plan)?;
        return Ok(ExitCode::SUCCESS);
    }
    let pid_file = PidFile::of(args)?;
    let mut interrupts = Interrupts::new()?;
    let restoring = podman.restore(id, &images, options);
    let interrupted = interrupts
        .guard(operation, output, restoring, podman.settled(), || {
            TaskState::Unknown
        })
        .await;
    let restored = match interrupted {
        Ok(restored) => restored,
        Err(failure) => return Err(told(failure, podman, id).await),
    };
    for note in &restored.notes {
        output.note(note);
    }
    container::left_behind(context, &restored.left_behind);
    let done = Done {
        target: target(id),
        images_dir: images.path(),
        detached: true,
        restored: &restored,
    };
    // First the pid file: when that fails and nothing else is to come, the failure is the one document there is.
    if let (Some(file), Some(pid)) = (pid_file, restored.container.pid) {
        file.publish(pid)?;
    }
    output.result("Restore", &done, || text(args, &restored, images.path()))?;
    Ok(ExitCode::SUCCESS)
}

/// An interrupt does not reach Podman, so what became of the container is for Podman to say.
async fn told(failure: Failure, podman: &Podman, id: &str) -> Failure {
    if !failure.is_interrupt() {
        return failure;
    }
    let state = match podman.load(id).await.map(|container| container.status) {
        Ok(Status::Running) => TaskState::Running,
        Ok(Status::Paused) => TaskState::Frozen,
        Ok(_) => TaskState::Absent,
        Err(_) => TaskState::Unknown,
    };
    failure.with_tasks(state)
}

fn text(args: &Restore, restored: &Restored, images: &Path) -> String {
    let container = &restored.container;
    let mut text = format!(
        "podman container {} restored from {}: pid {} is running, after {}",
        container.name,
        images.display(),
        container.pid.unwrap_or_default(),
        time(restored.time)
    );
    let stats = restored.stats.as_ref();
    if let Some(restored) = stats.and_then(|stats| stats.pages_restored) {
        // Writing to a String does not fail.
        let _ = write!(text, ", {} read", pages(restored));
    }
    text.push('\n');
    if let Some(stats) = stats.filter(|_| args.criu_more.display_stats) {
        text += super::report::restore_stats(stats)
            .trim_fmt()
            .to_string()
            .as_str();
        text.push('\n');
    }
    text
}

fn target(id: &str) -> String {
    format!("{}:{id}", EngineKind::Podman)
}
