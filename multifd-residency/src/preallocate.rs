//! All of a block's memory before it is needed, from all processors.

use crate::new_pages::{Misses, by_stretch};
use multifd_core::sync::lock;
use multifd_core::{BlockError, RamBlock, Region, Run};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Populates all of a block now, with a thread on each processor, as `prealloc=on` does for a QEMU:
/// transfers into it are faster, and a lack of memory shows before they begin. Contents stay the
/// same, also if others write meanwhile.
///
/// With `huge_pages`, 2 MiB that have no pages yet become one huge page if the system can do that.
///
/// # Errors
/// [`BlockError::Memory`] with the system's reason: the file system is full, or has no huge pages
/// left ("bad address"); the block is frozen, or reaches past its file's end; or the system does
/// not know `MADV_POPULATE_WRITE` (Linux 5.14). Some of the block may have pages then. A machine or
/// a control group that runs out of memory ends processes instead.
pub fn preallocate(block: &RamBlock, huge_pages: bool) -> Result<(), BlockError> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // It is mapped: its length fits.
    let len = usize::try_from(block.len()).unwrap_or(usize::MAX);
    let all = by_stretch(Run { offset: 0, len });
    let threads = all.clone().take(threads).count();
    let left = Mutex::new(all);
    let failed = AtomicBool::new(false);
    let misses = Misses::default();
    let work = || {
        while !failed.load(Ordering::Relaxed) {
            let Some(next) = lock(&left).next() else {
                break;
            };
            let region = block.region(next.offset, next.len)?;
            let given = give_pages(region, block.page_size(), huge_pages.then_some(&misses));
            given.map_err(|cause| {
                failed.store(true, Ordering::Relaxed);
                BlockError::Memory {
                    block: block.name().into(),
                    len: block.len(),
                    cause: Arc::new(cause),
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

/// Populates a stretch; with `misses`, by a huge page if that works.
fn give_pages(stretch: Region<'_>, page_size: u32, misses: Option<&Misses>) -> io::Result<()> {
    let worth = misses.filter(|misses| misses.are_few() && !stretch.is_resident());
    if let Some(misses) = worth {
        // There must be one page to begin with: the last, which cannot be had if the file ends
        // before. A huge page could.
        let but_last = stretch.len().saturating_sub(page_size as usize);
        stretch.advanced(but_last).populate()?;
        let made = stretch.collapse();
        misses.note(made);
        if made {
            return Ok(());
        }
    }
    stretch.populate()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{memory_file, resident_count};

    #[test]
    fn all_pages_are_there_and_what_was_in_them() {
        for len in [4096, 2 << 20, (9 << 20) + 8192] {
            let shared = |name| {
                let file = memory_file();
                file.set_len(len).unwrap();
                RamBlock::shared(name, &file, 4096).unwrap()
            };
            let private = RamBlock::anonymous("a", len, 4096).unwrap();
            for (block, huge) in [(shared("s"), true), (shared("n"), false), (private, true)] {
                block.page(len - 4096).unwrap().copy_from(b"last");
                preallocate(&block, huge).unwrap();
                assert_eq!(
                    resident_count(&block),
                    len / 4096,
                    "{} of {len}",
                    block.name()
                );
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
            preallocate(&block, true).unwrap();
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
            match preallocate(&cut, true) {
                Err(BlockError::Memory {
                    block, len: whole, ..
                }) => assert_eq!((&*block, whole), ("s", len)),
                other => panic!("{len:#x} bytes, cut short: {other:?}"),
            }
        }
        let frozen = RamBlock::anonymous("f", 8 << 20, 4096)
            .unwrap()
            .freeze()
            .unwrap();
        assert!(matches!(
            preallocate(&frozen, true),
            Err(BlockError::Memory { .. })
        ));
    }
}
