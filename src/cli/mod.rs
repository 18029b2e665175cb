//! The command line: parses, runs a verb, tells the result or the failure, chooses the exit status.
//!
//! One file per verb, on the public library only. The result goes to standard output, everything else to standard error.

mod check;
mod checkpoint;
mod checkpoint_args;
mod completions;
mod container;
mod container_args;
mod descriptors;
mod docker;
mod dry_run;
mod explain;
mod failure;
mod features;
mod hooks;
mod inspect;
mod interpose;
mod list;
mod man;
mod options;
mod output;
mod page_server;
mod podman;
mod replay;
mod report;
mod restore;
mod restore_args;
mod signals;
mod target;
mod trace;
mod values;
mod version;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind as ClapErrorKind;
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use criu_client::{Criu, TimeLimits};

use failure::Failure;
use output::{Format, LogFormat, Output, Painter};

/// Checkpoint and restore processes and containers with CRIU
#[derive(Debug, Parser)]
#[command(name = "criuctl", version, after_help = failure::STATUSES, max_term_width = 120)]
struct Cli {
    #[command(flatten)]
    global: Global,

    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// CRIU program [default: criu on the PATH, then in the sbin directories]
    #[arg(long, global = true, value_name = "PATH")]
    criu: Option<String>,

    /// Socket of a `criu service` that is asked instead
    #[arg(long, global = true, value_name = "SOCKET", value_parser = values::path)]
    service: Option<PathBuf>,

    /// Form of the result on standard output, and of an error there if it is json
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        value_enum,
        default_value_t
    )]
    format: Format,

    /// Say more: -v what is done, -vv every message
    #[arg(long, short, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,

    /// Say nothing but errors
    #[arg(long, short, global = true)]
    quiet: bool,

    /// Form of everything on standard error but a trace: notes, warnings, errors, and what -v says
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        value_enum,
        default_value_t
    )]
    log_format: LogFormat,

    /// Limit of the whole operation, hooks included, such as 30s; it is cancelled when that has passed. What CRIU calls
    /// --timeout is `checkpoint --freeze-timeout`
    #[arg(long, global = true, value_name = "DURATION", value_parser = values::whole_limit)]
    timeout: Option<Duration>,

    /// Limit of one hook, such as 5s; the callback is refused when that has passed
    #[arg(long, global = true, value_name = "DURATION", value_parser = values::limit)]
    hook_timeout: Option<Duration>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Version(version::VersionArgs),
    Check(check::Check),
    Features(features::FeaturesArgs),
    List(list::List),
    Checkpoint(Box<checkpoint_args::Checkpoint>),
    Restore(Box<restore_args::Restore>),
    PageServer(Box<page_server::PageServerArgs>),
    Trace(Box<trace::Trace>),
    Interpose(Box<interpose::Interpose>),
    Inspect(Box<inspect::Inspect>),
    Explain(explain::Explain),
    Replay(replay::ReplayArgs),
    Completions(completions::Completions),
    Man(man::Man),
}

/// What every verb gets.
struct Context {
    output: Output,
    global: Global,
}

impl Context {
    /// The CRIU to ask, with these arguments for its program.
    fn criu(&self, arguments: Vec<OsString>) -> Result<Criu, Failure> {
        let criu = match (&self.global.criu, &self.global.service) {
            (Some(_), Some(_)) => {
                return Err(Failure::usage(
                    "--criu and --service cannot be used together",
                ));
            }
            (None, Some(socket)) => {
                if let Some(argument) = arguments.first() {
                    let argument = argument.to_string_lossy();
                    return Err(Failure::usage(format!(
                        "{argument} cannot be used with --service"
                    ))
                    .hint("give it to the service when that is started"));
                }
                Criu::service(socket)
            }
            (Some(name), None) if name.contains('/') => {
                Criu::at(values::path(name).map_err(Failure::usage)?)
            }
            (Some(name), None) => Criu::at(values::program_named(name).map_err(Failure::missing)?),
            (None, None) => Criu::find_in(&values::search_path())?,
        };
        let mut limits = TimeLimits::default();
        if let Some(limit) = self.global.timeout {
            limits = limits.operation(limit);
        }
        if let Some(limit) = self.global.hook_timeout {
            limits = limits.hook(limit);
        }
        Ok(criu.with_arguments(arguments).with_limits(limits))
    }

    /// Says beforehand what CRIU would say in its own words later. A service has its own privileges.
    fn demand_root(&self, unprivileged: bool) -> Result<(), Failure> {
        let root = rustix::process::geteuid().is_root();
        match root || unprivileged || self.global.service.is_some() {
            true => Ok(()),
            false => Err(Failure::missing("this needs root: CRIU reads and makes processes of any kind").hint(
                "run it with sudo; or with CAP_CHECKPOINT_RESTORE and --unprivileged; or ask a service with --service SOCKET",
            )),
        }
    }
}

/// Runs the program.
pub(crate) fn run() -> ExitCode {
    // Before anything else: as CRIU, this program must have done nothing yet.
    if let Some(status) = crate::listening::run_if_started_as_criu() {
        return status;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return unparsed(&error),
    };
    let output = Output {
        format: cli.global.format,
        verbose: cli.global.verbose > 0,
        quiet: cli.global.quiet,
        log_format: cli.global.log_format,
    };
    log_to_stderr(&cli.global);
    let context = Context {
        output,
        global: cli.global,
    };
    match dispatch(&context, cli.verb) {
        Ok(status) => status,
        Err(failure) => failure.report(&output),
    }
}

fn dispatch(context: &Context, verb: Verb) -> Result<ExitCode, Failure> {
    match verb {
        Verb::Explain(explain) => explain::run(context, &explain),
        Verb::Inspect(inspect) => inspect::run(context, &inspect),
        Verb::Completions(completions) => completions::run(&completions, &mut Cli::command()),
        Verb::Man(man) => man::run(&man, Cli::command()),
        verb => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::failed("the runtime cannot be started").caused_by(error))?
            .block_on(ask_criu(context, verb)),
    }
}

async fn ask_criu(context: &Context, verb: Verb) -> Result<ExitCode, Failure> {
    match verb {
        Verb::Version(_) => version::run(context).await,
        Verb::Check(check) => check::run(context, &check).await,
        Verb::Features(_) => features::run(context).await,
        Verb::List(list) => list::run(context, &list).await,
        Verb::Checkpoint(checkpoint) => checkpoint::run(context, &checkpoint).await,
        Verb::Restore(restore) => restore::run(context, &restore).await,
        Verb::PageServer(page_server) => page_server::run(context, &page_server).await,
        Verb::Trace(trace) => trace::run(context, &trace).await,
        Verb::Interpose(interpose) => interpose::run(context, &interpose).await,
        Verb::Replay(replay) => replay::run(context, &replay).await,
        Verb::Explain(_) | Verb::Inspect(_) | Verb::Completions(_) | Verb::Man(_) => {
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The long names of a verb's options that are on the command line.
fn given(verb: &str) -> Vec<String> {
    let command = Cli::command();
    // It was parsed before.
    let (Ok(matches), Some(command)) = (
        command.clone().try_get_matches(),
        command.find_subcommand(verb).cloned(),
    ) else {
        return Vec::new();
    };
    let Some(matches) = matches.subcommand_matches(verb) else {
        return Vec::new();
    };
    let on_command_line = |argument: &&clap::Arg| {
        let source = matches.value_source(argument.get_id().as_str());
        source == Some(clap::parser::ValueSource::CommandLine)
    };
    command
        .get_arguments()
        .filter(on_command_line)
        .filter_map(|argument| argument.get_long().map(str::to_owned))
        .collect()
}

/// Help and version go to standard output. Wrong usage is an error like any other.
fn unparsed(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ClapErrorKind::DisplayHelp | ClapErrorKind::DisplayVersion => {
            // Whoever has closed standard output wants no more.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        _ if wants_json(std::env::args_os()) => {
            let output = Output {
                format: Format::Json,
                verbose: false,
                quiet: false,
                log_format: LogFormat::default(),
            };
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            Failure::usage(text.trim_end()).report(&output)
        }
        _ => {
            let _ = error.print();
            ExitCode::from(failure::Status::Usage as u8)
        }
    }
}

/// Whether JSON was asked for on a command line that could not be parsed.
fn wants_json(arguments: impl Iterator<Item = OsString>) -> bool {
    let mut previous = OsString::new();
    for argument in arguments {
        if argument == "--" {
            return false;
        }
        if argument == "--format=json" || (previous == "--format" && argument == "json") {
            return true;
        }
        previous = argument;
    }
    false
}

/// What the library says of its work, on standard error.
fn log_to_stderr(global: &Global) {
    let filter = match (global.quiet, global.verbose) {
        (true, _) => "off",
        (false, 0) => "warn",
        (false, 1) => "warn,criu_client=debug,criuctl=debug",
        (false, _) => "warn,criu_client=trace,criuctl=trace",
    };
    let own = match global.log_format {
        LogFormat::Json => match global.quiet {
            true => ",criuctl::messages=warn",
            false => ",criuctl::messages=info",
        },
        LogFormat::Text => "",
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(format!("{filter}{own}")))
        .with_writer(std::io::stderr)
        .with_ansi(Painter::of_stderr().enabled());
    // Fails only if there is one already, and nothing else in this program sets one.
    let _ = match global.log_format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn json_is_seen_on_a_command_line_that_makes_no_sense() {
        let wants = |line: &str| wants_json(line.split(' ').map(OsString::from));
        assert!(wants("criuctl --format json frobnicate"));
        assert!(wants("criuctl frobnicate --format=json"));
        assert!(!wants("criuctl --format human frobnicate json"));
        assert!(!wants("criuctl restore --exec-cmd -- x --format json"));
    }
}
