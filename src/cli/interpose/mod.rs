//! `interpose`, and what it and `trace` put in CRIU's place.

mod amend;
mod stage;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;

pub(super) use amend::Amend;
pub(super) use stage::{Stage, Wanted};

use super::Context;
use super::failure::Failure;
use super::values::{self, Hook};
use crate::listening::settings::{Settings, Sink};

/// Listen in on engines that are started elsewhere, such as dockerd
///
/// Such a daemon keeps its own environment. `install` sets up a directory that is put first on its PATH; the daemon and all
/// that it starts then find a `criu` that listens in before it starts the real one.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  criuctl interpose install /usr/local/lib/criu-listener --record /var/log/criu --hook post-dump=/usr/local/bin/snapshot
  criuctl trace --read /var/log/criu/criu-1764032947000123-4711.jsonl
  criuctl interpose remove /usr/local/lib/criu-listener")]
pub(super) struct Interpose {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Set up a directory to be put first on a daemon's PATH
    Install(Box<Install>),
    /// Undo that: engines that have the directory on their PATH find the real CRIU again at once
    Remove(Remove),
}

#[derive(Debug, Args)]
struct Install {
    /// The directory, which is made if it is missing
    #[arg(value_name = "DIR", value_parser = values::path)]
    directory: PathBuf,

    /// Directory that gets a recording of each session, mode 0600; it is made if it is missing
    #[arg(long, value_name = "DIR", value_parser = values::path)]
    record: Option<PathBuf>,

    #[command(flatten)]
    listening: Listening,
}

#[derive(Debug, Args)]
struct Remove {
    /// The directory that `install` was given
    #[arg(value_name = "DIR", value_parser = values::path)]
    directory: PathBuf,
}

/// What is done on the way.
#[derive(Debug, Args)]
pub(super) struct Listening {
    /// Program that is run at a callback, before the engine gets it; an exit status other than 0 refuses; can be repeated
    ///
    /// The program gets CRTOOLS_SCRIPT_ACTION, CRTOOLS_IMAGE_DIR and CRTOOLS_INIT_PID in its environment. CRIU waits for it,
    /// for at most --hook-timeout. What it refuses, the engine is not asked about: it gets CRIU's failure.
    #[arg(long = "hook", value_name = "SCRIPT=PROGRAM", value_parser = values::hook)]
    pub(super) hooks: Vec<Hook>,

    /// Option that is added to an engine's request, such as dump:network-lock=skip; can be repeated
    ///
    /// OPERATION is dump, pre-dump or restore, and OPTION has the name that `criuctl checkpoint` and `criuctl restore` have
    /// for it. It replaces what the engine has set, and is added to what can be there several times (dump:external=…).
    #[arg(long, value_name = "OPERATION:OPTION[=VALUE]", value_parser = str::parse::<Amend>)]
    pub(super) amend: Vec<Amend>,

    /// Put pseudonyms in the place of paths in what is told and recorded
    #[arg(long)]
    pub(super) mask_paths: bool,
}

impl Listening {
    pub(super) fn wanted(&self, context: &Context) -> Wanted<'_> {
        Wanted {
            hooks: &self.hooks,
            hook_timeout: context.global.hook_timeout,
            amend: &self.amend,
            mask: self.mask_paths,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Installed<'a> {
    directory: &'a PathBuf,
    criu: &'a PathBuf,
    criu_version: &'a str,
    recordings: Option<&'a PathBuf>,
    path: String,
    undo: String,
}

#[derive(Serialize)]
struct Removed<'a> {
    directory: &'a PathBuf,
    /// Something else is in the directory, which is therefore still there.
    stays: bool,
}

pub(super) async fn run(context: &Context, interpose: &Interpose) -> Result<ExitCode, Failure> {
    match &interpose.action {
        Action::Install(install) => self::install(context, install).await,
        Action::Remove(remove) => {
            Stage::remove(&remove.directory)?;
            // Recordings or the output of hooks.
            let stays = remove.directory.exists();
            let removed = Removed {
                directory: &remove.directory,
                stays,
            };
            context.output.result("Removed", &removed, || {
                let rest = if stays {
                    "; what else is in it stays"
                } else {
                    ""
                };
                format!("{} listens in no more{rest}\n", remove.directory.display())
            })?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn install(context: &Context, install: &Install) -> Result<ExitCode, Failure> {
    let sink = match &install.record {
        Some(directory) => {
            std::fs::create_dir_all(directory).map_err(|error| {
                Failure::input(format!("{} cannot get recordings", directory.display()))
                    .caused_by(error)
            })?;
            Sink::Directory(directory.clone())
        }
        None => Sink::Nowhere,
    };
    let output = (!install.listening.hooks.is_empty()).then(|| install.directory.join("hooks.log"));
    let criu = context.criu(Vec::new())?;
    let settings = Settings::new(&criu, &install.listening.wanted(context), sink, output).await?;
    Stage::create(&install.directory, &settings)?;
    let directory = install.directory.display();
    let installed = Installed {
        directory: &install.directory,
        criu: &settings.criu,
        criu_version: &settings.criu_version,
        recordings: install.record.as_ref(),
        path: format!("PATH={directory}:$PATH"),
        undo: format!("criuctl interpose remove {directory}"),
    };
    context.output.result("Installed", &installed, || {
        format!(
            "{directory}/criu listens in before it starts {} (CRIU {})\n\
             put it first on the daemon's PATH and restart the daemon:\n  {}\n\
             with systemd, in `systemctl edit UNIT`:\n  [Service]\n  Environment=PATH={directory}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
             to undo it, at any time:\n  {}\n",
            settings.criu.display(),
            settings.criu_version,
            installed.path,
            installed.undo,
        )
    })?;
    Ok(ExitCode::SUCCESS)
}
