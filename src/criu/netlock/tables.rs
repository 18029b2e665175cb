//! The tables of nf_tables, over netlink.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::netlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_DELTABLE: u16 = 2;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFTA_TABLE_NAME: u16 = 1;
const NFPROTO_INET: u8 = 1;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// The names of CRIU's own tables in the calling thread's namespace.
pub(super) fn tables() -> io::Result<HashSet<String>> {
    let socket = netfilter_socket()?;
    let get = message(
        table_message(NFT_MSG_GETTABLE),
        NLM_F_REQUEST | NLM_F_DUMP,
        1,
        NFPROTO_INET,
        &[],
    );
    rustix::net::send(&socket, &get, SendFlags::empty())?;
    let mut names = HashSet::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let (length, _) = rustix::net::recv(&socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        for (kind, payload) in Messages(&buffer[..length]) {
            match kind {
                NLMSG_DONE => return Ok(names),
                NLMSG_ERROR => {
                    acknowledged(payload)?;
                    return Ok(names);
                }
                _ => names.extend(table_name(payload).filter(|name| name.starts_with("CRIU"))),
            }
        }
    }
}

pub(super) fn delete_table(name: &str) -> io::Result<()> {
    let socket = netfilter_socket()?;
    let mut attribute = Vec::new();
    let value = [name.as_bytes(), b"\0"].concat();
    attribute.extend_from_slice(
        &(u16::try_from(value.len() + 4).map_err(io::Error::other)?).to_ne_bytes(),
    );
    attribute.extend_from_slice(&NFTA_TABLE_NAME.to_ne_bytes());
    attribute.extend_from_slice(&value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    let mut batch = message(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, 1, 0, &[]);
    batch.extend(message(
        table_message(NFT_MSG_DELTABLE),
        NLM_F_REQUEST | NLM_F_ACK,
        2,
        NFPROTO_INET,
        &attribute,
    ));
    batch.extend(message(NFNL_MSG_BATCH_END, NLM_F_REQUEST, 3, 0, &[]));
    rustix::net::send(&socket, &batch, SendFlags::empty())?;
    let mut buffer = [0; 4096];
    let (length, _) = rustix::net::recv(&socket, &mut buffer, RecvFlags::empty())?;
    match Messages(&buffer[..length]).next() {
        Some((NLMSG_ERROR, payload)) => acknowledged(payload),
        _ => Err(io::Error::other("netfilter gave no acknowledgement")),
    }
}

fn netfilter_socket() -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::NETFILTER),
    )?;
    rustix::net::sockopt::set_socket_timeout(
        &socket,
        rustix::net::sockopt::Timeout::Recv,
        Some(Duration::from_secs(5)),
    )?;
    Ok(socket)
}

fn table_message(kind: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | kind
}

/// nlmsghdr, nfgenmsg (for a batch mark its resource id is the subsystem), attributes; all in host order but that id.
fn message(kind: u16, flags: u16, sequence: u32, family: u8, attributes: &[u8]) -> Vec<u8> {
    let is_mark = kind == NFNL_MSG_BATCH_BEGIN || kind == NFNL_MSG_BATCH_END;
    let resource = if is_mark { NFNL_SUBSYS_NFTABLES } else { 0 };
    let length = 16 + 4 + attributes.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(&(length as u32).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    bytes.extend_from_slice(&[family, 0]);
    bytes.extend_from_slice(&resource.to_be_bytes());
    bytes.extend_from_slice(attributes);
    bytes
}

/// The netlink messages in a datagram: type and payload.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.get(..16)?;
        let length = u32::from_ne_bytes(header.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(header.get(4..6)?.try_into().ok()?);
        let payload = self.0.get(16..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    }
}

fn table_name(payload: &[u8]) -> Option<String> {
    let mut attributes = payload.get(4..)?;
    loop {
        let length = u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let value = attributes.get(4..length)?;
        if kind == NFTA_TABLE_NAME {
            let name = value.split(|byte| *byte == 0).next()?;
            return Some(String::from_utf8_lossy(name).into_owned());
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn acknowledged(payload: &[u8]) -> io::Result<()> {
    let code = payload
        .get(..4)
        .and_then(|code| code.try_into().ok())
        .map_or(0, i32::from_ne_bytes);
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_are_read_back() {
        let attribute = [12u8, 0, 1, 0, b'C', b'R', b'I', b'U', b'-', b'7', 0, 0];
        let bytes = message(
            table_message(NFT_MSG_GETTABLE),
            0,
            1,
            NFPROTO_INET,
            &attribute,
        );
        let (kind, payload) = Messages(&bytes).next().unwrap();
        assert_eq!(kind, 0x0a01);
        assert_eq!(table_name(payload).unwrap(), "CRIU-7");
    }

    proptest! {
        #[test]
        fn arbitrary_answers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for (_, payload) in Messages(&bytes).take(100) {
                let _ = table_name(payload);
                let _ = acknowledged(payload);
            }
        }
    }
}
