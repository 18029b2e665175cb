//! Image files and the directories they live in.

use super::{ANY, Area, KnownCause, RESTORE, cause, error, live, live_on, message, of_binary};

pub(super) const CAUSES: &[KnownCause] = &[
    cause(
        "no-checkpoint-here",
        Area::Images,
        RESTORE,
        "The images directory holds no inventory.img: there is no complete checkpoint in it.",
        "Check the directory (--images-dir). inventory.img is written last: a dump that failed \
         leaves none. Of a chain of pre-dumps, name the directory of the final dump.",
        &[message("No inventory.img image")],
        &[live("(00.034711) No inventory.img image")],
    ),
    cause(
        "image-missing",
        Area::Images,
        RESTORE,
        "An image file that every checkpoint has is missing from this one.",
        "Copy the checkpoint again as a whole. After a dump to a page server, put the \
         pagemap-*.img and pages-*.img of the server into the same directory.",
        &[
            message("No core-{pid#}.img image"),
            message("No mm-{pid#}.img image"),
            message("No pagemap-{pid#}.img image"),
            message("No fs-{pid#}.img image"),
            message("No ids-{pid#}.img image"),
            message("No files.img image"),
            message("No pstree.img image"),
            error("Unexpected EOF on (empty-image)"),
        ],
        &[
            live("(00.036304) No core-17772.img image"),
            live("(00.036469)  18004: No pagemap-18004.img image"),
            live("(00.031428) No pstree.img image"),
            live("(00.033220)  17830: No mm-17830.img image"),
            live("(00.092920)  18091: No fs-18091.img image"),
            live("(00.044009) No files.img image"),
            live("(00.035358) No ids-18121.img image"),
            live("(00.034714) Error (criu/protobuf.c:72): Unexpected EOF on (empty-image)"),
        ],
    )
    .general(),
    cause(
        "image-pages-unreadable",
        Area::Images,
        RESTORE,
        "The memory pages of the checkpoint (pages-*.img) are missing or cannot be read (error \
         {error|end of file}).",
        "Copy the checkpoint again as a whole. After a dump to a page server, or of a chain of \
         pre-dumps, the pages are with the server, and in the directories that the `parent` links \
         name.",
        &[
            error("Can't read pages data ({error#})"),
            error("Reached EOF unexpectedly while reading page from image"),
        ],
        &[
            live(
                "(00.030417) pie: 17946: Error (criu/pie/restorer.c:1907): Can't read pages data \
                 (-9)",
            ),
            of_binary("Reached EOF unexpectedly while reading page from image"),
        ],
    ),
    cause(
        "image-not-criu",
        Area::Images,
        RESTORE,
        "{image} is not an image file of that kind: its magic number is wrong.",
        "Copy the file again; compressed or encrypted images must be unpacked first.",
        &[
            error("Magic doesn't match for {image}"),
            error("Head magic doesn't match for {image}"),
        ],
        &[
            live("(00.038865) Error (criu/image.c:563): Magic doesn't match for inventory.img"),
            live("(00.024922) Error (criu/image.c:554): Head magic doesn't match for pstree.img"),
        ],
    ),
    cause(
        "image-truncated",
        Area::Images,
        RESTORE,
        "{image}.img ends early: it is cut off.",
        "Copy the checkpoint again, and check for a full disk where it was written.",
        &[
            error("Read {got#} bytes while {wanted#} expected from {image}.img: {*}"),
            error("Unexpected EOF on {image}.img"),
        ],
        &[
            live(
                "(00.031567) Error (criu/protobuf.c:93): Read 2 bytes while 78 expected from \
                 /tmp/lab/img.443qr2r8/inventory.img: Operation not permitted",
            ),
            live(
                "(00.051114) Error (criu/protobuf.c:72): Unexpected EOF on \
                 /tmp/lab/img.bzaslr7j/core-3285.img",
            ),
        ],
    ),
    cause(
        "image-empty",
        Area::Images,
        RESTORE,
        "An image file is empty.",
        "Copy the checkpoint again, and check for a full disk where it was written.",
        &[error("Unexpected EOF")],
        &[live("(00.032877) Error (criu/image.c:887): Unexpected EOF")],
    ),
    cause(
        "image-garbled",
        Area::Images,
        RESTORE,
        "{image} cannot be decoded.",
        "Copy the checkpoint again; if the file was edited, undo it.",
        &[error("Failed unpacking object {object} from {image}")],
        &[live(
            "(00.030873) Error (criu/protobuf.c:101): Failed unpacking object 0x7ffd67e1afa0 from \
             /tmp/lab/img.tmmb9fcc/files.img",
        )],
    ),
    cause(
        "pre-dump-not-restorable",
        Area::Images,
        RESTORE,
        "The images are of a pre-dump: memory only, without the tasks.",
        "Restore from the directory of the final dump; it finds the pre-dumps through its `parent` \
         link.",
        &[error("Not supported images version 0")],
        &[live(
            "(00.046567) Error (criu/image.c:89): Not supported images version 0",
        )],
    ),
    cause(
        "image-version-unknown",
        Area::Images,
        RESTORE,
        "The checkpoint is of an image version ({version|too old}) that this CRIU does not know.",
        "Restore with the CRIU version that made it, or a newer one.",
        &[
            error("Not supported images version {version#}"),
            error("Too old image, no longer supported"),
        ],
        &[
            live("(00.033187) Error (criu/image.c:89): Not supported images version 99"),
            of_binary("Too old image, no longer supported"),
        ],
    ),
    cause(
        "image-of-other-architecture",
        Area::Cpu,
        RESTORE,
        "The checkpoint was made on another processor architecture (march {march}).",
        "Restore on a machine of the architecture of the dump.",
        &[error("Core march mismatch {march#}")],
        &[live(
            "(00.033319) Error (criu/cr-restore.c:861): Core march mismatch 3",
        )],
    ),
    cause(
        "images-inconsistent",
        Area::Images,
        RESTORE,
        "The image files do not belong together, or one of them was edited.",
        "Copy the checkpoint again into an empty directory: CRIU does not remove images of an \
         earlier dump from the directory it writes to.",
        &[
            error("No IDS for root task."),
            error("Images corrupted or too old criu was used for dump."),
            error("Can't find a parent for {pid#}"),
            error("Empty list on file desc id {*}"),
            error("Parent missed on non-root task with pid {pid#}, image corruption!"),
            error("Image corrupted on pid {pid#}"),
            error("Core task state data missed"),
        ],
        &[
            live("(00.035374) Error (criu/pstree.c:890): No IDS for root task."),
            live(
                "(00.035376) Error (criu/pstree.c:891): Images corrupted or too old criu was used \
                 for dump.",
            ),
            live("(00.034377) Error (criu/pstree.c:603): Can't find a parent for 31241"),
            live("(00.042785)  18062: Error (criu/files.c:243): Empty list on file desc id 0xa(2)"),
            of_binary("Parent missed on non-root task with pid %d, image corruption!"),
            of_binary("Image corrupted on pid %d"),
            of_binary("Core task state data missed"),
        ],
    ),
    cause(
        "plugin-missing",
        Area::Images,
        RESTORE,
        "The checkpoint needs the CRIU plugin {plugin}.",
        "Install the plugin, and name its directory with --libdir.",
        &[error("Missing required plugin: {plugin}")],
        &[of_binary("Missing required plugin: %s")],
    ),
    cause(
        "images-dir-unusable",
        Area::Images,
        ANY,
        "The images directory {directory|of the request} cannot be opened: {error}.",
        "Create the directory before the request. Over RPC, images_dir_fd is a descriptor number \
         of the process that made the socket pair, and must stay open until CRIU has answered.",
        &[
            error("Can't open dir {directory}: {error}"),
            error("Can't open images directory: {error}"),
            error("Can't change directory to {directory}: {error}"),
        ],
        &[
            live(
                "Error (criu/image.c:726): Can't open dir /nonexistent: No such file or directory",
            ),
            live(
                "Error (criu/image.c:726): Can't open dir /proc/53447/fd/999: No such file or \
                 directory",
            ),
            live(
                "Error (criu/cr-service.c:344): Can't open images directory: No such file or \
                 directory",
            ),
            live(
                "Error (criu/crtools.c:272): Can't change directory to /tmp/lab/root/hostfile: Not \
                 a directory",
            ),
        ],
    ),
    cause(
        "images-dir-not-given",
        Area::Options,
        ANY,
        "The request names no images directory.",
        "Set the images directory (--images-dir; over RPC images_dir_fd, or images_dir from CRIU \
         4.2 on).",
        &[error(
            "Neither images_dir_fd nor images_dir was passed by RPC client.",
        )],
        &[live(
            "Error (criu/cr-service.c:320): Neither images_dir_fd nor images_dir was passed by RPC \
             client.",
        )],
    ),
    cause(
        "images-dir-by-path-broken",
        Area::Criu,
        ANY,
        "This CRIU cannot take the images directory {directory} by path over RPC.",
        "Pass a descriptor instead (images_dir_fd), or use CRIU 4.2 or newer.",
        &[error("Can't readlink {directory}: Invalid argument")],
        &[live_on(
            "4.1.1",
            "Error (criu/cr-service.c:411): Can't readlink /tmp/lab/img.91yvnm8w: Invalid argument",
        )],
    ),
    cause(
        "work-dir-unusable",
        Area::Images,
        ANY,
        "The work directory cannot be entered: {error}.",
        "Create the directory (--work-dir); over RPC, keep work_dir_fd open until CRIU has \
         answered. A file where the images directory should be ends here as well.",
        &[error("Can't chdir to work_dir: {error}")],
        &[
            live(
                "Error (criu/cr-service.c:364): Can't chdir to work_dir: No such file or directory",
            ),
            live("Error (criu/cr-service.c:364): Can't chdir to work_dir: Not a directory"),
        ],
    ),
    cause(
        "parent-images-missing",
        Area::Images,
        ANY,
        "The directory of the previous images does not exist.",
        "--prev-images-dir is relative to the images directory; check it, and that the previous \
         dump is still there.",
        &[error("Invalid parent image directory provided: {error}")],
        &[live(
            "Error (criu/image.c:742): Invalid parent image directory provided: No such file or \
             directory",
        )],
    ),
    cause(
        "log-file-name",
        Area::Options,
        ANY,
        "The log file name contains a slash.",
        "Give --log-file a bare name; the log is written into the work directory.",
        &[error("No subdirs are allowed in log_file name: {*}")],
        &[live(
            "Error (criu/cr-service.c:375): No subdirs are allowed in log_file name: Success",
        )],
    ),
    cause(
        "log-file-not-writable",
        Area::Images,
        ANY,
        "The log file {file} cannot be created: {error}.",
        "Make the work directory writable, or choose another one with --work-dir.",
        &[error("Can't create log file {file}: {error}")],
        &[live(
            "Error (criu/log.c:226): Can't create log file ro.log: Read-only file system",
        )],
    ),
    cause(
        "no-space-left",
        Area::Images,
        ANY,
        "There is no space left where CRIU writes.",
        "Free space in the images directory's file system or choose another one; a dump needs \
         about as much as the tasks have resident memory. --auto-dedup frees what later snapshots \
         repeat.",
        &[error("{*}: No space left on device")],
        &[
            live(
                "(00.082977) Error (criu/page-xfer.c:263): page-xfer: Unable to spice data: No \
                 space left on device",
            ),
            live(
                "(00.083066) Error (criu/bfd.c:131): bfd: Error flushing image: No space left on \
                 device",
            ),
        ],
    ),
    cause(
        "pidfile-not-writable",
        Area::Options,
        ANY,
        "The pid file {file} cannot be written: {error}.",
        "Remove an older pid file of that name (CRIU does not overwrite it), or name a writable \
         place with --pidfile.",
        &[error("pidfile: Can't open {file}: {error}")],
        &[
            live(
                "(00.151701) Error (criu/log.c:416): pidfile: Can't open /nonexistent/pid: No such \
                 file or directory",
            ),
            live(
                "(00.071506) Error (criu/log.c:416): pidfile: Can't open \
                 /tmp/lab/img.r53545sa/pid: File exists",
            ),
        ],
    ),
];
