//! Requests that are shown instead of sent.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::images::Log;
use super::request::mark;
use super::running::{Held, conclude};
use super::{Criu, ImagesDir, Plan};
use crate::dry_run::{self, Action, PlannedRequest, Step, When};
use crate::error::{Error, OperationKind, Result};
use crate::options::{DumpOptions, PreDumpOptions, RestoreOptions, encode_request};
use crate::rpc::swrk::FIRST_REQUEST_FD;
use crate::rpc::view::{CRIU_REQ, view};
use crate::rpc::wire::CriuReq;

impl Criu {
    /// What [`Criu::dump`] into the directory `images`, which need not be there, would ask and do. Nothing is done but asking
    /// CRIU its version.
    ///
    /// # Errors
    /// Those of [`Criu::dump`] that come before the request.
    pub async fn plan_dump(
        &self,
        pid: i32,
        images: impl AsRef<Path>,
        options: DumpOptions,
    ) -> Result<dry_run::Plan> {
        let plan = self.dump_plan(pid, options).await?;
        self.shown(plan, images.as_ref()).await
    }

    /// What [`Criu::pre_dump`] would ask and do, as [`Criu::plan_dump`].
    ///
    /// # Errors
    /// Those of [`Criu::pre_dump`] that come before the request.
    pub async fn plan_pre_dump(
        &self,
        pid: i32,
        images: impl AsRef<Path>,
        options: PreDumpOptions,
    ) -> Result<dry_run::Plan> {
        let plan = self.pre_dump_plan(pid, options).await?;
        self.shown(plan, images.as_ref()).await
    }

    /// What [`Criu::restore`], or with `child` [`Criu::restore_child`], would ask and do. Nothing is done but asking CRIU its
    /// version, and no pid is waited for that a zombie still has.
    ///
    /// # Errors
    /// Those of [`Criu::restore`] that come before the request.
    pub async fn plan_restore(
        &self,
        images: &ImagesDir,
        child: bool,
        options: RestoreOptions,
    ) -> Result<dry_run::Plan> {
        let (plan, pids) = self.restore_plan(images, options, child)?;
        self.are_free(&pids).await?;
        self.shown(plan, images.path()).await
    }

    async fn shown(&self, mut plan: Plan, images: &Path) -> Result<dry_run::Plan> {
        let kind = plan.kind;
        self.allows(&plan)?;
        let numbered = numbered(&plan);
        let (mut running, answer) = self
            .open(&mut plan, &mark(), tracing::Span::current())
            .await?;
        let version = running.version.clone();
        // With its last answer CRIU ends by itself when we hang up. There is nothing to fail.
        running.answer = Some(answer);
        let _ = conclude(&mut Held::new(running)).await;

        let request = plan.settle(&version)?;
        let stem = plan.log_stem();
        let prepared = plan.prepared;
        let mut opts = prepared.opts;
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(|error| {
                let what = format!("{} is no path", path.display());
                Error::precondition(kind, what, Some(error))
            })
        };
        let images = absolute(images)?;
        let mut steps = vec![make_directory(kind, &images)?];
        let work = match prepared.work_path {
            Some(path) => {
                let path = absolute(&path)?;
                steps.push(make_directory(kind, &path)?);
                // Stands for the number that its descriptor will have.
                opts.work_dir_fd = Some(opts.work_dir_fd.unwrap_or_default());
                path
            }
            None => opts
                .work_dir_fd
                .and_then(|number| numbered.get(&number))
                .map_or_else(|| images.clone(), PathBuf::from),
        };
        if let Some(stem) = stem {
            let name = match opts.log_file.take() {
                Some(name) => name,
                None => Log::free_name(&work, stem).map_err(|error| {
                    let what = format!("no log can be written in {}", work.display());
                    Error::precondition(kind, what, Some(error))
                })?,
            };
            steps.push(Step::before(Action::WriteLog {
                path: work.join(&name),
            }));
            opts.log_file = Some(name);
        }
        let message = CriuReq {
            r#type: request.into(),
            keep_open: plan.keep_open.then_some(true),
            features: plan.features,
            opts: Some(opts),
            ..Default::default()
        };
        let mut options = view(&encode_request(message, &prepared.unknown), &CRIU_REQ)
            .ok()
            .and_then(|mut request| match request.remove("opts") {
                Some(Value::Object(options)) => Some(options),
                _ => None,
            })
            .unwrap_or_default();
        let target = |option: &str, number: &Value| match option {
            "images_dir_fd" => Some(images.display().to_string()),
            "work_dir_fd" => Some(work.display().to_string()),
            _ => {
                let number = i32::try_from(number.as_i64()?).ok()?;
                numbered.get(&number).cloned()
            }
        };
        dry_run::name_descriptors(&mut options, target);
        let name = request.as_str_name();
        steps.push(Step::new(
            When::Request,
            Action::Ask {
                request: name.into(),
            },
        ));
        let request = PlannedRequest {
            kind: name.into(),
            criu_version: version,
            arguments: self
                .arguments
                .iter()
                .map(|argument| argument.to_string_lossy().into_owned())
                .collect(),
            options,
        };
        Ok(dry_run::Plan::new(Some(request), steps, Vec::new()))
    }
}

/// What the descriptors of a request are, by their numbers: in CRIU for those that it inherits, here for all others.
fn numbered(plan: &Plan) -> HashMap<i32, String> {
    let inherited = (FIRST_REQUEST_FD..).zip(&plan.prepared.inherited);
    let held = plan.prepared.held.iter().map(|fd| (fd.as_raw_fd(), fd));
    let target = |fd: &OwnedFd| {
        let target = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        target
            .map(|target| target.to_string_lossy().into_owned())
            .ok()
    };
    held.chain(inherited)
        .filter_map(|(number, fd)| Some((number, target(fd)?)))
        .collect()
}

fn make_directory(kind: OperationKind, path: &Path) -> Result<Step> {
    let make = ImagesDir::missing(path).map_err(|error| {
        let what = format!("{} cannot be made", path.display());
        Error::precondition(kind, what, Some(error))
    })?;
    Ok(Step::before(Action::MakeDirectory {
        path: path.to_owned(),
        make,
    }))
}
