//! LXC.
//!
//! What `lxc-checkpoint` does: a container's processes are dumped by this library's own request, with the options and names
//! that LXC gives, so that LXC restores the images, and a restore is LXC's own, since only its monitor as parent makes a
//! container one of LXC's again. LXC has no daemon to be asked and no record but what its monitors tell at their sockets, so
//! its program `lxc-checkpoint` is run for that. Images go both ways.
//!
//! ```no_run
//! use criu_client::container::lxc::Lxc;
//! use criu_client::options::DumpOptions;
//! use criu_client::{Criu, ImagesDir};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let (criu, lxc) = (Criu::find()?, Lxc::new());
//! let images = ImagesDir::create("/var/tmp/web")?;
//! lxc.checkpoint(&criu, "web", &images, (), DumpOptions::new(), false).await?;
//! lxc.restore("/usr/bin/lxc-checkpoint", "web", &images).await?;
//! # Ok(())
//! # }
//! ```

mod command;
mod config;

use std::fs;
use std::io::{self, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;
use tracing::Instrument;

use super::adopt::Undoing;
use super::cgroup::{self, Hierarchies};
use super::error::{Error, ErrorKind, Result};
use super::list::Listed;
use super::model::{EngineKind, ProcessId, Status, is_valid_id};
use super::runtime::beside::{self, SAVED_PLAN};
use crate::diagnosis;
use crate::dry_run::{self, Action, Step, When};
use crate::image::INVENTORY;
use crate::notify::{HookError, Hooks, Notify, Reply, Script};
use crate::options::{AutoMounts, CgroupMode, DumpOptions, ExternalOnDump, Leave};
use crate::{Criu, DumpReport, ImagesDir, TaskState};
use command::State;
use config::Config;

/// Where LXC keeps its containers unless it is told otherwise.
pub const PATH: &str = "/var/lib/lxc";
/// What LXC's restore reads of the console.
const TTY: &str = "tty.info";
/// CRIU's log of LXC's restore.
const LOG: &str = "restore.log";
/// What the console is called in the images.
const CONSOLE: &str = "console";
/// The kinds of network interfaces that LXC restores.
const NETWORKS: [&str; 5] = ["veth", "none", "empty", "phys", "macvlan"];
/// How long a monitor may take to see the end of its container, and how often it is looked at.
const END: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(10);

type Found<T> = std::result::Result<T, ErrorKind>;

/// LXC's containers of one directory. Cheap to make and to clone.
#[derive(Debug, Clone)]
pub struct Lxc {
    path: PathBuf,
    undoing: Undoing,
}

/// A container as it was found.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its directory.
    pub directory: PathBuf,
    /// What it does.
    pub status: Status,
    /// Its first process; `None` when it is stopped.
    pub pid: Option<i32>,
}

/// What a checkpoint tells.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Checkpointed {
    /// What CRIU's dump tells.
    pub dump: DumpReport,
    /// What of the container is not as it should be, in words.
    pub left_behind: Vec<String>,
}

/// What a restore tells.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Restored {
    /// The container, as its monitor has it now.
    #[serde(flatten)]
    pub container: Container,
    /// How long LXC took, in microseconds in JSON.
    #[serde(rename = "timeMicros", serialize_with = "in_microseconds")]
    pub time: Duration,
}

fn in_microseconds<S: serde::Serializer>(
    time: &Duration,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

impl Default for Lxc {
    fn default() -> Self {
        Self::new()
    }
}

impl Lxc {
    /// The containers that LXC has when it is not told a path.
    #[must_use]
    pub fn new() -> Self {
        Self::with_path(PATH)
    }

    /// The containers of another `--lxcpath`.
    #[must_use]
    pub fn with_path(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            undoing: Undoing::new(),
        }
    }

    /// Where the containers are.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Completes when restores whose futures were dropped have ended.
    pub async fn settled(&self) {
        self.undoing.done().await;
    }

    /// Looks at a container. Its monitor is asked; the pid is that of the monitor's pid namespace.
    ///
    /// # Errors
    /// [`ErrorKind::Unknown`] when there is none of this name, [`ErrorKind::State`] when its monitor does not answer.
    pub fn load(&self, name: &str) -> Result<Container> {
        self.find(name).map_err(of(name))
    }

    /// The containers, by name.
    ///
    /// # Errors
    /// [`ErrorKind::System`] when the directory cannot be read. That there is none is no error.
    pub fn list(&self) -> Result<Vec<Listed>> {
        let names = super::list::names(&self.path).map_err(|source| {
            let doing = format!("reading {}", self.path.display());
            Error::new(EngineKind::Lxc, "", ErrorKind::System { doing, source })
        })?;
        let there = names
            .into_iter()
            .filter(|name| self.path.join(name).join("config").is_file());
        Ok(there.map(|name| self.listed(name)).collect())
    }

    fn listed(&self, name: String) -> Listed {
        let found = self.find(&name);
        let (pid, status) = match &found {
            Ok(container) => (container.pid, Some(container.status)),
            Err(_) => (None, None),
        };
        let obstacle = match found {
            Ok(container) => match self.obstacle(&container, false) {
                Ok(()) => None,
                Err(ErrorKind::NotRunning { status }) => Some(format!("it is {status}")),
                Err(kind) => Some(kind.to_string()),
            },
            Err(kind) => Some(kind.to_string()),
        };
        Listed {
            engine: EngineKind::Lxc,
            bundle: self.path.join(&name),
            id: name,
            name: None,
            pid,
            status,
            obstacle,
        }
    }

    fn find(&self, name: &str) -> Found<Container> {
        if !is_valid_id(name) {
            return Err(ErrorKind::InvalidId);
        }
        let directory = self.path.join(name);
        if !directory.join("config").is_file() {
            let root = self.path.clone();
            return Err(ErrorKind::Unknown { root });
        }
        let told = command::ask(&self.path, name).map_err(|source| ErrorKind::State {
            path: directory.join("command"),
            problem: "is the name of its monitor's socket, where it does not answer".into(),
            source: Some(source.into()),
        })?;
        let (status, pid) = match told {
            None => (Status::Stopped, None),
            Some((State::Starting, pid)) => (Status::Created, Some(pid)),
            Some((State::Running, pid)) => (Status::Running, Some(pid)),
            Some((State::Frozen, pid)) => (Status::Paused, Some(pid)),
            Some((State::Ending, _)) => (Status::Stopped, None),
        };
        Ok(Container {
            name: name.to_owned(),
            directory,
            status,
            pid,
        })
    }

    /// What would keep a container from being checkpointed, or restored afterwards. `stays`: it runs on.
    fn obstacle(&self, container: &Container, stays: bool) -> Found<()> {
        match container.status {
            Status::Running => {}
            Status::Paused => {
                return Err(ErrorKind::Unsupported(format!(
                    "it is frozen, and would come back so: `lxc-unfreeze {}` first",
                    container.name
                )));
            }
            status => return Err(ErrorKind::NotRunning { status }),
        }
        let config = Config::read(&container.directory.join("config"))?;
        if let Some(kind) = config
            .networks
            .iter()
            .find(|kind| !NETWORKS.contains(&kind.as_str()))
        {
            return Err(ErrorKind::Unsupported(format!(
                "it has a network interface of type {kind}, which LXC does not restore"
            )));
        }
        if config.ephemeral && !stays {
            return Err(ErrorKind::Policy(
                "LXC removes it with its root file system as soon as it stops (lxc.ephemeral = 1): checkpoint with leave-running"
                    .into(),
            ));
        }
        Ok(())
    }

    /// Checkpoints a running container into `images`, as `lxc-checkpoint` does. With `leave_running` it runs on; without, it
    /// ends, and LXC shows it as stopped. `options` are what CRIU is asked besides.
    ///
    /// # The container
    /// On every failure, refusal and cancellation it runs on.
    ///
    /// # Errors
    /// What is wrong with the container is found before anything is frozen; then [`ErrorKind::Criu`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels.
    pub async fn checkpoint(
        &self,
        criu: &Criu,
        name: &str,
        images: &ImagesDir,
        hooks: impl Hooks,
        options: DumpOptions,
        leave_running: bool,
    ) -> Result<Checkpointed> {
        let checkpointed = async {
            let ready = self.ready(name, options, leave_running)?;
            let hooks = CheckpointHooks {
                inner: hooks,
                images,
                files: &ready.files,
            };
            let dump = criu.dump(ready.pid, images, hooks, ready.options).await?;
            let mut left_behind = Vec::new();
            if dump.tasks == TaskState::Absent && !self.has_stopped(name).await {
                left_behind.push(format!(
                    "its monitor has not seen its end within {} seconds: see `lxc-info {name}`",
                    END.as_secs()
                ));
            }
            Ok(Checkpointed { dump, left_behind })
        };
        checkpointed
            .instrument(EngineKind::Lxc.span(name))
            .await
            .map_err(of(name))
    }

    /// What [`Lxc::checkpoint`] would ask and do. Nothing is done but asking CRIU its version.
    ///
    /// # Errors
    /// Those of [`Lxc::checkpoint`] that come before the request.
    pub async fn plan_checkpoint(
        &self,
        criu: &Criu,
        name: &str,
        images: impl AsRef<Path>,
        options: DumpOptions,
        leave_running: bool,
    ) -> Result<dry_run::Plan> {
        let images = images.as_ref();
        let planned = async {
            let ready = self.ready(name, options, leave_running)?;
            let dump = criu.plan_dump(ready.pid, images, ready.options).await?;
            let mut steps = dump.steps;
            let path = images.join(INVENTORY);
            steps.push(Step::at(Script::PreDump, Action::RemoveFile { path }));
            steps.extend(ready.files.iter().map(|(name, content)| {
                let path = images.join(name);
                let action = match content {
                    Some(_) => Action::WriteFile { path },
                    None => Action::RemoveFile { path },
                };
                Step::at(Script::PreDump, action)
            }));
            if !leave_running {
                let pid = ready.pid;
                steps.push(Step::after(Action::AwaitEnd { pid }));
            }
            Ok(dry_run::Plan::new(dump.request, steps, Vec::new()))
        };
        planned.await.map_err(of(name))
    }

    /// Everything that is known before CRIU is asked.
    fn ready(&self, name: &str, options: DumpOptions, leave_running: bool) -> Found<Ready> {
        let container = self.find(name)?;
        self.obstacle(&container, leave_running)?;
        let status = container.status;
        let pid = container.pid.ok_or(ErrorKind::NotRunning { status })?;
        // A number that is another process's here.
        let alive = ProcessId::of(pid).is_some();
        if !alive {
            return Err(ErrorKind::State {
                path: container.directory.join("command"),
                problem: format!(
                    "says that its first process is {pid}, and there is none here: is its monitor in another pid namespace?"
                ),
                source: None,
            });
        }
        let config = Config::read(&container.directory.join("config"))?;
        let mut options = options
            .tcp_established(true)
            .file_locks(true)
            .link_remap(true)
            .tcp_skip_in_flight(true)
            .force_irmap(true)
            .manage_cgroups(CgroupMode::Full)
            .enable_fs("hugetlbfs")
            .enable_fs("tracefs")
            .external(ExternalOnDump::MountAuto(AutoMounts::Masters))
            .external(ExternalOnDump::MountAuto(AutoMounts::Shared));
        if let Some(group) = freezer(pid)? {
            options = options.freeze_cgroup(group);
        }
        for bind in &config.binds {
            options = options.external(ExternalOnDump::Mount {
                mountpoint: bind.clone(),
                // As LXC's restore will call it.
                name: bind
                    .strip_prefix("/")
                    .unwrap_or(bind)
                    .to_string_lossy()
                    .into_owned(),
            });
        }
        let tty = console(pid)?;
        if let Some((rdev, dev)) = tty {
            options = options
                .external(ExternalOnDump::Mount {
                    mountpoint: Path::new("/dev").join(CONSOLE),
                    name: CONSOLE.into(),
                })
                .external(ExternalOnDump::Tty { rdev, dev });
        }
        if leave_running {
            options = options.leave(Leave::Running);
        }
        let whose = json!({"version": 1, "engine": EngineKind::Lxc, "id": name});
        Ok(Ready {
            pid,
            options,
            files: vec![
                (
                    TTY,
                    tty.map(|(rdev, dev)| format!("tty[{rdev:x}:{dev:x}]").into_bytes()),
                ),
                (SAVED_PLAN, Some(whose.to_string().into_bytes())),
            ],
        })
    }

    /// Whether a container's monitor has seen its end in time.
    async fn has_stopped(&self, name: &str) -> bool {
        let stopped = async {
            while self
                .find(name)
                .is_ok_and(|container| container.status != Status::Stopped)
            {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(END, stopped).await.is_ok()
    }

    /// Has LXC restore a stopped container from `images`, whoever has made them. `program` is LXC's `lxc-checkpoint`. Images are not
    /// used up.
    ///
    /// # The container
    /// On a failure it is stopped, as before. It is in LXC's hands all the while, and nobody else's.
    ///
    /// # Errors
    /// What is wrong with container and images is found before; then [`ErrorKind::ProgramRestore`].
    ///
    /// # Cancel safety
    /// LXC is not interrupted: dropped, the restore goes on, and [`Lxc::settled`] tells when it has ended.
    pub async fn restore(
        &self,
        program: impl AsRef<Path>,
        name: &str,
        images: &ImagesDir,
    ) -> Result<Restored> {
        let program = program.as_ref().to_owned();
        let restored = async {
            let arguments = self.restorable(name, images)?;
            let started = Instant::now();
            let log = images.path().join(LOG);
            let socket = self.path.join(name).join("command");
            let work = run(program, arguments, log);
            self.undoing.uninterrupted(&socket, None, work).await??;
            let container = self.find(name)?;
            if container.pid.is_none() {
                return Err(ErrorKind::Unsupported(
                    "it ended as soon as it was restored".into(),
                ));
            }
            Ok(Restored {
                container,
                time: started.elapsed(),
            })
        };
        restored
            .instrument(EngineKind::Lxc.span(name))
            .await
            .map_err(of(name))
    }

    /// What [`Lxc::restore`] would do; nothing is done.
    ///
    /// # Errors
    /// Those of [`Lxc::restore`] that come before LXC is asked.
    pub fn plan_restore(
        &self,
        program: impl AsRef<Path>,
        name: &str,
        images: &ImagesDir,
    ) -> Result<dry_run::Plan> {
        let arguments = self.restorable(name, images).map_err(of(name))?;
        let request = format!("{} {}", program.as_ref().display(), arguments.join(" "));
        let asked = Step::new(When::Request, Action::AskEngine { request });
        Ok(dry_run::Plan::new(None, vec![asked], Vec::new()))
    }

    /// The arguments of LXC's restore.
    fn restorable(&self, name: &str, images: &ImagesDir) -> Found<Vec<String>> {
        let container = self.find(name)?;
        if container.status != Status::Stopped {
            let status = container.status;
            return Err(ErrorKind::Exists { status });
        }
        if !images.contains(INVENTORY) {
            return Err(ErrorKind::Images {
                path: images.path().join(INVENTORY),
                problem: "there is no such file, so this is no complete checkpoint: give the directory that was checkpointed into"
                    .into(),
                source: None,
            });
        }
        beside::belongs(images, name)?;
        let text = |path: &Path| {
            let absolute = std::path::absolute(path)
                .map_err(ErrorKind::system(format!("looking at {}", path.display())))?;
            absolute
                .into_os_string()
                .into_string()
                .map_err(|path| ErrorKind::Images {
                    path: path.into(),
                    problem: "has a name that is no text".into(),
                    source: None,
                })
        };
        let mut arguments = ["-r", "-d", "-n", name, "-P"].map(str::to_owned).to_vec();
        arguments.push(text(&self.path)?);
        arguments.push("-D".to_owned());
        arguments.push(text(images.path())?);
        Ok(arguments)
    }
}

fn of(name: &str) -> impl FnOnce(ErrorKind) -> Error {
    move |kind| Error::new(EngineKind::Lxc, name, kind)
}

/// What a dump is made of.
struct Ready {
    pid: i32,
    options: DumpOptions,
    files: Vec<(&'static str, Option<Vec<u8>>)>,
}

/// The group through which a container is frozen: that of its limits, whatever groups it has made for itself below.
fn freezer(pid: i32) -> Found<Option<PathBuf>> {
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup"))
        .map_err(ErrorKind::system(format!("reading /proc/{pid}/cgroup")))?;
    let host = Hierarchies::of_host().map_err(ErrorKind::system("looking for control groups"))?;
    let of_controller = |wanted: &str| {
        own.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers
                .split(',')
                .any(|known| known == wanted)
                .then(|| Path::new(path))
        })
    };
    let path = of_controller("freezer").or_else(|| of_controller(cgroup::UNIFIED));
    let Some(path) = path else {
        return Ok(None);
    };
    let is_payload = |path: &&Path| {
        path.file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"lxc.payload"))
    };
    let limited = path.ancestors().filter(is_payload).last().unwrap_or(path);
    let groups = host.paths(&limited.to_string_lossy(), "");
    Ok(cgroup::freezer(&groups).map(|(group, _)| group.to_owned()))
}

/// The terminal that a container has as its console.
fn console(pid: i32) -> Found<Option<(u64, u64)>> {
    let path = format!("/proc/{pid}/root/dev/{CONSOLE}");
    match fs::symlink_metadata(&path) {
        Ok(metadata) => Ok(Some((metadata.rdev(), metadata.dev()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ErrorKind::system(format!("looking at {path}"))(error)),
    }
}

/// Runs LXC's program to its end, out of reach of a terminal's signals. `log`: where its CRIU writes.
async fn run(program: PathBuf, arguments: Vec<String>, log: PathBuf) -> Found<()> {
    // Not a pipe, which the monitor that it leaves could keep open.
    let mut said = tempfile::tempfile().map_err(ErrorKind::system("making a temporary file"))?;
    let stream = || -> io::Result<Stdio> { Ok(said.try_clone()?.into()) };
    let (out, err) = stream()
        .and_then(|out| Ok((out, stream()?)))
        .map_err(ErrorKind::system("making a temporary file"))?;
    let status = tokio::process::Command::new(&program)
        .args(&arguments)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .process_group(0)
        .status()
        .await
        .map_err(ErrorKind::system(format!("running {}", program.display())))?;
    if status.success() {
        return Ok(());
    }
    let mut words = Vec::new();
    // What cannot be read is missing from an error, and no error of its own.
    let _ = said
        .rewind()
        .and_then(|()| said.take(64 << 10).read_to_end(&mut words));
    let words = String::from_utf8_lossy(&words);
    let said = words.trim();
    Err(ErrorKind::ProgramRestore {
        program,
        said: match said {
            "" => status.to_string(),
            said => said.to_owned(),
        },
        findings: diagnosis::explain(&log).ok().map(Box::new),
    })
}

/// The caller's hooks, and the files beside the images once they have agreed.
struct CheckpointHooks<'a, H> {
    inner: H,
    images: &'a ImagesDir,
    files: &'a [(&'static str, Option<Vec<u8>>)],
}

impl<H: Hooks> Hooks for CheckpointHooks<'_, H> {
    async fn notify(&mut self, notify: Notify) -> std::result::Result<Reply, HookError> {
        let begins = notify.script() == Script::PreDump;
        let reply = self.inner.notify(notify).await?;
        if begins && !matches!(reply, Reply::Refuse(_)) {
            // CRIU writes it last. An earlier checkpoint's would make a failed one look complete.
            beside::unlink(self.images, INVENTORY)?;
            for (name, content) in self.files {
                match content {
                    Some(content) => beside::write(self.images, name, content)?,
                    None => beside::unlink(self.images, *name)?,
                }
            }
        }
        Ok(reply)
    }
}
