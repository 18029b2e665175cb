//! The runtimes' containers: checkpointed and restored over our own RPC, and handed back and forth with the runtimes
//! themselves.

mod cgroup_namespace;
mod everything;
mod failures;
pub(crate) mod fixture;
mod interchange;
mod joined;
mod journeys;
mod other_kernel;
mod planned;
mod refusals;
mod scopes;
mod seen;

use criu_client::container::crun::CrunEngine;
use criu_client::container::runc::RuncEngine;

use crate::support::{Test, Tests};
use fixture::Program;

/// What this machine's kernel cannot do, for a machine of `scripts/vm`.
pub(crate) fn vm_tests() -> Tests {
    let mut tests = other_kernel::of::<RuncEngine>();
    tests.extend(other_kernel::of::<CrunEngine>());
    tests
}

/// What needs systemd, for a machine in which that runs.
pub(crate) fn systemd_tests() -> Tests {
    scopes::tests()
}

pub(crate) fn tests() -> Tests {
    let mut tests = of::<RuncEngine>();
    tests.extend(of::<CrunEngine>());
    tests.extend(interchange::tests());
    tests.extend(scopes::elsewhere());
    tests
}

fn of<E: Program>() -> Tests {
    let tests: Vec<Test> = vec![
        (
            "a default container goes there and back",
            journeys::round_trip::<E>,
        ),
        (
            "what is done to a container names it",
            seen::of_a_container::<E>,
        ),
        (
            "a container left running is checkpointed twice",
            journeys::leave_running_twice::<E>,
        ),
        (
            "a pipe at standard output is replaced",
            journeys::stdout_pipe::<E>,
        ),
        (
            "a terminal comes over the console socket",
            journeys::terminal::<E>,
        ),
        (
            "the runtime restores what we checkpointed",
            journeys::restored_by_itself::<E>,
        ),
        (
            "we restore what the runtime checkpointed",
            journeys::checkpointed_by_itself::<E>,
        ),
        (
            "bind mounts, limits and hooks are restored",
            everything::there_and_back::<E>,
        ),
        (
            "a joined network namespace is joined again",
            journeys::joined_network::<E>,
        ),
        (
            "a foreground container is our child",
            journeys::foreground::<E>,
        ),
        (
            "a refusing hook leaves it as it was",
            failures::refusing_hooks::<E>,
        ),
        (
            "a dropped checkpoint or restore is undone",
            failures::dropped::<E>,
        ),
        (failures::KILLED, failures::killed_restore::<E>),
        (
            "a checkpoint whose end we missed does not block the restore",
            failures::missed_end::<E>,
        ),
        (
            "what a leftover mount shows survives the checkpoint",
            failures::leftover_mount::<E>,
        ),
        (
            "what CRIU leaves running stays the runtime's",
            failures::left_by_criu::<E>,
        ),
        (
            "processes outside the tree are refused",
            failures::strangers::<E>,
        ),
        (
            "a refused checkpoint leaves an older one whole",
            failures::older_checkpoint::<E>,
        ),
        (
            "joined namespaces that cannot be restored are refused",
            joined::refused::<E>,
        ),
        (
            "a cgroup namespace is the container's own",
            cgroup_namespace::there_and_back::<E>,
        ),
        (
            "a dry run asks what is sent",
            planned::asks_what_is_sent::<E>,
        ),
        (
            "a dry run refuses what the deed refuses",
            planned::refuses_what_the_deed_refuses::<E>,
        ),
        ("a paused container is checkpointed", journeys::paused::<E>),
        (
            "a pre-dump is refused without memory tracking, or works",
            journeys::pre_dump::<E>,
        ),
        (
            "what cannot be done is said before anything happens",
            refusals::all::<E>,
        ),
    ];
    tests
        .into_iter()
        .map(|(name, test)| (format!("{}: {name}", E::NAME), Box::new(test) as _))
        .collect()
}
