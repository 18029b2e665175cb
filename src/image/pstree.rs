//! `pstree.img`.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;

use serde::Serialize;

use super::file::read_file;
use super::framing::{Format, Frames};
use super::{ImageError, proto};

/// The common magic, then that of the task tree. A hundred thousand tasks take about 3 MB.
const FORMAT: Format = Format {
    magics: &[0x5456_4319, 0x5027_3030],
    max_file: 32 << 20,
};

const REQUIRED: &[(u32, &str)] = &[
    (1, "pstree_entry.pid"),
    (2, "pstree_entry.ppid"),
    (3, "pstree_entry.pgid"),
    (4, "pstree_entry.sid"),
];

/// The dumped tasks: one root, and every other task after its parent.
///
/// All ids are those of the PID namespace that the root task lives in. The root of a container is 1
/// if the container has a PID namespace of its own; otherwise the ids are CRIU's own.
///
/// Serialised, it is the list of tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ProcessTree {
    /// Never empty.
    tasks: Vec<Task>,
}

/// A dumped task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Task {
    /// Its process id.
    pub pid: u32,
    /// The process id of its parent, 0 for the root.
    pub ppid: u32,
    /// Its process group.
    pub pgid: u32,
    /// Its session.
    pub sid: u32,
    /// Its threads, the main thread among them. Empty for a task that had already ended: there
    /// CRIU records memory that it never set, which is not passed on.
    pub threads: Vec<u32>,
}

impl ProcessTree {
    /// Decodes the content of a `pstree.img` file; `file` names it in errors.
    ///
    /// # Errors
    ///
    /// [`ImageError`] when the bytes are not complete entries that form a tree in CRIU's order.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, ImageError> {
        let inconsistent = |reason| ImageError::Inconsistent {
            file: file.to_owned(),
            reason,
        };
        let mut tasks = Vec::new();
        let mut pids = HashSet::new();
        for frame in Frames::new(file, bytes, &FORMAT)? {
            let frame = frame?;
            let entry: proto::PstreeEntry = frame.decode()?;
            frame.require(REQUIRED)?;
            let task = Task::from_image(entry);
            let (pid, ppid) = (task.pid, task.ppid);
            if pid == 0 {
                return Err(inconsistent("a task has pid 0".to_owned()));
            }
            if tasks.is_empty() && ppid != 0 {
                return Err(inconsistent(format!(
                    "the first task, {pid}, has a parent, {ppid}"
                )));
            }
            if !tasks.is_empty() && ppid == 0 {
                return Err(inconsistent(format!("task {pid} is a second root")));
            }
            if ppid != 0 && !pids.contains(&ppid) {
                return Err(inconsistent(format!(
                    "task {pid} comes before its parent, {ppid}, or without it"
                )));
            }
            if !pids.insert(pid) {
                return Err(inconsistent(format!("task {pid} is there twice")));
            }
            tasks.push(task);
        }
        if tasks.is_empty() {
            return Err(inconsistent("it has no tasks".to_owned()));
        }
        Ok(Self { tasks })
    }

    /// Reads the tree from `file` in the open directory `dir`, usually
    /// [`PSTREE`](super::PSTREE) in the images directory. The descriptor stays the caller's.
    ///
    /// # Errors
    ///
    /// As [`ProcessTree::parse`], and when the file is not there, not readable or not regular.
    pub fn read(dir: BorrowedFd<'_>, file: &str) -> Result<Self, ImageError> {
        Self::parse(file, &read_file(dir, file, &FORMAT)?)
    }

    /// The root task, whose pid the dump was given.
    pub fn root(&self) -> &Task {
        &self.tasks[0]
    }

    /// All tasks, the root first and parents before their children.
    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }
}

impl Task {
    fn from_image(entry: proto::PstreeEntry) -> Self {
        let mut threads = entry.threads;
        // CRIU lists the main thread of every task that it could look into.
        if !threads.contains(&entry.pid) {
            threads.clear();
        }
        Self {
            pid: entry.pid,
            ppid: entry.ppid,
            pgid: entry.pgid,
            sid: entry.sid,
            threads,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::tests::{damaged, entry, protos_require};

    macro_rules! image {
        ($name:literal) => {
            include_bytes!(concat!("../../tests/data/images/", $name, "/pstree.img")).as_slice()
        };
    }

    const HOST_PIDS: &[u8] = image!("criu-4.2.1");
    const CONTAINER_PIDS: &[u8] = image!("criu-4.2.1/pid-namespace");

    fn task(pid: u32, ppid: u32, pgid: u32, sid: u32, threads: &[u32]) -> Task {
        Task {
            pid,
            ppid,
            pgid,
            sid,
            threads: threads.to_vec(),
        }
    }

    fn parse(bytes: &[u8]) -> ProcessTree {
        ProcessTree::parse("pstree.img", bytes).unwrap()
    }

    /// An image of tasks that are given as pid and ppid, both below 128.
    fn image(tasks: &[(u8, u8)]) -> Vec<u8> {
        let mut bytes = entry(FORMAT.magics, &[]);
        bytes.truncate(8);
        for &(pid, ppid) in tasks {
            bytes.extend(entry(
                &[],
                &[8, pid, 0x10, ppid, 0x18, 1, 0x20, 1, 0x28, pid],
            ));
        }
        bytes
    }

    fn refusal(bytes: &[u8]) -> String {
        let error = ProcessTree::parse("x", bytes).unwrap_err();
        assert!(matches!(error, ImageError::Inconsistent { .. }), "{error}");
        error.to_string()
    }

    #[test]
    fn trees_of_all_versions() {
        // The last task is a zombie: whatever its entry says about threads is not a thread.
        for (bytes, [root, session, zombie, group]) in [
            (image!("criu-4.1.1"), [13184, 13187, 13188, 13189]),
            (HOST_PIDS, [8806, 8809, 8810, 8811]),
            (image!("criu-4.3"), [13223, 13226, 13227, 13228]),
        ] {
            let expected = [
                task(root, 0, root, root, &[root, root + 1, root + 2]),
                task(session, root, session, session, &[session]),
                task(group, session, group, session, &[group, group + 1]),
                task(zombie, root, root, root, &[]),
            ];
            let tree = parse(bytes);
            assert_eq!(tree.tasks(), expected);
            assert_eq!(tree.root(), &expected[0]);
        }
    }

    #[test]
    fn a_container_has_pids_of_its_own() {
        assert_eq!(
            parse(CONTAINER_PIDS).tasks(),
            [
                task(1, 0, 1, 1, &[1, 2, 3]),
                task(4, 1, 4, 4, &[4]),
                task(6, 4, 6, 4, &[6, 7]),
                task(5, 1, 1, 1, &[]),
            ]
        );
    }

    #[test]
    fn packed_threads_are_read_as_well() {
        let mut bytes = image(&[]);
        bytes.extend(entry(
            &[],
            &[8, 7, 0x10, 0, 0x18, 1, 0x20, 1, 0x2a, 2, 7, 8],
        ));
        assert_eq!(parse(&bytes).root().threads, [7, 8]);
    }

    #[test]
    fn what_is_no_tree_is_refused() {
        assert_eq!(refusal(&image(&[])), "x: not a task tree: it has no tasks");
        assert_eq!(
            refusal(&image(&[(0, 0)])),
            "x: not a task tree: a task has pid 0"
        );
        assert_eq!(
            refusal(&image(&[(2, 1), (1, 0)])),
            "x: not a task tree: the first task, 2, has a parent, 1"
        );
        assert_eq!(
            refusal(&image(&[(1, 0), (2, 0)])),
            "x: not a task tree: task 2 is a second root"
        );
        assert_eq!(
            refusal(&image(&[(1, 0), (3, 2), (2, 1)])),
            "x: not a task tree: task 3 comes before its parent, 2, or without it"
        );
        assert_eq!(
            refusal(&image(&[(1, 0), (2, 2)])),
            "x: not a task tree: task 2 comes before its parent, 2, or without it"
        );
        assert_eq!(
            refusal(&image(&[(1, 0), (2, 1), (2, 1)])),
            "x: not a task tree: task 2 is there twice"
        );
    }

    #[test]
    fn a_missing_field_is_not_taken_for_zero() {
        let mut bytes = image(&[(1, 0)]);
        bytes.extend(entry(&[], &[8, 2, 0x18, 1, 0x20, 1]));
        let error = ProcessTree::parse("x", &bytes).unwrap_err();
        assert_eq!(
            error.to_string(),
            "x: the entry at offset 22 has no pstree_entry.ppid"
        );
    }

    #[test]
    fn the_required_fields_are_those_of_the_proto() {
        protos_require("pstree.proto", "pstree_entry", REQUIRED);
    }

    #[test]
    fn json_is_the_list() {
        let json = serde_json::to_value(parse(&image(&[(1, 0)]))).unwrap();
        assert_eq!(
            json,
            serde_json::json!([{ "pid": 1, "ppid": 0, "pgid": 1, "sid": 1, "threads": [1] }])
        );
    }

    /// Whether the tree keeps what its documentation promises.
    fn is_sound(tree: &ProcessTree) -> bool {
        let tasks = tree.tasks();
        tree.root().ppid == 0
            && tasks.iter().enumerate().skip(1).all(|(index, task)| {
                tasks[..index]
                    .iter()
                    .any(|earlier| earlier.pid == task.ppid)
                    && tasks[..index].iter().all(|earlier| earlier.pid != task.pid)
            })
            && tasks
                .iter()
                .all(|task| task.threads.is_empty() || task.threads.contains(&task.pid))
    }

    proptest! {
        #[test]
        fn damage_never_yields_an_unsound_tree(bytes in damaged(CONTAINER_PIDS)) {
            if let Ok(tree) = ProcessTree::parse("x", &bytes) {
                prop_assert!(is_sound(&tree));
            }
        }

        #[test]
        fn a_cut_is_seen_unless_whole_entries_go(len in 0..HOST_PIDS.len()) {
            // Where the entries end: the format has no count of them.
            match ProcessTree::parse("x", &HOST_PIDS[..len]) {
                Ok(tree) => prop_assert_eq!(len, [32, 51, 73][tree.tasks().len() - 1]),
                Err(ImageError::Inconsistent { .. }) => prop_assert_eq!(len, 8),
                Err(ImageError::Truncated { .. }) => prop_assert!(![8, 32, 51, 73].contains(&len)),
                Err(other) => prop_assert!(false, "{}", other),
            }
        }

        #[test]
        fn any_edges_make_a_sound_tree_or_none(
            edges in proptest::collection::vec((0u8..6, 0u8..6), 0..6)
        ) {
            if let Ok(tree) = ProcessTree::parse("x", &image(&edges)) {
                prop_assert!(is_sound(&tree));
                prop_assert_eq!(tree.tasks().len(), edges.len());
            }
        }

        #[test]
        fn any_trees_come_back(parents in proptest::collection::vec(any::<proptest::sample::Index>(), 0..40)) {
            let mut edges = vec![(1, 0)];
            for (pid, parent) in (2..).zip(&parents) {
                edges.push((pid, edges[parent.index(edges.len())].0));
            }
            let tree = ProcessTree::parse("x", &image(&edges)).unwrap();
            let found: Vec<_> = tree.tasks().iter().map(|task| (task.pid, task.ppid)).collect();
            let edges: Vec<_> = edges.iter().map(|&(pid, ppid)| (pid.into(), ppid.into())).collect();
            prop_assert_eq!(found, edges);
        }
    }
}
