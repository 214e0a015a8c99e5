//! Hashing a file into its merkle tree, and proving the leaves of one piece.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use skein_filemesh::core::merkle;
use skein_filemesh::core::merkle::TreeBuilder;

const PIECE_BYTES: u32 = 1 << 20;

fn blocks(criterion: &mut Criterion) {
    let data = vec![0x5a; 16 << 20];
    let mut group = criterion.benchmark_group("merkle tree");
    group.throughput(Throughput::Bytes(data.len() as u64));
    group.bench_function("build over 16 MiB", |b| {
        b.iter(|| {
            let mut builder = TreeBuilder::new(PIECE_BYTES).expect("a legal piece size");
            builder.update(&data, |_| ());
            builder.finish(|_| ()).expect("not empty")
        });
    });
    group.throughput(Throughput::Bytes(PIECE_BYTES.into()));
    group.bench_function("prove the 64 blocks of a piece", |b| {
        let piece = &data[..PIECE_BYTES as usize];
        b.iter(|| {
            let leaves = piece.chunks(16 * 1024).map(merkle::leaf);
            merkle::subtree_root(leaves, 0, 6)
        });
    });
    group.finish();
}

criterion_group!(benches, blocks);
criterion_main!(benches);
