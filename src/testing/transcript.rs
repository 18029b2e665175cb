//! What the client did.

use std::collections::BTreeMap;

use bytes::Buf;
use prost::Message as _;
use prost::encoding::{WireType, decode_key, decode_varint};
use serde::{Deserialize, Serialize};

use super::Request;
use crate::rpc::wire::{CriuOpts, CriuReq};

/// What came from the client in the course of a script.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Transcript {
    /// Whether a client has connected.
    pub connected: bool,
    /// Everything that was read, in order.
    pub messages: Vec<Message>,
    /// Why the script ended early: which step, and what came instead.
    pub problem: Option<String>,
    /// How many steps of the script were done.
    pub steps: usize,
    /// Whether the client was seen to hang up.
    pub hung_up: bool,
    /// What became of the descriptors that were handed over, in order.
    pub pipes: Vec<Pipe>,
    /// How the peer was started, when it is a program.
    pub process: Option<ProcessFacts>,
}

impl Transcript {
    /// The requests, without replies to callbacks.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.messages
            .iter()
            .filter_map(|message| message.request)
            .filter(|request| *request != Request::Notify)
            .collect()
    }

    /// The replies to callbacks: accepted, refused, or (`None`) neither said.
    #[must_use]
    pub fn replies(&self) -> Vec<Option<bool>> {
        self.messages
            .iter()
            .filter(|message| message.request == Some(Request::Notify))
            .map(|message| message.accepted)
            .collect()
    }

    /// The first message of this kind.
    #[must_use]
    pub fn message(&self, request: Request) -> Option<&Message> {
        self.messages
            .iter()
            .find(|message| message.request == Some(request))
    }
}

/// One message of the client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Message {
    /// What it is; `None` when it is no `criu_req`, or one of a type that does not exist.
    pub request: Option<Request>,
    /// Its length in bytes.
    pub length: usize,
    /// How many descriptors came with it.
    pub descriptors: usize,
    /// `keep_open`.
    pub keep_open: Option<bool>,
    /// `notify_success`, in replies.
    pub accepted: Option<bool>,
    /// `pid` of WAIT_PID; that of other requests is an option.
    pub pid: Option<u32>,
    /// The features asked about, under the protocol's names.
    pub features: Vec<String>,
    /// The options that are set, under the protocol's names (or numbers, where it has none); `None` when there is no `opts`.
    pub options: Option<BTreeMap<String, Vec<Value>>>,
}

impl Message {
    /// The only value, or the last, of an option; `None` when it is not set.
    #[must_use]
    pub fn option(&self, name: &str) -> Option<&Value> {
        self.options.as_ref()?.get(name)?.last()
    }

    /// A number or flag (1 or 0) among the options.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<i64> {
        match self.option(name)? {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// The texts of an option that may be there several times.
    #[must_use]
    pub fn texts(&self, name: &str) -> Vec<&str> {
        let values = self.options.as_ref().and_then(|options| options.get(name));
        values
            .into_iter()
            .flatten()
            .filter_map(|value| match value {
                Value::Text(text) => Some(text.as_str()),
                _ => None,
            })
            .collect()
    }

    pub(super) fn read(bytes: &[u8], descriptors: usize) -> (Self, Option<CriuOpts>) {
        let plain = Self {
            length: bytes.len(),
            descriptors,
            ..Self::default()
        };
        let Ok(request) = CriuReq::decode(bytes) else {
            return (plain, None);
        };
        let asked = request.features.unwrap_or_default();
        let features = [
            ("mem_track", asked.mem_track),
            ("lazy_pages", asked.lazy_pages),
            ("pidfd_store", asked.pidfd_store),
            ("mem_compression", asked.mem_compression),
        ];
        let read = Self {
            request: Request::from_number(request.r#type),
            keep_open: request.keep_open,
            accepted: request.notify_success,
            pid: request.pid,
            features: features
                .into_iter()
                .filter(|(_, asked)| *asked == Some(true))
                .map(|(name, _)| name.to_owned())
                .collect(),
            options: field(bytes, OPTS).map(|opts| options(&opts)),
            ..plain
        };
        (read, request.opts)
    }
}

/// The value of an option as it was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub enum Value {
    /// A number, a flag or an enumerator.
    Number(i64),
    /// A text.
    Text(String),
    /// A message in its encoding, or a text that is not UTF-8.
    Bytes(Vec<u8>),
}

/// What became of a descriptor that was handed over: the writing end of a pipe.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Pipe {
    /// What was written to it until the end of the script.
    pub written: Vec<u8>,
    /// Whether nobody had it open any more at the end of the script.
    pub closed: bool,
}

/// How the peer was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ProcessFacts {
    /// Its pid.
    pub pid: i32,
    /// Its session.
    pub session: i32,
    /// Its arguments, its own name first.
    pub arguments: Vec<String>,
    /// The names of its environment variables.
    pub environment: Vec<String>,
    /// Its descriptors and what they are, as readlink(2) shows it.
    pub descriptors: BTreeMap<i32, String>,
    /// The signals that it was started with ignored, by number. SIGPIPE is always there: Rust programs ignore it.
    pub ignored_signals: Vec<i32>,
    /// The signals that it was started with blocked, by number.
    pub blocked_signals: Vec<i32>,
}

/// The number of `opts` in `criu_req`.
const OPTS: u32 = 2;

/// A field of `criu_opts`: its number, name, and whether it is a text.
const OPTIONS: &[(u32, &str, bool)] = &[
    (1, "images_dir_fd", false),
    (2, "pid", false),
    (3, "leave_running", false),
    (4, "ext_unix_sk", false),
    (5, "tcp_established", false),
    (6, "evasive_devices", false),
    (7, "shell_job", false),
    (8, "file_locks", false),
    (9, "log_level", false),
    (10, "log_file", true),
    (11, "ps", false),
    (12, "notify_scripts", false),
    (13, "root", true),
    (14, "parent_img", true),
    (15, "track_mem", false),
    (16, "auto_dedup", false),
    (17, "work_dir_fd", false),
    (18, "link_remap", false),
    (19, "veths", false),
    (20, "cpu_cap", false),
    (21, "force_irmap", false),
    (22, "exec_cmd", true),
    (23, "ext_mnt", false),
    (24, "manage_cgroups", false),
    (25, "cg_root", false),
    (26, "rst_sibling", false),
    (27, "inherit_fd", false),
    (28, "auto_ext_mnt", false),
    (29, "ext_sharing", false),
    (30, "ext_masters", false),
    (31, "skip_mnt", true),
    (32, "enable_fs", true),
    (33, "unix_sk_ino", false),
    (34, "manage_cgroups_mode", false),
    (35, "ghost_limit", false),
    (36, "irmap_scan_paths", true),
    (37, "external", true),
    (38, "empty_ns", false),
    (39, "join_ns", false),
    (41, "cgroup_props", true),
    (42, "cgroup_props_file", true),
    (43, "cgroup_dump_controller", true),
    (44, "freeze_cgroup", true),
    (45, "timeout", false),
    (46, "tcp_skip_in_flight", false),
    (47, "weak_sysctls", false),
    (48, "lazy_pages", false),
    (49, "status_fd", false),
    (50, "orphan_pts_master", false),
    (51, "config_file", true),
    (52, "tcp_close", false),
    (53, "lsm_profile", true),
    (54, "tls_cacert", true),
    (55, "tls_cacrl", true),
    (56, "tls_cert", true),
    (57, "tls_key", true),
    (58, "tls", false),
    (59, "tls_no_cn_verify", false),
    (60, "cgroup_yard", true),
    (61, "pre_dump_mode", false),
    (62, "pidfd_store_sk", false),
    (63, "lsm_mount_context", true),
    (64, "network_lock", false),
    (65, "mntns_compat_mode", false),
    (66, "skip_file_rwx_check", false),
    (67, "unprivileged", false),
    (68, "images_dir", true),
    (69, "leave_stopped", false),
    (70, "display_stats", false),
    (71, "log_to_stderr", false),
    (72, "image_io_mode", false),
    (73, "compress", false),
    (74, "compress_acceleration", false),
    (75, "compress_block_size", false),
    (76, "decompress_threads", false),
    (77, "plugin_options", true),
    (78, "stream", false),
];

fn options(encoded: &[u8]) -> BTreeMap<String, Vec<Value>> {
    let mut options: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (number, raw) in fields(encoded) {
        let known = OPTIONS.iter().find(|(known, ..)| *known == number);
        let name = known.map_or_else(|| number.to_string(), |(_, name, _)| (*name).to_owned());
        let is_text = known.is_some_and(|(.., is_text)| *is_text);
        let value = match raw {
            Raw::Number(number) => Value::Number(number.cast_signed()),
            Raw::Bytes(bytes) if is_text => match String::from_utf8(bytes) {
                Ok(text) => Value::Text(text),
                Err(error) => Value::Bytes(error.into_bytes()),
            },
            Raw::Bytes(bytes) => Value::Bytes(bytes),
        };
        options.entry(name).or_default().push(value);
    }
    options
}

/// The last occurrence of a field that is a message.
fn field(encoded: &[u8], wanted: u32) -> Option<Vec<u8>> {
    fields(encoded)
        .filter_map(|(number, raw)| match raw {
            Raw::Bytes(bytes) if number == wanted => Some(bytes),
            _ => None,
        })
        .last()
}

enum Raw {
    Number(u64),
    Bytes(Vec<u8>),
}

/// The fields of an encoded message, up to the first that is cut short.
fn fields(mut encoded: &[u8]) -> impl Iterator<Item = (u32, Raw)> {
    std::iter::from_fn(move || {
        let (number, wire_type) = decode_key(&mut encoded).ok()?;
        let raw = match wire_type {
            WireType::Varint => Raw::Number(decode_varint(&mut encoded).ok()?),
            WireType::SixtyFourBit => Raw::Number(encoded.try_get_u64_le().ok()?),
            WireType::ThirtyTwoBit => Raw::Number(encoded.try_get_u32_le().ok()?.into()),
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(&mut encoded).ok()?).ok()?;
                let (bytes, rest) = encoded.split_at_checked(length)?;
                encoded = rest;
                Raw::Bytes(bytes.to_vec())
            }
            WireType::StartGroup | WireType::EndGroup => return None,
        };
        Some((number, raw))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table against `proto/rpc.proto` itself, name by name.
    #[test]
    fn every_option_has_its_name() {
        let files = protox::compile(["proto/rpc.proto"], ["proto"]).unwrap();
        let opts = files.file[0]
            .message_type
            .iter()
            .find(|message| message.name() == "criu_opts")
            .unwrap();
        let text = prost_types::field_descriptor_proto::Type::String;
        let expected: Vec<(u32, &str, bool)> = opts
            .field
            .iter()
            .map(|field| {
                (
                    field.number().cast_unsigned(),
                    field.name(),
                    field.r#type() == text,
                )
            })
            .collect();
        let mut sorted = expected;
        sorted.sort();
        assert_eq!(sorted, OPTIONS);
    }

    #[test]
    fn a_request_is_taken_apart() {
        let request = CriuReq {
            r#type: Request::Dump.number(),
            opts: Some(CriuOpts {
                images_dir_fd: -1,
                external: vec!["net[1]:a".into(), "net[2]:b".into()],
                leave_running: Some(false),
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut bytes = request.encode_to_vec();
        let (message, opts) = Message::read(&bytes, 2);
        assert_eq!(message.request, Some(Request::Dump));
        assert_eq!(message.number("images_dir_fd"), Some(-1));
        assert_eq!(message.number("leave_running"), Some(0));
        assert_eq!(message.texts("external"), ["net[1]:a", "net[2]:b"]);
        assert_eq!(message.option("pid"), None);
        assert_eq!((message.length, message.descriptors), (bytes.len(), 2));
        assert!(opts.is_some());
        bytes.truncate(bytes.len() - 1);
        assert_eq!(Message::read(&bytes, 0).0.request, None);
    }
}
