#!/usr/bin/env bash
# Installs what is missing on a bare Debian 12: for `build` a C compiler (and says how to get Rust),
# for `test` also promtool and prometheus (unpacked into .tools, no service is started), zig as the
# linker for old glibc (a Python environment in .tools) and the BitTorrent clients that ours is
# tried with; for `mesh` the programs that bulk distribution is measured beside, and those that make
# a network of namespaces.
source "$(dirname "$0")/lib.sh"
need=${1:-build}
rust_wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif have sudo; then sudo "$@"
  else die "cannot install packages without root or sudo; run as root: $*"
  fi
}

apt_updated=
apt_update() {
  [ -n "$apt_updated" ] || as_root apt-get update -qq
  apt_updated=yes
}

# package COMMAND PACKAGE: installs the package when the command is missing.
package() {
  have "$1" && return
  have apt-get || die "$1 is missing; install your distribution's package of it (Debian: $2)"
  note "installing $2"
  apt_update
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null
}

# module PACKAGE: the same for a package without a command of its own.
module() {
  dpkg -s "$1" >/dev/null 2>&1 && return
  have dpkg || die "$1 is missing; only Debian's package of it is known"
  note "installing $1"
  apt_update
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1" >/dev/null
}

install_rust() {
  if ! have cargo && have rustup; then rustup toolchain install stable --profile minimal -c rustfmt -c clippy; fi
  if ! have cargo; then
    die "Rust $rust_wanted or newer is missing. Install it with rustup (https://rustup.rs), open a new shell and try again"
  fi
  local found
  found=$(rustc --version | awk '{ print $2 }')
  if [ "$(printf '%s\n%s\n' "$rust_wanted" "$found" | sort -V | head -1)" != "$rust_wanted" ]; then
    die "Rust $found is installed, $rust_wanted or newer is needed: run \`rustup update stable\`"
  fi
}

# Debian's own Python has Debian's libtorrent, whatever other Python comes first in the path.
install_libtorrent() {
  /usr/bin/python3 -c 'import libtorrent' 2>/dev/null && return
  note "installing python3-libtorrent"
  apt_update
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-libtorrent >/dev/null
}

install_prometheus() {
  have promtool && have prometheus && return
  note "fetching promtool and prometheus into .tools"
  mkdir -p "$TOOLS/prometheus"
  apt_update
  (cd "$TOOLS/prometheus" && apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb . && rm -f prometheus_*.deb)
}

install_zig() {
  [ -x "$TOOLS/venv/bin/cargo-zigbuild" ] && return
  note "fetching zig and cargo-zigbuild into .tools/venv"
  python3 -m venv "$TOOLS/venv" 2>/dev/null || {
    package python3 python3
    apt_update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null
    python3 -m venv "$TOOLS/venv"
  }
  "$TOOLS/venv/bin/pip" install -q --disable-pip-version-check 'ziglang==0.13.*' 'cargo-zigbuild>=0.20,<1'
}

package cc build-essential
install_rust
case $need in
  build) ;;
  test)
    have cargo-fmt && have cargo-clippy || rustup component add rustfmt clippy
    package curl curl
    package openssl openssl
    package python3 python3
    package aria2c aria2
    package transmission-show transmission-cli
    install_libtorrent
    install_prometheus
    install_zig
    ;;
  mesh)
    package ip iproute2
    package nft nftables
    package aria2c aria2
    package transmission-cli transmission-cli
    package udp-sender udpcast
    package rsync rsync
    module python3-libtorrent
    ;;
  *) die "usage: bootstrap.sh [build|test|mesh]" ;;
esac
