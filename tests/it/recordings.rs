//! The core on recordings of real sessions between engines and CRIU (`scripts/record-sessions` makes them).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use criu_client::interpose::recording::{Entry, Event, Recording, Side};
use criu_client::notify::{Notify, Reply, hook_fn};
use criu_client::testing::{Compare, Replay, ReplayHandle, Replayed, Speed};
use criu_client::{Criu, ErrorKind, TaskState};

use crate::harness::cases;
use crate::support::*;

cases![
    every_engine_is_there,
    a_client_that_does_as_the_engine_did,
    our_own_dump,
    our_own_restore,
    our_own_restore_that_fails,
    a_hook_of_ours_departs,
];

const ENGINES: [&str; 5] = ["runc", "crun", "podman-runc", "podman-crun", "docker"];

fn recording(engine: &str, what: &str) -> Recording {
    let path: PathBuf = [
        env!("CARGO_MANIFEST_DIR"),
        "tests/data/recordings",
        &format!("{engine}-{what}.jsonl"),
    ]
    .iter()
    .collect();
    let file = std::fs::read(&path).unwrap();
    Recording::read(file.as_slice()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The recording of an engine's `request`, with what it asked about CRIU itself and no other request.
fn of_request(engine: &str, what: &str, request: &str) -> Recording {
    let mut recording = recording(engine, what);
    let others = ["DUMP", "RESTORE"]
        .into_iter()
        .filter(|other| *other != request);
    let unwanted: Vec<u32> = others
        .flat_map(|other| sessions_of(&recording, other))
        .collect();
    recording
        .entries
        .retain(|entry| !unwanted.contains(&entry.session));
    recording
}

/// The numbers of the sessions with this request.
fn sessions_of(recording: &Recording, request: &str) -> Vec<u32> {
    let asking = recording
        .entries
        .iter()
        .filter(|entry| asks(entry, request));
    asking.map(|entry| entry.session).collect()
}

fn asks(entry: &Entry, request: &str) -> bool {
    matches!(&entry.event, Event::Message { from: Side::Engine, view, .. } if view["type"] == request)
}

/// The callbacks that the engine got.
fn callbacks(recording: &Recording) -> Vec<String> {
    let mut scripts: Vec<String> = Vec::new();
    for entry in &recording.entries {
        match &entry.event {
            Event::Message {
                from: Side::Criu,
                view,
                ..
            } => {
                let script = view
                    .get("notify")
                    .and_then(|notify| notify["script"].as_str());
                scripts.extend(script.map(str::to_owned));
            }
            Event::Withheld { .. } => {
                scripts.pop();
            }
            _ => {}
        }
    }
    scripts
}

fn played(replay: ReplayHandle) -> Replayed {
    let replayed = replay.join();
    assert!(replayed.departure().is_none(), "{:?}", replayed.departure());
    assert_eq!(replayed.problem(), None);
    replayed
}

fn replay(recording: &Recording) -> (Criu, ReplayHandle) {
    let replay = Replay::new(recording.clone())
        .compare(Compare::Sequence)
        .speed(Speed::MAX)
        .service()
        .unwrap();
    (Criu::service(replay.socket()), replay)
}

async fn every_engine_is_there() {
    let mut requests: BTreeMap<&str, usize> = BTreeMap::new();
    for engine in ENGINES {
        for (what, request) in [
            ("checkpoint", "DUMP"),
            ("restore", "RESTORE"),
            ("failed-restore", "RESTORE"),
        ] {
            let recording = recording(engine, what);
            assert!(recording.header.masked);
            let found = sessions_of(&recording, request).len();
            assert_eq!(found, 1, "{engine} {what}: {found} of {request}");
            *requests.entry(request).or_default() += found;
            let succeeds = recording
                .entries
                .iter()
                .rev()
                .find_map(|entry| match &entry.event {
                    Event::Message {
                        from: Side::Criu,
                        view,
                        ..
                    } => view["success"].as_bool(),
                    _ => None,
                });
            assert_eq!(succeeds, Some(what != "failed-restore"), "{engine} {what}");
        }
    }
    assert_eq!(requests, BTreeMap::from([("DUMP", 5), ("RESTORE", 10)]));
}

/// Every recorded session, by a client that sends what the engine sent: strictly, byte for byte.
async fn a_client_that_does_as_the_engine_did() {
    use rustix::net::{
        AddressFamily, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType, sendmsg,
    };
    for engine in ENGINES {
        for what in ["checkpoint", "restore", "failed-restore"] {
            let recording = recording(engine, what);
            for session in recording.sessions() {
                let mut alone = recording.clone();
                alone.entries = session.into_iter().cloned().collect();
                let (ours, theirs) = rustix::net::socketpair(
                    AddressFamily::UNIX,
                    SocketType::SEQPACKET,
                    SocketFlags::CLOEXEC,
                    None,
                )
                .unwrap();
                let replay = Replay::new(alone.clone()).speed(Speed::MAX);
                let player = std::thread::spawn(move || replay.play(theirs));
                for entry in &alone.entries {
                    if let Event::Message {
                        from: Side::Engine,
                        bytes,
                        ..
                    } = &entry.event
                    {
                        let mut none = SendAncillaryBuffer::new(&mut []);
                        let bytes = [std::io::IoSlice::new(bytes)];
                        sendmsg(&ours, &bytes, &mut none, SendFlags::NOSIGNAL).unwrap();
                    }
                }
                rustix::net::shutdown(&ours, rustix::net::Shutdown::Write).unwrap();
                let outcome = player.join().unwrap();
                assert!(outcome.is_whole(), "{engine} {what}: {outcome:?}");
            }
        }
    }
}

async fn our_own_dump() {
    for engine in ENGINES {
        let session = of_request(engine, "checkpoint", "DUMP");
        let (criu, replay) = replay(&session);
        let seen = Mutex::new(Vec::new());
        let hooks = hook_fn(async |notify: Notify| {
            seen.lock().unwrap().push(notify.script().to_string());
            Ok(Reply::Accept)
        });
        let report = Scene::new().dump(&criu, hooks).await.unwrap();
        assert_eq!(*seen.lock().unwrap(), callbacks(&session), "{engine}");
        assert_eq!(report.details.criu_version.to_string(), "4.2.1");
        played(replay);
    }
}

async fn our_own_restore() {
    for engine in ENGINES {
        let session = of_request(engine, "restore", "RESTORE");
        let root = Idle::start();
        let replay = Replay::new(session.clone())
            .compare(Compare::Sequence)
            .speed(Speed::MAX)
            .stand_in(root.pid())
            .service()
            .unwrap();
        let criu = Criu::service(replay.socket());
        let seen = Mutex::new(Vec::new());
        let hooks = hook_fn(async |notify: Notify| {
            seen.lock().unwrap().push(notify.script().to_string());
            Ok(Reply::Accept)
        });
        let report = Scene::with_images().restore(&criu, hooks).await.unwrap();
        assert_eq!(report.pid, root.pid());
        assert_eq!(*seen.lock().unwrap(), callbacks(&session), "{engine}");
        played(replay);
    }
}

async fn our_own_restore_that_fails() {
    for engine in ENGINES {
        let session = of_request(engine, "failed-restore", "RESTORE");
        let (criu, replay) = replay(&session);
        let error = Scene::with_images().restore(&criu, ()).await.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Refused { .. }),
            "{engine}: {error:?}"
        );
        assert_eq!(error.tasks(), TaskState::Absent);
        assert!(error.criu_message().is_some(), "{engine}: {error:?}");
        played(replay);
    }
}

/// What was accepted when it was recorded must be accepted when it is played.
async fn a_hook_of_ours_departs() {
    let session = of_request("runc", "checkpoint", "DUMP");
    let (criu, replay) = replay(&session);
    let hooks = hook_fn(async |_| Ok(Reply::Refuse("not now".into())));
    let error = Scene::new().dump(&criu, hooks).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Hook { .. }), "{error:?}");
    let replayed = replay.join();
    let departure = replayed.departure().expect("it departed");
    assert!(departure.line() > 0);
}
