//! Records as text.
//!
//! * `lines`: the value and a newline.
//! * `tagged`: agent, data id, epoch, sequence, timestamp and value, separated by tabs; backslash,
//!   newline and tab of the value become `\\`, `\n` and `\t`. Every record can be recounted by
//!   its identity.
//! * `json`: one object per line with the same fields; a value that is not UTF-8 becomes
//!   `value_base64`.
//!
//! This is the hot loop of a file sink: records are written straight into the file's block and
//! nothing is allocated per record. A value without special bytes, found by one vectorised scan,
//! is copied whole.

use skein_wire::ids::{AgentId, Sequence};
use skein_wire::{batch::BatchHeader, records, records::RecordError};

/// Bytes of a `tagged` or `json` line besides its prefix and value: two numbers of at most 20
/// digits, field names and punctuation.
const LINE_OVERHEAD_BYTES_MAX: usize = 96;

/// How records become lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Value and newline.
    Lines,
    /// Identity, timestamp and escaped value, separated by tabs.
    Tagged,
    /// One JSON object per line.
    Json,
}

impl Format {
    /// By the name used in a stream's configuration.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "" | "lines" => Some(Self::Lines),
            "tagged" => Some(Self::Tagged),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// Takes formatted bytes in order.
pub trait Out {
    /// Contiguous room for at least `bytes`, if the current block has it.
    fn reserve(&mut self, bytes: usize) -> Option<&mut [u8]>;
    /// The first `bytes` of the last reservation are written.
    fn commit(&mut self, bytes: usize);
    /// Takes bytes that may cross blocks.
    fn put(&mut self, bytes: &[u8]);
}

/// Formats batches; keeps what it reuses between them.
#[derive(Debug, Default)]
pub struct Formatter {
    prefix: Vec<u8>,
    line: Vec<u8>,
}

impl Formatter {
    /// Writes the records of `raw` from sequence `from` on and answers how many they were. After
    /// an error the caller must take back what `out` received.
    pub fn write<O: Out>(
        &mut self,
        format: Format,
        agent: &AgentId,
        header: &BatchHeader,
        from: Sequence,
        raw: &[u8],
        out: &mut O,
    ) -> Result<u64, RecordError> {
        let skip = from.0.saturating_sub(header.first.0);
        let records = records::iter(raw, header.record_count);
        match format {
            Format::Lines => self.lines(records, skip, out),
            Format::Tagged => {
                self.prefix.clear();
                self.prefix.extend_from_slice(agent.as_str().as_bytes());
                for number in [u64::from(header.data_id.0), header.epoch.0] {
                    self.prefix.push(b'\t');
                    self.prefix.extend_from_slice(Decimal::new(number).bytes());
                }
                self.prefix.push(b'\t');
                self.identified(header, records, skip, out, tagged_line)
            }
            Format::Json => {
                self.prefix.clear();
                let (data_id, epoch) = (header.data_id.0, header.epoch.0);
                // An agent id has no character that JSON escapes.
                let text = format!(
                    "{{\"agent\":\"{agent}\",\"data_id\":{data_id},\"epoch\":{epoch},\"sequence\":"
                );
                self.prefix.extend_from_slice(text.as_bytes());
                self.identified(header, records, skip, out, json_line)
            }
        }
    }

    fn lines<O: Out>(
        &mut self,
        records: records::RecordIter<'_>,
        skip: u64,
        out: &mut O,
    ) -> Result<u64, RecordError> {
        let mut written = 0;
        for (index, record) in (0u64..).zip(records) {
            let value = record?.value;
            if index < skip {
                continue;
            }
            if let Some(room) = out.reserve(value.len() + 1) {
                room[..value.len()].copy_from_slice(value);
                room[value.len()] = b'\n';
                out.commit(value.len() + 1);
            } else {
                out.put(value);
                out.put(b"\n");
            }
            written += 1;
        }
        Ok(written)
    }

    fn identified<O: Out>(
        &mut self,
        header: &BatchHeader,
        records: records::RecordIter<'_>,
        skip: u64,
        out: &mut O,
        line: impl Fn(&mut Cursor<'_>, &[u8], &[u8], &[u8], &[u8]) -> Option<()>,
    ) -> Result<u64, RecordError> {
        let mut sequence = Decimal::new(header.first.0.saturating_add(skip));
        let mut timestamp_ms = header.base_timestamp_ms;
        let mut timestamp = Decimal::signed(timestamp_ms);
        let mut written = 0;
        for (index, record) in (0u64..).zip(records) {
            let record = record?;
            if index < skip {
                continue;
            }
            let at = header.base_timestamp_ms.saturating_add(record.timestamp_delta);
            if at != timestamp_ms {
                timestamp_ms = at;
                timestamp = Decimal::signed(at);
            }
            let fields = (sequence.bytes(), timestamp.bytes(), record.value);
            // Room for the common case of nothing to escape; a line that needs more goes the
            // slow way through a buffer of its own.
            let plain = self.prefix.len() + LINE_OVERHEAD_BYTES_MAX + fields.2.len();
            let placed = out.reserve(plain).and_then(|room| {
                let mut cursor = Cursor { room, at: 0 };
                line(&mut cursor, &self.prefix, fields.0, fields.1, fields.2)?;
                Some(cursor.at)
            });
            match placed {
                Some(bytes) => out.commit(bytes),
                None => {
                    self.line.resize(plain + 6 * fields.2.len(), 0);
                    let mut cursor = Cursor { room: &mut self.line, at: 0 };
                    let fits = line(&mut cursor, &self.prefix, fields.0, fields.1, fields.2);
                    debug_assert!(fits.is_some(), "six bytes hold any escaped byte");
                    let bytes = cursor.at;
                    out.put(&self.line[..bytes]);
                    self.line.truncate(64 * 1024);
                    self.line.shrink_to(64 * 1024);
                }
            }
            sequence.increment();
            written += 1;
        }
        Ok(written)
    }
}

/// Writes into a slice; `None` when it is full.
struct Cursor<'a> {
    room: &'a mut [u8],
    at: usize,
}

impl Cursor<'_> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.at + bytes.len();
        self.room.get_mut(self.at..end)?.copy_from_slice(bytes);
        self.at = end;
        Some(())
    }
}

#[inline]
fn tagged_line(
    out: &mut Cursor<'_>,
    prefix: &[u8],
    sequence: &[u8],
    timestamp: &[u8],
    value: &[u8],
) -> Option<()> {
    out.put(prefix)?;
    out.put(sequence)?;
    out.put(b"\t")?;
    out.put(timestamp)?;
    out.put(b"\t")?;
    let mut rest = value;
    while let Some(at) = memchr::memchr3(b'\\', b'\n', b'\t', rest) {
        out.put(&rest[..at])?;
        out.put(match rest[at] {
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            _ => b"\\t",
        })?;
        rest = &rest[at + 1..];
    }
    out.put(rest)?;
    out.put(b"\n")
}

fn json_line(
    out: &mut Cursor<'_>,
    prefix: &[u8],
    sequence: &[u8],
    timestamp: &[u8],
    value: &[u8],
) -> Option<()> {
    out.put(prefix)?;
    out.put(sequence)?;
    out.put(b",\"timestamp_ms\":")?;
    out.put(timestamp)?;
    if std::str::from_utf8(value).is_ok() {
        out.put(b",\"value\":\"")?;
        json_text(out, value)?;
    } else {
        out.put(b",\"value_base64\":\"")?;
        base64(out, value)?;
    }
    out.put(b"\"}\n")
}

/// Escapes UTF-8 for JSON: quote, backslash and what is below 0x20.
fn json_text(out: &mut Cursor<'_>, value: &[u8]) -> Option<()> {
    let mut rest = value;
    loop {
        let plain = json_plain_prefix(rest);
        out.put(&rest[..plain])?;
        let Some(byte) = rest.get(plain) else { return Some(()) };
        match byte {
            b'"' => out.put(b"\\\"")?,
            b'\\' => out.put(b"\\\\")?,
            b'\n' => out.put(b"\\n")?,
            b'\r' => out.put(b"\\r")?,
            b'\t' => out.put(b"\\t")?,
            other => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                let (high, low) = (HEX[usize::from(other >> 4)], HEX[usize::from(other & 15)]);
                out.put(&[b'\\', b'u', b'0', b'0', high, low])?;
            }
        }
        rest = &rest[plain + 1..];
    }
}

/// Bytes before the first that JSON escapes, eight at a time.
fn json_plain_prefix(text: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let zero_byte = |word: u64| word.wrapping_sub(ONES) & !word & HIGHS;
    let (chunks, _) = text.as_chunks::<8>();
    for (index, chunk) in chunks.iter().enumerate() {
        let word = u64::from_le_bytes(*chunk);
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
        if control | zero_byte(word ^ (ONES * 0x22)) | zero_byte(word ^ (ONES * 0x5c)) != 0 {
            return 8 * index + json_plain_bytes(&text[8 * index..]);
        }
    }
    8 * chunks.len() + json_plain_bytes(&text[8 * chunks.len()..])
}

fn json_plain_bytes(text: &[u8]) -> usize {
    let special = |byte: &u8| *byte < 0x20 || *byte == b'"' || *byte == b'\\';
    text.iter().position(special).unwrap_or(text.len())
}

fn base64(out: &mut Cursor<'_>, value: &[u8]) -> Option<()> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in value.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        let mut digits = [18, 12, 6, 0].map(|shift| DIGITS[(word >> shift & 63) as usize]);
        digits[chunk.len() + 1..].fill(b'=');
        out.put(&digits)?;
    }
    Some(())
}

/// A number's decimal digits, which can count upwards in place.
struct Decimal {
    digits: [u8; 21],
    start: usize,
}

impl Decimal {
    fn new(mut value: u64) -> Self {
        let mut digits = [b'0'; 21];
        let mut start = digits.len();
        loop {
            start -= 1;
            digits[start] = b'0' + (value % 10) as u8;
            value /= 10;
            if value == 0 {
                return Self { digits, start };
            }
        }
    }

    fn signed(value: i64) -> Self {
        let mut decimal = Self::new(value.unsigned_abs());
        if value < 0 {
            decimal.start -= 1;
            decimal.digits[decimal.start] = b'-';
        }
        decimal
    }

    fn bytes(&self) -> &[u8] {
        &self.digits[self.start..]
    }

    /// Adds one to a number that is not negative.
    fn increment(&mut self) {
        let mut at = self.digits.len() - 1;
        while self.digits[at] == b'9' {
            self.digits[at] = b'0';
            at -= 1;
        }
        // Cells before the number hold '0' and become its new first digit.
        self.digits[at] += 1;
        self.start = self.start.min(at);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use skein_wire::batch::BatchBuilder;
    use skein_wire::compress::{Codec, Compressor};
    use skein_wire::ids::{DataId, Epoch};

    use super::*;

    /// A block that is too small for some lines.
    struct Small {
        bytes: Vec<u8>,
        spare: Vec<u8>,
        room: usize,
    }

    impl Out for Small {
        fn reserve(&mut self, bytes: usize) -> Option<&mut [u8]> {
            self.spare.resize(bytes, 0);
            (bytes <= self.room).then_some(&mut self.spare[..])
        }
        fn commit(&mut self, bytes: usize) {
            self.bytes.extend_from_slice(&self.spare[..bytes]);
        }
        fn put(&mut self, bytes: &[u8]) {
            self.bytes.extend_from_slice(bytes);
        }
    }

    struct Plain(Vec<u8>);

    impl Out for Plain {
        fn reserve(&mut self, _: usize) -> Option<&mut [u8]> {
            None
        }
        fn commit(&mut self, _: usize) {}
        fn put(&mut self, bytes: &[u8]) {
            self.0.extend_from_slice(bytes);
        }
    }

    fn batch(values: &[&[u8]]) -> (BatchHeader, Vec<u8>) {
        let mut builder = BatchBuilder::new(DataId(7), 1 << 19);
        for (index, value) in values.iter().enumerate() {
            assert!(builder.push(1000 + index as i64 / 2, value));
        }
        let mut none = Compressor::new(Codec::None, 0).unwrap();
        let agent = AgentId::parse("a-1").unwrap();
        builder.seal((&agent, Epoch(3), Sequence(98)), &mut none, 0).unwrap()
    }

    fn format(format: Format, from: u64, values: &[&[u8]]) -> String {
        let (header, raw) = batch(values);
        let agent = AgentId::parse("a-1").unwrap();
        let mut plain = Plain(Vec::new());
        Formatter::default()
            .write(format, &agent, &header, Sequence(from), &raw, &mut plain)
            .unwrap();
        if format != Format::Lines {
            for room in [60, 150, 4000] {
                let mut small = Small { bytes: Vec::new(), spare: Vec::new(), room };
                Formatter::default()
                    .write(format, &agent, &header, Sequence(from), &raw, &mut small)
                    .unwrap();
                assert_eq!(small.bytes, plain.0, "room {room}");
            }
        }
        String::from_utf8(plain.0).unwrap()
    }

    #[test]
    fn lines_are_values_and_newlines() {
        assert_eq!(format(Format::Lines, 0, &[b"one", b"", b"two"]), "one\n\ntwo\n");
        assert_eq!(format(Format::Lines, 99, &[b"one", b"", b"two"]), "\ntwo\n");
    }

    #[test]
    fn tagged_lines_carry_identity_and_escape() {
        let text = format(Format::Tagged, 0, &[b"one", b"a\tb\nc\\d", b"two"]);
        let expected = "a-1\t7\t3\t98\t1000\tone\n\
                        a-1\t7\t3\t99\t1000\ta\\tb\\nc\\\\d\n\
                        a-1\t7\t3\t100\t1001\ttwo\n";
        assert_eq!(text, expected);
        assert_eq!(format(Format::Tagged, 100, &[b"", b"", b"two"]), "a-1\t7\t3\t100\t1001\ttwo\n");
    }

    #[test]
    fn json_lines_escape_text_and_encode_bytes() {
        let text = format(Format::Json, 0, &["é\"\\\u{1}\n".as_bytes(), b"\xff\x00", b"\xffab"]);
        let expected = "{\"agent\":\"a-1\",\"data_id\":7,\"epoch\":3,\"sequence\":98,\
             \"timestamp_ms\":1000,\"value\":\"é\\\"\\\\\\u0001\\n\"}\n\
             {\"agent\":\"a-1\",\"data_id\":7,\"epoch\":3,\"sequence\":99,\
             \"timestamp_ms\":1000,\"value_base64\":\"/wA=\"}\n\
             {\"agent\":\"a-1\",\"data_id\":7,\"epoch\":3,\"sequence\":100,\
             \"timestamp_ms\":1001,\"value_base64\":\"/2Fi\"}\n";
        assert_eq!(text, expected);
    }

    proptest! {
        #[test]
        fn decimals_count_like_numbers(start in 0u64..u64::MAX - 300, negative in any::<i64>()) {
            let mut decimal = Decimal::new(start);
            for step in 0..300 {
                let expected = (start + step).to_string();
                prop_assert_eq!(decimal.bytes(), expected.as_bytes());
                decimal.increment();
            }
            let signed = Decimal::signed(negative);
            let expected = negative.to_string();
            prop_assert_eq!(signed.bytes(), expected.as_bytes());
        }

        #[test]
        fn plain_json_is_found_byte_by_byte(text in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(json_plain_prefix(&text), json_plain_bytes(&text));
        }
    }
}
