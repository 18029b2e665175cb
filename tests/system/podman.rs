//! Podman's containers: checkpointed and restored by us, and handed back and forth with Podman itself.

mod archives;
mod failures;
mod fixture;
mod journeys;
mod networks;
mod verbs;

use crate::engines::Program;
use crate::support::{Outcome, Tests};

pub(crate) fn tests() -> Tests {
    type Test = (&'static str, fn(Program) -> Outcome);
    let tests: [Test; 27] = [
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
        (
            "Podman restores what we exported, with all that was changed",
            archives::exported,
        ),
        (
            "what Podman's own archive loses is in ours",
            archives::beside_podmans_own,
        ),
        (
            "an archive goes through a pipe, or the container runs on",
            archives::through_a_pipe,
        ),
        (
            "an export for which there is no room leaves nothing",
            archives::no_room,
        ),
        (
            "an export that is killed leaves it running",
            archives::killed,
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
