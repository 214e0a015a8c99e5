//! A stream: where some data ids' records go, and what of it is on its way to the disk.

use std::collections::HashMap;
use std::path::PathBuf;

use skein_wire::fleet::v1 as fleet;
use skein_wire::ids::{DataId, Epoch, Sequence};

use crate::sinks::disk::FileId;
use crate::sinks::format::Format;
use crate::sinks::template::Template;

use super::lanes::LaneIndex;
use super::meter::StreamMeter;

/// When nothing else is configured: at most this long between a record and its ack.
const FLUSH_MS_DEFAULT: u64 = 50;

/// A longer interval would look like a stalled lane.
const FLUSH_MS_MAX: u64 = 10_000;

/// A stream that failed is tried again after this, doubled each time up to the maximum.
pub const RETRY_MS_MIN: u64 = 1_000;
/// See [`RETRY_MS_MIN`].
pub const RETRY_MS_MAX: u64 = 30_000;

/// A file stream's configuration, checked.
#[derive(Debug)]
pub struct StreamConfig {
    /// For `{stream}` and labels.
    pub name: String,
    /// Everything is below it.
    pub root: PathBuf,
    /// Where below it.
    pub template: Template,
    /// How records become lines.
    pub format: Format,
    /// A file that reached this is closed; `u64::MAX`: no bound.
    pub rotate_bytes: u64,
    /// A file that is older is closed; `u64::MAX`: no bound.
    pub rotate_ms: u64,
    /// Longest time between a record and its flush.
    pub flush_ms: u64,
    /// Acknowledged records survive power loss.
    pub durable: bool,
}

impl StreamConfig {
    /// Checks what control sent; the error is for the operator.
    pub fn check(stream: &fleet::Stream) -> Result<Self, String> {
        let Some(fleet::stream::Sink::File(file)) = &stream.sink else {
            return Err("has no sink that this version knows".to_owned());
        };
        let root = PathBuf::from(&file.directory);
        if !root.is_absolute() || file.directory.contains('\0') {
            return Err(format!("directory {:?} must be an absolute path", file.directory));
        }
        let none_to_max = |value: u64| if value == 0 { u64::MAX } else { value };
        Ok(Self {
            name: stream.name.clone(),
            root,
            template: Template::parse(&file.path_template).map_err(|error| error.to_string())?,
            format: Format::parse(&file.format).ok_or_else(|| {
                format!("format {:?} is unknown; use lines, tagged or json", file.format)
            })?,
            rotate_bytes: none_to_max(file.rotate_bytes),
            rotate_ms: none_to_max(u64::from(file.rotate_seconds).saturating_mul(1_000)),
            flush_ms: match u64::from(file.flush_interval_ms) {
                0 => FLUSH_MS_DEFAULT,
                given => given.min(FLUSH_MS_MAX),
            },
            durable: match file.durability.as_str() {
                "" | "power" => true,
                "process" => false,
                other => {
                    return Err(format!("durability {other:?} is unknown; use power or process"));
                }
            },
        })
    }
}

/// A lane's position that becomes true with the next flush of a stream.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    /// Whose.
    pub lane: LaneIndex,
    /// See [`super::lanes::Lane::generation`].
    pub generation: u32,
    /// Of the batch.
    pub epoch: Epoch,
    /// End of the batch.
    pub position: Sequence,
}

/// A stream whose sink does not take records now.
#[derive(Debug)]
pub struct Failure {
    /// When to look again.
    pub retry_at_ms: u64,
    /// Repairs that the driver has not answered.
    pub repairing: usize,
}

/// One stream.
#[derive(Debug)]
pub struct Stream {
    /// Its number in control.
    pub id: u32,
    /// What was configured, to see whether it changed.
    pub source: fleet::Stream,
    /// Checked; `None` when it is wrong, and its lanes are held.
    pub config: Option<StreamConfig>,
    /// The files that are appended to: one, or one per data id.
    pub current: HashMap<Option<DataId>, FileId>,
    /// These and former ones that are not yet complete.
    pub files: Vec<FileId>,
    /// Positions that the next flush makes true.
    pub marks: Vec<Mark>,
    /// When the oldest unflushed record came.
    pub dirty_since_ms: Option<u64>,
    /// Unflushed records.
    pub dirty_records: u64,
    /// Unflushed bytes.
    pub dirty_bytes: u64,
    /// Set while its sink fails.
    pub failure: Option<Failure>,
    /// Rises with each failure, so that a flush that was under way does not count.
    pub generation: u32,
    /// How long to wait after the next failure.
    pub retry_ms: u64,
    /// Its counters.
    pub meter: StreamMeter,
}

impl Stream {
    /// A stream as control sent it.
    pub fn new(source: fleet::Stream) -> Self {
        let config = StreamConfig::check(&source)
            .inspect_err(|error| {
                tracing::error!(stream = source.name, error, "stream is held: configuration");
            })
            .ok();
        Self {
            id: source.stream_id,
            meter: StreamMeter::new(&source.name),
            source,
            config,
            current: HashMap::new(),
            files: Vec::new(),
            marks: Vec::new(),
            dirty_since_ms: None,
            dirty_records: 0,
            dirty_bytes: 0,
            failure: None,
            generation: 0,
            retry_ms: RETRY_MS_MIN,
        }
    }

    /// Whether lanes may send.
    pub fn takes_records(&self) -> bool {
        self.config.is_some() && self.failure.is_none()
    }

    /// When its unflushed records are due.
    pub fn flush_at_ms(&self) -> Option<u64> {
        let config = self.config.as_ref()?;
        self.dirty_since_ms.map(|since| since.saturating_add(config.flush_ms))
    }

    /// Forgets what is unflushed.
    pub fn forget_dirty(&mut self) {
        self.marks.clear();
        self.dirty_since_ms = None;
        (self.dirty_records, self.dirty_bytes) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(change: impl FnOnce(&mut fleet::FileStream)) -> fleet::Stream {
        let mut file = fleet::FileStream {
            directory: "/var/sink".to_owned(),
            path_template: "{stream}.log".to_owned(),
            ..Default::default()
        };
        change(&mut file);
        let sink = Some(fleet::stream::Sink::File(file));
        fleet::Stream { stream_id: 1, name: "s".to_owned(), sink }
    }

    #[test]
    fn defaults_are_safe_and_bounds_hold() {
        let config = StreamConfig::check(&stream(|_| ())).unwrap();
        assert!(config.durable);
        assert_eq!((config.flush_ms, config.rotate_bytes), (50, u64::MAX));
        let slow = StreamConfig::check(&stream(|file| file.flush_interval_ms = u32::MAX)).unwrap();
        assert_eq!(slow.flush_ms, FLUSH_MS_MAX);
    }

    #[test]
    fn wrong_configurations_say_what_is_wrong() {
        type Change = fn(&mut fleet::FileStream);
        let changes: [(Change, &str); 4] = [
            (|file| file.directory = "relative".to_owned(), "absolute"),
            (|file| file.path_template = "../x".to_owned(), "below"),
            (|file| file.format = "xml".to_owned(), "json"),
            (|file| file.durability = "maybe".to_owned(), "process"),
        ];
        for (change, expected) in changes {
            let error = StreamConfig::check(&stream(change)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let empty = fleet::Stream { sink: None, ..stream(|_| ()) };
        assert!(StreamConfig::check(&empty).is_err());
    }
}
