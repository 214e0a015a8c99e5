//! What moves the spool: answers of the disk thread and deadlines.

use std::time::Duration;

use metrics::counter;
use skein_observe::names;
use tokio::sync::mpsc::UnboundedReceiver;

use super::disk::{Done, ReadBatch, Request};
use super::index::SegmentId;
use super::lane::{Lane, READ_AHEAD_TOTAL_BYTES, Writing};
use super::{Spool, State};

impl Spool {
    /// Runs until the disk thread ends. Before [`Spool::close`] was called that is an error that
    /// nobody can repair: the worker must end and be started again.
    pub async fn run(&self) {
        let Some(mut done) = self.done.take() else { return };
        while self.turn(&mut done).await {}
        if !self.closing.get() {
            tracing::error!("the spool's disk thread ended; nothing can be kept any more");
        }
        self.closed.notify_waiters();
    }

    async fn turn(&self, done: &mut UnboundedReceiver<Done>) -> bool {
        let next_due_ms = self.state.borrow().next_due_ms();
        let wait = next_due_ms.map(|at| at.saturating_sub(crate::clock::now_ms()));
        let sleep = async {
            match wait {
                Some(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            answer = done.recv() => {
                let Some(answer) = answer else { return false };
                self.on_done(answer);
                while let Ok(answer) = done.try_recv() {
                    self.on_done(answer);
                }
            }
            () = self.due.notified() => {}
            () = sleep => {}
        }
        self.state.borrow_mut().on_due(crate::clock::now_ms());
        if !self.state.borrow().touched.is_empty() {
            self.touched.notify_one();
        }
        true
    }

    fn on_done(&self, answer: Done) {
        let mut state = self.state.borrow_mut();
        match answer {
            Done::Appended { data_id, segment, segment_bytes } => {
                state.on_appended(data_id, segment, segment_bytes);
            }
            Done::Read { data_id, generation, result } => {
                state.on_read(data_id, generation, result);
            }
            Done::Refused(Some(error)) => {
                state.refused = true;
                tracing::error!(%error, "the spool's disk refuses writes; inputs wait or drop");
                let kind = match error.kind() {
                    std::io::ErrorKind::StorageFull => "disk_full",
                    _ => "disk_error",
                };
                counter!(names::AGENT_SPOOL_ERRORS, "error" => kind).increment(1);
            }
            Done::Refused(None) => {
                state.refused = false;
                tracing::info!("the spool's disk takes writes again");
            }
        }
        drop(state);
        self.room.notify_waiters();
    }
}

impl State {
    fn next_due_ms(&self) -> Option<u64> {
        let linger = self.linger.front().map(|(at, ..)| *at);
        linger.into_iter().chain(self.ack_note_at_ms).min()
    }

    fn on_due(&mut self, now_ms: u64) {
        while let Some((at, data_id, entry)) = self.linger.front().copied() {
            let sealed = self.lanes.get(&data_id).is_none_or(|lane| lane.entries != entry);
            if at > now_ms && !sealed {
                break;
            }
            self.linger.pop_front();
            if !sealed {
                self.seal(data_id);
            }
        }
        if self.ack_note_at_ms.is_some_and(|at| at <= now_ms) {
            self.note_acks();
        }
    }

    pub(super) fn note_acks(&mut self) {
        self.ack_note_at_ms = None;
        for lane in self.lanes.values_mut() {
            if std::mem::take(&mut lane.ack_unnoted) {
                let (data_id, position) = (lane.data_id, lane.index.acked());
                // The thread is gone only when the spool ends.
                let _ = self.requests.send(Request::Acked { data_id, position });
            }
        }
    }

    fn on_appended(&mut self, data_id: u32, segment: SegmentId, segment_bytes: u64) {
        let room = self.read_ahead_bytes <= READ_AHEAD_TOTAL_BYTES;
        let Some(lane) = self.lanes.get_mut(&data_id) else { return };
        let Some(Writing { header, frame, bytes }) = lane.writing.pop_front() else { return };
        self.queued_bytes -= bytes;
        lane.writing_bytes -= bytes;
        let records = header.as_ref().map_or(0, |header| u64::from(header.record_count));
        let end = header.as_ref().map_or(0, |header| header.end().0);
        let before = lane.index.end();
        if !lane.index.appended(segment, end, records, segment_bytes) {
            // Given up while it was on its way; it may have made the file anew.
            self.count_dropped(data_id, records, "spool_full");
            self.ask(Request::Remove { data_id, segment });
        } else if let Some(header) = header {
            let held_before = lane.reader_bytes();
            let at = (segment, segment_bytes);
            lane.read_ahead(before, ReadBatch { header, frame }, at, room);
            self.read_ahead_bytes += lane.reader_bytes() - held_before;
            lane.show_depth();
            self.touch(data_id);
        }
        if let Some(lane) = self.lanes.get_mut(&data_id) {
            lane.tell_waiters();
        }
        self.count_total();
    }
}

impl Lane {
    fn reader_bytes(&self) -> u64 {
        self.reader.as_ref().map_or(0, |reader| reader.bytes)
    }

    fn tell_waiters(&mut self) {
        let done = self.entries - self.writing.len() as u64;
        while let Some(waiter) = self.waiters.pop_front_if(|waiter| waiter.entry < done) {
            // Whoever no longer waits needs no answer.
            let _ = waiter.tell.send(());
        }
    }

    /// Updates the gauges.
    pub(super) fn show_depth(&self) {
        let (records, bytes) = self.index.depth();
        self.metrics.depth_records.set(records as f64);
        self.metrics.depth_bytes.set(bytes as f64);
    }
}
