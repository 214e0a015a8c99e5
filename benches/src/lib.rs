//! Criterion benchmarks of Skein's parts: `cargo bench -p skein-benches`. Whole-system
//! measurements, and comparisons with peers, are in `perf/`.
