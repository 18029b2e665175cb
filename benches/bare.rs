//! The least that a client of `criu swrk` can do, blocking: start it, send fixed bytes, accept every callback, wait for its
//! end. No error says anything here, nothing is undone, no log is read.

use std::error::Error;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::fs::{Mode, OFlags, open};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const ASK_VERSION: &[u8] = b"\x08\x0a";
/// The same with keep_open.
const ASK_VERSION_FIRST: &[u8] = b"\x08\x0a\x20\x01";
const ACCEPT: &[u8] = b"\x08\x06\x18\x01";
/// How answers of these types begin.
const NOTIFY: &[u8] = b"\x08\x06";
const DUMPED: &[u8] = b"\x08\x01\x10\x01";
const VERSION: &[u8] = b"\x08\x0a\x10\x01";

pub(crate) fn version(program: &Path) -> Result<()> {
    let (mut child, socket) = start(program)?;
    let mut buffer = [0; 4096];
    ask(&socket, ASK_VERSION, VERSION, &mut buffer)?;
    child.wait()?;
    Ok(())
}

pub(crate) fn dump(program: &Path, pid: i32, directory: &Path) -> Result<()> {
    let images = open(
        directory,
        OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let (mut child, socket) = start(program)?;
    let mut buffer = [0; 4096];
    ask(&socket, ASK_VERSION_FIRST, VERSION, &mut buffer)?;
    send(
        &socket,
        &request(pid, images.as_raw_fd()),
        SendFlags::NOSIGNAL,
    )?;
    loop {
        let (length, _) = recv(&socket, &mut buffer, RecvFlags::empty())?;
        let answer = &buffer[..length];
        if answer.starts_with(NOTIFY) {
            send(&socket, ACCEPT, SendFlags::NOSIGNAL)?;
        } else if answer.starts_with(DUMPED) {
            child.wait()?;
            return Ok(());
        } else {
            return Err(format!("criu answered {answer:?}").into());
        }
    }
}

fn start(program: &Path) -> Result<(Child, OwnedFd)> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let child = Command::new(program)
        .args(["swrk", "0"])
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok((child, ours))
}

fn ask(socket: impl AsFd, request: &[u8], expected: &[u8], buffer: &mut [u8]) -> Result<()> {
    send(&socket, request, SendFlags::NOSIGNAL)?;
    let (length, _) = recv(&socket, &mut *buffer, RecvFlags::empty())?;
    match buffer[..length].starts_with(expected) {
        true => Ok(()),
        false => Err(format!("criu answered {:?}", &buffer[..length]).into()),
    }
}

/// A criu_req of type DUMP with the options that the other clients send.
fn request(pid: i32, images: i32) -> Vec<u8> {
    let mut opts = Vec::new();
    let log_file = b"dump.log";
    for (field, value) in [(1, images), (2, pid), (3, 1), (9, 2), (12, 1)] {
        varint(&mut opts, field << 3);
        varint(&mut opts, value.unsigned_abs());
    }
    varint(&mut opts, (10 << 3) | 2);
    varint(&mut opts, log_file.len() as u32);
    opts.extend_from_slice(log_file);
    let mut request = vec![0x08, 0x01, 0x12];
    varint(&mut request, opts.len() as u32);
    request.extend(opts);
    request
}

fn varint(bytes: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}
