//! A process that holds a place in a scope: systemd makes none without a process, and removes one that has none any more.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::process::{Pid, WaitOptions, waitpid};

use crate::sys;

/// A process that does nothing, and ends when this is dropped or its process has ended, however that was.
#[derive(Debug)]
pub(crate) struct Seat {
    pid: Pid,
    /// It lives as long as this is open.
    life: Option<OwnedFd>,
}

impl Seat {
    pub(crate) fn take() -> io::Result<Self> {
        let (read, write) = io::pipe()?;
        let pid = sys::fork_waiting(read.as_fd())?;
        Ok(Self {
            pid,
            life: Some(write.into()),
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Moves it into a group.
    pub(crate) fn move_to(&self, group: &Path) -> io::Result<()> {
        fs::write(group.join("cgroup.procs"), self.pid().to_string())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        drop(self.life.take());
        // Fails when somebody has reaped every child of this process.
        while let Err(rustix::io::Errno::INTR) = waitpid(Some(self.pid), WaitOptions::empty()) {}
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn it_has_no_descriptors_of_ours_and_ends_with_its_owner() {
        let ours = tempfile::tempfile().unwrap();
        let seat = Seat::take().unwrap();
        let directory = PathBuf::from(format!("/proc/{}", seat.pid()));
        // It closes them first of all it does, but may not have got to it.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while fs::read_dir(directory.join("fd")).unwrap().count() != 1 {
            assert!(std::time::Instant::now() < deadline, "it keeps descriptors");
            std::thread::yield_now();
        }
        let kept = fs::read_link(directory.join("fd/0")).unwrap();
        assert!(kept.to_string_lossy().starts_with("pipe:"), "{kept:?}");
        drop(seat);
        assert!(!directory.exists());
        drop(ours);
    }
}
