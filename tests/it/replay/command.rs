//! `criuctl replay`, as engines start it and as those who call it see it.

use std::ffi::OsString;
use std::fs::File;
use std::io::BufWriter;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use criu_client::interpose::recording::{Recording, Side, write_line};
use criu_client::{Criu, Version};
use libtest_mimic::Trial;
use rustix::process::{Pid, Signal};

use super::recorder::{Client, Session, VERSION, VERSION_4_2_1, written};
use crate::cli::{criuctl, document, fails, stderr, stdout};

/// The tests by name; one that is not listed is dead code.
pub(crate) fn tests() -> Vec<Trial> {
    macro_rules! trials {
        ($($name:ident),* $(,)?) => {
            vec![$(Trial::test(concat!("replay::command::", stringify!($name)), || {
                $name();
                Ok(())
            })),*]
        };
    }
    trials![
        it_speaks_on_the_descriptor_that_it_was_given,
        an_engine_starts_one_for_each_session,
        a_departure_is_told_with_its_place,
        it_listens_until_all_is_played,
        it_listens_until_a_client_departs,
        it_listens_until_a_signal,
        bad_input_has_a_status_of_its_own,
    ]
}

/// A recording in a file, of as many VERSION sessions.
struct Tape {
    directory: tempfile::TempDir,
    file: String,
}

impl Tape {
    fn of(recording: &Recording) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("recording.jsonl");
        let mut file = BufWriter::new(File::create(&path).unwrap());
        write_line(&mut file, &recording.header).unwrap();
        for entry in &recording.entries {
            write_line(&mut file, entry).unwrap();
        }
        let file = path.into_os_string().into_string().unwrap();
        Self { directory, file }
    }

    fn versions(count: usize) -> Self {
        let session: Session<'_> = (
            &[(0, Side::Engine, VERSION), (1, Side::Criu, VERSION_4_2_1)],
            Side::Criu,
        );
        Self::of(&written(&vec![session; count]))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// Started as an engine starts CRIU, with our socket as its descriptor 0.
fn engine(before: &[&str], tape: &Tape, behind: &[&str]) -> (Client, Child) {
    let (ours, theirs) = Client::pair();
    let mut line = before.to_vec();
    line.extend(["replay", "--speed", "max", &tape.file]);
    line.extend(behind);
    line.extend(["swrk", "0"]);
    let mut command = criuctl(&line);
    command
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    (ours, command.spawn().unwrap())
}

fn ended(child: Child) -> Output {
    child.wait_with_output().unwrap()
}

fn it_speaks_on_the_descriptor_that_it_was_given() {
    let tape = Tape::versions(1);
    for behind in [
        &[][..],
        &["-v4", "--no-default-config"],
        &["--libdir", "/x"],
    ] {
        let (client, child) = engine(&[], &tape, behind);
        client.say(VERSION);
        assert_eq!(client.hear(), VERSION_4_2_1);
        assert_eq!(client.hear(), b"");
        let output = ended(child);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(
            (stdout(&output), stderr(&output)),
            (String::new(), String::new())
        );
    }
    let (client, child) = engine(&["--format", "json"], &tape, &[]);
    client.say(VERSION);
    client.hear();
    let document = document(&ended(child));
    assert_eq!(document["kind"], "Replay");
    assert_eq!(document["outcomes"][0]["sessions"][0], 1);
}

fn an_engine_starts_one_for_each_session() {
    let tape = Tape::versions(3);
    let state = tape.path("state");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let arguments = [
        "replay",
        "--compare",
        "sequence",
        "--speed",
        "max",
        "--session",
        "2",
        "--state",
        state.to_str().unwrap(),
        &tape.file,
    ];
    let criu =
        Criu::at(env!("CARGO_BIN_EXE_criuctl")).with_arguments(arguments.map(OsString::from));
    // Each process asks once, and takes a session.
    for count in ["2\n", "3\n"] {
        let version = runtime.block_on(criu.version()).unwrap();
        assert_eq!(version, Version::new(4, 2, 1));
        assert_eq!(std::fs::read_to_string(&state).unwrap(), count);
    }
    // None is left, but what was asked is known.
    let version = runtime.block_on(criu.version()).unwrap();
    assert_eq!(version, Version::new(4, 2, 1));
    assert_eq!(std::fs::read_to_string(&state).unwrap(), "3\n");
}

fn a_departure_is_told_with_its_place() {
    let tape = Tape::versions(1);
    // CHECK
    let departing = |client: Client, child: Child| {
        client.say(b"\x08\x03");
        assert_eq!(client.hear(), b"");
        ended(child)
    };
    let (client, child) = engine(&[], &tape, &[]);
    let output = departing(client, child);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    let place = "session 1, line 2: expected VERSION, got CHECK";
    assert!(
        said.starts_with("error: ") && said.contains(place),
        "{said}"
    );

    let (client, child) = engine(&["--format", "json"], &tape, &[]);
    let output = departing(client, child);
    assert_eq!(output.status.code(), Some(1));
    let document = document(&output);
    assert_eq!(document["kind"], "Error");
    assert_eq!(document["code"], "departed");
    assert_eq!(document["departure"]["session"], 1);
    assert_eq!(document["departure"]["entry"], 0);
    assert_eq!(document["departure"]["got"]["view"]["type"], "CHECK");
}

/// Listens, in a process group of its own, once its socket is there.
fn listening(tape: &Tape) -> (PathBuf, Child) {
    let socket = tape.path("socket");
    let line = ["replay", &tape.file, "--speed", "max", "--listen"];
    let mut command = criuctl(&line);
    command
        .arg(&socket)
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_listening(&socket) {
        assert!(Instant::now() < deadline, "it does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    (socket, child)
}

/// Its mode is set before it listens, and nobody may connect before.
fn is_listening(socket: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap();
    let mut lines = table.lines();
    // The flag of a socket that listens.
    lines.any(|line| line.ends_with(socket.to_str().unwrap()) && line.contains(" 00010000 "))
}

fn it_listens_until_all_is_played() {
    let tape = Tape::versions(2);
    let (socket, child) = listening(&tape);
    for _ in 0..2 {
        let client = Client::connect(&socket);
        client.say(VERSION);
        assert_eq!(client.hear(), VERSION_4_2_1);
    }
    let output = ended(child);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(!socket.exists());
}

fn it_listens_until_a_client_departs() {
    let tape = Tape::versions(2);
    let (socket, child) = listening(&tape);
    drop(Client::connect(&socket));
    let output = ended(child);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("got a hang-up"),
        "{}",
        stderr(&output)
    );
    assert!(!socket.exists());
}

fn it_listens_until_a_signal() {
    let tape = Tape::versions(2);
    let (socket, child) = listening(&tape);
    rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let output = ended(child);
    assert_eq!(output.status.code(), Some(130));
    let said = stderr(&output);
    assert!(
        said.contains("SIGTERM: 2 sessions have not been played"),
        "{said}"
    );
    assert!(!socket.exists());
}

fn bad_input_has_a_status_of_its_own() {
    let tape = Tape::versions(1);
    let whole = std::fs::read_to_string(&tape.file).unwrap();
    let file = |name: &str, text: &str| {
        let path = tape.path(name);
        std::fs::write(&path, text).unwrap();
        path.into_os_string().into_string().unwrap()
    };
    let cut = file("cut", whole.trim_end());
    let endless = file(
        "endless",
        &whole[..whole.trim_end().rfind('\n').unwrap() + 1],
    );
    let newer = file("newer", "{\"criuRecording\":2}\n");
    let other = file("other", "hello\n");
    for (line, part) in [
        (&["/nonexistent/recording", "swrk", "0"][..], "No such file"),
        (&[&cut, "swrk", "0"], "the recording is cut: line"),
        (&[&endless, "swrk", "0"], "session 1 has no end"),
        (&[&newer, "swrk", "0"], "version 2"),
        (&[&other, "swrk", "0"], "no recording"),
        (&[&tape.file, "swrk", "0"], "descriptor 0 is no socket"),
        (&[&tape.file, "swrk", "77"], "descriptor 77 is not open"),
        (&[&tape.file, "swrk"], "whom to speak to"),
        (&[&tape.file], "whom to speak to"),
        (
            &[&tape.file, "--session", "4", "swrk", "0"],
            "no session 4, only 1",
        ),
        (&[&tape.file, "--speed", "0", "swrk", "0"], "above 0"),
        (&[&tape.file, "--stand-in", "0", "swrk", "0"], "--stand-in"),
        (
            &[&tape.file, "--listen", &tape.file],
            "cannot be listened at",
        ),
    ] {
        let mut whole = vec!["replay"];
        whole.extend(line);
        fails(&whole, 2, &[part]);
    }
}
