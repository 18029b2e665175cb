//! The request's options, callbacks, and CRIU as a program.

use super::{
    ANY, Area, DUMP, KnownCause, cause, error, live, live_on, message, of_binary, of_binary_on,
};

pub(super) const CAUSES: &[KnownCause] = &[
    cause(
        "option-unknown",
        Area::Options,
        ANY,
        "CRIU does not know the option {option}.",
        "Check the configuration files that apply: /etc/criu/default.conf, ~/.criu/default.conf, \
         $CRIU_CONFIG_FILE, and config_file of the request. The option may also be newer than this \
         CRIU.",
        &[
            message("{program}: unrecognized option '{option}'"),
            message("{program}: option '{option}' is ambiguous; {*}"),
            message("{program}: invalid option -- '{option}'"),
        ],
        &[
            live("criu: unrecognized option '--frobnicate'"),
            live("/usr/sbin/criu: unrecognized option '--frobnicate'"),
            live("/usr/sbin/criu: invalid option -- 'Z'"),
            live(
                "criu: option '--leave' is ambiguous; possibilities: '--leave-stopped' \
                 '--leave-running'",
            ),
        ],
    ),
    cause(
        "option-value",
        Area::Options,
        ANY,
        "{value} is not a value that the option {option|it was given to} takes.",
        "Check the value in the request and in the configuration files against `criu --help`.",
        &[
            error("invalid argument for {option}: {value}"),
            error("Unknown cgroups mode `{value}' selected"),
            error("Invalid value for {option}: {value}"),
            error("Unsupported empty namespace: {value}"),
            error("Unknown file validation method `{value}' selected"),
            error("Unknown FPU mode `{value}' selected"),
        ],
        &[
            live("Error (criu/config.c:1073): invalid argument for --port: 0"),
            live("Error (criu/config.c:535): Unknown cgroups mode `bogus' selected"),
            live("Error (criu/config.c:1044): Invalid value for --network-lock: bogus"),
            live("Error (criu/config.c:974): Unsupported empty namespace: pid"),
            live("Error (criu/config.c:592): Unknown file validation method `bogus' selected"),
            live("Error (criu/config.c:506): Unknown FPU mode `bogus' selected"),
        ],
    ),
    cause(
        "option-out-of-place",
        Area::Options,
        ANY,
        "The option {option} does not go with this request.",
        "Leave the option out, or use it with the request it belongs to.",
        &[
            error("Option {option} is only valid on restore"),
            error("{option} is restore-only option"),
            error("{option} requires a command"),
            error("{option} is available for the restore command only"),
            error("{option} only makes sense with {other}"),
            error("{option} and {other} cannot be used together"),
            error("{option} cannot be used with the {other} command"),
            error("Cannot pre-dump with {option}"),
            error("Conflicting flags: {option} and {other}"),
            error("{option} is not allowed in standalone service"),
        ],
        &[
            live(
                "(00.043336) Error (criu/config.c:1121): Option --mntns-compat-mode is only valid \
                 on restore",
            ),
            live(
                "Error (criu/crtools.c:236): --restore-detached and --exec-cmd cannot be used \
                 together",
            ),
            live("Error (criu/crtools.c:313): Cannot pre-dump with --lazy-pages"),
            live("Error (criu/crtools.c:292): --inherit-fd is restore-only option"),
            live(
                "Error (criu/config.c:1098): --restore-sibling only makes sense with \
                 --restore-detached",
            ),
            of_binary("--exec-cmd requires a command"),
            of_binary("--exec-cmd is available for the restore command only"),
            of_binary("--stream cannot be used with the %s command"),
            of_binary("Conflicting flags: --join-ns and --empty-ns"),
            of_binary("rst_sibling is not allowed in standalone service"),
        ],
    ),
    cause(
        "pid-not-given",
        Area::Options,
        ANY,
        "The dump was not told which process to dump.",
        "Name the root of the tree: --tree PID.",
        &[error("pid not specified")],
        &[live("Error (criu/crtools.c:583): pid not specified")],
    ),
    cause(
        "pidfd-store-unusable",
        Area::Options,
        ANY,
        "The descriptor given as pidfd store is not a Unix datagram socket of its own.",
        "Pass an unbound AF_UNIX SOCK_DGRAM socket as pidfd_store_sk, the same one in every \
         iteration.",
        &[
            error("Can't get socket type (fd: {fd#}): {error}"),
            error("Pidfd store socket must be of type SOCK_DGRAM"),
            error("Pidfd store socket must be AF_UNIX"),
            error("The same socket from the previous iteration should be passed"),
        ],
        &[
            live(
                "(00.038735) Error (criu/pidfd-store.c:71): Can't get socket type (fd: 10): Socket \
                 operation on non-socket",
            ),
            of_binary("Pidfd store socket must be of type SOCK_DGRAM"),
            of_binary("Pidfd store socket must be AF_UNIX"),
            of_binary("The same socket from the previous iteration should be passed"),
        ],
    ),
    cause(
        "request-not-understood",
        Area::Options,
        ANY,
        "CRIU did not accept the request: {reason}.",
        "The request's type is unknown to this CRIU or not allowed at this point of the \
         connection.",
        &[error("RPC error: {reason}: {*}")],
        &[live(
            "Error (criu/cr-service.c:148): RPC error: Invalid req: Success",
        )],
    ),
    cause(
        "service-address-unusable",
        Area::Options,
        ANY,
        "The service's socket cannot be made: {error}.",
        "Check --address: its directory must exist, and the path must be shorter than 108 bytes.",
        &[error("Can't bind: {error}")],
        &[live(
            "(00.056045) Error (criu/cr-service.c:1528): Can't bind: No such file or directory",
        )],
    ),
    cause(
        "hook-refused",
        Area::Hooks,
        ANY,
        "A callback of the client refused to go on.",
        "The reason is with the callback, not with CRIU: look at its own error.",
        &[error("RPC client reported script error")],
        &[live(
            "(00.040241) Error (criu/cr-service.c:235): RPC client reported script error",
        )],
    ),
    cause(
        "action-script-failed",
        Area::Hooks,
        ANY,
        "The action script {script} failed with status {status}.",
        "Run the script by hand with the CRTOOLS_* variables; what it printed is in the log before \
         this line.",
        &[error("Script {script} exited with {status#}")],
        &[live(
            "(00.121067) Error (criu/action-scripts.c:94): Script /bin/false exited with -1",
        )],
    ),
    cause(
        "program-not-runnable",
        Area::Hooks,
        ANY,
        "A program that CRIU was told to run does not start: {error}.",
        "Check the path (--action-script, --exec-cmd) and its permission to execute.",
        &[
            error("execvp(\"/{*}\", ...) failed: {error}"),
            error("Failed to exec command {*}: {error}"),
        ],
        &[
            live(
                "Error (criu/util.c:642): execvp(\"/nonexistent/script\", ...) failed: No such \
                 file or directory",
            ),
            of_binary("Failed to exec command %s: %s"),
        ],
    ),
    cause(
        "criu-library-missing",
        Area::Criu,
        ANY,
        "The criu program does not start: the library {library} is missing.",
        "Install the package that holds {library}, or reinstall criu.",
        &[message(
            "{program}: error while loading shared libraries: {library}: {*}",
        )],
        &[live(
            "/tmp/lab/criu-nolib: error while loading shared libraries: libprotobuf-c.so.9: cannot \
             open shared object file: No such file or directory",
        )],
    ),
    cause(
        "compression-not-built",
        Area::Build,
        ANY,
        "This CRIU was built without LZ4: it neither writes nor reads compressed memory images.",
        "Dump without --compress; to restore images that are compressed, use a CRIU that was built \
         with LZ4 (CONFIG_LZ4).",
        &[
            error("Memory page compression requires CRIU built with LZ4 support (CONFIG_LZ4)"),
            error("LZ4 support is required for this image chain"),
            error(
                "Image uses memory page compression but CRIU was built without LZ4 support \
                 (CONFIG_LZ4)",
            ),
            error(
                "Pagemap contains compressed pages but CRIU was built without LZ4 support \
                 (CONFIG_LZ4)",
            ),
        ],
        &[
            live_on(
                "4.3",
                "Error (criu/config.c:1236): Memory page compression requires CRIU built with LZ4 \
                 support (CONFIG_LZ4)",
            ),
            of_binary_on("4.3", "LZ4 support is required for this image chain"),
            of_binary_on(
                "4.3",
                "Image uses memory page compression but CRIU was built without LZ4 support \
                 (CONFIG_LZ4)",
            ),
            of_binary_on(
                "4.3",
                "Pagemap contains compressed pages but CRIU was built without LZ4 support \
                 (CONFIG_LZ4)",
            ),
        ],
    ),
    cause(
        "criu-bug",
        Area::Criu,
        ANY,
        "CRIU stopped at an internal check ({file}, line {line}).",
        "Try another CRIU version; if images were edited or are incomplete, restore from a whole \
         copy. Otherwise report it to the CRIU project with the log (level 4).",
        &[
            error("BUG at {file}:{line#}"),
            error("{subsystem}: BUG at {file}:{line#}"),
        ],
        &[
            live("(00.042787)  18062: Error (criu/files.c:244): BUG at criu/files.c:244"),
            of_binary("mnt-v2: BUG at %s:%d"),
        ],
    )
    .general(),
    cause(
        "request-refused",
        Area::Options,
        ANY,
        "CRIU refused the request before it began: an option, a directory, the log or its \
         capabilities (EBADRQC).",
        "Check the request's options and directories; what CRIU said is on its standard error, if \
         anything (bits of empty_ns other than the network's, and unknown values of enumerations, \
         are refused without a word).",
        &[],
        &[],
    ),
    cause(
        "root-task-not-seized",
        Area::Processes,
        DUMP,
        "The root task could not be seized (ESRCH): it is gone, traced by another program, or \
         outside the cgroup to freeze.",
        "Check the pid, TracerPid in /proc/PID/status, and --freeze-cgroup.",
        &[],
        &[],
    ),
    cause(
        "cpuinfo-unsupported",
        Area::Cpu,
        ANY,
        "CRIU cannot describe or compare processors of this architecture.",
        "Do without cpuinfo here; restore on the same kind of machine only.",
        &[],
        &[],
    ),
    cause(
        "criu-crashed",
        Area::Criu,
        ANY,
        "CRIU was killed by signal {signal}.",
        "Signals 11 and 6 are crashes of CRIU: incomplete images and requests without options \
         provoke them; try another version and report it with the log (level 4). Signal 9 may come \
         from the out-of-memory killer.",
        &[],
        &[],
    ),
];
