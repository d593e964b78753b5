//! Memory that is about to be filled, and what is done about it before.

use crate::{BlockError, RamBlock, Run};
use std::sync::Arc;

/// Prepares memory for one thread that fills it. [`PlainWriter`] does nothing of the kind;
/// `multifd-residency` gives memory its pages first.
pub trait RamWriter: Send {
    /// Called before whole pages of `block` are written: those of `runs`.
    fn prepare(&mut self, block: &Arc<RamBlock>, runs: &mut dyn Iterator<Item = Run>);

    /// Makes the page at `offset` (bytes) zero.
    ///
    /// # Errors
    /// [`BlockError::Outside`] unless the page lies in the block.
    fn clear(&mut self, block: &Arc<RamBlock>, offset: u64) -> Result<(), BlockError>;
}

/// Fills memory without preparing it. A zero page that is zero already is only read.
#[derive(Debug, Clone, Copy, Default)]
pub struct PlainWriter;

impl RamWriter for PlainWriter {
    fn prepare(&mut self, _: &Arc<RamBlock>, _: &mut dyn Iterator<Item = Run>) {}

    fn clear(&mut self, block: &Arc<RamBlock>, offset: u64) -> Result<(), BlockError> {
        block.page(offset)?.clear();
        Ok(())
    }
}
