//! Records of the runtimes' containers as the command line reads them: the list, and whose container an ID is. No container
//! is needed for it, only what a runtime notes of one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::{Value, json};

pub(crate) fn tests() -> Vec<Trial> {
    let trial = |name: &str, test: fn()| {
        Trial::test(format!("records::{name}"), move || {
            test();
            Ok(())
        })
    };
    vec![
        trial("five_hundred_are_listed_at_once", five_hundred),
        trial("every_status_says_whether_it_can_be_checkpointed", statuses),
        trial("an_id_is_looked_for_in_every_engine", bare_ids),
    ]
}

const RUNC: &str = include_str!("../data/runc/everything/state.json");
const CRUN: &str = include_str!("../data/crun/default/status");
const CRUN_CONFIG: &str = include_str!("../data/crun/default/config.json");

/// Roots of both runtimes.
struct Roots(tempfile::TempDir);

impl Roots {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, engine: &str) -> PathBuf {
        self.0.path().join(engine)
    }

    /// A container with a first process; of crun's also the copy of the configuration.
    fn add(&self, engine: &str, id: &str, (pid, start): (i32, u64)) -> PathBuf {
        let directory = self.path(engine).join(id);
        fs::create_dir_all(&directory).unwrap();
        let (name, text) = match engine {
            "runc" => ("state.json", RUNC),
            _ => ("status", CRUN),
        };
        let mut record: Value = serde_json::from_str(text).unwrap();
        let keys = match engine {
            "runc" => ["init_process_pid", "init_process_start"],
            _ => ["pid", "process-start-time"],
        };
        record[keys[0]] = json!(pid);
        record[keys[1]] = json!(start);
        match engine {
            "runc" => record["id"] = json!(id),
            _ => fs::write(directory.join("config.json"), CRUN_CONFIG).unwrap(),
        }
        fs::write(directory.join(name), record.to_string()).unwrap();
        directory
    }

    /// Podman's storage with containers of these names that do not run.
    fn store(&self, names: impl Iterator<Item = String>) {
        let of = |name: String| {
            let metadata = json!({ "name": name, "image-name": "image" }).to_string();
            json!({ "id": format!("{name:0>64}"), "names": [name], "metadata": metadata })
        };
        let containers: Vec<Value> = names.map(of).collect();
        let directory = self.path("podman").join("overlay-containers");
        fs::create_dir_all(&directory).unwrap();
        let index = serde_json::to_vec(&containers).unwrap();
        fs::write(directory.join("containers.json"), index).unwrap();
    }

    fn run(&self, line: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_criuctl"))
            .args(line)
            .arg("--runc-root")
            .arg(self.path("runc"))
            .arg("--crun-root")
            .arg(self.path("crun"))
            .arg("--podman-root")
            .arg(self.path("podman"))
            // This machine's Docker is not asked.
            .env("DOCKER_HOST", "unix:///nonexistent/docker.sock")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn list(&self) -> Vec<Value> {
        let output = self.run(&["list", "--format", "json"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        let document: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document["kind"], "ContainerList");
        document["containers"].as_array().unwrap().clone()
    }
}

/// Ourselves: a process that is there.
fn ourselves() -> (i32, u64) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    // The state is the third field, the start the 22nd.
    let start = fields.split_whitespace().nth(19).unwrap();
    (
        i32::try_from(std::process::id()).unwrap(),
        start.parse().unwrap(),
    )
}

fn five_hundred() {
    let roots = Roots::new();
    for number in 0..250 {
        for engine in ["runc", "crun"] {
            roots.add(engine, &format!("box{number:03}"), ourselves());
        }
    }
    roots.store((0..500).map(|number| format!("c{number}")));
    let begun = Instant::now();
    let listed = roots.list();
    let passed = begun.elapsed();
    assert_eq!(listed.len(), 1000);
    assert_eq!(listed[0]["engine"], "runc");
    assert_eq!(listed[499]["id"], "box249");
    assert_eq!(listed[500]["engine"], "podman");
    assert!(listed[999]["name"].is_string());
    // A program without optimizations on a busy machine.
    assert!(passed < Duration::from_secs(3), "{passed:?}");
}

fn statuses() {
    let roots = Roots::new();
    assert!(roots.list().is_empty(), "there are no roots");
    for engine in ["runc", "crun"] {
        roots.add(engine, "a-running", ourselves());
        roots.add(engine, "b-stopped", (1, 1));
        let created = roots.add(engine, "c-created", ourselves());
        fs::write(created.join("exec.fifo"), "").unwrap();
        let broken = roots.add(engine, "d-broken", ourselves());
        for name in ["state.json", "status"] {
            if broken.join(name).exists() {
                fs::write(broken.join(name), "{").unwrap();
            }
        }
        // One that is being made, and what is no container.
        fs::create_dir(roots.path(engine).join("e-half")).unwrap();
        fs::write(roots.path(engine).join("a file"), "").unwrap();
    }
    let pid = std::process::id();
    let listed = roots.list();
    for (engine, listed) in ["runc", "crun"].into_iter().zip(listed.chunks(4)) {
        let facts: Vec<Value> = listed
            .iter()
            .map(|one| {
                json!([
                    one["engine"],
                    one["id"],
                    one["pid"],
                    one["status"],
                    one["checkpointable"]
                ])
            })
            .collect();
        let expected = json!([
            [engine, "a-running", pid, "running", true],
            [engine, "b-stopped", null, "stopped", false],
            [engine, "c-created", pid, "created", false],
            [engine, "d-broken", null, null, false],
        ]);
        assert_eq!(json!(facts), expected);
        assert_eq!(listed[0]["obstacle"], Value::Null);
        assert!(
            listed[0]["bundle"]
                .as_str()
                .unwrap()
                .starts_with("/bundles/")
        );
        let obstacle = listed[3]["obstacle"].as_str().unwrap();
        assert!(
            obstacle.contains(&format!("version of {engine}")),
            "{obstacle}"
        );
    }
    let output = roots.run(&["list"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("ENGINE  ID"), "{text}");
    assert!(lines[2].contains("no: it is stopped"), "{text}");
    assert_eq!(lines.len(), 9, "{text}");
}

fn bare_ids() {
    let roots = Roots::new();
    roots.add("runc", "both", (1, 1));
    roots.add("crun", "both", (1, 1));
    roots.add("crun", "pair", (1, 1));
    roots.store(["pair".to_owned()].into_iter());
    let images = roots.path("images");
    let refused = |id: &str, parts: &[&str]| {
        let path = images.to_str().unwrap();
        let line = [
            "checkpoint",
            id,
            "-D",
            path,
            "--service",
            "/nonexistent/socket",
        ];
        let output = roots.run(&line);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        for part in parts {
            assert!(said.contains(part), "{part:?} is not in: {said}");
        }
        assert!(
            !Path::new(&images).exists(),
            "a directory was made for nothing"
        );
    };
    refused(
        "both",
        &[
            "several containers \"both\"",
            "hint: write runc:both or crun:both",
        ],
    );
    refused("pair", &["hint: write crun:pair or podman:pair"]);
    let roots_of = [roots.path("runc"), roots.path("crun")];
    let looked = roots_of.each_ref().map(|path| path.to_str().unwrap());
    refused(
        "nobody",
        &["\"nobody\"", looked[0], looked[1], "criuctl list"],
    );
}
