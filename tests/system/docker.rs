//! Docker's containers: checkpointed over our own RPC, restored by Docker, and handed back and forth with Docker's own
//! checkpoints.

mod failures;
mod fixture;
mod journeys;

use crate::support::{Tests, named};

pub(crate) fn tests() -> Tests {
    let mut tests = named(
        "docker: ",
        &[
            (
                "a default container goes there and back as often as one likes",
                journeys::there_and_back,
            ),
            ("its log and its terminal go on", journeys::log_and_terminal),
            (
                "checkpoints of Docker's are restored, and ours by Docker",
                journeys::interchange,
            ),
            (
                "a container left running is checkpointed twice, and a paused one",
                journeys::left_running_and_paused,
            ),
            (
                "an established connection goes on",
                journeys::established_connection,
            ),
            (
                "processes, files and what an annotation says are there again",
                journeys::processes_and_files,
            ),
            ("the command line does the same", journeys::command_line),
            (
                "a refusing hook or a dropped checkpoint leaves it as it was",
                failures::refused_and_dropped,
            ),
            (
                "a Docker that is late to see the end is told of",
                failures::late_end,
            ),
            (
                "a dropped restore is Docker's to finish",
                failures::dropped_restore,
            ),
            (
                "what a killed restore leaves is removed by the next",
                failures::killed_restore,
            ),
            (
                "a restore that fails says why and leaves nothing",
                failures::failed_restore,
            ),
            (
                "what cannot be done is said before anything happens",
                failures::refusals,
            ),
            (
                "a Docker that is not there is told from one that does not answer",
                failures::nobody_there,
            ),
        ],
    );
    tests.extend(journeys::rows());
    tests
}
