//! What is measured together: named sets of cells with those who take part and how often. Each
//! line answers one question of the specification with one command.

use anyhow::ensure;

use super::cells::Cell;

/// A set of cells and how it is measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// What it shows.
    pub title: &'static str,
    /// Its conditions.
    pub cells: Vec<Cell>,
    /// Who takes part, in their order.
    pub peers: Vec<String>,
    /// Rounds of Skein.
    pub rounds: usize,
    /// Rounds of the others.
    pub peer_rounds: usize,
    /// A run is stopped at this multiple of the least time, and 15 s.
    pub limit_factor: f64,
    /// Whether the simulator is asked about the same hosts.
    pub simulated: bool,
    /// Whether gears are compared with each other.
    pub gears: bool,
}

/// A line as it is written down.
struct Preset {
    name: &'static str,
    title: &'static str,
    cells: &'static [&'static str],
    peers: &'static str,
    rounds: usize,
    peer_rounds: usize,
    limit_factor: f64,
    simulated: bool,
    gears: bool,
}

/// All that operators use for one file, in several settings.
const ALL_PEERS: &str =
    "skein,chain,chain-sha256,libtorrent,libtorrent-super,aria2,transmission,udpcast";
const GEARS: &str = "skein,skein:inline,skein:direct,skein:planned,skein:mesh";
/// Rates and sizes between which the right gear changes.
const GRID: [&str; 25] = [
    "1x1000x1K",
    "1x1000x64K",
    "1x1000x1M",
    "1x100x16M",
    "1x100x128M",
    "2x1000x1K",
    "2x1000x64K",
    "2x1000x1M",
    "2x100x16M",
    "2x100x128M",
    "4x1000x1K",
    "4x1000x64K",
    "4x1000x1M",
    "4x100x16M",
    "4x100x128M",
    "16x1000x1K",
    "16x1000x64K",
    "16x1000x1M",
    "16x100x16M",
    "16x100x128M",
    "48x1000x1K",
    "48x1000x64K",
    "48x1000x1M",
    "48x100x16M",
    "48x100x128M",
];

const DEFAULT: Preset = Preset {
    name: "",
    title: "",
    cells: &[],
    peers: "skein",
    rounds: 5,
    peer_rounds: 3,
    limit_factor: 6.0,
    simulated: false,
    gears: false,
};

/// In the order of the matrix: what no other tool could spoil by taking its time comes first.
const LINES: [Preset; 11] = [
    Preset {
        name: "robust",
        title: "What goes wrong",
        cells: &["slow-host", "kill-tenth", "source-dies", "loss", "liar"],
        peers: "skein:planned",
        ..DEFAULT
    },
    Preset {
        name: "replan",
        title: "The source falls to a fifth",
        cells: &["source-slows"],
        ..DEFAULT
    },
    Preset {
        name: "border",
        title: "Two regions with a thin border",
        cells: &["border"],
        peers: "skein:planned",
        ..DEFAULT
    },
    Preset {
        name: "tiny",
        title: "A small file to many hosts",
        cells: &["48x1000x10K"],
        rounds: 20,
        ..DEFAULT
    },
    Preset {
        name: "tree",
        title: "Many small files to one host",
        cells: &["1x1000x20000f4K"],
        peers: "skein,rsync,tar",
        limit_factor: 100.0,
        ..DEFAULT
    },
    Preset {
        name: "cost",
        title: "What the bytes cost",
        cells: &["4x-x1024M", "1x-x1024M"],
        peers: "skein,libtorrent,aria2,chain,chain-sha256",
        ..DEFAULT
    },
    Preset {
        name: "gears",
        title: "The right gear",
        cells: &GRID,
        peers: GEARS,
        rounds: 3,
        limit_factor: 5.0,
        gears: true,
        ..DEFAULT
    },
    Preset {
        name: "repeat",
        title: "A hundred runs",
        cells: &["48x30x4M"],
        peers: "skein:planned",
        rounds: 100,
        ..DEFAULT
    },
    Preset {
        name: "bound",
        title: "The last host against what the links allow",
        cells: &["8x100x16M", "16x20x32M", "48x8x16M"],
        peers: "skein,chain,libtorrent,aria2,transmission,udpcast",
        simulated: true,
        ..DEFAULT
    },
    Preset {
        name: "bound-long",
        title: "The same with a longer file",
        cells: &["16x20x128M"],
        // Super-seeding is libtorrent's best for long files, as it is not for short ones.
        peers: "skein,chain,libtorrent-super,aria2,transmission,udpcast",
        // The slowest take minutes and would show no more by ending.
        limit_factor: 2.2,
        ..DEFAULT
    },
    Preset {
        name: "simulator",
        title: "The simulator against namespaces",
        cells: &["16x20x32M", "48x8x16M"],
        peers: "skein:planned",
        rounds: 3,
        simulated: true,
        ..DEFAULT
    },
];

/// A look at everything within ten minutes: each kind of cell once, small.
const QUICK: [Preset; 4] = [
    Preset {
        title: "Against what the links allow",
        cells: &["8x100x16M", "16x40x8M"],
        peers: ALL_PEERS,
        rounds: 1,
        peer_rounds: 1,
        limit_factor: 3.0,
        simulated: true,
        ..DEFAULT
    },
    Preset {
        title: "What goes wrong, and a border",
        cells: &[
            "8x40x8M+slow-host",
            "8x40x8M+kill-tenth",
            "8x40x8M+source-dies",
            "8x40x8M+loss",
            "8x40x8M+liar",
            "8x40x8M+source-slows",
            "8x40x8M+border",
        ],
        peers: "skein:planned",
        rounds: 1,
        ..DEFAULT
    },
    Preset {
        title: "Small files",
        cells: &["16x1000x10K", "1x1000x2000f4K"],
        peers: "skein,rsync,tar",
        rounds: 3,
        peer_rounds: 1,
        limit_factor: 100.0,
        ..DEFAULT
    },
    Preset {
        title: "The right gear",
        cells: &["1x1000x64K", "4x1000x1M", "4x100x16M"],
        peers: GEARS,
        rounds: 1,
        limit_factor: 5.0,
        gears: true,
        ..DEFAULT
    },
];

impl Preset {
    fn line(&self) -> anyhow::Result<Line> {
        Ok(Line {
            title: self.title,
            cells: self.cells.iter().map(|name| Cell::named(name)).collect::<Result<_, _>>()?,
            peers: split(self.peers),
            rounds: self.rounds,
            peer_rounds: self.peer_rounds,
            limit_factor: self.limit_factor,
            simulated: self.simulated,
            gears: self.gears,
        })
    }
}

/// The lines of these names: `matrix` is all of them, `quick` a look at each kind of cell.
pub fn named(names: &str) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for name in split(names) {
        // The simulator is part of `bound`.
        let is_meant = |line: &&Preset| match name.as_str() {
            "matrix" => line.name != "simulator",
            name => line.name == name,
        };
        let found: Vec<&Preset> = match name.as_str() {
            "quick" => QUICK.iter().collect(),
            _ => LINES.iter().filter(is_meant).collect(),
        };
        let known: Vec<&str> = LINES.iter().map(|line| line.name).collect();
        ensure!(!found.is_empty(), "no line \"{name}\": quick, matrix, {}", known.join(", "));
        for line in found {
            lines.push(line.line()?);
        }
    }
    Ok(lines)
}

/// One line of cells that were named one by one.
pub fn of_cells(names: &str) -> anyhow::Result<Line> {
    let mut cells: Vec<Cell> = Vec::new();
    for name in split(names) {
        let of_set: Vec<&str> = match name.as_str() {
            // Shows within minutes that everything works.
            "small" => vec!["4x100x4M", "8x100x16M"],
            name => {
                let line = LINES.iter().find(|line| line.name == name);
                line.map_or(vec![name], |line| line.cells.to_vec())
            }
        };
        for name in of_set {
            let cell = Cell::named(name)?;
            if !cells.contains(&cell) {
                cells.push(cell);
            }
        }
    }
    let preset = Preset { peers: ALL_PEERS, rounds: 3, ..DEFAULT };
    Ok(Line { cells, ..preset.line()? })
}

/// Whether some gear is forced, and none.
pub fn compares_gears(peers: &[String]) -> bool {
    let is_forced = |name: &String| name.starts_with("skein:");
    peers.iter().any(|name| name == "skein") && peers.iter().any(is_forced)
}

/// Words between commas.
pub fn split(text: &str) -> Vec<String> {
    text.split(',').map(|word| word.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_cells_that_exist_and_its_own_name() {
        let matrix = named("matrix").unwrap();
        assert_eq!(matrix.len(), LINES.len() - 1);
        assert_eq!(named("quick").unwrap().len(), QUICK.len());
        for line in &LINES {
            assert_eq!(named(line.name).unwrap().len(), 1, "{}", line.name);
        }
        assert!(named("nothing").is_err());
    }

    #[test]
    fn the_grid_is_every_size_for_every_number_of_hosts() {
        let cells = &named("gears").unwrap()[0].cells;
        let hosts = [1, 2, 4, 16, 48];
        let sizes: [(u64, u64); 5] =
            [(1000, 1 << 10), (1000, 64 << 10), (1000, 1 << 20), (100, 16 << 20), (100, 128 << 20)];
        let expected: Vec<_> = hosts
            .into_iter()
            .flat_map(|hosts| sizes.map(|(mbit, bytes)| (hosts, Some(mbit * 1_000_000), bytes)))
            .collect();
        let found: Vec<_> =
            cells.iter().map(|cell| (cell.receivers, cell.rate, cell.bytes)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn cells_are_named_one_by_one_and_each_counts_once() {
        let line = of_cells("8x100x16M,small,loss").unwrap();
        let names: Vec<&str> = line.cells.iter().map(|cell| cell.name.as_str()).collect();
        assert_eq!(names, ["8x100x16M", "4x100x4M", "loss"]);
        assert!(of_cells("4x100x4M,fire").is_err());
    }
}
