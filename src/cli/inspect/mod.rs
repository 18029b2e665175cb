//! `inspect`

mod memory;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use criu_client::inspect::{Checkpoint, InspectError, Report, Sections};

use super::Context;
use super::failure::{Failure, Status};
use super::output::Format;
use super::values;

/// Look into a checkpoint: what it is of, its processes, files, sockets, mounts, memory
///
/// Takes the archives that Podman, CRI-O, containerd and criuctl export, whatever they are compressed with, directories in the OCI image
/// layout, and directories of images. Needs no root, and unpacks nothing.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  criuctl inspect web.tar.zst --ps-tree --sockets
  criuctl inspect /var/tmp/images --memory --pid 1
  criuctl inspect web.tar.zst --memory --pid 1 --search password")]
pub(super) struct Inspect {
    /// An archive, a directory in the OCI image layout, or a directory of images
    #[arg(value_name = "FILE-OR-DIR", value_parser = values::path)]
    path: PathBuf,

    /// The processes with their arguments, as a tree
    #[arg(long, visible_alias = "ps-tree-cmd", help_heading = "Sections")]
    ps_tree: bool,

    /// The environment of the processes
    #[arg(long, visible_alias = "ps-tree-env", help_heading = "Sections")]
    env: bool,

    /// What the processes have open
    #[arg(long, help_heading = "Sections")]
    files: bool,

    /// Their sockets
    #[arg(long, help_heading = "Sections")]
    sockets: bool,

    /// What is mounted in the container
    #[arg(long, help_heading = "Sections")]
    mounts: bool,

    /// The namespaces, and what of them is in the images
    #[arg(long, help_heading = "Sections")]
    namespaces: bool,

    /// The control groups with their settings
    #[arg(long, help_heading = "Sections")]
    cgroups: bool,

    /// What the dump cost
    #[arg(long, help_heading = "Sections")]
    stats: bool,

    /// The memory of the processes; with --pid, mapping by mapping
    #[arg(long, help_heading = "Sections")]
    memory: bool,

    /// All of these
    #[arg(long, help_heading = "Sections")]
    all: bool,

    /// Only this process; its pid in the container
    #[arg(long, short, value_name = "PID")]
    pid: Option<u32>,

    /// Check instead that all is there that a restore needs, framed as it must be, with the checksums of a criuctl archive; exit
    /// status 1 if not
    #[arg(long, conflicts_with_all = ["ps_tree", "env", "files", "sockets", "mounts", "namespaces", "cgroups", "stats", "memory", "all", "pid"])]
    verify: bool,

    #[command(flatten)]
    contents: memory::Contents,
}

impl Inspect {
    fn sections(&self) -> Sections {
        if self.all {
            return Sections::all();
        }
        let mut sections = Sections::none();
        sections.processes = self.ps_tree || self.env;
        sections.arguments = self.ps_tree;
        sections.environment = self.env;
        sections.files = self.files || self.sockets;
        sections.mounts = self.mounts;
        sections.namespaces = self.namespaces;
        sections.control_groups = self.cgroups;
        sections.stats = self.stats;
        sections.memory = self.memory;
        sections
    }
}

pub(super) fn run(context: &Context, inspect: &Inspect) -> Result<ExitCode, Failure> {
    if inspect.verify {
        return verify(context, &inspect.path);
    }
    if inspect.contents.are_asked_for() {
        return memory::run(context, inspect);
    }
    let checkpoint = open(&inspect.path, inspect.sections())?;
    let mut report = checkpoint
        .report()
        .map_err(|error| of(&inspect.path, error))?;
    if let Some(pid) = inspect.pid {
        only(&mut report, pid)?;
    }
    if context.output.format == Format::Human {
        for problem in &report.problems {
            context.output.warn(text::shown(&format!(
                "{}: {}",
                problem.file, problem.problem
            )));
        }
    }
    let only_sockets = inspect.sockets && !inspect.files && !inspect.all;
    context.output.result("Inspection", &report, || {
        text::report(&report, inspect.pid.is_some(), only_sockets)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn verify(context: &Context, path: &std::path::Path) -> Result<ExitCode, Failure> {
    let verification = Checkpoint::verify(path).map_err(|error| of(path, error))?;
    context.output.result("Verification", &verification, || {
        text::verification(&verification)
    })?;
    Ok(match verification.good {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(Status::Failed as u8),
    })
}

fn open(path: &std::path::Path, sections: Sections) -> Result<Checkpoint, Failure> {
    Checkpoint::open(path, sections).map_err(|error| of(path, error))
}

/// What the path leads to is the caller's input.
fn of(path: &std::path::Path, error: InspectError) -> Failure {
    Failure::input(format!("{} cannot be inspected", path.display())).caused_by(error)
}

/// Leaves what is of one process.
fn only(report: &mut Report, pid: u32) -> Result<(), Failure> {
    let mut there = Vec::new();
    if let Some(processes) = &mut report.processes {
        processes.retain(|process| process.pid == pid);
        there.push(!processes.is_empty());
    }
    if let Some(files) = &mut report.files {
        files.retain(|files| files.pid == pid);
        there.push(!files.is_empty());
    }
    if let Some(memory) = &mut report.memory {
        memory.retain(|memory| memory.pid == pid);
        there.push(!memory.is_empty());
    }
    match there.as_slice() {
        [] => Err(Failure::usage(
            "--pid needs what it shall choose from: --ps-tree, --env, --files, --sockets or --memory",
        )),
        there if there.contains(&true) => Ok(()),
        _ => Err(Failure::input(format!(
            "--pid {pid}: there is no such process in the checkpoint, or it had ended"
        ))
        .hint("--ps-tree shows those that there are")),
    }
}
