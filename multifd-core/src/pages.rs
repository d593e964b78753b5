//! Batches of guest pages: at most one packet's worth, of one block.

use crate::{BlockError, RamBlock};
use multifd_packet::RamPacket;
use std::sync::Arc;

/// Whether the sender looks for zero pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ZeroPages {
    /// On the channel threads, and on the client's while they have enough to do; zero pages are only named in packets (QEMU's `zero-page-detection=multifd`).
    #[default]
    Detect,
    /// Not at all: zero pages travel like any other (`zero-page-detection=none`).
    Off,
}

/// Pages of one RAM block on their way to a channel: offsets in bytes, normal pages first, then zero pages.
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

/// The pages of a packet that passes through: their places in a RAM block that is not here.
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

    /// A batch of the pages at `offsets` (bytes from the start of the block), all of them taken as normal; the engine
    /// makes its own, this one is to try out a codec or a transport alone.
    ///
    /// # Errors
    /// [`BlockError::Outside`] for a page that does not lie in the block whole; [`BlockError::Map`] if there are more than
    /// one packet holds.
    pub fn from_offsets(block: &Arc<RamBlock>, offsets: &[u64]) -> Result<Self, BlockError> {
        let mut batch = Self::new(Arc::clone(block));
        for &offset in offsets {
            block.page(offset)?;
            if batch.is_full() {
                return Err(BlockError::Map {
                    block: block.name().into(),
                    reason: "a packet does not hold so many pages",
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

    /// Starts over as the packet that `packet` is: its contents go into the first pages of the batch's own block.
    pub(crate) fn restart_as(&mut self, packet: &RamPacket<'_>) {
        let count = packet.normal().len();
        let page = u64::from(self.block.page_size());
        self.offsets.clear();
        self.offsets.extend((0..count as u64).map(|index| index * page));
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

    /// The block's name, and the offsets of normal and zero pages in bytes, as the packet has them. For packets that pass through
    /// a [`relay`](crate::relay()) that is not where the pages are: [`PageBatch::block`] is memory for one packet there.
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

    pub(crate) fn is_full(&self) -> bool {
        self.offsets.len() >= self.block.geometry().pages_per_packet() as usize
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// Moves zero pages behind the normal ones, keeping the order of both, unless that has been done.
    pub(crate) fn sort_out_zero_pages(&mut self) -> Result<(), BlockError> {
        if self.sorted {
            return Ok(());
        }
        self.sorted = true;
        self.zeros.clear();
        let mut kept = 0;
        for i in 0..self.offsets.len() {
            let Some(&offset) = self.offsets.get(i) else { break };
            if self.block.page(offset)?.is_zero() {
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

/// Adjacent pages of a RAM block: one IOV, one positioned write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Bytes from the start of the block.
    pub offset: u64,
    /// Bytes.
    pub len: usize,
}

/// Joins page offsets that follow each other in memory and in order.
pub fn runs(offsets: impl IntoIterator<Item = u64>, page_size: u32) -> impl Iterator<Item = Run> {
    let mut offsets = offsets.into_iter().peekable();
    let page = page_size as usize;
    std::iter::from_fn(move || {
        let mut run = Run {
            offset: offsets.next()?,
            len: page,
        };
        while offsets
            .next_if(|&next| Some(next) == run.offset.checked_add(run.len as u64))
            .is_some()
        {
            run.len += page;
        }
        Some(run)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_pages_become_one_run() {
        let found: Vec<Run> = runs([0, 4096, 8192, 20480, 16384, 24576], 4096).collect();
        let expected = [(0, 12288), (20480, 4096), (16384, 4096), (24576, 4096)];
        assert_eq!(found, expected.map(|(offset, len)| Run { offset, len }));
        assert_eq!(runs([u64::MAX - 4095, 0], 4096).count(), 2);
    }

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
        batch.sort_out_zero_pages().unwrap();
        assert_eq!(batch.normal(), [4 * 4096, 4096]);
        assert_eq!(batch.zero(), [5 * 4096, 0, 2 * 4096]);
    }
}
