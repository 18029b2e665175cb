//! Whether a client's message is the one that was recorded.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::Compare;
use super::outcome::Difference;
use super::parts::Head;
use crate::interpose::shape;
use crate::rpc::view::{CRIU_REQ, view};
use crate::testing::Request;

/// Options whose value is the number of a descriptor.
const DESCRIPTORS: [&str; 4] = [
    "opts.images_dir_fd",
    "opts.work_dir_fd",
    "opts.status_fd",
    "opts.pidfd_store_sk",
];

/// What stands before a number that the kernel gave, in `external` and as the key of an `inherit_fd`.
const NUMBERED: [&str; 7] = [
    "net[", "pid[", "unix[", "file[", "tty[", "pipe:[", "socket:[",
];

/// What of a message is the same in every run.
struct Constant {
    masked: bool,
}

/// `None`: it is the same.
pub(super) fn departs(
    recorded: &[u8],
    came: &[u8],
    compare: Compare,
    masked: bool,
) -> Option<Vec<Difference>> {
    let (expected, got) = (Head::of(recorded), Head::of(came));
    let is_reply = expected.is(Request::Notify);
    let same_step = expected.kind == got.kind && (!is_reply || expected.accepted == got.accepted);
    if !same_step {
        return Some(Vec::new());
    }
    if compare == Compare::Sequence {
        return None;
    }
    let (Ok(expected), Ok(got)) = (view(recorded, &CRIU_REQ), view(came, &CRIU_REQ)) else {
        // A mask leaves out what it cannot take apart.
        let same = recorded == came || (masked && recorded.is_empty());
        return (!same).then(Vec::new);
    };
    let differences = differences(flat(expected), flat(got), &Constant { masked });
    (!differences.is_empty()).then_some(differences)
}

/// The options beside the fields around them.
fn flat(mut message: Map<String, Value>) -> Map<String, Value> {
    if message.get("type") == Some(&json!("NOTIFY")) {
        // As CRIU reads it.
        message.entry("notify_success").or_insert(json!(false));
    }
    match message.remove("opts") {
        Some(Value::Object(opts)) => {
            if opts.is_empty() {
                // Not the same as no options at all.
                message.insert("opts".into(), json!({}));
            }
            let named = opts
                .into_iter()
                .map(|(name, value)| (format!("opts.{name}"), value));
            message.extend(named);
        }
        Some(other) => {
            message.insert("opts".into(), other);
        }
        None => {}
    }
    message
}

fn differences(
    mut expected: Map<String, Value>,
    mut got: Map<String, Value>,
    constant: &Constant,
) -> Vec<Difference> {
    let names: BTreeSet<String> = expected.keys().chain(got.keys()).cloned().collect();
    names
        .into_iter()
        .filter_map(|name| {
            let (expected, got) = (expected.remove(&name), got.remove(&name));
            let of = |value: &Option<Value>| {
                value
                    .as_ref()
                    .map(|value| constant.field(&name, value.clone()))
            };
            (of(&expected) != of(&got)).then_some(Difference {
                name,
                expected,
                got,
            })
        })
        .collect()
}

impl Constant {
    fn field(&self, name: &str, mut value: Value) -> Value {
        match name {
            name if DESCRIPTORS.contains(&name) => return descriptor(value),
            "opts.pid" | "pid" => return json!("a pid"),
            "opts.ps" => {
                if let Some(fd) = value.get_mut("fd") {
                    *fd = descriptor(fd.take());
                }
            }
            "opts.inherit_fd" => {
                for inherited in value.as_array_mut().into_iter().flatten() {
                    if let Some(fd) = inherited.get_mut("fd") {
                        *fd = descriptor(fd.take());
                    }
                    if let Some(Value::String(key)) = inherited.get_mut("key") {
                        *key = without_number(key);
                    }
                }
            }
            "opts.external" => {
                for external in value.as_array_mut().into_iter().flatten() {
                    if let Value::String(text) = external {
                        *text = without_number(text);
                    }
                }
            }
            _ => {}
        }
        if self.masked {
            unmask(&mut value);
        }
        value
    }
}

/// -1 is none, and stays.
fn descriptor(value: Value) -> Value {
    match value.as_i64() {
        Some(0..) => json!("a descriptor"),
        _ => value,
    }
}

fn without_number(text: &str) -> String {
    let numbered = NUMBERED
        .iter()
        .find_map(|kind| Some((kind, text.strip_prefix(kind)?)));
    match numbered.and_then(|(kind, rest)| Some((kind, rest.split_once(']')?))) {
        Some((kind, (number, rest)))
            if number.bytes().all(|c| c.is_ascii_hexdigit() || c == b':') =>
        {
            format!("{kind}]{rest}")
        }
        _ => text.to_owned(),
    }
}

fn unmask(value: &mut Value) {
    match value {
        Value::String(text) => *text = shape(text),
        Value::Array(values) => values.iter_mut().for_each(unmask),
        Value::Object(values) => values.values_mut().for_each(unmask),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interpose::Mask;
    use crate::interpose::recording::{Entry, Event, Side};
    use crate::rpc::fields;
    use crate::rpc::wire::{CriuOpts, CriuPageServerInfo, CriuReq, CriuReqType, InheritFd};
    use prost::Message as _;

    fn dump(change: impl FnOnce(&mut CriuOpts)) -> Vec<u8> {
        let mut opts = CriuOpts {
            images_dir_fd: 4,
            pid: Some(4711),
            root: Some("/srv/web/root".into()),
            external: vec![
                "mnt[/data]:/srv/data".into(),
                "net[4026531840]:outer".into(),
            ],
            inherit_fd: vec![InheritFd {
                key: "pipe:[4711]".into(),
                fd: 0,
            }],
            ps: Some(CriuPageServerInfo {
                port: Some(27),
                fd: Some(7),
                ..Default::default()
            }),
            ..Default::default()
        };
        change(&mut opts);
        CriuReq {
            r#type: CriuReqType::Dump.into(),
            opts: Some(opts),
            ..Default::default()
        }
        .encode_to_vec()
    }

    fn names(recorded: &[u8], came: &[u8], masked: bool) -> Vec<String> {
        let differences = departs(recorded, came, Compare::Strict, masked).unwrap_or_default();
        differences.into_iter().map(|one| one.name).collect()
    }

    #[test]
    fn what_differs_between_runs_is_no_difference() {
        let came = dump(|opts| {
            opts.images_dir_fd = 9;
            opts.pid = Some(1);
            opts.external[1] = "net[1]:outer".into();
            opts.inherit_fd[0] = InheritFd {
                key: "pipe:[1]".into(),
                fd: 1,
            };
            opts.ps.get_or_insert_default().fd = Some(1);
        });
        assert_eq!(departs(&dump(|_| ()), &came, Compare::Strict, false), None);
    }

    #[test]
    fn every_other_difference_is_named_with_both_values() {
        type Change = fn(&mut CriuOpts);
        let changes: [(&str, Change); 9] = [
            ("opts.images_dir_fd", |opts| opts.images_dir_fd = -1),
            ("opts.pid", |opts| opts.pid = None),
            ("opts.root", |opts| opts.root = Some("/srv/web".into())),
            ("opts.external", |opts| {
                opts.external[1] = "net[1]:inner".into()
            }),
            ("opts.external", |opts| opts.external.reverse()),
            ("opts.inherit_fd", |opts| {
                opts.inherit_fd[0].key = "socket:[1]".into()
            }),
            ("opts.ps", |opts| {
                opts.ps.get_or_insert_default().port = None
            }),
            ("opts.leave_running", |opts| {
                opts.leave_running = Some(false)
            }),
            ("opts.work_dir_fd", |opts| opts.work_dir_fd = Some(4)),
        ];
        for (name, change) in changes {
            assert_eq!(names(&dump(|_| ()), &dump(change), false), [name]);
        }
        let recorded = dump(|opts| opts.leave_running = Some(true));
        let differences = departs(&recorded, &dump(|_| ()), Compare::Strict, false).unwrap();
        assert_eq!(differences[0].expected, Some(json!(true)));
        assert_eq!(differences[0].got, None);
        assert_eq!(
            departs(&recorded, &dump(|_| ()), Compare::Sequence, false),
            None
        );
    }

    #[test]
    fn fields_of_a_newer_criu_are_compared_too() {
        let with = |value| {
            let mut message = dump(|_| ());
            fields::put_number(&mut message, 99, value);
            message
        };
        assert_eq!(names(&with(1), &with(1), false), [""; 0]);
        assert_eq!(names(&with(1), &with(2), false), ["#99"]);
    }

    #[test]
    fn requests_without_options_and_with_none_set_are_two_things() {
        let mut none = Vec::new();
        fields::put_number(&mut none, 1, 3);
        let mut empty = none.clone();
        fields::put_bytes(&mut empty, 2, &[]);
        assert_eq!(names(&none, &empty, false), ["opts"]);
    }

    #[test]
    fn replies_and_nonsense() {
        let reply = |success| {
            CriuReq {
                r#type: CriuReqType::Notify.into(),
                notify_success: success,
                ..Default::default()
            }
            .encode_to_vec()
        };
        for compare in [Compare::Strict, Compare::Sequence] {
            let departs = |recorded: &[u8], came: &[u8]| departs(recorded, came, compare, false);
            assert_eq!(departs(&reply(Some(false)), &reply(None)), None);
            assert!(departs(&reply(Some(true)), &reply(None)).is_some());
            assert!(departs(&reply(Some(true)), &dump(|_| ())).is_some());
            assert_eq!(departs(b"\x0b", b"\x0b"), None);
        }
        assert!(departs(b"\x0b", b"\x0c", Compare::Strict, false).is_some());
        assert!(departs(b"", b"\x0c", Compare::Strict, true).is_none());
    }

    #[test]
    fn a_masked_path_matches_one_of_as_many_parts() {
        let masked = |bytes: Vec<u8>| {
            let entry = Mask::with_salt(3).entry(Entry {
                session: 1,
                at: 0,
                event: Event::Message {
                    from: Side::Engine,
                    bytes,
                    view: Map::new(),
                    fds: Vec::new(),
                },
            });
            match entry.event {
                Event::Message { bytes, .. } => bytes,
                other => panic!("{other:?}"),
            }
        };
        let recorded = masked(dump(|_| ()));
        assert_eq!(names(&recorded, &dump(|_| ()), true), [""; 0]);
        let other = dump(|opts| opts.root = Some("/run/other/place".into()));
        assert_eq!(names(&recorded, &other, true), [""; 0]);
        let shorter = dump(|opts| opts.root = Some("/run/other".into()));
        assert_eq!(names(&recorded, &shorter, true), ["opts.root"]);
        let relative = dump(|opts| opts.external[0] = "mnt[data]:/srv/data".into());
        assert_eq!(names(&recorded, &relative, true), ["opts.external"]);
        let plain = dump(|opts| opts.external[1] = "net[1]:inner".into());
        assert_eq!(names(&recorded, &plain, true), ["opts.external"]);
    }
}
