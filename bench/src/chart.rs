//! A run as a picture: for each group of cases bars, ours beside QEMU's, and lines for growth.

use crate::cases::Pairing;
use crate::results::{Line, Results, Row, middle};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::error::Error;
use std::path::Path;

const COLUMNS: usize = 3;
const PANEL: (u32, u32) = (420, 260);
const HEAD: u32 = 90;

type Drawn = Result<(), Box<dyn Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn colour(who: &str) -> RGBColor {
    let all = [
        (Pairing::Ours, RGBColor(0x1b, 0x7f, 0x5c)),
        (Pairing::Qemus, RGBColor(0xd9, 0x5f, 0x02)),
        (Pairing::FromQemu, RGBColor(0x75, 0x70, 0xb3)),
        (Pairing::ToQemu, RGBColor(0x66, 0xa6, 0xce)),
    ];
    let found = all.iter().find(|(pairing, _)| pairing.name() == who);
    found.map_or(BLACK, |(_, colour)| *colour)
}

/// Draws all that was measured.
pub(crate) fn draw(results: &Results, path: &Path) -> Drawn {
    let mut groups: Vec<&str> = Vec::new();
    for row in &results.rows {
        if !groups.contains(&row.group.as_str()) {
            groups.push(&row.group);
        }
    }
    let rows = (groups.len() + results.growth.len())
        .div_ceil(COLUMNS)
        .max(1);
    let size = (
        PANEL.0 * u32::try_from(COLUMNS)?,
        HEAD + PANEL.1 * u32::try_from(rows)?,
    );
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, body) = root.split_vertically(HEAD);
    heading(&head, results)?;
    let panels = body.split_evenly((rows, COLUMNS));
    let mut panels = panels.iter();
    for (group, panel) in groups.into_iter().zip(panels.by_ref()) {
        let rows: Vec<&Row> = results
            .rows
            .iter()
            .filter(|row| row.group == group)
            .collect();
        bars(panel, group, &rows, results.bytes)?;
    }
    for (line, panel) in results.growth.iter().zip(panels) {
        growth(panel, line)?;
    }
    root.present()?;
    Ok(())
}

fn heading(area: &Area<'_>, results: &Results) -> Drawn {
    let qemu = results.qemu.as_deref().unwrap_or("not here");
    let text = format!("multifd and QEMU {qemu}: GiB of guest RAM a second, medians");
    area.draw(&Text::new(text, (12, 10), ("sans-serif", 20)))?;
    area.draw(&Text::new(
        results.machine.to_string(),
        (12, 38),
        ("sans-serif", 13),
    ))?;
    let all = [
        Pairing::Ours,
        Pairing::Qemus,
        Pairing::FromQemu,
        Pairing::ToQemu,
    ];
    for (at, pairing) in (0..).zip(all) {
        let x = 12 + at * 170;
        let style = colour(pairing.name()).filled();
        area.draw(&Rectangle::new([(x, 64), (x + 12, 76)], style))?;
        area.draw(&Text::new(pairing.name(), (x + 18, 63), ("sans-serif", 14)))?;
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss)] // A picture.
fn bars(area: &Area<'_>, group: &str, rows: &[&Row], bytes: u64) -> Drawn {
    let gib = bytes as f64 / f64::from(1 << 30);
    let speed = |row: &Row| gib / middle(row.runs.iter().map(|took| took.seconds));
    let most = rows.iter().map(|row| speed(row)).fold(0.0, f64::max);
    let mut counts: Vec<u8> = rows.iter().map(|row| row.channels).collect();
    counts.dedup();
    let mut chart = ChartBuilder::on(area)
        .caption(group, ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(24)
        .y_label_area_size(34)
        .build_cartesian_2d(0.0..counts.len() as f64, 0.0..most * 1.1)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .y_labels(6)
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (place, count) in counts.iter().enumerate() {
        let here: Vec<&&Row> = rows.iter().filter(|row| row.channels == *count).collect();
        let width = 0.8 / here.len() as f64;
        for (at, row) in here.iter().enumerate() {
            let left = place as f64 + 0.1 + width * at as f64;
            let corners = [(left, 0.0), (left + width * 0.92, speed(row))];
            chart.draw_series([Rectangle::new(corners, colour(row.who).filled())])?;
        }
        let (x, y) = chart.backend_coord(&(place as f64 + 0.5, 0.0));
        let (left, top) = area.get_base_pixel();
        let text = format!("x{count}");
        area.draw(&Text::new(
            text,
            (x - left - 8, y - top + 6),
            ("sans-serif", 13),
        ))?;
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss)] // A picture.
fn growth(area: &Area<'_>, line: &Line) -> Drawn {
    let points = line.points.iter();
    let all: Vec<_> = points
        .map(|point| {
            (
                point.who,
                point.at as f64,
                middle(point.seconds.iter().copied()),
            )
        })
        .collect();
    let right = all.iter().map(|point| point.1).fold(0.0, f64::max);
    let top = all.iter().map(|point| point.2).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(
            format!("none, tcp, prealloc: seconds by {}", line.name),
            ("sans-serif", 15),
        )
        .margin(8)
        .x_label_area_size(24)
        .y_label_area_size(34)
        .build_cartesian_2d(0.0..right * 1.05, 0.0..top * 1.1)?;
    chart
        .configure_mesh()
        .x_labels(5)
        .y_labels(6)
        .light_line_style(TRANSPARENT)
        .x_label_formatter(&|at| format!("{at:.0}"))
        .draw()?;
    for who in [Pairing::Ours.name(), Pairing::Qemus.name()] {
        let own = all.iter().filter(|point| point.0 == who);
        let own: Vec<(f64, f64)> = own.map(|point| (point.1, point.2)).collect();
        let colour = colour(who);
        chart.draw_series(LineSeries::new(own.iter().copied(), colour.stroke_width(2)))?;
        chart.draw_series(
            own.into_iter()
                .map(|at| Circle::new(at, 3, colour.filled())),
        )?;
    }
    Ok(())
}
