//! Operations that are cancelled, dropped, or run out of time: at every step there is.

use criu_client::notify::{Reply, hook_fn};
use criu_client::options::{
    CheckOptions, CpuinfoOptions, DumpOptions, PageServerOptions, PreDumpOptions, RestoreOptions,
};
use criu_client::testing::{Callback, Peer, ProgramPeer, Request, Script};
use criu_client::{Criu, Error, ErrorKind, Exit, OperationKind, TaskState};
use tokio::runtime::Runtime;

use crate::harness::cases;
use crate::support::*;

cases![
    silence_in_place_of_the_version,
    silence_of_a_service_in_place_of_the_version,
    silence_after_the_request,
    silence_after_a_callback,
    no_limit_but_the_operation_s,
    cancelled_before_the_first_callback,
    cancelled_at_a_callback,
    cancelled_after_a_callback,
    cancelled_after_the_answer,
    cancelled_after_a_failure,
    cancelled_through_a_service,
    a_cancelled_restore_is_killed,
    dropped_while_it_starts,
    dropped_before_the_first_callback,
    dropped_at_a_callback,
    dropped_with_its_answer,
    dropped_while_a_hook_runs,
    dropped_while_it_finishes,
    dropped_while_it_is_cancelled,
    settled_at_once_when_nothing_was_dropped,
    settled_waits_for_clones,
    several_operations_at_once,
    the_same_directory_twice,
    operations_can_be_spawned;
    dropped_after_the_runtime,
    dropped_with_the_runtime,
];

/// One callback, refused: what a cancelled dump must look like to CRIU.
fn refused_once() -> Script {
    dumping()
        .callback("pre-dump")
        .expect_refusal()
        .answer_failure(Request::Dump)
        .expect_hang_up()
}

fn expect_refused_once(peer: &ProgramPeer) {
    let transcript = peer.transcript().unwrap();
    assert_eq!(transcript.problem, None);
    assert_eq!(transcript.replies(), [Some(false)]);
    assert!(transcript.hung_up);
}

fn expect_time_limit(error: &Error, expected: OperationKind) {
    let ErrorKind::TimeLimit { operation, limit } = error.kind() else {
        panic!("{error:?}")
    };
    assert_eq!((*operation, *limit), (expected, LIMIT));
}

fn expect_cancelled(error: &Error) {
    assert!(
        matches!(
            error.kind(),
            ErrorKind::Cancelled {
                operation: OperationKind::Dump
            }
        ),
        "{error:?}"
    );
    assert_eq!(error.tasks(), TaskState::Running);
}

async fn silence_in_place_of_the_version() {
    // It would not even notice that we hang up.
    let (criu, _peer) = program(&Script::new().expect(Request::Version).linger(EVER));
    let error = criu
        .with_limits(limits().operation(LIMIT))
        .version()
        .await
        .unwrap_err();
    expect_time_limit(&error, OperationKind::Version);
    assert_eq!(error.exit(), Some(Exit::Signal(libc::SIGKILL)));
    assert_eq!(error.tasks(), TaskState::NotConcerned);
}

async fn silence_of_a_service_in_place_of_the_version() {
    let (criu, peer) = service(Script::new().silence());
    let criu = criu.with_limits(limits().operation(LIMIT).settle(SHORT));
    let error = criu.version().await.unwrap_err();
    expect_time_limit(&error, OperationKind::Version);
    let transcript = peer.join();
    assert!(transcript.hung_up);
    assert_eq!(transcript.requests(), [Request::Version]);
}

async fn silence_after_the_request() {
    let (criu, peer) = program(&dumping().linger(EVER));
    let criu = criu.with_limits(limits().operation(LIMIT).settle(SHORT));
    let scene = Scene::new();
    let error = scene.dump(&criu, ()).await.unwrap_err();
    expect_time_limit(&error, OperationKind::Dump);
    assert_eq!(error.exit(), Some(Exit::Signal(libc::SIGKILL)));
    assert_eq!(error.tasks(), TaskState::Running);
    assert_eq!(
        peer.transcript().unwrap().requests(),
        [Request::Version, Request::Dump]
    );
}

async fn silence_after_a_callback() {
    let (criu, peer) = program(&dumping().callback("pre-dump").expect_accept().silence());
    let criu = criu.with_limits(limits().operation(LIMIT).settle(SHORT));
    let error = Scene::new().dump(&criu, ()).await.unwrap_err();
    expect_time_limit(&error, OperationKind::Dump);
    assert_eq!(peer.transcript().unwrap().replies(), [Some(true)]);
}

async fn no_limit_but_the_operation_s() {
    // The limit of a hook and that of the end are not limits of CRIU's work.
    let script = dumping().linger(LIMIT).answer_dump_ok();
    let (criu, _peer) = program(&script);
    let criu = criu.with_limits(limits().hook(SHORT).settle(SHORT));
    Scene::new().dump(&criu, ()).await.unwrap();
}

async fn cancelled_before_the_first_callback() {
    let scene = Scene::new();
    // CRIU comes to its next callback in time, and is refused there.
    let (criu, peer) = program(
        &dumping()
            .linger(SHORT)
            .callback("pre-dump")
            .expect_refusal()
            .answer_failure(Request::Dump)
            .expect_hang_up(),
    );
    let error = scene.start_dump(&criu).await.unwrap().cancel().await;
    expect_cancelled(&error);
    assert_eq!(error.exit(), Some(Exit::Status(0)));
    expect_refused_once(&peer);

    // It does not, and is killed.
    let (criu, peer) = program(&dumping().linger(EVER));
    let criu = criu.with_limits(limits().settle(SHORT));
    let error = scene.start_dump(&criu).await.unwrap().cancel().await;
    expect_cancelled(&error);
    assert_eq!(error.exit(), Some(Exit::Signal(libc::SIGKILL)));
    assert!(peer.transcript().unwrap().replies().is_empty());
}

async fn cancelled_at_a_callback() {
    let (criu, peer) = program(&refused_once());
    let scene = Scene::new();
    let mut dump = scene.start_dump(&criu).await.unwrap();
    let (_, answer) = dump.next().await.unwrap();
    drop(answer);
    let error = dump.cancel().await;
    expect_cancelled(&error);
    expect_refused_once(&peer);
}

async fn cancelled_after_a_callback() {
    let script = dumping()
        .callback("pre-dump")
        .expect_accept()
        .callback("post-dump")
        .expect_refusal()
        .callback("network-unlock")
        .expect_refusal()
        .answer_failure(Request::Dump)
        .expect_hang_up();
    let (criu, peer) = program(&script);
    let scene = Scene::new();
    let mut dump = scene.start_dump(&criu).await.unwrap();
    let (_, answer) = dump.next().await.unwrap();
    answer.accept().await;
    expect_cancelled(&dump.cancel().await);
    let transcript = peer.transcript().unwrap();
    assert_eq!(transcript.problem, None);
    assert_eq!(transcript.replies(), [Some(true), Some(false), Some(false)]);
}

async fn cancelled_after_the_answer() {
    let (criu, _peer) = program(&dumping().answer_dump_ok());
    let scene = Scene::new();
    let mut dump = scene.start_dump(&criu).await.unwrap();
    assert!(dump.next().await.is_none());
    // Too late for CRIU, but the caller gets what it asked for.
    expect_cancelled(&dump.cancel().await);
}

async fn cancelled_after_a_failure() {
    let (criu, _peer) = program(&dumping().datagram(*b"nonsense", 0).expect_hang_up());
    let scene = Scene::new();
    let mut dump = scene.start_dump(&criu).await.unwrap();
    assert!(dump.next().await.is_none());
    assert!(dump.next().await.is_none());
    let error = dump.cancel().await;
    assert!(matches!(error.kind(), ErrorKind::Protocol(_)), "{error:?}");
}

async fn cancelled_through_a_service() {
    let (criu, peer) = service(refused_once());
    let scene = Scene::new();
    let mut dump = scene.start_dump(&criu).await.unwrap();
    assert!(dump.next().await.is_some());
    expect_cancelled(&dump.cancel().await);
    let transcript = peer.join();
    assert_eq!(transcript.problem, None);
    assert_eq!(transcript.replies(), [Some(false)]);

    // A service's worker is not ours to kill: we hang up.
    let (criu, peer) = service(dumping().silence());
    let criu = criu.with_limits(limits().settle(SHORT));
    expect_cancelled(&scene.start_dump(&criu).await.unwrap().cancel().await);
    assert!(peer.join().hung_up);
}

/// Half-restored tasks are killed when CRIU cannot be made to do it.
async fn a_cancelled_restore_is_killed() {
    let mut root = Idle::start();
    let script = restoring()
        .callback(Callback::new("setup-namespaces").pid(root.pid()))
        .expect_reply()
        .linger(EVER);
    let (criu, _peer) = program(&script);
    let criu = criu.with_limits(limits().settle(SHORT));
    let scene = Scene::with_images();
    let mut restore = criu
        .start_restore(&scene.images, RestoreOptions::new())
        .await
        .unwrap();
    let (_, answer) = restore.next().await.unwrap();
    answer.accept().await;
    assert!(root.runs());
    let error = restore.cancel().await;
    assert!(matches!(error.kind(), ErrorKind::Cancelled { .. }));
    assert_eq!(error.tasks(), TaskState::Absent);
    assert!(
        error.undone().iter().any(|what| what.contains("killed")),
        "{error:?}"
    );
    assert!(error.left_behind().is_empty());
    assert!(!root.runs());
}

async fn dropped_while_it_starts() {
    let (criu, peer) = program(&Script::new().expect(Request::Version).linger(EVER));
    let scene = Scene::new();
    tokio::select! {
        _ = scene.dump(&criu, ()) => panic!("nobody has answered"),
        () = until(|| !peer.transcript().unwrap().messages.is_empty()) => {}
    }
    criu.settled().await;
    expect_gone(&peer);
}

/// The worker is dead and reaped.
fn expect_gone(peer: &ProgramPeer) {
    let pid = peer.transcript().unwrap().process.unwrap().pid;
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

async fn dropped_before_the_first_callback() {
    let script = dumping()
        .linger(SHORT)
        .callback("pre-dump")
        .expect_refusal()
        .answer_failure(Request::Dump)
        .expect_hang_up();
    let (criu, peer) = program(&script);
    let scene = Scene::new();
    drop(scene.start_dump(&criu).await.unwrap());
    criu.settled().await;
    expect_refused_once(&peer);
    expect_gone(&peer);
}

async fn dropped_at_a_callback() {
    let (criu, peer) = program(&refused_once());
    let scene = Scene::new();
    let mut dump = scene.start_dump(&criu).await.unwrap();
    let (_, answer) = dump.next().await.unwrap();
    drop(answer);
    drop(dump);
    criu.settled().await;
    expect_refused_once(&peer);
    expect_gone(&peer);
}

async fn dropped_with_its_answer() {
    let (criu, peer) = program(&refused_once());
    let scene = Scene::new();
    let mut dump = scene.start_dump(&criu).await.unwrap();
    let held = async {
        let _waiting = dump.next().await.unwrap();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = held => {}
        () = until(|| peer.transcript().unwrap().steps == 4) => {}
    }
    drop(dump);
    criu.settled().await;
    expect_refused_once(&peer);
}

async fn dropped_while_a_hook_runs() {
    let (criu, peer) = program(&refused_once());
    let scene = Scene::new();
    let (entered, mut in_hook) = tokio::sync::mpsc::channel::<()>(1);
    let hooks = hook_fn(async |_| {
        entered.send(()).await.unwrap();
        std::future::pending::<()>().await;
        Ok(Reply::Accept)
    });
    tokio::select! {
        _ = scene.dump(&criu, hooks) => panic!("the hook has not answered"),
        _ = in_hook.recv() => {}
    }
    criu.settled().await;
    expect_refused_once(&peer);
    expect_gone(&peer);
}

async fn dropped_while_it_finishes() {
    let (criu, peer) = program(&dumping().callback("pre-dump").expect_accept().silence());
    let criu = criu.with_limits(limits().settle(SHORT));
    let scene = Scene::new();
    let dump = scene.start_dump(&criu).await.unwrap();
    tokio::select! {
        _ = dump.finish() => panic!("nobody has answered"),
        () = until(|| peer.transcript().unwrap().replies() == [Some(true)]) => {}
    }
    criu.settled().await;
    expect_gone(&peer);
}

async fn dropped_while_it_is_cancelled() {
    let (criu, peer) = program(&dumping().linger(EVER));
    let criu = criu.with_limits(limits().settle(SHORT));
    let scene = Scene::new();
    let dump = scene.start_dump(&criu).await.unwrap();
    let _ = tokio::time::timeout(SHORT / 10, dump.cancel()).await;
    criu.settled().await;
    expect_gone(&peer);
}

async fn settled_at_once_when_nothing_was_dropped() {
    let (criu, peer) = service(dumping().answer_dump_ok());
    criu.settled().await;
    Scene::new().dump(&criu, ()).await.unwrap();
    criu.settled().await;
    drop(peer);
}

async fn settled_waits_for_clones() {
    let (criu, peer) = program(&refused_once());
    let scene = Scene::new();
    let clone = criu.clone().with_limits(limits());
    drop(scene.start_dump(&clone).await.unwrap());
    drop(clone);
    criu.settled().await;
    expect_refused_once(&peer);
    expect_gone(&peer);
}

async fn several_operations_at_once() {
    let count = 6;
    let script = || {
        dumping()
            .callback("pre-dump")
            .expect_accept()
            .callback("post-dump")
            .expect_accept()
            .answer_dump_ok()
            .expect_hang_up()
    };
    let peer = Peer::service_of((0..count).map(|_| script())).unwrap();
    let criu = Criu::service(peer.socket());
    let scenes: Vec<Scene> = (0..count).map(|_| Scene::new()).collect();
    let mut dumps = Vec::new();
    for scene in &scenes {
        dumps.push(scene.start_dump(&criu).await.unwrap());
    }
    // All of them wait at their first callback now. They go on in another order.
    for dump in dumps.iter_mut().rev() {
        let (_, answer) = dump.next().await.unwrap();
        answer.accept().await;
    }
    for (dump, scene) in dumps.into_iter().zip(&scenes) {
        assert_eq!(dump.finish().await.unwrap().pid, scene.task.pid());
    }
    for transcript in peer.join_all() {
        assert_eq!(transcript.problem, None);
    }

    let peers: Vec<_> = (0..count)
        .map(|_| {
            program(
                &dumping()
                    .callback("pre-dump")
                    .expect_accept()
                    .answer_dump_ok(),
            )
        })
        .collect();
    let one = scenes[0].dump(&peers[0].0, ());
    let two = scenes[1].dump(&peers[1].0, ());
    let three = scenes[2].dump(&peers[2].0, ());
    let (one, two, three) = tokio::join!(one, two, three);
    for (report, scene) in [one, two, three].into_iter().zip(&scenes) {
        assert_eq!(report.unwrap().pid, scene.task.pid());
    }
}

/// Two requests into one directory have a log each.
async fn the_same_directory_twice() {
    let scene = Scene::new();
    for (text, expected) in [("first", "dump.log"), ("second", "dump-2.log")] {
        let (criu, _peer) = service(dumping().write_log(text).answer_dump_ok());
        let report = scene.dump(&criu, ()).await.unwrap();
        let log = report.details.log.unwrap();
        assert_eq!(log, scene.directory.path().join(expected));
        assert_eq!(std::fs::read_to_string(log).unwrap(), text);
    }
}

/// Every future is `Send`, or a program with tasks of its own could not use them.
async fn operations_can_be_spawned() {
    fn sendable<T: Send>(_: T) {}
    let (criu, peer) = service(dumping().answer_dump_ok().expect_hang_up());
    let scene = Scene::new();
    let (pid, images) = (scene.task.pid(), scene.images.clone());
    sendable(criu.version());
    sendable(criu.features());
    sendable(criu.check(CheckOptions::new()));
    sendable(criu.cpuinfo_dump(&images, CpuinfoOptions::new()));
    sendable(criu.pre_dump(pid, &images, PreDumpOptions::new()));
    sendable(criu.dump_self(&images, DumpOptions::new()));
    sendable(criu.restore(&images, (), RestoreOptions::new()));
    sendable(criu.restore_child(&images, (), RestoreOptions::new()));
    sendable(criu.page_server(&images, PageServerOptions::new()));
    sendable(criu.page_server_detached(&images, PageServerOptions::new()));
    let dump = async move { criu.dump(pid, &images, (), DumpOptions::new()).await };
    tokio::spawn(dump).await.unwrap().unwrap();
    assert_eq!(peer.join().problem, None);
}

/// An operation outlives the runtime that it was started in, and is dropped where there is none.
fn dropped_after_the_runtime(_: &Runtime) {
    let (criu, peer) = program(&refused_once());
    let scene = Scene::new();
    let own = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let dump = own.block_on(async {
        let mut dump = scene.start_dump(&criu).await.unwrap();
        assert!(dump.next().await.is_some());
        dump
    });
    drop(own);
    drop(dump);
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(criu.settled());
    expect_refused_once(&peer);
    expect_gone(&peer);
}

/// The runtime is shut down with a task that waits for an operation.
fn dropped_with_the_runtime(_: &Runtime) {
    let (criu, peer) = program(&refused_once());
    let scene = Scene::new();
    let own = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let tasks = tokio::task::LocalSet::new();
    let (entered, in_hook) = tokio::sync::oneshot::channel();
    let waiting = criu.clone();
    let (pid, images) = (scene.task.pid(), scene.images.clone());
    tasks.spawn_local(async move {
        let mut entered = Some(entered);
        let hooks = hook_fn(|_| {
            entered.take().unwrap().send(()).unwrap();
            std::future::pending()
        });
        waiting.dump(pid, &images, hooks, DumpOptions::new()).await
    });
    own.block_on(tasks.run_until(in_hook)).unwrap();
    drop(own);
    drop(tasks);
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(criu.settled());
    expect_refused_once(&peer);
    expect_gone(&peer);
}
