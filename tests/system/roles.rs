//! What victims do: each role makes something that a checkpoint must keep, and looks at it again before every count.

use std::fs::{self, File};
use std::io::{BufRead, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use nix::sched::{CloneFlags, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::support::*;

/// Looks whether everything is as it should be; is given the count.
type Look = Box<dyn FnMut(u64) -> Outcome>;

/// The victim's own part, `COUNT-FILE ROLE ARGUMENT …`: never returns.
pub(crate) fn be_a_victim(arguments: &[String]) -> ! {
    let path = PathBuf::from(&arguments[0]);
    if let Err(complaint) = live(&path, &arguments[1], &arguments[2]) {
        let _ = fs::write(path.with_extension("complaint"), complaint);
    }
    #[allow(clippy::exit)]
    std::process::exit(1)
}

fn live(path: &Path, role: &str, argument: &str) -> Outcome {
    let mut look: Look = match role {
        "plain" => Box::new(|_| Ok(())),
        "network" => separate(CloneFlags::CLONE_NEWNET)?,
        "namespaces" => separate(
            CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC,
        )?,
        "tree" => tree()?,
        "cell" => cell(argument.parse().map_err(text)?)?,
        "files" => files(path)?,
        "memory" => memory(argument.parse().map_err(text)?),
        "rounds" => rounds(path),
        "user-namespace" => user_namespace()?,
        "user" => user(argument),
        "environment" => environment(argument),
        "lock" => lock(path)?,
        "tcp" => tcp()?,
        "datagrams" => datagrams(argument)?,
        "lines" => lines()?,
        "echo" => echo(),
        "exit" => exit(argument),
        _ => return Err(format!("unknown role {role}")),
    };
    // In a cell, a word besides that no other run has.
    let run = match role {
        "cell" => fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(text)?,
        _ => String::new(),
    };
    let run = run.trim();
    let file = File::create(path).map_err(text)?;
    for count in 0u64.. {
        look(count)?;
        // In place and of one length: CRIU restores only files that have the size they had.
        let line = format!("{run} {count:020}");
        file.write_all_at(line.trim_start().as_bytes(), 0)
            .map_err(text)?;
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    unreachable!("nobody counts that far")
}

fn separate(namespaces: CloneFlags) -> Result<Look, String> {
    unshare(namespaces).map_err(text)?;
    Ok(Box::new(|_| Ok(())))
}

/// Two children and two threads; a number goes around through all of them, over pipes, a socket pair and futexes.
fn tree() -> Result<Look, String> {
    let (from_parent, mut to_first) = std::io::pipe().map_err(text)?;
    let (from_first, to_second) = std::io::pipe().map_err(text)?;
    let (mut from_second, to_parent) = UnixStream::pair().map_err(text)?;
    let to_first_copy = to_first.try_clone().map_err(text)?;
    let from_second_copy = from_second.try_clone().map_err(text)?;
    child((to_first_copy, from_second_copy), from_parent, to_second)?;
    let rest = (
        to_first.try_clone().map_err(text)?,
        from_second.try_clone().map_err(text)?,
    );
    child(rest, from_first, to_parent)?;
    let (to_one, from_us) = mpsc::channel::<u64>();
    let (to_two, from_one) = mpsc::channel::<u64>();
    let (to_us, from_two) = mpsc::channel::<u64>();
    std::thread::spawn(move || {
        from_us
            .iter()
            .try_for_each(|number| to_two.send(number + 1))
    });
    std::thread::spawn(move || {
        from_one
            .iter()
            .try_for_each(|number| to_us.send(number + 1))
    });
    Ok(Box::new(move |count| {
        to_first.write_all(&count.to_ne_bytes()).map_err(text)?;
        let mut bytes = [0; 8];
        from_second.read_exact(&mut bytes).map_err(text)?;
        let number = u64::from_ne_bytes(bytes);
        ensure!(number == count + 2, "the children made {number} of {count}");
        to_one.send(count).map_err(text)?;
        let number = from_two.recv().map_err(text)?;
        ensure!(number == count + 2, "the threads made {number} of {count}");
        Ok(())
    }))
}

/// All that the containers of `cells/…` keep: a tree, memory, and a port at which everybody is told what they say.
fn cell(port: u16) -> Result<Look, String> {
    let mut tree = tree()?;
    let mut memory = memory(2);
    let listener = TcpListener::bind(("0.0.0.0", port)).map_err(text)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    Ok(Box::new(move |count| {
        tree(count)?;
        memory(count)
    }))
}

/// Forks a child that passes on what it reads plus one, and ends with its input. It closes `parents` first.
fn child<T>(parents: T, mut input: impl Read, mut output: impl Write) -> Outcome {
    // SAFETY: this process has no other thread yet.
    #[allow(unsafe_code)]
    match unsafe { nix::unistd::fork() }.map_err(text)? {
        nix::unistd::ForkResult::Parent { .. } => Ok(()),
        nix::unistd::ForkResult::Child => {
            drop(parents);
            let mut bytes = [0; 8];
            while input.read_exact(&mut bytes).is_ok() {
                let next = u64::from_ne_bytes(bytes) + 1;
                if output.write_all(&next.to_ne_bytes()).is_err() {
                    break;
                }
            }
            #[allow(clippy::exit)]
            std::process::exit(0)
        }
    }
}

/// A file that is deleted and still open, and a memfd.
fn files(path: &Path) -> Result<Look, String> {
    let content: Vec<u8> = (0..50_000u32)
        .map(|number| number.wrapping_mul(7919) as u8)
        .collect();
    let name = path.with_extension("deleted");
    let deleted = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&name)
        .map_err(text)?;
    deleted.write_all_at(&content, 0).map_err(text)?;
    fs::remove_file(&name).map_err(text)?;
    let memfd = File::from(memfd_create("kept-in-memory", MFdFlags::MFD_CLOEXEC).map_err(text)?);
    memfd.write_all_at(&content, 4096).map_err(text)?;
    Ok(Box::new(move |_| {
        for (file, offset) in [(&deleted, 0), (&memfd, 4096)] {
            let mut found = vec![0; content.len()];
            file.read_exact_at(&mut found, offset).map_err(text)?;
            ensure!(found == content, "the content has changed");
        }
        ensure!(
            deleted.metadata().map_err(text)?.nlink() == 0,
            "the deleted file has a name again"
        );
        Ok(())
    }))
}

const PAGE: usize = 4096;

/// Many pages, each different from all others.
fn memory(mebibytes: usize) -> Look {
    let body: Vec<u8> = (0..PAGE - 8)
        .map(|number| (number * 31 + number / 256) as u8)
        .collect();
    let mut pages = vec![0u8; mebibytes << 20];
    for (number, page) in pages.chunks_exact_mut(PAGE).enumerate() {
        page[..8].copy_from_slice(&number.to_ne_bytes());
        page[8..].copy_from_slice(&body);
    }
    Box::new(move |count| {
        for (number, page) in pages.chunks_exact(PAGE).enumerate() {
            ensure!(
                page[..8] == number.to_ne_bytes() && page[8..] == body,
                "page {number} has changed"
            );
        }
        // And some memory that changes.
        let last = pages.len() - PAGE;
        let changed = count.to_ne_bytes();
        pages[last + 8..last + 16].copy_from_slice(&changed);
        ensure!(
            pages[last + 8..last + 16] == changed,
            "memory does not keep what is written to it"
        );
        pages[last + 8..last + 16].copy_from_slice(&body[..8]);
        Ok(())
    })
}

/// How much memory the role `rounds` has: sixteen huge pages, of which a round writes to whole ones.
pub(crate) const ROUNDS_PAGES: usize = 8192;

/// How many pages are written in a round: a quarter of those of the round before.
pub(crate) const fn pages_of_round(round: usize) -> usize {
    ROUNDS_PAGES >> (2 * round)
}

/// Begins a round, for a victim that counts in `count`.
pub(crate) fn begin_round(count: &Path, round: usize) -> Outcome {
    // It must never read half of it.
    let unfinished = count.with_extension("next");
    fs::write(&unfinished, round.to_string()).map_err(text)?;
    fs::rename(unfinished, round_file(count)).map_err(text)
}

fn round_file(count: &Path) -> PathBuf {
    count.with_extension("round")
}

/// Memory that is written to once a round, less and less of it; each page knows in which round it was written last.
fn rounds(path: &Path) -> Look {
    let file = round_file(path);
    let mut pages = vec![0u8; ROUNDS_PAGES * PAGE];
    let mut expected = vec![0u8; ROUNDS_PAGES];
    let mut current = None;
    let fill = |page: &mut [u8], number: usize, round: u8| {
        page.fill(round ^ number as u8);
        page[..8].copy_from_slice(&number.to_ne_bytes());
        page[8] = round;
    };
    let mut whole = vec![0u8; PAGE];
    Box::new(move |_| {
        let round: usize = fs::read_to_string(&file)
            .ok()
            .and_then(|number| number.trim().parse().ok())
            .unwrap_or(0);
        if current != Some(round) {
            let many = pages_of_round(round);
            for (number, page) in pages.chunks_exact_mut(PAGE).take(many).enumerate() {
                fill(page, number, round as u8);
            }
            expected[..many].fill(round as u8);
            current = Some(round);
        }
        for (number, page) in pages.chunks_exact(PAGE).enumerate() {
            fill(&mut whole, number, expected[number]);
            ensure!(
                *page == *whole,
                "page {number} is not as round {} left it",
                expected[number]
            );
        }
        Ok(())
    })
}

/// A user namespace of its own, in which it is root and nobody else is known.
fn user_namespace() -> Result<Look, String> {
    let (user, group) = (nix::unistd::getuid(), nix::unistd::getgid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(text)?;
    fs::write("/proc/self/setgroups", "deny").map_err(text)?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1")).map_err(text)?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1")).map_err(text)?;
    let map = fs::read_to_string("/proc/self/uid_map").map_err(text)?;
    Ok(Box::new(move |_| {
        let found = fs::read_to_string("/proc/self/uid_map").map_err(text)?;
        ensure!(found == map, "the map of users is {found} and was {map}");
        let user = nix::unistd::getuid();
        ensure!(user.is_root(), "inside, it is user {user}");
        Ok(())
    }))
}

/// Is the user `argument`, and stays it.
fn user(argument: &str) -> Look {
    let expected = argument.to_owned();
    Box::new(move |_| {
        let ids = nix::unistd::getresuid().map_err(text)?;
        let found = [ids.real, ids.effective, ids.saved].map(|id| id.to_string());
        ensure!(
            found.iter().all(|id| *id == expected),
            "it is user {found:?} instead of {expected}"
        );
        Ok(())
    })
}

fn environment(directory: &str) -> Look {
    let directory = PathBuf::from(directory);
    Box::new(move |_| {
        let found = std::env::var_os("CRIU_CLIENT_VICTIM").ok_or("the environment is gone")?;
        ensure!(
            Path::new(&found) == directory,
            "the environment has {}",
            found.display()
        );
        let found = std::env::current_dir().map_err(text)?;
        ensure!(
            found == directory,
            "the working directory is {}",
            found.display()
        );
        Ok(())
    })
}

/// An exclusive lock on the file beside the counter; the tests look whether it holds.
fn lock(path: &Path) -> Result<Look, String> {
    let file = File::create(path.with_extension("lock")).map_err(text)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(text)?;
    Ok(Box::new(move |_| file.metadata().map(drop).map_err(text)))
}

/// A TCP connection with itself, in a network namespace of its own.
fn tcp() -> Result<Look, String> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(text)?;
    let up = std::process::Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status()
        .map_err(text)?;
    ensure!(up.success(), "ip: {up}");
    let listener = TcpListener::bind("127.0.0.1:0").map_err(text)?;
    let mut client = TcpStream::connect(listener.local_addr().map_err(text)?).map_err(text)?;
    let (mut server, _) = listener.accept().map_err(text)?;
    Ok(Box::new(move |count| {
        let _ = &listener;
        client.write_all(&count.to_ne_bytes()).map_err(text)?;
        let mut bytes = [0; 8];
        server.read_exact(&mut bytes).map_err(text)?;
        ensure!(
            bytes == count.to_ne_bytes(),
            "something else came over the connection"
        );
        Ok(())
    }))
}

/// Sends the count to a socket outside.
fn datagrams(to: &str) -> Result<Look, String> {
    let socket = UnixDatagram::unbound().map_err(text)?;
    socket.connect(to).map_err(text)?;
    socket.set_nonblocking(true).map_err(text)?;
    Ok(Box::new(move |count| {
        match socket.send(&count.to_ne_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => Err(text(error)),
            _ => Ok(()),
        }
    }))
}

/// Writes the count to standard output, whatever that is; a reader that is slow misses some.
fn lines() -> Result<Look, String> {
    let stdout: OwnedFd = std::io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map_err(text)?;
    rustix::io::ioctl_fionbio(&stdout, true).map_err(text)?;
    let mut stdout = File::from(stdout);
    Ok(Box::new(move |count| {
        match stdout.write_all(format!("{count}\n").as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => Err(text(error)),
            _ => Ok(()),
        }
    }))
}

/// Answers every line that comes from standard input.
fn echo() -> Look {
    std::thread::spawn(|| {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let mut stdout = std::io::stdout().lock();
            let _ = writeln!(stdout, "heard {line}").and_then(|()| stdout.flush());
        }
    });
    Box::new(|_| Ok(()))
}

/// Exits with the status that stands in a file as soon as there is one.
fn exit(file: &str) -> Look {
    let file = PathBuf::from(file);
    Box::new(move |_| {
        match fs::read_to_string(&file)
            .ok()
            .and_then(|status| status.parse().ok())
        {
            #[allow(clippy::exit)]
            Some(status) => std::process::exit(status),
            None => Ok(()),
        }
    })
}
