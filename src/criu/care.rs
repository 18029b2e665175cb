//! What an operation would leave behind if CRIU were killed, and how it is undone.
//!
//! | CRIU is killed during | it leaves | undone by |
//! |---|---|---|
//! | a dump, once the network is locked | iptables rules or an nftables table in the tasks' namespace | [`netlock`](super::netlock) |
//! | a dump with `tcp_established` | connections in repair mode, on which every call of the tasks fails | taking them out of it |
//! | a dump with `freeze_cgroup` | perhaps a frozen cgroup that was thawed before, or the reverse | making it as it was |
//! | a restore, once a task exists | tasks that wait for ever in the restorer | killing them |
//! | a page server | its child, which waits for a connection | killing it |
//!
//! The dumped tasks run on by themselves when their tracer dies, at any callback and in the middle of writing their memory
//! (not in the short moments when a task runs CRIU's code through ptrace: then it may die too). That is why
//! repair mode is a matter of a race: a task that uses its connection in the moment before it is undone gets an error.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::netlock::{NetworkLock, end_repair};
use super::tasks::{self, Task};
use crate::error::TaskState;
use crate::notify::Event;
use crate::rpc::swrk::reap_in_background;

/// How often tasks that are dying are looked at again.
const LOOK: Duration = Duration::from_millis(2);

/// What must be known to undo an operation from outside.
#[derive(Debug)]
pub(crate) enum Care {
    /// Nothing can be left behind.
    Nothing,
    /// The same, and the tree's root is this process: whoever reads the outcome runs.
    Itself,
    Dump(DumpCare),
    Restore(RestoreCare),
    PageServer {
        child: Option<Task>,
    },
}

#[derive(Debug)]
pub(crate) struct DumpCare {
    task: Option<Task>,
    freezer: Option<Freezer>,
    network: Option<NetworkLock>,
    /// Established connections are put into repair mode, and are locked one by one where the tasks share our network
    /// namespace.
    repairs_connections: bool,
    /// The lazy dump waits for a connection and notices nothing else.
    listening: bool,
    /// How a good dump leaves the tasks.
    leaves: TaskState,
}

#[derive(Debug)]
pub(crate) struct RestoreCare {
    pub(crate) mark: String,
    pub(crate) program: PathBuf,
    /// Pids that the restored tasks get in our own pid namespace; empty when they get one of their own.
    pub(crate) pids: Vec<i32>,
    pub(crate) started: u64,
    /// The root task is a child of ours.
    pub(crate) sibling: bool,
    /// The worker becomes a command and stays.
    pub(crate) exec: bool,
    pub(crate) roots: Vec<Task>,
    /// The tasks stand at their last gate or run: they are whole, and run on when CRIU dies.
    pub(crate) released: bool,
}

/// What was undone and what could not be, in words.
#[derive(Debug, Default)]
pub(crate) struct Aftermath {
    pub(crate) undone: Vec<String>,
    pub(crate) left_behind: Vec<String>,
}

impl Care {
    pub(crate) fn dump(pid: i32, freeze_cgroup: Option<&str>, repairs_connections: bool) -> Self {
        Self::Dump(DumpCare {
            task: Task::open(pid),
            freezer: freeze_cgroup.and_then(Freezer::as_now),
            network: None,
            repairs_connections,
            listening: false,
            leaves: TaskState::Running,
        })
    }

    /// Says how a good dump leaves the tasks.
    pub(crate) fn leaving(mut self, state: TaskState) -> Self {
        if let Self::Dump(care) = &mut self {
            care.leaves = state;
        }
        self
    }

    /// The state that the tasks are seen in after a good dump: CRIU answers a moment before they are as it leaves them.
    pub(crate) fn state_left(&self, deadline: Instant) -> TaskState {
        if let Self::Dump(care) = self
            && let Some(task) = care
                .task
                .as_ref()
                .filter(|_| care.leaves != TaskState::Running)
        {
            while task.state() == TaskState::Running && Instant::now() < deadline {
                std::thread::sleep(LOOK);
            }
        }
        self.state(false, deadline)
    }

    /// Takes note of what a callback tells, before anybody else gets to know of it.
    pub(crate) fn at(&mut self, event: &Event) {
        match (self, event) {
            (Self::Dump(care), Event::NetworkLock) => {
                care.network = care
                    .task
                    .as_ref()
                    .and_then(|task| NetworkLock::of_namespace(task.pid));
            }
            (Self::Dump(care), Event::PreDump) if care.repairs_connections => {
                care.network = care
                    .task
                    .as_ref()
                    .and_then(|task| NetworkLock::of_connections(task.pid));
            }
            (Self::Dump(care), Event::QueryExternalFiles) => {
                if let (Some(network), Some(task)) = (&mut care.network, &care.task) {
                    network.note_connections(task.pid);
                }
            }
            (Self::Dump(care), Event::StatusReady) => care.listening = true,
            (Self::Restore(care), Event::SetupNamespaces { pid } | Event::PostRestore { pid })
                if care.roots.iter().all(|root| root.pid != *pid) =>
            {
                care.roots.extend(Task::open(*pid));
            }
            (Self::Restore(care), Event::PreResume | Event::PostResume) => care.released = true,
            _ => {}
        }
    }

    /// Whether CRIU would not notice that we have gone, so that it has to be killed at once.
    pub(crate) fn must_be_killed(&self) -> bool {
        match self {
            Self::Nothing | Self::Itself | Self::PageServer { .. } => true,
            Self::Dump(care) => care.listening,
            Self::Restore(_) => false,
        }
    }

    pub(crate) fn worker_stays(&self) -> bool {
        matches!(self, Self::Restore(care) if care.exec)
    }

    /// After the worker has ended without having put things right itself.
    pub(crate) fn undo(&self, worker: Option<i32>, deadline: Instant) -> Aftermath {
        let mut aftermath = Aftermath::default();
        match self {
            Self::Nothing | Self::Itself => {}
            Self::Dump(care) => {
                if let Some(task) = care.task.as_ref().filter(|_| care.repairs_connections) {
                    end_repair(task.pid, &mut aftermath);
                }
                if let Some(network) = &care.network {
                    network.unlock(&mut aftermath);
                }
                if let Some(freezer) = &care.freezer {
                    freezer.restore(&mut aftermath);
                }
            }
            Self::Restore(care) if care.released => {}
            Self::Restore(care) => care.kill_half_restored(worker, deadline, &mut aftermath),
            Self::PageServer { child } => {
                if let Some(child) = child {
                    child.kill(deadline);
                    aftermath
                        .undone
                        .push(format!("page server (pid {})", child.pid));
                }
            }
        }
        aftermath
    }

    /// Reaps what a failed sibling restore leaves to its caller: dead tasks that are our children. `undone_by_criu`: they
    /// are killed, but may not be dead yet.
    pub(crate) fn reap_siblings(
        &self,
        worker: Option<i32>,
        undone_by_criu: bool,
        deadline: Instant,
    ) {
        if let Self::Restore(care) = self
            && care.sibling
        {
            for root in &care.roots {
                if undone_by_criu {
                    root.gone(deadline);
                }
                root.reap();
            }
            // A root that led a session is no longer in the worker's, but has the pid of the images.
            let zombies = worker.into_iter().flat_map(tasks::zombies_of_session);
            for task in zombies
                .chain(care.pids.iter().copied())
                .filter_map(Task::open)
            {
                task.reap();
            }
        }
    }

    /// The state that the tasks are seen in: now, or at `deadline` if they are on their way to another. After a restore that
    /// CRIU reports as failed, `undone_by_criu`, that is absence: the tasks are killed, but may not be gone yet.
    pub(crate) fn state(&self, undone_by_criu: bool, deadline: Instant) -> TaskState {
        match self {
            Self::Nothing | Self::PageServer { .. } => TaskState::NotConcerned,
            Self::Itself => TaskState::Running,
            Self::Dump(care) => match &care.task {
                Some(_) if care.freezer.as_ref().is_some_and(Freezer::is_frozen) => {
                    TaskState::Frozen
                }
                Some(task) => task.settled_state(deadline),
                None => TaskState::Unknown,
            },
            Self::Restore(care) => {
                if undone_by_criu {
                    care.wait_for_pids(deadline);
                }
                care.roots
                    .iter()
                    .map(|root| match undone_by_criu && root.gone(deadline) {
                        true => TaskState::Absent,
                        false => root.settled_state(deadline),
                    })
                    .find(|state| *state != TaskState::Absent)
                    .unwrap_or(TaskState::Absent)
            }
        }
    }

    /// The restored root, for the one who will wait for it.
    pub(crate) fn take_root(&mut self, pid: i32) -> Option<OwnedFd> {
        match self {
            Self::Restore(care) => {
                let known = care.roots.iter().position(|root| root.pid == pid);
                known
                    .map(|index| care.roots.swap_remove(index))
                    .or_else(|| Task::open(pid))
                    .map(Task::into_pidfd)
            }
            _ => None,
        }
    }
}

impl RestoreCare {
    /// Kills whatever the worker had made: known roots with all below them, its own forks, and processes that came up at
    /// pids of the images meanwhile (those pids were free when the restore began) and look as restored tasks do.
    fn kill_half_restored(
        &self,
        worker: Option<i32>,
        deadline: Instant,
        aftermath: &mut Aftermath,
    ) {
        let mut killed = 0;
        loop {
            let roots: Vec<i32> =
                self.roots
                    .iter()
                    .filter(|root| root.state() != TaskState::Absent)
                    .map(|root| root.pid)
                    .chain(tasks::marked(&self.mark, &self.program))
                    .chain(self.pids.iter().copied().filter(|&pid| {
                        self.came_up_meanwhile(pid) && tasks::is_being_restored(pid)
                    }))
                    .filter(|pid| Some(*pid) != worker)
                    .collect();
            let tree: Vec<Task> = tasks::with_descendants(&roots)
                .into_iter()
                .filter_map(Task::open)
                .filter(|task| task.state() != TaskState::Absent)
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
    }

    /// Waits for tasks that CRIU has killed without having told of them: they may not be gone yet, and whoever tries again
    /// needs their pids.
    fn wait_for_pids(&self, deadline: Instant) {
        while self.pids.iter().any(|&pid| self.came_up_meanwhile(pid)) && Instant::now() < deadline
        {
            std::thread::sleep(LOOK);
        }
    }

    fn came_up_meanwhile(&self, pid: i32) -> bool {
        tasks::stat(pid).is_some_and(|stat| stat.starttime >= self.started && stat.state != 'Z')
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

/// A freezer cgroup as it was when the operation began.
#[derive(Debug)]
struct Freezer {
    control: PathBuf,
    was_frozen: bool,
    frozen: &'static str,
    thawed: &'static str,
}

impl Freezer {
    fn as_now(directory: &str) -> Option<Self> {
        let forms = [
            ("freezer.state", "FROZEN", "THAWED"),
            ("cgroup.freeze", "1", "0"),
        ];
        forms
            .into_iter()
            .map(|(file, frozen, thawed)| Self {
                control: Path::new(directory).join(file),
                was_frozen: false,
                frozen,
                thawed,
            })
            .find(|freezer| freezer.control.exists())
            .map(|freezer| Self {
                was_frozen: freezer.is_frozen(),
                ..freezer
            })
    }

    fn is_frozen(&self) -> bool {
        fs::read_to_string(&self.control)
            .is_ok_and(|state| state.trim_end() == self.frozen || state.trim_end() == "FREEZING")
    }

    /// Makes it again as it was: CRIU freezes what it dumps, and thaws what was frozen while it dumps it.
    fn restore(&self, aftermath: &mut Aftermath) {
        if self.is_frozen() == self.was_frozen {
            return;
        }
        let (state, word) = match self.was_frozen {
            true => (self.frozen, "frozen"),
            false => (self.thawed, "thawed"),
        };
        match fs::write(&self.control, state) {
            Ok(()) => aftermath
                .undone
                .push(format!("{} {word} again", self.control.display())),
            Err(error) => aftermath
                .left_behind
                .push(format!("{} is not {word}: {error}", self.control.display())),
        }
    }
}
