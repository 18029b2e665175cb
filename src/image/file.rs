//! Files: from a directory and a name to the bytes of an image.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::ImageError;
use super::framing::{Format, check_size};

/// Opens a regular file in a directory, and nothing else. The descriptor stays the caller's.
pub(crate) fn open_file(dir: BorrowedFd<'_>, file: &str) -> Result<(File, u64), ImageError> {
    if matches!(file, "" | "." | "..") || file.contains(['/', '\0']) {
        return Err(ImageError::InvalidName {
            file: file.to_owned(),
        });
    }

    // O_NONBLOCK and O_NOCTTY matter before the type of the file is known: opening a FIFO would
    // block, and a terminal could become ours.
    let flags = OFlag::O_RDONLY
        | OFlag::O_CLOEXEC
        | OFlag::O_NOFOLLOW
        | OFlag::O_NONBLOCK
        | OFlag::O_NOCTTY;
    let image = match openat(dir, file, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        // A symbolic link, or a socket.
        Err(Errno::ELOOP | Errno::ENXIO) => {
            return Err(ImageError::NotRegular {
                file: file.to_owned(),
            });
        }
        Err(errno) => {
            return Err(ImageError::Open {
                file: file.to_owned(),
                source: io::Error::from(errno),
            });
        }
    };

    let read_error = |source| ImageError::Read {
        file: file.to_owned(),
        source,
    };
    let metadata = image.metadata().map_err(read_error)?;
    if !metadata.is_file() {
        return Err(ImageError::NotRegular {
            file: file.to_owned(),
        });
    }
    Ok((image, metadata.len()))
}

/// Reads a whole image from a directory. The descriptor stays the caller's.
pub(super) fn read_file(
    dir: BorrowedFd<'_>,
    file: &str,
    format: &Format,
) -> Result<Vec<u8>, ImageError> {
    let (image, size) = open_file(dir, file)?;
    check_size(file, size, format)?;

    // The file may have grown since, so the limit holds for the bytes that come, too.
    let mut bytes = Vec::new();
    let limit = u64::try_from(format.max_file).unwrap_or(u64::MAX);
    image
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|source| ImageError::Read {
            file: file.to_owned(),
            source,
        })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;
    use crate::image::framing::Frames;

    const TWO: Format = Format {
        magics: &[0x0403_0201, 0x0807_0605],
        max_file: 64,
    };
    const HEAD: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

    fn open_dir(dir: &tempfile::TempDir) -> File {
        File::open(dir.path()).unwrap()
    }

    #[test]
    fn only_plain_names_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/image"), HEAD).unwrap();
        let fd = open_dir(&dir);
        for name in ["", ".", "..", "/", "sub/image", "../image", "ima\0ge"] {
            let error = read_file(fd.as_fd(), name, &TWO).unwrap_err();
            assert!(
                matches!(error, ImageError::InvalidName { .. }),
                "{name:?}: {error}"
            );
        }
    }

    #[test]
    fn only_regular_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("image"), HEAD).unwrap();
        fs::create_dir(dir.path().join("dir")).unwrap();
        symlink("image", dir.path().join("link")).unwrap();
        symlink("nowhere", dir.path().join("dangling")).unwrap();
        mkfifo(&dir.path().join("fifo"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let _listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let fd = open_dir(&dir);
        assert_eq!(read_file(fd.as_fd(), "image", &TWO).unwrap(), HEAD);
        for name in ["dir", "link", "dangling", "fifo", "socket"] {
            let error = read_file(fd.as_fd(), name, &TWO).unwrap_err();
            assert!(
                matches!(error, ImageError::NotRegular { .. }),
                "{name}: {error}"
            );
            assert!(!error.is_not_found(), "{name}");
        }
        let error = read_file(fd.as_fd(), "missing", &TWO).unwrap_err();
        assert!(error.is_not_found());
        assert_eq!(error.to_string(), "missing: cannot open the image");
    }

    #[test]
    fn a_huge_file_is_refused_before_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(dir.path().join("image"))
            .unwrap();
        file.set_len(1 << 40).unwrap();
        let error = read_file(open_dir(&dir).as_fd(), "image", &TWO).unwrap_err();
        assert!(
            matches!(
                error,
                ImageError::FileTooLarge {
                    size: 0x100_0000_0000,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_lies_about_its_size_is_bounded() {
        // Files in /proc say that they are empty.
        let proc = File::open("/proc/self").unwrap();
        let bytes = read_file(proc.as_fd(), "status", &TWO).unwrap();
        assert_eq!(bytes.len(), TWO.max_file + 1);
        assert!(matches!(
            Frames::new("status", &bytes, &TWO).map(|_| ()),
            Err(ImageError::FileTooLarge { size: 65, .. })
        ));
    }
}
