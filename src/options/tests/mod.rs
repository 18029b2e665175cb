mod convert;
mod descriptor;
mod text;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::*;

fn descriptor() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

/// Every setter of a dump, at a value that is not the default.
fn full_dump() -> DumpOptions {
    DumpOptions::new()
        .log_level(LogLevel::Debug)
        .log_file("named.log")
        .log_to_stderr(true)
        .unprivileged(true)
        .work_dir(descriptor())
        .config_file("/etc/criu/own.conf")
        .external_unix_sockets(true)
        .tcp_established(true)
        .tcp_close(true)
        .evasive_devices(true)
        .shell_job(true)
        .file_locks(true)
        .root("/rootfs")
        .link_remap(true)
        .cpu_capabilities(CpuCapabilities::ALL)
        .orphan_pts_master(true)
        .auto_external_mounts(true)
        .external_sharing(true)
        .external_masters(true)
        .enable_fs("fuse")
        .empty_network_namespace(true)
        .manage_cgroups(CgroupMode::Full)
        .cgroup_root(Some("cpu"), "/below")
        .cgroup_root(None, "/elsewhere")
        .cgroup_yard("/yard")
        .lazy_pages(true)
        .display_stats(true)
        .image_io_mode(ImageIoMode::Direct)
        .plugin_option("amdgpu", "depth", Some("4"))
        .stream(false)
        .track_mem(true)
        .pidfd_store(descriptor())
        .force_irmap(true)
        .irmap_scan_path("/srv")
        .timeout(Duration::from_millis(2500))
        .freeze_cgroup("/sys/fs/cgroup/freezer/box")
        .page_server(PageTransport::tcp("destination", 9876))
        .tls(full_tls())
        .parent_images("../1")
        .leave(Leave::Stopped)
        .tcp_skip_in_flight(true)
        .auto_dedup(true)
        .ghost_limit(1 << 24)
        .external("unix[4711]".parse().unwrap())
        .skip_mount("/mnt")
        .cgroup_props("\"c1\":\n")
        .cgroup_props_file("/props")
        .cgroup_controller("cpu")
        .status_fd(descriptor())
        .network_lock(NetworkLock::Nftables)
        .compression(Compression::Lz4(
            Lz4::new().acceleration(2).block_size(65536),
        ))
}

fn full_tls() -> Tls {
    Tls::new()
        .cacert("/pki/ca.pem")
        .cacrl("/pki/crl.pem")
        .cert("/pki/cert.pem")
        .key("/pki/key.pem")
        .verify_name(false)
}

fn full_pre_dump() -> PreDumpOptions {
    PreDumpOptions::new()
        .log_level(LogLevel::Debug)
        .log_file("named.log")
        .log_to_stderr(true)
        .unprivileged(true)
        .work_dir(descriptor())
        .config_file("/etc/criu/own.conf")
        .plugin_option("amdgpu", "fast", None)
        .stream(false)
        .track_mem(true)
        .pidfd_store(descriptor())
        .force_irmap(true)
        .irmap_scan_path("/srv")
        .timeout(Duration::from_secs(2))
        .freeze_cgroup("/sys/fs/cgroup/freezer/box")
        .page_server(PageTransport::tcp("destination", 9876))
        .tls(full_tls())
        .parent_images("../1")
        .mode(PreDumpMode::VmRead)
}

fn full_restore() -> RestoreOptions {
    RestoreOptions::new()
        .log_level(LogLevel::Debug)
        .log_file("named.log")
        .log_to_stderr(true)
        .unprivileged(true)
        .work_dir(descriptor())
        .config_file("/etc/criu/own.conf")
        .external_unix_sockets(true)
        .tcp_established(true)
        .tcp_close(true)
        .evasive_devices(true)
        .shell_job(true)
        .file_locks(true)
        .root("/rootfs")
        .link_remap(true)
        .cpu_capabilities(CpuCapabilities::FPU)
        .orphan_pts_master(true)
        .auto_external_mounts(true)
        .external_sharing(true)
        .external_masters(true)
        .enable_fs("all")
        .empty_network_namespace(true)
        .manage_cgroups(CgroupMode::Strict)
        .cgroup_root(None, "/elsewhere")
        .cgroup_yard("/yard")
        .lazy_pages(true)
        .display_stats(true)
        .image_io_mode(ImageIoMode::Direct)
        .plugin_option("amdgpu", "depth", Some("4"))
        .stream(true)
        .leave_stopped(true)
        .auto_dedup(true)
        .exec_command(["sleep", "1"])
        .inherit_fd(InheritKey::Pipe(17), descriptor())
        .external("dev[disk]:/dev/loop0".parse().unwrap())
        .veth("eth0", "veth17", Some("br0"))
        .join_namespace(JoinNamespace::of_process(JoinKind::Uts, 70_000))
        .weak_sysctls(true)
        .lsm_profile(LsmProfile::AppArmor("box".to_owned()))
        .lsm_mount_context("system_u:object_r:container_file_t:s0")
        .mntns_compat_mode(true)
        .skip_file_rwx_check(true)
        .decompress_threads(0)
}

fn full_page_server() -> PageServerOptions {
    PageServerOptions::new()
        .log_level(LogLevel::Debug)
        .log_file("named.log")
        .log_to_stderr(true)
        .unprivileged(true)
        .work_dir(descriptor())
        .config_file("/etc/criu/own.conf")
        .transport(PageTransport::tcp("::1", 0))
        .tls(full_tls())
        .parent_images("../1")
        .auto_dedup(true)
        .status_fd(descriptor())
}

fn full_check() -> CheckOptions {
    CheckOptions::new()
        .log_level(LogLevel::Debug)
        .log_file("named.log")
        .log_to_stderr(true)
        .unprivileged(true)
        .work_dir(descriptor())
        .config_file("/etc/criu/own.conf")
}

fn full_cpuinfo() -> CpuinfoOptions {
    CpuinfoOptions::new()
        .log_level(LogLevel::Debug)
        .log_file("named.log")
        .log_to_stderr(true)
        .unprivileged(true)
        .work_dir(descriptor())
        .config_file("/etc/criu/own.conf")
        .cpu_capabilities(CpuCapabilities::CPU)
}
