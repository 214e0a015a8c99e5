//! Paused transfers: stopped by the server's order, with their blocks and orders kept, until it
//! orders them again, cancels them, or says that they have ended. A worker that is killed finds
//! them as they were.

use skein_wire::ids::TransferId;
use skein_wire::signal::v1::agent_message::Kind;
use skein_wire::signal::v1::{JoinTransfer, TransferState, TransferUpdate};

use super::arriving::Arriving;
use super::board::is_final;
use super::{Ended, Origin, Shared, Stop, Transfers, update};
use crate::link::Priority;
use crate::tasks::records;

impl Transfers {
    /// Stops a transfer and keeps what is verified.
    pub(super) fn pause(&mut self, id: TransferId) {
        if let Some(offer) = self.offers.get(&id) {
            offer.stop.send_replace(Stop::Pause);
        }
        let known = self.shared.board.get(&id);
        match (known, self.fetches.get(&id)) {
            (Some(known), Some(fetch)) if !is_final(known.state()) => {
                fetch.stop.send_if_modified(|stop| {
                    let goes = *stop == Stop::No;
                    if goes {
                        *stop = Stop::Pause;
                    }
                    goes
                });
            }
            // It has ended, or is paused already, which the server has not heard.
            (Some(_), _) => self.shared.board.repeat(&id),
            // It has the file, and serves it to others; or the order had the content in it.
            (None, Some(_)) => {}
            (None, None) => {
                let nothing = Kind::TransferUpdate(update(&id, TransferState::Paused));
                // A lost answer is asked for again.
                let _ = self.shared.settings.outbox.push(Priority::Report, nothing);
            }
        }
    }

    /// A task of a transfer is over.
    pub(super) fn ended(&mut self, id: TransferId, ended: Ended) {
        match ended {
            Ended::Offer => drop(self.offers.remove(&id)),
            Ended::Fetch => drop(self.fetches.remove(&id)),
            Ended::Paused(join) => {
                let stop = self.fetches.remove(&id).map(|fetch| *fetch.stop.borrow());
                self.paused.insert(id, *join);
                // The server has changed its mind while the transfer stopped.
                if stop == Some(Stop::Cancel) {
                    self.drop_paused(id, true);
                }
            }
        }
    }

    /// Ends a paused transfer; with `report` the server hears of it. False: there is none.
    pub(super) fn drop_paused(&mut self, id: TransferId, report: bool) -> bool {
        let Some(join) = self.paused.remove(&id) else { return false };
        let shared = self.shared.clone();
        tokio::task::spawn_local(async move {
            let settings = shared.settings.clone();
            // A folder that is not there, or not for us, has nothing of ours.
            let _ = shared.on_disk(move || Arriving::discard(&settings, &id, &join)).await;
            if report {
                shared.end(&id, TransferState::Cancelled, "").await;
            } else {
                shared.board.remove(&id);
                shared.forget(&id);
            }
        });
        true
    }

    /// Takes up what an earlier worker had paused.
    pub(super) fn restore_pause(&mut self, id: TransferId, join: JoinTransfer) {
        let dir = &self.shared.settings.dir;
        match records::read::<TransferUpdate>(dir, &format!("{id}.pause")) {
            Ok(Some(update)) => {
                self.shared.board.set(id, update);
                self.paused.insert(id, join);
            }
            // It is damaged: the transfer goes on until the server pauses it again.
            _ => {
                let _ = std::fs::remove_file(dir.join(format!("{id}.pause")));
                self.fetch(id, join, Origin::Earlier);
            }
        }
    }
}

impl Shared {
    /// Notes a pause, on disk before anybody hears of it.
    pub(super) async fn keep_pause(&self, id: TransferId) {
        let mut paused = self.board.get(&id).unwrap_or_else(|| update(&id, TransferState::Paused));
        paused.state = TransferState::Paused.into();
        paused.error.clear();
        let (dir, name, record) =
            (self.settings.dir.clone(), format!("{id}.pause"), paused.clone());
        let written = self.on_disk(move || records::write(&dir, &name, &record)).await;
        if let Ok(Err(error)) = written {
            tracing::error!(transfer = %id, %error, "a pause is not on disk");
        }
        tracing::info!(transfer = %id, "transfer paused");
        self.board.set(id, paused);
        self.changed.notify_one();
    }

    /// Says what a transfer waits for.
    pub(super) fn waits(&self, id: &TransferId, why: &str) {
        if let Some(mut waiting) = self.board.get(id) {
            waiting.state = TransferState::Waiting.into();
            waiting.error = why.to_owned();
            self.board.set(*id, waiting);
            self.changed.notify_one();
        }
    }
}
