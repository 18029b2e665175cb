//! What a listener is to do, as a file beside the `criu` that it is started as.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use criu_client::interpose::KeptAmendment;

/// The name that engines start.
pub(crate) const CRIU: &str = "criu";
/// Beside it.
pub(crate) const SETTINGS: &str = "criu-interpose.json";
/// The version of the settings. In the first, `amend` had the words of the command line.
pub(crate) const VERSION: u32 = 2;
const WITH_WORDS: u32 = 1;

/// What a listener does when it is started as `criu` from its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Settings {
    pub(crate) interpose: u32,
    /// The real CRIU.
    pub(crate) criu: PathBuf,
    pub(crate) criu_version: String,
    /// Where what passes is told.
    pub(crate) sink: Sink,
    /// Programs at callbacks: CRIU's name of the callback, and the program.
    #[serde(default)]
    pub(crate) hooks: Vec<(String, PathBuf)>,
    #[serde(default)]
    pub(crate) hook_timeout_millis: Option<u64>,
    /// Where the programs' output goes.
    #[serde(default)]
    pub(crate) hook_output: Option<PathBuf>,
    /// Options that are added to requests, one amendment at most for each operation.
    #[serde(default)]
    pub(crate) amend: Vec<KeptAmendment>,
    /// The salt of pseudonyms for paths.
    #[serde(default)]
    pub(crate) mask: Option<u64>,
}

/// Where what passes is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Sink {
    /// Nowhere.
    Nowhere,
    /// To whoever listens on this socket.
    Socket(PathBuf),
    /// In a recording for each session, in this directory.
    Directory(PathBuf),
}

/// Why settings cannot be followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("{} cannot be used", path.display())]
    Unusable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{} has version {found}, and this listener wants {VERSION}: run `criuctl interpose install` again",
        path.display()
    )]
    OtherVersion { path: PathBuf, found: u64 },
}

/// The settings of the directory that this program was started from as `criu`; `None` when it was started as itself.
pub(crate) fn started_from() -> Option<Result<Settings, SettingsError>> {
    use std::os::unix::ffi::OsStrExt;
    let started = Path::new(std::ffi::OsStr::from_bytes(
        rustix::param::linux_execfn().to_bytes(),
    ));
    if started.file_name()? != CRIU {
        return None;
    }
    let path = started.parent()?.join(SETTINGS);
    // An engine waits: read at once, and looked at again only if something is wrong.
    let text = fs::read(&path).ok()?;
    Some(understood(&text).map_err(|wrong| match wrong {
        Wrong::Version(found) => SettingsError::OtherVersion { path, found },
        Wrong::Form(error) => SettingsError::Unusable {
            path,
            source: error.into(),
        },
    }))
}

enum Wrong {
    Version(u64),
    Form(serde_json::Error),
}

fn understood(text: &[u8]) -> Result<Settings, Wrong> {
    let settings = serde_json::from_slice::<Settings>(text);
    match settings {
        Ok(settings) if settings.interpose == VERSION => Ok(settings),
        // Those of the first version that amend nothing say the same in this one.
        Ok(settings) if settings.interpose == WITH_WORDS => Ok(settings),
        Ok(settings) => Err(Wrong::Version(settings.interpose.into())),
        Err(error) => {
            let version = serde_json::from_slice::<serde_json::Value>(text)
                .ok()
                .and_then(|value| value.get("interpose")?.as_u64());
            match version {
                Some(other) if other != u64::from(VERSION) => Err(Wrong::Version(other)),
                _ => Err(Wrong::Form(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = r#"{"interpose":1,"criu":"/usr/sbin/criu","criuVersion":"4.2.1","sink":"nowhere","amend":[]}"#;

    #[test]
    fn settings_of_the_first_version_are_followed_unless_they_have_words() {
        assert!(understood(FIRST.as_bytes()).is_ok());
        assert!(understood(FIRST.replace(":1,", ":2,").as_bytes()).is_ok());
        for (text, version) in [
            (FIRST.replace("[]", r#"["dump:network-lock=skip"]"#), 1),
            (FIRST.replace(":1,", ":3,"), 3),
            (r#"{"interpose":9}"#.to_owned(), 9),
        ] {
            let found = match understood(text.as_bytes()) {
                Err(Wrong::Version(found)) => found,
                _ => panic!("{text} is followed"),
            };
            assert_eq!(found, version);
        }
        for broken in ["", "{}", &FIRST[..20], r#"{"interpose":2}"#] {
            assert!(matches!(understood(broken.as_bytes()), Err(Wrong::Form(_))));
        }
    }
}
