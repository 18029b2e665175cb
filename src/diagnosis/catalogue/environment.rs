//! What surrounds the tasks: privileges, kernel, processor, control groups, security modules.

use super::{
    ANY, Area, DUMP, KnownCause, RESTORE, cause, error, live, live_on, message, of_binary,
    reported, warning,
};

pub(super) const CAUSES: &[KnownCause] = &[
    cause(
        "missing-capability",
        Area::Privileges,
        ANY,
        "CRIU runs without the capabilities it needs.",
        "Run it as root, or give it CAP_CHECKPOINT_RESTORE (`setcap cap_checkpoint_restore+eip` on \
         the program) and use --unprivileged; that covers processes of the same user only.",
        &[
            message(
                "CRIU needs to have the CAP_SYS_ADMIN or the CAP_CHECKPOINT_RESTORE capability:{*}",
            ),
            message("Effective capability {capability#} missing"),
            error("You need to be root to run this command"),
        ],
        &[
            live("CRIU needs to have the CAP_SYS_ADMIN or the CAP_CHECKPOINT_RESTORE capability: "),
            live("(00.000000) Effective capability 40 missing"),
            live_on(
                "4.1.1",
                "CRIU needs to have the CAP_SYS_ADMIN or the CAP_CHECKPOINT_RESTORE capability: ",
            ),
            of_binary("You need to be root to run this command"),
        ],
    ),
    cause(
        "namespaces-not-allowed",
        Area::Privileges,
        ANY,
        "CRIU may not create a network namespace, which it does to probe the kernel.",
        "Run CRIU with CAP_SYS_ADMIN. In a container, that takes a privileged one and a seccomp \
         profile that allows unshare.",
        &[
            error("net: Unable create a network namespace: Operation not permitted"),
            error("Unable create a network namespace: Operation not permitted"),
        ],
        &[
            live(
                "(00.007163) Error (criu/net.c:4121): net: Unable create a network namespace: \
                 Operation not permitted",
            ),
            live(
                "(00.008150) Error (criu/kerndat.c:1601): Unable create a network namespace: \
                 Operation not permitted",
            ),
        ],
    ),
    cause(
        "kernel-probe-failed",
        Area::Kernel,
        ANY,
        "CRIU could not find out what the kernel offers.",
        "The lines before this one name the feature. Often CRIU lacks privileges, or is much older \
         than the kernel; a stale /run/criu.kdat can be deleted.",
        &[
            error("Could not initialize kernel features detection."),
            error("{probe} failed when initializing kerndat."),
        ],
        &[
            live(
                "(00.008273) Error (criu/crtools.c:280): Could not initialize kernel features \
                 detection.",
            ),
            live(
                "(00.008226) Error (criu/kerndat.c:1922): kerndat_has_nftables_concat failed when \
                 initializing kerndat.",
            ),
        ],
    )
    .general(),
    cause(
        "vdso-too-new",
        Area::Kernel,
        ANY,
        "This CRIU does not understand the vDSO of the running kernel: the kernel is too new for \
         it.",
        "Use a newer CRIU (3.17.1 fails like this on Linux 6.18, 4.1.1 does not).",
        &[error("vdso: Unexpected rt vDSO area bounds")],
        &[
            live_on(
                "3.17.1",
                "(00.013662) Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds",
            ),
            of_binary("vdso: Unexpected rt vDSO area bounds"),
        ],
    ),
    cause(
        "no-soft-dirty",
        Area::Kernel,
        ANY,
        "The kernel cannot track changes to memory (CONFIG_MEM_SOFT_DIRTY is off).",
        "Do without pre-dumps and --track-mem, or boot a kernel with CONFIG_MEM_SOFT_DIRTY=y \
         (x86-64, most distributions have it). `criu check --feature mem_dirty_track` tells.",
        &[
            error("Tracking memory is not available. Consider omitting --track-mem option."),
            error("BUG at criu/mem.c:{line#}"),
            warning("Dirty tracking is OFF. Memory snapshot will not work."),
        ],
        &[
            live(
                "(00.039656) Error (criu/config.c:1131): Tracking memory is not available. \
                 Consider omitting --track-mem option.",
            ),
            live("(00.036658) Error (criu/mem.c:46): BUG at criu/mem.c:46"),
            live_on(
                "4.1.1",
                "(00.045522) Error (criu/mem.c:45): BUG at criu/mem.c:45",
            ),
            live_on(
                "4.3",
                "(00.054981) Error (criu/mem.c:50): BUG at criu/mem.c:50",
            ),
            live(
                "Warn  (criu/cr-check.c:824): Dirty tracking is OFF. Memory snapshot will not \
                 work.",
            ),
        ],
    ),
    cause(
        "feature-unknown",
        Area::Options,
        ANY,
        "This CRIU does not know the feature {feature}.",
        "See `criu check --feature list` for the names.",
        &[error("Unknown feature {feature}")],
        &[live("Error (criu/cr-check.c:1901): Unknown feature bogus")],
    ),
    cause(
        "cpu-mismatch",
        Area::Cpu,
        ANY,
        "This processor lacks something that the processor of the checkpoint has, or saves its \
         registers differently.",
        "Restore on a machine with the same or a newer processor of the family. --cpu-cap fpu \
         checks less, --cpu-cap none nothing: the program then may be killed by an illegal \
         instruction later.",
        &[
            error("cpu: CPU instruction capabilities do not match run time"),
            error("cpu: CPU capabilities do not match run time"),
            error("cpu: CPU xfeatures has unsupported bits ({bits})"),
            error("cpu: CPU xsave size mismatch ({image#}/{host#})"),
            error("cpu: CPU xsave max size mismatch ({image#}/{host#})"),
            error("cpu: FPU feature required by image is not supported on host ({*})"),
            error("cpu: Image carries {image#} words while {host#} expected"),
        ],
        &[
            live(
                "(00.078538) Error (criu/arch/x86/cpu.c:223): cpu: CPU instruction capabilities do \
                 not match run time",
            ),
            live(
                "(00.079757) Error (criu/arch/x86/cpu.c:297): cpu: CPU capabilities do not match \
                 run time",
            ),
            live(
                "(00.077053) Error (criu/arch/x86/cpu.c:262): cpu: CPU xfeatures has unsupported \
                 bits (0x10000000000)",
            ),
            live(
                "(00.065827) Error (criu/arch/x86/cpu.c:274): cpu: CPU xsave size mismatch \
                 (2496/2432)",
            ),
            live(
                "(00.064792) Error (criu/arch/x86/cpu.c:278): cpu: CPU xsave max size mismatch \
                 (2496/2432)",
            ),
            live(
                "(00.031339) Error (criu/arch/x86/cpu.c:330): cpu: Image carries 5 words while 19 \
                 expected",
            ),
            of_binary(
                "cpu: FPU feature required by image is not supported on host (fpu:%d fxsr:%d \
                 osxsave:%d xsaves:%d)",
            ),
        ],
    ),
    cause(
        "cpuinfo-missing",
        Area::Cpu,
        ANY,
        "The directory holds no cpuinfo.img to compare the processor with.",
        "Write one on the source (`criu cpuinfo dump`, or dump with --cpu-cap cpu) and copy it \
         along.",
        &[error("cpu: No cpuinfo image")],
        &[live(
            "(00.036736) Error (criu/arch/x86/cpu.c:411): cpu: No cpuinfo image",
        )],
    ),
    cause(
        "freezer-not-a-cgroup",
        Area::Cgroups,
        DUMP,
        "The cgroup to freeze is none: it has neither freezer.state nor cgroup.freeze.",
        "Give --freeze-cgroup the full path of a directory of the freezer controller (cgroup v1) \
         or of the unified hierarchy (cgroup v2).",
        &[error(
            "Neither a cgroupv1 (freezer.state) or cgroupv2 (cgroup.freeze) control file found.",
        )],
        &[live(
            "(00.089726) Error (criu/seize.c:1043): Neither a cgroupv1 (freezer.state) or cgroupv2 \
             (cgroup.freeze) control file found.",
        )],
    ),
    cause(
        "freezer-foreign-process",
        Area::Cgroups,
        DUMP,
        "Process {pid} is in the cgroup to freeze but not in the tree to dump.",
        "Move the process elsewhere, or freeze a cgroup that holds the tree alone.",
        &[warning(
            "Unexpected process {pid#} in the freezer cgroup (status {status})",
        )],
        &[live(
            "(00.086065) Warn  (criu/seize.c:404): Unexpected process 32524 in the freezer cgroup \
             (status 0x80057f)",
        )],
    ),
    cause(
        "cgroup-missing",
        Area::Cgroups,
        RESTORE,
        "The cgroup {cgroup}, in which a task was, does not exist.",
        "Create it, or let CRIU do so with --manage-cgroups=soft; --manage-cgroups=ignore leaves \
         the tasks in CRIU's own; --cgroup-root CONTROLLER:/PATH puts them elsewhere.",
        &[error("cg: Cgroup dir {cgroup} doesn't exist")],
        &[live(
            "(00.444879) Error (criu/cgroup.c:1854): cg: Cgroup dir freezer/labA doesn't exist",
        )],
    ),
    cause(
        "cgroup-exists",
        Area::Cgroups,
        RESTORE,
        "A cgroup of the checkpoint exists already, and --manage-cgroups=strict forbids that.",
        "Remove the cgroup, or restore with --manage-cgroups=soft.",
        &[error("cg: Abort restore of existing cgroups")],
        &[live(
            "(00.117010) Error (criu/cgroup.c:1877): cg: Abort restore of existing cgroups",
        )],
    ),
    cause(
        "cgroup-properties-syntax",
        Area::Cgroups,
        DUMP,
        "The description of cgroup properties cannot be parsed.",
        "Check --cgroup-props or --cgroup-props-file against the manual: YAML-like, with \
         `strategy:` and `properties:` for each controller.",
        &[
            error("cg-prop: Expect{*}"),
            error("cg-prop: Unknown strategy \"{strategy}\" in controller's {*} stream"),
            error("cg-prop: Failed to parse file `{file}'"),
        ],
        &[
            live("(00.243197) Error (criu/cgroup-props.c:259): cg-prop: Expecting controller name"),
            of_binary("cg-prop: Unknown strategy \"%s\" in controller's %s stream"),
            of_binary("cg-prop: Failed to parse file `%s'"),
        ],
    ),
    cause(
        "cgroup-refused",
        Area::Cgroups,
        RESTORE,
        "A cgroup could not be set up as it was: {error}.",
        "Restore with --manage-cgroups=ignore to leave cgroups alone, or with \
         --manage-cgroups=none after setting them up; the kernel refuses what a parent cgroup does \
         not allow.",
        &[
            error("cg: Failed writing {value} to {file}: {error}"),
            error("cg: Can't move into {cgroup} ({*}): {error}"),
            error("cg: Can't make cgroup dir {cgroup}: {error}"),
        ],
        &[
            of_binary("cg: Failed writing %s to %s: %s"),
            of_binary("cg: Can't move into %s (%d/%d): %s"),
            of_binary("cg: Can't make cgroup dir %s: %s"),
        ],
    ),
    cause(
        "lsm-not-in-kernel",
        Area::Privileges,
        RESTORE,
        "A profile of the security module {lsm} is asked for, and this kernel runs without it.",
        "Leave --lsm-profile out, or give --lsm-profile none: on a host without {lsm}.",
        &[error("{lsm} LSM specified but {*} not supported by kernel")],
        &[
            live(
                "(00.038943) Error (criu/lsm.c:406): apparmor LSM specified but apparmor not \
                 supported by kernel",
            ),
            live(
                "(00.031520) Error (criu/lsm.c:413): selinux LSM specified but selinux not \
                 supported by kernel",
            ),
        ],
    ),
    cause(
        "lsm-differs",
        Area::Privileges,
        RESTORE,
        "The security module of the checkpoint is another than that of this host.",
        "Restore where the same module runs, or drop the profile with --lsm-profile none:.",
        &[error("mismatched lsm types and lsm profile specified")],
        &[reported(
            "criu issue 1267",
            "(14.068759) 47748: Error (criu/lsm.c:279): mismatched lsm types and lsm profile \
             specified",
        )],
    ),
    cause(
        "lsm-profile-refused",
        Area::Privileges,
        RESTORE,
        "A task's security profile cannot be set again (error {error}).",
        "Load the profile before the restore (apparmor_parser; the engine's default profile is \
         loaded when it starts a first container), or name another: --lsm-profile apparmor:NAME, \
         selinux:LABEL.",
        &[error("can't write lsm profile {error#}")],
        &[of_binary("can't write lsm profile %d")],
    ),
    cause(
        "lsm-unknown",
        Area::Options,
        RESTORE,
        "{lsm} is not a security module that CRIU knows.",
        "Write --lsm-profile as apparmor:NAME, selinux:LABEL or none:.",
        &[
            error("unknown lsm {lsm}"),
            error("invalid argument {lsm} for --lsm-profile"),
        ],
        &[
            live("(00.045847) Error (criu/lsm.c:422): unknown lsm bogus"),
            of_binary("invalid argument %s for --lsm-profile"),
        ],
    ),
    cause(
        "lsm-label-unreadable",
        Area::Privileges,
        DUMP,
        "The security label of a task cannot be read ({error}): AppArmor is half enabled, or the \
         kernel gives it in another file.",
        "Use a newer CRIU; or turn AppArmor fully on or off (apparmor=0 on the kernel's command \
         line).",
        &[error("err scanfing: {error}")],
        &[reported(
            "criu issue 2033",
            "(00.022893) Error (criu/lsm.c:37): err scanfing: Invalid argument",
        )],
    ),
    cause(
        "credentials-refused",
        Area::Privileges,
        RESTORE,
        "A task's user, group or capabilities cannot be set again (error {error}).",
        "Run CRIU with CAP_SETUID, CAP_SETGID, CAP_SETPCAP and every capability that the task has; \
         a container that restores must not lack one that the task was dumped with.",
        &[
            error("Unable to restore capabilities: {error#}"),
            error("Unable to set real, effective and saved {kind} ID: {error#}"),
            error("Can't setgroups([{count#} gids]): {error#}"),
        ],
        &[
            reported(
                "criu issue 684",
                "(00.250351) pie: 14: Error (criu/pie/restorer.c:297): Unable to restore \
                 capabilities: -1",
            ),
            of_binary("Unable to set real, effective and saved group ID: %d"),
            of_binary("Can't setgroups([%zu gids]): %d"),
        ],
    ),
    cause(
        "clock-offset-refused",
        Area::Privileges,
        RESTORE,
        "CRIU may not set the clock of the tasks' time namespace: {error}.",
        "Give CRIU CAP_SYS_TIME besides its other capabilities.",
        &[
            error("Unable to set a monotonic clock offset: {error}"),
            error("Unable to set a boottime clock offset: {error}"),
        ],
        &[
            reported(
                "criu issue 2262",
                "(00.010099)  39524: Error (criu/timens.c:97): Unable to set a monotonic clock \
                 offset: Operation not permitted",
            ),
            of_binary("Unable to set a boottime clock offset: %s"),
        ],
    ),
    cause(
        "restored-task-untraceable",
        Area::Privileges,
        RESTORE,
        "CRIU may not attach to the task {pid} that it restored: {error}.",
        "Look for what forbids ptrace: another tracer, a security module, \
         kernel.yama.ptrace_scope, a missing CAP_SYS_PTRACE.",
        &[error("Can't attach to {pid#}: {error}")],
        &[reported(
            "criu issue 2724",
            "(05.275088) Error (criu/cr-restore.c:1736): Can't attach to 507010: Operation not \
             permitted",
        )],
    ),
    cause(
        "seccomp-not-restorable",
        Area::Privileges,
        RESTORE,
        "A task's seccomp filter cannot be set again (error {error}).",
        "Give CRIU CAP_SYS_ADMIN in the task's user namespace, and a kernel with \
         CONFIG_SECCOMP_FILTER.",
        &[error(
            "seccomp: SECCOMP_SET_MODE_FILTER returned {error#} on tid {tid#}",
        )],
        &[of_binary(
            "seccomp: SECCOMP_SET_MODE_FILTER returned %d on tid %d",
        )],
    ),
    cause(
        "loginuid-refused",
        Area::Privileges,
        RESTORE,
        "A task's audit login uid cannot be set again.",
        "Give CRIU CAP_AUDIT_CONTROL.",
        &[
            error("Setting loginuid for CT init task failed, CAP_AUDIT_CONTROL?"),
            error("Setting loginuid for {pid#} task failed"),
        ],
        &[
            of_binary("Setting loginuid for CT init task failed, CAP_AUDIT_CONTROL?"),
            of_binary("Setting loginuid for %d task failed"),
        ],
    ),
    cause(
        "oom-score-refused",
        Area::Privileges,
        RESTORE,
        "A task's out-of-memory score {score} cannot be set again: {error}.",
        "Give CRIU CAP_SYS_RESOURCE: lowering the score takes it.",
        &[error(
            "Write {score} to /proc/self/oom_score_adj failed: {error}",
        )],
        &[of_binary("Write %s to /proc/self/oom_score_adj failed: %s")],
    ),
];
