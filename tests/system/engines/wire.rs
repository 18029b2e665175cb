//! Connections to containers, and what their control groups allow: what a checkpoint keeps, seen from outside.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::{Outcome, PATIENCE, ensure, text};

/// Addresses that nobody has here.
pub(crate) struct Subnet {
    pub(crate) bridge: String,
    third: u8,
}

impl Subnet {
    pub(crate) fn free() -> Self {
        let number = std::process::id() % 250;
        Self {
            bridge: format!("criut{number}"),
            third: u8::try_from(number).unwrap_or(0),
        }
    }

    pub(crate) fn range(&self) -> String {
        format!("10.231.{}.0/24", self.third)
    }

    pub(crate) fn host(&self, number: u8) -> IpAddr {
        [10, 231, self.third, number].into()
    }
}

pub(crate) fn connected(address: IpAddr, port: u16) -> Result<TcpStream, String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let error = match TcpStream::connect_timeout(&(address, port).into(), PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE)).map_err(text)?;
                return Ok(stream);
            }
            Err(error) => error,
        };
        ensure!(Instant::now() < deadline, "{address}:{port}: {error}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn echoes(stream: &mut TcpStream, words: &[u8]) -> Outcome {
    stream.write_all(words).map_err(text)?;
    let mut echo = vec![0; words.len()];
    stream.read_exact(&mut echo).map_err(text)?;
    ensure!(echo == words, "{echo:?}");
    Ok(())
}

/// What control groups allow.
pub(crate) fn limits(groups: Vec<PathBuf>) -> Vec<String> {
    let read = |group: &Path, name: &str| fs::read_to_string(group.join(name)).ok();
    let names = ["memory.limit_in_bytes", "cpu.cfs_quota_us", "pids.max"];
    let mut limits: Vec<String> = groups
        .iter()
        .flat_map(|group| names.map(|name| (name, read(group, name))))
        .filter_map(|(name, value)| Some(format!("{name} {}", value?.trim())))
        .collect();
    limits.sort();
    limits
}
