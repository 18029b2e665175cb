//! Existing namespaces that restored tasks join.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::InvalidOption;

const OPTION: &str = "join-ns";

/// CRIU reads the ids of a joined user namespace with a function that knows numbers up to this one only.
const LARGEST_ID: u32 = 65535;

/// A kind of namespace that a restore can join. A pid namespace is joined as an
/// [external one](super::ExternalOnDump::PidNamespace) instead; CRIU cannot join a cgroup namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JoinKind {
    /// Network.
    Net,
    /// Host name.
    Uts,
    /// Clock offsets.
    Time,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Mounts.
    Mnt,
    /// User ids. CRIU warns that this is hardly tested.
    User {
        /// The uid and gid that the root task takes inside, each at most 65535 (CRIU refuses larger ones).
        ids: Option<(u32, u32)>,
    },
}

impl JoinKind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Uts => "uts",
            Self::Time => "time",
            Self::Ipc => "ipc",
            Self::Mnt => "mnt",
            Self::User { .. } => "user",
        }
    }
}

/// A namespace that restored tasks join instead of getting one of their own (`--join-ns`).
///
/// As text, CRIU's own `KIND:FILE`, and `user:FILE,UID,GID`. Reading also takes a pid in the place of the file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JoinNamespace {
    kind: JoinKind,
    file: PathBuf,
}

impl JoinNamespace {
    /// The namespace that `file` stands for, such as `/run/netns/blue`. CRIU opens the file, in its own mount namespace.
    #[must_use]
    pub fn of_file(kind: JoinKind, file: impl Into<PathBuf>) -> Self {
        Self {
            kind,
            file: file.into(),
        }
    }

    /// The namespace of the process `pid`, in CRIU's pid namespace.
    ///
    /// It is sent as the path of a file in `/proc`: of pids above 65535 CRIU does not understand that they are pids.
    #[must_use]
    pub fn of_process(kind: JoinKind, pid: u32) -> Self {
        Self::of_file(kind, format!("/proc/{pid}/ns/{}", kind.name()))
    }

    /// Which namespace is joined.
    #[must_use]
    pub fn kind(&self) -> JoinKind {
        self.kind
    }

    /// The file that stands for it.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    pub(crate) fn check(&self) -> Result<(), InvalidOption> {
        if let JoinKind::User {
            ids: Some((uid, gid)),
        } = self.kind
            && uid.max(gid) > LARGEST_ID
        {
            return Err(InvalidOption::new(
                OPTION,
                self.to_string(),
                "has an id above 65535, which CRIU does not read",
                "give smaller ids, or none",
            ));
        }
        Ok(())
    }
}

impl fmt::Display for JoinNamespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.name(), self.file.display())?;
        match self.kind {
            JoinKind::User {
                ids: Some((uid, gid)),
            } => write!(f, ",{uid},{gid}"),
            _ => Ok(()),
        }
    }
}

impl FromStr for JoinNamespace {
    type Err = InvalidOption;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |problem, remedy| Err(InvalidOption::new(OPTION, text, problem, remedy));
        const FORM: &str =
            "give net, uts, time, ipc, mnt or user, a colon, and an absolute path or a pid";
        let Some((name, rest)) = text.split_once(':') else {
            return refuse("names no namespace", FORM);
        };
        let (kind, file) = match name {
            "net" => (JoinKind::Net, rest),
            "uts" => (JoinKind::Uts, rest),
            "time" => (JoinKind::Time, rest),
            "ipc" => (JoinKind::Ipc, rest),
            "mnt" => (JoinKind::Mnt, rest),
            "user" => {
                let (file, ids) = split_ids(rest);
                (JoinKind::User { ids }, file)
            }
            "pid" => {
                return refuse(
                    "is a pid namespace, which CRIU cannot join",
                    "dump it as the external resource pid[INODE]:KEY and inherit KEY",
                );
            }
            "cgroup" => return refuse("is a cgroup namespace, which CRIU cannot join", FORM),
            _ => return refuse("is no kind of namespace", FORM),
        };
        let namespace = if !file.is_empty() && file.bytes().all(|byte| byte.is_ascii_digit()) {
            match file.parse() {
                Ok(pid) if pid > 0 => Self::of_process(kind, pid),
                _ => return refuse("has no pid that could exist", FORM),
            }
        } else if file.starts_with('/') {
            Self::of_file(kind, file)
        } else {
            return refuse("has neither an absolute path nor a pid", FORM);
        };
        namespace.check()?;
        Ok(namespace)
    }
}

/// Takes `,UID,GID` off the end of a path.
fn split_ids(text: &str) -> (&str, Option<(u32, u32)>) {
    let number = |digits: &str| -> Option<u32> {
        if digits.bytes().all(|byte| byte.is_ascii_digit()) {
            digits.parse().ok()
        } else {
            None
        }
    };
    let mut parts = text.rsplitn(3, ',');
    let (gid, uid, file) = (parts.next(), parts.next(), parts.next());
    match (file, uid.and_then(number), gid.and_then(number)) {
        (Some(file), Some(uid), Some(gid)) => (file, Some((uid, gid))),
        _ => (text, None),
    }
}
