//! Containers of runc's for the benchmarks, in a root of their own.

use std::cell::RefCell;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Sleeps, over and over: busybox takes a sleep that CRIU has interrupted for one that is over.
const LOOP: [&str; 3] = ["/bin/sh", "-c", "while :; do sleep 1; done"];

/// What containers are made of, and those that were. They end with it.
pub(crate) struct Bundle<'a> {
    directory: &'a Path,
    started: RefCell<Vec<String>>,
}

pub(crate) fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin");
    path
}

impl<'a> Bundle<'a> {
    pub(crate) fn make(directory: &'a Path) -> Result<Self> {
        let bin = directory.join("bundle/rootfs/bin");
        fs::create_dir_all(&bin)?;
        fs::copy("/bin/busybox", bin.join("busybox"))?;
        for applet in ["sh", "sleep"] {
            symlink("busybox", bin.join(applet))?;
        }
        let this = Self {
            directory,
            started: RefCell::default(),
        };
        let bundle = directory.join("bundle");
        this.runc(&search_path(), |command| {
            command.arg("spec").arg("--bundle").arg(&bundle)
        })?;
        let path = bundle.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(LOOP);
        fs::write(&path, serde_json::to_vec(&config)?)?;
        Ok(this)
    }

    /// Where runc has its records.
    pub(crate) fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    pub(crate) fn start(&self, id: &str) -> Result<()> {
        let bundle = self.directory.join("bundle");
        self.started.borrow_mut().push(id.to_owned());
        self.runc(&search_path(), |command| {
            command.args(["run", "-d", "--bundle"]).arg(&bundle).arg(id)
        })
    }

    pub(crate) fn runc(
        &self,
        path: &OsString,
        arguments: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Result<()> {
        // Its output must be no file of ours: the container has it too, and could not be dumped.
        let complaints = self.directory.join("complaints");
        let mut command = Command::new("runc");
        command
            .arg("--root")
            .arg(self.root())
            .arg("--log")
            .arg(&complaints)
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let status = arguments(&mut command).status()?;
        if !status.success() {
            let complaints = fs::read_to_string(&complaints).unwrap_or_default();
            return Err(format!("{command:?}: {status}: {complaints}").into());
        }
        Ok(())
    }
}

impl Drop for Bundle<'_> {
    fn drop(&mut self) {
        for id in self.started.borrow().iter() {
            let _ = self.runc(&search_path(), |command| {
                command.args(["delete", "--force"]).arg(id)
            });
        }
    }
}
