//! Directories of UnionFS.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Error;

/// A union of directories, with their permissions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UnionFs {
    /// Each as the option has it, such as `/upper=rw`.
    pub dirs: Vec<String>,
}

impl UnionFs {
    pub(super) fn of_options(options: &str) -> Result<Self, Error> {
        let dirs = options
            .split(',')
            .find_map(|option| option.trim().strip_prefix("dirs="));
        match dirs.filter(|dirs| !dirs.is_empty()) {
            Some(dirs) => Ok(Self {
                dirs: dirs.split(':').map(str::to_owned).collect(),
            }),
            None => Err(Error::Incomplete(format!(
                "the options of the root file system's union do not have branch information: {options}"
            ))),
        }
    }

    pub(super) fn directories(&self) -> Vec<PathBuf> {
        let path = |dir: &String| match dir.rsplit_once('=') {
            Some((path, "rw" | "ro" | "nfsro")) => path.into(),
            _ => dir.into(),
        };
        self.dirs.iter().map(path).collect()
    }

    pub(super) fn options(&self) -> String {
        format!("dirs={}", self.dirs.join(":"))
    }
}
