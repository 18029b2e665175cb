//! The peer's end of one connection.

use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, recvmsg, sendmsg,
};
use rustix::pipe::{PipeFlags, pipe_with};

use super::transcript::Pipe;

/// One message carries at most this many descriptors.
const DESCRIPTORS_AT_MOST: usize = 253;

/// A socket, and the reading ends of the pipes whose writing ends were handed over.
pub(super) struct Connection {
    socket: Option<OwnedFd>,
    pipes: Vec<OwnedFd>,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket: Some(socket),
            pipes: Vec::new(),
        }
    }

    pub(super) fn socket(&self) -> Result<&OwnedFd, String> {
        self.socket
            .as_ref()
            .ok_or_else(|| "the peer has hung up itself".to_owned())
    }

    /// The next message and how many descriptors came with it, which are closed; `None` when the client has hung up.
    pub(super) fn receive(&self) -> Result<Option<(Vec<u8>, usize)>, String> {
        receive(self.socket()?).map_err(|error| error.to_string())
    }

    /// Waits for a message or the client's hang-up; false when there is neither within `patience`.
    pub(super) fn wait_readable(&self, patience: Duration) -> Result<bool, String> {
        self.wait(PollFlags::IN, patience)
    }

    /// Lets time pass, less of it when the client hangs up.
    pub(super) fn linger(&self, time: Duration) -> Result<(), String> {
        // A hang-up is told whatever is asked for.
        self.wait(PollFlags::empty(), time).map(drop)
    }

    fn wait(&self, events: PollFlags, time: Duration) -> Result<bool, String> {
        // Without a deadline where it is further away than a clock counts.
        let deadline = Instant::now().checked_add(time);
        let socket = self.socket()?;
        loop {
            let left = deadline.map(|deadline| {
                let left = deadline.saturating_duration_since(Instant::now());
                Timespec {
                    tv_sec: left.as_secs().cast_signed(),
                    tv_nsec: left.subsec_nanos().into(),
                }
            });
            match rustix::event::poll(&mut [PollFd::new(socket, events)], left.as_ref()) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// Sends a message with the writing ends of so many new pipes; false when the client has hung up.
    pub(super) fn send(&mut self, bytes: &[u8], descriptors: usize) -> Result<bool, String> {
        let mut handed = Vec::with_capacity(descriptors);
        for _ in 0..descriptors {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
                .map_err(|error| error.to_string())?;
            self.pipes.push(reader);
            handed.push(writer);
        }
        match send(self.socket()?, bytes, &handed) {
            Ok(()) => Ok(true),
            Err(Errno::PIPE | Errno::CONNRESET) => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }

    pub(super) fn hang_up(&mut self) {
        if let Some(socket) = self.socket.take() {
            // Descriptors of it that came from elsewhere must not keep the connection.
            let _ = rustix::net::shutdown(socket, Shutdown::Both);
        }
    }

    /// What became of the descriptors that were handed over.
    pub(super) fn drain_pipes(&mut self) -> Vec<Pipe> {
        self.pipes.drain(..).map(|pipe| drained(&pipe)).collect()
    }
}

fn receive(socket: &OwnedFd) -> rustix::io::Result<Option<(Vec<u8>, usize)>> {
    let peek = || {
        let mut nothing: [u8; 0] = [];
        rustix::net::recv(socket, &mut nothing, RecvFlags::PEEK | RecvFlags::TRUNC)
    };
    let length = match peek() {
        // The client hung up with messages of ours unread; what it sent before is behind this.
        Err(Errno::CONNRESET) => peek(),
        result => result,
    };
    let (_, length) = length?;
    if length == 0 {
        return Ok(None);
    }
    let mut bytes = vec![0; length];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_AT_MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let descriptors = control
        .drain()
        .map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.count(),
            _ => 0,
        })
        .sum();
    Ok(Some((bytes, descriptors)))
}

fn send(socket: &OwnedFd, bytes: &[u8], descriptors: &[OwnedFd]) -> rustix::io::Result<()> {
    let room = bytes.len().saturating_mul(2).saturating_add(64 * 1024);
    if rustix::net::sockopt::set_socket_send_buffer_size_force(socket, room).is_err() {
        // Without privileges the kernel allows less; then a long message is refused as too long.
        rustix::net::sockopt::set_socket_send_buffer_size(socket, room)?;
    }
    let mut space =
        vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_AT_MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(Errno::TOOMANYREFS);
    }
    sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

fn drained(pipe: &OwnedFd) -> Pipe {
    let mut result = Pipe::default();
    if let Ok(copy) = pipe.try_clone() {
        // Ends with end of file when every writing end is closed, else with EAGAIN.
        let mut file = std::fs::File::from(copy);
        result.closed = file.read_to_end(&mut result.written).is_ok();
    }
    result
}
