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

/// What the ELF header says of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// 32-bit: no address is above 4 GiB, and the guest is not in long mode.
    Small,
    /// 64-bit.
    Large,
}

impl CoreFile {
    /// A core of an x86 guest's memory, with notes of its processors: `NT_PRSTATUS`, which gdb reads, and QEMU's own with
    /// the segment and control registers. As in QEMU's cores, it is a 32-bit one where the first processor is not in long mode
    /// and no memory lies above 4 GiB, and one for i386 where it is not in long mode. Without processors it is for x86-64.
    pub fn x86(map: &PhysicalMap, processors: &[Processor]) -> Self {
        let ranges = map.ranges();
        let long_mode = processors.first().is_none_or(Processor::is_in_long_mode);
        let high = ranges
            .iter()
            .any(|range| range.address + range.len - 1 > u64::from(u32::MAX));
        let class = if long_mode || high {
            Class::Large
        } else {
            Class::Small
        };
        let notes = notes::write(processors, long_mode);
        let (ehsize, phentsize, shentsize) = match class {
            Class::Small => (52, 32, 40),
            Class::Large => (64, 56, 64),
        };
        let count = ranges.len() as u64 + 1;
        let section = if count >= PN_XNUM { shentsize } else { 0 };
        let notes_at = ehsize + section + count * phentsize;
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
        let mut out = Words {
            bytes: Vec::new(),
            class,
        };
        let number = match class {
            Class::Small => 1,
            Class::Large => 2,
        };
        // Little-endian, version 1, System V.
        out.bytes.extend([0x7f, b'E', b'L', b'F', number, 1, 1]);
        out.bytes.extend([0; 9]);
        let (core, i386, x86_64) = (4, 3, 62);
        out.half(core);
        out.half(if long_mode { x86_64 } else { i386 });
        out.word(1);
        // No entry; the program headers; the section header, if there is one; no flags.
        out.long(0);
        out.long(ehsize + section);
        out.long(if section > 0 { ehsize } else { 0 });
        out.word(0);
        out.half(ehsize);
        out.half(phentsize);
        out.half(count.min(PN_XNUM));
        out.half(section);
        out.half(u64::from(section > 0));
        out.half(0);
        if section > 0 {
            // Nothing but the number of program headers, in sh_info.
            let before = out.bytes.len();
            let info = match class {
                Class::Small => 28,
                Class::Large => 44,
            };
            out.bytes.resize(before + info, 0);
            out.word(count);
            out.bytes.resize(before + shentsize as usize, 0);
        }
        out.segment(PT_NOTE, notes_at, 0, notes.len() as u64);
        for segment in &segments {
            out.segment(PT_LOAD, segment.at, segment.address, segment.len);
        }
        out.bytes.extend(notes);
        Self {
            head: out.bytes,
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

/// Little-endian words, some of them as wide as the class says.
struct Words {
    bytes: Vec<u8>,
    class: Class,
}

impl Words {
    fn half(&mut self, value: u64) {
        self.bytes.extend((value as u16).to_le_bytes());
    }

    fn word(&mut self, value: u64) {
        self.bytes.extend((value as u32).to_le_bytes());
    }

    fn long(&mut self, value: u64) {
        match self.class {
            Class::Small => self.word(value),
            Class::Large => self.bytes.extend(value.to_le_bytes()),
        }
    }

    fn segment(&mut self, kind: u32, at: u64, address: u64, len: u64) {
        let read_write_execute = 7;
        let flags = if kind == PT_LOAD { read_write_execute } else { 0 };
        self.word(kind.into());
        if self.class == Class::Large {
            self.word(flags);
        }
        // Offset; virtual and physical address, which are the same here; bytes in the file and in memory.
        for value in [at, address, address, len, len] {
            self.long(value);
        }
        if self.class == Class::Small {
            self.word(flags);
        }
        self.long(if kind == PT_LOAD { ALIGN } else { 4 });
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
