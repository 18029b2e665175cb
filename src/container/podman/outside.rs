//! What is known of a container to restore it without Podman.

use std::path::Path;

use super::Podman;
use super::api::Inspected;
use crate::container::described::Described;
use crate::container::error::ErrorKind;
use crate::container::model::EngineKind;
use crate::container::runtime::{CheckpointOptions, CheckpointReport};
use crate::notify::Hooks;
use crate::rootfs::Storage;
use crate::{Criu, ImagesDir};

pub(in crate::container) use super::beside::DEVSHM;

type Result<T> = std::result::Result<T, ErrorKind>;

impl Podman {
    /// A container that will be, or is to be, restored without Podman.
    pub(in crate::container) async fn described(&self, name: &str) -> Result<Described> {
        let inspected = self.inspect(name).await?;
        Ok(Described {
            engine: EngineKind::Podman,
            name: inspected.name.clone(),
            status: inspected.status(),
            mounted_at: (inspected.graph_driver.data.as_ref())
                .and_then(|data| data.get("MergedDir").map(Into::into)),
            storage: inspected.storage(),
            directory: Some(inspected.rootfs.clone()).filter(|path| path.is_absolute()),
            bundle: Some(inspected.static_dir.clone()),
            config: None,
            native: None,
            id: inspected.id,
        })
    }

    /// As [`Podman::checkpoint`], with an error that has no name yet.
    pub(in crate::container) async fn checkpoint_to_do_without(
        &self,
        criu: &Criu,
        name: &str,
        images: &ImagesDir,
        hooks: impl Hooks,
        options: CheckpointOptions,
    ) -> Result<CheckpointReport> {
        self.checkpointed(criu, name, images, hooks, options).await
    }

    /// Which runtime a container is in.
    pub(in crate::container) async fn runtime_of(&self, name: &str) -> Result<EngineKind> {
        let inspected = self.inspect(name).await?;
        match inspected
            .oci_runtime
            .file_name()
            .and_then(|name| name.to_str())
        {
            Some("crun") => Ok(EngineKind::Crun),
            _ => Ok(EngineKind::Runc),
        }
    }
}

impl Inspected {
    fn storage(&self) -> Option<Storage> {
        // Of a container with a root file system of the user's own there is none.
        let driver = self.graph_driver.name.as_str();
        if driver.is_empty() || self.rootfs.is_absolute() {
            return None;
        }
        // GRAPHROOT/DRIVER-containers/ID/userdata
        let root = self.static_dir.ancestors().nth(3).unwrap_or(Path::new("/"));
        Some(Storage::new(driver, root).data(self.graph_driver.data.clone().unwrap_or_default()))
    }
}
