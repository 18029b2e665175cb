//! `version`

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::Context;
use super::failure::Failure;
use super::output::print;
use super::signals::Interrupts;
use criu_client::{OperationKind, TaskState, Version};

/// Show the versions of criuctl and of the CRIU that it uses
#[derive(Debug, Args)]
pub(super) struct VersionArgs {}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    criuctl: &'static str,
    criu: Version,
    #[serde(skip_serializing_if = "Option::is_none")]
    program: Option<std::path::PathBuf>,
}

pub(super) async fn run(context: &Context) -> Result<ExitCode, Failure> {
    const OWN: &str = env!("CARGO_PKG_VERSION");
    let human = context.output.format == super::Format::Human && !context.output.quiet;
    // Known whether or not there is a CRIU.
    if human {
        print(format!("criuctl {OWN}\n").as_bytes())?;
    }
    let criu = context.criu(Vec::new())?;
    let version = Interrupts::new()?
        .guard(
            OperationKind::Version,
            &context.output,
            criu.version(),
            criu.settled(),
            || TaskState::NotConcerned,
        )
        .await?;
    let versions = Versions {
        criuctl: OWN,
        criu: version,
        program: criu.program().map(ToOwned::to_owned),
    };
    context
        .output
        .result("Version", &versions, || match &versions.program {
            Some(program) => format!("CRIU {} ({})\n", versions.criu, program.display()),
            None => format!("CRIU {} (service)\n", versions.criu),
        })?;
    Ok(ExitCode::SUCCESS)
}
