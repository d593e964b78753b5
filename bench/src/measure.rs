//! A whole run: the stage, the warm-up, all cases in turn.

use crate::cases::{Case, Pairing, cases, in_turn};
use crate::fresh::touch;
use crate::machine::Machine;
use crate::ours::Outcome;
use crate::process::can_count_calls;
use crate::qemu::{self, Qemu};
use crate::results::{Results, Row, middle};
use crate::transfer::{Stage, Took};
use crate::{Cli, chart, growth, image, interrupt, limits, table};
use std::io::Write;
use std::path::Path;

/// Runs everything that was asked for.
pub(crate) fn run(cli: &Cli, out: &mut dyn Write) -> Outcome<()> {
    let bytes = if cli.quick {
        cli.size.min(256)
    } else {
        cli.size
    } << 20;
    let folder = tempfile::tempdir_in(&cli.memory)?;
    let disk = tempfile::tempdir_in(&cli.disk)?;
    interrupt::remove_when_told(vec![folder.path().into(), disk.path().into()])?;
    let mut stage = Stage {
        image: folder.path().join("image"),
        bytes,
        folder: folder.path().into(),
        disk: disk.path().into(),
        tail: None,
        counting: false,
    };
    let mut results = Results {
        machine: Machine::of_this(),
        qemu: qemu::version(),
        bytes,
        limits: Vec::new(),
        rows: Vec::new(),
        growth: Vec::new(),
    };
    table::head(out, &results)?;
    if !limits::iperf3_is_here() {
        writeln!(
            out,
            "iperf3: none here; what the loopback takes is not measured"
        )?;
    }
    let can_count = !cli.quick && can_count_calls();
    if !cli.quick && !can_count {
        writeln!(
            out,
            "strace: none here, or it may do nothing; system calls are not counted"
        )?;
    }
    warm_up(&stage)?;
    image::write(&stage.image, bytes, 1)?;
    if results.qemu.is_some() {
        stage.tail = Some(tail(&stage)?);
    }
    let asked = (cli.runs, cli.quick, cli.only.as_str());
    results.limits = limits::measure(&stage, asked, &mut |limit| Ok(table::limit(out, limit)?))?;
    measure_growth(cli, &stage, &mut results, out)?;
    table::columns(out)?;
    for case in cases(cli.quick) {
        if case.name().contains(&cli.only) {
            measure_case(cli, case, &mut stage, can_count, &mut results, out)?;
            // A run takes long: what there is of it is not lost when it ends early.
            keep(cli, &results)?;
        }
    }
    keep(cli, &results)
}

fn measure_growth(
    cli: &Cli,
    stage: &Stage,
    results: &mut Results,
    out: &mut dyn Write,
) -> Outcome<()> {
    // The largest first: a host that takes memory back has done so with most of it by the time the
    // cases begin.
    let (sizes, channels): (&[u64], &[u8]) = if cli.quick {
        (&[256, 128, 64], &[1, 2, 4])
    } else {
        (
            &[8192, 4096, 2048, 1024, 512, 256],
            &[1, 2, 4, 8, 16, 32, 64],
        )
    };
    if "growth by memory".contains(&cli.only) {
        // Twice: the source's, and the destination's.
        let room = free(&stage.folder)? >> 20;
        let fitting: Vec<u64> = sizes
            .iter()
            .copied()
            .filter(|mib| 2 * mib + 64 <= room)
            .collect();
        let line = growth::of_memory(stage, cli.runs, &fitting, results.qemu.is_some())?;
        table::line(out, &line)?;
        results.growth.push(line);
    }
    if "growth by channels".contains(&cli.only) {
        let line = growth::of_channels(stage, cli.runs, channels)?;
        table::line(out, &line)?;
        results.growth.push(line);
    }
    Ok(())
}

/// Writes what there is of the results into the files that were asked for.
fn keep(cli: &Cli, results: &Results) -> Outcome<()> {
    if let Some(path) = &cli.json {
        let text = serde_json::to_string_pretty(results)?;
        std::fs::write(path, text + "\n").map_err(named(path))?;
    }
    if let Some(path) = &cli.svg {
        chart::draw(results, path).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

fn named(path: &Path) -> impl Fn(std::io::Error) -> String {
    move |e| format!("{}: {e}", path.display())
}

/// Touches as much memory as a case needs, if there is room: a virtual machine is given memory when
/// it is first used, and that takes long.
fn warm_up(stage: &Stage) -> Outcome<()> {
    let needed = 3 * stage.bytes;
    let free = free(&stage.folder)?;
    if free < needed {
        return Err(format!(
            "{} MiB are needed in {}, and {} are free; --size takes less",
            needed >> 20,
            stage.folder.display(),
            free >> 20
        )
        .into());
    }
    touch(&stage.folder.join("warm-up"), needed, 2)?;
    Ok(())
}

/// Bytes that a folder's file system still takes.
fn free(folder: &Path) -> Outcome<u64> {
    let status = rustix::fs::statvfs(folder)?;
    Ok(status.f_bavail * status.f_frsize)
}

/// Has a QEMU write what it has beside its RAM.
fn tail(stage: &Stage) -> Outcome<std::path::PathBuf> {
    let (memory, file) = (stage.folder.join("empty"), stage.folder.join("tail"));
    std::fs::File::create(&memory)?.set_len(stage.bytes)?;
    let mut qemu = Qemu::start(&memory, stage.bytes, false, false)?;
    qemu.multifd(1, "none", &["mapped-ram"])?;
    qemu.migrate(&format!("file:{}", file.display()));
    qemu.wait_completed();
    drop(qemu);
    std::fs::remove_file(&memory)?;
    Ok(file)
}

#[allow(clippy::cast_precision_loss)] // Figures for people.
fn measure_case(
    cli: &Cli,
    case: Case,
    stage: &mut Stage,
    can_count: bool,
    results: &mut Results,
    out: &mut dyn Write,
) -> Outcome<()> {
    let pairings = case.pairings(results.qemu.is_some());
    let runs = in_turn(case, stage, &pairings, cli.runs)?;
    let gib = stage.bytes as f64 / f64::from(1 << 30);
    let mut calls = vec![None; pairings.len()];
    if can_count {
        stage.counting = true;
        for (pairing, calls) in pairings.iter().zip(&mut calls) {
            *calls = case
                .run(stage, *pairing)?
                .calls
                .map(|calls| calls as f64 / gib);
        }
        stage.counting = false;
    }
    let seconds = |runs: &[Took]| middle(runs.iter().map(|took| took.seconds));
    let cpu = |runs: &[Took]| middle(runs.iter().map(|took| took.cpu));
    let peer = pairings
        .iter()
        .position(|pairing| *pairing == Pairing::Qemus);
    let peer = peer.map(|at| (seconds(&runs[at]), cpu(&runs[at])));
    let name = format!("limit: iperf3 x{}", case.channels());
    let iperf3 = results.limits.iter().find(|limit| limit.name == name);
    let iperf3 = iperf3.map(|limit| middle(limit.runs.iter().copied()));
    let iperf3 = iperf3.filter(|_| matches!(case, Case::Transfer(ask) if !ask.unix));
    for ((pairing, runs), calls_per_gib) in pairings.into_iter().zip(runs).zip(calls) {
        let peer = peer.filter(|_| pairing != Pairing::Qemus);
        let wire = runs.first().map_or(0.0, |took| took.wire_bytes as f64);
        let row = Row {
            case: case.name(),
            group: case.group(),
            channels: case.channels(),
            who: pairing.name(),
            ratio: peer.map(|peer| peer.0 / seconds(&runs)),
            cpu_ratio: peer.map(|peer| cpu(&runs) / peer.1),
            of_iperf3: iperf3.map(|rate| wire / seconds(&runs) / rate),
            calls_per_gib,
            runs,
        };
        table::row(out, &row, stage.bytes)?;
        results.rows.push(row);
    }
    Ok(())
}
