//! RESTORE.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use super::care::Care;
use super::half_restored::RestoreCare;
use super::operation::{Operation, sealed::FromEnded};
use super::report::RestoreReport;
use super::settle::Ended;
use super::tasks::{self, Taken};
use super::{Criu, ImagesDir, Plan};
use crate::diagnosis::{self, Diagnosis, Findings};
use crate::error::{Error, OperationKind, Result};
use crate::image::{INVENTORY, PSTREE, ProcessTree, RestoreStats, STATS_RESTORE};
use crate::notify::Hooks;
use crate::options::{InheritKey, RestoreOptions};
use crate::rpc::swrk::{Exit, FIRST_REQUEST_FD, reap, reap_in_background};
use crate::rpc::wire::CriuReqType;
use crate::sys::ExitWatch;

/// How often pids that are taken are looked at again.
const LOOK: std::time::Duration = std::time::Duration::from_millis(5);

/// A restored root task that is a child of this process.
///
/// [`RestoredRoot::wait`] tells how it ends. Dropped without, it lives on and is reaped in the background when it ends.
#[derive(Debug)]
pub struct RestoredRoot {
    pid: i32,
    pidfd: Option<OwnedFd>,
}

impl RestoredRoot {
    /// Its pid as this process sees it.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// A pidfd of it, which stays ours.
    #[must_use]
    pub fn pidfd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.pidfd.as_ref().map(std::os::fd::AsFd::as_fd)
    }

    /// Waits for its end and reaps it.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    ///
    /// # Cancel safety
    /// Dropping the future drops the handle: the task lives on and is reaped in the background.
    pub async fn wait(mut self) -> std::io::Result<Exit> {
        let watched = self.pidfd.as_ref().map(OwnedFd::try_clone).transpose()?;
        let Some(watched) = watched else {
            return Ok(Exit::Unknown);
        };
        let watch = ExitWatch::new(watched)?;
        watch.ended().await?;
        self.pidfd = None;
        Ok(reap(watch.pidfd()).unwrap_or(Exit::Unknown))
    }
}

impl Drop for RestoredRoot {
    fn drop(&mut self) {
        if let Some(pidfd) = self.pidfd.take() {
            reap_in_background(pidfd);
        }
    }
}

/// A finished restore with the root task as a child of this process.
#[derive(Debug)]
#[non_exhaustive]
pub struct RestoredChild {
    /// The child.
    pub root: RestoredRoot,
    /// What every restore tells.
    pub report: RestoreReport,
}

impl Criu {
    /// Restores the tree in `images`, detached: the root task's parent is the nearest subreaper, or init.
    ///
    /// Tasks that had no pid namespace of their own get the pids they had. When one is still taken by a zombie (dumped
    /// tasks that nobody has reaped yet), this waits for up to [`TimeLimits::settle`](super::TimeLimits::settle).
    ///
    /// # The tasks
    /// Success: they run, or are stopped if that was asked for. Every failure, refusal, time limit and cancellation, the
    /// death of CRIU and our own before the answer to [`PostRestore`](crate::notify::Event::PostRestore): none of them
    /// exists. After that answer they run even if we die, and from [`PreResume`](crate::notify::Event::PreResume) on even
    /// if CRIU does. Images are never changed by a restore
    /// (except with `auto_dedup`), so it can be tried again.
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind).
    ///
    /// # Cancel safety
    /// Dropping the future cancels, see [`Operation`].
    pub async fn restore(
        &self,
        images: &ImagesDir,
        hooks: impl Hooks,
        options: RestoreOptions,
    ) -> Result<RestoreReport> {
        self.start_restore(images, options).await?.run(hooks).await
    }

    /// Starts [`Criu::restore`] for a caller that answers the callbacks itself.
    ///
    /// # Errors
    /// Those of the start: no CRIU, an option that it does not have, a pid that is taken.
    pub async fn start_restore(
        &self,
        images: &ImagesDir,
        options: RestoreOptions,
    ) -> Result<Operation<RestoreReport>> {
        self.begin_restore(images, options, false)
            .await
            .map(Operation::from_held)
    }

    /// Restores the tree in `images` with the root task as a child of this process (CRIU's `rst_sibling`), which can then
    /// wait for it. Not with `exec_command`, and not through a service.
    ///
    /// # The tasks
    /// As [`Criu::restore`]. Where a cancellation comes too late and the tasks run, the root is reaped in the background.
    ///
    /// # Errors
    /// As [`Criu::restore`].
    ///
    /// # Cancel safety
    /// As [`Criu::restore`].
    pub async fn restore_child(
        &self,
        images: &ImagesDir,
        hooks: impl Hooks,
        options: RestoreOptions,
    ) -> Result<RestoredChild> {
        self.start_restore_child(images, options)
            .await?
            .run(hooks)
            .await
    }

    /// Starts [`Criu::restore_child`] for a caller that answers the callbacks itself.
    ///
    /// # Errors
    /// As [`Criu::start_restore`].
    pub async fn start_restore_child(
        &self,
        images: &ImagesDir,
        options: RestoreOptions,
    ) -> Result<Operation<RestoredChild>> {
        self.begin_restore(images, options, true)
            .await
            .map(Operation::from_held)
    }

    async fn begin_restore(
        &self,
        images: &ImagesDir,
        options: RestoreOptions,
        sibling: bool,
    ) -> Result<super::running::Held> {
        let (plan, pids) = self.restore_plan(images, options, sibling)?;
        self.wait_for_pids(&pids).await?;
        self.begin(plan).await
    }

    /// The request, and the pids that must be free for it.
    pub(super) fn restore_plan(
        &self,
        images: &ImagesDir,
        options: RestoreOptions,
        sibling: bool,
    ) -> Result<(Plan, Vec<i32>)> {
        let kind = OperationKind::Restore;
        let prepared = options
            .prepare(FIRST_REQUEST_FD)
            .map_err(|error| Error::before(kind, error.into()))?;
        let exec = !prepared.opts.exec_cmd.is_empty();
        if exec && sibling {
            return Err(Error::precondition(
                kind,
                "exec_command makes the command the parent of the restored tasks, so they cannot be children of this process: use restore instead of restore_child",
                None,
            ));
        }
        let joins_pid_namespace = prepared
            .opts
            .inherit_fd
            .iter()
            .any(|inherited| matches!(inherited.key.parse(), Ok(InheritKey::Namespace(_))));
        let streamed = prepared.opts.stream == Some(true);
        let pids = match joins_pid_namespace || streamed {
            true => Vec::new(),
            false => own_pids(images)?,
        };

        let needed = pids.clone();
        let mut plan = Plan::new(kind, |_| CriuReqType::Restore, prepared);
        plan.images = Some(images.clone());
        plan.log = Some("restore");
        plan.notify = true;
        plan.sibling = sibling;
        plan.terminal = plan.prepared.opts.shell_job == Some(true);
        let program = self.program().map(ToOwned::to_owned).unwrap_or_default();
        plan.care = Box::new(move |ground| {
            Care::Restore(RestoreCare {
                trail: ground.trail,
                program,
                pids: if ground.same_pids { pids } else { Vec::new() },
                same_pids: ground.same_pids,
                started: tasks::now_in_ticks(),
                sibling,
                exec,
                roots: Vec::new(),
                released: false,
            })
        });
        Ok((plan, needed))
    }

    /// Refuses pids that something has which lives.
    pub(super) async fn are_free(&self, pids: &[i32]) -> Result<()> {
        match tasks::taken(pids) {
            Some(taken) if !taken.zombie && self.shares_pids().await => Err(taken_by(&taken)),
            _ => Ok(()),
        }
    }

    /// A pid that a zombie still has comes free when its parent reaps it; one that anything else has does not.
    async fn wait_for_pids(&self, pids: &[i32]) -> Result<()> {
        if tasks::taken(pids).is_none() || !self.shares_pids().await {
            return Ok(());
        }
        let deadline = Instant::now() + self.limits.settle;
        while let Some(taken) = tasks::taken(pids) {
            if !taken.zombie || Instant::now() >= deadline {
                return Err(taken_by(&taken));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

fn taken_by(taken: &Taken) -> Error {
    Error::precondition(OperationKind::Restore, in_use(taken), None)
        .with_findings(pid_in_use(taken.pid))
}

fn in_use(taken: &Taken) -> String {
    let Taken {
        pid, name, parent, ..
    } = taken;
    match taken.zombie {
        true => format!(
            "pid {pid}, which the images need, is still a zombie ({name}): its parent, process {parent}, has to reap it first"
        ),
        false => format!(
            "pid {pid}, which the images need, is in use by {name}: end that process, or restore into a pid namespace of its own"
        ),
    }
}

fn pid_in_use(pid: i32) -> Findings {
    let pid = pid.to_string();
    let diagnosis = Diagnosis::by_code("pid-in-use", &[("pid", &pid)]);
    Findings::found_before(diagnosis::Operation::Restore, diagnosis)
}

/// The pids and thread ids that the images' tasks get in our own pid namespace; none when they bring their own.
fn own_pids(images: &ImagesDir) -> Result<Vec<i32>> {
    let tree = ProcessTree::read(images.as_fd(), PSTREE).map_err(|source| {
        let what = match images.contains(INVENTORY) {
            true => format!("the images in {} cannot be read: {source}", images.path().display()),
            false => format!(
                "{} holds no complete dump (inventory.img or pstree.img is missing): give the directory that was dumped into",
                images.path().display()
            ),
        };
        let error = Error::precondition(OperationKind::Restore, what, None);
        match images.diagnose(&source) {
            diagnosis @ Some(_) => error.with_findings(Findings::found_before(
                diagnosis::Operation::Restore,
                diagnosis,
            )),
            None => error,
        }
    })?;
    // The root of a pid namespace is its number 1, and nobody else is.
    if tree.root().pid == 1 {
        return Ok(Vec::new());
    }
    let ids = tree
        .tasks()
        .iter()
        .flat_map(|task| task.threads.iter().chain([&task.pid]));
    Ok(ids.filter_map(|id| i32::try_from(*id).ok()).collect())
}

impl FromEnded for RestoreReport {
    #[allow(private_interfaces)]
    fn from_ended(mut ended: Ended) -> Result<Self> {
        let Some(restore) = ended.answer.restore else {
            return Err(ended.missing("restore"));
        };
        Ok(Self {
            pid: restore.pid,
            stats: ended
                .running
                .work
                .as_ref()
                .and_then(|work| RestoreStats::read(work.as_fd(), STATS_RESTORE).ok()),
            details: ended.details(),
        })
    }
}

impl FromEnded for RestoredChild {
    #[allow(private_interfaces)]
    fn from_ended(mut ended: Ended) -> Result<Self> {
        let Some(pid) = ended.answer.restore.as_ref().map(|restore| restore.pid) else {
            return Err(ended.missing("restore"));
        };
        let root = RestoredRoot {
            pid,
            pidfd: ended.running.care.take_root(pid),
        };
        Ok(Self {
            root,
            report: RestoreReport::from_ended(ended)?,
        })
    }
}
