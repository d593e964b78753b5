//! Batches of guest pages: at most one packet's worth, of one block.

use crate::{BlockError, RamBlock, Run, runs};
use multifd_packet::RamPacket;
use std::sync::Arc;

/// How a sender finds zero pages.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum ZeroPages {
    /// By looking at each page, on the channels' threads, and on the client's while they have
    /// enough to do. Zero pages are only named in packets (QEMU's `zero-page-detection=multifd`).
    #[default]
    Detect,
    /// Not at all: zero pages travel like any other (`zero-page-detection=none`).
    Off,
    /// By asking somebody who knows, such as a file's bitmap.
    Told(Arc<dyn ZeroTest>),
}

/// Knows which pages are zero.
pub trait ZeroTest: Send + Sync {
    /// Whether the page at `offset` (bytes) of `block` is zero.
    fn is_zero(&self, block: &RamBlock, offset: u64) -> bool;
}

impl std::fmt::Debug for ZeroPages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Detect => "Detect",
            Self::Off => "Off",
            Self::Told(_) => "Told",
        })
    }
}

/// Pages of one RAM block on their way to a channel: offsets in bytes, normal pages first, then
/// zero pages.
#[derive(Debug)]
pub struct PageBatch {
    block: Arc<RamBlock>,
    offsets: Vec<u64>,
    normal: usize,
    zeros: Vec<u64>,
    /// Zero pages have been sorted out.
    sorted: bool,
    /// What the packet says, if that is not the place in memory.
    wire: Option<Box<WirePlaces>>,
}

/// Places of pages in a RAM block that is not here.
#[derive(Debug, Default)]
pub(crate) struct WirePlaces {
    pub(crate) block: String,
    pub(crate) normal: Vec<u64>,
    pub(crate) zero: Vec<u64>,
}

impl PageBatch {
    pub(crate) fn new(block: Arc<RamBlock>) -> Self {
        let room = block.geometry().pages_per_packet() as usize;
        Self {
            block,
            offsets: Vec::with_capacity(room),
            normal: 0,
            zeros: Vec::with_capacity(room),
            sorted: false,
            wire: None,
        }
    }

    /// A batch of the pages at `offsets` (bytes from the start of the block), all of them taken as
    /// normal; the engine makes its own, this one is to try out a codec or a transport alone.
    ///
    /// # Errors
    /// [`BlockError::Outside`] for a page that does not lie in the block;
    /// [`BlockError::TooManyPages`].
    pub fn from_offsets(block: &Arc<RamBlock>, offsets: &[u64]) -> Result<Self, BlockError> {
        let mut batch = Self::new(Arc::clone(block));
        for &offset in offsets {
            block.page(offset)?;
            if batch.is_full() {
                return Err(BlockError::TooManyPages {
                    block: block.name().into(),
                    found: offsets.len(),
                    limit: block.geometry().pages_per_packet() as usize,
                });
            }
            batch.push(offset);
        }
        Ok(batch)
    }

    pub(crate) fn restart(&mut self, block: &Arc<RamBlock>) {
        self.offsets.clear();
        self.normal = 0;
        self.sorted = false;
        if !Arc::ptr_eq(&self.block, block) {
            self.block = Arc::clone(block);
        }
    }

    /// A batch for packets whose pages lie elsewhere: their contents go to the first pages of
    /// `staging`.
    pub fn staged(staging: Arc<RamBlock>) -> Self {
        Self::new(staging)
    }

    /// Starts over with the pages of `packet`. Its contents are to be put into the first pages of
    /// the batch's own block; its block name and offsets are sent as they came.
    pub fn restage(&mut self, packet: &RamPacket<'_>) {
        let count = packet.normal().len();
        let page = u64::from(self.block.page_size());
        self.offsets.clear();
        self.offsets
            .extend((0..count as u64).map(|index| index * page));
        self.normal = count;
        self.sorted = true;
        let wire = self.wire.get_or_insert_default();
        wire.block.clear();
        wire.block.push_str(packet.fields().block);
        wire.normal.clear();
        wire.normal.extend(packet.normal().iter());
        wire.zero.clear();
        wire.zero.extend(packet.zero().iter());
    }

    /// The block's name, and the offsets of normal and zero pages in bytes, as the packet has them.
    /// In a [`PageBatch::staged`] batch that is not where the contents lie.
    pub fn wire_places(&self) -> (&str, &[u64], &[u64]) {
        match &self.wire {
            Some(wire) => (&wire.block, &wire.normal, &wire.zero),
            None => (self.block.name(), self.normal(), self.zero()),
        }
    }

    /// Adds a page; the caller has checked that it lies in the block.
    pub(crate) fn push(&mut self, offset: u64) {
        self.offsets.push(offset);
        self.normal = self.offsets.len();
    }

    /// Adds pages of the block from the aligned offset `from` on, until it is full or they reach
    /// `end`; returns where the next one is.
    pub(crate) fn fill(&mut self, from: u64, end: u64) -> u64 {
        let step = u64::from(self.block.page_size());
        let room = self.block.geometry().pages_per_packet() as usize;
        let room = room.saturating_sub(self.offsets.len());
        let count = (end.saturating_sub(from)).div_ceil(step).min(room as u64);
        self.offsets
            .extend((0..count).map(|index| from + index * step));
        self.normal = self.offsets.len();
        from + count * step
    }

    pub(crate) fn is_full(&self) -> bool {
        self.offsets.len() >= self.block.geometry().pages_per_packet() as usize
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// Moves zero pages behind the normal ones, keeping the order of both, unless that has been
    /// done.
    pub(crate) fn sort_out_zero_pages(&mut self, how: &ZeroPages) -> Result<(), BlockError> {
        match how {
            ZeroPages::Detect => self.sort_out(|block, offset| Ok(block.page(offset)?.is_zero())),
            ZeroPages::Told(told) => self.sort_out(|block, offset| Ok(told.is_zero(block, offset))),
            ZeroPages::Off => Ok(()),
        }
    }

    fn sort_out(
        &mut self,
        is_zero: impl Fn(&RamBlock, u64) -> Result<bool, BlockError>,
    ) -> Result<(), BlockError> {
        if self.sorted {
            return Ok(());
        }
        self.sorted = true;
        self.zeros.clear();
        let mut kept = 0;
        for i in 0..self.offsets.len() {
            let Some(&offset) = self.offsets.get(i) else {
                break;
            };
            if is_zero(&self.block, offset)? {
                self.zeros.push(offset);
            } else {
                if let Some(slot) = self.offsets.get_mut(kept) {
                    *slot = offset;
                }
                kept += 1;
            }
        }
        self.offsets.truncate(kept);
        self.normal = kept;
        self.offsets.extend_from_slice(&self.zeros);
        Ok(())
    }

    /// The block.
    pub fn block(&self) -> &Arc<RamBlock> {
        &self.block
    }

    /// Offsets of the pages whose contents are sent, in bytes.
    pub fn normal(&self) -> &[u64] {
        self.offsets.get(..self.normal).unwrap_or_default()
    }

    /// Offsets of the zero pages, in bytes.
    pub fn zero(&self) -> &[u64] {
        self.offsets.get(self.normal..).unwrap_or_default()
    }

    /// The normal pages as runs of adjacent ones, in order.
    pub fn normal_runs(&self) -> impl Iterator<Item = Run> {
        runs(self.normal().iter().copied(), self.block.page_size())
    }

    /// The zero pages as runs of adjacent ones, in order.
    pub fn zero_runs(&self) -> impl Iterator<Item = Run> {
        runs(self.zero().iter().copied(), self.block.page_size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_pages_move_behind_and_both_keep_their_order() {
        let block = Arc::new(RamBlock::anonymous("b", 6 * 4096, 4096).unwrap());
        for page in [1u64, 4] {
            block.page(page * 4096).unwrap().copy_from(b"x");
        }
        let mut batch = PageBatch::new(Arc::clone(&block));
        for page in [5u64, 4, 0, 1, 2] {
            batch.push(page * 4096);
        }
        batch.sort_out_zero_pages(&ZeroPages::Detect).unwrap();
        assert_eq!(batch.normal(), [4 * 4096, 4096]);
        assert_eq!(batch.zero(), [5 * 4096, 0, 2 * 4096]);
    }
}
