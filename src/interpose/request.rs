//! A request on its way to CRIU: what a hook sees of it, what it may add, and what must be rewritten in any case.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use prost::Message as _;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde_json::{Map, Value};

use super::amendment::Amendment;
use super::recording::{Descriptor, Engine};
use crate::error::OperationKind;
use crate::rpc::fields::{self, Malformed, fields};
use crate::rpc::view::{self, CRIU_OPTS, view};
use crate::rpc::wire::{CriuOpts, CriuReq, CriuReqType};

/// `criu_req.opts`
const OPTS: u32 = 2;
/// `criu_opts.images_dir_fd`
pub(super) const IMAGES_DIR_FD: u32 = 1;
/// `criu_opts.notify_scripts`
const NOTIFY_SCRIPTS: u32 = 12;

/// The options whose descriptor CRIU opens through `/proc/PEER/fd/N`, PEER being the process at the other end of its
/// socket: with a listener in between that is the listener.
const OPENED: [(u32, &str); 3] = [
    (IMAGES_DIR_FD, "images_dir_fd"),
    (17, "work_dir_fd"),
    (49, "status_fd"),
];
/// The option whose descriptor CRIU takes out of that process with pidfd_getfd(2).
const TAKEN: (u32, &str) = (62, "pidfd_store_sk");

/// A number that no descriptor has: CRIU fails on it as it would on the engine's own that cannot be opened.
const NO_DESCRIPTOR: i32 = 1 << 30;

/// A request that an engine has sent and CRIU has not got yet.
#[derive(Debug, Clone)]
pub struct Request {
    pub(super) kind: CriuReqType,
    pub(super) view: Map<String, Value>,
    pub(super) engine: Option<Engine>,
    pub(super) images_dir: Option<PathBuf>,
    pub(super) opts: CriuOpts,
}

impl Request {
    /// CRIU's name of it, such as `DUMP`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.kind.as_str_name()
    }

    /// What is asked; `None` for what is no operation (EMPTY, NOTIFY).
    #[must_use]
    pub fn operation(&self) -> Option<OperationKind> {
        operation(self.kind)
    }

    /// The options that the engine has set, under the protocol's names, as JSON.
    #[must_use]
    pub fn options(&self) -> Option<&Map<String, Value>> {
        self.view.get("opts")?.as_object()
    }

    /// One of them.
    #[must_use]
    pub fn option(&self, name: &str) -> Option<&Value> {
        self.options()?.get(name)
    }

    /// The root of the tree that is dumped, in CRIU's pid namespace.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.opts.pid
    }

    /// The images directory, as the engine has it open.
    #[must_use]
    pub fn images_dir(&self) -> Option<&Path> {
        self.images_dir.as_deref()
    }

    /// The process that asks, where it can be told.
    #[must_use]
    pub fn engine(&self) -> Option<&Engine> {
        self.engine.as_ref()
    }
}

pub(super) fn operation(kind: CriuReqType) -> Option<OperationKind> {
    Some(match kind {
        CriuReqType::Empty | CriuReqType::Notify => return None,
        CriuReqType::Dump => OperationKind::Dump,
        CriuReqType::Restore => OperationKind::Restore,
        CriuReqType::Check => OperationKind::Check,
        CriuReqType::PreDump | CriuReqType::SinglePreDump => OperationKind::PreDump,
        CriuReqType::PageServer | CriuReqType::PageServerChld | CriuReqType::WaitPid => {
            OperationKind::PageServer
        }
        CriuReqType::CpuinfoDump => OperationKind::CpuinfoDump,
        CriuReqType::CpuinfoCheck => OperationKind::CpuinfoCheck,
        CriuReqType::FeatureCheck => OperationKind::FeatureCheck,
        CriuReqType::Version => OperationKind::Version,
    })
}

/// What becomes of a request.
#[derive(Debug)]
#[non_exhaustive]
pub enum Verdict {
    /// CRIU gets it.
    Pass,
    /// CRIU does not get it; the engine gets an answer that says the request failed, for this reason.
    Refuse(String),
    /// CRIU gets it with these options added.
    Amend(Amendment),
}

/// The descriptors of a request: those of the engine opened here, and a note of all for the recording.
#[derive(Debug, Default)]
pub(super) struct Reopened {
    /// By the number of the option.
    opened: BTreeMap<u32, OwnedFd>,
    /// Options whose descriptor cannot be opened.
    broken: Vec<u32>,
    pub(super) descriptors: Vec<Descriptor>,
}

impl Reopened {
    /// Opens the engine's descriptors. What cannot be opened is not an error here: CRIU is to say so as it always does.
    pub(super) fn open(opts: &CriuOpts, engine: Option<i32>, criu: Option<i32>) -> Self {
        let mut reopened = Self::default();
        let number_of = |option| match option {
            IMAGES_DIR_FD => Some(opts.images_dir_fd).filter(|fd| *fd >= 0),
            17 => opts.work_dir_fd,
            49 => opts.status_fd,
            _ => None,
        };
        for (option, name) in OPENED {
            let Some(number) = number_of(option) else {
                continue;
            };
            let path = engine.map(|engine| format!("/proc/{engine}/fd/{number}"));
            // A path only: CRIU opens it as it needs it.
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let opened = path.map(|path| openat(CWD, path, flags, Mode::empty()));
            reopened.note(option, name, number, opened.and_then(Result::ok));
        }
        if let Some(number) = opts.pidfd_store_sk {
            let opened = engine.and_then(Pid::from_raw).and_then(|engine| {
                let pidfd = pidfd_open(engine, PidfdFlags::empty()).ok()?;
                pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty()).ok()
            });
            reopened.note(TAKEN.0, TAKEN.1, number, opened);
        }
        let inherited = opts
            .inherit_fd
            .iter()
            .map(|inherit| ("inherit_fd", inherit.fd));
        let connected = opts
            .ps
            .as_ref()
            .and_then(|ps| ps.fd)
            .map(|fd| ("ps.fd", fd));
        for (name, number) in inherited.chain(connected) {
            let target = criu.and_then(|criu| target(&format!("/proc/{criu}/fd/{number}")));
            reopened.descriptors.push(Descriptor {
                option: Some(name.into()),
                number: Some(number),
                target,
            });
        }
        reopened
    }

    fn note(&mut self, option: u32, name: &str, number: i32, opened: Option<OwnedFd>) {
        self.descriptors.push(Descriptor {
            option: Some(name.into()),
            number: Some(number),
            target: opened.as_ref().and_then(own_target),
        });
        match opened {
            Some(fd) => {
                self.opened.insert(option, fd);
            }
            None => self.broken.push(option),
        }
    }

    /// The number of an option's descriptor in our own table.
    fn number(&self, option: u32) -> Option<i32> {
        match self.opened.get(&option) {
            Some(fd) => Some(fd.as_raw_fd()),
            None => self.broken.contains(&option).then_some(NO_DESCRIPTOR),
        }
    }

    fn is_empty(&self) -> bool {
        self.opened.is_empty() && self.broken.is_empty()
    }

    /// The directory in which CRIU writes its statistics.
    pub(super) fn work_dir(&self) -> Option<&OwnedFd> {
        self.opened
            .get(&17)
            .or_else(|| self.opened.get(&IMAGES_DIR_FD))
    }

    pub(super) fn images_dir(&self) -> Option<PathBuf> {
        let fd = self.opened.get(&IMAGES_DIR_FD)?;
        std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()
    }
}

/// What a descriptor of ours is.
pub(super) fn own_target(fd: &OwnedFd) -> Option<String> {
    target(&format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn target(link: &str) -> Option<String> {
    let target = std::fs::read_link(link).ok()?;
    Some(target.to_string_lossy().into_owned())
}

/// The request as CRIU gets it: the engine's own bytes, its descriptors renumbered, and what is added behind them. All
/// fields that this library does not know stay as they are.
pub(super) struct Rewritten {
    pub(super) bytes: Vec<u8>,
    /// What is added or replaced, by name; not the numbers of descriptors.
    pub(super) added: Map<String, Value>,
    /// Descriptors that must stay open until CRIU has answered.
    pub(super) held: Vec<OwnedFd>,
}

/// `notify`: turn callbacks on.
pub(super) fn rewrite(
    request: &[u8],
    reopened: &Reopened,
    notify: bool,
    amendments: Vec<Amendment>,
) -> Result<Rewritten, Malformed> {
    if reopened.is_empty() && !notify && amendments.is_empty() {
        return Ok(Rewritten {
            bytes: request.to_vec(),
            added: Map::new(),
            held: Vec::new(),
        });
    }
    let mut outer = Vec::with_capacity(request.len());
    let mut opts = Vec::with_capacity(request.len());
    let mut has_opts = false;
    for field in fields(request)? {
        match field.value {
            fields::Value::Bytes(inner) if field.number == OPTS => {
                has_opts = true;
                for field in fields(inner)? {
                    match reopened.number(field.number) {
                        Some(number) => {
                            fields::put_number(&mut opts, field.number, signed(number));
                        }
                        None => opts.extend_from_slice(field.bytes),
                    }
                }
            }
            _ => outer.extend_from_slice(field.bytes),
        }
    }
    let mut added = Vec::new();
    if notify {
        fields::put_number(&mut added, NOTIFY_SCRIPTS, 1);
    }
    let mut held = Vec::new();
    for amendment in amendments {
        added.extend(amendment.encoded());
        held.extend(amendment.into_held());
    }
    if has_opts || !added.is_empty() {
        opts.extend_from_slice(&added);
        fields::put_bytes(&mut outer, OPTS, &opts);
    }
    Ok(Rewritten {
        bytes: outer,
        added: view(&added, &CRIU_OPTS)?,
        held,
    })
}

/// Adds external resources to a reply to `query-ext-files`.
pub(super) fn with_external(reply: &[u8], external: &[String]) -> Result<Vec<u8>, Malformed> {
    let mut outer = Vec::with_capacity(reply.len());
    let mut opts = Vec::new();
    for field in fields(reply)? {
        match field.value {
            fields::Value::Bytes(inner) if field.number == OPTS => opts.extend_from_slice(inner),
            _ => outer.extend_from_slice(field.bytes),
        }
    }
    if opts.is_empty() {
        // Required by the protocol, ignored here by CRIU.
        fields::put_number(&mut opts, IMAGES_DIR_FD, signed(-1));
    }
    for text in external {
        fields::put_bytes(&mut opts, EXTERNAL, text.as_bytes());
    }
    fields::put_bytes(&mut outer, OPTS, &opts);
    Ok(outer)
}

/// `criu_opts.external`
const EXTERNAL: u32 = 37;

fn signed(number: i32) -> u64 {
    i64::from(number).cast_unsigned()
}

/// The request that these bytes are.
pub(super) fn decode(bytes: &[u8]) -> Option<(CriuReq, Map<String, Value>)> {
    let request = CriuReq::decode(bytes).ok()?;
    let seen = view(bytes, &view::CRIU_REQ).ok()?;
    Some((request, seen))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{DumpOptions, ExternalOnDump, NetworkLock};
    use crate::rpc::wire::InheritFd;
    use crate::version::Version;

    fn dump() -> CriuReq {
        CriuReq {
            r#type: CriuReqType::Dump.into(),
            opts: Some(CriuOpts {
                images_dir_fd: 7,
                work_dir_fd: Some(8),
                pid: Some(4711),
                external: vec!["net[1]:a".into()],
                inherit_fd: vec![InheritFd {
                    key: "pipe:[3]".into(),
                    fd: 1,
                }],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn own_pid() -> i32 {
        std::process::id().cast_signed()
    }

    #[test]
    fn descriptors_are_opened_and_renumbered_and_unknown_fields_stay() {
        let directory = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(directory.path()).unwrap();
        let mut request = dump();
        let opts = request.opts.as_mut().unwrap();
        opts.images_dir_fd = fd.as_raw_fd();
        opts.work_dir_fd = Some(987_654);
        let mut bytes = Vec::new();
        fields::put_number(&mut bytes, 1, 1);
        let mut encoded = opts.encode_to_vec();
        fields::put_number(&mut encoded, 200, 5);
        fields::put_bytes(&mut bytes, OPTS, &encoded);
        fields::put_bytes(&mut bytes, 99, b"later");

        let reopened = Reopened::open(opts, Some(own_pid()), None);
        assert_eq!(reopened.images_dir().as_deref(), Some(directory.path()));
        let rewritten = rewrite(&bytes, &reopened, false, Vec::new()).unwrap();
        assert!(rewritten.added.is_empty());
        let seen = CriuReq::decode(rewritten.bytes.as_slice())
            .unwrap()
            .opts
            .unwrap();
        assert_ne!(seen.images_dir_fd, fd.as_raw_fd());
        let link = std::fs::read_link(format!("/proc/self/fd/{}", seen.images_dir_fd)).unwrap();
        assert_eq!(link, directory.path());
        assert_eq!(seen.work_dir_fd, Some(NO_DESCRIPTOR));
        assert_eq!(seen.inherit_fd, dump().opts.unwrap().inherit_fd);
        let seen = view(&rewritten.bytes, &view::CRIU_REQ).unwrap();
        assert_eq!(seen["#99"], view::hex(b"later"));
        assert_eq!(seen["opts"]["#200"], 5);
    }

    #[test]
    fn what_is_added_replaces_single_values_and_joins_lists() {
        let options = DumpOptions::new()
            .network_lock(NetworkLock::Skip)
            .external("net[2]:b".parse::<ExternalOnDump>().unwrap());
        let amendment = Amendment::dump(options).unwrap();
        assert_eq!(
            amendment.newer_than(&Version::new(3, 18, 0)),
            ["network_lock=SKIP"]
        );
        let mut request = dump();
        request.opts.as_mut().unwrap().network_lock = Some(1);
        let rewritten = rewrite(
            &request.encode_to_vec(),
            &Reopened::default(),
            true,
            vec![amendment],
        )
        .unwrap();
        let seen = CriuReq::decode(rewritten.bytes.as_slice())
            .unwrap()
            .opts
            .unwrap();
        assert_eq!(seen.network_lock, Some(3));
        assert_eq!(seen.external, ["net[1]:a", "net[2]:b"]);
        assert_eq!(seen.notify_scripts, Some(true));
        assert_eq!(seen.images_dir_fd, 7);
        let mut names: Vec<&String> = rewritten.added.keys().collect();
        names.sort();
        assert_eq!(names, ["external", "network_lock", "notify_scripts"]);
    }

    #[test]
    fn a_request_that_needs_nothing_is_passed_on_to_the_byte() {
        for bytes in [dump().encode_to_vec(), vec![8, 10], vec![8, 10, 32, 1]] {
            let rewritten = rewrite(&bytes, &Reopened::default(), false, Vec::new()).unwrap();
            assert_eq!(rewritten.bytes, bytes);
        }
    }

    #[test]
    fn external_files_join_an_engines_reply() {
        let reply = CriuReq {
            r#type: CriuReqType::Notify.into(),
            notify_success: Some(true),
            ..Default::default()
        };
        let external = ["file[1:2]".to_owned()];
        let bytes = with_external(&reply.encode_to_vec(), &external).unwrap();
        let seen = CriuReq::decode(bytes.as_slice()).unwrap();
        assert_eq!(seen.notify_success, Some(true));
        assert_eq!(seen.opts.unwrap().external, external);
    }
}
