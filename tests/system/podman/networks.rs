//! Containers and what they share or publish.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use criu_client::container::podman::{CheckpointOptions, RestoreOptions};

use super::fixture::{Box_, with};
use crate::engines::{COUNTER, Engine, Program};
use crate::support::{Outcome, ensure, free_port, text, until};

/// Says back what it is told.
const ECHO: [&str; 8] = [
    "/bin/busybox",
    "nc",
    "-ll",
    "-p",
    "80",
    "-e",
    "/bin/busybox",
    "cat",
];

fn says_back(stream: &mut TcpStream, word: &[u8; 4]) -> Outcome {
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .map_err(text)?;
    stream.write_all(word).map_err(text)?;
    let mut heard = [0; 4];
    stream.read_exact(&mut heard).map_err(text)?;
    ensure!(heard == *word, "{heard:?}");
    Ok(())
}

fn addresses(box_: &Box_) -> Result<(String, String), String> {
    let settings = box_.inspect()?["NetworkSettings"].take();
    let text_of = |key: &str| settings[key].as_str().unwrap_or_default().to_owned();
    Ok((text_of("IPAddress"), text_of("MacAddress")))
}

pub(super) fn bridge(program: Program) -> Outcome {
    with(program, |box_| {
        let port = free_port();
        let publish = format!("127.0.0.1:{port}:80");
        box_.engine.run_container(&["--publish", &publish], &ECHO)?;
        let had = addresses(box_)?;
        ensure!(!had.0.is_empty() && !had.1.is_empty(), "{had:?}");
        let published = || TcpStream::connect(("127.0.0.1", port)).map_err(text);
        until("the container listens", || {
            published()
                .and_then(|mut stream| says_back(&mut stream, b"port"))
                .is_ok()
        })?;
        let mut kept = TcpStream::connect((had.0.as_str(), 80)).map_err(text)?;
        says_back(&mut kept, b"one\n")?;

        let images = box_.images("images")?;
        let options = CheckpointOptions::new().tcp_established(true);
        box_.checkpoint_with(&images, options)?;
        let options = RestoreOptions::new().tcp_established(true);
        let restored = box_.restore_with(&images, options)?;
        ensure!(restored.notes.is_empty(), "{:?}", restored.notes);
        ensure!(addresses(box_)? == had, "{had:?} {:?}", addresses(box_));
        says_back(&mut kept, b"two\n")?;
        says_back(&mut published()?, b"new\n")?;

        // Without Podman's note of them it says so.
        box_.stop()?;
        std::fs::remove_file(images.path().join("network.status")).map_err(text)?;
        let options = RestoreOptions::new().tcp_established(true);
        let restored = crate::support::block_on(box_.ours().restore(&box_.id(), &images, options));
        let notes = match restored {
            Ok(restored) => restored.notes,
            // The connection's address may be another container's by then.
            Err(error) => {
                ensure!(error.code() == "engine-restore", "{error}");
                return Ok(());
            }
        };
        ensure!(
            notes.iter().any(|note| note.contains("network.status")),
            "{notes:?}"
        );
        Ok(())
    })
}

pub(super) fn host(program: Program) -> Outcome {
    with(program, |box_| {
        let volume = box_.engine.ground().volume();
        box_.engine
            .run_container(&["--network", "host", "--volume", &volume], &COUNTER)?;
        box_.engine.ground().counts()?;
        let images = box_.images("images")?;
        box_.checkpoint(&images)?;
        let counted = box_.engine.ground().stands_still()?;
        let restored = box_.restore(&images)?;
        box_.engine.ground().goes_on_from(&counted)?;
        let pid = restored.container.pid.ok_or("no pid")?;
        let network = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net"));
        ensure!(
            network(&pid.to_string()).ok() == network("self").ok(),
            "it is in another network"
        );
        Ok(())
    })
}

/// A container in the network of another, outside a pod.
pub(super) fn lent(program: Program) -> Outcome {
    with(program, |box_| {
        let lender = box_.engine.run_container(&["--network", "none"], &ECHO)?;
        let volume = box_.engine.ground().volume();
        let network = format!("container:{lender}");
        box_.engine
            .run_container(&["--network", &network, "--volume", &volume], &COUNTER)?;
        box_.engine.ground().counts()?;
        let images = box_.images("images")?;
        box_.checkpoint(&images)?;
        let counted = box_.engine.ground().stands_still()?;
        let restored = box_.restore(&images)?;
        box_.engine.ground().goes_on_from(&counted)?;
        let lender = box_.podman(&["inspect", "--format", "{{.State.Pid}}", &lender])?;
        let network = |pid: &str| std::fs::read_link(format!("/proc/{}/ns/net", pid.trim()));
        let pid = restored.container.pid.ok_or("no pid")?.to_string();
        ensure!(
            network(&pid).map_err(text)? == network(&lender).map_err(text)?,
            "it is in another network"
        );
        Ok(())
    })
}

pub(super) fn pod(program: Program) -> Outcome {
    with(program, |box_| {
        let group = box_.engine.ground().group();
        let pod = format!("{}-pod", box_.engine.ground().id);
        box_.podman(&[
            "pod",
            "create",
            "--name",
            &pod,
            "--cgroup-parent",
            &group,
            "--infra-image",
            crate::engines::IMAGE,
            "--infra-command",
            "/bin/sleep 1000",
        ])?;
        let done = in_pod(box_, &pod);
        box_.podman(&["pod", "rm", "--force", "--time", "0", &pod])?;
        done
    })
}

fn in_pod(box_: &mut Box_, pod: &str) -> Outcome {
    let volume = box_.engine.ground().volume();
    let image = crate::engines::IMAGE;
    let mut other = vec!["run", "--detach", "--pod", pod, image];
    other.extend(ECHO);
    let other = box_.podman(&other)?.trim().to_owned();
    let mut counter = vec!["run", "--detach", "--pod", pod, "--volume", &volume, image];
    counter.extend(COUNTER);
    let id = box_.podman(&counter)?.trim().to_owned();
    box_.engine.is_called(&id);
    box_.engine.ground().counts()?;
    let pid = box_.podman(&["inspect", "--format", "{{.State.Pid}}", &other])?;
    let talks = || -> Outcome {
        let output = Command::new("/usr/bin/nsenter")
            .args(["--target", pid.trim(), "--net", "/bin/busybox", "sh", "-c"])
            .arg("echo word | /bin/busybox nc -w 5 127.0.0.1 80")
            .output()
            .map_err(text)?;
        ensure!(output.stdout == b"word\n", "{output:?}");
        Ok(())
    };
    until("the other listens", || talks().is_ok())?;
    let images = box_.images("images")?;
    let infra = box_.podman(&["ps", "--quiet", "--no-trunc", "--filter", "name=infra"])?;
    box_.engine.is_called(infra.trim());
    let refused = box_.checkpoint(&images);
    box_.engine.is_called(&id);
    let refused = refused.err().ok_or("the pod was to lose its namespaces")?;
    ensure!(
        refused.contains("\"policy\"") && refused.contains("of a pod"),
        "{refused}"
    );
    let established = CheckpointOptions::new().tcp_established(true);
    let refused = box_.checkpoint_with(&images, established);
    let refused = refused.err().ok_or("the others were to be locked in")?;
    ensure!(refused.contains("network-lock"), "{refused}");

    box_.checkpoint(&images)?;
    talks().map_err(|error| format!("after the checkpoint: {error}"))?;
    let counted = box_.engine.ground().stands_still()?;
    box_.restore(&images)?;
    box_.engine.ground().goes_on_from(&counted)?;
    talks().map_err(|error| format!("after the restore: {error}"))
}
