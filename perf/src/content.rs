//! Files that are sent: made so that nothing on the way can shorten them, and proved afterwards.

use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use ring::digest;

/// Flushes of one look at a disk.
const FLUSHES: u64 = 100;

/// A file of bytes that neither compress nor repeat; another `seed` gives another file.
pub fn write_noise(file: &Path, bytes: u64, seed: u64) -> anyhow::Result<()> {
    let file = std::fs::File::create(file).with_context(|| file.display().to_string())?;
    let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
    // Xorshift stays at zero once it is there.
    let mut state = (seed ^ 0x9e37_79b9_7f4a_7c15).max(1);
    let mut block = vec![0u8; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let part = left.min(block.len() as u64);
        out.write_all(&block[..part as usize])?;
        left -= part;
    }
    Ok(out.flush()?)
}

/// SHA-256 of a whole file.
pub fn sha256_of(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut file = std::fs::File::open(file).with_context(|| file.display().to_string())?;
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(context.finish().as_ref().to_vec()),
            bytes => context.update(&block[..bytes]),
        }
    }
}

/// A bare loop that writes `bytes` and waits for them to be on the disk, seconds each: what a host
/// cannot do without to have a short file for good.
pub fn flush_times(folder: &Path, bytes: usize) -> anyhow::Result<Vec<f64>> {
    let path = folder.join("flush.bin");
    let file = std::fs::File::create(&path).with_context(|| path.display().to_string())?;
    let content = vec![7; bytes];
    let flush = |at: u64| -> anyhow::Result<f64> {
        let started = Instant::now();
        file.write_all_at(&content, at * bytes as u64)?;
        file.sync_data()?;
        Ok(started.elapsed().as_secs_f64())
    };
    let times = (0..FLUSHES).map(flush).collect::<anyhow::Result<Vec<_>>>()?;
    std::fs::remove_file(&path)?;
    Ok(times)
}

/// The 99th percentile of some times.
pub fn p99(mut times: Vec<f64>) -> Option<f64> {
    times.sort_by(f64::total_cmp);
    times.get(times.len() * 99 / 100).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_its_length_and_differs_by_seed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("noise");
        let of = |bytes, seed| {
            write_noise(&file, bytes, seed).unwrap();
            assert_eq!(std::fs::metadata(&file).unwrap().len(), bytes);
            sha256_of(&file).unwrap()
        };
        let (first, second) = (of((1 << 20) + 7, 1), of((1 << 20) + 7, 2));
        assert_ne!(first, second);
        assert_eq!(first, of((1 << 20) + 7, 1));
        assert_eq!(of(0, 1), digest::digest(&digest::SHA256, b"").as_ref());
    }

    #[test]
    fn the_99th_percentile_is_near_the_end() {
        assert_eq!(p99((0..100).map(f64::from).collect()), Some(99.0));
        assert_eq!(p99((0..1000).rev().map(f64::from).collect()), Some(990.0));
        assert_eq!(p99(Vec::new()), None);
    }
}
