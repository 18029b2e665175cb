//! Archives: what we export, Podman restores by itself, and nothing is lost on the way.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::fixture::{Box_, names, with};
use crate::engines::{COUNTER, Engine, Program};
use crate::support::{Outcome, ensure, text, until};

/// A container with a volume, of an image that has a file and directories that this host has not.
fn start(box_: &mut Box_) -> Outcome {
    let rootfs = box_.path("rootfs");
    let own = rootfs.join("own");
    fs::create_dir_all(own.join("dir/sub")).map_err(text)?;
    for (name, content) in [
        ("word", "old"),
        ("gone", "x"),
        ("dir/x", "x"),
        ("dir/sub/y", "y"),
    ] {
        fs::write(own.join(name), content).map_err(text)?;
    }
    fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).map_err(text)?;
    let tar = box_.engine.ground().text("own.tar");
    let mut pack = Command::new("tar");
    pack.args(["--create", "--file", &tar, "--directory"]);
    let packed = pack.arg(rootfs).arg(".").status().map_err(text)?;
    ensure!(packed.success(), "tar: {packed}");
    box_.podman(&["import", &tar, "localhost/own"])?;
    let ground = box_.engine.ground();
    let (name, group, data) = (ground.id.clone(), ground.group(), ground.volume());
    let volume = format!("{name}:/volume");
    let mut arguments = vec!["run", "--detach", "--name", &name, "--network", "none"];
    arguments.extend(["--cgroup-parent", &group, "--volume", &data]);
    arguments.extend(["--volume", &volume, "localhost/own"]);
    arguments.extend(COUNTER);
    let id = box_.podman(&arguments)?.trim().to_owned();
    box_.engine.is_called(&id);
    box_.engine.ground().counts()
}

/// Everything that can be done to a root, from inside and from here.
fn change(box_: &Box_) -> Outcome {
    box_.exec(&[
        "/bin/busybox",
        "sh",
        "-c",
        "cd /own && echo new >word && busybox rm gone && busybox chmod 700 . && busybox rm -r dir && busybox mkdir dir \
         && echo z >dir/z && busybox ln word hard && busybox ln -s word soft && busybox mkfifo pipe \
         && busybox chown 7:8 dir/z && busybox chmod 6751 dir/z && busybox dd if=/dev/zero of=holes bs=1 count=1 seek=8M 2>/dev/null \
         && busybox mkdir -p long/$(busybox seq -s '' 60) && echo volume >/volume/file && echo shm >/dev/shm/file",
    ])?;
    let pid = box_.inspect()?["State"]["Pid"].as_i64().ok_or("no pid")?;
    let file = format!("/proc/{pid}/root/own/dir/z");
    let flags = rustix::fs::XattrFlags::empty();
    // cap_net_raw+ep, in the kernel's own form.
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr(&file, "security.capability", &capability, flags).map_err(text)?;
    rustix::fs::setxattr(&file, "trusted.word", b"kept", flags).map_err(text)
}

/// What must be as [`change`] has left it.
fn changed(box_: &Box_) -> Outcome {
    let seen = box_.exec(&[
        "/bin/busybox",
        "sh",
        "-c",
        "cd /own && echo $(busybox cat word hard soft dir/z) $(busybox ls) $(busybox ls dir) $(busybox stat -c '%a' . ) \
         $(busybox stat -c '%a:%u:%g' dir/z) $(busybox stat -c %h:%s word) $(busybox stat -c %F pipe) \
         $(busybox stat -c %s holes) $(busybox ls long) $(busybox cat /volume/file /dev/shm/file)",
    ])?;
    let long: String = (1..=60).map(|number: u32| number.to_string()).collect();
    let expected = format!(
        "new new new z dir hard holes long pipe soft word z 700 6751:7:8 2:4 fifo 8388609 {long} volume shm\n"
    );
    ensure!(seen == expected, "{seen:?} instead of {expected:?}");
    let pid = box_.inspect()?["State"]["Pid"].as_i64().ok_or("no pid")?;
    let file = format!("/proc/{pid}/root/own/dir/z");
    let mut value = [0; 64];
    let len = rustix::fs::getxattr(&file, "trusted.word", &mut value[..]).map_err(text)?;
    ensure!(
        &value[..len] == b"kept",
        "trusted.word is {:?}",
        &value[..len]
    );
    let len = rustix::fs::getxattr(&file, "security.capability", &mut value[..]).map_err(text)?;
    ensure!(len == 20 && value[5] == 32, "{:?}", &value[..len]);
    Ok(())
}

fn export(box_: &Box_, arguments: &[&str]) -> Result<Output, String> {
    let target = format!("podman:{}", box_.id());
    box_.criuctl(&[&["checkpoint", &target], arguments].concat())
}

fn succeeded(output: &Output) -> Outcome {
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

/// As on another host: nothing is left of the container.
fn forget(box_: &Box_) -> Outcome {
    box_.podman(&["rm", "--force", "--time", "0", "--ignore", &box_.id()])?;
    box_.podman(&["volume", "rm", "--all", "--force"])?;
    let root = box_.engine.runtime_root();
    match root.join(box_.id()).exists() {
        true => box_.engine.forget(),
        false => Ok(()),
    }
}

fn import_by_itself(box_: &Box_, archive: &Path) -> Outcome {
    let archive = archive.display().to_string();
    box_.podman(&["container", "restore", "--import", &archive])?;
    box_.is("running")
}

pub(super) fn exported(program: Program) -> Outcome {
    with(program, |box_| {
        start(box_)?;
        change(box_)?;
        let before = box_.inspect()?;
        let archive = box_.path("archive");
        let done = export(
            box_,
            &[
                "--export",
                &archive.display().to_string(),
                "--format",
                "json",
            ],
        )?;
        succeeded(&done)?;
        let document: Value = serde_json::from_slice(&done.stdout).map_err(text)?;
        let file = fs::metadata(&archive).map_err(text)?;
        ensure!(
            document["kind"] == "Export" && document["archiveBytes"] == file.len(),
            "{document} {file:?}"
        );
        ensure!(file.mode() & 0o777 == 0o600, "{:o}", file.mode());
        // Zeros cost nothing.
        ensure!(file.len() < 1 << 20, "{} bytes", file.len());
        box_.is("exited")?;
        nothing_beside(&archive)?;
        let counted = box_.engine.ground().stands_still()?;
        let shown = Command::new("checkpointctl")
            .args(["inspect", "--all"])
            .arg(&archive)
            .output()
            .map_err(text)?;
        let words = String::from_utf8_lossy(&shown.stdout).into_owned();
        ensure!(
            shown.status.success()
                && words.contains("Engine: Podman")
                && words.contains("Process tree"),
            "{shown:?}"
        );
        forget(box_)?;
        import_by_itself(box_, &archive)?;
        box_.engine.ground().goes_on_from(&counted)?;
        changed(box_)?;
        // It is the container that it was, in all that Podman tells of it.
        let after = box_.inspect()?;
        for part in [
            "Id",
            "Name",
            "Image",
            "ImageName",
            "Mounts",
            "Config",
            "Driver",
            "OCIRuntime",
            "Path",
            "Args",
        ] {
            ensure!(
                before[part] == after[part],
                "{part}: {} {}",
                before[part],
                after[part]
            );
        }
        Ok(())
    })
}

/// The same container, by Podman and by us.
pub(super) fn beside_podmans_own(program: Program) -> Outcome {
    with(program, |box_| {
        start(box_)?;
        change(box_)?;
        let (own, ours) = (box_.path("own-archive"), box_.path("our-archive"));
        let path = own.display().to_string();
        box_.podman(&[
            "container",
            "checkpoint",
            "--leave-running",
            "--export",
            &path,
            &box_.id(),
        ])?;
        let path = ours.display().to_string();
        succeeded(&export(
            box_,
            &["--leave-running", "--export", &path, "--compress", "gzip"],
        )?)?;
        box_.is("running")?;
        forget(box_)?;
        import_by_itself(box_, &own)?;
        let seen = box_.exec(&[
            "/bin/busybox",
            "sh",
            "-c",
            "cd /own && busybox cat word && busybox stat -c %a .",
        ])?;
        ensure!(
            seen == "old755\n",
            "Podman no longer loses what was changed: {seen:?}"
        );
        forget(box_)?;
        import_by_itself(box_, &ours)?;
        changed(box_)
    })
}

fn nothing_beside(archive: &Path) -> Outcome {
    let directory = archive.parent().ok_or("no directory")?;
    let left = names(directory)?;
    let left: Vec<_> = left
        .iter()
        .filter(|name| name.starts_with(".criuctl"))
        .collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

pub(super) fn through_a_pipe(program: Program) -> Outcome {
    with(program, |box_| {
        start(box_)?;
        change(box_)?;
        let scratch = box_.path("scratch");
        fs::create_dir(&scratch).map_err(text)?;
        let url = format!("unix://{}", box_.served.socket.display());
        let target = format!("podman:{}", box_.id());
        let mut command = Command::new(env!("CARGO_BIN_EXE_criuctl"));
        command.args(["checkpoint", &target, "--export", "-"]);
        command.env("CONTAINER_HOST", url).env("TMPDIR", &scratch);
        // Whoever reads it has had enough.
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(text)?;
        drop(child.stdout.take());
        let refused = child.wait_with_output().map_err(text)?;
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(
            refused.status.code() == Some(1)
                && words.contains("Broken pipe")
                && words.contains("tasks: running"),
            "{refused:?}"
        );
        box_.is("running")?;
        let counted = box_.engine.ground().count().ok_or("no count")?;
        box_.engine.ground().goes_on_from(&counted)?;

        let done = command.output().map_err(text)?;
        succeeded(&done)?;
        ensure!(names(&scratch)?.is_empty(), "{:?}", names(&scratch)?);
        let counted = box_.engine.ground().stands_still()?;
        let archive = box_.path("archive");
        fs::write(&archive, &done.stdout).map_err(text)?;
        forget(box_)?;
        import_by_itself(box_, &archive)?;
        box_.engine.ground().goes_on_from(&counted)?;
        changed(box_)
    })
}

pub(super) fn no_room(program: Program) -> Outcome {
    with(program, |box_| {
        start(box_)?;
        let small = box_.path("small");
        fs::create_dir(&small).map_err(text)?;
        // Enough for the images, and not for what comes with them.
        let size = Some("size=4m");
        nix::mount::mount(
            Some("tmpfs"),
            &small,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            size,
        )
        .map_err(text)?;
        let outcome = refused_for_want_of_room(box_, &small);
        nix::mount::umount(&small).map_err(text)?;
        outcome
    })
}

fn refused_for_want_of_room(box_: &Box_, small: &Path) -> Outcome {
    box_.exec(&[
        "/bin/busybox",
        "dd",
        "if=/dev/urandom",
        "of=/volume/large",
        "bs=1M",
        "count=8",
    ])?;
    let archive = small.join("archive").display().to_string();
    let refused = export(box_, &["--export", &archive])?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        refused.status.code() == Some(1) && words.contains("No space left"),
        "{refused:?}"
    );
    ensure!(names(small)?.is_empty(), "{:?}", names(small)?);
    box_.is("running")?;
    let counted = box_.engine.ground().count().ok_or("no count")?;
    box_.engine.ground().goes_on_from(&counted)?;
    let done = export(box_, &["--export", &archive, "--ignore-volumes"])?;
    succeeded(&done)?;
    ensure!(names(small)? == ["archive"], "{:?}", names(small)?);
    box_.is("exited")
}

pub(super) fn killed(program: Program) -> Outcome {
    with(program, |box_| {
        start(box_)?;
        let directory = box_.path("archives");
        fs::create_dir(&directory).map_err(text)?;
        let archive = directory.join("archive").display().to_string();
        let killer = box_.path("killer");
        fs::write(&killer, "#!/bin/sh\nkill -9 $PPID\n").map_err(text)?;
        fs::set_permissions(&killer, fs::Permissions::from_mode(0o755)).map_err(text)?;
        let hook = format!("post-dump={}", killer.display());
        let killed = export(box_, &["--export", &archive, "--hook", &hook])?;
        ensure!(killed.status.code().is_none(), "{killed:?}");
        ensure!(!PathBuf::from(&archive).exists(), "there is an archive");
        until("it runs on", || box_.is("running").is_ok())?;
        let counted = box_.engine.ground().count().ok_or("no count")?;
        box_.engine.ground().goes_on_from(&counted)?;
        // What is left goes with the next.
        ensure!(!names(&directory)?.is_empty(), "nothing was left");
        let done = export(box_, &["--export", &archive, "--leave-running"])?;
        succeeded(&done)?;
        ensure!(
            names(&directory)? == ["archive"],
            "{:?}",
            names(&directory)?
        );
        let refused = export(box_, &["--export", "/dev/null"])?;
        ensure!(refused.status.code() == Some(2), "{refused:?}");
        box_.is("running")
    })
}
