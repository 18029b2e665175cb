//! A container in the form of Podman's archives.
//!
//! Podman's own description of a container (libpod's `ContainerConfig`, the archive's `config.dump`) cannot be asked for. What an
//! inspection tells is translated back into it. Paths of this host that would lead astray on another are left out: Podman makes them anew.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::beside::own_shm;
use super::{Beneath, Podman, Remains, of};
use crate::container;
use crate::container::error::ErrorKind;
use crate::container::oci::Spec;
use crate::container::parts::{Changes, Parts};

type Result<T> = std::result::Result<T, ErrorKind>;

/// What Podman puts into every container's root.
const MADE: [&str; 13] = [
    "/dev",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/mtab",
    "/etc/resolv.conf",
    "/proc",
    "/run/.containerenv",
    "/run/notify",
    "/run/podman-init",
    "/run/secrets",
    "/sys",
    "/etc/passwd-",
    "/etc/group-",
];

impl Podman {
    /// What of a running container goes into an archive.
    pub(crate) async fn parts(&self, name: &str, leave_running: bool) -> container::Result<Parts> {
        self.found_parts(name, leave_running)
            .await
            .map_err(of(name))
    }

    async fn found_parts(&self, name: &str, leave_running: bool) -> Result<Parts> {
        let inspected = self
            .checkpointable(name, Remains::of_archive(leave_running))
            .await?;
        let whole = self.inspect_whole(&inspected.id).await?;
        if whole["Rootfs"]
            .as_str()
            .is_some_and(|path| !path.is_empty())
        {
            return Err(ErrorKind::Unsupported(
                "it has a root of its own (--rootfs) and no image, and nobody restores such a container from an archive: \
                 checkpoint it into a directory, without --export"
                    .into(),
            ));
        }
        let pid = inspected.state.pid;
        let beneath = Beneath::under_conmon(&inspected)?;
        let model = beneath.model(&inspected)?;
        let status = self
            .network_status(&inspected)
            .await?
            .unwrap_or(Value::Null);
        let anonymous = self.anonymous(&whole).await?;
        let config = config(&whole, &status, &anonymous);
        let (spec, bytes) = Spec::of_bundle(&inspected.static_dir)?;
        let json = |value: &Value| {
            serde_json::to_vec_pretty(value)
                .map_err(std::io::Error::from)
                .map_err(ErrorKind::system("writing JSON"))
        };
        let mut made: Vec<PathBuf> = MADE.iter().map(PathBuf::from).collect();
        made.extend(
            spec.mounts
                .iter()
                .map(|mount| PathBuf::from(&mount.destination)),
        );
        let parts = Parts {
            config: json(&Value::Object(config))?,
            spec: bytes,
            network: json(&status)?,
            log: log(&whole),
            shm: own_shm(&inspected, &model, pid),
            root: PathBuf::from(format!("/proc/{pid}/root")),
            changes: changes(&whole),
            made,
            volumes: volumes(&whole)
                .filter_map(|volume| {
                    let source = volume["Source"].as_str()?;
                    Some((volume["Name"].as_str()?.to_owned(), source.into()))
                })
                .collect(),
        };
        Ok(parts)
    }

    /// The volumes that go with their container.
    async fn anonymous(&self, whole: &Value) -> Result<Vec<String>> {
        let mut anonymous = Vec::new();
        for volume in volumes(whole) {
            let Some(name) = volume["Name"].as_str() else {
                continue;
            };
            if self.volume(name).await?["Anonymous"] == true {
                anonymous.push(name.to_owned());
            }
        }
        Ok(anonymous)
    }
}

fn volumes(whole: &Value) -> impl Iterator<Item = &Value> {
    let mounts = whole["Mounts"].as_array().into_iter().flatten();
    mounts.filter(|mount| mount["Type"] == "volume")
}

fn log(whole: &Value) -> Option<PathBuf> {
    let log = &whole["HostConfig"]["LogConfig"];
    let is_file = log["Type"] == "k8s-file" || log["Type"] == "json-file";
    let path = log["Path"].as_str().filter(|_| is_file)?;
    Some(path.into())
}

fn changes(whole: &Value) -> Changes {
    let driver = &whole["GraphDriver"];
    let data = |key: &str| driver["Data"][key].as_str().filter(|path| !path.is_empty());
    match (driver["Name"] == "overlay", data("UpperDir")) {
        (true, Some(upper)) => Changes::Overlay {
            upper: upper.into(),
            lower: (data("LowerDir").into_iter())
                .flat_map(|layers| layers.split(':'))
                .map(PathBuf::from)
                .collect(),
        },
        _ => Changes::Unknown,
    }
}

/// Libpod's description of the container. `status` are its addresses, `anonymous` volumes that nobody has named.
fn config(whole: &Value, status: &Value, anonymous: &[String]) -> Map<String, Value> {
    let (config, host) = (&whole["Config"], &whole["HostConfig"]);
    let mut libpod = Map::new();
    let taken: [(&str, &Value); 40] = [
        ("id", &whole["Id"]),
        ("name", &whole["Name"]),
        ("pod", &whole["Pod"]),
        ("namespace", &whole["Namespace"]),
        ("CreateCommand", &config["CreateCommand"]),
        ("RawImageName", &whole["ImageName"]),
        ("rootfsImageID", &whole["Image"]),
        ("rootfsImageName", &whole["ImageName"]),
        ("shmSize", &host["ShmSize"]),
        ("ProcessLabel", &whole["ProcessLabel"]),
        ("MountLabel", &whole["MountLabel"]),
        ("privileged", &host["Privileged"]),
        ("user", &config["User"]),
        ("groups", &host["GroupAdd"]),
        ("dnsServer", &host["Dns"]),
        ("dnsSearch", &host["DnsSearch"]),
        ("dnsOption", &host["DnsOptions"]),
        ("hostsAdd", &host["ExtraHosts"]),
        ("UseImageHosts", &whole["UseImageHosts"]),
        ("useImageHostname", &whole["UseImageHostname"]),
        ("networkMode", &host["NetworkMode"]),
        ("entrypoint", &config["Entrypoint"]),
        ("command", &config["Cmd"]),
        ("labels", &config["Labels"]),
        ("stopTimeout", &config["StopTimeout"]),
        ("timeout", &config["Timeout"]),
        ("createdTime", &whole["Created"]),
        ("cgroupManager", &host["CgroupManager"]),
        ("logDriver", &host["LogConfig"]["Type"]),
        ("logTag", &host["LogConfig"]["Tag"]),
        ("restart_policy", &host["RestartPolicy"]["Name"]),
        (
            "restart_retries",
            &host["RestartPolicy"]["MaximumRetryCount"],
        ),
        ("runtime", &whole["OCIRuntime"]),
        ("isService", &whole["IsService"]),
        ("sdnotifyMode", &config["sdNotifyMode"]),
        ("systemd", &config["SystemdMode"]),
        ("healthcheck", &config["Healthcheck"]),
        ("startupHealthCheck", &config["StartupHealthCheck"]),
        ("umask", &config["Umask"]),
        ("passwd", &config["Passwd"]),
    ];
    for (key, value) in taken {
        put(&mut libpod, key, value.clone());
    }
    for (key, from) in [
        ("timezone", "Timezone"),
        ("healthLogDestination", "HealthLogDestination"),
        ("healthMaxLogCount", "HealthcheckMaxLogCount"),
        ("healthMaxLogSize", "HealthcheckMaxLogSize"),
    ] {
        put(&mut libpod, key, config[from].clone());
    }
    let failing = ["none", "invalid", "kill", "restart", "stop"];
    let failing = failing
        .iter()
        .position(|name| config["HealthcheckOnFailureAction"] == *name);
    libpod.insert(
        "healthcheck_on_failure_action".into(),
        failing.unwrap_or(0).into(),
    );
    libpod.insert("stopSignal".into(), stop_signal(config).into());
    let cgroups = match host["Cgroups"].as_str() {
        Some("default" | "") | None => "enabled",
        Some(other) => other,
    };
    libpod.insert("cgroupsMode".into(), cgroups.into());
    let parent = host["CgroupParent"]
        .as_str()
        .filter(|path| !path.is_empty());
    let parent = parent.or_else(|| {
        let (parent, _) = whole["State"]["CgroupPath"].as_str()?.rsplit_once('/')?;
        Some(parent).filter(|path| !path.is_empty())
    });
    put(
        &mut libpod,
        "cgroupParent",
        parent.map_or(Value::Null, Value::from),
    );
    libpod.insert("idMappingsOptions".into(), id_mappings(host));
    namespaces(&mut libpod, whole);
    networks(&mut libpod, whole, status);
    let named: Vec<_> = volumes(whole)
        .map(|volume| named_volume(volume, anonymous))
        .collect();
    put(&mut libpod, "namedVolumes", named.into());
    let destinations = whole["Mounts"].as_array().into_iter().flatten();
    let destinations = destinations.map(|mount| mount["Destination"].clone());
    let in_memory = host["Tmpfs"].as_object().into_iter().flatten();
    let in_memory = in_memory.map(|(path, _)| Value::from(path.as_str()));
    let own: Vec<_> = destinations.chain(in_memory).collect();
    put(&mut libpod, "userVolumes", own.into());
    let secrets = config["Secrets"].as_array().into_iter().flatten();
    let secrets: Vec<_> = secrets
        .map(|secret| json!({"name": secret["Name"], "id": secret["ID"], "UID": secret["UID"], "GID": secret["GID"], "Mode": secret["Mode"]}))
        .collect();
    put(&mut libpod, "secrets", secrets.into());
    libpod
}

/// What is empty is left out, as Podman does.
fn put(libpod: &mut Map<String, Value>, key: &str, value: Value) {
    let is_empty = match &value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    };
    if !is_empty {
        libpod.insert(key.to_owned(), value);
    }
}

fn stop_signal(config: &Value) -> u64 {
    let noted = &config["Annotations"]["org.opencontainers.image.stopSignal"];
    let noted = noted.as_str().and_then(|number| number.parse().ok());
    let named = || {
        let name = config["StopSignal"].as_str()?;
        let signal: nix::sys::signal::Signal = name.parse().ok()?;
        u64::try_from(signal as i32).ok()
    };
    // Podman's own default.
    noted.or_else(named).unwrap_or(15)
}

/// Each range as three numbers: inside, outside, how many.
fn id_mappings(host: &Value) -> Value {
    let ranges = |key: &str| -> Value {
        let ranges = host["IDMappings"][key].as_array().into_iter().flatten();
        let ranges: Vec<_> = ranges
            .filter_map(|range| {
                let mut numbers = range.as_str()?.split(':').map(str::parse::<u32>);
                let mut next = || numbers.next()?.ok();
                Some(json!({"container_id": next()?, "host_id": next()?, "size": next()?}))
            })
            .collect();
        match ranges.is_empty() {
            true => Value::Null,
            false => ranges.into(),
        }
    };
    let (users, groups) = (ranges("UidMap"), ranges("GidMap"));
    json!({
        "HostUIDMapping": users.is_null(),
        "HostGIDMapping": groups.is_null(),
        "UIDMap": users,
        "GIDMap": groups,
    })
}

/// Containers whose namespaces it shares.
fn namespaces(libpod: &mut Map<String, Value>, whole: &Value) {
    let host = &whole["HostConfig"];
    for (key, mode) in [
        ("ipcNsCtr", "IpcMode"),
        ("netNsCtr", "NetworkMode"),
        ("pidNsCtr", "PidMode"),
        ("userNsCtr", "UsernsMode"),
        ("utsNsCtr", "UTSMode"),
        ("cgroupNsCtr", "CgroupMode"),
    ] {
        let of = host[mode]
            .as_str()
            .and_then(|mode| mode.strip_prefix("container:"));
        put(libpod, key, of.map_or(Value::Null, Value::from));
    }
    put(libpod, "Dependencies", whole["Dependencies"].clone());
    libpod.insert("NoShm".into(), (host["IpcMode"] == "none").into());
    libpod.insert("NOShmShare".into(), (host["IpcMode"] == "private").into());
}

fn networks(libpod: &mut Map<String, Value>, whole: &Value, status: &Value) {
    let settings = &whole["NetworkSettings"];
    // It has one that Podman made, unless it lives in another's.
    let own = settings["SandboxKey"]
        .as_str()
        .is_some_and(|path| !path.is_empty())
        && !libpod.contains_key("netNsCtr");
    libpod.insert("createNetNS".into(), own.into());
    let mut ports = Vec::new();
    let mut bound = Vec::new();
    for (port, bindings) in whole["HostConfig"]["PortBindings"]
        .as_object()
        .into_iter()
        .flatten()
    {
        let Some((number, protocol)) = numbered(port) else {
            continue;
        };
        bound.push(port);
        for binding in bindings.as_array().into_iter().flatten() {
            let host_port = binding["HostPort"].as_str();
            let host_port: Option<u16> = host_port.and_then(|port| port.parse().ok());
            ports.push(json!({
                "host_ip": binding["HostIp"],
                "container_port": number,
                "host_port": host_port,
                "range": 1,
                "protocol": protocol,
            }));
        }
    }
    put(libpod, "newPortMappings", ports.into());
    let mut exposed: Map<String, Value> = Map::new();
    for (port, _) in whole["Config"]["ExposedPorts"]
        .as_object()
        .into_iter()
        .flatten()
    {
        if let Some((number, protocol)) = numbered(port).filter(|_| !bound.contains(&port)) {
            let protocols = exposed.entry(number.to_string()).or_insert(json!([]));
            if let Some(protocols) = protocols.as_array_mut() {
                protocols.push(protocol.into());
            }
        }
    }
    put(libpod, "exposedPorts", exposed.into());
    if !own {
        return;
    }
    let own_alias: String = whole["Id"]
        .as_str()
        .unwrap_or_default()
        .chars()
        .take(12)
        .collect();
    let mut networks = Map::new();
    for (name, settings) in settings["Networks"].as_object().into_iter().flatten() {
        let interfaces = status[name]["interfaces"].as_object();
        let Some((interface, _)) = interfaces.and_then(|interfaces| interfaces.iter().next())
        else {
            continue;
        };
        let mut network = Map::new();
        // Podman adds the beginning of whatever id the container has.
        let aliases = settings["Aliases"].as_array().into_iter().flatten();
        let aliases: Vec<_> = aliases
            .filter(|alias| **alias != own_alias.as_str())
            .cloned()
            .collect();
        put(&mut network, "aliases", aliases.into());
        put(&mut network, "interface_name", interface.as_str().into());
        put(&mut network, "options", settings["DriverOpts"].clone());
        networks.insert(name.clone(), network.into());
    }
    let ordered: Vec<_> = networks
        .iter()
        .map(|(name, network)| {
            let mut network = network.clone();
            network["name"] = name.as_str().into();
            network
        })
        .collect();
    // Up to Podman 5, and from 6 on.
    put(libpod, "newNetworks", networks.into());
    put(libpod, "orderedNetworks", ordered.into());
}

/// A port such as `80/tcp`.
fn numbered(port: &str) -> Option<(u16, &str)> {
    let (number, protocol) = port.split_once('/')?;
    Some((number.parse().ok()?, protocol))
}

fn named_volume(volume: &Value, anonymous: &[String]) -> Value {
    let mut options = vec![Value::from(match volume["RW"].as_bool() {
        Some(false) => "ro",
        _ => "rw",
    })];
    options.extend(
        volume["Propagation"]
            .as_str()
            .filter(|word| !word.is_empty())
            .map(Value::from),
    );
    options.extend(volume["Options"].as_array().into_iter().flatten().cloned());
    let mut named = Map::new();
    put(&mut named, "volumeName", volume["Name"].clone());
    put(&mut named, "dest", volume["Destination"].clone());
    put(&mut named, "options", options.into());
    put(&mut named, "SubPath", volume["SubPath"].clone());
    let name = volume["Name"].as_str().unwrap_or_default();
    if anonymous.iter().any(|other| other == name) {
        named.insert("setAnonymous".into(), true.into());
    }
    named.into()
}
