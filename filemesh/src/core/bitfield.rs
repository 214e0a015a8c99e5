//! A fixed number of bits, in the order of BEP 3: bit 0 is the highest bit of the first byte.
//!
//! Words are kept big-endian in meaning, so that scans go 64 bits at a time and the bytes of any
//! word are what goes on the wire or into a state file. Bits past the length are always zero.

use std::ops::Range;

/// A vector of bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitfield {
    words: Vec<u64>,
    len: u32,
}

/// Bytes are no bitfield of the wanted length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a bitfield of {bits} bits does not fit {bytes} bytes or has bits past its end")]
pub struct BitfieldError {
    bits: u32,
    bytes: usize,
}

fn mask(index: u32) -> u64 {
    1 << (63 - index % 64)
}

impl Bitfield {
    /// `len` bits, all zero.
    pub fn new(len: u32) -> Self {
        Self { words: vec![0; len.div_ceil(64) as usize], len }
    }

    /// `len` bits, all one.
    pub fn full(len: u32) -> Self {
        let mut field = Self::new(len);
        field.set_range(0..len);
        field
    }

    /// The bitfield that `bytes` hold; its spare bits must be zero.
    pub fn from_bytes(bytes: &[u8], len: u32) -> Result<Self, BitfieldError> {
        let error = BitfieldError { bits: len, bytes: bytes.len() };
        if bytes.len() != byte_len(len) {
            return Err(error);
        }
        let words = bytes.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_be_bytes(word)
        });
        let field = Self { words: words.collect(), len };
        match field.words.last() {
            Some(last) if !len.is_multiple_of(64) && last << (len % 64) != 0 => Err(error),
            _ => Ok(field),
        }
    }

    /// The bytes that hold bits `8 * bytes.start .. 8 * bytes.end`.
    pub fn to_bytes(&self, bytes: Range<usize>) -> Vec<u8> {
        bytes.map(|at| self.words[at / 8].to_be_bytes()[at % 8]).collect()
    }

    /// All bytes.
    pub fn all_bytes(&self) -> Vec<u8> {
        self.to_bytes(0..byte_len(self.len))
    }

    /// Number of bits.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are no bits at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bit at `index`; false past the end.
    pub fn get(&self, index: u32) -> bool {
        self.words.get((index / 64) as usize).is_some_and(|word| word & mask(index) != 0)
    }

    /// Sets the bit at `index`, which must be below [`Bitfield::len`]; true if it was zero.
    pub fn set(&mut self, index: u32) -> bool {
        assert!(index < self.len, "bit {index} of {}", self.len);
        let word = &mut self.words[(index / 64) as usize];
        let fresh = *word & mask(index) == 0;
        *word |= mask(index);
        fresh
    }

    /// Clears the bit at `index`; true if it was one.
    pub fn clear(&mut self, index: u32) -> bool {
        let was = self.get(index);
        if was {
            self.words[(index / 64) as usize] &= !mask(index);
        }
        was
    }

    /// Sets all bits of `range`.
    pub fn set_range(&mut self, range: Range<u32>) {
        range.for_each(|index| {
            self.set(index);
        });
    }

    /// Clears all bits of `range`.
    pub fn clear_range(&mut self, range: Range<u32>) {
        range.for_each(|index| {
            self.clear(index);
        });
    }

    /// Number of ones.
    pub fn count(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether every bit is one.
    pub fn is_full(&self) -> bool {
        self.count() == self.len
    }

    /// The first one at or after `from`.
    pub fn next_one(&self, from: u32) -> Option<u32> {
        self.scan(from, |word| word)
    }

    /// The last one before `end`.
    pub fn last_one(&self, end: u32) -> Option<u32> {
        let end = end.min(self.len);
        let words = &self.words[..end.div_ceil(64) as usize];
        let mut keep = if end.is_multiple_of(64) { u64::MAX } else { !(u64::MAX >> (end % 64)) };
        for (at, word) in words.iter().enumerate().rev() {
            let hits = word & keep;
            if hits != 0 {
                return Some(at as u32 * 64 + 63 - hits.trailing_zeros());
            }
            keep = u64::MAX;
        }
        None
    }

    /// The first zero at or after `from`.
    pub fn next_zero(&self, from: u32) -> Option<u32> {
        self.scan(from, |word| !word)
    }

    /// The first zero at or after `from` that is a one of `mask`, which has the same length.
    pub fn next_zero_within(&self, from: u32, mask: &Bitfield) -> Option<u32> {
        let first = (from / 64) as usize;
        let mut keep = u64::MAX >> (from % 64);
        for (at, (word, mask)) in self.words.iter().zip(&mask.words).enumerate().skip(first) {
            let hits = !word & mask & keep;
            if hits != 0 {
                return Some(at as u32 * 64 + hits.leading_zeros());
            }
            keep = u64::MAX;
        }
        None
    }

    fn scan(&self, from: u32, view: impl Fn(u64) -> u64) -> Option<u32> {
        let first = (from / 64) as usize;
        let mut keep = u64::MAX >> (from % 64);
        for (at, word) in self.words.iter().enumerate().skip(first) {
            let hits = view(*word) & keep;
            if hits != 0 {
                let index = at as u32 * 64 + hits.leading_zeros();
                return (index < self.len).then_some(index);
            }
            keep = u64::MAX;
        }
        None
    }

    /// The runs of ones, in order.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = self.next_one(from)?;
            from = self.next_zero(start).unwrap_or(self.len);
            Some(start..from)
        })
    }
}

/// Bytes that hold `bits` bits.
pub fn byte_len(bits: u32) -> usize {
    bits.div_ceil(8) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bit_order_is_bep_3() {
        let mut field = Bitfield::new(10);
        field.set(0);
        field.set(9);
        assert_eq!(field.all_bytes(), [0x80, 0x40]);
        assert!(Bitfield::from_bytes(&[0x80, 0x20], 10).is_err());
        assert!(Bitfield::from_bytes(&[0x80], 10).is_err());
        assert!(Bitfield::full(0).is_full());
    }

    proptest! {
        #[test]
        fn a_bitfield_is_a_vector_of_bools(bits in proptest::collection::vec(any::<bool>(), 0..300)) {
            let len = bits.len() as u32;
            let mut field = Bitfield::new(len);
            for (at, _) in bits.iter().enumerate().filter(|(_, bit)| **bit) {
                prop_assert!(field.set(at as u32));
            }
            prop_assert_eq!(field.count() as usize, bits.iter().filter(|bit| **bit).count());
            prop_assert_eq!(&Bitfield::from_bytes(&field.all_bytes(), len).unwrap(), &field);
            for from in 0..len {
                let find = |wanted| (from..len).find(|at| bits[*at as usize] == wanted);
                prop_assert_eq!(field.next_one(from), find(true));
                prop_assert_eq!(field.last_one(from), (0..from).rfind(|at| bits[*at as usize]));
                prop_assert_eq!(field.next_zero(from), find(false));
                let mut mask = Bitfield::new(len);
                (0..len).filter(|at| at % 3 != 1).for_each(|at| { mask.set(at); });
                let within = (from..len).find(|at| at % 3 != 1 && !bits[*at as usize]);
                prop_assert_eq!(field.next_zero_within(from, &mask), within);
            }
            let mut rebuilt = Bitfield::new(len);
            field.ranges().for_each(|range| rebuilt.set_range(range));
            prop_assert_eq!(&rebuilt, &field);
            rebuilt.clear_range(0..len);
            prop_assert_eq!(rebuilt.count(), 0);
        }
    }
}
