//! Connections come and go, plans change.

use super::super::download::PeerKey;
use super::super::link::{Have, PeerLink};
use super::super::peer_wire::Handshake;
use super::extension::Take;
use super::{Action, CloseReason, Peer, Swarm};
use crate::core::plan::{HostPlan, Member};

/// How a connection came to be. The caller knows from control's signed list and the peer's
/// certificate which member is at its other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dial {
    /// This side opened it.
    Opened,
    /// The peer opened it with this handshake, which the caller read off the stream.
    Accepted(Handshake),
    /// The caller has exchanged the handshakes: the next bytes in either direction are messages.
    Shaken {
        /// Whether this side opened it.
        opened: bool,
        /// What the peer said.
        theirs: Handshake,
    },
}

impl Swarm {
    /// Follows `plan` from now on, unless it is older than the current one.
    pub fn set_plan(&mut self, plan: HostPlan, now_ms: u64, actions: &mut Vec<Action>) {
        if plan.number <= self.schedule.plan().number {
            return;
        }
        self.contacts.set(self.me, &plan, now_ms);
        let verified = self.content.download.as_ref().map(|download| download.verified());
        self.schedule.set(plan, verified);
        let wants = !self.content.is_complete();
        let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
        for key in keys {
            let Some(peer) = self.peers.get_mut(&key) else { continue };
            let member = peer.member;
            let plan = self.schedule.plan();
            peer.tell(if wants { Take::of(plan, member) } else { Take::default() });
            peer.mesh_piece = None;
            // What another is to send now, and what a late peer still owes, is asked for anew.
            let is_late = peer.late_since_ms.is_some();
            let moved = peer.cancellable(|range| {
                let promised = plan.parent_of(range.piece) == Some(member);
                is_late || !(promised || peer.link.have().has(range.piece))
            });
            if plan.parents.contains(&Some(member)) {
                (peer.late_since_ms, peer.progress_ms) = (None, now_ms);
            }
            moved.into_iter().for_each(|range| self.take_back(key, range));
            self.ready.insert(key);
        }
        self.close_unneeded(now_ms, actions);
        self.advance_all(now_ms);
        self.dial(now_ms, actions);
    }

    fn close_unneeded(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        let unneeded = self.peers.iter().filter(|(_, peer)| {
            let planned = self.contacts.get(peer.member);
            let planned = planned.is_some_and(|contact| contact.is_parent || contact.is_neighbour);
            let busy = peer.owes() || peer.uploads.held() > 0 || peer.takes.mask != 0;
            peer.opened && !planned && !busy
        });
        let unneeded: Vec<PeerKey> = unneeded.map(|(key, _)| *key).collect();
        for key in unneeded {
            self.close(key, CloseReason::Unneeded, now_ms, actions);
        }
    }

    /// Asks for connections that are due.
    pub(super) fn dial(&mut self, now_ms: u64, actions: &mut Vec<Action>) {
        actions.extend(self.contacts.due(now_ms).into_iter().map(Action::Connect));
    }

    /// A connection with `member` is there under a `key` that no other connection has. It may be
    /// closed at once by an action.
    pub fn connected(
        &mut self,
        key: PeerKey,
        member: Member,
        dial: Dial,
        now_ms: u64,
        actions: &mut Vec<Action>,
    ) {
        let opened = matches!(dial, Dial::Opened | Dial::Shaken { opened: true, .. });
        let have = self.content.have();
        let (geometry, ours) = (self.content.geometry, self.config.handshake);
        let link = match dial {
            Dial::Opened => Ok(PeerLink::connect(geometry, ours, &have, now_ms)),
            Dial::Accepted(theirs) => PeerLink::accept(geometry, ours, &theirs, &have, now_ms),
            Dial::Shaken { theirs, .. } => PeerLink::shaken(geometry, ours, &theirs, &have, now_ms),
        };
        let refusal = self.refuse(member, opened, now_ms, actions);
        let link = match (link, refusal) {
            (Ok(link), None) => link,
            (Err(error), None) => {
                actions.push(Action::Close { key, member, why: error.into() });
                return self.connect_failed(member, now_ms);
            }
            (_, Some(why)) => {
                actions.push(Action::Close { key, member, why });
                return self.connect_failed(member, now_ms);
            }
        };
        let wants = !self.content.is_complete();
        let peer = Peer::new(member, opened, link, self.gained.len(), wants, now_ms);
        self.peers.insert(key, peer);
        self.contacts.linked(member, key, now_ms);
        self.ready.insert(key);
    }

    /// Why a connection with `member` is not wanted. Of two connections of one pair both sides
    /// keep the one that the member with the lower number opened.
    fn refuse(
        &mut self,
        member: Member,
        opened: bool,
        now_ms: u64,
        actions: &mut Vec<Action>,
    ) -> Option<CloseReason> {
        let contact = self.contacts.get(member);
        if member == self.me || contact.is_some_and(|contact| contact.is_banned) {
            return Some(CloseReason::Banned);
        }
        let Some(other) = contact.and_then(|contact| contact.link) else {
            let full = self.peers.len() >= self.config.links_max;
            return full.then_some(CloseReason::Crowded);
        };
        let keeps_new = opened == (self.me < member);
        let other_opened = self.peers.get(&other).is_some_and(|peer| peer.opened);
        // A peer that comes twice from the same side lost its first connection.
        if keeps_new || (!opened && !other_opened) {
            self.close(other, CloseReason::Duplicate, now_ms, actions);
            return None;
        }
        Some(CloseReason::Duplicate)
    }

    /// [`Action::Connect`] came to nothing; it comes again.
    pub fn connect_failed(&mut self, member: Member, now_ms: u64) {
        if self.contacts.get(member).is_some_and(|contact| contact.link.is_none()) {
            self.contacts.lost(member, false, now_ms);
        }
    }

    /// The connection is gone. What it owed is asked of others.
    pub fn disconnected(&mut self, key: PeerKey, now_ms: u64) {
        self.forget(key, now_ms);
        self.advance_all(now_ms);
    }

    pub(super) fn close(
        &mut self,
        key: PeerKey,
        why: CloseReason,
        now_ms: u64,
        actions: &mut Vec<Action>,
    ) {
        let Some(member) = self.forget(key, now_ms) else { return };
        if why.is_lie() {
            self.contacts.ban(member, now_ms);
            self.mark_late(member, now_ms, actions);
            self.schedule.set_lost(member);
        }
        actions.push(Action::Close { key, member, why });
    }

    /// Drops the peer and takes back all that it owes.
    fn forget(&mut self, key: PeerKey, now_ms: u64) -> Option<Member> {
        let peer = self.peers.remove(&key)?;
        self.ready.remove(&key);
        let owned: Vec<_> = peer.link.owned().collect();
        for range in owned {
            self.release(range);
        }
        self.forget_hashes(key);
        self.doubled.retain(|doubled| !doubled.peers.contains(&key));
        if let Have::Some(pieces) = peer.link.have()
            && peer.link.is_open()
        {
            for piece in pieces.ranges().flatten() {
                self.copies[piece as usize] = self.copies[piece as usize].saturating_sub(1);
            }
        }
        let contact = self.contacts.get(peer.member);
        if contact.is_some_and(|contact| contact.link == Some(key)) {
            self.contacts.lost(peer.member, peer.was_useful, now_ms);
        }
        self.kick = true;
        Some(peer.member)
    }

    /// Others may be asked for the hashes that `key` was asked for.
    pub(super) fn forget_hashes(&mut self, key: PeerKey) {
        self.leaves_asked.retain(|_, asked| *asked != key);
        for asked in self.layer_asked.iter_mut().filter(|asked| **asked == Some(key)) {
            *asked = None;
        }
    }
}
