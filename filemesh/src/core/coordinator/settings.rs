//! What a coordinator is told at its start, and every threshold it decides by.

use super::neighbours::NeighbourSettings;
use crate::core::geometry::Geometry;
use crate::core::place::{Place, Rates};
use crate::core::plan::Member;
use crate::core::planner::{Gear, ShapeSettings};

/// A member of the transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Participant {
    /// Its number.
    pub member: Member,
    /// Where it stands.
    pub place: Place,
    /// How fast it is, as far as that is known.
    pub rates: Rates,
}

/// One transfer.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The file's division.
    pub geometry: Geometry,
    /// Members that hold the whole file and are there from the start.
    pub sources: Vec<Participant>,
    /// Members that are to get it. They take part from when they join.
    pub targets: Vec<Participant>,
    /// How the file travels. Inline content needs no coordinator and is treated as direct.
    pub gear: Gear,
}

/// Thresholds of re-planning, in milliseconds where they are times.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The shape of trees.
    pub shape: ShapeSettings,
    /// Who is whose neighbour.
    pub neighbours: NeighbourSettings,
    /// A round trip between members.
    pub rtt_ms: f64,
    /// Rate of a member of which none is known, bytes per second.
    pub default_bytes_s: u64,
    /// How long the first plan waits, from the first target that joins, for others to join; longer
    /// while they come, and no longer once all are there.
    pub gather_ms: u64,
    /// A member that receives less than this share of the median is slow: it is a leaf.
    pub slow_share: f64,
    /// A slow member that receives this share of the median is no longer slow.
    pub recovered_share: f64,
    /// Low rates in a row that make a member slow.
    pub slow_reports: u8,
    /// Between two comparisons of rates.
    pub measure_ms: u64,
    /// Members that call one parent late within [`Settings::late_window_ms`] and so make it slow.
    pub late_reporters: usize,
    /// See there; and how long a member that waits is given when the fault seems to be farther up.
    pub late_window_ms: u64,
    /// How long such a one stays a leaf at least.
    pub barred_ms: u64,
    /// When this share of the living targets is complete, the others get parents of their own.
    pub straggler_share: f64,
    /// Parents of a straggler at most.
    pub straggler_parents: usize,
    /// How long pieces that no living member holds are waited for before the transfer fails.
    pub missing_ms: u64,
    /// Between two plans of the whole because trees grew deep or were mended; for the latter once
    /// more for each 1,000 members.
    pub rebuild_ms: u64,
    /// When this share of all links of trees was mended, there is a plan of the whole. Links that
    /// changed because members that are there were late do not count.
    pub worn_share: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            shape: ShapeSettings::default(),
            neighbours: NeighbourSettings::default(),
            rtt_ms: 0.5,
            default_bytes_s: 125_000_000,
            gather_ms: 100,
            slow_share: 0.5,
            recovered_share: 0.7,
            slow_reports: 2,
            measure_ms: 500,
            late_reporters: 3,
            late_window_ms: 1_000,
            barred_ms: 3_000,
            straggler_share: 0.9,
            straggler_parents: 4,
            missing_ms: 10_000,
            rebuild_ms: 2_000,
            worn_share: 0.01,
        }
    }
}
