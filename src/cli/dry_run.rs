//! `--dry-run`

use std::fmt::Write as _;
use std::path::Path;

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use criu_client::ImagesDir;
use criu_client::dry_run::{Action, Plan, Step, Undo, When};

use super::Context;
use super::checkpoint::has_parent;
use super::checkpoint_args::Checkpoint;
use super::failure::Failure;
use super::restore_args::Restore;
use super::values::Hook;

/// Checkpoint and restore.
#[derive(Debug, Args)]
pub(super) struct DryRun {
    /// Show what would be asked and done, step by step, and do nothing of it
    ///
    /// Everything is looked at that is looked at before something is done, so wrong input is told in the same way. CRIU is
    /// asked for its version.
    #[arg(long)]
    pub(super) dry_run: bool,
}

/// The result.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Planned<'a> {
    target: String,
    images_dir: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    pre_dump: Option<bool>,
    #[serde(flatten)]
    plan: &'a Plan,
}

/// What can be told of the images directory before it is made.
pub(super) fn images_to_plan(checkpoint: &Checkpoint) -> Result<&Path, Failure> {
    let path = checkpoint.images.path();
    ImagesDir::missing(path).map_err(|error| {
        Failure::input(format!("{} cannot be the images directory", path.display()))
            .caused_by(error)
    })?;
    if let Some(parent) = &checkpoint.dump_images.parent_path {
        has_parent(path, parent)?;
    }
    Ok(path)
}

/// Shows the plan of a checkpoint.
pub(super) fn tell_checkpoint(
    context: &Context,
    checkpoint: &Checkpoint,
    target: String,
    plan: Plan,
) -> Result<(), Failure> {
    // They are asked before anything else is done at a callback.
    let mut steps = hooks(&checkpoint.criu_more.hooks);
    steps.extend(plan.steps);
    let plan = Plan::new(plan.request, steps, plan.notes);
    let planned = Planned {
        target,
        images_dir: checkpoint.images.path(),
        pre_dump: Some(checkpoint.dump_memory.pre_dump),
        plan: &plan,
    };
    context.output.result("CheckpointPlan", &planned, || {
        let into = checkpoint.images.path().display();
        text(
            &plan,
            &format!("{} would be checkpointed into {into}", planned.target),
        )
    })
}

/// Shows the plan of a restore.
pub(super) fn tell_restore(
    context: &Context,
    restore: &Restore,
    target: String,
    plan: Plan,
) -> Result<(), Failure> {
    // They are asked after everything else is done at a callback.
    let mut steps = plan.steps;
    steps.extend(hooks(&restore.criu_more.hooks));
    if let Some(path) = &restore.restore_tasks.pid_file {
        let path = path.clone();
        steps.push(Step::after(Action::WriteFile { path }));
    }
    let plan = Plan::new(plan.request, steps, plan.notes);
    let planned = Planned {
        target,
        images_dir: restore.images.path(),
        pre_dump: None,
        plan: &plan,
    };
    context.output.result("RestorePlan", &planned, || {
        let from = restore.images.path().display();
        text(
            &plan,
            &format!("{} would be restored from {from}", planned.target),
        )
    })
}

fn hooks(hooks: &[Hook]) -> Vec<Step> {
    let step = |hook: &Hook| {
        let program = hook.program.clone();
        Step::at(hook.script.clone(), Action::RunProgram { program })
    };
    hooks.iter().map(step).collect()
}

fn text(plan: &Plan, heading: &str) -> String {
    let mut text = format!("{heading}; nothing is done now\n");
    // Writing to a String does not fail.
    if let Some(request) = &plan.request {
        let _ = write!(
            text,
            "\nrequest {} to CRIU {}",
            request.kind, request.criu_version
        );
        if !request.arguments.is_empty() {
            let _ = write!(text, ", started with {}", request.arguments.join(" "));
        }
        text.push('\n');
        for (option, value) in &request.options {
            let values = match value {
                Value::Array(values) => values.as_slice(),
                value => std::slice::from_ref(value),
            };
            for value in values {
                let _ = writeln!(text, "  {option:<20} {}", shown(value));
            }
        }
    }
    text.push_str("\nsteps\n");
    let steps = plan.steps.iter().filter(|step| !step.is_done());
    for (number, step) in (1..).zip(steps) {
        let when = match &step.when {
            When::At(script) => format!("at {script}: "),
            _ => String::new(),
        };
        let undo = match step.undo {
            Undo::Nothing => String::new(),
            undo => format!(" [on failure: {undo}]"),
        };
        let _ = writeln!(text, "  {number:>2}. {when}{}{undo}", step.action);
    }
    if !plan.files.is_empty() {
        text.push_str("\nfiles\n");
        for file in &plan.files {
            let _ = writeln!(text, "  {}", file.display());
        }
    }
    if !plan.notes.is_empty() {
        text.push_str("\nnotes\n");
        for note in &plan.notes {
            let _ = writeln!(text, "  {note}");
        }
    }
    text
}

/// An option's value on one line.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(members) => {
            let members: Vec<String> = members
                .iter()
                .map(|(name, value)| format!("{name}={}", shown(value)))
                .collect();
            members.join(" ")
        }
        value => value.to_string(),
    }
}
