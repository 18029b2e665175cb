//! Compiles the protocol and image definitions without protoc.

use std::io::{Error, Result};

fn main() -> Result<()> {
    let protos = [
        "proto/rpc.proto",
        "proto/images/stats.proto",
        "proto/images/inventory.proto",
        "proto/images/pstree.proto",
    ];
    for proto in protos {
        println!("cargo:rerun-if-changed={proto}");
    }
    let descriptors = protox::compile(protos, ["proto"]).map_err(Error::other)?;
    prost_build::Config::new().compile_fds(descriptors)
}
