//! An ELF core of guest physical memory, as QEMU's `dump-guest-memory` writes it.

mod notes;
mod processor;

use crate::PhysicalMap;
pub use processor::Processor;

/// Where page data begins in the file, and what it is aligned to.
const ALIGN: u64 = 4096;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// From so many program headers on, a section header has their number.
const PN_XNUM: u64 = 0xffff;

/// A piece of a RAM block, and where it lies in the core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreSegment {
    /// The RAM block's name.
    pub block: String,
    /// Offset in the block, bytes.
    pub offset: u64,
    /// Guest physical address.
    pub address: u64,
    /// Bytes.
    pub len: u64,
    /// Offset in the core, bytes.
    pub at: u64,
}

/// A core: what stands before the memory, and where each piece of memory goes.
#[derive(Debug, Clone)]
pub struct CoreFile {
    /// The ELF header, the program headers and the notes: the first bytes of the file.
    pub head: Vec<u8>,
    /// The memory, in order.
    pub segments: Vec<CoreSegment>,
}

impl CoreFile {
    /// A core of an x86 guest's memory, with notes of its processors: `NT_PRSTATUS`, which gdb
    /// reads, and QEMU's own with the segment and control registers. It is one for x86-64 always;
    /// QEMU writes a 32-bit one for a guest that is not in long mode and has no memory above 4 GiB.
    pub fn x86(map: &PhysicalMap, processors: &[Processor]) -> Self {
        let (ehsize, phentsize, shentsize): (u16, u16, u16) = (64, 56, 64);
        let ranges = map.ranges();
        let notes = notes::write(processors);
        let count = ranges.len() as u64 + 1;
        let section = if count >= PN_XNUM { shentsize } else { 0 };
        let headers = u64::from(ehsize + section);
        let notes_at = headers + count * u64::from(phentsize);
        let mut at = (notes_at + notes.len() as u64).next_multiple_of(ALIGN);
        let segments: Vec<CoreSegment> = ranges
            .iter()
            .map(|range| {
                let segment = CoreSegment {
                    block: range.block.clone(),
                    offset: range.offset,
                    address: range.address,
                    len: range.len,
                    at,
                };
                at += range.len;
                segment
            })
            .collect();
        // 64-bit, little-endian, version 1, System V.
        let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let (core, x86_64): (u16, u16) = (4, 62);
        out.extend(core.to_le_bytes());
        out.extend(x86_64.to_le_bytes());
        out.extend(1u32.to_le_bytes());
        // No entry; the program headers; the section header, if there is one; no flags.
        let section_at = if section > 0 { u64::from(ehsize) } else { 0 };
        for value in [0, headers, section_at] {
            out.extend(value.to_le_bytes());
        }
        out.extend(0u32.to_le_bytes());
        let number = count.min(PN_XNUM) as u16;
        for value in [
            ehsize,
            phentsize,
            number,
            section,
            u16::from(section > 0),
            0,
        ] {
            out.extend(value.to_le_bytes());
        }
        if section > 0 {
            // Nothing but the number of program headers, in sh_info.
            out.resize(section_at as usize + 44, 0);
            out.extend((count as u32).to_le_bytes());
            out.resize(headers as usize, 0);
        }
        push_segment(&mut out, PT_NOTE, (notes_at, 0, notes.len() as u64));
        for segment in &segments {
            push_segment(
                &mut out,
                PT_LOAD,
                (segment.at, segment.address, segment.len),
            );
        }
        out.extend(notes);
        Self {
            head: out,
            segments,
        }
    }

    /// Bytes of the whole core.
    pub fn len(&self) -> u64 {
        let last = self.segments.last().map_or(0, |last| last.at + last.len);
        last.max(self.head.len() as u64)
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Appends a program header: offset in the file, address, bytes.
fn push_segment(out: &mut Vec<u8>, kind: u32, (at, address, len): (u64, u64, u64)) {
    let read_write_execute = 7;
    let (flags, align) = if kind == PT_LOAD {
        (read_write_execute, ALIGN)
    } else {
        (0u32, 4)
    };
    out.extend(kind.to_le_bytes());
    out.extend(flags.to_le_bytes());
    // Virtual and physical address are the same here, and so are the bytes in the file and in
    // memory.
    for value in [at, address, address, len, len, align] {
        out.extend(value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PhysicalRange;

    fn map(count: u64, first: u64) -> PhysicalMap {
        let range = |number| PhysicalRange {
            address: first + number * 0x2000,
            len: 0x1000,
            block: "ram".into(),
            offset: number * 0x1000,
        };
        PhysicalMap::new((0..count).map(range).collect()).unwrap()
    }

    fn long(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn the_headers_say_where_memory_lies() {
        let core = CoreFile::x86(&map(2, 0x10_0000), &[]);
        assert_eq!(core.head.len(), 64 + 3 * 56);
        assert_eq!((core.head[4], core.head[18]), (2, 62));
        let load = 64 + 2 * 56;
        assert_eq!(long(&core.head, load + 8), core.segments[1].at);
        assert_eq!(long(&core.head, load + 24), 0x10_2000);
        assert_eq!(core.segments[1].at, 0x2000);
        assert_eq!(core.len(), 0x3000);
    }

    #[test]
    fn very_many_pieces_have_their_number_in_a_section_header() {
        let core = CoreFile::x86(&map(70_000, 0), &[]);
        assert_eq!(u16::from_le_bytes([core.head[56], core.head[57]]), 0xffff);
        assert_eq!(long(&core.head, 40), 64, "the section header");
        assert_eq!(
            u32::from_le_bytes(core.head[64 + 44..64 + 48].try_into().unwrap()),
            70_001
        );
        assert_eq!(long(&core.head, 32), 128, "the program headers");
        assert_eq!(core.head.len(), 128 + 70_001 * 56);
    }
}
