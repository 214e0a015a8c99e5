//! The `skein` extension of the peer wire (BEP 10): which stripes a member takes from a peer.
//!
//! A peer that was told so keeps requests for pieces of these stripes until it has their blocks,
//! where it would otherwise reject what it did not announce. A message is sent under the number
//! that its receiver gave to `skein` in its extended handshake:
//!
//! ```text
//!   TAKE:  0 (1)  plan number (4)  stripes of the plan (2)  taken stripes, bit s is 1 << s (8)
//! ```

use crate::core::plan::{HostPlan, Member, STRIPES_MAX};

/// The number of the extended handshake (BEP 10).
pub const EXTENDED_HANDSHAKE: u8 = 0;

/// The number under which `skein` messages are to be sent to us.
pub const SKEIN_ID: u8 = 1;

/// Our extended handshake.
pub const HANDSHAKE: &[u8] = b"d1:md5:skeini1eee";

/// Bytes of a TAKE.
pub const TAKE_BYTES: usize = 15;

const KIND_TAKE: u8 = 0;

/// Stripes that one member takes from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Take {
    /// Number of the plan that says so; a message with a lower one is old.
    pub plan: u32,
    /// Stripes of that plan; 0: nothing is taken.
    pub stripes: u16,
    /// The taken ones, bit `s` for stripe `s`.
    pub mask: u64,
}

impl Take {
    /// What `plan` takes from `member`.
    pub fn of(plan: &HostPlan, member: Member) -> Self {
        let mask = plan.stripes_from(member).fold(0, |mask, stripe| mask | 1 << stripe);
        Self { plan: plan.number, stripes: plan.parents.len() as u16, mask }
    }

    /// Whether `piece` is taken.
    pub fn takes(&self, piece: u32) -> bool {
        self.stripes > 0 && self.mask >> (piece % u32::from(self.stripes)) & 1 == 1
    }

    /// The bytes of the message.
    pub fn encode(&self) -> [u8; TAKE_BYTES] {
        let mut bytes = [KIND_TAKE; TAKE_BYTES];
        bytes[1..5].copy_from_slice(&self.plan.to_be_bytes());
        bytes[5..7].copy_from_slice(&self.stripes.to_be_bytes());
        bytes[7..].copy_from_slice(&self.mask.to_be_bytes());
        bytes
    }

    /// The message in `payload`; `Ok(None)` if it is of a kind that is not known here.
    pub fn decode(payload: &[u8]) -> Result<Option<Self>, IllegalTake> {
        if payload.first() != Some(&KIND_TAKE) {
            return Ok(None);
        }
        let bytes: &[u8; TAKE_BYTES] = payload.try_into().map_err(|_| IllegalTake)?;
        let [_, p0, p1, p2, p3, s0, s1, mask @ ..] = *bytes;
        let take = Self {
            plan: u32::from_be_bytes([p0, p1, p2, p3]),
            stripes: u16::from_be_bytes([s0, s1]),
            mask: u64::from_be_bytes(mask),
        };
        let spare = if take.stripes == STRIPES_MAX { 0 } else { u64::MAX };
        let legal = take.stripes <= STRIPES_MAX && take.mask & (spare << (take.stripes % 64)) == 0;
        if legal { Ok(Some(take)) } else { Err(IllegalTake) }
    }
}

/// A TAKE of a wrong length, or with stripes that its plan does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IllegalTake;

/// The number that the sender of an extended handshake gave to `skein`, if it speaks it.
pub fn skein_id(handshake: &[u8]) -> Option<u8> {
    let mut cursor = Bencode(handshake);
    cursor.enter(b"m")?;
    cursor.enter(b"skein")?;
    u8::try_from(cursor.integer()?).ok().filter(|id| *id > 0)
}

/// A cursor over bencoded bytes that finds one key and believes nothing.
struct Bencode<'a>(&'a [u8]);

impl<'a> Bencode<'a> {
    fn eat(&mut self, byte: u8) -> Option<()> {
        let (first, rest) = self.0.split_first()?;
        (*first == byte).then(|| self.0 = rest)
    }

    /// Enters the dictionary here and stops at the value of `key`.
    fn enter(&mut self, key: &[u8]) -> Option<()> {
        self.eat(b'd')?;
        while self.string()? != key {
            self.skip()?;
        }
        Some(())
    }

    fn digits(&mut self, end: u8) -> Option<u32> {
        let len = self.0.iter().position(|byte| *byte == end)?;
        let text = std::str::from_utf8(&self.0[..len]).ok()?;
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| plain)?;
        self.0 = &self.0[len + 1..];
        Some(number)
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let len = self.digits(b':')? as usize;
        let (string, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(string)
    }

    /// An integer that is not negative; others have no meaning here.
    fn integer(&mut self) -> Option<u32> {
        self.eat(b'i')?;
        self.digits(b'e')
    }

    /// Skips one value, nested ones by counting.
    fn skip(&mut self) -> Option<()> {
        let mut depth = 0u32;
        loop {
            match self.0.first()? {
                b'd' | b'l' => {
                    self.0 = &self.0[1..];
                    depth += 1;
                }
                b'e' => {
                    self.0 = &self.0[1..];
                    depth = depth.checked_sub(1)?;
                }
                b'i' => {
                    let end = self.0.iter().position(|byte| *byte == b'e')?;
                    self.0 = &self.0[end + 1..];
                }
                _ => {
                    self.string()?;
                }
            }
            if depth == 0 {
                return Some(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_number_of_skein_is_found_among_others() {
        assert_eq!(skein_id(HANDSHAKE), Some(SKEIN_ID));
        let other = b"d8:completei-1e1:ad1:bl3:abci5eee1:md6:ut_pexi1e5:skeini7ee1:v4:test1:yi0ee";
        assert_eq!(skein_id(other), Some(7));
        for none in [
            &b""[..],
            b"d",
            b"de",
            b"d1:mdee",
            b"d1:md5:skeini0eee",
            b"d1:md5:skeini256eee",
            b"d1:md5:skeini-1eee",
            b"d1:m5:skeini1ee",
            b"d1:md99999999999:skeini1eee",
            b"d1:ae1:md5:skeini1eee",
        ] {
            assert_eq!(skein_id(none), None, "{:?}", String::from_utf8_lossy(none));
        }
    }

    #[test]
    fn a_take_names_stripes_of_its_plan_alone() {
        let plan = HostPlan {
            number: 3,
            parents: vec![Some(7), None, Some(9)],
            neighbours: vec![],
            far: vec![],
        };
        let take = Take::of(&plan, 9);
        assert_eq!(take, Take { plan: 3, stripes: 3, mask: 4 });
        assert_eq!((0..6).filter(|piece| take.takes(*piece)).collect::<Vec<_>>(), [2, 5]);
        assert_eq!(Take::decode(&take.encode()), Ok(Some(take)));
        assert!(!Take::default().takes(0));
        assert_eq!(Take::decode(&Take::default().encode()), Ok(Some(Take::default())));
        let full = Take { plan: 1, stripes: 64, mask: u64::MAX };
        assert_eq!(Take::decode(&full.encode()), Ok(Some(full)));
        for bad in [
            Take { stripes: 3, mask: 8, ..take },
            Take { stripes: 65, ..take },
            Take { stripes: 0, mask: 1, ..take },
        ] {
            assert_eq!(Take::decode(&bad.encode()), Err(IllegalTake), "{bad:?}");
        }
        assert_eq!(Take::decode(&[0, 1]), Err(IllegalTake));
        assert_eq!(Take::decode(&[1, 1]), Ok(None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = skein_id(&bytes);
            let _ = Take::decode(&bytes);
        }
    }
}
