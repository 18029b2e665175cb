//! What an OCI runtime has for itself: its records, and the form in which it keeps a configuration.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::container::cgroup::{self, Hierarchies, Scope};
use crate::container::error::ErrorKind;
use crate::container::model::{EngineKind, Model, ProcessId, Status};
use crate::container::oci::Spec;

/// The pipe that a first process waits at until its container is started.
const FIFO: &str = "exec.fifo";

/// An OCI runtime that is known: runc or crun.
pub trait Engine: Habits {}

impl<E: Habits> Engine for E {}

/// Out of reach for implementations elsewhere.
pub trait Habits: Debug + Clone + Send + Sync + 'static {
    const KIND: EngineKind;
    /// Where it keeps its containers.
    const ROOT: &'static str;
    /// The permissions of a container's directory.
    const DIRECTORY_MODE: u32;
    /// The record's file in a container's directory.
    const RECORD: &'static str;
    /// The copies of record and configuration beside the images.
    const SAVED_RECORD: &'static str;
    const SAVED_CONFIG: &'static str;
    /// Whether its restore takes a private network namespace from the images, if it is in them, instead of an empty one that
    /// hooks fill.
    const RESTORES_NETWORK: bool;

    type Record: Record;
    /// A record as it was saved beside the images, as far as a restore cares.
    type Saved: Send + Sync;
    /// The record of a container to be restored, but for what only the restore tells.
    type Draft: Send + Sync;

    /// What the runtime has systemd say of a container's scope.
    fn description(id: &str) -> String;

    /// The configuration that the container was made by.
    fn config(model: &Model, directory: &Path) -> PathBuf;

    /// What of a container's record a list is made of; `None` when there is no such container.
    fn brief(directory: &Path, host: &Hierarchies) -> Result<Option<Brief>, ErrorKind>;

    fn parse_saved(bytes: &[u8]) -> serde_json::Result<Self::Saved>;

    /// A container to be made of a bundle.
    fn draft(source: &Source<'_, Self::Saved>) -> Result<Draft<Self::Draft>, ErrorKind>;

    /// Writes the record of a restored container into its directory.
    fn write(directory: &Path, draft: &Self::Draft, restored: &Adopted<'_>) -> io::Result<()>;
}

/// A runtime's record of a container.
pub trait Record: Debug + Clone + Send + Sync + Sized {
    /// Reads the record in a container's directory; `None` when there is no such container.
    fn read(directory: &Path) -> Result<Option<Self>, ErrorKind>;

    fn init(&self) -> ProcessId;

    /// What the standard descriptors were when the container was made.
    fn noted_stdio(&self) -> &[String];

    fn cgroups(&self) -> &BTreeMap<String, PathBuf>;

    fn is_rootless(&self) -> bool;

    fn model(&self, terminal: bool) -> Result<Model, ErrorKind>;
}

/// As much of a record as a list needs.
#[derive(Debug)]
pub struct Brief {
    pub(crate) init: ProcessId,
    /// Enough of its control groups to tell whether it is frozen.
    pub(crate) cgroups: BTreeMap<String, PathBuf>,
    pub(crate) bundle: PathBuf,
    pub(crate) rootless: bool,
}

/// Why a rootless container cannot be checkpointed.
pub(crate) const ROOTLESS: &str = "it is rootless, and the control groups, mounts and devices of such a container cannot be restored";

/// What the runtime would say of the container whose directory this is.
pub(crate) fn status(
    init: ProcessId,
    cgroups: &BTreeMap<String, PathBuf>,
    directory: &Path,
) -> Status {
    if !init.is_alive() {
        Status::Stopped
    } else if directory.join(FIFO).exists() {
        Status::Created
    } else if cgroup::freezer(cgroups).is_some_and(|(_, frozen)| frozen) {
        Status::Paused
    } else {
        Status::Running
    }
}

/// A bundle that a container is to be restored with.
#[derive(Debug)]
pub(crate) struct Bundle {
    pub(crate) path: PathBuf,
    pub(crate) config: PathBuf,
    pub(crate) spec: Spec,
    pub(crate) bytes: Vec<u8>,
    /// The root file system, wherever links lead.
    pub(crate) rootfs: PathBuf,
}

/// What is known of a container to be restored.
pub struct Source<'a, S> {
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Bundle,
    /// What a checkpoint by this library has saved.
    pub(crate) record: Option<&'a S>,
    pub(crate) config: Option<&'a Value>,
    pub(crate) host: &'a Hierarchies,
    pub(crate) descriptors: &'a [String],
    /// Whether the runtime is to use systemd, if somebody has said.
    pub(crate) systemd: Option<bool>,
    /// Whether one did when the container was checkpointed, as far as the images tell.
    pub(crate) had_systemd: Option<bool>,
}

impl<S> Source<'_, S> {
    /// The scope of a container whose runtime uses systemd. `known`: whether it did, as far as a record says. Without any word
    /// of it, a path of systemd's form tells; and one that has another form tells in any case.
    pub(crate) fn scope(
        &self,
        engine: EngineKind,
        cgroups_path: &str,
        known: Option<bool>,
    ) -> Result<Option<Scope>, ErrorKind> {
        let scope = match (cgroups_path, self.systemd.or(self.had_systemd).or(known)) {
            (_, Some(false)) | ("", None) => None,
            ("", Some(true)) => Some(Scope::new("", &engine.to_string(), self.id)),
            (path, _) => Scope::parse(path),
        };
        match (&scope, self.systemd) {
            (None, Some(true)) => Err(ErrorKind::Option {
                option: "systemd-cgroup",
                problem: format!(
                    "cgroupsPath {cgroups_path:?} of {} is not of the form slice:prefix:name, as it is with systemd",
                    self.bundle.config.display()
                ),
            }),
            _ => Ok(scope),
        }
    }
}

/// A container that is to be, and what cannot be as it was.
pub struct Draft<D> {
    pub(crate) model: Model,
    pub(crate) record: D,
    pub(crate) notes: Vec<String>,
}

/// What only the restore tells of a container.
#[derive(Debug, Clone)]
pub struct Adopted<'a> {
    pub(crate) id: &'a str,
    pub(crate) init: ProcessId,
    pub(crate) cgroups: &'a BTreeMap<String, PathBuf>,
    /// What the standard descriptors are.
    pub(crate) stdio: Vec<String>,
    pub(crate) detached: bool,
}

/// Reads a file of a container's directory; `None` when there is no such container.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, ErrorKind> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(source) => Err(ErrorKind::State {
            path: path.to_owned(),
            problem: "cannot be read".into(),
            source: Some(source.into()),
        }),
    }
}

/// Puts a file into a container's directory at once and whole.
pub(crate) fn put(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut file = tempfile::Builder::new()
        .prefix("criuctl-new-")
        .tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(directory.join(name))?;
    Ok(())
}

/// Now, as Go writes times.
pub(crate) fn now() -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    timestamp(now.as_secs(), now.subsec_nanos())
}

fn timestamp(seconds: u64, nanoseconds: u32) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March have their leap day at the end: 400 of them have 146097 days.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanoseconds:09}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(timestamp(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(timestamp(951_827_696, 5), "2000-02-29T12:34:56.000000005Z");
        assert_eq!(
            timestamp(1_798_761_599, 999_999_999),
            "2026-12-31T23:59:59.999999999Z"
        );
        assert_eq!(
            timestamp(4_107_542_400, 0),
            "2100-03-01T00:00:00.000000000Z"
        );
    }
}
