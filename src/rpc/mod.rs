//! The wire: CRIU's RPC messages, the sockets they travel on, and the process at the other end.
//!
//! ```text
//! client                          criu swrk (or criu service)
//!   | criu_req{VERSION, keep_open} ->|
//!   |<- criu_resp{VERSION}           |
//!   | criu_req{DUMP, opts} --------->|
//!   |<- criu_resp{NOTIFY, script} ---|   any number of times; may carry a descriptor
//!   | criu_req{NOTIFY, success} ---->|   exactly one for each
//!   |<- criu_resp{DUMP, success} ----|   the last message, then end of file and exit
//! ```
//!
//! One message is one SEQPACKET datagram. [`session`] knows the sequence and does no I/O; [`transport`] moves datagrams
//! and descriptors and knows no sequence; [`swrk`] and [`service`] provide the other end. The generated types are
//! private to the crate: what users see are the options, events and reports of the rooms above.

pub(crate) mod fields;
pub(crate) mod service;
pub(crate) mod session;
pub(crate) mod swrk;
pub(crate) mod transport;
pub(crate) mod view;

/// The messages of `proto/rpc.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub(crate) mod wire {
    include!(concat!(env!("OUT_DIR"), "/criu_client.rpc.rs"));
}
