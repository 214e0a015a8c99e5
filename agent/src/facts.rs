//! What the agent tells the server about its host.

use std::fs;
use std::net::{IpAddr, SocketAddr};

use skein_wire::signal::v1::HostFacts;

use crate::clock;
use crate::config::Config;
use crate::mesh;
use crate::sys::{net, procfs};

/// Addresses reported; a container host may have thousands.
const IPS_MAX: usize = 64;

/// Where the worker listens.
#[derive(Clone, Debug, Default)]
pub struct Listening {
    /// `/metrics`; empty when off.
    pub metrics: String,
    /// For other agents; none when off.
    pub mesh: Option<SocketAddr>,
}

/// What the host calls itself.
pub fn hostname() -> String {
    first_line("/proc/sys/kernel/hostname")
}

/// Asks the host.
pub fn collect(config: &Config, listening: &Listening, agent_start_ms: i64) -> HostFacts {
    let addresses = net::addresses();
    let ips = ips(&addresses);
    let mesh = listening.mesh.map(|bound| mesh::addresses(bound, &ips));
    HostFacts {
        hostname: hostname(),
        ips: ips.iter().map(IpAddr::to_string).collect(),
        os: std::env::consts::OS.into(),
        os_version: os_version(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
        kernel: first_line("/proc/sys/kernel/osrelease"),
        arch: std::env::consts::ARCH.into(),
        cpu_count: cpu_count(),
        memory_bytes: memory_bytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
        agent_version: crate::VERSION.into(),
        boot_id: procfs::boot_id(),
        mac: mac(&addresses),
        labels: config.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        region: config.region.clone(),
        zone: config.zone.clone(),
        cloud_id: config.cloud_id,
        agent_start_ms,
        metrics_addr: listening.metrics.clone(),
        mesh_addresses: mesh.unwrap_or_default(),
    }
}

/// The host's address as it is now: the first of those that it reports.
pub fn ip() -> Option<String> {
    ips(&net::addresses()).first().map(IpAddr::to_string)
}

/// When this worker started, by the host's clock.
pub fn start_ms() -> i64 {
    clock::wall_ms() - clock::now_ms() as i64
}

/// IPv4 first: that is what operators of fleets select by.
fn ips(addresses: &[(String, IpAddr)]) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = addresses.iter().map(|(_, address)| *address).collect();
    ips.sort_by_key(|ip| ip.is_ipv6());
    ips.dedup();
    ips.truncate(IPS_MAX);
    ips
}

fn first_line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

fn os_version(os_release: &str) -> String {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    value.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
}

fn memory_bytes(meminfo: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

/// Processors of the host, not of our cgroup or affinity.
fn cpu_count() -> u32 {
    let online = first_line("/sys/devices/system/cpu/online");
    let ranges = online.split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        Some(last.checked_sub(first)? + 1)
    });
    ranges
        .sum::<Option<u32>>()
        .or_else(|| std::thread::available_parallelism().ok().map(|count| count.get() as u32))
        .unwrap_or(1)
}

/// 12 hex digits of the first interface with hardware behind it, else of the first that has an
/// address.
fn mac(addresses: &[(String, IpAddr)]) -> String {
    let mut names: Vec<String> = fs::read_dir("/sys/class/net")
        .map(|entries| {
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
        })
        .unwrap_or_default();
    names.retain(|name| fs::metadata(format!("/sys/class/net/{name}/device")).is_ok());
    names.sort();
    let addressed = addresses.iter().map(|(name, _)| name.clone());
    let digits = |name: String| {
        let text = first_line(&format!("/sys/class/net/{name}/address")).replace(':', "");
        let usable = text.len() == 12 && text.bytes().any(|digit| digit != b'0');
        usable.then_some(text)
    };
    names.into_iter().chain(addressed).find_map(digits).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_host_are_understood() {
        let release = "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        assert_eq!(os_version(release), "Debian GNU/Linux 12 (bookworm)");
        assert_eq!(memory_bytes("MemFree: 3 kB\nMemTotal:   2048 kB\n"), 2048 * 1024);
        assert_eq!(memory_bytes("garbage"), 0);
    }

    #[test]
    fn this_host_has_the_obvious_facts() {
        let bound = "127.0.0.1:60020".parse().unwrap();
        let listening = Listening { mesh: Some(bound), ..Listening::default() };
        let facts = collect(&Config::default(), &listening, start_ms());
        assert_eq!(facts.mesh_addresses, ["127.0.0.1:60020"]);
        assert!(!facts.hostname.is_empty() && !facts.kernel.is_empty());
        assert!(facts.cpu_count >= 1 && facts.memory_bytes > 0);
        assert_eq!(facts.os, "linux");
    }
}
