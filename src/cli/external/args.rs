//! The options of `external`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::container_args::{Containers, For};
use crate::cli::target::Target;
use crate::cli::values;

/// Checkpoint and restore containers behind their engine's back, as CRIU's docker_cr.sh did
///
/// The engine does not know that a restored container runs: it goes on calling it exited. For engines whose own restore is
/// broken or switched off, and for a look at a container as it was. Where the engine can restore, `criuctl restore` gives it
/// its container back.
///
/// Environment: DOCKER_HOME (default /var/lib/docker), CRIU_IMG_DIR (default $DOCKER_HOME/criu_img), CRIU_BINARY, DOCKER_HOST.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_long_help = "\
Examples:
  criuctl external checkpoint docker:web
  criuctl external restore docker:web
  criuctl external cleanup web
  criuctl external -c web
  criuctl external -r web
  criuctl external checkpoint docker:web --network keep
  criuctl external restore docker:web --network /run/netns/lab --stdio log:/var/tmp/web.log

A container that was restored externally is one of runc's or crun's below a root of its own:
  runc --root /run/criu-client/external/runc list
  runc --root /run/criu-client/external/runc exec ID sh"
)]
pub(crate) struct External {
    #[command(subcommand)]
    pub(super) verb: Option<Verb>,

    /// Checkpoint, as docker_cr.sh
    #[arg(short = 'c', conflicts_with = "restore")]
    pub(super) checkpoint: bool,

    /// Restore, as docker_cr.sh
    #[arg(short = 'r')]
    pub(super) restore: bool,

    /// Container: ENGINE:ID, or an ID or name alone
    #[arg(value_name = "ID")]
    pub(super) target: Option<Target>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    Checkpoint(Box<Checkpoint>),
    Restore(Box<Restore>),
    Cleanup(Cleanup),
    List(List),
}

/// Checkpoint a container, with what a restore without its engine needs beside the images
#[derive(Debug, Default, Args)]
pub(super) struct Checkpoint {
    /// Container: docker:ID, podman:ID, runc:ID, crun:ID, or an ID or name alone [default: asked for on a terminal]
    #[arg(value_name = "ID")]
    pub(super) target: Option<Target>,

    #[command(flatten)]
    pub(super) place: Place,

    /// The container goes on
    #[arg(long, short = 'R')]
    pub(super) leave_running: bool,

    /// What becomes of the network namespace: keep holds it while the container is down, with all that nobody takes out of it
    #[arg(long, value_name = "WHAT", value_enum)]
    pub(super) network: Option<KeepNetwork>,

    /// First process of a container that was restored externally, to be sure that it is this one
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub(super) pid: Option<i32>,

    #[command(flatten)]
    pub(super) flags: Flags,

    /// Runtime whose own restore is to take the images
    #[arg(long = "for", value_name = "RUNTIME", value_enum)]
    pub(super) consumer: Option<For>,

    #[command(flatten)]
    pub(super) containers: Containers,
}

/// The words of `--network` of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum KeepNetwork {
    /// Hold it
    Keep,
}

/// Restore a container without its engine
#[derive(Debug, Default, Args)]
pub(super) struct Restore {
    /// Container: docker:ID, podman:ID, runc:ID, crun:ID, or an ID or name alone [default: asked for on a terminal]
    #[arg(value_name = "ID")]
    pub(super) target: Option<Target>,

    #[command(flatten)]
    pub(super) place: Place,

    /// Network: keep (the checkpoint's), empty, or the file of a namespace to join
    /// [default: the one that the checkpoint kept or that others share with it, else empty]
    #[arg(long, value_name = "keep|empty|PATH")]
    pub(super) network: Option<String>,

    /// What stands where the container had pipes: inherit (criuctl's own), null, or log:FILE
    #[arg(long, value_name = "inherit|null|log:FILE", default_value = "null")]
    pub(super) stdio: String,

    /// Directory with the container's config.json, for images beside which there is none
    #[arg(long, short = 'b', value_name = "DIR", value_parser = values::path)]
    pub(super) bundle: Option<PathBuf>,

    /// Unix socket that gets the other end of the container's terminal
    #[arg(long, value_name = "SOCKET", value_parser = values::path)]
    pub(super) console_socket: Option<PathBuf>,

    /// File that gets the pid of the container's first process
    #[arg(long, visible_alias = "pidfile", value_name = "FILE", value_parser = values::path)]
    pub(super) pid_file: Option<PathBuf>,

    #[command(flatten)]
    pub(super) flags: Flags,

    #[command(flatten)]
    pub(super) containers: Containers,
}

/// Remove what is kept of a container that was restored externally and has ended
#[derive(Debug, Args)]
pub(super) struct Cleanup {
    /// Container: an ID, the beginning of one, or a name [default: all that have ended]
    #[arg(value_name = "ID")]
    pub(super) target: Option<String>,
}

/// List the containers that were restored externally
#[derive(Debug, Args)]
pub(super) struct List {}

#[derive(Debug, Default, Args)]
pub(super) struct Place {
    /// Directory of the images [default: $CRIU_IMG_DIR/ID]
    #[arg(long, short = 'D', visible_alias = "images-dir", value_name = "DIR", value_parser = values::path)]
    pub(super) image_path: Option<PathBuf>,

    #[command(flatten)]
    pub(super) environment: Environment,
}

/// What docker_cr.sh took from the environment. Hidden options, so that it is read where options are.
#[derive(Debug, Default, Args)]
pub(super) struct Environment {
    #[arg(long, env = "DOCKER_HOME", hide = true, value_parser = values::path)]
    pub(super) docker_home: Option<PathBuf>,
    #[arg(long, env = "CRIU_IMG_DIR", hide = true, value_parser = values::path)]
    pub(super) criu_img_dir: Option<PathBuf>,
}

/// What a restore repeats by itself when the checkpoint was told it.
#[derive(Debug, Default, Args)]
pub(super) struct Flags {
    /// Established TCP connections are kept
    #[arg(long)]
    pub(super) tcp_established: bool,
    /// Unix sockets may have their peer outside
    #[arg(long)]
    pub(super) ext_unix_sk: bool,
    /// Session and terminal may come from outside
    #[arg(long)]
    pub(super) shell_job: bool,
    /// File locks are kept
    #[arg(long)]
    pub(super) file_locks: bool,
}
