//! The parts of ingest alone, on one thread each: TLS, opening zstd, checking a body, walking its
//! records, copying them as lines, and writing. What the server costs more than their sum is its
//! own.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use std::path::{Path, PathBuf};

use skein_observe::loggen::LogGen;
use skein_wire::batch::BatchBuilder;
use skein_wire::compress::{Codec, Compressor, Decompressor};
use skein_wire::ids::{AgentId, DataId, Epoch, Sequence};
use skein_wire::records;

use crate::process::thread_cpu_us;
use crate::push_parts::tls;
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
    /// Folder on the disk to write to
    #[arg(long, default_value = "target/perf")]
    folder: PathBuf,
    /// File for the report
    #[arg(long)]
    out: Option<PathBuf>,
}

const BATCHES: usize = 200;

/// A write of the sinks: whole pages, large enough for the disk.
const WRITE_BYTES: usize = 512 * 1024;

/// What O_DIRECT asks of addresses, offsets and lengths.
const ALIGN: usize = 4096;

impl Parts {
    /// Runs and reports.
    pub fn run(self) -> anyhow::Result<()> {
        let mut report = Report::new("The parts of ingest alone");
        let mut generator = LogGen::new(1);
        let mut compressor = Compressor::new(Codec::Zstd, 1)?;
        let agent = AgentId::parse("parts")?;
        let (mut generate, mut seal) = (Vec::new(), Vec::new());
        let (mut open, mut check, mut walk, mut copy) = (vec![], vec![], vec![], vec![]);
        let (mut plain, mut direct) = (vec![], vec![]);
        let (mut tls_send, mut tls_receive) = (vec![], vec![]);
        let mut line = Vec::new();
        std::fs::create_dir_all(&self.folder)?;
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
            let bodies: usize = batches.iter().map(|(_, body)| body.len()).sum();
            let (send_us, receive_us) = tls(bodies as u64)?;
            tls_send.push(per(send_us));
            tls_receive.push(per(receive_us));
            let lines: usize = batches.iter().map(|(header, _)| header.raw_bytes as usize).sum();
            plain.push(per(write(&self.folder, lines, 0)?));
            direct.push(per(write(&self.folder, lines, libc::O_DIRECT)?));
        }
        report.row("sender: generate and push, us per record", Spread::of(generate));
        report.row("sender: encode and zstd level 1, us per record", Spread::of(seal));
        report.row("sender: TLS and the socket, us per record", Spread::of(tls_send));
        report.row("server: TLS and the socket, us per record", Spread::of(tls_receive));
        report.row("server: CRC-32C of the body, us per record", Spread::of(check));
        report.row("server: open zstd, us per record", Spread::of(open));
        report.row("server: walk the records, us per record", Spread::of(walk));
        report.row("server: walk and copy as lines, us per record", Spread::of(copy));
        report.row("server: O_DIRECT write and fdatasync, us per record", Spread::of(direct));
        report.row("server: plain write and fdatasync, us per record", Spread::of(plain));
        report.note(
            "Writes are of 512 KiB with one fdatasync for all batches. A plain write leaves the \
             copy to the disk to the kernel's flusher threads, which are not in its figure.",
        );
        report.finish(self.out.as_deref())
    }
}

/// CPU of writing so many bytes with these flags into a new file and flushing them, in
/// microseconds.
fn write(folder: &Path, bytes: usize, flags: i32) -> anyhow::Result<u64> {
    let path = folder.join("parts.log");
    let mut options = std::fs::OpenOptions::new();
    let mut file =
        options.write(true).create(true).truncate(true).custom_flags(flags).open(&path)?;
    let memory = vec![b'x'; WRITE_BYTES + ALIGN];
    let first = memory.as_ptr().align_offset(ALIGN);
    let block = &memory[first..first + WRITE_BYTES];
    let started = thread_cpu_us();
    for _ in 0..bytes.div_ceil(WRITE_BYTES) {
        file.write_all(block)?;
    }
    file.sync_data()?;
    let used = thread_cpu_us() - started;
    std::fs::remove_file(&path)?;
    Ok(used)
}
