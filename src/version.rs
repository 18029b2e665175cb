//! CRIU's version and what depends on it.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// A version of CRIU, ordered as releases are.
///
/// A development build (one with a git id) counts as the release that follows it, as the runtimes count it: CRIU's own
/// version number is only raised when the release is made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    number: (u32, u32, u32),
    git_id: Option<String>,
}

impl Version {
    /// A release, such as `Version::new(4, 2, 1)`.
    #[must_use]
    pub const fn new(major: u32, minor: u32, sublevel: u32) -> Self {
        Self {
            number: (major, minor, sublevel),
            git_id: None,
        }
    }

    /// The version of a build from git.
    #[must_use]
    pub fn with_git_id(mut self, git_id: impl Into<String>) -> Self {
        self.git_id = Some(git_id.into()).filter(|id| !id.is_empty());
        self
    }

    /// Major number: 4 of 4.2.1.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.number.0
    }

    /// Minor number: 2 of 4.2.1.
    #[must_use]
    pub fn minor(&self) -> u32 {
        self.number.1
    }

    /// Sublevel: 1 of 4.2.1.
    #[must_use]
    pub fn sublevel(&self) -> u32 {
        self.number.2
    }

    /// What `git describe` said of a build that is no release.
    #[must_use]
    pub fn git_id(&self) -> Option<&str> {
        self.git_id.as_deref()
    }

    /// Whether this version has what came with `release`.
    #[must_use]
    pub fn has(&self, release: &Version) -> bool {
        let own = match &self.git_id {
            Some(_) => (self.number.0, self.number.1 + 1, 0),
            None => self.number,
        };
        own >= release.number
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor, sublevel) = self.number;
        write!(f, "{major}.{minor}")?;
        if sublevel != 0 {
            write!(f, ".{sublevel}")?;
        }
        match &self.git_id {
            Some(id) => write!(f, " ({id})"),
            None => Ok(()),
        }
    }
}

impl FromStr for Version {
    type Err = ParseVersionError;

    /// Reads `4`, `4.2` or `4.2.1`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseVersionError(text.to_owned());
        let mut numbers = [0; 3];
        let mut parts = text.split('.');
        for (index, number) in numbers.iter_mut().enumerate() {
            match parts.next() {
                Some(part) => *number = part.parse().map_err(|_| error())?,
                None if index == 0 => return Err(error()),
                None => break,
            }
        }
        match parts.next() {
            Some(_) => Err(error()),
            None => Ok(Self::new(numbers[0], numbers[1], numbers[2])),
        }
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A text that is no version number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no version of the form 4.2 or 4.2.1")]
pub struct ParseVersionError(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_text() {
        let version: Version = "4.2.1".parse().unwrap();
        assert_eq!(version, Version::new(4, 2, 1));
        assert_eq!(version.to_string(), "4.2.1");
        assert!(version.has(&Version::new(4, 2, 0)));
        assert!(!version.has(&Version::new(4, 3, 0)));
        assert!("4.x".parse::<Version>().is_err());
        assert!("".parse::<Version>().is_err());
        assert!("4.2.1.0".parse::<Version>().is_err());
    }

    #[test]
    fn a_build_from_git_has_what_the_next_release_has() {
        let version = Version::new(4, 2, 0).with_git_id("v4.2-22-gabc");
        assert!(version.has(&Version::new(4, 3, 0)));
        assert!(!version.has(&Version::new(4, 4, 0)));
        assert!(Version::new(4, 2, 0).with_git_id("").git_id().is_none());
    }
}
