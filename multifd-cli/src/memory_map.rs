//! Which parts of memory are stored, drawn as cells: in a terminal, or as SVG.

use multifd_transport_file::StoredPages;
use std::fmt::Write;

const COLUMNS: u64 = 64;
const ROWS: u64 = 16;
/// Side of a cell in an SVG.
const SIDE: usize = 10;

/// A RAM block cut into at most 64 x 16 cells.
pub(crate) struct MemoryMap {
    pub(crate) name: String,
    /// Pages one cell stands for.
    pub(crate) pages_a_cell: u64,
    /// Stored pages of each cell, in percent; a cell with any page is at least 1.
    pub(crate) cells: Vec<u8>,
}

impl MemoryMap {
    pub(crate) fn new(name: &str, pages: u64, stored: &StoredPages) -> Self {
        let pages_a_cell = pages.div_ceil(COLUMNS * ROWS).max(1);
        let cell = |first: u64| {
            let range = first..pages.min(first + pages_a_cell);
            let len = range.end - range.start;
            let stored = stored.count_in(range);
            u8::try_from((stored * 100).div_ceil(len.max(1))).unwrap_or(100)
        };
        let firsts = (0..pages).step_by(usize::try_from(pages_a_cell).unwrap_or(usize::MAX));
        Self {
            name: name.into(),
            pages_a_cell,
            cells: firsts.map(cell).collect(),
        }
    }

    /// What the cells of [`MemoryMap::text`] mean.
    pub(crate) const LEGEND: &str =
        "a cell's stored pages: · none, ░ up to 25 %, ▒ up to 50 %, ▓ up to 75 %, █ more";

    /// The map as lines of text: `·` for a cell of zero pages only, then four shades.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        for row in self.cells.chunks(COLUMNS as usize) {
            out.extend(row.iter().map(|percent| match percent {
                0 => '·',
                1..=25 => '░',
                26..=50 => '▒',
                51..=75 => '▓',
                _ => '█',
            }));
            out.push('\n');
        }
        out
    }
}

/// All maps of a file, one under another, as an SVG document.
pub(crate) fn svg(title: &str, maps: &[MemoryMap]) -> String {
    let rows = |map: &MemoryMap| map.cells.len().div_ceil(COLUMNS as usize);
    let height: usize = maps.iter().map(|map| (rows(map) + 3) * SIDE).sum::<usize>() + 3 * SIDE;
    let width = (COLUMNS as usize + 2) * SIDE;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>{0}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n<text x=\"{SIDE}\" y=\"{1}\">{0}</text>\n",
        escape(title),
        2 * SIDE
    );
    let mut top = 3 * SIDE;
    for map in maps {
        top += 2 * SIDE;
        let label = escape(&map.name);
        // Writing to a String does not fail.
        let _ = writeln!(
            out,
            "<text x=\"{SIDE}\" y=\"{}\">{label} ({} pages a cell)</text>",
            top - 4,
            map.pages_a_cell
        );
        for (index, percent) in map.cells.iter().enumerate() {
            let (x, y) = (index % COLUMNS as usize + 1, index / COLUMNS as usize);
            let shade = if *percent == 0 {
                240
            } else {
                200 - u32::from(*percent) * 3 / 2
            };
            let _ = writeln!(
                out,
                "<rect x=\"{}\" y=\"{}\" width=\"{2}\" height=\"{2}\" fill=\"rgb({shade},{shade},{3})\"/>",
                x * SIDE,
                top + y * SIDE,
                SIDE - 1,
                if *percent == 0 { 240 } else { 200 }
            );
        }
        top += (rows(map) + 1) * SIDE;
    }
    out.push_str("</svg>\n");
    out
}

fn escape(text: &str) -> String {
    let printable = text.chars().filter(|c| !c.is_control());
    let escaped: Vec<String> = printable
        .map(|c| match c {
            '&' => "&amp;".into(),
            '<' => "&lt;".into(),
            '>' => "&gt;".into(),
            other => other.to_string(),
        })
        .collect();
    escaped.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_shaded_by_what_is_stored() {
        let bytes = [0xff, 0, 1, 0, 0, 0, 0, 0];
        let map = MemoryMap::new("b", 60, &StoredPages::of_bitmap(&bytes));
        assert_eq!(map.pages_a_cell, 1);
        assert_eq!(
            map.text(),
            format!("{}{}█{}\n", "█".repeat(8), "·".repeat(8), "·".repeat(43))
        );
        let map = MemoryMap::new("b", 4096 * 4, &StoredPages::of_bitmap(&[0x11; 2048]));
        assert_eq!((map.pages_a_cell, map.cells.len()), (16, 1024));
        assert!(map.cells.iter().all(|&percent| percent == 25));
        assert_eq!(map.text(), format!("{}\n", "░".repeat(64)).repeat(16));
        let drawing = svg("a <b> & c", &[map]);
        assert!(drawing.contains("a &lt;b&gt; &amp; c"));
        assert_eq!(drawing.matches("<rect").count(), 1025);
    }
}
