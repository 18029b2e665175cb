//! LXC's containers, on an ordinary host.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;

use criu_client::container::lxc::{Checkpointed, Lxc};
use criu_client::container::{Error, ErrorKind, Status};
use criu_client::notify::{HookTable, Reply, Script, hook_fn};
use criu_client::options::DumpOptions;
use criu_client::{ImagesDir, TaskState};
use serde_json::json;

use crate::dry_run::{planned, succeeds, words};
use crate::support::*;

const PROGRAM: &str = "/usr/bin/lxc-checkpoint";
/// Numbers of one length, written in place.
const COUNT: &str =
    "#!/bin/sh\ni=0\nwhile :; do i=$((i+1)); printf %020d $i 1<>/count; sleep 0.02; done\n";

pub(crate) fn tests() -> Tests {
    let list: &[Test] = &[
        ("goes there and back", there_and_back),
        (
            "images go to LXC's own restore and from its own checkpoint",
            interchanged,
        ),
        ("on the command line, and in the list", on_the_command_line),
        (
            "a refusing hook and leave-running leave it as it was",
            it_stays,
        ),
        ("what cannot be done is said before", refused),
    ];
    named("lxc: ", list)
}

/// A container of busybox that counts.
struct Yard {
    directory: tempfile::TempDir,
    name: String,
}

impl Yard {
    fn with(name: &str, more: &str) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(text)?;
        let yard = Self {
            directory,
            name: format!("criuctl-{name}"),
        };
        let root = yard.rootfs();
        for path in ["bin", "proc", "sys", "dev", "tmp", "etc", "mnt/shared"] {
            fs::create_dir_all(root.join(path)).map_err(text)?;
        }
        fs::create_dir(yard.directory.path().join("shared")).map_err(text)?;
        fs::copy("/bin/busybox", root.join("bin/busybox")).map_err(text)?;
        for applet in ["sh", "sleep", "cat"] {
            symlink("busybox", root.join("bin").join(applet)).map_err(text)?;
        }
        let start = root.join("bin/start");
        fs::write(&start, COUNT).map_err(text)?;
        fs::set_permissions(&start, fs::Permissions::from_mode(0o755)).map_err(text)?;
        let config = format!(
            "lxc.include = /usr/share/lxc/config/common.conf\nlxc.uts.name = box\nlxc.rootfs.path = dir:{}\n\
             lxc.net.0.type = empty\nlxc.init.cmd = /bin/start\nlxc.tty.max = 0\nlxc.console.path = none\n\
             lxc.apparmor.profile = unconfined\n\
             lxc.mount.entry = {} mnt/shared none bind 0 0\n{more}",
            root.display(),
            yard.directory.path().join("shared").display()
        );
        fs::write(yard.home().join("config"), config).map_err(text)?;
        Ok(yard)
    }

    fn started(name: &str) -> Result<Self, String> {
        let yard = Self::with(name, "")?;
        yard.start()?;
        Ok(yard)
    }

    fn start(&self) -> Outcome {
        self.run("lxc-start", &["-d"])?;
        self.counts()
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("lxc")
    }

    fn home(&self) -> PathBuf {
        self.path().join(&self.name)
    }

    fn rootfs(&self) -> PathBuf {
        self.home().join("rootfs")
    }

    fn ours(&self) -> Lxc {
        Lxc::with_path(self.path())
    }

    fn images(&self, name: &str) -> Result<ImagesDir, String> {
        ImagesDir::create(self.directory.path().join(name)).map_err(text)
    }

    /// One of LXC's programs.
    fn run(&self, program: &str, arguments: &[&str]) -> Outcome {
        let log = self.directory.path().join("log");
        let status = Command::new(program)
            .args(["-n", &self.name, "-P"])
            .arg(self.path())
            .arg("-o")
            .arg(&log)
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .map_err(text)?;
        let log = fs::read_to_string(&log).unwrap_or_default();
        ensure!(status.success(), "{program} {arguments:?}: {status}: {log}");
        Ok(())
    }

    fn is(&self, status: Status) -> Outcome {
        let found = self.ours().load(&self.name).map_err(whole)?;
        ensure!(found.status == status, "{found:?}");
        // As LXC itself has it.
        let state = match status {
            Status::Running => "RUNNING",
            Status::Paused => "FROZEN",
            _ => "STOPPED",
        };
        self.run("lxc-wait", &["-s", state, "-t", "20"])
    }

    fn count(&self) -> u64 {
        let count = fs::read_to_string(self.rootfs().join("count")).unwrap_or_default();
        count.trim().parse().unwrap_or_default()
    }

    fn counts(&self) -> Outcome {
        let before = self.count();
        until("the container counts on", || self.count() > before + 1)
    }

    fn checkpoint(&self, images: &ImagesDir, stays: bool) -> Result<Checkpointed, Error> {
        let options = DumpOptions::new();
        let ours = self.ours();
        block_on(ours.checkpoint(&criu(), &self.name, images, (), options, stays))
    }

    fn checkpointed(&self, images: &ImagesDir) -> Outcome {
        let report = self.checkpoint(images, false).map_err(whole)?;
        ensure!(
            report.dump.tasks == TaskState::Absent && report.left_behind.is_empty(),
            "{report:?}"
        );
        self.is(Status::Stopped)
    }

    /// It goes on from where it was, as LXC's.
    fn goes_on_from(&self, counted: u64) -> Outcome {
        self.is(Status::Running)?;
        self.counts()?;
        ensure!(self.count() > counted, "the count began anew");
        let pid = self.ours().load(&self.name).map_err(whole)?.pid;
        let pid = pid.ok_or("no first process")?;
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(text)?;
        ensure!(groups.contains("/lxc.payload"), "{groups}");
        let shared = self.directory.path().join("shared/file");
        fs::write(shared, "from outside").map_err(text)?;
        let read = fs::read_to_string(format!("/proc/{pid}/root/mnt/shared/file"));
        ensure!(read.is_ok_and(|read| read == "from outside"), "the mount");
        self.run("lxc-attach", &["--", "/bin/cat", "/count"])
    }

    fn stop(&self) -> Outcome {
        self.run("lxc-stop", &["-k"])?;
        self.is(Status::Stopped)
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        let _ = self.run("lxc-stop", &["-k"]);
        // LXC's monitors came to us, and have ended.
        let any = Some(nix::sys::wait::WaitPidFlag::WNOHANG);
        while let Ok(status) = nix::sys::wait::waitpid(None, any) {
            if status == nix::sys::wait::WaitStatus::StillAlive {
                break;
            }
        }
    }
}

fn whole(error: Error) -> String {
    serde_json::to_string_pretty(&error).unwrap_or_else(|_| format!("{error:?}"))
}

fn there_and_back() -> Outcome {
    let yard = Yard::started("back")?;
    for round in ["first", "second"] {
        let images = yard.images(round)?;
        yard.checkpointed(&images)?;
        let counted = yard.count();
        let restored = block_on(yard.ours().restore(PROGRAM, &yard.name, &images));
        let restored = restored.map_err(whole)?;
        ensure!(restored.container.status == Status::Running, "{restored:?}");
        yard.goes_on_from(counted)?;
    }
    yard.stop()
}

/// In this order: LXC itself cannot checkpoint what it has restored, as it then knows no freezer of it.
fn interchanged() -> Outcome {
    let yard = Yard::started("between")?;
    let its = yard.directory.path().join("its");
    yard.run("lxc-checkpoint", &["-s", "-D", &its.display().to_string()])?;
    yard.is(Status::Stopped)?;
    let counted = yard.count();
    let its = ImagesDir::open(its).map_err(text)?;
    block_on(yard.ours().restore(PROGRAM, &yard.name, &its)).map_err(whole)?;
    yard.goes_on_from(counted)?;
    let ours = yard.images("ours")?;
    yard.checkpointed(&ours)?;
    let counted = yard.count();
    let path = ours.path().display().to_string();
    yard.run("lxc-checkpoint", &["-r", "-d", "-D", &path])?;
    yard.goes_on_from(counted)?;
    yard.stop()
}

fn on_the_command_line() -> Outcome {
    let yard = Yard::started("line")?;
    let path = format!("--lxc-path={}", yard.path().display());
    let target = format!("lxc:{}", yard.name);
    let images = format!("--image-path={}", yard.directory.path().join("i").display());
    let listed = succeeds(&words(&["list", &path]))?;
    let entry = listed["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|entry| entry["engine"] == "lxc");
    let entry = entry.ok_or_else(|| format!("{listed:#}"))?;
    ensure!(
        entry["id"] == json!(yard.name)
            && entry["status"] == "running"
            && entry["checkpointable"] == true,
        "{entry:#}"
    );
    let checkpoint = words(&["checkpoint", &target, &path, &images]);
    let plan = planned(&checkpoint, yard.directory.path())?;
    ensure!(plan["request"]["options"]["link_remap"] == true, "{plan:#}");
    yard.is(Status::Running)?;
    succeeds(&checkpoint)?;
    yard.is(Status::Stopped)?;
    let counted = yard.count();
    // The images say whose container it is.
    let restore = words(&["restore", &yard.name, &path, &images]);
    let plan = planned(&restore, yard.directory.path())?;
    ensure!(
        plan.to_string().contains("lxc-checkpoint -r -d"),
        "{plan:#}"
    );
    yard.is(Status::Stopped)?;
    succeeds(&restore)?;
    yard.goes_on_from(counted)?;
    yard.stop()
}

fn it_stays() -> Outcome {
    let yard = Yard::started("stays")?;
    let pid = yard.ours().load(&yard.name).map_err(whole)?.pid;
    let images = yard.images("images")?;
    let hooks = HookTable::new().on(
        Script::PostDump,
        hook_fn(async |_| Ok(Reply::Refuse("not today".into()))),
    );
    let ours = yard.ours();
    let options = DumpOptions::new();
    let refused = block_on(ours.checkpoint(&criu(), &yard.name, &images, hooks, options, false));
    ensure!(refused.is_err(), "checkpointed against a refusal");
    yard.is(Status::Running)?;
    let report = yard.checkpoint(&images, true).map_err(whole)?;
    ensure!(report.dump.tasks == TaskState::Running, "{report:?}");
    yard.is(Status::Running)?;
    yard.counts()?;
    let still = yard.ours().load(&yard.name).map_err(whole)?.pid;
    ensure!(pid == still, "another process: {pid:?}, {still:?}");
    // Over itself nothing is restored.
    let restored = block_on(yard.ours().restore(PROGRAM, &yard.name, &images));
    let error = restored.err().ok_or("restored over itself")?;
    ensure!(
        matches!(error.kind(), ErrorKind::Exists { .. }),
        "{}",
        whole(error)
    );
    yard.is(Status::Running)?;
    yard.stop()
}

fn refused() -> Outcome {
    let yard = Yard::with("no", "lxc.ephemeral = 1\n")?;
    let images = yard.images("images")?;
    let says = |wanted: &str| -> Outcome {
        let said = yard
            .checkpoint(&images, false)
            .err()
            .map(|error| error.to_string());
        let said = said.unwrap_or_default();
        ensure!(said.contains(wanted), "{said:?} does not tell {wanted:?}");
        ensure!(
            fs::read_dir(images.path()).map_err(text)?.count() == 0,
            "something was written"
        );
        Ok(())
    };
    says("lxc-start")?;
    // Started as one that stays: LXC would remove it with its files, once it stops.
    let config = yard.home().join("config");
    let ephemeral = fs::read_to_string(&config).map_err(text)?;
    fs::write(&config, ephemeral.replace("lxc.ephemeral = 1\n", "")).map_err(text)?;
    yard.start()?;
    fs::write(&config, &ephemeral).map_err(text)?;
    says("lxc.ephemeral")?;
    yard.is(Status::Running)?;
    fs::write(
        &config,
        ephemeral.replace("lxc.ephemeral = 1\n", "lxc.net.1.type = vlan\n"),
    )
    .map_err(text)?;
    says("vlan")?;
    fs::write(&config, ephemeral.replace("lxc.ephemeral = 1\n", "")).map_err(text)?;
    yard.run("lxc-freeze", &[])?;
    says("lxc-unfreeze")?;
    yard.run("lxc-unfreeze", &[])?;
    yard.counts()?;
    yard.stop()?;
    // What is no checkpoint is told before LXC is asked; what LXC cannot restore, afterwards.
    let restore = || block_on(yard.ours().restore(PROGRAM, &yard.name, &images));
    let error = restore().err().ok_or("restored from nothing")?;
    ensure!(error.to_string().contains("inventory.img"), "{error}");
    fs::write(images.path().join("inventory.img"), "nonsense").map_err(text)?;
    let error = restore().err().ok_or("restored from nonsense")?;
    ensure!(
        matches!(error.kind(), ErrorKind::ProgramRestore { .. }),
        "{}",
        whole(error)
    );
    yard.is(Status::Stopped)
}
