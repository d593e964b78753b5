//! All of a block's memory before it is needed, from all processors.

use crate::memory::Region;
use crate::new_pages::{Misses, by_stretch};
use crate::shutdown::lock;
use crate::{BlockError, RamBlock, Run};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

impl RamBlock {
    /// Gives all of the memory its pages now, with a thread on each processor, as `prealloc=on` does for a QEMU: a destination that has them when a
    /// transfer begins is done sooner, and memory that can not be had shows before it. Contents stay as they are, also if
    /// somebody writes meanwhile.
    ///
    /// Where 2 MiB have no pages yet, they become one huge page if the system can do that; see [`RamBlock::without_huge_pages`]
    /// for when it does, and for how not to have them.
    ///
    /// # Errors
    /// [`BlockError::Memory`] with the system's reason: the file system that it lies on has no room for it, or no huge pages left ("bad address"); it is frozen, or
    /// reaches past its file's end; or it can not be asked for (`MADV_POPULATE_WRITE`, Linux 5.14). Some of it may have its pages then. A
    /// machine or a control group that runs out of memory ends processes instead, as ever.
    pub fn preallocate(&self) -> Result<(), BlockError> {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        // It is mapped: its length is one that can be.
        let len = usize::try_from(self.len()).unwrap_or(usize::MAX);
        let all = by_stretch(Run { offset: 0, len });
        let threads = all.clone().take(threads).count();
        let left = Mutex::new(all);
        let failed = AtomicBool::new(false);
        let misses = Misses::default();
        let work = || {
            while !failed.load(Ordering::Relaxed) {
                let Some(next) = lock(&left).next() else { break };
                self.give_pages(self.region(next.offset, next.len)?, &misses)
                    .map_err(|source| {
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
            let others: Vec<_> = (1..threads)
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

    fn give_pages(&self, stretch: Region<'_>, misses: &Misses) -> io::Result<()> {
        if self.huge_pages && misses.are_few() && !stretch.is_resident() {
            // There has to be one page to begin with: the last, which is not to be had if the file ends before. A huge one is.
            let but_last = stretch.len().saturating_sub(self.page_size() as usize);
            stretch.advanced(but_last).populate()?;
            let made = stretch.make_huge();
            misses.note(made);
            if made {
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
    use crate::new_pages::tests::resident;

    #[test]
    fn all_pages_are_there_and_what_was_in_them() {
        for len in [4096, 2 << 20, (9 << 20) + 8192] {
            let shared = |name| {
                let file = memory_file();
                file.set_len(len).unwrap();
                RamBlock::shared(name, &file, 4096).unwrap()
            };
            let small = shared("n").without_huge_pages();
            let private = RamBlock::anonymous("a", len, 4096).unwrap();
            for block in [shared("s"), small, private] {
                block.page(len - 4096).unwrap().copy_from(b"last");
                block.preallocate().unwrap();
                assert_eq!(resident(&block), len / 4096, "{} of {len}", block.name());
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
        // The end is in the last of its stretches, or before.
        for len in [4 << 20, 8 << 20] {
            let file = memory_file();
            file.set_len(len).unwrap();
            let cut = RamBlock::shared("s", &file, 4096).unwrap();
            file.set_len(3 << 20).unwrap();
            match cut.preallocate() {
                Err(BlockError::Memory {
                    block, len: whole, ..
                }) => assert_eq!((&*block, whole), ("s", len)),
                other => panic!("{len:#x} bytes, cut short: {other:?}"),
            }
        }
        let frozen = RamBlock::anonymous("f", 8 << 20, 4096).unwrap().freeze().unwrap();
        assert!(matches!(frozen.preallocate(), Err(BlockError::Memory { .. })));
    }
}
