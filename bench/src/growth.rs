//! How time grows with guest RAM and with channels.

use crate::cases::{Case, Pairing, in_turn};
use crate::image;
use crate::ours::Compression;
use crate::qemu::Result;
use crate::results::{Line, Point, middle};
use crate::transfer::{Ask, Stage};

fn ask(channels: u8) -> Case {
    // With its pages there already: how long the machine takes to come up with new memory is not ours to measure.
    Case::Transfer(Ask {
        unix: false,
        compression: Compression::None,
        channels,
        prealloc: true,
    })
}

/// The points of one place, one for each pairing.
fn points(
    stage: &Stage,
    runs: u16,
    at: u64,
    case: Case,
    pairings: &[Pairing],
    line: &mut Vec<Point>,
) -> Result<()> {
    let named = pairings.iter().zip(in_turn(case, stage, pairings, runs)?);
    line.extend(named.map(|(pairing, runs)| Point {
        who: pairing.name(),
        at,
        seconds: runs.iter().map(|took| took.seconds).collect(),
    }));
    Ok(())
}

fn ours(points: &[Point]) -> impl Iterator<Item = (u64, f64)> {
    let ours = points.iter().filter(|point| point.who == Pairing::Ours.name());
    ours.map(|point| (point.at, middle(point.seconds.iter().copied())))
}

/// Guest RAM from small to large, over two channels.
#[allow(clippy::cast_precision_loss)] // Figures for people.
pub(crate) fn of_memory(stage: &Stage, runs: u16, sizes: &[u64], has_qemu: bool) -> Result<Line> {
    let mut line = Vec::new();
    for &mib in sizes {
        let stage = Stage {
            image: stage.folder.join("image-of-its-own"),
            bytes: mib << 20,
            ..stage.clone()
        };
        image::write(&stage.image, stage.bytes, 1).map_err(|e| e.to_string())?;
        let pairings: &[Pairing] = if has_qemu {
            &[Pairing::Ours, Pairing::Qemus]
        } else {
            &[Pairing::Ours]
        };
        points(&stage, runs, mib, ask(2), pairings, &mut line)?;
        std::fs::remove_file(&stage.image).map_err(|e| e.to_string())?;
    }
    // Linear is as long for each MiB, whatever the size.
    let each: Vec<f64> = ours(&line).map(|(at, seconds)| seconds / at as f64).collect();
    let usual = middle(each.iter().copied());
    let off = each.iter().map(|one| (one / usual - 1.0).abs());
    Ok(Line {
        name: "MiB of guest RAM",
        off_is: "the furthest size from the median time of a MiB",
        off: (each.len() > 1).then(|| off.fold(0.0, f64::max)),
        points: line,
    })
}

/// Channels from few to many, ours only.
pub(crate) fn of_channels(stage: &Stage, runs: u16, channels: &[u8]) -> Result<Line> {
    let mut line = Vec::new();
    for &channels in channels {
        points(
            stage,
            runs,
            channels.into(),
            ask(channels),
            &[Pairing::Ours],
            &mut line,
        )?;
    }
    let best = ours(&line).map(|p| p.1).fold(f64::INFINITY, f64::min);
    let most = ours(&line).last().map(|(_, seconds)| seconds / best - 1.0);
    Ok(Line {
        name: "channels",
        points: line,
        off: most,
        off_is: "the most channels, over the best number",
    })
}
