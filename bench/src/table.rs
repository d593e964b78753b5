//! What is said on the terminal.

use crate::results::{Limit, Line, Results, Row, middle, spread};
use std::io::{Result, Write};

pub(crate) fn head(out: &mut dyn Write, results: &Results) -> Result<()> {
    writeln!(
        out,
        "{}\nQEMU: {}\n",
        results.machine,
        results.qemu.as_deref().unwrap_or("none here")
    )
}

#[allow(clippy::cast_precision_loss)] // Figures for people.
pub(crate) fn limit(out: &mut dyn Write, limit: &Limit) -> Result<()> {
    let [min, middle, max] = spread(limit.runs.iter().map(|rate| rate / f64::from(1 << 30)));
    writeln!(
        out,
        "{:34} {min:6.2} {middle:6.2} {max:6.2} GiB/s",
        limit.name
    )
}

pub(crate) fn columns(out: &mut dyn Write) -> Result<()> {
    writeln!(
        out,
        "\n{:34} {:16} {:>6} {:>6} {:>6}  {:>5} {:>9} {:>8} {:>9}  {:>5} {:>5} {:>6}",
        "case",
        "who",
        "min s",
        "median",
        "max s",
        "GiB/s",
        "CPU s/GiB",
        "MiB more",
        "calls/GiB",
        "ratio",
        "CPU",
        "iperf3"
    )
}

#[allow(clippy::cast_precision_loss)] // Figures for people.
pub(crate) fn row(out: &mut dyn Write, row: &Row, bytes: u64) -> Result<()> {
    let gib = bytes as f64 / f64::from(1 << 30);
    let [min, median, max] = spread(row.runs.iter().map(|took| took.seconds));
    let cpu = middle(row.runs.iter().map(|took| took.cpu)) / gib;
    let memory = spread(row.runs.iter().map(|took| took.memory as f64))[2] / f64::from(1 << 20);
    let two = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.2}"));
    let calls = row
        .calls_per_gib
        .map_or_else(|| "-".into(), |calls| format!("{calls:.0}"));
    writeln!(
        out,
        "{:34} {:16} {min:6.3} {median:6.3} {max:6.3}  {:5.2} {cpu:9.2} {memory:8.1} {calls:>9}  {:>5} {:>5} {:>6}",
        row.case,
        row.who,
        gib / median,
        two(row.ratio),
        two(row.cpu_ratio),
        two(row.of_iperf3)
    )
}

pub(crate) fn line(out: &mut dyn Write, line: &Line) -> Result<()> {
    writeln!(out, "\ngrowth by {}", line.name)?;
    for point in &line.points {
        let [min, middle, max] = spread(point.seconds.iter().copied());
        writeln!(
            out,
            "{:>34} {:16} {min:6.3} {middle:6.3} {max:6.3}",
            point.at, point.who
        )?;
    }
    for straight in &line.straight {
        writeln!(
            out,
            "{}: {:.1} ms and {:.4} ms each; the furthest from that line: {:.1} % off",
            straight.who,
            straight.start * 1e3,
            straight.slope * 1e3,
            straight.off * 100.0
        )?;
    }
    match line.off {
        Some(off) => writeln!(out, "{}: {:.1} % off", line.off_is, off * 100.0),
        None => Ok(()),
    }
}
