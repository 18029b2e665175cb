//! Requests held against one another, option by option.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::interpose::recording::Descriptor;

/// Options that name descriptors by their numbers.
const DESCRIPTORS: [&str; 4] = [
    "images_dir_fd",
    "work_dir_fd",
    "status_fd",
    "pidfd_store_sk",
];

/// An option that two requests do not have alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
pub struct Difference {
    /// The option under the protocol's name. One entry of an option that may be there several times has its key behind it, as
    /// `external[mnt[/etc/hosts]]` or `inherit_fd[pipe:[4711]]`.
    pub option: String,
    /// What the first request has.
    pub first: Option<String>,
    /// What the second has.
    pub second: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
        write!(
            f,
            "{}: {} | {}",
            self.option,
            shown(&self.first),
            shown(&self.second)
        )
    }
}

/// The options of a recorded request in the form of [`PlannedRequest::options`](super::PlannedRequest::options): with what a
/// descriptor is in the place of its number.
///
/// `view` is the message's, `fds` are its descriptors, both as in [`Event::Message`](crate::interpose::recording::Event::Message).
#[must_use]
pub fn options_sent(view: &Map<String, Value>, fds: &[Descriptor]) -> Map<String, Value> {
    let mut options = match view.get("opts") {
        Some(Value::Object(options)) => options.clone(),
        _ => Map::new(),
    };
    let target = |option: &str, number: &Value| {
        fds.iter()
            .find(|fd| {
                fd.option.as_deref() == Some(option) && number.as_i64() == fd.number.map(i64::from)
            })
            .and_then(|fd| fd.target.clone())
    };
    name_descriptors(&mut options, target);
    options
}

/// Puts what `target` says of each descriptor (of an option, with a number) in the place of its number.
pub(crate) fn name_descriptors(
    options: &mut Map<String, Value>,
    target: impl Fn(&str, &Value) -> Option<String>,
) {
    let name = |option: &str, number: &mut Value| {
        if let Some(target) = target(option, number) {
            *number = target.into();
        }
    };
    for option in DESCRIPTORS {
        if let Some(number) = options.get_mut(option) {
            name(option, number);
        }
    }
    if let Some(Value::Array(inherited)) = options.get_mut("inherit_fd") {
        for entry in inherited {
            if let Some(number) = entry.get_mut("fd") {
                name("inherit_fd", number);
            }
        }
    }
    if let Some(number) = options.get_mut("ps").and_then(|ps| ps.get_mut("fd")) {
        name("ps.fd", number);
    }
}

/// Compares the options of two requests. The two forms that CRIU has for an external mount (`ext_mnt` and `external`) are one,
/// as they are to it, and the order of what may be there several times does not count.
#[must_use]
pub fn differences(first: &Map<String, Value>, second: &Map<String, Value>) -> Vec<Difference> {
    let (first, second) = (flat(first), flat(second));
    let options: BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    let different = options.into_iter().filter_map(|option| {
        let (first, second) = (first.get(option), second.get(option));
        (first != second).then(|| Difference {
            option: option.clone(),
            first: first.cloned(),
            second: second.cloned(),
        })
    });
    different.collect()
}

/// One text per option, or per entry of an option that may be there several times.
fn flat(options: &Map<String, Value>) -> BTreeMap<String, String> {
    let mut flat = BTreeMap::new();
    for (option, value) in options {
        match value {
            Value::Array(entries) => {
                for entry in entries {
                    let (key, value) = keyed(option, entry);
                    flat.insert(key, value);
                }
            }
            Value::Object(members) => {
                for (member, value) in members {
                    flat.insert(format!("{option}.{member}"), plain(value));
                }
            }
            _ => {
                flat.insert(option.clone(), plain(value));
            }
        }
    }
    flat
}

fn keyed(option: &str, entry: &Value) -> (String, String) {
    let member = |name: &str| entry.get(name).map(plain);
    let of = |key: Option<String>, value: Option<String>| {
        Some((format!("{option}[{}]", key?), value.unwrap_or_default()))
    };
    let found = match option {
        "ext_mnt" => member("key").map(|key| {
            let value = member("val").unwrap_or_default();
            (format!("external[mnt[{key}]]"), value)
        }),
        "inherit_fd" => of(member("key"), member("fd")),
        "cg_root" => of(Some(member("ctrl").unwrap_or_default()), member("path")),
        "join_ns" => of(member("ns"), member("ns_file")),
        "veths" => of(member("if_in"), member("if_out")),
        "external" => entry.as_str().map(|text| match text.rsplit_once("]:") {
            Some((key, value)) => (format!("external[{key}]]"), value.to_owned()),
            None => (format!("external[{text}]"), String::new()),
        }),
        _ => None,
    };
    found.unwrap_or_else(|| (format!("{option}[{}]", plain(entry)), String::new()))
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn options(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn the_two_forms_of_an_external_mount_are_one() {
        let first = options(json!({
            "external": ["mnt[/a]:/a", "net[17]:extRootNetNS"],
            "log_level": 4,
        }));
        let second = options(json!({
            "external": ["net[17]:extRootNetNS"],
            "ext_mnt": [{"key": "/a", "val": "/b"}],
            "leave_running": false,
        }));
        let found: Vec<String> = differences(&first, &second)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            found,
            [
                "external[mnt[/a]]: /a | /b",
                "leave_running: - | false",
                "log_level: 4 | -",
            ]
        );
        assert!(differences(&first, &first).is_empty());
    }

    #[test]
    fn descriptors_are_what_they_are() {
        let view = options(json!({
            "type": "RESTORE",
            "opts": {
                "images_dir_fd": 7,
                "work_dir_fd": 9,
                "inherit_fd": [{"key": "pipe:[3]", "fd": 1}],
            },
        }));
        let fd = |option: &str, number, target: &str| Descriptor {
            option: Some(option.into()),
            number: Some(number),
            target: Some(target.into()),
        };
        let fds = [
            fd("images_dir_fd", 7, "/images"),
            fd("inherit_fd", 1, "pipe:[9]"),
        ];
        assert_eq!(
            Value::Object(options_sent(&view, &fds)),
            json!({
                "images_dir_fd": "/images",
                "work_dir_fd": 9,
                "inherit_fd": [{"key": "pipe:[3]", "fd": "pipe:[9]"}],
            })
        );
    }
}
