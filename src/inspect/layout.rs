//! A directory of the OCI image layout: from its index to the layers of the checkpoint in it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use serde::Deserialize;

use crate::image::open_file;

use super::InspectError;

const MAX_JSON: u64 = 16 << 20;
/// An index may name an index, which need not be the end.
const MAX_DEPTH: usize = 4;
/// What `ctr` calls the images among the things in its index.
const CONTAINERD_IMAGES: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";

pub(super) struct Layout {
    pub(super) annotations: BTreeMap<String, String>,
    /// The layers, opened.
    pub(super) layers: Vec<File>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// An index or a manifest.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Layout {
    /// None if the directory is no such layout.
    pub(super) fn read(
        path: &Path,
        directory: BorrowedFd<'_>,
    ) -> Result<Option<Self>, InspectError> {
        if open_file(directory, "oci-layout").is_err() {
            return Ok(None);
        }
        let wrong = |reason: String| InspectError::NoCheckpoint {
            path: path.to_owned(),
            reason,
        };
        let mut document =
            parse(open_file(directory, "index.json")?.0, "index.json").map_err(wrong)?;
        let blobs = rustix::fs::openat(
            directory,
            "blobs",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::empty(),
        );
        let blobs = blobs
            .and_then(|blobs| {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                rustix::fs::openat(&blobs, "sha256", flags, Mode::empty())
            })
            .map_err(|error| InspectError::read("blobs/sha256", error.into()))?;
        let blob = |descriptor: &Descriptor| -> Result<File, InspectError> {
            let hex = descriptor
                .digest
                .strip_prefix("sha256:")
                .unwrap_or_default();
            if hex.len() != 64 || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(wrong(format!(
                    "{:?} is no SHA-256 digest",
                    descriptor.digest
                )));
            }
            Ok(open_file(std::os::fd::AsFd::as_fd(&blobs), hex)?.0)
        };
        let mut annotations = BTreeMap::new();
        for _ in 0..MAX_DEPTH {
            annotations.extend(std::mem::take(&mut document.annotations));
            let containerd = document
                .manifests
                .iter()
                .find(|one| one.media_type == CONTAINERD_IMAGES);
            if let Some(images) = containerd {
                let layers = vec![blob(images)?];
                return Ok(Some(Self {
                    annotations,
                    layers,
                }));
            }
            if !document.layers.is_empty() {
                let layers = document.layers.iter().map(blob).collect::<Result<_, _>>()?;
                return Ok(Some(Self {
                    annotations,
                    layers,
                }));
            }
            document = match document.manifests.as_slice() {
                [only] => {
                    annotations.extend(only.annotations.clone());
                    parse(blob(only)?, &only.digest).map_err(wrong)?
                }
                [] => return Err(wrong("the OCI layout has no image in it".to_owned())),
                several => {
                    return Err(wrong(format!(
                        "the OCI layout has {} images in it: leave only that of the checkpoint",
                        several.len()
                    )));
                }
            };
        }
        Err(wrong(
            "the indexes of the OCI layout lead to no image".to_owned(),
        ))
    }
}

fn parse(file: File, name: &str) -> Result<Document, String> {
    let mut bytes = Vec::new();
    let read = file.take(MAX_JSON).read_to_end(&mut bytes);
    read.map_err(|error| format!("{name}: {error}"))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("{name}: {error}"))
}
