//! LXC's configuration of a container: `key = value` in lines, and other files by `lxc.include`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::container::error::ErrorKind;

/// How deep files may include others.
const DEPTH: usize = 16;
/// More than this a file of settings does not have.
const AT_MOST: u64 = 1 << 20;

/// What of a configuration is about a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Config {
    /// Where bind mounts are, as the container sees it.
    pub(super) binds: Vec<PathBuf>,
    /// The kinds of network interfaces.
    pub(super) networks: Vec<String>,
    /// Whether LXC removes the container when it stops.
    pub(super) ephemeral: bool,
}

/// The value of a key, as LXC takes it: without blanks and a pair of quotes around.
fn setting(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let (key, value) = line.split_once('=')?;
    let value = value.trim();
    let quoted = ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote));
    Some((key.trim(), quoted.unwrap_or(value)))
}

impl Config {
    pub(super) fn read(path: &Path) -> Result<Self, ErrorKind> {
        let mut config = Self::default();
        config.include(path, DEPTH)?;
        Ok(config)
    }

    fn include(&mut self, path: &Path, depth: usize) -> Result<(), ErrorKind> {
        let failed = |problem: &str, source: Option<io::Error>| ErrorKind::State {
            path: path.to_owned(),
            problem: problem.to_owned(),
            source: source.map(Into::into),
        };
        let unreadable = |source| failed("cannot be read", Some(source));
        let Some(depth) = depth.checked_sub(1) else {
            return Err(failed("is included by itself, or too deep", None));
        };
        let metadata = fs::metadata(path).map_err(unreadable)?;
        if metadata.is_dir() {
            let mut files = Vec::new();
            for entry in fs::read_dir(path).map_err(unreadable)? {
                let path = entry.map_err(unreadable)?.path();
                if path
                    .extension()
                    .is_some_and(|extension| extension == "conf")
                {
                    files.push(path);
                }
            }
            files.sort();
            return files.iter().try_for_each(|path| self.include(path, depth));
        }
        if metadata.len() > AT_MOST {
            return Err(failed("is too large to be a configuration", None));
        }
        let text = fs::read_to_string(path).map_err(unreadable)?;
        for (key, value) in text.lines().filter_map(setting) {
            match key {
                "lxc.include" => self.include(Path::new(value), depth)?,
                "lxc.mount.entry" if value.is_empty() => self.binds.clear(),
                "lxc.mount.entry" => self.binds.extend(bind(value)),
                "lxc.mount.fstab" => {
                    let table = fs::read_to_string(value).unwrap_or_default();
                    self.binds.extend(table.lines().filter_map(bind));
                }
                "lxc.ephemeral" => self.ephemeral = value == "1",
                "lxc.net" if value.is_empty() => self.networks.clear(),
                key if key.starts_with("lxc.net.") && key.ends_with(".type") => {
                    self.networks.push(value.to_owned());
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Where a line of a mount table binds something.
fn bind(line: &str) -> Option<PathBuf> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let mut fields = line.split_whitespace();
    let (_source, target, _kind, options) = (
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
    );
    let is_bind = options
        .split(',')
        .any(|option| matches!(option, "bind" | "rbind"));
    is_bind.then(|| Path::new("/").join(unescaped(target)))
}

/// Blanks in a path are written as in fstab.
fn unescaped(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_gathered_from_all_files() {
        let directory = tempfile::tempdir().unwrap();
        let place = |name: &str| directory.path().join(name);
        fs::create_dir(place("more.d")).unwrap();
        fs::write(
            place("more.d/a.conf"),
            "lxc.mount.entry = /srv/a\\040b mnt/a\\040b none bind,create=dir 0 0\n",
        )
        .unwrap();
        fs::write(place("more.d/b.txt"), "lxc.ephemeral = 1\n").unwrap();
        fs::write(
            place("config"),
            format!(
                "# lxc.ephemeral = 1\nlxc.include = {}\n lxc.net.0.type=veth\nlxc.net.0.link = lxcbr0\n\
                 lxc.mount.entry = proc proc proc nodev 0 0\nlxc.mount.entry = \"/x /abs none rbind 0 0\"\nnonsense\n",
                place("more.d").display()
            ),
        )
        .unwrap();
        let config = Config::read(&place("config")).unwrap();
        assert_eq!(
            config,
            Config {
                binds: vec!["/mnt/a b".into(), "/abs".into()],
                networks: vec!["veth".into()],
                ephemeral: false,
            }
        );
    }

    #[test]
    fn a_file_that_includes_itself_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        fs::write(&path, format!("lxc.include = {}\n", path.display())).unwrap();
        let error = Config::read(&path).unwrap_err().to_string();
        assert!(error.contains("included by itself"), "{error}");
        let error = Config::read(Path::new("/nonexistent")).unwrap_err();
        assert!(error.to_string().contains("cannot be read"), "{error}");
    }
}
