//! Tasks, their pids, sessions, namespaces and terminals.

use super::{
    ANY, Area, DUMP, KnownCause, RESTORE, cause, error, live, live_on, of_binary, reported, warning,
};

pub(super) const CAUSES: &[KnownCause] = &[
    cause(
        "no-such-process",
        Area::Processes,
        DUMP,
        "There is no process {pid|of that pid}.",
        "Check the pid: it counts in CRIU's own pid namespace, so that of a container's process is \
         the one the host sees.",
        &[
            warning("Unable to interrupt task: {pid#} (No such process)"),
            warning("Failed to open /proc/{pid#}/comm: No such file or directory"),
        ],
        &[
            live(
                "(00.037451) Warn  (compel/src/lib/infect.c:132): Unable to interrupt task: \
                 4194300 (No such process)",
            ),
            live(
                "(00.036761) Warn  (criu/seize.c:63): Failed to open /proc/4194300/comm: No such \
                 file or directory",
            ),
        ],
    ),
    cause(
        "task-gone",
        Area::Processes,
        DUMP,
        "Process {pid} was gone when CRIU looked at it.",
        "Check that the program still runs, and that nothing kills it during the checkpoint.",
        &[
            error("Can't open {pid#}: No such file or directory"),
            error("Can't open {pid#}/{file} on procfs: No such file or directory"),
        ],
        &[
            live(
                "(00.080837) Error (criu/util.c:412): Can't open 32523: No such file or directory",
            ),
            live(
                "(00.080843) Error (criu/proc_parse.c:1097): Can't open 32523/status on procfs: No \
                 such file or directory",
            ),
        ],
    ),
    cause(
        "task-not-seizable",
        Area::Processes,
        DUMP,
        "Task {pid} cannot be seized: another program traces it (a debugger, strace, another \
         CRIU), it is dead, or CRIU may not trace it.",
        "Detach the tracer (TracerPid in /proc/{pid}/status names it) and reap zombies; CRIU \
         itself needs CAP_SYS_PTRACE.",
        &[warning(
            "Unable to interrupt task: {pid#} (Operation not permitted)",
        )],
        &[live(
            "(00.033631) Warn  (compel/src/lib/infect.c:132): Unable to interrupt task: 14274 \
             (Operation not permitted)",
        )],
    ),
    cause(
        "task-uninterruptible",
        Area::Processes,
        DUMP,
        "Task {pid} is in uninterruptible sleep and did not stop.",
        "Wait until its system call is done: a hung disk or network file system, or a vfork whose \
         child has not called exec yet. --timeout SECONDS gives it longer.",
        &[error(
            "Unseizable non-zombie {pid#} found, state D, err {*}",
        )],
        &[live(
            "(01.022185) Error (compel/src/lib/infect.c:262): Unseizable non-zombie 60447 found, \
             state D, err -1/4",
        )],
    ),
    cause(
        "task-unseizable",
        Area::Processes,
        DUMP,
        "Task {pid} (state {state}) did not let itself be seized.",
        "With --freeze-cgroup, the whole tree must be in that cgroup or below. Otherwise see \
         whether another program traces the task (TracerPid in /proc/{pid}/status).",
        &[error(
            "Unseizable non-zombie {pid#} found, state {state}, err {*}",
        )],
        &[live(
            "(00.111232) Error (compel/src/lib/infect.c:262): Unseizable non-zombie 32508 found, \
             state S, err -1/10",
        )],
    ),
    cause(
        "freeze-timeout",
        Area::Processes,
        DUMP,
        "The tasks did not come to a stop in time.",
        "Give them longer with --timeout SECONDS; look for tasks in state D, and for a tree that \
         forks faster than CRIU can seize it (--freeze-cgroup stops it as a whole).",
        &[
            error("Timeout reached. Try to interrupt: {count#}"),
            error("Unable to freeze cgroup {cgroup} ({*})"),
        ],
        &[
            live("(01.022057) Error (criu/cr-dump.c:1655): Timeout reached. Try to interrupt: 0"),
            of_binary("Unable to freeze cgroup %s (%lu x %lums attempts, timeout: %us)"),
        ],
    )
    .general(),
    cause(
        "criu-inside-tree",
        Area::Processes,
        DUMP,
        "CRIU itself is part of the tree it was asked to dump.",
        "Name a pid whose descendants do not include CRIU. To dump oneself, start CRIU outside of \
         one's own tree (double fork and setsid) or ask a running `criu service`.",
        &[error("The criu itself is within dumped tree.")],
        &[
            live(
                "(00.042060) Error (compel/src/lib/infect.c:260): The criu itself is within dumped \
                 tree.",
            ),
            live_on(
                "4.1.1",
                "(00.038012) Error (compel/src/lib/infect.c:261): The criu itself is within dumped \
                 tree.",
            ),
        ],
    ),
    cause(
        "shell-job-tty",
        Area::Processes,
        DUMP,
        "Process {pid} belongs to a session that began outside the tree, as a shell's job does.",
        "Allow it with --shell-job, on dump and on restore (the restored tasks then join CRIU's \
         session and terminal), or start the program with setsid.",
        &[error(
            "The root process {pid#} is not a session leader. Consider using --shell-job option",
        )],
        &[
            live(
                "(00.031423) Error (criu/pstree.c:304): The root process 13420 is not a session \
                 leader. Consider using --shell-job option",
            ),
            live_on(
                "4.3",
                "(00.047559) Error (criu/pstree.c:330): The root process 57172 is not a session \
                 leader. Consider using --shell-job option",
            ),
        ],
    ),
    cause(
        "session-ids-collide",
        Area::Processes,
        RESTORE,
        "The session or process group {own} of CRIU has the number of a task in the checkpoint.",
        "Start CRIU in a session of its own (setsid) and try again, or restore into a new pid \
         namespace.",
        &[
            error("Current sid {own#} intersects with {*}"),
            error("Current gid {own#} intersects with {*}"),
        ],
        &[
            of_binary("Current sid %d intersects with pid (%d) in images"),
            of_binary("Current gid %d intersects with pgid of (%d) in images"),
        ],
    ),
    cause(
        "pid-in-use",
        Area::Processes,
        RESTORE,
        "The pid {pid|of a task in the checkpoint} is taken.",
        "Wait until the dumped processes are gone and their parent has reaped them (a zombie keeps \
         its pid), stop whatever has the pid now, or dump and restore the program in a pid \
         namespace of its own.",
        &[
            error("Can't fork for {pid#}: File exists"),
            error("Pid {seen#} do not match expected {pid#}"),
            error("Thread pid mismatch {seen#}/{expected#}"),
        ],
        &[
            live("(00.037920) Error (criu/cr-restore.c:1237): Can't fork for 14162: File exists"),
            live(
                "(00.066815)  48198: Error (criu/cr-restore.c:1237): Can't fork for 48199: File \
                 exists",
            ),
            live_on(
                "4.3",
                "(00.034169) Error (criu/cr-restore.c:1245): Can't fork for 57406: File exists",
            ),
            of_binary("Pid %d do not match expected %d"),
            of_binary("Thread pid mismatch %d/%d"),
        ],
    ),
    cause(
        "fork-failed",
        Area::Processes,
        RESTORE,
        "Process {pid} could not be created: {error}.",
        "Look at the limits that apply to CRIU: pids.max of its cgroup, the number of processes of \
         the user, kernel.pid_max.",
        &[error("Can't fork for {pid#}: {error}")],
        &[of_binary("Can't fork for %d: %s")],
    )
    .general(),
    cause(
        "pid-cannot-be-set",
        Area::Privileges,
        RESTORE,
        "CRIU may not choose the pids of the tasks it creates.",
        "Run CRIU with CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN in the user namespace that owns the \
         pid namespace, and with a writable /proc/sys.",
        &[
            error("Setting PID failed"),
            error("Can't open {*}sys/kernel/ns_last_pid on procfs: {error}"),
        ],
        &[
            of_binary("Setting PID failed"),
            of_binary("Can't open %d/sys/kernel/ns_last_pid on procfs: %s"),
        ],
    ),
    cause(
        "new-pidns-needed",
        Area::Namespaces,
        RESTORE,
        "The tasks can only be restored into a new pid namespace.",
        "Restore without joining an existing pid namespace.",
        &[error(
            "This process tree can only be restored in a new pid namespace.",
        )],
        &[of_binary(
            "This process tree can only be restored in a new pid namespace.",
        )],
    ),
    cause(
        "root-task-dead",
        Area::Processes,
        DUMP,
        "The root of the tree is dead: nothing is left to dump.",
        "Check that the program is still running; a zombie root cannot be dumped.",
        &[error("A root task is dead")],
        &[of_binary("A root task is dead")],
    ),
    cause(
        "task-died-while-seizing",
        Area::Processes,
        DUMP,
        "Task {pid} ({comm}) died while CRIU was stopping the tree.",
        "Try again; a tree whose members come and go quickly is best stopped with --freeze-cgroup.",
        &[error("zombie {pid#} (comm {comm}) found while seizing")],
        &[of_binary("zombie %d (comm %s) found while seizing")],
    ),
    cause(
        "task-in-32-bit-mode",
        Area::Processes,
        DUMP,
        "Task {pid} runs 32-bit code, which this CRIU cannot dump.",
        "Use a CRIU built with support for 32-bit tasks, on a kernel that has it; there is no \
         option.",
        &[error("Can't dump task {pid#} running in 32-bit mode")],
        &[of_binary("Can't dump task %d running in 32-bit mode")],
    ),
    cause(
        "uprobes-in-task",
        Area::Processes,
        ANY,
        "Task {pid|of the checkpoint} is or was traced with uprobes.",
        "End the tracing (bpftrace, perf probe), or allow it with --allow-uprobes on dump and \
         restore.",
        &[
            error("PID {pid#} has uprobes vma. Consider using --allow-uprobes."),
            error("Dumped with --allow-uprobes. Need to set it on restore as well."),
        ],
        &[
            of_binary("PID %d has uprobes vma. Consider using --allow-uprobes."),
            of_binary("Dumped with --allow-uprobes. Need to set it on restore as well."),
        ],
    ),
    cause(
        "limits-unreadable",
        Area::Privileges,
        DUMP,
        "CRIU may not read the resource limits of a task that runs as another user.",
        "Run CRIU with CAP_SYS_RESOURCE.",
        &[error("Can't get rlimit {limit#}: Operation not permitted")],
        &[live(
            "(00.102640) Error (criu/cr-dump.c:389): Can't get rlimit 0: Operation not permitted",
        )],
    ),
    cause(
        "restored-task-crashed",
        Area::Processes,
        RESTORE,
        "Task {pid} died of signal {signal} while it was being restored.",
        "If images are missing or were edited, restore from a complete copy. Otherwise restore \
         with log level 4 and look at the last lines of that task; a signal 9 may come from the \
         out-of-memory killer.",
        &[error("{pid#} killed by signal {signal}")],
        &[live(
            "(00.045515) Error (criu/cr-restore.c:1269): 17859 killed by signal 11: Segmentation \
             fault",
        )],
    )
    .last_resort(),
    cause(
        "nested-namespace",
        Area::Namespaces,
        DUMP,
        "Task {pid} has its own {kind} namespace, other than that of the root task.",
        "Dump from the task that is the root of the {kind} namespace, or run the program without \
         it (browsers and build tools: turn their sandbox off).",
        &[error("Can't dump nested {kind} namespace for {pid#}")],
        &[
            live(
                "(00.035502) Error (criu/namespaces.c:460): Can't dump nested pid namespace for \
                 14306",
            ),
            live(
                "(00.037514) Error (criu/namespaces.c:460): Can't dump nested user namespace for \
                 14384",
            ),
            live(
                "(00.036388) Error (criu/namespaces.c:739): Can't dump nested time namespace for \
                 14415",
            ),
            live_on(
                "4.3",
                "(00.040647) Error (criu/namespaces.c:462): Can't dump nested pid namespace for \
                 57498",
            ),
        ],
    ),
    cause(
        "child-in-new-namespace",
        Area::Namespaces,
        RESTORE,
        "A child task lives in another namespace than the root task, which CRIU dumps but cannot \
         restore.",
        "Make the task that is the root of the namespaces the root of the dump.",
        &[error("Can't restore sub-task in NS (cflags {flags})")],
        &[live(
            "(00.031396) Error (criu/pstree.c:969): Can't restore sub-task in NS (cflags 40000000)",
        )],
    ),
    cause(
        "pidns-without-init",
        Area::Namespaces,
        DUMP,
        "The root of the dump lives in a pid namespace but is not its first process.",
        "Dump process 1 of that namespace (as the host sees it).",
        &[error("Can't dump a pid namespace without the process init")],
        &[live(
            "(00.052241) Error (criu/namespaces.c:1117): Can't dump a pid namespace without the \
             process init",
        )],
    ),
    cause(
        "session-leader-outside-pidns",
        Area::Namespaces,
        DUMP,
        "The session of process {pid} (pid {inner} inside) has its leader outside the pid \
         namespace.",
        "Let the first process of the namespace call setsid, as container runtimes do.",
        &[
            error("A session leader of {pid#}({inner#}) is outside of its pid namespace"),
            error(
                "A session leader of zombie process {pid#}({inner#}) is outside of its pid \
                 namespace",
            ),
        ],
        &[
            live(
                "(00.042981) Error (criu/cr-dump.c:1528): A session leader of 14467(1) is outside \
                 of its pid namespace",
            ),
            of_binary("A session leader of zombie process %d(%d) is outside of its pid namespace"),
        ],
    ),
    cause(
        "sysv-shm-outside-ipcns",
        Area::Namespaces,
        DUMP,
        "Task {pid} uses System V shared memory without an IPC namespace of its own.",
        "Run the program in an IPC namespace (unshare --ipc; containers have one unless started \
         with the host's).",
        &[error(
            "Task {pid#} with SysVIPC shmem map @{address} doesn't live in IPC ns",
        )],
        &[live(
            "(00.030595) Error (criu/cr-dump.c:478): Task 13669 with SysVIPC shmem map \
             @7fd6e179d000 doesn't live in IPC ns",
        )],
    ),
    cause(
        "user-namespace-mismatch",
        Area::Namespaces,
        DUMP,
        "A namespace of the tasks is not owned by their user namespace.",
        "Create user namespace and the others in one step, as container runtimes do, so that it \
         owns them.",
        &[error(
            "One or more namespaces doesn't belong to the target user namespace",
        )],
        &[of_binary(
            "One or more namespaces doesn't belong to the target user namespace",
        )],
    ),
    cause(
        "join-ns-unusable",
        Area::Namespaces,
        ANY,
        "The namespace {path} to be joined cannot be opened: {error}.",
        "Give --join-ns a path such as /proc/PID/ns/net that exists and that CRIU may open; pids \
         above 65535 are taken for a path.",
        &[error("Can't access join-ns file {path}: {error}")],
        &[live(
            "Error (criu/namespaces.c:105): Can't access join-ns file /nonexistent: No such file \
             or directory",
        )],
    ),
    cause(
        "join-ns-unsupported",
        Area::Namespaces,
        ANY,
        "A pid namespace cannot be joined with --join-ns.",
        "Hand it over as an external one: --external pid[INODE]:KEY on dump, --inherit-fd \
         fd[N]:KEY on restore.",
        &[error("join-ns pid namespace not supported")],
        &[live(
            "Error (criu/namespaces.c:169): join-ns pid namespace not supported",
        )],
    ),
    cause(
        "tty-without-master",
        Area::Terminals,
        DUMP,
        "A task uses a terminal (pts {index}) whose other end is outside the tree.",
        "Containers: orphan_pts_master (over RPC only), which hands out a new master on restore; \
         or --external tty[RDEV:DEV] and an inherited descriptor. Programs of a login shell: \
         --shell-job. Or run the program without a terminal.",
        &[error(
            "tty: Found slave peer index {index#} without correspond master peer",
        )],
        &[live(
            "(00.061134) Error (criu/tty.c:410): tty: Found slave peer index 0 without correspond \
             master peer",
        )],
    ),
    cause(
        "tty-dangling",
        Area::Terminals,
        DUMP,
        "A terminal is the controlling one of session {session}, which is not in the tree.",
        "Allow it with --shell-job, or detach the program from the terminal (setsid, nohup with \
         redirected streams).",
        &[error(
            "tty: Found dangling tty with sid {session#} pgid {group#} ({name}) on peer fd {fd#}.",
        )],
        &[of_binary(
            "tty: Found dangling tty with sid %d pgid %d (%s) on peer fd %d.",
        )],
    ),
    cause(
        "tty-inherited",
        Area::Terminals,
        DUMP,
        "A task's controlling terminal comes from session {session}, which is not in the tree.",
        "Dump from the leader of that session (the shell), or start the program with setsid and \
         redirected streams.",
        &[error(
            "tty: ctty inheritance detected sid/pgrp {session#}, no PTY peer with sid/pgrp needed",
        )],
        &[reported(
            "criu issue 2432",
            "Error (criu/tty.c:2281): tty: ctty inheritance detected sid/pgrp 370774, no PTY peer \
             with sid/pgrp needed",
        )],
    ),
    cause(
        "tty-none-to-inherit",
        Area::Terminals,
        RESTORE,
        "The tasks were dumped with a terminal, and CRIU's standard input is none that they could \
         inherit.",
        "Run the restore on a terminal (CRIU's standard input is taken with --shell-job), or pass \
         one: --inherit-fd fd[N]:tty[RDEV:DEV]. If the dump had orphan_pts_master, take the master \
         that CRIU hands out in the callback.",
        &[error(
            "tty: Don't have tty to inherit session from, aborting",
        )],
        &[live(
            "(00.057036)  32745: Error (criu/tty.c:1010): tty: Don't have tty to inherit session \
             from, aborting",
        )],
    ),
];
