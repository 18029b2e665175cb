//! runc.
//!
//! What `runc checkpoint` and `runc restore` do, over this library's own RPC: a container that runc started is
//! checkpointed, and what is restored is a container to runc again (`list`, `state`, `exec`, `pause`, `kill`, `delete`,
//! `checkpoint`). Images go both ways: runc restores what was checkpointed here, and the other way round.
//!
//! Where a restore differs from runc's own, it does so on purpose: the loopback interface of a private network namespace
//! is up, cgroup v1 mounts show the container's own groups instead of the restorer's, masked files stay what they were.
//!
//! ```no_run
//! use criu_client::container::runc::{CheckpointOptions, RestoreOptions, Runc};
//! use criu_client::{Criu, ImagesDir};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let (criu, runc) = (Criu::find()?, Runc::new());
//! let images = ImagesDir::create("/var/tmp/web")?;
//! runc.checkpoint(&criu, "web", &images, (), CheckpointOptions::new()).await?;
//! runc.restore(&criu, "web", &images, "/srv/bundles/web", (), RestoreOptions::new().detach(true)).await?;
//! # Ok(())
//! # }
//! ```

mod config;
mod limits;
mod record;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

pub use super::runtime::{CheckpointOptions, CheckpointReport, RestoreOptions, Restored};

use super::cgroup::Hierarchies;
use super::error::ErrorKind;
use super::model::{EngineKind, Model, ProcessId};
use super::oci::CONFIG;
use super::runtime::Runtime;
use super::runtime::engine::{Adopted, Brief, Bundle, Draft, Habits, Source};
use record::Record;

/// runc's containers of one root.
pub type Runc = Runtime<RuncEngine>;

/// One of runc's containers as it was found.
pub type Container = super::runtime::Container<RuncEngine>;

/// What runc has for itself.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct RuncEngine;

/// A record that is to be.
#[derive(Debug)]
pub struct Drafted {
    /// runc's form of the configuration.
    config: Map<String, Value>,
    /// Whether the kernel has time namespaces.
    time_namespaces: bool,
}

impl Habits for RuncEngine {
    const KIND: EngineKind = EngineKind::Runc;
    const ROOT: &'static str = "/run/runc";
    const DIRECTORY_MODE: u32 = 0o711;
    const RECORD: &'static str = record::STATE;
    const SAVED_RECORD: &'static str = "criuctl-runc-state.json";
    const SAVED_CONFIG: &'static str = "criuctl-runc-config.json";
    const RESTORES_NETWORK: bool = false;

    type Record = Record;
    type Saved = Record;
    type Draft = Drafted;

    fn description(id: &str) -> String {
        format!("libcontainer container {id}")
    }

    fn config(model: &Model, _: &Path) -> PathBuf {
        model.bundle.join(CONFIG)
    }

    fn brief(directory: &Path, _: &Hierarchies) -> Result<Option<Brief>, ErrorKind> {
        record::brief(directory)
    }

    fn parse_saved(bytes: &[u8]) -> serde_json::Result<Record> {
        Record::parse(bytes)
    }

    fn draft(source: &Source<'_, Record>) -> Result<Draft<Drafted>, ErrorKind> {
        let Source {
            id, bundle, host, ..
        } = *source;
        let Bundle {
            path, spec, rootfs, ..
        } = bundle;
        let linux = spec.linux.clone().unwrap_or_default();
        let known = source.record.map(Record::uses_systemd);
        let scope = source.scope(Self::KIND, &linux.cgroups_path, known)?;
        let systemd = scope.is_some();
        let mut notes = Vec::new();
        let config = match own_config(source, systemd) {
            Some(config) => config,
            None => {
                let converted = config::convert(spec, path, rootfs, id, systemd)?;
                notes.extend(converted.notes);
                converted.config
            }
        };
        let cgroups = match &scope {
            None => host.paths(&linux.cgroups_path, id),
            Some(scope) => host.paths(&scope.path().to_string_lossy(), id),
        };
        // The model comes of the record that will be written, with a process to be filled in.
        let nobody = ProcessId {
            pid: 0,
            start_time: 0,
        };
        let stopped = Adopted {
            id,
            init: nobody,
            cgroups: &cgroups,
            stdio: source.descriptors.to_vec(),
            detached: true,
        };
        let terminal = spec
            .process
            .as_ref()
            .is_some_and(|process| process.terminal);
        let record = record::record(config.clone(), &stopped, false);
        let mut model = serde_json::to_vec(&record)
            .and_then(|bytes| Record::parse(&bytes))
            .map_err(|source| ErrorKind::Bundle {
                path: bundle.config.clone(),
                problem: "cannot be made into a record of runc's".into(),
                source: Some(source.into()),
            })
            .and_then(|record| super::runtime::engine::Record::model(&record, terminal))?;
        // `runc update` forgets what it was not told, though the groups keep it.
        model.limits.fill_gaps(&linux.resources.unwrap_or_default());
        Ok(Draft {
            model,
            record: Drafted {
                config,
                time_namespaces: Path::new("/proc/self/ns/time").exists(),
            },
            notes,
        })
    }

    fn write(directory: &Path, draft: &Drafted, adopted: &Adopted<'_>) -> io::Result<()> {
        let record = record::record(draft.config.clone(), adopted, draft.time_namespaces);
        record::write(directory, &record)
    }
}

/// The configuration as runc itself wrote it, with whatever it was updated to, if it is still that of this bundle.
fn own_config(source: &Source<'_, Record>, systemd: bool) -> Option<Map<String, Value>> {
    let (record, bundle) = (source.record?, source.bundle);
    let same = record.uses_systemd() == systemd
        && record.bundle() == bundle.path
        && record.rootfs() == bundle.rootfs
        && source.config.is_some()
        && source.config == serde_json::from_slice(&bundle.bytes).ok().as_ref();
    if !same {
        return None;
    }
    let Some(Value::Object(config)) = record.raw.get("config") else {
        return None;
    };
    let mut config = config.clone();
    // A group that was named after the container still is.
    if let Some(Value::Object(cgroups)) = config.get_mut("cgroups")
        && cgroups.get("name").and_then(Value::as_str) == Some(record.id())
    {
        cgroups.insert("name".into(), source.id.into());
    }
    Some(config)
}
