//! Page servers, lazy pages and TLS.

use super::{ANY, Area, DUMP, KnownCause, RESTORE, cause, error, live, message, of_binary};

pub(super) const CAUSES: &[KnownCause] = &[
    cause(
        "page-server-unreachable",
        Area::Transfer,
        DUMP,
        "The page server at {address} does not answer.",
        "Start `criu page-server` on the receiving side first (a new one for each dump), and check \
         address, port and firewall.",
        &[message("Can't connect to server {address}")],
        &[live("(00.094189) Can't connect to server 127.0.0.1:1")],
    ),
    cause(
        "page-server-lost",
        Area::Transfer,
        ANY,
        "The connection to the other side broke while memory was being sent.",
        "Look at the log of the page server on the other side: a full disk, or a server that \
         serves one dump only and was used a second time.",
        &[
            error("page-xfer: The page server doesn't answer: {error}"),
            error("page-xfer: Can't send PSI {command#} to server: {error}"),
            error("page-xfer: Can't write pages to socket: {error}"),
            error("page-xfer: Remote side closed connection"),
            error("page-xfer: A socket was closed unexpectedly"),
            error("page-xfer: Can't write to page server: {error}"),
        ],
        &[
            live(
                "(00.091992) Error (criu/page-xfer.c:244): page-xfer: The page server doesn't \
                 answer: Invalid argument",
            ),
            live(
                "(00.095445) Error (criu/page-xfer.c:150): page-xfer: Can't send PSI 4131 to \
                 server: Broken pipe",
            ),
            of_binary("page-xfer: Can't write pages to socket: %s"),
            of_binary("page-xfer: Remote side closed connection"),
            of_binary("page-xfer: A socket was closed unexpectedly"),
            of_binary("page-xfer: Can't write to page server: %s"),
        ],
    ),
    cause(
        "page-server-address",
        Area::Transfer,
        ANY,
        "{address} is not an address that CRIU can use.",
        "A page server listens on a numeric IPv4 or IPv6 address; a client may also give a host \
         name that resolves. CRIU 4.2.1 crashes after failing to resolve one.",
        &[
            error(
                "Invalid server address \"{address}\". The address must be in IPv4 or IPv6 format.",
            ),
            error("Failed to resolve hostname: {address}: {error}"),
        ],
        &[
            live(
                "(00.036691) Error (criu/util.c:1198): Invalid server address \"nohost\". The \
                 address must be in IPv4 or IPv6 format.",
            ),
            live(
                "(00.067362) Error (criu/util.c:1342): Failed to resolve hostname: \
                 no.such.host.invalid: No such file or directory",
            ),
        ],
    ),
    cause(
        "page-server-port-in-use",
        Area::Transfer,
        ANY,
        "The port for the {kind} server is taken.",
        "Choose another --port; over RPC, port 0 lets the kernel pick one and the answer names it.",
        &[error("Can't bind {kind} server: Address already in use")],
        &[live(
            "(00.075661) Error (criu/util.c:1239): Can't bind page server: Address already in use",
        )],
    ),
    cause(
        "server-cannot-listen",
        Area::Transfer,
        ANY,
        "The {kind} server cannot listen: {error}.",
        "Check --address (it must be one of this host) and --port.",
        &[
            error("Can't bind {kind} server: {error}"),
            error("Can't listen on {kind} server socket: {error}"),
        ],
        &[
            of_binary("Can't bind %s server: %s"),
            of_binary("Can't listen on %s server socket: %s"),
        ],
    )
    .general(),
    cause(
        "tls-credentials",
        Area::Transfer,
        ANY,
        "TLS could not be set up ({error|the certificate is not valid}).",
        "Name the files with --tls-cacert, --tls-cert and --tls-key (the defaults are under \
         /etc/pki); they must be readable, in PEM, and belong together.",
        &[
            error("tls: Failed to set certificate/private key pair: {error}"),
            error("tls: {what}: {error}"),
            error("tls: Invalid certificate"),
        ],
        &[
            live(
                "(00.123508) Error (criu/tls.c:302): tls: Failed to set certificate/private key \
                 pair: Error while reading file.",
            ),
            of_binary("tls: %s: %s"),
            of_binary("tls: Invalid certificate"),
        ],
    ),
    cause(
        "lazy-pages-daemon-missing",
        Area::Transfer,
        RESTORE,
        "The lazy-pages daemon cannot be reached at {socket}: {error}.",
        "Start `criu lazy-pages` first, with the same work directory as the restore (--work-dir): \
         its socket is made there. --status-fd tells when it is ready.",
        &[error("uffd: connect to {socket} failed: {error}")],
        &[live(
            "(00.079725) Error (criu/uffd.c:349): uffd: connect to lazy-pages.socket failed: No \
             such file or directory",
        )],
    ),
    cause(
        "lazy-pages-unsupported",
        Area::Kernel,
        ANY,
        "The kernel does not offer userfaultfd to CRIU.",
        "Lazy pages need CONFIG_USERFAULTFD, and privileges or vm.unprivileged_userfaultfd=1; \
         restore without --lazy-pages otherwise.",
        &[
            error("Lazy pages are not available"),
            error("UFFD is not supported"),
            error("uffd: Unable to open an userfaultfd descriptor: {error}"),
        ],
        &[
            of_binary("Lazy pages are not available"),
            of_binary("UFFD is not supported"),
            of_binary("uffd: Unable to open an userfaultfd descriptor: %s"),
        ],
    ),
    cause(
        "image-streamer-missing",
        Area::Transfer,
        ANY,
        "The image streamer cannot be reached at {socket}: {error}.",
        "Start the streamer before CRIU, in the images directory that --stream works on.",
        &[error(
            "Unable to connect to image streamer socket: {socket}: {error}",
        )],
        &[of_binary(
            "Unable to connect to image streamer socket: %s: %s",
        )],
    ),
];
