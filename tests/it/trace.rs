//! `criuctl trace` and `criuctl interpose` as those who call them see them. A recording of one VERSION, played back, is the
//! CRIU here.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use criu_client::interpose::recording::{Event, Recording};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::cli::{criuctl, document, fails, run, stderr, stdout};

/// The tests by name; one that is not listed is dead code.
pub(crate) fn tests() -> Vec<Trial> {
    macro_rules! trials {
        ($($name:ident),* $(,)?) => {
            vec![$(Trial::test(concat!("trace::", stringify!($name)), || {
                $name();
                Ok(())
            })),*]
        };
    }
    trials![
        what_passes_is_shown_and_recorded,
        in_json_a_document_stands_on_each_line,
        the_commands_status_and_output_are_its_own,
        a_command_that_is_not_there,
        a_criu_that_is_not_there_or_is_no_criu,
        recordings_that_cannot_be_read,
        what_is_done_on_the_way_is_checked_beforehand,
        a_listener_is_installed_and_removed,
        a_listener_is_no_criu_for_another,
        settings_of_another_version_are_refused,
        the_small_program_listens_where_it_is_installed,
        signals_are_to_criu_as_the_engine_has_them,
        a_listener_by_hand,
    ]
}

const LISTENER: &str = env!("CARGO_BIN_EXE_criu-listener");

const RECORDING: &str = r#"{"criuRecording":1,"writer":"me","started":0}
{"session":1,"at":0,"event":"started","pid":4711,"arguments":["swrk","3"],"criu":"/usr/sbin/criu","startedAt":0}
{"session":1,"at":10,"event":"message","from":"engine","bytes":"080a"}
{"session":1,"at":20,"event":"message","from":"criu","bytes":"080a10015206080410022001"}
{"session":1,"at":30,"event":"ended","by":"criu"}
"#;

/// A directory with a CRIU in it that knows its version and nothing else.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        let scratch = Self(tempfile::tempdir().unwrap());
        fs::write(scratch.path("recording"), RECORDING).unwrap();
        let script = format!(
            "#!/bin/sh\nexec {} replay --speed max --compare sequence {} \"$@\"\n",
            env!("CARGO_BIN_EXE_criuctl"),
            scratch.text("recording")
        );
        fs::write(scratch.path("criu"), script).unwrap();
        fs::set_permissions(scratch.path("criu"), fs::Permissions::from_mode(0o755)).unwrap();
        scratch
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).into_os_string().into_string().unwrap()
    }

    /// Runs `criuctl --criu CRIU` with the rest of the line.
    fn run(&self, line: &[&str]) -> std::process::Output {
        let criu = self.text("criu");
        let mut words = vec!["--criu", &criu];
        words.extend(line);
        run(&words)
    }

    fn fails(&self, line: &[&str], status: i32, parts: &[&str]) {
        let criu = self.text("criu");
        let mut words = vec!["--criu", &criu];
        words.extend(line);
        fails(&words, status, parts);
    }
}

/// A command that asks the CRIU of its PATH for its version.
const ASK: [&str; 4] = [env!("CARGO_BIN_EXE_criuctl"), "--criu", "criu", "version"];

fn what_passes_is_shown_and_recorded() {
    let scratch = Scratch::new();
    let file = scratch.text("trace.jsonl");
    let mut line = vec!["trace", "--record", &file, "--"];
    line.extend(ASK);
    let output = scratch.run(&line);
    let shown = stderr(&output);
    assert!(output.status.success(), "{shown}");
    assert!(stdout(&output).contains("4.2.1"), "{}", stdout(&output));
    for part in [
        "-> VERSION",
        "<- VERSION succeeded",
        "minor_number=2",
        "12 bytes",
        "ended by",
    ] {
        assert!(shown.contains(part), "{part:?} is not in: {shown}");
    }
    let recording = Recording::read(fs::read(&file).unwrap().as_slice()).unwrap();
    let started = |entry: &&criu_client::interpose::recording::Entry| matches!(&entry.event, Event::Started { engine: Some(engine), .. } if engine.program.is_some());
    assert!(
        recording.entries.iter().any(|entry| started(&entry)),
        "{recording:?}"
    );
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let read = run(&["trace", "--read", &file]);
    assert!(stderr(&read).contains("<- VERSION succeeded"), "{read:?}");
    scratch.fails(&line, 2, &["trace.jsonl", "cannot be made"]);
}

fn in_json_a_document_stands_on_each_line() {
    let scratch = Scratch::new();
    let mut line = vec!["--format=json", "trace", "--"];
    line.extend(ASK);
    let output = scratch.run(&line);
    assert!(output.status.success(), "{}", stderr(&output));
    let documents: Vec<Value> = stdout(&output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(documents.len() >= 4, "{documents:?}");
    for document in &documents {
        assert_eq!(document["apiVersion"], "criuctl/v1");
        assert_eq!(document["kind"], "TraceEvent");
    }
    assert_eq!(documents[1]["event"], "message");
    assert_eq!(documents[1]["view"]["type"], "VERSION");
    // Standard output is the trace's.
    assert!(stderr(&output).contains("4.2.1"), "{}", stderr(&output));
}

fn the_commands_status_and_output_are_its_own() {
    let scratch = Scratch::new();
    for (command, status) in [
        (vec!["/bin/sh", "-c", "echo out; exit 7"], 7),
        (vec!["/bin/sh", "-c", "echo out; kill -9 $$"], 137),
        (vec!["/bin/echo", "out"], 0),
    ] {
        let mut line = vec!["trace"];
        line.extend(command);
        let output = scratch.run(&line);
        assert_eq!(output.status.code(), Some(status), "{line:?}");
        assert_eq!(stdout(&output), "out\n");
    }
    let path = scratch.run(&["trace", "--", "/bin/sh", "-c", "command -v criu"]);
    let path = stdout(&path);
    assert!(path.contains("criuctl-trace-"), "{path}");
    assert!(
        !Path::new(path.trim_end()).exists(),
        "{path} was left behind"
    );
}

fn a_command_that_is_not_there() {
    let scratch = Scratch::new();
    scratch.fails(&["trace"], 2, &["no command to trace", "hint:"]);
    scratch.fails(
        &["trace", "--", "/no/such/program"],
        3,
        &["/no/such/program"],
    );
    scratch.fails(
        &["trace", "--", "no-such-program"],
        3,
        &["no-such-program", "PATH"],
    );
}

fn a_criu_that_is_not_there_or_is_no_criu() {
    fails(
        &["--criu", "/no/such/criu", "trace", "--", "/bin/true"],
        3,
        &["/no/such/criu"],
    );
    let scratch = Scratch::new();
    let directory = scratch.text("listener");
    for line in [
        vec!["--criu", "/bin/true", "trace", "--", "/bin/true"],
        vec!["--criu", "/bin/true", "interpose", "install", &directory],
    ] {
        let output = run(&line);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
    }
    assert!(
        !scratch.path("listener").exists(),
        "something was installed"
    );
}

fn recordings_that_cannot_be_read() {
    let scratch = Scratch::new();
    let file = scratch.text("broken");
    let cases: [(&str, &str); 4] = [
        ("", "no recording"),
        ("{\"criuRecording\":2}\n", "version 2"),
        (&RECORDING[..RECORDING.len() - 5], "cut"),
        (
            "{\"criuRecording\":1,\"writer\":\"me\",\"started\":0}\n{}\n",
            "line 2",
        ),
    ];
    for (content, reason) in cases {
        fs::write(&file, content).unwrap();
        fails(&["trace", "--read", &file], 2, &["broken", reason]);
        let output = run(&["--format=json", "trace", "--read", &file]);
        assert_eq!(document(&output)["kind"], "Error");
    }
    fails(&["trace", "--read", "/no/such/file"], 2, &["/no/such/file"]);
    fails(&["trace", "--read", &file, "--", "true"], 2, &["--read"]);
}

fn what_is_done_on_the_way_is_checked_beforehand() {
    let scratch = Scratch::new();
    for (option, status, part) in [
        ("--hook=post-lunch=/bin/true", 2, "post-dump"),
        ("--hook=post-dump=/no/such/program", 2, "/no/such/program"),
        ("--amend=network-lock=skip", 2, "OPERATION:OPTION"),
        ("--amend=dump:no-such-option", 2, "--no-such-option"),
        ("--amend=restore:network-lock=skip", 2, "--network-lock"),
        ("--amend=dump:stream", 3, "4.2.1"),
    ] {
        scratch.fails(&["trace", option, "--", "/bin/true"], status, &[part]);
    }
    let twice = [
        "trace",
        "--hook=post-dump=/bin/true",
        "--hook=post-dump=/bin/false",
        "--",
        "/bin/true",
    ];
    scratch.fails(&twice, 2, &["post-dump", "already"]);
    scratch.fails(
        &["trace", "--listen", "/tmp/socket"],
        2,
        &["--service SOCKET"],
    );
}

fn a_listener_is_installed_and_removed() {
    let scratch = Scratch::new();
    let (directory, recordings) = (scratch.text("listener"), scratch.text("recordings"));
    let install = [
        "--format=json",
        "interpose",
        "install",
        &directory,
        "--record",
        &recordings,
    ];
    let installed = scratch.run(&install);
    assert!(installed.status.success(), "{}", stderr(&installed));
    let installed = document(&installed);
    assert_eq!(installed["criuVersion"], "4.2.1");
    assert!(
        installed["undo"].as_str().unwrap().contains(&directory),
        "{installed}"
    );

    // Whatever finds it first is listened in on.
    let path = format!("{directory}:/usr/bin:/bin");
    let asked = criuctl(&["--criu", "criu", "version"])
        .env("PATH", &path)
        .output()
        .unwrap();
    assert!(stdout(&asked).contains("4.2.1"), "{asked:?}");
    let mut recorded = fs::read_dir(&recordings).unwrap();
    let file = recorded.next().unwrap().unwrap().path();
    let recording = Recording::read(fs::read(file).unwrap().as_slice());
    assert!(recording.is_ok(), "{recording:?}");

    // Again, with other settings: they replace the old ones.
    assert!(
        scratch
            .run(&["interpose", "install", &directory])
            .status
            .success()
    );
    let removed = run(&["interpose", "remove", &directory]);
    assert!(removed.status.success(), "{}", stderr(&removed));
    assert!(!scratch.path("listener").exists());
    fails(
        &["interpose", "remove", &directory],
        2,
        &[&directory, "no listener"],
    );
    // Somebody's own CRIU is not replaced.
    let own = scratch.text("");
    scratch.fails(&["interpose", "install", &own], 2, &["no listener"]);
    assert!(
        fs::read_to_string(scratch.path("criu"))
            .unwrap()
            .starts_with("#!")
    );
}

fn a_listener_is_no_criu_for_another() {
    let scratch = Scratch::new();
    let directory = scratch.text("listener");
    assert!(
        scratch
            .run(&["interpose", "install", &directory])
            .status
            .success()
    );
    let listener = scratch.text("listener/criu");
    let second = scratch.text("second");
    for line in [
        vec!["--criu", &listener, "trace", "--", "/bin/true"],
        vec!["--criu", &listener, "interpose", "install", &second],
        vec![
            "--criu",
            env!("CARGO_BIN_EXE_criuctl"),
            "trace",
            "--",
            "/bin/true",
        ],
        vec!["--criu", LISTENER, "interpose", "install", &second],
    ] {
        fails(&line, 2, &["listener already", "--criu PATH"]);
    }
}

fn settings_of_another_version_are_refused() {
    let scratch = Scratch::new();
    let directory = scratch.text("listener");
    assert!(
        scratch
            .run(&["interpose", "install", &directory])
            .status
            .success()
    );
    let settings = scratch.path("listener/criu-interpose.json");
    let text = fs::read_to_string(&settings).unwrap();
    for (broken, part) in [
        (
            text.replace("\"interpose\": 2", "\"interpose\": 3"),
            "interpose install",
        ),
        (
            text.replace("\"interpose\": 2", "\"interpose\": 1")
                .replace("\"amend\": []", "\"amend\": [\"dump:tcp-close\"]"),
            "interpose install",
        ),
        (text[..text.len() / 2].to_owned(), "cannot be used"),
    ] {
        fs::write(&settings, broken).unwrap();
        let output = std::process::Command::new(scratch.path("listener/criu"))
            .arg("check")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(127), "{output:?}");
        assert!(stderr(&output).contains(part), "{output:?}");
    }
}

fn the_small_program_listens_where_it_is_installed() {
    let scratch = Scratch::new();
    let together = scratch.path("together");
    let alone = scratch.path("alone");
    for directory in [&together, &alone] {
        fs::create_dir(directory).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_criuctl"), directory.join("criuctl")).unwrap();
    }
    fs::copy(LISTENER, together.join("criu-listener")).unwrap();
    let criu = scratch.text("criu");
    for (directory, program) in [(&together, "criu-listener"), (&alone, "criuctl")] {
        let stage = directory.join("stage");
        let installed = std::process::Command::new(directory.join("criuctl"))
            .args(["--criu", &criu, "interpose", "install"])
            .arg(&stage)
            .args(["--amend", "dump:network-lock=skip"])
            .output()
            .unwrap();
        assert!(installed.status.success(), "{}", stderr(&installed));
        let listener = fs::read_link(stage.join("criu")).unwrap();
        assert_eq!(listener, directory.join(program));
        let asked = criuctl(&["--criu", "criu", "version"])
            .env("PATH", &stage)
            .output()
            .unwrap();
        assert!(stdout(&asked).contains("4.2.1"), "{asked:?}");
        let settings = fs::read(stage.join("criu-interpose.json")).unwrap();
        let settings: Value = serde_json::from_slice(&settings).unwrap();
        assert_eq!(settings["amend"][0]["view"]["network_lock"], "SKIP");
    }
}

fn signals_are_to_criu_as_the_engine_has_them() {
    let scratch = Scratch::new();
    assert!(
        scratch
            .run(&["interpose", "install", &scratch.text("listener")])
            .status
            .success()
    );
    fs::write(
        scratch.path("criu"),
        "#!/bin/sh\nexec grep -E 'Sig(Ign|Blk)' /proc/self/status\n",
    )
    .unwrap();
    let dispositions = |program: PathBuf| {
        let output = std::process::Command::new(program).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        stdout(&output)
    };
    let directly = dispositions(scratch.path("criu"));
    assert!(directly.contains("SigIgn"), "{directly}");
    assert_eq!(dispositions(scratch.path("listener/criu")), directly);
}

fn a_listener_by_hand() {
    for words in [vec![], vec!["--version"], vec!["swrk", "3"]] {
        let output = std::process::Command::new(LISTENER)
            .args(&words)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        for part in ["by hand", "criuctl interpose install"] {
            assert!(stderr(&output).contains(part), "{output:?}");
        }
    }
}
