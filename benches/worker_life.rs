//! How long the worker lives, as the kernel's tracing has it: from its exec to the signal that tells its parent of its
//! death. Neither end depends on when anybody notices.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Its number on Linux, everywhere but on MIPS and SPARC.
const SIGCHLD: u32 = 17;

/// A tracing instance of its own, which disturbs no other and is removed when dropped.
pub(crate) struct Observer {
    /// A tracefs of its own mount, so that nothing is left mounted.
    mounted: tempfile::TempDir,
    instance: PathBuf,
    program: String,
}

impl Observer {
    pub(crate) fn new(program: &Path) -> Result<Self> {
        let mounted = tempfile::tempdir()?;
        mount(
            Some("tracefs"),
            mounted.path(),
            Some("tracefs"),
            MsFlags::empty(),
            None::<&str>,
        )?;
        let instance = mounted.path().join(format!(
            "instances/criu-client-bench-{}",
            std::process::id()
        ));
        let observer = Self {
            mounted,
            instance,
            program: program.display().to_string(),
        };
        fs::create_dir(&observer.instance)?;
        observer.set("trace_clock", "mono")?;
        // Other programs may run criu meanwhile: the signal tells which worker was ours.
        let ours = format!("sig == {SIGCHLD} && pid == {}", std::process::id());
        observer.set("events/signal/signal_generate/filter", &ours)?;
        observer.set("events/signal/signal_generate/enable", "1")?;
        observer.set("events/sched/sched_process_exec/enable", "1")?;
        Ok(observer)
    }

    /// Forgets what was seen before.
    pub(crate) fn begin(&mut self) -> Result<()> {
        self.set("trace", "")
    }

    /// The life of the one worker since then.
    pub(crate) fn life(&mut self) -> Result<Duration> {
        let trace = fs::read_to_string(self.instance.join("trace"))?;
        let events: Vec<Event<'_>> = trace.lines().filter_map(Event::parse).collect();
        let exits = events
            .iter()
            .filter(|event| event.text.starts_with("signal_generate:"));
        let (exec, exit) = exits
            .filter_map(|exit| Some((self.exec(&events, exit.pid)?, exit)))
            .next_back()
            .ok_or("the worker's exec and exit were not seen")?;
        Ok(Duration::from_secs_f64(exit.seconds - exec.seconds))
    }

    fn exec<'a>(&self, events: &'a [Event<'_>], pid: u32) -> Option<&'a Event<'a>> {
        let file = format!("filename={} ", self.program);
        events.iter().find(|event| {
            event.pid == pid
                && event.text.starts_with("sched_process_exec:")
                && event.text.contains(&file)
        })
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        Ok(fs::write(self.instance.join(file), value)?)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        // What cannot be removed shows up in tracefs; there is nobody to tell it to.
        let _ = fs::remove_dir(&self.instance);
        let _ = umount2(self.mounted.path(), MntFlags::empty());
    }
}

/// A line such as `criu-4711 [001] d..1. 12345.678901: signal_generate: sig=17 …`.
struct Event<'a> {
    pid: u32,
    seconds: f64,
    text: &'a str,
}

impl<'a> Event<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (head, rest) = line.split_once(" [")?;
        let (_, pid) = head.rsplit_once('-')?;
        let (before, text) = rest.split_once(": ")?;
        let (_, seconds) = before.rsplit_once(' ')?;
        Some(Self {
            pid: pid.trim().parse().ok()?,
            seconds: seconds.parse().ok()?,
            text,
        })
    }
}
