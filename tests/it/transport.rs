//! Datagrams and descriptors: their length, their contents, and what comes along.

use criu_client::notify::{Event, Notify, Reply, hook_fn};
use criu_client::options::DumpOptions;
use criu_client::testing::{Callback, Request, Response, Script};
use criu_client::{ErrorKind, Violation};
use nix::unistd::Uid;

use crate::harness::cases;
use crate::support::*;

cases![
    a_datagram_of_one_byte_is_no_answer,
    an_empty_datagram_is_a_hang_up,
    a_long_answer_arrives_whole,
    a_long_request_arrives_whole,
    descriptors_that_nobody_expects_are_closed,
    a_pty_callback_with_several_descriptors_is_handed_on_whole,
    as_many_descriptors_as_fit,
    a_message_need_not_be_utf8,
    a_script_name_need_not_be_utf8,
    the_answer_behind_a_reset_is_read,
    a_socket_that_nobody_listens_on,
];

/// Beyond what a socket buffer holds by default; without privileges it cannot be made to hold a megabyte.
fn long() -> usize {
    match Uid::effective().is_root() {
        true => 1024 * 1024,
        false => 300 * 1024,
    }
}

async fn a_datagram_of_one_byte_is_no_answer() {
    for byte in [0x08, 0x00, 0xff] {
        let error = dump_error(dumping().datagram([byte], 0).expect_hang_up()).await;
        let ErrorKind::Protocol(Violation::Undecodable { length, .. }) = error.kind() else {
            panic!("{error:?}")
        };
        assert_eq!(*length, 1);
    }
}

async fn an_empty_datagram_is_a_hang_up() {
    let error = dump_error(dumping().datagram([], 0).expect_hang_up()).await;
    assert!(
        matches!(error.kind(), ErrorKind::Lost { exit: None }),
        "{error:?}"
    );
}

async fn a_long_answer_arrives_whole() {
    let message = vec![b'x'; long()];
    let answer = Response::failure(Request::Dump).message(message);
    let error = dump_error(dumping().respond(answer).expect_hang_up()).await;
    assert!(matches!(error.kind(), ErrorKind::Refused { .. }));
    assert_eq!(error.criu_message().unwrap().len(), long());
}

async fn a_long_request_arrives_whole() {
    let names: Vec<String> = (1..long() / 100)
        .map(|inode| format!("net[{inode}]:{inode:0100}"))
        .collect();
    let mut options = DumpOptions::new();
    for name in &names {
        options = options.external(name.parse().unwrap());
    }
    let (criu, peer) = service(dumping().answer_dump_ok().expect_hang_up());
    let scene = Scene::new();
    criu.dump(scene.task.pid(), &scene.images, (), options)
        .await
        .unwrap();
    let transcript = peer.join();
    let request = transcript.message(Request::Dump).unwrap();
    assert!(request.length > long());
    assert_eq!(request.texts("external"), names);
}

async fn descriptors_that_nobody_expects_are_closed() {
    let version = Response::success(Request::Version).version(4, 2, 1);
    let done = Response::success(Request::Dump).restored(false);
    let script = Script::new()
        .expect(Request::Version)
        .datagram(version.to_bytes(), 3)
        .expect(Request::Dump)
        .callback(Callback::new("pre-dump").descriptors(2))
        .expect_accept()
        .callback(Callback::new("post-dump").descriptors(1))
        .expect_accept()
        .datagram(done.to_bytes(), 2)
        .expect_hang_up();
    let (criu, peer) = service(script);
    Scene::new().dump(&criu, ()).await.unwrap();
    let transcript = peer.join();
    assert_eq!(transcript.problem, None);
    assert_eq!(transcript.pipes.len(), 8);
    assert!(
        transcript.pipes.iter().all(|pipe| pipe.closed),
        "{transcript:?}"
    );

    // The same on what is no answer at all.
    let (criu, peer) = service(dumping().datagram(*b"nonsense", 4).expect_hang_up());
    Scene::new().dump(&criu, ()).await.unwrap_err();
    assert!(peer.join().pipes.iter().all(|pipe| pipe.closed));
}

async fn a_pty_callback_with_several_descriptors_is_handed_on_whole() {
    let script = restoring()
        .callback(Callback::new("orphan-pts-master").descriptors(3))
        .expect_accept()
        .callback(Callback::new("orphan-pts-master"))
        .expect_accept()
        .answer_restore_ok(1)
        .expect_hang_up();
    let (criu, peer) = service(script);
    let mut seen = Vec::new();
    let hooks = hook_fn(|notify: Notify| {
        let Event::Other { name, fds, .. } = &notify.event else {
            panic!("{notify:?}")
        };
        seen.push((name.clone(), fds.len()));
        async { Ok(Reply::Accept) }
    });
    Scene::with_images().restore(&criu, hooks).await.unwrap();
    assert_eq!(
        seen,
        [
            ("orphan-pts-master".to_owned(), 3),
            ("orphan-pts-master".to_owned(), 0)
        ]
    );
    let transcript = peer.join();
    assert_eq!(transcript.problem, None);
    assert!(transcript.pipes.iter().all(|pipe| pipe.closed));
}

async fn as_many_descriptors_as_fit() {
    let script = dumping()
        .callback(Callback::new("pre-dump").descriptors(253))
        .expect_accept()
        .answer_dump_ok()
        .expect_hang_up();
    let (criu, peer) = service(script);
    Scene::new().dump(&criu, ()).await.unwrap();
    let transcript = peer.join();
    assert_eq!(transcript.problem, None);
    assert_eq!(
        transcript.pipes.iter().filter(|pipe| pipe.closed).count(),
        253
    );
}

async fn a_message_need_not_be_utf8() {
    let answer = Response::failure(Request::Dump).message(*b"Can't open /tmp/\xff\xfe\n");
    let error = dump_error(dumping().respond(answer).expect_hang_up()).await;
    assert_eq!(
        error.criu_message(),
        Some("Can't open /tmp/\u{fffd}\u{fffd}")
    );
    serde_json::to_string(&error).unwrap();
}

async fn a_script_name_need_not_be_utf8() {
    let script = dumping()
        .callback(Callback::new(*b"pre-\xff"))
        .expect_accept()
        .answer_dump_ok()
        .expect_hang_up();
    let (criu, peer) = service(script);
    let scene = Scene::new();
    let mut dump = scene.start_dump(&criu).await.unwrap();
    let (notify, answer) = dump.next().await.unwrap();
    assert!(matches!(&notify.event, Event::Other { name, .. } if name == "pre-\u{fffd}"));
    answer.accept().await;
    dump.finish().await.unwrap();
    assert_eq!(peer.join().problem, None);
}

async fn the_answer_behind_a_reset_is_read() {
    let script = dumping()
        .callback("post-dump")
        .await_unread()
        .answer_dump_ok();
    let (criu, peer) = service(script);
    let scene = Scene::new();
    let mut dump = scene.start_dump(&criu).await.unwrap();
    let (_, answer) = dump.next().await.unwrap();
    answer.accept().await;
    // Over: the peer has answered and gone with our reply unread.
    let transcript = peer.join();
    assert_eq!((transcript.problem, transcript.steps), (None, 6));
    let report = dump.finish().await.unwrap();
    assert_eq!(report.pid, scene.task.pid());
}

async fn a_socket_that_nobody_listens_on() {
    let (criu, peer) = service(Script::new());
    let path = peer.socket().to_owned();
    assert!(!peer.join().connected);
    let error = criu.version().await.unwrap_err();
    let ErrorKind::Connect { socket, .. } = error.kind() else {
        panic!("{error:?}")
    };
    assert_eq!(*socket, path);
}
