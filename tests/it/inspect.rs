//! `criuctl inspect` as those who call it see it, on recorded archives.

use libtest_mimic::Trial;

use crate::cli::{document, fails, run, stderr, stdout};

const ARCHIVE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/data/archives/podman-runc.tar.zstd"
);

/// The tests by name; one that is not listed is dead code.
pub(crate) fn tests() -> Vec<Trial> {
    macro_rules! trials {
        ($($name:ident),* $(,)?) => {
            vec![$(Trial::test(concat!("inspect::", stringify!($name)), || {
                $name();
                Ok(())
            })),*]
        };
    }
    trials![
        everything_is_shown_as_tables,
        everything_is_one_document,
        memory_is_searched_and_shown,
        what_is_good_is_told_by_the_exit_status,
        what_makes_no_sense_is_refused,
    ]
}

fn everything_is_shown_as_tables() {
    let output = run(&["inspect", ARCHIVE, "--all"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    for part in [
        "Container     inspected",
        "Engine        Podman",
        "compression zstd",
        "\n├─ ",
        "sleep 5000",
        "INSPECTED=by criuctl",
        "/tmp/line",
        "LISTEN",
        "[::]:8080",
        "overlay",
        "host name",
        "cgroup.procs",
        "IN IMAGES",
        "frozen",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    assert_eq!(stderr(&output), "");
}

fn everything_is_one_document() {
    let found = document(&run(&["inspect", ARCHIVE, "--all", "--format", "json"]));
    assert_eq!(found["kind"], "Inspection");
    assert_eq!(found["summary"]["container"], "inspected");
    assert_eq!(found["summary"]["compression"], "zstd");
    assert_eq!(found["processes"].as_array().unwrap().len(), 4);
    assert_eq!(found["problems"], serde_json::json!([]));
    // What nobody has asked for is null.
    let found = document(&run(&["inspect", ARCHIVE, "--format", "json"]));
    assert!(found["processes"].is_null() && found["memory"].is_null());
    let found = document(&run(&[
        "inspect", ARCHIVE, "--memory", "--pid", "1", "--format", "json",
    ]));
    assert_eq!(found["memory"].as_array().unwrap().len(), 1);
}

fn memory_is_searched_and_shown() {
    let memory = ["inspect", ARCHIVE, "--memory", "--pid", "1"];
    let output = run(&[memory.as_slice(), &["--search", "INSPECTED=by"]].concat());
    assert!(
        stdout(&output).ends_with("1 match\n"),
        "{}",
        stdout(&output)
    );
    let found = document(&run(&[
        memory.as_slice(),
        &["--search", "INSPECTED=by", "--format", "json"],
    ]
    .concat()));
    let address = found["matches"][0]["address"].as_u64().unwrap();
    let range = format!("{address:#x}-{:#x}", address + 12);
    let output = run(&[memory.as_slice(), &["--hex", &range]].concat());
    assert!(
        stdout(&output).ends_with("|INSPECTED=by|\n"),
        "{}",
        stdout(&output)
    );
    let whole = stdout(&run(&[memory.as_slice(), &["--hex"]].concat()));
    assert!(whole.lines().count() > 100);
}

fn what_is_good_is_told_by_the_exit_status() {
    let output = run(&["inspect", ARCHIVE, "--verify"]);
    assert!(output.status.success());
    assert!(stdout(&output).starts_with("good: "), "{}", stdout(&output));
    // Images of which only some are there.
    let images = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/images/criu-4.2.1");
    let output = run(&["inspect", images, "--verify"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stdout(&output).contains("core-8806.img: is missing"),
        "{}",
        stdout(&output)
    );
    let found = document(&run(&["inspect", images, "--verify", "--format", "json"]));
    assert_eq!(
        (&found["kind"], &found["good"]),
        (&"Verification".into(), &false.into())
    );
}

fn what_makes_no_sense_is_refused() {
    fails(
        &["inspect", "/nowhere"],
        2,
        &["/nowhere cannot be inspected", "No such file"],
    );
    fails(
        &["inspect", "/proc/self/status"],
        2,
        &["cannot be inspected"],
    );
    fails(&["inspect", ARCHIVE, "--pid", "1"], 2, &["--pid needs"]);
    fails(
        &["inspect", ARCHIVE, "--ps-tree", "--pid", "77"],
        2,
        &["--pid 77", "--ps-tree"],
    );
    fails(
        &["inspect", ARCHIVE, "--memory", "--search", "x"],
        2,
        &["--pid"],
    );
    fails(
        &["inspect", ARCHIVE, "--memory", "--pid", "1", "--hex", "2-1"],
        2,
        &["two addresses"],
    );
    fails(
        &[
            "inspect", ARCHIVE, "--memory", "--pid", "77", "--search", "x",
        ],
        2,
        &["no process 77"],
    );
    fails(&["inspect", ARCHIVE, "--verify", "--all"], 2, &["--all"]);
}
