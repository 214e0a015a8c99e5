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
    /// Size of the file, or of all files together.
    pub bytes: u64,
    /// Files of a directory that is sent; none: a single file.
    pub files: Option<u64>,
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
    /// One receiver answers others with false blocks.
    Liar,
    /// Nothing; but half of the receivers are in another region, behind a thin border.
    Border,
}

const MIB: u64 = 1 << 20;
const MBIT: u64 = 1_000_000;

/// A directory holds at most so many files.
const FILES_MAX: u64 = 100_000;

/// Of a border, of the rate of a host: enough for one copy, far from enough for one per host.
const BORDER_SHARE: f64 = 1.25;

/// Faults by name.
const FAULTS: [(&str, Fault); 7] = [
    ("slow-host", Fault::SlowHost),
    ("kill-tenth", Fault::KillTenth),
    ("source-dies", Fault::SourceDies),
    ("loss", Fault::Loss),
    ("source-slows", Fault::SourceSlows),
    ("liar", Fault::Liar),
    ("border", Fault::Border),
];

/// The cell of a fault that stands alone.
const FAULT_LINKS: &str = "16x20x32M";

impl Fault {
    fn named(name: &str) -> Option<Self> {
        Some(FAULTS.iter().find(|(known, _)| *known == name)?.1)
    }
}

impl Cell {
    /// A cell by its name: receivers, Mbit/s of each host (`-`: no limit) and size, as in
    /// `16x20x32M`, or files and their size, as in `1x1000x20000f4K`. What goes wrong may follow, as
    /// in `16x20x32M+loss`, or stand alone.
    pub fn named(name: &str) -> anyhow::Result<Self> {
        let with_fault = match (Fault::named(name), name.split_once('+')) {
            (Some(fault), _) => Some((FAULT_LINKS, fault)),
            (None, Some((links, fault))) => Fault::named(fault).map(|fault| (links, fault)),
            (None, None) => None,
        };
        if let Some((links, fault)) = with_fault {
            let links = Self::named(links)?;
            ensure!(
                links.rate.is_some() && links.receivers > 1 && links.files.is_none(),
                "{name}: 2 hosts, a rate and one file, please"
            );
            return Ok(Self { name: name.to_owned(), fault, ..links });
        }
        let unknown = || format!("no cell \"{name}\": a set, a fault, or as in 16x20x32M+loss");
        let parts: Vec<&str> = name.split('x').collect();
        let [receivers, rate, size] = parts[..] else { bail!(unknown()) };
        let receivers = receivers.parse().with_context(unknown)?;
        ensure!((1..HOSTS_MAX).contains(&receivers), "1 to {} receivers", HOSTS_MAX - 1);
        let rate = match rate {
            "-" => None,
            rate => Some(rate.parse::<u64>().with_context(unknown)? * MBIT),
        };
        let (files, size) = match size.split_once('f') {
            Some((files, size)) => (Some(files.parse().with_context(unknown)?), size),
            None => (None, size),
        };
        ensure!(files.is_none_or(|files| (1..=FILES_MAX).contains(&files)), unknown());
        let (digits, unit) = match (size.strip_suffix('K'), size.strip_suffix('M')) {
            (Some(digits), _) => (digits, 1024),
            (_, Some(digits)) => (digits, MIB),
            _ => bail!(unknown()),
        };
        let bytes = digits.parse::<u64>().with_context(unknown)?;
        let bytes = bytes.saturating_mul(unit).saturating_mul(files.unwrap_or(1));
        ensure!((1..=BYTES_MAX).contains(&bytes), "1 K to {} M", BYTES_MAX / MIB);
        Ok(Self { name: name.to_owned(), receivers, rate, bytes, files, fault: Fault::None })
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
            Fault::SlowHost | Fault::Liar => vec![self.receivers / 4],
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

    /// bit/s of the border in each direction, where there is one.
    pub fn border(&self) -> Option<u64> {
        let rate = self.rate.filter(|_| self.fault == Fault::Border)?;
        Some((rate as f64 * BORDER_SHARE) as u64)
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
        let of_each = bytes / self.files.unwrap_or(1);
        if let Some(files) = self.files {
            write!(f, "{files} files of ")?;
        }
        match of_each / MIB {
            0 => write!(f, "{} KiB", of_each >> 10)?,
            mib => write!(f, "{mib} MiB")?,
        }
        f.write_str(match fault {
            Fault::None => "",
            Fault::SlowHost => "; one host has a quarter of the rate",
            Fault::KillTenth => "; kill -9 of a tenth at half time, back after 1 s",
            Fault::SourceDies => "; kill -9 of the source once it sent 1.05 copies",
            Fault::Loss => "; each receiver loses 1 % of the packets that reach it",
            Fault::SourceSlows => "; the source falls to a fifth of its rate at 30 %",
            Fault::Liar => "; one host answers others with false blocks",
            Fault::Border => "; half of the hosts behind a border of 1.25 times a host's rate",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(name: &str) -> Cell {
        Cell::named(name).unwrap()
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
    fn what_is_no_cell_is_refused() {
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
            "1x1x0f4K",
            "1x1x999999999f4K",
            "2x1x2f4K+loss",
        ] {
            assert!(Cell::named(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_says_what_it_is() {
        let tiny = cell("48x1000x10K");
        assert_eq!((tiny.receivers, tiny.rate, tiny.bytes), (48, Some(1_000_000_000), 10 << 10));
        assert!(!tiny.overloads(), "too short to fill anything");
        assert!(cell("48x100x16M").overloads());
        assert_eq!(cell("1x-x1024M").rate, None);
        let tree = cell("1x1000x20000f4K");
        assert_eq!((tree.files, tree.bytes), (Some(20_000), 20_000 << 12));
        assert!(tree.to_string().ends_with("20000 files of 4 KiB"), "{tree}");
        assert_eq!(cell("border").border(), Some(25_000_000));
        let lossy = cell("4x100x4M+loss");
        assert_eq!((lossy.receivers, lossy.fault), (4, Fault::Loss));
    }

    #[test]
    fn pieces_are_those_of_the_measured_peers() {
        let pieces = ["48x8x16M", "16x20x32M", "16x20x128M", "48x1000x10K"];
        let pieces = pieces.map(|name| cell(name).piece_bytes() >> 10);
        assert_eq!(pieces, [256, 512, 1024, 16]);
    }

    #[test]
    fn those_that_are_killed_are_spread_and_a_tenth() {
        assert_eq!(cell("kill-tenth").special(), [4, 12]);
        assert_eq!(cell("48x8x16M").special(), [0usize; 0]);
    }
}
