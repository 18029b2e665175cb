//! The whole way, with logs that CRIU wrote (cut to the lines around what matters).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;

macro_rules! log {
    ($name:literal) => {
        include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/data/logs/",
            $name,
            ".log"
        ))
        .as_slice()
    };
}

fn of_log(operation: Operation, log: &[u8]) -> Findings {
    examine(Examination {
        operation,
        log: Some(LogDigest::from_bytes(log)),
        ..Examination::default()
    })
}

fn code(findings: &Findings) -> Option<&'static str> {
    findings.diagnosis.as_ref().map(|diagnosis| diagnosis.code)
}

#[test]
fn real_logs_are_recognised_and_placed() {
    use Operation::{Dump, Other, PageServer, PreDump, Restore};
    for (log, operation, expected) in [
        (log!("dump-stdio-outside"), Dump, "stdio-outside-container"),
        (
            log!("dump-unix-external-peer"),
            Dump,
            "unix-socket-external-peer",
        ),
        (log!("dump-iptables-missing"), Dump, "iptables-missing"),
        (log!("dump-no-such-process"), Dump, "no-such-process"),
        (log!("dump-traced-task"), Dump, "task-not-seizable"),
        (log!("dump-io-uring"), Dump, "io-uring"),
        (
            log!("dump-page-server-unreachable"),
            Dump,
            "page-server-unreachable",
        ),
        (log!("dump-hook-refused"), Dump, "hook-refused"),
        (
            log!("dump-ghost-file-hostile-name"),
            Dump,
            "ghost-file-over-limit",
        ),
        (log!("pre-dump-no-soft-dirty"), PreDump, "no-soft-dirty"),
        (log!("restore-file-size"), Restore, "file-size-changed"),
        (log!("restore-pid-in-use"), Restore, "pid-in-use"),
        (log!("restore-no-checkpoint"), Restore, "no-checkpoint-here"),
        (log!("restore-pagemap-missing"), Restore, "image-missing"),
        (
            log!("restore-images-missing-crash"),
            Restore,
            "image-missing",
        ),
        (
            log!("restore-pages-missing"),
            Restore,
            "image-pages-unreadable",
        ),
        (
            log!("restore-mount-no-mapping"),
            Restore,
            "mount-no-mapping",
        ),
        (
            log!("restore-without-root"),
            Restore,
            "restore-root-missing",
        ),
        (
            log!("page-server-port-in-use"),
            PageServer,
            "page-server-port-in-use",
        ),
        (log!("cpuinfo-mismatch"), Other, "cpu-mismatch"),
    ] {
        let findings = of_log(Other, log);
        assert_eq!(code(&findings), Some(expected));
        assert_eq!(findings.operation, operation, "{expected}");
        assert_eq!(
            findings.criu_version.as_deref(),
            Some("4.2.1"),
            "{expected}"
        );
        assert_eq!(findings.tail.len(), TAIL, "{expected}");
        assert!(!findings.surrounding.is_empty(), "{expected}");
        let again = of_log(operation, log);
        assert_eq!(again, findings, "{expected}: told and guessed");
    }
}

#[test]
fn success_has_no_cause_whatever_the_log_holds() {
    for log in [
        log!("dump-success-with-errors"),
        log!("restore-success-with-errors"),
    ] {
        let findings = of_log(Operation::Other, log);
        assert!(findings.reports_success && findings.error_count > 1);
        assert_eq!((findings.diagnosis, findings.cause), (None, None));
    }
}

#[test]
fn the_cause_is_the_line_and_its_neighbours_are_there() {
    let findings = of_log(Operation::Dump, log!("dump-stdio-outside"));
    let cause = findings.cause.unwrap();
    assert_eq!(cause.source, Source::Log);
    assert_eq!(
        cause.line.text,
        "Can't lookup mount=27 for fd=1 path=/tmp/lab/hostfile"
    );
    let numbers: Vec<u64> = findings
        .surrounding
        .iter()
        .map(|line| line.number)
        .collect();
    let number = cause.line.number;
    assert_eq!(
        numbers,
        (number - 5..=number + 5)
            .filter(|n| *n != number)
            .collect::<Vec<_>>()
    );
    assert_eq!(findings.diagnosis.unwrap().line, Some(cause.line));
    // The rlimit error and two consequences are errors, but no candidates.
    assert_eq!((findings.errors.len(), findings.error_count), (1, 4));
}

#[test]
fn what_another_program_wrote_into_the_log_tells_more_than_the_error() {
    let findings = of_log(Operation::Dump, log!("dump-iptables-missing"));
    assert_eq!(
        findings.cause.unwrap().line.text,
        "Iptables configuration failed"
    );
    assert_eq!(
        findings.diagnosis.unwrap().line.unwrap().text,
        "sh: 1: iptables: not found"
    );
}

#[test]
fn hostile_names_are_shown_escaped() {
    let findings = of_log(Operation::Dump, log!("dump-ghost-file-hostile-name"));
    let diagnosis = findings.diagnosis.unwrap();
    assert!(
        diagnosis
            .summary
            .starts_with("/tmp/lab/\u{fffd}\u{fffd}\\u{1b}[31mred was deleted"),
        "{}",
        diagnosis.summary
    );
    assert!(!diagnosis.line.unwrap().to_string().contains('\x1b'));
}

#[test]
fn in_a_restore_the_tasks_own_errors_go_first() {
    let log = b"(00.1) Error (criu/x.c:1): something unheard of\n\
                (00.2)     42: Error (criu/y.c:2): the task's own unheard of\n\
                (00.3) Error (criu/cr-restore.c:2331): Restoring FAILED.\n";
    assert_eq!(
        of_log(Operation::Restore, log).cause.unwrap().line.number,
        2
    );
    assert_eq!(of_log(Operation::Dump, log).cause.unwrap().line.number, 1);
}

#[test]
fn a_known_error_goes_before_an_unknown_one() {
    let log = b"Error (criu/x.c:1): something unheard of\nError (criu/y.c:2): pid not specified\n";
    let findings = of_log(Operation::Dump, log);
    assert_eq!(code(&findings), Some("pid-not-given"));
    assert_eq!(findings.cause.unwrap().line.number, 2);
    let log = b"Error (criu/x.c:1): something unheard of\n";
    let findings = of_log(Operation::Dump, log);
    assert_eq!(code(&findings), None);
    assert_eq!(findings.cause.unwrap().line.text, "something unheard of");
}

#[test]
fn the_log_goes_before_standard_error_and_that_before_standard_output() {
    let error = |code: &str| format!("Error (criu/x.c:1): {code}\n");
    let (one, two, three) = (error("one"), error("two"), error("three"));
    let evidence = |log: &'static str, err: &'static str| (log, err);
    for ((log, stderr), source) in [
        (evidence("log", "err"), Source::Log),
        (evidence("", "err"), Source::Stderr),
        (evidence("", ""), Source::Stdout),
    ] {
        let findings = examine(Examination {
            operation: Operation::Dump,
            log: (!log.is_empty()).then(|| LogDigest::from_bytes(one.as_bytes())),
            stderr: if stderr.is_empty() {
                b""
            } else {
                two.as_bytes()
            },
            stdout: three.as_bytes(),
            errmsg: Some(b"Error (criu/x.c:1): four\n"),
            ..Examination::default()
        });
        assert_eq!(findings.cause.unwrap().source, source);
    }
}

#[test]
fn errmsg_counts_only_in_silence_and_only_if_it_may_be_a_cause() {
    let noise: &[u8] = b"Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n";
    let real: &[u8] = b"Error (criu/config.c:1131): Tracking memory is not available. Consider omitting --track-mem option.\n";
    let with = |errmsg| {
        examine(Examination {
            operation: Operation::Dump,
            errmsg: Some(errmsg),
            ..Examination::default()
        })
    };
    let findings = with(noise);
    assert_eq!((findings.cause, findings.diagnosis), (None, None));
    let findings = with(real);
    assert_eq!(code(&findings), Some("no-soft-dirty"));
    assert_eq!(findings.cause.unwrap().source, Source::ErrMsg);
    assert_eq!(
        with(b"Error (criu/a.c:1): \xff\xfe cut o")
            .cause
            .unwrap()
            .line
            .text,
        "\u{fffd}\u{fffd} cut o"
    );
}

#[test]
fn what_criu_says_outside_the_log() {
    let stderr = |text: &[u8]| {
        examine(Examination {
            operation: Operation::Dump,
            stderr: text,
            ..Examination::default()
        })
    };
    let findings = stderr(b"criu: unrecognized option '--frobnicate'\n");
    assert_eq!(code(&findings), Some("option-unknown"));
    assert_eq!(
        findings.diagnosis.unwrap().summary,
        "CRIU does not know the option --frobnicate."
    );
    // Logged before the log was open, and harmless.
    assert_eq!(stderr(b"(00.000000) CRIU run id = 9022d4d6\n").cause, None);
    // Unknown words are at least shown.
    let findings = stderr(b"(00.000000) CRIU run id = 9022d4d6\nexec format error\n");
    assert_eq!(findings.cause.unwrap().line.text, "exec format error");
    let findings = examine(Examination {
        stdout: b"CRIU needs to have the CAP_SYS_ADMIN or the CAP_CHECKPOINT_RESTORE capability: \nsetcap cap_checkpoint_restore+eip /usr/sbin/criu\n",
        stderr: b"(00.000000) CRIU run id = 383b4557\n(00.000000) Effective capability 40 missing\n(00.000000) Effective capability 21 missing\n",
        ..Examination::default()
    });
    assert_eq!(code(&findings), Some("missing-capability"));
}

#[test]
fn numbers_speak_when_no_text_does() {
    let with = |operation, errno, signal| {
        let findings = examine(Examination {
            operation,
            errno,
            signal,
            ..Examination::default()
        });
        code(&findings)
    };
    use Operation::{Dump, Other, Restore};
    assert_eq!(with(Dump, Some(3), None), Some("root-task-not-seized"));
    assert_eq!(with(Restore, Some(3), None), None);
    assert_eq!(with(Restore, Some(17), None), Some("pid-in-use"));
    assert_eq!(with(Dump, Some(17), None), None);
    assert_eq!(with(Dump, Some(56), None), Some("request-refused"));
    assert_eq!(with(Other, Some(95), None), Some("cpuinfo-unsupported"));
    assert_eq!(with(Dump, Some(1), None), None);
    assert_eq!(with(Dump, None, Some(11)), Some("criu-crashed"));
    let findings = examine(Examination {
        signal: Some(6),
        ..Examination::default()
    });
    assert_eq!(
        findings.diagnosis.unwrap().summary,
        "CRIU was killed by signal 6."
    );
    let findings = examine(Examination {
        operation: Restore,
        errno: Some(17),
        ..Examination::default()
    });
    let diagnosis = findings.diagnosis.unwrap();
    assert_eq!(
        diagnosis.summary,
        "The pid of a task in the checkpoint is taken."
    );
    assert_eq!(diagnosis.line, None);
}

#[test]
fn text_goes_before_numbers() {
    let findings = examine(Examination {
        operation: Operation::Dump,
        log: Some(LogDigest::from_bytes(log!("dump-traced-task"))),
        errno: Some(3),
        ..Examination::default()
    });
    assert_eq!(code(&findings), Some("task-not-seizable"));
}

#[test]
fn an_empty_parent_is_no_cause_of_a_dump_that_fails() {
    let log = b"(00.1) Error (criu/protobuf.c:72): Unexpected EOF on (empty-image)\n(00.2) Error (criu/x.c:1): unheard of\n";
    let findings = of_log(Operation::Dump, log);
    assert_eq!(code(&findings), None);
    assert_eq!(findings.cause.unwrap().line.text, "unheard of");
    assert_eq!(
        code(&of_log(Operation::Restore, log)),
        Some("image-missing")
    );
}

#[test]
fn findings_serialise() {
    let json = serde_json::to_value(of_log(Operation::Other, log!("restore-pid-in-use"))).unwrap();
    assert_eq!(json["operation"], "restore");
    assert_eq!(json["diagnosis"]["code"], "pid-in-use");
    assert_eq!(json["diagnosis"]["area"], "processes");
    assert_eq!(json["cause"]["source"], "log");
    assert_eq!(json["cause"]["level"], "error");
    assert_eq!(json["cause"]["place"]["file"], "criu/cr-restore.c");
    let causes = serde_json::to_value(catalogue().collect::<Vec<_>>()).unwrap();
    assert_eq!(causes.as_array().map(Vec::len), Some(catalogue().count()));
}

fn put(directory: &Path, name: &str, content: &[u8], age: u64) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, content).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(age))
        .unwrap();
    path
}

#[test]
fn explains_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = put(directory.path(), "anything", log!("restore-file-size"), 0);
    let findings = explain(&path).unwrap();
    assert_eq!(code(&findings), Some("file-size-changed"));
    assert_eq!(findings.log, Some(path));
}

#[test]
fn explains_the_newest_log_of_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    put(at, "dump.log", log!("dump-stdio-outside"), 100);
    put(at, "restore.log", log!("restore-pid-in-use"), 50);
    put(at, "app.log", b"not of CRIU\n", 10);
    put(at, "notes.txt", log!("dump-io-uring"), 5);
    fs::create_dir(at.join("directory.log")).unwrap();
    std::os::unix::fs::symlink(at.join("notes.txt"), at.join("link.log")).unwrap();
    let findings = explain(at).unwrap();
    assert_eq!(code(&findings), Some("pid-in-use"));
    assert_eq!(findings.log, Some(at.join("restore.log")));
}

#[test]
fn says_what_it_could_not_explain() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    assert!(matches!(explain(at), Err(ExplainError::NoLog { .. })));
    let missing = explain(&at.join("missing.log")).unwrap_err();
    assert!(
        missing.to_string().starts_with("cannot read ")
            && missing.to_string().contains("missing.log"),
        "{missing}"
    );
    assert!(matches!(
        explain(Path::new("/dev/null")),
        Err(ExplainError::NoFile { .. })
    ));
    let other = put(at, "other", b"hello\n", 0);
    assert!(matches!(explain(&other), Err(ExplainError::NotALog { .. })));
}

proptest! {
    #[test]
    fn any_evidence_is_survived(
        log in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300)),
        stderr in proptest::collection::vec(any::<u8>(), 0..100),
        lines in proptest::collection::vec("(Error|Warn ) \\(criu/a.c:1\\): .{0,40}\n", 0..20),
        errno in proptest::option::of(any::<i32>()),
    ) {
        let findings = examine(Examination {
            log: log.as_deref().map(LogDigest::from_bytes),
            stderr: &stderr,
            stdout: lines.concat().as_bytes(),
            errmsg: Some(&stderr),
            errno,
            ..Examination::default()
        });
        prop_assert!(serde_json::to_string(&findings).is_ok());
    }
}
