//! The values that options take, in place of CRIU's words and numbers.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};
use std::path::PathBuf;
use std::str::FromStr;

use super::InvalidOption;

/// Defines an enum whose variants are single words on CRIU's command line.
macro_rules! words {
    (
        $(#[$meta:meta])*
        $name:ident of $option:literal, one of $all:literal {
            $( $(#[$doc:meta])* $variant:ident = $word:literal, )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $( $(#[$doc])* $variant, )*
        }

        impl $name {
            /// Every variant, in the order of declaration.
            pub const ALL: &'static [Self] = &[$( Self::$variant, )*];

            /// The word that stands for it in text.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $( Self::$variant => $word, )*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = InvalidOption;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::ALL
                    .iter()
                    .copied()
                    .find(|value| value.as_str() == text)
                    .ok_or_else(|| InvalidOption::new($option, text, "is not known", concat!("give one of ", $all)))
            }
        }
    };
}

words! {
    /// What happens to the tasks once their images are complete.
    Leave of "leave-running", one of "killed, running, stopped" {
        /// They are killed, so that nothing changes behind the images. This is what CRIU does by itself; the parent of the
        /// tasks must reap them before they can be restored under the same pids.
        Killed = "killed",
        /// They go on (`--leave-running`). They may change files and connections that the images refer to: take a snapshot of
        /// the file system from the post-dump hook, while they are still frozen.
        Running = "running",
        /// They stay in state T until a SIGCONT (`--leave-stopped`, since CRIU 3.19 over RPC).
        Stopped = "stopped",
    }
}

words! {
    /// How much CRIU writes to its log.
    LogLevel of "verbosity", one of "silent, error, warning, info, debug" {
        /// Nothing. The answer then carries no error message either, so a failure cannot be explained.
        Silent = "silent",
        /// Errors only.
        Error = "error",
        /// Errors and warnings: what CRIU does when no level is given.
        Warning = "warning",
        /// Also what CRIU is doing, and timestamps.
        Info = "info",
        /// Also lots of detail.
        Debug = "debug",
    }
}

words! {
    /// What is done about the control groups of the tasks. The dump must have used a mode other than `Ignore` for a restore to
    /// find anything to do.
    CgroupMode of "manage-cgroups", one of "ignore, none, props, soft, full, strict, default" {
        /// As if there were no control groups.
        Ignore = "ignore",
        /// The groups must exist; their properties are left alone.
        None = "none",
        /// The groups must exist; their properties are restored.
        Props = "props",
        /// Groups are made where they are missing, and properties restored in those that were made. CRIU's default.
        Soft = "soft",
        /// Groups are made where they are missing, and the properties of all of them restored.
        Full = "full",
        /// No group may exist; all are made and their properties restored.
        Strict = "strict",
        /// Whatever this CRIU takes for its default mode: soft, up to CRIU 4.3.
        Default = "default",
    }
}

words! {
    /// How packets are kept from the tasks between dump and restore, so that the kernel does not reset their connections.
    NetworkLock of "network-lock", one of "iptables, nftables, skip" {
        /// iptables rules.
        Iptables = "iptables",
        /// nftables rules.
        Nftables = "nftables",
        /// No lock: whoever dumps has locked the network already, or connections are not kept. Since CRIU 3.19.
        Skip = "skip",
    }
}

words! {
    /// How a pre-dump reads memory.
    PreDumpMode of "pre-dump-mode", one of "splice, read" {
        /// With a parasite in the task, through pipes. CRIU's default.
        Splice = "splice",
        /// With process_vm_readv, while the tasks run on: shorter freezing, less memory.
        VmRead = "read",
    }
}

words! {
    /// How page images are written and read.
    ImageIoMode of "image-io-mode", one of "writeback, direct" {
        /// Through the page cache. CRIU's default.
        Writeback = "writeback",
        /// Past the page cache (O_DIRECT), so that a large dump does not push other data out of memory.
        Direct = "direct",
    }
}

/// What a restore demands of the processor, and a dump writes into its images: a set, made with `|`.
///
/// As text: names joined by commas, such as `fpu,ins`. Unlike CRIU's command line, which adds the names to its default,
/// the text is the whole set, and there is no negation with `^`.
///
/// Over RPC CRIU always writes `cpuinfo.img`, even for [`CpuCapabilities::NONE`]: [`CpuCapabilities::IMAGE`] changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CpuCapabilities(u32);

impl CpuCapabilities {
    /// No demands: the most dangerous choice.
    pub const NONE: Self = Self(0);
    /// The floating point unit must be compatible.
    pub const FPU: Self = Self(1);
    /// The processor must have everything that the images name.
    pub const CPU: Self = Self(2);
    /// The instruction set must be compatible.
    pub const INS: Self = Self(4);
    /// The image file of the capabilities is written.
    pub const IMAGE: Self = Self(8);
    /// All three demands: FPU, CPU and INS.
    pub const ALL: Self = Self(7);

    const NAMES: [(&'static str, Self); 4] = [
        ("fpu", Self::FPU),
        ("cpu", Self::CPU),
        ("ins", Self::INS),
        ("image", Self::IMAGE),
    ];

    /// Whether every capability of `other` is in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(crate) const fn bits(self) -> u32 {
        self.0
    }
}

impl BitOr for CpuCapabilities {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for CpuCapabilities {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl fmt::Display for CpuCapabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NONE {
            return f.write_str("none");
        }
        let mut separator = "";
        for (name, capability) in Self::NAMES {
            if self.contains(capability) {
                write!(f, "{separator}{name}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

impl FromStr for CpuCapabilities {
    type Err = InvalidOption;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || {
            InvalidOption::new(
                "cpu-cap",
                text,
                "is not a list of capabilities",
                "give none, all, or names among fpu, cpu, ins and image joined by commas",
            )
        };
        match text {
            "none" => return Ok(Self::NONE),
            "all" => return Ok(Self::ALL),
            _ => {}
        }
        let mut set = Self::NONE;
        for word in text.split(',') {
            let (_, capability) = Self::NAMES
                .iter()
                .find(|(name, _)| *name == word)
                .ok_or_else(unknown)?;
            set |= *capability;
        }
        Ok(set)
    }
}

/// The profile of a Linux security module that restored tasks get instead of the one they had.
///
/// As text: CRIU's own `apparmor:NAME`, `selinux:LABEL` or `none:`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LsmProfile {
    /// A profile of AppArmor, by name. Refused on a host that runs another module.
    AppArmor(String),
    /// A label of SELinux. Refused on a host that runs another module.
    Selinux(String),
    /// No profile is restored.
    None,
}

impl LsmProfile {
    pub(crate) fn check(&self) -> Result<(), InvalidOption> {
        match self {
            Self::AppArmor(name) | Self::Selinux(name) if name.is_empty() => {
                Err(InvalidOption::new(
                    "lsm-profile",
                    self.to_string(),
                    "has no name",
                    "give apparmor:NAME, selinux:LABEL or none:",
                ))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for LsmProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AppArmor(name) => write!(f, "apparmor:{name}"),
            Self::Selinux(label) => write!(f, "selinux:{label}"),
            Self::None => f.write_str("none:"),
        }
    }
}

impl FromStr for LsmProfile {
    type Err = InvalidOption;

    /// Reads CRIU's form; `none` may come without its colon.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let profile = match text.split_once(':') {
            Some(("apparmor", name)) => Self::AppArmor(name.to_owned()),
            Some(("selinux", label)) => Self::Selinux(label.to_owned()),
            Some(("none", "")) => Self::None,
            None if text == "none" => Self::None,
            _ => {
                return Err(InvalidOption::new(
                    "lsm-profile",
                    text,
                    "is not the profile of a known module",
                    "give apparmor:NAME, selinux:LABEL or none:",
                ));
            }
        };
        profile.check()?;
        Ok(profile)
    }
}

/// Whether memory pages are compressed in the images. Since CRIU 4.3, where it was built with LZ4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// Pages are stored as they are.
    Off,
    /// Blocks of LZ4.
    Lz4(Lz4),
}

/// How LZ4 compresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
#[must_use]
pub struct Lz4 {
    pub(crate) acceleration: Option<u32>,
    pub(crate) block_size: Option<u64>,
}

impl Lz4 {
    /// CRIU's own acceleration and block size.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trades size for speed: 1 to 65537, higher is faster and larger. Long option `--compress-acceleration`.
    pub fn acceleration(mut self, acceleration: u32) -> Self {
        self.acceleration = Some(acceleration);
        self
    }

    /// How many bytes are compressed together: a multiple of the page size, at most 4 MiB. Long option
    /// `--compress-block-size`.
    pub fn block_size(mut self, bytes: u64) -> Self {
        self.block_size = Some(bytes);
        self
    }
}

/// TLS on the connection that carries pages. It is only used on TCP connections that CRIU makes itself.
///
/// Files are PEM and are opened by CRIU; give absolute paths. What is not given is looked for where CRIU was built to look,
/// usually under `/etc/pki`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
#[must_use]
pub struct Tls {
    pub(crate) cacert: Option<PathBuf>,
    pub(crate) cacrl: Option<PathBuf>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) verify_name: Option<bool>,
}

impl Tls {
    /// TLS with the files that CRIU looks for by itself.
    pub fn new() -> Self {
        Self::default()
    }

    /// The authority that must have signed the peer's certificate. Long option `--tls-cacert`.
    pub fn cacert(mut self, path: impl Into<PathBuf>) -> Self {
        self.cacert = Some(path.into());
        self
    }

    /// The list of revoked certificates. Long option `--tls-cacrl`.
    pub fn cacrl(mut self, path: impl Into<PathBuf>) -> Self {
        self.cacrl = Some(path.into());
        self
    }

    /// The certificate that is shown to the peer. Long option `--tls-cert`.
    pub fn cert(mut self, path: impl Into<PathBuf>) -> Self {
        self.cert = Some(path.into());
        self
    }

    /// The private key of that certificate. Long option `--tls-key`.
    pub fn key(mut self, path: impl Into<PathBuf>) -> Self {
        self.key = Some(path.into());
        self
    }

    /// Whether the name in the server's certificate must be the host that was given as its address. CRIU checks unless this
    /// is false (`--tls-no-cn-verify`).
    pub fn verify_name(mut self, on: bool) -> Self {
        self.verify_name = Some(on);
        self
    }
}
