//! What is said of a transfer when it has ended: how near to the bound it came, and what cost the
//! rest.

use serde::{Deserialize, Serialize};
use skein_filemesh::core::planner::{Causes, PlannerSettings, judge};

use super::record::TransferRecord;

/// A judgement, stored with the transfer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// Bound over time, 0 to 1; the bound is of the rates that were known when it was planned.
    pub share: f64,
    /// One sentence for people.
    pub sentence: String,
}

/// What is known of a transfer at its end.
#[derive(Clone, Debug, Default)]
pub struct Course {
    /// When the first host said that it began, by this clock.
    pub began_ms: Option<i64>,
    /// When each host that has the file said so.
    pub done_ms: Vec<i64>,
    /// What the worst host waited for parents that were late.
    pub repair_ms: f64,
}

/// Judges a transfer; none where nobody got the file, and for one that was not planned.
pub fn judged(
    record: &TransferRecord,
    course: &Course,
    settings: &PlannerSettings,
) -> Option<Judged> {
    let running_ms = record.running_ms?;
    let mut done: Vec<i64> = course.done_ms.iter().map(|at_ms| at_ms - running_ms).collect();
    done.sort_unstable();
    let last = *done.last()?;
    let bound_ms = record.gear.bound_exact_ms;
    if bound_ms <= 0.0 || last <= 0 {
        return None;
    }
    // Those that took twice as long as the median, or whatever counts as slow, waited for alone.
    let slow = done[done.len() / 2] as f64 / settings.slow_share.max(0.01);
    let others = done.iter().rev().find(|at| **at as f64 <= slow).copied().unwrap_or(last);
    let started = course.began_ms.filter(|_| !record.gear.is_inline());
    let causes = Causes {
        start_ms: started.map_or(0.0, |at_ms| (at_ms - running_ms).max(0) as f64),
        hashing_ms: 0.0,
        slow_hosts_ms: (last - others) as f64,
        repair_ms: course.repair_ms,
        commit_ms: settings.commit_ms,
    };
    let judged = judge(record.gear.kind(), bound_ms, last as f64, &causes);
    Some(Judged { share: judged.share, sentence: judged.sentence })
}

#[cfg(test)]
mod tests {
    use super::super::gear::GearChoice;
    use super::super::record::tests::request;
    use super::*;

    #[test]
    fn slow_hosts_start_and_flush_are_named() {
        let mut record = TransferRecord::from_request(request(), 0).unwrap();
        record.running_ms = Some(1_000);
        let gear = "planned".into();
        record.gear = GearChoice { gear, bound_exact_ms: 800.0, ..GearChoice::default() };
        let done_ms = vec![2_000, 2_010, 2_020, 4_000];
        let course = Course { began_ms: Some(1_050), done_ms, repair_ms: 100.0 };
        let judged = super::judged(&record, &course, &PlannerSettings::default()).unwrap();
        assert!((judged.share - 800.0 / 3_000.0).abs() < 1e-9);
        let text = "26 % of the bound (800 ms of 3 s); \
                    lost to: slow hosts 1.98 s, repair 100 ms, relaying 65 ms, start 50 ms, \
                    flush and rename 5 ms";
        assert_eq!(judged.sentence, text);
        let nobody = Course::default();
        assert_eq!(super::judged(&record, &nobody, &PlannerSettings::default()), None);
    }
}
