//! Recordings of several sessions, and the pids in them.

use std::path::Path;

use criu_client::interpose::Interposer;
use criu_client::interpose::recording::{Recording, Side};
use criu_client::notify::{Notify, Reply, Script as Name, hook_fn};
use criu_client::testing::{Compare, Request, Script};
use criu_client::{Criu, ErrorKind, Exit, TaskState};

use crate::harness::cases;
use crate::support::*;

use super::recorder::*;

cases![
    a_version_on_a_connection_of_its_own,
    a_version_on_the_connection_of_the_request,
    probes_that_nobody_asks_are_skipped,
    sessions_in_their_order,
    processes_play_one_session_each,
    no_recorded_process_is_harmed,
    the_stand_in_is_told,
];

/// What an engine says that asks VERSION on a connection of its own, as runc does, and then dumps.
async fn recorded_as_runc_does() -> Recording {
    let mut recorder = Recorder::new(false);
    let script = Script::new().version(4, 2, 1);
    // Without keep_open, unlike our own.
    let version = async |socket: &Path| {
        let client = Client::connect(socket);
        let asking = tokio::task::spawn_blocking(move || {
            client.say(VERSION);
            assert_eq!(client.hear(), VERSION_4_2_1);
        });
        asking.await.unwrap();
    };
    let asked = recorder.session_at(script, Interposer::new(), version);
    asked.await;
    let scene = Scene::new();
    let script = Script::new()
        .expect(Request::Dump)
        .callback("pre-dump")
        .expect_accept()
        .answer_dump_ok();
    let dump = async |socket: &Path| {
        let client = Client::connect(socket);
        let request = dump_request(scene.task.pid());
        let asking = tokio::task::spawn_blocking(move || {
            client.say(&request);
            client.hear();
            client.say(ACCEPT);
            client.hear();
        });
        asking.await.unwrap();
    };
    let dumped = recorder.session_at(script, Interposer::new(), dump);
    dumped.await;
    recorder.recording()
}

async fn a_version_on_a_connection_of_its_own() {
    let recording = recorded_as_runc_does().await;
    let (criu, handle) = as_service(fast(recording.clone()).compare(Compare::Sequence));
    Scene::new().dump(&criu, ()).await.unwrap();
    // Both on one connection.
    assert_eq!(expect_whole(handle), [[1, 2]]);

    // From the dump on, there is no VERSION but that of the session before.
    let replay = fast(recording.clone()).compare(Compare::Sequence);
    let (criu, handle) = as_service(replay.from_session(2).unwrap());
    Scene::new().dump(&criu, ()).await.unwrap();
    assert_eq!(expect_whole(handle), [[2]]);

    // Strictly it is another sequence.
    let (criu, handle) = as_service(fast(recording));
    Scene::new().dump(&criu, ()).await.unwrap_err();
    let departure = expect_departure(handle);
    assert_eq!((departure.session, departure.entry), (1, 1));
    assert_eq!(departure.differences[0].name, "keep_open");
}

async fn a_version_on_the_connection_of_the_request() {
    let recording = dump_recorded(good_dump(), ()).await;
    let handle = fast(recording)
        .compare(Compare::Sequence)
        .service()
        .unwrap();
    let path = handle.socket().to_owned();
    tokio::task::spawn_blocking(move || {
        let client = Client::connect(&path);
        client.say(VERSION);
        assert_eq!(client.hear(), VERSION_4_2_1);
        assert_eq!(client.hear(), b"");
        let client = Client::connect(&path);
        client.say(&dump_request(1));
        for _ in 0..2 {
            client.hear();
            client.say(ACCEPT);
        }
        client.hear();
        assert_eq!(client.hear(), b"");
    })
    .await
    .unwrap();
    assert_eq!(expect_whole(handle), [vec![], vec![1]]);
}

async fn probes_that_nobody_asks_are_skipped() {
    let probe: &[(u64, Side, &[u8])] =
        &[(0, Side::Engine, VERSION), (1, Side::Criu, VERSION_4_2_1)];
    let check: &[(u64, Side, &[u8])] = &[
        (0, Side::Engine, b"\x08\x03"),
        (1, Side::Criu, b"\x08\x03\x10\x01"),
    ];
    let request = dump_request(7);
    let dump: &[(u64, Side, &[u8])] = &[
        (0, Side::Engine, &request),
        (1, Side::Criu, b"\x08\x01\x10\x01"),
    ];
    let recording = written(&[
        (probe, Side::Criu),
        (check, Side::Criu),
        (dump, Side::Criu),
        (probe, Side::Criu),
    ]);
    let replay = fast(recording).compare(Compare::Sequence);
    let (client, playing) = Client::play(&replay);
    client.say(&request);
    assert_eq!(client.hear(), b"\x08\x01\x10\x01");
    let outcome = playing.join().unwrap();
    assert!(outcome.is_whole(), "{outcome:?}");
    assert_eq!(outcome.sessions, [3]);

    // The last one need not be asked either.
    let handle = replay.service().unwrap();
    let client = Client::connect(handle.socket());
    client.say(&request);
    client.hear();
    tokio::time::timeout(EVER, handle.over()).await.unwrap();
    assert_eq!(expect_whole(handle), [[3]]);
}

async fn sessions_in_their_order() {
    let mut recorder = Recorder::new(false);
    let scene = Scene::new();
    for _ in 0..2 {
        let engine = async |criu: Criu| scene.dump(&criu, ()).await;
        let dumped = recorder.session(good_dump(), Interposer::new(), engine);
        dumped.await.unwrap();
    }
    let failing = dumping().answer_failure(Request::Dump);
    let engine = async |criu: Criu| scene.dump(&criu, ()).await;
    let failed = recorder.session(failing, Interposer::new(), engine);
    failed.await.unwrap_err();

    let (criu, handle) = as_service(fast(recorder.recording()).from_session(2).unwrap());
    scene.dump(&criu, ()).await.unwrap();
    assert_eq!(handle.so_far().unplayed, [3]);
    scene.dump(&criu, ()).await.unwrap_err();
    handle.over().await;
    // There is no fourth.
    scene.dump(&criu, ()).await.unwrap_err();
    let departure = expect_departure(handle);
    assert_eq!(departure.session, 0);
    assert_eq!(
        departure.to_string(),
        "behind the last session: expected nothing, got VERSION"
    );
}

async fn processes_play_one_session_each() {
    let mut recorder = Recorder::new(false);
    let scene = Scene::new();
    let engine = async |criu: Criu| scene.dump(&criu, ()).await;
    let dumped = recorder.session(good_dump(), Interposer::new(), engine);
    dumped.await.unwrap();
    let failing = dumping().answer_failure(Request::Dump);
    let engine = async |criu: Criu| scene.dump(&criu, ()).await;
    let failed = recorder.session(failing, Interposer::new(), engine);
    failed.await.unwrap_err();

    let (criu, replay) = as_program(fast(recorder.recording()));
    assert_eq!(replay.replayed().unwrap().unplayed, [1, 2]);
    scene.dump(&criu, ()).await.unwrap();
    assert_eq!(replay.replayed().unwrap().unplayed, [2]);
    let error = scene.dump(&criu, ()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Refused { .. }));
    assert_eq!(error.exit(), Some(Exit::Status(0)));
    // There is no third.
    scene.dump(&criu, ()).await.unwrap_err();
    let replayed = replay.replayed().unwrap();
    let sessions: Vec<_> = replayed.outcomes.iter().map(|one| &*one.sessions).collect();
    assert_eq!(sessions, [&[1][..], &[2], &[]]);
    assert_eq!(replayed.departure().unwrap().session, 0);
    assert_eq!(replayed.unplayed, [0; 0]);
}

// --- pids ---

/// The process of ours that plays.
fn player() -> Option<i32> {
    let own = std::process::id().to_string();
    let children = std::fs::read_to_string(format!("/proc/self/task/{own}/children")).ok()?;
    children.split_whitespace().find_map(|pid| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        line.contains("--replay").then(|| pid.parse().ok())?
    })
}

/// The client kills what CRIU has named when CRIU dies: here that would be a process that has nothing to do with it.
async fn no_recorded_process_is_harmed() {
    let mut bystander = Idle::start();
    let recording = restore_recorded(bystander.pid()).await;
    let (criu, _replay) = as_program(fast(recording));
    let hooks = hook_fn(async |notify: Notify| {
        if notify.script() == Name::PostRestore {
            let pid = rustix::process::Pid::from_raw(player().unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        Ok(Reply::Accept)
    });
    let error = Scene::with_images()
        .restore(&criu, hooks)
        .await
        .unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Lost { .. }), "{error:?}");
    assert_eq!(error.undone(), [""; 0]);
    assert_eq!(error.tasks(), TaskState::Absent);
    assert!(bystander.runs());
}

async fn the_stand_in_is_told() {
    let recording = restore_recorded(4_000_000).await;
    let stand_in = Idle::start();
    let (criu, handle) = as_service(fast(recording).stand_in(stand_in.pid()));
    let scene = Scene::with_images();
    let report = scene.restore(&criu, accept_all()).await.unwrap();
    assert_eq!(report.pid, stand_in.pid());
    expect_whole(handle);
}
