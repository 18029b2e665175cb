//! The loopback interface of a restored network namespace.
//!
//! CRIU restores a private network namespace empty, and its loopback interface down, where the engine had brought it up
//! when it made the container. This brings it up again before the container's tasks run.

use std::fs::File;
use std::io;

use nix::sched::{CloneFlags, setns};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

/// RTM_NEWLINK with flags to change, as rtnetlink(7) has it.
const SET_LINK: u16 = 16;
/// NLM_F_REQUEST | NLM_F_ACK.
const REQUEST_AND_ACKNOWLEDGE: u16 = 5;
/// NLMSG_ERROR, which is the acknowledgement as well.
const ACKNOWLEDGEMENT: u16 = 2;
/// IFF_UP.
const UP: u32 = 1;
/// The loopback interface is the first of every namespace.
const LOOPBACK: i32 = 1;

/// Brings the loopback interface up in the network namespace of process `pid`.
///
/// Joining a namespace changes the calling thread for good, so this takes one of its own.
pub(crate) fn bring_loopback_up(pid: i32) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    let work = move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        set_up()
    };
    let thread = std::thread::Builder::new()
        .name("loopback".into())
        .spawn(work)?;
    thread.join().unwrap_or_else(|_| {
        Err(io::Error::other(
            "the thread that brings the loopback interface up panicked",
        ))
    })
}

/// Brings the loopback interface up in the network namespace of this thread.
#[cfg(feature = "engine")]
pub(crate) fn bring_loopback_up_here() -> io::Result<()> {
    set_up()
}

fn set_up() -> io::Result<()> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // NETLINK_ROUTE is number zero.
        None,
    )?;
    sendto(
        &socket,
        &request(),
        SendFlags::empty(),
        &SocketAddrNetlink::new(0, 0),
    )?;
    let mut answer = [0u8; 1024];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    acknowledged(answer.get(..length).unwrap_or_default())
}

/// A header of 16 bytes (length, type, flags, sequence number, port) and an interface of 16 bytes (family, padding, type,
/// index, flags, mask of flags to change).
fn request() -> [u8; 32] {
    let mut message = [0u8; 32];
    let mut put = |at: usize, bytes: &[u8]| message[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &32u32.to_ne_bytes());
    put(4, &SET_LINK.to_ne_bytes());
    put(6, &REQUEST_AND_ACKNOWLEDGE.to_ne_bytes());
    put(8, &1u32.to_ne_bytes());
    put(20, &LOOPBACK.to_ne_bytes());
    put(24, &UP.to_ne_bytes());
    put(28, &UP.to_ne_bytes());
    message
}

fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let kind = answer
        .get(4..6)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u16::from_ne_bytes);
    let code = answer
        .get(16..20)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(ACKNOWLEDGEMENT), Some(0)) => Ok(()),
        (Some(ACKNOWLEDGEMENT), Some(code)) => Err(io::Error::from_raw_os_error(-code)),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "rtnetlink answered with something else than an acknowledgement",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_an_acknowledgement_or_an_error() {
        let mut answer = [0u8; 36];
        answer[4..6].copy_from_slice(&ACKNOWLEDGEMENT.to_ne_bytes());
        acknowledged(&answer).unwrap();
        answer[16..20].copy_from_slice(&(-1i32).to_ne_bytes());
        assert_eq!(acknowledged(&answer).unwrap_err().raw_os_error(), Some(1));
        assert!(acknowledged(&answer[..10]).is_err());
        assert!(acknowledged(&request()).is_err());
    }
}
