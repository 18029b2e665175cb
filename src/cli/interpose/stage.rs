//! A directory that is put first on a PATH: in it `criu`, which is `criu-listener` or this program, and the settings for what it
//! is to do.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use criu_client::interpose::Amendment;
use criu_client::{Criu, Version};

use crate::listening::settings::{CRIU, SETTINGS, Settings, Sink, VERSION};

use super::super::failure::Failure;
use super::super::hooks::one_for_each;
use super::super::values::{self, Hook};
use super::amend::Amend;

/// The program that listens in, beside this one.
const LISTENER: &str = "criu-listener";
/// This program.
const OWN: &str = "/proc/self/exe";

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
        let amend = Amend::all(wanted.amend)?
            .iter()
            .map(|amendment| {
                demand(amendment, &version)?;
                amendment
                    .kept()
                    .map_err(|invalid| Failure::usage(format!("--amend: {invalid}")))
            })
            .collect::<Result<_, _>>()?;
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
            amend,
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
            let own = fs::read_link(OWN)?;
            let beside = own.with_file_name(LISTENER);
            // It does the same and starts faster.
            let listener = if beside.is_file() { beside } else { own };
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
            symlink(listener, &link)?;
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

/// Whether starting this program would start a listener (or one of our programs, which are no CRIU).
fn is_listener(program: &Path) -> bool {
    let identity = |path: &Path| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    let listener = fs::read_link(OWN).map(|own| own.with_file_name(LISTENER));
    let ours = [Some(PathBuf::from(OWN)), listener.ok()];
    let same = identity(program).is_some_and(|program| {
        ours.iter()
            .flatten()
            .any(|own| identity(own) == Some(program))
    });
    same || program.parent().is_some_and(is_stage)
}
