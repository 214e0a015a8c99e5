//! What is measured: so many hosts with such links get a file of such a size, while this goes
//! wrong. A cell also knows the least time that its links allow.

use std::fmt;

use anyhow::{Context, bail, ensure};

use crate::netlab::HOSTS_MAX;

/// Receivers times their rate, in bit/s: more is bound by this machine's cores and not by links.
const SUM_OF_RATES_MAX: u64 = 1_500_000_000;
/// Files so short that they never fill their links: what counts there is latency.
pub const SHORT_BYTES: u64 = 1 << 20;
/// A file; each receiver writes one.
const BYTES_MAX: u64 = 4 << 30;

/// One set of conditions.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// What it is called on the command line.
    pub name: String,
    /// Hosts that receive; the source is one more.
    pub receivers: usize,
    /// bit/s of every host in each direction; none: as fast as the machine.
    pub rate: Option<u64>,
    /// Size of the file.
    pub bytes: u64,
    /// What goes wrong.
    pub fault: Fault,
}

/// What goes wrong in a cell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// Nothing.
    None,
    /// One receiver's link has a quarter of the others' rate.
    SlowHost,
    /// kill -9 of a tenth of the receivers at half of the least time; back a second later.
    KillTenth,
    /// kill -9 of everything on the source once 1.05 copies have left it.
    SourceDies,
    /// Each receiver loses 1 % of the packets that reach it.
    Loss,
    /// The source's link falls to a fifth at 30 % of the least time.
    SourceSlows,
}

const MIB: u64 = 1 << 20;
const MBIT: u64 = 1_000_000;

/// What the schedule is judged by.
const SCHEDULE: [&str; 4] = ["8x100x16M", "16x20x32M", "48x8x16M", "16x20x128M"];

/// What goes wrong, all with the same hosts and file.
const ROBUST: [(&str, Fault); 5] = [
    ("slow-host", Fault::SlowHost),
    ("kill-tenth", Fault::KillTenth),
    ("source-dies", Fault::SourceDies),
    ("loss", Fault::Loss),
    ("source-slows", Fault::SourceSlows),
];
const ROBUST_LINKS: &str = "16x20x32M";

/// What the bytes cost, without a limit on the links.
const COST: [&str; 2] = ["1x-x1024M", "4x-x1024M"];

/// A file that fits into one packet train, to many hosts.
const TINY: &str = "48x1000x10K";

/// Where the right gear changes: rates and sizes, for these numbers of hosts.
const GRID: [&str; 5] = ["1000x1K", "1000x64K", "1000x1M", "100x16M", "100x128M"];
const GRID_HOSTS: [usize; 5] = [1, 2, 4, 16, 48];

/// Cells by name, or of a set. A name without a fault is its own description: receivers, Mbit/s of
/// each host (`-`: no limit) and size, as in `16x20x32M`; a fault may follow, as in
/// `16x20x32M+loss`.
pub fn choose(names: &str) -> anyhow::Result<Vec<Cell>> {
    let mut chosen: Vec<Cell> = Vec::new();
    for name in names.split(',').map(str::trim) {
        for name in of_set(name) {
            let cell = Cell::named(&name)?;
            if !chosen.contains(&cell) {
                chosen.push(cell);
            }
        }
    }
    Ok(chosen)
}

/// Names of a set; of a single cell its own.
fn of_set(name: &str) -> Vec<String> {
    let robust = ROBUST.map(|(name, _)| name);
    let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    match name {
        // Shows within minutes that everything works.
        "small" => own(&["4x100x4M", "8x100x16M"]),
        "schedule" => own(&SCHEDULE),
        "robust" => own(&robust),
        "cost" => own(&COST),
        "tiny" => own(&[TINY]),
        "grid" => GRID_HOSTS
            .iter()
            .flat_map(|hosts| GRID.iter().map(move |links| format!("{hosts}x{links}")))
            .collect(),
        "all" => own(&[&SCHEDULE[..], &robust, &COST, &[TINY]].concat()),
        name => vec![name.to_owned()],
    }
}

impl Cell {
    fn named(name: &str) -> anyhow::Result<Self> {
        let fault_of = |name: &str| Some(ROBUST.iter().find(|(fault, _)| *fault == name)?.1);
        let with_fault = match (fault_of(name), name.split_once('+')) {
            (Some(fault), _) => Some((ROBUST_LINKS, fault)),
            (None, Some((links, fault))) => fault_of(fault).map(|fault| (links, fault)),
            (None, None) => None,
        };
        if let Some((links, fault)) = with_fault {
            let links = Self::named(links)?;
            ensure!(
                links.rate.is_some() && links.receivers > 1,
                "{name}: 2 hosts and a rate, please"
            );
            return Ok(Self { name: name.to_owned(), fault, ..links });
        }
        let known =
            "small, schedule, robust, cost, tiny, grid, all, a fault, or as in 16x20x32M+loss";
        let unknown = || format!("no cell \"{name}\": {known}");
        let parts: Vec<&str> = name.split('x').collect();
        let [receivers, rate, size] = parts[..] else { bail!(unknown()) };
        let receivers = receivers.parse().with_context(unknown)?;
        ensure!((1..HOSTS_MAX).contains(&receivers), "1 to {} receivers", HOSTS_MAX - 1);
        let rate = match rate {
            "-" => None,
            rate => Some(rate.parse::<u64>().with_context(unknown)? * MBIT),
        };
        let (digits, unit) = match (size.strip_suffix('K'), size.strip_suffix('M')) {
            (Some(digits), _) => (digits, 1024),
            (_, Some(digits)) => (digits, MIB),
            _ => bail!(unknown()),
        };
        let bytes = digits.parse::<u64>().with_context(unknown)? * unit;
        ensure!((1..=BYTES_MAX).contains(&bytes), "1 K to {} M", BYTES_MAX / MIB);
        Ok(Self { name: name.to_owned(), receivers, rate, bytes, fault: Fault::None })
    }

    /// Whether this machine's cores are the limit rather than the links.
    pub fn overloads(&self) -> bool {
        let sum = self.rate.unwrap_or(0) * self.receivers as u64;
        self.bytes > SHORT_BYTES && sum > SUM_OF_RATES_MAX
    }

    /// Pieces of the BitTorrent peers: some 64, of at most 1 MiB.
    pub fn piece_bytes(&self) -> u64 {
        let most = (self.bytes / 64).clamp(16 << 10, MIB);
        1 << most.ilog2()
    }

    /// Receivers that do not count among "the others", as something is done to them.
    pub fn special(&self) -> Vec<usize> {
        match self.fault {
            Fault::SlowHost => vec![self.receivers / 4],
            Fault::KillTenth => {
                let count = self.receivers.div_ceil(10);
                (0..count).map(|nth| (2 * nth + 1) * self.receivers / (2 * count)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The least time for the others when every link delivers `goodput` bytes/s, in seconds.
    pub fn bound(&self, goodput: f64) -> f64 {
        match self.fault {
            // What has not left the source by then leaves it at a fifth of the rate.
            Fault::SourceSlows => {
                let whole = self.bytes as f64 / goodput;
                0.3 * whole + 0.7 * whole * 5.0
            }
            _ => least_time(self.bytes as f64, goodput, &self.links(goodput)),
        }
    }

    /// The time that a source needs to send to all hosts by itself, in seconds.
    pub fn direct(&self, goodput: f64) -> f64 {
        self.receivers as f64 * self.bytes as f64 / goodput
    }

    /// The least time of a receiver with a slow link.
    pub fn bound_of_slow(&self, goodput: f64) -> Option<f64> {
        (self.fault == Fault::SlowHost).then(|| self.bytes as f64 / (goodput / 4.0))
    }

    /// Links of those that the bound is about.
    fn links(&self, goodput: f64) -> Vec<f64> {
        let others = match self.fault {
            Fault::SlowHost => self.receivers - 1,
            _ => self.receivers,
        };
        vec![goodput; others]
    }
}

/// Fluid bound of Kumar and Ross: the file leaves the source once, enters the slowest host, and
/// all copies pass some uplink. Links are symmetric; bytes and bytes/s.
fn least_time(bytes: f64, source: f64, links: &[f64]) -> f64 {
    let slowest = links.iter().copied().fold(f64::INFINITY, f64::min);
    let uplinks = source + links.iter().sum::<f64>();
    let copies = links.len() as f64 * bytes / uplinks;
    (bytes / source).max(bytes / slowest).max(copies)
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { receivers, rate, bytes, fault, .. } = self;
        write!(f, "{receivers} receivers, ")?;
        match rate {
            Some(rate) => write!(f, "{} Mbit/s each way, ", rate / MBIT)?,
            None => write!(f, "no limit on the links, ")?,
        }
        match bytes / MIB {
            0 => write!(f, "{} KiB", bytes >> 10)?,
            mib => write!(f, "{mib} MiB")?,
        }
        f.write_str(match fault {
            Fault::None => "",
            Fault::SlowHost => "; one host has a quarter of the rate",
            Fault::KillTenth => "; kill -9 of a tenth at half time, back after 1 s",
            Fault::SourceDies => "; kill -9 of the source once it sent 1.05 copies",
            Fault::Loss => "; each receiver loses 1 % of the packets that reach it",
            Fault::SourceSlows => "; the source falls to a fifth of its rate at 30 %",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(name: &str) -> Cell {
        let mut cells = choose(name).unwrap();
        assert_eq!(cells.len(), 1);
        cells.remove(0)
    }

    #[test]
    fn the_bound_is_the_narrowest_of_source_host_and_all_uplinks() {
        assert_eq!(least_time(100.0, 10.0, &[10.0; 4]), 10.0);
        assert_eq!(least_time(100.0, 10.0, &[10.0, 5.0]), 20.0);
        assert_eq!(least_time(100.0, 5.0, &[10.0; 4]), 20.0);
        // 3 copies of 100 over 20 + 3: more than either link alone needs.
        assert_eq!(least_time(100.0, 20.0, &[10.0, 10.0, 10.0]), 10.0);
    }

    #[test]
    fn a_slow_host_has_a_bound_of_its_own() {
        let slow = cell("slow-host");
        let goodput = 2_392_500.0;
        assert!((slow.bound(goodput) - 14.02).abs() < 0.01);
        assert!((slow.bound_of_slow(goodput).unwrap() - 56.1).abs() < 0.01);
        assert_eq!(cell("16x20x32M").bound_of_slow(goodput), None);
    }

    #[test]
    fn sets_and_names() {
        for (set, cells) in
            [("small", 2), ("schedule", 4), ("robust", 5), ("grid", 25), ("all", 12)]
        {
            assert_eq!(choose(set).unwrap().len(), cells, "{set}");
        }
        assert_eq!(choose("8x100x16M,small").unwrap().len(), 2, "each only once");
        for wrong in [
            "",
            "4x100x4M+fire",
            "4x-x4M+loss",
            "4x100x4M+loss+loss",
            "16x20",
            "16x20x32",
            "0x20x1M",
            "16x20x0M",
            "900x1x1M",
            "1x1x9000M",
        ] {
            assert!(choose(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_says_what_it_is() {
        let tiny = cell("tiny");
        assert_eq!((tiny.receivers, tiny.rate, tiny.bytes), (48, Some(1_000_000_000), 10 << 10));
        assert!(!tiny.overloads(), "too short to fill anything");
        assert!(cell("48x100x16M").overloads());
        assert_eq!(cell("1x-x1024M").rate, None);
        let lossy = cell("4x100x4M+loss");
        assert_eq!((lossy.receivers, lossy.fault), (4, Fault::Loss));
    }

    #[test]
    fn pieces_are_those_of_the_measured_peers() {
        let pieces = ["48x8x16M", "16x20x32M", "16x20x128M", "tiny"];
        let pieces = pieces.map(|name| cell(name).piece_bytes() >> 10);
        assert_eq!(pieces, [256, 512, 1024, 16]);
    }

    #[test]
    fn those_that_are_killed_are_spread_and_a_tenth() {
        assert_eq!(cell("kill-tenth").special(), [4, 12]);
        assert_eq!(cell("48x8x16M").special(), [0usize; 0]);
    }
}
