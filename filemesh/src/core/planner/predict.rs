//! The bound and each gear's time, from rates and bytes.

use super::shape::{Shape, ShapeInput};
use super::{Gear, Host, Limit, PlannerInput, PlannerSettings, Prediction};
use std::collections::BTreeMap;

/// What a transfer has to move over what, summed once.
pub(super) struct Load<'a> {
    input: &'a PlannerInput<'a>,
    settings: &'a PlannerSettings,
    hosts: f64,
    sources_up: f64,
    total_up: f64,
    wanted: f64,
    /// The longest that one host needs, and its rate.
    worst: (f64, f64),
    /// Rates and slowness of each target.
    rates: Vec<(f64, f64, bool)>,
    regions: BTreeMap<u16, Region>,
    rtt_ms: f64,
    hash_ms: f64,
}

/// What one region needs from outside.
#[derive(Default)]
struct Region {
    wanted: f64,
    held: f64,
    has_source: bool,
}

impl<'a> Load<'a> {
    pub(super) fn new(input: &'a PlannerInput<'a>, settings: &'a PlannerSettings) -> Self {
        let size = input.geometry.size_bytes() as f64;
        let limits = &input.limits;
        let rate = |known: Option<u64>, limit: Option<u64>| {
            let known = known.unwrap_or(settings.default_bytes_s);
            known.min(limit.unwrap_or(u64::MAX)).max(1) as f64
        };
        let up = |host: &Host| rate(host.rates.up_bytes_s, limits.up_bytes_s);
        let down = |host: &Host| rate(host.rates.down_bytes_s, limits.down_bytes_s);
        let most = limits.sources_bytes_s.map_or(f64::MAX, |most| most.max(1) as f64);
        let sources_up = input.sources.iter().map(up).sum::<f64>().clamp(1.0, most);
        let mut downs: Vec<f64> = input.targets.iter().map(down).collect();
        let half = downs.len() / 2;
        let median = if downs.is_empty() {
            1.0
        } else {
            *downs.select_nth_unstable_by(half, f64::total_cmp).1
        };
        let is_slow = |down: f64| down < settings.slow_share * median;
        let rates = input.targets.iter().map(|host| (up(host), down(host), is_slow(down(host))));
        let mut load = Self {
            input,
            settings,
            hosts: input.targets.len() as f64,
            sources_up,
            total_up: sources_up + input.targets.iter().map(up).sum::<f64>(),
            wanted: 0.0,
            worst: (0.0, down(&Host::default())),
            rates: rates.collect(),
            regions: BTreeMap::new(),
            rtt_ms: input.rtt_ms.unwrap_or(settings.default_rtt_ms),
            hash_ms: 0.0,
        };
        if !input.is_hashed {
            load.hash_ms = 1e3 * size / settings.hash_bytes_s.max(1) as f64;
        }
        for host in input.targets {
            let wanted = (size - host.held_bytes as f64).max(0.0);
            load.wanted += wanted;
            if wanted / down(host) >= load.worst.0 {
                load.worst = (wanted / down(host), down(host));
            }
            let region = load.regions.entry(host.place.region).or_default();
            region.wanted += wanted;
            region.held += (host.held_bytes as f64).min(size);
        }
        for source in input.sources {
            load.regions.entry(source.place.region).or_default().has_source = true;
        }
        load
    }

    /// Bytes that must leave the sources.
    fn fresh(&self) -> f64 {
        (self.input.fresh_bytes as f64).min(self.wanted)
    }

    /// What no gear can beat, and why.
    pub(super) fn bound(&self) -> (f64, Limit) {
        let (time, limit) = longest([
            (self.fresh() / self.sources_up, Limit::Sources(self.sources_up)),
            (self.worst.0, Limit::HostDown(self.worst.1)),
            (self.wanted / self.total_up, Limit::TotalUp(self.total_up)),
            self.borders(1.0),
        ]);
        (1e3 * time, limit)
    }

    /// The slowest border when each region fetches `copies` of what it lacks as a whole, or each
    /// of its hosts for itself where `copies` is infinite.
    fn borders(&self, copies: f64) -> (f64, Limit) {
        let size = self.input.geometry.size_bytes() as f64;
        let lack = |region: &Region| {
            let once = (size - region.held).max(0.0).min(region.wanted);
            if region.has_source { 0.0 } else { (once * copies).min(region.wanted) }
        };
        let mut worst = (0.0, Limit::Start(0.0));
        for border in self.input.borders {
            let Some(region) = self.regions.get(&border.region) else { continue };
            let (into, out) = (border.in_bytes_s.max(1) as f64, border.out_bytes_s.max(1) as f64);
            let mut time = lack(region) / into;
            let mut rate = into;
            let others: f64 = self.regions.values().map(lack).sum();
            // Only where every source is inside must everything come out.
            let is_only = self.regions.values().filter(|region| region.has_source).count() == 1;
            let leaves = if copies == 1.0 { others.min(size) } else { others };
            if region.has_source && is_only && leaves / out > time {
                (time, rate) = (leaves / out, out);
            }
            worst = longest([worst, (time, Limit::Border(border.region, rate))]);
        }
        worst
    }

    /// Every gear that is possible, in the order in which the simpler wins a tie.
    pub(super) fn gears(&self) -> Vec<Prediction> {
        let size = self.input.geometry.size_bytes();
        let mut gears = vec![];
        if self.input.can_inline && size <= self.settings.inline_bytes_max {
            gears.push(self.inline());
        }
        gears.push(self.direct());
        if self.hosts >= 1.0 {
            gears.extend([self.planned(), self.mesh()]);
        }
        gears
    }

    fn prediction(&self, gear: Gear, start: f64, rate: f64, moving: (f64, Limit)) -> Prediction {
        let guess_ms = start + self.settings.commit_ms;
        let starts = &self.input.starts;
        let start_ms = self.hash_ms + starts.expect(gear, guess_ms - self.hash_ms);
        let (time, mut limit) = (1e3 * moving.0, moving.1);
        if start_ms > time {
            limit = Limit::Start(start_ms);
        }
        Prediction { gear, time_ms: start_ms + time, start_ms, guess_ms, rate, limit }
    }

    /// From the order to the first byte asked for.
    fn session_ms(&self) -> f64 {
        let settings = self.settings;
        self.hash_ms + settings.start_ms + settings.session_rtts * self.rtt_ms
    }

    fn inline(&self) -> Prediction {
        let size = self.input.geometry.size_bytes() as f64;
        let settings = self.settings;
        let start = settings.inline_ms + self.rtt_ms / 2.0 + self.hosts * settings.inline_host_ms;
        let time = size * self.hosts / self.sources_up;
        let rate = self.sources_up / self.hosts.max(1.0);
        self.prediction(Gear::Inline, start, rate, (time, Limit::Sources(self.sources_up)))
    }

    pub(super) fn direct(&self) -> Prediction {
        let settings = self.settings;
        let start = self.session_ms() + self.hosts * settings.host_ms;
        let moving = longest([
            (self.wanted / self.sources_up, Limit::Sources(self.sources_up)),
            (self.worst.0, Limit::HostDown(self.worst.1)),
            self.borders(f64::INFINITY),
        ]);
        let rate = (self.sources_up / self.hosts.max(1.0)).min(self.worst.1);
        self.prediction(Gear::Direct, start, rate, moving)
    }

    fn planned(&self) -> Prediction {
        let settings = self.settings;
        let fast = || self.rates.iter().filter(|(_, _, is_slow)| !is_slow);
        let ups: Vec<f64> = fast().map(|(up, _, _)| *up).collect();
        let down_min = fast().map(|(_, down, _)| *down).fold(f64::MAX, f64::min);
        let shape = Shape::choose(
            &ShapeInput {
                geometry: self.input.geometry,
                source_up: self.sources_up,
                ups: &ups,
                leaves: self.rates.len() - ups.len(),
                down_min,
                rtt_ms: self.rtt_ms,
            },
            &settings.shape,
        );
        // Members that hold a part have the rest sooner; what nobody holds comes from the sources.
        let left = self.wanted / self.hosts.max(1.0);
        let limit = if shape.rate >= 0.99 * self.sources_up {
            Limit::Sources(self.sources_up)
        } else if shape.rate >= 0.99 * down_min {
            Limit::HostDown(down_min)
        } else {
            Limit::TotalUp(self.total_up)
        };
        let moving = longest([
            (left / shape.rate, limit),
            (self.fresh() / self.sources_up, Limit::Sources(self.sources_up)),
            (self.worst.0, Limit::HostDown(self.worst.1)),
            self.borders(1.0),
        ]);
        let moving = (moving.0 / settings.planned_share + shape.tail_ms / 1e3, moving.1);
        let start = self.session_ms() + settings.planned_ms;
        self.prediction(Gear::Planned, start, shape.rate, moving)
    }

    fn mesh(&self) -> Prediction {
        let settings = self.settings;
        let moving = longest([
            (self.fresh() / self.sources_up, Limit::Sources(self.sources_up)),
            (self.worst.0, Limit::HostDown(self.worst.1)),
            (self.wanted / self.total_up, Limit::TotalUp(self.total_up)),
            self.borders(settings.mesh_border_copies),
        ]);
        let rate = self.wanted / self.hosts.max(1.0) / moving.0.max(1e-9);
        // A piece spreads by doubling, whole pieces at a time.
        let piece = self.input.geometry.size_bytes().min(self.input.geometry.piece_bytes().into());
        let spread = (self.hosts + 1.0).log2() * piece as f64 / rate.max(1.0);
        let moving = (moving.0 / settings.mesh_share + spread, moving.1);
        let start = self.session_ms() + settings.mesh_ms;
        self.prediction(Gear::Mesh, start, rate, moving)
    }
}

fn longest<const N: usize>(terms: [(f64, Limit); N]) -> (f64, Limit) {
    terms.into_iter().fold((0.0, Limit::Start(0.0)), |longest, term| {
        if term.0 > longest.0 { term } else { longest }
    })
}
