#!/usr/bin/env bash
# Unpacks Debian's rsyslog and syslog-ng below target/perf/peers/root, beside the system and without
# installing a service, for `skein-perf pipeline`.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD/target/perf/peers
mkdir -p "$root/deb"
cd "$root/deb"
apt-get download rsyslog rsyslog-gnutls syslog-ng-core \
  libestr0 libfastjson4 liblognorm5 libivykis0 libnet1 libpcre3
for package in *.deb; do dpkg -x "$package" "$root/root"; done
echo "rsyslog and syslog-ng are below target/perf/peers/root"
