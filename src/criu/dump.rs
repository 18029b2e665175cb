//! DUMP and PRE_DUMP.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use super::care::Care;
use super::operation::{Operation, sealed::FromEnded};
use super::report::{DumpReport, PreDumpReport};
use super::settle::Ended;
use super::{Criu, ImagesDir, Plan};
use crate::error::{Error, ErrorKind, OperationKind, Record, Result, TaskState};
use crate::image::{DumpStats, STATS_DUMP};
use crate::notify::Hooks;
use crate::options::{DumpOptions, PreDumpOptions};
use crate::rpc::swrk::FIRST_REQUEST_FD;
use crate::rpc::wire::CriuReqType;
use crate::version::Version;

/// The first release that has SINGLE_PRE_DUMP.
const SINGLE_PRE_DUMP: Version = Version::new(3, 17, 0);

impl Criu {
    /// Dumps the tree below `pid` (in CRIU's pid namespace) into `images`.
    ///
    /// Without [`leave`](DumpOptions::leave) the tasks are killed when all is written; their parent has to reap them, and
    /// their pids are taken until it has.
    ///
    /// CRIU waits for the end of what it kills. The first process of a pid namespace ends only when everything in that
    /// namespace is reaped: a process that somebody has put there from outside (`runc exec` does) and whose parent does not
    /// reap it holds up the answer to the dump. A caller that may be such a parent, as a subreaper is, reaps meanwhile.
    ///
    /// # The tasks
    /// Success: killed, or left as asked. Every failure, refusal, time limit and cancellation, the death of CRIU and our
    /// own at any moment before the answer to [`PostDump`](crate::notify::Event::PostDump): they run on, the network
    /// lock is gone. (One thing is not as it was when CRIU is killed while it holds established TCP connections: they are
    /// freed at once, but a task that uses one in that moment gets an error from it.) After that
    /// answer CRIU kills them, and only then answers itself; should it, or we, die between the two, the images are complete.
    ///
    /// CRIU killed between two callbacks can take a task along: that was seen once, presumably while CRIU made the task run
    /// code of its own. It was not seen at any callback, nor while memory is written.
    ///
    /// A lazy dump is the exception: after [`StatusReady`](crate::notify::Event::StatusReady) the tasks stand still until
    /// somebody has fetched their memory, and CRIU does not notice our death then.
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind). Images of a failed dump stay where they are and are of no use.
    ///
    /// # Cancel safety
    /// Dropping the future cancels, see [`Operation`].
    pub async fn dump(
        &self,
        pid: i32,
        images: &ImagesDir,
        hooks: impl Hooks,
        options: DumpOptions,
    ) -> Result<DumpReport> {
        self.start_dump(pid, images, options)
            .await?
            .run(hooks)
            .await
    }

    /// Starts [`Criu::dump`] for a caller that answers the callbacks itself.
    ///
    /// # Errors
    /// Those of the start: no CRIU, an option that it does not have, a pid that does not exist.
    pub async fn start_dump(
        &self,
        pid: i32,
        images: &ImagesDir,
        options: DumpOptions,
    ) -> Result<Operation<DumpReport>> {
        let mut plan = self.dump_plan(pid, options).await?;
        plan.images = Some(images.clone());
        self.begin(plan).await.map(Operation::from_held)
    }

    pub(super) async fn dump_plan(&self, pid: i32, options: DumpOptions) -> Result<Plan> {
        self.demand(OperationKind::Dump, pid).await?;
        let prepared = options
            .prepare(FIRST_REQUEST_FD)
            .map_err(|error| Error::before(OperationKind::Dump, error.into()))?;
        let freezer = prepared.opts.freeze_cgroup.clone();
        let repairs_connections = prepared.opts.tcp_established == Some(true);
        let leaves = match (prepared.opts.leave_running, prepared.opts.leave_stopped) {
            (_, Some(true)) => TaskState::Stopped,
            (Some(true), _) => TaskState::Running,
            _ => TaskState::Absent,
        };
        if leaves == TaskState::Absent && self.program().is_some() {
            can_come_back(pid)?;
        }
        let mut plan = Plan::new(OperationKind::Dump, |_| CriuReqType::Dump, prepared);
        plan.log = Some("dump");
        plan.pid = Some(pid);
        // Always: without callbacks CRIU would not notice our death, and would kill the tasks with nobody to tell.
        plan.notify = true;
        plan.care = Box::new(move |ground| {
            Care::dump(pid, &ground, freezer.as_deref(), repairs_connections).leaving(leaves)
        });
        Ok(plan)
    }

    /// Dumps the calling process itself.
    ///
    /// The worker is no descendant of this process, as CRIU demands. There are no hooks: the process is stopped while
    /// CRIU would wait for its answers. With [`Leave::Running`](crate::options::Leave::Running) this returns when the
    /// process runs on; without, it is killed, and this returns in the **restored** process, with
    /// [`DumpReport::restored`] set.
    ///
    /// # The tasks
    /// On failure the process runs on, which is where the error is returned.
    ///
    /// # Cancel safety
    /// **None.** There is no callback at which CRIU could be told, and its process is not ours: a dump that is dropped, or
    /// whose time limit passes, before CRIU has seized the process goes on, and kills it if that was asked for.
    ///
    /// # Errors
    /// As [`Criu::dump`].
    pub async fn dump_self(&self, images: &ImagesDir, options: DumpOptions) -> Result<DumpReport> {
        let prepared = options
            .prepare(FIRST_REQUEST_FD)
            .map_err(|error| Error::before(OperationKind::Dump, error.into()))?;
        let mut plan = Plan::new(OperationKind::Dump, |_| CriuReqType::Dump, prepared);
        plan.images = Some(images.clone());
        plan.log = Some("dump");
        plan.outside = true;
        plan.care = Box::new(|_| Care::Itself);
        let held = self.begin(plan).await?;
        DumpReport::from_ended(super::complete(held).await?)
    }

    /// Writes the memory of the tree below `pid` into `images` while it runs on, and starts to track what it changes
    /// from now on. A later dump, or pre-dump, names this directory as its
    /// [`parent_images`](DumpOptions::parent_images) and writes only what has changed.
    ///
    /// Needs a kernel with soft-dirty tracking: ask [`Criu::features`] for `mem_track` first. There are no callbacks.
    ///
    /// # The tasks
    /// They run on, whatever happens.
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind).
    ///
    /// # Cancel safety
    /// Dropping the future cancels, see [`Operation`].
    pub async fn pre_dump(
        &self,
        pid: i32,
        images: &ImagesDir,
        options: PreDumpOptions,
    ) -> Result<PreDumpReport> {
        let mut plan = self.pre_dump_plan(pid, options).await?;
        plan.images = Some(images.clone());
        let held = self.begin(plan).await?;
        PreDumpReport::from_ended(super::complete(held).await?)
    }

    pub(super) async fn pre_dump_plan(&self, pid: i32, options: PreDumpOptions) -> Result<Plan> {
        self.demand(OperationKind::PreDump, pid).await?;
        let prepared = options
            .prepare(FIRST_REQUEST_FD)
            .map_err(|error| Error::before(OperationKind::PreDump, error.into()))?;
        let freezer = prepared.opts.freeze_cgroup.clone();
        let request = |version: &Version| match version.has(&SINGLE_PRE_DUMP) {
            true => CriuReqType::SinglePreDump,
            // Stays in a loop for further ones, which our hanging up ends.
            false => CriuReqType::PreDump,
        };
        let mut plan = Plan::new(OperationKind::PreDump, request, prepared);
        plan.log = Some("pre-dump");
        plan.pid = Some(pid);
        plan.care = Box::new(move |ground| Care::dump(pid, &ground, freezer.as_deref(), false));
        Ok(plan)
    }
}

impl FromEnded for DumpReport {
    #[allow(private_interfaces)]
    fn from_ended(mut ended: Ended) -> Result<Self> {
        Ok(Self {
            pid: ended
                .running
                .root
                .unwrap_or_else(|| std::process::id().cast_signed()),
            tasks: ended.tasks_left(),
            restored: ended
                .answer
                .dump
                .as_ref()
                .and_then(|dump| dump.restored)
                .unwrap_or(false),
            stats: ended
                .running
                .work
                .as_ref()
                .and_then(|work| DumpStats::read(work.as_fd(), STATS_DUMP).ok()),
            details: ended.details(),
        })
    }
}

impl FromEnded for PreDumpReport {
    #[allow(private_interfaces)]
    fn from_ended(mut ended: Ended) -> Result<Self> {
        Ok(Self {
            pid: ended.running.root.unwrap_or_default(),
            stats: ended
                .running
                .work
                .as_ref()
                .and_then(|work| DumpStats::read(work.as_fd(), STATS_DUMP).ok()),
            details: ended.details(),
        })
    }
}

impl Criu {
    /// CRIU reports a pid that does not exist in the same way as one that it may not trace. Of a service in another pid
    /// namespace nothing else can be asked.
    async fn demand(&self, operation: OperationKind, pid: i32) -> Result<()> {
        let positive = u32::try_from(pid).is_ok_and(|pid| pid > 0);
        let found = positive && std::path::Path::new(&format!("/proc/{pid}")).exists();
        if found || positive && !self.shares_pids().await {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Precondition {
                what: format!(
                    "there is no process {pid}: give the pid of the root of the task tree, as seen in this pid namespace"
                ),
                source: None,
            },
            Record::new(operation, TaskState::Absent),
        ))
    }
}

/// Refuses a process that CRIU would dump and kill, and could not restore: in a user namespace it mounts a proc of its own,
/// which only the owner of the pid and the mount namespace may.
fn can_come_back(pid: i32) -> Result<()> {
    // What cannot be looked at is CRIU's to judge.
    let of = |process: &str, kind: &str| fs::metadata(format!("/proc/{process}/ns/{kind}"));
    let is_ours = |kind: &str| match (of("self", kind), of(&pid.to_string(), kind)) {
        (Ok(ours), Ok(its)) => Some(ours.ino() == its.ino()),
        _ => None,
    };
    let has_users_of_its_own = is_ours("user") == Some(false);
    let shared = ["pid", "mnt"]
        .into_iter()
        .find(|kind| is_ours(kind) == Some(true));
    match shared {
        Some(kind) if has_users_of_its_own => Err(Error::new(
            ErrorKind::Precondition {
                what: format!(
                    "process {pid} has a user namespace of its own and shares this process's {kind} namespace: CRIU could dump \
                     it and not restore it. Leave it running (--leave-running), or start it with a pid and a mount namespace \
                     as well"
                ),
                source: None,
            },
            Record::new(OperationKind::Dump, TaskState::Running),
        )),
        _ => Ok(()),
    }
}
