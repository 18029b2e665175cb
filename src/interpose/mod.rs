//! A CRIU that listens in: between an engine and its `criu swrk`, or between clients and a `criu service`.
//!
//! runc, crun, Podman, Docker and containerd all start `criu swrk` and speak the protocol that this library speaks. A program
//! of ours in CRIU's place sees every message, and may ask hooks of its own, add options to a request, or refuse it:
//!
//! ```text
//! engine                        listener                              criu
//!   | criu_req{DUMP, opts} ----->| recorded; hooks may refuse or amend  |
//!   |                            | criu_req{DUMP, opts'} -------------->|   descriptors opened and renumbered
//!   |                            |<------------- criu_resp{NOTIFY} -----|
//!   |                            | recorded; hooks are asked first      |
//!   |<---- criu_resp{NOTIFY} ----|                                      |   unless a hook refused
//!   | criu_req{NOTIFY} --------->| ----------------------------------->|
//!   |<- criu_resp{DUMP, success} | <------------------------------------|   then whoever hangs up is followed
//! ```
//!
//! [`Interposer`] carries one conversation, whatever the sockets come from. [`place`] takes the place of a `criu swrk` that an
//! engine starts, [`Service`] listens for clients of a `criu service`. [`recording`] is the form in which what passed is kept.
//!
//! The bytes that pass are never encoded anew: fields of a newer CRIU go through. What changes is what must: the numbers of
//! descriptors that CRIU opens in the table of its peer (`images_dir_fd`, `work_dir_fd`, `status_fd`, `pidfd_store_sk`), and
//! `notify_scripts` in a DUMP of an engine that wants no callbacks: with it CRIU notices when the listener dies, and does not
//! kill the tasks. Those callbacks are answered here, the engine does not get them.
//!
//! One request cannot be carried: a process that dumps itself (DUMP without a pid) would be taken for the listener. It is
//! answered as failed.

mod amendment;
mod interposer;
mod mask;
pub mod place;
mod proxy;
pub mod recording;
mod request;
mod service;

pub use amendment::{Amendment, KeptAmendment};
pub use interposer::Interposer;
pub use mask::Mask;
#[cfg(feature = "testing")]
pub(crate) use mask::shape;
pub use request::{Request, Verdict};
pub use service::{Client, Service};
