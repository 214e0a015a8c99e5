//! What control and hosts say to each other about a transfer, counted in bytes of real messages in
//! their frames and TLS records. They do not go over the modelled links; this is what they would
//! add to them.
//!
//! Reports go up; plans and signed lists go down. A list names everybody whom a member's links
//! lead to; as in the product, whoever gets a plan gets a list, and so does whoever is to be
//! dialled because of it, unless its last list names them all.

use skein_filemesh::core::hints::Progress;
use skein_filemesh::core::plan::{HostPlan, Member};
use skein_filemesh::core::swarm::Report;
use skein_wire::command::ORDERS_PER_SIGNATURE;
use skein_wire::frame::PREFIX_BYTES;
use skein_wire::ids::TransferId;
use skein_wire::prost::Message;
use skein_wire::signal::v1::{
    AgentMessage, Command, CommandBody, Peer, ServerMessage, TransferPeers, agent_message,
    command_body, server_message,
};
use std::collections::{BTreeMap, BTreeSet};

/// What TLS 1.3 adds to a record.
const RECORD_BYTES: usize = 22;

/// Bytes of an agent's name, and of an address of it: the longest of IPv4 with its port.
const AGENT_ID_BYTES: usize = 16;
const ADDRESS_BYTES: usize = 21;

/// A date as it comes: milliseconds since 1970.
const DATE_MS: i64 = 1_790_000_000_000;

const ID: TransferId = TransferId([7; 16]);

/// Bytes so far, by what they were for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bytes {
    /// What hosts said.
    pub reports: u64,
    /// Unsigned plans.
    pub plans: u64,
    /// Signed lists of members.
    pub lists: u64,
}

/// Counts what is said.
pub struct Traffic {
    source: Member,
    targets: usize,
    /// By member: whom its plan links it to.
    planned: BTreeMap<Member, BTreeSet<Member>>,
    /// Linked pairs, either way round, and how many plans link them.
    linked: BTreeMap<(Member, Member), u32>,
    /// By member: whom its last list names.
    listed: BTreeMap<Member, BTreeSet<Member>>,
    /// Of one list: what goes around its peers, and what each adds.
    list_bytes: (usize, usize),
    /// The result.
    pub bytes: Bytes,
}

fn framed(message: &impl Message) -> u64 {
    (message.encoded_len() + PREFIX_BYTES + RECORD_BYTES) as u64
}

impl Traffic {
    /// Nothing was said yet.
    pub fn new(source: Member, targets: usize) -> Self {
        let list_bytes = (list_bytes(0, targets), list_bytes(1, targets) - list_bytes(0, targets));
        Self {
            source,
            targets,
            planned: BTreeMap::new(),
            linked: BTreeMap::new(),
            listed: BTreeMap::new(),
            list_bytes,
            bytes: Bytes::default(),
        }
    }

    /// A process begins, and knows no list.
    pub fn began(&mut self, member: Member) {
        self.listed.remove(&member);
    }

    /// A host reports; `late` are parents, `traffic` is what it sent and received so far.
    pub fn report(&mut self, report: &Report, late: &[Member], traffic: (u64, u64)) {
        let progress = Progress {
            plan_number: report.plan,
            gained: report.gained.clone(),
            bytes_up: traffic.0,
            bytes_down: traffic.1,
            late_parents: late.to_vec(),
        };
        let kind = Some(agent_message::Kind::MeshReport(progress.to_message(&ID)));
        self.bytes.reports += framed(&AgentMessage { kind });
    }

    /// Control sends these plans, and the lists that they need.
    pub fn plans<'a>(&mut self, plans: impl Iterator<Item = (Member, &'a HostPlan)>) {
        let mut receivers = BTreeSet::new();
        for (member, plan) in plans {
            let kind = Some(server_message::Kind::TransferPlan(plan.to_message(&ID)));
            self.bytes.plans += framed(&ServerMessage { kind });
            let others = plan.parents.iter().flatten().chain(&plan.neighbours);
            let others: BTreeSet<Member> = others.copied().collect();
            receivers.insert(member);
            receivers.extend(&others);
            self.link(member, others);
        }
        receivers.remove(&self.source);
        for member in receivers {
            let pairs = self.linked.range((member, Member::MIN)..=(member, Member::MAX));
            let mut links: BTreeSet<Member> = pairs.map(|((_, other), _)| *other).collect();
            links.insert(self.source);
            if self.listed.get(&member).is_some_and(|listed| links.is_subset(listed)) {
                continue;
            }
            let (around, each) = self.list_bytes;
            self.bytes.lists += (around + each * links.len()) as u64;
            self.listed.insert(member, links);
        }
    }

    /// The plan of `member` links it to `others` and to nobody else.
    fn link(&mut self, member: Member, others: BTreeSet<Member>) {
        for other in &others {
            for pair in [(member, *other), (*other, member)] {
                *self.linked.entry(pair).or_default() += 1;
            }
        }
        for other in self.planned.insert(member, others).into_iter().flatten() {
            for pair in [(member, other), (other, member)] {
                let Some(plans) = self.linked.get_mut(&pair) else { continue };
                *plans -= 1;
                if *plans == 0 {
                    self.linked.remove(&pair);
                }
            }
        }
    }

    /// Bytes per host and piece: reports, plans, lists.
    pub fn per_host_and_piece(&self, pieces: u32) -> [f64; 3] {
        let Bytes { reports, plans, lists } = self.bytes;
        let deliveries = (self.targets as f64 * f64::from(pieces)).max(1.0);
        [reports, plans, lists].map(|bytes| bytes as f64 / deliveries)
    }
}

/// A signed list of `count` peers for one of `targets` agents.
fn list_bytes(count: usize, targets: usize) -> usize {
    let peer = Peer {
        member: targets as u32,
        agent_id: "a".repeat(AGENT_ID_BYTES),
        key_hash: vec![1; 32].into(),
        addresses: vec!["1".repeat(ADDRESS_BYTES)],
    };
    let list = TransferPeers {
        transfer_id: ID.to_bytes(),
        root: vec![1; 32].into(),
        me: targets as u32,
        number: targets as u32,
        not_after_ms: DATE_MS,
        peers: vec![peer; count],
    };
    let body = CommandBody {
        command_id: vec![1; 16].into(),
        kind: Some(command_body::Kind::TransferPeers(list)),
    };
    let depth = targets.clamp(1, ORDERS_PER_SIGNATURE).next_power_of_two().trailing_zeros();
    let command = Command {
        body: body.encode_to_vec().into(),
        not_after_ms: DATE_MS,
        key_id: 1,
        signature: vec![1; 64].into(),
        leaf_count: targets as u32,
        leaf_index: targets as u32,
        nonce: vec![1; 16].into(),
        path: (0..depth).map(|_| vec![1; 32].into()).collect(),
    };
    let kind = Some(server_message::Kind::Command(command));
    framed(&ServerMessage { kind }) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_linked_by_a_plan_gets_a_list() {
        let plan = |parent, neighbours: &[Member]| HostPlan {
            number: 1,
            parents: vec![Some(parent)],
            neighbours: neighbours.to_vec(),
            far: vec![],
        };
        let mut traffic = Traffic::new(0, 3);
        traffic.plans([(1, &plan(0, &[])), (2, &plan(1, &[]))].into_iter());
        let (around, each) = traffic.list_bytes;
        // 1 knows the source and 2; 2 knows the source and 1.
        let first = (2 * around + 4 * each) as u64;
        assert_eq!(traffic.bytes.lists, first);
        // A plan for 3 concerns 1 as well, which now has a third peer; 2 hears nothing.
        traffic.plans([(3, &plan(1, &[]))].into_iter());
        let second = first + (2 * around + 5 * each) as u64;
        assert_eq!(traffic.bytes.lists, second);
        // 2 is moved below 3: both get somebody new. The list of 1 names one too many, which is
        // no reason for another.
        traffic.plans([(2, &plan(3, &[]))].into_iter());
        let third = second + (2 * around + (2 + 3) * each) as u64;
        assert_eq!(traffic.bytes.lists, third);
        // The same again costs the plan alone, and after a restart also its own list.
        let plans = traffic.bytes.plans;
        traffic.plans([(2, &plan(3, &[]))].into_iter());
        assert_eq!((traffic.bytes.plans > plans, traffic.bytes.lists), (true, third));
        traffic.began(2);
        traffic.plans([(2, &plan(3, &[]))].into_iter());
        assert_eq!(traffic.bytes.lists, third + (around + 2 * each) as u64);
        let plans = traffic.bytes.plans;
        traffic.plans(std::iter::empty());
        assert_eq!(traffic.bytes.plans, plans);
    }

    #[test]
    fn a_report_costs_its_message() {
        let mut traffic = Traffic::new(0, 2);
        #[expect(clippy::single_range_in_vec_init, reason = "a run of pieces")]
        let gained = vec![1..51];
        traffic.report(&Report { gained, ..Report::default() }, &[], (0, 0));
        // The transfer's number, the range's two, and what these nest in; then frame and record.
        let message = 2 + (2 + 16) + (2 + 2 + 2);
        assert_eq!(traffic.bytes.reports, message + (PREFIX_BYTES + RECORD_BYTES) as u64);
        assert_eq!(traffic.per_host_and_piece(10)[0], traffic.bytes.reports as f64 / 20.0);
    }
}
