//! `inventory.img`.

use std::os::fd::BorrowedFd;

use serde::Serialize;

use super::file::read_file;
use super::framing::{Format, Frames};
use super::{ImageError, proto};

/// The inventory alone has no common magic before its own.
const FORMAT: Format = Format {
    magics: &[0x5831_3116],
    max_file: 1 << 20,
};

const REQUIRED: &[(u32, &str)] = &[(1, "inventory_entry.img_version")];

/// What holds for a whole set of images.
///
/// CRIU writes it last, so a dump without it did not finish. Its presence proves less: a failed
/// pre-dump may leave one, and so does a dump that a callback refused at its end. Neither the
/// version of CRIU nor the pid of the root task is recorded here; the root is in
/// [`ProcessTree`](super::ProcessTree).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Inventory {
    /// The version of the image format: 1 when images lack the common magic (before CRIU 1.6),
    /// 2 since. Up to CRIU 4.2 a pre-dump records 0.
    pub img_version: u32,
    /// How a pre-dump read the memory; `None` in a dump.
    pub pre_dump_mode: Option<PreDumpMode>,
    /// The way to lock the network that the dump was set to, recorded whether or not there was
    /// anything to lock. `None` in a pre-dump and in images of older CRIUs.
    pub network_lock_method: Option<NetworkLockMethod>,
    /// The Linux security module whose labels the tasks had.
    pub lsm: Option<Lsm>,
    /// Whether established TCP connections were to be closed instead of dumped. `false` also when
    /// CRIU did not record it.
    pub tcp_close: bool,
    /// The CRIU plugins without which the images cannot be restored, in the order recorded. Bytes
    /// that are not UTF-8 are replaced.
    pub plugins: Vec<String>,
    /// The random UUID of the CRIU run that made the dump, which also names what that run left in
    /// the kernel, such as its nftables table. `None` in a pre-dump and in images of older CRIUs. The text
    /// is as found in the image, save that bytes that are not UTF-8 are replaced: check it before
    /// it becomes a part of any name.
    pub criu_run_id: Option<String>,
}

impl Inventory {
    /// Decodes the content of an `inventory.img` file; `file` names it in errors.
    ///
    /// # Errors
    ///
    /// [`ImageError`] when the bytes are not one complete inventory and nothing else.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, ImageError> {
        let frame = Frames::new(file, bytes, &FORMAT)?.only()?;
        let entry: proto::InventoryEntry = frame.decode()?;
        frame.require(REQUIRED)?;
        let plugins = entry.plugins_entry.unwrap_or_default().plugins;
        Ok(Self {
            img_version: entry.img_version,
            pre_dump_mode: entry.pre_dump_mode.map(PreDumpMode::from_image),
            network_lock_method: entry.network_lock_method.map(NetworkLockMethod::from_image),
            lsm: entry.lsmtype.map(Lsm::from_image),
            tcp_close: entry.tcp_close.unwrap_or(false),
            plugins: plugins.iter().map(|name| text(name)).collect(),
            criu_run_id: entry.dump_criu_run_id.as_deref().map(text),
        })
    }

    /// Reads the inventory from `file` in the open directory `dir`, usually
    /// [`INVENTORY`](super::INVENTORY) in the images directory. The descriptor stays the caller's.
    ///
    /// # Errors
    ///
    /// As [`Inventory::parse`], and when the file is not there, not readable or not regular.
    pub fn read(dir: BorrowedFd<'_>, file: &str) -> Result<Self, ImageError> {
        Self::parse(file, &read_file(dir, file, &FORMAT)?)
    }

    /// Whether the images are those of a pre-dump: a parent for further dumps that cannot be
    /// restored.
    pub fn is_pre_dump(&self) -> bool {
        self.pre_dump_mode.is_some()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// How a pre-dump read the memory of the tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum PreDumpMode {
    /// The tasks put their pages into pipes while frozen; CRIU's default.
    Splice,
    /// CRIU read the memory while the tasks ran.
    Read,
    /// A number that is not known here.
    Unknown(u32),
}

impl PreDumpMode {
    fn from_image(number: u32) -> Self {
        match number {
            1 => Self::Splice,
            2 => Self::Read,
            _ => Self::Unknown(number),
        }
    }
}

/// How a dump was set to keep packets off the connections of the tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NetworkLockMethod {
    /// Rules of iptables.
    Iptables,
    /// An nftables table.
    Nftables,
    /// No lock.
    Skip,
    /// A number that is not known here, as found in the image.
    Unknown(u32),
}

impl NetworkLockMethod {
    /// Images count from zero; the RPC's enum has the same methods counted from one.
    fn from_image(number: u32) -> Self {
        match number {
            0 => Self::Iptables,
            1 => Self::Nftables,
            2 => Self::Skip,
            _ => Self::Unknown(number),
        }
    }
}

/// A Linux security module, as far as CRIU knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Lsm {
    /// None that CRIU dumps labels of.
    None,
    /// SELinux.
    Selinux,
    /// AppArmor.
    Apparmor,
    /// A number that is not known here.
    Unknown(i32),
}

impl Lsm {
    fn from_image(number: i32) -> Self {
        match proto::Lsmtype::try_from(number) {
            Ok(proto::Lsmtype::NoLsm) => Self::None,
            Ok(proto::Lsmtype::Selinux) => Self::Selinux,
            Ok(proto::Lsmtype::Apparmor) => Self::Apparmor,
            Err(_) => Self::Unknown(number),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::tests::{damaged, entry, protos_require};

    macro_rules! image {
        ($name:literal) => {
            include_bytes!(concat!("../../tests/data/images/", $name, "/inventory.img")).as_slice()
        };
    }

    const PLUGINS: &[u8] = image!("criu-4.2.1/plugins");

    fn parse(bytes: &[u8]) -> Inventory {
        Inventory::parse("inventory.img", bytes).unwrap()
    }

    fn parse_message(message: &[u8]) -> Result<Inventory, ImageError> {
        Inventory::parse("x", &entry(FORMAT.magics, message))
    }

    fn dump(run_id: &str) -> Inventory {
        Inventory {
            img_version: 2,
            pre_dump_mode: None,
            network_lock_method: Some(NetworkLockMethod::Iptables),
            lsm: Some(Lsm::None),
            tcp_close: false,
            plugins: vec![],
            criu_run_id: Some(run_id.to_owned()),
        }
    }

    #[test]
    fn dumps_of_all_versions() {
        let old = parse(image!("criu-4.1.1"));
        assert_eq!(old, dump("7e6f0699-5e6e-4616-8378-e86e5b898b36"));
        let current = parse(image!("criu-4.2.1"));
        assert_eq!(current, dump("2ba3e0f5-ab66-4bb7-a7bb-db0c3338954d"));
        let new = parse(image!("criu-4.3"));
        assert_eq!(new, dump("99d9fd38-a598-4f1c-9540-af6b6c5cd6ad"));
        assert!(![old, current, new].iter().any(Inventory::is_pre_dump));
    }

    #[test]
    fn the_options_of_the_dump() {
        let nftables = parse(image!("criu-4.2.1/nftables-tcp-close"));
        assert_eq!(
            nftables.network_lock_method,
            Some(NetworkLockMethod::Nftables)
        );
        assert!(nftables.tcp_close);
        let skip = parse(image!("criu-4.2.1/skip-tcp-close"));
        assert_eq!(skip.network_lock_method, Some(NetworkLockMethod::Skip));
        assert!(skip.tcp_close);
    }

    #[test]
    fn the_plugins_of_the_dump() {
        assert_eq!(parse(PLUGINS).plugins, ["sample_beta", "sample_alpha"]);
    }

    #[test]
    fn pre_dumps_of_all_versions() {
        let pre_dump = |img_version, mode| Inventory {
            img_version,
            pre_dump_mode: Some(mode),
            network_lock_method: None,
            lsm: None,
            tcp_close: false,
            plugins: vec![],
            criu_run_id: None,
        };
        let old = parse(image!("criu-4.1.1/pre-dump"));
        assert_eq!(old, pre_dump(0, PreDumpMode::Splice));
        let read = parse(image!("criu-4.2.1/pre-dump-read"));
        assert_eq!(read, pre_dump(0, PreDumpMode::Read));
        let new = parse(image!("criu-4.3/pre-dump"));
        assert_eq!(new, pre_dump(2, PreDumpMode::Splice));
        assert!([old, read, new].iter().all(Inventory::is_pre_dump));
    }

    #[test]
    fn numbers_that_are_not_known_are_kept() {
        let inventory = parse_message(&[8, 3, 0x30, 9, 0x48, 7, 0x58, 5]).unwrap();
        assert_eq!(inventory.img_version, 3);
        assert_eq!(inventory.lsm, Some(Lsm::Unknown(9)));
        assert_eq!(inventory.pre_dump_mode, Some(PreDumpMode::Unknown(7)));
        assert_eq!(
            inventory.network_lock_method,
            Some(NetworkLockMethod::Unknown(5))
        );
        let known = parse_message(&[8, 2, 0x30, 1]).unwrap();
        assert_eq!(known.lsm, Some(Lsm::Selinux));
        let known = parse_message(&[8, 2, 0x30, 2]).unwrap();
        assert_eq!(known.lsm, Some(Lsm::Apparmor));
    }

    #[test]
    fn text_that_is_not_utf_8_does_not_hide_the_rest() {
        let message = [8, 2, 0x62, 4, 0x62, 2, b'a', 0xff, 0x6a, 2, 0xff, b'b'];
        let inventory = parse_message(&message).unwrap();
        assert_eq!(inventory.plugins, ["a\u{fffd}"]);
        assert_eq!(inventory.criu_run_id.as_deref(), Some("\u{fffd}b"));
    }

    #[test]
    fn an_empty_entry_is_not_version_0() {
        let error = parse_message(&[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "x: the entry at offset 4 has no inventory_entry.img_version"
        );
    }

    #[test]
    fn the_required_fields_are_those_of_the_proto() {
        protos_require("inventory.proto", "inventory_entry", REQUIRED);
        protos_require("inventory.proto", "plugins_entry", &[]);
    }

    #[test]
    fn other_images_and_trailing_bytes_are_refused() {
        let pstree = include_bytes!("../../tests/data/images/criu-4.2.1/pstree.img");
        let error = Inventory::parse("pstree.img", pstree).unwrap_err();
        assert!(
            matches!(
                error,
                ImageError::WrongMagic {
                    found: 0x5456_4319,
                    ..
                }
            ),
            "{error}"
        );
        let mut longer = PLUGINS.to_vec();
        longer.push(0);
        let error = Inventory::parse("inventory.img", &longer).unwrap_err();
        assert_eq!(
            error.to_string(),
            "inventory.img: trailing data after the only entry, at offset 113, length 1"
        );
    }

    #[test]
    fn json_is_in_words() {
        let json = serde_json::to_value(parse(image!("criu-4.2.1/skip-tcp-close"))).unwrap();
        assert_eq!(json["networkLockMethod"], "skip");
        assert_eq!(json["lsm"], "none");
        assert_eq!(json["tcpClose"], true);
        assert!(json["preDumpMode"].is_null());
        let unknown = parse_message(&[8, 2, 0x58, 5]).unwrap();
        let json = serde_json::to_value(unknown).unwrap();
        assert_eq!(
            json["networkLockMethod"],
            serde_json::json!({ "unknown": 5 })
        );
    }

    proptest! {
        #[test]
        fn damage_is_only_accepted_within_the_entry(bytes in damaged(PLUGINS)) {
            if Inventory::parse("x", &bytes).is_ok() {
                prop_assert_eq!(&bytes[..4], &PLUGINS[..4]);
                prop_assert_eq!(bytes[4..8].to_vec(), (bytes.len() as u32 - 8).to_le_bytes());
            }
        }

        #[test]
        fn every_cut_is_a_truncation(len in 0..PLUGINS.len()) {
            let cut = Inventory::parse("x", &PLUGINS[..len]);
            prop_assert!(matches!(cut, Err(ImageError::Truncated { .. })), "{:?}", cut);
        }

        #[test]
        fn any_message_is_survived(message in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Err(error) = parse_message(&message) {
                let expected =
                    matches!(error, ImageError::Malformed { .. } | ImageError::MissingField { .. });
                prop_assert!(expected, "{}", error);
            }
        }
    }
}
