//! A network of hosts on one machine: a namespace per host, veth pairs into one bridge, HTB at a
//! host's rate in both directions, random loss on what a host receives.
//!
//! ```text
//!   host 0            hub: the bridge          host 1
//!   eth0 ═════════ h0 ─┐           ┌─ h1 ═════════ eth0
//!   HTB up      HTB down └── br0 ──┘ HTB down     HTB up
//! ```
//!
//! A lab can be divided: far hosts then are on a bridge of their own, and one pair of shaped devices
//! between the bridges is the border.
//!
//! The bridge has a namespace of its own, so nothing is made in the machine's own network, and
//! removing the namespaces removes everything. What is removed is only ever what a lab of this
//! process, or of one that is gone, has made.

mod blast;
mod host;
mod remove;

use std::net::Ipv4Addr;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, ensure};

pub use host::{Carried, Host};
pub use remove::{Cleanup, cleanup, end_with_signals};

/// Of every namespace that is made here.
const PREFIX: &str = "skein-lab-";

/// Hosts of one lab; their addresses are those of one /24.
pub const HOSTS_MAX: usize = 200;

/// Packets that wait for a shaped link.
const QUEUE_PACKETS: u32 = 300;

/// A running lab; its namespaces, and every process in them, end with it.
pub struct NetLab {
    hub: Host,
    hosts: Vec<Host>,
    _names: remove::Names,
    /// Says to others that the maker lives; let go after the namespaces.
    _held: UnixListener,
}

impl NetLab {
    /// Makes `count` hosts. The links have no limit until [`NetLab::shape`]. With `folder`, each
    /// host's processes see a folder of their own, `folder/hosts/NN`, as `folder/here`.
    pub fn start(count: usize, folder: Option<&Path>) -> anyhow::Result<Self> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        ensure!((2..=HOSTS_MAX).contains(&count), "a lab has 2 to {HOSTS_MAX} hosts");
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let lab = format!("{PREFIX}{}-{number}", std::process::id());
        let name = |host: &str| format!("{lab}-{host}");
        let held = remove::hold(&lab)?;
        let names: Vec<String> = (0..count).map(|host| name(&host.to_string())).collect();
        let hub = name("hub");
        // From here on an error removes what was made.
        let all = remove::Names::new(names.iter().cloned().chain([hub.clone()]).collect());
        let add = all.0.iter().map(|name| format!("netns add {name}"));
        batch("ip", None, add)?;
        let mut wires = vec!["link set lo up".to_owned(), "link add br0 type bridge".to_owned()];
        wires.push(format!("addr add {}/24 dev br0", Host::address_of(None)));
        wires.push("link set br0 up".to_owned());
        for (host, name) in names.iter().enumerate() {
            wires.push(format!("link add h{host} type veth peer name eth0 netns {name}"));
            wires.push(format!("link set h{host} master br0 up"));
        }
        batch("ip", Some(&hub), wires)?;
        for (host, name) in names.iter().enumerate() {
            let address = Host::address_of(Some(host));
            let lines = [
                "link set lo up".to_owned(),
                format!("addr add {address}/24 dev eth0"),
                "link set eth0 up".to_owned(),
                // For peers that find each other by multicast.
                "route add default dev eth0".to_owned(),
            ];
            batch("ip", Some(name), lines)?;
        }
        let open = |(host, name): (usize, &String)| Host::open(name, Some(host), folder);
        let hosts = names.iter().enumerate().map(open).collect::<anyhow::Result<Vec<_>>>()?;
        let hub = Host::open(&hub, None, None)?;
        let lab = Self { hub, hosts, _names: all, _held: held };
        for host in &lab.hosts {
            // Addresses of one kind keep every peer on the same links.
            host.within(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"))??;
        }
        Ok(lab)
    }

    /// All hosts.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Where the bridge is: reaches all hosts, without a limit of its own.
    pub fn hub(&self) -> &Host {
        &self.hub
    }

    /// Limits all hosts to `rate` bit/s in each direction.
    pub fn shape(&self, rate: u64) -> anyhow::Result<()> {
        let down = (0..self.hosts.len()).flat_map(|host| qdisc(&format!("h{host}"), rate));
        batch("tc", Some(self.hub.namespace()), down)?;
        for host in &self.hosts {
            batch("tc", Some(host.namespace()), qdisc("eth0", rate))?;
        }
        Ok(())
    }

    /// Changes the rate of one shaped host, also in mid-run.
    pub fn set_rate(&self, host: usize, rate: u64) -> anyhow::Result<()> {
        batch("tc", Some(self.hub.namespace()), [class(&format!("h{host}"), rate)])?;
        batch("tc", Some(self.hosts[host].namespace()), [class("eth0", rate)])
    }

    /// Puts these hosts behind a border of `rate` bit/s in each direction, all others before it.
    pub fn divide(&self, far: &[usize], rate: u64) -> anyhow::Result<()> {
        let hub = self.hub.namespace();
        if self.hub.carried_by("border")?.is_none() {
            let lines = [
                "link add br1 type bridge",
                "link set br1 up",
                "link add border type veth peer name border1",
                "link set border master br0 up",
                "link set border1 master br1 up",
            ];
            batch("ip", Some(hub), lines.map(str::to_owned))?;
        }
        let bridge = |host: &usize| if far.contains(host) { "br1" } else { "br0" };
        let moved = (0..self.hosts.len()).map(|host| {
            let bridge = bridge(&host);
            format!("link set h{host} master {bridge}")
        });
        batch("ip", Some(hub), moved)?;
        batch("tc", Some(hub), ["border", "border1"].into_iter().flat_map(|end| qdisc(end, rate)))
    }

    /// What the border has carried so far: received is what came out of the far region, sent what
    /// went into it. None before [`NetLab::divide`].
    pub fn crossed(&self) -> anyhow::Result<Option<Carried>> {
        self.hub.carried_by("border")
    }

    /// Has every connection with ports `ports` of a host end at its port `port` instead, and none
    /// leave it for such a port.
    pub fn capture(&self, host: usize, ports: &str, port: u16) -> anyhow::Result<()> {
        let rules = format!(
            "table ip captured {{}}\nflush table ip captured\ntable ip captured {{\n chain in {{\n  \
             type nat hook prerouting priority -100;\n  tcp dport {ports} redirect to :{port}\n \
             }}\n chain out {{\n  type filter hook output priority 0;\n  \
             tcp dport {ports} reject with tcp reset\n }}\n}}\n"
        );
        self.rules(host, &rules)
    }

    /// Undoes [`NetLab::capture`].
    pub fn release(&self, host: usize) -> anyhow::Result<()> {
        self.rules(host, "table ip captured {}\ndelete table ip captured\n")
    }

    fn rules(&self, host: usize, rules: &str) -> anyhow::Result<()> {
        let mut nft = Command::new("nft");
        nft.args(["-f", "-"]);
        self.hosts[host].within(|| feed(&mut nft, rules))?
    }

    /// Has a host lose `permille` of the packets that it receives. Packets then leave all hosts
    /// one by one: otherwise a loss would be that of a whole train of them.
    pub fn set_loss(&self, host: usize, permille: u32) -> anyhow::Result<()> {
        let rules = format!(
            "table ip lab {{}}\nflush table ip lab\ntable ip lab {{\n chain in {{\n  \
             type filter hook input priority 0;\n  \
             iifname \"eth0\" numgen random mod 1000 < {permille} drop\n }}\n}}\n"
        );
        self.rules(host, &rules)?;
        for host in &self.hosts {
            batch("ip", Some(host.namespace()), ["link set dev eth0 gso_max_segs 1".to_owned()])?;
        }
        Ok(())
    }

    /// What TCP gets from host `from` to host `to`, bytes/s.
    pub fn goodput(&self, from: usize, to: usize) -> anyhow::Result<f64> {
        blast::goodput(&self.hosts[from], &self.hosts[to])
    }
}

/// A shaped device: HTB with one class, and a queue that drops at its end.
fn qdisc(device: &str, rate: u64) -> [String; 3] {
    [
        format!("qdisc replace dev {device} root handle 1: htb default 1"),
        class(device, rate),
        format!("qdisc replace dev {device} parent 1:1 handle 10: pfifo limit {QUEUE_PACKETS}"),
    ]
}

fn class(device: &str, rate: u64) -> String {
    format!(
        "class replace dev {device} parent 1: classid 1:1 \
         htb rate {rate}bit ceil {rate}bit burst 64k cburst 64k quantum 1514"
    )
}

/// Runs lines of `ip` or `tc` in one process, in a namespace.
fn batch(
    program: &str,
    namespace: Option<&str>,
    lines: impl IntoIterator<Item = String>,
) -> anyhow::Result<()> {
    let mut command = Command::new(program);
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    command.args(["-batch", "-"]);
    let text: String = lines.into_iter().map(|line| line + "\n").collect();
    feed(&mut command, &text)
}

/// Runs a command with `text` as its input.
fn feed(command: &mut Command, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{name} is missing (Debian: iproute2, nftables)"))?;
    // A child that ends early says why on its error output.
    let fed = child.stdin.take().context("no input")?.write_all(text.as_bytes());
    let output = child.wait_with_output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} failed (are you root?): {}", errors.trim());
    Ok(fed?)
}

/// The network of all labs: they never meet, as each has a bridge of its own.
const NETWORK: [u8; 3] = [10, 231, 77];

impl Host {
    /// Of a host by its number; of the hub without one.
    fn address_of(number: Option<usize>) -> Ipv4Addr {
        let [a, b, c] = NETWORK;
        // HOSTS_MAX keeps this within a byte.
        Ipv4Addr::new(a, b, c, number.map_or(1, |number| number as u8 + 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shaped_device_has_one_class_at_its_rate() {
        let [root, class, queue] = qdisc("eth0", 20_000_000);
        assert_eq!(root, "qdisc replace dev eth0 root handle 1: htb default 1");
        assert!(class.contains("rate 20000000bit ceil 20000000bit burst 64k"));
        assert!(queue.ends_with("pfifo limit 300"));
    }

    #[test]
    fn addresses_are_of_one_network_and_differ() {
        assert_eq!(Host::address_of(None), Ipv4Addr::new(10, 231, 77, 1));
        assert_eq!(Host::address_of(Some(0)), Ipv4Addr::new(10, 231, 77, 2));
        let last = Host::address_of(Some(HOSTS_MAX - 1));
        assert_eq!(last, Ipv4Addr::new(10, 231, 77, 201));
    }
}
