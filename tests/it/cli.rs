//! The command line as those who call it see it: grammar, exit statuses, documents. Needs no privilege; where CRIU would
//! be needed, something else stands in its place that fails or hangs as a broken CRIU would.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::Value;

const VERBS: [&str; 14] = [
    "list",
    "version",
    "check",
    "features",
    "checkpoint",
    "restore",
    "page-server",
    "trace",
    "interpose",
    "inspect",
    "explain",
    "replay",
    "completions",
    "man",
];

/// The tests by name; one that is not listed is dead code.
pub(crate) fn tests() -> Vec<Trial> {
    macro_rules! trials {
        ($($name:ident),* $(,)?) => {
            vec![$(Trial::test(concat!("cli::", stringify!($name)), || {
                $name();
                Ok(())
            })),*]
        };
    }
    trials![
        help_lists_every_verb_and_exit_status,
        without_a_verb_it_is_wrong_usage_with_the_help,
        whoever_knows_criu_finds_its_options,
        whoever_knows_runc_finds_its_options,
        bad_values_are_refused_with_the_value_and_the_remedy,
        targets_are_refused_with_what_to_write,
        options_that_contradict_each_other_are_refused,
        wrong_usage_is_a_document_too,
        a_criu_that_is_not_there_is_something_missing,
        a_criu_that_says_nothing_is_a_failure,
        the_time_limit_has_a_status_of_its_own,
        a_checkpoint_that_comes_to_nothing_leaves_no_directory,
        an_interrupt_cancels_and_leaves_no_process,
        hooks_that_would_never_run_are_refused,
        bad_input_is_found_before_criu_is_asked,
        a_container_that_is_not_there_is_bad_input,
        an_ordinary_user_is_told_to_be_root_before_anything_happens,
        completions_and_manual_pages_are_whole,
        a_log_is_explained,
        a_reader_that_has_gone_is_no_failure,
        colours_are_for_terminals_only,
        what_is_done_is_said_on_request_only,
    ]
}

pub(crate) fn criuctl(line: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_criuctl"));
    command
        .args(line)
        .stdin(Stdio::null())
        .env_remove("NO_COLOR");
    command
}

pub(crate) fn run(line: &[&str]) -> Output {
    criuctl(line).output().unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The one document on standard output.
pub(crate) fn document(output: &Output) -> Value {
    let text = stdout(output);
    assert_eq!(text.lines().count(), 1, "{text}");
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["apiVersion"], "criuctl/v1");
    document
}

/// Fails with this status, says all of `parts` on standard error and nothing on standard output.
pub(crate) fn fails(line: &[&str], status: i32, parts: &[&str]) {
    let output = run(line);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(status), "{line:?}: {said}");
    assert!(said.starts_with("error: "), "{line:?}: {said}");
    for part in parts {
        assert!(said.contains(part), "{line:?}: {part:?} is not in: {said}");
    }
    assert_eq!(stdout(&output), "", "{line:?}");
}

/// A `--criu` that hangs: a shell which takes the file `swrk` of its directory for a script.
fn hanging_criu() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("swrk"), "exec sleep 1000\n").unwrap();
    directory
}

fn help_lists_every_verb_and_exit_status() {
    let output = run(&["--help"]);
    assert!(output.status.success());
    let help = stdout(&output);
    for verb in VERBS {
        assert!(help.contains(&format!("\n  {verb} ")), "{verb}: {help}");
    }
    for status in [
        "0  done",
        "1  failed",
        "2  wrong usage",
        "3  something required",
        "4  a hook",
        "5  the time",
        "130  int",
    ] {
        assert!(help.contains(status), "{status}: {help}");
    }
    assert!(stderr(&output).is_empty());
    for verb in VERBS {
        let output = run(&[verb, "--help"]);
        assert!(output.status.success(), "{verb}");
        assert!(
            stdout(&output).contains("--format"),
            "{verb} lacks the global options"
        );
    }
}

fn without_a_verb_it_is_wrong_usage_with_the_help() {
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("Usage: criuctl"));
    assert!(stdout(&output).is_empty());
}

fn whoever_knows_criu_finds_its_options() {
    let both = "images-dir work-dir root tcp-established tcp-close ext-unix-sk file-locks link-remap evasive-devices \
        shell-job leave-stopped external enable-fs manage-cgroups cgroup-root cgroup-yard cpu-cap empty-ns lazy-pages \
        stream unprivileged allow-uprobes libdir config no-default-config verbosity log-file display-stats auto-dedup";
    let dump = "leave-running prev-images-dir track-mem page-server ps-socket status-fd skip-in-flight ghost-limit \
        ghost-fiemap force-irmap irmap-scan-path freeze-cgroup cgroup-props cgroup-props-file cgroup-dump-controller \
        skip-mnt network-lock pre-dump-mode tls tls-cacert tls-cacrl tls-cert tls-key tls-no-cn-verify";
    let restore = "restore-detached pidfile exec-cmd weak-sysctls mntns-compat-mode inherit-fd join-ns lsm-profile \
        lsm-mount-context skip-file-rwx-check file-validation";
    for (verb, options) in [("checkpoint", [both, dump]), ("restore", [both, restore])] {
        let help = stdout(&run(&[verb, "--help"]));
        for option in options
            .iter()
            .flat_map(|options| options.split_whitespace())
        {
            let found = help
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
                .any(|word| word == format!("--{option}"));
            assert!(found, "{verb} has no --{option}");
        }
    }
}

fn whoever_knows_runc_finds_its_options() {
    let both = "image-path work-path tcp-established ext-unix-sk shell-job file-locks manage-cgroups-mode empty-ns \
        auto-dedup lazy-pages";
    let checkpoint = "parent-path leave-running status-fd page-server pre-dump";
    let restore =
        "console-socket bundle detach pid-file lsm-profile lsm-mount-context systemd-cgroup";
    for (verb, options) in [
        ("checkpoint", [both, checkpoint]),
        ("restore", [both, restore]),
    ] {
        let help = stdout(&run(&[verb, "--help"]));
        for option in options
            .iter()
            .flat_map(|options| options.split_whitespace())
        {
            assert!(
                help.contains(&format!("--{option}")),
                "{verb} has no --{option}"
            );
        }
    }
    for heading in [
        "Images",
        "Tasks",
        "Files",
        "Network",
        "Mounts",
        "Cgroups",
        "Namespaces",
        "Memory",
        "Security",
        "CRIU",
    ] {
        let help = stdout(&run(&["checkpoint", "--help"]));
        assert_eq!(
            help.matches(&format!("\n{heading}:\n")).count(),
            1,
            "{heading}"
        );
    }
}

fn bad_values_are_refused_with_the_value_and_the_remedy() {
    let at = |option: &'static str, value: &'static str| {
        ["checkpoint", "pid:1", "-D", "/nonexistent", option, value]
    };
    for (option, value, remedy) in [
        ("--timeout", "30", "30s"),
        ("--timeout", "0s", "leave the option out"),
        ("--hook-timeout", "soon", "ms, s, m and h"),
        ("--ghost-limit", "1T", "K, M or G"),
        ("--log-level", "9", "0 to 4"),
        ("--network-lock", "ebtables", "iptables, nftables, skip"),
        ("--manage-cgroups-mode", "hard", "soft"),
        ("--page-server", "node", "HOST:PORT"),
        ("--page-server", "0.0.0.0:27", "name the one"),
        ("--external", "mnt[relative]:x", "absolute"),
        ("--external", "disk[1]:x", "mnt"),
        ("--cgroup-root", "cpu", "CONTROLLER:/PATH"),
        ("--empty-ns", "ipc", "write net"),
        ("--plugin-option", "cuda", "PLUGIN.NAME"),
        ("--config", "/nonexistent/config", "no such file"),
        ("--hook", "pre-lunch=true", "post-dump"),
        ("--hook", "post-dump", "SCRIPT=PROGRAM"),
        (
            "--hook",
            "post-dump=/nonexistent",
            "there is no /nonexistent",
        ),
        (
            "--hook",
            "post-dump=no-such-program-anywhere",
            "on the PATH",
        ),
        ("--hook", "post-dump=/etc/passwd", "chmod"),
    ] {
        fails(&at(option, value), 2, &[value, option, remedy]);
    }
    let restore = |option: &'static str, value: &'static str| {
        ["restore", "-D", "/nonexistent", option, value]
    };
    for (option, value, remedy) in [
        ("--inherit-fd", "3:x", "fd[NUMBER]:KEY"),
        (
            "--inherit-fd",
            "fd[3]:/var/log/x",
            "without its leading slash",
        ),
        ("--join-ns", "pid:1", "inherit KEY"),
        ("--lsm-profile", "smack:x", "apparmor:NAME"),
        ("--veth-pair", "eth0", "INSIDE=OUTSIDE"),
    ] {
        fails(&restore(option, value), 2, &[value, option, remedy]);
    }
}

fn targets_are_refused_with_what_to_write() {
    for (target, remedy) in [
        ("4711", "pid:4711"),
        ("pid:0", "pid:4711"),
        ("docker:we/b", "letters"),
        ("podman:we/b", "letters"),
        ("lxc:web", "not supported by this version"),
        ("rkt:web", "pid:N, runc:ID, crun:ID, docker:ID or podman:ID"),
        ("../web", "letters"),
    ] {
        fails(
            &["checkpoint", target, "--image-path", "/nonexistent"],
            2,
            &[target, remedy],
        );
        fails(
            &["restore", target, "--image-path", "/nonexistent"],
            2,
            &[target, remedy],
        );
    }
}

fn options_that_contradict_each_other_are_refused() {
    for line in [
        &[
            "checkpoint",
            "pid:1",
            "-D",
            "x",
            "--leave-running",
            "--leave-stopped",
        ][..],
        &[
            "checkpoint",
            "pid:1",
            "-D",
            "x",
            "--tcp-established",
            "--tcp-close",
        ],
        &[
            "checkpoint",
            "pid:1",
            "-D",
            "x",
            "--pre-dump",
            "--hook",
            "post-dump=true",
        ],
        &["checkpoint", "pid:1", "-D", "x", "--lazy-pages"],
        &["checkpoint", "pid:1", "-D", "x", "--tls-key", "/etc/passwd"],
        &[
            "checkpoint",
            "pid:1",
            "-D",
            "x",
            "--compress-acceleration",
            "2",
        ],
        &["checkpoint", "pid:1"],
        &["checkpoint", "-D", "x"],
        &["restore", "-D", "x", "--exec-cmd"],
        &["restore", "-D", "x", "--exec-cmd", "--detach", "--", "true"],
        &["page-server", "-D", "x", "--port", "0"],
        &["page-server", "-D", "x", "--address", "127.0.0.1"],
        &["version", "-q", "-v"],
        &["version", "--criu", "a", "--service", "b"],
    ] {
        let output = run(line);
        assert_eq!(output.status.code(), Some(2), "{line:?}");
        assert!(stderr(&output).contains("error: "), "{line:?}");
    }
    // The two ends of the line are parsed apart.
    fails(
        &["--criu", "a", "features", "--service", "b"],
        2,
        &["--criu", "--service"],
    );
}

fn wrong_usage_is_a_document_too() {
    for line in [
        &["--format", "json", "frobnicate"][..],
        &["checkpoint", "4711", "-D", "x", "--format=json"],
        &["man", "frobnicate", "--format", "json"],
    ] {
        let output = run(line);
        assert_eq!(output.status.code(), Some(2), "{line:?}");
        let document = document(&output);
        assert_eq!(document["kind"], "Error");
        assert_eq!(document["code"], "usage");
        assert!(
            document["message"]
                .as_str()
                .is_some_and(|message| !message.is_empty())
        );
        assert!(document["chain"].is_array());
        assert!(stderr(&output).is_empty(), "{line:?}");
    }
}

fn a_criu_that_is_not_there_is_something_missing() {
    let line = ["--criu", "/nonexistent/criu", "features"];
    fails(&line, 3, &["/nonexistent/criu", "caused by: ", "hint: "]);
    fails(
        &["--criu", "no-such-criu-anywhere", "features"],
        3,
        &["no-such-criu-anywhere", "PATH"],
    );
    fails(
        &["--service", "/nonexistent/socket", "features"],
        3,
        &[
            "/nonexistent/socket",
            "could not be reached",
            "nothing listens there",
            "criu service --address /nonexistent/socket",
        ],
    );

    let output = run(&["--criu", "/nonexistent/criu", "version", "--format", "json"]);
    assert_eq!(output.status.code(), Some(3));
    let document = document(&output);
    assert_eq!(document["kind"], "Error");
    assert_eq!(document["code"], "start");
    assert_eq!(document["operation"], "version");
    assert_eq!(document["tasks"], "not-concerned");
    assert_eq!(document["undone"], Value::Array(Vec::new()));
    assert!(
        document["chain"][0]
            .as_str()
            .is_some_and(|cause| cause.contains("No such file"))
    );
}

fn a_criu_that_says_nothing_is_a_failure() {
    let output = run(&["--criu", "/bin/false", "features", "--format", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let document = document(&output);
    assert_eq!(document["code"], "lost");
    assert_eq!(document["exit"]["status"], 1);
}

fn a_checkpoint_that_comes_to_nothing_leaves_no_directory() {
    let directory = tempfile::tempdir().unwrap();
    let pid = format!("pid:{}", std::process::id());
    let made = directory.path().join("made");
    let images = made.join("images").display().to_string();
    let line = [
        "--criu",
        "/bin/false",
        "checkpoint",
        &pid,
        "--unprivileged",
        "-D",
        &images,
    ];
    fails(&line, 1, &["tasks: running"]);
    assert!(!made.exists());
    // Not even for one whose parent images are missing, and never what was there before.
    fs::create_dir(&made).unwrap();
    fails(
        &[&line[..], &["--parent-path", "../none"]].concat(),
        2,
        &["--parent-path"],
    );
    assert_eq!(fs::read_dir(&made).unwrap().count(), 0);
}

fn the_time_limit_has_a_status_of_its_own() {
    let directory = hanging_criu();
    let begun = Instant::now();
    let output = criuctl(&["--criu", "/bin/sh", "features", "--timeout", "300ms"])
        .current_dir(directory.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert!(stderr(&output).contains("300ms"));
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_millis(300) && took < Duration::from_secs(20),
        "{took:?}"
    );
}

fn an_interrupt_cancels_and_leaves_no_process() {
    for (signal, name) in [("INT", "SIGINT"), ("TERM", "SIGTERM"), ("HUP", "SIGHUP")] {
        let directory = hanging_criu();
        // A run of the tests under nohup would make it deaf to SIGHUP.
        let mut child = Command::new("env")
            .args(["--default-signal=HUP", env!("CARGO_BIN_EXE_criuctl")])
            .args(["--criu", "/bin/sh", "features", "-v"])
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap())
            .lines()
            .map(Result::unwrap);
        let started = lines
            .by_ref()
            .find(|line| line.contains("criu started"))
            .unwrap();
        let worker = started
            .split("pid=")
            .nth(1)
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
            .to_owned();
        assert!(Path::new("/proc").join(&worker).exists(), "{started}");

        let killed = Command::new("kill")
            .args(["-s", signal, &child.id().to_string()])
            .status()
            .unwrap();
        assert!(killed.success());
        assert_eq!(child.wait().unwrap().code(), Some(130), "{signal}");
        let said: Vec<String> = lines.collect();
        let expected = format!("error: the feature check was cancelled by {name}");
        assert!(said.contains(&expected), "{said:?}");
        let outlived = Path::new("/proc").join(&worker).exists();
        if outlived {
            Command::new("kill").arg(&worker).status().unwrap();
        }
        assert!(!outlived, "the worker is still there");
    }
}

fn hooks_that_would_never_run_are_refused() {
    // A service has its own privileges, so that this comes as far as the hooks whoever runs it.
    let line = |verb: &'static str, target: &'static str, hook: &'static str| {
        [
            verb,
            target,
            "-D",
            "/nonexistent",
            "--service",
            "/nonexistent/socket",
            "--hook",
            hook,
        ]
    };
    fails(
        &line("checkpoint", "pid:1", "post-restore=true"),
        2,
        &["post-restore", "pre-dump, "],
    );
    fails(
        &line("restore", "pid:1", "post-dump=true"),
        2,
        &["post-dump", "pre-restore, "],
    );
    let mut twice = line("checkpoint", "pid:1", "post-dump=true").to_vec();
    twice.extend(["--hook", "post-dump=false"]);
    fails(&twice, 2, &["post-dump has a program already"]);
}

fn bad_input_is_found_before_criu_is_asked() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().to_str().unwrap();
    let service = ["--service", "/nonexistent/socket"];
    let with = |line: &[&'static str], images: &str, status: i32, parts: &[&str]| {
        let mut line: Vec<&str> = line.to_vec();
        line.extend(["-D", images]);
        line.extend(service);
        fails(&line, status, parts);
    };
    with(
        &["restore"],
        "/nonexistent/images",
        2,
        &["/nonexistent/images", "caused by: "],
    );
    with(
        &["restore"],
        empty,
        2,
        &["no complete checkpoint", "inventory.img", "hint: "],
    );
    with(
        &["checkpoint", "pid:2147483647"],
        empty,
        2,
        &["there is no process 2147483647"],
    );
    with(
        &["checkpoint", "pid:1", "--parent-path", "../none"],
        empty,
        2,
        &["no images in", "../1"],
    );
    with(
        &["checkpoint", "pid:1", "--parent-path", "/none"],
        empty,
        2,
        &["absolute"],
    );
    with(
        &["checkpoint", "pid:1", "--ps-socket", "777"],
        empty,
        2,
        &["777", "not open"],
    );
    with(
        &["checkpoint", "pid:1", "--libdir", "/tmp"],
        empty,
        2,
        &["--libdir", "--service"],
    );
    with(
        &["restore", "pid:1", "--bundle", "/tmp"],
        empty,
        2,
        &["--bundle", "containers"],
    );

    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images");
    let dumped = images.join("criu-4.2.1");
    with(
        &["restore", "pid:1"],
        dumped.to_str().unwrap(),
        2,
        &["of pid 8806, not of pid 1", "pid:8806"],
    );
    with(
        &["restore", "--lazy-pages"],
        dumped.to_str().unwrap(),
        2,
        &["lazy-pages", "criu lazy-pages"],
    );
    with(
        &["restore", "--console-socket", "/nonexistent"],
        dumped.to_str().unwrap(),
        2,
        &["/nonexistent"],
    );
    with(
        &["restore", "--pid-file", "/nonexistent/pid"],
        dumped.to_str().unwrap(),
        2,
        &["--pid-file"],
    );
    let pre_dumped = images.join("criu-4.3/pre-dump");
    with(
        &["restore"],
        pre_dumped.to_str().unwrap(),
        2,
        &["pre-dump", "hint: "],
    );
}

fn a_container_that_is_not_there_is_bad_input() {
    let directory = tempfile::tempdir().unwrap();
    let (root, images) = (
        directory.path().join("runc"),
        directory.path().join("images"),
    );
    let paths = [root.to_str().unwrap(), images.to_str().unwrap()];
    let line = |target: &'static str, more: &[&'static str]| -> Vec<String> {
        let fixed = [
            "checkpoint",
            target,
            "--runc-root",
            paths[0],
            "--crun-root",
            paths[0],
            "-D",
            paths[1],
            "--service",
            "/nonexistent/socket",
        ];
        fixed
            .iter()
            .chain(more)
            .map(|word| (*word).to_owned())
            .collect()
    };
    for target in ["runc:web", "web"] {
        let line = line(target, &[]);
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        fails(&line, 2, &["\"web\"", "no such container", paths[0]]);
    }
    assert!(!images.exists(), "a directory was made for nothing");
    let json = line("runc:web", &["--format", "json"]);
    let json: Vec<&str> = json.iter().map(String::as_str).collect();
    let output = run(&json);
    let document = document(&output);
    assert_eq!(document["kind"], "Error");
    assert_eq!(document["code"], "unknown");
    assert_eq!(document["container"], "web");
    for option in [
        &["--leave-stopped"][..],
        &["--orphan-pts-master"],
        &["--root", "/"],
    ] {
        let line = line("runc:web", option);
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        fails(&line, 2, &[option[0]]);
    }
}

fn an_ordinary_user_is_told_to_be_root_before_anything_happens() {
    // Somewhere everybody may read: the build directory may be root's alone.
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = directory.path().join("criuctl");
    fs::copy(env!("CARGO_BIN_EXE_criuctl"), &program).unwrap();
    let images = directory.path().join("images");
    for verb in ["checkpoint", "restore"] {
        let mut command = Command::new(&program);
        command
            .args([verb, "pid:1", "--image-path"])
            .arg(&images)
            .stdin(Stdio::null());
        if rustix::process::geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
        // Another test that forks at this moment may still hold the copy open for writing.
        let deadline = Instant::now() + Duration::from_secs(10);
        let output = loop {
            match command.output() {
                Err(busy)
                    if busy.kind() == std::io::ErrorKind::ExecutableFileBusy
                        && Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(10));
                }
                output => break output.unwrap(),
            }
        };
        assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
        let said = stderr(&output);
        for part in ["root", "sudo", "--unprivileged", "--service"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!images.exists());
    }
}

fn completions_and_manual_pages_are_whole() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success(), "{shell}");
        let script = stdout(&output);
        assert!(
            script.contains("checkpoint") && script.contains("image-path"),
            "{shell}"
        );
    }
    let page = stdout(&run(&["man"]));
    assert!(
        page.contains(".TH criuctl 1") && page.contains("Exit status"),
        "{page}"
    );
    for verb in VERBS {
        let page = stdout(&run(&["man", verb]));
        assert!(
            page.contains(&format!(".TH criuctl-{verb} 1")),
            "{verb}: {page}"
        );
        assert!(
            page.contains("hook\\-timeout"),
            "{verb} lacks the global options"
        );
    }
    fails(&["man", "frobnicate"], 2, &["frobnicate", "checkpoint"]);
}

fn a_log_is_explained() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("dump.log");
    let mut file = fs::File::create(&log).unwrap();
    file.write_all(
        b"(00.000001) Version: 4.2.1 (gitid 0)\n\
        (00.036538) Error (criu/files-reg.c:1790): Can't lookup mount=24 for fd=1 path=/tmp/out\n\
        (00.036854) Error (criu/cr-dump.c:1975): Dumping FAILED.\n",
    )
    .unwrap();
    drop(file);
    for path in [directory.path(), &log] {
        let path = path.to_str().unwrap();
        let output = run(&["explain", path]);
        assert!(output.status.success(), "{}", stderr(&output));
        let text = stdout(&output);
        for part in ["log: ", "cause: ", "hint: ", "> ", "Can't lookup mount=24"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let output = run(&["explain", path, "--format", "json"]);
        let document = document(&output);
        assert_eq!(document["kind"], "Explanation");
        assert_eq!(document["operation"], "dump");
        assert_eq!(document["diagnosis"]["code"], "stdio-outside-container");
        assert_eq!(document["cause"]["number"], 2);
    }
    fails(&["explain", "/nonexistent"], 2, &["/nonexistent"]);
    fails(&["explain", "/etc/passwd"], 2, &["not a log of CRIU"]);
}

fn a_reader_that_has_gone_is_no_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = criuctl(&["man", "checkpoint"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).is_empty());

    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = criuctl(&["man"])
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("No space left"));
}

fn colours_are_for_terminals_only() {
    let output = run(&["--criu", "/nonexistent/criu", "features", "-v"]);
    assert!(!stderr(&output).contains('\x1b'));
    assert!(!stdout(&run(&["--help"])).contains('\x1b'));
}

fn what_is_done_is_said_on_request_only() {
    let quiet = run(&["--criu", "/bin/false", "features"]);
    assert!(!stderr(&quiet).contains("criu started"));
    let verbose = run(&["--criu", "/bin/false", "features", "-v"]);
    assert!(stderr(&verbose).contains("criu started"));
    let json = run(&[
        "--criu",
        "/bin/false",
        "features",
        "-v",
        "--log-format",
        "json",
    ]);
    let line = stderr(&json);
    let line = line
        .lines()
        .find(|line| line.contains("criu started"))
        .unwrap();
    let event: Value = serde_json::from_str(line).unwrap();
    assert_eq!(event["level"], "DEBUG");
    assert_eq!(event["fields"]["program"], "/bin/false");
    // Nothing else is between the lines, not even the error.
    let levels: Vec<_> = stderr(&json)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["level"].clone())
        .collect();
    assert_eq!(levels.last().unwrap(), "ERROR", "{levels:?}");
}
