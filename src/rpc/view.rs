//! Messages by the names of their fields: what is set and nothing else, as JSON.

use std::fmt::Write;

use serde_json::{Map, Value as Json};

use super::fields::{self, Malformed, Value, fields};

/// A message of the protocol.
pub(crate) struct Message {
    /// In the order of their numbers.
    pub(crate) fields: &'static [Field],
}

/// A field of such a message.
pub(crate) struct Field {
    pub(crate) number: u32,
    pub(crate) name: &'static str,
    pub(crate) repeated: bool,
    pub(crate) kind: Kind,
}

/// What a field holds.
pub(crate) enum Kind {
    Bool,
    Signed,
    Unsigned,
    /// A string, or bytes that are nearly one.
    Text,
    Enum(&'static [(i32, &'static str)]),
    Message(&'static Message),
}

// What build.rs makes of proto/rpc.proto.
include!(concat!(env!("OUT_DIR"), "/criu_client.rpc.tables.rs"));

impl Message {
    pub(crate) fn field(&self, number: u32) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.number == number)
    }
}

/// What is set in an encoded message, by name. A field that the table lacks has its number for a name (`#79`) and, if it is
/// no number, its bytes in hexadecimal. A field that may be there several times is an array.
pub(crate) fn view(bytes: &[u8], message: &Message) -> Result<Map<String, Json>, Malformed> {
    let mut seen = Map::new();
    for field in fields(bytes)? {
        let known = message.field(field.number);
        let name = match known {
            Some(known) => known.name.to_owned(),
            None => format!("#{}", field.number),
        };
        let value = match (known.map(|known| &known.kind), field.value) {
            (Some(Kind::Bool), Value::Number(number)) => Json::from(number != 0),
            (Some(Kind::Signed), Value::Number(number)) => Json::from(number.cast_signed()),
            (Some(Kind::Enum(names)), Value::Number(number)) => names
                .iter()
                .find(|(value, _)| i64::from(*value) == number.cast_signed())
                .map_or_else(|| Json::from(number), |(_, name)| Json::from(*name)),
            (_, Value::Number(number)) => Json::from(number),
            (Some(Kind::Text), Value::Bytes(bytes)) => {
                Json::from(String::from_utf8_lossy(bytes).into_owned())
            }
            (Some(Kind::Message(inner)), Value::Bytes(bytes)) => Json::Object(view(bytes, inner)?),
            (_, Value::Bytes(bytes)) => Json::from(hex(bytes)),
        };
        let repeated = known.is_some_and(|known| known.repeated);
        match seen.get_mut(&name) {
            Some(Json::Array(values)) if repeated => values.push(value),
            // Protobuf merges what comes twice.
            Some(Json::Object(earlier)) => {
                if let Json::Object(later) = value {
                    earlier.extend(later);
                }
            }
            _ if repeated => {
                seen.insert(name, Json::Array(vec![value]));
            }
            _ => {
                seen.insert(name, value);
            }
        }
    }
    Ok(seen)
}

/// Rewrites every text of an encoded message, however deep, and leaves all else as it is.
pub(crate) fn map_texts(
    bytes: &[u8],
    message: &Message,
    rewrite: &dyn Fn(&str, &str) -> String,
) -> Result<Vec<u8>, Malformed> {
    let mut rewritten = Vec::with_capacity(bytes.len());
    for field in fields(bytes)? {
        let known = message.field(field.number);
        match (known, field.value) {
            (Some(known), Value::Bytes(text)) if matches!(known.kind, Kind::Text) => {
                let text = rewrite(known.name, &String::from_utf8_lossy(text));
                fields::put_bytes(&mut rewritten, field.number, text.as_bytes());
            }
            (
                Some(Field {
                    kind: Kind::Message(inner),
                    ..
                }),
                Value::Bytes(bytes),
            ) => {
                let inner = map_texts(bytes, inner, rewrite)?;
                fields::put_bytes(&mut rewritten, field.number, &inner);
            }
            _ => rewritten.extend_from_slice(field.bytes),
        }
    }
    Ok(rewritten)
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// The bytes that [`hex`] has written.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| {
            text.get(at..at + 2)
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::wire::{CriuOpts, CriuReq, CriuReqType, ExtMountMap};
    use prost::Message as _;
    use serde_json::json;

    fn request() -> Vec<u8> {
        CriuReq {
            r#type: CriuReqType::Dump.into(),
            opts: Some(CriuOpts {
                images_dir_fd: -1,
                leave_running: Some(false),
                network_lock: Some(3),
                external: vec!["net[1]:a".into()],
                ext_mnt: vec![ExtMountMap {
                    key: "/etc/hosts".into(),
                    val: "/etc/hosts".into(),
                }],
                root: Some("/srv/root".into()),
                ..Default::default()
            }),
            ..Default::default()
        }
        .encode_to_vec()
    }

    #[test]
    fn what_is_set_is_seen_by_name() {
        let seen = view(&request(), &CRIU_REQ).unwrap();
        assert_eq!(
            Json::Object(seen),
            json!({
                "type": "DUMP",
                "opts": {
                    "images_dir_fd": -1,
                    "leave_running": false,
                    "network_lock": "SKIP",
                    "external": ["net[1]:a"],
                    "ext_mnt": [{"key": "/etc/hosts", "val": "/etc/hosts"}],
                    "root": "/srv/root",
                },
            })
        );
    }

    #[test]
    fn what_is_not_known_is_seen_by_number() {
        let mut bytes = Vec::new();
        fields::put_number(&mut bytes, 1, 99);
        fields::put_bytes(&mut bytes, 100, &[0xff, 0]);
        fields::put_number(&mut bytes, 101, 7);
        assert_eq!(
            Json::Object(view(&bytes, &CRIU_REQ).unwrap()),
            json!({"type": 99, "#100": "ff00", "#101": 7})
        );
        assert!(view(&[0x0a], &CRIU_REQ).is_err());
    }

    #[test]
    fn texts_are_rewritten_wherever_they_are() {
        let rewritten = map_texts(&request(), &CRIU_REQ, &|name, text| {
            format!("{name}={text}")
        })
        .unwrap();
        let opts = CriuReq::decode(rewritten.as_slice()).unwrap().opts.unwrap();
        assert_eq!(opts.root.as_deref(), Some("root=/srv/root"));
        assert_eq!(opts.ext_mnt[0].key, "key=/etc/hosts");
        assert_eq!(opts.network_lock, Some(3));
        let unchanged = map_texts(&request(), &CRIU_REQ, &|_, text| text.to_owned()).unwrap();
        assert_eq!(unchanged, request());
    }

    #[test]
    fn hexadecimal_goes_both_ways() {
        assert_eq!(hex(&[0, 0x0a, 0xff]), "000aff");
        assert_eq!(from_hex("000aff"), Some(vec![0, 0x0a, 0xff]));
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("zz"), None);
        assert_eq!(from_hex("aé"), None);
    }
}
