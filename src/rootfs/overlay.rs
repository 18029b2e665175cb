//! Layers of overlayfs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Error, MountRequest, differing};

/// A mount of overlayfs, with the paths as they are and not as options spell them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Overlay {
    /// The layers that are only read, topmost first.
    pub lower: Vec<PathBuf>,
    /// Layers of which only data is read (`datadir+`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<PathBuf>,
    /// The layer that is written to.
    pub upper: Option<PathBuf>,
    /// The work directory that belongs to it.
    pub work: Option<PathBuf>,
    /// All other options, such as `metacopy=on`, `userxattr` or `volatile`.
    pub options: Vec<String>,
    /// The directory from which relative paths count.
    pub home: Option<PathBuf>,
}

/// What mountinfo shows besides the file system's own options, and what is the mount's own business.
const NOT_OURS: [&str; 3] = ["rw", "ro", ""];

impl Overlay {
    /// From the options of a mount, as mountinfo shows them.
    ///
    /// # Errors
    /// [`Error::Incomplete`] when there is no lower layer, or paths are relative and nobody knows to what.
    pub fn of_options(options: &str, home: Option<&Path>) -> Result<Self, Error> {
        let mut overlay = Self::default();
        for option in split(options, ',') {
            let option = decoded(&option);
            match option.split_once('=') {
                Some(("lowerdir", value)) => {
                    let mut data = false;
                    // An empty place stands before layers of data alone.
                    for layer in split(value, ':') {
                        match (layer.is_empty(), data) {
                            (true, _) => data = true,
                            (false, true) => overlay.data.push(unescaped(&layer).into()),
                            (false, false) => overlay.lower.push(unescaped(&layer).into()),
                        }
                    }
                }
                Some(("lowerdir+", value)) => overlay.lower.push(value.into()),
                Some(("datadir+", value)) => overlay.data.push(value.into()),
                Some(("upperdir", value)) => overlay.upper = Some(unescaped(value).into()),
                Some(("workdir", value)) => overlay.work = Some(unescaped(value).into()),
                _ if NOT_OURS.contains(&option.as_str()) => {}
                _ => overlay.options.push(option),
            }
        }
        if overlay.lower.is_empty() {
            return Err(Error::Incomplete(format!(
                "the options of the root file system's overlay name no lower layer: {options}"
            )));
        }
        if overlay.paths().any(|path| path.is_relative()) {
            overlay.home = home.map(Path::to_owned);
            if overlay.home.is_none() {
                return Err(Error::Incomplete(format!(
                    "the layers of the root file system are relative to the engine's directory, which is not known: {options}"
                )));
            }
        }
        Ok(overlay)
    }

    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.lower
            .iter()
            .chain(&self.data)
            .chain(&self.upper)
            .chain(&self.work)
    }

    fn absolute(&self, path: &Path) -> PathBuf {
        match &self.home {
            Some(home) => home.join(path),
            None => path.to_owned(),
        }
    }

    /// The upper layer, wherever it counts from.
    #[must_use]
    pub fn upper(&self) -> Option<PathBuf> {
        self.upper.as_ref().map(|path| self.absolute(path))
    }

    pub(super) fn layers(&self) -> Vec<(&'static str, PathBuf)> {
        let upper = self.upper.iter().map(|path| ("the upper layer", path));
        let work = self.work.iter().map(|path| ("the work directory", path));
        let lower = self.lower.iter().map(|path| ("a lower layer", path));
        let data = self.data.iter().map(|path| ("a layer of data", path));
        upper
            .chain(work)
            .chain(lower)
            .chain(data)
            .map(|(role, path)| (role, self.absolute(path)))
            .collect()
    }

    pub(super) fn differs_from(&self, other: &Self) -> Option<(&'static str, String, String)> {
        let all = |overlay: &Self, paths: &[PathBuf]| -> Vec<PathBuf> {
            paths.iter().map(|path| overlay.absolute(path)).collect()
        };
        let one = |overlay: &Self, path: &Option<PathBuf>| -> Vec<PathBuf> {
            path.iter().map(|path| overlay.absolute(path)).collect()
        };
        differing(
            "the upper layer",
            &one(self, &self.upper),
            &one(other, &other.upper),
        )
        .or_else(|| {
            differing(
                "the work directory",
                &one(self, &self.work),
                &one(other, &other.work),
            )
        })
        .or_else(|| {
            differing(
                "the list of layers",
                &all(self, &self.lower),
                &all(other, &other.lower),
            )
        })
    }

    /// What only the kernel knew, from a source that had it.
    pub(super) fn complete_from(&mut self, other: &Self) {
        if self.options.is_empty() {
            self.options.clone_from(&other.options);
        }
        if self.data.is_empty() {
            self.data.clone_from(&other.data);
        }
    }

    pub(super) fn request(&self, at: &Path) -> MountRequest {
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        let lower: Vec<String> = self.lower.iter().map(|path| escaped(&text(path))).collect();
        let mut lowerdir = lower.join(":");
        for layer in &self.data {
            lowerdir += "::";
            lowerdir += &escaped(&text(layer));
        }
        let mut options = vec![format!("lowerdir={lowerdir}")];
        let mut appended: Vec<(String, String)> = Vec::new();
        appended.extend(
            (self.lower.iter()).map(|path| ("lowerdir+".to_owned(), text(&self.absolute(path)))),
        );
        appended.extend(
            (self.data.iter()).map(|path| ("datadir+".to_owned(), text(&self.absolute(path)))),
        );
        for (key, path) in [("upperdir", &self.upper), ("workdir", &self.work)] {
            if let Some(path) = path {
                options.push(format!("{key}={}", escaped(&text(path))));
                appended.push((key.to_owned(), text(&self.absolute(path))));
            }
        }
        for option in &self.options {
            options.push(option.clone());
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            appended.push((key.to_owned(), value.to_owned()));
        }
        MountRequest {
            fs_type: "overlay",
            source: "overlay".to_owned(),
            options: options.join(","),
            appended,
            base: self.home.clone(),
            at: at.to_owned(),
        }
    }

    /// A volatile mount leaves a mark by which the kernel refuses the next one, since after a crash of the machine the upper
    /// layer may not be whole. Engines remove it when they start a container again, and so does this.
    pub(super) fn forget_volatile(&self) -> io::Result<()> {
        let Some(work) = self.work.as_ref().filter(|_| self.is_volatile()) else {
            return Ok(());
        };
        match fs::remove_dir(self.absolute(work).join("work/incompat/volatile")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn is_volatile(&self) -> bool {
        // Newer kernels show it as a value of fsync=.
        self.options
            .iter()
            .any(|option| option == "volatile" || option == "fsync=volatile")
    }
}

/// Splits at a separator that no backslash precedes; escapes stay.
fn split(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for character in text.chars() {
        if character == separator && !escaped {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(character);
        }
        escaped = character == '\\' && !escaped;
    }
    parts
}

/// Octal escapes of mountinfo, which are those of bytes.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let digits = bytes.get(at + 1..at + 4).filter(|_| *byte == b'\\');
        let value = digits.and_then(|digits| {
            let text = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(text, 8).ok()
        });
        match value {
            Some(value) => {
                plain.push(value);
                at += 4;
            }
            None => {
                plain.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// Without overlayfs' own escapes.
fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => plain.extend(characters.next()),
            character => plain.push(character),
        }
    }
    plain
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '\\' | ':' | ',') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(paths: &[&str]) -> Vec<PathBuf> {
        paths.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn options_become_layers_and_layers_options() {
        let text = "rw,lowerdir=/d/l/A:/d/l/B,upperdir=/d/m/diff,workdir=/d/m/work,index=off,metacopy=on,userxattr";
        let overlay = Overlay::of_options(text, None).unwrap();
        assert_eq!(overlay.lower, paths(&["/d/l/A", "/d/l/B"]));
        assert_eq!(overlay.upper.as_deref(), Some(Path::new("/d/m/diff")));
        assert_eq!(overlay.options, ["index=off", "metacopy=on", "userxattr"]);
        let request = overlay.request(Path::new("/x"));
        assert_eq!(request.options, text.trim_start_matches("rw,"));
        assert_eq!(request.base, None);
    }

    #[test]
    fn relative_layers_need_a_home() {
        let text = "lowerdir=l/A:l/B,upperdir=m/diff,workdir=m/work";
        let refusal = Overlay::of_options(text, None).unwrap_err();
        assert!(refusal.to_string().contains("relative"), "{refusal}");
        let home = Path::new("/var/lib/docker/overlay2");
        let overlay = Overlay::of_options(text, Some(home)).unwrap();
        assert_eq!(overlay.upper(), Some(home.join("m/diff")));
        let request = overlay.request(Path::new("/x"));
        assert_eq!(
            (request.base.as_deref(), &*request.options),
            (Some(home), text)
        );
        assert_eq!(
            request.appended[1],
            ("lowerdir+".into(), "/var/lib/docker/overlay2/l/B".into())
        );
    }

    #[test]
    fn names_with_commas_colons_and_blanks_are_themselves() {
        let overlay = Overlay::of_options(
            r"lowerdir=/a\:b:/c\040d:/e\134\054f,upperdir=/u\134:x,workdir=/w",
            None,
        )
        .unwrap();
        assert_eq!(overlay.lower, paths(&["/a:b", "/c d", "/e,f"]));
        assert_eq!(overlay.upper.as_deref(), Some(Path::new("/u:x")));
        let request = overlay.request(Path::new("/x"));
        assert_eq!(
            request.options,
            r"lowerdir=/a\:b:/c d:/e\,f,upperdir=/u\:x,workdir=/w"
        );
    }

    #[test]
    fn newer_kernels_name_layers_one_by_one() {
        let overlay = Overlay::of_options(
            "lowerdir+=/a,lowerdir+=/b,datadir+=/d,upperdir=/u,workdir=/w,metacopy=on",
            None,
        )
        .unwrap();
        assert_eq!(overlay.lower, paths(&["/a", "/b"]));
        assert_eq!(overlay.data, paths(&["/d"]));
        let same = Overlay::of_options(
            "lowerdir=/a:/b::/d,upperdir=/u,workdir=/w,metacopy=on",
            None,
        );
        assert_eq!(same.unwrap(), overlay);
        assert_eq!(
            overlay.request(Path::new("/x")).options,
            "lowerdir=/a:/b::/d,upperdir=/u,workdir=/w,metacopy=on"
        );
    }

    #[test]
    fn other_layers_are_seen() {
        let of = |lower: &str| {
            Overlay::of_options(&format!("lowerdir={lower},upperdir=/u,workdir=/w"), None).unwrap()
        };
        assert_eq!(of("/a:/b").differs_from(&of("/a:/b")), None);
        let (what, one, other) = of("/a:/b").differs_from(&of("/b:/a")).unwrap();
        assert_eq!(
            (what, &*one, &*other),
            ("the list of layers", "/a:/b", "/b:/a")
        );
    }

    #[test]
    fn a_volatile_mount_of_before_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let mark = directory.path().join("work/incompat/volatile");
        fs::create_dir_all(&mark).unwrap();
        let mut overlay = Overlay {
            lower: paths(&["/a"]),
            work: Some(directory.path().to_owned()),
            ..Overlay::default()
        };
        overlay.forget_volatile().unwrap();
        assert!(mark.exists(), "it is not volatile");
        overlay.options.push("volatile".into());
        overlay.forget_volatile().unwrap();
        assert!(!mark.exists());
        overlay.forget_volatile().unwrap();
    }
}
