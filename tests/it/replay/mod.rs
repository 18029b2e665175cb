//! Recordings, made by listening in on a scripted CRIU, and played back.

pub(crate) mod command;
mod recorder;
pub(crate) mod sessions;

use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use criu_client::interpose::recording::{Event, Side};
use criu_client::interpose::{Amendment, Interposer, Mask, Verdict};
use criu_client::notify::{Notify, Reply, Script as Name, hook_fn};
use criu_client::options::{DumpOptions, Leave, NetworkLock};
use criu_client::testing::{Compare, Replay, Request, Response, Said, Script, Speed};
use criu_client::{Criu, ErrorKind, Result, TaskState};
use serde_json::json;

use crate::harness::cases;
use crate::support::*;

use recorder::*;

cases![
    a_dump,
    a_dump_that_a_hook_refuses,
    a_restore_with_its_callbacks,
    a_dump_that_fails,
    what_a_listener_did_is_played_as_the_engine_saw_it,
    a_request_that_the_listener_refused,
    another_order_departs,
    another_option_departs,
    a_hang_up_departs,
    silence_departs,
    a_message_behind_the_end_departs,
    a_client_that_leaves_without_its_answer_departs,
    time_is_scaled,
    bytes_are_kept,
    masked_paths_match,
];

// --- what was recorded happens again ---

async fn a_dump() {
    let recording = dump_recorded(good_dump(), ()).await;
    for (criu, handle) in [
        as_service(fast(recording.clone())),
        as_service(Replay::new(recording.clone())),
    ] {
        let seen = Mutex::new(Vec::new());
        let hooks = hook_fn(async |notify: Notify| {
            seen.lock().unwrap().push(notify.script().to_string());
            Ok(Reply::Accept)
        });
        let report = Scene::new().dump(&criu, hooks).await.unwrap();
        assert_eq!(report.tasks, TaskState::Running);
        assert_eq!(*seen.lock().unwrap(), ["pre-dump", "post-dump"]);
        assert_eq!(expect_whole(handle), [[1]]);
    }
    let (criu, replay) = as_program(fast(recording));
    Scene::new().dump(&criu, ()).await.unwrap();
    let replayed = replay.replayed().unwrap();
    assert!(replayed.outcomes[0].is_whole());
    assert_eq!(replayed.outcomes[0].sessions, [1]);
}

async fn a_dump_that_a_hook_refuses() {
    let script = dumping()
        .callback("pre-dump")
        .expect_accept()
        .callback("post-dump")
        .expect_refusal()
        .answer_failure(Request::Dump);
    let recording = dump_recorded(script, refuse_post_dump()).await;
    let (criu, handle) = as_service(fast(recording.clone()));
    let error = Scene::new()
        .dump(&criu, refuse_post_dump())
        .await
        .unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Hook { .. }), "{error:?}");
    expect_whole(handle);

    // Who accepts is not played what came of the refusal.
    for compare in [Compare::Strict, Compare::Sequence] {
        let (criu, handle) = as_service(fast(recording.clone()).compare(compare));
        let error = Scene::new().dump(&criu, ()).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Lost { .. }), "{error:?}");
        let departure = expect_departure(handle);
        assert_eq!(departure.session, 1);
        assert_eq!(departure.entry, entry_of(&recording, "NOTIFY") + 2);
        assert_eq!(departure.expected.to_string(), "a refusal");
        assert_eq!(departure.got.to_string(), "an acceptance");
    }
}

async fn a_restore_with_its_callbacks() {
    let gone = 4_000_000;
    let (criu, handle) = as_service(fast(restore_recorded(gone).await));
    let seen = Mutex::new(Vec::new());
    let hooks = hook_fn(async |notify: Notify| {
        seen.lock().unwrap().push(format!("{:?}", notify.event));
        if let criu_client::notify::Event::OrphanPtsMaster { master } = &notify.event {
            // Nobody reads it, and nobody minds.
            rustix::io::write(master.as_fd(), b"hello").unwrap();
        }
        Ok(Reply::Accept)
    });
    let report = Scene::with_images().restore(&criu, hooks).await.unwrap();
    assert_eq!(report.pid, i32::MAX);
    assert_eq!(seen.lock().unwrap().len(), 3);
    let told = seen.lock().unwrap().join(" ");
    assert!(!told.contains(&gone.to_string()), "{told}");
    assert_eq!(expect_whole(handle), [[1]]);
}

async fn a_dump_that_fails() {
    let answer = Response::failure(Request::Dump)
        .errno(3)
        .message(*b"Error (criu/seize.c:1): it says \xff");
    let script = dumping().respond(answer);
    let (criu, handle) = as_service(fast(dump_recorded(script, ()).await));
    let error = Scene::new().dump(&criu, ()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Refused { .. }));
    assert_eq!(error.errno().unwrap().0, 3);
    assert!(
        error.criu_message().unwrap().contains("it says"),
        "{error:?}"
    );
    expect_whole(handle);
}

async fn what_a_listener_did_is_played_as_the_engine_saw_it() {
    // The listener's hook refuses at post-dump, and its amendment is none of the engine's business.
    let interposer = Interposer::new()
        .hooks_at([Name::PostDump], refuse_post_dump())
        .on_request(|request| {
            Ok(match request.name() {
                "DUMP" => Verdict::Amend(Amendment::dump(
                    DumpOptions::new().network_lock(NetworkLock::Skip),
                )?),
                _ => Verdict::Pass,
            })
        });
    let script = dumping()
        .callback("pre-dump")
        .expect_accept()
        .callback("post-dump")
        .expect_refusal()
        .answer_failure(Request::Dump);
    let mut recorder = Recorder::new(false);
    let scene = Scene::new();
    let engine = async |criu: Criu| scene.dump(&criu, ()).await;
    let error = recorder
        .session(script, interposer, engine)
        .await
        .unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Refused { .. }));
    let recording = recorder.recording();
    let has = |wanted: fn(&Event) -> bool| {
        let mut entries = recording.entries.iter();
        entries.any(|entry| wanted(&entry.event))
    };
    assert!(has(|event| matches!(event, Event::Withheld { .. })));
    assert!(has(|event| matches!(event, Event::Amended { .. })));

    let (criu, handle) = as_service(fast(recording.clone()));
    let seen = Mutex::new(Vec::new());
    let hooks = hook_fn(async |notify: Notify| {
        seen.lock().unwrap().push(notify.script());
        Ok(Reply::Accept)
    });
    let error = Scene::new().dump(&criu, hooks).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Refused { .. }));
    assert_eq!(*seen.lock().unwrap(), [Name::PreDump]);
    expect_whole(handle);
}

async fn a_request_that_the_listener_refused() {
    let interposer = Interposer::new().on_request(|request| {
        Ok(match request.name() {
            "DUMP" => Verdict::Refuse("not this one".into()),
            _ => Verdict::Pass,
        })
    });
    let mut recorder = Recorder::new(false);
    let scene = Scene::new();
    let engine = async |criu: Criu| scene.dump(&criu, ()).await.map(drop);
    let script = Script::new().version(4, 2, 1).silence();
    let recorded = recorder
        .session(script, interposer, engine)
        .await
        .unwrap_err();
    let (criu, handle) = as_service(fast(recorder.recording()));
    let error = Scene::new().dump(&criu, ()).await.unwrap_err();
    assert!(error.criu_message().unwrap().contains("not this one"));
    assert_eq!(error.criu_message(), recorded.criu_message());
    expect_whole(handle);
}

// --- the client does something else ---

async fn another_order_departs() {
    let recording = dump_recorded(good_dump(), ()).await;
    for compare in [Compare::Strict, Compare::Sequence] {
        let (criu, handle) = as_service(fast(recording.clone()).compare(compare));
        let scene = Scene::with_images();
        scene.restore(&criu, ()).await.unwrap_err();
        let departure = expect_departure(handle);
        assert_eq!(departure.entry, entry_of(&recording, "DUMP"));
        assert_eq!(departure.expected.to_string(), "DUMP");
        assert_eq!(departure.got.to_string(), "RESTORE");
        let line = departure.entry + 2;
        assert_eq!(
            departure.to_string(),
            format!("session 1, line {line}: expected DUMP, got RESTORE")
        );
    }
}

async fn another_option_departs() {
    let recording = dump_recorded(good_dump(), ()).await;
    let scene = Scene::new();
    let dump = async |criu: &Criu| -> Result<()> {
        let options = DumpOptions::new()
            .leave(Leave::Running)
            .tcp_established(true);
        let dumped = criu.dump(scene.task.pid(), &scene.images, (), options);
        dumped.await.map(drop)
    };
    let (criu, handle) = as_service(fast(recording.clone()));
    dump(&criu).await.unwrap_err();
    let departure = expect_departure(handle);
    assert_eq!(departure.entry, entry_of(&recording, "DUMP"));
    let seen: Vec<_> = departure
        .differences
        .iter()
        .map(|one| (one.name.as_str(), one.expected.clone(), one.got.clone()))
        .collect();
    assert_eq!(
        seen,
        [
            ("opts.leave_running", None, Some(json!(true))),
            ("opts.tcp_established", None, Some(json!(true))),
        ]
    );
    let said = departure.to_string();
    let expected = "another DUMP than expected: opts.leave_running is true, expected unset; ";
    assert!(said.contains(expected), "{said}");

    // It is the same sequence.
    let (criu, handle) = as_service(fast(recording).compare(Compare::Sequence));
    dump(&criu).await.unwrap();
    expect_whole(handle);
}

async fn a_hang_up_departs() {
    let recording = dump_recorded(good_dump(), ()).await;
    let (criu, handle) = as_service(fast(recording.clone()));
    let criu = criu.with_limits(limits().settle(Duration::ZERO).operation(LIMIT));
    let hooks = hook_fn(async |_: Notify| std::future::pending().await);
    Scene::new().dump(&criu, hooks).await.unwrap_err();
    let departure = expect_departure(handle);
    // An operation that is given up refuses before it hangs up.
    assert_eq!(departure.expected.to_string(), "an acceptance");
    assert_eq!(departure.entry, entry_of(&recording, "NOTIFY"));

    let (client, playing) = Client::play(&fast(recording.clone()));
    drop(client);
    let departure = playing.join().unwrap().departure.unwrap();
    assert_eq!(departure.entry, entry_of(&recording, "VERSION"));
    assert_eq!(departure.got, Said::HangUp);
}

async fn silence_departs() {
    let recording = written(&[(
        &[(0, Side::Engine, VERSION), (1, Side::Criu, VERSION_4_2_1)],
        Side::Criu,
    )]);
    let replay = fast(recording).patience(Duration::from_millis(50));
    let (_client, playing) = Client::play(&replay);
    let departure = playing.join().unwrap().departure.unwrap();
    assert_eq!((departure.session, departure.entry), (1, 0));
    assert_eq!(departure.got, Said::Nothing);
}

async fn a_message_behind_the_end_departs() {
    let keep_open = b"\x08\x0a\x20\x01";
    let recording = written(&[(
        &[(0, Side::Engine, keep_open), (1, Side::Criu, VERSION_4_2_1)],
        Side::Engine,
    )]);
    let (client, playing) = Client::play(&fast(recording));
    client.say(keep_open);
    client.hear();
    client.say(keep_open);
    let departure = playing.join().unwrap().departure.unwrap();
    assert_eq!(departure.entry, 2);
    assert_eq!(departure.expected, Said::HangUp);
    assert_eq!(departure.got.to_string(), "VERSION");
}

async fn a_client_that_leaves_without_its_answer_departs() {
    let messages: &[(u64, Side, &[u8])] =
        &[(0, Side::Engine, VERSION), (200, Side::Criu, VERSION_4_2_1)];
    let replay = Replay::new(written(&[(messages, Side::Criu)]));
    let (client, playing) = Client::play(&replay);
    client.say(VERSION);
    drop(client);
    let departure = playing.join().unwrap().departure.unwrap();
    assert_eq!((departure.entry, departure.expected), (1, Said::Nothing));

    // Unless that is what the engine did.
    let replay = Replay::new(written(&[(messages, Side::Engine)]));
    let (client, playing) = Client::play(&replay);
    client.say(VERSION);
    drop(client);
    assert!(playing.join().unwrap().is_whole());
}

// --- time, bytes, masks ---

async fn time_is_scaled() {
    let recorded = Duration::from_millis(1200);
    let at = u64::try_from(recorded.as_millis()).unwrap();
    let recording = written(&[(
        &[
            (500, Side::Engine, VERSION),
            (500 + at, Side::Criu, VERSION_4_2_1),
        ],
        Side::Criu,
    )]);
    let took = |speed: Speed| {
        let (client, playing) = Client::play(&Replay::new(recording.clone()).speed(speed));
        let began = Instant::now();
        client.say(VERSION);
        assert_eq!(client.hear(), VERSION_4_2_1);
        let took = began.elapsed();
        assert!(playing.join().unwrap().is_whole());
        took
    };
    // The clock of the player starts a moment after ours.
    assert!(took(Speed::RECORDED) >= recorded);
    let quarter = took(Speed::times(4.0).unwrap());
    assert!(quarter >= recorded / 4 && quarter < recorded, "{quarter:?}");
    assert!(took(Speed::MAX) < recorded / 4);
}

async fn bytes_are_kept() {
    // Fields 99 and 79 of a newer CRIU, in no order that an encoder has.
    let request = b"\x9a\x06\x02ab\x08\x0a";
    let answer = b"\xf8\x04\x05\x52\x06\x08\x04\x10\x02\x20\x01\x10\x01\x08\x0a";
    let recording = written(&[(
        &[(0, Side::Engine, request), (1, Side::Criu, answer)],
        Side::Criu,
    )]);
    let (client, playing) = Client::play(&fast(recording.clone()));
    client.say(request);
    assert_eq!(client.hear(), answer);
    assert_eq!(client.hear(), b"");
    assert!(playing.join().unwrap().is_whole());

    let (client, playing) = Client::play(&fast(recording));
    client.say(b"\x9a\x06\x02ac\x08\x0a");
    let departure = playing.join().unwrap().departure.unwrap();
    assert_eq!(departure.differences[0].name, "#99");
}

async fn masked_paths_match() {
    let mut recorder = Recorder::new(true);
    let scene = Scene::new();
    let dump = async |criu: &Criu, root: &str| -> Result<()> {
        let options = DumpOptions::new().root(root);
        let dumped = criu.dump(scene.task.pid(), &scene.images, (), options);
        dumped.await.map(drop)
    };
    let interposer = Interposer::new().mask(Mask::with_salt(5));
    let engine = async |criu: Criu| dump(&criu, "/srv/secret/root").await;
    recorder
        .session(good_dump(), interposer, engine)
        .await
        .unwrap();
    let recording = recorder.recording();
    let text = format!("{recording:?}");
    assert!(!text.contains("secret"), "{text}");

    let (criu, handle) = as_service(fast(recording.clone()));
    dump(&criu, "/run/other/place").await.unwrap();
    expect_whole(handle);
    let (criu, handle) = as_service(fast(recording));
    dump(&criu, "/run/other").await.unwrap_err();
    let departure = expect_departure(handle);
    assert_eq!(departure.differences[0].name, "opts.root");
}
