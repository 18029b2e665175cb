//! Listening in: between the library as the engine and the scripted peer as CRIU.

use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use criu_client::interpose::recording::{Entry, Event, Side};
use criu_client::interpose::{Amendment, Interposer, Mask, Service, Verdict};
use criu_client::notify::{Event as Callback, HookTable, Notify, Reply, Script as Name, hook_fn};
use criu_client::options::{DumpOptions, ExternalOnDump, NetworkLock};
use criu_client::testing::{self, Peer, PeerHandle, Request, Response, Script};
use criu_client::{Criu, Error, ErrorKind, Version};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, recvmsg, sendmsg,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::harness::cases;
use crate::support::*;

cases![
    everything_passes_and_is_told,
    descriptors_are_found_in_the_engines_table,
    a_refused_hook_is_criu_s_failure,
    hooks_are_asked_before_the_engine,
    a_hook_that_panics_refuses,
    a_hook_that_takes_too_long_refuses,
    a_terminal_reaches_both,
    external_files_of_a_hook_join_the_engines,
    a_request_is_amended,
    an_amendment_that_does_not_fit_refuses,
    an_amendment_that_criu_would_ignore_refuses,
    a_request_is_refused,
    a_process_that_dumps_itself_is_refused,
    an_engine_without_callbacks_gets_none,
    an_engine_without_callbacks_is_spared_a_refusal,
    several_requests_on_one_connection,
    the_death_of_criu_is_the_engines_to_see,
    the_death_of_the_engine_is_criu_s_to_see,
    the_death_of_the_listener_is_both_sides_to_see,
    a_hook_is_dropped_when_the_engine_dies,
    what_is_no_message_passes_too,
    nothing_is_told_unmasked,
    a_service_that_is_not_there_is_a_criu_that_died,
];

/// A listener before a scripted service, carrying one connection.
struct Between {
    peer: PeerHandle,
    socket: PathBuf,
    carried: JoinHandle<std::io::Result<Side>>,
    told: Told,
    _directory: TempDir,
}

#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<Entry>>>);

impl Told {
    fn events(&self) -> Vec<Event> {
        let told = self.0.lock().unwrap();
        told.iter().map(|entry| entry.event.clone()).collect()
    }

    /// The events in short.
    fn words(&self) -> Vec<String> {
        let word = |event: &Event| match event {
            Event::Started { .. } => "started".into(),
            Event::Message { from, view, .. } => {
                let kind = view["type"].as_str().unwrap().to_owned();
                let script = view
                    .get("notify")
                    .and_then(|notify| notify["script"].as_str());
                let arrow = if *from == Side::Engine { "->" } else { "<-" };
                format!("{arrow} {}", script.unwrap_or(&kind))
            }
            Event::Amended { .. } => "amended".into(),
            Event::Hook { accepted, .. } => format!("hook {accepted}"),
            Event::Withheld { accepted, .. } => format!("withheld {accepted}"),
            Event::Refused { .. } => "refused".into(),
            Event::Stats { .. } => "stats".into(),
            Event::Ended { by } => format!("ended by {by:?}"),
            other => format!("{other:?}"),
        };
        self.events().iter().map(word).collect()
    }
}

impl Between {
    fn start(script: Script, interposer: Interposer<'static>) -> Self {
        let peer = Peer::service(script).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let service = Service::listen(&socket, peer.socket()).unwrap();
        let told = Told::default();
        let notes = told.clone();
        let interposer = interposer.observer(move |entry| notes.0.lock().unwrap().push(entry));
        let carried = tokio::spawn(async move {
            let client = service.accept().await?;
            client.listen(interposer).await
        });
        Self {
            peer,
            socket,
            carried,
            told,
            _directory: directory,
        }
    }

    fn criu(&self) -> Criu {
        Criu::service(&self.socket)
    }

    /// A client that says what it likes.
    fn connect(&self) -> OwnedFd {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new(&self.socket).unwrap()).unwrap();
        socket
    }

    /// Waits for the end. The script must have been played as written.
    async fn over(self) -> (Side, testing::Transcript, Told) {
        let by = self.carried.await.unwrap().unwrap();
        let transcript = tokio::task::spawn_blocking(|| self.peer.join())
            .await
            .unwrap();
        assert_eq!(transcript.problem, None, "{:#?}", self.told.words());
        (by, transcript, self.told)
    }
}

fn send(socket: &OwnedFd, bytes: &[u8]) {
    let mut none = SendAncillaryBuffer::new(&mut []);
    sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut none,
        SendFlags::NOSIGNAL,
    )
    .unwrap();
}

/// Blocks; `None` when the other side has hung up.
async fn receive(socket: &OwnedFd) -> Option<Vec<u8>> {
    let socket = socket.try_clone().unwrap();
    tokio::task::spawn_blocking(move || {
        let mut bytes = vec![0; 4096];
        let mut space = [MaybeUninit::uninit(); 64];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let read = recvmsg(
            &socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::empty(),
        );
        let length = read.map_or(0, |read| read.bytes);
        (length > 0).then(|| bytes[..length].to_vec())
    })
    .await
    .unwrap()
}

/// A dump with one callback.
fn one_callback() -> Script {
    dumping().callback("post-dump")
}

fn good() -> Script {
    one_callback()
        .expect_accept()
        .answer_dump_ok()
        .expect_hang_up()
}

fn refused() -> Script {
    one_callback()
        .expect_refusal()
        .answer_failure(Request::Dump)
        .expect_hang_up()
}

async fn everything_passes_and_is_told() {
    let between = Between::start(good(), Interposer::new());
    let scene = Scene::new();
    scene.dump(&between.criu(), ()).await.unwrap();
    let (_, transcript, told) = between.over().await;
    assert_eq!(transcript.requests(), [Request::Version, Request::Dump]);
    assert_eq!(
        told.words()[..7],
        [
            "started",
            "-> VERSION",
            "<- VERSION",
            "-> DUMP",
            "<- post-dump",
            "-> NOTIFY",
            "<- DUMP",
        ]
    );
    let Event::Message { fds, view, .. } = &told.events()[3] else {
        panic!("{:?}", told.events());
    };
    assert_eq!(view["opts"]["pid"], scene.task.pid());
    let images = fds
        .iter()
        .find(|fd| fd.option.as_deref() == Some("images_dir_fd"))
        .unwrap();
    assert_eq!(images.target.as_deref(), scene.directory.path().to_str());
}

async fn descriptors_are_found_in_the_engines_table() {
    let script = dumping()
        // As CRIU does it: by number, in the table of the process at the other end.
        .write_image("inventory.img", "here")
        .write_log("the log")
        .answer_dump_ok()
        .expect_hang_up();
    let between = Between::start(script, Interposer::new());
    let scene = Scene::new();
    let work = tempfile::tempdir().unwrap();
    let directory = std::fs::File::open(work.path()).unwrap();
    let options = DumpOptions::new().work_dir(directory.into());
    between
        .criu()
        .dump(scene.task.pid(), &scene.images, (), options)
        .await
        .unwrap();
    between.over().await;
    assert!(scene.images.contains("inventory.img"));
    assert!(work.path().join("dump.log").exists());
}

fn assert_criu_failed(error: &Error) {
    assert!(
        matches!(error.kind(), ErrorKind::Refused { .. }),
        "{error:?}"
    );
}

async fn a_refused_hook_is_criu_s_failure() {
    let refuse = hook_fn(async |_| Ok(Reply::Refuse("not now".into())));
    let hooks = HookTable::new().on(Name::PostDump, refuse);
    let between = Between::start(refused(), Interposer::new().hooks(hooks));
    let mut asked = 0;
    let engine = hook_fn(|_| {
        asked += 1;
        async { Ok(Reply::Accept) }
    });
    let error = Scene::new()
        .dump(&between.criu(), engine)
        .await
        .unwrap_err();
    assert_criu_failed(&error);
    assert_eq!(asked, 0, "the engine was asked about what had been refused");
    let (_, _, told) = between.over().await;
    assert_eq!(
        told.words()[4..7],
        ["<- post-dump", "hook false", "withheld false"]
    );
    let Event::Hook { reason, .. } = &told.events()[5] else {
        panic!("{:?}", told.events());
    };
    assert_eq!(reason.as_deref(), Some("not now"));
}

async fn hooks_are_asked_before_the_engine() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let ours = order.clone();
    let hooks = hook_fn(move |notify: Notify| {
        ours.lock().unwrap().push("hook");
        assert_eq!(notify.script(), Name::PostDump);
        assert!(notify.root.is_some());
        async { Ok(Reply::Accept) }
    });
    let interposer = Interposer::new().hooks_at([Name::PostDump], hooks);
    let between = Between::start(good(), interposer);
    let engines = order.clone();
    let engine = hook_fn(move |_| {
        engines.lock().unwrap().push("engine");
        async { Ok(Reply::Accept) }
    });
    Scene::new().dump(&between.criu(), engine).await.unwrap();
    between.over().await;
    assert_eq!(*order.lock().unwrap(), ["hook", "engine"]);
}

async fn a_hook_that_panics_refuses() {
    let hooks = hook_fn(|_| -> std::future::Ready<_> { panic!("oh") });
    let between = Between::start(refused(), Interposer::new().hooks(hooks));
    let error = Scene::new().dump(&between.criu(), ()).await.unwrap_err();
    assert_criu_failed(&error);
    let (_, _, told) = between.over().await;
    let text = format!("{:?}", told.events());
    assert!(text.contains("panicked: oh"), "{text}");
}

async fn a_hook_that_takes_too_long_refuses() {
    let hooks = hook_fn(async |_| std::future::pending().await);
    let interposer = Interposer::new().hooks(hooks).hook_limit(SHORT);
    let between = Between::start(refused(), interposer);
    let error = Scene::new().dump(&between.criu(), ()).await.unwrap_err();
    assert_criu_failed(&error);
    between.over().await;
}

async fn a_terminal_reaches_both() {
    let root = Idle::start();
    let terminal = testing::Callback::new("orphan-pts-master").descriptors(1);
    let script = restoring()
        .callback(terminal)
        .expect_accept()
        .answer_restore_ok(root.pid())
        .expect_hang_up();
    let write = |word: &'static str| {
        hook_fn(move |notify: Notify| {
            let Callback::OrphanPtsMaster { master } = notify.event else {
                panic!("{notify:?}");
            };
            std::fs::File::from(master)
                .write_all(word.as_bytes())
                .unwrap();
            std::future::ready(Ok(Reply::Accept))
        })
    };
    let between = Between::start(script, Interposer::new().hooks(write("hook ")));
    let scene = Scene::with_images();
    scene
        .restore(&between.criu(), write("engine"))
        .await
        .unwrap();
    let (_, transcript, told) = between.over().await;
    assert_eq!(transcript.pipes[0].written, b"hook engine");
    assert!(transcript.pipes[0].closed, "a copy of it stayed open");
    let text = format!("{:?}", told.events());
    assert!(text.contains("pipe:["), "{text}");
}

async fn external_files_of_a_hook_join_the_engines() {
    let script = dumping()
        .callback("query-ext-files")
        .expect_accept()
        .answer_dump_ok()
        .expect_hang_up();
    let external = |text: &str| vec![text.parse::<ExternalOnDump>().unwrap()];
    let hooks = hook_fn(move |_| std::future::ready(Ok(Reply::ExternalFiles(external("unix[1]")))));
    let between = Between::start(script, Interposer::new().hooks(hooks));
    let engine =
        hook_fn(move |_| std::future::ready(Ok(Reply::ExternalFiles(external("unix[2]")))));
    Scene::new().dump(&between.criu(), engine).await.unwrap();
    let (_, transcript, _) = between.over().await;
    let reply = transcript.message(Request::Notify).unwrap();
    assert_eq!(reply.texts("external"), ["unix[2]", "unix[1]"]);
}

fn skipping_the_lock() -> Amendment {
    Amendment::dump(DumpOptions::new().network_lock(NetworkLock::Skip)).unwrap()
}

async fn a_request_is_amended() {
    let interposer = Interposer::new().on_request(|request| {
        Ok(match request.name() {
            "DUMP" => {
                assert_eq!(request.option("network_lock").unwrap(), "IPTABLES");
                assert!(request.pid().is_some() && request.images_dir().is_some());
                assert_eq!(
                    request.engine().unwrap().pid,
                    std::process::id().cast_signed()
                );
                Verdict::Amend(skipping_the_lock())
            }
            _ => Verdict::Pass,
        })
    });
    let between = Between::start(good(), interposer);
    let scene = Scene::new();
    let options = DumpOptions::new().network_lock(NetworkLock::Iptables);
    between
        .criu()
        .dump(scene.task.pid(), &scene.images, (), options)
        .await
        .unwrap();
    let (_, transcript, told) = between.over().await;
    let dump = transcript.message(Request::Dump).unwrap();
    assert_eq!(dump.number("network_lock"), Some(3));
    assert_eq!(dump.number("pid"), Some(scene.task.pid().into()));
    let Event::Amended { added, .. } = &told.events()[4] else {
        panic!("{:?}", told.words());
    };
    assert_eq!(added.len(), 1);
    assert_eq!(added["network_lock"], "SKIP");
}

/// The error of a dump whose request does not reach CRIU.
async fn not_passed(interposer: Interposer<'static>) -> Error {
    let script = Script::new().version(4, 2, 1).expect_hang_up();
    let between = Between::start(script, interposer);
    let error = Scene::new().dump(&between.criu(), ()).await.unwrap_err();
    assert_criu_failed(&error);
    let (_, transcript, told) = between.over().await;
    assert_eq!(transcript.requests(), [Request::Version]);
    assert_eq!(told.words()[4], "refused");
    error
}

async fn an_amendment_that_does_not_fit_refuses() {
    let restore = || Amendment::restore(criu_client::options::RestoreOptions::new()).unwrap();
    let interposer = Interposer::new().on_request(move |request| {
        Ok(match request.name() {
            "DUMP" => Verdict::Amend(restore()),
            _ => Verdict::Pass,
        })
    });
    let error = not_passed(interposer).await;
    assert!(
        error.criu_message().unwrap().contains("restore"),
        "{error:?}"
    );
}

async fn an_amendment_that_criu_would_ignore_refuses() {
    let interposer = Interposer::new()
        .criu_version(Version::new(3, 18, 0))
        .on_request(|request| {
            Ok(match request.name() {
                "DUMP" => Verdict::Amend(skipping_the_lock()),
                _ => Verdict::Pass,
            })
        });
    let error = not_passed(interposer).await;
    assert!(
        error.criu_message().unwrap().contains("network_lock"),
        "{error:?}"
    );
}

async fn a_request_is_refused() {
    let interposer = Interposer::new().on_request(|request| {
        Ok(match request.name() {
            "DUMP" => Verdict::Refuse("no dumps on Fridays".into()),
            _ => Verdict::Pass,
        })
    });
    let error = not_passed(interposer).await;
    let message = error.criu_message().unwrap();
    assert!(message.contains("no dumps on Fridays"), "{error:?}");
}

/// The encoded request DUMP with these options.
fn dump_bytes(opts: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x08, 1, 0x12, u8::try_from(opts.len()).unwrap()];
    bytes.extend_from_slice(opts);
    bytes
}

async fn a_process_that_dumps_itself_is_refused() {
    let between = Between::start(Script::new().expect_hang_up(), Interposer::new());
    let engine = between.connect();
    send(&engine, &dump_bytes(&[0x08, 3]));
    let answer = receive(&engine).await.unwrap();
    assert_eq!(answer[..4], [0x08, 1, 0x10, 0], "{answer:?}");
    assert_eq!(receive(&engine).await, None);
    between.over().await;
}

/// DUMP of pid 1 without notify_scripts.
fn deaf_dump() -> Vec<u8> {
    dump_bytes(&[0x08, 3, 0x10, 1])
}

async fn an_engine_without_callbacks_gets_none() {
    let script = Script::new()
        .expect(Request::Dump)
        .callback("pre-dump")
        .expect_accept()
        .callback("post-dump")
        .expect_accept()
        .answer_dump_ok()
        .expect_hang_up();
    let between = Between::start(script, Interposer::new());
    let engine = between.connect();
    send(&engine, &deaf_dump());
    let answer = receive(&engine).await.unwrap();
    assert_eq!(answer, [0x08, 1, 0x10, 1, 0x1a, 2, 0x08, 0]);
    drop(engine);
    let (_, transcript, told) = between.over().await;
    let dump = transcript.message(Request::Dump).unwrap();
    assert_eq!(dump.number("notify_scripts"), Some(1));
    let withheld = told
        .words()
        .iter()
        .filter(|word| *word == "withheld true")
        .count();
    assert_eq!(withheld, 2);
}

async fn an_engine_without_callbacks_is_spared_a_refusal() {
    let script = Script::new()
        .expect(Request::Dump)
        .callback("post-dump")
        .expect_refusal()
        .answer_failure(Request::Dump)
        .expect_hang_up();
    let hooks = hook_fn(async |_| Ok(Reply::Refuse("no".into())));
    let between = Between::start(script, Interposer::new().hooks(hooks));
    let engine = between.connect();
    send(&engine, &deaf_dump());
    let answer = receive(&engine).await.unwrap();
    assert_eq!(answer[..4], [0x08, 1, 0x10, 0], "{answer:?}");
    drop(engine);
    between.over().await;
}

async fn several_requests_on_one_connection() {
    let features = Response::success(Request::FeatureCheck).features([Some(true); 4]);
    let script = Script::new()
        .version(4, 2, 1)
        .expect(Request::FeatureCheck)
        .respond(features)
        .expect_hang_up();
    let between = Between::start(script, Interposer::new());
    between.criu().features().await.unwrap();
    let (by, transcript, _) = between.over().await;
    assert_eq!(by, Side::Engine);
    assert_eq!(transcript.messages[0].keep_open, Some(true));
}

async fn the_death_of_criu_is_the_engines_to_see() {
    let script = one_callback().expect_accept().hang_up();
    let between = Between::start(script, Interposer::new());
    let error = Scene::new().dump(&between.criu(), ()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Lost { .. }), "{error:?}");
    assert_eq!(between.over().await.0, Side::Criu);
}

async fn the_death_of_the_engine_is_criu_s_to_see() {
    let between = Between::start(
        Script::new()
            .expect(Request::Dump)
            .callback("pre-dump")
            .expect_hang_up(),
        Interposer::new(),
    );
    let engine = between.connect();
    send(&engine, &dump_bytes(&[0x08, 3, 0x10, 1, 0x60, 1]));
    receive(&engine).await.unwrap();
    drop(engine);
    assert_eq!(between.over().await.0, Side::Engine);
}

async fn the_death_of_the_listener_is_both_sides_to_see() {
    let between = Between::start(one_callback().expect_hang_up(), Interposer::new());
    let stop = between.carried.abort_handle();
    let engine = hook_fn(move |_| {
        stop.abort();
        async { Ok(Reply::Accept) }
    });
    let error = Scene::new()
        .dump(&between.criu(), engine)
        .await
        .unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Lost { .. }), "{error:?}");
    let transcript = tokio::task::spawn_blocking(|| between.peer.join())
        .await
        .unwrap();
    assert!(transcript.hung_up, "{transcript:?}");
}

async fn a_hook_is_dropped_when_the_engine_dies() {
    let script = Script::new()
        .expect(Request::Dump)
        .callback("pre-dump")
        .expect_hang_up();
    let hooks = hook_fn(async |_| std::future::pending().await);
    let between = Between::start(script, Interposer::new().hooks(hooks));
    let engine = between.connect();
    send(&engine, &deaf_dump());
    until(|| between.told.words().contains(&"<- pre-dump".to_owned())).await;
    drop(engine);
    assert_eq!(between.over().await.0, Side::Engine);
}

async fn what_is_no_message_passes_too() {
    let script = Script::new()
        .await_unread()
        .datagram(b"\xff\xfe nonsense".to_vec(), 0)
        .silence();
    let between = Between::start(script, Interposer::new());
    let engine = between.connect();
    send(&engine, b"\x07\x07\x07");
    assert_eq!(receive(&engine).await.unwrap(), b"\xff\xfe nonsense");
    drop(engine);
    let (_, transcript, told) = between.over().await;
    assert_eq!(
        (
            transcript.messages[0].length,
            transcript.messages[0].request
        ),
        (3, None)
    );
    let Event::Message { bytes, view, .. } = &told.events()[1] else {
        panic!("{:?}", told.events());
    };
    assert_eq!(
        (bytes.as_slice(), view.len()),
        (b"\x07\x07\x07".as_slice(), 0)
    );
}

async fn nothing_is_told_unmasked() {
    let between = Between::start(good(), Interposer::new().mask(Mask::with_salt(3)));
    let scene = Scene::new();
    let options = DumpOptions::new().root("/srv/very-secret");
    between
        .criu()
        .dump(scene.task.pid(), &scene.images, (), options)
        .await
        .unwrap();
    let (_, transcript, told) = between.over().await;
    let dump = transcript.message(Request::Dump).unwrap();
    assert_eq!(dump.texts("root"), ["/srv/very-secret"]);
    let told = serde_json::to_string(&*told.0.lock().unwrap()).unwrap();
    let directory = scene
        .directory
        .path()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap();
    for secret in ["very-secret", directory] {
        assert!(!told.contains(secret), "{told}");
    }
}

async fn a_service_that_is_not_there_is_a_criu_that_died() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let service = Service::listen(&socket, directory.path().join("nobody")).unwrap();
    assert!(
        Service::listen(&socket, "/elsewhere").is_err(),
        "taken twice"
    );
    let carried = tokio::spawn(async move {
        let client = service.accept().await.unwrap();
        client.listen(Interposer::new()).await
    });
    let error = Criu::service(&socket).version().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Lost { .. }), "{error:?}");
    assert!(carried.await.unwrap().is_err());
    assert!(!socket.exists(), "the socket was left behind");
}
