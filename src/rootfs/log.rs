//! What the log of a dump says of the root, which is all that was there when images did not have it: the three patterns of
//! docker_cr.sh, in its order.

use std::path::Path;

use super::aufs::Aufs;
use super::overlay::Overlay;
use super::unionfs::UnionFs;
use super::{Error, Rootfs};

/// The root file system in a `dump.log`; `None` if it names none, as that of a plain directory. `home` as for
/// [`Rootfs::of_mount`].
///
/// # Errors
/// [`Error::Incomplete`] when there is a line of the root, but not with all that is needed.
pub fn of_log(log: &str, home: Option<&Path>) -> Result<Option<Rootfs>, Error> {
    if let Some(aufs) = Aufs::of_log(log) {
        return Ok(Some(Rootfs::Aufs(aufs)));
    }
    let mut lines = log.lines().filter_map(mounted);
    let overlay = |options: &&str| {
        ["lowerdir=", "upperdir=", "workdir="]
            .iter()
            .all(|key| options.contains(key))
    };
    if let Some(options) = lines.clone().find(overlay) {
        return Overlay::of_options(options, home)
            .map(Rootfs::Overlay)
            .map(Some);
    }
    match lines.find(|options| options.contains("dirs=")) {
        Some(options) => UnionFs::of_options(options).map(Rootfs::UnionFs).map(Some),
        None => Ok(None),
    }
}

/// The options in a line such as `type overlay source overlay mnt_id 93 s_dev 0x29 / @ ./ flags 0x200000 options rw,…`.
fn mounted(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("type ")?;
    let (_, rest) = rest.split_once("source ")?;
    let (_, options) = rest.split_once("options ")?;
    // What is mounted elsewhere in the container is none of the root's.
    let at_root = [" / @ ./ ", " / @ / "].iter().any(|at| rest.contains(at));
    (at_root || !rest.contains(" @ ")).then(|| options.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::MountRequest;
    use crate::rootfs::Mounter;
    use crate::rootfs::tests::Noted;

    macro_rules! log {
        ($name:literal) => {
            include_str!(concat!("../../tests/data/rootfs/", $name))
        };
    }

    fn request(log: &str) -> MountRequest {
        let root = of_log(log, None).unwrap().unwrap();
        let mut noted = Noted::default();
        noted
            .mount(&root.request(Path::new("/r")).unwrap())
            .unwrap();
        noted.0.remove(0)
    }

    #[test]
    fn aufs_as_criu_logged_it_in_2015() {
        let request = request(log!("aufs.log"));
        assert_eq!((request.fs_type, &*request.source), ("aufs", "none"));
        let directory = "/var/lib/docker/aufs/diff/";
        let branches: Vec<&str> = request
            .options
            .strip_prefix("br=")
            .unwrap()
            .split(':')
            .map(|path| path.strip_prefix(directory).unwrap())
            .collect();
        assert_eq!(branches.len(), 12);
        assert!(branches[0].starts_with("4c01db0b339c"), "{branches:?}");
        assert!(branches[1].ends_with("-init"));
        assert!(branches[2].starts_with("02"), "br2 is before br10");
        assert!(branches[10].starts_with("10") && branches[11].starts_with("11"));
    }

    #[test]
    fn overlay_as_the_script_looked_for_it() {
        let request = request(log!("overlay.log"));
        assert_eq!(
            (request.fs_type, &*request.source, &*request.options),
            (
                "overlay",
                "overlay",
                "lowerdir=/var/lib/docker/overlay/5cbbdd/root,upperdir=/var/lib/docker/overlay/1b4b6c/upper,\
                 workdir=/var/lib/docker/overlay/1b4b6c/work"
            )
        );
    }

    #[test]
    fn unionfs_with_its_directories() {
        let request = request(log!("unionfs.log"));
        assert_eq!(
            (request.fs_type, &*request.source, &*request.options),
            ("unionfs", "none", "dirs=/d/rw=rw:/d/init=ro:/d/base=ro")
        );
        let none = "type unionfs source none / @ ./ flags 0x0 options rw,dirs=\n";
        let refusal = of_log(none, None).unwrap_err().to_string();
        assert!(
            refusal.contains("do not have branch information"),
            "{refusal}"
        );
    }

    #[test]
    fn a_log_of_a_plain_directory_says_nothing() {
        let log = "(00.01) type ext4 source /dev/sda1 mnt_id 9 s_dev 0x801 /x @ ./ flags 0x0 options data=ordered\n";
        assert_eq!(of_log(log, None).unwrap(), None);
        assert_eq!(of_log("", None).unwrap(), None);
        // A volume that is an overlay by itself.
        let volume = "type overlay source x / @ ./data flags 0x0 options lowerdir=/a,upperdir=/b,workdir=/c\n";
        assert_eq!(of_log(volume, None).unwrap(), None);
    }
}
