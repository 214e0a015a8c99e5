//! Directories from disk to disk: what arrives is what left, and what goes wrong is said.
#![allow(clippy::unwrap_used)] // helpers of tests, which the lint does not know as such

mod tree_world;

use skein_filemesh::core::geometry::Geometry;
use skein_filemesh::core::tree::listing::Kind;
use skein_filemesh::engine::tree::{
    Existing, Filter, Links, Pattern, ScanRules, Specials, TreeReader, TreeSource, TreeStage,
    hash_tree, scan,
};
use skein_filemesh::engine::{FileError, TargetDir};
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tree_world::{TRANSFER, World, bytes_of, rules, worlds};

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A directory with one of everything.
fn fill(source: &Path) {
    fs::create_dir_all(source.join("deep/er/est")).unwrap();
    fs::create_dir(source.join("empty")).unwrap();
    fs::write(source.join("deep/zero"), "").unwrap();
    fs::write(source.join("deep/er/one"), "1").unwrap();
    fs::write(source.join("deep/er/est/large"), bytes_of(1, 3_000_001)).unwrap();
    for number in 0..50usize {
        fs::write(source.join(format!("small {number}")), bytes_of(number, number * 397)).unwrap();
    }
    fs::write(source.join("new\nline"), "n").unwrap();
    fs::write(source.join(OsStr::from_bytes(b"\xff\xfe")), "not UTF-8").unwrap();
    fs::write(source.join("x".repeat(255)), "long").unwrap();
    symlink("../nowhere/at all", source.join("deep/link")).unwrap();
    fs::hard_link(source.join("small 9"), source.join("zz other name")).unwrap();
    let sparse = File::create(source.join("sparse")).unwrap();
    sparse.set_len(5 << 20).unwrap();
    sparse.write_all_at(&bytes_of(3, 70_000), 2 << 20).unwrap();
    File::create(source.join("only a hole")).unwrap().set_len(1 << 20).unwrap();
    set_mode(&source.join("small 1"), 0o4755);
    set_mode(&source.join("small 2"), 0o400);
    set_mode(&source.join("deep/er"), 0o555);
    let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_007, 123_456_789);
    for name in ["small 3", "empty"] {
        File::open(source.join(name)).unwrap().set_modified(old).unwrap();
    }
}

#[test]
fn a_tree_arrives_as_it_left_in_whatever_order() {
    for world in worlds() {
        fill(&world.source());
        let sent = world.send();
        let blocks = sent.manifest.geometry.block_count();
        let forward: Vec<u32> = (0..blocks).collect();
        let backward: Vec<u32> = (0..blocks).rev().collect();
        // Every block once, far from its neighbours; 61 is prime and does not divide the count.
        assert!(blocks % 61 != 0);
        let scattered: Vec<u32> = (0..blocks).map(|at| at * 61 % blocks).collect();
        for (name, order) in [("f", forward), ("b", backward), ("s", scattered)] {
            let mut stage = world.stage(name, &sent, Existing::Refuse).unwrap();
            for block in order {
                sent.give(&mut stage, block..block + 1).unwrap();
            }
            // What is here already can be passed on.
            let all = sent.bytes(0..blocks);
            let mut relayed = vec![];
            stage.append_at(0, all.len(), &mut relayed).unwrap();
            assert!(relayed == all);
            assert!(!world.target(name).exists());
            stage.finish().unwrap();
            world.assert_same(name, &sent);
            let other = fs::metadata(world.target(name).join("zz other name")).unwrap();
            assert_eq!(
                other.ino(),
                fs::metadata(world.target(name).join("small 9")).unwrap().ino()
            );
            let set_id = fs::metadata(world.target(name).join("small 1")).unwrap();
            assert_eq!(set_id.mode() & 0o7777, 0o755, "set-id bits do not travel");
            assert_eq!(
                fs::metadata(world.target(name).join("empty")).unwrap().mtime_nsec(),
                123_456_789
            );
        }
        assert_eq!(world.names_in("target"), ["b", "f", "s"], "nothing is left");
        assert_eq!(world.names_in("state"), [""; 0]);
    }
}

#[test]
fn holes_travel_and_land_as_holes() {
    for world in worlds() {
        let file = File::create(world.source().join("disk.img")).unwrap();
        file.set_len(64 << 30).unwrap();
        file.write_all_at(&bytes_of(1, 4 << 20), 1 << 30).unwrap();
        file.write_all_at(&bytes_of(2, 6 << 20), (40 << 30) + 4096).unwrap();
        drop(file);
        let sent = world.send();
        let stream_bytes = sent.source.layout().stream_bytes();
        assert!(stream_bytes < 11 << 20, "{stream_bytes} bytes travel");
        let mut stage = world.stage("t", &sent, Existing::Refuse).unwrap();
        sent.give(&mut stage, 0..sent.manifest.geometry.block_count()).unwrap();
        stage.finish().unwrap();
        let landed = fs::metadata(world.target("t/disk.img")).unwrap();
        assert_eq!(landed.len(), 64 << 30);
        assert!(landed.blocks() * 512 < 11 << 20, "{} blocks", landed.blocks());
        // The same extents, found by SEEK_DATA and SEEK_HOLE, and the same bytes in them.
        world.assert_same("t", &sent);
        let again = scan(&world.target("t"), &rules()).unwrap();
        assert!(
            matches!(again.listing().kind(1), Kind::Sparse { extents, .. } if extents.len() == 2)
        );
    }
}

#[test]
fn an_empty_tree_and_one_of_a_single_byte_arrive() {
    for content in [None, Some("x")] {
        let world = World::on_disk();
        if let Some(content) = content {
            fs::write(world.source().join("f"), content).unwrap();
        }
        let sent = world.send();
        let mut stage = world.stage("t", &sent, Existing::Refuse).unwrap();
        sent.give(&mut stage, 0..sent.manifest.geometry.block_count()).unwrap();
        stage.finish().unwrap();
        world.assert_same("t", &sent);
    }
}

#[test]
fn a_hundred_thousand_entries_take_bounded_time() {
    let world = World::in_memory().unwrap_or_else(World::on_disk);
    for number in 0..100_000 {
        File::create(world.source().join(format!("{number:06}"))).unwrap();
    }
    let start = Instant::now();
    let sent = world.send();
    assert_eq!(sent.source.listing().len(), 100_001);
    let mut stage = world.stage("t", &sent, Existing::Refuse).unwrap();
    sent.give(&mut stage, 0..sent.manifest.geometry.block_count()).unwrap();
    stage.finish().unwrap();
    let seconds = start.elapsed().as_secs();
    assert_eq!(fs::read_dir(world.target("t")).unwrap().count(), 100_000);
    // It takes about one second; a quadratic step would take minutes.
    assert!(seconds < 60, "{seconds} s");
}

fn paths(source: &TreeSource) -> Vec<String> {
    let listing = source.listing();
    (1..listing.len()).map(|entry| String::from_utf8(listing.path(entry)).unwrap()).collect()
}

#[test]
fn lists_choose_what_is_taken() {
    let world = World::on_disk();
    for path in ["a/x.c", "a/x.o", "a/b/y.c", "a/b/y.log", "only/logs/z.log", "top.c"] {
        let path = world.source().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    let glob = |text: &str| Pattern::Glob(text.into());
    let take = |include: &[Pattern], exclude: &[Pattern]| {
        let filter = Filter::new(include, exclude).unwrap();
        paths(&scan(&world.source(), &ScanRules { filter, ..rules() }).unwrap())
    };
    assert_eq!(take(&[glob("*.c")], &[]), ["a", "a/b", "a/b/y.c", "a/x.c", "top.c"]);
    assert_eq!(take(&[glob("a/b")], &[glob("*.log")]), ["a", "a/b", "a/b/y.c"]);
    assert_eq!(take(&[Pattern::Regex("^a/.*\\.o$".into())], &[]), ["a", "a/x.o"]);
    assert_eq!(take(&[], &[glob("a"), glob("logs/")]), ["only", "top.c"]);
    assert_eq!(take(&[glob("nothing")], &[]), [""; 0]);
}

#[test]
fn links_and_special_files_follow_the_rules() {
    let world = World::on_disk();
    let source = world.source();
    fs::create_dir(source.join("real")).unwrap();
    fs::write(source.join("real/file"), "content").unwrap();
    symlink("real", source.join("inside")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(source.join("pipe")).status().unwrap();
    assert!(fifo.success());
    let with = |links| scan(&source, &ScanRules { links, ..rules() });

    let kept = with(Links::Keep).unwrap();
    assert_eq!(paths(&kept), ["inside", "real", "real/file"]);
    assert_eq!(kept.listing().kind(1), Kind::Symlink(b"real"));
    assert_eq!(kept.skipped().count, 2);
    assert_eq!(kept.skipped().named[0], ("pipe".into(), "a pipe, socket or device"));
    assert_eq!(paths(&with(Links::Skip).unwrap()), ["real", "real/file"]);
    assert!(matches!(with(Links::Refuse), Err(FileError::Refused { .. })));
    let refused = scan(&source, &ScanRules { specials: Specials::Refuse, ..rules() });
    assert!(matches!(refused, Err(FileError::Refused { path, .. }) if path.ends_with("pipe")));

    let followed = Arc::new(with(Links::Follow).unwrap());
    assert_eq!(paths(&followed), ["inside", "inside/file", "real", "real/file"]);
    let mut bytes = vec![];
    let range = followed.layout().stream_range_of(2);
    TreeReader::new(followed).append_at(range.start, 7, &mut bytes).unwrap();
    assert_eq!(bytes, b"content");

    symlink("..", source.join("real/up")).unwrap();
    let refused = with(Links::Follow);
    assert!(matches!(refused, Err(FileError::Refused { what, .. }) if what.contains("above")));
    fs::remove_file(source.join("real/up")).unwrap();
    symlink(world.path("outside"), source.join("real/out")).unwrap();
    for links in [Links::Follow, Links::Keep] {
        let refused = with(links);
        assert!(matches!(refused, Err(FileError::Refused { what, .. }) if what.contains("out of")));
    }
}

#[test]
fn a_file_that_changes_is_refused() {
    let world = World::on_disk();
    let path = world.source().join("file");
    fs::write(&path, "before").unwrap();
    let go_on = |_| ControlFlow::Continue(());
    let changes: [fn(&Path); 4] = [
        |path| fs::write(path, "afterwards").unwrap(),
        |path| fs::write(path, "b").unwrap(),
        |_| {}, // it is gone
        |path| symlink("/etc/passwd", path).unwrap(),
    ];
    for change in changes {
        fs::write(&path, "before").unwrap();
        let source = Arc::new(scan(&world.source(), &rules()).unwrap());
        let range = source.layout().stream_range_of(1);
        fs::remove_file(&path).unwrap();
        change(&path);
        let hashed = hash_tree(&source, None, &world.path("leaves"), go_on);
        assert!(matches!(hashed, Err(FileError::Changed { path: named }) if named == path));
        let mut bytes = vec![];
        let served = TreeReader::new(source).append_at(range.start, 6, &mut bytes);
        assert!(matches!(served, Err(FileError::Changed { .. })) && bytes.is_empty());
        let _ = fs::remove_file(&path);
    }
}

#[test]
fn a_merge_replaces_files_and_keeps_the_rest() {
    let world = World::on_disk();
    fill(&world.source());
    let sent = world.send();
    fs::create_dir_all(world.target("t/deep")).unwrap();
    set_mode(&world.target("t/deep"), 0o700);
    fs::write(world.target("t/deep/zero"), "old").unwrap();
    fs::write(world.target("t/deep/own"), "kept").unwrap();
    symlink(world.path("outside"), world.target("t/small 7")).unwrap();
    assert!(matches!(
        world.stage("t", &sent, Existing::Refuse),
        Err(FileError::Occupied { what: "a directory", .. })
    ));
    world.receive("t", &sent, Existing::Merge).unwrap();
    assert_eq!(fs::read(world.target("t/deep/zero")).unwrap(), b"");
    assert_eq!(fs::read(world.target("t/deep/own")).unwrap(), b"kept");
    assert_eq!(fs::metadata(world.target("t/deep")).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(world.target("t/deep/er")).unwrap().mode() & 0o777, 0o555);
    assert_eq!(fs::read(world.target("t/small 7")).unwrap(), bytes_of(7, 7 * 397));
    assert!(fs::symlink_metadata(world.target("t/small 7")).unwrap().is_file());
    assert_eq!(world.names_in("outside"), [""; 0]);
    assert_eq!(world.names_in("target"), ["t"]);
}

#[test]
fn a_merge_is_refused_before_anything_moved() {
    type Block = fn(&World);
    let in_the_way: [(&str, Block); 3] = [
        ("a symbolic link", |world| {
            symlink(world.path("outside"), world.target("t/deep")).unwrap();
        }),
        ("a file", |world| fs::write(world.target("t/deep"), "").unwrap()),
        ("a directory", |world| fs::create_dir(world.target("t/small 1")).unwrap()),
    ];
    for (expected, block) in in_the_way {
        let world = World::on_disk();
        fill(&world.source());
        let sent = world.send();
        fs::create_dir(world.target("t")).unwrap();
        block(&world);
        let refused = world.receive("t", &sent, Existing::Merge);
        assert!(matches!(refused, Err(FileError::Occupied { what, .. }) if what == expected));
        assert_eq!(world.names_in("target/t").len(), 1, "nothing moved");
        assert_eq!(world.names_in("outside"), [""; 0]);
        assert_eq!(world.names_in("target"), ["t"], "nothing is left");
    }
}

#[test]
fn a_directory_that_becomes_a_link_is_not_followed() {
    for world in worlds() {
        fill(&world.source());
        let sent = world.send();
        let blocks = sent.manifest.geometry.block_count();
        let mut stage = world.stage("t", &sent, Existing::Refuse).unwrap();
        // The listing: all directories are there, and none is in use.
        let listing_blocks = sent.source.layout().listing_bytes().div_ceil(16_384) as u32;
        sent.give(&mut stage, 0..listing_blocks).unwrap();
        assert!(stage.listing().is_some());
        drop(stage);
        let staged = world.target(tree_world::STAGED).join("tree/deep");
        fs::rename(&staged, world.path("elsewhere")).unwrap();
        symlink(world.path("outside"), &staged).unwrap();
        let refused = world.stage("t", &sent, Existing::Refuse).unwrap_err();
        assert!(matches!(&refused, FileError::Io { .. }), "{refused}");
        assert_eq!(world.names_in("outside"), [""; 0]);
        let dir = TargetDir::open(&world.path("target"), false).unwrap();
        TreeStage::discard(&dir, &TRANSFER, &world.path("state")).unwrap();
        assert_eq!(world.names_in("target"), [""; 0], "the link itself was removed");
        assert_eq!(world.names_in("outside"), [""; 0]);

        // The same while it is written.
        let mut stage = world.stage("t", &sent, Existing::Refuse).unwrap();
        sent.give(&mut stage, 0..listing_blocks).unwrap();
        fs::remove_dir_all(world.path("elsewhere")).unwrap();
        fs::rename(&staged, world.path("elsewhere")).unwrap();
        symlink(world.path("outside"), &staged).unwrap();
        let result = sent.give(&mut stage, listing_blocks..blocks).and_then(|()| stage.finish());
        assert!(result.is_err());
        assert_eq!(world.names_in("outside"), [""; 0]);
    }
}

#[test]
fn two_transfers_to_one_path_do_not_mix() {
    let world = World::on_disk();
    fill(&world.source());
    let sent = world.send();
    let first = world.stage("t", &sent, Existing::Refuse).unwrap();
    assert!(matches!(world.stage("t", &sent, Existing::Refuse), Err(FileError::Busy { .. })));
    drop(first);
    // Another transfer got there first.
    let mut late = world.stage("t", &sent, Existing::Refuse).unwrap();
    sent.give(&mut late, 0..sent.manifest.geometry.block_count()).unwrap();
    fs::create_dir(world.target("t")).unwrap();
    assert!(matches!(late.finish(), Err(FileError::Occupied { .. })));
    assert_eq!(world.names_in("target"), ["t"]);
    assert_eq!(world.names_in("target/t"), [""; 0]);
}

#[test]
fn what_lies_in_the_way_of_the_staged_directory_is_refused() {
    let world = World::on_disk();
    let sent = world.send();
    let staged = world.target(tree_world::STAGED);
    symlink(world.path("outside"), &staged).unwrap();
    let refused = world.stage("t", &sent, Existing::Refuse);
    assert!(matches!(refused, Err(FileError::Foreign { .. })));
    fs::remove_file(&staged).unwrap();
    fs::create_dir(&staged).unwrap();
    set_mode(&staged, 0o777);
    let refused = world.stage("t", &sent, Existing::Refuse);
    assert!(matches!(refused, Err(FileError::Foreign { .. })));
    for name in ["", "..", "a/b"] {
        assert!(matches!(world.stage(name, &sent, Existing::Refuse), Err(FileError::Name(_))));
    }
}

#[test]
fn a_stream_that_is_no_tree_is_refused() {
    let world = World::on_disk();
    fs::write(world.source().join("f"), bytes_of(1, 100_000)).unwrap();
    let sent = world.send();
    let good = sent.bytes(0..sent.manifest.geometry.block_count());
    let spoil: [fn(&mut [u8]); 3] = [
        |bytes| bytes[0] ^= 1,
        |bytes| bytes[40] ^= 1,
        // Between the listing and the first file.
        |bytes| bytes[16_383] = 1,
    ];
    for spoil in spoil {
        let mut bytes = good.clone();
        spoil(&mut bytes);
        let mut stage = world.stage("t", &sent, Existing::Refuse).unwrap();
        let result = stage.write_at(0, &bytes).and_then(|()| stage.finish());
        assert!(matches!(result, Err(FileError::Listing { .. })), "{result:?}");
        let dir = TargetDir::open(&world.path("target"), false).unwrap();
        TreeStage::discard(&dir, &TRANSFER, &world.path("state")).unwrap();
        assert_eq!(world.names_in("target"), [""; 0]);
    }
    let mut stage = world.stage("t", &sent, Existing::Refuse).unwrap();
    sent.give(&mut stage, 0..3).unwrap();
    assert!(matches!(stage.finish(), Err(FileError::Incomplete { block: 3, .. })));
    // No tree is as short as this.
    let mut short = world.send();
    short.manifest.geometry = Geometry::new(27, 65_536).unwrap();
    let refused = world.stage("t", &short, Existing::Refuse);
    assert!(matches!(refused, Err(FileError::Listing { .. })));
    assert_eq!(world.names_in("target"), [""; 0]);
    assert_eq!(world.names_in("state"), [""; 0]);
}

#[test]
fn resumed_blocks_are_claims() {
    let world = World::on_disk();
    fill(&world.source());
    let sent = world.send();
    let blocks = sent.manifest.geometry.block_count();
    let mut stage = world.stage("t", &sent, Existing::Refuse).unwrap();
    assert_eq!(stage.claimed(), None);
    sent.give(&mut stage, 0..blocks / 10 * 9).unwrap();
    drop(stage);
    // One file is lost, one has a false byte.
    fs::remove_file(world.target(tree_world::STAGED).join("tree/small 20")).unwrap();
    let large = world.target(tree_world::STAGED).join("tree/deep/er/est/large");
    File::options().write(true).open(large).unwrap().write_all_at(b"?", 5).unwrap();
    let mut stage = world.stage("t", &sent, Existing::Refuse).unwrap();
    let refetched = sent.repair(&mut stage);
    assert!((blocks / 10 + 2..blocks / 5).contains(&refetched), "{refetched} of {blocks}");
    stage.finish().unwrap();
    world.assert_same("t", &sent);
}
