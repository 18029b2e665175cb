//! Handing a restored container back to its engine, and taking back what was made for a restore that failed.
//!
//! A restore makes things before CRIU is asked: the engine's directory for the container, a mount of the root file
//! system, mount points, control groups. A journal in `/run/criu-client` names each of them before it is made, so that
//! they can be undone
//! - when the restore fails,
//! - when its future is dropped, once CRIU has settled,
//! - and by the next restore of any container when this process was killed.
//!
//! The mount is not in the container's directory, where runc has its own: were we killed, the engine's `delete` would
//! empty that directory, and with it the root file system. A directory that was made here has a marker in it until the
//! restore is done; without the marker, or with another journal's, it is not ours to remove.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, RenameFlags, flock, renameat_with};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
#[cfg(feature = "engine")]
use tracing::Instrument;

use super::cgroup::systemd::{self, Invocation};
use super::cgroup::{self, Seat};
use super::error::in_words;
use super::model::{MountEntry, ProcessId};
use super::mounts;
#[cfg(feature = "engine")]
use super::{error::ErrorKind, http::ApiError, http::ApiProblem};
use crate::Criu;

/// Where the journals are.
pub(crate) const JOURNALS: &str = "/run/criu-client";
/// What marks a container's directory as made here.
const MARKER: &str = "criuctl-restore";
/// How long groups may take to become empty.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often they are looked at.
const LOOK: Duration = Duration::from_millis(5);

/// What was made, on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    /// Who is restoring.
    owner: ProcessId,
    /// The engine's directory for the container.
    container: PathBuf,
    /// The restored first process, once its record is written.
    init: Option<ProcessId>,
    /// Mount points below directories.
    points: Vec<(PathBuf, Vec<PathBuf>)>,
    /// Control groups, outermost first.
    cgroups: Vec<PathBuf>,
    /// A unit of systemd's.
    #[serde(default)]
    unit: Option<Unit>,
}

/// A unit that was started for a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Unit {
    name: String,
    /// What tells it from a later one of the same name. Without it, the unit may not be there yet: with nobody but the process
    /// that holds the place in it, it then ends with that.
    invocation: Option<Invocation>,
    /// The group that this process is in, for as long as there is need of it.
    seat: Option<PathBuf>,
}

/// The journal of one restore. Dropped, it stays on disk: [`Journal::undo`] and [`Journal::finish`] end it.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    entry: Entry,
    /// The process that holds the place in a unit.
    seat: Option<Seat>,
}

impl Journal {
    /// Begins the restore of a container whose directory will be `container`.
    pub(crate) fn begin(container: &Path) -> io::Result<Self> {
        Self::begin_in(Path::new(JOURNALS), container)
    }

    fn begin_in(journals: &Path, container: &Path) -> io::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(journals)?;
        let owner =
            ProcessId::own().ok_or_else(|| io::Error::other("/proc does not show this process"))?;
        let file = tempfile::Builder::new()
            .prefix("restore-")
            .suffix(".json")
            .tempfile_in(journals)?;
        let (_, path) = file.keep().map_err(|error| error.error)?;
        let journal = Self {
            path,
            entry: Entry {
                owner,
                container: container.to_owned(),
                init: None,
                points: Vec::new(),
                cgroups: Vec::new(),
                unit: None,
            },
            seat: None,
        };
        let prepared = journal
            .save()
            .and_then(|()| DirBuilder::new().mode(0o700).create(journal.root()));
        match prepared {
            Ok(()) => Ok(journal),
            Err(error) => {
                journal.undo();
                Err(error)
            }
        }
    }

    /// Where the root file system is mounted.
    pub(crate) fn root(&self) -> PathBuf {
        self.path.with_extension("")
    }

    fn save(&self) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new(JOURNALS));
        let mut file = tempfile::Builder::new()
            .prefix("new-")
            .tempfile_in(directory)?;
        file.write_all(&serde_json::to_vec(&self.entry)?)?;
        file.persist(&self.path)?;
        Ok(())
    }

    fn name(&self) -> Vec<u8> {
        self.path
            .file_name()
            .map(|name| name.as_encoded_bytes().to_vec())
            .unwrap_or_default()
    }

    /// Makes the container's directory, which reserves its name. `AlreadyExists`: somebody has it.
    pub(crate) fn reserve(&self, mode: u32) -> io::Result<()> {
        let container = &self.entry.container;
        let root = container.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(root)?;
        // Complete with its marker from its first moment.
        let made = tempfile::Builder::new()
            .prefix(".criuctl-")
            .tempdir_in(root)?;
        fs::write(made.path().join(MARKER), self.name())?;
        fs::set_permissions(
            made.path(),
            std::os::unix::fs::PermissionsExt::from_mode(mode),
        )?;
        let cwd = rustix::fs::CWD;
        renameat_with(cwd, made.path(), cwd, container, RenameFlags::NOREPLACE)?;
        // It is not there under this name any more.
        let _ = made.keep();
        Ok(())
    }

    /// Notes mount points that are about to be made below a directory.
    pub(crate) fn making_points(&mut self, below: &Path, points: Vec<PathBuf>) -> io::Result<()> {
        match points.is_empty() {
            true => Ok(()),
            false => {
                self.entry.points.push((below.to_owned(), points));
                self.save()
            }
        }
    }

    /// Notes control groups that are about to be made.
    pub(crate) fn making_cgroups(&mut self, groups: Vec<PathBuf>) -> io::Result<()> {
        self.entry.cgroups.extend(groups);
        self.save()
    }

    /// Notes a unit that is about to be started for the container, and takes a process for it, whose pid is returned. `group`:
    /// where the process can stand aside, once the unit is there.
    pub(crate) fn starting_unit(&mut self, name: &str, group: Option<PathBuf>) -> io::Result<u32> {
        self.entry.unit = Some(Unit {
            name: name.to_owned(),
            invocation: None,
            seat: group,
        });
        self.save()?;
        let seat = Seat::take()?;
        let pid = seat.pid();
        self.seat = Some(seat);
        Ok(pid)
    }

    /// Notes which unit it has become. In it, the process stands aside: no group can hand controllers down while it has
    /// processes of its own.
    pub(crate) fn started_unit(&mut self, invocation: Invocation) -> io::Result<()> {
        let Some(unit) = &mut self.entry.unit else {
            return Ok(());
        };
        unit.invocation = Some(invocation);
        let group = unit.seat.clone();
        self.save()?;
        if let (Some(seat), Some(group)) = (&self.seat, group) {
            fs::create_dir(&group)?;
            seat.move_to(&group)?;
        }
        Ok(())
    }

    /// The container's own processes have taken the place.
    pub(crate) fn leave_unit(&mut self) -> io::Result<()> {
        self.seat = None;
        let group = self.entry.unit.iter_mut().find_map(|unit| unit.seat.take());
        match group.map(fs::remove_dir) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Ends the unit that was started, and no other. What it has is the restore's.
    fn stop_unit(&mut self, left: &mut Vec<String>) {
        self.seat = None;
        if let Some(unit) = &self.entry.unit
            && let Some(invocation) = &unit.invocation
            && let Err(error) = systemd::stop_now(&unit.name, Some(invocation))
        {
            left.push(in_words(&error));
        }
    }

    /// Notes the restored process: while it lives, the container is there to stay.
    pub(crate) fn restored(&mut self, init: ProcessId) -> io::Result<()> {
        self.entry.init = Some(init);
        self.save()
    }

    /// Ends a restore that has succeeded: what only it needed goes, the container stays.
    pub(crate) fn finish(mut self) -> Vec<String> {
        let mut left = Vec::new();
        // Left already, unless this process has died before.
        if let Err(error) = self.leave_unit() {
            left.push(format!(
                "the group of a process in the container's unit: {error}"
            ));
        }
        self.remove_root(&mut left);
        if self.owns_container() {
            remove_file(&self.entry.container.join(MARKER), &mut left);
        }
        remove_file(&self.path, &mut left);
        left
    }

    /// Ends a restore that has failed: everything that it made goes, unless the container runs after all. Returns what
    /// could not be removed; as long as there is such, the journal stays. Blocks while processes of the restore are ending.
    pub(crate) fn undo(mut self) -> Vec<String> {
        if self.entry.init.is_some_and(ProcessId::is_alive) {
            return self.finish();
        }
        let mut left = Vec::new();
        self.remove_root(&mut left);
        self.stop_unit(&mut left);
        let ours = self.owns_container();
        // When somebody else has come to have the name, the groups and mount points are in use by that container.
        if ours || !self.entry.container.exists() {
            left.extend(remove_cgroups_in_time(&self.entry.cgroups));
            for (below, points) in self.entry.points.iter().rev() {
                mounts::remove_points(below, points);
            }
        }
        if ours {
            left.extend(remove_state(&self.entry.container));
        }
        // What is left is for a later sweep.
        if left.is_empty() {
            remove_file(&self.path, &mut left);
        }
        left
    }

    /// Unmounted before it is removed, and removed only if it is empty: what is mounted there is the container's.
    fn remove_root(&self, left: &mut Vec<String>) {
        let root = self.root();
        let removed = mounts::unbind_root(&root).and_then(|()| match fs::remove_dir(&root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        });
        if let Err(error) = removed {
            left.push(format!("the mount at {}: {error}", root.display()));
        }
    }

    fn owns_container(&self) -> bool {
        fs::read(self.entry.container.join(MARKER)).is_ok_and(|marker| marker == self.name())
    }
}

fn remove_file(path: &Path, left: &mut Vec<String>) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            left.push(format!("{}: {error}", path.display()))
        }
        _ => {}
    }
}

/// Removes an engine's directory of a container. Returns what could not be removed.
///
/// Never what is in directories there: a restore that was killed leaves the root file system mounted in one of them. With
/// any mount there, nothing is removed. Record and markers go last, so that what cannot be removed keeps its name.
pub(crate) fn remove_state(directory: &Path) -> Vec<String> {
    let failed = |path: &Path, error: io::Error| vec![format!("{}: {error}", path.display())];
    let real = match fs::canonicalize(directory) {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => return failed(directory, error),
    };
    let mounted =
        fs::read("/proc/self/mountinfo").and_then(|mounts| MountEntry::parse_all(&mounts));
    match mounted.map(|mounts| {
        let mut points = mounts.into_iter().map(|mount| mount.mount_point);
        points.find(|point| point.starts_with(&real))
    }) {
        Ok(None) => {}
        Ok(Some(point)) => {
            return vec![format!(
                "{}: something is mounted at {}, so nothing was removed; unmount it, then delete the container",
                real.display(),
                point.display()
            )];
        }
        Err(error) => return failed(Path::new("/proc/self/mountinfo"), error),
    }
    match remove_entries(&real) {
        Ok(()) => Vec::new(),
        Err((path, error)) => failed(&path, error),
    }
}

fn remove_entries(directory: &Path) -> Result<(), (PathBuf, io::Error)> {
    let of = |error| (directory.to_owned(), error);
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory).map_err(of)? {
        let entry = entry.map_err(of)?;
        let is_directory = entry.file_type().map_err(of)?.is_dir();
        entries.push((is_directory, entry.path()));
    }
    // Directories, which may not be empty, before anything is lost; the marker of a restore at the very end.
    let rank = |(is_directory, path): &(bool, PathBuf)| match path.file_name() {
        _ if *is_directory => 0,
        Some(name) if name == MARKER => 2,
        _ => 1,
    };
    entries.sort_by_key(rank);
    for (is_directory, path) in entries {
        let removed = match is_directory {
            true => {
                // A runtime's socket for sd_notify, which it keeps in a directory of its own: runc's, then crun's.
                for socket in ["notify.sock", "notify"] {
                    let _ = fs::remove_file(path.join(socket));
                }
                fs::remove_dir(&path)
            }
            false => fs::remove_file(&path),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err((path, error)),
            _ => {}
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(of(error)),
        _ => Ok(()),
    }
}

/// Removes groups, waiting for the processes in them that are ending.
pub(crate) fn remove_cgroups_in_time(groups: &[PathBuf]) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let remaining = cgroup::remove(groups.iter().cloned());
        if remaining.is_empty() || Instant::now() >= deadline {
            let text = |(path, error): (PathBuf, io::Error)| format!("{}: {error}", path.display());
            return remaining.into_iter().map(text).collect();
        }
        std::thread::sleep(LOOK);
    }
}

/// Undoes restores whose process is gone. Journals that others are working on stay.
pub(crate) fn sweep() -> io::Result<()> {
    sweep_in(Path::new(JOURNALS))
}

/// The engines' directories of the containers that [`sweep`] would see to.
pub(crate) fn dead() -> io::Result<Vec<PathBuf>> {
    let journals = match fs::read_dir(JOURNALS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        journals => journals?,
    };
    let mut containers = Vec::new();
    for journal in journals {
        let dead = entry_of(&journal?.path()).filter(|entry| !entry.owner.is_alive());
        containers.extend(dead.map(|entry| entry.container));
    }
    Ok(containers)
}

/// What a journal says. One that is not whole yet was just begun, and nothing made for it.
fn entry_of(path: &Path) -> Option<Entry> {
    let journal = path
        .extension()
        .is_some_and(|extension| extension == "json");
    let bytes = fs::read(path).ok().filter(|_| journal)?;
    serde_json::from_slice(&bytes).ok()
}

fn sweep_in(journals: &Path) -> io::Result<()> {
    let directory = match File::open(journals) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    flock(&directory, FlockOperation::LockExclusive)?;
    for entry in fs::read_dir(journals)? {
        let path = entry?.path();
        if let Some(entry) = entry_of(&path).filter(|entry| !entry.owner.is_alive()) {
            tracing::info!(container = %entry.container.display(), "undoing a restore whose process is gone");
            let seat = None;
            let left = Journal { path, entry, seat }.undo();
            if !left.is_empty() {
                tracing::warn!(?left, "some of it could not be undone");
            }
        }
    }
    Ok(())
}

/// Counts restores that are being undone in the background.
#[derive(Debug, Clone)]
pub(crate) struct Undoing(Arc<watch::Sender<usize>>);

impl Undoing {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    /// Does `work`, which an engine does not interrupt, in a task of its own, and waits for it; for `limit` at the most.
    ///
    /// Whatever becomes of the waiting, the work goes on, and [`Undoing::done`] waits for it. `socket` is the engine's.
    #[cfg(feature = "engine")]
    pub(crate) async fn uninterrupted<T: Send + 'static>(
        &self,
        socket: &Path,
        limit: Option<Duration>,
        work: impl Future<Output = T> + Send + 'static,
    ) -> std::result::Result<T, ErrorKind> {
        let underway = self.begin();
        let working = tokio::spawn(
            async move {
                let done = work.await;
                drop(underway);
                done
            }
            .in_current_span(),
        );
        let finished = match limit {
            None => working.await,
            Some(limit) => match tokio::time::timeout(limit, working).await {
                Ok(finished) => finished,
                Err(_) => {
                    return Err(ErrorKind::Api(Box::new(ApiError {
                        request: "the restore".into(),
                        socket: socket.to_owned(),
                        problem: ApiProblem::TimedOut(limit),
                    })));
                }
            },
        };
        finished.map_err(|error| {
            ErrorKind::system("waiting for the engine")(std::io::Error::other(error))
        })
    }

    /// Something that [`Undoing::done`] waits for until it is dropped.
    #[cfg(feature = "engine")]
    pub(crate) fn begin(&self) -> Underway {
        self.0.send_modify(|count| *count += 1);
        Underway(self.clone())
    }

    pub(crate) async fn done(&self) {
        // Fails only when the sender is gone, which `self` keeps.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// Something that is waited for.
#[cfg(feature = "engine")]
#[derive(Debug)]
pub(crate) struct Underway(Undoing);

#[cfg(feature = "engine")]
impl Drop for Underway {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

/// A restore in progress: ended by [`Guard::finish`] or [`Guard::undo`], undone in the background when it is dropped.
#[derive(Debug)]
pub(crate) struct Guard {
    journal: Option<Journal>,
    criu: Criu,
    undoing: Undoing,
}

impl Guard {
    pub(crate) fn new(journal: Journal, criu: &Criu, undoing: &Undoing) -> Self {
        Self {
            journal: Some(journal),
            criu: criu.clone(),
            undoing: undoing.clone(),
        }
    }

    pub(crate) fn journal(&mut self) -> Option<&mut Journal> {
        self.journal.as_mut()
    }

    pub(crate) fn finish(mut self) -> Vec<String> {
        self.journal.take().map(Journal::finish).unwrap_or_default()
    }

    /// Waits for CRIU's end and undoes everything, on a thread of its own so that a dropped future does not interrupt it.
    pub(crate) async fn undo(mut self) -> Vec<String> {
        let (done, undone) = tokio::sync::oneshot::channel();
        self.in_background(move |left| {
            // Nobody may be waiting any more.
            let _ = done.send(left);
        });
        undone.await.unwrap_or_default()
    }

    fn in_background(&mut self, done: impl FnOnce(Vec<String>) + Send + 'static) {
        let Some(journal) = self.journal.take() else {
            return done(Vec::new());
        };
        let (criu, undoing) = (self.criu.clone(), self.undoing.clone());
        undoing.0.send_modify(|count| *count += 1);
        let path = journal.path.clone();
        let work = move || {
            match tokio::runtime::Builder::new_current_thread().build() {
                Ok(runtime) => runtime.block_on(criu.settled()),
                Err(error) => tracing::warn!(%error, "no runtime to wait for criu's end with"),
            }
            done(journal.undo());
            undoing.0.send_modify(|count| *count -= 1);
        };
        if let Err(error) = std::thread::Builder::new()
            .name("container-undo".into())
            .spawn(work)
        {
            tracing::warn!(%error, journal = %path.display(), "no thread to undo a restore with: the next one will");
            self.undoing.0.send_modify(|count| *count -= 1);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.in_background(|left| {
            if !left.is_empty() {
                tracing::warn!(?left, "a cancelled restore could not be undone completely");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(directory: &Path) -> Journal {
        Journal::begin_in(
            &directory.join("journals"),
            &directory.join("containers/box"),
        )
        .unwrap()
    }

    #[test]
    fn a_failed_restore_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = begun(directory.path());
        journal.reserve(0o711).unwrap();
        assert!(
            directory
                .path()
                .join("containers/box")
                .join(MARKER)
                .is_file()
        );
        std::fs::create_dir(directory.path().join("rootfs")).unwrap();
        let rootfs = directory.path().join("rootfs");
        let points =
            mounts::make_point(&rootfs, Path::new("/a/b"), mounts::PointKind::Directory).unwrap();
        journal.making_points(&rootfs, points).unwrap();
        assert!(journal.undo().is_empty());
        assert_eq!(
            std::fs::read_dir(directory.path().join("containers"))
                .unwrap()
                .count(),
            0
        );
        assert_eq!(
            std::fs::read_dir(directory.path().join("journals"))
                .unwrap()
                .count(),
            0
        );
        assert_eq!(std::fs::read_dir(&rootfs).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_with_content_is_not_emptied_and_its_journal_stays() {
        let directory = tempfile::tempdir().unwrap();
        let journal = begun(directory.path());
        journal.reserve(0o711).unwrap();
        let container = directory.path().join("containers/box");
        std::fs::create_dir_all(container.join("criu-root/etc")).unwrap();
        std::fs::write(container.join("state.json"), "{}").unwrap();
        let path = journal.path.clone();
        assert_eq!(journal.undo().len(), 1);
        assert!(container.join("criu-root/etc").is_dir() && container.join(MARKER).is_file());
        assert!(container.join("state.json").is_file() && path.is_file());
        std::fs::remove_dir(container.join("criu-root/etc")).unwrap();
        assert!(remove_state(&container).is_empty());
        assert!(!container.exists());
    }

    #[test]
    fn a_name_can_be_reserved_once() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (begun(directory.path()), begun(directory.path()));
        first.reserve(0o711).unwrap();
        assert_eq!(
            second.reserve(0o711).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert!(second.undo().is_empty());
        assert!(
            directory.path().join("containers/box").is_dir(),
            "it is the other's"
        );
        assert!(first.finish().is_empty());
        assert_eq!(
            std::fs::read_dir(directory.path().join("containers/box"))
                .unwrap()
                .count(),
            0
        );
        assert_eq!(
            std::fs::read_dir(directory.path().join("containers"))
                .unwrap()
                .count(),
            1
        );
    }

    #[test]
    fn the_dead_are_swept_and_the_living_are_left() {
        let directory = tempfile::tempdir().unwrap();
        let journals = directory.path().join("journals");
        let mut dead = begun(directory.path());
        dead.reserve(0o711).unwrap();
        dead.entry.owner.start_time += 1;
        dead.save().unwrap();
        let living = begun(directory.path());
        std::fs::write(journals.join("restore-begun.json"), "").unwrap();
        sweep_in(&journals).unwrap();
        assert!(!directory.path().join("containers/box").exists());
        assert!(!dead.path.exists() && !dead.root().exists());
        assert!(living.path.exists() && living.root().exists());
        sweep_in(Path::new("/nonexistent")).unwrap();
    }

    #[test]
    fn a_container_that_lives_survives_the_death_of_its_restorer() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = begun(directory.path());
        journal.reserve(0o711).unwrap();
        journal.restored(ProcessId::own().unwrap()).unwrap();
        journal.entry.owner.start_time += 1;
        journal.save().unwrap();
        sweep_in(&directory.path().join("journals")).unwrap();
        let container = directory.path().join("containers/box");
        assert!(container.is_dir() && !container.join(MARKER).exists());
        assert!(!journal.root().exists());
    }
}
