//! The closing table and its JSON.

use std::path::Path;

use serde::Serialize;

use super::fleet::Fleet;
use super::push::PushReport;
use super::records::RecordsReport;
use super::script::ScriptsReport;
use crate::error::CliError;
use crate::quantity;
use crate::show::{self, Table};

/// Everything that was recounted.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Agents.
    pub agents: u32,
    /// The file.
    pub push: PushReport,
    /// The streams.
    pub records: RecordsReport,
    /// The script.
    pub scripts: ScriptsReport,
}

impl Report {
    /// Whether every number is what it should be.
    pub fn agrees(&self) -> bool {
        let (push, records, scripts) = (&self.push, &self.records, &self.scripts);
        let agents = u64::from(self.agents);
        let files = push.hosts_ok == agents && push.hosts_total == agents;
        let stored = records.sent > 0 && records.stored == records.sent && records.duplicates == 0;
        files && stored && scripts.ok == agents && scripts.total == agents
    }

    /// The table.
    pub fn print(&self, fleet: &Fleet) -> Result<(), CliError> {
        let (push, records, scripts) = (&self.push, &self.records, &self.scripts);
        let delivered = push.bytes * push.hosts_ok;
        let mut table = Table::new(&["WHAT", "OUTCOME", "TIME", "RATE"]);
        table.row([
            format!("file of {}", quantity::bytes(push.bytes)),
            format!("verified on {} of {} hosts", push.hosts_ok, push.hosts_total),
            format!("{:.1} s", push.seconds),
            format!("{}/s", quantity::bytes((delivered as f64 / push.seconds) as u64)),
        ]);
        table.row([
            format!("travelled {}", push.gear),
            format!(
                "server sent {:.2} x the file, hosts {} % of all",
                push.copies_sent(),
                push.peers_percent()
            ),
            format!("{:.1} s", push.transfer_seconds),
            String::new(),
        ]);
        table.row([
            "records".to_owned(),
            format!(
                "{} sent, {} in the files, {} duplicates",
                quantity::count(records.sent),
                quantity::count(records.stored),
                quantity::count(records.duplicates)
            ),
            format!("{:.1} s", records.seconds),
            format!("{}/s", quantity::count((records.stored as f64 / records.seconds) as u64)),
        ]);
        table.row([
            "script".to_owned(),
            format!("right answer from {} of {} hosts", scripts.ok, scripts.total),
            String::new(),
            String::new(),
        ]);
        let status = fleet.server.status()?;
        show::line("")?;
        show::text(&table.render())?;
        let metrics = status.data_processes.first().map(|data| data.metrics_addr.clone());
        show::line(&format!(
            "\nmetrics: {}/metrics and http://{}/metrics",
            fleet.server.client().api(),
            metrics.unwrap_or_default()
        ))?;
        show::line(if self.agrees() { "every number agrees" } else { "NUMBERS DISAGREE" })
    }

    /// Writes the JSON.
    pub fn write(&self, path: &Path) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| CliError::Local(format!("cannot write the report: {error}")))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(path, text + "\n"))
            .map_err(CliError::io(format!("cannot write {}", path.display())))
    }
}
