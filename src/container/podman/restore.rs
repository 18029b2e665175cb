//! A container's restore, which is Podman's own.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use tracing::Instrument;

use super::api::{Inspected, of};
use super::beneath::remove_groups;
use super::beside::NETWORK_STATUS;
use super::place::{self, Placed};
use super::{Container, END, Podman};
use crate::ImagesDir;
use crate::container::error::{Error, ErrorKind, Result};
use crate::container::model::{EngineKind, Status};
use crate::container::runtime::beside;
use crate::diagnosis::{self, Findings};
use crate::dry_run::{self, Action, Step, When};
use crate::image::{RestoreStats, STATS_RESTORE};

/// The log of the runtime's restore, in the bundle.
const LOG: &str = "restore.log";

/// What a restore by Podman can be told, under the names of `podman container restore`.
///
/// What else CRIU is to be told has its place in a configuration file of CRIU's, which the annotation `org.criu.config` names, or
/// `/etc/criu/runc.conf`.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct RestoreOptions {
    tcp_established: bool,
    tcp_close: bool,
    file_locks: bool,
    limit: Option<Duration>,
}

impl RestoreOptions {
    /// What `podman container restore` does without options.
    pub fn new() -> Self {
        Self::default()
    }

    /// `--tcp-established`, as the checkpoint had it.
    pub fn tcp_established(mut self, on: bool) -> Self {
        self.tcp_established = on;
        self
    }

    /// `--tcp-close`: connections are restored closed. Podman 5.7 with crun 1.23.
    pub fn tcp_close(mut self, on: bool) -> Self {
        self.tcp_close = on;
        self
    }

    /// `--file-locks`, as the checkpoint had it.
    pub fn file_locks(mut self, on: bool) -> Self {
        self.file_locks = on;
        self
    }

    /// Under the API's names.
    fn flags(&self) -> [(&'static str, bool); 3] {
        [
            ("tcpEstablished", self.tcp_established),
            ("tcpClose", self.tcp_close),
            ("fileLocks", self.file_locks),
        ]
    }

    /// How long to wait for Podman. It cannot be interrupted: after that it goes on, and [`Podman::settled`] waits for it.
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
    /// The container, as Podman has it now.
    #[serde(flatten)]
    pub container: Container,
    /// How long Podman took, in microseconds in JSON.
    #[serde(rename = "timeMicros", serialize_with = "in_microseconds")]
    pub time: Duration,
    /// How long its runtime took of that.
    #[serde(rename = "runtimeMicros", serialize_with = "in_microseconds")]
    pub runtime: Duration,
    /// What CRIU wrote of its restore.
    pub stats: Option<RestoreStats>,
    /// CRIU's log, in the container's bundle.
    pub log: Option<PathBuf>,
    /// What is not as it was, in words.
    pub notes: Vec<String>,
    /// What only the restore needed and could not be removed.
    pub left_behind: Vec<String>,
}

fn in_microseconds<S: serde::Serializer>(
    time: &Duration,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

impl Podman {
    /// Has Podman restore a container from `images`, wherever they are and whoever has made them: [`Podman::checkpoint`] or
    /// Podman, under the same runtime. The container must be there, and not run. Images are not used up.
    ///
    /// # The container
    /// On every failure that is found before Podman is asked nothing was changed. When Podman's restore fails, there are no
    /// processes, and Podman shows the container as before.
    ///
    /// # Errors
    /// What is wrong with Podman, the container or the images is found before Podman is asked to restore;
    /// then [`ErrorKind::EngineRestore`], with what CRIU's log says.
    ///
    /// # Cancel safety
    /// Podman's restore cannot be interrupted. Dropping the future leaves it to Podman: what was made for it is removed when
    /// Podman has answered, which [`Podman::settled`] waits for, and [`Podman::load`] tells what became of the container.
    pub async fn restore(
        &self,
        name: &str,
        images: &ImagesDir,
        options: RestoreOptions,
    ) -> Result<Restored> {
        self.restored(name, images, options)
            .instrument(EngineKind::Podman.span(name))
            .await
    }

    /// What [`Podman::restore`] would do. Nothing is done but asking Podman.
    ///
    /// # Errors
    /// Those of [`Podman::restore`] that come before Podman is asked to restore.
    pub async fn plan_restore(
        &self,
        name: &str,
        images: &ImagesDir,
        options: RestoreOptions,
    ) -> Result<dry_run::Plan> {
        let planned = async {
            let inspected = self.restorable(name, images).await?;
            let mut steps = Placed::steps(&inspected.static_dir, images)?;
            steps.extend([LOG, STATS_RESTORE].map(|name| {
                let path = inspected.static_dir.join(name);
                Step::before(Action::RemoveFile { path })
            }));
            let mut request = format!("POST /libpod/containers/{}/restore?keep=true", inspected.id);
            for (name, _) in options.flags().iter().filter(|(_, on)| *on) {
                request += &format!("&{name}=true");
            }
            steps.push(Step::new(When::Request, Action::AskEngine { request }));
            let notes = notes(&inspected, images);
            Ok(dry_run::Plan::new(None, steps, notes))
        };
        planned.await.map_err(of(name))
    }

    async fn restored(
        &self,
        name: &str,
        images: &ImagesDir,
        options: RestoreOptions,
    ) -> Result<Restored> {
        let inspected = self.restorable(name, images).await.map_err(of(name))?;
        let placed = Placed::new(&inspected.static_dir, images).map_err(of(name))?;
        let notes = notes(&inspected, images);
        let (socket, limit) = (self.socket().to_owned(), options.limit);
        let work = self
            .clone()
            .work(inspected, placed, name.to_owned(), options, notes);
        self.undoing
            .uninterrupted(&socket, limit, work)
            .await
            .unwrap_or_else(|kind| Err(of(name)(kind)))
    }

    /// Everything that can be known before Podman is asked to restore.
    async fn restorable(
        &self,
        name: &str,
        images: &ImagesDir,
    ) -> std::result::Result<Inspected, ErrorKind> {
        let inspected = self.inspect(name).await?;
        if inspected.is_up() {
            let status = inspected.status();
            return Err(ErrorKind::Exists { status });
        }
        // One that has just ended is about to be cleaned up after.
        let inspected = self.cleaned_up(&inspected.id, END).await?;
        if !inspected.is_cleaned_up() {
            return Err(match inspected.status() {
                status @ (Status::Running | Status::Paused) => ErrorKind::Exists { status },
                _ => ErrorKind::Policy(format!(
                    "Podman has it as {}, and restores only what has exited: `podman container cleanup {}` makes it so",
                    inspected.state.status, inspected.id
                )),
            });
        }
        beside::descriptors(images)?;
        beside::belongs(images, &inspected.id)?;
        self.is_no_others(images, &inspected)?;
        if !inspected.static_dir.is_dir() {
            return Err(ErrorKind::State {
                path: inspected.static_dir,
                problem: "is where Podman says that it keeps the container, and not there: Podman must run on this host, \
                          not in a virtual machine or a container"
                    .into(),
                source: None,
            });
        }
        Ok(inspected)
    }

    /// Podman's own checkpoints say by their place alone whose they are.
    fn is_no_others(
        &self,
        images: &ImagesDir,
        inspected: &Inspected,
    ) -> std::result::Result<(), ErrorKind> {
        let looking = || ErrorKind::system(format!("looking into {}", images.path().display()));
        let own = place::is_in_place(&inspected.static_dir, images).map_err(looking())?;
        let path = fs::canonicalize(images.path()).map_err(looking())?;
        match super::list::container_of(&path) {
            Some(id) if !own && id != inspected.id => Err(ErrorKind::Images {
                problem: format!(
                    "is a checkpoint of another container, podman:{id}: give the directory that this one was checkpointed into"
                ),
                path,
                source: None,
            }),
            _ => Ok(()),
        }
    }

    async fn work(
        self,
        inspected: Inspected,
        placed: Placed,
        name: String,
        options: RestoreOptions,
        notes: Vec<String>,
    ) -> Result<Restored> {
        let (id, bundle) = (inspected.id.as_str(), inspected.static_dir.as_path());
        let failed = |kind: ErrorKind, left: &[String]| {
            Error::new(EngineKind::Podman, &name, kind).with_left_behind(left.to_vec())
        };
        // What an earlier restore has left there would be taken for this one's.
        for name in [LOG, STATS_RESTORE] {
            let _ = fs::remove_file(bundle.join(name));
        }
        // What an earlier failure has left would make this one fail.
        for left in remove_groups(&inspected).await {
            tracing::warn!("a control group is in the way: {left}");
        }
        let begun = Instant::now();
        let answered = self.ask_restore(id, &options.flags()).await;
        let time = begun.elapsed();
        let mut left_behind = placed.remove();
        if answered.is_err() && self.inspect(id).await.is_ok_and(|now| !now.is_up()) {
            left_behind.extend(remove_groups(&inspected).await);
        }
        let answer = match answered {
            Ok(answer) => answer,
            Err(ErrorKind::Api(error)) => {
                let findings = findings(bundle).map(Box::new);
                let kind = ErrorKind::EngineRestore { error, findings };
                return Err(failed(kind, &left_behind));
            }
            Err(kind) => return Err(failed(kind, &left_behind)),
        };
        let now = self.inspect(id).await;
        let container = now.map_err(|kind| failed(kind, &left_behind))?.container();
        if container.pid.is_none() {
            let kind = ErrorKind::Unsupported("it ended as soon as it was restored".into());
            return Err(failed(kind, &left_behind));
        }
        Ok(Restored {
            container,
            time,
            runtime: Duration::from_micros(answer.runtime_restore_duration),
            stats: stats(bundle),
            log: Some(bundle.join(LOG)).filter(|log| log.exists()),
            notes,
            left_behind,
        })
    }
}

/// What will not be as it was.
fn notes(inspected: &Inspected, images: &ImagesDir) -> Vec<String> {
    let networks = inspected.network_settings.networks.iter().flatten();
    let has_addresses = networks
        .map(|(name, _)| name.as_str())
        .any(|name| !["none", "host"].contains(&name));
    let in_place = place::is_in_place(&inspected.static_dir, images).unwrap_or(false);
    let is_kept = images.contains(NETWORK_STATUS)
        || (in_place && inspected.static_dir.join(NETWORK_STATUS).exists());
    match has_addresses && !is_kept {
        true => vec![format!(
            "{} has no {NETWORK_STATUS}: the container may get other addresses than it had",
            images.path().display()
        )],
        false => Vec::new(),
    }
}

/// What the log of a failed restore says.
fn findings(bundle: &Path) -> Option<Findings> {
    diagnosis::explain(&bundle.join(LOG)).ok()
}

fn stats(bundle: &Path) -> Option<RestoreStats> {
    let work = ImagesDir::open(bundle).ok()?;
    RestoreStats::read(work.as_fd(), STATS_RESTORE).ok()
}
