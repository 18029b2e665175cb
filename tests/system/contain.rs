//! A small container for victims: a root directory of its own, made of what this test program needs to run.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::support::*;

/// The victim's program in its root.
pub(crate) const PROGRAM: &str = "victim";

/// Makes `root` a mount point with this program and all that it needs.
pub(crate) fn make_root(root: &Path) -> Result<PathBuf, String> {
    fill_root(root)?;
    let null = root.join("dev/null");
    nix::sys::stat::mknod(
        &null,
        nix::sys::stat::SFlag::S_IFCHR,
        nix::sys::stat::Mode::from_bits_truncate(0o666),
        nix::sys::stat::makedev(1, 3),
    )
    .map_err(text)?;
    mount(
        Some(root),
        root,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .map_err(text)?;
    mount(
        None::<&str>,
        root,
        None::<&str>,
        MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .map_err(text)?;
    Ok(root.to_owned())
}

/// This program, the libraries that it has loaded, and the directories it needs.
pub(crate) fn fill_root(root: &Path) -> Outcome {
    for directory in ["dev/pts", "proc", "tmp", "old"] {
        fs::create_dir_all(root.join(directory)).map_err(text)?;
    }
    copy(&std::env::current_exe().map_err(text)?, &root.join(PROGRAM))?;
    let maps = fs::read_to_string("/proc/self/maps").map_err(text)?;
    let mut libraries: Vec<&str> = maps
        .lines()
        .filter_map(|line| line.split_once('/').map(|(_, path)| path))
        .collect();
    libraries.retain(|path| path.contains(".so"));
    libraries.dedup();
    for library in libraries {
        let host = Path::new("/").join(library);
        let inside = root.join(library);
        if let (Some(directory), false) = (inside.parent(), inside.exists()) {
            fs::create_dir_all(directory).map_err(text)?;
            copy(&host, &inside)?;
        }
    }
    // On merged systems the loader is asked for, and looks for libraries, below links in the root directory.
    for name in ["lib", "lib64"] {
        let (host, inside) = (Path::new("/").join(name), root.join(name));
        if !inside.exists()
            && let Ok(target) = fs::read_link(host)
        {
            fs::create_dir_all(root.join(&target)).map_err(text)?;
            std::os::unix::fs::symlink(target, inside).map_err(text)?;
        }
    }
    for interpreter in ["lib64/ld-linux-x86-64.so.2", "lib/ld-linux-aarch64.so.1"] {
        let (host, inside) = (Path::new("/").join(interpreter), root.join(interpreter));
        if host.exists() && !inside.exists() {
            copy(&fs::canonicalize(host).map_err(text)?, &inside)?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Outcome {
    // A link is as good as a copy, where both are on one file system, and costs nothing.
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).map_err(text)?;
    }
    Ok(())
}

/// The socket over which a container tells its pid and hands out its terminal.
pub(crate) fn control() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// What a container has told.
pub(crate) fn started(control: &OwnedFd, terminal: bool) -> Result<(i32, Option<OwnedFd>), String> {
    rustix::net::sockopt::set_socket_timeout(
        control,
        rustix::net::sockopt::Timeout::Recv,
        Some(PATIENCE),
    )
    .map_err(text)?;
    let (mut pid, mut master) = (None, None);
    while pid.is_none() || (terminal && master.is_none()) {
        let mut bytes = [0; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            control,
            &mut [io::IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
        .map_err(text)?;
        ensure!(received.bytes > 0, "the container was not made");
        let message = String::from_utf8_lossy(&bytes[..received.bytes]).into_owned();
        match message.split_once(' ') {
            Some(("pid", number)) => pid = number.parse().ok(),
            Some(("failed", why)) => return Err(format!("the container was not made: {why}")),
            _ => {}
        }
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                master = fds.last();
            }
        }
    }
    Ok((pid.unwrap_or(0), master))
}

/// The container's own part: `ROOT PID-NAMESPACE TERMINAL ROLE ARGUMENT OUTSIDE`, with the control socket as its
/// standard input. Returns only when something went wrong.
pub(crate) fn contain(arguments: &[String]) -> Outcome {
    let stdin = io::stdin();
    let control = stdin.as_fd().try_clone_to_owned().map_err(text)?;
    contained(&control, arguments).inspect_err(|error| {
        let _ = tell(&control, &format!("failed {error}"), None);
    })
}

fn contained(control: &OwnedFd, arguments: &[String]) -> Outcome {
    let [root, pid_namespace, terminal, role, argument, outside] = arguments else {
        return Err(format!("wrong arguments {arguments:?}"));
    };
    unshare(CloneFlags::CLONE_NEWNS).map_err(text)?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .map_err(text)?;
    let mut pid = std::process::id() as i32;
    if pid_namespace == "true" {
        unshare(CloneFlags::CLONE_NEWPID).map_err(text)?;
        // SAFETY: this process has no other thread.
        #[allow(unsafe_code)]
        match unsafe { nix::unistd::fork() }.map_err(text)? {
            nix::unistd::ForkResult::Parent { child } => {
                tell(control, &format!("pid {child}"), None)?;
                #[allow(clippy::exit)]
                std::process::exit(0);
            }
            nix::unistd::ForkResult::Child => {
                nix::unistd::setsid().map_err(text)?;
                pid = 0;
            }
        }
    }
    std::env::set_current_dir(root).map_err(text)?;
    nix::unistd::pivot_root(".", "old").map_err(text)?;
    umount2("/old", MntFlags::MNT_DETACH).map_err(text)?;
    std::env::set_current_dir("/").map_err(text)?;
    if pid_namespace == "true" {
        mount(
            Some("proc"),
            "/proc",
            Some("proc"),
            MsFlags::empty(),
            None::<&str>,
        )
        .map_err(text)?;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(
        Some("devpts"),
        "/dev/pts",
        Some("devpts"),
        flags,
        Some("newinstance,ptmxmode=0666,mode=0620"),
    )
    .map_err(text)?;
    let stdio = match terminal == "true" {
        true => {
            let (master, slave) = terminal_pair().map_err(text)?;
            tell(control, "terminal", Some(&master))?;
            slave
        }
        false => File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(text)?
            .into(),
    };
    if pid != 0 {
        tell(control, &format!("pid {pid}"), None)?;
    }
    nix::unistd::dup2_stdin(&stdio).map_err(text)?;
    nix::unistd::dup2_stdout(&stdio).map_err(text)?;
    nix::unistd::dup2_stderr(&stdio).map_err(text)?;
    let program =
        CString::new(Path::new("/").join(PROGRAM).as_os_str().as_bytes()).map_err(text)?;
    let vector = ["victim", "--victim", "/count", role, argument, outside]
        .map(CString::new)
        .into_iter()
        .collect::<Result<Vec<_>, _>>()
        .map_err(text)?;
    nix::unistd::execv(&program, &vector)
        .map(drop)
        .map_err(text)
}

/// A terminal of the devpts at `/dev/pts`, which becomes the controlling one of this session.
fn terminal_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let master = OwnedFd::from(
        File::options()
            .read(true)
            .write(true)
            .open("/dev/pts/ptmx")?,
    );
    let unlocked: libc::c_int = 0;
    let mut number: libc::c_uint = 0;
    // SAFETY: both requests take a pointer to an int, which is valid for the call.
    #[allow(unsafe_code)]
    unsafe {
        nix::errno::Errno::result(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlocked))?;
        nix::errno::Errno::result(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &mut number))?;
    }
    let slave = OwnedFd::from(
        File::options()
            .read(true)
            .write(true)
            .open(format!("/dev/pts/{number}"))?,
    );
    // SAFETY: the request takes an integer.
    #[allow(unsafe_code)]
    unsafe {
        nix::errno::Errno::result(libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0))?;
    }
    Ok((master, slave))
}

fn tell(control: &OwnedFd, message: &str, fd: Option<&OwnedFd>) -> Outcome {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let bytes = [io::IoSlice::new(message.as_bytes())];
    rustix::net::sendmsg(control, &bytes, &mut ancillary, SendFlags::NOSIGNAL)
        .map(drop)
        .map_err(text)
}
