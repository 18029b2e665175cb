//! A CRIU that does what a script says, for tests of what a real CRIU does not do on demand; and one that does what a real
//! CRIU did, for tests without one: see [`Replay`].
//!
//! The peer speaks CRIU's protocol on a real socket and needs neither CRIU nor privileges. It checks out what the client
//! sends, answers as it is told (which may be wrong, late, or never), and hands back a [`Transcript`]. No task is touched: a
//! scripted dump of a process leaves the process alone.
//!
//! It comes in two forms:
//!
//! - [`Peer::service`] listens like `criu service`, on a thread of this process, for [`Criu::service`](crate::Criu::service).
//! - [`ProgramPeer`] is played by a program, for [`Criu::at`](crate::Criu::at): everything around the process of a `criu
//!   swrk` (its descriptors, output, exit status, death) happens for real. A test binary with its own `main` can be that
//!   program itself, see [`play_if_asked`].
//!
//! ```
//! use criu_client::testing::{Peer, Request, Script};
//! use criu_client::{Criu, ErrorKind, ImagesDir, notify::{Reply, hook_fn}, options::DumpOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let peer = Peer::service(
//!     Script::new()
//!         .version(4, 2, 1)
//!         .expect(Request::Dump)
//!         .callback("pre-dump")
//!         .expect_accept()
//!         .callback("post-dump")
//!         .expect_refusal()
//!         .answer_failure(Request::Dump)
//!         .expect_hang_up(),
//! )?;
//!
//! let directory = tempfile::tempdir()?;
//! let images = ImagesDir::open(directory.path())?;
//! let hooks = hook_fn(async |notify| match notify.script().as_str() {
//!     "post-dump" => Ok(Reply::Refuse("only a rehearsal".into())),
//!     _ => Ok(Reply::Accept),
//! });
//! let own_pid = std::process::id() as i32;
//! let error = Criu::service(peer.socket())
//!     .dump(own_pid, &images, hooks, DumpOptions::new())
//!     .await
//!     .unwrap_err();
//! assert!(matches!(error.kind(), ErrorKind::Hook { .. }));
//!
//! let transcript = peer.join();
//! assert_eq!(transcript.problem, None);
//! assert_eq!(transcript.requests(), [Request::Version, Request::Dump]);
//! assert_eq!(transcript.replies(), [Some(true), Some(false)]);
//! # Ok(())
//! # })
//! # }
//! ```

mod connection;
mod player;
mod program;
mod replay;
mod request;
mod response;
mod script;
mod service;
mod transcript;

pub use program::{ProgramPeer, play_if_asked};
pub use replay::{
    Compare, Departure, Difference, InvalidSpeed, NoSuchSession, Outcome, ProgramReplay, Replay,
    ReplayHandle, Replayed, Said, Speed,
};
pub use request::Request;
pub use response::{Callback, Response};
pub use script::Script;
pub use service::{Peer, PeerHandle};
pub use transcript::{Message, Pipe, ProcessFacts, Transcript, Value};
