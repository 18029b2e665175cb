//! Frames: from the bytes of a file to checked messages.
//!
//! An image is one or two magic numbers and then entries, each a size and a protobuf message; all
//! integers are little endian.

use super::ImageError;

/// The largest entry that is read, in bytes.
pub(super) const MAX_FRAME: u32 = 16 << 20;

/// What tells one kind of image from another.
pub(super) struct Format {
    /// The magic numbers at the start, in this order.
    pub(super) magics: &'static [u32],
    /// The largest file of this kind that is read, in bytes. Decoding multiplies what hostile
    /// bytes take in memory, so this is no larger than real images need.
    pub(super) max_file: usize,
}

/// Refuses a file that is larger than its kind can be.
pub(super) fn check_size(file: &str, size: u64, format: &Format) -> Result<(), ImageError> {
    let limit = u64::try_from(format.max_file).unwrap_or(u64::MAX);
    if size > limit {
        return Err(ImageError::FileTooLarge {
            file: file.to_owned(),
            size,
            limit,
        });
    }
    Ok(())
}

/// The entries of an image, in order. Ends after the first error.
pub(super) struct Frames<'a> {
    file: &'a str,
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Frames<'a> {
    /// Checks the size of the image and its magic numbers.
    pub(super) fn new(file: &'a str, bytes: &'a [u8], format: &Format) -> Result<Self, ImageError> {
        check_size(file, u64::try_from(bytes.len()).unwrap_or(u64::MAX), format)?;
        let mut frames = Self {
            file,
            bytes,
            offset: 0,
        };
        for &expected in format.magics {
            frames.magic(expected)?;
        }
        Ok(frames)
    }

    /// Checks that this magic number comes next.
    pub(super) fn magic(&mut self, expected: u32) -> Result<(), ImageError> {
        let offset = self.offset;
        let found = self.take_u32()?;
        match found == expected {
            true => Ok(()),
            false => Err(ImageError::WrongMagic {
                file: self.file.to_owned(),
                offset,
                expected,
                found,
            }),
        }
    }

    /// Passes over bytes that belong to the entry before.
    pub(super) fn pass_over(&mut self, len: u64) -> Result<(), ImageError> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.take(len).map(drop)
    }

    /// The error of an image that has no further entry though it must.
    pub(super) fn ended(&self) -> ImageError {
        ImageError::Truncated {
            file: self.file.to_owned(),
            offset: self.offset,
            needed: 4,
            available: self.left(),
        }
    }

    /// The entry of an image that has exactly one.
    pub(super) fn only(mut self) -> Result<Frame<'a>, ImageError> {
        let frame = self.frame()?;
        match self.left() {
            0 => Ok(frame),
            len => Err(ImageError::TrailingData {
                file: self.file.to_owned(),
                offset: self.offset,
                len,
            }),
        }
    }

    fn frame(&mut self) -> Result<Frame<'a>, ImageError> {
        let offset = self.offset;
        let size = self.take_u32()?;
        if size > MAX_FRAME {
            return Err(ImageError::FrameTooLarge {
                file: self.file.to_owned(),
                offset,
                size,
                limit: MAX_FRAME,
            });
        }
        let body = self.take(usize::try_from(size).unwrap_or(usize::MAX))?;
        Ok(Frame {
            file: self.file,
            offset,
            body,
        })
    }

    fn take_u32(&mut self) -> Result<u32, ImageError> {
        let mut value = [0; 4];
        value.copy_from_slice(self.take(4)?);
        Ok(u32::from_le_bytes(value))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], ImageError> {
        let end = self.offset.checked_add(len);
        let Some(part) = end.and_then(|end| self.bytes.get(self.offset..end)) else {
            return Err(ImageError::Truncated {
                file: self.file.to_owned(),
                offset: self.offset,
                needed: len,
                available: self.left(),
            });
        };
        self.offset += len;
        Ok(part)
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.offset
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, ImageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left() == 0 {
            return None;
        }
        let frame = self.frame();
        if frame.is_err() {
            self.offset = self.bytes.len();
        }
        Some(frame)
    }
}

/// One entry of an image.
pub(super) struct Frame<'a> {
    file: &'a str,
    offset: usize,
    body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Decodes the entry. Required fields that are missing come out as zero: use
    /// [`Frame::require`] as well.
    pub(super) fn decode<M: prost::Message + Default>(&self) -> Result<M, ImageError> {
        M::decode(self.body).map_err(|error| ImageError::Malformed {
            file: self.file.to_owned(),
            offset: self.offset,
            reason: error.to_string(),
        })
    }

    /// Checks that the fields are there, which the decoder does not do.
    pub(super) fn require(&self, fields: &[(u32, &'static str)]) -> Result<(), ImageError> {
        self.require_among(&mut self.fields(), fields)
    }

    /// Checks that a message within the entry is there and has the fields. CRIU writes it once;
    /// of several, the decoder merges the fields, and so does this.
    pub(super) fn require_within(
        &self,
        message: (u32, &'static str),
        fields: &[(u32, &'static str)],
    ) -> Result<(), ImageError> {
        let (message, name) = message;
        self.require(&[(message, name)])?;
        let mut inner = self
            .fields()
            .filter(|field| field.number == message)
            .flat_map(|field| Fields::new(field.payload));
        self.require_among(&mut inner, fields)
    }

    fn require_among(
        &self,
        present: &mut dyn Iterator<Item = Field<'a>>,
        required: &[(u32, &'static str)],
    ) -> Result<(), ImageError> {
        let mut missing = required.to_vec();
        while !missing.is_empty() {
            let Some(field) = present.next() else { break };
            missing.retain(|(number, _)| *number != field.number);
        }
        match missing.first() {
            None => Ok(()),
            Some((_, field)) => Err(self.missing(field)),
        }
    }

    pub(super) fn missing(&self, field: &'static str) -> ImageError {
        ImageError::MissingField {
            file: self.file.to_owned(),
            offset: self.offset,
            field,
        }
    }

    fn fields(&self) -> Fields<'a> {
        Fields::new(self.body)
    }
}

/// The fields of an encoded message, without those inside groups. Ends where the encoding is not
/// valid; only used on what the decoder has accepted.
struct Fields<'a> {
    rest: &'a [u8],
    group_depth: usize,
}

struct Field<'a> {
    number: u32,
    /// The content of a length-delimited field, empty for any other.
    payload: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(message: &'a [u8]) -> Self {
        Self {
            rest: message,
            group_depth: 0,
        }
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn skip(&mut self, len: usize) -> Option<&'a [u8]> {
        let (skipped, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(skipped)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        loop {
            let key = self.varint()?;
            let number = u32::try_from(key >> 3).ok()?;
            let mut payload = [].as_slice();
            match key & 7 {
                0 => {
                    self.varint()?;
                }
                1 => {
                    self.skip(8)?;
                }
                2 => {
                    let len = self.varint()?;
                    payload = self.skip(usize::try_from(len).ok()?)?;
                }
                3 => {
                    self.group_depth += 1;
                    continue;
                }
                4 => {
                    self.group_depth = self.group_depth.checked_sub(1)?;
                    continue;
                }
                5 => {
                    self.skip(4)?;
                }
                _ => return None,
            }
            if self.group_depth == 0 {
                return Some(Field { number, payload });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TWO: Format = Format {
        magics: &[0x0403_0201, 0x0807_0605],
        max_file: 64,
    };
    const HEAD: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

    fn image(parts: &[&[u8]]) -> Vec<u8> {
        [&HEAD, parts.concat().as_slice()].concat()
    }

    fn bodies(bytes: &[u8]) -> Result<Vec<Vec<u8>>, ImageError> {
        Frames::new("x", bytes, &TWO)?
            .map(|frame| Ok(frame?.body.to_vec()))
            .collect()
    }

    #[test]
    fn frames_come_in_order_with_their_offsets() {
        let bytes = image(&[&[2, 0, 0, 0, 9, 8], &[0, 0, 0, 0], &[1, 0, 0, 0, 7]]);
        assert_eq!(bodies(&bytes).unwrap(), [vec![9, 8], vec![], vec![7]]);
        let offsets: Vec<_> = Frames::new("x", &bytes, &TWO)
            .unwrap()
            .map(|frame| frame.unwrap().offset)
            .collect();
        assert_eq!(offsets, [8, 14, 18]);
        assert!(bodies(&HEAD).unwrap().is_empty());
    }

    #[test]
    fn a_wrong_magic_is_reported_with_its_place() {
        let mut bytes = HEAD;
        bytes[7] = 9;
        let error = bodies(&bytes).unwrap_err();
        assert!(matches!(
            error,
            ImageError::WrongMagic {
                offset: 4,
                expected: 0x0807_0605,
                found: 0x0907_0605,
                ..
            }
        ));
        assert_eq!(
            error.to_string(),
            "x: magic 0x09070605 at offset 4 where 0x08070605 belongs"
        );
    }

    #[test]
    fn every_cut_is_a_truncation_except_between_frames() {
        let bytes = image(&[&[2, 0, 0, 0, 9, 8], &[1, 0, 0, 0, 7]]);
        for len in 0..bytes.len() {
            let outcome = bodies(&bytes[..len]);
            if [8, 14].contains(&len) {
                assert!(outcome.is_ok(), "{len}");
            } else {
                assert!(
                    matches!(outcome, Err(ImageError::Truncated { .. })),
                    "{len}: {outcome:?}"
                );
            }
        }
    }

    #[test]
    fn nothing_follows_an_error() {
        let bytes = image(&[&[1, 0, 0, 0, 7], &[5, 0, 0, 0, 1]]);
        let mut frames = Frames::new("x", &bytes, &TWO).unwrap();
        assert!(frames.next().unwrap().is_ok());
        assert!(matches!(
            frames.next(),
            Some(Err(ImageError::Truncated {
                offset: 17,
                needed: 5,
                available: 1,
                ..
            }))
        ));
        assert!(frames.next().is_none());
    }

    #[test]
    fn an_oversized_frame_is_refused_whatever_follows() {
        let size = MAX_FRAME + 1;
        let error = bodies(&image(&[&size.to_le_bytes()])).unwrap_err();
        assert!(
            matches!(error, ImageError::FrameTooLarge { offset: 8, .. }),
            "{error}"
        );
        let error = bodies(&image(&[&MAX_FRAME.to_le_bytes()])).unwrap_err();
        assert!(
            matches!(error, ImageError::Truncated { offset: 12, .. }),
            "{error}"
        );
    }

    #[test]
    fn an_oversized_image_is_refused() {
        let mut bytes = HEAD.to_vec();
        bytes.resize(64, 0);
        assert_eq!(bodies(&bytes).unwrap().len(), 14);
        bytes.push(0);
        assert!(matches!(
            bodies(&bytes),
            Err(ImageError::FileTooLarge {
                size: 65,
                limit: 64,
                ..
            })
        ));
    }

    #[test]
    fn an_image_of_one_frame_has_nothing_behind_it() {
        let only = |bytes: &[u8]| Frames::new("x", bytes, &TWO).unwrap().only().map(|_| ());
        only(&image(&[&[1, 0, 0, 0, 7]])).unwrap();
        let error = only(&image(&[&[1, 0, 0, 0, 7], &[0, 0]])).unwrap_err();
        assert!(
            matches!(
                error,
                ImageError::TrailingData {
                    offset: 13,
                    len: 2,
                    ..
                }
            ),
            "{error}"
        );
        let error = only(&HEAD).unwrap_err();
        assert!(
            matches!(error, ImageError::Truncated { offset: 8, .. }),
            "{error}"
        );
    }

    #[test]
    fn required_fields_are_looked_for_at_their_own_level() {
        fn missing(body: &[u8], fields: &[(u32, &'static str)]) -> Option<&'static str> {
            let frame = Frame {
                file: "x",
                offset: 8,
                body,
            };
            match frame.require(fields) {
                Ok(()) => None,
                Err(ImageError::MissingField {
                    field, offset: 8, ..
                }) => Some(field),
                Err(other) => panic!("{other}"),
            }
        }
        let fields = [(1, "one"), (2, "two")];
        // Varint, then fixed64; the other way round; fixed32 and a length.
        assert_eq!(
            missing(&[8, 0, 0x11, 0, 0, 0, 0, 0, 0, 0, 0], &fields),
            None
        );
        assert_eq!(
            missing(&[0x11, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0], &fields),
            None
        );
        assert_eq!(missing(&[0x0d, 0, 0, 0, 0, 0x12, 1, 9], &fields), None);
        assert_eq!(missing(&[], &fields), Some("one"));
        assert_eq!(missing(&[8, 0], &fields), Some("two"));
        // Field 2 inside group 3, and inside message 3.
        assert_eq!(missing(&[8, 0, 0x1b, 0x10, 0, 0x1c], &fields), Some("two"));
        assert_eq!(missing(&[8, 0, 0x1a, 2, 0x10, 0], &fields), Some("two"));
        // After the group it counts again.
        assert_eq!(
            missing(&[8, 0, 0x1b, 0x10, 0, 0x1c, 0x10, 0], &fields),
            None
        );

        let frame = Frame {
            file: "x",
            offset: 8,
            body: &[0x1a, 2, 8, 0, 0x1a, 2, 0x10, 0],
        };
        frame.require_within((3, "three"), &fields).unwrap();
        let error = frame
            .require_within((3, "three"), &[(4, "four")])
            .unwrap_err();
        assert_eq!(error.to_string(), "x: the entry at offset 8 has no four");
        let error = frame.require_within((5, "five"), &[]).unwrap_err();
        assert_eq!(error.to_string(), "x: the entry at offset 8 has no five");
    }

    proptest! {
        #[test]
        fn frames_survive_any_bytes(tail in proptest::collection::vec(any::<u8>(), 0..48)) {
            let bytes = image(&[&tail]);
            let frames = Frames::new("x", &bytes, &TWO).unwrap();
            prop_assert!(frames.count() <= tail.len() / 4 + 1);
            for frame in Frames::new("x", &bytes, &TWO).unwrap().flatten() {
                prop_assert!(frame.fields().count() <= frame.body.len());
            }
        }

        #[test]
        fn frames_put_together_come_apart_again(
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..6), 0..5)
        ) {
            let mut bytes = HEAD.to_vec();
            for part in &parts {
                bytes.extend(u32::try_from(part.len()).unwrap().to_le_bytes());
                bytes.extend(part);
            }
            prop_assert_eq!(bodies(&bytes).unwrap(), parts);
        }
    }
}
