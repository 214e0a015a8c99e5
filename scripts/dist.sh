#!/usr/bin/env bash
# Binaries to install: the server for this machine's glibc, the agent for glibc 2.17.
source "$(dirname "$0")/lib.sh"
scripts/bootstrap.sh test
target=$(uname -m)-unknown-linux-gnu
cargo build --profile dist --bins -p skein
cargo-zigbuild zigbuild --profile dist --bins -p skein-agent --target "$target.2.17"
mkdir -p target/dist-out
cp target/dist/skein "target/$target/dist/skein-agent" target/dist-out/
ls -l target/dist-out
