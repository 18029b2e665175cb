//! Memory that goes another way than through the images directory: page servers and lazy pages.

use std::fs;
use std::os::unix::net::UnixStream;

use criu_client::notify::{Notify, Reply, Script, hook_fn};
use criu_client::options::{DumpOptions, PageServerOptions, PageTransport, RestoreOptions};
use criu_client::{ErrorKind, Exit, ImagesDir, LazyPagesOptions, TaskState};

use crate::support::*;

const MEBIBYTES: usize = 48;

pub(crate) fn tests() -> Tests {
    let list: &[Test] = &[
        ("page-server/tcp", page_server_over_tcp),
        ("page-server/connected-socket", page_server_over_a_socket),
        ("page-server/dropped", page_server_dropped),
        ("page-server/killed", page_server_killed),
        ("page-server/detached", page_server_detached),
        ("lazy-pages/local", lazy_restore),
        ("lazy-pages/work-directory", lazy_restore_elsewhere),
        ("lazy-pages/remote", lazy_migration),
        ("lazy-pages/dropped", lazy_pages_dropped),
        ("lazy-pages/any-address", lazy_pages_from_anywhere),
        ("lazy-pages/no-images", lazy_pages_without_images),
    ];
    named("", list)
}

fn memory() -> Result<Victim, String> {
    Spec::role("memory").argument(MEBIBYTES).start()
}

/// How many bytes of memory are in the images.
fn pages_in(images: &ImagesDir) -> Result<u64, String> {
    let mut bytes = 0;
    for entry in fs::read_dir(images.path()).map_err(text)? {
        let entry = entry.map_err(text)?;
        if entry.file_name().to_string_lossy().starts_with("pages-") {
            bytes += entry.metadata().map_err(text)?.len();
        }
    }
    Ok(bytes)
}

/// Moves what a page server has stored to the rest of the images.
fn merge(pages: &ImagesDir, images: &ImagesDir) -> Outcome {
    let mut moved = 0;
    for entry in fs::read_dir(pages.path()).map_err(text)? {
        let entry = entry.map_err(text)?;
        if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "img")
        {
            fs::rename(entry.path(), images.path().join(entry.file_name())).map_err(text)?;
            moved += 1;
        }
    }
    ensure!(moved > 0, "the page server has stored nothing");
    Ok(())
}

fn restored_from(mut victim: Victim, images: ImagesDir, traces: Traces) -> Outcome {
    let report = block_on(criu().restore(&images, (), RestoreOptions::new())).map_err(whole)?;
    ensure!(report.pid == victim.pid, "{report:?}");
    victim.goes_on()?;
    victim.end();
    drop(images);
    traces.unchanged()
}

fn page_server_over_tcp() -> Outcome {
    let transport = PageTransport::tcp("127.0.0.1", 0);
    with_page_server(transport, |port| {
        Ok(PageTransport::tcp("127.0.0.1", port.ok_or("no port")?))
    })
}

fn page_server_over_a_socket() -> Outcome {
    let (ours, theirs) = UnixStream::pair().map_err(text)?;
    with_page_server(PageTransport::Connected(theirs.into()), |port| {
        ensure!(port.is_none(), "it listens at {port:?}");
        Ok(PageTransport::Connected(ours.into()))
    })
}

fn with_page_server(
    receiver: PageTransport,
    sender: impl FnOnce(Option<u16>) -> Result<PageTransport, String>,
) -> Outcome {
    let mut victim = memory()?;
    let (images, pages) = (victim.images("images"), victim.images("pages"));
    block_on(async {
        let server = criu()
            .page_server(&pages, PageServerOptions::new().transport(receiver))
            .await
            .map_err(whole)?;
        let options = DumpOptions::new().page_server(sender(server.port())?);
        let report = criu()
            .dump(victim.pid, &images, (), options)
            .await
            .map_err(whole)?;
        ensure!(report.tasks == TaskState::Absent, "{report:?}");
        server.wait().await.map_err(whole)
    })?;
    victim.reap()?;
    let kept = pages_in(&images)?;
    ensure!(kept == 0, "the sender has kept {kept} bytes of memory");
    let traces = Traces::take();
    merge(&pages, &images)?;
    restored_from(victim, images, traces)
}

fn page_server_dropped() -> Outcome {
    let directory = tempfile::tempdir().map_err(text)?;
    let traces = Traces::take();
    let pages = ImagesDir::open(directory.path()).map_err(text)?;
    let criu = criu();
    let pid = block_on(async {
        let options = PageServerOptions::new().transport(PageTransport::tcp("127.0.0.1", 0));
        let server = criu.page_server(&pages, options).await.map_err(whole)?;
        let pid = server.pid();
        ensure!(state(pid).is_some(), "there is no process {pid}");
        drop(server);
        criu.settled().await;
        Ok(pid)
    })?;
    until("the page server is gone", || {
        reap_orphans();
        state(pid).is_none()
    })?;
    drop(pages);
    traces.unchanged()
}

/// A page server that is killed makes both sides fail, and the tasks run on.
fn page_server_killed() -> Outcome {
    let victim = memory()?;
    let (images, pages) = (victim.images("images"), victim.images("pages"));
    let traces = Traces::take();
    let (error, waited) = block_on(async {
        let options = PageServerOptions::new().transport(PageTransport::tcp("127.0.0.1", 0));
        let server = criu().page_server(&pages, options).await.map_err(whole)?;
        let pid = nix::unistd::Pid::from_raw(server.pid());
        let hooks = hook_fn(async |notify: Notify| {
            if notify.script() == Script::QueryExternalFiles {
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
            }
            Ok(Reply::Accept)
        });
        let port = server.port().ok_or("no port")?;
        let options = DumpOptions::new().page_server(PageTransport::tcp("127.0.0.1", port));
        match criu().dump(victim.pid, &images, hooks, options).await {
            Ok(report) => Err(format!("the dump succeeded: {report:?}")),
            Err(error) => Ok((error, server.wait().await)),
        }
    })?;
    ensure!(
        matches!(error.kind(), ErrorKind::Refused { .. }),
        "{error:?}"
    );
    ensure!(error.tasks() == TaskState::Running, "{error:?}");
    let told = waited
        .as_ref()
        .is_err_and(|error| error.exit() == Some(Exit::Signal(libc::SIGKILL)));
    ensure!(told, "{waited:?}");
    victim.goes_on()?;
    drop((images, pages));
    traces.unchanged()
}

fn page_server_detached() -> Outcome {
    let mut victim = memory()?;
    let (images, pages) = (victim.images("images"), victim.images("pages"));
    let traces = Traces::take();
    let mut servers = Vec::new();
    block_on(async {
        let options = PageServerOptions::new().transport(PageTransport::tcp("127.0.0.1", 0));
        let server = criu()
            .page_server_detached(&pages, options)
            .await
            .map_err(whole)?;
        servers = workers_of(std::process::id());
        let port = server.port.ok_or("no port")?;
        let options = DumpOptions::new().page_server(PageTransport::tcp("127.0.0.1", port));
        criu()
            .dump(victim.pid, &images, (), options)
            .await
            .map_err(whole)
    })?;
    victim.reap()?;
    // Nobody can wait for it but its new parent, which is us.
    until("the page server has ended", || {
        reap_orphans();
        servers.iter().all(|pid| state(*pid).is_none())
    })?;
    merge(&pages, &images)?;
    drop(pages);
    restored_from(victim, images, traces)
}

fn lazy_restore() -> Outcome {
    lazily_restored(|victim| (victim.images("images"), None))
}

fn lazy_restore_elsewhere() -> Outcome {
    lazily_restored(|victim| (victim.images("images"), Some(victim.images("work"))))
}

fn lazily_restored(directories: impl FnOnce(&Victim) -> (ImagesDir, Option<ImagesDir>)) -> Outcome {
    let mut victim = memory()?;
    let (images, work) = directories(&victim);
    let traces = Traces::take();
    victim.killed_into(&images, DumpOptions::new())?;
    block_on(async {
        let mut daemon_options = LazyPagesOptions::new();
        let mut options = RestoreOptions::new().lazy_pages(true);
        if let Some(work) = &work {
            daemon_options = daemon_options.work_dir(work.clone());
            options = options.work_dir(rustix::io::fcntl_dupfd_cloexec(work, 3).map_err(text)?);
        }
        let daemon = criu()
            .lazy_pages(&images, daemon_options)
            .await
            .map_err(whole)?;
        ensure!(
            daemon.socket().exists(),
            "there is no {}",
            daemon.socket().display()
        );
        let report = criu().restore(&images, (), options).await.map_err(whole)?;
        ensure!(report.pid == victim.pid, "{report:?}");
        daemon.wait().await.map_err(whole)
    })?;
    victim.goes_on()?;
    victim.end();
    drop((images, work));
    traces.unchanged()
}

/// The source of a lazy migration needs a pipe of this size, which a CRIU without CAP_SYS_RESOURCE does not get where
/// the limit is lower.
const PIPE: u64 = 4 << 20;
const PIPE_LIMIT: &str = "/proc/sys/fs/pipe-max-size";

/// The limit on pipes, raised for as long as a test runs.
struct BigPipes(Option<u64>);

impl BigPipes {
    fn allowed() -> Result<Self, String> {
        let limit: u64 = fs::read_to_string(PIPE_LIMIT)
            .map_err(text)?
            .trim()
            .parse()
            .map_err(text)?;
        if limit >= PIPE {
            return Ok(Self(None));
        }
        fs::write(PIPE_LIMIT, PIPE.to_string()).map_err(text)?;
        Ok(Self(Some(limit)))
    }
}

impl Drop for BigPipes {
    fn drop(&mut self) {
        if let Some(limit) = self.0 {
            let _ = fs::write(PIPE_LIMIT, limit.to_string());
        }
    }
}

/// One machine plays both: the tree is its own pid namespace, so that it can be there twice.
fn lazy_migration() -> Outcome {
    let _pipes = BigPipes::allowed()?;
    let mut victim = Spec {
        root: true,
        pid_namespace: true,
        ..Spec::role("memory").argument(MEBIBYTES)
    }
    .start()?;
    let images = victim.images("images");
    let traces = Traces::take();
    let source = victim.pid;
    let port = free_port();
    let restored = block_on(async {
        let dump = victim
            .dump_options()
            .lazy_pages(true)
            .page_server(PageTransport::tcp("127.0.0.1", port));
        let criu = criu();
        let mut dumping = criu
            .start_dump(source, &images, dump)
            .await
            .map_err(whole)?;
        loop {
            let (notify, answer) = dumping.next().await.ok_or("status-ready never came")?;
            let ready = notify.script() == Script::StatusReady;
            answer.accept().await;
            if ready {
                break;
            }
        }
        ensure!(
            state(source).is_some_and(|state| state != 'Z'),
            "the source has gone before its memory"
        );
        let written = pages_in(&images)?;
        ensure!(
            written < 8 << 20,
            "{written} bytes of memory are in the images, which is not lazy"
        );
        let options = LazyPagesOptions::new().page_server("127.0.0.1", port);
        let daemon = criu.lazy_pages(&images, options).await.map_err(whole)?;
        let restore = victim.restore_options().lazy_pages(true);
        let restored = match criu.restore(&images, (), restore).await {
            Ok(restored) => restored,
            Err(error) => {
                let daemon = daemon.wait().await;
                let source = dumping.finish().await;
                return Err(format!(
                    "{error:?}\nthe daemon: {daemon:?}\nthe source: {source:?}"
                ));
            }
        };
        daemon.wait().await.map_err(whole)?;
        let report = dumping.finish().await.map_err(whole)?;
        ensure!(report.tasks == TaskState::Absent, "{report:?}");
        Ok(restored.pid)
    })?;
    victim.reap()?;
    victim.is_now(restored);
    victim.goes_on()?;
    victim.end();
    drop(images);
    traces.unchanged()
}

/// A daemon that serves nobody is killed with its handle.
fn lazy_pages_dropped() -> Outcome {
    let mut victim = memory()?;
    let images = victim.images("images");
    victim.killed_into(&images, DumpOptions::new())?;
    let traces = Traces::take();
    let criu = criu();
    let pid = block_on(async {
        let daemon = criu
            .lazy_pages(&images, LazyPagesOptions::new())
            .await
            .map_err(whole)?;
        let pid = daemon.pid().ok_or("no pid")?;
        ensure!(state(pid).is_some(), "there is no process {pid}");
        drop(daemon);
        criu.settled().await;
        Ok(pid)
    })?;
    ensure!(state(pid).is_none(), "the daemon is {:?}", state(pid));
    drop(images);
    traces.unchanged()
}

fn lazy_pages_from_anywhere() -> Outcome {
    let directory = tempfile::tempdir().map_err(text)?;
    let traces = Traces::take();
    let images = ImagesDir::open(directory.path()).map_err(text)?;
    for host in ["0.0.0.0", "::", ""] {
        let options = LazyPagesOptions::new().page_server(host, free_port());
        match block_on(criu().lazy_pages(&images, options)) {
            Ok(_) => return Err(format!("{host:?} was taken")),
            Err(error) => ensure!(
                matches!(error.kind(), ErrorKind::Precondition { .. }),
                "{error:?}"
            ),
        }
    }
    drop(images);
    let written = fs::read_dir(directory.path()).map_err(text)?.count();
    ensure!(written == 0, "{written} files were written");
    traces.unchanged()
}

fn lazy_pages_without_images() -> Outcome {
    let directory = tempfile::tempdir().map_err(text)?;
    let traces = Traces::take();
    let images = ImagesDir::open(directory.path()).map_err(text)?;
    let error = match block_on(criu().lazy_pages(&images, LazyPagesOptions::new())) {
        Ok(_) => return Err("it serves an empty directory".into()),
        Err(error) => error,
    };
    ensure!(matches!(error.kind(), ErrorKind::Lost { .. }), "{error:?}");
    ensure!(
        matches!(error.exit(), Some(Exit::Status(status)) if status != 0),
        "{error:?}"
    );
    let code = error.diagnosis().map(|diagnosis| diagnosis.code);
    ensure!(code == Some("image-missing"), "{code:?} of {error:?}");
    drop(images);
    traces.unchanged()
}
