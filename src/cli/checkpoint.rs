//! `checkpoint`

use std::fmt::Write as _;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use criu_client::container::EngineKind;
use criu_client::{DumpReport, ImagesDir, OperationKind, PreDumpReport};

use super::Context;
use super::checkpoint_args::Checkpoint;
use super::dry_run::{images_to_plan, tell_checkpoint};
use super::failure::Failure;
use super::hooks::CliHooks;
use super::output::{Output, pages, time};
use super::signals::{Interrupts, state_of};
use super::target::Target;
use super::values::Compress;
use super::{container, docker, export, podman, report};

/// The result.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Checkpointed<'a, R> {
    target: String,
    images_dir: &'a Path,
    pre_dump: bool,
    #[serde(flatten)]
    report: &'a R,
}

pub(super) async fn run(context: &Context, checkpoint: &Checkpoint) -> Result<ExitCode, Failure> {
    // Wrong usage is told to whoever may use it.
    checkpoint.page_server()?;
    if checkpoint.archive.export.is_none()
        && matches!(checkpoint.dump_images.compress, Some(Compress::Archive(_)))
    {
        return Err(
            Failure::usage("--compress: there is no archive to compress so")
                .hint("name one with --export; pages are compressed with off or lz4"),
        );
    }
    context.demand_root(checkpoint.security.unprivileged)?;
    if checkpoint.dump_memory.lazy_pages {
        context.output.warn(
            "a lazy checkpoint listens on every address of this machine and ends with the first connection that closes",
        );
    }
    let (engine, id) = match &checkpoint.target {
        Target::Pid(pid) => {
            container::refuse_roots(&checkpoint.containers)?;
            if checkpoint.checkpoint_containers.consumer.is_some() {
                return Err(container::not_for_processes("--for"));
            }
            match checkpoint.dump_memory.pre_dump {
                _ if checkpoint.archive.export.is_some() => {
                    export::process(context, checkpoint, *pid).await
                }
                true => pre_dump(context, checkpoint, *pid).await,
                false => dump(context, checkpoint, *pid).await,
            }?;
            return Ok(ExitCode::SUCCESS);
        }
        Target::Container(engine, id) => (engine, id),
    };
    let engine = match engine {
        Some(engine) => *engine,
        None => checkpoint.containers.engine_of(id).await?,
    };
    match engine {
        EngineKind::Podman if checkpoint.archive.export.is_some() => {
            export::podman(context, checkpoint, id).await
        }
        _ if checkpoint.archive.export.is_some() => Err(Failure::usage(format!(
            "--export: containers of {engine} cannot be exported by this version"
        ))
        .hint("give --image-path, and a directory")),
        EngineKind::Podman => podman::checkpoint(context, checkpoint, id).await,
        EngineKind::Crun => {
            let crun = checkpoint.containers.crun();
            container::checkpoint(context, checkpoint, &crun, id).await
        }
        EngineKind::Docker => {
            let docker = checkpoint.containers.docker()?;
            docker::checkpoint(context, checkpoint, &docker, id).await
        }
        _ => {
            let runc = checkpoint.containers.runc();
            container::checkpoint(context, checkpoint, &runc, id).await
        }
    }?;
    Ok(ExitCode::SUCCESS)
}

async fn dump(context: &Context, checkpoint: &Checkpoint, pid: i32) -> Result<(), Failure> {
    let operation = OperationKind::Dump;
    let output = &context.output;
    let hooks = CliHooks::new(&checkpoint.criu_more.hooks, operation)?;
    let criu = context.criu(checkpoint.program_arguments())?;
    there_is(pid)?;
    let options = checkpoint.dump_options()?;
    if checkpoint.dry_run.dry_run {
        let plan = criu
            .plan_dump(pid, images_to_plan(checkpoint)?, options)
            .await?;
        return tell_checkpoint(context, checkpoint, checkpoint.target.to_string(), plan);
    }
    let images = images_to_write(checkpoint)?;
    let report = Interrupts::new()?
        .guard(
            operation,
            output,
            criu.dump(pid, &images, hooks, options),
            criu.settled(),
            || state_of(pid),
        )
        .await?;
    report::ignored_refusals(output, &report.details);
    let done = Checkpointed {
        target: checkpoint.target.to_string(),
        images_dir: images.path(),
        pre_dump: false,
        report: &report,
    };
    output.result("Checkpoint", &done, || {
        dumped(output, checkpoint, &report, images.path())
    })
}

async fn pre_dump(context: &Context, checkpoint: &Checkpoint, pid: i32) -> Result<(), Failure> {
    let operation = OperationKind::PreDump;
    let output = &context.output;
    let criu = context.criu(checkpoint.program_arguments())?;
    there_is(pid)?;
    let options = checkpoint.pre_dump_options()?;
    if checkpoint.dry_run.dry_run {
        let plan = criu
            .plan_pre_dump(pid, images_to_plan(checkpoint)?, options)
            .await?;
        return tell_checkpoint(context, checkpoint, checkpoint.target.to_string(), plan);
    }
    let images = images_to_write(checkpoint)?;
    let report = Interrupts::new()?
        .guard(
            operation,
            output,
            criu.pre_dump(pid, &images, options),
            criu.settled(),
            || state_of(pid),
        )
        .await?;
    let done = Checkpointed {
        target: checkpoint.target.to_string(),
        images_dir: images.path(),
        pre_dump: true,
        report: &report,
    };
    output.result("Checkpoint", &done, || {
        pre_dumped(output, checkpoint, &report, images.path())
    })
}

/// The library says the same, but not that it was the command line that was wrong.
pub(super) fn there_is(pid: i32) -> Result<(), Failure> {
    match Path::new(&format!("/proc/{pid}")).exists() {
        true => Ok(()),
        false => Err(Failure::input(format!("there is no process {pid}"))
            .hint("give the pid of the root of the task tree, as ps shows it here")),
    }
}

/// The images directory, made if it is missing, with its parent images if there are to be any.
pub(super) fn images_to_write(checkpoint: &Checkpoint) -> Result<NewImages, Failure> {
    let path = images_to_plan(checkpoint)?;
    let cannot = |error| {
        Failure::input(format!("{} cannot be the images directory", path.display()))
            .caused_by(error)
    };
    let made = ImagesDir::missing(path).map_err(cannot)?;
    let images = ImagesDir::create(path).map_err(cannot)?;
    Ok(NewImages { images, made })
}

/// An images directory. What was made for it is removed when this is dropped, if nothing has come into it: a verb that refuses
/// leaves nothing.
pub(super) struct NewImages {
    images: ImagesDir,
    /// The outermost first.
    made: Vec<PathBuf>,
}

impl Deref for NewImages {
    type Target = ImagesDir;

    fn deref(&self) -> &ImagesDir {
        &self.images
    }
}

impl Drop for NewImages {
    fn drop(&mut self) {
        for directory in self.made.iter().rev() {
            // Not one with anything in it.
            if fs::remove_dir(directory).is_err() {
                break;
            }
        }
    }
}

/// CRIU makes a full dump without a word when there are no parent images.
pub(super) fn has_parent(images: &Path, parent: &Path) -> Result<(), Failure> {
    let relative = "it is relative to the images directory, such as ../1";
    if parent.is_absolute() {
        return Err(
            Failure::usage(format!("--parent-path: {} is absolute", parent.display()))
                .hint(relative),
        );
    }
    let found = ImagesDir::beside(images, parent).map_err(|error| {
        Failure::input(format!("{} cannot be looked at", images.display())).caused_by(error)
    })?;
    match found.join(criu_client::image::INVENTORY).exists() {
        true => Ok(()),
        false => Err(Failure::input(format!(
            "--parent-path: there are no images in {}",
            found.display()
        ))
        .hint(relative)),
    }
}

pub(super) fn dumped(
    output: &Output,
    checkpoint: &Checkpoint,
    report: &DumpReport,
    images: &Path,
) -> String {
    let mut text = format!(
        "checkpointed {} to {}: {}\n",
        checkpoint.target,
        images.display(),
        report::fate(report.tasks)
    );
    if let Some(stats) = &report.stats {
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "frozen for {}, {} written, {} in all",
            time(stats.frozen_time),
            pages(stats.pages_written + stats.shpages_written.unwrap_or(0)),
            time(report.details.timings.total)
        );
        if checkpoint.criu_more.display_stats {
            let _ = writeln!(text, "{}", report::dump_stats(stats).trim_fmt());
        }
    }
    report::details(output, &mut text, &report.details);
    text
}

pub(super) fn pre_dumped(
    output: &Output,
    checkpoint: &Checkpoint,
    report: &PreDumpReport,
    images: &Path,
) -> String {
    let mut text = format!(
        "pre-dumped {} to {}: the tasks run on\n",
        checkpoint.target,
        images.display()
    );
    if let Some(stats) = &report.stats {
        let _ = writeln!(
            text,
            "frozen for {}, {} written, {} unchanged, {} in all",
            time(stats.frozen_time),
            pages(stats.pages_written),
            pages(stats.pages_skipped_parent),
            time(report.details.timings.total)
        );
        if checkpoint.criu_more.display_stats {
            let _ = writeln!(text, "{}", report::dump_stats(stats).trim_fmt());
        }
    }
    report::details(output, &mut text, &report.details);
    text
}
