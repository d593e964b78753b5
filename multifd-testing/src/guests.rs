//! Small guests.

use multifd_core::{RamBlock, RamMap};

/// A guest of one block of `pages` pages of 4096 bytes.
pub fn guest(name: &str, pages: u64) -> RamMap {
    let mut map = RamMap::new();
    map.add(RamBlock::anonymous(name, pages * 4096, 4096).unwrap())
        .unwrap();
    map
}

/// Writes `text` at the start of a page of the first block.
pub fn write(map: &RamMap, page: u64, text: &str) {
    map.blocks()[0]
        .page(page * 4096)
        .unwrap()
        .copy_from(text.as_bytes());
}

/// All bytes of a map, block after block.
pub fn bytes(map: &RamMap) -> Vec<u8> {
    let mut all = Vec::new();
    for block in map.blocks() {
        let mut part = vec![0; block.len() as usize];
        block.region(0, part.len()).unwrap().copy_to(&mut part);
        all.extend(part);
    }
    all
}
