//! The process of a worker: what it is started with, how it dies, what it leaves behind. Also in programs that ignore, or
//! take away, the end of their children.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use criu_client::notify::{Reply, hook_fn};
use criu_client::options::{CheckOptions, InheritKey, RestoreOptions};
use criu_client::testing::{Callback, ProgramPeer, Request, Response, Script};
use criu_client::{Criu, Error, ErrorKind, Exit, TaskState};

use crate::harness::cases;
use crate::support::*;

cases![
    a_good_dump,
    what_it_is_started_with,
    what_it_inherits,
    a_program_that_is_not_there,
    a_program_that_is_no_criu,
    a_program_that_does_not_know_an_argument,
    death_at_every_step,
    death_with_the_connection_left_open,
    death_after_the_answer,
    exit_statuses,
    signals,
    failure_is_judged_by_the_answer,
    output_is_part_of_the_error,
    output_is_bounded,
    output_is_the_verdict,
    the_log_is_part_of_the_error,
    the_log_of_a_good_dump,
    images_are_found_by_number,
    it_answers_and_does_not_end,
    it_fails_and_does_not_end,
    it_hangs_up_and_does_not_end,
    a_restored_child_is_ours_to_reap,
    a_restored_child_that_nobody_waits_for,
    a_half_restored_tree_is_killed_when_criu_dies,
];

/// What is known of a worker's end: nothing certain where others reap it.
fn expect_exit(actual: Option<Exit>, expected: Exit) {
    let actual = actual.unwrap();
    assert!(
        actual == expected || (reaped_by_others() && actual == Exit::Unknown),
        "{actual:?}"
    );
}

fn reaped_by_others() -> bool {
    std::env::args().any(|argument| argument.starts_with("children-"))
}

fn expect_lost(error: &Error, expected: Exit) {
    let ErrorKind::Lost { exit } = error.kind() else {
        panic!("{error:?}")
    };
    expect_exit(*exit, expected);
    assert_eq!(error.exit(), *exit);
    assert_eq!(error.tasks(), TaskState::Running);
}

async fn a_good_dump() {
    let script = dumping()
        .callback("pre-dump")
        .expect_accept()
        .callback("post-dump")
        .expect_accept()
        .answer_dump_ok();
    let (criu, peer) = program(&script);
    let report = Scene::new().dump(&criu, ()).await.unwrap();
    assert_eq!(report.tasks, TaskState::Running);
    assert_eq!(report.details.log, None);
    let transcript = peer.transcript().unwrap();
    assert_eq!((transcript.problem.as_deref(), transcript.steps), (None, 8));
    assert!(!Path::new(&format!("/proc/{}", transcript.process.unwrap().pid)).exists());
}

async fn what_it_is_started_with() {
    let (criu, peer) = program(&dumping().answer_dump_ok());
    // Every descriptor of ours that is open must stay ours, close-on-exec or not.
    let leaked: OwnedFd = tempfile::tempfile().unwrap().into();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let script = peer.arguments()[1].to_str().unwrap().to_owned();
    Scene::new().dump(&criu, ()).await.unwrap();
    let process = peer.transcript().unwrap().process.unwrap();
    assert_eq!(process.arguments[1..], ["--peer", &script, "swrk", "3"]);
    assert_eq!(
        process.descriptors.keys().copied().collect::<Vec<_>>(),
        [0, 1, 2, 3]
    );
    assert_eq!(process.descriptors[&0], "/dev/null");
    assert!(process.descriptors[&1].contains("-stdout"), "{process:?}");
    assert!(process.descriptors[&2].contains("-stderr"), "{process:?}");
    assert!(
        process.descriptors[&3].starts_with("socket:"),
        "{process:?}"
    );
    assert_eq!(process.session, process.pid);
    assert_eq!(process.ignored_signals, [libc::SIGPIPE]);
    assert!(process.blocked_signals.is_empty());
    assert!(std::env::var_os("CRIU_CONFIG_FILE").is_some());
    assert!(
        !process
            .environment
            .iter()
            .any(|name| name == "CRIU_CONFIG_FILE")
    );
    assert!(process.environment.iter().any(|name| name == "PATH"));
}

async fn what_it_inherits() {
    let root = Idle::start();
    let (criu, peer) = program(&restoring().answer_restore_ok(root.pid()));
    let (reader, writer) = std::io::pipe().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(directory.path().join("inherited")).unwrap();
    let options = RestoreOptions::new()
        .inherit_fd(InheritKey::Pipe(17), writer.into())
        .inherit_fd(InheritKey::Path("var/log/inherited".into()), file.into());
    let scene = Scene::with_images();
    criu.restore(&scene.images, (), options).await.unwrap();
    let transcript = peer.transcript().unwrap();
    let process = transcript.process.as_ref().unwrap();
    assert_eq!(
        process.descriptors.keys().copied().collect::<Vec<_>>(),
        [0, 1, 2, 3, 4, 5]
    );
    assert!(process.descriptors[&4].starts_with("pipe:"), "{process:?}");
    assert!(
        process.descriptors[&5].ends_with("/inherited"),
        "{process:?}"
    );
    let request = transcript.message(Request::Restore).unwrap();
    assert_eq!(request.options.as_ref().unwrap()["inherit_fd"].len(), 2);
    drop(reader);
}

async fn a_program_that_is_not_there() {
    let error = Criu::at("/no/such/criu").version().await.unwrap_err();
    let ErrorKind::Start { program, .. } = error.kind() else {
        panic!("{error:?}")
    };
    assert_eq!(program, Path::new("/no/such/criu"));
    let error = Criu::at("/etc/passwd").version().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Start { .. }), "{error:?}");
    let error = Scene::new()
        .dump(&Criu::at("/no/such/criu"), ())
        .await
        .unwrap_err();
    assert_eq!(error.tasks(), TaskState::Running);
}

async fn a_program_that_is_no_criu() {
    let error = Criu::at("/bin/false").version().await.unwrap_err();
    expect_no_criu(&error);
    let error = Scene::new()
        .dump(&Criu::at("/bin/ls"), ())
        .await
        .unwrap_err();
    expect_no_criu(&error);
    assert_eq!(error.tasks(), TaskState::Running);
}

async fn a_program_that_does_not_know_an_argument() {
    let scene = Scene::new();
    for (arguments, needs) in [
        (&["--ghost-fiemap"][..], Some(("--ghost-fiemap", "3.18"))),
        (
            &["-L", "/x", "--allow-uprobes"],
            Some(("--allow-uprobes", "4.2")),
        ),
        (
            &["--ghost-fiemap=x", "--allow-uprobes"],
            Some(("--ghost-fiemap, --allow-uprobes", "4.2")),
        ),
        // It had these, and something else was wrong; or it is not known when they came.
        (&["--file-validation", "filesize"], None),
        (&["--frobnicate"], None),
    ] {
        let peer = ProgramPeer::new(&Script::new().version(3, 17, 1)).unwrap();
        let [option, script] = peer.arguments();
        let own = std::env::current_exe().unwrap();
        let criu = scene.directory.path().join("criu");
        // As CRIU does: usage, and away.
        let text = format!(
            "#!/bin/sh\n[ \"$1\" = swrk ] || {{ echo \"criu: unrecognized option '$1'\" >&2; exit 1; }}\nexec '{}' {} '{}' \"$@\"\n",
            own.display(),
            option.display(),
            script.display()
        );
        std::fs::write(&criu, text).unwrap();
        std::fs::set_permissions(&criu, std::fs::Permissions::from_mode(0o755)).unwrap();
        let criu = Criu::at(criu).with_arguments(arguments.iter().copied());
        let error = scene.dump(&criu, ()).await.unwrap_err();
        assert_eq!(error.tasks(), TaskState::Running);
        match (error.kind(), needs) {
            (ErrorKind::Unsupported { what, needs, has }, Some((argument, version))) => {
                assert_eq!(what, argument);
                assert_eq!(
                    (needs.as_str(), has.as_str()),
                    (format!("CRIU {version}").as_str(), "3.17.1")
                );
            }
            (ErrorKind::Lost { .. }, None) => {
                assert!(error.stderr().contains("unrecognized"), "{error:?}")
            }
            // See below.
            (ErrorKind::Start { .. }, _) if reaped_by_others() => {}
            _ => panic!("{arguments:?}: {error:?}"),
        }
    }
}

/// It ended by itself at once. Where others reap it, it may be gone before it could be watched.
fn expect_no_criu(error: &Error) {
    match error.kind() {
        ErrorKind::Lost { exit: Some(_) } => {}
        ErrorKind::Start { .. } if reaped_by_others() => {}
        _ => panic!("{error:?}"),
    }
}

async fn death_at_every_step() {
    let callbacks = ["pre-dump", "query-ext-files", "post-dump", "status-ready"];
    let mut scripts = vec![
        Script::new().await_unread().die(),
        Script::new().expect(Request::Version).die(),
        Script::new().version(4, 2, 1).die(),
        dumping().die(),
    ];
    for last in 1..=callbacks.len() {
        let before = callbacks[..last - 1]
            .iter()
            .fold(dumping(), |script, name| {
                script.callback(*name).expect_accept()
            });
        // Without waiting for the reply, with it unread, and after it.
        scripts.push(before.clone().callback(callbacks[last - 1]).die());
        scripts.push(
            before
                .clone()
                .callback(callbacks[last - 1])
                .await_unread()
                .die(),
        );
        scripts.push(before.callback(callbacks[last - 1]).expect_accept().die());
    }
    let scene = Scene::new();
    for script in scripts {
        let (criu, peer) = program(&script);
        let error = scene.dump(&criu, ()).await.unwrap_err();
        let transcript = peer.transcript().unwrap();
        expect_lost(&error, Exit::Signal(libc::SIGKILL));
        assert_eq!(transcript.problem, None, "{script:?}");
    }
}

/// The worker's forks can hold its end of the connection, so that there is no hang-up.
async fn death_with_the_connection_left_open() {
    for script in [
        Script::new()
            .expect(Request::Version)
            .leave_connection_open()
            .die(),
        dumping().leave_connection_open().die(),
        dumping()
            .callback("pre-dump")
            .expect_accept()
            .leave_connection_open()
            .die(),
    ] {
        let (criu, peer) = program(&script);
        let error = Scene::new().dump(&criu, ()).await.unwrap_err();
        expect_lost(&error, Exit::Signal(libc::SIGKILL));
        assert_eq!(peer.transcript().unwrap().problem, None);
    }
    // The answer counts even so.
    let (criu, _peer) = program(&dumping().leave_connection_open().answer_dump_ok().die());
    Scene::new().dump(&criu, ()).await.unwrap();
}

async fn death_after_the_answer() {
    let (criu, _peer) = program(&dumping().answer_dump_ok().die());
    Scene::new().dump(&criu, ()).await.unwrap();
    let (criu, _peer) = program(&dumping().answer_failure(Request::Dump).die());
    let error = Scene::new().dump(&criu, ()).await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Refused { .. }),
        "{error:?}"
    );
    expect_exit(error.exit(), Exit::Signal(libc::SIGKILL));
}

async fn exit_statuses() {
    for status in [0, 1, 255] {
        let (criu, _peer) = program(&dumping().exit(status));
        let error = Scene::new().dump(&criu, ()).await.unwrap_err();
        expect_lost(&error, Exit::Status(status.into()));
    }
}

async fn signals() {
    for signal in [libc::SIGTERM, libc::SIGABRT, libc::SIGSEGV, libc::SIGHUP] {
        let (criu, _peer) = program(&dumping().die_by(signal));
        let error = Scene::new().dump(&criu, ()).await.unwrap_err();
        expect_lost(&error, Exit::Signal(signal));
    }
}

async fn failure_is_judged_by_the_answer() {
    let (criu, _peer) = program(&dumping().answer_dump_ok().exit(1));
    Scene::new().dump(&criu, ()).await.unwrap();
    let (criu, _peer) = program(&dumping().answer_failure(Request::Dump).exit(0));
    let error = Scene::new().dump(&criu, ()).await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Refused { .. }),
        "{error:?}"
    );
    expect_exit(error.exit(), Exit::Status(0));
}

async fn output_is_part_of_the_error() {
    let script = dumping()
        .stdout("Missing CAP_SYS_ADMIN\n")
        .stderr("Error (criu/options.c:12): unknown option\n")
        .respond(Response::failure(Request::Dump).errno(56))
        .exit(1);
    let (criu, _peer) = program(&script);
    let error = Scene::new().dump(&criu, ()).await.unwrap_err();
    assert_eq!(error.stdout(), "Missing CAP_SYS_ADMIN");
    assert_eq!(error.stderr(), "Error (criu/options.c:12): unknown option");
    assert!(
        error.cause().unwrap().text.contains("unknown option"),
        "{error:?}"
    );
    assert_eq!(error.log_path(), None);
    let json = serde_json::to_value(&error).unwrap();
    assert_eq!(json["stdout"], "Missing CAP_SYS_ADMIN");
}

async fn output_is_bounded() {
    // A pipe that nobody reads would stop it here for ever.
    let script = dumping()
        .stdout(vec![b'o'; 300_000])
        .stderr(vec![b'e'; 300_000])
        .answer_failure(Request::Dump);
    let (criu, peer) = program(&script);
    let error = Scene::new().dump(&criu, ()).await.unwrap_err();
    assert_eq!(peer.transcript().unwrap().problem, None);
    assert_eq!(error.stdout(), "o".repeat(64 * 1024));
    assert_eq!(error.stderr(), "e".repeat(64 * 1024));
}

async fn output_is_the_verdict() {
    let checking = || Script::new().version(4, 2, 1).expect(Request::Check);
    let (criu, peer) = program(&checking().stdout("Looks good.\n").answer_ok(Request::Check));
    assert_eq!(
        criu.check(CheckOptions::new()).await.unwrap().text,
        "Looks good."
    );
    assert_eq!(peer.transcript().unwrap().problem, None);

    let script = checking()
        .stdout("Error: no soft-dirty\n")
        .answer_failure(Request::Check);
    let (criu, _peer) = program(&script);
    let error = criu.check(CheckOptions::new()).await.unwrap_err();
    assert!(error.stdout().contains("soft-dirty"));
}

async fn the_log_is_part_of_the_error() {
    let log = "(00.01) Warn  (criu/a.c:1): odd\n\
               (00.02) Error (criu/mem.c:42): mem: Can't do it\n\
               (00.03) Error (criu/cr-dump.c:2098): Dumping FAILED.\n";
    let script = dumping()
        .write_log(log)
        .answer_failure(Request::Dump)
        .exit(1);
    let (criu, peer) = program(&script);
    let scene = Scene::new();
    let error = scene.dump(&criu, ()).await.unwrap_err();
    assert_eq!(peer.transcript().unwrap().problem, None);
    assert_eq!(
        error.log_path(),
        Some(scene.directory.path().join("dump.log").as_path())
    );
    assert!(
        error.cause().unwrap().text.contains("Can't do it"),
        "{error:?}"
    );
    assert!(error.to_string().contains("Can't do it"), "{error}");
}

async fn the_log_of_a_good_dump() {
    let log = "(00.01) Warn  (criu/a.c:1): odd\n(00.02) Dumping finished successfully\n";
    let (criu, _peer) = program(&dumping().write_log(log).answer_dump_ok());
    let scene = Scene::new();
    let details = scene.dump(&criu, ()).await.unwrap().details;
    assert_eq!(details.log, Some(scene.directory.path().join("dump.log")));
    assert_eq!(details.warnings.len(), 1);

    // A log that was never written to leaves no file.
    let (criu, _peer) = program(&dumping().answer_failure(Request::Dump));
    let scene = Scene::new();
    assert_eq!(scene.dump(&criu, ()).await.unwrap_err().log_path(), None);
    assert_eq!(scene.directory.path().read_dir().unwrap().count(), 0);
}

async fn images_are_found_by_number() {
    let script = dumping()
        .callback("pre-dump")
        .expect_accept()
        .write_image("inventory.img", *b"images")
        .answer_dump_ok();
    let (criu, peer) = program(&script);
    let scene = Scene::new();
    let mut dump = scene.start_dump(&criu).await.unwrap();
    // A directory that is renamed meanwhile is still the same.
    let renamed = scene.directory.path().with_extension("renamed");
    let (_, answer) = dump.next().await.unwrap();
    std::fs::rename(scene.directory.path(), &renamed).unwrap();
    answer.accept().await;
    dump.finish().await.unwrap();
    assert_eq!(peer.transcript().unwrap().problem, None);
    let written = std::fs::read(renamed.join("inventory.img"));
    std::fs::rename(&renamed, scene.directory.path()).unwrap();
    assert_eq!(written.unwrap(), b"images");
}

async fn it_answers_and_does_not_end() {
    let (criu, _peer) = program(&dumping().answer_dump_ok().linger(EVER));
    let criu = criu.with_limits(limits().settle(SHORT));
    // The harness sees to it that it is gone.
    Scene::new().dump(&criu, ()).await.unwrap();
}

async fn it_fails_and_does_not_end() {
    let (criu, _peer) = program(&dumping().answer_failure(Request::Dump).linger(EVER));
    let criu = criu.with_limits(limits().settle(SHORT));
    let error = Scene::new().dump(&criu, ()).await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Refused { .. }),
        "{error:?}"
    );
    expect_exit(error.exit(), Exit::Signal(libc::SIGKILL));
}

async fn it_hangs_up_and_does_not_end() {
    let (criu, _peer) = program(&dumping().hang_up().linger(EVER));
    let criu = criu.with_limits(limits().settle(SHORT));
    let error = Scene::new().dump(&criu, ()).await.unwrap_err();
    expect_lost(&error, Exit::Signal(libc::SIGKILL));
}

async fn a_restored_child_is_ours_to_reap() {
    let root = Idle::start();
    let script = restoring()
        .callback(Callback::new("post-restore").pid(root.pid()))
        .expect_accept()
        .answer_restore_ok(root.pid());
    let (criu, peer) = program(&script);
    let scene = Scene::with_images();
    let restored = criu
        .restore_child(&scene.images, (), RestoreOptions::new())
        .await
        .unwrap();
    assert_eq!(
        (restored.root.pid(), restored.report.pid),
        (root.pid(), root.pid())
    );
    let transcript = peer.transcript().unwrap();
    assert_eq!(
        transcript
            .message(Request::Restore)
            .unwrap()
            .number("rst_sibling"),
        Some(1)
    );
    let pidfd = restored.root.pidfd().unwrap();
    rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::TERM).unwrap();
    expect_exit(
        Some(restored.root.wait().await.unwrap()),
        Exit::Signal(libc::SIGTERM),
    );
}

async fn a_restored_child_that_nobody_waits_for() {
    let mut root = Idle::start();
    let (criu, _peer) = program(&restoring().answer_restore_ok(root.pid()));
    let scene = Scene::with_images();
    let restored = criu
        .restore_child(&scene.images, (), RestoreOptions::new())
        .await
        .unwrap();
    drop(restored);
    assert!(root.runs(), "dropping the handle must not end it");
    // Reaped in the background: by nobody in this process, which is what the harness looks for.
    let pid = rustix::process::Pid::from_raw(root.pid()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    until(|| !Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists()).await;
}

async fn a_half_restored_tree_is_killed_when_criu_dies() {
    for name in ["setup-namespaces", "post-restore"] {
        let mut root = Idle::start();
        let script = restoring()
            .callback(Callback::new(name).pid(root.pid()))
            .expect_accept()
            .die();
        let (criu, _peer) = program(&script);
        let error = Scene::with_images().restore(&criu, ()).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Lost { .. }), "{error:?}");
        assert_eq!(error.tasks(), TaskState::Absent);
        assert!(!root.runs());
    }
    // Once the tasks are released they run, whatever becomes of CRIU.
    let mut root = Idle::start();
    let script = restoring()
        .callback(Callback::new("post-restore").pid(root.pid()))
        .expect_accept()
        .callback("pre-resume")
        .expect_accept()
        .die();
    let (criu, _peer) = program(&script);
    let hooks = hook_fn(async |_| Ok(Reply::Accept));
    let error = Scene::with_images()
        .restore(&criu, hooks)
        .await
        .unwrap_err();
    assert_eq!(error.tasks(), TaskState::Running);
    assert!(root.runs());
}
