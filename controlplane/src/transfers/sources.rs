//! The agents from which the file of a transfer comes: each hashes what it has, all must have the
//! same, and the next takes over where one is lost.

use serde::{Deserialize, Serialize};
use skein_wire::ids::AgentId;

use super::record::{TransferError, TransferRecord};
use crate::api::types::{AgentPath, SourceState, TransferSource, Upload};
use crate::registry::Registry;

/// Agents that one transfer may have as sources.
pub const SOURCES_MAX: usize = 16;
/// Longest error text that is kept of one source.
const ERROR_BYTES_MAX: usize = 1_024;
/// Digits of a root that tell two apart.
const ROOT_DIGITS: usize = 16;

/// One source agent, stored with its transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceAgent {
    /// Its id.
    pub agent_id: String,
    /// The path there.
    pub path: String,
    /// Whether it said that it has the file.
    #[serde(default)]
    pub ready: bool,
    /// Why it is no source any more; empty while it is one.
    #[serde(default)]
    pub error: String,
}

/// Finds the agents that `source` means; none for other sources.
pub fn find(
    registry: &Registry,
    source: &TransferSource,
) -> Result<Vec<SourceAgent>, TransferError> {
    let TransferSource::Agent { agent, path, also } = source else { return Ok(Vec::new()) };
    let first = AgentPath { agent: agent.clone(), path: path.clone() };
    let mut found: Vec<SourceAgent> = Vec::new();
    for AgentPath { agent, path } in std::iter::once(&first).chain(also) {
        let meant = registry.select(&agent.parse()?);
        if meant.is_empty() {
            return Err(TransferError::NoSource(agent.clone()));
        }
        for one in meant {
            let agent_id = one.id.to_string();
            match found.iter().find(|known| known.agent_id == agent_id) {
                Some(known) if known.path == *path => continue,
                Some(known) => {
                    return Err(TransferError::Invalid(format!(
                        "source agent {agent_id} is named with {:?} and with {path:?}",
                        known.path
                    )));
                }
                None if found.len() == SOURCES_MAX => {
                    return Err(TransferError::Invalid(format!(
                        "the sources are more than {SOURCES_MAX} agents"
                    )));
                }
                None => {
                    let error = if one.online { "" } else { "it was not online at the start" };
                    let (path, error) = (path.clone(), error.to_owned());
                    found.push(SourceAgent { agent_id, path, ready: false, error });
                }
            }
        }
    }
    if found.iter().all(|source| !source.error.is_empty())
        && let Some(first) = found.first().and_then(|first| AgentId::parse(&first.agent_id).ok())
    {
        return Err(TransferError::SourceAway(first));
    }
    Ok(found)
}

impl SourceAgent {
    fn is(&self, agent: &AgentId) -> bool {
        self.agent_id == agent.as_str()
    }

    /// As the API shows it.
    pub fn view(&self) -> SourceState {
        let Self { agent_id, path, ready, error } = self.clone();
        SourceState { agent_id, path, ready, error }
    }
}

impl TransferRecord {
    /// The sources that are not lost.
    pub fn live_sources(&self) -> impl Iterator<Item = &SourceAgent> {
        self.sources.iter().filter(|source| source.error.is_empty())
    }

    /// Whether `agent` is a source that is not lost.
    pub fn has_source(&self, agent: &AgentId) -> bool {
        self.live_sources().any(|source| source.is(agent))
    }

    /// All sources that were asked.
    pub fn source_ids(&self) -> impl Iterator<Item = AgentId> {
        self.sources.iter().filter_map(|source| AgentId::parse(&source.agent_id).ok())
    }

    /// From whom the file is taken: the first that has it.
    pub fn fetch_source(&self) -> Option<AgentId> {
        let source = self.live_sources().find(|source| source.ready)?;
        AgentId::parse(&source.agent_id).ok()
    }

    /// Whether every source that is not lost has said what it has.
    pub fn sources_are_ready(&self) -> bool {
        self.live_sources().all(|source| source.ready)
    }

    /// A source has the file.
    pub fn source_ready(&mut self, agent: &AgentId) {
        self.sources.iter_mut().filter(|source| source.is(agent)).for_each(|one| one.ready = true);
    }

    /// A source is lost. The error is that of the transfer if no other is left.
    pub fn source_lost(&mut self, agent: &AgentId, why: &str) -> Result<(), TransferError> {
        for source in self.sources.iter_mut().filter(|source| source.is(agent)) {
            source.error = why.to_owned();
            source.error.truncate(why.floor_char_boundary(ERROR_BYTES_MAX));
        }
        if self.live_sources().next().is_some() {
            return Ok(());
        }
        Err(TransferError::Invalid(match &self.sources[..] {
            [_] => why.to_owned(),
            all => {
                let reasons = all.iter().map(|one| format!("{}: {}", one.agent_id, one.error));
                format!("no source is left; {}", reasons.collect::<Vec<_>>().join("; "))
            }
        }))
    }

    /// What is wrong if `agent` offers `file` and an earlier source offered another.
    pub fn differing_sources(&self, agent: &AgentId, file: &Upload) -> Option<String> {
        let known = self.file.as_ref()?;
        let same = known.root == file.root
            && known.size_bytes == file.size_bytes
            && known.piece_bytes == file.piece_bytes
            && known.tree == file.tree;
        let first = self.sources.iter().find(|source| source.ready && !source.is(agent))?;
        let second = self.sources.iter().find(|source| source.is(agent))?;
        let said = |source: &SourceAgent, file: &Upload| {
            let root = file.root.get(..ROOT_DIGITS).unwrap_or(&file.root);
            let SourceAgent { agent_id, path, .. } = source;
            format!("{agent_id}:{path} ({} bytes, root {root}...)", file.size_bytes)
        };
        (!same).then(|| {
            format!(
                "the sources do not have the same content: {} and {} differ; nothing was sent",
                said(first, known),
                said(second, file)
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::request;
    use super::*;

    fn agent(name: &str) -> AgentId {
        AgentId::parse(name).unwrap()
    }

    fn record(names: &[&str]) -> TransferRecord {
        let mut record = TransferRecord::from_request(request(), 0).unwrap();
        let source = |name: &&str| SourceAgent {
            agent_id: (*name).to_owned(),
            path: "/f".into(),
            ready: false,
            error: String::new(),
        };
        record.sources = names.iter().map(source).collect();
        record
    }

    fn file(root: &str) -> Upload {
        Upload {
            upload_id: String::new(),
            name: "f".into(),
            size_bytes: 5,
            root: root.repeat(32),
            piece_bytes: 65_536,
            mode: 0,
            mtime_ms: 0,
            tree: false,
            created_ms: 0,
            expires_ms: 0,
        }
    }

    #[test]
    fn the_next_source_takes_over_until_none_is_left() {
        let mut record = record(&["a", "b", "c"]);
        assert!(record.fetch_source().is_none() && !record.sources_are_ready());
        record.source_ready(&agent("b"));
        record.source_ready(&agent("c"));
        record.source_lost(&agent("a"), "no such file").unwrap();
        assert!(record.sources_are_ready() && !record.has_source(&agent("a")));
        assert_eq!(record.fetch_source(), Some(agent("b")));
        record.source_lost(&agent("b"), &"long ".repeat(1_000)).unwrap();
        assert_eq!(record.fetch_source(), Some(agent("c")));
        let error = record.source_lost(&agent("c"), "away").unwrap_err().to_string();
        assert!(error.contains("a: no such file; b: long") && error.ends_with("c: away"));
        assert!(error.len() < 2_000);
        assert_eq!(record.source_ids().count(), 3, "all are told of the end");
    }

    #[test]
    fn one_source_speaks_for_itself() {
        let error = record(&["a"]).source_lost(&agent("a"), "no such file").unwrap_err();
        assert_eq!(error.to_string(), "no such file");
    }

    #[test]
    fn sources_that_differ_are_named() {
        let mut record = record(&["a", "b"]);
        assert!(record.differing_sources(&agent("a"), &file("11")).is_none(), "it is the first");
        record.source_ready(&agent("a"));
        record.file = Some(file("11"));
        assert!(record.differing_sources(&agent("b"), &file("11")).is_none());
        let said = record.differing_sources(&agent("b"), &file("22")).unwrap();
        for part in ["a:/f (5 bytes, root 1111", "b:/f (5 bytes, root 2222"] {
            assert!(said.contains(part), "{said}");
        }
        let longer = Upload { size_bytes: 6, ..file("11") };
        assert!(record.differing_sources(&agent("b"), &longer).is_some());
    }
}
