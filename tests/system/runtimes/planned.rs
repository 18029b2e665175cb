//! Dry runs of containers' checkpoints and restores, held against what is done then.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::fixture::{Fixture, Program, groups};
use crate::dry_run::{asks, criuctl, of_steps, planned, refuses_alike, sent, succeeds, words};
use crate::interposed::Stage;
use crate::support::{Outcome, ensure, text};

/// A container with a bind mount, and what criuctl is told of it.
fn box_with_a_mount<E: Program>(id: &str) -> Result<(Fixture<E>, Vec<String>), String> {
    let box_ = Fixture::<E>::new(id)?;
    let data = box_.directory.path().join("data");
    fs::create_dir(&data).map_err(text)?;
    box_.configure(|config| {
        let mounts = config["mounts"].as_array_mut().expect("mounts");
        mounts.push(
            json!({"destination": "/outer/data", "type": "bind", "source": data, "options": ["rbind"]}),
        );
    })?;
    let arguments = vec![
        format!("{}:{}", E::NAME, box_.id),
        format!("--{}-root={}", E::NAME, box_.root().display()),
        format!(
            "--image-path={}",
            box_.directory.path().join("images").display()
        ),
    ];
    Ok((box_, arguments))
}

fn of(verb: &str, target: &[String], options: &[&str]) -> Vec<String> {
    let mut arguments = words(&[verb]);
    arguments.extend_from_slice(target);
    arguments.extend(words(options));
    arguments
}

pub(super) fn asks_what_is_sent<E: Program>() -> Outcome {
    let stage = Stage::install(&[])?;
    let (mut box_, mut target) = box_with_a_mount::<E>("plan")?;
    let directory = box_.directory.path().to_owned();
    target.push(format!("--criu={}", stage.criu().display()));
    let work = format!("--work-path={}", directory.join("work").display());
    box_.start()?;

    let options = [
        work.as_str(),
        "--file-locks",
        "--ext-unix-sk",
        "--tcp-close",
        "--network-lock=skip",
        "--ghost-limit=2M",
        "--external=dev[7/7]:disk",
        "--hook=post-dump=/bin/true",
    ];
    let arguments = of("checkpoint", &target, &options);
    let plan = planned(&arguments, &directory)?;
    ensure!(plan["kind"] == "CheckpointPlan", "{plan}");
    box_.has_status("running")?;
    box_.counts()?;
    succeeds(&arguments)?;
    box_.reap();
    asks(&plan, "DUMP", &sent(&stage, "DUMP")?)?;
    let asked = &plan["request"]["options"];
    for (option, value) in [
        ("tcp_close", json!(true)),
        ("network_lock", json!("SKIP")),
        ("ghost_limit", json!(2 << 20)),
    ] {
        ensure!(asked[option] == value, "{option}: {asked}");
    }
    let external = asked["external"].as_array().cloned().unwrap_or_default();
    ensure!(external.contains(&json!("dev[7/7]:disk")), "{external:?}");
    files_are_those_of(&plan, &directory.join("images"))?;
    let removed = of_steps(&plan, "remove-cgroups", "groups");
    ensure!(!removed.is_empty(), "{plan:#}");
    for path in removed
        .into_iter()
        .chain(of_steps(&plan, "remove-record", "directory"))
    {
        ensure!(!path.exists(), "{} is still there", path.display());
    }

    // A mount point that has to be made.
    fs::remove_dir(box_.rootfs().join("outer/data")).map_err(text)?;
    fs::remove_dir(box_.rootfs().join("outer")).map_err(text)?;
    let bundle = format!("--bundle={}", box_.bundle().display());
    let mut options = vec![
        bundle.as_str(),
        &work,
        "--detach",
        "--file-locks",
        "--ext-unix-sk",
    ];
    options.push("--tcp-close");
    let refused = of(
        "restore",
        &target,
        &[&options[..], &["--hook=post-restore=/bin/false"]].concat(),
    );
    undone(&mut box_, &planned(&refused, &directory)?, &refused)?;

    let arguments = of("restore", &target, &options);
    let plan = planned(&arguments, &directory)?;
    ensure!(plan["kind"] == "RestorePlan", "{plan}");
    box_.is_gone()?;
    succeeds(&arguments)?;
    box_.inits.push(box_.pid()?);
    let mut sent = sent(&stage, "RESTORE")?;
    // Its mount has a name that is made anew each time.
    let root = sent.get("root").and_then(Value::as_str).unwrap_or_default();
    ensure!(root.starts_with("/run/criu-client/restore-"), "{root}");
    sent.insert("root".into(), plan["request"]["options"]["root"].clone());
    asks(&plan, "RESTORE", &sent)?;
    for path in of_steps(&plan, "write-record", "path")
        .into_iter()
        .chain(of_steps(&plan, "make-cgroups", "make"))
    {
        ensure!(path.exists(), "{} is not there", path.display());
    }
    let made = of_steps(&plan, "ensure-mount-point", "make");
    ensure!(
        made == [Path::new("/outer"), Path::new("/outer/data")],
        "{made:?}"
    );
    box_.is_handed_over()?;
    box_.delete()
}

/// Besides CRIU's images and logs there is what the plan names, and nothing else.
fn files_are_those_of(plan: &Value, images: &Path) -> Outcome {
    let mut found: Vec<String> = fs::read_dir(images)
        .map_err(text)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !name.ends_with(".img") && !name.ends_with(".log") && name != "stats-dump")
        .map(|name| images.join(name).display().to_string())
        .collect();
    let files = plan["files"].as_array().into_iter().flatten();
    let mut named: Vec<String> = files
        .filter_map(|file| file.as_str().map(str::to_owned))
        .collect();
    found.sort();
    named.sort();
    ensure!(found == named, "planned {named:#?}, found {found:#?}");
    Ok(())
}

/// A restore that fails at its last callback: what is to be removed by its plan is not there, and was not before.
fn undone<E: Program>(box_: &mut Fixture<E>, plan: &Value, arguments: &[String]) -> Outcome {
    let (status, failure) = criuctl(arguments)?;
    // A hook refused.
    ensure!(status == Some(4), "{status:?}: {failure:#}");
    let steps = plan["steps"].as_array().ok_or("no steps")?;
    let removed = |action: &str| -> Outcome {
        let mut known = steps.iter().filter(|step| step["action"] == action);
        ensure!(
            known.all(|step| step["undo"] == "removed"),
            "{action}: {plan:#}"
        );
        Ok(())
    };
    for action in [
        "reserve-record",
        "ensure-mount-point",
        "make-cgroups",
        "bind-root",
    ] {
        removed(action)?;
    }
    for path in of_steps(plan, "reserve-record", "directory")
        .into_iter()
        .chain(of_steps(plan, "make-cgroups", "make"))
    {
        ensure!(!path.exists(), "{} was left", path.display());
    }
    let points = of_steps(plan, "ensure-mount-point", "make");
    ensure!(!points.is_empty(), "{plan:#}");
    for point in points {
        let point = box_.rootfs().join(point.strip_prefix("/").map_err(text)?);
        ensure!(!point.exists(), "{} was left", point.display());
    }
    box_.is_gone()
}

pub(super) fn refuses_what_the_deed_refuses<E: Program>() -> Outcome {
    let (mut box_, target) = box_with_a_mount::<E>("plan-no")?;
    let directory = box_.directory.path().to_owned();
    box_.start()?;
    for (options, wanted) in [
        (&["--parent-path=/a"][..], "absolute"),
        (&["--parent-path=../none"], "no images in"),
        (&["--leave-stopped"], "--leave-stopped"),
        (&["--freeze-cgroup=/x"], "--freeze-cgroup"),
        (&["--lazy-pages"], "--port"),
        (&["--status-fd=1"], "lazy-pages"),
        (&["--hook=post-restore=/bin/true"], "post-restore"),
        (&["--image-io-mode=direct"], "CRIU 4.3"),
    ] {
        refuses_alike(&of("checkpoint", &target, options), &directory, wanted)?;
    }
    if groups(&box_.id).is_empty() {
        return Err("it has no control groups".into());
    }
    box_.has_status("running")?;
    box_.counts()?;

    let images = box_.images("images");
    box_.checkpoint(&images)?;
    let bundle = format!("--bundle={}", box_.bundle().display());
    let socket = format!("--console-socket={}", directory.join("none").display());
    for (options, wanted) in [
        (&["--bundle=/no/bundle", "-d"][..], "/no/bundle"),
        (&[&bundle, "-d", &socket], "console-socket"),
        (&[&bundle, "-d", "--leave-stopped"], "--leave-stopped"),
        (&[&bundle, "-d", "--pid-file=/none/pid"], "/none/pid"),
        (&[&bundle, "-d", "--lazy-pages"], "nobody serves"),
    ] {
        refuses_alike(&of("restore", &target, options), &directory, wanted)?;
    }
    // Its name is taken.
    box_.start()?;
    refuses_alike(
        &of("restore", &target, &[&bundle, "-d"]),
        &directory,
        "exists",
    )?;
    box_.delete()
}
