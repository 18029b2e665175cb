//! Descriptors that this program was started with and that are named by number on the command line.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use super::failure::Failure;

/// A copy of the descriptor `number` that the caller of this program has left open for it.
pub(super) fn inherited(number: i32, option: &str) -> Result<OwnedFd, Failure> {
    let closed = || {
        Failure::input(format!("{option}: descriptor {number} is not open")).hint(format!(
            "redirect it when starting criuctl, for instance with {number}>FILE in a shell"
        ))
    };
    // What this program opens for itself closes on exec; what it was given does not, or it would not be here.
    let flags =
        std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).map_err(|_| closed())?;
    if closes_on_exec(&flags) {
        return Err(closed());
    }
    // The kernel checks the number, so that nothing has to be believed of it here.
    let copy = || -> io::Result<OwnedFd> {
        let own = pidfd_open(getpid(), PidfdFlags::empty())?;
        Ok(pidfd_getfd(own, number, PidfdGetfdFlags::empty())?)
    };
    copy().map_err(|error| {
        Failure::failed(format!("{option}: descriptor {number} cannot be copied")).caused_by(error)
    })
}

fn closes_on_exec(fdinfo: &str) -> bool {
    fdinfo
        .lines()
        .find_map(|line| line.strip_prefix("flags:"))
        .and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok())
        .is_none_or(|flags| flags & rustix::fs::OFlags::CLOEXEC.bits() != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn only_what_was_inherited_is_taken() {
        assert!(inherited(2, "--status-fd").is_ok());
        let own = std::fs::File::open("/dev/null").unwrap();
        let error = inherited(own.as_raw_fd(), "--status-fd").unwrap_err();
        assert!(format!("{error:?}").contains("not open"));
        assert!(inherited(i32::MAX, "--status-fd").is_err());
    }
}
