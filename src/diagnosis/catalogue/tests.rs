use std::collections::HashSet;

use super::super::examine::{Examination, examine};
use super::super::log::LogDigest;
use super::super::pattern::fill;
use super::*;

/// Causes that only a number tells; see `examine`.
const OF_NUMBERS: &[&str] = &[
    "request-refused",
    "root-task-not-seized",
    "cpuinfo-unsupported",
    "criu-crashed",
];

/// A sample as a whole line. For a message of the program, its `printf` directives get values and a
/// place goes in front.
fn line(sample: &Sample) -> String {
    let Evidence::MessageOfBinary(_) = sample.evidence else {
        return sample.line.to_owned();
    };
    let mut line = String::from("Error (criu/place.c:1): ");
    let mut rest = sample.line;
    while let Some((before, directive)) = rest.split_once('%') {
        line.push_str(before);
        let end = directive
            .find(|c: char| c.is_ascii_alphabetic() && !"lz".contains(c))
            .expect("a directive ends in a letter");
        line.push_str(match &directive[end..=end] {
            "s" => "thing",
            "x" | "p" => "0x7f",
            "o" => "600",
            _ => "7",
        });
        rest = &directive[end + 1..];
    }
    line + rest
}

fn operations(cause: &KnownCause) -> &'static [Operation] {
    match cause.operations {
        [] => &[
            Operation::Dump,
            Operation::PreDump,
            Operation::Restore,
            Operation::Check,
            Operation::PageServer,
            Operation::Other,
        ],
        some => some,
    }
}

#[test]
fn every_sample_leads_to_its_own_cause() {
    let mut wrong = Vec::new();
    for cause in catalogue() {
        for sample in cause.samples {
            let text = line(sample);
            for &operation in operations(cause) {
                let log = Examination {
                    operation,
                    log: Some(LogDigest::from_bytes(text.as_bytes())),
                    ..Examination::default()
                };
                let stderr = Examination {
                    operation,
                    stderr: text.as_bytes(),
                    ..Examination::default()
                };
                let stdout = Examination {
                    operation,
                    stdout: text.as_bytes(),
                    ..Examination::default()
                };
                for evidence in [log, stderr, stdout] {
                    let found = examine(evidence).diagnosis.map(|diagnosis| diagnosis.code);
                    if found != Some(cause.code) {
                        wrong.push(format!(
                            "{}: {operation:?}: {found:?} for {text}",
                            cause.code
                        ));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_sign_has_a_sample() {
    let mut wrong = Vec::new();
    for cause in catalogue() {
        let lines: Vec<LogLine> = cause
            .samples
            .iter()
            .map(|s| LogLine::parse(1, line(s).as_bytes()))
            .collect();
        for sign in cause.signs {
            if !lines
                .iter()
                .any(|l| l.level == sign.level && capture(sign.pattern, &l.text).is_some())
            {
                wrong.push(format!("{}: nothing shows {}", cause.code, sign.pattern));
            }
        }
        for line in &lines {
            if !cause
                .signs
                .iter()
                .any(|sign| sign.level == line.level && capture(sign.pattern, &line.text).is_some())
            {
                wrong.push(format!("{}: no sign for {line}", cause.code));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn entries_are_complete() {
    let mut codes = HashSet::new();
    for cause in catalogue() {
        let code = cause.code;
        assert!(codes.insert(code), "{code} twice");
        assert!(
            code.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
            "{code}"
        );
        for sentence in [cause.summary, cause.remedy] {
            assert!(
                sentence.ends_with('.') && sentence.len() > 10,
                "{code}: {sentence}"
            );
            assert!(!sentence.contains("  "), "{code}: {sentence}");
        }
        assert_eq!(cause.signs.is_empty(), OF_NUMBERS.contains(&code), "{code}");
        assert_eq!(cause.samples.is_empty(), cause.signs.is_empty(), "{code}");
        assert_eq!(
            known_cause(code).map(|found| found.summary),
            Some(cause.summary)
        );
    }
    assert!(codes.len() >= 100, "{}", codes.len());
    assert!(OF_NUMBERS.iter().all(|code| codes.contains(code)));
}

#[test]
fn what_a_sentence_names_every_pattern_captures() {
    let mut wrong = Vec::new();
    for cause in catalogue() {
        for template in [cause.summary, cause.remedy] {
            for piece in Pieces::of(template) {
                let Piece::Text(name) = piece else {
                    assert!(
                        !matches!(piece, Piece::Number(_) | Piece::Any),
                        "{}: {template}",
                        cause.code
                    );
                    continue;
                };
                if name.contains('|') || OF_NUMBERS.contains(&cause.code) {
                    continue;
                }
                for sign in cause.signs {
                    let captured = Pieces::of(sign.pattern)
                        .any(|hole| matches!(hole, Piece::Text(n) | Piece::Number(n) if n == name));
                    if !captured {
                        wrong.push(format!("{}: {name} is not in {}", cause.code, sign.pattern));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn sentences_are_filled() {
    let line = LogLine::parse(1, b"(00.1) Error (criu/files-reg.c:1031): Can't dump ghost file /tmp/gf of 2097152 size, increase limit");
    let found = look_up(Operation::Dump, &line).unwrap();
    assert_eq!(
        fill(found.cause.summary, &found.captures),
        "/tmp/gf was deleted but is still open; its 2097152 bytes are more than CRIU puts into the images."
    );
    assert!(
        fill(found.cause.remedy, &found.captures)
            .starts_with("Raise --ghost-limit above 2097152 bytes")
    );
}

#[test]
fn the_most_literal_pattern_wins() {
    for (text, code) in [
        (
            "Can't dump file 3 of that type [20666] (chr 195:0 /dev/nvidiactl)",
            "nvidia-device",
        ),
        (
            "Can't dump file 3 of that type [20600] (chr 10:237)",
            "device-file",
        ),
        (
            "Can't dump file 3 of that type [600] (anon anon_inode:[perf_event])",
            "perf-event",
        ),
        (
            "Can't dump file 3 of that type [600] (anon anon_inode:[new_thing])",
            "descriptor-unsupported",
        ),
        (
            "Can't lookup mount=24 for fd=1 path=/x",
            "stdio-outside-container",
        ),
        (
            "Can't lookup mount=24 for fd=11 path=/x",
            "file-outside-container",
        ),
        ("mnt: BUG at criu/mount.c:48", "restore-root-missing"),
        ("mnt: BUG at criu/mount.c:48 and more", ""),
    ] {
        let line = LogLine {
            level: Level::Error,
            ..LogLine::parse(1, text.as_bytes())
        };
        assert_eq!(
            look_up(Operation::Other, &line).map_or("", |found| found.cause.code),
            code,
            "{text}"
        );
    }
}

#[test]
fn hostile_messages_are_cheap() {
    let line = LogLine {
        level: Level::Error,
        ..LogLine::parse(1, ": ".repeat(2048).as_bytes())
    };
    let begin = std::time::Instant::now();
    let _ = look_up(Operation::Other, &line);
    assert!(
        begin.elapsed() < std::time::Duration::from_secs(1),
        "{:?}",
        begin.elapsed()
    );
}
