//! What goes wrong, to whom and when.
//!
//! ```text
//!   kill share=10% at=50%            one in ten targets, chosen by the seed, at half of the bound
//!   kill rack=r7 at=2s until=5s      all of a rack, started again three seconds later
//!   slow host=old to=25% at=0s       a quarter of its rates, both ways
//!   cut region=branch at=30% until=60%     nothing crosses the border meanwhile
//!   corrupt host=web3 at=0s          every block that it sends is false
//!   silent host=web4 at=1s           it answers nobody any more, and its connections stay
//!   flood host=web5 at=0s until=3s   it asks everybody for everything, then starts anew
//!   jump share=20% at=50%            their clocks go ahead by an hour
//! ```

use crate::queue::Nanos;
use crate::random::Random;
use crate::topology::{HostId, Topology};
use crate::units::{BadQuantity, Share, Span};
use serde::Deserialize;
use std::str::FromStr;

/// A point in time: from the start, or as a share of the bound.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub enum When {
    /// After the start.
    At(Nanos),
    /// This share of the bound after the start; may exceed 1.
    OfBound(f64),
}

impl When {
    /// The time, with this bound.
    pub fn at(self, bound: Nanos) -> Nanos {
        match self {
            Self::At(at) => at,
            Self::OfBound(share) => (bound as f64 * share) as Nanos,
        }
    }
}

impl FromStr for When {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        match text.strip_suffix('%').map(|number| number.trim().parse::<f64>()) {
            Some(Ok(percent)) if (0.0..=10_000.0).contains(&percent) => {
                Ok(Self::OfBound(percent / 100.0))
            }
            _ => text.parse::<Span>().map(|span| Self::At(span.0)),
        }
    }
}

impl TryFrom<String> for When {
    type Error = BadQuantity;

    fn try_from(text: String) -> Result<Self, BadQuantity> {
        text.parse()
    }
}

/// What happens to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Its process ends and its connections with it; `until` starts it again.
    Kill,
    /// Its rates fall to the share `to`.
    Slow,
    /// Nothing passes its links; connections stay and wait.
    Cut,
    /// What it sends is false.
    Corrupt,
    /// It sends nothing to other hosts; connections stay.
    Silent,
    /// It asks all it is connected with for everything, again and again.
    Flood,
    /// Its clock is an hour ahead from then on.
    Jump,
}

/// One fault. Exactly one of `host`, `share`, `rack`, `region` and `source` says whose.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What.
    pub kind: Kind,
    /// From when on.
    pub at: When,
    /// Until when; for good without.
    pub until: Option<When>,
    /// Of a slow host's rates.
    pub to: Option<Share>,
    /// A host's name, or the beginning of several with `*` behind it.
    pub host: Option<String>,
    /// So many of the targets, chosen by the seed.
    pub share: Option<Share>,
    /// The hosts of a rack; of `cut`, the rack's uplink.
    pub rack: Option<String>,
    /// The hosts of a region; of `cut`, the region's border.
    pub region: Option<String>,
    /// The source.
    #[serde(default)]
    pub source: bool,
}

/// A scenario file: `[[fault]]` entries.
#[derive(Debug, Clone, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The faults.
    #[serde(default, rename = "fault")]
    pub faults: Vec<Fault>,
}

/// Why a fault cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// A word that is not understood.
    #[error("`{0}`: expected e.g. `kill rack=r7 at=50% until=3s`")]
    Word(String),
    /// A quantity that is not understood.
    #[error(transparent)]
    Quantity(#[from] BadQuantity),
    /// Not exactly one selection.
    #[error("a fault needs one of host=, share=, rack=, region= and source")]
    Selection,
    /// Nobody is meant.
    #[error("there is no {0}")]
    Nobody(String),
    /// A time or share is missing or makes no sense.
    #[error("{0}")]
    Missing(&'static str),
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let word = |word: &str| FaultError::Word(word.to_owned());
        let mut words = text.split_whitespace();
        let kind = match words.next().unwrap_or_default() {
            "kill" => Kind::Kill,
            "slow" => Kind::Slow,
            "cut" => Kind::Cut,
            "corrupt" => Kind::Corrupt,
            "silent" => Kind::Silent,
            "flood" => Kind::Flood,
            "jump" => Kind::Jump,
            other => return Err(word(other)),
        };
        let mut fault = Self {
            kind,
            at: When::At(0),
            until: None,
            to: None,
            host: None,
            share: None,
            rack: None,
            region: None,
            source: false,
        };
        for part in words {
            match part.split_once('=') {
                Some(("at", at)) => fault.at = at.parse()?,
                Some(("until", until)) => fault.until = Some(until.parse()?),
                Some(("to", to)) => fault.to = Some(to.parse()?),
                Some(("host", name)) => fault.host = Some(name.into()),
                Some(("share", share)) => fault.share = Some(share.parse()?),
                Some(("rack", name)) => fault.rack = Some(name.into()),
                Some(("region", name)) => fault.region = Some(name.into()),
                None if part == "source" => fault.source = true,
                _ => return Err(word(part)),
            }
        }
        Ok(fault)
    }
}

/// A fault with its times and hosts.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// What.
    pub kind: Kind,
    /// From.
    pub at: Nanos,
    /// To.
    pub until: Option<Nanos>,
    /// What is left of the rates of slow hosts.
    pub factor: f64,
    /// Whom it concerns.
    pub hosts: Vec<HostId>,
    /// A rack whose uplink is cut.
    pub rack: Option<u32>,
    /// A region whose border is cut.
    pub region: Option<u32>,
}

impl Fault {
    /// Resolves names, shares and times.
    pub fn plan(
        &self,
        topology: &Topology,
        bound: Nanos,
        random: &mut Random,
    ) -> Result<Planned, FaultError> {
        let group = |groups: &[crate::topology::Group], name: &Option<String>, what: &str| {
            let Some(name) = name else { return Ok(None) };
            let at = groups.iter().position(|group| group.name == *name);
            at.map(|at| Some(at as u32)).ok_or_else(|| FaultError::Nobody(format!("{what} {name}")))
        };
        let rack = group(&topology.racks, &self.rack, "rack")?;
        let region = group(&topology.regions, &self.region, "region")?;
        let selections = [
            self.host.is_some(),
            self.share.is_some(),
            rack.is_some(),
            region.is_some(),
            self.source,
        ];
        if selections.iter().filter(|selected| **selected).count() != 1 {
            return Err(FaultError::Selection);
        }
        let hosts: Vec<HostId> = match (&self.host, self.share) {
            (Some(name), _) => {
                let prefix = name.strip_suffix('*');
                let is_meant = |host: &str| match prefix {
                    Some(prefix) => host.starts_with(prefix),
                    None => host == name,
                };
                let hosts = (0..).zip(&topology.hosts);
                hosts.filter(|(_, host)| is_meant(&host.name)).map(|(at, _)| at).collect()
            }
            (_, Some(share)) => {
                let targets: Vec<_> = topology.targets().collect();
                let count = (targets.len() as f64 * share.0).round() as usize;
                random.choose(&targets, count)
            }
            _ if self.source => vec![topology.source],
            _ => {
                let hosts = (0..).zip(&topology.hosts).filter(|(_, host)| {
                    rack.is_some() && host.rack == rack || region.is_some() && host.region == region
                });
                hosts.map(|(at, _)| at).collect()
            }
        };
        if hosts.is_empty() && self.share.is_none() {
            let names = [&self.host, &self.rack, &self.region];
            let name = names.into_iter().flatten().next().cloned().unwrap_or_default();
            return Err(FaultError::Nobody(format!("host for {name}")));
        }
        let (at, until) = (self.at.at(bound), self.until.map(|until| until.at(bound)));
        if until.is_some_and(|until| until <= at) {
            return Err(FaultError::Missing("until= must be later than at="));
        }
        let factor = match (self.kind, self.to) {
            (Kind::Slow, Some(to)) if to.0 > 0.0 => to.0,
            (Kind::Slow, _) => return Err(FaultError::Missing("slow needs to=, e.g. to=25%")),
            (_, Some(_)) => return Err(FaultError::Missing("to= belongs to slow")),
            _ => 1.0,
        };
        Ok(Planned { kind: self.kind, at, until, factor, hosts, rack, region })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Inventory;

    fn plan(text: &str) -> Result<Planned, FaultError> {
        let inventory = Inventory::parse(Inventory::EXAMPLE).unwrap();
        let topology = Topology::new(&inventory).unwrap();
        text.parse::<Fault>()?.plan(&topology, 4_000, &mut Random::new(1))
    }

    #[test]
    fn a_line_says_what_to_whom_and_when() {
        let kill = plan("kill share=10% at=50% until=3s").unwrap();
        assert_eq!((kill.at, kill.until, kill.hosts.len()), (2_000, Some(3_000_000_000), 8));
        assert_eq!(plan("kill rack=r3 at=1us").unwrap().hosts.len(), 21);
        assert_eq!(plan("cut region=branch at=0s").unwrap().region, Some(1));
        assert_eq!(plan("slow host=branch1* to=25% at=0s").unwrap().hosts.len(), 11);
        assert_eq!(plan("kill source at=150%").unwrap().at, 6_000);
    }

    #[test]
    fn a_wrong_line_says_why() {
        for (text, says) in [
            ("burn host=old", "expected e.g."),
            ("kill at=1s", "needs one of"),
            ("kill source host=old", "needs one of"),
            ("kill rack=r9", "no rack r9"),
            ("kill host=none", "no host for none"),
            ("slow host=old", "needs to="),
            ("kill host=old at=2s until=1s", "later"),
            ("kill host=old at=soon", "not a time"),
        ] {
            let error = plan(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_says_the_same() {
        let text = "[[fault]]\nkind='slow'\nhost='old'\nto='25%'\nat='10%'\nuntil='2s'\n";
        let scenario: Scenario = toml::from_str(text).unwrap();
        assert_eq!(scenario.faults[0].to, Some(Share(0.25)));
        assert_eq!(scenario.faults[0].at, When::OfBound(0.1));
    }
}
