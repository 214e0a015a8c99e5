//! Where hosts stand, in the numbers of the planner and the coordinator, and the thin borders
//! between them.
//!
//! A host says its cloud area, region and zone in its configuration, and its rack by the label
//! `rack`. Hosts of one region and different cloud areas stand in different regions. The server and
//! borders are placed by the operator.

use std::collections::BTreeMap;

use skein_filemesh::core::place::Place;
use skein_filemesh::core::planner::Border;
use skein_wire::ids::AgentId;

use crate::registry::{Registry, Standing};

/// What an operator says of the places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Region of the server; none: that of the first target.
    pub server_region: Option<String>,
    /// Its zone there.
    pub server_zone: String,
    /// Borders that carry less than their hosts could send over them.
    pub borders: Vec<RegionBorder>,
}

/// What passes the border of a region, bytes per second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionBorder {
    /// As hosts name it.
    pub region: String,
    /// Into it.
    pub in_bytes_s: u64,
    /// Out of it.
    pub out_bytes_s: u64,
}

/// Places in numbers, for one transfer.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Of the server.
    pub server: Place,
    /// Of the hosts, in their order.
    pub hosts: Vec<Place>,
    /// The borders of regions that occur.
    pub borders: Vec<Border>,
    /// Names of the regions, by number.
    regions: Vec<String>,
}

#[derive(Default)]
struct Numbers {
    regions: BTreeMap<(i32, String), u16>,
    zones: BTreeMap<(u16, String), u16>,
    racks: BTreeMap<(u16, u16, String), u32>,
}

impl Numbers {
    fn place(&mut self, at: Standing) -> Place {
        let next = u16::try_from(self.regions.len()).unwrap_or(u16::MAX);
        let region = *self.regions.entry((at.cloud_id, at.region)).or_insert(next);
        let next = u16::try_from(self.zones.len()).unwrap_or(u16::MAX);
        let zone = *self.zones.entry((region, at.zone)).or_insert(next);
        let next = u32::try_from(self.racks.len()).unwrap_or(u32::MAX);
        let rack = *self.racks.entry((region, zone, at.rack)).or_insert(next);
        Place { region, zone, rack }
    }
}

impl Topology {
    /// The places of `agents`, of which the registry may have forgotten some.
    pub fn places<'a>(
        &self,
        registry: &Registry,
        agents: impl IntoIterator<Item = &'a AgentId>,
    ) -> Places {
        self.number(agents.into_iter().map(|agent| registry.standing(agent).unwrap_or_default()))
    }

    fn number(&self, hosts: impl Iterator<Item = Standing>) -> Places {
        let mut numbers = Numbers::default();
        let server = self.server_region.as_ref().map(|region| {
            let (region, zone) = (region.clone(), self.server_zone.clone());
            numbers.place(Standing { region, zone, ..Standing::default() })
        });
        let hosts: Vec<Place> = hosts.map(|host| numbers.place(host)).collect();
        let server = server.unwrap_or_else(|| hosts.first().copied().unwrap_or_default());
        let border = |((_, name), region): (&(i32, String), &u16)| {
            let border = self.borders.iter().find(|border| border.region == *name)?;
            let RegionBorder { in_bytes_s, out_bytes_s, .. } = *border;
            Some(Border { region: *region, in_bytes_s, out_bytes_s })
        };
        let borders = numbers.regions.iter().filter_map(border).collect();
        let mut regions: Vec<_> = numbers.regions.into_iter().collect();
        regions.sort_by_key(|(_, number)| *number);
        let regions = regions.into_iter().map(|((_, name), _)| name).collect();
        Places { server, hosts, borders, regions }
    }
}

impl Places {
    /// The planner's words, with regions named as hosts name them.
    pub fn name_regions(&self, text: &str) -> String {
        let Some((before, after)) = text.split_once("the border of region ") else {
            return text.to_owned();
        };
        let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
        match after[..digits].parse().ok().and_then(|number: usize| self.regions.get(number)) {
            Some(name) => format!("{before}the border of region {name:?}{}", &after[digits..]),
            None => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(cloud_id: i32, region: &str, zone: &str, rack: &str) -> Standing {
        Standing { cloud_id, region: region.into(), zone: zone.into(), rack: rack.into() }
    }

    #[test]
    fn racks_zones_regions_and_clouds_are_told_apart() {
        let hosts = [
            at(0, "eu", "1", "a"),
            at(0, "eu", "1", "a"),
            at(0, "eu", "1", "b"),
            at(0, "eu", "2", "a"),
            at(0, "us", "1", "a"),
            at(7, "eu", "1", "a"),
        ];
        let places = Topology::default().number(hosts.into_iter());
        assert_eq!(places.server, places.hosts[0], "where nothing is said");
        assert_eq!(places.hosts[0], places.hosts[1]);
        let (first, rest) = (places.hosts[0], &places.hosts[2..]);
        assert_eq!((rest[0].zone, rest[0].rack != first.rack), (first.zone, true));
        assert_eq!((rest[1].region, rest[1].zone != first.zone), (first.region, true));
        assert!(rest[1].rack != first.rack, "racks of two zones may have one name");
        let regions: Vec<u16> = places.hosts.iter().map(|place| place.region).collect();
        assert_eq!(regions, [0, 0, 0, 0, 1, 2]);
    }

    #[test]
    fn borders_and_the_server_are_where_the_operator_says() {
        let border = |region: &str, rate| RegionBorder {
            region: region.into(),
            in_bytes_s: rate,
            out_bytes_s: 2 * rate,
        };
        let topology = Topology {
            server_region: Some("hq".into()),
            server_zone: String::new(),
            borders: vec![border("us", 5), border("moon", 1)],
        };
        let hosts = [at(0, "eu", "", ""), at(0, "us", "", ""), at(3, "us", "", "")];
        let places = topology.number(hosts.into_iter());
        assert_eq!(places.server.region, 0);
        assert!(places.hosts.iter().all(|place| place.region != 0), "none stands beside it");
        let borders: Vec<_> =
            places.borders.iter().map(|one| (one.region, one.in_bytes_s)).collect();
        assert_eq!(borders, [(2, 5), (3, 5)], "of every cloud area; none of an empty region");
        let said = places.name_regions("slow because the border of region 2 carries 40 bit/s");
        assert_eq!(said, "slow because the border of region \"us\" carries 40 bit/s");
        assert_eq!(places.name_regions("the border of region 99 x"), "the border of region 99 x");
    }
}
