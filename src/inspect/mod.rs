//! Looking into a checkpoint, without restoring or unpacking it and without root: what it is of, its processes, files,
//! sockets, mounts, namespaces, control groups and memory.
//!
//! [`Checkpoint::open`] takes an archive, a directory in the OCI image layout, or a directory of images. What describes the
//! checkpoint is read into memory, within bounds; pages stay where they are and are read when somebody asks. A [`Report`] says what was
//! asked for, and beside it what could not be read: one broken image is no reason to say nothing.
//!
//! ```text
//! archive, layers, directory ── source: files by name ── image: messages ── processes, files, places, memory ── report
//! ```
//!
//! Checkpoints come from elsewhere: sizes, counts and what a report takes are bounded, nothing is written, no link in an archive is followed. A directory's
//! `parent` is, as CRIU does.

mod error;
mod files;
mod layout;
mod memory;
mod places;
mod processes;
mod source;
mod summary;
mod verify;

#[cfg(test)]
mod tests;

use std::path::Path;

use serde::Serialize;

pub use error::InspectError;
pub use files::{OpenFile, ProcessFiles, Socket};
pub use memory::{Counted, Found, Mapping, ProcessMemory, SharedMemory};
pub use places::{ControlGroup, ControlGroups, Membership, Mount, Namespace, RequestedMount};
pub use processes::{Credentials, Process, ProcessState, Thread, children};
pub use source::Form;
pub use summary::{Network, Sizes, Summary};
pub use verify::Verification;

use crate::image::DumpStats;
use files::Files;
use source::{Store, Wanted};

/// What of a checkpoint is to be told beside its summary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sections {
    /// The processes.
    pub processes: bool,
    /// Their arguments, which are read from their memory.
    pub arguments: bool,
    /// Their environment, which is read from their memory.
    pub environment: bool,
    /// Their descriptors, sockets among them.
    pub files: bool,
    /// Mounts.
    pub mounts: bool,
    /// Namespaces.
    pub namespaces: bool,
    /// Control groups.
    pub control_groups: bool,
    /// What the dump cost.
    pub stats: bool,
    /// Mappings and what of them is where.
    pub memory: bool,
}

impl Sections {
    /// Nothing but the summary.
    pub fn none() -> Self {
        Self::default()
    }

    /// Everything.
    pub fn all() -> Self {
        Self {
            processes: true,
            arguments: true,
            environment: true,
            files: true,
            mounts: true,
            namespaces: true,
            control_groups: true,
            stats: true,
            memory: true,
        }
    }

    fn wants_images(self) -> bool {
        self != Self {
            stats: self.stats,
            ..Self::none()
        }
    }
}

/// What is said of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Report {
    /// What it is of.
    pub summary: Summary,
    /// Its processes, each after its parent.
    pub processes: Option<Vec<Process>>,
    /// What they had open.
    pub files: Option<Vec<ProcessFiles>>,
    /// What was mounted.
    pub mounts: Option<Vec<Mount>>,
    /// The namespaces.
    pub namespaces: Option<Vec<Namespace>>,
    /// The control groups.
    pub control_groups: Option<ControlGroups>,
    /// What the dump cost.
    pub stats: Option<DumpStats>,
    /// Their memory.
    pub memory: Option<Vec<ProcessMemory>>,
    /// Shared memory, apart from that of processes.
    pub shared_memory: Option<Vec<SharedMemory>>,
    /// What could not be read, and is missing above.
    pub problems: Vec<Problem>,
}

/// Something that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Problem {
    /// The file.
    pub file: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Problem {
    fn new(file: &str, problem: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            problem: problem.into(),
        }
    }

    fn of(file: &str, error: impl std::error::Error) -> Self {
        Self::new(file, whole(&error))
    }
}

/// An error with its causes.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Text of an image, which nobody has checked: bytes that are not UTF-8 are replaced, and what is longer than any path cut.
fn text(bytes: &[u8]) -> String {
    const LONGEST: usize = 64 << 10;
    String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST)]).into_owned()
}

/// What a report may take in memory: images can ask for far more than they are large, by naming one thing many times.
struct Budget(u64);

impl Budget {
    fn new() -> Self {
        Self(512 << 20)
    }

    /// Whether there is room for an item with text of this length.
    fn spend(&mut self, text: usize) -> bool {
        const ITEM: u64 = 256;
        match self.0.checked_sub(ITEM + text as u64) {
            Some(left) => {
                self.0 = left;
                true
            }
            None => false,
        }
    }
}

/// A checkpoint that is looked into.
pub struct Checkpoint {
    store: Store,
    sections: Sections,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = formatter.debug_struct("Checkpoint");
        debug
            .field("form", &self.store.form)
            .finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Opens an archive (plain or compressed with gzip, zstd, bzip2 or xz), a directory in the OCI image layout, a
    /// directory of images, or one with the content of an archive. Reads what the sections need, and blocks meanwhile. A compressed
    /// archive is decompressed to its end, without anything being written.
    ///
    /// # Errors
    ///
    /// [`InspectError`] when it cannot be read, is no checkpoint, or has more to tell than is kept in memory.
    pub fn open(path: &Path, sections: Sections) -> Result<Self, InspectError> {
        let wanted = Wanted {
            images: sections.wants_images(),
            arguments: sections.arguments || sections.environment,
            ..Wanted::default()
        };
        Ok(Self {
            store: Store::open(path, wanted)?,
            sections,
        })
    }

    /// Opens a checkpoint and checks what a restore needs of it: that every image is there and has the right frames, that files of pages
    /// are as large as their pagemaps have it and parents have what is left to them, and the checksums of an export of
    /// ours. Reads every byte of an archive; of a directory, the images that describe something.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open`]. What is missing or broken is no error, but in the [`Verification`].
    pub fn verify(path: &Path) -> Result<Verification, InspectError> {
        let wanted = Wanted {
            images: true,
            arguments: false,
            digests: true,
            data: true,
        };
        Ok(verify::verify(&Store::open(path, wanted)?))
    }

    /// Says what was asked for.
    ///
    /// # Errors
    ///
    /// [`InspectError`] if pages could not be read. What is wrong with single images is in [`Report::problems`].
    pub fn report(&self) -> Result<Report, InspectError> {
        let (store, sections) = (&self.store, self.sections);
        let mut problems = Vec::new();
        let mut budget = Budget::new();
        let mut report = Report {
            summary: summary::summary(store, &mut problems),
            processes: None,
            files: None,
            mounts: sections
                .mounts
                .then(|| places::mounts(store, &mut problems)),
            namespaces: None,
            control_groups: sections
                .control_groups
                .then(|| places::control_groups(store, &mut budget, &mut problems)),
            stats: summary::stats(store, &mut problems).filter(|_| sections.stats),
            memory: None,
            shared_memory: sections
                .memory
                .then(|| memory::shared(store, &mut problems)),
            problems: Vec::new(),
        };
        let of_processes =
            sections.processes || sections.files || sections.namespaces || sections.memory;
        let wanted = of_processes || sections.arguments || sections.environment;
        // If the tree is broken, the summary has said so.
        if wanted && let Some(Ok(tree)) = processes::tree(store) {
            let found = processes::found(store, &tree, &mut problems);
            self.of_processes(&found, &mut report, &mut budget, &mut problems)?;
        }
        report.problems = problems;
        Ok(report)
    }

    fn of_processes(
        &self,
        found: &[processes::Found],
        report: &mut Report,
        budget: &mut Budget,
        problems: &mut Vec<Problem>,
    ) -> Result<(), InspectError> {
        let (store, sections) = (&self.store, self.sections);
        let files = Files::read(store, problems);
        if sections.processes || sections.arguments || sections.environment {
            let alive = found
                .iter()
                .filter(|found| !found.is_dead())
                .map(|found| found.task.pid);
            let mut arguments = match sections.arguments || sections.environment {
                true => memory::arguments(store, &alive.collect::<Vec<_>>(), problems)?,
                false => Default::default(),
            };
            report.processes = Some(processes::processes(
                store,
                found,
                &files,
                &mut arguments,
                sections.environment,
                problems,
            ));
        }
        if sections.files {
            report.files = Some(self.files(found, &files, budget, problems));
        }
        if sections.namespaces {
            let ids = found.iter().filter_map(|found| found.ids.as_ref());
            report.namespaces = Some(places::namespaces(store, ids, problems));
        }
        if sections.memory {
            let mut all = Vec::new();
            for found in found.iter().filter(|found| !found.is_dead()) {
                match memory::of_process(store, &files, found.task.pid, &found.name(), budget) {
                    Ok(memory) => all.extend(memory),
                    Err(error) => {
                        problems.push(Problem::of(&format!("mm-{}.img", found.task.pid), error))
                    }
                }
            }
            report.memory = Some(all);
        }
        if budget.0 < 64 << 10 {
            problems.push(Problem::new(
                "the images",
                "they have more to tell than is kept, so not all is shown",
            ));
        }
        Ok(())
    }

    fn files(
        &self,
        found: &[processes::Found],
        files: &Files,
        budget: &mut Budget,
        problems: &mut Vec<Problem>,
    ) -> Vec<ProcessFiles> {
        let mut all = Vec::new();
        for found in found.iter().filter(|found| !found.is_dead()) {
            let pid = found.task.pid;
            let ids = found.ids.unwrap_or_default();
            let table = files::table(&self.store, ids.files()).unwrap_or_else(|error| {
                problems.push(Problem::of(&format!("fdinfo-{}.img", ids.files()), error));
                Vec::new()
            });
            let mut open = Vec::new();
            for info in &table {
                let file = files.opened(info);
                if !budget.spend(file.name.len()) {
                    break;
                }
                open.push(file);
            }
            open.sort_by_key(|file| file.fd);
            let fs = files::directories(&self.store, pid).unwrap_or_else(|error| {
                problems.push(Problem::of(&format!("fs-{pid}.img"), error));
                None
            });
            all.push(ProcessFiles {
                pid,
                name: found.name(),
                working_directory: fs.as_ref().and_then(|fs| files.name(fs.cwd_id)),
                root: fs.as_ref().and_then(|fs| files.name(fs.root_id)),
                open,
            });
        }
        all
    }

    /// Searches the memory of a process for bytes, and returns the places by address, no more than `most`. Needs the section
    /// [`memory`](Sections::memory). A compressed archive is decompressed once more.
    ///
    /// # Errors
    ///
    /// [`InspectError::NoProcess`], or an error of reading. An empty pattern is found nowhere; one of more than 1024 bytes is cut.
    pub fn search(
        &self,
        pid: u32,
        pattern: &[u8],
        most: usize,
    ) -> Result<Vec<Found>, InspectError> {
        memory::search(
            &self.store,
            pid,
            &pattern[..pattern.len().min(memory::MAX_PATTERN)],
            most,
        )
    }

    /// Passes the memory of a process on to `sink` that is in the images, with the address of each piece: by address where the source can
    /// be read anywhere, else in the order in which it is stored. Needs the section [`memory`](Sections::memory).
    ///
    /// # Errors
    ///
    /// [`InspectError::NoProcess`], or an error of reading.
    pub fn read_memory(
        &self,
        pid: u32,
        range: std::ops::Range<u64>,
        mut sink: impl FnMut(u64, &[u8]),
    ) -> Result<(), InspectError> {
        memory::read(&self.store, pid, (range.start, range.end), &mut sink)
    }
}
