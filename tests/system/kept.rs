//! What a round trip must keep: each victim looks at what it has, before and after.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Mutex;

use criu_client::notify::{Event, HookError, Notify, Reply, hook_fn};
use criu_client::options::{DumpOptions, ExternalOnDump, InheritKey, RestoreOptions};

use crate::support::*;
use crate::victim::inode;

pub(crate) fn tests() -> Tests {
    let list: &[Test] = &[
        ("process-tree", process_tree),
        ("deleted-file-and-memfd", || plain_trip(Spec::role("files"))),
        ("big-memory", || {
            plain_trip(Spec::role("memory").argument(200))
        }),
        ("environment", environment),
        ("file-lock", file_lock),
        ("tcp-connection", tcp_connection),
        ("external-datagram-socket", external_datagram_socket),
        ("external-stream-socket", external_stream_socket),
        ("inherited-pipe", inherited_pipe),
        ("pid-namespace", pid_namespace),
        ("orphan-terminal", orphan_terminal),
    ];
    named("kept/", list)
}

fn plain_trip(spec: Spec) -> Outcome {
    trip(
        spec.start()?,
        DumpOptions::new(),
        RestoreOptions::new(),
        |_| Ok(()),
    )
}

/// Dumps for good, restores, and looks.
fn trip(
    mut victim: Victim,
    dump: DumpOptions,
    restore: RestoreOptions,
    also: impl FnOnce(&Victim) -> Outcome,
) -> Outcome {
    let images = victim.images("images");
    let traces = Traces::take();
    victim.goes_on()?;
    victim.killed_into(&images, dump)?;
    let report = block_on(criu().restore(&images, (), restore)).map_err(whole)?;
    ensure!(report.pid == victim.pid, "{report:?}");
    victim.goes_on()?;
    also(&victim)?;
    victim.end();
    drop(images);
    reap_orphans();
    traces.unchanged()
}

fn process_tree() -> Outcome {
    let victim = Spec::role("tree").start()?;
    let before = family(victim.pid);
    ensure!(before.0 == 2 && before.1 == 3, "{before:?}");
    trip(
        victim,
        DumpOptions::new(),
        RestoreOptions::new(),
        |victim| {
            let after = family(victim.pid);
            ensure!(after == before, "{before:?} became {after:?}");
            Ok(())
        },
    )
}

/// Number of children and of threads.
fn family(pid: i32) -> (usize, usize) {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let (mut children, mut count) = (0, 0);
    for thread in threads {
        count += 1;
        let list = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        children += list.split_whitespace().count();
    }
    (children, count)
}

fn environment() -> Outcome {
    let directory = tempfile::tempdir().map_err(text)?;
    let canonical = directory.path().canonicalize().map_err(text)?;
    let mut spec = Spec::role("environment").argument(canonical.display());
    spec.environment
        .push(("CRIU_CLIENT_VICTIM".into(), spec.argument.clone()));
    spec.directory = Some(canonical);
    plain_trip(spec)
}

fn file_lock() -> Outcome {
    let victim = Spec::role("lock").start()?;
    let path = victim.count_file().with_extension("lock");
    let is_held = move || -> Outcome {
        let file = File::open(&path).map_err(text)?;
        let lock = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
        ensure!(lock.is_err(), "nobody holds the lock");
        Ok(())
    };
    is_held()?;
    let (dump, restore) = (
        DumpOptions::new().file_locks(true),
        RestoreOptions::new().file_locks(true),
    );
    trip(victim, dump, restore, |_| is_held())
}

fn tcp_connection() -> Outcome {
    let victim = Spec::role("tcp").start()?;
    let (dump, restore) = (
        DumpOptions::new().tcp_established(true),
        RestoreOptions::new().tcp_established(true),
    );
    trip(victim, dump, restore, |victim| is_unlocked(victim.pid))
}

fn external_datagram_socket() -> Outcome {
    let directory = tempfile::tempdir().map_err(text)?;
    let path = directory.path().join("peer");
    let socket = UnixDatagram::bind(&path).map_err(text)?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(text)?;
    let victim = Spec::role("datagrams").argument(path.display()).start()?;
    let (dump, restore) = (
        DumpOptions::new().external_unix_sockets(true),
        RestoreOptions::new().external_unix_sockets(true),
    );
    trip(victim, dump, restore, |victim| {
        let now = victim.count().ok_or("no count")?;
        let mut bytes = [0; 8];
        loop {
            // What came before the dump is still queued.
            socket.recv(&mut bytes).map_err(text)?;
            if u64::from_ne_bytes(bytes) > now {
                return Ok(());
            }
        }
    })
}

/// A victim that writes to `theirs` is restored with a new stream in its place; `read` gets the new one's other end.
fn inherited<R: Read>(
    theirs: OwnedFd,
    new: OwnedFd,
    reader: R,
    key: InheritKey,
    dump: DumpOptions,
) -> Outcome {
    let mut spec = Spec::role("lines");
    spec.stdout = Some(theirs);
    let victim = spec.start()?;
    let restore = RestoreOptions::new().inherit_fd(key, new);
    trip_with_reader(victim, dump, restore, reader)
}

fn trip_with_reader<R: Read>(
    mut victim: Victim,
    dump: DumpOptions,
    restore: RestoreOptions,
    reader: R,
) -> Outcome {
    let images = victim.images("images");
    victim.killed_into(&images, dump)?;
    let count = victim.count().ok_or("no count")?;
    let report = block_on(criu().restore(&images, (), restore)).map_err(whole)?;
    ensure!(report.pid == victim.pid, "{report:?}");
    victim.goes_on()?;
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line).map_err(text)?;
    let first: u64 = line.trim().parse().map_err(|_| format!("read {line:?}"))?;
    ensure!(
        first.abs_diff(count) <= 2,
        "the first number is {first}, the count was {count}"
    );
    victim.end();
    Ok(())
}

fn inherited_pipe() -> Outcome {
    let (_reader, theirs) = std::io::pipe().map_err(text)?;
    let key = InheritKey::Pipe(inode(&theirs)?);
    let (reader, new) = std::io::pipe().map_err(text)?;
    inherited(theirs.into(), new.into(), reader, key, DumpOptions::new())
}

fn external_stream_socket() -> Outcome {
    let (_peer, theirs) = UnixStream::pair().map_err(text)?;
    let number = inode(&theirs)?;
    let (reader, new) = UnixStream::pair().map_err(text)?;
    let external = ExternalOnDump::UnixSocket {
        inode: u32::try_from(number).map_err(text)?,
    };
    let dump = DumpOptions::new().external(external);
    inherited(
        theirs.into(),
        new.into(),
        reader,
        InheritKey::Socket(number),
        dump,
    )
}

fn pid_namespace() -> Outcome {
    let mut victim = Spec {
        root: true,
        pid_namespace: true,
        ..Spec::role("plain")
    }
    .start()?;
    let images = victim.images("images");
    let traces = Traces::take();
    victim.killed_into(&images, victim.dump_options())?;
    let report = block_on(criu().restore(&images, (), victim.restore_options())).map_err(whole)?;
    victim.is_now(report.pid);
    let status = fs::read_to_string(format!("/proc/{}/status", report.pid)).map_err(text)?;
    let inside = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .unwrap_or_default();
    ensure!(
        inside.split_whitespace().nth(1) == Some("1"),
        "NSpid: {inside}"
    );
    victim.goes_on()?;
    victim.end();
    drop(images);
    traces.unchanged()
}

/// The hook gets the master of the restored terminal, and through it the restored program is talked to.
fn orphan_terminal() -> Outcome {
    let mut victim = Victim::start(Kind::Terminal)?;
    talk(victim.master.as_ref().ok_or("no master")?)?;
    let images = victim.images("images");
    let traces = Traces::take();
    victim.killed_into(&images, victim.dump_options())?;
    let master = Mutex::new(None);
    let hooks = hook_fn(async |notify: Notify| -> Result<Reply, HookError> {
        if let Event::OrphanPtsMaster { master: new } = notify.event {
            *master.lock().expect("the slot") = Some(new);
        }
        Ok(Reply::Accept)
    });
    let report =
        block_on(criu().restore(&images, hooks, victim.restore_options())).map_err(whole)?;
    ensure!(report.pid == victim.pid, "{report:?}");
    let master = master.into_inner().map_err(text)?.ok_or("no master came")?;
    let flags = rustix::io::fcntl_getfd(&master).map_err(text)?;
    ensure!(
        flags.contains(rustix::io::FdFlags::CLOEXEC),
        "the master would be inherited"
    );
    victim.goes_on()?;
    talk(&master)?;
    // Hung up, the program ends.
    drop(master);
    until("the program has been hung up", || !victim.exists())?;
    victim.end();
    drop(images);
    traces.unchanged()
}

/// Writes a line to the terminal and waits for the program's answer to it.
fn talk(master: &OwnedFd) -> Outcome {
    let word = format!("word-{}", std::process::id());
    let mut terminal = File::from(master.try_clone().map_err(text)?);
    terminal
        .write_all(format!("{word}\n").as_bytes())
        .map_err(text)?;
    rustix::io::ioctl_fionbio(master, true).map_err(text)?;
    let (mut heard, mut bytes) = (String::new(), [0; 256]);
    until("the terminal answers", || {
        while let Ok(read @ 1..) = terminal.read(&mut bytes) {
            heard.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
        heard.contains(&format!("heard {word}\r\n"))
    })
    .map_err(|error| format!("{error}: {heard:?}"))?;
    rustix::io::ioctl_fionbio(master, false).map_err(text)
}
