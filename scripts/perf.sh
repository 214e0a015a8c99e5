#!/usr/bin/env bash
# Lists the measurements, or runs one: `scripts/perf.sh NAME ARGS...` is the release build of
# perf's program of that name. perf/README.md says what each shows and under which conditions.
source "$(dirname "$0")/lib.sh"
if [ $# -eq 0 ]; then
  echo "scripts/perf.sh NAME [ARGS], with NAME one of:"
  for source in perf/src/bin/*; do
    name=$(basename "$source" .rs)
    summary=$(sed -n '1s|^//! *||p' "$( [ -d "$source" ] && echo "$source/main.rs" || echo "$source")")
    printf '  %-18s %s\n' "$name" "$summary"
  done
  exit
fi
name=$1
shift
exec cargo run -q --release -p skein-perf --bin "$name" -- "$@"
