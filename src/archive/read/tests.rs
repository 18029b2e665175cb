use std::io::Write;

use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

use super::*;

/// An archive of members with their content.
fn plain(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A header as nobody writes it who means well.
fn header(name: &[u8], kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o600);
    header.set_cksum();
    header
}

fn tail() -> Vec<u8> {
    vec![0; 1024]
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

type Seen = Vec<(String, MemberKind, Vec<u8>)>;

fn all(archive: Archive) -> Result<Seen, ArchiveError> {
    let mut seen = Vec::new();
    archive.members(|member| {
        let content = member.content(1 << 20)?;
        seen.push((member.name().to_owned(), member.kind().clone(), content));
        Ok::<_, ArchiveError>(())
    })?;
    Ok(seen)
}

/// As a file and as a pipe, which must say the same.
fn both(bytes: &[u8]) -> Result<Seen, ArchiveError> {
    let from_pipe = Archive::from_reader(io::Cursor::new(bytes.to_vec())).and_then(all);
    let from_file = Archive::from_file(file(bytes)).and_then(all);
    match (&from_pipe, &from_file) {
        (Ok(pipe), Ok(file)) => assert_eq!(pipe, file),
        (Err(pipe), Err(file)) => assert_eq!(pipe.to_string(), file.to_string()),
        _ => panic!("pipe {from_pipe:?}, file {from_file:?}"),
    }
    from_file
}

fn names(bytes: &[u8]) -> Result<Vec<String>, ArchiveError> {
    Ok(both(bytes)?.into_iter().map(|(name, ..)| name).collect())
}

#[test]
fn every_compression_is_known_by_its_magic() {
    let bytes = plain(&[
        ("config.dump", b"{}"),
        ("checkpoint/pages-1.img", &[7; 9000]),
    ]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&bytes).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&bytes).unwrap();
    let cases = [
        (Compression::None, bytes.clone()),
        (Compression::Gzip, gzip.finish().unwrap()),
        (
            Compression::Zstd,
            zstd::encode_all(bytes.as_slice(), 1).unwrap(),
        ),
        (Compression::Bzip2, bzip2.finish().unwrap()),
        (
            Compression::Xz,
            include_bytes!("../../../tests/data/archives/two-members.tar.xz").to_vec(),
        ),
    ];
    for (compression, bytes) in cases {
        assert_eq!(
            Archive::from_file(file(&bytes)).unwrap().compression(),
            compression
        );
        let seen = both(&bytes).unwrap_or_else(|error| panic!("{compression}: {error}"));
        assert_eq!(seen.len(), 2, "{compression}");
        assert_eq!(seen[0].2, b"{}", "{compression}");
        assert_eq!(seen[1].2, [7; 9000], "{compression}");
        // Every one of them notices that something is missing.
        for cut in [bytes.len() / 2, bytes.len() / 2 + 7, 100] {
            let cut = both(&bytes[..cut.min(bytes.len() - 1)]);
            assert!(cut.is_err(), "{compression}: {cut:?}");
        }
    }
}

#[test]
fn names_are_what_podman_and_others_write() {
    let bytes = plain(&[
        ("./config.dump", b""),
        ("checkpoint//inventory.img", b""),
        ("./a/./b", b""),
    ]);
    assert_eq!(
        names(&bytes).unwrap(),
        ["config.dump", "checkpoint/inventory.img", "a/b"]
    );
    let root = [
        header(b"./", EntryType::Directory, 0).as_bytes().to_vec(),
        plain(&[("x", b"")]),
    ]
    .concat();
    assert_eq!(names(&root).unwrap(), ["x"]);
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for (name, reason) in [
        (&b"../x"[..], "upwards"),
        (b"config.dump/../../x", "upwards"),
        (b"checkpoint/..", "upwards"),
        (b"/etc/passwd", "absolute"),
        (b"a\xff", "UTF-8"),
        (b".", "names no file"),
        (b"", "names no file"),
    ] {
        let bytes = [
            header(name, EntryType::Regular, 0).as_bytes().to_vec(),
            tail(),
        ]
        .concat();
        let error = names(&bytes).unwrap_err().to_string();
        assert!(error.contains(reason), "{name:?}: {error}");
    }
}

#[test]
fn a_member_is_there_once_and_a_directory_may_be_again() {
    let twice = plain(&[("config.dump", b"1"), ("./config.dump", b"2")]);
    let error = names(&twice).unwrap_err();
    assert!(
        matches!(&error, ArchiveError::Twice { name } if name == "config.dump"),
        "{error}"
    );
    let directory = header(b"checkpoint/", EntryType::Directory, 0)
        .as_bytes()
        .to_vec();
    let again = [directory.clone(), directory.clone(), tail()].concat();
    assert_eq!(names(&again).unwrap().len(), 2);
    // What is a directory cannot be a link as well: the link would be followed.
    let link = header(b"checkpoint", EntryType::Symlink, 0)
        .as_bytes()
        .to_vec();
    assert!(names(&[directory, link, tail()].concat()).is_err());
}

#[test]
fn links_and_devices_are_told_as_what_they_are() {
    let mut link = Header::new_gnu();
    link.set_entry_type(EntryType::Symlink);
    link.set_size(0);
    link.set_mode(0o777);
    let mut builder = Builder::new(Vec::new());
    builder
        .append_link(&mut link, "checkpoint/parent", "../pre-checkpoint")
        .unwrap();
    link.set_entry_type(EntryType::Link);
    builder
        .append_link(&mut link, "hard", "/etc/shadow")
        .unwrap();
    link.set_entry_type(EntryType::Char);
    builder.append_data(&mut link, "null", io::empty()).unwrap();
    let seen = both(&builder.into_inner().unwrap()).unwrap();
    let kinds: Vec<_> = seen.into_iter().map(|(_, kind, _)| kind).collect();
    let expected = [
        MemberKind::Symlink {
            target: "../pre-checkpoint".into(),
        },
        MemberKind::HardLink {
            target: "/etc/shadow".into(),
        },
        MemberKind::Special,
    ];
    assert_eq!(kinds, expected);
    let unknown = [
        header(b"x", EntryType::new(b'M'), 0).as_bytes().to_vec(),
        tail(),
    ]
    .concat();
    assert!(
        names(&unknown)
            .unwrap_err()
            .to_string()
            .contains("unknown type")
    );
}

#[test]
fn a_size_that_is_not_there_is_a_truncation() {
    let bytes = [
        header(b"pages-1.img", EntryType::Regular, 1 << 40)
            .as_bytes()
            .to_vec(),
        tail(),
    ]
    .concat();
    for archive in [
        Archive::from_file(file(&bytes)).unwrap(),
        Archive::from_reader(io::Cursor::new(bytes.clone())).unwrap(),
    ] {
        let error = archive.members(|_| Ok::<_, ArchiveError>(())).unwrap_err();
        assert!(matches!(error, ArchiveError::Truncated { .. }), "{error}");
    }
    let error = both(&bytes).unwrap_err();
    assert!(
        matches!(
            error,
            ArchiveError::Limit {
                limit: 0x10_0000,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn an_archive_without_its_end_is_truncated_wherever_that_is() {
    let bytes = plain(&[("one", &[1; 700]), ("two", b"2")]);
    let end = bytes.len() - 1024;
    assert!(names(&bytes[..end + 512]).is_ok());
    for cut in [0, 1, 511, 512, 600, 1536, 1600, end - 1, end] {
        let error = names(&bytes[..cut]);
        assert!(error.is_err(), "{cut}: {error:?}");
    }
    assert!(matches!(
        names(&bytes[..end]),
        Err(ArchiveError::Truncated { .. })
    ));
}

#[test]
fn headers_are_bounded() {
    // A long name of a gibibyte, of which ten megabytes come.
    let long = header(b"././@LongLink", EntryType::GNULongName, 1 << 30);
    let reader = io::Cursor::new(long.as_bytes().to_vec()).chain(io::repeat(b'x').take(10 << 20));
    let error = Archive::from_reader(reader).and_then(all).unwrap_err();
    assert!(
        matches!(
            error,
            ArchiveError::Limit {
                limit: MAX_HEADERS,
                ..
            }
        ),
        "{error}"
    );
    // A map of holes without end.
    let mut sparse = header(b"pages-1.img", EntryType::GNUSparse, 0);
    sparse.as_gnu_mut().unwrap().isextended[0] = 1;
    sparse.set_cksum();
    let reader = io::Cursor::new(sparse.as_bytes().to_vec()).chain(io::repeat(1).take(10 << 20));
    assert!(Archive::from_reader(reader).and_then(all).is_err());
}

#[test]
fn holes_are_counted_and_lies_about_them_found() {
    let sparse = |real: u64, blocks: &[(u64, u64)], stored: u64| {
        let mut header = header(b"pages-1.img", EntryType::GNUSparse, stored);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.set_real_size(real);
        for (slot, (offset, len)) in gnu.sparse.iter_mut().zip(blocks) {
            slot.set_offset(*offset);
            slot.set_length(*len);
        }
        header.set_cksum();
        [
            header.as_bytes().to_vec(),
            vec![5; stored.next_multiple_of(512) as usize],
            tail(),
        ]
        .concat()
    };
    let seen = both(&sparse(4096, &[(0, 512), (3584, 512)], 1024)).unwrap();
    assert_eq!(seen[0].2.len(), 4096);
    assert_eq!((seen[0].2[0], seen[0].2[600], seen[0].2[4095]), (5, 0, 5));
    for lie in [
        sparse(4096, &[(0, 512), (256, 512)], 1024),
        sparse(4096, &[(0, 512)], 1024),
        sparse(1 << 20, &[(0, 512)], 512),
        sparse(u64::MAX, &[(u64::MAX - 100, 512)], 512),
    ] {
        assert!(both(&lie).is_err());
    }
    // Exabytes of nothing are refused before they are read.
    let error = Archive::from_file(file(&sparse(1 << 60, &[(0, 512), (1 << 60, 0)], 512)))
        .unwrap()
        .members(|_| Ok::<_, ArchiveError>(()))
        .unwrap_err();
    assert!(matches!(error, ArchiveError::Limit { .. }), "{error}");
}

#[test]
fn limits_hold() {
    let bytes = plain(&[("one", &[1; 700]), ("two", b"2"), ("three", b"")]);
    let with = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        all(Archive::from_file(file(&bytes)).unwrap().limits(limits))
    };
    assert!(with(|limits| (limits.members, limits.names, limits.content) = (3, 11, 701)).is_ok());
    assert!(with(|limits| limits.members = 2).is_err());
    assert!(with(|limits| limits.names = 10).is_err());
    assert!(with(|limits| limits.content = 700).is_err());
    // A member that nobody reads counts as well.
    let bomb = zstd::encode_all(io::repeat(0).take(64 << 20), 3).unwrap();
    let bomb = [
        zstd::encode_all(
            header(b"x", EntryType::Regular, 64 << 20)
                .as_bytes()
                .as_slice(),
            1,
        )
        .unwrap(),
        bomb,
    ]
    .concat();
    let limits = Limits {
        content: 1 << 20,
        ..Limits::default()
    };
    let error = Archive::from_reader(io::Cursor::new(bomb))
        .unwrap()
        .limits(limits)
        .members(|_| Ok::<_, ArchiveError>(()))
        .unwrap_err();
    assert!(matches!(error, ArchiveError::Limit { .. }), "{error}");
}

#[test]
fn only_regular_files_are_opened() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    for path in [directory.path(), &fifo, Path::new("/dev/zero")] {
        let error = Archive::open(path).unwrap_err();
        assert!(matches!(error, ArchiveError::NotRegular { .. }), "{error}");
    }
    assert!(
        Archive::open(&directory.path().join("none"))
            .unwrap_err()
            .is_not_found()
    );
}

#[test]
fn members_of_a_plain_file_can_be_read_where_they_are() {
    let bytes = plain(&[("one", &[1; 700]), ("two", b"second")]);
    let file = file(&bytes);
    let mut offsets = Vec::new();
    let archive = Archive::from_file(file.try_clone().unwrap()).unwrap();
    archive
        .members(|member| {
            offsets.push(member.offset().unwrap());
            Ok::<_, ArchiveError>(())
        })
        .unwrap();
    let mut content = [0; 6];
    file.read_exact_at(&mut content, offsets[1]).unwrap();
    assert_eq!(&content, b"second");
}

proptest! {
    #[test]
    fn damage_is_survived(
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), 0u8..8), 1..6),
        compressed in 0..3,
    ) {
        let bytes = plain(&[("config.dump", b"{}"), ("checkpoint/inventory.img", &[3; 600])]);
        let mut bytes = match compressed {
            0 => bytes,
            1 => zstd::encode_all(bytes.as_slice(), 1).unwrap(),
            _ => include_bytes!("../../../tests/data/archives/two-members.tar.xz").to_vec(),
        };
        for (index, bit) in flips {
            let index = index.index(bytes.len());
            bytes[index] ^= 1 << bit;
        }
        // A pipe and a file may break differently, since a file is not read where nobody asks.
        for archive in [Archive::from_file(file(&bytes)), Archive::from_reader(io::Cursor::new(bytes))] {
            let seen = archive.and_then(all);
            if let Ok(seen) = seen {
                prop_assert!(seen.iter().all(|(name, ..)| !name.is_empty() && !name.split('/').any(|part| part == "..")));
            }
        }
    }
}
