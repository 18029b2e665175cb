//! What a killed restore leaves: tasks that wait for ever for a CRIU that is gone.

use std::path::PathBuf;
use std::time::Instant;

use super::care::{Aftermath, LOOK};
use super::tasks::{self, Task, Trail};
use crate::error::TaskState;
use crate::rpc::swrk::reap_in_background;

#[derive(Debug)]
pub(crate) struct RestoreCare {
    pub(crate) trail: Trail,
    pub(crate) program: PathBuf,
    /// Pids that the restored tasks get in our own pid namespace; empty when they get one of their own.
    pub(crate) pids: Vec<i32>,
    /// The numbers that CRIU tells mean the same here.
    pub(crate) same_pids: bool,
    pub(crate) started: u64,
    /// The root task is a child of ours.
    pub(crate) sibling: bool,
    /// The worker becomes a command and stays.
    pub(crate) exec: bool,
    pub(crate) roots: Vec<Task>,
    /// The tasks stand at their last gate or run: they are whole, and run on when CRIU dies.
    pub(crate) released: bool,
}

impl RestoreCare {
    /// Takes note of a root that a callback names.
    pub(crate) fn note_root(&mut self, pid: i32) {
        if self.same_pids && self.roots.iter().all(|root| root.pid != pid) {
            self.roots.extend(Task::open(pid));
        }
    }

    /// Kills whatever the worker had made: known roots with all below them, its own forks, and what its trail leads to.
    pub(crate) fn kill_half_restored(
        &self,
        worker: Option<i32>,
        deadline: Instant,
        aftermath: &mut Aftermath,
    ) {
        let mut killed = 0;
        loop {
            let mark = self.trail.mark.iter();
            let roots: Vec<i32> = self
                .roots
                .iter()
                .filter(|root| root.state() != TaskState::Absent)
                .map(|root| root.pid)
                .chain(mark.flat_map(|mark| tasks::marked(mark, &self.program)))
                .chain(self.trail.half_restored(self.started))
                .filter(|pid| Some(*pid) != worker)
                .collect();
            let tree: Vec<Task> = tasks::with_descendants(&roots)
                .into_iter()
                .filter_map(Task::open)
                // A number may have come to mean another process, but none that is older than the restore. That of a root which
                // a callback named has not: its handle was opened then.
                .filter(|task| {
                    let named = self.roots.iter().any(|root| root.pid == task.pid);
                    (named || task.started >= self.started) && task.state() != TaskState::Absent
                })
                .collect();
            if tree.is_empty() {
                break;
            }
            for task in &tree {
                if task.kill(deadline) {
                    killed += 1;
                } else {
                    aftermath
                        .left_behind
                        .push(format!("half-restored task {} does not die", task.pid));
                    return;
                }
            }
        }
        if killed > 0 {
            aftermath
                .undone
                .push(format!("{killed} half-restored tasks killed"));
        }
        if !self.same_pids {
            aftermath.left_behind.push(
                "perhaps half-restored tasks, which cannot be looked for from here: criu's service is in another pid namespace".into(),
            );
        }
        aftermath.left_behind.extend(self.newcomers().map(|stat| {
            format!(
                "process {} ({}), which came up at a pid of the images meanwhile: nothing shows whether it is a half-restored task or somebody else's",
                stat.pid, stat.comm
            )
        }));
    }

    /// The state that the tasks are seen in: now, or at `deadline` if they are on their way to another.
    pub(crate) fn state(&self, undone_by_criu: bool, deadline: Instant) -> TaskState {
        if undone_by_criu {
            self.wait_for_pids(deadline);
        }
        let known = self
            .roots
            .iter()
            .map(|root| match undone_by_criu && root.gone(deadline) {
                true => TaskState::Absent,
                false => root.settled_state(deadline),
            })
            .find(|state| *state != TaskState::Absent);
        let found = || {
            let half = self.trail.half_restored(self.started);
            half.into_iter()
                .filter_map(Task::open)
                .map(|task| task.settled_state(deadline))
                .find(|state| *state != TaskState::Absent)
        };
        let newcomer = || self.newcomers().next();
        match known.or_else(found) {
            Some(state) => state,
            // CRIU has said so, and nothing speaks against it.
            None if undone_by_criu => TaskState::Absent,
            None => match newcomer() {
                Some(stat) if self.released => tasks::state_of(&stat),
                Some(_) => TaskState::Unknown,
                None if self.same_pids => TaskState::Absent,
                None => TaskState::Unknown,
            },
        }
    }

    /// Waits for tasks that CRIU has killed without having told of them: they may not be gone yet, and whoever tries again
    /// needs their pids.
    fn wait_for_pids(&self, deadline: Instant) {
        let still_there = |&pid: &i32| {
            tasks::stat(pid).is_some_and(|stat| stat.starttime >= self.started && stat.state != 'Z')
        };
        while self.pids.iter().any(still_there) && Instant::now() < deadline {
            std::thread::sleep(LOOK);
        }
    }

    /// Who has pids of the images that were free when the restore began.
    fn newcomers(&self) -> impl Iterator<Item = procfs::process::Stat> {
        self.pids
            .iter()
            .filter_map(|&pid| tasks::stat(pid))
            .filter(|stat| stat.starttime >= self.started && !tasks::is_ending(stat))
    }
}

impl Drop for RestoreCare {
    /// The root of a restore that could not be stopped any more is our child, and nobody has its handle.
    fn drop(&mut self) {
        if self.sibling {
            for root in self.roots.drain(..) {
                reap_in_background(root.into_pidfd());
            }
        }
    }
}
