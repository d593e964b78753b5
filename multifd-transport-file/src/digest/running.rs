//! Checksums of a block's chunks, kept up to date while pages are written in any order.

use super::{CHUNK, zeros};
use multifd_core::Iov;
use std::sync::atomic::{AtomicU32, Ordering};

/// The polynomial of CRC-32, lowest power in the highest bit.
const POLYNOMIAL: u32 = 0xedb8_8320;
/// Bytes copied at a time.
const ROOM: usize = 16 << 10;

/// One checksum for each chunk of a block, in 4 bytes a chunk.
///
/// CRC-32 is linear: the checksum of a chunk is that of as many zeros, exclusive-or a share of each
/// piece that depends on the piece's bytes and place alone. Adding a piece twice takes it away
/// again, which is how a page that is rewritten is taken out first.
pub(crate) struct RunningSums {
    shares: Vec<AtomicU32>,
    len: u64,
}

impl RunningSums {
    /// Those of `len` zeros.
    pub(crate) fn new(len: u64) -> Self {
        let count = usize::try_from(len.div_ceil(CHUNK)).unwrap_or(usize::MAX);
        Self {
            shares: (0..count).map(|_| AtomicU32::new(0)).collect(),
            len,
        }
    }

    /// Adds contents at `offset` to where there were zeros, or takes away what has been added
    /// there.
    pub(crate) fn toggle(&self, offset: u64, contents: Iov<'_>) {
        let mut room = [0; ROOM];
        let (mut at, mut left) = (offset, contents);
        while !left.is_empty() {
            let chunk = at / CHUNK;
            let end = ((chunk + 1) * CHUNK).min(self.len);
            let piece = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
            let piece = left.shortened(piece);
            if piece.is_empty() {
                return;
            }
            let mut hasher = crc32fast::Hasher::new_with_initial(u32::MAX);
            let mut unread = piece;
            while !unread.is_empty() {
                let n = unread.copy_to(&mut room);
                hasher.update(room.get(..n).unwrap_or_default());
                unread = unread.advanced(n);
            }
            // A register that starts from nothing, without the final inversion.
            let share = !hasher.finalize();
            at += piece.len() as u64;
            if let Some(sum) = self
                .shares
                .get(usize::try_from(chunk).unwrap_or(usize::MAX))
            {
                sum.fetch_xor(shifted(share, end - at), Ordering::Relaxed);
            }
            left = left.advanced(piece.len());
        }
    }

    /// The checksums.
    pub(crate) fn sums(&self) -> Vec<u32> {
        let sum = |(chunk, share): (usize, &AtomicU32)| {
            let len = CHUNK.min(self.len - chunk as u64 * CHUNK);
            zeros(usize::try_from(len).unwrap_or(0)) ^ share.load(Ordering::Relaxed)
        };
        self.shares.iter().enumerate().map(sum).collect()
    }
}

/// The register `share` after `bytes` zeros more.
fn shifted(mut share: u32, mut bytes: u64) -> u32 {
    // x to the power of 8 times 1, 2, 4, ...: a byte, two, four.
    let mut power = 1 << 23;
    while bytes > 0 {
        if bytes & 1 != 0 {
            share = product(share, power);
        }
        power = product(power, power);
        bytes >>= 1;
    }
    share
}

/// The product of two polynomials over GF(2), modulo that of CRC-32.
fn product(one: u32, mut other: u32) -> u32 {
    let mut sum = 0;
    for bit in (0..32).rev() {
        sum ^= other & (one >> bit & 1).wrapping_neg();
        other = other >> 1 ^ POLYNOMIAL & (other & 1).wrapping_neg();
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::super::checksum;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn they_are_those_of_the_whole_whatever_the_order(
            writes in proptest::collection::vec((0u64..600, 1usize..80, any::<u8>()), 0..60),
        ) {
            // Two chunks and a part of a third.
            let len = 2 * CHUNK + 88 * 4096;
            let mut memory = vec![0u8; len as usize];
            let running = RunningSums::new(len);
            for (page, pages, byte) in writes {
                let start = (page * 4096).min(len - 4096) as usize;
                let end = (start + pages * 4096).min(len as usize);
                running.toggle(start as u64, Iov::from(&memory[start..end]));
                for (at, to) in memory[start..end].iter_mut().enumerate() {
                    *to = byte.wrapping_mul((at % 251) as u8);
                }
                running.toggle(start as u64, Iov::from(&memory[start..end]));
            }
            let whole: Vec<u32> = memory.chunks(CHUNK as usize).map(checksum).collect();
            prop_assert_eq!(running.sums(), whole);
        }
    }
}
