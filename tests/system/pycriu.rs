//! The descriptors of the installed `pycriu`, which are generated from the definitions that CRIU itself was built from.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

/// Debian's package `python3-pycriu` belongs to this one.
const PYTHON: &str = "/usr/bin/python3";

/// Prints one JSON object for the modules named by the arguments after the first: messages and enums of all of them by
/// name. Labels and types are the numbers that `descriptor.proto` gives them. The first argument, if not empty, is where
/// to look for `pycriu` first.
const PRINT_DESCRIPTORS: &str = r#"
import importlib, json, sys
from google.protobuf import descriptor_pb2

if sys.argv[1]:
    sys.path.insert(0, sys.argv[1])
messages, enums = {}, {}

def take(message, prefix):
    name = prefix + message.name
    messages[name] = {
        field.name: {
            "number": field.number,
            "label": field.label,
            "type": field.type,
            "type_name": field.type_name,
            "default": field.default_value if field.HasField("default_value") else None,
        }
        for field in message.field
    }
    for nested in message.nested_type:
        take(nested, name + ".")
    for enum in message.enum_type:
        enums[name + "." + enum.name] = {value.name: value.number for value in enum.value}

for module in sys.argv[2:]:
    file = descriptor_pb2.FileDescriptorProto()
    importlib.import_module(module).DESCRIPTOR.CopyToProto(file)
    for message in file.message_type:
        take(message, "")
    for enum in file.enum_type:
        enums[enum.name] = {value.name: value.number for value in enum.value}
json.dump({"messages": messages, "enums": enums}, sys.stdout)
"#;

/// What the modules of the installed `pycriu`, or of the one in `place`, declare.
pub(crate) fn descriptors(
    place: Option<&Path>,
    modules: impl Iterator<Item = String>,
) -> Result<Value, String> {
    let output = Command::new(PYTHON)
        .args(["-I", "-c", PRINT_DESCRIPTORS])
        .arg(place.unwrap_or(Path::new("")))
        .args(modules)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run {PYTHON}: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "cannot read the descriptors of pycriu, {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("descriptors of pycriu: {error}"))
}
