//! Open files, mapped files, locks, watches, devices and descriptors without a file.

use super::{
    ANY, Area, DUMP, KnownCause, RESTORE, cause, error, live, live_on, of_binary, reported,
};

pub(super) const CAUSES: &[KnownCause] = &[
    cause(
        "stdio-outside-container",
        Area::Files,
        DUMP,
        "Standard input, output or error of a task is {path}, on a mount that is not in the task's \
         mount namespace.",
        "Start the program with its standard streams on pipes, /dev/null of its own /dev, or a \
         terminal. Or name the file to both sides: --external file[MNT_ID:INODE] on dump (both in \
         hexadecimal), --inherit-fd fd[N]:file[MNT_ID:INODE] on restore.",
        &[
            error("Can't lookup mount={mount#} for fd=0 path={path}"),
            error("Can't lookup mount={mount#} for fd=1 path={path}"),
            error("Can't lookup mount={mount#} for fd=2 path={path}"),
        ],
        &[
            live(
                "(00.036538) Error (criu/files-reg.c:1790): Can't lookup mount=24 for fd=0 \
                 path=/dev/null",
            ),
            live(
                "(00.061142) Error (criu/files-reg.c:1790): Can't lookup mount=27 for fd=1 \
                 path=/tmp/lab/hostfile",
            ),
            live(
                "(00.051828) Error (criu/files-reg.c:1790): Can't lookup mount=27 for fd=2 \
                 path=/tmp/lab/hostfile",
            ),
            live_on(
                "4.1.1",
                "(00.056170) Error (criu/files-reg.c:1790): Can't lookup mount=24 for fd=0 \
                 path=/dev/null",
            ),
            live_on(
                "4.3",
                "(00.053571) Error (criu/files-reg.c:1790): Can't lookup mount=24 for fd=0 \
                 path=/dev/null",
            ),
        ],
    ),
    cause(
        "file-outside-container",
        Area::Files,
        DUMP,
        "Descriptor {fd} is open on {path}, on a mount that is not in the task's mount namespace.",
        "Close the descriptor before the checkpoint (POSIX message queues and files inherited from \
         the host end here as well). Or name the file to both sides: --external file[MNT_ID:INODE] \
         on dump (both in hexadecimal), --inherit-fd fd[N]:file[MNT_ID:INODE] on restore.",
        &[error(
            "Can't lookup mount={mount#} for fd={fd#} path={path}",
        )],
        &[live(
            "(00.031587) Error (criu/files-reg.c:1790): Can't lookup mount=21 for fd=3 path=/labq",
        )],
    ),
    cause(
        "secret-memory",
        Area::Memory,
        DUMP,
        "Descriptor {fd} is secret memory (memfd_secret), which nobody but the task can read.",
        "The program must give up its secret memory before the checkpoint; there is no option for \
         it.",
        &[error(
            "Can't lookup mount={mount#} for fd={fd#} path=/secretmem (deleted)",
        )],
        &[live(
            "(00.038685) Error (criu/files-reg.c:1790): Can't lookup mount=15 for fd=3 \
             path=/secretmem (deleted)",
        )],
    ),
    cause(
        "file-on-overmounted-mount",
        Area::Files,
        DUMP,
        "{path} is open (descriptor {fd}) on a mount that another mount hides.",
        "Unmount what lies on top, or have the program close the file; CRIU opens files by path \
         and cannot reach it.",
        &[error(
            "Open files on overmounted mounts are not supported yet; mount={mount#} fd={fd#} \
             path={path}",
        )],
        &[live(
            "(00.044741) Error (criu/files-reg.c:1796): Open files on overmounted mounts are not \
             supported yet; mount=46 fd=7 path=/data/f",
        )],
    ),
    cause(
        "file-size-changed",
        Area::Files,
        RESTORE,
        "The file /{path} is {seen} bytes long but was {expected} when the checkpoint was made.",
        "Restore onto the file system as it was at the checkpoint: capture the root file system \
         together with the images, or put the old file back. For logs that other programs append \
         to, cut the file to the old length.",
        &[error(
            "File {path} has bad size {seen#} (expect {expected#})",
        )],
        &[
            live(
                "(00.033935)  13435: Error (criu/files-reg.c:2175): File tmp/lab/ff has bad size 9 \
                 (expect 5)",
            ),
            live_on(
                "4.3",
                "(00.039071)  57187: Error (criu/files-reg.c:2175): File tmp/lab/ff has bad size 9 \
                 (expect 5)",
            ),
        ],
    ),
    cause(
        "file-mode-changed",
        Area::Files,
        RESTORE,
        "The file /{path} has mode {seen} but had {expected} when the checkpoint was made.",
        "Set the old permissions again, or restore with --skip-file-rwx-check.",
        &[error("File {path} has bad mode {seen} (expect {expected})")],
        &[live(
            "(00.026524)  13464: Error (criu/files-reg.c:2294): File tmp/lab/ff has bad mode \
             0100600 (expect 0100644)",
        )],
    ),
    cause(
        "file-build-id-changed",
        Area::Files,
        RESTORE,
        "The program or library /{path} is another build than at the checkpoint.",
        "Install the same build on this system, or ship the root file system with the images. \
         --file-validation filesize compares lengths only; with another build of code in memory \
         that is asking for a crash.",
        &[
            error("File {path} has bad build-ID"),
            error("File {path} has bad build-ID length {seen#} (expect {expected#})"),
        ],
        &[
            live(
                "(00.024991)  60523: Error (criu/files-reg.c:2153): File tmp/lab/mysleep has bad \
                 build-ID",
            ),
            of_binary("File %s has bad build-ID length %d (expect %d)"),
        ],
    ),
    cause(
        "file-missing",
        Area::Files,
        RESTORE,
        "/{path} was in use at the checkpoint and is not there now.",
        "Put the file or directory back under the same path: bring the root file system as it was, \
         mount what was mounted. A descriptor can be replaced with --inherit-fd fd[N]:PATH \
         (without the leading slash).",
        &[
            error("Can't open file {path} on restore: No such file or directory"),
            error("Can't open file {path}: No such file or directory"),
            error("Can't open fake fifo {id} [{path}]: No such file or directory"),
        ],
        &[
            live(
                "(00.043040)  13493: Error (criu/files-reg.c:2353): Can't open file tmp/lab/ff on \
                 restore: No such file or directory",
            ),
            live(
                "(00.043043)  13493: Error (criu/files-reg.c:2267): Can't open file tmp/lab/ff: No \
                 such file or directory",
            ),
            live(
                "(00.036685)  42448: Error (criu/fifo.c:98): Can't open fake fifo 0xb \
                 [tmp/lab/ff1]: No such file or directory",
            ),
        ],
    ),
    cause(
        "file-not-openable",
        Area::Files,
        RESTORE,
        "/{path} was in use at the checkpoint and cannot be opened now: {error}.",
        "Make the path accessible to CRIU as it was at the checkpoint (permissions, type of file, \
         mount options).",
        &[
            error("Can't open file {path} on restore: {error}"),
            error("Can't open file {path}: {error}"),
        ],
        &[
            of_binary("Can't open file %s on restore: %s"),
            of_binary("Can't open file %s: %s"),
        ],
    )
    .general(),
    cause(
        "ghost-file-over-limit",
        Area::Files,
        DUMP,
        "{path} was deleted but is still open; its {size} bytes are more than CRIU puts into the \
         images.",
        "Raise --ghost-limit above {size} bytes, or have the program close the file.",
        &[error(
            "Can't dump ghost file {path} of {size#} size, increase limit",
        )],
        &[live(
            "(00.043794) Error (criu/files-reg.c:1031): Can't dump ghost file /tmp/lab/gf of \
             2097152 size, increase limit",
        )],
    ),
    cause(
        "link-remap-needed",
        Area::Files,
        DUMP,
        "{path} was removed or replaced while open, and the file still has another name.",
        "Allow CRIU to make a temporary link next to it: --link-remap (on dump and on restore).",
        &[error(
            "Can't create link remap for {path}. Use link-remap option.",
        )],
        &[live(
            "(00.040845) Error (criu/files-reg.c:1122): Can't create link remap for /tmp/lab/lf. \
             Use link-remap option.",
        )],
    ),
    cause(
        "link-remap-refused",
        Area::Files,
        DUMP,
        "CRIU could not link a removed but open file to {path}: {error}.",
        "The directory must be writable and on the same file system (overlayfs with a file of the \
         lower layer refuses); or have the program close the file.",
        &[error("Can't link remap to {path}: {error}")],
        &[of_binary("Can't link remap to %s: %s")],
    ),
    cause(
        "file-locks",
        Area::Files,
        DUMP,
        "A task holds a file lock (flock, fcntl or lease).",
        "Allow locks with --file-locks, on dump and on restore. Make sure that no other process \
         wants the same lock between the two: a restore waits for it without end.",
        &[error(
            "Some file locks are hold by dumping tasks!{*}You can try --file-locks to dump them.",
        )],
        &[
            live(
                "(00.053003) Error (criu/file-lock.c:110): Some file locks are hold by dumping \
                 tasks! You can try --file-locks to dump them.",
            ),
            of_binary(
                "Some file locks are hold by dumping tasks!You can try --file-locks to dump them.",
            ),
        ],
    ),
    cause(
        "watch-unresolved",
        Area::Files,
        DUMP,
        "A task watches a file (inotify or fanotify) whose path CRIU cannot find.",
        "Watches on procfs and on removed files cannot be kept: the program must drop them. For \
         file systems without file handles try --force-irmap with --irmap-scan-path DIR for the \
         directories that are watched.",
        &[
            error("fsnotify: \tCan't dump that handle"),
            error(
                "fsnotify: Can't find suitable path for handle (dev {device} ino {inode}): \
                 {error#}",
            ),
            error("irmap: Failed to resolve {device}:{inode}"),
        ],
        &[
            live("(00.076172) Error (criu/fsnotify.c:284): fsnotify: \tCan't dump that handle"),
            of_binary("fsnotify: Can't find suitable path for handle (dev %#x ino %#lx): %d"),
            of_binary("irmap: Failed to resolve %x:%lx"),
        ],
    ),
    cause(
        "watched-path-missing",
        Area::Files,
        RESTORE,
        "{path}, which a task watched (inotify or fanotify), is not there now.",
        "Put the file or directory back before the restore.",
        &[error(
            "fsnotify: Unable to open {path}: No such file or directory",
        )],
        &[live(
            "(00.022986)  14056: Error (criu/fsnotify.c:510): fsnotify: Unable to open \
             /tmp/lab/deep: No such file or directory",
        )],
    ),
    cause(
        "pipe-in-packet-mode",
        Area::Files,
        DUMP,
        "A task has a pipe in packet mode (O_DIRECT), which CRIU cannot dump.",
        "The program must use an ordinary pipe; there is no option for it.",
        &[error("The packetized mode for pipes is not supported yet")],
        &[live(
            "(00.039875) Error (criu/pipes.c:490): The packetized mode for pipes is not supported \
             yet",
        )],
    ),
    cause(
        "device-mapping-unsupported",
        Area::Devices,
        DUMP,
        "Task {pid} has something mapped into memory that is not a regular file (a device or the \
         like).",
        "Stop using the device before the checkpoint, or use a CRIU plugin that knows it \
         (--libdir).",
        &[error(
            "Can't handle non-regular mapping on {pid#}'s map {address}",
        )],
        &[of_binary(
            "Can't handle non-regular mapping on %d's map %lx",
        )],
    ),
    cause(
        "device-file",
        Area::Devices,
        DUMP,
        "Descriptor {fd} is device {major}:{minor}, whose state CRIU does not know.",
        "Have the program close the device before the checkpoint, or use a CRIU plugin that knows \
         it (--libdir).",
        &[error(
            "Can't dump file {fd#} of that type [{mode#}] (chr {major#}:{minor#}{*})",
        )],
        &[live(
            "(00.035753) Error (criu/files-ext.c:94): Can't dump file 3 of that type [20600] (chr \
             10:237)",
        )],
    ),
    cause(
        "fuse-device",
        Area::Devices,
        DUMP,
        "Descriptor {fd} is /dev/fuse: the task serves a FUSE file system, which lives as much in \
         the kernel as in the task.",
        "Unmount the file system or keep its server out of the tree that is dumped.",
        &[error(
            "Can't dump file {fd#} of that type [{mode#}] (chr 10:229{*})",
        )],
        &[live(
            "(00.039917) Error (criu/files-ext.c:94): Can't dump file 3 of that type [20600] (chr \
             10:229)",
        )],
    ),
    cause(
        "nvidia-device",
        Area::Devices,
        DUMP,
        "Descriptor {fd} is an NVIDIA device (195:{minor}): the task uses the GPU.",
        "Install CRIU's CUDA plugin together with cuda-checkpoint and a driver that supports it, \
         and point --libdir at it; or have the program release the GPU.",
        &[error(
            "Can't dump file {fd#} of that type [{mode#}] (chr 195:{minor#}{*})",
        )],
        &[reported(
            "cuda-checkpoint issue 7",
            "Error (criu/files-ext.c:94): Can't dump file 17 of that type [20666] (chr 195:255)",
        )],
    ),
    cause(
        "graphics-device",
        Area::Devices,
        DUMP,
        "Descriptor {fd} is a graphics device (226:{minor}): the task uses the GPU.",
        "Have the program release the GPU, or run it without one. CRIU's amdgpu plugin (--libdir) \
         keeps compute jobs on AMD GPUs.",
        &[error(
            "Can't dump file {fd#} of that type [{mode#}] (chr 226:{minor#}{*})",
        )],
        &[reported(
            "criu issue 1112",
            "(00.005326) Error (criu/files-ext.c:95): Can't dump file 12 of that type [20660] (chr \
             226:0)",
        )],
    ),
    cause(
        "tun-outside-netns",
        Area::Devices,
        DUMP,
        "A task has a TUN/TAP device open, but lives in the same network namespace as CRIU.",
        "Run the program in a network namespace of its own; the interface can be dumped only \
         together with it.",
        &[error("tun: Net namespace is required to dump tun link")],
        &[live(
            "(00.034271) Error (criu/tun.c:306): tun: Net namespace is required to dump tun link",
        )],
    ),
    cause(
        "perf-event",
        Area::Devices,
        DUMP,
        "Descriptor {fd} is a perf event counter.",
        "Stop profiling the program before the checkpoint.",
        &[error(
            "Can't dump file {fd#} of that type [{mode#}] (anon anon_inode:[perf_event])",
        )],
        &[live(
            "(00.035742) Error (criu/files-ext.c:94): Can't dump file 3 of that type [600] (anon \
             anon_inode:[perf_event])",
        )],
    ),
    cause(
        "bpf-object",
        Area::Devices,
        DUMP,
        "Descriptor {fd} is a BPF object ({kind}).",
        "Have the program close its BPF programs, links and maps; CRIU dumps simple maps only, and \
         only if built with libbpf.",
        &[error(
            "Can't dump file {fd#} of that type [{mode#}] (anon anon_inode:bpf-{kind})",
        )],
        &[live(
            "(00.038959) Error (criu/files-ext.c:94): Can't dump file 3 of that type [600] (anon \
             anon_inode:bpf-map)",
        )],
    ),
    cause(
        "userfaultfd",
        Area::Devices,
        DUMP,
        "Descriptor {fd} is a userfaultfd: the program handles its own page faults.",
        "There is no option for it; let the program close the descriptor. If a lazy restore is \
         still fetching pages, wait until its lazy-pages daemon is done.",
        &[error(
            "Can't dump file {fd#} of that type [{mode#}] (anon anon_inode:[userfaultfd])",
        )],
        &[live(
            "(00.038412) Error (criu/files-ext.c:94): Can't dump file 3 of that type [600] (anon \
             anon_inode:[userfaultfd])",
        )],
    ),
    cause(
        "descriptor-unsupported",
        Area::Devices,
        DUMP,
        "Descriptor {fd} is of a kind that CRIU cannot dump ({kind}).",
        "Have the program close it before the checkpoint, or use a CRIU plugin that knows it \
         (--libdir).",
        &[
            error("Can't dump file {fd#} of that type [{mode#}] (anon {kind})"),
            error("Can't dump file {fd#} of that type [{mode#}] ({kind})"),
        ],
        &[live(
            "(00.034802) Error (criu/files-ext.c:94): Can't dump file 3 of that type [600] (anon \
             anon_inode:[landlock-ruleset])",
        )],
    ),
    cause(
        "io-uring",
        Area::Devices,
        DUMP,
        "The kernel refuses to hand a descriptor of the task to CRIU; that is what it does with \
         io_uring instances.",
        "Run the program without io_uring (node: UV_USE_IO_URING=0; nginx, databases: their own \
         setting). There is no option for it.",
        &[error("send_fds failed (-22)")],
        &[
            live("pie: 13714: Error (criu/pie/parasite.c:588): send_fds failed (-22)"),
            live_on(
                "4.3",
                "pie: 57358: Error (criu/pie/parasite.c:602): send_fds failed (-22)",
            ),
        ],
    ),
    cause(
        "pidfd-outside-tree",
        Area::Devices,
        DUMP,
        "A task holds a pidfd of process {pid}, which is not part of the tree that is dumped.",
        "Dump from a common ancestor, or have the program close the pidfd.",
        &[error(
            "pidfd: pidfd pid {pid#} is not a part of process tree..",
        )],
        &[live(
            "(00.038739) Error (criu/pidfd.c:97): pidfd: pidfd pid 1 is not a part of process \
             tree..",
        )],
    ),
    cause(
        "inherited-descriptor-closed",
        Area::Options,
        ANY,
        "Descriptor {fd}, to be inherited by the restored tasks, is not open in CRIU.",
        "Pass the descriptor to CRIU under the number that --inherit-fd fd[{fd}]:… names.",
        &[error("Can't fstat inherit fd {fd#}: {error}")],
        &[live(
            "Error (criu/files.c:1597): Can't fstat inherit fd 77: Bad file descriptor",
        )],
    ),
];
