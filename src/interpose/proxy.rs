//! Between the two sockets: every datagram is passed on, and on the way recorded, shown to hooks, amended or refused.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;
use serde_json::{Map, Value};

use super::amendment::Amendment;
use super::interposer::{Observer, OnRequest, Scripts};
use super::mask::Mask;
use super::recording::{Descriptor, Engine, Entry, Event as Record, Side};
use super::request::{
    Reopened, Request, Verdict, decode, operation, own_target, rewrite, with_external,
};
use crate::error::{HookFailure, OperationKind};
use crate::image::{DumpStats, RestoreStats, STATS_DUMP, STATS_RESTORE};
use crate::notify::{DynHooks, Event, HookError, Notify, Reply, Script, guard};
use crate::options::ExternalOnDump;
use crate::rpc::transport::{Datagram, Socket};
use crate::rpc::view::{CRIU_RESP, view};
use crate::rpc::wire::{CriuDumpResp, CriuReq, CriuReqType, CriuResp, CriuRestoreResp};
use crate::version::Version;

pub(super) fn engine_of(pid: i32) -> Engine {
    Engine {
        pid,
        program: std::fs::read_link(format!("/proc/{pid}/exe")).ok(),
    }
}

/// What is told to the observer, and when it began.
pub(super) struct Notes<'a> {
    pub(super) observer: Option<Observer<'a>>,
    pub(super) mask: Option<Mask>,
    pub(super) began: Instant,
}

impl Notes<'_> {
    pub(super) fn take(&mut self, event: Record) {
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
pub(super) struct Asked {
    request: Request,
    /// The engine has asked for callbacks itself.
    engine_listens: bool,
    root: Option<i32>,
    reopened: Reopened,
    _held: Vec<OwnedFd>,
}

/// A callback that the engine has got and not answered.
pub(super) struct Unanswered {
    external: Vec<String>,
}

pub(super) struct Proxy<'a> {
    pub(super) engine: Socket,
    pub(super) criu: Socket,
    pub(super) engine_pid: Option<i32>,
    pub(super) criu_pid: Option<i32>,
    pub(super) hooks: Option<(Scripts, Box<dyn DynHooks + 'a>)>,
    pub(super) hook_limit: Option<Duration>,
    pub(super) on_request: Option<OnRequest<'a>>,
    pub(super) notes: Notes<'a>,
    pub(super) criu_version: Option<Version>,
    pub(super) asked: Option<Asked>,
    pub(super) unanswered: VecDeque<Unanswered>,
}

/// One side has hung up.
struct HungUp(Side);

impl Proxy<'_> {
    pub(super) async fn carry(&mut self) -> Side {
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
            replied = guard::ask(hooks, notify, self.hook_limit) => Ok(replied),
            () = self.engine.hung_up() => Err(HungUp(Side::Engine)),
            () = self.criu.hung_up() => Err(HungUp(Side::Criu)),
        };
        let replied = match replied {
            Ok(replied) => replied,
            Err(hung_up) => {
                self.notes.take(Record::Withheld {
                    script: script.to_owned(),
                    accepted: false,
                });
                return Err(hung_up);
            }
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
