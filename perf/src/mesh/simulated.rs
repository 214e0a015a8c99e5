//! The simulator's answer to a cell: the same hosts with the same links as an inventory for
//! `skein-sim`, the same gear, the same piece size. How far apart the two are says whom to believe
//! where no namespaces reach.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use super::cells::{Cell, Fault};
use super::drive::BACK;
use crate::site::binary;

/// What the simulator says of one gear.
#[derive(Debug, Clone, PartialEq)]
pub struct Simulated {
    /// Which.
    pub gear: String,
    /// Last living host to whom nothing special happens, seconds from the submission.
    pub last_s: f64,
    /// What the source sent, files.
    pub source_copies: f64,
}

/// Runs it, with files in `folder`. None where it knows no such gear or fault.
pub fn ask(
    cell: &Cell,
    goodput: Option<f64>,
    gear: &str,
    piece_bytes: Option<u32>,
    folder: &Path,
) -> anyhow::Result<Option<Simulated>> {
    let known = ["planned", "mesh", "direct", "chain"].contains(&gear);
    let (Some(text), Some(faults)) = (inventory(cell, goodput), faults(cell, goodput)) else {
        return Ok(None);
    };
    if !known || cell.files.is_some() {
        return Ok(None);
    }
    let inventory = folder.join("fleet.toml");
    std::fs::write(&inventory, text)?;
    let mut command = Command::new(binary("skein-sim")?);
    command.args(["run", "--json", "--gear", gear, "--size", &format!("{}KiB", cell.bytes >> 10)]);
    command.arg("--inventory").arg(&inventory);
    if let Some(bytes) = piece_bytes {
        command.args(["--piece", &format!("{}KiB", bytes >> 10)]);
    }
    for fault in faults {
        command.args(["--fault", &fault]);
    }
    let output = command.output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "skein-sim: {}", errors.trim());
    let said: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let of_all = &said["finished"]["last_s"];
    let last = said["untouched"]["last_s"].as_f64().or(of_all.as_f64());
    Ok(Some(Simulated {
        gear: gear.to_owned(),
        last_s: last.context("nobody finished in the simulator")?,
        source_copies: said["source_copies"].as_f64().unwrap_or(0.0),
    }))
}

/// The cell's hosts; none without a limit on their links.
fn inventory(cell: &Cell, goodput: Option<f64>) -> Option<String> {
    let rate = cell.rate?;
    let efficiency = goodput? * 8.0 / rate as f64 * 100.0;
    let mut text = format!("[network]\nefficiency = \"{:.2}%\"\n", efficiency.min(100.0));
    let mut group = |name: &str, count: usize, rate: u64, more: &str| {
        if count > 0 {
            let _ = writeln!(
                text,
                "\n[[host]]\nname = \"{name}{{}}\"\ncount = {count}\nrate = \"{}kbit\"\n{more}",
                rate / 1000
            );
        }
    };
    let (slow, loss) = match cell.fault {
        Fault::SlowHost => (cell.special().len(), ""),
        Fault::Loss => (0, "loss = \"1%\"\n"),
        _ => (0, ""),
    };
    let near = if cell.border().is_some() { "region = \"near\"\n" } else { "" };
    group("source", 1, rate, &format!("source = true\n{near}"));
    let others = cell.receivers - slow;
    let beyond = cell.border().map_or(0, |_| others / 2);
    group("near", others - beyond, rate, &format!("{near}{loss}"));
    group("far", beyond, rate, "region = \"far\"\n");
    group("slow", slow, rate / 4, "");
    if let Some(border) = cell.border() {
        let _ = writeln!(text, "\n[[region]]\nname = \"near\"");
        let _ = writeln!(text, "\n[[region]]\nname = \"far\"\nrate = \"{}kbit\"", border / 1000);
    }
    Some(text)
}

/// The cell's fault in the simulator's words; none where it has no words for it.
fn faults(cell: &Cell, goodput: Option<f64>) -> Option<Vec<String>> {
    let fault = match cell.fault {
        Fault::None | Fault::SlowHost | Fault::Loss | Fault::Border => return Some(Vec::new()),
        Fault::SourceSlows => "slow source to=20% at=30%".to_owned(),
        Fault::Liar => "corrupt host=near1 at=0s".to_owned(),
        Fault::KillTenth => {
            let half_ms = (cell.bound(goodput?) * 500.0) as u64;
            let back_ms = half_ms + BACK.as_millis() as u64;
            format!("kill share=10% at={half_ms}ms until={back_ms}ms")
        }
        // It counts time, not copies.
        Fault::SourceDies => return None,
    };
    Some(vec![fault])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str) -> Option<String> {
        inventory(&Cell::named(name).unwrap(), Some(2_392_500.0))
    }

    #[test]
    fn an_inventory_has_the_cells_hosts_and_links() {
        let plain = text("16x20x32M").unwrap();
        assert!(plain.contains("efficiency = \"95.70%\""), "{plain}");
        assert!(plain.contains("name = \"near{}\"\ncount = 16\nrate = \"20000kbit\""), "{plain}");
        assert!(plain.contains("name = \"source{}\"\ncount = 1"), "{plain}");
        let slow = text("slow-host").unwrap();
        assert!(slow.contains("count = 15\n") && slow.contains("rate = \"5000kbit\""), "{slow}");
        assert!(text("loss").unwrap().contains("loss = \"1%\""));
        let border = text("border").unwrap();
        assert!(border.contains("name = \"far\"\nrate = \"25000kbit\""), "{border}");
        assert_eq!(border.matches("count = 8\n").count(), 2, "{border}");
        assert_eq!(text("4x-x1024M"), None);
    }

    #[test]
    fn those_that_are_killed_are_back_when_they_are_in_the_lab() {
        let faults = faults(&Cell::named("kill-tenth").unwrap(), Some(2_392_500.0)).unwrap();
        assert_eq!(faults, ["kill share=10% at=7012ms until=8012ms"]);
    }
}
