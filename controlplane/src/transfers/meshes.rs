//! Transfers whose pieces go from host to host: one coordinator each, reports in, lists and plans
//! out. All of it is soft: a control process that begins anew asks everybody what they hold.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use skein_filemesh::core::coordinator::{
    ComplaintCounts, Coordinator, Held, Output, Participant, Settings, Spec,
};
use skein_filemesh::core::geometry::Geometry;
use skein_filemesh::core::hints::Progress;
use skein_filemesh::core::place::Rates;
use skein_filemesh::core::plan::{HostPlan, Member};
use skein_filemesh::core::planner::Gear;
use skein_filemesh::core::swarm::PATIENCE_MS_MIN;
use skein_observe::names;
use skein_wire::ids::{AgentId, TransferId, hex_decode};
use skein_wire::signal::v1::{MeshReport, server_message};

use super::Transfers;
use super::membership::{Membership, links_of};
use super::rates::for_trees;
use super::record::TransferRecord;
use crate::clock;
use crate::fleet::Fleet;
use crate::registry::Registry;

/// The server's number: it seeds.
const SERVER: Member = 0;

/// The meshed transfers that run.
#[derive(Default)]
pub(super) struct Meshes {
    runs: HashMap<TransferId, Mesh>,
}

/// Something that ends a transfer.
pub(super) struct Lost {
    /// Which transfer.
    pub id: TransferId,
    /// Why.
    pub why: String,
}

struct Mesh {
    coordinator: Coordinator,
    membership: Membership,
    members: HashMap<AgentId, Member>,
    /// By number; the first is member 1.
    agents: Vec<AgentId>,
    /// How many of them take part, from the first on: those of the batches that were started.
    started: usize,
    joined: BTreeSet<Member>,
    plans: BTreeMap<Member, HostPlan>,
    /// Bytes that a member had received, and when it said so.
    received: HashMap<Member, (u64, u64)>,
    /// Who needs a list, because it has none or came again.
    unlisted: BTreeSet<Member>,
    /// Added to the numbers of plans, which must grow also over a restart of this process.
    base: u32,
    /// How often each member said that a parent is late.
    lates: HashMap<Member, u32>,
    pieces: u32,
    not_after_ms: i64,
}

impl Meshes {
    /// Whether a transfer runs here.
    pub fn has(&self, id: &TransferId) -> bool {
        self.runs.contains_key(id)
    }

    /// Begins a transfer among `agents`, or takes one up that an earlier process began. Nobody
    /// takes part before [`Meshes::start`].
    pub fn begin(
        &mut self,
        id: TransferId,
        record: &TransferRecord,
        agents: Vec<AgentId>,
        transfers: &Transfers,
    ) {
        let Some(file) = &record.file else { return };
        let geometry = Geometry::new(file.size_bytes, file.piece_bytes);
        let (Ok(geometry), Some(root)) = (geometry, hex_decode::<32>(&file.root)) else { return };
        let now_ms = clock::now_ms();
        // Hundredths of a second since the transfer was made: more than there are lists and plans.
        let base = ((now_ms - record.created_ms).max(0) / 10).min(i64::from(u32::MAX / 2)) as u32;
        let mut membership = Membership::new(id, root, base);
        membership.add_server(SERVER);
        let mut members = HashMap::new();
        for (member, agent) in (SERVER + 1..).zip(&agents) {
            members.insert(agent.clone(), member);
        }
        let places = transfers.topology.places(&transfers.registry, &agents);
        let mut server = transfers.rates.of_server(now_ms);
        let mut rates: Vec<Rates> =
            agents.iter().map(|agent| transfers.rates.of(agent, now_ms)).collect();
        for_trees(&mut server, &mut rates);
        let limit = record.rate_limit_total_bytes_per_s;
        if limit > 0 {
            server.up_bytes_s = Some(server.up_bytes_s.map_or(limit, |rate| rate.min(limit)));
        }
        let source = Participant { member: SERVER, place: places.server, rates: server };
        let participant = |(member, (place, rates))| Participant { member, place, rates };
        let hosts = places.hosts.into_iter().zip(rates);
        let spec = Spec {
            geometry,
            sources: vec![source],
            targets: (SERVER + 1..).zip(hosts).map(participant).collect(),
            gear: record.gear.kind(),
        };
        let seed = u64::from_be_bytes(std::array::from_fn(|at| id.0[at]));
        let coordinator = Coordinator::new(spec, Settings::default(), seed, clock::steady_ms());
        let unlisted = BTreeSet::new();
        let mesh = Mesh {
            coordinator,
            membership,
            members,
            agents,
            started: 0,
            joined: BTreeSet::new(),
            plans: BTreeMap::new(),
            received: HashMap::new(),
            unlisted,
            base,
            lates: HashMap::new(),
            pieces: geometry.piece_count(),
            not_after_ms: record.expire_ms,
        };
        self.runs.insert(id, mesh);
    }

    /// The hosts of a transfer that runs here; the first is member 1.
    pub fn agents(&self, id: &TransferId) -> &[AgentId] {
        self.runs.get(id).map_or(&[], |mesh| &mesh.agents)
    }

    /// The first `count` agents take part, until `not_after_ms`: those that are new get lists, the
    /// others newer ones, and whoever has the file already sends it on.
    pub fn start(&mut self, id: &TransferId, count: usize, not_after_ms: i64) {
        let Some(mesh) = self.runs.get_mut(id) else { return };
        let count = count.min(mesh.agents.len());
        for (member, agent) in (SERVER + 1..).zip(&mesh.agents[..count]).skip(mesh.started) {
            mesh.membership.add(member, agent.clone());
        }
        mesh.started = mesh.started.max(count);
        mesh.not_after_ms = not_after_ms;
        mesh.unlisted.extend((SERVER + 1..).take(mesh.started));
    }

    /// The transfer has ended, or is paused. The answer is who took part.
    pub fn end(&mut self, id: &TransferId) -> Vec<AgentId> {
        let started = |mut mesh: Mesh| {
            mesh.agents.truncate(mesh.started);
            mesh.agents
        };
        self.runs.remove(id).map(started).unwrap_or_default()
    }

    /// Goes over to another gear, where the transfer is meshed already.
    pub fn set_gear(&mut self, id: &TransferId, gear: Gear) {
        if let Some(mesh) = self.runs.get_mut(id) {
            mesh.coordinator.set_gear(gear, clock::steady_ms());
        }
    }

    /// What the member that most often waited for a late parent lost by it, at least.
    pub fn repair_ms(&self, id: &TransferId) -> f64 {
        let lates = self.runs.get(id).and_then(|mesh| mesh.lates.values().max());
        f64::from(lates.copied().unwrap_or(0)) * PATIENCE_MS_MIN as f64
    }

    /// An agent has a session: it may be new, or know an older list.
    pub fn agent_up(&mut self, id: &TransferId, agent: &AgentId) {
        if let Some(mesh) = self.runs.get_mut(id)
            && let Some(member) = mesh.members.get(agent).filter(|member| mesh.takes_part(**member))
        {
            mesh.unlisted.insert(*member);
        }
    }

    /// An agent takes part no more.
    pub fn gone(&mut self, id: &TransferId, agent: &AgentId) {
        if let Some(mesh) = self.runs.get_mut(id)
            && let Some(member) = mesh.members.get(agent)
        {
            mesh.joined.remove(member);
            mesh.coordinator.gone(*member, clock::steady_ms());
        }
    }

    /// Agents that nobody trusts any more: the others end their streams with them and take no new
    /// ones, in every transfer of which they are members.
    pub async fn expel(&mut self, fleet: &Fleet, agents: &BTreeSet<AgentId>) {
        for (id, mesh) in &mut self.runs {
            let members = mesh.members.iter().filter(|(agent, _)| agents.contains(*agent));
            let members: Vec<Member> = members
                .map(|(_, member)| *member)
                .filter(|member| mesh.takes_part(*member))
                .collect();
            if members.is_empty() {
                continue;
            }
            for member in &members {
                mesh.joined.remove(member);
                mesh.unlisted.remove(member);
                mesh.coordinator.gone(*member, clock::steady_ms());
            }
            if let Err(error) = mesh.membership.remove(fleet, &members, mesh.not_after_ms).await {
                // Lists without them follow with the next plans.
                tracing::error!(transfer = %id, %error, "members are not told who was removed");
                mesh.unlisted.extend((SERVER + 1..).take(mesh.started));
            }
        }
    }

    /// Takes a report.
    pub fn report(&mut self, agent: &AgentId, report: &MeshReport) {
        let (id, report) = match Progress::from_message(report) {
            Ok(report) => report,
            Err(error) => {
                return tracing::warn!(%agent, %error, "a report of the mesh is not usable");
            }
        };
        let Some(mesh) = self.runs.get_mut(&id) else { return };
        let member = mesh.members.get(agent).copied();
        let Some(member) = member.filter(|member| mesh.takes_part(*member)) else { return };
        if mesh.membership.is_removed(member) {
            return;
        }
        let now_ms = clock::steady_ms();
        let inside = |range: Range<u32>| range.start.min(mesh.pieces)..range.end.min(mesh.pieces);
        let gained: Vec<_> = report.gained.into_iter().map(inside).collect();
        if mesh.joined.insert(member) {
            mesh.coordinator.joined(member, &Held::Nothing, now_ms);
        }
        let last = mesh.received.insert(member, (report.bytes_down, now_ms));
        let rate = last.filter(|(_, at_ms)| now_ms > *at_ms).map(|(bytes, at_ms)| {
            report.bytes_down.saturating_sub(bytes) * 1_000 / (now_ms - at_ms)
        });
        tracing::debug!(transfer = %id, member, rate, down = report.bytes_down, up = report.bytes_up,
            late = ?report.late_parents, plan = report.plan_number, "a member reports");
        mesh.coordinator.progress(member, &gained, rate, now_ms);
        if !report.late_parents.is_empty() {
            *mesh.lates.entry(member).or_default() += 1;
        }
        for parent in &report.late_parents {
            mesh.coordinator.late(member, *parent, now_ms);
        }
    }

    /// Lets the coordinators decide and tells the members. The answer is what cannot go on.
    pub async fn tick(&mut self, fleet: &Fleet, registry: &Registry) -> Vec<Lost> {
        let mut lost = Vec::new();
        for (id, mesh) in &mut self.runs {
            mesh.look_for_absent(fleet);
            let mut changed = Vec::new();
            for output in mesh.coordinator.tick(clock::steady_ms()) {
                match output {
                    Output::Plan { member, mut plan } => {
                        plan.number += mesh.base;
                        tracing::debug!(transfer = %id, member, ?plan, "a member gets a plan");
                        mesh.plans.insert(member, plan);
                        changed.push(member);
                    }
                    Output::Missing { pieces } => {
                        tracing::warn!(transfer = %id, ?pieces, "nobody who is there holds these pieces");
                    }
                    Output::Recovered => {
                        tracing::info!(transfer = %id, "every piece has a holder again");
                    }
                    Output::Failed { pieces } => lost.push(Lost {
                        id: *id,
                        why: format!("nobody holds the pieces {pieces:?} any more"),
                    }),
                }
            }
            count_complaints(mesh.coordinator.take_complaint_counts());
            if let Err(error) = mesh.tell(*id, changed, fleet, registry).await {
                tracing::error!(transfer = %id, %error, "lists and plans are not sent");
            }
        }
        lost
    }
}

fn count_complaints(counts: ComplaintCounts) {
    let ComplaintCounts { settled, kept, dropped } = counts;
    for (result, count) in [("settled", settled), ("kept", kept), ("dropped", dropped)] {
        let name = names::CONTROL_TRANSFER_COMPLAINTS;
        metrics::counter!(name, "result" => result).increment(count);
    }
}

impl Mesh {
    fn takes_part(&self, member: Member) -> bool {
        (member - SERVER) as usize <= self.started
    }

    /// Members whose session is over are not counted on; they join again by their next report.
    fn look_for_absent(&mut self, fleet: &Fleet) {
        let now_ms = clock::steady_ms();
        let agents = &self.agents;
        let is_absent = |member: &Member| {
            let agent = agents.get((*member - SERVER - 1) as usize);
            agent.is_none_or(|agent| fleet.link_of(agent).is_none())
        };
        let absent: Vec<Member> = self.joined.iter().copied().filter(is_absent).collect();
        for member in absent {
            self.joined.remove(&member);
            self.coordinator.gone(member, now_ms);
        }
    }

    /// Signs and sends the lists that a change needs, then the plans, in the order in which the
    /// coordinator made them.
    async fn tell(
        &mut self,
        id: TransferId,
        changed: Vec<Member>,
        fleet: &Fleet,
        registry: &Registry,
    ) -> Result<(), super::MembershipSendError> {
        let fresh = std::mem::take(&mut self.unlisted);
        fresh.iter().for_each(|member| self.membership.unlist(*member));
        let mut receivers = fresh.clone();
        receivers.extend(&changed);
        if receivers.is_empty() {
            return Ok(());
        }
        // Whoever is to be dialled must know who comes.
        for member in &changed {
            let plan = self.plans.get(member).map(|plan| (*member, plan));
            receivers
                .extend(links_of(plan).map(|(_, other)| other).filter(|other| *other != SERVER));
        }
        let with_server = (SERVER + 1..).take(self.started).map(|member| (SERVER, member));
        let plans = self.plans.iter().map(|(member, plan)| (*member, plan));
        let links: Vec<_> = with_server.chain(links_of(plans)).collect();
        let receivers: Vec<Member> = receivers.into_iter().collect();
        self.membership.send(fleet, registry, links, Some(&receivers), self.not_after_ms).await?;
        let planned: BTreeSet<Member> = changed.iter().copied().collect();
        let told = changed.iter().chain(fresh.difference(&planned)).filter_map(|member| {
            let agent = self.agents.get((*member - SERVER - 1) as usize)?;
            let message = self.plans.get(member)?.to_message(&id);
            Some((agent.clone(), server_message::Kind::TransferPlan(message)))
        });
        fleet.tell(told.collect()).await;
        Ok(())
    }
}
