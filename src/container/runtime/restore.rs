//! A container's restore.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use serde::Serialize;
use tracing::Instrument;

use super::beside::DESCRIPTORS;
use super::engine::{Adopted, Record};
use super::options::RestoreOptions;
use super::prepare::Prepared;
use super::{Engine, Runtime, console, steps, unit};
use crate::container::adopt::{self, Guard, Journal};
use crate::container::cgroup::changes;
use crate::container::error::{Error, ErrorKind, Result};
use crate::container::model::{ProcessId, Status};
use crate::container::oci::Hook;
use crate::container::plan::{MountPoint, RestorePlan};
use crate::container::{cgroup, mounts, network, oci_hooks};
use crate::dry_run::{self, Action, Step, When};
use crate::notify::{Event, HookError, Hooks, Notify, Reply};
use crate::options::{CgroupMode, InheritKey};
use crate::{Criu, ImagesDir, RestoreReport, RestoredRoot};

/// A restored container.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Restored {
    /// The container.
    pub id: String,
    /// Its first process, which runs.
    pub init: ProcessId,
    /// The same as a child of this process, unless the restore was detached. After its end, [`Runtime::remove`] removes what
    /// remains of the container.
    #[serde(skip)]
    pub root: Option<RestoredRoot>,
    /// What CRIU's restore tells.
    pub report: RestoreReport,
    /// What CRIU was asked, and what was made before.
    pub plan: RestorePlan,
    /// What is not as it was, in words.
    pub notes: Vec<String>,
    /// What only the restore needed and could not be removed.
    pub left_behind: Vec<String>,
}

impl<E: Engine> Runtime<E> {
    /// Restores a container from `images` under the name `id`, which need not be the one that it had, with the
    /// configuration and the root file system of `bundle`.
    ///
    /// Afterwards it is the runtime's: its record is there before its tasks run. `hooks` see every callback.
    ///
    /// # The container
    /// On every failure, refusal and cancellation before the answer to [`PostRestore`](Event::PostRestore) there is none,
    /// and everything that was made for it is removed again. What a killed restore has left is removed by the next one.
    ///
    /// # Errors
    /// Everything that is wrong with the bundle, the images, the options or this host is found before anything is made;
    /// then [`ErrorKind::Criu`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels; [`Runtime::settled`] tells when everything is undone.
    pub async fn restore(
        &self,
        criu: &Criu,
        id: &str,
        images: &ImagesDir,
        bundle: impl AsRef<Path>,
        hooks: impl Hooks,
        options: RestoreOptions,
    ) -> Result<Restored> {
        let mut left_behind = Vec::new();
        self.restored(
            criu,
            id,
            images,
            bundle.as_ref(),
            hooks,
            options,
            &mut left_behind,
        )
        .instrument(E::KIND.span(id))
        .await
        .map_err(|kind| Error::new(E::KIND, id, kind).with_left_behind(left_behind))
    }

    /// What [`Runtime::restore`] would ask of CRIU and make before; nothing is done.
    ///
    /// # Errors
    /// As [`Runtime::restore`], up to what is found out before anything is made. That the name is taken is no error here.
    pub fn restore_plan(
        &self,
        id: &str,
        images: &ImagesDir,
        bundle: impl AsRef<Path>,
    ) -> Result<RestorePlan> {
        self.prepare(id, images, bundle.as_ref(), None)
            .map(|prepared| prepared.plan)
            .map_err(|kind| Error::new(E::KIND, id, kind))
    }

    /// What [`Runtime::restore`] would ask and do. Nothing is done but asking CRIU its version.
    ///
    /// The root file system's mount has a name that nobody knows before: `restore-XXXXXX` stands for it.
    ///
    /// # Errors
    /// Those of [`Runtime::restore`] that come before anything is made.
    pub async fn plan_restore(
        &self,
        criu: &Criu,
        id: &str,
        images: &ImagesDir,
        bundle: impl AsRef<Path>,
        options: RestoreOptions,
    ) -> Result<dry_run::Plan> {
        self.planned(criu, id, images, bundle.as_ref(), options)
            .await
            .map_err(|kind| Error::new(E::KIND, id, kind))
    }

    async fn planned(
        &self,
        criu: &Criu,
        id: &str,
        images: &ImagesDir,
        bundle: &Path,
        options: RestoreOptions,
    ) -> std::result::Result<dry_run::Plan, ErrorKind> {
        let containers = adopt::dead().map_err(ErrorKind::system("looking for dead restores"))?;
        let leftover = match self.leftover(id, images) {
            // What has the name is undone first.
            Err(ErrorKind::State { path, .. }) if containers.contains(&path) => None,
            leftover => leftover?,
        };
        let prepared = self.prepare(id, images, bundle, options.systemd_cgroup)?;
        prepared.has_systemd().await?;
        let request = Request::new(&prepared, options)?;
        let root = Path::new(adopt::JOURNALS).join("restore-XXXXXX");
        let mut steps = vec![Step::before(Action::UndoDeadRestores { containers })];
        if let Some(record) = leftover {
            let removal = steps::removal(&record.model(false)?, &prepared.directory);
            steps.extend(removal.into_iter().map(|step| Step::before(step.action)));
        }
        steps.push(Step::before(Action::BeginJournal {
            directory: adopt::JOURNALS.into(),
        }));
        steps.extend(steps::before_restore(&prepared, &root)?);
        steps.extend(steps::at_restore(&prepared, request.console.as_deref()));
        let options = prepared.plan.fill(&root, request.options);
        let restore = criu.plan_restore(images, !request.detach, options).await?;
        steps.extend(restore.steps);
        steps.push(Step::after(Action::EndJournal { root }));
        Ok(dry_run::Plan::new(restore.request, steps, prepared.notes))
    }

    #[allow(clippy::too_many_arguments)]
    async fn restored(
        &self,
        criu: &Criu,
        id: &str,
        images: &ImagesDir,
        bundle: &Path,
        hooks: impl Hooks,
        options: RestoreOptions,
        left_behind: &mut Vec<String>,
    ) -> std::result::Result<Restored, ErrorKind> {
        adopt::sweep().map_err(ErrorKind::system("undoing restores whose process is gone"))?;
        let leftover = self.leftover(id, images)?;
        let mut prepared = self.prepare(id, images, bundle, options.systemd_cgroup)?;
        prepared.has_systemd().await?;
        let request = Request::new(&prepared, options)?;
        if let Some(record) = leftover {
            let notes = self.clear(&record, &prepared.directory).await?;
            prepared.notes.extend(notes);
        }

        let journal = Journal::begin(&prepared.directory)
            .map_err(ErrorKind::system("writing in /run/criu-client"))?;
        let root = journal.root();
        let mut guard = Guard::new(journal, criu, &self.undoing);
        let asked = async {
            let mut notes = prepared.notes.clone();
            for step in steps::before_restore(&prepared, &root)? {
                notes.extend(make(&prepared, &mut guard, &step.action).await?);
            }
            let options = prepared.plan.fill(&root, request.options);
            let mut hooks = RestoreHooks {
                inner: hooks,
                prepared: &prepared,
                detached: request.detach,
                steps: steps::at_restore(&prepared, request.console.as_deref()),
                stdio: request.stdio,
                guard: &mut guard,
                init: None,
            };
            let (root, report) = match request.detach {
                true => (None, criu.restore(images, &mut hooks, options).await?),
                false => {
                    let restored = criu.restore_child(images, &mut hooks, options).await?;
                    (Some(restored.root), restored.report)
                }
            };
            let init = hooks.init.or_else(|| ProcessId::of(report.pid));
            let init = init.ok_or_else(|| {
                ErrorKind::Unsupported("it ended as soon as it was restored".into())
            })?;
            Ok(Restored {
                id: id.to_owned(),
                init,
                root,
                report,
                plan: RestorePlan::default(),
                notes,
                left_behind: Vec::new(),
            })
        };
        match asked.await {
            Ok(mut restored) => {
                restored.left_behind = guard.finish();
                restored.plan = prepared.plan;
                Ok(restored)
            }
            Err(kind) => {
                *left_behind = guard.undo().await;
                Err(kind)
            }
        }
    }
}

/// What is asked of CRIU besides the plan.
struct Request {
    options: crate::options::RestoreOptions,
    detach: bool,
    console: Option<PathBuf>,
    /// What the runtime's record will say of the standard descriptors.
    stdio: Vec<String>,
}

impl Request {
    fn new<E: Engine>(
        prepared: &Prepared<E>,
        options: RestoreOptions,
    ) -> std::result::Result<Self, ErrorKind> {
        let RestoreOptions {
            criu: mut restore,
            detach,
            stdio,
            console_socket,
            tcp_established,
            ext_unix_sk,
            shell_job,
            file_locks,
            auto_dedup,
            lazy_pages,
            work_path,
            manage_cgroups_mode,
            lsm_profile,
            lsm_mount_context,
            systemd_cgroup: _,
        } = options;
        let terminal = prepared.model.terminal;
        let problem = match (terminal, detach, &console_socket) {
            (true, true, None) => {
                "is needed: the container has a terminal, and a detached restore leaves nobody who holds its master"
            }
            (false, _, Some(_)) => "is for a container with a terminal, and this has none",
            _ => "",
        };
        if !problem.is_empty() {
            return Err(ErrorKind::Option {
                option: "console-socket",
                problem: problem.into(),
            });
        }
        let mut targets = prepared.descriptors.clone();
        let mut given: Vec<(String, OwnedFd)> = Vec::new();
        for ((number, key), fd) in prepared
            .plan
            .pipes
            .iter()
            .zip(assigned(&prepared.plan.pipes, stdio))
        {
            let Some(fd) = fd else {
                continue;
            };
            if let Some(target) = targets.get_mut(*number) {
                let now = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
                *target = now
                    .map(|path| path.to_string_lossy().into_owned())
                    .unwrap_or_default();
            }
            if !given.iter().any(|(known, _)| known == key) {
                given.push((key.clone(), fd));
            }
        }
        let missing = prepared
            .plan
            .pipes
            .iter()
            .find(|(_, key)| !given.iter().any(|(known, _)| known == key));
        if let Some((number, key)) = missing.filter(|_| !terminal) {
            return Err(ErrorKind::Option {
                option: ["stdin", "stdout", "stderr"]
                    .get(*number)
                    .copied()
                    .unwrap_or("stdin"),
                problem: format!(
                    "was {key} when the container was checkpointed: give a descriptor to take its place"
                ),
            });
        }
        for (key, fd) in given {
            let key: InheritKey = key
                .parse()
                .map_err(|error: crate::options::InvalidOption| ErrorKind::Images {
                    path: DESCRIPTORS.into(),
                    problem: "has a pipe that is not understood".into(),
                    source: Some(error.into()),
                })?;
            restore = restore.inherit_fd(key, fd);
        }
        for (key, path) in &prepared.plan.inherit_namespaces {
            let file = mounts::open_namespace(path)
                .map_err(ErrorKind::system(format!("opening {}", path.display())))?;
            restore = restore.inherit_fd(InheritKey::Namespace(key.clone()), file);
        }
        if let Some(path) = work_path {
            restore = restore.work_path(path);
        }
        type Flag = fn(crate::options::RestoreOptions, bool) -> crate::options::RestoreOptions;
        let flags: [(Option<bool>, Flag); 6] = [
            (tcp_established, |restore, on| restore.tcp_established(on)),
            (ext_unix_sk, |restore, on| restore.external_unix_sockets(on)),
            (shell_job, |restore, on| restore.shell_job(on)),
            (file_locks, |restore, on| restore.file_locks(on)),
            (auto_dedup, |restore, on| restore.auto_dedup(on)),
            (lazy_pages, |restore, on| restore.lazy_pages(on)),
        ];
        for (value, set) in flags {
            if let Some(on) = value {
                restore = set(restore, on);
            }
        }
        if let Some(profile) = lsm_profile {
            restore = restore.lsm_profile(profile);
        }
        if let Some(context) = lsm_mount_context {
            restore = restore.lsm_mount_context(context);
        }
        Ok(Self {
            options: restore.manage_cgroups(manage_cgroups_mode.unwrap_or(CgroupMode::Soft)),
            detach,
            console: console_socket,
            stdio: targets,
        })
    }
}

/// The given descriptors in the order of the pipes that they take the place of.
fn assigned(pipes: &[(usize, String)], mut stdio: [Option<OwnedFd>; 3]) -> Vec<Option<OwnedFd>> {
    pipes
        .iter()
        .map(|(number, _)| stdio.get_mut(*number).and_then(Option::take))
        .collect()
}

/// Makes something of what CRIU will find. Everything is in the journal before it is made. Returns what there is to say of it.
async fn make<E: Engine>(
    prepared: &Prepared<E>,
    guard: &mut Guard,
    action: &Action,
) -> std::result::Result<Vec<String>, ErrorKind> {
    let Some(journal) = guard.journal() else {
        return Ok(Vec::new());
    };
    let plan = &prepared.plan;
    let of_group = |problem: &'static str| {
        move |(path, source)| ErrorKind::Cgroup {
            path,
            problem: problem.into(),
            source: Some(source),
        }
    };
    match action {
        Action::ReserveRecord { directory } => {
            let reserved = journal.reserve(E::DIRECTORY_MODE);
            reserved.map_err(|source| match source.kind() {
                std::io::ErrorKind::AlreadyExists => ErrorKind::Exists {
                    status: Status::Created,
                },
                _ => ErrorKind::system(format!("making {}", directory.display()))(source),
            })?;
        }
        Action::MakeDirectory { path, .. } => fs::create_dir_all(path)
            .map_err(ErrorKind::system(format!("making {}", path.display())))?,
        Action::EnsureMountPoint {
            below, path, like, ..
        } => {
            let point = MountPoint {
                below: below.clone(),
                path: path.clone(),
                like: like.clone(),
            };
            let failed = || ErrorKind::system(making_point(below, path));
            // Its links are followed, and what is missing is found, when it is its turn: others may have been made meanwhile.
            let target = mounts::resolve_in(below, path).map_err(failed())?;
            let kind = point.kind().map_err(failed())?;
            journal
                .making_points(below, missing_points(below, &target))
                .map_err(ErrorKind::system("writing the journal"))?;
            mounts::make_point(below, &target, kind).map_err(failed())?;
        }
        Action::StartUnit { .. } => {
            if let Some(scope) = &prepared.model.scope {
                return unit::start(prepared, journal, scope).await;
            }
        }
        Action::MakeCgroups { .. } => {
            journal
                .making_cgroups(missing_groups(plan.cgroups.values()))
                .map_err(ErrorKind::system("writing the journal"))?;
            cgroup::create(&plan.cgroups, &mut Vec::new()).map_err(of_group("cannot be made"))?;
        }
        Action::ApplyLimits { .. } => {
            let mut limits = prepared.model.limits.clone();
            // On version 2, where there are no files for them, systemd has been told of them.
            if prepared.model.scope.is_some() && prepared.host.is_unified() {
                limits.devices.clear();
            }
            let mut notes = cgroup::apply(&plan.cgroups, &limits)
                .map_err(of_group("does not take the container's limit"))?;
            notes.extend(changes::apply(&plan.cgroups, &prepared.changed_limits));
            cgroup::thaw(&plan.cgroups).map_err(ErrorKind::system("thawing the control group"))?;
            return Ok(notes);
        }
        Action::BindRoot { rootfs, at } => {
            mounts::bind_root(rootfs, at).map_err(ErrorKind::system(format!(
                "binding the root file system {}",
                rootfs.display()
            )))?;
        }
        _ => {}
    }
    Ok(Vec::new())
}

/// What is being done, for an error.
pub(super) fn making_point(below: &Path, path: &Path) -> String {
    format!(
        "making the mount point {} below {}",
        path.display(),
        below.display()
    )
}

/// What of a mount point, whose links have been followed, is to be made; outermost first.
pub(super) fn missing_points(below: &Path, target: &Path) -> Vec<PathBuf> {
    let is_missing = |path: &&Path| {
        let at = below.join(path.strip_prefix("/").unwrap_or(path));
        fs::symlink_metadata(at).is_err()
    };
    outermost_first(target.ancestors().take_while(is_missing))
}

/// The directories that are to be made for groups; outermost first.
pub(super) fn missing_groups<'a>(groups: impl Iterator<Item = &'a PathBuf>) -> Vec<PathBuf> {
    let mut missing = Vec::new();
    for group in groups {
        let of_group = outermost_first(group.ancestors().take_while(|path| !path.exists()));
        for path in of_group {
            // Controllers that are mounted together share theirs.
            if !missing.contains(&path) {
                missing.push(path);
            }
        }
    }
    missing
}

fn outermost_first<'a>(paths: impl Iterator<Item = &'a Path>) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = paths.map(Path::to_owned).collect();
    paths.reverse();
    paths
}

/// The caller's hooks, and what a restore does at callbacks before they are asked.
struct RestoreHooks<'a, H, E: Engine> {
    inner: H,
    prepared: &'a Prepared<E>,
    detached: bool,
    steps: Vec<Step>,
    stdio: Vec<String>,
    guard: &'a mut Guard,
    init: Option<ProcessId>,
}

impl<H, E: Engine> RestoreHooks<'_, H, E> {
    async fn take(
        &mut self,
        action: &Action,
        hook: &mut impl Iterator<Item = &Hook>,
        event: &Event,
    ) -> std::result::Result<(), HookError> {
        let model = &self.prepared.model;
        match (action, event) {
            (Action::BringLoopbackUp, Event::SetupNamespaces { pid }) => {
                network::bring_loopback_up(*pid)
                    .map_err(ErrorKind::system("bringing the loopback interface up"))?;
            }
            (Action::RunProgram { .. }, Event::SetupNamespaces { pid }) => {
                let hook = hook.next().map(std::slice::from_ref).unwrap_or_default();
                oci_hooks::run(hook, model, "creating", Some(*pid)).await?;
            }
            (Action::SendTerminal { socket }, Event::OrphanPtsMaster { master }) => {
                let sent = console::send(socket, master.as_fd()).await;
                sent.map_err(ErrorKind::system(format!(
                    "sending the terminal to {}",
                    socket.display()
                )))?;
            }
            (Action::JoinCgroups, Event::PostRestore { pid }) => {
                // Images of a dump that left control groups alone put the tasks into none.
                let strays = self
                    .prepared
                    .host
                    .strays(&model.cgroups, *pid)
                    .map_err(ErrorKind::system("looking for the tasks' control groups"))?;
                cgroup::move_tree(*pid, &strays).map_err(ErrorKind::system(
                    "moving the tasks into their control groups",
                ))?;
            }
            (Action::LeaveUnit { .. }, Event::PostRestore { .. }) => {
                if let Some(journal) = self.guard.journal() {
                    journal.leave_unit().map_err(ErrorKind::system(
                        "removing the group of a process in systemd's unit",
                    ))?;
                }
            }
            (Action::WriteRecord { .. }, Event::PostRestore { pid }) => self.adopt(*pid)?,
            _ => {}
        }
        Ok(())
    }

    /// Everything is restored and nothing runs yet: from here on the container is in its runtime's hands.
    fn adopt(&mut self, pid: i32) -> std::result::Result<(), HookError> {
        let Prepared {
            directory,
            model,
            record,
            ..
        } = self.prepared;
        let init = ProcessId::of(pid).ok_or("the restored process is gone")?;
        let adopted = Adopted {
            id: &model.id,
            init,
            cgroups: &model.cgroups,
            stdio: self.stdio.clone(),
            detached: self.detached,
        };
        if let Some(journal) = self.guard.journal() {
            journal
                .restored(init)
                .map_err(ErrorKind::system("writing the journal"))?;
        }
        E::write(directory, record, &adopted)
            .map_err(ErrorKind::system("writing the container's record"))?;
        self.init = Some(init);
        Ok(())
    }
}

impl<H: Hooks, E: Engine> Hooks for RestoreHooks<'_, H, E> {
    async fn notify(&mut self, notify: Notify) -> std::result::Result<Reply, HookError> {
        let when = When::At(notify.script());
        let steps = self.steps.clone();
        let mut hooks = self.prepared.model.create_hooks.iter();
        for step in steps.iter().filter(|step| step.when == when) {
            self.take(&step.action, &mut hooks, &notify.event).await?;
        }
        self.inner.notify(notify).await
    }
}
