//! Connecting to `criu service`.
//!
//! Whoever can open that socket can do as root whatever CRIU can: the service asks nobody for permission.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Pid;

use super::transport::{self, wait_readable};
use crate::sys;

/// How long to wait between tries while the service's queue of connections is full.
const RETRY: Duration = Duration::from_millis(5);

/// Connects to the service's socket. Cancel safe. With a full queue it tries again until cancelled.
pub(crate) async fn connect(path: &Path) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    loop {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        transport::tell_sender(&socket, true)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => tokio::time::sleep(RETRY).await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// The service's process that works on a connection. It is not ours: it is watched, and neither killed nor reaped.
#[derive(Debug)]
pub(crate) struct Peer {
    pid: i32,
    pidfd: OwnedFd,
    same_pids: bool,
}

impl Peer {
    /// The process that has just sent something and waits for more, so that it cannot have ended yet.
    pub(crate) fn open(pid: i32) -> Option<Self> {
        let pidfd = sys::open_pidfd(Pid::from_raw(pid)?).ok()?;
        let same_pids = is_in_our_namespace(pidfd.as_fd());
        Some(Self {
            pid,
            pidfd,
            same_pids,
        })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether the numbers of processes that it tells mean the same here.
    pub(crate) fn same_pids(&self) -> bool {
        self.same_pids
    }

    /// Waits for its end; false when it still runs at `deadline`.
    pub(crate) fn gone(&self, deadline: Instant) -> bool {
        wait_readable(self.pidfd(), deadline).unwrap_or(false)
    }
}

/// Whether a process has no other number than the one that it has here, which whoever is in a namespace below ours has. Other
/// than its links below `/proc/PID/ns`, everybody may read this.
fn is_in_our_namespace(pidfd: BorrowedFd<'_>) -> bool {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()));
    info.is_ok_and(|info| {
        info.lines()
            .find_map(|line| line.strip_prefix("NSpid:"))
            // A kernel without pid namespaces has no such line.
            .is_none_or(|numbers| numbers.split_whitespace().count() == 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_are_in_our_own_namespace() {
        let own = Peer::open(std::process::id().cast_signed()).unwrap();
        assert!(own.same_pids());
        assert!(!own.gone(Instant::now()));
    }
}
