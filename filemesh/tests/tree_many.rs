//! Trees of many small files, which a thread makes beside whoever receives them: what it has under
//! way is read back, outlives a receiver that is dropped, and its errors are said. And a directory of
//! 100,000 files.
#![allow(clippy::unwrap_used)] // helpers of tests, which the lint does not know as such

mod tree_world;

use skein_filemesh::engine::tree::Existing;
use std::fs;
use std::time::{Duration, Instant};
use tree_world::{STAGED, World, bytes_of};

const FILES: usize = 600;
/// A quadratic walk of so many names would take hours; a busy machine needs a minute.
const LONGEST: Duration = Duration::from_secs(900);

/// Small files of all lengths up to a block and more, in a few directories.
fn fill(world: &World) {
    for number in 0..FILES {
        let dir = world.source().join(format!("dir {}", number / 100));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("file {number}")), bytes_of(number, number * 31)).unwrap();
    }
}

#[test]
fn what_is_under_way_is_read_back() {
    for world in tree_world::worlds() {
        fill(&world);
        let sent = world.send();
        let geometry = sent.manifest.geometry;
        let mut stage = world.stage("t", &sent, Existing::Refuse).unwrap();
        for block in 0..geometry.block_count() {
            sent.give(&mut stage, block..block + 1).unwrap();
            let mut found = vec![];
            let len = geometry.block_len(block) as usize;
            stage.append_at(geometry.block_offset(block), len, &mut found).unwrap();
            assert_eq!(found, sent.bytes(block..block + 1), "block {block}");
        }
        stage.finish().unwrap();
        world.assert_same("t", &sent);
    }
}

#[test]
fn a_receiver_that_is_dropped_loses_nothing() {
    for world in tree_world::worlds() {
        fill(&world);
        let sent = world.send();
        let blocks = sent.manifest.geometry.block_count();
        let mut stage = world.stage("t", &sent, Existing::Refuse).unwrap();
        sent.give(&mut stage, 0..blocks / 2).unwrap();
        drop(stage);
        // The lock is free, and nothing of the first is still being written.
        let mut stage = world.stage("t", &sent, Existing::Refuse).unwrap();
        assert_eq!(sent.repair(&mut stage), blocks - blocks / 2);
        stage.finish().unwrap();
        world.assert_same("t", &sent);
    }
}

#[test]
fn a_file_that_cannot_be_made_is_said_and_nothing_is_left() {
    for world in tree_world::worlds() {
        fill(&world);
        let sent = world.send();
        let blocks = sent.manifest.geometry.block_count();
        let mut stage = world.stage("t", &sent, Existing::Refuse).unwrap();
        let mut listing = 0;
        while stage.listing().is_none() {
            sent.give(&mut stage, listing..listing + 1).unwrap();
            listing += 1;
        }
        let in_the_way = world.target(STAGED).join("tree/dir 4/file 450");
        fs::create_dir(in_the_way).unwrap();
        let result = match sent.give(&mut stage, listing..blocks) {
            Ok(()) => stage.finish(),
            Err(error) => stage.abandon().and(Err(error)),
        };
        let said = result.unwrap_err().to_string();
        assert!(said.contains("file 450"), "{said}");
        assert_eq!(world.names_in("target"), [""; 0]);
        assert_eq!(world.names_in("state"), [""; 0]);
    }
}

#[test]
fn an_error_that_was_said_is_not_forgotten() {
    let world = World::on_disk();
    fill(&world);
    let sent = world.send();
    let blocks = sent.manifest.geometry.block_count();
    let mut stage = world.stage("t", &sent, Existing::Refuse).unwrap();
    sent.give(&mut stage, 0..blocks / 4).unwrap();
    let in_the_way = world.target(STAGED).join("tree/dir 5/file 550");
    fs::create_dir(in_the_way).unwrap();
    // Some write or other tells it; whoever goes on all the same gets no tree.
    for block in blocks / 4..blocks {
        let _ = sent.give(&mut stage, block..block + 1);
    }
    assert!(stage.finish().is_err());
    assert_eq!(world.names_in("target"), [""; 0]);
}

#[test]
fn a_directory_of_100_000_files_arrives() {
    let began = Instant::now();
    // In memory where there is such a place: what is asked is whether anything grows with the square.
    let world = World::in_memory().unwrap_or_else(World::on_disk);
    for number in 0..100_000u32 {
        let content = if number % 10 == 0 { &number.to_be_bytes()[..] } else { &[] };
        fs::write(world.source().join(format!("{number}")), content).unwrap();
    }
    let sent = world.send();
    assert_eq!(sent.source.listing().len(), 100_001);
    world.receive("t", &sent, Existing::Refuse).unwrap();
    world.assert_same("t", &sent);
    assert!(began.elapsed() < LONGEST, "{:?}", began.elapsed());
}
