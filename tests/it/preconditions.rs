//! What is found out before CRIU is asked tells its cause as CRIU's own failures do.

use std::fs;

use libtest_mimic::Trial;

use crate::cli::criuctl;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        Trial::test("preconditions::a_directory_without_a_checkpoint", || {
            a_directory_without_a_checkpoint();
            Ok(())
        }),
        Trial::test("preconditions::images_that_are_none_or_not_whole", || {
            images_that_are_none_or_not_whole();
            Ok(())
        }),
    ]
}

fn restored(images: &std::path::Path, format: &str) -> std::process::Output {
    criuctl(&["--criu", "/bin/true", "--format", format])
        .args(["restore", "--detach", "--image-path"])
        .arg(images)
        .output()
        .unwrap()
}

fn demands(images: &std::path::Path, code: &str, hint: &str) {
    let output = restored(images, "json");
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["code"], "input", "{document:#}");
    let diagnosis = &document["findings"]["diagnosis"];
    assert_eq!(diagnosis["code"], code, "{document:#}");
    let text = String::from_utf8(restored(images, "human").stderr).unwrap();
    let summary = diagnosis["summary"].as_str().unwrap();
    assert!(text.contains(&format!("cause: {summary}\n")), "{text}");
    assert!(text.contains("hint: ") && text.contains(hint), "{text}");
}

fn a_directory_without_a_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    demands(
        directory.path(),
        "no-checkpoint-here",
        "Check the directory",
    );
}

fn images_that_are_none_or_not_whole() {
    let directory = tempfile::tempdir().unwrap();
    // The magic number, and a version of the format.
    let inventory = b"\x16\x31\x31\x58\x02\0\0\0\x08\x02";
    fs::write(directory.path().join("inventory.img"), inventory).unwrap();
    let pstree = directory.path().join("pstree.img");
    demands(
        directory.path(),
        "image-missing",
        "Copy the checkpoint again",
    );
    fs::write(&pstree, "").unwrap();
    demands(directory.path(), "image-empty", "Copy the checkpoint again");
    fs::write(&pstree, "PK\x03\x04 is an archive").unwrap();
    demands(directory.path(), "image-not-criu", "Copy the file again");
    // Both magic numbers, and a size of what does not follow.
    fs::write(&pstree, b"\x19\x43\x56\x54\x30\x30\x27\x50\x10\0\0\0").unwrap();
    demands(
        directory.path(),
        "image-truncated",
        "Copy the checkpoint again",
    );
}
