//! Resources that lie outside the task tree, as CRIU is told of them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::InvalidOption;
use super::limits;

const OPTION: &str = "external";

/// Which bind mounts from outside are found automatically. CRIU reads one of these per entry: for masters and shared mounts
/// together, give both entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AutoMounts {
    /// Mounts that are neither a slave of, nor shared with, a mount outside: `mnt[]`.
    Private,
    /// Also slaves of a mount outside: `mnt[]:m`.
    Masters,
    /// Also mounts shared with the outside: `mnt[]:s`.
    Shared,
}

impl AutoMounts {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Private => "mnt[]",
            Self::Masters => "mnt[]:m",
            Self::Shared => "mnt[]:s",
        }
    }

    fn parse(text: &str) -> Result<Option<Self>, InvalidOption> {
        match text.strip_prefix("mnt[]") {
            None => Ok(None),
            Some("" | ":") => Ok(Some(Self::Private)),
            Some(":m") => Ok(Some(Self::Masters)),
            Some(":s") => Ok(Some(Self::Shared)),
            Some(_) => Err(InvalidOption::new(
                OPTION,
                text,
                "has flags of which CRIU reads one letter at most",
                "give mnt[], mnt[]:m and mnt[]:s as entries of their own",
            )),
        }
    }
}

/// A resource outside the task tree that a dump leaves out (`--external` of a dump).
///
/// As text: CRIU's own form. CRIU takes one such string per resource and does not check it; what it does not know it
/// ignores. Reading one here refuses what CRIU would ignore. The same string means different things on the two sides, hence
/// two types. What was dumped as external has a counterpart at restore:
///
/// | dumped as | restored by |
/// |---|---|
/// | [`Mount`](Self::Mount) | [`ExternalOnRestore::Mount`] with the same name |
/// | [`MountAuto`](Self::MountAuto) | [`ExternalOnRestore::MountAuto`], the same ones |
/// | [`Device`](Self::Device) | [`ExternalOnRestore::Device`] with the same name |
/// | [`File`](Self::File) | an inherited descriptor, [`InheritKey::File`](super::InheritKey::File) |
/// | [`Tty`](Self::Tty) | an inherited descriptor, [`InheritKey::Tty`](super::InheritKey::Tty) |
/// | [`UnixSocket`](Self::UnixSocket) | `external_unix_sockets`, or [`InheritKey::Socket`](super::InheritKey::Socket) |
/// | [`NetNamespace`](Self::NetNamespace), [`PidNamespace`](Self::PidNamespace) | an inherited descriptor of a namespace, [`InheritKey::Namespace`](super::InheritKey::Namespace) |
///
/// [`ExternalOnRestore::Veth`], [`Macvlan`](ExternalOnRestore::Macvlan) and [`NetDevice`](ExternalOnRestore::NetDevice) have
/// no counterpart at dump: those devices are in the images.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExternalOnDump {
    /// `mnt[MOUNTPOINT]:NAME`: a bind mount from outside, in the root task's mount namespace.
    Mount {
        /// Where it is mounted, as the tasks see it: an absolute path.
        mountpoint: PathBuf,
        /// The name that stands for it in the images.
        name: String,
    },
    /// `mnt[]`: bind mounts from outside, found automatically.
    MountAuto(AutoMounts),
    /// `dev[MAJOR/MINOR]:NAME`: a block device that is mounted with a file system CRIU does not know.
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
        /// The name that stands for it in the images.
        name: String,
    },
    /// `file[MOUNT:INODE]`, hexadecimal: an open file that cannot be reached in the task's mount namespace.
    File {
        /// `mnt_id` in `/proc/PID/fdinfo/FD`.
        mount_id: u32,
        /// Inode number.
        inode: u64,
    },
    /// `tty[RDEV:DEV]`, hexadecimal: an open terminal.
    Tty {
        /// `st_rdev` of the terminal, as stat(2) packs it.
        rdev: u64,
        /// `st_dev` of the terminal, as stat(2) packs it.
        dev: u64,
    },
    /// `unix[INODE]`: a unix socket whose peer is outside.
    UnixSocket {
        /// Inode number of the socket in the tree.
        inode: u32,
    },
    /// `net[INODE]:KEY`: a network namespace that is not dumped. Since CRIU 3.11.
    NetNamespace {
        /// Inode number of `/proc/PID/ns/net`.
        inode: u32,
        /// The key of the descriptor that restore inherits for it.
        key: String,
    },
    /// `pid[INODE]:KEY`: a pid namespace that is not dumped. No dumped task may be pid 1 in it. Since CRIU 3.15.
    PidNamespace {
        /// Inode number of `/proc/PID/ns/pid`.
        inode: u32,
        /// The key of the descriptor that restore inherits for it.
        key: String,
    },
}

/// The counterpart, at restore, of a resource that a dump left out (`--external` of a restore).
///
/// As text: CRIU's own form.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExternalOnRestore {
    /// `mnt[NAME]:PATH`: what is bind mounted where the dump had a mount of this name.
    Mount {
        /// The name that the dump gave to the mount.
        name: String,
        /// An absolute path on the host, in CRIU's mount namespace.
        path: PathBuf,
    },
    /// `mnt[]`: bind mounts that the dump found automatically.
    MountAuto(AutoMounts),
    /// `dev[NAME]:PATH`: the device that stands in for the dumped one.
    Device {
        /// The name that the dump gave to the device.
        name: String,
        /// The device file on the host.
        path: PathBuf,
    },
    /// `veth[INSIDE]:OUTSIDE@BRIDGE`: the name of the outer end of a veth pair, which the kernel chooses otherwise.
    Veth {
        /// Name of the interface in the images.
        inside: String,
        /// Name of its peer on the host.
        outside: String,
        /// A bridge on the host to which the peer is added. The restore fails when either is missing, also when the images
        /// have no interface of this name.
        bridge: Option<String>,
    },
    /// `macvlan[INSIDE]:OUTSIDE`: the host interface that a macvlan interface is put on. It must exist already.
    Macvlan {
        /// Name of the interface in the images.
        inside: String,
        /// Name of the interface on the host.
        outside: String,
    },
    /// `netdev[INSIDE]:OUTSIDE`: an interface that is there already and is moved in, in place of a dumped veth. Since CRIU
    /// 3.16.
    NetDevice {
        /// Name of the interface in the images.
        inside: String,
        /// Name of the prepared interface on the host.
        outside: String,
    },
}

impl ExternalOnDump {
    /// What CRIU identifies the resource by: `type[id]`, or the flag of automatic mounts.
    pub(crate) fn key(&self) -> String {
        match self {
            Self::MountAuto(which) => which.as_str().to_owned(),
            _ => bracketed(&self.to_string()),
        }
    }

    pub(crate) fn checked(&self) -> Result<String, InvalidOption> {
        let text = self.to_string();
        match self {
            Self::Mount { mountpoint, name } => {
                id(&text, path(&text, mountpoint)?)?;
                id(&text, name)?;
            }
            Self::Device { name, .. } => id(&text, name)?,
            Self::NetNamespace { key, .. } | Self::PidNamespace { key, .. } => {
                not_empty(&text, key)?
            }
            Self::MountAuto(_) | Self::File { .. } | Self::Tty { .. } | Self::UnixSocket { .. } => {
            }
        }
        limits::no_nul(OPTION, &text)?;
        Ok(text)
    }
}

impl ExternalOnRestore {
    /// What CRIU identifies the resource by: `type[id]`, or the flag of automatic mounts.
    pub(crate) fn key(&self) -> String {
        match self {
            Self::MountAuto(which) => which.as_str().to_owned(),
            _ => bracketed(&self.to_string()),
        }
    }

    pub(crate) fn checked(&self) -> Result<String, InvalidOption> {
        let text = self.to_string();
        match self {
            Self::Mount { name, path: host } | Self::Device { name, path: host } => {
                id(&text, name)?;
                path(&text, host)?;
            }
            Self::Veth {
                inside,
                outside,
                bridge,
            } => {
                interface(&text, inside)?;
                interface(&text, outside)?;
                if let Some(bridge) = bridge {
                    interface(&text, bridge)?;
                }
            }
            Self::Macvlan { inside, outside } | Self::NetDevice { inside, outside } => {
                interface(&text, inside)?;
                interface(&text, outside)?;
            }
            Self::MountAuto(_) => {}
        }
        limits::no_nul(OPTION, &text)?;
        Ok(text)
    }
}

impl fmt::Display for ExternalOnDump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount { mountpoint, name } => write!(f, "mnt[{}]:{name}", mountpoint.display()),
            Self::MountAuto(which) => f.write_str(which.as_str()),
            Self::Device { major, minor, name } => write!(f, "dev[{major}/{minor}]:{name}"),
            Self::File { mount_id, inode } => write!(f, "file[{mount_id:x}:{inode:x}]"),
            Self::Tty { rdev, dev } => write!(f, "tty[{rdev:x}:{dev:x}]"),
            Self::UnixSocket { inode } => write!(f, "unix[{inode}]"),
            Self::NetNamespace { inode, key } => write!(f, "net[{inode}]:{key}"),
            Self::PidNamespace { inode, key } => write!(f, "pid[{inode}]:{key}"),
        }
    }
}

impl fmt::Display for ExternalOnRestore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount { name, path } => write!(f, "mnt[{name}]:{}", path.display()),
            Self::MountAuto(which) => f.write_str(which.as_str()),
            Self::Device { name, path } => write!(f, "dev[{name}]:{}", path.display()),
            Self::Veth {
                inside,
                outside,
                bridge,
            } => {
                write!(f, "veth[{inside}]:{outside}")?;
                match bridge {
                    Some(bridge) => write!(f, "@{bridge}"),
                    None => Ok(()),
                }
            }
            Self::Macvlan { inside, outside } => write!(f, "macvlan[{inside}]:{outside}"),
            Self::NetDevice { inside, outside } => write!(f, "netdev[{inside}]:{outside}"),
        }
    }
}

impl FromStr for ExternalOnDump {
    type Err = InvalidOption;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(which) = AutoMounts::parse(text)? {
            return Ok(Self::MountAuto(which));
        }
        let (kind, id, value) = split(text)?;
        let form = |form: &'static str| {
            move || InvalidOption::new(OPTION, text, "is not of the form that CRIU reads", form)
        };
        let parsed = match kind {
            "mnt" => Self::Mount {
                mountpoint: id.into(),
                name: value
                    .ok_or_else(form("give mnt[MOUNTPOINT]:NAME"))?
                    .to_owned(),
            },
            "dev" => {
                let form = form("give dev[MAJOR/MINOR]:NAME with decimal numbers");
                let (major, minor) = id.split_once('/').ok_or_else(form)?;
                Self::Device {
                    major: limits::decimal(major).ok_or_else(form)?,
                    minor: limits::decimal(minor).ok_or_else(form)?,
                    name: value.ok_or_else(form)?.to_owned(),
                }
            }
            "file" => {
                let form = form("give file[MOUNT:INODE] with hexadecimal numbers, without 0x");
                let (mount_id, inode) = hex_pair(id, value).ok_or_else(form)?;
                Self::File {
                    mount_id: mount_id.try_into().map_err(|_| form())?,
                    inode,
                }
            }
            "tty" => {
                let form = form("give tty[RDEV:DEV] with hexadecimal numbers, without 0x");
                let (rdev, dev) = hex_pair(id, value).ok_or_else(form)?;
                Self::Tty { rdev, dev }
            }
            "unix" => {
                let form = form("give unix[INODE] with a decimal number and nothing after it");
                match value {
                    None => Self::UnixSocket {
                        inode: limits::decimal(id).ok_or_else(form)?,
                    },
                    Some(_) => return Err(form()),
                }
            }
            "net" | "pid" => {
                let form = form("give net[INODE]:KEY or pid[INODE]:KEY with a decimal number");
                let inode = limits::decimal(id).ok_or_else(form)?;
                let key = value.ok_or_else(form)?.to_owned();
                match kind {
                    "net" => Self::NetNamespace { inode, key },
                    _ => Self::PidNamespace { inode, key },
                }
            }
            "veth" | "macvlan" | "netdev" => {
                return Err(InvalidOption::new(
                    OPTION,
                    text,
                    "is for a restore only",
                    "give it to the restore",
                ));
            }
            _ => return Err(unknown(text, "mnt, dev, file, tty, unix, net and pid")),
        };
        parsed.checked()?;
        Ok(parsed)
    }
}

impl FromStr for ExternalOnRestore {
    type Err = InvalidOption;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(which) = AutoMounts::parse(text)? {
            return Ok(Self::MountAuto(which));
        }
        let (kind, id, value) = split(text)?;
        let value = |form: &'static str| {
            value
                .ok_or_else(|| InvalidOption::new(OPTION, text, "has no value after a colon", form))
        };
        let id = id.to_owned();
        let parsed = match kind {
            "mnt" => Self::Mount {
                path: value("give mnt[NAME]:PATH")?.into(),
                name: id,
            },
            "dev" => Self::Device {
                path: value("give dev[NAME]:PATH")?.into(),
                name: id,
            },
            "veth" => {
                let value = value("give veth[INSIDE]:OUTSIDE or veth[INSIDE]:OUTSIDE@BRIDGE")?;
                let (outside, bridge) = match value.split_once('@') {
                    Some((outside, bridge)) => (outside, Some(bridge)),
                    None => (value, None),
                };
                Self::Veth {
                    inside: id,
                    outside: outside.to_owned(),
                    bridge: bridge.map(str::to_owned),
                }
            }
            "macvlan" => Self::Macvlan {
                outside: value("give macvlan[INSIDE]:OUTSIDE")?.to_owned(),
                inside: id,
            },
            "netdev" => Self::NetDevice {
                outside: value("give netdev[INSIDE]:OUTSIDE")?.to_owned(),
                inside: id,
            },
            "file" | "tty" | "unix" | "net" | "pid" => {
                return Err(InvalidOption::new(
                    OPTION,
                    text,
                    "is for a dump only",
                    "give the restore an inherited descriptor for it",
                ));
            }
            _ => return Err(unknown(text, "mnt, dev, veth, macvlan and netdev")),
        };
        parsed.checked()?;
        Ok(parsed)
    }
}

/// Splits `type[id]:value`. The id ends where CRIU sees its end: at the first bracket that a colon or nothing follows.
fn split(text: &str) -> Result<(&str, &str, Option<&str>), InvalidOption> {
    let parts = || {
        let (kind, rest) = text.split_once('[')?;
        match rest.split_once("]:") {
            Some((id, value)) => Some((kind, id, Some(value))),
            None => Some((kind, rest.strip_suffix(']')?, None)),
        }
    };
    parts().ok_or_else(|| {
        InvalidOption::new(
            OPTION,
            text,
            "is not of the form type[id]:value",
            "give a type, an id in square brackets, and where the type has one a colon and a value",
        )
    })
}

/// `type[id]` of `type[id]:value`.
fn bracketed(text: &str) -> String {
    match text.find("]:") {
        Some(end) => text[..=end].to_owned(),
        None => text.to_owned(),
    }
}

fn unknown(text: &str, known: &'static str) -> InvalidOption {
    InvalidOption::new(
        OPTION,
        text,
        "is of a type that CRIU would silently ignore",
        format!("the types are {known}"),
    )
}

fn hex_pair(id: &str, value: Option<&str>) -> Option<(u64, u64)> {
    let (first, second) = id.split_once(':')?;
    match value {
        None => Some((limits::hexadecimal(first)?, limits::hexadecimal(second)?)),
        Some(_) => None,
    }
}

fn not_empty(text: &str, part: &str) -> Result<(), InvalidOption> {
    if part.is_empty() {
        return Err(InvalidOption::new(
            OPTION,
            text,
            "has an empty name",
            "give a name that says which resource it is",
        ));
    }
    Ok(())
}

/// Checks a text that stands, here or at restore, between the brackets.
fn id(text: &str, part: &str) -> Result<(), InvalidOption> {
    not_empty(text, part)?;
    // CRIU finds an entry by comparing up to the closing bracket and looking for the colon after it, and takes whatever
    // begins with mnt[] for the request to find mounts by itself.
    if part.contains("]:") || part.starts_with(']') {
        return Err(InvalidOption::new(
            OPTION,
            text,
            "has ]: in a name, or ] at its beginning, which CRIU takes for the end of the name",
            "choose a name without it",
        ));
    }
    Ok(())
}

fn path<'a>(text: &str, path: &'a Path) -> Result<&'a str, InvalidOption> {
    let valid = path.to_str().ok_or_else(|| {
        InvalidOption::new(
            OPTION,
            text,
            "has a path that is not UTF-8, which CRIU's protocol cannot carry",
            "rename the file, or bind mount it under another name",
        )
    })?;
    if !valid.starts_with('/') {
        return Err(InvalidOption::new(
            OPTION,
            text,
            "has a path that is not absolute",
            "give the path from the root on",
        ));
    }
    Ok(valid)
}

fn interface(text: &str, name: &str) -> Result<(), InvalidOption> {
    const LONGEST: usize = 15;
    let allowed = |c: char| !c.is_whitespace() && !matches!(c, '/' | ':' | '@' | '[' | ']' | '\0');
    if name.is_empty()
        || name.len() > LONGEST
        || matches!(name, "." | "..")
        || !name.chars().all(allowed)
    {
        return Err(InvalidOption::new(
            OPTION,
            text,
            "has a text in it that is no name of a network interface",
            "give names of 1 to 15 bytes without blanks, slashes, colons, brackets and @",
        ));
    }
    Ok(())
}
