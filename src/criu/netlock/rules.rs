//! The rules of iptables, through the programs that CRIU uses itself.

use std::collections::HashSet;
use std::ffi::CString;
use std::io::{self, Read, Seek, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Connection;
use crate::criu::care::Aftermath;
use crate::rpc::swrk::{Exit, reap};
use crate::rpc::transport::wait_readable;
use crate::sys::{self, Spawn};

/// Where CRIU's own lock command is looked for.
const DIRECTORIES: [&str; 6] = [
    "/usr/sbin",
    "/sbin",
    "/usr/local/sbin",
    "/usr/bin",
    "/bin",
    "/usr/local/bin",
];

/// The programs that write the rules, and those that read them, of both protocols.
const PROGRAMS: [(&str, &str); 2] = [
    ("iptables-restore", "iptables-save"),
    ("ip6tables-restore", "ip6tables-save"),
];

/// Takes down the lock of a whole namespace.
const REMOVE_CHAIN: &str =
    "*filter\n-D INPUT -j CRIU\n-D OUTPUT -j CRIU\n-F CRIU\n-X CRIU\nCOMMIT\n";

/// The mark of packets that CRIU sends itself.
const MARK: &str = "0xc114";

/// Longest wait for one of the programs, which may wait for another's lock.
const PATIENCE: Duration = Duration::from_secs(10);

/// Removes the chain `CRIU` from the calling thread's namespace.
pub(super) fn remove_chain(aftermath: &mut Aftermath) {
    for (restore, save) in PROGRAMS {
        // Where there is no chain CRIU the program fails, and changes nothing.
        if let Some(path) = find(restore) {
            match run(&path, &[c"--wait", c"--noflush"], REMOVE_CHAIN.as_bytes()) {
                Ok((Exit::Status(0), _)) => aftermath
                    .undone
                    .push(format!("network lock removed (chain CRIU, {restore})")),
                Ok((exit, _)) if has_chain(save) => aftermath
                    .left_behind
                    .push(format!("network lock (chain CRIU), {restore}: {exit}")),
                Ok(_) => {}
                Err(error) => aftermath.left_behind.push(format!("{restore}: {error}")),
            }
        }
    }
}

/// Whether the chain `CRIU` stands in the calling thread's namespace.
fn has_chain(save: &str) -> bool {
    find(save)
        .and_then(|path| run(&path, &[c"--table", c"filter"], b"").ok())
        .is_some_and(|(_, rules)| {
            String::from_utf8_lossy(&rules)
                .lines()
                .any(|line| line.starts_with(":CRIU "))
        })
}

/// Removes CRIU's rules about these connections from the calling thread's namespace.
pub(super) fn remove_connections(connections: &HashSet<Connection>, aftermath: &mut Aftermath) {
    for (restore, save) in PROGRAMS {
        let (Some(restore_path), Some(save_path)) = (find(restore), find(save)) else {
            continue;
        };
        let result = run(&save_path, &[c"--table", c"filter"], b"").and_then(|(_, rules)| {
            let removal = removal(&String::from_utf8_lossy(&rules), connections);
            match removal {
                Some(removal) => run(
                    &restore_path,
                    &[c"--wait", c"--noflush"],
                    removal.as_bytes(),
                )
                .map(Some),
                None => Ok(None),
            }
        });
        match result {
            Ok(None) => {}
            Ok(Some((Exit::Status(0), _))) => aftermath.undone.push(format!(
                "network lock removed (rules about connections, {restore})"
            )),
            Ok(Some((exit, _))) => aftermath.left_behind.push(format!("{restore}: {exit}")),
            Err(error) => aftermath.left_behind.push(format!("{restore}: {error}")),
        }
    }
}

/// What iptables-restore has to be told to remove CRIU's rules about `connections` from those that iptables-save listed.
fn removal(rules: &str, connections: &HashSet<Connection>) -> Option<String> {
    let lines: String = rules
        .lines()
        .filter(|line| is_about(line, connections))
        .filter_map(|line| Some(format!("-D{}\n", line.strip_prefix("-A")?)))
        .collect();
    (!lines.is_empty()).then(|| format!("*filter\n{lines}COMMIT\n"))
}

fn is_about(line: &str, connections: &HashSet<Connection>) -> bool {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let after = |flag: &str| {
        let position = words.iter().position(|word| *word == flag)?;
        words.get(position + 1).copied()
    };
    let end = |address: &str, port: &str| -> Option<SocketAddr> {
        let (ip, _) = after(address)?.split_once('/')?;
        Some(SocketAddr::new(
            ip.parse::<IpAddr>().ok()?,
            after(port)?.parse().ok()?,
        ))
    };
    let (Some(source), Some(destination)) = (end("-s", "--sport"), end("-d", "--dport")) else {
        return false;
    };
    after("--mark") == Some(MARK)
        && after("-j") == Some("DROP")
        && (connections.contains(&(source, destination))
            || connections.contains(&(destination, source)))
}

fn find(program: &str) -> Option<PathBuf> {
    DIRECTORIES
        .iter()
        .map(|directory| PathBuf::from(directory).join(program))
        .find(|path| path.exists())
}

/// Runs a program with this standard input, and tells how it ended and what it wrote.
fn run(program: &Path, arguments: &[&std::ffi::CStr], input: &[u8]) -> io::Result<(Exit, Vec<u8>)> {
    let mut stdin = tempfile::tempfile()?;
    stdin.write_all(input)?;
    stdin.rewind()?;
    let mut stdout = tempfile::tempfile()?;
    let null = std::fs::File::options().write(true).open("/dev/null")?;
    let path = CString::new(program.as_os_str().as_encoded_bytes())?;
    let mut vector = vec![path.clone()];
    vector.extend(arguments.iter().map(|argument| CString::from(*argument)));
    let pid = Spawn {
        program: path,
        arguments: vector,
        environment: vec![c"PATH=/usr/sbin:/usr/bin:/sbin:/bin".into()],
        stdio: [stdin.as_fd(), stdout.as_fd(), null.as_fd()],
        inherited: Vec::new(),
        new_session: true,
    }
    .start()?;
    let pidfd = sys::open_pidfd(pid)?;
    if !wait_readable(pidfd.as_fd(), Instant::now() + PATIENCE)? {
        crate::rpc::swrk::reap_in_background(pidfd);
        return Err(io::ErrorKind::TimedOut.into());
    }
    let exit = reap(pidfd.as_fd()).unwrap_or(Exit::Unknown);
    let mut output = Vec::new();
    stdout.rewind()?;
    stdout.read_to_end(&mut output)?;
    Ok((exit, output))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As iptables-save of 1.8.11 lists what CRIU 4.2.1 makes.
    const RULES: &str = "*filter
:INPUT ACCEPT [27332:655925719]
:OUTPUT ACCEPT [22361:1517758]
-A INPUT -s 127.0.0.1/32 -d 127.0.0.1/32 -p tcp -m mark ! --mark 0xc114 -m tcp --sport 56293 --dport 39054 -j DROP
-A INPUT -s 127.0.0.1/32 -d 127.0.0.1/32 -p tcp -m mark ! --mark 0xc114 -m tcp --sport 57151 --dport 40666 -j DROP
-A INPUT -s 127.0.0.1/32 -d 127.0.0.1/32 -p tcp -m tcp --sport 56293 --dport 39054 -j DROP
-A OUTPUT -s 127.0.0.1/32 -d 127.0.0.1/32 -p tcp -m mark ! --mark 0xc114 -m tcp --sport 39054 --dport 56293 -j DROP
COMMIT
";

    #[test]
    fn only_criu_s_rules_about_our_connections_are_removed() {
        let ours: HashSet<Connection> = [(
            "127.0.0.1:39054".parse().unwrap(),
            "127.0.0.1:56293".parse().unwrap(),
        )]
        .into();
        assert_eq!(
            removal(RULES, &ours).unwrap(),
            "*filter
-D INPUT -s 127.0.0.1/32 -d 127.0.0.1/32 -p tcp -m mark ! --mark 0xc114 -m tcp --sport 56293 --dport 39054 -j DROP
-D OUTPUT -s 127.0.0.1/32 -d 127.0.0.1/32 -p tcp -m mark ! --mark 0xc114 -m tcp --sport 39054 --dport 56293 -j DROP
COMMIT
"
        );
        let others: HashSet<Connection> =
            [("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap())].into();
        assert!(removal(RULES, &others).is_none());
        assert!(removal("", &ours).is_none());
    }
}
