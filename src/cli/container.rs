//! Checkpoint and restore of the runtimes' containers.

use std::fmt::Write as _;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use criu_client::container::crun::Crun;
use criu_client::container::plan::Consumer;
use criu_client::container::runc::Runc;
use criu_client::container::runtime::{self, CheckpointOptions, Engine, RestoreOptions, Runtime};
use criu_client::container::{EngineKind, ErrorKind, Status};
use criu_client::{
    Criu, DumpReport, ImagesDir, OperationKind, PreDumpReport, RestoreReport, TaskState,
};

use super::Context;
use super::checkpoint::{self, images_to_write};
use super::checkpoint_args::Checkpoint;
use super::container_args::{Containers, For};
use super::descriptors::inherited;
use super::dry_run::{images_to_plan, tell_checkpoint, tell_restore};
use super::failure::Failure;
use super::hooks::CliHooks;
use super::restore::{self, PidFile, images_to_read, lazy_pages_are_served};
use super::restore_args::Restore;
use super::signals::{Attendant, Interrupts};

/// The result of a checkpoint.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Checkpointed<'a, P> {
    pub(super) target: String,
    /// The full id, where the target is not that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) container: Option<&'a str>,
    pub(super) images_dir: &'a Path,
    pub(super) pre_dump: bool,
    #[serde(flatten)]
    pub(super) report: &'a DumpReport,
    pub(super) plan: &'a P,
    pub(super) left_behind: &'a [String],
}

/// The result of a pre-dump.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PreDumped<'a> {
    pub(super) target: String,
    pub(super) images_dir: &'a Path,
    pub(super) pre_dump: bool,
    #[serde(flatten)]
    pub(super) report: &'a PreDumpReport,
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

impl Containers {
    pub(super) fn runc(&self) -> Runc {
        let root = self.runc_root.as_ref();
        root.map_or_else(Runc::new, Runc::with_root)
    }

    pub(super) fn crun(&self) -> Crun {
        let root = self.crun_root.as_ref();
        root.map_or_else(Crun::new, Crun::with_root)
    }

    /// Whose container has this ID.
    pub(super) async fn engine_of(&self, id: &str) -> Result<EngineKind, Failure> {
        fn has<E: Engine>(runtime: &Runtime<E>, id: &str) -> bool {
            // One that cannot be read is there all the same.
            let unknown = |error: &criu_client::container::Error| {
                matches!(error.kind(), ErrorKind::Unknown { .. })
            };
            !runtime.load(id).as_ref().is_err_and(unknown)
        }
        let (runc, crun, lxc) = (self.runc(), self.crun(), self.lxc());
        // What it says when it has none.
        let of_docker = match self.docker() {
            Err(failure) => Err(failure.summary()),
            Ok(docker) => match docker.load(id).await {
                Ok(_) => Ok(()),
                Err(error) => Err(match error.kind() {
                    ErrorKind::Unknown { root } => root.display().to_string(),
                    ErrorKind::Api(problem) if problem.is_absent() => "not running".to_owned(),
                    _ => error.to_string(),
                }),
            },
        };
        let of_podman = self.of_podman(id)?;
        // A runtime knows Podman's by their full ids: those are Podman's.
        let is_podmans = of_podman.iter().any(|known| known == id);
        let found: Vec<EngineKind> = [
            (EngineKind::Runc, has(&runc, id) && !is_podmans),
            (EngineKind::Crun, has(&crun, id) && !is_podmans),
            (EngineKind::Docker, of_docker.is_ok()),
            (EngineKind::Podman, !of_podman.is_empty()),
            (
                EngineKind::Lxc,
                lxc.path().join(id).join("config").is_file(),
            ),
        ]
        .into_iter()
        .filter_map(|(engine, has)| has.then_some(engine))
        .collect();
        let looked = format!(
            "{} (runc), {} (crun), {} (podman), {} (lxc) and docker{}",
            runc.root().display(),
            crun.root().display(),
            self.podman_root().display(),
            lxc.path().display(),
            of_docker
                .err()
                .map(|why| format!(" ({why})"))
                .unwrap_or_default()
        );
        let named = || {
            let names = found.iter().map(|engine| format!("{engine}:{id}"));
            names.collect::<Vec<_>>().join(" or ")
        };
        match found[..] {
            [engine] => Ok(engine),
            [] => Err(Failure::input(format!(
                "there is no such container {id:?} in {looked}"
            ))
            .hint("`criuctl list` shows the names there are; containers of another --root need --runc-root, --crun-root, --podman-root or --lxc-path here")),
            _ => Err(Failure::input(format!(
                "there are several containers {id:?}, in {looked}"
            ))
            .hint(format!("write {}", named()))),
        }
    }
}

/// Whose container an ID without an engine is to be.
pub(super) fn engine_of_images(
    images: &ImagesDir,
    id: &str,
    containers: &Containers,
) -> Result<EngineKind, Failure> {
    let known = runtime::engine_of(images).map_err(|error| {
        let path = images.path().display();
        Failure::input(format!("whose container is in {path} cannot be told")).caused_by(error)
    })?;
    // Podman's are there before they are restored.
    let podmans = match known {
        None if !containers.of_podman(id)?.is_empty() => Some(EngineKind::Podman),
        known => known,
    };
    podmans.ok_or_else(|| {
        let path = images.path().display();
        Failure::usage(format!(
            "{path} does not say which runtime the container {id:?} is for"
        ))
        .hint(format!(
            "write runc:{id}, crun:{id}, docker:{id}, podman:{id} or lxc:{id}"
        ))
    })
}

impl Checkpoint {
    pub(super) fn consumer(&self) -> Consumer {
        match self.checkpoint_containers.consumer {
            None | Some(For::Any) => Consumer::Any,
            Some(For::Runc) => Consumer::Runc,
            Some(For::Crun) => Consumer::Crun,
        }
    }
}

/// For what needs no container.
pub(super) fn refuse_roots(containers: &Containers) -> Result<(), Failure> {
    let given = [
        ("--runc-root", containers.runc_root.is_some()),
        ("--crun-root", containers.crun_root.is_some()),
        ("--podman-root", containers.podman_root.is_some()),
        ("--lxc-path", containers.lxc_path.is_some()),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(not_for_processes(option)),
        None => Ok(()),
    }
}

pub(super) fn not_for_processes(option: &str) -> Failure {
    Failure::usage(format!("{option} is for containers")).hint(
        "leave it out, or write runc:ID, crun:ID, docker:ID, podman:ID or lxc:NAME as the target",
    )
}

pub(super) async fn checkpoint<E: Engine>(
    context: &Context,
    args: &Checkpoint,
    runtime: &Runtime<E>,
    id: &str,
) -> Result<(), Failure> {
    refuse_what_is_known(args)?;
    let criu = context.criu(args.program_arguments())?;
    // Found before a directory is made for it.
    let plan = runtime.load(id)?.dump_plan(args.consumer())?;
    // A dry run has them among all else.
    for note in plan.notes.iter().filter(|_| !args.dry_run.dry_run) {
        context.output.note(note);
    }
    match args.dump_memory.pre_dump {
        true => pre_dump(context, args, runtime, &criu, id).await,
        false => dump(context, args, runtime, &criu, id).await,
    }
}

/// Options of a checkpoint that are not for containers.
pub(super) fn refuse_what_is_known(args: &Checkpoint) -> Result<(), Failure> {
    refuse(&[
        ("--root", args.mounts.root.is_some()),
        ("--freeze-cgroup", args.dump_tasks.freeze_cgroup.is_some()),
        ("--orphan-pts-master", args.dump_tasks.orphan_pts_master),
    ])?;
    if args.tasks.leave_stopped {
        return Err(Failure::usage(
            "--leave-stopped: runtimes have no state for a container whose processes are stopped",
        )
        .hint("use --leave-running, and pause the container before it"));
    }
    Ok(())
}

async fn dump<E: Engine>(
    context: &Context,
    args: &Checkpoint,
    runtime: &Runtime<E>,
    criu: &Criu,
    id: &str,
) -> Result<(), Failure> {
    let operation = OperationKind::Dump;
    let output = &context.output;
    let hooks = CliHooks::new(&args.criu_more.hooks, operation)?;
    let options = checkpoint_options(args)?;
    if args.dry_run.dry_run {
        let images = images_to_plan(args)?;
        let plan = runtime.plan_checkpoint(criu, id, images, options).await?;
        return tell_checkpoint(context, args, target::<E>(id), plan);
    }
    let images = images_to_write(args)?;
    let dumped = runtime.checkpoint(criu, id, &images, hooks, options);
    let report = Interrupts::new()?
        .guard(operation, output, dumped, criu.settled(), || {
            state_of(runtime, id)
        })
        .await?;
    super::report::ignored_refusals(output, &report.dump.details);
    left_behind(context, &report.left_behind);
    let done = Checkpointed {
        target: target::<E>(id),
        container: None,
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

async fn pre_dump<E: Engine>(
    context: &Context,
    args: &Checkpoint,
    runtime: &Runtime<E>,
    criu: &Criu,
    id: &str,
) -> Result<(), Failure> {
    let output = &context.output;
    let options = args.pre_dump_options()?;
    if args.dry_run.dry_run {
        let images = images_to_plan(args)?;
        let plan = runtime.plan_pre_dump(criu, id, images, options).await?;
        return tell_checkpoint(context, args, target::<E>(id), plan);
    }
    let images = images_to_write(args)?;
    let dumped = runtime.pre_dump(criu, id, &images, options);
    let report = Interrupts::new()?
        .guard(
            OperationKind::PreDump,
            output,
            dumped,
            criu.settled(),
            || state_of(runtime, id),
        )
        .await?;
    let done = PreDumped {
        target: target::<E>(id),
        images_dir: images.path(),
        pre_dump: true,
        report: &report,
    };
    output.result("Checkpoint", &done, || {
        checkpoint::pre_dumped(output, args, &report, images.path())
    })
}

/// Everything that CRIU has goes along; what runtimes have a name for goes by it, so that it is checked against the container.
pub(super) fn checkpoint_options(args: &Checkpoint) -> Result<CheckpointOptions, Failure> {
    let mut options = CheckpointOptions::new()
        .criu(args.dump_options_but_status_fd()?)
        .consumer(args.consumer())
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

pub(super) async fn restore<E: Engine>(
    context: &Context,
    args: &Restore,
    runtime: &Runtime<E>,
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
    let criu = context.criu(args.program_arguments())?;
    let images = images_to_read(args, None)?;
    lazy_pages_are_served(args)?;
    let options = restore_options(args)?;
    let bundle = match &args.restore_containers.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().map_err(|error| {
            Failure::input("the current directory cannot be the bundle").caused_by(error)
        })?,
    };
    if args.dry_run.dry_run {
        PidFile::check(args)?;
        let plan = runtime
            .plan_restore(&criu, id, &images, &bundle, options)
            .await?;
        tell_restore(context, args, target::<E>(id), plan)?;
        return Ok(ExitCode::SUCCESS);
    }
    let pid_file = PidFile::of(args)?;
    let mut interrupts = Interrupts::new()?;
    let attendant = Attendant::new()?;
    let settled = async {
        criu.settled().await;
        runtime.settled().await;
    };
    let restored = runtime.restore(&criu, id, &images, &bundle, hooks, options);
    let mut restored = interrupts
        .guard(operation, output, restored, settled, || {
            state_of(runtime, id)
        })
        .await?;
    drop(interrupts);

    let root = restored.root.take();
    super::report::ignored_refusals(output, &restored.report.details);
    for note in &restored.notes {
        output.note(note);
    }
    left_behind(context, &restored.left_behind);
    let done = Restored {
        target: target::<E>(id),
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
            text::<E>(context, args, id, &images, &restored.report)
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
    match runtime.remove(id).await {
        Ok(left) => left_behind(context, &left),
        // Somebody may have deleted it already.
        Err(error) if matches!(error.kind(), ErrorKind::Unknown { .. }) => {}
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
    if let Some(on) = args.restore_containers.systemd_cgroup {
        options = options.systemd_cgroup(on);
    }
    Ok(options)
}

fn text<E: Engine>(
    context: &Context,
    args: &Restore,
    id: &str,
    images: &ImagesDir,
    report: &RestoreReport,
) -> String {
    let mut text = format!("{} container {id} ", E::KIND);
    // Writing to a String does not fail.
    let _ = write!(
        text,
        "{}",
        restore::restored(&context.output, args, images.path(), report)
    );
    text
}

pub(super) fn left_behind(context: &Context, left: &[String]) {
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

fn target<E: Engine>(id: &str) -> String {
    format!("{}:{id}", E::KIND)
}

/// What became of the container's tasks.
fn state_of<E: Engine>(runtime: &Runtime<E>, id: &str) -> TaskState {
    match runtime.load(id).map(|container| container.status) {
        Ok(Status::Running | Status::Created) => TaskState::Running,
        Ok(Status::Paused) => TaskState::Frozen,
        Ok(Status::Stopped) => TaskState::Absent,
        Err(error) if matches!(error.kind(), ErrorKind::Unknown { .. }) => TaskState::Absent,
        Ok(_) | Err(_) => TaskState::Unknown,
    }
}
