//! Pages about to be received.

use crate::{BlockError, RamBlock, Region, Run, runs};
use multifd_packet::RamPacket;
use std::sync::Arc;

/// The pages of one packet, and where they go. Every place has been checked to lie in its block.
#[derive(Debug, Clone, Copy)]
pub struct IncomingPages<'a> {
    block: &'a Arc<RamBlock>,
    packet: &'a RamPacket<'a>,
    /// The contents go to the block's first pages, not where the packet says.
    staged: bool,
    /// The zero pages have been dealt with.
    zeros_done: bool,
}

impl<'a> IncomingPages<'a> {
    /// Pages that go where the packet says, into `block`.
    ///
    /// # Errors
    /// [`BlockError::Outside`] for the first page, normal or zero, that does not lie in the block;
    /// [`BlockError::Frozen`].
    pub fn in_place(
        block: &'a Arc<RamBlock>,
        packet: &'a RamPacket<'a>,
    ) -> Result<Self, BlockError> {
        if block.is_frozen() {
            return Err(BlockError::Frozen {
                block: block.name().into(),
            });
        }
        for offset in packet.normal().iter().chain(packet.zero().iter()) {
            block.page(offset)?;
        }
        Ok(Self {
            block,
            packet,
            staged: false,
            zeros_done: false,
        })
    }

    /// Pages whose contents go to the first pages of `block`, one after another, for a destination
    /// that moves them on. Zero pages are that destination's business.
    ///
    /// # Errors
    /// [`BlockError::Outside`] if the block is too small.
    pub fn staged(block: &'a Arc<RamBlock>, packet: &'a RamPacket<'a>) -> Result<Self, BlockError> {
        block.region(0, packet.normal().len() * block.page_size() as usize)?;
        Ok(Self {
            block,
            packet,
            staged: true,
            zeros_done: true,
        })
    }

    /// The same pages, after the caller has dealt with the zero pages.
    #[must_use]
    pub fn with_zeros_done(self) -> Self {
        Self {
            zeros_done: true,
            ..self
        }
    }

    /// The block that the contents go to.
    pub fn block(&self) -> &'a Arc<RamBlock> {
        self.block
    }

    /// Normal pages in the packet.
    pub fn len(&self) -> usize {
        self.packet.normal().len()
    }

    /// Whether the packet has no normal pages.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the payload on the wire, at most 1 MiB.
    pub fn payload_len(&self) -> usize {
        self.packet.fields().payload_len as usize
    }

    /// Bytes of a page.
    pub fn page_size(&self) -> usize {
        self.block.page_size() as usize
    }

    /// Where the normal pages go, in payload order.
    fn offsets(&self) -> impl Iterator<Item = u64> + use<'a> {
        let (normal, staged, page) = (self.packet.normal(), self.staged, self.page_size() as u64);
        (0..normal.len()).filter_map(move |index| {
            if staged {
                Some(index as u64 * page)
            } else {
                normal.get(index)
            }
        })
    }

    /// The normal pages in payload order.
    pub fn pages(&self) -> impl Iterator<Item = Region<'a>> + use<'a> {
        let block = self.block;
        self.offsets()
            .filter_map(move |offset| block.page(offset).ok())
    }

    /// The normal pages in payload order, adjacent ones joined.
    pub fn joined(&self) -> impl Iterator<Item = Region<'a>> + use<'a> {
        let block = self.block;
        self.runs()
            .filter_map(move |Run { offset, len }| block.region(offset, len).ok())
    }

    /// Where the contents go, in payload order, adjacent pages joined.
    pub fn runs(&self) -> impl Iterator<Item = Run> + use<'a> {
        runs(self.offsets(), self.block.page_size())
    }

    /// The zero pages that are still to be cleared, as offsets in bytes.
    pub fn zeros(&self) -> impl Iterator<Item = u64> + use<'a> {
        let zeros = (!self.zeros_done).then(|| self.packet.zero().iter());
        zeros.into_iter().flatten()
    }

    /// Clears the zero pages, unless that has been done.
    pub(crate) fn clear_zeros(&self) {
        for offset in self.zeros() {
            // Each was found to lie in the block when this was made.
            if let Ok(page) = self.block.page(offset) {
                page.clear();
            }
        }
    }
}
