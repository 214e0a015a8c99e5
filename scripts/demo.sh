#!/usr/bin/env bash
# `make demo`: builds, then lets `skein demo` show it. KEEP=1 leaves the server and the agents
# running.
source "$(dirname "$0")/lib.sh"
if [ -z "${SKEIN_BUILT:-}" ]; then
  scripts/bootstrap.sh build
  say "building (the first time takes some minutes)"
  cargo build --bins -p skein -p skein-agent
fi
flags=()
[ -z "${KEEP:-}" ] || flags+=(--keep)
exec target/debug/skein demo --report target/demo/report.json "${flags[@]}" "$@"
