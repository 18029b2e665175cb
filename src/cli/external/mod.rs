//! `external`

mod args;
mod choice;
mod tell;

use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use criu_client::container::external::{
    External as Ours, ExternalCheckpoint, Network, RestoreOptions, Stdio,
};
use criu_client::container::{ErrorKind, Status, runtime};
use criu_client::notify::{HookError, Hooks, Notify, Reply};
use criu_client::{Criu, ImagesDir, OperationKind, TaskState};

use super::Context;
use super::container::left_behind;
use super::failure::Failure;
use super::output::Output;
use super::signals::Interrupts;
use super::target::Target;
use super::values;
pub(super) use args::External;
use args::{Checkpoint, Cleanup, Environment, Flags, Restore, Verb};
use choice::{Chosen, Purpose};

/// Docker's directory that is not told otherwise.
const DOCKER_HOME: &str = "/var/lib/docker";

/// What docker_cr.sh asked for and nothing needs any more.
const NO_LONGER: [(&str, &str); 2] = [
    (
        "DOCKER_BINARY",
        "Docker is asked over its socket (DOCKER_HOST), not by running its client",
    ),
    (
        "DOCKERINIT_BINARY",
        "containers have had no dockerinit since Docker 1.11, so nothing of it is mounted",
    ),
];

pub(super) async fn run(context: &Context, external: External) -> Result<ExitCode, Failure> {
    let External {
        verb,
        checkpoint,
        restore,
        target,
    } = external;
    let verb = match (verb, checkpoint, restore) {
        (Some(verb), ..) => verb,
        // The options of the long form come from the environment here as well.
        (None, true, _) => Verb::Checkpoint(Box::new(Checkpoint {
            target,
            ..parsed("checkpoint", |cli| match cli {
                Verb::Checkpoint(args) => Some(*args),
                _ => None,
            })?
        })),
        (None, false, true) => Verb::Restore(Box::new(Restore {
            target,
            ..parsed("restore", |cli| match cli {
                Verb::Restore(args) => Some(*args),
                _ => None,
            })?
        })),
        (None, false, false) => {
            return Err(Failure::usage("need either -c or -r, or a verb")
                .hint("criuctl external checkpoint ID, restore ID, cleanup [ID] or list"));
        }
    };
    if let Verb::List(_) = verb {
        return tell::list(context, &Ours::new()).map(|()| ExitCode::SUCCESS);
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::missing(
            "not running as root: containers and their mounts are root's",
        )
        .hint("run it with sudo"));
    }
    for (variable, why) in NO_LONGER {
        if std::env::var_os(variable).is_some_and(|value| !value.is_empty()) {
            context
                .output
                .warn(format_args!("{variable} is not used any more: {why}"));
        }
    }
    match verb {
        Verb::Checkpoint(args) => self::checkpoint(context, &args).await,
        Verb::Restore(args) => self::restore(context, &args).await,
        Verb::Cleanup(args) => cleanup(context, &args).await,
        Verb::List(_) => Ok(()),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// A container that runs outside its engine must not be started by that as well: both would write to one root file system.
pub(super) fn runs_outside(id: &str) -> Result<(), Failure> {
    let ours = Ours::new();
    // What is kept is root's to read, and a name that fits several fits none.
    let Ok(Some(entry)) = ours.find(id) else {
        return Ok(());
    };
    match entry.init {
        None => Ok(()),
        Some(init) => Err(Failure::failed(format!(
            "{id} runs as process {}, restored without its engine: a second one would write to the same root file system",
            init.pid
        ))
        .hint(format!("checkpoint that first (criuctl external checkpoint {id}), or end it"))),
    }
}

/// A verb's options as an empty command line has them.
fn parsed<T>(verb: &str, of: impl FnOnce(Verb) -> Option<T>) -> Result<T, Failure> {
    #[derive(clap::Parser)]
    struct Alone {
        #[command(subcommand)]
        verb: Verb,
    }
    let alone = <Alone as clap::Parser>::try_parse_from(["external", verb])
        .map_err(|error| Failure::usage(error.to_string()))?;
    of(alone.verb).ok_or_else(|| Failure::usage("need either -c or -r"))
}

impl Environment {
    fn docker_home(&self) -> PathBuf {
        self.docker_home
            .clone()
            .unwrap_or_else(|| DOCKER_HOME.into())
    }

    fn images_of(&self, id: &str) -> PathBuf {
        let base = self.criu_img_dir.clone();
        base.unwrap_or_else(|| self.docker_home().join("criu_img"))
            .join(id)
    }

    fn ours(&self) -> Ours {
        Ours::new().docker_home(self.docker_home())
    }
}

/// The CRIU that is asked: what the command line names, else what the script's variable does.
fn criu(context: &Context) -> Result<Criu, Failure> {
    let named = std::env::var_os("CRIU_BINARY").filter(|name| !name.is_empty());
    match (
        named,
        context.global.criu.is_none() && context.global.service.is_none(),
    ) {
        (Some(name), true) => {
            let name = name
                .to_str()
                .ok_or_else(|| Failure::usage("CRIU_BINARY is not UTF-8"))?;
            let path = match name.contains('/') {
                true => values::path(name).map_err(Failure::usage)?,
                false => values::program_named(name).map_err(Failure::missing)?,
            };
            Ok(context.limited(Criu::at(path)))
        }
        _ => context.criu(Vec::new()),
    }
}

async fn checkpoint(context: &Context, args: &Checkpoint) -> Result<(), Failure> {
    let output = &context.output;
    let ours = args.place.environment.ours();
    let criu = criu(context)?;
    let chosen = Chosen::of(
        context,
        &ours,
        args.target.as_ref(),
        &args.containers,
        &args.place,
        Purpose::Checkpoint { pid: args.pid },
    )
    .await?;
    let Chosen { engine, id } = &chosen;
    let path = args.place.image_path.clone();
    let path = path.unwrap_or_else(|| args.place.environment.images_of(id));
    phase(
        output,
        format_args!("checkpointing {}:{id} to {}", engine.kind(), path.display()),
    );
    let made = images_to_write(&path)?;
    let images = &made.images;
    let mut options = runtime::CheckpointOptions::new()
        .consumer(chosen.consumer(args.consumer))
        .leave_running(args.leave_running);
    let Flags {
        tcp_established,
        ext_unix_sk,
        shell_job,
        file_locks,
    } = args.flags;
    // Only what is asked for, as a configuration file of CRIU's may ask for the rest.
    for (on, set) in [
        (
            tcp_established,
            runtime::CheckpointOptions::tcp_established
                as fn(runtime::CheckpointOptions, bool) -> _,
        ),
        (ext_unix_sk, runtime::CheckpointOptions::ext_unix_sk),
        (shell_job, runtime::CheckpointOptions::shell_job),
        (file_locks, runtime::CheckpointOptions::file_locks),
    ] {
        if on {
            options = set(options, true);
        }
    }
    let options = ExternalCheckpoint::new(options).keep_network(args.network.is_some());
    let work = ours.checkpoint(engine, &criu, id, images, Phases(*output), options);
    let settled = async { criu.settled().await };
    let done = Interrupts::new()?
        .guard(OperationKind::Dump, output, work, settled, || {
            TaskState::Unknown
        })
        .await;
    chosen.end().await;
    let done = done?;
    super::report::ignored_refusals(output, &done.report.dump.details);
    left_behind(context, &done.report.left_behind);
    tell::checkpointed(context, engine.kind(), &done, &path)?;
    for note in &done.notes {
        output.note(note);
    }
    Ok(())
}

async fn restore(context: &Context, args: &Restore) -> Result<(), Failure> {
    let output = &context.output;
    let ours = args.place.environment.ours();
    let network = match args.network.as_deref() {
        None => Network::AsItWas,
        Some("keep") => Network::Keep,
        Some("empty") => Network::Empty,
        Some(path) if path.contains('/') => {
            Network::Join(values::path(path).map_err(Failure::usage)?)
        }
        Some(other) => {
            return Err(Failure::usage(format!(
                "--network: {other:?} is neither keep nor empty nor the path of a namespace"
            ))
            .hint("a namespace is a file such as /run/netns/NAME or /proc/PID/ns/net"));
        }
    };
    let stdio = stdio(&args.stdio)?;
    let criu = criu(context)?;
    let chosen = Chosen::of(
        context,
        &ours,
        args.target.as_ref(),
        &args.containers,
        &args.place,
        Purpose::Restore,
    )
    .await?;
    let Chosen { engine, id } = &chosen;
    let path = args.place.image_path.clone();
    let path = path.unwrap_or_else(|| args.place.environment.images_of(id));
    let images = ImagesDir::open(&path).map_err(|error| {
        Failure::input(format!("{} is no images directory", path.display()))
            .caused_by(error)
            .hint("checkpoint the container first, or name the directory with --image-path")
    })?;
    phase(
        output,
        format_args!("restoring {}:{id} from {}", engine.kind(), path.display()),
    );
    let mut of_runtime = runtime::RestoreOptions::new();
    let Flags {
        tcp_established,
        ext_unix_sk,
        shell_job,
        file_locks,
    } = args.flags;
    for (on, set) in [
        (
            tcp_established,
            runtime::RestoreOptions::tcp_established as fn(runtime::RestoreOptions, bool) -> _,
        ),
        (ext_unix_sk, runtime::RestoreOptions::ext_unix_sk),
        (shell_job, runtime::RestoreOptions::shell_job),
        (file_locks, runtime::RestoreOptions::file_locks),
    ] {
        if on {
            of_runtime = set(of_runtime, true);
        }
    }
    if let Some(socket) = &args.console_socket {
        of_runtime = of_runtime.console_socket(socket);
    }
    let mut options = RestoreOptions::new()
        .network(network)
        .stdio(stdio)
        .runtime(of_runtime);
    if let Some(bundle) = &args.bundle {
        options = options.bundle(bundle);
    }
    let pid_file = args.pid_file.as_deref().map(PidFile::new).transpose()?;
    let work = ours.restore(engine, &criu, id, &images, Phases(*output), options);
    let settled = async {
        criu.settled().await;
        ours.settled().await;
    };
    let state = || match ours.find(id) {
        Ok(Some(entry)) if entry.status != Status::Stopped => TaskState::Running,
        Ok(_) => TaskState::Absent,
        Err(_) => TaskState::Unknown,
    };
    let done = Interrupts::new()?
        .guard(OperationKind::Restore, output, work, settled, state)
        .await;
    chosen.end().await;
    let done = done?;
    super::report::ignored_refusals(output, &done.report.details);
    left_behind(context, &done.left_behind);
    if let Some(file) = pid_file {
        file.publish(done.init.pid)?;
    }
    tell::restored(context, &done, &path)?;
    for note in &done.notes {
        output.note(note);
    }
    Ok(())
}

async fn cleanup(context: &Context, args: &Cleanup) -> Result<(), Failure> {
    let ours = Ours::new();
    let names: Vec<String> = match &args.target {
        Some(name) => vec![name.clone()],
        // A network that is kept for a container that is down is still wanted.
        None => (ours.list()?.into_iter())
            .filter(|entry| entry.status == Status::Stopped && entry.engine.is_some())
            .map(|entry| entry.id)
            .collect(),
    };
    let mut cleaned = Vec::new();
    for name in names {
        let left = match ours.cleanup(&name).await {
            Ok(left) => left,
            Err(error) if matches!(error.kind(), ErrorKind::Unknown { .. }) => {
                return Err(
                    Failure::input(format!("nothing is kept of a container {name:?}"))
                        .hint("`criuctl external list` shows what is kept"),
                );
            }
            Err(error) if matches!(error.kind(), ErrorKind::Exists { .. }) => {
                return Err(
                    Failure::failed(format!("{name}: it still runs")).hint(format!(
                        "end it first: runc --root {} kill ID KILL",
                        ours.root_of(criu_client::container::EngineKind::Runc)
                            .display()
                    )),
                );
            }
            Err(error) => return Err(error.into()),
        };
        left_behind(context, &left);
        cleaned.push((name, left));
    }
    tell::cleaned(context, &cleaned)
}

/// As docker_cr.sh, nobody else may look at them: they hold all of the container's memory.
fn images_to_write(path: &Path) -> Result<NewImages, Failure> {
    let cannot = |error| {
        Failure::input(format!("{} cannot be the images directory", path.display()))
            .caused_by(error)
    };
    let made = ImagesDir::missing(path).map_err(cannot)?;
    let images = ImagesDir::create(path).map_err(cannot)?;
    for directory in &made {
        std::fs::set_permissions(directory, PermissionsExt::from_mode(0o700)).map_err(cannot)?;
    }
    Ok(NewImages { images, made })
}

/// An images directory; what was made for it goes again if nothing has come into it.
struct NewImages {
    images: ImagesDir,
    made: Vec<PathBuf>,
}

impl Drop for NewImages {
    fn drop(&mut self) {
        for directory in self.made.iter().rev() {
            if std::fs::remove_dir(directory).is_err() {
                break;
            }
        }
    }
}

fn stdio(text: &str) -> Result<Stdio, Failure> {
    match text.split_once(':') {
        None if text == "null" => Ok(Stdio::Null),
        None if text == "inherit" => {
            let own = |fd: std::io::Result<std::os::fd::OwnedFd>| {
                fd.map_err(|error| {
                    Failure::failed("the standard descriptors cannot be passed on").caused_by(error)
                })
            };
            Ok(Stdio::Inherit([
                own(std::io::stdin().as_fd().try_clone_to_owned())?,
                own(std::io::stdout().as_fd().try_clone_to_owned())?,
                own(std::io::stderr().as_fd().try_clone_to_owned())?,
            ]))
        }
        Some(("log", file)) if !file.is_empty() => {
            Ok(Stdio::Log(values::path(file).map_err(Failure::usage)?))
        }
        _ => Err(Failure::usage(format!(
            "--stdio: {text:?} is none of inherit, null and log:FILE"
        ))
        .hint("for the container's output in a file write --stdio log:/var/tmp/output.log")),
    }
}

/// A pid file that is found out to be impossible before anything happens.
struct PidFile {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl PidFile {
    fn new(path: &Path) -> Result<Self, Failure> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let file = tempfile::NamedTempFile::new_in(directory).map_err(|error| {
            Failure::input(format!("--pid-file: {} cannot be written", path.display()))
                .caused_by(error)
        })?;
        let path = path.to_owned();
        Ok(Self { file, path })
    }

    fn publish(mut self, pid: i32) -> Result<(), Failure> {
        let failed = |error: std::io::Error| {
            Failure::failed("the container runs, but its pid file cannot be written")
                .caused_by(error)
        };
        write!(self.file, "{pid}").map_err(failed)?;
        let mode = PermissionsExt::from_mode(0o644);
        self.file.as_file().set_permissions(mode).map_err(failed)?;
        self.file
            .persist(&self.path)
            .map_err(|error| failed(error.error))?;
        Ok(())
    }
}

/// Says what is being done, where somebody looks on.
fn phase(output: &Output, text: impl std::fmt::Display) {
    use std::io::IsTerminal;
    if output.verbose || std::io::stderr().is_terminal() {
        output.note(text);
    }
}

/// Says how far CRIU is.
struct Phases(Output);

impl Hooks for Phases {
    async fn notify(&mut self, notify: Notify) -> Result<Reply, HookError> {
        phase(&self.0, format_args!("criu: {}", notify.script()));
        Ok(Reply::Accept)
    }
}

/// The container's name as a target has it.
fn name_of(target: &Target) -> Result<&str, Failure> {
    match target {
        Target::Container(_, id) => Ok(id),
        Target::Pid(pid) => Err(Failure::usage(format!("pid:{pid} is no container")).hint(
            format!("name the container, and --pid {pid} to be sure that it is the one"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_for_pipes_is_one_of_three() {
        assert!(matches!(stdio("null"), Ok(Stdio::Null)));
        assert!(matches!(stdio("inherit"), Ok(Stdio::Inherit(_))));
        assert!(matches!(stdio("log:/x"), Ok(Stdio::Log(path)) if path == Path::new("/x")));
        for wrong in ["", "log", "log:", "file:/x", "nul"] {
            let failure = stdio(wrong).map(drop).unwrap_err();
            assert!(failure.summary().starts_with("--stdio: "), "{wrong}");
        }
    }
}
