//! What is said of a checkpoint, held against the kernel, which had the processes, and against checkpointctl.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use criu_client::ImagesDir;
use criu_client::inspect::{Checkpoint, ProcessState, Report, Sections};
use criu_client::options::{DumpOptions, Leave};
use serde_json::Value;

use crate::engines::{Engine, Environment, Podman, Program, with_made};
use crate::support::*;
use crate::victim::Spec;

pub(crate) fn tests() -> Tests {
    let mut tests: Tests = vec![
        (
            "inspect: a tree as the kernel had it".into(),
            Box::new(|| as_the_kernel_had_it("tree", "")),
        ),
        (
            "inspect: files as the kernel had them".into(),
            Box::new(|| as_the_kernel_had_it("files", "")),
        ),
        (
            "inspect: connections as the kernel had them".into(),
            Box::new(|| as_the_kernel_had_it("tcp", "")),
        ),
        (
            "inspect: memory as the kernel had it".into(),
            Box::new(|| as_the_kernel_had_it("memory", "8")),
        ),
    ];
    for version in ["4.1.1", "4.3"] {
        tests.push((
            format!("inspect: memory as CRIU {version} writes it"),
            Box::new(move || {
                let program = PathBuf::from(format!(
                    "/var/lib/criu-client-test/criu-{version}/usr/sbin/criu"
                ));
                with_criu_at(program, || as_the_kernel_had_it("memory", "2"))
            }),
        ));
    }
    for program in [Program::Runc, Program::Crun] {
        tests.push((
            format!(
                "inspect: archives of Podman over {}, as checkpointctl has them",
                program.name()
            ),
            Box::new(move || archives_of_podman(program)),
        ));
    }
    tests
}

/// Dumps a victim that stays as it was, and compares everything that is said of it with what is still there.
fn as_the_kernel_had_it(role: &'static str, argument: &str) -> Outcome {
    let mut spec = Spec::role(role).argument(argument);
    spec.environment = vec![("INSPECTED".to_owned(), "by criuctl".to_owned())];
    let mut victim = spec.start()?;
    victim.goes_on()?;
    let images = victim.images("images");
    let options = DumpOptions::new()
        .leave(Leave::Stopped)
        .tcp_established(true);
    block_on(criu().dump(victim.pid, &images, (), options)).map_err(whole)?;
    let all = [vec![victim.pid], descendants(victim.pid)].concat();
    for pid in &all {
        until("it is stopped", || state(*pid) == Some('T'))?;
    }
    let outcome = compare(&images, &all);
    for pid in &all {
        let pid = nix::unistd::Pid::from_raw(*pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).map_err(text)?;
    }
    outcome?;
    // CRIU leaves the network of tasks locked that stay stopped; here it ends with the victim.
    if role != "tcp" {
        victim.goes_on()?;
    }
    victim.end();
    Ok(())
}

fn compare(images: &ImagesDir, pids: &[i32]) -> Outcome {
    let checkpoint = Checkpoint::open(images.path(), Sections::all()).map_err(text)?;
    let report = checkpoint.report().map_err(text)?;
    ensure!(report.problems.is_empty(), "{:?}", report.problems);
    ensure!(
        report.summary.architecture.as_deref() == Some(std::env::consts::ARCH),
        "{:?}",
        report.summary
    );
    let processes = report.processes.as_deref().unwrap_or_default();
    let found: BTreeSet<_> = processes
        .iter()
        .map(|process| process.pid.cast_signed())
        .collect();
    ensure!(
        found == pids.iter().copied().collect(),
        "{found:?} instead of {pids:?}"
    );
    for process in processes {
        let proc = PathBuf::from(format!("/proc/{}", process.pid));
        let read = |name: &str| fs::read(proc.join(name)).map_err(text);
        let strings = |bytes: Vec<u8>| -> Vec<String> {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            text.trim_end_matches('\0')
                .split('\0')
                .map(str::to_owned)
                .collect()
        };
        ensure!(process.state == ProcessState::Alive, "{process:?}");
        ensure!(
            process.arguments == Some(strings(read("cmdline")?)),
            "{:?}",
            process.arguments
        );
        ensure!(
            process.environment == Some(strings(read("environ")?)),
            "{:?}",
            process.environment
        );
        let comm = String::from_utf8_lossy(&read("comm")?)
            .trim_end()
            .to_owned();
        ensure!(process.name == comm, "{} instead of {comm}", process.name);
        let program = fs::read_link(proc.join("exe")).map_err(text)?;
        ensure!(
            process.program.as_deref() == program.to_str(),
            "{:?} instead of {program:?}",
            process.program
        );
        let mut threads: BTreeSet<_> = process.threads.iter().map(|thread| thread.tid).collect();
        threads.insert(process.pid);
        let tasks = fs::read_dir(proc.join("task")).map_err(text)?;
        let tasks: BTreeSet<u32> = tasks
            .filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        ensure!(threads == tasks, "threads {threads:?} instead of {tasks:?}");
        files(&report, process.pid, &proc)?;
        memory(&checkpoint, &report, process.pid, &proc)?;
    }
    Ok(())
}

fn files(report: &Report, pid: u32, proc: &Path) -> Outcome {
    let of_process = report
        .files
        .iter()
        .flatten()
        .find(|files| files.pid == pid)
        .ok_or("no files")?;
    let cwd = fs::read_link(proc.join("cwd")).map_err(text)?;
    ensure!(
        of_process.working_directory.as_deref() == cwd.to_str(),
        "{of_process:?} instead of {cwd:?}"
    );
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir(proc.join("fd")).map_err(text)? {
        let entry = entry.map_err(text)?;
        let fd: u32 = entry.file_name().to_string_lossy().parse().map_err(text)?;
        seen.insert(fd);
        let target = fs::read_link(entry.path())
            .map_err(text)?
            .to_string_lossy()
            .into_owned();
        let file = of_process
            .open
            .iter()
            .find(|file| file.fd == fd)
            .ok_or_else(|| format!("no descriptor {fd}, {target}"))?;
        let same = match target.split_once(':') {
            // CRIU names pipes and sockets by their inodes, as /proc does.
            Some(("pipe" | "socket", _)) => file.name == target,
            Some(("/memfd", _)) => target == format!("/{} (deleted)", file.name),
            _ => match target.strip_suffix(" (deleted)") {
                // A file without a name is linked to one that CRIU makes up, or kept beside the images under its old one.
                Some(deleted) => {
                    deleted.starts_with(file.name.split(" (deleted)").next().unwrap_or_default())
                }
                None => file.name == target,
            },
        };
        ensure!(same, "descriptor {fd} is {target}, and said to be {file:?}");
        let info = fs::read_to_string(proc.join("fdinfo").join(fd.to_string())).map_err(text)?;
        let number = |name: &str| {
            info.lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
        };
        let flags = u32::from_str_radix(number("flags:").unwrap_or("0"), 8).map_err(text)?;
        let close_on_exec = flags & libc::O_CLOEXEC as u32 != 0;
        ensure!(file.close_on_exec == close_on_exec, "{file:?}: {info}");
        if let Some(position) = file.position {
            ensure!(
                number("pos:") == Some(position.to_string().as_str()),
                "{file:?}: {info}"
            );
        }
        if let Some(socket) = file
            .socket
            .as_ref()
            .filter(|socket| socket.protocol == "TCP")
        {
            let ports: BTreeSet<_> = [socket.local_port, socket.peer_port]
                .into_iter()
                .flatten()
                .collect();
            ensure!(socket.local.as_deref() == Some("127.0.0.1"), "{socket:?}");
            let listens = socket.state.as_deref() == Some("LISTEN");
            ensure!(
                listens || (socket.state.as_deref() == Some("ESTABLISHED") && ports.len() == 2),
                "{socket:?}"
            );
            in_table(
                proc,
                socket.local_port.unwrap_or_default(),
                if listens { "0A" } else { "01" },
            )?;
        }
    }
    ensure!(
        seen.len() == of_process.open.len(),
        "{seen:?} instead of {:?}",
        of_process.open
    );
    Ok(())
}

/// The kernel has a TCP socket with this port in this state, in the network namespace of the process.
fn in_table(proc: &Path, port: u32, state: &str) -> Outcome {
    let table = fs::read_to_string(proc.join("net/tcp")).map_err(text)?;
    let local = format!("0100007F:{port:04X}");
    let there = table.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields.get(1) == Some(&local.as_str()) && fields.get(3) == Some(&state)
    });
    ensure!(there, "no socket at port {port} in state {state}: {table}");
    Ok(())
}

fn memory(checkpoint: &Checkpoint, report: &Report, pid: u32, proc: &Path) -> Outcome {
    let of_process = report
        .memory
        .iter()
        .flatten()
        .find(|memory| memory.pid == pid)
        .ok_or("no memory")?;
    let maps = fs::read_to_string(proc.join("maps")).map_err(text)?;
    let kernel = kernel_maps(&maps);
    let ours = of_process.mappings.iter().map(|mapping| {
        format!(
            "{:x}-{:x} {}",
            mapping.start, mapping.end, mapping.permissions
        )
    });
    let kernels: Vec<_> = kernel
        .iter()
        .map(|map| format!("{:x}-{:x} {}", map.start, map.end, map.permissions))
        .collect();
    let ours: Vec<_> = ours.collect();
    ensure!(
        kernels == ours,
        "mappings {ours:#?} instead of {kernels:#?}"
    );
    for (mapping, kernel) in of_process.mappings.iter().zip(&kernel) {
        let right = match kernel.name {
            "[heap]" => mapping.kind == "heap",
            "[stack]" => mapping.kind == "stack",
            "[vdso]" => mapping.kind == "vdso",
            name if name.starts_with('/') && !name.starts_with("/memfd") => {
                mapping.file.as_deref() == Some(name)
            }
            _ => true,
        };
        ensure!(right, "{mapping:?} is {}", kernel.name);
    }
    // Byte for byte what the stopped process still has.
    let mem = fs::File::open(proc.join("mem")).map_err(text)?;
    let mut different = Vec::new();
    let mut read = 0;
    let done = checkpoint.read_memory(pid, 0..u64::MAX, |address, bytes| {
        let mut kernel = vec![0; bytes.len()];
        read += bytes.len() as u64;
        match mem.read_exact_at(&mut kernel, address) {
            Ok(()) if kernel == bytes => {}
            _ => different.push(address),
        }
    });
    done.map_err(text)?;
    ensure!(different.is_empty(), "memory differs at {different:x?}");
    ensure!(
        read == of_process.counted.present && read > 0,
        "{read} bytes instead of {:?}",
        of_process.counted
    );
    let found = checkpoint
        .search(pid, b"INSPECTED=by criuctl", 100)
        .map_err(text)?;
    ensure!(
        !found.is_empty(),
        "the environment is not found in the memory"
    );
    for found in found {
        let mut kernel = [0; 20];
        mem.read_exact_at(&mut kernel, found.address)
            .map_err(text)?;
        ensure!(&kernel == b"INSPECTED=by criuctl", "{found:?}");
    }
    Ok(())
}

/// A line of `/proc/PID/maps`.
struct KernelMap<'a> {
    start: u64,
    end: u64,
    permissions: &'a str,
    name: &'a str,
}

fn kernel_maps(maps: &str) -> Vec<KernelMap<'_>> {
    let mut all: Vec<KernelMap<'_>> = Vec::new();
    for line in maps.lines() {
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields
            .next()
            .and_then(|range| range.split_once('-'))
            .unwrap_or_default();
        let address = |text| u64::from_str_radix(text, 16).unwrap_or_default();
        let map = KernelMap {
            start: address(start),
            end: address(end),
            permissions: fields.next().unwrap_or_default(),
            name: fields.nth(3).unwrap_or_default().trim(),
        };
        match all.last_mut() {
            // To CRIU the kernel's variables are one mapping.
            Some(last) if last.name.starts_with("[vvar") && map.name.starts_with("[vvar") => {
                last.end = map.end
            }
            _ => all.push(map),
        }
    }
    all
}

/// What the container of the archives does: a process of its own, a pipe, a listening socket, something in its root.
const CONTAINER: [&str; 3] = [
    "/bin/sh",
    "-c",
    "cd /tmp; echo changed >/tmp/changed; /bin/busybox mkfifo line; sleep 5000 <>line & /bin/busybox nc -l -p 8080 & while :; do sleep 6000; done",
];

/// Makes an archive of a container with each compression.
fn make(podman: &mut Podman, compressions: &[&str]) -> Result<Vec<PathBuf>, String> {
    podman.run_container(
        &[
            "--name",
            "inspected",
            "--network",
            "none",
            "--env",
            "INSPECTED=by criuctl",
        ],
        &CONTAINER,
    )?;
    let container = podman.container().to_owned();
    until("the container has all its processes", || {
        let arguments = [
            "exec",
            &container,
            "/bin/sh",
            "-c",
            "cat /proc/[0-9]*/cmdline",
        ]
        .map(str::to_owned);
        let words = ["sleep\x005000", "sleep\x006000", "nc\0-l"];
        podman
            .run(&arguments)
            .is_ok_and(|out| words.iter().all(|it| out.contains(it)))
    })?;
    let mut archives = Vec::new();
    for compression in compressions {
        let archive = podman.ground().path(&format!("{compression}.tar"));
        let file = archive.display().to_string();
        let export = [
            "container",
            "checkpoint",
            "--leave-running",
            "--compress",
            compression,
            "--export",
            &file,
            &container,
        ];
        podman.run(&export.map(str::to_owned))?;
        archives.push(archive);
    }
    Ok(archives)
}

fn archives_of_podman(program: Program) -> Outcome {
    with_made(
        || Ok(Box::new(Podman::over(program, Environment::default())?)),
        |podman| {
            for archive in make(podman, &["none", "gzip", "zstd"])? {
                let ours = criuctl(&[path(&archive), "--all", "--format", "json"])?;
                let theirs = run(Command::new("checkpointctl")
                    .args(["inspect", "--all", "--format", "json"])
                    .arg(&archive))?;
                let theirs: Value = serde_json::from_slice(&theirs.stdout).map_err(text)?;
                same(&ours, &theirs[0])
                    .map_err(|error| format!("{}: {error}", archive.display()))?;
                ensure!(
                    ours["problems"] == Value::Array(vec![]),
                    "{}",
                    ours["problems"]
                );
                // What checkpointctl does not say.
                let arguments = &ours["processes"][0]["arguments"];
                ensure!(arguments == &serde_json::json!(CONTAINER), "{arguments}");
                let environment = ours["processes"][0]["environment"].to_string();
                ensure!(
                    environment.contains("INSPECTED=by criuctl"),
                    "{environment}"
                );
                let sockets = ours["files"].to_string();
                ensure!(
                    sockets.contains(r#""state":"LISTEN""#)
                        && sockets.contains(r#""localPort":8080"#),
                    "{sockets}"
                );
            }
            Ok(())
        },
    )
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

fn criuctl(arguments: &[&str]) -> Result<Value, String> {
    let output = run(Command::new(env!("CARGO_BIN_EXE_criuctl"))
        .arg("inspect")
        .args(arguments))?;
    serde_json::from_slice(&output.stdout).map_err(text)
}

fn run(command: &mut Command) -> Result<Output, String> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

/// Everything that checkpointctl says is as we have it.
fn same(ours: &Value, theirs: &Value) -> Outcome {
    let summary = &ours["summary"];
    for (our_name, their_name) in [
        ("container", "container_name"),
        ("image", "image"),
        ("id", "id"),
        ("runtime", "runtime"),
        ("engine", "engine"),
    ] {
        ensure!(
            summary[our_name] == theirs[their_name],
            "{our_name}: {} and {}",
            summary[our_name],
            theirs[their_name]
        );
    }
    let seconds = |time: &Value| {
        time.as_str()
            .map(|time| time.chars().take(19).collect::<String>())
    };
    ensure!(
        seconds(&summary["created"]) == seconds(&theirs["created"]),
        "{} and {}",
        summary["created"],
        theirs["created"]
    );
    let sizes = &theirs["checkpoint_size"];
    for (our_name, their_name) in [
        ("images", "total_size"),
        ("pages", "memory_pages_size"),
        ("rootFsDiff", "root_fs_diff_size"),
    ] {
        ensure!(
            summary["sizes"][our_name] == sizes[their_name],
            "{our_name}: {} and {sizes}",
            summary["sizes"]
        );
    }
    let stats = &ours["stats"];
    for (our_name, their_name) in [
        ("freezingTimeMicros", "freezing_time"),
        ("frozenTimeMicros", "frozen_time"),
        ("memdumpTimeMicros", "memdump_time"),
        ("memwriteTimeMicros", "memwrite_time"),
        ("pagesScanned", "pages_scanned"),
        ("pagesWritten", "pages_written"),
    ] {
        let theirs = &theirs["statistics"][their_name];
        ensure!(
            stats[our_name] == *theirs,
            "{our_name}: {} and {theirs}",
            stats[our_name]
        );
    }
    let mut pids = Vec::new();
    walk(&theirs["process_tree"], &mut pids);
    let ours_too: Vec<_> = array(&ours["processes"])
        .iter()
        .map(|process| (number(&process["pid"]), process["name"].clone()))
        .collect();
    ensure!(
        sorted(pids.clone()) == sorted(ours_too.clone()),
        "{ours_too:?} and {pids:?}"
    );
    for process in array(&theirs["file_descriptors"]) {
        let pid = number(&process["pid"]);
        let own = array(&ours["files"])
            .iter()
            .find(|files| number(&files["pid"]) == pid)
            .ok_or_else(|| format!("no files of {pid}"))?;
        for file in array(&process["open_files"]) {
            // "REG 0", or "cwd".
            let (kind, fd) = file["fd"]
                .as_str()
                .and_then(|fd| fd.split_once(' '))
                .unwrap_or_default();
            let Ok(fd) = fd.parse::<u64>() else { continue };
            let ours = array(&own["open"])
                .iter()
                .find(|open| number(&open["fd"]) == fd)
                .ok_or_else(|| format!("no descriptor {fd} of {pid}"))?;
            ensure!(ours["kind"] == kind, "{ours} and {file}");
            if kind == "REG" {
                ensure!(ours["name"] == file["path"], "{ours} and {file}");
            }
        }
    }
    for mount in array(&theirs["mounts"]) {
        let there = array(&summary["requestedMounts"]).iter().any(|ours| {
            ours["destination"] == mount["destination"]
                && ours["kind"] == mount["type"]
                && ours["source"] == mount["source"]
        });
        ensure!(there, "no {mount}");
    }
    Ok(())
}

fn walk(process: &Value, pids: &mut Vec<(u64, Value)>) {
    if process["pid"].is_number() {
        pids.push((number(&process["pid"]), process["command"].clone()));
    }
    for child in array(&process["children"]) {
        walk(child, pids);
    }
}

fn sorted(mut pids: Vec<(u64, Value)>) -> Vec<(u64, Value)> {
    pids.sort_by_key(|(pid, _)| *pid);
    pids
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(u64::MAX)
}

/// Makes the archives that the tests without privileges read: see `scripts/record-checkpoints`.
pub(crate) fn record_checkpoints(arguments: &[String]) -> Outcome {
    let [directory] = arguments else {
        return Err(format!("wrong arguments {arguments:?}"));
    };
    nix::sys::prctl::set_child_subreaper(true).map_err(text)?;
    fs::create_dir_all(directory).map_err(text)?;
    for (program, compression) in [(Program::Runc, "zstd"), (Program::Crun, "gzip")] {
        with_made(
            || Ok(Box::new(Podman::over(program, Environment::default())?)),
            |podman| {
                for archive in make(podman, &[compression])? {
                    let name = format!("podman-{}.tar.{compression}", program.name());
                    fs::copy(&archive, Path::new(directory).join(name)).map_err(text)?;
                }
                Ok(())
            },
        )?;
    }
    Ok(())
}
