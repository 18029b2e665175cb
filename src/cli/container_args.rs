//! The options that are for containers only.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use criu_client::container::EngineKind;

use super::failure::Failure;
use super::values;

/// Containers: checkpoint, restore and list.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Containers")]
pub(super) struct Containers {
    /// Where runc keeps its containers, as its own --root [default: /run/runc]
    #[arg(long, value_name = "DIR", value_parser = values::path)]
    pub(super) runc_root: Option<PathBuf>,

    /// Where crun keeps its containers, as its own --root [default: /run/crun]
    #[arg(long, value_name = "DIR", value_parser = values::path)]
    pub(super) crun_root: Option<PathBuf>,

    /// Where Docker listens, as unix:// and the path of its socket [default: unix:///var/run/docker.sock]
    #[arg(long, value_name = "HOST", env = "DOCKER_HOST", hide_env_values = true)]
    pub(super) docker_host: Option<String>,
    /// Socket of Podman's service, as podman's own --url [default: unix:///run/podman/podman.sock, or a service that is
    /// started for as long as it is needed]
    #[arg(
        long,
        value_name = "URL",
        env = "CONTAINER_HOST",
        hide_env_values = true
    )]
    pub(super) podman_url: Option<String>,

    /// Where Podman keeps its containers, as its own --root: there an ID alone is looked for, and a list begins
    /// [default: /var/lib/containers/storage]
    #[arg(long, value_name = "DIR", value_parser = values::path)]
    pub(super) podman_root: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Containers")]
pub(super) struct RestoreContainers {
    /// Who restores: the engine itself, or criuctl, which hands the container over to its runtime [default: native for
    /// Docker and Podman, direct for runc and crun, the only way of each]
    #[arg(long, value_name = "WAY", value_enum)]
    pub(super) mode: Option<Mode>,

    /// Bundle of a container of runc's or crun's [default: the current directory]
    #[arg(long, short = 'b', value_name = "DIR", value_parser = values::path)]
    pub(super) bundle: Option<PathBuf>,

    /// Of runc's restore, which is then no subreaper; criuctl never is one
    #[arg(long)]
    pub(super) no_subreaper: bool,

    /// Of runc's restore, where it has no effect either
    #[arg(long)]
    pub(super) no_pivot: bool,

    /// Have systemd make the control groups, or not [default: as it was; of images that a runtime has made, as the form of
    /// cgroupsPath says]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) systemd_cgroup: Option<bool>,
}

/// The words of `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Mode {
    /// The engine restores, at criuctl's word
    Native,
    /// criuctl restores, and the runtime gets a record of it
    Direct,
}

impl RestoreContainers {
    /// Refuses a way that an engine's containers do not have.
    pub(super) fn check_mode(&self, engine: EngineKind) -> Result<(), Failure> {
        let (way, why, hint) = match (engine, self.mode) {
            (EngineKind::Docker, Some(Mode::Direct)) => (
                "direct",
                "a container is Docker's only as a child of containerd's shim, which does not adopt a process that it has not \
                 started: Docker would show it as exited, and never see its end",
                "leave it out: Docker restores from these images by itself",
            ),
            (EngineKind::Podman, Some(Mode::Direct)) => (
                "direct",
                "a container is Podman's only as a child of a conmon that Podman has started: Podman would show it as exited, \
                 with neither logs nor exit status",
                "leave it out: Podman restores from these images by itself",
            ),
            (EngineKind::Runc | EngineKind::Crun, Some(Mode::Native)) => (
                "native",
                "a runtime is no service that could be asked",
                "leave it out: the container is the runtime's all the same; the runtime's own restore command takes the images too",
            ),
            _ => return Ok(()),
        };
        Err(Failure::usage(format!(
            "--mode {way} is no way to restore a container of {engine}: {why}"
        ))
        .hint(hint))
    }

    /// The first of them that is given.
    pub(super) fn given(&self) -> Option<&'static str> {
        let options = [
            ("--mode", self.mode.is_some()),
            ("--bundle", self.bundle.is_some()),
            ("--no-subreaper", self.no_subreaper),
            ("--no-pivot", self.no_pivot),
            ("--systemd-cgroup", self.systemd_cgroup.is_some()),
        ];
        let given = options.into_iter().find(|(_, given)| *given);
        given.map(|(option, _)| option)
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Containers")]
pub(super) struct CheckpointContainers {
    /// Runtime whose own restore is to take the images; criuctl restores them under every one
    #[arg(long = "for", value_name = "RUNTIME", value_enum)]
    pub(super) consumer: Option<For>,
}

/// The words of `--for`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum For {
    /// Every one, as far as that can be; it is said where it cannot (the default)
    Any,
    /// runc, and Docker, containerd and Podman with runc
    Runc,
    /// crun, and Podman with crun
    Crun,
}
