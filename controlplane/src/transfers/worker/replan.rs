//! Planning again while a transfer runs: measured rates in, another gear or another prediction out.
//! What is verified stays: all gears but inline work on one piece map.

use skein_filemesh::core::planner::{Decision, Gear};
use skein_wire::ids::{AgentId, TransferId};

use super::super::gear::{GearChoice, Question, wanted};
use super::super::pace::{Course, Standing};
use super::super::rates::{Sample, Span};
use super::super::{Entry, TransferRecord};
use super::{Group, Worker};
use crate::api::types::{TransferHostState as Host, TransferPhase};
use crate::clock;

/// A sentence about a change in front of the planner's.
const WHY_BYTES_MAX: usize = 1_024;

impl Worker {
    /// Looks which transfers have left their prediction, and plans those again.
    pub(super) async fn look_at_courses(&mut self, group: &mut Group) {
        let now_ms = clock::now_ms();
        let mut off = Vec::new();
        for (id, entry) in self.transfers.lock().iter_mut() {
            let record = &entry.record;
            let runs = record.ended_ms.is_none()
                && record.cancel_ms.is_none()
                && !record.rollout.is_stopped()
                // The prediction is of all hosts at once.
                && entry.started() == entry.hosts.len()
                && record.phase == TransferPhase::Running
                && !record.gear.is_inline();
            if !runs {
                continue;
            }
            let standing = standing(entry, now_ms);
            match &mut entry.course {
                // An earlier process planned it.
                None => off.push((*id, true)),
                Some(course) => {
                    if course.is_off(&standing, &self.transfers.planner, now_ms) {
                        off.push((*id, false));
                    }
                }
            }
        }
        for (id, is_new) in off {
            self.plan_again(id, is_new, now_ms, group).await;
        }
    }

    async fn plan_again(&mut self, id: TransferId, is_new: bool, now_ms: i64, group: &mut Group) {
        let Some((mut record, choice, bytes)) = self.decide_again(&id, now_ms) else { return };
        let gear = match is_new {
            true => record.gear.kind(),
            false => better(record.gear.kind(), &choice, self.transfers.planner.drift_share),
        };
        let mut decision = choice;
        if let Some(one) = decision.gears.iter().find(|one| one.gear == gear) {
            (decision.gear, decision.predicted_ms) = (gear, one.time_ms);
        }
        let before = record.gear.clone();
        if !is_new {
            let elapsed_ms = (now_ms - record.running_ms.unwrap_or(now_ms)).max(0) as u64;
            record.gear = changed(&before, &decision, elapsed_ms, now_ms);
            if let Err(error) = self.store_record(&id, &record).await {
                return tracing::error!(transfer = %id, %error, "a newer plan is not stored");
            }
            tracing::info!(transfer = %id, why = record.gear.why, "planned again");
        }
        {
            let mut entries = self.transfers.lock();
            let Some(entry) = entries.get_mut(&id) else { return };
            match &mut entry.course {
                Some(course) if !is_new => course.replanned(decision, bytes, now_ms),
                course => *course = Some(Course::new(decision, bytes, now_ms)),
            }
            if !before.is_meshed() && record.gear.is_meshed() {
                let open = entry.hosts.iter().filter(|host| !host.state().is_final());
                let told = open.filter(|host| host.state() > Host::Pending);
                let told: Vec<AgentId> = told.map(|host| host.agent.clone()).collect();
                group.join.entry(id).or_default().extend(told);
            }
        }
        self.meshes.set_gear(&id, gear);
    }

    /// What the planner says now, with what the last reports showed.
    fn decide_again(
        &self,
        id: &TransferId,
        now_ms: i64,
    ) -> Option<(TransferRecord, Decision, u64)> {
        let entries = self.transfers.lock();
        let entry = entries.get(id)?;
        let record = entry.record.clone();
        let file = record.file.as_ref()?;
        let open = entry.hosts.iter().filter(|host| !host.state().is_final());
        let samples: Vec<Sample> = open
            .clone()
            .map(|host| (host, host.pace.bytes_s(now_ms)))
            .filter(|(_, bytes_s)| *bytes_s > 0.0)
            .map(|(host, bytes_s)| Sample {
                agent: host.agent.clone(),
                whole: host.received_until(now_ms),
                last: Span { bytes: bytes_s as u64, time_ms: 1_000 },
            })
            .collect();
        let is_limited = record.is_limited();
        let from_server = !record.gear.is_meshed();
        self.transfers.rates.learn_now(&samples, from_server, is_limited, now_ms);
        let targets: Vec<(&AgentId, u64)> =
            open.map(|host| (&host.agent, host.run.verified_bytes)).collect();
        let question = Question {
            registry: &self.transfers.registry,
            rates: &self.transfers.rates,
            settings: &self.transfers.planner,
            topology: &self.transfers.topology,
            size_bytes: file.size_bytes,
            piece_bytes: file.piece_bytes,
            targets: &targets,
            rate_limit_bytes_per_s: record.rate_limit_bytes_per_s,
            rate_limit_total_bytes_per_s: record.rate_limit_total_bytes_per_s,
            forced: wanted(record.gear_wanted.as_deref()).ok().flatten(),
            may_inline: false,
        };
        let choice = question.choose()?;
        let bytes = standing(entry, now_ms).bytes;
        Some((record, choice.decision, bytes))
    }
}

/// The gear to go on with: another only where it ends clearly sooner, for a change costs something
/// and rates are measured over a moment.
fn better(current: Gear, decision: &Decision, drift_share: f64) -> Gear {
    let time = |gear| decision.gears.iter().find(|one| one.gear == gear).map(|one| one.time_ms);
    match (time(current), time(decision.gear)) {
        (Some(now), Some(then)) if then < now * (1.0 - drift_share) => decision.gear,
        (None, Some(_)) => decision.gear,
        _ => current,
    }
}

fn changed(before: &GearChoice, decision: &Decision, elapsed_ms: u64, now_ms: i64) -> GearChoice {
    let (was, gear) = (before.kind(), decision.gear);
    let how = if was == gear { format!("still {gear}") } else { format!("{was} until then") };
    let at = elapsed_ms as f64 / 1e3;
    let mut why = format!("planned again after {at:.1} s, {how}: {}", decision.sentence);
    why.truncate(why.floor_char_boundary(WHY_BYTES_MAX));
    GearChoice {
        gear: gear.to_string(),
        why,
        predicted_ms: elapsed_ms + decision.predicted_ms.round() as u64,
        joined: before.is_meshed(),
        replans: before.replans.saturating_add(1),
        replanned_ms: Some(now_ms),
        ..before.clone()
    }
}

fn standing(entry: &Entry, now_ms: i64) -> Standing {
    let size = entry.record.file.as_ref().map_or(0, |file| file.size_bytes);
    // Hosts that failed are none any more.
    let hosts =
        entry.hosts.iter().filter(|host| !host.state().is_final() || host.state() == Host::Done);
    let mut standing = Standing { bytes: 0, total: 0, bytes_s: 0.0, open: 0, hosts: 0 };
    for host in hosts {
        standing.hosts += 1;
        standing.total += size;
        standing.bytes += host.run.verified_bytes;
        if !host.state().is_final() {
            standing.open += 1;
            standing.bytes_s += host.pace.bytes_s(now_ms);
        }
    }
    standing
}
