//! Containers on a kernel that tracks memory and has cgroup v2 alone: for a machine of `scripts/vm`.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use criu_client::container::runtime::{CheckpointOptions, RestoreOptions};
use criu_client::image::DumpStats;
use criu_client::options::PreDumpOptions;
use serde_json::json;

use super::fixture::{Fixture, Program, groups, whole};
use crate::contain;
use crate::roles::begin_round;
use crate::support::{Outcome, Tests, block_on, criu, ensure, text};
use crate::vm::chain::{Links, criuctl, written};
use crate::vm::users::identity;

type Test = (&'static str, fn() -> Outcome);

pub(super) fn of<E: Program>() -> Tests {
    let list: &[Test] = &[
        ("two pre-dumps and a checkpoint", chain_by_us::<E>),
        (
            "two pre-dumps and a checkpoint by criuctl",
            chain_by_criuctl::<E>,
        ),
        (
            "two pre-dumps and a checkpoint by itself",
            chain_by_itself::<E>,
        ),
        ("its own chain is restored by us", chain_restored_by_us::<E>),
        ("a container of another user", other_user::<E>),
        ("a container in a user namespace", user_namespace::<E>),
        ("limits of cgroup v2 are kept", limits::<E>),
    ];
    list.iter()
        .map(|&(name, test)| (format!("vm/{}: {name}", E::NAME), Box::new(test) as _))
        .collect()
}

/// A container that runs this program in the role whose memory changes from round to round.
fn container<E: Program>(id: &str) -> Result<Fixture<E>, String> {
    let mut box_ = Fixture::<E>::with(id, |config| {
        let program = format!("/{}", contain::PROGRAM);
        config["process"]["args"] = json!([program, "--victim", "/count", "rounds", ""]);
        // Where root may write, whoever made the directory.
        config["process"]["cwd"] = json!("/");
    })?;
    contain::fill_root(&box_.rootfs())?;
    box_.start()?;
    Ok(box_)
}

fn next_round<E: Program>(box_: &Fixture<E>, round: usize) -> Outcome {
    begin_round(&box_.rootfs().join("count"), round)?;
    box_.counts()
}

/// Goes on with all its memory as it was.
fn is_well<E: Program>(box_: &Fixture<E>) -> Outcome {
    let complaint = fs::read_to_string(box_.rootfs().join("count.complaint"));
    ensure!(complaint.is_err(), "{complaint:?}");
    box_.counts()
}

const PARENTS: [Option<&str>; 3] = [None, Some("../first"), Some("../second")];
const DIRECTORIES: [&str; 3] = ["first", "second", "third"];

fn chain_by_us<E: Program>() -> Outcome {
    let mut box_ = container::<E>("chain")?;
    let mut links = Links::default();
    for round in 0..2 {
        next_round(&box_, round)?;
        let mut options = PreDumpOptions::new();
        if let Some(parent) = PARENTS[round] {
            options = options.parent_images(parent);
        }
        let images = box_.images(DIRECTORIES[round]);
        let report =
            block_on(box_.ours().pre_dump(&criu(), &box_.id, &images, options)).map_err(whole)?;
        links.add(report.stats.ok_or("no statistics")?.pages_written)?;
        box_.has_status("running")?;
    }
    next_round(&box_, 2)?;
    let images = box_.images(DIRECTORIES[2]);
    let options = CheckpointOptions::new().parent_path("../second");
    let report = block_on(
        box_.ours()
            .checkpoint(&criu(), &box_.id, &images, (), options),
    )
    .map_err(whole)?;
    links.add(report.dump.stats.ok_or("no statistics")?.pages_written)?;
    box_.reap();
    box_.is_gone()?;
    box_.restore(&images)?;
    is_well(&box_)?;
    box_.delete()
}

fn chain_by_criuctl<E: Program>() -> Outcome {
    let mut box_ = container::<E>("chain-ctl")?;
    let mut links = Links::default();
    let target = format!("{}:{}", E::NAME, box_.id);
    let root_option = format!("--{}-root", E::NAME);
    let root = box_.root().display().to_string();
    let directories = DIRECTORIES.map(|name| {
        let path = box_.directory.path().join(name);
        path.display().to_string()
    });
    for round in 0..3 {
        next_round(&box_, round)?;
        let mut arguments = vec!["checkpoint", &target, &root_option, &root];
        arguments.extend(["--image-path", &directories[round]]);
        if let Some(parent) = PARENTS[round] {
            arguments.extend(["--parent-path", parent]);
        }
        if round < 2 {
            arguments.push("--pre-dump");
        }
        links.add(written(&criuctl(&arguments)?)?)?;
    }
    box_.reap();
    box_.is_gone()?;
    let bundle = box_.bundle().display().to_string();
    criuctl(&[
        "restore",
        &target,
        &root_option,
        &root,
        "--image-path",
        &directories[2],
        "--bundle",
        &bundle,
        "--detach",
    ])?;
    box_.inits.push(box_.pid()?);
    box_.is_handed_over()?;
    is_well(&box_)?;
    box_.delete()
}

/// The runtime's own pre-dumps and checkpoint; returns where the images are.
fn own_chain<E: Program>(box_: &mut Fixture<E>) -> Result<PathBuf, String> {
    let mut links = Links::default();
    for round in 0..3 {
        next_round(box_, round)?;
        let directory = box_.directory.path().join(DIRECTORIES[round]);
        let path = directory.display().to_string();
        let mut arguments = vec!["checkpoint", "--image-path", &path];
        if let Some(parent) = PARENTS[round] {
            arguments.extend(["--parent-path", parent]);
        }
        if round < 2 {
            arguments.push("--pre-dump");
        }
        arguments.push(&box_.id);
        box_.run(&arguments)?;
        let stats = fs::read(directory.join("stats-dump")).map_err(text)?;
        let stats = DumpStats::parse("stats-dump", &stats).map_err(text)?;
        links.add(stats.pages_written)?;
    }
    box_.reap();
    Ok(box_.directory.path().join(DIRECTORIES[2]))
}

fn chain_by_itself<E: Program>() -> Outcome {
    let mut box_ = container::<E>("chain-own")?;
    let images = own_chain(&mut box_)?.display().to_string();
    let (bundle, id) = (box_.bundle().display().to_string(), box_.id.clone());
    box_.run_detached(
        &[
            "restore",
            "-d",
            "--image-path",
            &images,
            "--bundle",
            &bundle,
            &id,
        ],
        std::process::Stdio::null(),
    )?;
    is_well(&box_)?;
    box_.delete()
}

fn chain_restored_by_us<E: Program>() -> Outcome {
    let mut box_ = container::<E>("chain-ours")?;
    let images = own_chain(&mut box_)?;
    box_.restore(&criu_client::ImagesDir::open(images).map_err(text)?)?;
    is_well(&box_)?;
    box_.delete()
}

/// Neither the container's process nor what it has becomes root's.
fn other_user<E: Program>() -> Outcome {
    const USER: u32 = 1000;
    let mut box_ = Fixture::<E>::with("user", |config| {
        config["process"]["user"] = json!({"uid": USER, "gid": USER, "additionalGids": [5, 6]});
    })?;
    chown(box_.rootfs(), Some(USER), Some(USER)).map_err(text)?;
    box_.start()?;
    let before = identity(box_.pid()?)?;
    ensure!(
        before
            .iter()
            .any(|line| line.starts_with("Uid:\t1000\t1000")),
        "{before:?}"
    );
    let images = box_.images("images");
    box_.checkpoint(&images)?;
    box_.restore(&images)?;
    let after = identity(box_.pid()?)?;
    ensure!(before == after, "{before:#?}\n{after:#?}");
    box_.delete()
}

/// The owner may do everything, `user` may enter, and nobody else anything: as `setfacl -m u:USER:x` makes it of mode 0700.
fn access_list(user: u32) -> Vec<u8> {
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (0x01u16, 7u16, u32::MAX),
        (0x02, 1, user),
        (0x04, 0, u32::MAX),
        (0x10, 1, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    list
}

/// Root inside is somebody else outside, before and after.
fn user_namespace<E: Program>() -> Outcome {
    const OUTSIDE: u32 = 100_000;
    let mut box_ = Fixture::<E>::with("userns", |config| {
        let map = json!([{"containerID": 0, "hostID": OUTSIDE, "size": 65536}]);
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
        if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
            namespaces.push(json!({"type": "user"}));
        }
    })?;
    // The way to the bundle must be open to whom root is outside.
    for path in [box_.directory.path().to_owned(), box_.bundle()] {
        fs::set_permissions(&path, Permissions::from_mode(0o755)).map_err(text)?;
    }
    chown(box_.rootfs(), Some(OUTSIDE), Some(OUTSIDE)).map_err(text)?;
    box_.start()?;
    let map = |pid: i32| fs::read_to_string(format!("/proc/{pid}/uid_map")).map_err(text);
    let before = (map(box_.pid()?)?, identity(box_.pid()?)?);
    ensure!(before.0.contains("100000"), "{before:?}");
    let images = box_.images("images");
    box_.checkpoint(&images)?;
    // Its tasks open their images as whom they are outside: nobody else need be let in.
    let refused = box_.restore(&images).err().unwrap_or_default();
    ensure!(refused.contains("chgrp 100000"), "{refused:?}");
    let is_as_before = |box_: &Fixture<E>| {
        let after = (map(box_.pid()?)?, identity(box_.pid()?)?);
        ensure!(before == after, "{before:#?}\n{after:#?}");
        Ok(())
    };
    let list = access_list(OUTSIDE);
    let attribute = "system.posix_acl_access";
    rustix::fs::setxattr(
        images.path(),
        attribute,
        &list,
        rustix::fs::XattrFlags::empty(),
    )
    .map_err(text)?;
    box_.restore(&images)?;
    is_as_before(&box_)?;
    box_.delete()?;
    rustix::fs::removexattr(images.path(), attribute).map_err(text)?;
    chown(images.path(), None, Some(OUTSIDE)).map_err(text)?;
    fs::set_permissions(images.path(), Permissions::from_mode(0o710)).map_err(text)?;
    box_.restore(&images)?;
    is_as_before(&box_)?;
    box_.delete()
}

/// What is set below the unified hierarchy is there again, and the container is in the group that it was in.
fn limits<E: Program>() -> Outcome {
    let mut box_ = Fixture::<E>::with("limits", |config| {
        config["linux"]["resources"]["pids"] = json!({"limit": 77});
        config["linux"]["resources"]["memory"] = json!({"limit": 100 << 20});
        config["linux"]["resources"]["cpu"] = json!({"quota": 50_000, "period": 100_000});
    })?;
    box_.start()?;
    let expected = [
        ("pids.max", "77"),
        ("memory.max", "104857600"),
        ("cpu.max", "50000 100000"),
    ];
    let are_set = |box_: &Fixture<E>| -> Outcome {
        let groups = groups(&box_.id);
        ensure!(groups.len() == 1, "groups: {groups:?}");
        for (file, value) in expected {
            let found = fs::read_to_string(groups[0].join(file)).map_err(text)?;
            ensure!(
                found.trim() == value,
                "{file} is {found} instead of {value}"
            );
        }
        let own = fs::read_to_string(format!("/proc/{}/cgroup", box_.pid()?)).map_err(text)?;
        let path = format!("/sys/fs/cgroup{}", own.trim().trim_start_matches("0::"));
        ensure!(groups[0] == Path::new(&path), "it is in {own}");
        Ok(())
    };
    are_set(&box_)?;
    let images = box_.images("images");
    box_.checkpoint(&images)?;
    box_.restore_with(&images, RestoreOptions::new())?;
    are_set(&box_)?;
    box_.delete()
}
