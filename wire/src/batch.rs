//! The batch: records of one lane that travel, are stored and are acknowledged together.
//!
//! A fixed clear header of 64 bytes tells a router everything it needs; the body is the `records`
//! section of a Kafka v2 batch, compressed once at the agent.
//!
//! ```text
//!  0  4  magic "SKB1"               32  8  sequence of the first record
//!  4  1  version, 1                 40  8  base timestamp, ms since 1970
//!  5  1  codec (Kafka's number)     48  8  highest timestamp, ms since 1970
//!  6  1  flags                      56  4  CRC-32C of the body
//!  7  1  zero                       60  4  CRC-32C of bytes 0 to 59
//!  8  4  data id
//! 12  4  records
//! 16  4  bytes of the body
//! 20  4  bytes of the body when opened
//! 24  8  epoch
//! ```
//! All numbers are big-endian. (agent, data id, epoch, sequence) names a record everywhere;
//! record 0 of each body repeats it in a header named `skein.batch`, for sinks that take the body
//! as it is.

use crate::compress::{Codec, CompressError, Compressor};
use crate::hello::array;
use crate::ids::{AgentId, DataId, Epoch, Sequence};
use crate::limits::{
    BATCH_BODY_BYTES_MAX, BATCH_RAW_BYTES_MAX, BATCH_RECORDS_MAX, RECORD_BYTES_MAX,
};
use crate::records::{self, RECORD_OVERHEAD_BYTES_MAX};

/// Bytes of a batch header.
pub const HEADER_BYTES: usize = 64;

/// Records before this batch were dropped by the agent, on purpose and counted there.
pub const FLAG_GAP_BEFORE: u8 = 1;

/// Name of the header of record 0 that carries the batch's identity: agent id, 0 byte, then data
/// id, epoch and sequence as in the batch header.
pub const IDENTITY_HEADER: &[u8] = b"skein.batch";

const MAGIC: [u8; 4] = *b"SKB1";
const VERSION: u8 = 1;

/// Room that [`BatchBuilder`] leaves for the identity header in record 0.
const IDENTITY_BYTES_MAX: usize = IDENTITY_HEADER.len() + AgentId::CHARS_MAX + 1 + 4 + 8 + 8 + 4;

/// What is wrong with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Not a batch at all.
    #[error("not a batch: wrong magic")]
    Magic,
    /// A version that this code does not know.
    #[error("batch version {0} is unknown; upgrade the receiver first")]
    Version(u8),
    /// The header was altered on the way.
    #[error("batch header's checksum is wrong")]
    HeaderCrc,
    /// The body was altered on the way.
    #[error("batch body's checksum is wrong")]
    BodyCrc,
    /// A codec that this code does not know.
    #[error("batch codec {0} is unknown")]
    Codec(u8),
    /// A count or length that is zero or past its bound.
    #[error("batch field {field} is {value}; the bound is {max}")]
    Bound {
        /// Which.
        field: &'static str,
        /// What it says.
        value: u64,
        /// What it may say.
        max: u64,
    },
    /// The body is not as long as its header says.
    #[error("batch body has {actual} bytes where its header says {stated}")]
    BodyLength {
        /// By the header.
        stated: usize,
        /// What is there.
        actual: usize,
    },
}

/// The clear header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchHeader {
    /// How the body is compressed.
    pub codec: Codec,
    /// [`FLAG_GAP_BEFORE`].
    pub flags: u8,
    /// With the agent it names the lane.
    pub data_id: DataId,
    /// Records in the body, 1 to [`BATCH_RECORDS_MAX`].
    pub record_count: u32,
    /// Bytes of the body.
    pub body_bytes: u32,
    /// Bytes of the body when opened.
    pub raw_bytes: u32,
    /// The lane's life.
    pub epoch: Epoch,
    /// Number of the first record.
    pub first: Sequence,
    /// Timestamp to which records' deltas are added, ms since 1970.
    pub base_timestamp_ms: i64,
    /// Highest timestamp of the batch, ms since 1970.
    pub max_timestamp_ms: i64,
    /// CRC-32C of the body as it travels.
    pub body_crc: u32,
}

impl BatchHeader {
    /// The bytes on the wire.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        out[5] = self.codec as u8;
        out[6] = self.flags;
        out[8..12].copy_from_slice(&self.data_id.0.to_be_bytes());
        out[12..16].copy_from_slice(&self.record_count.to_be_bytes());
        out[16..20].copy_from_slice(&self.body_bytes.to_be_bytes());
        out[20..24].copy_from_slice(&self.raw_bytes.to_be_bytes());
        out[24..32].copy_from_slice(&self.epoch.0.to_be_bytes());
        out[32..40].copy_from_slice(&self.first.0.to_be_bytes());
        out[40..48].copy_from_slice(&self.base_timestamp_ms.to_be_bytes());
        out[48..56].copy_from_slice(&self.max_timestamp_ms.to_be_bytes());
        out[56..60].copy_from_slice(&self.body_crc.to_be_bytes());
        let crc = crc32c::crc32c(&out[..60]);
        out[60..].copy_from_slice(&crc.to_be_bytes());
        out
    }

    /// Reads the bytes of [`BatchHeader::encode`] and checks magic, version, checksum and bounds.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, BatchError> {
        if bytes[..4] != MAGIC {
            return Err(BatchError::Magic);
        }
        if bytes[4] != VERSION {
            return Err(BatchError::Version(bytes[4]));
        }
        if crc32c::crc32c(&bytes[..60]) != u32::from_be_bytes(array(&bytes[60..64])) {
            return Err(BatchError::HeaderCrc);
        }
        let number = |range: std::ops::Range<usize>| u32::from_be_bytes(array(&bytes[range]));
        let long = |range: std::ops::Range<usize>| u64::from_be_bytes(array(&bytes[range]));
        let header = Self {
            codec: Codec::from_u8(bytes[5]).ok_or(BatchError::Codec(bytes[5]))?,
            flags: bytes[6],
            data_id: DataId(number(8..12)),
            record_count: number(12..16),
            body_bytes: number(16..20),
            raw_bytes: number(20..24),
            epoch: Epoch(long(24..32)),
            first: Sequence(long(32..40)),
            base_timestamp_ms: long(40..48) as i64,
            max_timestamp_ms: long(48..56) as i64,
            body_crc: number(56..60),
        };
        header.check_bounds()?;
        Ok(header)
    }

    fn check_bounds(&self) -> Result<(), BatchError> {
        let bound = |field, value: u64, max: u64| match value {
            value if value == 0 || value > max => Err(BatchError::Bound { field, value, max }),
            _ => Ok(()),
        };
        bound("records", self.record_count.into(), BATCH_RECORDS_MAX as u64)?;
        bound("body bytes", self.body_bytes.into(), BATCH_BODY_BYTES_MAX as u64)?;
        bound("raw bytes", self.raw_bytes.into(), BATCH_RAW_BYTES_MAX as u64)?;
        let last = self.first.0.checked_add(self.record_count.into());
        last.map(|_| ()).ok_or(BatchError::Bound {
            field: "sequence",
            value: self.first.0,
            max: u64::MAX - u64::from(self.record_count),
        })
    }

    /// The position after the last record.
    pub fn end(&self) -> Sequence {
        self.first.plus(self.record_count.into())
    }

    /// Bytes that this batch takes on the wire and of a lane's credit.
    pub fn wire_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.body_bytes)
    }

    /// Whether `body` is what the agent sealed.
    pub fn verify_body(&self, body: &[u8]) -> Result<(), BatchError> {
        if body.len() != self.body_bytes as usize {
            let stated = self.body_bytes as usize;
            return Err(BatchError::BodyLength { stated, actual: body.len() });
        }
        (crc32c::crc32c(body) == self.body_crc).then_some(()).ok_or(BatchError::BodyCrc)
    }
}

/// What cannot be put into a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The compressor's own word.
    #[error(transparent)]
    Compress(#[from] CompressError),
    /// A body past [`BATCH_BODY_BYTES_MAX`] even when compressed; the record cannot travel.
    #[error("batch body has {0} bytes when compressed; the bound is {BATCH_BODY_BYTES_MAX}")]
    TooLong(usize),
    /// Nothing was pushed.
    #[error("batch is empty")]
    Empty,
}

/// Collects records of one lane until they are worth sealing.
///
/// Values are kept as they came and encoded when the batch is sealed, because record 0 names the
/// batch's sequence, which is known only then.
#[derive(Debug)]
pub struct BatchBuilder {
    data_id: DataId,
    raw_target_bytes: usize,
    values: Vec<u8>,
    /// (timestamp, end of the value in `values`).
    records: Vec<(i64, usize)>,
    raw: Vec<u8>,
}

impl BatchBuilder {
    /// A batch is full at about `raw_target_bytes` before compression. Targets past what an
    /// incompressible body may have are lowered to it.
    pub fn new(data_id: DataId, raw_target_bytes: usize) -> Self {
        let raw_target_bytes = raw_target_bytes.min(BATCH_BODY_BYTES_MAX - 64 * 1024);
        Self { data_id, raw_target_bytes, values: Vec::new(), records: Vec::new(), raw: Vec::new() }
    }

    /// Adds a record, or answers false when the batch must be sealed first. An empty batch takes
    /// any record up to [`RECORD_BYTES_MAX`].
    pub fn push(&mut self, timestamp_ms: i64, value: &[u8]) -> bool {
        if value.len() > RECORD_BYTES_MAX {
            return false;
        }
        let grown = self.raw_len() + value.len() + RECORD_OVERHEAD_BYTES_MAX;
        let fits = grown <= self.raw_target_bytes && self.records.len() < BATCH_RECORDS_MAX;
        if !fits && !self.records.is_empty() {
            return false;
        }
        self.values.extend_from_slice(value);
        self.records.push((timestamp_ms, self.values.len()));
        true
    }

    /// An upper bound of the bytes of the body before compression.
    pub fn raw_len(&self) -> usize {
        self.values.len() + self.records.len() * RECORD_OVERHEAD_BYTES_MAX + IDENTITY_BYTES_MAX
    }

    /// Records so far.
    pub fn count(&self) -> usize {
        self.records.len()
    }

    /// Whether nothing was pushed since the last seal.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The lane's data id.
    pub fn data_id(&self) -> DataId {
        self.data_id
    }

    /// Seals what was pushed into a header and a body and empties the builder, also on error: a
    /// record that cannot travel must not be tried for ever.
    pub fn seal(
        &mut self,
        (agent, epoch, first): (&AgentId, Epoch, Sequence),
        compressor: &mut Compressor,
        flags: u8,
    ) -> Result<(BatchHeader, Vec<u8>), SealError> {
        let sealed = self.try_seal((agent, epoch, first), compressor, flags);
        self.values.clear();
        self.records.clear();
        self.raw.clear();
        // One large record must not keep its memory for ever.
        self.values.shrink_to(2 * self.raw_target_bytes);
        self.raw.shrink_to(2 * self.raw_target_bytes);
        sealed
    }

    fn try_seal(
        &mut self,
        (agent, epoch, first): (&AgentId, Epoch, Sequence),
        compressor: &mut Compressor,
        flags: u8,
    ) -> Result<(BatchHeader, Vec<u8>), SealError> {
        let base_timestamp_ms =
            self.records.iter().map(|(at, _)| *at).min().ok_or(SealError::Empty)?;
        let max_timestamp_ms =
            self.records.iter().map(|(at, _)| *at).max().ok_or(SealError::Empty)?;
        let identity = identity(agent, self.data_id, epoch, first);
        let mut start = 0;
        for (index, (timestamp_ms, end)) in self.records.iter().enumerate() {
            let headers: &[records::Header<'_>] =
                if index == 0 { &[(IDENTITY_HEADER, &identity)] } else { &[] };
            let delta = timestamp_ms.wrapping_sub(base_timestamp_ms);
            let value = &self.values[start..*end];
            records::encode_record(&mut self.raw, delta, index as u32, None, value, headers);
            start = *end;
        }
        let mut body = Vec::new();
        compressor.compress(&self.raw, &mut body)?;
        if body.len() > BATCH_BODY_BYTES_MAX {
            return Err(SealError::TooLong(body.len()));
        }
        let header = BatchHeader {
            codec: compressor.codec(),
            flags,
            data_id: self.data_id,
            record_count: self.records.len() as u32,
            body_bytes: body.len() as u32,
            raw_bytes: self.raw.len() as u32,
            epoch,
            first,
            base_timestamp_ms,
            max_timestamp_ms,
            body_crc: crc32c::crc32c(&body),
        };
        Ok((header, body))
    }
}

/// Value of [`IDENTITY_HEADER`].
fn identity(agent: &AgentId, data_id: DataId, epoch: Epoch, first: Sequence) -> Vec<u8> {
    let mut value = Vec::with_capacity(AgentId::CHARS_MAX + 21);
    value.extend_from_slice(agent.as_str().as_bytes());
    value.push(0);
    value.extend_from_slice(&data_id.0.to_be_bytes());
    value.extend_from_slice(&epoch.0.to_be_bytes());
    value.extend_from_slice(&first.0.to_be_bytes());
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::Decompressor;
    use proptest::prelude::*;

    fn agent() -> AgentId {
        AgentId::parse("agent-1").unwrap()
    }

    fn seal(builder: &mut BatchBuilder, codec: Codec) -> (BatchHeader, Vec<u8>) {
        let mut compressor = Compressor::new(codec, 1).unwrap();
        builder.seal((&agent(), Epoch(3), Sequence(100)), &mut compressor, 0).unwrap()
    }

    #[test]
    fn a_batch_built_by_hand_is_byte_for_byte_what_the_builder_seals() {
        let mut builder = BatchBuilder::new(DataId(7), 1000);
        assert!(builder.push(5000, b"one"));
        assert!(builder.push(5002, b"two"));
        let (header, body) = seal(&mut builder, Codec::None);

        // Kafka v2 records by hand: zig-zag varints, -1 key, value, headers.
        let mut expected = Vec::new();
        let identity = b"agent-1\0\0\0\0\x07\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x64";
        let record0_length = 1 + 1 + 1 + 1 + (1 + 3) + 1 + (1 + 11) + (1 + identity.len());
        expected.push(record0_length as u8 * 2);
        expected.extend_from_slice(b"\x00\x00\x00\x01\x06one\x02\x16skein.batch");
        expected.push(identity.len() as u8 * 2);
        expected.extend_from_slice(identity);
        expected.extend_from_slice(b"\x12\x00\x04\x02\x01\x06two\x00");
        assert_eq!(body, expected);

        let mut bytes = *b"SKB1\x01\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x02\
            \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\
            \x00\x00\x00\x00\x00\x00\x00\x64\x00\x00\x00\x00\x00\x00\x13\x88\
            \x00\x00\x00\x00\x00\x00\x13\x8a\x00\x00\x00\x00\x00\x00\x00\x00";
        bytes[19] = expected.len() as u8;
        bytes[23] = expected.len() as u8;
        bytes[56..60].copy_from_slice(&crc32c::crc32c(&expected).to_be_bytes());
        let header_crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&header_crc.to_be_bytes());
        assert_eq!(header.encode(), bytes);
        assert_eq!(BatchHeader::decode(&bytes), Ok(header));
    }

    #[test]
    fn every_altered_byte_of_a_header_is_noticed() {
        let mut builder = BatchBuilder::new(DataId(7), 1000);
        builder.push(1, b"x");
        let bytes = seal(&mut builder, Codec::Zstd).0.encode();
        for index in 0..HEADER_BYTES {
            for bit in 0..8 {
                let mut altered = bytes;
                altered[index] ^= 1 << bit;
                assert!(BatchHeader::decode(&altered).is_err(), "byte {index} bit {bit}");
            }
        }
    }

    #[test]
    fn an_empty_builder_takes_one_large_record_and_no_more() {
        let mut builder = BatchBuilder::new(DataId(1), 1000);
        assert!(builder.push(0, &vec![0; 5_000_000]));
        assert!(!builder.push(0, b"x"));
        let (header, _) = seal(&mut builder, Codec::Zstd);
        assert!(header.raw_bytes > 5_000_000 && builder.is_empty());
        assert!(!builder.push(0, &vec![0; RECORD_BYTES_MAX + 1]));
    }

    #[test]
    fn an_incompressible_giant_is_refused_and_forgotten() {
        let mut state = 1u64;
        let noise: Vec<u8> = (0..2_000_000)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            })
            .collect();
        let mut builder = BatchBuilder::new(DataId(1), 1000);
        assert!(builder.push(0, &noise));
        let mut compressor = Compressor::new(Codec::Zstd, 1).unwrap();
        let sealed = builder.seal((&agent(), Epoch(0), Sequence(0)), &mut compressor, 0);
        assert!(matches!(sealed, Err(SealError::TooLong(_))));
        assert!(builder.is_empty());
    }

    proptest! {
        #[test]
        fn sealed_records_come_back(
            values in prop::collection::vec((0i64..1_000_000, prop::collection::vec(any::<u8>(), 0..300)), 1..100),
            codec in prop::sample::select(vec![Codec::None, Codec::Lz4, Codec::Zstd]),
        ) {
            let mut builder = BatchBuilder::new(DataId(1), 800_000);
            for (at, value) in &values {
                prop_assert!(builder.push(*at, value));
            }
            let bound = builder.raw_len();
            let (header, body) = seal(&mut builder, codec);
            prop_assert!(header.raw_bytes as usize <= bound);
            header.verify_body(&body).unwrap();
            let header = BatchHeader::decode(&header.encode()).unwrap();
            let mut raw = Vec::new();
            Decompressor::new().decompress(codec, &body, header.raw_bytes as usize, &mut raw).unwrap();
            let read: Vec<_> = records::iter(&raw, header.record_count).map(Result::unwrap).collect();
            prop_assert_eq!(read.len(), values.len());
            for (record, (at, value)) in read.iter().zip(&values) {
                prop_assert_eq!(record.value, &value[..]);
                prop_assert_eq!(header.base_timestamp_ms + record.timestamp_delta, *at);
            }
        }

        #[test]
        fn any_64_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 64)) {
            let mut bytes: [u8; 64] = bytes.try_into().unwrap();
            let _ = BatchHeader::decode(&bytes);
            bytes[..5].copy_from_slice(b"SKB1\x01");
            let crc = crc32c::crc32c(&bytes[..60]);
            bytes[60..].copy_from_slice(&crc.to_be_bytes());
            if let Ok(header) = BatchHeader::decode(&bytes) {
                prop_assert_eq!(BatchHeader::decode(&header.encode()), Ok(header));
            }
        }
    }
}
