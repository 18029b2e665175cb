//! Signals with a handler that does not restart system calls, to every thread, all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use criu_client::notify::{Notify, Reply, hook_fn};
use criu_client::testing::{Request, Response};
use criu_client::{ErrorKind, Exit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::harness::cases;
use crate::support::*;

cases![
    a_dump_with_callbacks,
    a_refused_dump,
    a_service,
    death_while_it_is_settled,
];

static TAKEN: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count(_: libc::c_int) {
    TAKEN.fetch_add(1, Ordering::Relaxed);
}

/// Interrupts every other thread of this process, those that come up later too, until it is dropped.
struct Bombardment {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Bombardment {
    fn start() -> Self {
        let action = SigAction::new(
            SigHandler::Handler(count),
            SaFlags::empty(),
            SigSet::empty(),
        );
        // SAFETY: the handler only adds to an atomic number.
        #[allow(unsafe_code)]
        unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let told = over.clone();
        let thread = std::thread::spawn(move || {
            let own = rustix::thread::gettid().as_raw_nonzero().get();
            let process = std::process::id().cast_signed();
            while !told.load(Ordering::Relaxed) {
                for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
                    let Some(thread) = task
                        .file_name()
                        .to_str()
                        .and_then(|name| name.parse::<i32>().ok())
                    else {
                        continue;
                    };
                    if thread != own {
                        // SAFETY: takes no pointer. A thread that has ended meanwhile is not found.
                        #[allow(unsafe_code)]
                        unsafe {
                            libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGUSR1)
                        };
                    }
                }
                std::thread::sleep(std::time::Duration::from_micros(50));
            }
        });
        Self {
            over,
            thread: Some(thread),
        }
    }
}

impl Drop for Bombardment {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        assert!(
            TAKEN.load(Ordering::Relaxed) > 20,
            "hardly anything was interrupted"
        );
    }
}

const CALLBACKS: usize = 300;

async fn a_dump_with_callbacks() {
    let script = (0..CALLBACKS).fold(dumping(), |script, _| {
        script.callback("post-dump").expect_accept()
    });
    let (criu, peer) = program(&script.answer_dump_ok());
    let scene = Scene::new();
    let _bombardment = Bombardment::start();
    scene.dump(&criu, ()).await.unwrap();
    let transcript = peer.transcript().unwrap();
    assert_eq!(transcript.problem, None);
    assert_eq!(transcript.replies(), [Some(true); CALLBACKS]);
}

/// What comes after the refusal is read on a thread of its own.
async fn a_refused_dump() {
    let script = dumping()
        .callback("pre-dump")
        .expect_accept()
        .callback("post-dump")
        .expect_refusal()
        .linger(SHORT)
        .callback("network-unlock")
        .expect_reply()
        .linger(SHORT)
        .respond(Response::failure(Request::Dump));
    let (criu, peer) = program(&script);
    let mut scene = Scene::new();
    let _bombardment = Bombardment::start();
    let hooks = hook_fn(
        async |notify: Notify| match notify.script().to_string().as_str() {
            "post-dump" => Ok(Reply::Refuse("no".into())),
            _ => Ok(Reply::Accept),
        },
    );
    let error = scene.dump(&criu, hooks).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Hook { .. }), "{error:?}");
    assert!(scene.task.runs());
    assert_eq!(peer.transcript().unwrap().problem, None);
}

async fn a_service() {
    let script = (0..CALLBACKS).fold(dumping(), |script, _| {
        script.callback("post-dump").expect_accept()
    });
    let (criu, peer) = service(script.answer_dump_ok());
    let scene = Scene::new();
    let bombardment = Bombardment::start();
    scene.dump(&criu, ()).await.unwrap();
    drop(bombardment);
    assert_eq!(peer.join().problem, None);
}

async fn death_while_it_is_settled() {
    let (criu, _peer) = program(&dumping().callback("pre-dump").linger(EVER));
    let criu = criu.with_limits(limits().settle(SHORT));
    let scene = Scene::new();
    let _bombardment = Bombardment::start();
    let mut dump = scene.start_dump(&criu).await.unwrap();
    let (_, answer) = dump.next().await.unwrap();
    answer.refuse("no").await;
    let error = dump.finish().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Hook { .. }), "{error:?}");
    assert_eq!(error.exit(), Some(Exit::Signal(libc::SIGKILL)));
}
