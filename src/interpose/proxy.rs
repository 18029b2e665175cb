//! Between the two sockets: every datagram is passed on, and on the way recorded, shown to hooks, amended or refused.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;
use serde_json::{Map, Value};

use super::mask::Mask;
use super::recording::{Descriptor, Engine, Entry, Event as Record, Side, micros_since_epoch};
use super::request::{
    Amendment, Reopened, Request, Verdict, decode, operation, own_target, rewrite, with_external,
};
use crate::error::{HookFailure, OperationKind};
use crate::image::{DumpStats, RestoreStats, STATS_DUMP, STATS_RESTORE};
use crate::notify::{DynHooks, Event, HookError, Hooks, Notify, Reply, Script, guard};
use crate::options::ExternalOnDump;
use crate::rpc::transport::{Datagram, Socket};
use crate::rpc::view::{CRIU_RESP, view};
use crate::rpc::wire::{CriuDumpResp, CriuReq, CriuReqType, CriuResp, CriuRestoreResp};
use crate::version::Version;

type OnRequest<'a> = Box<dyn FnMut(&Request) -> Result<Verdict, HookError> + Send + 'a>;
type Observer<'a> = Box<dyn FnMut(Entry) + Send + 'a>;

/// Listens in between one engine and one CRIU: on one connection.
///
/// Built with what is to be done on the way, it then carries the conversation ([`between`](Self::between)) until one side
/// hangs up. Without anything to do it only carries.
#[derive(Default)]
pub struct Interposer<'a> {
    hooks: Option<(Scripts, Box<dyn DynHooks + 'a>)>,
    hook_limit: Option<Duration>,
    on_request: Option<OnRequest<'a>>,
    observer: Option<Observer<'a>>,
    mask: Option<Mask>,
    criu_version: Option<Version>,
    session: Session,
}

/// The callbacks that hooks are asked at.
type Scripts = Option<Vec<Script>>;

/// What a recording says of the session.
#[derive(Debug, Default)]
struct Session {
    pid: Option<i32>,
    arguments: Vec<String>,
    criu: PathBuf,
}

impl std::fmt::Debug for Interposer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interposer")
            .field("hooks", &self.hooks.is_some())
            .field("hook_limit", &self.hook_limit)
            .field("on_request", &self.on_request.is_some())
            .field("observer", &self.observer.is_some())
            .field("mask", &self.mask.is_some())
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}

impl<'a> Interposer<'a> {
    /// Carries, and does nothing else.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks `hooks` at every callback, before the engine is. What they refuse, the engine is not asked about: it gets CRIU's
    /// failure. A descriptor that comes along is theirs as a duplicate; the engine gets it as well.
    ///
    /// An engine that wants no callbacks gets none: they are turned on in its request, and answered here.
    #[must_use]
    pub fn hooks(mut self, hooks: impl Hooks + 'a) -> Self {
        self.hooks = Some((None, Box::new(hooks)));
        self
    }

    /// As [`Interposer::hooks`], at these callbacks only.
    #[must_use]
    pub fn hooks_at(
        mut self,
        scripts: impl IntoIterator<Item = Script>,
        hooks: impl Hooks + 'a,
    ) -> Self {
        self.hooks = Some((Some(scripts.into_iter().collect()), Box::new(hooks)));
        self
    }

    /// How long a hook may take; without, for ever. One that takes longer has refused.
    #[must_use]
    pub fn hook_limit(mut self, limit: Duration) -> Self {
        self.hook_limit = Some(limit);
        self
    }

    /// Asks `decide` about every request before CRIU gets it. An error refuses.
    #[must_use]
    pub fn on_request(
        mut self,
        decide: impl FnMut(&Request) -> Result<Verdict, HookError> + Send + 'a,
    ) -> Self {
        self.on_request = Some(Box::new(decide));
        self
    }

    /// Tells `observer` everything that happens, as it happens, with CRIU waiting: it should return at once.
    #[must_use]
    pub fn observer(mut self, observer: impl FnMut(Entry) + Send + 'a) -> Self {
        self.observer = Some(Box::new(observer));
        self
    }

    /// Puts pseudonyms in the place of paths in what the observer is told.
    #[must_use]
    pub fn mask(mut self, mask: Mask) -> Self {
        self.mask = Some(mask);
        self
    }

    /// Which CRIU it is, so that an amendment that it would ignore refuses the request instead.
    #[must_use]
    pub fn criu_version(mut self, version: Version) -> Self {
        self.criu_version = Some(version);
        self
    }

    /// What CRIU was started as, for the recording and to tell what the descriptors in its own table are.
    #[must_use]
    pub fn process(
        mut self,
        pid: i32,
        criu: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = String>,
    ) -> Self {
        self.session = Session {
            pid: Some(pid),
            arguments: arguments.into_iter().collect(),
            criu: criu.into(),
        };
        self
    }

    pub(super) fn service(mut self, socket: PathBuf) -> Self {
        self.session = Session {
            pid: None,
            arguments: Vec::new(),
            criu: socket,
        };
        self
    }

    /// Carries what passes between these two connected SEQPACKET sockets until one side hangs up, and tells which did. The
    /// other is then hung up on, after it has got everything that was sent before.
    ///
    /// `criu` must have been made (or connected) by this process: CRIU looks the descriptors of a request up in the table of
    /// the process that made the socket, and they are opened here for it, from the table of the process that made
    /// `engine`.
    ///
    /// Must be called within a tokio runtime. Dropped, it hangs up on both: tasks of a dump run on, for CRIU then finds at its
    /// next callback that nobody listens (callbacks are turned on in every DUMP), and those of a restore are gone, unless they
    /// had been let go.
    ///
    /// # Errors
    /// When one of them is no such socket.
    pub async fn between(self, engine: OwnedFd, criu: OwnedFd) -> io::Result<Side> {
        let engine_pid = rustix::net::sockopt::socket_peercred(&engine)
            .ok()
            .map(|peer| peer.pid.as_raw_nonzero().get());
        let Self {
            hooks,
            hook_limit,
            on_request,
            observer,
            mask,
            criu_version,
            session,
        } = self;
        let mut proxy = Proxy {
            engine: Socket::new(engine)?,
            criu: Socket::new(criu)?,
            engine_pid,
            criu_pid: session.pid,
            hooks,
            hook_limit,
            on_request,
            notes: Notes {
                observer,
                mask,
                began: Instant::now(),
            },
            criu_version,
            asked: None,
            unanswered: VecDeque::new(),
        };
        proxy.notes.take(Record::Started {
            pid: session
                .pid
                .unwrap_or_else(|| std::process::id().cast_signed()),
            arguments: session.arguments,
            criu: session.criu,
            started_at: micros_since_epoch(),
            engine: engine_pid.map(engine_of),
        });
        let by = proxy.carry().await;
        // The side that is still there learns of it now; whoever reads along, later.
        let Proxy {
            engine,
            criu,
            mut notes,
            ..
        } = proxy;
        drop((engine, criu));
        notes.take(Record::Ended { by });
        Ok(by)
    }
}

fn engine_of(pid: i32) -> Engine {
    Engine {
        pid,
        program: std::fs::read_link(format!("/proc/{pid}/exe")).ok(),
    }
}

/// What is told to the observer, and when it began.
struct Notes<'a> {
    observer: Option<Observer<'a>>,
    mask: Option<Mask>,
    began: Instant,
}

impl Notes<'_> {
    fn take(&mut self, event: Record) {
        if let Some(observer) = &mut self.observer {
            let entry = Entry {
                session: 1,
                at: u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX),
                event,
            };
            observer(match &self.mask {
                Some(mask) => mask.entry(entry),
                None => entry,
            });
        }
    }
}

/// A request that CRIU works on.
struct Asked {
    request: Request,
    /// The engine has asked for callbacks itself.
    engine_listens: bool,
    root: Option<i32>,
    reopened: Reopened,
    _held: Vec<OwnedFd>,
}

/// A callback that the engine has got and not answered.
struct Unanswered {
    external: Vec<String>,
}

struct Proxy<'a> {
    engine: Socket,
    criu: Socket,
    engine_pid: Option<i32>,
    criu_pid: Option<i32>,
    hooks: Option<(Scripts, Box<dyn DynHooks + 'a>)>,
    hook_limit: Option<Duration>,
    on_request: Option<OnRequest<'a>>,
    notes: Notes<'a>,
    criu_version: Option<Version>,
    asked: Option<Asked>,
    unanswered: VecDeque<Unanswered>,
}

/// One side has hung up.
struct HungUp(Side);

impl Proxy<'_> {
    async fn carry(&mut self) -> Side {
        loop {
            let passed = tokio::select! {
                // What CRIU has said before it went is passed on before anything else.
                biased;
                received = self.criu.receive() => match received {
                    Ok(Some(datagram)) => self.criu_said(datagram).await,
                    _ => Err(HungUp(Side::Criu)),
                },
                received = self.engine.receive() => match received {
                    Ok(Some(datagram)) => self.engine_said(datagram).await,
                    _ => Err(HungUp(Side::Engine)),
                },
            };
            if let Err(HungUp(by)) = passed {
                return by;
            }
        }
    }

    // --- from the engine ---

    async fn engine_said(&mut self, datagram: Datagram) -> Result<(), HungUp> {
        match decode(&datagram.bytes) {
            Some((request, seen)) => match CriuReqType::try_from(request.r#type) {
                Ok(CriuReqType::Notify) => self.reply_from_engine(datagram, request, seen).await,
                Ok(kind) => self.request(datagram, kind, request, seen).await,
                // CRIU says what it thinks of it.
                Err(_) => {
                    self.note_message(Side::Engine, &datagram, seen, Vec::new());
                    self.tell_criu(&datagram.bytes, &datagram.fds).await
                }
            },
            None => {
                self.note_message(Side::Engine, &datagram, Map::new(), Vec::new());
                self.tell_criu(&datagram.bytes, &datagram.fds).await
            }
        }
    }

    async fn reply_from_engine(
        &mut self,
        datagram: Datagram,
        reply: CriuReq,
        seen: Map<String, Value>,
    ) -> Result<(), HungUp> {
        self.note_message(Side::Engine, &datagram, seen, Vec::new());
        let external = self.unanswered.pop_front().map(|asked| asked.external);
        let external = external.unwrap_or_default();
        if reply.notify_success == Some(true)
            && !external.is_empty()
            && let Ok(bytes) = with_external(&datagram.bytes, &external)
        {
            let added = Map::from_iter([("external".to_owned(), Value::from(external))]);
            self.notes.take(Record::Amended {
                bytes: bytes.clone(),
                added,
            });
            return self.tell_criu(&bytes, &datagram.fds).await;
        }
        self.tell_criu(&datagram.bytes, &datagram.fds).await
    }

    async fn request(
        &mut self,
        datagram: Datagram,
        kind: CriuReqType,
        request: CriuReq,
        seen: Map<String, Value>,
    ) -> Result<(), HungUp> {
        // What the previous request of this connection had open is no longer needed.
        self.asked = None;
        self.unanswered.clear();
        let opts = request.opts.unwrap_or_default();
        let reopened = Reopened::open(&opts, self.engine_pid, self.criu_pid);
        self.note_message(
            Side::Engine,
            &datagram,
            seen.clone(),
            reopened.descriptors.clone(),
        );
        let request = Request {
            kind,
            view: seen,
            engine: self.engine_pid.map(engine_of),
            images_dir: reopened.images_dir(),
            opts,
        };
        let amendments = match self.judge(&request) {
            Ok(amendments) => amendments,
            Err(reason) => return self.refuse_request(kind, reason).await,
        };
        let opts = &request.opts;
        let engine_listens = opts.notify_scripts == Some(true);
        let wants_hooks =
            self.hooks.is_some() && matches!(kind, CriuReqType::Dump | CriuReqType::Restore);
        // Without callbacks CRIU does not notice that its client is gone, and a dump ends with the tasks killed.
        let notify = !engine_listens && (wants_hooks || kind == CriuReqType::Dump);
        let Ok(rewritten) = rewrite(&datagram.bytes, &reopened, notify, amendments) else {
            return self.tell_criu(&datagram.bytes, &datagram.fds).await;
        };
        if !rewritten.added.is_empty() {
            self.notes.take(Record::Amended {
                bytes: rewritten.bytes.clone(),
                added: rewritten.added,
            });
        }
        self.asked = Some(Asked {
            root: request.pid(),
            request,
            engine_listens,
            reopened,
            _held: rewritten.held,
        });
        self.tell_criu(&rewritten.bytes, &datagram.fds).await
    }

    /// What is to be added to a request, or why CRIU does not get it.
    fn judge(&mut self, request: &Request) -> Result<Vec<Amendment>, String> {
        if request.kind == CriuReqType::Dump && request.opts.pid.is_none() {
            // CRIU would dump the process at the other end of its socket, which is this one.
            return Err("a process that dumps itself cannot be listened in on".into());
        }
        let verdict = match &mut self.on_request {
            Some(decide) => decide(request).map_err(|error| error.to_string())?,
            None => Verdict::Pass,
        };
        let amendment = match verdict {
            Verdict::Pass => return Ok(Vec::new()),
            Verdict::Refuse(reason) => return Err(reason),
            Verdict::Amend(amendment) => amendment,
        };
        let name = request.name();
        if request.operation() != Some(amendment.operation()) {
            let operation = amendment.operation();
            return Err(format!("an amendment of a {operation} does not fit {name}"));
        }
        if let Some(version) = &self.criu_version {
            let newer = amendment.newer_than(version);
            if !newer.is_empty() {
                let newer = newer.join(", ");
                return Err(format!(
                    "this CRIU is {version} and does not have {newer}, which was to be added"
                ));
            }
        }
        Ok(vec![amendment])
    }

    /// Answers a request as CRIU answers one that failed, and hangs up as it does.
    async fn refuse_request(&mut self, kind: CriuReqType, reason: String) -> Result<(), HungUp> {
        let answer = CriuResp {
            r#type: kind.into(),
            success: false,
            dump: (kind == CriuReqType::Dump).then_some(CriuDumpResp { restored: None }),
            restore: (kind == CriuReqType::Restore).then_some(CriuRestoreResp { pid: -1 }),
            cr_errmsg: Some(format!("Error (interposer): {reason}\n").into_bytes()),
            ..Default::default()
        };
        let bytes = answer.encode_to_vec();
        self.notes.take(Record::Refused {
            reason,
            bytes: bytes.clone(),
        });
        self.tell_engine(&bytes, &[]).await?;
        Err(HungUp(Side::Criu))
    }

    // --- from CRIU ---

    async fn criu_said(&mut self, datagram: Datagram) -> Result<(), HungUp> {
        let seen = view(&datagram.bytes, &CRIU_RESP).unwrap_or_default();
        let response = CriuResp::decode(datagram.bytes.as_slice()).unwrap_or_default();
        let carried = datagram.fds.iter().map(|fd| Descriptor {
            option: None,
            number: None,
            target: own_target(fd),
        });
        let carried = carried.collect();
        self.note_message(Side::Criu, &datagram, seen, carried);
        match (CriuReqType::try_from(response.r#type), response.notify) {
            (Ok(CriuReqType::Notify), Some(notify)) => {
                let script =
                    String::from_utf8_lossy(&notify.script.unwrap_or_default()).into_owned();
                self.callback(datagram, &script, notify.pid).await
            }
            _ => {
                if response.success {
                    self.note_stats();
                }
                self.tell_engine(&datagram.bytes, &datagram.fds).await
            }
        }
    }

    async fn callback(
        &mut self,
        datagram: Datagram,
        script: &str,
        pid: Option<i32>,
    ) -> Result<(), HungUp> {
        if let Some(asked) = &mut self.asked
            && asked.request.kind == CriuReqType::Restore
        {
            asked.root = pid.or(asked.root);
        }
        let (accepted, external) = self.ask_hooks(&datagram, script, pid).await?;
        let engine_listens = self.asked.as_ref().is_none_or(|asked| asked.engine_listens);
        if accepted && engine_listens {
            self.unanswered.push_back(Unanswered { external });
            return self.tell_engine(&datagram.bytes, &datagram.fds).await;
        }
        // A terminal has nobody to go to, as without us.
        let accepted = accepted && Script::from_name(script) != Script::OrphanPtsMaster;
        self.notes.take(Record::Withheld {
            script: script.to_owned(),
            accepted,
        });
        let reply = CriuReq {
            r#type: CriuReqType::Notify.into(),
            notify_success: Some(accepted),
            ..Default::default()
        };
        let bytes = match external.is_empty() {
            true => reply.encode_to_vec(),
            false => with_external(&reply.encode_to_vec(), &external)
                .unwrap_or_else(|_| reply.encode_to_vec()),
        };
        self.tell_criu(&bytes, &[]).await
    }

    /// Whether CRIU may go on as far as the hooks are concerned, and what they add. When one side hangs up meanwhile, the hook
    /// is dropped.
    async fn ask_hooks(
        &mut self,
        datagram: &Datagram,
        script: &str,
        pid: Option<i32>,
    ) -> Result<(bool, Vec<String>), HungUp> {
        let Some((scripts, hooks)) = &mut self.hooks else {
            return Ok((true, Vec::new()));
        };
        let known = Script::from_name(script);
        if scripts
            .as_ref()
            .is_some_and(|wanted| !wanted.contains(&known))
        {
            return Ok((true, Vec::new()));
        }
        let asked = self.asked.as_ref();
        let duplicates = datagram.fds.iter().filter_map(|fd| fd.try_clone().ok());
        let notify = Notify {
            event: Event::new(script, pid, duplicates.collect()),
            operation: asked
                .and_then(|asked| operation(asked.request.kind))
                .unwrap_or(OperationKind::Dump),
            root: asked.and_then(|asked| asked.root),
            images_dir: asked
                .and_then(|asked| asked.request.images_dir.as_deref())
                .map_or_else(|| Arc::from(Path::new("")), Arc::from),
        };
        let began = Instant::now();
        let replied = tokio::select! {
            replied = guard::ask(hooks, notify, self.hook_limit) => replied,
            () = self.engine.hung_up() => return Err(HungUp(Side::Engine)),
            () = self.criu.hung_up() => return Err(HungUp(Side::Criu)),
        };
        let (reason, external) = match settled(replied) {
            Ok(external) => (None, external),
            Err(reason) => (Some(reason), Vec::new()),
        };
        self.notes.take(Record::Hook {
            script: script.to_owned(),
            accepted: reason.is_none(),
            reason: reason.clone(),
            took: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
        });
        Ok((reason.is_none(), external))
    }

    // --- both ways ---

    async fn tell_criu(&mut self, bytes: &[u8], fds: &[OwnedFd]) -> Result<(), HungUp> {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        // It may have gone, but may have said why: that is still to be read.
        let _ = self.criu.send(bytes, &fds).await;
        Ok(())
    }

    async fn tell_engine(&mut self, bytes: &[u8], fds: &[OwnedFd]) -> Result<(), HungUp> {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        match self.engine.send(bytes, &fds).await {
            Ok(()) => Ok(()),
            Err(_) => Err(HungUp(Side::Engine)),
        }
    }

    fn note_message(
        &mut self,
        from: Side,
        datagram: &Datagram,
        seen: Map<String, Value>,
        fds: Vec<Descriptor>,
    ) {
        self.notes.take(Record::Message {
            from,
            bytes: datagram.bytes.clone(),
            view: seen,
            fds,
        });
    }

    /// CRIU has written them before it answers, and the engine may clear them away as soon as it has the answer.
    fn note_stats(&mut self) {
        let Some(asked) = &self.asked else { return };
        let Some(directory) = asked.reopened.work_dir() else {
            return;
        };
        let stats = match operation(asked.request.kind) {
            Some(OperationKind::Dump | OperationKind::PreDump) => {
                DumpStats::read(directory.as_fd(), STATS_DUMP)
                    .ok()
                    .and_then(|stats| serde_json::to_value(stats).ok())
            }
            Some(OperationKind::Restore) => RestoreStats::read(directory.as_fd(), STATS_RESTORE)
                .ok()
                .and_then(|stats| serde_json::to_value(stats).ok()),
            _ => None,
        };
        if let Some(stats) = stats {
            self.notes.take(Record::Stats { stats });
        }
    }
}

/// What a hook's reply comes to: external files, or why CRIU may not go on.
fn settled(
    replied: Result<Reply, (HookFailure, Option<HookError>)>,
) -> Result<Vec<String>, String> {
    match replied {
        Ok(Reply::Accept) => Ok(Vec::new()),
        Ok(Reply::Refuse(reason)) => Err(reason),
        Ok(Reply::ExternalFiles(files)) => files
            .iter()
            .map(ExternalOnDump::checked)
            .collect::<Result<_, _>>()
            .map_err(|invalid| invalid.to_string()),
        Err((failure, Some(error))) => Err(format!("{failure}: {error}")),
        Err((failure, None)) => Err(failure.to_string()),
    }
}
