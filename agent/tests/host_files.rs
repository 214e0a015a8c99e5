//! Files pushed to a whole agent, real binary and real processes, by a server that this test plays.

#![allow(clippy::unwrap_used)] // A test may.

mod host_support;

use std::path::Path;

use host_support::files::{Push, join, push, transfer_end};
use host_support::{Agent, Server, slow_disk, wait_until};
use skein_wire::signal::v1::agent_message::Kind;
use skein_wire::signal::v1::{
    CancelTransfer, OfferFile, TransferState, TransferUpdate, command_body,
};

#[test]
fn a_pushed_file_arrives_whole_also_over_broken_channels() {
    let server = Server::start();
    let (temp, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let id = server.enrol(temp.path());
    let _agent = Agent::start(temp.path());
    let push = push(&server, target.path(), 5_000_001);
    server.shared.cuts.lock().unwrap().extend([2_000_000, 1_000_000]);
    let directory = target.path().join("a/b");
    let order = join(&push, &directory, "file.bin");
    server.command(&id, command_body::Kind::JoinTransfer(order));
    let ended = transfer_end(&server, &push.id);
    assert_eq!((ended.state(), ended.error.as_str()), (TransferState::Done, ""));
    assert_eq!(ended.verified_bytes, 5_000_001);
    let file = directory.join("file.bin");
    assert_eq!(std::fs::read(&file).unwrap(), push.source);
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o640);
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
}

#[test]
fn a_transfer_goes_on_from_its_blocks_after_kill_9() {
    let server = Server::start();
    let (temp, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let id = server.enrol(temp.path());
    let agent = Agent::start(temp.path());
    let push = push(&server, target.path(), 8_000_000);
    let mut order = join(&push, target.path(), "file.bin");
    order.rate_limit_bytes_per_s = 2_000_000;
    server.command(&id, command_body::Kind::JoinTransfer(order));
    server.find("progress", |kind| match kind {
        Kind::TransferUpdate(update) => (update.verified_bytes > 1_000_000).then_some(()),
        _ => None,
    });
    agent.kill_worker();
    let ended = transfer_end(&server, &push.id);
    assert_eq!(ended.state(), TransferState::Done, "{}", ended.error);
    assert!(ended.resumed_bytes > 1_000_000, "{}", ended.resumed_bytes);
    assert_eq!(std::fs::read(target.path().join("file.bin")).unwrap(), push.source);
}

#[test]
fn hostile_targets_are_refused_and_leave_nothing() {
    let server = Server::start();
    let (temp, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let id = server.enrol(temp.path());
    let _agent = Agent::start(temp.path());
    let identity = temp.path().join("identity");
    std::os::unix::fs::symlink(&identity, target.path().join("link")).unwrap();
    let link = target.path().join("link");
    let dots = target.path().join("../etc");
    for (directory, name) in [
        (target.path(), "../x"),
        (target.path(), "/etc/x"),
        (target.path(), ""),
        (target.path(), "a\0b"),
        (dots.as_path(), "x"),
        (Path::new("relative"), "x"),
        (Path::new("/proc/sys"), "x"),
        (identity.as_path(), "agent.crt"),
        (link.as_path(), "agent.crt"),
    ] {
        let push = push(&server, target.path(), 10);
        let order = join(&push, directory, name);
        server.command(&id, command_body::Kind::JoinTransfer(order));
        let ended = transfer_end(&server, &push.id);
        assert_eq!(ended.state(), TransferState::Failed, "{directory:?} {name:?}");
        assert!(!ended.error.is_empty());
    }
    let mut names: Vec<_> = std::fs::read_dir(target.path()).unwrap().flatten().collect();
    names.retain(|entry| !entry.file_name().to_string_lossy().starts_with("source"));
    assert_eq!(names.len(), 1);
}

#[test]
fn a_transfer_can_be_cancelled() {
    let server = Server::start();
    let (temp, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let id = server.enrol(temp.path());
    let _agent = Agent::start(temp.path());
    let push = push(&server, target.path(), 8_000_000);
    let mut order = join(&push, &target.path().join("to"), "file.bin");
    order.rate_limit_bytes_per_s = 500_000;
    server.command(&id, command_body::Kind::JoinTransfer(order));
    server.find("progress", |kind| match kind {
        Kind::TransferUpdate(update) => (update.verified_bytes > 0).then_some(()),
        _ => None,
    });
    let cancel = CancelTransfer { transfer_id: push.id.to_vec().into(), keep: false };
    server.command(&id, command_body::Kind::CancelTransfer(cancel));
    assert_eq!(transfer_end(&server, &push.id).state(), TransferState::Cancelled);
    assert_eq!(std::fs::read_dir(target.path().join("to")).unwrap().count(), 0);
}

#[test]
fn a_paused_transfer_keeps_its_blocks_over_a_kill_until_it_goes_on_or_is_cancelled() {
    let server = Server::start();
    let (temp, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let id = server.enrol(temp.path());
    let agent = Agent::start(temp.path());
    // What the order calls so, and what it is: a name that is kept is not read as an order's again.
    let (named, folder) = (target.path().join("{{to}}"), target.path().join("{to}"));
    let pushes = [push(&server, target.path(), 8_000_000), push(&server, target.path(), 8_000_000)];
    for (name, push) in ["one.bin", "two.bin"].iter().zip(&pushes) {
        let mut order = join(push, &named, name);
        order.rate_limit_bytes_per_s = 500_000;
        server.command(&id, command_body::Kind::JoinTransfer(order));
    }
    let is_of = |push: &Push, update: &TransferUpdate| update.transfer_id == push.id[..];
    let says = |push: &Push, state: TransferState| {
        server.find("the state", |kind| match kind {
            Kind::TransferUpdate(update) if is_of(push, update) && update.state() == state => {
                (update.verified_bytes > 0).then(|| update.clone())
            }
            _ => None,
        })
    };
    for push in &pushes {
        says(push, TransferState::Running);
        let pause = CancelTransfer { transfer_id: push.id.to_vec().into(), keep: true };
        server.command(&id, command_body::Kind::CancelTransfer(pause));
        says(push, TransferState::Paused);
    }
    assert_eq!(left_over(&folder), 2, "blocks are kept");
    server.shared.received.lock().unwrap().clear();
    agent.kill_worker();
    // A new worker says so again, and lets them lie.
    pushes.iter().for_each(|push| drop(says(push, TransferState::Paused)));
    assert_eq!(left_over(&folder), 2);

    let cancel = CancelTransfer { transfer_id: pushes[0].id.to_vec().into(), keep: false };
    server.command(&id, command_body::Kind::CancelTransfer(cancel));
    server.find("the end", |kind| match kind {
        Kind::TransferUpdate(update) if is_of(&pushes[0], update) => {
            (update.state() == TransferState::Cancelled).then_some(())
        }
        _ => None,
    });
    assert_eq!(left_over(&folder), 1);
    let order = join(&pushes[1], &named, "two.bin");
    server.command(&id, command_body::Kind::JoinTransfer(order));
    let end = says(&pushes[1], TransferState::Done);
    assert!(end.resumed_bytes > 0, "it began anew: {end:?}");
    assert_eq!(std::fs::read(folder.join("two.bin")).unwrap(), pushes[1].source);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
}

#[test]
fn a_pause_of_what_is_not_here_is_answered_and_kept_from_nothing() {
    let server = Server::start();
    let (temp, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let id = server.enrol(temp.path());
    let _agent = Agent::start(temp.path());
    let push = push(&server, target.path(), 100_000);
    let pause = CancelTransfer { transfer_id: push.id.to_vec().into(), keep: true };
    server.command(&id, command_body::Kind::CancelTransfer(pause));
    let state = |wanted: TransferState| {
        server.find("the state", |kind| match kind {
            Kind::TransferUpdate(update) if update.transfer_id == push.id[..] => {
                (update.state() == wanted).then_some(())
            }
            _ => None,
        });
    };
    state(TransferState::Paused);
    let order = join(&push, target.path(), "file.bin");
    server.command(&id, command_body::Kind::JoinTransfer(order));
    state(TransferState::Done);
}

#[test]
fn an_offer_says_what_the_file_is_or_why_not() {
    let server = Server::start();
    let (temp, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let id = server.enrol(temp.path());
    let _agent = Agent::start(temp.path());
    let file = target.path().join("f.txt");
    std::fs::write(&file, vec![7; 100_000]).unwrap();
    let secret = temp.path().join("identity/agent.key");
    for (byte, path) in [(1, file.to_str().unwrap()), (2, secret.to_str().unwrap())] {
        let transfer_id = vec![byte; 16].into();
        let offer = OfferFile { transfer_id, path: path.into(), ..OfferFile::default() };
        server.command(&id, command_body::Kind::OfferFile(offer));
    }
    let offer = |byte: u8| {
        server.find("the offer", |kind| match kind {
            Kind::FileOffer(offer) if offer.transfer_id == vec![byte; 16] => Some(offer.clone()),
            _ => None,
        })
    };
    let good = offer(1).file.unwrap();
    assert_eq!((good.size_bytes, good.name.as_str(), good.root.len()), (100_000, "f.txt", 32));
    assert!(offer(2).error.contains("path rules"));
    // Asked only how large it is, it says no more than that.
    let transfer_id = vec![3; 16].into();
    let path = file.to_str().unwrap().into();
    let look = OfferFile { transfer_id, path, look: true, ..OfferFile::default() };
    server.command(&id, command_body::Kind::OfferFile(look));
    let size = offer(3).file.unwrap();
    assert_eq!((size.size_bytes, size.root.len()), (100_000, 0));
}

/// The final flush of a file may take seconds on a slow disk. Here it takes until another file has
/// arrived, so the two must not share a thread.
#[test]
fn a_slow_flush_delays_no_other_transfer() {
    let server = Server::start();
    let (temp, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let id = server.enrol(temp.path());
    let slow = push(&server, target.path(), 300_000);
    let quick = push(&server, target.path(), 3_000_001);
    let slow_id: String = slow.id.iter().map(|byte| format!("{byte:02x}")).collect();
    let Some((_agent, gate)) = slow_disk::start(temp.path(), &format!("{slow_id}.part")) else {
        return;
    };
    let order = join(&slow, target.path(), "slow.bin");
    server.command(&id, command_body::Kind::JoinTransfer(order));
    wait_until("the slow file is flushed", || gate.waiting() > 0);
    let order = join(&quick, target.path(), "quick.bin");
    server.command(&id, command_body::Kind::JoinTransfer(order));
    assert_eq!(transfer_end(&server, &quick.id).state(), TransferState::Done);
    assert!(gate.waiting() > 0 && !target.path().join("slow.bin").exists());
    gate.open();
    assert_eq!(transfer_end(&server, &slow.id).state(), TransferState::Done);
    assert_eq!(std::fs::read(target.path().join("slow.bin")).unwrap(), slow.source);
}

/// Names in `dir` that begin with a dot: partial files.
fn left_over(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.as_encoded_bytes().starts_with(b".")).count()
}

/// Two transfers to one name at once: the name always leads to one whole file, and what was
/// finished last stays.
#[test]
fn two_transfers_to_one_name_leave_one_whole_file() {
    let server = Server::start();
    let (temp, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (sources, name) = (tempfile::tempdir().unwrap(), target.path().join("file.bin"));
    let id = server.enrol(temp.path());
    let _agent = Agent::start(temp.path());
    let pushes =
        [push(&server, sources.path(), 4_000_000), push(&server, sources.path(), 3_000_000)];
    for push in &pushes {
        let order = join(push, target.path(), "file.bin");
        server.command(&id, command_body::Kind::JoinTransfer(order));
    }
    for push in &pushes {
        assert_eq!(transfer_end(&server, &push.id).state(), TransferState::Done);
    }
    let stored = std::fs::read(name).unwrap();
    assert!(pushes.iter().any(|push| push.source == stored));
    assert_eq!(left_over(target.path()), 0);
}

/// One push to two agents of one host with a folder in common: both write the same partial file.
/// One of them has it; the other says that somebody else is at it, or comes later and has the
/// file a second time.
#[test]
fn two_agents_that_receive_one_file_never_mix() {
    let servers = [Server::start(), Server::start()];
    let (target, sources) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let homes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let first = push(&servers[0], sources.path(), 6_000_000);
    servers[1].seed(first.id, &sources.path().join(format!("source-{}.bin", first.id[0])));
    let ids = [0, 1].map(|at| servers[at].enrol(homes[at].path()));
    let agents = [0, 1].map(|at| Agent::start(homes[at].path()));
    for at in [0, 1] {
        let mut order = join(&first, target.path(), "file.bin");
        order.rate_limit_bytes_per_s = 6_000_000;
        servers[at].command(&ids[at], command_body::Kind::JoinTransfer(order));
    }
    let ends = [0, 1].map(|at| transfer_end(&servers[at], &first.id));
    for end in &ends {
        let clear = end.state() == TransferState::Done || end.error.contains("another process");
        assert!(clear, "{end:?}");
    }
    assert!(ends.iter().any(|end| end.state() == TransferState::Done), "{ends:?}");
    assert_eq!(std::fs::read(target.path().join("file.bin")).unwrap(), first.source);
    assert_eq!(left_over(target.path()), 0);
    drop(agents);
}
