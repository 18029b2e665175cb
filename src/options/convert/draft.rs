//! The message while it is filled, and what is merged into it at the end.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use prost::Message;

use super::Prepared;
use crate::options::error::InvalidOption;
use crate::rpc::fields::fields;
use crate::rpc::view::CRIU_OPTS;
use crate::rpc::wire;

/// A message in the making, and the descriptors it speaks of.
pub(super) struct Draft {
    pub(super) opts: wire::CriuOpts,
    pub(super) work_path: Option<PathBuf>,
    next_inherited: i32,
    inherited: Vec<OwnedFd>,
    held: Vec<OwnedFd>,
}

impl Draft {
    pub(super) fn new(first_inherited: i32) -> Self {
        Self {
            opts: wire::CriuOpts::default(),
            work_path: None,
            next_inherited: first_inherited,
            inherited: Vec::new(),
            held: Vec::new(),
        }
    }

    /// The number that `fd` will have in CRIU.
    pub(super) fn inherit(&mut self, fd: OwnedFd) -> i32 {
        let number = self.next_inherited;
        self.next_inherited += 1;
        self.inherited.push(fd);
        number
    }

    /// The number that `fd` has here.
    pub(super) fn hold(&mut self, fd: OwnedFd) -> i32 {
        let number = fd.as_raw_fd();
        self.held.push(fd);
        number
    }

    pub(super) fn finish(self, extra: &[u8]) -> Result<Prepared, InvalidOption> {
        let Self {
            mut opts,
            work_path,
            next_inherited: _,
            inherited,
            held,
        } = self;
        let unknown = merge(&mut opts, extra)?;
        Ok(Prepared {
            opts,
            work_path,
            inherited,
            held,
            unknown,
        })
    }
}

/// Merges encoded options over `opts` and returns those that the generated code would drop.
fn merge(opts: &mut wire::CriuOpts, extra: &[u8]) -> Result<Vec<u8>, InvalidOption> {
    let shown = || format!("{} bytes", extra.len());
    let refuse =
        |problem, remedy: &'static str| InvalidOption::new("extra", shown(), problem, remedy);
    let undecodable = || {
        refuse(
            "are no criu_opts message",
            "encode the message with CRIU's own rpc.proto",
        )
    };

    let mut unknown = Vec::new();
    for field in fields(extra).map_err(|_| undecodable())? {
        if CRIU_OPTS.field(field.number).is_none() {
            unknown.extend_from_slice(field.bytes);
        }
    }
    let added = wire::CriuOpts::decode(extra).map_err(|_| undecodable())?;
    // Encoders always write images_dir_fd, which is required, with its default.
    let taken = [
        (
            "images_dir_fd",
            added.images_dir_fd != wire::CriuOpts::default().images_dir_fd,
        ),
        ("images_dir", added.images_dir.is_some()),
        ("pid", added.pid.is_some()),
        ("log_file", added.log_file.is_some()),
        ("notify_scripts", added.notify_scripts.is_some()),
        ("rst_sibling", added.rst_sibling.is_some()),
    ];
    if let Some((field, _)) = taken.iter().find(|(_, present)| *present) {
        return Err(InvalidOption::new(
            "extra",
            shown(),
            "hold a field that the operation itself sets",
            format!("leave {field} out"),
        ));
    }
    opts.merge(extra).map_err(|_| undecodable())?;
    Ok(unknown)
}

/// A request of which only the options are there, encoded already.
#[derive(Clone, PartialEq, prost::Message)]
struct EncodedOpts {
    #[prost(bytes = "vec", tag = "2")]
    opts: Vec<u8>,
}

/// Encodes a request whose options may have fields that this library does not know.
pub(crate) fn encode_request(mut request: wire::CriuReq, unknown: &[u8]) -> Vec<u8> {
    if unknown.is_empty() {
        return request.encode_to_vec();
    }
    let mut opts = request.opts.take().unwrap_or_default().encode_to_vec();
    opts.extend_from_slice(unknown);
    let mut bytes = request.encode_to_vec();
    bytes.extend(EncodedOpts { opts }.encode_to_vec());
    bytes
}
