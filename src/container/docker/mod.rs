//! Docker.
//!
//! A running container of Docker's is one of an OCI runtime (see [`runtime`](super::runtime)) below a root that Docker chose,
//! and is checkpointed as such; Docker then sees its end as any other, and shows it as exited. A restore is Docker's own,
//! asked through its API, so that the container is Docker's again in every respect: `ps`, `logs`, `exec`, `stop`. It takes the
//! images from wherever they are.
//!
//! ```text
//! checkpoint   inspect ─ pid ── its shim: root of the runtime ── Runtime ── Criu::dump ── inspect, until exited
//! restore      inspect, info ── links to the images among the container's checkpoints ── start ── inspect ── links removed
//! ```
//!
//! Docker is asked on its unix socket, and must be on this host: containers in a virtual machine of its own are out of reach.
//!
//! ```no_run
//! use criu_client::container::docker::{CheckpointOptions, Docker, RestoreOptions};
//! use criu_client::{Criu, ImagesDir};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let (criu, docker) = (Criu::find()?, Docker::new());
//! let images = ImagesDir::create("/var/tmp/web")?;
//! docker.checkpoint(&criu, "web", &images, (), CheckpointOptions::new()).await?;
//! docker.restore("web", &images, RestoreOptions::new()).await?;
//! # Ok(())
//! # }
//! ```

mod api;
mod outside;
mod place;
mod restore;
mod staging;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tracing::Instrument;

pub use super::runtime::{CheckpointOptions, CheckpointReport};
pub use restore::{RestoreOptions, Restored};

use super::adopt::Undoing;
use super::beneath::Beneath;
use super::error::{Error, ErrorKind, Result};
use super::http::Client;
use super::list::Listed;
use super::model::{EngineKind, Model, MountKind, Status};
use super::plan::{Consumer, DumpPlan};
use super::runtime::Owner;
use crate::dry_run::{self, Action, Step};
use crate::notify::Hooks;
use crate::options::PreDumpOptions;
use crate::{Criu, ImagesDir, PreDumpReport, TaskState};
use api::Inspected;
use place::Place;

/// Where Docker listens that is not told otherwise.
pub const SOCKET: &str = "/var/run/docker.sock";

/// How long Docker may take to notice that a container has ended.
const END: Duration = Duration::from_secs(10);
/// How often it is asked.
const LOOK: Duration = Duration::from_millis(20);

/// A Docker daemon's containers. Cheap to make and to clone.
#[derive(Debug, Clone)]
pub struct Docker {
    client: Client,
    /// Restores that nobody waits for any more.
    undoing: Undoing,
}

/// A container as Docker describes it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Container {
    /// Its full id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it does.
    pub status: Status,
    /// Its first process, if it runs; a pid of the daemon's pid namespace.
    pub pid: Option<i32>,
    /// CRIU's configuration file, whose options are those of Docker's restore: that of the annotation `org.criu.config`, or
    /// else runc's.
    pub criu_config: PathBuf,
}

impl Default for Docker {
    fn default() -> Self {
        Self::new()
    }
}

impl Docker {
    /// The daemon at its usual socket.
    #[must_use]
    pub fn new() -> Self {
        Self::with_socket(SOCKET)
    }

    /// A daemon that listens elsewhere.
    #[must_use]
    pub fn with_socket(socket: impl Into<PathBuf>) -> Self {
        Self {
            client: Client::new(socket),
            undoing: Undoing::new(),
        }
    }

    /// Where the daemon listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.client.socket()
    }

    /// Completes when Docker has answered all restores whose futures were dropped, and what was made for them is removed.
    pub async fn settled(&self) {
        self.undoing.done().await;
    }

    /// Looks at a container. `name` is its id, the beginning of it, or its name.
    ///
    /// # Errors
    /// [`ErrorKind::Unknown`] when there is none, [`ErrorKind::Ambiguous`] when an id begins so in several,
    /// [`ErrorKind::Api`] when Docker cannot be asked.
    ///
    /// # Cancel safety
    /// Nothing is done but asking.
    pub async fn load(&self, name: &str) -> Result<Container> {
        let inspected = self.inspect(name).await.map_err(of(name))?;
        Ok(inspected.container())
    }

    /// All containers that there are, by id.
    ///
    /// # Errors
    /// [`ErrorKind::Api`] when Docker cannot be asked; [`ApiError::is_absent`](super::ApiError::is_absent) tells whether there is none.
    ///
    /// # Cancel safety
    /// Nothing is done but asking.
    pub async fn list(&self) -> Result<Vec<Listed>> {
        self.listed().await.map_err(of(""))
    }

    /// What a checkpoint would ask of CRIU; nothing is done.
    ///
    /// # Errors
    /// As [`Docker::checkpoint`], up to what is found out before CRIU is asked.
    pub async fn dump_plan(
        &self,
        name: &str,
        consumer: Consumer,
        leave_running: bool,
    ) -> Result<DumpPlan> {
        let plan = async {
            let ready = self.ready(name, leave_running, Restorer::Docker).await?;
            Ok(ready.beneath.planned(ready.owner(), consumer)?.plan)
        };
        plan.await.map_err(of(name))
    }

    /// Checkpoints a container into `images`.
    ///
    /// Unless it is left running, Docker shows it as exited with status 137 when this returns. `hooks` see every callback.
    ///
    /// # The container
    /// As [`Runtime::checkpoint`](super::runtime::Runtime::checkpoint); Docker removes what remains of it.
    ///
    /// # Errors
    /// Everything that is wrong with the container or the options is found before CRIU is asked; then [`ErrorKind::Criu`].
    /// [`ErrorKind::Policy`] when Docker would start or remove the container by itself as soon as it has ended.
    ///
    /// # Cancel safety
    /// Dropping the future cancels.
    pub async fn checkpoint(
        &self,
        criu: &Criu,
        name: &str,
        images: &ImagesDir,
        hooks: impl Hooks,
        options: CheckpointOptions,
    ) -> Result<CheckpointReport> {
        self.checkpointed(criu, name, images, hooks, options, Restorer::Docker)
            .instrument(EngineKind::Docker.span(name))
            .await
            .map_err(of(name))
    }

    async fn checkpointed(
        &self,
        criu: &Criu,
        name: &str,
        images: &ImagesDir,
        hooks: impl Hooks,
        options: CheckpointOptions,
        restorer: Restorer,
    ) -> std::result::Result<CheckpointReport, ErrorKind> {
        let leave_running = options.leaves_running();
        let ready = self.ready(name, leave_running, restorer).await?;
        let (owner, beneath) = (ready.owner(), &ready.beneath);
        let mut report = beneath
            .checkpoint(owner, criu, images, hooks, options)
            .await?;
        if report.dump.tasks == TaskState::Absent {
            report
                .left_behind
                .extend(self.has_ended(&ready.inspected).await);
        }
        Ok(report)
    }

    /// What [`Docker::checkpoint`] into the directory `images`, which need not be there, would ask and do. Nothing is done but
    /// asking Docker and CRIU.
    ///
    /// # Errors
    /// Those of [`Docker::checkpoint`] that come before the request.
    pub async fn plan_checkpoint(
        &self,
        criu: &Criu,
        name: &str,
        images: impl AsRef<Path>,
        options: CheckpointOptions,
    ) -> Result<dry_run::Plan> {
        let images = images.as_ref();
        let planned = async {
            let ends = !options.leaves_running();
            let ready = self.ready(name, !ends, Restorer::Docker).await?;
            let (owner, beneath) = (ready.owner(), &ready.beneath);
            let mut plan = beneath
                .plan_checkpoint(owner, criu, images, options)
                .await?;
            if ends {
                let pid = ready.inspected.state.pid;
                plan.push(Step::after(Action::AwaitEnd { pid }));
            }
            Ok(plan)
        };
        planned.await.map_err(of(name))
    }

    /// The same of [`Docker::pre_dump`].
    ///
    /// # Errors
    /// Those of [`Docker::pre_dump`] that come before the request.
    pub async fn plan_pre_dump(
        &self,
        criu: &Criu,
        name: &str,
        images: impl AsRef<Path>,
        options: PreDumpOptions,
    ) -> Result<dry_run::Plan> {
        let planned = async {
            let ready = self.ready(name, true, Restorer::Docker).await?;
            let id = ready.inspected.id.as_str();
            let beneath = &ready.beneath;
            beneath
                .plan_pre_dump(criu, id, images.as_ref(), options)
                .await
        };
        planned.await.map_err(of(name))
    }

    /// Writes a running container's memory into `images` while it runs on.
    ///
    /// # The container
    /// It runs on, whatever happens.
    ///
    /// # Errors
    /// As [`Runtime::pre_dump`](super::runtime::Runtime::pre_dump).
    ///
    /// # Cancel safety
    /// Dropping the future cancels.
    pub async fn pre_dump(
        &self,
        criu: &Criu,
        name: &str,
        images: &ImagesDir,
        options: PreDumpOptions,
    ) -> Result<PreDumpReport> {
        let pre_dumped = async {
            let ready = self.ready(name, true, Restorer::Docker).await?;
            let id = ready.inspected.id.as_str();
            ready.beneath.pre_dump(criu, id, images, options).await
        };
        pre_dumped
            .instrument(EngineKind::Docker.span(name))
            .await
            .map_err(of(name))
    }

    /// A container that can be checkpointed, and the runtime that has it.
    async fn ready(
        &self,
        name: &str,
        leave_running: bool,
        restorer: Restorer,
    ) -> std::result::Result<Ready, ErrorKind> {
        let inspected = self.checkpointable(name, leave_running, restorer).await?;
        let root = self.info().await?.docker_root_dir;
        let ready = Ready {
            beneath: Place::of(&inspected)?.beneath,
            mounts: [
                root.join("containers").join(&inspected.id).join("mounts"),
                root.join("volumes"),
            ],
            inspected,
        };
        if !leave_running {
            let by_docker = restorer == Restorer::Docker;
            if by_docker && matches!(ready.beneath, Beneath::Crun(_)) {
                return Err(or_left_running(api::not_with_crun()));
            }
            let planned = ready.beneath.planned(ready.owner(), Consumer::Any)?;
            if by_docker {
                has_no_linked_binds(&planned.model).map_err(or_left_running)?;
            }
            loses_nothing(ready.inspected.state.pid, &planned.left_out).map_err(or_left_running)?;
        }
        Ok(ready)
    }

    /// A container that can be checkpointed, as far as Docker's description tells.
    async fn checkpointable(
        &self,
        name: &str,
        leave_running: bool,
        restorer: Restorer,
    ) -> std::result::Result<Inspected, ErrorKind> {
        let version = self.version().await?;
        let inspected = self.inspect(name).await?;
        inspected.is_up()?;
        if !leave_running {
            inspected.stays_ended()?;
            if restorer == Restorer::Docker {
                version.restores(&inspected).map_err(or_left_running)?;
            }
        }
        Ok(inspected)
    }

    /// Waits until Docker has seen a container's end. Returns what there is to say if it does not.
    async fn has_ended(&self, inspected: &Inspected) -> Option<String> {
        let pid = inspected.state.pid;
        let ended = async {
            loop {
                match self.inspect(&inspected.id).await {
                    Ok(now) if now.state.pid == pid && now.state.running => {}
                    // One that does not answer may come back.
                    Err(ErrorKind::Api(_)) => {}
                    // Somebody has started it again, or removed it.
                    _ => return,
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let timely = tokio::time::timeout(END, ended).await;
        timely.is_err().then(|| {
            format!(
                "Docker has not said within {} seconds that the container's process {pid} has ended: look at its log, and \
                 at whether its containerd runs",
                END.as_secs()
            )
        })
    }
}

/// Who is to restore what is checkpointed. What only Docker could not restore matters to Docker's restore alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Restorer {
    Docker,
    Ours,
}

/// A container that can be checkpointed.
struct Ready {
    inspected: Inspected,
    beneath: Beneath,
    /// Where Docker mounts shared memory and volumes.
    mounts: [PathBuf; 2],
}

impl Ready {
    fn owner(&self) -> Owner<'_> {
        Owner {
            engine: EngineKind::Docker,
            id: &self.inspected.id,
            mounts: &self.mounts,
        }
    }
}

/// Docker's own restore gives runc the sources of mounts as they were told, and runc gives them to CRIU.
fn has_no_linked_binds(model: &Model) -> std::result::Result<(), ErrorKind> {
    let binds = model
        .mounts
        .iter()
        .filter(|mount| mount.kind == MountKind::Bind);
    for mount in binds {
        is_no_link(&mount.source, &mount.destination)?;
    }
    Ok(())
}

/// Docker takes volumes in memory down with their container.
fn loses_nothing(pid: i32, left_out: &[PathBuf]) -> std::result::Result<(), ErrorKind> {
    let below = PathBuf::from(format!("/proc/{pid}/root"));
    let has_content = |target: &&PathBuf| {
        let path = below.join(target.strip_prefix("/").unwrap_or(target));
        fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
    };
    match left_out.iter().find(has_content) {
        None => Ok(()),
        Some(target) => Err(ErrorKind::Unsupported(format!(
            "what is in the volume at {} is in memory and would be lost, as Docker takes it down with the container: use \
             --tmpfs instead, which is in the images",
            target.display()
        ))),
    }
}

fn is_no_link(source: &Path, destination: &Path) -> std::result::Result<(), ErrorKind> {
    let Ok(target) = fs::read_link(source) else {
        return Ok(());
    };
    let real = fs::canonicalize(source).unwrap_or(target);
    Err(ErrorKind::Unsupported(format!(
        "{}, which is mounted at {}, is a symbolic link, and Docker's restore cannot mount one: make the container with {} \
         in its place",
        source.display(),
        destination.display(),
        real.display()
    )))
}

/// What is wrong with a container that Docker could not restore is no matter for one that runs on.
fn or_left_running(kind: ErrorKind) -> ErrorKind {
    match kind {
        ErrorKind::Unsupported(why) => ErrorKind::Unsupported(format!(
            "{why}; a checkpoint that leaves the container running can be made"
        )),
        kind => kind,
    }
}

/// An error of a container by this name.
fn of(name: &str) -> impl FnOnce(ErrorKind) -> Error {
    move |kind| Error::new(EngineKind::Docker, name, kind)
}
