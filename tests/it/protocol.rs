//! What is asked in which order, and what is made of answers that are wrong or odd.

use std::time::{Duration, Instant};

use criu_client::notify::{Event, Notify, Reply, Script as Name, hook_fn};
use criu_client::options::{
    CheckOptions, Compression, CpuinfoOptions, DumpOptions, InheritKey, Lz4, PageTransport,
    PreDumpOptions, RestoreOptions,
};
use criu_client::testing::{Callback, Peer, Request, Response, Script, Value};
use criu_client::{Criu, Error, ErrorKind, OperationKind, TaskState, Version, Violation};

use crate::harness::cases;
use crate::support::*;

cases![
    an_operation_asks_the_version_and_then_one_thing,
    answers_of_another_type,
    answers_of_types_that_do_not_exist,
    a_failed_empty_is_a_refusal,
    a_good_empty_is_no_answer,
    failures_keep_their_errno_and_message,
    a_message_on_success_is_no_failure,
    a_version_answer_without_a_version,
    a_callback_in_place_of_the_version,
    restore_without_a_pid,
    features_without_features,
    features_are_those_of_the_answer,
    cpuinfo_is_refused,
    options_that_are_too_new_are_never_sent,
    a_development_build_has_what_comes_next,
    a_service_is_not_asked_what_only_a_worker_can,
    pre_dump_by_version,
    pre_dump_in_a_loop_ends_with_a_hang_up,
    two_callbacks_before_the_first_reply,
    callbacks_that_nobody_knows,
    a_callback_without_a_name,
    a_callback_where_there_are_none,
    no_process_to_dump,
];

async fn an_operation_asks_the_version_and_then_one_thing() {
    let (criu, peer) = service(dumping().answer_dump_ok().expect_hang_up());
    let scene = Scene::new();
    let report = scene.dump(&criu, ()).await.unwrap();
    assert_eq!(report.pid, scene.task.pid());
    assert_eq!(report.tasks, TaskState::Running);
    assert_eq!(report.details.criu_version, Version::new(4, 2, 1));

    let transcript = peer.join();
    assert_eq!(transcript.problem, None);
    assert_eq!(transcript.requests(), [Request::Version, Request::Dump]);
    let version = &transcript.messages[0];
    assert_eq!(
        (version.keep_open, version.options.is_none()),
        (Some(true), true)
    );
    let dump = &transcript.messages[1];
    assert_eq!(dump.keep_open, None);
    assert_eq!(dump.number("pid"), Some(scene.task.pid().into()));
    assert_eq!(dump.number("notify_scripts"), Some(1));
    assert_eq!(
        dump.option("log_file"),
        Some(&Value::Text("dump.log".into()))
    );
    assert!(dump.number("images_dir_fd").unwrap() > 2);
    assert!(
        transcript
            .messages
            .iter()
            .all(|message| message.descriptors == 0)
    );
    // What was not asked for is not there, not even as false.
    let set: Vec<&String> = dump.options.as_ref().unwrap().keys().collect();
    assert_eq!(set, ["images_dir_fd", "log_file", "notify_scripts", "pid"]);
}

async fn answers_of_another_type() {
    let others = Request::all()
        .filter(|request| !matches!(request, Request::Dump | Request::Empty | Request::Notify));
    for other in others {
        let error = dump_error(dumping().answer_ok(other).expect_hang_up()).await;
        expect_violation(&error, "DUMP", &other.to_string());
        assert_eq!(error.tasks(), TaskState::Running);
    }
}

async fn answers_of_types_that_do_not_exist() {
    for number in [14, 99, -1, i32::MAX] {
        let answer = Response::of_type(number, true);
        let error = dump_error(dumping().respond(answer).expect_hang_up()).await;
        expect_violation(&error, "DUMP", &number.to_string());
    }
}

fn expect_violation(error: &Error, request: &str, answer: &str) {
    let ErrorKind::Protocol(Violation::UnexpectedType { expected, got }) = error.kind() else {
        panic!("{error:?}")
    };
    assert_eq!((*expected, got.as_str()), (request, answer));
}

async fn a_failed_empty_is_a_refusal() {
    let error = dump_error(dumping().answer_failure(Request::Empty).expect_hang_up()).await;
    assert!(matches!(
        error.kind(),
        ErrorKind::Refused {
            operation: OperationKind::Dump
        }
    ));
}

async fn a_good_empty_is_no_answer() {
    let error = dump_error(dumping().answer_ok(Request::Empty).expect_hang_up()).await;
    expect_violation(&error, "DUMP", "EMPTY");
}

async fn failures_keep_their_errno_and_message() {
    let answer = Response::failure(Request::Dump)
        .errno(libc_errno("EBADRQC"))
        .message("Can't open image dir\n");
    let error = dump_error(dumping().respond(answer).expect_hang_up()).await;
    assert!(matches!(error.kind(), ErrorKind::Refused { .. }));
    assert_eq!(error.errno().unwrap().name(), "EBADRQC");
    assert_eq!(error.criu_message(), Some("Can't open image dir"));
    assert_eq!(error.version(), Some(&Version::new(4, 2, 1)));
    assert_eq!(error.tasks(), TaskState::Running);
    assert_eq!(error.exit(), None);
}

fn libc_errno(name: &str) -> i32 {
    (1..200)
        .find(|number| criu_client::Errno(*number).name() == name)
        .unwrap()
}

async fn a_message_on_success_is_no_failure() {
    let answer = Response::success(Request::Dump)
        .restored(false)
        .message("rlimit: Can't setup RLIMIT_NOFILE for self\n");
    let (criu, peer) = service(dumping().respond(answer).expect_hang_up());
    Scene::new().dump(&criu, ()).await.unwrap();
    assert_eq!(peer.join().problem, None);
}

async fn a_version_answer_without_a_version() {
    let bad = [
        Response::success(Request::Version),
        Response::failure(Request::Version),
        Response::failure(Request::Version).version(4, 2, 1),
        Response::failure(Request::Empty),
    ];
    for answer in bad {
        let script = Script::new()
            .expect(Request::Version)
            .respond(answer)
            .expect_hang_up();
        let error = dump_error(script).await;
        let ErrorKind::Protocol(Violation::MissingField { request, field }) = error.kind() else {
            panic!("{error:?}")
        };
        assert_eq!((*request, *field), ("VERSION", "version"));
    }
}

async fn a_callback_in_place_of_the_version() {
    let script = Script::new()
        .expect(Request::Version)
        .callback("pre-dump")
        .expect_refusal()
        .expect_hang_up();
    let (criu, peer) = service(script);
    let criu = criu.with_limits(limits().settle(SHORT));
    let error = criu.version().await.unwrap_err();
    expect_violation(&error, "VERSION", "NOTIFY pre-dump");
    drop(peer);
}

async fn restore_without_a_pid() {
    let (criu, peer) = service(restoring().answer_ok(Request::Restore).expect_hang_up());
    let error = Scene::with_images().restore(&criu, ()).await.unwrap_err();
    expect_missing(&error, "RESTORE", "restore");
    assert_eq!(peer.join().problem, None);
}

pub(crate) fn expect_missing(error: &Error, name: &str, wanted: &str) {
    let ErrorKind::Protocol(Violation::MissingField { request, field }) = error.kind() else {
        panic!("{error:?}")
    };
    assert_eq!((*request, *field), (name, wanted));
}

fn checking_features() -> Script {
    Script::new().version(4, 2, 1).expect(Request::FeatureCheck)
}

async fn features_without_features() {
    let (criu, peer) = service(
        checking_features()
            .answer_ok(Request::FeatureCheck)
            .expect_hang_up(),
    );
    let error = criu.features().await.unwrap_err();
    expect_missing(&error, "FEATURE_CHECK", "features");
    assert_eq!(peer.join().problem, None);
}

async fn features_are_those_of_the_answer() {
    let answer = Response::success(Request::FeatureCheck).features([
        Some(true),
        Some(false),
        Some(true),
        None,
    ]);
    let (criu, peer) = service(checking_features().respond(answer).expect_hang_up());
    let features = criu.features().await.unwrap();
    assert_eq!(
        (
            features.mem_track,
            features.lazy_pages,
            features.pidfd_store,
            features.mem_compression
        ),
        (Some(true), Some(false), Some(true), None)
    );
    let transcript = peer.join();
    let asked = &transcript.message(Request::FeatureCheck).unwrap().features;
    assert_eq!(
        asked,
        &["mem_track", "lazy_pages", "pidfd_store", "mem_compression"]
    );

    let (criu, _peer) = service(checking_features().answer_failure(Request::FeatureCheck));
    let error = criu.features().await.unwrap_err();
    assert!(matches!(
        error.kind(),
        ErrorKind::Refused {
            operation: OperationKind::FeatureCheck
        }
    ));
    assert_eq!(error.tasks(), TaskState::NotConcerned);
}

async fn cpuinfo_is_refused() {
    let script = Script::new()
        .version(4, 2, 1)
        .expect(Request::CpuinfoCheck)
        .write_log("Error (cpu.c:1): cpu: CPU capabilities do not match run time\n")
        .answer_failure(Request::CpuinfoCheck)
        .expect_hang_up();
    let (criu, peer) = service(script);
    let scene = Scene::new();
    let error = criu
        .cpuinfo_check(&scene.images, CpuinfoOptions::new())
        .await
        .unwrap_err();
    assert!(matches!(
        error.kind(),
        ErrorKind::Refused {
            operation: OperationKind::CpuinfoCheck
        }
    ));
    assert!(
        error
            .cause()
            .unwrap()
            .text
            .contains("capabilities do not match"),
        "{error:?}"
    );
    assert_eq!(
        error.log_path(),
        Some(scene.directory.path().join("cpuinfo.log").as_path())
    );
    assert_eq!(peer.join().problem, None);
}

async fn options_that_are_too_new_are_never_sent() {
    let (criu, peer) = service(Script::new().version(4, 2, 1).expect_hang_up());
    let scene = Scene::new();
    let options = DumpOptions::new().compression(Compression::Lz4(Lz4::new()));
    let error = criu
        .dump(scene.task.pid(), &scene.images, (), options)
        .await
        .unwrap_err();
    let ErrorKind::Unsupported { what, needs, has } = error.kind() else {
        panic!("{error:?}")
    };
    assert!(what.contains("compress"));
    assert_eq!((needs.as_str(), has.as_str()), ("CRIU 4.3", "4.2.1"));
    assert_eq!(error.tasks(), TaskState::Running);
    let transcript = peer.join();
    assert_eq!(transcript.problem, None);
    assert_eq!(transcript.requests(), [Request::Version]);
    assert_eq!(scene.directory.path().read_dir().unwrap().count(), 0);
}

async fn a_development_build_has_what_comes_next() {
    let version = Response::success(Request::Version)
        .version(4, 2, 0)
        .git_id("v4.2-22-gabc");
    let script = Script::new()
        .expect(Request::Version)
        .respond(version)
        .expect(Request::Dump)
        .answer_dump_ok()
        .expect_hang_up();
    let (criu, peer) = service(script);
    let scene = Scene::new();
    let options = DumpOptions::new().compression(Compression::Lz4(Lz4::new()));
    let report = criu
        .dump(scene.task.pid(), &scene.images, (), options)
        .await
        .unwrap();
    assert_eq!(report.details.criu_version.git_id(), Some("v4.2-22-gabc"));
    assert_eq!(peer.join().messages[1].number("compress"), Some(1));
}

async fn a_service_is_not_asked_what_only_a_worker_can() {
    let (criu, peer) = service(Script::new());
    let scene = Scene::with_images();
    let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
    let inherits = RestoreOptions::new().inherit_fd(InheritKey::Pipe(1), one.into());
    let connected = DumpOptions::new().page_server(PageTransport::Connected(other.into()));
    let errors = [
        (
            "rst_sibling",
            criu.restore_child(&scene.images, (), RestoreOptions::new())
                .await
                .map(drop),
        ),
        (
            "inherit_fd",
            criu.restore(&scene.images, (), inherits).await.map(drop),
        ),
        (
            "ps.fd",
            criu.dump(scene.task.pid(), &scene.images, (), connected)
                .await
                .map(drop),
        ),
    ];
    for (wanted, result) in errors {
        let error = result.unwrap_err();
        let ErrorKind::Unsupported { what, .. } = error.kind() else {
            panic!("{error:?}")
        };
        assert!(what.contains(wanted), "{what}");
    }
    assert!(!peer.join().connected);
}

async fn pre_dump_by_version() {
    let expected = [
        ((3, 16, 1), Request::PreDump),
        ((3, 17, 0), Request::SinglePreDump),
        ((4, 3, 0), Request::SinglePreDump),
    ];
    for ((major, minor, sublevel), request) in expected {
        let script = Script::new()
            .version(major, minor, sublevel)
            .expect(request)
            .answer_ok(request)
            .expect_hang_up();
        let (criu, peer) = service(script);
        let scene = Scene::new();
        let options = PreDumpOptions::new();
        let report = criu
            .pre_dump(scene.task.pid(), &scene.images, options)
            .await
            .unwrap();
        assert_eq!(report.pid, scene.task.pid());
        let transcript = peer.join();
        assert_eq!(transcript.problem, None);
        assert_eq!(transcript.requests(), [Request::Version, request]);
        assert_eq!(transcript.messages[1].number("notify_scripts"), None);
        assert_eq!(transcript.messages[1].keep_open, None);
    }
}

/// CRIU before 3.17 waits for further pre-dumps; only our hanging up ends it.
async fn pre_dump_in_a_loop_ends_with_a_hang_up() {
    let script = Script::new()
        .version(3, 16, 1)
        .expect(Request::PreDump)
        .answer_ok(Request::PreDump)
        .expect_hang_up()
        .exit(255);
    let (criu, peer) = program(&script);
    let criu = criu.with_limits(limits().settle(Duration::from_secs(25)));
    let scene = Scene::new();
    let started = Instant::now();
    criu.pre_dump(scene.task.pid(), &scene.images, PreDumpOptions::new())
        .await
        .unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "it waited for an end that cannot come"
    );
    let transcript = peer.transcript().unwrap();
    assert_eq!((transcript.problem, transcript.hung_up), (None, true));
}

/// Two restored tasks can send at once: the second callback is there before the first is answered.
async fn two_callbacks_before_the_first_reply() {
    let script = restoring()
        .callback(Callback::new("orphan-pts-master").descriptors(1))
        .callback(Callback::new("orphan-pts-master").descriptors(1))
        .expect_accept()
        .expect_refusal()
        .answer_failure(Request::Restore)
        .expect_hang_up();
    let (criu, peer) = service(script);
    let scene = Scene::with_images();
    let mut restore = criu
        .start_restore(&scene.images, RestoreOptions::new())
        .await
        .unwrap();
    for name in [&b"first"[..], b"second"] {
        let (notify, answer) = restore.next().await.unwrap();
        let Event::OrphanPtsMaster { master } = notify.event else {
            panic!("{notify:?}")
        };
        rustix::io::write(&master, name).unwrap();
        match name {
            b"first" => answer.accept().await,
            _ => answer.refuse("one terminal is enough").await,
        }
    }
    let error = restore.finish().await.unwrap_err();
    assert!(matches!(
        error.kind(),
        ErrorKind::Hook {
            script: Name::OrphanPtsMaster,
            ..
        }
    ));
    let transcript = peer.join();
    assert_eq!(transcript.problem, None);
    assert_eq!(transcript.pipes[0].written, b"first");
    assert_eq!(transcript.pipes[1].written, b"second");
    assert!(transcript.pipes.iter().all(|pipe| pipe.closed));
}

async fn callbacks_that_nobody_knows() {
    let script = dumping()
        .callback(Callback::new("pre-lunch").pid(7).descriptors(1))
        .expect_accept()
        .callback(Callback::new(""))
        .expect_accept()
        // A known one without what belongs to it.
        .callback("setup-namespaces")
        .expect_accept()
        .answer_dump_ok()
        .expect_hang_up();
    let (criu, peer) = service(script);
    let mut seen = Vec::new();
    let hooks = hook_fn(|notify: Notify| {
        let Event::Other { name, pid, fds } = &notify.event else {
            panic!("{notify:?}")
        };
        seen.push((name.clone(), *pid, fds.len()));
        async { Ok(Reply::Accept) }
    });
    Scene::new().dump(&criu, hooks).await.unwrap();
    let expected = [
        ("pre-lunch", Some(7), 1),
        ("", None, 0),
        ("setup-namespaces", None, 0),
    ];
    assert_eq!(
        seen,
        expected.map(|(name, pid, fds)| (name.to_owned(), pid, fds))
    );
    assert_eq!(peer.join().problem, None);
}

async fn a_callback_without_a_name() {
    let error = dump_error(dumping().callback(Callback::nameless()).expect_hang_up()).await;
    assert!(matches!(
        error.kind(),
        ErrorKind::Protocol(Violation::CallbackWithoutScript)
    ));
}

async fn a_callback_where_there_are_none() {
    let script = Script::new()
        .version(4, 2, 1)
        .expect(Request::Check)
        .callback("pre-dump")
        .silence();
    let (criu, peer) = service(script);
    let error = criu
        .with_limits(limits().settle(SHORT))
        .check(CheckOptions::new())
        .await
        .unwrap_err();
    expect_violation(&error, "CHECK", "NOTIFY pre-dump");
    let transcript = peer.join();
    assert!(transcript.hung_up);
    assert!(
        transcript
            .replies()
            .iter()
            .all(|reply| *reply == Some(false)),
        "{transcript:?}"
    );
}

async fn no_process_to_dump() {
    let peer = Peer::service(Script::new()).unwrap();
    let criu = Criu::service(peer.socket());
    let scene = Scene::new();
    for pid in [0, -1] {
        let error = criu
            .dump(pid, &scene.images, (), DumpOptions::new())
            .await
            .unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Precondition { .. }),
            "{error:?}"
        );
    }
    let error = criu
        .restore(&scene.images, (), RestoreOptions::new())
        .await
        .unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Precondition { .. }),
        "{error:?}"
    );
    assert_eq!(error.tasks(), TaskState::Absent);
    assert!(!peer.join().connected);

    // Somebody else's processes may have other numbers: that is asked. Nothing comes of it here.
    let peer = Peer::service(Script::new()).unwrap();
    let criu = Criu::service(peer.socket());
    let gone = {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let pid = child.id().cast_signed();
        let _ = child.wait();
        pid
    };
    let error = criu
        .dump(gone, &scene.images, (), DumpOptions::new())
        .await
        .unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Precondition { .. }),
        "{error:?}"
    );
    assert!(peer.join().connected);
}
