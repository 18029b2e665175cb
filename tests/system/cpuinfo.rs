//! `cpuinfo.img` of a processor that does not exist.

use std::fs;
use std::path::Path;

use prost::Message;

use crate::support::*;

/// Two magic numbers and the length of the one message that follows.
const HEADER: usize = 12;

#[derive(Clone, PartialEq, prost::Message)]
struct Cpuinfo {
    #[prost(message, repeated, tag = "1")]
    x86: Vec<X86>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct X86 {
    #[prost(int32, required, tag = "1")]
    vendor: i32,
    #[prost(uint32, required, tag = "2")]
    family: u32,
    #[prost(uint32, required, tag = "3")]
    model: u32,
    #[prost(uint32, required, tag = "4")]
    stepping: u32,
    #[prost(uint32, required, tag = "5")]
    capability_version: u32,
    #[prost(uint32, repeated, packed = "false", tag = "6")]
    capability: Vec<u32>,
    #[prost(string, optional, tag = "7")]
    model_name: Option<String>,
    #[prost(uint64, optional, tag = "8")]
    xfeatures_mask: Option<u64>,
    #[prost(uint32, optional, tag = "9")]
    xsave_size: Option<u32>,
    #[prost(uint32, optional, tag = "10")]
    xsave_size_max: Option<u32>,
}

/// Sets every capability bit.
pub(crate) fn demand_everything(path: &Path) -> Outcome {
    let bytes = fs::read(path).map_err(text)?;
    ensure!(bytes.len() > HEADER, "{} bytes of cpuinfo", bytes.len());
    let mut cpuinfo = Cpuinfo::decode(&bytes[HEADER..]).map_err(text)?;
    ensure!(
        cpuinfo.x86.iter().any(|cpu| !cpu.capability.is_empty()),
        "{cpuinfo:?}"
    );
    for cpu in &mut cpuinfo.x86 {
        cpu.capability.fill(u32::MAX);
    }
    let message = cpuinfo.encode_to_vec();
    let mut changed = bytes[..8].to_vec();
    changed.extend(u32::try_from(message.len()).map_err(text)?.to_le_bytes());
    changed.extend(message);
    fs::write(path, changed).map_err(text)
}
