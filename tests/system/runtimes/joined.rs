//! Namespaces that a container joins and that no restore can give it again: refused before it is too late.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use criu_client::container::runtime::{CheckpointOptions, RestoreOptions};
use serde_json::json;

use super::fixture::{Fixture, Program};
use crate::support::{Outcome, block_on, criu, ensure, text, until};

struct Keeper(Child);

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn refused<E: Program>() -> Outcome {
    let child = Command::new("/usr/bin/unshare")
        .args(["--cgroup", "--mount", "/bin/sleep", "1000"])
        .stdin(Stdio::null())
        .spawn()
        .map_err(text)?;
    let keeper = Keeper(child);
    let namespace = |file: &str| format!("/proc/{}/ns/{file}", keeper.0.id());
    let own = fs::read_link("/proc/self/ns/mnt").map_err(text)?;
    until("the keeper has its namespaces", || {
        fs::read_link(namespace("mnt")).is_ok_and(|link| link != own)
    })?;
    let join = |box_: &Fixture<E>, kind: &str, path: Option<&str>| {
        box_.configure(|config| {
            let namespaces = config["linux"]["namespaces"].as_array_mut();
            let namespaces = namespaces.expect("namespaces");
            namespaces.retain(|namespace| namespace["type"] != kind);
            namespaces.push(match path {
                Some(path) => json!({"type": kind, "path": path}),
                None => json!({"type": kind}),
            });
        })
    };

    let mut box_ = Fixture::<E>::new("joined")?;
    join(&box_, "cgroup", Some(&namespace("cgroup")))?;
    box_.start()?;
    let images = box_.images("images");
    let (runtime, criu) = (box_.ours(), criu());
    let dump = runtime.checkpoint(&criu, &box_.id, &images, (), CheckpointOptions::new());
    let error = block_on(dump).err().ok_or("it was checkpointed")?;
    ensure!(
        error.to_string().contains("joins the cgroup namespace"),
        "{error}"
    );
    box_.has_status("running")?;
    box_.counts()?;
    let written = fs::read_dir(images.path()).map_err(text)?.count();
    ensure!(written == 0, "{written} files were written");
    box_.delete()?;

    // A configuration that is not the one of the checkpoint.
    join(&box_, "cgroup", None)?;
    box_.start()?;
    box_.checkpoint(&images)?;
    let restore = |wanted: &str| -> Outcome {
        let options = RestoreOptions::new().detach(true);
        let restored = runtime.restore(&criu, &box_.id, &images, box_.bundle(), (), options);
        let error = block_on(restored).err().ok_or("it was restored")?;
        ensure!(error.to_string().contains(wanted), "{error}");
        ensure!(
            !Path::new(&box_.root()).join(&box_.id).exists(),
            "something was made"
        );
        box_.is_gone()
    };
    join(&box_, "cgroup", Some(&namespace("cgroup")))?;
    restore("joins the cgroup namespace")?;
    join(&box_, "cgroup", None)?;
    join(&box_, "mount", Some(&namespace("mnt")))?;
    restore("joins the mount namespace")?;
    join(&box_, "mount", None)?;
    join(&box_, "colour", None)?;
    restore("unknown type colour")
}
