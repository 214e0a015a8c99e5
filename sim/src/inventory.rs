//! The fleet as a user describes it: hosts, racks and regions with their rates, in TOML or JSON.
//!
//! Every entry may stand for many (`count`); `{}` in its name becomes 1, 2, 3. See
//! [`Inventory::EXAMPLE`] for the whole format.

use crate::units::{Bytes, Rate, Share, Span};
use serde::Deserialize;
use std::path::Path;

/// Hosts of an inventory at most.
pub const HOSTS_MAX: usize = 200_000;

/// A fleet.
#[derive(Debug, Clone, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    /// What holds everywhere.
    #[serde(default)]
    pub network: Common,
    /// Groups of hosts; the first host is the source unless one says so.
    #[serde(default, rename = "host")]
    pub hosts: Vec<HostGroup>,
    /// Racks, whose uplinks hosts of a rack share.
    #[serde(default, rename = "rack")]
    pub racks: Vec<Shared>,
    /// Regions, whose borders racks and hosts of a region share.
    #[serde(default, rename = "region")]
    pub regions: Vec<Shared>,
}

/// What holds for all links and connections.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Common {
    /// Payload bytes per byte of a link's rate.
    pub efficiency: Share,
    /// What one socket holds back from its sender.
    pub socket_buffer: Bytes,
}

impl Default for Common {
    /// TCP over Ethernet with an MTU of 1500, rates counted as `tc` counts them.
    fn default() -> Self {
        Self { efficiency: Share(0.957), socket_buffer: Bytes(256 << 10) }
    }
}

fn one() -> u32 {
    1
}

/// One host or many alike.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostGroup {
    /// Name; `{}` is replaced by a number when there are several.
    pub name: String,
    /// How many.
    #[serde(default = "one")]
    pub count: u32,
    /// Rate of both directions, unless `up` or `down` say otherwise.
    pub rate: Option<Rate>,
    /// Sending.
    pub up: Option<Rate>,
    /// Receiving.
    pub down: Option<Rate>,
    /// From here to the next switch, one way.
    #[serde(default = "Span::host")]
    pub latency: Span,
    /// Share of segments lost on the host's own link.
    pub loss: Option<Share>,
    /// The rack's name; `{}` is filled by `per_rack`.
    pub rack: Option<String>,
    /// How many of the group share a rack before the next one begins.
    pub per_rack: Option<u32>,
    /// The region's name, for hosts without a rack or whose rack names none.
    pub region: Option<String>,
    /// Whether this host has the file.
    #[serde(default)]
    pub source: bool,
}

/// One rack or region, or many alike: what leaves it and what enters it share a link each.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shared {
    /// Name; `{}` is replaced by a number when there are several.
    pub name: String,
    /// How many.
    #[serde(default = "one")]
    pub count: u32,
    /// Rate of both directions; without any rate the link is never the limit.
    pub rate: Option<Rate>,
    /// Leaving.
    pub up: Option<Rate>,
    /// Entering.
    pub down: Option<Rate>,
    /// Added one way on each crossing.
    #[serde(default = "Span::none")]
    pub latency: Span,
    /// Share of segments lost on each crossing.
    pub loss: Option<Share>,
    /// A rack's region.
    pub region: Option<String>,
}

impl Span {
    fn host() -> Self {
        Self(25_000)
    }

    fn none() -> Self {
        Self(0)
    }
}

/// Why an inventory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The file could not be read.
    #[error("{0}: {1}")]
    Read(String, std::io::Error),
    /// It is not TOML of this form.
    #[error("{0}: {1}")]
    Toml(String, Box<toml::de::Error>),
    /// It is not JSON of this form.
    #[error("{0}: {1}")]
    Json(String, serde_json::Error),
    /// It contradicts itself.
    #[error("{0}")]
    Meaning(String),
}

impl Inventory {
    /// An inventory with everything that one can have.
    pub const EXAMPLE: &str = include_str!("example.toml");

    /// Reads a file: JSON if its name ends so, else TOML.
    pub fn read(path: &Path) -> Result<Self, InventoryError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| InventoryError::Read(name.clone(), error))?;
        if path.extension().is_some_and(|extension| extension == "json") {
            return serde_json::from_str(&text).map_err(|error| InventoryError::Json(name, error));
        }
        Self::parse(&text).map_err(|error| InventoryError::Toml(name, Box::new(error)))
    }

    /// Reads TOML.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }
}

/// The name of the `number`th (from 0) of a group of `count`.
pub(crate) fn numbered(name: &str, number: u32) -> String {
    name.replace("{}", &(number + 1).to_string())
}
