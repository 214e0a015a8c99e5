//! Small files that travel inside requests and orders.

use bytes::Bytes;
use skein_filemesh::core::manifest::choose_piece_bytes;
use skein_filemesh::core::merkle::TreeBuilder;
use skein_filemesh::core::planner::INLINE_BYTES_MAX;
use skein_filemesh::engine::check_file_name;
use skein_wire::ids::{TransferId, hex_encode};

use super::cache::{Content, HOSTS_ASSUMED};
use super::{TransferError, TransferRecord, Transfers};
use crate::api::types::{TransferSource, Upload};

/// A file that came inside the request: what it is, and its bytes.
pub(super) fn of_request(
    source: &TransferSource,
    now_ms: i64,
) -> Result<Option<(Upload, Bytes)>, TransferError> {
    let TransferSource::Content { name, mode, mtime_ms, content_hex } = source else {
        return Ok(None);
    };
    let invalid = TransferError::Invalid;
    check_file_name(name.as_bytes())
        .map_err(|error| invalid(format!("file name {name:?}: {error}")))?;
    if mode & !0o7777 != 0 {
        return Err(invalid(format!("mode {mode:o} has bits beyond 7777")));
    }
    let content = decode(content_hex).ok_or_else(|| {
        invalid(format!(
            "content_hex is not hexadecimal, or more than {INLINE_BYTES_MAX} bytes: upload the file"
        ))
    })?;
    let piece_bytes = choose_piece_bytes(content.len() as u64, HOSTS_ASSUMED);
    let tree = TreeBuilder::new(piece_bytes).and_then(|mut tree| {
        tree.update(&content, |_| {});
        tree.finish(|_| {})
    });
    let tree = tree.map_err(|error| invalid(error.to_string()))?;
    let upload = Upload {
        upload_id: String::new(),
        name: name.clone(),
        size_bytes: content.len() as u64,
        root: hex_encode(&tree.root),
        piece_bytes,
        mode: *mode,
        mtime_ms: mtime_ms.unwrap_or(now_ms),
        tree: false,
        created_ms: now_ms,
        expires_ms: now_ms,
    };
    Ok(Some((upload, content)))
}

/// The bytes of hexadecimal digits; none for others, and for more than an order carries.
fn decode(digits: &str) -> Option<Bytes> {
    let digits = digits.as_bytes();
    if !digits.len().is_multiple_of(2) || digits.len() as u64 > 2 * INLINE_BYTES_MAX {
        return None;
    }
    let digit = |digit: u8| (digit as char).to_digit(16);
    digits
        .chunks_exact(2)
        .map(|pair| Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8))
        .collect()
}

impl Transfers {
    /// What goes into the order of a transfer in the inline gear. Reads at most 32 KiB.
    pub(super) fn content_of(&self, record: &TransferRecord) -> std::io::Result<Bytes> {
        if let Some(digits) = &record.content_hex {
            return decode(digits).ok_or_else(|| std::io::ErrorKind::InvalidData.into());
        }
        let file = record.file.as_ref().and_then(|file| file.upload_id.parse::<TransferId>().ok());
        let file = file.ok_or(std::io::ErrorKind::NotFound)?;
        std::fs::read(self.cache.path(&file)).map(Bytes::from)
    }

    /// Puts a file that came inside a request into the cache, for a gear that serves it from there.
    pub(super) async fn cache_content(
        &self,
        file: &Upload,
        content: Bytes,
    ) -> Result<Upload, TransferError> {
        let (name, mode, tree) = (file.name.clone(), file.mode, file.tree);
        let named = Content { name, mode, mtime_ms: Some(file.mtime_ms), tree };
        let (chunks, stored) = self.cache.receive(named, file.size_bytes)?;
        if !content.is_empty() {
            // Fails when the writer has ended, which then says why.
            let _ = chunks.send(content).await;
        }
        drop(chunks);
        let upload = stored.await?;
        let id = upload.upload_id.parse().ok();
        let kept = id.and_then(|id| self.cache.pin(&id));
        kept.ok_or(TransferError::NoUpload(upload.upload_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_filemesh::core::merkle::leaf;

    fn source(name: &str, content_hex: String) -> TransferSource {
        TransferSource::Content { name: name.into(), mode: 0o600, mtime_ms: Some(5), content_hex }
    }

    #[test]
    fn a_small_file_is_hashed_where_it_stands() {
        let (file, content) = of_request(&source("f", "68656C6c6f".into()), 9).unwrap().unwrap();
        assert_eq!((&content[..], file.root), (&b"hello"[..], hex_encode(&leaf(b"hello"))));
        assert_eq!((file.size_bytes, file.mtime_ms, file.mode), (5, 5, 0o600));
        let (empty, content) = of_request(&source("f", String::new()), 9).unwrap().unwrap();
        assert_eq!((empty.size_bytes, content.len(), empty.root), (0, 0, "00".repeat(32)));
        let upload = TransferSource::Upload { upload_id: "x".into() };
        assert!(of_request(&upload, 0).unwrap().is_none());
    }

    #[test]
    fn what_is_too_large_or_not_hexadecimal_is_refused() {
        let largest = "00".repeat(INLINE_BYTES_MAX as usize);
        assert!(of_request(&source("f", largest.clone()), 0).is_ok());
        for (name, digits) in [
            ("f", format!("{largest}00")),
            ("f", "0".into()),
            ("f", "zz".into()),
            ("f", "é".into()),
            ("../f", "00".into()),
        ] {
            assert!(of_request(&source(name, digits), 0).is_err(), "{name}");
        }
    }
}
