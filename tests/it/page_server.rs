//! Page servers: a child of the worker that is waited for, or killed.

use criu_client::options::{PageServerOptions, PageTransport};
use criu_client::testing::{Request, Response, Script};
use criu_client::{ErrorKind, Exit};

use crate::harness::cases;
use crate::protocol::expect_missing;
use crate::support::*;

cases![
    answered_as_another_type,
    one_that_fails,
    one_without_a_pid,
    one_without_a_status,
    dropped_it_is_killed,
];

/// A page server that is waited for, and ends with this status word.
fn page_server(pid: i32, status: Option<i32>) -> Script {
    let waited = Response::success(Request::WaitPid);
    Script::new()
        .version(4, 2, 1)
        .expect(Request::PageServerChld)
        .respond(Response::success(Request::PageServer).page_server(Some(4242), Some(pid)))
        .expect(Request::WaitPid)
        .respond(status.map_or(waited.clone(), |status| waited.status(status)))
        .expect_hang_up()
}

async fn answered_as_another_type() {
    let task = Idle::start();
    let (criu, peer) = service(page_server(task.pid(), Some(0)));
    let scene = Scene::new();
    let options = PageServerOptions::new().transport(PageTransport::tcp("127.0.0.1", 0));
    let server = criu.page_server(&scene.images, options).await.unwrap();
    assert_eq!((server.port(), server.pid()), (Some(4242), task.pid()));
    server.wait().await.unwrap();
    let transcript = peer.join();
    assert_eq!(transcript.problem, None);
    assert_eq!(
        transcript.requests(),
        [Request::Version, Request::PageServerChld, Request::WaitPid]
    );
    assert_eq!(transcript.messages[1].keep_open, Some(true));
    assert_eq!(transcript.messages[1].number("notify_scripts"), None);
    assert_eq!(transcript.messages[2].keep_open, None);
    assert_eq!(transcript.messages[2].pid, Some(task.pid().cast_unsigned()));
}

async fn one_that_fails() {
    for (status, expected) in [
        (0x100, Exit::Status(1)),
        (0xff00, Exit::Status(255)),
        (9, Exit::Signal(9)),
    ] {
        let task = Idle::start();
        let (criu, peer) = service(page_server(task.pid(), Some(status)));
        let scene = Scene::new();
        let server = criu
            .page_server(&scene.images, PageServerOptions::new())
            .await
            .unwrap();
        let error = server.wait().await.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Refused { .. }),
            "{error:?}"
        );
        assert_eq!(error.exit(), Some(expected));
        assert_eq!(peer.join().problem, None);
    }
}

async fn one_without_a_pid() {
    for pid in [None, Some(0)] {
        let script = Script::new()
            .version(4, 2, 1)
            .expect(Request::PageServerChld)
            .respond(Response::success(Request::PageServer).page_server(Some(4242), pid))
            .expect_hang_up();
        let (criu, peer) = service(script);
        let scene = Scene::new();
        let error = criu
            .page_server(&scene.images, PageServerOptions::new())
            .await
            .unwrap_err();
        expect_missing(&error, "PAGE_SERVER_CHLD", "ps.pid");
        assert_eq!(peer.join().problem, None);
    }
}

async fn one_without_a_status() {
    let task = Idle::start();
    let (criu, peer) = service(page_server(task.pid(), None));
    let scene = Scene::new();
    let server = criu
        .page_server(&scene.images, PageServerOptions::new())
        .await
        .unwrap();
    expect_missing(&server.wait().await.unwrap_err(), "WAIT_PID", "status");
    assert_eq!(peer.join().problem, None);
}

async fn dropped_it_is_killed() {
    let mut task = Idle::start();
    let script = Script::new()
        .version(4, 2, 1)
        .expect(Request::PageServerChld)
        .respond(Response::success(Request::PageServer).page_server(Some(4242), Some(task.pid())))
        .silence();
    let (criu, peer) = program(&script);
    let scene = Scene::new();
    let server = criu
        .page_server(&scene.images, PageServerOptions::new())
        .await
        .unwrap();
    assert!(task.runs());
    drop(server);
    criu.settled().await;
    assert!(!task.runs());
    assert_eq!(
        peer.transcript().unwrap().requests(),
        [Request::Version, Request::PageServerChld]
    );
}
