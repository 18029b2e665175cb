//! The fields of an encoded message, without knowing the message.

/// One field at the top level of an encoded message.
pub(crate) struct Field<'a> {
    pub(crate) number: u32,
    /// The whole field as it was encoded, its key included.
    pub(crate) bytes: &'a [u8],
    pub(crate) value: Value<'a>,
}

/// What a field holds, as far as the encoding tells.
#[derive(Clone, Copy)]
pub(crate) enum Value<'a> {
    /// A number, flag or enumerator; a negative one in two's complement.
    Number(u64),
    /// A text or a message.
    Bytes(&'a [u8]),
}

/// The bytes do not follow protobuf's encoding.
#[derive(Debug, thiserror::Error)]
#[error("the bytes are no protobuf message")]
pub(crate) struct Malformed;

/// Takes a message apart. Groups, which no message of CRIU has, count as malformed.
pub(crate) fn fields(message: &[u8]) -> Result<Vec<Field<'_>>, Malformed> {
    let mut found = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        let start = rest;
        let key = varint(&mut rest)?;
        let number = u32::try_from(key >> 3).map_err(|_| Malformed)?;
        if number == 0 {
            return Err(Malformed);
        }
        let value = match key & 7 {
            0 => Value::Number(varint(&mut rest)?),
            1 => Value::Number(u64::from_le_bytes(*array(&mut rest)?)),
            2 => {
                let length = usize::try_from(varint(&mut rest)?).map_err(|_| Malformed)?;
                let (bytes, behind) = rest.split_at_checked(length).ok_or(Malformed)?;
                rest = behind;
                Value::Bytes(bytes)
            }
            5 => Value::Number(u32::from_le_bytes(*array(&mut rest)?).into()),
            _ => return Err(Malformed),
        };
        found.push(Field {
            number,
            bytes: &start[..start.len() - rest.len()],
            value,
        });
    }
    Ok(found)
}

/// Appends a field that is a number. A negative one is given in two's complement.
pub(crate) fn put_number(message: &mut Vec<u8>, number: u32, value: u64) {
    prost::encoding::encode_key(number, prost::encoding::WireType::Varint, message);
    prost::encoding::encode_varint(value, message);
}

/// Appends a field that is a text or a message.
pub(crate) fn put_bytes(message: &mut Vec<u8>, number: u32, value: &[u8]) {
    prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, message);
    prost::encoding::encode_varint(value.len() as u64, message);
    message.extend_from_slice(value);
}

fn array<'a, const N: usize>(bytes: &mut &'a [u8]) -> Result<&'a [u8; N], Malformed> {
    let (array, rest) = bytes.split_first_chunk().ok_or(Malformed)?;
    *bytes = rest;
    Ok(array)
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
