//! The options that are for containers only.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

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

    /// Where LXC keeps its containers, as its own --lxcpath [default: /var/lib/lxc]
    #[arg(long, value_name = "DIR", value_parser = values::path)]
    pub(super) lxc_path: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Containers")]
pub(super) struct RestoreContainers {
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

impl RestoreContainers {
    /// The first of them that is given.
    pub(super) fn given(&self) -> Option<&'static str> {
        let options = [
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
