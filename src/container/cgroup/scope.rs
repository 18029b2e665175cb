//! Scopes: the units in which systemd has the control groups of containers whose engine asks it for them.

use std::path::PathBuf;

use serde::Serialize;

/// The slice of containers that name none.
const USUAL_SLICE: &str = "system.slice";

/// A container's unit of systemd's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Scope {
    /// The unit's name, such as `runc-web.scope`.
    pub unit: String,
    /// The slice that it is in, such as `system.slice`.
    pub slice: String,
}

impl Scope {
    /// From the `slice:prefix:name` of a configuration.
    pub(crate) fn parse(cgroups_path: &str) -> Option<Self> {
        let mut parts = cgroups_path.split(':');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(slice), Some(prefix), Some(name), None) => Some(Self::new(slice, prefix, name)),
            _ => None,
        }
        .filter(|scope| scope.slice.ends_with(".slice"))
    }

    pub(crate) fn new(slice: &str, prefix: &str, name: &str) -> Self {
        let unit = match (prefix, name.ends_with(".slice")) {
            (_, true) => name.to_owned(),
            ("", false) => format!("{name}.scope"),
            (prefix, false) => format!("{prefix}-{name}.scope"),
        };
        let slice = match slice {
            "" => USUAL_SLICE.to_owned(),
            slice => slice.to_owned(),
        };
        Self { unit, slice }
    }

    /// From the top of a hierarchy: a slice `a-b.slice` is a group within that of `a.slice`.
    pub(crate) fn path(&self) -> PathBuf {
        let stem = self.slice.strip_suffix(".slice").unwrap_or(&self.slice);
        let mut path = PathBuf::from("/");
        if stem != "-" {
            let ends = stem
                .match_indices('-')
                .map(|(end, _)| end)
                .chain([stem.len()]);
            for end in ends {
                path.push(format!("{}.slice", stem.get(..end).unwrap_or_default()));
            }
        }
        path.join(&self.unit)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn scopes_are_in_their_slices() {
        let path = |text| Scope::parse(text).unwrap().path();
        assert_eq!(
            path("system.slice:docker:12"),
            Path::new("/system.slice/docker-12.scope")
        );
        assert_eq!(path(":runc:x"), Path::new("/system.slice/runc-x.scope"));
        assert_eq!(
            path("a-b-c.slice::n"),
            Path::new("/a.slice/a-b.slice/a-b-c.slice/n.scope")
        );
        assert_eq!(path("-.slice:p:n"), Path::new("/p-n.scope"));
        for other in ["/plain/path", "a:b:c", "a.slice:b:c:d", ""] {
            assert_eq!(Scope::parse(other), None, "{other}");
        }
    }
}
