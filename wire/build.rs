//! Compiles the protobuf schema with a compiler written in Rust, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let schema = ["proto/signal.proto", "proto/fleet.proto"];
    for file in schema {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(schema, ["proto"])?;
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors)?;
    Ok(())
}
