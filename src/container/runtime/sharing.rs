//! Who else uses a container's network.
//!
//! CRIU locks a network namespace as a whole, and after a dump that ends the tasks the lock stays until their restore. In a pod, and
//! wherever else containers share a network, that would cut off those who go on.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::container::error::ErrorKind;
use crate::container::model::{Live, NamespaceKind};
use crate::options::{DumpOptions, NetworkLock};

/// A process of this host that has the container's network namespace and is none of its `members`.
///
/// The host's own namespace does not count: CRIU locks single connections in it.
pub(super) fn sharer(live: &Live, members: &BTreeMap<i32, PathBuf>) -> Option<i32> {
    let network = live.namespaces.get(&NamespaceKind::Network)?;
    let of = |process: &str| {
        fs::metadata(format!("/proc/{process}/ns/net"))
            .ok()
            .map(|file| file.ino())
    };
    if of("self") == Some(*network) {
        return None;
    }
    // One that ends meanwhile shares nothing any more.
    let processes = fs::read_dir("/proc").ok()?.filter_map(|entry| {
        let name = entry.ok()?.file_name();
        let pid: i32 = name.to_str()?.parse().ok()?;
        (!members.contains_key(&pid)).then_some(pid)
    });
    let mut sharers = processes.filter(|pid| of(&pid.to_string()) == Some(*network));
    sharers.next()
}

/// Keeps the network unlocked for `sharer`, as far as that can be.
pub(super) fn spare(
    sharer: i32,
    options: DumpOptions,
    leave_running: bool,
    tcp_established: bool,
) -> Result<DumpOptions, ErrorKind> {
    match options.chosen_network_lock() {
        Some(NetworkLock::Skip) => Ok(options),
        // Without connections there is nothing to hold still.
        None if !tcp_established => Ok(options.network_lock(NetworkLock::Skip)),
        // Locked for as long as the dump takes: what is lost in that time is sent again.
        _ if leave_running => Ok(options),
        _ => {
            let name = fs::read_to_string(format!("/proc/{sharer}/comm")).unwrap_or_default();
            Err(ErrorKind::Option {
                option: "network-lock",
                problem: format!(
                    "process {sharer} ({}) shares the container's network, which would stay locked for it after the checkpoint: \
                     choose skip, and whatever comes for an established connection before the restore breaks it",
                    name.trim()
                ),
            })
        }
    }
}
