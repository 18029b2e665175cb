//! TCP sockets in repair mode.
//!
//! CRIU puts an established connection into repair mode while it dumps it, and takes it out again before the tasks run on. A
//! killed CRIU cannot: the tasks then run with sockets on which every call fails.

use nix::sys::socket::sockopt::TcpRepair;
use nix::sys::socket::{getsockopt, setsockopt};
use procfs::process::{FDTarget, Process};
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use crate::criu::care::Aftermath;
use crate::criu::tasks::{self, Task};

/// `TCP_REPAIR_ON` and `TCP_REPAIR_OFF` of the kernel's tcp.h.
const ON: u32 = 1;
const OFF: u32 = 0;

/// Takes every socket of the tree below `pid` out of repair mode, through descriptors borrowed from its tasks.
pub(crate) fn end_repair(pid: i32, aftermath: &mut Aftermath) {
    let mut ended = 0;
    for task in tasks::with_descendants(&[pid])
        .into_iter()
        .filter_map(Task::open)
    {
        let Some(fds) = Process::new(task.pid).and_then(|process| process.fd()).ok() else {
            continue;
        };
        for fd in fds
            .flatten()
            .filter(|fd| matches!(fd.target, FDTarget::Socket(_)))
        {
            let Ok(socket) = pidfd_getfd(task.pidfd(), fd.fd, PidfdGetfdFlags::empty()) else {
                continue;
            };
            // Sockets that are not TCP know no such option.
            if getsockopt(&socket, TcpRepair) == Ok(ON) {
                match setsockopt(&socket, TcpRepair, &OFF) {
                    Ok(()) => ended += 1,
                    Err(error) => aftermath.left_behind.push(format!(
                        "descriptor {} of task {} is a connection in repair mode: {error}",
                        fd.fd, task.pid
                    )),
                }
            }
        }
    }
    if ended > 0 {
        aftermath
            .undone
            .push(format!("{ended} connections taken out of repair mode"));
    }
}
