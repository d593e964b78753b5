//! multifd beside a real QEMU: the same image, the same machine, the same run. See BENCHMARKING.md.
#![allow(clippy::indexing_slicing)] // Figures of our own making.

mod image;
mod ours;
mod process;
mod qemu;
mod transfer;

use clap::{Parser, Subcommand};
use ours::{Compression, FileRole, RecvRole, SendRole};
use serde::Serialize;
use std::path::PathBuf;
use transfer::{Ask, Stage, Took, Whose};

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,
    /// MiB of guest RAM
    #[arg(long, default_value_t = 2048)]
    size: u64,
    /// How often each case is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Less memory, and without the slowest cases
    #[arg(long)]
    quick: bool,
    /// Write all figures to this file, too
    #[arg(long)]
    json: Option<PathBuf>,
    /// Only cases whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Where the memory lies: a folder on tmpfs
    #[arg(long, default_value = "/dev/shm")]
    memory: PathBuf,
}

/// One end of a transfer, which this program starts itself.
#[derive(Debug, Subcommand)]
enum Role {
    #[command(hide = true)]
    Send(SendRole),
    #[command(hide = true)]
    Recv(RecvRole),
    #[command(hide = true)]
    Save(FileRole),
    #[command(hide = true)]
    Load(FileRole),
    /// Write an image as the runs use it
    Image {
        /// The file
        file: PathBuf,
    },
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.role {
        Some(Role::Send(role)) => ours::run_send(role),
        Some(Role::Recv(role)) => ours::run_recv(role),
        Some(Role::Save(role)) => ours::run_save(role),
        Some(Role::Load(role)) => ours::run_load(role),
        Some(Role::Image { file }) => image::write(file, cli.size << 20, 1).map_err(Into::into),
        None => measure(&cli).map_err(Into::into),
    };
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("multifd-bench: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// One thing that is measured.
#[derive(Debug, Clone, Copy)]
enum Case {
    Transfer(Ask),
    Save(u8),
    Load(u8),
}

impl Case {
    fn name(self) -> String {
        match self {
            Self::Transfer(ask) => format!(
                "{} {} x{}{}",
                ask.compression.name(),
                if ask.unix { "unix" } else { "tcp" },
                ask.channels,
                if ask.prealloc { ", prealloc" } else { "" }
            ),
            Self::Save(channels) => format!("mapped-ram save x{channels}"),
            Self::Load(channels) => format!("mapped-ram load x{channels}"),
        }
    }

    fn run(self, stage: &Stage, pair: Pairing) -> qemu::Result<Took> {
        let (from, to) = pair.ends();
        let took = match self {
            Self::Transfer(ask) => stage.run(Ask { from, to, ..ask }),
            Self::Save(channels) => return stage.save(from, channels),
            Self::Load(channels) => stage.load(from, channels),
        }?;
        if stage.is_same()? {
            return Ok(took);
        }
        Err(format!("{}, {}: the memory differs", self.name(), pair.name()))
    }
}

/// Who sends to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pairing {
    Ours,
    Qemus,
    FromQemu,
}

impl Pairing {
    fn ends(self) -> (Whose, Whose) {
        match self {
            Self::Ours => (Whose::Multifd, Whose::Multifd),
            Self::Qemus => (Whose::Qemu, Whose::Qemu),
            Self::FromQemu => (Whose::Qemu, Whose::Multifd),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ours => "multifd",
            Self::Qemus => "QEMU",
            Self::FromQemu => "QEMU to multifd",
        }
    }
}

fn cases(quick: bool) -> Vec<Case> {
    let transfer = |compression, channels, prealloc, unix| {
        let (from, to) = (Whose::Multifd, Whose::Multifd);
        Case::Transfer(Ask {
            from,
            to,
            unix,
            compression,
            channels,
            prealloc,
        })
    };
    let mut cases = Vec::new();
    for prealloc in [false, true] {
        for channels in [1, 2, 4, 8] {
            cases.push(transfer(Compression::None, channels, prealloc, false));
        }
    }
    cases.push(transfer(Compression::None, 2, false, true));
    for channels in [1, 2, 4] {
        cases.push(transfer(Compression::Zstd, channels, false, false));
    }
    if !quick {
        cases.push(transfer(Compression::Zlib, 2, false, false));
    }
    for channels in [1, 2] {
        cases.extend([Case::Save(channels), Case::Load(channels)]);
    }
    cases
}

/// The figures of one case and one pairing, as they go into the JSON.
#[derive(Debug, Serialize)]
struct Row {
    case: String,
    who: &'static str,
    runs: Vec<Took>,
    /// The peer's median time over ours; only where there is a peer.
    ratio: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Results {
    machine: String,
    qemu: Option<String>,
    bytes: u64,
    rows: Vec<Row>,
}

fn median(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    [values[0], values[values.len() / 2], values[values.len() - 1]]
}

fn measure(cli: &Cli) -> qemu::Result<()> {
    let folder = tempfile::tempdir_in(&cli.memory).map_err(|e| e.to_string())?;
    let stage = Stage {
        image: folder.path().join("image"),
        bytes: if cli.quick { cli.size.min(512) } else { cli.size } << 20,
        folder: folder.path().into(),
    };
    image::write(&stage.image, stage.bytes, 1).map_err(|e| e.to_string())?;
    let mut results = Results {
        machine: machine(),
        qemu: qemu::version(),
        bytes: stage.bytes,
        rows: Vec::new(),
    };
    println!(
        "{}; QEMU: {}",
        results.machine,
        results.qemu.as_deref().unwrap_or("none here")
    );
    println!(
        "{:22} {:16} {:>6} {:>6} {:>6}  {:>6} {:>8} {:>8}  ratio",
        "case", "who", "min s", "median", "max s", "GiB/s", "CPU s/GiB", "MiB more"
    );
    for case in cases(cli.quick)
        .into_iter()
        .filter(|case| case.name().contains(&cli.only))
    {
        let mut pairings = vec![Pairing::Ours];
        if results.qemu.is_some() {
            pairings.push(Pairing::Qemus);
            if matches!(case, Case::Transfer(_)) {
                pairings.push(Pairing::FromQemu);
            }
        }
        let mut runs = vec![Vec::new(); pairings.len()];
        // One after the other, again and again: what the machine does meanwhile is done to all.
        for _ in 0..cli.runs {
            for (pairing, runs) in pairings.iter().zip(&mut runs) {
                runs.push(case.run(&stage, *pairing)?);
            }
        }
        let middle = |runs: &[Took]| median(runs.iter().map(|took| took.seconds))[1];
        let peer = pairings
            .iter()
            .position(|pairing| *pairing == Pairing::Qemus)
            .map(|at| middle(&runs[at]));
        for (pairing, runs) in pairings.into_iter().zip(runs) {
            let peer = peer.filter(|_| pairing != Pairing::Qemus);
            let ratio = peer.map(|peer| peer / middle(&runs));
            let row = Row {
                case: case.name(),
                who: pairing.name(),
                runs,
                ratio,
            };
            show(&row, stage.bytes);
            results.rows.push(row);
        }
    }
    if let Some(path) = &cli.json {
        let text = serde_json::to_string_pretty(&results).map_err(|e| e.to_string())?;
        std::fs::write(path, text + "\n").map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss)] // Figures for people.
fn show(row: &Row, bytes: u64) {
    let gib = bytes as f64 / f64::from(1 << 30);
    let [min, middle, max] = median(row.runs.iter().map(|took| took.seconds));
    let cpu = median(row.runs.iter().map(|took| took.cpu))[1] / gib;
    let memory = median(row.runs.iter().map(|took| took.memory as f64))[2] / f64::from(1 << 20);
    let ratio = row.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
    println!(
        "{:22} {:16} {min:6.3} {middle:6.3} {max:6.3}  {:6.2} {cpu:9.2} {memory:8.1}  {ratio}",
        row.case,
        row.who,
        gib / middle
    );
}

/// What this machine is.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("", |line| line.trim_start_matches(['\t', ':', ' ']));
    let count = cpuinfo
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    format!(
        "{count} x {model}, Linux {}",
        read("/proc/sys/kernel/osrelease").trim()
    )
}
