//! What the tests of the peer have in common.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use criu_client::notify::Hooks;
use criu_client::options::{DumpOptions, RestoreOptions};
use criu_client::testing::{Peer, PeerHandle, ProgramPeer, Request, Script};
use criu_client::{
    Criu, DumpReport, Error, ImagesDir, Operation, RestoreReport, Result, TimeLimits,
};
use tempfile::TempDir;

/// Longer than any test waits.
pub(crate) const EVER: Duration = Duration::from_secs(60);

/// A limit that is meant to pass. What has to happen before it does has time enough even on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_millis(2500);

/// How long a worker gets that is meant to be killed.
pub(crate) const SHORT: Duration = Duration::from_millis(200);

/// A script that has come to the point where CRIU works on the dump.
pub(crate) fn dumping() -> Script {
    Script::new().version(4, 2, 1).expect(Request::Dump)
}

/// The same for a restore.
pub(crate) fn restoring() -> Script {
    Script::new().version(4, 2, 1).expect(Request::Restore)
}

pub(crate) fn service(script: Script) -> (Criu, PeerHandle) {
    let peer = Peer::service(script).unwrap();
    (Criu::service(peer.socket()), peer)
}

/// A worker: this very program, as the peer.
pub(crate) fn program(script: &Script) -> (Criu, ProgramPeer) {
    let peer = ProgramPeer::new(script).unwrap();
    let criu = Criu::at(std::env::current_exe().unwrap()).with_arguments(peer.arguments());
    (criu, peer)
}

pub(crate) fn limits() -> TimeLimits {
    TimeLimits::default()
}

/// A child that does nothing: something to dump, or to be taken for restored.
pub(crate) struct Idle(Child);

impl Idle {
    pub(crate) fn start() -> Self {
        let mut command = Command::new("/bin/sleep");
        command
            .arg("1000")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    pub(crate) fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        // It may be dead and reaped already: that is part of some tests.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Something to dump and a place to put it.
pub(crate) struct Scene {
    pub(crate) task: Idle,
    pub(crate) images: ImagesDir,
    pub(crate) directory: TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            task: Idle::start(),
            images: ImagesDir::open(directory.path()).unwrap(),
            directory,
        }
    }

    /// With images of a tree that has a pid namespace of its own, so that no pid is taken.
    pub(crate) fn with_images() -> Self {
        let scene = Self::new();
        let pstree = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/data/images/criu-4.2.1/pid-namespace/pstree.img"
        );
        std::fs::copy(pstree, scene.directory.path().join("pstree.img")).unwrap();
        scene
    }

    pub(crate) async fn dump(&self, criu: &Criu, hooks: impl Hooks) -> Result<DumpReport> {
        criu.dump(self.task.pid(), &self.images, hooks, DumpOptions::new())
            .await
    }

    pub(crate) async fn start_dump(&self, criu: &Criu) -> Result<Operation<DumpReport>> {
        criu.start_dump(self.task.pid(), &self.images, DumpOptions::new())
            .await
    }

    pub(crate) async fn restore(&self, criu: &Criu, hooks: impl Hooks) -> Result<RestoreReport> {
        criu.restore(&self.images, hooks, RestoreOptions::new())
            .await
    }
}

/// The error of a dump through a service that plays `script`, which must have gone as written.
pub(crate) async fn dump_error(script: Script) -> Error {
    let (criu, peer) = service(script);
    // After a breach of the protocol CRIU gets this long to end in an orderly way.
    let criu = criu.with_limits(limits().settle(SHORT));
    let error = Scene::new().dump(&criu, ()).await.unwrap_err();
    assert_eq!(peer.join().problem, None, "{error:?}");
    error
}

/// Waits, without blocking the runtime, for what happens in a thread or process of its own.
pub(crate) async fn until(what: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !what() {
        assert!(std::time::Instant::now() < deadline, "it does not happen");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The causes of an error, outermost first.
pub(crate) fn chain(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect()
}
