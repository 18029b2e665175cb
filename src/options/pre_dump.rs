use super::common::{
    Common, Modern, Tracking, Transfer, common_setters, modern_setters, tracking_setters,
    transfer_setters,
};
use super::values::PreDumpMode;

/// What a pre-dump does: one iteration that writes memory and lets the tasks run on. See the [module](super) for what all
/// options have in common.
#[derive(Debug, Default)]
#[non_exhaustive]
#[must_use]
pub struct PreDumpOptions {
    pub(super) common: Common,
    pub(super) modern: Modern,
    pub(super) tracking: Tracking,
    pub(super) transfer: Transfer,
    pub(super) mode: Option<PreDumpMode>,
}

common_setters!(PreDumpOptions);
modern_setters!(PreDumpOptions);
tracking_setters!(PreDumpOptions);
transfer_setters!(
    PreDumpOptions,
    /// Sends pages to a page server instead of the images directory; every iteration needs a new server. Long option
    /// `--page-server` with `--address` and `--port`, or `--ps-socket`.
    page_server
);

impl PreDumpOptions {
    /// How memory is read. Long option `--pre-dump-mode`. Since CRIU 3.14.
    pub fn mode(mut self, mode: PreDumpMode) -> Self {
        self.mode = Some(mode);
        self
    }
}
