//! The unit of systemd's that a restored container gets.

use super::Engine;
use super::prepare::Prepared;
use crate::container::adopt::Journal;
use crate::container::cgroup::{Scope, properties, systemd};
use crate::container::error::ErrorKind;
use crate::container::model::Model;
use crate::container::oci::CONFIG;

/// The group within a container's scope in which a process holds the place, until the container's own have it.
const SEAT: &str = "criuctl-restore";

/// Has systemd start the container's scope, with its limits and with whatever else its annotations name.
pub(super) async fn start<E: Engine>(
    prepared: &Prepared<E>,
    journal: &mut Journal,
    scope: &Scope,
) -> std::result::Result<Vec<String>, ErrorKind> {
    let (model, unified) = (&prepared.model, prepared.host.is_unified());
    let (mut properties, notes) =
        properties::of_limits(&model.limits, unified, &prepared.changed_limits);
    properties.extend(annotated(model)?);
    // On version 1 tasks and groups may be in one group.
    let aside = prepared.host.scope(scope).filter(|_| unified);
    let pid = journal
        .starting_unit(&scope.unit, aside.map(|group| group.join(SEAT)))
        .map_err(ErrorKind::system("starting a process for systemd's unit"))?;
    let description = E::description(&model.id);
    let started = systemd::start(scope, &description, pid, unified, properties).await?;
    journal.started_unit(started).map_err(ErrorKind::system(
        "moving a process aside in systemd's unit",
    ))?;
    Ok(notes)
}

/// The properties of its unit that a container's annotations name.
pub(super) fn annotated(
    model: &Model,
) -> std::result::Result<Vec<properties::Property>, ErrorKind> {
    properties::annotated(&model.annotations).map_err(|(key, text)| ErrorKind::Bundle {
        path: model.bundle.join(CONFIG),
        problem: format!(
            "the annotation {key} is {text:?}, which is no value as systemd's are written here: 'text', ['a', 'b'], true, uint64 5"
        ),
        source: None,
    })
}
