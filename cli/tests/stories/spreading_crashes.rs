//! kill -9 in the middle of a planned transfer: of a host, which goes on from what it had, and of the
//! server, without which the hosts still give each other what is out.

use std::time::Duration;

use skein_cli::guard::{Signal, lives, signal};
use skein_cli::local::{AgentOptions, LocalAgent, wait_for};
use skein_controlplane::api::types::{AgentState, TransferPhase};
use skein_observe::names;

use super::spread::{assert_all_have, assert_forgotten, begin, ended, file_of, host, wait_until};
use super::world::{WAIT, World};

const FILE_BYTES: u64 = 24 << 20;
/// So slow that there is a middle: the file takes at least six seconds.
const FLAGS: [&str; 4] = ["--gear", "planned", "--limit", "4M"];
/// What kill -9 may cost of a file that stays cached (128 KiB are still in memory, blocks are claimed
/// in groups of 16), and what arrives between two looks.
const LOST_BYTES_MAX: u64 = 1 << 20;

fn received(agent: &LocalAgent) -> u64 {
    agent.counters().unwrap().sum(names::AGENT_FILE_RECEIVED_BYTES)
}

#[test]
fn a_killed_host_goes_on_from_what_it_had() {
    let world = World::new();
    let mut agents: [LocalAgent; 4] = world.agents(&AgentOptions::default());
    let file = file_of(&world, "release.bin", FILE_BYTES as usize);
    let id = begin(&world, &file, &FLAGS);
    wait_until(&world, &id, "a third to arrive", |detail| {
        host(detail, &agents[1]).verified_bytes > FILE_BYTES / 3
    });
    let before = received(&agents[1]);
    agents[1].kill();
    agents[1].run().unwrap();
    let detail = ended(&world, &id);
    assert_eq!(detail.transfer.hosts_done, 4, "{detail:#?}");
    assert_all_have(&world, &agents, &file, "release.bin");
    let (resumed, after) = (host(&detail, &agents[1]).resumed_bytes, received(&agents[1]));
    println!("before the kill {before}, kept {resumed}, fetched afterwards {after}");
    assert!(resumed + LOST_BYTES_MAX >= before, "{before} bytes were there, {resumed} were kept");
    assert!(resumed + after <= FILE_BYTES, "{resumed} kept and {after} fetched");
    assert!(detail.hosts.iter().all(|host| host.refused_blocks == 0), "{detail:#?}");
}

#[test]
fn without_the_server_hosts_share_what_is_out_and_end_when_it_is_back() {
    let world = World::new();
    let agents: [LocalAgent; 4] = world.agents(&AgentOptions::default());
    let file = file_of(&world, "release.bin", FILE_BYTES as usize);
    let id = begin(&world, &file, &FLAGS);
    wait_until(&world, &id, "a third to arrive", |detail| {
        detail.hosts.iter().all(|host| host.verified_bytes > FILE_BYTES / 3)
    });
    // A supervisor that stands still restarts nothing: the server is gone for as long as we like.
    let status = world.server.status().unwrap();
    let processes = [status.pid, status.data_processes[0].pid];
    assert!(signal(world.server.pid(), Signal::Stop));
    for pid in processes {
        assert!(signal(pid, Signal::Kill));
    }
    wait_for("control and data to be gone", WAIT, || {
        processes.iter().all(|pid| !lives(*pid)).then_some(())
    })
    .unwrap();
    // Whole pieces of 128 KiB are passed on by all; parts of pieces only along the trees.
    let even = || {
        let counts: Vec<u64> = agents.iter().map(received).collect();
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        (most - least <= LOST_BYTES_MAX).then_some(counts.clone())
    };
    std::thread::sleep(Duration::from_secs(1));
    let counts = wait_for("all to have what one has", WAIT, even).unwrap();
    println!("without the server: {counts:?}");
    assert!(counts.iter().all(|count| *count < FILE_BYTES), "{counts:?}: nothing was left to do");
    assert!(signal(world.server.pid(), Signal::Continue));
    let detail = ended(&world, &id);
    assert_eq!(detail.transfer.hosts_done, 4, "{detail:#?}");
    assert_all_have(&world, &agents, &file, "release.bin");
    for agent in &agents {
        world.wait_state(agent, AgentState::Online);
        let received = received(agent);
        // The last blocks may be asked for twice.
        assert!(received <= FILE_BYTES + LOST_BYTES_MAX, "{received} of {FILE_BYTES} bytes came");
        assert_forgotten(agent);
    }
    assert_eq!(detail.transfer.phase, TransferPhase::Ended);
}
