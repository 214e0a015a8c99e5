//! Whom to be connected with: the plan's parents and neighbours, and who came by itself.

use super::super::download::PeerKey;
use crate::core::plan::{HostPlan, Member, NEIGHBOURS_MAX};
use std::collections::BTreeMap;

/// First pause before a connection is tried again; doubles up to [`RETRY_MS_MAX`].
pub const RETRY_MS: u64 = 100;

/// Longest pause between two tries.
pub const RETRY_MS_MAX: u64 = 5_000;

/// Of two neighbours the one with the higher number gives the other this long to open the
/// connection.
pub const YIELD_MS: u64 = 200;

/// Beside parents neighbours are called one after the other, so long after each other: they are
/// for repair, and twenty handshakes at once take the link and the processor from the first bytes.
pub const NEIGHBOUR_EVERY_MS: u64 = 50;

#[derive(Debug)]
pub(super) struct Contact {
    pub is_parent: bool,
    pub is_neighbour: bool,
    /// Beyond the border of the region.
    pub is_far: bool,
    pub is_banned: bool,
    pub link: Option<PeerKey>,
    connecting: bool,
    retry_at_ms: u64,
    failures: u32,
    /// Since when it is a parent and not heard of.
    pub since_ms: u64,
}

/// Members by number. Bounded: those of the plan, those connected, those banned.
#[derive(Debug, Default)]
pub(super) struct Contacts {
    all: BTreeMap<Member, Contact>,
    /// When the next connection is due: asked after every message, and changed by few.
    due_ms: Option<u64>,
}

impl Contacts {
    pub fn set(&mut self, me: Member, plan: &HostPlan, now_ms: u64) {
        for contact in self.all.values_mut() {
            (contact.is_parent, contact.is_neighbour, contact.is_far) = (false, false, false);
        }
        let neighbours = plan.neighbours.iter().take(NEIGHBOURS_MAX);
        let neighbours = neighbours.map(|member| (*member, false));
        let parents = plan.parents.iter().flatten().map(|member| (*member, true));
        let every_ms = if plan.parents.is_empty() { 0 } else { NEIGHBOUR_EVERY_MS };
        let mut turn_ms = now_ms;
        for (member, is_parent) in neighbours.chain(parents).filter(|(member, _)| *member != me) {
            let is_new = !self.all.contains_key(&member);
            let contact = self.entry(member, now_ms);
            if is_new && !is_parent {
                turn_ms += every_ms;
                contact.retry_at_ms = turn_ms + if member < me { YIELD_MS } else { 0 };
            }
            if is_parent {
                contact.is_parent = true;
                contact.since_ms = now_ms;
                contact.retry_at_ms = contact.retry_at_ms.min(now_ms);
            } else {
                contact.is_neighbour = true;
                contact.is_far = plan.far.contains(&member);
            }
        }
        self.prune();
        self.note_due();
    }

    fn entry(&mut self, member: Member, now_ms: u64) -> &mut Contact {
        self.all.entry(member).or_insert(Contact {
            is_parent: false,
            is_neighbour: false,
            is_far: false,
            is_banned: false,
            link: None,
            connecting: false,
            retry_at_ms: now_ms,
            failures: 0,
            since_ms: now_ms,
        })
    }

    fn prune(&mut self) {
        self.all.retain(|_, contact| {
            contact.is_parent || contact.is_neighbour || contact.is_banned || contact.link.is_some()
        });
    }

    pub fn get(&self, member: Member) -> Option<&Contact> {
        self.all.get(&member)
    }

    pub fn linked(&mut self, member: Member, key: PeerKey, now_ms: u64) {
        let contact = self.entry(member, now_ms);
        contact.link = Some(key);
        contact.connecting = false;
        self.note_due();
    }

    /// The connection with `member` ended or never came. `worked`: it was of use, so that the next
    /// try may be soon.
    pub fn lost(&mut self, member: Member, worked: bool, now_ms: u64) {
        if let Some(contact) = self.all.get_mut(&member) {
            contact.failures = if worked { 0 } else { contact.failures.saturating_add(1) };
            let pause = RETRY_MS << contact.failures.min(8);
            contact.retry_at_ms = now_ms + pause.min(RETRY_MS_MAX);
            (contact.link, contact.connecting, contact.since_ms) = (None, false, now_ms);
        }
        self.prune();
        self.note_due();
    }

    pub fn ban(&mut self, member: Member, now_ms: u64) {
        self.entry(member, now_ms).is_banned = true;
        self.note_due();
    }

    pub fn banned(&self) -> Vec<Member> {
        let banned = self.all.iter().filter(|(_, contact)| contact.is_banned);
        banned.map(|(member, _)| *member).collect()
    }

    fn wanted(&self) -> impl Iterator<Item = (Member, &Contact)> {
        let wanted = self.all.iter().filter(|(_, contact)| {
            let idle = contact.link.is_none() && !contact.connecting && !contact.is_banned;
            idle && (contact.is_parent || contact.is_neighbour)
        });
        wanted.map(|(member, contact)| (*member, contact))
    }

    /// The members to connect to now, which count as being connected to.
    pub fn due(&mut self, now_ms: u64) -> Vec<Member> {
        if self.due_ms.is_none_or(|at| at > now_ms) {
            return vec![];
        }
        let due = self.wanted().filter(|(_, contact)| contact.retry_at_ms <= now_ms);
        let due: Vec<Member> = due.map(|(member, _)| member).collect();
        for member in &due {
            if let Some(contact) = self.all.get_mut(member) {
                contact.connecting = true;
            }
        }
        self.note_due();
        due
    }

    /// A parent fails: no neighbour waits for its turn any more.
    pub fn hurry(&mut self, now_ms: u64) {
        for contact in self.all.values_mut().filter(|contact| contact.failures == 0) {
            contact.retry_at_ms = contact.retry_at_ms.min(now_ms);
        }
        self.note_due();
    }

    fn note_due(&mut self) {
        self.due_ms = self.wanted().map(|(_, contact)| contact.retry_at_ms).min();
    }

    pub fn deadline_ms(&self) -> Option<u64> {
        self.due_ms
    }

    /// Parents that are not connected, and since when.
    pub fn absent_parents(&self) -> impl Iterator<Item = (Member, u64)> + '_ {
        let absent =
            self.all.iter().filter(|(_, contact)| contact.is_parent && contact.link.is_none());
        absent.map(|(member, contact)| (*member, contact.since_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_called_at_once_and_lower_neighbours_are_given_time() {
        let mut contacts = Contacts::default();
        let plan = HostPlan {
            number: 1,
            parents: vec![Some(1), Some(5)],
            neighbours: vec![2, 7, 5],
            far: vec![],
        };
        contacts.set(5, &plan, 1_000);
        assert_eq!(contacts.due(1_000), [1], "neighbours one after the other");
        let turns = [1_000 + NEIGHBOUR_EVERY_MS, 1_000 + 2 * NEIGHBOUR_EVERY_MS];
        assert_eq!((contacts.due(1_000), contacts.deadline_ms()), (vec![], Some(turns[1])));
        assert_eq!((contacts.due(turns[1]), contacts.due(turns[1])), (vec![7], vec![]));
        assert_eq!(contacts.deadline_ms(), Some(turns[0] + YIELD_MS));
        assert_eq!(contacts.due(turns[0] + YIELD_MS), [2]);
        contacts.linked(1, 10, 1_500);
        contacts.lost(7, false, 1_500);
        assert_eq!((contacts.due(1_699), contacts.due(1_700)), (vec![], vec![7]));
        for _ in 0..100 {
            contacts.lost(7, false, 2_000);
        }
        assert_eq!(contacts.deadline_ms(), Some(2_000 + RETRY_MS_MAX));
        contacts.ban(7, 2_000);
        assert_eq!((contacts.deadline_ms(), contacts.banned()), (None, vec![7]));
        let mesh = HostPlan { number: 2, parents: vec![], neighbours: vec![8, 9], far: vec![] };
        contacts.set(5, &mesh, 3_000);
        assert_eq!(contacts.due(3_000), [8, 9], "without parents at once");
        let plan =
            HostPlan { number: 3, parents: vec![Some(1)], neighbours: vec![3, 10], far: vec![] };
        contacts.set(5, &plan, 4_000);
        assert_eq!(contacts.due(4_000), []);
        contacts.hurry(4_000);
        assert_eq!(contacts.due(4_000), [3, 10], "a parent failed");
        contacts.set(5, &HostPlan::default(), 5_000);
        assert!(contacts.get(2).is_none() && contacts.get(1).is_some(), "1 is still connected");
    }
}
