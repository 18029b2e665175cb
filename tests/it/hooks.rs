//! Hooks: what they see, what they may answer, and what becomes of those that fail.

use std::os::fd::AsFd;
use std::time::Duration;

use criu_client::notify::{
    Event, HookTable, Hooks, Notify, Program, ProgramError, Reply, Script as Name, hook_fn,
};
use criu_client::options::ExternalOnDump;
use criu_client::testing::{Callback, Request, Script, Value};
use criu_client::{Error, ErrorKind, HookFailure, TaskState};

use crate::harness::cases;
use crate::support::*;

cases![
    hooks_see_what_criu_tells,
    a_refusal,
    an_error,
    a_panic,
    a_panic_before_the_first_await,
    a_hook_that_takes_too_long,
    a_hook_in_which_the_operation_runs_out_of_time,
    an_answer_that_is_dropped,
    a_refusal_that_criu_answers_with_success,
    a_refusal_that_criu_does_not_survive,
    callbacks_after_a_refusal_reach_the_hooks,
    only_the_first_refusal_is_the_cause,
    refusals_that_come_too_late_are_reported,
    external_files_travel_in_the_reply,
    external_files_where_they_mean_nothing,
    a_terminal_is_the_hooks_own,
    pull_style,
    a_table_of_hooks,
    programs_as_hooks,
    a_program_that_takes_too_long_is_killed,
    a_program_gets_criu_s_own_environment,
];

/// A dump that is refused at post-dump: one refusal and nothing more, or the peer complains.
fn refused_at_post_dump() -> Script {
    dumping()
        .callback("pre-dump")
        .expect_accept()
        .callback("post-dump")
        .expect_refusal()
        .answer_failure(Request::Dump)
        .expect_hang_up()
}

/// Runs `hooks` into [`refused_at_post_dump`].
async fn refused(hooks: impl Hooks) -> Error {
    let (criu, peer) = service(refused_at_post_dump());
    let criu = criu.with_limits(limits().hook(LIMIT));
    let error = Scene::new().dump(&criu, hooks).await.unwrap_err();
    let transcript = peer.join();
    assert_eq!(transcript.problem, None, "{error:?}");
    assert_eq!(transcript.replies(), [Some(true), Some(false)]);
    assert_eq!(error.tasks(), TaskState::Running);
    error
}

fn failure(error: &Error) -> &HookFailure {
    let ErrorKind::Hook {
        script, failure, ..
    } = error.kind()
    else {
        panic!("{error:?}")
    };
    assert_eq!(*script, Name::PostDump);
    failure
}

fn is_post_dump(notify: &Notify) -> bool {
    notify.script() == Name::PostDump
}

async fn hooks_see_what_criu_tells() {
    let root = Idle::start();
    let script = restoring()
        .callback("pre-restore")
        .expect_accept()
        .callback(Callback::new("setup-namespaces").pid(root.pid()))
        .expect_accept()
        .callback("post-setup-namespaces")
        .expect_accept()
        .callback(Callback::new("post-restore").pid(root.pid()))
        .expect_accept()
        .callback("pre-resume")
        .expect_accept()
        .callback("post-resume")
        .expect_accept()
        .answer_restore_ok(root.pid())
        .expect_hang_up();
    let (criu, peer) = service(script);
    let scene = Scene::with_images();
    let mut seen = Vec::new();
    let hooks = hook_fn(|notify: Notify| {
        assert_eq!(&*notify.images_dir, scene.directory.path());
        seen.push((notify.script().to_string(), notify.root));
        async { Ok(Reply::Accept) }
    });
    let report = scene.restore(&criu, hooks).await.unwrap();
    assert_eq!(report.pid, root.pid());
    let known = Some(root.pid());
    let expected = [
        ("pre-restore", None),
        ("setup-namespaces", known),
        ("post-setup-namespaces", known),
        ("post-restore", known),
        ("pre-resume", known),
        ("post-resume", known),
    ];
    assert_eq!(seen, expected.map(|(name, root)| (name.to_owned(), root)));
    let phases: Vec<_> = report
        .details
        .timings
        .phases
        .iter()
        .map(|phase| phase.until.clone())
        .collect();
    assert_eq!(phases.len(), 7);
    assert_eq!(
        (phases[0].clone(), phases[6].clone()),
        (Some(Name::PreRestore), None)
    );
    assert_eq!(peer.join().problem, None);
}

async fn a_refusal() {
    let error = refused(hook_fn(async |notify| {
        Ok(match is_post_dump(&notify) {
            true => Reply::Refuse("only a rehearsal".into()),
            false => Reply::Accept,
        })
    }))
    .await;
    assert_eq!(
        *failure(&error),
        HookFailure::Refused("only a rehearsal".into())
    );
    assert!(error.to_string().contains("only a rehearsal"), "{error}");
}

async fn an_error() {
    let error = refused(hook_fn(async |notify| match is_post_dump(&notify) {
        true => Err(std::io::Error::other("the disk is full").into()),
        false => Ok(Reply::Accept),
    }))
    .await;
    assert_eq!(*failure(&error), HookFailure::Failed);
    assert_eq!(
        chain(&error).last().map(String::as_str),
        Some("the disk is full")
    );
    let source = std::error::Error::source(&error).unwrap();
    assert!(source.downcast_ref::<std::io::Error>().is_some());
}

async fn a_panic() {
    let error = refused(hook_fn(async |notify| {
        tokio::task::yield_now().await;
        assert!(!is_post_dump(&notify), "on {}", "purpose");
        Ok(Reply::Accept)
    }))
    .await;
    assert_eq!(*failure(&error), HookFailure::Panicked("on purpose".into()));
}

async fn a_panic_before_the_first_await() {
    // Where the future is made, not where it is polled.
    let error = refused(hook_fn(|notify| {
        assert!(!is_post_dump(&notify), "on purpose");
        async { Ok(Reply::Accept) }
    }))
    .await;
    assert_eq!(*failure(&error), HookFailure::Panicked("on purpose".into()));
}

async fn a_hook_that_takes_too_long() {
    let error = refused(hook_fn(async |notify| {
        if is_post_dump(&notify) {
            tokio::time::sleep(EVER).await;
        }
        Ok(Reply::Accept)
    }))
    .await;
    assert_eq!(*failure(&error), HookFailure::TimedOut(LIMIT));
}

async fn a_hook_in_which_the_operation_runs_out_of_time() {
    let (criu, peer) = service(refused_at_post_dump());
    let criu = criu.with_limits(limits().operation(LIMIT));
    let hooks = hook_fn(async |notify| {
        if is_post_dump(&notify) {
            tokio::time::sleep(EVER).await;
        }
        Ok(Reply::Accept)
    });
    let error = Scene::new().dump(&criu, hooks).await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::TimeLimit { limit: LIMIT, .. }),
        "{error:?}"
    );
    let transcript = peer.join();
    assert_eq!(transcript.problem, None);
    assert_eq!(transcript.replies(), [Some(true), Some(false)]);
}

async fn an_answer_that_is_dropped() {
    let (criu, peer) = service(refused_at_post_dump());
    let scene = Scene::new();
    let mut dump = scene.start_dump(&criu).await.unwrap();
    let (_, answer) = dump.next().await.unwrap();
    answer.accept().await;
    let (notify, answer) = dump.next().await.unwrap();
    assert!(is_post_dump(&notify));
    drop(answer);
    assert!(dump.next().await.is_none());
    let error = dump.finish().await.unwrap_err();
    assert_eq!(*failure(&error), HookFailure::Dropped);
    let transcript = peer.join();
    assert_eq!(transcript.problem, None);
    assert_eq!(transcript.replies(), [Some(true), Some(false)]);
}

async fn a_refusal_that_criu_answers_with_success() {
    let script = dumping()
        .callback("pre-dump")
        .expect_refusal()
        .answer_dump_ok()
        .expect_hang_up();
    let (criu, peer) = service(script);
    let hooks = hook_fn(async |_| Ok(Reply::Refuse("no".into())));
    let error = Scene::new().dump(&criu, hooks).await.unwrap_err();
    assert!(matches!(
        error.kind(),
        ErrorKind::Hook {
            script: Name::PreDump,
            ..
        }
    ));
    assert_eq!(peer.join().problem, None);
}

async fn a_refusal_that_criu_does_not_survive() {
    let script = dumping().callback("post-dump").expect_refusal().die();
    let (criu, peer) = program(&script);
    let hooks = hook_fn(async |_| Ok(Reply::Refuse("no".into())));
    let error = Scene::new().dump(&criu, hooks).await.unwrap_err();
    assert!(
        matches!(
            error.kind(),
            ErrorKind::Hook {
                script: Name::PostDump,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(peer.transcript().unwrap().replies(), [Some(false)]);
}

async fn callbacks_after_a_refusal_reach_the_hooks() {
    let script = dumping()
        .callback("post-dump")
        .expect_refusal()
        .callback("network-unlock")
        .expect_accept()
        .answer_failure(Request::Dump)
        .expect_hang_up();
    let (criu, peer) = service(script);
    let mut seen = Vec::new();
    let hooks = hook_fn(|notify: Notify| {
        seen.push(notify.script());
        let refused = is_post_dump(&notify);
        async move {
            Ok(match refused {
                true => Reply::Refuse("no".into()),
                false => Reply::Accept,
            })
        }
    });
    let error = Scene::new().dump(&criu, hooks).await.unwrap_err();
    assert_eq!(*failure(&error), HookFailure::Refused("no".into()));
    assert_eq!(seen, [Name::PostDump, Name::NetworkUnlock]);
    assert_eq!(peer.join().problem, None);
}

async fn only_the_first_refusal_is_the_cause() {
    let script = dumping()
        .callback("query-ext-files")
        .expect_refusal()
        .callback("post-dump")
        .expect_refusal()
        .answer_failure(Request::Dump)
        .expect_hang_up();
    let (criu, peer) = service(script);
    let hooks = hook_fn(async |notify| Ok(Reply::Refuse(notify.script().to_string())));
    let error = Scene::new().dump(&criu, hooks).await.unwrap_err();
    let ErrorKind::Hook {
        script, failure, ..
    } = error.kind()
    else {
        panic!("{error:?}")
    };
    assert_eq!(*script, Name::QueryExternalFiles);
    assert_eq!(*failure, HookFailure::Refused("query-ext-files".into()));
    assert_eq!(peer.join().problem, None);
}

async fn refusals_that_come_too_late_are_reported() {
    let refuse =
        || hook_fn(async |notify| Ok(Reply::Refuse(format!("not at {}", notify.script()))));
    let script = dumping()
        .callback("network-unlock")
        .expect_refusal()
        .answer_dump_ok()
        .expect_hang_up();
    let (criu, peer) = service(script);
    let report = Scene::new().dump(&criu, refuse()).await.unwrap();
    assert_eq!(report.details.ignored_refusals.len(), 1);
    assert_eq!(
        report.details.ignored_refusals[0].script,
        Name::NetworkUnlock
    );
    assert!(
        report.details.ignored_refusals[0]
            .reason
            .contains("not at network-unlock")
    );
    assert_eq!(peer.join().problem, None);

    let late = ["network-unlock", "pre-resume", "post-resume"];
    let script = late.iter().fold(restoring(), |script, name| {
        script.callback(*name).expect_refusal()
    });
    let root = Idle::start();
    let (criu, peer) = service(script.answer_restore_ok(root.pid()).expect_hang_up());
    let report = Scene::with_images().restore(&criu, refuse()).await.unwrap();
    let ignored = &report.details.ignored_refusals;
    assert_eq!(
        ignored
            .iter()
            .map(|refusal| refusal.script.to_string())
            .collect::<Vec<_>>(),
        late
    );
    let transcript = peer.join();
    assert_eq!(transcript.problem, None);
    assert_eq!(transcript.replies(), [Some(false); 3]);

    // An error's text is kept too, though there is no error to carry it.
    let script = dumping()
        .callback("network-unlock")
        .expect_refusal()
        .answer_dump_ok()
        .expect_hang_up();
    let (criu, _peer) = service(script);
    let hooks = hook_fn(async |_| Err("no route".into()));
    let report = Scene::new().dump(&criu, hooks).await.unwrap();
    assert!(
        report.details.ignored_refusals[0]
            .reason
            .contains("no route")
    );
}

fn external_files() -> Vec<ExternalOnDump> {
    ["unix[4711]", "file[1f:2a]"]
        .map(|text| text.parse().unwrap())
        .to_vec()
}

async fn external_files_travel_in_the_reply() {
    let script = dumping()
        .callback("query-ext-files")
        .expect_accept()
        .answer_dump_ok()
        .expect_hang_up();
    let (criu, peer) = service(script);
    let hooks = hook_fn(async |_| Ok(Reply::ExternalFiles(external_files())));
    Scene::new().dump(&criu, hooks).await.unwrap();
    let transcript = peer.join();
    assert_eq!(transcript.problem, None);
    let reply = transcript.message(Request::Notify).unwrap();
    assert_eq!(reply.texts("external"), ["unix[4711]", "file[1f:2a]"]);
    // Required by the protocol, of no meaning here.
    assert_eq!(reply.option("images_dir_fd"), Some(&Value::Number(-1)));
    assert_eq!(reply.options.as_ref().unwrap().len(), 2);
}

async fn external_files_where_they_mean_nothing() {
    let script = dumping()
        .callback("pre-dump")
        .expect_accept()
        .answer_dump_ok()
        .expect_hang_up();
    let (criu, peer) = service(script);
    let hooks = hook_fn(async |_| Ok(Reply::ExternalFiles(external_files())));
    Scene::new().dump(&criu, hooks).await.unwrap();
    assert_eq!(peer.join().replies(), [Some(true)]);
}

async fn a_terminal_is_the_hooks_own() {
    let root = Idle::start();
    let script = restoring()
        .callback(Callback::new("orphan-pts-master").descriptors(1))
        .expect_accept()
        .answer_restore_ok(root.pid())
        .expect_hang_up();
    let (criu, peer) = service(script);
    let mut kept = None;
    let hooks = hook_fn(|notify: Notify| {
        let Event::OrphanPtsMaster { master } = notify.event else {
            panic!("{:?}", notify.event)
        };
        kept = Some(master);
        async { Ok(Reply::Accept) }
    });
    Scene::with_images().restore(&criu, hooks).await.unwrap();
    let master = kept.unwrap();
    let flags = rustix::io::fcntl_getfd(master.as_fd()).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    let transcript = peer.join();
    assert_eq!(transcript.problem, None);
    assert!(
        !transcript.pipes[0].closed,
        "the library has no business closing it"
    );
}

async fn pull_style() {
    let script = dumping()
        .callback("pre-dump")
        .expect_accept()
        .callback("query-ext-files")
        .expect_accept()
        .linger(SHORT)
        .callback("post-dump")
        .expect_accept()
        .answer_dump_ok()
        .expect_hang_up();
    let (criu, peer) = service(script);
    let scene = Scene::new();
    let mut dump = scene.start_dump(&criu).await.unwrap();
    let (notify, answer) = dump.next().await.unwrap();
    assert_eq!(
        (notify.script(), notify.root),
        (Name::PreDump, Some(scene.task.pid()))
    );
    answer.accept().await;
    let (_, answer) = dump.next().await.unwrap();
    answer.reply(Reply::ExternalFiles(external_files())).await;
    // Polled and given up, most likely before there is anything: nothing is lost.
    if let Ok(Some((_, answer))) = tokio::time::timeout(Duration::ZERO, dump.next()).await {
        answer.accept().await;
    }
    // What is left is accepted.
    dump.finish().await.unwrap();
    let transcript = peer.join();
    assert_eq!(transcript.problem, None);
    assert_eq!(transcript.replies(), [Some(true); 3]);
    assert_eq!(transcript.messages[3].texts("external").len(), 2);
}

async fn a_table_of_hooks() {
    let hooks = HookTable::new()
        .on(Name::PostDump, hook_fn(async |_| Ok(Reply::Accept)))
        .on(
            Name::PostDump,
            hook_fn(async |_| Ok(Reply::Refuse("the later one counts".into()))),
        );
    let error = refused(hooks).await;
    assert_eq!(
        *failure(&error),
        HookFailure::Refused("the later one counts".into())
    );
}

async fn programs_as_hooks() {
    let hooks = HookTable::new()
        .on(Name::PreDump, Program::new("/bin/true"))
        .on(Name::PostDump, Program::new("/bin/false"));
    let error = refused(hooks).await;
    assert_eq!(*failure(&error), HookFailure::Failed);
    let source = std::error::Error::source(&error).unwrap();
    assert!(
        matches!(source.downcast_ref(), Some(ProgramError::Ended { .. })),
        "{source}"
    );

    let error =
        refused(HookTable::new().on(Name::PostDump, Program::new("/no/such/program"))).await;
    let source = std::error::Error::source(&error).unwrap();
    assert!(
        matches!(source.downcast_ref(), Some(ProgramError::NotRun { .. })),
        "{source}"
    );
}

async fn a_program_that_takes_too_long_is_killed() {
    // That it is gone is seen to by the harness: nothing may be left of a test.
    let error =
        refused(HookTable::new().on(Name::PostDump, Program::new("/bin/sleep").argument("1000")))
            .await;
    assert_eq!(*failure(&error), HookFailure::TimedOut(LIMIT));
}

async fn a_program_gets_criu_s_own_environment() {
    let (criu, peer) = service(
        dumping()
            .callback("post-dump")
            .expect_accept()
            .answer_dump_ok()
            .expect_hang_up(),
    );
    let scene = Scene::new();
    let environment = scene.directory.path().join("environment");
    // cp sees its own environment in /proc.
    let hook = Program::new("/bin/cp")
        .argument("/proc/self/environ")
        .argument(&environment);
    scene.dump(&criu, hook).await.unwrap();
    assert_eq!(peer.join().problem, None);
    let text = std::fs::read_to_string(environment).unwrap();
    let entries: Vec<&str> = text.split('\0').collect();
    let expected = [
        "CRTOOLS_SCRIPT_ACTION=post-dump".to_owned(),
        format!("CRTOOLS_IMAGE_DIR={}", scene.directory.path().display()),
        format!("CRTOOLS_INIT_PID={}", scene.task.pid()),
    ];
    for entry in expected {
        assert!(entries.contains(&entry.as_str()), "{entry}");
    }
}
