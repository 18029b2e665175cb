//! Questions that concern no task: VERSION, CHECK, FEATURE_CHECK, CPUINFO_DUMP, CPUINFO_CHECK.

use serde::Serialize;
use tempfile::TempDir;

use super::settle::Ended;
use super::{Criu, ImagesDir, Plan, complete};
use crate::error::{Error, OperationKind, Result};
use crate::options::{CheckOptions, CpuinfoOptions, Prepared};
use crate::rpc::swrk::FIRST_REQUEST_FD;
use crate::rpc::wire::{CriuFeatures, CriuReqType, CriuResp};
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
        let ended = complete(self.begin(version_plan()).await?).await?;
        Ok(ended.running.version.clone())
    }

    /// Whether this kernel has what every dump needs.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`](crate::ErrorKind::Refused) when something is missing; the error's findings say what.
    pub async fn check(&self, options: CheckOptions) -> Result<Verdict> {
        let (plan, _directory) = check_plan(options)?;
        let ended = complete(self.begin(plan).await?).await?;
        Ok(Verdict::of(&ended))
    }

    /// What kernel and CRIU can do together. Needs CRIU's privileges.
    ///
    /// # Errors
    /// When CRIU cannot be started or reached, or fails to look.
    pub async fn features(&self) -> Result<Features> {
        let ended = complete(self.begin(features_plan()).await?).await?;
        match Features::of(&ended.answer) {
            Some(features) => Ok(features),
            None => Err(ended.missing("features")),
        }
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
        let plan = cpuinfo_plan(kind, images, options)?;
        complete(self.begin(plan).await?).await
    }
}

impl Features {
    pub(super) fn of(answer: &CriuResp) -> Option<Self> {
        answer.features.map(|features| Self {
            mem_track: features.mem_track,
            lazy_pages: features.lazy_pages,
            pidfd_store: features.pidfd_store,
            mem_compression: features.mem_compression,
        })
    }
}

impl Verdict {
    pub(super) fn of(ended: &Ended) -> Self {
        Self {
            criu_version: ended.running.version.clone(),
            text: String::from_utf8_lossy(&ended.output.stdout)
                .trim_end()
                .to_owned(),
        }
    }
}

/// The directory is that of the log and must be there until CRIU has answered.
pub(super) fn check_plan(options: CheckOptions) -> Result<(Plan, TempDir)> {
    let kind = OperationKind::Check;
    let prepared = options
        .prepare(FIRST_REQUEST_FD)
        .map_err(|error| Error::before(kind, error.into()))?;
    let mut plan = Plan::new(kind, |_| CriuReqType::Check, prepared);
    // Before 4.2 CRIU cannot check without a directory for its log.
    let (images, directory) = tempfile::tempdir()
        .and_then(|directory| Ok((ImagesDir::open(directory.path())?, directory)))
        .map_err(|error| {
            let what = "no temporary directory can be made for the log";
            Error::precondition(kind, what, Some(error))
        })?;
    plan.images = Some(images);
    plan.log = Some("check");
    Ok((plan, directory))
}

pub(super) fn features_plan() -> Plan {
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
    plan
}

pub(super) fn cpuinfo_plan(
    kind: OperationKind,
    images: &ImagesDir,
    options: CpuinfoOptions,
) -> Result<Plan> {
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
    Ok(plan)
}

/// The question that opens every connection.
pub(super) fn version_plan() -> Plan {
    Plan::new(OperationKind::Version, |_| CriuReqType::Version, nothing())
}

fn nothing() -> Prepared {
    Prepared {
        opts: crate::rpc::wire::CriuOpts::default(),
        work_path: None,
        inherited: Vec::new(),
        held: Vec::new(),
        unknown: Vec::new(),
    }
}
