//! Limits of control groups.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::nullable;

/// The limits of a container's control groups, as the runtime specification has them.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct Resources {
    /// Which devices may be used; the last rule that is about a device decides.
    #[serde(deserialize_with = "nullable")]
    pub devices: Vec<DeviceRule>,
    /// Memory.
    #[serde(deserialize_with = "nullable")]
    pub memory: Memory,
    /// Processor time.
    #[serde(deserialize_with = "nullable")]
    pub cpu: Cpu,
    /// Tasks.
    #[serde(deserialize_with = "nullable")]
    pub pids: Pids,
    /// Block devices.
    #[serde(rename = "blockIO", deserialize_with = "nullable")]
    pub block_io: BlockIo,
    /// Huge pages.
    #[serde(deserialize_with = "nullable")]
    pub hugepage_limits: Vec<HugepageLimit>,
    /// Marks on network packets.
    #[serde(deserialize_with = "nullable")]
    pub network: Network,
    /// Remote memory access, by device.
    #[serde(deserialize_with = "nullable")]
    pub rdma: BTreeMap<String, Rdma>,
    /// Files of a cgroup v2 directory and what is written to them.
    #[serde(deserialize_with = "nullable")]
    pub unified: BTreeMap<String, String>,
}

impl Resources {
    /// Takes from `other` what is not set here. Rules for devices are taken whole or not at all.
    pub(crate) fn fill_gaps(&mut self, other: &Self) {
        fn fill<T: Clone + PartialEq + Default>(own: &mut T, other: &T) {
            if *own == T::default() {
                own.clone_from(other);
            }
        }
        fill(&mut self.devices, &other.devices);
        fill(&mut self.memory.limit, &other.memory.limit);
        fill(&mut self.memory.reservation, &other.memory.reservation);
        fill(&mut self.memory.swap, &other.memory.swap);
        fill(&mut self.memory.swappiness, &other.memory.swappiness);
        fill(
            &mut self.memory.disable_oom_killer,
            &other.memory.disable_oom_killer,
        );
        fill(&mut self.cpu.shares, &other.cpu.shares);
        fill(&mut self.cpu.quota, &other.cpu.quota);
        fill(&mut self.cpu.period, &other.cpu.period);
        fill(&mut self.cpu.realtime_runtime, &other.cpu.realtime_runtime);
        fill(&mut self.cpu.realtime_period, &other.cpu.realtime_period);
        fill(&mut self.cpu.cpus, &other.cpu.cpus);
        fill(&mut self.cpu.mems, &other.cpu.mems);
        fill(&mut self.pids.limit, &other.pids.limit);
        fill(&mut self.block_io.weight, &other.block_io.weight);
        fill(&mut self.block_io.leaf_weight, &other.block_io.leaf_weight);
        fill(
            &mut self.block_io.weight_device,
            &other.block_io.weight_device,
        );
        fill(
            &mut self.block_io.throttle_read_bps_device,
            &other.block_io.throttle_read_bps_device,
        );
        fill(
            &mut self.block_io.throttle_write_bps_device,
            &other.block_io.throttle_write_bps_device,
        );
        fill(
            &mut self.block_io.throttle_read_iops_device,
            &other.block_io.throttle_read_iops_device,
        );
        fill(
            &mut self.block_io.throttle_write_iops_device,
            &other.block_io.throttle_write_iops_device,
        );
        fill(&mut self.hugepage_limits, &other.hugepage_limits);
        fill(&mut self.network.class_id, &other.network.class_id);
        fill(&mut self.network.priorities, &other.network.priorities);
        fill(&mut self.rdma, &other.rdma);
        fill(&mut self.unified, &other.unified);
    }
}

/// Whether devices may be used.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[non_exhaustive]
pub struct DeviceRule {
    /// Whether they may.
    #[serde(default)]
    pub allow: bool,
    /// `a`, `c` or `b`; all if there is none.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// Major number; all if there is none.
    #[serde(default)]
    pub major: Option<i64>,
    /// Minor number; all if there is none.
    #[serde(default)]
    pub minor: Option<i64>,
    /// Some of `r`, `w` and `m`.
    #[serde(default)]
    pub access: String,
}

/// Memory limits in bytes, -1 for none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct Memory {
    /// The hard limit.
    pub limit: Option<i64>,
    /// The soft limit.
    pub reservation: Option<i64>,
    /// The limit of memory and swap together.
    pub swap: Option<i64>,
    /// How readily memory is swapped out.
    pub swappiness: Option<u64>,
    /// Whether tasks wait instead of being killed.
    #[serde(rename = "disableOOMKiller")]
    pub disable_oom_killer: bool,
}

/// Processor limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct Cpu {
    /// The share under contention.
    pub shares: Option<u64>,
    /// Microseconds of processor time in each period.
    pub quota: Option<i64>,
    /// Microseconds of a period.
    pub period: Option<u64>,
    /// The same for real-time tasks.
    pub realtime_runtime: Option<i64>,
    /// The same for real-time tasks.
    pub realtime_period: Option<u64>,
    /// The processors that may be used.
    pub cpus: String,
    /// The memory nodes that may be used.
    pub mems: String,
}

/// The limit of tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Pids {
    /// How many; -1 for no limit, 0 for not set.
    pub limit: i64,
}

/// Limits of block devices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct BlockIo {
    /// The share under contention.
    pub weight: Option<u16>,
    /// The share of the tasks themselves against groups below.
    pub leaf_weight: Option<u16>,
    /// The same for single devices.
    #[serde(deserialize_with = "nullable")]
    pub weight_device: Vec<WeightDevice>,
    /// Bytes read in a second.
    #[serde(deserialize_with = "nullable")]
    pub throttle_read_bps_device: Vec<ThrottleDevice>,
    /// Bytes written in a second.
    #[serde(deserialize_with = "nullable")]
    pub throttle_write_bps_device: Vec<ThrottleDevice>,
    /// Reads in a second.
    #[serde(rename = "throttleReadIOPSDevice", deserialize_with = "nullable")]
    pub throttle_read_iops_device: Vec<ThrottleDevice>,
    /// Writes in a second.
    #[serde(rename = "throttleWriteIOPSDevice", deserialize_with = "nullable")]
    pub throttle_write_iops_device: Vec<ThrottleDevice>,
}

/// The share of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct WeightDevice {
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// The share.
    pub weight: Option<u16>,
    /// The share against groups below.
    pub leaf_weight: Option<u16>,
}

/// The limit of one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ThrottleDevice {
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// The limit.
    pub rate: u64,
}

/// The limit of huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct HugepageLimit {
    /// The size, as in `2MB`.
    #[serde(rename = "pageSize")]
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// Marks on network packets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Network {
    /// The traffic class.
    #[serde(rename = "classID")]
    pub class_id: Option<u32>,
    /// Priorities by interface.
    #[serde(deserialize_with = "nullable")]
    pub priorities: Vec<InterfacePriority>,
}

/// The priority on one interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
#[non_exhaustive]
pub struct InterfacePriority {
    /// The interface.
    pub name: String,
    /// The priority.
    pub priority: u32,
}

/// The limits of one device for remote memory access.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct Rdma {
    /// Handles.
    pub hca_handles: Option<u32>,
    /// Objects.
    pub hca_objects: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_update_forgot_comes_from_the_configuration() {
        let parse = |text| serde_json::from_str::<Resources>(text).unwrap();
        let mut updated =
            parse(r#"{"pids":{"limit":60},"devices":[{"allow":false}],"memory":{"swap":-1}}"#);
        updated.fill_gaps(&parse(
            r#"{"pids":{"limit":50},"devices":[{"allow":true}],"memory":{"limit":7,"swap":9},"cpu":{"cpus":"1"}}"#,
        ));
        let expected = parse(
            r#"{"pids":{"limit":60},"devices":[{"allow":false}],"memory":{"limit":7,"swap":-1},"cpu":{"cpus":"1"}}"#,
        );
        assert_eq!(updated, expected);
    }
}
