//! `skein-sim`: how long a file takes to a fleet, over which links, and what if something fails.

use clap::{Args, Parser, Subcommand, ValueEnum};
use skein_filemesh::core::geometry::{BLOCK_BYTES, Geometry};
use skein_filemesh::core::manifest::choose_piece_bytes;
use skein_filemesh::core::planner;
use skein_sim::bound::{Bound, bound};
use skein_sim::inventory::Inventory;
use skein_sim::mesh::{self, Content, Costs};
use skein_sim::outcome::Outcome;
use skein_sim::plot;
use skein_sim::queue::{MILLISECOND, Nanos, SECOND};
use skein_sim::random::Random;
use skein_sim::relay::{self, Schedule};
use skein_sim::report::{CoreFacts, Question, Report};
use skein_sim::scenario::{Fault, Planned, Scenario};
use skein_sim::topology::Topology;
use skein_sim::units::{Bytes, Span};
use skein_sim::world::World;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

/// A run is given up after so many times the bound (and at least 10 minutes of virtual time).
const PATIENCE: u64 = 50;

/// Blocks that a fixed schedule relays at most: beyond, larger blocks stand for several of 16 KiB.
const BLOCKS_MAX: u64 = 16_384;

/// Blocks that all hosts together prove at most before `--scale auto` makes the file smaller.
const PROOFS_MAX: u64 = 1 << 20;

/// How long does a file take to reach a fleet? Which link is the limit? What if rack 7 dies?
///
/// Simulates in virtual time: nothing is sent. Start with an inventory of your hosts:
///
///   skein-sim example > fleet.toml
///
///   skein-sim run --inventory fleet.toml --size 1GiB
#[derive(Debug, Parser)]
#[command(name = "skein-sim", version, verbatim_doc_comment)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Simulate one distribution and say how it went
    Run(Run),
    /// Print an inventory that shows everything one can say in it
    Example,
}

/// Simulate one distribution and say how it went.
///
/// "bound" is the least time that any schedule could take on these links. Links are listed by the
/// share of their rate that was used: what stands near 100% is what to widen.
///
/// Faults, as many --fault as you like:
///
///   --fault 'kill rack=r7 at=50%'              at half of the bound
///   --fault 'kill share=10% at=2s until=5s'    one host in ten, started again
///   --fault 'slow host=web1* to=25% at=0s'
///   --fault 'cut region=branch at=1s until=3s'
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
struct Run {
    /// Hosts, racks and regions: TOML, or JSON if the name ends in .json (see `skein-sim example`)
    #[arg(long, short)]
    inventory: PathBuf,
    /// Size of the file, e.g. 64KiB or 1GiB
    #[arg(long, short)]
    size: Bytes,
    /// How the file travels
    #[arg(long, value_enum, default_value_t = Gear::Planned)]
    gear: Gear,
    /// Piece size, a power of two; by default what a transfer of this size to so many hosts gets
    #[arg(long)]
    piece: Option<Bytes>,
    /// A fault: kill|slow|cut|corrupt|silent|flood|jump, one of host=|share=|rack=|region=|source, at=, until=, to=
    #[arg(long)]
    fault: Vec<String>,
    /// A file with [[fault]] entries of the same words (kind = "kill", rack = "r7", at = "50%")
    #[arg(long)]
    scenario: Option<PathBuf>,
    /// Everything that is left to chance follows from this
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Recompute shares of links at most this often; 0s: at each change, which is exact and slower;
    /// by default 1/32 of the time in which the fastest host sends a block
    #[arg(long)]
    quantum: Option<Span>,
    /// Bytes that one simulated byte of file data stands for, a power of two; by default 1, and more
    /// where hosts would have to prove too many blocks (planned and mesh only)
    #[arg(long)]
    scale: Option<u32>,
    /// Let control know the rates of all hosts; by default it has to learn them
    #[arg(long)]
    known_rates: bool,
    /// Time that the coordinator takes for a message; by default 5us
    #[arg(long)]
    message_cost: Option<Span>,
    /// The same for making and sending one host's plan; by default 20us
    #[arg(long)]
    plan_cost: Option<Span>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    /// Write completion.svg and links.svg into this folder
    #[arg(long, value_name = "FOLDER")]
    plot: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Gear {
    /// The shipping core: interleaved trees, with the mesh as repair
    Planned,
    /// The shipping core without a plan: rarest first between all
    Mesh,
    /// A fixed schedule: the source sends a copy to each host
    Direct,
    /// A fixed schedule: each host passes blocks on to the next; nothing is repaired
    Chain,
}

impl Gear {
    fn name(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::Mesh => "mesh",
            Self::Direct => "direct",
            Self::Chain => "chain",
        }
    }
}

fn main() -> ExitCode {
    let done = match Arguments::parse().what {
        What::Run(run) => run.run(),
        What::Example => {
            print!("{}", Inventory::EXAMPLE);
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("skein-sim: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Run {
    fn run(&self) -> Result<(), Box<dyn Error>> {
        let topology = Topology::new(&Inventory::read(&self.inventory)?)?;
        let targets: Vec<_> = topology.targets().collect();
        let size = self.size.0;
        let chosen = || choose_piece_bytes(size, targets.len() as u32);
        let piece = self.piece.map_or_else(|| Ok(chosen()), |piece| u32::try_from(piece.0))?;
        let geometry = Geometry::new(size, piece)?;
        let bound = bound(&topology, &targets, size, piece);
        let (faults, lines) = self.faults(&topology, bound.fluid)?;
        let question = Question {
            gear: self.gear.name().into(),
            size_bytes: size,
            piece_bytes: piece,
            hosts: targets.len(),
            seed: self.seed,
            faults: lines,
        };
        let report = match self.gear {
            Gear::Planned => {
                self.core(planner::Gear::Planned, topology, faults, question, &bound)?
            }
            Gear::Mesh => self.core(planner::Gear::Mesh, topology, faults, question, &bound)?,
            Gear::Direct | Gear::Chain => {
                let schedule = match self.gear {
                    Gear::Direct => Schedule::direct(&topology),
                    _ => Schedule::chain(&topology),
                };
                let mut world = self.world(topology, faults, &bound, 1);
                let block = block_bytes(&geometry);
                let outcome = relay::run(&mut world, &schedule, size, block, end(&bound));
                self.draw(&world, &outcome, &bound)?;
                Report::new(question, &bound, &outcome, &world)
            }
        };
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            print!("{}", report.text());
        }
        Ok(())
    }

    fn world<T>(
        &self,
        topology: Topology,
        faults: Vec<Planned>,
        bound: &Bound,
        scale: u32,
    ) -> World<T> {
        let interval = (bound.fluid / 200).max(MILLISECOND / 10);
        let fastest = topology.hosts.iter().map(|host| host.up).fold(1.0, f64::max);
        let block = f64::from(BLOCK_BYTES) * f64::from(scale) / fastest * SECOND as f64;
        let quantum = self.quantum.map_or(block as Nanos / 32, |quantum| quantum.0);
        World::new(topology, faults, quantum, interval, self.seed)
    }

    /// Runs the shipping core.
    fn core(
        &self,
        gear: planner::Gear,
        topology: Topology,
        faults: Vec<Planned>,
        question: Question,
        bound: &Bound,
    ) -> Result<Report, Box<dyn Error>> {
        let (size, piece) = (question.size_bytes, question.piece_bytes);
        let proofs = size / u64::from(BLOCK_BYTES) * question.hosts as u64;
        let mut scale = 1;
        while proofs / u64::from(scale) > PROOFS_MAX && piece / scale > BLOCK_BYTES {
            scale *= 2;
        }
        let scale = self.scale.unwrap_or(scale);
        if !scale.is_power_of_two() || piece / scale < BLOCK_BYTES {
            let most = piece / BLOCK_BYTES;
            return Err(format!("--scale {scale}: a power of two, at most {most} here").into());
        }
        let content = Content::new(size, piece, scale, self.seed)?;
        let mut world = self.world(topology, faults, bound, scale);
        let usual = Costs::default();
        let costs = Costs {
            knows_rates: self.known_rates,
            message: self.message_cost.map_or(usual.message, |span| span.0),
            plan: self.plan_cost.map_or(usual.plan, |span| span.0),
            ..usual
        };
        let run = mesh::run(&mut world, &content, gear, costs, self.seed, end(bound));
        self.draw(&world, &run.outcome, bound)?;
        let mut report = Report::new(question, bound, &run.outcome, &world);
        report.core = Some(CoreFacts {
            scale,
            plans: run.plans,
            coordinator_ms: run.coordinator_worked / MILLISECOND,
            connections: run.connections,
            control_bytes: run.control_bytes,
            false_writes: run.false_writes,
        });
        Ok(report)
    }

    fn draw<T>(
        &self,
        world: &World<T>,
        outcome: &Outcome,
        bound: &Bound,
    ) -> Result<(), Box<dyn Error>> {
        if let Some(folder) = &self.plot {
            std::fs::create_dir_all(folder)?;
            let completion = plot::completion(world, outcome, bound.fluid);
            std::fs::write(folder.join("completion.svg"), completion)?;
            std::fs::write(folder.join("links.svg"), plot::utilisation(world, bound.fluid))?;
        }
        Ok(())
    }

    /// The faults of file and arguments, and how they were written.
    fn faults(
        &self,
        topology: &Topology,
        bound: Nanos,
    ) -> Result<(Vec<Planned>, Vec<String>), Box<dyn Error>> {
        let mut random = Random::new(self.seed);
        let (mut planned, mut lines) = (vec![], vec![]);
        if let Some(path) = &self.scenario {
            let scenario: Scenario = toml::from_str(&std::fs::read_to_string(path)?)?;
            for fault in &scenario.faults {
                planned.push(fault.plan(topology, bound, &mut random)?);
            }
            lines.push(format!("{} of {}", scenario.faults.len(), path.display()));
        }
        for line in &self.fault {
            let fault: Fault = line.parse()?;
            planned.push(fault.plan(topology, bound, &mut random)?);
            lines.push(line.clone());
        }
        Ok((planned, lines))
    }
}

/// When a run is given up.
fn end(bound: &Bound) -> Nanos {
    bound.fluid.saturating_mul(PATIENCE).max(600_000 * MILLISECOND)
}

/// What is relayed as a whole: a block, or several as one where the file has very many.
fn block_bytes(geometry: &Geometry) -> u64 {
    let mut bytes = u64::from(BLOCK_BYTES);
    while geometry.size_bytes().div_ceil(bytes) > BLOCKS_MAX {
        bytes *= 2;
    }
    bytes
}
