//! What the server must hear about transfers: the latest state of each, final ones until they are
//! acknowledged. Bounded by the limits on orders; progress goes out at most twice a second.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use skein_wire::ids::TransferId;
use skein_wire::signal::v1::{FileOffer, TransferState, TransferUpdate, agent_message::Kind};

use crate::clock;
use crate::link::{Outbox, Priority};

/// Between two reports of one transfer.
pub const PROGRESS_MS: u64 = 500;
/// A final state that is not acknowledged is sent again after this.
const RESEND_MS: u64 = 30_000;

/// The board; shared by all transfers.
#[derive(Default)]
pub(super) struct Board {
    entries: Mutex<HashMap<TransferId, Entry>>,
    offers: Mutex<HashMap<TransferId, (FileOffer, bool)>>,
}

struct Entry {
    update: TransferUpdate,
    /// What this session was told, and when.
    told: Option<(TransferUpdate, u64)>,
}

/// Whether nothing follows `state`.
pub(super) fn is_final(state: TransferState) -> bool {
    use TransferState::{Cancelled, Done, Failed};
    matches!(state, Done | Failed | Cancelled)
}

impl Board {
    /// The newest state of a transfer.
    pub fn set(&self, id: TransferId, update: TransferUpdate) {
        let mut entries = lock(&self.entries);
        match entries.get_mut(&id) {
            Some(entry) => entry.update = update,
            None => drop(entries.insert(id, Entry { update, told: None })),
        }
    }

    /// The state of a transfer, if the board has it.
    pub fn get(&self, id: &TransferId) -> Option<TransferUpdate> {
        lock(&self.entries).get(id).map(|entry| entry.update.clone())
    }

    /// The server has the final state; false if there is none.
    pub fn acknowledged(&self, id: &TransferId) -> bool {
        let mut entries = lock(&self.entries);
        let finished = entries.get(id).is_some_and(|entry| is_final(entry.update.state()));
        if finished {
            entries.remove(id);
        }
        finished
    }

    /// The server has ended it by itself: there is nothing to tell.
    pub fn remove(&self, id: &TransferId) {
        lock(&self.entries).remove(id);
    }

    /// Has the state of a transfer told again.
    pub fn repeat(&self, id: &TransferId) {
        if let Some(entry) = lock(&self.entries).get_mut(id) {
            entry.told = None;
        }
        if let Some((_, told)) = lock(&self.offers).get_mut(id) {
            *told = false;
        }
    }

    /// A new session knows nothing.
    pub fn repeat_all(&self) {
        lock(&self.entries).values_mut().for_each(|entry| entry.told = None);
        lock(&self.offers).values_mut().for_each(|(_, told)| *told = false);
    }

    /// What is offered, or why not; told to every session until it is withdrawn.
    pub fn offer(&self, id: TransferId, offer: FileOffer) {
        lock(&self.offers).insert(id, (offer, false));
    }

    /// The offer is over.
    pub fn withdraw(&self, id: &TransferId) {
        lock(&self.offers).remove(id);
    }

    /// How many transfers are known.
    pub fn len(&self) -> usize {
        lock(&self.entries).len() + lock(&self.offers).len()
    }

    /// Tells what is due; answers whether there is more to tell later.
    pub fn tell(&self, outbox: &Outbox) -> bool {
        if !outbox.is_up() {
            return false;
        }
        let now = clock::now_ms();
        for (offer, told) in lock(&self.offers).values_mut().filter(|(_, told)| !told) {
            *told = outbox.push(Priority::Report, Kind::FileOffer(offer.clone()));
        }
        let mut entries = lock(&self.entries);
        for entry in entries.values_mut().filter(|entry| entry.is_due(now)) {
            let update = entry.update.clone();
            if outbox.push(Priority::Report, Kind::TransferUpdate(update.clone())) {
                entry.told = Some((update, now));
            }
        }
        !entries.is_empty()
    }
}

impl Entry {
    fn is_due(&self, now: u64) -> bool {
        let Some((told, at)) = &self.told else { return true };
        let finished = is_final(self.update.state());
        match (told.state == self.update.state, *told == self.update) {
            (false, _) => true,
            (true, false) => now >= at + PROGRESS_MS,
            (true, true) => finished && now >= at + RESEND_MS,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(outbox: &Outbox) -> Vec<TransferUpdate> {
        let message = std::iter::from_fn(|| outbox.take());
        message
            .filter_map(|message| match message.kind {
                Some(Kind::TransferUpdate(update)) => Some(update),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn progress_is_rationed_and_the_end_is_kept_until_acknowledged() {
        let (board, outbox, id) = (Board::default(), Outbox::default(), TransferId([1; 16]));
        let update = |state: TransferState, verified_bytes| TransferUpdate {
            state: state.into(),
            verified_bytes,
            ..TransferUpdate::default()
        };
        outbox.open();
        board.set(id, update(TransferState::Running, 1));
        assert!(board.tell(&outbox));
        board.set(id, update(TransferState::Running, 2));
        board.tell(&outbox);
        assert_eq!(told(&outbox).len(), 1);
        assert!(!board.acknowledged(&id));
        board.set(id, update(TransferState::Done, 3));
        board.tell(&outbox);
        board.tell(&outbox);
        assert_eq!(told(&outbox).len(), 1);
        board.repeat_all();
        board.tell(&outbox);
        assert_eq!(told(&outbox), [update(TransferState::Done, 3)]);
        assert!(board.acknowledged(&id));
        assert!(!board.tell(&outbox));
    }
}
