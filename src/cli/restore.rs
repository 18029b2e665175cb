//! `restore`

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;
use tempfile::NamedTempFile;

use criu_client::container::EngineKind;
use criu_client::dry_run::{Action, Step};
use criu_client::image::{
    INVENTORY, ImageError, Inventory, NetworkLockMethod, PSTREE, ProcessTree,
};
use criu_client::notify::Script;
use criu_client::options::NetworkLock;
use criu_client::{Exit, ImagesDir, OperationKind, RestoreReport, TaskState};

use super::Context;
use super::dry_run::tell_restore;
use super::failure::Failure;
use super::hooks::CliHooks;
use super::output::{Output, pages, time};
use super::restore_args::Restore;
use super::signals::{Attendant, Interrupts, state_of};
use super::target::Target;
use super::{container, docker, podman, report};

/// The result.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Restored<'a> {
    target: String,
    images_dir: &'a Path,
    detached: bool,
    #[serde(flatten)]
    report: &'a RestoreReport,
}

pub(super) async fn run(context: &Context, restore: &Restore) -> Result<ExitCode, Failure> {
    context.demand_root(restore.security.unprivileged)?;
    let (engine, id) = match &restore.target {
        Some(Target::Container(engine, id)) => (engine, id),
        Some(Target::Pid(pid)) => return tree(context, restore, Some(*pid)).await,
        None => return tree(context, restore, None).await,
    };
    let engine = match engine {
        Some(engine) => *engine,
        None => {
            container::engine_of_images(&images_to_read(restore, None)?, id, &restore.containers)?
        }
    };
    restore.restore_containers.check_mode(engine)?;
    if matches!(engine, EngineKind::Docker | EngineKind::Podman) {
        super::external::runs_outside(id)?;
    }
    match engine {
        EngineKind::Podman => podman::restore(context, restore, id).await,
        EngineKind::Crun => {
            let crun = restore.containers.crun();
            container::restore(context, restore, &crun, id).await
        }
        EngineKind::Docker => {
            let docker = restore.containers.docker()?;
            docker::restore(context, restore, &docker, id).await
        }
        _ => {
            let runc = restore.containers.runc();
            container::restore(context, restore, &runc, id).await
        }
    }
}

/// Restores a process tree.
async fn tree(
    context: &Context,
    restore: &Restore,
    wanted: Option<i32>,
) -> Result<ExitCode, Failure> {
    let operation = OperationKind::Restore;
    let output = &context.output;
    if let Some(option) = restore.restore_containers.given() {
        return Err(container::not_for_processes(option));
    }
    container::refuse_roots(&restore.containers)?;
    let mut hooks = CliHooks::new(&restore.criu_more.hooks, operation)?;
    let console = restore.restore_tasks.console_socket.as_deref();
    match restore.dry_run.dry_run {
        true => CliHooks::check_console(console)?,
        false => hooks = hooks.with_console(console)?,
    }
    let criu = context.criu(restore.program_arguments())?;
    let images = images_to_read(restore, wanted)?;
    lazy_pages_are_served(restore)?;
    let options = restore.options()?;
    let foreground = !restore.restore_tasks.detach && !restore.restore_tasks.exec_cmd;
    if restore.dry_run.dry_run {
        PidFile::check(restore)?;
        let mut plan = criu.plan_restore(&images, foreground, options).await?;
        if let Some(socket) = console {
            let socket = socket.to_owned();
            let action = Action::SendTerminal { socket };
            plan.push(Step::at(Script::OrphanPtsMaster, action));
        }
        tell_restore(context, restore, target_of(restore, &images), plan)?;
        return Ok(ExitCode::SUCCESS);
    }
    let pid_file = PidFile::of(restore)?;
    let root = expected_root(&images);
    let state = move || root.map_or(TaskState::Unknown, state_of);
    let mut interrupts = Interrupts::new()?;

    if !foreground {
        let restored = criu.restore(&images, hooks, options);
        let report = interrupts
            .guard(operation, output, restored, criu.settled(), state)
            .await?;
        // First the pid file: when that fails, the failure is the one document there is.
        pid_file.map_or(Ok(()), |file| file.publish(report.pid))?;
        tell(output, restore, &images, &report)?;
        return Ok(ExitCode::SUCCESS);
    }
    let attendant = Attendant::new()?;
    let restored = criu.restore_child(&images, hooks, options);
    let child = interrupts
        .guard(operation, output, restored, criu.settled(), state)
        .await?;
    drop(interrupts);
    // There is a process to answer for: what has failed is told, and it is waited for all the same.
    let told = tell(output, restore, &images, &child.report);
    let published = pid_file.map_or(Ok(()), |file| file.publish(child.report.pid));
    for failure in [told, published].into_iter().filter_map(Result::err) {
        failure.say(output);
    }
    Ok(status(output, attendant.attend(child.root).await?))
}

/// The exit status that a restored process passes on.
pub(super) fn status(output: &Output, exit: Exit) -> ExitCode {
    match exit {
        Exit::Status(status) => ExitCode::from(u8::try_from(status & 0xff).unwrap_or(1)),
        Exit::Signal(signal) => ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX)),
        _ => {
            output.warn("the restored process has ended, but how is not known");
            ExitCode::FAILURE
        }
    }
}

/// The images directory, with what can be told of it before CRIU is asked.
pub(super) fn images_to_read(restore: &Restore, wanted: Option<i32>) -> Result<ImagesDir, Failure> {
    let path = &restore.images.image_path;
    let images = ImagesDir::open(path).map_err(|error| {
        Failure::input(format!("{} is no images directory", path.display())).caused_by(error)
    })?;
    if restore.images.stream {
        return Ok(images);
    }
    let unreadable = |error: ImageError| {
        let diagnosis = images.diagnose(&error);
        let hint = diagnosis.as_ref().map_or_else(
            || {
                "name the directory that was given to the checkpoint; if that failed, make another"
                    .to_owned()
            },
            |diagnosis| diagnosis.remedy.clone(),
        );
        Failure::input(format!(
            "there is no complete checkpoint in {}",
            path.display()
        ))
        .known(diagnosis)
        .hint(hint)
        .caused_by(error)
    };
    let inventory = Inventory::read(images.as_fd(), INVENTORY).map_err(unreadable)?;
    locked_as_told(restore, &inventory)?;
    if inventory.is_pre_dump() {
        return Err(Failure::input(format!(
            "{} holds a pre-dump, which cannot be restored",
            path.display()
        ))
        .hint("name the directory of the checkpoint that was made after it"));
    }
    let tree = ProcessTree::read(images.as_fd(), PSTREE).map_err(unreadable)?;
    let root = tree.root().pid;
    match wanted {
        Some(wanted) if i64::from(wanted) != i64::from(root) => Err(Failure::input(format!(
            "the images in {} are of pid {root}, not of pid {wanted}",
            path.display()
        ))
        .hint(format!("write pid:{root}, or leave the target out"))),
        _ => Ok(images),
    }
}

/// CRIU unlocks the network as the images say that it was locked.
fn locked_as_told(restore: &Restore, inventory: &Inventory) -> Result<(), Failure> {
    let told = restore.restore_network.network_lock;
    let noted = inventory
        .network_lock_method
        .and_then(|method| match method {
            NetworkLockMethod::Iptables => Some(NetworkLock::Iptables),
            NetworkLockMethod::Nftables => Some(NetworkLock::Nftables),
            NetworkLockMethod::Skip => Some(NetworkLock::Skip),
            _ => None,
        });
    match (told, noted) {
        (Some(told), Some(noted)) if told != noted => Err(Failure::input(format!(
            "--network-lock: the network was locked by {}, not by {}",
            noted.as_str(),
            told.as_str()
        ))
        .hint("leave it out: the images say how it was locked")),
        _ => Ok(()),
    }
}

/// The pid that the root task will have here; none when it brings its own pid namespace.
fn expected_root(images: &ImagesDir) -> Option<i32> {
    let tree = ProcessTree::read(images.as_fd(), PSTREE).ok()?;
    i32::try_from(tree.root().pid).ok().filter(|pid| *pid != 1)
}

/// What would be restored, in the words of the command line.
fn target_of(restore: &Restore, images: &ImagesDir) -> String {
    let tree = || ProcessTree::read(images.as_fd(), PSTREE).ok();
    match &restore.target {
        Some(target) => target.to_string(),
        None => tree().map_or_else(
            || "the process tree".to_owned(),
            |tree| format!("pid:{}", tree.root().pid),
        ),
    }
}

/// Without the daemon CRIU would make all tasks before it fails to connect.
pub(super) fn lazy_pages_are_served(restore: &Restore) -> Result<(), Failure> {
    if !restore.restore_memory.lazy_pages {
        return Ok(());
    }
    let directory = restore
        .images
        .work_path
        .as_ref()
        .unwrap_or(&restore.images.image_path);
    match directory.join("lazy-pages.socket").exists() {
        true => Ok(()),
        false => Err(Failure::input(format!("nobody serves lazy pages in {}", directory.display())).hint(format!(
            "start `criu lazy-pages -D {} -W {}` first, with --page-server --address --port if the source still has the memory",
            restore.images.image_path.display(),
            directory.display()
        ))),
    }
}

fn tell(
    output: &Output,
    restore: &Restore,
    images: &ImagesDir,
    report: &RestoreReport,
) -> Result<(), Failure> {
    report::ignored_refusals(output, &report.details);
    let target = match &restore.target {
        Some(target) => target.to_string(),
        None => Target::Pid(report.pid).to_string(),
    };
    let done = Restored {
        target,
        images_dir: images.path(),
        detached: restore.restore_tasks.detach || restore.restore_tasks.exec_cmd,
        report,
    };
    output.result("Restore", &done, || {
        restored(output, restore, images.path(), report)
    })
}

pub(super) fn restored(
    output: &Output,
    restore: &Restore,
    images: &Path,
    report: &RestoreReport,
) -> String {
    let state = match restore.tasks.leave_stopped {
        true => "stopped",
        false => "running",
    };
    let mut text = format!(
        "restored from {}: pid {} is {state}, after {}",
        images.display(),
        report.pid,
        time(report.details.timings.total)
    );
    if let Some(restored) = report.stats.as_ref().and_then(|stats| stats.pages_restored) {
        // Writing to a String does not fail.
        let _ = write!(text, ", {} read", pages(restored));
    }
    text.push('\n');
    if let Some(stats) = report
        .stats
        .as_ref()
        .filter(|_| restore.criu_more.display_stats)
    {
        let _ = writeln!(text, "{}", report::restore_stats(stats).trim_fmt());
    }
    report::details(output, &mut text, &report.details);
    text
}

/// A file that appears with the pid in it, or not at all.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    temporary: NamedTempFile,
}

impl PidFile {
    /// The one that is wanted, if any.
    pub(super) fn of(restore: &Restore) -> Result<Option<Self>, Failure> {
        Self::check(restore)?;
        let path = restore.restore_tasks.pid_file.as_deref();
        path.map(Self::new).transpose()
    }

    /// What can be told of it without making a file.
    pub(super) fn check(restore: &Restore) -> Result<(), Failure> {
        let Some(path) = &restore.restore_tasks.pid_file else {
            return Ok(());
        };
        let directory = path.parent().unwrap_or(Path::new("/"));
        let checked = match path.is_dir() {
            true => Err(std::io::ErrorKind::IsADirectory.into()),
            false => std::fs::read_dir(directory)
                .and_then(|_| Ok(rustix::fs::access(directory, rustix::fs::Access::WRITE_OK)?)),
        };
        checked.map_err(|error| {
            Failure::input(format!("--pid-file: {} cannot be written", path.display()))
                .caused_by(error)
        })
    }

    /// Makes sure that the file can be written, before there is a pid to write.
    pub(super) fn new(path: &Path) -> Result<Self, Failure> {
        let cannot = |error| {
            Failure::input(format!("--pid-file: {} cannot be written", path.display()))
                .caused_by(error)
        };
        let directory = path.parent().unwrap_or(Path::new("/"));
        if path.is_dir() {
            return Err(cannot(std::io::ErrorKind::IsADirectory.into()));
        }
        let temporary = NamedTempFile::new_in(directory).map_err(cannot)?;
        temporary
            .as_file()
            .set_permissions(std::fs::Permissions::from_mode(0o644))
            .map_err(cannot)?;
        Ok(Self {
            path: path.to_owned(),
            temporary,
        })
    }

    pub(super) fn publish(self, pid: i32) -> Result<(), Failure> {
        let Self {
            path,
            mut temporary,
        } = self;
        let cannot = |error| {
            Failure::failed(format!(
                "the tasks are restored, but their pid {pid} could not be written to {}",
                path.display()
            ))
            .caused_by(error)
        };
        temporary
            .write_all(pid.to_string().as_bytes())
            .map_err(cannot)?;
        temporary
            .persist(&path)
            .map_err(|error| cannot(error.error))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_appears_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        let file = PidFile::new(&path).unwrap();
        assert!(!path.exists());
        file.publish(4711).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "4711");
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o644
        );
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);

        assert!(PidFile::new(directory.path()).is_err());
        assert!(PidFile::new(&directory.path().join("missing/pid")).is_err());
    }
}
