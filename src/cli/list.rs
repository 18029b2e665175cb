//! `list`

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use criu_client::container::{ErrorKind, Listed, podman};

use super::Context;
use super::container_args::Containers;
use super::failure::Failure;

/// List the containers of runc, crun, Docker, Podman and LXC on this host
///
/// Says of each whether it can be checkpointed, as far as its record tells, and if not, or only with --leave-running, why.
#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    containers: Containers,
}

#[derive(Serialize)]
struct Found<'a> {
    containers: &'a [Entry],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(flatten)]
    listed: Listed,
    checkpointable: bool,
}

pub(super) async fn run(context: &Context, list: &List) -> Result<ExitCode, Failure> {
    // What cannot be read, or asked, keeps nobody from seeing the others.
    let or_told = |listed: Result<Vec<Listed>, criu_client::container::Error>| {
        listed.unwrap_or_else(|error| {
            context.output.warn(Failure::from(error).summary());
            Vec::new()
        })
    };
    let mut listed = or_told(list.containers.runc().list());
    listed.extend(or_told(list.containers.crun().list()));
    let root = list.containers.podman_root();
    let mut listed = podman::claim(listed.clone(), root).unwrap_or_else(|error| {
        let root = root.display();
        let failure = Failure::failed(format!("Podman's containers in {root} cannot be read"));
        context.output.warn(failure.caused_by(error).summary());
        listed
    });
    listed.extend(of_docker(context, list).await);
    listed.extend(or_told(list.containers.lxc().list()));
    let entries: Vec<Entry> = listed
        .into_iter()
        .map(|listed| Entry {
            checkpointable: listed.obstacle.is_none(),
            listed,
        })
        .collect();
    let done = Found {
        containers: &entries,
    };
    context
        .output
        .result("ContainerList", &done, || table(&entries))?;
    Ok(ExitCode::SUCCESS)
}

/// A Docker that is not there is no failure, and one that cannot be asked keeps nobody from seeing the others.
async fn of_docker(context: &Context, list: &List) -> Vec<Listed> {
    let asked = match list.containers.docker() {
        Ok(docker) => docker.list().await.map_err(|error| match error.kind() {
            ErrorKind::Api(problem) if problem.is_absent() => None,
            _ => Some(Failure::from(error)),
        }),
        Err(failure) => Err(Some(failure)),
    };
    asked.unwrap_or_else(|failure| {
        if let Some(failure) = failure {
            context.output.warn(failure.summary());
        }
        Vec::new()
    })
}

/// Columns that are as wide as what is in them.
fn table(entries: &[Entry]) -> String {
    let head = [
        "ENGINE",
        "ID",
        "NAME",
        "PID",
        "STATUS",
        "CHECKPOINT",
        "BUNDLE",
    ]
    .map(str::to_owned);
    let row = |entry: &Entry| {
        let Listed {
            engine,
            id,
            name,
            pid,
            status,
            bundle,
            obstacle,
            ..
        } = &entry.listed;
        [
            engine.to_string(),
            id.clone(),
            name.clone().unwrap_or_else(|| "-".to_owned()),
            pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            status.map_or_else(|| "unknown".to_owned(), |status| status.to_string()),
            obstacle
                .as_ref()
                .map_or_else(|| "yes".to_owned(), |obstacle| format!("no: {obstacle}")),
            bundle.display().to_string(),
        ]
    };
    let rows: Vec<_> = std::iter::once(head)
        .chain(entries.iter().map(row))
        .collect();
    let widths = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..7).map(widths).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a String does not fail.
            let _ = write!(line, "{cell:<width$}  ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        assert_eq!(
            table(&[]),
            "ENGINE  ID  NAME  PID  STATUS  CHECKPOINT  BUNDLE\n"
        );
    }
}
