//! A file whose content came inside its order: proved, written and renamed in one step on a disk
//! thread.
//!
//! Nothing of such an order is kept beside the file, so that it costs two flushes and not six. It
//! is not reported before its end either: a server that has heard nothing orders again after this
//! agent was killed, and the same content in the same place changes nothing.

use bytes::Bytes;
use skein_filemesh::core::manifest::Manifest;
use skein_filemesh::core::merkle::TreeBuilder;
use skein_filemesh::core::planner::INLINE_BYTES_MAX;
use skein_observe::names;
use skein_wire::ids::TransferId;
use skein_wire::signal::v1::JoinTransfer;
use tokio::sync::watch;

use super::arriving::Arriving;
use super::fetch::FetchEnd;
use super::{Shared, Stop};

/// Puts the file in its place.
pub(super) async fn run(
    shared: &Shared,
    id: TransferId,
    join: JoinTransfer,
    stopped: watch::Receiver<Stop>,
) -> Result<(), FetchEnd> {
    let settings = shared.settings.clone();
    let placed = shared.on_disk(move || {
        // A pause would keep nothing: it ends as it was ordered.
        if *stopped.borrow() == Stop::Cancel {
            return Err(FetchEnd::Cancelled);
        }
        let info = join.file.clone().unwrap_or_default();
        let manifest = Manifest::from_info(&info).map_err(|e| FetchEnd::Failed(e.to_string()))?;
        let content = join.content.clone().unwrap_or_default();
        prove(&content, &manifest)?;
        let placed = Arriving::place(&settings, &id, &join, &manifest, &content);
        if placed.is_err() {
            // A folder that is not there, or not for us, has nothing of ours.
            let _ = Arriving::discard(&settings, &id, &join);
        }
        placed.map(|()| manifest.geometry.size_bytes())
    });
    let size_bytes = placed.await??;
    metrics::counter!(names::AGENT_FILE_RECEIVED_BYTES).increment(size_bytes);
    Ok(())
}

/// Compares the content with the root that was signed beside it.
fn prove(content: &Bytes, manifest: &Manifest) -> Result<(), FetchEnd> {
    let failed = |why: String| Err(FetchEnd::Failed(format!("the content of the order {why}")));
    let (bytes, expected) = (content.len() as u64, manifest.geometry.size_bytes());
    if bytes > INLINE_BYTES_MAX || bytes != expected {
        return failed(format!("has {bytes} bytes, the file {expected}"));
    }
    let tree = TreeBuilder::new(manifest.geometry.piece_bytes()).and_then(|mut tree| {
        tree.update(content, |_| {});
        tree.finish(|_| {})
    });
    match tree {
        Ok(tree) if tree.root == manifest.root => Ok(()),
        Ok(_) => failed("does not have the file's root".into()),
        Err(error) => failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_filemesh::core::geometry::Geometry;
    use skein_filemesh::core::merkle::{PADDING_LEAF, leaf};

    fn manifest(size_bytes: u64, root: [u8; 32]) -> Manifest {
        let geometry = Geometry::new(size_bytes, 65_536).unwrap();
        Manifest { geometry, root, name: "f".into(), mode: 0o644, mtime_ms: 0 }
    }

    #[test]
    fn only_the_content_that_was_signed_is_proved() {
        let content = Bytes::from_static(b"hello");
        let root = leaf(&content);
        assert!(prove(&content, &manifest(5, root)).is_ok());
        assert!(prove(&Bytes::new(), &manifest(0, PADDING_LEAF)).is_ok());
        assert!(prove(&content, &manifest(5, [1; 32])).is_err());
        assert!(prove(&content, &manifest(6, root)).is_err());
        assert!(prove(&Bytes::new(), &manifest(5, root)).is_err());
        let large = Bytes::from(vec![7; INLINE_BYTES_MAX as usize + 1]);
        let mut tree = TreeBuilder::new(65_536).unwrap();
        tree.update(&large, |_| {});
        let root = tree.finish(|_| {}).unwrap().root;
        assert!(prove(&large, &manifest(large.len() as u64, root)).is_err());
    }
}
