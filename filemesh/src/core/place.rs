//! Where a host stands and how fast it is: what plans are made from.

/// Where a host stands. Equal numbers mean the same place; zones are counted within their region
/// and racks within their zone. Where nothing is known, all hosts stand in the same place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Hosts of one region reach each other without a thin border between them.
    pub region: u16,
    /// Part of a region.
    pub zone: u16,
    /// Hosts behind one switch.
    pub rack: u32,
}

/// What a host sends and receives at most, in bytes per second; `None` where it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// What it sends.
    pub up_bytes_s: Option<u64>,
    /// What it receives.
    pub down_bytes_s: Option<u64>,
}

impl Rates {
    /// The same rate in both directions.
    pub fn both(bytes_s: u64) -> Self {
        Self { up_bytes_s: Some(bytes_s), down_bytes_s: Some(bytes_s) }
    }
}
