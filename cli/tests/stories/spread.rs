//! What the stories of the mesh share: one push to all agents of a world, each into its own folder,
//! and what can be seen of it from outside.

use std::path::{Path, PathBuf};
use std::time::Duration;

use skein_cli::local::{LocalAgent, wait_for};
use skein_controlplane::api::types::{TransferDetail, TransferHost, TransferPhase};

use super::world::{Random, WAIT, World};

/// A file of so many random bytes beside the world's hosts.
pub fn file_of(world: &World, name: &str, bytes: usize) -> PathBuf {
    let mut random = Random(bytes as u64);
    let content: Vec<u8> = (0..bytes.div_ceil(8))
        .flat_map(|_| random.below(u64::MAX).to_le_bytes())
        .take(bytes)
        .collect();
    let path = world.dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    path
}

/// [`file_of`] for a command line.
pub fn path_of(world: &World, name: &str, bytes: usize) -> String {
    file_of(world, name, bytes).to_str().unwrap().to_owned()
}

/// Whether two files have the same bytes.
pub fn same(one: &str, two: &Path) -> bool {
    std::fs::read(one).unwrap() == std::fs::read(two).unwrap()
}

/// `all:` and a folder that every agent has for itself.
pub fn everybody(world: &World) -> String {
    format!("all:{}/{{agent}}", world.dir.path().join("to").display())
}

/// The folder that [`everybody`] means on one agent.
pub fn folder_of(world: &World, agent: &LocalAgent) -> PathBuf {
    world.dir.path().join("to").join(agent.id())
}

/// Starts a push of `file` to everybody and answers with its id.
pub fn begin(world: &World, file: &Path, flags: &[&str]) -> String {
    let to = everybody(world);
    let mut arguments = vec!["push", file.to_str().unwrap(), "--mkdir", "--detach", "--to", &to];
    arguments.extend(flags);
    world.skein_ends(0, &arguments).trim().to_owned()
}

/// How a transfer stands.
pub fn look(world: &World, id: &str) -> TransferDetail {
    world.server.client().transfer(id).unwrap()
}

/// One agent's part of it.
pub fn host<'a>(detail: &'a TransferDetail, agent: &LocalAgent) -> &'a TransferHost {
    detail.hosts.iter().find(|host| host.agent_id == agent.id()).unwrap()
}

/// Waits until a transfer looks so.
pub fn wait_until(
    world: &World,
    id: &str,
    what: &str,
    reached: impl Fn(&TransferDetail) -> bool,
) -> TransferDetail {
    let mut last = None;
    let waited = wait_for(what, WAIT, || {
        // A server that restarts does not answer.
        let detail = world.server.client().transfer(id).ok()?;
        let reached = reached(&detail);
        last = Some(detail);
        reached.then(|| last.clone())?
    });
    waited.unwrap_or_else(|error| {
        panic!("{error}; it stands at {last:#?}\nserver:\n  {}", world.server.log_tail())
    })
}

/// Waits for the end of a transfer.
pub fn ended(world: &World, id: &str) -> TransferDetail {
    wait_until(world, id, "the transfer to end", |detail| {
        detail.transfer.phase == TransferPhase::Ended
    })
}

/// The id that `skein push` named at its end.
pub fn id_in(said: &str) -> &str {
    let rest = said.split("transfer ").nth(1);
    rest.and_then(|rest| rest.split_whitespace().next()).expect("an id")
}

/// Whether all agents have exactly this file under `name`, and nothing beside it.
pub fn assert_all_have(world: &World, agents: &[LocalAgent], file: &Path, name: &str) {
    let content = std::fs::read(file).unwrap();
    for agent in agents {
        let folder = folder_of(world, agent);
        let received = std::fs::read(folder.join(name));
        let received = received.unwrap_or_else(|error| panic!("{}: {error}", agent.id()));
        assert!(received == content, "{} has other bytes", agent.id());
        assert_eq!(names_in(&folder), [name], "{}", agent.id());
    }
}

/// Names in a folder that may not be there, in order.
pub fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Waits until an agent keeps nothing of any transfer: its orders, ends, states and hashes.
pub fn assert_forgotten(agent: &LocalAgent) {
    let folder = agent.home().join("transfers");
    let forgotten = wait_for("the agent to forget", Duration::from_secs(20), || {
        names_in(&folder).is_empty().then_some(())
    });
    assert!(forgotten.is_ok(), "{} keeps {:?}", agent.id(), names_in(&folder));
}
