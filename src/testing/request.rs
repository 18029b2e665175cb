//! Kinds of messages.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::rpc::wire::CriuReqType;

/// CRIU's `criu_req_type`: what a request asks, and what an answer says it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Request {
    /// EMPTY, the answer to what CRIU does not understand.
    Empty,
    /// DUMP.
    Dump,
    /// RESTORE.
    Restore,
    /// CHECK.
    Check,
    /// PRE_DUMP, after which CRIU waits for further ones.
    PreDump,
    /// PAGE_SERVER, and the answer to PAGE_SERVER_CHLD.
    PageServer,
    /// NOTIFY: a callback, or the reply to one.
    Notify,
    /// CPUINFO_DUMP.
    CpuinfoDump,
    /// CPUINFO_CHECK.
    CpuinfoCheck,
    /// FEATURE_CHECK.
    FeatureCheck,
    /// VERSION.
    Version,
    /// WAIT_PID.
    WaitPid,
    /// PAGE_SERVER_CHLD.
    PageServerChld,
    /// SINGLE_PRE_DUMP.
    SinglePreDump,
}

const PAIRS: [(Request, CriuReqType); 14] = [
    (Request::Empty, CriuReqType::Empty),
    (Request::Dump, CriuReqType::Dump),
    (Request::Restore, CriuReqType::Restore),
    (Request::Check, CriuReqType::Check),
    (Request::PreDump, CriuReqType::PreDump),
    (Request::PageServer, CriuReqType::PageServer),
    (Request::Notify, CriuReqType::Notify),
    (Request::CpuinfoDump, CriuReqType::CpuinfoDump),
    (Request::CpuinfoCheck, CriuReqType::CpuinfoCheck),
    (Request::FeatureCheck, CriuReqType::FeatureCheck),
    (Request::Version, CriuReqType::Version),
    (Request::WaitPid, CriuReqType::WaitPid),
    (Request::PageServerChld, CriuReqType::PageServerChld),
    (Request::SinglePreDump, CriuReqType::SinglePreDump),
];

impl Request {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Request> {
        PAIRS.into_iter().map(|(request, _)| request)
    }

    /// Its number in the protocol.
    #[must_use]
    pub fn number(self) -> i32 {
        self.wire().into()
    }

    pub(super) fn from_number(number: i32) -> Option<Self> {
        PAIRS
            .into_iter()
            .find(|(_, wire)| i32::from(*wire) == number)
            .map(|(request, _)| request)
    }

    fn wire(self) -> CriuReqType {
        PAIRS
            .into_iter()
            .find(|(request, _)| *request == self)
            .map_or(CriuReqType::Empty, |(_, wire)| wire)
    }
}

/// CRIU's name, such as `PRE_DUMP`.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.wire().as_str_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_both_ways() {
        for (index, request) in Request::all().enumerate() {
            assert_eq!(request.number(), i32::try_from(index).unwrap());
            assert_eq!(Request::from_number(request.number()), Some(request));
        }
        assert_eq!(Request::from_number(14), None);
        assert_eq!(Request::SinglePreDump.to_string(), "SINGLE_PRE_DUMP");
    }
}
