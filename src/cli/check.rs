//! `check`

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use clap::builder::styling::AnsiColor;
use serde::Serialize;

use criu_client::options::CheckOptions;
use criu_client::{Criu, Error, ErrorKind, Features, OperationKind, TaskState, Version};

use super::Context;
use super::failure::{Failure, Status};
use super::features::explained;
use super::options::{CriuArgs, Security, apply_common, flags};
use super::output::Painter;
use super::signals::Interrupts;

/// Check that CRIU works with this kernel, and say what is missing and what that means
#[derive(Debug, Args)]
pub(super) struct Check {
    #[command(flatten)]
    security: Security,
    #[command(flatten)]
    criu: CriuArgs,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Checked {
    /// Whether everything is there that each dump needs.
    good: bool,
    criu_version: Version,
    features: Option<Features>,
    /// Why not.
    error: Option<Error>,
}

pub(super) async fn run(context: &Context, check: &Check) -> Result<ExitCode, Failure> {
    let criu = context.criu(check.criu.program_arguments())?;
    let mut options = CheckOptions::new();
    apply_common!(options, check.criu, None::<&std::path::Path>);
    flags!(options, check.security, unprivileged => unprivileged);
    let checked = Interrupts::new()?
        .guard(
            OperationKind::Check,
            &context.output,
            ask(&criu, options),
            criu.settled(),
            || TaskState::NotConcerned,
        )
        .await?;
    context
        .output
        .result("Check", &checked, || text(&checked))?;
    match checked.error {
        None => Ok(ExitCode::SUCCESS),
        Some(error) => {
            if context.output.format == super::Format::Human {
                Failure::from(error).say(&context.output);
            }
            Ok(ExitCode::from(Status::Missing as u8))
        }
    }
}

async fn ask(criu: &Criu, options: CheckOptions) -> Result<Checked, Error> {
    // All over one connection, unless one of the answers ends it.
    let mut connection = criu.connect().await?;
    let criu_version = connection.version().clone();
    let features = connection.features().await;
    let checked = match connection.is_open() {
        true => connection.check(options).await,
        false => criu.check(options).await,
    };
    let error = match checked {
        Ok(_) => None,
        // The answer to the question; anything else is a failure to get one.
        Err(error) if matches!(error.kind(), ErrorKind::Refused { .. }) => Some(error),
        Err(error) => return Err(error),
    };
    let features = match (features, &error) {
        (Ok(features), _) => Some(features),
        // What keeps CRIU from checking may keep it from this too, and is told already.
        (Err(_), Some(_)) => None,
        (Err(error), None) => return Err(error),
    };
    Ok(Checked {
        good: error.is_none(),
        criu_version,
        features,
        error,
    })
}

fn text(checked: &Checked) -> String {
    let paint = Painter::of_stdout();
    let mut text = String::new();
    let mut line = |good: Option<bool>, name: &str, meaning: &str| {
        let mark = match good {
            Some(true) => paint.paint(AnsiColor::Green, "ok     "),
            Some(false) => paint.paint(AnsiColor::Yellow, "missing"),
            None => "unknown".into(),
        };
        // Writing to a String does not fail.
        let _ = writeln!(text, "{mark}  {name:<16} {meaning}");
    };
    let version = &checked.criu_version;
    match checked.good {
        true => line(
            Some(true),
            "checkpoint",
            &format!("CRIU {version} and this kernel have what every checkpoint needs"),
        ),
        false => line(
            Some(false),
            "checkpoint",
            &format!("CRIU {version} cannot checkpoint on this kernel"),
        ),
    }
    for feature in checked.features.iter().flat_map(explained) {
        match feature.here {
            Some(true) => line(Some(true), feature.name, feature.with),
            Some(false) => line(
                Some(false),
                feature.name,
                &format!("{}: {}", feature.missing, feature.without),
            ),
            None => line(
                None,
                feature.name,
                &format!("CRIU {version} has not heard of it: {}", feature.without),
            ),
        }
    }
    text
}
