//! The least time in which a file can reach everybody, whatever the schedule.
//!
//! Three arguments, each applied to every cut of the tree of hosts, racks and regions: who is
//! inside must let one copy in; the source's side must let one copy out; and a set needs as many
//! copies as it has hosts, which come over its edge or from those inside it. For a flat network
//! this is Kumar and Ross's max(F/us, F/dmin, N F/(us + Σ ui)).

use crate::queue::{Nanos, SECOND};
use crate::topology::{HostId, Topology};

/// The bound and what makes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Bound {
    /// Least time of the last host, for a file that can be divided at will.
    pub fluid: Nanos,
    /// The same with pieces: log2 of the hosts more piece times pass before all take part.
    pub discrete: Nanos,
    /// What the limit is.
    pub reason: String,
}

/// The bound for `size_bytes` in pieces of `piece_bytes` from the source to `targets`.
pub fn bound(topology: &Topology, targets: &[HostId], size_bytes: u64, piece_bytes: u32) -> Bound {
    let size = size_bytes as f64;
    let (mut seconds, mut reason) = (0.0, String::from("nothing to send"));
    let mut limit = |candidate: f64, why: &dyn Fn() -> String| {
        if candidate > seconds {
            (seconds, reason) = (candidate, why());
        }
    };
    if targets.is_empty() {
        return Bound { fluid: 0, discrete: 0, reason };
    }
    let source = &topology.hosts[topology.source as usize];
    limit(size / source.up, &|| format!("{} sends one copy", source.name));
    let mut sum = source.up;
    for target in targets {
        let host = &topology.hosts[*target as usize];
        limit(size / host.down, &|| format!("{} receives one copy", host.name));
        sum += host.up;
    }
    let copies = targets.len() as f64;
    limit(copies * size / sum, &|| "all hosts together send one copy to each".into());
    let of_region = |host: HostId| topology.hosts[host as usize].region;
    let of_rack = |host: HostId| topology.hosts[host as usize].rack;
    for (what, groups, of) in [
        ("rack", &topology.racks, &of_rack as &dyn Fn(HostId) -> Option<u32>),
        ("region", &topology.regions, &of_region),
    ] {
        let mut inside = vec![(0u32, 0.0); groups.len()];
        for target in targets {
            if let Some(group) = of(*target) {
                inside[group as usize].0 += 1;
                inside[group as usize].1 += topology.hosts[*target as usize].up;
            }
        }
        for (number, (group, (count, up))) in (0..).zip(groups.iter().zip(inside)) {
            let copies = f64::from(count) * size;
            if of(topology.source) == Some(number) {
                if (count as usize) < targets.len() {
                    limit(size / group.up, &|| format!("one copy leaves {what} {}", group.name));
                }
                let supply = group.down + up + source.up;
                limit(copies / supply, &|| format!("{what} {} serves its hosts", group.name));
            } else if count > 0 {
                limit(size / group.down, &|| format!("one copy enters {what} {}", group.name));
                let supply = group.down + up;
                limit(copies / supply, &|| format!("{what} {} serves its hosts", group.name));
            }
        }
    }
    let pieces = size_bytes.div_ceil(u64::from(piece_bytes)).max(1) as f64;
    let ramp = f64::from(copies_log2(targets.len())) / pieces;
    let nanos = |seconds: f64| (seconds * SECOND as f64) as Nanos;
    Bound { fluid: nanos(seconds), discrete: nanos(seconds * (1.0 + ramp)), reason }
}

/// floor(log2(hosts)): the rounds in which the number of holders doubles.
fn copies_log2(hosts: usize) -> u32 {
    hosts.checked_ilog2().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Inventory;

    fn of(text: &str, size_bytes: u64) -> Bound {
        let text = format!("[network]\nefficiency='100%'\n{text}");
        let topology = Topology::new(&Inventory::parse(&text).unwrap()).unwrap();
        let targets: Vec<_> = topology.targets().collect();
        bound(&topology, &targets, size_bytes, 1_000_000)
    }

    #[test]
    fn the_limit_is_found_and_named() {
        let source = "[[host]]\nname='s'\nrate='100MB/s'\n";
        let many = "[[host]]\nname='h{}'\ncount=8\nrate='100MB/s'\n";
        let size = 1_000_000_000;
        for (text, seconds, reason) in [
            (many, 10.0, "s sends one copy"),
            ("[[host]]\nname='h'\ndown='20MB/s'\nup='1GB/s'\n", 50.0, "h receives one copy"),
            ("[[host]]\nname='h{}'\ncount=9\nup='10MB/s'\ndown='1GB/s'\n", 9e3 / 190.0, "together"),
            (
                "[[region]]\nname='far'\nrate='10MB/s'\n\
                 [[host]]\nname='h{}'\ncount=3\nrate='100MB/s'\nregion='far'\n",
                100.0,
                "one copy enters region far",
            ),
            (
                "[[rack]]\nname='r'\nrate='50MB/s'\n\
                 [[host]]\nname='h{}'\ncount=10\nup='10MB/s'\ndown='1GB/s'\nrack='r'\n",
                10e3 / 150.0,
                "rack r serves its hosts",
            ),
        ] {
            let bound = of(&format!("{source}{text}"), size);
            assert!((bound.fluid as f64 / 1e9 - seconds).abs() < 1e-3, "{text}: {bound:?}");
            assert!(bound.reason.contains(reason), "{bound:?}");
        }
        // 8 hosts, 1000 pieces: three piece times of 10 ms more.
        let bound = of(&format!("{source}{many}"), size);
        assert_eq!((bound.fluid, bound.discrete), (10_000_000_000, 10_030_000_000));
    }
}
