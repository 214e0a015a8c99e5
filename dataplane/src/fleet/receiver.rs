//! What control tells this process, turned into mails and calls.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use skein_wire::fleet::v1::from_data::Kind as Up;
use skein_wire::fleet::v1::to_data::Kind;
use skein_wire::fleet::v1::{RoutingTable, ToAgents, ToData, Undeliverable};
use skein_wire::frame::FrameDecoder;
use skein_wire::ids::AgentId;
use skein_wire::limits::FLEET_MESSAGE_BYTES_MAX;
use skein_wire::prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::router::ToRouter;
use crate::session::{CloseReason, Shared};
use crate::shard::{ConnKey, Delivery, ShardMail};

use super::persist;
use super::sender::FleetSender;

/// Handles control's messages one after the other. It may wait for a shard's mailbox: control is
/// slowed down then, and nothing else.
pub(super) struct Receiver {
    sender: FleetSender,
    shared: Arc<Shared>,
    own_dir: PathBuf,
}

impl Receiver {
    pub(super) fn new(sender: FleetSender, shared: Arc<Shared>, own_dir: PathBuf) -> Self {
        Self { sender, shared, own_dir }
    }

    /// Reads until the connection breaks.
    pub(super) async fn run(&mut self, reader: &mut (impl AsyncRead + Unpin)) -> io::Error {
        let decoder = FrameDecoder::new(FLEET_MESSAGE_BYTES_MAX);
        let mut buffer = BytesMut::with_capacity(64 * 1024);
        loop {
            match reader.read_buf(&mut buffer).await {
                Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
                Ok(_) => {}
                Err(error) => return error,
            }
            loop {
                let (range, consumed) = match decoder.next(&buffer) {
                    Ok(Some(found)) => found,
                    Ok(None) => break,
                    Err(error) => return io::Error::other(error),
                };
                // The message's fields share this memory instead of copying it.
                let mut frame = buffer.split_to(consumed).freeze();
                frame.advance(range.start);
                match ToData::decode(frame) {
                    Ok(ToData { kind: Some(kind) }) => self.handle(kind).await,
                    Ok(ToData { kind: None }) => {} // of a newer control process
                    Err(error) => return io::Error::other(error),
                }
            }
            buffer.reserve(64 * 1024);
        }
    }

    async fn handle(&mut self, kind: Kind) {
        match kind {
            Kind::Welcome(welcome) => {
                self.shared.liveness.set(welcome.heartbeat_interval_ms, welcome.heartbeat_misses)
            }
            Kind::ToAgents(message) => self.deliver(message).await,
            Kind::Enrol(answer) => {
                if let Some(to) = self.sender.enrolled(answer.request_id) {
                    let mail = ShardMail::EnrolAnswer(ConnKey(to.conn), answer.reply);
                    self.mail(to.shard, mail).await;
                }
            }
            Kind::Table(table) => self.table(table),
            Kind::Revoked(revoked) => {
                // Sessions are refused before the file is flushed and closed right after it.
                self.shared.directory.set_revoked(persist::revoked_set(&revoked));
                self.mail_all(|| ShardMail::RevokedChanged).await;
                persist::save_revoked(&self.own_dir, &revoked);
            }
            Kind::Seed(seed) => self.shared.files.seed(seed),
            Kind::Unseed(unseed) => {
                self.shared.files.withdraw(&unseed.transfer_id);
                self.mail_all(|| ShardMail::TransfersChanged).await;
            }
            Kind::Fetch(fetch) => self.shared.files.fetch(fetch),
            Kind::TapStart(tap) => self.shared.router.broadcast(|| ToRouter::TapStart(tap.clone())),
            Kind::TapStop(tap) => self.shared.router.broadcast(|| ToRouter::TapStop(tap.tap_id)),
            Kind::Close(close) => {
                let Ok(agent) = AgentId::parse(&close.agent_id) else { return };
                for at in self.shared.directory.sessions(&agent) {
                    let mail = ShardMail::Close(ConnKey(at.conn), CloseReason::ByControl);
                    self.mail(at.shard, mail).await;
                }
            }
        }
    }

    fn table(&self, table: RoutingTable) {
        persist::save_table(&self.own_dir, &table);
        tracing::info!(revision = table.revision, "routing table replaced");
        let table = Arc::new(table);
        self.shared.router.broadcast(|| ToRouter::Table(table.clone()));
    }

    /// One mail per shard, however many agents.
    async fn deliver(&mut self, message: ToAgents) {
        let ToAgents { dispatch_id, common, targets } = message;
        let mut missing = Vec::new();
        let mut known = Vec::with_capacity(targets.len());
        for target in targets {
            match AgentId::parse(&target.agent_id) {
                Ok(agent) => known.push((agent.clone(), (agent, target.extra))),
                Err(_) => missing.push(target.agent_id),
            }
        }
        let mut by_shard: HashMap<u16, Vec<_>> = HashMap::new();
        self.shared.directory.locate(
            known,
            |at, (agent, extra)| {
                by_shard.entry(at.shard).or_default().push((ConnKey(at.conn), agent, extra));
            },
            |agent| missing.push(agent.as_str().to_owned()),
        );
        for (shard, targets) in by_shard {
            let delivery = Delivery { dispatch_id, common: common.clone(), targets };
            self.mail(shard, ShardMail::ToAgents(delivery)).await;
        }
        if !missing.is_empty() {
            let bytes = missing.iter().map(|id| id.len() + 24).sum();
            let undeliverable = Undeliverable { dispatch_id, agent_ids: missing };
            self.sender.push(Up::Undeliverable(undeliverable), bytes);
        }
    }

    async fn mail(&self, shard: u16, mail: ShardMail) {
        if let Some(shard) = self.shared.shards.get(usize::from(shard)) {
            let _ = shard.send_async(mail).await; // fails when the process ends
        }
    }

    async fn mail_all(&self, mail: impl Fn() -> ShardMail) {
        for shard in &self.shared.shards {
            let _ = shard.send_async(mail()).await;
        }
    }
}
