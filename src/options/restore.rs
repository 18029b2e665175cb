use std::os::fd::OwnedFd;

use super::common::{Common, Modern, Tree, common_setters, flags, modern_setters, tree_setters};
use super::external::ExternalOnRestore;
use super::inherit::{InheritFd, InheritKey};
use super::namespaces::JoinNamespace;
use super::values::LsmProfile;

/// How a task tree is made from images. See the [module](super) for what all options have in common.
///
/// What the dump was told of the tree's surroundings must be told again: each setter says so.
#[derive(Debug, Default)]
#[non_exhaustive]
#[must_use]
pub struct RestoreOptions {
    pub(super) common: Common,
    pub(super) tree: Tree,
    pub(super) modern: Modern,
    pub(super) leave_stopped: Option<bool>,
    pub(super) auto_dedup: Option<bool>,
    pub(super) exec_command: Option<Vec<String>>,
    pub(super) inherit_fds: Vec<InheritFd>,
    pub(super) external: Vec<ExternalOnRestore>,
    pub(super) join_namespaces: Vec<JoinNamespace>,
    pub(super) weak_sysctls: Option<bool>,
    pub(super) lsm_profile: Option<LsmProfile>,
    pub(super) lsm_mount_context: Option<String>,
    pub(super) mntns_compat_mode: Option<bool>,
    pub(super) skip_file_rwx_check: Option<bool>,
    pub(super) decompress_threads: Option<u32>,
}

common_setters!(RestoreOptions);
tree_setters!(RestoreOptions);
modern_setters!(RestoreOptions);

impl RestoreOptions {
    flags! { own {
        /// Whether the tasks are left in state T, until a SIGCONT. Long option `--leave-stopped`. Over RPC since CRIU 3.19.
        leave_stopped;
        /// Whether pages are punched out of the images as soon as they are restored. **The images cannot be restored again.**
        /// Long option `--auto-dedup`.
        auto_dedup;
        /// Whether sysctls that this kernel does not have are skipped. Long option `--weak-sysctls`.
        weak_sysctls;
        /// Whether mounts are restored by CRIU's old engine. Long option `--mntns-compat-mode`. Since CRIU 3.17.
        mntns_compat_mode;
        /// Whether files may have other permissions than at the dump. Long option `--skip-file-rwx-check`. Since CRIU 3.18.
        skip_file_rwx_check;
    } }

    /// A program, found through PATH, and its arguments, that CRIU becomes after the restore: it is then the parent of the
    /// root task, and has the log as its standard output and standard error. Long option `--exec-cmd`.
    pub fn exec_command<I>(mut self, command: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.exec_command = Some(command.into_iter().map(Into::into).collect());
        self
    }

    /// Adds a descriptor that is used in place of a file of the images. Long option `--inherit-fd`.
    ///
    /// CRIU gets a copy; ours is closed when the request is over. A key that matches nothing in the images is silently unused.
    /// Each key can be given once: all that the images have with that id, such as both ends of a pipe, comes from it.
    pub fn inherit_fd(mut self, key: InheritKey, fd: OwnedFd) -> Self {
        self.inherit_fds.push(InheritFd { key, fd });
        self
    }

    /// Adds the counterpart of a resource that the dump left out. Long option `--external`.
    pub fn external(mut self, resource: ExternalOnRestore) -> Self {
        self.external.push(resource);
        self
    }

    /// Adds the name that the outer end of the veth pair of `inside` gets, and the bridge it is added to:
    /// [`ExternalOnRestore::Veth`] in short. Long option `--external veth[INSIDE]:OUTSIDE@BRIDGE`.
    pub fn veth(
        self,
        inside: impl Into<String>,
        outside: impl Into<String>,
        bridge: Option<&str>,
    ) -> Self {
        self.external(ExternalOnRestore::Veth {
            inside: inside.into(),
            outside: outside.into(),
            bridge: bridge.map(str::to_owned),
        })
    }

    /// Adds an existing namespace that the tasks join, at most one of each kind. Long option `--join-ns`.
    pub fn join_namespace(mut self, namespace: JoinNamespace) -> Self {
        self.join_namespaces.push(namespace);
        self
    }

    /// The profile that the tasks get in place of theirs. Long option `--lsm-profile`. Since CRIU 3.12 over RPC.
    pub fn lsm_profile(mut self, profile: LsmProfile) -> Self {
        self.lsm_profile = Some(profile);
        self
    }

    /// The SELinux context of mounts that had the option `context=`; others stay as they were. Long option
    /// `--lsm-mount-context`. Since CRIU 3.16.
    pub fn lsm_mount_context(mut self, context: impl Into<String>) -> Self {
        self.lsm_mount_context = Some(context.into());
        self
    }

    /// How many threads decompress pages, up to 1024; 0 lets CRIU choose. Long option `--decompress-threads`; one without it.
    /// Since CRIU 4.3.
    pub fn decompress_threads(mut self, threads: u32) -> Self {
        self.decompress_threads = Some(threads);
        self
    }
}
