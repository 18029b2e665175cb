//! Produces every failure of [`LIVE_CAUSES`] on the real CRIU and demands that it is recognised.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use criu_client::options::{
    DumpOptions, Leave, LogLevel, LsmProfile, NetworkLock, PageTransport, RestoreOptions,
};
use criu_client::{Error, ErrorKind, ImagesDir, TaskState};

use crate::core::kernel_tracks_memory;
use crate::live_causes::{LIVE_CAUSES, LiveCause, Opt, Peer, Restore};
use crate::support::*;

const PYTHON: &str = "/usr/bin/python3";

/// What is found out before CRIU is asked, and told as a precondition.
const BEFORE_CRIU: [&str; 4] = [
    "pid-in-use",
    "no-checkpoint-here",
    "image-not-criu",
    "image-truncated",
];

pub(crate) fn tests() -> Tests {
    let tracks = kernel_tracks_memory().unwrap_or(false);
    LIVE_CAUSES
        .iter()
        .filter(|cause| !(cause.code == "no-soft-dirty" && tracks))
        .map(|cause| -> (String, Box<dyn Fn() -> Outcome + Send>) {
            (
                format!("causes/{}", cause.code),
                Box::new(|| produced(cause)),
            )
        })
        .collect()
}

/// A program that was started and is ended again.
struct Program(Child);

impl Program {
    fn start(text_of_it: &str, unshare: &[&str], own_session: bool) -> Result<Self, String> {
        let mut words: Vec<&str> = Vec::new();
        if !unshare.is_empty() {
            words.push("unshare");
            words.extend(unshare);
            words.push("--");
        }
        words.extend([PYTHON, "-c", text_of_it]);
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        // SAFETY: setsid is a system call that touches no memory of the parent.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(move || match own_session {
                true => nix::unistd::setsid().map(drop).map_err(Into::into),
                false => Ok(()),
            });
        }
        let mut program = Self(command.spawn().map_err(text)?);
        let mut line = String::new();
        if let Some(stdout) = &mut program.0.stdout {
            BufReader::new(stdout).read_line(&mut line).map_err(text)?;
        }
        ensure!(line == "ready\n", "the program said {line:?}: {text_of_it}");
        Ok(program)
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        reap_orphans();
    }
}

/// What the test holds for the victim to talk to; it is let go of when this is dropped.
enum Held {
    Nothing,
    Tcp(TcpListener),
    Datagram(#[expect(dead_code, reason = "held open")] UnixDatagram),
    Stream(UnixListener),
}

impl Held {
    fn new(peer: Peer, directory: &Path) -> Result<Self, String> {
        let path = directory.join("peer");
        Ok(match peer {
            Peer::None => Self::Nothing,
            Peer::Tcp => Self::Tcp(TcpListener::bind("127.0.0.1:0").map_err(text)?),
            Peer::UnixDatagram => Self::Datagram(UnixDatagram::bind(path).map_err(text)?),
            Peer::UnixStream => Self::Stream(UnixListener::bind(path).map_err(text)?),
        })
    }

    fn port(&self) -> u16 {
        match self {
            Self::Tcp(listener) => listener.local_addr().map_or(0, |address| address.port()),
            _ => 0,
        }
    }
}

/// PATH for the programs that CRIU runs.
struct SearchPath(Option<OsString>);

impl SearchPath {
    fn set(path: Option<&str>) -> Self {
        let Some(path) = path else {
            return Self(None);
        };
        let before = std::env::var_os("PATH").unwrap_or_default();
        // SAFETY: tests run one at a time, and no runtime with threads of its own is alive.
        #[allow(unsafe_code)]
        unsafe {
            std::env::set_var("PATH", path);
        }
        Self(Some(before))
    }
}

impl Drop for SearchPath {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // SAFETY: as above.
            #[allow(unsafe_code)]
            unsafe {
                std::env::set_var("PATH", before);
            }
        }
    }
}

fn produced(cause: &'static LiveCause) -> Outcome {
    let directory = tempfile::tempdir().map_err(text)?;
    let images = ImagesDir::create(directory.path().join("images")).map_err(text)?;
    let peer = Held::new(cause.peer, directory.path())?;
    let traces = Traces::take();
    let port = peer.port().to_string();
    let written = |program: &str, pid: i32| {
        program
            .replace("{dir}", &directory.path().display().to_string())
            .replace("{images}", &images.path().display().to_string())
            .replace("{port}", &port)
            .replace("{pid}", &pid.to_string())
    };
    let mut victim = Program::start(&written(cause.victim, 0), cause.unshare, cause.own_session)?;
    let connection = match &peer {
        Held::Stream(listener) => Some(listener.accept().map_err(text)?),
        _ => None,
    };
    let pid = victim.pid();
    let companion = cause
        .companion
        .map(|program| Program::start(&written(program, pid), &[], true))
        .transpose()?;
    let result = {
        let _path = SearchPath::set(cause.criu_path);
        block_on(criu().dump(pid, &images, (), dump_options(cause.dump)?))
    };
    drop(companion);
    match &cause.restore {
        None => {
            let error = match result {
                Ok(report) => return Err(format!("the dump succeeded: {report:?}")),
                Err(error) => error,
            };
            recognised(&error, cause.code)?;
            ensure!(
                state(pid).is_some_and(|state| !"Zt".contains(state)),
                "the victim is {:?}",
                state(pid)
            );
        }
        Some(restore) => {
            let report = result.map_err(whole)?;
            if report.tasks == TaskState::Absent {
                victim.0.wait().map_err(text)?;
                reap_orphans();
            }
            failed_restore(
                cause,
                restore,
                &images,
                |program| written(program, pid),
                pid,
            )?;
        }
    }
    let tree = descendants(pid);
    drop((victim, connection, images));
    orphans_are_gone(&tree)?;
    traces.unchanged()
}

fn failed_restore(
    cause: &LiveCause,
    restore: &Restore,
    images: &ImagesDir,
    written: impl Fn(&str) -> String,
    pid: i32,
) -> Outcome {
    let mut between = restore
        .between
        .map(|program| Program::start(&written(program), &[], true))
        .transpose()?;
    // What does not stay is done when it has ended: until then its files may not be written.
    if let Some(program) = between.as_mut().filter(|_| {
        restore
            .between
            .is_some_and(|text| !text.contains("while True"))
    }) {
        program.0.wait().map_err(text)?;
    }
    let result = {
        let _path = SearchPath::set(cause.criu_path);
        block_on(criu().restore(images, (), restore_options(restore.options)?))
    };
    drop(between);
    match result {
        Ok(report) => {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(report.pid),
                nix::sys::signal::Signal::SIGKILL,
            );
            let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(report.pid), None);
            Err(format!("the restore succeeded: {report:?}"))
        }
        Err(error) => {
            recognised(&error, cause.code)?;
            ensure!(
                cause.code == "pid-in-use" || state(pid).is_none_or(|state| state == 'Z'),
                "process {pid} is {:?}",
                state(pid)
            );
            reap_orphans();
            Ok(())
        }
    }
}

fn recognised(error: &Error, code: &str) -> Outcome {
    let found = error.diagnosis().map(|diagnosis| diagnosis.code);
    ensure!(found == Some(code), "recognised as {found:?}: {error:?}");
    let at_home = match BEFORE_CRIU.contains(&code) {
        true => matches!(error.kind(), ErrorKind::Precondition { .. }),
        false => matches!(error.kind(), ErrorKind::Refused { .. }),
    };
    ensure!(at_home, "{error:?}");
    let expected = match error.operation() {
        criu_client::OperationKind::Dump => TaskState::Running,
        _ => TaskState::Absent,
    };
    ensure!(
        error.tasks() == expected,
        "tasks are {}: {error:?}",
        error.tasks()
    );
    Ok(())
}

fn dump_options(list: &[Opt]) -> Result<DumpOptions, String> {
    let mut options = DumpOptions::new().log_level(LogLevel::Debug);
    for option in list {
        options = match *option {
            Opt::TcpEstablished => options.tcp_established(true),
            Opt::TcpClose => options.tcp_close(true),
            Opt::ExtUnixSk => options.external_unix_sockets(true),
            Opt::LeaveRunning => options.leave(Leave::Running),
            Opt::TrackMem => options.track_mem(true),
            Opt::LazyPages => options.lazy_pages(true),
            Opt::FreezeCgroup(path) => options.freeze_cgroup(path),
            Opt::CgroupProps(specification) => options.cgroup_props(specification),
            Opt::LockWithIptables => options.network_lock(NetworkLock::Iptables),
            Opt::PageServer(port) => options.page_server(PageTransport::tcp("127.0.0.1", port)),
            Opt::PrevImagesDir(path) => options.parent_images(path),
            Opt::LsmProfile(_) => return Err(format!("{option:?} is no option of a dump")),
        };
    }
    Ok(options)
}

fn restore_options(list: &[Opt]) -> Result<RestoreOptions, String> {
    let mut options = RestoreOptions::new().log_level(LogLevel::Debug);
    for option in list {
        options = match *option {
            Opt::TcpEstablished => options.tcp_established(true),
            Opt::TcpClose => options.tcp_close(true),
            Opt::ExtUnixSk => options.external_unix_sockets(true),
            Opt::LazyPages => options.lazy_pages(true),
            Opt::LsmProfile(profile) => {
                options.lsm_profile(profile.parse::<LsmProfile>().map_err(text)?)
            }
            _ => return Err(format!("{option:?} is no option of a restore")),
        };
    }
    Ok(options)
}
