//! The protocol with one peer: handshake, announcements, requests in flight, data as it arrives.
//!
//! A link knows nothing of what is wanted or true. It turns the stream into [`Event`]s, one at a
//! time, and holds its owner to the rules that a single peer can break: bounds, order, nothing
//! that was not asked for. It works in both directions at once, so that a download, an upload and
//! a swarm with both use the same type. After an error the connection is of no further use.

use super::bitfield::Bitfield;
use super::geometry::{BLOCK_BYTES, Geometry, PIECES_MAX};
use super::peer_wire::{BlockRange, HANDSHAKE_BYTES, Handshake, HashRange, Message, decode};
use std::collections::VecDeque;
use std::ops::Range;

pub use super::link_error::LinkError;

/// Requests in flight on one link; peers queue at least as many.
pub const REQUESTS_MAX: usize = 256;

/// Control bytes that may wait to be sent before the peer is dropped: every piece announced once
/// (9 bytes each) and as much again for answers.
pub const OUT_BYTES_MAX: usize = 2 * 9 * PIECES_MAX as usize;

/// A link sends something at least this often.
pub const KEEP_ALIVE_MS: u64 = 30_000;

/// Pieces that a peer has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Have {
    /// All of them.
    All,
    /// These.
    Some(Bitfield),
}

impl Have {
    /// Whether `piece` is among them.
    pub fn has(&self, piece: u32) -> bool {
        match self {
            Have::All => true,
            Have::Some(pieces) => pieces.get(piece),
        }
    }

    /// Whether nothing is missing.
    pub fn is_complete(&self) -> bool {
        match self {
            Have::All => true,
            Have::Some(pieces) => pieces.is_full(),
        }
    }
}

/// What a peer did. Ranges of bytes lie in the buffer that was given to [`PeerLink::next`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It shook hands.
    Handshake,
    /// It said what it has.
    Have,
    /// It has this further piece.
    HavePiece(u32),
    /// It answers requests from now on, or no longer.
    Choked(bool),
    /// It wants something from here, or no longer.
    Interested(bool),
    /// A block that was requested, not yet proved.
    Block {
        /// Which block of the file.
        block: u32,
        /// Its bytes.
        data: Range<usize>,
        /// Time from the request to its first block; absent for the blocks after the first.
        latency_ms: Option<u64>,
    },
    /// It will not answer this request.
    Rejected(BlockRange),
    /// It will not answer this request, which was taken back or also made elsewhere.
    Dropped(BlockRange),
    /// It wants these bytes.
    Request(BlockRange),
    /// It no longer wants them.
    Cancel(BlockRange),
    /// It wants these hashes.
    HashRequest(HashRange),
    /// Hashes, not yet proved.
    Hashes(HashRange, Range<usize>),
    /// It will not send these hashes.
    HashRejected(HashRange),
    /// A message of an extension, opaque here.
    Extended(u8, Range<usize>),
}

/// Progress of [`PeerLink::next`]: bytes used up and what they meant, if anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Bytes to drop from the front of the buffer. 0 without an event: more are needed.
    pub consumed: usize,
    /// What happened.
    pub event: Option<Event>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Handshake,
    FirstMessage,
    Open,
}

#[derive(Debug)]
struct InFlight {
    range: BlockRange,
    sent_ms: u64,
    /// Whether its blocks count as requested from this peer alone.
    owned: bool,
}

/// A piece message whose data is arriving.
#[derive(Debug)]
struct Arriving {
    range: BlockRange,
    owned: bool,
    done: u32,
    latency_ms: Option<u64>,
}

impl Arriving {
    /// What did not come yet.
    fn rest(&self) -> BlockRange {
        let BlockRange { piece, begin, len } = self.range;
        BlockRange { piece, begin: begin + self.done, len: len - self.done }
    }
}

/// State of the protocol with one peer.
#[derive(Debug)]
pub struct PeerLink {
    geometry: Geometry,
    ours: Handshake,
    remote: Option<Handshake>,
    phase: Phase,
    out: Vec<u8>,
    sent_ms: u64,
    have: Have,
    choked: bool,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: u64,
    arriving: Option<Arriving>,
}

impl PeerLink {
    /// A link that this side opened: says `ours` and what `we_have`, and expects the peer's
    /// handshake.
    pub fn connect(geometry: Geometry, ours: Handshake, we_have: &Have, now_ms: u64) -> Self {
        let mut link = Self {
            geometry,
            ours,
            remote: None,
            phase: Phase::Handshake,
            out: ours.encode().to_vec(),
            sent_ms: now_ms,
            have: Have::Some(Bitfield::new(geometry.piece_count())),
            choked: true,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            arriving: None,
        };
        match we_have {
            Have::All => link.send(Message::HaveAll),
            Have::Some(pieces) if pieces.count() == 0 => link.send(Message::HaveNone),
            Have::Some(pieces) => link.send(Message::Bitfield(&pieces.all_bytes())),
        }
        link
    }

    /// A link that the peer opened with `theirs`, which the caller decoded from the stream and
    /// found to be of a member of this transfer.
    pub fn accept(
        geometry: Geometry,
        ours: Handshake,
        theirs: &Handshake,
        we_have: &Have,
        now_ms: u64,
    ) -> Result<Self, LinkError> {
        let mut link = Self::connect(geometry, ours, we_have, now_ms);
        link.shake(theirs)?;
        Ok(link)
    }

    /// A link on which both handshakes have gone over the wire already, whoever opened it.
    pub fn shaken(
        geometry: Geometry,
        ours: Handshake,
        theirs: &Handshake,
        we_have: &Have,
        now_ms: u64,
    ) -> Result<Self, LinkError> {
        let mut link = Self::accept(geometry, ours, theirs, we_have, now_ms)?;
        link.out.drain(..HANDSHAKE_BYTES);
        Ok(link)
    }

    fn shake(&mut self, theirs: &Handshake) -> Result<(), LinkError> {
        if theirs.info_hash != self.ours.info_hash {
            return Err(LinkError::OtherTransfer);
        }
        if !theirs.suffices_for(&self.ours) {
            return Err(LinkError::Capabilities);
        }
        self.remote = Some(*theirs);
        self.phase = Phase::FirstMessage;
        Ok(())
    }

    /// The file's division.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The peer's handshake, once it came.
    pub fn remote(&self) -> Option<&Handshake> {
        self.remote.as_ref()
    }

    /// What the peer has.
    pub fn have(&self) -> &Have {
        &self.have
    }

    /// Whether the peer answers requests.
    pub fn is_choked(&self) -> bool {
        self.choked
    }

    /// Requests without a full answer.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len() + usize::from(self.arriving.is_some())
    }

    /// Bytes that were requested and did not arrive.
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// The ranges that were requested and did not arrive, the arriving one cut to its rest.
    pub fn unanswered(&self) -> impl Iterator<Item = BlockRange> + '_ {
        let arriving = self.arriving.iter().map(Arriving::rest);
        arriving.chain(self.in_flight.iter().map(|request| request.range))
    }

    /// As [`PeerLink::unanswered`], without what was taken back or is also asked for elsewhere.
    pub fn owned(&self) -> impl Iterator<Item = BlockRange> + '_ {
        let arriving = self.arriving.iter().filter(|arriving| arriving.owned).map(Arriving::rest);
        arriving.chain(self.cancellable())
    }

    /// The same without what is arriving, in the order of the requests.
    pub fn cancellable(&self) -> impl Iterator<Item = BlockRange> + '_ {
        self.in_flight.iter().filter(|request| request.owned).map(|request| request.range)
    }

    /// Bytes of the stream from its first unconsumed one on that are data of a request, so that a
    /// caller can receive them where they stay. 0: a message comes next.
    pub fn arriving_bytes(&self) -> u32 {
        self.arriving.as_ref().map_or(0, |arriving| arriving.range.len - arriving.done)
    }

    /// Bytes that wait to be sent.
    pub fn out_len(&self) -> usize {
        self.out.len()
    }

    /// Appends what is to be sent to `out`.
    pub fn take_output(&mut self, out: &mut Vec<u8>, now_ms: u64) {
        if !self.out.is_empty() {
            self.sent_ms = now_ms;
            out.append(&mut self.out);
        }
    }

    /// Queues `message`. Nothing but requests, choke states, announcements and small answers goes
    /// this way.
    pub fn send(&mut self, message: Message<'_>) {
        message.encode(&mut self.out);
    }

    /// Queues a request. At most [`REQUESTS_MAX`] may be in flight.
    pub fn request(&mut self, range: BlockRange, now_ms: u64) {
        self.push_request(range, true, now_ms);
    }

    /// Queues a request for what another peer was asked for as well and stays responsible for.
    pub fn request_again(&mut self, range: BlockRange, now_ms: u64) {
        self.push_request(range, false, now_ms);
    }

    fn push_request(&mut self, range: BlockRange, owned: bool, now_ms: u64) {
        assert!(self.in_flight() < REQUESTS_MAX, "the caller asks can_request first");
        self.send(Message::Request(range));
        self.in_flight.push_back(InFlight { range, sent_ms: now_ms, owned });
        self.in_flight_bytes += u64::from(range.len);
    }

    /// Takes a request back: one of [`PeerLink::owned`]. The peer still answers it, with the data or
    /// by rejecting it, and it counts as in flight until then. False if there is none.
    pub fn cancel(&mut self, range: BlockRange) -> bool {
        if let Some(request) = self.in_flight.iter_mut().find(|request| request.range == range) {
            let owned = std::mem::replace(&mut request.owned, false);
            self.send(Message::Cancel(range));
            return owned;
        }
        // What is arriving cannot be stopped, but others may be asked for its rest.
        match &mut self.arriving {
            Some(arriving) if arriving.rest() == range => {
                std::mem::replace(&mut arriving.owned, false)
            }
            _ => false,
        }
    }

    /// Whether the peer takes a further request.
    pub fn can_request(&self) -> bool {
        self.phase == Phase::Open && !self.choked && self.in_flight() < REQUESTS_MAX
    }

    /// Whether both sides have said what they have.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Sends a keep-alive if nothing was sent for [`KEEP_ALIVE_MS`].
    pub fn tick(&mut self, now_ms: u64) {
        self.keep_alive(KEEP_ALIVE_MS, now_ms);
    }

    /// Sends a keep-alive if nothing was sent for `after_ms`.
    pub fn keep_alive(&mut self, after_ms: u64, now_ms: u64) {
        if self.out.is_empty() && now_ms >= self.sent_ms + after_ms {
            self.send(Message::KeepAlive);
        }
    }

    /// When [`PeerLink::tick`] has something to do.
    pub fn keep_alive_at(&self) -> u64 {
        self.sent_ms + KEEP_ALIVE_MS
    }

    /// Takes the next step over `buf`, the unconsumed start of the stream.
    pub fn next(&mut self, buf: &[u8], now_ms: u64) -> Result<Step, LinkError> {
        if self.arriving.is_some() {
            return Ok(self.next_block(buf));
        }
        if self.phase == Phase::Handshake {
            let Some(theirs) = Handshake::decode(buf)? else { return Ok(WAIT) };
            self.shake(&theirs)?;
            return Ok(Step { consumed: HANDSHAKE_BYTES, event: Some(Event::Handshake) });
        }
        let Some((message, consumed)) = decode(buf)? else { return Ok(WAIT) };
        let event = self.take(message, consumed, now_ms)?;
        Ok(Step { consumed, event })
    }

    fn next_block(&mut self, buf: &[u8]) -> Step {
        let Some(arriving) = self.arriving.as_mut() else { return WAIT };
        let len = (arriving.range.len - arriving.done).min(BLOCK_BYTES);
        if buf.len() < len as usize {
            return WAIT;
        }
        let at = arriving.range.begin + arriving.done;
        let offset = self.geometry.piece_offset(arriving.range.piece) + u64::from(at);
        let event = Event::Block {
            block: (offset / u64::from(BLOCK_BYTES)) as u32,
            data: 0..len as usize,
            latency_ms: arriving.latency_ms.take(),
        };
        arriving.done += len;
        self.in_flight_bytes -= u64::from(len);
        if arriving.done == arriving.range.len {
            self.arriving = None;
        }
        Step { consumed: len as usize, event: Some(event) }
    }

    /// Applies one message that ends at `end` of the buffer.
    fn take(
        &mut self,
        message: Message<'_>,
        end: usize,
        now_ms: u64,
    ) -> Result<Option<Event>, LinkError> {
        let first = matches!(message, Message::HaveAll | Message::HaveNone | Message::Bitfield(_));
        let free = matches!(message, Message::KeepAlive | Message::Extended(..));
        // aria2 sends its bitfield again where that is shorter than the HAVEs since the last.
        let again = self.ours.is_plain()
            && self.phase == Phase::Open
            && matches!(message, Message::Bitfield(_));
        if !free && !again && first != (self.phase == Phase::FirstMessage) {
            return Err(LinkError::FirstMessage);
        }
        let pieces = self.geometry.piece_count();
        let tail = |bytes: &[u8]| end - bytes.len()..end;
        Ok(Some(match message {
            Message::HaveAll => self.open_with(Have::All),
            Message::HaveNone => self.open_with(Have::Some(Bitfield::new(pieces))),
            Message::Bitfield(bytes) => {
                let theirs = Bitfield::from_bytes(bytes, pieces);
                self.open_with(Have::Some(theirs.map_err(|_| LinkError::Bitfield)?))
            }
            Message::Have(piece) if piece >= pieces => return Err(LinkError::Bitfield),
            Message::Have(piece) => {
                let Have::Some(theirs) = &mut self.have else { return Ok(None) };
                if !theirs.set(piece) {
                    return Ok(None);
                }
                Event::HavePiece(piece)
            }
            Message::Choke | Message::Unchoke => {
                self.choked = message == Message::Choke;
                Event::Choked(self.choked)
            }
            Message::Interested => Event::Interested(true),
            Message::NotInterested => Event::Interested(false),
            Message::Request(range) => Event::Request(self.check(range)?),
            Message::Cancel(range) => Event::Cancel(self.check(range)?),
            Message::Piece(range) => {
                let InFlight { sent_ms, owned, .. } = self.answered(range)?;
                let latency_ms = Some(now_ms.saturating_sub(sent_ms));
                self.arriving = Some(Arriving { range, owned, done: 0, latency_ms });
                return Ok(None);
            }
            Message::Reject(range) => {
                let request = self.answered(range)?;
                self.in_flight_bytes -= u64::from(range.len);
                if request.owned { Event::Rejected(range) } else { Event::Dropped(range) }
            }
            Message::HashRequest(range) => Event::HashRequest(range),
            Message::Hashes(range, bytes) => Event::Hashes(range, tail(bytes)),
            Message::HashReject(range) => Event::HashRejected(range),
            Message::Extended(id, bytes) => Event::Extended(id, tail(bytes)),
            Message::KeepAlive
            | Message::Port(_)
            | Message::Suggest(_)
            | Message::AllowedFast(_)
            | Message::Unknown(_) => return Ok(None),
        }))
    }

    fn open_with(&mut self, have: Have) -> Event {
        self.have = have;
        self.phase = Phase::Open;
        Event::Have
    }

    /// Ends the request for `range`.
    fn answered(&mut self, range: BlockRange) -> Result<InFlight, LinkError> {
        let at = self.in_flight.iter().position(|request| request.range == range);
        let request = at.and_then(|at| self.in_flight.remove(at));
        request.ok_or(LinkError::Unrequested)
    }

    /// Accepts a range that the peer named if it is made of whole blocks of one piece.
    fn check(&self, range: BlockRange) -> Result<BlockRange, LinkError> {
        let BlockRange { piece, begin, len } = range;
        let piece_len = u64::from(self.geometry.piece_len(piece));
        let end = u64::from(begin) + u64::from(len);
        let aligned = |at: u64| at.is_multiple_of(u64::from(BLOCK_BYTES));
        if piece >= self.geometry.piece_count()
            || end > piece_len
            || !aligned(u64::from(begin))
            || !(aligned(end) || end == piece_len)
        {
            return Err(LinkError::Range { piece, begin, len });
        }
        Ok(range)
    }
}

const WAIT: Step = Step { consumed: 0, event: None };
