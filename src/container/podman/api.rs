//! What Podman is asked, and what of its answers is wanted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::{Container, Podman};
use crate::container::error::ErrorKind;
use crate::container::http::{ApiError, Request, Response};
use crate::container::model::{EngineKind, Status, is_valid_id};
use crate::container::runtime::Owner;

type Result<T> = std::result::Result<T, ErrorKind>;

/// The oldest form of the API that has all that is asked here; newer releases answer it as well.
const VERSION: &str = "v4.0.0";

/// A container as Podman describes it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Inspected {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) state: State,
    /// The bundle, in which Podman also looks for a checkpoint.
    pub(super) static_dir: PathBuf,
    #[serde(rename = "OCIRuntime")]
    pub(super) oci_runtime: PathBuf,
    #[serde(default)]
    pub(super) network_settings: NetworkSettings,
    pub(super) host_config: HostConfig,
    #[serde(default)]
    pub(super) graph_driver: GraphDriver,
    /// The user's own root file system, where that is no image's.
    #[serde(default)]
    pub(super) rootfs: PathBuf,
    #[serde(default)]
    mounts: Vec<Mounted>,
    #[serde(default)]
    config: Config,
    /// The container that keeps a pod's namespaces.
    #[serde(default)]
    is_infra: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct State {
    pub(super) status: String,
    #[serde(default)]
    pub(super) pid: i32,
    #[serde(default)]
    pub(super) conmon_pid: i32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NetworkSettings {
    #[serde(default)]
    pub(super) networks: Option<BTreeMap<String, Value>>,
}

/// Where the container's layers are.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct GraphDriver {
    #[serde(default)]
    pub(super) name: String,
    pub(super) data: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Mounted {
    #[serde(rename = "Type")]
    kind: String,
    #[serde(default)]
    source: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct HostConfig {
    #[serde(default)]
    pub(super) auto_remove: bool,
    #[serde(default)]
    pub(super) restart_policy: RestartPolicy,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RestartPolicy {
    #[serde(default)]
    pub(super) name: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    id: String,
}

#[derive(Debug, Deserialize)]
struct Network {
    #[serde(default)]
    containers: BTreeMap<String, Connected>,
}

#[derive(Debug, Deserialize)]
struct Connected {
    #[serde(default)]
    interfaces: Value,
}

/// What a container's own restore has answered.
#[derive(Debug, Deserialize)]
pub(super) struct RestoreAnswer {
    /// In microseconds.
    #[serde(default)]
    pub(super) runtime_restore_duration: u64,
}

impl Inspected {
    pub(super) fn container(&self) -> Container {
        Container {
            id: self.id.clone(),
            name: self.name.clone(),
            status: self.status(),
            pid: Some(self.state.pid).filter(|pid| *pid > 0 && self.is_up()),
        }
    }

    pub(super) fn owner(&self) -> Owner<'_> {
        Owner {
            engine: EngineKind::Podman,
            id: &self.id,
            // It keeps shared memory by itself.
            mounts: &[],
        }
    }

    /// Where this host has its volumes, some of which Podman mounts for as long as somebody uses them.
    pub(super) fn volumes(&self) -> Vec<PathBuf> {
        let volumes = self.mounts.iter().filter(|mount| mount.kind == "volume");
        volumes.map(|mount| mount.source.clone()).collect()
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.status(), Status::Running | Status::Paused)
    }

    /// Podman has seen its end, and removed what the runtime had of it.
    pub(super) fn is_cleaned_up(&self) -> bool {
        matches!(
            self.state.status.as_str(),
            "exited" | "created" | "configured"
        )
    }

    /// Podman's words are more, and its own.
    pub(super) fn status(&self) -> Status {
        match self.state.status.as_str() {
            "running" | "stopping" => Status::Running,
            "paused" => Status::Paused,
            "created" | "configured" | "initialized" => Status::Created,
            _ => Status::Stopped,
        }
    }

    /// Refuses a container that Podman is ending.
    pub(super) fn is_not_ending(&self) -> Result<()> {
        match self.state.status.as_str() {
            "stopping" => Err(ErrorKind::Policy(
                "Podman is stopping it, and kills its processes soon: there is nothing to wait for but its end, after which \
                 `podman start` starts it anew"
                    .into(),
            )),
            _ => Ok(()),
        }
    }

    /// Refuses a container that Podman would remove, or start anew, as soon as its processes have ended.
    pub(super) fn stays_ended(&self) -> Result<()> {
        let (id, config) = (&self.id, &self.host_config);
        if self.is_infra {
            return Err(ErrorKind::Policy(
                "it keeps the namespaces of a pod, whose other containers would lose them: checkpoint those, or leave it running"
                    .into(),
            ));
        }
        if config.auto_remove {
            return Err(ErrorKind::Policy(
                "Podman removes it (--rm) as soon as its processes have ended, so nothing would be left to restore: leave it \
                 running"
                    .into(),
            ));
        }
        match config.restart_policy.name.as_str() {
            "" | "no" => Ok(()),
            policy => Err(ErrorKind::Policy(format!(
                "Podman would start it anew as soon as its processes have ended (restart policy {policy}): switch that off \
                 first, with `podman update --restart no {id}`, or leave it running"
            ))),
        }
    }
}

/// The label of a container that a unit of systemd's runs.
const UNIT: &str = "PODMAN_SYSTEMD_UNIT";

impl Inspected {
    /// What else may start it anew.
    pub(super) fn notes(&self) -> Option<String> {
        let unit = self.config.labels.as_ref()?.get(UNIT)?;
        Some(format!(
            "systemd's unit {unit} runs the container, and may start it anew as soon as its processes have ended: see its Restart="
        ))
    }
}

impl Podman {
    /// Whether it is Podman that answers.
    pub(super) async fn ping(&self, socket: &Path) -> std::result::Result<(), ApiError> {
        let client = crate::container::http::Client::new(socket);
        client
            .ask(Request::get(&["libpod", "_ping"]))
            .await
            .map(drop)
    }

    async fn ask(&self, request: Request) -> Result<Response> {
        Ok(self.client().await?.ask(request).await?)
    }

    fn containers(name: &str, what: &str) -> [String; 5] {
        [VERSION, "libpod", "containers", name, what].map(str::to_owned)
    }

    pub(super) async fn inspect(&self, name: &str) -> Result<Inspected> {
        if !is_valid_id(name) {
            return Err(ErrorKind::InvalidId);
        }
        let path = Self::containers(name, "json");
        let client = self.client().await?;
        let error = match client
            .ask(Request::get(&path.each_ref().map(String::as_str)))
            .await
        {
            Ok(answer) => return Ok(answer.json()?),
            Err(error) => error,
        };
        let Some(status) = error.status() else {
            return Err(error.into());
        };
        // It has no status of its own for a beginning that fits several.
        let request = Request::get(&[VERSION, "libpod", "containers", "json"]);
        let entries: Vec<Entry> = self.ask(request.query("all", "true")).await?.json()?;
        let mut candidates: Vec<String> = entries.into_iter().map(|entry| entry.id).collect();
        candidates.retain(|id| id.starts_with(name));
        match (candidates.len(), status) {
            (2.., _) => Err(ErrorKind::Ambiguous { candidates }),
            (_, 404) => Err(ErrorKind::Unknown {
                root: self.asked().to_owned(),
            }),
            _ => Err(error.into()),
        }
    }

    /// The addresses of a container that runs, in the form that Podman keeps with a checkpoint: by network, what its
    /// interfaces have. `None` for one without networks of Podman's, or a Podman that does not tell.
    pub(super) async fn network_status(&self, inspected: &Inspected) -> Result<Option<Value>> {
        let mut status = serde_json::Map::new();
        for name in inspected
            .network_settings
            .networks
            .iter()
            .flatten()
            .map(|(name, _)| name)
        {
            let request = Request::get(&[VERSION, "libpod", "networks", name, "json"]);
            let answer = match self.ask(request).await {
                Ok(answer) => answer,
                // A mode such as none or host is no network.
                Err(ErrorKind::Api(error)) if error.status() == Some(404) => continue,
                Err(error) => return Err(error),
            };
            let mut network: Network = answer.json()?;
            let connected = network.containers.remove(&inspected.id);
            if let Some(interfaces) = connected.map(|connected| connected.interfaces)
                && interfaces.is_object()
            {
                status.insert(
                    name.clone(),
                    serde_json::json!({ "interfaces": interfaces }),
                );
            }
        }
        Ok((!status.is_empty()).then_some(Value::Object(status)))
    }

    /// Has Podman restore a container from the checkpoint in its bundle, which stays there.
    pub(super) async fn ask_restore(
        &self,
        id: &str,
        flags: &[(&'static str, bool)],
    ) -> Result<RestoreAnswer> {
        let path = Self::containers(id, "restore");
        let mut request = Request::post(&path.each_ref().map(String::as_str))
            .query("keep", "true")
            .limit(None);
        for (name, _) in flags.iter().filter(|(_, on)| *on) {
            request = request.query(name, "true");
        }
        Ok(self.ask(request).await?.json()?)
    }

    /// Waits until Podman has cleaned up after a container; the last that it said.
    pub(super) async fn cleaned_up(&self, id: &str, patience: Duration) -> Result<Inspected> {
        let deadline = std::time::Instant::now() + patience;
        loop {
            let inspected = self.inspect(id).await?;
            if inspected.is_cleaned_up()
                || inspected.is_up()
                || std::time::Instant::now() > deadline
            {
                return Ok(inspected);
            }
            tokio::time::sleep(super::LOOK).await;
        }
    }
}

/// An error of a container by this name.
pub(super) fn of(name: &str) -> impl FnOnce(ErrorKind) -> crate::container::Error {
    move |kind| crate::container::Error::new(EngineKind::Podman, name, kind)
}
