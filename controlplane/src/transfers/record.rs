//! What of a transfer is stored, and how a request becomes a transfer. It lies on [`SHELF`].

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use skein_filemesh::core::folder;
use skein_filemesh::engine::check_file_name;
use skein_wire::ids::{AgentId, TransferId};
use skein_wire::signal::v1::{FileInfo, JoinTransfer, TransferPriority};

use super::cache::CacheError;
use super::gear::{self, Choice, GearChoice, Question};
use super::host::{Final, HostPush};
use super::judged::Judged;
use super::rollout::Rollout;
use super::sources::SourceAgent;
use super::tree;
use super::{Entry, Transfers};
use crate::api::types::{
    Priority, TransferPhase, TransferRequest, TransferSource, TreeRequest, Upload,
};
use crate::jobs::shelf::{Shelf, Stored};
use crate::random;
use crate::registry::SelectorError;
use crate::store::{Store, StoreError};

/// Where transfers lie in the store.
pub(super) const SHELF: Shelf = Shelf::new("transfers");

const DELIVER_WITHIN_MS: u64 = 30_000;
const TIMEOUT_MS: u64 = 6 * 3_600_000;
const TIMEOUT_MS_MAX: u64 = 7 * 24 * 3_600_000;
const PATH_BYTES_MAX: usize = 4_096;
/// Below it a request of 16 KiB of one of several hosts waits for long enough to look unanswered.
const TOTAL_LIMIT_BYTES_S_MIN: u64 = 64 * 1024;

/// Why a transfer is not accepted or not found.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The selector.
    #[error(transparent)]
    Selector(#[from] SelectorError),
    /// Nobody is meant.
    #[error("no agent matches {0:?}; `skein hosts` lists them")]
    NoTargets(String),
    /// Nobody is meant by a source.
    #[error("source {0:?} matches no agent; `skein hosts` lists them")]
    NoSource(String),
    /// All sources are away; the first of them.
    #[error("source agent {0} is not online; start it or choose another source")]
    SourceAway(AgentId),
    /// No such upload.
    #[error("there is no upload {0}; it may have expired: upload the file again")]
    NoUpload(String),
    /// A field of the request.
    #[error("{0}")]
    Invalid(String),
    /// No such transfer.
    #[error("there is no transfer {0}; it may have left the history")]
    Unknown(TransferId),
    /// It is not in the state that this needs.
    #[error("{0}")]
    Conflict(String),
    /// Too many at one time.
    #[error("too many transfers run at this time; wait for some to end or cancel them")]
    Busy,
    /// On the way down.
    #[error("the control process is stopping; try again")]
    Stopping,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// No randomness.
    #[error(transparent)]
    Random(#[from] std::io::Error),
}

/// A transfer, stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TransferRecord {
    /// 32 hex digits.
    pub transfer_id: String,
    /// Where it stands.
    pub phase: TransferPhase,
    /// Where the file comes from.
    pub source: TransferSource,
    /// The source agents, where it comes from agents.
    #[serde(default)]
    pub sources: Vec<SourceAgent>,
    /// The selector, as it was asked.
    pub targets: String,
    /// Folder on the targets.
    pub directory: String,
    /// Name there; empty: the source's, not yet known.
    pub file_name: String,
    /// Permission bits there; 0: the source's.
    pub mode: u32,
    /// `user` or `user:group`.
    pub owner: String,
    /// Make the folder.
    pub create_directory: bool,
    /// Per host; 0: none.
    pub rate_limit_bytes_per_s: u64,
    /// Of what the sources send to all hosts together; 0: none.
    #[serde(default)]
    pub rate_limit_total_bytes_per_s: u64,
    /// From the moment at which the file is in the cache.
    pub deliver_within_ms: i64,
    /// When it was created.
    pub created_ms: i64,
    /// A host without an end at this time ends as expired.
    pub expire_ms: i64,
    /// The file in the cache, or the file that is being fetched.
    #[serde(default)]
    pub file: Option<Upload>,
    /// When the file was in the cache.
    #[serde(default)]
    pub running_ms: Option<i64>,
    /// How it travels; decided when the file is in the cache.
    #[serde(default)]
    pub gear: GearChoice,
    /// The gear that was asked for; none: the planner's.
    #[serde(default)]
    pub gear_wanted: Option<String>,
    /// A file that came inside the request and travels inside the orders; gone at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_hex: Option<String>,
    /// How near to the bound it came; said at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged: Option<Judged>,
    /// How a tree is taken and put in place.
    #[serde(default)]
    pub tree: TreeRequest,
    /// Content that the server sent, as far as it was known at the end.
    #[serde(default)]
    pub source_sent_bytes: u64,
    /// Whether that is all.
    #[serde(default)]
    pub source_is_final: bool,
    /// What is wrong with the whole.
    #[serde(default)]
    pub error: String,
    /// When a cancel was asked.
    #[serde(default)]
    pub cancel_ms: Option<i64>,
    /// When the last host ended.
    #[serde(default)]
    pub ended_ms: Option<i64>,
    /// Batches, turn, pause.
    #[serde(default)]
    pub rollout: Rollout,
}

impl TransferRecord {
    /// Checks a request and fills its defaults; the source is settled by the caller.
    pub fn from_request(request: TransferRequest, now_ms: i64) -> Result<Self, TransferError> {
        let invalid = |why: String| Err(TransferError::Invalid(why));
        check_folder(&request.directory)?;
        if let Some(name) = &request.file_name {
            check_file_name(name.as_bytes())
                .map_err(|error| TransferError::Invalid(format!("file name {name:?}: {error}")))?;
        }
        check_source(&request.source)?;
        let mode = request.mode.unwrap_or(0);
        if mode & !0o7777 != 0 {
            return invalid(format!("mode {mode:o} has bits beyond 7777"));
        }
        let owner = request.owner.unwrap_or_default();
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-$:".contains(c);
        if owner.len() > 128 || !owner.chars().all(allowed) || owner.matches(':').count() > 1 {
            return invalid(format!("owner {owner:?} is not `user` or `user:group`"));
        }
        gear::wanted(request.gear.as_deref())?;
        tree::check(&request.tree)?;
        let timeout_ms = request.timeout_ms.unwrap_or(TIMEOUT_MS);
        let deliver_within_ms = request.deliver_within_ms.unwrap_or(DELIVER_WITHIN_MS);
        if timeout_ms == 0 || timeout_ms.max(deliver_within_ms) > TIMEOUT_MS_MAX {
            return invalid(format!("timeouts must be at most {TIMEOUT_MS_MAX} ms"));
        }
        let rollout = Rollout::from_request(&request.rollout, timeout_ms as i64)?;
        Ok(Self {
            transfer_id: TransferId(random::bytes()?).to_string(),
            phase: TransferPhase::Offering,
            source: without_content(request.source),
            sources: Vec::new(),
            targets: request.targets,
            directory: request.directory,
            file_name: request.file_name.unwrap_or_default(),
            mode,
            owner,
            create_directory: request.create_directory,
            rate_limit_bytes_per_s: request.rate_limit_bytes_per_s.unwrap_or(0),
            rate_limit_total_bytes_per_s: total_limit(request.rate_limit_total_bytes_per_s)?,
            gear: GearChoice::default(),
            gear_wanted: request.gear,
            deliver_within_ms: deliver_within_ms as i64,
            created_ms: now_ms,
            expire_ms: now_ms + timeout_ms as i64,
            file: None,
            running_ms: None,
            content_hex: None,
            judged: None,
            tree: request.tree,
            source_sent_bytes: 0,
            source_is_final: false,
            error: String::new(),
            cancel_ms: None,
            ended_ms: None,
            rollout,
        })
    }

    /// The file is in the cache: targets can be told.
    pub fn run(&mut self, file: Upload, now_ms: i64) {
        if self.file_name.is_empty() {
            self.file_name = file.name.clone();
        }
        self.phase = TransferPhase::Running;
        self.file = Some(file);
        self.running_ms = Some(now_ms);
    }

    /// Refuses what is asked of a tree if `file`, which was uploaded, is none, and what is asked of
    /// one file if it is.
    pub fn check_content(&self, file: &Upload) -> Result<(), TransferError> {
        match file.tree {
            true if !self.file_name.is_empty() => Err(TransferError::Invalid(
                "an uploaded tree has its names in it; upload it under another name".into(),
            )),
            false if self.tree != TreeRequest::default() => Err(TransferError::Invalid(
                "what is asked of a tree does not fit an uploaded file; upload it as a tree".into(),
            )),
            _ => Ok(()),
        }
    }

    /// The id.
    pub fn id(&self) -> Option<TransferId> {
        self.transfer_id.parse().ok()
    }

    /// The file, where it is known.
    pub fn file_info(&self) -> Option<FileInfo> {
        self.file.as_ref().map(super::cache::file_info)
    }

    /// A host that is not reached until then ends as undeliverable.
    pub fn deliver_by_ms(&self) -> i64 {
        let since_ms = self.running_ms.map(|running_ms| running_ms.max(self.rollout.begun_ms));
        since_ms.unwrap_or(self.expire_ms).saturating_add(self.deliver_within_ms)
    }

    /// Whether a limit, and no link, may say how fast it is.
    pub fn is_limited(&self) -> bool {
        self.rate_limit_bytes_per_s > 0 || self.rate_limit_total_bytes_per_s > 0
    }

    /// The order to the targets.
    pub fn order(&self, id: &TransferId) -> JoinTransfer {
        let is_tree = self.file.as_ref().is_some_and(|file| file.tree);
        JoinTransfer {
            transfer_id: id.to_bytes(),
            file: self.file_info(),
            directory: self.directory.clone(),
            file_name: if is_tree { String::new() } else { self.file_name.clone() },
            mode: self.mode,
            owner: self.owner.clone(),
            create_directory: self.create_directory,
            rate_limit_bytes_per_s: self.rate_limit_bytes_per_s,
            meshed: self.gear.is_meshed(),
            priority: match self.rollout.priority {
                Priority::Low => TransferPriority::Low,
                Priority::Normal => TransferPriority::Normal,
                Priority::High => TransferPriority::High,
            }
            .into(),
            content: None,
            refuse_existing: self.tree.refuse_existing,
            times_of_arrival: self.tree.times_of_arrival,
            owners_by_name: self.tree.owners_by_name,
        }
    }

    /// Its hosts are told to begin now, and have all of their time from here.
    pub fn begin(&mut self, now_ms: i64) {
        self.rollout.begun_ms = now_ms;
        let timeout_ms = self.rollout.timeout_ms;
        if timeout_ms > 0 {
            self.expire_ms = now_ms + timeout_ms;
        }
    }

    /// Decides how the file, which is in the cache or in the request, travels to `targets`, each
    /// with the bytes that it holds.
    pub fn choose_gear(
        &mut self,
        transfers: &Transfers,
        targets: &[(&AgentId, u64)],
    ) -> Option<Choice> {
        let file = self.file.as_ref()?;
        let question = Question {
            registry: &transfers.registry,
            rates: &transfers.rates,
            settings: &transfers.planner,
            topology: &transfers.topology,
            size_bytes: file.size_bytes,
            piece_bytes: file.piece_bytes,
            targets,
            rate_limit_bytes_per_s: self.rate_limit_bytes_per_s,
            rate_limit_total_bytes_per_s: self.rate_limit_total_bytes_per_s,
            forced: gear::wanted(self.gear_wanted.as_deref()).ok().flatten(),
            may_inline: true,
        };
        let choice = question.choose()?;
        self.gear = choice.stored.clone();
        Some(choice)
    }
}

/// Checks a limit of what the sources send together; 0 and none are none.
pub(super) fn total_limit(limit: Option<u64>) -> Result<u64, TransferError> {
    match limit.unwrap_or(0) {
        limit @ 1..TOTAL_LIMIT_BYTES_S_MIN => Err(TransferError::Invalid(format!(
            "a limit of {limit} bytes per second for all hosts together is less than \
             {TOTAL_LIMIT_BYTES_S_MIN}, at which hosts would take the source for dead"
        ))),
        limit => Ok(limit),
    }
}

/// The content of a small file is kept elsewhere, for as long as it is needed.
fn without_content(source: TransferSource) -> TransferSource {
    match source {
        TransferSource::Content { name, mode, mtime_ms, .. } => {
            TransferSource::Content { name, mode, mtime_ms, content_hex: String::new() }
        }
        other => other,
    }
}

/// Refuses paths that no source has.
pub(super) fn check_source(source: &TransferSource) -> Result<(), TransferError> {
    let TransferSource::Agent { path, also, .. } = source else { return Ok(()) };
    check_path("the source", path)?;
    also.iter().try_for_each(|source| check_path("the source", &source.path))
}

fn check_path(what: &str, path: &str) -> Result<(), TransferError> {
    let plain = path.split('/').skip(1).all(|part| part != ".." && part != ".");
    if !path.starts_with('/') || !plain || path.contains('\0') || path.len() > PATH_BYTES_MAX {
        return Err(TransferError::Invalid(format!(
            "{what} {path:?} must be an absolute path without `.` and `..`"
        )));
    }
    Ok(())
}

fn check_folder(path: &str) -> Result<(), TransferError> {
    check_path("the folder", path)?;
    folder::check(path).map_err(|error| TransferError::Invalid(error.to_string()))
}

/// Reads all transfers.
pub(super) async fn load(store: &dyn Store) -> Result<HashMap<TransferId, Entry>, StoreError> {
    let mut entries = HashMap::new();
    for Stored { record, hosts, mut ends } in SHELF.load::<TransferRecord, Final>(store).await? {
        let Some(id) = record.id() else { continue };
        let host = |(agent, name)| {
            let end = ends.remove(&agent);
            let mut host = HostPush::new(agent, name);
            end.into_iter().for_each(|end| host.end(end));
            host
        };
        let hosts = hosts.into_iter().map(host).collect();
        entries.insert(id, Entry::new(record, hosts));
    }
    Ok(entries)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::transfers) fn request() -> TransferRequest {
        TransferRequest::new(TransferSource::Upload { upload_id: "x".into() }, "all", "/opt/app")
    }

    #[test]
    fn hostile_paths_names_and_owners_are_refused() {
        assert!(TransferRecord::from_request(request(), 0).is_ok());
        type Change = fn(&mut TransferRequest);
        let wrong: [(Change, &str); 14] = [
            (|r| r.rate_limit_total_bytes_per_s = Some(1_000), "65536"),
            (|r| r.directory = "opt".into(), "absolute"),
            (|r| r.directory = "/opt/../etc".into(), "absolute"),
            (|r| r.directory = "/a\0b".into(), "absolute"),
            (|r| r.directory = "/srv/{ip}".into(), "{agent}, {hostname}"),
            (|r| r.file_name = Some("../x".into()), "file name"),
            (|r| r.file_name = Some("..".into()), "file name"),
            (|r| r.mode = Some(0o100_644), "mode"),
            (|r| r.owner = Some("a b".into()), "owner"),
            (|r| r.owner = Some("a:b:c".into()), "owner"),
            (|r| r.timeout_ms = Some(u64::MAX), "timeouts"),
            (|r| r.rollout.batches = Some("10%,5%".into()), "grow"),
            (|r| r.rollout.max_errors = Some("5%".into()), "batches"),
            (|r| r.tree.matching = vec!["(".into()], "pattern"),
        ];
        for (change, hint) in wrong {
            let mut request = request();
            change(&mut request);
            let error = TransferRecord::from_request(request, 0).unwrap_err().to_string();
            assert!(error.contains(hint), "{hint}: {error}");
        }
    }

    #[test]
    fn an_agent_that_does_not_know_trees_refuses_the_order_of_one() {
        let file = |tree| Upload {
            upload_id: "x".into(),
            name: "release".into(),
            size_bytes: 7,
            root: "00".repeat(32),
            piece_bytes: 65_536,
            mode: 0,
            mtime_ms: 0,
            tree,
            created_ms: 0,
            expires_ms: 0,
        };
        for tree in [true, false] {
            let asked = TransferRequest {
                tree: TreeRequest { refuse_existing: tree, ..TreeRequest::default() },
                ..request()
            };
            let mut record = TransferRecord::from_request(asked, 0).unwrap();
            record.check_content(&file(tree)).unwrap();
            assert_eq!(record.check_content(&file(!tree)).is_err(), tree);
            record.run(file(tree), 0);
            let order = record.order(&TransferId([1; 16]));
            assert_eq!(order.file.unwrap().tree, tree);
            assert_eq!(order.file_name, if tree { "" } else { "release" });
            assert_eq!(order.refuse_existing, tree);
        }
        let mut named = TransferRecord::from_request(request(), 0).unwrap();
        named.file_name = "other".into();
        assert!(named.check_content(&file(true)).is_err(), "a tree has its names in it");
    }
}
