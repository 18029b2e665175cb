//! What an engine's own record says of a container's root.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::aufs::Aufs;
use super::overlay::Overlay;
use super::{Error, Rootfs};

/// An engine's record of a container's root.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Storage {
    /// The storage driver.
    pub driver: String,
    /// The directory of the engine, such as `/var/lib/docker`.
    pub root: PathBuf,
    /// The name of the container's layer, if it is known; it is that of the container only in old releases.
    pub layer: Option<String>,
    /// What the driver tells of the container, such as `UpperDir`.
    pub data: BTreeMap<String, String>,
}

/// Where a driver keeps its layers, from which its relative paths count.
#[must_use]
pub fn driver_home(root: &Path, driver: &str) -> PathBuf {
    root.join(driver)
}

impl Storage {
    /// The record of a container's root.
    #[must_use]
    pub fn new(driver: impl Into<String>, root: impl Into<PathBuf>) -> Self {
        Self {
            driver: driver.into(),
            root: root.into(),
            ..Self::default()
        }
    }

    /// Sets the name of the container's layer.
    #[must_use]
    pub fn layer(mut self, layer: Option<String>) -> Self {
        self.layer = layer;
        self
    }

    /// Sets what the driver tells.
    #[must_use]
    pub fn data(mut self, data: BTreeMap<String, String>) -> Self {
        self.data = data;
        self
    }

    /// What the root is made of; `None` if the engine keeps that to itself, as with the snapshotters of containerd.
    ///
    /// # Errors
    /// [`Error::UnknownDriver`], and [`Error::Incomplete`] when the record does not suffice.
    pub fn rootfs(&self) -> Result<Option<Rootfs>, Error> {
        let home = driver_home(&self.root, &self.driver);
        match self.driver.as_str() {
            "overlay" | "overlay2" => self.overlay(&home).map(Some),
            "vfs" => {
                let named = self.data.get("SourceDir").map(PathBuf::from);
                let path =
                    named.map_or_else(|| Ok(home.join("dir").join(self.layer_name()?)), Ok)?;
                Ok(Some(Rootfs::Directory(path)))
            }
            "btrfs" => Ok(Some(Rootfs::Directory(
                home.join("subvolumes").join(self.layer_name()?),
            ))),
            "zfs" => match self.data.get("Dataset") {
                Some(dataset) => Ok(Some(Rootfs::Zfs(dataset.clone()))),
                None => Err(Error::Incomplete(
                    "the engine does not name the dataset of the container's root file system"
                        .into(),
                )),
            },
            "aufs" => self.aufs(&home).map(|aufs| Some(Rootfs::Aufs(aufs))),
            // What these mount is in the images.
            "overlayfs" | "native" | "stargz" | "soci" => Ok(None),
            driver => Err(Error::UnknownDriver(driver.to_owned())),
        }
    }

    fn layer_name(&self) -> Result<&str, Error> {
        self.layer.as_deref().ok_or_else(|| {
            Error::Incomplete(format!(
                "{} does not say which layer of {} is the container's",
                self.root.display(),
                self.driver
            ))
        })
    }

    fn overlay(&self, home: &Path) -> Result<Rootfs, Error> {
        let told = |key: &str| self.data.get(key).filter(|value| !value.is_empty());
        let mut overlay = Overlay::default();
        match (told("LowerDir"), told("UpperDir"), told("WorkDir")) {
            (Some(lower), Some(upper), Some(work)) => {
                overlay.lower = lower.split(':').map(PathBuf::from).collect();
                overlay.upper = Some(upper.into());
                overlay.work = Some(work.into());
            }
            // Not told by an engine that does not know the container any more, but by its directory.
            _ => {
                let layer = home.join(self.layer_name()?);
                let lower = layer.join("lower");
                let names = fs::read_to_string(&lower).map_err(|_| Error::Missing {
                    role: "the list of layers",
                    path: lower,
                })?;
                overlay.lower = names
                    .trim()
                    .split(':')
                    .map(|name| home.join(name))
                    .collect();
                overlay.upper = Some(layer.join("diff"));
                overlay.work = Some(layer.join("work"));
            }
        }
        Ok(Rootfs::Overlay(overlay))
    }

    /// The parents of a layer are listed topmost first, by name.
    fn aufs(&self, home: &Path) -> Result<Aufs, Error> {
        let layer = self.layer_name()?;
        let list = home.join("layers").join(layer);
        let parents = fs::read_to_string(&list).map_err(|_| Error::Missing {
            role: "the list of layers",
            path: list,
        })?;
        let names = std::iter::once(layer).chain(parents.lines().filter(|line| !line.is_empty()));
        Ok(Aufs {
            branches: names.map(|name| home.join("diff").join(name)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn drivers_keep_roots_in_their_own_ways() {
        let of = |driver: &str, pairs: &[(&str, &str)]| {
            Storage::new(driver, "/d")
                .layer(Some("m".into()))
                .data(data(pairs))
                .rootfs()
        };
        assert_eq!(
            of("vfs", &[]).unwrap(),
            Some(Rootfs::Directory("/d/vfs/dir/m".into()))
        );
        assert_eq!(
            of("vfs", &[("SourceDir", "/s")]).unwrap(),
            Some(Rootfs::Directory("/s".into()))
        );
        assert_eq!(
            of("btrfs", &[]).unwrap(),
            Some(Rootfs::Directory("/d/btrfs/subvolumes/m".into()))
        );
        assert_eq!(
            of("zfs", &[("Dataset", "tank/m")]).unwrap(),
            Some(Rootfs::Zfs("tank/m".into()))
        );
        assert_eq!(of("overlayfs", &[]).unwrap(), None);
        let unknown = of("devicemapper", &[]).unwrap_err();
        assert!(matches!(unknown, Error::UnknownDriver(_)), "{unknown}");
        let layers = [("LowerDir", "/a:/b"), ("UpperDir", "/u"), ("WorkDir", "/w")];
        let Some(Rootfs::Overlay(overlay)) = of("overlay2", &layers).unwrap() else {
            panic!();
        };
        assert_eq!(
            overlay.request(Path::new("/x")).options,
            "lowerdir=/a:/b,upperdir=/u,workdir=/w"
        );
    }

    #[test]
    fn a_directory_of_a_driver_tells_by_itself() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::create_dir_all(at("overlay2/m")).unwrap();
        fs::write(at("overlay2/m/lower"), "l/A:l/B").unwrap();
        let storage = Storage::new("overlay2", root.path()).layer(Some("m".into()));
        let Some(Rootfs::Overlay(overlay)) = storage.rootfs().unwrap() else {
            panic!();
        };
        assert_eq!(overlay.lower, [at("overlay2/l/A"), at("overlay2/l/B")]);
        assert_eq!(overlay.upper(), Some(at("overlay2/m/diff")));

        fs::create_dir_all(at("aufs/layers")).unwrap();
        fs::write(at("aufs/layers/m"), "m-init\nbase\n").unwrap();
        let storage = Storage::new("aufs", root.path()).layer(Some("m".into()));
        let Some(Rootfs::Aufs(aufs)) = storage.rootfs().unwrap() else {
            panic!();
        };
        let diff = |name: &str| at("aufs/diff").join(name);
        assert_eq!(aufs.branches, [diff("m"), diff("m-init"), diff("base")]);
        let unknown = Storage::new("aufs", root.path()).rootfs().unwrap_err();
        assert!(
            unknown.to_string().contains("does not say which layer"),
            "{unknown}"
        );
    }
}
