//! The shape of interleaved trees: how many stripes, at which rate, and what their depth costs.
//!
//! With `k` stripes at a rate `r` each edge of a tree carries `r / k`. A member that sends `u`
//! therefore feeds `k u / r` children, all trees together, and whole children only: that is why
//! more stripes suit uneven rates. A stripe's pipeline ends `k - 1` piece times after the source's
//! last byte (it sends piece after piece, each to another stripe), and each hop adds the time of
//! one relayed block at the edge's rate and half a round trip. The shape is the one that ends
//! first; a rate below what the links allow makes trees flatter and wins for short files.

use crate::core::geometry::{BLOCK_BYTES, Geometry};
use crate::core::plan::STRIPES_MAX;

/// What a shape may be, and what its parts cost.
#[derive(Clone, Debug, PartialEq)]
pub struct ShapeSettings {
    /// Bytes that are proved and relayed at a time: a block; more where a model is coarser.
    pub relay_bytes: u32,
    /// Stripes at least, if hosts and pieces allow: one member that fails or is slow then holds
    /// up at most this part of the file for those behind it.
    pub stripes_min: u16,
    /// Pieces of each stripe at least: with fewer, the last round of pieces is the transfer.
    pub pieces_per_stripe_min: u32,
    /// How far a member's children may exceed its rate: rates are measured to a few per cent, and
    /// a member that is short of a whole child by less is given it.
    pub round_up: f64,
    /// Copies of the file that a member sends at most, where the others can carry the rest.
    pub share_max: f64,
    /// Hosts that may stand in one chain.
    pub chain_max: usize,
    /// Part of the time that is lost at each hop for each further child on a full link.
    pub sharing_loss: f64,
}

impl Default for ShapeSettings {
    fn default() -> Self {
        Self {
            relay_bytes: BLOCK_BYTES,
            stripes_min: 4,
            pieces_per_stripe_min: 4,
            round_up: 1.02,
            share_max: 2.0,
            chain_max: 64,
            sharing_loss: 0.025,
        }
    }
}

/// What the shape depends on. Rates are in bytes per second and above zero.
#[derive(Clone, Debug)]
pub struct ShapeInput<'a> {
    /// The file.
    pub geometry: Geometry,
    /// What all sources together send.
    pub source_up: f64,
    /// What each target that may have children sends.
    pub ups: &'a [f64],
    /// Targets that only receive, because they are slow.
    pub leaves: usize,
    /// What the slowest of the others receives.
    pub down_min: f64,
    /// A round trip between two members.
    pub rtt_ms: f64,
}

/// Shape of the trees of one plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Number of trees.
    pub stripes: u16,
    /// Rate at which every member receives the file, bytes per second.
    pub rate: f64,
    /// Children of one member at most, in all stripes.
    pub children_max: u32,
    /// Hops from the source to the last member, about.
    pub depth: u32,
    /// Time from the source's last byte to the last member's.
    pub tail_ms: f64,
}

impl Shape {
    /// The shape that ends first.
    pub fn choose(input: &ShapeInput<'_>, settings: &ShapeSettings) -> Self {
        let hosts = input.ups.len() + input.leaves;
        let pieces = input.geometry.piece_count().max(1);
        let by_pieces = pieces / settings.pieces_per_stripe_min.max(1);
        let most = by_pieces.min(u32::try_from(hosts).unwrap_or(u32::MAX));
        let most = most.clamp(1, STRIPES_MAX.into()) as u16;
        let least = settings.stripes_min.clamp(1, most);
        let levels = Levels::new(input.ups);
        let mut best: Option<(f64, Self)> = None;
        for stripes in (least..=most).filter(|stripes| *stripes <= 8 || stripes % 4 == 0) {
            for flatter in [1.0, 2.0, 4.0, 8.0] {
                let shape = Self::of(input, settings, &levels, stripes, flatter);
                let time = shape.time_ms(input.geometry.size_bytes());
                if best.is_none_or(|(least, _)| time < least) {
                    best = Some((time, shape));
                }
            }
        }
        let chain = Self::of(input, settings, &levels, 1, 1.0);
        let Some((time, trees)) = best else { return chain };
        let time = time + trees.sharing_ms(input.geometry.size_bytes(), hosts, settings);
        let is_chain = (chain.depth as usize) == hosts && hosts <= settings.chain_max;
        if is_chain && chain.time_ms(input.geometry.size_bytes()) < time { chain } else { trees }
    }

    /// What trees lose that a chain does not. Connections that share a full link do so unevenly, and
    /// whoever gets less than its part has less to pass on. In namespaces, 16 hosts took 1.15 of the
    /// bound with four children each and 1.07 in a chain; 48 hosts, one hop more, 1.5 and 1.16.
    fn sharing_ms(&self, size_bytes: u64, hosts: usize, settings: &ShapeSettings) -> f64 {
        let fan = f64::from(self.stripes.max(1));
        let lost = settings.sharing_loss * (fan - 1.0) * f64::from(depth(hosts as f64, fan));
        lost * 1e3 * size_bytes as f64 / self.rate
    }

    fn of(
        input: &ShapeInput<'_>,
        settings: &ShapeSettings,
        levels: &Levels,
        stripes: u16,
        flatter: f64,
    ) -> Self {
        let k = f64::from(stripes);
        let hosts = (input.ups.len() + input.leaves) as f64;
        let total = input.source_up + levels.sum();
        let fluid = input.source_up.min(input.down_min).min(total / hosts.max(1.0));
        let mut shape = Self { stripes, rate: fluid, children_max: 0, depth: 1, tail_ms: 0.0 };
        // The source gives what it has; the rest must be whole children of targets.
        let fits = |rate: f64, cap: f64| {
            let source = whole(input.source_up * k / rate * settings.round_up);
            source + levels.children(k / rate * settings.round_up, cap) >= k * hosts
        };
        let mut cap = (settings.share_max * k).max(1.0);
        if !fits(fluid, f64::MAX) {
            let (mut low, mut high) = (fluid / 64.0, fluid);
            for _ in 0..24 {
                let middle = (low + high) / 2.0;
                *if fits(middle, f64::MAX) { &mut low } else { &mut high } = middle;
            }
            shape.rate = low;
        }
        while !fits(shape.rate, cap) && cap < k * hosts {
            cap *= 2.0;
        }
        shape.rate /= flatter;
        cap *= flatter;
        shape.children_max = cap.min(f64::from(u32::MAX)) as u32;
        let fan = (k * levels.top() / shape.rate * settings.round_up).floor().clamp(1.0, cap);
        shape.depth = depth(hosts, fan);
        let edge_ms = 1e3 * k / shape.rate;
        let last = (k - 1.0) * f64::from(input.geometry.piece_bytes()) * 1e3 / shape.rate;
        let relay = settings.relay_bytes.min(input.geometry.piece_bytes());
        let hop = f64::from(relay) * edge_ms + input.rtt_ms / 2.0;
        shape.tail_ms = last.min(1e3 * input.geometry.size_bytes() as f64 / shape.rate)
            + f64::from(shape.depth) * hop;
        shape
    }

    /// From the source's first byte to the last member's last, for a file of `size_bytes`.
    pub fn time_ms(&self, size_bytes: u64) -> f64 {
        1e3 * size_bytes as f64 / self.rate + self.tail_ms
    }

    /// Children that a member sending `up` may have in all stripes together.
    pub fn children(&self, up: f64, settings: &ShapeSettings) -> u32 {
        let children = whole(up * f64::from(self.stripes) / self.rate * settings.round_up);
        (children as u32).min(self.children_max)
    }
}

/// Hops that reach `hosts` when every member feeds `fan` others. The last hops of interleaved
/// trees go to leaves.
fn depth(hosts: f64, fan: f64) -> u32 {
    if fan < 1.5 {
        return hosts.max(1.0) as u32;
    }
    let levels = (hosts.max(1.0) * (fan - 1.0) + 1.0).ln() / fan.ln();
    levels.ceil().max(1.0) as u32
}

fn whole(children: f64) -> f64 {
    children.floor().clamp(0.0, 1e9)
}

/// Rates with how many members have each: most fleets have few different ones.
struct Levels(Vec<(f64, f64)>);

impl Levels {
    fn new(ups: &[f64]) -> Self {
        let mut sorted = ups.to_vec();
        sorted.sort_by(f64::total_cmp);
        let mut levels: Vec<(f64, f64)> = vec![];
        for up in sorted {
            match levels.last_mut() {
                Some((same, count)) if *same == up => *count += 1.0,
                _ => levels.push((up, 1.0)),
            }
        }
        Self(levels)
    }

    fn sum(&self) -> f64 {
        self.0.iter().map(|(up, count)| up * count).sum()
    }

    /// Whole children of all members, at most `cap` of each.
    fn children(&self, per_byte: f64, cap: f64) -> f64 {
        self.0.iter().map(|(up, count)| whole(up * per_byte).min(cap) * count).sum()
    }

    /// The rate of which the upper half begins.
    fn top(&self) -> f64 {
        let half = self.0.iter().map(|(_, count)| count).sum::<f64>() / 2.0;
        let mut seen = 0.0;
        let found = self.0.iter().find(|(_, count)| {
            seen += count;
            seen >= half
        });
        found.map_or(1.0, |(up, _)| *up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MBIT: f64 = 125_000.0;

    fn shape(size_bytes: u64, piece_bytes: u32, source: f64, ups: &[f64]) -> Shape {
        let geometry = Geometry::new(size_bytes, piece_bytes).unwrap();
        let down_min = 1e12;
        let input =
            ShapeInput { geometry, source_up: source, ups, leaves: 0, down_min, rtt_ms: 0.5 };
        Shape::choose(&input, &ShapeSettings::default())
    }

    #[test]
    fn equal_hosts_get_the_fluid_rate_in_a_chain_or_few_trees() {
        for (hosts, mbit, mib) in [(16, 20.0, 32), (48, 8.0, 16), (8, 100.0, 16), (500, 100.0, 64)]
        {
            let size = mib << 20;
            let piece = crate::core::manifest::choose_piece_bytes(size, hosts);
            let shape = shape(size, piece, mbit * MBIT, &vec![mbit * MBIT; hosts as usize]);
            let stripes = if hosts > 64 { 4 } else { 1 };
            assert_eq!((shape.stripes, shape.rate), (stripes, mbit * MBIT), "{hosts}");
            let bound = 1e3 * size as f64 / shape.rate;
            assert!(shape.time_ms(size) < 1.06 * bound, "{hosts}: {shape:?} of {bound} ms");
        }
    }

    #[test]
    fn uneven_rates_get_more_stripes_rather_than_wasted_parts() {
        let ups: Vec<f64> = (0..100).map(|host| MBIT * (90.0 + f64::from(host % 20))).collect();
        let shape = shape(1 << 30, 1 << 20, 105.0 * MBIT, &ups);
        assert!(shape.stripes > 4 && shape.rate > 0.95 * 99.0 * MBIT, "{shape:?}");
    }

    #[test]
    fn a_short_file_gets_a_flat_tree() {
        let short = shape(64 << 10, 64 << 10, 1e3 * MBIT, &[1e3 * MBIT; 200]);
        assert_eq!(short.stripes, 1);
        assert!(short.rate < 600.0 * MBIT && short.depth < 9, "{short:?}");
        assert_eq!(shape(0, 65_536, MBIT, &[]).stripes, 1);
    }

    #[test]
    fn children_follow_the_rate_up_to_the_cap() {
        let shape = shape(64 << 20, 128 << 10, 8.0 * MBIT, &[100.0 * MBIT; 50]);
        assert_eq!(shape.rate, 8.0 * MBIT);
        let settings = ShapeSettings::default();
        assert_eq!(shape.children(100.0 * MBIT, &settings), shape.children_max);
        assert_eq!(shape.children(7.9 * MBIT, &settings), u32::from(shape.stripes));
        assert_eq!(shape.children(1.0 * MBIT, &settings), 0);
    }
}
