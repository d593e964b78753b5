//! Stores of snapshots, beside what else keeps memory: files, zstd, restic, borg, QEMU itself.

mod growth;
mod guests;
mod peers;
mod raw_fuse;
mod reads;
#[cfg(feature = "s3")]
mod slow_storage;
mod starts;
mod writes;

use crate::machine::Machine;
use crate::ours::Outcome;
use crate::program::command;
use crate::program::machines::text;
use crate::qemu;
use crate::results::middle;
use clap::Args;
use multifd_transport_store::{Store as MultifdStore, StoreOptions};
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Measures stores: writing, sizes, reading, starting from them.
#[derive(Debug, Args)]
pub(crate) struct Store {
    /// MiB of the image that is written
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u64).range(64..1 << 20))]
    size: u64,
    /// How often each case is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Snapshots of the busy guest
    #[arg(long, default_value_t = 10)]
    snapshots: usize,
    /// Seconds between two of them
    #[arg(long, default_value_t = 5)]
    apart: u64,
    /// Bytes of a chunk
    #[arg(long, default_value = "65536")]
    chunk: String,
    /// Only cases whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Write all figures to this file, too
    #[arg(long)]
    json: Option<PathBuf>,
    /// A folder on tmpfs
    #[arg(long, default_value = "/dev/shm")]
    memory: PathBuf,
    /// A folder on a disk
    #[arg(long, default_value = "/var/tmp")]
    disk: PathBuf,
}

/// What was measured of one, in one case.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    case: String,
    who: String,
    unit: &'static str,
    values: Vec<f64>,
    middle: f64,
    /// This one's middle value over the first one's of the case.
    ratio: Option<f64>,
    /// The most anonymous memory of ours, bytes.
    memory: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Figures {
    machine: Machine,
    qemu: Option<String>,
    rows: Vec<Row>,
}

/// Where things lie, how often they are measured, and what was found.
pub(crate) struct Stage<'o> {
    pub(crate) memory: PathBuf,
    pub(crate) disk: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) runs: u16,
    pub(crate) snapshots: usize,
    pub(crate) apart: u64,
    pub(crate) chunk: String,
    only: String,
    rows: Vec<Row>,
    out: &'o mut dyn Write,
}

/// One who does a case: a name, and how; what it returns are seconds and its memory.
pub(crate) type Way<'a> = (
    &'a str,
    Box<dyn FnMut() -> Outcome<(f64, Option<u64>)> + 'a>,
);

impl Stage<'_> {
    pub(crate) fn wants(&self, case: &str) -> bool {
        case.contains(&self.only)
    }

    /// Makes a store with chunks of the size that was asked for.
    pub(crate) fn make_store(&self, folder: &Path) -> Outcome<()> {
        let options = StoreOptions::default().chunk_size(self.chunk.parse()?);
        MultifdStore::open_or_create(&text(folder)?.parse()?, &options)?;
        Ok(())
    }

    /// Notes figures of one, and prints them.
    pub(crate) fn note(
        &mut self,
        (case, who, unit): (&str, &str, &'static str),
        values: Vec<f64>,
        memory: Option<u64>,
    ) -> Outcome<()> {
        let first = self
            .rows
            .iter()
            .find(|row| row.case == case && row.unit == unit);
        let now = middle(values.iter().copied());
        let ratio = first.map(|row| now / row.middle);
        #[allow(clippy::cast_precision_loss)] // Figures for people.
        let mib = memory.map_or("-".into(), |bytes| {
            format!("{:.0}", bytes as f64 / 1_048_576.0)
        });
        let shown = ratio.map_or("-".into(), |ratio| format!("{ratio:.3}"));
        writeln!(
            self.out,
            "{case:34} {who:34} {now:>12.4} {unit:7} {shown:>7} {mib:>7} MiB"
        )?;
        self.rows.push(Row {
            case: case.into(),
            who: who.into(),
            unit,
            values,
            middle: now,
            ratio,
            memory,
        });
        Ok(())
    }

    /// Has each do a case in turn.
    pub(crate) fn in_turn(&mut self, case: &str, mut ways: Vec<Way<'_>>) -> Outcome<()> {
        let mut values: Vec<Vec<f64>> = ways.iter().map(|_| Vec::new()).collect();
        let mut memory: Vec<Option<u64>> = ways.iter().map(|_| None).collect();
        for time in 0..self.runs {
            let mut order: Vec<usize> = (0..ways.len()).collect();
            if time % 2 == 1 {
                order.reverse();
            }
            for at in order {
                let (seconds, used) =
                    (ways[at].1)().map_err(|e| format!("{case}, {}: {e}", ways[at].0))?;
                values[at].push(seconds);
                memory[at] = memory[at].max(used);
            }
        }
        for (at, (who, _)) in ways.into_iter().enumerate() {
            let values = std::mem::take(&mut values[at]);
            self.note((case, who, "s"), values, memory[at])?;
        }
        Ok(())
    }
}

/// Runs everything that was asked for.
pub(crate) fn run(args: &Store, out: &mut dyn Write) -> Outcome<()> {
    let memory = tempfile::tempdir_in(&args.memory)?;
    let disk = tempfile::tempdir_in(&args.disk)?;
    crate::interrupt::remove_when_told(vec![memory.path().into(), disk.path().into()])?;
    command::build();
    let machine = Machine::of_this();
    writeln!(
        out,
        "{machine}\nQEMU: {}\n",
        qemu::version().unwrap_or_default()
    )?;
    let mut stage = Stage {
        memory: memory.path().into(),
        disk: disk.path().into(),
        bytes: args.size << 20,
        runs: args.runs,
        snapshots: args.snapshots,
        apart: args.apart,
        chunk: args.chunk.clone(),
        only: args.only.clone(),
        rows: Vec::new(),
        out,
    };
    let cases: &[fn(&mut Stage<'_>) -> Outcome<()>] = &[
        writes::measure,
        reads::measure,
        starts::measure,
        guests::idle,
        guests::dirty,
        guests::busy,
        #[cfg(feature = "s3")]
        slow_storage::measure,
        growth::measure,
    ];
    for case in cases {
        let done = case(&mut stage);
        // What was measured is kept, whatever comes next.
        if let Some(path) = &args.json {
            let figures = Figures {
                machine: Machine::of_this(),
                qemu: qemu::version(),
                rows: std::mem::take(&mut stage.rows),
            };
            std::fs::write(path, serde_json::to_string_pretty(&figures)? + "\n")?;
            stage.rows = figures.rows;
        }
        done?;
    }
    Ok(())
}
