//! crun.
//!
//! What `crun checkpoint` and `crun restore` do, over this library's own RPC: a container that crun started is
//! checkpointed, and what is restored is a container to crun again (`list`, `state`, `exec`, `pause`, `kill`, `delete`,
//! `checkpoint`). Images go both ways: crun restores what was checkpointed here, and the other way round.
//!
//! As with crun, a private network namespace is in the images, and no hooks run at a restore. Where a restore differs from
//! crun's own, it does so on purpose: cgroup v1 mounts show the container's own groups instead of the restorer's, and limits
//! are those of the configuration from the first moment.
//!
//! ```no_run
//! use criu_client::container::crun::{CheckpointOptions, Crun, RestoreOptions};
//! use criu_client::{Criu, ImagesDir};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let (criu, crun) = (Criu::find()?, Crun::new());
//! let images = ImagesDir::create("/var/tmp/web")?;
//! crun.checkpoint(&criu, "web", &images, (), CheckpointOptions::new()).await?;
//! crun.restore(&criu, "web", &images, "/srv/bundles/web", (), RestoreOptions::new().detach(true)).await?;
//! # Ok(())
//! # }
//! ```

mod record;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

pub use super::runtime::{CheckpointOptions, CheckpointReport, RestoreOptions, Restored};

use super::cgroup::Hierarchies;
use super::error::ErrorKind;
use super::model::{EngineKind, Model};
use super::oci::CONFIG;
use super::runtime::Runtime;
use super::runtime::engine::{self, Adopted, Brief, Draft, Habits, Source};
use record::{Record, Status};

/// crun's containers of one root.
pub type Crun = Runtime<CrunEngine>;

/// One of crun's containers as it was found.
pub type Container = super::runtime::Container<CrunEngine>;

/// What crun has for itself.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct CrunEngine;

/// A record that is to be.
#[derive(Debug)]
pub struct Drafted {
    status: Status,
    /// The bundle's configuration, of which crun keeps a copy.
    config: Vec<u8>,
}

impl Habits for CrunEngine {
    const KIND: EngineKind = EngineKind::Crun;
    const ROOT: &'static str = "/run/crun";
    const DIRECTORY_MODE: u32 = 0o700;
    const RECORD: &'static str = record::STATUS;
    const SAVED_RECORD: &'static str = "criuctl-crun-status.json";
    const SAVED_CONFIG: &'static str = "criuctl-crun-config.json";
    const RESTORES_NETWORK: bool = true;

    type Record = Record;
    type Saved = Status;
    type Draft = Drafted;

    fn description(_: &str) -> String {
        "libcrun container".to_owned()
    }

    fn config(_: &Model, directory: &Path) -> PathBuf {
        directory.join(CONFIG)
    }

    fn brief(directory: &Path, host: &Hierarchies) -> Result<Option<Brief>, ErrorKind> {
        record::brief(directory, host)
    }

    fn parse_saved(bytes: &[u8]) -> serde_json::Result<Status> {
        serde_json::from_slice(bytes)
    }

    fn draft(source: &Source<'_, Status>) -> Result<Draft<Drafted>, ErrorKind> {
        let bundle = source.bundle;
        let linux = bundle.spec.linux.as_ref();
        let path = linux.map_or("", |linux| linux.cgroups_path.as_str());
        let known = source.record.map(|saved| saved.systemd_cgroup);
        let scope = source.scope(Self::KIND, path, known)?;
        let mut notes = Vec::new();
        let cgroups = match &scope {
            Some(scope) => {
                let mut group = scope.path();
                group.extend(record::subgroup(&bundle.spec.annotations, source.host));
                source.host.paths(&group.to_string_lossy(), source.id)
            }
            None if source.record.is_some_and(Status::has_no_cgroup) => Default::default(),
            // A relative path counts from the top as well.
            None if path.is_empty() => source.host.paths(&format!("/{}", source.id), source.id),
            None => source.host.paths(&format!("/{path}"), source.id),
        };
        let hooks = &bundle.spec.hooks;
        if !(hooks.prestart.is_empty() && hooks.create_runtime.is_empty()) {
            notes.push(
                "the prestart and createRuntime hooks have not run: crun runs none at a restore"
                    .to_owned(),
            );
        }
        let root = bundle.spec.root.as_ref();
        let group = source.host.common_path(&cgroups);
        let status = Status::restored(
            &bundle.path,
            root.map(|root| root.path.as_path())
                .unwrap_or(Path::new("")),
            group.as_deref(),
            scope.as_ref(),
        );
        Ok(Draft {
            model: record::model(
                &bundle.spec,
                source.id,
                &bundle.path,
                &bundle.rootfs,
                cgroups,
                scope,
            )?,
            record: Drafted {
                status,
                config: bundle.bytes.clone(),
            },
            notes,
        })
    }

    fn write(directory: &Path, draft: &Drafted, adopted: &Adopted<'_>) -> io::Result<()> {
        // crun sees a container as soon as there is the status, and then wants the configuration.
        engine::put(directory, CONFIG, &draft.config)?;
        let status = draft.status.clone().of(adopted)?;
        engine::put(
            directory,
            record::STATUS,
            &serde_json::to_vec_pretty(&status)?,
        )
    }
}
