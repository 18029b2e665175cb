//! What a checkpoint is of: container, image, runtime, engine, times, sizes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::image::{DumpStats, Inventory};

use super::places::RequestedMount;
use super::source::{Form, Store, split};
use super::{Problem, processes};

/// What a checkpoint is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Summary {
    /// The form in which it is there.
    #[serde(flatten)]
    pub form: Form,
    /// The engine that made it: `Podman`, `CRI-O`, `containerd`, `criuctl`. None for images alone.
    pub engine: Option<String>,
    /// The name of the container.
    pub container: Option<String>,
    /// Its id.
    pub id: Option<String>,
    /// The name of the image that it was made of.
    pub image: Option<String>,
    /// The id of that image.
    pub image_id: Option<String>,
    /// The runtime.
    pub runtime: Option<String>,
    /// When the container was made, as the engine wrote it.
    pub created: Option<String>,
    /// When it was checkpointed, as the engine wrote it. Podman does not.
    pub checkpointed: Option<String>,
    /// The pod, in Kubernetes.
    pub pod: Option<String>,
    /// The namespace of the pod, in Kubernetes.
    pub pod_namespace: Option<String>,
    /// Networks and what the container had there.
    pub networks: Vec<Network>,
    /// The machine's architecture.
    pub architecture: Option<String>,
    /// How many processes there are.
    pub processes: Option<usize>,
    /// What CRIU wrote about the whole.
    pub inventory: Option<Inventory>,
    /// How many directories of images there are, parents included.
    pub image_directories: usize,
    /// How large it all is.
    pub sizes: Sizes,
    /// What the container was given from outside.
    pub requested_mounts: Vec<RequestedMount>,
    /// Annotations of the container, or of the OCI image.
    pub annotations: BTreeMap<String, String>,
}

/// What a container had in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Network {
    /// The name of the network.
    pub name: String,
    /// The interface in the container.
    pub interface: String,
    /// Its addresses, each with the length of its prefix.
    pub addresses: Vec<String>,
    /// Its hardware address.
    pub mac: Option<String>,
}

/// Sizes in bytes, uncompressed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Sizes {
    /// All images.
    pub images: u64,
    /// Those of memory pages among them.
    pub pages: u64,
    /// Those that a GPU's plugin has written.
    pub gpu_pages: u64,
    /// What the container changed in its root file system.
    pub root_fs_diff: Option<u64>,
    /// Volumes.
    pub volumes: u64,
}

/// `config.dump` of all engines: Podman and the CRI engines have some keys each.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    id: Option<String>,
    name: Option<String>,
    rootfs_image_name: Option<String>,
    #[serde(rename = "rootfsImageID")]
    rootfs_image_id: Option<String>,
    rootfs_image: Option<String>,
    rootfs_image_ref: Option<String>,
    runtime: Option<String>,
    created_time: Option<String>,
    checkpointed_time: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    annotations: BTreeMap<String, String>,
    mounts: Vec<SpecMount>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SpecMount {
    destination: String,
    #[serde(rename = "type")]
    kind: String,
    source: String,
    options: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    interfaces: BTreeMap<String, Interface>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Interface {
    subnets: Vec<Subnet>,
    mac_address: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Subnet {
    ipnet: String,
}

fn parsed<T: for<'a> Deserialize<'a>>(
    store: &Store,
    name: &str,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    let parsed = serde_json::from_slice(store.content(name)?);
    parsed
        .map_err(|error| problems.push(Problem::new(name, error.to_string())))
        .ok()
}

pub(super) fn summary(store: &Store, problems: &mut Vec<Problem>) -> Summary {
    let config: Option<Config> = parsed(store, "config.dump", problems);
    let spec: Option<Spec> = parsed(store, "spec.dump", problems);
    let spec = spec.unwrap_or_default();
    let annotation = |key: &str| spec.annotations.get(key).cloned();
    let engine = config
        .is_some()
        .then(|| match annotation("io.container.manager").as_deref() {
            _ if store.files.contains_key(super::source::MANIFEST) => "criuctl".to_owned(),
            Some("libpod") => "Podman".to_owned(),
            Some("cri-o") => "CRI-O".to_owned(),
            _ => "containerd".to_owned(),
        });
    let config = config.unwrap_or_default();
    // CRI-O puts the container's name of Kubernetes among the annotations, containerd in the name.
    let pod = annotation("io.kubernetes.pod.name")
        .or_else(|| annotation("io.kubernetes.cri.sandbox-name"));
    let pod_namespace = annotation("io.kubernetes.pod.namespace")
        .or_else(|| annotation("io.kubernetes.cri.sandbox-namespace"));
    let container = annotation("io.kubernetes.container.name")
        .or_else(|| annotation("io.kubernetes.cri.container-name"))
        .or(config.name);
    let tree = processes::tree(store);
    let processes = match &tree {
        Some(Ok(tree)) => Some(tree.tasks().len()),
        Some(Err(error)) => {
            problems.push(Problem::new("pstree.img", super::whole(error)));
            None
        }
        None => None,
    };
    let core = store
        .levels
        .first()
        .zip(tree.as_ref().and_then(|tree| tree.as_ref().ok()))
        .and_then(|(prefix, tree)| {
            let base = format!("core-{}.img", tree.root().pid);
            crate::image::kinds::first(&base, store.content(&format!("{prefix}{base}"))?).ok()
        });
    let annotations = match store.annotations.is_empty() {
        true => spec.annotations.clone(),
        false => store.annotations.clone(),
    };
    Summary {
        form: store.form.clone(),
        engine,
        container,
        id: config.id,
        image: config.rootfs_image_name.or(config.rootfs_image),
        image_id: config.rootfs_image_id.or(config.rootfs_image_ref),
        runtime: config.runtime,
        created: config.created_time,
        checkpointed: config.checkpointed_time,
        pod,
        pod_namespace,
        networks: networks(store, problems),
        architecture: core.as_ref().and_then(processes::architecture),
        processes,
        inventory: inventory(store, problems),
        image_directories: store.levels.len(),
        sizes: sizes(store),
        requested_mounts: spec
            .mounts
            .into_iter()
            .map(|mount| RequestedMount {
                destination: mount.destination,
                kind: mount.kind,
                source: mount.source,
                options: mount.options,
            })
            .collect(),
        annotations,
    }
}

fn networks(store: &Store, problems: &mut Vec<Problem>) -> Vec<Network> {
    let status: Option<Option<BTreeMap<String, Status>>> =
        parsed(store, "network.status", problems);
    let mut networks = Vec::new();
    for (name, status) in status.flatten().unwrap_or_default() {
        for (interface, of_interface) in status.interfaces {
            networks.push(Network {
                name: name.clone(),
                interface,
                addresses: of_interface
                    .subnets
                    .into_iter()
                    .map(|subnet| subnet.ipnet)
                    .collect(),
                mac: of_interface.mac_address,
            });
        }
    }
    networks
}

fn inventory(store: &Store, problems: &mut Vec<Problem>) -> Option<Inventory> {
    let name = format!("{}inventory.img", store.levels.first()?);
    let inventory = Inventory::parse("inventory.img", store.content(&name)?);
    inventory
        .map_err(|error| problems.push(Problem::of(&name, error)))
        .ok()
}

/// What the dump cost, from wherever it was put.
pub(super) fn stats(store: &Store, problems: &mut Vec<Problem>) -> Option<DumpStats> {
    let beside = store
        .levels
        .first()
        .map(|prefix| format!("{prefix}stats-dump"));
    let name = ["stats-dump".to_owned()]
        .into_iter()
        .chain(beside)
        .find(|name| store.content(name).is_some())?;
    let stats = DumpStats::parse("stats-dump", store.content(&name)?);
    stats
        .map_err(|error| problems.push(Problem::of(&name, error)))
        .ok()
}

fn sizes(store: &Store) -> Sizes {
    let mut sizes = Sizes::default();
    for (name, file) in &store.files {
        let (prefix, base) = split(name);
        if store.levels.iter().any(|level| level == prefix)
            && (base.ends_with(".img") || prefix == "checkpoint/")
        {
            sizes.images = sizes.images.saturating_add(file.size);
            if base.starts_with("pages-") {
                sizes.pages = sizes.pages.saturating_add(file.size);
            } else if base.starts_with("amdgpu-pages-") {
                sizes.gpu_pages = sizes.gpu_pages.saturating_add(file.size);
            }
        } else if name == "rootfs-diff.tar" {
            sizes.root_fs_diff = Some(file.size);
        } else if prefix == "volumes/" {
            sizes.volumes = sizes.volumes.saturating_add(file.size);
        }
    }
    sizes
}
