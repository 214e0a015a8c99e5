//! One lane of one agent that is fed with lines: batches are made, sent as credit allows, kept
//! until acknowledged and sent again after a reconnect, as an agent's spool does it in memory.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use rustls::ClientConfig;
use skein_wire::batch::{BatchBuilder, BatchHeader};
use skein_wire::compress::{Codec, Compressor};
use skein_wire::data::{AgentFrame, ServerFrame, decode_server_frame, encode_batch_prefix};
use skein_wire::hello::ChannelKind;
use skein_wire::ids::{AgentId, DataId, Epoch, Instance, Sequence};
use skein_wire::lane::LaneSender;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::channel;
use crate::lines::Lines;

const EPOCH: Epoch = Epoch(1);

/// Longest wait for an answer before the caller has a look at its own affairs.
const ANSWER_WAIT: Duration = Duration::from_millis(200);

/// What a feed has sent so far, repeats after a reconnect not included.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    /// Records.
    pub records: u64,
    /// Batches.
    pub batches: u64,
    /// The lines themselves.
    pub text_bytes: u64,
    /// Batches before compression.
    pub raw_bytes: u64,
    /// Batches after compression, without headers.
    pub body_bytes: u64,
}

/// A lane with what it still has to deliver.
pub struct Feed {
    agent: AgentId,
    instance: Instance,
    config: Arc<ClientConfig>,
    lane: LaneSender,
    /// Sent or about to be, and not acknowledged: bounded by the server's credit.
    held: VecDeque<(BatchHeader, Vec<u8>)>,
    /// End of the newest batch.
    end: Sequence,
    sent: Sent,
    lines: Lines,
    line: Vec<u8>,
    builder: BatchBuilder,
    records_max: usize,
    raw_bytes: usize,
    out: Vec<u8>,
}

/// A data channel on which the feed's lane is open.
pub struct Channel {
    reader: ReadHalf<TlsStream<TcpStream>>,
    writer: WriteHalf<TlsStream<TcpStream>>,
    buffer: Vec<u8>,
}

impl Feed {
    /// A lane of `agent`, batches of at most `raw_bytes` before compression and `records_max`
    /// records.
    pub fn new(
        agent: AgentId,
        config: Arc<ClientConfig>,
        instance: Instance,
        lines: Lines,
        raw_bytes: usize,
        records_max: usize,
    ) -> Self {
        Self {
            agent,
            instance,
            config,
            lane: LaneSender::new(DataId(1), EPOCH, Sequence::ZERO),
            held: VecDeque::new(),
            end: Sequence::ZERO,
            sent: Sent::default(),
            lines,
            line: Vec::with_capacity(4096),
            builder: BatchBuilder::new(DataId(1), raw_bytes),
            records_max,
            raw_bytes,
            out: Vec::new(),
        }
    }

    /// The compressor that [`Self::step`] needs; one serves many feeds in turn.
    pub fn compressor() -> anyhow::Result<Compressor> {
        Ok(Compressor::new(Codec::Zstd, 1)?)
    }

    /// One that leaves bodies as they are, for frames of the greatest size.
    pub fn no_compressor() -> anyhow::Result<Compressor> {
        Ok(Compressor::new(Codec::None, 0)?)
    }

    /// Batches of another size from now on.
    pub fn set_batches(&mut self, raw_bytes: usize, records_max: usize) {
        (self.raw_bytes, self.records_max) = (raw_bytes, records_max);
        self.free_buffers();
    }

    /// Gives memory back until the next batch is made.
    pub fn free_buffers(&mut self) {
        self.builder = BatchBuilder::new(DataId(1), self.raw_bytes);
        self.out = Vec::new();
    }

    /// Whether the lane is open and a batch is not waiting for credit already.
    pub fn is_ready(&self) -> bool {
        let waits = self.held.back().is_some_and(|(header, _)| {
            header.first >= self.lane.next_to_send() && !self.lane.may_send(header.wire_bytes())
        });
        self.lane.is_ready() && !waits
    }

    /// Whether everything that was made is acknowledged.
    pub fn is_done(&self) -> bool {
        self.held.is_empty()
    }

    /// Says that the channel is in use, while nothing is sent on it.
    pub async fn keep_alive(&mut self, channel: &mut Channel) -> anyhow::Result<()> {
        self.out.clear();
        AgentFrame::KeepAlive.encode(&mut self.out);
        channel.writer.write_all(&self.out).await?;
        Ok(channel.writer.flush().await?)
    }

    /// Records that the server says it has stored.
    pub fn acked(&self) -> u64 {
        self.lane.acked().0
    }

    /// What was made for sending.
    pub fn sent(&self) -> Sent {
        self.sent
    }

    /// Opens a data channel at `address` and the lane on it.
    pub async fn connect(&mut self, address: SocketAddr) -> anyhow::Result<Channel> {
        self.lane.disconnected();
        let config = self.config.clone();
        let stream = channel::open(address, config, ChannelKind::Data, self.instance).await?;
        let (reader, mut writer) = tokio::io::split(stream);
        let open = self.lane.connected(self.lane.acked(), self.end);
        self.out.clear();
        AgentFrame::LaneOpen(open).encode(&mut self.out);
        writer.write_all(&self.out).await?;
        writer.flush().await?;
        Ok(Channel { reader, writer, buffer: Vec::new() })
    }

    /// Sends the batch that is due, made anew with `maker` if there is one, and takes the server's answers;
    /// when nothing may be sent, waits for an answer a little. Whether a batch was sent.
    pub async fn step(
        &mut self,
        channel: &mut Channel,
        maker: Option<&mut Compressor>,
    ) -> anyhow::Result<bool> {
        let next = self.lane.next_to_send();
        let mut index = self.held.partition_point(|(header, _)| header.first < next);
        if let Some(compressor) = maker
            && index == self.held.len()
            && self.lane.is_ready()
        {
            self.make(compressor)?;
            index = self.held.len() - 1;
        }
        let due = self.held.get(index);
        let due = due.filter(|(header, _)| self.lane.may_send(header.wire_bytes()));
        let Some((header, body)) = due else {
            let read = channel.reader.read_buf(&mut channel.buffer);
            if let Ok(read) = tokio::time::timeout(ANSWER_WAIT, read).await {
                ensure!(read? > 0, "the server closed the data channel");
                self.take_answers(channel)?;
            }
            return Ok(false);
        };
        self.out.clear();
        encode_batch_prefix(header, &mut self.out);
        self.out.extend_from_slice(&header.encode());
        self.out.extend_from_slice(body);
        self.lane.sent(header);
        channel.writer.write_all(&self.out).await?;
        channel.writer.flush().await?;
        // What the server said meanwhile, without waiting for it.
        let no_wait = std::future::ready(());
        tokio::select! {
            biased;
            read = channel.reader.read_buf(&mut channel.buffer) => {
                ensure!(read? > 0, "the server closed the data channel");
                self.take_answers(channel)?;
            }
            () = no_wait => {}
        }
        Ok(true)
    }

    /// The next batch; no two are the same, since the lines move on and the first record carries
    /// the batch's identity.
    fn make(&mut self, compressor: &mut Compressor) -> anyhow::Result<()> {
        while self.builder.count() < self.records_max {
            if self.line.is_empty() {
                self.lines.next(&mut self.line);
            }
            if !self.builder.push(1_700_000_000_000, &self.line) {
                break;
            }
            self.sent.text_bytes += self.line.len() as u64;
            self.line.clear();
        }
        let identity = (&self.agent, EPOCH, self.end);
        let (header, body) = self.builder.seal(identity, compressor, 0)?;
        self.end = header.end();
        self.sent.records += u64::from(header.record_count);
        self.sent.batches += 1;
        self.sent.raw_bytes += u64::from(header.raw_bytes);
        self.sent.body_bytes += body.len() as u64;
        self.held.push_back((header, body));
        Ok(())
    }

    fn take_answers(&mut self, channel: &mut Channel) -> anyhow::Result<()> {
        let mut used = 0;
        while let Some((frame, bytes)) = decode_server_frame(&channel.buffer[used..])? {
            used += bytes;
            match frame {
                ServerFrame::LaneReady(ready) => self.lane.on_ready(&ready),
                ServerFrame::Credit(credit) => self.lane.on_credit(&credit),
                ServerFrame::Ack(ack) => {
                    if let Some(acked) = self.lane.on_ack(&ack) {
                        while self.held.front().is_some_and(|(header, _)| header.end() <= acked) {
                            self.held.pop_front();
                        }
                    }
                }
                ServerFrame::Hold(hold) => anyhow::bail!("held: {}", hold.reason.as_str()),
                ServerFrame::GoAway { .. } | ServerFrame::KeepAlive => {}
            }
        }
        channel.buffer.drain(..used);
        Ok(())
    }
}

impl Channel {
    /// Ends the connection with a reset, as a host does that vanished and came back.
    pub fn reset(self) {
        let stream = self.reader.unsplit(self.writer);
        channel::reset(stream);
    }
}
