//! A batch from lines to bytes and back, as agent and server do it.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use skein_observe::loggen::LogGen;
use skein_wire::batch::{BatchBuilder, BatchHeader};
use skein_wire::compress::{Codec, Compressor, Decompressor};
use skein_wire::ids::{AgentId, DataId, Epoch, Sequence};
use skein_wire::records;

const BATCH_BYTES: usize = 256 * 1024;

fn lines() -> Vec<Vec<u8>> {
    let mut generator = LogGen::new(7);
    let mut bytes = 0;
    let line = || {
        let mut line = Vec::new();
        generator.line(&mut line);
        bytes += line.len() + 40;
        (bytes < BATCH_BYTES).then_some(line)
    };
    std::iter::from_fn(line).collect()
}

fn seal(lines: &[Vec<u8>], compressor: &mut Compressor) -> (BatchHeader, Vec<u8>) {
    let agent = AgentId::parse("bench").expect("letters");
    let mut builder = BatchBuilder::new(DataId(1), 2 * BATCH_BYTES);
    for line in lines {
        assert!(builder.push(1_700_000_000_000, line), "lines fit the batch");
    }
    builder.seal((&agent, Epoch(1), Sequence(0)), compressor, 0).expect("a batch of lines seals")
}

fn batches(criterion: &mut Criterion) {
    let lines = lines();
    let mut group = criterion.benchmark_group("batch of 256 KiB");
    group.throughput(Throughput::Elements(lines.len() as u64));
    for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
        let mut compressor = Compressor::new(codec, 1).expect("a known codec");
        group.bench_function(format!("seal {codec:?}"), |b| {
            b.iter(|| seal(&lines, &mut compressor));
        });
        let (header, body) = seal(&lines, &mut compressor);
        let (mut opener, mut raw) = (Decompressor::new(), Vec::new());
        group.bench_function(format!("verify and open {codec:?}"), |b| {
            b.iter(|| {
                header.verify_body(&body).expect("unaltered");
                opener
                    .decompress(codec, &body, header.raw_bytes as usize, &mut raw)
                    .expect("opens");
            });
        });
    }
    let (header, raw) = seal(&lines, &mut Compressor::new(Codec::None, 0).expect("a known codec"));
    let mut out = Vec::with_capacity(2 * BATCH_BYTES);
    group.bench_function("walk records and copy as lines", |b| {
        b.iter(|| {
            out.clear();
            for record in records::iter(&raw, header.record_count) {
                out.extend_from_slice(record.expect("well formed").value);
                out.push(b'\n');
            }
        });
    });
    group.finish();
}

criterion_group!(benches, batches);
criterion_main!(benches);
