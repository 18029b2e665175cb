//! `checkpoint --export`

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use criu_client::archive::{self, ExportError, Exported};
use criu_client::container::EngineKind;
use criu_client::container::runtime::CheckpointReport;
use criu_client::{Criu, DumpReport, OperationKind, TaskState};

use super::Context;
use super::checkpoint::there_is;
use super::checkpoint_args::Checkpoint;
use super::container::{self, left_behind};
use super::failure::Failure;
use super::hooks::CliHooks;
use super::output::{Format, Output, pages, size, time};
use super::podman;
use super::signals::{Interrupts, state_of};
use super::values::{self, Compress};

/// Archives: checkpoint.
#[derive(Debug, Args)]
#[command(next_help_heading = "Archive")]
pub(super) struct ExportArgs {
    /// Put the checkpoint into this archive instead of a directory; - writes it to standard output
    ///
    /// It has the form of Podman's archives, with the memory and everything that the container has changed: its root, its volumes,
    /// its /dev/shm. It appears when it is complete. `podman container restore --import` takes it.
    #[arg(id = "archive", long = "export", short = 'e', value_name = "FILE", conflicts_with_all = ["image_path", "pre_dump", "lazy_pages", "page_server", "parent_path", "stream", "dry_run"])]
    pub(super) export: Option<PathBuf>,

    /// Leave out what the container has changed in its root
    #[arg(long, requires = "archive")]
    pub(super) ignore_rootfs: bool,

    /// Leave out what is in the container's volumes
    #[arg(long, requires = "archive")]
    pub(super) ignore_volumes: bool,
}

/// The result.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Done<'a, R> {
    target: String,
    archive: &'a Path,
    #[serde(flatten)]
    exported: &'a Exported<R>,
}

/// What is to be written, with what can be told of it before anything is done.
fn to_library(args: &Checkpoint, output: &Output) -> Result<archive::Export, Failure> {
    let path = args.archive.path();
    let mut export = match path == Path::new("-") {
        false => archive::Export::to_file(path),
        true => to_stdout(output)?,
    };
    if let Some(Compress::Archive(compress)) = args.dump_images.compress {
        export = export.compress(compress);
    }
    if let Some(path) = &args.images.work_path {
        export = export.work_path(path);
    }
    Ok(export
        .ignore_rootfs(args.archive.ignore_rootfs)
        .ignore_volumes(args.archive.ignore_volumes))
}

impl ExportArgs {
    fn path(&self) -> &Path {
        self.export.as_deref().unwrap_or(Path::new("-"))
    }
}

fn to_stdout(output: &Output) -> Result<archive::Export, Failure> {
    if output.format == Format::Json {
        return Err(
            Failure::usage("--export - and --format json both want standard output")
                .hint("leave one of them out, or name a file"),
        );
    }
    if io::stdout().is_terminal() {
        return Err(Failure::usage("--export -: standard output is a terminal")
            .hint("send it into a pipe or a file, or name a file"));
    }
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    let stdout = stdout.map_err(|error| {
        Failure::failed("standard output cannot be written to").caused_by(error)
    })?;
    Ok(archive::Export::to_stream(
        File::from(stdout),
        values::scratch(),
    ))
}

impl From<ExportError> for Failure {
    fn from(error: ExportError) -> Self {
        match error {
            ExportError::Container(error) => error.into(),
            ExportError::Criu(error) => error.into(),
            ExportError::Destination { path, source } => Self::input(format!(
                "--export: {} cannot be the archive",
                path.display()
            ))
            .caused_by(source),
            ExportError::Write { tasks, source } => {
                Self::failed("the archive could not be written, and there is none")
                    .with_tasks(tasks)
                    .caused_by(source)
            }
            ExportError::Unfinished { images, source } => Self::failed(format!(
                "the archive could not be finished, and there is none; the images are in {}",
                images.display()
            ))
            .hint("restore them with --image-path, and remove the directory above them afterwards")
            .with_tasks(TaskState::Absent)
            .caused_by(source),
            error => Self::failed("the archive could not be written").caused_by(error),
        }
    }
}

pub(super) async fn process(context: &Context, args: &Checkpoint, pid: i32) -> Result<(), Failure> {
    let operation = OperationKind::Dump;
    let output = &context.output;
    if args.archive.ignore_rootfs || args.archive.ignore_volumes {
        return Err(container::not_for_processes(
            "--ignore-rootfs or --ignore-volumes",
        ));
    }
    let hooks = CliHooks::new(&args.criu_more.hooks, operation)?;
    let criu = context.criu(args.program_arguments())?;
    there_is(pid)?;
    let options = args.dump_options()?;
    let export = to_library(args, output)?;
    let exporting = export.process(&criu, pid, hooks, options);
    let exported = Interrupts::new()?
        .guard(
            operation,
            output,
            exporting,
            settled(&criu, &export),
            || state_of(pid),
        )
        .await?;
    let report: &DumpReport = &exported.report;
    super::report::ignored_refusals(output, &report.details);
    tell(output, args, args.target.to_string(), &exported, report)
}

pub(super) async fn podman(context: &Context, args: &Checkpoint, id: &str) -> Result<(), Failure> {
    container::refuse_what_is_known(args)?;
    let podman = args.containers.podman()?;
    podman::ended(&podman, async {
        let operation = OperationKind::Dump;
        let output = &context.output;
        let hooks = CliHooks::new(&args.criu_more.hooks, operation)?;
        let criu = context.criu(args.program_arguments())?;
        let options = container::checkpoint_options(args)?;
        let pid = podman.load(id).await?.pid.unwrap_or_default();
        let export = to_library(args, output)?;
        let exporting = export.podman(&podman, &criu, id, hooks, options);
        let exported = Interrupts::new()?
            .guard(
                operation,
                output,
                exporting,
                settled(&criu, &export),
                || state_of(pid),
            )
            .await?;
        let report: &CheckpointReport = &exported.report;
        super::report::ignored_refusals(output, &report.dump.details);
        left_behind(context, &report.left_behind);
        for note in &report.plan.notes {
            output.note(note);
        }
        let target = format!("{}:{id}", EngineKind::Podman);
        tell(output, args, target, &exported, &report.dump)
    })
    .await
}

/// The tasks first: they wait for nothing but CRIU.
async fn settled(criu: &Criu, export: &archive::Export) {
    criu.settled().await;
    export.settled().await;
}

fn tell<R: Serialize>(
    output: &Output,
    args: &Checkpoint,
    target: String,
    exported: &Exported<R>,
    report: &DumpReport,
) -> Result<(), Failure> {
    for note in &exported.notes {
        output.warn(note);
    }
    let archive = args.archive.path();
    let text = || {
        let written = exported.written;
        let mut text = format!(
            "checkpointed {target} to {}: {}\n{}, of {} in {} files",
            archive.display(),
            super::report::fate(report.tasks),
            size(written.archive_bytes),
            size(written.content_bytes),
            written.files,
        );
        if let Some(stats) = &report.stats {
            // Writing to a String does not fail.
            let _ = write!(
                text,
                "; frozen for {}, {} written, {} in all",
                time(stats.frozen_time),
                pages(stats.pages_written + stats.shpages_written.unwrap_or(0)),
                time(report.details.timings.total)
            );
        }
        text.push('\n');
        text
    };
    if archive == Path::new("-") {
        // Standard output has the archive.
        output.note(text().trim_end());
        return Ok(());
    }
    let done = Done {
        target: target.clone(),
        archive,
        exported,
    };
    output.result("Export", &done, text)
}
