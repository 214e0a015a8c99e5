//! Asking source agents how large a file is, for a forecast: they hash nothing and serve nothing.

use std::collections::HashMap;

use skein_wire::ids::{AgentId, TransferId};
use skein_wire::signal::v1::{FileOffer, OfferFile, command_body};
use tokio::sync::oneshot;

use super::super::sources::SourceAgent;
use super::super::{TransferError, tree};
use super::{Group, Worker};
use crate::api::types::TreeRequest;
use crate::clock;
use crate::fleet::Purpose;
use crate::random;

/// A source that has not answered after this time is not going to.
const LOOK_MS: i64 = 10_000;
/// Forecasts that wait for sources at one time.
const LOOKS_MAX: usize = 32;

/// What the API asks: how large is what these sources have?
#[derive(Debug)]
pub struct Look {
    /// The sources.
    pub sources: Vec<SourceAgent>,
    /// What is taken of their paths.
    pub tree: TreeRequest,
    /// Bytes that would travel.
    pub answer: oneshot::Sender<Result<u64, TransferError>>,
}

/// Looks that wait for answers, by the id under which the agents were asked.
#[derive(Default)]
pub(super) struct Looks {
    waiting: HashMap<TransferId, Waiting>,
}

struct Waiting {
    asked: Vec<AgentId>,
    sizes: HashMap<AgentId, u64>,
    until_ms: i64,
    answer: oneshot::Sender<Result<u64, TransferError>>,
}

impl Looks {
    /// Takes an answer if it belongs to a look.
    pub fn take(
        &mut self,
        id: &TransferId,
        agent: &AgentId,
        offer: &FileOffer,
        group: &mut Group,
    ) -> bool {
        let Some(waiting) = self.waiting.get_mut(id).filter(|one| one.asked.contains(agent)) else {
            return false;
        };
        let size_bytes = offer.file.as_ref().map_or(0, |file| file.size_bytes);
        let invalid = |why| Err(TransferError::Invalid(why));
        let outcome = if offer.error.is_empty() {
            waiting.sizes.insert(agent.clone(), size_bytes);
            let other = waiting.sizes.iter().find(|(_, other)| **other != size_bytes);
            match other {
                Some((other, bytes)) => invalid(format!(
                    "the sources do not have the same content: {agent} has {size_bytes} bytes and \
                     {other} has {bytes}"
                )),
                None if waiting.sizes.len() < waiting.asked.len() => return true,
                None => Ok(size_bytes),
            }
        } else {
            invalid(format!("{agent}: {}", offer.error))
        };
        self.end(id, outcome, group);
        true
    }

    fn end(&mut self, id: &TransferId, outcome: Result<u64, TransferError>, group: &mut Group) {
        if let Some(waiting) = self.waiting.remove(id) {
            // They keep their answer until they hear that it has come.
            group.cancel.entry(*id).or_default().extend(waiting.asked);
            // Who asked may be gone.
            let _ = waiting.answer.send(outcome);
        }
    }

    /// Ends those that have waited for too long.
    pub fn expire(&mut self, now_ms: i64, group: &mut Group) {
        let late = self.waiting.iter().filter(|(_, one)| one.until_ms < now_ms);
        let late: Vec<_> = late
            .map(|(id, one)| {
                let silent = one.asked.iter().filter(|agent| !one.sizes.contains_key(*agent));
                (*id, silent.map(ToString::to_string).collect::<Vec<_>>().join(", "))
            })
            .collect();
        for (id, silent) in late {
            let why = format!("{silent} did not say within {} s what is there", LOOK_MS / 1_000);
            self.end(&id, Err(TransferError::Invalid(why)), group);
        }
    }
}

impl Worker {
    /// Asks the sources of a forecast.
    pub(super) async fn look(&mut self, look: Look) {
        let Look { sources, tree, answer } = look;
        let live = sources.iter().filter(|source| source.error.is_empty());
        let live: Vec<(AgentId, &str)> = live
            .filter_map(|source| Some((AgentId::parse(&source.agent_id).ok()?, &*source.path)))
            .collect();
        let Ok(id) = random::bytes().map(TransferId) else { return };
        if self.looks.waiting.len() >= LOOKS_MAX {
            let _ = answer.send(Err(TransferError::Busy));
            return;
        }
        let until_ms = clock::now_ms() + LOOK_MS;
        let asked = live.iter().map(|(agent, _)| agent.clone()).collect();
        let waiting = Waiting { asked, sizes: HashMap::new(), until_ms, answer };
        self.looks.waiting.insert(id, waiting);
        let orders = live.into_iter().map(|(agent, path)| {
            let order = OfferFile {
                transfer_id: id.to_bytes(),
                path: path.to_owned(),
                piece_bytes: 0,
                tree: Some(tree::rules(&tree, "")),
                look: true,
            };
            (agent, command_body::Kind::OfferFile(order))
        });
        let orders = orders.collect();
        if let Err(error) = self.fleet.command_each(Purpose::Other, orders, until_ms).await {
            tracing::error!(%error, "sources are not asked");
        }
    }
}
