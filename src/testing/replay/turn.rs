//! Whose turn it is: which session comes next, for connections of one process or processes of one replay.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::parts::Part;

#[derive(Debug)]
pub(super) enum Turn {
    InMemory(Mutex<usize>),
    InFile { path: PathBuf, first: usize },
}

impl Turn {
    pub(super) fn in_memory(first: usize) -> Self {
        Self::InMemory(Mutex::new(first))
    }

    pub(super) fn in_file(path: &Path, first: usize) -> Self {
        Self::InFile {
            path: path.to_owned(),
            first,
        }
    }

    /// Takes the next part, if there is one and it is `wanted`.
    pub(super) fn take(
        &self,
        parts: &[Part],
        wanted: impl FnOnce(&Part) -> bool,
    ) -> io::Result<Option<usize>> {
        self.with_next(|next| {
            parts.get(*next).is_some_and(wanted).then(|| {
                *next += 1;
                *next - 1
            })
        })
    }

    /// The first part that nobody has taken.
    pub(super) fn next(&self) -> io::Result<usize> {
        self.with_next(|next| *next)
    }

    fn with_next<T>(&self, look: impl FnOnce(&mut usize) -> T) -> io::Result<T> {
        match self {
            Self::InMemory(next) => {
                // A count is never half changed.
                Ok(look(
                    &mut next.lock().unwrap_or_else(PoisonError::into_inner),
                ))
            }
            Self::InFile { path, first } => with_count(path, *first, look),
        }
    }
}

fn with_count<T>(path: &Path, first: usize, look: impl FnOnce(&mut usize) -> T) -> io::Result<T> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    lock(&file)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let before = match text.trim() {
        "" => first,
        count => count.parse().map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} holds no count of sessions", path.display()),
            )
        })?,
    };
    let mut next = before;
    let result = look(&mut next);
    if next != before || text.is_empty() {
        file.rewind()?;
        // Shorter counts do not follow longer ones.
        file.write_all(format!("{next}\n").as_bytes())?;
    }
    Ok(result)
}

/// Until the file is closed.
fn lock(file: &File) -> io::Result<()> {
    loop {
        match flock(file, FlockOperation::LockExclusive) {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(count: u32) -> Vec<Part> {
        let part = |session| Part {
            session,
            steps: Vec::new(),
            only_probes: false,
        };
        (1..=count).map(part).collect()
    }

    #[test]
    fn each_part_is_taken_once_wherever_the_count_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let parts = parts(12);
        for turn in [Turn::in_memory(1), Turn::in_file(&path, 1)] {
            assert_eq!(turn.take(&parts, |_| false).unwrap(), None);
            for expected in 1..12 {
                assert_eq!(turn.take(&parts, |_| true).unwrap(), Some(expected));
            }
            assert_eq!(turn.take(&parts, |_| true).unwrap(), None);
            assert_eq!(turn.next().unwrap(), 12);
        }
        // Where the count is kept, it does not begin again.
        assert_eq!(Turn::in_file(&path, 0).next().unwrap(), 12);
        std::fs::write(&path, "twelve").unwrap();
        let error = Turn::in_file(&path, 0).next().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn threads_and_processes_never_take_the_same_part() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let parts = parts(200);
        let mut taken: Vec<usize> = std::thread::scope(|scope| {
            let take = || {
                let turn = Turn::in_file(&path, 0);
                let taken = std::iter::from_fn(|| turn.take(&parts, |_| true).unwrap());
                taken.collect::<Vec<_>>()
            };
            let takers: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            takers
                .into_iter()
                .flat_map(|taker| taker.join().unwrap())
                .collect()
        });
        taken.sort_unstable();
        assert_eq!(taken, (0..200).collect::<Vec<_>>());
    }
}
