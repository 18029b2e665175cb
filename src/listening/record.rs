//! Where what passes is written.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use criu_client::interpose::Interposer;
use criu_client::interpose::recording::{Header, micros_since_epoch, write_line};

use super::settings::{Settings, Sink};

/// How long whoever reads along may take to read the end of it.
const TO_READ: Duration = Duration::from_secs(2);

/// What passes is written by a thread of its own: CRIU never waits for a reader or a disk.
pub(super) struct Record {
    lines: Sender<Vec<u8>>,
    written: mpsc::Receiver<()>,
}

impl Record {
    /// `None` when nothing is recorded, or it cannot be: that is no reason to keep an engine from its CRIU.
    pub(super) fn open(settings: &Settings, pid: i32) -> Option<Self> {
        let sink: Box<dyn Write + Send> = match &settings.sink {
            Sink::Nowhere => return None,
            Sink::Socket(path) => Box::new(UnixStream::connect(path).ok()?),
            Sink::Directory(directory) => {
                let name = format!("criu-{}-{pid}.jsonl", micros_since_epoch());
                let mut options = File::options();
                options.write(true).create_new(true).mode(0o600);
                Box::new(options.open(directory.join(name)).ok()?)
            }
        };
        Self::to(sink, Header::now(settings.mask.is_some()))
    }

    fn to(mut sink: Box<dyn Write + Send>, header: Header) -> Option<Self> {
        let (lines, queue) = mpsc::channel::<Vec<u8>>();
        let (done, written) = mpsc::channel();
        let write = move || {
            if write_line(&mut sink, &header).is_ok() {
                // A reader that has gone wants no more.
                while let Ok(line) = queue.recv() {
                    if sink.write_all(&line).is_err() {
                        break;
                    }
                }
            }
            let _ = done.send(());
        };
        std::thread::Builder::new().spawn(write).ok()?;
        Some(Self { lines, written })
    }

    /// Has everything that the interposer tells written.
    pub(super) fn of<'a>(&self, interposer: Interposer<'a>) -> Interposer<'a> {
        let lines = self.lines.clone();
        interposer.observer(move |entry| {
            let mut line = Vec::new();
            if write_line(&mut line, &entry).is_ok() {
                // Whoever does not read any more wants no more.
                let _ = lines.send(line);
            }
        })
    }

    /// Waits until everything is written, or nobody reads it.
    pub(super) fn finish(self) {
        let Self { lines, written } = self;
        drop(lines);
        let _ = written.recv_timeout(TO_READ);
    }
}
