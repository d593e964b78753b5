//! Which pages are known to be zero without a look at them: a look alone can give a page memory of its own.

use crate::new_pages::{NewPages, by_stretch};
use crate::{RamBlock, Run};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Pages that are worth a system call.
const FEWEST: usize = 4;

/// A bit for each page that something has been written to.
#[derive(Debug)]
pub(crate) struct KnownZeros {
    written: Vec<AtomicU64>,
    /// Memory that was given its pages before needs no more of them.
    pub(crate) pages: NewPages,
    /// Others may write now.
    over: AtomicBool,
}

impl KnownZeros {
    fn new(pages: u64, page_size: u64) -> Self {
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Self {
            written: (0..count(pages.div_ceil(64)))
                .map(|_| AtomicU64::new(0))
                .collect(),
            pages: NewPages::new(pages * page_size),
            over: AtomicBool::new(false),
        }
    }

    fn note(&self, page: u64) {
        if let Some(word) = self.written.get((page / 64) as usize) {
            word.fetch_or(1 << (page % 64), Ordering::Relaxed);
        }
    }

    fn is_zero(&self, page: u64) -> bool {
        let word = self.written.get((page / 64) as usize);
        let written = word.is_none_or(|word| word.load(Ordering::Relaxed) & (1 << (page % 64)) != 0);
        !written && !self.over.load(Ordering::Relaxed)
    }
}

impl RamBlock {
    /// The block, whose memory is all zero now and is written to by nobody but who receives into it, up to
    /// [`RamBlock::forget_zeros`]. A zero page that comes for a page nothing has come for is then not even looked at: looking at memory
    /// that is shared gives it a page.
    #[must_use]
    pub fn with_known_zeros(mut self) -> Self {
        let page_size = u64::from(self.page_size());
        self.known_zeros = Some(KnownZeros::new(self.len() / page_size, page_size));
        self
    }

    /// From now on others may write, as a guest does: every page has to be looked at again.
    pub fn forget_zeros(&self) {
        if let Some(zeros) = &self.known_zeros {
            zeros.over.store(true, Ordering::Relaxed);
        }
    }

    /// Notes that `len` bytes from `offset`, whole pages, are about to be written. A [`Receiver`](crate::Receiver) does that for what it
    /// receives; it is for whoever else puts contents into a block with known zeros, and does nothing to others.
    ///
    /// The system gives the first of them that are new their pages at once, where it can: one after another, by a fault each, that
    /// takes longer, and holds up the connection they come over. Where many are new, that is a huge page (see
    /// [`RamBlock::without_huge_pages`]).
    pub fn prepare_to_write(&self, offset: u64, len: usize) {
        let Some(new) = self.note_writes(offset, len) else {
            return;
        };
        if !self.is_worth_a_call(new) {
            return;
        }
        self.give_huge_pages(by_stretch(new));
        for piece in by_stretch(new).filter(|piece| self.lacks_pages(*piece)) {
            self.populate(piece);
        }
    }

    /// Whether a run is long enough to be given its pages by a system call.
    pub(crate) fn is_worth_a_call(&self, run: Run) -> bool {
        run.len >= FEWEST * self.page_size() as usize
    }

    /// Gives a run its pages. One that does not lie in the block is left alone, and refused when it is to be written.
    pub(crate) fn populate(&self, run: Run) {
        if let Ok(region) = self.region(run.offset, run.len) {
            // It need not: then each page comes when it is written.
            let _ = region.populate();
        }
    }

    /// Notes that `len` bytes from `offset` are about to be written; returns the first of them that are new.
    pub(crate) fn note_writes(&self, offset: u64, len: usize) -> Option<Run> {
        let zeros = self.known_zeros.as_ref()?;
        let page_size = self.page_size() as usize;
        let first = offset / page_size as u64;
        let pages = len / page_size;
        let count = (first..)
            .take(pages)
            .take_while(|&page| zeros.is_zero(page))
            .count();
        for page in (first..).take(pages) {
            zeros.note(page);
        }
        let new = Run {
            offset,
            len: count * page_size,
        };
        (count > 0 && self.region(new.offset, new.len).is_ok()).then_some(new)
    }

    /// Makes the page at `offset` (bytes) zero, if it is not known to be.
    ///
    /// # Errors
    /// [`BlockError::Outside`](crate::BlockError::Outside) unless it lies in the block whole.
    pub fn clear_page(&self, offset: u64) -> Result<(), crate::BlockError> {
        let page = self.page(offset)?;
        let known = self.known_zeros.as_ref();
        if !known.is_some_and(|zeros| zeros.is_zero(offset / u64::from(self.page_size()))) {
            page.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_looked_at_only_if_something_was_written_to_it() {
        let block = RamBlock::anonymous("b", 130 * 4096, 4096)
            .unwrap()
            .with_known_zeros();
        let filled = |page: u64| !block.page(page * 4096).unwrap().is_zero();
        for page in [0, 63, 64, 129] {
            // Written behind its back: it believes that the page is zero still.
            block.page(page * 4096).unwrap().copy_from(&[1]);
            block.clear_page(page * 4096).unwrap();
            assert!(filled(page));
            block.prepare_to_write(page * 4096, 4096);
            block.clear_page(page * 4096).unwrap();
            assert!(!filled(page));
        }
        block.page(4096).unwrap().copy_from(&[1]);
        block.forget_zeros();
        block.clear_page(4096).unwrap();
        assert!(!filled(1));
        assert!(block.clear_page(130 * 4096).is_err());
    }
}
