//! Pseudonyms for paths in recordings.

use std::hash::{Hash, Hasher};

use serde_json::Value;

use super::recording::{Entry, Event, Side};
use crate::rpc::view::{CRIU_REQ, CRIU_RESP, map_texts, view};

/// Puts a pseudonym in the place of every part of a path, the same for the same name.
///
/// What is a path is told by its form: a run of characters with a slash in it, between brackets, colons, commas, quotes and
/// blanks. Pseudonyms are made with a salt that is in no recording, so that names can be guessed but not computed.
#[derive(Debug, Clone)]
pub struct Mask {
    salt: u64,
}

impl Mask {
    /// Pseudonyms of this salt: the same salt gives the same ones, in different processes too.
    #[must_use]
    pub fn with_salt(salt: u64) -> Self {
        Self { salt }
    }

    /// The entry with pseudonyms in it, its bytes included.
    #[must_use]
    pub fn entry(&self, mut entry: Entry) -> Entry {
        match &mut entry.event {
            Event::Started {
                arguments,
                criu,
                engine,
                ..
            } => {
                for argument in arguments {
                    *argument = self.text(argument);
                }
                *criu = self.text(&criu.to_string_lossy()).into();
                if let Some(program) = engine.as_mut().and_then(|engine| engine.program.as_mut()) {
                    *program = self.text(&program.to_string_lossy()).into();
                }
            }
            Event::Message {
                from,
                bytes,
                view: seen,
                fds,
            } => {
                let message = match from {
                    Side::Engine => &CRIU_REQ,
                    Side::Criu => &CRIU_RESP,
                };
                *bytes = self.message(bytes, message);
                *seen = view(bytes, message).unwrap_or_default();
                for target in fds.iter_mut().filter_map(|fd| fd.target.as_mut()) {
                    *target = self.text(target);
                }
            }
            Event::Amended { bytes, added } => {
                *bytes = self.message(bytes, &CRIU_REQ);
                for value in added.values_mut() {
                    self.json(value);
                }
            }
            Event::Refused { reason, bytes } => {
                *reason = self.text(reason);
                *bytes = self.message(bytes, &CRIU_RESP);
            }
            Event::Hook { reason, .. } => {
                if let Some(reason) = reason {
                    *reason = self.text(reason);
                }
            }
            Event::Withheld { .. } | Event::Stats { .. } | Event::Ended { .. } => {}
        }
        entry
    }

    /// What cannot be taken apart is left out: it might hold anything.
    fn message(&self, bytes: &[u8], message: &crate::rpc::view::Message) -> Vec<u8> {
        map_texts(bytes, message, &|_, text| self.text(text)).unwrap_or_default()
    }

    fn json(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Array(values) => values.iter_mut().for_each(|value| self.json(value)),
            Value::Object(values) => values.values_mut().for_each(|value| self.json(value)),
            _ => {}
        }
    }

    fn text(&self, text: &str) -> String {
        map_parts(text, |part| self.part(part))
    }

    fn part(&self, part: &str) -> String {
        let mut hasher = std::hash::DefaultHasher::new();
        (self.salt, part).hash(&mut hasher);
        format!("m{:08x}", hasher.finish() & 0xffff_ffff)
    }
}

/// Puts something else in the place of every part of the paths in a text.
fn map_parts(text: &str, rename: impl Fn(&str) -> String) -> String {
    let is_border = |c: char| c.is_whitespace() || "[]:,;'\"()=`".contains(c);
    let mut mapped = String::with_capacity(text.len());
    for run in text.split_inclusive(is_border) {
        let (path, border) = match run.chars().next_back() {
            Some(last) if is_border(last) => run.split_at(run.len() - last.len_utf8()),
            _ => (run, ""),
        };
        let is_path = path.contains('/')
            // The device numbers of dev[8/1].
            && !path.bytes().all(|byte| byte.is_ascii_digit() || byte == b'/');
        if is_path {
            let parts = path.split('/').map(|part| match part {
                "" | "." | ".." => part.to_owned(),
                part => rename(part),
            });
            mapped.push_str(&parts.collect::<Vec<_>>().join("/"));
        } else {
            mapped.push_str(path);
        }
        mapped.push_str(border);
    }
    mapped
}

/// A text with the same in the place of every part of its paths: what is left of it under any mask.
#[cfg(feature = "testing")]
pub(crate) fn shape(text: &str) -> String {
    map_parts(text, |_| "*".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::wire::{CriuOpts, CriuReq, CriuReqType, ExtMountMap};
    use prost::Message as _;

    #[test]
    fn parts_of_paths_become_pseudonyms() {
        let mask = Mask::with_salt(7);
        let masked = mask.text("/srv/secret/root");
        assert!(!masked.contains("secret"), "{masked}");
        assert_eq!(masked.matches('/').count(), 3);
        let twice = mask.text("mnt[/srv/secret]:/srv/secret");
        let (inside, outside) = twice.split_once("]:").unwrap();
        assert_eq!(inside.strip_prefix("mnt[").unwrap(), outside);
        assert!(masked.starts_with(outside), "{masked} {outside}");
        for plain in [
            "dump.log",
            "net[4026531840]:extRootNetNS",
            "dev[8/1]:x",
            "pipe:[5]",
        ] {
            assert_eq!(mask.text(plain), plain);
        }
        assert_eq!(mask.text("../.."), "../..");
        assert_ne!(Mask::with_salt(8).text("/srv"), mask.text("/srv"));
    }

    #[test]
    fn no_name_is_left_in_a_masked_message() {
        let request = CriuReq {
            r#type: CriuReqType::Dump.into(),
            opts: Some(CriuOpts {
                images_dir_fd: 4,
                root: Some("/srv/secret".into()),
                external: vec!["mnt[/secret]:secret-not-a-path".into()],
                ext_mnt: vec![ExtMountMap {
                    key: "/a/secret".into(),
                    val: "/b/secret".into(),
                }],
                ..Default::default()
            }),
            ..Default::default()
        };
        let bytes = request.encode_to_vec();
        let entry = Mask::with_salt(1).entry(Entry {
            session: 1,
            at: 0,
            event: Event::Message {
                from: Side::Engine,
                view: view(&bytes, &CRIU_REQ).unwrap(),
                bytes,
                fds: Vec::new(),
            },
        });
        let text = serde_json::to_string(&entry).unwrap();
        assert_eq!(text.matches("/secret").count(), 0, "{text}");
        let Event::Message { bytes, .. } = entry.event else {
            panic!("{entry:?}");
        };
        let masked = CriuReq::decode(bytes.as_slice()).unwrap().opts.unwrap();
        assert_eq!(masked.images_dir_fd, 4);
        assert!(!masked.ext_mnt[0].key.contains("secret"));
    }
}
