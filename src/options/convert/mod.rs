//! From options to the message that CRIU reads: the only place that fills `criu_opts`.
//!
//! Every options value is taken apart completely, so that an option that is added and not converted does not compile.

mod draft;
mod groups;

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use self::draft::Draft;
use super::check::{CheckOptions, CpuinfoOptions};
use super::dump::DumpOptions;
use super::error::InvalidOption;
use super::inherit::InheritFd;
use super::limits;
use super::namespaces::{JoinKind, JoinNamespace};
use super::page_server::PageServerOptions;
use super::pre_dump::PreDumpOptions;
use super::restore::RestoreOptions;
use super::values::Leave;
use crate::rpc::wire;

pub(crate) use draft::encode_request;

/// Options that were checked and can be sent.
pub(crate) struct Prepared {
    /// The message, without what the operation itself sets: `images_dir_fd` is -1, and `images_dir`, `pid`,
    /// `notify_scripts` and `rst_sibling` are absent.
    pub(crate) opts: wire::CriuOpts,
    /// The work directory, to be opened and put into the message.
    pub(crate) work_path: Option<PathBuf>,
    /// What CRIU must have in its own table at the number that was given to `prepare`, and those that follow.
    pub(crate) inherited: Vec<OwnedFd>,
    /// What must stay open in our own table, at its number, until CRIU has answered.
    pub(crate) held: Vec<OwnedFd>,
    /// Encoded fields of `criu_opts` that this library does not know: for [`encode_request`].
    pub(crate) unknown: Vec<u8>,
}

impl DumpOptions {
    pub(crate) fn prepare(self, first_inherited: i32) -> Result<Prepared, InvalidOption> {
        let Self {
            common,
            tree,
            modern,
            tracking,
            transfer,
            leave,
            tcp_skip_in_flight,
            auto_dedup,
            ghost_limit,
            external,
            skip_mounts,
            cgroup_props,
            cgroup_props_file,
            cgroup_controllers,
            status_fd,
            network_lock,
            compression,
        } = self;
        let mut draft = Draft::new(first_inherited);
        let lazy = tree.lazy_pages == Some(true);
        let streamed = modern.stream == Some(true);
        let extra = common.fill(&mut draft)?;
        tree.fill(&mut draft)?;
        modern.fill(&mut draft)?;
        tracking.fill(&mut draft)?;
        transfer.fill_sender(&mut draft, lazy, streamed)?;

        let opts = &mut draft.opts;
        match leave {
            None | Some(Leave::Killed) => {}
            Some(Leave::Running) => opts.leave_running = Some(true),
            Some(Leave::Stopped) => opts.leave_stopped = Some(true),
        }
        opts.tcp_skip_in_flight = tcp_skip_in_flight;
        opts.auto_dedup = auto_dedup;
        opts.ghost_limit = ghost_limit
            .map(|bytes| limits::range("ghost-limit", bytes, 0, u32::MAX, "give less than 4 GiB"))
            .transpose()?;
        let mut keys = HashSet::new();
        for resource in external {
            let text = resource.checked()?;
            if !keys.insert(resource.key()) {
                return Err(twice("external", text));
            }
            opts.external.push(text);
        }
        for path in skip_mounts {
            opts.skip_mnt.push(limits::path("skip-mnt", path)?);
        }
        opts.cgroup_props = cgroup_props
            .map(|text| limits::text("cgroup-props", text))
            .transpose()?;
        opts.cgroup_props_file = cgroup_props_file
            .map(|path| limits::path("cgroup-props-file", path))
            .transpose()?;
        for name in cgroup_controllers {
            opts.cgroup_dump_controller
                .push(limits::text("cgroup-dump-controller", name)?);
        }
        opts.network_lock = network_lock.map(|method| method.wire().into());
        if let Some(compression) = compression {
            compression.fill(opts)?;
        }
        if let Some(fd) = status_fd {
            draft.opts.status_fd = Some(draft.hold(fd));
        }
        draft.finish(&extra)
    }
}

impl PreDumpOptions {
    pub(crate) fn prepare(self, first_inherited: i32) -> Result<Prepared, InvalidOption> {
        let Self {
            common,
            modern,
            tracking,
            transfer,
            mode,
        } = self;
        let mut draft = Draft::new(first_inherited);
        let streamed = modern.stream == Some(true);
        let extra = common.fill(&mut draft)?;
        modern.fill(&mut draft)?;
        tracking.fill(&mut draft)?;
        transfer.fill_sender(&mut draft, false, streamed)?;
        draft.opts.pre_dump_mode = mode.map(|mode| mode.wire().into());
        draft.finish(&extra)
    }
}

impl RestoreOptions {
    pub(crate) fn prepare(self, first_inherited: i32) -> Result<Prepared, InvalidOption> {
        let Self {
            common,
            tree,
            modern,
            leave_stopped,
            auto_dedup,
            exec_command,
            inherit_fds,
            external,
            join_namespaces,
            weak_sysctls,
            lsm_profile,
            lsm_mount_context,
            mntns_compat_mode,
            skip_file_rwx_check,
            decompress_threads,
        } = self;
        let mut draft = Draft::new(first_inherited);
        let empty_network = tree.empty_network_namespace == Some(true);
        let extra = common.fill(&mut draft)?;
        tree.fill(&mut draft)?;
        modern.fill(&mut draft)?;
        draft.inherit_all(inherit_fds)?;

        let opts = &mut draft.opts;
        opts.leave_stopped = leave_stopped;
        opts.auto_dedup = auto_dedup;
        opts.exec_cmd = exec_command.map(command).transpose()?.unwrap_or_default();
        let mut keys = HashSet::new();
        for resource in external {
            let text = resource.checked()?;
            if !keys.insert(resource.key()) {
                return Err(twice("external", text));
            }
            opts.external.push(text);
        }
        opts.join_ns = joined(join_namespaces, empty_network)?;
        opts.weak_sysctls = weak_sysctls;
        opts.lsm_profile = match lsm_profile {
            None => None,
            Some(profile) => {
                profile.check()?;
                Some(limits::text("lsm-profile", profile.to_string())?)
            }
        };
        opts.lsm_mount_context = lsm_mount_context
            .map(|context| limits::text("lsm-mount-context", context))
            .transpose()?;
        opts.mntns_compat_mode = mntns_compat_mode;
        opts.skip_file_rwx_check = skip_file_rwx_check;
        opts.decompress_threads = decompress_threads
            .map(|threads| {
                limits::range(
                    "decompress-threads",
                    threads.into(),
                    0,
                    1024,
                    "give 0 to 1024",
                )
            })
            .transpose()?;
        draft.finish(&extra)
    }
}

impl PageServerOptions {
    pub(crate) fn prepare(self, first_inherited: i32) -> Result<Prepared, InvalidOption> {
        let Self {
            common,
            transfer,
            auto_dedup,
            status_fd,
        } = self;
        let mut draft = Draft::new(first_inherited);
        let extra = common.fill(&mut draft)?;
        transfer.fill_server(&mut draft)?;
        draft.opts.auto_dedup = auto_dedup;
        if let Some(fd) = status_fd {
            draft.opts.status_fd = Some(draft.hold(fd));
        }
        draft.finish(&extra)
    }
}

impl CheckOptions {
    pub(crate) fn prepare(self, first_inherited: i32) -> Result<Prepared, InvalidOption> {
        let Self { common } = self;
        let mut draft = Draft::new(first_inherited);
        let extra = common.fill(&mut draft)?;
        draft.finish(&extra)
    }
}

impl CpuinfoOptions {
    pub(crate) fn prepare(self, first_inherited: i32) -> Result<Prepared, InvalidOption> {
        let Self {
            common,
            cpu_capabilities,
        } = self;
        let mut draft = Draft::new(first_inherited);
        let extra = common.fill(&mut draft)?;
        draft.opts.cpu_cap = cpu_capabilities.map(|capabilities| capabilities.bits());
        draft.finish(&extra)
    }
}

impl Draft {
    fn inherit_all(&mut self, inherit_fds: Vec<InheritFd>) -> Result<(), InvalidOption> {
        let mut keys = HashSet::new();
        for InheritFd { key, fd } in inherit_fds {
            let key = key.checked()?;
            if !keys.insert(key.clone()) {
                return Err(twice("inherit-fd", key));
            }
            let fd = self.inherit(fd);
            self.opts.inherit_fd.push(wire::InheritFd { key, fd });
        }
        Ok(())
    }
}

fn twice(option: &'static str, value: String) -> InvalidOption {
    InvalidOption::new(
        option,
        value,
        "has the same id as another one, of which CRIU would use only one",
        "give each id once",
    )
}

fn command(words: Vec<String>) -> Result<Vec<String>, InvalidOption> {
    const OPTION: &str = "exec-cmd";
    if words.first().is_none_or(String::is_empty) {
        return Err(InvalidOption::new(
            OPTION,
            words.join(" "),
            "names no program",
            "give a program and its arguments, or leave the option out",
        ));
    }
    for word in &words {
        limits::no_nul(OPTION, word)?;
    }
    Ok(words)
}

fn joined(
    namespaces: Vec<JoinNamespace>,
    empty_network: bool,
) -> Result<Vec<wire::JoinNamespace>, InvalidOption> {
    const OPTION: &str = "join-ns";
    let mut kinds = HashSet::new();
    let mut joined = Vec::with_capacity(namespaces.len());
    for namespace in namespaces {
        namespace.check()?;
        let (kind, file): (JoinKind, &Path) = (namespace.kind(), namespace.file());
        let refuse = |problem, remedy| {
            Err(InvalidOption::new(
                OPTION,
                namespace.to_string(),
                problem,
                remedy,
            ))
        };
        if !kinds.insert(kind.name()) {
            return refuse(
                "is the second namespace of its kind",
                "join one namespace of each kind",
            );
        }
        if kind == JoinKind::Net && empty_network {
            return refuse(
                "conflicts with an empty network namespace",
                "give one of the two",
            );
        }
        joined.push(wire::JoinNamespace {
            ns: kind.name().to_owned(),
            ns_file: limits::path(OPTION, file.to_owned())?,
            extra_opt: match kind {
                JoinKind::User {
                    ids: Some((uid, gid)),
                } => Some(format!("{uid},{gid}")),
                _ => None,
            },
        });
    }
    Ok(joined)
}
