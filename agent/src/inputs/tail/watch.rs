//! The thread that follows files: which there are, when to look at them, when one is finished.
//!
//! Files are polled: it works on every file system and kernel. The pause between looks grows to a
//! second while nothing happens, which costs a few system calls per second and file.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::follow::{Chunk, Followed, Look};
use super::mark::{self, Place};
use super::{From, TailConfig, glob};
use crate::inputs::OpenFile;
use crate::inputs::socket::failed;
use crate::spool::{Input, Marks};

/// Files followed at once; further ones wait until others are finished.
const FILES_MAX: usize = 1_024;
/// Pause between looks: after news, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How often patterns are expanded when nothing tells that a file was rotated.
const EXPAND: Duration = Duration::from_secs(2);
/// How long a file that lost its name is watched: its writer may still have it open.
const LINGER: Duration = Duration::from_secs(5);

/// How far a chunk is durable; nowhere when the spool has no room for its first line.
#[derive(Debug)]
pub struct Reply {
    pub file: u64,
    pub durable: Option<Place>,
}

/// The thread's state.
pub struct Watcher {
    patterns: Vec<Pattern>,
    files: Vec<Followed>,
    /// When files that lost their names were last seen to grow.
    gone_since: BTreeMap<u64, Instant>,
    next_number: u64,
    open_file: OpenFile,
    chunks: mpsc::Sender<Chunk>,
    replies: blocking::Receiver<Reply>,
    /// Paths that cannot be opened, so that each is reported once.
    refused: BTreeMap<PathBuf, String>,
    expanded_at: Option<Instant>,
}

struct Pattern {
    config: TailConfig,
    path: PathBuf,
    /// Places of files as the last run left them, by device and inode.
    marks: BTreeMap<(u64, u64), Place>,
    /// Whether files that appear are new, and not what was there before the pattern was followed.
    known: bool,
}

impl Watcher {
    pub fn new(
        tails: Vec<TailConfig>,
        marks: BTreeMap<u32, Marks>,
        open_file: OpenFile,
        chunks: mpsc::Sender<Chunk>,
        replies: blocking::Receiver<Reply>,
    ) -> Watcher {
        let patterns = tails.into_iter().map(|config| {
            let of_lane = marks.get(&config.data_id).into_iter().flatten();
            let marks: BTreeMap<(u64, u64), Place> = of_lane
                .filter_map(|(key, value)| {
                    Some((mark::parse_key(&config.path, key)?, Place::decode(value)?))
                })
                .collect();
            Pattern {
                path: PathBuf::from(&config.path),
                known: !marks.is_empty() || config.from == From::Start,
                config,
                marks,
            }
        });
        Watcher {
            patterns: patterns.collect(),
            files: Vec::new(),
            gone_since: BTreeMap::new(),
            next_number: 0,
            open_file,
            chunks,
            replies,
            refused: BTreeMap::new(),
            expanded_at: None,
        }
    }

    /// Until the worker is gone.
    pub fn run(mut self) {
        let mut pause = PAUSE.0;
        loop {
            let Some(news) = self.round() else { return };
            pause = if news { PAUSE.0 } else { (pause * 2).min(PAUSE.1) };
            if self.chunks.is_closed() {
                return;
            }
            std::thread::sleep(pause);
        }
    }

    /// One look at everything; says whether there was news, nothing when the worker is gone.
    fn round(&mut self) -> Option<bool> {
        let due = self.expanded_at.is_none_or(|at| at.elapsed() >= EXPAND);
        let renamed = self.check_names();
        let mut news = renamed;
        if due || renamed {
            self.expanded_at = Some(Instant::now());
            for pattern in 0..self.patterns.len() {
                news |= self.discover(pattern)?;
            }
        }
        // A file with much to read has several turns before the names are looked at again.
        for _ in 0..16 {
            if !self.read_all()? {
                break;
            }
            news = true;
        }
        self.finish_gone()?;
        Some(news)
    }

    /// Notices files whose path no longer leads to them.
    fn check_names(&mut self) -> bool {
        let mut any = false;
        for file in self.files.iter_mut().filter(|file| !file.gone) {
            let id = std::fs::metadata(&file.path).map(|meta| (meta.dev(), meta.ino()));
            if id.ok() != Some(file.id) {
                file.gone = true;
                self.gone_since.insert(file.number, Instant::now());
                any = true;
            }
        }
        any
    }

    /// Opens what the pattern names and is not followed yet.
    fn discover(&mut self, pattern: usize) -> Option<bool> {
        let mut any = false;
        for path in glob::expand(&self.patterns[pattern].path) {
            let Ok(meta) = std::fs::metadata(&path) else { continue };
            let id = (meta.dev(), meta.ino());
            let known = self.files.iter_mut().find(|file| file.pattern == pattern && file.id == id);
            if let Some(file) = known {
                if file.gone {
                    // Renamed to another name that the pattern has.
                    file.gone = false;
                    self.gone_since.remove(&file.number);
                }
                file.path = path;
                continue;
            }
            let Some(mut file) = self.open(pattern, &path) else { continue };
            any = true;
            let place = self.patterns[pattern].marks.remove(&file.id);
            match place.filter(|place| is_same(&file, place)) {
                Some(place) => file.place = place,
                None if self.patterns[pattern].known => {}
                None => {
                    if let Err(error) = file.skip_to_end() {
                        self.report(&path, &error);
                        continue;
                    }
                }
            }
            self.follow(file)?;
        }
        if !self.patterns[pattern].marks.is_empty() {
            self.find_renamed(pattern)?;
        }
        self.patterns[pattern].known = true;
        self.wait_for_replies()?;
        Some(any)
    }

    /// Files that were rotated while the agent was away: the rest of them is read, too.
    fn find_renamed(&mut self, pattern: usize) -> Option<()> {
        let mut marks = std::mem::take(&mut self.patterns[pattern].marks);
        for folder in glob::folders(&self.patterns[pattern].path) {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            for entry in entries {
                let Ok(meta) = entry.metadata() else { continue };
                let Some(place) = marks.remove(&(meta.dev(), meta.ino())) else { continue };
                let Some(mut file) = self.open(pattern, &entry.path()) else { continue };
                if is_same(&file, &place) {
                    (file.place, file.gone) = (place, true);
                    self.gone_since.insert(file.number, Instant::now());
                    self.follow(file)?;
                }
            }
        }
        // What is nowhere is forgotten.
        for (device, inode) in marks.into_keys() {
            let config = &self.patterns[pattern].config;
            let key = mark::key(&config.path, device, inode);
            self.chunks.blocking_send(Chunk::forget(config.data_id, key)).ok()?;
        }
        Some(())
    }

    fn open(&mut self, pattern: usize, path: &Path) -> Option<Followed> {
        if self.files.len() >= FILES_MAX {
            self.report(path, &format!("more than {FILES_MAX} files are followed"));
            return None;
        }
        let opened = (self.open_file)(path).and_then(|file| {
            let meta = file.metadata()?;
            Ok((file, meta))
        });
        match opened {
            Ok((file, meta)) if meta.is_file() => {
                self.refused.remove(path);
                self.next_number += 1;
                Some(Followed {
                    number: self.next_number,
                    pattern,
                    path: path.to_owned(),
                    id: (meta.dev(), meta.ino()),
                    gone: false,
                    place: Place::default(),
                    pending: None,
                    file,
                })
            }
            Ok(_) => {
                self.report(path, &"not a regular file");
                None
            }
            Err(error) => {
                self.report(path, &error);
                None
            }
        }
    }

    fn report(&mut self, path: &Path, error: &dyn std::fmt::Display) {
        let text = error.to_string();
        if self.refused.len() < FILES_MAX && self.refused.get(path) != Some(&text) {
            tracing::warn!(path = %path.display(), error = text, "cannot follow");
            failed(Input::Tail, "open");
            self.refused.insert(path.to_owned(), text);
        }
    }

    /// Takes a file in, and has its place noted: after a kill it is known where it was.
    fn follow(&mut self, mut file: Followed) -> Option<()> {
        let config = &self.patterns[file.pattern].config;
        tracing::info!(
            path = %file.path.display(),
            data_id = config.data_id,
            offset = file.place.offset,
            "following"
        );
        let key = mark::key(&config.path, file.id.0, file.id.1);
        let note = file.note(config.data_id, key, false);
        self.files.push(file);
        self.chunks.blocking_send(note).ok()
    }

    /// Reads a chunk of every file that has more, and waits until all are durable.
    fn read_all(&mut self) -> Option<bool> {
        let mut any = false;
        for index in 0..self.files.len() {
            let file = &mut self.files[index];
            let config = &self.patterns[file.pattern].config;
            let key = mark::key(&config.path, file.id.0, file.id.1);
            match file.look(config.data_id, key, false) {
                Ok(Look::Nothing) => {}
                Ok(Look::Lines(chunk)) => {
                    any = true;
                    if file.gone {
                        self.gone_since.insert(file.number, Instant::now());
                    }
                    self.chunks.blocking_send(*chunk).ok()?;
                }
                Err(error) => {
                    let path = file.path.clone();
                    self.report(&path, &error);
                }
            }
        }
        Some(self.wait_for_replies()? && any)
    }

    /// Takes the last line of files that are gone for good, and forgets them.
    fn finish_gone(&mut self) -> Option<()> {
        let now = Instant::now();
        let over = |at: &Instant| now.duration_since(*at) >= LINGER;
        let finished: Vec<u64> =
            self.gone_since.iter().filter(|(_, at)| over(at)).map(|(number, _)| *number).collect();
        for number in finished {
            self.gone_since.remove(&number);
            let Some(index) = self.files.iter().position(|file| file.number == number) else {
                continue;
            };
            let config = self.patterns[self.files[index].pattern].config.clone();
            let file = &mut self.files[index];
            let key = mark::key(&config.path, file.id.0, file.id.1);
            if let Ok(Look::Lines(chunk)) = file.look(config.data_id, key, true) {
                self.chunks.blocking_send(*chunk).ok()?;
                self.wait_for_replies()?;
            }
            let file = &mut self.files[index];
            tracing::info!(path = %file.path.display(), "finished");
            let note = file.note(config.data_id, key, true);
            self.chunks.blocking_send(note).ok()?;
            self.wait_for_replies()?;
            self.files.remove(index);
        }
        Some(())
    }

    /// Until no chunk is on its way. False when one was not taken whole: the rest is
    /// read again later.
    fn wait_for_replies(&mut self) -> Option<bool> {
        let mut all = true;
        while self.files.iter().any(|file| file.pending.is_some()) {
            let Reply { file, durable } = self.replies.recv().ok()?;
            let Some(file) = self.files.iter_mut().find(|known| known.number == file) else {
                continue;
            };
            all &= durable.is_some() && durable == file.pending;
            file.pending = None;
            file.place = durable.unwrap_or(file.place);
        }
        Some(all)
    }
}

/// Whether the file is the one that the place was noted of.
fn is_same(file: &Followed, place: &Place) -> bool {
    let Ok(meta) = file.file.metadata() else { return false };
    let same = file.head().is_ok_and(|head| place.fingerprint.matches(&head));
    same && meta.size() >= place.offset
}
