//! Drive [CRIU](https://criu.org), Linux's checkpoint/restore, from Rust: its RPC spoken directly, callbacks delivered
//! to async hooks, failures as structured errors.
//!
//! [`Criu`] is where to start: it names the program (or the socket of a `criu service`), and its methods are everything
//! that CRIU can be asked. What is required is a parameter, everything else an [options] value:
//!
//! ```no_run
//! use criu_client::notify::{Reply, Script, hook_fn};
//! use criu_client::options::{DumpOptions, Leave};
//! use criu_client::{Criu, ImagesDir};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let criu = Criu::find()?;
//! let images = ImagesDir::create("/var/lib/checkpoints/worker-1")?;
//! let hooks = hook_fn(async |notify| {
//!     println!("criu is at {}", notify.script());
//!     Ok(Reply::Accept)
//! });
//! let report = criu
//!     .dump(4711, &images, hooks, DumpOptions::new().leave(Leave::Running).tcp_established(true))
//!     .await?;
//! println!("{:?}", report.stats);
//! # Ok(())
//! # }
//! ```
//!
//! - [`notify`]: the callbacks, what may be answered, and what the tasks do meanwhile. Beneath the hooks is
//!   [`Operation`], which hands out one callback at a time to programs that want to hold CRIU at a stage.
//! - [`Error`]: who failed, in which state the tasks are, the log line that names the cause, and for known causes
//!   (the [`diagnosis`] catalogue) a sentence and a remedy.
//! - [`container`]: containers of an engine instead of processes.
//! - [`dry_run`]: what an operation would do, as a value.
//! - [`image`]: the few image files that a client reads.
//!
//! **The workload comes first.** A failed, cancelled or dropped operation leaves the tasks of a dump running and those of
//! a restore gone (each operation documents the exact states); workers are reaped, network locks taken down, half-restored
//! tasks killed, also when CRIU itself is killed in the middle.
//!
//! Everything runs inside a tokio runtime of either flavour, and does not mind what the rest of the program does with
//! SIGCHLD. The library prints nothing, reads no configuration from the environment (CRIU itself inherits the environment,
//! without `CRIU_CONFIG_FILE`), and tells what it does through `tracing`.

#[cfg(feature = "archive")]
pub mod archive;
pub mod container;
mod criu;
pub mod diagnosis;
pub mod dry_run;
mod error;
pub mod image;
#[cfg(feature = "archive")]
pub mod inspect;
pub mod interpose;
pub mod notify;
pub mod options;
mod rpc;
mod sys;
#[cfg(feature = "testing")]
pub mod testing;
mod version;

pub use criu::{
    Answer, Connection, Criu, DetachedPageServer, Details, DumpReport, Features, IgnoredRefusal,
    ImagesDir, LazyPages, LazyPagesOptions, Operation, PageServer, Phase, PreDumpReport, Report,
    RestoreReport, RestoredChild, RestoredRoot, TimeLimits, Timings, Verdict,
};
pub use error::{Errno, Error, ErrorKind, HookFailure, OperationKind, Result, TaskState};
pub use rpc::session::Violation;
pub use rpc::swrk::Exit;
pub use version::{ParseVersionError, Version};

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
