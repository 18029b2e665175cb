//! Questions that concern no task: VERSION, CHECK, FEATURE_CHECK, CPUINFO_DUMP, CPUINFO_CHECK.

use serde::Serialize;

use super::settle::Ended;
use super::{Criu, ImagesDir, Plan, complete};
use crate::error::{Error, OperationKind, Result};
use crate::options::{CheckOptions, CpuinfoOptions, Prepared};
use crate::rpc::swrk::FIRST_REQUEST_FD;
use crate::rpc::wire::{CriuFeatures, CriuReqType};
use crate::version::Version;

/// What the kernel and this CRIU can do together. A feature that this CRIU has not heard of is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Features {
    /// Soft-dirty memory tracking: pre-dumps and dumps against parent images.
    pub mem_track: Option<bool>,
    /// Lazy pages over userfaultfd.
    pub lazy_pages: Option<bool>,
    /// A store for pidfds that tells reused pids between pre-dumps. Since CRIU 3.16.
    pub pidfd_store: Option<bool>,
    /// Compressed memory images. Since CRIU 4.3.
    pub mem_compression: Option<bool>,
}

/// The outcome of CHECK.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Verdict {
    /// The CRIU that was asked.
    pub criu_version: Version,
    /// What CRIU prints for a person, such as `Looks good.`
    pub text: String,
}

impl Criu {
    /// The version. Needs no privilege.
    ///
    /// # Errors
    /// When CRIU cannot be started or reached, or does not answer.
    pub async fn version(&self) -> Result<Version> {
        let plan = Plan::new(OperationKind::Version, |_| CriuReqType::Version, nothing());
        let ended = complete(self.begin(plan).await?).await?;
        Ok(ended.running.version.clone())
    }

    /// Whether this kernel has what every dump needs.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`](crate::ErrorKind::Refused) when something is missing; the error's findings say what.
    pub async fn check(&self, options: CheckOptions) -> Result<Verdict> {
        let kind = OperationKind::Check;
        let prepared = options
            .prepare(FIRST_REQUEST_FD)
            .map_err(|error| Error::before(kind, error.into()))?;
        let mut plan = Plan::new(kind, |_| CriuReqType::Check, prepared);
        // Before 4.2 CRIU cannot check without a directory for its log.
        let directory = tempfile::tempdir()
            .and_then(|directory| Ok((ImagesDir::open(directory.path())?, directory)))
            .map_err(|error| {
                Error::precondition(
                    kind,
                    "no temporary directory can be made for the log",
                    Some(error),
                )
            })?;
        plan.images = Some(directory.0.clone());
        plan.log = Some("check");
        let ended = complete(self.begin(plan).await?).await?;
        Ok(Verdict {
            criu_version: ended.running.version.clone(),
            text: String::from_utf8_lossy(&ended.output.stdout)
                .trim_end()
                .to_owned(),
        })
    }

    /// What kernel and CRIU can do together. Needs CRIU's privileges.
    ///
    /// # Errors
    /// When CRIU cannot be started or reached, or fails to look.
    pub async fn features(&self) -> Result<Features> {
        let mut plan = Plan::new(
            OperationKind::FeatureCheck,
            |_| CriuReqType::FeatureCheck,
            nothing(),
        );
        plan.features = Some(CriuFeatures {
            mem_track: Some(true),
            lazy_pages: Some(true),
            pidfd_store: Some(true),
            mem_compression: Some(true),
        });
        let ended = complete(self.begin(plan).await?).await?;
        let Some(features) = ended.answer.features else {
            return Err(ended.missing("features"));
        };
        Ok(Features {
            mem_track: features.mem_track,
            lazy_pages: features.lazy_pages,
            pidfd_store: features.pidfd_store,
            mem_compression: features.mem_compression,
        })
    }

    /// Writes this machine's CPU into `images`, for [`Criu::cpuinfo_check`] on another.
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind).
    pub async fn cpuinfo_dump(&self, images: &ImagesDir, options: CpuinfoOptions) -> Result<()> {
        self.cpuinfo(OperationKind::CpuinfoDump, images, options)
            .await
            .map(drop)
    }

    /// Whether tasks from the machine whose CPU is described in `images` can run here.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`](crate::ErrorKind::Refused) when they cannot; the error's findings say what differs.
    pub async fn cpuinfo_check(&self, images: &ImagesDir, options: CpuinfoOptions) -> Result<()> {
        self.cpuinfo(OperationKind::CpuinfoCheck, images, options)
            .await
            .map(drop)
    }

    async fn cpuinfo(
        &self,
        kind: OperationKind,
        images: &ImagesDir,
        options: CpuinfoOptions,
    ) -> Result<Ended> {
        let prepared = options
            .prepare(FIRST_REQUEST_FD)
            .map_err(|error| Error::before(kind, error.into()))?;
        let request: fn(&Version) -> CriuReqType = match kind {
            OperationKind::CpuinfoDump => |_| CriuReqType::CpuinfoDump,
            _ => |_| CriuReqType::CpuinfoCheck,
        };
        let mut plan = Plan::new(kind, request, prepared);
        plan.images = Some(images.clone());
        plan.log = Some("cpuinfo");
        complete(self.begin(plan).await?).await
    }
}

fn nothing() -> Prepared {
    Prepared {
        opts: crate::rpc::wire::CriuOpts::default(),
        inherited: Vec::new(),
        held: Vec::new(),
        unknown: Vec::new(),
    }
}
