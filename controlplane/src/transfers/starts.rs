//! What earlier transfers showed of the time that is not moving bytes: an order is stored, signed
//! and sent, hosts connect and meet, files are flushed and renamed. It depends on gear, number of
//! hosts and what machines they are, so it is measured where Skein runs; what the planner's settings
//! say is the first guess, and one of the samples of which the middle one counts.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use skein_filemesh::core::planner::{Gear, Starts};

use super::rates::KEEP_MS;

/// Larger files say more of links than of starts, bytes.
pub const SIZE_MAX: u64 = 1 << 20;
/// Samples that are remembered for a gear and size of fleet. A single one that is out of the way
/// changes nothing.
const SAMPLES: usize = 5;
/// Moving bytes may take so many times as long as the start that is learned.
const MOVING_MAX: f64 = 4.0;
/// A start that takes so many times what was guessed was something else.
const FACTOR_MAX: f64 = 16.0;

/// The samples of one gear and one size of fleet, the oldest first.
#[derive(Clone, Debug)]
struct Shown {
    ms: Vec<f64>,
    guess_ms: f64,
    at_ms: i64,
}

/// Starts by gear and power of two of hosts: at most 4 times 32.
#[derive(Debug, Default)]
pub struct StartBook {
    shown: Mutex<HashMap<(Gear, u32), Shown>>,
}

/// A transfer that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// How it travelled.
    pub gear: Gear,
    /// To how many hosts.
    pub hosts: usize,
    /// From its order to its last host's file, ms.
    pub took_ms: f64,
    /// What moving its bytes was thought to take, ms.
    pub moving_ms: f64,
    /// What its start was guessed to take before anything was measured, ms.
    pub guess_ms: f64,
}

impl StartBook {
    fn lock(&self) -> MutexGuard<'_, HashMap<(Gear, u32), Shown>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known for so many hosts.
    pub fn of(&self, hosts: usize, now_ms: i64) -> Starts {
        let book = self.lock();
        let mut starts = Starts::default();
        for gear in [Gear::Inline, Gear::Direct, Gear::Planned, Gear::Mesh] {
            let shown = book.get(&(gear, fleet(hosts)));
            if let Some(shown) = shown.filter(|shown| now_ms - shown.at_ms < KEEP_MS) {
                starts.set(gear, middle(&shown.ms), shown.guess_ms);
            }
        }
        starts
    }

    /// Enters a transfer of at most [`SIZE_MAX`] bytes that nothing limited or held up.
    pub fn learn(&self, ended: &Ended, now_ms: i64) {
        let start_ms = ended.took_ms - ended.moving_ms;
        // Where moving took much longer, its error is larger than the start.
        if start_ms < ended.moving_ms / MOVING_MAX || ended.guess_ms <= 0.0 {
            return;
        }
        let mut book = self.lock();
        let fresh = || Shown { ms: vec![ended.guess_ms], guess_ms: ended.guess_ms, at_ms: now_ms };
        let shown = book.entry((ended.gear, fleet(ended.hosts))).or_insert_with(fresh);
        if now_ms - shown.at_ms >= KEEP_MS {
            *shown = fresh();
        }
        if shown.ms.len() >= SAMPLES {
            shown.ms.remove(0);
        }
        shown.ms.push(start_ms.min(FACTOR_MAX * ended.guess_ms));
        (shown.guess_ms, shown.at_ms) = (ended.guess_ms, now_ms);
    }
}

fn fleet(hosts: usize) -> u32 {
    hosts.max(1).ilog2()
}

/// The middle one; of an even number the lower.
fn middle(ms: &[f64]) -> f64 {
    let mut ms = ms.to_vec();
    ms.sort_by(f64::total_cmp);
    ms.get(ms.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(took_ms: f64) -> Ended {
        Ended { gear: Gear::Planned, hosts: 16, took_ms, moving_ms: 10.0, guess_ms: 50.0 }
    }

    #[test]
    fn starts_are_what_several_transfers_showed() {
        let book = StartBook::default();
        let planned = |now_ms| book.of(20, now_ms).of(Gear::Planned);
        assert_eq!(planned(0), None);
        book.learn(&ended(310.0), 0);
        assert_eq!(planned(0), Some(50.0), "one may be an accident");
        book.learn(&ended(210.0), 1);
        assert_eq!(planned(1), Some(200.0));
        book.learn(&ended(9_000.0), 2);
        assert_eq!(planned(2), Some(200.0));
        book.learn(&ended(12.0), 3);
        assert_eq!(planned(3), Some(200.0), "most of that was moving");
        for now_ms in 4..7 {
            book.learn(&ended(40.0), now_ms);
        }
        assert_eq!(planned(7), Some(30.0), "it became quicker");
        assert_eq!(book.of(32, 7).of(Gear::Planned), None, "of another size");
        assert_eq!(book.of(20, 7).of(Gear::Direct), None);
        assert_eq!(planned(6 + KEEP_MS), None, "forgotten");
    }
}
