//! The files that a checkpoint puts beside the images.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, unlinkat};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::engine::Habits;
use super::{Container, Engine, Owner};
use crate::ImagesDir;
use crate::container::cgroup::changes::{self, Changes};
use crate::container::crun::CrunEngine;
use crate::container::error::ErrorKind;
use crate::container::model::EngineKind;
use crate::container::oci::Spec;
use crate::container::plan::DumpPlan;
use crate::container::runc::RuncEngine;
use crate::image::INVENTORY;

type Result<T> = std::result::Result<T, ErrorKind>;

/// Whose container the images are of, and what the dump was asked.
const SAVED_PLAN: &str = "criuctl-container.json";
/// What the standard descriptors were.
pub(super) const DESCRIPTORS: &str = "descriptors.json";
/// The copies that one runtime or another has of its own.
const SAVED: [&str; 4] = [
    RuncEngine::SAVED_RECORD,
    RuncEngine::SAVED_CONFIG,
    CrunEngine::SAVED_RECORD,
    CrunEngine::SAVED_CONFIG,
];
/// More than these files have is something else.
const AT_MOST: u64 = 16 * 1024 * 1024;

/// A file beside the images, and what is in it. `None`: there is to be no such file, as one of an earlier checkpoint would
/// be taken for this one's.
pub(super) type SideFile = (&'static str, Option<Vec<u8>>);

/// What is kept of what the dump was asked.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Asked<'a> {
    version: u32,
    engine: EngineKind,
    id: &'a str,
    plan: &'a DumpPlan,
    mount_names: Vec<String>,
    systemd_cgroup: bool,
    /// Limits that are not as the configuration has them.
    changed_limits: Changes,
}

/// The files that tell a restore what it will want to know and the runtime will have deleted by then.
pub(super) fn files<E: Engine>(
    container: &Container<E>,
    directory: &Path,
    plan: &DumpPlan,
    owner: Owner<'_>,
) -> Result<Vec<SideFile>> {
    let record = directory.join(E::RECORD);
    let record =
        fs::read(&record).map_err(ErrorKind::system(format!("reading {}", record.display())))?;
    let config = config_of::<E>(container, directory)?;
    let configured = config
        .as_deref()
        .and_then(|bytes| Spec::parse(bytes).ok())
        .and_then(|spec| spec.linux?.resources);
    let asked = Asked {
        version: 1,
        engine: owner.engine,
        id: owner.id,
        plan,
        mount_names: plan.mount_names(),
        systemd_cgroup: container.model.scope.is_some(),
        // Without a configuration nobody knows what was changed.
        changed_limits: match (configured, &config) {
            (None, None) => Changes::new(),
            (configured, _) => {
                changes::of(&container.model.cgroups, &configured.unwrap_or_default())
            }
        },
    };
    let json = |bytes: serde_json::Result<Vec<u8>>| {
        bytes
            .map_err(io::Error::from)
            .map_err(ErrorKind::system("writing JSON"))
    };
    let mut files = vec![
        (
            DESCRIPTORS,
            Some(json(serde_json::to_vec(&plan.descriptors))?),
        ),
        (SAVED_PLAN, Some(json(serde_json::to_vec_pretty(&asked))?)),
        (E::SAVED_RECORD, Some(record)),
        (E::SAVED_CONFIG, config),
    ];
    for name in SAVED {
        if !files.iter().any(|(known, _)| *known == name) {
            files.push((name, None));
        }
    }
    Ok(files)
}

fn config_of<E: Engine>(container: &Container<E>, directory: &Path) -> Result<Option<Vec<u8>>> {
    let config = E::config(&container.model, directory);
    match fs::read(&config) {
        Ok(bytes) => Ok(Some(bytes)),
        // Engines above the runtime may remove it; the restore is given one anyway.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ErrorKind::system(format!("reading {}", config.display()))(
            error,
        )),
    }
}

pub(in crate::container) fn write(images: &ImagesDir, name: &str, bytes: &[u8]) -> io::Result<()> {
    // Anew, so that nothing is written through a link that stands there.
    unlink(images, name)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(images, name, flags, Mode::RUSR | Mode::WUSR)?;
    fs::File::from(file).write_all(bytes)
}

pub(in crate::container) fn unlink(
    images: &ImagesDir,
    name: impl rustix::path::Arg,
) -> io::Result<()> {
    match unlinkat(images, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What was saved by a checkpoint of this library.
pub(super) struct Saved<S> {
    pub(super) record: Option<S>,
    pub(super) config: Option<Value>,
    pub(super) mount_names: Vec<String>,
    /// Whether the container's network is in the images.
    pub(super) network: bool,
    /// Whether systemd had made the container's control groups.
    pub(super) systemd: Option<bool>,
    /// Limits that were changed after the container's creation.
    pub(super) changed_limits: Changes,
}

impl<S> Saved<S> {
    /// What another runtime has saved says nothing here.
    pub(super) fn read<E: Engine + Habits<Saved = S>>(images: &ImagesDir) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Asked {
            mount_names: Vec<String>,
            plan: Plan,
            #[serde(default)]
            systemd_cgroup: Option<bool>,
            #[serde(default)]
            changed_limits: Changes,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Plan {
            empty_network_namespace: bool,
        }
        let broken = |name: &'static str| {
            move |source: serde_json::Error| ErrorKind::Images {
                path: images.path().join(name),
                problem: "is broken: remove it, and the restore does without it".into(),
                source: Some(source.into()),
            }
        };
        let record = read(images, E::SAVED_RECORD)?
            .map(|bytes| E::parse_saved(&bytes))
            .transpose()
            .map_err(broken(E::SAVED_RECORD))?;
        let config = read(images, E::SAVED_CONFIG)?
            .map(|bytes| serde_json::from_slice(&bytes))
            .transpose()
            .map_err(broken(E::SAVED_CONFIG))?;
        let asked = read(images, SAVED_PLAN)?
            .map(|bytes| serde_json::from_slice::<Asked>(&bytes))
            .transpose()
            .map_err(broken(SAVED_PLAN))?;
        let network = match &asked {
            // Images of an earlier checkpoint may lie there as well.
            Some(asked) => !asked.plan.empty_network_namespace,
            None => have_network(images).map_err(ErrorKind::system(format!(
                "listing {}",
                images.path().display()
            )))?,
        };
        Ok(Self {
            record,
            config,
            systemd: asked.as_ref().and_then(|asked| asked.systemd_cgroup),
            changed_limits: asked
                .as_ref()
                .map(|asked| asked.changed_limits.clone())
                .unwrap_or_default(),
            mount_names: asked.map(|asked| asked.mount_names).unwrap_or_default(),
            network,
        })
    }
}

/// A file that a checkpoint has put beside the images; `None` when it is not there.
pub(in crate::container) fn read(images: &ImagesDir, name: &str) -> Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat(images, name, flags, Mode::empty()) {
        Ok(file) => fs::File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => {
            return Err(ErrorKind::Images {
                path: images.path().join(name),
                problem: "cannot be opened".into(),
                source: Some(std::io::Error::from(error).into()),
            });
        }
    };
    let mut bytes = Vec::new();
    file.take(AT_MOST)
        .read_to_end(&mut bytes)
        .map_err(|source| ErrorKind::Images {
            path: images.path().join(name),
            problem: "cannot be read".into(),
            source: Some(source.into()),
        })?;
    Ok(Some(bytes))
}

/// What the standard descriptors were, of images that are complete.
pub(in crate::container) fn descriptors(images: &ImagesDir) -> Result<Vec<String>> {
    let problem = |name: &str, problem: &str| ErrorKind::Images {
        path: images.path().join(name),
        problem: problem.into(),
        source: None,
    };
    if !images.contains(INVENTORY) {
        let text = "there is no such file, so this is no complete checkpoint: give the directory that was checkpointed into";
        return Err(problem(INVENTORY, text));
    }
    let Some(bytes) = read(images, DESCRIPTORS)? else {
        return Err(problem(
            DESCRIPTORS,
            "there is no such file: these are images of a process, or of a container that was dumped without its runtime's \
             ways. If its standard descriptors were no pipes, the content [\"/dev/null\",\"/dev/null\",\"/dev/null\"] will do",
        ));
    };
    let descriptors: Vec<String> =
        serde_json::from_slice(&bytes).map_err(|source| ErrorKind::Images {
            path: images.path().join(DESCRIPTORS),
            problem: "is no list of texts".into(),
            source: Some(source.into()),
        })?;
    match descriptors.len() {
        3 => Ok(descriptors),
        _ => Err(problem(DESCRIPTORS, "does not have three entries")),
    }
}

/// The engine whose container is in `images`, if a checkpoint by this library says so.
///
/// # Errors
/// What kept its note from being read.
pub fn engine_of(images: &ImagesDir) -> io::Result<Option<EngineKind>> {
    #[derive(Deserialize)]
    struct Asked {
        engine: EngineKind,
    }
    let bytes = read(images, SAVED_PLAN).map_err(io::Error::other)?;
    let asked = bytes.map(|bytes| serde_json::from_slice::<Asked>(&bytes));
    Ok(asked.transpose()?.map(|asked| asked.engine))
}

/// What is known of images whose configuration is wanted for another root file system.
#[cfg(feature = "engine")]
pub(in crate::container) struct Kept {
    /// The runtime that the container was in, and the configuration that it was made by.
    pub(in crate::container) config: Option<(EngineKind, Value)>,
    /// Whether a network namespace was left out of the images, if that is known.
    pub(in crate::container) network_left_out: Option<bool>,
}

#[cfg(feature = "engine")]
impl Kept {
    pub(in crate::container) fn read(images: &ImagesDir) -> Result<Self> {
        #[derive(Deserialize)]
        struct Asked {
            plan: Plan,
        }
        #[derive(Deserialize)]
        struct Plan {
            external: Vec<String>,
        }
        fn parsed<T: serde::de::DeserializeOwned>(
            images: &ImagesDir,
            name: &'static str,
        ) -> Result<Option<T>> {
            let bytes = read(images, name)?;
            let parsed = bytes
                .map(|bytes| serde_json::from_slice(&bytes))
                .transpose();
            parsed.map_err(|source| ErrorKind::Images {
                path: images.path().join(name),
                problem: "is broken".into(),
                source: Some(source.into()),
            })
        }
        let runc =
            parsed(images, RuncEngine::SAVED_CONFIG)?.map(|config| (EngineKind::Runc, config));
        let config = match runc {
            None => {
                parsed(images, CrunEngine::SAVED_CONFIG)?.map(|config| (EngineKind::Crun, config))
            }
            runc => runc,
        };
        let asked: Option<Asked> = parsed(images, SAVED_PLAN)?;
        Ok(Self {
            config,
            network_left_out: asked.map(|asked| {
                asked
                    .plan
                    .external
                    .iter()
                    .any(|external| external.starts_with("net["))
            }),
        })
    }
}

/// Refuses images of another container, if a checkpoint by this library says whose they are.
#[cfg(feature = "engine")]
pub(in crate::container) fn belongs(images: &ImagesDir, id: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Asked {
        engine: EngineKind,
        id: String,
    }
    let Some(bytes) = read(images, SAVED_PLAN)? else {
        return Ok(());
    };
    let path = images.path().join(SAVED_PLAN);
    let asked: Asked = serde_json::from_slice(&bytes).map_err(|source| ErrorKind::Images {
        path: path.clone(),
        problem: "is broken: remove it, and the restore does without it".into(),
        source: Some(source.into()),
    })?;
    match asked.id == id {
        true => Ok(()),
        false => Err(ErrorKind::Images {
            path,
            problem: format!(
                "says that these are images of another container, {}:{}: give the directory that this one was checkpointed \
                 into",
                asked.engine, asked.id
            ),
            source: None,
        }),
    }
}

/// Whether a network namespace's interfaces are in the images, as far as their names tell.
fn have_network(images: &ImagesDir) -> io::Result<bool> {
    let names = Dir::read_from(images)?;
    for entry in names {
        if entry?.file_name().to_bytes().starts_with(b"netdev-") {
            return Ok(true);
        }
    }
    Ok(false)
}
