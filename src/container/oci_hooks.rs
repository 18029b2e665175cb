//! Hooks of an OCI configuration: programs that get the container's state on their standard input.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::model::Model;
use super::oci::Hook;

/// How much of a failed hook's standard error is kept.
const ERROR_AT_MOST: u64 = 16 * 1024;

/// A hook that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HookError {
    /// It could not be run.
    #[error("the OCI hook {} could not be run", program.display())]
    NotRun {
        /// Its program.
        program: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It ended with a failure.
    #[error("the OCI hook {} ended with {status}: {output}", program.display())]
    Failed {
        /// Its program.
        program: std::path::PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to its standard error.
        output: String,
    },
    /// It took longer than its configuration allows, and was killed.
    #[error("the OCI hook {} took longer than the {limit:?} of its configuration", program.display())]
    TimedOut {
        /// Its program.
        program: std::path::PathBuf,
        /// The limit.
        limit: Duration,
    },
}

/// The state that a hook is given.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct State<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    bundle: &'a Path,
    annotations: &'a std::collections::BTreeMap<String, String>,
}

/// Runs `hooks` one after the other, up to the first that fails.
pub(crate) async fn run(
    hooks: &[Hook],
    model: &Model,
    status: &str,
    pid: Option<i32>,
) -> Result<(), HookError> {
    let state = State {
        oci_version: &model.oci_version,
        id: &model.id,
        status,
        pid,
        bundle: &model.bundle,
        annotations: &model.annotations,
    };
    for hook in hooks {
        let not_run = |source| HookError::NotRun {
            program: hook.path.clone(),
            source,
        };
        let state = serde_json::to_vec(&state).map_err(|error| not_run(error.into()))?;
        let running = run_one(hook, &state);
        match hook.timeout.map(Duration::from_secs) {
            None => running.await?,
            Some(limit) => match tokio::time::timeout(limit, running).await {
                Ok(ended) => ended?,
                Err(_) => {
                    let program = hook.path.clone();
                    return Err(HookError::TimedOut { program, limit });
                }
            },
        }
    }
    Ok(())
}

async fn run_one(hook: &Hook, state: &[u8]) -> Result<(), HookError> {
    let not_run = |source| HookError::NotRun {
        program: hook.path.clone(),
        source,
    };
    let mut command = Command::new(&hook.path);
    let arguments = hook.args.as_deref().unwrap_or_default();
    if let Some((own_name, arguments)) = arguments.split_first() {
        command.arg0(own_name).args(arguments);
    }
    if let Some(environment) = &hook.env {
        command.env_clear();
        command.envs(environment.iter().filter_map(|entry| entry.split_once('=')));
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(not_run)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read what it is given.
        let _ = stdin.write_all(state).await;
    }
    let mut output = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut stderr = stderr.take(ERROR_AT_MOST);
        stderr.read_to_end(&mut output).await.map_err(not_run)?;
        // What comes beyond is let through, so that the hook does not hang on a full pipe.
        let _ = tokio::io::copy(stderr.get_mut(), &mut tokio::io::sink()).await;
    }
    let status = child.wait().await.map_err(not_run)?;
    match status.success() {
        true => Ok(()),
        false => Err(HookError::Failed {
            program: hook.path.clone(),
            status,
            output: String::from_utf8_lossy(&output).trim_end().to_owned(),
        }),
    }
}
