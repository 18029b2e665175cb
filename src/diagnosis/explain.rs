//! A log that someone has, without the operation that wrote it.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::examine::{Examination, Findings, examine};
use super::log::LogDigest;

/// Why a log could not be explained.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExplainError {
    /// The file or directory could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// What was to be read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The directory has no `*.log` that CRIU wrote.
    #[error("no CRIU log (*.log) in {}", directory.display())]
    NoLog {
        /// The directory.
        directory: PathBuf,
    },
    /// The path is neither a file nor a directory.
    #[error("{} is neither a file nor a directory", path.display())]
    NoFile {
        /// The path.
        path: PathBuf,
    },
    /// The file does not look like a log of CRIU.
    #[error("{} is not a log of CRIU", path.display())]
    NotALog {
        /// The file.
        path: PathBuf,
    },
}

/// Explains a log file, or the newest log of an images or work directory.
///
/// In a directory, the `*.log` files are looked at from the newest to the oldest (by modification
/// time), and the first that CRIU wrote is taken; links are not followed and sub-directories not
/// entered. What CRIU was doing is read from the log itself. A log that ends in success gives
/// findings without a cause.
///
/// # Errors
///
/// [`ExplainError`], naming the path.
pub fn explain(path: &Path) -> Result<Findings, ExplainError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| ExplainError::Io { path, source }
    };
    let kind = fs::metadata(path).map_err(at(path))?;
    if kind.is_dir() {
        for log in logs_of(path).map_err(at(path))? {
            let digest = read(&log).map_err(at(&log))?;
            if digest.is_of_criu() {
                return Ok(findings(log, digest));
            }
        }
        return Err(ExplainError::NoLog {
            directory: path.to_owned(),
        });
    }
    if !kind.is_file() {
        return Err(ExplainError::NoFile {
            path: path.to_owned(),
        });
    }
    let digest = read(path).map_err(at(path))?;
    if !digest.is_of_criu() {
        return Err(ExplainError::NotALog {
            path: path.to_owned(),
        });
    }
    Ok(findings(path.to_owned(), digest))
}

fn findings(path: PathBuf, digest: LogDigest) -> Findings {
    let mut findings = examine(Examination {
        log: Some(digest),
        ..Examination::default()
    });
    findings.log = Some(path);
    findings
}

fn read(path: &Path) -> io::Result<LogDigest> {
    LogDigest::read(BufReader::with_capacity(1 << 16, File::open(path)?))
}

/// The `*.log` files of a directory, the newest first.
fn logs_of(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut logs: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        // Of the entry itself: a link in a directory of foreign origin may lead anywhere. A file
        // that is gone by now is not the newest log.
        if let Ok(metadata) = fs::symlink_metadata(&path)
            && metadata.is_file()
        {
            logs.push((metadata.modified()?, path));
        }
    }
    logs.sort_by(|a, b| b.cmp(a));
    Ok(logs.into_iter().map(|(_, path)| path).collect())
}
