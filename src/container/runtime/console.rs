//! The console socket: how the owner of a terminal gets its master.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// What runtimes call the master of a restored terminal.
const NAME: &[u8] = b"orphan-pts-master";

/// Sends `master` to the socket at `path`, with the name that the runtimes' consumers expect.
pub(super) fn send(path: &Path, master: BorrowedFd<'_>) -> io::Result<()> {
    let socket = UnixStream::connect(path)?;
    let descriptors = [master];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other(
            "no room for a descriptor in a control message",
        ));
    }
    let sent = sendmsg(
        socket.as_fd(),
        &[IoSlice::new(NAME)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    match sent == NAME.len() {
        true => Ok(()),
        false => Err(io::ErrorKind::WriteZero.into()),
    }
}
