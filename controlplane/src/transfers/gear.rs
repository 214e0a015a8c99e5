//! How a transfer travels: the planner asked with what is known of its hosts.

use serde::{Deserialize, Serialize};
use skein_filemesh::core::geometry::Geometry;
use skein_filemesh::core::place::Place;
use skein_filemesh::core::planner::{
    Decision, Gear, Host, Limits, PlannerInput, PlannerSettings, plan as decide,
};
use skein_wire::ids::AgentId;

use super::TransferError;
use super::rates::RateBook;
use super::topology::{Places, Topology};
use crate::api::types::{GearForecast, TransferForecast};
use crate::clock;
use crate::registry::Registry;

/// What the signal channels of one transfer carry inline at most: it waits in the data process,
/// agent by agent, beside everything else that is urgent.
const INLINE_TOTAL_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What was decided, and why; stored with the transfer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GearChoice {
    /// `inline`, `direct`, `planned` or `mesh`.
    pub gear: String,
    /// One sentence for people.
    pub why: String,
    /// When the last host should be done, ms after the file is in the cache.
    pub predicted_ms: u64,
    /// What no gear can beat, ms.
    pub bound_ms: u64,
    /// What of the bound is known more exactly, ms.
    #[serde(default)]
    pub bound_exact_ms: f64,
    /// What moving bytes is part of the prediction, ms.
    #[serde(default)]
    pub moving_ms: f64,
    /// What the rest is by the settings alone, ms; 0: not known.
    #[serde(default)]
    pub guess_ms: f64,
    /// Its members have become a mesh and stay one, whatever the gear: a swarm whose only parent
    /// is the server is the direct gear too.
    #[serde(default)]
    pub joined: bool,
    /// How often it was planned again.
    #[serde(default)]
    pub replans: u32,
    /// When it was last planned again.
    #[serde(default)]
    pub replanned_ms: Option<i64>,
}

impl Default for GearChoice {
    fn default() -> Self {
        Self {
            gear: "direct".into(),
            why: String::new(),
            predicted_ms: 0,
            bound_ms: 0,
            bound_exact_ms: 0.0,
            moving_ms: 0.0,
            guess_ms: 0.0,
            joined: false,
            replans: 0,
            replanned_ms: None,
        }
    }
}

impl GearChoice {
    /// Whether the hosts are members of a mesh, so that pieces can go from host to host.
    pub fn is_meshed(&self) -> bool {
        self.joined || matches!(self.kind(), Gear::Planned | Gear::Mesh)
    }

    /// Whether the content goes inside the order.
    pub fn is_inline(&self) -> bool {
        self.kind() == Gear::Inline
    }

    /// As the coordinator names it.
    pub fn kind(&self) -> Gear {
        match self.gear.as_str() {
            "inline" => Gear::Inline,
            "planned" => Gear::Planned,
            "mesh" => Gear::Mesh,
            _ => Gear::Direct,
        }
    }
}

/// Checks a gear that somebody wants; none for `auto`.
pub fn wanted(gear: Option<&str>) -> Result<Option<Gear>, TransferError> {
    match gear {
        None | Some("auto" | "") => Ok(None),
        Some("inline") => Ok(Some(Gear::Inline)),
        Some("direct") => Ok(Some(Gear::Direct)),
        Some("planned") => Ok(Some(Gear::Planned)),
        Some("mesh") => Ok(Some(Gear::Mesh)),
        Some(other) => Err(TransferError::Invalid(format!(
            "gear {other:?} is none of auto, inline, direct, planned, mesh"
        ))),
    }
}

/// What a choice depends on.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Where hosts stand and who listens.
    pub registry: &'a Registry,
    /// What earlier transfers showed.
    pub rates: &'a RateBook,
    /// Costs and thresholds.
    pub settings: &'a PlannerSettings,
    /// The operator's word on places and borders.
    pub topology: &'a Topology,
    /// The file.
    pub size_bytes: u64,
    /// Its pieces.
    pub piece_bytes: u32,
    /// Who is to get it, and what of it each holds.
    pub targets: &'a [(&'a AgentId, u64)],
    /// Per host; 0: none.
    pub rate_limit_bytes_per_s: u64,
    /// Of what the sources send together; 0: none.
    pub rate_limit_total_bytes_per_s: u64,
    /// The gear that was asked for; it wins where it is possible.
    pub forced: Option<Gear>,
    /// Whether the content can go inside the orders: none has been sent.
    pub may_inline: bool,
}

/// What was decided, with all that it was decided from.
#[derive(Clone, Debug)]
pub struct Choice {
    /// What is stored.
    pub stored: GearChoice,
    /// The planner's decision, its gear replaced by what is possible or was asked for.
    pub decision: Decision,
    /// Gears that are possible.
    possible: Vec<Gear>,
    places: Places,
}

impl Question<'_> {
    /// Asks the planner; none for a size that no file has.
    pub fn choose(&self) -> Option<Choice> {
        let geometry = Geometry::new(self.size_bytes, self.piece_bytes).ok()?;
        let now_ms = clock::now_ms();
        let agents = self.targets.iter().map(|(agent, _)| *agent);
        let places = self.topology.places(self.registry, agents);
        let source = Host {
            place: places.server,
            rates: self.rates.of_server(now_ms),
            held_bytes: self.size_bytes,
        };
        let host = |(place, (agent, held_bytes)): (&Place, &(&AgentId, u64))| Host {
            place: *place,
            rates: self.rates.of(agent, now_ms),
            held_bytes: *held_bytes,
        };
        let targets: Vec<Host> = places.hosts.iter().zip(self.targets).map(host).collect();
        let held_most = targets.iter().map(|target| target.held_bytes).max().unwrap_or(0);
        let limit = (self.rate_limit_bytes_per_s > 0).then_some(self.rate_limit_bytes_per_s);
        let total_limit = self.rate_limit_total_bytes_per_s;
        let sources_bytes_s = (total_limit > 0).then_some(total_limit);
        let is_limited = limit.or(sources_bytes_s).is_some();
        let total = self.size_bytes.saturating_mul(targets.len() as u64);
        let input = PlannerInput {
            geometry,
            is_hashed: true,
            can_inline: self.may_inline && total <= INLINE_TOTAL_BYTES_MAX && !is_limited,
            fresh_bytes: self.size_bytes.saturating_sub(held_most),
            sources: &[source],
            targets: &targets,
            borders: &places.borders,
            limits: Limits { sources_bytes_s, up_bytes_s: limit, down_bytes_s: limit },
            rtt_ms: None,
            starts: self.rates.starts.of(targets.len(), now_ms),
        };
        let mut decision = decide(&input, self.settings);
        decision.sentence = places.name_regions(&decision.sentence);
        Some(self.settle(decision, places))
    }

    /// Replaces the planner's gear by what was asked for, or by the best that is possible.
    fn settle(&self, mut decision: Decision, places: Places) -> Choice {
        let can_mesh = self.can_mesh();
        let is_possible = |gear: Gear| can_mesh || !matches!(gear, Gear::Planned | Gear::Mesh);
        let mut possible: Vec<_> =
            decision.gears.iter().filter(|one| is_possible(one.gear)).copied().collect();
        possible.sort_by(|one, other| one.time_ms.total_cmp(&other.time_ms));
        let forced = self.forced.and_then(|gear| possible.iter().find(|one| one.gear == gear));
        let best = decision.gear;
        if let Some(chosen) = forced.or(possible.first()) {
            (decision.gear, decision.predicted_ms) = (chosen.gear, chosen.time_ms);
        }
        let gear = decision.gear;
        let chosen = decision.gears.iter().find(|one| one.gear == gear);
        let chosen = chosen.map(|one| (one.time_ms - one.start_ms, one.guess_ms));
        let (moving_ms, guess_ms) = chosen.unwrap_or_default();
        let why = match self.forced {
            Some(forced) if forced != gear => {
                format!("{gear}, because {forced} is not possible here: {}", decision.sentence)
            }
            Some(_) if gear != best => {
                format!("{gear} as it was asked for; left to itself: {}", decision.sentence)
            }
            None if gear != best => {
                format!("{gear}: no target listens for others ({})", decision.sentence)
            }
            _ => decision.sentence.clone(),
        };
        let stored = GearChoice {
            gear: gear.to_string(),
            why,
            predicted_ms: decision.predicted_ms.round() as u64,
            bound_ms: decision.bound_ms.round() as u64,
            bound_exact_ms: decision.bound_ms,
            moving_ms,
            guess_ms,
            ..GearChoice::default()
        };
        let possible = possible.iter().map(|one| one.gear).collect();
        Choice { stored, decision, possible, places }
    }

    /// Whoever cannot be reached by others still dials them; one alone has nobody to dial.
    fn can_mesh(&self) -> bool {
        let listens = |(agent, _): &(&AgentId, u64)| {
            self.registry.mesh_agent(agent).is_some_and(|agent| !agent.addresses.is_empty())
        };
        self.size_bytes > 0 && self.targets.len() > 1 && self.targets.iter().any(listens)
    }
}

impl Choice {
    /// As the API shows it before anything has begun.
    pub fn forecast(&self, size_bytes: u64, hosts: usize) -> TransferForecast {
        let gears = self.decision.gears.iter().map(|one| GearForecast {
            gear: one.gear.to_string(),
            predicted_ms: one.time_ms,
            start_ms: one.start_ms,
            bytes_per_s: one.rate as u64,
            limit: self.places.name_regions(&one.reason()),
            possible: self.possible.contains(&one.gear),
        });
        TransferForecast {
            gear: self.stored.gear.clone(),
            why: self.stored.why.clone(),
            predicted_ms: self.decision.predicted_ms,
            bound_ms: self.decision.bound_ms,
            size_bytes,
            hosts_total: hosts as u64,
            gears: gears.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gears_are_known_by_their_names() {
        assert_eq!(wanted(None).unwrap(), None);
        assert_eq!(wanted(Some("auto")).unwrap(), None);
        for gear in [Gear::Inline, Gear::Direct, Gear::Planned, Gear::Mesh] {
            let name = gear.to_string();
            assert_eq!(wanted(Some(&name)).unwrap(), Some(gear));
            assert_eq!(GearChoice { gear: name, ..GearChoice::default() }.kind(), gear);
        }
        assert!(wanted(Some("teleport")).unwrap_err().to_string().contains("teleport"));
    }
}
