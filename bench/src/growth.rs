//! How time grows with guest RAM and with channels.

use crate::cases::{Case, Pairing, in_turn};
use crate::image;
use crate::ours::Compression;
use crate::qemu::Result;
use crate::results::{Line, Point, middle};
use crate::straight::Straight;
use crate::transfer::{Ask, Stage};

fn ask(channels: u8) -> Case {
    // With its pages there already: how long the machine takes to come up with new memory is not
    // ours to measure.
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

/// Where one pairing's points are, with their medians.
#[allow(clippy::cast_precision_loss)] // Figures for people.
fn of(who: Pairing, points: &[Point]) -> Vec<(f64, f64)> {
    let own = points.iter().filter(|point| point.who == who.name());
    own.map(|point| (point.at as f64, middle(point.seconds.iter().copied())))
        .collect()
}

/// Guest RAM of several sizes, over two channels.
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
    let both = [Pairing::Ours, Pairing::Qemus];
    let straight = both.map(|who| Straight::along(who.name(), &of(who, &line)));
    // Without anything for the start it would be as long for each MiB, whatever the size.
    let each = of(Pairing::Ours, &line).into_iter();
    let each: Vec<f64> = each.map(|(at, seconds)| seconds / at).collect();
    let usual = (each.len() > 1).then(|| middle(each.iter().copied()));
    let off = usual.map(|usual| {
        let off = each.iter().map(|one| (one / usual - 1.0).abs());
        off.fold(0.0, f64::max)
    });
    Ok(Line {
        name: "MiB of guest RAM",
        straight: straight.into_iter().flatten().collect(),
        off_is: "the furthest size from the median time of a MiB",
        off,
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
    let ours = of(Pairing::Ours, &line);
    let best = ours.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let most = ours.last().map(|(_, seconds)| seconds / best - 1.0);
    Ok(Line {
        name: "channels",
        straight: Vec::new(),
        points: line,
        off: most,
        off_is: "the most channels, over the best number",
    })
}
