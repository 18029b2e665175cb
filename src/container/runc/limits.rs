//! Control groups in runc's record: its own names for the limits of the OCI specification, read and written.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::config::DEVICES;
use crate::container::cgroup::Scope;
use crate::container::error::ErrorKind;
use crate::container::oci::{
    BlockIo, Cpu, DeviceRule, HugepageLimit, InterfacePriority, Linux, Memory, Network, Pids, Rdma,
    Resources, ThrottleDevice, WeightDevice,
};

/// The control groups' limits; zero and null stand for what is not set.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Cgroups {
    devices: Option<Vec<CgroupDevice>>,
    memory: i64,
    memory_reservation: i64,
    memory_swap: i64,
    memory_swappiness: Option<u64>,
    oom_kill_disable: bool,
    cpu_shares: u64,
    cpu_quota: i64,
    cpu_period: u64,
    cpu_rt_quota: i64,
    cpu_rt_period: u64,
    cpuset_cpus: String,
    cpuset_mems: String,
    pids_limit: Option<i64>,
    blkio_weight: u16,
    blkio_leaf_weight: u16,
    blkio_weight_device: Option<Vec<BlockDevice>>,
    blkio_throttle_read_bps_device: Option<Vec<BlockDevice>>,
    blkio_throttle_write_bps_device: Option<Vec<BlockDevice>>,
    blkio_throttle_read_iops_device: Option<Vec<BlockDevice>>,
    blkio_throttle_write_iops_device: Option<Vec<BlockDevice>>,
    hugetlb_limit: Option<Vec<Hugetlb>>,
    net_cls_classid_u: u32,
    net_prio_ifpriomap: Option<Vec<Priority>>,
    rdma: Option<BTreeMap<String, RdmaLimit>>,
    unified: Option<BTreeMap<String, String>>,
    name: String,
    parent: String,
    scope_prefix: String,
    #[serde(rename = "Systemd")]
    pub(super) systemd: bool,
}

#[derive(Debug, Clone, Deserialize)]
struct CgroupDevice {
    /// The letter as a number.
    #[serde(rename = "type")]
    kind: u8,
    major: i64,
    minor: i64,
    permissions: String,
    allow: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct BlockDevice {
    major: i64,
    minor: i64,
    weight: u16,
    #[serde(rename = "leafWeight")]
    leaf_weight: u16,
    rate: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Hugetlb {
    page_size: String,
    limit: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Priority {
    interface: String,
    priority: u32,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct RdmaLimit {
    hca_handles: Option<u32>,
    hca_objects: Option<u32>,
}

impl Cgroups {
    pub(super) fn scope(&self) -> Option<Scope> {
        self.systemd
            .then(|| Scope::new(&self.parent, &self.scope_prefix, &self.name))
    }

    pub(super) fn limits(&self) -> Resources {
        fn set<T: Default + PartialEq + Copy>(value: T) -> Option<T> {
            Some(value).filter(|value| *value != T::default())
        }
        let throttles = |devices: &Option<Vec<BlockDevice>>| {
            let devices = devices.iter().flatten();
            devices
                .map(|device| ThrottleDevice {
                    major: device.major,
                    minor: device.minor,
                    rate: device.rate,
                })
                .collect()
        };
        Resources {
            devices: self
                .devices
                .iter()
                .flatten()
                .map(CgroupDevice::rule)
                .collect(),
            memory: Memory {
                limit: set(self.memory),
                reservation: set(self.memory_reservation),
                swap: set(self.memory_swap),
                swappiness: self.memory_swappiness,
                disable_oom_killer: self.oom_kill_disable,
            },
            cpu: Cpu {
                shares: set(self.cpu_shares),
                quota: set(self.cpu_quota),
                period: set(self.cpu_period),
                realtime_runtime: set(self.cpu_rt_quota),
                realtime_period: set(self.cpu_rt_period),
                cpus: self.cpuset_cpus.clone(),
                mems: self.cpuset_mems.clone(),
            },
            pids: Pids {
                limit: self.pids_limit.unwrap_or_default(),
            },
            block_io: BlockIo {
                weight: set(self.blkio_weight),
                leaf_weight: set(self.blkio_leaf_weight),
                weight_device: self
                    .blkio_weight_device
                    .iter()
                    .flatten()
                    .map(|device| WeightDevice {
                        major: device.major,
                        minor: device.minor,
                        weight: set(device.weight),
                        leaf_weight: set(device.leaf_weight),
                    })
                    .collect(),
                throttle_read_bps_device: throttles(&self.blkio_throttle_read_bps_device),
                throttle_write_bps_device: throttles(&self.blkio_throttle_write_bps_device),
                throttle_read_iops_device: throttles(&self.blkio_throttle_read_iops_device),
                throttle_write_iops_device: throttles(&self.blkio_throttle_write_iops_device),
            },
            hugepage_limits: self
                .hugetlb_limit
                .iter()
                .flatten()
                .map(|limit| HugepageLimit {
                    page_size: limit.page_size.clone(),
                    limit: limit.limit,
                })
                .collect(),
            network: Network {
                class_id: set(self.net_cls_classid_u),
                priorities: self
                    .net_prio_ifpriomap
                    .iter()
                    .flatten()
                    .map(|entry| InterfacePriority {
                        name: entry.interface.clone(),
                        priority: entry.priority,
                    })
                    .collect(),
            },
            rdma: self
                .rdma
                .iter()
                .flatten()
                .map(|(device, limit)| {
                    let limit = Rdma {
                        hca_handles: limit.hca_handles,
                        hca_objects: limit.hca_objects,
                    };
                    (device.clone(), limit)
                })
                .collect(),
            unified: self.unified.clone().unwrap_or_default(),
        }
    }
}

impl CgroupDevice {
    fn rule(&self) -> DeviceRule {
        DeviceRule {
            allow: self.allow,
            kind: Some(char::from(self.kind).to_string()),
            major: Some(self.major).filter(|major| *major >= 0),
            minor: Some(self.minor).filter(|minor| *minor >= 0),
            access: self.permissions.clone(),
        }
    }
}

pub(super) fn rule(
    kind: u8,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
    allow: bool,
) -> Value {
    json!({
        "type": kind,
        "major": major.unwrap_or(-1),
        "minor": minor.unwrap_or(-1),
        "permissions": access,
        "allow": allow,
    })
}

/// The rules for devices: the configuration's, then those of the devices that every container may use.
fn device_rules(linux: &Linux, limits: &Resources) -> Vec<Value> {
    let own = |path: &str| {
        linux
            .devices
            .iter()
            .any(|device| device.path == Path::new(path))
    };
    let configured = limits.devices.iter().map(|device| {
        let kind = device
            .kind
            .as_deref()
            .and_then(|kind| kind.bytes().next())
            .unwrap_or(b'a');
        rule(
            kind,
            device.major,
            device.minor,
            &device.access,
            device.allow,
        )
    });
    let usual = DEVICES.into_iter().filter(|(path, ..)| !own(path));
    configured
        // Device files may be made, whatever they are of.
        .chain([b'c', b'b'].map(|kind| rule(kind, None, None, "m", true)))
        .chain(usual.map(|(_, major, minor)| rule(b'c', Some(major), Some(minor), "rwm", true)))
        // Terminals, and tunnels.
        .chain(
            [(136, None), (5, Some(2)), (10, Some(200))]
                .map(|(major, minor)| rule(b'c', Some(major), minor, "rwm", true)),
        )
        .collect()
}

pub(super) fn cgroups(linux: &Linux, id: &str, systemd: bool) -> Result<Value, ErrorKind> {
    let limits = linux.resources.clone().unwrap_or_default();
    let mut cgroups = match (systemd, linux.cgroups_path.as_str()) {
        (true, "") => json!({"name": id, "scope_prefix": "runc"}),
        (true, path) => {
            let parts: Vec<&str> = path.split(':').collect();
            let [parent, prefix, name] = parts[..] else {
                return Err(ErrorKind::Unsupported(format!(
                    "cgroupsPath {path:?} of config.json is not of the form slice:prefix:name, as systemd's are"
                )));
            };
            json!({"parent": parent, "scope_prefix": prefix, "name": name})
        }
        (false, "") => json!({"name": id}),
        (false, path) => json!({"path": path}),
    };
    let throttles = |devices: &[ThrottleDevice]| {
        let device = |device: &ThrottleDevice| json!({"major": device.major, "minor": device.minor, "rate": device.rate});
        (!devices.is_empty()).then(|| devices.iter().map(device).collect::<Vec<_>>())
    };
    let Resources {
        memory,
        cpu,
        pids,
        block_io,
        hugepage_limits,
        network,
        rdma,
        unified,
        devices: _,
    } = &limits;
    let weight = |shares: u64| match shares {
        0 => 0,
        shares => 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142,
    };
    let set = [
        ("Systemd", json!(systemd)),
        ("devices", json!(device_rules(linux, &limits))),
        ("memory", json!(memory.limit.unwrap_or_default())),
        ("memory_reservation", json!(memory.reservation.unwrap_or_default())),
        ("memory_swap", json!(memory.swap.unwrap_or_default())),
        ("memory_swappiness", json!(memory.swappiness)),
        ("oom_kill_disable", json!(memory.disable_oom_killer)),
        ("cpu_shares", json!(cpu.shares.unwrap_or_default())),
        ("cpu_weight", json!(weight(cpu.shares.unwrap_or_default()))),
        ("cpu_quota", json!(cpu.quota.unwrap_or_default())),
        ("cpu_period", json!(cpu.period.unwrap_or_default())),
        ("cpu_rt_quota", json!(cpu.realtime_runtime.unwrap_or_default())),
        ("cpu_rt_period", json!(cpu.realtime_period.unwrap_or_default())),
        ("cpuset_cpus", json!(cpu.cpus)),
        ("cpuset_mems", json!(cpu.mems)),
        ("blkio_weight", json!(block_io.weight.unwrap_or_default())),
        ("blkio_leaf_weight", json!(block_io.leaf_weight.unwrap_or_default())),
        (
            "blkio_weight_device",
            json!(
                block_io
                    .weight_device
                    .iter()
                    .map(|device| json!({
                        "major": device.major,
                        "minor": device.minor,
                        "weight": device.weight.unwrap_or_default(),
                        "leafWeight": device.leaf_weight.unwrap_or_default(),
                    }))
                    .collect::<Vec<_>>()
            ),
        ),
        (
            "blkio_throttle_read_bps_device",
            json!(throttles(&block_io.throttle_read_bps_device)),
        ),
        (
            "blkio_throttle_write_bps_device",
            json!(throttles(&block_io.throttle_write_bps_device)),
        ),
        (
            "blkio_throttle_read_iops_device",
            json!(throttles(&block_io.throttle_read_iops_device)),
        ),
        (
            "blkio_throttle_write_iops_device",
            json!(throttles(&block_io.throttle_write_iops_device)),
        ),
        (
            "hugetlb_limit",
            json!(
                hugepage_limits
                    .iter()
                    .map(|limit| json!({"page_size": limit.page_size, "limit": limit.limit}))
                    .collect::<Vec<_>>()
            ),
        ),
        ("net_cls_classid_u", json!(network.class_id.unwrap_or_default())),
        (
            "net_prio_ifpriomap",
            json!(
                network
                    .priorities
                    .iter()
                    .map(|entry| json!({"interface": entry.name, "priority": entry.priority}))
                    .collect::<Vec<_>>()
            ),
        ),
        (
            "rdma",
            json!(
                rdma.iter()
                    .map(|(device, limit)| {
                        (
                            device.clone(),
                            json!({"hca_handles": limit.hca_handles, "hca_objects": limit.hca_objects}),
                        )
                    })
                    .collect::<Map<_, _>>()
            ),
        ),
        ("unified", json!((!unified.is_empty()).then_some(unified))),
    ];
    if let Value::Object(cgroups) = &mut cgroups {
        cgroups.extend(set.map(|(key, value)| (key.to_owned(), value)));
        // Newer releases tell zero from nothing here.
        if pids.limit != 0 {
            cgroups.insert("pids_limit".into(), json!(pids.limit));
        }
    }
    Ok(cgroups)
}
