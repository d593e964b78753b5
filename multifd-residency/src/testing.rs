//! Memory for this crate's tests.

use multifd_core::memory::memmap2::MmapMut;
use multifd_core::{RamBlock, RamMap, Region};
use std::fs::File;

/// An empty file in memory.
pub(crate) fn memory_file() -> File {
    rustix::fs::memfd_create("residency", rustix::fs::MemfdFlags::empty())
        .unwrap()
        .into()
}

/// One block of new memory, which gets huge pages only when they are asked for, unless this system
/// is set up otherwise.
pub(crate) fn new_ram(len: u64) -> RamMap {
    let file = memory_file();
    file.set_len(len).unwrap();
    let mut ram = RamMap::new();
    ram.add(RamBlock::shared("b", &file, 4096).unwrap())
        .unwrap();
    ram
}

/// One block of new memory that does not begin at a huge page's border.
pub(crate) fn unaligned_ram(len: u64) -> RamMap {
    let mut aligned = Vec::new();
    loop {
        let map = MmapMut::map_anon(len as usize).unwrap();
        if map.as_ptr().addr().is_multiple_of(Region::HUGE) {
            // Kept, so that the next one lies elsewhere.
            aligned.push(map);
            continue;
        }
        let mut ram = RamMap::new();
        ram.add(RamBlock::from_mmap("b", map, 4096).unwrap())
            .unwrap();
        return ram;
    }
}

/// The offsets of the pages that have memory.
pub(crate) fn resident_pages(block: &RamBlock) -> Vec<u64> {
    let pages = (0..block.len()).step_by(4096);
    pages
        .filter(|&offset| block.page(offset).unwrap().is_resident())
        .collect()
}

/// How many pages have memory.
pub(crate) fn resident_count(block: &RamBlock) -> u64 {
    resident_pages(block).len() as u64
}

/// Whether this system gives huge pages when asked.
pub(crate) fn has_huge_pages() -> bool {
    let ram = new_ram(Region::HUGE as u64);
    let block = &ram.blocks()[0];
    block.page(0).unwrap().populate().unwrap();
    let given = block.region(0, Region::HUGE).unwrap().collapse();
    if !given {
        eprintln!("skipped in part: this system makes no huge pages");
    }
    given
}
