//! A restore that the engine does not know of.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use tracing::Instrument;

use super::note::Note;
use super::place::{self, Place, Record};
use super::{Engine, External, Found, Network, network};
use crate::container::crun::Crun;
use crate::container::described::Described;
use crate::container::error::{Error, ErrorKind, Result};
use crate::container::model::{EngineKind, NamespaceKind, ProcessId, Status};
use crate::container::mounts;
use crate::container::oci::CONFIG;
use crate::container::podman::outside::DEVSHM;
use crate::container::runc::Runc;
use crate::container::runtime;
use crate::container::runtime::beside::{self, Kept};
use crate::image::Mountpoints;
use crate::notify::Hooks;
use crate::options::{InheritKey, JoinKind, JoinNamespace};
use crate::rootfs::{self, Kernel, MountRequest, Mounter, Origin, Rootfs};
use crate::{Criu, ImagesDir, RestoreReport};

/// What becomes of the standard descriptors that were pipes, or files from outside.
#[derive(Debug, Default)]
#[non_exhaustive]
pub enum Stdio {
    /// Nothing is read, and what is written is lost.
    #[default]
    Null,
    /// These three; they are the caller's to choose, and CRIU gets copies.
    Inherit([OwnedFd; 3]),
    /// What is written is appended to this file, which is made for its owner alone if it is missing.
    Log(PathBuf),
}

/// What a restore is told.
#[derive(Debug, Default)]
#[must_use]
pub struct RestoreOptions {
    network: Network,
    stdio: Stdio,
    bundle: Option<PathBuf>,
    runtime: runtime::RestoreOptions,
}

impl RestoreOptions {
    /// The network as it was, and no standard descriptors.
    pub fn new() -> Self {
        Self::default()
    }

    /// What becomes of the network.
    pub fn network(mut self, network: Network) -> Self {
        self.network = network;
        self
    }

    /// What becomes of the standard descriptors.
    pub fn stdio(mut self, stdio: Stdio) -> Self {
        self.stdio = stdio;
        self
    }

    /// A directory with the container's `config.json`, for images beside which there is none.
    pub fn bundle(mut self, bundle: impl Into<PathBuf>) -> Self {
        self.bundle = Some(bundle.into());
        self
    }

    /// What runtimes are told. It is always a detached restore, and standard descriptors are told by [`RestoreOptions::stdio`].
    pub fn runtime(mut self, options: runtime::RestoreOptions) -> Self {
        self.runtime = options;
        self
    }
}

/// A container that was restored externally.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Restored {
    /// Its full id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The engine that it was made by.
    pub engine: EngineKind,
    /// The runtime that has it now, and the root to give to that.
    pub runtime: EngineKind,
    /// See [`Restored::runtime`].
    pub runtime_root: PathBuf,
    /// Its first process.
    pub init: ProcessId,
    /// What its root file system is made of.
    pub rootfs: Rootfs,
    /// Who says so, the first of them the one that was gone by.
    pub rootfs_by: Vec<Origin>,
    /// The network namespace that it has joined; `None` for one of its own, or the host's.
    pub network: Option<PathBuf>,
    /// What CRIU's restore tells.
    pub report: RestoreReport,
    /// What there is to say.
    pub notes: Vec<String>,
    /// What only the restore needed and could not be removed.
    pub left_behind: Vec<String>,
}

/// Everything that is known before anything is made.
struct Ready {
    described: Described,
    runtime: EngineKind,
    config: Value,
    rootfs: Rootfs,
    rootfs_by: Vec<Origin>,
    /// Where the engine has it mounted already.
    mounted: Option<PathBuf>,
    network: Joined,
    network_left_out: bool,
    note: Option<Note>,
    notes: Vec<String>,
}

/// The network namespace of the restored container.
#[derive(Debug, PartialEq, Eq)]
enum Joined {
    /// As the images and the configuration have it, without a path.
    Own,
    /// One that is to be made at the place for it, since the images have none.
    Made,
    /// This one. The images may have one of their own, which is then not restored.
    File(PathBuf),
}

/// What was made for a restore. Dropped, it is undone once CRIU and the runtime's restore have settled.
struct Held {
    place: Option<Place>,
    /// A network namespace that was made here.
    made_network: bool,
    settled: Box<dyn Fn() -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> + Send>,
    external: External,
}

impl Held {
    fn undo(mut self) -> Vec<String> {
        self.place
            .take()
            .map(|place| undo(&place, self.made_network))
            .unwrap_or_default()
    }

    /// What only the restore needed goes.
    fn finish(mut self) -> Vec<String> {
        self.place
            .take()
            .map(|place| place.unmount())
            .unwrap_or_default()
    }
}

fn undo(place: &Place, made_network: bool) -> Vec<String> {
    let mut left = place.remove();
    if made_network && let Err(error) = network::unpin(&place.network) {
        left.push(format!("{}: {error}", place.network.display()));
    }
    left
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else {
            return;
        };
        let underway = self.external.undoing.begin();
        let (settled, made_network) = ((self.settled)(), self.made_network);
        let work = move || {
            match tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
            {
                Ok(runtime) => runtime.block_on(settled),
                Err(error) => tracing::warn!(%error, "no runtime to wait for a restore's end with"),
            }
            let left = undo(&place, made_network);
            if !left.is_empty() {
                tracing::warn!(?left, "a cancelled restore could not be undone completely");
            }
            drop(underway);
        };
        if let Err(error) = std::thread::Builder::new()
            .name("external-undo".into())
            .spawn(work)
        {
            tracing::warn!(%error, "no thread to undo a restore with: the next one will");
        }
    }
}

impl External {
    /// Restores a container from `images` without its engine, detached. `name` is its id, the beginning of it, or its name.
    ///
    /// Where the configuration comes from: beside the images; else the engine's bundle, or what [`RestoreOptions::bundle`]
    /// names; else, for Docker, what that tells of the container. Where the root file system comes from: the engine's record,
    /// the images, the log of the dump; those of them that there are must agree.
    ///
    /// # The container
    /// On every failure, refusal and cancellation before its tasks run there is none, and everything that was made for it is
    /// removed again: mounts, mount points, control groups, records.
    ///
    /// # Errors
    /// Everything that is wrong with images, root file system, configuration and options is found before anything is made:
    /// [`ErrorKind::Exists`], [`ErrorKind::Images`], [`ErrorKind::Rootfs`], [`ErrorKind::Bundle`], [`ErrorKind::Option`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels; [`External::settled`] tells when everything is undone.
    pub async fn restore(
        &self,
        engine: &Engine,
        criu: &Criu,
        name: &str,
        images: &ImagesDir,
        hooks: impl Hooks,
        options: RestoreOptions,
    ) -> Result<Restored> {
        let mut left_behind = Vec::new();
        self.restored(engine, criu, name, images, hooks, options, &mut left_behind)
            .instrument(engine.kind().span(name))
            .await
            .map_err(|kind| Error::new(engine.kind(), name, kind).with_left_behind(left_behind))
    }

    #[allow(clippy::too_many_arguments)]
    async fn restored(
        &self,
        engine: &Engine,
        criu: &Criu,
        name: &str,
        images: &ImagesDir,
        hooks: impl Hooks,
        options: RestoreOptions,
        left_behind: &mut Vec<String>,
    ) -> Found<Restored> {
        let left = self.sweep()?;
        let mut ready = self.ready(engine, name, images, &options).await?;
        let id = ready.described.id.clone();
        let place = self.place(&id);
        if let Some(record) = place.record().map_err(ErrorKind::system(self.reading()))? {
            // One that has ended makes room.
            ready
                .notes
                .push("what was kept of it, restored before and ended, was removed".to_owned());
            left_behind.extend(self.remove(&place, &record).await?);
        }
        let runtime = match ready.runtime {
            EngineKind::Crun => Either::Crun(Crun::with_root(self.root_of(EngineKind::Crun))),
            _ => Either::Runc(Runc::with_root(self.root_of(EngineKind::Runc))),
        };
        let descriptors = descriptors(options.stdio)?;
        let mut restore =
            with_descriptors(options.runtime, ready.note.as_ref(), descriptors)?.detach(true);
        if let Some(note) = &ready.note {
            restore = restore.unless_told(note.repeated);
        }

        let owner = ProcessId::own()
            .ok_or_else(|| ErrorKind::system("reading /proc")(io::ErrorKind::NotFound.into()))?;
        let record = Record {
            version: 1,
            engine: ready.described.engine,
            id: id.clone(),
            name: ready.described.name.clone(),
            runtime: ready.runtime,
            images: images.path().to_owned(),
            owner,
        };
        {
            let _lock = place::lock(&self.home).map_err(ErrorKind::system(self.reading()))?;
            place.begin(&record).map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => ErrorKind::Exists {
                    status: Status::Created,
                },
                _ => ErrorKind::system(format!("making {}", place.directory.display()))(source),
            })?;
        }
        let (waiting, criu_of) = (runtime.clone(), criu.clone());
        let mut held = Held {
            place: Some(place.clone()),
            made_network: false,
            settled: Box::new(move || {
                let (waiting, criu) = (waiting.clone(), criu_of.clone());
                Box::pin(async move {
                    criu.settled().await;
                    waiting.settled().await;
                })
            }),
            external: self.clone(),
        };
        let asked = async {
            let network = prepare(&ready, &place, images, &mut held)?;
            let restore = match &network {
                // Images of a container with a namespace of its own have one, which is not restored then.
                Some(path) if !ready.network_is_left_out() => restore.map_criu(|criu| {
                    criu.join_namespace(JoinNamespace::of_file(JoinKind::Net, path))
                }),
                _ => restore,
            };
            let bundle = place.bundle();
            let restored = match &runtime {
                Either::Runc(runc) => {
                    runc.restore(criu, &id, images, &bundle, hooks, restore)
                        .await
                }
                Either::Crun(crun) => {
                    crun.restore(criu, &id, images, &bundle, hooks, restore)
                        .await
                }
            };
            match restored {
                Ok(restored) => Ok((restored, network)),
                Err(error) => {
                    left_behind.extend(error.left_behind().iter().cloned());
                    Err(error.into_kind())
                }
            }
        };
        let (restored, network) = match asked.await {
            Ok(done) => done,
            Err(kind) => {
                left_behind.extend(held.undo());
                return Err(kind);
            }
        };
        let mut all_left = held.finish();
        all_left.extend(left);
        all_left.extend(restored.left_behind);
        let mut notes = ready.notes;
        notes.extend(restored.notes);
        Ok(Restored {
            name: ready.described.name,
            engine: ready.described.engine,
            runtime: ready.runtime,
            runtime_root: self.root_of(ready.runtime),
            init: restored.init,
            rootfs: ready.rootfs,
            rootfs_by: ready.rootfs_by,
            network,
            report: restored.report,
            notes,
            left_behind: all_left,
            id,
        })
    }

    /// Everything that can be found out before anything is made.
    async fn ready(
        &self,
        engine: &Engine,
        name: &str,
        images: &ImagesDir,
        options: &RestoreOptions,
    ) -> Found<Ready> {
        let described = self.describe(engine, name).await?;
        if let Some(record) = self
            .place(&described.id)
            .record()
            .map_err(ErrorKind::system(self.reading()))?
        {
            let init = match self.state_of(&record)? {
                Some((Status::Stopped, _)) => None,
                Some((_, live)) => live.map(|live| live.init),
                None => Some(record.owner),
            };
            if let Some(init) = init {
                return Err(ErrorKind::RunsExternally {
                    pid: init.pid,
                    runtime: record.runtime,
                    root: self.root_of(record.runtime),
                });
            }
        }
        match described.status {
            Status::Running | Status::Paused => {
                return Err(ErrorKind::Exists {
                    status: described.status,
                });
            }
            Status::Stopped | Status::Created => {}
        }
        beside::descriptors(images)?;
        beside::belongs(images, &described.id)?;
        let note = Note::read(images)?;
        if let Some(note) = note.as_ref().filter(|note| note.id != described.id) {
            return Err(ErrorKind::Images {
                path: images.path().to_owned(),
                problem: format!(
                    "are images of another container, {}:{}: give the directory that this one was checkpointed into",
                    note.engine, note.id
                ),
                source: None,
            });
        }
        let kept = Kept::read(images)?;
        let is_told =
            options.bundle.is_none() && kept.config.is_none() && described.bundle.is_none();
        let (runtime, mut config) = match (&options.bundle, kept.config) {
            (Some(bundle), kept) => {
                let runtime = kept.map_or(
                    self.usual_runtime(engine, &described).await?,
                    |(runtime, _)| runtime,
                );
                (runtime, read_config(bundle)?)
            }
            (None, Some((runtime, config))) => (runtime, config),
            (None, None) => {
                let runtime = self.usual_runtime(engine, &described).await?;
                let config = match (&described.bundle, &described.config) {
                    (Some(bundle), _) => read_config(bundle)?,
                    (None, Some(config)) => config.clone(),
                    (None, None) => {
                        return Err(ErrorKind::Images {
                            path: images.path().to_owned(),
                            problem: "have no configuration beside them, and nobody tells it: give the bundle, a \
                                      directory with the container's config.json"
                                .into(),
                            source: None,
                        });
                    }
                };
                (runtime, config)
            }
        };
        let mountpoints = mountpoints(images)?;
        if is_told {
            in_its_groups(&mut config, &described.id, mountpoints.as_ref());
        }
        let (rootfs, rootfs_by) = rootfs_of(
            &described,
            note.as_ref(),
            mountpoints.as_ref(),
            &config,
            options.bundle.as_deref(),
            images,
        )?;
        rootfs.is_whole()?;
        let mounted = mounted_already(&described, note.as_ref(), &rootfs)?;
        let left_out = kept
            .network_left_out
            .unwrap_or(network_path(&config).is_some());
        let network = network_of(
            &options.network,
            &self.place(&described.id),
            &config,
            left_out,
        )?;
        let mut notes = Vec::new();
        if matches!(described.engine, EngineKind::Docker | EngineKind::Podman) {
            let engine = described.engine;
            notes.push(format!(
                "{engine} does not know that it runs: `{engine} ps --all` goes on calling it exited, and stop, exec and logs do not \
                 work. Do not start it there before this one has ended: both would write to one root file system"
            ));
            if described.native.is_none() {
                notes.push(format!(
                    "{engine} could restore it as its own: criuctl restore {engine}:{} --image-path {}",
                    described.name,
                    images.path().display()
                ));
            }
        }
        Ok(Ready {
            described,
            runtime,
            config,
            rootfs,
            rootfs_by,
            mounted,
            network,
            network_left_out: left_out,
            note,
            notes,
        })
    }

    async fn usual_runtime(&self, engine: &Engine, described: &Described) -> Found<EngineKind> {
        match engine {
            Engine::Podman(podman) => podman.runtime_of(&described.id).await,
            Engine::Crun(_) => Ok(EngineKind::Crun),
            _ => Ok(EngineKind::Runc),
        }
    }
}

#[derive(Debug, Clone)]
enum Either {
    Runc(Runc),
    Crun(Crun),
}

impl Either {
    async fn settled(&self) {
        match self {
            Self::Runc(runc) => runc.settled().await,
            Self::Crun(crun) => crun.settled().await,
        }
    }
}

impl Ready {
    /// Whether the images have no network namespace, but ask for one.
    fn network_is_left_out(&self) -> bool {
        self.network_left_out
    }
}

fn read_config(bundle: &Path) -> Found<Value> {
    let path = bundle.join(CONFIG);
    let problem =
        |problem: &str, source: Box<dyn std::error::Error + Send + Sync>| ErrorKind::Bundle {
            path: path.clone(),
            problem: problem.to_owned(),
            source: Some(source),
        };
    let bytes = fs::read(&path).map_err(|error| {
        let text =
            "cannot be read: give the bundle, the directory with the container's config.json";
        problem(text, error.into())
    })?;
    serde_json::from_slice(&bytes).map_err(|error| problem("is no configuration", error.into()))
}

/// The mounts of the container's first process. With several mount namespaces in the images it is the first of them, since CRIU
/// numbers them in the order of the tasks.
fn mountpoints(images: &ImagesDir) -> Found<Option<Mountpoints>> {
    use std::os::fd::AsFd;
    let entries = fs::read_dir(format!("/proc/self/fd/{}", images.as_fd().as_raw_fd())).map_err(
        ErrorKind::system(format!("listing {}", images.path().display())),
    )?;
    let number = |name: &str| -> Option<u32> {
        name.strip_prefix("mountpoints-")?
            .strip_suffix(".img")?
            .parse()
            .ok()
    };
    let first = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            Some((number(&name)?, name))
        })
        .min();
    let Some((_, name)) = first else {
        return Ok(None);
    };
    Mountpoints::read(images.as_fd(), &name)
        .map(Some)
        .map_err(|source| ErrorKind::Images {
            path: images.path().join(&name),
            problem: "cannot be read".into(),
            source: Some(source.into()),
        })
}

/// An engine does not tell a parent of control groups that its daemon was started with, but the mounts of them in the images do.
fn in_its_groups(config: &mut Value, id: &str, mountpoints: Option<&Mountpoints>) {
    let told = config["linux"]["cgroupsPath"].as_str();
    if told.is_none_or(|path| path.contains(':')) {
        return;
    }
    let mut mounts = mountpoints
        .into_iter()
        .flat_map(Mountpoints::mounts)
        .filter(|mount| mount.mount_point.starts_with("/sys/fs/cgroup"));
    if let Some(mount) = mounts.find(|mount| mount.root.file_name().is_some_and(|name| name == id))
    {
        config["linux"]["cgroupsPath"] = Value::from(mount.root.to_string_lossy());
    }
}

/// What the root is made of, and who says so.
fn rootfs_of(
    described: &Described,
    note: Option<&Note>,
    mountpoints: Option<&Mountpoints>,
    config: &Value,
    given: Option<&Path>,
    images: &ImagesDir,
) -> Found<(Rootfs, Vec<Origin>)> {
    let home = described
        .storage
        .as_ref()
        .map(|storage| rootfs::driver_home(&storage.root, &storage.driver));
    let by_engine = match &described.storage {
        Some(storage) => storage.rootfs()?,
        None => None,
    };
    let dumped = mountpoints.and_then(Mountpoints::root);
    let by_mounts = match dumped {
        Some(root) if root.root == Path::new("/") => match &root.fs_type {
            Some(fs_type) => {
                Rootfs::of_mount(fs_type, &root.source, &root.options, home.as_deref())?
            }
            None => None,
        },
        _ => None,
    };
    let by_note = note.and_then(|note| note.root.clone());
    let by_log = match beside::read(images, "dump.log")? {
        Some(log) => rootfs::of_log(&String::from_utf8_lossy(&log), home.as_deref())?,
        None => None,
    };
    let found = [
        (Origin::Engine, by_engine),
        (Origin::Images, by_note),
        (Origin::Images, by_mounts),
        (Origin::Log, by_log),
    ];
    let found: Vec<(Origin, Rootfs)> = found
        .into_iter()
        .filter_map(|(origin, root)| Some((origin, root?)))
        .collect();
    let mut origins: Vec<Origin> = found.iter().map(|(origin, _)| *origin).collect();
    origins.dedup();
    let Some(((first, root), others)) = found.split_first() else {
        // A directory that is there anyway, as those of runtimes' bundles are.
        let bundle = given
            .or(described.bundle.as_deref())
            .unwrap_or(Path::new(""));
        let path = config["root"]["path"]
            .as_str()
            .map(|path| bundle.join(path))
            .filter(|path| path.is_absolute() || given.is_some())
            .and_then(|path| std::path::absolute(path).ok());
        return match path {
            Some(path) if path.is_dir() => Ok((Rootfs::Directory(path), Vec::new())),
            Some(path) => Err(rootfs::Error::Missing {
                role: "the directory",
                path,
            }
            .into()),
            None => Err(rootfs::Error::Incomplete(
                "neither the engine nor the images nor the log of the dump say what the root file system is made of, and no \
                 bundle is given"
                    .into(),
            )
            .into()),
        };
    };
    let mut root = root.clone();
    // A layer that is gone is told as such, and not as another one.
    root.is_whole()?;
    for (origin, other) in others {
        root.agrees_with(*first, other, *origin)?;
        root.complete_from(other);
    }
    Ok((root, origins))
}

/// Where the engine has the root mounted, or somebody else at its place. Two mounts of one upper layer destroy it.
fn mounted_already(
    described: &Described,
    note: Option<&Note>,
    root: &Rootfs,
) -> Found<Option<PathBuf>> {
    let looking = || ErrorKind::system("reading /proc/self/mountinfo");
    let noted = note.and_then(|note| note.mounted_at.as_ref());
    if let Some(at) = described.mounted_at.as_ref().or(noted)
        && let Some(mount) = place::mounted_on(at).map_err(looking())?
        && mount.fs_type == root.fs_type()
    {
        return Ok(Some(at.clone()));
    }
    let Rootfs::Overlay(overlay) = root else {
        return Ok(None);
    };
    let Some(upper) = overlay.upper() else {
        return Ok(None);
    };
    match place::writer_of(&upper).map_err(looking())? {
        Some(at) => Err(rootfs::Error::InUse { upper, at }.into()),
        None => Ok(None),
    }
}

/// The file of the network namespace in a configuration.
fn network_path(config: &Value) -> Option<PathBuf> {
    let namespaces = config["linux"]["namespaces"].as_array()?;
    let network = namespaces
        .iter()
        .find(|namespace| namespace["type"] == NamespaceKind::Network.oci())?;
    let path = network["path"].as_str().filter(|path| !path.is_empty())?;
    Some(path.into())
}

fn network_of(wanted: &Network, place: &Place, config: &Value, is_left_out: bool) -> Found<Joined> {
    let refused = |problem: String| ErrorKind::Option {
        option: "network",
        problem,
    };
    let namespaces = config["linux"]["namespaces"].as_array();
    let has_one = namespaces.is_some_and(|namespaces| {
        namespaces
            .iter()
            .any(|namespace| namespace["type"] == NamespaceKind::Network.oci())
    });
    if !has_one {
        return match wanted {
            Network::AsItWas => Ok(Joined::Own),
            _ => Err(refused(
                "the container has the host's network, and can get no other: leave it out".into(),
            )),
        };
    }
    let configured = network_path(config);
    let is_namespace = |path: &Path| mounts::open_namespace(path).is_ok();
    let kept = is_namespace(&place.network).then(|| place.network.clone());
    let shared = configured.filter(|path| is_namespace(path));
    let empty = || match is_left_out {
        true => Joined::Made,
        false => Joined::Own,
    };
    match wanted {
        Network::Empty => Ok(empty()),
        Network::AsItWas => Ok(kept.or(shared).map_or_else(empty, Joined::File)),
        Network::Keep => match kept {
            Some(path) => Ok(Joined::File(path)),
            None => Err(refused(format!(
                "keep: the checkpoint has not kept it in {}: checkpoint with --network keep as well, or restore with \
                 --network empty",
                place.network.display()
            ))),
        },
        Network::Join(path) => match mounts::open_namespace(path) {
            Ok(_) => Ok(Joined::File(path.clone())),
            Err(error) => Err(refused(format!(
                "{} is no network namespace ({error}): give a file such as /proc/PID/ns/net or /run/netns/NAME",
                path.display()
            ))),
        },
    }
}

/// The three descriptors that are offered in place of pipes and of files from outside.
fn descriptors(stdio: Stdio) -> Found<[OwnedFd; 3]> {
    let null = || File::options().read(true).write(true).open("/dev/null");
    let opened = match stdio {
        Stdio::Inherit(descriptors) => return Ok(descriptors),
        Stdio::Null => (|| Ok([null()?, null()?, null()?]))(),
        Stdio::Log(path) => {
            let log = File::options()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(&path);
            let log = log.map_err(|error| ErrorKind::Option {
                option: "stdio",
                problem: format!("{} cannot be written to: {error}", path.display()),
            })?;
            (|| Ok([null()?, log.try_clone()?, log]))()
        }
    };
    opened
        .map(|files: [File; 3]| files.map(OwnedFd::from))
        .map_err(ErrorKind::system("opening /dev/null"))
}

/// Where the container had a pipe, the runtime's restore puts a descriptor; where it had a file from outside, CRIU is given one
/// by the name that the checkpoint noted.
fn with_descriptors(
    mut options: runtime::RestoreOptions,
    note: Option<&Note>,
    descriptors: [OwnedFd; 3],
) -> Found<runtime::RestoreOptions> {
    let mut given = Vec::new();
    for (number, file) in note.iter().flat_map(|note| &note.stdio) {
        // One file may be several of them.
        if given.contains(file) {
            continue;
        }
        given.push(*file);
        if let Some(fd) = descriptors.get(*number) {
            if rustix::fs::tell(fd).is_err() {
                return Err(ErrorKind::Option {
                    option: "stdio",
                    problem: format!(
                        "descriptor {number} was a file when the container was checkpointed, and what is to take its place is \
                         none: choose null or a log file"
                    ),
                });
            }
            let fd = fd
                .try_clone()
                .map_err(ErrorKind::system("copying a descriptor"))?;
            let key = InheritKey::File {
                mount_id: file.mount_id,
                inode: file.inode,
            };
            options = options.map_criu(|criu| criu.inherit_fd(key, fd));
        }
    }
    let [stdin, stdout, stderr] = descriptors;
    Ok(options.stdin(stdin).stdout(stdout).stderr(stderr))
}

/// Makes what the runtime's restore finds: the root, shared memory, the network, the bundle. Returns the network namespace
/// that is joined.
fn prepare(
    ready: &Ready,
    place: &Place,
    images: &ImagesDir,
    held: &mut Held,
) -> Found<Option<PathBuf>> {
    let root = match &ready.mounted {
        Some(at) => at.clone(),
        None => ready.rootfs.mount_at(&place.root(), &mut Kernel)?,
    };
    let network = match &ready.network {
        Joined::Own => None,
        Joined::File(path) => Some(path.clone()),
        Joined::Made => {
            network::make(&place.network)
                .map_err(ErrorKind::system("making a network namespace"))?;
            held.made_network = true;
            Some(place.network.clone())
        }
    };
    let mut config = ready.config.clone();
    configure(&mut config, ready, &root, network.as_deref())?;
    if ready.described.engine == EngineKind::Podman {
        take_in_shm(&mut config, place, images)?;
    }
    place.configure(&config).map_err(ErrorKind::system(format!(
        "writing below {}",
        place.bundle().display()
    )))?;
    Ok(network)
}

/// The configuration for this root and network, without what only the engine could do.
fn configure(config: &mut Value, ready: &Ready, root: &Path, network: Option<&Path>) -> Found<()> {
    config["root"]["path"] = Value::from(root.to_string_lossy());
    // Those of engines talk to the engine, which expects no such call.
    if matches!(
        ready.described.engine,
        EngineKind::Docker | EngineKind::Podman
    ) && let Some(config) = config.as_object_mut()
    {
        config.remove("hooks");
    }
    for namespace in config["linux"]["namespaces"]
        .as_array_mut()
        .into_iter()
        .flatten()
    {
        if namespace["type"] != NamespaceKind::Network.oci() {
            continue;
        }
        if let Some(namespace) = namespace.as_object_mut() {
            match network {
                Some(path) => namespace.insert("path".into(), Value::from(path.to_string_lossy())),
                None => namespace.remove("path"),
            };
        }
    }
    // Links are followed now: when the container runs, its root is not mounted here any more.
    for mount in config["mounts"].as_array_mut().into_iter().flatten() {
        let Some(destination) = mount["destination"].as_str().map(PathBuf::from) else {
            continue;
        };
        let target = mounts::resolve_in(root, &destination).map_err(ErrorKind::system(format!(
            "following {} below {}",
            destination.display(),
            root.display()
        )))?;
        mount["destination"] = Value::from(target.to_string_lossy());
    }
    Ok(())
}

/// Podman's shared memory is a mount of its own making, whose content a checkpoint packs. It is unpacked into a file system in
/// memory, which is the container's alone once the restore has unmounted it here.
fn take_in_shm(config: &mut Value, place: &Place, images: &ImagesDir) -> Found<()> {
    use std::os::fd::AsFd;
    const SHM: &str = "/dev/shm";
    if !images.contains(DEVSHM) {
        return Ok(());
    }
    let mount = config["mounts"]
        .as_array_mut()
        .into_iter()
        .flatten()
        .find(|mount| mount["destination"] == SHM);
    let Some(mount) = mount else {
        return Ok(());
    };
    mount["source"] = Value::from(place.shm().to_string_lossy());
    let request = MountRequest {
        fs_type: "tmpfs",
        source: "shm".into(),
        options: "mode=1777".into(),
        appended: Vec::new(),
        base: None,
        at: place.shm(),
    };
    let unpack = || {
        Kernel.mount(&request)?;
        let archive = format!("/proc/self/fd/{}/{DEVSHM}", images.as_fd().as_raw_fd());
        let mut archive = tar::Archive::new(File::open(archive)?);
        archive.set_preserve_permissions(true);
        archive.set_preserve_ownerships(true);
        archive.set_preserve_mtime(true);
        // Refuses names that lead out of it.
        archive.unpack(place.shm())
    };
    unpack().map_err(ErrorKind::system("unpacking shared memory"))
}
