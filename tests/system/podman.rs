//! Podman's containers: checkpointed and restored by us, and handed back and forth with Podman itself.

mod failures;
mod fixture;
mod journeys;
mod networks;
mod other_kernel;
mod verbs;

use crate::engines::Program;
use crate::support::{Outcome, Tests};

/// What the machine that the tests are made on cannot do, for a host of `scripts/vm`.
pub(crate) fn host_tests() -> Tests {
    other_kernel::tests()
}

pub(crate) fn tests() -> Tests {
    type Test = (&'static str, fn(Program) -> Outcome);
    let tests: [Test; 22] = [
        (
            "a container goes there and back, and is Podman's again",
            journeys::round_trip,
        ),
        (
            "a container left running is checkpointed twice",
            journeys::leave_running_twice,
        ),
        (
            "Podman restores what we checkpointed",
            journeys::restored_by_itself,
        ),
        (
            "we restore what Podman checkpointed",
            journeys::checkpointed_by_itself,
        ),
        (
            "a terminal, processes, files in memory and limits are restored",
            journeys::everything,
        ),
        ("a paused container is checkpointed", journeys::paused),
        ("a hook that refuses leaves it running", failures::refusing),
        (
            "what Podman would do by itself afterwards is refused",
            failures::policies,
        ),
        (
            "what cannot be done is said before anything happens",
            failures::refusals,
        ),
        (
            "a restore that fails leaves it as it was",
            failures::failing_restore,
        ),
        (failures::KILLED, failures::killed_restore),
        (
            "a dropped restore is Podman's to finish",
            failures::dropped_restore,
        ),
        (
            "an interrupted restore tells what became of it",
            failures::interrupted_restore,
        ),
        (
            "a network that another container lent is joined again",
            networks::lent,
        ),
        (
            "addresses, a published port and a connection survive",
            networks::bridge,
        ),
        ("the host's network is kept", networks::host),
        (
            "a pod's network stays open for its other members",
            networks::pod,
        ),
        ("criuctl goes there and back", verbs::there_and_back),
        ("criuctl lists Podman's containers", verbs::list),
        ("an ID alone is looked for in Podman", verbs::id_alone),
        (
            "a dry run does nothing, and says what will be done",
            verbs::dry_run,
        ),
        (
            "a service is started when nobody listens",
            verbs::own_service,
        ),
    ];
    let mut all: Tests = Vec::new();
    for program in [Program::Runc, Program::Crun] {
        for (name, test) in tests {
            let name = format!("podman+{}: {name}", program.name());
            all.push((name, Box::new(move || test(program))));
        }
    }
    all
}
