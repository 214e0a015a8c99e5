//! What a coordinator of 10,000 members costs: hosts that join, the first plan, reports, ticks, and
//! a hundred hosts that are lost at once; and what control does around it: messages read, plans
//! written, lists of members written and signed. What the simulator charges to virtual time follows
//! from these (`skein_sim::mesh::Costs`).

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ring::rand::SystemRandom;
use ring::signature::Ed25519KeyPair;
use skein_filemesh::core::coordinator::{Coordinator, Held, Output, Participant, Settings, Spec};
use skein_filemesh::core::geometry::Geometry;
use skein_filemesh::core::hints::Progress;
use skein_filemesh::core::membership::{Peer, PeerList, Who};
use skein_filemesh::core::place::{Place, Rates};
use skein_filemesh::core::planner::Gear;
use skein_wire::command::{ORDERS_PER_SIGNATURE, Signer};
use skein_wire::ids::{AgentId, TransferId};
use skein_wire::prost::Message;
use skein_wire::signal::v1::{
    AgentMessage, CommandBody, ServerMessage, agent_message, command_body, server_message,
};
use std::hint::black_box;
use std::time::Duration;

const HOSTS: u32 = 10_000;
const RACK_HOSTS: u32 = 40;
const PIECE_BYTES: u32 = 1 << 20;
const PIECES: u32 = 1_024;
const TRANSFER: TransferId = TransferId([7; 16]);

/// Others that a list names: parents, children and neighbours.
const LISTED: u32 = 16;

/// A coordinator that nobody has joined yet: 10 Gbit/s each, racks of 40.
fn unplanned() -> Coordinator {
    let rate = Some(1_196_250_000);
    let rates = Rates { up_bytes_s: rate, down_bytes_s: rate };
    let participant = |member: u32| {
        let rack = member.checked_sub(1).map_or(0, |target| 1 + target / RACK_HOSTS);
        Participant { member, place: Place { region: 0, zone: 0, rack }, rates }
    };
    let size_bytes = u64::from(PIECE_BYTES) * u64::from(PIECES);
    let spec = Spec {
        geometry: Geometry::new(size_bytes, PIECE_BYTES).expect("powers of two"),
        sources: vec![participant(0)],
        targets: (1..=HOSTS).map(participant).collect(),
        gear: Gear::Planned,
    };
    Coordinator::new(spec, Settings::default(), 1, 0)
}

fn join(mut coordinator: Coordinator) -> Coordinator {
    for member in 1..=HOSTS {
        coordinator.joined(member, &Held::Nothing, 1);
    }
    coordinator
}

fn planned() -> Coordinator {
    let mut coordinator = join(unplanned());
    assert_eq!(coordinator.tick(2).len(), HOSTS as usize, "everybody gets a plan");
    coordinator
}

/// Every host reports: a tenth of the file, three stripes of it a little ahead of the others.
fn report(coordinator: &mut Coordinator) {
    let gained = [0..100, 101..103, 105..107];
    for member in 1..=HOSTS {
        coordinator.progress(member, &gained, Some(1_000_000_000), 100);
    }
}

/// The report of one host, as it comes.
fn report_bytes() -> Vec<u8> {
    let gained = vec![0..100, 101..103, 105..107];
    let bytes_down = 100 << 20;
    let (bytes_up, late_parents) = (bytes_down, vec![]);
    let report = Progress { plan_number: 1, gained, bytes_up, bytes_down, late_parents };
    let kind = Some(agent_message::Kind::MeshReport(report.to_message(&TRANSFER)));
    AgentMessage { kind }.encode_to_vec()
}

fn read_report(bytes: &[u8]) -> Progress {
    let message = AgentMessage::decode(bytes).expect("own encoding");
    let Some(agent_message::Kind::MeshReport(report)) = message.kind else { unreachable!() };
    Progress::from_message(&report).expect("own encoding").1
}

/// Writes the plans of a tick.
fn write_plans(outputs: Vec<Output>) -> usize {
    let plan = |output| match output {
        Output::Plan { plan, .. } => plan.to_message(&TRANSFER),
        other => unreachable!("{other:?}"),
    };
    let message = |plan| ServerMessage { kind: Some(server_message::Kind::TransferPlan(plan)) };
    outputs.into_iter().map(|output| message(plan(output)).encode_to_vec().len()).sum()
}

/// The list of one member.
fn list(me: u32) -> (AgentId, PeerList) {
    let id = |member: u32| AgentId::parse(&format!("host-{member:011}")).expect("letters");
    let peer = |nth: u32| {
        let member = 1 + (me + 613 * nth) % HOSTS;
        let address = format!("10.{}.{}.1:60020", member / 250, member % 250);
        let addresses = vec![address.parse().expect("an address")];
        Peer { member, who: Who::Agent { id: id(member), key_hash: [1; 32], addresses } }
    };
    let peers = (1..=LISTED).map(peer).collect();
    let list = PeerList::new(TRANSFER, [1; 32], me, 1, i64::MAX, peers).expect("all different");
    (id(me), list)
}

/// Writes and signs lists.
fn sign_lists(lists: &[(AgentId, PeerList)], signer: &Signer, random: &SystemRandom) -> usize {
    let body = |list: &PeerList| CommandBody {
        command_id: vec![1; 16].into(),
        kind: Some(command_body::Kind::TransferPeers(list.to_message())),
    };
    let sign = |part: &[(AgentId, PeerList)]| {
        let orders: Vec<_> = part.iter().map(|(id, list)| (id.clone(), body(list))).collect();
        let dispatch = signer.dispatch_each(&orders, i64::MAX, random).expect("few orders");
        dispatch.extras.iter().map(|extra| extra.len()).sum::<usize>()
    };
    lists.chunks(ORDERS_PER_SIGNATURE).map(sign).sum()
}

fn lose(coordinator: &mut Coordinator) {
    (1..=HOSTS).step_by(100).for_each(|member| coordinator.gone(member, 100));
}

fn coordinator(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("coordinator of 10000");
    group.sample_size(10).measurement_time(Duration::from_secs(3));
    let each = BatchSize::PerIteration;
    group.throughput(Throughput::Elements(HOSTS.into()));
    group.bench_function("all join", |b| b.iter_batched(unplanned, join, each));
    group.bench_function("first plan", |b| {
        let setup = || join(unplanned());
        b.iter_batched_ref(setup, |coordinator| black_box(coordinator.tick(2)), each);
    });
    group.bench_function("all report", |b| b.iter_batched_ref(planned, report, each));
    group.bench_function("reports are read", |b| {
        let bytes = report_bytes();
        let all = || (0..HOSTS).map(|_| read_report(black_box(&bytes)).gained.len()).sum::<usize>();
        b.iter(all);
    });
    group.bench_function("first plan, written", |b| {
        let setup = || join(unplanned()).tick(2);
        b.iter_batched(setup, write_plans, each);
    });
    group.bench_function("lists are written and signed", |b| {
        let random = SystemRandom::new();
        let key = Ed25519KeyPair::generate_pkcs8(&random).expect("randomness");
        let signer = Signer::from_pkcs8(1, key.as_ref()).expect("a fresh key");
        let lists: Vec<_> = (1..=HOSTS).map(list).collect();
        b.iter(|| sign_lists(&lists, &signer, &random));
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("tick without news", |b| {
        let mut coordinator = planned();
        b.iter(|| black_box(coordinator.tick(3)));
    });
    group.bench_function("tick that compares all rates", |b| {
        let setup = || {
            let mut coordinator = planned();
            report(&mut coordinator);
            coordinator
        };
        b.iter_batched_ref(setup, |coordinator| black_box(coordinator.tick(1_000)), each);
    });
    group.throughput(Throughput::Elements(HOSTS.div_ceil(100).into()));
    group.bench_function("one in a hundred is lost", |b| {
        b.iter_batched_ref(
            planned,
            |coordinator| {
                lose(coordinator);
                black_box(coordinator.tick(150))
            },
            each,
        );
    });
    group.finish();
}

criterion_group!(benches, coordinator);
criterion_main!(benches);
