//! `features`, and what each feature means for those who use it.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use criu_client::{Features, OperationKind, TaskState, Version};

use super::Context;
use super::failure::Failure;
use super::report::table;
use super::signals::Interrupts;

/// Show what CRIU and the kernel can do together beyond the basics
#[derive(Debug, Args)]
pub(super) struct FeaturesArgs {}

/// A feature, whether it is there, and what that means.
pub(super) struct Feature {
    pub(super) name: &'static str,
    pub(super) here: Option<bool>,
    /// What works with it.
    pub(super) with: &'static str,
    /// What does not work without it, and what still does.
    pub(super) without: &'static str,
    /// Why it is missing.
    pub(super) missing: &'static str,
}

/// The features that CRIU can be asked for.
pub(super) fn explained(features: &Features) -> [Feature; 4] {
    [
        Feature {
            name: "mem-track",
            here: features.mem_track,
            with: "pre-dumps and checkpoints that write only what has changed",
            without: "no --pre-dump, --track-mem and --parent-path; full checkpoints work",
            missing: "the kernel has no soft-dirty tracking (CONFIG_MEM_SOFT_DIRTY)",
        },
        Feature {
            name: "lazy-pages",
            here: features.lazy_pages,
            with: "restores that fetch memory on demand",
            without: "no --lazy-pages; ordinary restores work",
            missing: "the kernel has no userfaultfd for other processes (CONFIG_USERFAULTFD), or it is not permitted",
        },
        Feature {
            name: "pidfd-store",
            here: features.pidfd_store,
            with: "reused pids are noticed between pre-dumps",
            without: "a pid that is reused between two pre-dumps may go unnoticed; everything else works",
            missing: "the kernel has no pidfd_open and pidfd_getfd (Linux 5.6)",
        },
        Feature {
            name: "mem-compression",
            here: features.mem_compression,
            with: "compressed memory images",
            without: "no --compress; images are written as they are",
            missing: "CRIU was built without LZ4",
        },
    ]
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Found {
    criu_version: Version,
    features: Features,
}

pub(super) async fn run(context: &Context) -> Result<ExitCode, Failure> {
    let criu = context.criu(Vec::new())?;
    let asked = async {
        let mut connection = criu.connect().await?;
        let found = Found {
            criu_version: connection.version().clone(),
            features: connection.features().await?,
        };
        connection.close().await;
        Ok::<_, criu_client::Error>(found)
    };
    let found = Interrupts::new()?
        .guard(
            OperationKind::FeatureCheck,
            &context.output,
            asked,
            criu.settled(),
            || TaskState::NotConcerned,
        )
        .await?;
    context.output.result("Features", &found, || {
        let mut table = table(["feature", "here", "meaning"]);
        for feature in explained(&found.features) {
            let (here, meaning) = match feature.here {
                Some(true) => ("yes", feature.with.to_owned()),
                Some(false) => ("no", format!("{}: {}", feature.missing, feature.without)),
                None => (
                    "unknown",
                    format!(
                        "CRIU {} has not heard of it: {}",
                        found.criu_version, feature.without
                    ),
                ),
            };
            table.add_row([feature.name, here, meaning.as_str()]);
        }
        format!("{}\n", table.trim_fmt())
    })?;
    Ok(ExitCode::SUCCESS)
}
