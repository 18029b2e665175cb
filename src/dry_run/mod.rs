//! What an operation would do, as a value: the request field by field, the files, the steps in their order and how each is
//! undone.
//!
//! A [`Plan`] is the same for processes and for the containers of every engine. Making one does nothing but look: nothing is
//! made, frozen or sent but the question for CRIU's version, and every error that the operation would report before it acts
//! is reported. The operations themselves follow the same steps, and send the same request, so a plan tells what will happen
//! as long as nothing changes meanwhile.
//!
//! [`differences`] compares the options of two requests: of two plans, or of a plan with what an engine was heard to send
//! ([`options_sent`] makes that of a recorded message).

mod compare;
mod step;

use serde::Serialize;
use serde_json::{Map, Value};

pub(crate) use compare::name_descriptors;
pub use compare::{Difference, differences, options_sent};
pub use step::{Action, Step, Undo, When};

use crate::version::Version;

/// What an operation would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Plan {
    /// What CRIU would be asked; `None` where an engine asks it by itself.
    pub request: Option<PlannedRequest>,
    /// The files that would be written besides CRIU's images, log and statistics.
    pub files: Vec<std::path::PathBuf>,
    /// What would be done, in order.
    pub steps: Vec<Step>,
    /// What is to be known of it, in words.
    pub notes: Vec<String>,
}

impl Plan {
    /// A plan of these steps.
    #[must_use]
    pub fn new(request: Option<PlannedRequest>, steps: Vec<Step>, notes: Vec<String>) -> Self {
        let mut plan = Self {
            request,
            files: Vec::new(),
            steps: Vec::new(),
            notes,
        };
        for step in steps {
            plan.push(step);
        }
        plan
    }

    /// Adds a step at its place: behind all others of its time.
    pub fn push(&mut self, step: Step) {
        if let Action::WriteFile { path } | Action::WriteRecord { path } = &step.action {
            self.files.push(path.clone());
        }
        let at = self
            .steps
            .partition_point(|known| known.when.place() <= step.when.place());
        self.steps.insert(at, step);
    }
}

/// A request as CRIU would get it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct PlannedRequest {
    /// CRIU's name of it, such as `DUMP`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The version of the CRIU that would get it.
    pub criu_version: Version,
    /// What its program would be given before `swrk`.
    pub arguments: Vec<String>,
    /// The options that are set, under the protocol's names. In the place of a descriptor's number is what the descriptor is,
    /// as readlink(2) shows it (`images_dir_fd` and `work_dir_fd`: the directory, which may have to be made first).
    pub options: Map<String, Value>,
}
