//! Answers that nobody thought of.

use criu_client::testing::{Callback, Peer, Request, Response, Script};
use criu_client::{Criu, ErrorKind, TaskState};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Runtime;

use crate::harness::cases;
use crate::support::*;

cases![; any_bytes_end_in_an_error, any_fields_end_in_an_answer, any_change_of_a_good_answer_ends];

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    })
}

/// Bytes in place of the version, of the answer, and of a callback. A script of bytes that happen to be what is expected is
/// followed by a hang-up, so it ends in an error too, except for a good answer to the dump itself.
fn any_bytes_end_in_an_error(runtime: &Runtime) {
    let scene = Scene::new();
    let strategy = (
        prop::collection::vec(any::<u8>(), 0..120),
        0..3usize,
        0..3usize,
    );
    let ran = runner(48).run(&strategy, |(bytes, place, descriptors)| {
        let script = match place {
            0 => Script::new().expect(Request::Version),
            1 => dumping(),
            _ => dumping().callback("pre-dump").expect_accept(),
        };
        let script = script.datagram(bytes.clone(), descriptors);
        let error = runtime.block_on(async {
            let peer = Peer::service(script).unwrap();
            let result = scene.dump(&Criu::service(peer.socket()), ()).await;
            let transcript = peer.join();
            assert_eq!(transcript.problem, None);
            result
        });
        // DUMP and success, with or without anything else.
        let is_good = bytes.starts_with(&[0x08, 0x01, 0x10, 0x01]);
        prop_assert!(error.is_err() || is_good);
        if let Err(error) = error {
            prop_assert_eq!(error.tasks(), TaskState::Running);
            prop_assert!(!error.to_string().is_empty());
        }
        Ok(())
    });
    ran.unwrap();
}

fn any_fields_end_in_an_answer(runtime: &Runtime) {
    let scene = Scene::new();
    let strategy = (
        any::<bool>(),
        prop::option::of(any::<i32>()),
        prop::option::of(prop::collection::vec(any::<u8>(), 0..2000)),
        prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30), 0..4),
        prop::option::of(any::<i32>()),
    );
    let ran = runner(32).run(&strategy, |(success, errno, message, callbacks, pid)| {
        let mut answer = match success {
            true => Response::success(Request::Dump),
            false => Response::failure(Request::Dump),
        };
        if let Some(errno) = errno {
            answer = answer.errno(errno);
        }
        if let Some(message) = &message {
            answer = answer.message(message.clone());
        }
        let mut script = dumping();
        for name in &callbacks {
            let callback = Callback::new(name.clone());
            script = script
                .callback(match pid {
                    Some(pid) => callback.pid(pid),
                    None => callback,
                })
                .expect_accept();
        }
        let script = script.respond(answer).expect_hang_up();
        let (result, transcript) = runtime.block_on(async {
            let peer = Peer::service(script).unwrap();
            let result = scene.dump(&Criu::service(peer.socket()), ()).await;
            (result, peer.join())
        });
        prop_assert_eq!(&transcript.problem, &None);
        prop_assert_eq!(transcript.replies().len(), callbacks.len());
        match result {
            Ok(_) => prop_assert!(success),
            Err(error) => {
                prop_assert!(!success);
                prop_assert!(
                    matches!(error.kind(), ErrorKind::Refused { .. }),
                    "{error:?}"
                );
                let expected = errno.filter(|errno| *errno != 0);
                prop_assert_eq!(error.errno().map(|errno| errno.0), expected);
                serde_json::to_string(&error).unwrap();
            }
        }
        Ok(())
    });
    ran.unwrap();
}

fn any_change_of_a_good_answer_ends(runtime: &Runtime) {
    let scene = Scene::with_images();
    let good = Response::success(Request::Restore)
        .restore_pid(4711)
        .message("some text")
        .to_bytes();
    let strategy = (0..good.len(), any::<u8>(), 0..=good.len());
    let ran = runner(48).run(&strategy, |(position, byte, length)| {
        let mut bytes = good.clone();
        bytes[position] = byte;
        bytes.truncate(length);
        // Ends, one way or the other, and does not panic.
        let (_, transcript) = runtime.block_on(async {
            let peer = Peer::service(restoring().datagram(bytes, 0)).unwrap();
            let result = scene.restore(&Criu::service(peer.socket()), ()).await;
            (result, peer.join())
        });
        prop_assert_eq!(&transcript.problem, &None);
        Ok(())
    });
    ran.unwrap();
}
