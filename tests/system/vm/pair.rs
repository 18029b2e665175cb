//! Two machines on one wire: what is dumped on the first is restored on the second, and its memory went over the wire.
//! Each runs `system --in-pair`; what the one waits for the other does in the test of the same name.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use criu_client::options::{PageServerOptions, PageTransport};
use criu_client::{ImagesDir, TaskState};

use crate::contain;
use crate::support::*;

const DESTINATION: &str = "10.77.0.2";
const PORT: u16 = 7707;

pub(crate) fn tests() -> Tests {
    let number = std::env::var("VM_NUMBER").unwrap_or_default();
    let test = move || match number.as_str() {
        "1" => source(),
        "2" => destination(),
        _ => Err(format!(
            "machine {number:?} is none of two; see scripts/vm --two"
        )),
    };
    vec![("pair/memory-over-a-page-server".into(), Box::new(test) as _)]
}

fn spec() -> Spec {
    Spec {
        root: true,
        pid_namespace: true,
        ..Spec::role("memory").argument(16)
    }
}

/// The other machine may have come up later.
fn connect() -> Result<TcpStream, String> {
    let deadline = Instant::now() + 3 * PATIENCE;
    loop {
        match TcpStream::connect((DESTINATION, PORT)) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => {
                return Err(format!("{DESTINATION}:{PORT}: {error}"));
            }
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(100)),
        }
    }
}

fn line(from: &mut impl BufRead) -> Result<String, String> {
    let mut line = String::new();
    ensure!(
        from.read_line(&mut line).map_err(text)? > 0,
        "the other machine has gone"
    );
    Ok(line.trim_end().to_owned())
}

fn source() -> Outcome {
    let mut victim = spec().start()?;
    let images = victim.images("images");
    let traces = Traces::take();
    let mut stream = connect()?;
    let mut answers = BufReader::new(stream.try_clone().map_err(text)?);
    let port: u16 = line(&mut answers)?.parse().map_err(text)?;
    let options = victim
        .dump_options()
        .page_server(PageTransport::tcp(DESTINATION, port));
    let report = block_on(criu().dump(victim.pid, &images, (), options)).map_err(whole)?;
    ensure!(report.tasks == TaskState::Absent, "{report:?}");
    victim.reap()?;
    let root = victim.root().ok_or("no root")?.to_owned();
    writeln!(stream, "{}", root.display()).map_err(text)?;
    let mut files = vec![root.join("count")];
    for entry in fs::read_dir(images.path()).map_err(text)? {
        files.push(entry.map_err(text)?.path());
    }
    ensure!(
        !files
            .iter()
            .any(|file| file.display().to_string().contains("/pages-")),
        "the memory was kept here: {files:?}"
    );
    for file in files {
        let content = fs::read(&file).map_err(text)?;
        let name = file.file_name().unwrap_or_default().display().to_string();
        writeln!(stream, "{name} {}", content.len()).map_err(text)?;
        stream.write_all(&content).map_err(text)?;
    }
    writeln!(stream, "end").map_err(text)?;
    let told = line(&mut answers)?;
    ensure!(told == "restored", "the destination says {told:?}");
    drop((images, stream, answers));
    traces.unchanged()
}

fn destination() -> Outcome {
    let listener = TcpListener::bind((DESTINATION, PORT)).map_err(text)?;
    let (mut stream, _) = listener.accept().map_err(text)?;
    let directory = tempfile::tempdir().map_err(text)?;
    let images = ImagesDir::create(directory.path().join("images")).map_err(text)?;
    let mut from = BufReader::new(stream.try_clone().map_err(text)?);
    block_on(async {
        let options = PageServerOptions::new().transport(PageTransport::tcp(DESTINATION, 0));
        let server = criu().page_server(&images, options).await.map_err(whole)?;
        writeln!(stream, "{}", server.port().ok_or("no port")?).map_err(text)?;
        server.wait().await.map_err(whole)
    })?;
    let root = PathBuf::from(line(&mut from)?);
    let result = restored(&root, &images, &mut from);
    let _ = nix::mount::umount2(&root, nix::mount::MntFlags::MNT_DETACH);
    let told = result.as_ref().err().map_or("restored", String::as_str);
    writeln!(stream, "{}", told.replace('\n', " ")).map_err(text)?;
    result
}

/// Receives the files, and restores from them below a root like that of the source.
fn restored(root: &Path, images: &ImagesDir, from: &mut impl BufRead) -> Outcome {
    contain::make_root(root)?;
    let count = root.join("count");
    loop {
        let header = line(from)?;
        let Some((name, length)) = header.split_once(' ') else {
            break;
        };
        let length: u64 = length.parse().map_err(text)?;
        let mut content = Vec::new();
        from.by_ref()
            .take(length)
            .read_to_end(&mut content)
            .map_err(text)?;
        let place = match name {
            "count" => count.clone(),
            name => images.path().join(name),
        };
        fs::write(place, content).map_err(text)?;
    }
    let counted = || -> Option<u64> { fs::read_to_string(&count).ok()?.trim().parse().ok() };
    let before = counted().ok_or("no count came")?;
    let report = block_on(criu().restore(
        images,
        (),
        crate::victim::restore_options(Some(root), false),
    ))
    .map_err(whole)?;
    let result = until("the restored one counts on", || {
        counted().is_some_and(|count| count > before + 2)
            || count.with_extension("complaint").exists()
    });
    let complaint = fs::read_to_string(count.with_extension("complaint"));
    let pid = nix::unistd::Pid::from_raw(report.pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).map_err(text)?;
    orphans_are_gone(&[report.pid])?;
    ensure!(complaint.is_err(), "{complaint:?}");
    result
}
