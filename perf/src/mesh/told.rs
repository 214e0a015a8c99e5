//! What Skein says of a run: the answer of `skein push --json`, and the agents' logs.

use std::collections::BTreeMap;
use std::time::SystemTime;

/// What `skein push` and the agents say of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Told {
    /// The way that the file took.
    pub gear: String,
    /// When the last host should be done, seconds after the transfer was made.
    pub predicted_s: Option<f64>,
    /// How long the transfer took by the server's clock, seconds.
    pub took_s: Option<f64>,
    /// From the submission until the transfer was made (the file then is at the server), seconds.
    pub prepared_s: Option<f64>,
    /// Blocks that hosts refused, the most of one host and all.
    pub refused: [u64; 2],
    /// Members that others expelled, by their numbers, and how often.
    pub expelled: BTreeMap<String, u64>,
    /// Bytes of the file that hosts had kept over their restart.
    pub resumed_bytes: u64,
    /// Seconds from the source's slowing down until the transfer said that it was planned anew.
    pub replanned_s: Option<f64>,
}

/// Numbers of the members that an agent's log says it expelled.
pub fn expelled_in(log: &str) -> Vec<String> {
    let member = |line: &str| {
        let plain = without_colours(line);
        let (_, rest) = plain.split_once("member=")?;
        Some(rest.split(|char: char| !char.is_ascii_digit()).next()?.to_owned())
    };
    let lines = log.lines().filter(|line| line.contains("a peer is expelled"));
    lines.filter_map(member).collect()
}

/// Whether a process ended by a fault of its own, by its log. Supervisors start it again, and a
/// transfer goes on, so that nothing else shows it.
pub fn has_panicked(log: &str) -> bool {
    log.contains("panicked at ")
}

/// A line as it is without a terminal's escapes.
fn without_colours(line: &str) -> String {
    let mut plain = String::new();
    let mut escape = false;
    for char in line.chars() {
        match (char, escape) {
            ('\u{1b}', _) => escape = true,
            ('m', true) => escape = false,
            (_, true) => {}
            (char, false) => plain.push(char),
        }
    }
    plain
}

/// Figures of `skein push --json`, whose submission was at `submitted`.
pub fn told_of(said: &serde_json::Value, submitted: SystemTime) -> Told {
    let transfer = said.get("transfer").unwrap_or(said);
    let ms = |name: &str| transfer.get(name).and_then(serde_json::Value::as_i64);
    let seconds = |ms: i64| ms as f64 / 1e3;
    let predicted = transfer.get("predicted_ms").and_then(serde_json::Value::as_f64);
    let hosts = said.get("hosts").and_then(|hosts| hosts.as_array());
    let of_hosts = |name: &str| -> Vec<u64> {
        let of = |host: &serde_json::Value| host.get(name)?.as_u64();
        hosts.into_iter().flatten().filter_map(of).collect()
    };
    let refused = of_hosts("refused_blocks");
    let began = submitted.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let created = ms("created_ms");
    Told {
        gear: transfer.get("gear").and_then(|gear| gear.as_str()).unwrap_or("").to_owned(),
        predicted_s: predicted.filter(|ms| *ms > 0.0).map(|ms| ms / 1e3),
        took_s: created.zip(ms("ended_ms")).map(|(from, to)| seconds(to - from)),
        prepared_s: created.map(|at| (seconds(at) - began.as_secs_f64()).max(0.0)),
        refused: [refused.iter().copied().max().unwrap_or(0), refused.iter().sum()],
        resumed_bytes: of_hosts("resumed_bytes").iter().sum(),
        ..Told::default()
    }
}

/// What a transfer says of how it travels; it changes when it is planned anew.
pub fn plan_of(transfer: &serde_json::Value) -> serde_json::Value {
    let fields = transfer.as_object().into_iter().flatten();
    let is_of_plan = |name: &str| {
        ["gear", "why", "predicted_ms"].contains(&name)
            || name.contains("plan")
            || name.contains("decision")
    };
    let fields = fields.filter(|(name, _)| is_of_plan(name));
    fields.map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn figures_are_read_from_what_the_command_says() {
        let said = serde_json::json!({
            "transfer": { "gear": "planned", "predicted_ms": 1500, "created_ms": 10_250,
                          "ended_ms": 12_250 },
            "hosts": [{ "refused_blocks": 1, "resumed_bytes": 7 }, { "refused_blocks": 2 }],
        });
        let told = told_of(&said, SystemTime::UNIX_EPOCH + Duration::from_secs(10));
        let expected = Told {
            gear: "planned".to_owned(),
            predicted_s: Some(1.5),
            took_s: Some(2.0),
            prepared_s: Some(0.25),
            refused: [2, 3],
            resumed_bytes: 7,
            ..Told::default()
        };
        assert_eq!(told, expected);
        assert_eq!(told_of(&serde_json::Value::Null, SystemTime::now()), Told::default());
    }

    #[test]
    fn expelled_members_are_found_in_coloured_logs() {
        let log = "WARN \u{1b}[3mmember\u{1b}[0m\u{1b}[2m=\u{1b}[0m12 why=\"x\" a peer is expelled\n\
                   INFO member=3 something else\nWARN a peer is expelled transfer=9 member=4\n";
        assert_eq!(expelled_in(log), ["12", "4"]);
    }

    #[test]
    fn progress_is_no_new_plan() {
        let said = |why, bytes| {
            plan_of(&serde_json::json!({ "gear": "mesh", "why": why, "verified_bytes": bytes }))
        };
        assert_eq!(said("a", 1), said("a", 2));
        assert_ne!(said("a", 1), said("b", 1));
    }
}
