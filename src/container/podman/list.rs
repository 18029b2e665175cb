//! Which containers Podman has, without asking it.
//!
//! A question would start a service first, and hosts have hundreds of containers. Podman's storage has their ids and names in one
//! file, and the runtimes' records tell which of them run.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::container::list::Listed;
use crate::container::model::{EngineKind, Status};

/// How the directory of a storage driver's containers ends.
const CONTAINERS: &str = "-containers";
/// The files with all of them, and with those that do not outlive the machine (such as those of `--rm`).
const INDICES: [&str; 2] = ["containers.json", "volatile-containers.json"];
/// The bundle within a container's directory.
const BUNDLE: &str = "userdata";

/// A container in Podman's storage.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stored {
    /// Its full id.
    pub id: String,
    /// Its name.
    pub name: Option<String>,
    /// The directory with its `config.json`, once it has been started.
    pub bundle: PathBuf,
}

/// The containers of Podman's in a storage directory, by id; other users of the same storage have theirs left out.
///
/// # Errors
/// What kept an index from being read. That there is no such directory is no error.
pub fn stored(root: &Path) -> io::Result<Vec<Stored>> {
    #[derive(Deserialize)]
    struct Entry {
        id: String,
        #[serde(default)]
        names: Option<Vec<String>>,
        #[serde(default)]
        metadata: String,
    }
    let mut found = Vec::new();
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    for directory in entries {
        let directory = directory?;
        if !directory
            .file_name()
            .as_encoded_bytes()
            .ends_with(CONTAINERS.as_bytes())
        {
            continue;
        }
        for index in INDICES {
            let path = directory.path().join(index);
            let bytes = match fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let entries: Vec<Entry> = serde_json::from_slice(&bytes)?;
            let ours = entries
                .into_iter()
                .filter(|entry| is_podmans(&entry.metadata))
                .map(|entry| Stored {
                    bundle: directory.path().join(&entry.id).join(BUNDLE),
                    name: entry.names.and_then(|names| names.into_iter().next()),
                    id: entry.id,
                });
            found.extend(ours);
        }
    }
    found.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(found)
}

/// What the storage's user noted of a container: Podman the name, CRI-O also that of the pod, Buildah nothing.
fn is_podmans(metadata: &str) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Noted {
        name: Option<String>,
        pod_name: Option<String>,
    }
    serde_json::from_str::<Noted>(metadata)
        .is_ok_and(|noted| noted.name.is_some() && noted.pod_name.is_none())
}

/// Podman's containers among those of the runtimes under its name for them, and those that do not run, in `root` and in every
/// other storage that one of them is in. What is not Podman's stays as it is.
///
/// # Errors
/// As [`stored`].
pub fn claim(listed: Vec<Listed>, root: &Path) -> io::Result<Vec<Listed>> {
    let roots: BTreeSet<PathBuf> = listed
        .iter()
        .filter_map(|listed| Some(storage_of(&listed.bundle)?.to_owned()))
        .chain([root.to_owned()])
        .collect();
    let mut ours = BTreeMap::new();
    for root in roots {
        for stored in stored(&root)? {
            ours.insert(stored.bundle.clone(), stored);
        }
    }
    let mut claimed = Vec::new();
    for mut listed in listed {
        if let Some(stored) = ours.remove(&listed.bundle) {
            listed.engine = EngineKind::Podman;
            listed.id = stored.id;
            listed.name = stored.name;
        }
        claimed.push(listed);
    }
    claimed.extend(ours.into_values().map(|stored| Listed {
        engine: EngineKind::Podman,
        pid: None,
        status: Some(Status::Stopped),
        obstacle: Some("it is stopped".to_owned()),
        id: stored.id,
        name: stored.name,
        bundle: stored.bundle,
    }));
    Ok(claimed)
}

/// The storage that a bundle is in: `ROOT/DRIVER-containers/ID/userdata`.
fn storage_of(bundle: &Path) -> Option<&Path> {
    let is_bundle = bundle.file_name() == Some(OsStr::new(BUNDLE));
    let containers = bundle.parent()?.parent()?;
    let of_driver = containers
        .file_name()?
        .as_encoded_bytes()
        .ends_with(CONTAINERS.as_bytes());
    (is_bundle && of_driver).then(|| containers.parent())?
}

/// The container whose bundle a path is in.
pub(super) fn container_of(path: &Path) -> Option<&str> {
    let bundle = path.ancestors().find(|path| storage_of(path).is_some())?;
    bundle.parent()?.file_name()?.to_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(engine: EngineKind, id: &str, bundle: PathBuf) -> Listed {
        Listed {
            engine,
            id: id.into(),
            name: None,
            pid: Some(7),
            status: Some(Status::Running),
            bundle,
            obstacle: None,
        }
    }

    #[test]
    fn running_ones_are_claimed_and_the_others_added() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let containers = root.join("overlay-containers");
        fs::create_dir(&containers).unwrap();
        let index = r#"[
            {"id":"bb","names":["web"],"metadata":"{\"name\":\"web\",\"image-name\":\"i\"}"},
            {"id":"cc","names":["old"],"metadata":"{\"name\":\"old\"}"},
            {"id":"dd","names":["k8s"],"metadata":"{\"name\":\"k8s\",\"pod-name\":\"p\"}"},
            {"id":"ee","names":["working"],"metadata":""}]"#;
        fs::write(containers.join("containers.json"), index).unwrap();
        let volatile = r#"[{"id":"aa","names":null,"metadata":"{\"name\":\"gone\"}"}]"#;
        fs::write(containers.join("volatile-containers.json"), volatile).unwrap();
        let bundle = |id: &str| containers.join(id).join("userdata");
        let others = listed(EngineKind::Runc, "x", "/srv/x".into());
        let claimed = claim(
            vec![others, listed(EngineKind::Crun, "bb", bundle("bb"))],
            Path::new("/nonexistent"),
        )
        .unwrap();
        let told: Vec<_> = claimed
            .iter()
            .map(|listed| {
                let name = listed.name.as_deref().unwrap_or("-");
                (listed.engine, listed.id.as_str(), name, listed.pid)
            })
            .collect();
        assert_eq!(
            told,
            [
                (EngineKind::Runc, "x", "-", Some(7)),
                (EngineKind::Podman, "bb", "web", Some(7)),
                (EngineKind::Podman, "aa", "-", None),
                (EngineKind::Podman, "cc", "old", None),
            ]
        );
        assert_eq!(container_of(&bundle("bb").join("checkpoint")), Some("bb"));
        assert_eq!(container_of(Path::new("/var/tmp/userdata")), None);
    }
}
