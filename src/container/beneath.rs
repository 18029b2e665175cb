//! The runtime beneath an engine such as Docker or Podman, with the root that the engine has given it.

use std::path::Path;

use super::crun::Crun;
use super::error::ErrorKind;
use super::runc::Runc;
use super::runtime::{CheckpointOptions, CheckpointReport, Owner};
use crate::dry_run;
use crate::notify::Hooks;
use crate::options::PreDumpOptions;
use crate::{Criu, ImagesDir, PreDumpReport};

type Result<T> = std::result::Result<T, ErrorKind>;

/// What a running container is in. Errors are the container's, without a name: the engine above knows under which it was asked for.
#[derive(Debug)]
pub(super) enum Beneath {
    Runc(Runc),
    Crun(Crun),
}

impl Beneath {
    pub(super) async fn checkpoint(
        &self,
        owner: Owner<'_>,
        criu: &Criu,
        images: &ImagesDir,
        hooks: impl Hooks,
        options: CheckpointOptions,
    ) -> Result<CheckpointReport> {
        let id = owner.id;
        match self {
            Self::Runc(runc) => {
                runc.checkpoint_for(owner, criu, id, images, hooks, options)
                    .await
            }
            Self::Crun(crun) => {
                crun.checkpoint_for(owner, criu, id, images, hooks, options)
                    .await
            }
        }
    }

    pub(super) async fn plan_checkpoint(
        &self,
        owner: Owner<'_>,
        criu: &Criu,
        images: &Path,
        options: CheckpointOptions,
    ) -> Result<dry_run::Plan> {
        let id = owner.id;
        match self {
            Self::Runc(runc) => {
                runc.plan_checkpoint_for(owner, criu, id, images, options)
                    .await
            }
            Self::Crun(crun) => {
                crun.plan_checkpoint_for(owner, criu, id, images, options)
                    .await
            }
        }
    }

    pub(super) async fn pre_dump(
        &self,
        criu: &Criu,
        id: &str,
        images: &ImagesDir,
        options: PreDumpOptions,
    ) -> Result<PreDumpReport> {
        match self {
            Self::Runc(runc) => runc.pre_dumped(criu, id, images, options).await,
            Self::Crun(crun) => crun.pre_dumped(criu, id, images, options).await,
        }
    }

    pub(super) async fn plan_pre_dump(
        &self,
        criu: &Criu,
        id: &str,
        images: &Path,
        options: PreDumpOptions,
    ) -> Result<dry_run::Plan> {
        match self {
            Self::Runc(runc) => runc.planned_pre_dump(criu, id, images, options).await,
            Self::Crun(crun) => crun.planned_pre_dump(criu, id, images, options).await,
        }
    }
}
