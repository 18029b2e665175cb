//! Which options came with which version of CRIU.
//!
//! CRIU ignores fields it does not know, so an option that is too new for it would have no effect and raise no error.
//! An argument of its program that it does not know ends it before it can say anything else.

use std::ffi::OsString;

use prost::Message;

use crate::rpc::fields::fields;
use crate::rpc::wire;
use crate::version::Version;

/// An option that is newer than the CRIU it is meant for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Newer {
    /// The protocol's name of the field; for a value that is newer than its field, `field=value`; or the argument.
    pub(crate) field: &'static str,
    /// The release that brought it.
    pub(crate) since: Version,
}

/// The fields of `criu_opts` since CRIU 2.4: number, name, and the release that brought each. Older ones are always there.
static FIELDS: &[(u32, &str, Version)] = &[
    (46, "tcp_skip_in_flight", Version::new(2, 4, 0)),
    (47, "weak_sysctls", Version::new(2, 9, 0)),
    (48, "lazy_pages", Version::new(3, 5, 0)),
    (49, "status_fd", Version::new(2, 11, 0)),
    (50, "orphan_pts_master", Version::new(2, 12, 0)),
    (51, "config_file", Version::new(3, 11, 0)),
    (52, "tcp_close", Version::new(3, 12, 0)),
    (53, "lsm_profile", Version::new(3, 12, 0)),
    (54, "tls_cacert", Version::new(3, 13, 0)),
    (55, "tls_cacrl", Version::new(3, 13, 0)),
    (56, "tls_cert", Version::new(3, 13, 0)),
    (57, "tls_key", Version::new(3, 13, 0)),
    (58, "tls", Version::new(3, 13, 0)),
    (59, "tls_no_cn_verify", Version::new(3, 13, 0)),
    (60, "cgroup_yard", Version::new(3, 14, 0)),
    (61, "pre_dump_mode", Version::new(3, 14, 0)),
    (62, "pidfd_store_sk", Version::new(3, 16, 0)),
    (63, "lsm_mount_context", Version::new(3, 16, 0)),
    (64, "network_lock", Version::new(3, 16, 0)),
    (65, "mntns_compat_mode", Version::new(3, 17, 0)),
    (66, "skip_file_rwx_check", Version::new(3, 18, 0)),
    (67, "unprivileged", Version::new(3, 18, 0)),
    (68, "images_dir", Version::new(3, 19, 0)),
    (69, "leave_stopped", Version::new(3, 19, 0)),
    (70, "display_stats", Version::new(3, 19, 0)),
    (71, "log_to_stderr", Version::new(3, 19, 0)),
    (72, "image_io_mode", Version::new(4, 3, 0)),
    (73, "compress", Version::new(4, 3, 0)),
    (74, "compress_acceleration", Version::new(4, 3, 0)),
    (75, "compress_block_size", Version::new(4, 3, 0)),
    (76, "decompress_threads", Version::new(4, 3, 0)),
    (77, "plugin_options", Version::new(4, 3, 0)),
    (78, "stream", Version::new(4, 3, 0)),
];

/// Types of external resources that are newer than the field which carries them.
static EXTERNAL: &[(&str, &str, Version)] = &[
    ("net[", "external=net[]", Version::new(3, 11, 0)),
    ("pid[", "external=pid[]", Version::new(3, 15, 0)),
    ("netdev[", "external=netdev[]", Version::new(3, 16, 0)),
];

/// Arguments of the program that no field carries, and the release that brought each. Older ones are always there.
static ARGUMENTS: &[(&str, Version)] = &[
    ("--no-default-config", Version::new(3, 11, 0)),
    ("--file-validation", Version::new(3, 15, 0)),
    ("--ghost-fiemap", Version::new(3, 18, 0)),
    ("--no-ghost-fiemap", Version::new(3, 18, 0)),
    ("--allow-uprobes", Version::new(4, 2, 0)),
    ("--no-allow-uprobes", Version::new(4, 2, 0)),
];

/// What in `opts` the given CRIU would ignore or refuse because it is too old.
pub(crate) fn newer_than(opts: &wire::CriuOpts, version: &Version) -> Vec<Newer> {
    let mut newer = Vec::new();
    let mut add = |field: &'static str, since: &Version| {
        let entry = Newer {
            field,
            since: since.clone(),
        };
        if !version.has(since) && !newer.contains(&entry) {
            newer.push(entry);
        }
    };

    // What was encoded here is well formed.
    let encoded = opts.encode_to_vec();
    for field in fields(&encoded).unwrap_or_default() {
        if let Some((_, name, since)) = FIELDS.iter().find(|(number, ..)| *number == field.number) {
            add(name, since);
        }
    }
    if opts.network_lock == Some(wire::CriuNetworkLockMethod::Skip.into()) {
        add("network_lock=SKIP", &Version::new(3, 19, 0));
    }
    for external in &opts.external {
        if let Some((_, name, since)) = EXTERNAL
            .iter()
            .find(|(prefix, ..)| external.starts_with(prefix))
        {
            add(name, since);
        }
    }
    newer
}

/// The arguments that not every version of the program has.
pub(crate) fn later_arguments(arguments: &[OsString]) -> Vec<Newer> {
    let names = arguments.iter().filter_map(|argument| {
        let argument = argument.to_str()?;
        Some(argument.split_once('=').map_or(argument, |(name, _)| name))
    });
    names
        .filter_map(|name| ARGUMENTS.iter().find(|(known, _)| *known == name))
        .map(|(name, since)| Newer {
            field: name,
            since: since.clone(),
        })
        .collect()
}

#[cfg(test)]
pub(super) fn since(number: u32) -> Option<(&'static str, &'static Version)> {
    FIELDS
        .iter()
        .find(|(entry, ..)| *entry == number)
        .map(|(_, name, since)| (*name, since))
}
