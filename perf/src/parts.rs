//! The parts of ingest alone, on one thread: opening zstd, checking a body, walking its records,
//! copying them as lines, and writing. What the server costs more than their sum is its own.

use std::path::PathBuf;

use skein_observe::loggen::LogGen;
use skein_wire::batch::BatchBuilder;
use skein_wire::compress::{Codec, Compressor, Decompressor};
use skein_wire::ids::{AgentId, DataId, Epoch, Sequence};
use skein_wire::records;

use crate::process::thread_cpu_us;
use crate::report::{Report, Spread};

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Parts {
    /// Bytes of a batch before compression
    #[arg(long, default_value_t = 256 * 1024)]
    batch_bytes: usize,
    /// Rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// File for the report
    #[arg(long)]
    out: Option<PathBuf>,
}

const BATCHES: usize = 200;

impl Parts {
    /// Runs and reports.
    pub fn run(self) -> anyhow::Result<()> {
        let command = std::env::args().collect::<Vec<_>>().join(" ");
        let mut report = Report::new("The parts of ingest alone", &command);
        let mut generator = LogGen::new(1);
        let mut compressor = Compressor::new(Codec::Zstd, 1)?;
        let agent = AgentId::parse("parts")?;
        let (mut generate, mut seal) = (Vec::new(), Vec::new());
        let (mut open, mut check, mut walk, mut copy) = (vec![], vec![], vec![], vec![]);
        let mut line = Vec::new();
        for _ in 0..self.rounds {
            let mut batches = Vec::new();
            let (mut first, mut records_in_all) = (Sequence::ZERO, 0);
            let (mut generate_us, mut seal_us) = (0, 0);
            for _ in 0..BATCHES {
                let started = thread_cpu_us();
                let mut builder = BatchBuilder::new(DataId(1), self.batch_bytes);
                loop {
                    line.clear();
                    generator.line(&mut line);
                    if !builder.push(0, &line) {
                        break;
                    }
                }
                let generated = thread_cpu_us();
                let (header, body) = builder.seal((&agent, Epoch(1), first), &mut compressor, 0)?;
                seal_us += thread_cpu_us() - generated;
                generate_us += generated - started;
                first = header.end();
                records_in_all += header.record_count as usize;
                batches.push((header, body));
            }
            let per = |us: u64| us as f64 / records_in_all as f64;
            generate.push(per(generate_us));
            seal.push(per(seal_us));

            let mut opener = Decompressor::new();
            let (mut raw, mut out) = (Vec::new(), Vec::with_capacity(1 << 20));
            let (mut open_us, mut check_us, mut walk_us, mut copy_us) = (0, 0, 0, 0);
            for (header, body) in &batches {
                let t0 = thread_cpu_us();
                header.verify_body(body)?;
                let t1 = thread_cpu_us();
                opener.decompress(header.codec, body, header.raw_bytes as usize, &mut raw)?;
                let t2 = thread_cpu_us();
                let mut bytes = 0;
                for record in records::iter(&raw, header.record_count) {
                    bytes += record?.value.len();
                }
                std::hint::black_box(bytes);
                let t3 = thread_cpu_us();
                out.clear();
                for record in records::iter(&raw, header.record_count) {
                    out.extend_from_slice(record?.value);
                    out.push(b'\n');
                }
                std::hint::black_box(&out);
                let t4 = thread_cpu_us();
                check_us += t1 - t0;
                open_us += t2 - t1;
                walk_us += t3 - t2;
                copy_us += t4 - t3;
            }
            open.push(per(open_us));
            check.push(per(check_us));
            walk.push(per(walk_us));
            copy.push(per(copy_us));
        }
        report.row("sender: generate and push, us per record", Spread::of(generate));
        report.row("sender: encode and zstd level 1, us per record", Spread::of(seal));
        report.row("server: CRC-32C of the body, us per record", Spread::of(check));
        report.row("server: open zstd, us per record", Spread::of(open));
        report.row("server: walk the records, us per record", Spread::of(walk));
        report.row("server: walk and copy as lines, us per record", Spread::of(copy));
        report.finish(self.out.as_deref())
    }
}
