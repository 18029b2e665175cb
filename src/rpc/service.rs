//! Connecting to `criu service`.
//!
//! Whoever can open that socket can do as root whatever CRIU can: the service asks nobody for permission.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

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
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => tokio::time::sleep(RETRY).await,
            Err(error) => return Err(error.into()),
        }
    }
}
