//! Compiles the protocol and image definitions without protoc, and lists the names of the protocol's fields.

use std::fmt::Write;
use std::io::{Error, Result};
use std::path::{Path, PathBuf};

use prost_types::FileDescriptorProto;
use prost_types::field_descriptor_proto::{Label, Type};

const PROTOCOL: &str = "proto/rpc.proto";
const IMAGES: &str = "proto/images";

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed={PROTOCOL}");
    println!("cargo:rerun-if-changed={IMAGES}");
    let mut protos = vec![PathBuf::from(PROTOCOL)];
    for entry in std::fs::read_dir(IMAGES)? {
        protos.push(entry?.path());
    }
    protos.sort();
    let descriptors = protox::compile(protos, [IMAGES, "proto"]).map_err(Error::other)?;
    let out = std::env::var_os("OUT_DIR").ok_or_else(|| Error::other("no OUT_DIR"))?;
    let tables: String = descriptors
        .file
        .iter()
        .filter(|file| PROTOCOL.ends_with(file.name()))
        .map(tables)
        .collect();
    std::fs::write(Path::new(&out).join("criu_client.rpc.tables.rs"), tables)?;
    prost_build::Config::new().compile_fds(descriptors)
}

/// Source text of a `static` of type `Message` for each message, as `src/rpc/view.rs` declares it.
fn tables(file: &FileDescriptorProto) -> String {
    let mut text = String::new();
    for message in &file.message_type {
        let name = message.name().to_uppercase();
        let _ = writeln!(
            text,
            "pub(crate) static {name}: Message = Message {{ fields: &["
        );
        let mut fields: Vec<_> = message.field.iter().collect();
        fields.sort_by_key(|field| field.number());
        for field in fields {
            // ".package.name"
            let type_name = field.type_name().rsplit('.').next().unwrap_or_default();
            let kind = match field.r#type() {
                Type::Bool => "Kind::Bool".to_owned(),
                Type::Int32 | Type::Int64 => "Kind::Signed".to_owned(),
                Type::Uint32 | Type::Uint64 => "Kind::Unsigned".to_owned(),
                Type::String | Type::Bytes => "Kind::Text".to_owned(),
                Type::Message => format!("Kind::Message(&{})", type_name.to_uppercase()),
                Type::Enum => {
                    let values = file
                        .enum_type
                        .iter()
                        .filter(|declared| declared.name() == type_name)
                        .flat_map(|declared| &declared.value)
                        .map(|value| format!("({}, {:?})", value.number(), value.name()))
                        .collect::<Vec<_>>();
                    format!("Kind::Enum(&[{}])", values.join(", "))
                }
                other => panic!(
                    "{}.{} has a type that no table has: {other:?}",
                    message.name(),
                    field.name()
                ),
            };
            let _ = writeln!(
                text,
                "    Field {{ number: {}, name: {:?}, repeated: {}, kind: {kind} }},",
                field.number(),
                field.name(),
                field.label() == Label::Repeated,
            );
        }
        text.push_str("] };\n");
    }
    text
}
