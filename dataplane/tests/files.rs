//! File channels of a real data process: members fetch what control announced, nobody else gets a
//! byte, and a file that an agent offers lands in the cache.
#![allow(clippy::unwrap_used)] // in helpers of tests

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::{Client, Control, Server};
use skein_filemesh::core::download::Download;
use skein_filemesh::core::leecher::{Action, Leecher, LeecherOptions};
use skein_filemesh::core::link::Have;
use skein_filemesh::core::manifest::Manifest;
use skein_filemesh::core::peer_wire::{Handshake, info_hash, peer_id};
use skein_filemesh::core::seeder::{Pull, Seeder};
use skein_filemesh::engine::{HashedFile, LeafFile, SeedFile, hash_file};
use skein_wire::fleet::v1 as fleet;
use skein_wire::fleet::v1::{from_data, to_data};
use skein_wire::hello::{ChannelKind, HelloStatus};

const TRANSFER: [u8; 16] = [9; 16];
const FOR_EVER: i64 = i64::MAX;

fn content(bytes: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_9abc_def0u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

fn hashed(dir: &Path, bytes: &[u8]) -> (PathBuf, HashedFile) {
    let path = dir.join("cached");
    fs::write(&path, bytes).unwrap();
    let leaves = dir.join("cached.leaves");
    let hashed = hash_file(&path, None, &leaves, |_| ControlFlow::Continue(())).unwrap();
    (path, hashed)
}

fn announce(control: &mut Control, path: &Path, manifest: &Manifest, agents: &[&str]) {
    announce_limited(control, path, manifest, agents, 0);
}

fn announce_limited(
    control: &mut Control,
    path: &Path,
    manifest: &Manifest,
    agents: &[&str],
    rate_limit_bytes_per_s: u64,
) {
    control.send(to_data::Kind::Seed(fleet::SeedFile {
        transfer_id: TRANSFER.to_vec().into(),
        path: path.to_str().unwrap().to_owned(),
        file: Some(manifest.to_info()),
        agent_ids: agents.iter().map(|agent| (*agent).to_owned()).collect(),
        not_after_ms: FOR_EVER,
        rate_limit_bytes_per_s,
    }));
}

fn open(server: &Server, agent: &str) -> Client {
    let identity = Some(server.pki.agent(agent, 7));
    let (client, ack) = server.open(ChannelKind::File, identity, 1);
    assert_eq!(ack.status, HelloStatus::Ok);
    client
}

/// Fetches the whole file, or what came until the server closed.
fn leech(client: &mut Client, agent: &str, manifest: &Manifest) -> Result<Vec<u8>, usize> {
    let mut file = vec![0; manifest.geometry.size_bytes() as usize];
    let download = Download::new(manifest.geometry, manifest.root, None);
    let ours = Handshake::new(info_hash(&TRANSFER, &manifest.root), peer_id(agent));
    let begun = Instant::now();
    let now = || begun.elapsed().as_millis() as u64;
    let mut leecher = Leecher::connect(download, ours, LeecherOptions::default(), now());
    let (mut actions, mut received) = (Vec::new(), 0);
    leecher.tick(now(), &mut actions);
    loop {
        let used = leecher.receive(&client.buffer, now(), &mut actions);
        let mut done = false;
        for action in std::mem::take(&mut actions) {
            match action {
                Action::Write { offset, data } => {
                    received += data.len();
                    let at = offset as usize;
                    file[at..at + data.len()].copy_from_slice(&client.buffer[data.clone()]);
                    leecher.written(data.len() as u64, now(), &mut actions);
                }
                Action::Leaves { .. } => {}
                Action::Done => done = true,
                Action::Failed(failure) => panic!("{failure}"),
            }
        }
        done |= actions.iter().any(|action| matches!(action, Action::Done));
        client.buffer.drain(..used);
        let mut out = Vec::new();
        leecher.take_output(&mut out, now());
        client.send(&out);
        if done {
            return Ok(file);
        }
        if used == 0 && !client.read_more() {
            return Err(received);
        }
    }
}

#[test]
fn members_fetch_the_file_and_others_get_nothing() {
    let server = Server::start();
    let mut control = server.registered();
    let bytes = content(3 * 1024 * 1024 + 4321);
    let (path, hashed) = hashed(&server.dir, &bytes);
    announce(&mut control, &path, &hashed.manifest, &["m1", "m2"]);
    for agent in ["m1", "m2"] {
        let fetched = leech(&mut open(&server, agent), agent, &hashed.manifest);
        assert!(fetched == Ok(bytes.clone()), "{agent}");
    }
    // Control hears what was sent while it goes on, over all announcements of the transfer.
    let sent = |control: &mut Control, wanted: u64| {
        let seed_sent = |kind: &from_data::Kind| match kind {
            from_data::Kind::SeedSent(sent) => sent.bytes == wanted && !sent.is_last,
            _ => false,
        };
        control.expect(seed_sent);
    };
    let size = bytes.len() as u64;
    sent(&mut control, 2 * size);
    announce(&mut control, &path, &hashed.manifest, &["m1", "m2"]);
    assert!(leech(&mut open(&server, "m1"), "m1", &hashed.manifest).is_ok());
    sent(&mut control, 3 * size);
    // An enrolled stranger shakes hands, and waits for ever; withdrawing ends the members' too.
    let mut stranger = open(&server, "stranger");
    let ours = Handshake::new(info_hash(&TRANSFER, &hashed.manifest.root), peer_id("m1"));
    stranger.send(&ours.encode());
    let mut member = open(&server, "m1");
    member.send(&ours.encode());
    member.exactly(68);
    control
        .send(to_data::Kind::Unseed(fleet::UnseedFile { transfer_id: TRANSFER.to_vec().into() }));
    member.closed();
    let last =
        control.expect(|kind| matches!(kind, from_data::Kind::SeedSent(sent) if sent.is_last));
    let from_data::Kind::SeedSent(last) = last else { unreachable!() };
    assert_eq!((&last.transfer_id[..], last.bytes), (&TRANSFER[..], 3 * size));
    assert!(stranger.buffer.is_empty());
    server.process.stop().unwrap();
}

#[test]
fn members_share_the_rate_of_their_transfer() {
    const RATE: u64 = 2_000_000;
    let server = Server::start();
    let mut control = server.registered();
    let bytes = content(3 * 1024 * 1024);
    let (path, hashed) = hashed(&server.dir, &bytes);
    let agents = ["m1", "m2", "m3"];
    announce_limited(&mut control, &path, &hashed.manifest, &agents, RATE);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for agent in agents {
            let (server, manifest, bytes) = (&server, &hashed.manifest, &bytes);
            scope.spawn(move || {
                // A paced session is woken by nothing but its turn: this would hang without it.
                let fetched = leech(&mut open(server, agent), agent, manifest);
                assert!(fetched.as_ref() == Ok(bytes), "{agent}");
            });
        }
    });
    // What the account held, and a request that was answered whole for each.
    let burst = RATE / 2 + 3 * 256 * 1024;
    let least_ms = (3 * bytes.len() as u64 - burst) * 1_000 / RATE;
    assert!(begun.elapsed().as_millis() as u64 >= least_ms, "{:?}", begun.elapsed());
    server.process.stop().unwrap();
}

#[test]
fn an_agent_that_is_faster_than_control_is_served_and_missing_hashes_are_made() {
    let server = Server::start();
    let mut control = server.registered();
    let bytes = content(300_000);
    let (path, hashed) = hashed(&server.dir, &bytes);
    fs::remove_file(server.dir.join("cached.leaves")).unwrap();
    let manifest = hashed.manifest;
    let mut early = open(&server, "m1");
    let fetched = std::thread::scope(|scope| {
        let fetching = scope.spawn(|| leech(&mut early, "m1", &manifest));
        announce(&mut control, &path, &manifest, &["m1"]);
        fetching.join().unwrap()
    });
    assert!(fetched == Ok(bytes));
    server.process.stop().unwrap();
}

#[test]
fn a_file_that_changed_in_the_cache_is_not_served() {
    let server = Server::start();
    let mut control = server.registered();
    let bytes = content(200_000);
    let (path, hashed) = hashed(&server.dir, &bytes);
    fs::write(&path, content(200_001)).unwrap();
    announce(&mut control, &path, &hashed.manifest, &["m1"]);
    assert_eq!(leech(&mut open(&server, "m1"), "m1", &hashed.manifest), Err(0));
    server.process.stop().unwrap();
}

#[test]
fn a_file_of_an_agent_lands_in_the_cache() {
    let server = Server::start();
    let mut control = server.registered();
    let source = tempfile::tempdir().unwrap();
    let bytes = content(2 * 1024 * 1024 + 99);
    let (path, hashed) = hashed(source.path(), &bytes);
    let target = server.dir.join("taken");
    control.send(to_data::Kind::Fetch(fleet::FetchFile {
        transfer_id: TRANSFER.to_vec().into(),
        agent_id: "source".into(),
        path: target.to_str().unwrap().to_owned(),
        file: Some(hashed.manifest.to_info()),
        not_after_ms: FOR_EVER,
    }));
    let mut client = open(&server, "source");
    let ours = Handshake::new(info_hash(&TRANSFER, &hashed.manifest.root), peer_id("source"));
    let mut seeder = Seeder::connect(hashed.leaves.tree().clone(), Have::All, ours, 0);
    let file = SeedFile::open(&path, &hashed.stamp).unwrap();
    loop {
        let mut out = Vec::new();
        while out.len() < 600_000
            && let Some(pull) = seeder.next(300_000, &mut out, 0)
        {
            match pull {
                Pull::Data { offset, len } => {
                    file.append_at(offset, len as usize, &mut out).unwrap();
                }
                Pull::Leaves { first, count } => {
                    let mut leaves = Vec::new();
                    hashed.leaves.append_leaves(first, count, &mut leaves).unwrap();
                    seeder.leaves(Some(&leaves), &mut out, 0);
                }
            }
        }
        client.send(&out);
        let used = seeder.receive(&client.buffer, 0).unwrap();
        client.buffer.drain(..used);
        if !seeder.has_output() && !client.read_more() {
            break;
        }
    }
    let fetched = control.expect(|kind| matches!(kind, from_data::Kind::Fetch(_)));
    let from_data::Kind::Fetch(fetched) = fetched else { unreachable!() };
    assert_eq!((fetched.error.as_str(), fetched.bytes), ("", bytes.len() as u64));
    assert!(fs::read(&target).unwrap() == bytes);
    // Its leaves came with it: it can be served without being hashed again.
    let kept = LeafFile::open(&target.with_extension("leaves")).unwrap();
    assert_eq!(kept.tree().root(), hashed.manifest.root);
    let agents = ["m1"];
    announce(&mut control, &target, &hashed.manifest, &agents);
    let fetched = leech(&mut open(&server, "m1"), "m1", &hashed.manifest);
    assert!(fetched == Ok(bytes));
    server.process.stop().unwrap();
}
