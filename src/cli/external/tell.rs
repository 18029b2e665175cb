//! What is told of an external checkpoint or restore.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use criu_client::container::EngineKind;
use criu_client::container::external::{Checkpointed, Entry, External as Ours, Restored};
use criu_client::rootfs::Rootfs;

use crate::cli::Context;
use crate::cli::failure::Failure;
use crate::cli::output::{pages, time};
use crate::cli::report;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Dumped<'a> {
    target: String,
    images_dir: &'a Path,
    #[serde(flatten)]
    done: &'a Checkpointed,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Back<'a> {
    target: String,
    images_dir: &'a Path,
    #[serde(flatten)]
    done: &'a Restored,
}

pub(super) fn checkpointed(
    context: &Context,
    engine: EngineKind,
    done: &Checkpointed,
    images: &Path,
) -> Result<(), Failure> {
    let document = Dumped {
        target: format!("{engine}:{}", done.report.id),
        images_dir: images,
        done,
    };
    context.output.result("ExternalCheckpoint", &document, || {
        let dump = &done.report.dump;
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "dump successful: {engine} container {} to {}, {}",
            done.name,
            images.display(),
            report::fate(dump.tasks)
        );
        let _ = write!(text, ", after {}", time(dump.details.timings.total));
        if let Some(stats) = &dump.stats {
            let _ = write!(
                text,
                ", frozen for {}, {} written",
                time(stats.frozen_time),
                pages(stats.pages_written + stats.shpages_written.unwrap_or(0))
            );
        }
        text.push('\n');
        if let Some(network) = &done.network {
            let _ = writeln!(
                text,
                "its network namespace is kept in {}",
                network.display()
            );
        }
        if context.output.verbose {
            if let Some(rootfs) = &done.rootfs {
                layers(&mut text, rootfs);
            }
            request(&mut text, &done.report.plan);
        }
        report::details(&context.output, &mut text, &dump.details);
        text
    })
}

pub(super) fn restored(context: &Context, done: &Restored, images: &Path) -> Result<(), Failure> {
    let document = Back {
        target: format!("{}:{}", done.engine, done.id),
        images_dir: images,
        done,
    };
    context.output.result("ExternalRestore", &document, || {
        let mut text = format!(
            "restore successful: {} container {} from {}, pid {}, after {}",
            done.engine,
            done.name,
            images.display(),
            done.init.pid,
            time(done.report.details.timings.total)
        );
        let read = done.report.stats.as_ref().and_then(|stats| stats.pages_restored);
        if let Some(read) = read {
            let _ = write!(text, ", {} read", pages(read));
        }
        text.push('\n');
        let _ = writeln!(
            text,
            "it is {}'s below a root of its own: {} --root {} list; `criuctl external cleanup {}` removes what is kept of it once it \
             has ended",
            done.runtime,
            done.runtime,
            done.runtime_root.display(),
            done.id.get(..12).unwrap_or(&done.id)
        );
        if context.output.verbose {
            layers(&mut text, &done.rootfs);
            let by: Vec<String> = done.rootfs_by.iter().map(ToString::to_string).collect();
            if !by.is_empty() {
                let _ = writeln!(text, "  by {}", by.join(", "));
            }
            if let Some(network) = &done.network {
                let _ = writeln!(text, "network namespace: {}", network.display());
            }
        }
        report::details(&context.output, &mut text, &done.report.details);
        text
    })
}

/// One layer a line.
fn layers(text: &mut String, rootfs: &Rootfs) {
    let _ = writeln!(text, "root file system: {}", rootfs.fs_type());
    for (role, path) in rootfs.layers() {
        let _ = writeln!(text, "  {role}: {}", path.display());
    }
    match rootfs {
        Rootfs::Overlay(overlay) => {
            for option in &overlay.options {
                let _ = writeln!(text, "  {option}");
            }
        }
        Rootfs::Zfs(dataset) => {
            let _ = writeln!(text, "  dataset {dataset}");
        }
        _ => {}
    }
}

fn request(text: &mut String, plan: &impl Serialize) {
    if let Ok(plan) = serde_json::to_string_pretty(plan) {
        let _ = writeln!(text, "request: {plan}");
    }
}

#[derive(Serialize)]
struct Listed<'a> {
    containers: &'a [Entry],
}

pub(super) fn list(context: &Context, ours: &Ours) -> Result<(), Failure> {
    let entries = ours.list()?;
    let document = Listed {
        containers: &entries,
    };
    context.output.result("ExternalList", &document, || {
        let mut table =
            report::table(["ENGINE", "ID", "NAME", "PID", "STATUS", "IMAGES", "NETWORK"]);
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        for entry in &entries {
            table.add_row([
                or_dash(entry.engine.map(|engine| engine.to_string())),
                entry.id.clone(),
                or_dash(entry.name.clone()),
                or_dash(entry.init.map(|init| init.pid.to_string())),
                entry.status.to_string(),
                or_dash(entry.images.as_ref().map(|path| path.display().to_string())),
                or_dash(
                    entry
                        .network
                        .as_ref()
                        .map(|path| path.display().to_string()),
                ),
            ]);
        }
        format!("{}\n", table.trim_fmt())
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CleanedUp<'a> {
    container: &'a str,
    left_behind: &'a [String],
}

pub(super) fn cleaned(context: &Context, cleaned: &[(String, Vec<String>)]) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct All<'a> {
        cleaned: Vec<CleanedUp<'a>>,
    }
    let document = All {
        cleaned: (cleaned.iter())
            .map(|(container, left_behind)| CleanedUp {
                container,
                left_behind,
            })
            .collect(),
    };
    context.output.result("ExternalCleanup", &document, || {
        let mut text = String::new();
        for (container, _) in cleaned {
            let _ = writeln!(text, "cleaned up after {container}");
        }
        if cleaned.is_empty() {
            text.push_str("nothing is kept of a container that has ended\n");
        }
        text
    })
}
