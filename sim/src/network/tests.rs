//! Cases computed by hand, and conservation.

use super::*;
use crate::queue::MILLISECOND;

fn path(links: &[LinkId], latency: Nanos) -> Path {
    Path { links: links.to_vec(), latency, loss: 0.0 }
}

/// Runs until nothing happens any more; the chunks that arrived with their times.
fn run(network: &mut Network<u32>) -> Vec<(Nanos, FlowId, u32)> {
    let (mut log, mut happened) = (vec![], vec![]);
    while let Some(now) = network.next_at() {
        network.advance(now, &mut happened);
        for arrival in happened.drain(..) {
            if let Arrival::Chunk(flow, what) = arrival {
                log.push((now, flow, what));
            }
        }
    }
    log
}

#[test]
fn a_chunk_takes_its_length_and_one_latency() {
    let mut network = Network::new(1 << 20, 0, 1);
    let (up, down) = (network.add_link(1e6), network.add_link(4e6));
    let flow = network.open(&path(&[up, down], 5 * MILLISECOND));
    network.send(flow, 2000, 1);
    network.send(flow, 500, 2);
    // 2 ms and 0.5 ms at 1 MB/s, each 5 ms later.
    assert_eq!(run(&mut network), [(7_000_000, 0, 1), (7_500_000, 0, 2)]);
    assert_eq!((network.carried(up), network.carried(down)), (2500, 2500));
}

#[test]
fn two_flows_share_and_the_longer_takes_what_the_shorter_leaves() {
    for quantum in [0, 1000] {
        let mut network = Network::new(1 << 20, quantum, 1);
        let up = network.add_link(1e6);
        let downs = [network.add_link(1e6), network.add_link(1e6)];
        let flows = downs.map(|down| network.open(&path(&[up, down], 0)));
        network.send(flows[0], 10_000, 1);
        network.send(flows[1], 30_000, 2);
        // Half a megabyte per second each until 20 ms; then 20,000 bytes at the full rate.
        let log = run(&mut network);
        let times: Vec<_> = log.iter().map(|(at, ..)| at.div_ceil(100_000)).collect();
        assert_eq!(times, [200, 400], "{log:?}");
    }
}

#[test]
fn a_packet_passes_between_those_of_a_bulk_flow() {
    let mut network = Network::new(u64::MAX, 0, 1);
    let up = network.add_link(1e6);
    let flows = [network.open(&path(&[up], 0)), network.open(&path(&[up], 0))];
    network.send(flows[0], 1_000_000, 1);
    network.send(flows[1], 1000, 2);
    assert_eq!(run(&mut network), [(1_000_000, 1, 2), (1_000_000_000, 0, 1)]);
    assert_eq!(network.carried(up), 1_001_000);
}

#[test]
fn a_cut_link_holds_its_bytes_until_it_is_back() {
    let mut network = Network::new(1 << 20, 0, 1);
    let up = network.add_link(1e6);
    let flow = network.open(&path(&[up], 0));
    network.send(flow, 2000, 1);
    assert_eq!(network.next_at(), Some(2_000_000));
    network.advance(1_000_000, &mut vec![]);
    network.set_capacity(up, 0.0);
    assert_eq!(network.next_at(), None);
    network.advance(9_000_000, &mut vec![]);
    network.set_capacity(up, 1e6);
    assert_eq!(run(&mut network), [(10_000_000, 0, 1)]);
}

#[test]
fn a_full_buffer_says_when_it_has_room() {
    let mut network = Network::new(10_000, 0, 1);
    let up = network.add_link(1e6);
    let flow = network.open(&path(&[up], 0));
    assert!(network.has_room(flow));
    (0..3).for_each(|chunk| network.send(flow, 4000, chunk));
    assert!(!network.has_room(flow));
    network.want_room(flow);
    let mut happened = vec![];
    while let Some(now) = network.next_at() {
        network.advance(now, &mut happened);
    }
    // When the second chunk leaves, 4000 bytes are left, at most half of 10,000.
    let room = happened.iter().position(|arrival| *arrival == Arrival::Room(flow));
    assert_eq!(room, Some(1), "{happened:?}");
}

#[test]
fn what_is_under_way_is_lost_with_its_connection() {
    let mut network = Network::new(1000, 0, 1);
    let up = network.add_link(1e6);
    let flow = network.open(&path(&[up], 5 * MILLISECOND));
    network.send(flow, 5000, 1);
    network.advance(0, &mut vec![]);
    let now = network.next_at().unwrap();
    network.advance(now, &mut vec![]);
    network.close(flow);
    network.send(flow, 100, 2);
    assert!(!network.has_room(flow));
    assert_eq!(run(&mut network), []);
}

#[test]
fn bytes_are_carried_at_the_rate_of_the_link_and_in_order() {
    // 50 flows with 200 odd-sized chunks each over one link: it is never idle and never too fast.
    for quantum in [0, 20_000] {
        let mut network = Network::new(u64::MAX, quantum, 1);
        let up = network.add_link(1e8);
        let flows: Vec<_> = (0..50)
            .map(|_| {
                let down = network.add_link(1e8);
                network.open(&path(&[up, down], 1000))
            })
            .collect();
        let mut random = Random::new(3);
        let mut total = 0;
        for chunk in 0..200 {
            for flow in &flows {
                let bytes = 1 + random.below(30_000);
                total += bytes;
                network.send(*flow, bytes, chunk);
            }
        }
        let log = run(&mut network);
        let end = log.last().unwrap().0 as f64 / 1e9;
        let ideal = total as f64 / 1e8;
        // Nothing is lost; with a quantum, at most one of it per flow that ends.
        let slack = if quantum == 0 { 1e-3 } else { 2e-3 };
        assert!((end / ideal - 1.0).abs() < slack, "{end} {ideal}");
        for flow in flows {
            let chunks = log.iter().filter(|(_, of, _)| *of == flow).map(|(_, _, chunk)| *chunk);
            assert!(chunks.eq(0..200));
        }
    }
}

#[test]
fn loss_costs_a_ceiling_and_round_trips_but_no_order() {
    let mut network = Network::new(u64::MAX, 0, 1);
    let up = network.add_link(1e9);
    let lossy = Path { links: vec![up], latency: 10 * MILLISECOND, loss: 0.01 };
    let flow = network.open(&lossy);
    (0..1000).for_each(|chunk| network.send(flow, 14_480, chunk));
    let log = run(&mut network);
    // 1.22 * 1448 / (0.02 * 0.1) = 883 kB/s.
    let end = log.last().unwrap().0 as f64 / 1e9;
    assert!((end / (14_480_000.0 / 883_280.0) - 1.0).abs() < 0.01, "{end}");
    assert!(log.iter().map(|(_, _, chunk)| *chunk).eq(0..1000));
    let late = log.windows(2).filter(|pair| pair[1].0 == pair[0].0).count();
    // 10 segments, so about 9.6 % of the chunks wait for one of theirs, and the next behind them.
    assert!((50..250).contains(&late), "{late}");
}
