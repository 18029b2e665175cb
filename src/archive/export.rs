//! Exports: a checkpoint becomes one file, or goes through a pipe.
//!
//! ```text
//! Parts ── staging directory ── dump ── post-dump: files of the container ┬─ [images, unless it runs on] ── accepted
//!                                                                        └─ dump done ── [images] ── statistics ── checksums ── renamed
//! ```
//!
//! What belongs to the container's file systems is written while the tasks are stopped, so that it is of one moment with their memory. Unless
//! they are to run on, so are the images: the tasks are ended only when all of it is in the archive. CRIU writes the
//! images into a directory beside the archive, where each is read once; it is removed in the end.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};
use serde::Serialize;

use super::tree::{Difference, Layers, Tree};
use super::write::{Compress, Stop, Writer, Written};
use crate::container::parts::{Changes, Parts};
use crate::container::{self, ProcessId, Underway, Undoing, runtime};
use crate::image::STATS_DUMP;
use crate::notify::{HookError, Hooks, Notify, Reply, Script};
use crate::options::DumpOptions;
use crate::{Criu, DumpReport, ImagesDir, TaskState};

/// How the directory of an export in progress is called.
const STAGING: &str = ".criuctl-export-";
/// What the last members may need: the statistics, and the checksums of one image.
const TAIL: u64 = 256 << 10;
const TAIL_PER_IMAGE: u64 = 256;

/// An archive that is to be written. Cheap to make; one for each checkpoint.
#[derive(Debug, Clone)]
pub struct Export {
    to: To,
    compress: Compress,
    rootfs: bool,
    volumes: bool,
    work_path: Option<PathBuf>,
    undoing: Undoing,
}

#[derive(Debug, Clone)]
enum To {
    File(PathBuf),
    Stream { stream: Arc<File>, scratch: PathBuf },
}

/// A finished export.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Exported<R> {
    /// What the checkpoint tells.
    #[serde(flatten)]
    pub report: R,
    /// What was written.
    #[serde(flatten)]
    pub written: Written,
    /// What is not in the archive, in words.
    pub notes: Vec<String>,
}

/// Why there is no archive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The container cannot be checkpointed, or its checkpoint failed.
    #[error(transparent)]
    Container(container::Error),
    /// The process tree's checkpoint failed.
    #[error(transparent)]
    Criu(crate::Error),
    /// The archive cannot be where it is to be. Nothing was done.
    #[error("{} cannot be the archive", path.display())]
    Destination {
        /// The archive, or the directory for what is only needed meanwhile.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The archive could not be written. There is none.
    #[error("the archive could not be written")]
    Write {
        /// What the tasks do: they run on.
        tasks: TaskState,
        /// What the kernel said.
        source: io::Error,
    },
    /// The tasks are ended, and the archive's end could not be written. The images are kept.
    #[error("the archive could not be finished; the images are in {}", images.display())]
    Unfinished {
        /// The images directory, which can be restored.
        images: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl From<container::Error> for ExportError {
    fn from(error: container::Error) -> Self {
        Self::Container(error)
    }
}

impl From<crate::Error> for ExportError {
    fn from(error: crate::Error) -> Self {
        Self::Criu(error)
    }
}

impl Export {
    /// Into a file, which appears when it is complete; one of that name is replaced then. It can be read by its owner only, because it
    /// holds the memory of the tasks. Images are kept in a directory beside it meanwhile.
    #[must_use]
    pub fn to_file(path: impl Into<PathBuf>) -> Self {
        Self::new(To::File(path.into()))
    }

    /// Into a pipe, a socket or an open file, from where it stands. Images are kept in a directory within `scratch` meanwhile.
    #[must_use]
    pub fn to_stream(stream: File, scratch: impl Into<PathBuf>) -> Self {
        Self::new(To::Stream {
            stream: Arc::new(stream),
            scratch: scratch.into(),
        })
    }

    fn new(to: To) -> Self {
        Self {
            to,
            compress: Compress::default(),
            rootfs: true,
            volumes: true,
            work_path: None,
            undoing: Undoing::new(),
        }
    }

    /// How it is compressed; with zstd, if nothing else is said.
    #[must_use]
    pub fn compress(mut self, compress: Compress) -> Self {
        self.compress = compress;
        self
    }

    /// `--ignore-rootfs`: what the container has changed in its root stays out.
    #[must_use]
    pub fn ignore_rootfs(mut self, on: bool) -> Self {
        self.rootfs = !on;
        self
    }

    /// `--ignore-volumes`: what is in its volumes stays out.
    #[must_use]
    pub fn ignore_volumes(mut self, on: bool) -> Self {
        self.volumes = !on;
        self
    }

    /// `--work-path`: where CRIU's log goes. Without it the log is removed with the images.
    #[must_use]
    pub fn work_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.work_path = Some(path.into());
        self
    }

    /// Completes when nothing is left of exports whose futures were dropped.
    pub async fn settled(&self) {
        self.undoing.done().await;
    }

    /// Checkpoints a process tree. The archive has its images and nothing else.
    ///
    /// # The tasks
    /// They run on, whatever fails, unless all of the archive but its last few members was written: see [`ExportError::Unfinished`].
    ///
    /// # Errors
    /// [`ExportError`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels; [`Export::settled`] tells when what was written is removed, [`Criu::settled`] when the
    /// tasks run again.
    pub async fn process(
        &self,
        criu: &Criu,
        pid: i32,
        hooks: impl Hooks,
        options: DumpOptions,
    ) -> Result<Exported<DumpReport>, ExportError> {
        let ends = options.ends_tasks();
        let work = self.begin(None, ends)?;
        let options = options.work_path(work.log_directory());
        let images = work.staging.images.clone();
        let dumped = criu
            .dump(pid, &images, work.hooks(hooks), options)
            .await
            .map_err(ExportError::Criu);
        work.end(dumped).await
    }

    /// Checkpoints a container of Podman's into an archive that `podman container restore --import` takes.
    ///
    /// # The container
    /// As [`Export::process`]. One that Podman removes at its end (`--rm`) is in the archive.
    ///
    /// # Errors
    /// [`ExportError`]; [`container::ErrorKind::Unsupported`] for a container without an image.
    ///
    /// # Cancel safety
    /// As [`Export::process`].
    #[cfg(feature = "engine")]
    pub async fn podman(
        &self,
        podman: &container::podman::Podman,
        criu: &Criu,
        name: &str,
        hooks: impl Hooks,
        options: runtime::CheckpointOptions,
    ) -> Result<Exported<runtime::CheckpointReport>, ExportError> {
        let ends = !options.leaves_running();
        let parts = podman.parts(name, !ends).await?;
        let work = self.begin(Some(parts), ends)?;
        let options = options.work_path(work.log_directory());
        let images = work.staging.images.clone();
        let hooks = work.hooks(hooks);
        let dumped = podman
            .checkpoint_for_archive(criu, name, &images, hooks, options)
            .await
            .map_err(ExportError::Container);
        work.end(dumped).await
    }

    fn begin(&self, parts: Option<Parts>, ends: bool) -> Result<Work, ExportError> {
        let (directory, target) = match &self.to {
            To::File(path) => {
                let failed = |source| ExportError::Destination {
                    path: path.clone(),
                    source,
                };
                let path = replaceable(path).map_err(failed)?;
                let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
                (directory, Some(path))
            }
            To::Stream { scratch, .. } => (scratch.clone(), None),
        };
        let failed = |source| ExportError::Destination {
            path: target.clone().unwrap_or_else(|| directory.clone()),
            source,
        };
        let staging = Staging::new(&directory, self.undoing.underway()).map_err(failed)?;
        let stop = Stop::default();
        let (file, writer) = match &self.to {
            To::File(_) => {
                let file = File::options()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(staging.archive())
                    .map_err(failed)?;
                let file = Arc::new(file);
                let writer = Writer::new(Arc::clone(&file), self.compress, stop.clone());
                (Some(file), writer)
            }
            To::Stream { stream, .. } => {
                let writer = Writer::new(Arc::clone(stream), self.compress, stop.clone());
                (None, writer)
            }
        };
        let writing = Writing {
            writer: writer.map_err(failed)?,
            file,
            parts,
            rootfs: self.rootfs,
            volumes: self.volumes,
            ends,
            notes: Vec::new(),
            images_written: false,
        };
        Ok(Work {
            log: self.work_path.clone(),
            target,
            staging: Arc::new(staging),
            shared: Arc::new(Mutex::new(Shared {
                writing: Some(writing),
                failure: None,
            })),
            _stopped: StopOnDrop(Some(stop.clone())),
            stop,
        })
    }
}

/// Where an archive may appear: nowhere, or in place of a file.
fn replaceable(path: &Path) -> io::Result<PathBuf> {
    let path = match fs::canonicalize(path) {
        Ok(path) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::path::absolute(path)?,
        Err(error) => return Err(error),
    };
    match fs::metadata(&path) {
        Ok(found) if found.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(found) if !found.is_file() => Err(io::Error::other(
            "it is a device, a pipe or a socket: write - and redirect standard output there",
        )),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(path),
    }
}

/// A directory for what is needed until the archive is complete. Dropped, it is removed.
#[derive(Debug)]
struct Staging {
    directory: PathBuf,
    images: ImagesDir,
    kept: Mutex<bool>,
    _underway: Underway,
}

impl Staging {
    fn new(within: &Path, underway: Underway) -> io::Result<Self> {
        sweep(within)?;
        let owner =
            ProcessId::own().ok_or_else(|| io::Error::other("/proc does not show this process"))?;
        let directory = tempfile::Builder::new()
            .prefix(&owner.to_name(STAGING))
            .tempdir_in(within)?;
        let images = ImagesDir::create(directory.path().join("images"))?;
        DirBuilder::new()
            .mode(0o700)
            .create(directory.path().join("work"))?;
        Ok(Self {
            directory: directory.keep(),
            images,
            kept: Mutex::new(false),
            _underway: underway,
        })
    }

    fn archive(&self) -> PathBuf {
        self.directory.join("archive")
    }

    fn work(&self) -> PathBuf {
        self.directory.join("work")
    }

    /// The images are all there is of the tasks.
    fn keep(&self) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if *self.kept.lock().unwrap_or_else(PoisonError::into_inner) {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tracing::warn!(directory = %self.directory.display(), %error, "left behind");
        }
    }
}

/// Removes what killed exports have left in a directory.
fn sweep(within: &Path) -> io::Result<()> {
    for entry in fs::read_dir(within)? {
        let entry = entry?;
        let owner = ProcessId::of_name(STAGING, &entry.file_name());
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        // Whose process is gone, and which was not kept on purpose.
        if owner.is_some_and(|owner| !owner.is_alive())
            && is_directory
            && !entry.path().join(KEPT).exists()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

/// Says that the images are all there is of the tasks.
const KEPT: &str = "kept";

/// An export in progress.
struct Work {
    log: Option<PathBuf>,
    target: Option<PathBuf>,
    staging: Arc<Staging>,
    shared: Arc<Mutex<Shared>>,
    stop: Stop,
    /// Nobody waits for it any more.
    _stopped: StopOnDrop,
}

struct StopOnDrop(Option<Stop>);

impl StopOnDrop {
    fn over(mut self) {
        self.0 = None;
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        if let Some(stop) = &self.0 {
            stop.now();
        }
    }
}

/// What hooks and the rest of the export have in common.
struct Shared {
    /// Not there while a thread has it.
    writing: Option<Writing>,
    failure: Option<io::Error>,
}

struct Writing {
    writer: Writer,
    /// The archive, if it is a file.
    file: Option<Arc<File>>,
    parts: Option<Parts>,
    rootfs: bool,
    volumes: bool,
    /// The tasks are ended by the dump.
    ends: bool,
    images_written: bool,
    notes: Vec<String>,
}

impl Work {
    fn log_directory(&self) -> PathBuf {
        self.log.clone().unwrap_or_else(|| self.staging.work())
    }

    fn hooks<H>(&self, inner: H) -> ExportHooks<H> {
        ExportHooks {
            inner,
            shared: Arc::clone(&self.shared),
            staging: Arc::clone(&self.staging),
            stop: self.stop.clone(),
        }
    }

    /// Completes the archive of a dump that has succeeded.
    async fn end<R: Tasks>(
        self,
        dumped: Result<R, ExportError>,
    ) -> Result<Exported<R>, ExportError> {
        let failure = lock(&self.shared).failure.take();
        let report = match (dumped, failure) {
            (Ok(report), None) => report,
            (Err(error), Some(source)) => {
                let tasks = error.tasks();
                return Err(ExportError::Write { tasks, source });
            }
            (Err(error), None) => return Err(self.without_log(error)),
            // A refusal that CRIU has not heard of.
            (Ok(report), Some(source)) => return Err(self.unfinished(report.tasks(), source)),
        };
        let writing = lock(&self.shared).writing.take();
        let staging = Arc::clone(&self.staging);
        let log = self.log_directory();
        let finished = match writing {
            Some(writing) => tokio::task::spawn_blocking(move || writing.finish(&staging, &log))
                .await
                .unwrap_or_else(|error| Err(io::Error::other(error))),
            None => Err(io::Error::other(
                "CRIU has not said that its images are written",
            )),
        };
        let finished = finished.and_then(|done| {
            if let Some(target) = &self.target {
                fs::rename(self.staging.archive(), target)?;
            }
            Ok(done)
        });
        match finished {
            Ok((written, notes)) => Ok(Exported {
                report,
                written,
                notes,
            }),
            Err(source) => Err(self.unfinished(report.tasks(), source)),
        }
    }

    fn unfinished(&self, tasks: TaskState, source: io::Error) -> ExportError {
        match tasks {
            TaskState::Absent => {
                let _ = fs::remove_file(self.staging.archive());
                let _ = File::create(self.staging.directory.join(KEPT));
                self.staging.keep();
                let images = self.staging.images.path().to_owned();
                ExportError::Unfinished { images, source }
            }
            tasks => ExportError::Write { tasks, source },
        }
    }

    /// The log that an error names goes with the images.
    fn without_log(&self, error: ExportError) -> ExportError {
        match (error, &self.log) {
            (ExportError::Criu(error), None) => ExportError::Criu(error.without_log()),
            (ExportError::Container(error), None) => ExportError::Container(error.without_log()),
            (error, _) => error,
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What knows what became of the tasks.
trait Tasks {
    fn tasks(&self) -> TaskState;
}

impl Tasks for DumpReport {
    fn tasks(&self) -> TaskState {
        self.tasks
    }
}

impl Tasks for runtime::CheckpointReport {
    fn tasks(&self) -> TaskState {
        self.dump.tasks
    }
}

impl Tasks for ExportError {
    fn tasks(&self) -> TaskState {
        match self {
            Self::Container(error) => error.criu().map_or(TaskState::Running, crate::Error::tasks),
            Self::Criu(error) => error.tasks(),
            Self::Destination { .. } => TaskState::Running,
            Self::Write { tasks, .. } => *tasks,
            Self::Unfinished { .. } => TaskState::Absent,
        }
    }
}

/// The caller's hooks, and what is written once they have agreed.
struct ExportHooks<H> {
    inner: H,
    shared: Arc<Mutex<Shared>>,
    staging: Arc<Staging>,
    stop: Stop,
}

impl<H: Hooks> Hooks for ExportHooks<H> {
    async fn notify(&mut self, notify: Notify) -> Result<Reply, HookError> {
        let script = notify.script();
        let reply = self.inner.notify(notify).await?;
        if matches!(reply, Reply::Refuse(_)) || script != Script::PostDump {
            return Ok(reply);
        }
        // One that was refused before has nothing to write with.
        let Some(mut writing) = lock(&self.shared).writing.take() else {
            return Ok(reply);
        };
        // When nobody waits for it any more, it stops soon.
        let waited = StopOnDrop(Some(self.stop.clone()));
        let (staging, stop) = (Arc::clone(&self.staging), self.stop.clone());
        let written = tokio::task::spawn_blocking(move || {
            let written = writing.while_stopped(&staging, &stop);
            written.map(|()| writing)
        })
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)));
        waited.over();
        match written {
            Ok(writing) => {
                lock(&self.shared).writing = Some(writing);
                Ok(reply)
            }
            Err(error) => {
                let refusal = format!("the archive could not be written: {error}");
                lock(&self.shared).failure = Some(error);
                Ok(Reply::Refuse(refusal))
            }
        }
    }
}

impl Writing {
    /// What must not change until it is written.
    fn while_stopped(&mut self, staging: &Staging, stop: &Stop) -> io::Result<()> {
        if let Some(parts) = self.parts.take() {
            self.parts_of_container(&parts, stop)?;
        }
        if self.ends {
            self.images(staging)?;
            self.writer.flush()?;
            self.reserve()?;
        }
        Ok(())
    }

    fn parts_of_container(&mut self, parts: &Parts, stop: &Stop) -> io::Result<()> {
        let writer = &mut self.writer;
        writer.bytes("config.dump", 0o600, &parts.config)?;
        writer.bytes("spec.dump", 0o600, &parts.spec)?;
        writer.bytes("network.status", 0o600, &parts.network)?;
        writer.directory("artifacts", 0o755)?;
        if let Some(shm) = &parts.shm {
            Tree::of(shm, stop)?.write(writer, "devshm-checkpoint.tar")?;
        }
        match &parts.changes {
            Changes::Overlay { upper, lower } if self.rootfs => {
                let layers = Layers {
                    upper: upper.clone(),
                    lower: lower.clone(),
                };
                let difference = Difference::of(&parts.root, &layers, &parts.made, stop)?;
                if !difference.tree.is_empty() {
                    difference.tree.write(writer, "rootfs-diff.tar")?;
                }
                if !difference.deleted.is_empty() {
                    let deleted = as_json(&difference.deleted)?;
                    writer.bytes("deleted.files", 0o600, &deleted)?;
                }
            }
            Changes::Unknown if self.rootfs => {
                let note = "what the container has changed in its root is not in the archive: it is not kept in an overlay";
                self.notes.push(note.into());
            }
            _ => {}
        }
        if self.volumes {
            for (name, path) in &parts.volumes {
                Tree::of(path, stop)?.write(writer, &format!("volumes/{name}.tar"))?;
            }
        }
        if let Some(log) = &parts.log
            && let Some(file) = present(File::open(log))?
        {
            writer.file("ctr.log", 0o600, &file)?;
        }
        Ok(())
    }

    fn images(&mut self, staging: &Staging) -> io::Result<()> {
        self.writer.directory("checkpoint", 0o700)?;
        let mut names = Vec::new();
        for entry in fs::read_dir(staging.images.path())? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                let name = entry.file_name();
                names.push(name.into_string().map_err(|_| io::ErrorKind::InvalidData)?);
            }
        }
        names.sort();
        for name in names {
            let file = File::open(staging.images.path().join(&name))?;
            self.writer
                .file(&format!("checkpoint/{name}"), 0o600, &file)?;
        }
        self.images_written = true;
        Ok(())
    }

    /// Makes sure of the room for what is written when the tasks are no longer there.
    fn reserve(&self) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let at = file.metadata()?.len();
        let room = TAIL + TAIL_PER_IMAGE * self.writer.members();
        match fallocate(file.as_fd(), FallocateFlags::KEEP_SIZE, at, room) {
            // A file system that cannot.
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            done => Ok(done?),
        }
    }

    /// What CRIU writes after all else, the checksums, and the end.
    fn finish(mut self, staging: &Staging, log: &Path) -> io::Result<(Written, Vec<String>)> {
        if !self.images_written {
            self.images(staging)?;
        }
        if let Some(file) = present(File::open(log.join(STATS_DUMP)))? {
            self.writer.file(STATS_DUMP, 0o600, &file)?;
        }
        let written = self.writer.finish()?;
        if let Some(file) = &self.file {
            // What was reserved and not needed.
            file.set_len(written.archive_bytes)?;
        }
        Ok((written, self.notes))
    }
}

fn present<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Paths as a JSON array. One that is not UTF-8 has no place in JSON.
fn as_json(paths: &[Vec<u8>]) -> io::Result<Vec<u8>> {
    let paths = paths
        .iter()
        .map(|path| std::str::from_utf8(path))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| io::Error::other("a file was deleted whose name is not UTF-8"))?;
    Ok(serde_json::to_vec(&paths)?)
}
