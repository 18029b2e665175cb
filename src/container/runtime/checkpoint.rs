//! A container's checkpoint.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tracing::Instrument;

use super::beside::{self, SideFile};
use super::engine::Record;
use super::options::CheckpointOptions;
use super::removal::{CHECKPOINTED, finish};
use super::{Container, Engine, Owner, Runtime, sharing, steps};
use crate::container::cgroup;
use crate::container::error::{Error, ErrorKind, Result};
use crate::container::model::{EngineKind, ProcessId};
use crate::container::plan::{Consumer, DumpPlan};
use crate::dry_run::{self, Action, Step, When};
use crate::notify::{HookError, Hooks, Notify, Reply};
use crate::options::{CgroupMode, Leave, NetworkLock, PreDumpOptions};
use crate::{Criu, DumpReport, ImagesDir, PreDumpReport};

/// How often, and how many times, processes are looked at before they are taken for what they seem to be.
const LOOK: Duration = Duration::from_millis(10);
const LOOKS: u32 = 5;

/// A finished checkpoint.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct CheckpointReport {
    /// The container.
    pub id: String,
    /// What CRIU's dump tells.
    pub dump: DumpReport,
    /// What CRIU was asked.
    pub plan: DumpPlan,
    /// What belonged to the container and could not be removed after it, or said of its end: a failed poststop hook, or
    /// that it has none, because CRIU's configuration file or [`CheckpointOptions::criu`] made CRIU leave its tasks.
    pub left_behind: Vec<String>,
}

impl<E: Engine> Runtime<E> {
    /// Checkpoints a container into `images`.
    ///
    /// Unless it is left running, it is gone for its runtime afterwards, as after the runtime's own `checkpoint`: its control
    /// groups and its record are removed, its poststop hooks have run (each for 30 seconds at most, if its configuration has no other
    /// limit). `hooks` see every callback. Files of an older checkpoint in `images` stay whole until `hooks` have
    /// accepted [`PreDump`](crate::notify::Event::PreDump).
    ///
    /// # The container
    /// On every failure, refusal and cancellation before the answer to [`PostDump`](crate::notify::Event::PostDump) it runs on (or stays
    /// paused), and nothing of it was changed. See [`Criu::dump`] for what happens after.
    ///
    /// # Errors
    /// Everything that is wrong with the container or the options is found before CRIU is asked; then [`ErrorKind::Criu`].
    /// [`ErrorKind::Unsupported`] when processes in the container's control groups are not in the tree below its first one,
    /// as those of the runtime's `exec`: they would not be in the images.
    ///
    /// # Cancel safety
    /// Dropping the future cancels; what is removed after a finished dump is removed nevertheless.
    pub async fn checkpoint(
        &self,
        criu: &Criu,
        id: &str,
        images: &ImagesDir,
        hooks: impl Hooks,
        options: CheckpointOptions,
    ) -> Result<CheckpointReport> {
        self.checkpointed(criu, id, images, hooks, options, None)
            .instrument(E::KIND.span(id))
            .await
            .map_err(|kind| Error::new(E::KIND, id, kind))
    }

    /// [`Runtime::checkpoint`], with an error that has no name yet.
    #[cfg(feature = "engine")]
    pub(crate) async fn checkpoint_of(
        &self,
        criu: &Criu,
        id: &str,
        images: &ImagesDir,
        hooks: impl Hooks,
        options: CheckpointOptions,
    ) -> std::result::Result<CheckpointReport, ErrorKind> {
        self.checkpointed(criu, id, images, hooks, options, None)
            .await
    }

    /// Checkpoints a container that an engine above the runtime cleans up after: once its processes have been ended by CRIU,
    /// everything else of it is as it was.
    #[cfg(feature = "engine")]
    pub(crate) async fn checkpoint_for(
        &self,
        owner: Owner<'_>,
        criu: &Criu,
        id: &str,
        images: &ImagesDir,
        hooks: impl Hooks,
        options: CheckpointOptions,
    ) -> std::result::Result<CheckpointReport, ErrorKind> {
        self.checkpointed(criu, id, images, hooks, options, Some(owner))
            .await
    }

    async fn checkpointed(
        &self,
        criu: &Criu,
        id: &str,
        images: &ImagesDir,
        hooks: impl Hooks,
        options: CheckpointOptions,
        owner: Option<Owner<'_>>,
    ) -> std::result::Result<CheckpointReport, ErrorKind> {
        let Ready {
            directory,
            container,
            plan,
            files,
            is_ours_to_remove,
            steps,
            prepared,
        } = self.ready(criu, id, images.path(), options, owner).await?;
        let pid = plan.pid;
        let init = container.record.init();
        let marker = Marker {
            path: Some(directory.join(CHECKPOINTED)),
            init,
        };
        let hooks = CheckpointHooks {
            inner: hooks,
            images,
            files,
            steps,
            status: prepared.status,
        };
        let dump = criu.dump(pid, images, hooks, prepared.options).await?;
        marker.keep();
        let left_behind = match is_ours_to_remove {
            false => Vec::new(),
            true => {
                let (model, tasks) = (container.model, dump.tasks);
                // A task of its own: the container is gone, so nobody may interrupt what follows.
                tokio::spawn(async move { finish(&model, &directory, init, tasks).await })
                    .await
                    .unwrap_or_else(|error| vec![format!("what remains of the container: {error}")])
            }
        };
        Ok(CheckpointReport {
            id: id.to_owned(),
            dump,
            plan,
            left_behind,
        })
    }

    /// What [`Runtime::checkpoint`] into the directory `images`, which need not be there, would ask and do. Nothing is done but
    /// asking CRIU what it can.
    ///
    /// # Errors
    /// Those of [`Runtime::checkpoint`] that come before the request.
    pub async fn plan_checkpoint(
        &self,
        criu: &Criu,
        id: &str,
        images: impl AsRef<Path>,
        options: CheckpointOptions,
    ) -> Result<dry_run::Plan> {
        self.planned_checkpoint(criu, id, images.as_ref(), options, None)
            .await
            .map_err(|kind| Error::new(E::KIND, id, kind))
    }

    /// The same of a container that an engine above the runtime cleans up after, as [`Runtime::checkpoint_for`].
    #[cfg(feature = "engine")]
    pub(crate) async fn plan_checkpoint_for(
        &self,
        owner: Owner<'_>,
        criu: &Criu,
        id: &str,
        images: &Path,
        options: CheckpointOptions,
    ) -> std::result::Result<dry_run::Plan, ErrorKind> {
        self.planned_checkpoint(criu, id, images, options, Some(owner))
            .await
    }

    async fn planned_checkpoint(
        &self,
        criu: &Criu,
        id: &str,
        images: &Path,
        options: CheckpointOptions,
        owner: Option<Owner<'_>>,
    ) -> std::result::Result<dry_run::Plan, ErrorKind> {
        let images = std::path::absolute(images).map_err(ErrorKind::system(format!(
            "looking at {}",
            images.display()
        )))?;
        let ready = self.ready(criu, id, &images, options, owner).await?;
        let pid = ready.plan.pid;
        let dump = criu.plan_dump(pid, &images, ready.prepared.options).await?;
        let mut steps = dump.steps;
        steps.extend(ready.steps);
        if ready.is_ours_to_remove {
            steps.push(Step::after(Action::AwaitEnd { pid }));
            steps.extend(steps::removal(&ready.container.model, &ready.directory));
        }
        Ok(dry_run::Plan::new(dump.request, steps, ready.plan.notes))
    }

    /// Everything that is known before CRIU is asked.
    async fn ready(
        &self,
        criu: &Criu,
        id: &str,
        images: &Path,
        options: CheckpointOptions,
        owner: Option<Owner<'_>>,
    ) -> std::result::Result<Ready<E>, ErrorKind> {
        let directory = self.directory(id)?;
        let mut container = self.find(id)?;
        let named = owner.unwrap_or(Owner {
            engine: E::KIND,
            id,
            mounts: &[],
        });
        container.take_in(named.mounts);
        let plan = container.plan(options.consumer)?;
        check_processes(&container, named.engine).await?;
        let is_ours_to_remove = !options.leave_running && owner.is_none();
        let prepared = prepare(criu, images, &plan, &container, options).await?;
        let files = beside::files(&container, &directory, &plan, named)?;
        let signals = prepared.status.is_some();
        Ok(Ready {
            steps: steps::at_dump(images, &files, &directory, is_ours_to_remove, signals),
            directory,
            container,
            plan,
            files,
            is_ours_to_remove,
            prepared,
        })
    }

    /// Writes a running container's memory into `images` while it runs on, as the runtime's `checkpoint --pre-dump`.
    ///
    /// # The container
    /// It runs on, whatever happens.
    ///
    /// # Errors
    /// As [`Runtime::checkpoint`]; [`crate::ErrorKind::Unsupported`] within [`ErrorKind::Criu`] where this kernel cannot
    /// track memory.
    ///
    /// # Cancel safety
    /// Dropping the future cancels.
    pub async fn pre_dump(
        &self,
        criu: &Criu,
        id: &str,
        images: &ImagesDir,
        options: PreDumpOptions,
    ) -> Result<PreDumpReport> {
        self.pre_dumped(criu, id, images, options)
            .await
            .map_err(|kind| Error::new(E::KIND, id, kind))
    }

    /// [`Runtime::pre_dump`], for engines that have names of their own for the container.
    pub(crate) async fn pre_dumped(
        &self,
        criu: &Criu,
        id: &str,
        images: &ImagesDir,
        options: PreDumpOptions,
    ) -> std::result::Result<PreDumpReport, ErrorKind> {
        let (pid, options) = self.ready_to_pre_dump(criu, id, options).await?;
        Ok(criu.pre_dump(pid, images, options).await?)
    }

    /// What [`Runtime::pre_dump`] would ask and do, as [`Runtime::plan_checkpoint`].
    ///
    /// # Errors
    /// Those of [`Runtime::pre_dump`] that come before the request.
    pub async fn plan_pre_dump(
        &self,
        criu: &Criu,
        id: &str,
        images: impl AsRef<Path>,
        options: PreDumpOptions,
    ) -> Result<dry_run::Plan> {
        self.planned_pre_dump(criu, id, images.as_ref(), options)
            .await
            .map_err(|kind| Error::new(E::KIND, id, kind))
    }

    /// [`Runtime::plan_pre_dump`], as [`Runtime::pre_dumped`].
    pub(crate) async fn planned_pre_dump(
        &self,
        criu: &Criu,
        id: &str,
        images: &Path,
        options: PreDumpOptions,
    ) -> std::result::Result<dry_run::Plan, ErrorKind> {
        let (pid, options) = self.ready_to_pre_dump(criu, id, options).await?;
        Ok(criu.plan_pre_dump(pid, images, options).await?)
    }

    async fn ready_to_pre_dump(
        &self,
        criu: &Criu,
        id: &str,
        options: PreDumpOptions,
    ) -> std::result::Result<(i32, PreDumpOptions), ErrorKind> {
        let plan = self.find(id)?.plan(Consumer::Any)?;
        if criu.features().await?.mem_track != Some(true) {
            return Err(ErrorKind::Unsupported(
                "a pre-dump needs a kernel that tracks memory changes (CONFIG_MEM_SOFT_DIRTY), and this one does not: \
                 checkpoint without it"
                    .into(),
            ));
        }
        let mut options = options.track_mem(true);
        if let Some(group) = &plan.freeze_cgroup {
            options = options.freeze_cgroup(group);
        }
        if let Some(file) = &plan.config_file {
            options = options.config_file(file);
        }
        Ok((plan.pid, options))
    }
}

/// Everything that is known before CRIU is asked.
struct Ready<E: Engine> {
    directory: PathBuf,
    container: Container<E>,
    plan: DumpPlan,
    files: Vec<SideFile>,
    /// No engine above the runtime removes what remains of the container.
    is_ours_to_remove: bool,
    /// What is done at callbacks.
    steps: Vec<Step>,
    prepared: Prepared,
}

/// The marker of a complete checkpoint, which goes when this is dropped while the container runs on: after a failure, and
/// when nobody waits any more.
struct Marker {
    path: Option<PathBuf>,
    init: ProcessId,
}

impl Marker {
    /// The dump has succeeded.
    fn keep(mut self) {
        self.path = None;
    }
}

impl Drop for Marker {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && self.init.is_alive()
        {
            // Never written, if CRIU did not come so far.
            let _ = fs::remove_file(path);
        }
    }
}

/// The options of the dump, checked, and what is done here with one of them.
struct Prepared {
    options: crate::options::DumpOptions,
    status: Option<OwnedFd>,
}

async fn prepare<E: Engine>(
    criu: &Criu,
    images: &Path,
    plan: &DumpPlan,
    container: &Container<E>,
    options: CheckpointOptions,
) -> std::result::Result<Prepared, ErrorKind> {
    let CheckpointOptions {
        criu: mut dump,
        leave_running,
        tcp_established,
        ext_unix_sk,
        shell_job,
        file_locks,
        tcp_skip_in_flight,
        link_remap,
        auto_dedup,
        lazy_pages,
        page_server,
        parent_path,
        work_path,
        manage_cgroups_mode,
        status_fd,
        consumer: _,
    } = options;
    if lazy_pages {
        if page_server.is_none() {
            return Err(ErrorKind::Option {
                option: "lazy-pages",
                problem: "needs an address to serve the pages at: give page-server as well".into(),
            });
        }
        if criu.features().await?.lazy_pages != Some(true) {
            return Err(ErrorKind::Unsupported(
                "lazy pages need userfaultfd, which this kernel does not have: checkpoint without them".into(),
            ));
        }
        dump = dump.lazy_pages(true);
    } else if status_fd.is_some() {
        return Err(ErrorKind::Option {
            option: "status-fd",
            problem: "is written to when lazy pages are ready, and there are none: give lazy-pages as well".into(),
        });
    }
    if let Some(parent) = parent_path {
        let problem = if parent.is_absolute() {
            Some("is absolute: give it relative to the images directory, such as ../1")
        } else if !ImagesDir::beside(images, &parent).is_ok_and(|parent| parent.is_dir()) {
            Some(
                "is no directory: give the images directory of the pre-dump before this, relative to this one",
            )
        } else {
            None
        };
        if let Some(problem) = problem {
            return Err(ErrorKind::Option {
                option: "parent-path",
                problem: format!("{} {problem}", parent.display()),
            });
        }
        dump = dump.parent_images(parent).track_mem(true);
    }
    if let Some(transport) = page_server {
        dump = dump.page_server(transport);
    }
    if let Some(path) = work_path {
        dump = dump.work_path(path);
    }
    if leave_running {
        dump = dump.leave(Leave::Running);
    }
    type Flag = fn(crate::options::DumpOptions, bool) -> crate::options::DumpOptions;
    let flags: [(Option<bool>, Flag); 7] = [
        (tcp_established, |dump, on| dump.tcp_established(on)),
        (ext_unix_sk, |dump, on| dump.external_unix_sockets(on)),
        (shell_job, |dump, on| dump.shell_job(on)),
        (file_locks, |dump, on| dump.file_locks(on)),
        (tcp_skip_in_flight, |dump, on| dump.tcp_skip_in_flight(on)),
        (link_remap, |dump, on| dump.link_remap(on)),
        (auto_dedup, |dump, on| dump.auto_dedup(on)),
    ];
    for (value, set) in flags {
        if let Some(on) = value {
            dump = set(dump, on);
        }
    }
    dump = dump.manage_cgroups(manage_cgroups_mode.unwrap_or(CgroupMode::Soft));
    let members = cgroup::processes(container.record.cgroups())
        .map_err(ErrorKind::system("looking into control groups"))?;
    let is_locked = dump.chosen_network_lock() != Some(NetworkLock::Skip);
    let sharer = match &container.live {
        Some(live) if is_locked => sharing::sharer(live, &members)?,
        _ => None,
    };
    if let Some(sharer) = sharer {
        let tcp_established = dump.keeps_connections();
        dump = sharing::spare(sharer, dump, leave_running, tcp_established)?;
    }
    Ok(Prepared {
        options: plan.fill(dump),
        status: status_fd,
    })
}

/// Refuses a container with processes that CRIU would not find: it takes the tree below the first one.
async fn check_processes<E: Engine>(
    container: &Container<E>,
    engine: EngineKind,
) -> std::result::Result<(), ErrorKind> {
    let init = container.record.init().pid;
    let doing = || ErrorKind::system("looking into control groups");
    let mut outside = cgroup::processes(container.record.cgroups()).map_err(doing())?;
    // What is forked or loses its parent meanwhile can look like a stranger, but not for long.
    for attempt in 0..LOOKS {
        if attempt > 0 {
            tokio::time::sleep(LOOK).await;
        }
        outside.retain(|pid, _| is_outside(*pid, init));
        if outside.is_empty() {
            return Ok(());
        }
    }
    let Some((pid, group)) = outside.pop_first() else {
        return Ok(());
    };
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Err(ErrorKind::Unsupported(format!(
        "process {pid} ({}) is in its control group {}, but not in the tree below its first process {init}, and would \
         not be in the images (one of `{engine} exec`, or a daemon without a pid namespace): end it first, with `kill {pid}`",
        name.trim(),
        group.display(),
    )))
}

/// Whether a process that lives is no descendant of `init`.
fn is_outside(pid: i32, init: i32) -> bool {
    let mut next = pid;
    while next != init {
        // 0 is a process that our pid namespace does not show, or what is above its first one.
        if next == 0 {
            return true;
        }
        let Some(stat) = procfs::process::Process::new(next)
            .and_then(|process| process.stat())
            .ok()
        else {
            // It has ended; an ancestor that has must be looked for again.
            return next != pid;
        };
        if next == pid && matches!(stat.state, 'Z' | 'X' | 'x') {
            return false;
        }
        next = stat.ppid;
    }
    false
}

/// The caller's hooks, and what a checkpoint does at callbacks once they have agreed.
struct CheckpointHooks<'a, H> {
    inner: H,
    images: &'a ImagesDir,
    files: Vec<SideFile>,
    steps: Vec<Step>,
    status: Option<OwnedFd>,
}

impl<H> CheckpointHooks<'_, H> {
    fn take(&mut self, action: &Action) -> Result<(), HookError> {
        match action {
            Action::RemoveFile { path } => {
                if let Some(name) = path.file_name() {
                    let removed = beside::unlink(self.images, name);
                    removed.map_err(ErrorKind::system(format!("removing {}", path.display())))?;
                }
            }
            Action::WriteFile { path } => {
                let file = self
                    .files
                    .iter()
                    .find(|(name, _)| path.file_name().is_some_and(|wanted| wanted == *name));
                if let Some((name, Some(content))) = file {
                    let written = beside::write(self.images, name, content);
                    written.map_err(ErrorKind::system(format!("writing {}", path.display())))?;
                }
            }
            Action::MarkComplete { path } => {
                // A restore compares it with the path of its own images, whatever the working directory is then.
                let images = fs::canonicalize(self.images.path())?;
                fs::write(path, images.as_os_str().as_encoded_bytes())?;
            }
            Action::SignalReady => {
                if let Some(status) = self.status.take() {
                    fs::File::from(status).write_all(&[0])?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl<H: Hooks> Hooks for CheckpointHooks<'_, H> {
    async fn notify(&mut self, notify: Notify) -> Result<Reply, HookError> {
        let when = When::At(notify.script());
        let reply = self.inner.notify(notify).await?;
        if matches!(reply, Reply::Refuse(_)) {
            return Ok(reply);
        }
        let steps = self.steps.clone();
        for step in steps.iter().filter(|step| step.when == when) {
            self.take(&step.action)?;
        }
        Ok(reply)
    }
}
