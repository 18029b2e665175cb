//! Checkpoint and restore behind the engine's back: the engine does not know that a container runs again.
//!
//! For what no engine's restore does: one that is broken or switched off, a look at a container as it was, another network.
//! It is what CRIU's `docker_cr.sh` did, for today's engines. The container is one of runc's or crun's afterwards, below a root
//! of this library's own, so that `runc --root /run/criu-client/external/runc exec ID` works; the engine shows it as exited.
//!
//! ```text
//! checkpoint   engine ─ id, layers ── note beside the images, network kept ── the engine's Checkpoint ── (engine cleans up)
//! restore      engine, images, log ── Rootfs ── mounted in a place of our own ── bundle ── Runtime::restore ── unmounted
//! cleanup      ended? ── Runtime::remove ── network let go ── place removed
//! ```
//!
//! What a restore makes is in a record before it is made, so that it is undone on failure, on cancellation, and by the next
//! call when this process was killed. While such a container runs, its engine must not start it: both would write to one
//! root file system.

mod network;
mod note;
mod place;
mod restore;

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tracing::Instrument;

pub use network::Network;
pub use place::HOME;
pub use restore::{RestoreOptions, Restored, Stdio};

use super::adopt::{self, Undoing};
use super::beneath::Beneath;
use super::crun::Crun;
use super::described::Described;
use super::docker::Docker;
use super::error::{Error, ErrorKind, Result};
use super::model::{EngineKind, Live, MountKind, NamespaceKind, ProcessId, Status, is_valid_id};
use super::podman::Podman;
use super::runc::Runc;
use super::runtime::{CheckpointOptions, CheckpointReport, Owner};
use crate::notify::{Event, HookError, Hooks, Notify, Reply};
use crate::rootfs::Rootfs;
use crate::{Criu, ImagesDir, TaskState};
use note::{Note, OutsideFile, outside_files};
use place::{Place, Record};

type Found<T> = std::result::Result<T, ErrorKind>;

/// Whose containers are checkpointed and restored externally.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Engine {
    /// Docker's.
    Docker(Docker),
    /// Podman's.
    Podman(Podman),
    /// runc's own.
    Runc(Runc),
    /// crun's own.
    Crun(Crun),
}

impl Engine {
    /// Which one it is.
    #[must_use]
    pub fn kind(&self) -> EngineKind {
        match self {
            Self::Docker(_) => EngineKind::Docker,
            Self::Podman(_) => EngineKind::Podman,
            Self::Runc(_) => EngineKind::Runc,
            Self::Crun(_) => EngineKind::Crun,
        }
    }
}

/// Containers that were restored externally. Cheap to make and to clone.
#[derive(Debug, Clone)]
pub struct External {
    home: PathBuf,
    docker_home: Option<PathBuf>,
    undoing: Undoing,
}

/// A container that something is kept of.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Entry {
    /// Its full id.
    pub id: String,
    /// The engine that it was made by, and the name that it has there; unknown when only its network is kept.
    pub engine: Option<EngineKind>,
    /// Its name.
    pub name: Option<String>,
    /// The runtime that has it here, whose `--root` is this one.
    pub runtime: Option<EngineKind>,
    /// What it does.
    pub status: Status,
    /// Its first process, if it runs.
    pub init: Option<ProcessId>,
    /// Where the images are that it was restored from.
    pub images: Option<PathBuf>,
    /// Where its network namespace is kept.
    pub network: Option<PathBuf>,
}

/// What a checkpoint is told.
#[derive(Debug, Default)]
#[must_use]
pub struct ExternalCheckpoint {
    options: CheckpointOptions,
    keep_network: bool,
}

impl ExternalCheckpoint {
    /// What [`CheckpointOptions`] say. The network stays only if it is told here.
    pub fn new(options: CheckpointOptions) -> Self {
        Self {
            options,
            ..Self::default()
        }
    }

    /// Keeps the network namespace while the container is down, with all that is in it and that nobody takes out of it.
    pub fn keep_network(mut self, on: bool) -> Self {
        self.keep_network = on;
        self
    }
}

/// A finished external checkpoint.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Checkpointed {
    /// What a checkpoint of the container's tells.
    #[serde(flatten)]
    pub report: CheckpointReport,
    /// The engine's name of it.
    pub name: String,
    /// What its root file system is made of, if that is known.
    pub rootfs: Option<Rootfs>,
    /// Where its network namespace is kept.
    pub network: Option<PathBuf>,
    /// Whether it was one that had been restored externally.
    pub was_external: bool,
    /// What there is to say.
    pub notes: Vec<String>,
}

impl Default for External {
    fn default() -> Self {
        Self::new()
    }
}

impl External {
    /// Those of this host.
    #[must_use]
    pub fn new() -> Self {
        Self::with_home(HOME)
    }

    /// Those that are kept in another directory, which should not outlive the machine's run.
    #[must_use]
    pub fn with_home(home: impl Into<PathBuf>) -> Self {
        Self {
            home: home.into(),
            docker_home: None,
            undoing: Undoing::new(),
        }
    }

    /// Where Docker keeps its containers, for when it cannot be asked.
    #[must_use]
    pub fn docker_home(mut self, path: impl Into<PathBuf>) -> Self {
        self.docker_home = Some(path.into());
        self
    }

    /// The root of a runtime's containers that were restored externally.
    #[must_use]
    pub fn root_of(&self, runtime: EngineKind) -> PathBuf {
        self.home.join(runtime.to_string())
    }

    /// Completes when everything is undone that dropped restores had made.
    pub async fn settled(&self) {
        self.undoing.done().await;
    }

    fn place(&self, id: &str) -> Place {
        Place::new(&self.home, id)
    }

    fn beneath(&self, runtime: EngineKind) -> Beneath {
        let root = self.root_of(runtime);
        match runtime {
            EngineKind::Crun => Beneath::Crun(Crun::with_root(root)),
            _ => Beneath::Runc(Runc::with_root(root)),
        }
    }

    /// What such a container does, by the record of its runtime; `None` if there is none.
    fn state_of(&self, record: &Record) -> Found<Option<(Status, Option<Live>)>> {
        let state = match self.beneath(record.runtime) {
            Beneath::Runc(runc) => runc
                .find(&record.id)
                .map(|found| (found.status, found.live)),
            Beneath::Crun(crun) => crun
                .find(&record.id)
                .map(|found| (found.status, found.live)),
        };
        match state {
            Ok(state) => Ok(Some(state)),
            Err(ErrorKind::Unknown { .. }) => Ok(None),
            Err(kind) => Err(kind),
        }
    }

    /// The bind mounts of such a container: where, and of what.
    fn binds(&self, record: &Record) -> Found<Vec<(PathBuf, PathBuf)>> {
        let model = match self.beneath(record.runtime) {
            Beneath::Runc(runc) => runc.find(&record.id)?.model,
            Beneath::Crun(crun) => crun.find(&record.id)?.model,
        };
        let binds = model
            .mounts
            .into_iter()
            .filter(|mount| mount.kind == MountKind::Bind);
        Ok(binds.map(|mount| (mount.target, mount.source)).collect())
    }

    /// The containers that something is kept of, by id.
    ///
    /// # Errors
    /// [`ErrorKind::System`] when what is kept cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let listed = || {
            let ids = place::ids(&self.home).map_err(ErrorKind::system(self.reading()))?;
            ids.into_iter()
                .map(|id| self.entry(&id))
                .collect::<Found<Vec<_>>>()
        };
        listed().map_err(|kind| Error::new(EngineKind::Runc, "", kind))
    }

    fn reading(&self) -> String {
        format!("reading {}", self.home.display())
    }

    fn entry(&self, id: &str) -> Found<Entry> {
        let place = self.place(id);
        let record = place.record().map_err(ErrorKind::system(self.reading()))?;
        let state = match &record {
            Some(record) => self.state_of(record)?,
            None => None,
        };
        let (status, live) = state.unwrap_or((Status::Stopped, None));
        Ok(Entry {
            id: id.to_owned(),
            engine: record.as_ref().map(|record| record.engine),
            name: record.as_ref().map(|record| record.name.clone()),
            runtime: record.as_ref().map(|record| record.runtime),
            status,
            init: live.map(|live| live.init),
            images: record.map(|record| record.images),
            network: place.network.exists().then_some(place.network),
        })
    }

    /// The one of them that `name` is the id, the beginning of the id, or the name of.
    ///
    /// # Errors
    /// [`ErrorKind::Ambiguous`], and those of [`External::list`].
    pub fn find(&self, name: &str) -> Result<Option<Entry>> {
        let mut found = self.list()?;
        found.retain(|entry| entry.id.starts_with(name) || entry.name.as_deref() == Some(name));
        if let Some(exact) = found.iter().position(|entry| entry.id == name) {
            return Ok(Some(found.swap_remove(exact)));
        }
        match found.len() {
            0 | 1 => Ok(found.pop()),
            _ => Err(Error::new(
                EngineKind::Runc,
                name,
                ErrorKind::Ambiguous {
                    candidates: found.into_iter().map(|entry| entry.id).collect(),
                },
            )),
        }
    }

    /// Undoes restores whose process is gone. Returns what could not be undone.
    fn sweep(&self) -> Found<Vec<String>> {
        adopt::sweep().map_err(ErrorKind::system("undoing restores whose process is gone"))?;
        if !self.home.exists() {
            return Ok(Vec::new());
        }
        let _lock = place::lock(&self.home).map_err(ErrorKind::system(self.reading()))?;
        let mut left = Vec::new();
        for id in place::ids(&self.home).map_err(ErrorKind::system(self.reading()))? {
            let place = self.place(&id);
            // A record that cannot be read is somebody's; it is told where that container is meant.
            let Ok(Some(record)) = place.record() else {
                continue;
            };
            if record.owner.is_alive() {
                continue;
            }
            match self.state_of(&record)? {
                // It was restored, and its restorer killed before the rest was done.
                Some(_) => left.extend(place.unmount()),
                None => {
                    tracing::info!(id, "undoing an external restore whose process is gone");
                    left.extend(place.remove());
                }
            }
        }
        Ok(left)
    }

    /// Removes what is kept of a container that has ended: its control groups, its record, its network namespace. Returns what
    /// could not be removed.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] when it runs, [`ErrorKind::Unknown`] when nothing is kept of it.
    pub async fn cleanup(&self, name: &str) -> Result<Vec<String>> {
        let entry = self.find(name)?;
        let engine = entry
            .as_ref()
            .and_then(|entry| entry.engine)
            .unwrap_or(EngineKind::Runc);
        let cleaned = async {
            let mut left = self.sweep()?;
            let Some(entry) = entry else {
                return Err(ErrorKind::Unknown {
                    root: self.home.clone(),
                });
            };
            let place = self.place(&entry.id);
            if let Some(record) = place.record().map_err(ErrorKind::system(self.reading()))? {
                left.extend(self.remove(&place, &record).await?);
            }
            network::unpin(&place.network).map_err(ErrorKind::system(format!(
                "removing {}",
                place.network.display()
            )))?;
            Ok(left)
        };
        cleaned.await.map_err(|kind| Error::new(engine, name, kind))
    }

    /// Removes a container that has ended, but for its network.
    async fn remove(&self, place: &Place, record: &Record) -> Found<Vec<String>> {
        let status = match self.state_of(record)? {
            Some((status, _)) => status,
            None if record.owner.is_alive() => Status::Created,
            None => return Ok(place.remove()),
        };
        if status != Status::Stopped {
            return Err(ErrorKind::Exists { status });
        }
        let removed = match self.beneath(record.runtime) {
            Beneath::Runc(runc) => runc.remove(&record.id).await,
            Beneath::Crun(crun) => crun.remove(&record.id).await,
        };
        let mut left = removed.unwrap_or_else(|error| vec![error.to_string()]);
        left.extend(place.remove());
        Ok(left)
    }

    async fn describe(&self, engine: &Engine, name: &str) -> Found<Described> {
        match engine {
            Engine::Docker(docker) => match docker.described(name).await {
                Err(ErrorKind::Api(error)) if error.is_absent() => {
                    let home = self
                        .docker_home
                        .as_deref()
                        .unwrap_or(Path::new("/var/lib/docker"));
                    Docker::described_on_disk(home, name).ok_or(ErrorKind::Api(error))
                }
                described => described,
            },
            Engine::Podman(podman) => podman.described(name).await,
            Engine::Runc(runc) => of_runtime(EngineKind::Runc, name, runc.find(name)),
            Engine::Crun(crun) => of_runtime(EngineKind::Crun, name, crun.find(name)),
        }
    }

    /// The full id of an engine's container.
    ///
    /// # Errors
    /// Those of the engine: [`ErrorKind::Unknown`], [`ErrorKind::Ambiguous`], [`ErrorKind::Api`].
    pub async fn id_of(&self, engine: &Engine, name: &str) -> Result<String> {
        let described = self.describe(engine, name).await;
        described
            .map(|described| described.id)
            .map_err(|kind| Error::new(engine.kind(), name, kind))
    }

    /// Checkpoints a container into `images`, with what a restore without the engine needs. `name` is its id, the beginning of
    /// it, or its name. One that was restored externally before is found, though its engine calls it exited.
    ///
    /// # The container
    /// As the engine's own [`checkpoint`](super::runtime::Runtime::checkpoint).
    ///
    /// # Errors
    /// As that, and [`ErrorKind::Rootfs`] when the root file system could not be put together again; before anything is frozen.
    ///
    /// # Cancel safety
    /// Dropping the future cancels.
    pub async fn checkpoint(
        &self,
        engine: &Engine,
        criu: &Criu,
        name: &str,
        images: &ImagesDir,
        hooks: impl Hooks,
        options: ExternalCheckpoint,
    ) -> Result<Checkpointed> {
        self.checkpointed(engine, criu, name, images, hooks, options)
            .instrument(engine.kind().span(name))
            .await
            .map_err(|kind| Error::new(engine.kind(), name, kind))
    }

    async fn checkpointed(
        &self,
        engine: &Engine,
        criu: &Criu,
        name: &str,
        images: &ImagesDir,
        hooks: impl Hooks,
        options: ExternalCheckpoint,
    ) -> Found<Checkpointed> {
        let left = self.sweep()?;
        let described = self.describe(engine, name).await?;
        super::runtime::beside::belongs(images, &described.id)?;
        let place = self.place(&described.id);
        let record = place.record().map_err(ErrorKind::system(self.reading()))?;
        let external = match record {
            Some(record) => match self.state_of(&record)? {
                Some((Status::Running | Status::Paused, Some(live))) => Some((record, live)),
                _ => None,
            },
            None => None,
        };
        let live = match &external {
            Some((_, live)) => live.clone(),
            None => self.live_in(engine, &described).await?,
        };
        let root = root_of(&described, &live)?;
        let stdio = outside_files(live.init.pid, &live.mounts).map_err(ErrorKind::system(
            format!("reading /proc/{}", live.init.pid),
        ))?;
        let ends = !options.options.leaves_running();
        let own_network =
            fs::metadata("/proc/self/ns/net").map_err(ErrorKind::system("reading /proc"))?;
        let has_network = live.namespaces.get(&NamespaceKind::Network)
            != Some(&std::os::unix::fs::MetadataExt::ino(&own_network));
        if options.keep_network && !has_network {
            return Err(ErrorKind::Option {
                option: "network",
                problem: "keep: the container has the host's network, which stays anyway".into(),
            });
        }
        // One that it has been restored into stays its own.
        let has_it = is_namespace_of(&place.network, &live);
        let keeps_network = (options.keep_network || has_it) && ends;
        let note = Note {
            version: 1,
            engine: described.engine,
            id: described.id.clone(),
            name: described.name.clone(),
            driver: described
                .storage
                .as_ref()
                .map(|storage| storage.driver.clone()),
            layer: described
                .storage
                .as_ref()
                .and_then(|storage| storage.layer.clone()),
            root: root.clone(),
            mounted_at: described.mounted_at.clone(),
            keeps_network,
            stdio,
            repeated: options.options.repeated(),
        };
        let pin = (keeps_network && !has_it).then(|| Pin {
            at: place.network.clone(),
            init: live.init,
            wanted: true,
        });
        let hooks = Noting {
            inner: hooks,
            images,
            note: &note,
            pin: pin.as_ref(),
        };
        let mut outside: Vec<OutsideFile> = Vec::new();
        for (_, file) in &note.stdio {
            // Standard output and error are often the same one.
            if !outside.contains(file) {
                outside.push(*file);
            }
        }
        let outside = outside.into_iter().map(OutsideFile::on_dump);
        let options = outside.fold(options.options, CheckpointOptions::external);
        let mut report = match (&external, engine) {
            (Some((record, _)), _) => {
                let own = own_memory(&live, self.binds(record)?);
                let owner = Owner {
                    engine: described.engine,
                    id: &described.id,
                    mounts: &own,
                };
                self.beneath(record.runtime)
                    .checkpoint(owner, criu, images, hooks, options)
                    .await?
            }
            (None, Engine::Docker(docker)) => {
                docker
                    .checkpoint_to_do_without(criu, &described.id, images, hooks, options)
                    .await?
            }
            (None, Engine::Podman(podman)) => {
                podman
                    .checkpoint_to_do_without(criu, &described.id, images, hooks, options)
                    .await?
            }
            (None, Engine::Runc(runc)) => {
                runc.checkpoint_of(criu, &described.id, images, hooks, options)
                    .await?
            }
            (None, Engine::Crun(crun)) => {
                crun.checkpoint_of(criu, &described.id, images, hooks, options)
                    .await?
            }
        };
        let ended = report.dump.tasks == TaskState::Absent;
        if let Some(mut pin) = pin {
            pin.wanted = !ended;
        }
        let network = (keeps_network && ended).then(|| place.network.clone());
        report.left_behind.extend(left);
        let was_external = external.is_some();
        let mut notes = native_notes(&described, was_external, ended);
        if network.is_some()
            && !was_external
            && matches!(described.engine, EngineKind::Docker | EngineKind::Podman)
        {
            let engine = described.engine;
            notes.push(format!(
                "the network namespace is kept, but {engine} takes its own interfaces out of it, and the ports that it publishes \
                 away, as soon as the container has ended"
            ));
        }
        if let Some((record, live)) = external.filter(|_| ended) {
            // The container is gone, so nobody may interrupt what follows.
            let (external, of) = (self.clone(), place.clone());
            let removed =
                tokio::spawn(async move { external.remove_dumped(&of, &record, live.init).await });
            report.left_behind.extend(
                removed
                    .await
                    .unwrap_or_else(|error| vec![error.to_string()]),
            );
        }
        Ok(Checkpointed {
            report,
            name: described.name.clone(),
            rootfs: root,
            network,
            was_external,
            notes,
        })
    }

    /// A dumped process needs a moment to end.
    async fn remove_dumped(&self, place: &Place, record: &Record, init: ProcessId) -> Vec<String> {
        let ended = async {
            while init.is_alive() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        let limit = std::time::Duration::from_secs(10);
        if tokio::time::timeout(limit, ended).await.is_err() {
            return vec![format!(
                "its first process {} has been killed and has not ended: `criuctl external cleanup {}` removes the rest once it has",
                init.pid, record.id
            )];
        }
        self.remove(place, record)
            .await
            .unwrap_or_else(|kind| vec![kind.to_string()])
    }

    async fn live_in(&self, engine: &Engine, described: &Described) -> Found<Live> {
        let pid = match engine {
            Engine::Docker(docker) => {
                docker
                    .load(&described.id)
                    .await
                    .map_err(Error::into_kind)?
                    .pid
            }
            Engine::Podman(podman) => {
                podman
                    .load(&described.id)
                    .await
                    .map_err(Error::into_kind)?
                    .pid
            }
            Engine::Runc(runc) => runc.find(&described.id)?.live.map(|live| live.init.pid),
            Engine::Crun(crun) => crun.find(&described.id)?.live.map(|live| live.init.pid),
        };
        let not_running = || ErrorKind::NotRunning {
            status: described.status,
        };
        let init = pid.and_then(ProcessId::of).ok_or_else(not_running)?;
        Live::read(init, &[], std::iter::empty())
            .map_err(ErrorKind::system(format!("reading /proc/{}", init.pid)))
    }
}

/// What a runtime's own container is; none has to be there, as a checkpoint removes it.
fn of_runtime<E: super::runtime::Engine>(
    kind: EngineKind,
    name: &str,
    found: Found<super::runtime::Container<E>>,
) -> Found<Described> {
    if !is_valid_id(name) {
        return Err(ErrorKind::InvalidId);
    }
    let found = match found {
        Err(ErrorKind::Unknown { .. }) => None,
        found => Some(found?),
    };
    Ok(Described {
        engine: kind,
        id: name.to_owned(),
        name: name.to_owned(),
        status: found.as_ref().map_or(Status::Stopped, |found| found.status),
        storage: None,
        mounted_at: found.as_ref().map(|found| found.model.rootfs.clone()),
        directory: found.as_ref().map(|found| found.model.rootfs.clone()),
        bundle: found.map(|found| found.model.bundle),
        config: None,
        native: None,
    })
}

/// What the root of a container that is up is made of: by its engine, and by the kernel. What contradicts itself now would not
/// be put together again later.
fn root_of(described: &Described, live: &Live) -> Found<Option<Rootfs>> {
    let mount = live.mount_at(Path::new("/"));
    let home = described
        .storage
        .as_ref()
        .map(|storage| crate::rootfs::driver_home(&storage.root, &storage.driver));
    let by_kernel = match mount {
        // Only the whole of a union is one; a part of a file system is a directory of it.
        Some(mount) if mount.root == Path::new("/") => Rootfs::of_mount(
            &mount.fs_type,
            "",
            &mount.super_options.join(","),
            home.as_deref(),
        )?,
        _ => None,
    };
    // ZFS is named by what is mounted, which the engine tells as well.
    let by_kernel = by_kernel.filter(|root| !matches!(root, Rootfs::Zfs(_)));
    let by_engine = match &described.storage {
        Some(storage) => storage.rootfs()?,
        None => None,
    };
    Ok(by_kernel
        .or(by_engine)
        .or_else(|| described.directory.clone().map(Rootfs::Directory)))
}

fn native_notes(described: &Described, was_external: bool, ended: bool) -> Vec<String> {
    let (engine, name) = (described.engine, &described.name);
    let shown = match (engine, ended, was_external) {
        (EngineKind::Docker | EngineKind::Podman, true, false) => Some(format!(
            "`{engine} ps` does not show it and `{engine} ps --all` calls it exited, since its processes have ended"
        )),
        _ => None,
    };
    let native = match (engine, &described.native) {
        (EngineKind::Docker | EngineKind::Podman, None) if ended && !was_external => Some(format!(
            "to restore it as {engine}'s own: criuctl restore {engine}:{name} with --image-path; without {engine}: \
             criuctl external restore {engine}:{name}"
        )),
        (_, Some(why)) if ended => Some(format!("{engine}'s own restore does not do ({why})")),
        _ => None,
    };
    shown.into_iter().chain(native).collect()
}

/// Where the sources of bind mounts may be that are in memory and the container's alone by now, so that they go into its images:
/// anywhere, but not what this host has mounted as well.
fn own_memory(live: &Live, sources: impl IntoIterator<Item = (PathBuf, PathBuf)>) -> Vec<PathBuf> {
    let is_here = |device: &str| live.host_mounts.iter().any(|mount| mount.device == device);
    let is_own = |target: &PathBuf| {
        live.mount_at(target)
            .is_some_and(|mount| mount.fs_type == "tmpfs" && !is_here(&mount.device))
    };
    let own = sources.into_iter().filter(|(target, _)| is_own(target));
    own.map(|(_, source)| source).collect()
}

/// Whether a file stands for the network namespace that a container is in.
fn is_namespace_of(file: &Path, live: &Live) -> bool {
    use std::os::unix::fs::MetadataExt;
    let inode = super::mounts::open_namespace(file)
        .and_then(|namespace| fs::File::from(namespace).metadata())
        .map(|metadata| metadata.ino());
    inode.is_ok_and(|inode| live.namespaces.get(&NamespaceKind::Network) == Some(&inode))
}

/// A network namespace that is kept from before the dump on, and let go if the container is not dumped after all.
struct Pin {
    at: PathBuf,
    init: ProcessId,
    /// Whether it goes when this is dropped.
    wanted: bool,
}

impl Drop for Pin {
    fn drop(&mut self) {
        if self.wanted
            && let Err(error) = network::unpin(&self.at)
        {
            tracing::warn!(%error, at = %self.at.display(), "a network namespace that is not needed stays");
        }
    }
}

/// The caller's hooks, and what is noted once they have agreed.
struct Noting<'a, H> {
    inner: H,
    images: &'a ImagesDir,
    note: &'a Note,
    pin: Option<&'a Pin>,
}

impl<H: Hooks> Hooks for Noting<'_, H> {
    async fn notify(&mut self, notify: Notify) -> std::result::Result<Reply, HookError> {
        let before = matches!(notify.event, Event::PreDump);
        let reply = self.inner.notify(notify).await?;
        if !before || matches!(reply, Reply::Refuse(_)) {
            return Ok(reply);
        }
        // First, so that no earlier checkpoint looks complete with this note.
        super::runtime::beside::unlink(self.images, crate::image::INVENTORY)?;
        self.note
            .write(self.images)
            .map_err(ErrorKind::system("writing the note beside the images"))?;
        if let Some(pin) = self.pin {
            let namespace = PathBuf::from(format!("/proc/{}/ns/net", pin.init.pid));
            network::pin(&namespace, &pin.at)
                .map_err(ErrorKind::system("keeping the network namespace"))?;
        }
        Ok(reply)
    }
}
