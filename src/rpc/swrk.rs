//! A `criu swrk` worker: started for one connection, watched through a pidfd, always reaped.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use rustix::process::{Pid, Signal, WaitIdStatus, pidfd_send_signal};
use serde::Serialize;

use super::transport::{self, wait_readable};
use crate::sys::{self, ExitWatch, FIRST_INHERITED, Spawn};

/// How much of each of CRIU's two output streams is kept: the beginning, which names the first cause.
const OUTPUT_AT_MOST: u64 = 64 * 1024;

/// How long one poll lasts in a thread that has nothing else to do.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The number of the first descriptor that the worker inherits besides the socket.
pub(crate) const FIRST_REQUEST_FD: i32 = FIRST_INHERITED + 1;

/// Whether a process is the worker with this mark, or a fork of it that has not restored its descriptors yet: its
/// standard error is the file that we gave to that worker. (Its environment would not tell: CRIU overwrites that with its
/// process title.)
pub(crate) fn is_marked(pid: i32, mark: &str) -> bool {
    std::fs::read_link(format!("/proc/{pid}/fd/2"))
        .is_ok_and(|target| target.as_os_str() == standard_error(mark).as_str())
}

/// What the standard error of the worker with this mark is called in `/proc/PID/fd`.
pub(crate) fn standard_error(mark: &str) -> String {
    format!("/memfd:{mark}-stderr (deleted)")
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Exit {
    /// It exited with this status.
    Status(i32),
    /// It was killed by this signal (its number).
    Signal(i32),
    /// It has ended, but this process ignores SIGCHLD or something else in it reaped the child first.
    Unknown,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exit status {status}"),
            Self::Signal(signal) => match nix::sys::signal::Signal::try_from(*signal) {
                Ok(name) => write!(f, "killed by {name}"),
                Err(_) => write!(f, "killed by signal {signal}"),
            },
            Self::Unknown => f.write_str("ended, status unknown"),
        }
    }
}

/// How a worker is started.
pub(crate) struct Start<'a> {
    pub(crate) program: &'a Path,
    /// Global options before `swrk`, or the whole vector of another mode of CRIU.
    pub(crate) arguments: &'a [OsString],
    /// A word that no other worker has, see [`is_marked`].
    pub(crate) mark: &'a str,
    pub(crate) stdin: Option<BorrowedFd<'a>>,
    /// From [`FIRST_REQUEST_FD`] upwards in the worker.
    pub(crate) inherited: Vec<BorrowedFd<'a>>,
    /// False for shell jobs, whose restored tasks take over the worker's session.
    pub(crate) new_session: bool,
    /// Whether it must be no descendant of this process. It is then not watched, killed or reaped by us either.
    pub(crate) outside: bool,
}

/// A started CRIU process. Dropping it neither kills nor reaps: whoever owns it must come to [`Worker::reaped`].
#[derive(Debug)]
pub(crate) struct Worker {
    pid: Pid,
    /// `None` for one that is not ours: in a process that dumps itself, a pidfd of the dumper could not be restored.
    pidfd: Option<OwnedFd>,
    stdout: File,
    stderr: File,
}

impl Worker {
    /// Starts `criu [arguments] swrk 3` and returns it with our end of the socket.
    pub(crate) fn swrk(start: Start<'_>) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = transport::pair()?;
        let mut arguments = start.arguments.to_vec();
        arguments.push("swrk".into());
        arguments.push(FIRST_INHERITED.to_string().into());
        let mut inherited = vec![theirs.as_fd()];
        inherited.extend(start.inherited.iter().copied());
        let worker = Self::start(Start {
            arguments: &arguments,
            inherited,
            ..start
        })?;
        Ok((worker, ours))
    }

    /// Starts CRIU in any mode; `inherited` begins at [`FIRST_INHERITED`].
    pub(crate) fn start(start: Start<'_>) -> io::Result<Self> {
        let stdout = bounded_file(&format!("{}-stdout", start.mark))?;
        let stderr = bounded_file(&format!("{}-stderr", start.mark))?;
        let null = File::open("/dev/null")?;
        let program = c_string(start.program.as_os_str().to_owned())?;
        let mut arguments = vec![program.clone()];
        for argument in start.arguments {
            arguments.push(c_string(argument.clone())?);
        }
        let spawn = Spawn {
            program,
            arguments,
            environment: environment()?,
            stdio: [
                start.stdin.unwrap_or_else(|| null.as_fd()),
                stdout.as_fd(),
                stderr.as_fd(),
            ],
            inherited: start.inherited,
            new_session: start.new_session,
        };
        let (pid, pidfd) = match start.outside {
            true => (spawn.start_outside()?, None),
            false => {
                let pid = spawn.start()?;
                // Nobody can have reaped it: a swrk does not end while our end of its socket is open.
                (pid, Some(sys::open_pidfd(pid)?))
            }
        };
        tracing::debug!(pid = pid.as_raw_nonzero().get(), program = %start.program.display(), "criu started");
        Ok(Self {
            pid,
            pidfd,
            stdout,
            stderr,
        })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    pub(crate) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// A second handle for waiting in the current runtime; `None` for a worker outside.
    pub(crate) fn exit_watch(&self) -> io::Result<Option<ExitWatch>> {
        match &self.pidfd {
            Some(pidfd) => ExitWatch::new(pidfd.try_clone()?).map(Some),
            None => Ok(None),
        }
    }

    pub(crate) fn kill(&self) {
        // It may have ended already, which is as good.
        if let Some(pidfd) = &self.pidfd {
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
    }

    /// Waits until the process has ended, then reaps it; `None` when it still runs at `deadline`. One outside is not waited for.
    pub(crate) fn reaped(&self, deadline: Instant) -> io::Result<Option<Exit>> {
        let Some(pidfd) = self.pidfd() else {
            return Ok(Some(Exit::Unknown));
        };
        if !wait_readable(pidfd, deadline)? {
            return Ok(None);
        }
        let exit = reap(pidfd);
        if let Some(exit) = exit {
            tracing::debug!(pid = self.pid(), %exit, "criu ended");
        }
        Ok(exit)
    }

    /// What it has written to its two streams so far, each cut after 64 KiB.
    pub(crate) fn output(&self) -> Output {
        Output {
            stdout: contents(&self.stdout),
            stderr: contents(&self.stderr),
        }
    }
}

/// The beginning of what a CRIU process wrote to its standard streams.
#[derive(Debug, Clone, Default)]
pub(crate) struct Output {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// Reaps an ended process; `None` when it has not ended. One that is not ours to reap counts as ended, status unknown.
pub(crate) fn reap(pidfd: BorrowedFd<'_>) -> Option<Exit> {
    match sys::reap_pidfd(pidfd) {
        Ok(status) => status.map(exit_of),
        Err(_) => Some(Exit::Unknown),
    }
}

/// Reaps a child whenever it ends, on a thread of its own, so that it does not stay a zombie when nobody waits for it.
pub(crate) fn reap_in_background(pidfd: OwnedFd) {
    let spawned = std::thread::Builder::new()
        .name("criu-reaper".into())
        .stack_size(64 * 1024)
        .spawn(move || {
            while wait_readable(pidfd.as_fd(), Instant::now() + DAY).is_ok()
                && reap(pidfd.as_fd()).is_none()
            {}
        });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread to reap a child with: it will stay a zombie until this process ends");
    }
}

fn exit_of(status: WaitIdStatus) -> Exit {
    if let Some(status) = status.exit_status() {
        Exit::Status(status)
    } else if let Some(signal) = status.terminating_signal() {
        Exit::Signal(signal)
    } else {
        Exit::Unknown
    }
}

/// A file in memory that refuses to grow: CRIU can write to it at any time without anybody reading, even after us.
fn bounded_file(name: &str) -> io::Result<File> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let file = File::from(fd);
    file.set_len(OUTPUT_AT_MOST)?;
    fcntl(
        &file,
        FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK),
    )?;
    Ok(file)
}

/// The offset is shared with the writer, so it tells how much was written.
fn contents(file: &File) -> Vec<u8> {
    let mut written = Vec::new();
    let read = || -> io::Result<u64> {
        let mut file = file;
        file.stream_position()
    };
    let Ok(length) = read() else { return written };
    written.resize(usize::try_from(length.min(OUTPUT_AT_MOST)).unwrap_or(0), 0);
    match std::os::unix::fs::FileExt::read_at(file, &mut written, 0) {
        Ok(read) => written.truncate(read),
        Err(_) => written.clear(),
    }
    written
}

/// Ours, less `CRIU_CONFIG_FILE`: CRIU would read it even where configuration files are turned off.
fn environment() -> io::Result<Vec<CString>> {
    let mut environment = Vec::new();
    for (name, value) in std::env::vars_os() {
        if name != "CRIU_CONFIG_FILE" {
            let mut entry = name;
            entry.push("=");
            entry.push(value);
            environment.push(c_string(entry)?);
        }
    }
    Ok(environment)
}

fn c_string(text: OsString) -> io::Result<CString> {
    CString::new(text.into_vec()).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "a NUL byte in a program's argument",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn run(program: &str, arguments: &[&str]) -> (Exit, Output) {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let worker = Worker::start(Start {
            program: Path::new(program),
            arguments: &arguments,
            mark: "test",
            stdin: None,
            inherited: Vec::new(),
            new_session: true,
            outside: false,
        })
        .unwrap();
        let exit = worker
            .reaped(Instant::now() + Duration::from_secs(10))
            .unwrap();
        (exit.unwrap(), worker.output())
    }

    #[test]
    fn output_is_kept_up_to_a_bound() {
        let (exit, output) = run("/usr/bin/seq", &["1", "100000"]);
        assert_ne!(
            exit,
            Exit::Status(0),
            "seq must notice that its output does not fit"
        );
        assert_eq!(output.stdout.len() as u64, OUTPUT_AT_MOST);
        assert!(output.stdout.starts_with(b"1\n2\n3\n"));
        let (exit, output) = run("/usr/bin/seq", &["2"]);
        assert_eq!(exit, Exit::Status(0));
        assert_eq!(output.stdout, b"1\n2\n");
        assert!(output.stderr.is_empty());
    }

    #[test]
    fn the_child_has_three_descriptors_and_no_config_of_ours() {
        let mut leaked = tempfile::tempfile().unwrap();
        leaked.write_all(b"x").unwrap();
        rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
        let (_, output) = run("/bin/ls", &["/proc/self/fd"]);
        // The fourth is the directory that ls itself reads.
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "0\n1\n2\n3\n");
        let (_, output) = run("/usr/bin/env", &[]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("PATH="));
        assert!(!text.contains("CRIU_CONFIG_FILE="));
    }

    #[test]
    fn a_program_that_cannot_run_is_an_error_and_leaves_nothing() {
        let error = Worker::start(Start {
            program: Path::new("/no/such/criu"),
            arguments: &[],
            mark: "test",
            stdin: None,
            inherited: Vec::new(),
            new_session: true,
            outside: false,
        })
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
