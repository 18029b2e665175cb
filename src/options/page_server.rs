use std::os::fd::OwnedFd;

use super::common::{Common, Transfer, common_setters, flags, transfer_setters};

/// How a page server takes the pages of one dump. See the [module](super) for what all options have in common.
#[derive(Debug, Default)]
#[non_exhaustive]
#[must_use]
pub struct PageServerOptions {
    pub(super) common: Common,
    pub(super) transfer: Transfer,
    pub(super) auto_dedup: Option<bool>,
    pub(super) status_fd: Option<OwnedFd>,
}

common_setters!(PageServerOptions);
transfer_setters!(
    PageServerOptions,
    /// Where the server waits: a numeric address and a port, or a socket that is connected already. Long options `--address`,
    /// `--port` and `--ps-socket`.
    ///
    /// Without it CRIU listens on all addresses at a port that the kernel picks. It takes one connection, from anyone.
    transport
);

impl PageServerOptions {
    flags! { own {
        /// Whether pages that arrive are punched out of the images before these. Long option `--auto-dedup`.
        auto_dedup;
    } }

    /// A pipe or file to which CRIU writes one zero byte when the server is ready. Long option `--status-fd`.
    ///
    /// CRIU opens it anew through `/proc`, so it cannot be a socket; ours is kept open until CRIU has answered. Obsolete: the
    /// answer to the request says the same.
    pub fn status_fd(mut self, fd: OwnedFd) -> Self {
        self.status_fd = Some(fd);
        self
    }
}
