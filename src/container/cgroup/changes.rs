//! Limits that were changed after a container's creation: runtimes set them, and forget them with the control groups.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::UNIFIED;
use super::limits::{Setting, settings_v1, settings_v2, write};
use super::properties::bits;
use crate::container::oci::Resources;

/// By controller the files of a group, and what is in them.
pub(crate) type Changes = BTreeMap<String, BTreeMap<String, String>>;

/// What version 1 shows for no limit of memory: as many bytes as whole pages make up.
const UNLIMITED: u64 = 9_223_372_036_854_771_712;

/// The files that runtimes can update: hierarchy, name, and what is in a group's that nobody has set.
const FILES_V1: [(&str, &str, &str); 9] = [
    ("memory", "memory.limit_in_bytes", "-1"),
    ("memory", "memory.memsw.limit_in_bytes", "-1"),
    ("memory", "memory.soft_limit_in_bytes", "-1"),
    ("cpu", "cpu.shares", "1024"),
    ("cpu", "cpu.cfs_period_us", "100000"),
    ("cpu", "cpu.cfs_quota_us", "-1"),
    ("cpuset", "cpuset.cpus", INHERITED),
    ("cpuset", "cpuset.mems", INHERITED),
    ("pids", "pids.max", "max"),
];
const FILES_V2: [(&str, &str, &str); 10] = [
    (UNIFIED, "memory.max", "max"),
    (UNIFIED, "memory.swap.max", "max"),
    (UNIFIED, "memory.high", "max"),
    (UNIFIED, "memory.low", "0"),
    (UNIFIED, "cpu.max", "max 100000"),
    (UNIFIED, "cpu.weight", "100"),
    (UNIFIED, "cpuset.cpus", ""),
    (UNIFIED, "cpuset.mems", ""),
    (UNIFIED, "pids.max", "max"),
    (UNIFIED, "io.weight", "default 100"),
];
/// What is in the group above.
const INHERITED: &str = "inherited";

/// The limits of a container's groups that are not as its configuration has them.
pub(crate) fn of(groups: &BTreeMap<String, PathBuf>, configured: &Resources) -> Changes {
    let (files, settings) = match groups.keys().any(|controller| !controller.is_empty()) {
        true => (&FILES_V1[..], settings_v1(configured)),
        false => (&FILES_V2[..], settings_v2(configured)),
    };
    let mut changes = Changes::new();
    for (controller, file, unset) in files {
        let Some(group) = groups.get(*controller) else {
            continue;
        };
        // A kernel or a group without it has no such limit.
        let Ok(found) = fs::read_to_string(group.join(file)) else {
            continue;
        };
        let wanted = settings.iter().rev().find(|setting| setting.file == *file);
        let wanted = match wanted {
            Some(Setting { value, .. }) => value.clone(),
            None if *unset == INHERITED => above(group, file),
            None => (*unset).to_owned(),
        };
        if !same(file, &wanted, found.trim()) {
            let of_controller = changes.entry((*controller).to_owned()).or_default();
            of_controller.insert((*file).to_owned(), found.trim().to_owned());
        }
    }
    changes
}

fn above(group: &Path, file: &str) -> String {
    let parent = group.parent().map(|parent| parent.join(file));
    parent
        .and_then(|path| fs::read_to_string(path).ok())
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Whether a file shows what was written to it.
fn same(file: &str, wanted: &str, found: &str) -> bool {
    if file.starts_with("cpuset.") {
        return bits(wanted) == bits(found);
    }
    let page = match file.starts_with("memory.") {
        true => u64::try_from(rustix::param::page_size()).unwrap_or(4096),
        false => 1,
    };
    let amount = |text: &str| match text {
        "max" | "-1" => Some(UNLIMITED / page),
        text => text
            .parse::<u64>()
            .ok()
            .map(|bytes| bytes.min(UNLIMITED) / page),
    };
    let plain = |text: &str| text.strip_prefix("default ").unwrap_or(text).to_owned();
    let (wanted, found) = (plain(wanted), plain(found));
    wanted == found || amount(&wanted).is_some_and(|wanted| Some(wanted) == amount(&found))
}

/// Sets what was changed, in groups that have what the configuration says. Returns what could not be set, in words.
pub(crate) fn apply(groups: &BTreeMap<String, PathBuf>, changes: &Changes) -> Vec<String> {
    let mut remaining: Vec<(PathBuf, &str)> = changes
        .iter()
        .filter_map(|(controller, files)| Some((groups.get(controller)?, files)))
        .flat_map(|(group, files)| {
            files
                .iter()
                .map(|(file, value)| (group.join(file), value.as_str()))
        })
        .collect();
    let mut failed: Vec<io::Error> = Vec::new();
    // One limit may have to make room for another first.
    for _ in 0..2 {
        failed.clear();
        remaining.retain(|(path, value)| match write(path, value) {
            Ok(()) => false,
            Err(error) => {
                failed.push(error);
                true
            }
        });
    }
    let words = remaining.iter().zip(&failed);
    words
        .map(|((path, value), error)| {
            format!(
                "{} is not {value}, as it was when the container was checkpointed: {error}",
                path.display()
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (file, content) in files {
            fs::write(directory.path().join(file), content).unwrap();
        }
        directory
    }

    #[test]
    fn what_a_configuration_sets_is_no_change() {
        let configured: Resources = serde_json::from_str(
            r#"{"memory":{"limit":200000000,"swap":-1},"cpu":{"shares":512,"cpus":"0,1"},"pids":{"limit":50}}"#,
        )
        .unwrap();
        let files = [
            ("memory.max", "199999488\n"),
            ("memory.swap.max", "max\n"),
            ("memory.low", "0\n"),
            ("cpu.weight", "20\n"),
            ("cpu.max", "max 100000\n"),
            ("cpuset.cpus", "0-1\n"),
            ("pids.max", "50\n"),
        ];
        let directory = group(&files);
        let groups = BTreeMap::from([(String::new(), directory.path().to_owned())]);
        assert_eq!(of(&groups, &configured), Changes::new());
        fs::write(directory.path().join("pids.max"), "60\n").unwrap();
        fs::write(directory.path().join("memory.max"), "max\n").unwrap();
        fs::write(directory.path().join("cpu.max"), "50000 100000\n").unwrap();
        let changed = of(&groups, &configured);
        let expected = [
            ("cpu.max", "50000 100000"),
            ("memory.max", "max"),
            ("pids.max", "60"),
        ];
        assert_eq!(
            changed[UNIFIED]
                .iter()
                .map(|(file, value)| (file.as_str(), value.as_str()))
                .collect::<Vec<_>>(),
            expected
        );
    }

    #[test]
    fn version_1_is_looked_at_by_hierarchy() {
        let memory = group(&[
            ("memory.limit_in_bytes", "9223372036854771712"),
            ("memory.soft_limit_in_bytes", "4096"),
        ]);
        let cpuset = group(&[("cpuset.cpus", "0-3")]);
        fs::create_dir(cpuset.path().join("box")).unwrap();
        fs::write(cpuset.path().join("box/cpuset.cpus"), "0-3").unwrap();
        let groups = BTreeMap::from([
            ("memory".to_owned(), memory.path().to_owned()),
            ("cpuset".to_owned(), cpuset.path().join("box")),
        ]);
        let changed = of(&groups, &Resources::default());
        let soft = BTreeMap::from([("memory.soft_limit_in_bytes".into(), "4096".into())]);
        assert_eq!(changed, Changes::from([("memory".to_owned(), soft)]));
        fs::write(memory.path().join("memory.soft_limit_in_bytes"), "0").unwrap();
        assert!(apply(&groups, &changed).is_empty());
        let written = fs::read_to_string(memory.path().join("memory.soft_limit_in_bytes"));
        assert_eq!(written.unwrap(), "4096");
        let nowhere = BTreeMap::from([("memory".to_owned(), PathBuf::from("/nonexistent"))]);
        let words = apply(&nowhere, &changed);
        assert!(
            words.len() == 1 && words[0].contains("soft_limit"),
            "{words:?}"
        );
    }
}
