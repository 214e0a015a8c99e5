//! What planning costs: time of the first plan and of single events, memory for what is known.
//!
//! `cargo run -p skein-filemesh --example plans [HOSTS] [PIECES]` (10,000 hosts in racks of 40 and
//! two regions, 1,024 pieces). Times are wall times of one run; memory is this process's resident
//! set.

use skein_filemesh::core::bitfield::Bitfield;
use skein_filemesh::core::coordinator::{Coordinator, Held, Output, Participant, Settings, Spec};
use skein_filemesh::core::geometry::{Geometry, GeometryError};
use skein_filemesh::core::place::{Place, Rates};
use skein_filemesh::core::plan::{HostPlan, Member};
use skein_filemesh::core::planner::Gear;
use std::collections::BTreeMap;
use std::time::Instant;

const PIECE_BYTES: u32 = 1 << 20;
const RACK: u32 = 40;
const GBIT: u64 = 125_000_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let hosts: u32 = args.next().map_or(Ok(10_000), |text| text.parse())?;
    let pieces: u32 = args.next().map_or(Ok(1_024), |text| text.parse())?;
    let spec = spec(hosts, pieces)?;
    let before = resident_bytes();
    let start = Instant::now();
    let mut coordinator = Coordinator::new(spec, Settings::default(), 1, 0);
    for member in 1..=hosts {
        coordinator.joined(member, &Held::Nothing, 0);
    }
    let joined = start.elapsed();
    let start = Instant::now();
    let mut plans = BTreeMap::new();
    let told = take(&mut plans, coordinator.tick(0));
    println!("{hosts} hosts, {pieces} pieces: joined in {joined:?}");
    println!("first plan: {told} plans in {:?}", start.elapsed());
    let status = coordinator.status();
    println!(
        "{} stripes, {} links from the source, {} over the border, {} into racks, {} hops at most",
        status.stripes,
        status.source_links,
        status.border_links,
        rack_links(&plans),
        hops_max(&plans)
    );

    // Every host holds a scattered half: the dearest moment.
    let mut half = Bitfield::new(pieces);
    (0..pieces).filter(|piece| piece % 2 == 0).for_each(|piece| {
        half.set(piece);
    });
    let half: Vec<_> = half.ranges().collect();
    let start = Instant::now();
    for member in 1..=hosts {
        coordinator.progress(member, &half, Some(10 * GBIT), 10);
    }
    let each = start.elapsed() / (hosts * half.len() as u32);
    println!("progress: {each:?} a piece");
    let bytes = resident_bytes().saturating_sub(before) as f64;
    let each = bytes / f64::from(hosts) / f64::from(pieces);
    println!("resident: {:.1} MB more, {each:.2} bytes a host and piece", bytes / 1e6);

    let gone = hosts / 100;
    let start = Instant::now();
    (0..gone).for_each(|nth| coordinator.gone(1 + nth * 97 % hosts, 100));
    let each = start.elapsed() / gone.max(1);
    let start = Instant::now();
    let told = take(&mut plans, coordinator.tick(150));
    println!("{gone} hosts lost: {each:?} each; {told} plans in {:?}", start.elapsed());
    let start = Instant::now();
    for nth in 0..gone {
        coordinator.joined(1 + nth * 97 % hosts, &Held::Nothing, 200);
    }
    let each = start.elapsed() / gone.max(1);
    let start = Instant::now();
    let told = take(&mut plans, coordinator.tick(250));
    println!("they return: {each:?} each; {told} plans in {:?}", start.elapsed());
    println!(
        "{} hops at most, {} over the border",
        hops_max(&plans),
        coordinator.status().border_links
    );
    Ok(())
}

fn spec(hosts: u32, pieces: u32) -> Result<Spec, GeometryError> {
    let geometry = Geometry::new(u64::from(pieces) * u64::from(PIECE_BYTES), PIECE_BYTES)?;
    let one = |member: Member| {
        let place = Place { region: u16::from(member > hosts / 2), zone: 0, rack: member / RACK };
        Participant { member, place, rates: Rates::both(10 * GBIT) }
    };
    let targets = (1..=hosts).map(one).collect();
    Ok(Spec { geometry, sources: vec![one(0)], targets, gear: Gear::Planned })
}

fn take(plans: &mut BTreeMap<Member, HostPlan>, outputs: Vec<Output>) -> usize {
    let count = outputs.len();
    for output in outputs {
        if let Output::Plan { member, plan } = output {
            plans.insert(member, plan);
        }
    }
    count
}

fn rack_links(plans: &BTreeMap<Member, HostPlan>) -> usize {
    let across = |(member, plan): (&Member, &HostPlan)| {
        let parents = plan.parents.iter().flatten();
        parents.filter(|parent| *parent / RACK != member / RACK).count()
    };
    plans.iter().map(across).sum()
}

fn hops_max(plans: &BTreeMap<Member, HostPlan>) -> usize {
    let hops = |member: &Member, stripe: usize| {
        let mut at = *member;
        let mut hops = 0;
        while let Some(Some(parent)) = plans.get(&at).and_then(|plan| plan.parents.get(stripe)) {
            (at, hops) = (*parent, hops + 1);
        }
        hops
    };
    let stripes = plans.values().next().map_or(0, |plan| plan.parents.len());
    let all = plans.keys().flat_map(|member| (0..stripes).map(move |stripe| hops(member, stripe)));
    all.max().unwrap_or(0)
}

/// Resident bytes of this process; 0 where the kernel does not say.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4_096
}
