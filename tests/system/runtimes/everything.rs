//! Bind mounts of every kind, limits and hooks.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use criu_client::container::runtime::RestoreOptions;
use criu_client::notify::{HookTable, Reply, Script, hook_fn};
use serde_json::{Value, json};

use super::fixture::{Fixture, Program, groups, whole};
use crate::support::{Outcome, block_on, criu, ensure, text};

pub(super) fn there_and_back<E: Program>() -> Outcome {
    let outside = tempfile::tempdir().map_err(text)?;
    fs::write(outside.path().join("file"), "from outside").map_err(text)?;
    fs::create_dir_all(outside.path().join("tree/inner")).map_err(text)?;
    let ran = outside.path().join("ran");
    let hook = outside.path().join("hook");
    fs::write(
        &hook,
        format!(
            "#!/bin/busybox sh\ncat > {0}.$1.new; mv {0}.$1.new {0}.$1\n",
            ran.display()
        ),
    )
    .map_err(text)?;
    fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .map_err(text)?;
    let at = |name: &str| outside.path().join(name).display().to_string();
    // A file system within the tree, which a recursive bind brings along.
    let tmpfs = at("tree/inner");
    nix::mount::mount(
        Some("inner"),
        tmpfs.as_str(),
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    )
    .map_err(text)?;
    let result = with_everything::<E>(outside.path(), &hook, &ran);
    nix::mount::umount2(tmpfs.as_str(), nix::mount::MntFlags::MNT_DETACH).map_err(text)?;
    result
}

fn with_everything<E: Program>(outside: &Path, hook: &Path, ran: &Path) -> Outcome {
    let at = |name: &str| outside.join(name).display().to_string();
    fs::write(outside.join("tree/inner/deep"), "deep").map_err(text)?;
    // The runtimes follow links that they mount, and CRIU does not.
    symlink("file", outside.join("link")).map_err(text)?;
    fs::write(outside.join("tree/shallow"), "shallow").map_err(text)?;
    symlink("tree", outside.join("tree-link")).map_err(text)?;
    let mut box_ = Fixture::<E>::with("all", |config| {
        let mounts = config["mounts"].as_array_mut().expect("mounts");
        mounts.push(
            json!({"destination": "/var/run/file", "type": "none", "source": at("file"),
            "options": ["bind", "ro"]}),
        );
        mounts.push(json!({"destination": "/tree", "type": "none", "source": at("tree"), "options": ["rbind"]}));
        mounts.push(json!({"destination": "/tree/point", "type": "bind", "source": at("file"), "options": ["bind"]}));
        mounts.push(json!({"destination": "/link", "type": "bind", "source": at("link"), "options": ["bind", "ro"]}));
        mounts.push(json!({"destination": "/tree-link", "type": "bind", "source": at("tree-link"), "options": ["bind", "ro"]}));
        mounts.push(json!({"destination": "/cache", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]}));
        config["linux"]["resources"]["pids"] = json!({"limit": 50});
        config["linux"]["resources"]["memory"] = json!({"limit": 67_108_864});
        config["linux"]["resources"]["cpu"] = json!({"shares": 512});
        config["hooks"] = json!({
            "prestart": [{"path": hook, "args": ["hook", "prestart"]}],
            "poststop": [{"path": hook, "args": ["hook", "poststop"]}],
        });
    })?;
    // Links in the root file system are the container's, not ours.
    fs::create_dir_all(box_.rootfs().join("var")).map_err(text)?;
    fs::create_dir_all(box_.rootfs().join("run")).map_err(text)?;
    symlink("/run", box_.rootfs().join("var/run")).map_err(text)?;
    box_.start()?;
    box_.run(&["exec", &box_.id, "/bin/sh", "-c", "echo kept > /cache/kept"])?;
    let updated = box_.run(&["update", "--pids-limit", "60", &box_.id]);
    let noted = |name: &str| PathBuf::from(format!("{}.{name}", ran.display()));
    fs::remove_file(noted("prestart")).map_err(text)?;

    let images = box_.images("images");
    box_.checkpoint(&images)?;
    let state: Value =
        serde_json::from_slice(&fs::read(noted("poststop")).map_err(text)?).map_err(text)?;
    ensure!(
        state["status"] == "stopped" && state["id"] == json!(box_.id),
        "{state}"
    );
    // The mount points have to be made again.
    for point in ["run/file", "tree", "cache"] {
        let path = box_.rootfs().join(point);
        let removed = fs::remove_dir(&path).or_else(|_| fs::remove_file(&path));
        removed.map_err(|error| format!("{}: {error}", path.display()))?;
    }
    fs::remove_file(outside.join("tree/point")).map_err(text)?;
    let runtime = box_.ours();
    let plan = runtime
        .restore_plan(&box_.id, &images, box_.bundle())
        .map_err(whole)?;
    let plan = serde_json::to_value(&plan).map_err(text)?;
    ensure!(plan.to_string().contains("mnt[/run/file]:"), "{plan:#}");
    // A restore that fails takes them away.
    let hooks = HookTable::new().on(
        Script::PostRestore,
        hook_fn(async |_| Ok(Reply::Refuse("a rehearsal".into()))),
    );
    let options = RestoreOptions::new().detach(true);
    let refused =
        block_on(runtime.restore(&criu(), &box_.id, &images, box_.bundle(), hooks, options));
    ensure!(refused.is_err(), "restored against a refusal");
    ensure!(
        !box_.rootfs().join("tree").exists(),
        "a mount point was left"
    );
    ensure!(
        !outside.join("tree/point").exists(),
        "a nested mount point was left"
    );
    box_.is_gone()?;

    box_.restore(&images)?;
    ensure!(
        noted("prestart").exists() == E::RUNS_HOOKS,
        "whether the prestart hook ran: {}",
        noted("prestart").exists()
    );
    for (path, content) in [
        ("/var/run/file", "from outside"),
        ("/tree/point", "from outside"),
        ("/tree/inner/deep", "deep"),
        ("/link", "from outside"),
        ("/tree-link/shallow", "shallow"),
        ("/cache/kept", "kept\n"),
    ] {
        let read = box_.run(&["exec", &box_.id, "/bin/cat", path])?;
        ensure!(read == content, "{path}: {read:?}");
    }
    // As it was updated, whether or not the runtime has noted it.
    let pids = if updated.is_ok() { "60" } else { "50" };
    let expected: &[_] = match Path::new("/sys/fs/cgroup/memory").exists() {
        true => &[
            ("pids.max", pids),
            ("memory.limit_in_bytes", "67108864"),
            ("cpu.shares", "512"),
        ],
        false => &[("pids.max", pids), ("memory.max", "67108864")],
    };
    for (file, value) in expected {
        let found = groups(&box_.id)
            .into_iter()
            .find_map(|group| fs::read_to_string(group.join(file)).ok());
        ensure!(
            found.as_deref().map(str::trim) == Some(value),
            "{file} is {found:?} instead of {value}"
        );
    }
    box_.delete()
}
