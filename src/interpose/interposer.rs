//! What is to be done on the way, before there is anything to carry.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::PeerCredentials;

use super::mask::Mask;
use super::proxy::{Notes, Proxy, engine_of};
use super::recording::{Entry, Event as Record, Side, micros_since_epoch};
use super::request::{Request, Verdict};
use crate::notify::{DynHooks, HookError, Hooks, Script};
use crate::rpc::transport::Socket;
use crate::version::Version;

pub(super) type OnRequest<'a> = Box<dyn FnMut(&Request) -> Result<Verdict, HookError> + Send + 'a>;
pub(super) type Observer<'a> = Box<dyn FnMut(Entry) + Send + 'a>;

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
pub(super) type Scripts = Option<Vec<Script>>;

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
        // Zero stands for a process of another pid namespace, whose descriptors cannot be found.
        let engine_pid = nix::sys::socket::getsockopt(&engine, PeerCredentials)
            .ok()
            .map(|peer| peer.pid())
            .filter(|pid| *pid > 0);
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
