//! What `criuctl -vv` shows of a container's checkpoint and restore.

use super::fixture::Fixture;
use crate::seen::{events, in_order};
use crate::support::{Outcome, text};

pub(super) fn of_a_container() -> Outcome {
    let mut fixture = Fixture::new("seen")?;
    fixture.start()?;
    let images = fixture.images("images");
    let target = format!("runc:{}", fixture.id);
    let root = fixture.root().display().to_string();
    let bundle = fixture.bundle().display().to_string();
    let field = ("container", target.as_str());
    let seen = events(
        &["checkpoint", &target, "--runc-root", &root],
        images.path(),
    )?;
    let steps = [
        "criu started",
        "sending request DUMP",
        "received answer DUMP",
        "criu ended",
    ];
    in_order(&seen, &steps, field)?;
    fixture.reap();
    let arguments = [
        "restore",
        &target,
        "--runc-root",
        &root,
        "--bundle",
        &bundle,
        "--detach",
    ];
    let seen = events(&arguments, images.path())?;
    fixture.inits.push(fixture.pid().map_err(text)?);
    let steps = [
        "criu started",
        "sending request RESTORE",
        "received answer RESTORE",
        "criu ended",
    ];
    in_order(&seen, &steps, field)?;
    fixture.is_handed_over()?;
    fixture.delete()
}
