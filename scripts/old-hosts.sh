#!/usr/bin/env bash
# Builds the agent for glibc 2.17 with zig as the linker, proves that the binary asks for nothing
# newer, and runs the agent's tests under a seccomp filter that answers ENOSYS to what old kernels
# lack: io_uring, openat2, statx, memfd_create, pidfd, clone3, copy_file_range, close_range.
source "$(dirname "$0")/lib.sh"
machine=$(uname -m)
target=$machine-unknown-linux-gnu

cargo build -q -p skein-agent --example enosys
runner=$ROOT/target/debug/examples/enosys
"$runner" --check

# The tests drive the real binary, so building them builds it.
cargo-zigbuild test -q --no-run -p skein-agent --target "$target.2.17"
agent=$ROOT/target/$target/debug/skein-agent
newest=$(readelf --version-info --wide "$agent" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1)
[ "$(printf '%s\nGLIBC_2.17\n' "$newest" | sort -V | tail -1)" = GLIBC_2.17 ] ||
  die "the agent needs $newest; something links a symbol that glibc 2.17 lacks"
note "the agent asks for $newest at most"
"$runner" "$agent" --version

runner_variable=CARGO_TARGET_$(tr 'a-z-' 'A-Z_' <<<"$target")_RUNNER
env "$runner_variable=$runner" cargo-zigbuild test -p skein-agent --target "$target.2.17"
