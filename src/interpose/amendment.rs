//! What is added to a request, and the form in which it waits for one in a file.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use prost::Message as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::recording::in_hex;
use super::request::IMAGES_DIR_FD;
use crate::error::OperationKind;
use crate::options::{
    DumpOptions, InvalidOption, PreDumpOptions, Prepared, RestoreOptions, newer_than,
};
use crate::rpc::fields::fields;
use crate::rpc::view::{CRIU_OPTS, view};
use crate::rpc::wire::CriuOpts;
use crate::version::Version;

/// Options to add to a request: each replaces the engine's own where an option has one value, and is added to them where it
/// may be there several times (`external`, `skip-mnt`, `enable-fs`, …).
///
/// ```
/// use criu_client::interpose::{Amendment, Verdict};
/// use criu_client::options::{DumpOptions, NetworkLock};
///
/// let amendment = Amendment::dump(DumpOptions::new().network_lock(NetworkLock::Skip))?;
/// let verdict = Verdict::Amend(amendment);
/// # let _ = verdict;
/// # Ok::<(), criu_client::options::InvalidOption>(())
/// ```
#[derive(Debug)]
pub struct Amendment {
    operation: OperationKind,
    opts: Box<CriuOpts>,
    unknown: Vec<u8>,
    work_dir: Option<PathBuf>,
    held: Vec<OwnedFd>,
}

impl Amendment {
    /// For DUMP.
    ///
    /// # Errors
    /// When an option's value cannot be right, or brings a descriptor into CRIU's own table, which is past by then.
    pub fn dump(options: DumpOptions) -> Result<Self, InvalidOption> {
        Self::new(OperationKind::Dump, options.prepare(0)?)
    }

    /// For PRE_DUMP and SINGLE_PRE_DUMP.
    ///
    /// # Errors
    /// As [`Amendment::dump`].
    pub fn pre_dump(options: PreDumpOptions) -> Result<Self, InvalidOption> {
        Self::new(OperationKind::PreDump, options.prepare(0)?)
    }

    /// For RESTORE.
    ///
    /// # Errors
    /// As [`Amendment::dump`].
    pub fn restore(options: RestoreOptions) -> Result<Self, InvalidOption> {
        Self::new(OperationKind::Restore, options.prepare(0)?)
    }

    fn new(operation: OperationKind, prepared: Prepared) -> Result<Self, InvalidOption> {
        let Prepared {
            mut opts,
            work_path,
            inherited,
            mut held,
            unknown,
        } = prepared;
        if !inherited.is_empty() {
            return Err(InvalidOption::new(
                "amend",
                format!("{} descriptors", inherited.len()),
                "cannot be brought into a CRIU that an engine has started",
                "leave out --inherit-fd and connected page-server sockets",
            ));
        }
        if let Some(path) = &work_path {
            let opened = std::fs::create_dir_all(path).and_then(|()| std::fs::File::open(path));
            let work = opened.map_err(|error| {
                let path = path.display().to_string();
                let remedy = format!("give a directory ({error})");
                InvalidOption::new("work-dir", path, "cannot be made or opened", remedy)
            })?;
            opts.work_dir_fd = Some(work.as_raw_fd());
            held.push(work.into());
        }
        Ok(Self {
            operation,
            opts: opts.into(),
            unknown,
            work_dir: work_path,
            held,
        })
    }

    /// What it is for.
    #[must_use]
    pub fn operation(&self) -> OperationKind {
        self.operation
    }

    /// The options that this CRIU does not have, and would silently ignore.
    #[must_use]
    pub fn newer_than(&self, criu: &Version) -> Vec<&'static str> {
        newer_than(&self.opts, criu)
            .into_iter()
            .map(|newer| newer.field)
            .collect()
    }

    /// The options by name.
    #[must_use]
    pub fn options(&self) -> Map<String, Value> {
        view(&self.encoded(), &CRIU_OPTS).unwrap_or_default()
    }

    /// The same in a form that outlives this process.
    ///
    /// # Errors
    /// When it holds a descriptor of this process other than that of its work directory.
    pub fn kept(&self) -> Result<KeptAmendment, InvalidOption> {
        let descriptors = self.held.len() - usize::from(self.work_dir.is_some());
        if descriptors > 0 {
            return Err(InvalidOption::new(
                "amend",
                format!("{descriptors} descriptors"),
                "cannot be kept for a process that comes later",
                "leave out descriptors (status-fd), and give the work directory as a path",
            ));
        }
        let mut opts = self.opts.clone();
        // A number of this process's table: the directory is opened again by whoever adds it.
        opts.work_dir_fd = None;
        let mut bytes = without(&opts.encode_to_vec(), IMAGES_DIR_FD);
        bytes.extend_from_slice(&self.unknown);
        Ok(KeptAmendment {
            operation: self.operation,
            view: view(&bytes, &CRIU_OPTS).unwrap_or_default(),
            bytes,
            work_dir: self.work_dir.clone(),
        })
    }

    pub(super) fn encoded(&self) -> Vec<u8> {
        let mut encoded = without(&self.opts.encode_to_vec(), IMAGES_DIR_FD);
        encoded.extend_from_slice(&self.unknown);
        encoded
    }

    pub(super) fn into_held(self) -> Vec<OwnedFd> {
        self.held
    }
}

/// An [`Amendment`] that waits in a file for the requests that it is to be added to: checked once, by whoever wrote it, and
/// not put together anew for each request.
///
/// ```
/// use criu_client::interpose::{Amendment, KeptAmendment};
/// use criu_client::options::{DumpOptions, NetworkLock};
///
/// let options = DumpOptions::new().network_lock(NetworkLock::Skip);
/// let file = serde_json::to_string(&Amendment::dump(options)?.kept()?)?;
/// assert_eq!(file, r#"{"operation":"dump","bytes":"800403","view":{"network_lock":"SKIP"}}"#);
/// let kept: KeptAmendment = serde_json::from_str(&file)?;
/// assert_eq!(kept.amendment()?.options()["network_lock"], "SKIP");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct KeptAmendment {
    /// What it is for.
    pub operation: OperationKind,
    /// The options as CRIU reads them (`criu_opts`), in hexadecimal where this is text.
    #[serde(with = "in_hex")]
    bytes: Vec<u8>,
    /// The same by the protocol's names, for people; it is not read back.
    #[serde(default)]
    pub view: Map<String, Value>,
    /// The directory that CRIU is to work in, which is made if it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work_dir: Option<PathBuf>,
}

impl KeptAmendment {
    /// The amendment again, its work directory opened.
    ///
    /// # Errors
    /// When the options are none, or the work directory cannot be opened.
    pub fn amendment(&self) -> Result<Amendment, InvalidOption> {
        let malformed = || {
            InvalidOption::new(
                "amend",
                format!("{} bytes", self.bytes.len()),
                "are no options that were kept",
                "keep them again",
            )
        };
        let unknown = fields(&self.bytes)
            .map_err(|_| malformed())?
            .into_iter()
            .filter(|field| CRIU_OPTS.field(field.number).is_none())
            .flat_map(|field| field.bytes.iter().copied())
            .collect();
        let opts = CriuOpts::decode(self.bytes.as_slice()).map_err(|_| malformed())?;
        Amendment::new(
            self.operation,
            Prepared {
                opts,
                work_path: self.work_dir.clone(),
                inherited: Vec::new(),
                held: Vec::new(),
                unknown,
            },
        )
    }
}

/// An encoded message without a field.
fn without(message: &[u8], number: u32) -> Vec<u8> {
    let kept = fields(message).unwrap_or_default().into_iter();
    kept.filter(|field| field.number != number)
        .flat_map(|field| field.bytes.iter().copied())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{ExternalOnDump, NetworkLock};

    #[test]
    fn what_is_kept_is_the_same_again() {
        let directory = tempfile::tempdir().unwrap();
        let work = directory.path().join("work");
        // Field 200 is of a CRIU that this library does not know.
        let options = DumpOptions::new()
            .network_lock(NetworkLock::Skip)
            .external("net[2]:b".parse::<ExternalOnDump>().unwrap())
            .work_path(&work)
            .extra(vec![0xc0, 0x0c, 0x05]);
        let amendment = Amendment::dump(options).unwrap();
        let text = serde_json::to_string(&amendment.kept().unwrap()).unwrap();
        std::fs::remove_dir(&work).unwrap();

        let kept: KeptAmendment = serde_json::from_str(&text).unwrap();
        assert!(!kept.view.contains_key("work_dir_fd"), "{text}");
        let again = kept.amendment().unwrap();
        assert!(work.is_dir());
        let shown = |amendment: &Amendment| {
            let mut options = amendment.options();
            assert!(options.remove("work_dir_fd").is_some());
            Value::from(options).to_string()
        };
        assert_eq!(shown(&again), shown(&amendment));
        assert_eq!(again.options()["#200"], 5);
        assert_eq!(again.operation(), OperationKind::Dump);
        assert_eq!(
            again.newer_than(&Version::new(3, 18, 0)),
            amendment.newer_than(&Version::new(3, 18, 0))
        );
        assert_eq!(again.into_held().len(), 1);
    }

    #[test]
    fn a_descriptor_of_this_process_is_not_kept() {
        let fd = std::fs::File::open("/dev/null").unwrap();
        let amendment = Amendment::dump(DumpOptions::new().status_fd(fd.into())).unwrap();
        let refused = amendment.kept().unwrap_err();
        assert!(refused.to_string().contains("status-fd"), "{refused}");
        let broken = r#"{"operation":"dump","bytes":"0a"}"#;
        let broken: KeptAmendment = serde_json::from_str(broken).unwrap();
        assert!(broken.amendment().is_err());
    }
}
