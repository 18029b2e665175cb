//! The command line in CRIU's own words, against a scripted CRIU: what is asked for is what is sent.

use std::process::{Command, Output, Stdio};

use criu_client::testing::{Message, Peer, Request, Value};
use libtest_mimic::Trial;
use tempfile::TempDir;

use crate::support::{Idle, dumping};

/// The tests by name; one that is not listed is dead code.
pub(crate) fn tests() -> Vec<Trial> {
    macro_rules! trials {
        ($($name:ident),* $(,)?) => {
            vec![$(Trial::test(concat!("cli_criu::", stringify!($name)), || {
                $name();
                Ok(())
            })),*]
        };
    }
    trials![
        a_page_server_is_named_in_either_form,
        a_page_server_without_a_place_is_wrong_usage,
        control_groups_and_the_processor_have_a_default_value,
        seconds_without_a_unit_are_told_both_time_limits,
    ]
}

fn criuctl(line: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_criuctl"))
        .args(line)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The DUMP that is sent for these options.
fn dump_with(options: &[&str]) -> Message {
    let peer = Peer::service(dumping().answer_dump_ok()).unwrap();
    let (task, directory) = (Idle::start(), TempDir::new().unwrap());
    let target = format!("pid:{}", task.pid());
    let socket = peer.socket().to_str().unwrap().to_owned();
    let images = directory.path().to_str().unwrap();
    let mut line = vec!["--service", &socket, "checkpoint", &target, "-D", images];
    line.extend(options);
    let output = criuctl(&line);
    assert!(output.status.success(), "{options:?}: {}", stderr(&output));
    let transcript = peer.join();
    assert_eq!(transcript.problem, None, "{options:?}");
    transcript.message(Request::Dump).unwrap().clone()
}

fn a_page_server_is_named_in_either_form() {
    let place = |options: &[&str]| match dump_with(options).option("ps") {
        Some(Value::Bytes(bytes)) => Some(bytes.clone()),
        other => panic!("{options:?}: {other:?}"),
    };
    let runc = place(&["--page-server", "127.0.0.1:27"]);
    // Field 1 is the address, field 2 the port.
    assert_eq!(runc.as_deref(), Some(&b"\x0a\x09127.0.0.1\x10\x1b"[..]));
    for criu in [
        &["--page-server", "--address", "127.0.0.1", "--port", "27"][..],
        &["--address=127.0.0.1", "--port=27", "--page-server"],
        &["--page-server=127.0.0.1:27"],
    ] {
        assert_eq!(place(criu), runc, "{criu:?}");
    }
    let lazy = place(&["--lazy-pages", "--port", "27"]).unwrap();
    assert!(lazy.ends_with(b"\x10\x1b"), "{lazy:?}");
    assert_eq!(
        place(&["--lazy-pages", "--address", "127.0.0.1", "--port", "27"]),
        runc
    );
}

fn a_page_server_without_a_place_is_wrong_usage() {
    for (options, parts) in [
        (
            &["--page-server"][..],
            &["host and a port", "--address"][..],
        ),
        (&["--page-server", "--port", "27"], &["host and a port"]),
        (&["--page-server", "--address", "h"], &["--port"]),
        (&["--port", "27"], &["add --page-server"]),
        (&["--lazy-pages"], &["--port PORT"]),
        (
            &["--page-server", "--address", "0.0.0.0", "--port", "1"],
            &["0.0.0.0", "name the one"],
        ),
        (
            &["--page-server", "--address", "h", "--port", "0"],
            &["1 to 65535"],
        ),
        (&["--page-server=h:1", "--port", "2"], &["does not go with"]),
        (&["--page-server=h:1", "--ps-socket", "3"], &["two places"]),
        (
            &["--page-server", "pid:1"],
            &["pid:1", "before --page-server"],
        ),
        (&["--cpu-cap=mmx"], &["mmx", "fpu"]),
    ] {
        let mut line = vec!["checkpoint", "pid:1", "-D", "/nonexistent"];
        line.extend(options);
        let output = criuctl(&line);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{options:?}: {said}");
        for part in parts {
            assert!(
                said.contains(part),
                "{options:?}: {part:?} is not in: {said}"
            );
        }
    }
}

fn control_groups_and_the_processor_have_a_default_value() {
    let mode = |options: &[&str]| dump_with(options).number("manage_cgroups_mode");
    let soft = mode(&["--manage-cgroups-mode", "soft"]);
    assert!(soft.is_some());
    assert_eq!(mode(&["--manage-cgroups"]), soft);
    assert_eq!(mode(&["--manage-cgroups=soft"]), soft);
    assert_eq!(
        mode(&["--manage-cgroups=full"]),
        mode(&["--manage-cgroups-mode=full"])
    );
    assert_eq!(mode(&[]), None);
    assert_eq!(dump_with(&["--cpu-cap"]).number("cpu_cap"), Some(7));
    assert_eq!(dump_with(&["--cpu-cap=ins"]).number("cpu_cap"), Some(4));
}

fn seconds_without_a_unit_are_told_both_time_limits() {
    let output = criuctl(&["checkpoint", "pid:1", "-D", "x", "--timeout", "10"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2));
    for part in ["'10'", "10s", "--timeout", "--freeze-timeout 10s"] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    let help = String::from_utf8(criuctl(&["checkpoint", "--help"]).stdout).unwrap();
    assert!(help.contains("criu --timeout") && help.contains("checkpoint --freeze-timeout"));
}
