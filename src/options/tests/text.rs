//! The texts of values: what CRIU reads, what we read, and that both agree.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use proptest::prelude::*;

use super::*;

/// Texts as CRIU's manual and sources have them: what is read must be written again.
#[test]
fn texts_of_criu() {
    fn same<T: FromStr<Err = InvalidOption> + Display>(texts: &[&str]) {
        for text in texts {
            assert_eq!(
                text.parse::<T>().map(|value| value.to_string()),
                Ok((*text).to_owned())
            );
        }
    }
    same::<ExternalOnDump>(&[
        "mnt[/etc/hosts]:/etc/hosts",
        "mnt[]",
        "mnt[]:m",
        "mnt[]:s",
        "dev[8/17]:disk",
        "file[1a:ff]",
        "tty[8803:1b]",
        "unix[12345]",
        "net[4026531840]:extRootNetNS",
        "pid[4026531836]:extRootPidNS",
    ]);
    same::<ExternalOnRestore>(&[
        "mnt[/etc/hosts]:/var/lib/box/hosts",
        "mnt[]:s",
        "dev[disk]:/dev/sdb1",
        "veth[eth0]:veth1a2b",
        "veth[eth0]:veth1a2b@br0",
        "macvlan[eth1]:eth0",
        "netdev[eth0]:prepared",
    ]);
    same::<InheritKey>(&[
        "pipe:[4711]",
        "socket:[17]",
        "tty[8803:1b]",
        "file[1a:ff]",
        "/memfd:shared",
        "var/log/box.log",
        "extRootNetNS",
    ]);
    same::<JoinNamespace>(&[
        "net:/run/netns/blue",
        "uts:/proc/1/ns/uts",
        "time:/proc/1/ns/time",
        "ipc:/ipc",
        "mnt:/mnt",
        "user:/proc/1/ns/user",
        "user:/proc/1/ns/user,0,5",
    ]);
    same::<LsmProfile>(&[
        "apparmor:docker-default",
        "selinux:system_u:system_r:s0:c1,c2",
        "none:",
    ]);
    same::<CpuCapabilities>(&["none", "fpu", "fpu,cpu,ins", "fpu,ins,image"]);
}

#[test]
fn numbers_are_hexadecimal_only_where_criu_reads_them_so() {
    assert_eq!(
        "file[10:ff]".parse(),
        Ok(ExternalOnDump::File {
            mount_id: 16,
            inode: 255
        })
    );
    assert_eq!(
        "tty[10:a]".parse(),
        Ok(ExternalOnDump::Tty { rdev: 16, dev: 10 })
    );
    assert_eq!(
        "unix[10]".parse(),
        Ok(ExternalOnDump::UnixSocket { inode: 10 })
    );
    assert_eq!(
        "dev[10/11]:d".parse(),
        Ok(ExternalOnDump::Device {
            major: 10,
            minor: 11,
            name: "d".to_owned()
        })
    );
}

#[test]
fn what_criu_would_ignore_or_misread_is_refused() {
    fn refused<T: FromStr<Err = InvalidOption> + Debug>(texts: &[&str]) {
        for text in texts {
            let error = text.parse::<T>().expect_err(text);
            assert_eq!(error.value(), *text);
            assert!(!error.remedy().is_empty());
        }
    }
    refused::<ExternalOnDump>(&[
        "",
        "mnt",
        "mnt[",
        "mnt[/a]",
        "mnt[a]:name",
        "mnt[/a]:",
        "mnt[/a]:na]:me",
        "mnt[]:ms",
        "mnt[]x",
        "foo[1]:x",
        "net[0x10]:key",
        "net[ff]:key",
        "net[+1]:key",
        "net[-1]:key",
        "net[1]",
        "net[1]:",
        "net[99999999999]:key",
        "unix[1]:x",
        "file[0x1:2]",
        "file[1:2]:x",
        "file[1ffffffff:2]",
        "tty[1]",
        "dev[8:1]:x",
        "veth[eth0]:x",
    ]);
    refused::<ExternalOnRestore>(&[
        "mnt[a]:relative",
        "mnt[a]",
        "dev[a]:",
        "veth[]:x",
        "veth[eth0]",
        "veth[eth0]:",
        "veth[eth0]:a@",
        "veth[eth0]:a@b@c",
        "veth[eth 0]:a",
        "net[1]:key",
        "unix[1]",
        "bogus[a]:b",
    ]);
    refused::<InheritKey>(&[
        "",
        "/var/log/x",
        "pipe:[x]",
        "pipe:[]",
        "socket:[-1]",
        "tty[1]",
        "file[1:2:3]",
        "/memfd:",
    ]);
    refused::<JoinNamespace>(&[
        "",
        "net",
        "net:",
        "net:relative",
        "net:0",
        "net:99999999999",
        "pid:/proc/1/ns/pid",
        "cgroup:/proc/1/ns/cgroup",
        "bogus:/x",
        "user:/x,70000,1",
        "user:,1,1",
    ]);
    refused::<LsmProfile>(&[
        "",
        "apparmor",
        "apparmor:",
        "selinux:",
        "tomoyo:x",
        "none:x",
    ]);
    refused::<CpuCapabilities>(&["", "fpu,", "fpu,all", "^fpu", "sse"]);
    refused::<Leave>(&["", "Running", "kill"]);
}

#[test]
fn a_pid_becomes_a_path() {
    let joined: JoinNamespace = "net:99999".parse().unwrap();
    assert_eq!(joined, JoinNamespace::of_process(JoinKind::Net, 99999));
    assert_eq!(joined.to_string(), "net:/proc/99999/ns/net");
}

#[test]
fn words_are_read_as_written() {
    for value in Leave::ALL {
        assert_eq!(value.to_string().parse(), Ok(*value));
    }
    for value in LogLevel::ALL {
        assert_eq!(value.to_string().parse(), Ok(*value));
    }
    for value in CgroupMode::ALL {
        assert_eq!(value.to_string().parse(), Ok(*value));
    }
    for value in NetworkLock::ALL {
        assert_eq!(value.to_string().parse(), Ok(*value));
    }
    for value in PreDumpMode::ALL {
        assert_eq!(value.to_string().parse(), Ok(*value));
    }
    for value in ImageIoMode::ALL {
        assert_eq!(value.to_string().parse(), Ok(*value));
    }
}

fn name() -> impl Strategy<Value = String> {
    // Anything that may stand between the brackets.
    "[^\0\n]{1,24}".prop_filter("ends the id", |name| {
        !name.contains("]:") && !name.starts_with(']')
    })
}

fn absolute() -> impl Strategy<Value = String> {
    name().prop_map(|path| format!("/{path}"))
}

fn interface() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9_-]{1,15}"
}

fn auto() -> impl Strategy<Value = AutoMounts> {
    prop_oneof![
        Just(AutoMounts::Private),
        Just(AutoMounts::Masters),
        Just(AutoMounts::Shared)
    ]
}

fn on_dump() -> impl Strategy<Value = ExternalOnDump> {
    prop_oneof![
        (absolute(), name()).prop_map(|(mountpoint, name)| ExternalOnDump::Mount {
            mountpoint: mountpoint.into(),
            name
        }),
        auto().prop_map(ExternalOnDump::MountAuto),
        (any::<u32>(), any::<u32>(), name())
            .prop_map(|(major, minor, name)| ExternalOnDump::Device { major, minor, name }),
        (any::<u32>(), any::<u64>())
            .prop_map(|(mount_id, inode)| ExternalOnDump::File { mount_id, inode }),
        (any::<u64>(), any::<u64>()).prop_map(|(rdev, dev)| ExternalOnDump::Tty { rdev, dev }),
        any::<u32>().prop_map(|inode| ExternalOnDump::UnixSocket { inode }),
        (any::<u32>(), name()).prop_map(|(inode, key)| ExternalOnDump::NetNamespace { inode, key }),
        (any::<u32>(), name()).prop_map(|(inode, key)| ExternalOnDump::PidNamespace { inode, key }),
    ]
}

fn on_restore() -> impl Strategy<Value = ExternalOnRestore> {
    prop_oneof![
        (name(), absolute()).prop_map(|(name, path)| ExternalOnRestore::Mount {
            name,
            path: path.into()
        }),
        auto().prop_map(ExternalOnRestore::MountAuto),
        (name(), absolute()).prop_map(|(name, path)| ExternalOnRestore::Device {
            name,
            path: path.into()
        }),
        (interface(), interface(), proptest::option::of(interface())).prop_map(
            |(inside, outside, bridge)| {
                ExternalOnRestore::Veth {
                    inside,
                    outside,
                    bridge,
                }
            }
        ),
        (interface(), interface())
            .prop_map(|(inside, outside)| ExternalOnRestore::Macvlan { inside, outside }),
        (interface(), interface())
            .prop_map(|(inside, outside)| ExternalOnRestore::NetDevice { inside, outside }),
    ]
}

fn key() -> impl Strategy<Value = InheritKey> {
    prop_oneof![
        any::<u64>().prop_map(InheritKey::Pipe),
        any::<u64>().prop_map(InheritKey::Socket),
        (any::<u64>(), any::<u64>()).prop_map(|(rdev, dev)| InheritKey::Tty { rdev, dev }),
        (any::<u32>(), any::<u64>())
            .prop_map(|(mount_id, inode)| InheritKey::File { mount_id, inode }),
        name().prop_map(InheritKey::Memfd),
        "[a-z][a-z./]{0,20}".prop_map(InheritKey::Path),
        "[a-zA-Z][a-zA-Z0-9_-]{0,20}".prop_map(InheritKey::Namespace),
    ]
}

fn joined() -> impl Strategy<Value = JoinNamespace> {
    let kind = prop_oneof![
        Just(JoinKind::Net),
        Just(JoinKind::Uts),
        Just(JoinKind::Time),
        Just(JoinKind::Ipc),
        Just(JoinKind::Mnt),
        Just(JoinKind::User { ids: None }),
        (0..=65535u32, 0..=65535u32).prop_map(|ids| JoinKind::User { ids: Some(ids) }),
    ];
    prop_oneof![
        (kind.clone(), "/[^\0\n,]{0,24}")
            .prop_map(|(kind, file)| JoinNamespace::of_file(kind, file)),
        (kind, 1..=u32::MAX).prop_map(|(kind, pid)| JoinNamespace::of_process(kind, pid)),
    ]
}

fn capabilities() -> impl Strategy<Value = CpuCapabilities> {
    (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(fpu, cpu, ins, image)| {
            let mut set = CpuCapabilities::NONE;
            for (on, capability) in [
                (fpu, CpuCapabilities::FPU),
                (cpu, CpuCapabilities::CPU),
                (ins, CpuCapabilities::INS),
                (image, CpuCapabilities::IMAGE),
            ] {
                if on {
                    set |= capability;
                }
            }
            set
        },
    )
}

fn profile() -> impl Strategy<Value = LsmProfile> {
    prop_oneof![
        name().prop_map(LsmProfile::AppArmor),
        name().prop_map(LsmProfile::Selinux),
        Just(LsmProfile::None),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(
        on_dump in on_dump(),
        on_restore in on_restore(),
        key in key(),
        joined in joined(),
        capabilities in capabilities(),
        profile in profile(),
    ) {
        prop_assert_eq!(on_dump.to_string().parse(), Ok(on_dump));
        prop_assert_eq!(on_restore.to_string().parse(), Ok(on_restore));
        prop_assert_eq!(key.to_string().parse(), Ok(key));
        prop_assert_eq!(joined.to_string().parse(), Ok(joined));
        prop_assert_eq!(capabilities.to_string().parse(), Ok(capabilities));
        prop_assert_eq!(profile.to_string().parse(), Ok(profile));
    }

    #[test]
    fn any_text_is_read_or_refused(
        text in prop_oneof![
            any::<String>(),
            "(mnt|dev|file|tty|unix|net|pid|veth|macvlan|netdev|pipe:|/memfd:|user|apparmor)?[\\[\\]:/,@a-f0-9\0]{0,16}",
        ]
    ) {
        // What is read must be fit to send, and say the same again.
        if let Ok(value) = text.parse::<ExternalOnDump>() {
            prop_assert_eq!(value.checked().unwrap().parse(), Ok(value));
        }
        if let Ok(value) = text.parse::<ExternalOnRestore>() {
            prop_assert_eq!(value.checked().unwrap().parse(), Ok(value));
        }
        if let Ok(value) = text.parse::<InheritKey>() {
            prop_assert_eq!(value.checked().unwrap(), text.clone());
        }
        if let Ok(value) = text.parse::<JoinNamespace>() {
            prop_assert_eq!(value.to_string().parse(), Ok(value));
        }
        if let Ok(value) = text.parse::<LsmProfile>() {
            prop_assert_eq!(value.to_string().parse(), Ok(value));
        }
        if let Ok(value) = text.parse::<CpuCapabilities>() {
            prop_assert_eq!(value.to_string().parse(), Ok(value));
        }
    }

    #[test]
    fn any_extra_bytes_are_merged_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = CheckOptions::new().extra(bytes).prepare(3);
    }
}
