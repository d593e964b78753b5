//! Time to a guest's first word over its RAM, as a picture.

use super::Row;
use crate::results::middle;
use plotters::prelude::*;
use std::error::Error;
use std::path::Path;

const SIZE: (u32, u32) = (720, 400);
const COLOURS: [RGBColor; 3] = [
    RGBColor(0xd9, 0x5f, 0x02),
    RGBColor(0x75, 0x70, 0xb3),
    RGBColor(0x1b, 0x7f, 0x5c),
];

/// The points of each one who was measured: GiB of RAM, milliseconds.
fn lines(rows: &[Row]) -> Vec<(String, Vec<(f64, f64)>)> {
    let mut lines: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for row in rows {
        let size = row
            .case
            .strip_prefix("first word, ")
            .and_then(|rest| rest.strip_suffix(" GiB"));
        let Some(gib) = size.and_then(|size| size.parse().ok()) else {
            continue;
        };
        let point = (gib, 1e3 * middle(row.runs.iter().map(|took| took.seconds)));
        match lines.iter_mut().find(|(who, _)| *who == row.who) {
            Some((_, points)) => points.push(point),
            None => lines.push((row.who.clone(), vec![point])),
        }
    }
    lines
}

/// Draws them, if there are any.
pub(crate) fn draw(rows: &[Row], path: &Path) -> Result<(), Box<dyn Error>> {
    let lines = lines(rows);
    if lines.is_empty() {
        return Ok(());
    }
    let points = || lines.iter().flat_map(|(_, points)| points);
    let right = points().map(|point| point.0).fold(1.0, f64::max);
    let top = points().map(|point| point.1).fold(100.0, f64::max);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(
            "From the command to the guest's first word, a quarter of RAM stored",
            ("sans-serif", 18),
        )
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..right * 1.05, (10.0..top * 1.5).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("GiB of guest RAM")
        .y_desc("milliseconds")
        .x_label_formatter(&|at| format!("{at:.0}"))
        .y_label_formatter(&|at| format!("{at:.0}"))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for ((who, points), colour) in lines.iter().zip(COLOURS) {
        chart
            .draw_series(LineSeries::new(
                points.iter().copied(),
                colour.stroke_width(2),
            ))?
            .label(who)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
        let dots = points.iter().map(|&at| Circle::new(at, 4, colour.filled()));
        chart.draw_series(dots)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .draw()?;
    root.present()?;
    Ok(())
}
