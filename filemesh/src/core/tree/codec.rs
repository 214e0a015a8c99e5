//! The bytes of a listing, big-endian; `docs/filemesh.md` has the tables.
//!
//! ```text
//!   0  magic "SKNTREE\0"   8  version u32   12  entries u32   16  listing bytes u32
//!  20  owners u16         22  zero u16      24  CRC-32C of everything from 28 on
//!  28  owners: user len u8, user, group len u8, group
//!      entries: kind u8, depth u8, mode u16, owner u16, mtime i64, name len u8, name, and by kind
//! ```
//!
//! There is one encoding of a listing: what decodes encodes to the same bytes. The checksum is not
//! for peers, whose blocks are proved, but for a receiver that finds its own copy after a crash.

use super::listing::{
    ENTRIES_MAX, EXTENTS_MAX, Kind, LISTING_BYTES_MAX, Listing, ListingBuilder, ListingError, Meta,
    OWNERS_MAX, OwnerNames,
};
use std::ops::Range;

const MAGIC: &[u8; 8] = b"SKNTREE\0";
const VERSION: u32 = 1;

/// Bytes before the owners.
pub const HEADER_BYTES: usize = 28;

/// Where the summed bytes begin.
const SUMMED_AT: usize = HEADER_BYTES;

/// Bytes of an entry without its name and what its kind adds.
const ENTRY_BYTES: usize = 15;

/// Kinds start at 1, so that a page of zeros is no entries.
const DIRECTORY: u8 = 1;
const FILE: u8 = 2;
const SPARSE: u8 = 3;
const SYMLINK: u8 = 4;
const HARD_LINK: u8 = 5;

/// What the first bytes of a stream say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Number of entries.
    pub entries: u32,
    /// Bytes of the whole listing.
    pub listing_bytes: u32,
    owners: u16,
    checksum: u32,
}

impl Header {
    /// Reads the header at the start of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, ListingError> {
        let mut reader = Reader { rest: bytes };
        if reader.take(8)? != MAGIC {
            return Err(ListingError::Magic);
        }
        match reader.u32()? {
            VERSION => {}
            version => return Err(ListingError::Version(version)),
        }
        let (entries, listing_bytes) = (reader.u32()?, reader.u32()?);
        let owners = reader.u16()?;
        if reader.u16()? != 0 {
            return Err(ListingError::Kind(0));
        }
        let checksum = reader.u32()?;
        if entries > ENTRIES_MAX {
            return Err(ListingError::Entries);
        }
        if listing_bytes > LISTING_BYTES_MAX {
            return Err(ListingError::Bytes);
        }
        if owners > OWNERS_MAX {
            return Err(ListingError::Owners);
        }
        let least = HEADER_BYTES + entries as usize * ENTRY_BYTES;
        if (listing_bytes as usize) < least {
            return Err(ListingError::Length);
        }
        Ok(Self { entries, listing_bytes, owners, checksum })
    }
}

/// Bytes that `owner` takes.
pub(super) fn owner_bytes(owner: &OwnerNames) -> usize {
    2 + owner.user.len() + owner.group.len()
}

/// Bytes that an entry takes.
pub(super) fn entry_bytes(name: &[u8], kind: &Kind<'_>) -> usize {
    let more = match kind {
        Kind::Directory => 0,
        Kind::File { .. } => 8,
        Kind::Sparse { extents, .. } => 12 + extents.len() * 16,
        Kind::Symlink(target) => 2 + target.len(),
        Kind::HardLink(_) => 4,
    };
    ENTRY_BYTES + name.len() + more
}

/// The bytes of `listing`.
pub fn encode(listing: &Listing) -> Vec<u8> {
    let mut out = vec![0; HEADER_BYTES];
    for owner in listing.owners() {
        for name in [&owner.user, &owner.group] {
            out.push(name.len() as u8);
            out.extend_from_slice(name);
        }
    }
    for entry in 0..listing.len() {
        encode_entry(listing, entry, &mut out);
    }
    let mut put = |at: usize, field: &[u8]| out[at..at + field.len()].copy_from_slice(field);
    put(0, MAGIC);
    put(8, &VERSION.to_be_bytes());
    put(12, &listing.len().to_be_bytes());
    put(20, &(listing.owners().len() as u16).to_be_bytes());
    let (len, checksum) = (out.len() as u32, crc32c::crc32c(&out[SUMMED_AT..]));
    out[16..20].copy_from_slice(&len.to_be_bytes());
    out[24..28].copy_from_slice(&checksum.to_be_bytes());
    out
}

fn encode_entry(listing: &Listing, entry: u32, out: &mut Vec<u8>) {
    let (meta, kind, name) = (listing.meta(entry), listing.kind(entry), listing.name(entry));
    out.push(match kind {
        Kind::Directory => DIRECTORY,
        Kind::File { .. } => FILE,
        Kind::Sparse { .. } => SPARSE,
        Kind::Symlink(_) => SYMLINK,
        Kind::HardLink(_) => HARD_LINK,
    });
    out.push(listing.depth(entry));
    out.extend_from_slice(&meta.mode.to_be_bytes());
    out.extend_from_slice(&meta.owner.to_be_bytes());
    out.extend_from_slice(&meta.mtime_ns.to_be_bytes());
    out.push(name.len() as u8);
    out.extend_from_slice(name);
    match kind {
        Kind::Directory => {}
        Kind::File { size_bytes } => out.extend_from_slice(&size_bytes.to_be_bytes()),
        Kind::Sparse { size_bytes, extents } => {
            out.extend_from_slice(&size_bytes.to_be_bytes());
            out.extend_from_slice(&(extents.len() as u32).to_be_bytes());
            for Range { start, end } in extents {
                out.extend_from_slice(&start.to_be_bytes());
                out.extend_from_slice(&(end - start).to_be_bytes());
            }
        }
        Kind::Symlink(target) => {
            out.extend_from_slice(&(target.len() as u16).to_be_bytes());
            out.extend_from_slice(target);
        }
        Kind::HardLink(of) => out.extend_from_slice(&of.to_be_bytes()),
    }
}

/// The listing that is exactly `bytes`.
pub fn decode(bytes: &[u8]) -> Result<Listing, ListingError> {
    let header = Header::decode(bytes)?;
    if header.listing_bytes as usize != bytes.len() {
        return Err(ListingError::Length);
    }
    if crc32c::crc32c(&bytes[SUMMED_AT..]) != header.checksum {
        return Err(ListingError::Checksum);
    }
    let mut reader = Reader { rest: &bytes[HEADER_BYTES..] };
    let mut builder = ListingBuilder::default();
    for _ in 0..header.owners {
        let (user, group) = (reader.name()?.to_vec(), reader.name()?.to_vec());
        builder.push_owner(OwnerNames { user, group })?;
    }
    let mut extents = vec![];
    for entry in 0..header.entries {
        decode_entry(entry, &mut reader, &mut builder, &mut extents)?;
    }
    if !reader.rest.is_empty() {
        return Err(ListingError::Length);
    }
    builder.finish()
}

fn decode_entry(
    entry: u32,
    reader: &mut Reader<'_>,
    builder: &mut ListingBuilder,
    extents: &mut Vec<Range<u64>>,
) -> Result<(), ListingError> {
    let (number, depth) = (reader.u8()?, reader.u8()?);
    let (mode, owner, mtime_ns) = (reader.u16()?, reader.u16()?, reader.u64()?.cast_signed());
    let meta = Meta { mode, owner, mtime_ns };
    let name = reader.name()?;
    let kind = match number {
        DIRECTORY => Kind::Directory,
        FILE => Kind::File { size_bytes: reader.u64()? },
        SPARSE => {
            let (size_bytes, count) = (reader.u64()?, reader.u32()?);
            if count > EXTENTS_MAX {
                return Err(ListingError::Extents(entry));
            }
            extents.clear();
            for _ in 0..count {
                let (start, len) = (reader.u64()?, reader.u64()?);
                let end = start.checked_add(len).ok_or(ListingError::Extents(entry))?;
                extents.push(start..end);
            }
            Kind::Sparse { size_bytes, extents }
        }
        SYMLINK => {
            let len = reader.u16()?;
            Kind::Symlink(reader.take(usize::from(len))?)
        }
        HARD_LINK => Kind::HardLink(reader.u32()?),
        _ => return Err(ListingError::Kind(entry)),
    };
    builder.push(depth, name, meta, kind).map(drop)
}

/// Takes fields from the front.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], ListingError> {
        let (field, rest) = self.rest.split_at_checked(len).ok_or(ListingError::Length)?;
        self.rest = rest;
        Ok(field)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ListingError> {
        let (field, rest) = self.rest.split_first_chunk().ok_or(ListingError::Length)?;
        self.rest = rest;
        Ok(*field)
    }

    fn name(&mut self) -> Result<&'a [u8], ListingError> {
        let len = self.u8()?;
        self.take(usize::from(len))
    }

    fn u8(&mut self) -> Result<u8, ListingError> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Result<u16, ListingError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, ListingError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, ListingError> {
        self.array().map(u64::from_be_bytes)
    }
}
