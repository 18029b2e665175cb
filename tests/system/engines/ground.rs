//! What an engine of a test stands on, and what must be left of it: nothing.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::services::services;
use crate::support::{Outcome, PATIENCE, ensure, reap_orphans, state, text, until};

/// What an engine gets in its environment besides what we have in ours.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment {
    /// The directory that is looked at first for a program.
    pub(crate) first_on_path: Option<PathBuf>,
    pub(crate) variables: Vec<(String, OsString)>,
}

impl Environment {
    pub(crate) fn first_on_path(directory: impl Into<PathBuf>) -> Self {
        Self {
            first_on_path: Some(directory.into()),
            ..Self::default()
        }
    }

    /// A root shell that was made by su has no sbin directories on its path: they come last.
    pub(crate) fn path(&self) -> Result<OsString, String> {
        let ours = std::env::var_os("PATH").unwrap_or_default();
        let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
        std::env::join_paths(
            (self.first_on_path.clone().into_iter())
                .chain(std::env::split_paths(&ours))
                .chain(sbin),
        )
        .map_err(text)
    }
}

/// Counts in `/data/count`, with a word that no other run of it has. The length stays the same, since CRIU restores only
/// files of the size they had.
pub(crate) const COUNTER: [&str; 3] = [
    "/bin/sh",
    "-c",
    "read run </proc/sys/kernel/random/uuid; i=0; \
     while :; do i=$((i+1)); printf '%s %020d' $run $i 1<>/data/count; sleep 0.02; done",
];

/// How far the counter of a container has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Count {
    run: String,
    number: u64,
}

impl Count {
    /// Of the same run as another.
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        self.run == other.run
    }
}

/// A directory, a control group and an environment for one engine and its container.
pub(crate) struct Ground {
    directory: tempfile::TempDir,
    /// The name of the container, and of the control group around it.
    pub(crate) id: String,
    /// The containers that have groups of their own names somewhere else.
    containers: Arc<Mutex<Vec<String>>>,
    environment: Environment,
}

impl Count {
    /// Whether it is of the same run, and at most `distance` ahead of `other`.
    pub(crate) fn is_within(&self, other: &Self, distance: u64) -> bool {
        self.run == other.run && (other.number + 1..=other.number + distance).contains(&self.number)
    }
}

impl Ground {
    pub(super) fn new(name: &str, environment: Environment) -> Result<Self, String> {
        // Sockets below it, and Podman's directory for them, must have short names.
        let directory = tempfile::tempdir_in("/tmp").map_err(text)?;
        let unique = directory.path().file_name().unwrap_or_default();
        let ground = Self {
            id: format!(
                "criuctl-test-{name}-{}",
                unique.to_string_lossy().trim_start_matches('.')
            )
            .to_lowercase(),
            directory,
            containers: Arc::default(),
            environment,
        };
        for directory in ["tmp", "data"] {
            fs::create_dir(ground.path(directory)).map_err(text)?;
        }
        // Whoever the container runs as.
        fs::set_permissions(ground.path("data"), Permissions::from_mode(0o777)).map_err(text)?;
        Ok(ground)
    }

    /// For what the engine needs in any case.
    pub(super) fn set(&mut self, variable: &str, value: impl Into<OsString>) {
        let variables = &mut self.environment.variables;
        variables.push((variable.to_owned(), value.into()));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The same for an argument.
    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The control group in which the container's is made.
    pub(crate) fn group(&self) -> String {
        format!("/{}", self.id)
    }

    /// A service has put this container into a group where it puts all.
    pub(super) fn holds(&self, container: &str) {
        if let (true, Ok(mut containers)) = (services(), self.containers.lock()) {
            containers.push(container.to_owned());
        }
    }

    /// A root file system of busybox.
    pub(super) fn make_rootfs(&self) -> Result<PathBuf, String> {
        let rootfs = self.path("rootfs");
        let bin = rootfs.join("bin");
        for directory in ["bin", "data", "dev", "etc", "proc", "sys", "tmp"] {
            fs::create_dir_all(rootfs.join(directory)).map_err(text)?;
        }
        fs::copy("/bin/busybox", bin.join("busybox"))
            .map_err(|error| format!("/bin/busybox: {error}"))?;
        for applet in ["sh", "sleep", "cat", "echo", "ip", "true"] {
            symlink("busybox", bin.join(applet)).map_err(text)?;
        }
        Ok(rootfs)
    }

    /// The same as an archive that engines make an image of.
    pub(super) fn make_archive(&self) -> Result<String, String> {
        let (rootfs, archive) = (self.make_rootfs()?, self.text("rootfs.tar"));
        let mut tar = Command::new("tar");
        tar.args(["--create", "--file", &archive, "--directory"]);
        tar.arg(rootfs).arg(".");
        self.finish(tar)?;
        Ok(archive)
    }

    /// The bind mount that the counter needs, as Podman and Docker are told.
    pub(crate) fn volume(&self) -> String {
        format!("{}:/data", self.text("data"))
    }

    pub(crate) fn command(&self, invocation: &[String]) -> Result<Command, String> {
        let (program, arguments) = invocation.split_first().ok_or("no program")?;
        let mut command = Command::new(program);
        // What the user of this machine has set for the engines is not for the tests'.
        for (variable, _) in std::env::vars_os() {
            let name = variable.to_string_lossy();
            if ["DOCKER_", "CONTAINER_", "CONTAINERS_", "PODMAN_"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
            {
                command.env_remove(&variable);
            }
        }
        command
            .args(arguments)
            .env("PATH", self.environment.path()?)
            .env("TMPDIR", self.path("tmp"))
            .envs(self.environment.variables.iter().cloned())
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Runs a command to its end: what it printed, or what it complained of. Its output goes through files, since what it
    /// leaves running may hold on to it.
    pub(super) fn finish(&self, mut command: Command) -> Result<String, String> {
        let (output, complaints) = (self.path("stdout"), self.path("stderr"));
        command.stdout(File::create(&output).map_err(text)?);
        command.stderr(File::create(&complaints).map_err(text)?);
        self.finish_silently(command).map_err(|error| {
            let complaints = fs::read_to_string(&complaints).unwrap_or_default();
            format!("{error}: {complaints}")
        })?;
        fs::read_to_string(&output).map_err(text)
    }

    /// The same of a command that has its output somewhere else.
    pub(crate) fn finish_silently(&self, mut command: Command) -> Outcome {
        let status = within(&mut command, PATIENCE * 3)?;
        ensure!(status.success(), "{}: {status}", line(&command));
        Ok(())
    }

    /// Nobody is in the container's control group.
    pub(crate) fn is_vacant(&self) -> bool {
        self.traces().members().is_empty()
    }

    pub(crate) fn count(&self) -> Option<Count> {
        let line = fs::read_to_string(self.path("data/count")).ok()?;
        let (run, number) = line.split_once(' ')?;
        Some(Count {
            run: run.to_owned(),
            number: number.parse().ok()?,
        })
    }

    /// Counts, and has not begun anew since `count`.
    pub(crate) fn goes_on_from(&self, count: &Count) -> Outcome {
        let goes_on = until("the count goes on", || {
            self.count()
                .is_some_and(|now| now.run == count.run && now.number > count.number + 1)
        });
        goes_on.map_err(|error| format!("{error} from {count:?}; it is {:?}", self.count()))
    }

    /// Counts.
    pub(crate) fn counts(&self) -> Outcome {
        until("the counter starts", || self.count().is_some())?;
        let count = self.count().ok_or("the count has vanished")?;
        self.goes_on_from(&count)
    }

    /// Does not count.
    pub(crate) fn stands_still(&self) -> Result<Count, String> {
        let before = self.count();
        std::thread::sleep(Duration::from_millis(100));
        let after = self.count();
        ensure!(before == after, "still counting: {before:?}, {after:?}");
        after.ok_or_else(|| "there is no count".into())
    }

    pub(crate) fn traces(&self) -> Sweep {
        Sweep {
            directory: self.directory.path().to_owned(),
            id: self.id.clone(),
            containers: self.containers.clone(),
        }
    }
}

impl Drop for Ground {
    /// Whatever the engine has left, after a failure or at all.
    fn drop(&mut self) {
        self.traces().sweep();
    }
}

/// A command's end, which must come within `patience`.
fn within(command: &mut Command, patience: Duration) -> Result<ExitStatus, String> {
    let mut child = command.spawn().map_err(|error| {
        format!(
            "{}: {error}; run scripts/install",
            command.get_program().display()
        )
    })?;
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().map_err(text)? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!(
                "{}: still running after {patience:?}",
                line(command)
            ));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What is run, without its environment.
fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// What a ground may leave, and how to find it.
pub(crate) struct Sweep {
    directory: PathBuf,
    id: String,
    containers: Arc<Mutex<Vec<String>>>,
}

impl Sweep {
    /// Neither processes nor mounts nor control groups nor files.
    pub(crate) fn nothing_is_left(&self) -> Outcome {
        reap_orphans();
        let processes = self.processes();
        ensure!(processes.is_empty(), "left running: {processes:?}");
        let mounts = self.mounts();
        ensure!(mounts.is_empty(), "left mounted: {mounts:?}");
        let groups = self.groups();
        ensure!(groups.is_empty(), "control groups were left: {groups:?}");
        ensure!(!self.directory.exists(), "left: {:?}", self.directory);
        Ok(())
    }

    fn sweep(&self) {
        for group in self.groups() {
            // What is frozen does not die.
            let _ = fs::write(group.join("freezer.state"), "THAWED");
        }
        let _ = until("the engine's processes are gone", || {
            let processes = self.processes();
            for pid in &processes {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            reap_orphans();
            processes.is_empty()
        });
        for mount in self.mounts() {
            let _ = umount2(&mount, MntFlags::MNT_DETACH);
        }
        let _ = until("the control groups are gone", || {
            let groups = self.groups();
            for group in &groups {
                let _ = fs::remove_dir(group);
            }
            groups.is_empty()
        });
    }

    /// Those that have the directory on their command lines, and those in the control groups. Zombies of ours are reaped;
    /// somebody else's are not ours to see to.
    fn processes(&self) -> Vec<i32> {
        let directory = self.directory.display().to_string();
        let mut found = mentioning(&directory);
        found.extend(self.members());
        found.retain(|pid| state(*pid).is_some_and(|state| state != 'Z'));
        found.sort_unstable();
        found.dedup();
        found
    }

    /// What the control groups allow, of either version.
    pub(crate) fn limits(&self) -> Vec<String> {
        const FILES: [&str; 5] = [
            "memory.limit_in_bytes",
            "cpu.cfs_quota_us",
            "memory.max",
            "cpu.max",
            "pids.max",
        ];
        let limits = self.groups().into_iter().flat_map(|group| {
            FILES.map(|file| {
                let limit = fs::read_to_string(group.join(file)).ok()?;
                Some(format!("{file} {}", limit.trim()))
            })
        });
        let mut limits: Vec<String> = limits.flatten().collect();
        limits.sort();
        limits
    }

    fn members(&self) -> Vec<i32> {
        let mut found = Vec::new();
        for group in self.groups() {
            let members = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            found.extend(members.lines().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        // 0 is who is in none of our pid namespaces.
        found.retain(|pid| *pid > 0);
        found
    }

    /// The innermost first.
    fn mounts(&self) -> Vec<PathBuf> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut found: Vec<_> = table
            .lines()
            .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
            .filter(|mount| mount.starts_with(&self.directory))
            .collect();
        found.reverse();
        found
    }

    /// In every hierarchy, the innermost first.
    fn groups(&self) -> Vec<PathBuf> {
        fn descend(group: PathBuf, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(&group).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    descend(entry.path(), found);
                }
            }
            found.push(group);
        }
        let mut found = Vec::new();
        let tops = fs::read_dir("/sys/fs/cgroup").into_iter().flatten();
        let tops = tops.flatten().map(|entry| entry.path());
        for top in std::iter::once(PathBuf::from("/sys/fs/cgroup")).chain(tops) {
            let group = top.join(&self.id);
            if group.is_dir() {
                descend(group, &mut found);
            }
        }
        let containers = self.containers.lock();
        let containers = containers.map_or_else(|_| Vec::new(), |containers| containers.clone());
        if !containers.is_empty() {
            let mut all = Vec::new();
            descend(PathBuf::from("/sys/fs/cgroup"), &mut all);
            all.retain(|group| {
                let group = group.to_string_lossy();
                containers.iter().any(|container| group.contains(container))
            });
            found.extend(all);
        }
        found
    }
}

/// Processes with `words` somewhere on their command lines; not ourselves.
pub(super) fn mentioning(words: &str) -> Vec<i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| u32::try_from(*pid) != Ok(std::process::id()))
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(words))
        })
        .collect()
}
