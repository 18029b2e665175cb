//! What `criuctl -vv` shows of a container's checkpoint and restore.

use super::fixture::{Fixture, Program};
use crate::seen::{events, in_order};
use crate::support::{Outcome, text};

pub(super) fn of_a_container<E: Program>() -> Outcome {
    let mut fixture = Fixture::<E>::new("seen")?;
    fixture.start()?;
    let images = fixture.images("images");
    let target = format!("{}:{}", E::NAME, fixture.id);
    let option = format!("--{}-root", E::NAME);
    let root = fixture.root().display().to_string();
    let bundle = fixture.bundle().display().to_string();
    let field = ("container", target.as_str());
    let seen = events(&["checkpoint", &target, &option, &root], images.path())?;
    let steps = [
        "criu started",
        "sending request DUMP",
        "received answer DUMP",
        "criu ended",
    ];
    in_order(&seen, &steps, field)?;
    fixture.reap();
    let arguments = [
        "restore", &target, &option, &root, "--bundle", &bundle, "--detach",
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
