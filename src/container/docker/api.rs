//! What is asked of Docker, and what is understood of its answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use super::{Container, Docker, is_no_link};
use crate::container::error::ErrorKind;
use crate::container::http::{ApiError, Request};
use crate::container::list::Listed;
use crate::container::model::{EngineKind, Status, is_valid_id};

type Result<T> = std::result::Result<T, ErrorKind>;

/// The API from which on there are checkpoints, with Docker 1.12.
const OLDEST: (u64, u64) = (1, 24);
/// How many questions are asked at once, at most.
const AT_ONCE: usize = 16;
/// The label of a swarm's containers.
const SERVICE: &str = "com.docker.swarm.service.name";
/// The annotation by which runc is given CRIU's configuration file for a container, and the file of those without.
const CRIU_CONFIG: &str = "org.criu.config";
const RUNC_CONFIG: &str = "/etc/criu/runc.conf";
/// Where Docker has what does not outlive the machine, if it was not told otherwise.
const RUN: &str = "/run/docker";
/// Why Docker's own restore fails in some releases, which is containerd's issue 12141.
const NO_NETWORK: &str = "this release of Docker looks for the network of a restored container before there is one \
    (\"bind-mount /proc/0/ns/net\"), so its restore fails";

/// The daemon.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Version {
    version: String,
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    experimental: bool,
    #[serde(default)]
    components: Vec<Component>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Component {
    name: String,
}

/// As much of `/info` as is needed.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Info {
    pub(super) docker_root_dir: PathBuf,
    #[serde(default)]
    pub(super) cgroup_driver: String,
    #[serde(default)]
    runtimes: BTreeMap<String, Runtime>,
}

#[derive(Debug, Deserialize)]
struct Runtime {
    #[serde(default)]
    path: PathBuf,
}

/// As much of a container's description as is needed.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Inspected {
    pub(super) id: String,
    #[serde(default)]
    name: String,
    pub(super) state: State,
    pub(super) host_config: HostConfig,
    /// The first program, and what it was told.
    #[serde(default)]
    pub(super) path: String,
    pub(super) args: Option<Vec<String>>,
    #[serde(default)]
    pub(super) driver: String,
    pub(super) graph_driver: Option<GraphDriver>,
    #[serde(default)]
    pub(super) resolv_conf_path: PathBuf,
    #[serde(default)]
    pub(super) hostname_path: PathBuf,
    #[serde(default)]
    pub(super) hosts_path: PathBuf,
    #[serde(default)]
    pub(super) shm_path: PathBuf,
    #[serde(default)]
    pub(super) config: Config,
    #[serde(default)]
    pub(super) mounts: Vec<Mount>,
    #[serde(default)]
    network_settings: NetworkSettings,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    #[serde(default)]
    sandbox_key: PathBuf,
}

/// Where the container's layers are.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct GraphDriver {
    #[serde(default)]
    pub(super) name: String,
    pub(super) data: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Config {
    #[serde(default)]
    pub(super) tty: bool,
    #[serde(default)]
    pub(super) hostname: String,
    pub(super) env: Option<Vec<String>>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Mount {
    #[serde(default)]
    pub(super) r#type: String,
    #[serde(default)]
    pub(super) source: PathBuf,
    #[serde(default)]
    pub(super) destination: PathBuf,
    #[serde(default, rename = "RW")]
    pub(super) rw: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct State {
    #[serde(default)]
    status: String,
    pub(super) running: bool,
    #[serde(default)]
    paused: bool,
    #[serde(default)]
    restarting: bool,
    #[serde(default)]
    pub(super) pid: i32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct HostConfig {
    #[serde(default)]
    pub(super) network_mode: String,
    #[serde(default)]
    pub(super) pid_mode: String,
    #[serde(default)]
    pub(super) ipc_mode: String,
    #[serde(default, rename = "UTSMode")]
    pub(super) uts_mode: String,
    #[serde(default)]
    pub(super) cgroupns_mode: String,
    #[serde(default)]
    pub(super) cgroup_parent: String,
    #[serde(default)]
    pub(super) privileged: bool,
    #[serde(default)]
    pub(super) readonly_rootfs: bool,
    pub(super) masked_paths: Option<Vec<PathBuf>>,
    pub(super) readonly_paths: Option<Vec<PathBuf>>,
    pub(super) devices: Option<Vec<Device>>,
    pub(super) memory: Option<i64>,
    pub(super) memory_swap: Option<i64>,
    pub(super) pids_limit: Option<i64>,
    pub(super) nano_cpus: Option<i64>,
    pub(super) cpu_shares: Option<i64>,
    pub(super) cpu_quota: Option<i64>,
    pub(super) cpu_period: Option<i64>,
    #[serde(default)]
    pub(super) cpuset_cpus: String,
    #[serde(default)]
    pub(super) cpuset_mems: String,
    #[serde(default)]
    auto_remove: bool,
    #[serde(default)]
    restart_policy: RestartPolicy,
    #[serde(default)]
    runtime: String,
    pub(super) annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Device {
    #[serde(default)]
    pub(super) path_on_host: PathBuf,
    #[serde(default)]
    pub(super) cgroup_permissions: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RestartPolicy {
    #[serde(default)]
    name: String,
    #[serde(default)]
    maximum_retry_count: u64,
}

impl std::fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.maximum_retry_count {
            0 => f.write_str(&self.name),
            count => write!(f, "{}:{count}", self.name),
        }
    }
}

/// A container of the list.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    id: String,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    state: String,
}

impl Version {
    /// What begins like numbers with dots between.
    fn numbers(text: &str) -> (u64, u64) {
        let mut parts = text.split(|c: char| !c.is_ascii_digit());
        let mut next = || parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
        (next(), next())
    }

    fn check(&self) -> Result<()> {
        if self
            .components
            .iter()
            .any(|one| one.name == "Podman Engine")
        {
            return Err(ErrorKind::Unsupported(
                "it is Podman that listens at Docker's socket: write podman: and the container's name".into(),
            ));
        }
        match Self::numbers(&self.api_version) >= OLDEST {
            true => Ok(()),
            false => Err(ErrorKind::Unsupported(format!(
                "Docker {} has API {}, and checkpoints need {}.{} (Docker 1.12) or later: update it",
                self.version, self.api_version, OLDEST.0, OLDEST.1
            ))),
        }
    }

    /// Whether the daemon could restore a container by itself.
    pub(super) fn restores(&self, inspected: &Inspected) -> Result<()> {
        if !self.experimental {
            return Err(ErrorKind::Unsupported(format!(
                "Docker {} would not restore it, as its experimental features are off: set \"experimental\": true in the \
                 daemon's configuration (/etc/docker/daemon.json) and restart it",
                self.version
            )));
        }
        let version = Self::numbers(&self.version);
        let joins_another = ["host", "container:"]
            .iter()
            .any(|mode| inspected.host_config.network_mode.starts_with(mode));
        match (version == (26, 0) || version.0 >= 28) && !joins_another {
            false => Ok(()),
            true => Err(ErrorKind::Unsupported(format!(
                "Docker {} cannot restore a container with network {:?}: {NO_NETWORK}. Use Docker 25, 26.1 or 27, or the \
                 network mode host",
                self.version, inspected.host_config.network_mode
            ))),
        }
    }
}

impl Info {
    /// Docker can restore with the container's runtime.
    pub(super) fn restores_with(&self, inspected: &Inspected) -> Result<()> {
        let runtime = self.runtimes.get(&inspected.host_config.runtime);
        match runtime.is_some_and(|runtime| is_crun(&runtime.path)) {
            true => Err(not_with_crun()),
            false => Ok(()),
        }
    }
}

pub(super) fn is_crun(program: &Path) -> bool {
    program.file_name().is_some_and(|name| name == "crun")
}

/// `runc restore --no-subreaper` is what the shim runs, whatever the runtime.
pub(super) fn not_with_crun() -> ErrorKind {
    ErrorKind::Unsupported(
        "its runtime is crun, with which Docker's restore fails: containerd's shim gives it options that it does not have. \
         Make the container with runc"
            .into(),
    )
}

impl Inspected {
    pub(super) fn container(self) -> Container {
        let status = self.status();
        let criu_config = self
            .host_config
            .annotations
            .unwrap_or_default()
            .remove(CRIU_CONFIG);
        Container {
            criu_config: criu_config.map_or_else(|| RUNC_CONFIG.into(), PathBuf::from),
            pid: (status != Status::Stopped)
                .then_some(self.state.pid)
                .filter(|pid| *pid > 0),
            status,
            name: self.name.trim_start_matches('/').to_owned(),
            id: self.id,
        }
    }

    pub(super) fn name(&self) -> &str {
        match self.name.trim_start_matches('/') {
            "" => &self.id,
            name => name,
        }
    }

    pub(super) fn status(&self) -> Status {
        match () {
            () if self.state.restarting => Status::Stopped,
            () if self.state.paused => Status::Paused,
            () if self.state.running => Status::Running,
            () => status(&self.state.status),
        }
    }

    /// There are processes to checkpoint.
    pub(super) fn is_up(&self) -> Result<()> {
        match self.status() {
            Status::Running | Status::Paused => Ok(()),
            status => Err(ErrorKind::NotRunning { status }),
        }
    }

    /// There are no processes, and none are about to be.
    pub(super) fn is_down(&self) -> Result<()> {
        let name = self.name();
        if self.state.restarting {
            return Err(ErrorKind::Policy(format!(
                "Docker is about to start it again: stop it first, with `docker stop {name}`"
            )));
        }
        match (self.status(), self.state.status.as_str()) {
            (Status::Running | Status::Paused, _) => Err(ErrorKind::Exists {
                status: self.status(),
            }),
            (_, status @ ("removing" | "dead")) => Err(ErrorKind::Unsupported(format!(
                "it is {status}, and Docker starts no such container: make it anew, with `docker create`"
            ))),
            _ => Ok(()),
        }
    }

    /// The daemon's directories for what does not outlive the machine: the usual one, and where its network is.
    pub(super) fn run_directories(&self) -> Vec<PathBuf> {
        let mut directories = vec![PathBuf::from(RUN)];
        let of_network = self.network_settings.sandbox_key.parent();
        directories.extend(of_network.and_then(Path::parent).map(Path::to_owned));
        directories
    }

    /// What is mounted can be mounted by a restore.
    pub(super) fn has_no_linked_binds(&self) -> Result<()> {
        let mut binds = self.mounts.iter().filter(|mount| mount.r#type == "bind");
        binds.try_for_each(|mount| is_no_link(&mount.source, &mount.destination))
    }

    /// The swarm's service that it is one of.
    fn service(&self) -> Option<&str> {
        let labels = self.config.labels.as_ref()?;
        labels.get(SERVICE).map(String::as_str)
    }

    fn restart_policy(&self) -> Option<&RestartPolicy> {
        let policy = &self.host_config.restart_policy;
        (!matches!(policy.name.as_str(), "" | "no")).then_some(policy)
    }

    /// Why it has to be left running, in a few words.
    fn does_not_stay_ended(&self) -> Option<String> {
        if self.host_config.auto_remove {
            return Some("--rm".to_owned());
        }
        let of_swarm = self.service().map(|service| format!("service {service}"));
        of_swarm.or_else(|| Some(format!("restart policy {}", self.restart_policy()?)))
    }

    /// Docker leaves it alone once it has ended.
    pub(super) fn stays_ended(&self) -> Result<()> {
        let name = self.name();
        if self.host_config.auto_remove {
            return Err(ErrorKind::Policy(
                "Docker removes it as soon as it has ended (--rm), and there would be nothing to restore: leave it running, \
                 or make it without --rm"
                    .into(),
            ));
        }
        if let Some(service) = self.service() {
            return Err(ErrorKind::Policy(format!(
                "Docker starts another in its place as soon as it has ended, as it is one of the service {service}: leave it \
                 running"
            )));
        }
        match self.restart_policy() {
            None => Ok(()),
            Some(policy) => Err(ErrorKind::Policy(format!(
                "Docker starts it anew as soon as it has ended (restart policy {policy}): leave it running, or first \
                 `docker update --restart no {name}`, and after the restore `docker update --restart {policy} {name}`"
            ))),
        }
    }
}

/// Docker's words for it.
fn status(word: &str) -> Status {
    match word {
        "created" => Status::Created,
        "running" => Status::Running,
        "paused" => Status::Paused,
        _ => Status::Stopped,
    }
}

impl Docker {
    pub(super) async fn ask<T: DeserializeOwned>(&self, request: Request) -> Result<T> {
        let answer = self.client.ask(request).await?;
        Ok(answer.json()?)
    }

    /// The daemon's version, if it is one that will do.
    pub(super) async fn version(&self) -> Result<Version> {
        let version: Version = self.ask(Request::get(&["version"])).await?;
        version.check()?;
        Ok(version)
    }

    pub(super) async fn info(&self) -> Result<Info> {
        self.ask(Request::get(&["info"])).await
    }

    pub(super) async fn inspect(&self, name: &str) -> Result<Inspected> {
        if !is_valid_id(name) {
            return Err(ErrorKind::InvalidId);
        }
        let error = match self
            .client
            .ask(Request::get(&["containers", name, "json"]))
            .await
        {
            Ok(answer) => return Ok(answer.json()?),
            Err(error) => error,
        };
        match error.status() {
            Some(404) => Err(ErrorKind::Unknown {
                root: self.socket().to_owned(),
            }),
            // How it says that a prefix fits several has changed over the releases.
            Some(_) => {
                let candidates: Vec<String> = self
                    .entries()
                    .await?
                    .into_iter()
                    .filter(|entry| entry.id.starts_with(name))
                    .map(|entry| entry.id)
                    .collect();
                match candidates.len() {
                    0 | 1 => Err(error.into()),
                    _ => Err(ErrorKind::Ambiguous { candidates }),
                }
            }
            None => Err(error.into()),
        }
    }

    async fn entries(&self) -> Result<Vec<Entry>> {
        let request = Request::get(&["containers", "json"]).query("all", "1");
        self.ask(request).await
    }

    pub(super) async fn listed(&self) -> Result<Vec<Listed>> {
        self.version().await?;
        let mut entries = self.entries().await?.into_iter();
        let (mut listed, mut asked) = (Vec::new(), JoinSet::new());
        loop {
            while asked.len() < AT_ONCE
                && let Some(entry) = entries.next()
            {
                let docker = self.clone();
                asked.spawn(async move { docker.entry(entry).await });
            }
            match asked.join_next().await {
                None => break,
                Some(Ok(Some(entry))) => listed.push(entry),
                // It is gone by now.
                Some(Ok(None)) => {}
                Some(Err(error)) => {
                    return Err(ErrorKind::system("asking Docker")(std::io::Error::other(
                        error,
                    )));
                }
            }
        }
        listed.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(listed)
    }

    /// The list does not tell pids.
    async fn entry(&self, entry: Entry) -> Option<Listed> {
        let name = entry
            .names
            .first()
            .map(|name| name.trim_start_matches('/').to_owned());
        let mut listed = Listed {
            engine: EngineKind::Docker,
            id: entry.id,
            name,
            pid: None,
            status: Some(status(&entry.state)),
            bundle: PathBuf::new(),
            obstacle: Some("it is stopped".to_owned()),
        };
        if listed.status == Some(Status::Created) {
            listed.obstacle = Some("it is not started".to_owned());
        }
        if !matches!(listed.status, Some(Status::Running | Status::Paused)) {
            return Some(listed);
        }
        match self.inspect(&listed.id).await {
            Ok(inspected) => {
                let policy = inspected.does_not_stay_ended();
                listed.obstacle = (inspected.is_up().err().map(|kind| kind.to_string()))
                    .or_else(|| policy.map(|why| format!("only with --leave-running ({why})")));
                let container = inspected.container();
                listed.status = Some(container.status);
                listed.pid = container.pid;
            }
            Err(ErrorKind::Unknown { .. }) => return None,
            Err(error) => listed.obstacle = Some(error.to_string()),
        }
        Some(listed)
    }
}

impl From<ApiError> for ErrorKind {
    fn from(error: ApiError) -> Self {
        Self::Api(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn version(version: &str, api: &str, component: &str, experimental: bool) -> Version {
        let document = json!({
            "Version": version,
            "ApiVersion": api,
            "Experimental": experimental,
            "Components": [{"Name": component}],
        });
        serde_json::from_value(document).unwrap()
    }

    fn inspected(network: &str, host_config: serde_json::Value) -> Inspected {
        let mut document = json!({
            "Id": "0123",
            "Name": "/web",
            "State": {"Status": "running", "Running": true, "Pid": 1},
            "HostConfig": host_config,
        });
        document["HostConfig"]["NetworkMode"] = json!(network);
        serde_json::from_value(document).unwrap()
    }

    fn refusal(result: Result<()>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn an_api_that_has_no_checkpoints_and_one_that_is_podmans_are_refused() {
        let check = |api, component| version("1", api, component, true).check();
        for api in ["1.24", "1.54", "2.0"] {
            assert!(check(api, "Engine").is_ok(), "{api}");
        }
        for api in ["1.9", "1.23", ""] {
            assert!(refusal(check(api, "Engine")).contains("1.24"), "{api}");
        }
        assert!(refusal(check("1.41", "Podman Engine")).contains("podman:"));
    }

    #[test]
    fn releases_whose_restore_fails_are_refused_where_it_fails() {
        let restores = |text, network, experimental| {
            version(text, "1.45", "Engine", experimental).restores(&inspected(network, json!({})))
        };
        for (text, network) in [
            ("25.0.5", "bridge"),
            ("26.1.5+dfsg1", "none"),
            ("27.5.1", "some-network"),
            ("26.0.2", "host"),
            ("28.2.2", "container:0123"),
        ] {
            assert!(restores(text, network, true).is_ok(), "{text} {network}");
        }
        for (text, network) in [
            ("26.0.0", "bridge"),
            ("28.0.0-rc.1", "none"),
            ("29.1.0", "default"),
        ] {
            assert!(refusal(restores(text, network, true)).contains(text));
        }
        assert!(refusal(restores("26.1.5", "host", false)).contains("experimental"));
    }

    #[test]
    fn what_docker_does_by_itself_is_known() {
        let stays = |config| inspected("none", config).stays_ended();
        assert!(stays(json!({})).is_ok());
        assert!(stays(json!({"RestartPolicy": {"Name": "no"}, "AutoRemove": false})).is_ok());
        assert!(refusal(stays(json!({"AutoRemove": true}))).contains("--rm"));
        let policy = json!({"RestartPolicy": {"Name": "unless-stopped"}});
        assert!(refusal(stays(policy)).contains("docker update --restart unless-stopped web"));
        let policy = json!({"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 3}});
        assert!(
            refusal(stays(policy.clone())).contains("docker update --restart on-failure:3 web")
        );
        let told = |config| inspected("none", config).does_not_stay_ended();
        assert_eq!(told(policy).as_deref(), Some("restart policy on-failure:3"));
        assert_eq!(told(json!({"AutoRemove": true})).as_deref(), Some("--rm"));
        assert_eq!(told(json!({})), None);
        let mut service = inspected("none", json!({}));
        service.config.labels = Some([(SERVICE.to_owned(), "shop".to_owned())].into());
        assert!(refusal(service.stays_ended()).contains("service shop"));
    }

    #[test]
    fn states_are_told_apart() {
        let of = |state: serde_json::Value| {
            let mut inspected = inspected("none", json!({}));
            inspected.state = serde_json::from_value(state).unwrap();
            inspected
        };
        let paused = of(json!({"Status": "paused", "Running": true, "Paused": true, "Pid": 7}));
        assert_eq!(paused.status(), Status::Paused);
        assert!(paused.is_up().is_ok() && paused.is_down().is_err());
        let again = of(json!({"Status": "restarting", "Running": true, "Restarting": true}));
        assert!(again.is_up().is_err());
        assert!(refusal(again.is_down()).contains("docker stop web"));
        let dead = of(json!({"Status": "dead", "Running": false}));
        assert!(refusal(dead.is_down()).contains("docker create"));
        let exited = of(json!({"Status": "exited", "Running": false, "Pid": 0}));
        assert!(exited.is_down().is_ok() && exited.container().pid.is_none());
    }
}
