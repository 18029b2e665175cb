//! What reaches the wire, and what is refused before.

use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use prost::Message;

use super::*;
use crate::rpc::wire;

fn option(result: Result<Prepared, InvalidOption>) -> String {
    match result {
        Ok(_) => panic!("was accepted"),
        Err(error) => {
            let shown = error.to_string();
            assert!(shown.contains(error.remedy()), "{shown}");
            error.option().to_owned()
        }
    }
}

#[test]
fn values_are_converted() {
    let opts = full_dump().prepare(3).unwrap().opts;
    assert_eq!(opts.log_level, Some(4));
    assert_eq!(opts.timeout, Some(3), "seconds are rounded up");
    assert_eq!(opts.empty_ns, Some(0x4000_0000));
    assert_eq!(opts.leave_stopped, Some(true));
    assert_eq!(opts.leave_running, None);
    assert_eq!(opts.tls_no_cn_verify, Some(true));
    assert_eq!(opts.cpu_cap, Some(7));
    assert_eq!(opts.plugin_options, ["amdgpu.depth=4"]);
    let ps = opts.ps.unwrap();
    assert_eq!(
        (ps.address.as_deref(), ps.port, ps.fd),
        (Some("destination"), Some(9876), None)
    );
    assert_eq!(opts.cg_root[0].ctrl.as_deref(), Some("cpu"));
    assert_eq!(opts.cg_root[1].ctrl, None);

    let opts = full_pre_dump().prepare(3).unwrap().opts;
    assert_eq!(opts.plugin_options, ["amdgpu.fast"]);

    let opts = full_restore().prepare(3).unwrap().opts;
    assert_eq!(
        opts.external,
        ["dev[disk]:/dev/loop0", "veth[eth0]:veth17@br0"]
    );
    assert_eq!(
        opts.join_ns[0].ns_file, "/proc/70000/ns/uts",
        "pids above 65535 work as paths only"
    );
    assert_eq!(opts.lsm_profile.as_deref(), Some("apparmor:box"));
    assert_eq!(opts.exec_cmd, ["sleep", "1"]);
}

#[test]
fn descriptors_have_the_numbers_that_were_sent() {
    let prepared = full_dump().prepare(3).unwrap();
    let held: Vec<i32> = prepared.held.iter().map(AsRawFd::as_raw_fd).collect();
    for number in [
        prepared.opts.work_dir_fd,
        prepared.opts.pidfd_store_sk,
        prepared.opts.status_fd,
    ] {
        assert!(held.contains(&number.unwrap()), "{number:?} in {held:?}");
    }
    assert_eq!(held.len(), 3);
    assert!(prepared.inherited.is_empty());

    let (first, second) = (descriptor(), descriptor());
    let raw = [first.as_raw_fd(), second.as_raw_fd()];
    let prepared = RestoreOptions::new()
        .inherit_fd(InheritKey::Pipe(1), first)
        .inherit_fd(InheritKey::Namespace("extRootNetNS".to_owned()), second)
        .prepare(7)
        .unwrap();
    let sent: Vec<(&str, i32)> = prepared
        .opts
        .inherit_fd
        .iter()
        .map(|i| (i.key.as_str(), i.fd))
        .collect();
    assert_eq!(sent, [("pipe:[1]", 7), ("extRootNetNS", 8)]);
    let inherited: Vec<i32> = prepared.inherited.iter().map(AsRawFd::as_raw_fd).collect();
    assert_eq!(inherited, raw);

    let prepared = PageServerOptions::new()
        .transport(PageTransport::Connected(descriptor()))
        .prepare(4)
        .unwrap();
    assert_eq!(prepared.opts.ps.unwrap().fd, Some(4));
    assert_eq!(prepared.inherited.len(), 1);
}

#[test]
fn a_page_server_without_an_address_listens_anywhere() {
    let ps = PageServerOptions::new()
        .prepare(3)
        .unwrap()
        .opts
        .ps
        .unwrap();
    assert_eq!((ps.address.as_deref(), ps.port), (Some("0.0.0.0"), Some(0)));
}

#[test]
fn numbers_out_of_range_are_refused() {
    let lz4 = |lz4| {
        DumpOptions::new()
            .compression(Compression::Lz4(lz4))
            .prepare(3)
    };
    assert_eq!(
        option(lz4(Lz4::new().acceleration(0))),
        "compress-acceleration"
    );
    assert_eq!(
        option(lz4(Lz4::new().acceleration(65538))),
        "compress-acceleration"
    );
    assert!(lz4(Lz4::new().acceleration(65537)).is_ok());
    for size in [0, 1000, 4097, (4 << 20) + 4096, 1 << 40] {
        assert_eq!(
            option(lz4(Lz4::new().block_size(size))),
            "compress-block-size",
            "{size}"
        );
    }
    assert!(lz4(Lz4::new().block_size(4 << 20)).is_ok());
    assert_eq!(
        option(RestoreOptions::new().decompress_threads(1025).prepare(3)),
        "decompress-threads"
    );
    assert!(
        RestoreOptions::new()
            .decompress_threads(1024)
            .prepare(3)
            .is_ok()
    );
    assert_eq!(
        option(DumpOptions::new().ghost_limit(1 << 32).prepare(3)),
        "ghost-limit"
    );
    assert!(
        DumpOptions::new()
            .ghost_limit((1 << 32) - 1)
            .prepare(3)
            .is_ok()
    );
    assert_eq!(
        option(DumpOptions::new().timeout(Duration::MAX).prepare(3)),
        "timeout"
    );
    assert_eq!(
        DumpOptions::new()
            .timeout(Duration::ZERO)
            .prepare(3)
            .unwrap()
            .opts
            .timeout,
        Some(0)
    );
}

#[test]
fn compression_off_is_said_in_so_many_words() {
    let opts = DumpOptions::new()
        .compression(Compression::Off)
        .prepare(3)
        .unwrap()
        .opts;
    assert_eq!((opts.compress, opts.compress_acceleration), (Some(0), None));
}

#[test]
fn paths_that_would_miss_are_refused() {
    assert_eq!(
        option(DumpOptions::new().parent_images("/images/1").prepare(3)),
        "prev-images-dir"
    );
    assert_eq!(
        option(DumpOptions::new().parent_images("").prepare(3)),
        "prev-images-dir"
    );
    assert_eq!(option(DumpOptions::new().root("rootfs").prepare(3)), "root");
    assert_eq!(
        option(RestoreOptions::new().config_file("own.conf").prepare(3)),
        "config"
    );
    assert_eq!(
        option(DumpOptions::new().skip_mount("mnt").prepare(3)),
        "skip-mnt"
    );
    let latin = PathBuf::from(std::ffi::OsString::from_vec(b"/caf\xe9".to_vec()));
    assert_eq!(
        option(DumpOptions::new().cgroup_yard(latin.clone()).prepare(3)),
        "cgroup-yard"
    );
    assert_eq!(
        option(DumpOptions::new().tls(Tls::new().key(latin)).prepare(3)),
        "tls-key"
    );
}

#[test]
fn nul_bytes_are_refused_everywhere() {
    let nul = "/a\0b";
    let dump = DumpOptions::new;
    let restore = RestoreOptions::new;
    for result in [
        dump().root(nul).prepare(3),
        dump().enable_fs(nul).prepare(3),
        dump().cgroup_root(Some(nul), "/").prepare(3),
        dump().cgroup_root(None, nul).prepare(3),
        dump().cgroup_props(nul).prepare(3),
        dump().cgroup_controller(nul).prepare(3),
        dump().plugin_option("p", "n", Some(nul)).prepare(3),
        dump().page_server(PageTransport::tcp(nul, 1)).prepare(3),
        dump().parent_images("a\0b").prepare(3),
        dump()
            .external(ExternalOnDump::NetNamespace {
                inode: 1,
                key: nul.to_owned(),
            })
            .prepare(3),
        restore().exec_command(["true", nul]).prepare(3),
        restore()
            .inherit_fd(InheritKey::Memfd(nul.to_owned()), descriptor())
            .prepare(3),
        restore()
            .lsm_profile(LsmProfile::Selinux(nul.to_owned()))
            .prepare(3),
        restore().lsm_mount_context(nul).prepare(3),
        restore()
            .join_namespace(JoinNamespace::of_file(JoinKind::Ipc, nul))
            .prepare(3),
        restore()
            .external(ExternalOnRestore::Mount {
                name: "n".to_owned(),
                path: nul.into(),
            })
            .prepare(3),
    ] {
        let error = result.err().expect("a NUL byte was accepted");
        assert!(error.problem().contains("NUL"), "{error}");
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let connected = || PageTransport::Connected(descriptor());
    let tcp = |port| PageTransport::tcp("localhost", port);
    let dump = DumpOptions::new;
    assert_eq!(option(dump().page_server(tcp(0)).prepare(3)), "port");
    assert_eq!(
        option(dump().page_server(connected()).tls(Tls::new()).prepare(3)),
        "tls"
    );
    assert_eq!(
        option(dump().page_server(connected()).lazy_pages(true).prepare(3)),
        "ps-socket"
    );
    assert_eq!(
        option(dump().page_server(tcp(1)).stream(true).prepare(3)),
        "stream"
    );
    assert_eq!(
        option(PageServerOptions::new().transport(tcp(1)).prepare(3)),
        "address",
        "a server needs a number"
    );

    let net = || JoinNamespace::of_file(JoinKind::Net, "/run/netns/blue");
    let restore = RestoreOptions::new;
    assert_eq!(
        option(
            restore()
                .join_namespace(net())
                .empty_network_namespace(true)
                .prepare(3)
        ),
        "join-ns"
    );
    assert!(
        restore()
            .join_namespace(net())
            .empty_network_namespace(false)
            .prepare(3)
            .is_ok()
    );
    assert_eq!(
        option(
            restore()
                .join_namespace(net())
                .join_namespace(net())
                .prepare(3)
        ),
        "join-ns"
    );
    let far = JoinKind::User {
        ids: Some((0, 65536)),
    };
    assert_eq!(
        option(
            restore()
                .join_namespace(JoinNamespace::of_process(far, 1))
                .prepare(3)
        ),
        "join-ns"
    );
}

#[test]
fn one_id_twice_is_refused() {
    let external = |text: &str| text.parse::<ExternalOnDump>().unwrap();
    let dump = |first: &str, second: &str| {
        DumpOptions::new()
            .external(external(first))
            .external(external(second))
            .prepare(3)
    };
    assert_eq!(option(dump("net[1]:a", "net[1]:b")), "external");
    assert_eq!(option(dump("mnt[/a]:a", "mnt[/a]:b")), "external");
    assert!(dump("net[1]:a", "net[12]:a").is_ok());
    assert!(dump("net[1]:a", "pid[1]:a").is_ok());
    let opts = dump("mnt[]:m", "mnt[]:s").unwrap().opts;
    assert_eq!(opts.external, ["mnt[]:m", "mnt[]:s"]);
    assert_eq!(
        option(
            RestoreOptions::new()
                .inherit_fd(InheritKey::Path("x".to_owned()), descriptor())
                .inherit_fd(InheritKey::Namespace("x".to_owned()), descriptor())
                .prepare(3)
        ),
        "inherit-fd"
    );
    assert_eq!(
        option(
            RestoreOptions::new()
                .veth("a", "b", None)
                .veth("a", "c", Some("br0"))
                .prepare(3)
        ),
        "external"
    );
}

#[test]
fn malformed_texts_are_refused() {
    for (plugin, name) in [("", "n"), ("p", ""), ("p.q", "n"), ("p", "n=1")] {
        assert_eq!(
            option(
                DumpOptions::new()
                    .plugin_option(plugin, name, None)
                    .prepare(3)
            ),
            "plugin-option"
        );
    }
    let nothing: [&str; 0] = [];
    assert_eq!(
        option(RestoreOptions::new().exec_command(nothing).prepare(3)),
        "exec-cmd"
    );
    assert_eq!(
        option(RestoreOptions::new().exec_command([""]).prepare(3)),
        "exec-cmd"
    );
    assert!(
        RestoreOptions::new()
            .exec_command(["true", ""])
            .prepare(3)
            .is_ok()
    );
    assert_eq!(
        option(
            RestoreOptions::new()
                .lsm_profile(LsmProfile::AppArmor(String::new()))
                .prepare(3)
        ),
        "lsm-profile"
    );
    assert_eq!(
        option(RestoreOptions::new().veth("eth0", "br@x", None).prepare(3)),
        "external"
    );
    assert_eq!(
        option(
            RestoreOptions::new()
                .veth("eth0", "far-too-long-name", None)
                .prepare(3)
        ),
        "external"
    );
}

#[test]
fn extra_goes_over_everything_else() {
    let extra = wire::CriuOpts {
        ghost_limit: Some(5),
        skip_mnt: vec!["/b".to_owned()],
        ..Default::default()
    };
    let prepared = DumpOptions::new()
        .extra(extra.encode_to_vec())
        .ghost_limit(7)
        .skip_mount("/a")
        .prepare(3)
        .unwrap();
    assert_eq!(prepared.opts.ghost_limit, Some(5));
    assert_eq!(prepared.opts.skip_mnt, ["/a", "/b"]);
    assert_eq!(prepared.opts.images_dir_fd, -1);
    assert!(prepared.unknown.is_empty());
}

#[test]
fn extra_that_is_no_message_or_takes_from_the_operation_is_refused() {
    let extra = |bytes: &[u8]| CheckOptions::new().extra(bytes).prepare(3);
    for bytes in [
        &b"\xff"[..],            // a key that does not end
        b"\x08",                 // a key without its value
        b"\x6a\x05ab",           // a string that is cut short
        b"\x6a\x02\xff\xfe",     // root that is not UTF-8
        b"\x28\x01\x2b",         // a group
        b"\x2d\x00\x00\x00\x00", // tcp_established of the wrong type
    ] {
        assert_eq!(option(extra(bytes)), "extra", "{bytes:?}");
    }
    for opts in [
        wire::CriuOpts {
            pid: Some(1),
            ..Default::default()
        },
        wire::CriuOpts {
            images_dir_fd: 4,
            ..Default::default()
        },
        wire::CriuOpts {
            rst_sibling: Some(false),
            ..Default::default()
        },
    ] {
        assert_eq!(option(extra(&opts.encode_to_vec())), "extra");
    }
}

#[test]
fn fields_of_a_newer_criu_are_passed_on() {
    // Field 99 as a varint, 100 as a text, and root, which is known.
    let bytes = b"\x98\x06\x07\xa2\x06\x01x\x6a\x02/r";
    let prepared = RestoreOptions::new().extra(&bytes[..]).prepare(3).unwrap();
    assert_eq!(prepared.opts.root.as_deref(), Some("/r"));
    assert_eq!(prepared.unknown, b"\x98\x06\x07\xa2\x06\x01x");

    let request = wire::CriuReq {
        r#type: wire::CriuReqType::Restore.into(),
        opts: Some(prepared.opts),
        keep_open: Some(true),
        ..Default::default()
    };
    let encoded = encode_request(request, &prepared.unknown);
    let decoded = wire::CriuReq::decode(&encoded[..]).unwrap();
    assert_eq!(decoded.r#type, i32::from(wire::CriuReqType::Restore));
    assert_eq!(decoded.keep_open, Some(true));
    let opts = decoded.opts.unwrap();
    assert_eq!((opts.images_dir_fd, opts.root.as_deref()), (-1, Some("/r")));
    let position = encoded
        .windows(7)
        .position(|window| window == b"\x98\x06\x07\xa2\x06\x01x");
    assert!(position.is_some());
}
