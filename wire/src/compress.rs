//! Bodies of batches, compressed once at the agent and opened at most once on the server.
//!
//! The codecs are Kafka's, with Kafka's numbers: lz4 in frame format and zstd. Contexts are kept
//! and reused; the output of a decompression is bounded by the length that the batch header
//! states and must match it exactly, so that a small body cannot unfold without end.

use crate::limits::BATCH_RAW_BYTES_MAX;

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// As it is.
    None = 0,
    /// LZ4 frame format.
    Lz4 = 3,
    /// Zstandard.
    Zstd = 4,
}

impl Codec {
    /// From Kafka's number.
    pub fn from_u8(value: u8) -> Option<Self> {
        [Self::None, Self::Lz4, Self::Zstd].into_iter().find(|codec| *codec as u8 == value)
    }
}

/// Why a body could not be compressed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompressError {
    /// The codec's own word.
    #[error("{codec:?}: {message}")]
    Codec {
        /// Which codec.
        codec: Codec,
        /// What it says.
        message: String,
    },
    /// The output does not have the length that the header states.
    #[error("body opens to {actual} bytes where its header says {stated}")]
    Length {
        /// By the header.
        stated: usize,
        /// What came out, or more than `stated`.
        actual: usize,
    },
}

fn codec_error(codec: Codec, error: impl ToString) -> CompressError {
    CompressError::Codec { codec, message: error.to_string() }
}

/// Compresses bodies with one level, reusing its context (about 600 KiB for zstd level 1).
pub struct Compressor {
    codec: Codec,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Compressor {
    /// `level` is zstd's and ignored by other codecs.
    pub fn new(codec: Codec, level: i32) -> Result<Self, CompressError> {
        let zstd = (codec == Codec::Zstd)
            .then(|| zstd::bulk::Compressor::new(level))
            .transpose()
            .map_err(|error| codec_error(codec, error))?;
        Ok(Self { codec, zstd })
    }

    /// What [`Compressor::compress`] uses.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Compresses `raw` and appends it to `out`.
    pub fn compress(&mut self, raw: &[u8], out: &mut Vec<u8>) -> Result<(), CompressError> {
        match (self.codec, &mut self.zstd) {
            (Codec::Lz4, _) => {
                let mut encoder = lz4_flex::frame::FrameEncoder::new(&mut *out);
                std::io::Write::write_all(&mut encoder, raw)
                    .map_err(|error| codec_error(Codec::Lz4, error))?;
                encoder.finish().map_err(|error| codec_error(Codec::Lz4, error))?;
            }
            (Codec::Zstd, Some(zstd)) => {
                let start = out.len();
                out.resize(start + zstd::zstd_safe::compress_bound(raw.len()), 0);
                let bytes = zstd
                    .compress_to_buffer(raw, &mut out[start..])
                    .map_err(|error| codec_error(Codec::Zstd, error))?;
                out.truncate(start + bytes);
            }
            _ => out.extend_from_slice(raw),
        }
        Ok(())
    }
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Compressor({:?})", self.codec)
    }
}

/// Opens bodies of any codec, reusing its context (about 160 KiB for zstd).
#[derive(Default)]
pub struct Decompressor {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Decompressor {
    /// Contexts are made when first needed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the content of `out` by the opened `body`, which must come to exactly `raw_bytes`.
    pub fn decompress(
        &mut self,
        codec: Codec,
        body: &[u8],
        raw_bytes: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), CompressError> {
        let stated = raw_bytes;
        if stated > BATCH_RAW_BYTES_MAX {
            return Err(CompressError::Length { stated, actual: BATCH_RAW_BYTES_MAX });
        }
        out.clear();
        match codec {
            Codec::None => {
                if body.len() == stated {
                    out.extend_from_slice(body);
                    return Ok(());
                }
                return Err(CompressError::Length { stated, actual: body.len() });
            }
            Codec::Lz4 => {
                use std::io::Read;
                out.reserve_exact(stated + 1);
                lz4_flex::frame::FrameDecoder::new(body)
                    .take(stated as u64 + 1)
                    .read_to_end(out)
                    .map_err(|error| codec_error(codec, error))?;
            }
            Codec::Zstd => {
                let zstd = match &mut self.zstd {
                    Some(zstd) => zstd,
                    empty => empty.insert(
                        zstd::bulk::Decompressor::new()
                            .map_err(|error| codec_error(codec, error))?,
                    ),
                };
                out.reserve_exact(stated);
                // Writes into the vector's capacity from its start, and sets its length.
                zstd.decompress_to_buffer(body, out).map_err(|error| codec_error(codec, error))?;
            }
        }
        let actual = out.len();
        (actual == stated).then_some(()).ok_or(CompressError::Length { stated, actual })
    }
}

impl std::fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decompressor")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CODECS: [Codec; 3] = [Codec::None, Codec::Lz4, Codec::Zstd];

    #[test]
    fn the_stated_length_is_the_bound_and_must_match() {
        for codec in CODECS {
            let raw = vec![b'a'; 1 << 20];
            let mut body = Vec::new();
            Compressor::new(codec, 1).unwrap().compress(&raw, &mut body).unwrap();
            let mut opener = Decompressor::new();
            let mut out = Vec::new();
            opener.decompress(codec, &body, raw.len(), &mut out).unwrap();
            assert!(out == raw);
            for wrong in [0, 1, raw.len() - 1, raw.len() + 1] {
                let mut out = Vec::new();
                assert!(opener.decompress(codec, &body, wrong, &mut out).is_err());
                assert!(out.capacity() <= wrong + (1 << 17), "{codec:?} grew past its bound");
            }
        }
    }

    proptest! {
        #[test]
        fn bodies_round_trip(raw in prop::collection::vec(any::<u8>(), 0..4096)) {
            for codec in CODECS {
                let mut body = Vec::new();
                Compressor::new(codec, 1).unwrap().compress(&raw, &mut body).unwrap();
                let mut out = Vec::new();
                Decompressor::new().decompress(codec, &body, raw.len(), &mut out).unwrap();
                prop_assert_eq!(&out, &raw);
            }
        }

        #[test]
        fn garbage_is_refused_without_panic(
            body in prop::collection::vec(any::<u8>(), 0..512), raw in 0usize..100_000
        ) {
            for codec in CODECS {
                let _ = Decompressor::new().decompress(codec, &body, raw, &mut Vec::new());
            }
        }
    }
}
