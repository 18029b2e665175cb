//! What needs another kernel than that of the machine which the tests are made on: it has memory tracking, cgroup v2, and every
//! capability. Run in a machine of `scripts/vm`, as `system --in-vm`. Of the other tests those that look at the kernel run again.

pub(crate) mod chain;
pub(crate) mod host;
pub(crate) mod lxc;
pub(crate) mod pair;
pub(crate) mod users;

use crate::support::*;
use crate::{
    connection, core, hardship, hosts, kept, long_options, matrix, namespaces, runtimes, seen,
    service, transfer,
};

pub(crate) use users::unprivileged;

pub(crate) fn tests() -> Tests {
    let mut tests = named("vm/", &[("kernel", kernel)]);
    tests.extend(chain::tests());
    tests.extend(users::tests());
    tests.extend(runtimes::vm_tests());
    let again = [
        core::tests(),
        connection::tests(),
        kept::tests(),
        namespaces::tests(),
        transfer::tests(),
        hardship::tests(),
        seen::tests(),
        service::tests(),
        hosts::tests(),
        long_options::tests(),
        runtimes::tests(),
        matrix::tests(),
    ];
    tests.extend(
        again
            .into_iter()
            .flatten()
            .filter(|(name, _)| is_run_again(name)),
    );
    tests
}

/// Neither the CRIUs that stand beside the installed one, which the machine has not got, nor what took minutes more and
/// tells nothing about a kernel.
fn is_run_again(name: &str) -> bool {
    let beside = [
        "core/4",
        "connection/4",
        "long-options/of-",
        "long-options/that-",
    ];
    !beside.iter().any(|start| name.starts_with(start))
        && !name.starts_with("interchange: ")
        && !name.contains("pre-stream")
        && (!name.starts_with("matrix/") || name.starts_with("matrix/dump/"))
        && (!name.starts_with("matrix/") || name.contains("kill-criu"))
}

/// The machine is what the rest of these tests take it for.
fn kernel() -> Outcome {
    let features = block_on(criu().features()).map_err(whole)?;
    ensure!(
        core::kernel_tracks_memory()? && features.mem_track == Some(true),
        "{features:?}"
    );
    let controllers = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").map_err(text)?;
    for controller in ["cpu", "memory", "pids"] {
        ensure!(controllers.contains(controller), "{controllers}");
    }
    let status = std::fs::read_to_string("/proc/self/status").map_err(text)?;
    let bounding = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .unwrap_or_default();
    let bounding = u64::from_str_radix(bounding.trim(), 16).map_err(text)?;
    let (sys_resource, checkpoint_restore) = (1 << 24, 1 << 40);
    ensure!(
        bounding & sys_resource != 0 && bounding & checkpoint_restore != 0,
        "{bounding:x}"
    );
    Ok(())
}
