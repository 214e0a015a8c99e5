//! What a run says: how long, against the bound, over which links, and who did not get it.

use crate::bound::Bound;
use crate::outcome::{HostEnd, Outcome};
use crate::queue::{Nanos, SECOND};
use crate::topology::{HostId, LinkKind};
use crate::units::{show_bytes, show_time};
use crate::world::World;
use serde::Serialize;
use std::fmt::Write as _;

/// Links that are listed at most.
const BUSIEST_MAX: usize = 8;

/// Hosts without the file that are named at most.
const NAMES_MAX: usize = 10;

/// What was asked.
#[derive(Debug, Clone, Serialize)]
pub struct Question {
    /// How the file travels.
    pub gear: String,
    /// Its size.
    pub size_bytes: u64,
    /// The size of its pieces.
    pub piece_bytes: u32,
    /// Hosts that are to receive it.
    pub hosts: usize,
    /// The seed.
    pub seed: u64,
    /// The faults, as they were given.
    pub faults: Vec<String>,
}

/// When hosts had the file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Quantiles {
    /// How many finished.
    pub count: usize,
    /// The first.
    pub first_s: f64,
    /// Half of them.
    pub median_s: f64,
    /// 90 %.
    pub p90_s: f64,
    /// 99 %.
    pub p99_s: f64,
    /// All.
    pub last_s: f64,
}

impl Quantiles {
    /// The quantiles of these times; `None` without any.
    pub fn of(mut times: Vec<Nanos>) -> Option<Self> {
        times.sort_unstable();
        let at = |share: f64| {
            let rank = (times.len() as f64 * share).ceil() as usize;
            seconds(times[rank.clamp(1, times.len()) - 1])
        };
        (!times.is_empty()).then(|| Self {
            count: times.len(),
            first_s: at(0.0),
            median_s: at(0.5),
            p90_s: at(0.9),
            p99_s: at(0.99),
            last_s: at(1.0),
        })
    }
}

/// What one link carried.
#[derive(Debug, Clone, Serialize)]
pub struct LinkUse {
    /// Whose.
    pub name: String,
    /// Which of its links.
    pub kind: LinkKind,
    /// Payload bytes.
    pub bytes: u64,
    /// Of what it could have carried until the last host finished.
    pub utilisation: f64,
}

/// How often the file crossed a region's border.
#[derive(Debug, Clone, Serialize)]
pub struct Crossing {
    /// The region.
    pub region: String,
    /// File sizes that left it; only where the border has a rate.
    pub out_copies: Option<f64>,
    /// File sizes that entered it.
    pub in_copies: Option<f64>,
}

/// What only a run of the shipping core can say.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CoreFacts {
    /// Bytes that one simulated byte of the file stood for.
    pub scale: u32,
    /// Plans that the coordinator sent.
    pub plans: u64,
    /// Time that it worked, as it was charged.
    pub coordinator_ms: u64,
    /// Connections that were made.
    pub connections: u64,
    /// Bytes per host and piece between control and hosts: of reports, plans, and signed lists.
    pub control_bytes: [f64; 3],
    /// Writes that were not the file's bytes: a defect if not 0.
    pub false_writes: u64,
}

/// The answer.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What was asked.
    pub question: Question,
    /// No schedule is faster.
    pub bound_s: f64,
    /// No schedule with pieces of this size is faster.
    pub discrete_bound_s: f64,
    /// What makes the bound.
    pub bound_reason: String,
    /// Hosts that have the file.
    pub finished: Option<Quantiles>,
    /// Of these, hosts that no fault concerned.
    pub untouched: Option<Quantiles>,
    /// Time of the last host over the bound; nothing if a living host did not finish.
    pub last_over_bound: Option<f64>,
    /// Hosts that were killed and stayed so.
    pub killed: usize,
    /// Living hosts without the file.
    pub unfinished: usize,
    /// Some of their names.
    pub unfinished_names: Vec<String>,
    /// What the source sent, in file sizes.
    pub source_copies: f64,
    /// Borders.
    pub borders: Vec<Crossing>,
    /// The links that were used most.
    pub busiest: Vec<LinkUse>,
    /// Blocks that were refused because they were false.
    pub refused_blocks: u64,
    /// What arrived twice, in file sizes over all hosts.
    pub wasted_copies: f64,
    /// When nothing more happened, or the run was given up.
    pub ended_s: f64,
    /// Of gears that run the shipping core.
    pub core: Option<CoreFacts>,
}

fn seconds(nanos: Nanos) -> f64 {
    nanos as f64 / SECOND as f64
}

impl Report {
    /// Judges `outcome`.
    pub fn new<T>(question: Question, bound: &Bound, outcome: &Outcome, world: &World<T>) -> Self {
        let topology = &world.topology;
        let times = |only_untouched: bool| {
            let targets = topology.targets();
            let meant = targets.filter(|host| !only_untouched || !world.is_hurt[*host as usize]);
            meant.filter_map(|host| outcome.finished_at(host)).collect::<Vec<_>>()
        };
        let having = |end: HostEnd| {
            topology.targets().filter(move |host| outcome.ends[*host as usize] == end)
        };
        let unfinished: Vec<HostId> = having(HostEnd::Unfinished).collect();
        let finished = Quantiles::of(times(false));
        let last = times(false).into_iter().max().filter(|_| unfinished.is_empty());
        let last = last.unwrap_or(outcome.ended_at);
        let size = question.size_bytes.max(1) as f64;
        let copies = |link: Option<u32>| link.map(|link| world.network.carried(link) as f64 / size);
        let borders = (0..).zip(&topology.regions).map(|(number, region)| {
            let [out, into] = world.wiring.region(number);
            let (out_copies, in_copies) = (copies(out), copies(into));
            Crossing { region: region.name.clone(), out_copies, in_copies }
        });
        let is_over = unfinished.is_empty() && bound.fluid > 0;
        let name = |host: &HostId| topology.hosts[*host as usize].name.clone();
        Self {
            bound_s: seconds(bound.fluid),
            discrete_bound_s: seconds(bound.discrete),
            bound_reason: bound.reason.clone(),
            last_over_bound: finished
                .as_ref()
                .filter(|_| is_over)
                .map(|finished| finished.last_s / seconds(bound.fluid)),
            finished,
            untouched: Quantiles::of(times(true)).filter(|_| world.is_hurt.contains(&true)),
            killed: having(HostEnd::Killed).count(),
            unfinished: unfinished.len(),
            unfinished_names: unfinished.iter().take(NAMES_MAX).map(name).collect(),
            source_copies: copies(Some(world.wiring.host(topology.source)[0])).unwrap_or_default(),
            borders: borders.filter(|crossing| crossing.in_copies.is_some()).collect(),
            busiest: busiest(world, last),
            refused_blocks: outcome.refused_blocks,
            wasted_copies: outcome.wasted_bytes as f64 / size,
            ended_s: seconds(outcome.ended_at),
            core: None,
            question,
        }
    }

    /// The answer in words.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let asked = &self.question;
        let time = |s: f64| show_time((s * SECOND as f64) as Nanos);
        let mut line = |name: &str, value: String| {
            let _ = writeln!(out, "{name:<11} {value}");
        };
        let (size, piece) =
            (show_bytes(asked.size_bytes as f64), show_bytes(asked.piece_bytes.into()));
        let pieces = asked.size_bytes.div_ceil(u64::from(asked.piece_bytes));
        line("file", format!("{size} to {} hosts, {pieces} pieces of {piece}", asked.hosts));
        line("gear", format!("{}, seed {}", asked.gear, asked.seed));
        asked.faults.iter().for_each(|fault| line("fault", fault.clone()));
        let (bound, discrete) = (time(self.bound_s), time(self.discrete_bound_s));
        line("bound", format!("{bound} ({}); with these pieces {discrete}", self.bound_reason));
        match (&self.finished, self.last_over_bound) {
            (Some(finished), Some(ratio)) => {
                line("last host", format!("{} = {ratio:.3} x bound", time(finished.last_s)));
            }
            _ => line("last host", "not all hosts got the file".into()),
        }
        let parts = [("finished", &self.finished), ("untouched", &self.untouched)];
        for (name, part) in parts.into_iter().filter_map(|(name, of)| Some((name, of.as_ref()?))) {
            let [first, median, p90, p99, last] =
                [part.first_s, part.median_s, part.p90_s, part.p99_s, part.last_s].map(time);
            let text = format!("first {first}, median {median}, 90% {p90}, 99% {p99}, last {last}");
            line(name, format!("{} hosts: {text}", part.count));
        }
        if self.killed > 0 {
            line("killed", format!("{} hosts", self.killed));
        }
        if self.unfinished > 0 {
            let names = self.unfinished_names.join(", ");
            let more = if self.unfinished > NAMES_MAX { ", ..." } else { "" };
            line("unfinished", format!("{} hosts: {names}{more}", self.unfinished));
        }
        line("source", format!("sent {:.3} x the file", self.source_copies));
        for crossing in &self.borders {
            let show =
                |copies: Option<f64>| copies.map_or("-".into(), |copies| format!("{copies:.3}"));
            let (into, out) = (show(crossing.in_copies), show(crossing.out_copies));
            line("border", format!("{}: {into} x the file in, {out} out", crossing.region));
        }
        if self.refused_blocks > 0 {
            line("refused", format!("{} false blocks", self.refused_blocks));
        }
        if self.wasted_copies > 0.0 {
            line("twice", format!("{:.4} x the file over all hosts", self.wasted_copies));
        }
        if let Some(core) = &self.core {
            let CoreFacts { scale, plans, coordinator_ms, connections, false_writes, .. } = core;
            let work = format!("{plans} plans, coordinator busy {coordinator_ms} ms");
            line("core", format!("{work}, {connections} connections, scale {scale}"));
            let [reports, plans, lists] = core.control_bytes;
            let hints = reports + plans;
            let parts = format!("reports {reports:.3}, plans {plans:.3}");
            let text = format!("{hints:.3} bytes per host and piece ({parts}); lists {lists:.3}");
            line("control", text);
            if *false_writes > 0 {
                line("DEFECT", format!("{false_writes} writes are not the file's bytes"));
            }
        }
        for link in &self.busiest {
            let LinkUse { name, bytes, utilisation, .. } = link;
            let (share, bytes) = (utilisation * 100.0, show_bytes(*bytes as f64));
            line("link", format!("{share:5.1}%  {bytes:>9}  {} {name}", kind_name(link.kind)));
        }
        out
    }
}

/// What a kind of link is called.
pub fn kind_name(kind: LinkKind) -> &'static str {
    match kind {
        LinkKind::HostUp => "host up",
        LinkKind::HostDown => "host down",
        LinkKind::RackUp => "rack up",
        LinkKind::RackDown => "rack down",
        LinkKind::BorderOut => "border out",
        LinkKind::BorderIn => "border in",
    }
}

/// What a link is called, whose it is.
pub fn link_name<T>(world: &World<T>, link: u32) -> (LinkKind, &str) {
    let (kind, whose) = world.wiring.names[link as usize];
    let topology = &world.topology;
    let name = match kind {
        LinkKind::HostUp | LinkKind::HostDown => &topology.hosts[whose as usize].name,
        LinkKind::RackUp | LinkKind::RackDown => &topology.racks[whose as usize].name,
        LinkKind::BorderOut | LinkKind::BorderIn => &topology.regions[whose as usize].name,
    };
    (kind, name)
}

/// Links by the share of their rate that was used until `last`.
fn busiest<T>(world: &World<T>, last: Nanos) -> Vec<LinkUse> {
    let use_of = |link: u32| {
        let (kind, name) = link_name(world, link);
        let bytes = world.network.carried(link);
        // A link that is cut or slowed at the end is judged by what is left; that is rare and shows.
        let could = world.network.capacity(link) * seconds(last);
        let utilisation = if could > 0.0 { bytes as f64 / could } else { 0.0 };
        LinkUse { name: name.to_owned(), kind, bytes, utilisation }
    };
    let mut order: Vec<(u64, u32)> = (0..world.wiring.names.len() as u32)
        .map(|link| {
            let share = world.network.carried(link) as f64 / world.network.capacity(link).max(1.0);
            (u64::MAX - (share * SECOND as f64) as u64, link)
        })
        .collect();
    order.sort_unstable();
    order.into_iter().take(BUSIEST_MAX).map(|(_, link)| use_of(link)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_nearest_rank() {
        let times = (1..=200).rev().map(|s| s * SECOND).collect();
        let quantiles = Quantiles::of(times).unwrap();
        assert_eq!((quantiles.first_s, quantiles.median_s), (1.0, 100.0));
        assert_eq!((quantiles.p90_s, quantiles.p99_s, quantiles.last_s), (180.0, 198.0, 200.0));
        assert_eq!(Quantiles::of(vec![]), None);
    }
}
