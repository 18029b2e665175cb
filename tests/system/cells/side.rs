//! What an engine's container is made, checkpointed and restored by.

use std::fs;
use std::net::IpAddr;

use criu_client::ImagesDir;

use super::Row;
use crate::engines::Ground;
use crate::support::Outcome;

/// An engine with one container, seen from both sides.
pub(super) trait Side {
    fn ground(&self) -> &Ground;

    /// Has the engine make and start the container, which listens at `port`.
    fn start(&mut self, row: Row, port: u16) -> Outcome;

    /// Where it can be connected to.
    fn address(&self) -> Result<IpAddr, String>;

    fn pid(&self) -> Result<i32, String>;

    fn exec(&self, command: &[&str]) -> Result<String, String>;

    fn pause(&self) -> Outcome;

    /// Ends it, so that it can be restored.
    fn end(&mut self) -> Outcome;

    /// Ours, which ends it or leaves it as it is.
    fn checkpoint(&mut self, images: &ImagesDir, leave: bool) -> Outcome;

    fn restore(&mut self, images: &ImagesDir) -> Outcome;

    /// A directory of images from which the engine's own restore can be had.
    fn place(&self, name: &str) -> Result<ImagesDir, String>;

    fn own_checkpoint(&mut self, name: &str) -> Result<ImagesDir, String>;

    fn own_restore(&mut self, images: &ImagesDir) -> Outcome;
}

/// What the program has found wrong.
pub(super) fn complaint(ground: &Ground) -> Option<String> {
    fs::read_to_string(ground.path("data/count.complaint")).ok()
}
