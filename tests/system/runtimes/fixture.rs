//! Bundles and containers for tests, and what must be left of them: nothing.

use std::fs::{self, File};
use std::io::Read;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use criu_client::ImagesDir;
use criu_client::container::crun::CrunEngine;
use criu_client::container::runc::RuncEngine;
use criu_client::container::runtime::{CheckpointOptions, Engine, RestoreOptions, Runtime};
use serde_json::{Value, json};

use crate::engines::{Environment, OneVersion};
use crate::support::{Outcome, block_on, criu, ensure, text, until};

/// The program of a runtime that is known.
pub(crate) trait Program: Engine {
    const NAME: &'static str;
    /// What is in the directory of a container.
    const FILES: &'static [&'static str];
    /// Whether files are masked by the container's own null device.
    const OWN_MASKS: bool;
    /// Whether the hooks of a container's creation run at a restore.
    const RUNS_HOOKS: bool;

    /// What it needs of the machine.
    fn needs() -> Result<Option<Arc<OneVersion>>, String>;

    fn path() -> Result<PathBuf, String> {
        ["/usr/sbin", "/usr/bin"]
            .into_iter()
            .map(|directory| Path::new(directory).join(Self::NAME))
            .find(|path| path.exists())
            .ok_or_else(|| {
                let name = Self::NAME;
                format!("there is no {name} in /usr/sbin or /usr/bin; run scripts/install")
            })
    }
}

impl Program for RuncEngine {
    const NAME: &'static str = "runc";
    const FILES: &'static [&'static str] = &["state.json"];
    const OWN_MASKS: bool = true;
    const RUNS_HOOKS: bool = true;

    fn needs() -> Result<Option<Arc<OneVersion>>, String> {
        Ok(None)
    }
}

impl Program for CrunEngine {
    const NAME: &'static str = "crun";
    const FILES: &'static [&'static str] = &["config.json", "status"];
    const OWN_MASKS: bool = false;
    const RUNS_HOOKS: bool = false;

    fn needs() -> Result<Option<Arc<OneVersion>>, String> {
        OneVersion::of_cgroups().map(Some)
    }
}

/// Whether the runtimes have systemd make the control groups of their containers.
static UNDER_SYSTEMD: AtomicBool = AtomicBool::new(false);

/// For the time of a test; they run one at a time.
pub(crate) fn under_systemd(test: impl FnOnce() -> Outcome) -> Outcome {
    UNDER_SYSTEMD.store(true, Ordering::Relaxed);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test));
    UNDER_SYSTEMD.store(false, Ordering::Relaxed);
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn is_under_systemd() -> bool {
    UNDER_SYSTEMD.load(Ordering::Relaxed)
}

/// What every command of a runtime begins with.
fn global() -> Option<&'static str> {
    is_under_systemd().then_some("--systemd-cgroup")
}

/// A bundle, a container of it, and a root for runc's records: all of one test.
pub(crate) struct Fixture<E: Program> {
    pub(crate) directory: Arc<tempfile::TempDir>,
    pub(crate) id: String,
    /// The processes that came to us, to be reaped.
    pub(crate) inits: Vec<i32>,
    /// The environment of the runtime.
    pub(crate) environment: Environment,
    engine: PhantomData<E>,
    _needed: Option<Arc<OneVersion>>,
}

impl<E: Program> Fixture<E> {
    pub(crate) fn new(id: &str) -> Result<Self, String> {
        Self::with(id, |_| {})
    }

    /// A bundle of busybox that counts in `/count`, its default configuration changed by `change`.
    pub(crate) fn with(id: &str, change: impl FnOnce(&mut Value)) -> Result<Self, String> {
        let needed = E::needs()?;
        let directory = tempfile::tempdir().map_err(text)?;
        let fixture = Self {
            directory: directory.into(),
            id: format!("criuctl-test-{}-{id}", std::process::id()),
            inits: Vec::new(),
            environment: Environment::default(),
            engine: PhantomData,
            _needed: needed,
        };
        let bin = fixture.rootfs().join("bin");
        fs::create_dir_all(&bin).map_err(text)?;
        fs::copy("/bin/busybox", bin.join("busybox"))
            .map_err(|error| format!("/bin/busybox: {error}"))?;
        for applet in ["sh", "sleep", "cat", "echo", "ip", "mv", "true", "stty"] {
            symlink("busybox", bin.join(applet)).map_err(text)?;
        }
        let status = Command::new(E::path()?)
            .arg("spec")
            .current_dir(fixture.bundle())
            .status()
            .map_err(text)?;
        ensure!(status.success(), "{} spec: {status}", E::NAME);
        fixture.configure(|config| {
            config["process"]["terminal"] = json!(false);
            config["root"]["readonly"] = json!(false);
            config["process"]["args"] = json!(["/bin/sh", "-c", COUNT]);
            change(config);
        })?;
        Ok(fixture)
    }

    /// A container of the same name, bundle and root as another that is gone.
    pub(crate) fn beside<F: Program>(other: &Fixture<F>) -> Result<Self, String> {
        Ok(Self {
            directory: Arc::clone(&other.directory),
            id: other.id.clone(),
            inits: Vec::new(),
            environment: Environment::default(),
            engine: PhantomData,
            _needed: E::needs()?,
        })
    }

    /// Changes the configuration.
    pub(crate) fn configure(&self, change: impl FnOnce(&mut Value)) -> Outcome {
        let path = self.bundle().join("config.json");
        let mut config: Value =
            serde_json::from_slice(&fs::read(&path).map_err(text)?).map_err(text)?;
        change(&mut config);
        fs::write(&path, serde_json::to_vec_pretty(&config).map_err(text)?).map_err(text)
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        self.directory.path().join("bundle")
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.bundle().join("rootfs")
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    pub(crate) fn ours(&self) -> Runtime<E> {
        Runtime::with_root(self.root())
    }

    pub(crate) fn images(&self, name: &str) -> ImagesDir {
        ImagesDir::create(self.directory.path().join(name)).expect("an images directory")
    }

    /// The runtime itself.
    pub(crate) fn command(&self, arguments: &[&str]) -> Result<Command, String> {
        let mut command = Command::new(E::path()?);
        command.env("PATH", self.environment.path()?);
        command.args(global()).arg("--root").arg(self.root());
        command.args(arguments);
        command.stdin(Stdio::null());
        Ok(command)
    }

    pub(crate) fn try_run(&self, arguments: &[&str]) -> Result<Output, String> {
        self.command(arguments)?.output().map_err(text)
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.try_run(arguments)?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{} {arguments:?}: {}: {error}",
            E::NAME,
            output.status
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `run -d` or `restore -d`, which leave their output to the container.
    pub(crate) fn run_detached(&mut self, arguments: &[&str], stdout: Stdio) -> Outcome {
        let log = self.directory.path().join("log");
        let mut command = Command::new(E::path()?);
        command
            .env("PATH", self.environment.path()?)
            .args(global())
            .arg("--root")
            .arg(self.root())
            .arg("--log")
            .arg(&log)
            .args(arguments);
        command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::null());
        let status = command.status().map_err(text)?;
        let log = fs::read_to_string(&log).unwrap_or_default();
        ensure!(
            status.success(),
            "{} {arguments:?}: {status}: {log}",
            E::NAME
        );
        self.inits.push(self.pid()?);
        Ok(())
    }

    pub(crate) fn start(&mut self) -> Outcome {
        self.start_with(Stdio::null())
    }

    pub(crate) fn start_with(&mut self, stdout: Stdio) -> Outcome {
        let (bundle, id) = (self.bundle().display().to_string(), self.id.clone());
        self.run_detached(&["run", "-d", "--bundle", &bundle, &id], stdout)?;
        self.counts()
    }

    /// What the runtime says of the container.
    pub(crate) fn state(&self) -> Result<Value, String> {
        serde_json::from_str(&self.run(&["state", &self.id])?).map_err(text)
    }

    pub(crate) fn pid(&self) -> Result<i32, String> {
        let pid = self.state()?["pid"].as_i64().unwrap_or_default();
        i32::try_from(pid).map_err(text)
    }

    pub(crate) fn has_status(&self, status: &str) -> Outcome {
        let state = self.state()?;
        ensure!(state["status"] == status, "not {status}: {state}");
        Ok(())
    }

    /// crun does not wait until everything is frozen.
    pub(crate) fn pause(&self) -> Outcome {
        self.run(&["pause", &self.id])?;
        until("it is paused", || self.has_status("paused").is_ok())
    }

    pub(crate) fn count(&self) -> Option<u64> {
        // With a read-only root it is a bind mount.
        let bound = self.directory.path().join("count");
        fs::read_to_string(bound)
            .or_else(|_| fs::read_to_string(self.rootfs().join("count")))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    pub(crate) fn counts(&self) -> Outcome {
        let before = self.count().unwrap_or(0);
        until("the container counts on", || {
            self.count().is_some_and(|count| count > before + 1)
        })
    }

    /// Reaps a container's process that has ended.
    pub(crate) fn reap(&mut self) {
        for pid in self.inits.drain(..) {
            let pid = nix::unistd::Pid::from_raw(pid);
            // Not ours if it ended as a child of somebody else.
            let _ = nix::sys::wait::waitpid(pid, None);
        }
    }

    pub(crate) fn checkpoint(&mut self, images: &ImagesDir) -> Outcome {
        let report = block_on(self.ours().checkpoint(
            &criu(),
            &self.id,
            images,
            (),
            CheckpointOptions::new(),
        ))
        .map_err(whole)?;
        ensure!(
            report.left_behind.is_empty(),
            "left behind: {:?}",
            report.left_behind
        );
        self.reap();
        self.is_gone()
    }

    pub(crate) fn restore(&mut self, images: &ImagesDir) -> Outcome {
        self.restore_with(images, RestoreOptions::new())
    }

    /// Images that the runtime has made, which do not say whether systemd was to make the control groups.
    pub(crate) fn restore_its_own(&mut self, images: &ImagesDir) -> Outcome {
        let options = RestoreOptions::new().systemd_cgroup(is_under_systemd());
        self.restore_with(images, options)
    }

    pub(crate) fn restore_with(&mut self, images: &ImagesDir, options: RestoreOptions) -> Outcome {
        let options = options.detach(true);
        let restored =
            block_on(
                self.ours()
                    .restore(&criu(), &self.id, images, self.bundle(), (), options),
            )
            .map_err(whole)?;
        ensure!(
            restored.left_behind.is_empty(),
            "left behind: {:?}",
            restored.left_behind
        );
        self.inits.push(restored.init.pid);
        self.is_handed_over()
    }

    /// Runs and is the runtime's; nothing of the restore is left.
    pub(crate) fn is_handed_over(&self) -> Outcome {
        self.has_status("running")?;
        self.counts()?;
        self.has_no_mounts()?;
        let mut files: Vec<_> = fs::read_dir(self.root().join(&self.id))
            .map_err(text)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        files.sort();
        ensure!(files == E::FILES, "{files:?}");
        Ok(())
    }

    /// Others on this machine may mount what they like.
    pub(crate) fn has_no_mounts(&self) -> Outcome {
        let ours = self.directory.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(text)?;
        let mounts: Vec<_> = mounts.lines().filter(|line| line.contains(&ours)).collect();
        ensure!(mounts.is_empty(), "mounts were left behind: {mounts:#?}");
        for entry in fs::read_dir("/run/criu-client")
            .into_iter()
            .flatten()
            .flatten()
        {
            let journal = fs::read_to_string(entry.path()).unwrap_or_default();
            ensure!(
                !journal.contains(&ours),
                "a journal was left behind: {journal}"
            );
        }
        Ok(())
    }

    /// Neither record, nor groups, nor mounts.
    pub(crate) fn is_gone(&self) -> Outcome {
        let list = self.run(&["list", "--quiet"])?;
        ensure!(!list.contains(&self.id), "still listed: {list}");
        let records = fs::read_dir(self.root()).map_or(0, Iterator::count);
        ensure!(records == 0, "{records} entries in the runtime's root");
        ensure!(
            groups(&self.id).is_empty(),
            "groups: {:?}",
            groups(&self.id)
        );
        self.has_no_mounts()
    }

    pub(crate) fn delete(&mut self) -> Outcome {
        self.run(&["delete", "--force", &self.id])?;
        self.reap();
        self.is_gone()
    }
}

impl<E: Program> Drop for Fixture<E> {
    fn drop(&mut self) {
        if self.root().join(&self.id).exists() {
            let _ = self.try_run(&["delete", "--force", &self.id]);
        }
        self.reap();
    }
}

/// Numbers of one length, written in place: CRIU restores only files that have the size they had.
pub(crate) const COUNT: &str =
    "i=0; while :; do i=$((i+1)); printf %020d $i 1<>/count; echo $i; sleep 0.02; done";

/// The control groups of this name, in every hierarchy.
pub(crate) fn groups(id: &str) -> Vec<PathBuf> {
    fn look(directory: &Path, id: &str, depth: u32, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let name = entry.file_name().to_string_lossy().into_owned();
                let scope = ["runc", "crun"].map(|runtime| format!("{runtime}-{id}.scope"));
                if name == id {
                    found.push(entry.path());
                } else if scope.contains(&name) {
                    // crun's containers have a group of their own in it.
                    let inner = entry.path().join("container");
                    found.push(if inner.exists() { inner } else { entry.path() });
                } else if depth > 0 {
                    look(&entry.path(), id, depth - 1, found);
                }
            }
        }
    }
    let mut found = Vec::new();
    look(Path::new("/sys/fs/cgroup"), id, 4, &mut found);
    found
}

/// A container operation's error with everything it knows.
pub(crate) fn whole(error: criu_client::container::Error) -> String {
    serde_json::to_string_pretty(&error).unwrap_or_else(|_| format!("{error:?}"))
}

/// What comes out of a pipe.
pub(crate) struct Lines(pub(crate) File);

impl Lines {
    pub(crate) fn pipe() -> Result<(Self, OwnedFd), String> {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(text)?;
        Ok((Self(File::from(read)), write))
    }

    pub(crate) fn number(&mut self) -> Result<u64, String> {
        let mut line = Vec::new();
        let mut byte = [0];
        while byte != *b"\n" {
            let limit = rustix::event::Timespec {
                tv_sec: 20,
                tv_nsec: 0,
            };
            let mut poll = [rustix::event::PollFd::new(
                &self.0,
                rustix::event::PollFlags::IN,
            )];
            let ready = rustix::event::poll(&mut poll, Some(&limit)).map_err(text)?;
            ensure!(ready == 1, "nothing came out of the pipe");
            ensure!(
                self.0.read(&mut byte).map_err(text)? == 1,
                "the pipe has ended"
            );
            line.push(byte[0]);
        }
        String::from_utf8_lossy(&line).trim().parse().map_err(text)
    }
}

/// A console socket that is listened at.
pub(crate) struct Console {
    pub(crate) socket: std::os::unix::net::UnixListener,
    pub(crate) path: PathBuf,
}

impl Console {
    pub(crate) fn listen(path: PathBuf) -> Result<Self, String> {
        let socket = std::os::unix::net::UnixListener::bind(&path).map_err(text)?;
        Ok(Self { socket, path })
    }

    /// The master that was sent, and the name that it was sent with.
    pub(crate) fn receive(&self) -> Result<(OwnedFd, String), String> {
        use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

        let (stream, _) = self.socket.accept().map_err(text)?;
        let mut name = [0; 64];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffers = [std::io::IoSliceMut::new(&mut name)];
        let message =
            recvmsg(&stream, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC).map_err(text)?;
        let master = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let name =
            String::from_utf8_lossy(name.get(..message.bytes).unwrap_or_default()).into_owned();
        Ok((master.ok_or("no descriptor came")?, name))
    }
}
