//! Taking down the network lock that a killed CRIU left behind.
//!
//! CRIU locks in one of two places, and in one of two ways, depending on the request and on how it was built:
//!
//! | | iptables | nftables |
//! |---|---|---|
//! | tasks in a namespace of their own: all of it | in `filter` of IPv4 and IPv6 a chain `CRIU` that drops what lacks CRIU's mark, jumped to from INPUT and OUTPUT | a table `inet CRIU-…` |
//! | tasks in CRIU's namespace: each connection | two DROP rules in INPUT and OUTPUT | a table `inet CRIU-…` with the connections as a set |
//!
//! iptables' part is removed as it was made, by iptables-restore in one transaction; nftables' over netlink, as CRIU needs no
//! nft program either. What was there before the dump, and rules about others' connections, stay.

mod repair;
mod rules;
mod tables;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns};
use procfs::process::{FDTarget, Process};

pub(crate) use repair::end_repair;

use super::care::Aftermath;
use super::tasks;

/// What a dump may lock, as it was before.
#[derive(Debug)]
pub(crate) enum NetworkLock {
    /// All traffic of the tasks' own namespace.
    Namespace {
        namespace: OwnedFd,
        tables_before: HashSet<String>,
    },
    /// Connections of the tasks within our namespace.
    Connections {
        connections: HashSet<Connection>,
        tables_before: HashSet<String>,
    },
}

/// An established TCP connection: local and remote end.
pub(crate) type Connection = (SocketAddr, SocketAddr);

impl NetworkLock {
    /// Looks at the namespace of `pid` before CRIU locks it.
    pub(crate) fn of_namespace(pid: i32) -> Option<Self> {
        let namespace = OwnedFd::from(File::open(format!("/proc/{pid}/ns/net")).ok()?);
        let tables_before = within(namespace.as_fd(), tables::tables).unwrap_or_default();
        Some(Self::Namespace {
            namespace,
            tables_before,
        })
    }

    /// Looks at our namespace before CRIU locks connections of the tree below `pid` in it; `None` when that is elsewhere.
    pub(crate) fn of_connections(pid: i32) -> Option<Self> {
        let own = Process::myself().ok()?.namespaces().ok()?;
        let theirs = Process::new(pid).ok()?.namespaces().ok()?;
        let inode = |namespaces: &procfs::process::Namespaces| {
            namespaces
                .0
                .get(std::ffi::OsStr::new("net"))
                .map(|net| net.identifier)
        };
        if inode(&own) != inode(&theirs) {
            return None;
        }
        Some(Self::Connections {
            connections: HashSet::new(),
            tables_before: tables::tables().unwrap_or_default(),
        })
    }

    /// Takes note of the connections of the tree below `pid`, which is stopped.
    pub(crate) fn note_connections(&mut self, pid: i32) {
        if let Self::Connections {
            connections: noted, ..
        } = self
        {
            *noted = connections(&tasks::with_descendants(&[pid]));
        }
    }

    /// Removes the lock.
    pub(crate) fn unlock(&self, aftermath: &mut Aftermath) {
        let result = match self {
            Self::Namespace {
                namespace,
                tables_before,
            } => within(namespace.as_fd(), || {
                let mut inside = Aftermath::default();
                for name in tables::tables()?.difference(tables_before) {
                    delete(name, &mut inside);
                }
                rules::remove_chain(&mut inside);
                Ok(inside)
            }),
            Self::Connections {
                connections,
                tables_before,
            } => {
                let mut inside = Aftermath::default();
                rules::remove_connections(connections, &mut inside);
                tables::tables().map(|tables| {
                    let new: Vec<_> = tables.difference(tables_before).collect();
                    match new.as_slice() {
                        [] => {}
                        [name] => delete(name, &mut inside),
                        // Another CRIU locks connections in this namespace at the same time: there is no telling which is whose.
                        several => inside
                            .left_behind
                            .push(format!("one of the nftables tables inet {several:?}")),
                    }
                    inside
                })
            }
        };
        match result {
            Ok(inside) => {
                aftermath.undone.extend(inside.undone);
                aftermath.left_behind.extend(inside.left_behind);
            }
            Err(error) => aftermath.left_behind.push(format!(
                "CRIU's network lock could not be looked for: {error}"
            )),
        }
    }
}

fn delete(table: &str, aftermath: &mut Aftermath) {
    match tables::delete_table(table) {
        Ok(()) => aftermath.undone.push(format!(
            "network lock removed (nftables table inet {table})"
        )),
        Err(error) => aftermath
            .left_behind
            .push(format!("nftables table inet {table}: {error}")),
    }
}

/// Runs `work` on a thread of its own within `namespace`; no other thread ever leaves its own.
fn within<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("criu-netns".into())
            .spawn_scoped(scope, move || {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
                work()
            })?;
        thread.join().unwrap_or_else(|_| {
            Err(io::Error::other(
                "the thread in the network namespace panicked",
            ))
        })
    })
}

/// The established connections of these processes within our namespace; IPv4 ones of IPv6 sockets as IPv4.
fn connections(pids: &[i32]) -> HashSet<Connection> {
    let sockets: HashSet<u64> = pids
        .iter()
        .filter_map(|pid| Process::new(*pid).ok()?.fd().ok())
        .flatten()
        .filter_map(|fd| match fd.ok()?.target {
            FDTarget::Socket(inode) => Some(inode),
            _ => None,
        })
        .collect();
    let mut entries = procfs::net::tcp().unwrap_or_default();
    entries.extend(procfs::net::tcp6().unwrap_or_default());
    entries
        .into_iter()
        .filter(|entry| sockets.contains(&entry.inode))
        .filter(|entry| entry.remote_address.port() != 0)
        .map(|entry| {
            (
                canonical(entry.local_address),
                canonical(entry.remote_address),
            )
        })
        .collect()
}

fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(_) => address,
        IpAddr::V6(ip) => SocketAddr::new(ip.to_canonical(), address.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_connections_are_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let remote = listener.local_addr().unwrap();
        let stream = std::net::TcpStream::connect(remote).unwrap();
        let local = stream.local_addr().unwrap();
        let found = connections(&[std::process::id().cast_signed()]);
        assert!(found.contains(&(local, remote)), "{found:?}");
        assert!(
            !found.iter().any(|(local, _)| *local == remote),
            "a listener is no connection"
        );
    }
}
