//! Why bytes are no metainfo of one file.

use super::{METAINFO_BYTES_MAX, TRACKER_BYTES_MAX, TRACKERS_MAX};
use crate::core::geometry::GeometryError;
use crate::core::manifest::ManifestError;
use crate::core::name::NameError;

/// Why bytes are no metainfo, or parts cannot become one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetainfoError {
    /// More bytes than the metainfo of any file that we accept.
    #[error("the metainfo has {0} bytes; at most {METAINFO_BYTES_MAX} are read")]
    Large(usize),
    /// The encoding is wrong.
    #[error("this is no metainfo: {0}")]
    Bencode(String),
    /// Something else stands where a dictionary or list must be.
    #[error("this is no metainfo: it is not a dictionary of bencode")]
    NoDictionary,
    /// Bytes follow the end.
    #[error("bytes follow the end of the metainfo")]
    Trailing,
    /// A key is missing, of the wrong kind, or its value is out of bounds.
    #[error("the metainfo's \"{0}\" is missing or has no legal value")]
    Field(&'static str),
    /// It is of a directory or of several files.
    #[error("the metainfo describes a directory; only those of one file are understood")]
    Directory,
    /// It has neither SHA-1 pieces nor a tree of SHA-256.
    #[error("the metainfo is neither of BitTorrent version 1 nor of version 2")]
    Version,
    /// Its two versions are of two different files.
    #[error("versions 1 and 2 of the metainfo describe different files")]
    Disagreement,
    /// Its sizes are out of bounds.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// Its name is hostile.
    #[error("the file's name is refused: {0}")]
    Name(#[from] NameError),
    /// An attribute is out of bounds.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// There are not as many SHA-1 hashes as pieces.
    #[error("the metainfo has {hashes} bytes of SHA-1 hashes for {pieces} pieces")]
    Pieces {
        /// Bytes under `pieces`.
        hashes: usize,
        /// Pieces that the file has.
        pieces: u32,
    },
    /// Hashes do not lead to the root, or are too many or few.
    #[error("the metainfo's {0} do not lead to the file's root")]
    Mismatch(&'static str),
    /// An empty file has no pieces, and version 1 cannot say so.
    #[error("an empty file has no pieces; clients of BitTorrent version 1 refuse it")]
    Empty,
    /// The trackers are too many or too long.
    #[error(
        "a tracker has 1 to {TRACKER_BYTES_MAX} bytes of text, and there are at most {TRACKERS_MAX}"
    )]
    Trackers,
}

impl From<bendy::decoding::Error> for MetainfoError {
    fn from(error: bendy::decoding::Error) -> Self {
        Self::Bencode(error.to_string())
    }
}
