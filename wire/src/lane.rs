//! The two ends of a lane: what was sent, received, stored and acknowledged.
//!
//! A lane is one data id of one agent. Its records are numbered within an epoch; batches are sent
//! in order and are never cut or merged again, so a batch is either new, wholly known, or a fault.
//!
//! ```text
//! agent   acked ≤ next_to_send                 server   stored ≤ received
//!         └ kept in the spool until here                └ kept in memory until stored
//! ```
//! The agent keeps everything after `acked`. The server answers LANE_OPEN with the position it has
//! *received*, so that a reconnect to a living server repeats nothing, and acknowledges only what
//! is *stored*, so that its death loses nothing.

use std::collections::VecDeque;

use crate::batch::{BatchHeader, FLAG_GAP_BEFORE};
use crate::data::{Ack, Credit, Hold, HoldReason, LaneOpen, LaneReady};
use crate::ids::{DataId, Epoch, Sequence};

/// The agent's end of a lane.
#[derive(Debug, Clone)]
pub struct LaneSender {
    data_id: DataId,
    epoch: Epoch,
    acked: Sequence,
    next_to_send: Sequence,
    /// Position after the newest record that the server can know of: named in LANE_OPEN or sent.
    told: Sequence,
    link: SenderLink,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SenderLink {
    Down,
    Opening,
    Held(HoldReason),
    Ready { sent_bytes: u64, limit_bytes: u64 },
}

impl LaneSender {
    /// A lane whose records before `acked` are acknowledged.
    pub fn new(data_id: DataId, epoch: Epoch, acked: Sequence) -> Self {
        Self { data_id, epoch, acked, next_to_send: acked, told: acked, link: SenderLink::Down }
    }

    /// A connection is up: what to say first. `first` is the oldest record held, `next` the
    /// position after the newest.
    pub fn connected(&mut self, first: Sequence, next: Sequence) -> LaneOpen {
        self.link = SenderLink::Opening;
        self.next_to_send = first;
        self.told = self.told.max(next);
        LaneOpen { data_id: self.data_id, epoch: self.epoch, first, next }
    }

    /// The connection is gone; what was not acknowledged will be sent again.
    pub fn disconnected(&mut self) {
        self.link = SenderLink::Down;
        self.next_to_send = self.acked;
    }

    /// The lane starts again without its past, after [`HoldReason::StaleEpoch`] or a lost spool.
    pub fn restart(&mut self, epoch: Epoch, first: Sequence) {
        *self = Self::new(self.data_id, epoch, first);
    }

    /// The server is ready for this lane. It cannot have received what it was never told of: such a
    /// position would leave a hole that nobody sends, and let an ACK drop it from the spool.
    pub fn on_ready(&mut self, ready: &LaneReady) {
        if ready.epoch != self.epoch || self.link == SenderLink::Down {
            return;
        }
        self.link = SenderLink::Ready { sent_bytes: 0, limit_bytes: ready.credit_bytes };
        self.next_to_send = ready.resume.min(self.told).max(self.acked);
    }

    /// Records are stored: the new acknowledged position, when it moved.
    pub fn on_ack(&mut self, ack: &Ack) -> Option<Sequence> {
        let known = ack.epoch == self.epoch && ack.next <= self.next_to_send;
        if !known || ack.next <= self.acked {
            return None;
        }
        self.acked = ack.next;
        Some(self.acked)
    }

    /// The server raised the limit.
    pub fn on_credit(&mut self, credit: &Credit) {
        if let SenderLink::Ready { limit_bytes, .. } = &mut self.link {
            *limit_bytes = credit.limit_bytes.max(*limit_bytes);
        }
    }

    /// The server wants nothing of this lane now. What it received stays received.
    pub fn on_hold(&mut self, hold: &Hold) {
        if self.link != SenderLink::Down {
            self.link = SenderLink::Held(hold.reason);
        }
    }

    /// Whether a batch that takes `wire_bytes` may be sent now.
    pub fn may_send(&self, wire_bytes: u64) -> bool {
        match self.link {
            SenderLink::Ready { sent_bytes, limit_bytes } => {
                sent_bytes.saturating_add(wire_bytes) <= limit_bytes
            }
            _ => false,
        }
    }

    /// A batch was handed to the connection.
    pub fn sent(&mut self, header: &BatchHeader) {
        debug_assert!(header.first >= self.next_to_send, "batches are sent in order");
        self.next_to_send = header.end();
        self.told = self.told.max(self.next_to_send);
        if let SenderLink::Ready { sent_bytes, .. } = &mut self.link {
            *sent_bytes += header.wire_bytes();
        }
    }

    /// The oldest records were dropped from the spool: nothing before `first` can be sent.
    pub fn dropped_before(&mut self, first: Sequence) {
        self.acked = self.acked.max(first);
        self.next_to_send = self.next_to_send.max(first);
    }

    /// The lane's data id.
    pub fn data_id(&self) -> DataId {
        self.data_id
    }

    /// The lane's epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Everything before is acknowledged.
    pub fn acked(&self) -> Sequence {
        self.acked
    }

    /// The first record of the next batch to send.
    pub fn next_to_send(&self) -> Sequence {
        self.next_to_send
    }

    /// Why the lane waits, when the server holds it.
    pub fn held(&self) -> Option<HoldReason> {
        match self.link {
            SenderLink::Held(reason) => Some(reason),
            _ => None,
        }
    }

    /// Whether LANE_READY came on this connection and no HOLD since.
    pub fn is_ready(&self) -> bool {
        matches!(self.link, SenderLink::Ready { .. })
    }
}

/// The server's end of a lane.
#[derive(Debug, Clone)]
pub struct LaneReceiver {
    data_id: DataId,
    window_bytes: u64,
    epoch: Option<Epoch>,
    received: Sequence,
    stored: Sequence,
    /// Position of the last ACK on this connection.
    acked: Option<Sequence>,
    /// Batches received and not stored: (end, bytes), oldest first. Their bytes are at most
    /// `window_bytes`.
    in_flight: VecDeque<(Sequence, u64)>,
    in_flight_bytes: u64,
    /// Bytes since the last LANE_READY, and what it and CREDITs since granted.
    ready_bytes: u64,
    limit_bytes: u64,
    /// A HOLD ended and the batch that is due has not come yet.
    resuming: bool,
}

/// Answer to a LANE_OPEN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// Send the LANE_READY.
    Ready {
        /// What to answer.
        ready: LaneReady,
        /// Records of this epoch that the agent no longer holds and that never came.
        missing: u64,
    },
    /// The server knows a newer life of the lane, or more of this one than the agent does: send
    /// HOLD with [`HoldReason::StaleEpoch`].
    Stale,
}

/// What to do with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// New: store it.
    Accept {
        /// Records before it that the agent dropped and said so.
        missing: u64,
    },
    /// Known: count it and throw it away.
    Duplicate,
    /// On its way when the lane was held: throw it away, it will be sent again.
    Stray,
    /// The agent breaks the protocol: close the connection.
    Violation(Violation),
}

/// How an agent breaks a lane's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// No LANE_OPEN came, or for another epoch.
    #[error("batch of a lane or epoch that is not open")]
    NotOpen,
    /// Records are missing and the batch does not say so.
    #[error("batch starts at {first} where {expected} was expected, without a gap mark")]
    Gap {
        /// What came.
        first: u64,
        /// What was due.
        expected: u64,
    },
    /// A batch that is partly known: batches are never cut.
    #[error("batch starts at {first}, before {expected}, and ends after it")]
    Overlap {
        /// What came.
        first: u64,
        /// What was due.
        expected: u64,
    },
    /// More bytes than were granted.
    #[error("lane sent {bytes} bytes where {limit} were granted")]
    Credit {
        /// In all on this connection.
        bytes: u64,
        /// The grant.
        limit: u64,
    },
}

impl LaneReceiver {
    /// A lane of which `stored` is known, for instance from a checkpoint, with at most
    /// `window_bytes` of batches in memory.
    pub fn new(data_id: DataId, window_bytes: u64, stored: Option<(Epoch, Sequence)>) -> Self {
        let position = stored.map_or(Sequence::ZERO, |(_, position)| position);
        Self {
            data_id,
            window_bytes,
            epoch: stored.map(|(epoch, _)| epoch),
            received: position,
            stored: position,
            acked: None,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            ready_bytes: 0,
            limit_bytes: 0,
            resuming: false,
        }
    }

    /// The lane is opened on a new connection.
    pub fn open(&mut self, open: &LaneOpen) -> Opened {
        let mut missing = 0;
        match self.epoch {
            Some(known) if open.epoch < known => return Opened::Stale,
            Some(known) if open.epoch == known => {
                if open.next < self.received {
                    return Opened::Stale;
                }
                missing = open.first.0.saturating_sub(self.received.0);
            }
            _ => {
                // A new life. What is in flight of the old one is still stored, under its own
                // positions, but no longer acknowledged: the agent has forgotten it.
                self.epoch = Some(open.epoch);
                self.received = open.first;
                self.stored = open.first;
                self.in_flight.clear();
                self.in_flight_bytes = 0;
            }
        }
        if missing > 0 {
            self.received = open.first;
            if self.in_flight.is_empty() {
                self.stored = open.first;
            }
        }
        self.acked = None;
        self.resuming = false;
        Opened::Ready { ready: self.ready(open.epoch), missing }
    }

    /// A LANE_READY for an open lane, after a HOLD.
    pub fn resume(&mut self) -> Option<LaneReady> {
        let epoch = self.epoch?;
        self.resuming = true;
        Some(self.ready(epoch))
    }

    fn ready(&mut self, epoch: Epoch) -> LaneReady {
        self.ready_bytes = 0;
        self.limit_bytes = self.limit();
        LaneReady {
            data_id: self.data_id,
            epoch,
            resume: self.received,
            credit_bytes: self.limit_bytes,
        }
    }

    /// Judges a batch. After [`Offer::Accept`] the batch counts as received.
    pub fn offer(&mut self, header: &BatchHeader) -> Offer {
        if self.epoch != Some(header.epoch) {
            return Offer::Violation(Violation::NotOpen);
        }
        let (first, expected) = (header.first.0, self.received.0);
        if self.resuming && first != expected && header.flags & FLAG_GAP_BEFORE == 0 {
            return Offer::Stray;
        }
        self.resuming = false;
        let bytes = self.ready_bytes + header.wire_bytes();
        if bytes > self.limit_bytes {
            let limit = self.limit_bytes;
            return Offer::Violation(Violation::Credit { bytes, limit });
        }
        self.ready_bytes = bytes;
        if header.end() <= self.received {
            return Offer::Duplicate;
        }
        if first < expected {
            return Offer::Violation(Violation::Overlap { first, expected });
        }
        if first > expected && header.flags & FLAG_GAP_BEFORE == 0 {
            return Offer::Violation(Violation::Gap { first, expected });
        }
        self.received = header.end();
        self.in_flight.push_back((header.end(), header.wire_bytes()));
        self.in_flight_bytes += header.wire_bytes();
        Offer::Accept { missing: first - expected }
    }

    /// What was received after `position` and not stored is gone with its sink; the agent sends it
    /// again after the LANE_READY of [`LaneReceiver::resume`].
    pub fn rewind(&mut self, position: Sequence) {
        self.received = self.received.min(position).max(self.stored);
        self.in_flight.clear();
        self.in_flight_bytes = 0;
    }

    /// Everything before `position` of `epoch` is stored in all sinks.
    pub fn stored(&mut self, epoch: Epoch, position: Sequence) {
        if self.epoch != Some(epoch) || position <= self.stored {
            return;
        }
        self.stored = position.min(self.received);
        while let Some((_, bytes)) = self.in_flight.pop_front_if(|(end, _)| *end <= position) {
            self.in_flight_bytes -= bytes;
        }
        if self.in_flight.is_empty() {
            self.stored = self.received;
        }
    }

    /// The ACK to send, when something was stored since the last one of this connection.
    pub fn take_ack(&mut self) -> Option<Ack> {
        let epoch = self.epoch?;
        if self.acked.is_some_and(|acked| acked >= self.stored) {
            return None;
        }
        self.acked = Some(self.stored);
        Some(Ack { data_id: self.data_id, epoch, next: self.stored })
    }

    /// The CREDIT to send, when at least a quarter of the window became free since the last.
    pub fn take_credit(&mut self) -> Option<Credit> {
        let limit_bytes = self.limit();
        if limit_bytes < self.limit_bytes.saturating_add(self.window_bytes / 4) {
            return None;
        }
        self.limit_bytes = limit_bytes;
        Some(Credit { data_id: self.data_id, limit_bytes })
    }

    fn limit(&self) -> u64 {
        let free = self.window_bytes.saturating_sub(self.in_flight_bytes);
        self.ready_bytes.saturating_add(free)
    }

    /// The lane's epoch, once known.
    pub fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// Everything before was received in this epoch.
    pub fn position_received(&self) -> Sequence {
        self.received
    }

    /// Everything before is stored in this epoch.
    pub fn position_stored(&self) -> Sequence {
        self.stored
    }

    /// Bytes of batches received and not stored.
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::Codec;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const WINDOW: u64 = 1000;
    const EPOCH: Epoch = Epoch(5);

    fn batch(first: u64, records: u32, flags: u8) -> BatchHeader {
        BatchHeader {
            codec: Codec::None,
            flags,
            data_id: DataId(1),
            record_count: records,
            body_bytes: 36,
            raw_bytes: 36,
            epoch: EPOCH,
            first: Sequence(first),
            base_timestamp_ms: 0,
            max_timestamp_ms: 0,
            body_crc: 0,
        }
    }

    fn open(first: u64, next: u64) -> LaneOpen {
        LaneOpen { data_id: DataId(1), epoch: EPOCH, first: Sequence(first), next: Sequence(next) }
    }

    fn resume_of(opened: Opened) -> u64 {
        match opened {
            Opened::Ready { ready, .. } => ready.resume.0,
            Opened::Stale => panic!("stale"),
        }
    }

    fn receiver() -> LaneReceiver {
        LaneReceiver::new(DataId(1), WINDOW, None)
    }

    #[test]
    fn a_server_cannot_resume_or_acknowledge_what_it_was_never_told_of() {
        let mut sender = LaneSender::new(DataId(1), EPOCH, Sequence(10));
        sender.connected(Sequence(10), Sequence(20));
        let ready = |resume| LaneReady {
            data_id: DataId(1),
            epoch: EPOCH,
            resume: Sequence(resume),
            credit_bytes: u64::MAX,
        };
        let ack = |next| Ack { data_id: DataId(1), epoch: EPOCH, next: Sequence(next) };
        sender.on_ready(&ready(u64::MAX));
        assert_eq!(sender.next_to_send(), Sequence(20));
        assert_eq!(sender.on_ack(&ack(21)), None);
        // What is sent after LANE_OPEN may be resumed from as well.
        sender.on_ready(&ready(12));
        sender.sent(&batch(12, 18, 0));
        sender.on_ready(&ready(30));
        assert_eq!(sender.next_to_send(), Sequence(30));
        assert_eq!(sender.on_ack(&ack(30)), Some(Sequence(30)));
        assert!(sender.may_send(u64::MAX));
    }

    #[test]
    fn a_reconnect_resumes_after_what_was_received_and_acks_only_what_is_stored() {
        let mut lane = receiver();
        assert_eq!(resume_of(lane.open(&open(0, 30))), 0);
        assert_eq!(lane.offer(&batch(0, 10, 0)), Offer::Accept { missing: 0 });
        assert_eq!(lane.offer(&batch(10, 10, 0)), Offer::Accept { missing: 0 });
        lane.stored(EPOCH, Sequence(10));
        assert_eq!(lane.take_ack().unwrap().next, Sequence(10));
        assert_eq!(lane.take_ack(), None);

        assert_eq!(resume_of(lane.open(&open(10, 30))), 20);
        assert_eq!(lane.take_ack().unwrap().next, Sequence(10));
        assert_eq!(lane.offer(&batch(10, 10, 0)), Offer::Duplicate);
        assert_eq!(lane.offer(&batch(20, 10, 0)), Offer::Accept { missing: 0 });
        lane.stored(EPOCH, Sequence(30));
        assert_eq!(lane.take_ack().unwrap().next, Sequence(30));
    }

    #[test]
    fn a_restarted_server_resumes_from_its_checkpoint() {
        let mut lane = LaneReceiver::new(DataId(1), WINDOW, Some((EPOCH, Sequence(40))));
        assert_eq!(resume_of(lane.open(&open(20, 60))), 40);
        assert_eq!(lane.take_ack().unwrap().next, Sequence(40));
    }

    #[test]
    fn gaps_must_be_admitted() {
        let mut lane = receiver();
        lane.open(&open(0, 100));
        let silent = Violation::Gap { first: 5, expected: 0 };
        assert_eq!(lane.offer(&batch(5, 5, 0)), Offer::Violation(silent));
        assert_eq!(lane.offer(&batch(5, 5, FLAG_GAP_BEFORE)), Offer::Accept { missing: 5 });
        let overlap = Violation::Overlap { first: 9, expected: 10 };
        assert_eq!(lane.offer(&batch(9, 5, 0)), Offer::Violation(overlap));
    }

    #[test]
    fn an_agent_that_lost_its_tail_or_its_epoch_is_stale() {
        let mut lane = LaneReceiver::new(DataId(1), WINDOW, Some((EPOCH, Sequence(40))));
        assert_eq!(lane.open(&open(20, 39)), Opened::Stale);
        let older = LaneOpen { epoch: Epoch(4), ..open(0, 100) };
        assert_eq!(lane.open(&older), Opened::Stale);
        let newer = LaneOpen { epoch: Epoch(6), ..open(0, 3) };
        assert_eq!(resume_of(lane.open(&newer)), 0);
    }

    #[test]
    fn records_dropped_while_away_are_missing_at_open() {
        let mut lane = LaneReceiver::new(DataId(1), WINDOW, Some((EPOCH, Sequence(40))));
        match lane.open(&open(50, 60)) {
            Opened::Ready { ready, missing } => {
                assert_eq!((ready.resume, missing), (Sequence(50), 10));
            }
            Opened::Stale => panic!("stale"),
        }
    }

    #[test]
    fn credit_bounds_what_is_in_memory() {
        let mut lane = receiver();
        lane.open(&open(0, 100));
        for index in 0..10 {
            assert_eq!(lane.offer(&batch(index, 1, 0)), Offer::Accept { missing: 0 });
        }
        let over = Violation::Credit { bytes: 1100, limit: 1000 };
        assert_eq!(lane.offer(&batch(10, 1, 0)), Offer::Violation(over));
        assert_eq!(lane.take_credit(), None);
        lane.stored(EPOCH, Sequence(5));
        assert_eq!(lane.take_credit().unwrap().limit_bytes, 1500);
        assert_eq!(lane.offer(&batch(10, 1, 0)), Offer::Accept { missing: 0 });
        // A new connection starts with what is left of the window.
        match lane.open(&open(5, 100)) {
            Opened::Ready { ready, .. } => assert_eq!(ready.credit_bytes, 400),
            Opened::Stale => panic!("stale"),
        }
    }

    #[test]
    fn what_was_on_its_way_at_a_hold_is_thrown_away_and_sent_again() {
        let mut lane = receiver();
        lane.open(&open(0, 100));
        assert_eq!(lane.offer(&batch(0, 5, 0)), Offer::Accept { missing: 0 });
        // Held: the server drops 5 and 6 unseen. The route comes back while 7 is on its way.
        let ready = lane.resume().unwrap();
        assert_eq!((ready.resume, ready.credit_bytes), (Sequence(5), 900));
        assert_eq!(lane.offer(&batch(7, 1, 0)), Offer::Stray);
        for first in 5..14 {
            assert_eq!(lane.offer(&batch(first, 1, 0)), Offer::Accept { missing: 0 });
        }
        assert_eq!(lane.in_flight_bytes(), WINDOW);
        assert!(matches!(lane.offer(&batch(14, 1, 0)), Offer::Violation(_)));
    }

    #[test]
    fn the_sender_waits_for_ready_and_stays_within_credit() {
        let mut lane = LaneSender::new(DataId(1), EPOCH, Sequence(10));
        assert!(!lane.may_send(1));
        let said = lane.connected(Sequence(10), Sequence(50));
        assert_eq!(said, open(10, 50));
        assert!(!lane.may_send(1));
        lane.on_ready(&LaneReady {
            data_id: DataId(1),
            epoch: EPOCH,
            resume: Sequence(20),
            credit_bytes: 150,
        });
        assert_eq!(lane.next_to_send(), Sequence(20));
        assert!(lane.may_send(100));
        lane.sent(&batch(20, 5, 0));
        assert!(!lane.may_send(100));
        lane.on_credit(&Credit { data_id: DataId(1), limit_bytes: 200 });
        assert!(lane.may_send(100));
        let ack = |next| Ack { data_id: DataId(1), epoch: EPOCH, next: Sequence(next) };
        assert_eq!(lane.on_ack(&ack(25)), Some(Sequence(25)));
        assert_eq!(lane.on_ack(&ack(25)), None);
        assert_eq!(lane.on_ack(&ack(26)), None, "never sent");
        lane.on_hold(&Hold { data_id: DataId(1), reason: HoldReason::Paused });
        assert_eq!((lane.may_send(1), lane.held()), (false, Some(HoldReason::Paused)));
        lane.disconnected();
        assert_eq!((lane.next_to_send(), lane.held()), (Sequence(25), None));
    }

    #[test]
    fn a_hold_forgets_neither_credit_nor_what_must_come_again() {
        let mut sender = LaneSender::new(DataId(1), EPOCH, Sequence(0));
        let mut lane = receiver();
        let said = sender.connected(Sequence(0), Sequence(100));
        let Opened::Ready { ready, .. } = lane.open(&said) else { panic!("stale") };
        sender.on_ready(&ready);
        for first in [0, 10, 20] {
            sender.sent(&batch(first, 10, 0));
        }
        lane.offer(&batch(0, 10, 0));
        lane.offer(&batch(10, 10, 0));
        lane.stored(EPOCH, Sequence(10));
        // The sink fails: the second batch is lost with it, the third arrives while held.
        lane.rewind(Sequence(10));
        sender.on_hold(&Hold { data_id: DataId(1), reason: HoldReason::SinkUnavailable });
        sender.on_ready(&lane.resume().unwrap());
        assert_eq!(sender.next_to_send(), Sequence(10));
        let mut first = 10;
        while sender.may_send(100) {
            sender.sent(&batch(first, 10, 0));
            assert_eq!(lane.offer(&batch(first, 10, 0)), Offer::Accept { missing: 0 });
            first += 10;
        }
        assert_eq!(lane.in_flight_bytes(), WINDOW, "the whole window is free again");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Append(u32),
        Send,
        Deliver,
        Store,
        Acks,
        Reconnect,
        Crash,
        Drop,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (1u32..5).prop_map(Step::Append),
            4 => Just(Step::Send),
            4 => Just(Step::Deliver),
            2 => Just(Step::Store),
            2 => Just(Step::Acks),
            1 => Just(Step::Reconnect),
            1 => Just(Step::Crash),
            1 => Just(Step::Drop),
        ]
    }

    proptest! {
        /// Both ends over a connection that may break at any moment and a server that may die and
        /// come back with what it stored: every record is stored exactly once, in order, or was
        /// dropped by the agent and counted as missing.
        #[test]
        fn nothing_is_lost_or_repeated(steps in prop::collection::vec(step(), 1..200)) {
            let mut spool: VecDeque<BatchHeader> = VecDeque::new();
            let (mut next, mut dropped) = (0u64, Vec::<BatchHeader>::new());
            let mut sender = LaneSender::new(DataId(1), EPOCH, Sequence(0));
            let mut receiver = receiver();
            let mut wire: VecDeque<BatchHeader> = VecDeque::new();
            let (mut memory, mut disk): (Vec<BatchHeader>, Vec<BatchHeader>) = Default::default();
            let mut connected = false;

            for step in steps.into_iter().chain([Step::Reconnect]) {
                match step {
                    Step::Append(records) => {
                        spool.push_back(batch(next, records, 0));
                        next += u64::from(records);
                    }
                    Step::Send if connected => {
                        let at = sender.next_to_send();
                        if let Some(header) = spool.iter().find(|h| h.first >= at)
                            && sender.may_send(header.wire_bytes())
                        {
                            sender.sent(header);
                            wire.push_back(header.clone());
                        }
                    }
                    Step::Deliver => {
                        if let Some(header) = wire.pop_front() {
                            match receiver.offer(&header) {
                                Offer::Accept { .. } => memory.push(header),
                                Offer::Duplicate | Offer::Stray => {}
                                Offer::Violation(fault) => prop_assert!(false, "{fault}"),
                            }
                        }
                    }
                    Step::Store => {
                        if let Some(last) = memory.last() {
                            receiver.stored(EPOCH, last.end());
                        }
                        disk.append(&mut memory);
                    }
                    Step::Acks if connected => {
                        if let Some(ack) = receiver.take_ack()
                            && let Some(position) = sender.on_ack(&ack)
                        {
                            spool.retain(|header| header.end() > position);
                        }
                        if let Some(credit) = receiver.take_credit() {
                            sender.on_credit(&credit);
                        }
                    }
                    Step::Crash => {
                        memory.clear();
                        let stored = disk.last().map(|header| (EPOCH, header.end()));
                        receiver = LaneReceiver::new(DataId(1), WINDOW, stored);
                        wire.clear();
                        sender.disconnected();
                        connected = false;
                    }
                    Step::Drop => {
                        // Only what was never sent may be dropped here; the next one says so.
                        let unsent = sender.next_to_send();
                        if !connected && spool.len() > 1 && spool[0].first >= unsent {
                            let gone = spool.pop_front().unwrap();
                            spool[0].flags |= FLAG_GAP_BEFORE;
                            sender.dropped_before(gone.end());
                            dropped.push(gone);
                        }
                    }
                    Step::Reconnect => {
                        wire.clear();
                        sender.disconnected();
                        let first = spool.front().map_or(next, |header| header.first.0);
                        let said = sender.connected(Sequence(first), Sequence(next));
                        match receiver.open(&said) {
                            Opened::Ready { ready, .. } => sender.on_ready(&ready),
                            Opened::Stale => prop_assert!(false, "stale"),
                        }
                        connected = true;
                    }
                    _ => {}
                }
                prop_assert!(receiver.in_flight_bytes() <= WINDOW);
            }
            // Let everything flow to its end.
            for _ in 0..2000 {
                let at = sender.next_to_send();
                if let Some(header) = spool.iter().find(|header| header.first >= at)
                    && sender.may_send(header.wire_bytes())
                {
                    sender.sent(header);
                    if let Offer::Accept { .. } = receiver.offer(header) {
                        memory.push(header.clone());
                    }
                }
                if let Some(last) = memory.last() {
                    receiver.stored(EPOCH, last.end());
                }
                disk.append(&mut memory);
                if let Some(ack) = receiver.take_ack()
                    && let Some(position) = sender.on_ack(&ack)
                {
                    spool.retain(|header| header.end() > position);
                }
                if let Some(credit) = receiver.take_credit() {
                    sender.on_credit(&credit);
                }
            }
            prop_assert!(spool.is_empty());
            prop_assert!(disk.windows(2).all(|pair| pair[0].end() <= pair[1].first));
            let numbers = |headers: &[BatchHeader]| -> BTreeSet<u64> {
                headers.iter().flat_map(|header| header.first.0..header.end().0).collect()
            };
            let (stored, dropped) = (numbers(&disk), numbers(&dropped));
            let all: BTreeSet<u64> = stored.union(&dropped).copied().collect();
            prop_assert_eq!(all, (0..next).collect::<BTreeSet<_>>());
        }
    }
}
