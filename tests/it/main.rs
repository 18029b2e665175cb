//! The tests that need neither CRIU nor privileges: the command line, and the library against a scripted CRIU.

mod cli;
mod harness;
mod hooks;
mod interpose;
mod lifecycle;
mod page_server;
mod property;
mod protocol;
mod records;
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
        interpose::CASES,
        lifecycle::CASES,
        worker::CASES,
        property::CASES,
    ];
    harness::main(
        &cases,
        &["worker::"],
        [cli::tests(), records::tests()]
            .into_iter()
            .flatten()
            .collect(),
    )
}
