//! Memory: where a page of a process is, through pagemaps of both dialects and down the chain of parents.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::image::kinds::{first, head_and_entries};
use crate::image::{ImageError, proto};

use super::files::Files;
use super::source::{Store, split};
use super::{Budget, InspectError, Problem};

/// The page size of most architectures, where nothing shows another.
const PAGE: u64 = 4096;
/// The longest arguments or environment that are read of a process. The kernel allows a quarter of the stack.
const MAX_ARGUMENTS: u64 = 6 << 20;
/// The most that is read of arguments and environments of all processes.
const MAX_ALL_ARGUMENTS: u64 = 128 << 20;

const PARENT: u32 = 1;
const LAZY: u32 = 2;
const PRESENT: u32 = 4;

/// Pages one after another that are in one place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pages {
    pub(super) vaddr: u64,
    pub(super) count: u64,
    pub(super) flags: u32,
    /// Where they begin in the file, in pages.
    first: u64,
}

impl Pages {
    fn is(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

/// A pagemap.
#[derive(Debug)]
pub(super) struct Map {
    /// The file that has the pages.
    pub(super) pages: String,
    pub(super) entries: Vec<Pages>,
    pub(super) page: u64,
    /// Pages in the file, as the map has it.
    pub(super) present: u64,
}

impl Map {
    /// Reads the pagemap of this name in a store. None if it is not there.
    pub(super) fn read(store: &Store, name: &str) -> Option<Result<Self, ImageError>> {
        store
            .content(name)
            .map(|content| Self::parse(store, name, content))
    }

    fn parse(store: &Store, name: &str, content: &[u8]) -> Result<Self, ImageError> {
        let (prefix, base) = split(name);
        let (head, all) =
            head_and_entries::<proto::PagemapHead, proto::PagemapEntry>(base, content)?;
        let broken = |reason: String| ImageError::Malformed {
            file: name.to_owned(),
            offset: 8,
            reason,
        };
        let mut entries = Vec::with_capacity(all.len());
        let mut present = 0_u64;
        for entry in all {
            // Since 4.2 CRIU counts in a field of 64 bits and leaves the old one 0.
            let count = entry.nr_pages.unwrap_or(u64::from(entry.compat_nr_pages));
            let flags = match (entry.flags, entry.in_parent) {
                (_, Some(true)) => entry.flags.unwrap_or(0) | PARENT,
                (Some(flags), _) if flags != 0 => flags,
                _ => PRESENT,
            };
            let end = count
                .checked_mul(PAGE)
                .and_then(|len| entry.vaddr.checked_add(len));
            if end.is_none() {
                return Err(broken(format!(
                    "{count} pages at {:#x} are more than there can be",
                    entry.vaddr
                )));
            }
            if entries
                .last()
                .is_some_and(|last: &Pages| last.vaddr + last.count * PAGE > entry.vaddr)
            {
                return Err(broken(format!(
                    "the pages at {:#x} come too late",
                    entry.vaddr
                )));
            }
            let pages = Pages {
                vaddr: entry.vaddr,
                count,
                flags,
                first: present,
            };
            if pages.is(PRESENT) {
                present = present
                    .checked_add(count)
                    .ok_or_else(|| broken("too many pages".to_owned()))?;
            }
            entries.push(pages);
        }
        let pages = format!("{prefix}pages-{}.img", head.pages_id);
        // The page size is that of the machine, and is written nowhere.
        let size = store.files.get(&pages).map_or(0, |file| file.size);
        let page = [PAGE, 16 << 10, 64 << 10]
            .into_iter()
            .find(|page| present.checked_mul(*page) == Some(size));
        Ok(Self {
            pages,
            entries,
            page: page.unwrap_or(PAGE),
            present,
        })
    }

    fn len(&self, pages: &Pages) -> u64 {
        pages.count.saturating_mul(self.page)
    }

    /// The entries that have something of the range.
    fn within(&self, start: u64, end: u64) -> impl Iterator<Item = &Pages> {
        // They are in order.
        let first = self
            .entries
            .partition_point(|pages| pages.vaddr.saturating_add(self.len(pages)) <= start);
        self.entries[first..]
            .iter()
            .take_while(move |pages| pages.vaddr < end)
    }
}

/// Where a run of memory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Where {
    /// In this file, from this offset on.
    File(String, u64),
    /// With whoever served the pages of a lazy dump.
    Lazy,
    /// In a parent that is not there.
    Lost,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) place: Where,
}

/// The memory of one process, or one piece of shared memory, with its parents.
pub(super) struct Memory {
    /// From the newest to the oldest; those that are not there are none.
    maps: Vec<Option<Map>>,
}

impl Memory {
    /// `key` is a pid, or `shmem-` and the id of shared memory. None if there is no pagemap of that.
    pub(super) fn of(store: &Store, key: &str) -> Result<Option<Self>, ImageError> {
        let mut maps = Vec::new();
        for prefix in &store.levels {
            maps.push(Map::read(store, &format!("{prefix}pagemap-{key}.img")).transpose()?);
        }
        Ok(maps
            .first()
            .is_some_and(Option::is_some)
            .then_some(Self { maps }))
    }

    /// Where the memory of a range is that is anywhere, in the order of addresses.
    pub(super) fn runs(&self, start: u64, end: u64) -> Vec<Run> {
        let mut runs = Vec::new();
        self.collect(0, start, end, &mut runs);
        runs.sort_by_key(|run| run.start);
        runs
    }

    fn collect(&self, level: usize, start: u64, end: u64, runs: &mut Vec<Run>) {
        let Some(Some(map)) = self.maps.get(level) else {
            if level > 0 && start < end {
                runs.push(Run {
                    start,
                    len: end - start,
                    place: Where::Lost,
                });
            }
            return;
        };
        for pages in map.within(start, end) {
            let from = pages.vaddr.max(start);
            let until = pages.vaddr.saturating_add(map.len(pages)).min(end);
            let place = if pages.is(PRESENT) {
                let offset = pages
                    .first
                    .saturating_mul(map.page)
                    .saturating_add(from - pages.vaddr);
                Where::File(map.pages.clone(), offset)
            } else if pages.is(PARENT) {
                self.collect(level + 1, from, until, runs);
                continue;
            } else if pages.is(LAZY) {
                Where::Lazy
            } else {
                continue;
            };
            runs.push(Run {
                start: from,
                len: until - from,
                place,
            });
        }
    }

    /// The bytes of a range that are of each kind: in these images, in a parent's, lazy.
    fn counted(&self, start: u64, end: u64) -> Counted {
        let mut counted = Counted::default();
        let Some(Some(map)) = self.maps.first() else {
            return counted;
        };
        for pages in map.within(start, end) {
            let from = pages.vaddr.max(start);
            let len = pages.vaddr.saturating_add(map.len(pages)).min(end) - from;
            if pages.is(PRESENT) {
                counted.present += len;
            } else if pages.is(PARENT) {
                counted.parent += len;
            } else if pages.is(LAZY) {
                counted.lazy += len;
            }
        }
        counted
    }
}

/// Bytes of memory by where they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Counted {
    /// In these images, in bytes.
    #[serde(rename = "presentBytes")]
    pub present: u64,
    /// Unchanged since the parent's images, which have them, in bytes.
    #[serde(rename = "parentBytes")]
    pub parent: u64,
    /// Left with whoever serves them after the restore, in bytes.
    #[serde(rename = "lazyBytes")]
    pub lazy: u64,
}

impl Counted {
    fn add(&mut self, other: Self) {
        self.present = self.present.saturating_add(other.present);
        self.parent = self.parent.saturating_add(other.parent);
        self.lazy = self.lazy.saturating_add(other.lazy);
    }
}

/// The memory of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ProcessMemory {
    /// The process.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// What it has mapped, in bytes.
    pub mapped_bytes: u64,
    /// What of that is where. The rest is in the files that are mapped, or zero, or was never touched.
    #[serde(flatten)]
    pub counted: Counted,
    /// The mappings, by address.
    pub mappings: Vec<Mapping>,
}

/// A mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Mapping {
    /// The first address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// As `/proc/PID/maps` has it, such as `rw-p`.
    pub permissions: String,
    /// What it is: `heap`, `stack`, `file`, `anonymous`, `shared`, `memfd`, `vdso`, …
    pub kind: &'static str,
    /// The file that is mapped, or the name of the memory.
    pub file: Option<String>,
    /// Where in the file the mapping begins.
    pub offset: u64,
    /// The id of the shared memory, whose pages are apart from those of the process.
    pub shared_memory: Option<u64>,
    /// What is where.
    #[serde(flatten)]
    pub counted: Counted,
}

/// Shared memory, which belongs to no process in particular.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct SharedMemory {
    /// Its id, which mappings name.
    pub id: String,
    /// What is where.
    #[serde(flatten)]
    pub counted: Counted,
}

const STACK: u32 = 1 << 1;
const VSYSCALL: u32 = 1 << 2;
const VDSO: u32 = 1 << 3;
const HEAP: u32 = 1 << 5;
const FILE_PRIVATE: u32 = 1 << 6;
const FILE_SHARED: u32 = 1 << 7;
const ANON_SHARED: u32 = 1 << 8;
const SYSV: u32 = 1 << 10;
const SOCKET: u32 = 1 << 11;
const VVAR: u32 = 1 << 12;
const AIO: u32 = 1 << 13;
const MEMFD: u32 = 1 << 14;
const SHADOW_STACK: u32 = 1 << 15;
const GUARD: u32 = 1 << 16;
const UPROBES: u32 = 1 << 17;

/// `MAP_GROWSDOWN`.
const GROWS_DOWN: u32 = 0x100;

fn kind(status: u32) -> &'static str {
    let kinds = [
        (VSYSCALL, "vsyscall"),
        (VDSO, "vdso"),
        (VVAR, "vvar"),
        (UPROBES, "uprobes"),
        (GUARD, "guard"),
        (SHADOW_STACK, "shadow-stack"),
        (STACK, "stack"),
        (HEAP, "heap"),
        (SYSV, "sysv"),
        (MEMFD, "memfd"),
        (SOCKET, "socket"),
        (AIO, "aio"),
        (FILE_PRIVATE, "file"),
        (FILE_SHARED, "file"),
        (ANON_SHARED, "shared"),
    ];
    let found = kinds.iter().find(|(bit, _)| status & bit != 0);
    found.map_or("anonymous", |(_, name)| name)
}

/// The memory of a process; none if it had ended.
pub(super) fn of_process(
    store: &Store,
    files: &Files,
    pid: u32,
    name: &str,
    budget: &mut Budget,
) -> Result<Option<ProcessMemory>, ImageError> {
    let Some(mm) = mm(store, pid)? else {
        return Ok(None);
    };
    let memory = Memory::of(store, &pid.to_string())?;
    let mut whole = ProcessMemory {
        pid,
        name: name.to_owned(),
        mapped_bytes: 0,
        counted: Counted::default(),
        mappings: Vec::with_capacity(mm.vmas.len()),
    };
    for vma in mm.vmas {
        let shared = vma.status & (ANON_SHARED | SYSV | MEMFD) != 0;
        let counted = match &memory {
            Some(memory) if vma.start < vma.end && !shared => memory.counted(vma.start, vma.end),
            _ => Counted::default(),
        };
        let permission = |bit: u32, letter| if vma.prot & bit != 0 { letter } else { '-' };
        let permissions = [
            permission(1, 'r'),
            permission(2, 'w'),
            permission(4, 'x'),
            if vma.flags & 1 != 0 { 's' } else { 'p' },
        ];
        let of_file = vma.status & (FILE_PRIVATE | FILE_SHARED | MEMFD) != 0;
        let id = u32::try_from(vma.shmid).ok().filter(|_| of_file);
        whole.mapped_bytes = whole
            .mapped_bytes
            .saturating_add(vma.end.saturating_sub(vma.start));
        whole.counted.add(counted);
        let file = id.and_then(|id| files.name(id));
        if !budget.spend(file.as_ref().map_or(0, String::len)) {
            continue;
        }
        whole.mappings.push(Mapping {
            start: vma.start,
            end: vma.end,
            permissions: permissions.iter().collect(),
            kind: match kind(vma.status) {
                // CRIU marks only stacks of its own making.
                "anonymous" if vma.flags & GROWS_DOWN != 0 => "stack",
                kind => kind,
            },
            file,
            offset: vma.pgoff,
            shared_memory: (vma.status & (ANON_SHARED | SYSV) != 0).then_some(vma.shmid),
            counted,
        });
    }
    Ok(Some(whole))
}

/// All shared memory.
pub(super) fn shared(store: &Store, problems: &mut Vec<Problem>) -> Vec<SharedMemory> {
    let Some(prefix) = store.levels.first() else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for name in store.files.keys() {
        let key = name
            .strip_prefix(prefix.as_str())
            .and_then(|base| base.strip_prefix("pagemap-"));
        let Some(key) = key.and_then(|key| key.strip_suffix(".img")) else {
            continue;
        };
        let Some(id) = key.strip_prefix("shmem-") else {
            continue;
        };
        match Memory::of(store, key) {
            Ok(Some(memory)) => all.push(SharedMemory {
                id: id.to_owned(),
                counted: memory.counted(0, u64::MAX),
            }),
            Ok(None) => {}
            Err(error) => problems.push(Problem::of(name, error)),
        }
    }
    all
}

pub(super) fn mm(store: &Store, pid: u32) -> Result<Option<proto::MmEntry>, ImageError> {
    let Some(prefix) = store.levels.first() else {
        return Ok(None);
    };
    let base = format!("mm-{pid}.img");
    let content = store.content(&format!("{prefix}{base}"));
    content.map(|content| first(&base, content)).transpose()
}

/// The ranges of a file of pages that have arguments and environment of the process whose pages they are.
pub(super) fn argument_ranges(store: &Store, pages: &str) -> Vec<(u64, u64)> {
    let ranges = || -> Option<Vec<(u64, u64)>> {
        let map = store.pages_of.get(pages)?;
        let (prefix, base) = split(map);
        let pid: u32 = base
            .strip_prefix("pagemap-")?
            .strip_suffix(".img")?
            .parse()
            .ok()?;
        let base = format!("mm-{pid}.img");
        let mm: proto::MmEntry = first(&base, store.content(&format!("{prefix}{base}"))?).ok()?;
        let memory = Memory {
            maps: vec![Map::read(store, map)?.ok()],
        };
        let mut ranges = Vec::new();
        for (start, end) in argument_areas(&mm) {
            for run in memory.runs(start, end) {
                if let Where::File(_, offset) = run.place {
                    ranges.push((offset, run.len));
                }
            }
        }
        Some(joined(ranges))
    };
    ranges().unwrap_or_default()
}

fn argument_areas(mm: &proto::MmEntry) -> [(u64, u64); 2] {
    [
        (mm.mm_arg_start, mm.mm_arg_end),
        (mm.mm_env_start, mm.mm_env_end),
    ]
    .map(|(start, end)| {
        let end = end.min(start.saturating_add(MAX_ARGUMENTS));
        (start, end.max(start))
    })
}

/// Ranges that are ordered and apart.
fn joined(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.retain(|&(_, len)| len > 0);
    ranges.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
    for (start, len) in ranges {
        let end = start.saturating_add(len);
        match joined.last_mut() {
            Some((before, before_len)) if *before + *before_len >= start => {
                *before_len = (*before_len).max(end - *before);
            }
            _ => joined.push((start, end - start)),
        }
    }
    joined
}

/// Arguments and environment of a process, each as the bytes that were in its memory.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) arguments: Vec<u8>,
    pub(super) environment: Vec<u8>,
}

/// Arguments and environments of processes, read in one pass. Pages that are nowhere leave them out.
pub(super) fn arguments(
    store: &Store,
    pids: &[u32],
    problems: &mut Vec<Problem>,
) -> Result<BTreeMap<u32, Arguments>, InspectError> {
    // Which piece of a file is which piece of whose arguments.
    struct Piece {
        offset: u64,
        len: u64,
        area: usize,
        at: usize,
    }
    let mut areas: Vec<Vec<u8>> = Vec::new();
    let mut pieces: BTreeMap<String, Vec<Piece>> = BTreeMap::new();
    let mut owners = Vec::new();
    let mut total = 0_u64;
    for &pid in pids {
        let found = mm(store, pid).and_then(|mm| Ok((mm, Memory::of(store, &pid.to_string())?)));
        let (mm, memory) = match found {
            Ok((Some(mm), Some(memory))) => (mm, memory),
            Ok(_) => continue,
            Err(error) => {
                problems.push(Problem::of("arguments", error));
                continue;
            }
        };
        for (start, end) in argument_areas(&mm) {
            let area = areas.len();
            let mut len = 0;
            for run in memory.runs(start, end) {
                // What follows a gap would be taken for something else.
                if run.start != start + len {
                    break;
                }
                let Where::File(name, offset) = run.place else {
                    break;
                };
                pieces.entry(name).or_default().push(Piece {
                    offset,
                    len: run.len,
                    area,
                    at: usize::try_from(len).unwrap_or(usize::MAX),
                });
                len += run.len;
            }
            total += len;
            if total > MAX_ALL_ARGUMENTS {
                problems.push(Problem::new(
                    "arguments",
                    format!("more than {MAX_ALL_ARGUMENTS} bytes, not all are read"),
                ));
                len = 0;
            }
            areas.push(vec![0; usize::try_from(len).unwrap_or(0)]);
        }
        owners.push(pid);
    }
    let wanted = pieces.iter().map(|(name, pieces)| {
        (
            name.clone(),
            joined(
                pieces
                    .iter()
                    .map(|piece| (piece.offset, piece.len))
                    .collect(),
            ),
        )
    });
    let read = store.ranges(&wanted.collect(), &mut |name, offset, bytes| {
        let end = offset + bytes.len() as u64;
        for piece in pieces.get(name).into_iter().flatten() {
            let from = piece.offset.max(offset);
            let until = piece.offset.saturating_add(piece.len).min(end);
            if from >= until {
                continue;
            }
            let source = &bytes[(from - offset) as usize..(until - offset) as usize];
            let at = piece.at + (from - piece.offset) as usize;
            if let Some(target) = areas[piece.area].get_mut(at..at + source.len()) {
                target.copy_from_slice(source);
            }
        }
    });
    if let Err(error) = read {
        problems.push(Problem::of("arguments", error));
    }
    let mut areas = areas.into_iter();
    Ok(owners
        .into_iter()
        .map(|pid| {
            let arguments = areas.next().unwrap_or_default();
            let environment = areas.next().unwrap_or_default();
            (
                pid,
                Arguments {
                    arguments,
                    environment,
                },
            )
        })
        .collect())
}

/// A place in memory where something was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Found {
    /// The address of its first byte.
    pub address: u64,
    /// The bytes around it, from `before` bytes before it on.
    #[serde(serialize_with = "hex")]
    pub context: Vec<u8>,
    /// How many bytes of the context are before it.
    pub before: usize,
}

fn hex<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    serializer.serialize_str(&text)
}

/// Passes the memory of a process in a range on, in pieces: by address where the source can be read anywhere, else in the order in
/// which it is stored.
pub(super) fn read(
    store: &Store,
    pid: u32,
    range: (u64, u64),
    sink: &mut dyn FnMut(u64, &[u8]),
) -> Result<(), InspectError> {
    let Some(memory) = Memory::of(store, &pid.to_string())? else {
        return Err(InspectError::NoProcess { pid });
    };
    let mut wanted: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
    let mut addresses: BTreeMap<(String, u64), u64> = BTreeMap::new();
    for run in memory.runs(range.0, range.1) {
        if let Where::File(name, offset) = run.place {
            wanted
                .entry(name.clone())
                .or_default()
                .push((offset, run.len));
            addresses.insert((name, offset), run.start);
        }
    }
    for ranges in wanted.values_mut() {
        ranges.sort_unstable();
        // Hostile maps may name a page twice; it is shown once.
        let mut end = 0;
        ranges.retain(|&(start, len)| {
            let apart = start >= end;
            end = end.max(start.saturating_add(len));
            apart
        });
    }
    store.ranges(&wanted, &mut |name, offset, bytes| {
        let key = (name.to_owned(), offset);
        if let Some((found, address)) = addresses.range(..=key).next_back()
            && found.0 == name
        {
            sink(address + (offset - found.1), bytes);
        }
    })
}

/// What is searched for at the most, in bytes: less than a page.
pub(super) const MAX_PATTERN: usize = 1024;
const CONTEXT: usize = 16;

/// Where the pattern is in the memory of a process, also across pages that are stored apart, by address.
pub(super) fn search(
    store: &Store,
    pid: u32,
    pattern: &[u8],
    most: usize,
) -> Result<Vec<Found>, InspectError> {
    let mut found = Vec::new();
    // The edges of every piece: a match may go from one into the next.
    let mut edges: BTreeMap<u64, (Vec<u8>, u64, Vec<u8>)> = BTreeMap::new();
    let edge = pattern.len() + CONTEXT;
    read(store, pid, (0, u64::MAX), &mut |address, bytes| {
        matches(bytes, pattern, |at| {
            note(&mut found, most, address, bytes, at, pattern.len())
        });
        let first = bytes[..bytes.len().min(edge)].to_vec();
        let last = bytes[bytes.len().saturating_sub(edge)..].to_vec();
        edges.insert(address, (first, address + bytes.len() as u64, last));
    })?;
    let mut before: Option<&(Vec<u8>, u64, Vec<u8>)> = None;
    for (address, piece) in &edges {
        if let Some((_, end, last)) = before.filter(|(_, end, _)| end == address) {
            let seam = [last.as_slice(), piece.0.as_slice()].concat();
            let start = end - last.len() as u64;
            matches(&seam, pattern, |at| {
                if at < last.len() && at + pattern.len() > last.len() {
                    note(&mut found, most, start, &seam, at, pattern.len());
                }
            });
        }
        before = Some(piece);
    }
    found.sort_by_key(|found| found.address);
    Ok(found)
}

fn matches(bytes: &[u8], pattern: &[u8], mut each: impl FnMut(usize)) {
    let Some(&first) = pattern.first() else {
        return;
    };
    let mut at = 0;
    while let Some(next) = bytes[at..].iter().position(|byte| *byte == first) {
        at += next;
        if bytes[at..].starts_with(pattern) {
            each(at);
        }
        at += 1;
    }
}

fn note(found: &mut Vec<Found>, most: usize, address: u64, bytes: &[u8], at: usize, len: usize) {
    if found.len() >= most {
        return;
    }
    let from = at.saturating_sub(CONTEXT);
    let until = (at + len + CONTEXT).min(bytes.len());
    found.push(Found {
        address: address + at as u64,
        context: bytes[from..until].to_vec(),
        before: at - from,
    });
}
