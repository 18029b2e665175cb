//! A dry run tells what is done then, and does nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use criu_client::dry_run::{differences, options_sent};
use criu_client::interpose::recording::{Event, Side};
use serde_json::{Map, Value};

use crate::interposed::{CRIUCTL, Stage};
use crate::support::*;

pub(crate) fn tests() -> Tests {
    named(
        "dry-run/",
        &[
            ("of-a-process-asks-what-is-sent", process),
            ("of-a-process-refuses-what-the-deed-refuses", refusals),
        ],
    )
}

/// What criuctl's one document says, and its exit status.
pub(crate) fn criuctl(arguments: &[String]) -> Result<(Option<i32>, Value), String> {
    let output = Command::new(CRIUCTL)
        .arg("--format=json")
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .map_err(text)?;
    let document = serde_json::from_slice(&output.stdout).map_err(|error| {
        let said = String::from_utf8_lossy(&output.stdout);
        format!("criuctl {arguments:?}: {error}: {said}")
    })?;
    Ok((output.status.code(), document))
}

pub(crate) fn succeeds(arguments: &[String]) -> Result<Value, String> {
    let (status, document) = criuctl(arguments)?;
    ensure!(status == Some(0), "criuctl {arguments:?}: {document:#}");
    Ok(document)
}

/// The document of a dry run, which must have left everything below `directory`, mounts, control groups and journals as they
/// were; files named `count` count on.
pub(crate) fn planned(arguments: &[String], directory: &Path) -> Result<Value, String> {
    let before = Surroundings::look(directory);
    let mut dry = arguments.to_vec();
    dry.push("--dry-run".into());
    let plan = succeeds(&dry)?;
    before.are_the_same(directory)?;
    Ok(plan)
}

/// What a dry run must not change.
#[derive(PartialEq)]
struct Surroundings {
    files: BTreeMap<PathBuf, (u64, std::time::SystemTime)>,
    mounts: String,
    groups: Vec<PathBuf>,
    journals: Vec<PathBuf>,
}

impl Surroundings {
    fn look(directory: &Path) -> Self {
        let mut files = BTreeMap::new();
        walk(directory, &mut |path, metadata| {
            if path.file_name().is_none_or(|name| name != "count") {
                let modified = metadata.modified().expect("a time");
                files.insert(path.to_owned(), (metadata.len(), modified));
            }
        });
        let mut groups = Vec::new();
        walk(Path::new("/sys/fs/cgroup"), &mut |path, metadata| {
            // Other tests' are other processes' of this machine.
            if metadata.is_dir() && path.display().to_string().contains("criuctl-test-") {
                groups.push(path.to_owned());
            }
        });
        let mut journals = Vec::new();
        walk(Path::new("/run/criu-client"), &mut |path, _| {
            journals.push(path.to_owned());
        });
        let name = directory.display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let ours: Vec<&str> = mounts
            .lines()
            .filter(|line| line.contains(&name) || line.contains("criu-client"))
            .collect();
        Self {
            files,
            mounts: ours.join("\n"),
            groups,
            journals,
        }
    }

    fn are_the_same(&self, directory: &Path) -> Outcome {
        let now = Self::look(directory);
        let changed: Vec<_> = now
            .files
            .iter()
            .filter(|(path, file)| self.files.get(*path) != Some(file))
            .map(|(path, _)| path)
            // A recording of the question for the version, and the directory around it.
            .filter(|path| {
                !path
                    .components()
                    .any(|part| part.as_os_str() == "recordings")
            })
            .collect();
        ensure!(changed.is_empty(), "a dry run wrote {changed:?}");
        ensure!(
            self.mounts == now.mounts,
            "a dry run mounted: {}",
            now.mounts
        );
        ensure!(
            self.groups == now.groups,
            "control groups: {:?}",
            now.groups
        );
        ensure!(
            self.journals == now.journals,
            "journals: {:?}",
            now.journals
        );
        Ok(())
    }
}

fn walk(directory: &Path, seen: &mut impl FnMut(&Path, &fs::Metadata)) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        seen(&entry.path(), &metadata);
        if metadata.is_dir() {
            walk(&entry.path(), seen);
        }
    }
}

/// The options that were sent in a session with this request.
pub(crate) fn sent(stage: &Stage, request: &str) -> Result<Map<String, Value>, String> {
    let session = stage.session_of(request)?;
    let message = session.iter().find_map(|event| match event {
        Event::Message {
            from: Side::Engine,
            view,
            fds,
            ..
        } if view["type"] == request => Some(options_sent(view, fds)),
        _ => None,
    });
    message.ok_or_else(|| format!("no {request} was sent"))
}

/// The plan's request is the one that was sent: every field of it, in its order where the order may matter, and none more.
pub(crate) fn asks(plan: &Value, request: &str, sent: &Map<String, Value>) -> Outcome {
    let asked = &plan["request"];
    ensure!(asked["type"] == request, "{asked}");
    let options = asked["options"].as_object().ok_or("no options")?;
    let different: Vec<String> = differences(options, sent)
        .iter()
        .map(ToString::to_string)
        .collect();
    ensure!(different.is_empty(), "planned | sent: {different:#?}");
    ensure!(options == sent, "planned {options:#?}, sent {sent:#?}");
    Ok(())
}

/// The paths of the steps of an action.
pub(crate) fn of_steps<'a>(plan: &'a Value, action: &str, member: &str) -> Vec<&'a Path> {
    let steps = plan["steps"].as_array().into_iter().flatten();
    steps
        .filter(|step| step["action"] == action)
        .flat_map(|step| match &step[member] {
            Value::Array(paths) => paths.iter().collect(),
            path => vec![path],
        })
        .filter_map(|path| path.as_str().map(Path::new))
        .collect()
}

pub(crate) fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

fn process() -> Outcome {
    let stage = Stage::install(&[])?;
    let mut victim = Victim::start(Kind::Plain)?;
    let directory = victim.directory.path().to_owned();
    let (images, work) = (directory.join("made/images"), directory.join("work"));
    let pid_file = directory.join("pid");
    let program = format!("--criu={}", stage.criu().display());
    let (images_option, work_option) = (
        format!("--image-path={}", images.display()),
        format!("--work-path={}", work.display()),
    );
    let target = format!("pid:{}", victim.pid);
    let mut arguments = words(&[
        "checkpoint",
        &target,
        &program,
        &images_option,
        &work_option,
    ]);
    arguments.extend(words(&[
        "--shell-job",
        "--ghost-limit=2M",
        "--manage-cgroups-mode=ignore",
        "--log-level=debug",
        "--hook=post-dump=/bin/true",
    ]));
    let plan = planned(&arguments, &directory)?;
    ensure!(plan["kind"] == "CheckpointPlan", "{plan}");
    victim.goes_on()?;
    let made = of_steps(&plan, "make-directory", "make");
    let expected = [directory.join("made"), images.clone(), work.clone()];
    ensure!(made == expected, "{made:?}");
    let hooks = of_steps(&plan, "run-program", "program");
    ensure!(hooks == [Path::new("/bin/true")], "{hooks:?}");
    succeeds(&arguments)?;
    victim.reap()?;
    asks(&plan, "DUMP", &sent(&stage, "DUMP")?)?;
    for log in of_steps(&plan, "write-log", "path") {
        ensure!(log.exists(), "{} was not written", log.display());
    }

    let mut arguments = words(&["restore", &target, &program, &images_option, &work_option]);
    arguments.extend(words(&[
        "--shell-job",
        "--detach",
        "--manage-cgroups-mode=ignore",
    ]));
    arguments.push(format!("--pid-file={}", pid_file.display()));
    let plan = planned(&arguments, &directory)?;
    ensure!(plan["kind"] == "RestorePlan", "{plan}");
    ensure!(!victim.exists(), "a dry run restored");
    succeeds(&arguments)?;
    victim.is_now(victim.pid);
    asks(&plan, "RESTORE", &sent(&stage, "RESTORE")?)?;
    let files: Vec<&str> = plan["files"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    ensure!(files == [pid_file.display().to_string()], "{files:?}");
    ensure!(pid_file.exists(), "no pid file");
    victim.goes_on()
}

/// Both must fail, before anything is done, with the same status and the same words.
pub(crate) fn refuses_alike(arguments: &[String], directory: &Path, words: &str) -> Outcome {
    let before = Surroundings::look(directory);
    let mut dry = arguments.to_vec();
    dry.push("--dry-run".into());
    let told = criuctl(&dry)?;
    before.are_the_same(directory)?;
    let real = criuctl(arguments)?;
    ensure!(told.0 != Some(0), "a dry run of {arguments:?} succeeds");
    ensure!(
        told == real,
        "{arguments:?}: {:#} instead of {:#}",
        told.1,
        real.1
    );
    let said = real.1.to_string();
    ensure!(said.contains(words), "{words:?} is not in {said}");
    Ok(())
}

fn refusals() -> Outcome {
    let victim = Victim::start(Kind::Plain)?;
    let directory = victim.directory.path().to_owned();
    let file = directory.join("file");
    fs::write(&file, "").map_err(text)?;
    let at = |name: &str| directory.join(name).display().to_string();
    let target = format!("pid:{}", victim.pid);
    let images = format!("--image-path={}", at("images"));
    let (below, under) = (
        format!("--image-path={}", at("file/below")),
        format!("--work-path={}", at("file")),
    );
    // Where the words come from: the verb, the library's options, CRIU's version.
    for (options, wanted) in [
        (vec!["pid:999999999", &images], "there is no process"),
        (vec![&target, &below], "cannot be the images directory"),
        (
            vec![&target, &images, &under],
            "cannot be the work directory",
        ),
        (vec![&target, &images, "--parent-path=/a"], "is absolute"),
        (
            vec![&target, &images, "--parent-path=../none"],
            "no images in",
        ),
        (
            vec![&target, &images, "--hook=post-restore=/bin/true"],
            "post-restore",
        ),
        (vec![&target, &images, "--lazy-pages"], "--port"),
        (vec![&target, &images, "--bundle=/"], "--bundle"),
        (vec![&target, &images, "--for=runc"], "--for"),
        (vec![&target, &images, "--log-file=a/b"], "log-file"),
        (vec![&target, &images, "--image-io-mode=direct"], "CRIU 4.3"),
        (
            vec![&target, &images, "--criu=/no/such/criu"],
            "/no/such/criu",
        ),
        (vec!["runc:nobody", &images], "there is no such container"),
    ] {
        let mut arguments = words(&["checkpoint"]);
        arguments.extend(words(&options));
        refuses_alike(&arguments, &directory, wanted)?;
    }
    victim.goes_on()?;

    let kept = victim.images("kept");
    let options = victim.dump_options();
    let options = options.leave(criu_client::options::Leave::Running);
    block_on(criu().dump(victim.pid, &kept, (), options)).map_err(whole)?;
    let images = format!("--image-path={}", kept.path().display());
    let (no_file, no_socket) = (
        format!("--pid-file={}", at("none/pid")),
        format!("--console-socket={}", at("file")),
    );
    let empty = victim.images("empty");
    let empty = format!("--image-path={}", empty.path().display());
    for (options, wanted) in [
        (vec!["pid:1", &images], "not of pid 1"),
        (vec![&target, &images, "-d"], "is in use"),
        (vec![&target, &images, "-d", &no_file], "cannot be written"),
        (vec![&target, &images, "-d", &no_socket], "console socket"),
        (vec![&target, &empty, "-d"], "no complete checkpoint"),
        (
            vec![&target, &images, "-d", "--lazy-pages"],
            "nobody serves",
        ),
        (
            vec!["runc:any", &images, "--bundle=/no/bundle"],
            "/no/bundle",
        ),
    ] {
        let mut arguments = words(&["restore"]);
        arguments.extend(words(&options));
        refuses_alike(&arguments, &directory, wanted)?;
    }
    victim.goes_on()
}
