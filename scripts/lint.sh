#!/usr/bin/env bash
# Formatting and clippy over everything, tests included; warnings are errors.
source "$(dirname "$0")/lib.sh"
cargo fmt --all --check
cargo clippy -q --workspace --all-targets -- -D warnings
bash -n scripts/*.sh .ci/run
