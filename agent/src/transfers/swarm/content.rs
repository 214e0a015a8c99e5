//! What a swarm has, while it arrives and afterwards, with its newest blocks in memory.

use std::io;
use std::ops::Range;

use skein_filemesh::engine::recent::RECENT_BYTES;
use skein_filemesh::engine::{BlockMemory, RecentBlocks, Taken, View};

use super::super::arriving::{Arriving, Whole};
use super::super::fetch::FetchEnd;

/// How long the newest blocks stay in memory when nothing comes after them: those who follow have
/// them by then, or read them from the disk.
const RECENT_MS: u64 = 5_000;

/// The bytes of a swarm.
pub(super) struct Content {
    place: Place,
    /// What arrived last, which others want next.
    recent: RecentBlocks,
    written_ms: u64,
    memory: BlockMemory,
}

/// Where all bytes are.
enum Place {
    /// Still arriving.
    Partial(Box<Arriving>),
    /// All here, on its way to its place or there.
    Whole(Whole),
}

impl Content {
    /// What arrives in `memory` goes to `arriving`.
    pub fn new(arriving: Arriving, memory: &BlockMemory) -> Self {
        Self {
            place: Place::Partial(Box::new(arriving)),
            recent: RecentBlocks::new(RECENT_BYTES),
            written_ms: 0,
            memory: memory.clone(),
        }
    }

    /// Hands to the kernel what waits in memory.
    pub fn write_waiting(&mut self) -> Result<(), FetchEnd> {
        match &mut self.place {
            Place::Partial(arriving) => arriving.write_waiting(),
            Place::Whole(_) => Ok(()),
        }
    }

    /// Whether something is missing, or was a moment ago.
    pub fn is_arriving(&self) -> bool {
        matches!(self.place, Place::Partial(_))
    }

    /// Writes proved bytes of what was received. What comes after the end comes twice and is
    /// dropped.
    pub fn write(
        &mut self,
        taken: &Taken,
        offset: u64,
        data: Range<usize>,
        now_ms: u64,
    ) -> Result<(), FetchEnd> {
        let Place::Partial(arriving) = &mut self.place else { return Ok(()) };
        if let Taken::View(view) = taken {
            // Several transfers share the memory: what is needed to receive goes first.
            let counters = self.memory.counters();
            if counters.in_use > counters.slabs_max / 2 {
                self.recent.shrink(self.recent.bytes().saturating_sub(2 * data.len()));
            }
            self.recent.keep(offset, view.slice(data.clone()));
            self.written_ms = now_ms;
        }
        arriving.write(taken, offset, data)
    }

    /// Views of the `len` bytes at `offset`, if they are among the newest.
    pub fn views_at(&self, offset: u64, len: usize, out: &mut Vec<View>) -> bool {
        self.recent.views_at(offset, len, out)
    }

    /// Appends `len` bytes at `offset` to `out`, from the disk.
    pub fn append_at(&mut self, offset: u64, len: usize, out: &mut Vec<u8>) -> io::Result<()> {
        match &mut self.place {
            Place::Partial(arriving) => {
                arriving.append_at(offset, len, out).map_err(io::Error::other)
            }
            Place::Whole(whole) => whole.append_at(offset, len, out),
        }
    }

    /// From now on it is only read; the answer is to be finished. `None`: that was done before.
    pub fn complete(&mut self) -> Result<Option<Arriving>, FetchEnd> {
        let Place::Partial(arriving) = &mut self.place else { return Ok(None) };
        let whole = Place::Whole(arriving.reader()?);
        match std::mem::replace(&mut self.place, whole) {
            Place::Partial(arriving) => Ok(Some(*arriving)),
            Place::Whole(_) => Ok(None),
        }
    }

    /// What was to be received and will not be.
    pub fn into_arriving(self) -> Option<Arriving> {
        match self.place {
            Place::Partial(arriving) => Some(*arriving),
            Place::Whole(_) => None,
        }
    }

    /// Lets go of memory that nobody will ask for soon; the answer is when to come back.
    pub fn tidy(&mut self, now_ms: u64) -> Option<u64> {
        let until_ms = self.written_ms + RECENT_MS;
        if now_ms >= until_ms {
            self.recent.shrink(0);
        }
        (self.recent.bytes() > 0).then_some(until_ms)
    }
}
