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

use super::half_restored::RestoreCare;
use super::netlock::{NetworkLock, end_repair};
use super::tasks::{self, Task, Trail};
use crate::error::TaskState;
use crate::notify::Event;

/// How often tasks that are dying are looked at again.
pub(super) const LOOK: Duration = Duration::from_millis(2);

/// What must be known to undo an operation from outside.
#[derive(Debug)]
pub(crate) enum Care {
    /// Nothing can be left behind.
    Nothing,
    /// The same, and the tree's root is this process: whoever reads the outcome runs.
    Itself,
    Dump(DumpCare),
    Restore(RestoreCare),
    PageServer(PageServerCare),
}

/// What there is to go by once CRIU is about to be asked.
#[derive(Debug)]
pub(crate) struct Ground {
    /// CRIU's numbers of processes mean the same here. A service may be in another pid namespace: nothing is done then to
    /// whatever has a number that it tells.
    pub(crate) same_pids: bool,
    pub(crate) trail: Trail,
}

#[derive(Debug)]
pub(crate) enum PageServerCare {
    /// It has not been started.
    None,
    Child(Task),
    /// It has this number in a pid namespace that is not ours.
    Elsewhere(i32),
}

#[derive(Debug)]
pub(crate) struct DumpCare {
    /// The root, where its number means the same here.
    task: Option<Task>,
    same_pids: bool,
    /// CRIU has come to where it locks what a kill would leave locked.
    locks: bool,
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

/// What was undone and what could not be, in words.
#[derive(Debug, Default)]
pub(crate) struct Aftermath {
    pub(crate) undone: Vec<String>,
    pub(crate) left_behind: Vec<String>,
}

impl Care {
    pub(crate) fn dump(
        pid: i32,
        ground: &Ground,
        freeze_cgroup: Option<&str>,
        repairs_connections: bool,
    ) -> Self {
        Self::Dump(DumpCare {
            task: Some(pid).filter(|_| ground.same_pids).and_then(Task::open),
            same_pids: ground.same_pids,
            locks: false,
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
                care.locks = true;
                care.network = care
                    .task
                    .as_ref()
                    .and_then(|task| NetworkLock::of_namespace(task.pid));
            }
            (Self::Dump(care), Event::PreDump) if care.repairs_connections => {
                care.locks = true;
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
            (Self::Restore(care), Event::SetupNamespaces { pid } | Event::PostRestore { pid }) => {
                care.note_root(*pid);
            }
            (Self::Restore(care), Event::PreResume | Event::PostResume) => care.released = true,
            _ => {}
        }
    }

    /// Whether CRIU would not notice that we have gone, so that it has to be killed at once.
    pub(crate) fn must_be_killed(&self) -> bool {
        match self {
            Self::Nothing | Self::Itself | Self::PageServer(_) => true,
            Self::Dump(care) => care.listening,
            Self::Restore(_) => false,
        }
    }

    /// Whether something goes on and waits however CRIU itself ends.
    pub(crate) fn lives_on(&self) -> bool {
        matches!(
            self,
            Self::PageServer(PageServerCare::Child(_) | PageServerCare::Elsewhere(_))
        )
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
                if care.locks && !care.same_pids {
                    aftermath.left_behind.push(
                        "perhaps a network lock of criu's around the tasks, which cannot be looked for from here: criu's service is in another pid namespace".into(),
                    );
                }
            }
            Self::Restore(care) if care.released => {}
            Self::Restore(care) => care.kill_half_restored(worker, deadline, &mut aftermath),
            Self::PageServer(PageServerCare::Child(child)) => {
                if child.kill(deadline) {
                    let undone = format!("page server (pid {})", child.pid);
                    aftermath.undone.push(undone);
                } else {
                    let left = format!("page server (pid {}) does not die", child.pid);
                    aftermath.left_behind.push(left);
                }
            }
            Self::PageServer(PageServerCare::Elsewhere(pid)) => aftermath.left_behind.push(
                format!("the page server, process {pid} of another pid namespace, from where criu's service is"),
            ),
            Self::PageServer(PageServerCare::None) => {}
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
            Self::Nothing | Self::PageServer(_) => TaskState::NotConcerned,
            Self::Itself => TaskState::Running,
            Self::Dump(care) => match &care.task {
                Some(_) if care.freezer.as_ref().is_some_and(Freezer::is_frozen) => {
                    TaskState::Frozen
                }
                Some(task) => task.settled_state(deadline),
                None => TaskState::Unknown,
            },
            Self::Restore(care) => care.state(undone_by_criu, deadline),
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
