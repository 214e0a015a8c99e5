#!/usr/bin/env bash
# Runs one test program for at most SKEIN_TEST_SECONDS (default 1200), so that a test that hangs is
# a failure with a name and not a run without an end. `scripts/test.sh` makes it cargo's runner.
limit=${SKEIN_TEST_SECONDS:-1200}
timeout --kill-after=10 "$limit" "$@"
status=$?
if ((status == 124 || status == 137)); then
  echo "FAILED: ${1##*/} did not end within $limit s; above, \"has been running\" names what hangs" >&2
fi
exit "$status"
