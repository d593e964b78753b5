//! A thread that fills new memory.

use crate::new_pages::by_stretch;
use crate::populate::{CHUNK, populate};
use crate::shared::Shared;
use multifd_core::memory::RamWriter;
use multifd_core::{BlockError, RamBlock, Run};
use std::collections::VecDeque;
use std::sync::Arc;

/// Fewest pages of a run that are worth a system call.
const FEWEST: usize = 4;

/// Prepares memory for one thread that fills it; made by
/// [`Residency::writer`](crate::Residency::writer).
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    /// Its slot in the pool; without one, it works alone.
    slot: Option<usize>,
    /// Empty between calls.
    runs: VecDeque<Run>,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, counts: bool) -> Self {
        Self {
            slot: counts.then(|| shared.pool.add_user()),
            shared,
            runs: VecDeque::new(),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.slot.is_some() {
            self.shared.pool.remove_user();
        }
    }
}

impl RamWriter for Writer {
    fn prepare(&mut self, block: &Arc<RamBlock>, runs: &mut dyn Iterator<Item = Run>) {
        let Self {
            shared,
            slot,
            runs: left,
        } = self;
        let Some(new) = shared.new_block(block) else {
            return;
        };
        let first_writes = runs.filter_map(|run| new.note_writes(block, run));
        left.extend(first_writes.flat_map(by_stretch));
        if shared.allows_huge_pages() {
            new.give_huge_pages(block, left.iter().copied());
        }
        let fewest = FEWEST * block.page_size() as usize;
        left.retain(|run| run.len >= fewest && new.lacks_pages(block, *run));
        let len: usize = left.iter().map(|run| run.len).sum();
        match *slot {
            Some(slot) if len > CHUNK && shared.pool.has_processors_left() => {
                shared.pool.share(slot, block, left);
            }
            _ => left.drain(..).for_each(|run| populate(block, run)),
        }
    }

    fn clear(&mut self, block: &Arc<RamBlock>, offset: u64) -> Result<(), BlockError> {
        let page = block.page(offset)?;
        let known = self.shared.new_block(block);
        if !known.is_some_and(|new| new.is_zero(offset)) {
            page.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Residency;
    use multifd_core::RamMap;

    #[test]
    fn a_page_is_looked_at_only_if_something_was_written_to_it() {
        let mut ram = RamMap::new();
        ram.add(RamBlock::anonymous("b", 130 * 4096, 4096).unwrap())
            .unwrap();
        let block = &ram.blocks()[0];
        let residency = Residency::of_new(&ram);
        let mut writer = residency.writer();
        let filled = |page: u64| !block.page(page * 4096).unwrap().is_zero();
        for page in [0, 63, 64, 129] {
            // Written behind its back: it believes that the page is zero still.
            block.page(page * 4096).unwrap().copy_from(&[1]);
            writer.clear(block, page * 4096).unwrap();
            assert!(filled(page));
            let run = Run {
                offset: page * 4096,
                len: 4096,
            };
            writer.prepare(block, &mut [run].into_iter());
            writer.clear(block, page * 4096).unwrap();
            assert!(!filled(page));
        }
        block.page(4096).unwrap().copy_from(&[1]);
        residency.end();
        writer.clear(block, 4096).unwrap();
        assert!(!filled(1));
        assert!(writer.clear(block, 130 * 4096).is_err());
    }
}
