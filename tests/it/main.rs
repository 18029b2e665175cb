//! The tests that need neither CRIU nor privileges: the command line, and the library against a scripted CRIU.

mod cli;
mod harness;
mod hooks;
mod lifecycle;
mod page_server;
mod preconditions;
mod property;
mod protocol;
mod support;
mod transport;
mod worker;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(status) = criu_client::testing::play_if_asked() {
        return status;
    }
    let cases = [
        transport::CASES,
        protocol::CASES,
        page_server::CASES,
        hooks::CASES,
        lifecycle::CASES,
        worker::CASES,
        property::CASES,
    ];
    let mut others = cli::tests();
    others.extend(preconditions::tests());
    harness::main(&cases, &["worker::"], others)
}
