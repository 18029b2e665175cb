//! Control groups as crun wants them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use nix::mount::{MsFlags, mount, umount};

use crate::support::{text, until};

/// crun wants all controllers in hierarchies of version 1 or all in that of version 2. Where both are in use, those of
/// version 2 are mounted as hierarchies of version 1 for as long as somebody has this.
pub(crate) struct OneVersion {
    moved: Vec<Moved>,
}

impl OneVersion {
    pub(crate) fn of_cgroups() -> Result<Arc<Self>, String> {
        static SHARED: Mutex<Weak<OneVersion>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().map_err(text)?;
        if let Some(present) = shared.upgrade() {
            return Ok(present);
        }
        let moved = unified("controllers").into_iter().map(Moved::mount);
        let one = Arc::new(Self {
            moved: moved.collect::<Result<_, _>>()?,
        });
        *shared = Arc::downgrade(&one);
        Ok(one)
    }
}

impl Drop for OneVersion {
    fn drop(&mut self) {
        for moved in &self.moved {
            moved.unmount();
        }
    }
}

/// A controller that was taken out of the hierarchy of version 2.
struct Moved {
    controller: String,
    directory: PathBuf,
    /// Groups of the other hierarchy had it.
    passed_on: bool,
}

impl Moved {
    fn mount(controller: String) -> Result<Self, String> {
        let moved = Self {
            directory: Path::new("/sys/fs/cgroup").join(&controller),
            passed_on: unified("subtree_control").contains(&controller),
            controller,
        };
        fs::create_dir_all(&moved.directory).map_err(text)?;
        // It cannot be taken while a group has it, be it somebody else's or one that is on its way out.
        moved.pass_on('-');
        let mut refusal = None;
        until("the controller can be mounted", || {
            refusal = mount(
                Some("cgroup"),
                &moved.directory,
                Some("cgroup"),
                MsFlags::empty(),
                Some(moved.controller.as_str()),
            )
            .err();
            refusal.is_none()
        })
        .map_err(|error| {
            moved.give_back();
            format!("{error}: {}: {refusal:?}", moved.controller)
        })?;
        Ok(moved)
    }

    fn unmount(&self) {
        // The hierarchy would stay, unmounted, for the sake of a group that is on its way out. Where others have made
        // theirs in it by now, it stays mounted.
        if until("no group is left", || groups_of(&self.controller) <= 1).is_err() {
            return;
        }
        let _ = umount(&self.directory);
        // A moment later.
        let _ = until("the controller is back", || {
            unified("controllers").contains(&self.controller)
        });
        self.give_back();
    }

    fn give_back(&self) {
        let _ = fs::remove_dir(&self.directory);
        if self.passed_on {
            self.pass_on('+');
        }
    }

    fn pass_on(&self, sign: char) {
        let change = format!("{sign}{}", self.controller);
        let _ = fs::write(Path::new(UNIFIED).join("cgroup.subtree_control"), change);
    }
}

/// The hierarchy of version 2 beside those of version 1.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// The controllers that one of its files names, if it is there.
fn unified(file: &str) -> Vec<String> {
    let names = fs::read_to_string(Path::new(UNIFIED).join(format!("cgroup.{file}")));
    names
        .unwrap_or_default()
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}

/// How many groups the hierarchy of a controller has.
fn groups_of(controller: &str) -> u32 {
    let table = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&controller))
        .and_then(|fields| fields.get(2)?.parse().ok())
        .unwrap_or(0)
}
