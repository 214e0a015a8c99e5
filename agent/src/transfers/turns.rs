//! Who may begin on this agent: a turn by priority and age, and room on the target's file system
//! that was not promised to others.
//!
//! ```text
//!   line_up ─► place ─► turn (priority, then age) ─► reserve ─► Turn: runs until it is dropped
//!                ▲                                      │
//!                └──── others were promised the room ───┘   waits until one of them has ended
//! ```
//! A transfer that waits for room lets others pass; one that can never fit ends with that reason.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use skein_filemesh::core::turns::{Busy, Priority, Turns};
use skein_filemesh::engine::reserve::{Reservations, ReserveError, Room, Ticket};
use tokio::sync::Notify;

/// Room is looked for again after this time, should others than transfers have made some.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// In which order those that wait begin.
type Rank = (Reverse<Priority>, u64);

/// The turns of this agent.
pub(super) struct Line {
    state: RefCell<State>,
    changed: Notify,
    most: usize,
}

struct State {
    turns: Turns,
    account: Reservations,
    waiting: BTreeMap<Rank, Stands>,
    next: u64,
}

/// What one that lined up does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stands {
    /// It wants a turn.
    Ready,
    /// Others were promised the room that it needs.
    WaitsForRoom,
    /// It has a turn and looks for room.
    Looks,
}

/// A place in the line; left when dropped.
pub(super) struct Place<'a> {
    line: &'a Line,
    rank: Rank,
}

/// A turn and, once reserved, room; both given back when dropped.
pub(super) struct Turn<'a> {
    line: &'a Line,
    priority: Priority,
    /// And the bytes that it promises.
    ticket: Option<(Ticket, u64)>,
}

impl Line {
    /// A line for `most` transfers at a time, at least one.
    pub fn new(most: usize) -> Self {
        let most = most.max(1);
        let account = Reservations::new(most);
        let (turns, waiting) = (Turns::default(), BTreeMap::new());
        let state = State { turns, account, waiting, next: 0 };
        Self { state: RefCell::new(state), changed: Notify::new(), most }
    }

    /// Takes a place behind those of the same priority.
    pub fn line_up(&self, priority: Priority) -> Place<'_> {
        let mut state = self.state.borrow_mut();
        let rank = (Reverse(priority), state.next);
        state.next += 1;
        state.waiting.insert(rank, Stands::Ready);
        Place { line: self, rank }
    }
}

impl<'a> Place<'a> {
    fn priority(&self) -> Priority {
        self.rank.0.0
    }

    /// Why it would have to wait now, if it would.
    pub fn waits(&self) -> Option<Busy> {
        let state = self.line.state.borrow();
        state.turns.ask(self.priority(), self.line.most).err()
    }

    /// Waits for a turn.
    pub async fn turn(&self) -> Turn<'a> {
        loop {
            let changed = self.line.changed.notified();
            if let Some(turn) = self.try_turn() {
                return turn;
            }
            if tokio::time::timeout(LOOK_AGAIN, changed).await.is_err() {
                self.stand(Stands::Ready);
            }
        }
    }

    /// It is the first of those that may go.
    fn try_turn(&self) -> Option<Turn<'a>> {
        let mut state = self.line.state.borrow_mut();
        let may = |(rank, stands): (&Rank, &Stands)| {
            *stands == Stands::Ready && state.turns.ask(rank.0.0, self.line.most).is_ok()
        };
        let first = state.waiting.iter().find(|entry| may(*entry)).map(|(rank, _)| *rank)?;
        if first != self.rank {
            return None;
        }
        state.turns.take(self.priority());
        state.waiting.insert(self.rank, Stands::Looks);
        drop(state);
        // There may be a turn for the next one too.
        self.line.changed.notify_waiters();
        Some(Turn { line: self.line, priority: self.priority(), ticket: None })
    }

    /// Waits for others to end before it wants a turn again.
    pub fn wait_for_room(&self) {
        self.stand(Stands::WaitsForRoom);
    }

    fn stand(&self, stands: Stands) {
        self.line.state.borrow_mut().waiting.insert(self.rank, stands);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.line.state.borrow_mut().waiting.remove(&self.rank);
        self.line.changed.notify_waiters();
    }
}

impl Turn<'_> {
    /// Takes room, or says why there is none: [`ReserveError::Promised`] is worth waiting for.
    pub fn reserve(&mut self, room: &Room) -> Result<(), ReserveError> {
        let Room { device, needed_bytes, free_bytes, kept_bytes } = *room;
        let account = &mut self.line.state.borrow_mut().account;
        let ticket = account.reserve(device, needed_bytes, free_bytes, kept_bytes)?;
        self.ticket = Some((ticket, needed_bytes));
        Ok(())
    }

    /// Bytes that are promised.
    pub fn promised(&self) -> Option<u64> {
        self.ticket.map(|(_, bytes)| bytes)
    }

    /// So much of the room is allocated: the file system itself counts it now.
    pub fn used(&self, bytes: u64) {
        if let Some((ticket, _)) = self.ticket {
            self.line.state.borrow_mut().account.used(ticket, bytes);
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        {
            let mut state = self.line.state.borrow_mut();
            state.turns.give_back(self.priority);
            // A turn without room says nothing new to those that wait for room.
            if let Some((ticket, _)) = self.ticket {
                state.account.release(ticket);
                for stands in state.waiting.values_mut() {
                    if *stands == Stands::WaitsForRoom {
                        *stands = Stands::Ready;
                    }
                }
            }
        }
        self.line.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    fn room(needed_bytes: u64) -> Room {
        Room { device: 1, needed_bytes, free_bytes: 100, kept_bytes: 10 }
    }

    /// The next that begins, by what it was called.
    async fn first<'a>(
        places: &'a [(&'static str, Place<'a>)],
    ) -> Option<(&'static str, Turn<'a>)> {
        places.iter().find_map(|(name, place)| Some((*name, place.try_turn()?)))
    }

    #[tokio::test]
    async fn the_urgent_begin_first_and_the_old_before_the_new() {
        let line = Line::new(1);
        let running = line.line_up(Priority::Normal);
        let turn = running.turn().await;
        drop(running);
        let mut places = vec![
            ("low", line.line_up(Priority::Low)),
            ("old", line.line_up(Priority::Normal)),
            ("new", line.line_up(Priority::Normal)),
            ("high", line.line_up(Priority::High)),
        ];
        assert_eq!(places[3].1.waits(), Some(Busy::All { taken: 1, most: 1 }));
        assert!(first(&places).await.is_none());
        drop(turn);
        let mut order = vec![];
        while !places.is_empty() {
            let name = first(&places).await.map(|(name, _)| name).expect("one may go");
            order.push(name);
            places.retain(|(other, _)| *other != name);
        }
        assert_eq!(order, ["high", "old", "new", "low"]);
    }

    #[tokio::test]
    async fn what_waits_for_room_lets_others_pass_and_goes_on_when_one_ends() {
        let line = Rc::new(Line::new(4));
        let first = line.line_up(Priority::Normal);
        let mut holder = first.turn().await;
        holder.reserve(&room(80)).unwrap();
        let second = line.line_up(Priority::Normal);
        let mut turn = second.turn().await;
        let promised = turn.reserve(&room(20)).unwrap_err();
        assert_eq!(promised, ReserveError::Promised { needed_bytes: 20, promised_bytes: 80 });
        drop(turn);
        second.wait_for_room();
        // A smaller one that comes later goes past it, and its look for room wakes nobody.
        let third = line.line_up(Priority::Normal);
        let mut small = third.turn().await;
        small.reserve(&room(5)).unwrap();
        drop(third.line.line_up(Priority::Normal).turn().await);
        assert!(second.try_turn().is_none());
        // What is allocated is not promised any more, but only an end makes it look again.
        holder.used(80);
        drop(holder);
        let mut turn = second.turn().await;
        assert_eq!(turn.reserve(&room(20)), Ok(()));
        // What never fits says so.
        let last = line.line_up(Priority::Normal);
        let never = last.turn().await.reserve(&room(91));
        assert!(matches!(never, Err(ReserveError::NoSpace { .. })), "{never:?}");
    }

    #[tokio::test]
    async fn who_leaves_the_line_holds_nobody_up() {
        let line = Line::new(1);
        let gone = line.line_up(Priority::High);
        let stays = line.line_up(Priority::Low);
        assert!(stays.try_turn().is_none(), "the other comes first");
        drop(gone);
        assert!(stays.try_turn().is_some());
    }
}
