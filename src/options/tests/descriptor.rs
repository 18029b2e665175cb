//! Every field of criu_opts against the options, by the protocol file itself.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

use super::*;
use crate::options::since::since;
use crate::rpc::fields::fields;
use crate::rpc::view::CRIU_OPTS;
use crate::rpc::wire;
use crate::version::Version;

/// The fields of `criu_opts` that no option sets, and why.
const NOT_MAPPED: &[(&str, &str)] = &[
    ("images_dir_fd", "set by the operation"),
    ("images_dir", "set by the operation"),
    ("pid", "set by the operation"),
    ("notify_scripts", "set by the operation"),
    ("rst_sibling", "set by the operation"),
    (
        "manage_cgroups",
        "deprecated: manage_cgroups_mode says the same and more",
    ),
    (
        "unix_sk_ino",
        "deprecated: external unix[INODE] says the same",
    ),
    (
        "ext_mnt",
        "deprecated: external mnt[ID]:VALUE says the same",
    ),
    (
        "veths",
        "deprecated: external veth[INSIDE]:OUTSIDE says the same",
    ),
];

/// Number and name of each field of criu_opts.
fn criu_opts() -> BTreeMap<u32, String> {
    CRIU_OPTS
        .fields
        .iter()
        .map(|field| (field.number, field.name.to_owned()))
        .collect()
}

/// The names of the fields that are present, without the required one.
fn present(opts: &wire::CriuOpts) -> BTreeSet<String> {
    let names = criu_opts();
    assert_eq!(opts.images_dir_fd, -1);
    fields(&opts.encode_to_vec())
        .unwrap()
        .iter()
        .map(|field| names[&field.number].clone())
        .filter(|name| name != "images_dir_fd")
        .collect()
}

/// For each field, the operations that read it: D dump, P pre-dump, R restore, S page server, C cpuinfo, K check.
const READ_BY: &[(&str, &str)] = &[
    ("leave_running", "D"),
    ("leave_stopped", "DR"),
    ("ext_unix_sk", "DR"),
    ("tcp_established", "DR"),
    ("tcp_skip_in_flight", "D"),
    ("tcp_close", "DR"),
    ("evasive_devices", "DR"),
    ("shell_job", "DR"),
    ("file_locks", "DR"),
    ("log_level", "DPRSCK"),
    ("log_file", "DPRSCK"),
    ("log_to_stderr", "DPRSCK"),
    ("work_dir_fd", "DPRSCK"),
    ("ps", "DPS"),
    ("root", "DR"),
    ("parent_img", "DPS"),
    ("track_mem", "DP"),
    ("auto_dedup", "DRS"),
    ("pre_dump_mode", "P"),
    ("pidfd_store_sk", "DP"),
    ("link_remap", "DR"),
    ("force_irmap", "DP"),
    ("irmap_scan_paths", "DP"),
    ("ghost_limit", "D"),
    ("timeout", "DP"),
    ("freeze_cgroup", "DP"),
    ("cpu_cap", "DRC"),
    ("exec_cmd", "R"),
    ("inherit_fd", "R"),
    ("orphan_pts_master", "DR"),
    ("external", "DR"),
    ("auto_ext_mnt", "DR"),
    ("ext_sharing", "DR"),
    ("ext_masters", "DR"),
    ("skip_mnt", "D"),
    ("enable_fs", "DR"),
    ("empty_ns", "DR"),
    ("join_ns", "R"),
    ("weak_sysctls", "R"),
    ("manage_cgroups_mode", "DR"),
    ("cg_root", "DR"),
    ("cgroup_props", "D"),
    ("cgroup_props_file", "D"),
    ("cgroup_dump_controller", "D"),
    ("cgroup_yard", "DR"),
    ("lazy_pages", "DR"),
    ("status_fd", "DS"),
    ("config_file", "DPRSCK"),
    ("lsm_profile", "R"),
    ("lsm_mount_context", "R"),
    ("tls_cacert", "DPS"),
    ("tls_cacrl", "DPS"),
    ("tls_cert", "DPS"),
    ("tls_key", "DPS"),
    ("tls", "DPS"),
    ("tls_no_cn_verify", "DPS"),
    ("network_lock", "D"),
    ("mntns_compat_mode", "R"),
    ("skip_file_rwx_check", "R"),
    ("unprivileged", "DPRSCK"),
    ("display_stats", "DR"),
    ("image_io_mode", "DR"),
    ("compress", "D"),
    ("compress_acceleration", "D"),
    ("compress_block_size", "D"),
    ("decompress_threads", "R"),
    ("plugin_options", "DPR"),
    ("stream", "DPR"),
];

#[test]
fn every_field_is_set_by_the_operations_that_read_it_or_listed_as_not_mapped() {
    let mut dump = present(&full_dump().prepare(3).unwrap().opts);
    dump.extend(present(
        &full_dump().leave(Leave::Running).prepare(3).unwrap().opts,
    ));
    let by_operation = [
        ('D', dump),
        ('P', present(&full_pre_dump().prepare(3).unwrap().opts)),
        ('R', present(&full_restore().prepare(3).unwrap().opts)),
        ('S', present(&full_page_server().prepare(3).unwrap().opts)),
        ('C', present(&full_cpuinfo().prepare(3).unwrap().opts)),
        ('K', present(&full_check().prepare(3).unwrap().opts)),
    ];
    for (operation, fields) in &by_operation {
        let expected: BTreeSet<String> = READ_BY
            .iter()
            .filter(|(_, operations)| operations.contains(*operation))
            .map(|(name, _)| (*name).to_owned())
            .collect();
        assert_eq!(fields, &expected, "fields of operation {operation}");
    }

    for (number, name) in criu_opts() {
        let set = by_operation
            .iter()
            .any(|(_, fields)| fields.contains(&name));
        let listed = NOT_MAPPED
            .iter()
            .filter(|(field, _)| *field == name)
            .count();
        assert_eq!(usize::from(set) + listed, 1, "field {number} {name}");
    }
    assert_eq!(READ_BY.len() + NOT_MAPPED.len(), criu_opts().len());
}

#[test]
fn what_is_not_set_is_not_sent() {
    let encoded = wire::CriuOpts::default().encode_to_vec();
    for opts in [
        DumpOptions::new().prepare(3).unwrap().opts,
        DumpOptions::new()
            .leave(Leave::Killed)
            .prepare(3)
            .unwrap()
            .opts,
        PreDumpOptions::new().prepare(3).unwrap().opts,
        RestoreOptions::new().prepare(3).unwrap().opts,
        CheckOptions::new().prepare(3).unwrap().opts,
        CpuinfoOptions::new().prepare(3).unwrap().opts,
    ] {
        assert_eq!(opts.encode_to_vec(), encoded);
    }
}

#[test]
fn every_field_since_46_has_its_release() {
    for (number, name) in criu_opts() {
        match since(number) {
            Some((entry, _)) => assert_eq!(entry, name),
            None => assert!(number < 46, "field {number} {name}"),
        }
    }
}

#[test]
fn too_new_options_are_found() {
    let newer = |opts: &wire::CriuOpts, version: Version| -> Vec<String> {
        newer_than(opts, &version)
            .into_iter()
            .map(|newer| format!("{} {}", newer.field, newer.since))
            .collect()
    };
    let opts = full_dump().prepare(3).unwrap().opts;
    assert_eq!(
        newer(&opts, Version::new(4, 2, 1)),
        [
            "image_io_mode 4.3",
            "compress 4.3",
            "compress_acceleration 4.3",
            "compress_block_size 4.3",
            "plugin_options 4.3",
            "stream 4.3",
        ]
    );
    assert!(newer(&opts, Version::new(4, 3, 0)).is_empty());
    assert!(newer(&opts, Version::new(4, 2, 0).with_git_id("v4.2-22-g1")).is_empty());

    let opts = DumpOptions::new()
        .network_lock(NetworkLock::Skip)
        .external("net[1]:key".parse().unwrap())
        .external("net[2]:key".parse().unwrap())
        .prepare(3)
        .unwrap()
        .opts;
    assert_eq!(
        newer(&opts, Version::new(3, 10, 0)),
        [
            "network_lock 3.16",
            "network_lock=SKIP 3.19",
            "external=net[] 3.11"
        ]
    );
    assert_eq!(
        newer(&opts, Version::new(3, 18, 0)),
        ["network_lock=SKIP 3.19"]
    );
}
