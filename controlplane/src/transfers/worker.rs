//! What moves transfers forward: offers and reports in, orders and announcements out.

mod learn;
mod look;
mod replan;
mod revoked;
mod rollout;
mod source;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use skein_observe::names;
use skein_wire::fleet::v1::to_data::Kind as To;
use skein_wire::fleet::v1::{FetchResult, SeedFile, UnseedFile};
use skein_wire::ids::{AgentId, TransferId};
use skein_wire::signal::v1::{CancelTransfer, FileOffer, ReportAck, command_body, server_message};

pub use self::look::Look;
use self::look::Looks;
use super::counts::{Counts, sender};
use super::host::{Final, HostPush, Report};
use super::judged::{Course, Judged, judged};
use super::meshes::Meshes;
use super::{
    Entry, HISTORY, Order, Speed, TransferError, TransferRecord, Transfers, Wish, record,
    running_file,
};
use crate::api::types::{TransferHostState as Host, TransferPhase};
use crate::clock;
use crate::fleet::events::TransferEvent;
use crate::fleet::{Fleet, Purpose};
use crate::jobs::delivery::{Commands, count_repeat};
use crate::jobs::history::{self, Ended};
use crate::jobs::worker::{
    CANCEL_LIFE_MS, ENDS_PER_BATCH, Ends, ORDER_LIFE_MS, TICKS_PER_SWEEP, Work,
};
use crate::store::Batch;
use crate::tasks::state_word;

/// Ticks between two looks for files that nobody owns: ten minutes.
const TICKS_PER_TIDYING: u32 = 60 * TICKS_PER_SWEEP;
/// Speeds are taken over at least this long.
const SPEED_MS: i64 = 1_000;

/// Runs the transfers.
pub struct Worker {
    transfers: Arc<Transfers>,
    fleet: Arc<Fleet>,
    commands: Commands<TransferId>,
    meshes: Meshes,
    counts: Counts,
    looks: Looks,
    ticks: u32,
    /// Of the registry, when they were last looked at.
    revocations: Option<u64>,
}

/// What one group of events comes to.
#[derive(Default)]
pub struct Group {
    ends: Ends<TransferId, Final>,
    acks: Vec<(AgentId, TransferId)>,
    join: HashMap<TransferId, Vec<AgentId>>,
    cancel: HashMap<TransferId, Vec<AgentId>>,
    pause: HashMap<TransferId, Vec<AgentId>>,
    /// Ask the source.
    offer: HashSet<TransferId>,
    offers: Vec<(TransferId, AgentId, FileOffer)>,
    /// Announce to one link (or all) what it must serve.
    seed: HashMap<TransferId, Option<u64>>,
    fetch: HashSet<TransferId>,
    fetched: Vec<(TransferId, FetchResult)>,
    unseed: HashSet<TransferId>,
    /// Ended transfers for which it is known what the server sent.
    sent: Vec<TransferId>,
}

impl Worker {
    /// For a service and the fleet.
    pub fn new(transfers: Arc<Transfers>, fleet: Arc<Fleet>) -> Self {
        let (commands, meshes) = (Commands::default(), Meshes::default());
        let (counts, looks) = (Counts::default(), Looks::default());
        Self { transfers, fleet, commands, meshes, counts, looks, ticks: 0, revocations: None }
    }
}

impl Work for Worker {
    type Event = TransferEvent;
    type Order = Order;
    type Group = Group;

    fn event(&mut self, event: TransferEvent, group: &mut Group) {
        let now_ms = clock::now_ms();
        let mut entries = self.transfers.lock();
        match event {
            TransferEvent::Update(agent, update) => {
                let Ok(id) = TransferId::from_slice(&update.transfer_id) else { return };
                let found = entries.get_mut(&id).and_then(|entry| {
                    let place = entry.place(&agent)?;
                    let report = entry.hosts[place].report(&update);
                    if report != Report::Ended {
                        entry.began_ms.get_or_insert(now_ms);
                    }
                    let host = &mut entry.hosts[place];
                    // What is found on its disk says nothing of its link.
                    let moved = update.verified_bytes.saturating_sub(update.resumed_bytes);
                    host.pace.report(moved, now_ms);
                    if matches!(report, Report::End(_)) {
                        host.heard_ms = now_ms;
                    }
                    // A quick host says that it is done before it was heard to run.
                    let moves = match &report {
                        Report::Progress => host.state() >= Host::Running,
                        Report::End(_) => true,
                        Report::Ended => false,
                    };
                    if moves {
                        let gained = host.meter.note(moved, update.from_peers_bytes, now_ms);
                        let (gear, registry) = (&entry.record.gear.gear, &self.transfers.registry);
                        self.counts.gained(gear, registry, &agent, gained);
                    }
                    Some((place, report))
                });
                match found {
                    Some((place, Report::Progress)) => {
                        if let Some(entry) = entries.get_mut(&id) {
                            rollout::look_at_paused(entry, place);
                        }
                    }
                    Some((place, Report::End(run))) => group.ends.add(id, place, run),
                    Some((_, Report::Ended)) | None => group.acks.push((agent, id)),
                }
            }
            TransferEvent::Offer(agent, offer) => {
                let Ok(id) = TransferId::from_slice(&offer.transfer_id) else { return };
                if self.looks.take(&id, &agent, &offer, group) {
                    return;
                }
                let Some(entry) = entries.get(&id) else { return };
                // Only a source that was asked may say what the file is.
                if entry.is_open() && entry.record.has_source(&agent) {
                    group.offers.push((id, agent, offer));
                }
            }
            TransferEvent::Refused(agent, command, reason) => {
                let Some((id, dispatch)) = self.commands.find(&command) else { return };
                let Some(entry) = entries.get(&id) else { return };
                if entry.record.phase != TransferPhase::Running {
                    let error = format!("source agent {agent} refused: {reason}");
                    group.offers.push((id, agent, FileOffer { error, ..FileOffer::default() }));
                } else if let Some(place) = entry.place(&agent)
                    && entry.hosts[place].state() == Host::Sent
                    && entry.hosts[place].delivery.is_newest(dispatch)
                {
                    let host = &entry.hosts[place];
                    let end = host.ended_by_server(Host::Refused, now_ms, &reason);
                    group.ends.add(id, place, end);
                }
            }
            TransferEvent::Mesh(agent, report) => self.meshes.report(&agent, &report),
            TransferEvent::AgentUp(agent) => {
                for (id, entry) in entries.iter_mut().filter(|(_, entry)| entry.is_open()) {
                    self.meshes.agent_up(id, &agent);
                    let is_stopped = entry.record.rollout.is_stopped();
                    if entry.record.phase != TransferPhase::Running {
                        if entry.record.has_source(&agent) && !is_stopped {
                            group.offer.insert(*id);
                        }
                        continue;
                    }
                    let Some(place) = entry.place(&agent) else { continue };
                    let started = entry.started();
                    let host = &mut entry.hosts[place];
                    if host.state().is_final() {
                        continue;
                    }
                    host.delivery.begin_anew();
                    if entry.record.cancel_ms.is_some() {
                        group.cancel.entry(*id).or_default().push(agent.clone());
                    } else if place >= started {
                        continue;
                    } else if is_stopped {
                        // Whether it heard of the pause is not known to a new control process.
                        group.pause.entry(*id).or_default().push(agent.clone());
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
                let runs = |entry: &Entry| entry.is_open() && !entry.record.rollout.is_stopped();
                for (id, entry) in entries.iter().filter(|(_, entry)| runs(entry)) {
                    match entry.record.phase {
                        TransferPhase::Running => drop(group.seed.insert(*id, Some(link))),
                        TransferPhase::Fetching => drop(group.offer.insert(*id)),
                        _ => {}
                    }
                }
            }
            TransferEvent::Fetched(result) => {
                let Ok(id) = TransferId::from_slice(&result.transfer_id) else { return };
                group.fetched.push((id, result));
            }
            TransferEvent::Sent(sent) => {
                let Ok(id) = TransferId::from_slice(&sent.transfer_id) else { return };
                let Some(entry) = entries.get_mut(&id) else { return };
                self.counts.sent(&entry.record.gear.gear, entry.sent.take(sent.bytes));
                if sent.is_last && !entry.is_open() {
                    group.sent.push(id);
                }
            }
        }
    }

    async fn order(&mut self, order: Order, group: &mut Group) {
        match order {
            Order::Start(id) => {
                if let Some(entry) = self.transfers.lock().get(&id) {
                    begin(&id, entry, group);
                }
                self.look_at_queue(group).await;
            }
            Order::Look(look) => self.look(look).await,
            Order::Wish(id, wish, answer) => {
                let outcome = match wish {
                    Wish::Cancel => self.begin_cancel(id, group).await,
                    Wish::Pause => self.pause(id, group).await,
                    Wish::Resume => self.resume(id, group).await,
                };
                // Who asked may be gone; the wish stands.
                let _ = answer.send(outcome);
            }
        }
    }

    async fn tick(&mut self, group: &mut Group) {
        self.ticks = self.ticks.wrapping_add(1);
        self.looks.expire(clock::now_ms(), group);
        self.look_at_deadlines(group);
        self.look_at_revoked(group).await;
        self.look_at_batches(group).await;
        self.look_at_queue(group).await;
        self.look_at_courses(group).await;
        self.take_up_meshes();
        if self.ticks.is_multiple_of(TICKS_PER_SWEEP) {
            self.look_at_held(group).await;
            self.sweep().await;
        }
    }

    /// Makes a group durable, then visible, then acknowledged; then sends what is to be sent.
    async fn settle(&mut self, mut group: Group) {
        for (id, agent, offer) in std::mem::take(&mut group.offers) {
            if let Err(error) = self.offered(id, &agent, offer, &mut group).await {
                self.fail(id, &error.to_string(), &mut group).await;
            }
        }
        for (id, result) in std::mem::take(&mut group.fetched) {
            if let Err(error) = self.fetched(id, result, &mut group).await {
                self.fail(id, &error.to_string(), &mut group).await;
            }
        }
        self.store_ends(&mut group).await;
        for id in std::mem::take(&mut group.sent) {
            self.store_sent(&id).await;
        }
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
        self.take_up_meshes();
        for lost in self.meshes.tick(&self.fleet, &self.transfers.registry).await {
            self.fail(lost.id, &lost.why, &mut group).await;
            self.store_ends(&mut group).await;
        }
        for (id, agents) in std::mem::take(&mut group.cancel) {
            self.send_cancel(id, agents, false).await;
        }
        for (id, agents) in std::mem::take(&mut group.pause) {
            self.send_cancel(id, agents, true).await;
        }
        for id in group.unseed {
            self.fleet.tell_data(To::Unseed(UnseedFile { transfer_id: id.to_bytes() })).await;
        }
    }
}

impl Worker {
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
        if record.rollout.is_stopped() || record.rollout.halted.is_some() {
            // Its deadline stood still.
            record.expire_ms = record.expire_ms.max(now_ms + record.deliver_within_ms);
        }
        self.store_record(&id, &record).await?;
        let mut entries = self.transfers.lock();
        let Some(entry) = entries.get_mut(&id) else { return Ok(()) };
        let started = entry.started();
        let mut reach: Vec<AgentId> = Vec::new();
        for (place, host) in entry.hosts.iter_mut().enumerate() {
            match host.state() {
                state if state.is_final() => {}
                Host::Pending => {
                    let why = if place < started { "never sent" } else { "never started" };
                    let end = host.ended_by_server(Host::Cancelled, now_ms, why);
                    group.ends.add(id, place, end);
                }
                _ => {
                    host.delivery.begin_anew();
                    reach.push(host.agent.clone());
                }
            }
        }
        if record.phase != TransferPhase::Running {
            reach.extend(record.source_ids());
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
        let batch = record::SHELF.put_spec(Batch::new(), &record.transfer_id, record)?;
        self.transfers.store.commit(batch).await?;
        if let Some(entry) = self.transfers.lock().get_mut(id) {
            entry.record = record.clone();
        }
        Ok(())
    }

    /// Keeps what the server sent for an ended transfer.
    async fn store_sent(&self, id: &TransferId) {
        let record = self.transfers.lock().get(id).map(|entry| {
            let mut record = entry.record.clone();
            record.source_sent_bytes = record.source_sent_bytes.max(entry.sent.bytes());
            record.source_is_final = true;
            self.counts.source_known(entry, record.source_sent_bytes);
            record
        });
        let Some(record) = record else { return };
        if let Err(error) = self.store_record(id, &record).await {
            tracing::warn!(transfer = %id, %error, "what the server sent is not stored");
        }
        if let Some(entry) = self.transfers.lock().get_mut(id) {
            entry.ended_view.take();
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
            if entry.record.cancel_ms.is_none() && entry.record.rollout.is_stopped() {
                self.look_at_pause(*id, entry, now_ms, group);
                continue;
            }
            self.look_at_hosts(*id, entry, now_ms, group);
            if entry.record.phase == TransferPhase::Running {
                self.look_at_delivery(*id, entry, now_ms, group);
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
        let cancelled = record.cancel_ms.is_some();
        let started = if cancelled { entry.hosts.len() } else { entry.started() };
        for (place, host) in entry.hosts[..started].iter().enumerate() {
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
            group.ends.add(id, place, host.ended_by_server(state, now_ms, why));
        }
        if !expired.is_empty() {
            group.cancel.entry(id).or_default().extend(expired);
        }
    }

    /// Hosts that were never told (who stored the transfer died before), or do not answer.
    fn look_at_delivery(&self, id: TransferId, entry: &Entry, now_ms: i64, group: &mut Group) {
        let cancelled = entry.record.cancel_ms.is_some();
        let in_time = now_ms <= entry.record.deliver_by_ms() + ORDER_LIFE_MS;
        let waits = |host: &&HostPush| match cancelled {
            true => !host.state().is_final() && host.state() > Host::Pending,
            false => host.state() <= Host::Sent && in_time,
        };
        let told = if cancelled { entry.hosts.len() } else { entry.started() };
        let due = entry.hosts[..told].iter().filter(waits).filter(|host| {
            host.delivery.is_due(now_ms) && self.fleet.link_of(&host.agent).is_some()
        });
        let due: Vec<AgentId> = due.map(|host| host.agent.clone()).collect();
        if !due.is_empty() {
            let orders = if cancelled { &mut group.cancel } else { &mut group.join };
            orders.entry(id).or_default().extend(due);
        }
    }

    /// Begins the meshes of transfers that run and have none, those of an earlier process too.
    fn take_up_meshes(&mut self) {
        let entries = self.transfers.lock();
        for (id, entry) in entries.iter().filter(|(_, entry)| entry.is_open()) {
            let record = &entry.record;
            let runs = record.phase == TransferPhase::Running && !record.rollout.is_stopped();
            if runs && record.gear.is_meshed() && !self.meshes.has(id) {
                let agents = entry.hosts.iter().map(|host| host.agent.clone()).collect();
                self.meshes.begin(*id, record, agents, &self.transfers);
                self.meshes.start(id, entry.started(), record.expire_ms);
            }
        }
    }

    fn record(&self, id: &TransferId) -> Option<TransferRecord> {
        self.transfers.lock().get(id).filter(|entry| entry.is_open()).map(|e| e.record.clone())
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
            group.ends.add(id, place, host.ended_by_server(Host::Failed, now_ms, why));
        }
        group.unseed.insert(id);
        group.cancel.entry(id).or_default().extend(entry.record.source_ids());
    }

    async fn store_ends(&mut self, group: &mut Group) {
        let ends = group.ends.take();
        for part in ends.chunks(ENDS_PER_BATCH) {
            // Nothing was entered or acknowledged on failure: agents and deadlines come again.
            if let Err(error) = self.store_some_ends(part, group).await {
                tracing::error!(%error, "ends of transfers are not stored");
            }
        }
    }

    async fn store_some_ends(
        &mut self,
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
                let agent = &entry.hosts[*place].agent;
                batch = record::SHELF.put_end(batch, &id.to_string(), agent, run)?;
                *counts.entry(*id).or_default() += 1;
            }
            for (id, count) in &counts {
                let Some(entry) = entries.get(id) else { continue };
                let open = entry.hosts.iter().filter(|host| !host.state().is_final()).count();
                if open == *count {
                    let mut record = entry.record.clone();
                    record.ended_ms = Some(clock::now_ms());
                    record.content_hex = None;
                    record.judged = self.judge(id, entry, ends);
                    record.source_sent_bytes = entry.sent.bytes();
                    batch = record::SHELF.put_spec(batch, &record.transfer_id, &record)?;
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
            let mut run = run.clone();
            let from = std::mem::take(&mut run.received_from);
            let agents = self.meshes.agents(id);
            let from =
                from.iter().filter_map(|(member, bytes)| Some((sender(agents, *member)?, *bytes)));
            let (gear, registry) = (&entry.record.gear.gear, &self.transfers.registry);
            self.counts.host_ended(gear, registry, &entry.hosts[*place].agent, &run, from);
            let host = &mut entry.hosts[*place];
            host.end(run);
            if host.state() != Host::Done {
                self.meshes.gone(id, &host.agent);
            }
            group.acks.push((host.agent.clone(), *id));
        }
        for record in closing {
            let Some(id) = record.id() else { continue };
            if let Some(entry) = entries.get_mut(&id) {
                match running_file(&record) {
                    Some(file) => self.transfers.cache.unpin(&file),
                    None => self.transfers.cache.abandon(&id),
                }
                if !record.gear.is_inline() {
                    group.unseed.insert(id);
                }
                entry.record = record;
                learn::from_end(&self.transfers.rates, entry);
                self.counts.ended(entry);
                self.transfers.ends.notify_waiters();
                // Whoever is done serves others until it hears that nobody needs it.
                let mut took_part = self.meshes.end(&id);
                if took_part.is_empty() && entry.record.gear.is_meshed() {
                    // A pause had ended the mesh.
                    let done = entry.hosts.iter().filter(|host| host.state() == Host::Done);
                    took_part.extend(done.map(|host| host.agent.clone()));
                }
                if !took_part.is_empty() {
                    group.cancel.entry(id).or_default().extend(took_part);
                }
            }
        }
        Ok(())
    }

    /// What is said of a transfer whose last hosts end so.
    fn judge(
        &self,
        id: &TransferId,
        entry: &Entry,
        ends: &[(TransferId, usize, Final)],
    ) -> Option<Judged> {
        let ended = ends.iter().filter(|(of, _, run)| of == id && run.state == Host::Done);
        let before = entry.hosts.iter().filter(|host| host.state() == Host::Done);
        let heard = ended.map(|(_, place, _)| &entry.hosts[*place]).chain(before);
        let done_ms = heard.map(|host| host.heard_ms).filter(|at_ms| *at_ms > 0).collect();
        let repair_ms = self.meshes.repair_ms(id);
        let course = Course { began_ms: entry.began_ms, done_ms, repair_ms };
        judged(&entry.record, &course, &self.transfers.planner)
    }

    /// Tells data processes to serve a file to its targets.
    async fn announce(&mut self, id: TransferId, link: Option<u64>) {
        let (record, agent_ids) = {
            let entries = self.transfers.lock();
            let Some(entry) = entries.get(&id) else { return };
            let started = &entry.hosts[..entry.started()];
            let open = started.iter().filter(|host| !host.state().is_final());
            (entry.record.clone(), open.map(|host| host.agent.to_string()).collect())
        };
        if record.rollout.is_stopped() {
            return;
        }
        let file = running_file(&record).filter(|_| !record.gear.is_inline());
        let Some(file) = file else { return };
        let seed = SeedFile {
            transfer_id: id.to_bytes(),
            path: self.transfers.cache.path(&file).to_string_lossy().into_owned(),
            file: record.file_info(),
            agent_ids,
            not_after_ms: record.expire_ms,
            rate_limit_bytes_per_s: record.rate_limit_total_bytes_per_s,
        };
        match link {
            Some(link) => drop(self.fleet.tell_link(link, To::Seed(seed)).await),
            None => self.fleet.tell_data(To::Seed(seed)).await,
        }
    }

    async fn send_join(&mut self, id: TransferId, agents: Vec<AgentId>) {
        let Some(record) = self.record(&id) else { return };
        if record.cancel_ms.is_none() && !record.rollout.is_stopped() {
            let until_ms = record.deliver_by_ms();
            let mut order = record.order(&id);
            if record.gear.is_inline() {
                match self.transfers.content_of(&record) {
                    Ok(content) => order.content = Some(content),
                    // It is tried again until nobody is left to be told.
                    Err(error) => {
                        return tracing::error!(transfer = %id, %error, "a small file is not read");
                    }
                }
            }
            let kind = command_body::Kind::JoinTransfer(order);
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
        let now_ms = clock::now_ms();
        let until_ms = until_ms.max(now_ms) + ORDER_LIFE_MS;
        let is_join = matches!(kind, command_body::Kind::JoinTransfer(_));
        // Before it is sent: the answer may come before the call returns.
        let note = |command_id, online: &[AgentId]| {
            let mut entries = self.transfers.lock();
            let Some(entry) = entries.get_mut(&id) else { return };
            entry.dispatches += 1;
            let dispatch = entry.dispatches;
            self.commands.note(command_id, id, dispatch);
            for agent in online.iter().filter(|_| is_join) {
                if let Some(place) = entry.place(agent) {
                    let host = &mut entry.hosts[place];
                    count_repeat(&host.delivery, "join_transfer");
                    host.sent(dispatch, now_ms);
                }
            }
        };
        let sent = self.fleet.command(Purpose::Transfer(id), kind, until_ms, agents, note).await;
        if let Err(error) = sent {
            tracing::error!(transfer = %id, %error, "order is not sent");
        }
    }

    /// Ends a transfer on agents; with `keep` it is a pause.
    async fn send_cancel(&mut self, id: TransferId, agents: Vec<AgentId>, keep: bool) {
        let now_ms = clock::now_ms();
        let order = CancelTransfer { transfer_id: id.to_bytes(), keep };
        let note = |_, online: &[AgentId]| {
            let mut entries = self.transfers.lock();
            let Some(entry) = entries.get_mut(&id) else { return };
            for agent in online {
                if let Some(place) = entry.place(agent) {
                    let delivery = &mut entry.hosts[place].delivery;
                    count_repeat(delivery, "cancel_transfer");
                    delivery.told(now_ms);
                }
            }
        };
        let kind = command_body::Kind::CancelTransfer(order);
        let until_ms = now_ms + CANCEL_LIFE_MS;
        let sent = self.fleet.command(Purpose::Other, kind, until_ms, &agents, note).await;
        if let Err(error) = sent {
            tracing::error!(transfer = %id, %error, "cancel is not sent");
        }
    }

    /// Removes ended transfers beyond the history's bounds, and expired files.
    async fn sweep(&self) {
        let doomed = {
            let entries = self.transfers.lock();
            let hosts = entries.values().map(|entry| entry.hosts.len()).sum();
            let ended = entries.iter().filter_map(|(id, entry)| {
                let ended_ms = entry.record.ended_ms?;
                Some(Ended { ended_ms, id: *id, hosts: entry.hosts.len(), bytes: 0 })
            });
            history::beyond(ended.collect(), hosts, 0, &HISTORY, clock::now_ms())
        };
        for id in doomed {
            if let Err(error) = record::SHELF.remove(&*self.transfers.store, &id.to_string()).await
            {
                tracing::warn!(transfer = %id, %error, "an old transfer is not removed");
                return;
            }
            self.transfers.lock().remove(&id);
        }
        let rates = &self.transfers.rates;
        if let Err(error) = rates.keep(&*self.transfers.store, clock::now_ms()).await {
            tracing::warn!(%error, "what is known of rates is not stored");
        }
        self.report();
        if self.ticks.is_multiple_of(TICKS_PER_TIDYING) {
            let cache = self.transfers.cache.clone();
            let tidied = tokio::task::spawn_blocking(move || cache.remove_strangers());
            if let Ok(Err(error)) = tidied.await {
                tracing::warn!(%error, "the cache is not tidied");
            }
        }
        if let Err(error) = self.transfers.cache.sweep().await {
            tracing::warn!(%error, "expired uploads are not removed");
        }
    }

    fn report(&self) {
        let entries = self.transfers.lock();
        let hosts: usize = entries.values().map(|entry| entry.hosts.len()).sum();
        let gauge = |kind: &'static str, count: usize| {
            metrics::gauge!(names::CONTROL_KEPT, "kind" => kind).set(count as f64);
        };
        gauge("transfer", entries.len());
        gauge("transfer_host", hosts);
    }
}

/// What a new transfer, or one whose file has arrived, needs first.
fn begin(id: &TransferId, entry: &Entry, group: &mut Group) {
    if entry.record.rollout.is_stopped() || entry.record.cancel_ms.is_some() {
        return;
    }
    if entry.record.phase == TransferPhase::Running {
        group.seed.insert(*id, None);
        let started = &entry.hosts[..entry.started()];
        let all = started.iter().filter(|host| host.state() <= Host::Sent);
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
