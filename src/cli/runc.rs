//! Checkpoint and restore of runc's containers.

use std::fmt::Write as _;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use criu_client::container::Status;
use criu_client::container::runc::{CheckpointOptions, RestoreOptions, Runc};
use criu_client::{
    Criu, DumpReport, ImagesDir, OperationKind, PreDumpReport, RestoreReport, TaskState,
};

use super::Context;
use super::checkpoint::{self, images_to_write};
use super::checkpoint_args::Checkpoint;
use super::descriptors::inherited;
use super::failure::Failure;
use super::hooks::CliHooks;
use super::restore::{self, PidFile, images_to_read, lazy_pages_are_served};
use super::restore_args::Restore;
use super::signals::{Attendant, Interrupts};

/// The result of a checkpoint.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Checkpointed<'a, P> {
    target: String,
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
struct PreDumped<'a> {
    target: String,
    images_dir: &'a Path,
    pre_dump: bool,
    #[serde(flatten)]
    report: &'a PreDumpReport,
}

/// The result of a restore.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Restored<'a, P> {
    target: String,
    images_dir: &'a Path,
    detached: bool,
    #[serde(flatten)]
    report: &'a RestoreReport,
    plan: &'a P,
    notes: &'a [String],
    left_behind: &'a [String],
}

fn runc(root: Option<&PathBuf>) -> Runc {
    root.map_or_else(Runc::new, Runc::with_root)
}

pub(super) async fn checkpoint(
    context: &Context,
    args: &Checkpoint,
    id: &str,
) -> Result<(), Failure> {
    refuse(&[
        ("--root", args.mounts.root.is_some()),
        ("--freeze-cgroup", args.dump_tasks.freeze_cgroup.is_some()),
        ("--orphan-pts-master", args.dump_tasks.orphan_pts_master),
    ])?;
    if args.tasks.leave_stopped {
        return Err(Failure::usage(
            "--leave-stopped: runc has no state for a container whose processes are stopped",
        )
        .hint("use --leave-running, and runc pause before it"));
    }
    let runc = runc(args.containers.runc_root.as_ref());
    let criu = context.criu(args.program_arguments())?;
    // Found before a directory is made for it.
    runc.load(id)?.dump_plan()?;
    match args.dump_memory.pre_dump {
        true => pre_dump(context, args, &runc, &criu, id).await,
        false => dump(context, args, &runc, &criu, id).await,
    }
}

async fn dump(
    context: &Context,
    args: &Checkpoint,
    runc: &Runc,
    criu: &Criu,
    id: &str,
) -> Result<(), Failure> {
    let operation = OperationKind::Dump;
    let output = &context.output;
    let hooks = CliHooks::new(&args.criu_more.hooks, operation)?;
    let options = checkpoint_options(args)?;
    let images = images_to_write(args)?;
    let dumped = runc.checkpoint(criu, id, &images, hooks, options);
    let report = Interrupts::new()?
        .guard(operation, output, dumped, criu.settled(), || {
            state_of(runc, id)
        })
        .await?;
    super::report::ignored_refusals(output, &report.dump.details);
    left_behind(context, &report.left_behind);
    let done = Checkpointed {
        target: args.target.to_string(),
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
    runc: &Runc,
    criu: &Criu,
    id: &str,
) -> Result<(), Failure> {
    let output = &context.output;
    let options = args.pre_dump_options()?;
    let images = images_to_write(args)?;
    let dumped = runc.pre_dump(criu, id, &images, options);
    let report = Interrupts::new()?
        .guard(
            OperationKind::PreDump,
            output,
            dumped,
            criu.settled(),
            || state_of(runc, id),
        )
        .await?;
    let done = PreDumped {
        target: args.target.to_string(),
        images_dir: images.path(),
        pre_dump: true,
        report: &report,
    };
    output.result("Checkpoint", &done, || {
        checkpoint::pre_dumped(output, args, &report, images.path())
    })
}

/// Everything that CRIU has goes along; what runc has a name for goes by it, so that it is checked against the container.
fn checkpoint_options(args: &Checkpoint) -> Result<CheckpointOptions, Failure> {
    let mut options = CheckpointOptions::new()
        .criu(args.dump_options_but_status_fd()?)
        .leave_running(args.dump_tasks.leave_running)
        .lazy_pages(args.dump_memory.lazy_pages);
    if let Some(transport) = args.page_transport()? {
        options = options.page_server(transport);
    }
    if let Some(parent) = &args.dump_images.parent_path {
        options = options.parent_path(parent);
    }
    if let Some(mode) = args.cgroups.mode() {
        options = options.manage_cgroups_mode(mode);
    }
    if let Some(number) = args.dump_memory.status_fd {
        options = options.status_fd(inherited(number, "--status-fd")?);
    }
    Ok(options)
}

pub(super) async fn restore(
    context: &Context,
    args: &Restore,
    id: &str,
) -> Result<ExitCode, Failure> {
    refuse(&[
        ("--root", args.mounts.root.is_some()),
        ("--cgroup-root", !args.cgroups.cgroup_root.is_empty()),
        ("--exec-cmd", args.restore_tasks.exec_cmd),
        ("--leave-stopped", args.tasks.leave_stopped),
    ])?;
    let operation = OperationKind::Restore;
    let output = &context.output;
    let hooks = CliHooks::new(&args.criu_more.hooks, operation)?;
    let hooks = match args.restore_tasks.console_socket {
        // The library hands it out, after it has checked that the container has one.
        Some(_) => hooks.with_console_elsewhere(),
        None => hooks,
    };
    let runc = runc(args.containers.runc_root.as_ref());
    let criu = context.criu(args.program_arguments())?;
    let images = images_to_read(args, None)?;
    lazy_pages_are_served(args)?;
    let options = restore_options(args)?;
    let pid_file = args
        .restore_tasks
        .pid_file
        .as_deref()
        .map(PidFile::new)
        .transpose()?;
    let bundle = match &args.containers.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().map_err(|error| {
            Failure::input("the current directory cannot be the bundle").caused_by(error)
        })?,
    };
    let mut interrupts = Interrupts::new()?;
    let attendant = Attendant::new()?;
    let settled = async {
        criu.settled().await;
        runc.settled().await;
    };
    let restored = runc.restore(&criu, id, &images, &bundle, hooks, options);
    let mut restored = interrupts
        .guard(operation, output, restored, settled, || state_of(&runc, id))
        .await?;
    drop(interrupts);

    let root = restored.root.take();
    super::report::ignored_refusals(output, &restored.report.details);
    for note in &restored.notes {
        output.note(note);
    }
    left_behind(context, &restored.left_behind);
    let done = Restored {
        target: format!("runc:{id}"),
        images_dir: images.path(),
        detached: root.is_none(),
        report: &restored.report,
        plan: &restored.plan,
        notes: &restored.notes,
        left_behind: &restored.left_behind,
    };
    // First the pid file: when that fails and nothing else is to come, the failure is the one document there is.
    let published = pid_file.map_or(Ok(()), |file| file.publish(restored.init.pid));
    let tell = || {
        output.result("Restore", &done, || {
            text(context, args, id, &images, &restored.report)
        })
    };
    let Some(root) = root else {
        return published.and_then(|()| tell()).map(|()| ExitCode::SUCCESS);
    };
    let told = tell();
    // There is a container to answer for: what has failed is told, and it is waited for all the same.
    for failure in [told, published].into_iter().filter_map(Result::err) {
        failure.say(output);
    }
    let status = restore::status(output, attendant.attend(root).await?);
    match runc.remove(id).await {
        Ok(left) => left_behind(context, &left),
        // Somebody may have deleted it already.
        Err(error)
            if matches!(
                error.kind(),
                criu_client::container::ErrorKind::Unknown { .. }
            ) => {}
        Err(error) => Failure::from(error).say(output),
    }
    Ok(status)
}

fn restore_options(args: &Restore) -> Result<RestoreOptions, Failure> {
    let mut options = RestoreOptions::new()
        .criu(args.options()?)
        .detach(args.restore_tasks.detach);
    // As runc does: where the container had a pipe, it gets what stands there now.
    let own = |fd: std::io::Result<std::os::fd::OwnedFd>| {
        fd.map_err(|error| {
            Failure::failed("the standard descriptors cannot be passed on").caused_by(error)
        })
    };
    options = options
        .stdin(own(std::io::stdin().as_fd().try_clone_to_owned())?)
        .stdout(own(std::io::stdout().as_fd().try_clone_to_owned())?)
        .stderr(own(std::io::stderr().as_fd().try_clone_to_owned())?);
    if let Some(socket) = &args.restore_tasks.console_socket {
        options = options.console_socket(socket);
    }
    if let Some(mode) = args.cgroups.mode() {
        options = options.manage_cgroups_mode(mode);
    }
    Ok(options)
}

fn text(
    context: &Context,
    args: &Restore,
    id: &str,
    images: &ImagesDir,
    report: &RestoreReport,
) -> String {
    let mut text = format!("runc container {id} ");
    // Writing to a String does not fail.
    let _ = write!(
        text,
        "{}",
        restore::restored(&context.output, args, images.path(), report)
    );
    text
}

fn left_behind(context: &Context, left: &[String]) {
    for left in left {
        context.output.warn(format_args!("left behind: {left}"));
    }
}

/// Options that would contradict what is known of the container.
fn refuse(options: &[(&str, bool)]) -> Result<(), Failure> {
    match options.iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(Failure::usage(format!(
            "{option} is not for containers: what it says is known of them"
        ))
        .hint("leave it out")),
        None => Ok(()),
    }
}

/// What became of the container's tasks.
fn state_of(runc: &Runc, id: &str) -> TaskState {
    match runc.load(id).map(|container| container.status) {
        Ok(Status::Running | Status::Created) => TaskState::Running,
        Ok(Status::Paused) => TaskState::Frozen,
        Ok(Status::Stopped) => TaskState::Absent,
        Err(error)
            if matches!(
                error.kind(),
                criu_client::container::ErrorKind::Unknown { .. }
            ) =>
        {
            TaskState::Absent
        }
        Ok(_) | Err(_) => TaskState::Unknown,
    }
}
