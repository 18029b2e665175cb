//! The tests that need root and a real CRIU. See `docs/testing.md`.

mod causes;
mod cells;
mod conformance;
mod connection;
mod contain;
mod core;
mod cpuinfo;
mod docker;
mod dry_run;
mod engines;
mod hardship;
mod hosts;
mod image_protos;
mod inspect;
mod interposed;
mod kept;
mod live_causes;
mod long_options;
mod matrix;
mod namespaces;
mod netlock;
mod podman;
mod pycriu;
mod recorder;
mod roles;
mod rpc_proto;
mod runtime_options;
mod runtimes;
mod seen;
mod service;
mod service_ends;
mod support;
mod transfer;
mod victim;
mod vm;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use support::Outcome;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("--victim") => roles::be_a_victim(&arguments[2..]),
        Some("--contain") => return part(contain::contain(&arguments[2..])),
        Some("--host") => return part(hosts::be_a_host(&arguments[2..])),
        Some("--record-sessions") => return part(recorder::record_sessions(&arguments[2..])),
        Some("--record-checkpoints") => return part(inspect::record_checkpoints(&arguments[2..])),
        Some("--lazy-engine") => return part(interposed::be_a_lazy_engine(&arguments[2..])),
        Some("--client") => return part(matrix::be_a_client(&arguments[2..])),
        Some("--elsewhere") => return part(service_ends::be_a_client_elsewhere(&arguments[2..])),
        _ => {}
    }
    // Another kernel: see scripts/vm.
    let elsewhere: Option<fn() -> support::Tests> = match arguments.get(1).map(String::as_str) {
        Some("--in-vm") => Some(vm::tests),
        Some("--in-pair") => Some(vm::pair::tests),
        Some("--in-host") => Some(vm::host::tests),
        _ => None,
    };
    let mut arguments = match elsewhere {
        Some(_) => Arguments::from_iter([&arguments[..1], &arguments[2..]].concat()),
        None => Arguments::from_args(),
    };
    // Zombies, descriptors and firewall rules are counted for the whole process: one test at a time.
    arguments.test_threads = Some(1);
    if !arguments.list {
        nix::sys::prctl::set_child_subreaper(true).expect("becoming a subreaper");
        keep_to_ourselves().expect("a session and descriptors of our own");
    }
    // tokio keeps two descriptors from the first runtime on, for the whole process.
    support::block_on(async {});
    let missing = missing();
    let mut trials = Vec::new();
    let lists = [
        core::tests(),
        connection::tests(),
        kept::tests(),
        namespaces::tests(),
        transfer::tests(),
        hardship::tests(),
        seen::tests(),
        service::tests(),
        service_ends::tests(),
        hosts::tests(),
        image_protos::tests(),
        inspect::tests(),
        rpc_proto::tests(),
        causes::tests(),
        long_options::tests(),
        netlock::tests(),
        dry_run::tests(),
        conformance::tests(),
        runtime_options::tests(),
        runtimes::tests(),
        engines::tests(),
        docker::tests(),
        podman::tests(),
        cells::tests(),
        matrix::tests(),
        interposed::tests(),
    ];
    let tests = match elsewhere {
        Some(tests) => tests(),
        None => lists.into_iter().flatten().collect(),
    };
    for (name, test) in tests {
        trials.push(trial(name, missing.clone(), test));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// What whoever started us left behind must not reach what the tests start, or CRIU would find it there: open descriptors,
/// and a session whose leader is in none of our pid namespaces (its id reads as 0).
fn keep_to_ourselves() -> std::io::Result<()> {
    // SAFETY: only a flag of the descriptors is changed.
    #[allow(unsafe_code)]
    let code = unsafe {
        libc::close_range(
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC as libc::c_int,
        )
    };
    if code != 0 {
        return Err(std::io::Error::last_os_error());
    }
    if nix::unistd::getsid(None)?.as_raw() == 0 {
        nix::unistd::setsid()?;
    }
    Ok(())
}

/// The end of a process that plays a part in a test.
fn part(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[allow(clippy::print_stderr)]
            {
                eprintln!("{error}");
            }
            ExitCode::FAILURE
        }
    }
}

/// A test that cannot run here fails with the reason: nothing is passed over in silence.
fn trial(name: String, missing: Option<String>, test: Box<dyn Fn() -> Outcome + Send>) -> Trial {
    Trial::test(name, move || match missing {
        Some(missing) => Err(Failed::from(missing)),
        None => test().map_err(Failed::from),
    })
}

fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("these tests need root".into());
    }
    criu_client::Criu::find()
        .err()
        .map(|error| format!("{error}; run scripts/install"))
}
