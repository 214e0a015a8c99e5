//! Every decoder keeps its properties on committed seeds and on a few thousand seeded mutations of
//! valid input; the same bodies run under libFuzzer by `make fuzz`. `SKEIN_MUTATIONS` raises the
//! number, `SKEIN_SEED` chooses others, `SKEIN_REWRITE=1` writes the samples as seeds.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

#[path = "../../fuzz/src/bodies.rs"]
mod bodies;
#[path = "../../fuzz/src/samples.rs"]
mod samples;

fn seeds() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds")
}

fn body(target: &str) -> bodies::Body {
    bodies::TARGETS.iter().find(|(name, _)| *name == target).expect("a target of that name").1
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn every_target_has_a_sample_and_a_file() {
    let samples = samples::samples();
    for (name, _) in bodies::TARGETS {
        assert!(samples.iter().any(|(target, _, _)| target == name), "{name} has no sample");
        let file = seeds().with_file_name("fuzz_targets").join(format!("{name}.rs"));
        assert!(file.exists(), "{} is missing", file.display());
    }
}

#[test]
fn committed_seeds_keep_every_property() {
    if std::env::var_os("SKEIN_REWRITE").is_some() {
        for (target, name, bytes) in samples::samples() {
            std::fs::create_dir_all(seeds().join(target)).unwrap();
            std::fs::write(seeds().join(target).join(name), bytes).unwrap();
        }
    }
    let mut replayed = 0;
    for (target, body) in bodies::TARGETS {
        for entry in std::fs::read_dir(seeds().join(target)).expect("a folder of seeds") {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            body(&std::fs::read(path).unwrap());
            replayed += 1;
        }
    }
    assert!(replayed >= bodies::TARGETS.len());
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound.max(1) as u64) as usize
    }

    /// A few edits: flips, boundary values, cuts, repeats, or another sample's tail.
    fn mutate(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        for _ in 0..=self.below(4) {
            let at = self.below(input.len());
            match self.below(7) {
                0 if !input.is_empty() => input[at] ^= 1 << self.below(8),
                1 if !input.is_empty() => input[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                2 => input.truncate(at),
                3 => input.insert(at, self.below(256) as u8),
                4 if !input.is_empty() => drop(input.remove(at)),
                5 => {
                    let end = (at + self.below(16)).min(input.len());
                    let copy = input[at.min(end)..end].to_vec();
                    input.splice(at..at, copy);
                }
                _ => {
                    input.truncate(at);
                    input.extend_from_slice(&other[self.below(other.len())..]);
                }
            }
        }
    }
}

#[test]
fn mutations_of_valid_input_keep_every_property() {
    let seed = number("SKEIN_SEED", 1);
    let rounds = number("SKEIN_MUTATIONS", 3_000);
    println!("SKEIN_SEED={seed} SKEIN_MUTATIONS={rounds}");
    let samples = samples::samples();
    for (index, (target, name, sample)) in samples.iter().enumerate() {
        let body = body(target);
        body(sample);
        let mut random = Random(seed ^ (index as u64) << 32);
        for round in 0..rounds {
            let mut input = sample.clone();
            let other = &samples[random.below(samples.len())].2;
            random.mutate(&mut input, other);
            let kept = std::panic::catch_unwind(|| body(&input));
            assert!(kept.is_ok(), "{target}/{name}, round {round}: {input:02x?}");
        }
    }
}
