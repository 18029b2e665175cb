//! A directory that is put first on a PATH: in it `criu`, which is this program, and the settings for what it is to do.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use criu_client::interpose::Amendment;
use criu_client::{Criu, Version};

use super::super::failure::Failure;
use super::super::hooks::one_for_each;
use super::super::values::{self, Hook};
use super::amend::Amend;

/// The name that engines start.
const CRIU: &str = "criu";
/// Beside it.
const SETTINGS: &str = "criu-interpose.json";
/// The version of the settings.
const VERSION: u32 = 1;

/// What this program does when it is started as `criu` from its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::cli) struct Settings {
    interpose: u32,
    /// The real CRIU.
    pub(in crate::cli) criu: PathBuf,
    pub(in crate::cli) criu_version: String,
    /// Where what passes is told.
    pub(in crate::cli) sink: Sink,
    /// Programs at callbacks: CRIU's name of the callback, and the program.
    #[serde(default)]
    pub(in crate::cli) hooks: Vec<(String, PathBuf)>,
    #[serde(default)]
    pub(in crate::cli) hook_timeout_millis: Option<u64>,
    /// Where the programs' output goes.
    #[serde(default)]
    pub(in crate::cli) hook_output: Option<PathBuf>,
    /// Options that are added to requests, as `--amend` has them.
    #[serde(default)]
    pub(in crate::cli) amend: Vec<String>,
    /// The salt of pseudonyms for paths.
    #[serde(default)]
    pub(in crate::cli) mask: Option<u64>,
}

/// Where what passes is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::cli) enum Sink {
    /// Nowhere.
    Nowhere,
    /// To whoever listens on this socket.
    Socket(PathBuf),
    /// In a recording for each session, in this directory.
    Directory(PathBuf),
}

/// What is asked for on the command line.
pub(in crate::cli) struct Wanted<'a> {
    pub(in crate::cli) hooks: &'a [Hook],
    pub(in crate::cli) hook_timeout: Option<Duration>,
    pub(in crate::cli) amend: &'a [Amend],
    pub(in crate::cli) mask: bool,
}

impl Settings {
    /// Settings for a listener before the CRIU of this path. That CRIU must be there, and no listener itself; and it must
    /// have every option that is to be added.
    pub(in crate::cli) async fn new(
        criu: &Criu,
        wanted: &Wanted<'_>,
        sink: Sink,
        hook_output: Option<PathBuf>,
    ) -> Result<Self, Failure> {
        let Some(program) = criu.program() else {
            return Err(Failure::usage("--service cannot be used here")
                .hint("engines start a program named criu: only that can be listened in on"));
        };
        let program = std::path::absolute(program)
            .map_err(|error| Failure::missing("there is no CRIU").caused_by(error))?;
        if is_listener(&program) {
            return Err(Failure::usage(format!(
                "{} is a listener already, not the real CRIU",
                program.display()
            ))
            .hint(
                "name the real one with --criu PATH, or take the listener's directory off the PATH",
            ));
        }
        Self::made(criu, program, wanted, sink, hook_output).await
    }

    /// Settings for a listener before the service that `criu` names, at this socket.
    pub(in crate::cli) async fn for_service(
        criu: &Criu,
        socket: &Path,
        wanted: &Wanted<'_>,
    ) -> Result<Self, Failure> {
        Self::made(criu, socket.to_owned(), wanted, Sink::Nowhere, None).await
    }

    async fn made(
        criu: &Criu,
        path: PathBuf,
        wanted: &Wanted<'_>,
        sink: Sink,
        hook_output: Option<PathBuf>,
    ) -> Result<Self, Failure> {
        let version = criu.version().await?;
        one_for_each(wanted.hooks)?;
        for amendment in Amend::all(wanted.amend)? {
            demand(&amendment, &version)?;
        }
        Ok(Self {
            interpose: VERSION,
            criu: path,
            criu_version: version.to_string(),
            sink,
            hooks: wanted
                .hooks
                .iter()
                .map(|hook| (hook.script.to_string(), hook.program.clone()))
                .collect(),
            hook_timeout_millis: wanted
                .hook_timeout
                .map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
            hook_output,
            amend: wanted.amend.iter().map(ToString::to_string).collect(),
            mask: wanted.mask.then(salt),
        })
    }
}

fn demand(amendment: &Amendment, version: &Version) -> Result<(), Failure> {
    let newer = amendment.newer_than(version);
    match newer.is_empty() {
        true => Ok(()),
        false => Err(Failure::missing(format!(
            "--amend: CRIU {version} does not have {} and would ignore it",
            newer.join(", ")
        ))),
    }
}

/// A number that nobody can guess.
fn salt() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// The directory and what it holds.
#[derive(Debug)]
pub(in crate::cli) struct Stage(PathBuf);

impl Stage {
    /// Makes the directory, with nothing in it but what belongs there.
    pub(in crate::cli) fn create(directory: &Path, settings: &Settings) -> Result<Self, Failure> {
        let cannot = |error: io::Error| {
            Failure::input(format!("{} cannot be set up", directory.display())).caused_by(error)
        };
        if directory.join(CRIU).symlink_metadata().is_ok() && !is_stage(directory) {
            return Err(Failure::input(format!(
                "{} has a criu already that is no listener",
                directory.display()
            ))
            .hint("name a directory of its own"));
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(cannot)?;
        let write = || -> io::Result<()> {
            let own = fs::read_link("/proc/self/exe")?;
            // The settings first: whoever finds the program finds them too.
            let part = directory.join(format!("{SETTINGS}.part"));
            let file = File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&part)?;
            serde_json::to_writer_pretty(file, settings)?;
            fs::rename(part, directory.join(SETTINGS))?;
            let link = directory.join(format!("{CRIU}.part"));
            let _ = fs::remove_file(&link);
            symlink(own, &link)?;
            fs::rename(link, directory.join(CRIU))
        };
        write().map_err(cannot)?;
        Ok(Self(directory.to_owned()))
    }

    /// Removes what is in the directory, and the directory if nothing else is in it.
    pub(in crate::cli) fn remove(directory: &Path) -> Result<(), Failure> {
        if !is_stage(directory) {
            return Err(
                Failure::input(format!("{} has no listener in it", directory.display()))
                    .hint("name the directory that `criuctl interpose install` was given"),
            );
        }
        let remove = || -> io::Result<()> {
            fs::remove_file(directory.join(CRIU))?;
            fs::remove_file(directory.join(SETTINGS))
        };
        remove().map_err(|error| {
            Failure::failed(format!("{} cannot be cleared", directory.display())).caused_by(error)
        })?;
        // Recordings stay, and so does the directory then.
        let _ = fs::remove_dir(directory);
        Ok(())
    }

    /// The PATH with the directory first.
    pub(in crate::cli) fn on_path(&self) -> std::ffi::OsString {
        let mut path = self.0.clone().into_os_string();
        path.push(":");
        path.push(values::search_path());
        path
    }
}

fn is_stage(directory: &Path) -> bool {
    directory.join(CRIU).is_symlink() && directory.join(SETTINGS).is_file()
}

/// Whether starting this program would start a listener (or this program, which is no CRIU).
fn is_listener(program: &Path) -> bool {
    let beside = program.parent().is_some_and(is_stage);
    let same = match (fs::metadata(program), fs::metadata("/proc/self/exe")) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    };
    beside || same
}

/// The settings of the directory that this program was started from as `criu`; `None` when it was started as itself.
pub(in crate::cli) fn started_from() -> Option<Result<Settings, Failure>> {
    use std::os::unix::ffi::OsStrExt;
    let started = Path::new(std::ffi::OsStr::from_bytes(
        rustix::param::linux_execfn().to_bytes(),
    ));
    if started.file_name()? != CRIU {
        return None;
    }
    let path = started.parent()?.join(SETTINGS);
    let file = File::open(&path).ok()?;
    let unusable = || Failure::input(format!("{} cannot be used", path.display()));
    let settings: Settings = match serde_json::from_reader(io::BufReader::new(file)) {
        Ok(settings) => settings,
        Err(error) => return Some(Err(unusable().caused_by(error))),
    };
    Some(match settings.interpose {
        VERSION => Ok(settings),
        other => Err(Failure::input(format!(
            "{} has version {other}, and this criuctl wants {VERSION}: run `criuctl interpose install` again",
            path.display()
        ))),
    })
}
