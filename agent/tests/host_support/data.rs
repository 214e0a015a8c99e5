//! The data channel of the other end: it keeps the rules of `skein_wire::lane` and remembers every
//! record, as a server whose sinks store at once.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use skein_wire::compress::Decompressor;
use skein_wire::data::{AgentFrame, Hold, HoldReason, ServerFrame, decode_agent_frame};
use skein_wire::lane::{LaneReceiver, Offer, Opened};
use skein_wire::records;

use super::Tls;

/// Credit of a lane.
const WINDOW_BYTES: u64 = 16 << 20;

pub struct Data {
    open: AtomicBool,
    /// When an agent that was refused comes again.
    retry_ms: AtomicU32,
    /// Whether sessions read and answer; one that does not is half-open, as far as an agent sees.
    pub silent: AtomicBool,
    sessions: AtomicU32,
    lanes: Mutex<BTreeMap<u32, Lane>>,
    pub held: Mutex<BTreeSet<u32>>,
}

pub struct Lane {
    receiver: LaneReceiver,
    pub values: Vec<Vec<u8>>,
    /// Records that the agent dropped.
    pub missing: u64,
}

impl Default for Data {
    fn default() -> Data {
        Data {
            open: AtomicBool::new(false),
            retry_ms: AtomicU32::new(60_000),
            silent: AtomicBool::new(false),
            sessions: AtomicU32::new(0),
            lanes: Mutex::default(),
            held: Mutex::default(),
        }
    }
}

impl Data {
    /// Sessions are accepted from now on, or refused and those that live are closed.
    pub fn set_open(&self, open: bool) {
        self.retry_ms.store(200, Ordering::SeqCst);
        self.open.store(open, Ordering::SeqCst);
    }

    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::SeqCst)
    }

    pub fn retry_ms(&self) -> u32 {
        self.retry_ms.load(Ordering::SeqCst)
    }

    /// Sessions so far.
    pub fn sessions(&self) -> u32 {
        self.sessions.load(Ordering::SeqCst)
    }

    pub fn lanes(&self) -> MutexGuard<'_, BTreeMap<u32, Lane>> {
        self.lanes.lock().unwrap()
    }

    /// Records stored of a lane.
    pub fn count(&self, data_id: u32) -> usize {
        self.lanes().get(&data_id).map_or(0, |lane| lane.values.len())
    }

    pub fn serve(&self, mut tls: Tls) {
        self.sessions.fetch_add(1, Ordering::SeqCst);
        tls.sock.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        let (mut buffer, mut chunk) = (Vec::new(), vec![0; 256 * 1024]);
        while self.is_open() {
            if self.silent.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            match tls.read(&mut chunk) {
                Ok(0) => return,
                Ok(length) => buffer.extend_from_slice(&chunk[..length]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return,
            }
            let (mut at, mut out) = (0, Vec::new());
            while let Some((frame, used)) = decode_agent_frame(&buffer[at..]).unwrap() {
                self.take(frame, &mut out);
                at += used;
            }
            buffer.drain(..at);
            if tls.write_all(&out).and_then(|()| tls.flush()).is_err() {
                return;
            }
        }
    }

    fn take(&self, frame: AgentFrame<'_>, out: &mut Vec<u8>) {
        let mut lanes = self.lanes();
        match frame {
            AgentFrame::LaneOpen(open) => {
                let lane = lanes.entry(open.data_id.0).or_insert_with(|| Lane {
                    receiver: LaneReceiver::new(open.data_id, WINDOW_BYTES, None),
                    values: Vec::new(),
                    missing: 0,
                });
                let hold = |reason| ServerFrame::Hold(Hold { data_id: open.data_id, reason });
                let held = self.held.lock().unwrap().contains(&open.data_id.0);
                match lane.receiver.open(&open) {
                    Opened::Stale => hold(HoldReason::StaleEpoch),
                    Opened::Ready { .. } if held => hold(HoldReason::UnknownDataId),
                    Opened::Ready { ready, missing } => {
                        lane.missing += missing;
                        ServerFrame::LaneReady(ready)
                    }
                }
                .encode(out);
            }
            AgentFrame::Batch { header, body } => {
                header.verify_body(body).unwrap();
                let lane = lanes.get_mut(&header.data_id.0).unwrap();
                match lane.receiver.offer(&header) {
                    Offer::Accept { missing } => {
                        lane.missing += missing;
                        let (mut raw, bytes) = (Vec::new(), header.raw_bytes as usize);
                        Decompressor::new()
                            .decompress(header.codec, body, bytes, &mut raw)
                            .unwrap();
                        for record in records::iter(&raw, header.record_count) {
                            lane.values.push(record.unwrap().value.to_vec());
                        }
                        lane.receiver.stored(header.epoch, header.end());
                    }
                    Offer::Duplicate | Offer::Stray => {}
                    Offer::Violation(violation) => panic!("{violation}"),
                }
                let ack = lane.receiver.take_ack().map(ServerFrame::Ack);
                let credit = lane.receiver.take_credit().map(ServerFrame::Credit);
                ack.into_iter().chain(credit).for_each(|frame| frame.encode(out));
            }
            AgentFrame::LaneStat(_) => {}
            AgentFrame::KeepAlive => ServerFrame::KeepAlive.encode(out),
        }
    }
}
