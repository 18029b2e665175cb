//! Control groups of a container: where they are, making them, and removing them.
//!
//! Everything is done through the mounted file systems, of version 1, version 2 or both at once ("hybrid"), but for the
//! scopes of systemd's, which it is asked for.

pub(crate) mod changes;
mod limits;
pub(crate) mod properties;
mod scope;
mod seat;
pub(crate) mod systemd;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::model::MountEntry;

pub(crate) use limits::apply;
pub use scope::Scope;
pub(crate) use seat::Seat;

/// The unified hierarchy among controllers.
pub(crate) const UNIFIED: &str = "";

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// Where it is mounted.
    pub(crate) mount_point: PathBuf,
    /// Which part of it is mounted there.
    root: PathBuf,
    /// The group of this process in it.
    own: PathBuf,
}

/// The hierarchies of this host by controller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchies(BTreeMap<String, Hierarchy>);

impl Hierarchies {
    pub(crate) fn of_host() -> io::Result<Self> {
        let mounts = MountEntry::parse_all(&fs::read("/proc/self/mountinfo")?)?;
        Ok(Self::new(
            &mounts,
            &fs::read_to_string("/proc/self/cgroup")?,
        ))
    }

    /// `own` is the text of `/proc/PID/cgroup`.
    pub(crate) fn new(mounts: &[MountEntry], own: &str) -> Self {
        let mut found = BTreeMap::new();
        for line in own.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            for controller in controllers.split(',') {
                let mount = mounts.iter().find(|mount| match controller {
                    UNIFIED => mount.fs_type == "cgroup2",
                    _ => {
                        mount.fs_type == "cgroup"
                            && mount
                                .super_options
                                .iter()
                                .any(|option| option == controller)
                    }
                });
                if let Some(mount) = mount {
                    let hierarchy = Hierarchy {
                        mount_point: mount.mount_point.clone(),
                        root: mount.root.clone(),
                        own: path.into(),
                    };
                    found.insert(controller.to_owned(), hierarchy);
                }
            }
        }
        Self(found)
    }

    /// Whether there is the unified hierarchy and no other.
    pub(crate) fn is_unified(&self) -> bool {
        self.0.contains_key(UNIFIED) && self.0.len() == 1
    }

    /// The groups of a container whose configuration has this `cgroupsPath`, if any: an absolute path counts from the
    /// top of each hierarchy, a relative one from this process's own group. Where the unified hierarchy is alone, it
    /// counts from the group above ours: one with processes in it cannot hand controllers down.
    pub(crate) fn paths(&self, cgroups_path: &str, id: &str) -> BTreeMap<String, PathBuf> {
        let path = match cgroups_path {
            "" => Path::new(id),
            path => Path::new(path),
        };
        let absolute = path.is_absolute();
        let inner = cleaned(path);
        let unified = self.is_unified();
        let of = |hierarchy: &Hierarchy| {
            let base = match (absolute, unified) {
                (true, _) => Path::new("/"),
                (false, true) => hierarchy.own.parent().unwrap_or(&hierarchy.own),
                (false, false) => &hierarchy.own,
            };
            hierarchy.directory(base).join(&inner)
        };
        self.0
            .iter()
            .map(|(controller, hierarchy)| (controller.clone(), of(hierarchy)))
            .collect()
    }

    /// The path of the group `directory` within its hierarchy, as `/proc/PID/cgroup` shows it.
    pub(crate) fn path_within(&self, controller: &str, directory: &Path) -> Option<PathBuf> {
        let hierarchy = self.0.get(controller)?;
        let relative = directory.strip_prefix(&hierarchy.mount_point).ok()?;
        Some(hierarchy.root.join(relative))
    }

    /// The path of a container's groups from the top of each hierarchy, if it is the same in all.
    pub(crate) fn common_path(&self, groups: &BTreeMap<String, PathBuf>) -> Option<PathBuf> {
        let mut relative = groups.iter().filter_map(|(controller, group)| {
            let hierarchy = self.0.get(controller)?;
            group.strip_prefix(&hierarchy.mount_point).ok()
        });
        let first = relative.next()?;
        relative
            .all(|path| path == first)
            .then(|| Path::new("/").join(first))
    }

    /// The name of the hierarchy's mount point, such as `cpu,cpuacct`.
    pub(crate) fn mount_name(&self, controller: &str) -> Option<&std::ffi::OsStr> {
        self.0.get(controller)?.mount_point.file_name()
    }

    /// The group of a scope in the hierarchy by which systemd knows its processes.
    pub(crate) fn scope(&self, scope: &Scope) -> Option<PathBuf> {
        let own = ["name=systemd", UNIFIED];
        let hierarchy = own.into_iter().find_map(|name| self.0.get(name))?;
        Some(hierarchy.directory(&scope.path()))
    }

    /// The groups that systemd makes for a scope by itself.
    pub(crate) fn of_systemd(&self, scope: &Scope) -> Vec<PathBuf> {
        /// Of version 1.
        const KNOWN: [&str; 8] = [
            "name=systemd",
            UNIFIED,
            "cpu",
            "cpuacct",
            "memory",
            "blkio",
            "pids",
            "devices",
        ];
        let path = scope.path();
        let hierarchies = KNOWN.into_iter().filter_map(|name| self.0.get(name));
        hierarchies
            .map(|hierarchy| hierarchy.directory(&path))
            .collect()
    }

    /// The groups of `init`, where they are not these already, by controller.
    pub(crate) fn strays(
        &self,
        groups: &BTreeMap<String, PathBuf>,
        init: i32,
    ) -> io::Result<Vec<PathBuf>> {
        let text = fs::read_to_string(format!("/proc/{init}/cgroup"))?;
        let actual = |controller: &str| {
            text.lines().find_map(|line| {
                let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
                controllers
                    .split(',')
                    .any(|known| known == controller)
                    .then(|| Path::new(path))
            })
        };
        let strays = groups.iter().filter(|(controller, group)| {
            let wanted = self.path_within(controller, group);
            wanted.is_some() && actual(controller) != wanted.as_deref()
        });
        Ok(strays.map(|(_, group)| group.clone()).collect())
    }
}

impl Hierarchy {
    /// The directory of a group; of one that is not mounted, what is mounted.
    fn directory(&self, path: &Path) -> PathBuf {
        self.mount_point
            .join(path.strip_prefix(&self.root).unwrap_or(Path::new("")))
    }
}

/// A relative path without `.` and `..`: a configuration cannot reach above its hierarchy.
fn cleaned(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean
}

/// The distinct directories: several controllers can be mounted together.
fn directories(paths: &BTreeMap<String, PathBuf>) -> BTreeSet<&Path> {
    paths.values().map(PathBuf::as_path).collect()
}

/// Makes the groups that do not exist. Returns the directories that were made, outermost first.
///
/// On failure nothing is left of them.
pub(crate) fn create(
    paths: &BTreeMap<String, PathBuf>,
    made: &mut Vec<PathBuf>,
) -> Result<(), (PathBuf, io::Error)> {
    for (controller, path) in paths {
        let missing: Vec<&Path> = path
            .ancestors()
            .take_while(|ancestor| !ancestor.exists())
            .collect();
        for directory in missing.into_iter().rev() {
            fs::create_dir(directory).map_err(|error| (directory.to_owned(), error))?;
            made.push(directory.to_owned());
            let prepared = match controller.as_str() {
                "cpuset" => inherit_cpuset(directory),
                UNIFIED => enable_controllers(directory),
                _ => Ok(()),
            };
            prepared.map_err(|error| (directory.to_owned(), error))?;
        }
    }
    Ok(())
}

/// A fresh group of the cpuset hierarchy has no processor, and no task can be put into it.
fn inherit_cpuset(directory: &Path) -> io::Result<()> {
    let Some(parent) = directory.parent() else {
        return Ok(());
    };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let inherited = fs::read_to_string(parent.join(file))?;
        if fs::read_to_string(directory.join(file))?.trim().is_empty() {
            fs::write(directory.join(file), inherited.trim())?;
        }
    }
    Ok(())
}

/// A group of the unified hierarchy has the controllers that its parent hands down.
fn enable_controllers(directory: &Path) -> io::Result<()> {
    let Some(parent) = directory.parent() else {
        return Ok(());
    };
    let available = fs::read_to_string(parent.join("cgroup.controllers"))?;
    for controller in available.split_whitespace() {
        // One that cannot be handed down (tasks in the parent, or in use elsewhere) is missed when its limit is set.
        let _ = fs::write(
            parent.join("cgroup.subtree_control"),
            format!("+{controller}"),
        );
    }
    Ok(())
}

/// The processes in the groups and below.
pub(crate) fn processes(paths: &BTreeMap<String, PathBuf>) -> io::Result<BTreeMap<i32, PathBuf>> {
    let mut found = BTreeMap::new();
    for path in directories(paths) {
        collect(path, &mut found)?;
    }
    Ok(found)
}

fn collect(directory: &Path, found: &mut BTreeMap<i32, PathBuf>) -> io::Result<()> {
    let Some(text) = present(fs::read_to_string(directory.join("cgroup.procs")))? else {
        return Ok(());
    };
    for pid in text.lines().filter_map(|line| line.parse().ok()) {
        found.insert(pid, directory.to_owned());
    }
    for child in children(directory)? {
        collect(&child, found)?;
    }
    Ok(())
}

fn children(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in present(fs::read_dir(directory))?.into_iter().flatten() {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// What was found, or nothing when it is not there (any more).
fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    /// A group that is removed between open and read.
    const GONE: i32 = 19;
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(GONE) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Puts the tree below `root` into the groups.
pub(crate) fn move_tree(root: i32, groups: &[PathBuf]) -> io::Result<()> {
    for pid in tree(root) {
        for group in groups {
            fs::write(group.join("cgroup.procs"), pid.to_string())?;
        }
    }
    Ok(())
}

/// `root` and its descendants.
fn tree(root: i32) -> Vec<i32> {
    let stats: Vec<_> = procfs::process::all_processes()
        .into_iter()
        .flatten()
        .filter_map(|process| process.ok()?.stat().ok())
        .collect();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(
            stats
                .iter()
                .filter(|stat| stat.ppid == parent)
                .map(|stat| stat.pid),
        );
        next += 1;
    }
    found
}

/// The directory through which a group's tasks are frozen, and whether they are.
pub(crate) fn freezer(paths: &BTreeMap<String, PathBuf>) -> Option<(&Path, bool)> {
    let (file, frozen, directory) = match (paths.get("freezer"), paths.get(UNIFIED)) {
        (Some(directory), _) => ("freezer.state", "FROZEN", directory),
        (None, Some(directory)) => ("cgroup.freeze", "1", directory),
        (None, None) => return None,
    };
    let state = fs::read_to_string(directory.join(file)).unwrap_or_default();
    Some((
        directory,
        state.trim() == frozen || state.trim() == "FREEZING",
    ))
}

/// Lets tasks in the group run.
pub(crate) fn thaw(paths: &BTreeMap<String, PathBuf>) -> io::Result<()> {
    match freezer(paths) {
        Some((directory, true)) if paths.contains_key("freezer") => {
            fs::write(directory.join("freezer.state"), "THAWED")
        }
        Some((directory, true)) => fs::write(directory.join("cgroup.freeze"), "0"),
        _ => Ok(()),
    }
}

/// Removes the groups and those below, as far as they are empty. Returns those that remain, and why.
pub(crate) fn remove(paths: impl IntoIterator<Item = PathBuf>) -> Vec<(PathBuf, io::Error)> {
    let paths: BTreeSet<PathBuf> = paths.into_iter().collect();
    let mut remaining = Vec::new();
    // The innermost first.
    for path in paths.into_iter().rev() {
        if let Err(error) = remove_tree(&path) {
            remaining.push((path, error));
        }
    }
    remaining
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    for child in children(directory)? {
        remove_tree(&child)?;
    }
    present(fs::remove_dir(directory)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const OWN: &str = "9:name=systemd:/\n4:memory:/job/7\n2:cpu,cpuacct:/\n1:net_cls:/\n0::/user\n";

    fn hybrid() -> Hierarchies {
        Hierarchies::new(&MountEntry::parse_all(MOUNTS.as_bytes()).unwrap(), OWN)
    }

    #[test]
    fn paths_count_from_the_top_or_from_our_own_group() {
        let host = hybrid();
        assert!(!host.is_unified());
        let relative = host.paths("", "box");
        let paths: Vec<_> = relative
            .iter()
            .map(|(c, p)| (c.as_str(), p.to_str().unwrap()))
            .collect();
        assert_eq!(
            paths,
            [
                ("", "/sys/fs/cgroup/unified/user/box"),
                ("cpu", "/sys/fs/cgroup/cpu,cpuacct/box"),
                ("cpuacct", "/sys/fs/cgroup/cpu,cpuacct/box"),
                ("memory", "/sys/fs/cgroup/memory/job/7/box"),
                ("name=systemd", "/sys/fs/cgroup/systemd/box"),
            ]
        );
        assert_eq!(
            host.path_within("memory", &relative["memory"]).unwrap(),
            Path::new("/job/7/box")
        );
        let absolute = host.paths("/a/../../b", "box");
        assert_eq!(absolute["memory"], Path::new("/sys/fs/cgroup/memory/b"));
        assert_eq!(directories(&absolute).len(), 4);
        assert_eq!(host.mount_name("cpu").unwrap(), "cpu,cpuacct");
    }

    #[test]
    fn groups_that_are_not_there_have_no_processes() {
        let paths = BTreeMap::from([(
            "cpu".to_owned(),
            PathBuf::from("/sys/fs/cgroup/cpu/there-is-none"),
        )]);
        assert!(processes(&paths).unwrap().is_empty());
        assert!(remove(paths.into_values()).is_empty());
    }
}
