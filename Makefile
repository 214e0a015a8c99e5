# What a person types. Every target is a script in scripts/ that also runs by itself.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.PHONY: help demo test lint fmt build deny docs fuzz perf dist clean

help: ## show this list
	@echo "Skein: scripts, files and telemetry between one server and a fleet of hosts."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## a server and six agents here, a push, streams, a script (KEEP=1 leaves it running)
	@KEEP="$(KEEP)" scripts/demo.sh

test: ## everything that proves it works, at most 45 minutes from cold on 2 cores
	@scripts/test.sh

lint: ## formatting and clippy, warnings are errors
	@scripts/lint.sh

fmt: ## format the sources
	@cargo fmt --all

build: ## the two binaries, as demo and test use them
	@scripts/bootstrap.sh build
	@cargo build --bins -p skein -p skein-agent

docs: ## rewrite the generated pages of docs/
	@SKEIN_REWRITE=1 cargo test -q -p skein-observe --test metrics_reference

deny: ## licences, bans and sources of dependencies (installs cargo-deny into .tools)
	@scripts/deny.sh

fuzz: ## fuzz every decoder, FUZZ_SECONDS each (default 60); needs a nightly toolchain
	@scripts/fuzz.sh

perf: ## what can be measured, and how
	@scripts/perf.sh

dist: ## release binaries; the agent for glibc 2.17
	@scripts/dist.sh

clean: ## remove everything that was built or fetched
	@cargo clean; rm -rf .tools fuzz/target
