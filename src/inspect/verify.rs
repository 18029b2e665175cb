//! Whether a checkpoint has all that a restore needs.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::image::kinds::Kind;
use crate::image::{Inventory, proto};

use super::files::{Files, table};
use super::memory::{self, Map, Memory, Where};
use super::places::with_prefix;
use super::source::{Form, MANIFEST, Store, What, split};
use super::{Problem, processes};

/// What was found of a checkpoint that was to be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Verification {
    /// Whether nothing is missing or broken.
    pub good: bool,
    /// What is missing or broken.
    pub problems: Vec<Problem>,
    /// What a restore will need besides, which cannot be told from here.
    pub notes: Vec<String>,
    /// Images whose frames were followed to their end.
    pub images: usize,
    /// Pages of memory that are where their pagemaps have them.
    pub pages: u64,
    /// Files whose checksums are those of the manifest; none if there is no manifest.
    pub checksums: Option<usize>,
}

/// A list of problems that does not grow without bounds.
const MOST: usize = 1000;

struct Check<'a> {
    store: &'a Store,
    problems: Vec<Problem>,
    notes: Vec<String>,
    images: usize,
    pages: u64,
    checksums: Option<usize>,
}

pub(super) fn verify(store: &Store) -> Verification {
    let mut check = Check {
        store,
        problems: Vec::new(),
        notes: Vec::new(),
        images: 0,
        pages: 0,
        checksums: None,
    };
    check.archive();
    check.frames();
    check.pagemaps();
    check.processes();
    check.checksums();
    check.problems.dedup();
    Verification {
        good: check.problems.is_empty(),
        problems: check.problems,
        notes: check.notes,
        images: check.images,
        pages: check.pages,
        checksums: check.checksums,
    }
}

impl Check<'_> {
    fn problem(&mut self, file: &str, problem: impl Into<String>) {
        if self.problems.len() < MOST {
            self.problems.push(Problem::new(file, problem));
        }
    }

    fn newest(&self, base: &str) -> String {
        format!(
            "{}{base}",
            self.store.levels.first().map_or("", String::as_str)
        )
    }

    fn needs(&mut self, base: &str) -> bool {
        let name = self.newest(base);
        let there = self
            .store
            .files
            .get(&name)
            .is_some_and(|file| file.what == What::File);
        if !there {
            self.problem(&name, "is missing");
        }
        there
    }

    /// What an archive must have besides images.
    fn archive(&mut self) {
        let store = self.store;
        if !matches!(store.form, Form::Images) {
            for name in ["config.dump", "spec.dump"] {
                if !store.files.contains_key(name)
                    && store.levels.first().is_some_and(|level| !level.is_empty())
                {
                    self.problem(name, "is missing: no engine can make the container");
                }
            }
            for (name, file) in &store.files {
                match &file.what {
                    What::Link(_) if name.ends_with("/parent") => {}
                    What::Link(target) => self.problem(
                        name,
                        format!("is a link, to {target:?}, which nothing in an archive should be"),
                    ),
                    What::Other => self.problem(name, "is neither a file nor a directory"),
                    _ => {}
                }
            }
            self.volumes();
        }
        match &store.lost_parent {
            Some(parent) => self.problem(
                &self.newest("parent"),
                format!("the parent {parent:?} is not there"),
            ),
            None if store.levels.is_empty() => self.problem("inventory.img", "there are no images"),
            None => {}
        }
    }

    /// Podman fills named volumes from the archive, or refuses.
    fn volumes(&mut self) {
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        struct Config {
            named_volumes: Vec<Volume>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        struct Volume {
            volume_name: String,
        }
        let Some(content) = self.store.content("config.dump") else {
            return;
        };
        match serde_json::from_slice::<Config>(content) {
            Ok(config) => {
                for volume in config.named_volumes {
                    let name = format!("volumes/{}.tar", volume.volume_name);
                    if !self.store.files.contains_key(&name) {
                        self.notes.push(format!(
                            "{name} is missing: a restore must ignore the content of volumes"
                        ));
                    }
                }
            }
            Err(error) => self.problem("config.dump", error.to_string()),
        }
    }

    /// Every image of a known kind is one, from its beginning to its end.
    fn frames(&mut self) {
        for (name, file) in &self.store.files {
            let (prefix, base) = split(name);
            let images =
                self.store.levels.iter().any(|level| level == prefix) || base.starts_with("stats-");
            let Some(kind) = Kind::of(base).filter(|_| images && file.what == What::File) else {
                continue;
            };
            let checked = match &file.content {
                Some(content) => kind.check(base, content),
                None => kind.check_magic(base, &file.head),
            };
            match checked {
                Ok(()) => self.images += 1,
                Err(error) => self.problem(name, super::whole(&error)),
            }
        }
    }

    /// Files of pages are as large as their maps have it, and what is left to parents is there.
    fn pagemaps(&mut self) {
        let store = self.store;
        let mut lazy = 0;
        for (name, key) in with_prefix(store, "pagemap-").collect::<Vec<_>>() {
            match Map::read(store, &name) {
                Some(Ok(map)) => self.pages_of(&name, &map),
                Some(Err(_)) | None => continue,
            }
            match Memory::of(store, &key) {
                Ok(Some(memory)) => {
                    let runs = memory.runs(0, u64::MAX);
                    let lost: u64 = runs
                        .iter()
                        .filter(|run| run.place == Where::Lost)
                        .map(|run| run.len)
                        .sum();
                    lazy += runs
                        .iter()
                        .filter(|run| run.place == Where::Lazy)
                        .map(|run| run.len)
                        .sum::<u64>();
                    if lost > 0 {
                        self.problem(
                            &name,
                            format!("{lost} bytes are left to a parent that does not have them"),
                        );
                    }
                }
                Ok(None) => {}
                // The frames of each were followed before; what they say is another matter.
                Err(error) => self.problem(&name, super::whole(&error)),
            }
        }
        for level in store.levels.iter().skip(1) {
            let parents = store.files.keys().filter(|name| {
                name.strip_prefix(level.as_str())
                    .is_some_and(|base| base.starts_with("pagemap-") && !base.contains('/'))
            });
            for name in parents.cloned().collect::<Vec<_>>() {
                if let Some(Ok(map)) = Map::read(store, &name) {
                    self.pages_of(&name, &map);
                }
            }
        }
        if lazy > 0 {
            self.notes.push(format!("{lazy} bytes of memory are with the page server of a lazy dump, which the restore must be able to ask"));
        }
    }

    fn pages_of(&mut self, name: &str, map: &Map) {
        let size = self.store.files.get(&map.pages).map(|file| file.size);
        match size {
            None if map.present == 0 => {}
            None => self.problem(
                &map.pages,
                format!("is missing, and {name} has {} pages in it", map.present),
            ),
            Some(size) if map.present.checked_mul(map.page) == Some(size) => {
                self.pages += map.present
            }
            Some(size) => {
                self.problem(
                    &map.pages,
                    format!(
                        "has {size} bytes, which are not the {} pages of {name}",
                        map.present
                    ),
                );
            }
        }
    }

    fn processes(&mut self) {
        let store = self.store;
        if self.needs("inventory.img")
            && let Some(content) = store.content(&self.newest("inventory.img"))
        {
            match Inventory::parse("inventory.img", content) {
                Ok(inventory) if inventory.is_pre_dump() => {
                    self.problem(&self.newest("inventory.img"), "is that of a pre-dump: a parent for further dumps, which cannot be restored");
                    return;
                }
                Ok(inventory) => {
                    for plugin in inventory.plugins {
                        self.notes
                            .push(format!("CRIU's plugin {plugin} must be there"));
                    }
                }
                // Its frames have been told.
                Err(_) => {}
            }
        }
        if !self.needs("pstree.img") {
            return;
        }
        let tree = match processes::tree(store) {
            Some(Ok(tree)) => tree,
            Some(Err(error)) => {
                return self.problem(&self.newest("pstree.img"), super::whole(&error));
            }
            None => return,
        };
        let mut unread = Vec::new();
        let files = Files::read(store, &mut unread);
        self.needs("files.img");
        let mut tables = BTreeSet::new();
        for found in processes::found(store, &tree, &mut unread) {
            let pid = found.task.pid;
            self.needs(&format!("core-{pid}.img"));
            if found.is_dead() {
                continue;
            }
            for tid in found.task.threads.iter().filter(|tid| **tid != pid) {
                self.needs(&format!("core-{tid}.img"));
            }
            for kind in ["mm", "pagemap", "fs"] {
                self.needs(&format!("{kind}-{pid}.img"));
            }
            match found.ids {
                Some(ids) => {
                    tables.insert(ids.files());
                }
                None => self.problem(
                    &self.newest(&format!("ids-{pid}.img")),
                    "is missing, and the core has no ids either",
                ),
            }
            if let Ok(Some(mm)) = memory::mm(store, pid)
                && !files.is_there(mm.exe_file_id)
            {
                self.problem(
                    &self.newest("files.img"),
                    format!("the program of process {pid} is not in it"),
                );
            }
        }
        for id in tables {
            let base = format!("fdinfo-{id}.img");
            if !self.needs(&base) {
                continue;
            }
            let open: Vec<proto::FdinfoEntry> = table(store, id).unwrap_or_default();
            let missing = open.iter().filter(|open| !files.is_there(open.id)).count();
            if missing > 0 {
                self.problem(
                    &self.newest(&base),
                    format!(
                        "{missing} of its descriptors are of files that files.img does not have"
                    ),
                );
            }
        }
    }

    /// The manifest of an export of ours.
    fn checksums(&mut self) {
        #[derive(Deserialize)]
        struct Manifest {
            version: u32,
            algorithm: String,
            members: Vec<Noted>,
        }
        #[derive(Deserialize)]
        struct Noted {
            name: String,
            size: u64,
            sha256: String,
        }
        let Some(content) = self.store.content(MANIFEST) else {
            return;
        };
        let manifest: Manifest = match serde_json::from_slice(content) {
            Ok(manifest) => manifest,
            Err(error) => return self.problem(MANIFEST, error.to_string()),
        };
        if manifest.algorithm != "sha256" || manifest.version != 1 {
            let (version, algorithm) = (manifest.version, manifest.algorithm);
            return self.problem(
                MANIFEST,
                format!("version {version} with {algorithm:?} is not known here"),
            );
        }
        let mut noted: BTreeMap<&str, &Noted> = BTreeMap::new();
        for member in &manifest.members {
            noted.insert(&member.name, member);
        }
        let mut good = 0;
        for (name, file) in &self.store.files {
            if file.what != What::File || name == MANIFEST {
                continue;
            }
            let Some(noted) = noted.remove(name.as_str()) else {
                self.problem(name, "is not in the manifest of the archive");
                continue;
            };
            let digest = file.digest.map(|digest| {
                digest
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect::<String>()
            });
            match digest {
                _ if noted.size != file.size => self.problem(
                    name,
                    format!(
                        "has {} bytes, and {} in the manifest",
                        file.size, noted.size
                    ),
                ),
                Some(digest) if digest != noted.sha256.to_ascii_lowercase() => {
                    self.problem(name, "has another checksum than in the manifest")
                }
                Some(_) => good += 1,
                None => {}
            }
        }
        for name in noted.keys() {
            self.problem(name, "is in the manifest, and missing");
        }
        self.checksums = Some(good);
    }
}
