//! The end of a container: what remains of it is removed.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::{Engine, Runtime, steps};
use crate::TaskState;
use crate::container::adopt;
use crate::container::cgroup::systemd;
use crate::container::error::{Error, ErrorKind, Result, in_words};
use crate::container::model::{Model, ProcessId, Status};
use crate::container::oci_hooks;
use crate::dry_run::Action;

/// How often processes are looked at.
const LOOK: Duration = Duration::from_millis(10);
/// How long a dumped process may take to end: one with much memory has much to give back.
const END: Duration = Duration::from_secs(10);
/// How long a poststop hook may take whose configuration does not say.
const HOOK: Duration = Duration::from_secs(30);

/// Says in a container's directory that its checkpoint is complete, and where. Should this process die before the
/// directory is removed, a restore knows that it may be.
pub(super) const CHECKPOINTED: &str = "criuctl-checkpoint";

impl<E: Engine> Runtime<E> {
    /// Removes what remains of a container that has ended, as the runtime's `delete` does: its control groups and its record.
    /// Its poststop hooks run. Returns what could not be removed.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] when it has not ended.
    pub async fn remove(&self, id: &str) -> Result<Vec<String>> {
        let removed = async {
            let directory = self.directory(id)?;
            let container = self.find(id)?;
            match container.status {
                Status::Stopped => Ok(remove(&container.model, &directory).await.all()),
                status => Err(ErrorKind::Exists { status }),
            }
        };
        removed.await.map_err(|kind| Error::new(E::KIND, id, kind))
    }
}

/// What could not be removed of a container, and what its poststop hooks complained of.
#[derive(Debug, Default)]
pub(super) struct Removed {
    pub(super) left: Vec<String>,
    pub(super) notes: Vec<String>,
}

impl Removed {
    fn all(mut self) -> Vec<String> {
        self.left.append(&mut self.notes);
        self.left
    }
}

/// Ends a container after its dump, if CRIU has ended its processes. Whether it was to is not only for the request to
/// say: the options of a configuration file win.
pub(super) async fn finish(
    model: &Model,
    directory: &Path,
    init: ProcessId,
    tasks: TaskState,
) -> Vec<String> {
    if tasks == TaskState::Absent {
        return match ends(init).await {
            true => remove(model, directory).await.all(),
            // Its marker stays: a restore from the images clears it away.
            false => vec![format!(
                "its first process {} has been killed and has not ended within {} seconds: the container's record stays; \
                 `{} delete {}` removes it once it has",
                init.pid,
                END.as_secs(),
                model.engine,
                model.id
            )],
        };
    }
    let mut left = vec![format!(
        "its first process {} is still there, as with leave-running in CRIU's options or its configuration file: the \
         container stays {}'s",
        init.pid, model.engine
    )];
    match fs::remove_file(directory.join(CHECKPOINTED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            left.push(format!(
                "{}: {error}",
                directory.join(CHECKPOINTED).display()
            ));
        }
        _ => {}
    }
    left
}

/// Waits for a process to end; false when it still exists after a time.
async fn ends(process: ProcessId) -> bool {
    let ended = async {
        while process.is_alive() {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(END, ended).await.is_ok()
}

/// Removes what remains of a container whose processes are gone or going, whether or not somebody waits for it.
pub(super) async fn remove(model: &Model, directory: &Path) -> Removed {
    let (model, directory) = (model.clone(), directory.to_owned());
    tokio::spawn(async move { remove_now(&model, &directory).await })
        .await
        .unwrap_or_else(|error| Removed {
            left: vec![format!("what remains of the container: {error}")],
            notes: Vec::new(),
        })
}

async fn remove_now(model: &Model, directory: &Path) -> Removed {
    let mut removed = Removed::default();
    let mut hooks = model.poststop_hooks.iter();
    for step in steps::removal(model, directory) {
        match step.action {
            Action::StopUnit { unit } => {
                if let Err(error) = systemd::stop(&unit, None).await {
                    removed.left.push(in_words(&error));
                }
            }
            Action::RemoveCgroups { groups } => {
                let left =
                    tokio::task::spawn_blocking(move || adopt::remove_cgroups_in_time(&groups))
                        .await
                        .unwrap_or_else(|error| vec![format!("control groups: {error}")]);
                removed.left.extend(left);
            }
            Action::RemoveRecord { directory } => {
                removed.left.extend(adopt::remove_state(&directory));
            }
            Action::RunProgram { .. } => {
                let Some(hook) = hooks.next() else {
                    continue;
                };
                // One that fails does not keep the others from running.
                let limit = hook.timeout.map_or(HOOK, |_| Duration::MAX);
                let running = oci_hooks::run(std::slice::from_ref(hook), model, "stopped", None);
                match tokio::time::timeout(limit, running).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => removed.notes.push(in_words(&error)),
                    Err(_) => removed.notes.push(format!(
                        "the poststop hook {} took longer than {HOOK:?}, and was killed",
                        hook.path.display()
                    )),
                }
            }
            _ => {}
        }
    }
    removed
}
