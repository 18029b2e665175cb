//! The groups of options that several requests share, and the values in them.

use std::net::IpAddr;

use super::draft::Draft;
use crate::options::common::{Common, Modern, Tracking, Transfer, Tree, WorkDir};
use crate::options::error::InvalidOption;
use crate::options::limits;
use crate::options::transport::PageTransport;
use crate::options::values::{
    CgroupMode, Compression, ImageIoMode, LogLevel, Lz4, NetworkLock, PreDumpMode, Tls,
};
use crate::rpc::wire;

impl Common {
    /// Returns the extra bytes, which go over everything else.
    pub(super) fn fill(self, draft: &mut Draft) -> Result<Vec<u8>, InvalidOption> {
        let Self {
            log_level,
            log_file,
            log_to_stderr,
            work_dir,
            config_file,
            unprivileged,
            extra,
        } = self;
        let opts = &mut draft.opts;
        opts.log_level = log_level.map(LogLevel::wire);
        opts.log_file = log_file.map(log_name).transpose()?;
        opts.log_to_stderr = log_to_stderr;
        opts.config_file = config_file
            .map(|path| limits::path("config", path))
            .transpose()?;
        opts.unprivileged = unprivileged;
        match work_dir {
            None => {}
            Some(WorkDir::Open(directory)) => {
                draft.opts.work_dir_fd = Some(draft.hold(directory));
            }
            Some(WorkDir::At(path)) => draft.work_path = Some(path),
        }
        Ok(extra)
    }
}

/// CRIU takes a bare name only, and `-` for its standard output.
fn log_name(name: String) -> Result<String, InvalidOption> {
    let problem = match name.as_str() {
        "" | "." | ".." => "is no file name",
        "-" => "would send the log to CRIU's standard output",
        _ if name.contains('/') => "is a path, and CRIU takes a bare name",
        _ if name.contains('\0') => "has a NUL byte in it",
        _ => return Ok(name),
    };
    Err(InvalidOption::new(
        "log-file",
        name,
        problem,
        "give a file name in the work directory",
    ))
}

impl Tree {
    pub(super) fn fill(self, draft: &mut Draft) -> Result<(), InvalidOption> {
        const CLONE_NEWNET: u32 = 0x4000_0000;
        let Self {
            external_unix_sockets,
            tcp_established,
            tcp_close,
            evasive_devices,
            shell_job,
            file_locks,
            root,
            link_remap,
            cpu_capabilities,
            orphan_pts_master,
            auto_external_mounts,
            external_sharing,
            external_masters,
            enable_fs,
            empty_network_namespace,
            manage_cgroups,
            cgroup_roots,
            cgroup_yard,
            lazy_pages,
            display_stats,
            image_io_mode,
        } = self;
        let opts = &mut draft.opts;
        opts.ext_unix_sk = external_unix_sockets;
        opts.tcp_established = tcp_established;
        opts.tcp_close = tcp_close;
        opts.evasive_devices = evasive_devices;
        opts.shell_job = shell_job;
        opts.file_locks = file_locks;
        opts.root = root.map(|path| limits::path("root", path)).transpose()?;
        opts.link_remap = link_remap;
        opts.cpu_cap = cpu_capabilities.map(|capabilities| capabilities.bits());
        opts.orphan_pts_master = orphan_pts_master;
        opts.auto_ext_mnt = auto_external_mounts;
        opts.ext_sharing = external_sharing;
        opts.ext_masters = external_masters;
        for name in enable_fs {
            opts.enable_fs.push(limits::text("enable-fs", name)?);
        }
        opts.empty_ns = empty_network_namespace.map(|on| if on { CLONE_NEWNET } else { 0 });
        opts.manage_cgroups_mode = manage_cgroups.map(|mode| mode.wire().into());
        for (controller, path) in cgroup_roots {
            opts.cg_root.push(wire::CgroupRoot {
                ctrl: controller
                    .map(|name| limits::text("cgroup-root", name))
                    .transpose()?,
                path: limits::path("cgroup-root", path)?,
            });
        }
        opts.cgroup_yard = cgroup_yard
            .map(|path| limits::path("cgroup-yard", path))
            .transpose()?;
        opts.lazy_pages = lazy_pages;
        opts.display_stats = display_stats;
        opts.image_io_mode = image_io_mode.map(|mode| mode.wire().into());
        Ok(())
    }
}

impl Modern {
    pub(super) fn fill(self, draft: &mut Draft) -> Result<(), InvalidOption> {
        let Self {
            plugin_options,
            stream,
        } = self;
        for (plugin, name, value) in plugin_options {
            let mut text = format!("{plugin}.{name}");
            if let Some(value) = value {
                text.push('=');
                text.push_str(&value);
            }
            if plugin.is_empty()
                || name.is_empty()
                || plugin.contains(['.', '='])
                || name.contains('=')
            {
                return Err(InvalidOption::new(
                    "plugin-option",
                    text,
                    "is not of the form PLUGIN.NAME or PLUGIN.NAME=VALUE",
                    "give a plugin without dots and a name without equals signs",
                ));
            }
            draft
                .opts
                .plugin_options
                .push(limits::text("plugin-option", text)?);
        }
        draft.opts.stream = stream;
        Ok(())
    }
}

impl Tracking {
    pub(super) fn fill(self, draft: &mut Draft) -> Result<(), InvalidOption> {
        /// CRIU counts the time limit in tenths of a second, in an int.
        const LONGEST: u32 = i32::MAX as u32 / 10;
        let Self {
            track_mem,
            pidfd_store,
            force_irmap,
            irmap_scan_paths,
            timeout,
            freeze_cgroup,
        } = self;
        let opts = &mut draft.opts;
        opts.track_mem = track_mem;
        opts.force_irmap = force_irmap;
        for path in irmap_scan_paths {
            opts.irmap_scan_paths
                .push(limits::path("irmap-scan-path", path)?);
        }
        opts.timeout = timeout
            .map(|limit| {
                let seconds = limit
                    .as_secs()
                    .saturating_add(u64::from(limit.subsec_nanos() > 0));
                limits::range(
                    "timeout",
                    seconds,
                    0,
                    LONGEST,
                    "give a shorter time, or zero for no limit",
                )
            })
            .transpose()?;
        opts.freeze_cgroup = freeze_cgroup
            .map(|path| limits::path("freeze-cgroup", path))
            .transpose()?;
        if let Some(socket) = pidfd_store {
            draft.opts.pidfd_store_sk = Some(draft.hold(socket));
        }
        Ok(())
    }
}

impl Transfer {
    pub(super) fn fill_sender(
        self,
        draft: &mut Draft,
        lazy: bool,
        streamed: bool,
    ) -> Result<(), InvalidOption> {
        if self.transport.is_some() && streamed {
            return Err(InvalidOption::new(
                "stream",
                "true",
                "does not go together with a page server",
                "give one of the two",
            ));
        }
        match &self.transport {
            Some(PageTransport::Tcp { host, port: 0 }) => {
                return Err(InvalidOption::new(
                    "port",
                    format!("{host} port 0"),
                    "cannot be connected to",
                    "give the port that the page server answered",
                ));
            }
            Some(PageTransport::Connected(_)) if lazy => {
                return Err(InvalidOption::new(
                    "ps-socket",
                    "a connected socket",
                    "is ignored by a lazy dump, which listens on a TCP port",
                    "give a port",
                ));
            }
            _ => {}
        }
        self.fill(draft)
    }

    pub(super) fn fill_server(mut self, draft: &mut Draft) -> Result<(), InvalidOption> {
        if let Some(PageTransport::Tcp { host, .. }) = &self.transport
            && host.parse::<IpAddr>().is_err()
        {
            return Err(InvalidOption::new(
                "address",
                host,
                "is no numeric address, which a page server needs to listen on",
                "give an IPv4 or IPv6 address, or 0.0.0.0 for all",
            ));
        }
        // The request needs the message even when there is nothing to say in it.
        let anywhere = self.transport.is_none();
        if anywhere {
            self.transport = Some(PageTransport::tcp("0.0.0.0", 0));
        }
        self.fill(draft)
    }

    pub(super) fn fill(self, draft: &mut Draft) -> Result<(), InvalidOption> {
        let Self {
            transport,
            tls,
            parent_images,
        } = self;
        if let (Some(PageTransport::Connected(_)), Some(_)) = (&transport, &tls) {
            return Err(InvalidOption::new(
                "tls",
                "with a connected socket",
                "would not be used: CRIU encrypts only connections that it makes itself",
                "give a host and a port, or encrypt the socket's other end",
            ));
        }
        draft.opts.ps = match transport {
            None => None,
            Some(PageTransport::Tcp { host, port }) => Some(wire::CriuPageServerInfo {
                address: Some(limits::text("address", host)?),
                port: Some(port.into()),
                pid: None,
                fd: None,
            }),
            Some(PageTransport::Connected(socket)) => Some(wire::CriuPageServerInfo {
                address: None,
                port: None,
                pid: None,
                fd: Some(draft.inherit(socket)),
            }),
        };
        if let Some(tls) = tls {
            tls.fill(&mut draft.opts)?;
        }
        draft.opts.parent_img = match parent_images {
            None => None,
            Some(path) if path.is_absolute() => {
                return Err(InvalidOption::new(
                    "prev-images-dir",
                    path.to_string_lossy(),
                    "is absolute, so the images would break when they are moved",
                    "give the path relative to the images directory, such as ../1",
                ));
            }
            Some(path) => Some(limits::any_path("prev-images-dir", path)?),
        };
        Ok(())
    }
}

impl Tls {
    pub(super) fn fill(self, opts: &mut wire::CriuOpts) -> Result<(), InvalidOption> {
        let Self {
            cacert,
            cacrl,
            cert,
            key,
            verify_name,
        } = self;
        opts.tls = Some(true);
        opts.tls_cacert = cacert
            .map(|path| limits::path("tls-cacert", path))
            .transpose()?;
        opts.tls_cacrl = cacrl
            .map(|path| limits::path("tls-cacrl", path))
            .transpose()?;
        opts.tls_cert = cert
            .map(|path| limits::path("tls-cert", path))
            .transpose()?;
        opts.tls_key = key.map(|path| limits::path("tls-key", path)).transpose()?;
        opts.tls_no_cn_verify = verify_name.map(|on| !on);
        Ok(())
    }
}

impl Compression {
    pub(super) fn fill(self, opts: &mut wire::CriuOpts) -> Result<(), InvalidOption> {
        const LARGEST_BLOCK: u32 = 4 << 20;
        let Lz4 {
            acceleration,
            block_size,
        } = match self {
            Self::Off => {
                opts.compress = Some(0);
                return Ok(());
            }
            Self::Lz4(lz4) => lz4,
        };
        opts.compress = Some(1);
        opts.compress_acceleration = acceleration
            .map(|acceleration| {
                limits::range(
                    "compress-acceleration",
                    acceleration.into(),
                    1,
                    65537,
                    "give 1 to 65537",
                )
            })
            .transpose()?;
        if let Some(bytes) = block_size {
            const OPTION: &str = "compress-block-size";
            const REMEDY: &str = "give a multiple of the page size, at most 4 MiB";
            let size = limits::range(OPTION, bytes, 1, LARGEST_BLOCK, REMEDY)?;
            if !u64::from(size).is_multiple_of(procfs::page_size()) {
                return Err(InvalidOption::new(
                    OPTION,
                    bytes.to_string(),
                    "is no multiple of the page size",
                    REMEDY,
                ));
            }
            opts.compress_block_size = Some(size);
        }
        Ok(())
    }
}

impl LogLevel {
    pub(crate) const fn wire(self) -> i32 {
        match self {
            Self::Silent => 0,
            Self::Error => 1,
            Self::Warning => 2,
            Self::Info => 3,
            Self::Debug => 4,
        }
    }
}

impl CgroupMode {
    pub(super) const fn wire(self) -> wire::CriuCgMode {
        match self {
            Self::Ignore => wire::CriuCgMode::Ignore,
            Self::None => wire::CriuCgMode::CgNone,
            Self::Props => wire::CriuCgMode::Props,
            Self::Soft => wire::CriuCgMode::Soft,
            Self::Full => wire::CriuCgMode::Full,
            Self::Strict => wire::CriuCgMode::Strict,
            Self::Default => wire::CriuCgMode::Default,
        }
    }
}

impl NetworkLock {
    pub(super) const fn wire(self) -> wire::CriuNetworkLockMethod {
        match self {
            Self::Iptables => wire::CriuNetworkLockMethod::Iptables,
            Self::Nftables => wire::CriuNetworkLockMethod::Nftables,
            Self::Skip => wire::CriuNetworkLockMethod::Skip,
        }
    }
}

impl PreDumpMode {
    pub(super) const fn wire(self) -> wire::CriuPreDumpMode {
        match self {
            Self::Splice => wire::CriuPreDumpMode::Splice,
            Self::VmRead => wire::CriuPreDumpMode::VmRead,
        }
    }
}

impl ImageIoMode {
    pub(super) const fn wire(self) -> wire::CriuImageIoMode {
        match self {
            Self::Writeback => wire::CriuImageIoMode::ImageIoWriteback,
            Self::Direct => wire::CriuImageIoMode::ImageIoDirect,
        }
    }
}
