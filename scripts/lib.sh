# Sourced by the other scripts: how they speak, and where fetched tools live.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT=$PWD
TOOLS=$ROOT/.tools
export PATH="$TOOLS/bin:$TOOLS/venv/bin:$TOOLS/prometheus/usr/bin:$PATH:$HOME/.cargo/bin"
export CARGO_TERM_PROGRESS_WHEN=never

say() { printf '\n== %s\n' "$*"; }
note() { printf '   %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# stage NAME COMMAND...: runs it and says how long it took.
stage() {
  local name=$1 began=$SECONDS
  shift
  say "$name"
  "$@"
  note "$name: $((SECONDS - began)) s"
}
