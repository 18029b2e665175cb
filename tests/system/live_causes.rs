//! Failures of the real CRIU that can be provoked in a moment, and the cause that each must be
//! recognised as.
//!
//! How a driver uses an entry:
//!
//! 1. Make a scratch directory with an empty `images` in it; make the [`Peer`]. In all program
//!    texts replace `{dir}` and `{images}` by those paths, `{port}` by the peer's port, and — once
//!    there is one — `{pid}` by the victim's pid. Paths must not hold quotes or backslashes.
//! 2. Start `/usr/bin/python3 -c VICTIM` with standard input on `/dev/null`, standard output on a
//!    pipe and standard error on `/dev/null`, in a session of its own unless
//!    [`LiveCause::own_session`] is false; with [`LiveCause::unshare`], behind
//!    `unshare FLAGS --`. None of the flags forks, so the child's pid is the victim's. Read its
//!    output up to the line `ready`. The driver must be a child subreaper, or reap what it dumps
//!    before a restore.
//! 3. Start the companion the same way, if there is one, and wait for its `ready`.
//! 4. Dump the victim into `images` with [`LiveCause::dump`], log level 4, the work directory the
//!    same, `PATH` of CRIU as in [`LiveCause::criu_path`]. Without a [`Restore`] this must fail
//!    with [`LiveCause::code`], and the victim must still be alive.
//! 5. With one, it must succeed. Reap the victim (unless it was left running), run
//!    [`Restore::between`] as a companion, and restore with [`Restore::options`]: this must fail
//!    with the code.
//! 6. Kill what was started, by pid, companions first: a traced victim is not reaped before its
//!    tracer is gone. A restore that succeeds against expectation leaves a process too.
//!
//! Root is needed, and iproute2; a network lock needs iptables or nftables. CRIU 4.1.1 cannot dump
//! TCP sockets on recent kernels: there the three restores with one (`inet-address-in-use`,
//! `tcp-established-in-image`, `tcp-close-needed`) end as `socket-option-refused` in the dump.

/// One failure.
pub(crate) struct LiveCause {
    /// The cause it must be recognised as.
    pub(crate) code: &'static str,
    /// The program to dump; prints `ready` when all is set up, then sleeps.
    pub(crate) victim: &'static str,
    /// Namespaces for the victim, as flags of `unshare`.
    pub(crate) unshare: &'static [&'static str],
    /// Whether the victim leads a session; otherwise it stays in the driver's.
    pub(crate) own_session: bool,
    /// What the driver holds for the victim to talk to.
    pub(crate) peer: Peer,
    /// A program that runs beside the dump, outside the tree.
    pub(crate) companion: Option<&'static str>,
    /// Options of the dump.
    pub(crate) dump: &'static [Opt],
    /// `PATH` in CRIU's environment, if not the driver's own.
    pub(crate) criu_path: Option<&'static str>,
    /// The restore that fails, if not the dump does.
    pub(crate) restore: Option<Restore>,
}

/// A restore that fails.
pub(crate) struct Restore {
    /// A program that changes something between dump and restore, and may stay until the end.
    pub(crate) between: Option<&'static str>,
    /// Options of the restore.
    pub(crate) options: &'static [Opt],
}

/// What the driver holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Nothing.
    None,
    /// A TCP socket that listens on `127.0.0.1:{port}`; connections need not be accepted.
    Tcp,
    /// A Unix datagram socket bound to `{dir}/peer`.
    UnixDatagram,
    /// A Unix stream socket that listens on `{dir}/peer`; the connection must be accepted and held.
    UnixStream,
}

/// An option of CRIU, named as on its command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opt {
    /// `--tcp-established`
    TcpEstablished,
    /// `--tcp-close`
    TcpClose,
    /// `--ext-unix-sk`
    ExtUnixSk,
    /// `--leave-running`
    LeaveRunning,
    /// `--track-mem`
    TrackMem,
    /// `--lazy-pages`
    LazyPages,
    /// `--freeze-cgroup PATH`
    FreezeCgroup(&'static str),
    /// `--cgroup-props TEXT`
    CgroupProps(&'static str),
    /// `--network-lock iptables`
    LockWithIptables,
    /// `--page-server --address 127.0.0.1 --port N`
    PageServer(u16),
    /// `--prev-images-dir PATH`
    PrevImagesDir(&'static str),
    /// `--lsm-profile TEXT`
    LsmProfile(&'static str),
}

/// A program that sets something up, says so, and sleeps. Descriptors that leaked into the driver
/// would be dumped too, so they are closed first.
macro_rules! python {
    ($($line:literal)*) => {
        concat!(
            "import ctypes, fcntl, os, socket, struct, time\n",
            "os.closerange(3, 256)\n",
            "libc = ctypes.CDLL(None, use_errno=True)\n",
            $($line, "\n",)*
            "print('ready', flush=True)\n",
            "while True: time.sleep(60)\n",
        )
    };
}

/// The same for a victim in a mount namespace of its own: all of its standard streams are on files
/// of that namespace.
macro_rules! python_at_home {
    ($($line:literal)*) => {
        concat!(
            "import ctypes, os, time\n",
            "os.closerange(3, 256)\n",
            "libc = ctypes.CDLL(None, use_errno=True)\n",
            "null = os.open('/dev/null', os.O_RDWR)\n",
            "os.dup2(null, 0); os.dup2(null, 2)\n",
            $($line, "\n",)*
            "print('ready', flush=True)\n",
            "os.dup2(null, 1); os.close(null)\n",
            "while True: time.sleep(60)\n",
        )
    };
}

const PLAIN: LiveCause = LiveCause {
    code: "",
    victim: python!(),
    unshare: &[],
    own_session: true,
    peer: Peer::None,
    companion: None,
    dump: &[],
    criu_path: None,
    restore: None,
};

const fn dump(code: &'static str, victim: &'static str) -> LiveCause {
    LiveCause {
        code,
        victim,
        ..PLAIN
    }
}

const fn dump_with(code: &'static str, victim: &'static str, dump: &'static [Opt]) -> LiveCause {
    LiveCause {
        code,
        victim,
        dump,
        ..PLAIN
    }
}

const fn restore(code: &'static str, victim: &'static str, between: &'static str) -> LiveCause {
    let restore = Some(Restore {
        between: Some(between),
        options: &[],
    });
    LiveCause {
        code,
        victim,
        restore,
        ..PLAIN
    }
}

/// A program that does one thing between dump and restore.
macro_rules! once {
    ($($line:literal)*) => {
        concat!("import glob, os\n", $($line, "\n",)* "print('ready', flush=True)\n")
    };
}

/// All of them; each takes well under two seconds.
pub(crate) const LIVE_CAUSES: &[LiveCause] = &[
    // Files.
    LiveCause {
        unshare: &["--mount"],
        ..dump("stdio-outside-container", python!())
    },
    dump(
        "file-outside-container",
        python!("q = ctypes.CDLL('librt.so.1').mq_open(b'/criu-live-causes', 66, 0o600, None)"
            "assert q >= 0"
            "ctypes.CDLL('librt.so.1').mq_unlink(b'/criu-live-causes')"),
    ),
    dump("secret-memory", python!("assert libc.syscall(447, 0) > 0")),
    dump(
        "ghost-file-over-limit",
        python!("f = open('{dir}/big', 'wb'); f.write(b'x' * (2 << 20)); f.flush()"
            "os.unlink('{dir}/big')"),
    ),
    dump(
        "link-remap-needed",
        python!("f = open('{dir}/one', 'w'); f.write('x'); f.flush()"
            "os.link('{dir}/one', '{dir}/two'); os.unlink('{dir}/one')"),
    ),
    dump(
        "file-locks",
        python!("f = open('{dir}/lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX)"),
    ),
    dump(
        "watch-unresolved",
        python!("assert libc.inotify_add_watch(libc.inotify_init(), b'/proc', 0xfff) > 0"),
    ),
    dump("pipe-in-packet-mode", python!("os.pipe2(os.O_DIRECT)")),
    // Devices and descriptors without a file.
    dump(
        "device-file",
        python!("f = os.open('/dev/loop-control', os.O_RDONLY)"),
    ),
    dump(
        "fuse-device",
        python!("f = os.open('/dev/fuse', os.O_RDWR)"),
    ),
    dump(
        "tun-outside-netns",
        python!("f = os.open('/dev/net/tun', os.O_RDWR)"),
    ),
    dump(
        "perf-event",
        python!("b = ctypes.create_string_buffer(struct.pack('IIQQQQQ', 1, 112, 0, 0, 0, 0, 0x21), 128)"
            "assert libc.syscall(298, b, 0, -1, -1, 0) > 0"),
    ),
    dump(
        "bpf-object",
        python!("b = ctypes.create_string_buffer(struct.pack('IIIII', 1, 4, 4, 1, 0), 128)"
            "assert libc.syscall(321, 0, b, 72) > 0"),
    ),
    dump("userfaultfd", python!("assert libc.syscall(323, 0) > 0")),
    dump(
        "io-uring",
        python!("assert libc.syscall(425, 4, ctypes.create_string_buffer(120)) > 0"),
    ),
    dump(
        "descriptor-unsupported",
        python!("assert libc.syscall(444, ctypes.create_string_buffer(b'\\x01', 8), 8, 0) > 0"),
    ),
    dump("pidfd-outside-tree", python!("os.pidfd_open(1)")),
    // Sockets.
    LiveCause {
        peer: Peer::UnixDatagram,
        ..dump(
            "unix-socket-external-peer",
            python!(
                "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect('{dir}/peer')"
            ),
        )
    },
    LiveCause {
        peer: Peer::UnixStream,
        ..dump_with(
            "unix-stream-half-outside",
            python!("s = socket.socket(socket.AF_UNIX); s.connect('{dir}/peer')"),
            &[Opt::ExtUnixSk],
        )
    },
    LiveCause {
        peer: Peer::Tcp,
        ..dump(
            "tcp-established",
            python!("s = socket.create_connection(('127.0.0.1', {port}))"),
        )
    },
    dump(
        "tcp-in-flight",
        python!("l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(5)"
            "c = socket.create_connection(l.getsockname())"),
    ),
    dump(
        "mptcp-socket",
        python!("l = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)"
            "l.bind(('127.0.0.1', 0)); l.listen(5)"),
    ),
    dump(
        "udp-corked",
        python!("s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('127.0.0.1', 9))"
            "s.setsockopt(socket.IPPROTO_UDP, 1, 1); s.send(b'x')"),
    ),
    dump(
        "netlink-unread-data",
        python!("s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); s.bind((0, 0))"
            "s.send(struct.pack('IHHIIBxHiII', 32, 18, 0x301, 1, 0, 0, 0, 0, 0, 0))"),
    ),
    dump(
        "socket-family-unsupported",
        python!("s = socket.socket(socket.AF_VSOCK)"),
    ),
    // Mounts, network, namespaces.
    LiveCause {
        unshare: &["--mount"],
        ..dump(
            "mount-filesystem-unsupported",
            python_at_home!("os.mkdir('{dir}/mount')"
                "assert libc.mount(b'none', b'{dir}/mount', b'ramfs', 0, None) == 0"),
        )
    },
    LiveCause {
        unshare: &["--mount"],
        ..dump(
            "fuse-mount",
            python_at_home!("os.mkdir('{dir}/mount')"
                "f = os.open('/dev/fuse', os.O_RDWR)"
                "o = b'fd=%d,rootmode=40000,user_id=0,group_id=0' % f"
                "assert libc.mount(b'none', b'{dir}/mount', b'fuse', 0, o) == 0"
                "os.close(f)"),
        )
    },
    LiveCause {
        unshare: &["--net"],
        ..dump(
            "network-link-unsupported",
            python!("import subprocess"
                "subprocess.run(['ip', 'link', 'add', 'v0', 'type', 'vxlan', 'id', '5', 'dstport', '4789'], check=True)"),
        )
    },
    LiveCause {
        unshare: &["--net"],
        criu_path: Some("/nonexistent"),
        ..dump_with("iptables-missing", python!(), &[Opt::LockWithIptables])
    },
    dump(
        "sysv-shm-outside-ipcns",
        python!("libc.shmat.restype = ctypes.c_void_p"
            "i = libc.shmget(0, 4096, 0o1600); libc.shmat(i, None, 0); libc.shmctl(i, 0, None)"),
    ),
    dump(
        "nested-namespace",
        python!("r, w = os.pipe()"
            "if os.fork() == 0:"
            "  libc.prctl(1, 9); assert libc.unshare(0x04000000) == 0; os.write(w, b'x')"
            "  while True: time.sleep(60)"
            "os.read(r, 1)"),
    ),
    // Processes and options.
    LiveCause {
        own_session: false,
        ..dump("shell-job-tty", python!())
    },
    LiveCause {
        companion: Some(python!(
            "assert libc.ptrace(0x4206, {pid}, None, None) == 0"
        )),
        ..dump("task-not-seizable", python!())
    },
    // Only on kernels without CONFIG_MEM_SOFT_DIRTY.
    dump_with("no-soft-dirty", python!(), &[Opt::TrackMem]),
    dump_with(
        "freezer-not-a-cgroup",
        python!(),
        &[Opt::FreezeCgroup("/tmp")],
    ),
    dump_with(
        "cgroup-properties-syntax",
        python!(),
        &[Opt::CgroupProps("foo bar")],
    ),
    dump_with("page-server-unreachable", python!(), &[Opt::PageServer(1)]),
    dump_with(
        "parent-images-missing",
        python!(),
        &[Opt::PrevImagesDir("../nowhere")],
    ),
    // Restores.
    restore(
        "file-size-changed",
        python!("f = open('{dir}/file', 'w'); f.write('hello'); f.flush()"),
        once!("open('{dir}/file', 'a').write('more')"),
    ),
    restore(
        "file-mode-changed",
        python!("f = open('{dir}/file', 'w'); f.write('hello'); f.flush()"),
        once!("os.chmod('{dir}/file', 0o600)"),
    ),
    restore(
        "file-missing",
        python!("f = open('{dir}/file', 'w'); f.write('hello'); f.flush()"),
        once!("os.unlink('{dir}/file')"),
    ),
    restore(
        "file-build-id-changed",
        python!("import shutil"
            "shutil.copyfile('/bin/true', '{dir}/elf'); f = open('{dir}/elf', 'rb')"),
        // The first byte of the build-id, which follows the header of its note.
        once!("b = open('{dir}/elf', 'rb').read()"
            "n = b'\\x04\\0\\0\\0\\x14\\0\\0\\0\\x03\\0\\0\\0GNU\\0'"
            "i = b.index(n) + len(n)"
            "open('{dir}/elf', 'wb').write(b[:i] + bytes([b[i] ^ 255]) + b[i + 1:])"),
    ),
    restore(
        "watched-path-missing",
        python!("os.mkdir('{dir}/watched')"
            "libc.inotify_add_watch(libc.inotify_init(), b'{dir}/watched', 0xfff)"),
        once!("os.rmdir('{dir}/watched')"),
    ),
    LiveCause {
        dump: &[Opt::LeaveRunning],
        restore: Some(Restore {
            between: None,
            options: &[],
        }),
        ..dump("pid-in-use", python!())
    },
    restore(
        "inet-address-in-use",
        python!("l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(5)"
            "open('{dir}/port', 'w').write(str(l.getsockname()[1]))"),
        python!(
            "l = socket.socket(); l.bind(('127.0.0.1', int(open('{dir}/port').read()))); l.listen(5)"
        ),
    ),
    restore(
        "unix-address-in-use",
        python!("l = socket.socket(socket.AF_UNIX); l.bind('\\0{dir}'); l.listen(5)"),
        python!("l = socket.socket(socket.AF_UNIX); l.bind('\\0{dir}'); l.listen(5)"),
    ),
    restore(
        "unix-directory-missing",
        python!("os.mkdir('{dir}/run')"
            "l = socket.socket(socket.AF_UNIX); l.bind('{dir}/run/s'); l.listen(5)"),
        once!("os.unlink('{dir}/run/s'); os.rmdir('{dir}/run')"),
    ),
    LiveCause {
        peer: Peer::UnixDatagram,
        dump: &[Opt::ExtUnixSk],
        restore: Some(Restore {
            between: Some(once!("os.unlink('{dir}/peer')")),
            options: &[Opt::ExtUnixSk],
        }),
        ..dump(
            "unix-peer-missing",
            python!(
                "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect('{dir}/peer')"
            ),
        )
    },
    // In a network namespace of its own, so that the lock that the dump leaves ends with it.
    LiveCause {
        unshare: &["--net"],
        dump: &[Opt::TcpEstablished],
        restore: Some(Restore {
            between: None,
            options: &[],
        }),
        ..dump(
            "tcp-established-in-image",
            python!("import subprocess"
                "subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)"
                "l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(5)"
                "c = socket.create_connection(l.getsockname()); d, _ = l.accept(); l.close()"),
        )
    },
    LiveCause {
        peer: Peer::Tcp,
        dump: &[Opt::TcpClose],
        restore: Some(Restore {
            between: None,
            options: &[],
        }),
        ..dump(
            "tcp-close-needed",
            python!("s = socket.create_connection(('127.0.0.1', {port}))"),
        )
    },
    restore(
        "no-checkpoint-here",
        python!(),
        once!("for f in glob.glob('{images}/*.img'): os.unlink(f)"),
    ),
    restore(
        "image-missing",
        python!(),
        once!("for f in glob.glob('{images}/pagemap-*.img'): os.unlink(f)"),
    ),
    restore(
        "image-not-criu",
        python!(),
        once!("f = open('{images}/pstree.img', 'r+b'); f.seek(4); f.write(b'ABCD')"),
    ),
    restore(
        "image-truncated",
        python!(),
        once!("os.truncate('{images}/pstree.img', 12)"),
    ),
    restore(
        "image-pages-unreadable",
        python!(),
        once!("for f in glob.glob('{images}/pages-*.img'): os.unlink(f)"),
    ),
    LiveCause {
        restore: Some(Restore {
            between: None,
            options: &[Opt::LsmProfile("apparmor:criu-live-causes")],
        }),
        ..dump("lsm-not-in-kernel", python!())
    },
    LiveCause {
        restore: Some(Restore {
            between: None,
            options: &[Opt::LazyPages],
        }),
        ..dump("lazy-pages-daemon-missing", python!())
    },
];
