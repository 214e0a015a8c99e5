//! The fleet as links: which of them a connection between two hosts uses.
//!
//! ```text
//!   host a ─up─► rack ─up─► region ─up─► (core) ─down─► region ─down─► rack ─down─► host b
//! ```
//! A rack's links are used between racks, a region's between regions; the core between them is
//! never the limit.

use crate::inventory::{Common, HOSTS_MAX, HostGroup, Inventory, InventoryError, Shared, numbered};
use crate::network::{LinkId, Network, Path};
use crate::queue::Nanos;
use std::collections::HashMap;

/// A host's number.
pub type HostId = u32;

/// Both directions of something that hosts share.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// What leaves it; payload bytes per second, infinity if it is never the limit.
    pub up: f64,
    /// What enters it.
    pub down: f64,
    /// Added one way on each crossing.
    pub latency: Nanos,
    /// Share of segments lost on each crossing.
    pub loss: f64,
    /// A rack's region.
    pub region: Option<u32>,
}

/// A host.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Payload bytes per second that it can send.
    pub up: f64,
    /// Payload bytes per second that it can receive.
    pub down: f64,
    /// To the next switch, one way.
    pub latency: Nanos,
    /// Share of segments lost on its own link.
    pub loss: f64,
    /// Its rack.
    pub rack: Option<u32>,
    /// Its region.
    pub region: Option<u32>,
}

/// All hosts and what they share.
#[derive(Debug, Clone)]
pub struct Topology {
    /// Hosts.
    pub hosts: Vec<Host>,
    /// Racks.
    pub racks: Vec<Group>,
    /// Regions.
    pub regions: Vec<Group>,
    /// Who has the file.
    pub source: HostId,
    /// What one socket holds.
    pub socket_buffer_bytes: u64,
}

fn bad(what: String) -> InventoryError {
    InventoryError::Meaning(what)
}

impl Topology {
    /// The fleet that `inventory` describes.
    pub fn new(inventory: &Inventory) -> Result<Self, InventoryError> {
        let common = &inventory.network;
        let regions = groups(&inventory.regions, common, &HashMap::new())?;
        let region_numbers = numbers(&regions, "region")?;
        let racks = groups(&inventory.racks, common, &region_numbers)?;
        let rack_numbers = numbers(&racks, "rack")?;
        let mut hosts: Vec<Host> = vec![];
        let mut sources = vec![];
        for group in &inventory.hosts {
            if group.source {
                sources.push(hosts.len() as HostId);
            }
            if hosts.len() + group.count as usize > HOSTS_MAX {
                return Err(bad(format!("more than {HOSTS_MAX} hosts")));
            }
            if group.source && group.count != 1 {
                return Err(bad(format!("host {}: one source, not {}", group.name, group.count)));
            }
            for number in 0..group.count {
                hosts.push(host(group, number, common, &racks, &rack_numbers, &region_numbers)?);
            }
        }
        let mut names: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(bad(format!("two hosts are named {}", twice[0])));
        }
        if hosts.len() < 2 || sources.len() > 1 {
            let (hosts, sources) = (hosts.len(), sources.len());
            return Err(bad(format!("{hosts} hosts, {sources} of them sources; need 2 and 1")));
        }
        let source = sources.first().copied().unwrap_or(0);
        let socket_buffer_bytes = common.socket_buffer.0;
        Ok(Self { hosts, racks, regions, source, socket_buffer_bytes })
    }

    /// Who is to receive the file.
    pub fn targets(&self) -> impl Iterator<Item = HostId> + '_ {
        (0..self.hosts.len() as HostId).filter(|host| *host != self.source)
    }
}

fn host(
    group: &HostGroup,
    number: u32,
    common: &Common,
    racks: &[Group],
    rack_numbers: &HashMap<String, u32>,
    region_numbers: &HashMap<String, u32>,
) -> Result<Host, InventoryError> {
    if group.count > 1 && !group.name.contains("{}") {
        return Err(bad(format!("host {}: several need {{}} in their name", group.name)));
    }
    let name = numbered(&group.name, number);
    let rate = |rate: Option<crate::units::Rate>| rate.or(group.rate).map(|rate| rate.0);
    let (Some(up), Some(down)) = (rate(group.up), rate(group.down)) else {
        return Err(bad(format!("host {name}: no rate, or only one of up and down")));
    };
    let rack = match (&group.rack, group.per_rack) {
        (None, None) => None,
        (Some(rack), Some(per_rack)) if per_rack > 0 && rack.contains("{}") => {
            Some(numbered(rack, number / per_rack))
        }
        (Some(rack), None) if !rack.contains("{}") => Some(rack.clone()),
        _ => return Err(bad(format!("host {name}: rack with {{}} and per_rack go together"))),
    };
    let rack = rack.map(|rack| find(rack_numbers, &rack, "rack", &name)).transpose()?;
    let region = group.region.as_ref().map(|region| find(region_numbers, region, "region", &name));
    let (region, of_rack) =
        (region.transpose()?, rack.and_then(|rack| racks[rack as usize].region));
    if region.is_some() && of_rack.is_some() && region != of_rack {
        return Err(bad(format!("host {name} and its rack are in different regions")));
    }
    // A loss of everything would be a cut link.
    let loss = group.loss.map_or(0.0, |loss| loss.0).min(0.9);
    let payload = common.efficiency.0 * (1.0 - loss);
    Ok(Host {
        name,
        up: up * payload,
        down: down * payload,
        latency: group.latency.0,
        loss,
        rack,
        region: region.or(of_rack),
    })
}

fn groups(
    shared: &[Shared],
    common: &Common,
    regions: &HashMap<String, u32>,
) -> Result<Vec<Group>, InventoryError> {
    let mut groups = vec![];
    for entry in shared {
        if entry.count > 1 && !entry.name.contains("{}") {
            return Err(bad(format!("{}: several need {{}} in their name", entry.name)));
        }
        if groups.len() + entry.count as usize > HOSTS_MAX {
            return Err(bad(format!("more than {HOSTS_MAX} racks or regions")));
        }
        let region =
            entry.region.as_ref().map(|region| find(regions, region, "region", &entry.name));
        let region = region.transpose()?;
        let loss = entry.loss.map_or(0.0, |loss| loss.0).min(0.9);
        let rate = |rate: Option<crate::units::Rate>| {
            let rate = rate.or(entry.rate).map_or(f64::INFINITY, |rate| rate.0);
            rate * common.efficiency.0 * (1.0 - loss)
        };
        let (up, down, latency) = (rate(entry.up), rate(entry.down), entry.latency.0);
        groups.extend((0..entry.count).map(|number| {
            let name = numbered(&entry.name, number);
            Group { name, up, down, latency, loss, region }
        }));
    }
    Ok(groups)
}

fn numbers(groups: &[Group], what: &str) -> Result<HashMap<String, u32>, InventoryError> {
    let mut numbers = HashMap::new();
    for (number, group) in (0..).zip(groups) {
        if numbers.insert(group.name.clone(), number).is_some() {
            return Err(bad(format!("two {what}s are named {}", group.name)));
        }
    }
    Ok(numbers)
}

fn find(
    numbers: &HashMap<String, u32>,
    name: &str,
    what: &str,
    of: &str,
) -> Result<u32, InventoryError> {
    numbers.get(name).copied().ok_or_else(|| bad(format!("{of}: there is no {what} {name}")))
}

/// What a link is, for reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// What a host sends.
    HostUp,
    /// What a host receives.
    HostDown,
    /// What leaves a rack.
    RackUp,
    /// What enters a rack.
    RackDown,
    /// What leaves a region.
    BorderOut,
    /// What enters a region.
    BorderIn,
}

/// The links of a topology in a network.
pub struct Wiring {
    hosts: Vec<[LinkId; 2]>,
    racks: Vec<[Option<LinkId>; 2]>,
    regions: Vec<[Option<LinkId>; 2]>,
    /// What each link is and whose, by number.
    pub names: Vec<(LinkKind, u32)>,
}

impl Wiring {
    /// Adds the links of `topology` to `network`.
    pub fn new<T>(topology: &Topology, network: &mut Network<T>) -> Self {
        let mut names = vec![];
        let mut add = |rate: f64, kind: LinkKind, whose: usize| {
            names.push((kind, whose as u32));
            network.add_link(rate)
        };
        let mut hosts = vec![];
        for (at, host) in topology.hosts.iter().enumerate() {
            let up = add(host.up, LinkKind::HostUp, at);
            hosts.push([up, add(host.down, LinkKind::HostDown, at)]);
        }
        let mut pairs = |groups: &[Group], kinds: [LinkKind; 2]| {
            let pair = |(at, group): (usize, &Group)| {
                let rates = [group.up, group.down];
                [0, 1].map(|way| {
                    let rate: f64 = rates[way];
                    rate.is_finite().then(|| add(rate, kinds[way], at))
                })
            };
            groups.iter().enumerate().map(pair).collect()
        };
        let racks = pairs(&topology.racks, [LinkKind::RackUp, LinkKind::RackDown]);
        let regions = pairs(&topology.regions, [LinkKind::BorderOut, LinkKind::BorderIn]);
        Self { hosts, racks, regions, names }
    }

    /// A host's link, up and down.
    pub fn host(&self, host: HostId) -> [LinkId; 2] {
        self.hosts[host as usize]
    }

    /// A rack's links up and down, where they have a rate.
    pub fn rack(&self, rack: u32) -> [Option<LinkId>; 2] {
        self.racks[rack as usize]
    }

    /// A region's links out and in, where they have a rate.
    pub fn region(&self, region: u32) -> [Option<LinkId>; 2] {
        self.regions[region as usize]
    }

    /// What a connection's direction from one host to another runs over.
    pub fn path(&self, topology: &Topology, from: HostId, to: HostId) -> Path {
        let (a, b) = (&topology.hosts[from as usize], &topology.hosts[to as usize]);
        let (mut links, mut latency) = (vec![self.hosts[from as usize][0]], a.latency + b.latency);
        let mut kept = (1.0 - a.loss) * (1.0 - b.loss);
        let mut cross = |group: &Group, link: Option<LinkId>| {
            links.extend(link);
            latency += group.latency;
            kept *= 1.0 - group.loss;
        };
        let of = |all: &[[Option<LinkId>; 2]], at: u32, way: usize| all[at as usize][way];
        for (way, (own, other)) in [(a, b), (b, a)].into_iter().enumerate() {
            if let Some(rack) = own.rack.filter(|_| own.rack != other.rack) {
                cross(&topology.racks[rack as usize], of(&self.racks, rack, way));
            }
            if let Some(region) = own.region.filter(|_| own.region != other.region) {
                cross(&topology.regions[region as usize], of(&self.regions, region, way));
            }
        }
        links.push(self.hosts[to as usize][1]);
        Path { links, latency, loss: 1.0 - kept }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(text: &str) -> Result<Topology, String> {
        let inventory = Inventory::parse(text).map_err(|error| error.to_string())?;
        Topology::new(&inventory).map_err(|error| error.to_string())
    }

    #[test]
    fn the_example_is_a_fleet_with_the_paths_it_says() {
        let topology = topology(Inventory::EXAMPLE).unwrap();
        assert_eq!(topology.hosts.len(), 82);
        let by_name = |name: &str| {
            topology.hosts.iter().position(|host| host.name == name).unwrap() as HostId
        };
        let mut network = Network::<()>::new(1, 0, 1);
        let wiring = Wiring::new(&topology, &mut network);
        let kinds = |from: &str, to: &str| {
            let path = wiring.path(&topology, by_name(from), by_name(to));
            let kinds: Vec<_> =
                path.links.iter().map(|link| wiring.names[*link as usize]).collect();
            (kinds, path.latency)
        };
        use LinkKind::*;
        let (source, first, last) = (by_name("source"), by_name("web1"), by_name("web60"));
        assert_eq!(kinds("source", "web1"), (vec![(HostUp, source), (HostDown, first)], 50_000));
        let across = vec![(HostUp, source), (RackUp, 0), (RackDown, 2), (HostDown, last)];
        assert_eq!(kinds("source", "web60"), (across, 50_000));
        let (branch, old) = (by_name("branch20"), by_name("old"));
        let border = vec![(HostUp, branch), (BorderOut, 1), (RackDown, 2), (HostDown, old)];
        assert_eq!(kinds("branch20", "old"), (border, 15_050_000));
        let loss = wiring.path(&topology, branch, old).loss;
        assert!((loss - 0.0001).abs() < 1e-9, "{loss}");
        let down = topology.hosts[old as usize].down;
        assert!((down - 125e6 * 0.957).abs() < 1.0, "{down}");
    }

    #[test]
    fn contradictions_are_named() {
        let two = "[[host]]\nname='a'\nrate='1Gbit'\n[[host]]\nname='b'\nrate='1Gbit'\n";
        assert!(topology(two).is_ok());
        for (text, says) in [
            ("", "0 hosts"),
            ("[[host]]\nname='a'\ncount=2\nrate='1Gbit'", "several need {}"),
            ("[[host]]\nname='a{}'\ncount=2\nup='1Gbit'", "no rate"),
            ("[[host]]\nname='a{}'\ncount=2\nrate='1Gbit'\nrack='x'", "no rack x"),
            ("[[host]]\nname='a{}'\ncount=2\nrate='1'", "`1` is not a rate"),
            ("[[host]]\nname='a{}'\ncount=2\nrate='1Gbit'\ncolour='red'", "unknown field"),
            (&format!("{two}[[host]]\nname='a'\nrate='1Gbit'"), "two hosts are named a"),
            ("[[host]]\nname='a{}'\ncount=4000000000\nrate='1Gbit'", "more than 200000 hosts"),
        ] {
            let error = topology(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
