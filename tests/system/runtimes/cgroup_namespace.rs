//! Containers with a cgroup namespace, whose cgroup mounts are their own.

use std::path::Path;
use std::process::Stdio;

use serde_json::json;

use super::fixture::{Fixture, Program};
use crate::support::{Outcome, ensure};

/// Checkpointed and restored by the runtime itself and by us, in turn.
pub(super) fn there_and_back<E: Program>() -> Outcome {
    let mut box_ = Fixture::<E>::with("cgroupns", |config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut();
        let namespaces = namespaces.expect("namespaces");
        namespaces.retain(|namespace| namespace["type"] != "cgroup");
        namespaces.push(json!({"type": "cgroup"}));
    })?;
    box_.start()?;
    sees_itself(&box_)?;

    let its = box_.images("its");
    let path = its.path().display().to_string();
    box_.run(&["checkpoint", "--image-path", &path, &box_.id])?;
    box_.reap();
    box_.is_gone()?;
    box_.restore_its_own(&its)?;
    sees_itself(&box_)?;

    let ours = box_.images("ours");
    box_.checkpoint(&ours)?;
    box_.restore(&ours)?;
    sees_itself(&box_)?;

    let again = box_.images("again");
    box_.checkpoint(&again)?;
    let (path, bundle) = (
        again.path().display().to_string(),
        box_.bundle().display().to_string(),
    );
    let id = box_.id.clone();
    let arguments = [
        "restore",
        "-d",
        "--bundle",
        &bundle,
        "--image-path",
        &path,
        &id,
    ];
    box_.run_detached(&arguments, Stdio::null())?;
    box_.counts()?;
    box_.delete()
}

/// The container's first process is in the group that its mount shows.
fn sees_itself<E: Program>(box_: &Fixture<E>) -> Outcome {
    let file = match Path::new("/sys/fs/cgroup/pids").exists() {
        true => "/sys/fs/cgroup/pids/cgroup.procs",
        false => "/sys/fs/cgroup/cgroup.procs",
    };
    let members = box_.run(&["exec", &box_.id, "/bin/cat", file])?;
    ensure!(members.lines().any(|pid| pid == "1"), "{file}: {members:?}");
    Ok(())
}
