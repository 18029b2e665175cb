//! Several questions over one connection, and one question over one.

use criu_client::options::{CheckOptions, CpuinfoOptions};
use criu_client::testing::{Request, Response, Script};
use criu_client::{ErrorKind, ImagesDir, OperationKind, Version};

use crate::harness::cases;
use crate::support::*;

cases![
    the_version_is_asked_once,
    all_questions_on_one_connection,
    a_failed_question_ends_it,
    an_old_criu_has_one_question,
    what_is_not_sent_leaves_it_open,
    a_question_that_is_dropped_ends_it,
    each_question_has_its_limit,
    dropped_or_closed_idle,
];

fn features() -> Response {
    Response::success(Request::FeatureCheck).features([Some(true), Some(false), None, None])
}

fn directory() -> (tempfile::TempDir, ImagesDir) {
    let directory = tempfile::tempdir().unwrap();
    let images = ImagesDir::open(directory.path()).unwrap();
    (directory, images)
}

async fn the_version_is_asked_once() {
    let (criu, peer) = service(Script::new().version(4, 2, 1));
    assert_eq!(criu.version().await.unwrap(), Version::new(4, 2, 1));
    let transcript = peer.join();
    assert_eq!(transcript.problem, None);
    assert_eq!(transcript.requests(), [Request::Version]);
    assert_eq!(transcript.messages[0].keep_open, None);
}

async fn all_questions_on_one_connection() {
    let script = Script::new()
        .version(4, 2, 1)
        .expect(Request::FeatureCheck)
        .respond(features())
        .expect(Request::CpuinfoDump)
        .answer_ok(Request::CpuinfoDump)
        .expect(Request::CpuinfoCheck)
        .answer_ok(Request::CpuinfoCheck)
        .expect(Request::Check)
        .stdout("Looks good.\n")
        .answer_ok(Request::Check);
    let (criu, peer) = program(&script);
    let (path, images) = directory();
    let mut connection = criu.connect().await.unwrap();
    assert_eq!(*connection.version(), Version::new(4, 2, 1));
    assert_eq!(connection.features().await.unwrap().mem_track, Some(true));
    let options = CpuinfoOptions::new;
    connection.cpuinfo_dump(&images, options()).await.unwrap();
    connection.cpuinfo_check(&images, options()).await.unwrap();
    assert!(connection.is_open());
    let verdict = connection.check(CheckOptions::new()).await.unwrap();
    assert_eq!(verdict.text, "Looks good.");
    let transcript = peer.transcript().unwrap();
    assert_eq!(transcript.problem, None);
    let kept: Vec<_> = transcript
        .messages
        .iter()
        .map(|message| message.keep_open)
        .collect();
    assert_eq!(kept, [Some(true), Some(true), Some(true), Some(true), None]);
    // The logs were empty.
    assert_eq!(path.path().read_dir().unwrap().count(), 0);
}

async fn a_failed_question_ends_it() {
    let script = Script::new()
        .version(4, 2, 1)
        .expect(Request::CpuinfoCheck)
        .respond(Response::failure(Request::CpuinfoCheck).message("other processor"));
    let (criu, peer) = program(&script);
    let (_path, images) = directory();
    let mut connection = criu.connect().await.unwrap();
    let error = connection
        .cpuinfo_check(&images, CpuinfoOptions::new())
        .await
        .unwrap_err();
    assert!(
        matches!(
            error.kind(),
            ErrorKind::Refused {
                operation: OperationKind::CpuinfoCheck
            }
        ),
        "{error:?}"
    );
    assert_eq!(error.criu_message(), Some("other processor"));
    assert!(!connection.is_open());
    let error = connection.features().await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Precondition { .. }),
        "{error:?}"
    );
    let error = connection.check(CheckOptions::new()).await.unwrap_err();
    assert!(
        error.to_string().contains("the connection is over"),
        "{error:?}"
    );
    assert_eq!(peer.transcript().unwrap().problem, None);
}

async fn an_old_criu_has_one_question() {
    // Its second answer comes to nobody.
    let script = Script::new()
        .version(3, 15, 0)
        .expect(Request::FeatureCheck)
        .respond(features())
        .answer_failure(Request::FeatureCheck);
    let (criu, peer) = program(&script);
    let mut connection = criu.connect().await.unwrap();
    assert_eq!(connection.features().await.unwrap().lazy_pages, Some(false));
    assert!(!connection.is_open());
    let message = peer.transcript().unwrap();
    assert_eq!(
        message.message(Request::FeatureCheck).unwrap().keep_open,
        None
    );
}

async fn what_is_not_sent_leaves_it_open() {
    let script = Script::new()
        .version(3, 18, 0)
        .expect(Request::FeatureCheck)
        .respond(features())
        .expect_hang_up();
    let (criu, peer) = service(script);
    let (path, images) = directory();
    let mut connection = criu.connect().await.unwrap();
    let options = CpuinfoOptions::new().log_to_stderr(true);
    let error = connection.cpuinfo_dump(&images, options).await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::Unsupported { .. }),
        "{error:?}"
    );
    assert_eq!(path.path().read_dir().unwrap().count(), 0);
    connection.features().await.unwrap();
    connection.close().await;
    assert_eq!(peer.join().problem, None);
}

async fn a_question_that_is_dropped_ends_it() {
    let (criu, _peer) = program(
        &Script::new()
            .version(4, 2, 1)
            .expect(Request::FeatureCheck)
            .linger(EVER),
    );
    let mut connection = criu.connect().await.unwrap();
    let asked = tokio::time::timeout(SHORT, connection.features()).await;
    assert!(asked.is_err());
    assert!(!connection.is_open());
    // The worker is gone, or the harness finds it.
    criu.settled().await;
}

async fn each_question_has_its_limit() {
    let script = Script::new()
        .version(4, 2, 1)
        .expect(Request::FeatureCheck)
        .respond(features())
        .expect(Request::FeatureCheck)
        .linger(EVER);
    let (criu, _peer) = program(&script);
    let criu = criu.with_limits(limits().operation(LIMIT));
    let mut connection = criu.connect().await.unwrap();
    // The clock starts with the question, not with the connection.
    tokio::time::sleep(LIMIT).await;
    connection.features().await.unwrap();
    let error = connection.features().await.unwrap_err();
    assert!(
        matches!(
            error.kind(),
            ErrorKind::TimeLimit {
                operation: OperationKind::FeatureCheck,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(!connection.is_open());
}

async fn dropped_or_closed_idle() {
    let (criu, _peer) = program(&Script::new().version(4, 2, 1).expect_hang_up());
    drop(criu.connect().await.unwrap());
    criu.settled().await;
    let (criu, _peer) = program(&Script::new().version(4, 2, 1).expect_hang_up());
    criu.connect().await.unwrap().close().await;
}
