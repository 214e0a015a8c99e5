//! Runs of the shipping core in the simulator, for tests.

#![allow(dead_code, clippy::unwrap_used, reason = "not every test needs everything")]

use skein_filemesh::core::planner::Gear;
use skein_sim::bound::bound;
use skein_sim::inventory::Inventory;
use skein_sim::mesh::{Content, Costs, MeshOutcome, run};
use skein_sim::outcome::HostEnd;
use skein_sim::queue::{Nanos, SECOND};
use skein_sim::random::Random;
use skein_sim::report::Quantiles;
use skein_sim::scenario::Fault;
use skein_sim::topology::{HostId, Topology};
use skein_sim::world::World;

pub const MIB: u64 = 1 << 20;

/// A run and its bound.
pub struct Run {
    pub topology: Topology,
    pub run: MeshOutcome,
    pub bound: Nanos,
    pub discrete_bound: Nanos,
    pub is_hurt: Vec<bool>,
    pub source_copies: f64,
    pub border_copies: Option<f64>,
}

impl Run {
    /// The last host over the bound.
    pub fn last(&self) -> f64 {
        let times = self.topology.targets().filter_map(|host| self.run.outcome.finished_at(host));
        times.max().unwrap_or_default() as f64 / self.bound as f64
    }

    /// When hosts whose names `which` names had the file, over the bound.
    pub fn last_of(&self, which: impl Fn(&str) -> bool) -> f64 {
        let hosts = self.topology.targets();
        let named = hosts.filter(|host| which(&self.topology.hosts[*host as usize].name));
        let times = named.filter_map(|host| self.run.outcome.finished_at(host));
        times.max().unwrap_or_default() as f64 / self.bound as f64
    }

    /// When 99 % of the hosts that no fault concerned had the file, over the bound.
    pub fn p99_untouched(&self) -> f64 {
        let untouched = self.topology.targets().filter(|host| !self.is_hurt[*host as usize]);
        let times = untouched.filter_map(|host| self.run.outcome.finished_at(host)).collect();
        let p99_s = Quantiles::of(times).map_or(f64::INFINITY, |quantiles| quantiles.p99_s);
        p99_s * SECOND as f64 / self.bound as f64
    }

    pub fn having(&self, end: HostEnd) -> Vec<&str> {
        let name = |host: HostId| self.topology.hosts[host as usize].name.as_str();
        let ends = &self.run.outcome.ends;
        self.topology.targets().filter(|host| ends[*host as usize] == end).map(name).collect()
    }

    pub fn is_whole(&self) -> bool {
        let not_finished = [HostEnd::Unfinished, HostEnd::Killed];
        not_finished.iter().all(|end| self.having(*end).is_empty())
    }
}

pub fn fleet(hosts: u32, rate: &str) -> String {
    format!(
        "[[host]]\nname='s'\nrate='{rate}'\n\
         [[host]]\nname='h{{}}'\ncount={hosts}\nrate='{rate}'\n"
    )
}

pub fn simulate(fleet: &str, size: u64, piece: u32, scale: u32, faults: &[&str], seed: u64) -> Run {
    simulate_with(Costs::default(), fleet, (size, piece, scale), faults, seed)
}

/// The same where control's work costs something else; the file is its size, that of its pieces,
/// and what one byte stands for.
pub fn simulate_with(
    costs: Costs,
    fleet: &str,
    (size, piece, scale): (u64, u32, u32),
    faults: &[&str],
    seed: u64,
) -> Run {
    let topology = Topology::new(&Inventory::parse(fleet).unwrap()).unwrap();
    let targets: Vec<_> = topology.targets().collect();
    let limit = bound(&topology, &targets, size, piece);
    let (bound, discrete_bound) = (limit.fluid, limit.discrete);
    let mut random = Random::new(seed);
    let plan = |line: &&str| {
        let fault: Fault = line.parse().unwrap();
        fault.plan(&topology, bound, &mut random).unwrap()
    };
    let faults = faults.iter().map(plan).collect();
    let content = Content::new(size, piece, scale, seed).unwrap();
    let mut world = World::new(topology.clone(), faults, 0, SECOND, seed);
    let run = run(&mut world, &content, Gear::Planned, costs, seed, 600 * SECOND);
    assert_eq!(run.false_writes, 0, "seed {seed}: a host wrote what is not the file");
    let copies = |link: u32| world.network.carried(link) as f64 / size as f64;
    let border = (!topology.regions.is_empty()).then(|| world.wiring.region(0)[1]).flatten();
    Run {
        source_copies: copies(world.wiring.host(topology.source)[0]),
        border_copies: border.map(copies),
        topology,
        run,
        bound,
        discrete_bound,
        is_hurt: world.is_hurt,
    }
}
