//! The engines that an ordinary host has as services, in place of ones that a test starts: see `scripts/vm --host`.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Environment;
use crate::support::{Outcome, ensure};

static USED: AtomicBool = AtomicBool::new(false);

/// From now on, tests of Docker and Podman are of the machine's own.
pub(crate) fn use_services() {
    USED.store(true, Ordering::Relaxed);
}

pub(crate) fn services() -> bool {
    USED.load(Ordering::Relaxed)
}

/// What a test gives an engine that it starts, a service has not got.
pub(super) fn takes(environment: &Environment) -> Outcome {
    let nothing = environment.first_on_path.is_none() && environment.variables.is_empty();
    ensure!(nothing, "a service does not take {environment:?}");
    Ok(())
}
