#!/usr/bin/env bash
# Licences, banned and duplicate crates, and sources of all dependencies. The advisory database is
# not consulted: it has to be fetched from a place of its own; `cargo deny check advisories` does.
source "$(dirname "$0")/lib.sh"
if ! have cargo-deny; then
  note "installing cargo-deny into .tools (some minutes)"
  cargo install -q --locked --root "$TOOLS" cargo-deny
fi
cargo deny --offline check licenses bans sources
