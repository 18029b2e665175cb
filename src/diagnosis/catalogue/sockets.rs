//! Sockets of every family.

use super::{Area, DUMP, KnownCause, RESTORE, cause, error, live, live_on, of_binary};

pub(super) const CAUSES: &[KnownCause] = &[
    cause(
        "unix-socket-external-peer",
        Area::Sockets,
        DUMP,
        "A task has a Unix socket whose other end belongs to a process outside the tree.",
        "Let the program close the connection. Datagram sockets bound to a path can be kept with \
         --ext-unix-sk on both sides; a particular socket with --external unix[INODE]. Connected \
         streams (D-Bus, the journal, a shell's job) cannot.",
        &[
            error("unix: External socket is used. Consider using --ext-unix-sk option."),
            error("unix: Can't dump name-less external socket."),
        ],
        &[
            live(
                "(00.042911) Error (criu/sk-unix.c:874): unix: External socket is used. Consider \
                 using --ext-unix-sk option.",
            ),
            live_on(
                "4.3",
                "(00.046640) Error (criu/sk-unix.c:893): unix: External socket is used. Consider \
                 using --ext-unix-sk option.",
            ),
            of_binary("unix: Can't dump name-less external socket."),
        ],
    ),
    cause(
        "unix-stream-half-outside",
        Area::Sockets,
        DUMP,
        "One end of a connected Unix stream is in the tree, the other is not.",
        "No option can keep half a connection: let the program close it, include the other \
         process, or connect again after the restore. If the end is to be replaced: --external \
         unix[INODE] on dump, --inherit-fd fd[N]:socket[INODE] on restore.",
        &[error(
            "unix: Can't dump half of stream unix connection. name: {*}; peer name: {*}",
        )],
        &[live(
            "(00.048268) Error (criu/sk-unix.c:881): unix: Can't dump half of stream unix \
             connection. name: (null); peer name: (null)",
        )],
    ),
    cause(
        "unix-peer-unreachable",
        Area::Sockets,
        DUMP,
        "Unix socket {inode} is connected to socket {peer}, which CRIU cannot reach.",
        "The other end is probably in another namespace or no longer open anywhere; let the \
         program close the connection.",
        &[
            error("unix: Unix socket {inode#} with unreachable peer {peer#} ({back#})"),
            error("unix: Unix socket {inode#} without peer {peer#}"),
        ],
        &[
            of_binary("unix: Unix socket %u with unreachable peer %u (%u)"),
            of_binary("unix: Unix socket %u without peer %u"),
        ],
    ),
    cause(
        "unix-external-in-image",
        Area::Sockets,
        RESTORE,
        "The checkpoint holds a Unix socket with an external peer.",
        "Restore with --ext-unix-sk, as it was dumped.",
        &[error(
            "unix: External socket found in image. Consider using the --ext-unix-sk option to \
             allow restoring it.",
        )],
        &[of_binary(
            "unix: External socket found in image. Consider using the --ext-unix-sk option to \
             allow restoring it.",
        )],
    ),
    cause(
        "unix-peer-missing",
        Area::Sockets,
        RESTORE,
        "A Unix socket cannot be connected again to its peer outside the tree: {error}.",
        "Start the service that owns the socket before the restore, so that its path exists again.",
        &[error("unix: Can't connect {id#} socket: {error}")],
        &[live(
            "(00.025959)  12606: Error (criu/sk-unix.c:1406): unix: Can't connect 35496 socket: No \
             such file or directory",
        )],
    ),
    cause(
        "unix-address-in-use",
        Area::Sockets,
        RESTORE,
        "The address of a Unix socket is taken by another process.",
        "Stop the process that has it (a second instance of the program, most often), or restore \
         into a network namespace of its own if the address is abstract.",
        &[error(
            "unix: Can't bind id {id} ino {inode#} addr {*}: Address already in use",
        )],
        &[live(
            "(00.040002)  42317: Error (criu/sk-unix.c:1651): unix: Can't bind id 0xb ino 137449 \
             addr : Address already in use",
        )],
    ),
    cause(
        "unix-directory-missing",
        Area::Sockets,
        RESTORE,
        "The directory of the Unix socket {path} does not exist.",
        "Make the directory (often one under /run that was on a tmpfs) before the restore.",
        &[error(
            "unix: Can't bind id {id} ino {inode#} addr {path}: No such file or directory",
        )],
        &[live(
            "(00.027604)  42288: Error (criu/sk-unix.c:1651): unix: Can't bind id 0xb ino 137306 \
             addr /tmp/lab/bound/s: No such file or directory",
        )],
    ),
    cause(
        "tcp-established",
        Area::Sockets,
        DUMP,
        "A task has a TCP connection.",
        "Keep connections with --tcp-established (on dump and on restore; the address must exist \
         where they are restored), or give them up with --tcp-close.",
        &[error(
            "inet: Connected TCP socket, consider using --{*} option.",
        )],
        &[
            live(
                "(00.031825) Error (criu/sk-inet.c:200): inet: Connected TCP socket, consider \
                 using --tcp-established option.",
            ),
            live_on(
                "4.1.1",
                "(00.051353) Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider \
                 using --tcp-established option.",
            ),
        ],
    ),
    cause(
        "tcp-established-in-image",
        Area::Sockets,
        RESTORE,
        "The checkpoint holds TCP connections, and the restore was not told to bring them back.",
        "Restore with --tcp-established (the local address must exist here), or with --tcp-close \
         to drop them.",
        &[error("inet: Connected TCP socket in image")],
        &[live(
            "(00.025463)  12723: Error (criu/sk-inet.c:912): inet: Connected TCP socket in image",
        )],
    ),
    cause(
        "tcp-close-needed",
        Area::Sockets,
        RESTORE,
        "The checkpoint was made with its TCP connections closed.",
        "Restore with --tcp-close.",
        &[error("Need to set the --tcp-close options.")],
        &[live(
            "(00.031745) Error (criu/image.c:94): Need to set the --tcp-close options.",
        )],
    ),
    cause(
        "tcp-in-flight",
        Area::Sockets,
        DUMP,
        "A listening TCP socket has connections that the program has not accepted yet.",
        "Drop them with --skip-in-flight (RPC: tcp_skip_in_flight); clients see a reset and can \
         connect again. Or try once more when the program has caught up.",
        &[error("inet: In-flight connection (l) for {socket}")],
        &[live(
            "(00.030779) Error (criu/sk-inet.c:185): inet: In-flight connection (l) for 935d",
        )],
    ),
    cause(
        "inet-address-in-use",
        Area::Sockets,
        RESTORE,
        "An address that a restored socket is to be bound to is taken by another process.",
        "Stop the process that has the port (the original, perhaps, which was left running), or \
         restore into a network namespace of its own.",
        &[error(
            "inet: Can't bind inet socket (id {id#}): Address already in use",
        )],
        &[live(
            "(00.044627)  12800: Error (criu/sk-inet.c:1059): inet: Can't bind inet socket (id \
             11): Address already in use",
        )],
    ),
    cause(
        "inet-address-missing",
        Area::Sockets,
        RESTORE,
        "A restored socket was bound to an IP address that this system does not have.",
        "Configure the address before the restore (migrations: move it along), or restore into a \
         network namespace that has it.",
        &[
            error("inet: Can't bind inet socket (id {id#}): Cannot assign requested address"),
            error("Can't bind inet socket back: Cannot assign requested address"),
        ],
        &[
            live(
                "(00.073301)  77159: Error (criu/sk-inet.c:1059): inet: Can't bind inet socket (id \
                 11): Cannot assign requested address",
            ),
            live(
                "(00.028903)   5448: Error (soccr/soccr.c:499): Can't bind inet socket back: \
                 Cannot assign requested address",
            ),
        ],
    ),
    cause(
        "mptcp-socket",
        Area::Sockets,
        DUMP,
        "A task has a Multipath TCP socket, which CRIU cannot dump.",
        "Make the program use plain TCP; Go programs: set GODEBUG=multipathtcp=0 in their \
         environment.",
        &[error("inet: Unsupported proto 262 for socket {socket}")],
        &[live(
            "(00.037632) Error (criu/sk-inet.c:137): inet: Unsupported proto 262 for socket 99db",
        )],
    ),
    cause(
        "inet-protocol-unsupported",
        Area::Sockets,
        DUMP,
        "A task has an IP socket of protocol {protocol}, which CRIU cannot dump.",
        "Have the program close it; CRIU knows TCP, UDP, UDP-Lite, ICMP and raw sockets.",
        &[
            error("inet: Unsupported proto {protocol#} for socket {socket}"),
            error(
                "inet: Can't dump {protocol#} inet socket {socket}. Only stream, dgram and raw are \
                 supported.",
            ),
        ],
        &[
            of_binary("inet: Unsupported proto %d for socket %x"),
            of_binary(
                "inet: Can't dump %d inet socket %x. Only stream, dgram and raw are supported.",
            ),
        ],
    ),
    cause(
        "udp-corked",
        Area::Sockets,
        DUMP,
        "A UDP socket is corked: the program is putting a datagram together.",
        "Try again in a moment; the state lasts only as long as the program keeps UDP_CORK set.",
        &[error("inet: Can't dump corked dgram socket {socket}")],
        &[live(
            "(00.041368) Error (criu/sk-inet.c:504): inet: Can't dump corked dgram socket 9a5b",
        )],
    ),
    cause(
        "netlink-unread-data",
        Area::Sockets,
        DUMP,
        "A netlink socket holds messages that the program has not read.",
        "Try again when the program has read them; a program that never does must close the \
         socket.",
        &[error("netlink: The socket has data to read")],
        &[live(
            "(00.034119) Error (criu/sk-netlink.c:77): netlink: The socket has data to read",
        )],
    ),
    cause(
        "socket-family-unsupported",
        Area::Sockets,
        DUMP,
        "A task has a socket of address family {family}, which CRIU cannot dump.",
        "Have the program close it. 40 is AF_VSOCK, 38 AF_ALG, 29 AF_CAN, 31 AF_BLUETOOTH, 44 \
         AF_XDP.",
        &[
            error("sockets: BUG! Unknown socket collected (family {family#})"),
            error("Unknown socket family {family#}"),
        ],
        &[
            live(
                "(00.030580) Error (criu/sockets.c:767): sockets: BUG! Unknown socket collected \
                 (family 40)",
            ),
            of_binary("Unknown socket family %d"),
        ],
    ),
    cause(
        "socket-queue-control-message",
        Area::Sockets,
        DUMP,
        "A Unix socket holds an unread message with control data that CRIU cannot dump.",
        "Try again when the program has read it.",
        &[
            error("skqueue: Control messages in queue, not supported"),
            error("skqueue: More than 1 SCM is not possible"),
        ],
        &[
            of_binary("skqueue: Control messages in queue, not supported"),
            of_binary("skqueue: More than 1 SCM is not possible"),
        ],
    ),
    cause(
        "socket-option-refused",
        Area::Kernel,
        DUMP,
        "The kernel refuses to tell a socket's option {level}:{option}: it is newer than this CRIU \
         expects.",
        "Use a newer CRIU: 4.1.1 fails like this for every TCP socket on Linux 6.18, 4.2 does not.",
        &[error(
            "sockets: Can't get {level#}:{option#} opt: Operation not supported",
        )],
        &[live_on(
            "4.1.1",
            "(00.031742) Error (criu/sockets.c:628): sockets: Can't get 1:16 opt: Operation not \
             supported",
        )],
    ),
    cause(
        "sock-diag-missing",
        Area::Kernel,
        DUMP,
        "The kernel does not list its sockets of one family: a sock_diag module is missing (error \
         {error}).",
        "Load the modules unix_diag, tcp_diag, udp_diag, raw_diag, inet_diag, netlink_diag and \
         af_packet_diag, or build the kernel with them.",
        &[error("sockets: Diag module missing ({error#})")],
        &[of_binary("sockets: Diag module missing (%d)")],
    )
    .general(),
];
