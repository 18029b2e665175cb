//! Compares `proto/rpc.proto` with the RPC messages of the installed CRIU.

use std::collections::BTreeMap;
use std::path::Path;

use prost_types::FileDescriptorSet;
use prost_types::field_descriptor_proto::Type;
use serde_json::{Value, json};

use crate::pycriu;
use crate::support::*;

/// Where a `pycriu` of CRIU 4.3 would be, if anybody had installed one there.
const SIDE_BY_SIDE: &str = "/var/lib/criu-client-test/criu-4.3/usr/lib/python3/dist-packages";

/// What is bytes here and a string there: CRIU puts file names into it, cuts them, and checks nothing.
const BYTES_FOR_STRINGS: [(&str, &str); 2] =
    [("criu_resp", "cr_errmsg"), ("criu_notify", "script")];

/// What CRIU has only since 4.3.
const SINCE_4_3: [(&str, &[&str]); 2] = [
    (
        "criu_opts",
        &[
            "image_io_mode",
            "compress",
            "compress_acceleration",
            "compress_block_size",
            "decompress_threads",
            "plugin_options",
            "stream",
        ],
    ),
    ("criu_features", &["mem_compression"]),
];
const ENUM_SINCE_4_3: &str = "criu_image_io_mode";

pub(crate) fn tests() -> Tests {
    let mut tests: Tests = vec![("protos/rpc".into(), Box::new(|| compared_with(None, true)))];
    let newest = Path::new(SIDE_BY_SIDE);
    if newest.join("pycriu").is_dir() {
        tests.push((
            "protos/rpc-4.3".into(),
            Box::new(|| compared_with(Some(newest), false)),
        ));
    }
    tests
}

fn compared_with(place: Option<&Path>, may_be_older: bool) -> Outcome {
    let ours = ours()?;
    let theirs = pycriu::descriptors(place, ["pycriu.rpc_pb2".to_owned()].into_iter())?;
    let theirs = normalised(theirs)?;
    let mut differences = Vec::new();
    let (our_messages, our_enums) = &ours;
    let (their_messages, their_enums) = &theirs;
    ensure!(
        their_messages.len() > 5 && their_enums.len() > 3,
        "pycriu has hardly any messages"
    );
    for (name, fields) in their_messages {
        for (field, theirs) in fields {
            match our_messages.get(name).and_then(|fields| fields.get(field)) {
                None => differences.push(format!("{name}.{field} is missing")),
                Some(ours) if ours == theirs => {}
                Some(ours) if is_bytes_for_string(name, field, ours, theirs) => {}
                Some(ours) => {
                    differences.push(format!("{name}.{field} is {ours}, and {theirs} in pycriu"))
                }
            }
        }
    }
    for (name, values) in their_enums {
        for (value, number) in values {
            let ours = our_enums.get(name).and_then(|values| values.get(value));
            if ours != Some(number) {
                differences.push(format!(
                    "{name}.{value} is {ours:?}, and {number} in pycriu"
                ));
            }
        }
    }
    // And nothing is made up.
    for (name, fields) in our_messages {
        for field in fields.keys() {
            let newer = SINCE_4_3
                .iter()
                .any(|(message, fields)| message == name && fields.contains(&field.as_str()));
            let known = their_messages
                .get(name)
                .is_some_and(|fields| fields.contains_key(field));
            if !(known || may_be_older && newer) {
                differences.push(format!("{name}.{field} is not in pycriu"));
            }
        }
    }
    for (name, values) in our_enums {
        for value in values.keys() {
            let known = their_enums
                .get(name)
                .is_some_and(|values| values.contains_key(value));
            if !(known || may_be_older && name == ENUM_SINCE_4_3) {
                differences.push(format!("{name}.{value} is not in pycriu"));
            }
        }
    }
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

fn is_bytes_for_string(message: &str, field: &str, ours: &Value, theirs: &Value) -> bool {
    let mut ours = ours.clone();
    let listed =
        BYTES_FOR_STRINGS.contains(&(message, field)) && ours["type"] == json!(Type::Bytes as i32);
    ours["type"] = json!(Type::String as i32);
    listed && ours == *theirs
}

type Messages = BTreeMap<String, BTreeMap<String, Value>>;
type Enums = BTreeMap<String, BTreeMap<String, i64>>;

/// The part of a type's name that does not depend on the package.
fn local(type_name: &str) -> &str {
    type_name.rsplit('.').next().unwrap_or_default()
}

fn normalised(mut theirs: Value) -> Result<(Messages, Enums), String> {
    let mut messages: Messages = serde_json::from_value(theirs["messages"].take()).map_err(text)?;
    for field in messages.values_mut().flat_map(BTreeMap::values_mut) {
        let name = local(field["type_name"].as_str().unwrap_or_default()).to_owned();
        field["type_name"] = name.into();
    }
    Ok((
        messages,
        serde_json::from_value(theirs["enums"].take()).map_err(text)?,
    ))
}

fn ours() -> Result<(Messages, Enums), String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let FileDescriptorSet { file } = protox::compile(["rpc.proto"], [&directory]).map_err(text)?;
    let [file] = file.as_slice() else {
        return Err(format!("rpc.proto is {} files", file.len()));
    };
    let messages = file.message_type.iter().map(|message| {
        let fields = message.field.iter().map(|field| {
            let described = json!({
                "number": field.number(),
                "label": field.label() as i32,
                "type": field.r#type() as i32,
                "type_name": local(field.type_name()),
                "default": field.default_value,
            });
            (field.name().to_owned(), described)
        });
        (message.name().to_owned(), fields.collect())
    });
    let enums = file.enum_type.iter().map(|declared| {
        let values = declared
            .value
            .iter()
            .map(|value| (value.name().to_owned(), value.number().into()));
        (declared.name().to_owned(), values.collect())
    });
    Ok((messages.collect(), enums.collect()))
}
