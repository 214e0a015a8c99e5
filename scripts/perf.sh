#!/usr/bin/env bash
# `make perf` lists the measurements; `scripts/perf.sh NAME ARGS...` runs one from a release build.
# Results with their conditions are in perf/results.
source "$(dirname "$0")/lib.sh"
scripts/bootstrap.sh build
if [ $# -eq 0 ]; then set -- --help; fi
cargo build -q --release --bins -p skein -p skein-agent -p skein-perf
exec target/release/skein-perf "$@"
