//! Mounts and root directories.

use super::{Area, DUMP, KnownCause, RESTORE, cause, error, live, live_on, of_binary, reported};

pub(super) const CAUSES: &[KnownCause] = &[
    cause(
        "mount-from-outside",
        Area::Mounts,
        DUMP,
        "{mountpoint} is a bind mount whose source is not in the container.",
        "Declare it as external: --external mnt[MOUNTPOINT]:KEY on dump (the path as seen inside, \
         with its slash), --external mnt[KEY]:HOSTPATH on restore. --external mnt[] finds such \
         mounts by itself.",
        &[error(
            "mnt: {mount#}:.{mountpoint} doesn't have a proper root mount",
        )],
        &[
            live(
                "(00.035587) Error (criu/mount.c:753): mnt: 84:./data doesn't have a proper root \
                 mount",
            ),
            live_on(
                "4.1.1",
                "(00.040316) Error (criu/mount.c:753): mnt: 64:./data doesn't have a proper root \
                 mount",
            ),
        ],
    ),
    cause(
        "mount-no-mapping",
        Area::Mounts,
        RESTORE,
        "An external mount of the checkpoint (number {mount}) was not given a source.",
        "Name a source for every key of the dump: --external mnt[KEY]:HOSTPATH.",
        &[error("mnt: No mapping for {mount#}:{*} mountpoint")],
        &[
            live("(00.022760) Error (criu/mount.c:3141): mnt: No mapping for 84:(null) mountpoint"),
            live_on(
                "4.3",
                "(00.036339) Error (criu/mount.c:3024): mnt: No mapping for 64:(null) mountpoint",
            ),
        ],
    ),
    cause(
        "mount-autodetected",
        Area::Mounts,
        RESTORE,
        "The checkpoint has external mounts that were detected automatically on dump.",
        "Restore with --external mnt[] and the same flags as on dump.",
        &[error(
            "mnt: Mount {mount#}:{*} is autodetected external mount. Try \"--ext-mount-map auto\" \
             to allow them.",
        )],
        &[live(
            "(00.027968) Error (criu/mount.c:3120): mnt: Mount 65:(null) is autodetected external \
             mount. Try \"--ext-mount-map auto\" to allow them.",
        )],
    ),
    cause(
        "mount-filesystem-unsupported",
        Area::Mounts,
        DUMP,
        "{mountpoint} is of a file system that CRIU does not know how to dump.",
        "Unmount it before the checkpoint; or keep its source outside: --external \
         mnt[MOUNTPOINT]:KEY; or leave it out with --skip-mnt MOUNTPOINT; or, at your own risk, \
         --enable-fs NAME.",
        &[error(
            "mnt: FS mnt .{mountpoint} dev {device} root {root} unsupported id {mount}",
        )],
        &[live(
            "(00.038899) Error (criu/mount.c:724): mnt: FS mnt ./tmp/lab/mp dev 0x28 root / \
             unsupported id 64",
        )],
    ),
    cause(
        "fuse-mount",
        Area::Mounts,
        DUMP,
        "{mountpoint} is a FUSE mount.",
        "Unmount it, or declare it as external and serve it again before the restore: --external \
         mnt[MOUNTPOINT]:KEY on dump, --external mnt[KEY]:HOSTPATH on restore.",
        &[
            error("failed to dump fs .{mountpoint} ({type}): always fail"),
            error("{mountpoint} is a fuse mount but not external"),
        ],
        &[
            live(
                "(00.041475) Error (criu/filesystems.c:663): failed to dump fs ./tmp/lab/mp \
                 (fuse): always fail",
            ),
            of_binary("%s is a fuse mount but not external"),
        ],
    ),
    cause(
        "mount-source-missing",
        Area::Mounts,
        RESTORE,
        "{source}, the source of an external mount, does not exist.",
        "Create {source}, or name another source: --external mnt[KEY]:HOSTPATH.",
        &[error(
            "mnt-v2: Failed to open_tree {source}: No such file or directory",
        )],
        &[live(
            "(00.039255)      1: Error (criu/mount-v2.c:319): mnt-v2: Failed to open_tree \
             /nonexistent: No such file or directory",
        )],
    ),
    cause(
        "mountpoint-missing",
        Area::Mounts,
        RESTORE,
        "The mount point /{mountpoint} does not exist in the new root.",
        "Create it in the root file system. If it should be there: --root must name a mount point \
         (bind-mount the directory to itself) that holds the container's root.",
        &[error(
            "mnt-v2: Can't stat mountpoint {*}/mnt-{mount#}/{mountpoint}: No such file or \
             directory",
        )],
        &[live(
            "(00.040142)      1: Error (criu/mount-v2.c:634): mnt-v2: Can't stat mountpoint \
             /tmp/.criu.mntns.kmU8Rr/mnt-0000000065/data: No such file or directory",
        )],
    ),
    cause(
        "restore-root-missing",
        Area::Mounts,
        RESTORE,
        "A mount namespace is to be restored, and CRIU was not told into which root.",
        "Restore with --root DIR, where DIR is a mount point (bind-mount it to itself) with the \
         root file system of the tasks. Without --root, CRIU stops at an internal check.",
        &[
            error("mnt: BUG at criu/mount.c:{line#}"),
            error("mnt: The --root option is required to restore a mount namespace"),
            error("mnt-v2: The --root option is required to restore a mount namespace"),
        ],
        &[
            live("(00.045671)  14704: Error (criu/mount.c:48): mnt: BUG at criu/mount.c:48"),
            live_on(
                "4.1.1",
                "(00.039196)      1: Error (criu/mount.c:48): mnt: BUG at criu/mount.c:48",
            ),
            live_on(
                "4.3",
                "(00.044955)      1: Error (criu/mount.c:48): mnt: BUG at criu/mount.c:48",
            ),
            of_binary("mnt: The --root option is required to restore a mount namespace"),
            of_binary("mnt-v2: The --root option is required to restore a mount namespace"),
        ],
    ),
    cause(
        "mount-unreachable-sharing",
        Area::Mounts,
        DUMP,
        "A mount takes part in a propagation group whose other members are outside the container.",
        "Make the mount private before the checkpoint, or allow it: --external mnt[]:m (masters) \
         and mnt[]:s (shared), on dump and restore.",
        &[
            error(
                "mnt: Mount {mount#} .{mountpoint} (master_id: {master#} shared_id: {shared#}) has \
                 unreachable sharing. Try --enable-external-masters.",
            ),
            error(
                "mnt-v2: Sharing group ({shared#}, {master#}) has unreachable sharing. Try \
                 --enable-external-masters.",
            ),
        ],
        &[
            reported(
                "criu issue 1458",
                "(00.047100) Error (criu/mount.c:947): mnt: Mount 307 ./storage/self (master_id: \
                 12 shared_id: 0) has unreachable sharing. Try --enable-external-masters.",
            ),
            of_binary(
                "mnt-v2: Sharing group (%d, %d) has unreachable sharing. Try \
                 --enable-external-masters.",
            ),
        ],
    ),
    cause(
        "mount-propagation-refused",
        Area::Kernel,
        RESTORE,
        "The kernel refuses to make mount {mount} a slave of another: Linux 6.16, and stable \
         kernels since, are stricter there.",
        "Use CRIU 4.1.1 or newer, or restore with --mntns-compat-mode.",
        &[error(
            "mnt-v2: Failed to make mount {mount#} slave: Invalid argument",
        )],
        &[reported(
            "criu issue 2694",
            "(00.034502)      7: Error (criu/mount-v2.c:966): mnt-v2: Failed to make mount 476 \
             slave: Invalid argument",
        )],
    ),
    cause(
        "mount-unmount-refused",
        Area::Mounts,
        DUMP,
        "CRIU cannot look under the mounts on {mountpoint}: {error}.",
        "Mounts stacked on one another that were inherited from the parent's user namespace cannot \
         be taken apart. Give the container mounts of its own, or unmount the upper ones first.",
        &[error(
            "mnt: Unable to umount child-overmount .{mountpoint}: {error}",
        )],
        &[live(
            "(00.044772) Error (criu/mount.c:1422): mnt: Unable to umount child-overmount \
             ./dev/shm: Invalid argument",
        )],
    ),
    cause(
        "mount-table-unknown-format",
        Area::Mounts,
        DUMP,
        "CRIU does not understand a line of the mount table of task {pid}.",
        "Use a newer CRIU: the kernel's format has grown since this one was built.",
        &[error("Bad format in {pid#} mountinfo: '{line}")],
        &[reported(
            "criu issue 554",
            "(00.029980) Error (criu/proc_parse.c:1432): Bad format in 22902 mountinfo: \
             'd03334010331327dcb1d3c4e0d3d98937740a23cfa43e0a0bbbd3da29/work",
        )],
    ),
    cause(
        "root-is-no-mount",
        Area::Mounts,
        DUMP,
        "The root task's root directory {root} is not the root of its mount namespace.",
        "Enter the new root with pivot_root instead of chroot, or chroot without a mount namespace \
         of one's own.",
        &[error(
            "mnt: The root task has another root than mntns: {root}",
        )],
        &[of_binary(
            "mnt: The root task has another root than mntns: %s",
        )],
    ),
    cause(
        "mount-table-unreadable",
        Area::Mounts,
        DUMP,
        "CRIU cannot make sense of the mounts that task {pid} sees; a task that was chrooted \
         within a mount namespace of its own is the usual reason.",
        "Enter the new root with pivot_root instead of chroot, so that it is a mount point.",
        &[error("mnt: Can't parse {pid#}'s mountinfo")],
        &[live(
            "(00.032194) Error (criu/mount.c:1895): mnt: Can't parse 60463's mountinfo",
        )],
    )
    .general(),
];
