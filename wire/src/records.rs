//! The `records` section of a Kafka v2 record batch: the body of every Skein batch.
//!
//! A record is (Kafka protocol guide, "Record Batch"): its length (varint), attributes (one byte,
//! 0), timestamp delta (varlong), offset delta (varint), key length (varint, -1: none) and key,
//! value length and value, and a counted list of headers. Varints are zig-zag. Because the bytes
//! are Kafka's own, a broker can later take a body as it is.

/// A header of a record: name and value.
pub type Header<'a> = (&'a [u8], &'a [u8]);

/// Most headers that a record may have.
pub const HEADERS_MAX: usize = 64;

/// One record, borrowed from an opened body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Milliseconds after the batch's base timestamp.
    pub timestamp_delta: i64,
    /// Number within the batch, from 0.
    pub offset_delta: u32,
    /// Skein's agents send none.
    pub key: Option<&'a [u8]>,
    /// What the collector gave.
    pub value: &'a [u8],
    /// The encoded headers; read them with [`Record::headers`].
    headers: &'a [u8],
    header_count: u32,
}

impl<'a> Record<'a> {
    /// The record's headers in order. They were checked when the record was read.
    pub fn headers(&self) -> impl Iterator<Item = Header<'a>> + use<'a> {
        let mut reader = Reader { bytes: self.headers };
        (0..self.header_count).map_while(move |_| reader.header().ok())
    }
}

/// What is wrong with a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A field reaches past the end.
    #[error("record is cut off")]
    CutOff,
    /// More than ten bytes of varint, a negative length, or a number past its type.
    #[error("record has an impossible number")]
    Number,
    /// The record's length does not fit its fields.
    #[error("record's length does not fit its fields")]
    Length,
    /// Offset deltas are not 0, 1, 2 …
    #[error("record {expected} is numbered {actual}")]
    Order {
        /// Its place.
        expected: u32,
        /// Its offset delta.
        actual: i64,
    },
    /// More headers than [`HEADERS_MAX`].
    #[error("record has {0} headers")]
    Headers(i64),
    /// Bytes follow the last record.
    #[error("{0} bytes follow the last record")]
    Trailing(usize),
}

/// Bytes that [`encode_record`] appends at most on top of key, value and headers' content.
pub const RECORD_OVERHEAD_BYTES_MAX: usize = 40;

/// Appends one record to `out`.
pub fn encode_record(
    out: &mut Vec<u8>,
    timestamp_delta: i64,
    offset_delta: u32,
    key: Option<&[u8]>,
    value: &[u8],
    headers: &[Header<'_>],
) {
    let field = |bytes: &[u8]| varint_len(bytes.len() as i64) + bytes.len();
    let length = 1
        + varint_len(timestamp_delta)
        + varint_len(offset_delta.into())
        + key.map_or(1, field)
        + field(value)
        + varint_len(headers.len() as i64)
        + headers.iter().map(|(name, value)| field(name) + field(value)).sum::<usize>();
    out.reserve(length + 5);
    put_varint(out, length as i64);
    out.push(0);
    put_varint(out, timestamp_delta);
    put_varint(out, offset_delta.into());
    match key {
        Some(key) => put_field(out, key),
        None => put_varint(out, -1),
    }
    put_field(out, value);
    put_varint(out, headers.len() as i64);
    for (name, value) in headers {
        put_field(out, name);
        put_field(out, value);
    }
}

/// The records of an opened body, of which there must be `count`, numbered from 0. Iteration ends
/// at the first error.
pub fn iter(raw: &[u8], count: u32) -> RecordIter<'_> {
    RecordIter { reader: Reader { bytes: raw }, next: 0, count }
}

/// See [`iter`].
#[derive(Debug)]
pub struct RecordIter<'a> {
    reader: Reader<'a>,
    next: u32,
    count: u32,
}

impl<'a> Iterator for RecordIter<'a> {
    type Item = Result<Record<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next == self.count {
            let trailing = std::mem::take(&mut self.reader.bytes).len();
            return (trailing > 0).then_some(Err(RecordError::Trailing(trailing)));
        }
        let record = self.reader.record(self.next);
        self.next = if record.is_ok() { self.next + 1 } else { self.count };
        if record.is_err() {
            self.reader.bytes = &[];
        }
        Some(record)
    }
}

#[derive(Debug)]
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn record(&mut self, expected: u32) -> Result<Record<'a>, RecordError> {
        let length = self.length()?;
        let mut fields = Reader { bytes: self.take(length)? };
        fields.take(1)?;
        let timestamp_delta = fields.varint()?;
        let offset_delta = fields.varint()?;
        if offset_delta != i64::from(expected) {
            return Err(RecordError::Order { expected, actual: offset_delta });
        }
        let key = match fields.varint()? {
            -1 => None,
            length => Some(fields.take(to_length(length)?)?),
        };
        let value = fields.field()?;
        let header_count = fields.varint()?;
        if !(0..=HEADERS_MAX as i64).contains(&header_count) {
            return Err(RecordError::Headers(header_count));
        }
        let headers = fields.bytes;
        for _ in 0..header_count {
            fields.header()?;
        }
        if !fields.bytes.is_empty() {
            return Err(RecordError::Length);
        }
        Ok(Record {
            timestamp_delta,
            offset_delta: expected,
            key,
            value,
            headers,
            header_count: header_count as u32,
        })
    }

    fn header(&mut self) -> Result<Header<'a>, RecordError> {
        Ok((self.field()?, self.field()?))
    }

    fn field(&mut self) -> Result<&'a [u8], RecordError> {
        let length = self.length()?;
        self.take(length)
    }

    fn length(&mut self) -> Result<usize, RecordError> {
        to_length(self.varint()?)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], RecordError> {
        let (head, rest) = self.bytes.split_at_checked(length).ok_or(RecordError::CutOff)?;
        self.bytes = rest;
        Ok(head)
    }

    fn varint(&mut self) -> Result<i64, RecordError> {
        let mut value = 0u64;
        for (index, byte) in self.bytes.iter().take(10).enumerate() {
            let bits = u64::from(byte & 0x7f);
            if index == 9 && bits > 1 {
                return Err(RecordError::Number);
            }
            value |= bits << (7 * index);
            if byte & 0x80 == 0 {
                self.bytes = &self.bytes[index + 1..];
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        Err(if self.bytes.len() < 10 { RecordError::CutOff } else { RecordError::Number })
    }
}

fn to_length(value: i64) -> Result<usize, RecordError> {
    usize::try_from(value).map_err(|_| RecordError::Number)
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn varint_len(value: i64) -> usize {
    (64 - (zigzag(value) | 1).leading_zeros() as usize).div_ceil(7)
}

fn put_varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = zigzag(value);
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn put_field(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as i64);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_has_kafkas_bytes() {
        let mut out = Vec::new();
        encode_record(&mut out, 1, 0, None, b"hello", &[(b"k", b"v")]);
        // length 15 (30 zig-zag), attributes, delta 1, offset 0, key -1, value, one header
        let expected = b"\x1e\x00\x02\x00\x01\x0ahello\x02\x02k\x02v";
        assert_eq!(out, expected);
        let record = iter(&out, 1).next().unwrap().unwrap();
        assert_eq!((record.value, record.timestamp_delta), (&b"hello"[..], 1));
        assert_eq!(record.headers().collect::<Vec<_>>(), [(&b"k"[..], &b"v"[..])]);
    }

    #[test]
    fn varint_lengths_agree_with_what_is_written() {
        for shift in 0..64 {
            for value in
                [1i64 << shift, (1i64 << shift).wrapping_neg(), (1i64 << shift).wrapping_sub(1)]
            {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                assert_eq!(out.len(), varint_len(value), "{value}");
                assert_eq!(Reader { bytes: &out }.varint(), Ok(value));
            }
        }
    }

    #[test]
    fn misnumbered_and_trailing_records_are_refused() {
        let mut out = Vec::new();
        encode_record(&mut out, 0, 1, None, b"", &[]);
        let expected = RecordError::Order { expected: 0, actual: 1 };
        assert_eq!(iter(&out, 1).next(), Some(Err(expected)));
        let mut out = Vec::new();
        encode_record(&mut out, 0, 0, None, b"", &[]);
        out.push(7);
        let all: Vec<_> = iter(&out, 1).collect();
        assert_eq!(all[1], Err(RecordError::Trailing(1)));
        assert_eq!(all.len(), 2);
    }

    proptest! {
        #[test]
        fn records_round_trip(
            values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..50),
            key in prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
            delta in any::<i64>(),
        ) {
            let mut out = Vec::new();
            for (index, value) in values.iter().enumerate() {
                let headers: &[Header<'_>] = if index == 0 { &[(b"h", value)] } else { &[] };
                let before = out.len();
                encode_record(&mut out, delta, index as u32, key.as_deref(), value, headers);
                let content = value.len() * (1 + headers.len()) + key.as_ref().map_or(0, Vec::len);
                prop_assert!(out.len() - before <= content + RECORD_OVERHEAD_BYTES_MAX);
            }
            let read: Result<Vec<_>, _> = iter(&out, values.len() as u32).collect();
            let read = read.unwrap();
            prop_assert_eq!(read.len(), values.len());
            for (record, value) in read.iter().zip(&values) {
                prop_assert_eq!(record.value, &value[..]);
                prop_assert_eq!(record.key, key.as_deref());
                prop_assert_eq!(record.timestamp_delta, delta);
            }
        }

        #[test]
        fn garbage_ends_in_an_error_or_the_end(
            bytes in prop::collection::vec(any::<u8>(), 0..300), count in 0u32..20
        ) {
            prop_assert!(iter(&bytes, count).count() <= count as usize + 1);
        }
    }
}
