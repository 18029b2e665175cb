//! Hooks made of closures and of external programs.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::process::{Pid, Signal};

use super::{DynHooks, HookError, Hooks, Notify, Reply, Script};
use crate::rpc::swrk::{Exit, reap};
use crate::sys::{self, ExitWatch, Spawn};

/// Hooks made of a closure that is called for every callback.
///
/// ```
/// use criu_client::notify::{hook_fn, Reply, Script};
///
/// let hooks = hook_fn(async |notify| match notify.script() {
///     Script::PostDump => Ok(Reply::Refuse("only a rehearsal".into())),
///     _ => Ok(Reply::Accept),
/// });
/// # fn takes(_: impl criu_client::notify::Hooks) {}
/// # takes(criu_client::notify::hook_fn(|_| async { Ok(Reply::Accept) }));
/// # let _ = hooks;
/// ```
pub fn hook_fn<F, A>(function: F) -> HookFn<F>
where
    F: FnMut(Notify) -> A + Send,
    A: Future<Output = Result<Reply, HookError>> + Send,
{
    HookFn(function)
}

/// See [`hook_fn`].
#[derive(Debug, Clone)]
pub struct HookFn<F>(F);

impl<F, A> Hooks for HookFn<F>
where
    F: FnMut(Notify) -> A + Send,
    A: Future<Output = Result<Reply, HookError>> + Send,
{
    fn notify(&mut self, notify: Notify) -> impl Future<Output = Result<Reply, HookError>> + Send {
        (self.0)(notify)
    }
}

/// Hooks picked by callback. Callbacks without a hook are accepted.
#[derive(Default)]
pub struct HookTable<'a> {
    hooks: Vec<(Script, Box<dyn DynHooks + 'a>)>,
}

impl<'a> HookTable<'a> {
    /// An empty table, which accepts everything.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `hooks` at a callback; one callback has at most one, the last that was put there.
    #[must_use]
    pub fn on(mut self, script: Script, hooks: impl Hooks + 'a) -> Self {
        self.hooks.retain(|(taken, _)| *taken != script);
        self.hooks.push((script, Box::new(hooks)));
        self
    }
}

impl std::fmt::Debug for HookTable<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.hooks.iter().map(|(script, _)| script))
            .finish()
    }
}

impl Hooks for HookTable<'_> {
    async fn notify(&mut self, notify: Notify) -> Result<Reply, HookError> {
        let script = notify.script();
        match self.hooks.iter_mut().find(|(taken, _)| *taken == script) {
            Some((_, hooks)) => hooks.notify_dyn(notify).await,
            None => Ok(Reply::Accept),
        }
    }
}

/// An external program as a hook, with the environment that CRIU gives its own action scripts: `CRTOOLS_SCRIPT_ACTION`,
/// `CRTOOLS_IMAGE_DIR`, and `CRTOOLS_INIT_PID` where CRIU tells the root task.
///
/// It is started from an argument vector, never through a shell; its standard input is `/dev/null`, and both of its
/// outputs are this process's standard error. Exit status 0 accepts, anything else refuses. When the operation is
/// cancelled or runs out of time, the program and its process group are killed.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// The program at `path`, which is not looked up anywhere.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            arguments: Vec::new(),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn argument(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    async fn run(&self, notify: &Notify) -> io::Result<Exit> {
        let null = File::open("/dev/null")?;
        let standard_error = rustix::io::fcntl_dupfd_cloexec(io::stderr(), 3)?;
        let program = c_string(self.path.as_os_str())?;
        let mut arguments = vec![program.clone()];
        for argument in &self.arguments {
            arguments.push(c_string(argument)?);
        }
        let pid = Spawn {
            program,
            arguments,
            environment: environment(notify)?,
            stdio: [null.as_fd(), standard_error.as_fd(), standard_error.as_fd()],
            inherited: Vec::new(),
            new_session: true,
        }
        .start()?;
        let running = Running::new(pid)?;
        running.watch.ended().await?;
        Ok(running.reaped())
    }
}

/// A hook program that did not exit with status 0, or could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// It could not be started.
    #[error("{} could not be run", program.display())]
    NotRun {
        /// Its path.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended otherwise than with exit status 0.
    #[error("{}: {exit}", program.display())]
    Ended {
        /// Its path.
        program: PathBuf,
        /// How it ended.
        exit: Exit,
    },
}

impl Hooks for Program {
    async fn notify(&mut self, notify: Notify) -> Result<Reply, HookError> {
        let program = self.path.clone();
        match self.run(&notify).await {
            Ok(Exit::Status(0)) => Ok(Reply::Accept),
            Ok(exit) => Err(ProgramError::Ended { program, exit }.into()),
            Err(source) => Err(ProgramError::NotRun { program, source }.into()),
        }
    }
}

/// A started program; dropped before its end, it is killed with its process group and reaped.
struct Running {
    pid: Pid,
    watch: ExitWatch,
    ended: bool,
}

impl Running {
    fn new(pid: Pid) -> io::Result<Self> {
        let watch = sys::open_pidfd(pid)
            .and_then(ExitWatch::new)
            .inspect_err(|_| {
                let _ = rustix::process::kill_process_group(pid, Signal::KILL);
            })?;
        Ok(Self {
            pid,
            watch,
            ended: false,
        })
    }

    fn reaped(mut self) -> Exit {
        self.ended = true;
        reap(self.watch.pidfd()).unwrap_or(Exit::Unknown)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            // Not reaped yet, so the number still means this process and its group.
            let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
            if let Ok(pidfd) = self.watch.pidfd().try_clone_to_owned() {
                crate::rpc::swrk::reap_in_background(pidfd);
            }
        }
    }
}

fn environment(notify: &Notify) -> io::Result<Vec<CString>> {
    let mut own: Vec<(&str, OsString)> = vec![
        ("CRTOOLS_SCRIPT_ACTION", notify.script().as_str().into()),
        ("CRTOOLS_IMAGE_DIR", notify.images_dir.as_os_str().into()),
    ];
    if let Some(root) = notify.root {
        own.push(("CRTOOLS_INIT_PID", root.to_string().into()));
    }
    let mut entries = Vec::new();
    for (name, value) in std::env::vars_os() {
        if !own.iter().any(|(taken, _)| name == *taken) {
            entries.push(entry(&name, &value)?);
        }
    }
    for (name, value) in own {
        entries.push(entry(OsStr::new(name), &value)?);
    }
    Ok(entries)
}

fn entry(name: &OsStr, value: &OsStr) -> io::Result<CString> {
    let mut entry = name.to_owned();
    entry.push("=");
    entry.push(value);
    c_string(&entry)
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.to_owned().into_vec()).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "a NUL byte in a program's argument",
        )
    })
}
