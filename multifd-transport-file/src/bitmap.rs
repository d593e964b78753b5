//! The bitmap of stored pages, set by all channels at once.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bit `i % 64` of word `i / 64` says that page `i` is stored.
#[derive(Debug)]
pub(crate) struct SharedBitmap(Vec<AtomicU64>);

impl SharedBitmap {
    pub(crate) fn new(pages: u64) -> Self {
        let words = usize::try_from(pages.div_ceil(64)).unwrap_or(usize::MAX);
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    /// The words a range of pages touches, with its bits in each.
    fn masks(pages: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
        let mut at = pages.start;
        std::iter::from_fn(move || {
            let n = (64 - at % 64).min(pages.end.checked_sub(at).filter(|&n| n > 0)?);
            let bits = if n == 64 {
                u64::MAX
            } else {
                ((1 << n) - 1) << (at % 64)
            };
            let word = usize::try_from(at / 64).ok()?;
            at += n;
            Some((word, bits))
        })
    }

    pub(crate) fn set(&self, pages: Range<u64>) {
        for (word, bits) in Self::masks(pages) {
            if let Some(word) = self.0.get(word) {
                word.fetch_or(bits, Ordering::Relaxed);
            }
        }
    }

    /// Clears a range of pages; returns whether any of them was set.
    pub(crate) fn clear(&self, pages: Range<u64>) -> bool {
        let mut any = false;
        for (word, bits) in Self::masks(pages) {
            if let Some(word) = self.0.get(word) {
                // Reading first keeps the word shared between channels while nothing changes.
                if word.load(Ordering::Relaxed) & bits != 0 {
                    any |= word.fetch_and(!bits, Ordering::Relaxed) & bits != 0;
                }
            }
        }
        any
    }

    /// The pages of a range that are set, as runs in order.
    #[cfg(feature = "digest")]
    pub(crate) fn runs(&self, pages: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let is_set = |page: u64| {
            let word = usize::try_from(page / 64)
                .ok()
                .and_then(|at| self.0.get(at));
            word.is_some_and(|word| word.load(Ordering::Relaxed) >> (page % 64) & 1 != 0)
        };
        let mut at = pages.start;
        std::iter::from_fn(move || {
            let start = (at..pages.end).find(|&page| is_set(page))?;
            let end = (start..pages.end).find(|&page| !is_set(page));
            at = end.unwrap_or(pages.end);
            Some(start..at)
        })
    }

    /// The bitmap as it lies in the file: little-endian words.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let words = self.0.iter().map(|word| word.load(Ordering::Relaxed));
        words.flat_map(u64::to_le_bytes).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use multifd_packet::Bitmap;

    #[test]
    fn ranges_across_words_are_set_and_cleared_exactly() {
        for (start, end) in [
            (0, 1),
            (0, 64),
            (63, 65),
            (1, 200),
            (64, 128),
            (130, 130),
            (199, 200),
        ] {
            let map = SharedBitmap::new(200);
            map.set(start..end);
            let bytes = map.to_bytes();
            assert_eq!(bytes.len(), 32);
            let view = Bitmap::new(&bytes);
            assert!((0..200).all(|page| view.contains(page) == (start..end).contains(&page)));
            assert!(!map.clear(0..start));
            #[cfg(feature = "digest")]
            assert_eq!(
                map.runs(0..200).flatten().collect::<Vec<_>>(),
                (start..end).collect::<Vec<_>>()
            );
            assert_eq!(map.clear(0..200), start < end);
            assert_eq!(Bitmap::new(&map.to_bytes()).count(), 0);
        }
    }
}
