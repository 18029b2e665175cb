//! The console socket: how the owner of a terminal gets its master.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// What runtimes call the master of a restored terminal.
const NAME: &[u8] = b"orphan-pts-master";

/// How often a listener is tried whose queue is full.
const AGAIN: Duration = Duration::from_millis(20);

/// Sends `master` to the socket at `path`, with the name that the runtimes' consumers expect.
///
/// Waits for as long as the listener does not accept: whoever calls has a time limit.
pub(super) async fn send(path: &Path, master: BorrowedFd<'_>) -> io::Result<()> {
    let socket = loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(AGAIN).await;
            }
            connected => break connected?,
        }
    };
    let sent = socket
        .async_io(Interest::WRITABLE, || {
            let descriptors = [master];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
                return Err(io::Error::other(
                    "no room for a descriptor in a control message",
                ));
            }
            Ok(sendmsg(
                socket.as_fd(),
                &[IoSlice::new(NAME)],
                &mut control,
                SendFlags::NOSIGNAL,
            )?)
        })
        .await?;
    match sent == NAME.len() {
        true => Ok(()),
        false => Err(io::ErrorKind::WriteZero.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::Read;

    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

    #[tokio::test]
    async fn a_listener_whose_queue_is_full_is_waited_for_and_holds_up_nobody_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let listener = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let listener = std::os::unix::net::UnixListener::from(listener);
        // Takes the one place that there is.
        let first = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        let mut sending = std::pin::pin!(send(&path, reader.as_fd()));
        let early = tokio::time::timeout(Duration::from_millis(100), &mut sending).await;
        assert!(early.is_err(), "{early:?}");
        drop(listener.accept().unwrap());
        drop(first);
        sending.await.unwrap();
        let mut name = [0; 17];
        listener.accept().unwrap().0.read_exact(&mut name).unwrap();
        assert_eq!(name, *NAME);
    }
}
