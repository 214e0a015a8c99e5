//! How a transfer travels: the planner asked with what the registry knows of its hosts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use skein_filemesh::core::geometry::Geometry;
use skein_filemesh::core::place::{Place, Rates};
use skein_filemesh::core::planner::{
    Gear, Host, Limits, PlannerInput, PlannerSettings, plan as decide,
};
use skein_wire::ids::AgentId;

use super::TransferError;
use crate::api::types::Upload;
use crate::registry::Registry;

/// What was decided, and why; stored with the transfer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GearChoice {
    /// `direct`, `planned` or `mesh`.
    pub gear: String,
    /// One sentence for people.
    pub why: String,
    /// When the last host should be done, ms after the file is in the cache.
    pub predicted_ms: u64,
    /// What no gear can beat, ms.
    pub bound_ms: u64,
}

impl Default for GearChoice {
    fn default() -> Self {
        Self { gear: "direct".into(), why: String::new(), predicted_ms: 0, bound_ms: 0 }
    }
}

impl GearChoice {
    /// Whether pieces go from host to host.
    pub fn is_meshed(&self) -> bool {
        self.kind() != Gear::Direct
    }

    /// As the coordinator names it.
    pub fn kind(&self) -> Gear {
        match self.gear.as_str() {
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
        Some("direct") => Ok(Some(Gear::Direct)),
        Some("planned") => Ok(Some(Gear::Planned)),
        Some("mesh") => Ok(Some(Gear::Mesh)),
        Some(other) => Err(TransferError::Invalid(format!(
            "gear {other:?} is none of auto, direct, planned, mesh"
        ))),
    }
}

/// Where the targets stand, in numbers, in the order of `agents`.
pub fn places<'a>(
    registry: &Registry,
    agents: impl IntoIterator<Item = &'a AgentId>,
) -> Vec<Place> {
    let mut regions: BTreeMap<String, u16> = BTreeMap::new();
    let mut zones: BTreeMap<(u16, String), u16> = BTreeMap::new();
    let mut number = |agent: &AgentId| {
        let (region, zone) = registry.place_of(agent).unwrap_or_default();
        let next = u16::try_from(regions.len()).unwrap_or(u16::MAX);
        let region = *regions.entry(region).or_insert(next);
        let next = u16::try_from(zones.len()).unwrap_or(u16::MAX);
        let zone = *zones.entry((region, zone)).or_insert(next);
        Place { region, zone, rack: 0 }
    };
    agents.into_iter().map(&mut number).collect()
}

/// Chooses for a file that is in the cache. `forced` wins where it is possible.
pub fn choose(
    registry: &Registry,
    file: &Upload,
    agents: &[&AgentId],
    rate_limit_bytes_per_s: u64,
    forced: Option<Gear>,
) -> GearChoice {
    let Ok(geometry) = Geometry::new(file.size_bytes, file.piece_bytes) else {
        return GearChoice::default();
    };
    let places = places(registry, agents.iter().copied());
    let home = places.first().copied().unwrap_or_default();
    let source = Host { place: home, rates: Rates::default(), held_bytes: file.size_bytes };
    let target = |place| Host { place, rates: Rates::default(), held_bytes: 0 };
    let targets: Vec<Host> = places.into_iter().map(target).collect();
    let limit = (rate_limit_bytes_per_s > 0).then_some(rate_limit_bytes_per_s);
    let input = PlannerInput {
        geometry,
        is_hashed: true,
        can_inline: false,
        fresh_bytes: file.size_bytes,
        sources: &[source],
        targets: &targets,
        borders: &[],
        limits: Limits { sources_bytes_s: None, up_bytes_s: limit, down_bytes_s: limit },
        rtt_ms: None,
    };
    let decision = decide(&input, &PlannerSettings::default());
    // Whoever cannot be reached by others still dials them; one alone has nobody to dial.
    let listening = agents.iter().filter(|agent| {
        registry.mesh_agent(agent).is_some_and(|agent| !agent.addresses.is_empty())
    });
    let can_mesh = listening.count() > 0 && agents.len() > 1 && file.size_bytes > 0;
    let named = |gear: Gear| match gear {
        Gear::Planned | Gear::Mesh if can_mesh => gear,
        _ => Gear::Direct,
    };
    let chosen = named(forced.unwrap_or(decision.gear));
    let predicted = decision.gears.iter().find(|one| one.gear == chosen);
    let predicted_ms = predicted.map_or(decision.predicted_ms, |one| one.time_ms);
    let why = match (forced, chosen == decision.gear) {
        (_, true) => decision.sentence,
        (Some(_), false) => {
            format!("{chosen} as it was asked for; left to itself: {}", decision.sentence)
        }
        (None, false) => format!("direct: no target listens for others ({})", decision.sentence),
    };
    GearChoice {
        gear: chosen.to_string(),
        why,
        predicted_ms: predicted_ms as u64,
        bound_ms: decision.bound_ms as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gears_are_known_by_their_names() {
        assert_eq!(wanted(None).unwrap(), None);
        assert_eq!(wanted(Some("auto")).unwrap(), None);
        for gear in [Gear::Direct, Gear::Planned, Gear::Mesh] {
            let name = gear.to_string();
            assert_eq!(wanted(Some(&name)).unwrap(), Some(gear));
            assert_eq!(GearChoice { gear: name, ..GearChoice::default() }.kind(), gear);
        }
        assert!(wanted(Some("teleport")).unwrap_err().to_string().contains("teleport"));
    }
}
