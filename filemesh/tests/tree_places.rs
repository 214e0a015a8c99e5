//! Trees that are several paths, and trees that go beside what is there already.
#![allow(clippy::unwrap_used)] // helpers of tests, which the lint does not know as such

mod tree_world;

use skein_filemesh::engine::tree::{
    CONTENT, Existing, Filter, Pattern, Picked, ScanRules, TreeOptions, TreeReader, TreeSource,
    TreeStage, scan, scan_picked,
};
use skein_filemesh::engine::{FileError, TargetDir};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use tree_world::{Sent, TRANSFER, World, bytes_of, rules};

fn paths(source: &TreeSource) -> Vec<String> {
    let listing = source.listing();
    (1..listing.len()).map(|entry| String::from_utf8(listing.path(entry)).unwrap()).collect()
}

fn make(world: &World, files: &[&str]) {
    for (number, path) in files.iter().enumerate() {
        let path = world.source().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes_of(number, 1_000 * number)).unwrap();
    }
}

/// The bytes of every file of a tree, by path, read from its stream.
fn content(source: TreeSource) -> Vec<(String, Vec<u8>)> {
    let (source, mut all) = (Arc::new(source), vec![]);
    let mut reader = TreeReader::new(source.clone());
    for (number, path) in paths(&source).into_iter().enumerate() {
        let (mut bytes, range) = (vec![], source.layout().stream_range_of(number as u32 + 1));
        reader.append_at(range.start, (range.end - range.start) as usize, &mut bytes).unwrap();
        all.push((path, bytes));
    }
    all
}

#[test]
fn several_paths_are_one_tree() {
    let world = World::on_disk();
    make(&world, &["one/a", "one/sub/b", "two/c", "three/x/d", "file"]);
    let source = fs::canonicalize(world.source()).unwrap();
    let named = |path: &str, name: &str| Picked {
        path: source.join(path),
        name: Some(name.as_bytes().to_vec()),
    };
    let inside = |path: &str| Picked { path: source.join(path), name: None };
    let take = |picked: &[Picked]| scan_picked(picked, &rules());

    let one = take(&[named("one", "one")]).unwrap();
    assert_eq!(
        (paths(&one), one.name()),
        (["one", "one/a", "one/sub", "one/sub/b"].map(String::from).to_vec(), "one")
    );
    let other = take(&[named("one", "new")]).unwrap();
    assert_eq!(content(other)[1], ("new/a".to_owned(), vec![]));
    let all = take(&[named("three/x", "x"), inside("one"), named("file", "f"), inside("two")]);
    let all = content(all.unwrap());
    let names: Vec<&str> = all.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(names, ["a", "c", "f", "sub", "sub/b", "x", "x/d"]);
    assert_eq!(all[2].1, bytes_of(4, 4_000));
    assert_eq!(all[4].1, bytes_of(1, 1_000));
    assert_eq!(all[6].1, bytes_of(3, 3_000));
    let twice = take(&[named("one/a", "same"), named("file", "same")]).unwrap_err().to_string();
    assert!(twice.contains("second of its name"), "{twice}");
    assert!(take(&[inside("file")]).is_err());

    let filter = Filter::new(&[Pattern::Regex("/b$".into())], &[]).unwrap();
    let some = scan_picked(&[named("one", "one")], &ScanRules { filter, ..rules() }).unwrap();
    assert_eq!(paths(&some), ["one", "one/sub", "one/sub/b"]);
    assert_eq!(some.path_of(3), source.join("one/sub/b"));
}

fn options(existing: Existing) -> TreeOptions {
    TreeOptions { existing, ..TreeOptions::default() }
}

fn stage(world: &World, sent: &Sent, options: TreeOptions) -> TreeStage {
    let dir = TargetDir::open(&world.path("target"), false).unwrap();
    let (state, manifest) = (world.path("state"), &sent.manifest);
    TreeStage::open(dir, CONTENT, &TRANSFER, manifest, &state, options).unwrap()
}

fn receive(world: &World, sent: &Sent, options: TreeOptions) -> Result<(), FileError> {
    let mut stage = stage(world, sent, options);
    sent.give(&mut stage, 0..sent.manifest.geometry.block_count())?;
    stage.finish()
}

#[test]
fn content_goes_beside_what_is_there() {
    let world = World::on_disk();
    make(&world, &["empty", "dir/b", "dir/deep/c", "file"]);
    let sent = world.send();
    fs::write(world.target("own"), "kept").unwrap();
    fs::create_dir(world.target("dir")).unwrap();
    fs::write(world.target("dir/b"), "old").unwrap();
    for in_the_way in ["dir", "file"] {
        let refused = receive(&world, &sent, options(Existing::Refuse)).unwrap_err();
        let occupied = world.target(in_the_way);
        assert!(matches!(refused, FileError::Occupied { path, .. } if path == occupied));
        assert_eq!(fs::read(world.target("own")).unwrap(), b"kept");
        assert!(!world.target("empty").exists(), "nothing moved");
        match in_the_way {
            "dir" => fs::remove_dir_all(world.target("dir")).unwrap(),
            _ => fs::remove_file(world.target("file")).unwrap(),
        }
        fs::write(world.target("file"), "old").unwrap();
    }
    receive(&world, &sent, options(Existing::Merge)).unwrap();
    assert_eq!(world.names_in("target"), ["dir", "empty", "file", "own"]);
    assert_eq!(fs::read(world.target("dir/deep/c")).unwrap(), bytes_of(2, 2_000));
    assert_eq!(fs::read(world.target("file")).unwrap(), bytes_of(3, 3_000));
    // Again, over itself.
    receive(&world, &sent, options(Existing::Merge)).unwrap();
    assert_eq!(world.names_in("target"), ["dir", "empty", "file", "own"]);
    assert_eq!(world.names_in("state"), [""; 0]);
}

#[test]
fn modes_and_times_may_be_others() {
    let world = World::on_disk();
    make(&world, &["dir/plain", "dir/program"]);
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    let set = |path: &str, mode| {
        fs::set_permissions(world.source().join(path), Permissions::from_mode(mode)).unwrap();
    };
    set("dir/plain", 0o600);
    set("dir/program", 0o4710);
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::open(world.source().join("dir/plain")).unwrap().set_modified(old).unwrap();
    let plain = scan(&world.source(), &ScanRules { plain_modes: true, ..rules() }).unwrap();
    let modes: Vec<u16> = (1..4).map(|entry| plain.listing().meta(entry).mode).collect();
    assert_eq!(modes, [0o755, 0o644, 0o755]);

    let sent = world.send();
    let asked = TreeOptions { mode: Some(0o4755), own_times: true, ..options(Existing::Merge) };
    receive(&world, &sent, asked).unwrap();
    assert_eq!(mode(&world.target("dir/plain")), 0o4755);
    assert_eq!(mode(&world.target("dir")), 0o755, "directories keep theirs");
    let age = fs::metadata(world.target("dir/plain")).unwrap().modified().unwrap();
    assert!(age.elapsed().unwrap().as_secs() < 3_600, "written now");
}

#[test]
fn a_tree_is_read_on_while_it_takes_its_place_and_afterwards() {
    for existing in [None, Some("dir")] {
        let world = World::on_disk();
        make(&world, &["dir/a", "dir/deep/b", "file", "z/c", "z/d"]);
        symlink("a", world.source().join("dir/link")).unwrap();
        existing.iter().for_each(|name| fs::create_dir(world.target(name)).unwrap());
        let sent = world.send();
        let blocks = sent.manifest.geometry.block_count();
        let mut stage = stage(&world, &sent, options(Existing::Merge));
        assert!(stage.reader().unwrap().is_none(), "nothing is known yet");
        sent.give(&mut stage, 0..blocks).unwrap();
        let mut reader = stage.reader().unwrap().unwrap();
        let mut fresh = stage.reader().unwrap().unwrap();
        let expected = sent.bytes(0..blocks);
        let read = |reader: &mut TreeReader| {
            let mut bytes = vec![];
            reader.append_at(0, expected.len(), &mut bytes).map(|()| bytes)
        };
        assert_eq!(read(&mut reader).unwrap(), expected);
        stage.finish().unwrap();
        assert_eq!(read(&mut reader).unwrap(), expected);
        assert_eq!(read(&mut fresh).unwrap(), expected);
        // What somebody changes afterwards is not served as if it were ours.
        fs::write(world.target("dir/deep/b"), bytes_of(9, 1_000)).unwrap();
        assert!(matches!(read(&mut reader), Err(FileError::Changed { .. })));
    }
}
