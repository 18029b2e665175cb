//! Datagrams with descriptors over a SOCK_SEQPACKET unix socket.
//!
//! A datagram is sized before it is read, because a short read discards the rest of it. Received descriptors are owned
//! from the system call on. Every call is retried on EINTR, and a reset by the peer is retried once, since CRIU's last
//! answer may still be queued behind it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessageOwned, MsgFlags};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// The kernel lets one message carry at most this many descriptors.
const DESCRIPTORS_AT_MOST: usize = 253;

/// What a send buffer holds by default; larger messages need a larger buffer first.
const DEFAULT_SEND_BUFFER: usize = 160 * 1024;

/// How long the last words of a process that has ended may still be on their way: somebody may be listening in between.
const ON_THEIR_WAY: Duration = Duration::from_millis(500);

/// One message and the descriptors that came with it.
#[derive(Debug)]
pub(crate) struct Datagram {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// A connected pair of SEQPACKET sockets, both closed on exec and blocking.
///
/// It must be made by the process that owns the directories named in a request: CRIU looks their numbers up in the
/// table of the process that made the pair.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::SEQPACKET,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?)
}

/// The asynchronous end of a socket, within the tokio runtime that it was made in.
#[derive(Debug)]
pub(crate) struct Socket {
    // For reading alone: registered for writing too, it would be woken whenever the peer has read what we sent.
    inner: AsyncFd<OwnedFd>,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl Socket {
    /// Takes over a connected SEQPACKET socket. Only this end becomes non-blocking, not the peer's.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let inner = sys::registered(socket, Interest::READABLE)?;
        Ok(Self { inner })
    }

    /// The next datagram; `None` when the peer has hung up. Cancel safe: a datagram is taken whole or not at all.
    pub(crate) async fn receive(&self) -> io::Result<Option<Datagram>> {
        self.inner
            .async_io(Interest::READABLE, |socket| receive_now(socket.as_fd()))
            .await
    }

    /// The last words of a peer that has ended; `None` when it has left none. Forks of it can hold its end of the socket open,
    /// so that there is no hang-up to wait for.
    pub(crate) async fn receive_last(&self) -> io::Result<Option<Datagram>> {
        tokio::time::timeout(ON_THEIR_WAY, self.receive())
            .await
            .unwrap_or(Ok(None))
    }

    /// The pid of the process that has sent the next datagram, which stays queued; `None` when that process has no number in
    /// our pid namespace. Needs [`tell_sender`] from before it was sent. Cancel safe.
    pub(crate) async fn next_sender(&self) -> io::Result<Option<i32>> {
        self.inner
            .async_io(Interest::READABLE, |socket| peek_sender(socket.as_fd()))
            .await
    }

    /// Completes when the peer has hung up with nothing of it left to be read. Cancel safe; takes nothing.
    pub(crate) async fn hung_up(&self) {
        let peeked = self
            .inner
            .async_io(Interest::READABLE, |socket| {
                Ok(peek_length(socket.as_fd())?)
            })
            .await;
        if matches!(peeked, Ok(1..)) {
            // It is there for as long as nobody reads it.
            std::future::pending().await
        }
    }

    /// Sends one datagram. Cancel safe: it is sent whole or not at all.
    pub(crate) async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let socket = self.inner.as_fd();
        make_room(socket, bytes.len());
        match send_now(socket, bytes, fds) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
        // Hardly ever: the peer has not read for a while. A second registration, for as long as that lasts.
        let writing = sys::registered(socket.try_clone_to_owned()?, Interest::WRITABLE)?;
        writing
            .async_io(Interest::WRITABLE, |socket| {
                send_now(socket.as_fd(), bytes, fds)
            })
            .await
    }

    /// Leaves the runtime: the same socket for blocking use.
    pub(crate) fn into_blocking(self) -> io::Result<BlockingSocket> {
        Ok(BlockingSocket(self.inner.into_inner()))
    }
}

/// The end of a socket that waits with poll(2): for the thread that settles an operation outside any runtime.
#[derive(Debug)]
pub(crate) struct BlockingSocket(OwnedFd);

impl BlockingSocket {
    #[cfg(test)]
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// The next datagram, or an error of kind `TimedOut` when nothing came until `deadline`. `None`: the peer has hung up,
    /// or the process behind the pidfd `worker` has ended and nothing of it is queued. Forks of a dead worker can hold its
    /// end of the socket open, so that there is no hang-up.
    pub(crate) fn receive(
        &self,
        worker: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> io::Result<Option<Datagram>> {
        loop {
            let mut watched = vec![self.0.as_fd()];
            watched.extend(worker);
            let Some(ready) = wait_any_readable(&watched, deadline)? else {
                return Err(io::ErrorKind::TimedOut.into());
            };
            match receive_now(self.0.as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && ready == 0 => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let last = deadline.min(Instant::now() + ON_THEIR_WAY);
                    return match wait_readable(self.0.as_fd(), last)? {
                        true => receive_now(self.0.as_fd()),
                        false => Ok(None),
                    };
                }
                result => return result,
            }
        }
    }

    /// Sends one small datagram; the buffer of an idle connection always has room for it.
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        send_now(self.0.as_fd(), bytes, &[])
    }
}

/// Waits until `fd` is readable or hung up; false when `deadline` passed first.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, deadline: Instant) -> io::Result<bool> {
    Ok(wait_any_readable(&[fd], deadline)?.is_some())
}

/// Waits until one of `fds` is readable or hung up, and tells the first that is; `None` when `deadline` passed first.
fn wait_any_readable(fds: &[BorrowedFd<'_>], deadline: Instant) -> io::Result<Option<usize>> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut polled: Vec<_> = fds
            .iter()
            .map(|fd| PollFd::new(fd, PollFlags::IN))
            .collect();
        match rustix::event::poll(&mut polled, Some(&timespec(left))) {
            Ok(0) if Instant::now() >= deadline => return Ok(None),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(polled.iter().position(|fd| !fd.revents().is_empty())),
            Err(error) => return Err(error.into()),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

fn receive_now(socket: BorrowedFd<'_>) -> io::Result<Option<Datagram>> {
    let length = match peek_length(socket) {
        // Reported once; an answer that CRIU sent before it went away is read by the next call.
        Err(Errno::CONNRESET) => peek_length(socket),
        result => result,
    }?;
    if length == 0 {
        return Ok(None);
    }
    let mut bytes = vec![0; length];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_AT_MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = retry(|| {
        recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    bytes.truncate(received.bytes);
    if received.flags.contains(ReturnFlags::CTRUNC) {
        // Some of its descriptors could not be opened: a callback without its terminal must not pass for a whole one.
        return Err(io::Error::from_raw_os_error(Errno::MFILE.raw_os_error()));
    }
    let fds = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    Ok(Some(Datagram { bytes, fds }))
}

/// The length of the datagram that comes next, which stays queued. 0: the peer has hung up (or sent an empty datagram,
/// which both sides of this protocol take for the same).
fn peek_length(socket: BorrowedFd<'_>) -> rustix::io::Result<usize> {
    let mut nothing: [u8; 0] = [];
    let (_, length) =
        retry(|| rustix::net::recv(socket, &mut nothing, RecvFlags::PEEK | RecvFlags::TRUNC))?;
    Ok(length)
}

/// Makes the kernel note, or note no longer, who sends what comes over `socket`.
pub(crate) fn tell_sender(socket: impl AsFd, on: bool) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_passcred(socket, on)?)
}

fn peek_sender(socket: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    // Room for the credentials alone: descriptors that a datagram may carry are then not opened.
    let mut space = nix::cmsg_space!(nix::sys::socket::UnixCredentials);
    let mut byte = [0];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let received = nix::sys::socket::recvmsg::<()>(
        socket.as_raw_fd(),
        &mut buffers,
        Some(&mut space),
        MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    // Refused when there were descriptors: no answer of CRIU's that we ask this of has any.
    let Ok(mut messages) = received.cmsgs() else {
        return Ok(None);
    };
    // Zero stands for a process of another pid namespace, which is why it is not read as a number that cannot be zero.
    Ok(messages.find_map(|message| match message {
        ControlMessageOwned::ScmCredentials(sender) if sender.pid() > 0 => Some(sender.pid()),
        _ => None,
    }))
}

fn send_now(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_AT_MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "more descriptors than one message can carry",
        ));
    }
    retry(|| {
        sendmsg(
            socket,
            &[IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    })?;
    Ok(())
}

/// Enlarges the send buffer for a message that would not fit; where that is not allowed, the send reports EMSGSIZE.
fn make_room(socket: BorrowedFd<'_>, length: usize) {
    if length > DEFAULT_SEND_BUFFER {
        // The kernel counts its own bookkeeping against the buffer as well.
        let wanted = length.saturating_mul(2).saturating_add(64 * 1024);
        if rustix::net::sockopt::set_socket_send_buffer_size_force(socket, wanted).is_err() {
            let _ = rustix::net::sockopt::set_socket_send_buffer_size(socket, wanted);
        }
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_a_second() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    #[tokio::test]
    async fn carries_large_messages_and_several_descriptors() {
        let (ours, theirs) = pair().unwrap();
        let ours = Socket::new(ours).unwrap();
        let theirs = BlockingSocket::new(theirs);
        let message: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
        let (one, two) = pair().unwrap();
        ours.send(&message, &[one.as_fd(), two.as_fd()])
            .await
            .unwrap();
        let received = theirs.receive(None, in_a_second()).unwrap().unwrap();
        assert_eq!(received.bytes, message);
        assert_eq!(received.fds.len(), 2);
        for fd in &received.fds {
            assert!(
                rustix::io::fcntl_getfd(fd)
                    .unwrap()
                    .contains(rustix::io::FdFlags::CLOEXEC)
            );
        }
    }

    #[tokio::test]
    async fn waits_for_a_peer_that_does_not_read() {
        let (ours, theirs) = pair().unwrap();
        let ours = Socket::new(ours).unwrap();
        let reader = BlockingSocket::new(theirs);
        let mut sent = 0_u32;
        let full = loop {
            let message = sent.to_ne_bytes();
            let sending = ours.send(&message, &[]);
            match tokio::time::timeout(Duration::from_millis(100), sending).await {
                Ok(result) => result.unwrap(),
                // Cancelled, so not sent.
                Err(_) => break sent,
            }
            sent += 1;
        };
        let message = full.to_ne_bytes();
        let reading = tokio::task::spawn_blocking(move || {
            (0..=full)
                .map(|_| reader.receive(None, in_a_second()).unwrap().unwrap().bytes)
                .collect::<Vec<_>>()
        });
        ours.send(&message, &[]).await.unwrap();
        let expected: Vec<_> = (0..=full).map(|n| n.to_ne_bytes().to_vec()).collect();
        assert_eq!(reading.await.unwrap(), expected);
    }

    #[tokio::test]
    async fn tells_who_has_sent_what_comes_next() {
        let (ours, theirs) = pair().unwrap();
        tell_sender(&ours, true).unwrap();
        let ours = Socket::new(ours).unwrap();
        send_now(theirs.as_fd(), b"plain", &[]).unwrap();
        let own = std::process::id().cast_signed();
        assert_eq!(ours.next_sender().await.unwrap(), Some(own));
        assert_eq!(ours.receive().await.unwrap().unwrap().bytes, b"plain");
        let (one, _two) = pair().unwrap();
        send_now(theirs.as_fd(), b"mine", &[one.as_fd()]).unwrap();
        assert_eq!(ours.next_sender().await.unwrap(), None);
        tell_sender(&ours, false).unwrap();
        let received = ours.receive().await.unwrap().unwrap();
        assert_eq!(received.bytes, b"mine");
        assert_eq!(received.fds.len(), 1);
    }

    #[tokio::test]
    async fn reads_the_answer_that_a_reset_hides() {
        let (ours, theirs) = pair().unwrap();
        let ours = Socket::new(ours).unwrap();
        ours.send(b"never read", &[]).await.unwrap();
        send_now(theirs.as_fd(), b"answer", &[]).unwrap();
        drop(theirs);
        let received = ours.receive().await.unwrap().unwrap();
        assert_eq!(received.bytes, b"answer");
        assert!(ours.receive().await.unwrap().is_none());
    }

    #[test]
    fn a_silent_peer_is_left_at_the_deadline() {
        let (ours, _theirs) = pair().unwrap();
        let error = BlockingSocket::new(ours)
            .receive(None, Instant::now() + Duration::from_millis(20))
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn only_our_end_is_non_blocking() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let (ours, theirs) = pair().unwrap();
        let _ours = runtime.block_on(async { Socket::new(ours).unwrap() });
        assert!(
            !rustix::fs::fcntl_getfl(&theirs)
                .unwrap()
                .contains(rustix::fs::OFlags::NONBLOCK)
        );
    }
}
