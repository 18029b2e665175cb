//! From an OCI configuration to the form in which runc keeps it in its record, for images that come without one.
//!
//! Only what runc reads again is made: keys with a zero value may be missing, since Go reads them as zero.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::limits::{cgroups, rule};
use super::record::namespace_name;
use crate::container::error::ErrorKind;
use crate::container::model::NamespaceKind;
use crate::container::oci::{Hook, IdMapping, Linux, Mount, Namespace, Process, Seccomp, Spec};

/// Mount options that set a flag of mount(2).
const FLAGS: [(&str, u64); 16] = [
    ("bind", 0x1000),
    ("dirsync", 0x80),
    ("iversion", 0x80_0000),
    ("lazytime", 0x200_0000),
    ("mand", 0x40),
    ("noatime", 0x400),
    ("nodev", 0x4),
    ("nodiratime", 0x800),
    ("noexec", 0x8),
    ("nosuid", 0x2),
    ("rbind", 0x5000),
    ("relatime", 0x20_0000),
    ("remount", 0x20),
    ("ro", 0x1),
    ("strictatime", 0x100_0000),
    ("sync", 0x10),
];

/// Mount options that clear one.
const CLEARED: [(&str, u64); 14] = [
    ("async", 0x10),
    ("atime", 0x400),
    ("defaults", 0),
    ("dev", 0x4),
    ("diratime", 0x800),
    ("exec", 0x8),
    ("noiversion", 0x80_0000),
    ("nolazytime", 0x200_0000),
    ("nomand", 0x40),
    ("norelatime", 0x20_0000),
    ("nostrictatime", 0x100_0000),
    ("rw", 0x1),
    ("suid", 0x2),
    ("loud", 0x8000),
];

/// How mounts propagate, as mount(2) has it.
const PROPAGATION: [(&str, u64); 8] = [
    ("private", 0x4_0000),
    ("rprivate", 0x4_4000),
    ("slave", 0x8_0000),
    ("rslave", 0x8_4000),
    ("shared", 0x10_0000),
    ("rshared", 0x10_4000),
    ("unbindable", 0x2_0000),
    ("runbindable", 0x2_4000),
];

/// Mount options for a whole tree of mounts: attributes of mount_setattr(2), and whether they are set.
const RECURSIVE: [(&str, u64, bool); 10] = [
    ("rro", 0x1, true),
    ("rrw", 0x1, false),
    ("rnosuid", 0x2, true),
    ("rsuid", 0x2, false),
    ("rnodev", 0x4, true),
    ("rdev", 0x4, false),
    ("rnoexec", 0x8, true),
    ("rexec", 0x8, false),
    ("rnodiratime", 0x80, true),
    ("rdiratime", 0x80, false),
];

/// Devices that every container has: path, major and minor number.
pub(super) const DEVICES: [(&str, i64, i64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/random", 1, 8),
    ("/dev/full", 1, 7),
    ("/dev/tty", 5, 0),
    ("/dev/zero", 1, 5),
    ("/dev/urandom", 1, 9),
];

/// What is made of the actions of system call filters.
const ACTIONS: [(&str, u32); 9] = [
    ("SCMP_ACT_KILL", 1),
    ("SCMP_ACT_ERRNO", 2),
    ("SCMP_ACT_TRAP", 3),
    ("SCMP_ACT_ALLOW", 4),
    ("SCMP_ACT_TRACE", 5),
    ("SCMP_ACT_LOG", 6),
    ("SCMP_ACT_NOTIFY", 7),
    ("SCMP_ACT_KILL_THREAD", 8),
    ("SCMP_ACT_KILL_PROCESS", 9),
];

/// And of their comparisons.
const OPERATORS: [(&str, u32); 7] = [
    ("SCMP_CMP_EQ", 1),
    ("SCMP_CMP_NE", 2),
    ("SCMP_CMP_GT", 3),
    ("SCMP_CMP_GE", 4),
    ("SCMP_CMP_LT", 5),
    ("SCMP_CMP_LE", 6),
    ("SCMP_CMP_MASKED_EQ", 7),
];

/// Architectures whose name is not just the one of the specification in small letters.
const ARCHITECTURES: [(&str, &str); 2] = [
    ("SCMP_ARCH_X86_64", "amd64"),
    ("SCMP_ARCH_AARCH64", "arm64"),
];

/// What is made of a configuration, and what could not be made of it.
pub(super) struct Converted {
    pub(super) config: Map<String, Value>,
    pub(super) notes: Vec<String>,
}

/// runc's form of `spec`, for a container named `id` of the bundle `bundle`.
pub(super) fn convert(
    spec: &Spec,
    bundle: &Path,
    rootfs: &Path,
    id: &str,
    systemd: bool,
) -> Result<Converted, ErrorKind> {
    let linux = spec.linux.clone().unwrap_or_default();
    let mut notes = Vec::new();
    if linux.intel_rdt.is_some() {
        notes.push("the container's Intel RDT settings are not restored".to_owned());
    }
    let kind = |namespace: &Namespace| {
        NamespaceKind::from_oci(&namespace.kind).ok_or_else(|| {
            let kind = &namespace.kind;
            ErrorKind::Unsupported(format!("a namespace of the unknown type {kind}"))
        })
    };
    let kinds = linux.namespaces.iter().map(kind);
    let kinds: Vec<NamespaceKind> = kinds.collect::<Result<_, _>>()?;
    let private_network = linux
        .namespaces
        .iter()
        .any(|namespace| namespace.kind == "network" && namespace.path.as_os_str().is_empty());
    let mut labels: Vec<String> = spec
        .annotations
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    labels.push(format!("bundle={}", bundle.display()));

    let mut config = object(json!({
        "rootfs": rootfs,
        "readonlyfs": spec.root.as_ref().is_some_and(|root| root.readonly),
        "mounts": spec.mounts.iter().map(|mount| convert_mount(mount, bundle)).collect::<Vec<_>>(),
        "devices": devices(&linux),
        "mount_label": linux.mount_label,
        "hostname": spec.hostname,
        "namespaces": linux.namespaces.iter().zip(&kinds)
            .map(|(namespace, kind)| json!({"type": namespace_name(*kind), "path": namespace.path}))
            .collect::<Vec<_>>(),
        "networks": private_network.then(|| json!([{"type": "loopback"}])),
        "cgroups": cgroups(&linux, id, systemd)?,
        "mask_paths": linux.masked_paths,
        "readonly_paths": linux.readonly_paths,
        "sysctl": linux.sysctl,
        "seccomp": linux.seccomp.as_ref().map(seccomp).transpose()?.flatten(),
        "Hooks": {
            "prestart": hooks(&spec.hooks.prestart),
            "createRuntime": hooks(&spec.hooks.create_runtime),
            "createContainer": hooks(&spec.hooks.create_container),
            "startContainer": hooks(&spec.hooks.start_container),
            "poststart": hooks(&spec.hooks.poststart),
            "poststop": hooks(&spec.hooks.poststop),
        },
        "version": spec.oci_version,
        "labels": labels,
    }));
    if !linux.rootfs_propagation.is_empty() {
        let flags = one_of(&PROPAGATION, &linux.rootfs_propagation, "rootfsPropagation")?;
        config.insert("rootPropagation".into(), json!(flags));
    }
    if kinds.contains(&NamespaceKind::User) {
        config.insert(
            "uid_mappings".into(),
            id_mappings(linux.uid_mappings.as_deref()),
        );
        config.insert(
            "gid_mappings".into(),
            id_mappings(linux.gid_mappings.as_deref()),
        );
        own_devices(&mut config, &linux);
    }
    if let Some(process) = &spec.process {
        of_process(&mut config, process);
    }
    for (key, value) in [("time_offsets", linux.time_offsets)] {
        if let Some(value) = value {
            config.insert(key.into(), value);
        }
    }
    if let Some(domain) = linux
        .personality
        .as_ref()
        .and_then(|personality| personality.get("domain"))
    {
        /// PER_LINUX32 of personality(2); PER_LINUX is zero.
        const LINUX32: u32 = 8;
        let domain = if domain == "LINUX32" { LINUX32 } else { 0 };
        config.insert("personality".into(), json!({"domain": domain}));
    }
    Ok(Converted { config, notes })
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn one_of<T: Copy>(table: &[(&str, T)], word: &str, key: &str) -> Result<T, ErrorKind> {
    table
        .iter()
        .find(|(known, _)| *known == word)
        .map(|(_, value)| *value)
        .ok_or_else(|| {
            ErrorKind::Unsupported(format!("{key} {word:?} of config.json is not known"))
        })
}

fn of_process(config: &mut Map<String, Value>, process: &Process) {
    config.insert("no_new_privileges".into(), json!(process.no_new_privileges));
    config.insert("umask".into(), json!(process.user.umask));
    if let Some(adjustment) = process.oom_score_adj {
        config.insert("oom_score_adj".into(), json!(adjustment));
    }
    if !process.selinux_label.is_empty() {
        config.insert("process_label".into(), json!(process.selinux_label));
    }
    if let Some(capabilities) = &process.capabilities {
        let sets = json!({
            "Bounding": capabilities.bounding,
            "Effective": capabilities.effective,
            "Inheritable": capabilities.inheritable,
            "Permitted": capabilities.permitted,
            "Ambient": capabilities.ambient,
        });
        config.insert("capabilities".into(), sets);
    }
}

fn convert_mount(mount: &Mount, bundle: &Path) -> Value {
    let mut flags = 0;
    let mut propagation = Vec::new();
    let (mut set, mut clear) = (0, 0);
    let mut extensions = 0;
    let mut data = Vec::new();
    for option in &mount.options {
        let option = option.as_str();
        let find = |table: &[(&str, u64)]| {
            table
                .iter()
                .find(|(known, _)| *known == option)
                .map(|(_, flag)| *flag)
        };
        if let Some(flag) = find(&FLAGS) {
            flags |= flag;
        } else if let Some(flag) = find(&CLEARED).filter(|flag| *flag != 0) {
            flags &= !flag;
        } else if let Some(flag) = find(&PROPAGATION) {
            propagation.push(flag);
        } else if let Some((_, attribute, on)) =
            RECURSIVE.iter().find(|(known, ..)| *known == option)
        {
            let (into, out_of) = if *on {
                (&mut set, &mut clear)
            } else {
                (&mut clear, &mut set)
            };
            *into |= attribute;
            *out_of &= !attribute;
        } else if option == "tmpcopyup" {
            extensions = 1;
        } else {
            data.push(option);
        }
    }
    let bind = mount.is_bind();
    let recursive = json!({"Attr_set": set, "Attr_clr": clear, "Propagation": 0, "Userns_fd": 0});
    json!({
        "source": if bind { bundle.join(&mount.source) } else { mount.source.clone() },
        "destination": mount.destination,
        "device": if bind { "bind" } else { mount.kind.as_str() },
        "flags": flags,
        "propagation_flags": (!propagation.is_empty()).then_some(propagation),
        "data": data.join(","),
        "rec_attr": (set | clear != 0).then_some(recursive),
        "extensions": extensions,
    })
}

/// The device files: the usual ones, unless the configuration has its own in their place, and those of the configuration.
fn devices(linux: &Linux) -> Vec<Value> {
    let own = |path: &str| {
        linux
            .devices
            .iter()
            .any(|device| device.path == Path::new(path))
    };
    let usual = DEVICES
        .into_iter()
        .filter(|(path, ..)| !own(path))
        .map(|(path, major, minor)| {
            let mut device = object(rule(b'c', Some(major), Some(minor), "rwm", true));
            device.extend(object(
                json!({"path": path, "file_mode": 0o666, "uid": 0, "gid": 0}),
            ));
            Value::Object(device)
        });
    let configured = linux.devices.iter().map(|device| {
        let kind = match device.kind.as_str() {
            "u" => b'c',
            kind => kind.bytes().next().unwrap_or(b'c'),
        };
        let mut made = object(rule(
            kind,
            Some(device.major),
            Some(device.minor),
            "",
            false,
        ));
        made.extend(object(json!({
            "path": device.path,
            // The type of the file may be among its permissions.
            "file_mode": device.file_mode.map_or(0o666, |mode| mode & !0o170_000),
            "uid": device.uid.unwrap_or_default(),
            "gid": device.gid.unwrap_or_default(),
        })));
        Value::Object(made)
    });
    usual.chain(configured).collect()
}

/// In a user namespace the device files belong to its root.
fn own_devices(config: &mut Map<String, Value>, linux: &Linux) {
    let (uid, gid) = linux.root_outside();
    if let Some(Value::Array(devices)) = config.get_mut("devices") {
        for device in devices {
            if let Value::Object(device) = device {
                device.insert("uid".into(), json!(uid));
                device.insert("gid".into(), json!(gid));
            }
        }
    }
}

fn seccomp(filter: &Seccomp) -> Result<Option<Value>, ErrorKind> {
    if filter.default_action.is_empty() && filter.syscalls.is_empty() {
        return Ok(None);
    }
    let mut calls = Vec::new();
    for rule in &filter.syscalls {
        let mut arguments = Vec::new();
        for argument in &rule.args {
            arguments.push(json!({
                "index": argument.index,
                "value": argument.value,
                "value_two": argument.value_two,
                "op": one_of(&OPERATORS, &argument.op, "seccomp operator")?,
            }));
        }
        let action = one_of(&ACTIONS, &rule.action, "seccomp action")?;
        calls.extend(
            rule.names
                .iter()
                .map(|name| json!({"name": name, "action": action, "errnoRet": rule.errno_ret, "args": arguments})),
        );
    }
    let architecture = |name: &String| {
        let special = ARCHITECTURES
            .into_iter()
            .find(|(known, _)| known == name)
            .map(|(_, own)| own.to_owned());
        special.unwrap_or_else(|| name.trim_start_matches("SCMP_ARCH_").to_ascii_lowercase())
    };
    Ok(Some(json!({
        "default_action": one_of(&ACTIONS, &filter.default_action, "seccomp action")?,
        "default_errno_ret": filter.default_errno_ret,
        "architectures": filter.architectures.iter().map(architecture).collect::<Vec<_>>(),
        "flags": filter.flags,
        "syscalls": calls,
        "listener_path": filter.listener_path,
        "listener_metadata": filter.listener_metadata,
    })))
}

fn id_mappings(mappings: Option<&[IdMapping]>) -> Value {
    let mapping = |mapping: &IdMapping| json!({"container_id": mapping.container_id, "host_id": mapping.host_id, "size": mapping.size});
    json!(mappings.map(|mappings| mappings.iter().map(mapping).collect::<Vec<_>>()))
}

fn hooks(hooks: &[Hook]) -> Option<Vec<Value>> {
    let hook = |hook: &Hook| {
        json!({
            "path": hook.path,
            "args": hook.args,
            "env": hook.env,
            "dir": "",
            // Go counts in nanoseconds.
            "timeout": hook.timeout.map(|seconds| seconds.saturating_mul(1_000_000_000)),
        })
    };
    (!hooks.is_empty()).then(|| hooks.iter().map(hook).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes away what Go reads as a zero value when it is missing.
    fn without_zeros(value: &Value) -> Value {
        match value {
            Value::Object(map) => map
                .iter()
                .map(|(key, value)| (key.clone(), without_zeros(value)))
                .filter(|(_, value)| !is_zero(value))
                .collect::<Map<_, _>>()
                .into(),
            Value::Array(values) => values.iter().map(without_zeros).collect(),
            other => other.clone(),
        }
    }

    fn is_zero(value: &Value) -> bool {
        match value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::String(text) => text.is_empty(),
            Value::Array(values) => values.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        }
    }

    /// The configuration of a bundle becomes what runc made of the same bundle.
    fn is_as_runc_wrote_it(config: &str, state: &str) {
        let spec = Spec::parse(config.as_bytes()).unwrap();
        let state: Value = serde_json::from_str(state).unwrap();
        let expected = without_zeros(&state["config"]);
        let bundle = expected["labels"]
            .as_array()
            .unwrap()
            .iter()
            .find_map(|label| label.as_str()?.strip_prefix("bundle="));
        let rootfs = expected["rootfs"].as_str().unwrap();
        let id = state["id"].as_str().unwrap();
        let converted = convert(
            &spec,
            Path::new(bundle.unwrap()),
            Path::new(rootfs),
            id,
            false,
        )
        .unwrap();
        let mut actual = without_zeros(&converted.config.into());
        let mut expected = expected.clone();
        // runc's own version instead of the bundle's; annotations in no order.
        for config in [&mut actual, &mut expected] {
            config.as_object_mut().unwrap().remove("version");
            config["labels"]
                .as_array_mut()
                .unwrap()
                .sort_by_key(Value::to_string);
        }
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&actual[key], value, "{key}");
        }
        assert_eq!(actual, expected);
    }

    #[test]
    fn the_default_bundle() {
        is_as_runc_wrote_it(
            include_str!("../../../tests/data/runc/default/config.json"),
            include_str!("../../../tests/data/runc/default/state.json"),
        );
    }

    #[test]
    fn a_bundle_with_everything() {
        is_as_runc_wrote_it(
            include_str!("../../../tests/data/runc/everything/config.json"),
            include_str!("../../../tests/data/runc/everything/state.json"),
        );
    }

    #[test]
    fn a_bundle_in_a_user_namespace() {
        is_as_runc_wrote_it(
            include_str!("../../../tests/data/runc/user-namespace/config.json"),
            include_str!("../../../tests/data/runc/user-namespace/state.json"),
        );
    }

    #[test]
    fn what_is_not_known_is_said() {
        let text = include_str!("../../../tests/data/runc/everything/config.json")
            .replace("SCMP_ACT_TRAP", "SCMP_ACT_NAP");
        let spec = Spec::parse(text.as_bytes()).unwrap();
        let path = Path::new("/b");
        let error = convert(&spec, path, path, "x", false)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("SCMP_ACT_NAP"), "{error}");
        let error = convert(&spec, path, path, "x", true)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("slice:prefix:name"), "{error}");
    }
}
