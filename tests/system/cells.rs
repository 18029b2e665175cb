//! What a container may be made with, under every engine: the same program in each, checkpointed and restored by us, by us and
//! the engine, and by the engine and us.
//!
//! The program (role `cell`) counts for as long as its processes, threads and memory are as they should be, and says back what
//! comes over a connection.

mod docker;
mod podman;
mod runtime;
mod side;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;

use criu_client::ImagesDir;
use criu_client::container::crun::CrunEngine;
use criu_client::container::runc::RuncEngine;

use crate::contain;
use crate::engines::{Environment, Ground, Program, Store, connected, echoes, limits};
use crate::support::{Outcome, Tests, ensure, free_port, text, until};
use side::{Side, complaint};

/// What a container is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    name: &'static str,
    terminal: bool,
    /// A file and a directory from outside, one of them Docker's or Podman's; a file system in memory, a root that cannot be
    /// written to; memory and processes limited.
    mounts: bool,
    network: Network,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    Nothing,
    Host,
    /// An address that the test has a connection to.
    Connected,
}

const PLAIN: Row = Row {
    name: "default",
    terminal: false,
    mounts: false,
    network: Network::Nothing,
};

const ROWS: [Row; 5] = [
    PLAIN,
    Row {
        name: "terminal",
        terminal: true,
        ..PLAIN
    },
    MOUNTS,
    Row {
        name: "network-of-the-host",
        network: Network::Host,
        ..PLAIN
    },
    Row {
        name: "connection",
        network: Network::Connected,
        ..PLAIN
    },
];

const MOUNTS: Row = Row {
    name: "mounts-limits-read-only",
    mounts: true,
    ..PLAIN
};

const LIMITS: [&str; 2] = ["memory.limit_in_bytes 134217728", "pids.max 50"];

/// Inside, where the container has a network of its own.
const PORT: u16 = 7007;

type With = fn(Row, fn(&mut dyn Side, Row) -> Outcome) -> Outcome;

const ENGINES: [(&str, With); 5] = [
    ("runc", |row, test| {
        runtime::with::<RuncEngine>(Program::Runc, row, test)
    }),
    ("crun", |row, test| {
        runtime::with::<CrunEngine>(Program::Crun, row, test)
    }),
    ("podman+runc", |row, test| {
        podman::with(Program::Runc, row, test)
    }),
    ("podman+crun", |row, test| {
        podman::with(Program::Crun, row, test)
    }),
    ("docker", |row, test| docker::with(Store::Own, row, test)),
];

pub(crate) fn tests() -> Tests {
    let mut tests = Tests::new();
    let mut push = |engine: &str, row: Row, name: &str, with: With, test| {
        let name = format!("cells/{engine}/{name}");
        tests.push((name, Box::new(move || with(row, test)) as _));
    };
    for (engine, with) in ENGINES {
        for row in ROWS {
            push(engine, row, row.name, with, every_way);
        }
        let left = "left-running-and-paused";
        push(engine, PLAIN, left, with, left_running_and_paused);
    }
    let with: With = |row, test| docker::with(Store::Containerd, row, test);
    for row in [PLAIN, MOUNTS] {
        push("docker+containerd", row, row.name, with, every_way);
    }
    tests
}

/// A container that runs, and what the test has of it.
struct Started {
    stream: Option<TcpStream>,
    port: u16,
}

fn start(side: &mut dyn Side, row: Row) -> Result<Started, String> {
    let port = match row.network {
        Network::Host => free_port(),
        _ => PORT,
    };
    side.start(row, port)?;
    side.ground().counts()?;
    if row.mounts {
        side.exec(&[
            "/bin/sh",
            "-c",
            "echo tmpfs >/tmpfs/word; echo volume >/volume/word",
        ])?;
    }
    let stream = match row.network {
        Network::Connected => {
            let mut stream = connected(side.address()?, port)?;
            echoes(&mut stream, b"begun")?;
            Some(stream)
        }
        _ => None,
    };
    let mut started = Started { stream, port };
    started.is_whole(side, row)?;
    Ok(started)
}

impl Started {
    fn is_whole(&mut self, side: &dyn Side, row: Row) -> Outcome {
        if let Some(complaint) = complaint(side.ground()) {
            return Err(format!("inside, something is wrong: {complaint}"));
        }
        let masked = side.exec(&["/bin/cat", "/proc/keys", "/proc/timer_list"])?;
        ensure!(masked.is_empty(), "not masked: {masked}");
        let input = side.exec(&["/bin/busybox", "readlink", "/proc/1/fd/0"])?;
        ensure!(
            input.starts_with("/dev/pts/") == row.terminal,
            "standard input is {input}"
        );
        if row.mounts {
            let words = side.exec(&["/bin/cat", "/bound/file", "/tmpfs/word", "/volume/word"])?;
            ensure!(words == "outside\ntmpfs\nvolume\n", "{words:?}");
            let written = side.exec(&["/bin/sh", "-c", "echo x >/etc/x"]);
            ensure!(written.is_err(), "the root can be written to");
            let limits = limits(side.ground().traces().groups_of_processes());
            let is_set = |limit: &&str| limits.iter().any(|set| set == limit);
            ensure!(LIMITS.iter().all(is_set), "{limits:?}");
        }
        let own = fs::read_link("/proc/self/ns/net").map_err(text)?;
        let network = fs::read_link(format!("/proc/{}/ns/net", side.pid()?)).map_err(text)?;
        ensure!(
            (own == network) == (row.network == Network::Host),
            "it is in {}",
            network.display()
        );
        match &mut self.stream {
            Some(stream) => echoes(stream, b"still"),
            None => Ok(()),
        }
    }

    /// It goes on where it stopped, with all that it had.
    fn goes_on(&mut self, side: &dyn Side, row: Row, counted: &crate::engines::Count) -> Outcome {
        side.ground().goes_on_from(counted)?;
        self.is_whole(side, row)
    }
}

fn every_way(side: &mut dyn Side, row: Row) -> Outcome {
    let mut started = start(side, row)?;
    let step = |what: &'static str| move |error: String| format!("{what}: {error}");

    let images = images(side, "there-and-back")?;
    side.checkpoint(&images, false)
        .map_err(step("our checkpoint"))?;
    let counted = side.ground().stands_still()?;
    if row.network == Network::Host {
        refused(side, &images, started.port)?;
    }
    side.restore(&images).map_err(step("our restore"))?;
    let whole = started.goes_on(side, row, &counted);
    whole.map_err(step("after our restore"))?;

    let images = side.place("for-the-engine")?;
    side.checkpoint(&images, false)
        .map_err(step("our second checkpoint"))?;
    let counted = side.ground().stands_still()?;
    side.own_restore(&images)
        .map_err(step("the engine's restore"))?;
    let whole = started.goes_on(side, row, &counted);
    whole.map_err(step("after the engine's restore of ours"))?;

    let images = side
        .own_checkpoint("of-the-engine")
        .map_err(step("the engine's checkpoint"))?;
    let counted = side.ground().stands_still()?;
    side.restore(&images)
        .map_err(step("our restore of the engine's"))?;
    let whole = started.goes_on(side, row, &counted);
    whole.map_err(step("after our restore of the engine's"))
}

/// What has changed outside since the checkpoint is named, and what can be put right again is.
fn refused(side: &mut dyn Side, images: &ImagesDir, port: u16) -> Outcome {
    let taken = TcpListener::bind(("0.0.0.0", port)).map_err(text)?;
    fails(side, images, "inet-address-in-use")?;
    drop(taken);
    let path = side.ground().path("data/count");
    let whole = fs::read(&path).map_err(text)?;
    fs::write(&path, [&whole[..], b"more"].concat()).map_err(text)?;
    let outcome = fails(side, images, "file-size-changed");
    fs::write(&path, whole).map_err(text)?;
    outcome
}

fn fails(side: &mut dyn Side, images: &ImagesDir, code: &str) -> Outcome {
    let error = side.restore(images).err();
    let error = error.ok_or_else(|| format!("restored in spite of {code}"))?;
    ensure!(error.contains(&format!("\"{code}\"")), "{code}: {error}");
    Ok(())
}

/// Left running it is as it was; twice, since the second is of what the first has been at. Paused, it stays so, or is restored
/// running.
fn left_running_and_paused(side: &mut dyn Side, row: Row) -> Outcome {
    let mut started = start(side, row)?;
    let pid = side.pid()?;
    let mut left = Vec::new();
    for name in ["first", "second"] {
        let images = side.place(name)?;
        let counted = side.ground().count().ok_or("no count")?;
        side.checkpoint(&images, true)?;
        ensure!(side.pid()? == pid, "another process");
        started.goes_on(side, row, &counted)?;
        left.push(images);
    }
    side.pause()?;
    let counted = side.ground().stands_still()?;
    let images = side.place("paused")?;
    side.checkpoint(&images, true)?;
    ensure!(side.ground().stands_still()? == counted, "it was thawed");
    side.checkpoint(&images, false)?;
    ensure!(side.ground().stands_still()? == counted, "it went on");
    side.own_restore(&images)?;
    started.goes_on(side, row, &counted)?;
    // Each of those that were left is a whole checkpoint; the count is what it was then, and goes on from there.
    for (images, by_engine) in left.iter().zip([false, true]) {
        side.end()?;
        let later = side.ground().stands_still()?;
        match by_engine {
            false => side.restore(images)?,
            true => side.own_restore(images)?,
        }
        until("it counts again", || {
            side.ground().count().is_some_and(|now| now != later)
        })?;
        let now = side.ground().count().ok_or("no count")?;
        ensure!(now.is_of(&counted), "{counted:?} became {now:?}");
        started.goes_on(side, row, &now)?;
    }
    Ok(())
}

fn images(side: &dyn Side, name: &str) -> Result<ImagesDir, String> {
    ImagesDir::create(side.ground().path(name)).map_err(text)
}

/// The program, with what it needs to run: what is to be mounted where.
fn program(ground: &Ground) -> Result<Vec<(PathBuf, &'static str)>, String> {
    let root = ground.path("program");
    contain::fill_root(&root)?;
    let mut mounts = vec![(root.join(contain::PROGRAM), "/victim")];
    for inside in ["/lib", "/lib64"] {
        if let Ok(source) = fs::canonicalize(root.join(inside.trim_start_matches('/'))) {
            mounts.push((source, inside));
        }
    }
    let bound = ground.path("bound");
    fs::create_dir_all(&bound).map_err(text)?;
    fs::write(bound.join("file"), "outside\n").map_err(text)?;
    Ok(mounts)
}

/// What both engines above the runtimes are told of a row; its volume, which each has its own words for, is `volume`.
fn engine_options(ground: &Ground, row: Row, volume: [&str; 2]) -> Result<Vec<String>, String> {
    let mut options: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| options.extend(words.iter().map(|word| (*word).to_owned()));
    add(&["--volume", &ground.volume()]);
    for (source, inside) in program(ground)? {
        add(&["--volume", &format!("{}:{inside}:ro", source.display())]);
    }
    if row.terminal {
        add(&["--tty", "--interactive"]);
    }
    if row.mounts {
        add(&["--volume", &format!("{}:/bound:ro", ground.text("bound"))]);
        add(&volume);
        add(&["--tmpfs", "/tmpfs:size=1m", "--read-only"]);
        add(&["--memory", "128m", "--pids-limit", "50"]);
    }
    match row.network {
        Network::Nothing => add(&["--network", "none"]),
        Network::Host => add(&["--network", "host"]),
        // Each in its own way.
        Network::Connected => {}
    }
    Ok(options)
}

/// What runs in every container.
fn command(port: u16) -> Vec<String> {
    [
        "/victim",
        "--victim",
        "/data/count",
        "cell",
        &port.to_string(),
    ]
    .map(str::to_owned)
    .into()
}

fn ordinary() -> Environment {
    Environment::default()
}
