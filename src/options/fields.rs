//! The fields of an encoded message, without knowing the message.

/// One field at the top level of an encoded message.
pub(super) struct Field<'a> {
    pub(super) number: u32,
    /// The whole field as it was encoded, its key included.
    pub(super) bytes: &'a [u8],
}

/// The bytes do not follow protobuf's encoding.
#[derive(Debug)]
pub(super) struct Malformed;

/// Takes a message apart. Groups, which no message of CRIU has, count as malformed.
pub(super) fn fields(message: &[u8]) -> Result<Vec<Field<'_>>, Malformed> {
    let mut found = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        let start = rest;
        let key = varint(&mut rest)?;
        let number = u32::try_from(key >> 3).map_err(|_| Malformed)?;
        if number == 0 {
            return Err(Malformed);
        }
        let length = match key & 7 {
            0 => {
                varint(&mut rest)?;
                0
            }
            1 => 8,
            2 => varint(&mut rest)?,
            5 => 4,
            _ => return Err(Malformed),
        };
        let length = usize::try_from(length).map_err(|_| Malformed)?;
        rest = rest.get(length..).ok_or(Malformed)?;
        found.push(Field {
            number,
            bytes: &start[..start.len() - rest.len()],
        });
    }
    Ok(found)
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(Malformed)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed)
}
