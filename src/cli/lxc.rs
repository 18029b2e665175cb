//! Checkpoint and restore of LXC's containers.

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use criu_client::container::lxc::{Checkpointed, Lxc, Restored};
use criu_client::container::{EngineKind, Status};
use criu_client::{Criu, OperationKind, TaskState};

use super::Context;
use super::checkpoint::{self, images_to_write};
use super::checkpoint_args::Checkpoint;
use super::container;
use super::container_args::Containers;
use super::dry_run::{images_to_plan, tell_checkpoint, tell_restore};
use super::failure::Failure;
use super::hooks::CliHooks;
use super::output::time;
use super::restore::{PidFile, images_to_read};
use super::restore_args::Restore;
use super::signals::{Interrupts, state_of};
use super::values;

/// LXC's program, which restores.
const PROGRAM: &str = "lxc-checkpoint";
/// What LXC's restore can be told, or what is not for it to be told.
const TAKEN: [&str; 5] = ["dry-run", "image-path", "detach", "pid-file", "lxc-path"];

/// The result of a checkpoint.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Dumped<'a> {
    target: String,
    images_dir: &'a Path,
    pre_dump: bool,
    #[serde(flatten)]
    report: &'a criu_client::DumpReport,
    left_behind: &'a [String],
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
    pub(super) fn lxc(&self) -> Lxc {
        let path = self.lxc_path.as_ref();
        path.map_or_else(Lxc::new, Lxc::with_path)
    }
}

fn target(name: &str) -> String {
    format!("{}:{name}", EngineKind::Lxc)
}

pub(super) async fn checkpoint(
    context: &Context,
    args: &Checkpoint,
    name: &str,
) -> Result<(), Failure> {
    container::refuse_what_is_known(args)?;
    let of_chains = [
        ("--pre-dump", args.dump_memory.pre_dump),
        ("--lazy-pages", args.dump_memory.lazy_pages),
    ];
    if let Some((option, _)) = of_chains.into_iter().find(|(_, given)| *given) {
        return Err(
            Failure::usage(format!("{option} is not for LXC's containers")).hint("leave it out"),
        );
    }
    let lxc = args.containers.lxc();
    let criu = context.criu(args.program_arguments())?;
    let hooks = CliHooks::new(&args.criu_more.hooks, OperationKind::Dump)?;
    let options = args.dump_options_but_status_fd()?;
    let stays = args.dump_tasks.leave_running;
    if args.dry_run.dry_run {
        let images = images_to_plan(args)?;
        let plan = lxc.plan_checkpoint(&criu, name, images, options, stays);
        return tell_checkpoint(context, args, target(name), plan.await?);
    }
    dump(context, args, &lxc, &criu, name, hooks, options).await
}

async fn dump(
    context: &Context,
    args: &Checkpoint,
    lxc: &Lxc,
    criu: &Criu,
    name: &str,
    hooks: CliHooks,
    options: criu_client::options::DumpOptions,
) -> Result<(), Failure> {
    let output = &context.output;
    // Found before a directory is made for it.
    let pid = lxc.load(name)?.pid;
    let images = images_to_write(args)?;
    let stays = args.dump_tasks.leave_running;
    let dumped = lxc.checkpoint(criu, name, &images, hooks, options, stays);
    let state = || pid.map_or(TaskState::Absent, state_of);
    let Checkpointed {
        dump, left_behind, ..
    } = Interrupts::new()?
        .guard(OperationKind::Dump, output, dumped, criu.settled(), state)
        .await?;
    super::report::ignored_refusals(output, &dump.details);
    container::left_behind(context, &left_behind);
    let done = Dumped {
        target: target(name),
        images_dir: images.path(),
        pre_dump: false,
        report: &dump,
        left_behind: &left_behind,
    };
    output.result("Checkpoint", &done, || {
        checkpoint::dumped(output, args, &dump, images.path())
    })
}

pub(super) async fn restore(
    context: &Context,
    args: &Restore,
    name: &str,
) -> Result<ExitCode, Failure> {
    let foreign = |option: &&String| !TAKEN.contains(&option.as_str());
    let given = super::given("restore");
    let given = given.iter().find(foreign).map(String::as_str);
    let global = &context.global;
    let given = given
        .or(global.criu.is_some().then_some("criu"))
        .or(global.service.is_some().then_some("service"))
        .or(global.timeout.is_some().then_some("timeout"))
        .or(global.hook_timeout.is_some().then_some("hook-timeout"));
    if let Some(option) = given {
        return Err(Failure::usage(format!(
            "--{option} cannot be passed on: the restore is LXC's own, which takes none"
        ))
        .hint("leave it out"));
    }
    let program = values::program_named(PROGRAM).map_err(|_| {
        Failure::missing(format!(
            "there is no {PROGRAM} on the PATH, with which LXC restores its containers"
        ))
        .hint("install LXC's tools")
    })?;
    let lxc = args.containers.lxc();
    let output = &context.output;
    let images = images_to_read(args, None)?;
    if args.dry_run.dry_run {
        PidFile::check(args)?;
        let plan = lxc.plan_restore(&program, name, &images)?;
        tell_restore(context, args, target(name), plan)?;
        return Ok(ExitCode::SUCCESS);
    }
    let pid_file = PidFile::of(args)?;
    let restoring = lxc.restore(&program, name, &images);
    let state = || match lxc.load(name).map(|container| container.status) {
        Ok(Status::Running) => TaskState::Running,
        Ok(Status::Paused) => TaskState::Frozen,
        Ok(_) => TaskState::Absent,
        Err(_) => TaskState::Unknown,
    };
    let restored = Interrupts::new()?
        .guard(
            OperationKind::Restore,
            output,
            restoring,
            lxc.settled(),
            state,
        )
        .await?;
    let pid = restored.container.pid.unwrap_or_default();
    if let Some(file) = pid_file {
        file.publish(pid)?;
    }
    let done = Done {
        target: target(name),
        images_dir: images.path(),
        detached: true,
        restored: &restored,
    };
    output.result("Restore", &done, || {
        format!(
            "lxc container {name} restored from {}: pid {pid} is running, after {}\n",
            images.path().display(),
            time(restored.time)
        )
    })?;
    Ok(ExitCode::SUCCESS)
}
