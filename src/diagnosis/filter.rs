//! Which error lines cannot be the cause.
//!
//! CRIU logs errors that do no harm, and after the error that matters it logs what follows from it.
//! Both are listed here as data; what is left, in order, are the candidates.

use super::pattern::capture;

/// What an error line is worth when the cause is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// May be the cause.
    Candidate,
    /// Says that something failed before, not what.
    Consequence,
    /// Appears in runs that succeed.
    Noise,
}

/// Errors of runs that go on and succeed.
const NOISE: &[&str] = &[
    // Every run of a CRIU without CAP_SYS_RESOURCE.
    "rlimit: Can't setup RLIMIT_NOFILE for self: {*}",
    // A parent directory without images for this task: the task is dumped in full.
    "page-xfer: No parent image found, though parent directory is set{*}",
    // A veth without `veth[..]` mapping: its other end is not looked for.
    "net: Unknown peer net namespace",
    // Probes of the kernel without CAP_NET_ADMIN.
    "-1 reported by netlink: Operation not permitted",
    "net: Unable to create a veth pair: -1",
    "net: Unexpected error: -1(Operation not permitted)",
    // The way out of a dump that never seized the task.
    "Unable to detach from {pid#}: No such process",
    // The connection was kept open for a further request and the client had none.
    "Can't recv request: Connection reset by peer",
    // `criu check` on a kernel without it says so and goes on.
    "cgroupns not supported. This is not fatal.",
];

/// What else does no harm to a dump: a parent directory without an inventory only makes it a full
/// one.
const NOISE_IN_DUMPS: &[&str] = &["Unexpected EOF on (empty-image)"];

/// Errors that report an earlier one.
const CONSEQUENCES: &[&str] = &[
    "Dumping FAILED.",
    "Pre-dumping FAILED.",
    "Restoring FAILED.",
    "Killing processes because of failure on restore.",
    "One of more action scripts failed",
    "Pre dump script failed with {*}",
    "Pre-stream script failed with {*}",
    "Aborting restore due to {*} script ret code {*}",
    "{pid#} exited, status={*}",
    "{pid#} killed by signal {*}",
    "{pid#} stopped by signal {*}",
    "exited, status={*}",
    "killed by signal {*}",
    "Can't send response: {*}",
    "Dump files (pid: {pid#}) failed with {*}",
    "Dump mappings (pid: {pid#}) failed with {*}",
    "Dump core (pid: {pid#}) failed with {*}",
    "Dump fs (pid: {pid#}) failed with {*}",
    "Dump ids (pid: {pid#}) failed with {*}",
    "Collect mappings (pid: {pid#}) failed with {*}",
    "Collect fds (pid: {pid#}) failed with {*}",
    "Pre-dumping files failed (pid: {*}",
    "Can't dump threads",
    "Can't make {kind} id",
    "Namespaces dumping finished with error {*}",
    "Can't dump page with parasite",
    "Can't wait or bad status: {*}",
    "mnt: Can't wait or bad status: {*}",
    "Message reply from daemon is trimmed (12/0)",
    "Unable to open fd={fd#} id={*}",
    "`- Can't open vma",
    "Can't open cwd",
    "Can't open root",
    "Restorer fail {*}",
    "Couldn't open image dir {*}",
    "Can't write pidfile: {*}",
    "Can't catch all tasks",
    "Unable to detach from {pid#}: {*}",
];

/// Whether an error that may be a cause in other operations is harmless in a dump.
pub(super) fn harmless_in_dumps(text: &str) -> bool {
    NOISE_IN_DUMPS.contains(&text)
}

/// Classes an error by its message.
pub(super) fn class(text: &str) -> Class {
    let any = |patterns: &[&str]| {
        patterns
            .iter()
            .any(|pattern| capture(pattern, text).is_some())
    };
    if any(NOISE) {
        Class::Noise
    } else if any(CONSEQUENCES) {
        Class::Consequence
    } else {
        Class::Candidate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes() {
        for (text, expected) in [
            (
                "rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted",
                Class::Noise,
            ),
            (
                "page-xfer: No parent image found, though parent directory is set: No such file or directory",
                Class::Noise,
            ),
            (
                "Unable to detach from 4194300: No such process",
                Class::Noise,
            ),
            ("Dumping FAILED.", Class::Consequence),
            ("One of more action scripts failed", Class::Consequence),
            ("Pre dump script failed with -1!", Class::Consequence),
            ("13522 exited, status=1", Class::Consequence),
            ("42317 killed by signal 9: Killed", Class::Consequence),
            ("Dump files (pid: 12664) failed with -1", Class::Consequence),
            ("Can't make pidns id", Class::Consequence),
            ("Unable to open fd=3 id=0xb", Class::Consequence),
            ("RPC client reported script error", Class::Candidate),
            (
                "Can't lookup mount=24 for fd=0 path=/dev/null",
                Class::Candidate,
            ),
            ("", Class::Candidate),
        ] {
            assert_eq!(class(text), expected, "{text}");
        }
    }
}
