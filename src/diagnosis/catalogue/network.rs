//! Network devices, the network lock, and the tools CRIU runs for both.

use super::{
    ANY, Area, DUMP, KnownCause, RESTORE, cause, error, live, live_on, message, of_binary,
};

pub(super) const CAUSES: &[KnownCause] = &[
    cause(
        "iptables-missing",
        Area::Network,
        ANY,
        "CRIU runs {family|ip}tables to lock the network and cannot find it in its PATH.",
        "Install iptables (with /usr/sbin in CRIU's PATH), or choose another way with \
         --network-lock nftables, or skip — skip only if nothing can reach the connections between \
         dump and restore.",
        &[
            error("execvp(\"{family}tables-restore\", ...) failed: No such file or directory"),
            message("sh: {line#}: {family}tables: not found"),
            message("sh: line {line#}: {family}tables: command not found"),
        ],
        &[
            live(
                "Error (criu/util.c:642): execvp(\"iptables-restore\", ...) failed: No such file \
                 or directory",
            ),
            live(
                "Error (criu/util.c:642): execvp(\"ip6tables-restore\", ...) failed: No such file \
                 or directory",
            ),
            live("sh: 1: iptables: not found"),
            live("sh: line 1: iptables: command not found"),
        ],
    ),
    cause(
        "tool-missing",
        Area::Network,
        ANY,
        "CRIU cannot run the program {tool}: {error}.",
        "Install {tool}, or start CRIU with a PATH that has it (ip comes with iproute2, /usr/sbin \
         is often missing from PATH).",
        &[error("execvp(\"{tool}\", ...) failed: {error}")],
        &[live(
            "Error (criu/util.c:642): execvp(\"ip\", ...) failed: No such file or directory",
        )],
    ),
    cause(
        "network-lock-failed",
        Area::Network,
        DUMP,
        "The network of the tasks could not be locked.",
        "Look at what iptables or nft wrote just before this line. A kernel without the xt_mark \
         match needs --network-lock nftables; --network-lock skip leaves the lock to you.",
        &[
            error("net: Locking network failed: iptables-restore returned {status#}.{*}"),
            error("Iptables configuration failed"),
            error("tcp: Failed to lock TCP connection {socket}"),
            error("Locking network failed using nftables"),
            error("net: Locking network failed using nftables"),
            error("Locking connection failed using nftables"),
        ],
        &[
            live(
                "(00.028078) Error (criu/net.c:3436): net: Locking network failed: \
                 iptables-restore returned -1. This may be connected to disabled \
                 CONFIG_NETFILTER_XT_MARK kernel build config option.",
            ),
            live("(00.032913) Error (criu/netfilter.c:105): Iptables configuration failed"),
            live("(00.032915) Error (criu/sk-tcp.c:81): tcp: Failed to lock TCP connection a6dc"),
            of_binary("Locking network failed using nftables"),
            of_binary("net: Locking network failed using nftables"),
            of_binary("Locking connection failed using nftables"),
        ],
    )
    .general(),
    cause(
        "network-link-unsupported",
        Area::Network,
        DUMP,
        "The network namespace has a device of kind {kind}, which CRIU cannot dump.",
        "Remove the device before the checkpoint (modules such as ipip, sit and gre put one into \
         every new namespace: unload them), or leave the whole namespace to its owner with \
         --external net[INODE]:KEY.",
        &[error(
            "net: Unsupported link {index#} (type {type#} kind {kind})",
        )],
        &[
            live("(00.052298) Error (criu/net.c:650): net: Unsupported link 2 (type 1 kind vxlan)"),
            live_on(
                "4.3",
                "(00.067226) Error (criu/net.c:1009): net: Unsupported link 2 (type 1 kind vxlan)",
            ),
        ],
    ),
    cause(
        "bridge-missing",
        Area::Network,
        RESTORE,
        "The outer end {interface} of a veth pair cannot be put into the bridge {bridge}: {error}.",
        "Create the bridge before the restore, or name another one: --external \
         veth[INNER]:{interface}@BRIDGE.",
        &[error(
            "net: Can't add interface {interface} to bridge {bridge}: {error}",
        )],
        &[live(
            "(00.066344) Error (criu/net.c:3899): net: Can't add interface labv1 to bridge \
             labnobr: No such device",
        )],
    ),
    cause(
        "macvlan-parent-missing",
        Area::Network,
        RESTORE,
        "A macvlan device {interface} is to be restored without its parent device.",
        "Name the parent on this host: --external macvlan[{interface}]:PARENT.",
        &[error("net: a macvlan parent for {interface} is required")],
        &[of_binary("net: a macvlan parent for %s is required")],
    ),
    cause(
        "external-netns-missing",
        Area::Network,
        RESTORE,
        "The tasks belong into an external network namespace that was not handed over.",
        "Open the namespace and pass it under its key: --inherit-fd fd[N]:KEY, KEY as in \
         --external net[INODE]:KEY on dump.",
        &[error("net: Unable to find an external netns: {key}")],
        &[of_binary("net: Unable to find an external netns: %s")],
    ),
    cause(
        "ip-tool-failed",
        Area::Network,
        ANY,
        "The ip tool failed on {what}.",
        "Look at what ip wrote just before this line; iproute2 must be installed and as new as the \
         one of the dump.",
        &[error("net: IP tool failed on {what}")],
        &[
            live(
                "(00.041975)  13375: Error (criu/net.c:2073): net: IP tool failed on addr restore",
            ),
            live("(00.054371) Error (criu/net.c:2073): net: IP tool failed on addr save"),
        ],
    )
    .general(),
    cause(
        "network-privilege-missing",
        Area::Privileges,
        RESTORE,
        "CRIU may not set up sockets as they were: it runs without CAP_NET_ADMIN.",
        "Run CRIU with CAP_NET_ADMIN, or as root in the user namespace that owns the network \
         namespace.",
        &[error(
            "sockets: Unable to set socket SO_SNDBUFFORCE/SO_RCVBUFFORCE: Operation not permitted",
        )],
        &[live(
            "(00.046467) Error (criu/sockets.c:495): sockets: Unable to set socket \
             SO_SNDBUFFORCE/SO_RCVBUFFORCE: Operation not permitted",
        )],
    ),
];
