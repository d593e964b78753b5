//! All of a block's memory before it is needed, from all processors.

use crate::memory::{HUGE, Region};
use crate::{BlockError, RamBlock};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What one thread does at a time.
const STRETCH: u64 = HUGE as u64;

impl RamBlock {
    /// Gives all of the memory its pages now, with a thread on each processor, as `prealloc=on` does for a QEMU: a destination that has them when a
    /// transfer begins is done sooner, and a system that has not enough memory says so before it. Contents stay as they are, also if
    /// somebody writes meanwhile.
    ///
    /// Where 2 MiB have no pages yet, they become one huge page if the system can do that; see [`RamBlock::without_huge_pages`]
    /// for when it does, and for how not to have them.
    ///
    /// # Errors
    /// [`BlockError::Memory`] with the system's reason: there is not enough memory, or it is frozen, or cut off from the file's end, or no
    /// page of it can be asked for (`MADV_POPULATE_WRITE`, Linux 5.14). Some of it may have its pages then.
    pub fn preallocate(&self) -> Result<(), BlockError> {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let stretches = usize::try_from(self.len().div_ceil(STRETCH)).unwrap_or(usize::MAX);
        let next = AtomicU64::new(0);
        let failed = AtomicBool::new(false);
        let work = || {
            while !failed.load(Ordering::Relaxed) {
                let offset = next.fetch_add(STRETCH, Ordering::Relaxed);
                if offset >= self.len() {
                    break;
                }
                let len = usize::try_from((self.len() - offset).min(STRETCH)).unwrap_or(HUGE);
                self.give_pages(self.region(offset, len)?).map_err(|source| {
                    failed.store(true, Ordering::Relaxed);
                    BlockError::Memory {
                        block: self.name().into(),
                        len: self.len(),
                        source: Arc::new(source),
                    }
                })?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads.min(stretches))
                .filter_map(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok())
                .collect();
            let own = work();
            others.into_iter().fold(own, |result, other| {
                let other = other
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                result.and(other)
            })
        })
    }

    fn give_pages(&self, stretch: Region<'_>) -> io::Result<()> {
        if self.huge_pages && !stretch.is_resident() {
            // There has to be one page to begin with.
            stretch.truncated(self.page_size() as usize).populate()?;
            if stretch.make_huge() {
                return Ok(());
            }
        }
        stretch.populate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::memory_file;

    fn resident(block: &RamBlock) -> usize {
        let pages = (0..block.len()).step_by(4096);
        pages
            .filter(|&offset| block.page(offset).unwrap().is_resident())
            .count()
    }

    #[test]
    fn all_pages_are_there_and_what_was_in_them() {
        for len in [4096, 2 << 20, (9 << 20) + 8192] {
            let file = memory_file();
            file.set_len(len).unwrap();
            let shared = RamBlock::shared("s", &file, 4096).unwrap();
            let small = RamBlock::shared("n", &file, 4096).unwrap().without_huge_pages();
            let private = RamBlock::anonymous("a", len, 4096).unwrap();
            for block in [shared, small, private] {
                block.page(len - 4096).unwrap().copy_from(b"last");
                block.preallocate().unwrap();
                assert_eq!(resident(&block), len as usize / 4096, "{} of {len}", block.name());
                let mut found = [0; 4];
                block.page(len - 4096).unwrap().copy_to(&mut found);
                assert_eq!(&found, b"last");
                assert!(block.region(0, len as usize - 4096).unwrap().is_zero());
            }
        }
    }

    #[test]
    fn what_others_write_meanwhile_stays() {
        const LEN: u64 = 32 << 20;
        let file = memory_file();
        file.set_len(LEN).unwrap();
        let block = RamBlock::shared("s", &file, 4096).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for page in (0..LEN / 4096).rev() {
                    let offset = page * 4096;
                    block.page(offset).unwrap().copy_from(&offset.to_le_bytes());
                }
            });
            block.preallocate().unwrap();
        });
        for offset in (0..LEN).step_by(4096) {
            let mut found = [0; 8];
            block.page(offset).unwrap().copy_to(&mut found);
            assert_eq!(u64::from_le_bytes(found), offset);
        }
    }

    #[test]
    fn memory_that_can_not_be_had_is_an_error() {
        let file = memory_file();
        file.set_len(8 << 20).unwrap();
        let block = RamBlock::shared("s", &file, 4096).unwrap();
        file.set_len(3 << 20).unwrap();
        let refused = block.preallocate().unwrap_err();
        assert!(
            matches!(&refused, BlockError::Memory { block, len: 0x80_0000, .. } if block == "s"),
            "{refused}"
        );
        let frozen = RamBlock::anonymous("f", 8 << 20, 4096).unwrap().freeze().unwrap();
        assert!(matches!(frozen.preallocate(), Err(BlockError::Memory { .. })));
    }
}
