//! `criu-listener`: the `criu` that an engine finds in a directory of `criuctl interpose install` or `criuctl trace`.
//!
//! It does nothing else, so that little is loaded before it makes way for the real CRIU.

mod listening;

use std::io::Write;
use std::process::ExitCode;

const BY_HAND: &str = "\
criu-listener: error: engines start this program as `criu`; by hand it does nothing
hint: `criuctl interpose install DIR` sets up a directory for that, and `criuctl trace` listens in on one command
";

/// What `criuctl` ends with on wrong usage.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    // Before anything else: as CRIU, this program must have done nothing yet.
    listening::run_if_started_as_criu().unwrap_or_else(|| {
        // There is nowhere to say that this fails.
        let _ = std::io::stderr().write_all(BY_HAND.as_bytes());
        ExitCode::from(USAGE)
    })
}
