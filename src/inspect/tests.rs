//! What is said of real archives, and of those that somebody has spoilt.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;
use crate::archive::{Archive, ArchiveError, MemberKind};
use crate::image::proto;
use prost::Message;

const RUNC: &str = "podman-runc.tar.zstd";
const CRUN: &str = "podman-crun.tar.gzip";

fn recorded(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/archives")
        .join(name)
}

/// The members of a recorded archive that are files.
fn members(name: &str) -> Vec<(String, Vec<u8>)> {
    let mut members = Vec::new();
    let read = Archive::open(&recorded(name)).unwrap().members(|member| {
        if member.kind() == &MemberKind::File {
            let content = member.content(1 << 30)?;
            members.push((member.name().to_owned(), content));
        }
        Ok::<_, ArchiveError>(())
    });
    read.unwrap();
    members
}

fn plain(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        builder
            .append_data(&mut header, name, content.as_slice())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn report(path: &Path) -> Report {
    Checkpoint::open(path, Sections::all())
        .unwrap()
        .report()
        .unwrap()
}

fn unpacked(name: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in members(name) {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    directory
}

#[test]
fn archives_of_both_runtimes() {
    for (name, runtime) in [(RUNC, "runc"), (CRUN, "crun")] {
        let report = report(&recorded(name));
        assert!(report.problems.is_empty(), "{:?}", report.problems);
        let summary = &report.summary;
        assert_eq!(summary.engine.as_deref(), Some("Podman"));
        assert_eq!(summary.container.as_deref(), Some("inspected"));
        assert_eq!(summary.runtime.as_deref(), Some(runtime));
        assert_eq!(summary.processes, Some(4));
        assert!(summary.sizes.root_fs_diff.is_some());
        let processes = report.processes.unwrap();
        assert_eq!(
            processes[0].arguments.as_ref().unwrap()[..2],
            ["/bin/sh", "-c"]
        );
        for process in &processes {
            let environment = process.environment.as_ref().unwrap();
            assert!(
                environment.contains(&"INSPECTED=by criuctl".to_owned()),
                "{environment:?}"
            );
            assert!(
                process
                    .credentials
                    .as_ref()
                    .unwrap()
                    .capabilities
                    .contains(&"CAP_CHOWN".to_owned())
            );
            assert_eq!(process.program.as_deref(), Some("/bin/busybox"));
        }
        let files = report.files.unwrap();
        let open: Vec<_> = files.iter().flat_map(|files| &files.open).collect();
        assert!(
            open.iter()
                .any(|file| file.kind == "FIFO" && file.name == "/tmp/line")
        );
        let socket = open.iter().find_map(|file| file.socket.as_ref()).unwrap();
        assert_eq!(
            (socket.local_port, socket.state.as_deref()),
            (Some(8080), Some("LISTEN"))
        );
        assert!(
            report
                .mounts
                .unwrap()
                .iter()
                .any(|mount| mount.mountpoint == "/" && mount.file_system == "overlay")
        );
        assert_eq!(
            report
                .namespaces
                .unwrap()
                .iter()
                .find(|one| one.kind == "pid")
                .unwrap()
                .processes,
            4
        );
        assert!(!report.control_groups.unwrap().groups.is_empty());
        assert!(report.stats.is_some());
        let verification = Checkpoint::verify(&recorded(name)).unwrap();
        assert!(verification.good, "{verification:?}");
        assert!(verification.pages > 0);
    }
}

#[test]
fn every_form_says_the_same() {
    let members = members(RUNC);
    let directory = unpacked(RUNC);
    let bytes = plain(&members);
    let mut backwards = members.clone();
    backwards.reverse();
    let xz = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    let files = [
        file(&bytes),
        file(&plain(&backwards)),
        file(&xz(&plain(&backwards))),
    ];
    let layout = layout(&bytes);
    let mut paths: Vec<_> = files.iter().map(|file| file.path().to_owned()).collect();
    paths.extend([directory.path().to_owned(), layout.path().to_owned()]);
    let expected = report(&recorded(RUNC));
    for path in paths {
        let mut report = report(&path);
        report.summary.form = expected.summary.form.clone();
        report.summary.annotations = expected.summary.annotations.clone();
        assert_eq!(report, expected, "{}", path.display());
        assert!(Checkpoint::verify(&path).unwrap().good);
    }
    // Images alone have no container.
    let images = report(&directory.path().join("checkpoint"));
    assert_eq!(images.summary.form, Form::Images);
    assert_eq!(images.processes, expected.processes);
    assert_eq!(images.memory, expected.memory);
}

/// An OCI image of one layer, as `podman container checkpoint --create-image` makes it.
fn layout(archive: &[u8]) -> tempfile::TempDir {
    use sha2::{Digest, Sha256};

    let directory = tempfile::tempdir().unwrap();
    let blobs = directory.path().join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |bytes: &[u8]| {
        let hex: String = Sha256::digest(bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        fs::write(blobs.join(&hex), bytes).unwrap();
        format!("sha256:{hex}")
    };
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(archive).unwrap();
    let layer = blob(&gzip.finish().unwrap());
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer, "size": 1}],
        "annotations": {"io.podman.annotations.checkpoint.name": "inspected"},
    });
    let manifest = blob(manifest.to_string().as_bytes());
    let index =
        serde_json::json!({"schemaVersion": 2, "manifests": [{"digest": manifest, "size": 1}]});
    fs::write(directory.path().join("index.json"), index.to_string()).unwrap();
    fs::write(
        directory.path().join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    directory
}

#[test]
fn whatever_is_taken_away_is_missed() {
    let all = members(RUNC);
    for (index, (name, _)) in all.iter().enumerate() {
        let (directory, base) = source::split(name);
        let kinds = [
            "core-",
            "mm-",
            "pagemap-",
            "pages-",
            "fs-",
            "fdinfo-",
            "files.",
            "pstree.",
            "inventory.",
        ];
        let needed = directory == "checkpoint/" && kinds.iter().any(|kind| base.starts_with(kind));
        if !needed {
            continue;
        }
        let mut rest = all.clone();
        rest.remove(index);
        let verification = Checkpoint::verify(file(&plain(&rest)).path()).unwrap();
        assert!(!verification.good, "without {name}");
        assert!(
            verification
                .problems
                .iter()
                .any(|problem| &problem.file == name),
            "{name}: {verification:?}"
        );
        // And everything else is still told.
        let report = report(file(&plain(&rest)).path());
        assert_eq!(
            report.summary.container.as_deref(),
            Some("inspected"),
            "without {name}"
        );
    }
}

#[test]
fn whatever_is_cut_short_is_found() {
    let all = members(RUNC);
    for (index, (name, content)) in all.iter().enumerate() {
        let (_, base) = source::split(name);
        let image = crate::image::kinds::Kind::of(base).is_some() || base.starts_with("pages-");
        if !image || content.len() < 13 {
            continue;
        }
        let mut cut = all.clone();
        cut[index].1.pop();
        let verification = Checkpoint::verify(file(&plain(&cut)).path()).unwrap();
        assert!(
            verification
                .problems
                .iter()
                .any(|problem| &problem.file == name),
            "{name}: {verification:?}"
        );
    }
}

#[test]
fn a_manifest_is_held_against_what_is_there() {
    use sha2::{Digest, Sha256};

    let mut all = members(RUNC);
    let noted: Vec<_> = all
        .iter()
        .map(|(name, content)| {
            let hex: String = Sha256::digest(content)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            serde_json::json!({"name": name, "size": content.len(), "sha256": hex})
        })
        .collect();
    let manifest = serde_json::json!({"version": 1, "algorithm": "sha256", "members": noted});
    all.push((
        source::MANIFEST.to_owned(),
        manifest.to_string().into_bytes(),
    ));
    let verify = |all: &[(String, Vec<u8>)]| Checkpoint::verify(file(&plain(all)).path()).unwrap();
    let good = verify(&all);
    assert!(good.good, "{good:?}");
    assert_eq!(good.checksums, Some(all.len() - 1));
    // One bit of a page, which no frame shows.
    let mut changed = all.clone();
    let pages = changed
        .iter_mut()
        .find(|(name, _)| name.contains("pages-1"))
        .unwrap();
    pages.1[100] ^= 1;
    let bad = verify(&changed);
    assert_eq!(bad.problems.len(), 1, "{bad:?}");
    assert!(bad.problems[0].problem.contains("checksum"));
    let mut missing = all.clone();
    missing.retain(|(name, _)| name != "spec.dump");
    assert!(
        verify(&missing)
            .problems
            .iter()
            .any(|problem| problem.problem.contains("in the manifest, and missing"))
    );
    let mut more = all;
    more.push(("surprise".to_owned(), vec![1]));
    assert!(
        verify(&more)
            .problems
            .iter()
            .any(|problem| problem.file == "surprise")
    );
}

fn image(magic: u32, messages: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = [0x5456_4319_u32.to_le_bytes(), magic.to_le_bytes()].concat();
    for message in messages {
        bytes.extend(u32::try_from(message.len()).unwrap().to_le_bytes());
        bytes.extend(message);
    }
    bytes
}

/// A directory of images of one process, in which these are the pages.
fn generation(path: &Path, entries: &[proto::PagemapEntry], pages: &[u8]) {
    fs::create_dir_all(path).unwrap();
    let mut messages = vec![proto::PagemapHead { pages_id: 1 }.encode_to_vec()];
    messages.extend(entries.iter().map(Message::encode_to_vec));
    fs::write(path.join("pagemap-7.img"), image(0x5608_4025, &messages)).unwrap();
    let mut content = Vec::new();
    pages
        .iter()
        .for_each(|letter| content.extend([*letter; 4096]));
    fs::write(path.join("pages-1.img"), content).unwrap();
    let task = proto::PstreeEntry {
        pid: 7,
        ppid: 0,
        pgid: 7,
        sid: 7,
        threads: vec![7],
    };
    fs::write(
        path.join("pstree.img"),
        image(0x5027_3030, &[task.encode_to_vec()]),
    )
    .unwrap();
}

fn entry(
    vaddr: u64,
    old: u32,
    new: Option<u64>,
    flags: Option<u32>,
    in_parent: Option<bool>,
) -> proto::PagemapEntry {
    proto::PagemapEntry {
        vaddr,
        compat_nr_pages: old,
        in_parent,
        flags,
        nr_pages: new,
    }
}

/// The first byte of every page that is read, by address.
fn read(path: &Path) -> Vec<(u64, char)> {
    let mut sections = Sections::none();
    sections.memory = true;
    let mut read = Vec::new();
    let checkpoint = Checkpoint::open(path, sections).unwrap();
    checkpoint
        .read_memory(7, 0..u64::MAX, |address, bytes| {
            for (index, page) in bytes.chunks(4096).enumerate() {
                read.push((address + index as u64 * 4096, char::from(page[0])));
            }
        })
        .unwrap();
    read.sort_unstable();
    read
}

#[test]
fn pages_are_found_in_both_dialects_and_down_the_chain() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    // The oldest as CRIU 4.1 writes it, which has neither flags nor the wide field.
    generation(&path("1"), &[entry(0x1000, 4, None, None, None)], b"abcd");
    generation(
        &path("2"),
        &[
            entry(0x1000, 1, None, None, Some(true)),
            entry(0x2000, 0, Some(1), Some(4), None),
            entry(0x3000, 0, Some(2), Some(1), None),
        ],
        b"B",
    );
    generation(
        &path("3"),
        &[
            entry(0x1000, 0, Some(3), Some(1), None),
            entry(0x4000, 0, Some(1), Some(4), None),
            entry(0x8000, 0, Some(2), Some(2), None),
        ],
        b"D",
    );
    std::os::unix::fs::symlink("../1", path("2/parent")).unwrap();
    std::os::unix::fs::symlink("../2", path("3/parent")).unwrap();
    assert_eq!(
        read(&path("3")),
        [(0x1000, 'a'), (0x2000, 'B'), (0x3000, 'c'), (0x4000, 'D')]
    );
    assert_eq!(
        read(&path("1")),
        [(0x1000, 'a'), (0x2000, 'b'), (0x3000, 'c'), (0x4000, 'd')]
    );
    let verification = Checkpoint::verify(&path("3")).unwrap();
    assert!(
        verification
            .notes
            .iter()
            .any(|note| note.starts_with("8192 bytes")),
        "{verification:?}"
    );
    assert!(
        !verification
            .problems
            .iter()
            .any(|problem| problem.file.contains("page")),
        "{verification:?}"
    );

    // A match from one file of pages into another.
    let mut sections = Sections::none();
    sections.memory = true;
    let checkpoint = Checkpoint::open(&path("3"), sections).unwrap();
    let found: Vec<_> = checkpoint
        .search(7, b"aaBB", 10)
        .unwrap()
        .iter()
        .map(|found| found.address)
        .collect();
    assert_eq!(found, [0x1ffe]);
    assert!(checkpoint.search(7, b"BBDD", 10).unwrap().is_empty());
    assert!(matches!(
        checkpoint.search(8, b"a", 10),
        Err(InspectError::NoProcess { pid: 8 })
    ));

    // Without the oldest, its pages are lost, and that is said.
    fs::remove_dir_all(path("1")).unwrap();
    let verification = Checkpoint::verify(&path("3")).unwrap();
    assert!(
        verification
            .problems
            .iter()
            .any(|problem| problem.problem.contains("left to a parent")),
        "{verification:?}"
    );
    assert_eq!(read(&path("3")), [(0x2000, 'B'), (0x4000, 'D')]);
    // Nobody follows a circle for ever.
    std::os::unix::fs::symlink("2", path("1")).unwrap();
    assert!(Checkpoint::open(&path("3"), Sections::none()).is_err());
}

#[test]
fn maps_that_lie_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    for lie in [
        [
            entry(0x1000, 0, Some(u64::MAX), Some(4), None),
            entry(0, 0, Some(1), Some(4), None),
        ],
        [
            entry(u64::MAX - 4095, 0, Some(2), Some(4), None),
            entry(0, 0, Some(1), Some(4), None),
        ],
        [
            entry(0x2000, 0, Some(2), Some(4), None),
            entry(0x1000, 0, Some(1), Some(4), None),
        ],
        [
            entry(0x1000, 0, Some(2), Some(4), None),
            entry(0x2000, 0, Some(1), Some(4), None),
        ],
    ] {
        generation(directory.path(), &lie, b"a");
        let mut sections = Sections::none();
        sections.memory = true;
        let checkpoint = Checkpoint::open(directory.path(), sections).unwrap();
        assert!(
            checkpoint.read_memory(7, 0..u64::MAX, |_, _| {}).is_err(),
            "{lie:?}"
        );
        assert!(
            !Checkpoint::verify(directory.path()).unwrap().good,
            "{lie:?}"
        );
    }
    // More pages than the file has: what is there is read, and the rest is an error.
    generation(
        directory.path(),
        &[entry(0x1000, 0, Some(1 << 40), Some(4), None)],
        b"ab",
    );
    let checkpoint = Checkpoint::open(directory.path(), Sections::all()).unwrap();
    assert!(checkpoint.read_memory(7, 0..u64::MAX, |_, _| {}).is_err());
}

#[test]
fn what_leads_elsewhere_is_not_followed() {
    let directory = unpacked(RUNC);
    let secret = directory.path().join("secret");
    fs::rename(directory.path().join("checkpoint/core-1.img"), &secret).unwrap();
    std::os::unix::fs::symlink("../secret", directory.path().join("checkpoint/core-1.img"))
        .unwrap();
    let report = report(directory.path());
    assert_eq!(report.processes.unwrap()[0].name, "");
    // Nor a link in an archive, whatever it is called.
    let mut builder = Builder::new(Vec::new());
    let mut link = Header::new_gnu();
    link.set_entry_type(EntryType::Symlink);
    link.set_size(0);
    link.set_mode(0o777);
    builder
        .append_link(&mut link, "config.dump", "/etc/passwd")
        .unwrap();
    builder
        .append_link(&mut link, "checkpoint/parent", "../../../etc")
        .unwrap();
    let bytes = [
        builder.into_inner().unwrap()[..1024].to_vec(),
        plain(&members(RUNC)[4..]),
    ]
    .concat();
    let checkpoint = Checkpoint::verify(file(&bytes).path()).unwrap();
    assert!(
        checkpoint
            .problems
            .iter()
            .any(|problem| problem.file == "config.dump"),
        "{checkpoint:?}"
    );
}

#[test]
fn json_without_end_is_a_problem_and_no_more() {
    let deep = "[".repeat(1 << 20);
    for name in ["config.dump", "spec.dump", "network.status"] {
        let mut all = members(RUNC);
        for (member, content) in &mut all {
            if member == name {
                *content = deep.clone().into_bytes();
            }
        }
        let report = report(file(&plain(&all)).path());
        assert!(
            report.problems.iter().any(|problem| problem.file == name),
            "{:?}",
            report.problems
        );
        assert_eq!(report.processes.unwrap().len(), 4);
    }
}

#[test]
fn one_name_many_times_takes_no_more_than_is_allowed() {
    // A descriptor table of a million entries, all of one file with a long name.
    let mut all = members(RUNC);
    let id = 0x7777;
    let long = proto::FileEntry {
        r#type: 1,
        id,
        reg: Some(proto::RegFileEntry {
            id,
            name: vec![b'x'; 1 << 20],
            ..Default::default()
        }),
        ..Default::default()
    };
    for (name, content) in &mut all {
        if name.starts_with("checkpoint/fdinfo-") {
            let entries: Vec<_> = (0..200_000)
                .map(|fd| {
                    proto::FdinfoEntry {
                        id,
                        flags: 0,
                        r#type: 1,
                        fd,
                    }
                    .encode_to_vec()
                })
                .collect();
            *content = image(0x5621_3732, &entries);
        } else if name == "checkpoint/files.img" {
            *content = image(0x5630_3138, &[long.encode_to_vec()]);
        }
    }
    let report = report(file(&plain(&all)).path());
    let open: usize = report
        .files
        .unwrap()
        .iter()
        .flat_map(|files| &files.open)
        .map(|file| file.name.len())
        .sum();
    assert!(open < 520 << 20, "{open}");
    assert!(
        report
            .problems
            .iter()
            .any(|problem| problem.problem.contains("not all is shown")),
        "{:?}",
        report.problems
    );
}

#[test]
fn what_is_no_checkpoint_is_said_to_be_none() {
    let directory = tempfile::tempdir().unwrap();
    let error = Checkpoint::open(directory.path(), Sections::none()).unwrap_err();
    assert!(
        matches!(error, InspectError::NoCheckpoint { .. }),
        "{error}"
    );
    let error = Checkpoint::open(
        file(&plain(&[("hello".into(), vec![])])).path(),
        Sections::none(),
    )
    .unwrap_err();
    assert!(
        matches!(error, InspectError::NoCheckpoint { .. }),
        "{error}"
    );
    assert!(Checkpoint::open(file(b"no tar at all").path(), Sections::none()).is_err());
    assert!(Checkpoint::open(&directory.path().join("none"), Sections::none()).is_err());
    // An image of several manifests: which one is meant is not guessed.
    fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
    fs::write(directory.path().join("oci-layout"), "{}").unwrap();
    let hex = "0".repeat(64);
    for index in [
        r#"{"manifests": []}"#.to_owned(),
        r#"{"manifests": [{"digest": "sha256:../../../../etc/passwd"}]}"#.to_owned(),
        format!(r#"{{"manifests": [{{"digest": "sha256:{hex}"}}, {{"digest": "sha256:{hex}"}}]}}"#),
        "[".repeat(100_000),
    ] {
        fs::write(directory.path().join("index.json"), index).unwrap();
        assert!(Checkpoint::open(directory.path(), Sections::none()).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damage_of_any_member_is_survived(
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<proptest::sample::Index>(), any::<u8>()), 1..20),
        compressed in any::<bool>(),
    ) {
        let mut all = members(CRUN);
        for (which, place, byte) in flips {
            let index = which.index(all.len());
            let (_, content) = &mut all[index];
            if !content.is_empty() {
                let place = place.index(content.len());
                content[place] = byte;
            }
        }
        let mut bytes = plain(&all);
        if compressed {
            bytes = zstd::encode_all(bytes.as_slice(), 1).unwrap();
        }
        let file = file(&bytes);
        if let Ok(checkpoint) = Checkpoint::open(file.path(), Sections::all()) {
            if let Ok(report) = checkpoint.report() {
                prop_assert!(serde_json::to_vec(&report).is_ok());
            }
            let _ = checkpoint.search(1, b"INSPECTED", 10);
        }
        let _ = Checkpoint::verify(file.path());
    }

    #[test]
    fn any_bytes_under_any_name_are_survived(name in "(checkpoint/)?(core-1|mm-1|pagemap-1|files|fdinfo-2|cgroup|mountpoints-1|pstree|inventory|fs-1|ids-1|tty-info|memfd)\\.img", content in proptest::collection::vec(any::<u8>(), 0..300), magic in any::<bool>()) {
        let mut all = members(CRUN);
        let Some((_, old)) = all.iter_mut().find(|(member, _)| member.ends_with(source::split(&name).1)) else { return Ok(()) };
        let mut new = if magic { old[..old.len().min(8)].to_vec() } else { Vec::new() };
        new.extend(content);
        *old = new;
        let file = file(&plain(&all));
        let _ = Checkpoint::open(file.path(), Sections::all()).map(|checkpoint| checkpoint.report());
        let _ = Checkpoint::verify(file.path());
    }
}

#[test]
fn nothing_is_written() {
    // The directory is as it was, to the byte and to the time.
    let directory = unpacked(RUNC);
    let state = || {
        let mut names: Vec<_> = fs::read_dir(directory.path().join("checkpoint"))
            .unwrap()
            .map(|entry| {
                (
                    entry.as_ref().unwrap().file_name(),
                    entry.unwrap().metadata().unwrap().modified().unwrap(),
                )
            })
            .collect();
        names.sort();
        names
    };
    let before = state();
    report(directory.path());
    assert_eq!(state(), before);
    let mut head = [0; 4];
    File::open(recorded(RUNC))
        .unwrap()
        .read_exact(&mut head)
        .unwrap();
    assert_eq!(head, [0x28, 0xb5, 0x2f, 0xfd]);
}
