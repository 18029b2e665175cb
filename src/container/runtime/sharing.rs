//! Who else uses a container's network.
//!
//! CRIU locks a network namespace as a whole, and after a dump that ends the tasks the lock stays until their restore. In a pod, and
//! wherever else containers share a network, that would cut off those who go on.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::container::error::ErrorKind;
use crate::container::model::{Live, NamespaceKind};
use crate::options::{DumpOptions, NetworkLock};

/// A process of this host that has the container's network namespace and is none of its `members`.
///
/// The host's own namespace does not count: CRIU locks single connections in it.
///
/// # Errors
/// What kept the processes from being looked at: there may be one that shares it.
pub(super) fn sharer(
    live: &Live,
    members: &BTreeMap<i32, PathBuf>,
) -> Result<Option<i32>, ErrorKind> {
    let Some(network) = live.namespaces.get(&NamespaceKind::Network) else {
        return Ok(None);
    };
    let own = fs::metadata("/proc/self/ns/net").map_err(looking("/proc/self/ns/net"))?;
    if own.ino() == *network {
        return Ok(None);
    }
    let processes = fs::read_dir("/proc").map_err(looking("/proc"))?;
    for entry in processes {
        let name = entry.map_err(looking("/proc"))?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if !members.contains_key(&pid) && network_of(&pid.to_string())? == Some(*network) {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

/// The network namespace of a process; `None` when it has ended, or is not for us to look at: one that may not be traced, as
/// that of a host around ours, has what it does from that host.
fn network_of(process: &str) -> Result<Option<u64>, ErrorKind> {
    let path = format!("/proc/{process}/ns/net");
    match fs::metadata(&path) {
        Ok(file) => Ok(Some(file.ino())),
        Err(error) if is_none_of_ours(&error) => Ok(None),
        Err(error) => Err(looking(&path)(error)),
    }
}

fn is_none_of_ours(error: &io::Error) -> bool {
    let denied_or_gone = [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied];
    denied_or_gone.contains(&error.kind())
        || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

fn looking(path: &str) -> impl FnOnce(io::Error) -> ErrorKind {
    ErrorKind::system(format!(
        "looking at {path}, to see who shares the container's network (--network-lock skip locks it for nobody)"
    ))
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
