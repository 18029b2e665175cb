//! An ordinary host, as servers run it: systemd, AppArmor, Docker and Podman as services. Run in a machine of `scripts/vm --host`,
//! as `system --in-host`.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::interposed::CRIUCTL;
use crate::runtimes;
use crate::support::*;

pub(crate) fn tests() -> Tests {
    let mut tests = named("host/", &[("is an ordinary one", ordinary)]);
    tests.extend(runtimes::systemd_tests());
    tests.extend(super::lxc::tests());
    tests
}

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
