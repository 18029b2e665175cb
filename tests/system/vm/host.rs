//! An ordinary host, as servers run it: systemd, AppArmor, Docker and Podman as services. Run in a machine of `scripts/vm --host`,
//! as `system --in-host`.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::engines::use_services;
use crate::interposed::CRIUCTL;
use crate::support::*;
use crate::{docker, podman, runtimes};

pub(crate) fn tests() -> Tests {
    use_services();
    let mut tests = named("host/", &[("is an ordinary one", ordinary)]);
    tests.extend(docker::host_tests());
    tests.extend(podman::host_tests());
    let again = [docker::tests(), podman::tests(), runtimes::tests()];
    let again = again.into_iter().flatten();
    tests.extend(again.filter(|(name, _)| AGAIN.contains(&name.as_str())));
    tests.extend(runtimes::systemd_tests());
    tests
}

/// What is done again with the machine's own engines: each minute counts where the processor is emulated. Left out are failures,
/// and what the other machines have shown.
const AGAIN: [&str; 21] = [
    "docker: a default container goes there and back as often as one likes",
    "docker: its log and its terminal go on",
    "docker: checkpoints of Docker's are restored, and ours by Docker",
    "docker: a container left running is checkpointed twice, and a paused one",
    "docker: processes, files and what an annotation says are there again",
    "docker: the host's network",
    "docker: a read-only root",
    "docker: limits",
    "docker: a volume and shared memory",
    "podman+crun: a container goes there and back, and is Podman's again",
    "podman+crun: a container left running is checkpointed twice",
    "podman+crun: Podman restores what we checkpointed",
    "podman+crun: we restore what Podman checkpointed",
    "podman+crun: a terminal, processes, files in memory and limits are restored",
    "podman+crun: a paused container is checkpointed",
    "podman+crun: addresses, a published port and a connection survive",
    "podman+crun: the host's network is kept",
    "podman+runc: we restore what Podman checkpointed",
    "podman+runc: a terminal, processes, files in memory and limits are restored",
    "runc: a terminal comes over the console socket",
    "crun: the runtime restores what we checkpointed",
];

/// The machine is what the rest of these tests take it for.
fn ordinary() -> Outcome {
    let first = fs::read_to_string("/proc/1/comm").map_err(text)?;
    ensure!(first.trim() == "systemd", "the first process is {first}");
    let groups = fs::read_to_string("/proc/self/cgroup").map_err(text)?;
    ensure!(groups.starts_with("0::/system.slice/"), "{groups}");
    let profiles = fs::read_to_string("/sys/kernel/security/apparmor/profiles").map_err(text)?;
    ensure!(
        profiles.contains("docker-default (enforce)"),
        "AppArmor has {profiles}"
    );
    let docker = Command::new("docker")
        .args(["info", "--format", "{{json .}}"])
        .output()
        .map_err(text)?;
    let docker: Value = serde_json::from_slice(&docker.stdout).map_err(text)?;
    ensure!(
        docker["CgroupDriver"] == "systemd"
            && docker["CgroupVersion"] == "2"
            && docker["Driver"] == "overlay2"
            && docker["ExperimentalBuild"] == true,
        "{docker}"
    );
    // Who cannot be asked, or read, is complained of.
    let listed = Command::new(CRIUCTL)
        .args(["list", "--format", "json"])
        .output()
        .map_err(text)?;
    let complaints = String::from_utf8_lossy(&listed.stderr);
    ensure!(complaints.is_empty(), "{complaints}");
    let listed: Value = serde_json::from_slice(&listed.stdout).map_err(text)?;
    ensure!(listed["containers"] == json!([]), "{listed}");
    Ok(())
}
