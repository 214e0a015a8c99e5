//! Section `[planner]` of `server.toml`: what the planner of transfers takes things to cost.

use serde::{Deserialize, Serialize};
use skein_controlplane::transfers::{Planning, RegionBorder, Topology};
use skein_filemesh::core::planner::{INLINE_BYTES_MAX, PlannerSettings};

/// The section; `docs/filemesh.md` says how each value is used.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlannerSection {
    /// What the server sends to agents, bytes per second; 0: found out.
    pub server_up_bytes_s: u64,
    /// Region of the server; empty: that of the first host of a transfer.
    pub server_region: String,
    /// Its zone there.
    pub server_zone: String,
    /// Thin borders of regions.
    pub border: Vec<BorderSection>,
    /// Largest file that travels inside orders.
    pub inline_bytes_max: u64,
    /// Rate of a host of which none is known.
    pub default_bytes_s: u64,
    /// Hashing at the source.
    pub hash_bytes_s: u64,
    /// A round trip.
    pub default_rtt_ms: f64,
    /// From the order to the host's first connection.
    pub start_ms: f64,
    /// Round trips until the first byte is asked for.
    pub session_rtts: f64,
    /// The source's work for each host that it serves itself.
    pub host_ms: f64,
    /// From an inline order to its file's first byte.
    pub inline_ms: f64,
    /// The source's work for each inline order.
    pub inline_host_ms: f64,
    /// Flush and rename of the finished file.
    pub commit_ms: f64,
    /// Rendezvous of a plan.
    pub planned_ms: f64,
    /// Rendezvous of a mesh.
    pub mesh_ms: f64,
    /// Part of the links that trees use.
    pub planned_share: f64,
    /// Part of the links that a mesh uses.
    pub mesh_share: f64,
    /// Copies that a mesh moves over a region's border.
    pub mesh_border_copies: f64,
    /// A host below this share of the median rate is slow.
    pub slow_share: f64,
    /// How far progress may leave the prediction.
    pub drift_share: f64,
}

/// A table `[[planner.border]]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BorderSection {
    /// The region, as its hosts name it.
    pub region: String,
    /// What it carries into the region, bytes per second.
    pub in_bytes_s: u64,
    /// Out of it; absent: as much.
    #[serde(default)]
    pub out_bytes_s: Option<u64>,
}

impl BorderSection {
    fn border(&self) -> Result<RegionBorder, String> {
        let (region, in_bytes_s) = (self.region.clone(), self.in_bytes_s);
        let out_bytes_s = self.out_bytes_s.unwrap_or(in_bytes_s);
        match region.is_empty() || in_bytes_s == 0 || out_bytes_s == 0 {
            true => Err("planner.border needs a region and rates above 0".into()),
            false => Ok(RegionBorder { region, in_bytes_s, out_bytes_s }),
        }
    }
}

impl Default for PlannerSection {
    fn default() -> Self {
        let of = PlannerSettings::default();
        Self {
            server_up_bytes_s: 0,
            server_region: String::new(),
            server_zone: String::new(),
            border: Vec::new(),
            inline_bytes_max: of.inline_bytes_max,
            default_bytes_s: of.default_bytes_s,
            hash_bytes_s: of.hash_bytes_s,
            default_rtt_ms: of.default_rtt_ms,
            start_ms: of.start_ms,
            session_rtts: of.session_rtts,
            host_ms: of.host_ms,
            inline_ms: of.inline_ms,
            inline_host_ms: of.inline_host_ms,
            commit_ms: of.commit_ms,
            planned_ms: of.planned_ms,
            mesh_ms: of.mesh_ms,
            planned_share: of.planned_share,
            mesh_share: of.mesh_share,
            mesh_border_copies: of.mesh_border_copies,
            slow_share: of.slow_share,
            drift_share: of.drift_share,
        }
    }
}

impl PlannerSection {
    /// As the control process takes it, or which key is out of bounds.
    pub fn planning(&self) -> Result<Planning, String> {
        if self.inline_bytes_max > INLINE_BYTES_MAX {
            return Err(format!("planner.inline_bytes_max is at most {INLINE_BYTES_MAX}"));
        }
        for (key, ms) in [
            ("default_rtt_ms", self.default_rtt_ms),
            ("start_ms", self.start_ms),
            ("session_rtts", self.session_rtts),
            ("host_ms", self.host_ms),
            ("inline_ms", self.inline_ms),
            ("inline_host_ms", self.inline_host_ms),
            ("commit_ms", self.commit_ms),
            ("planned_ms", self.planned_ms),
            ("mesh_ms", self.mesh_ms),
        ] {
            if !(0.0..=600_000.0).contains(&ms) {
                return Err(format!("planner.{key} is {ms}, which is not from 0 to 600,000"));
            }
        }
        for (key, share) in [
            ("planned_share", self.planned_share),
            ("mesh_share", self.mesh_share),
            ("slow_share", self.slow_share),
            ("drift_share", self.drift_share),
        ] {
            if !(0.01..=1.0).contains(&share) {
                return Err(format!("planner.{key} is {share}, which is not from 0.01 to 1"));
            }
        }
        if !(1.0..=1_000.0).contains(&self.mesh_border_copies) {
            return Err("planner.mesh_border_copies is from 1 to 1,000".into());
        }
        let settings = PlannerSettings {
            inline_bytes_max: self.inline_bytes_max,
            default_bytes_s: self.default_bytes_s.max(1),
            hash_bytes_s: self.hash_bytes_s.max(1),
            default_rtt_ms: self.default_rtt_ms,
            start_ms: self.start_ms,
            session_rtts: self.session_rtts,
            host_ms: self.host_ms,
            inline_ms: self.inline_ms,
            inline_host_ms: self.inline_host_ms,
            commit_ms: self.commit_ms,
            planned_ms: self.planned_ms,
            mesh_ms: self.mesh_ms,
            planned_share: self.planned_share,
            mesh_share: self.mesh_share,
            mesh_border_copies: self.mesh_border_copies,
            slow_share: self.slow_share,
            drift_share: self.drift_share,
            ..PlannerSettings::default()
        };
        let borders = self.border.iter().map(BorderSection::border);
        let borders: Vec<_> = borders.collect::<Result<_, _>>()?;
        for (at, border) in borders.iter().enumerate() {
            if borders[..at].iter().any(|other| other.region == border.region) {
                return Err(format!("planner.border has region {:?} twice", border.region));
            }
        }
        if self.server_region.is_empty() && !self.server_zone.is_empty() {
            return Err("planner.server_zone needs planner.server_region".into());
        }
        let topology = Topology {
            server_region: Some(self.server_region.clone()).filter(|region| !region.is_empty()),
            server_zone: self.server_zone.clone(),
            borders,
        };
        Ok(Planning { settings, server_up_bytes_s: self.server_up_bytes_s, topology })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_the_planners_and_nonsense_is_refused() {
        let planning = PlannerSection::default().planning().unwrap();
        assert_eq!(planning.settings, PlannerSettings::default());
        for text in [
            "drift_share = 0.0",
            "start_ms = -1.0",
            "mesh_share = nan",
            "inline_bytes_max = 32769",
            "mesh_border_copies = 0.5",
            "server_zone = 'a'",
            "border = [{ region = 'eu', in_bytes_s = 0 }]",
            "border = [{ region = '', in_bytes_s = 1 }]",
            "border = [{ region = 'a', in_bytes_s = 1 }, { region = 'a', in_bytes_s = 2 }]",
        ] {
            let section: PlannerSection = toml::from_str(text).unwrap();
            assert!(section.planning().is_err(), "{text}");
        }
    }

    #[test]
    fn a_border_carries_as_much_out_as_in_unless_it_says_otherwise() {
        let text = "server_region = 'hq'\n[[border]]\nregion = 'eu'\nin_bytes_s = 5\n\
            [[border]]\nregion = 'us'\nin_bytes_s = 5\nout_bytes_s = 7\n";
        let section: PlannerSection = toml::from_str(text).unwrap();
        let topology = section.planning().unwrap().topology;
        let out: Vec<u64> = topology.borders.iter().map(|border| border.out_bytes_s).collect();
        assert_eq!((topology.server_region.as_deref(), &out[..]), (Some("hq"), &[5, 7][..]));
    }
}
