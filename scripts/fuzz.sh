#!/usr/bin/env bash
# Fuzzes every decoder for FUZZ_SECONDS each. Finds land in fuzz/artifacts; put what was fixed into
# fuzz/seeds, where `make test` replays it.
source "$(dirname "$0")/lib.sh"
seconds=${FUZZ_SECONDS:-60}
rustup toolchain list | grep -q nightly || die "fuzzing needs a nightly toolchain: \`rustup toolchain install nightly\`"
have cargo-fuzz || cargo install -q --locked --root "$TOOLS" cargo-fuzz
for target in $(cargo +nightly fuzz list); do
  say "$target"
  mkdir -p "fuzz/corpus/$target"
  cargo +nightly fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
    -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=65536
done
