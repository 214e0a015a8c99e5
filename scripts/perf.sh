#!/usr/bin/env bash
# Runs a measurement with release builds: `scripts/perf.sh NAME ARGS...`; without a name it lists
# them. perf/results/ keeps reports with their conditions.
source "$(dirname "$0")/lib.sh"
if [ $# -eq 0 ]; then
  echo "scripts/perf.sh NAME [ARGS], with NAME one of:"
  awk '/^    \/\/\/ / { sub(/^ *\/\/\/ /, ""); doc = $0 }
       /^    [A-Z][a-z]+\(/ { name = $1; sub(/\(.*/, "", name); printf "  %-10s %s\n", tolower(name), doc }' perf/src/main.rs
  exit
fi
# `mesh` stands beside programs of other packages; this says which it installs.
if [ "$1" = mesh ]; then scripts/bootstrap.sh mesh; fi
# Sites are made of the shipped binaries, which stand beside the harness.
cargo build -q --release -p skein -p skein-agent -p skein-perf -p skein-sim
exec target/release/skein-perf "$@"
