//! Processes to checkpoint, as the tests see them. What they do inside is in [`roles`](crate::roles).

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use criu_client::options::{DumpOptions, RestoreOptions};
use criu_client::{ImagesDir, TaskState};

use crate::contain;
use crate::support::*;

/// What a victim has besides a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    /// A network namespace of its own, so that network-lock and setup-namespaces come.
    Network,
    /// A root of its own with a terminal whose other end is outside, so that orphan-pts-master comes.
    Terminal,
}

/// How a victim is to be made.
#[derive(Default)]
pub(crate) struct Spec {
    /// What it does, see [`roles`](crate::roles).
    pub(crate) role: &'static str,
    /// For the role.
    pub(crate) argument: String,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) directory: Option<PathBuf>,
    /// The network namespace it starts in.
    pub(crate) network: Option<OwnedFd>,
    /// The user and group that it is from the start.
    pub(crate) user: Option<u32>,
    /// A mount namespace with a root directory of its own.
    pub(crate) root: bool,
    /// With a root: a pid namespace in which it is number 1.
    pub(crate) pid_namespace: bool,
    /// With a root: a terminal of its own devpts, the master of which the test has.
    pub(crate) terminal: bool,
}

impl Spec {
    pub(crate) fn role(role: &'static str) -> Self {
        Self {
            role,
            ..Self::default()
        }
    }

    pub(crate) fn argument(mut self, argument: impl ToString) -> Self {
        self.argument = argument.to_string();
        self
    }
}

/// A process that counts in a file for as long as all that it has is as it should be, made of this test program itself,
/// in a session of its own.
pub(crate) struct Victim {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) pid: i32,
    pub(crate) master: Option<OwnedFd>,
    root: Option<PathBuf>,
    terminal: bool,
    reaped: bool,
}

impl Victim {
    pub(crate) fn start(kind: Kind) -> Result<Self, String> {
        match kind {
            Kind::Plain => Spec::role("plain"),
            Kind::Network => Spec::role("network"),
            Kind::Terminal => Spec {
                root: true,
                terminal: true,
                ..Spec::role("echo")
            },
        }
        .start()
    }

    pub(crate) fn images(&self, name: &str) -> ImagesDir {
        ImagesDir::create(self.directory.path().join(name)).expect("an images directory")
    }

    /// The victim's root directory, if it has one of its own; a mount point.
    pub(crate) fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// What dumping it takes.
    pub(crate) fn dump_options(&self) -> DumpOptions {
        let options = DumpOptions::new().orphan_pts_master(self.terminal);
        match &self.root {
            Some(root) => options.root(root),
            None => options,
        }
    }

    /// What restoring it takes.
    pub(crate) fn restore_options(&self) -> RestoreOptions {
        restore_options(self.root(), self.terminal)
    }

    pub(crate) fn count_file(&self) -> PathBuf {
        self.root
            .as_deref()
            .unwrap_or(self.directory.path())
            .join("count")
    }

    pub(crate) fn count(&self) -> Option<u64> {
        fs::read_to_string(self.count_file())
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    /// It runs and everything it has is in order: the count goes on.
    pub(crate) fn goes_on(&self) -> Outcome {
        let before = self.count().unwrap_or(0);
        until("the count goes on", || {
            self.count().is_some_and(|count| count > before + 1) || self.complaint().is_some()
        })
        .map_err(|error| format!("{error}; state of {}: {:?}", self.pid, state(self.pid)))?;
        match self.complaint() {
            Some(complaint) => Err(format!("the victim found something wrong: {complaint}")),
            None => Ok(()),
        }
    }

    fn complaint(&self) -> Option<String> {
        fs::read_to_string(self.count_file().with_extension("complaint")).ok()
    }

    pub(crate) fn exists(&self) -> bool {
        state(self.pid).is_some_and(|state| state != 'Z')
    }

    /// Reaps the original process after a dump that killed it.
    pub(crate) fn reap(&mut self) -> Outcome {
        self.master = None;
        if !self.reaped {
            nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(self.pid), None).map_err(text)?;
            self.reaped = true;
        }
        Ok(())
    }

    /// The same in a process where somebody else may reap.
    pub(crate) fn reap_if_ours(&mut self) {
        self.reaped = true;
        self.end();
    }

    /// Dumps it for good and reaps it.
    pub(crate) fn killed_into(&mut self, images: &ImagesDir, options: DumpOptions) -> Outcome {
        let report = block_on(criu().dump(self.pid, images, (), options)).map_err(whole)?;
        ensure!(report.tasks == TaskState::Absent, "{report:?}");
        self.reap()?;
        // The rest of its tree comes to us.
        reap_orphans();
        Ok(())
    }

    /// A restored process that has another pid is the victim from now on.
    pub(crate) fn is_now(&mut self, pid: i32) {
        self.pid = pid;
    }

    /// Kills and reaps whatever runs under its pid now, restored or not.
    pub(crate) fn end(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.pid);
        let foreign = self.exists() && !self.is_ours();
        if self.exists() && !foreign {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        // Detached restores come to us because we are the subreaper; siblings are ours anyway.
        let flags = foreign.then_some(nix::sys::wait::WaitPidFlag::WNOHANG);
        let _ = nix::sys::wait::waitpid(pid, flags);
    }

    fn is_ours(&self) -> bool {
        with_argument(&self.count_file()).contains(&self.pid)
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.end();
        // A restored victim that a failed test has not got hold of.
        for pid in with_argument(&self.count_file()) {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        if let Some(root) = &self.root {
            let _ = nix::mount::umount2(root, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

pub(crate) fn restore_options(root: Option<&Path>, terminal: bool) -> RestoreOptions {
    let options = RestoreOptions::new().orphan_pts_master(terminal);
    match root {
        Some(root) => options.root(root),
        None => options,
    }
}

impl Spec {
    pub(crate) fn start(self) -> Result<Victim, String> {
        let directory = tempfile::tempdir().map_err(text)?;
        let root = match self.root {
            true => Some(contain::make_root(&directory.path().join("root"))?),
            false => None,
        };
        let own = std::env::current_exe().map_err(text)?;
        let mut victim = Victim {
            directory,
            pid: 0,
            master: None,
            root,
            terminal: self.terminal,
            reaped: false,
        };
        let mut command = Command::new(own);
        // The path as the tests know it is an argument in any case: processes are found by it.
        let outside = victim.count_file();
        let mut control = None;
        match victim.root() {
            Some(root) => {
                let (ours, theirs) = contain::control().map_err(text)?;
                command.arg("--contain").arg(root);
                command.args([self.pid_namespace.to_string(), self.terminal.to_string()]);
                command.stdin(theirs);
                control = Some(ours);
            }
            None => {
                command.arg("--victim").arg(&outside).stdin(Stdio::null());
            }
        }
        command.arg(self.role).arg(&self.argument).arg(&outside);
        command
            .stdout(self.stdout.map_or_else(Stdio::null, Stdio::from))
            .stderr(Stdio::null());
        command.envs(self.environment);
        if let Some(directory) = self.directory {
            command.current_dir(directory);
        }
        if let Some(user) = self.user {
            let place = victim.directory.path();
            std::os::unix::fs::chown(place, Some(user), Some(user)).map_err(text)?;
            command.uid(user).gid(user);
        }
        let network = self.network;
        // SAFETY: all are system calls that touch no memory of the parent.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(move || {
                nix::unistd::setsid()?;
                if let Some(network) = &network {
                    nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET)?;
                }
                Ok(())
            });
        }
        let mut child = command.spawn().map_err(text)?;
        victim.pid = child.id() as i32;
        drop(command);
        if let Some(control) = control {
            let (pid, master) = contain::started(&control, self.terminal)?;
            if pid != victim.pid {
                child.wait().map_err(text)?;
                victim.pid = pid;
            }
            victim.master = master;
        }
        until("the victim counts", || {
            victim.count().is_some_and(|count| count > 2) || !victim.exists()
        })?;
        ensure!(
            victim.exists(),
            "the victim has ended: {:?}",
            victim.complaint()
        );
        Ok(victim)
    }
}

/// A process that has nothing to do with CRIU, at a pid of our choice, with every signal blocked as a task's that is being
/// restored.
pub(crate) struct Stranger(std::process::Child);

impl Stranger {
    pub(crate) fn at(pid: i32) -> Result<Self, String> {
        for _ in 0..100 {
            fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).map_err(text)?;
            let stranger = Self::start()?;
            if stranger.pid() == pid {
                return Ok(stranger);
            }
        }
        Err(format!("no process could be made at pid {pid}"))
    }

    pub(crate) fn start() -> Result<Self, String> {
        let mut command = Command::new("/bin/sleep");
        command
            .arg("1000")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: both are system calls that touch no memory of the parent.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                nix::sys::signal::SigSet::all().thread_block()?;
                Ok(())
            });
        }
        command.spawn().map(Self).map_err(text)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    pub(crate) fn lives(&self) -> bool {
        state(self.pid()).is_some_and(|state| state != 'Z')
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The inode number of what a descriptor stands for.
pub(crate) fn inode(fd: &impl AsRawFd) -> Result<u64, String> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .map(|metadata| metadata.ino())
        .map_err(text)
}

/// What stands behind `/proc/PID/ns/KIND`.
pub(crate) fn namespace(pid: i32, kind: &str) -> Result<PathBuf, String> {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).map_err(text)
}
