//! What a transfer that has ended reached, and what the rest was lost to.

use super::Gear;
use super::explain::Time;

/// Times that were measured beside the moving of bytes, milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Causes {
    /// From the order to the first byte.
    pub start_ms: f64,
    /// Hashing at the source before bytes moved.
    pub hashing_ms: f64,
    /// The last host after the last of those that are not slow.
    pub slow_hosts_ms: f64,
    /// Waiting for parents that were late or gone.
    pub repair_ms: f64,
    /// Flush and rename of the finished file.
    pub commit_ms: f64,
}

/// How near to the bound a transfer came.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// Bound over time, 0 to 1; the bound may have been taken from rates that were too low.
    pub share: f64,
    /// What was lost to each cause, the largest first; what no cause explains is called relaying
    /// where hosts relay, and else sending.
    pub lost: Vec<(&'static str, f64)>,
    /// The judgement for people.
    pub sentence: String,
}

/// Judges a transfer by `gear` that took `time_ms` from the order to the last host and could have taken
/// `bound_ms`. Causes that together exceed what was lost are cut to it, in the order in which they
/// occur.
pub fn judge(gear: Gear, bound_ms: f64, time_ms: f64, causes: &Causes) -> Judgement {
    let share = if time_ms > 0.0 { (bound_ms / time_ms).min(1.0) } else { 1.0 };
    let mut left = (time_ms - bound_ms).max(0.0);
    let mut lost = vec![];
    for (name, ms) in [
        ("hashing", causes.hashing_ms),
        ("start", causes.start_ms),
        ("repair", causes.repair_ms),
        ("slow hosts", causes.slow_hosts_ms),
        ("flush and rename", causes.commit_ms),
    ] {
        let ms = ms.clamp(0.0, left);
        left -= ms;
        lost.push((name, ms));
    }
    let rest = match gear {
        Gear::Inline | Gear::Direct => "sending",
        Gear::Planned | Gear::Mesh => "relaying",
    };
    lost.push((rest, left));
    lost.retain(|(_, ms)| *ms >= 0.5);
    lost.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let parts: Vec<_> = lost.iter().map(|(name, ms)| format!("{name} {}", Time(*ms))).collect();
    let rest = if parts.is_empty() { "nothing".into() } else { parts.join(", ") };
    let percent = (share * 100.0).floor();
    let (bound, time) = (Time(bound_ms), Time(time_ms));
    let sentence = format!("{percent:.0} % of the bound ({bound} of {time}); lost to: {rest}");
    Judgement { share, lost, sentence }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_adds_up() {
        let causes =
            Causes { start_ms: 300.0, hashing_ms: 20.0, slow_hosts_ms: 900.0, ..Causes::default() };
        let judged = judge(Gear::Planned, 17_500.0, 19_000.0, &causes);
        let text = "92 % of the bound (17.5 s of 19 s); \
                    lost to: slow hosts 900 ms, start 300 ms, relaying 280 ms, hashing 20 ms";
        assert_eq!(judged.sentence, text);
        let sum: f64 = judged.lost.iter().map(|(_, ms)| ms).sum();
        assert!((sum - 1_500.0).abs() < 1e-6 && (judged.share - 0.921).abs() < 1e-3);
    }

    #[test]
    fn causes_never_exceed_what_was_lost() {
        let causes = Causes { start_ms: 900.0, hashing_ms: 50.0, ..Causes::default() };
        let judged = judge(Gear::Direct, 100.0, 200.0, &causes);
        assert_eq!(judged.lost, [("hashing", 50.0), ("start", 50.0)]);
        let best = judge(Gear::Direct, 100.0, 90.0, &causes);
        assert_eq!((best.share, best.lost.len()), (1.0, 0));
        assert_eq!(judge(Gear::Mesh, 0.0, 0.0, &causes).share, 1.0);
        let rest = judge(Gear::Inline, 1.0, 9.0, &Causes { commit_ms: 5.0, ..Causes::default() });
        assert_eq!(rest.lost, [("flush and rename", 5.0), ("sending", 3.0)]);
    }
}
