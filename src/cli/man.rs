//! `man`

use std::process::ExitCode;

use clap::{Args, Command};

use super::failure::Failure;
use super::output::print;

/// Print a manual page, of criuctl or of one verb
#[derive(Debug, Args)]
pub(super) struct Man {
    /// The verb [default: criuctl itself]
    verb: Option<String>,
}

pub(super) fn run(man: &Man, mut command: Command) -> Result<ExitCode, Failure> {
    // Global options reach the verbs, and verbs their full names, when the command is built.
    command.build();
    let page = match &man.verb {
        None => command,
        Some(verb) => {
            let verbs: Vec<String> = command
                .get_subcommands()
                .map(|command| command.get_name().to_owned())
                .collect();
            let Some(found) = command.find_subcommand(verb) else {
                return Err(Failure::usage(format!("there is no verb {verb:?}"))
                    .hint(format!("it is one of {}", verbs.join(", "))));
            };
            found.clone()
        }
    };
    let mut roff = Vec::new();
    clap_mangen::Man::new(page)
        .render(&mut roff)
        .map_err(|error| Failure::failed("the manual page cannot be made").caused_by(error))?;
    print(&roff)?;
    Ok(ExitCode::SUCCESS)
}
