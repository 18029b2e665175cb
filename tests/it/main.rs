//! The tests that need neither CRIU nor privileges: the command line, and the library against a scripted CRIU.

mod cli;
mod cli_criu;
mod connection;
mod harness;
mod hooks;
mod inspect;
mod interpose;
mod interrupted;
mod lifecycle;
mod page_server;
mod preconditions;
mod property;
mod protocol;
mod recordings;
mod records;
mod replay;
mod support;
mod trace;
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
        recordings::CASES,
        page_server::CASES,
        hooks::CASES,
        interpose::CASES,
        lifecycle::CASES,
        worker::CASES,
        connection::CASES,
        interrupted::CASES,
        property::CASES,
        replay::CASES,
        replay::sessions::CASES,
    ];
    let mut others = cli::tests();
    others.extend(preconditions::tests());
    others.extend(replay::command::tests());
    others.extend(trace::tests());
    others.extend(cli_criu::tests());
    others.extend(records::tests());
    others.extend(inspect::tests());
    harness::main(&cases, &["worker::"], others)
}
