//! There and back again.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::Duration;

use criu_client::container::runtime::{CheckpointOptions, RestoreOptions};
use serde_json::{Value, json};

use super::fixture::{COUNT, Console, Fixture, Lines, Program, groups, whole};
use crate::support::{Outcome, block_on, criu, ensure, text, until};

pub(super) fn round_trip<E: Program>() -> Outcome {
    let mut box_ = Fixture::<E>::new("round")?;
    box_.start()?;
    let before = box_.pid()?;
    let groups_before = fs::read_to_string(format!("/proc/{before}/cgroup")).map_err(text)?;
    let devices = groups(&box_.id)
        .into_iter()
        .find(|path| path.starts_with("/sys/fs/cgroup/devices"));
    let rules = devices
        .as_ref()
        .map(|path| fs::read_to_string(path.join("devices.list")));
    let images = box_.images("images");
    box_.checkpoint(&images)?;
    let counted = box_.count();
    box_.restore(&images)?;

    ensure!(
        box_.count() > counted,
        "the count began anew: {counted:?}, {:?}",
        box_.count()
    );
    let pid = box_.pid()?;
    let groups_after = fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(text)?;
    ensure!(
        groups_before == groups_after,
        "{groups_before}\n{groups_after}"
    );
    let rules_after = devices
        .as_ref()
        .map(|path| fs::read_to_string(path.join("devices.list")));
    let sorted = |rules: Option<std::io::Result<String>>| -> Result<Vec<String>, String> {
        let mut lines: Vec<_> = rules
            .transpose()
            .map_err(text)?
            .unwrap_or_default()
            .lines()
            .map(str::to_owned)
            .collect();
        lines.sort();
        Ok(lines)
    };
    let (rules, rules_after) = (sorted(rules)?, sorted(rules_after)?);
    ensure!(
        rules == rules_after,
        "device rules: {rules:?}, {rules_after:?}"
    );
    // The groups that it sees are its own.
    let mountinfo = fs::read_to_string(format!("/proc/{pid}/mountinfo")).map_err(text)?;
    for line in mountinfo
        .lines()
        .filter(|line| line.contains(" - cgroup cgroup "))
    {
        ensure!(
            line.contains(&format!("{} /sys/fs/cgroup", box_.id)),
            "a foreign group: {line}"
        );
    }
    // Masked files are masked, and by the device that the runtime takes for it.
    let dev = mountinfo
        .lines()
        .find(|line| line.contains(" /dev "))
        .unwrap_or_default();
    let mask = mountinfo
        .lines()
        .find(|line| line.contains(" /proc/keys "))
        .unwrap_or_default();
    let own = dev.split(' ').nth(2) == mask.split(' ').nth(2);
    ensure!(
        mask.contains(" /null ") && own == E::OWN_MASKS,
        "{dev}\n{mask}"
    );
    let link = box_.run(&["exec", &box_.id, "/bin/ip", "link", "show", "lo"])?;
    ensure!(
        link.contains("UP"),
        "the loopback interface is down: {link}"
    );
    ensure!(
        box_.run(&["exec", &box_.id, "/bin/echo", "in"])? == "in\n",
        "exec"
    );
    let time = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/time")).ok();
    let listed: Value = serde_json::from_slice(
        &fs::read(box_.root().join(&box_.id).join(E::RECORD)).map_err(text)?,
    )
    .map_err(text)?;
    let named = listed["config"]["namespaces"]
        .to_string()
        .contains("NEWTIME");
    ensure!(
        time("self").is_none() || named || E::NAME == "crun",
        "the time namespace is not among {}",
        listed["config"]["namespaces"]
    );

    box_.pause()?;
    box_.run(&["resume", &box_.id])?;
    box_.counts()?;
    let list: Value =
        serde_json::from_str(&box_.run(&["list", "--format", "json"])?).map_err(text)?;
    ensure!(
        list[0]["status"] == "running" && list[0]["bundle"] == json!(box_.bundle()),
        "{list}"
    );

    // Once more, from what we restored.
    let again = box_.images("again");
    box_.checkpoint(&again)?;
    box_.restore(&again)?;
    box_.run(&["kill", &box_.id, "KILL"])?;
    box_.reap();
    until("the runtime sees it stopped", || {
        box_.has_status("stopped").is_ok()
    })?;
    box_.run(&["delete", &box_.id])?;
    box_.is_gone()
}

pub(super) fn leave_running_twice<E: Program>() -> Outcome {
    let mut box_ = Fixture::<E>::new("twice")?;
    box_.start()?;
    let (runtime, pid) = (box_.ours(), box_.pid()?);
    let images = ["first", "second"].map(|name| box_.images(name));
    for images in &images {
        let options = CheckpointOptions::new().leave_running(true);
        let report =
            block_on(runtime.checkpoint(&criu(), &box_.id, images, (), options)).map_err(whole)?;
        ensure!(report.dump.pid == pid, "{report:?}");
        box_.has_status("running")?;
        ensure!(box_.pid()? == pid, "another process");
        box_.counts()?;
    }
    let before = fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(text)?;
    box_.delete()?;
    // Under another name, so in other groups.
    let expected = before.replace(&box_.id, &format!("{}-b", box_.id));
    box_.id += "-b";
    for images in &images {
        box_.restore(images)?;
        let after = fs::read_to_string(format!("/proc/{}/cgroup", box_.pid()?)).map_err(text)?;
        ensure!(
            after == expected,
            "in foreign groups:\n{after}instead of\n{expected}"
        );
        ensure!(
            groups(box_.id.trim_end_matches("-b")).is_empty(),
            "groups of the old name"
        );
        box_.delete()?;
    }
    Ok(())
}

pub(super) fn stdout_pipe<E: Program>() -> Outcome {
    let mut box_ = Fixture::<E>::new("pipe")?;
    let (mut lines, write) = Lines::pipe()?;
    box_.start_with(write.into())?;
    let first = lines.number()?;
    let images = box_.images("images");
    box_.checkpoint(&images)?;
    drop(lines);

    let refused = block_on(box_.ours().restore(
        &criu(),
        &box_.id,
        &images,
        box_.bundle(),
        (),
        RestoreOptions::new().detach(true),
    ));
    let refused = refused
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    ensure!(refused.contains("stdout: was pipe:["), "{refused}");
    box_.is_gone()?;

    let (mut lines, write) = Lines::pipe()?;
    box_.restore_with(&images, RestoreOptions::new().stdout(write))?;
    let second = lines.number()?;
    ensure!(second > first, "{first}, then {second}");
    // What the runtime will say of it is what it has.
    let state = fs::read_to_string(box_.root().join(&box_.id).join(E::RECORD)).map_err(text)?;
    let state: Value = serde_json::from_str(&state).map_err(text)?;
    let now = fs::read_link(format!("/proc/{}/fd/1", box_.pid()?)).map_err(text)?;
    let noted = match &state["external_descriptors"] {
        Value::String(list) => serde_json::from_str(list).map_err(text)?,
        list => list.clone(),
    };
    ensure!(noted[1] == json!(now), "{noted}");
    box_.delete()
}

pub(super) fn terminal<E: Program>() -> Outcome {
    let mut box_ = Fixture::<E>::with("tty", |config| config["process"]["terminal"] = json!(true))?;
    let console = Console::listen(box_.directory.path().join("console"))?;
    let (bundle, id) = (box_.bundle().display().to_string(), box_.id.clone());
    let socket = console.path.display().to_string();
    let receiving = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| console.receive());
        box_.run_detached(
            &[
                "run",
                "-d",
                "--bundle",
                &bundle,
                "--console-socket",
                &socket,
                &id,
            ],
            Stdio::null(),
        )?;
        receiving
            .join()
            .map_err(|_| "the console panicked".to_owned())?
    });
    let (master, _) = receiving?;
    let mut lines = Lines(File::from(master));
    lines.number()?;
    box_.counts()?;

    let images = box_.images("images");
    // Nobody reads while it is checkpointed; the terminal's buffer holds what it writes meanwhile.
    box_.checkpoint(&images)?;
    drop(lines);
    let refused = block_on(box_.ours().restore(
        &criu(),
        &id,
        &images,
        box_.bundle(),
        (),
        RestoreOptions::new().detach(true),
    ));
    let refused = refused
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    ensure!(refused.contains("console-socket"), "{refused}");

    let counted = box_.count().unwrap_or(0);
    let (restored, received) = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| console.receive());
        let restored =
            box_.restore_with(&images, RestoreOptions::new().console_socket(&console.path));
        if restored.is_err() {
            // Whoever waits for a terminal that will not come.
            let _ = std::os::unix::net::UnixStream::connect(&console.path);
        }
        (restored, receiving.join())
    });
    restored?;
    let (master, name) = received.map_err(|_| "the console panicked".to_owned())??;
    ensure!(name == "orphan-pts-master", "{name}");
    let mut lines = Lines(File::from(master));
    // Lines from before the checkpoint are still in the terminal's buffer.
    let mut number = lines.number()?;
    for _ in 0..10_000 {
        if number > counted {
            break;
        }
        number = lines.number()?;
    }
    ensure!(number > counted, "{number} after {counted}");
    box_.delete()
}

pub(super) fn restored_by_itself<E: Program>() -> Outcome {
    let mut box_ = Fixture::<E>::new("to-itself")?;
    box_.start()?;
    let images = box_.images("images");
    box_.checkpoint(&images)?;
    let counted = box_.count();
    let (bundle, path, id) = (
        box_.bundle(),
        images.path().display().to_string(),
        box_.id.clone(),
    );
    let bundle = bundle.display().to_string();
    box_.run_detached(
        &[
            "restore",
            "-d",
            "--bundle",
            &bundle,
            "--image-path",
            &path,
            &id,
        ],
        Stdio::null(),
    )?;
    box_.counts()?;
    ensure!(box_.count() > counted, "the count began anew");
    // And what the runtime restored, whose masks are the host's device now, once more.
    let again = box_.images("again");
    box_.checkpoint(&again)?;
    box_.restore(&again)?;
    box_.delete()
}

pub(super) fn checkpointed_by_itself<E: Program>() -> Outcome {
    let mut box_ = Fixture::<E>::new("from-itself")?;
    box_.start()?;
    let images = box_.images("images");
    let path = images.path().display().to_string();
    box_.run(&["checkpoint", "--image-path", &path, &box_.id])?;
    box_.reap();
    box_.is_gone()?;
    let counted = box_.count();
    box_.restore_its_own(&images)?;
    ensure!(box_.count() > counted, "the count began anew");
    let link = box_.run(&["exec", &box_.id, "/bin/ip", "link", "show", "lo"])?;
    ensure!(
        link.contains("UP"),
        "the loopback interface is down: {link}"
    );
    // The runtime can checkpoint by the record that we have made from the bundle.
    let again = box_.images("again");
    let path = again.path().display().to_string();
    box_.run(&["checkpoint", "--image-path", &path, &box_.id])?;
    box_.reap();
    box_.restore_its_own(&again)?;
    box_.delete()
}

pub(super) fn joined_network<E: Program>() -> Outcome {
    // A namespace is kept by a process in it.
    let mut keeper = Command::new("/usr/bin/unshare")
        .args(["--net", "/bin/sleep", "1000"])
        .spawn()
        .map_err(text)?;
    let own = fs::read_link("/proc/self/ns/net").map_err(text)?;
    let path = format!("/proc/{}/ns/net", keeper.id());
    let result = until("the keeper has its namespace", || {
        fs::read_link(&path).is_ok_and(|link| link != own)
    })
    .and_then(|()| with_joined_network::<E>(&path));
    let _ = keeper.kill();
    let _ = keeper.wait();
    result
}

fn with_joined_network<E: Program>(path: &str) -> Outcome {
    let mut box_ = Fixture::<E>::with("net", |config| {
        for namespace in config["linux"]["namespaces"]
            .as_array_mut()
            .expect("namespaces")
        {
            if namespace["type"] == "network" {
                namespace["path"] = json!(path);
            }
        }
    })?;
    box_.start()?;
    let wanted = fs::read_link(path).map_err(text)?;
    let images = box_.images("images");
    within(path, &["/bin/busybox", "ifconfig", "lo", "up"])?;
    let established = CheckpointOptions::new().tcp_established(true);
    let refused = block_on(
        box_.ours()
            .checkpoint(&criu(), &box_.id, &images, (), established),
    );
    let refused = refused.err().ok_or("the keeper was to be locked in")?;
    ensure!(
        refused.to_string().contains("network-lock: process "),
        "{refused}"
    );
    box_.checkpoint(&images)?;
    // The keeper is not locked in.
    within(path, &["/bin/busybox", "ping", "-c1", "-W2", "127.0.0.1"])?;
    box_.restore(&images)?;
    let is = fs::read_link(format!("/proc/{}/ns/net", box_.pid()?)).map_err(text)?;
    ensure!(
        is == wanted,
        "{} instead of {}",
        is.display(),
        wanted.display()
    );
    box_.delete()
}

/// Runs a program in another network namespace.
fn within(namespace: &str, command: &[&str]) -> Outcome {
    let output = Command::new("/usr/bin/nsenter")
        .arg(format!("--net={namespace}"))
        .args(command)
        .output()
        .map_err(text)?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(())
}

pub(super) fn foreground<E: Program>() -> Outcome {
    let mut box_ = Fixture::<E>::with("fore", |config| {
        config["process"]["args"] =
            json!(["/bin/sh", "-c", format!("trap 'exit 7' TERM; {COUNT}")]);
    })?;
    box_.start()?;
    let images = box_.images("images");
    box_.checkpoint(&images)?;
    let runtime = box_.ours();
    let (id, bundle) = (box_.id.clone(), box_.bundle());
    block_on(async {
        let restored = runtime
            .restore(&criu(), &id, &images, &bundle, (), RestoreOptions::new())
            .await
            .map_err(whole)?;
        box_.is_handed_over()?;
        let root = restored.root.ok_or("no handle of the child")?;
        ensure!(root.pid() == restored.init.pid, "another process");
        ensure!(
            runtime.remove(&id).await.is_err(),
            "a running container was removed"
        );
        let stat = fs::read_to_string(format!("/proc/{}/stat", root.pid())).map_err(text)?;
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1));
        ensure!(
            parent == Some(&std::process::id().to_string()),
            "its parent is {parent:?}"
        );
        box_.run(&["kill", &id, "TERM"])?;
        let exit = tokio::time::timeout(Duration::from_secs(20), root.wait())
            .await
            .map_err(text)?
            .map_err(text)?;
        ensure!(exit == criu_client::Exit::Status(7), "{exit}");
        let left = runtime.remove(&id).await.map_err(whole)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    box_.is_gone()
}

pub(super) fn paused<E: Program>() -> Outcome {
    let mut box_ = Fixture::<E>::new("paused")?;
    box_.start()?;
    box_.pause()?;
    let images = [box_.images("left"), box_.images("gone")];
    let options = CheckpointOptions::new().leave_running(true);
    block_on(
        box_.ours()
            .checkpoint(&criu(), &box_.id, &images[0], (), options),
    )
    .map_err(whole)?;
    box_.has_status("paused")?;
    box_.run(&["resume", &box_.id])?;
    box_.counts()?;
    box_.pause()?;
    box_.checkpoint(&images[1])?;
    // It comes back running: nobody would know whom to ask to resume it.
    for images in &images {
        box_.restore(images)?;
        box_.delete()?;
    }
    Ok(())
}

pub(super) fn pre_dump<E: Program>() -> Outcome {
    let mut box_ = Fixture::<E>::new("pre")?;
    box_.start()?;
    let first = box_.images("first");
    let tracked = block_on(criu().features()).map_err(text)?.mem_track == Some(true);
    let result = block_on(box_.ours().pre_dump(
        &criu(),
        &box_.id,
        &first,
        criu_client::options::PreDumpOptions::new(),
    ));
    box_.has_status("running")?;
    box_.counts()?;
    match (tracked, result) {
        (false, Err(error)) => {
            ensure!(
                error.to_string().contains("CONFIG_MEM_SOFT_DIRTY"),
                "{error}"
            );
            box_.delete()
        }
        (false, Ok(_)) => Err("pre-dumped without memory tracking".into()),
        (true, result) => {
            result.map_err(whole)?;
            let images = box_.images("second");
            let options = CheckpointOptions::new().parent_path("../first");
            block_on(
                box_.ours()
                    .checkpoint(&criu(), &box_.id, &images, (), options),
            )
            .map_err(whole)?;
            box_.reap();
            box_.restore(&images)?;
            box_.delete()
        }
    }
}
