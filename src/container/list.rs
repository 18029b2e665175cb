//! Which containers there are on this host.
//!
//! From the records alone, of which the least is read: hosts have hundreds of them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::cgroup::Hierarchies;
use super::error::{Error, ErrorKind, Result};
use super::model::{EngineKind, Status, is_valid_id};
use super::runtime::engine::{self, Brief};
use super::runtime::{Engine, Runtime};

/// A container of the list.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Listed {
    /// Whose it is.
    pub engine: EngineKind,
    /// What it is known by to its engine.
    pub id: String,
    /// Its name, if the engine gives containers one besides.
    pub name: Option<String>,
    /// Its first process, unless that has ended.
    pub pid: Option<i32>,
    /// What it does; `None` when its record cannot be read.
    pub status: Option<Status>,
    /// The directory with its `config.json`; empty where the engine keeps that to itself.
    pub bundle: PathBuf,
    /// Why it cannot be checkpointed, as far as the record tells; `None` when it can.
    pub obstacle: Option<String>,
}

impl<E: Engine> Runtime<E> {
    /// The containers that have a record, by name.
    ///
    /// A record that cannot be read is a container all the same, and says so as its [`Listed::obstacle`]. One that is being made or
    /// removed at this moment may be missing.
    ///
    /// # Errors
    /// [`ErrorKind::System`] when the root cannot be read. That there is none is no error.
    pub fn list(&self) -> Result<Vec<Listed>> {
        let root = self.root();
        let failed =
            |doing: String| |source| Error::new(E::KIND, "", ErrorKind::System { doing, source });
        let names = names(root).map_err(failed(format!("reading {}", root.display())))?;
        // Once for all: it grows with the containers.
        let host =
            Hierarchies::of_host().map_err(failed("looking for control groups".to_owned()))?;
        let listed = names
            .into_iter()
            .filter_map(|id| listed::<E>(&root.join(&id), id, &host));
        Ok(listed.collect())
    }
}

/// The names that containers can have, sorted.
pub(super) fn names(root: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
        Err(error) => return Err(error),
    };
    for entry in entries {
        if let Ok(name) = entry?.file_name().into_string()
            && is_valid_id(&name)
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn listed<E: Engine>(directory: &Path, id: String, host: &Hierarchies) -> Option<Listed> {
    let brief = match E::brief(directory, host) {
        Ok(Some(brief)) => brief,
        Ok(None) => return None,
        Err(error) => {
            return Some(Listed {
                engine: E::KIND,
                id,
                name: None,
                pid: None,
                status: None,
                bundle: PathBuf::new(),
                obstacle: Some(error.to_string()),
            });
        }
    };
    let Brief {
        init,
        cgroups,
        bundle,
        rootless,
    } = brief;
    let status = engine::status(init, &cgroups, directory);
    let obstacle = match status {
        Status::Running | Status::Paused if rootless => Some(engine::ROOTLESS.to_owned()),
        Status::Running | Status::Paused => None,
        Status::Created => Some("it is not started".to_owned()),
        Status::Stopped => Some("it is stopped".to_owned()),
    };
    Some(Listed {
        engine: E::KIND,
        id,
        name: None,
        pid: (status != Status::Stopped).then_some(init.pid),
        status: Some(status),
        bundle,
        obstacle,
    })
}
