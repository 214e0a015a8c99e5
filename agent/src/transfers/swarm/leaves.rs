//! The proved leaves of a swarm's pieces, for peers that ask: a file without a name, 32 bytes for
//! every 16 KiB. What a crash takes is asked for again.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use skein_filemesh::core::geometry::Geometry;
use skein_filemesh::core::merkle::{HASH_BYTES, Hash};
use skein_wire::ids::TransferId;

/// Leaves at their places.
pub(super) struct LeafStore {
    file: File,
    per_piece: u64,
}

impl LeafStore {
    /// An empty store in `dir`.
    pub fn create(dir: &Path, id: &TransferId, geometry: &Geometry) -> io::Result<Self> {
        let path = dir.join(format!("{id}.leaves"));
        let mut options = File::options();
        let file =
            options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        fs::remove_file(&path)?;
        Ok(Self { file, per_piece: 1 << geometry.piece_height() })
    }

    /// Keeps the leaves of `piece`.
    pub fn put(&self, piece: u32, leaves: &[Hash]) -> io::Result<()> {
        let at = u64::from(piece) * self.per_piece * HASH_BYTES as u64;
        self.file.write_all_at(leaves.as_flattened(), at)
    }

    /// `count` leaves from `first` on. What was never put may read as zeros, which no peer takes
    /// for a proof.
    pub fn read(&self, first: u32, count: u32) -> io::Result<Vec<u8>> {
        let mut leaves = vec![0; count as usize * HASH_BYTES];
        self.file.read_exact_at(&mut leaves, u64::from(first) * HASH_BYTES as u64)?;
        Ok(leaves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_are_read_over_the_borders_of_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let geometry = Geometry::new(5 * 65_536, 65_536).unwrap();
        let store = LeafStore::create(dir.path(), &TransferId([1; 16]), &geometry).unwrap();
        let leaves = |piece: u8| -> Vec<Hash> { (0..4).map(|at| [piece * 4 + at; 32]).collect() };
        store.put(2, &leaves(2)).unwrap();
        store.put(1, &leaves(1)).unwrap();
        let read = store.read(6, 4).unwrap();
        assert_eq!(read, [[6; 32], [7; 32], [8; 32], [9; 32]].as_flattened());
        assert!(store.read(12, 1).is_err(), "nothing is there yet");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "it has no name");
    }
}
