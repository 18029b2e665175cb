//! What cannot be done is said before anything happens.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use criu_client::ImagesDir;
use criu_client::container::runtime::{CheckpointOptions, RestoreOptions, Runtime};

use super::fixture::{Fixture, Program, whole};
use crate::support::{Outcome, Sealed, block_on, criu, ensure, text, until};

pub(super) fn all<E: Program>() -> Outcome {
    let mut box_ = Fixture::<E>::new("no")?;
    let (runtime, criu) = (box_.ours(), criu());
    let images = box_.images("images");
    let bundle = box_.bundle();
    let checkpoint = |id: &str, options: CheckpointOptions| {
        block_on(runtime.checkpoint(&criu, id, &images, (), options))
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    let restore = |id: &str, images: &ImagesDir, bundle: &Path, options: RestoreOptions| {
        block_on(runtime.restore(&criu, id, images, bundle, (), options))
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    let own = |command: &str| format!("{} {command}", E::NAME);
    let says = |said: String, words: &[&str]| -> Outcome {
        match words.iter().all(|word| said.contains(word)) {
            true => Ok(()),
            false => Err(format!("{said:?} does not say {words:?}")),
        }
    };
    let detached = || RestoreOptions::new().detach(true);

    says(
        checkpoint("nobody", CheckpointOptions::new()),
        &["nobody", "there is no such container", &own("list")],
    )?;
    says(
        checkpoint("../x", CheckpointOptions::new()),
        &["no name of a container"],
    )?;
    let id = box_.id.clone();
    let path = bundle.display().to_string();
    // The runtime's own output becomes the container's.
    let created = box_
        .command(&["create", "--bundle", &path, &id])?
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    ensure!(created.map_err(text)?.success(), "create");
    box_.inits.push(box_.pid()?);
    says(
        checkpoint(&id, CheckpointOptions::new()),
        &["created", &own("start")],
    )?;
    box_.delete()?;

    box_.start()?;
    ensure!(
        fs::read_dir(images.path()).map_err(text)?.count() == 0,
        "a refusal wrote into the images directory"
    );
    says(
        checkpoint(&id, CheckpointOptions::new().parent_path("/abs")),
        &["parent-path", "relative"],
    )?;
    says(
        checkpoint(&id, CheckpointOptions::new().parent_path("../none")),
        &["parent-path", "no directory"],
    )?;
    says(
        checkpoint(&id, CheckpointOptions::new().lazy_pages(true)),
        &["lazy-pages", "page-server"],
    )?;
    says(
        restore(&format!("{id}-b"), &images, &bundle, detached()),
        &["inventory.img", "no complete checkpoint"],
    )?;
    let options = CheckpointOptions::new().leave_running(true);
    block_on(runtime.checkpoint(&criu, &id, &images, (), options)).map_err(whole)?;
    says(
        restore(&id, &images, &bundle, detached()),
        &["exists and is running", &own("delete --force")],
    )?;
    // Its groups are taken even where its name is free.
    let elsewhere = Runtime::<E>::with_root(box_.directory.path().join("elsewhere"));
    let refused = block_on(elsewhere.restore(&criu, &id, &images, &bundle, (), detached()));
    says(
        refused
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default(),
        &["control group is not empty"],
    )?;
    box_.has_status("running")?;
    box_.counts()?;

    let state = box_.root().join(&id).join(E::RECORD);
    let whole_state = fs::read(&state).map_err(text)?;
    let truncated = whole_state.get(..whole_state.len() / 2).unwrap_or_default();
    for (bytes, words) in [
        (
            &br#"{"ociVersion":"9"}"#[..],
            format!("version of {}", E::NAME),
        ),
        (truncated, "is not".to_owned()),
    ] {
        fs::write(&state, bytes).map_err(text)?;
        says(
            checkpoint(&id, CheckpointOptions::new()),
            &[E::RECORD, &words],
        )?;
    }
    fs::write(&state, &whole_state).map_err(text)?;

    let sealed = Sealed::directory(&box_.directory.path().join("sealed"))?;
    let refused =
        block_on(runtime.checkpoint(&criu, &id, &sealed.images()?, (), CheckpointOptions::new()));
    says(
        refused.err().map(whole).unwrap_or_default(),
        &["sealed", "Read-only file system"],
    )?;
    drop(sealed);
    box_.has_status("running")?;
    box_.counts()?;

    box_.run(&["kill", &id, "KILL"])?;
    box_.reap();
    until("the runtime sees it stopped", || {
        box_.has_status("stopped").is_ok()
    })?;
    says(
        checkpoint(&id, CheckpointOptions::new()),
        &["stopped", &own("delete")],
    )?;
    says(
        restore(&id, &images, &bundle, detached()),
        &["exists and is stopped", &own("delete")],
    )?;
    box_.delete()?;

    says(
        restore(
            &id,
            &images,
            &box_.directory.path().join("none"),
            detached(),
        ),
        &["bundle"],
    )?;
    says(
        restore(&id, &images, box_.directory.path(), detached()),
        &["config.json", "no such file"],
    )?;
    let socket = RestoreOptions::new().console_socket("/none");
    says(
        restore(&id, &images, &bundle, socket),
        &["console-socket", "no"],
    )?;
    let config = bundle.join("config.json");
    let good = fs::read(&config).map_err(text)?;
    let with_bind = String::from_utf8_lossy(&good).replacen(
        "\"mounts\": [",
        r#""mounts": [{"destination":"/d","source":"/does/not/exist","options":["bind"]},"#,
        1,
    );
    fs::write(&config, with_bind).map_err(text)?;
    says(
        restore(&id, &images, &bundle, detached()),
        &["/does/not/exist", "is not there"],
    )?;
    fs::write(&config, &good).map_err(text)?;
    fs::remove_file(images.path().join("descriptors.json")).map_err(text)?;
    says(
        restore(&id, &images, &bundle, detached()),
        &["descriptors.json", "/dev/null"],
    )?;
    // Nothing of all that has left anything.
    box_.is_gone()
}
