//! Whether a transfer keeps the pace that was predicted, from what its hosts report.
//!
//! The share that is done says slowly that something has changed: after a third of the time a cut
//! to a fifth shows only when a fifteenth more has passed. So the pace of the last reports is
//! compared too. Both start anew with each plan, and plans follow each other with growing pauses.

use skein_filemesh::core::planner::{Decision, PlannerSettings};

use super::rates::Span;

/// Agents report progress twice a second; two reports that are nearer say little.
const REPORT_MS_MIN: i64 = 400;
/// A host that is silent for longer has slowed down.
const REPORT_MS_MAX: i64 = 1_000;
/// Off the predicted pace by this factor, either way, is off course whatever is done already.
const OFF_PACE: f64 = 2.0;
/// Looks in a row that must find it so.
const LOOKS: u32 = 2;
/// Before the first of a plan's hosts have begun, and when few are left, the pace says nothing.
const SHARES: std::ops::Range<f64> = 0.03..0.9;
/// Between a plan and the next; doubled by each.
const PAUSE_MS: i64 = 1_000;
const PAUSES_MAX: u32 = 7;

/// How fast one host receives, by its last two reports.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostPace {
    at_ms: i64,
    bytes: u64,
    bytes_s: f64,
    /// The first report of a byte.
    first: Option<(i64, u64)>,
}

impl HostPace {
    /// It has received `bytes`; fewer than before: it began anew.
    pub fn report(&mut self, bytes: u64, now_ms: i64) {
        let past_ms = now_ms - self.at_ms;
        if self.at_ms == 0 || bytes < self.bytes {
            *self = Self { at_ms: now_ms, bytes, ..Self::default() };
        } else if past_ms >= REPORT_MS_MIN {
            let bytes_s = (bytes - self.bytes) as f64 * 1e3 / past_ms as f64;
            *self = Self { at_ms: now_ms, bytes, bytes_s, ..*self };
        }
        if bytes > 0 {
            self.first.get_or_insert((now_ms, bytes));
        }
    }

    /// What came between the first report of a byte and this one.
    pub fn since_first(&self, bytes: u64, now_ms: i64) -> Option<Span> {
        let (first_ms, first) = self.first?;
        Some(Span { bytes: bytes.saturating_sub(first), time_ms: now_ms - first_ms })
    }

    /// Bytes per second at this time.
    pub fn bytes_s(&self, now_ms: i64) -> f64 {
        let silent_ms = now_ms - self.at_ms;
        match silent_ms > REPORT_MS_MAX {
            true => self.bytes_s * REPORT_MS_MIN as f64 / silent_ms as f64,
            false => self.bytes_s,
        }
    }
}

/// How a transfer stands.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Of all hosts, verified.
    pub bytes: u64,
    /// That they are to have.
    pub total: u64,
    /// Of those that have not ended, together.
    pub bytes_s: f64,
    /// Those that have not ended.
    pub open: usize,
    /// All.
    pub hosts: usize,
}

/// One transfer against its newest plan.
#[derive(Clone, Debug)]
pub struct Course {
    decision: Decision,
    planned_ms: i64,
    planned_bytes: u64,
    plans: u32,
    off: u32,
}

impl Course {
    /// A plan that begins now.
    pub fn new(decision: Decision, bytes: u64, now_ms: i64) -> Self {
        Self { decision, planned_ms: now_ms, planned_bytes: bytes, plans: 0, off: 0 }
    }

    /// A newer plan.
    pub fn replanned(&mut self, decision: Decision, bytes: u64, now_ms: i64) {
        let plans = (self.plans + 1).min(PAUSES_MAX);
        *self = Self { plans, ..Self::new(decision, bytes, now_ms) };
    }

    /// Whether it is time to plan again.
    pub fn is_off(&mut self, now: &Standing, settings: &PlannerSettings, now_ms: i64) -> bool {
        let elapsed_ms = now_ms - self.planned_ms;
        let total = now.total.saturating_sub(self.planned_bytes);
        if total == 0 || now.open == 0 || elapsed_ms < PAUSE_MS << self.plans {
            self.off = 0;
            return false;
        }
        let share = now.bytes.saturating_sub(self.planned_bytes) as f64 / total as f64;
        let pace = self.pace(now, total);
        let off_pace = SHARES.contains(&share) && !(1.0 / OFF_PACE..=OFF_PACE).contains(&pace);
        let is_off = off_pace || self.decision.is_off_course(share, elapsed_ms as f64, settings);
        self.off = if is_off { self.off + 1 } else { 0 };
        self.off >= LOOKS
    }

    /// Rate of a host that has not ended, over the one that was predicted.
    fn pace(&self, now: &Standing, total: u64) -> f64 {
        let of_gear = self.decision.gears.iter().find(|one| one.gear == self.decision.gear);
        let start_ms = of_gear.map_or(0.0, |one| one.start_ms);
        let moving_ms = (self.decision.predicted_ms - start_ms).max(1.0);
        let expected = total as f64 * 1e3 / moving_ms / now.hosts.max(1) as f64;
        now.bytes_s / now.open as f64 / expected.max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_filemesh::core::geometry::Geometry;
    use skein_filemesh::core::place::Rates;
    use skein_filemesh::core::planner::{Host, Limits, PlannerInput, Starts, plan};

    const SIZE: u64 = 128 << 20;
    const HOSTS: usize = 4;

    fn decision() -> Decision {
        let host = Host { rates: Rates::both(12_500_000), ..Host::default() };
        let input = PlannerInput {
            geometry: Geometry::new(SIZE, 1 << 20).unwrap(),
            is_hashed: true,
            can_inline: false,
            fresh_bytes: SIZE,
            sources: &[host],
            targets: &[host; HOSTS],
            borders: &[],
            limits: Limits::default(),
            rtt_ms: None,
            starts: Starts::default(),
        };
        plan(&input, &PlannerSettings::default())
    }

    /// Runs at `rates` (share of the predicted one, until a share of the file) and answers when
    /// it is off course, in ms after the last change of the rate.
    fn off_after_ms(rates: [(f64, f64); 2]) -> Option<i64> {
        let decision = decision();
        let full = SIZE as f64 / (decision.predicted_ms / 1e3);
        let mut course = Course::new(decision, 0, 1_000);
        let mut paces = [HostPace::default(); HOSTS];
        let (mut bytes, mut changed_ms) = (0.0, 0);
        for ms in (1_000..60_000).step_by(50) {
            let share = bytes / SIZE as f64;
            let at = usize::from(share >= rates[0].1);
            if at == 1 && changed_ms == 0 {
                changed_ms = ms;
            }
            if share >= 1.0 {
                return None;
            }
            bytes += full * rates[at].0 * 0.05;
            for (host, pace) in paces.iter_mut().enumerate() {
                if ms % 500 == host as i64 * 100 {
                    pace.report(bytes as u64, ms);
                }
            }
            let now = Standing {
                bytes: bytes as u64 * HOSTS as u64,
                total: SIZE * HOSTS as u64,
                bytes_s: paces.iter().map(|pace| pace.bytes_s(ms)).sum(),
                open: HOSTS,
                hosts: HOSTS,
            };
            if ms % 250 == 0 && course.is_off(&now, &PlannerSettings::default(), ms) {
                return Some(ms - changed_ms);
            }
        }
        None
    }

    #[test]
    fn the_rate_of_a_host_is_what_came_after_its_first_report() {
        let mut pace = HostPace::default();
        pace.report(0, 1_000);
        assert!(pace.since_first(9, 1_100).is_none(), "nothing has come");
        pace.report(1_000, 2_000);
        pace.report(6_000, 2_500);
        let span = pace.since_first(9_000, 3_000).unwrap();
        assert_eq!((span.bytes, span.time_ms), (8_000, 1_000));
        pace.report(500, 3_500);
        let span = pace.since_first(700, 3_600).unwrap();
        assert_eq!((span.bytes, span.time_ms), (200, 100), "it began anew");
    }

    #[test]
    fn what_goes_as_predicted_is_left_alone() {
        assert_eq!(off_after_ms([(1.0, 0.5), (1.0, 1.0)]), None);
        assert_eq!(off_after_ms([(1.0, 0.5), (0.9, 1.0)]), None, "that is within 15 %");
    }

    #[test]
    fn a_source_that_is_cut_to_a_fifth_is_noticed_within_two_seconds() {
        let after_ms = off_after_ms([(1.0, 0.3), (0.2, 1.0)]).unwrap();
        assert!((0..1_600).contains(&after_ms), "{after_ms}");
        let after_ms = off_after_ms([(1.0, 0.3), (3.0, 1.0)]).unwrap();
        assert!((0..1_600).contains(&after_ms), "{after_ms}");
        assert!(off_after_ms([(0.2, 1.0), (0.2, 1.0)]).is_some(), "slow from the first");
    }

    #[test]
    fn plans_follow_each_other_with_growing_pauses() {
        let mut course = Course::new(decision(), 0, 0);
        let stuck = Standing { bytes: 1 << 24, total: 1 << 29, bytes_s: 1.0, open: 4, hosts: 4 };
        let mut plans = vec![];
        for ms in (0..40_000).step_by(250) {
            if course.is_off(&stuck, &PlannerSettings::default(), ms) {
                plans.push(ms);
                course.replanned(decision(), 0, ms);
            }
        }
        let pauses: Vec<i64> = plans.windows(2).map(|two| two[1] - two[0]).collect();
        assert_eq!(pauses[..3], [2_250, 4_250, 8_250]);
    }
}
