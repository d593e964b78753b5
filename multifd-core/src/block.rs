//! The ordered set of RAM blocks a transfer is about.

use crate::{BlockError, RamBlock};
use multifd_packet::Geometry;
use std::sync::Arc;

/// All RAM blocks of a guest, in order; a block's index in it is how clients name it.
#[derive(Debug, Default, Clone)]
pub struct RamMap {
    blocks: Vec<Arc<RamBlock>>,
}

impl RamMap {
    /// An empty map: for transfers of buffers that are no guest pages.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a block at the end and returns its index.
    ///
    /// # Errors
    /// [`BlockError::Map`] if there is a block of that name, or the page size differs from the others'.
    pub fn add(&mut self, block: RamBlock) -> Result<usize, BlockError> {
        let refuse = |reason| BlockError::Map {
            block: block.name().into(),
            reason,
        };
        if self.find(block.name()).is_some() {
            return Err(refuse("there is a block of that name already"));
        }
        if self
            .blocks
            .first()
            .is_some_and(|b| b.page_size() != block.page_size())
        {
            return Err(refuse("its page size differs from the other blocks'"));
        }
        self.blocks.push(Arc::new(block));
        Ok(self.blocks.len() - 1)
    }

    /// Makes the memory of all blocks read-only for good: see [`RamBlock::freeze`].
    ///
    /// # Errors
    /// [`BlockError::Map`] if a block is in use elsewhere, and what [`RamBlock::freeze`] says.
    pub fn freeze(self) -> Result<Self, BlockError> {
        let mut frozen = Vec::with_capacity(self.blocks.len());
        for block in self.blocks {
            let block = Arc::try_unwrap(block).map_err(|block| BlockError::Map {
                block: block.name().into(),
                reason: "it is in use elsewhere and can not be frozen",
            })?;
            frozen.push(Arc::new(block.freeze()?));
        }
        Ok(Self { blocks: frozen })
    }

    /// The block at `index`.
    pub fn get(&self, index: usize) -> Option<&Arc<RamBlock>> {
        self.blocks.get(index)
    }

    /// The block of that name.
    pub fn find(&self, name: &str) -> Option<&Arc<RamBlock>> {
        self.blocks.iter().find(|b| b.name() == name)
    }

    /// All blocks in order.
    pub fn blocks(&self) -> &[Arc<RamBlock>] {
        &self.blocks
    }

    /// Bytes of all blocks.
    pub fn total_len(&self) -> u64 {
        self.blocks.iter().map(|b| b.len()).sum()
    }

    /// The shape of packets: that of the blocks, or for 4096-byte pages in an empty map.
    ///
    /// # Errors
    /// None in practice: 4096 is a valid page size.
    pub fn geometry(&self) -> Result<Geometry, BlockError> {
        match self.blocks.first() {
            Some(block) => Ok(block.geometry()),
            None => Ok(Geometry::new(4096)?),
        }
    }
}
