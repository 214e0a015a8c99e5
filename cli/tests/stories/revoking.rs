//! A host is revoked while a push runs: the others hear of it at once and give it no further byte,
//! it ends with that reason, and they have the file.

use std::time::Duration;

use skein_cli::local::{AgentOptions, LocalAgent, wait_for};
use skein_controlplane::api::types::{AgentState, TransferHostState};
use skein_observe::names;

use super::spread::{
    assert_forgotten, begin, ended, file_of, folder_of, host, names_in, wait_until,
};
use super::world::{WAIT, World};

const FILE_BYTES: u64 = 24 << 20;

/// File content that came to an agent; `None` when it does not run any more.
fn received(agent: &LocalAgent) -> Option<u64> {
    Some(agent.counters().ok()?.sum(names::AGENT_FILE_RECEIVED_BYTES))
}

#[test]
fn a_revoked_host_gets_no_further_byte_and_the_others_have_the_file() {
    let world = World::new();
    let agents: [LocalAgent; 4] = world.agents(&AgentOptions::default());
    let file = file_of(&world, "release.bin", FILE_BYTES as usize);
    let id = begin(&world, &file, &["--gear", "planned", "--limit", "1M"]);
    wait_until(&world, &id, "a fifth everywhere", |detail| {
        detail.hosts.iter().all(|host| host.verified_bytes > FILE_BYTES / 5)
    });
    let lost = &agents[1];
    world.skein_ends(0, &["agent", "revoke", "--reason", "stolen", lost.id()]);
    world.wait_state(lost, AgentState::Revoked);
    let detail =
        wait_until(&world, &id, "its part to end", |detail| host(detail, lost).state.is_final());
    let part = host(&detail, lost);
    assert_eq!(part.state, TransferHostState::Failed, "{part:#?}");
    assert_eq!(part.error, "the agent was revoked");
    // Streams end when the others hear of it; from then on its count stands still.
    let mut last = received(lost);
    wait_for("its streams to end", WAIT, || {
        std::thread::sleep(Duration::from_millis(700));
        let before = std::mem::replace(&mut last, received(lost));
        (before == last).then_some(())
    })
    .unwrap();
    let then = super::spread::look(&world, &id);
    println!("when it stood still the transfer was {:?}", then.transfer.phase);
    let detail = ended(&world, &id);
    assert_eq!(detail.transfer.hosts_done, 3, "{detail:#?}");
    let whole = std::fs::read(&file).unwrap();
    for agent in agents.iter().filter(|agent| agent.id() != lost.id()) {
        let folder = folder_of(&world, agent);
        assert!(std::fs::read(folder.join("release.bin")).unwrap() == whole);
        assert_eq!(names_in(&folder), ["release.bin"]);
        assert_forgotten(agent);
    }
    assert_eq!(received(lost), last, "not a byte more");
    assert!(last.is_none_or(|bytes| bytes < FILE_BYTES), "{last:?}");
    assert!(!folder_of(&world, lost).join("release.bin").exists());
}
