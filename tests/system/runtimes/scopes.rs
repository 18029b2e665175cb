//! Containers whose control groups are systemd's: for a machine in which that runs.

use std::fs;
use std::process::Command;

use criu_client::container::ErrorKind;
use criu_client::container::crun::CrunEngine;
use criu_client::container::runc::RuncEngine;
use criu_client::container::runtime::RestoreOptions;
use serde_json::{Value, json};

use super::fixture::{Fixture, Program, groups, under_systemd, whole};
use super::{cgroup_namespace, failures, interchange, journeys, planned};
use crate::dry_run::{planned as plan_of, words};
use crate::support::{Outcome, Tests, block_on, criu, ensure, text, until};

type Test = (&'static str, fn() -> Outcome);

/// The journeys of every container are what they are without it; what systemd has and is told is below. Where the runtimes
/// do alike, one of them will do.
pub(crate) fn tests() -> Tests {
    let mut tests = of::<RuncEngine>(&[
        (
            "a container left running is checkpointed twice",
            journeys::leave_running_twice::<RuncEngine>,
        ),
        (
            "a foreground container is our child",
            journeys::foreground::<RuncEngine>,
        ),
        (
            "a refusing hook leaves it as it was",
            failures::refusing_hooks::<RuncEngine>,
        ),
        (
            "a checkpoint whose end we missed does not block the restore",
            failures::missed_end::<RuncEngine>,
        ),
    ]);
    tests.extend(of::<CrunEngine>(&[
        (
            "a paused container is checkpointed",
            journeys::paused::<CrunEngine>,
        ),
        (
            "a cgroup namespace is the container's own",
            cgroup_namespace::there_and_back::<CrunEngine>,
        ),
        ("a scope in a slice of its own", slice::<CrunEngine>),
        (
            "a unit that is in the way is told",
            in_the_way::<CrunEngine>,
        ),
    ]));
    // From one runtime to the other, by us.
    let across = interchange::tests().into_iter().filter(|(name, _)| {
        name.matches("(ours").count() == 2 && name.contains(" runc ") && name.contains(" crun ")
    });
    tests.extend(across.map(|(name, test)| {
        let test = move || under_systemd(&test);
        (format!("systemd/{name}"), Box::new(test) as _)
    }));
    tests
}

fn of<E: Program>(besides: &[Test]) -> Tests {
    let list: &[Test] = &[
        (
            "a default container goes there and back",
            journeys::round_trip::<E>,
        ),
        (
            "the runtime restores what we checkpointed",
            journeys::restored_by_itself::<E>,
        ),
        (
            "we restore what the runtime checkpointed",
            journeys::checkpointed_by_itself::<E>,
        ),
        (
            "bind mounts, limits and hooks are restored",
            super::everything::there_and_back::<E>,
        ),
        (
            "a dropped checkpoint or restore is undone",
            failures::dropped::<E>,
        ),
        (failures::KILLED, failures::killed_restore::<E>),
        (
            "a dry run asks what is sent",
            planned::asks_what_is_sent::<E>,
        ),
        ("its scope is as the runtime makes it", scope::<E>),
    ];
    let all = list.iter().chain(besides).copied();
    all.map(|(name, test)| {
        let test = move || under_systemd(test);
        (format!("systemd/{}: {name}", E::NAME), Box::new(test) as _)
    })
    .collect()
}

/// For a machine without it.
pub(super) fn elsewhere() -> Tests {
    fn of<E: Program>() -> (String, Box<dyn Fn() -> Outcome + Send>) {
        (
            format!("{}: without systemd nothing is asked of it", E::NAME),
            Box::new(missing::<E>),
        )
    }
    vec![of::<RuncEngine>(), of::<CrunEngine>()]
}

fn missing<E: Program>() -> Outcome {
    let mut box_ = Fixture::<E>::new("no-systemd")?;
    box_.start()?;
    let images = box_.images("images");
    box_.checkpoint(&images)?;
    let refused = |options: RestoreOptions| {
        let options = options.detach(true);
        let restored =
            block_on(
                box_.ours()
                    .restore(&criu(), &box_.id, &images, box_.bundle(), (), options),
            );
        restored.err().ok_or("restored without systemd")
    };
    let asked = refused(RestoreOptions::new().systemd_cgroup(true))?;
    let ErrorKind::Systemd { unit, .. } = asked.kind() else {
        return Err(whole(asked));
    };
    ensure!(*unit == format!("{}-{}.scope", E::NAME, box_.id), "{unit}");
    ensure!(asked.to_string().contains("a plain path"), "{asked}");
    box_.is_gone()?;
    box_.configure(|config| config["linux"]["cgroupsPath"] = json!("/criuctl-test/plain"))?;
    let asked = refused(RestoreOptions::new().systemd_cgroup(true))?;
    ensure!(asked.to_string().contains("slice:prefix:name"), "{asked}");
    box_.is_gone()?;
    box_.configure(|config| {
        config["linux"]
            .as_object_mut()
            .map(|linux| linux.remove("cgroupsPath"));
    })?;
    box_.restore(&images)?;
    box_.delete()
}

/// Properties of a unit's, as systemd shows them.
fn properties(unit: &str, names: &[&str]) -> Result<Vec<String>, String> {
    let shown = Command::new("systemctl")
        .args(["show", unit, "--property", &names.join(",")])
        .output()
        .map_err(text)?;
    let mut lines: Vec<String> = String::from_utf8_lossy(&shown.stdout)
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort();
    Ok(lines)
}

fn scope_of<E: Program>(box_: &Fixture<E>) -> String {
    format!("{}-{}.scope", E::NAME, box_.id)
}

const LIMITS: [&str; 11] = [
    "AllowedCPUs",
    "CPUQuotaPeriodUSec",
    "CPUQuotaPerSecUSec",
    "CPUWeight",
    "DevicePolicy",
    "MemoryHigh",
    "MemoryLow",
    "MemoryMax",
    "TasksMax",
    "CollectMode",
    "TimeoutStopUSec",
];
const FORM: [&str; 7] = [
    "ActiveState",
    "Delegate",
    "Description",
    "MemoryAccounting",
    "Slice",
    "TasksAccounting",
    "Transient",
];

/// The same unit, with the same limits, which hold.
fn scope<E: Program>() -> Outcome {
    let mut box_ = Fixture::<E>::with("scope", |config| {
        let resources = &mut config["linux"]["resources"];
        resources["pids"] = json!({"limit": 77});
        resources["memory"] = json!({"limit": 100 << 20, "reservation": 50 << 20});
        resources["cpu"] = json!({"quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0"});
        resources["unified"] = json!({"memory.high": "94371840"});
        config["annotations"] = json!({
            "org.systemd.property.TimeoutStopUSec": "uint64 7000000",
            "org.systemd.property.CollectMode": "'inactive-or-failed'",
        });
    })?;
    box_.start()?;
    let unit = scope_of(&box_);
    let names = [&LIMITS[..], &FORM].concat();
    let before = properties(&unit, &names)?;
    ensure!(
        before.contains(&"TasksMax=77".to_owned())
            && before.contains(&"TimeoutStopUSec=7s".to_owned()),
        "{before:#?}"
    );
    let invocation = properties(&unit, &["InvocationID"])?;
    let images = box_.images("images");
    box_.checkpoint(&images)?;
    ensure!(
        properties(&unit, &["LoadState"])? == ["LoadState=not-found"],
        "the unit is left"
    );
    box_.restore(&images)?;
    let after = properties(&unit, &names)?;
    ensure!(before == after, "{before:#?}\n{after:#?}");
    ensure!(
        invocation != properties(&unit, &["InvocationID"])?,
        "the same unit"
    );
    // Read anew from its files, it has what it had: nothing was set behind systemd's back.
    let reloaded = Command::new("systemctl").arg("daemon-reload").status();
    ensure!(reloaded.map_err(text)?.success(), "daemon-reload");
    let after = properties(&unit, &names)?;
    ensure!(before == after, "after a reload: {before:#?}\n{after:#?}");
    let [group] = &groups(&box_.id)[..] else {
        return Err(format!("groups: {:?}", groups(&box_.id)));
    };
    for (file, value) in [
        ("pids.max", "77"),
        ("memory.max", "104857600"),
        ("memory.high", "94371840"),
        ("cpu.max", "50000 100000"),
        ("cpuset.cpus", "0"),
    ] {
        let found = fs::read_to_string(group.join(file)).map_err(text)?;
        ensure!(found.trim() == value, "{file} is {found}");
    }
    // Nobody but the container is in it.
    let pid = box_.pid()?.to_string();
    let inside = fs::read_to_string(group.join("cgroup.procs")).map_err(text)?;
    ensure!(inside.lines().any(|line| line == pid), "{inside}");
    for entry in fs::read_dir(group).map_err(text)?.flatten() {
        ensure!(!entry.path().is_dir(), "{}", entry.path().display());
    }
    // A device that is not among those allowed.
    let made = box_.try_run(&[
        "exec",
        &box_.id,
        "/bin/busybox",
        "mknod",
        "/memory",
        "c",
        "1",
        "1",
    ])?;
    let read = box_.try_run(&[
        "exec",
        &box_.id,
        "/bin/busybox",
        "dd",
        "if=/memory",
        "of=/dev/null",
        "count=1",
    ])?;
    let said = String::from_utf8_lossy(&read.stderr).into_owned();
    ensure!(!read.status.success(), "{made:?}, {said}");
    box_.run(&["pause", &box_.id])?;
    box_.run(&["resume", &box_.id])?;
    box_.run(&["update", "--pids-limit", "60", &box_.id])?;
    ensure!(
        properties(&unit, &["TasksMax"])? == ["TasksMax=60"],
        "it was not updated"
    );
    box_.delete()?;
    ensure!(
        properties(&unit, &["LoadState"])? == ["LoadState=not-found"],
        "the unit is left"
    );
    Ok(())
}

/// A slice that is made for it is its place again.
fn slice<E: Program>() -> Outcome {
    let mut box_ = Fixture::<E>::new("slice")?;
    let name = format!("criuctltest-a{}.slice", std::process::id());
    let (path, id) = (format!("{name}:{}:{}", E::NAME, box_.id), box_.id.clone());
    box_.configure(|config| config["linux"]["cgroupsPath"] = json!(path))?;
    box_.start()?;
    let own = |box_: &Fixture<E>| {
        fs::read_to_string(format!("/proc/{}/cgroup", box_.pid()?)).map_err(text)
    };
    let before = own(&box_)?;
    let place = format!("/criuctltest.slice/{name}/{}-{id}.scope", E::NAME);
    ensure!(before.contains(&place), "{before}");
    let images = box_.images("images");
    box_.checkpoint(&images)?;
    box_.restore(&images)?;
    ensure!(own(&box_)? == before, "{}instead of\n{before}", own(&box_)?);
    box_.delete()?;
    // As nobody else has it, it goes as well.
    let stopped = Command::new("systemctl")
        .args(["stop", &name, "criuctltest.slice"])
        .status();
    ensure!(stopped.map_err(text)?.success(), "stopping {name}");
    Ok(())
}

/// Somebody else's unit of the name is left alone, and the container is restored when it is gone.
fn in_the_way<E: Program>() -> Outcome {
    let mut box_ = Fixture::<E>::new("way")?;
    box_.start()?;
    let images = box_.images("images");
    box_.checkpoint(&images)?;
    let unit = scope_of(&box_);
    let is = |state: &str| {
        let found = properties(&unit, &["ActiveState"]);
        found.is_ok_and(|found| found == [format!("ActiveState={state}")])
    };
    let target = words(&[
        "restore",
        &format!("{}:{}", E::NAME, box_.id),
        &format!("--{}-root={}", E::NAME, box_.root().display()),
        &format!("--image-path={}", images.path().display()),
        &format!("--bundle={}", box_.bundle().display()),
        "--detach",
    ]);
    // In another slice: the container's own group is empty.
    let mut other = Command::new("systemd-run")
        .args([
            "--quiet",
            "--scope",
            "--slice=criuctltest.slice",
            "--unit",
            &unit,
        ])
        .args(["/bin/busybox", "sleep", "1000"])
        .spawn()
        .map_err(text)?;
    until("the other unit is there", || is("active"))?;
    let plan = plan_of(&target, box_.directory.path());
    ensure!(plan.is_err(), "a dry run passes it over: {plan:?}");
    let options = RestoreOptions::new().detach(true);
    let refused =
        block_on(
            box_.ours()
                .restore(&criu(), &box_.id, &images, box_.bundle(), (), options),
        );
    let error = refused.err().ok_or("restored into another's unit")?;
    ensure!(
        matches!(error.kind(), ErrorKind::Systemd { .. }),
        "{}",
        whole(error)
    );
    ensure!(is("active"), "the other unit is gone");
    other.kill().map_err(text)?;
    other.wait().map_err(text)?;
    until("the other unit is gone", || !is("active"))?;
    let plan = plan_of(&target, box_.directory.path())?;
    let starts: Vec<&Value> = plan["steps"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|step| step["action"] == "start-unit")
        .collect();
    ensure!(
        starts.len() == 1 && starts[0]["unit"] == json!(unit) && starts[0]["undo"] == "removed",
        "{plan:#}"
    );
    box_.restore(&images)?;
    box_.delete()
}
