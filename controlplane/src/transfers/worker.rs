//! The one task that moves all transfers forward; the counterpart of the tasks' worker.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use skein_filemesh::core::manifest::Manifest;
use skein_observe::names;
use skein_wire::fleet::v1::to_data::Kind as To;
use skein_wire::fleet::v1::{FetchFile, FetchResult, SeedFile, UnseedFile};
use skein_wire::ids::{AgentId, CommandId, TransferId, hex_encode};
use skein_wire::signal::v1::{
    CancelTransfer, FileOffer, OfferFile, ReportAck, command_body, server_message,
};
use tokio::sync::mpsc;

use super::host::{Final, Report};
use super::{
    Entry, Order, Speed, TRANSFER_HOSTS_MAX, TRANSFER_KEEP_MS, TRANSFERS_KEPT_MAX, TransferError,
    TransferRecord, Transfers, record, running_file,
};
use crate::api::types::{TransferHostState as Host, TransferPhase, TransferSource, Upload};
use crate::clock;
use crate::fleet::events::{QUEUE_EVENTS, TransferEvent};
use crate::fleet::{Fleet, Purpose};
use crate::store::Batch;
use crate::tasks::state_word;

/// Between two looks at deadlines.
const TICK: Duration = Duration::from_millis(250);
/// Ticks between two looks at retention and the cache.
const TICKS_PER_SWEEP: u32 = 40;
/// Speeds are taken over at least this long.
const SPEED_MS: i64 = 1_000;
/// An order's signature is good at least this long.
const ORDER_LIFE_MS: i64 = 15_000;
/// How long a cancel's signature is good; it is signed anew whenever its agent comes back.
const CANCEL_LIFE_MS: i64 = 3_600_000;
/// A source that does not answer is asked again after this time.
const ASK_AGAIN_MS: i64 = 10_000;
/// A source agent may be away this long before the transfer fails.
const SOURCE_AWAY_MS: i64 = 120_000;
/// Commands whose refusal is still expected.
const COMMANDS_MAX: usize = 65_536;
/// Ends stored by one batch.
const ENDS_PER_BATCH: usize = 1_000;

/// Runs the transfers.
pub struct Worker {
    transfers: Arc<Transfers>,
    fleet: Arc<Fleet>,
    commands: HashMap<CommandId, TransferId>,
    commands_in_order: VecDeque<CommandId>,
    ticks: u32,
}

/// What one group of events comes to.
#[derive(Default)]
struct Group {
    ends: Vec<(TransferId, usize, Final)>,
    ending: HashSet<(TransferId, usize)>,
    acks: Vec<(AgentId, TransferId)>,
    join: HashMap<TransferId, Vec<AgentId>>,
    cancel: HashMap<TransferId, Vec<AgentId>>,
    /// Ask the source.
    offer: HashSet<TransferId>,
    offers: Vec<(TransferId, FileOffer)>,
    /// Announce to one link (or all) what it must serve.
    seed: HashMap<TransferId, Option<u64>>,
    fetch: HashSet<TransferId>,
    fetched: Vec<(TransferId, FetchResult)>,
    unseed: HashSet<TransferId>,
}

impl Group {
    fn end(&mut self, id: TransferId, place: usize, run: Final) {
        if self.ending.insert((id, place)) {
            self.ends.push((id, place, run));
        }
    }
}

impl Worker {
    /// For a service and the fleet.
    pub fn new(transfers: Arc<Transfers>, fleet: Arc<Fleet>) -> Self {
        let (commands, commands_in_order) = (HashMap::new(), VecDeque::new());
        Self { transfers, fleet, commands, commands_in_order, ticks: 0 }
    }

    /// Until the process ends.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<TransferEvent>,
        mut orders: mpsc::Receiver<Order>,
    ) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut taken = Vec::new();
        loop {
            let mut group = Group::default();
            tokio::select! {
                count = events.recv_many(&mut taken, QUEUE_EVENTS) => {
                    if count == 0 {
                        return;
                    }
                    taken.drain(..).for_each(|event| self.event(event, &mut group));
                }
                Some(order) = orders.recv() => self.order(order, &mut group).await,
                _ = tick.tick() => self.tick(&mut group).await,
            }
            self.settle(group).await;
        }
    }

    fn event(&mut self, event: TransferEvent, group: &mut Group) {
        let now_ms = clock::now_ms();
        let mut entries = self.transfers.lock();
        match event {
            TransferEvent::Update(agent, update) => {
                let Ok(id) = TransferId::from_slice(&update.transfer_id) else { return };
                let found = entries.get_mut(&id).and_then(|entry| {
                    let place = entry.place(&agent)?;
                    Some((place, entry.hosts[place].report(&update)))
                });
                match found {
                    Some((_, Report::Progress)) => {}
                    Some((place, Report::End(run))) => group.end(id, place, run),
                    Some((_, Report::Ended)) | None => group.acks.push((agent, id)),
                }
            }
            TransferEvent::Offer(agent, offer) => {
                let Ok(id) = TransferId::from_slice(&offer.transfer_id) else { return };
                let Some(entry) = entries.get(&id) else { return };
                // Only the source that was asked may say what the file is.
                if entry.is_open() && entry.record.source_id() == Some(agent) {
                    group.offers.push((id, offer));
                }
            }
            TransferEvent::Refused(agent, command, reason) => {
                let Some(id) = self.commands.get(&command) else { return };
                let Some(entry) = entries.get(id) else { return };
                if entry.record.phase != TransferPhase::Running {
                    let error = format!("source agent {agent} refused: {reason}");
                    group.offers.push((*id, FileOffer { error, ..FileOffer::default() }));
                } else if let Some(place) = entry.place(&agent)
                    && entry.hosts[place].state() == Host::Sent
                {
                    let host = &entry.hosts[place];
                    group.end(*id, place, host.ended_by_server(Host::Refused, now_ms, &reason));
                }
            }
            TransferEvent::AgentUp(agent) => {
                for (id, entry) in entries.iter_mut().filter(|(_, entry)| entry.is_open()) {
                    if entry.record.phase != TransferPhase::Running {
                        if entry.record.source_id().as_ref() == Some(&agent) {
                            group.offer.insert(*id);
                        }
                        continue;
                    }
                    let Some(place) = entry.place(&agent) else { continue };
                    let host = &mut entry.hosts[place];
                    if host.state().is_final() {
                        continue;
                    }
                    if entry.record.cancel_ms.is_some() {
                        group.cancel.entry(*id).or_default().push(agent.clone());
                    } else if host.state() <= Host::Sent {
                        host.unsent();
                        group.join.entry(*id).or_default().push(agent.clone());
                    }
                }
            }
            TransferEvent::Undeliverable(id, agents) => {
                let Some(entry) = entries.get_mut(&id) else { return };
                for agent in agents {
                    if let Some(place) = entry.place(&agent) {
                        entry.hosts[place].unsent();
                    }
                }
            }
            TransferEvent::LinkUp(link) => {
                for (id, entry) in entries.iter().filter(|(_, entry)| entry.is_open()) {
                    match entry.record.phase {
                        TransferPhase::Running => drop(group.seed.insert(*id, Some(link))),
                        TransferPhase::Fetching => drop(group.offer.insert(*id)),
                        TransferPhase::Offering | TransferPhase::Ended => {}
                    }
                }
            }
            TransferEvent::Fetched(result) => {
                let Ok(id) = TransferId::from_slice(&result.transfer_id) else { return };
                group.fetched.push((id, result));
            }
        }
    }

    async fn order(&mut self, order: Order, group: &mut Group) {
        match order {
            Order::Start(id) => {
                let entries = self.transfers.lock();
                let Some(entry) = entries.get(&id) else { return };
                begin(&id, entry, group);
            }
            Order::Cancel(id, answer) => {
                let outcome = self.begin_cancel(id, group).await;
                // Who asked may be gone; the wish stands.
                let _ = answer.send(outcome);
            }
        }
    }

    async fn begin_cancel(
        &mut self,
        id: TransferId,
        group: &mut Group,
    ) -> Result<(), TransferError> {
        let now_ms = clock::now_ms();
        let mut record = {
            let entries = self.transfers.lock();
            let entry = entries.get(&id).ok_or(TransferError::Unknown(id))?;
            entry.record.clone()
        };
        if record.cancel_ms.is_some() || record.ended_ms.is_some() {
            return Ok(());
        }
        record.cancel_ms = Some(now_ms);
        self.store_record(&id, &record).await?;
        let entries = self.transfers.lock();
        let Some(entry) = entries.get(&id) else { return Ok(()) };
        let mut reach: Vec<AgentId> = Vec::new();
        for (place, host) in entry.hosts.iter().enumerate() {
            match host.state() {
                state if state.is_final() => {}
                Host::Pending => {
                    group.end(
                        id,
                        place,
                        host.ended_by_server(Host::Cancelled, now_ms, "never sent"),
                    );
                }
                _ => reach.push(host.agent.clone()),
            }
        }
        if record.phase != TransferPhase::Running {
            reach.extend(record.source_id());
        }
        group.cancel.insert(id, reach);
        Ok(())
    }

    /// Stores a record, then enters it.
    async fn store_record(
        &self,
        id: &TransferId,
        record: &TransferRecord,
    ) -> Result<(), TransferError> {
        self.transfers.store.commit(record::put_spec(Batch::new(), record)?).await?;
        if let Some(entry) = self.transfers.lock().get_mut(id) {
            entry.record = record.clone();
        }
        Ok(())
    }

    async fn tick(&mut self, group: &mut Group) {
        self.ticks = self.ticks.wrapping_add(1);
        self.look_at_deadlines(group);
        if self.ticks.is_multiple_of(TICKS_PER_SWEEP) {
            self.sweep().await;
        }
    }

    fn look_at_deadlines(&self, group: &mut Group) {
        let now_ms = clock::now_ms();
        let mut open = 0;
        let mut entries = self.transfers.lock();
        for (id, entry) in entries.iter_mut().filter(|(_, entry)| entry.is_open()) {
            open += 1;
            if now_ms - entry.speed.at_ms >= SPEED_MS {
                entry.speed = speed(entry, now_ms);
            }
            self.look_at_hosts(*id, entry, now_ms, group);
            if entry.record.phase == TransferPhase::Running {
                let waiting = entry.hosts.iter().filter(|host| host.state() == Host::Pending);
                let reachable = waiting.filter(|host| self.fleet.link_of(&host.agent).is_some());
                let reachable: Vec<_> = reachable.map(|host| host.agent.clone()).collect();
                if !reachable.is_empty() && entry.record.cancel_ms.is_none() {
                    group.join.insert(*id, reachable);
                }
            } else {
                self.look_at_source(*id, entry, now_ms, group);
            }
        }
        metrics::gauge!(names::CONTROL_TRANSFERS_OPEN).set(f64::from(open));
    }

    fn look_at_hosts(&self, id: TransferId, entry: &Entry, now_ms: i64, group: &mut Group) {
        let record = &entry.record;
        let deliver_by_ms = record.deliver_by_ms();
        let mut expired = Vec::new();
        for (place, host) in entry.hosts.iter().enumerate() {
            let (state, why) = match host.state() {
                state if state.is_final() => continue,
                Host::Pending if record.cancel_ms.is_some() => (Host::Cancelled, "never delivered"),
                Host::Pending if now_ms > deliver_by_ms => {
                    (Host::Undeliverable, "no session until the delivery deadline")
                }
                Host::Sent if now_ms > deliver_by_ms + 2 * ORDER_LIFE_MS => {
                    match record.cancel_ms {
                        Some(_) => (Host::Cancelled, "the order was sent and never answered"),
                        None => (Host::Undeliverable, "the order was sent and never answered"),
                    }
                }
                _ if now_ms > record.expire_ms => {
                    expired.push(host.agent.clone());
                    (Host::Expired, "no final report until the transfer's deadline")
                }
                _ => continue,
            };
            group.end(id, place, host.ended_by_server(state, now_ms, why));
        }
        if !expired.is_empty() {
            group.cancel.entry(id).or_default().extend(expired);
        }
    }

    fn look_at_source(&self, id: TransferId, entry: &Entry, now_ms: i64, group: &mut Group) {
        let Some(source) = entry.record.source_id() else { return };
        let online = self.fleet.link_of(&source).is_some();
        if online && now_ms - entry.asked_ms > ASK_AGAIN_MS {
            group.offer.insert(id);
        }
        let last_ms = entry.asked_ms.max(entry.record.created_ms);
        if !online && now_ms - last_ms > SOURCE_AWAY_MS {
            let error = format!("source agent {source} has been away for too long");
            group.offers.push((id, FileOffer { error, ..FileOffer::default() }));
        }
    }

    /// Makes a group durable, then visible, then acknowledged; then sends what is to be sent.
    async fn settle(&mut self, mut group: Group) {
        for (id, offer) in std::mem::take(&mut group.offers) {
            if let Err(error) = self.offered(id, offer, &mut group).await {
                self.fail(id, &error.to_string(), &mut group).await;
            }
        }
        for (id, result) in std::mem::take(&mut group.fetched) {
            if let Err(error) = self.fetched(id, result, &mut group).await {
                self.fail(id, &error.to_string(), &mut group).await;
            }
        }
        self.store_ends(&mut group).await;
        let acks = group.acks.drain(..).map(|(agent, id)| {
            let ack = ReportAck { transfer_id: id.to_bytes(), ..ReportAck::default() };
            (agent, server_message::Kind::ReportAck(ack))
        });
        let acks: Vec<_> = acks.collect();
        if !acks.is_empty() {
            self.fleet.tell(acks).await;
        }
        for id in std::mem::take(&mut group.offer) {
            self.ask_source(id).await;
        }
        for id in std::mem::take(&mut group.fetch) {
            self.order_fetch(id).await;
        }
        for (id, link) in std::mem::take(&mut group.seed) {
            self.announce(id, link).await;
        }
        for (id, agents) in std::mem::take(&mut group.join) {
            self.send_join(id, agents).await;
        }
        for (id, agents) in std::mem::take(&mut group.cancel) {
            let order = CancelTransfer { transfer_id: id.to_bytes() };
            let kind = command_body::Kind::CancelTransfer(order);
            let until_ms = clock::now_ms() + CANCEL_LIFE_MS;
            let sent = self.fleet.command(Purpose::Other, kind, until_ms, &agents, |_, _| {}).await;
            if let Err(error) = sent {
                tracing::error!(transfer = %id, %error, "cancel is not sent");
            }
        }
        for id in group.unseed {
            self.fleet.tell_data(To::Unseed(UnseedFile { transfer_id: id.to_bytes() })).await;
        }
    }

    fn record(&self, id: &TransferId) -> Option<TransferRecord> {
        self.transfers.lock().get(id).filter(|entry| entry.is_open()).map(|e| e.record.clone())
    }

    /// The source says what its file is, or that it cannot.
    async fn offered(
        &mut self,
        id: TransferId,
        offer: FileOffer,
        group: &mut Group,
    ) -> Result<(), TransferError> {
        let Some(mut record) = self.record(&id) else { return Ok(()) };
        if record.phase == TransferPhase::Running || record.cancel_ms.is_some() {
            return Ok(());
        }
        if !offer.error.is_empty() {
            return Err(TransferError::Invalid(offer.error));
        }
        let info = offer.file.unwrap_or_default();
        let manifest = Manifest::from_info(&info)
            .map_err(|error| TransferError::Invalid(error.to_string()))?;
        let now_ms = clock::now_ms();
        let file = Upload {
            upload_id: id.to_string(),
            name: manifest.name.clone(),
            size_bytes: info.size_bytes,
            root: hex_encode(&manifest.root),
            piece_bytes: info.piece_bytes,
            mode: info.mode,
            mtime_ms: info.mtime_ms,
            created_ms: now_ms,
            expires_ms: now_ms,
        };
        let same = record.file.as_ref().is_some_and(|known| known.root == file.root);
        if record.phase == TransferPhase::Fetching && !same {
            let why = "the source file changed while it was being fetched; push it again";
            return Err(TransferError::Invalid(why.into()));
        }
        if record.phase == TransferPhase::Offering {
            // Room is looked at now; the space itself is allocated by the data process.
            drop(self.transfers.cache.reserve(info.size_bytes)?);
            record.phase = TransferPhase::Fetching;
            record.file = Some(file);
            self.store_record(&id, &record).await?;
        }
        group.fetch.insert(id);
        Ok(())
    }

    /// The file is in the cache, or could not be taken.
    async fn fetched(
        &mut self,
        id: TransferId,
        result: FetchResult,
        group: &mut Group,
    ) -> Result<(), TransferError> {
        let Some(mut record) = self.record(&id) else { return Ok(()) };
        if record.phase != TransferPhase::Fetching || record.cancel_ms.is_some() {
            return Ok(());
        }
        if !result.error.is_empty() {
            return Err(TransferError::Invalid(format!(
                "fetching from the source: {}",
                result.error
            )));
        }
        let info = record.file_info().unwrap_or_default();
        let manifest = Manifest::from_info(&info)
            .map_err(|error| TransferError::Invalid(error.to_string()))?;
        let cache = &self.transfers.cache;
        let room = cache.reserve(info.size_bytes)?;
        let upload = cache.keep(id, &manifest, room).await?;
        cache.pin(&id);
        record.run(upload, clock::now_ms());
        self.store_record(&id, &record).await?;
        if let Some(entry) = self.transfers.lock().get(&id) {
            begin(&id, entry, group);
        }
        Ok(())
    }

    /// The transfer as a whole has failed: every host that has not ended ends so.
    async fn fail(&mut self, id: TransferId, why: &str, group: &mut Group) {
        let Some(mut record) = self.record(&id) else { return };
        tracing::warn!(transfer = %id, why, "transfer failed");
        record.error = why.to_owned();
        if let Err(error) = self.store_record(&id, &record).await {
            tracing::error!(transfer = %id, %error, "the failure is not stored");
            return;
        }
        let now_ms = clock::now_ms();
        let entries = self.transfers.lock();
        let Some(entry) = entries.get(&id) else { return };
        for (place, host) in entry.hosts.iter().enumerate().filter(|(_, h)| !h.state().is_final()) {
            group.end(id, place, host.ended_by_server(Host::Failed, now_ms, why));
        }
        group.unseed.insert(id);
        group.cancel.entry(id).or_default().extend(entry.record.source_id());
    }

    async fn store_ends(&self, group: &mut Group) {
        let ends = std::mem::take(&mut group.ends);
        for part in ends.chunks(ENDS_PER_BATCH) {
            // Nothing was entered or acknowledged on failure: agents and deadlines come again.
            if let Err(error) = self.store_some_ends(part, group).await {
                tracing::error!(%error, "ends of transfers are not stored");
            }
        }
    }

    async fn store_some_ends(
        &self,
        ends: &[(TransferId, usize, Final)],
        group: &mut Group,
    ) -> Result<(), TransferError> {
        let mut batch = Batch::new();
        let mut counts: HashMap<TransferId, usize> = HashMap::new();
        let mut closing: Vec<TransferRecord> = Vec::new();
        {
            let entries = self.transfers.lock();
            for (id, place, run) in ends {
                let Some(entry) = entries.get(id) else { continue };
                batch = record::put_final(batch, id, &entry.hosts[*place].agent, run)?;
                *counts.entry(*id).or_default() += 1;
            }
            for (id, count) in &counts {
                let Some(entry) = entries.get(id) else { continue };
                let open = entry.hosts.iter().filter(|host| !host.state().is_final()).count();
                if open == *count {
                    let mut record = entry.record.clone();
                    record.ended_ms = Some(clock::now_ms());
                    batch = record::put_spec(batch, &record)?;
                    closing.push(record);
                }
            }
        }
        self.transfers.store.commit(batch).await?;
        let mut entries = self.transfers.lock();
        for (id, place, run) in ends {
            let Some(entry) = entries.get_mut(id) else { continue };
            let word = state_word(&run.state);
            metrics::counter!(names::CONTROL_TRANSFERS, "state" => word).increment(1);
            let host = &mut entry.hosts[*place];
            host.end(run.clone());
            group.acks.push((host.agent.clone(), *id));
        }
        for record in closing {
            let Some(id) = record.id() else { continue };
            if let Some(entry) = entries.get_mut(&id) {
                if let Some(file) = running_file(&record) {
                    self.transfers.cache.unpin(&file);
                }
                entry.record = record;
                group.unseed.insert(id);
            }
        }
        Ok(())
    }

    async fn ask_source(&mut self, id: TransferId) {
        let Some(record) = self.record(&id) else { return };
        let (Some(source), TransferSource::Agent { path, .. }) =
            (record.source_id(), record.source)
        else {
            return;
        };
        if record.phase == TransferPhase::Running || record.cancel_ms.is_some() {
            return;
        }
        if let Some(entry) = self.transfers.lock().get_mut(&id) {
            entry.asked_ms = clock::now_ms();
        }
        let order = OfferFile { transfer_id: id.to_bytes(), path, piece_bytes: 0 };
        self.send(id, command_body::Kind::OfferFile(order), record.expire_ms, &[source]).await;
    }

    async fn order_fetch(&mut self, id: TransferId) {
        let Some(record) = self.record(&id) else { return };
        let Some(source) = record.source_id() else { return };
        let Some(link) = self.fleet.link_of(&source) else { return };
        if let Some(entry) = self.transfers.lock().get_mut(&id) {
            entry.asked_ms = clock::now_ms();
        }
        let fetch = FetchFile {
            transfer_id: id.to_bytes(),
            agent_id: source.to_string(),
            path: self.transfers.cache.path(&id).to_string_lossy().into_owned(),
            file: record.file_info(),
            not_after_ms: record.expire_ms,
        };
        self.fleet.tell_link(link, To::Fetch(fetch)).await;
    }

    /// Tells data processes to serve a file to its targets.
    async fn announce(&mut self, id: TransferId, link: Option<u64>) {
        let (record, agent_ids) = {
            let entries = self.transfers.lock();
            let Some(entry) = entries.get(&id) else { return };
            let open = entry.hosts.iter().filter(|host| !host.state().is_final());
            (entry.record.clone(), open.map(|host| host.agent.to_string()).collect())
        };
        let Some(file) = running_file(&record) else { return };
        let seed = SeedFile {
            transfer_id: id.to_bytes(),
            path: self.transfers.cache.path(&file).to_string_lossy().into_owned(),
            file: record.file_info(),
            agent_ids,
            not_after_ms: record.expire_ms,
        };
        match link {
            Some(link) => drop(self.fleet.tell_link(link, To::Seed(seed)).await),
            None => self.fleet.tell_data(To::Seed(seed)).await,
        }
    }

    async fn send_join(&mut self, id: TransferId, agents: Vec<AgentId>) {
        let Some(record) = self.record(&id) else { return };
        if record.cancel_ms.is_none() {
            let until_ms = record.deliver_by_ms();
            let kind = command_body::Kind::JoinTransfer(record.order(&id));
            self.send(id, kind, until_ms, &agents).await;
        }
    }

    async fn send(
        &mut self,
        id: TransferId,
        kind: command_body::Kind,
        until_ms: i64,
        agents: &[AgentId],
    ) {
        let until_ms = until_ms.max(clock::now_ms()) + ORDER_LIFE_MS;
        let is_join = matches!(kind, command_body::Kind::JoinTransfer(_));
        let transfers = self.transfers.clone();
        let mut command = None;
        let note = |command_id, online: &[AgentId]| {
            command = Some(command_id);
            let mut entries = transfers.lock();
            let Some(entry) = entries.get_mut(&id).filter(|_| is_join) else { return };
            for agent in online {
                if let Some(place) = entry.place(agent) {
                    entry.hosts[place].sent();
                }
            }
        };
        let sent = self.fleet.command(Purpose::Transfer(id), kind, until_ms, agents, note).await;
        if let Err(error) = sent {
            tracing::error!(transfer = %id, %error, "order is not sent");
        }
        if let Some(command) = command {
            self.commands.insert(command, id);
            self.commands_in_order.push_back(command);
            if self.commands_in_order.len() > COMMANDS_MAX
                && let Some(oldest) = self.commands_in_order.pop_front()
            {
                self.commands.remove(&oldest);
            }
        }
    }

    /// Removes ended transfers beyond the history's bounds, and expired files.
    async fn sweep(&self) {
        let now_ms = clock::now_ms();
        let doomed: Vec<TransferId> = {
            let entries = self.transfers.lock();
            let ended =
                entries.iter().filter_map(|(id, e)| Some((e.record.ended_ms?, *id, e.hosts.len())));
            let mut ended: Vec<_> = ended.collect();
            ended.sort_unstable();
            let mut hosts: usize = entries.values().map(|entry| entry.hosts.len()).sum();
            let mut count = ended.len();
            let mut doomed = Vec::new();
            for (ended_ms, id, its_hosts) in ended {
                let too_many = count > TRANSFERS_KEPT_MAX || hosts > TRANSFER_HOSTS_MAX / 2;
                if ended_ms + TRANSFER_KEEP_MS >= now_ms && !too_many {
                    break;
                }
                count -= 1;
                hosts -= its_hosts;
                doomed.push(id);
            }
            doomed
        };
        for id in doomed {
            if let Err(error) = record::remove(&*self.transfers.store, &id).await {
                tracing::warn!(transfer = %id, %error, "an old transfer is not removed");
                return;
            }
            self.transfers.lock().remove(&id);
        }
        if let Err(error) = self.transfers.cache.sweep().await {
            tracing::warn!(%error, "expired uploads are not removed");
        }
    }
}

/// What a new transfer, or one whose file has arrived, needs first.
fn begin(id: &TransferId, entry: &Entry, group: &mut Group) {
    if entry.record.phase == TransferPhase::Running {
        group.seed.insert(*id, None);
        let all = entry.hosts.iter().filter(|host| !host.state().is_final());
        group.join.insert(*id, all.map(|host| host.agent.clone()).collect());
    } else {
        group.offer.insert(*id);
    }
}

fn speed(entry: &Entry, now_ms: i64) -> Speed {
    let bytes = entry.moved_bytes();
    let seconds = (now_ms - entry.speed.at_ms).max(1) as f64 / 1_000.0;
    let gained = bytes.saturating_sub(entry.speed.bytes) as f64;
    let per_second = if entry.speed.at_ms == 0 { 0 } else { (gained / seconds) as u64 };
    Speed { at_ms: now_ms, bytes, per_second }
}
