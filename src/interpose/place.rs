//! Taking the place of a `criu swrk` that an engine has started.
//!
//! The engine starts a program named `criu`, and that program is us. What the engine has a hold of must be CRIU itself: its
//! pid, its exit status, the descriptors that it inherited, the children that it makes in its parent's name
//! (`rst_sibling`). So the process that was started becomes CRIU in the end, and a child of it, which the engine does not know,
//! listens in:
//!
//! ```text
//! engine ── starts ──> us ───────────────────────────────── execve ──> criu
//!                      │ fork (twice: nobody is CRIU's child)            │ socket, at the number where it had the engine's
//!                      └──> · ──> listener ──────────────────────────────┘
//!                                  │   └── fork ──> guard
//! engine ── its own socket ────────┘
//! ```
//!
//! The listener makes the pair of sockets, because CRIU opens the descriptors of a request in the table of the process that
//! made its socket. It leads a session of its own: a terminal's signals go to the engine and to CRIU, as they would.
//!
//! | who dies | what happens |
//! |---|---|
//! | CRIU | the listener sees its socket end and ends the engine's, which sees what it would see without us |
//! | the engine | the listener hangs up on CRIU, which sees what it would see without us |
//! | the listener | both sockets end: the engine sees a CRIU that died; CRIU sees a client that died, and lets a dump's tasks run on. One that does not notice (a lazy dump that waits for its connection) is killed by the guard after [`GRACE`] |
//! | the guard | nothing, unless the listener dies as well |

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::io::{self, IoSlice, IoSliceMut, PipeReader, PipeWriter, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal, setsid, waitpid,
};

use super::Interposer;
use crate::rpc::transport::{pair, wait_readable};
use crate::sys::{self, Forked};

/// How long CRIU may take to notice that its listener has died before it is killed.
pub const GRACE: Duration = Duration::from_secs(3);

/// How CRIU was started: its arguments, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CommandLine {
    /// What it was started as.
    pub name: OsString,
    /// All arguments behind the name.
    pub arguments: Vec<OsString>,
    /// The number behind `swrk`; `None` for any other command of CRIU's.
    pub worker_socket: Option<i32>,
}

impl CommandLine {
    /// Takes an argument vector apart, the program's name first.
    #[must_use]
    pub fn of(arguments: impl IntoIterator<Item = OsString>) -> Self {
        let mut arguments = arguments.into_iter();
        let name = arguments.next().unwrap_or_else(|| "criu".into());
        let arguments: Vec<OsString> = arguments.collect();
        // CRIU takes exactly one argument behind `swrk`, and nothing behind that.
        let worker_socket = match arguments.as_slice() {
            [.., mode, number] if mode == "swrk" => {
                number.to_str().and_then(|number| number.parse().ok())
            }
            _ => None,
        };
        Self {
            name,
            arguments,
            worker_socket,
        }
    }
}

/// Why the place of a CRIU could not be taken. No CRIU has been started then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// The real CRIU cannot be executed.
    #[error("{} cannot be executed", program.display())]
    Execute {
        /// Its path.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The number behind `swrk` is no socket of ours.
    #[error("descriptor {number} is no socket")]
    NoSocket {
        /// The number.
        number: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The listener could not be set up.
    #[error("no listener could be set up: {what}")]
    Listener {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// The listener's part of [`take`]: both of its sockets, and what it knows of the rest.
#[derive(Debug)]
pub struct Listener {
    engine: OwnedFd,
    criu: OwnedFd,
    pid: i32,
    program: PathBuf,
    arguments: Vec<String>,
    guard: Guard,
}

/// The process that ends a CRIU which does not notice that its listener has died.
#[derive(Debug)]
struct Guard {
    pid: Pid,
    /// What it reads: a word before the end of it means that the listener is through.
    through: PipeWriter,
}

impl Listener {
    /// The pid of the process that becomes CRIU.
    #[must_use]
    pub fn criu_pid(&self) -> i32 {
        self.pid
    }

    /// Carries what passes, until one side hangs up. See [`Interposer::between`].
    ///
    /// # Errors
    /// As [`Interposer::between`].
    pub async fn listen(self, interposer: Interposer<'_>) -> io::Result<super::recording::Side> {
        let by = interposer
            .process(self.pid, self.program, self.arguments)
            .between(self.engine, self.criu)
            .await?;
        let mut guard = self.guard;
        if guard.through.write_all(b"through").is_ok() {
            let _ = waitpid(Some(guard.pid), WaitOptions::empty());
        }
        Ok(by)
    }
}

/// Becomes CRIU with nobody listening in: the command line is passed on untouched. Returns only when that fails.
///
/// # Errors
/// [`PlaceError::Execute`].
pub fn become_criu(program: &Path, line: &CommandLine) -> Result<Infallible, PlaceError> {
    let failed = |source| PlaceError::Execute {
        program: program.to_owned(),
        source,
    };
    let c_string = |text: OsString| CString::new(text.into_vec()).map_err(io::Error::from);
    let arguments = [line.name.clone()]
        .into_iter()
        .chain(line.arguments.iter().cloned())
        .map(c_string)
        .collect::<io::Result<Vec<_>>>()
        .map_err(failed)?;
    let path = c_string(program.into()).map_err(failed)?;
    // Rust's programs have it ignored, which CRIU would inherit; engines have not.
    sys::default_sigpipe();
    // The environment is inherited as it is.
    nix::unistd::execv(&path, &arguments).map_err(|errno| failed(errno.into()))
}

/// Takes the place of a `criu swrk`: this process becomes CRIU, and `listen` runs **in another process**, which ends with the
/// status that it returns. That process has nothing open but the listener's sockets, and the null device as standard streams;
/// it is in a session of its own, on a stack of 8 MiB.
///
/// To be called first thing in `main`, when there is no other thread and nothing is open but what was inherited. `line` is how
/// this program was started, `program` the real CRIU. Returns only when it fails.
///
/// # Errors
/// [`PlaceError`]. No CRIU has been started then, and nobody listens.
pub fn take(
    program: &Path,
    line: &CommandLine,
    listen: impl FnOnce(Listener) -> u8,
) -> Result<Infallible, PlaceError> {
    let number = line.worker_socket.unwrap_or(-1);
    let no_socket = |source| PlaceError::NoSocket { number, source };
    let engine = sys::take_inherited(number).map_err(no_socket)?;
    rustix::net::sockopt::socket_type(&engine).map_err(|errno| no_socket(errno.into()))?;
    let failed = |what| move |source: io::Error| PlaceError::Listener { what, source };
    let (ours, theirs) = pair().map_err(failed("a pair of sockets"))?;
    let own = getpid();
    let pidfd =
        pidfd_open(own, PidfdFlags::empty()).map_err(|errno| failed("a pidfd")(errno.into()))?;

    // The engine waits for what is done from here to the end of this function. It keeps the number of its socket taken here, and
    // the listener has it in a table of its own.
    let mut engine = Some(engine);
    let listeners = &mut engine;
    sys::run_outside(move || {
        let Some(engine) = listeners.take() else {
            return 1;
        };
        // The process that is to become CRIU sees its connection end when this fails, and tells.
        let Ok((criu, guard)) = set_up(&engine, theirs, &pidfd) else {
            return 1;
        };
        listen(Listener {
            engine,
            criu,
            pid: own.as_raw_nonzero().get(),
            program: program.to_owned(),
            arguments: line
                .arguments
                .iter()
                .map(|argument| argument.to_string_lossy().into_owned())
                .collect(),
            guard,
        })
    })
    .map_err(failed("a process"))?;
    let socket = receive_socket(&ours).map_err(failed("its socket"))?;
    drop(engine);
    sys::inherit_as(socket.as_fd(), number).map_err(failed("its socket"))?;
    drop(socket);
    become_criu(program, line)
}

/// The beginning of the listener: CRIU's socket first, for which the engine waits.
fn set_up(engine: &OwnedFd, parent: OwnedFd, criu: &OwnedFd) -> io::Result<(OwnedFd, Guard)> {
    let socket = hand_over(&parent)?;
    drop(parent);
    let _ = setsid();
    // What the engine gave to CRIU (the ends of a container's pipes, for instance) must not live on in here.
    sys::close_all_but(&[engine.as_fd(), criu.as_fd(), socket.as_fd()])?;
    null_streams()?;
    let (waits, through) = io::pipe()?;
    match sys::fork_alone()? {
        Forked::Child => {
            let kept = sys::close_all_but(&[waits.as_fd(), criu.as_fd()]);
            let _ = rustix::thread::set_name(c"criu-guard");
            if kept.is_ok() {
                guard(waits, criu.as_fd());
            }
            sys::exit_now(0)
        }
        Forked::Parent(pid) => {
            // For those who look at a list of processes.
            let _ = rustix::thread::set_name(c"criu-listener");
            Ok((socket, Guard { pid, through }))
        }
    }
}

/// Waits for the listener, and ends a CRIU that does not notice when it has died.
fn guard(mut waits: PipeReader, criu: BorrowedFd<'_>) {
    let mut word = [0; 1];
    let died = waits.read_exact(&mut word).is_err();
    if died && matches!(wait_readable(criu, Instant::now() + GRACE), Ok(false)) {
        let _ = pidfd_send_signal(criu, Signal::KILL);
    }
}

fn null_streams() -> io::Result<()> {
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    for number in 0..3 {
        sys::inherit_as(null.as_fd(), number)?;
    }
    Ok(())
}

/// Makes the pair that CRIU and the listener talk over, and hands CRIU's end to the process that becomes it.
fn hand_over(parent: &OwnedFd) -> io::Result<OwnedFd> {
    let (ours, theirs) = pair()?;
    let fds = [theirs.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    sendmsg(
        parent,
        &[IoSlice::new(b"s")],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(ours)
}

fn receive_socket(from: &OwnedFd) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    loop {
        let received = recvmsg(
            from,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        match received {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => break,
        }
    }
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fd.ok_or_else(|| io::Error::other("the listener ended before it was there"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_worker_is_listened_in_on() {
        let line = |text: &str| CommandLine::of(text.split(' ').map(OsString::from));
        assert_eq!(line("criu swrk 3").worker_socket, Some(3));
        assert_eq!(
            line("/x/criu --no-default-config swrk 12").worker_socket,
            Some(12)
        );
        for other in [
            "criu",
            "criu check",
            "criu swrk",
            "criu swrk x",
            "criu dump -t 5 --images-dir swrk",
            "criu swrk 3 --verbose",
        ] {
            assert_eq!(line(other).worker_socket, None, "{other}");
        }
        let line = line("criu dump -t 5");
        assert_eq!((line.name, line.arguments.len()), ("criu".into(), 3));
    }
}
