//! Compares `proto/images` with the image messages of the installed CRIU.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
};
use serde_json::Value;

use crate::pycriu;
use crate::support::*;

pub(crate) fn tests() -> Tests {
    vec![(
        "protos/images".into(),
        Box::new(image_protos_agree_with_pycriu),
    )]
}

/// Everything that `proto/images` declares is in the installed `pycriu` with the same number, type
/// and label. What is only in `pycriu` does not matter, since readers skip what they do not know.
fn image_protos_agree_with_pycriu() -> Result<(), String> {
    let ours = declared()?;
    let theirs = pycriu::descriptors(
        None,
        ours.keys().map(|stem| format!("pycriu.images.{stem}_pb2")),
    )?;

    let mut differences = Vec::new();
    for (stem, file) in &ours {
        if file.message_type.is_empty() {
            differences.push(format!("{stem}.proto declares no message"));
        }
        for message in &file.message_type {
            compare_message(message, &theirs, &mut differences);
        }
        for declared in &file.enum_type {
            compare_enum(declared.name(), declared, &theirs, &mut differences);
        }
    }
    if differences.is_empty() {
        Ok(())
    } else {
        Err(differences.join("\n"))
    }
}

/// The files of `proto/images` by their names without extension.
fn declared() -> Result<BTreeMap<String, FileDescriptorProto>, String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/images");
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))? {
        let path = entry
            .map_err(|error| format!("{}: {error}", dir.display()))?
            .path();
        if path
            .extension()
            .is_none_or(|extension| extension != "proto")
        {
            continue;
        }
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or("a name that is not UTF-8")?;
        let set = protox::compile([name], [&dir]).map_err(|error| format!("{name}: {error}"))?;
        let file = set
            .file
            .into_iter()
            .find(|file| file.name() == name)
            .ok_or_else(|| format!("{name}: not in the set compiled from it"))?;
        files.insert(name.trim_end_matches(".proto").to_owned(), file);
    }
    if files.is_empty() {
        return Err(format!("no .proto files in {}", dir.display()));
    }
    Ok(files)
}

fn compare_enum(
    path: &str,
    declared: &EnumDescriptorProto,
    theirs: &Value,
    differences: &mut Vec<String>,
) {
    for value in &declared.value {
        let found = theirs["enums"][path][value.name()].as_i64();
        if found != Some(value.number().into()) {
            differences.push(format!(
                "enum {path}: {} is {}, pycriu has {found:?}",
                value.name(),
                value.number()
            ));
        }
    }
}

fn compare_message(message: &DescriptorProto, theirs: &Value, differences: &mut Vec<String>) {
    let name = message.name();
    let Some(fields) = theirs["messages"][name].as_object() else {
        differences.push(format!("pycriu has no message {name}"));
        return;
    };
    if message.field.is_empty() {
        differences.push(format!("{name} declares no field"));
    }
    if !message.nested_type.is_empty() {
        differences.push(format!("{name} nests messages, which are not compared"));
    }
    for declared in &message.enum_type {
        let path = format!("{name}.{}", declared.name());
        compare_enum(&path, declared, theirs, differences);
    }
    for field in &message.field {
        match fields.get(field.name()) {
            None => differences.push(format!("pycriu has no field {name}.{}", field.name())),
            Some(their_field) => compare_field(name, field, their_field, differences),
        }
    }
}

fn compare_field(
    message: &str,
    ours: &FieldDescriptorProto,
    theirs: &Value,
    differences: &mut Vec<String>,
) {
    use prost_types::field_descriptor_proto::Type;

    let name = ours.name();
    let mut compare = |what: &str, ours: i64, theirs: Option<i64>| {
        if theirs != Some(ours) {
            differences.push(format!(
                "{message}.{name}: {what} is {ours}, pycriu has {theirs:?}"
            ));
        }
    };
    compare("number", ours.number().into(), theirs["number"].as_i64());
    compare(
        "label",
        (ours.label() as i32).into(),
        theirs["label"].as_i64(),
    );

    let their_type = theirs["type"].as_i64();
    // CRIU does not check that its strings are UTF-8, so we may take them as bytes.
    let string_as_bytes =
        ours.r#type() == Type::Bytes && their_type == Some((Type::String as i32).into());
    if !string_as_bytes {
        compare("type", (ours.r#type() as i32).into(), their_type);
    }

    let last = |type_name: &str| type_name.rsplit('.').next().map(str::to_owned);
    let their_name = theirs["type_name"].as_str().and_then(last);
    if last(ours.type_name()) != their_name {
        differences.push(format!(
            "{message}.{name}: the type is {}, pycriu has {their_name:?}",
            ours.type_name()
        ));
    }
}
