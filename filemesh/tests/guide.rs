//! `docs/bulk-distribution.md` shows which gear the planner takes: this fails when it takes another.

use skein_filemesh::core::geometry::Geometry;
use skein_filemesh::core::manifest::choose_piece_bytes;
use skein_filemesh::core::place::{Place, Rates};
use skein_filemesh::core::planner::{Host, Limits, PlannerInput, PlannerSettings, Starts, plan};

const DOCUMENT: &str = include_str!("../../docs/bulk-distribution.md");
const HOSTS: [usize; 6] = [1, 2, 4, 16, 100, 1_000];
const SIZES: [(&str, u64); 5] = [
    ("64 KiB", 64 << 10),
    ("1 MiB", 1 << 20),
    ("16 MiB", 16 << 20),
    ("128 MiB", 128 << 20),
    ("1 GiB", 1 << 30),
];

/// As control asks: a file that is in the cache, hosts of which no rate is known.
fn row(name: &str, size_bytes: u64, limit: Option<u64>) -> String {
    let host = |held_bytes| Host { place: Place::default(), rates: Rates::default(), held_bytes };
    let cells = HOSTS.map(|hosts| {
        let piece_bytes = choose_piece_bytes(size_bytes, hosts as u32);
        let input = PlannerInput {
            geometry: Geometry::new(size_bytes, piece_bytes).expect("a size"),
            is_hashed: true,
            can_inline: false,
            fresh_bytes: size_bytes,
            sources: &[host(size_bytes)],
            targets: &vec![host(0); hosts],
            borders: &[],
            limits: Limits { sources_bytes_s: None, up_bytes_s: limit, down_bytes_s: limit },
            rtt_ms: None,
            starts: Starts::default(),
        };
        plan(&input, &PlannerSettings::default()).gear.to_string()
    });
    format!("| {name} | {} |", cells.join(" | "))
}

#[test]
fn the_guide_shows_the_gears_that_the_planner_takes() {
    let rows = SIZES.map(|(name, bytes)| row(name, bytes, None));
    let limited = SIZES.map(|(name, bytes)| row(&format!("{name}, 10M"), bytes, Some(10 << 20)));
    for row in rows.iter().chain(&limited) {
        assert!(
            DOCUMENT.contains(row),
            "{row} is not in the guide, which should have\n{}\n{}",
            rows.join("\n"),
            limited.join("\n")
        );
    }
}
