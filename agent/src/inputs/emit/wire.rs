//! The messages of the emit socket, as bytes.

use crate::spool::SURE_RECORD_BYTES_MAX;

/// Version of the protocol.
pub const VERSION: u8 = 2;
/// Bytes that name a client.
pub const CLIENT_BYTES: usize = 16;
/// Record bytes that a client may have unanswered.
pub const WINDOW_BYTES: u32 = 1024 * 1024;
/// Payload of one message: a largest record, or many small ones, and their framing.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// The largest record.
pub const RECORD_BYTES_MAX: usize = SURE_RECORD_BYTES_MAX;

const _: () = assert!(RECORD_BYTES_MAX + 64 < MESSAGE_BYTES_MAX);
const _: () = assert!(RECORD_BYTES_MAX < WINDOW_BYTES as usize);

const OPEN: u8 = 1;
const RECORDS: u8 = 2;
const READY: u8 = 16;
const KEPT: u8 = 17;
const REFUSED: u8 = 18;

/// What a client says.
#[derive(Debug, Eq, PartialEq)]
pub enum FromClient<'a> {
    Open { version: u8, data_id: u32, client: [u8; CLIENT_BYTES] },
    Records { first: u64, records: &'a [u8] },
}

/// What the agent answers.
#[derive(Debug, Eq, PartialEq)]
pub enum FromServer<'a> {
    Ready { window_bytes: u32, next: u64 },
    Kept { next: u64 },
    Refused(&'a str),
}

/// Bytes that are no message.
#[derive(Debug, Clone, Copy, Eq, PartialEq, thiserror::Error)]
#[error("malformed message on the emit socket")]
pub struct Malformed;

pub fn decode_from_client(payload: &[u8]) -> Result<FromClient<'_>, Malformed> {
    let (kind, rest) = payload.split_first().ok_or(Malformed)?;
    match *kind {
        OPEN => {
            // Of another version only the version is known.
            let (version, rest) = rest.split_first().ok_or(Malformed)?;
            let (data_id, rest) = match rest.split_first_chunk::<4>() {
                Some((data_id, rest)) => (u32::from_be_bytes(*data_id), rest),
                None => return Err(Malformed),
            };
            let client = match rest.try_into() {
                Ok(client) => client,
                Err(_) if *version != VERSION => [0; CLIENT_BYTES],
                Err(_) => return Err(Malformed),
            };
            Ok(FromClient::Open { version: *version, data_id, client })
        }
        RECORDS => {
            let (first, records) = rest.split_first_chunk::<8>().ok_or(Malformed)?;
            Ok(FromClient::Records { first: u64::from_be_bytes(*first), records })
        }
        _ => Err(Malformed),
    }
}

pub fn decode_from_server(payload: &[u8]) -> Result<FromServer<'_>, Malformed> {
    let (kind, rest) = payload.split_first().ok_or(Malformed)?;
    match *kind {
        READY => {
            let (window, next) = rest.split_first_chunk::<4>().ok_or(Malformed)?;
            let next = next.first_chunk::<8>().ok_or(Malformed)?;
            let window_bytes = u32::from_be_bytes(*window);
            Ok(FromServer::Ready { window_bytes, next: u64::from_be_bytes(*next) })
        }
        KEPT => {
            let next = rest.first_chunk::<8>().ok_or(Malformed)?;
            Ok(FromServer::Kept { next: u64::from_be_bytes(*next) })
        }
        REFUSED => Ok(FromServer::Refused(std::str::from_utf8(rest).map_err(|_| Malformed)?)),
        _ => Err(Malformed),
    }
}

/// The next record of [`FromClient::Records`].
pub fn next_record<'a>(records: &mut &'a [u8]) -> Option<Result<&'a [u8], Malformed>> {
    if records.is_empty() {
        return None;
    }
    let split = records.split_first_chunk::<4>().and_then(|(bytes, rest)| {
        let bytes = u32::from_be_bytes(*bytes) as usize;
        rest.split_at_checked(bytes).filter(|_| bytes <= RECORD_BYTES_MAX)
    });
    let Some((record, rest)) = split else {
        *records = &[];
        return Some(Err(Malformed));
    };
    *records = rest;
    Some(Ok(record))
}

fn message(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let bytes = 1 + parts.iter().map(|part| part.len()).sum::<usize>();
    let mut out = Vec::with_capacity(4 + bytes);
    out.extend_from_slice(&(bytes as u32).to_be_bytes());
    out.push(kind);
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

pub fn open(data_id: u32, client: &[u8; CLIENT_BYTES]) -> Vec<u8> {
    message(OPEN, &[&[VERSION], &data_id.to_be_bytes(), client])
}

pub fn records(first: u64, records: &[u8]) -> Vec<u8> {
    message(RECORDS, &[&first.to_be_bytes(), records])
}

pub fn ready(next: u64) -> Vec<u8> {
    message(READY, &[&WINDOW_BYTES.to_be_bytes(), &next.to_be_bytes()])
}

pub fn kept(next: u64) -> Vec<u8> {
    message(KEPT, &[&next.to_be_bytes()])
}

pub fn refused(text: &str) -> Vec<u8> {
    message(REFUSED, &[text.as_bytes()])
}

/// Appends one record to the body of a RECORDS message.
pub fn put_record(record: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(record.len() as u32).to_be_bytes());
    out.extend_from_slice(record);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_are_read_back() {
        assert_eq!(
            decode_from_client(&open(7, &[3; 16])[4..]),
            Ok(FromClient::Open { version: VERSION, data_id: 7, client: [3; 16] })
        );
        assert_eq!(decode_from_server(&kept(9)[4..]), Ok(FromServer::Kept { next: 9 }));
        assert_eq!(decode_from_server(&refused("no")[4..]), Ok(FromServer::Refused("no")));
        assert_eq!(
            decode_from_server(&ready(5)[4..]),
            Ok(FromServer::Ready { window_bytes: WINDOW_BYTES, next: 5 })
        );
    }

    /// A client of the version before had no name; its version must be readable all the same.
    #[test]
    fn the_version_of_another_client_is_read() {
        let old = [OPEN, 1, 0, 0, 3, 233];
        let client = [0; CLIENT_BYTES];
        let open = FromClient::Open { version: 1, data_id: 1001, client };
        assert_eq!(decode_from_client(&old), Ok(open));
        assert_eq!(decode_from_client(&[OPEN, VERSION, 0, 0, 3, 233]), Err(Malformed));
    }

    proptest! {
        #[test]
        fn records_are_read_back(values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..20)) {
            let mut body = Vec::new();
            values.iter().for_each(|value| put_record(value, &mut body));
            let bytes = records(3, &body);
            let Ok(FromClient::Records { first: 3, records: mut rest }) = decode_from_client(&bytes[4..]) else {
                panic!("a RECORDS message");
            };
            for value in &values {
                prop_assert_eq!(next_record(&mut rest), Some(Ok(&value[..])));
            }
            prop_assert_eq!(next_record(&mut rest), None);
        }

        #[test]
        fn garbage_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode_from_server(&bytes);
            if let Ok(FromClient::Records { mut records, .. }) = decode_from_client(&bytes) {
                while next_record(&mut records).is_some() {}
            }
        }
    }
}
