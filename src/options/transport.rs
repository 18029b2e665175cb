//! How memory pages travel between two CRIUs.

use std::os::fd::OwnedFd;

/// The connection between a dump and the page server that stores its pages.
#[derive(Debug)]
#[non_exhaustive]
pub enum PageTransport {
    /// A TCP connection that CRIU makes, or waits for, itself.
    Tcp {
        /// For a dump: the name or number of the host that runs the page server. For a page server: the numeric IPv4 or IPv6
        /// address it listens on, `0.0.0.0` for all.
        host: String,
        /// For a dump: the server's port. For a page server: the port to listen on, 0 to let the kernel pick one.
        port: u16,
    },
    /// A connected stream socket. CRIU gets a copy; ours is closed when the request is over. It is never encrypted by CRIU.
    Connected(OwnedFd),
}

impl PageTransport {
    /// TCP to or at `host` and `port`.
    #[must_use]
    pub fn tcp(host: impl Into<String>, port: u16) -> Self {
        Self::Tcp {
            host: host.into(),
            port,
        }
    }
}
