//! A memory image like a guest's: zero pages, pages that compress, and pages that do not, in runs.

use multifd_core::{BlockError, RamBlock};

const PAGE: usize = 4096;
const WORDS: [&str; 16] = [
    "page", "guest", "kernel", "0000", "inode", "cache", "struct", "list", "next", "prev",
    "buffer", "socket", "thread", "state", "lock", "queue",
];

/// xorshift: the same image for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % (n as u64).max(1)).unwrap_or(0)
    }
}

/// Fills a block: 30 % zero, 40 % compressible, 30 % random pages, in runs of 1 to 64 pages.
pub(crate) fn fill(block: &RamBlock, seed: u64) -> Result<(), BlockError> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut page = [0u8; PAGE];
    let mut left = 0;
    let mut kind = 0;
    for offset in (0..block.len()).step_by(PAGE) {
        if left == 0 {
            left = 1 + random.below(64);
            kind = random.below(10);
        }
        left -= 1;
        match kind {
            0..3 => continue,
            3..7 => text(&mut page, &mut random),
            _ => page
                .chunks_exact_mut(8)
                .for_each(|chunk| chunk.copy_from_slice(&random.next().to_le_bytes())),
        }
        block.page(offset)?.copy_from(&page);
    }
    Ok(())
}

/// Words and small numbers, as in a page of text or of pointers.
fn text(page: &mut [u8; PAGE], random: &mut Random) {
    let mut room = page.as_mut_slice();
    while !room.is_empty() {
        let bits = random.next();
        let word = WORDS.get((bits & 15) as usize).copied().unwrap_or_default();
        let number = (bits >> 8 & 0xffff).to_le_bytes();
        let bytes = word.bytes().chain(number);
        let len = (word.len() + number.len()).min(room.len());
        let (now, rest) = room.split_at_mut(len);
        now.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        room = rest;
    }
}

/// The first offset at which two blocks differ.
pub(crate) fn first_difference(a: &RamBlock, b: &RamBlock) -> Result<Option<u64>, BlockError> {
    let (mut one, mut other) = ([0; PAGE], [0; PAGE]);
    for offset in (0..a.len()).step_by(PAGE) {
        a.page(offset)?.copy_to(&mut one);
        b.page(offset)?.copy_to(&mut other);
        if let Some(at) = one.iter().zip(&other).position(|(x, y)| x != y) {
            return Ok(Some(offset + at as u64));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_has_pages_of_each_kind_and_depends_on_the_seed_alone() {
        let block = |seed| {
            let block = RamBlock::anonymous("b", 2000 * 4096, 4096).unwrap();
            fill(&block, seed).unwrap();
            block
        };
        let (a, b, c) = (block(1), block(1), block(2));
        assert_eq!(first_difference(&a, &b).unwrap(), None);
        assert!(first_difference(&a, &c).unwrap().is_some());
        let zero = (0..2000)
            .filter(|page| a.page(page * 4096).unwrap().is_zero())
            .count();
        assert!((300..900).contains(&zero), "{zero}");
        b.page(1999 * 4096).unwrap().advanced(4095).copy_from(&[77]);
        assert_eq!(first_difference(&a, &b).unwrap(), Some(2000 * 4096 - 1));
    }
}
