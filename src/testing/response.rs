//! What the peer sends.

use prost::Message as _;

use super::Request;
use crate::rpc::wire::{
    CriuDumpResp, CriuFeatures, CriuNotify, CriuPageServerInfo, CriuResp, CriuRestoreResp,
    CriuVersion,
};

/// An answer, with any fields: also those that CRIU would never put together.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct Response(CriuResp);

impl Response {
    /// A good answer of this type, with nothing else in it.
    pub fn success(request: Request) -> Self {
        Self::of_type(request.number(), true)
    }

    /// A bad answer of this type, with nothing else in it.
    pub fn failure(request: Request) -> Self {
        Self::of_type(request.number(), false)
    }

    /// An answer of a type that need not exist.
    pub fn of_type(number: i32, success: bool) -> Self {
        Self(CriuResp {
            r#type: number,
            success,
            ..Default::default()
        })
    }

    /// Sets `cr_errno`.
    pub fn errno(mut self, errno: i32) -> Self {
        self.0.cr_errno = Some(errno);
        self
    }

    /// Sets `cr_errmsg`: any bytes.
    pub fn message(mut self, message: impl Into<Vec<u8>>) -> Self {
        self.0.cr_errmsg = Some(message.into());
        self
    }

    /// Sets `dump.restored`.
    pub fn restored(mut self, restored: bool) -> Self {
        self.0.dump = Some(CriuDumpResp {
            restored: Some(restored),
        });
        self
    }

    /// Sets `restore.pid`.
    pub fn restore_pid(mut self, pid: i32) -> Self {
        self.0.restore = Some(CriuRestoreResp { pid });
        self
    }

    /// Sets `ps`, the page server's port and pid.
    pub fn page_server(mut self, port: Option<i32>, pid: Option<i32>) -> Self {
        self.0.ps = Some(CriuPageServerInfo {
            port,
            pid,
            ..Default::default()
        });
        self
    }

    /// Sets `features`, in the order of their numbers: `mem_track`, `lazy_pages`, `pidfd_store`, `mem_compression`.
    pub fn features(mut self, features: [Option<bool>; 4]) -> Self {
        let [mem_track, lazy_pages, pidfd_store, mem_compression] = features;
        self.0.features = Some(CriuFeatures {
            mem_track,
            lazy_pages,
            pidfd_store,
            mem_compression,
        });
        self
    }

    /// Sets `version` as a release has it.
    pub fn version(mut self, major: i32, minor: i32, sublevel: i32) -> Self {
        self.0.version = Some(CriuVersion {
            major_number: major,
            minor_number: minor,
            sublevel: (sublevel != 0).then_some(sublevel),
            ..Default::default()
        });
        self
    }

    /// Sets `version.gitid`, as a development build has it; after [`Response::version`].
    pub fn git_id(mut self, id: impl Into<String>) -> Self {
        self.0.version.get_or_insert_default().gitid = Some(id.into());
        self
    }

    /// Sets `status`: a raw status word of wait(2).
    pub fn status(mut self, status: i32) -> Self {
        self.0.status = Some(status);
        self
    }

    /// The datagram.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.encode_to_vec()
    }
}

/// A callback, with any name and anything that may come along.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Callback {
    name: Option<Vec<u8>>,
    pid: Option<i32>,
    pub(super) descriptors: usize,
}

impl Callback {
    /// A callback of this name: any bytes.
    pub fn new(name: impl Into<Vec<u8>>) -> Self {
        Self {
            name: Some(name.into()),
            pid: None,
            descriptors: 0,
        }
    }

    /// A callback without a name, which the protocol has no use for.
    pub fn nameless() -> Self {
        Self {
            name: None,
            pid: None,
            descriptors: 0,
        }
    }

    /// With a pid. The library takes that of a restore for the restored root task, and kills it if CRIU dies.
    pub fn pid(mut self, pid: i32) -> Self {
        self.pid = Some(pid);
        self
    }

    /// With this many descriptors: the writing ends of pipes, whose reading ends the peer keeps. What arrives there is in the
    /// transcript.
    pub fn descriptors(mut self, count: usize) -> Self {
        self.descriptors = count;
        self
    }

    /// The datagram.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        CriuResp {
            r#type: Request::Notify.number(),
            success: true,
            notify: Some(CriuNotify {
                script: self.name.clone(),
                pid: self.pid,
            }),
            ..Default::default()
        }
        .encode_to_vec()
    }
}

impl From<&str> for Callback {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_criu_4_2_1() {
        let version = Response::success(Request::Version).version(4, 2, 1);
        assert_eq!(
            version.to_bytes(),
            b"\x08\x0a\x10\x01\x52\x06\x08\x04\x10\x02\x20\x01"
        );
        assert_eq!(
            Callback::from("pre-dump").to_bytes(),
            b"\x08\x06\x10\x01\x2a\x0a\x0a\x08pre-dump"
        );
        let dumped = Response::success(Request::Dump).restored(false);
        assert_eq!(dumped.to_bytes(), b"\x08\x01\x10\x01\x1a\x02\x08\x00");
    }
}
