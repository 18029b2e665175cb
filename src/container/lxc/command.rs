//! What a container's monitor answers at its command socket.
//!
//! ```text
//! us ── { command: u32, length of data: i32, data: pointer } ──▶ monitor      16 bytes each way, in the machine's own order
//! us ◀── { result: i32, length of data: i32, data: the answer } ──
//! ```
//!
//! The socket has an abstract name, so it is there for as long as the monitor is. The kernel tells the monitor who asks.

use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::time::Duration;

/// `LXC_CMD_GET_STATE` and `LXC_CMD_GET_INIT_PID`, which have had these numbers since LXC 1.0.
const GET_STATE: u32 = 3;
const GET_INIT_PID: u32 = 4;
/// How long a monitor may take.
const LIMIT: Duration = Duration::from_secs(5);

/// What a container does, in LXC's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Starting,
    Running,
    /// It is ending, one way or another.
    Ending,
    Frozen,
}

/// What a container's monitor tells: the state, and the first process. `None`: there is no monitor.
pub(super) fn ask(lxc_path: &Path, name: &str) -> io::Result<Option<(State, i32)>> {
    let Some(state) = answer(lxc_path, name, GET_STATE)? else {
        return Ok(None);
    };
    let state = match state {
        // Nothing has been started yet, or everything has ended.
        0 => return Ok(None),
        1 => State::Starting,
        2 | 7 => State::Running,
        3 | 4 => State::Ending,
        5 | 6 => State::Frozen,
        other => return Err(io::Error::other(format!("the unknown state {other}"))),
    };
    let Some(pid) = answer(lxc_path, name, GET_INIT_PID)? else {
        return Ok(None);
    };
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0);
    pid.map(|pid| Some((state, pid)))
        .ok_or_else(|| io::Error::other("no first process"))
}

fn answer(lxc_path: &Path, name: &str, command: u32) -> io::Result<Option<u64>> {
    let socket = lxc_path.join(name).join("command");
    let address = SocketAddr::from_abstract_name(socket.as_os_str().as_encoded_bytes())?;
    let mut stream = match UnixStream::connect_addr(&address) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
        Err(error) => return Err(error),
    };
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let mut request = [0; 16];
    let (head, _) = request.split_at_mut(4);
    head.copy_from_slice(&command.to_ne_bytes());
    stream.write_all(&request)?;
    let mut response = [0; 16];
    match stream.read_exact(&mut response) {
        Ok(()) => {}
        // It ends at this moment.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    }
    let [a, b, c, d, _, _, _, _, data @ ..] = response;
    match i32::from_ne_bytes([a, b, c, d]) {
        0.. => Ok(Some(u64::from_ne_bytes(data))),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}
