//! Mounts, namespaces and control groups.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::image::kinds::{entries, first};
use crate::image::proto::{self, Fstype};

use super::processes::Ids;
use super::source::{Store, split};
use super::{Budget, Problem, text};

/// A mount, as it was in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Mount {
    /// The id of the mount namespace in the images.
    pub namespace: String,
    /// The id of the mount there.
    pub id: u32,
    /// The id of the mount that it is on.
    pub parent: u32,
    /// Where it is, in the container.
    pub mountpoint: String,
    /// What of the file system is mounted there.
    pub root: String,
    /// The type of the file system.
    pub file_system: String,
    /// The source, as the mount itself has it.
    pub source: String,
    /// Options of the file system.
    pub options: String,
    /// The flags of `mount(2)`.
    pub flags: u32,
    /// What the restore must bring instead, under this name.
    pub external: Option<String>,
}

/// A mount that the engine was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct RequestedMount {
    /// Where.
    pub destination: String,
    /// The type, such as `bind`.
    pub kind: String,
    /// From where: a path of the host, for a bind mount.
    pub source: String,
    /// Its options.
    pub options: Vec<String>,
}

/// A namespace of which something is in the images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Namespace {
    /// `pid`, `net`, `ipc`, `uts`, `mnt`, `user`, `cgroup`, `time`.
    pub kind: &'static str,
    /// Its id in the images.
    pub id: u32,
    /// How many of the processes are in it.
    pub processes: usize,
    /// What there is to know of it: the name of the machine, which ids are which outside, offsets of clocks.
    pub details: Vec<String>,
}

/// A control group with its settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ControlGroup {
    /// The controllers of its hierarchy; none of version 2.
    pub controllers: Vec<String>,
    /// Its path.
    pub path: String,
    /// Its settings, by their names.
    pub properties: BTreeMap<String, String>,
}

/// Groups that a process is in, one of each hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Membership {
    /// The id that processes name.
    pub id: u32,
    /// Path by controller.
    pub groups: BTreeMap<String, String>,
}

/// The control groups of a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ControlGroups {
    /// What sets of groups processes are in.
    pub memberships: Vec<Membership>,
    /// The groups that are made again, each before those in it.
    pub groups: Vec<ControlGroup>,
}

pub(super) fn mounts(store: &Store, problems: &mut Vec<Problem>) -> Vec<Mount> {
    let mut mounts = Vec::new();
    for (name, id) in with_prefix(store, "mountpoints-") {
        let Some(content) = store.content(&name) else {
            continue;
        };
        let read: Result<Vec<proto::MntEntry>, _> = entries(split(&name).1, content);
        match read {
            Ok(read) => mounts.extend(read.into_iter().map(|mount| of_mount(&id, mount))),
            Err(error) => problems.push(Problem::of(&name, error)),
        }
    }
    mounts
}

fn of_mount(namespace: &str, mount: proto::MntEntry) -> Mount {
    let known = Fstype::try_from(mount.fstype.cast_signed())
        .ok()
        .filter(|known| *known != Fstype::Unsupported && *known != Fstype::Auto);
    let file_system = match (&mount.fsname, known) {
        (Some(name), _) if !name.is_empty() => text(name),
        (_, Some(Fstype::Overlayfs)) => "overlay".to_owned(),
        (_, Some(known)) => known.as_str_name().to_lowercase(),
        _ => "unknown".to_owned(),
    };
    // CRIU writes the path in the container with a dot in front.
    let mountpoint = text(&mount.mountpoint);
    let mountpoint = mountpoint.strip_prefix('.').unwrap_or(&mountpoint);
    Mount {
        namespace: namespace.to_owned(),
        id: mount.mnt_id,
        parent: mount.parent_mnt_id,
        mountpoint: if mountpoint.is_empty() {
            "/".to_owned()
        } else {
            mountpoint.to_owned()
        },
        root: text(&mount.root),
        file_system,
        source: text(&mount.source),
        options: text(&mount.options),
        flags: mount.flags,
        external: mount.ext_key.as_deref().map(text),
    }
}

/// The images of the newest directory that begin with this, and what is between that and `.img`.
pub(super) fn with_prefix<'a>(
    store: &'a Store,
    prefix: &'a str,
) -> impl Iterator<Item = (String, String)> + 'a {
    let level = store.levels.first();
    store.files.keys().filter_map(move |name| {
        let id = name
            .strip_prefix(level?.as_str())?
            .strip_prefix(prefix)?
            .strip_suffix(".img")?;
        (!id.contains('/')).then(|| (name.clone(), id.to_owned()))
    })
}

pub(super) fn namespaces<'a>(
    store: &Store,
    ids: impl Iterator<Item = &'a Ids>,
    problems: &mut Vec<Problem>,
) -> Vec<Namespace> {
    let mut counted: BTreeMap<(&'static str, u32), usize> = BTreeMap::new();
    for ids in ids {
        for (kind, id) in ids.namespaces() {
            *counted.entry((kind, id)).or_default() += 1;
        }
    }
    let namespaces = counted.into_iter().map(|((kind, id), processes)| {
        let mut details = Vec::new();
        if let Err(error) = describe(store, kind, id, &mut details) {
            problems.push(error);
        }
        Namespace {
            kind,
            id,
            processes,
            details,
        }
    });
    namespaces.collect()
}

fn describe(store: &Store, kind: &str, id: u32, details: &mut Vec<String>) -> Result<(), Problem> {
    let prefix = store.levels.first().map_or("", String::as_str);
    let base = match kind {
        "uts" => format!("utsns-{id}.img"),
        "user" => format!("userns-{id}.img"),
        // There is one at the most, and it is called 0.
        "time" => "timens-0.img".to_owned(),
        _ => return Ok(()),
    };
    let Some(content) = store.content(&format!("{prefix}{base}")) else {
        return Ok(());
    };
    let failed = |error| Problem::of(&base, error);
    match kind {
        "uts" => {
            let names: proto::UtsnsEntry = first(&base, content).map_err(failed)?;
            details.push(format!("host name {}", text(&names.nodename)));
            if !matches!(names.domainname.as_slice(), b"" | b"(none)") {
                details.push(format!("domain name {}", text(&names.domainname)));
            }
        }
        "user" => {
            let map: proto::UsernsEntry = first(&base, content).map_err(failed)?;
            for (name, extents) in [("uids", &map.uid_map), ("gids", &map.gid_map)] {
                for extent in extents {
                    details.push(format!(
                        "{name} {} to {} from {}",
                        extent.count, extent.first, extent.lower_first
                    ));
                }
            }
        }
        _ => {
            let clocks: proto::TimensEntry = first(&base, content).map_err(failed)?;
            for (name, clock) in [
                ("monotonic", clocks.monotonic),
                ("boottime", clocks.boottime),
            ] {
                details.push(format!(
                    "{name} {}.{:09} s",
                    clock.tv_sec.cast_signed(),
                    clock.tv_nsec
                ));
            }
        }
    }
    Ok(())
}

pub(super) fn control_groups(
    store: &Store,
    budget: &mut Budget,
    problems: &mut Vec<Problem>,
) -> ControlGroups {
    let mut all = ControlGroups::default();
    let prefix = store.levels.first().map_or("", String::as_str);
    let Some(content) = store.content(&format!("{prefix}cgroup.img")) else {
        return all;
    };
    let read: proto::CgroupEntry = match first("cgroup.img", content) {
        Ok(read) => read,
        Err(error) => {
            problems.push(Problem::of("cgroup.img", error));
            return all;
        }
    };
    for set in read.sets {
        let groups = set
            .ctls
            .iter()
            .map(|member| (text(&member.name), text(&member.path)));
        all.memberships.push(Membership {
            id: set.id,
            groups: groups.collect(),
        });
    }
    for hierarchy in read.controllers {
        let controllers: Vec<_> = hierarchy.cnames.iter().map(|name| text(name)).collect();
        let mut waiting: Vec<_> = hierarchy
            .dirs
            .into_iter()
            .rev()
            .map(|group| (String::new(), group))
            .collect();
        while let Some((above, group)) = waiting.pop() {
            let cost = above.len()
                + group.dir_name.len()
                + controllers.iter().map(String::len).sum::<usize>();
            if !budget.spend(cost) {
                problems.push(Problem::new(
                    "cgroup.img",
                    "not all groups are shown: there are too many",
                ));
                return all;
            }
            let name = text(&group.dir_name);
            let path = match (above.is_empty(), name.starts_with('/')) {
                (true, true) => name,
                _ => format!("{above}/{name}"),
            };
            let children = group.children.into_iter().rev();
            waiting.extend(children.map(|child| (path.clone(), child)));
            let properties = group.properties.iter();
            let properties = properties.map(|property| {
                (
                    text(&property.name),
                    text(&property.value).trim_end().to_owned(),
                )
            });
            all.groups.push(ControlGroup {
                controllers: controllers.clone(),
                path,
                properties: properties.collect(),
            });
        }
    }
    all
}
