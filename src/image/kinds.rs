//! Which image a file is by its name, and what such an image is made of.

use super::framing::{Format, Frames, MAX_FRAME};
use super::{ImageError, proto};

/// What every image but the inventory begins with.
const COMMON: u32 = 0x5456_4319;
/// What files beside the images begin with: statistics and caches.
const SERVICE: u32 = 0x5510_5940;
/// The largest image that is decoded. Memory maps of the largest processes take a few megabytes.
pub(crate) const MAX_IMAGE: usize = 64 << 20;

/// What follows an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extra {
    /// The next entry.
    None,
    /// Bytes as many as the entry says.
    PipeData,
    SocketQueue,
    TcpStream,
    /// Bytes whose number is not known here: only the first entry can be looked at.
    Unknown,
}

/// A kind of image.
#[derive(Debug)]
pub(crate) struct Kind {
    /// What the name is, or begins with.
    prefix: &'static str,
    magic: u32,
    pub(crate) extra: Extra,
}

const fn kind(prefix: &'static str, magic: u32) -> Kind {
    with(prefix, magic, Extra::None)
}

const fn with(prefix: &'static str, magic: u32, extra: Extra) -> Kind {
    Kind {
        prefix,
        magic,
        extra,
    }
}

/// Those of one name, and those with an id behind it. All end in `.img` but the statistics.
const KINDS: &[Kind] = &[
    kind("inventory.img", 0x5831_3116),
    kind("pstree.img", 0x5027_3030),
    kind("files.img", 0x5630_3138),
    kind("cgroup.img", 0x5938_3330),
    kind("seccomp.img", 0x6441_3049),
    kind("apparmor.img", 0x5942_3047),
    kind("cpuinfo.img", 0x6140_4013),
    kind("tty-info.img", 0x5945_3036),
    kind("tty-data.img", 0x5941_3026),
    kind("remap-fpath.img", 0x5913_3954),
    kind("memfd.img", 0x4845_3499),
    kind("filelocks.img", 0x5432_3616),
    with("pipes-data.img", 0x5645_3709, Extra::PipeData),
    with("fifo-data.img", 0x5933_3054, Extra::PipeData),
    with("sk-queues.img", 0x5626_4026, Extra::SocketQueue),
    with("bpfmap-data.img", 0x6432_4033, Extra::Unknown),
    kind("core-", 0x5505_3847),
    kind("ids-", 0x5443_2030),
    kind("mm-", 0x5749_2820),
    kind("pagemap-", 0x5608_4025),
    kind("fdinfo-", 0x5621_3732),
    kind("fs-", 0x5140_3912),
    kind("mountpoints-", 0x5556_3928),
    kind("utsns-", 0x5447_3203),
    kind("timens-", 0x4311_4433),
    kind("pidns-", 0x6115_7326),
    kind("userns-", 0x5547_4906),
    kind("netns-", 0x5593_3752),
    kind("netdev-", 0x5737_3951),
    kind("ipcns-var-", 0x5311_5007),
    with("ipcns-shm-", 0x4628_3044, Extra::Unknown),
    with("ipcns-msg-", 0x5545_3737, Extra::Unknown),
    with("ipcns-sem-", 0x5957_3019, Extra::Unknown),
    with("tcp-stream-", 0x5146_5506, Extra::TcpStream),
    with("ghost-file-", 0x5258_3605, Extra::Unknown),
    kind("autofs-", 0x4935_3943),
    kind("stats-dump", 0x5709_3306),
    kind("stats-restore", 0x5709_3306),
];

/// What network namespaces have besides: texts of other programs, without a magic number.
const RAW: &[&str] = &["netns-ct-", "netns-exp-"];

impl Kind {
    /// The kind of the image of this name. None for raw images, and for names that are not known here.
    pub(crate) fn of(name: &str) -> Option<&'static Self> {
        if RAW.iter().any(|raw| name.starts_with(raw)) {
            return None;
        }
        KINDS.iter().find(|kind| match kind.prefix.ends_with('-') {
            true => name.starts_with(kind.prefix) && name.ends_with(".img"),
            false => name == kind.prefix,
        })
    }

    fn magics(&self) -> &'static [u32] {
        // One array per kind would say nothing more: the second number is compared by hand.
        match self.prefix {
            "inventory.img" => &[0x5831_3116],
            "stats-dump" | "stats-restore" => &[SERVICE],
            _ => &[COMMON],
        }
    }

    /// The frames after the magic numbers.
    fn frames<'a>(&self, file: &'a str, bytes: &'a [u8]) -> Result<Frames<'a>, ImageError> {
        let format = Format {
            magics: self.magics(),
            max_file: MAX_IMAGE,
        };
        let mut frames = Frames::new(file, bytes, &format)?;
        if self.magics() != [self.magic] {
            frames.magic(self.magic)?;
        }
        Ok(frames)
    }

    /// Whether the beginning of the file is that of such an image; as many bytes of it as there are.
    pub(crate) fn check_magic(&self, file: &str, beginning: &[u8]) -> Result<(), ImageError> {
        self.frames(file, beginning).map(drop)
    }

    /// Checks the frames of the image from its beginning to its end, as far as they can be followed.
    pub(crate) fn check(&self, file: &str, bytes: &[u8]) -> Result<(), ImageError> {
        let mut frames = self.frames(file, bytes)?;
        while let Some(frame) = frames.next() {
            let frame = frame?;
            let extra = match self.extra {
                Extra::None => 0,
                Extra::Unknown => return Ok(()),
                Extra::PipeData => u64::from(frame.decode::<proto::PipeDataEntry>()?.bytes),
                Extra::SocketQueue => u64::from(frame.decode::<proto::SkPacketEntry>()?.length),
                Extra::TcpStream => {
                    let stream: proto::TcpStreamEntry = frame.decode()?;
                    u64::from(stream.inq_len) + u64::from(stream.outq_len)
                }
            };
            frames.pass_over(extra)?;
        }
        Ok(())
    }
}

/// The entries of an image without anything between them. `file` is its name, which says what it is.
pub(crate) fn entries<M: prost::Message + Default>(
    file: &str,
    bytes: &[u8],
) -> Result<Vec<M>, ImageError> {
    frames(file, bytes)?.map(|frame| frame?.decode()).collect()
}

/// A head and the entries after it.
pub(crate) fn head_and_entries<H, M>(file: &str, bytes: &[u8]) -> Result<(H, Vec<M>), ImageError>
where
    H: prost::Message + Default,
    M: prost::Message + Default,
{
    let mut frames = frames(file, bytes)?;
    let head = match frames.next() {
        Some(head) => head?.decode()?,
        None => return Err(frames.ended()),
    };
    let entries = frames.map(|frame| frame?.decode());
    Ok((head, entries.collect::<Result<_, _>>()?))
}

/// The first entry of an image, which must be there.
pub(crate) fn first<M: prost::Message + Default>(
    file: &str,
    bytes: &[u8],
) -> Result<M, ImageError> {
    let mut frames = frames(file, bytes)?;
    match frames.next() {
        Some(frame) => frame?.decode(),
        None => Err(frames.ended()),
    }
}

fn frames<'a>(file: &'a str, bytes: &'a [u8]) -> Result<Frames<'a>, ImageError> {
    match Kind::of(file) {
        Some(kind) => kind.frames(file, bytes),
        None => Err(ImageError::InvalidName {
            file: file.to_owned(),
        }),
    }
}

const _: () = assert!(MAX_FRAME as usize <= MAX_IMAGE);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tests::entry;

    #[test]
    fn names_say_what_an_image_is() {
        let magic = |name| Kind::of(name).map(|kind| kind.magic);
        assert_eq!(magic("core-1.img"), Some(0x5505_3847));
        assert_eq!(magic("pagemap-shmem-7.img"), Some(0x5608_4025));
        assert_eq!(magic("netns-10.img"), Some(0x5593_3752));
        assert_eq!(magic("stats-dump"), Some(0x5709_3306));
        for other in [
            "pages-1.img",
            "netns-ct-10.img",
            "core-1",
            "dump.log",
            "inventory",
            "",
        ] {
            assert_eq!(magic(other), None, "{other}");
        }
    }

    #[test]
    fn data_between_entries_is_followed() {
        let kind = Kind::of("pipes-data.img").unwrap();
        let mut bytes = entry(&[COMMON, kind.magic], &[8, 1, 16, 3]);
        bytes.extend(b"abc");
        bytes.extend(entry(&[], &[8, 2, 16, 1]));
        bytes.push(b'd');
        kind.check("pipes-data.img", &bytes).unwrap();
        for len in 1..bytes.len() {
            // Between two entries nothing is missing.
            let whole = [8, 8 + 4 + 4 + 3].contains(&len);
            assert_eq!(
                kind.check("pipes-data.img", &bytes[..len]).is_ok(),
                whole,
                "{len}"
            );
        }
        bytes[8] = 0xff;
        assert!(kind.check("pipes-data.img", &bytes).is_err());
    }

    #[test]
    fn another_image_under_the_name_is_found() {
        let bytes = entry(&[COMMON, 0x5505_3847], &[8, 1]);
        let error = entries::<proto::MmEntry>("mm-1.img", &bytes).unwrap_err();
        assert!(
            matches!(error, ImageError::WrongMagic { offset: 4, .. }),
            "{error}"
        );
        Kind::of("core-1.img")
            .unwrap()
            .check("core-1.img", &bytes)
            .unwrap();
        let error = first::<proto::MmEntry>("mm-1.img", &entry(&[COMMON, 0x5749_2820], &[])[..8]);
        assert!(
            matches!(error, Err(ImageError::Truncated { .. })),
            "{error:?}"
        );
    }
}
