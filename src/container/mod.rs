//! Containers: from an engine's record of one to CRIU's request, and from images back to a container that the engine
//! knows.
//!
//! Owns what an engine does around CRIU: which resources are external and by what name, the root file system's mount,
//! mount points, control groups, the loopback interface, the record. It never runs an engine's program and never
//! parses what one prints: it reads and writes the engines' own files, `/proc`, and the control groups' file systems, and
//! asks daemons over their APIs.
//!
//! ```text
//! checkpoint   record ─ Model ─┐
//!              /proc ── Live ──┴─ DumpPlan ── files beside the images ── Criu::dump ── record and groups removed
//! restore      bundle, images ── Model ── RestorePlan ── journal, mounts, groups ── Criu::restore ── record written
//! ```
//!
//! A [`Model`] is the same for every engine, a plan is a pure function of it and can be printed. Everything that can be
//! found out before something is frozen, made or removed is found out before.
//!
//! | beside the images | |
//! |---|---|
//! | `descriptors.json` | what the standard descriptors were; every runtime wants it |
//! | `criuctl-container.json` | engine, name, plan of the dump |
//! | `criuctl-external.json` | what the root file system was made of, for a restore without the engine |
//! | `criuctl-runc-state.json`, `criuctl-runc-config.json`; `criuctl-crun-status.json`, `criuctl-crun-config.json` | the runtime's record and the configuration, which are gone after a checkpoint |

mod adopt;
#[cfg(feature = "engine")]
mod beneath;
mod cgroup;
pub mod crun;
#[cfg(feature = "engine")]
mod described;
#[cfg(feature = "engine")]
pub mod docker;
mod error;
#[cfg(feature = "engine")]
pub mod external;
#[cfg(feature = "engine")]
mod http;
mod list;
mod model;
mod mounts;
mod network;
pub mod oci;
mod oci_hooks;
pub mod plan;
#[cfg(feature = "engine")]
pub mod podman;
pub mod runc;
pub mod runtime;

pub use cgroup::Scope;
pub use error::{Error, ErrorKind, Result};
#[cfg(feature = "engine")]
pub use http::{ApiError, ApiProblem};
pub use list::Listed;
pub use model::{
    EngineKind, Live, Model, Mount, MountEntry, MountKind, Namespace, NamespaceKind, ProcessId,
    Status,
};
pub use oci_hooks::HookError as OciHookError;
