//! What is known of a restore before anything is made: from bundle, images and host to a plan.

use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::checkpoint::{Removed, remove};
use super::record::{self, Record};
use super::{CHECKPOINTED, DESCRIPTORS, Runc, SAVED_CONFIG, SAVED_PLAN, SAVED_STATE, config};
use crate::ImagesDir;
use crate::container::cgroup::{self, Hierarchies};
use crate::container::error::ErrorKind;
use crate::container::model::{Model, MountKind, NamespaceKind, ProcessId, Status};
use crate::container::mounts;
use crate::container::oci::{CONFIG, Spec};
use crate::container::plan::RestorePlan;
use crate::image::INVENTORY;

type Result<T> = std::result::Result<T, ErrorKind>;

/// More than these files have is something else.
const SIDE_FILE_AT_MOST: u64 = 16 * 1024 * 1024;

/// What was saved beside the images by a checkpoint of this library.
#[derive(Debug, Default)]
struct Saved {
    record: Option<Record>,
    config: Option<Value>,
    mount_names: Vec<String>,
}

/// Everything that is known before anything is made.
pub(super) struct Prepared {
    pub(super) directory: PathBuf,
    pub(super) model: Model,
    /// runc's form of the configuration.
    pub(super) config: Map<String, Value>,
    pub(super) plan: RestorePlan,
    pub(super) host: Hierarchies,
    pub(super) descriptors: Vec<String>,
    pub(super) time_namespaces: bool,
    pub(super) notes: Vec<String>,
}

impl Runc {
    /// Refuses a name that is taken. A container of which `images` are a complete checkpoint and only the record remains,
    /// because the checkpointing process died, may be [cleared](Self::clear) away.
    pub(super) fn leftover(&self, id: &str, images: &ImagesDir) -> Result<Option<Record>> {
        let directory = self.directory(id)?;
        let Some(record) = Record::read(&directory)? else {
            return match directory.exists() {
                false => Ok(None),
                true => Err(ErrorKind::State {
                    path: directory,
                    problem: "holds no record of a container, but has its name: somebody is about to make one, or has \
                              failed to; look at it and remove it"
                        .into(),
                    source: None,
                }),
            };
        };
        match record.status(&directory) {
            Status::Stopped if is_checkpointed_into(&directory, images) => Ok(Some(record)),
            status => Err(ErrorKind::Exists { status }),
        }
    }

    /// Returns what its poststop hooks complained of.
    pub(super) async fn clear(&self, leftover: &Record, directory: &Path) -> Result<Vec<String>> {
        tracing::info!(directory = %directory.display(), "removing what remains of a checkpointed container");
        let Removed { left, notes } = remove(&leftover.model(false)?, directory).await;
        match left.is_empty() {
            true => Ok(notes),
            false => Err(ErrorKind::Unsupported(format!(
                "what remains of the checkpointed container cannot be removed: {}",
                left.join("; ")
            ))),
        }
    }

    pub(super) fn prepare(&self, id: &str, images: &ImagesDir, bundle: &Path) -> Result<Prepared> {
        let directory = self.directory(id)?;
        let bundle = fs::canonicalize(bundle).map_err(|source| ErrorKind::Bundle {
            path: bundle.to_owned(),
            problem:
                "is no directory: give the bundle, the directory with the container's config.json"
                    .into(),
            source: Some(source.into()),
        })?;
        let (spec, spec_bytes) = Spec::of_bundle(&bundle)?;
        let spec_path = bundle.join(CONFIG);
        let of_bundle = |problem: String| ErrorKind::Bundle {
            path: spec_path.clone(),
            problem,
            source: None,
        };
        let rootfs = spec
            .root
            .as_ref()
            .map(|root| bundle.join(&root.path))
            .unwrap_or_default();
        let rootfs = fs::canonicalize(&rootfs).map_err(|source| ErrorKind::Bundle {
            path: rootfs.clone(),
            problem:
                "is the root file system of config.json, and not there: mount or unpack it first"
                    .into(),
            source: Some(source.into()),
        })?;
        let descriptors = descriptors(images)?;
        let saved = Saved::read(images)?;
        let host =
            Hierarchies::of_host().map_err(ErrorKind::system("looking for control groups"))?;

        let linux = spec.linux.clone().unwrap_or_default();
        let systemd = match &saved.record {
            Some(record) => record.uses_systemd(),
            None => cgroup::systemd_path(&linux.cgroups_path).is_some(),
        };
        let mut notes = Vec::new();
        let config = match saved.config_for(id, &bundle, &rootfs, &spec_bytes) {
            Some(config) => config,
            None => {
                let converted = config::convert(&spec, &bundle, &rootfs, id, systemd)?;
                notes.extend(converted.notes);
                converted.config
            }
        };
        let cgroups = match systemd {
            false => host.paths(&linux.cgroups_path, id),
            true => {
                notes.push(
                    "systemd is not told of the container's scope, which it has not made"
                        .to_owned(),
                );
                let path = match linux.cgroups_path.as_str() {
                    "" => format!(":runc:{id}"),
                    path => path.to_owned(),
                };
                let scope = cgroup::systemd_path(&path).ok_or_else(|| {
                    of_bundle(format!(
                        "cgroupsPath {path:?} is not of the form slice:prefix:name"
                    ))
                })?;
                host.paths(&scope.to_string_lossy(), id)
            }
        };
        let time_namespaces = Path::new("/proc/self/ns/time").exists();
        // The model comes of the record that will be written, with a process to be filled in.
        let nobody = ProcessId {
            pid: 0,
            start_time: 0,
        };
        let stopped = record::Restored {
            id,
            init: nobody,
            created: record::now(),
            cgroups: &cgroups,
            stdio: descriptors.clone(),
            time_namespaces: false,
        };
        let record = record::record(config.clone(), &stopped);
        let terminal = spec
            .process
            .as_ref()
            .is_some_and(|process| process.terminal);
        let mut model = serde_json::to_vec(&record)
            .and_then(|bytes| Record::parse(&bytes))
            .map_err(|source| ErrorKind::Bundle {
                path: spec_path.clone(),
                problem: "cannot be made into a record of runc's".into(),
                source: Some(source.into()),
            })?
            .model(terminal)?;
        // `runc update` forgets what it was not told, though the groups keep it.
        model.limits.fill_gaps(&linux.resources.unwrap_or_default());
        check(&model, &spec_path)?;
        let plan = RestorePlan::new(&model, &host, &saved.mount_names, &descriptors);
        Ok(Prepared {
            directory,
            model,
            config,
            plan,
            host,
            descriptors,
            time_namespaces,
            notes,
        })
    }
}

/// Whether the container's directory has the marker of a complete checkpoint, and it is the one in `images`.
fn is_checkpointed_into(directory: &Path, images: &ImagesDir) -> bool {
    let marked = fs::read(directory.join(CHECKPOINTED))
        .and_then(|path| fs::canonicalize(std::ffi::OsStr::from_bytes(&path)));
    match (marked, fs::canonicalize(images.path())) {
        (Ok(marked), Ok(images)) => marked == images,
        _ => false,
    }
}

impl Saved {
    fn read(images: &ImagesDir) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Names {
            mount_names: Vec<String>,
        }
        let broken = |name: &'static str| {
            move |source: serde_json::Error| ErrorKind::Images {
                path: images.path().join(name),
                problem: "is broken: remove it, and the restore does without it".into(),
                source: Some(source.into()),
            }
        };
        let record = side_file(images, SAVED_STATE)?
            .map(|bytes| Record::parse(&bytes))
            .transpose()
            .map_err(broken(SAVED_STATE))?;
        let config = side_file(images, SAVED_CONFIG)?
            .map(|bytes| serde_json::from_slice(&bytes))
            .transpose()
            .map_err(broken(SAVED_CONFIG))?;
        let names = side_file(images, SAVED_PLAN)?
            .map(|bytes| serde_json::from_slice::<Names>(&bytes))
            .transpose()
            .map_err(broken(SAVED_PLAN))?;
        Ok(Self {
            record,
            config,
            mount_names: names.map(|names| names.mount_names).unwrap_or_default(),
        })
    }

    /// The configuration as runc itself wrote it, with whatever it was updated to, if it is still that of this bundle.
    fn config_for(
        &self,
        id: &str,
        bundle: &Path,
        rootfs: &Path,
        spec: &[u8],
    ) -> Option<Map<String, Value>> {
        let record = self.record.as_ref()?;
        let same = record.bundle() == bundle
            && record.rootfs() == rootfs
            && self.config.is_some()
            && self.config == serde_json::from_slice(spec).ok();
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
            cgroups.insert("name".into(), id.into());
        }
        Some(config)
    }
}

/// A file that a checkpoint has put beside the images; `None` when it is not there.
fn side_file(images: &ImagesDir, name: &str) -> Result<Option<Vec<u8>>> {
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
    file.take(SIDE_FILE_AT_MOST)
        .read_to_end(&mut bytes)
        .map_err(|source| ErrorKind::Images {
            path: images.path().join(name),
            problem: "cannot be read".into(),
            source: Some(source.into()),
        })?;
    Ok(Some(bytes))
}

fn descriptors(images: &ImagesDir) -> Result<Vec<String>> {
    let problem = |name: &str, problem: &str| ErrorKind::Images {
        path: images.path().join(name),
        problem: problem.into(),
        source: None,
    };
    if !images.contains(INVENTORY) {
        let text = "there is no such file, so this is no complete checkpoint: give the directory that was checkpointed into";
        return Err(problem(INVENTORY, text));
    }
    let Some(bytes) = side_file(images, DESCRIPTORS)? else {
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

/// What would fail later, and cannot be undone as easily then.
fn check(model: &Model, spec: &Path) -> Result<()> {
    let of_bundle = |problem: String, source: Option<std::io::Error>| ErrorKind::Bundle {
        path: spec.to_owned(),
        problem,
        source: source.map(Into::into),
    };
    for mount in model
        .mounts
        .iter()
        .filter(|mount| mount.kind == MountKind::Bind)
    {
        fs::metadata(&mount.source).map_err(|error| {
            let (source, destination) = (mount.source.display(), mount.destination.display());
            of_bundle(
                format!("{source}, which is mounted at {destination}, is not there"),
                Some(error),
            )
        })?;
    }
    for namespace in &model.namespaces {
        let Some(path) = &namespace.path else {
            continue;
        };
        let kind = namespace.kind.oci();
        if namespace.kind == NamespaceKind::Cgroup {
            return Err(ErrorKind::Unsupported(format!(
                "it joins the cgroup namespace {}, which CRIU cannot restore",
                path.display()
            )));
        }
        mounts::open_namespace(path).map_err(|error| {
            let text = format!(
                "the {kind} namespace {}, which it joins, cannot be opened",
                path.display()
            );
            of_bundle(text, Some(error))
        })?;
    }
    let found = cgroup::processes(&model.cgroups)
        .map_err(ErrorKind::system("looking into control groups"))?;
    match found.into_iter().next() {
        None => Ok(()),
        Some((pid, path)) => Err(ErrorKind::Cgroup {
            path,
            problem: format!(
                "the container's control group is not empty (process {pid} is in it): end what is in it, or restore under \
                 another name"
            ),
            source: None,
        }),
    }
}
