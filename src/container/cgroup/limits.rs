//! Writing limits into control groups.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::UNIFIED;
use crate::container::oci::{DeviceRule, HugepageLimit, Resources, ThrottleDevice, WeightDevice};

/// A file of a group and what is written to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    controller: &'static str,
    pub(super) file: String,
    pub(super) value: String,
}

/// Sets the limits of a container that does not run yet. Returns what could not be done on this host, in words.
///
/// # Errors
/// The file that could not be written.
pub(crate) fn apply(
    paths: &BTreeMap<String, PathBuf>,
    limits: &Resources,
) -> Result<Vec<String>, (PathBuf, io::Error)> {
    let mut notes = Vec::new();
    let version_1 = paths.keys().any(|controller| is_controller(controller));
    let settings = match version_1 {
        true => settings_v1(limits),
        false => {
            if !limits.devices.is_empty() {
                notes.push(
                    "the device filter of the container's control group is not set: on cgroup v2 it is a BPF program, \
                     which only the engine loads"
                        .to_owned(),
                );
            }
            settings_v2(limits)
        }
    };
    for Setting {
        controller,
        file,
        value,
    } in settings
    {
        let Some(directory) = paths.get(controller) else {
            notes.push(format!(
                "{file} is not set: this host has no {controller} hierarchy"
            ));
            continue;
        };
        let path = directory.join(&file);
        match write(&path, &value) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                notes.push(format!("{file} is not set: this kernel does not have it"));
            }
            Err(error) => return Err((path, error)),
        }
    }
    Ok(notes)
}

fn is_controller(name: &str) -> bool {
    !name.is_empty() && !name.starts_with("name=")
}

/// Without creating it, which the kernel would refuse with a misleading error.
pub(super) fn write(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(value.as_bytes())
}

pub(super) fn settings_v1(limits: &Resources) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut set = |controller: &'static str, file: &str, value: String| {
        settings.push(Setting {
            controller,
            file: file.to_owned(),
            value,
        });
    };
    let Resources {
        devices,
        memory,
        cpu,
        pids,
        block_io,
        hugepage_limits,
        network,
        rdma,
        unified: _,
    } = limits;

    for rule in devices {
        let file = match rule.allow {
            true => "devices.allow",
            false => "devices.deny",
        };
        set("devices", file, device_rule(rule));
    }
    // In a fresh group both limits are infinite, so the lower one can be set first.
    if let Some(limit) = memory.limit {
        set("memory", "memory.limit_in_bytes", limit.to_string());
    }
    if let Some(swap) = memory.swap {
        set("memory", "memory.memsw.limit_in_bytes", swap.to_string());
    }
    if let Some(reservation) = memory.reservation {
        set(
            "memory",
            "memory.soft_limit_in_bytes",
            reservation.to_string(),
        );
    }
    if let Some(swappiness) = memory.swappiness {
        set("memory", "memory.swappiness", swappiness.to_string());
    }
    if memory.disable_oom_killer {
        set("memory", "memory.oom_control", "1".into());
    }
    if let Some(shares) = cpu.shares {
        set("cpu", "cpu.shares", shares.to_string());
    }
    if let Some(period) = cpu.period {
        set("cpu", "cpu.cfs_period_us", period.to_string());
    }
    if let Some(quota) = cpu.quota {
        set("cpu", "cpu.cfs_quota_us", quota.to_string());
    }
    if let Some(period) = cpu.realtime_period {
        set("cpu", "cpu.rt_period_us", period.to_string());
    }
    if let Some(runtime) = cpu.realtime_runtime {
        set("cpu", "cpu.rt_runtime_us", runtime.to_string());
    }
    if !cpu.cpus.is_empty() {
        set("cpuset", "cpuset.cpus", cpu.cpus.clone());
    }
    if !cpu.mems.is_empty() {
        set("cpuset", "cpuset.mems", cpu.mems.clone());
    }
    match pids.limit {
        0 => {}
        limit => set("pids", "pids.max", maximum(limit)),
    }
    if let Some(weight) = block_io.weight {
        set("blkio", "blkio.weight", weight.to_string());
    }
    if let Some(weight) = block_io.leaf_weight {
        set("blkio", "blkio.leaf_weight", weight.to_string());
    }
    for WeightDevice {
        major,
        minor,
        weight,
        leaf_weight,
    } in &block_io.weight_device
    {
        if let Some(weight) = weight {
            set(
                "blkio",
                "blkio.weight_device",
                format!("{major}:{minor} {weight}"),
            );
        }
        if let Some(weight) = leaf_weight {
            set(
                "blkio",
                "blkio.leaf_weight_device",
                format!("{major}:{minor} {weight}"),
            );
        }
    }
    for (file, throttles) in [
        (
            "blkio.throttle.read_bps_device",
            &block_io.throttle_read_bps_device,
        ),
        (
            "blkio.throttle.write_bps_device",
            &block_io.throttle_write_bps_device,
        ),
        (
            "blkio.throttle.read_iops_device",
            &block_io.throttle_read_iops_device,
        ),
        (
            "blkio.throttle.write_iops_device",
            &block_io.throttle_write_iops_device,
        ),
    ] {
        for ThrottleDevice { major, minor, rate } in throttles {
            set("blkio", file, format!("{major}:{minor} {rate}"));
        }
    }
    for HugepageLimit { page_size, limit } in hugepage_limits {
        set(
            "hugetlb",
            &format!("hugetlb.{page_size}.limit_in_bytes"),
            limit.to_string(),
        );
    }
    if let Some(class) = network.class_id {
        set("net_cls", "net_cls.classid", class.to_string());
    }
    for priority in &network.priorities {
        set(
            "net_prio",
            "net_prio.ifpriomap",
            format!("{} {}", priority.name, priority.priority),
        );
    }
    for (device, limit) in rdma {
        set("rdma", "rdma.max", rdma_limit(device, limit));
    }
    settings
}

pub(super) fn settings_v2(limits: &Resources) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut set = |file: &str, value: String| {
        settings.push(Setting {
            controller: UNIFIED,
            file: file.to_owned(),
            value,
        });
    };
    let Resources {
        devices: _,
        memory,
        cpu,
        pids,
        block_io,
        hugepage_limits,
        network: _,
        rdma,
        unified,
    } = limits;

    if let Some(limit) = memory.limit {
        set("memory.max", maximum(limit));
    }
    if let Some(swap) = memory.swap {
        // Version 1 counts memory and swap together, version 2 swap alone.
        let swap = match (swap, memory.limit) {
            (-1, _) => -1,
            (swap, Some(limit)) if limit >= 0 => (swap - limit).max(0),
            (swap, _) => swap,
        };
        set("memory.swap.max", maximum(swap));
    }
    if let Some(reservation) = memory.reservation {
        set("memory.low", maximum(reservation));
    }
    if let Some(shares) = cpu.shares {
        set("cpu.weight", weight_of_shares(shares).to_string());
    }
    if cpu.quota.is_some() || cpu.period.is_some() {
        let quota = cpu.quota.filter(|quota| *quota > 0).unwrap_or(-1);
        set(
            "cpu.max",
            format!("{} {}", maximum(quota), cpu.period.unwrap_or(100_000)),
        );
    }
    if !cpu.cpus.is_empty() {
        set("cpuset.cpus", cpu.cpus.clone());
    }
    if !cpu.mems.is_empty() {
        set("cpuset.mems", cpu.mems.clone());
    }
    match pids.limit {
        0 => {}
        limit => set("pids.max", maximum(limit)),
    }
    if let Some(weight) = block_io.weight {
        // 10 to 1000 becomes 1 to 10000.
        let weight = 1 + (u64::from(weight).saturating_sub(10)) * 9999 / 990;
        set("io.weight", weight.to_string());
    }
    for (key, throttles) in [
        ("rbps", &block_io.throttle_read_bps_device),
        ("wbps", &block_io.throttle_write_bps_device),
        ("riops", &block_io.throttle_read_iops_device),
        ("wiops", &block_io.throttle_write_iops_device),
    ] {
        for ThrottleDevice { major, minor, rate } in throttles {
            set("io.max", format!("{major}:{minor} {key}={rate}"));
        }
    }
    for HugepageLimit { page_size, limit } in hugepage_limits {
        set(&format!("hugetlb.{page_size}.max"), limit.to_string());
    }
    for (device, limit) in rdma {
        set("rdma.max", rdma_limit(device, limit));
    }
    for (file, value) in unified {
        set(file, value.clone());
    }
    settings
}

/// 2 to 262144 becomes 1 to 10000.
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn maximum(limit: i64) -> String {
    match limit {
        ..=-1 => "max".into(),
        limit => limit.to_string(),
    }
}

fn device_rule(rule: &DeviceRule) -> String {
    let kind = rule.kind.as_deref().unwrap_or("a");
    let number = |number: Option<i64>| match number {
        None | Some(..=-1) => "*".to_owned(),
        Some(number) => number.to_string(),
    };
    match kind {
        // The kernel takes no more of a rule for all devices.
        "a" => "a".into(),
        kind => format!(
            "{kind} {}:{} {}",
            number(rule.major),
            number(rule.minor),
            rule.access
        ),
    }
}

fn rdma_limit(device: &str, limit: &crate::container::oci::Rdma) -> String {
    let mut text = device.to_owned();
    if let Some(handles) = limit.hca_handles {
        text += &format!(" hca_handle={handles}");
    }
    if let Some(objects) = limit.hca_objects {
        text += &format!(" hca_object={objects}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Resources {
        serde_json::from_str(
            r#"{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"access":"rw"}],
                "memory":{"limit":1000,"swap":3000},"cpu":{"shares":1024,"quota":50000,"period":100000,"cpus":"0"},
                "pids":{"limit":20},"unified":{"memory.high":"900"},
                "blockIO":{"throttleReadIOPSDevice":[{"major":8,"minor":0,"rate":7}]}}"#,
        )
        .unwrap()
    }

    fn lines(settings: &[Setting]) -> Vec<String> {
        settings
            .iter()
            .map(|s| format!("{} {} {}", s.controller, s.file, s.value))
            .collect()
    }

    #[test]
    fn version_1() {
        assert_eq!(
            lines(&settings_v1(&limits())),
            [
                "devices devices.deny a",
                "devices devices.allow c 1:* rw",
                "memory memory.limit_in_bytes 1000",
                "memory memory.memsw.limit_in_bytes 3000",
                "cpu cpu.shares 1024",
                "cpu cpu.cfs_period_us 100000",
                "cpu cpu.cfs_quota_us 50000",
                "cpuset cpuset.cpus 0",
                "pids pids.max 20",
                "blkio blkio.throttle.read_iops_device 8:0 7",
            ]
        );
    }

    #[test]
    fn version_2() {
        assert_eq!(
            lines(&settings_v2(&limits())),
            [
                " memory.max 1000",
                " memory.swap.max 2000",
                " cpu.weight 39",
                " cpu.max 50000 100000",
                " cpuset.cpus 0",
                " pids.max 20",
                " io.max 8:0 riops=7",
                " memory.high 900",
            ]
        );
        assert_eq!(weight_of_shares(2), 1);
        assert_eq!(weight_of_shares(262_144), 10_000);
    }

    #[test]
    fn what_a_host_lacks_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let paths = |controller: &str| {
            BTreeMap::from([(controller.to_owned(), directory.path().to_owned())])
        };
        std::fs::write(directory.path().join("cpu.shares"), "").unwrap();
        let notes = apply(&paths("cpu"), &limits()).unwrap();
        assert!(
            notes
                .iter()
                .any(|note| note.contains("no memory hierarchy")),
            "{notes:?}"
        );
        assert!(
            notes
                .iter()
                .any(|note| note.contains("cpu.cfs_quota_us") && note.contains("kernel")),
            "{notes:?}"
        );
        assert_eq!(
            std::fs::read_to_string(directory.path().join("cpu.shares")).unwrap(),
            "1024"
        );
        let notes = apply(&paths(UNIFIED), &limits()).unwrap();
        assert!(notes.iter().any(|note| note.contains("BPF")), "{notes:?}");
    }
}
