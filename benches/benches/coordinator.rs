//! What a coordinator of 10,000 members costs: hosts that join, the first plan, reports, ticks, and
//! a hundred hosts that are lost at once. What the simulator should charge to virtual time follows
//! from these (`skein_sim::mesh::Costs`).

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use skein_filemesh::core::coordinator::{Coordinator, Held, Participant, Settings, Spec};
use skein_filemesh::core::geometry::Geometry;
use skein_filemesh::core::place::{Place, Rates};
use skein_filemesh::core::planner::Gear;
use std::hint::black_box;
use std::time::Duration;

const HOSTS: u32 = 10_000;
const RACK_HOSTS: u32 = 40;
const PIECE_BYTES: u32 = 1 << 20;
const PIECES: u32 = 1_024;

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
