//! The locks of single connections, in the namespace that CRIU shares with the tasks, after CRIU was killed.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use criu_client::notify::{Notify, Reply, Script, hook_fn};
use criu_client::options::{DumpOptions, Leave, NetworkLock};
use criu_client::{ErrorKind, ImagesDir, TaskState};

use crate::support::*;

pub(crate) fn tests() -> Vec<(String, Box<dyn Fn() -> Outcome + Send>)> {
    [
        ("iptables", NetworkLock::Iptables),
        ("nftables", NetworkLock::Nftables),
    ]
    .into_iter()
    .map(
        |(name, lock)| -> (String, Box<dyn Fn() -> Outcome + Send>) {
            let title = format!("netlock/connections/{name}/kill-criu");
            (
                title,
                Box::new(move || killed_with_connections_locked(lock)),
            )
        },
    )
    .collect()
}

/// Echoes what it gets over one connection. It waits in select(2), which does not fail in repair mode as recv(2) does.
struct Echo(Child);

impl Echo {
    fn start(port: u16) -> Result<Self, String> {
        let code = format!(
            "import select, socket\nc = socket.create_connection(('127.0.0.1', {port}))\n\
             while select.select([c], [], []):\n    c.sendall(c.recv(64))"
        );
        let mut command = Command::new("/usr/bin/python3");
        command
            .args(["-c", &code])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        command.spawn().map(Self).map_err(text)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn killed_with_connections_locked(lock: NetworkLock) -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(text)?;
    let port = listener.local_addr().map_err(text)?.port();
    let echo = Echo::start(port)?;
    let (mut connection, _) = listener.accept().map_err(text)?;
    connection.set_read_timeout(Some(PATIENCE)).map_err(text)?;
    let mut answers = |word: &[u8; 4]| -> Outcome {
        let mut answer = [0; 4];
        connection.write_all(word).map_err(text)?;
        connection.read_exact(&mut answer).map_err(text)?;
        ensure!(answer == *word, "the answer is {answer:?}");
        Ok(())
    };
    answers(b"ping")?;
    let directory = tempfile::tempdir().map_err(text)?;
    let before = rules(None);
    let mut locked = String::new();

    let hooks = hook_fn(|notify: Notify| {
        if notify.script() == Script::PostDump {
            locked = rules(None);
            let killed = kill_worker();
            return std::future::ready(killed.map(|()| Reply::Accept).map_err(Into::into));
        }
        std::future::ready(Ok(Reply::Accept))
    });
    let images = ImagesDir::open(directory.path()).map_err(text)?;
    let options = DumpOptions::new()
        .tcp_established(true)
        .shell_job(true)
        .network_lock(lock)
        .leave(Leave::Running);
    let error = match block_on(criu().dump(echo.0.id().cast_signed(), &images, hooks, options)) {
        Ok(report) => return Err(format!("the dump succeeded: {report:?}")),
        Err(error) => error,
    };
    ensure!(matches!(error.kind(), ErrorKind::Lost { .. }), "{error:?}");
    ensure!(error.tasks() == TaskState::Running, "{error:?}");
    ensure!(locked != before, "nothing was locked, so nothing is shown");
    ensure!(
        !error.undone().is_empty() && error.left_behind().is_empty(),
        "{error:?}"
    );
    let after = rules(None);
    ensure!(
        !after.contains(&port.to_string()) && !after.contains("CRIU"),
        "the lock was left behind:\n{after}"
    );
    answers(b"pong")
}
