//! Which bytes of a tree's stream are which bytes of which file.
//!
//! It follows from the listing alone. The contents begin on the first block border behind the
//! listing. They stand in the listing's order without gaps, so that many small files share a block;
//! but an extent of [`LARGE_BYTES`] or more begins on a block border, so that whole blocks of it
//! are whole pages of its file (direct writes, zero-copy reads). That wastes less than 16 KiB per
//! MiB. Whatever lies between is zero.

use super::listing::{Kind, Listing, ListingError};
use crate::core::geometry::{BLOCK_BYTES, FILE_BYTES_MAX};
use std::ops::Range;

/// Extents of this size and more begin on a block border.
pub const LARGE_BYTES: u64 = 1024 * 1024;

/// A range of a file that is a range of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The file.
    pub entry: u32,
    /// Where it begins in the file.
    pub file_offset: u64,
    /// Where it begins in the stream.
    pub stream_offset: u64,
    /// Its length, at least 1.
    pub len: u64,
}

impl Span {
    fn stream_end(&self) -> u64 {
        self.stream_offset + self.len
    }
}

/// What a range of the stream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// These bytes of the listing.
    Listing(Range<u64>),
    /// This many zeros.
    Padding(u64),
    /// Bytes of a file.
    File {
        /// The file.
        entry: u32,
        /// Where in the file.
        offset: u64,
        /// How many.
        len: u64,
    },
}

impl Part {
    /// Number of bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Listing(range) => range.end - range.start,
            Self::Padding(len) | Self::File { len, .. } => *len,
        }
    }

    /// Whether there are none; no part of a layout is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The order of a stream: 32 bytes of memory per extent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    spans: Vec<Span>,
    listing_bytes: u64,
    stream_bytes: u64,
}

impl Layout {
    /// The layout of the stream that begins with the `listing_bytes` of `listing`.
    pub fn new(listing: &Listing, listing_bytes: u64) -> Result<Self, ListingError> {
        let mut layout = Self { spans: vec![], listing_bytes, stream_bytes: listing_bytes };
        for entry in 0..listing.len() {
            match listing.kind(entry) {
                Kind::File { size_bytes } => layout.push(entry, 0..size_bytes)?,
                Kind::Sparse { extents, .. } => {
                    for extent in extents {
                        layout.push(entry, extent.clone())?;
                    }
                }
                Kind::Directory | Kind::Symlink(_) | Kind::HardLink(_) => {}
            }
        }
        Ok(layout)
    }

    fn push(&mut self, entry: u32, extent: Range<u64>) -> Result<(), ListingError> {
        let len = extent.end - extent.start;
        if len == 0 {
            return Ok(());
        }
        let mut stream_offset = self.stream_bytes;
        if len >= LARGE_BYTES || self.spans.is_empty() {
            stream_offset = stream_offset.next_multiple_of(u64::from(BLOCK_BYTES));
        }
        let end = stream_offset.checked_add(len).filter(|end| *end <= FILE_BYTES_MAX);
        self.stream_bytes = end.ok_or(ListingError::Content)?;
        self.spans.push(Span { entry, file_offset: extent.start, stream_offset, len });
        Ok(())
    }

    /// Bytes of the listing.
    pub fn listing_bytes(&self) -> u64 {
        self.listing_bytes
    }

    /// Bytes of the stream.
    pub fn stream_bytes(&self) -> u64 {
        self.stream_bytes
    }

    /// The extents of `entry` in the stream, in order.
    pub fn spans_of(&self, entry: u32) -> &[Span] {
        let first = self.spans.partition_point(|span| span.entry < entry);
        let behind = self.spans.partition_point(|span| span.entry <= entry);
        &self.spans[first..behind]
    }

    /// The bytes of the stream from the first of `entry` to its last; empty if it has none.
    pub fn stream_range_of(&self, entry: u32) -> Range<u64> {
        match self.spans_of(entry) {
            [first, .., last] => first.stream_offset..last.stream_end(),
            [only] => only.stream_offset..only.stream_end(),
            [] => 0..0,
        }
    }

    /// Where byte `offset` of `entry` is in the stream; `None` in a hole or past the end.
    pub fn stream_offset_of(&self, entry: u32, offset: u64) -> Option<u64> {
        let spans = self.spans_of(entry);
        let behind = spans.partition_point(|span| span.file_offset <= offset);
        let span = spans[..behind].last()?;
        let within = offset - span.file_offset;
        (within < span.len).then_some(span.stream_offset + within)
    }

    /// What the bytes of `range` are, in order; clipped to the stream.
    pub fn parts(&self, range: Range<u64>) -> Parts<'_> {
        let (at, end) = (range.start, range.end.min(self.stream_bytes));
        let next = self.spans.partition_point(|span| span.stream_end() <= at);
        Parts { layout: self, at, end, next }
    }
}

/// Goes over the parts of a range.
#[derive(Debug, Clone)]
pub struct Parts<'a> {
    layout: &'a Layout,
    at: u64,
    end: u64,
    /// The first span that ends behind `at`.
    next: usize,
}

impl Iterator for Parts<'_> {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        if self.at >= self.end {
            return None;
        }
        let at = self.at;
        let part = if at < self.layout.listing_bytes {
            Part::Listing(at..self.end.min(self.layout.listing_bytes))
        } else {
            match self.layout.spans.get(self.next) {
                Some(span) if span.stream_offset <= at => {
                    let end = self.end.min(span.stream_end());
                    if end == span.stream_end() {
                        self.next += 1;
                    }
                    let offset = span.file_offset + (at - span.stream_offset);
                    Part::File { entry: span.entry, offset, len: end - at }
                }
                Some(span) => Part::Padding(span.stream_offset.min(self.end) - at),
                // A stream ends with its last extent or with its listing.
                None => Part::Padding(self.end - at),
            }
        };
        self.at += part.len();
        Some(part)
    }
}
