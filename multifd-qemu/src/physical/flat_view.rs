//! The output of the monitor's `info mtree -f`: address spaces as they are after everything that
//! hides something else.

use super::{LayoutError, MAX_RANGES, PhysicalRange};

/// The address space of the machine itself.
const MEMORY: &str = " AS \"memory\", root: ";

/// The RAM and ROM in the address space `memory`. What is emulated, passed through or not volatile
/// is none.
pub(super) fn parse(text: &str, blocks: &[(&str, u64)]) -> Result<Vec<PhysicalRange>, LayoutError> {
    let mut ranges = Vec::new();
    let mut lines = text.lines().enumerate();
    if !lines.any(|(_, line)| line.starts_with(MEMORY)) {
        return Err(LayoutError::Text {
            line: 1,
            reason: "there is no address space \"memory\": is it the output of `info mtree -f`?"
                .into(),
        });
    }
    for (number, line) in lines {
        if line.starts_with(" AS ") || line.starts_with(" Root memory region: ") {
            continue;
        }
        let Some(line) = line.strip_prefix("  ") else {
            break;
        };
        let bad = |reason: String| LayoutError::Text {
            line: number + 1,
            reason,
        };
        let section = Section::of(line)
            .ok_or_else(|| bad(format!("{line:?} is no part of an address space")))?;
        if !matches!(section.kind, "ram" | "rom") {
            continue;
        }
        if ranges.len() >= MAX_RANGES {
            return Err(bad(format!("there are more than {MAX_RANGES} ranges")));
        }
        let block = block_of(section.region, blocks).map_err(bad)?;
        ranges.push(PhysicalRange {
            address: section.first,
            len: section
                .last
                .checked_sub(section.first)
                .map_or(0, |len| len.saturating_add(1)),
            block: block.into(),
            offset: section.offset,
        });
    }
    Ok(ranges)
}

/// A line such as `0000000000100000-0000000003ffffff (prio 0, ram): pc.ram @0000000000100000 KVM`.
struct Section<'a> {
    first: u64,
    last: u64,
    kind: &'a str,
    region: &'a str,
    offset: u64,
}

impl<'a> Section<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let (range, rest) = line.split_once(" (prio ")?;
        let (first, last) = range.split_once('-')?;
        let (about, region) = rest.split_once("): ")?;
        let (_, kind) = about.split_once(", ")?;
        let region = region.strip_suffix(" KVM").unwrap_or(region);
        let (region, offset) = match region.rsplit_once(" @") {
            Some((region, offset)) => (region, hex(offset)?),
            None => (region, 0),
        };
        Some(Self {
            first: hex(first)?,
            last: hex(last)?,
            kind,
            region,
            offset,
        })
    }
}

fn hex(text: &str) -> Option<u64> {
    let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u64::from_str_radix(text, 16).ok())?
}

/// The RAM block of a memory region. A block's name is its region's, which the path of its device
/// may come before.
fn block_of<'a>(region: &str, blocks: &[(&'a str, u64)]) -> Result<&'a str, String> {
    if let Some((name, _)) = blocks.iter().find(|(name, _)| *name == region) {
        return Ok(name);
    }
    let mut owned = blocks.iter().filter(|(name, _)| {
        name.strip_suffix(region)
            .is_some_and(|path| path.ends_with('/'))
    });
    match (owned.next(), owned.next()) {
        (Some((name, _)), None) => Ok(name),
        (None, _) => Err(format!("the memory {region:?} is not in the snapshot")),
        (Some((one, _)), Some((other, _))) => Err(format!(
            "the memory {region:?} may be RAM block {one:?} or {other:?}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "FlatView #0
 AS \"I/O\", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS \"memory\", root: system
 AS \"cpu-memory-0\", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000e0000-00000000000fffff (prio -1, rom): pc.bios @0000000000020000
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
  00000000fe000000-00000000fe000fff (prio 0, ramd): mapped device
  0000000100000000-000000010fffffff (prio 0, nv-ram): pmem

FlatView #2
 AS \"other\", root: other
  0000000000000000-000000000009ffff (prio 0, ram): nobody's
";

    #[test]
    fn memory_is_found_by_the_names_of_its_regions() {
        let blocks = [
            ("pc.ram", 1 << 20),
            ("0000:00:02.0/vga.vram", 1 << 24),
            ("pc.bios", 1 << 18),
        ];
        let found = parse(TEXT, &blocks).unwrap();
        let short: Vec<_> = found
            .iter()
            .map(|range| (range.address, range.len, range.block.as_str(), range.offset))
            .collect();
        assert_eq!(
            short,
            [
                (0, 0xa0000, "pc.ram", 0),
                (0xe0000, 0x20000, "pc.bios", 0x20000),
                (0xfd00_0000, 1 << 24, "0000:00:02.0/vga.vram", 0)
            ]
        );
    }

    #[test]
    fn memory_that_is_not_in_the_snapshot_or_may_be_two_blocks_is_an_error() {
        let error = |blocks: &[(&str, u64)]| parse(TEXT, blocks).unwrap_err().to_string();
        let few = [("pc.ram", 1 << 20), ("pc.bios", 1 << 18)];
        assert!(error(&few).contains("\"vga.vram\" is not in the snapshot"));
        let two = [
            ("pc.ram", 1),
            ("pc.bios", 1),
            ("a/vga.vram", 1),
            ("b/vga.vram", 1),
        ];
        assert!(error(&two).contains("may be RAM block \"a/vga.vram\" or \"b/vga.vram\""));
        let error = parse("nothing of the kind", &few).unwrap_err().to_string();
        assert!(error.contains("info mtree -f"), "{error}");
        let broken = TEXT.replace("(prio 0, ram): pc.ram", "prio 0, ram: pc.ram");
        assert!(
            parse(&broken, &few)
                .unwrap_err()
                .to_string()
                .starts_with("line 10 ")
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "( AS \"memory\", root: s\n)?(  [0-9a-f]{0,17}-[0-9a-f]{0,17} \\(prio [0-9], (ram|rom)\\): [a @0-9]{0,24}\n){0,4}") {
            let _ = parse(&text, &[("a", 1)]);
        }
    }
}
