//! Several questions over one connection, to every CRIU that is tested and to a service.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use criu_client::options::{CheckOptions, CpuinfoOptions};
use criu_client::{Criu, ImagesDir};

use crate::support::*;

pub(crate) fn tests() -> Tests {
    named(
        "connection/",
        &[
            ("installed", || all_questions(&criu(), true)),
            ("4.1.1", || all_questions(&side_by_side("4.1.1")?, true)),
            ("4.3", || all_questions(&side_by_side("4.3")?, true)),
            ("service", of_a_service),
            ("one-worker-for-check", one_worker),
        ],
    )
}

fn side_by_side(version: &str) -> Result<Criu, String> {
    let program =
        Path::new("/var/lib/criu-client-test").join(format!("criu-{version}/usr/sbin/criu"));
    ensure!(
        program.exists(),
        "there is no {}; run scripts/install",
        program.display()
    );
    Ok(Criu::at(program))
}

/// A service's worker writes its verdict where the service was started.
fn all_questions(criu: &Criu, has_words: bool) -> Outcome {
    let directory = tempfile::tempdir().map_err(text)?;
    let traces = Traces::take();
    block_on(async {
        let images = ImagesDir::open(directory.path()).map_err(text)?;
        let mut connection = criu.connect().await.map_err(whole)?;
        let features = connection.features().await.map_err(whole)?;
        ensure!(features.lazy_pages == Some(true), "{features:?}");
        let options = CpuinfoOptions::new;
        connection
            .cpuinfo_dump(&images, options())
            .await
            .map_err(whole)?;
        connection
            .cpuinfo_check(&images, options())
            .await
            .map_err(whole)?;
        let again = connection.features().await.map_err(whole)?;
        ensure!(again == features, "{again:?} after {features:?}");
        ensure!(connection.is_open(), "{connection:?}");
        let version = connection.version().clone();
        let verdict = connection.check(CheckOptions::new()).await.map_err(whole)?;
        ensure!(verdict.criu_version == version, "{verdict:?}");
        ensure!(
            !has_words || verdict.text.contains("Looks good"),
            "{verdict:?}"
        );

        let mut connection = criu.connect().await.map_err(whole)?;
        connection.features().await.map_err(whole)?;
        connection.close().await;
        drop(criu.connect().await.map_err(whole)?);
        criu.settled().await;
        Ok(())
    })?;
    traces.unchanged()
}

fn of_a_service() -> Outcome {
    let directory = tempfile::tempdir().map_err(text)?;
    let socket = directory.path().join("socket");
    let mut service = Command::new(criu().program().ok_or("no program")?)
        .args(["service", "--address"])
        .arg(&socket)
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(text)?;
    let outcome = until("the service listens", || socket.exists())
        .and_then(|()| all_questions(&Criu::service(&socket), false));
    service.kill().map_err(text)?;
    service.wait().map_err(text)?;
    outcome
}

/// `criuctl check` and `criuctl features` start CRIU once: a program in its place counts.
fn one_worker() -> Outcome {
    use std::os::unix::fs::PermissionsExt;

    let directory = tempfile::tempdir().map_err(text)?;
    let counted: PathBuf = directory.path().join("criu");
    let real = criu().program().ok_or("no program")?.display().to_string();
    let list = directory.path().join("started");
    let script = format!(
        "#!/bin/sh\necho once >> '{}'\nexec '{real}' \"$@\"\n",
        list.display()
    );
    std::fs::write(&counted, script).map_err(text)?;
    std::fs::set_permissions(&counted, std::fs::Permissions::from_mode(0o755)).map_err(text)?;
    for verb in ["check", "features", "version"] {
        let output = Command::new(env!("CARGO_BIN_EXE_criuctl"))
            .arg("--criu")
            .arg(&counted)
            .arg(verb)
            .output()
            .map_err(text)?;
        ensure!(
            output.status.success(),
            "{verb}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let started = std::fs::read_to_string(&list).map_err(text)?;
        ensure!(started == "once\n", "{verb}: {started}");
        std::fs::remove_file(&list).map_err(text)?;
    }
    Ok(())
}
