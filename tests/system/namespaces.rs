//! Network namespaces that are restored empty or lie outside the tree, and namespaces that are joined.

use std::fs::File;
use std::sync::Mutex;

use criu_client::{ErrorKind, TaskState};

use criu_client::options::{
    DumpOptions, ExternalOnDump, InheritKey, JoinKind, JoinNamespace, RestoreOptions,
};

use crate::support::*;
use crate::victim::{inode, namespace};

pub(crate) fn tests() -> Tests {
    let list: &[Test] = &[
        ("empty-network", empty_network),
        ("external-network", external_network),
        ("joined-by-process", || joined(by_process)),
        ("joined-by-file", || joined(by_file)),
        ("users-alone-are-refused", users_alone),
    ];
    named("namespaces/", list)
}

/// A loopback that was up is down again: nothing of the network is restored.
fn empty_network() -> Outcome {
    let mut victim = Victim::start(Kind::Network)?;
    let original = namespace(victim.pid, "net")?;
    set_loopback_up(victim.pid)?;
    ensure!(
        loopback_is_up(victim.pid)?,
        "the loopback device does not come up"
    );
    let images = victim.images("images");
    let traces = Traces::take();
    victim.killed_into(&images, DumpOptions::new().empty_network_namespace(true))?;
    let scripts = Mutex::new(Vec::new());
    let options = RestoreOptions::new().empty_network_namespace(true);
    block_on(criu().restore(&images, noted(&scripts), options)).map_err(whole)?;
    let scripts = scripts.into_inner().map_err(text)?;
    ensure!(
        scripts.iter().any(|script| script == "setup-namespaces"),
        "{scripts:?}"
    );
    victim.goes_on()?;
    let restored = namespace(victim.pid, "net")?;
    let ours = namespace(std::process::id() as i32, "net")?;
    ensure!(restored != ours, "it is in our network namespace");
    ensure!(
        !loopback_is_up(victim.pid)?,
        "the namespace that was {} is not empty",
        original.display()
    );
    is_unlocked(victim.pid)?;
    victim.end();
    drop(images);
    traces.unchanged()
}

fn in_network_of(pid: i32, command: &[&str]) -> Result<String, String> {
    let output = std::process::Command::new("nsenter")
        .args(["--net", "--target", &pid.to_string(), "--"])
        .args(command)
        .output()
        .map_err(text)?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn set_loopback_up(pid: i32) -> Outcome {
    in_network_of(pid, &["ip", "link", "set", "lo", "up"]).map(drop)
}

fn loopback_is_up(pid: i32) -> Result<bool, String> {
    Ok(in_network_of(pid, &["ip", "-o", "link", "show", "lo"])?.contains("LOOPBACK,UP"))
}

/// Two processes in one network namespace, one of which is dumped: it comes back into that namespace, and the lock that
/// the dump puts on all of the namespace is gone then.
fn external_network() -> Outcome {
    let holder = Victim::start(Kind::Network)?;
    let shared = File::open(format!("/proc/{}/ns/net", holder.pid)).map_err(text)?;
    let mut spec = Spec::role("plain");
    spec.network = Some(shared.try_clone().map_err(text)?.into());
    let mut victim = spec.start()?;
    let original = namespace(holder.pid, "net")?;
    ensure!(
        namespace(victim.pid, "net")? == original,
        "it is not in the holder's namespace"
    );
    let images = victim.images("images");
    let traces = Traces::take();
    let external = ExternalOnDump::NetNamespace {
        inode: u32::try_from(inode(&shared)?).map_err(text)?,
        key: "shared".into(),
    };
    victim.killed_into(&images, DumpOptions::new().external(external))?;
    holder.goes_on()?;
    let fd = shared.try_clone().map_err(text)?.into();
    let options = RestoreOptions::new().inherit_fd(InheritKey::Namespace("shared".into()), fd);
    block_on(criu().restore(&images, (), options)).map_err(whole)?;
    victim.goes_on()?;
    let restored = namespace(victim.pid, "net")?;
    ensure!(restored == original, "restored into {}", restored.display());
    is_unlocked(holder.pid)?;
    victim.end();
    drop(images);
    traces.unchanged()
}

fn by_process(kind: JoinKind, pid: i32) -> JoinNamespace {
    JoinNamespace::of_process(kind, pid.unsigned_abs())
}

fn by_file(kind: JoinKind, pid: i32) -> JoinNamespace {
    let name = kind_name(kind);
    JoinNamespace::of_file(kind, format!("/proc/{pid}/ns/{name}"))
}

fn kind_name(kind: JoinKind) -> &'static str {
    match kind {
        JoinKind::Net => "net",
        JoinKind::Uts => "uts",
        _ => "ipc",
    }
}

/// A process that had no namespaces of its own is restored into somebody else's.
fn joined(join: fn(JoinKind, i32) -> JoinNamespace) -> Outcome {
    let holder = Spec::role("namespaces").start()?;
    let mut victim = Victim::start(Kind::Plain)?;
    let images = victim.images("images");
    let traces = Traces::take();
    victim.killed_into(&images, DumpOptions::new())?;
    let kinds = [JoinKind::Net, JoinKind::Uts, JoinKind::Ipc];
    let mut options = RestoreOptions::new();
    for kind in kinds {
        options = options.join_namespace(join(kind, holder.pid));
    }
    block_on(criu().restore(&images, (), options)).map_err(whole)?;
    victim.goes_on()?;
    for name in kinds.map(kind_name) {
        let (joined, wanted) = (namespace(victim.pid, name)?, namespace(holder.pid, name)?);
        ensure!(
            joined == wanted,
            "{} instead of {}",
            joined.display(),
            wanted.display()
        );
    }
    victim.end();
    holder.goes_on()?;
    drop(images);
    traces.unchanged()
}

/// CRIU dumps and kills a process with a user namespace alone, and cannot restore it.
fn users_alone() -> Outcome {
    let victim = Spec::role("user-namespace").start()?;
    let images = victim.images("images");
    let error = match block_on(criu().dump(victim.pid, &images, (), DumpOptions::new())) {
        Ok(report) => return Err(format!("dumped for good: {report:?}")),
        Err(error) => error,
    };
    ensure!(
        matches!(error.kind(), ErrorKind::Precondition { what, .. } if what.contains("--leave-running")),
        "{error:?}"
    );
    ensure!(error.tasks() == TaskState::Running, "{error:?}");
    let written = std::fs::read_dir(images.path()).map_err(text)?.count();
    ensure!(written == 0, "{written} files were written");
    victim.goes_on()
}
