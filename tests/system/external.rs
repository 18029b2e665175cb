//! Containers behind their engine's back: checkpointed and restored externally, and handed to and fro with the engine's own.

mod docker;
mod failures;
mod others;
mod yard;

use crate::support::{Tests, named};

pub(crate) fn tests() -> Tests {
    named(
        "external: ",
        &[
            (
                "a container of Docker's with a network and volumes, there and back as often as one likes",
                docker::there_and_back,
            ),
            ("the same with vfs", docker::vfs),
            ("the same with btrfs", docker::btrfs),
            (
                "Docker's checkpoints are restored externally, and external ones by Docker",
                docker::interchange,
            ),
            (
                "the command line is that of docker_cr.sh, and more",
                docker::command_line,
            ),
            ("a container of runc's", others::runc),
            ("a container of crun's", others::crun),
            (
                "a container of Podman's over runc",
                others::podman_over_runc,
            ),
            (
                "a container of Podman's over crun",
                others::podman_over_crun,
            ),
            (
                "a kept network keeps its connections, and another can be joined",
                others::networks,
            ),
            (
                "output goes where it is told to, also after another checkpoint",
                others::output,
            ),
            (
                "a restore that is refused or dropped leaves nothing",
                failures::undone,
            ),
            (
                "what a killed restore leaves is removed by the next",
                failures::killed,
            ),
            (
                "what cannot be done is said before anything happens",
                failures::refusals,
            ),
        ],
    )
}
