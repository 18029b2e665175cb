//! `explain`

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use clap::builder::styling::AnsiColor;

use criu_client::diagnosis::{self, Findings};

use super::Context;
use super::failure::Failure;
use super::output::Painter;
use super::values;

/// Say what a log of CRIU means: the cause of a failure, the remedy, the lines that tell it
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// A log of CRIU, or a directory that has one: the images or the work directory
    #[arg(value_name = "LOG-OR-DIR", value_parser = values::path)]
    path: PathBuf,
}

pub(super) fn run(context: &Context, explain: &Explain) -> Result<ExitCode, Failure> {
    let findings = diagnosis::explain(&explain.path).map_err(|error| {
        Failure::input(format!("{} cannot be explained", explain.path.display())).caused_by(error)
    })?;
    context.output.result("Explanation", &findings, || {
        text(&findings, context.output.verbose)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn text(findings: &Findings, verbose: bool) -> String {
    let paint = Painter::of_stdout();
    let mut text = String::new();
    // Writing to a String does not fail.
    if let Some(log) = &findings.log {
        let _ = write!(text, "log: {}", log.display());
        match &findings.criu_version {
            Some(version) => {
                let _ = writeln!(text, " (CRIU {version})");
            }
            None => text.push('\n'),
        }
    }
    match (&findings.diagnosis, &findings.cause) {
        (Some(diagnosis), _) => {
            let _ = writeln!(
                text,
                "{} {}",
                paint.paint(AnsiColor::Cyan, "cause:"),
                diagnosis.summary
            );
            let _ = writeln!(
                text,
                "{} {}",
                paint.paint(AnsiColor::Green, "hint:"),
                diagnosis.remedy
            );
        }
        (None, _) if findings.reports_success => {
            let _ = writeln!(
                text,
                "this log reports success: there is nothing to explain"
            );
        }
        (None, Some(_)) => {
            let _ = writeln!(
                text,
                "{} not a known one; this is the line that tells it",
                paint.paint(AnsiColor::Cyan, "cause:")
            );
        }
        (None, None) => {
            let _ = writeln!(text, "there is no error in this log");
        }
    }
    if let Some(cause) = findings
        .cause
        .as_ref()
        .filter(|_| !findings.reports_success || verbose)
    {
        let mut lines: Vec<_> = findings.surrounding.iter().chain([&cause.line]).collect();
        lines.sort_by_key(|line| line.number);
        for line in lines {
            let mark = if line.number == cause.line.number {
                ">"
            } else {
                " "
            };
            let _ = writeln!(text, "{mark} {:>5}  {line}", line.number);
        }
    }
    if verbose {
        for warning in &findings.warnings {
            let _ = writeln!(text, "  {:>5}  {warning}", warning.number);
        }
    }
    text
}
