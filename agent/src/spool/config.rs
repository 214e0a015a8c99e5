//! What may be decided about the spool.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use skein_wire::compress::Codec;

/// `[spool]` of `agent.toml`: bounds of the on-disk buffer of records.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct SpoolConfig {
    /// Disk that all lanes together may take.
    pub max_bytes: u64,
    /// Disk that one lane may take; 0: half of `max_bytes`.
    pub lane_max_bytes: u64,
    /// A lane that the server holds (unknown data id, dead sink) grows to at most this; 0: a
    /// sixteenth of `max_bytes`.
    pub held_lane_max_bytes: u64,
    /// What must survive: "process" (kill -9 of the agent) or "power" (flushed before it counts).
    pub durability: Durability,
    /// With durability "power": how long records may wait for a common flush.
    pub flush_ms: u32,
    /// How long records may wait to fill a batch.
    pub linger_ms: u32,
    /// Raw bytes at which a batch is sealed.
    pub batch_bytes: u32,
    /// "zstd", "lz4" or "none".
    pub codec: CodecName,
    /// zstd's level.
    pub level: i32,
}

/// What an appended record survives.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// The end of the agent, however sudden: records are in the page cache.
    #[default]
    Process,
    /// Loss of power: records are flushed to the disk before they are sent or acknowledged.
    Power,
}

/// How bodies of batches are compressed.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CodecName {
    /// Not at all.
    None,
    /// Fast.
    Lz4,
    /// Small.
    #[default]
    Zstd,
}

impl From<CodecName> for Codec {
    fn from(name: CodecName) -> Codec {
        match name {
            CodecName::None => Codec::None,
            CodecName::Lz4 => Codec::Lz4,
            CodecName::Zstd => Codec::Zstd,
        }
    }
}

impl Default for SpoolConfig {
    fn default() -> SpoolConfig {
        SpoolConfig {
            max_bytes: 512 * 1024 * 1024,
            lane_max_bytes: 0,
            held_lane_max_bytes: 0,
            durability: Durability::Process,
            flush_ms: 20,
            linger_ms: 100,
            batch_bytes: 256 * 1024,
            codec: CodecName::Zstd,
            level: 1,
        }
    }
}

/// A cap below this cannot hold a few batches per lane.
pub const MAX_BYTES_MIN: u64 = 4 * 1024 * 1024;

/// The bounds that follow from a configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Bounds {
    pub total_bytes: u64,
    pub lane_bytes: u64,
    pub held_bytes: u64,
    /// Size at which a segment is followed by another; space is given back in this unit.
    pub segment_bytes: u64,
    pub batch_bytes: usize,
}

impl SpoolConfig {
    /// What is wrong with the values, for the person who wrote them.
    pub fn validate(&self) -> Result<(), String> {
        if self.max_bytes < MAX_BYTES_MIN {
            return Err(format!("spool.max_bytes must be at least {MAX_BYTES_MIN}"));
        }
        if !(4 * 1024..=832 * 1024).contains(&self.batch_bytes) {
            return Err("spool.batch_bytes must be between 4096 and 851968".into());
        }
        if self.linger_ms > 10_000 || self.flush_ms > 10_000 {
            return Err("spool.linger_ms and spool.flush_ms must be at most 10000".into());
        }
        if !(-7..=19).contains(&self.level) {
            return Err("spool.level must be between -7 and 19".into());
        }
        Ok(())
    }

    pub(super) fn bounds(&self) -> Bounds {
        let total_bytes = self.max_bytes.max(MAX_BYTES_MIN);
        let share = |given: u64, part: u64| {
            let wanted = if given == 0 { total_bytes / part } else { given };
            wanted.clamp(256 * 1024, total_bytes)
        };
        let lane_bytes = share(self.lane_max_bytes, 2);
        let held_bytes = share(self.held_lane_max_bytes, 16).min(lane_bytes);
        Bounds {
            total_bytes,
            lane_bytes,
            held_bytes,
            segment_bytes: (held_bytes / 8).clamp(64 * 1024, 4 * 1024 * 1024),
            batch_bytes: self.batch_bytes as usize,
        }
    }
}

/// Where a spool lives and what it must know of its host.
#[derive(Clone, Debug)]
pub struct Place {
    /// The folder; one folder per lane below it.
    pub dir: PathBuf,
    /// The boot of this host. After another boot, page-cache contents may be lost.
    pub boot_id: [u8; 16],
}

impl Place {
    /// The folder on this host as it runs now.
    pub fn on_this_host(dir: impl Into<PathBuf>) -> Place {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let mut boot_id = [0; 16];
        let mut digits = text.bytes().filter_map(|byte| char::from(byte).to_digit(16));
        for byte in &mut boot_id {
            *byte = (digits.next().unwrap_or(0) << 4 | digits.next().unwrap_or(0)) as u8;
        }
        Place { dir: dir.into(), boot_id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_from_the_cap() {
        let bounds = SpoolConfig::default().bounds();
        assert_eq!(bounds.lane_bytes, 256 << 20);
        assert_eq!(bounds.held_bytes, 32 << 20);
        assert_eq!(bounds.segment_bytes, 4 << 20);
        let small = SpoolConfig { max_bytes: 4 << 20, ..SpoolConfig::default() };
        assert_eq!(small.validate(), Ok(()));
        assert_eq!(small.bounds().segment_bytes, 64 << 10);
    }

    #[test]
    fn values_out_of_range_are_named() {
        for config in [
            SpoolConfig { max_bytes: 1, ..SpoolConfig::default() },
            SpoolConfig { batch_bytes: 1, ..SpoolConfig::default() },
            SpoolConfig { linger_ms: 60_000, ..SpoolConfig::default() },
            SpoolConfig { level: 40, ..SpoolConfig::default() },
        ] {
            assert!(config.validate().unwrap_err().contains("spool."));
        }
    }
}
