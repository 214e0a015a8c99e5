//! What the router costs per record, and what its parts cost alone.
//!
//! ```text
//! cargo run -p skein-dataplane --example router_ingest [RECORDS] [DIRECTORY] [plain|glommio]
//! ```
//! Sealed batches of generated log lines (zstd 1, 256 KiB before compression) are made first; then
//! one worker takes them from its queue, opens, formats, writes, checkpoints and acknowledges them.
//! The numbers are CPU time of all threads but the one that feeds, so that the disk's speed and
//! other programs do not matter.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use skein_dataplane::router::{
    self, DiskChoice, Limits, RouterConfig, RouterReport, SessionRef, ToRouter,
};
use skein_dataplane::shard::ShardMail;
use skein_dataplane::sinks::block::{Pool, Tape};
use skein_dataplane::sinks::format::{Format, Formatter};
use skein_observe::loggen::LogGen;
use skein_wire::batch::{BatchBuilder, BatchHeader};
use skein_wire::compress::{Codec, Compressor, Decompressor};
use skein_wire::data::{LaneOpen, ServerFrame};
use skein_wire::fleet::v1 as fleet;
use skein_wire::ids::{AgentId, DataId, Epoch, Sequence};
use skein_wire::records;

const LANE: DataId = DataId(1001);
const SESSION: SessionRef = SessionRef { shard: 0, conn: 1 };
const WAIT: Duration = Duration::from_secs(120);

type Batches = Vec<(BatchHeader, Vec<u8>)>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let wanted: u64 = arguments.next().map_or(Ok(2_000_000), |text| text.parse())?;
    let directory = match arguments.next() {
        Some(directory) => tempfile::tempdir_in(directory)?,
        None => tempfile::tempdir()?,
    };
    let disks = match arguments.next().as_deref() {
        Some("plain") => vec![DiskChoice::Plain],
        Some("glommio") => vec![DiskChoice::Glommio],
        _ => vec![DiskChoice::Plain, DiskChoice::Glommio],
    };
    let agent = AgentId::parse("bench-1")?;
    let batches = make_batches(&agent, wanted)?;
    let count: u64 = batches.iter().map(|(header, _)| u64::from(header.record_count)).sum();
    let raw: u64 = batches.iter().map(|(header, _)| u64::from(header.raw_bytes)).sum();
    let body: u64 = batches.iter().map(|(header, _)| u64::from(header.body_bytes)).sum();
    println!(
        "{count} records, {} batches, {} bytes per record raw, ratio {:.2}",
        batches.len(),
        raw / count,
        raw as f64 / body as f64
    );
    parts(&agent, &batches, count)?;
    for round in 1..=3 {
        for disk in disks.iter().copied() {
            for format in ["lines", "tagged"] {
                let place = directory.path().join(format!("{round}-{disk:?}-{format}"));
                let (cpu, wall) = whole(&agent, &batches, disk, format, &place)?;
                let rate = count as f64 / cpu.as_secs_f64() / 1e6;
                println!(
                    "router {disk:?} {format}: {:.0} ns/record, {rate:.2} M records/s/core, wall {:.2} s",
                    per_record(cpu, count),
                    wall.as_secs_f64()
                );
                std::fs::remove_dir_all(&place)?;
            }
        }
    }
    Ok(())
}

fn per_record(cpu: Duration, count: u64) -> f64 {
    cpu.as_nanos() as f64 / count as f64
}

fn make_batches(agent: &AgentId, wanted: u64) -> Result<Batches, Box<dyn std::error::Error>> {
    let mut lines = LogGen::new(42);
    let mut builder = BatchBuilder::new(LANE, 256 << 10);
    let mut zstd = Compressor::new(Codec::Zstd, 1)?;
    let mut batches = Vec::new();
    let (mut first, mut line) = (0u64, Vec::new());
    while first < wanted {
        loop {
            if line.is_empty() {
                lines.line(&mut line);
            }
            if !builder.push(1_795_258_617_000 + (first / 1000) as i64, &line) {
                break;
            }
            line.clear();
        }
        let batch = builder.seal((agent, Epoch(1), Sequence(first)), &mut zstd, 0)?;
        first = batch.0.end().0;
        batches.push(batch);
    }
    Ok(batches)
}

/// CPU time of the calling thread.
fn thread_cpu() -> Duration {
    schedstat(Path::new("/proc/thread-self"))
}

/// CPU time of all other threads that live, the kernel's io workers for us among them.
fn other_cpu() -> Duration {
    let own = std::fs::read_link("/proc/thread-self").ok();
    let own = own.as_ref().and_then(|path| path.file_name());
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks
        .filter(|task| Some(task.file_name().as_os_str()) != own)
        .map(|task| schedstat(&task.path()))
        .sum()
}

fn schedstat(task: &Path) -> Duration {
    let text = std::fs::read_to_string(task.join("schedstat")).unwrap_or_default();
    let nanos = text.split(' ').next().and_then(|text| text.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

fn parts(agent: &AgentId, batches: &Batches, count: u64) -> Result<(), Box<dyn std::error::Error>> {
    let measure = |name: &str, act: &mut dyn FnMut()| {
        let mut times: Vec<Duration> = (0..3)
            .map(|_| {
                let before = thread_cpu();
                act();
                thread_cpu() - before
            })
            .collect();
        times.sort();
        println!("part {name}: {:.1} ns/record", per_record(times[1], count));
    };
    measure("checksum", &mut || {
        for (header, body) in batches {
            assert!(header.verify_body(body).is_ok());
        }
    });
    let mut opener = Decompressor::new();
    let mut raw = Vec::new();
    measure("zstd", &mut || {
        for (header, body) in batches {
            let bytes = header.raw_bytes as usize;
            assert!(opener.decompress(header.codec, body, bytes, &mut raw).is_ok());
        }
    });
    // Formatting is measured on what was just opened, as it happens in the router.
    let mut opened = Vec::new();
    for (header, body) in batches.iter().take(64) {
        let mut raw = Vec::new();
        opener.decompress(header.codec, body, header.raw_bytes as usize, &mut raw)?;
        opened.push((header, raw));
    }
    let rounds = batches.len() / opened.len();
    measure("iterate", &mut || {
        for _ in 0..rounds {
            for (header, raw) in &opened {
                let bytes: usize = records::iter(raw, header.record_count)
                    .map(|record| record.map_or(0, |record| record.value.len()))
                    .sum();
                assert!(bytes > 0);
            }
        }
    });
    for format in [Format::Lines, Format::Tagged, Format::Json] {
        let (mut tape, mut pool, mut formatter) =
            (Tape::default(), Pool::default(), Formatter::default());
        measure(&format!("iterate and format {format:?}"), &mut || {
            for _ in 0..rounds {
                for (header, raw) in &opened {
                    let mut out = tape.writer(&mut pool);
                    let from = Sequence(0);
                    assert!(formatter.write(format, agent, header, from, raw, &mut out).is_ok());
                    while let Some(write) = tape.take_full() {
                        pool.give(write.block);
                    }
                }
            }
        });
    }
    Ok(())
}

fn whole(
    agent: &AgentId,
    batches: &Batches,
    disk: DiskChoice,
    format: &str,
    place: &Path,
) -> Result<(Duration, Duration), Box<dyn std::error::Error>> {
    let (shard, mail) = flume::unbounded();
    let (reports_in, reports) = flume::unbounded();
    let config = RouterConfig {
        workers: 1,
        checkpoints: place.join("checkpoints"),
        queue_bytes: 16 << 20,
        disk,
        // One lane stands for many here: it may not wait for its own credit.
        limits: Limits { window_bytes: 1 << 40, ..Limits::default() },
    };
    let router = router::start(config, vec![shard], reports_in)?;
    let file = fleet::FileStream {
        directory: place.join("sink").to_string_lossy().into_owned(),
        path_template: "{stream}.log".to_owned(),
        format: format.to_owned(),
        durability: "power".to_owned(),
        flush_interval_ms: 50,
        ..Default::default()
    };
    let sink = Some(fleet::stream::Sink::File(file));
    let stream = fleet::Stream { stream_id: 1, name: "s".to_owned(), sink };
    let route = fleet::Route { name: "r".to_owned(), data_id: LANE.0, stream_id: 1 };
    let table = fleet::RoutingTable { revision: 1, streams: vec![stream], routes: vec![route] };
    let table = Arc::new(table);
    router.handle.broadcast(|| ToRouter::Table(table.clone()));
    while !matches!(reports.recv_timeout(WAIT)?, RouterReport::TableApplied(_)) {}
    let open = LaneOpen {
        data_id: LANE,
        epoch: Epoch(1),
        first: Sequence(0),
        next: Sequence(u64::MAX / 2),
    };
    let send = |mut message: ToRouter| {
        while let Err(refused) = router.handle.try_send(0, message) {
            message = refused;
            std::thread::sleep(Duration::from_micros(200));
        }
    };
    send(ToRouter::Open { session: SESSION, agent: agent.clone(), open });
    let (cpu_before, began) = (other_cpu(), Instant::now());
    for (header, body) in batches {
        let (agent, header, body) = (agent.clone(), header.clone(), body.clone());
        send(ToRouter::Batch { session: SESSION, agent, header, body });
    }
    let end = batches.last().map_or(0, |(header, _)| header.end().0);
    loop {
        let ShardMail::Router(frames) = mail.recv_timeout(WAIT)? else { continue };
        let done =
            |frame: &ServerFrame| matches!(frame, ServerFrame::Ack(ack) if ack.next.0 >= end);
        if frames.iter().any(|(_, frame)| done(frame)) {
            break;
        }
    }
    let (cpu, wall) = (other_cpu().saturating_sub(cpu_before), began.elapsed());
    router.handle.broadcast(|| ToRouter::Stop);
    if !router.join(WAIT) {
        return Err("the router does not stop".into());
    }
    Ok((cpu, wall))
}
