//! Branches of AUFS.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A union of branches, which has them in sysfs and not among its options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Aufs {
    /// The topmost, which is written to, first.
    pub branches: Vec<PathBuf>,
}

/// What an AUFS root was in sysfs, as CRIU logs it: `/sys/fs/aufs/si_ID/brN : DIRECTORY`.
const SYSFS: &str = "/sys/fs/aufs/si_";

impl Aufs {
    /// From the lines of a dump's log, in the order of the branches' numbers.
    pub(super) fn of_log(log: &str) -> Option<Self> {
        let mut branches: Vec<(u32, PathBuf)> = log.lines().filter_map(branch).collect();
        branches.sort();
        branches.dedup();
        let branches: Vec<PathBuf> = branches.into_iter().map(|(_, path)| path).collect();
        (!branches.is_empty()).then_some(Self { branches })
    }

    /// Without permissions the first branch is written to and the others are only read.
    pub(super) fn options(&self) -> String {
        let branches: Vec<String> = (self.branches.iter())
            .map(|path| path.to_string_lossy().into_owned())
            .collect();
        format!("br={}", branches.join(":"))
    }
}

fn branch(line: &str) -> Option<(u32, PathBuf)> {
    let (_, rest) = line.split_once(SYSFS)?;
    let (_, rest) = rest.split_once("/br")?;
    let (number, path) = rest.split_once(" : ")?;
    // The kernel's permissions follow a branch, as =rw.
    let path = path.trim_end();
    let path = match path.rsplit_once('=') {
        Some((path, permissions)) if !permissions.contains('/') => path,
        _ => path,
    };
    let number = number.trim().parse().ok()?;
    path.starts_with('/').then(|| (number, path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_are_sorted_by_number() {
        let log: String = [0, 1, 10, 11, 2, 3]
            .map(|number| format!("(00.1) /sys/fs/aufs/si_f598876b/br{number} : /d/{number}\n"))
            .concat();
        let aufs = Aufs::of_log(&log).unwrap();
        assert_eq!(aufs.options(), "br=/d/0:/d/1:/d/2:/d/3:/d/10:/d/11");
        assert_eq!(Aufs::of_log("nothing\n"), None);
        let permissions =
            "/sys/fs/aufs/si_1/br0 : /a=b/c=rw\n/sys/fs/aufs/si_1/br1 : /a=b/d=ro+wh\n";
        assert_eq!(
            Aufs::of_log(permissions).unwrap().options(),
            "br=/a=b/c:/a=b/d"
        );
    }
}
