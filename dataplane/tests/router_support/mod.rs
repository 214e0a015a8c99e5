//! A world for router tests: a disk in memory with faults and crashes, agents with real
//! [`LaneSender`]s, and pipes between them that deliver when the test says so.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use skein_dataplane::router::{Limits, Now, RouterCore, RouterReport, SessionRef, ToRouter};
use skein_dataplane::sinks::block::ALIGN;
use skein_dataplane::sinks::checkpoint::{self, Frame, State};
use skein_dataplane::sinks::disk::{DiskDone, DiskOp, FileId, OpenFile, Opened, Resume};
use skein_dataplane::sinks::recover::{LeftFile, WorkerStart};
use skein_dataplane::sinks::template::numbered;
use skein_wire::batch::{BatchBuilder, BatchHeader, FLAG_GAP_BEFORE};
use skein_wire::compress::{Codec, Compressor};
use skein_wire::data::{HoldReason, ServerFrame};
use skein_wire::fleet::v1 as fleet;
use skein_wire::ids::{AgentId, DataId, Epoch, Sequence};
use skein_wire::lane::LaneSender;

pub const WALL_MS: u64 = 1_795_258_617_000;

/// A file stream that writes `{stream}.log` below `/sink`.
pub fn stream(id: u32, change: impl FnOnce(&mut fleet::FileStream)) -> fleet::Stream {
    let mut file = fleet::FileStream {
        directory: "/sink".to_owned(),
        path_template: "{stream}.log".to_owned(),
        format: "tagged".to_owned(),
        durability: "power".to_owned(),
        flush_interval_ms: 50,
        ..Default::default()
    };
    change(&mut file);
    let sink = Some(fleet::stream::Sink::File(file));
    fleet::Stream { stream_id: id, name: format!("s{id}"), sink }
}

pub fn route(data_id: u32, stream_id: u32) -> fleet::Route {
    fleet::Route { name: format!("r{data_id}-{stream_id}"), data_id, stream_id }
}

pub fn table(
    revision: u64,
    streams: Vec<fleet::Stream>,
    routes: Vec<fleet::Route>,
) -> fleet::RoutingTable {
    fleet::RoutingTable { revision, streams, routes }
}

pub fn agent_id(index: usize) -> AgentId {
    AgentId::parse(&format!("agent-{index}")).unwrap()
}

/// What record `sequence` of a lane holds: of varied length, with bytes that are escaped.
pub fn value(agent: usize, data_id: u32, sequence: u64) -> Vec<u8> {
    let length = match (sequence * 31 + u64::from(data_id)) % 50 {
        0 => 40_000,
        1 => 0,
        other => other * 9,
    };
    let mut value = format!("{agent}/{data_id}/{sequence}\t\\").into_bytes();
    value.resize(value.len() + length as usize, b'a' + (sequence % 26) as u8);
    value
}

// ------------------------------------------------------------------------------------------ disk

/// Which operations fail.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    pub open: bool,
    pub write: bool,
    pub sync: bool,
    pub truncate: bool,
    pub log: bool,
}

#[derive(Default)]
pub struct MemFile {
    pub content: Vec<u8>,
    pub inode: u64,
}

/// Files in memory. Operations wait until they are executed; a crash drops those that wait.
#[derive(Default)]
pub struct MemDisk {
    pub files: BTreeMap<String, MemFile>,
    pub faults: Faults,
    log: Vec<u8>,
    open: HashMap<FileId, String>,
    torn: BTreeSet<FileId>,
    waiting: VecDeque<DiskOp>,
    inodes: u64,
}

fn no_space() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

fn file_of(op: &DiskOp) -> Option<FileId> {
    match op {
        DiskOp::Open { file, .. }
        | DiskOp::Write { file, .. }
        | DiskOp::Sync { file, .. }
        | DiskOp::Truncate { file, .. }
        | DiskOp::Probe { file, .. }
        | DiskOp::Close { file, .. } => Some(*file),
        DiskOp::Log { .. } => None,
    }
}

impl MemDisk {
    pub fn begin(&mut self, op: DiskOp) {
        self.waiting.push_back(op);
    }

    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Executes one operation: the first of the chain that `pick` falls on.
    pub fn step(&mut self, pick: usize) -> Option<DiskDone> {
        if self.waiting.is_empty() {
            return None;
        }
        let chain = file_of(&self.waiting[pick % self.waiting.len()]);
        let first = self.waiting.iter().position(|op| file_of(op) == chain).unwrap();
        let op = self.waiting.remove(first).unwrap();
        Some(self.run(op))
    }

    fn content(&mut self, file: FileId) -> io::Result<&mut Vec<u8>> {
        let path = self.open.get(&file).ok_or(io::ErrorKind::NotFound)?;
        Ok(&mut self.files.get_mut(path).ok_or(io::ErrorKind::NotFound)?.content)
    }

    fn run(&mut self, op: DiskOp) -> DiskDone {
        let faults = self.faults;
        let fail = |fails: bool| if fails { Err(no_space()) } else { Ok(()) };
        match op {
            DiskOp::Open { file, open, .. } => {
                let result = fail(faults.open).map(|()| self.open_file(file, &open));
                DiskDone::Opened(file, result)
            }
            DiskOp::Write { file, write } => {
                let end = if faults.write { write.block.bytes().len() / 2 } else { usize::MAX };
                let torn = self.torn.contains(&file);
                let result = fail(torn).and_then(|()| self.content(file)).and_then(|content| {
                    let bytes = write.block.bytes();
                    let bytes = &bytes[..bytes.len().min(end)];
                    let at = write.offset as usize;
                    assert_eq!(at % ALIGN, 0);
                    assert!(at + write.from <= content.len(), "no hole may be left");
                    let keep = content.len().max(at + bytes.len());
                    content.resize(keep, 0);
                    content[at..at + bytes.len()].copy_from_slice(bytes);
                    fail(faults.write)
                });
                if result.is_err() {
                    self.torn.insert(file);
                }
                DiskDone::Written(file, write.block, result)
            }
            DiskOp::Sync { file, .. } => {
                let fails = faults.sync || self.torn.contains(&file);
                let result = self.content(file).map(|_| ()).and_then(|()| fail(fails));
                DiskDone::Synced(file, result)
            }
            DiskOp::Truncate { file, length } => {
                let result = fail(faults.truncate).and_then(|()| {
                    let content = self.content(file)?;
                    assert!(content.len() as u64 >= length, "the stored part is there");
                    content.truncate(length as usize);
                    Ok(content[length as usize / ALIGN * ALIGN..].to_vec())
                });
                if result.is_ok() {
                    self.torn.remove(&file);
                }
                DiskDone::Truncated(file, result)
            }
            DiskOp::Probe { file, .. } => DiskDone::Probed(file, fail(faults.write || faults.sync)),
            DiskOp::Close { file, length } => {
                let content = self.content(file).unwrap();
                assert!(content.len() as u64 >= length, "the stored part is there");
                if !faults.truncate {
                    content.truncate(length as usize);
                }
                self.open.remove(&file);
                DiskDone::Closed(file)
            }
            DiskOp::Log { bytes, replace, .. } => {
                if faults.log {
                    // The worst that a failed append leaves: half a frame.
                    if !replace {
                        self.log.extend_from_slice(&bytes[..bytes.len() / 2]);
                    }
                    return DiskDone::Logged(Err(no_space()));
                }
                if replace {
                    self.log = checkpoint::MAGIC.to_vec();
                }
                self.log.extend_from_slice(&bytes);
                DiskDone::Logged(Ok(()))
            }
        }
    }

    fn open_file(&mut self, file: FileId, open: &OpenFile) -> Opened {
        let full = |path: &str| format!("{}/{path}", open.root.display());
        if let Some(resume) = &open.resume {
            let left = self.files.get(&full(&resume.path));
            if left.is_some_and(|left| {
                left.inode == resume.inode && left.content.len() as u64 == resume.length
            }) {
                self.open.insert(file, full(&resume.path));
                return Opened {
                    path: resume.path.clone(),
                    number: resume.number,
                    length: resume.length,
                    device: 1,
                    inode: resume.inode,
                };
            }
        }
        let number = (open.number..)
            .find(|number| !self.files.contains_key(&full(&numbered(&open.base, *number))))
            .unwrap();
        let path = numbered(&open.base, number);
        self.inodes += 1;
        let inode = self.inodes;
        self.files.insert(full(&path), MemFile { content: Vec::new(), inode });
        self.open.insert(file, full(&path));
        Opened { path, number, length: 0, device: 1, inode }
    }

    /// The process dies: what waits is not executed, except that one write may be cut off.
    pub fn crash(&mut self, torn: usize) {
        for op in std::mem::take(&mut self.waiting) {
            if let DiskOp::Write { file, write } = op
                && let Ok(content) = self.content(file)
            {
                // Nothing says that writes before it were executed: leave no hole.
                let bytes = write.block.bytes();
                let bytes = &bytes[..torn % (bytes.len() + 1)];
                let at = write.offset as usize;
                if at <= content.len() && content.len() < at + bytes.len() {
                    content.truncate(at);
                    content.extend_from_slice(bytes);
                }
            }
        }
        self.open.clear();
    }

    /// What recovery does on real files.
    pub fn recover(&mut self) -> WorkerStart {
        if self.log.is_empty() {
            self.log = checkpoint::MAGIC.to_vec();
        }
        let state = State::replay(&self.log);
        let mut files = Vec::new();
        for entry in state.files.into_values() {
            let path = format!("{}/{}", entry.root, entry.path);
            let file = self.files.get_mut(&path).expect("a recorded file exists");
            assert_eq!(file.inode, entry.inode);
            assert!(file.content.len() as u64 >= entry.length, "the checkpointed part is there");
            file.content.truncate(entry.length as usize);
            let tail = file.content[entry.length as usize / ALIGN * ALIGN..].to_vec();
            files.push(LeftFile {
                stream: entry.stream,
                root: PathBuf::from(&entry.root),
                base: entry.base,
                opened_ms: entry.opened_ms,
                resume: Resume {
                    path: entry.path,
                    number: entry.number,
                    length: entry.length,
                    device: entry.device,
                    inode: entry.inode,
                    tail,
                },
            });
        }
        let lanes: Vec<_> = state.lanes.into_values().collect();
        let mut frame = Frame::default();
        for lane in &lanes {
            let streams = lane.streams.iter().copied();
            frame.lane(&lane.agent, lane.data_id, lane.epoch, lane.position, streams);
        }
        self.log = checkpoint::MAGIC.to_vec();
        self.log.extend(frame.finish());
        WorkerStart { log: PathBuf::new(), log_bytes: self.log.len() as u64, lanes, files }
    }
}

// ---------------------------------------------------------------------------------------- agents

/// One lane of an agent: a spool of sealed batches and the sender's end.
pub struct AgentLane {
    pub agent: usize,
    pub data_id: u32,
    pub next: u64,
    pub spool: VecDeque<(BatchHeader, Vec<u8>)>,
    pub sender: LaneSender,
    pub dropped: BTreeSet<u64>,
    pub session: Option<SessionRef>,
    pub to_server: VecDeque<ToRouter>,
    pub to_agent: VecDeque<ServerFrame>,
    pub held_for: Option<HoldReason>,
    gap: bool,
}

impl AgentLane {
    fn new(agent: usize, data_id: u32) -> Self {
        Self {
            agent,
            data_id,
            next: 0,
            spool: VecDeque::new(),
            sender: LaneSender::new(DataId(data_id), Epoch(1), Sequence(0)),
            dropped: BTreeSet::new(),
            session: None,
            to_server: VecDeque::new(),
            to_agent: VecDeque::new(),
            held_for: None,
            gap: false,
        }
    }

    pub fn append(&mut self, count: usize) {
        let mut builder = BatchBuilder::new(DataId(self.data_id), 1 << 19);
        let first = self.next;
        for _ in 0..count {
            if !builder.push(1_000, &value(self.agent, self.data_id, self.next)) {
                break;
            }
            self.next += 1;
        }
        let flags = if std::mem::take(&mut self.gap) { FLAG_GAP_BEFORE } else { 0 };
        let mut compressor = Compressor::new(Codec::Zstd, 1).unwrap();
        let identity = (&agent_id(self.agent), Epoch(1), Sequence(first));
        self.spool.push_back(builder.seal(identity, &mut compressor, flags).unwrap());
    }

    /// The spool is full: its oldest batch goes, acknowledged or not.
    pub fn drop_oldest(&mut self) {
        let Some((gone, _)) = self.spool.pop_front() else { return };
        self.dropped.extend(gone.first.0..gone.end().0);
        self.sender.dropped_before(gone.end());
        match self.spool.front_mut() {
            Some((next, _)) => next.flags |= FLAG_GAP_BEFORE,
            None => self.gap = true,
        }
    }

    pub fn connect(&mut self, session: SessionRef) {
        self.disconnect();
        self.session = Some(session);
        let first = self.spool.front().map_or(self.next, |(header, _)| header.first.0);
        let open = self.sender.connected(Sequence(first), Sequence(self.next));
        let agent = agent_id(self.agent);
        self.to_server.push_back(ToRouter::Open { session, agent, open });
    }

    /// What was on the way is lost, but the server learns of the end of the session.
    pub fn disconnect(&mut self) {
        self.to_server.clear();
        self.to_agent.clear();
        self.held_for = None;
        self.sender.disconnected();
        if let Some(session) = self.session.take() {
            let agent = agent_id(self.agent);
            self.to_server.push_back(ToRouter::Gone { session, agent });
        }
    }

    pub fn send(&mut self) -> bool {
        let at = self.sender.next_to_send();
        let Some(session) = self.session else { return false };
        let Some((header, body)) = self.spool.iter().find(|(header, _)| header.first >= at) else {
            return false;
        };
        if !self.sender.may_send(header.wire_bytes()) {
            return false;
        }
        self.sender.sent(header);
        let (agent, header, body) = (agent_id(self.agent), header.clone(), body.clone());
        self.to_server.push_back(ToRouter::Batch { session, agent, header, body });
        true
    }

    /// Takes one frame; false when there is none.
    pub fn receive(&mut self) -> bool {
        let Some(frame) = self.to_agent.pop_front() else { return false };
        match frame {
            ServerFrame::LaneReady(ready) => {
                self.held_for = None;
                self.sender.on_ready(&ready);
            }
            ServerFrame::Ack(ack) => {
                if let Some(position) = self.sender.on_ack(&ack) {
                    self.spool.retain(|(header, _)| header.end() > position);
                }
            }
            ServerFrame::Credit(credit) => self.sender.on_credit(&credit),
            ServerFrame::Hold(hold) => {
                assert_ne!(hold.reason, HoldReason::StaleEpoch, "nobody lost its past here");
                self.held_for = Some(hold.reason);
                self.sender.on_hold(&hold);
            }
            ServerFrame::GoAway { .. } => panic!("told to go away"),
            ServerFrame::KeepAlive => {}
        }
        true
    }
}

// ----------------------------------------------------------------------------------------- world

/// A worker, its disk and its agents.
pub struct World {
    pub core: RouterCore,
    pub disk: MemDisk,
    pub lanes: Vec<AgentLane>,
    pub now: Now,
    pub reports: Vec<RouterReport>,
    pub table: Arc<fleet::RoutingTable>,
    control: VecDeque<ToRouter>,
    sessions: u64,
    limits: Limits,
}

impl World {
    /// `agents` agents with a lane for each of `data_ids`.
    pub fn new(agents: usize, data_ids: &[u32], table: fleet::RoutingTable) -> Self {
        let limits = Limits { window_bytes: 20_000, log_bytes_min: 4_096, ..Limits::default() };
        let mut disk = MemDisk::default();
        let now = Now { mono_ms: 1, wall_ms: WALL_MS };
        let core = RouterCore::new(0, 1, limits.clone(), disk.recover(), now);
        let lanes = (0..agents)
            .flat_map(|agent| data_ids.iter().map(move |id| AgentLane::new(agent, *id)))
            .collect();
        let table = Arc::new(table);
        let control = VecDeque::from([ToRouter::Table(table.clone())]);
        let reports = Vec::new();
        Self { core, disk, lanes, now, reports, table, control, sessions: 0, limits }
    }

    pub fn tell(&mut self, message: ToRouter) {
        if let ToRouter::Table(table) = &message {
            self.table = table.clone();
        }
        self.control.push_back(message);
    }

    pub fn connect(&mut self, lane: usize) {
        self.sessions += 1;
        let session = SessionRef { shard: 0, conn: self.sessions };
        self.lanes[lane].connect(session);
    }

    pub fn pass(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.wall_ms += ms;
        self.turn();
    }

    /// The core's turn: due work, new operations, replies.
    pub fn turn(&mut self) {
        while let Some(message) = self.core.accepts().then(|| self.control.pop_front()).flatten() {
            self.core.handle(self.now, message);
        }
        self.core.tick(self.now);
        for op in self.core.take_ops() {
            self.disk.begin(op);
        }
        for (session, frame) in self.core.take_replies() {
            let lane = self.lanes.iter_mut().find(|lane| lane.session == Some(session));
            if let Some(lane) = lane {
                lane.to_agent.push_back(frame);
            }
        }
        self.reports.extend(self.core.take_reports());
        if let Some(due) = self.core.deadline_ms() {
            // A deadline that a tick does not move would make a driver spin.
            assert!(due > self.now.mono_ms, "due at {due}, now {}", self.now.mono_ms);
        }
    }

    /// One message of a lane reaches the worker.
    pub fn deliver(&mut self, lane: usize) -> bool {
        if !self.core.accepts() {
            return false;
        }
        let Some(message) = self.lanes[lane].to_server.pop_front() else { return false };
        self.core.handle(self.now, message);
        self.turn();
        true
    }

    /// One disk operation ends.
    pub fn disk_step(&mut self, pick: usize) -> bool {
        let Some(done) = self.disk.step(pick) else { return false };
        self.core.done(self.now, done);
        self.turn();
        true
    }

    /// kill -9 and restart.
    pub fn crash(&mut self, torn: usize) {
        self.disk.crash(torn);
        let start = self.disk.recover();
        self.now.mono_ms += 1_000;
        self.core = RouterCore::new(0, 1, self.limits.clone(), start, self.now);
        for lane in &mut self.lanes {
            lane.disconnect();
            lane.to_server.clear();
        }
        self.control.clear();
        self.control.push_back(ToRouter::Table(self.table.clone()));
        self.turn();
    }

    /// Everything that can move moves, without time passing.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            let mut moved = false;
            self.turn();
            for lane in 0..self.lanes.len() {
                moved |= self.lanes[lane].receive();
                moved |= self.lanes[lane].send();
                moved |= self.deliver(lane);
            }
            moved |= self.disk_step(0);
            if !moved {
                return;
            }
        }
        panic!("the world does not come to rest");
    }

    /// The disk is well, everybody is connected, and time passes until all is acknowledged.
    pub fn finish(&mut self) {
        self.disk.faults = Faults::default();
        for lane in 0..self.lanes.len() {
            if self.lanes[lane].session.is_none() {
                self.connect(lane);
            }
        }
        for _ in 0..400 {
            self.settle();
            if self.lanes.iter().all(|lane| lane.spool.is_empty()) {
                // Files that could not be cut when their stream went away are cut by and by.
                self.pass(60_000);
                self.settle();
                return;
            }
            self.pass(500);
        }
        let stuck: Vec<_> = self
            .lanes
            .iter()
            .filter(|lane| !lane.spool.is_empty())
            .map(|lane| (lane.agent, lane.data_id, lane.held_for, lane.sender.clone()))
            .collect();
        panic!("not acknowledged: {stuck:?}");
    }

    /// The records of a stream's files by lane, sorted; checks their values, and that they are in
    /// order in each file.
    pub fn stored(&self, stream: &str) -> BTreeMap<(String, u32), Vec<u64>> {
        let files = self.disk.files.iter().filter(|(path, _)| path.contains(stream));
        let mut stored: BTreeMap<_, Vec<u64>> = BTreeMap::new();
        for (path, file) in files {
            assert!(file.content.is_empty() || file.content.ends_with(b"\n"));
            let mut last = BTreeMap::new();
            for line in file.content.split(|byte| *byte == b'\n') {
                let Some((lane, sequence)) = parse(line) else { continue };
                let before = last.insert(lane.clone(), sequence);
                assert!(before.is_none_or(|before| before < sequence), "{path}: out of order");
                stored.entry(lane).or_default().push(sequence);
            }
        }
        stored.values_mut().for_each(|sequences| sequences.sort_unstable());
        stored
    }

    /// Everything that was ever appended is in `stream` once, or was dropped by its
    /// agent.
    pub fn assert_exactly_once(&self, stream: &str) {
        let stored = self.stored(stream);
        for lane in &self.lanes {
            let key = (agent_id(lane.agent).to_string(), lane.data_id);
            let have = stored.get(&key).cloned().unwrap_or_default();
            assert!(have.windows(2).all(|pair| pair[0] < pair[1]), "{key:?}: repeated: {have:?}");
            let have: BTreeSet<u64> = have.into_iter().collect();
            let lost: Vec<u64> = (0..lane.next)
                .filter(|at| !have.contains(at) && !lane.dropped.contains(at))
                .collect();
            assert!(lost.is_empty(), "{key:?}: lost {lost:?}");
        }
    }
}

/// Lane and sequence of a tagged line whose value is what it must be.
pub fn parse(line: &[u8]) -> Option<((String, u32), u64)> {
    if line.is_empty() {
        return None;
    }
    let mut fields = line.splitn(6, |byte| *byte == b'\t');
    let shown = String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
    let mut text = || {
        let field = fields.next().unwrap_or_else(|| panic!("a torn line: {shown:?}"));
        std::str::from_utf8(field).unwrap().to_owned()
    };
    let (agent, data_id) = (text(), text().parse().unwrap());
    let (_epoch, sequence): (String, u64) = (text(), text().parse().unwrap());
    let _timestamp = text();
    let escaped = fields.next().expect("six fields");
    let index = agent.strip_prefix("agent-").unwrap().parse().unwrap();
    let expected = String::from_utf8(value(index, data_id, sequence)).unwrap();
    let expected = expected.replace('\\', "\\\\").replace('\t', "\\t");
    assert!(escaped == expected.as_bytes(), "value of {agent}/{data_id}/{sequence}");
    Some(((agent, data_id), sequence))
}
