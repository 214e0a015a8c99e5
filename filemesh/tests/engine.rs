//! The portable engine on real files: hashing, sidecars, partial files, and what goes wrong.
#![allow(clippy::unwrap_used)] // helpers of tests, which the lint does not know as such

use skein_filemesh::core::download::Download;
use skein_filemesh::core::geometry::Geometry;
use skein_filemesh::core::manifest::Manifest;
use skein_filemesh::core::metainfo::{Metainfo, sha1};
use skein_filemesh::engine::{
    Attributes, FileError, FileStamp, Hashes, LeafFile, LeafFileWriter, Owner, PartialFile,
    SeedFile, StoreFile, TargetDir, Until, describe_file, hash_file, verify_file,
};
use skein_wire::ids::TransferId;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const TRANSFER: TransferId = TransferId([0xab; 16]);
const PART: &str = ".skein-abababababababababababababababab.part";
const PIECE: u32 = 65_536;

/// A folder with a hashed source file.
struct Fixture {
    base: tempfile::TempDir,
    data: Vec<u8>,
    manifest: Manifest,
    leaves: LeafFile,
    stamp: FileStamp,
}

fn fixture(len: usize) -> Fixture {
    let base = tempfile::tempdir().unwrap();
    let data: Vec<u8> = (0..len).map(|at| (at / 7 * 31 + at / 16_384) as u8).collect();
    let source = base.path().join("source.bin");
    fs::write(&source, &data).unwrap();
    fs::set_permissions(&source, fs::Permissions::from_mode(0o640)).unwrap();
    fs::create_dir(base.path().join("target")).unwrap();
    fs::create_dir(base.path().join("state")).unwrap();
    let leaves_path = base.path().join("source.leaves");
    let hashed =
        hash_file(&source, Some(PIECE), &leaves_path, |_| ControlFlow::Continue(())).unwrap();
    let (manifest, leaves, stamp) = (hashed.manifest, hashed.leaves, hashed.stamp);
    Fixture { base, data, manifest, leaves, stamp }
}

impl Fixture {
    fn path(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    fn open(&self) -> Result<PartialFile, FileError> {
        self.open_as(b"final.bin")
    }

    fn open_as(&self, name: &[u8]) -> Result<PartialFile, FileError> {
        let dir = TargetDir::open(&self.path("target"), false)?;
        PartialFile::open(dir, name, &TRANSFER, &self.manifest, &self.path("state"))
    }

    fn blocks(&self, blocks: std::ops::Range<u32>) -> (u64, &[u8]) {
        let bytes = self.manifest.geometry.bytes_of(blocks);
        (bytes.start, &self.data[bytes.start as usize..bytes.end as usize])
    }

    fn write(&self, part: &mut PartialFile, blocks: std::ops::Range<u32>) {
        let (offset, data) = self.blocks(blocks);
        part.write_at(offset, data).unwrap();
    }

    /// Proves all claims of `part` as a resumed download does; the answer is the bytes that count.
    fn proved(&self, part: &PartialFile) -> u64 {
        let mut download =
            Download::new(self.manifest.geometry, self.manifest.root, part.claimed());
        let have = skein_filemesh::core::link::Have::All;
        while download.has_claims() {
            match download.next_check() {
                Some(range) => {
                    let mut bytes = vec![];
                    let len = (range.end - range.start) as usize;
                    let read = part.append_at(range.start, len, &mut bytes);
                    download.checked(read.ok().map(|()| &bytes[..]));
                }
                None => self.teach(&mut download, &have),
            }
        }
        download.progress().resumed_bytes
    }

    /// Answers the download's next want, which is for hashes.
    fn teach(&self, download: &mut Download, have: &skein_filemesh::core::link::Have) {
        use skein_filemesh::core::download::Want;
        let Some(Want::Hashes(range)) = download.next_want(0, have, PIECE) else {
            panic!("claims wait for hashes, so hashes come first");
        };
        let mut bytes = vec![];
        if range.base_layer == 0 {
            let left = self.manifest.geometry.block_count() - range.index;
            self.leaves.append_leaves(range.index, range.length.min(left), &mut bytes).unwrap();
            bytes.resize(range.length as usize * 32, 0);
        } else {
            bytes = self.leaves.tree().hashes(&range).unwrap().as_flattened().to_vec();
        }
        download.learn(0, &range, &bytes).unwrap().unwrap();
    }
}

fn attributes() -> Attributes {
    Attributes { mode: 0o4750, owner: Owner::default(), mtime_ms: Some(1_234_567_890_123) }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_file_is_received_hidden_and_appears_whole() {
    let fixture = fixture(300_001);
    let mut part = fixture.open().unwrap();
    assert_eq!(part.claimed(), None);
    assert_eq!(names(&fixture.path("target")), [PART]);
    let allocated = fs::metadata(fixture.path("target").join(PART)).unwrap();
    assert_eq!(allocated.len(), 300_001);
    assert!(allocated.blocks() * 512 >= 300_001, "the space is allocated up front");
    assert_eq!(allocated.mode() & 0o777, 0o600);
    for block in (0..fixture.manifest.geometry.block_count()).rev() {
        fixture.write(&mut part, block..block + 1);
    }
    assert_eq!(part.final_path(), fixture.path("target/final.bin"));
    fs::write(part.final_path(), "an older version").unwrap();
    let stamp = part.finish(&attributes()).unwrap();
    assert_eq!(names(&fixture.path("target")), ["final.bin"]);
    assert_eq!(names(&fixture.path("state")), [""; 0]);
    let path = fixture.path("target/final.bin");
    assert!(fs::read(&path).unwrap() == fixture.data);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o4750);
    assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (1_234_567_890, 123_000_000));
    assert!(stamp.same_content(&FileStamp::of(&metadata)));
}

#[test]
fn the_owner_is_set_before_the_mode() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return; // only root can give files away
    }
    let fixture = fixture(10);
    let mut part = fixture.open().unwrap();
    fixture.write(&mut part, 0..1);
    let owner = Owner { uid: Some(65_534), gid: Some(65_533) };
    part.finish(&Attributes { owner, ..attributes() }).unwrap();
    let metadata = fs::metadata(fixture.path("target/final.bin")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (65_534, 65_533));
    assert_eq!(metadata.mode() & 0o7777, 0o4750);
}

#[test]
fn empty_files_are_files_too() {
    let fixture = fixture(0);
    assert_eq!(fixture.manifest.root, [0; 32]);
    fixture.open().unwrap().finish(&attributes()).unwrap();
    assert_eq!(fs::read(fixture.path("target/final.bin")).unwrap(), b"");
}

#[test]
fn a_dropped_file_resumes_with_what_was_written() {
    let fixture = fixture(500_000);
    let mut part = fixture.open().unwrap();
    fixture.write(&mut part, 3..9);
    fixture.write(&mut part, 30..31);
    drop(part);
    let part = fixture.open().unwrap();
    let claimed = part.claimed().unwrap();
    assert!((3..9).chain([30]).all(|block| claimed.get(block)));
    assert_eq!(fixture.proved(&part), 6 * 16_384 + 500_000 - 30 * 16_384);
}

/// Reads past the writer, as after its death: what it holds in memory is not there.
#[test]
fn what_waits_is_there_after_a_death_once_it_was_written() {
    let fixture = fixture(500_000);
    let mut part = fixture.open().unwrap();
    let on_disk = || fs::read(fixture.path("target").join(PART)).unwrap()[..3 * 16_384].to_vec();
    fixture.write(&mut part, 0..3);
    assert!(on_disk().iter().all(|byte| *byte == 0), "nothing waits: this test shows nothing");
    part.write_waiting().unwrap();
    assert!(on_disk() == fixture.blocks(0..3).1);
    // Nothing waits now, and that is no error.
    part.write_waiting().unwrap();
}

#[test]
fn a_claim_without_its_block_does_not_count() {
    // A power loss may keep the bit and lose the block.
    let fixture = fixture(500_000);
    let mut part = fixture.open().unwrap();
    fixture.write(&mut part, 0..20);
    drop(part);
    let path = fixture.path("target").join(PART);
    let mut bytes = fs::read(&path).unwrap();
    bytes[5 * 16_384 + 99] ^= 1;
    bytes[11 * 16_384..12 * 16_384].fill(0);
    fs::write(&path, bytes).unwrap();
    assert_eq!(fixture.proved(&fixture.open().unwrap()), 18 * 16_384);
}

#[test]
fn damaged_or_foreign_states_claim_nothing() {
    let fixture = fixture(500_000);
    let state = fixture.path("state/abababababababababababababababab.state");
    let spoil: [fn(&mut Vec<u8>); 4] = [
        |bytes| bytes[30] ^= 1,
        |bytes| bytes.truncate(130),
        |bytes| bytes.clear(),
        |bytes| *bytes.last_mut().unwrap() |= 1,
    ];
    for spoil in spoil {
        let mut part = fixture.open().unwrap();
        fixture.write(&mut part, 0..20);
        drop(part);
        let mut bytes = fs::read(&state).unwrap();
        spoil(&mut bytes);
        fs::write(&state, bytes).unwrap();
        assert_eq!(fixture.open().unwrap().claimed(), None);
    }
    // Another file under the temporary name is not the one that the state is of.
    let mut part = fixture.open().unwrap();
    fixture.write(&mut part, 0..20);
    drop(part);
    let path = fixture.path("target").join(PART);
    fs::rename(&path, fixture.path("kept")).unwrap();
    fs::write(&path, vec![1; 500_000]).unwrap();
    assert_eq!(fixture.open().unwrap().claimed(), None);
}

#[test]
fn an_abandoned_file_leaves_nothing() {
    let fixture = fixture(100_000);
    let mut part = fixture.open().unwrap();
    fixture.write(&mut part, 0..1);
    part.abandon().unwrap();
    assert_eq!(names(&fixture.path("target")), [""; 0]);
    assert_eq!(names(&fixture.path("state")), [""; 0]);
}

#[test]
fn leftovers_of_a_cancelled_transfer_are_discarded() {
    let fixture = fixture(100_000);
    let part = fixture.open().unwrap();
    let dir = TargetDir::open(&fixture.path("target"), false).unwrap();
    let busy = PartialFile::discard(&dir, &TRANSFER, &fixture.path("state"));
    assert!(matches!(busy, Err(FileError::Busy { .. })), "its writer is alive");
    drop(part);
    for _ in 0..2 {
        PartialFile::discard(&dir, &TRANSFER, &fixture.path("state")).unwrap();
        assert_eq!(names(&fixture.path("target")), [""; 0]);
        assert_eq!(names(&fixture.path("state")), [""; 0]);
    }
}

#[test]
fn an_incomplete_file_never_gets_its_name() {
    let fixture = fixture(100_000);
    let mut part = fixture.open().unwrap();
    fixture.write(&mut part, 0..3);
    let error = part.finish(&attributes()).unwrap_err();
    assert!(matches!(error, FileError::Incomplete { block: 3, .. }), "{error}");
    assert_eq!(names(&fixture.path("target")), [""; 0]);
}

#[test]
fn what_cannot_be_opened_leaves_nothing() {
    let fixture = fixture(100_000);
    fs::remove_dir(fixture.path("state")).unwrap();
    assert!(fixture.open().is_err());
    assert_eq!(names(&fixture.path("target")), [""; 0]);
}

#[test]
fn one_transfer_has_one_writer() {
    let fixture = fixture(100_000);
    let part = fixture.open().unwrap();
    assert!(matches!(fixture.open(), Err(FileError::Busy { .. })));
    drop(part);
    fixture.open().unwrap();
}

#[test]
fn hostile_names_and_traps_are_refused() {
    let fixture = fixture(100);
    for name in [&b""[..], b".", b"..", b"a/b", b"../x", b"/etc/x", b"a\0b", &[b'x'; 256]] {
        assert!(matches!(fixture.open_as(name), Err(FileError::Name(_))), "{name:?}");
    }
    let victim = fixture.path("victim");
    fs::write(&victim, "precious").unwrap();
    let trap = fixture.path("target").join(PART);
    symlink(&victim, &trap).unwrap();
    assert!(matches!(fixture.open(), Err(FileError::Foreign { .. })));
    fs::remove_file(&trap).unwrap();
    fs::hard_link(&victim, &trap).unwrap();
    assert!(matches!(fixture.open(), Err(FileError::Foreign { .. })));
    fs::remove_file(&trap).unwrap();
    fs::create_dir(&trap).unwrap();
    assert!(fixture.open().is_err());
    fs::remove_dir(&trap).unwrap();
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    // A link under the final name is replaced, not followed.
    symlink(&victim, fixture.path("target/final.bin")).unwrap();
    let mut part = fixture.open().unwrap();
    fixture.write(&mut part, 0..1);
    part.finish(&attributes()).unwrap();
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    assert!(fs::symlink_metadata(fixture.path("target/final.bin")).unwrap().is_file());
}

#[test]
fn odd_but_legal_names_arrive() {
    use std::os::unix::ffi::OsStrExt;
    let long = [b'n'; 255];
    for name in [&b"a\nb"[..], b"\xff\xfe", b"-rf", b" ", &long] {
        let fixture = fixture(100);
        let mut part = fixture.open_as(name).unwrap();
        fixture.write(&mut part, 0..1);
        part.finish(&attributes()).unwrap();
        let path = fixture.path("target").join(std::ffi::OsStr::from_bytes(name));
        assert!(fs::read(path).unwrap() == fixture.data);
    }
}

#[test]
fn directories_sockets_and_devices_are_not_replaced() {
    let fixture = fixture(100);
    let place = fixture.path("target/final.bin");
    let socket = std::os::unix::net::UnixListener::bind(&place).unwrap();
    assert!(matches!(fixture.open(), Err(FileError::Occupied { .. })));
    drop(socket);
    fs::remove_file(&place).unwrap();
    fs::create_dir(&place).unwrap();
    assert!(matches!(fixture.open(), Err(FileError::Occupied { .. })));
    fs::remove_dir(&place).unwrap();
    let dev = TargetDir::open(Path::new("/dev"), false).unwrap();
    let (manifest, state) = (&fixture.manifest, fixture.path("state"));
    let device = PartialFile::open(dev, b"null", &TRANSFER, manifest, &state);
    assert!(matches!(device, Err(FileError::Occupied { what: "a device", .. })));
    // One that comes while the file is received is met by its end, which then leaves nothing.
    let mut part = fixture.open().unwrap();
    fixture.write(&mut part, 0..1);
    fs::create_dir(&place).unwrap();
    assert!(matches!(part.finish(&attributes()), Err(FileError::Occupied { .. })));
    assert_eq!(names(&fixture.path("target")), ["final.bin"]);
    assert_eq!(names(&fixture.path("state")), [""; 0]);
}

#[test]
fn space_that_must_stay_free_is_left_free() {
    let fixture = fixture(100_000);
    let open = |kept_bytes| {
        let dir = TargetDir::open(&fixture.path("target"), false).unwrap().keep_free(kept_bytes);
        PartialFile::open(dir, b"x", &TRANSFER, &fixture.manifest, &fixture.path("state"))
    };
    assert!(matches!(open(1 << 60), Err(FileError::NoSpace { .. })));
    assert_eq!(names(&fixture.path("target")), [""; 0]);
    drop(open(1).unwrap());
    // What has its space already goes on, however little is left.
    drop(open(1 << 60).unwrap());
}

#[test]
fn writes_off_the_block_grid_are_refused() {
    let fixture = fixture(100_000);
    let mut part = fixture.open().unwrap();
    for (offset, len) in [(1, 16_384), (0, 100), (16_384 * 6, 1_696 + 1), (1 << 40, 16_384)] {
        assert!(part.write_at(offset, &vec![0; len]).is_err(), "{len} at {offset}");
    }
    assert_eq!(part.claimed(), None);
}

#[test]
fn too_large_a_file_is_refused_before_anything_is_written() {
    let fixture = fixture(100);
    let huge = Manifest { geometry: Geometry::new(1 << 40, 1 << 24).unwrap(), ..fixture.manifest };
    let dir = TargetDir::open(&fixture.base.path().join("target"), false).unwrap();
    let free_bytes = dir.free_bytes().unwrap();
    if free_bytes > 1 << 40 {
        return; // a disk of more than 1 TiB
    }
    let state = fixture.base.path().join("state");
    let error = PartialFile::open(dir, b"x", &TRANSFER, &huge, &state).unwrap_err();
    assert!(matches!(error, FileError::NoSpace { .. }) && error.is_full(), "{error}");
    assert_eq!(names(&fixture.base.path().join("target")), [""; 0]);
}

#[test]
fn the_manifest_is_the_file() {
    let fixture = fixture(300_001);
    let manifest = &fixture.manifest;
    assert_eq!((manifest.name.as_str(), manifest.mode), ("source.bin", 0o640));
    assert_eq!(manifest.geometry.size_bytes(), 300_001);
    assert_eq!(Manifest::from_info(&manifest.to_info()).as_ref(), Ok(manifest));
    let mut builder = skein_filemesh::core::merkle::TreeBuilder::new(PIECE).unwrap();
    let mut expected = vec![];
    builder.update(&fixture.data, |leaf| expected.extend(leaf));
    let built = builder.finish(|leaf| expected.extend(leaf)).unwrap();
    assert_eq!(built.root, manifest.root);
    let mut leaves = vec![];
    fixture.leaves.append_leaves(0, manifest.geometry.block_count(), &mut leaves).unwrap();
    assert_eq!(leaves, expected);
    assert_eq!(fixture.leaves.tree().layer(), built.layer);
    assert!(fixture.leaves.append_leaves(0, 20, &mut leaves).is_err());
}

#[test]
fn a_seed_reads_what_was_hashed_and_notices_changes() {
    let fixture = fixture(300_001);
    let path = fixture.path("source.bin");
    let seed = SeedFile::open(&path, &fixture.stamp).unwrap();
    let mut out = vec![7];
    seed.append_at(299_990, 11, &mut out).unwrap();
    assert_eq!(out[1..], fixture.data[299_990..]);
    assert!(seed.append_at(299_990, 12, &mut out).is_err());
    assert_eq!(out.len(), 12, "a short read appends nothing");
    assert!(seed.is_unchanged().unwrap());
    fs::write(&path, "other").unwrap();
    assert!(!seed.is_unchanged().unwrap());
    assert!(matches!(SeedFile::open(&path, &fixture.stamp), Err(FileError::Changed { .. })));
}

#[test]
fn a_file_that_changes_while_it_is_hashed_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let (path, leaves) = (base.path().join("log"), base.path().join("log.leaves"));
    let grow = |path: &Path| {
        use std::io::Write;
        fs::File::options().append(true).open(path).unwrap().write_all(b"more").unwrap();
    };
    let truncate = |path: &Path| fs::File::create(path).map(drop).unwrap();
    let touch = |path: &Path| {
        let mtime = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        fs::File::options().append(true).open(path).unwrap().set_times(mtime).unwrap();
    };
    let changes: [&dyn Fn(&Path); 3] = [&grow, &truncate, &touch];
    for change in changes {
        fs::write(&path, vec![1; 1_000_000]).unwrap();
        let mut calls = 0;
        let result = hash_file(&path, None, &leaves, |_| {
            calls += 1;
            if calls == 1 {
                change(&path);
            }
            ControlFlow::Continue(())
        });
        assert!(matches!(result, Err(FileError::Changed { .. })));
        assert_eq!(names(base.path()), ["log"], "no sidecar is left behind");
    }
}

#[test]
fn hashing_can_be_cancelled_and_takes_files_only() {
    let base = tempfile::tempdir().unwrap();
    let (path, leaves) = (base.path().join("file"), base.path().join("leaves"));
    fs::write(&path, vec![1; 1_000_000]).unwrap();
    let result = hash_file(&path, None, &leaves, |_| ControlFlow::Break(()));
    assert!(matches!(result, Err(FileError::Cancelled { .. })));
    let go_on = |_| ControlFlow::Continue(());
    assert!(hash_file(base.path(), None, &leaves, go_on).is_err());
    assert!(hash_file(Path::new("/dev/zero"), None, &leaves, go_on).is_err());
    assert!(hash_file(&path, Some(1), &leaves, go_on).is_err());
    assert!(hash_file(&base.path().join("absent"), None, &leaves, go_on).is_err());
    assert_eq!(names(base.path()), ["file"]);
}

#[test]
fn sidecars_are_checked_when_they_are_opened() {
    let fixture = fixture(300_001);
    let path = fixture.path("source.leaves");
    let again = LeafFile::open(&path).unwrap();
    assert_eq!(again.tree(), fixture.leaves.tree());
    assert!(again.stamp().same_content(&fixture.stamp));
    let good = fs::read(&path).unwrap();
    for at in (0..92).chain([124, 128, good.len() / 2, good.len() - 1]) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x40;
        fs::write(&path, bytes).unwrap();
        assert!(LeafFile::open(&path).is_err(), "byte {at}");
    }
    for len in [0, 100, 128, good.len() - 1] {
        fs::write(&path, &good[..len]).unwrap();
        assert!(LeafFile::open(&path).is_err(), "{len} bytes");
    }
}

#[test]
fn a_sidecar_can_be_made_of_received_leaves() {
    for len in [1, 16_384, 65_536, 300_001] {
        let fixture = fixture(len);
        let geometry = fixture.manifest.geometry;
        let path = fixture.path("received.leaves");
        let writer = LeafFileWriter::create(&path).unwrap();
        for piece in (0..geometry.piece_count()).rev() {
            let mut bytes = vec![];
            let blocks = geometry.blocks_of(piece);
            fixture.leaves.append_leaves(blocks.start, blocks.len() as u32, &mut bytes).unwrap();
            let mut leaves: Vec<[u8; 32]> = bytes.as_chunks().0.to_vec();
            leaves.resize(1 << geometry.piece_height(), [0; 32]);
            writer.put(&geometry, piece, &leaves).unwrap();
        }
        let layer = fixture.leaves.tree().layer().to_vec();
        writer.finish(&fixture.manifest, layer, &fixture.stamp).unwrap();
        let sent = fs::read(fixture.path("source.leaves")).unwrap();
        assert!(fs::read(&path).unwrap() == sent, "{len} bytes");
    }
}

#[test]
fn a_stored_file_is_hashed_while_it_is_written() {
    for len in [0, 1, 16_384, 300_001] {
        let fixture = fixture(len);
        let (path, leaves) = (fixture.path("stored"), fixture.path("stored.leaves"));
        let mut store = StoreFile::create(&path, &leaves, PIECE).unwrap();
        fixture.data.chunks(10_007).for_each(|chunk| store.append(chunk).unwrap());
        let manifest = &fixture.manifest;
        let stored = store.finish("source.bin", 0o100_640, manifest.mtime_ms).unwrap();
        assert_eq!(&stored.manifest, manifest);
        assert!(fs::read(&path).unwrap() == fixture.data);
        assert_eq!(stored.leaves.tree(), fixture.leaves.tree());
        SeedFile::open(&path, LeafFile::open(&leaves).unwrap().stamp()).unwrap();
    }
}

#[test]
fn an_upload_that_breaks_off_leaves_nothing() {
    let base = tempfile::tempdir().unwrap();
    let (path, leaves) = (base.path().join("stored"), base.path().join("stored.leaves"));
    let mut store = StoreFile::create(&path, &leaves, PIECE).unwrap();
    store.append(b"half").unwrap();
    drop(store);
    assert_eq!(names(base.path()), [""; 0]);
    let store = StoreFile::create(&path, &leaves, PIECE).unwrap();
    assert!(store.finish("../evil", 0, 0).is_err());
    assert_eq!(names(base.path()), [""; 0]);
}

#[test]
fn a_file_is_described_in_one_reading_and_proved_by_what_was_read() {
    // More than is read at once.
    let f = fixture(5 * PIECE as usize + 5);
    let source = f.path("source.bin");
    let go_on = |_, _| ControlFlow::Continue(());
    let found = describe_file(&source, |_| PIECE, Hashes::TreeAndPieces, go_on).unwrap();
    assert_eq!(found.manifest, f.manifest);
    let pieces: Vec<_> = f.data.chunks(PIECE as usize).map(sha1).collect();
    assert_eq!(found.pieces.as_ref(), Some(&pieces));
    let metainfo = Metainfo::of_manifest(&found.manifest, found.layer, found.leaves).unwrap();
    let good = verify_file(&source, &metainfo, 0, Until::FirstBad, go_on).unwrap();
    assert!(good.is_good(&metainfo) && good.to == f.data.len() as u64);

    // Broken off: what was proved so far is the answer, and the place to go on.
    let stop = |_, _| ControlFlow::Break(());
    let part = verify_file(&source, &metainfo, 1, Until::FirstBad, stop).unwrap();
    assert!(part.from == 0 && part.to < good.to && part.to.is_multiple_of(16_384));
    let rest = verify_file(&source, &metainfo, part.to, Until::FirstBad, go_on).unwrap();
    assert_eq!((rest.from, rest.to), (part.to, good.to));
    let cancelled = describe_file(&source, |_| PIECE, Hashes::Tree, stop);
    assert!(matches!(cancelled, Err(FileError::Cancelled { .. })));

    // Longer than it should be: all of what was described is there, and it is false.
    fs::write(&source, [&f.data[..], b"x"].concat()).unwrap();
    let long = verify_file(&source, &metainfo, 0, Until::End, go_on).unwrap();
    assert!(long.first_bad.is_none() && !long.is_good(&metainfo));

    // A file that changes while it is read is neither described nor proved.
    let change = |_, _| {
        fs::write(&source, b"other").unwrap();
        ControlFlow::Continue(())
    };
    let changed = verify_file(&source, &metainfo, 0, Until::End, change);
    assert!(matches!(changed, Err(FileError::Changed { .. })), "{changed:?}");
    let many = describe_file(Path::new("/dev/null"), |_| PIECE, Hashes::Tree, go_on);
    assert!(matches!(many, Err(FileError::NotAFile { .. })));
}
