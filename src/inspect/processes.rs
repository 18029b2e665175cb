//! The processes and what they are.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::image::kinds::first;
use crate::image::{ImageError, ProcessTree, Task, proto};

use super::files::Files;
use super::memory::Arguments;
use super::source::Store;
use super::{Problem, text};

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Process {
    /// Its pid, in the container.
    pub pid: u32,
    /// The pid of its parent, 0 of the root.
    pub ppid: u32,
    /// Its process group.
    pub pgid: u32,
    /// Its session.
    pub sid: u32,
    /// Its name, as `ps -o comm` shows it.
    pub name: String,
    /// Whether it ran.
    pub state: ProcessState,
    /// What it ended with, as `wait(2)` has it, if it had ended.
    pub exit_code: Option<u32>,
    /// Its arguments; none if they were not asked for or are not in the images.
    pub arguments: Option<Vec<String>>,
    /// Its environment; none if it was not asked for or is not in the images.
    pub environment: Option<Vec<String>>,
    /// The path of its program.
    pub program: Option<String>,
    /// Its threads but for the first.
    pub threads: Vec<Thread>,
    /// What it may do.
    pub credentials: Option<Credentials>,
    /// The id of its control groups.
    pub control_groups: Option<u32>,
}

/// Whether a process ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ProcessState {
    /// It ran or slept.
    Alive,
    /// It had ended, and nobody had waited for it: a zombie.
    Dead,
    /// It was stopped by a signal.
    Stopped,
    /// The image of the process is not there, or says something unknown.
    Unknown,
}

/// A thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Thread {
    /// Its id.
    pub tid: u32,
    /// Its name, if it has one of its own.
    pub name: Option<String>,
}

/// What a process may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Credentials {
    /// Real user.
    pub uid: u32,
    /// Effective user.
    pub euid: u32,
    /// Real group.
    pub gid: u32,
    /// Effective group.
    pub egid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Effective capabilities by name.
    pub capabilities: Vec<String>,
    /// Whether it can get no more.
    pub no_new_privileges: bool,
    /// Its label of SELinux or AppArmor.
    pub lsm_profile: Option<String>,
    /// `strict` or `filter`, if system calls are filtered.
    pub seccomp: Option<&'static str>,
}

/// What a process has in common with others.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ids(proto::TaskKobjIdsEntry);

impl Ids {
    pub(super) fn files(&self) -> u32 {
        self.0.files_id
    }

    pub(super) fn namespaces(&self) -> impl Iterator<Item = (&'static str, u32)> {
        let ids = &self.0;
        let all = [
            ("pid", ids.pid_ns_id),
            ("net", ids.net_ns_id),
            ("ipc", ids.ipc_ns_id),
            ("uts", ids.uts_ns_id),
            ("mnt", ids.mnt_ns_id),
            ("user", ids.user_ns_id),
            ("cgroup", ids.cgroup_ns_id),
            ("time", ids.time_ns_id),
        ];
        all.into_iter()
            .filter_map(|(kind, id)| id.filter(|id| *id != 0).map(|id| (kind, id)))
    }
}

/// What was found of one process.
pub(super) struct Found {
    pub(super) task: Task,
    pub(super) core: Option<proto::CoreEntry>,
    pub(super) ids: Option<Ids>,
}

impl Found {
    pub(super) fn name(&self) -> String {
        let comm = self.core.as_ref().and_then(|core| core.tc.as_ref());
        comm.map_or_else(String::new, |core| text(&core.comm))
    }

    /// Whether it had ended: then only its core is there.
    pub(super) fn is_dead(&self) -> bool {
        self.task.threads.is_empty()
    }
}

/// All processes. What is missing or broken of one of them is a problem, and the others are told.
pub(super) fn found(store: &Store, tree: &ProcessTree, problems: &mut Vec<Problem>) -> Vec<Found> {
    let prefix = store.levels.first().map_or("", String::as_str);
    let found = tree.tasks().iter().map(|task| {
        let mut found = Found {
            task: task.clone(),
            core: None,
            ids: None,
        };
        found.core = one(
            store,
            prefix,
            &format!("core-{}.img", task.pid),
            true,
            problems,
        );
        let ids: Option<proto::TaskKobjIdsEntry> = one(
            store,
            prefix,
            &format!("ids-{}.img", task.pid),
            !found.is_dead(),
            problems,
        );
        let of_core = found.core.as_ref().and_then(|core| core.ids);
        found.ids = ids.or(of_core).map(Ids);
        found
    });
    found.collect()
}

fn one<M: prost::Message + Default>(
    store: &Store,
    prefix: &str,
    base: &str,
    must: bool,
    problems: &mut Vec<Problem>,
) -> Option<M> {
    let name = format!("{prefix}{base}");
    match store.content(&name) {
        Some(content) => first(base, content)
            .map_err(|error| problems.push(Problem::of(&name, error)))
            .ok(),
        None => {
            if must {
                problems.push(Problem::new(&name, "the image is missing"));
            }
            None
        }
    }
}

pub(super) fn processes(
    store: &Store,
    found: &[Found],
    files: &Files,
    arguments: &mut BTreeMap<u32, Arguments>,
    environment: bool,
    problems: &mut Vec<Problem>,
) -> Vec<Process> {
    let prefix = store.levels.first().map_or("", String::as_str);
    let mut processes = Vec::with_capacity(found.len());
    for one_found in found {
        let Found { task, core, .. } = one_found;
        let of_task = core.as_ref().and_then(|core| core.tc.as_ref());
        let of_thread = core.as_ref().and_then(|core| core.thread_core.as_ref());
        let mm = super::memory::mm(store, task.pid).unwrap_or_else(|error| {
            problems.push(Problem::of(&format!("{prefix}mm-{}.img", task.pid), error));
            None
        });
        let state = match of_task.map(|core| core.task_state) {
            Some(1) => ProcessState::Alive,
            Some(2 | 6) => ProcessState::Dead,
            Some(3) => ProcessState::Stopped,
            _ => ProcessState::Unknown,
        };
        let threads = task
            .threads
            .iter()
            .filter(|tid| **tid != task.pid)
            .map(|&tid| {
                let thread: Option<proto::CoreEntry> =
                    one(store, prefix, &format!("core-{tid}.img"), true, problems);
                let name = thread
                    .and_then(|core| core.thread_core)
                    .and_then(|core| core.comm);
                Thread {
                    tid,
                    name: name.as_deref().map(text),
                }
            });
        let threads = threads.collect();
        let own = arguments.remove(&task.pid);
        processes.push(Process {
            pid: task.pid,
            ppid: task.ppid,
            pgid: task.pgid,
            sid: task.sid,
            name: one_found.name(),
            state,
            exit_code: of_task
                .filter(|_| state == ProcessState::Dead)
                .map(|core| core.exit_code),
            arguments: own.as_ref().map(|own| strings(&own.arguments)),
            environment: own
                .as_ref()
                .filter(|_| environment)
                .map(|own| strings(&own.environment)),
            program: mm.and_then(|mm| files.name(mm.exe_file_id)),
            threads,
            credentials: of_thread.and_then(credentials),
            control_groups: of_thread.and_then(|_| of_task.and_then(|core| core.cg_set)),
        });
    }
    processes
}

/// Strings that end with NUL each.
fn strings(bytes: &[u8]) -> Vec<String> {
    let mut bytes = bytes;
    // What a process has written over may have no end, or several.
    while let Some(rest) = bytes.strip_suffix(&[0]) {
        bytes = rest;
    }
    match bytes {
        [] => Vec::new(),
        bytes => bytes.split(|byte| *byte == 0).map(text).collect(),
    }
}

fn credentials(core: &proto::ThreadCoreEntry) -> Option<Credentials> {
    let creds = core.creds.as_ref()?;
    Some(Credentials {
        uid: creds.uid,
        euid: creds.euid,
        gid: creds.gid,
        egid: creds.egid,
        groups: creds.groups.clone(),
        capabilities: capabilities(&creds.cap_eff),
        no_new_privileges: creds.no_new_privs.unwrap_or(0) != 0,
        lsm_profile: creds
            .lsm_profile
            .as_deref()
            .map(text)
            .filter(|label| !label.is_empty()),
        seccomp: match core.seccomp_mode {
            Some(1) => Some("strict"),
            Some(2) => Some("filter"),
            _ => None,
        },
    })
}

/// The kernel's capabilities by number.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

fn capabilities(words: &[u32]) -> Vec<String> {
    let bits = words.iter().take(2).enumerate().flat_map(|(index, word)| {
        (0..32)
            .filter(move |bit| word & (1 << bit) != 0)
            .map(move |bit| index * 32 + bit)
    });
    bits.map(|bit| match CAPABILITIES.get(bit) {
        Some(name) => format!("CAP_{name}"),
        None => format!("CAP_{bit}"),
    })
    .collect()
}

/// Children by parent, in the order of the images.
pub fn children(processes: &[Process]) -> HashMap<u32, Vec<&Process>> {
    let mut children: HashMap<u32, Vec<&Process>> = HashMap::new();
    for process in processes {
        children.entry(process.ppid).or_default().push(process);
    }
    children
}

/// The architecture that the images are of.
pub(super) fn architecture(core: &proto::CoreEntry) -> Option<String> {
    use proto::core_entry::March;

    let march = March::try_from(core.mtype)
        .ok()
        .filter(|march| *march != March::Unknown)?;
    Some(march.as_str_name().to_lowercase())
}

/// The tree, which everything about processes begins with.
pub(super) fn tree(store: &Store) -> Option<Result<ProcessTree, ImageError>> {
    let prefix = store.levels.first()?;
    let content = store.content(&format!("{prefix}pstree.img"))?;
    Some(ProcessTree::parse("pstree.img", content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_end_with_nul() {
        assert_eq!(strings(b"sh\0-c\0\0x\0"), ["sh", "-c", "", "x"]);
        assert_eq!(strings(b"nginx: worker\0\0\0"), ["nginx: worker"]);
        assert!(strings(b"\0\0").is_empty());
    }

    #[test]
    fn capabilities_have_names() {
        assert_eq!(
            capabilities(&[1 << 21, 1 << 8]),
            ["CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE"]
        );
        assert_eq!(capabilities(&[0, 1 << 31]), ["CAP_63"]);
    }
}
