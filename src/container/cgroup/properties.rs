//! The limits of a container as systemd's properties of its scope: what systemd is not told of, it may set back to what it
//! knows.

use std::collections::BTreeMap;

use super::changes::Changes;
use super::limits::{Setting, settings_v1, settings_v2};
use crate::container::oci::{DeviceRule, Resources};

/// What a container's creator wants systemd to be told, whatever runtime it has: `org.systemd.property.NAME`.
const ANNOTATION: &str = "org.systemd.property.";

/// A property's value, of one of D-Bus's types.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Text(String),
    Flag(bool),
    Number(u64),
    Signed(i64),
    Short(u32),
    ShortSigned(i32),
    Bytes(Vec<u8>),
    Texts(Vec<String>),
    Pids(Vec<u32>),
    /// Devices, and what may be done with them.
    Devices(Vec<(String, String)>),
}

/// A property and its value.
pub(crate) type Property = (String, Value);

fn number(name: &str, value: u64) -> Property {
    (name.to_owned(), Value::Number(value))
}

/// The properties that stand for a container's limits, and what has none, in words.
///
/// `changes` are limits of version 1 that win over these.
pub(crate) fn of_limits(
    limits: &Resources,
    unified: bool,
    changes: &Changes,
) -> (Vec<Property>, Vec<String>) {
    let (mut properties, notes) = devices(&limits.devices);
    let settings = match unified {
        true => settings_v2(limits),
        false => settings_v1(limits),
    };
    let mut quota = (None, None);
    let set = settings
        .iter()
        .map(|Setting { file, value, .. }| (file.as_str(), value.as_str()));
    let changed = changes.values().flatten();
    let changed = changed.map(|(file, value)| (file.as_str(), value.as_str()));
    for (file, value) in set.chain(changed) {
        match file {
            "cpu.cfs_quota_us" => quota.0 = value.parse().ok(),
            "cpu.cfs_period_us" => quota.1 = value.parse().ok(),
            "cpu.max" => {
                let mut words = value.split_whitespace();
                // Without a number there is none.
                quota.0 = words.next().map(|word| word.parse().unwrap_or(-1));
                quota.1 = words.next().and_then(|word| word.parse().ok());
            }
            _ => properties.extend(of_file(file, value)),
        }
    }
    properties.extend(of_quota(quota.0, quota.1));
    (properties, notes)
}

fn of_file(file: &str, value: &str) -> Option<Property> {
    let name = match file {
        "cpuset.cpus" => return Some(("AllowedCPUs".into(), Value::Bytes(bits(value)?))),
        "cpuset.mems" => return Some(("AllowedMemoryNodes".into(), Value::Bytes(bits(value)?))),
        "memory.max" => "MemoryMax",
        "memory.high" => "MemoryHigh",
        "memory.low" => "MemoryLow",
        "memory.min" => "MemoryMin",
        "memory.swap.max" => "MemorySwapMax",
        "memory.zswap.max" => "MemoryZSwapMax",
        "cpu.weight" => "CPUWeight",
        "pids.max" => "TasksMax",
        "io.weight" => "IOWeight",
        "memory.limit_in_bytes" => "MemoryLimit",
        "cpu.shares" => "CPUShares",
        "blkio.weight" => "BlockIOWeight",
        _ => return None,
    };
    match value.strip_prefix("default ").unwrap_or(value) {
        // Version 1 has -1 for it.
        "max" | "-1" => Some(number(name, u64::MAX)),
        value => value.parse().ok().map(|value| number(name, value)),
    }
}

/// Processor time as systemd counts it: in a second, and in steps of 10 ms.
fn of_quota(quota: Option<i64>, period: Option<u64>) -> Vec<Property> {
    const STEP: u64 = 10_000;
    const USUAL_PERIOD: u64 = 100_000;
    let mut properties = Vec::new();
    if let Some(period) = period {
        properties.push(number("CPUQuotaPeriodUSec", period));
    }
    if let Some(quota) = quota {
        let period = period.unwrap_or(USUAL_PERIOD).max(1);
        let in_a_second = match u64::try_from(quota) {
            Ok(quota @ 1..) => {
                let whole = quota.saturating_mul(1_000_000) / period;
                whole.div_ceil(STEP).saturating_mul(STEP)
            }
            _ => u64::MAX,
        };
        properties.push(number("CPUQuotaPerSecUSec", in_a_second));
    }
    properties
}

/// A list such as `0-2,7` as bits, the lowest first. `None`: it is no such list.
pub(super) fn bits(list: &str) -> Option<Vec<u8>> {
    /// More than any kernel has.
    const MOST: usize = 1 << 16;
    let mut bytes: Vec<u8> = Vec::new();
    for part in list.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if last >= MOST {
            return None;
        }
        for bit in first..=last {
            if bytes.len() <= bit / 8 {
                bytes.resize(bit / 8 + 1, 0);
            }
            if let Some(byte) = bytes.get_mut(bit / 8) {
                *byte |= 1 << (bit % 8);
            }
        }
    }
    Some(bytes)
}

/// systemd has a list of what is allowed, and no rules against single devices.
fn devices(rules: &[DeviceRule]) -> (Vec<Property>, Vec<String>) {
    let mut notes = Vec::new();
    // `None`: everything is.
    let mut allowed: Option<Vec<(String, String)>> = None;
    let any = |number: Option<i64>| number.is_none_or(|number| number < 0);
    for rule in rules {
        let everything = matches!(rule.kind.as_deref(), None | Some("" | "a"));
        if everything {
            allowed = match rule.allow {
                true => None,
                false => Some(Vec::new()),
            };
            continue;
        }
        let (kind, directory) = match rule.kind.as_deref() {
            Some("b") => ("block", "/dev/block"),
            _ => ("char", "/dev/char"),
        };
        let name = match (rule.major, rule.minor) {
            (Some(major), Some(minor)) if major >= 0 && minor >= 0 => {
                format!("{directory}/{major}:{minor}")
            }
            (Some(major), minor) if major >= 0 && any(minor) => format!("{kind}-{major}"),
            _ => format!("{kind}-*"),
        };
        match (&mut allowed, rule.allow) {
            (Some(allowed), true) => allowed.push((name, rule.access.clone())),
            (Some(allowed), false) => {
                let before = allowed.len();
                allowed.retain(|(known, access)| *known != name || *access != rule.access);
                if allowed.len() == before {
                    notes.push(format!(
                        "the rule against {name} is not set: systemd knows only what is allowed"
                    ));
                }
            }
            (None, true) => {}
            (None, false) => notes.push(format!(
                "the rule against {name} is not set: systemd knows only what is allowed, and everything is"
            )),
        }
    }
    let properties = match allowed {
        None => Vec::new(),
        Some(allowed) => vec![
            ("DevicePolicy".into(), Value::Text("strict".into())),
            ("DeviceAllow".into(), Value::Devices(allowed)),
        ],
    };
    (properties, notes)
}

/// The properties that a container's annotations name, in the form in which GLib writes values as text. What is not
/// understood is told.
pub(crate) fn annotated(
    annotations: &BTreeMap<String, String>,
) -> Result<Vec<Property>, (String, String)> {
    let named = annotations
        .iter()
        .filter_map(|(key, text)| Some((key, key.strip_prefix(ANNOTATION)?, text)));
    named
        .map(|(key, name, text)| {
            of_text(name, text.trim()).ok_or_else(|| (key.clone(), text.clone()))
        })
        .collect()
}

fn of_text(name: &str, text: &str) -> Option<Property> {
    let value = value_of(text)?;
    // A time in seconds is one in microseconds to systemd.
    let Some(stem) = name.strip_suffix("Sec").filter(|_| !name.ends_with("USec")) else {
        return Some((name.to_owned(), value));
    };
    let seconds = match value {
        Value::Number(number) => number,
        Value::Short(number) => number.into(),
        Value::Signed(number) => number.try_into().ok()?,
        Value::ShortSigned(number) => number.try_into().ok()?,
        _ => return None,
    };
    Some(number(
        &format!("{stem}USec"),
        seconds.checked_mul(1_000_000)?,
    ))
}

fn value_of(text: &str) -> Option<Value> {
    if let Some(inner) = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        let texts = inner
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty());
        return texts.map(quoted).collect::<Option<_>>().map(Value::Texts);
    }
    let (kind, rest) = text.split_once(' ').unwrap_or(("", text));
    let rest = rest.trim();
    match kind {
        "uint64" => rest.parse().ok().map(Value::Number),
        "int64" => rest.parse().ok().map(Value::Signed),
        "uint32" => rest.parse().ok().map(Value::Short),
        "int32" => rest.parse().ok().map(Value::ShortSigned),
        _ => match text {
            "true" => Some(Value::Flag(true)),
            "false" => Some(Value::Flag(false)),
            _ => quoted(text)
                .map(Value::Text)
                .or_else(|| text.parse().ok().map(Value::ShortSigned)),
        },
    }
}

/// A text in quotes without any in it.
fn quoted(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|first| "'\"".contains(*first))?;
    let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
    (!inner.contains([quote, '\\'])).then(|| inner.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(json: &str) -> Resources {
        serde_json::from_str(json).unwrap()
    }

    fn get<'a>(properties: &'a [Property], name: &str) -> Option<&'a Value> {
        // As with systemd, the last one holds.
        let mut found = properties.iter().rev().filter(|(known, _)| known == name);
        found.next().map(|(_, value)| value)
    }

    /// The values that runc 1.1.15 and crun 1.21 were seen to send for the same configuration.
    #[test]
    fn limits_are_what_runtimes_tell_systemd() {
        let limits = limits(
            r#"{"memory":{"limit":200000000,"reservation":50000000,"swap":300000000},
                "cpu":{"shares":512,"quota":50000,"period":100000,"cpus":"0"},"pids":{"limit":100},
                "unified":{"memory.high":"150000000"}}"#,
        );
        let (properties, notes) = of_limits(&limits, true, &Changes::new());
        assert!(notes.is_empty(), "{notes:?}");
        for (name, value) in [
            ("MemoryMax", 200_000_000),
            ("MemoryLow", 50_000_000),
            ("MemorySwapMax", 100_000_000),
            ("MemoryHigh", 150_000_000),
            ("CPUWeight", 20),
            ("CPUQuotaPeriodUSec", 100_000),
            ("CPUQuotaPerSecUSec", 500_000),
            ("TasksMax", 100),
        ] {
            assert_eq!(
                get(&properties, name),
                Some(&Value::Number(value)),
                "{name}"
            );
        }
        assert_eq!(
            get(&properties, "AllowedCPUs"),
            Some(&Value::Bytes(vec![1]))
        );
        let (properties, _) = of_limits(&limits, false, &Changes::new());
        assert_eq!(
            get(&properties, "MemoryLimit"),
            Some(&Value::Number(200_000_000))
        );
        assert_eq!(get(&properties, "CPUShares"), Some(&Value::Number(512)));
        assert_eq!(
            get(&properties, "CPUQuotaPerSecUSec"),
            Some(&Value::Number(500_000))
        );
    }

    #[test]
    fn files_that_are_named_win_over_limits() {
        let limits = limits(
            r#"{"memory":{"limit":1000},"unified":{"memory.max":"max","cpu.max":"33333 100000","io.weight":"default 7"}}"#,
        );
        let (properties, _) = of_limits(&limits, true, &Changes::new());
        assert_eq!(
            get(&properties, "MemoryMax"),
            Some(&Value::Number(u64::MAX))
        );
        assert_eq!(get(&properties, "IOWeight"), Some(&Value::Number(7)));
        // Rounded up, so that it is not less than was wanted.
        assert_eq!(
            get(&properties, "CPUQuotaPerSecUSec"),
            Some(&Value::Number(340_000))
        );
        let (properties, _) = of_limits(
            &self::limits(r#"{"unified":{"cpu.max":"max 100000"}}"#),
            true,
            &Changes::new(),
        );
        assert_eq!(
            get(&properties, "CPUQuotaPerSecUSec"),
            Some(&Value::Number(u64::MAX))
        );
    }

    #[test]
    fn devices_are_those_that_are_allowed_at_last() {
        let of = |json: &str| devices(&limits(&format!(r#"{{"devices":{json}}}"#)).devices);
        assert_eq!(of("[]"), (vec![], vec![]));
        let (properties, notes) = of(
            r#"[{"allow":true,"type":"c","major":9,"minor":9,"access":"r"},{"allow":false,"access":"rwm"},
                {"allow":true,"type":"c","access":"m"},{"allow":true,"type":"c","major":136,"access":"rwm"},
                {"allow":true,"type":"b","major":8,"minor":0,"access":"r"},{"allow":true,"type":"c","major":1,"minor":3,"access":"rw"},
                {"allow":false,"type":"c","major":1,"minor":3,"access":"rw"}]"#,
        );
        assert!(notes.is_empty(), "{notes:?}");
        let text = |text: &str| text.to_owned();
        assert_eq!(
            properties,
            [
                (text("DevicePolicy"), Value::Text(text("strict"))),
                (
                    text("DeviceAllow"),
                    Value::Devices(vec![
                        (text("char-*"), text("m")),
                        (text("char-136"), text("rwm")),
                        (text("/dev/block/8:0"), text("r")),
                    ])
                ),
            ]
        );
        let (properties, notes) =
            of(r#"[{"allow":false,"type":"b","major":8,"minor":1,"access":"w"}]"#);
        assert!(properties.is_empty());
        assert!(notes[0].contains("/dev/block/8:1"), "{notes:?}");
    }

    #[test]
    fn processors_are_bits() {
        assert_eq!(bits("0-2,9"), Some(vec![0b111, 0b10]));
        assert_eq!(bits(""), Some(vec![]));
        for broken in ["x", "1-", "99999999"] {
            assert_eq!(bits(broken), None, "{broken}");
        }
    }

    #[test]
    fn annotations_are_properties() {
        let annotation =
            |name: &str, text: &str| BTreeMap::from([(format!("{ANNOTATION}{name}"), text.into())]);
        let of = |name: &str, text: &str| {
            annotated(&annotation(name, text)).map(|mut all| all.remove(0))
        };
        let property = |name: &str, value| Ok((name.to_owned(), value));
        assert_eq!(
            of("CollectMode", "'inactive-or-failed'"),
            property("CollectMode", Value::Text("inactive-or-failed".into()))
        );
        assert_eq!(
            of("TimeoutStopUSec", "uint64 5000000"),
            property("TimeoutStopUSec", Value::Number(5_000_000))
        );
        assert_eq!(
            of("TimeoutStopSec", "10"),
            property("TimeoutStopUSec", Value::Number(10_000_000))
        );
        assert_eq!(
            of("SendSIGHUP", "true"),
            property("SendSIGHUP", Value::Flag(true))
        );
        assert_eq!(
            of("After", "['a.service', \"b.service\"]"),
            property(
                "After",
                Value::Texts(vec!["a.service".into(), "b.service".into()])
            )
        );
        for broken in ["", "word", "'open", "uint64 x", "[word]", "'a\\'b'"] {
            let (key, text) = of("Name", broken).unwrap_err();
            assert_eq!(
                (key.as_str(), text.as_str()),
                ("org.systemd.property.Name", broken)
            );
        }
        let others = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        assert_eq!(annotated(&others), Ok(vec![]));
    }
}
