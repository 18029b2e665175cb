//! One request: a connection is made, the version asked, what that version does not have refused, the request sent.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tracing::{Instrument, Span};

use super::care::{Care, Ground};
use super::images::Log;
use super::info::version_plan;
use super::running::{Clock, Held, Running, Trouble, conclude};
use super::settle::Ended;
use super::tasks::{self, Trail};
use super::{Criu, Endpoint, ImagesDir};
use crate::error::{Error, ErrorKind, OperationKind, Result};
use crate::options::{Newer, Prepared, encode_request, later_arguments, newer_than};
use crate::rpc::service;
use crate::rpc::session::{Incoming, Session, Violation};
use crate::rpc::swrk::{Start, Worker};
use crate::rpc::transport::Socket;
use crate::rpc::wire::{CriuFeatures, CriuReq, CriuReqType, CriuResp};
use crate::version::Version;

/// One request in the making.
pub(super) struct Plan {
    pub(super) kind: OperationKind,
    /// The request, which may depend on the version.
    pub(super) request: fn(&Version) -> CriuReqType,
    pub(super) prepared: Prepared,
    pub(super) images: Option<ImagesDir>,
    /// The log's name without number and extension; `None` for requests that write none.
    pub(super) log: Option<&'static str>,
    pub(super) pid: Option<i32>,
    pub(super) notify: bool,
    pub(super) keep_open: bool,
    pub(super) features: Option<CriuFeatures>,
    pub(super) sibling: bool,
    /// The worker is to be no descendant of this process.
    pub(super) outside: bool,
    /// The worker keeps our session and standard input: shell jobs take them over.
    pub(super) terminal: bool,
    /// What must be undone if CRIU is killed; made once there is something to undo.
    pub(super) care: Box<dyn FnOnce(Ground) -> Care + Send + Sync>,
}

impl Plan {
    pub(super) fn new(
        kind: OperationKind,
        request: fn(&Version) -> CriuReqType,
        prepared: Prepared,
    ) -> Self {
        Self {
            kind,
            request,
            prepared,
            images: None,
            log: None,
            pid: None,
            notify: false,
            keep_open: false,
            features: None,
            sibling: false,
            outside: false,
            terminal: false,
            care: Box::new(|_| Care::Nothing),
        }
    }

    /// Refuses what this version lacks, and puts into the options what does not depend on files.
    pub(super) fn settle(&mut self, version: &Version) -> Result<CriuReqType> {
        let opts = &mut self.prepared.opts;
        if let Some(unsupported) = unsupported(&newer_than(opts, version), version) {
            return Err(Error::before(self.kind, unsupported));
        }
        opts.pid = self.pid;
        opts.notify_scripts = self.notify.then_some(true);
        opts.rst_sibling = self.sibling.then_some(true);
        Ok((self.request)(version))
    }

    /// The name of the log without its number, if CRIU is to write one.
    pub(super) fn log_stem(&self) -> Option<&'static str> {
        let opts = &self.prepared.opts;
        let own = opts.log_to_stderr != Some(true) || opts.log_file.is_some();
        self.log.filter(|_| own)
    }
}

impl Criu {
    /// Starts what `plan` says and returns once CRIU works on it.
    pub(super) async fn begin(&self, plan: Plan) -> Result<Held> {
        let span = tracing::info_span!(
            "criu",
            operation = %plan.kind,
            pid = plan.pid,
            images = plan
                .images
                .as_ref()
                .map(|images| tracing::field::display(images.path().display())),
            version = tracing::field::Empty
        );
        self.begin_in(plan, span.clone()).instrument(span).await
    }

    async fn begin_in(&self, mut plan: Plan, span: Span) -> Result<Held> {
        self.allows(&plan)?;
        let mark = mark();
        let (mut running, answer) = self.open(&mut plan, &mark, span).await?;
        if plan.kind == OperationKind::Version {
            running.answer = Some(answer);
            return Ok(Held::new(running));
        }
        let message = match running.prepare(plan, &mark) {
            Ok(message) => message,
            Err(error) => {
                abandon(running).await;
                return Err(error);
            }
        };
        if let Err(trouble) = running.send(&message).await {
            return Err(fail(running, trouble).await);
        }
        Ok(Held::new(running))
    }

    /// Makes the connection and asks the version on it. Nothing else follows there if that is what is planned.
    pub(super) async fn open(
        &self,
        plan: &mut Plan,
        mark: &str,
        span: Span,
    ) -> Result<(Running, Box<CriuResp>)> {
        let kind = plan.kind;
        let (worker, socket) = self.connect_for(plan, mark).await?;
        // The worker has its copies.
        plan.prepared.inherited.clear();
        let watch = match worker.as_ref().map(Worker::exit_watch).transpose() {
            Ok(watch) => watch.flatten(),
            Err(error) => {
                if let Some(worker) = worker {
                    worker.kill();
                    self.settling.reap(worker);
                }
                return Err(Error::precondition(
                    kind,
                    "the worker cannot be watched",
                    Some(error),
                ));
            }
        };

        let mut running = Running {
            kind,
            socket: Some(socket),
            session: Session::new(CriuReqType::Version),
            worker,
            peer: None,
            watch,
            version: Version::new(0, 0, 0),
            images: None,
            work: None,
            log: None,
            held: Vec::new(),
            care: Care::Nothing,
            limits: self.limits.clone(),
            deadline: self.limits.operation.map(|limit| Instant::now() + limit),
            settling: self.settling.clone(),
            span,
            clock: Clock::start(),
            root: plan.pid,
            asked: None,
            answer_dropped: false,
            refused_until: None,
            ignored_refusals: Vec::new(),
            answer: None,
            trouble: None,
        };
        let keep_open = kind != OperationKind::Version || plan.keep_open;
        match running.ask_version(keep_open).await {
            Ok(answer) => {
                running
                    .span
                    .record("version", tracing::field::display(&running.version));
                Ok((running, answer))
            }
            Err(trouble) => {
                let lost = matches!(trouble, Trouble::Lost);
                let error = fail(running, trouble).await;
                Err(match lost {
                    true => self.or_too_old(error).await,
                    false => error,
                })
            }
        }
    }

    /// Refuses what only a worker of our own can do, before there is a connection.
    pub(super) fn allows(&self, plan: &Plan) -> Result<()> {
        let Endpoint::Service(_) = self.endpoint else {
            return Ok(());
        };
        let what = if plan.sibling {
            "a restored child of the caller's (rst_sibling)"
        } else if !plan.prepared.opts.inherit_fd.is_empty() {
            "inherit_fd"
        } else if plan
            .prepared
            .opts
            .ps
            .as_ref()
            .is_some_and(|ps| ps.fd.is_some())
        {
            "a connected page-server socket (ps.fd)"
        } else {
            return Ok(());
        };
        Err(Error::before(
            plan.kind,
            ErrorKind::Unsupported {
                what: what.into(),
                needs: "a criu swrk of the caller's own".into(),
                has: "a criu service".into(),
            },
        ))
    }

    /// An argument that the program does not know ends it with its usage, before it has told its version. One without
    /// arguments is asked then. Boxed, because this is a part of what it calls.
    fn or_too_old(&self, lost: Error) -> Pin<Box<dyn Future<Output = Error> + Send + '_>> {
        Box::pin(async move {
            let mut later = later_arguments(&self.arguments);
            if later.is_empty() || self.program().is_none() {
                return lost;
            }
            let plain = self.clone().with_arguments(None::<OsString>);
            let Ok(version) = plain.version().await else {
                return lost;
            };
            later.retain(|argument| !version.has(&argument.since));
            match unsupported(&later, &version) {
                Some(unsupported) => Error::before(lost.operation(), unsupported),
                None => lost,
            }
        })
    }

    /// Whether CRIU's numbers of processes mean the same here, as far as can be told. Only a service can be in another pid
    /// namespace, and is asked.
    pub(super) async fn shares_pids(&self) -> bool {
        if self.program().is_some() {
            return true;
        }
        let mut plan = version_plan();
        plan.keep_open = true;
        let Ok((running, _)) = self.open(&mut plan, &mark(), Span::current()).await else {
            return true;
        };
        let shares = running.same_pids();
        abandon(running).await;
        shares
    }

    async fn connect_for(&self, plan: &Plan, mark: &str) -> Result<(Option<Worker>, Socket)> {
        let start_error = |program: &Path, source| {
            Error::before(
                plan.kind,
                ErrorKind::Start {
                    program: program.to_owned(),
                    source,
                },
            )
        };
        match &self.endpoint {
            Endpoint::Program(program) => {
                let stdin = std::io::stdin();
                let (worker, ours) = Worker::swrk(Start {
                    program,
                    arguments: &self.arguments,
                    mark,
                    stdin: plan.terminal.then(|| stdin.as_fd()),
                    inherited: plan.prepared.inherited.iter().map(AsFd::as_fd).collect(),
                    new_session: !plan.terminal,
                    outside: plan.outside,
                })
                .map_err(|source| start_error(program, source))?;
                match Socket::new(ours) {
                    Ok(socket) => Ok((Some(worker), socket)),
                    Err(source) => {
                        worker.kill();
                        self.settling.reap(worker);
                        Err(start_error(program, source))
                    }
                }
            }
            Endpoint::Service(path) => {
                let connected = service::connect(path);
                let connected = match self.limits.operation {
                    Some(limit) => tokio::time::timeout(limit, connected)
                        .await
                        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())),
                    None => connected.await,
                };
                let socket = connected.and_then(Socket::new).map_err(|source| {
                    let socket = path.clone();
                    Error::before(plan.kind, ErrorKind::Connect { socket, source })
                })?;
                Ok((None, socket))
            }
        }
    }
}

impl Running {
    /// Takes over what `plan` has for CRIU and makes the request of it. On an error nothing has come of it but that.
    pub(super) fn prepare(&mut self, mut plan: Plan, mark: &str) -> Result<Vec<u8>> {
        let kind = plan.kind;
        let request = plan.settle(&self.version)?;
        let stem = plan.log_stem();
        let Prepared {
            mut opts,
            work_path,
            held,
            unknown,
            inherited: _,
        } = plan.prepared;
        if let Some(images) = &plan.images {
            opts.images_dir_fd = images.as_fd().as_raw_fd();
        }
        let no_work_dir = |what: String, error| Error::precondition(kind, what, Some(error));
        let work = match work_path {
            Some(path) => {
                let what = |error| {
                    let what = format!("{} cannot be the work directory", path.display());
                    no_work_dir(what, error)
                };
                let work = ImagesDir::create(&path).map_err(what)?;
                opts.work_dir_fd = Some(work.as_fd().as_raw_fd());
                Some(work)
            }
            None => work_dir(&held, opts.work_dir_fd)
                .transpose()
                .map_err(|error| no_work_dir("the work directory is no directory".into(), error))?,
        };
        let work = work.or_else(|| plan.images.clone());
        let mut own = None;
        if let (Some(stem), Some(work)) = (stem, &work) {
            let log = match opts.log_file.take() {
                Some(name) => Log::replace(work.clone(), name),
                None => Log::reserve(work.clone(), stem),
            };
            let log = log.map_err(|error| {
                let what = format!("no log can be written in {}", work.path().display());
                Error::precondition(kind, what, Some(error))
            })?;
            opts.log_file = Some(log.name().to_owned());
            own = Some(log);
        }

        self.kind = kind;
        self.images = plan.images;
        self.work = work;
        self.log = own;
        self.held = held;
        self.care = (plan.care)(Ground {
            same_pids: self.same_pids(),
            trail: Trail {
                mark: self.worker.is_some().then(|| mark.to_owned()),
                log: self.log.as_ref().and_then(Log::file),
            },
        });
        self.session = Session::new(request);
        self.clock = Clock::start();
        let message = CriuReq {
            r#type: request.into(),
            keep_open: plan.keep_open.then_some(true),
            features: plan.features,
            opts: Some(opts),
            ..Default::default()
        };
        Ok(encode_request(message, &unknown))
    }

    async fn ask_version(&mut self, keep_open: bool) -> Result<Box<CriuResp>, Trouble> {
        let request = CriuReq {
            r#type: CriuReqType::Version.into(),
            keep_open: keep_open.then_some(true),
            ..Default::default()
        };
        self.send(&prost::Message::encode_to_vec(&request)).await?;
        if self.worker.is_none() {
            self.meet_peer().await;
        }
        let answer = self.sole_answer().await?;
        let Some(version) = answer.version.as_ref().filter(|_| answer.success) else {
            return Err(Trouble::Protocol(Violation::MissingField {
                request: "VERSION",
                field: "version",
            }));
        };
        let part = |number: i32| u32::try_from(number).unwrap_or(0);
        self.version = Version::new(
            part(version.major_number),
            part(version.minor_number),
            part(version.sublevel.unwrap_or(0)),
        )
        .with_git_id(version.gitid.clone().unwrap_or_default());
        Ok(answer)
    }

    /// The answer to a request that has no callbacks.
    pub(super) async fn sole_answer(&mut self) -> Result<Box<CriuResp>, Trouble> {
        match self.receive().await {
            Some(Incoming::Answer(answer)) => Ok(answer),
            Some(Incoming::Callback(callback)) => {
                Err(Trouble::Protocol(Violation::UnexpectedType {
                    expected: self.session.request_name(),
                    got: format!("NOTIFY {}", callback.script),
                }))
            }
            None => Err(self.trouble.take().unwrap_or(Trouble::Lost)),
        }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        tracing::trace!(parent: &self.span, what = "request", request = self.session.request_name(), bytes = bytes.len(), "sending");
        let Some(socket) = &self.socket else {
            return Err(Trouble::Lost);
        };
        match socket.send(bytes, &[]).await {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Trouble::Lost),
            Err(error) => Err(Trouble::Transport("sending the request", error)),
        }
    }
}

/// Waits for the end of a request that has no callbacks.
pub(super) async fn complete(mut held: Held) -> Result<Ended> {
    if let Some(running) = held.get_mut()
        && running.answer.is_none()
    {
        match running.sole_answer().await {
            Ok(answer) => running.answer = Some(answer),
            Err(trouble) => {
                running.trouble.get_or_insert(trouble);
            }
        }
    }
    conclude(&mut held).await
}

async fn fail(mut running: Running, trouble: Trouble) -> Error {
    running.trouble.get_or_insert(trouble);
    match conclude(&mut Held::new(running)).await {
        Err(error) => error,
        Ok(ended) => ended.into_error(Trouble::Lost),
    }
}

/// Ends a connection on which nothing was asked but the version.
async fn abandon(running: Running) {
    let _ = fail(running, Trouble::Cancelled).await;
}

fn unsupported(newer: &[Newer], version: &Version) -> Option<ErrorKind> {
    let last = newer.iter().max_by(|a, b| a.since.cmp(&b.since))?;
    let what: Vec<&str> = newer.iter().map(|newer| newer.field).collect();
    Some(ErrorKind::Unsupported {
        what: what.join(", "),
        needs: format!("CRIU {}", last.since),
        has: version.to_string(),
    })
}

fn work_dir(held: &[OwnedFd], number: Option<i32>) -> Option<std::io::Result<ImagesDir>> {
    let number = number?;
    let fd = held.iter().find(|fd| fd.as_raw_fd() == number)?;
    Some(fd.try_clone().and_then(ImagesDir::from_fd))
}

/// A word that no other worker of any process on this machine has.
pub(super) fn mark() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!(
        "criu-client-{}-{}-{}",
        std::process::id(),
        tasks::now_in_ticks(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}
