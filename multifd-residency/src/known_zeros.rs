//! Which pages are known to be zero without a look: looking can already give a page memory.

use std::sync::atomic::{AtomicU64, Ordering};

/// A bit for each page that has been written to.
#[derive(Debug)]
pub(crate) struct KnownZeros {
    written: Vec<AtomicU64>,
}

impl KnownZeros {
    /// None of `pages` pages has been written to.
    pub(crate) fn new(pages: u64) -> Self {
        let words = usize::try_from(pages.div_ceil(64)).unwrap_or(usize::MAX);
        Self {
            written: (0..words).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Notes that a page is about to be written.
    pub(crate) fn note(&self, page: u64) {
        if let Some(word) = self.written.get((page / 64) as usize) {
            word.fetch_or(1 << (page % 64), Ordering::Relaxed);
        }
    }

    /// Whether nothing has been written to a page.
    pub(crate) fn contains(&self, page: u64) -> bool {
        let word = self.written.get((page / 64) as usize);
        word.is_some_and(|word| word.load(Ordering::Relaxed) & (1 << (page % 64)) == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_known_until_it_is_written() {
        let zeros = KnownZeros::new(130);
        for page in [0, 63, 64, 129] {
            assert!(zeros.contains(page));
            zeros.note(page);
            assert!(!zeros.contains(page));
        }
        assert!(zeros.contains(1));
        // Beyond its last word nothing is known.
        assert!(!zeros.contains(1000));
    }
}
