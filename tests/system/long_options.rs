//! Whoever knows `criu dump` and `criu restore` finds everything: each long option that a CRIU lists in its help is in the
//! table here, with its place in criuctl or the reason why it has none, and criuctl's own help must bear the table out.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::*;

/// Where one of CRIU's options is.
enum Place {
    /// Under the same name, with these verbs.
    Same(&'static [&'static str]),
    /// In another form, with these verbs.
    As(&'static [&'static str], &'static str),
    /// Nowhere.
    Nowhere(&'static str),
}

use Place::{As, Nowhere, Same};

const DUMP: &[&str] = &["checkpoint"];
const RESTORE: &[&str] = &["restore"];
const BOTH: &[&str] = &["checkpoint", "restore"];
const SERVED: &[&str] = &["checkpoint", "page-server"];
const IMAGES: &[&str] = &["checkpoint", "restore", "page-server"];
const ALL: &[&str] = &["checkpoint", "restore", "page-server", "check"];

const NO_FIELD: &str = "no field of the RPC carries it";

static OPTIONS: &[(&str, Place)] = &[
    ("--action-script", As(BOTH, "--hook")),
    ("--address", Same(SERVED)),
    ("--all", Nowhere(NO_FIELD)),
    ("--allow-uprobes", Same(BOTH)),
    ("--auto-dedup", Same(IMAGES)),
    ("--cgroup-dump-controller", Same(DUMP)),
    ("--cgroup-props", Same(DUMP)),
    ("--cgroup-props-file", Same(DUMP)),
    ("--cgroup-root", Same(BOTH)),
    ("--cgroup-yard", Same(BOTH)),
    ("--config", Same(ALL)),
    // The text is the whole set: there is no ^CAP.
    ("--cpu-cap", Same(BOTH)),
    ("--daemon", Same(&["page-server"])),
    ("--display-stats", Same(BOTH)),
    ("--empty-ns", Same(BOTH)),
    ("--enable-fs", Same(BOTH)),
    ("--evasive-devices", Same(BOTH)),
    ("--exec-cmd", Same(RESTORE)),
    ("--experimental", Nowhere(NO_FIELD)),
    ("--external", Same(BOTH)),
    ("--extra", Nowhere(NO_FIELD)),
    // What FEATURE_CHECK can be asked is in criuctl's verb `features`.
    ("--feature", Nowhere(NO_FIELD)),
    ("--file-locks", Same(BOTH)),
    ("--file-validation", Same(RESTORE)),
    ("--force-irmap", Same(DUMP)),
    ("--freeze-cgroup", Same(DUMP)),
    ("--ghost-fiemap", Same(DUMP)),
    ("--ghost-limit", Same(DUMP)),
    ("--help", Same(ALL)),
    ("--image-io-mode", Same(BOTH)),
    ("--images-dir", Same(IMAGES)),
    ("--inherit-fd", Same(RESTORE)),
    ("--irmap-scan-path", Same(DUMP)),
    ("--join-ns", Same(RESTORE)),
    ("--lazy-pages", Same(BOTH)),
    ("--leave-running", Same(DUMP)),
    ("--leave-stopped", Same(BOTH)),
    ("--libdir", Same(ALL)),
    ("--link-remap", Same(BOTH)),
    ("--log-file", Same(IMAGES)),
    ("--log-pid", Nowhere(NO_FIELD)),
    ("--lsm-mount-context", Same(RESTORE)),
    ("--lsm-profile", Same(RESTORE)),
    ("--manage-cgroups", Same(BOTH)),
    ("--mntns-compat-mode", Same(RESTORE)),
    ("--network-lock", Same(BOTH)),
    ("--no-default-config", Same(ALL)),
    (
        "--no-display-stats",
        Nowhere(
            "an example of how a configuration file is contradicted, which is read before the request",
        ),
    ),
    ("--page-server", Same(DUMP)),
    // Of a page server criuctl prints the pid; a dump has none to write.
    ("--pidfile", Same(RESTORE)),
    ("--plugin-option", Same(BOTH)),
    ("--port", Same(SERVED)),
    ("--pre-dump-mode", Same(DUMP)),
    ("--prev-images-dir", Same(SERVED)),
    ("--ps-socket", Same(SERVED)),
    ("--restore-detached", Same(RESTORE)),
    (
        "--restore-sibling",
        Nowhere("what criuctl restore does unless --detach or --exec-cmd is given"),
    ),
    ("--root", Same(BOTH)),
    ("--shell-job", Same(BOTH)),
    ("--skip-file-rwx-check", Same(RESTORE)),
    ("--skip-in-flight", Same(DUMP)),
    ("--skip-mnt", Same(DUMP)),
    ("--status-fd", Same(SERVED)),
    ("--stream", Same(BOTH)),
    ("--tcp-close", Same(BOTH)),
    ("--tcp-established", Same(BOTH)),
    // criuctl's own --timeout is the limit of the whole operation.
    ("--timeout", As(DUMP, "--freeze-timeout")),
    ("--tls", Same(SERVED)),
    ("--tls-cacert", Same(SERVED)),
    ("--tls-cacrl", Same(SERVED)),
    ("--tls-cert", Same(SERVED)),
    ("--tls-key", Same(SERVED)),
    ("--tls-no-cn-verify", Same(SERVED)),
    ("--track-mem", Same(DUMP)),
    ("--tree", As(DUMP, "pid:N")),
    ("--unprivileged", Same(ALL)),
    ("--verbosity", Same(ALL)),
    ("--version", Nowhere("criuctl version")),
    ("--weak-sysctls", Same(RESTORE)),
    ("--work-dir", Same(IMAGES)),
];

/// Options that a CRIU takes and does not list.
static UNLISTED: &[(&str, Place)] = &[
    ("--compress", Same(DUMP)),
    ("--compress-acceleration", Same(DUMP)),
    ("--compress-block", Same(DUMP)),
    ("--decompress-threads", Same(RESTORE)),
    ("--no-ghost-fiemap", Same(DUMP)),
    ("--veth-pair", Same(RESTORE)),
];

pub(crate) fn tests() -> Tests {
    named(
        "long-options/",
        &[
            ("of-every-criu-are-in-the-table", every_criu),
            ("are-where-the-table-says", every_place),
            ("of-a-later-criu-are-refused", later_arguments),
            ("that-this-criu-was-not-built-for", not_built),
        ],
    )
}

fn programs() -> Result<Vec<PathBuf>, String> {
    let mut programs = vec![criu().program().ok_or("no program")?.to_owned()];
    for version in ["4.1.1", "4.3"] {
        let program =
            Path::new("/var/lib/criu-client-test").join(format!("criu-{version}/usr/sbin/criu"));
        ensure!(
            program.exists(),
            "there is no {}; run scripts/install",
            program.display()
        );
        programs.push(program);
    }
    Ok(programs)
}

/// The long options that a help lists: those at the beginning of a line, behind a short form if there is one.
fn listed(help: &str) -> BTreeSet<String> {
    help.lines()
        .map(str::trim_start)
        .filter(|line| line.starts_with('-'))
        .filter_map(|line| {
            let definition = line.split_whitespace().next()?;
            let name = &definition[definition.find("--")?..];
            let end = name
                .find(|c: char| !c.is_ascii_lowercase() && c != '-')
                .unwrap_or(name.len());
            Some(name[..end].to_owned())
        })
        .collect()
}

fn every_criu() -> Outcome {
    let mut seen = BTreeSet::new();
    for program in programs()? {
        let output = Command::new(&program)
            .arg("--help")
            .output()
            .map_err(text)?;
        let listed = listed(&String::from_utf8_lossy(&output.stdout));
        ensure!(listed.len() > 70, "{}: {listed:?}", program.display());
        let missing: Vec<_> = listed
            .iter()
            .filter(|option| !OPTIONS.iter().any(|(known, _)| known == option))
            .collect();
        ensure!(
            missing.is_empty(),
            "{} has options that the table lacks: {missing:?}",
            program.display()
        );
        seen.extend(listed);
    }
    let stale: Vec<_> = OPTIONS
        .iter()
        .filter(|(option, _)| !seen.contains(*option))
        .map(|(option, _)| option)
        .collect();
    ensure!(stale.is_empty(), "no CRIU lists these: {stale:?}");
    Ok(())
}

fn every_place() -> Outcome {
    let help_of = |verb: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_criuctl"))
            .args([verb, "--help"])
            .output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let mut problems = Vec::new();
    for verb in ALL {
        let help = help_of(verb).map_err(text)?;
        let words: BTreeSet<&str> = help
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != ':')
            .collect();
        for (option, place) in OPTIONS.iter().chain(UNLISTED) {
            let (verbs, name) = match place {
                Same(verbs) => (verbs, *option),
                As(verbs, name) => (verbs, *name),
                Nowhere(reason) => {
                    if reason.is_empty() {
                        problems.push(format!("{option} has no reason"));
                    }
                    continue;
                }
            };
            if verbs.contains(verb) && !words.contains(name) {
                problems.push(format!("{verb} has no {name}"));
            }
        }
    }
    ensure!(problems.is_empty(), "{problems:#?}");
    Ok(())
}

/// Status 3, with all of `parts` said, and the victim goes on.
fn lacks(criu: &Path, option: &str, parts: &[&str]) -> Outcome {
    let victim = Victim::start(Kind::Plain)?;
    let images = victim.images("images");
    let output = Command::new(env!("CARGO_BIN_EXE_criuctl"))
        .arg("--criu")
        .arg(criu)
        .args(["checkpoint", &format!("pid:{}", victim.pid), option, "-D"])
        .arg(images.path())
        .output()
        .map_err(text)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(3),
        "{:?}: {said}",
        output.status
    );
    for part in parts {
        ensure!(said.contains(part), "{part:?} is not in: {said}");
    }
    victim.goes_on()
}

/// Options that travel as arguments of the program are refused as those that travel in the request are.
fn later_arguments() -> Outcome {
    lacks(
        &programs()?[1],
        "--allow-uprobes",
        &["--allow-uprobes needs CRIU 4.2, this is 4.1.1", "hint: "],
    )
}

fn not_built() -> Outcome {
    let newest = &programs()?[2];
    let features = block_on(criu_client::Criu::at(newest).features()).map_err(whole)?;
    ensure!(
        features.mem_compression == Some(false),
        "this CRIU 4.3 compresses: another must be found for this test"
    );
    lacks(
        newest,
        "--compress",
        &["built without LZ4", "hint: Dump without --compress"],
    )
}
