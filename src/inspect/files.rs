//! Open files and sockets.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use crate::image::ImageError;
use crate::image::kinds::{entries, first};
use crate::image::proto::{self, FdTypes};

use super::source::Store;
use super::{Problem, text};

/// The descriptors of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ProcessFiles {
    /// The process.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// The path of its working directory.
    pub working_directory: Option<String>,
    /// The path of its root directory, in the mount namespace of the container.
    pub root: Option<String>,
    /// Its descriptors, by number. Processes that share a table have the same.
    pub open: Vec<OpenFile>,
}

/// A descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct OpenFile {
    /// The number.
    pub fd: u32,
    /// What it is open on, as CRIU calls it: `REG`, `PIPE`, `INETSK`, …
    pub kind: String,
    /// The path of a file, or what else tells the thing from others, such as `pipe:[7]`.
    pub name: String,
    /// The flags of `open(2)`, as their number.
    pub flags: Option<u32>,
    /// The offset in a file.
    pub position: Option<u64>,
    /// Whether it is closed by exec.
    pub close_on_exec: bool,
    /// What only sockets have.
    pub socket: Option<Socket>,
}

/// A socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Socket {
    /// `TCP`, `UDP`, `UNIX`, `NETLINK`, `PACKET`, …
    pub protocol: String,
    /// `STREAM`, `DGRAM`, `RAW`, `SEQPACKET`, …
    pub socket_type: String,
    /// `LISTEN`, `ESTABLISHED`, …; none where a socket has no such state.
    pub state: Option<String>,
    /// The address, path or name that it is bound to.
    pub local: Option<String>,
    /// The port that it is bound to.
    pub local_port: Option<u32>,
    /// The address that it is connected to, or the inode of the unix socket that it is connected to.
    pub peer: Option<String>,
    /// The port that it is connected to.
    pub peer_port: Option<u32>,
    /// The size of its buffer for sending, in bytes.
    pub send_buffer: Option<u32>,
    /// The size of its buffer for receiving, in bytes.
    pub receive_buffer: Option<u32>,
}

/// Everything that is open, by its id.
pub(super) struct Files {
    by_id: HashMap<u32, proto::FileEntry>,
    terminals: HashMap<u32, proto::TtyInfoEntry>,
    memfds: HashMap<u64, proto::MemfdInodeEntry>,
}

impl Files {
    pub(super) fn read(store: &Store, problems: &mut Vec<Problem>) -> Self {
        let all = |base: &str| Image {
            store,
            base: base.to_owned(),
        };
        let files: Vec<proto::FileEntry> = all("files.img").entries(problems);
        let terminals: Vec<proto::TtyInfoEntry> = all("tty-info.img").entries(problems);
        let memfds: Vec<proto::MemfdInodeEntry> = all("memfd.img").entries(problems);
        Self {
            by_id: files.into_iter().map(|file| (file.id, file)).collect(),
            terminals: terminals
                .into_iter()
                .map(|terminal| (terminal.id, terminal))
                .collect(),
            memfds: memfds
                .into_iter()
                .map(|memfd| (memfd.inode_id, memfd))
                .collect(),
        }
    }

    /// The path of a file, or the name of what is no file.
    pub(super) fn name(&self, id: u32) -> Option<String> {
        self.by_id.get(&id).map(|file| self.described(file).name)
    }

    pub(super) fn is_there(&self, id: u32) -> bool {
        self.by_id.contains_key(&id)
    }

    pub(super) fn opened(&self, info: &proto::FdinfoEntry) -> OpenFile {
        let mut open = match self.by_id.get(&info.id) {
            Some(file) => self.described(file),
            None => OpenFile {
                name: format!("unknown file {}", info.id),
                kind: kind_name(info.r#type),
                ..nothing()
            },
        };
        open.fd = info.fd;
        open.close_on_exec = info.flags & 1 != 0;
        open
    }

    fn described(&self, file: &proto::FileEntry) -> OpenFile {
        let mut open = nothing();
        open.kind = kind_name(file.r#type);
        open.name = format!("{}:[{}]", open.kind.to_lowercase(), file.id);
        // A message for each kind; only one of them is there.
        if let Some(reg) = &file.reg {
            open.name = text(&reg.name);
            (open.flags, open.position) = (Some(reg.flags), Some(reg.pos));
        } else if let Some(pipe) = &file.pipe {
            open.name = format!("pipe:[{}]", pipe.pipe_id);
            open.flags = Some(pipe.flags);
        } else if let Some(fifo) = &file.fifo {
            let path = fifo
                .regf_id
                .filter(|id| *id != file.id)
                .and_then(|id| self.name(id));
            open.name = path.unwrap_or_else(|| format!("fifo:[{}]", fifo.pipe_id));
        } else if let Some(socket) = &file.isk {
            inet(&mut open, socket);
        } else if let Some(socket) = &file.usk {
            unix(&mut open, socket);
        } else if let Some(socket) = &file.nlsk {
            open.flags = Some(socket.flags);
            open.name = format!("netlink:[{}]", socket.ino);
            let mut told = plain("NETLINK", "RAW");
            told.local_port = Some(socket.portid);
            told.peer = Some(format!("protocol {}", socket.protocol));
            open.socket = Some(told);
        } else if let Some(socket) = &file.psk {
            open.flags = Some(socket.flags);
            let mut told = plain("PACKET", type_name(socket.r#type));
            told.local = (socket.ifindex != 0).then(|| format!("interface {}", socket.ifindex));
            open.socket = Some(told);
        } else if let Some(tty) = &file.tty {
            open.flags = Some(tty.flags);
            let path = tty
                .regf_id
                .filter(|id| *id != file.id)
                .and_then(|id| self.name(id));
            let index = self
                .terminals
                .get(&tty.tty_info_id)
                .and_then(|info| info.pty.as_ref());
            open.name = match (path, index) {
                (Some(path), _) => path,
                (None, Some(pty)) => format!("pts/{}", pty.index),
                (None, None) => format!("tty:[{}]", tty.tty_info_id),
            };
        } else if let Some(memfd) = &file.memfd {
            (open.flags, open.position) = (Some(memfd.flags), Some(memfd.pos));
            let inode = self.memfds.get(&u64::from(memfd.inode_id));
            open.name = inode.map_or_else(
                || format!("memfd:[{}]", memfd.inode_id),
                |inode| format!("memfd:{}", text(&inode.name)),
            );
        } else if let Some(event) = &file.efd {
            open.flags = Some(event.flags);
            open.name = format!("eventfd, count {}", event.counter);
        } else if let Some(poll) = &file.epfd {
            open.flags = Some(poll.flags);
            open.name = format!("eventpoll of {} descriptors", poll.tfd.len());
        } else if let Some(timer) = &file.tfd {
            open.flags = Some(timer.flags);
            open.name = format!("timerfd of clock {}", timer.clockid);
        } else if let Some(signal) = &file.sgfd {
            open.flags = Some(signal.flags);
            open.name = format!("signalfd {:#x}", signal.sigmask);
        } else if let Some(notify) = &file.ify {
            open.flags = Some(notify.flags);
            open.name = format!("inotify with {} watches", notify.wd.len());
        } else if let Some(notify) = &file.ffy {
            open.flags = Some(notify.flags);
            open.name = format!("fanotify with {} marks", notify.mark.len());
        } else if let Some(namespace) = &file.nsf {
            open.flags = Some(namespace.flags);
            open.name = format!("namespace {}", namespace.ns_id);
        } else if let Some(pidfd) = &file.pidfd {
            open.flags = Some(pidfd.flags);
            open.name = format!("pidfd of {}", pidfd.nspid);
        } else if let Some(tun) = &file.tunf {
            open.name = tun.netdev.as_deref().map_or_else(
                || "tun".to_owned(),
                |device| format!("tun {}", text(device)),
            );
        } else if let Some(map) = &file.bpf {
            open.flags = Some(map.flags);
            open.name = format!("bpf map {}", text(&map.map_name));
        } else if file.ext.is_some() {
            open.name = "external".to_owned();
        }
        open
    }
}

/// One image of the newest directory.
struct Image<'a> {
    store: &'a Store,
    base: String,
}

impl Image<'_> {
    fn entries<M: prost::Message + Default>(self, problems: &mut Vec<Problem>) -> Vec<M> {
        let Some(prefix) = self.store.levels.first() else {
            return Vec::new();
        };
        let Some(content) = self.store.content(&format!("{prefix}{}", self.base)) else {
            return Vec::new();
        };
        entries(&self.base, content).unwrap_or_else(|error| {
            problems.push(Problem::of(&self.base, error));
            Vec::new()
        })
    }
}

/// The table of descriptors of this id.
pub(super) fn table(store: &Store, files_id: u32) -> Result<Vec<proto::FdinfoEntry>, ImageError> {
    let Some(prefix) = store.levels.first() else {
        return Ok(Vec::new());
    };
    let base = format!("fdinfo-{files_id}.img");
    match store.content(&format!("{prefix}{base}")) {
        Some(content) => entries(&base, content),
        None => Ok(Vec::new()),
    }
}

/// Root and working directory of a process.
pub(super) fn directories(store: &Store, pid: u32) -> Result<Option<proto::FsEntry>, ImageError> {
    let Some(prefix) = store.levels.first() else {
        return Ok(None);
    };
    let base = format!("fs-{pid}.img");
    let content = store.content(&format!("{prefix}{base}"));
    content.map(|content| first(&base, content)).transpose()
}

fn nothing() -> OpenFile {
    OpenFile {
        fd: 0,
        kind: String::new(),
        name: String::new(),
        flags: None,
        position: None,
        close_on_exec: false,
        socket: None,
    }
}

fn kind_name(kind: i32) -> String {
    FdTypes::try_from(kind).map_or_else(
        |_| format!("type {kind}"),
        |kind| kind.as_str_name().to_owned(),
    )
}

fn plain(protocol: &str, socket_type: impl Into<String>) -> Socket {
    Socket {
        protocol: protocol.to_owned(),
        socket_type: socket_type.into(),
        state: None,
        local: None,
        local_port: None,
        peer: None,
        peer_port: None,
        send_buffer: None,
        receive_buffer: None,
    }
}

fn type_name(number: u32) -> String {
    match number {
        1 => "STREAM".to_owned(),
        2 => "DGRAM".to_owned(),
        3 => "RAW".to_owned(),
        5 => "SEQPACKET".to_owned(),
        10 => "PACKET".to_owned(),
        other => format!("type {other}"),
    }
}

fn state_name(number: u32) -> String {
    const NAMES: [&str; 10] = [
        "ESTABLISHED",
        "SYN_SENT",
        "SYN_RECV",
        "FIN_WAIT1",
        "FIN_WAIT2",
        "TIME_WAIT",
        "CLOSE",
        "CLOSE_WAIT",
        "LAST_ACK",
        "LISTEN",
    ];
    let index = usize::try_from(number).unwrap_or(0).wrapping_sub(1);
    NAMES
        .get(index)
        .map_or_else(|| format!("state {number}"), |name| (*name).to_owned())
}

fn inet(open: &mut OpenFile, socket: &proto::InetSkEntry) {
    let protocol = match socket.proto {
        0 => "IP".to_owned(),
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPV6".to_owned(),
        136 => "UDPLITE".to_owned(),
        other => format!("protocol {other}"),
    };
    let mut told = plain(&protocol, type_name(socket.r#type));
    told.state = Some(state_name(socket.state));
    told.local = address(&socket.src_addr);
    told.local_port = Some(socket.src_port);
    // What is not connected has an address of zeros.
    if socket.dst_port != 0 || socket.dst_addr.iter().any(|word| *word != 0) {
        told.peer = address(&socket.dst_addr);
        told.peer_port = Some(socket.dst_port);
    }
    told.send_buffer = Some(socket.opts.so_sndbuf);
    told.receive_buffer = Some(socket.opts.so_rcvbuf);
    open.flags = Some(socket.flags);
    open.name = format!("socket:[{}]", socket.ino);
    open.socket = Some(told);
}

/// Words are the bytes of the network, read as little-endian numbers.
fn address(words: &[u32]) -> Option<String> {
    let mut bytes = [0; 16];
    for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    let address: IpAddr = match words.len() {
        1 => Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into(),
        4 => Ipv6Addr::from(bytes).into(),
        _ => return None,
    };
    Some(address.to_string())
}

fn unix(open: &mut OpenFile, socket: &proto::UnixSkEntry) {
    let mut told = plain("UNIX", type_name(socket.r#type));
    told.state = Some(state_name(socket.state));
    told.local = match socket.name.as_slice() {
        [] => None,
        // Abstract names are shown as `ss` shows them.
        [0, name @ ..] => Some(format!("@{}", text(name))),
        name => Some(text(name.strip_suffix(&[0]).unwrap_or(name))),
    };
    told.peer = (socket.peer != 0).then(|| format!("socket:[{}]", socket.peer));
    told.send_buffer = Some(socket.opts.so_sndbuf);
    told.receive_buffer = Some(socket.opts.so_rcvbuf);
    open.flags = Some(socket.flags);
    open.name = format!("socket:[{}]", socket.ino);
    open.socket = Some(told);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_in_the_order_of_the_network() {
        assert_eq!(
            address(&[u32::from_le_bytes([127, 0, 0, 1])]).unwrap(),
            "127.0.0.1"
        );
        assert_eq!(
            address(&[0, 0, 0, u32::from_le_bytes([0, 0, 0, 1])]).unwrap(),
            "::1"
        );
        assert_eq!(address(&[1, 2]), None);
    }

    #[test]
    fn states_have_their_names() {
        assert_eq!(state_name(1), "ESTABLISHED");
        assert_eq!(state_name(10), "LISTEN");
        assert_eq!(state_name(0), "state 0");
        assert_eq!(state_name(11), "state 11");
    }
}
