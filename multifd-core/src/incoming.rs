//! Pages about to be received.

use crate::{BlockError, RamBlock, Region, Run, runs};
use multifd_packet::RamPacket;

/// The pages of one packet, as a decoder gets them: every offset has been checked to lie in the block.
#[derive(Debug, Clone, Copy)]
pub struct IncomingPages<'a> {
    block: &'a RamBlock,
    packet: &'a RamPacket<'a>,
    /// The contents go to the block's first pages, not to where the packet says.
    passing: bool,
}

impl<'a> IncomingPages<'a> {
    /// Checks a packet's pages, normal and zero, against their block.
    ///
    /// # Errors
    /// [`BlockError::Outside`] for the first page that does not lie in the block whole; [`BlockError::Map`] if it is frozen.
    pub fn new(block: &'a RamBlock, packet: &'a RamPacket<'a>) -> Result<Self, BlockError> {
        if block.is_frozen() {
            return Err(BlockError::Map {
                block: block.name().into(),
                reason: "it is frozen: nothing can be received into it",
            });
        }
        for offset in packet.normal().iter().chain(packet.zero().iter()) {
            block.page(offset)?;
        }
        Ok(Self {
            block,
            packet,
            passing: false,
        })
    }

    /// A packet that passes through: its contents go to the first pages of `block`, one after another.
    ///
    /// # Errors
    /// [`BlockError::Outside`] if the block is too small.
    pub(crate) fn passing(block: &'a RamBlock, packet: &'a RamPacket<'a>) -> Result<Self, BlockError> {
        block.region(0, packet.normal().len() * block.page_size() as usize)?;
        Ok(Self {
            block,
            packet,
            passing: true,
        })
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
        let (normal, passing, page) = (self.packet.normal(), self.passing, self.page_size() as u64);
        (0..normal.len()).filter_map(move |index| {
            if passing {
                Some(index as u64 * page)
            } else {
                normal.get(index)
            }
        })
    }

    /// The normal pages in payload order.
    pub fn pages(&self) -> impl Iterator<Item = Region<'a>> + use<'a> {
        let block = self.block;
        self.offsets().filter_map(move |offset| block.page(offset).ok())
    }

    /// The normal pages in payload order, adjacent ones joined.
    pub fn joined(&self) -> impl Iterator<Item = Region<'a>> + use<'a> {
        let block = self.block;
        self.runs()
            .filter_map(move |Run { offset, len }| block.region(offset, len).ok())
    }

    /// Where the contents go, in payload order, adjacent pages joined.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Run> + use<'a> {
        runs(self.offsets(), self.block.page_size())
    }

    /// Makes the packet's zero pages zero.
    pub(crate) fn clear_zeros(&self) {
        for offset in self.packet.zero().iter() {
            // Each was found to lie in the block when this was made.
            let _ = self.block.clear_page(offset);
        }
    }
}
