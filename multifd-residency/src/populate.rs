//! The system call that gives memory its pages.

use multifd_core::{RamBlock, Run};

/// Bytes that get their pages by one system call where they are shared out.
pub(crate) const CHUNK: usize = 128 << 10;

/// Populates a run. One that does not lie in the block is left alone, and refused when it is to be
/// written.
pub(crate) fn populate(block: &RamBlock, run: Run) {
    if let Ok(region) = block.region(run.offset, run.len) {
        // It need not work: then each page comes when it is written.
        let _ = region.populate();
    }
}
