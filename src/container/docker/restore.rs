//! A container's restore, which is Docker's own.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use tracing::Instrument;

use super::api::Inspected;
use super::place::{Place, has_no_leftover};
use super::staging::{PREFIX, Staging};
use super::{Container, Docker, of};
use crate::ImagesDir;
use crate::container::error::{Error, ErrorKind, Result};
use crate::container::http::{ApiProblem, Request};
use crate::container::model::{EngineKind, Status};
use crate::container::runtime::beside;
use crate::diagnosis::{self, Findings};
use crate::dry_run::{Action, Plan, Step, Undo, When};
use crate::image::{RestoreStats, STATS_RESTORE};

/// How long a daemon that has just answered may take for another connection.
const CONNECT: Duration = Duration::from_secs(2);
/// Where temporary files are that nobody has put elsewhere.
const TEMPORARY: &str = "/tmp";
/// The log of the runtime's restore, in the work directory of the container's shim.
const LOG: &str = "restore.log";
/// What Docker answers when it is asked to start what runs.
const ALREADY: u16 = 304;
/// How often the log is looked for, which Docker removes when a restore has failed.
const LOOK: Duration = Duration::from_millis(2);

/// What a restore by Docker can be told: nothing of CRIU's, as Docker passes nothing on.
///
/// CRIU's own options for it are those of the host's `/etc/criu/runc.conf`.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct RestoreOptions {
    limit: Option<Duration>,
}

impl RestoreOptions {
    /// Without a time limit.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long to wait for Docker. It cannot be interrupted: after that it goes on, and [`Docker::settled`] waits for it.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }
}

/// A restored container.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Restored {
    /// The container, as Docker has it now.
    #[serde(flatten)]
    pub container: Container,
    /// How long Docker took, in microseconds in JSON.
    #[serde(rename = "totalMicros", serialize_with = "in_microseconds")]
    pub time: Duration,
    /// What CRIU wrote of its restore.
    pub stats: Option<RestoreStats>,
    /// What only the restore needed and could not be removed.
    pub left_behind: Vec<String>,
}

fn in_microseconds<S: serde::Serializer>(
    time: &Duration,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

impl Docker {
    /// Has Docker restore a container from `images`, wherever they are and whoever has made them: [`Docker::checkpoint`] or
    /// Docker. The container must be there, and stopped. Images are not used up.
    ///
    /// # The container
    /// On every failure that is found before Docker is asked nothing was changed. When Docker's restore fails, there are no
    /// processes, and Docker shows the container as exited with a status that says so (127 or 128).
    ///
    /// # Errors
    /// What is wrong with Docker, the container or the images is found before Docker is asked;
    /// then [`ErrorKind::EngineRestore`], with what CRIU's log says.
    ///
    /// # Cancel safety
    /// Docker's restore cannot be interrupted. Dropping the future leaves it to Docker: what was made for it is removed when
    /// Docker has answered, which [`Docker::settled`] waits for, and [`Docker::load`] tells what became of the container.
    pub async fn restore(
        &self,
        name: &str,
        images: &ImagesDir,
        options: RestoreOptions,
    ) -> Result<Restored> {
        self.restored(name, images, options)
            .instrument(EngineKind::Docker.span(name))
            .await
    }

    async fn restored(
        &self,
        name: &str,
        images: &ImagesDir,
        options: RestoreOptions,
    ) -> Result<Restored> {
        let prepared = self.prepared(name, images).await.map_err(of(name))?;
        let staging = Staging::make(&prepared.checkpoints(), &prepared.inspected.id, images)
            .map_err(of(name))?;
        let work = self.clone().work(prepared, staging, name.to_owned());
        let (socket, limit) = (self.socket().to_owned(), options.limit);
        self.undoing
            .uninterrupted(&socket, limit, work)
            .await
            .unwrap_or_else(|kind| Err(of(name)(kind)))
    }

    /// Everything that can be known before Docker is asked to restore.
    async fn prepared(
        &self,
        name: &str,
        images: &ImagesDir,
    ) -> std::result::Result<Prepared, ErrorKind> {
        // Docker runs programs to answer the first and the last: asked together, they take no longer than one.
        let (version, inspected, info) =
            tokio::try_join!(self.version(), self.inspect(name), self.info())?;
        inspected.is_down()?;
        version.restores(&inspected)?;
        inspected.has_no_linked_binds()?;
        has_no_leftover(&inspected)?;
        beside::descriptors(images)?;
        beside::belongs(images, &inspected.id)?;
        info.restores_with(&inspected)?;
        let root = info.docker_root_dir;
        let directory = root.join("containers").join(&inspected.id);
        if !directory.is_dir() {
            return Err(ErrorKind::State {
                path: directory,
                problem: "is where Docker says that it keeps the container, and not there: Docker must run on this host, \
                          not in a virtual machine or a container"
                    .into(),
                source: None,
            });
        }
        Ok(Prepared { inspected, root })
    }

    /// What [`Docker::restore`] would do; nothing is done but asking Docker.
    ///
    /// # Errors
    /// Those of [`Docker::restore`] that come before Docker is asked to restore.
    pub async fn plan_restore(&self, name: &str, images: &ImagesDir) -> Result<Plan> {
        let prepared = self.prepared(name, images).await.map_err(of(name))?;
        // The end of its name is made up as the directory is made.
        let checkpoint = format!("{PREFIX}…");
        let directory = prepared.checkpoints().join(&checkpoint);
        let steps = vec![
            Step::before(Action::LinkImages {
                directory: directory.clone(),
            }),
            Step {
                when: When::Request,
                action: Action::AskEngine {
                    request: start(&prepared.inspected.id, &checkpoint).to_string(),
                },
                undo: Undo::TasksGone,
            },
            Step::after(Action::UnlinkImages { directory }),
        ];
        Ok(Plan::new(None, steps, Vec::new()))
    }

    async fn work(self, prepared: Prepared, staging: Staging, name: String) -> Result<Restored> {
        let id = prepared.inspected.id.as_str();
        let begun = Instant::now();
        let request = start(id, staging.name());
        let logs = logs(&prepared.root, id);
        let mut log = None;
        let answered = {
            let mut asked = std::pin::pin!(self.client.ask(request));
            loop {
                tokio::select! {
                    answered = &mut asked => break answered,
                    // Open, it can still be read when Docker has removed it.
                    () = tokio::time::sleep(LOOK), if log.is_none() => {
                        log = logs.iter().find_map(|path| File::open(path).ok());
                    }
                }
            }
        };
        let time = begun.elapsed();
        let answered = match answered {
            // The daemon has gone, and what it had begun may go on.
            Err(error) if matches!(error.problem, ApiProblem::Broken(_)) => {
                return Err(of(&name)(error.into()).with_left_behind(staging.leave()));
            }
            answered => answered,
        };
        let now = self.inspect(id).await;
        let place = now.as_ref().ok().and_then(|now| Place::of(now).ok());
        let mut temporary = vec![PathBuf::from(TEMPORARY)];
        let shim = place.as_ref().map(|place| place.shim);
        for pid in shim.into_iter().chain(self.daemon().await) {
            temporary.extend(temporary_of(pid));
        }
        temporary.sort();
        temporary.dedup();
        let left_behind = staging.remove(&temporary);
        let kind = match answered {
            Err(error) => Some(ErrorKind::EngineRestore {
                error: Box::new(error),
                findings: log.and_then(|log| findings(&log)).map(Box::new),
            }),
            // Somebody was faster, and perhaps not with these images.
            Ok(answer) if answer.status == ALREADY => Some(ErrorKind::Exists {
                status: Status::Running,
            }),
            Ok(_) => None,
        };
        if let Some(kind) = kind {
            return Err(Error::new(EngineKind::Docker, &name, kind).with_left_behind(left_behind));
        }
        let container = now
            .map_err(|kind| {
                Error::new(EngineKind::Docker, &name, kind).with_left_behind(left_behind.clone())
            })?
            .container();
        if container.pid.is_none() {
            let kind = ErrorKind::Unsupported("it ended as soon as it was restored".into());
            return Err(Error::new(EngineKind::Docker, &name, kind).with_left_behind(left_behind));
        }
        Ok(Restored {
            container,
            time,
            stats: place.and_then(|place| stats(&place.bundle)),
            left_behind,
        })
    }

    /// The daemon's process, as far as its socket tells: one that systemd has made tells of systemd.
    async fn daemon(&self) -> Option<i32> {
        let connecting = tokio::net::UnixStream::connect(self.socket());
        let stream = tokio::time::timeout(CONNECT, connecting).await.ok()?.ok()?;
        // Zero stands for a process of another pid namespace.
        stream.peer_cred().ok()?.pid().filter(|pid| *pid > 0)
    }
}

/// What is known before Docker is asked to restore.
struct Prepared {
    inspected: Inspected,
    /// The daemon's own directory.
    root: PathBuf,
}

impl Prepared {
    /// Where Docker has the container's checkpoints.
    fn checkpoints(&self) -> PathBuf {
        let containers = self.root.join("containers");
        containers.join(&self.inspected.id).join("checkpoints")
    }
}

/// As long as it takes.
fn start(id: &str, checkpoint: &str) -> Request {
    Request::post(&["containers", id, "start"])
        .query("checkpoint", checkpoint)
        .limit(None)
}

/// Where containerd has the work directory of the container's shim: that which Docker has started, and the system's.
fn logs(root: &Path, id: &str) -> [PathBuf; 2] {
    let own = root.join("containerd/daemon");
    [own.as_path(), Path::new("/var/lib/containerd")].map(|containerd| {
        let tasks = containerd.join("io.containerd.runtime.v2.task/moby");
        tasks.join(id).join(LOG)
    })
}

/// Where a process may have its temporary files.
fn temporary_of(pid: i32) -> Vec<PathBuf> {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let value = |variable: &[u8]| {
        let names: [&[u8]; 2] = [b"XDG_RUNTIME_DIR=", b"TMPDIR="];
        let value = names
            .into_iter()
            .find_map(|name| variable.strip_prefix(name))?;
        (!value.is_empty()).then(|| PathBuf::from(OsString::from_vec(value.to_vec())))
    };
    environment
        .split(|byte| *byte == 0)
        .filter_map(value)
        .collect()
}

/// What a log says that may have no name any more.
fn findings(log: &File) -> Option<Findings> {
    let path = format!("/proc/self/fd/{}", log.as_raw_fd());
    let mut findings = diagnosis::explain(Path::new(&path)).ok()?;
    findings.log = None;
    Some(findings)
}

/// What CRIU has written into the shim's work directory.
fn stats(bundle: &Path) -> Option<RestoreStats> {
    let work = ImagesDir::open(bundle.join("work")).ok()?;
    RestoreStats::read(work.as_fd(), STATS_RESTORE).ok()
}
