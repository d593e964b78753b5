//! The program `multifd` as a user types it, beside a QEMU that does the same by itself.

mod chart;
pub(crate) mod command;
mod live;
pub(crate) mod machines;
mod paused;
pub(crate) mod starts;

use crate::machine::Machine;
use crate::ours::Outcome;
use crate::qemu;
use crate::results::middle;
use clap::Args;
use command::Took;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;

/// Measures the program beside a QEMU: snapshots, restores, transfers, starts.
#[derive(Debug, Args)]
pub(crate) struct Program {
    /// MiB of guest RAM of the paused guest
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(64..1 << 20))]
    size: u64,
    /// GiB of guest RAM of the guests that are started
    #[arg(long, value_delimiter = ',', default_value = "1,4,16")]
    starts: Vec<u64>,
    /// How often each case is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Only cases whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Write all figures to this file, too
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draw the starts into this file
    #[arg(long)]
    svg: Option<PathBuf>,
    /// A folder on tmpfs
    #[arg(long, default_value = "/dev/shm")]
    memory: PathBuf,
    /// A folder on a disk
    #[arg(long, default_value = "/var/tmp")]
    disk: PathBuf,
}

/// One case, as done by one.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    case: String,
    who: String,
    runs: Vec<Took>,
    /// QEMU's median time over this one's.
    ratio: Option<f64>,
    /// All processor time over QEMU's.
    cpu_ratio: Option<f64>,
}

/// All of a run.
#[derive(Debug, Serialize)]
struct Figures {
    machine: Machine,
    qemu: Option<String>,
    rows: Vec<Row>,
    clones: Vec<starts::Clones>,
}

/// Where things lie, and how often they are measured.
pub(crate) struct Stage {
    pub(crate) memory: PathBuf,
    pub(crate) disk: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) runs: u16,
    only: String,
}

impl Stage {
    pub(crate) fn wants(&self, case: &str) -> bool {
        case.contains(&self.only)
    }
}

/// Whoever does a case: a name, and how.
pub(crate) type Way<'a> = (String, Box<dyn FnMut() -> Outcome<Took> + 'a>);

/// Runs a case each way in turn, every second time in the other order, and prints it. The first way
/// is QEMU's own.
pub(crate) fn in_turn(
    case: &str,
    stage: &Stage,
    mut ways: Vec<Way<'_>>,
    out: &mut dyn Write,
) -> Outcome<Vec<Row>> {
    if !stage.wants(case) {
        return Ok(Vec::new());
    }
    let mut runs: Vec<Vec<Took>> = ways.iter().map(|_| Vec::new()).collect();
    for time in 0..stage.runs {
        let mut order: Vec<usize> = (0..ways.len()).collect();
        if time % 2 == 1 {
            order.reverse();
        }
        for at in order {
            let took = (ways[at].1)().map_err(|e| format!("{case}, {}: {e}", ways[at].0))?;
            runs[at].push(took);
        }
    }
    let seconds = |runs: &[Took]| middle(runs.iter().map(|took| took.seconds));
    let cpu = |runs: &[Took]| middle(runs.iter().map(|took| took.cpu));
    let peer = (seconds(&runs[0]), cpu(&runs[0]));
    let mut rows = Vec::new();
    for (at, ((who, _), runs)) in ways.into_iter().zip(runs).enumerate() {
        let row = Row {
            case: case.into(),
            who,
            ratio: (at > 0).then(|| peer.0 / seconds(&runs)),
            cpu_ratio: (at > 0).then(|| cpu(&runs) / peer.1),
            runs,
        };
        show(out, &row)?;
        rows.push(row);
    }
    Ok(rows)
}

#[allow(clippy::cast_precision_loss)] // Figures for people.
fn show(out: &mut dyn Write, row: &Row) -> std::io::Result<()> {
    let of = |value: fn(&Took) -> Option<f64>| {
        let values: Vec<f64> = row.runs.iter().filter_map(value).collect();
        (!values.is_empty()).then(|| middle(values))
    };
    let text = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "-".into(), |value| format!("{value:.digits$}"))
    };
    writeln!(
        out,
        "{:34} {:26} {:>7} s {:>6} s {:>7} MiB {:>7} ms {:>7} ms  {:>5} {:>5}",
        row.case,
        row.who,
        text(of(|took| Some(took.seconds)), 3),
        text(of(|took| Some(took.cpu)), 2),
        text(of(|took| Some(took.memory? as f64 / f64::from(1 << 20))), 1),
        text(of(|took| took.pause.map(|pause| pause * 1e3)), 1),
        text(of(|took| took.gap.map(|gap| gap * 1e3)), 1),
        text(row.ratio, 2),
        text(row.cpu_ratio, 2),
    )
}

/// Runs everything that was asked for.
pub(crate) fn run(args: &Program, out: &mut dyn Write) -> Outcome<()> {
    let memory = tempfile::tempdir_in(&args.memory)?;
    let disk = tempfile::tempdir_in(&args.disk)?;
    crate::interrupt::remove_when_told(vec![memory.path().into(), disk.path().into()])?;
    command::build();
    let stage = Stage {
        memory: memory.path().into(),
        disk: disk.path().into(),
        bytes: args.size << 20,
        runs: args.runs,
        only: args.only.clone(),
    };
    let mut figures = Figures {
        machine: Machine::of_this(),
        qemu: qemu::version(),
        rows: Vec::new(),
        clones: Vec::new(),
    };
    let version = figures.qemu.as_deref().ok_or("there is no QEMU here")?;
    writeln!(out, "{}\nQEMU: {version}\n", figures.machine)?;
    writeln!(
        out,
        "{:34} {:26} {:>9} {:>8} {:>11} {:>10} {:>10}  {:>5} {:>5}",
        "case", "who", "time", "CPU", "our memory", "STOP-RESUME", "serial", "ratio", "CPU"
    )?;
    let keep = |figures: &Figures| -> Outcome<()> {
        if let Some(path) = &args.json {
            std::fs::write(path, serde_json::to_string_pretty(figures)? + "\n")?;
        }
        if let Some(path) = &args.svg {
            chart::draw(&figures.rows, path).map_err(|e| e.to_string())?;
        }
        Ok(())
    };
    figures.rows.extend(paused::measure(&stage, out)?);
    keep(&figures)?;
    figures.rows.extend(live::measure(&stage, out)?);
    keep(&figures)?;
    for &gib in &args.starts {
        figures.rows.extend(starts::measure(&stage, gib, out)?);
        keep(&figures)?;
    }
    figures.clones.extend(starts::clones(&stage, out)?);
    keep(&figures)
}
