//! Where reading a file goes on, as it is kept in the spool.
//!
//! The key tells which file of which pattern: a digest of the pattern, device and inode. The value
//! has the position and a digest of the file's first bytes, because an inode may be used again for
//! another file, and a file may be truncated and grow beyond the old position.

use skein_wire::merkle::sha256;

/// A file's first bytes, by digest.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Fingerprint {
    /// How many bytes it covers.
    pub bytes: u16,
    /// The first 8 bytes of their SHA-256.
    pub digest: [u8; 8],
}

/// Most bytes that a fingerprint covers.
pub const FINGERPRINT_BYTES_MAX: usize = 256;

impl Fingerprint {
    /// Of the first bytes of a file.
    pub fn of(head: &[u8]) -> Fingerprint {
        let head = &head[..head.len().min(FINGERPRINT_BYTES_MAX)];
        let mut digest = [0; 8];
        digest.copy_from_slice(&sha256(head)[..8]);
        Fingerprint { bytes: head.len() as u16, digest }
    }

    /// Whether a file that begins like this may be the same.
    pub fn matches(&self, head: &[u8]) -> bool {
        // One that covers nothing, as of a file that was never read, fits every file.
        let covered = head.get(..self.bytes.into());
        self.bytes == 0 || covered.is_some_and(|head| Fingerprint::of(head) == *self)
    }
}

/// A place in a file.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Place {
    /// Bytes before it are in the spool.
    pub offset: u64,
    /// Which file it is a place of.
    pub fingerprint: Fingerprint,
    /// In the middle of a line that was cut: its rest is left out.
    pub in_cut_line: bool,
}

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Bytes of a value.
pub const VALUE_BYTES: usize = 20;

const VERSION: u8 = 1;

/// The key of a file.
pub fn key(pattern: &str, device: u64, inode: u64) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[..16].copy_from_slice(&sha256(pattern.as_bytes())[..16]);
    key[16..24].copy_from_slice(&device.to_be_bytes());
    key[24..].copy_from_slice(&inode.to_be_bytes());
    key
}

/// Device and inode of a key, if it is of this pattern.
pub fn parse_key(pattern: &str, bytes: &[u8]) -> Option<(u64, u64)> {
    let bytes: &[u8; KEY_BYTES] = bytes.try_into().ok()?;
    let (device, inode) = (be(&bytes[16..24]), be(&bytes[24..]));
    (key(pattern, device, inode) == *bytes).then_some((device, inode))
}

impl Place {
    /// The value.
    pub fn encode(&self) -> [u8; VALUE_BYTES] {
        let mut value = [0; VALUE_BYTES];
        value[0] = VERSION;
        value[1] = self.in_cut_line.into();
        value[2..4].copy_from_slice(&self.fingerprint.bytes.to_be_bytes());
        value[4..12].copy_from_slice(&self.fingerprint.digest);
        value[12..].copy_from_slice(&self.offset.to_be_bytes());
        value
    }

    /// The place of a value.
    pub fn decode(bytes: &[u8]) -> Option<Place> {
        let bytes: &[u8; VALUE_BYTES] = bytes.try_into().ok()?;
        if bytes[0] != VERSION {
            return None;
        }
        let mut digest = [0; 8];
        digest.copy_from_slice(&bytes[4..12]);
        Some(Place {
            offset: be(&bytes[12..]),
            fingerprint: Fingerprint { bytes: u16::from_be_bytes([bytes[2], bytes[3]]), digest },
            in_cut_line: bytes[1] != 0,
        })
    }
}

fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_never_read_is_not_a_truncated_one() {
        assert!(Fingerprint::default().matches(b""));
        assert!(Fingerprint::default().matches(b"already written to"));
        assert!(!Fingerprint::of(b"abc").matches(b"ab"));
    }

    #[test]
    fn places_and_keys_are_read_back() {
        let place = Place {
            offset: 0x0102_0304_0506_0708,
            fingerprint: Fingerprint::of(b"first line\n"),
            in_cut_line: true,
        };
        assert_eq!(Place::decode(&place.encode()), Some(place));
        assert_eq!(Place::decode(b"short"), None);
        let key = key("/var/log/*.log", 7, 9);
        assert_eq!(parse_key("/var/log/*.log", &key), Some((7, 9)));
        assert_eq!(parse_key("/var/log/x.log", &key), None);
    }

    #[test]
    fn a_fingerprint_holds_while_the_file_grows() {
        let fingerprint = Fingerprint::of(b"one");
        assert!(fingerprint.matches(b"one") && fingerprint.matches(b"one more"));
        assert!(!fingerprint.matches(b"on") && !fingerprint.matches(b"two more"));
        assert!(Fingerprint::default().matches(b"") || Fingerprint::of(b"").matches(b"x"));
    }
}
