//! Podman.
//!
//! A running container of Podman's is one of runc or crun with conmon as its parent, and is checkpointed as such; Podman then sees
//! its end as any other, and shows it as exited. A restore is Podman's own, asked through its API, so that the container is
//! Podman's again in every respect: `ps`, `logs`, `exec`, `stop`. It takes the images from wherever they are.
//!
//! ```text
//! checkpoint   inspect ─ conmon: root of the runtime ── Runtime ── Criu::dump ── /dev/shm packed ── inspect, until cleaned up
//! restore      inspect ── links to the images in the bundle ── restore ── inspect ── links removed
//! ```
//!
//! Podman is asked on its unix socket; where nobody listens, a service of our own can be started for as long as it is needed
//! ([`Podman::or_started_by`]). It must be on this host, and the container root's.
//!
//! Beside the images are, in Podman's own form, the container's addresses (`network.status`) and what it has in `/dev/shm`
//! (`devshm-checkpoint.tar`): copied with them into the container's own checkpoint, `podman container restore` takes them all.
//!
//! ```no_run
//! use criu_client::container::podman::{CheckpointOptions, Podman, RestoreOptions};
//! use criu_client::{Criu, ImagesDir};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let (criu, podman) = (Criu::find()?, Podman::new().or_started_by("/usr/bin/podman"));
//! let images = ImagesDir::create("/var/tmp/web")?;
//! podman.checkpoint(&criu, "web", &images, (), CheckpointOptions::new()).await?;
//! podman.restore("web", &images, RestoreOptions::new()).await?;
//! podman.settled().await;
//! # Ok(())
//! # }
//! ```

mod api;
mod beneath;
mod beside;
mod list;
pub(super) mod outside;
mod place;
mod restore;
mod service;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Mutex;
use tracing::Instrument;

pub use super::runtime::{CheckpointOptions, CheckpointReport};
pub use list::{Stored, claim, stored};
pub use restore::{RestoreOptions, Restored};

use super::adopt::Undoing;
use super::beneath::Beneath;
use super::error::{ErrorKind, Result};
use super::model::{EngineKind, ProcessId, Status};
use super::plan::{Consumer, DumpPlan};
use crate::dry_run::{self, Action, Step};
use crate::notify::Hooks;
use crate::options::PreDumpOptions;
use crate::{Criu, ImagesDir, PreDumpReport, TaskState};
use api::{Inspected, of};
use beside::{Beside, Kept, own_shm};
use service::Service;

/// Where Podman listens that is not told otherwise, if it does.
pub const SOCKET: &str = "/run/podman/podman.sock";
/// Where it keeps containers that is not told otherwise.
pub const STORAGE: &str = "/var/lib/containers/storage";

/// How long Podman may take to clean up after a container that has ended.
const END: Duration = Duration::from_secs(20);
/// How often it is asked.
const LOOK: Duration = Duration::from_millis(20);

/// Podman's containers. Cheap to make and to clone.
#[derive(Debug, Clone)]
pub struct Podman {
    socket: PathBuf,
    program: Option<PathBuf>,
    /// What was started because nobody listened.
    service: Arc<Mutex<Option<Service>>>,
    /// Restores that nobody waits for any more.
    undoing: Undoing,
}

/// What is known before CRIU is asked.
struct Ready {
    inspected: Inspected,
    beneath: Beneath,
    kept: Kept,
}

/// A container as Podman describes it.
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
    /// Its first process, if it runs.
    pub pid: Option<i32>,
}

impl Default for Podman {
    fn default() -> Self {
        Self::new()
    }
}

impl Podman {
    /// A Podman that listens at its usual socket.
    #[must_use]
    pub fn new() -> Self {
        Self::with_socket(SOCKET)
    }

    /// A Podman that listens elsewhere.
    #[must_use]
    pub fn with_socket(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            program: None,
            service: Arc::new(Mutex::new(None)),
            undoing: Undoing::new(),
        }
    }

    /// Starts `program`, which is Podman's, as a service when nobody listens. It gets this process's environment and ends with
    /// [`Podman::settled`], or half a minute after its last question.
    #[must_use]
    pub fn or_started_by(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = Some(program.into());
        self
    }

    /// Where Podman is asked, if somebody listens there.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Who is asked, as a user would have it: the socket, or the program where nobody listens there.
    fn asked(&self) -> &Path {
        match &self.program {
            Some(program) if !self.socket.exists() => program,
            _ => &self.socket,
        }
    }

    /// Completes when Podman has answered all restores whose futures were dropped, what was made for them is removed, and a
    /// service that was started here has ended and is reaped. The next question starts another.
    pub async fn settled(&self) {
        self.undoing.done().await;
        self.end_service().await;
    }

    /// Looks at a container. `name` is its id, the beginning of it, or its name.
    ///
    /// # Errors
    /// [`ErrorKind::Unknown`] when there is none, [`ErrorKind::Ambiguous`] when several ids begin so,
    /// [`ErrorKind::Api`] when Podman cannot be asked.
    ///
    /// # Cancel safety
    /// Nothing is done but asking.
    pub async fn load(&self, name: &str) -> Result<Container> {
        let inspected = self.inspect(name).await.map_err(of(name))?;
        Ok(inspected.container())
    }

    /// What a checkpoint would ask of CRIU; nothing is done.
    ///
    /// # Errors
    /// As [`Podman::checkpoint`], up to what is found out before CRIU is asked.
    pub async fn dump_plan(
        &self,
        name: &str,
        consumer: Consumer,
        leave_running: bool,
    ) -> Result<DumpPlan> {
        let plan = async {
            let inspected = self.checkpointable(name, leave_running).await?;
            let beneath = Beneath::under_conmon(&inspected)?;
            if !leave_running {
                loses_nothing(&inspected, &beneath)?;
            }
            let mut plan = beneath.plan(&inspected, beneath.consumer(consumer))?;
            plan.notes
                .extend(inspected.notes().filter(|_| !leave_running));
            Ok(plan)
        };
        plan.await.map_err(of(name))
    }

    /// Checkpoints a container into `images`, for its own runtime if [`CheckpointOptions::consumer`] does not say otherwise.
    ///
    /// Unless it is left running, Podman shows it as exited with status 137 when this returns. `hooks` see every callback.
    ///
    /// # The container
    /// As [`Runtime::checkpoint`](super::runtime::Runtime::checkpoint); Podman removes what remains of it.
    ///
    /// # Errors
    /// Everything that is wrong with the container or the options is found before CRIU is asked; then [`ErrorKind::Criu`].
    /// [`ErrorKind::Policy`] when Podman would start or remove the container by itself as soon as it has ended.
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
        self.checkpointed(criu, name, images, hooks, options)
            .instrument(EngineKind::Podman.span(name))
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
    ) -> std::result::Result<CheckpointReport, ErrorKind> {
        let Ready {
            inspected,
            beneath,
            kept,
        } = self.ready(name, options.leaves_running()).await?;
        let conmon = ProcessId::of(inspected.state.conmon_pid);
        let hooks = Beside {
            inner: hooks,
            images,
            kept,
        };
        let owner = inspected.owner();
        let consumer = beneath.consumer(options.wanted_consumer());
        let options = options.consumer(consumer);
        let mut report = beneath
            .checkpoint(owner, criu, images, hooks, options)
            .await?;
        if report.dump.tasks == TaskState::Absent {
            let left = match self.has_ended(&inspected, conmon).await {
                Some(problem) => vec![problem],
                None => beneath.remove_stopped(&inspected.id).await,
            };
            report.left_behind.extend(left);
        }
        Ok(report)
    }

    /// What [`Podman::checkpoint`] into the directory `images`, which need not be there, would ask and do. Nothing is done but
    /// asking CRIU and Podman.
    ///
    /// # Errors
    /// Those of [`Podman::checkpoint`] that come before the request.
    pub async fn plan_checkpoint(
        &self,
        criu: &Criu,
        name: &str,
        images: impl AsRef<Path>,
        options: CheckpointOptions,
    ) -> Result<dry_run::Plan> {
        let images = images.as_ref();
        let planned = async {
            let leave_running = options.leaves_running();
            let Ready {
                inspected,
                beneath,
                kept,
            } = self.ready(name, leave_running).await?;
            let owner = inspected.owner();
            let consumer = beneath.consumer(options.wanted_consumer());
            let options = options.consumer(consumer);
            let mut plan = beneath
                .plan_checkpoint(owner, criu, images, options)
                .await?;
            let images = std::path::absolute(images).map_err(ErrorKind::system(format!(
                "looking at {}",
                images.display()
            )))?;
            for step in kept.steps(&images) {
                plan.push(step);
            }
            if !leave_running {
                plan.notes.extend(inspected.notes());
                plan.push(Step::after(Action::AwaitEnd {
                    pid: inspected.state.conmon_pid,
                }));
            }
            Ok(plan)
        };
        planned.await.map_err(of(name))
    }

    /// Everything about a checkpoint that is Podman's, before CRIU is asked.
    async fn ready(
        &self,
        name: &str,
        leave_running: bool,
    ) -> std::result::Result<Ready, ErrorKind> {
        let inspected = self.checkpointable(name, leave_running).await?;
        let beneath = Beneath::under_conmon(&inspected)?;
        if !leave_running {
            loses_nothing(&inspected, &beneath)?;
        }
        let network = self.network_status(&inspected).await?;
        let network = network
            .map(|status| serde_json::to_vec_pretty(&status))
            .transpose()
            .map_err(std::io::Error::from)
            .map_err(ErrorKind::system("writing JSON"))?;
        let model = beneath.model(&inspected)?;
        let shm = own_shm(&inspected, &model, inspected.state.pid);
        Ok(Ready {
            inspected,
            beneath,
            kept: Kept { network, shm },
        })
    }

    /// What [`Podman::pre_dump`] would ask and do, as [`Podman::plan_checkpoint`].
    ///
    /// # Errors
    /// Those of [`Podman::pre_dump`] that come before the request.
    pub async fn plan_pre_dump(
        &self,
        criu: &Criu,
        name: &str,
        images: impl AsRef<Path>,
        options: PreDumpOptions,
    ) -> Result<dry_run::Plan> {
        let planned = async {
            let inspected = self.checkpointable(name, true).await?;
            let beneath = Beneath::under_conmon(&inspected)?;
            beneath
                .plan_pre_dump(criu, &inspected.id, images.as_ref(), options)
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
            let inspected = self.checkpointable(name, true).await?;
            let beneath = Beneath::under_conmon(&inspected)?;
            beneath.pre_dump(criu, &inspected.id, images, options).await
        };
        pre_dumped
            .instrument(EngineKind::Podman.span(name))
            .await
            .map_err(of(name))
    }

    /// A container that can be checkpointed, as far as Podman's description tells.
    async fn checkpointable(
        &self,
        name: &str,
        leave_running: bool,
    ) -> std::result::Result<Inspected, ErrorKind> {
        let inspected = self.inspect(name).await?;
        if !inspected.is_up() {
            let status = inspected.status();
            return Err(ErrorKind::NotRunning { status });
        }
        inspected.is_not_ending()?;
        if !leave_running {
            inspected.stays_ended()?;
        }
        Ok(inspected)
    }

    /// Waits until Podman has cleaned up after a container. Returns what there is to say if it does not.
    async fn has_ended(&self, inspected: &Inspected, conmon: Option<ProcessId>) -> Option<String> {
        // conmon becomes the cleaning, which nobody else may come between.
        let conmon_ends = async {
            while conmon.is_some_and(ProcessId::is_alive) {
                tokio::time::sleep(LOOK).await;
            }
        };
        let problem = match tokio::time::timeout(END, conmon_ends).await {
            Err(_) => "conmon has not ended".to_owned(),
            Ok(()) => match self.cleaned_up(&inspected.id, END).await {
                Ok(now) if now.is_cleaned_up() => return None,
                Ok(now) => format!("Podman has it as {}", now.state.status),
                Err(ErrorKind::Unknown { .. }) => "Podman does not have it any more".to_owned(),
                Err(kind) => kind.to_string(),
            },
        };
        Some(format!(
            "its processes have ended, and Podman has not cleaned up after them ({problem}): `podman container cleanup {}` does",
            inspected.id
        ))
    }
}

/// Podman takes volumes in memory down with their last container.
fn loses_nothing(inspected: &Inspected, beneath: &Beneath) -> std::result::Result<(), ErrorKind> {
    let targets = beneath.in_memory(inspected, &inspected.volumes())?;
    match targets.first() {
        None => Ok(()),
        Some(target) => Err(ErrorKind::Policy(format!(
            "what is in the volume at {} is in memory, and Podman takes it down with the container: use --tmpfs instead, \
             which is in the images, or leave it running",
            target.display()
        ))),
    }
}
