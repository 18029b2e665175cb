//! Listening in on a `criu service`.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixDatagram;

use super::Interposer;
use super::recording::Side;
use crate::rpc::service::connect;

/// As many connections as CRIU lets wait.
const BACKLOG: i32 = 16;

/// A socket that clients connect to in place of a service's, each connection being carried to the service.
///
/// Like the service's own, the socket has mode 0600, and whoever can open it can do as root whatever CRIU can. It is removed
/// when this is dropped.
#[derive(Debug)]
pub struct Service {
    // tokio's datagram socket carries a listening one: readiness and descriptor are all that is used of it.
    listener: UnixDatagram,
    path: PathBuf,
    upstream: PathBuf,
}

/// A client that has connected.
#[derive(Debug)]
pub struct Client {
    engine: OwnedFd,
    upstream: PathBuf,
}

impl Service {
    /// Listens at `path`, for clients of the service at `upstream`. Within a tokio runtime.
    ///
    /// # Errors
    /// When something is at `path` already, or it cannot be listened there.
    pub fn listen(path: impl Into<PathBuf>, upstream: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        let listener = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path)?)?;
        let service = Self {
            listener: UnixDatagram::from_std(std::os::unix::net::UnixDatagram::from(listener))?,
            path,
            upstream: upstream.into(),
        };
        // Nobody can have connected yet.
        rustix::fs::chmod(
            &service.path,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        )?;
        rustix::net::listen(&service.listener, BACKLOG)?;
        Ok(service)
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next client. Cancel safe.
    ///
    /// # Errors
    /// When no connection can be taken.
    pub async fn accept(&self) -> io::Result<Client> {
        let engine = self
            .listener
            .async_io(tokio::io::Interest::READABLE, || {
                Ok(rustix::net::accept_with(
                    &self.listener,
                    SocketFlags::CLOEXEC,
                )?)
            })
            .await?;
        Ok(Client {
            engine,
            upstream: self.upstream.clone(),
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Client {
    /// Connects to the service and carries what passes until one side hangs up. See [`Interposer::between`].
    ///
    /// # Errors
    /// When the service cannot be reached: the client then sees its connection end, as if CRIU had died. Otherwise as
    /// [`Interposer::between`].
    pub async fn listen(self, interposer: Interposer<'_>) -> io::Result<Side> {
        let criu = connect(&self.upstream).await?;
        interposer
            .service(self.upstream)
            .between(self.engine, criu)
            .await
    }
}
