//! Bodies of the file mesh: a whole hostile peer, and files that a crash or a bad disk left.
//!
//! What holds of a peer, whatever it sends: nothing is written that is not a true block in its
//! place, no read goes past the file, and a buffer of the stated size is always enough.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use skein_filemesh::core::download::Download;
use skein_filemesh::core::geometry::Geometry;
use skein_filemesh::core::hints::Progress;
use skein_filemesh::core::leecher::{Action, Leecher, LeecherOptions};
use skein_filemesh::core::link::{Have, OUT_BYTES_MAX};
use skein_filemesh::core::manifest::{MODE_TRAVELS, Manifest};
use skein_filemesh::core::membership::{PeerList, Removal, Roster};
use skein_filemesh::core::merkle::{Hash, TreeBuilder, leaf};
use skein_filemesh::core::metainfo::{Metainfo, Prover};
use skein_filemesh::core::peer_wire::{Handshake, MESSAGE_BYTES_MAX};
use skein_filemesh::core::piece_tree::PieceTree;
use skein_filemesh::core::plan::HostPlan;
use skein_filemesh::core::seeder::{Pull, Seeder};
use skein_filemesh::core::tree::codec;
use skein_filemesh::core::tree::layout::{Layout, Part};
use skein_filemesh::core::tree::listing::{ENTRIES_MAX, Kind, PATH_BYTES_MAX};
use skein_filemesh::engine::{LeafFile, PartialFile, TargetDir};
use skein_wire::ids::TransferId;
use skein_wire::limits::MESH_PEERS_MAX;
use skein_wire::prost::Message;
use skein_wire::signal::v1::{FileInfo, MeshReport, RemovePeers, TransferPeers, TransferPlan};

/// Pieces of the file that peers are fuzzed with: two, of two blocks and of five bytes, so that a
/// whole transfer fits one input.
const PIECE_BYTES: u32 = 32 * 1024;
const FILE_BYTES: usize = 32 * 1024 + 5;
/// Room that a seeder is given.
const ROOM: usize = 64 * 1024;
/// Files that are proved against fuzzed metainfo; larger ones take too long.
const METAINFO_FILE_BYTES_MAX: u64 = 256 * 1024;
/// Answers that are pulled per read at most; a peer can ask for no more than its queue holds.
const PULLS_MAX: usize = 10_000;

/// The file, its leaves and its tree.
pub struct File {
    /// Content.
    pub data: Vec<u8>,
    /// One hash per block.
    pub leaves: Vec<Hash>,
    /// The rest of the tree.
    pub tree: Arc<PieceTree>,
}

/// The file that peers are fuzzed with.
pub fn file() -> &'static File {
    static FILE: OnceLock<File> = OnceLock::new();
    FILE.get_or_init(|| {
        let data: Vec<u8> = (0..FILE_BYTES).map(|at| (at * 7 + at / 16_384) as u8).collect();
        let mut leaves = vec![];
        let mut builder = TreeBuilder::new(PIECE_BYTES).expect("a legal piece size");
        builder.update(&data, |leaf| leaves.push(leaf));
        let built = builder.finish(|leaf| leaves.push(leaf)).expect("a small file");
        let tree = PieceTree::new(built.geometry, built.layer, &built.root);
        File { data, leaves, tree: Arc::new(tree.expect("its own layer")) }
    })
}

/// What both sides of the fuzzed transfer say first.
pub fn shake(who: u8) -> Handshake {
    Handshake::new([9; 20], [who; 20])
}

/// A leecher of [`file`] that opened the connection.
pub fn leecher() -> Leecher {
    let tree = &file().tree;
    let download = Download::new(tree.geometry(), tree.root(), None);
    Leecher::connect(download, shake(1), LeecherOptions::default(), 0)
}

/// A seed that answers: the first byte says how finely the stream is cut, the rest is the stream.
pub fn mesh_leecher(input: &[u8]) {
    let Some((cut, stream)) = input.split_first() else { return };
    let mut leecher = leecher();
    let (mut actions, mut out, mut buf) = (vec![], vec![], vec![]);
    leecher.tick(0, &mut actions);
    let (mut over, mut written) = (false, 0);
    for piece in stream.chunks(1 + usize::from(*cut) * 16) {
        buf.extend_from_slice(piece);
        let used = leecher.receive(&buf, 1, &mut actions);
        for action in std::mem::take(&mut actions) {
            assert!(!over, "{action:?} follows the end");
            match action {
                Action::Write { offset, data } => {
                    written += data.len();
                    let bytes = &buf[data];
                    is_true(offset, bytes);
                    leecher.written(bytes.len() as u64, 1, &mut actions);
                }
                Action::Leaves { piece, leaves } => {
                    let blocks = file().tree.geometry().blocks_of(piece);
                    let known = &file().leaves[blocks.start as usize..blocks.end as usize];
                    assert_eq!(&leaves[..known.len()], known);
                }
                Action::Done => {
                    over = true;
                    assert_eq!(written, FILE_BYTES);
                }
                Action::Failed(_) => over = true,
            }
        }
        // The end may have come with the confirmation of a write.
        over |= actions.drain(..).any(|action| matches!(action, Action::Done | Action::Failed(_)));
        buf.drain(..used);
        assert!(over || buf.len() < MESSAGE_BYTES_MAX, "{} bytes are waited on", buf.len());
        out.clear();
        leecher.take_output(&mut out, 1);
        assert!(out.len() <= OUT_BYTES_MAX + MESSAGE_BYTES_MAX);
        assert_eq!(leecher.download().progress().written_bytes, written as u64);
        if over {
            return;
        }
    }
    let mut late = vec![];
    leecher.tick(1 << 40, &mut late);
    assert!(matches!(late[..], [Action::Failed(_)]), "silence is noticed: {late:?}");
}

fn is_true(offset: u64, bytes: &[u8]) {
    let first = (offset / 16_384) as usize;
    assert!(offset.is_multiple_of(16_384) && offset as usize + bytes.len() <= FILE_BYTES);
    for (block, leaf_of) in bytes.chunks(16_384).zip(&file().leaves[first..]) {
        assert_eq!(leaf(block), *leaf_of, "a false block at {offset}");
    }
}

/// A leecher that asks: cut as above.
pub fn mesh_seeder(input: &[u8]) {
    let Some((cut, stream)) = input.split_first() else { return };
    let File { data, leaves, tree } = file();
    let seeder = Seeder::accept(tree.clone(), Have::All, shake(2), &shake(1), 0);
    let mut seeder = seeder.expect("a member's handshake");
    let (mut buf, mut out) = (vec![], vec![]);
    for piece in stream.chunks(1 + usize::from(*cut) * 16) {
        buf.extend_from_slice(piece);
        let Ok(used) = seeder.receive(&buf, 1) else { return };
        buf.drain(..used);
        assert!(buf.len() < MESSAGE_BYTES_MAX);
        for pull in 0.. {
            assert!(pull < PULLS_MAX, "one read is answered without end");
            out.clear();
            let pulled = seeder.next(ROOM, &mut out, 1);
            assert!(out.len() <= ROOM + MESSAGE_BYTES_MAX, "{} bytes", out.len());
            match pulled {
                Some(Pull::Data { offset, len }) => {
                    assert!(len > 0 && offset + u64::from(len) <= data.len() as u64);
                }
                Some(Pull::Leaves { first, count }) => {
                    let range = first as usize..(first + count) as usize;
                    seeder.leaves(Some(leaves[range].as_flattened()), &mut out, 1);
                }
                None if out.is_empty() => break,
                None => {}
            }
        }
    }
}

/// Who may meet whom, and what they are told: one byte says which message follows. What is
/// accepted is within bounds and has one form; a roster takes no order twice.
pub fn mesh_membership(input: &[u8]) {
    let Some((kind, message)) = input.split_first() else { return };
    match kind % 4 {
        0 => peers(message),
        1 => {
            let Ok(message) = RemovePeers::decode(message) else { return };
            let Ok(removal) = Removal::from_message(&message) else { return };
            assert_eq!(Removal::from_message(&removal.to_message()).as_ref(), Ok(&removal));
            let mut roster = Roster::default();
            assert!(roster.remove(&removal).is_ok() && roster.remove(&removal).is_err());
        }
        2 => {
            let Ok(message) = TransferPlan::decode(message) else { return };
            let Ok((transfer, plan)) = HostPlan::from_message(&message) else { return };
            assert_eq!(plan.to_message(&transfer), message);
        }
        _ => {
            let Ok(message) = MeshReport::decode(message) else { return };
            let Ok((transfer, progress)) = Progress::from_message(&message) else { return };
            assert_eq!(progress.to_message(&transfer), message);
            assert!(progress.gained.is_sorted_by(|one, next| one.end < next.start));
        }
    }
}

fn peers(message: &[u8]) {
    let Ok(message) = TransferPeers::decode(message) else { return };
    let Ok(list) = PeerList::from_message(&message) else { return };
    assert_eq!(PeerList::from_message(&list.to_message()).as_ref(), Ok(&list));
    assert!(list.number > 0 && list.peers().len() <= MESH_PEERS_MAX);
    assert!(list.peer(list.me).is_none());
    for peer in list.peers() {
        assert_eq!(list.peer(peer.member), Some(peer));
    }
    let mut roster = Roster::default();
    assert_eq!(roster.take(list.clone()), Ok(Vec::new()));
    assert!(roster.take(list.clone()).is_err());
    let all: Vec<_> = list.peers().iter().map(|peer| peer.member).collect();
    if let Some(number) = list.number.checked_add(1) {
        let (transfer, not_after_ms) = (list.transfer, list.not_after_ms);
        let removal = Removal { transfer, number, not_after_ms, members: all };
        assert!(roster.remove(&removal).is_ok());
        assert!(roster.list().is_some_and(|list| list.peers().is_empty()));
    }
}

/// A manifest as control, an agent or the wire names it.
pub fn mesh_manifest(input: &[u8]) {
    let Ok(info) = FileInfo::decode(input) else { return };
    let Ok(manifest) = Manifest::from_info(&info) else { return };
    let geometry = manifest.geometry;
    assert_eq!(Manifest::from_info(&manifest.to_info()).as_ref(), Ok(&manifest));
    assert!(manifest.mode <= MODE_TRAVELS && !manifest.name.contains('/'));
    let (pieces, blocks) = (geometry.piece_count(), geometry.block_count());
    if let Some(last) = pieces.checked_sub(1) {
        let Range { start, end } = geometry.blocks_of(last);
        assert!(start < end && end == blocks);
        assert_eq!(geometry.bytes_of(start..end).end, geometry.size_bytes());
        let bytes = geometry.piece_offset(last) + u64::from(geometry.piece_len(last));
        assert_eq!(bytes, geometry.size_bytes());
        assert!(geometry.block_len(blocks - 1) > 0 && geometry.block_len(blocks) == 0);
    }
    assert!(geometry.tree_height() <= 26, "a tree has at most 2^26 leaves");
}

/// A torrent of anybody.
pub fn mesh_metainfo(input: &[u8]) {
    let Ok(metainfo) = Metainfo::decode(input) else { return };
    let again = Metainfo::decode(&metainfo.encode());
    assert_eq!(again.as_ref(), Ok(&metainfo), "info hashes and all");
    let geometry = metainfo.geometry();
    assert!(!metainfo.name().is_empty() && !metainfo.name().contains('/'));
    assert!(metainfo.pieces().is_some() || metainfo.tree().is_some());
    for count in [metainfo.pieces().map(<[_]>::len), metainfo.tree().map(|tree| tree.layer.len())] {
        assert!(count.is_none_or(|count| count == geometry.piece_count() as usize));
    }
    if let Some(manifest) = metainfo.manifest() {
        assert_eq!(Manifest::from_info(&manifest.to_info()), Ok(manifest));
    }
    if geometry.size_bytes() <= METAINFO_FILE_BYTES_MAX {
        let mut prover = Prover::new(&metainfo, 0).expect("a decoded one has hashes");
        prover.update(&vec![0; geometry.size_bytes() as usize], |range| {
            assert!(range.start < range.end && range.end <= geometry.size_bytes());
        });
        assert!(prover.is_done());
    }
}

/// A leaves sidecar and the state of a partial file, as a crash or a bad disk may leave them. The
/// checksums are made right, because the fuzzer would not find them.
pub fn mesh_sidecar(input: &[u8]) {
    const HEADER: usize = 128;
    let place = Place::new();
    let mut bytes = input.to_vec();
    if bytes.len() >= HEADER {
        let body = crc32c(&bytes[HEADER..]);
        bytes[88..92].copy_from_slice(&body.to_be_bytes());
        let header = crc32c(&bytes[..HEADER - 4]);
        bytes[HEADER - 4..HEADER].copy_from_slice(&header.to_be_bytes());
    }
    let leaves = place.0.join("leaves");
    std::fs::write(&leaves, &bytes).expect("the temporary folder takes a small file");
    if let Ok(sidecar) = LeafFile::open(&leaves) {
        let count = sidecar.tree().geometry().block_count();
        let mut out = vec![];
        assert!(sidecar.append_leaves(0, count, &mut out).is_ok());
        assert_eq!(out.len(), count as usize * 32);
        assert!(sidecar.append_leaves(count, 1, &mut out).is_err());
        assert!(sidecar.append_leaves(u32::MAX, u32::MAX, &mut out).is_err());
    }

    // A state for a partial file that has none, and then for one that exists.
    let transfer = TransferId([3; 16]);
    let (geometry, root) = (file().tree.geometry(), file().tree.root());
    let manifest = Manifest { geometry, root, name: "x".into(), mode: 0o600, mtime_ms: 0 };
    let open = || {
        let dir = TargetDir::open(&place.0, false).expect("the folder was just made");
        PartialFile::open(dir, b"x", &transfer, &manifest, &place.0)
    };
    let state = place.0.join(format!("{transfer}.state"));
    std::fs::write(&state, input).expect("the temporary folder takes a small file");
    drop(open().expect("a state that does not fit is made anew"));
    let own = std::fs::read(&state).expect("the state was just made");
    // The same file's own header over hostile bits.
    let torn = [&own[..HEADER], input].concat();
    std::fs::write(&state, &torn[..torn.len().min(own.len())]).expect("as above");
    let partial = open().expect("a state that does not fit is made anew");
    if let Some(claimed) = partial.claimed() {
        assert_eq!(claimed.len(), Geometry::block_count(&geometry));
        let mut download = Download::new(geometry, root, Some(claimed));
        assert_eq!(download.next_check(), None, "claims wait for their hashes");
        assert_eq!(download.progress().written_bytes, 0);
    }
}

/// A tree's listing as a hostile source signs it. The length and the checksum are made right.
pub fn mesh_tree(input: &[u8]) {
    const HEADER: usize = codec::HEADER_BYTES;
    let mut bytes = input.to_vec();
    if bytes.len() >= HEADER {
        let (len, sum) = (bytes.len() as u32, crc32c(&bytes[HEADER..]));
        bytes[16..20].copy_from_slice(&len.to_be_bytes());
        bytes[24..28].copy_from_slice(&sum.to_be_bytes());
    }
    let Ok(listing) = codec::decode(&bytes) else { return };
    assert_eq!(codec::encode(&listing), bytes, "a listing has one encoding");
    assert!(listing.len() <= ENTRIES_MAX && listing.kind(0) == Kind::Directory);
    for entry in 1..listing.len() {
        let (parent, path) = (listing.parent(entry), listing.path(entry));
        assert!(parent < entry && listing.kind(parent) == Kind::Directory);
        assert!(path.len() <= PATH_BYTES_MAX && !path.contains(&0));
        for name in path.split(|byte| *byte == b'/') {
            assert!(!matches!(name, b"" | b"." | b".."), "{}", path.escape_ascii());
        }
    }
    let Ok(layout) = Layout::new(&listing, bytes.len() as u64) else { return };
    let mut at = 0;
    for part in layout.parts(0..u64::MAX) {
        if let Part::File { entry, offset, len } = part {
            assert_eq!(layout.stream_offset_of(entry, offset), Some(at));
            assert!(layout.stream_range_of(entry).end >= at + len);
        }
        at += part.len();
    }
    assert_eq!(at, layout.stream_bytes());
}

/// CRC-32C bit by bit: short inputs do not need the library.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            let low = 0u32.wrapping_sub(crc & 1);
            (crc >> 1) ^ (0x82f6_3b78 & low)
        })
    })
}

/// A folder that goes with its test.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let base = PathBuf::from("/dev/shm");
        let base = if base.is_dir() { base } else { std::env::temp_dir() };
        let place = base.join(format!("skein-fuzz-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&place).expect("a temporary folder");
        Self(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0); // of a process that ends anyway
    }
}
