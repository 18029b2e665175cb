//! runc's containers: checkpointed and restored over our own RPC, and handed back and forth with runc itself.

mod failures;
mod fixture;
mod journeys;
mod seen;

use crate::support::Outcome;

type Test = (&'static str, fn() -> Outcome);

pub(crate) fn tests() -> Vec<Test> {
    vec![
        (
            "runc: a default container goes there and back",
            journeys::round_trip,
        ),
        (
            "runc: what is done to a container names it",
            seen::of_a_container,
        ),
        (
            "runc: a container left running is checkpointed twice",
            journeys::leave_running_twice,
        ),
        (
            "runc: a pipe at standard output is replaced",
            journeys::stdout_pipe,
        ),
        (
            "runc: a terminal comes over the console socket",
            journeys::terminal,
        ),
        (
            "runc: runc restores what we checkpointed",
            journeys::restored_by_runc,
        ),
        (
            "runc: we restore what runc checkpointed",
            journeys::checkpointed_by_runc,
        ),
        (
            "runc: bind mounts, limits and hooks are restored",
            journeys::everything,
        ),
        (
            "runc: a joined network namespace is joined again",
            journeys::joined_network,
        ),
        (
            "runc: a foreground container is our child",
            journeys::foreground,
        ),
        (
            "runc: a refusing hook leaves it as it was",
            failures::refusing_hooks,
        ),
        (
            "runc: a dropped checkpoint or restore is undone",
            failures::dropped,
        ),
        (failures::KILLED, failures::killed_restore),
        (
            "runc: a checkpoint whose end we missed does not block the restore",
            failures::missed_end,
        ),
        (
            "runc: what a leftover mount shows survives the checkpoint",
            failures::leftover_mount,
        ),
        (
            "runc: what CRIU leaves running stays runc's",
            failures::left_by_criu,
        ),
        (
            "runc: processes outside the tree are refused",
            failures::strangers,
        ),
        (
            "runc: a refused checkpoint leaves an older one whole",
            failures::older_checkpoint,
        ),
        ("runc: a paused container is checkpointed", journeys::paused),
        (
            "runc: a pre-dump is refused without memory tracking, or works",
            journeys::pre_dump,
        ),
        (
            "runc: what cannot be done is said before anything happens",
            failures::refusals,
        ),
    ]
}
