//! The options of every request.
//!
//! One type per operation, built with setters and consumed by the operation. What is not set is not sent: CRIU does then what
//! it does by default, which is not always what its protocol file gives as the default.
//!
//! - Every setter names CRIU's long option, so that CRIU's manual tells the details. Some options must be **repeated on
//!   restore**; the setters say which.
//! - Values are checked when the operation starts and before anything is sent; see [`InvalidOption`]. Options that the running
//!   CRIU is too old to know would be ignored by it silently; the operations refuse them.
//! - **Paths** are opened by CRIU, in its mount namespace, after it has changed into its work directory. They must be absolute
//!   and UTF-8; only [`parent_images`](DumpOptions::parent_images) is relative.
//! - **Descriptors** are given away. Those that CRIU opens anew are kept until it has answered, those that it inherits are
//!   copied into it, and both are closed when the operation is over.
//! - A configuration file given with `config_file` wins over all options here; the files that CRIU reads by itself give way.

mod check;
mod common;
mod convert;
mod dump;
mod error;
mod external;
mod inherit;
mod limits;
mod namespaces;
mod page_server;
mod pre_dump;
mod restore;
mod since;
mod transport;
mod values;

#[cfg(test)]
mod tests;

pub use check::{CheckOptions, CpuinfoOptions};
pub use dump::DumpOptions;
pub use error::InvalidOption;
pub use external::{AutoMounts, ExternalOnDump, ExternalOnRestore};
pub use inherit::{InheritFd, InheritKey};
pub use namespaces::{JoinKind, JoinNamespace};
pub use page_server::PageServerOptions;
pub use pre_dump::PreDumpOptions;
pub use restore::RestoreOptions;
pub use transport::PageTransport;
pub use values::{
    CgroupMode, Compression, CpuCapabilities, ImageIoMode, Leave, LogLevel, LsmProfile, Lz4,
    NetworkLock, PreDumpMode, Tls,
};

pub(crate) use convert::{Prepared, encode_request};
pub(crate) use since::{Newer, later_arguments, newer_than};
