//! How a file is to travel: which gear, how long it will take, and why, in one sentence.
//!
//! [`plan`] is a pure function of what is known: sizes, hosts and what they hold, measured or
//! default rates, borders and limits. It computes the fluid bound, which no gear can beat,
//! predicts each gear from its own terms, and takes the least. The terms and their settings are in
//! `docs/filemesh.md`. Afterwards [`judge`] says which share of the bound was reached.

mod explain;
mod judge;
mod predict;
mod shape;

#[cfg(test)]
mod tests;

pub use judge::{Causes, Judgement, judge};
pub use shape::{Shape, ShapeInput, ShapeSettings};

use super::geometry::Geometry;
use super::place::{Place, Rates};
use std::fmt;

/// Files up to this size can travel inside a message of the signal channel, bytes.
pub const INLINE_BYTES_MAX: u64 = 32 * 1024;

/// How a file travels. All but inline work on one piece map, so that a change keeps every
/// verified block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Gear {
    /// Inside the order itself.
    Inline,
    /// From the sources to each target.
    Direct,
    /// Along interleaved trees, with the mesh as repair.
    Planned,
    /// Rarest first between all, without a plan.
    Mesh,
}

impl fmt::Display for Gear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inline => "inline",
            Self::Direct => "direct",
            Self::Planned => "planned",
            Self::Mesh => "mesh",
        })
    }
}

/// A source or a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Where it stands.
    pub place: Place,
    /// How fast it is, as far as that is known.
    pub rates: Rates,
    /// Verified bytes of the file that it holds; of a source nobody asks.
    pub held_bytes: u64,
}

/// What passes the border of a region, where that is less than its hosts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Border {
    /// Which region.
    pub region: u16,
    /// Into it, bytes per second.
    pub in_bytes_s: u64,
    /// Out of it, bytes per second.
    pub out_bytes_s: u64,
}

/// Rate limits of a transfer, bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of all sources together.
    pub sources_bytes_s: Option<u64>,
    /// Of what each host sends.
    pub up_bytes_s: Option<u64>,
    /// Of what each host receives.
    pub down_bytes_s: Option<u64>,
}

/// What gears need beside moving bytes, as it was measured: from the order to the first byte, and
/// from the last to the finished file, milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Starts {
    measured: [Option<f64>; 4],
    /// The most by which one took longer than was guessed, as a factor.
    slower: f64,
}

impl Starts {
    /// What was measured of a gear.
    pub fn of(&self, gear: Gear) -> Option<f64> {
        self.measured[gear as usize]
    }

    /// Enters it, with what the settings guessed.
    pub fn set(&mut self, gear: Gear, start_ms: f64, guess_ms: f64) {
        self.measured[gear as usize] = Some(start_ms);
        self.slower = self.slower.max(start_ms / guess_ms.max(1e-3));
    }

    /// What to expect of a gear. Where one was slower than guessed, the machines are, and a gear that
    /// was not measured is no better: it must not look good for being unknown.
    fn expect(&self, gear: Gear, guess_ms: f64) -> f64 {
        self.of(gear).unwrap_or(guess_ms * self.slower.max(1.0))
    }
}

/// What a decision depends on.
#[derive(Clone, Debug)]
pub struct PlannerInput<'a> {
    /// The file.
    pub geometry: Geometry,
    /// Whether its hash tree is known; otherwise hashing comes first.
    pub is_hashed: bool,
    /// Whether its content is where orders are made, so that it can travel in one.
    pub can_inline: bool,
    /// Bytes that no target holds; the file's size when a transfer starts from nothing.
    pub fresh_bytes: u64,
    /// Hosts that hold the whole file.
    pub sources: &'a [Host],
    /// Hosts that are to get it.
    pub targets: &'a [Host],
    /// Thin borders; others do not limit.
    pub borders: &'a [Border],
    /// What the operator allows.
    pub limits: Limits,
    /// A round trip between two hosts, if measured.
    pub rtt_ms: Option<f64>,
    /// What transfers to as many hosts showed; the settings' costs where they did not.
    pub starts: Starts,
}

/// Costs and thresholds. The times are from arithmetic and single measurements on shaped links;
/// whoever has measured a grid of their own network sets them.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannerSettings {
    /// Largest file that travels inline, at most [`INLINE_BYTES_MAX`].
    pub inline_bytes_max: u64,
    /// Rate of a host of which none is known, bytes per second.
    pub default_bytes_s: u64,
    /// A round trip where none is measured.
    pub default_rtt_ms: f64,
    /// Hashing at the source, bytes per second.
    pub hash_bytes_s: u64,
    /// From the order to the host's first connection: stored, signed, sent, kept, opened.
    pub start_ms: f64,
    /// Round trips until the first byte is asked for: TCP, TLS, HELLO, handshake.
    pub session_rtts: f64,
    /// What the source spends on each host that it serves itself.
    pub host_ms: f64,
    /// From an inline order to its file's first byte: stored, signed, sent, kept.
    pub inline_ms: f64,
    /// What the source spends on each inline order, beside its bytes.
    pub inline_host_ms: f64,
    /// Flush and rename of the finished file.
    pub commit_ms: f64,
    /// Rendezvous of a plan: members join, plans are made, members connect.
    pub planned_ms: f64,
    /// Rendezvous of a mesh: until most have something that others want.
    pub mesh_ms: f64,
    /// Part of its links' rate that a plan uses.
    pub planned_share: f64,
    /// Part of its links' rate that rarest first uses (idealised swarms reach 0.86 to 0.93).
    pub mesh_share: f64,
    /// Copies of the file that a mesh moves over a region's border.
    pub mesh_border_copies: f64,
    /// A host that receives less than this share of the median is slow.
    pub slow_share: f64,
    /// How far progress may leave the prediction before it is time to plan again.
    pub drift_share: f64,
    /// The shape of trees.
    pub shape: ShapeSettings,
}

impl Default for PlannerSettings {
    fn default() -> Self {
        Self {
            inline_bytes_max: INLINE_BYTES_MAX,
            default_bytes_s: 125_000_000,
            default_rtt_ms: 0.5,
            hash_bytes_s: 1_500_000_000,
            start_ms: 8.0,
            session_rtts: 4.0,
            host_ms: 0.2,
            inline_ms: 3.0,
            inline_host_ms: 0.05,
            commit_ms: 5.0,
            planned_ms: 40.0,
            mesh_ms: 100.0,
            planned_share: 0.97,
            mesh_share: 0.9,
            mesh_border_copies: 1.5,
            slow_share: 0.5,
            drift_share: 0.15,
            shape: ShapeSettings::default(),
        }
    }
}

/// What a time is due to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// What the sources send, bytes per second.
    Sources(f64),
    /// What the slowest host receives, bytes per second.
    HostDown(f64),
    /// What all together send, bytes per second.
    TotalUp(f64),
    /// What passes a region's border, bytes per second.
    Border(u16, f64),
    /// Starting, connecting, hashing, flushing: milliseconds.
    Start(f64),
}

/// One gear's time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// Which gear.
    pub gear: Gear,
    /// From the order to the last host's finished file.
    pub time_ms: f64,
    /// Of that, what is not moving bytes.
    pub start_ms: f64,
    /// The same by the settings alone.
    pub guess_ms: f64,
    /// Rate at which most hosts receive, bytes per second.
    pub rate: f64,
    /// What most of the time is due to.
    pub limit: Limit,
}

/// How a file is to travel.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The gear that ends first.
    pub gear: Gear,
    /// When it ends.
    pub predicted_ms: f64,
    /// When any could end: max(F/us, F/dmin, N F/(us + sum of ui)) and the borders' terms.
    pub bound_ms: f64,
    /// What the bound is due to.
    pub limit: Limit,
    /// Every gear that is possible.
    pub gears: Vec<Prediction>,
    /// The decision for people.
    pub sentence: String,
}

/// Decides how a file travels.
pub fn plan(input: &PlannerInput<'_>, settings: &PlannerSettings) -> Decision {
    let load = predict::Load::new(input, settings);
    let (bound_ms, limit) = load.bound();
    let gears = load.gears();
    let direct = load.direct();
    let best = gears.iter().min_by(|a, b| a.time_ms.total_cmp(&b.time_ms)).unwrap_or(&direct);
    let sentence = explain::sentence(input, best, bound_ms, &gears);
    let (gear, predicted_ms) = (best.gear, best.time_ms);
    Decision { gear, predicted_ms, bound_ms, limit, gears, sentence }
}

impl Decision {
    /// Whether a transfer that moved `share` (0 to 1) of its bytes in `elapsed_ms` has left the
    /// prediction, early or late, so that it is time to plan again. The first tenth says nothing.
    pub fn is_off_course(&self, share: f64, elapsed_ms: f64, settings: &PlannerSettings) -> bool {
        let start =
            self.gears.iter().find(|one| one.gear == self.gear).map_or(0.0, |one| one.start_ms);
        let moving = self.predicted_ms - start;
        let expected = (elapsed_ms - start) / moving.max(1.0);
        if expected < 0.1 || share >= 1.0 {
            return false;
        }
        (share / expected.min(1.0) - 1.0).abs() > settings.drift_share
    }
}
