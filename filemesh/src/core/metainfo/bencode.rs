//! Bencode, the encoding of metainfo: dictionaries walked in place, and the four ways to write.
//!
//! Reading never builds a tree: a value is a slice of the input that is walked again when somebody
//! wants what is in it, so hostile nesting costs time in proportion to its bytes and no memory.
//! Only canonical bencode is accepted (keys strictly ascending, numbers without plus sign or
//! leading zeros), because an info hash is of bytes: two spellings of one value would be two files.

use super::error::MetainfoError;
use bendy::decoding::{Decoder, DictDecoder, Error, Object};
use std::fmt::Display;

/// Nesting that is followed. Metainfo of one file needs 5; what others add is skipped unread.
pub const NESTING_MAX: usize = 16;

/// A value within the input.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    /// A byte string.
    Bytes(&'a [u8]),
    /// The digits of a number of any size, perhaps with a minus sign.
    Number(&'a str),
    /// A list, whole, for [`each_item`].
    List(&'a [u8]),
    /// A dictionary, whole, for [`each_pair`].
    Dict(&'a [u8]),
}

impl<'a> Value<'a> {
    fn of(object: Object<'_, 'a>) -> Result<Self, Error> {
        Ok(match object {
            Object::Bytes(bytes) => Self::Bytes(bytes),
            Object::Integer(digits) => Self::Number(digits),
            Object::List(list) => Self::List(list.into_raw()?),
            Object::Dict(dict) => Self::Dict(dict.into_raw()?),
        })
    }

    /// The byte string that must be under `key`.
    pub(super) fn bytes(self, key: &'static str) -> Result<&'a [u8], MetainfoError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(MetainfoError::Field(key)),
        }
    }

    /// The number that must be under `key` and fit its type.
    pub(super) fn number<N: std::str::FromStr>(
        self,
        key: &'static str,
    ) -> Result<N, MetainfoError> {
        match self {
            Self::Number(digits) => digits.parse().map_err(|_| MetainfoError::Field(key)),
            _ => Err(MetainfoError::Field(key)),
        }
    }

    /// The dictionary that must be under `key`.
    pub(super) fn dict(self, key: &'static str) -> Result<&'a [u8], MetainfoError> {
        match self {
            Self::Dict(raw) => Ok(raw),
            _ => Err(MetainfoError::Field(key)),
        }
    }

    /// The list that must be under `key`.
    pub(super) fn list(self, key: &'static str) -> Result<&'a [u8], MetainfoError> {
        match self {
            Self::List(raw) => Ok(raw),
            _ => Err(MetainfoError::Field(key)),
        }
    }
}

/// Walks the dictionary that `raw` is, with nothing behind it.
pub(super) fn each_pair<'a>(
    raw: &'a [u8],
    mut take: impl FnMut(&'a [u8], Value<'a>) -> Result<(), MetainfoError>,
) -> Result<(), MetainfoError> {
    let mut decoder = Decoder::new(raw).with_max_depth(NESTING_MAX);
    let Some(Object::Dict(mut dict)) = decoder.next_object()? else {
        return Err(MetainfoError::NoDictionary);
    };
    while let Some((key, value)) = next_pair(&mut dict)? {
        take(key, value)?;
    }
    drop(dict);
    end(&mut decoder)
}

fn next_pair<'a>(dict: &mut DictDecoder<'_, 'a>) -> Result<Option<(&'a [u8], Value<'a>)>, Error> {
    let Some((key, object)) = dict.next_pair()? else { return Ok(None) };
    Ok(Some((key, Value::of(object)?)))
}

/// Walks the list that `raw` is, with nothing behind it.
pub(super) fn each_item<'a>(
    raw: &'a [u8],
    mut take: impl FnMut(Value<'a>) -> Result<(), MetainfoError>,
) -> Result<(), MetainfoError> {
    let mut decoder = Decoder::new(raw).with_max_depth(NESTING_MAX);
    let Some(Object::List(mut list)) = decoder.next_object()? else {
        return Err(MetainfoError::NoDictionary);
    };
    while let Some(object) = list.next_object()? {
        take(Value::of(object)?)?;
    }
    drop(list);
    end(&mut decoder)
}

fn end(decoder: &mut Decoder<'_>) -> Result<(), MetainfoError> {
    match decoder.next_object()? {
        None => Ok(()),
        Some(_) => Err(MetainfoError::Trailing),
    }
}

/// Appends a number.
pub(super) fn put_number(out: &mut Vec<u8>, number: impl Display) {
    out.extend_from_slice(format!("i{number}e").as_bytes());
}

/// Appends a byte string, which is also how a key is written.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: impl AsRef<[u8]>) {
    let bytes = bytes.as_ref();
    out.extend_from_slice(format!("{}:", bytes.len()).as_bytes());
    out.extend_from_slice(bytes);
}

/// Appends a dictionary whose pairs `fill` appends, in the order of their keys.
pub(super) fn put_dict(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'd');
    fill(out);
    out.push(b'e');
}

/// Appends a list whose items `fill` appends.
pub(super) fn put_list(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'l');
    fill(out);
    out.push(b'e');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(raw: &[u8]) -> Result<usize, MetainfoError> {
        let mut pairs = 0;
        each_pair(raw, |_, _| {
            pairs += 1;
            Ok(())
        })?;
        Ok(pairs)
    }

    #[test]
    fn only_canonical_dictionaries_are_read() {
        assert_eq!(walk(b"de"), Ok(0));
        assert_eq!(walk(b"d1:a0:1:bi-5e1:cle1:ddee"), Ok(4));
        for bad in [
            &b""[..],
            b"d",
            b"le",
            b"i1e",
            b"dee",
            b"dei1e",
            b"d1:ae",
            b"di1e0:e",
            b"d1:a0:1:a0:e",
            b"d1:b0:1:a0:e",
            b"d1:ai+5ee",
            b"d1:ai-0ee",
            b"d1:ai05ee",
            b"d01:a0:e",
            b"d+1:a0:e",
            b"d1:a99999999999999999999:e",
            b"d1:a18446744073709551615:e",
            b"d1:a5:xe",
        ] {
            assert!(walk(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn nesting_is_bounded_in_values_that_nobody_reads() {
        let nested =
            |depth: usize| [b"d1:a", &b"l".repeat(depth)[..], &b"e".repeat(depth), b"e"].concat();
        assert_eq!(walk(&nested(NESTING_MAX - 1)), Ok(1));
        assert!(walk(&nested(NESTING_MAX)).is_err());
        assert!(walk(&[b"d1:a", &b"l".repeat(4 << 20)[..]].concat()).is_err());
    }
}
